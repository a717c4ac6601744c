//! What a server can make us read, bounded beneath HTTP and TLS.
//!
//! Both take in whatever has come within one poll: interim answers without end (1xx, RFC 9110, section 15.2), the tickets
//! and empty records of TLS. A server that sends them as fast as we read keeps a thread of the runtime from everybody
//! else, timers included. So a connection gives way after each [`STRETCH`], and is over after [`EXCHANGE_BUDGET`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that are read for one exchange, of TLS and HTTP together: four times the longest answer, since its escapes,
/// chunks and headers, and the certificates of a handshake, are bytes too.
pub(super) const EXCHANGE_BUDGET: usize = 512 * 1024;

/// Bytes that are read in a row, before other tasks have their turn. Most answers are shorter.
const STRETCH: usize = 4 * 1024;

/// What a read counts for at least, as a part of a stretch: many short ones cost as much time as a long one.
const LEAST_READ: usize = 256;

/// What may still be read from a connection. Clones are the same allowance.
#[derive(Debug, Clone)]
pub(super) struct Allowance(Arc<AtomicUsize>);

/// A stream that can be read as far as its allowance goes, and a stretch at a time.
#[derive(Debug)]
pub(super) struct Budgeted<S> {
    stream: S,
    allowance: Allowance,
    /// How much of the present stretch is used up.
    in_a_row: usize,
}

impl Allowance {
    /// Lets another exchange begin.
    pub(super) fn renew(&self) {
        self.0.store(EXCHANGE_BUDGET, Ordering::Relaxed);
    }

    /// Lets nothing more be read.
    pub(super) fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl<S> Budgeted<S> {
    /// A connection that has just been opened, with the allowance of its first exchange.
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
            return Poll::Ready(Err(io::Error::other("the server sends more than belongs to an answer")));
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
    async fn no_more_is_read_than_the_allowance_until_it_is_renewed() {
        let (mut stream, allowance) = Budgeted::new(repeat(b'a'));
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read.len(), EXCHANGE_BUDGET);
        allowance.renew();
        stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read.len(), 2 * EXCHANGE_BUDGET);
    }

    /// Bytes and reads in one poll of a source that always has more.
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
    fn others_have_their_turn_after_a_stretch_and_after_many_short_reads() {
        assert_eq!(one_poll(1024 * 1024), (STRETCH, 1));
        assert_eq!(one_poll(1), (STRETCH / LEAST_READ, STRETCH / LEAST_READ));
    }
}
