//! The members of a JSON object, each as it is written.
//!
//! A pair must not be lost because of what stands beside it: `NaN`, a number or a nesting too large, half a surrogate, a
//! byte of another encoding. A JSON library reads all of a text or nothing. So this only finds where each member of the
//! outermost object begins and ends; whoever needs one gives it to the library.

use std::iter::Peekable;
use std::str::CharIndices;

/// A member of the outermost object: its name without quotes, and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a str,
}

/// What was found of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Object<'a> {
    pub(super) members: Vec<Member<'a>>,
    /// Whether its closing brace is there. What follows it is of no interest.
    pub(super) is_whole: bool,
}

/// Most members that are kept. No token endpoint writes more than a few dozen.
const MOST_MEMBERS: usize = 1_024;

/// The members of the object that a text begins with; none: it begins with something else.
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

/// Whether a text is the beginning of an object whose end it has as well. Looks at each byte once, however many chunks it
/// comes in.
#[derive(Debug, Default)]
pub(in crate::oauth) struct End {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// It begins with something else than an object.
    is_none: bool,
}

impl End {
    /// Whether the object ends in the next chunk.
    pub(in crate::oauth) fn is_in(&mut self, chunk: &[u8]) -> bool {
        chunk.iter().any(|byte| self.is_at(*byte))
    }

    fn is_at(&mut self, byte: u8) -> bool {
        // A zero is no part of UTF-8 text. In UTF-16 what looks like the last brace is half of it.
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
            // A byte order mark of UTF-8, and blanks.
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
    /// None: the text ends before the member does.
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

    /// A value of any kind. What is neither a string nor an array nor an object goes up to `is_end`.
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
    fn what_stands_beside_a_member_costs_no_member() {
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
    fn an_object_without_its_end_is_not_whole() {
        let text = r#"{"a":"x","b":{"c":[1,"}"]},"d":1}"#;
        assert!(read(text).1);
        for (end, _) in text.char_indices().skip(1) {
            assert!(!read(&text[..end]).1, "{}", &text[..end]);
        }
        assert_eq!(read(r#"{"a":"x","b":12"#).0, [("a", r#""x""#)], "the rest of a number may be missing");
        assert_eq!(read("{}").0, []);
    }

    #[test]
    fn what_begins_otherwise_is_no_object() {
        for text in ["", " ", "[{}]", "null", "\"{}\"", "<html>{}", "access_token=a"] {
            assert_eq!(object(text), None, "{text}");
            assert!(!End::default().is_in(text.as_bytes()), "{text}");
        }
        assert!(!End::default().is_in(b"{\0}\0"), "UTF-16, of which a brace is half a sign");
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
        /// What a JSON library takes for an object this does as well, and finds the same members.
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
        fn no_text_makes_it_panic(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = object(&text);
            let _ = object(&format!("{{{text}"));
            let _ = End::default().is_in(&bytes);
        }
    }
}
