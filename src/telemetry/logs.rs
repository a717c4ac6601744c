//! Logs by `tracing`: text in a terminal, JSON otherwise.

mod audited;
mod human;
mod lines;

use std::io::{self, IsTerminal};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use self::audited::{AuditedFormat, AuditedWriters};
use self::human::HumanFields;
use self::lines::EscapedLines;
use super::audit::{self, AuditSink};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Human,
    /// One JSON object for each line.
    Json,
}

impl Format {
    /// The format for standard error.
    pub fn detect() -> Self {
        if io::stderr().is_terminal() { Self::Human } else { Self::Json }
    }
}

/// Logs to `writer`, and writes the audit log where there is one. Fails if a subscriber is installed already.
pub fn install<W>(
    level: LevelFilter,
    format: Format,
    writer: W,
    audit: Option<AuditSink>,
) -> Result<(), TryInitError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    subscriber(level, format, writer, audit).try_init()
}

fn subscriber<W>(
    level: LevelFilter,
    format: Format,
    writer: W,
    audit: Option<AuditSink>,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = filter(level, audit.is_some());
    let lines = tracing_subscriber::fmt::layer();
    let lines = match format {
        // This format may be chosen for a file too.
        Format::Human => lines
            .with_writer(AuditedWriters { log: writer, audit })
            .with_ansi(colours_wanted())
            .fmt_fields(HumanFields)
            .map_event_format(AuditedFormat)
            .boxed(),
        Format::Json => lines
            .with_writer(AuditedWriters { log: EscapedLines(writer), audit })
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .fmt_fields(JsonFields::new())
            .map_event_format(AuditedFormat)
            .boxed(),
    };
    // A filter of the whole registry: one of a single layer would run again at every step of every message.
    tracing_subscriber::registry().with(filter).with(lines)
}

fn colours_wanted() -> bool {
    io::stderr().is_terminal() && !anstyle_query::no_color()
}

/// The level applies to our own events. Other crates log at `warn` at most, because at `debug` or `trace` they print
/// frames, statements and bodies, which hold tokens. The audit log has no levels.
fn filter(level: LevelFilter, is_audited: bool) -> Targets {
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("tokenkeeper", level)
        .with_target(audit::TARGET, if is_audited { LevelFilter::INFO } else { LevelFilter::OFF })
        // It repeats, in the driver's words, what we say of the database.
        .with_target("sqlx_core::pool", LevelFilter::OFF)
        // Their errors come to us as values, and are told once. They would tell each of them too, and lapin the whole body
        // of an unroutable reply.
        .with_target("lapin", LevelFilter::OFF)
        .with_target("rustls_platform_verifier", LevelFilter::OFF)
        // A bug in lapin, which comes to nobody as a value.
        .with_target("lapin::thread", level.min(LevelFilter::ERROR))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing::{Level, field};

    use super::*;

    #[test]
    fn a_line_has_the_fields_of_its_span() {
        let span = logged_span(|| {
            let user = Some("o\"brien\n\u{e9}");
            tracing::info_span!("message", user, host = None::<&str>, id = ?Some("a\tb"), tries = 3, first = true)
        });
        let user = "o\"brien\n\u{e9}";
        let id = r#"Some("a\tb")"#;
        assert_eq!(span, json!({"name": "message", "user": user, "id": id, "tries": 3, "first": true}));
    }

    #[test]
    fn later_fields_of_a_span_are_added_to_the_earlier_ones() {
        let with_some = logged_span(|| {
            let span = tracing::info_span!("message", kind = "k", user = field::Empty, host = field::Empty);
            tracing::record_all!(span, user = "u", host = "h");
            span.record("kind", None::<&str>);
            span
        });
        assert_eq!(with_some, json!({"name": "message", "kind": "k", "user": "u", "host": "h"}));
        let with_none = logged_span(|| {
            let span = tracing::info_span!("message", user = field::Empty);
            span.record("user", "u");
            span
        });
        assert_eq!(with_none, json!({"name": "message", "user": "u"}));
    }

    #[test]
    fn control_characters_are_escaped_in_both_formats() {
        const NASTY: &str = "x\0\u{1b}[2J\r\nERROR forged\u{7f}\u{9b}31m\u{2028}\u{202e}\u{2066}z";
        let error = io::Error::other(NASTY);
        let line = || {
            let _entered =
                tracing::info_span!("message", user = NASTY, id = ?Some(NASTY), later = field::Empty)
                    .entered();
            tracing::Span::current().record("later", NASTY);
            let error: &dyn std::error::Error = &error;
            tracing::info!(target: "tokenkeeper", host = NASTY, %error, source = error, list = ?[NASTY], "{NASTY}");
        };
        for format in [Format::Human, Format::Json] {
            let logged = logged(format, line);
            let text = logged.strip_suffix('\n').expect("a line");
            assert!(crate::domain::escape::is_printable(text), "{format:?}: {text:?}");
            assert_eq!(text.matches("forged").count(), 8, "{format:?}: {text}");
            if format == Format::Json {
                let line: Value = serde_json::from_str(text).expect("JSON");
                let as_it_is =
                    [&line["host"], &line["error"], &line["source"], &line["message"], &line["span"]["user"]];
                assert_eq!(
                    as_it_is,
                    [NASTY; 5].map(Value::from).each_ref(),
                    "escaping does not change the values"
                );
            }
        }
    }

    #[test]
    fn a_text_line_has_message_fields_and_span() {
        let logged = logged(Format::Human, || {
            let _entered = tracing::info_span!("message", kind = "k", host = None::<&str>).entered();
            tracing::warn!(target: "tokenkeeper", tries = 3, cause = %"no route", "it failed");
        });
        let (_date, line) = logged.split_once(' ').expect("a date and the rest");
        assert_eq!(line.trim(), r#"WARN message{kind="k"}: tokenkeeper: it failed tries=3 cause=no route"#);
    }

    /// The span in a JSON line.
    fn logged_span(span: impl FnOnce() -> tracing::Span) -> Value {
        let logged = logged(Format::Json, || {
            let _entered = span().entered();
            tracing::info!(target: "tokenkeeper", "a line");
        });
        let line: Value = serde_json::from_str(&logged).expect("a line of JSON");
        line["span"].clone()
    }

    fn logged(format: Format, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(LevelFilter::INFO, format, move || writer.clone(), None);
        tracing::subscriber::with_default(subscriber, log);
        let lines = lines.0.lock().expect("no panic");
        String::from_utf8(lines.clone()).expect("UTF-8")
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn other_crates_log_warnings_only_whatever_the_level() {
        let filter = filter(LevelFilter::TRACE, false);
        assert!(filter.would_enable("tokenkeeper::requests", &Level::TRACE));
        assert!(filter.would_enable("rustls::client", &Level::WARN));
        assert!(!filter.would_enable("rustls::client", &Level::INFO));
        assert!(filter.would_enable("lapin::thread", &Level::ERROR));
        assert!(!filter.would_enable("lapin::io_loop", &Level::ERROR));
        assert!(!filter.would_enable("hyper_util::client", &Level::DEBUG));
        assert!(!filter.would_enable("sqlx::query", &Level::INFO));
        assert!(!filter.would_enable("lapin::returned_messages", &Level::ERROR));
        assert!(!filter.would_enable("audit", &Level::INFO), "there is no audit log");
        assert!(!filter.would_enable("sqlx_core::pool::inner", &Level::ERROR));
    }

    #[test]
    fn a_level_below_warn_applies_to_other_crates_too() {
        let filter = filter(LevelFilter::ERROR, true);
        assert!(!filter.would_enable("tokenkeeper::requests", &Level::WARN));
        assert!(!filter.would_enable("rustls::client", &Level::WARN));
        assert!(filter.would_enable("audit", &Level::INFO), "the audit log has no levels");
    }
}
