//! Fields of a message that the contract does not know. A message with one is served all the same: it may come from a newer
//! publisher. But a misspelled `refresh_token` must not be missed in silence.

use schemars::JsonSchema;
use serde::Serialize;
use serde_ignored::Path;

use crate::domain::escape;

/// How the warning begins.
const WARNING: &str = "unknown_field: ";

/// The most unknown fields of one message that are named.
const MOST: usize = 4;

/// The longest key that may be a name, in bytes. No field of the contract has more than 24.
const LONGEST: usize = 32;

/// How many characters of another key are named. It may be a token in the wrong place.
const OF_ANOTHER: usize = 8;

/// A field that the contract does not know, as a warning: `unknown_field: token.refreshToken`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "UnknownField", extend("pattern" = "^unknown_field: "))]
pub struct UnknownField(String);

impl UnknownField {
    fn at(path: &Path<'_>) -> Self {
        let mut text = WARNING.to_owned();
        write_path(&mut text, path);
        Self(text)
    }

    #[cfg(test)]
    fn named(key: &str) -> Self {
        Self::at(&Path::Map { parent: &Path::Root, key: key.to_owned() })
    }
}

/// The unknown fields of a message, at most `MOST` of them, each once.
#[derive(Debug, Default)]
pub struct UnknownFields(Vec<UnknownField>);

impl UnknownFields {
    pub(super) fn note(&mut self, path: &Path<'_>) {
        if self.0.len() < MOST {
            let field = UnknownField::at(path);
            if !self.0.contains(&field) {
                self.0.push(field);
            }
        }
    }

    /// Takes over the fields of a message that lies in the field `parent` of this one. They do not take each other's places.
    pub(super) fn extend_from(&mut self, parent: &str, inside: Self) {
        let moved = inside.0.into_iter().map(|UnknownField(text)| {
            let path = text.strip_prefix(WARNING).unwrap_or(&text);
            UnknownField(format!("{WARNING}{parent}.{path}"))
        });
        self.0.extend(moved);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for UnknownFields {
    type Item = UnknownField;
    type IntoIter = std::vec::IntoIter<UnknownField>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// The keys down to the field, with dots between them. The depth is that of the contract's types, whatever was sent.
fn write_path(text: &mut String, path: &Path<'_>) {
    match path {
        Path::Root => {}
        Path::Map { parent, key } => {
            write_path(text, parent);
            if !matches!(parent, Path::Root) {
                text.push('.');
            }
            write_key(text, key);
        }
        Path::Seq { parent, .. }
        | Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => write_path(text, parent),
    }
}

/// A key is a publisher's text, and may be anything: what is no name is cut, and what is unprintable is escaped.
fn write_key(text: &mut String, key: &str) {
    let end = match key.char_indices().nth(OF_ANOTHER) {
        Some((end, _)) if !is_a_name(key) => end,
        _ => key.len(),
    };
    text.push_str(&escape::line(&key[..end]));
    if end < key.len() {
        text.push('…');
    }
}

/// A misspelt field's name is worth showing, but a token may stand in its place. Tokens are long, or have digits, hyphens or
/// capitals side by side.
pub(super) fn is_a_name(key: &str) -> bool {
    let mut pairs = key.bytes().zip(key.bytes().skip(1).chain([b'X']));
    key.len() <= LONGEST
        && pairs.all(|(byte, next)| {
            byte.is_ascii_lowercase()
                || byte == b'_'
                || byte.is_ascii_uppercase() && !next.is_ascii_uppercase()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_whole_only_if_it_looks_like_a_name() {
        let long = "refresh_".repeat(5);
        for (key, named) in [
            ("refreshToken", "refreshToken"),
            ("RefreshToken", "RefreshToken"),
            ("AbCDefGhIjKlMnOpQ", "AbCDefGh…"),
            ("requested_lifetime_in_seconds", "requested_lifetime_in_seconds"),
            ("ttl2", "ttl2"),
            ("", ""),
            (long.as_str(), "refresh_…"),
            ("glpat-0123456789abcdef", "glpat-01…"),
            ("é\u{202e}\u{1b}[2J語語語語", "é\\u202e\\u001b[2J語語…"),
        ] {
            assert_eq!(UnknownField::named(key).0, format!("unknown_field: {named}"));
        }
    }

    #[test]
    fn a_message_of_unknown_fields_alone_names_few_of_them_and_each_once() {
        let mut unknown = UnknownFields::default();
        for number in 0..100_000 {
            for _ in 0..2 {
                let key = format!("x{}", number % 50_000);
                unknown.note(&Path::Map { parent: &Path::Root, key });
            }
        }
        let named: Vec<_> = unknown.into_iter().map(|UnknownField(text)| text).collect();
        assert_eq!(named, ["x0", "x1", "x2", "x3"].map(|key| format!("unknown_field: {key}")));
    }
}
