//! What a secret is bound to.

use super::Format;

/// What a secret is bound to: its place, and the values beside it that must not change. It is the associated data of the
/// cipher, so the secret opens only beside the very same values.
///
/// The encoding is unambiguous: each part has a tag, and each text its length. The key ring adds its deployment at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    parts: Vec<u8>,
    earlier: Option<Earlier>,
    is_of_deployment: bool,
}

/// What the same secret is bound to in format 1.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Earlier {
    bytes: Vec<u8>,
    /// Whether format 1 is read whatever the settings say.
    always: bool,
}

const NOTHING: u8 = 0;
const TEXT: u8 = 1;
const NUMBER: u8 = 2;
const LIST: u8 = 3;

impl Binding {
    /// A secret's place: a table and a column, or what stands for them outside of the database.
    pub fn new(table: &str, column: &str) -> Self {
        let binding = Self { parts: Vec::with_capacity(256), earlier: None, is_of_deployment: true };
        binding.text(table).text(column)
    }

    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.push_text(text);
        self
    }

    #[must_use]
    pub fn optional_text(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.text(text),
            None => self.nothing(),
        }
    }

    /// A list of texts. Another list has another encoding.
    #[must_use]
    pub fn texts(mut self, texts: &[String]) -> Self {
        self.parts.push(LIST);
        self.parts.extend_from_slice(&(texts.len() as u64).to_be_bytes());
        texts.iter().fold(self, |binding, text| binding.text(text))
    }

    #[must_use]
    pub fn number(mut self, number: i64) -> Self {
        self.parts.push(NUMBER);
        self.parts.extend_from_slice(&number.to_be_bytes());
        self
    }

    #[must_use]
    pub fn optional_number(self, number: Option<i64>) -> Self {
        match number {
            Some(number) => self.number(number),
            None => self.nothing(),
        }
    }

    /// What the secret is bound to in format 1. The setting `encryption.accept_format_1` decides whether that is read.
    #[must_use]
    pub fn in_format_1(self, bound_to: impl Into<Vec<u8>>) -> Self {
        Self { earlier: Some(Earlier { bytes: bound_to.into(), always: false }), ..self }
    }

    /// The same for what lies outside of the database, where it cannot be re-encrypted. It is always read.
    #[must_use]
    pub fn also_in_format_1(self, bound_to: impl Into<Vec<u8>>) -> Self {
        Self { earlier: Some(Earlier { bytes: bound_to.into(), always: true }), ..self }
    }

    /// Any deployment may open it. For what tells whose deployment it is.
    #[must_use]
    pub fn of_any_deployment(self) -> Self {
        Self { is_of_deployment: false, ..self }
    }

    fn nothing(mut self) -> Self {
        self.parts.push(NOTHING);
        self
    }

    fn push_text(&mut self, text: &str) {
        self.parts.push(TEXT);
        self.parts.extend_from_slice(&(text.len() as u64).to_be_bytes());
        self.parts.extend_from_slice(text.as_bytes());
    }

    /// The format to seal in where `wanted` is: what has no binding in format 1 is sealed in the newest one.
    pub(super) const fn format(&self, wanted: Format) -> Format {
        if self.earlier.is_some() { wanted } else { Format::NEWEST }
    }

    /// Whether format 1 is read though the settings refuse it.
    pub(super) fn is_always_read(&self) -> bool {
        self.earlier.as_ref().is_some_and(|earlier| earlier.always)
    }

    /// The associated data. None: there is none in this format.
    pub(super) fn associated_data(mut self, format: Format, deployment: &str) -> Option<Vec<u8>> {
        match format {
            Format::One => self.earlier.map(|earlier| earlier.bytes),
            Format::Two => {
                if self.is_of_deployment {
                    self.push_text(deployment);
                }
                Some(self.parts)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_bindings_have_one_encoding() {
        let new = || Binding::new("t", "c");
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let eight_times_nothing = (0..8).fold(new(), |binding, _| binding.optional_text(None));
        let bindings = [
            new(),
            Binding::new("other", "c"),
            // As long as a count, and all of it zero.
            eight_times_nothing,
            Binding::new("tc", ""),
            Binding::new("", "tc"),
            new().text(""),
            new().text("ab").text("c"),
            new().text("a").text("bc"),
            new().text("a\u{1}bc"),
            new().optional_text(None),
            new().optional_text(None).optional_text(None),
            new().number(0),
            new().optional_number(None).number(0),
            new().number(0).optional_number(None),
            new().number(1),
            new().number(-1),
            new().texts(&[]),
            new().texts(&texts(&["a", "b"])),
            new().texts(&texts(&["ab"])),
            new().texts(&texts(&["a"])).text("b"),
            new().text("\u{2}\0\0\0\0\0\0\0\0"),
        ];
        let encoded: HashSet<_> = bindings
            .iter()
            .flat_map(|binding| ["", "a", "ab"].map(|it| binding.clone().associated_data(Format::Two, it)))
            .collect();
        assert_eq!(encoded.len(), 3 * bindings.len());
    }

    #[test]
    fn what_tells_whose_deployment_it_is_is_the_same_in_all() {
        let binding = Binding::new("t", "c").of_any_deployment();
        let of = |deployment| binding.clone().associated_data(Format::Two, deployment);
        assert_eq!(of("one"), of("other"));
    }
}
