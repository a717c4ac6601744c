//! Every example is what a worker reads or writes.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokenkeeper::contract::{Request, UnknownFields};
use tokenkeeper::domain::sealed_box::PublicKey;
use tokenkeeper::domain::secret::{ExposeSecret, KeyRing};

use super::super::examples;
use super::*;

fn of(message: Message) -> Vec<Example> {
    examples::all().expect("examples").into_iter().filter(|example| example.message == message).collect()
}

#[test]
fn every_message_has_an_example_that_fits_its_schema() {
    for message in Message::value_variants() {
        let (examples, schema) = (of(*message), validator(*message));
        assert!(!examples.is_empty(), "{message:?}");
        for Example { name, body, .. } in examples {
            assert!(schema.takes(&body), "{message:?}, {name}: {body}");
        }
    }
}

#[test]
fn a_worker_reads_every_example_of_a_request_and_knows_all_its_fields() {
    for kind in MessageKind::ALL {
        let message = Message::value_variants().iter().find(|message| message.name() == kind.routing_key());
        for Example { name, body, .. } in of(*message.expect("a message of that name")) {
            let mut unknown = UnknownFields::default();
            let read = decode_noting(kind, body.to_string().as_bytes(), &mut unknown);
            read.unwrap_or_else(|error| panic!("{kind}, {name}: {error}"));
            assert_eq!(unknown.into_iter().count(), 0, "{kind}, {name}");
        }
    }
}

#[test]
fn there_is_an_example_of_every_error_every_result_and_every_event() {
    let values = |message, pointer: &str| -> Vec<Value> {
        let found = of(message).into_iter().filter_map(|example| example.body.pointer(pointer).cloned());
        found.collect()
    };
    let codes = values(Message::TokenReply, "/error/code");
    assert_eq!(codes, ErrorCode::ALL.map(|code| Value::from(code.name())));
    assert_eq!(
        values(Message::TokenReportReply, "/result"),
        ["refreshed", "held", "withdrawn", "not_current"]
    );
    assert_eq!(values(Message::Event, "/event"), Event::NAMES.map(Value::from));
}

#[test]
fn the_sealed_login_opens_with_the_key_that_its_summary_names() {
    let key = BASE64.encode([0x20; 32]);
    let keys = KeyRing::parse(&format!("k-2020:{key}")).expect("a key");
    let login = of(Message::TokenStore).into_iter().find(|example| example.name == "sealed").expect("it");
    let request = decode(MessageKind::TokenStore, login.body.to_string().as_bytes()).expect("a login");
    let Request::SealedStore(sealed) = request else { panic!("{request:?}") };
    let opened = sealed.open(&keys, &mut UnknownFields::default()).expect("it opens");
    assert_eq!(opened.token.value.expose_secret(), "example-access-token");
}

#[test]
fn the_boxes_of_replies_open_with_the_key_that_their_requests_name() {
    let mut bytes = [0; 32];
    for (byte, value) in bytes.iter_mut().zip(1..) {
        *byte = value;
    }
    let secret = SecretKey::from_bytes(&bytes);
    let request = of(Message::TokenRequest).into_iter().find(|example| example.name == "sealed").expect("it");
    let key = request.body["reply_public_key"].as_str().expect("a key");
    assert!(PublicKey::try_from(Cow::Borrowed(key)).expect("a key") == secret.public_key());

    let content = &of(Message::TokenSealed)[0].body;
    for (message, pointer) in
        [(Message::TokenReply, "/token/sealed"), (Message::WorkspaceStartReply, "/tokens/0/token/sealed")]
    {
        let reply = of(message).into_iter().find(|example| example.name == "sealed").expect("it");
        let sealed = reply.body.pointer(pointer).and_then(Value::as_str).expect("a box");
        let opened = secret.open(&BASE64.decode(sealed).expect("base64")).expect("it opens");
        assert_eq!(&serde_json::from_slice::<Value>(&opened).expect("JSON"), content);
    }
}

#[test]
fn the_report_names_the_token_of_the_examples() {
    let report = &of(Message::TokenReport)[0].body;
    let request = decode(MessageKind::TokenReport, report.to_string().as_bytes()).expect("a report");
    let Request::Report(report) = request else { panic!("{request:?}") };
    let token = of(Message::TokenReply)[0].body["token"]["value"].as_str().expect("a token").to_owned();
    assert!(report.token_sha256.is_of(&token.into()));
}
