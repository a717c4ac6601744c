//! Limits what a server can make us read, below HTTP and TLS.
//!
//! HTTP and TLS read whatever is there within one poll: endless interim answers (1xx, RFC 9110, section 15.2), TLS
//! session tickets and empty TLS records. A server that sends them as fast as we read would keep a thread of the runtime
//! busy, timers included. So a connection yields after each [`STRETCH`] and fails after [`EXCHANGE_BUDGET`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that are read for one exchange, TLS and HTTP together. Four times the longest answer leaves room for
/// escapes, chunk sizes, headers and certificates.
pub(super) const EXCHANGE_BUDGET: usize = 512 * 1024;

/// Bytes that are read before the task yields. Most answers are shorter.
const STRETCH: usize = 4 * 1024;

/// A read counts for at least this many bytes of a stretch: many short reads take as long as one long read.
const LEAST_READ: usize = 256;

/// How many bytes may still be read from a connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Allowance(Arc<AtomicUsize>);

/// A stream with a limit on what is read from it.
#[derive(Debug)]
pub(super) struct Budgeted<S> {
    stream: S,
    allowance: Allowance,
    /// Bytes read since the task yielded last.
    in_a_row: usize,
}

impl Allowance {
    /// For the next exchange.
    pub(super) fn renew(&self) {
        self.0.store(EXCHANGE_BUDGET, Ordering::Relaxed);
    }

    /// Every later read fails.
    pub(super) fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl<S> Budgeted<S> {
    /// The stream and the allowance of its first exchange.
    pub(super) fn new(stream: S) -> (Self, Allowance) {
        let allowance = Allowance(Arc::new(AtomicUsize::new(EXCHANGE_BUDGET)));
        (Self { stream, allowance: allowance.clone(), in_a_row: 0 }, allowance)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Budgeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.in_a_row >= STRETCH {
            self.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let left = self.allowance.0.load(Ordering::Relaxed);
        if left == 0 {
            return Poll::Ready(Err(io::Error::other("the server sends more than an answer may have")));
        }
        let most = buffer.remaining().min(left).min(STRETCH);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut part);
        if read.is_pending() {
            self.in_a_row = 0;
        }
        ready!(read)?;
        let length = part.filled().len();
        buffer.advance(length);
        self.in_a_row += length.max(LEAST_READ);
        self.allowance.0.store(left - length, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Budgeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, repeat};

    use super::*;

    #[tokio::test]
    async fn reading_stops_at_the_allowance_until_it_is_renewed() {
        let (mut stream, allowance) = Budgeted::new(repeat(b'a'));
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read.len(), EXCHANGE_BUDGET);
        allowance.renew();
        stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read.len(), 2 * EXCHANGE_BUDGET);
    }

    /// Bytes and reads until the stream yields, from a source that always has more.
    fn one_poll(room: usize) -> (usize, usize) {
        let (mut stream, _allowance) = Budgeted::new(repeat(b'a'));
        let mut cx = Context::from_waker(Waker::noop());
        let (mut bytes, mut reads) = (0, 0);
        loop {
            let mut buffer = vec![0; room];
            let mut buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut stream).poll_read(&mut cx, &mut buffer) {
                Poll::Ready(read) => read.unwrap(),
                Poll::Pending => return (bytes, reads),
            }
            (bytes, reads) = (bytes + buffer.filled().len(), reads + 1);
        }
    }

    #[test]
    fn a_read_yields_after_a_stretch_and_after_many_short_reads() {
        assert_eq!(one_poll(1024 * 1024), (STRETCH, 1));
        assert_eq!(one_poll(1), (STRETCH / LEAST_READ, STRETCH / LEAST_READ));
    }
}
