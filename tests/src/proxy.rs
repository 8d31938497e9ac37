//! A proxy between a client and an S3 server that does to requests and answers what networks and servers do to them.
//!
//! Which request meets what is decided by the seed and by how many came before it, so a run with one client repeats.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::model::mix;

/// What can happen to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Refused with 503 SlowDown; the server never sees it.
    SlowDown,
    /// Carried out, and answered with 500.
    LostAnswer,
    /// The connection is reset before the server sees anything.
    Reset,
    /// Carried out; the connection is cut in the middle of the answer.
    Truncated,
    /// Carried out twice.
    Twice,
    /// A listing is answered as it was the last time.
    StaleList,
}

/// What the proxy does.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// Decides which requests meet a fault.
    pub seed: u64,
    /// One request in so many meets a fault; 0 none.
    pub fault_every: u64,
    /// The faults, met with equal chance.
    pub faults: Vec<Fault>,
    /// Whether `If-None-Match` is taken out of requests, as if the server did not know it.
    pub ignore_create: bool,
    /// Time until a request reaches the server.
    pub latency: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { seed: 0, fault_every: 0, faults: Vec::new(), ignore_create: false, latency: Duration::ZERO }
    }
}

/// A proxy at work until it is dropped.
pub struct Proxy {
    /// `127.0.0.1:PORT`
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    behaviour: Mutex<Behaviour>,
    requests: Mutex<u64>,
    came: Condvar,
    faults_met: AtomicU64,
    spans: Mutex<Vec<(Instant, Instant)>>,
    listings: Mutex<HashMap<String, Vec<u8>>>,
    ended: AtomicBool,
}

impl Proxy {
    /// A proxy before the server at an address.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(server: &str, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            behaviour: Mutex::new(behaviour),
            requests: Mutex::new(0),
            came: Condvar::new(),
            faults_met: AtomicU64::new(0),
            spans: Mutex::default(),
            listings: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let serving = serving.clone();
                // A connection that broke is what this is for.
                std::thread::spawn(move || drop(serving.serve(&client)));
            }
        });
        Self { address, shared }
    }

    /// Does something else from here on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock() = behaviour;
    }

    /// Requests that came so far.
    pub fn requests(&self) -> u64 {
        *self.shared.requests.lock()
    }

    /// Faults that requests met so far.
    pub fn faults_met(&self) -> u64 {
        self.shared.faults_met.load(Ordering::SeqCst)
    }

    /// How many answers were waited for one after another since this was asked last: the longest chain of requests of which
    /// each began when the one before had its answer. On a long line each is a round trip.
    pub fn rounds(&self) -> usize {
        let mut spans = std::mem::take(&mut *self.shared.spans.lock());
        spans.sort_unstable_by_key(|(_, end)| *end);
        let (mut rounds, mut last) = (0, None);
        for (begin, end) in spans {
            if last.is_none_or(|last| begin >= last) {
                (rounds, last) = (rounds + 1, Some(end));
            }
        }
        rounds
    }

    /// Waits until that many requests have come, or a while has passed; says whether they came.
    pub fn wait_for(&self, requests: u64) -> bool {
        let mut came = self.shared.requests.lock();
        while *came < requests {
            if self.shared.came.wait_for(&mut came, Duration::from_secs(30)).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(&self.address);
    }
}

struct Request {
    /// Method and target.
    line: String,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Shared {
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let request = read_request(client)?;
        let begin = Instant::now();
        let number = {
            let mut requests = self.requests.lock();
            *requests += 1;
            self.came.notify_all();
            *requests
        };
        let behaviour = self.behaviour.lock().clone();
        if !behaviour.latency.is_zero() {
            // It stands for the distance: nothing waits for a moment to come.
            std::thread::sleep(behaviour.latency);
        }
        let is_list = request.line.starts_with("GET ") && request.line.contains("list-type=2");
        let fault = fault_of(&behaviour, number).filter(|fault| is_list || *fault != Fault::StaleList);
        if fault.is_some() {
            self.faults_met.fetch_add(1, Ordering::SeqCst);
        }
        let ask = || self.ask(&request, behaviour.ignore_create);
        let answer = match fault {
            Some(Fault::Reset) => return reset(client),
            Some(Fault::SlowDown) => refusal("503 Slow Down", "SlowDown"),
            Some(Fault::LostAnswer) => {
                ask()?;
                refusal("500 Internal Server Error", "InternalError")
            }
            Some(Fault::Twice) => {
                ask()?;
                ask()?
            }
            Some(Fault::StaleList) => match self.listings.lock().get(&request.line).cloned() {
                Some(stale) => stale,
                None => ask()?,
            },
            Some(Fault::Truncated) | None => ask()?,
        };
        if is_list && fault.is_none() {
            self.listings.lock().insert(request.line.clone(), answer.clone());
        }
        // Before the answer is sent, which may bring the next request.
        self.spans.lock().push((begin, Instant::now()));
        let sent = if fault == Some(Fault::Truncated) { answer.len() * 2 / 3 } else { answer.len() };
        let mut to = client;
        to.write_all(&answer[..sent])?;
        client.shutdown(Shutdown::Both)
    }

    fn ask(&self, request: &Request, ignore_create: bool) -> io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(&self.server)?;
        let mut head = format!("{}\r\n", request.line);
        let is = |header: &str, name: &str| header.to_ascii_lowercase().starts_with(name);
        for header in &request.headers {
            let taken_out = is(header, "connection:") || (ignore_create && is(header, "if-none-match:"));
            if !taken_out {
                head.push_str(&format!("{header}\r\n"));
            }
        }
        head.push_str("Connection: close\r\n\r\n");
        server.write_all(head.as_bytes())?;
        server.write_all(&request.body)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

fn fault_of(behaviour: &Behaviour, number: u64) -> Option<Fault> {
    let drawn = mix(behaviour.seed.wrapping_mul(1_000_003) ^ number);
    if behaviour.fault_every == 0 || behaviour.faults.is_empty() || !drawn.is_multiple_of(behaviour.fault_every) {
        return None;
    }
    Some(behaviour.faults[(drawn >> 32) as usize % behaviour.faults.len()])
}

fn read_request(client: &TcpStream) -> io::Result<Request> {
    let mut reader = BufReader::new(client);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let line = if lines.is_empty() { String::new() } else { lines.remove(0) };
    let length = |header: &String| {
        let (name, value) = header.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    };
    let mut body = vec![0; lines.iter().find_map(length).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Request { line, headers: lines, body })
}

fn refusal(status: &str, code: &str) -> Vec<u8> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>");
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Ends a connection the hard way.
fn reset(client: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO))?;
    Ok(())
}
