//! A conversation with an SFTP server over the pipes of a child process.
//!
//! Many requests are under way at once; each answer finds its own by its number. The conversation ends when the process does, when
//! it sends what makes no sense, or when nothing moves any more; all that wait are told why.

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::packet::{self, Attributes, Code, Extensions, Name, PACKET_LEN_MAX, Reply, Request};
use crate::traffic::Traffic;

/// Requests under way at once.
const REQUESTS: usize = 64;
/// Bytes that are read or written by one request. Every server takes as much.
pub(super) const PIECE_LEN: usize = 32 * 1024;
/// How long to wait for what it says to people at its end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of what the process says to people that are kept.
const SAID_LEN_MAX: usize = 2048;

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failed {
    /// The server says so.
    Refused(Code, String),
    /// The conversation is over; another one may do better.
    Lost(String),
    /// There is none, and trying again would not help.
    Hopeless(String),
}

/// How long a server may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// To say that it is one: the connection, the keys.
    greeting: Duration,
    /// Without a byte moving while something is waited for.
    stall: Duration,
    /// How often that is looked at.
    look: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { greeting: seconds(60), stall: seconds(120), look: seconds(10) }
    }
}

/// A conversation; it ends when it is dropped.
pub(super) struct Session {
    pub(super) extensions: Extensions,
    sender: mpsc::Sender<Bytes>,
    shared: Arc<Shared>,
    next: AtomicU32,
    turns: Semaphore,
}

struct Shared {
    waiting: Mutex<Waiting>,
    traffic: Arc<Traffic>,
}

struct Waiting {
    requests: HashMap<u32, oneshot::Sender<Result<Reply, Failed>>>,
    moved: Instant,
    over: Option<String>,
}

impl Shared {
    fn moved(&self) {
        self.waiting.lock().moved = Instant::now();
    }

    /// Hands an answer to who waits for it; whether it is one.
    fn answer(&self, packet: Bytes) -> bool {
        let answer = packet::decode(packet).ok();
        let mut waiting = self.waiting.lock();
        waiting.moved = Instant::now();
        let Some((request, reply)) = answer.and_then(|(id, reply)| Some((waiting.requests.remove(&id)?, reply))) else {
            return false;
        };
        // Whoever does not wait any more need not know.
        let _ = request.send(Ok(reply));
        true
    }

    /// Ends it, unless it ended before.
    fn end(&self, why: &str) {
        let mut waiting = self.waiting.lock();
        let why = waiting.over.get_or_insert_with(|| why.to_owned()).clone();
        for (_, request) in waiting.requests.drain() {
            // Whoever does not wait any more need not know.
            let _ = request.send(Err(Failed::Lost(why.clone())));
        }
    }
}

impl Session {
    /// Starts the process, and waits until the server says that it is one.
    pub(super) async fn start(command: &[OsString], traffic: Arc<Traffic>, patience: Patience) -> Result<Self, Failed> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| Failed::Hopeless("no program is named".into()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for this process, which has to take its lease away before it ends.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failed::Hopeless(format!("cannot start {}: {error}", program.display())))?;
        let taken = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(mut stdout), Some(stderr)) = taken else {
            return Err(Failed::Hopeless(format!("{} has no pipes", program.display())));
        };
        let said = Said::listen(stderr);
        let greeting = async {
            stdin.write_all(&packet::init()).await.ok()?;
            let packet = read_packet(&mut stdout).await.ok()?;
            packet::decode_version(packet).ok()
        };
        let Some(extensions) = tokio::time::timeout(patience.greeting, greeting).await.ok().flatten() else {
            end(&mut child).await;
            return Err(greeting_failed(&said.whole().await));
        };
        let waiting = Waiting { requests: HashMap::new(), moved: Instant::now(), over: None };
        let shared = Arc::new(Shared { waiting: Mutex::new(waiting), traffic });
        let (sender, packets) = mpsc::channel(REQUESTS);
        tokio::spawn(write(stdin, packets, shared.clone()));
        tokio::spawn(read(child, stdout, said, shared.clone(), patience));
        Ok(Self { extensions, sender, shared, next: AtomicU32::new(0), turns: Semaphore::new(REQUESTS) })
    }

    pub(super) fn is_over(&self) -> bool {
        self.shared.waiting.lock().over.is_some()
    }

    async fn ask(&self, request: &Request<'_>) -> Result<Reply, Failed> {
        let lost = || {
            let over = self.shared.waiting.lock().over.clone();
            Failed::Lost(over.unwrap_or_else(|| "the conversation with the SFTP server is over".to_owned()))
        };
        let _turn = self.turns.acquire().await.map_err(|_| lost())?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting.lock();
            if let Some(why) = &waiting.over {
                return Err(Failed::Lost(why.clone()));
            }
            if waiting.requests.is_empty() {
                // What is waited for begins now.
                waiting.moved = Instant::now();
            }
            waiting.requests.insert(id, answer);
        }
        // Where nobody sends it any more, the reader ends soon, and says why.
        let _ = self.sender.send(request.encode(id)).await;
        answered.await.map_err(|_| lost())?
    }

    async fn done(&self, request: &Request<'_>) -> Result<(), Failed> {
        match self.ask(request).await? {
            Reply::Status { code: Code::Ok, .. } => Ok(()),
            reply => Err(refused(reply)),
        }
    }

    pub(super) async fn open(&self, path: &str, flags: u32) -> Result<Bytes, Failed> {
        self.handle(&Request::Open { path, flags }).await
    }

    async fn handle(&self, request: &Request<'_>) -> Result<Bytes, Failed> {
        match self.ask(request).await? {
            Reply::Handle(handle) => Ok(handle),
            reply => Err(refused(reply)),
        }
    }

    pub(super) async fn close(&self, handle: &[u8]) -> Result<(), Failed> {
        self.done(&Request::Close { handle }).await
    }

    pub(super) async fn write(&self, handle: &[u8], offset: u64, bytes: &[u8]) -> Result<(), Failed> {
        self.done(&Request::Write { handle, offset, bytes }).await
    }

    /// At most `len` bytes; none at the end of the file.
    pub(super) async fn read(&self, handle: &[u8], offset: u64, len: usize) -> Result<Option<Bytes>, Failed> {
        let asked = u32::try_from(len.min(PIECE_LEN)).unwrap_or(u32::MAX);
        match self.ask(&Request::Read { handle, offset, len: asked }).await? {
            Reply::Data(bytes) if !bytes.is_empty() && bytes.len() <= asked as usize => Ok(Some(bytes)),
            Reply::Status { code: Code::End, .. } => Ok(None),
            reply => Err(refused(reply)),
        }
    }

    pub(super) async fn sync(&self, handle: &[u8]) -> Result<(), Failed> {
        self.done(&Request::Sync { handle }).await
    }

    pub(super) async fn stat(&self, path: &str) -> Result<Attributes, Failed> {
        self.attributes(&Request::Stat { path }).await
    }

    pub(super) async fn stat_handle(&self, handle: &[u8]) -> Result<Attributes, Failed> {
        self.attributes(&Request::StatHandle { handle }).await
    }

    async fn attributes(&self, request: &Request<'_>) -> Result<Attributes, Failed> {
        match self.ask(request).await? {
            Reply::Attributes(attributes) => Ok(attributes),
            reply => Err(refused(reply)),
        }
    }

    pub(super) async fn remove(&self, path: &str) -> Result<(), Failed> {
        self.done(&Request::Remove { path }).await
    }

    pub(super) async fn make_folder(&self, path: &str) -> Result<(), Failed> {
        self.done(&Request::MakeFolder { path }).await
    }

    /// Gives a file another name, that must not be taken.
    pub(super) async fn rename(&self, from: &str, to: &str) -> Result<(), Failed> {
        self.done(&Request::Rename { from, to }).await
    }

    /// Gives a file another name, whose file goes in the same step.
    pub(super) async fn replace(&self, from: &str, to: &str) -> Result<(), Failed> {
        self.done(&Request::Replace { from, to }).await
    }

    /// What a folder holds.
    pub(super) async fn folder(&self, path: &str) -> Result<Vec<Name>, Failed> {
        let handle = self.handle(&Request::OpenFolder { path }).await?;
        let mut names = Vec::new();
        let read = loop {
            match self.ask(&Request::ReadFolder { handle: &handle }).await {
                Ok(Reply::Names(more)) => names.extend(more),
                Ok(Reply::Status { code: Code::End, .. }) => break Ok(()),
                Ok(reply) => break Err(refused(reply)),
                Err(failed) => break Err(failed),
            }
        };
        self.close(&handle).await?;
        read.map(|()| names)
    }
}

fn refused(reply: Reply) -> Failed {
    match reply {
        Reply::Status { code, message } => Failed::Refused(code, message),
        _ => Failed::Refused(Code::Failed, "the SFTP server answers something else than it was asked".to_owned()),
    }
}

fn greeting_failed(said: &str) -> Failed {
    let last = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let text = match last.as_str() {
        "" => "no SFTP server answers".to_owned(),
        last => format!("no SFTP server answers: {last}"),
    };
    // What ssh(1) says of keys and names; the network may come back.
    let hopeless = ["Permission denied", "verification failed", "HOST IDENTIFICATION HAS CHANGED", "Bad configuration"];
    let hopeless = hopeless.iter().any(|part| said.contains(part));
    if hopeless { Failed::Hopeless(text) } else { Failed::Lost(text) }
}

/// Ends the process, and what it started: a proxy, say.
async fn end(child: &mut Child) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(id) = id {
        // Its group has its number, as long as it was not waited for.
        let _ = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
    }
    let _ = child.wait().await;
}

/// The end of what the process says to people.
struct Said {
    bytes: Arc<Mutex<Vec<u8>>>,
    listening: tokio::task::JoinHandle<()>,
}

impl Said {
    fn listen(mut stderr: ChildStderr) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let said = bytes.clone();
        let listening = tokio::spawn(async move {
            let mut piece = [0; 1024];
            while let Ok(read @ 1..) = stderr.read(&mut piece).await {
                let mut said = said.lock();
                said.extend_from_slice(&piece[..read]);
                let surplus = said.len().saturating_sub(SAID_LEN_MAX);
                said.drain(..surplus);
            }
        });
        Self { bytes, listening }
    }

    /// Once the process ended. Something else may hold its end of the pipe.
    async fn whole(self) -> String {
        let _ = tokio::time::timeout(LAST_WORDS, self.listening).await;
        String::from_utf8_lossy(&self.bytes.lock()).into_owned()
    }
}

async fn read_packet(stdout: &mut ChildStdout) -> std::io::Result<Bytes> {
    let len = stdout.read_u32().await? as usize;
    if !(5..=PACKET_LEN_MAX).contains(&len) {
        return Err(std::io::Error::other(format!("a packet of {len} bytes")));
    }
    let mut packet = vec![0; len];
    stdout.read_exact(&mut packet).await?;
    Ok(packet.into())
}

/// Sends packets, a piece at a time.
async fn write(mut stdin: ChildStdin, mut packets: mpsc::Receiver<Bytes>, shared: Arc<Shared>) {
    while let Some(packet) = packets.recv().await {
        for piece in packet.chunks(PIECE_LEN) {
            let wait = shared.traffic.upload(piece.len());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            if stdin.write_all(piece).await.is_err() {
                // The reader finds out why.
                return;
            }
            shared.moved();
        }
    }
}

/// Receives answers until there are no more.
async fn read(mut child: Child, mut stdout: ChildStdout, said: Said, shared: Arc<Shared>, patience: Patience) {
    let why = answers(&mut stdout, &shared, patience).await;
    end(&mut child).await;
    let said = said.whole().await.trim().replace(['\n', '\r'], " ");
    let why = if said.is_empty() { why } else { format!("{why}: {said}") };
    shared.end(&why);
}

async fn answers(stdout: &mut ChildStdout, shared: &Shared, patience: Patience) -> String {
    loop {
        let packet = {
            let mut packet = std::pin::pin!(read_packet(stdout));
            loop {
                match tokio::time::timeout(patience.look, &mut packet).await {
                    Ok(Ok(packet)) => break packet,
                    Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                        return "the connection to the SFTP server ended".to_owned();
                    }
                    Ok(Err(error)) => return format!("the connection to the SFTP server failed: {error}"),
                    Err(_) => {
                        let waiting = shared.waiting.lock();
                        if !waiting.requests.is_empty() && waiting.moved.elapsed() > patience.stall {
                            return format!("no byte moved for {} s", patience.stall.as_secs());
                        }
                    }
                }
            }
        };
        let wait = shared.traffic.download(packet.len());
        if !shared.answer(packet) {
            return "the SFTP server sends what makes no sense".to_owned();
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::TrafficLimits;

    /// What a server says first.
    const GREETING: &str = r"printf '\0\0\0\5\2\0\0\0\3';";

    fn asked(script: &str) -> Failed {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let command = ["sh", "-c", script].map(OsString::from);
        let traffic = Arc::new(Traffic::new(TrafficLimits::default()));
        let short = Duration::from_millis(20);
        // Only who is silent is waited for so long.
        let patience = Patience { greeting: 100 * short, stall: 50 * short, look: short };
        runtime.block_on(async {
            let session = match Session::start(&command, traffic, patience).await {
                Ok(session) => session,
                Err(failed) => return failed,
            };
            let failed = session.stat("x").await.unwrap_err();
            assert!(session.is_over(), "{failed:?}");
            assert_eq!(session.stat("x").await.unwrap_err(), failed, "it stays over");
            failed
        })
    }

    #[test]
    fn a_server_that_falls_silent_ends_or_talks_nonsense_is_given_up() {
        let cases = [
            ("sleep 1000".to_owned(), "no SFTP server answers"),
            ("echo Welcome".to_owned(), "no SFTP server answers"),
            ("echo no such host >&2; exit 255".to_owned(), "no SFTP server answers: no such host"),
            (format!("{GREETING} sleep 1000"), "no byte moved"),
            (format!("{GREETING} head -c 9 >/dev/null; echo killed >&2"), "ended: killed"),
            // A packet of no bytes; one of 4 GiB; an answer that nobody asked for; one that is cut short in itself.
            (format!(r"{GREETING} printf '\0\0\0\0'; sleep 1000"), "a packet of 0 bytes"),
            (format!(r"{GREETING} printf '\377\377\377\377'; sleep 1000"), "a packet of 4294967295 bytes"),
            (format!(r"{GREETING} printf '\0\0\0\11\145\0\0\0\7\0\0\0\0'; sleep 1000"), "makes no sense"),
            (
                format!(r"{GREETING} head -c 9 >/dev/null; printf '\0\0\0\11\146\0\0\0\0\0\0\1\0'; sleep 1000"),
                "makes no sense",
            ),
        ];
        for (script, says) in cases {
            match asked(&script) {
                Failed::Lost(why) => assert!(why.contains(says), "{script}: {why}"),
                failed => panic!("{script}: {failed:?}"),
            }
        }
        assert!(matches!(asked("echo Permission denied >&2; exit 255"), Failed::Hopeless(_)));
    }

    #[test]
    fn a_program_that_is_missing_is_said_to_be_missing() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let traffic = Arc::new(Traffic::new(TrafficLimits::default()));
        let command = ["/there/is/none".into()];
        let failed = runtime.block_on(Session::start(&command, traffic, Patience::default())).err().unwrap();
        assert!(matches!(&failed, Failed::Hopeless(why) if why.contains("cannot start /there/is/none")), "{failed:?}");
    }
}
