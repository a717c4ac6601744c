//! The members of a JSON object, as raw text.
//!
//! A pair must not be lost because another member is invalid: `NaN`, a number or a nesting too large, half a surrogate
//! pair, a byte of another encoding. A JSON library reads all of a text or nothing. So this only finds where each member
//! of the outermost object begins and ends, and the library reads the members that are needed.

use std::iter::Peekable;
use std::str::CharIndices;

/// A member of the outermost object. The name has no quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Object<'a> {
    pub(super) members: Vec<Member<'a>>,
    /// Whether the closing brace was found. What follows it is ignored.
    pub(super) is_whole: bool,
}

/// No token endpoint writes more than a few dozen.
const MOST_MEMBERS: usize = 1_024;

/// The object at the beginning of a text, or `None` if the text begins with something else.
pub(super) fn object(text: &str) -> Option<Object<'_>> {
    let mut reader = Reader { text, signs: text.char_indices().peekable() };
    reader.skip_blanks();
    reader.take('{')?;
    let mut members = Vec::new();
    loop {
        reader.skip(|sign| is_blank(sign) || sign == ',');
        if reader.take('}').is_some() {
            return Some(Object { members, is_whole: true });
        }
        let Some(member) = reader.member().filter(|_| members.len() < MOST_MEMBERS) else {
            return Some(Object { members, is_whole: false });
        };
        members.push(member);
    }
}

/// Finds the end of the object that a text begins with. Reads each byte once, in any number of chunks.
#[derive(Debug, Default)]
pub(in crate::oauth) struct End {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The text does not begin with an object.
    is_none: bool,
}

impl End {
    /// Whether the object ends in the next chunk.
    pub(in crate::oauth) fn is_in(&mut self, chunk: &[u8]) -> bool {
        chunk.iter().any(|byte| self.is_at(*byte))
    }

    fn is_at(&mut self, byte: u8) -> bool {
        // A zero byte means UTF-16, where the byte of a brace is only half a character.
        self.is_none |= byte == 0;
        if self.is_none {
            return false;
        }
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'{' | b'[' if self.depth > 0 || byte == b'{' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                return self.depth == 0;
            }
            b'"' if self.depth > 0 => self.in_string = true,
            // UTF-8's byte order mark, and blanks.
            0xef | 0xbb | 0xbf | b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => {}
            _ => self.is_none = self.depth == 0,
        }
        false
    }
}

struct Reader<'a> {
    text: &'a str,
    signs: Peekable<CharIndices<'a>>,
}

impl<'a> Reader<'a> {
    /// `None`: the text ends within the member.
    fn member(&mut self) -> Option<Member<'a>> {
        let name = self.value(|sign| sign == ':')?;
        self.skip_blanks();
        self.take(':')?;
        self.skip_blanks();
        let value = self.value(|sign| matches!(sign, ',' | '}'))?;
        Some(Member {
            name: name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name),
            value,
        })
    }

    /// A value of any kind. Anything but a string, an array or an object extends to `is_end`.
    fn value(&mut self, is_end: impl Fn(char) -> bool) -> Option<&'a str> {
        let begin = self.at();
        match self.signs.peek()?.1 {
            '"' => self.string()?,
            '{' | '[' => self.nested()?,
            _ => self.skip(|sign| !is_end(sign)),
        }
        self.signs.peek()?;
        self.text.get(begin..self.at()).map(str::trim_end)
    }

    fn string(&mut self) -> Option<()> {
        self.take('"')?;
        loop {
            match self.signs.next()?.1 {
                '"' => return Some(()),
                '\\' => {
                    self.signs.next()?;
                }
                _ => {}
            }
        }
    }

    fn nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.signs.peek()?.1 {
                '"' => self.string()?,
                sign => {
                    self.signs.next();
                    match sign {
                        '{' | '[' => depth += 1,
                        '}' | ']' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    if depth == 0 {
                        return Some(());
                    }
                }
            }
        }
    }

    fn take(&mut self, sign: char) -> Option<()> {
        self.signs.next_if(|(_, next)| *next == sign).map(|_| ())
    }

    fn skip(&mut self, is_skipped: impl Fn(char) -> bool) {
        while self.signs.next_if(|(_, sign)| is_skipped(*sign)).is_some() {}
    }

    fn skip_blanks(&mut self) {
        self.skip(is_blank);
    }

    fn at(&mut self) -> usize {
        self.signs.peek().map_or(self.text.len(), |(at, _)| *at)
    }
}

/// RFC 8259, section 2.
const fn is_blank(sign: char) -> bool {
    matches!(sign, ' ' | '\t' | '\r' | '\n')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn read(text: &str) -> (Vec<(&str, &str)>, bool) {
        let object = object(text).expect("it begins like an object");
        (object.members.iter().map(|member| (member.name, member.value)).collect(), object.is_whole)
    }

    #[test]
    fn an_invalid_member_does_not_hide_the_others() {
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        for odd in [
            "NaN",
            "-Infinity",
            "1e400",
            r#""\ud800""#,
            "\"Jos\u{fffd}\"",
            &deep,
            r#"{"a":"}"}"#,
            "undefined",
            "1 2",
        ] {
            let text = format!(r#" {{"a": "x\"}}", "odd": {odd}, "b":[1,{{"c":"]"}}] }} behind"#);
            let members = vec![("a", r#""x\"}""#), ("odd", odd), ("b", r#"[1,{"c":"]"}]"#)];
            assert_eq!(read(&text), (members, true), "{odd}");
        }
    }

    #[test]
    fn an_incomplete_object_is_not_whole() {
        let text = r#"{"a":"x","b":{"c":[1,"}"]},"d":1}"#;
        assert!(read(text).1);
        for (end, _) in text.char_indices().skip(1) {
            assert!(!read(&text[..end]).1, "{}", &text[..end]);
        }
        assert_eq!(read(r#"{"a":"x","b":12"#).0, [("a", r#""x""#)], "the rest of a number may be missing");
        assert_eq!(read("{}").0, []);
    }

    #[test]
    fn a_text_that_begins_with_something_else_is_not_an_object() {
        for text in ["", " ", "[{}]", "null", "\"{}\"", "<html>{}", "access_token=a"] {
            assert_eq!(object(text), None, "{text}");
            assert!(!End::default().is_in(text.as_bytes()), "{text}");
        }
        assert!(!End::default().is_in(b"{\0}\0"), "UTF-16: a brace byte is half a character");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|number| Value::from(f64::from(number) / 4.0)),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".{0,4}", inner, 0..4)
                    .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        /// Every object that a JSON library reads is found with the same members.
        #[test]
        fn every_json_object_is_read_as_a_library_reads_it(
            members in prop::collection::hash_map(".{0,4}", any_value(), 0..6),
            pretty in any::<bool>(),
            split in any::<prop::sample::Index>(),
        ) {
            let value = Value::from(members.into_iter().collect::<Map<_, _>>());
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            let (found, is_whole) = read(&text);
            prop_assert!(is_whole);
            let found = found.into_iter().map(|(name, value)| {
                let name: String = serde_json::from_str(&format!("\"{name}\"")).unwrap();
                (name, serde_json::from_str(value).unwrap())
            });
            prop_assert_eq!(Value::from(found.collect::<Map<_, _>>()), value);

            let (first, second) = text.as_bytes().split_at(split.index(text.len()));
            let mut end = End::default();
            prop_assert!(!end.is_in(first));
            prop_assert!(end.is_in(second), "at the last byte");
        }

        #[test]
        fn no_input_panics(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = object(&text);
            let _ = object(&format!("{{{text}"));
            let _ = End::default().is_in(&bytes);
        }
    }
}
