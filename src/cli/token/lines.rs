//! Lines of a file or of standard input, up to the length of a message.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use tokenkeeper::contract::MAX_BODY_BYTES;
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use zeroize::Zeroizing;

/// One byte more than the longest message, so that a longer line is recognised.
const LONGEST: usize = MAX_BODY_BYTES + 1;

pub(super) struct Lines<R> {
    reader: R,
    number: usize,
}

/// A line without its line break.
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: usize,
    /// Cut off after [`LONGEST`] bytes. It holds a token, so it is wiped.
    pub(super) text: Zeroizing<Vec<u8>>,
    /// Bytes in the file.
    pub(super) size: u64,
}

impl Lines<BufReader<File>> {
    /// The lines, and the size of a regular file.
    pub(super) async fn of_file(path: &Path) -> io::Result<(Self, Option<u64>)> {
        let file = File::open(path).await?;
        let metadata = file.metadata().await?;
        let size = metadata.is_file().then_some(metadata.len());
        Ok((Self::new(BufReader::new(file)), size))
    }

    pub(super) fn of_stdin() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self::new(BufReader::new(File::from_std(stdin.into()))))
    }
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    const fn new(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    /// `None` after the last line.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        let mut text = Zeroizing::new(Vec::new());
        let limit = LONGEST as u64;
        let mut size = (&mut self.reader).take(limit).read_until(b'\n', &mut text).await? as u64;
        if size == 0 {
            return Ok(None);
        }
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if size == limit {
            size += self.skip_line().await?;
        }
        self.number += 1;
        Ok(Some(Line { number: self.number, text, size }))
    }

    /// Skips the rest of the line and returns its length.
    async fn skip_line(&mut self) -> io::Result<u64> {
        let mut skipped = 0;
        loop {
            let buffer = self.reader.fill_buf().await?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffer.len(), |end| end + 1);
            self.reader.consume(taken);
            skipped += taken as u64;
            if end.is_some() || taken == 0 {
                return Ok(skipped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &[u8]) -> Vec<(usize, usize, u64)> {
        let mut lines = Lines::new(BufReader::with_capacity(7, text));
        let mut read = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            read.push((line.number, line.text.len(), line.size));
        }
        read
    }

    #[tokio::test]
    async fn blank_lines_count_and_the_last_line_needs_no_line_break() {
        assert_eq!(read(b"").await, []);
        assert_eq!(read(b"abc\n\nde").await, [(1, 3, 4), (2, 0, 1), (3, 2, 2)]);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_cut_off_and_does_not_affect_the_next() {
        let longest = "x".repeat(MAX_BODY_BYTES);
        for (text, first) in [
            (format!("{longest}\nabc\n"), (1, MAX_BODY_BYTES, LONGEST as u64)),
            (format!("{longest}x\nabc\n"), (1, LONGEST, LONGEST as u64 + 1)),
            (format!("{longest}{longest}\nabc\n"), (1, LONGEST, LONGEST as u64 * 2 - 1)),
        ] {
            assert_eq!(read(text.as_bytes()).await, [first, (2, 3, 4)]);
        }
        assert_eq!(read(format!("{longest}xyz").as_bytes()).await, [(1, LONGEST, LONGEST as u64 + 2)]);
    }
}
