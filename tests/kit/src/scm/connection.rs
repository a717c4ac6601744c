//! Connections that a handler can end without an answer, which HTTP servers do not offer: to them every
//! request has a response.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Accepts connections that end with the server or one at a time.
pub(super) struct ClosableListener {
    listener: TcpListener,
    server_stopped: CancellationToken,
}

impl ClosableListener {
    /// All connections end when `server_stopped` is cancelled.
    pub(super) fn new(listener: TcpListener, server_stopped: CancellationToken) -> Self {
        Self { listener, server_stopped }
    }
}

impl Listener for ClosableListener {
    type Io = ClosableStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (ClosableStream, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (ClosableStream::new(stream, self.server_stopped.child_token()), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Ends one connection: nothing is written to it any more, not even the answer that is under way.
#[derive(Clone)]
pub(super) struct ConnectionCloser(CancellationToken);

impl ConnectionCloser {
    pub(super) fn close(&self) {
        self.0.cancel();
    }
}

impl Connected<IncomingStream<'_, ClosableListener>> for ConnectionCloser {
    fn connect_info(stream: IncomingStream<'_, ClosableListener>) -> Self {
        Self(stream.io().closed.clone())
    }
}

/// A TCP stream that fails to read and write once it is closed; the server then drops it.
pub(super) struct ClosableStream {
    stream: TcpStream,
    closed: CancellationToken,
    until_closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl ClosableStream {
    fn new(stream: TcpStream, closed: CancellationToken) -> Self {
        let until_closed = Box::pin(closed.clone().cancelled_owned());
        Self { stream, closed, until_closed }
    }

    /// Polled with every read and write, so that the task wakes up when the connection is closed.
    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.until_closed.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed by the SCM")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for ClosableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClosableStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
