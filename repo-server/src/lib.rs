//! Cairn's HTTP server, at its beginning: it tells that it runs and what it is.
//!
//! | route | answer |
//! |---|---|
//! | `GET /healthz` | `200`, `{"status":"ok"}` as soon as the process listens |
//! | `GET /version` | `200`, [`Version`]: program, its version, the repository format it was built for |
//!
//! Everything else is `404`, another method `405`.
//!
//! What it is not yet: it opens no repository, keeps no schedule and runs no backup, so a healthy answer says nothing
//! about any repository. It has no authentication and no TLS; that is why the program listens on the loopback
//! interface unless it is told otherwise.

use std::io;
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use repo_core::object::FORMAT_VERSION;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// The answer of `/healthz`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Health {
    /// `ok`: the process runs and answers. More states come with more work to do.
    pub status: &'static str,
}

/// The answer of `/version`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Version {
    /// The program.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The repository format it writes, and the newest it reads (docs/format.md).
    pub format_version: u16,
}

/// All routes.
pub fn router() -> Router {
    Router::new()
        .route("/healthz", get(async || Json(Health { status: "ok" })))
        .route("/version", get(async || Json(VERSION)))
}

/// Answers requests until `stop` is done and the requests begun by then are answered, for which they have
/// [`GRACE`].
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let (stopping, stopped) = oneshot::channel();
    let stop = async move {
        stop.await;
        let _ = stopping.send(());
    };
    let served = axum::serve(listener, router()).with_graceful_shutdown(stop);
    // A client that never finishes its request must not keep the process from ending.
    let grace_over = async {
        let _ = stopped.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = served.into_future() => ended,
        () = grace_over => Ok(()),
    }
}

/// Is done when the process is asked to end, by SIGTERM or SIGINT. From the call on, neither ends it by itself.
///
/// # Errors
/// When the signals cannot be received.
pub fn termination() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// How long requests that were begun may take to end once the server is to stop.
pub const GRACE: Duration = Duration::from_secs(10);

const VERSION: Version =
    Version { name: "cairn-server", version: env!("CARGO_PKG_VERSION"), format_version: FORMAT_VERSION };

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use super::*;

    /// Serves on a free port while `client` runs on a thread of its own, then stops and waits for the end.
    async fn with_server<T: Send + 'static>(client: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, async {
            let _ = stopped.await;
        }));
        let answer = tokio::task::spawn_blocking(move || client(address)).await.unwrap();
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
        answer
    }

    /// Head and body of the answer to one request.
    fn request(address: SocketAddr, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn health_and_version_are_answered_in_json() {
        let [(health_head, health), (version_head, version)] =
            with_server(|address| ["/healthz", "/version"].map(|path| request(address, "GET", path))).await;
        for head in [health_head, version_head] {
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(head.contains("content-type: application/json"), "{head}");
        }
        assert_eq!(health, r#"{"status":"ok"}"#);
        let expected = serde_json::json!({
            "name": "cairn-server", "version": env!("CARGO_PKG_VERSION"), "format_version": FORMAT_VERSION,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&version).unwrap(), expected);
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused() {
        let [missing, method] = with_server(|address| {
            [("GET", "/"), ("POST", "/healthz")].map(|(method, path)| request(address, method, path).0)
        })
        .await;
        assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
        assert!(method.starts_with("HTTP/1.1 405 "), "{method}");
    }

    #[tokio::test]
    async fn an_idle_connection_does_not_hold_up_the_end() {
        // The connection outlives the client's closure: the server ends all the same, well before the grace is over.
        let started = tokio::time::Instant::now();
        let idle = with_server(|address| TcpStream::connect(address).unwrap()).await;
        assert!(started.elapsed() < GRACE / 2);
        drop(idle);
    }
}
