//! Standard output and standard error of the commands.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde::de::IgnoredAny;
use tokenkeeper::domain::escape;

/// Standard output. A reader that closes it early (`tokenkeeper token list | head`) is not an error.
#[derive(Debug)]
pub(super) struct Output {
    stdout: io::Stdout,
    closed: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { stdout: io::stdout(), closed: false }
    }

    /// Whether the reader closed it, so that more output is pointless.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn line(&mut self, text: impl Display) -> anyhow::Result<()> {
        self.raw(format!("{}\n", escape::line(&text.to_string())).as_bytes())
    }

    /// Prints a table, unless it has no rows.
    pub(super) fn table(&mut self, table: Table) -> anyhow::Result<()> {
        if table.is_empty() { Ok(()) } else { self.raw(format!("{}\n", aligned(table)).as_bytes()) }
    }

    pub(super) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        self.json_text(&(serde_json::to_string_pretty(value)? + "\n"))
    }

    /// JSON or a part of it. Unprintable characters are escaped without changing its meaning.
    pub(super) fn json_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.raw(escape::json(text).as_bytes())
    }

    /// Our own text of several lines. Other unprintable characters are not in it.
    pub(super) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        self.raw(text.as_bytes())
    }

    /// A foreign body: unchanged if it is JSON, else as a line of text.
    pub(super) fn body(&mut self, body: &[u8]) -> anyhow::Result<()> {
        match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => self.json_text(&format!("{}\n", String::from_utf8_lossy(body))),
            Err(_) => self.line(String::from_utf8_lossy(body)),
        }
    }

    /// `bytes` hold no unprintable characters except our own line breaks and colours.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
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

/// A remark for people, on standard error.
pub(super) fn note(text: impl Display) {
    // If standard error is closed, there is nobody to inform.
    let _ = writeln!(io::stderr(), "{}", escape::line(&text.to_string()));
}

/// Aligned columns without borders. Values are never wrapped or cut.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = key_value_table();
    table.set_header(header.map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    table
}

/// Names and values in aligned columns, without a header.
pub(super) fn key_value_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !colours_wanted(io::stdout().is_terminal()) {
        table.force_no_tty();
    }
    table
}

/// A value with control characters and line breaks escaped.
pub(super) fn cell(value: impl Display) -> Cell {
    Cell::new(escape::line(&value.to_string()))
}

/// A green or red value.
pub(super) fn verdict(good: bool, value: impl Display) -> Cell {
    cell(value).fg(if good { Color::Green } else { Color::Red })
}

pub(super) const NOTHING: &str = "-";

pub(super) fn or_nothing(value: Option<impl Display>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

pub(super) const fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// Colours are for terminals, unless the user disabled them (<https://no-color.org>).
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
    fn columns_are_aligned_and_control_characters_are_escaped() {
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
