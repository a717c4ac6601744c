//! Lines of a file or of standard input, up to the length of a message.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use tokenkeeper::contract::MAX_BODY_BYTES;
use tokenkeeper::domain::problem::Problem;
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
    /// Looks at the beginning before the first line is read: skips a byte-order mark, and says what is wrong if this is another
    /// kind of file. `file` is its name; None: standard input.
    pub(super) async fn mistake(&mut self, file: Option<&str>) -> io::Result<Option<Problem>> {
        if self.reader.fill_buf().await?.starts_with(UTF_8_MARK) {
            self.reader.consume(UTF_8_MARK.len());
        }
        Ok(mistake(self.reader.fill_buf().await?, file))
    }

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

/// The byte-order mark that some editors write.
const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";

/// What is wrong with a file that does not have an object on each line.
fn mistake(begin: &[u8], file: Option<&str>) -> Option<Problem> {
    let problem = |what: &str, filter: &str| {
        let cause = "an import takes one JSON object on each line";
        let next = match file {
            Some(name) => format!("{filter} {name} | tokenkeeper token import -"),
            None => format!("put a filter before it: … | {filter} | tokenkeeper token import -"),
        };
        Some(Problem::new(format!("{} is {what}", file.unwrap_or("standard input")), cause, next))
    };
    if begin.starts_with(b"\xff\xfe") || begin.starts_with(b"\xfe\xff") {
        return problem("UTF-16", "iconv -f UTF-16 -t UTF-8");
    }
    let text = begin.trim_ascii_start();
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    match (text.first(), line.last()) {
        (Some(b'['), _) => problem("one JSON array", "jq -c '.[]'"),
        // A line that was cut off elsewhere is told by its number.
        (Some(b'{'), Some(b'{' | b'[' | b',')) if line.len() < text.len() => {
            problem("JSON with an object over several lines", "jq -c .")
        }
        _ => None,
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
    async fn a_byte_order_mark_is_skipped() {
        let mut lines = Lines::new(BufReader::new(&b"\xef\xbb\xbf{}\n"[..]));
        assert_eq!(lines.mistake(Some("f")).await.unwrap(), None);
        assert_eq!(&**lines.next().await.unwrap().unwrap().text, b"{}");
    }

    #[test]
    fn another_kind_of_file_is_told_with_how_to_turn_it_into_lines() {
        let next = |text: &[u8]| mistake(text, Some("t.json")).map(|problem| problem.next);
        for array in [&b"[]"[..], b"\n [\n  {\"user_id\": \"u\"}\n]"] {
            assert_eq!(next(array).as_deref(), Some("jq -c '.[]' t.json | tokenkeeper token import -"));
        }
        for pretty in [&b"{\n  \"user_id\": \"u\"\n}"[..], b"{ \"user_id\": \"u\",\r\n  \"host\": \"h\" }"] {
            assert_eq!(next(pretty).as_deref(), Some("jq -c . t.json | tokenkeeper token import -"));
        }
        let array = mistake(b"[]", None).map(|problem| problem.to_string());
        assert_eq!(
            array.as_deref(),
            Some(
                "standard input is one JSON array: an import takes one JSON object on each line; next: put a filter before it: … \
                 | jq -c '.[]' | tokenkeeper token import -"
            )
        );
        let utf_16 = next(b"\xff\xfe{\0");
        assert_eq!(utf_16.as_deref(), Some("iconv -f UTF-16 -t UTF-8 t.json | tokenkeeper token import -"));
        for lines in [&b"{\"a\":1}\n{"[..], b"", b"\n\n{\"a\":", b"{\"a\": {\"b\"", b"x"] {
            assert_eq!(next(lines), None, "{}", String::from_utf8_lossy(lines));
        }
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
