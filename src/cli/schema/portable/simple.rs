//! Plain schemas of texts, numbers and enums.

use serde_json::{Map, Value, json};

use super::{Definitions, each_child, referred};

/// The largest integer that every language's number holds (2^53 - 1).
const LARGEST: u64 = 9_007_199_254_740_991;

/// Puts texts in place of references to them, enums in place of alternatives, and bounds in place of formats that only Rust knows.
pub(super) fn simplify(schema: &mut Value, definitions: &Definitions) {
    inline(schema, definitions);
    each_child(schema, |child| simplify(child, definitions));
    let Some(fields) = schema.as_object_mut() else { return };
    // The lines of a comment in the source are no lines of a text.
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = text.split("\n\n").map(|part| part.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
    optional(fields);
    enumeration(fields);
    bounds(fields);
    required_alone(fields);
    // Generators either drop what stands beside a reference, or make the type once more for it.
    if fields.contains_key("$ref") && fields.keys().all(|key| matches!(&**key, "$ref" | "description")) {
        fields.remove("description");
    }
}

/// A reference to a text or a number becomes that; what is said at this place counts more.
fn inline(schema: &mut Value, definitions: &Definitions) {
    while let Some(target) = referred(schema).and_then(|name| definitions.get(name)) {
        let is_scalar = matches!(target.get("type").and_then(Value::as_str), Some("string" | "integer"));
        if !is_scalar && referred(target).is_none() {
            return;
        }
        let (Value::Object(target), Value::Object(fields)) = (target.clone(), &mut *schema) else { return };
        fields.remove("$ref");
        for (key, value) in target {
            fields.entry(key).or_insert(value);
        }
    }
}

/// What may be null has two types instead of two alternatives.
fn optional(fields: &mut Map<String, Value>) {
    let Some(Value::Array(alternatives)) = fields.get("anyOf") else { return };
    let [Value::Object(one), null] = alternatives.as_slice() else { return };
    let (Some(Value::String(kind)), true) = (one.get("type"), null.get("type") == Some(&"null".into()))
    else {
        return;
    };
    let (one, kinds) = (one.clone(), Value::from(vec![kind.clone(), "null".to_owned()]));
    fields.remove("anyOf");
    for (key, value) in one {
        fields.entry(key).or_insert(value);
    }
    fields.insert("type".to_owned(), kinds);
}

/// Words with a description each become an enum, and a list in its description.
fn enumeration(fields: &mut Map<String, Value>) {
    let Some(Value::Array(words)) = fields.get("oneOf") else { return };
    let said: Option<Vec<(&str, &str)>> = words
        .iter()
        .map(|word| Some((word.get("const")?.as_str()?, word.get("description")?.as_str()?)))
        .collect();
    let Some(said) = said else { return };
    let names: Vec<Value> = said.iter().map(|(word, _)| (*word).into()).collect();
    let list: Vec<String> = said.iter().map(|(word, text)| format!("- `{word}`: {text}")).collect();
    let description = fields.get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{description}\n\n{}", list.join("\n"));
    fields.remove("oneOf");
    fields.insert("type".to_owned(), "string".into());
    fields.insert("enum".to_owned(), names.into());
    fields.insert("description".to_owned(), description.into());
}

/// Strict validators want to hear of a field before it is required.
fn required_alone(fields: &mut Map<String, Value>) {
    if let (1, Some(Value::Array(names))) = (fields.len(), fields.get("required")) {
        let named = names.iter().filter_map(Value::as_str).map(|name| (name.to_owned(), json!({})));
        let properties: Map<String, Value> = named.collect();
        fields.insert("properties".to_owned(), properties.into());
    }
}

fn bounds(fields: &mut Map<String, Value>) {
    let Some(format) = fields.get("format").and_then(Value::as_str) else { return };
    if !format.starts_with("uint") && !format.starts_with("int") {
        return;
    }
    fields.remove("format");
    fields.entry("minimum").or_insert_with(|| 0.into());
    fields.entry("maximum").or_insert_with(|| LARGEST.into());
}
