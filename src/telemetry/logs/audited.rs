//! Tells audit events from the log: they have a format and a writer of their own. One layer serves both, because each further
//! one would look at every step of every message.

use std::{fmt, io};

use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::audit::{self, AuditSink};

fn is_audit(about: &Metadata<'_>) -> bool {
    about.target() == audit::TARGET
}

/// Formats audit events as the audit log has them, and the others as `F` does.
pub(super) struct AuditedFormat<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for AuditedFormat<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if is_audit(event.metadata()) {
            audit::write_line(to, event)
        } else {
            self.0.format_event(context, to, event)
        }
    }
}

/// Writes audit events into the audit log, and the others to `log`.
pub(super) struct AuditedWriters<M> {
    pub(super) log: M,
    /// Without it, no audit event gets here.
    pub(super) audit: Option<AuditSink>,
}

pub(super) enum AuditedWriter<'w, W> {
    Log(W),
    Audit(&'w AuditSink),
}

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for AuditedWriters<M> {
    type Writer = AuditedWriter<'w, M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        AuditedWriter::Log(self.log.make_writer())
    }

    fn make_writer_for(&'w self, about: &Metadata<'_>) -> Self::Writer {
        match &self.audit {
            Some(sink) if is_audit(about) => AuditedWriter::Audit(sink),
            Some(_) | None => AuditedWriter::Log(self.log.make_writer_for(about)),
        }
    }
}

impl<W: io::Write> io::Write for AuditedWriter<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Log(log) => log.write(line),
            Self::Audit(sink) => {
                sink.take(line);
                Ok(line.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Log(log) => log.flush(),
            Self::Audit(_) => Ok(()),
        }
    }
}
