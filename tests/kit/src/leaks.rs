//! Secrets, looked for wherever none may be: as they are, and in every form that they can be read back from.
//!
//! What is compressed or encrypted cannot be looked into.

use std::fmt::{self, Write as _};

use aho_corasick::AhoCorasick;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Shorter texts turn up by chance.
const SHORTEST: usize = 8;

/// What needs no escape in a URL (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Looks for secrets. Made once for many texts.
pub struct Leaks {
    forms: AhoCorasick,
    /// Of each form: which secret it is, by its place, and how it is written.
    of: Vec<(usize, Form)>,
}

/// A secret that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// Which one, by its place among the secrets.
    pub secret: usize,
    /// How it is written there.
    pub form: Form,
    /// Where it begins, in bytes.
    pub at: usize,
}

/// How a secret can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// As it is.
    Plain,
    /// `%2B` for what is special in a URL.
    Percent,
    /// `%73` for every byte.
    AllPercent,
    /// Base64, wherever in a longer text it stands.
    Base64,
    /// Hexadecimal digits.
    Hex,
    /// As JSON or Rust's `Debug` escape a text.
    Escaped,
    /// `\u0073` for every character.
    Unicode,
    /// `115, 51`: Rust's `Debug` of bytes.
    Numbers,
    /// `115,51`: JSON of bytes.
    DenseNumbers,
    /// Two bytes a character.
    Utf16,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Plain,
        Self::Percent,
        Self::AllPercent,
        Self::Base64,
        Self::Hex,
        Self::Escaped,
        Self::Unicode,
        Self::Numbers,
        Self::DenseNumbers,
        Self::Utf16,
    ];

    /// Every way to write a secret in this form.
    pub fn of(self, secret: &str) -> Vec<Vec<u8>> {
        let bytes = secret.as_bytes();
        let each = |write: fn(u8) -> String| bytes.iter().copied().map(write).collect::<Vec<_>>();
        let texts: Vec<String> = match self {
            Self::Plain => vec![secret.to_owned()],
            Self::Percent => {
                let encoded = utf8_percent_encode(secret, RESERVED).to_string();
                vec![lower_case_escapes(&encoded), encoded]
            }
            Self::AllPercent => vec![
                each(|byte| format!("%{byte:02x}")).concat(),
                each(|byte| format!("%{byte:02X}")).concat(),
            ],
            Self::Base64 => base64_inside(bytes),
            Self::Hex => {
                vec![each(|byte| format!("{byte:02x}")).concat(), each(|byte| format!("{byte:02X}")).concat()]
            }
            Self::Escaped => {
                let json = serde_json::to_string(secret).expect("a text has a JSON form");
                [json, format!("{secret:?}")].map(|quoted| quoted[1..quoted.len() - 1].to_owned()).into()
            }
            Self::Unicode => vec![
                each(|byte| format!("\\u{byte:04x}")).concat(),
                each(|byte| format!("\\u{{{byte:x}}}")).concat(),
            ],
            Self::Numbers => vec![each(|byte| byte.to_string()).join(", ")],
            Self::DenseNumbers => vec![each(|byte| byte.to_string()).join(",")],
            Self::Utf16 => {
                let units = || secret.encode_utf16();
                return vec![
                    units().flat_map(u16::to_le_bytes).collect(),
                    units().flat_map(u16::to_be_bytes).collect(),
                ];
            }
        };
        texts.into_iter().map(String::into_bytes).collect()
    }
}

impl Leaks {
    /// Looks for these secrets. Panics where one is so short that it would be found by chance.
    pub fn of<S: AsRef<str>>(secrets: impl IntoIterator<Item = S>) -> Self {
        let (mut forms, mut of) = (Vec::new(), Vec::new());
        for (place, secret) in secrets.into_iter().enumerate() {
            let secret = secret.as_ref();
            assert!(secret.len() >= SHORTEST, "secret {place} is too short to be looked for");
            for form in Form::ALL {
                for written in form.of(secret) {
                    forms.push(written);
                    of.push((place, form));
                }
            }
        }
        Self { forms: AhoCorasick::new(forms).expect("a few thousand forms"), of }
    }

    /// The first secret in a text.
    pub fn find(&self, text: impl AsRef<[u8]>) -> Option<Leak> {
        let found = self.forms.find(text.as_ref())?;
        let (secret, form) = self.of[found.pattern().as_usize()];
        Some(Leak { secret, form, at: found.start() })
    }
}

/// Without the secrets themselves: a test that fails is read by people, too.
impl fmt::Debug for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaks").field("forms", &self.of.len()).finish_non_exhaustive()
    }
}

/// `%2F` as `%2f`.
fn lower_case_escapes(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escape, rest) = part.split_at(2);
        write!(text, "%{}{rest}", escape.to_ascii_lowercase()).expect("a text takes more text");
    }
    text
}

/// The characters of a longer base64 text that these bytes alone decide: for each of the three places in which they may begin.
fn base64_inside(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for before in 0..3 {
        let padded = [&vec![0; before], bytes].concat();
        // The first characters depend on what stands before, the last one on what follows.
        let begin = (before * 8).div_ceil(6);
        let end = padded.len() * 8 / 6;
        for engine in [&STANDARD, &URL_SAFE] {
            found.push(engine.encode(&padded)[begin..end].to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "t0ken/with+\"signs\"~é";

    #[test]
    fn a_secret_is_found_in_every_form_and_wherever_it_stands() {
        let leaks = Leaks::of(["another-secret", SECRET]);
        for form in Form::ALL {
            for written in form.of(SECRET) {
                let text = [b"before \xff", written.as_slice(), b" behind"].concat();
                let leak = leaks.find(&text).unwrap_or_else(|| panic!("{form:?} is not found"));
                assert_eq!((leak.secret, leak.at), (1, 8), "{form:?}");
            }
        }
        assert_eq!(leaks.find(format!("no {} here", &SECRET[1..])), None);
    }

    #[test]
    fn base64_of_a_longer_text_with_a_secret_in_it_is_found() {
        let leaks = Leaks::of([SECRET]);
        for before in ["", "u", "u:", "user:", "a longer one "] {
            for behind in ["", ".", "..", "..."] {
                let text = format!("{before}{SECRET}{behind}");
                let found = [STANDARD.encode(&text), URL_SAFE.encode(&text)].map(|text| leaks.find(text));
                for leak in found {
                    assert_eq!(leak.map(|leak| leak.form), Some(Form::Base64), "{before:?} {behind:?}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "too short")]
    fn what_would_be_found_by_chance_is_refused() {
        let _ = Leaks::of(["guest"]);
    }
}
