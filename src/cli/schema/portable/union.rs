//! Unions whose variants have names. Each variant is a type of its own.

use serde_json::{Map, Value, json};

use super::{DEFINITION, Definitions, in_code, referred};

/// What the enum of a union's kinds is called, behind the name of the union.
pub(super) const KINDS: &str = "Kind";

/// Adds this type to the definitions: itself and, if it is a union, its variants.
pub(super) fn define(name: &str, schema: Value, raw: &Definitions, into: &mut Definitions) {
    let Value::Object(mut fields) = schema else { return };
    let variants = titled(&fields).or_else(|| tagged(&fields, raw)).or_else(|| words(&fields));
    let Some(variants) = variants else {
        fields.insert("title".to_owned(), name.into());
        into.insert(name.to_owned(), fields.into());
        return;
    };
    if let Some(kinds) = kinds(&fields) {
        let title = format!("{name}{KINDS}");
        let kinds = json!({
            "title": title, "description": "The name that tells them apart.", "type": "string", "enum": kinds,
        });
        into.insert(title, kinds);
    }
    let mut all = Vec::new();
    for (variant, mut schema) in variants {
        let name = variant.named(name);
        schema.insert("title".to_owned(), name.clone().into());
        all.push(json!({"$ref": format!("{DEFINITION}{name}")}));
        into.insert(name, schema.into());
    }
    let mut union = Map::from_iter([("title".to_owned(), name.into())]);
    if let Some(description) = fields.get("description") {
        union.insert("description".to_owned(), description.clone());
    }
    let key = if fields.contains_key("anyOf") { "anyOf" } else { "oneOf" };
    union.insert(key.to_owned(), all.into());
    into.insert(name.to_owned(), union.into());
}

/// The names in the field `event`, where each variant has it.
fn kinds(fields: &Map<String, Value>) -> Option<Vec<Value>> {
    let kind = |variant: &Value| variant.pointer("/properties/event/const").cloned();
    fields.get("oneOf")?.as_array()?.iter().map(kind).collect()
}

enum Variant {
    /// Behind the name of the union.
    Suffix(String),
    /// In front of it.
    Prefix(String),
}

impl Variant {
    fn named(&self, union: &str) -> String {
        match self {
            Self::Suffix(suffix) => format!("{union}{suffix}"),
            Self::Prefix(prefix) => format!("{prefix}{union}"),
        }
    }
}

type Variants = Option<Vec<(Variant, Map<String, Value>)>>;

/// The variants of an enum in Rust, which a field with a constant tells apart.
fn tagged(fields: &Map<String, Value>, raw: &Definitions) -> Variants {
    let variants = fields.get("oneOf")?.as_array()?;
    let variant = |variant: &Value| {
        let tag = variant.get("properties")?.as_object()?.values().find_map(|field| field.get("const"))?;
        let mut schema = variant.as_object()?.clone();
        if let Some(content) = referred(variant).and_then(|name| raw.get(name)) {
            let mut content = content.clone();
            super::simple::simplify(&mut content, raw);
            schema.remove("$ref");
            schema.insert("properties".to_owned(), merged(variant, &content, "properties"));
            schema.insert("required".to_owned(), joined(variant, &content));
        }
        Some((Variant::Suffix(in_code(tag.as_str()?)), schema))
    };
    variants.iter().map(variant).collect()
}

/// An object with alternatives, each with a title, that say more about its fields.
fn titled(fields: &Map<String, Value>) -> Variants {
    let variants = fields.get("oneOf")?.as_array()?;
    let mut common = fields.clone();
    common.remove("oneOf");
    let common = Value::from(common);
    let variant = |variant: &Value| {
        let title = variant.get("title")?.as_str()?.to_owned();
        let mut schema = common.as_object()?.clone();
        if let Some(description) = variant.get("description") {
            schema.insert("description".to_owned(), description.clone());
        }
        let (mut properties, mut absent) = (schema.get("properties")?.as_object()?.clone(), Vec::new());
        for (name, more) in variant.get("properties").and_then(Value::as_object).into_iter().flatten() {
            match more {
                Value::Bool(false) => {
                    properties.remove(name);
                    absent.push(json!({"required": [name], "properties": {name: {}}}));
                }
                more => narrow(properties.get_mut(name)?.as_object_mut()?, more),
            }
        }
        absent.extend(schema.get("not").cloned());
        match absent.len() {
            0 => {}
            1 => drop(schema.insert("not".to_owned(), absent.remove(0))),
            _ => drop(schema.insert("not".to_owned(), json!({"anyOf": absent}))),
        }
        schema.insert("properties".to_owned(), properties.into());
        schema.insert("required".to_owned(), joined(&common, variant));
        Some((Variant::Suffix(title), schema))
    };
    variants.iter().map(variant).collect()
}

/// Words, and texts of another form beside them.
fn words(fields: &Map<String, Value>) -> Variants {
    let texts = fields.get("anyOf")?.as_array()?;
    let words: Vec<&Value> = texts.iter().filter(|text| text.get("const").is_some()).collect();
    if words.is_empty() {
        return None;
    }
    let mut schema = json!({"description": "Those that have a name.", "oneOf": words});
    super::simple::simplify(&mut schema, &Definitions::new());
    let other = |text: &Value| {
        let title = text.get("title")?.as_str()?.to_owned();
        Some((Variant::Prefix(title), text.as_object()?.clone()))
    };
    let others = texts.iter().filter(|text| text.get("const").is_none()).map(other);
    let known = Some((Variant::Prefix("Known".to_owned()), schema.as_object()?.clone()));
    std::iter::once(known).chain(others).collect()
}

fn narrow(field: &mut Map<String, Value>, more: &Value) {
    if more.get("type").is_some() {
        field.remove("$ref");
    }
    if more.get("type") == Some(&"null".into()) {
        field.retain(|key, _| key == "description");
    }
    field.extend(more.as_object().cloned().unwrap_or_default());
}

fn merged(one: &Value, other: &Value, key: &str) -> Value {
    let fields = |of: &Value| of.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
    fields(one).into_iter().chain(fields(other)).collect::<Map<_, _>>().into()
}

/// The required fields of both.
fn joined(one: &Value, other: &Value) -> Value {
    let mut all: Vec<Value> = Vec::new();
    for required in [one, other].into_iter().filter_map(|of| of.get("required")?.as_array()).flatten() {
        if !all.contains(required) {
            all.push(required.clone());
        }
    }
    all.into()
}
