//! Escapes texts from outside before they leave: no text may steer a terminal, forge a line, or turn the direction of
//! writing.
//!
//! Publishers, providers, the broker and the database send names, scopes and error texts. They are checked where they are
//! read ([`is_printable`]). They are escaped again here, because a row may be older than the check, or come from another
//! program. Logs, replies, events, tables, `--json` and notes all pass through this module.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;

/// Control characters (C0, DEL, C1), separators of lines and paragraphs, and characters that turn the direction of writing
/// (Unicode's `Bidi_Control`), which make one text look like another.
pub const fn is_unprintable(symbol: char) -> bool {
    matches!(
        symbol,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

pub fn is_printable(text: &str) -> bool {
    // Nearly every text is ASCII. No early exit: so the compiler can compare many bytes at once.
    let is_plain = text.bytes().fold(true, |is_plain, byte| is_plain & matches!(byte, b' '..=b'~'));
    is_plain || !text.chars().any(is_unprintable)
}

/// Escapes a text for one line: ESC becomes `\u001b`. Copies only if there is something to escape.
pub fn line(text: &str) -> Cow<'_, str> {
    if is_printable(text) { Cow::Borrowed(text) } else { Cow::Owned(replaced(text, write_escape)) }
}

/// Escapes JSON that another program wrote. Its meaning stays, because `\u001b` is JSON's own escape. Its line breaks stay.
pub fn json(text: &str) -> Cow<'_, str> {
    if text.split('\n').all(is_printable) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(replaced(text, |to, symbol| match symbol {
        '\n' => to.push('\n'),
        // JSON allows these only between values.
        '\r' | '\t' => to.push(' '),
        _ => write_escape(to, symbol),
    }))
}

/// Several lines in a format without escapes: U+FFFD replaces each unprintable character.
pub fn lines_without_escapes(text: &str) -> Cow<'_, str> {
    if text.split('\n').all(is_printable) {
        return Cow::Borrowed(text);
    }
    let shown = |symbol| if symbol == '\n' { '\n' } else { char::REPLACEMENT_CHARACTER };
    Cow::Owned(replaced(text, |to, symbol| to.push(shown(symbol))))
}

/// Writes compact JSON without unprintable characters.
///
/// # Errors
/// As [`serde_json::to_writer`].
pub fn write_json(to: impl io::Write, value: &(impl Serialize + ?Sized)) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(to, EscapedStrings))
}

/// A writer that escapes as [`line()`] does.
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&line(text))
    }
}

/// Escapes more than JSON requires: `serde_json` escapes only C0.
struct EscapedStrings;

impl Formatter for EscapedStrings {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        to.write_all(line(fragment).as_bytes())
    }
}

fn replaced(text: &str, replace: impl Fn(&mut String, char)) -> String {
    let mut replaced = String::with_capacity(text.len() + 32);
    for symbol in text.chars() {
        if is_unprintable(symbol) {
            replace(&mut replaced, symbol);
        } else {
            replaced.push(symbol);
        }
    }
    replaced
}

fn write_escape(to: &mut String, symbol: char) {
    // All of them are below U+10000, so four digits are enough. Writing to a string does not fail.
    let _ = write!(to, "\\u{:04x}", u32::from(symbol));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// One of each kind, and the ends of each range.
    const UNPRINTABLE: [char; 17] = [
        '\0', '\t', '\n', '\r', '\u{1b}', '\u{1f}', '\u{7f}', '\u{80}', '\u{9b}', '\u{9f}', '\u{61c}',
        '\u{200e}', '\u{200f}', '\u{2028}', '\u{202e}', '\u{2066}', '\u{2069}',
    ];

    #[test]
    fn what_is_unprintable_is_escaped_and_nothing_else_is() {
        for symbol in UNPRINTABLE {
            let text = format!("é{symbol}語");
            assert!(!is_printable(&text), "{symbol:?}");
            assert_eq!(line(&text), format!("é\\u{:04x}語", u32::from(symbol)));
        }
        for text in ["", "J. Doe", "é語\u{1f600}", "\\u001b", "\u{a0}", "\u{200d}", "\u{202f}", "\u{2065}"]
        {
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text), "{text:?}");
        }
    }

    #[test]
    fn no_character_is_forgotten() {
        let bidirectional = ['\u{61c}', '\u{200e}', '\u{200f}'].into_iter();
        let bidirectional = bidirectional.chain('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}');
        let separators = ['\u{2028}', '\u{2029}'];
        let expected: Vec<char> = ('\0'..=char::MAX).filter(|symbol| symbol.is_control()).collect();
        let expected: Vec<char> = expected.into_iter().chain(bidirectional).chain(separators).collect();
        let mut expected_in_order = expected;
        expected_in_order.sort_unstable();
        assert_eq!(
            ('\0'..=char::MAX).filter(|symbol| is_unprintable(*symbol)).collect::<Vec<_>>(),
            expected_in_order
        );
    }

    #[test]
    fn json_says_the_same_when_it_is_escaped() {
        let text: String = UNPRINTABLE.into_iter().chain(['"', '\\', 'é']).collect();
        let value = json!({"name": text, "many": [text, {"\u{202e}": null}]});
        let mut compact = Vec::new();
        write_json(&mut compact, &value).unwrap();
        let compact = String::from_utf8(compact).unwrap();
        assert!(is_printable(&compact), "{compact:?}");
        let foreign =
            serde_json::to_string_pretty(&value).unwrap().replace(": ", ":\t").replace('\n', "\r\n");
        let foreign = json(&foreign);
        assert!(foreign.lines().count() > 5 && foreign.lines().all(is_printable), "{foreign:?}");
        for escaped in [&compact, &*foreign] {
            assert_eq!(serde_json::from_str::<Value>(escaped).unwrap(), value);
        }
    }

    #[test]
    fn where_there_are_no_escapes_lines_stay_lines() {
        assert_eq!(
            lines_without_escapes("a{h=\"\u{1b}\u{202e}\"} 1\nb 2\n"),
            "a{h=\"\u{fffd}\u{fffd}\"} 1\nb 2\n"
        );
    }

    #[test]
    fn what_is_formatted_is_escaped_on_its_way() {
        let mut text = String::new();
        write!(Escaping(&mut text), "\u{9b}2J-{:?}", "\r\n").unwrap();
        assert_eq!(text, "\\u009b2J-\"\\r\\n\"");
    }
}
