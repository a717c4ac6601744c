//! Standard output and standard error, as the commands write to them.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde::de::IgnoredAny;
use tokenkeeper::domain::escape;

/// Standard output. A reader who has had enough (`tokenkeeper token list | head`) is no error.
#[derive(Debug)]
pub(super) struct Output {
    stdout: io::Stdout,
    closed: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { stdout: io::stdout(), closed: false }
    }

    /// Whether the reader is gone, so that what follows need not be made.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn line(&mut self, text: impl Display) -> anyhow::Result<()> {
        self.raw(format!("{}\n", escape::line(&text.to_string())).as_bytes())
    }

    /// A table; nothing where it has no rows.
    pub(super) fn table(&mut self, table: Table) -> anyhow::Result<()> {
        if table.is_empty() { Ok(()) } else { self.raw(format!("{}\n", aligned(table)).as_bytes()) }
    }

    pub(super) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        self.json_text(&(serde_json::to_string_pretty(value)? + "\n"))
    }

    /// JSON as it stands, or a part of it, escaped so that it says the same.
    pub(super) fn json_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.raw(escape::json(text).as_bytes())
    }

    /// What somebody else sent: JSON as it came, or, where it is none, a line of text.
    pub(super) fn body(&mut self, body: &[u8]) -> anyhow::Result<()> {
        match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => self.json_text(&format!("{}\n", String::from_utf8_lossy(body))),
            Err(_) => self.line(String::from_utf8_lossy(body)),
        }
    }

    /// What holds nothing unprintable but what we put there: line breaks, and colours.
    fn raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if self.closed {
            return Ok(());
        }
        let written = self.stdout.write_all(bytes).and_then(|()| self.stdout.flush());
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            written => written.context("cannot write to standard output"),
        }
    }
}

/// A word to the person in front of the screen, beside what the command prints.
pub(super) fn note(text: impl Display) {
    // Where standard error is gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{}", escape::line(&text.to_string()));
}

/// Aligned columns without borders, and without wrapping: a value is never cut or broken.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = key_value_table();
    table.set_header(header.map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    table
}

/// Aligned columns without a header: names and their values.
pub(super) fn key_value_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !colours_wanted(io::stdout().is_terminal()) {
        table.force_no_tty();
    }
    table
}

/// A value. What could move the cursor or break the line is made visible.
pub(super) fn cell(value: impl Display) -> Cell {
    Cell::new(escape::line(&value.to_string()))
}

/// A value that says how well it went.
pub(super) fn verdict(good: bool, value: impl Display) -> Cell {
    cell(value).fg(if good { Color::Green } else { Color::Red })
}

/// What a table shows where there is no value.
pub(super) const NOTHING: &str = "-";

pub(super) fn or_nothing(value: Option<impl Display>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

pub(super) const fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// Colours are for terminals alone, and for those who have not asked for none (<https://no-color.org>).
pub(super) fn colours_wanted(is_terminal: bool) -> bool {
    is_terminal && !anstyle_query::no_color()
}

fn aligned(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_what_could_break_a_line_does_not() {
        let mut table = table(["USER", "SCOPES"]);
        table.force_no_tty();
        table.add_row([cell("u-1"), cell("repo\n\x1b[2Jadmin")]);
        table.add_row([cell("a-longer-user"), cell("x".repeat(300))]);
        let text = aligned(table);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let column = lines[0].find("SCOPES").unwrap();
        assert_eq!(lines[2].find("xxx"), Some(column), "{text}");
        assert!(lines[1].ends_with(r"repo\u000a\u001b[2Jadmin"), "{text}");
    }
}
