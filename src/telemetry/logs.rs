//! Logs by `tracing`: human in a terminal, JSON otherwise.

use std::env;
use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines for a person, coloured in a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

impl Format {
    /// What suits standard error: human in a terminal, JSON otherwise.
    pub fn detect() -> Self {
        if io::stderr().is_terminal() { Self::Human } else { Self::Json }
    }
}

/// Starts logging to `writer` at this level.
///
/// # Errors
/// Where a subscriber is installed already.
pub fn install<W>(level: LevelFilter, format: Format, writer: W) -> Result<(), TryInitError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        // Asked for by name, it may go into a file too.
        Format::Human => lines.with_ansi(colours_wanted()).boxed(),
        Format::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    // For everything at once: a filter of one layer's own is asked again at every step of every message.
    tracing_subscriber::registry().with(filter(level)).with(lines).try_init()
}

fn colours_wanted() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The level is for our own events. Other crates get a word in only when something is wrong, whatever the level:
/// at `debug` or `trace` they print frames, statements and bodies, which hold tokens.
fn filter(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("tokenkeeper", level)
        // Prints, at `warn`, the whole body of a reply that came back unroutable.
        .with_target("lapin::returned_messages", LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn no_level_makes_other_crates_print_what_they_carry() {
        let filter = filter(LevelFilter::TRACE);
        assert!(filter.would_enable("tokenkeeper::handle", &Level::TRACE));
        assert!(filter.would_enable("lapin::io_loop", &Level::WARN));
        assert!(!filter.would_enable("lapin::io_loop", &Level::INFO));
        assert!(!filter.would_enable("hyper_util::client", &Level::DEBUG));
        assert!(!filter.would_enable("sqlx::query", &Level::INFO));
        assert!(!filter.would_enable("lapin::returned_messages", &Level::ERROR));
    }

    #[test]
    fn a_quiet_level_is_quiet_for_all() {
        let filter = filter(LevelFilter::ERROR);
        assert!(!filter.would_enable("tokenkeeper::handle", &Level::WARN));
        assert!(!filter.would_enable("lapin::io_loop", &Level::WARN));
    }
}
