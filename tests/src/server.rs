//! The `cairn-server` beside the test binary, started on a free port of the loopback interface, and a client that says
//! what no proper client would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{cairn, cairn_path, run};
use crate::s3::{S3Server, variables};

/// A server with the namespaces `office` and `lab`, and its folder.
pub struct Server {
    folder: TempDir,
    limits: String,
    /// Where the namespace `office` is, as the configuration says it.
    pub place: String,
    /// What stands in its section besides.
    pub office: String,
    /// Set in the server's surroundings.
    pub variables: Vec<(&'static str, String)>,
    process: Option<Child>,
    /// `127.0.0.1:PORT`, the same after a restart.
    pub address: String,
    /// Of its certificate.
    pub fingerprint: String,
}

impl Server {
    /// Starts one. `limits` is what stands in the configuration's section of that name.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(limits: &str) -> Self {
        Self::start_at(limits, "path = \"office\"", &[])
    }

    /// The same, with the namespace `office` in a bucket.
    pub fn start_on(s3: &S3Server, limits: &str) -> Self {
        Self::start_at(limits, &format!("url = \"{}\"", s3.place("office")), &variables(&s3.address))
    }

    /// The same, with that namespace in some place.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_at(limits: &str, place: &str, variables: &[(&'static str, String)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self {
            folder,
            limits: limits.to_owned(),
            place: place.to_owned(),
            office: String::new(),
            variables: variables.to_vec(),
            process: None,
            address: "127.0.0.1:0".to_owned(),
            fingerprint: String::new(),
        };
        server.start_again();
        server
    }

    /// Starts it again where it was.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&mut self) {
        let text = format!(
            "listen = \"{}\"\nstate = \"state\"\n[limits]\n{}\n[namespaces.office]\n{}\nquota_mib = 64\n\
             {}\n[namespaces.lab]\npath = \"lab\"\n",
            self.address, self.limits, self.place, self.office
        );
        std::fs::write(self.config(), text).expect("the configuration is written");
        let mut process = Command::new(cairn_path().with_file_name("cairn-server"))
            .arg("--config")
            .arg(self.config())
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cairn-server runs: build the workspace first");
        let mut lines = BufReader::new(process.stderr.take().expect("standard error is piped")).lines();
        let mut seen = String::new();
        loop {
            let line = lines.next().and_then(Result::ok).unwrap_or_else(|| panic!("the server did not start: {seen}"));
            let told: Value = serde_json::from_str(&line).unwrap_or_default();
            if told["message"] == "listening" {
                self.address = told["address"].as_str().expect("an address").to_owned();
                self.fingerprint = told["fingerprint"].as_str().expect("a fingerprint").to_owned();
                break;
            }
            seen.push_str(&line);
        }
        let log = self.log_path();
        std::thread::spawn(move || {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(log).expect("the log opens");
            for line in lines.map_while(Result::ok) {
                writeln!(file, "{line}").expect("the log is written");
            }
        });
        self.process = Some(process);
    }

    /// Its process number.
    ///
    /// # Panics
    /// When it does not run.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process number");
        rustix::process::kill_process(id, signal).expect("the server runs");
    }

    /// Waits for its end, and says whether it ended well.
    pub fn wait(&mut self) -> bool {
        let mut process = self.process.take().expect("the server runs");
        process.wait().expect("it can be waited for").success()
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may be dead already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Files that it writes and that have no name yet.
    pub fn unnamed_files(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.id())).into_iter().flatten().flatten();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.filter(|target| target.to_string_lossy().ends_with(" (deleted)")).count()
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.path("server.toml")
    }

    /// Something in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log_path(&self) -> PathBuf {
        self.path("log.jsonl")
    }

    /// What it wrote to standard error so far, but for the first lines.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Its audit entries.
    ///
    /// # Panics
    /// When a line is no JSON.
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("state/audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("an entry is JSON")).collect()
    }

    /// A command of the program on its configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cairn_path().with_file_name("cairn-server"));
        command.arg("--config").arg(self.config()).args(arguments);
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        command
    }

    /// Makes a token.
    pub fn token(&self, role: &str, namespace: &str) -> String {
        let added = run(&mut self.command(&["token", "add", "--role", role, "--namespace", namespace]));
        String::from_utf8(added.stdout).expect("a token is text").trim().to_owned()
    }

    /// A `cairn` command on a namespace, on a machine whose files are in `home`.
    pub fn cairn(&self, home: &Path, namespace: &str, token: &str) -> Command {
        let mut command = Self::cairn_at(&self.address, home, namespace, token);
        command.args(["--retry-for", "0"]);
        command
    }

    /// The same, for a server at an address.
    pub fn cairn_at(address: &str, home: &Path, namespace: &str, token: &str) -> Command {
        let mut command = cairn(Path::new(&format!("https://{address}/{namespace}")));
        for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env_remove("CAIRN_FINGERPRINT").env("CAIRN_TOKEN", token).env("HOME", home);
        command
    }

    /// Sends bytes as they are; gives the status and the rest of the answer.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut connection = self.connect();
        // An answer may come before all was sent.
        let _ = connection.write_all(request).and_then(|()| connection.flush());
        answer(&mut connection)
    }

    /// Sends a request with a token and a body.
    pub fn request(&self, method: &str, path: &str, token: &str, body: &[u8]) -> (u16, String) {
        self.raw(&request(method, path, token, body.len(), body))
    }

    /// A connection.
    ///
    /// # Panics
    /// When there is none.
    pub fn connect(&self) -> StreamOwned<ClientConnection, TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the usual versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
        let stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
        StreamOwned::new(connection, stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A request as it goes over the wire, that says its body has `len` bytes.
pub fn request(method: &str, path: &str, token: &str, len: usize, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {token}\r\ncontent-length: {len}\r\n\
         connection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Reads an answer to its end.
///
/// # Panics
/// When there is none.
pub fn answer(connection: &mut impl Read) -> (u16, String) {
    let mut bytes = Vec::new();
    // Whoever closes a connection need not say so.
    let _ = connection.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
}

/// Takes any certificate: what is tested with it is the server.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
