//! An S3 server for tests on a port of its own, ended with the value: moto, in the Python environment of the oracles.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The key that every server here takes.
pub const KEY: &str = "testing-key";
/// Its secret.
pub const SECRET: &str = "testing-secret";

/// A server.
pub struct S3Server {
    process: Child,
    /// `127.0.0.1:PORT`
    pub address: String,
}

/// The folder of Python's oracles, as the Makefile has it.
pub fn venv() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/cairn/venv");
    std::env::var_os("CAIRN_VENV").map_or_else(home, PathBuf::from)
}

impl S3Server {
    /// Starts moto with a bucket.
    ///
    /// # Panics
    /// When it is not installed, or does not start.
    pub fn moto(bucket: &str) -> Self {
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
        let server = Self { process, address };
        assert_eq!(server.request("PUT", &format!("/{bucket}")), 200, "the bucket is made");
        server
    }

    /// Sends a request without a body, and gives the status. Only for servers that check no signature.
    pub fn request(&self, method: &str, path: &str) -> u16 {
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
        let _ = self.process.kill();
        let _ = self.process.wait();
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
