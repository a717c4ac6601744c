//! Logs as whoever collects them reads them: a JSON object a line, and no key twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Panics at the first whole line that is no JSON object, or has an object with a key twice.
pub(crate) fn assert_json_lines(text: &str, whose: &str) {
    // The end of a log whose worker was killed may be half a line.
    let Some((ended, _)) = text.rsplit_once('\n') else { return };
    for line in ended.lines() {
        let read = serde_json::from_str::<Strict>(line);
        assert!(line.starts_with('{') && read.is_ok(), "{read:?} in the log of {whose}: {line}");
    }
}

/// JSON without its values. `serde_json` itself lets the last of several equal keys win.
#[derive(Debug)]
struct Strict;

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without a key that comes twice")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, _)) = object.next_entry::<String, Self>()? {
            if keys.contains(&key) {
                return Err(A::Error::custom(format!("the key {key:?} comes twice")));
            }
            keys.push(key);
        }
        Ok(self)
    }
}

#[test]
#[should_panic(expected = "comes twice")]
fn a_key_that_comes_twice_is_found_at_any_depth() {
    assert_json_lines("{\"a\":[{\"b\":1,\"c\":{\"b\":2}}]}\n{\"a\":[{\"b\":1,\"b\":2}]}\n", "nobody");
}

#[test]
#[should_panic(expected = "in the log of nobody")]
fn a_line_that_is_no_json_is_found() {
    assert_json_lines("{}\nthread panicked\n", "nobody");
}
