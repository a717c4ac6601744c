//! JSON Schemas in a form that generators of code understand. What schemars makes of the worker's types is right, and defeats
//! most of them: they lose fields that stand beside a `$ref`, know no format `uint64`, and number the variants that have no name.
//! Which values fit is the same before and after.

mod ordered;
mod simple;
mod union;

use std::collections::{BTreeMap, BTreeSet};

use schemars::Schema;
use serde_json::{Map, Value, json};

pub(super) use self::ordered::Ordered;

pub(super) type Definitions = BTreeMap<String, Value>;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
const DEFINITION: &str = "#/$defs/";

/// A message's type, and every type that it is made of.
#[derive(Debug)]
pub(super) struct Portable {
    /// The name in messages: `token.reply`.
    name: &'static str,
    /// The name in code: `TokenReply`.
    title: String,
    definitions: Definitions,
}

impl Portable {
    pub(super) fn of(name: &'static str, schema: Schema) -> Self {
        let title = in_code(name);
        let mut root = Value::from(schema);
        let raw = take_definitions(&mut root);
        let mut definitions = Definitions::new();
        let named = raw.iter().map(|(name, schema)| (name.clone(), schema.clone()));
        for (name, mut schema) in named.chain([(title.clone(), root)]) {
            simple::simplify(&mut schema, &raw);
            union::define(&name, schema, &raw, &mut definitions);
        }
        let used = reachable(&title, &definitions);
        let kinds = format!("{title}{}", union::KINDS);
        definitions.retain(|name, _| used.contains(name) || *name == kinds);
        Self { name, title, definitions }
    }

    #[cfg(test)]
    pub(super) fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// A document of its own, with examples.
    pub(super) fn document(&self, examples: Vec<Value>) -> Value {
        let mut definitions = self.definitions.clone();
        let root = definitions.remove(&self.title).unwrap_or_default();
        let mut document = head(self.name);
        document.extend(root.as_object().cloned().unwrap_or_default());
        document.insert("examples".to_owned(), examples.into());
        if !definitions.is_empty() {
            document.insert("$defs".to_owned(), json!(definitions));
        }
        document.into()
    }
}

/// One document with all of them. Each message is a definition, and a property by its name in messages.
pub(super) fn bundle(messages: &[Portable]) -> Value {
    let reference = |message: &Portable| {
        (message.name.to_owned(), json!({"$ref": format!("{DEFINITION}{}", message.title)}))
    };
    let properties: Map<String, Value> = messages.iter().map(reference).collect();
    let mut document = head("messages");
    document.extend(Map::from_iter([
        ("title".to_owned(), "Messages".into()),
        (
            "description".to_owned(),
            "Every message of tokenkeeper by its name. No message has this form: it is for generators, which make each \
             type once."
                .into(),
        ),
        ("type".to_owned(), "object".into()),
        ("properties".to_owned(), properties.into()),
        ("$defs".to_owned(), json!(all_definitions(messages))),
    ]));
    document.into()
}

/// The definitions of all messages. A type of several messages is the same in each.
pub(super) fn all_definitions(messages: &[Portable]) -> Definitions {
    messages.iter().flat_map(|message| message.definitions.clone()).collect()
}

/// Puts every `$ref` to a definition at another place.
pub(super) fn moved_to(place: &str, schema: &mut Value) {
    if let Some(Value::String(reference)) = schema.get_mut("$ref")
        && let Some(name) = reference.strip_prefix(DEFINITION)
    {
        *reference = format!("{place}{name}");
    }
    each_child(schema, |child| moved_to(place, child));
}

fn head(name: &str) -> Map<String, Value> {
    Map::from_iter([
        ("$schema".to_owned(), DIALECT.into()),
        ("$id".to_owned(), format!("urn:tokenkeeper:{name}").into()),
    ])
}

fn take_definitions(root: &mut Value) -> Definitions {
    let Some(root) = root.as_object_mut() else { return Definitions::new() };
    root.remove("$schema");
    match root.remove("$defs") {
        Some(Value::Object(definitions)) => definitions.into_iter().collect(),
        _ => Definitions::new(),
    }
}

fn reachable(from: &str, definitions: &Definitions) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next = vec![from.to_owned()];
    while let Some(name) = next.pop() {
        if let Some(mut schema) = definitions.get(&name).filter(|_| !found.contains(&name)).cloned() {
            references(&mut schema, &mut next);
            found.insert(name);
        }
    }
    found
}

fn references(schema: &mut Value, into: &mut Vec<String>) {
    into.extend(referred(schema).map(str::to_owned));
    each_child(schema, |child| references(child, into));
}

/// The name of the definition that this is a reference to.
fn referred(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix(DEFINITION)
}

fn each_child(schema: &mut Value, mut each: impl FnMut(&mut Value)) {
    match schema {
        Value::Object(fields) => fields.values_mut().for_each(&mut each),
        Value::Array(elements) => elements.iter_mut().for_each(&mut each),
        _ => {}
    }
}

/// `not_current` or `token.reply` as a type is named: `NotCurrent`, `TokenReply`.
pub(super) fn in_code(name: &str) -> String {
    let capitalised = |word: &str| {
        let mut signs = word.chars();
        signs.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(signs).collect::<String>()
    };
    name.split(['.', '_']).map(capitalised).collect()
}
