//! Patterns by which settings name hosts, users and queues: a text in which `*` stands for other text.
//!
//! Written here because the crates for it also give `?`, `[…]` and `\` a meaning, which user ids and queue names may hold, and
//! none knows where a host's `*` must end.

use std::fmt;

/// Whatever there is.
const ANY: &str = "*";

/// A text in which each `*` stands for any text, also for none. Compared byte for byte.
#[derive(Clone, PartialEq, Eq)]
pub struct TextPattern(String);

/// The same for hosts. `*` alone is every host. Elsewhere a `*` ends at a dot and at the port, as in certificates
/// (RFC 6125, section 6.4.3): `*.example.org` is `git.example.org`, and neither `a.git.example.org` nor
/// `git.example.org:8443`.
#[derive(Clone, PartialEq, Eq)]
pub struct HostPattern(String);

impl TextPattern {
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    pub fn matches(&self, text: &str) -> bool {
        matches(&self.0, text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HostPattern {
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    pub fn matches(&self, host: &str) -> bool {
        if self.0 == ANY {
            return true;
        }
        let mut labels = host.split_inclusive(['.', ':']);
        let mut patterns = self.0.split_inclusive(['.', ':']);
        loop {
            match (patterns.next(), labels.next()) {
                (None, None) => return true,
                (Some(pattern), Some(label)) if matches(pattern, label) => {}
                _ => return false,
            }
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Takes each piece between two `*` where it comes first: if any choice of places fits, this one does. So a pattern costs
/// at most its length times that of the text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut text) = text.strip_suffix(end) else { return false };
    middle.split('*').all(|piece| {
        let found = text.find(piece);
        text = found.map_or("", |at| &text[at + piece.len()..]);
        found.is_some()
    })
}

impl fmt::Debug for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, fits) in [
            ("jdoe", "jdoe", true),
            ("jdoe", "jdoe2", false),
            ("jdoe", "JDOE", false),
            ("*", "", true),
            ("*", "any.thing:at all", true),
            ("ci-*", "ci-", true),
            ("ci-*", "ci-7", true),
            ("ci-*", "xci-7", false),
            ("*-bot", "a-bot-bot", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            // The start and the end do not share letters.
            ("ab*ba", "aba", false),
            ("ab*ba", "abba", true),
            ("**", "x", true),
            ("*é*", "caféteria", true),
            ("[a-z]?", "b1", false),
            ("[a-z]?", "[a-z]?", true),
        ] {
            assert_eq!(TextPattern::new(pattern).matches(text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn a_hosts_star_ends_at_a_dot_and_at_the_port() {
        for (pattern, host, fits) in [
            ("git.example.org", "git.example.org", true),
            ("git.example.org", "git.example.org:8443", false),
            ("git.example.org:8443", "git.example.org:8443", true),
            ("git.example.org:*", "git.example.org:8443", true),
            ("git.example.org:*", "git.example.org", false),
            ("*.example.org", "git.example.org", true),
            ("*.example.org", "a.git.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", "git.example.org:8443", false),
            ("*.example.org", "git.example.org.evil.org", false),
            ("*.example.org", "evil.org:8443.example.org", false),
            ("git*.example.org", "git2.example.org", true),
            ("git*", "git.evil.org", false),
            ("*", "git.example.org:8443", true),
            ("*:*", "localhost:8443", true),
        ] {
            assert_eq!(HostPattern::new(pattern).matches(host), fits, "{pattern} {host}");
        }
    }

    /// The rule, and nothing clever.
    fn fits(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|from| fits(rest, &text[from..])),
            Some((letter, rest)) => {
                text.split_first().is_some_and(|(first, text)| first == letter && fits(rest, text))
            }
        }
    }

    proptest! {
        #[test]
        fn what_fits_is_found_and_nothing_else(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
            prop_assert_eq!(
                TextPattern::new(pattern.clone()).matches(&text),
                fits(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
