//! A JSON value whose fields stand in an order that reads well, and that is the same in every build.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// What a schema begins and ends with. All else stands between them, by name.
const FIRST: [&str; 15] = [
    "$schema",
    "$id",
    "asyncapi",
    "id",
    "info",
    "name",
    "title",
    "version",
    "summary",
    "description",
    "action",
    "type",
    "const",
    "enum",
    "required",
];
const LAST: [&str; 5] = ["oneOf", "not", "examples", "components", "$defs"];

/// Writes a value in that order.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli::schema) struct Ordered<'a>(pub(in crate::cli::schema) &'a Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in sorted(fields, rank) {
                    match (&**key, value) {
                        ("properties", Value::Object(properties)) => {
                            map.serialize_entry(key, &Properties { properties, of: fields })?;
                        }
                        _ => map.serialize_entry(key, &Ordered(value))?,
                    }
                }
                map.end()
            }
            Value::Array(elements) => {
                let mut list = serializer.serialize_seq(Some(elements.len()))?;
                for element in elements {
                    list.serialize_element(&Ordered(element))?;
                }
                list.end()
            }
            scalar => scalar.serialize(serializer),
        }
    }
}

/// The fields of an object: first those that it must have, in the order in which it says so.
struct Properties<'a> {
    properties: &'a Map<String, Value>,
    of: &'a Map<String, Value>,
}

impl Serialize for Properties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let required = self.of.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let place =
            |name: &str| required.iter().position(|required| required == name).unwrap_or(required.len());
        let mut map = serializer.serialize_map(Some(self.properties.len()))?;
        for (key, value) in sorted(self.properties, place) {
            map.serialize_entry(key, &Ordered(value))?;
        }
        map.end()
    }
}

fn sorted(fields: &Map<String, Value>, rank: impl Fn(&str) -> usize) -> Vec<(&String, &Value)> {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_by(|(one, _), (other, _)| (rank(one), one).cmp(&(rank(other), other)));
    fields
}

fn rank(key: &str) -> usize {
    let place = |list: &[&str]| list.iter().position(|name| *name == key);
    match (place(&FIRST), place(&LAST)) {
        (Some(place), _) => place,
        (None, Some(place)) => FIRST.len() + 1 + place,
        (None, None) => FIRST.len(),
    }
}
