//! Connections: so many at a time, and none that stands still.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Takes connections in.
#[derive(Clone)]
pub(crate) struct Acceptor {
    free: Arc<Semaphore>,
    idle: Duration,
}

impl Acceptor {
    pub(crate) fn new(connections: u32, idle: Duration) -> Self {
        Self { free: Arc::new(Semaphore::new(connections as usize)), idle }
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Acceptor {
    type Stream = Connection<TcpStream>;
    type Service = S;
    type Future = std::future::Ready<io::Result<(Self::Stream, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        // One too many is closed rather than kept waiting: the client tries again.
        let accepted = match self.free.clone().try_acquire_owned() {
            Ok(permit) => stream.set_nodelay(true).map(|()| (Connection::new(stream, self.idle, permit), service)),
            Err(_) => Err(io::Error::other("too many connections")),
        };
        std::future::ready(accepted)
    }
}

/// A connection that fails when no byte has moved, in either direction, for too long.
pub(crate) struct Connection<S> {
    stream: S,
    idle: Duration,
    stalled: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    fn new(stream: S, idle: Duration, permit: OwnedSemaphorePermit) -> Self {
        Self { stream, idle, stalled: Box::pin(tokio::time::sleep(idle)), _permit: permit }
    }

    /// What came of a try to move bytes.
    fn watch<T>(&mut self, context: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match moved {
            Poll::Pending => match self.stalled.as_mut().poll(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            },
            Poll::Ready(moved) => {
                let end = Instant::now() + self.idle;
                self.stalled.as_mut().reset(end);
                Poll::Ready(moved)
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(context, buf);
        self.watch(context, moved)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(context, buf);
        self.watch(context, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn connected(idle: Duration) -> (tokio::io::DuplexStream, Connection<tokio::io::DuplexStream>) {
        let (client, server) = tokio::io::duplex(4);
        let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        (client, Connection::new(server, idle, permit))
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_moves_ends_in_either_direction() {
        let (mut client, mut server) = connected(Duration::from_millis(20)).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        assert_eq!(server.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (_client, mut server) = connected(Duration::from_millis(20)).await;
        let error = server.write_all(b"more than the client takes").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
