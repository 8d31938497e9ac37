//! SFTP servers for tests: OpenSSH's sshd on a port of its own, or its `sftp-server` at the end of a line that breaks.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cli::{cairn, run};

/// The server's program without the network.
const PROGRAM: &str = "/usr/lib/openssh/sftp-server";

/// An sshd that one key opens.
pub struct Sshd {
    folder: TempDir,
    process: Child,
    port: u16,
}

impl Sshd {
    /// Starts one.
    ///
    /// # Panics
    /// When OpenSSH is not installed.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        for key in ["host", "user", "other"] {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(key)));
        }
        std::fs::copy(path("user.pub"), path("authorized")).expect("the key is copied");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {host}\nAuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 100\nSubsystem sftp {PROGRAM}\n",
            host = path("host").display(),
            authorized = path("authorized").display(),
        );
        std::fs::write(path("sshd_config"), config).expect("the configuration is written");
        let host = std::fs::read_to_string(path("host.pub")).expect("the key is there");
        std::fs::write(path("known"), format!("[127.0.0.1]:{port} {host}")).expect("the host is known");
        // Root's sshd wants it, whatever it is for.
        let _ = std::fs::create_dir_all("/run/sshd");
        let mut process = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(path("sshd_config"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("sshd runs: install the oracles first (make oracles)");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let listens = lines.by_ref().map_while(Result::ok).any(|line| line.contains("Server listening"));
        assert!(listens, "sshd listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self { folder, process, port }
    }

    /// A folder of that machine, as `cairn` takes it.
    pub fn place(&self, folder: &Path) -> String {
        format!("sftp://127.0.0.1:{}{}", self.port, folder.display())
    }

    /// What it is reached with, by one of the keys `user` and `other`, with one of the files `known` and `unknown`.
    pub fn ssh(&self, key: &str, known: &str) -> String {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        format!(
            "ssh -F none -oIdentitiesOnly=yes -oUserKnownHostsFile={} -oGlobalKnownHostsFile=none -i {}",
            path(known),
            path(key)
        )
    }

    /// A `cairn` command on a folder there.
    pub fn cairn(&self, home: &Path, folder: &Path, arguments: &[&str]) -> Command {
        over_sftp(&self.place(folder), &self.ssh("user", "known"), home, arguments)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Nothing more can be done about one that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A `cairn` command on a place that is reached by some program.
pub fn over_sftp(place: &str, ssh: &str, home: &Path, arguments: &[&str]) -> Command {
    let mut command = cairn(Path::new(place));
    command.args(arguments).env("CAIRN_SSH", ssh).env("HOME", home);
    command.env_remove("XDG_CACHE_HOME").env_remove("XDG_CONFIG_HOME").env_remove("SSH_AUTH_SOCK");
    command
}

/// What takes the place of `ssh`, and ends after some bytes from the client, more or fewer each time.
pub struct BrokenLine {
    folder: TempDir,
}

const RELAY: &str = "\
import os, subprocess, sys, threading
count = int(open(sys.argv[1]).read() or 0) if os.path.exists(sys.argv[1]) else 0
open(sys.argv[1], 'w').write(str(count + 1))
# Every fourth line holds.
left = float('inf') if count % 4 == 3 else (count * 2654435761 + int(sys.argv[2])) % 3000000
server = subprocess.Popen([sys.argv[3]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def back():
    while piece := os.read(server.stdout.fileno(), 65536):
        os.write(1, piece)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while piece := os.read(0, 65536):
    piece = piece[:int(min(len(piece), left))]
    left -= len(piece)
    server.stdin.write(piece)
    server.stdin.flush()
    if left <= 0:
        server.kill()
        os._exit(1)
server.stdin.close()
server.wait()
";

impl BrokenLine {
    /// One of many, by its seed.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn lay() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("relay.py"), RELAY).expect("the relay is written");
        Self { folder }
    }

    /// What a place is reached with.
    pub fn ssh(&self, seed: u64) -> String {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        // What else a command line has goes to the relay, too, which does not look at it.
        format!("python3 {} {} {seed} {PROGRAM}", path("relay.py"), path("count"))
    }

    /// How often it was laid.
    pub fn lines(&self) -> u64 {
        let count = std::fs::read_to_string(self.count()).unwrap_or_default();
        count.parse().unwrap_or(0)
    }

    fn count(&self) -> PathBuf {
        self.folder.path().join("count")
    }
}
