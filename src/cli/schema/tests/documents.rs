//! The documents that are checked in, and what generators need of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;

const HOW: &str = "run scripts/schema.sh and commit what it writes";

fn checked_in(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; {HOW}", path.display()))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(&Ordered(value)).expect("JSON") + "\n"
}

fn every_schema() -> Vec<Value> {
    let documents = Message::value_variants().iter().map(|message| document(*message).expect("a schema"));
    documents.chain([portable::bundle(&all())]).collect()
}

/// Every object in a schema, with its place.
fn each(schema: &Value, place: &str, see: &mut impl FnMut(&str, &serde_json::Map<String, Value>)) {
    match schema {
        Value::Object(fields) => {
            see(place, fields);
            for (key, value) in fields.iter().filter(|(key, _)| *key != "examples") {
                each(value, &format!("{place}/{key}"), see);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| each(element, place, see)),
        _ => {}
    }
}

#[test]
fn the_documents_that_are_checked_in_are_what_the_command_prints() {
    for message in Message::value_variants() {
        let name = format!("schema/{}.json", message.name());
        let printed = pretty(&document(*message).expect("a schema"));
        assert!(checked_in(&name) == printed, "docs/{name} is not up to date: {HOW}");
    }
    for (name, printed) in [
        ("schema/messages.json", pretty(&portable::bundle(&all()))),
        ("schema/examples.json", pretty(&examples_of(None).expect("examples"))),
        ("asyncapi.yaml", asyncapi::yaml().expect("YAML")),
    ] {
        assert!(checked_in(name) == printed, "docs/{name} is not up to date: {HOW}");
    }
}

#[test]
fn nothing_lies_beside_the_documents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema");
    let files = fs::read_dir(folder).expect("the folder").map(|file| file.expect("a file").file_name());
    let found: BTreeSet<String> = files.map(|name| name.to_string_lossy().into_owned()).collect();
    let names = Message::value_variants().iter().map(|message| message.name());
    let expected = names.chain(["messages", "examples"]).map(|name| format!("{name}.json"));
    assert_eq!(found, expected.collect());
}

#[test]
fn every_reference_leads_to_a_definition_of_the_same_document_and_stands_alone() {
    for schema in every_schema() {
        each(&schema, "", &mut |place, fields| {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').expect("within the document");
                assert!(schema.pointer(pointer).is_some(), "{}{place}: {reference}", schema["$id"]);
                assert_eq!(fields.len(), 1, "{}{place}: stands beside a reference", schema["$id"]);
            }
        });
    }
}

#[test]
fn no_schema_has_a_format_of_rust_and_none_forbids_further_fields() {
    for schema in every_schema() {
        each(&schema, "", &mut |place, fields| {
            let format = fields.get("format").and_then(Value::as_str);
            assert!(matches!(format, None | Some("date-time")), "{place}: {format:?}");
            assert!(!fields.contains_key("additionalProperties"), "{place}");
            assert!(!fields.contains_key("unevaluatedProperties"), "{place}");
            assert!(!fields.values().any(Value::is_boolean), "{place}: quicktype knows no such schema");
        });
    }
}

#[test]
fn every_definition_has_its_name_as_title_and_a_description() {
    for schema in every_schema() {
        let definitions = schema["$defs"].as_object().into_iter().flatten();
        for (name, definition) in definitions {
            assert_eq!(definition["title"], name.as_str());
            assert!(definition["description"].is_string(), "{name}");
        }
    }
}

#[test]
fn a_type_of_several_messages_is_the_same_in_each() {
    let together = portable::all_definitions(&all());
    for message in all() {
        for (name, definition) in message.definitions() {
            assert_eq!(definition, &together[name], "{name}");
        }
    }
}

#[test]
fn replies_and_events_are_unions_of_variants_with_names() {
    for (message, names) in [
        (Message::TokenReply, &["TokenReplyOk", "TokenReplyError"][..]),
        (Message::WorkspaceStartReply, &["WorkspaceStartReplyOk", "WorkspaceStartReplyError"]),
        (Message::TokenStoreReply, &["TokenStoreReplyOk", "TokenStoreReplyError"]),
        (Message::TokenReportReply, &["TokenReportReplyOk", "TokenReportReplyError"]),
        (
            Message::Event,
            &[
                "EventTokenReauthorizationRequired",
                "EventTokenRefreshed",
                "EventProviderUnavailable",
                "EventProviderRecovered",
                "EventProviderMisconfigured",
            ],
        ),
    ] {
        let schema = document(message).expect("a schema");
        let references: Vec<Value> =
            names.iter().map(|name| json!({"$ref": format!("#/$defs/{name}")})).collect();
        assert_eq!(schema["oneOf"], Value::from(references));
        let tag = if message == Message::Event { "event" } else { "status" };
        for name in names {
            let variant = &schema["$defs"][name];
            assert!(variant["properties"][tag]["const"].is_string(), "{name}");
            assert!(variant["required"].as_array().expect("a list").contains(&tag.into()), "{name}");
        }
    }
}

#[test]
fn the_enums_have_every_word_of_the_contract() {
    let schema = portable::bundle(&all());
    let words = |name: &str| schema["$defs"][name]["enum"].as_array().cloned().expect("an enum");
    let sorted = |mut words: Vec<Value>| {
        words.sort_by_key(ToString::to_string);
        words
    };
    let codes = ErrorCode::ALL.map(|code| code.name().into()).to_vec();
    assert_eq!(sorted(words("ErrorCode")), sorted(codes));
    assert_eq!(words("EventKind"), Event::NAMES.map(Value::from));
    assert_eq!(words("Refresh"), ["none", "reserved", "opportunistic", "required"]);
    assert_eq!(words("ReportResult"), ["refreshed", "held", "withdrawn", "not_current"]);
}

#[test]
fn every_reference_of_the_asyncapi_document_leads_somewhere() {
    let document = asyncapi::document().expect("a document");
    let mut count = 0;
    each(&document, "", &mut |place, fields| {
        if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{place}: {reference}");
            count += 1;
        }
    });
    assert!(count > 50, "{count}");
    for kind in MessageKind::ALL {
        let operation = &document["operations"][kind.routing_key()];
        assert_eq!(operation["reply"]["address"]["location"], "$message.header#/reply_to");
        assert_eq!(document["channels"][kind.routing_key()]["bindings"]["amqp"]["is"], "routingKey");
    }
}
