//! An S3 server for tests: moto, in the Python environment of the oracles, on a port of its own; or, with
//! `CAIRN_TEST_S3_ENDPOINT`, one that runs already and takes the key below (`scripts/test-ceph`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::cli::run;

/// The key that every server here takes.
pub const KEY: &str = "testing-key";
/// Its secret.
pub const SECRET: &str = "testing-secret";

/// Whether the server that the environment names lets several creates of one name win, and does not tell a missing bucket from a missing
/// object, as s3s-fs does (`scripts/test-s3s`).
pub fn is_lax() -> bool {
    std::env::var_os("CAIRN_TEST_S3_LAX").is_some()
}

/// A server with an empty bucket.
pub struct S3Server {
    process: Option<Child>,
    /// `127.0.0.1:PORT`
    pub address: String,
    /// The bucket.
    pub bucket: String,
}

/// The folder of Python's oracles, as the Makefile has it.
pub fn venv() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/cairn/venv");
    std::env::var_os("CAIRN_VENV").map_or_else(home, PathBuf::from)
}

impl S3Server {
    /// Starts moto, or takes the server that the environment names, and makes a bucket.
    ///
    /// # Panics
    /// When moto is not installed, or the server does not answer.
    pub fn start() -> Self {
        match std::env::var("CAIRN_TEST_S3_ENDPOINT") {
            Ok(address) => Self::running(address),
            Err(_) => Self::moto(),
        }
    }

    fn running(address: String) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let bucket = format!("test-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let make = "import sys, boto3; boto3.client('s3', endpoint_url='http://' + sys.argv[1]).create_bucket(Bucket=sys.argv[2])";
        run(Command::new(venv().join("bin/python")).args(["-c", make, &address, &bucket]).envs(variables(&address)));
        Self { process: None, address, bucket }
    }

    fn moto() -> Self {
        // Port 0 is any free one; the server says which.
        let mut process = Command::new(venv().join("bin/python"))
            .args(["-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto runs: install the oracles first (make oracles)");
        let stderr = process.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(stderr).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("Running on http://")?.1.trim().to_owned()))
            .expect("moto says where it runs");
        // So that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let server = Self { process: Some(process), address, bucket: "backups".to_owned() };
        assert_eq!(server.request("PUT", "/backups"), 200, "the bucket is made");
        server
    }

    /// A place in the bucket, as `cairn` takes it.
    pub fn place(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", self.bucket)
    }

    /// Makes another bucket the one that is meant: with object lock, and so with versions.
    ///
    /// # Panics
    /// When the server does not make it.
    pub fn with_locks(mut self) -> Self {
        self.bucket = format!("{}-locked", self.bucket);
        self.boto("s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)");
        self
    }

    /// Runs Python with the vendor's own client `s3` and the name `bucket`, and gives what it prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn boto(&self, code: &str) -> String {
        let start = "import sys, json, datetime, boto3, botocore\nbucket = sys.argv[2]\n\
                     s3 = boto3.client('s3', endpoint_url='http://' + sys.argv[1])\n";
        let mut python = Command::new(venv().join("bin/python"));
        python.args(["-c", &format!("{start}{code}"), &self.address, &self.bucket]).envs(variables(&self.address));
        String::from_utf8(run(&mut python).stdout).expect("Python prints text")
    }

    /// Sends a request without a body, and gives the status. Only for servers that check no signature.
    fn request(&self, method: &str, path: &str) -> u16 {
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit can be set");
        let authorization = format!("AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nAuthorization: {authorization}\r\nConnection: close\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).expect("the request is sent");
        let mut answer = String::new();
        BufReader::new(stream).take(64).read_line(&mut answer).expect("an answer comes");
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line")
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Nothing more can be done about one that is gone already.
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The variables that lead `cairn` to an S3 server.
pub fn variables(address: &str) -> [(&'static str, String); 4] {
    [
        ("AWS_ENDPOINT_URL", format!("http://{address}")),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
    ]
}
