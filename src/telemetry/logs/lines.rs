//! Escapes JSON lines. The serializer escapes only what JSON forbids, the C0 control characters.

use std::io;

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::domain::escape;

/// Makes writers that escape unprintable characters in JSON, without changing its meaning.
pub(super) struct EscapedLines<M>(pub(super) M);

/// Expects one whole line for each write.
pub(super) struct EscapedLine<W>(W);

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for EscapedLines<M> {
    type Writer = EscapedLine<M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        EscapedLine(self.0.make_writer())
    }

    fn make_writer_for(&'w self, about: &Metadata<'_>) -> Self::Writer {
        EscapedLine(self.0.make_writer_for(about))
    }
}

impl<W: io::Write> io::Write for EscapedLine<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(escape::json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
