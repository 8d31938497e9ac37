//! A line between a client and a server, below what they say: it carries bytes, and breaks off after any of them, or holds
//! up what a client says from its n-th word on.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::model::mix;

/// How a connection ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// Both sides see it end.
    Cut,
    /// One direction goes on.
    Half,
    /// A bit of the byte is the other way round, and it goes on.
    Flip,
}

const BREAKS: [Break; 3] = [Break::Cut, Break::Half, Break::Flip];

/// A line, until it is dropped.
pub struct Wire {
    /// Where clients connect: `127.0.0.1:PORT`.
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    seed: u64,
    connections: AtomicU64,
    carried: AtomicU64,
    broken: AtomicU64,
    is_calm: AtomicBool,
    ended: AtomicBool,
    hold: Mutex<Hold>,
    held: Condvar,
}

/// What is not let through.
#[derive(Debug, Default)]
struct Hold {
    /// Clients began to speak so often since the last hold: a handshake or a request each.
    words: u64,
    /// The first word that is held up.
    from: Option<u64>,
    /// Words that are held up.
    waiting: u64,
    /// How many times what was held up has been let go, and whether it went on then or was dropped.
    releases: u64,
    goes_on: bool,
}

impl Wire {
    /// Lays a line to a server. The seed and the number of a connection decide after which byte it breaks, and how.
    ///
    /// # Panics
    /// When there is no port.
    pub fn lay(server: &str, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it has an address").to_string();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            seed,
            connections: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            is_calm: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            hold: Mutex::default(),
            held: Condvar::new(),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serving.clone();
                std::thread::spawn(move || shared.connect(client));
            }
        });
        Self { address, shared }
    }

    /// From now on nothing breaks.
    pub fn calm(&self) {
        self.shared.is_calm.store(true, Ordering::SeqCst);
    }

    /// Counts words from here on, and holds up those from the n-th on, 0 the first.
    pub fn hold_from(&self, word: u64) {
        let mut hold = self.shared.hold.lock();
        (hold.words, hold.from) = (0, Some(word));
    }

    /// Waits some milliseconds for a word to be held up; says whether one is.
    pub fn is_holding(&self) -> bool {
        let mut hold = self.shared.hold.lock();
        if hold.waiting == 0 {
            self.shared.held.wait_for(&mut hold, Duration::from_millis(5));
        }
        hold.waiting > 0
    }

    /// Holds up nothing any more. What was held up arrives late, or never. Gives the words there were.
    pub fn let_go(&self, arrives: bool) -> u64 {
        let mut hold = self.shared.hold.lock();
        (hold.from, hold.goes_on) = (None, arrives);
        hold.releases += 1;
        self.shared.held.notify_all();
        self.shared.held.wait_while(&mut hold, |hold| hold.waiting > 0);
        hold.words
    }

    /// Bytes that were carried.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::SeqCst)
    }

    /// Connections that broke.
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn connect(self: Arc<Self>, client: TcpStream) {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        // A server that is down refuses.
        let Ok(server) = TcpStream::connect(&self.server) else { return };
        let draw = mix(self.seed ^ mix(number));
        let plan = (!self.is_calm.load(Ordering::SeqCst)).then(|| {
            let how = BREAKS[(draw % 3) as usize];
            // Half of them early, where the handshake and requests are; the others anywhere in some MiB.
            let span = if draw & 8 == 0 { 4096 } else { 3 << 20 };
            (how, mix(draw) % span)
        });
        let to_server = draw & 16 == 0;
        let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else { return };
        let is_answered = Arc::new(AtomicBool::new(true));
        let there = {
            let (shared, plan, is_answered) = (self.clone(), plan.filter(|_| to_server), is_answered.clone());
            // Whoever speaks after an answer begins something new.
            let speaks = move |shared: &Self| !is_answered.swap(false, Ordering::SeqCst) || shared.pass();
            std::thread::spawn(move || shared.carry(client, server, plan, speaks))
        };
        let answers = move |_: &Self| {
            is_answered.store(true, Ordering::SeqCst);
            true
        };
        self.carry(server_too, client_too, plan.filter(|_| !to_server), answers);
        let _ = there.join();
    }

    /// Lets a word through once it may go; says whether it is to go on.
    fn pass(&self) -> bool {
        let mut hold = self.hold.lock();
        let number = hold.words;
        hold.words += 1;
        if hold.from.is_none_or(|from| number < from) {
            return true;
        }
        let releases = hold.releases;
        hold.waiting += 1;
        self.held.notify_all();
        self.held.wait_while(&mut hold, |hold| hold.releases == releases);
        hold.waiting -= 1;
        self.held.notify_all();
        hold.goes_on
    }

    /// Carries one direction until it ends, or breaks, or may not go on.
    fn carry(
        &self,
        mut from: TcpStream,
        mut to: TcpStream,
        plan: Option<(Break, u64)>,
        may_go: impl Fn(&Self) -> bool,
    ) {
        let mut buffer = [0; 16 * 1024];
        let mut carried = 0;
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let bytes = &mut buffer[..count];
            let due = plan.filter(|(_, at)| (carried..carried + count as u64).contains(at));
            carried += count as u64;
            self.carried.fetch_add(count as u64, Ordering::SeqCst);
            if !may_go(self) {
                break;
            }
            let Some((how, at)) = due else {
                if to.write_all(bytes).is_err() {
                    break;
                }
                continue;
            };
            self.broken.fetch_add(1, Ordering::SeqCst);
            let at = (at + count as u64 - carried) as usize;
            match how {
                Break::Flip => {
                    bytes[at] ^= 1 << (at % 8);
                    if to.write_all(bytes).is_err() {
                        break;
                    }
                }
                Break::Cut | Break::Half => {
                    let _ = to.write_all(&bytes[..at]);
                    if how == Break::Cut {
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.shutdown(Shutdown::Both);
                    }
                    break;
                }
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        // What still comes goes nowhere, so that the sender does not wait for ever.
        while let Ok(1..) = from.read(&mut buffer) {}
    }
}
