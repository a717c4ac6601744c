mod documents;
mod examples;

use serde_json::{Value, json};
use tokenkeeper::contract::{
    Echo, ErrorBody, ErrorCode, ErrorReason, ErrorReply, GrantedToken, MessageKind, Refresh, RefreshCause,
    Reply, ReportResult, SealedContent, Status, TokenGrant, TokenValue, UnknownFields, Warning, decode,
    decode_noting,
};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::sealed_box::SecretKey;
use tokenkeeper_testkit::schema::Validator;

use super::*;

fn validator(message: Message) -> Validator {
    Validator::of(document(message).expect("a schema"))
}

fn request(fields: Value) -> Value {
    merged(json!({"user_id": "u-1", "host": "git.example.org"}), fields)
}

fn start(fields: Value) -> Value {
    let good =
        json!({"workspace_id": "ws-1", "user_id": "u-1", "repositories": ["https://git.example.org/p/r"]});
    merged(good, fields)
}

fn login(token: Value) -> Value {
    request(json!({"token": merged(json!({"value": "t"}), token)}))
}

const PUBLIC_KEY: &str = "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw=";
/// X25519 ignores the highest bit.
const LOW_ORDER: &str = "7P///////////////////////////////////////38=";

fn sealed(fields: Value) -> Value {
    merged(request(json!({"sealed": "A".repeat(68)})), fields)
}

/// `null` takes a field out.
fn merged(mut good: Value, fields: Value) -> Value {
    let (Value::Object(good_fields), Value::Object(fields)) = (&mut good, fields) else { panic!("objects") };
    for (name, value) in fields {
        match value {
            Value::Null => good_fields.remove(&name),
            value => good_fields.insert(name, value),
        };
    }
    good
}

#[test]
fn a_request_fits_its_schema_exactly_when_a_worker_takes_it() {
    use MessageKind::{TokenReport, TokenRequest, TokenStore, WorkspaceStart};
    let url = "https://git.example.org/p/r";
    for (kind, body) in [
        (TokenRequest, request(json!({}))),
        (TokenRequest, request(json!({"later": [1]}))),
        (TokenRequest, request(json!({"status": "ok"}))),
        (WorkspaceStart, start(json!({"status": "error"}))),
        (TokenStore, merged(login(json!({})), json!({"status": {}}))),
        (TokenRequest, json!({"user_id": "u-1", "host": "h", "requested_lifetime_secs": null})),
        (TokenRequest, request(json!({"requested_lifetime_secs": 1}))),
        (TokenRequest, request(json!({"requested_lifetime_secs": 86_400}))),
        (TokenRequest, request(json!({"requested_lifetime_secs": 0}))),
        (TokenRequest, request(json!({"requested_lifetime_secs": 86_401}))),
        (TokenRequest, request(json!({"requested_lifetime_secs": 1.5}))),
        (TokenRequest, request(json!({"requested_lifetime_secs": "5m"}))),
        (TokenRequest, request(json!({"user_id": null}))),
        (TokenRequest, request(json!({"user_id": ""}))),
        (TokenRequest, request(json!({"user_id": 7}))),
        (TokenRequest, request(json!({"user_id": "ü".repeat(255)}))),
        (TokenRequest, request(json!({"user_id": "u".repeat(256)}))),
        (TokenRequest, request(json!({"user_id": "a\nb"}))),
        (TokenRequest, request(json!({"user_id": "a\u{85}b"}))),
        (TokenRequest, request(json!({"user_id": "a\u{202e}b"}))),
        (TokenRequest, request(json!({"user_id": "a\u{2028}b"}))),
        (TokenRequest, request(json!({"user_id": "a\u{61c}b"}))),
        (TokenRequest, request(json!({"user_id": "a\u{202f}b\u{200d}c\u{2065}"}))),
        (TokenRequest, request(json!({"host": null}))),
        (TokenRequest, request(json!({"host": "git\u{9b}.example.org"}))),
        (TokenRequest, request(json!({"host": "git\u{2066}.example.org"}))),
        (TokenRequest, request(json!({"host": "gít.example.org"}))),
        (TokenRequest, request(json!({"host": "git.example.org:8443"}))),
        (TokenRequest, request(json!({"host": "[::1]:8443"}))),
        (TokenRequest, request(json!({"host": "https://git.example.org"}))),
        (TokenRequest, request(json!({"host": "user@git.example.org"}))),
        (TokenRequest, request(json!({"host": "git example"}))),
        (TokenRequest, request(json!({"host": "a\\b"}))),
        (TokenRequest, request(json!({"host": ""}))),
        (TokenRequest, json!([])),
        (WorkspaceStart, start(json!({}))),
        (WorkspaceStart, start(json!({"requested_lifetime_secs": 600}))),
        (WorkspaceStart, start(json!({"requested_lifetime_secs": 0}))),
        (WorkspaceStart, start(json!({"workspace_id": null}))),
        (WorkspaceStart, start(json!({"workspace_id": "\u{0}"}))),
        (WorkspaceStart, start(json!({"repositories": []}))),
        (WorkspaceStart, start(json!({"repositories": vec![url; 16]}))),
        (WorkspaceStart, start(json!({"repositories": vec![url; 17]}))),
        (WorkspaceStart, start(json!({"repositories": url}))),
        (TokenStore, login(json!({}))),
        (
            TokenStore,
            login(json!({
                "refresh_token": "r", "username": "x", "scopes": ["repo"],
                "expires_at": "2030-01-01T00:00:00+02:00", "refresh_token_expires_at": "2030-01-01T00:00:00.000Z"
            })),
        ),
        (TokenStore, login(json!({"scopes": vec!["repo"; 300]}))),
        (TokenStore, login(json!({"scopes": "repo"}))),
        (TokenStore, login(json!({"scopes": []}))),
        (TokenStore, login(json!({"scopes": ["repo", ""]}))),
        (TokenStore, login(json!({"scopes": ["repo", "x".repeat(256)]}))),
        (TokenStore, login(json!({"scopes": ["re\u{1b}po"]}))),
        (TokenStore, login(json!({"scopes": ["re\u{2069}po"]}))),
        (TokenStore, login(json!({"username": "jdoé"}))),
        (TokenStore, login(json!({"username": "j doe"}))),
        (TokenStore, login(json!({"username": "j\u{a0}doe"}))),
        (TokenStore, login(json!({"username": "j\u{3000}doe"}))),
        (TokenStore, login(json!({"username": "j\u{200f}doe"}))),
        (TokenStore, login(json!({"value": "t t"}))),
        (TokenStore, login(json!({"value": null}))),
        (TokenStore, login(json!({"value": ""}))),
        (TokenStore, login(json!({"value": "t".repeat(32_768)}))),
        (TokenStore, login(json!({"value": "t".repeat(32_769)}))),
        (TokenStore, login(json!({"value": "t\tt"}))),
        (TokenStore, login(json!({"refresh_token": "ü"}))),
        (TokenStore, login(json!({"expires_at": "tomorrow"}))),
        (TokenStore, login(json!({"expires_at": 7}))),
        (TokenStore, request(json!({}))),
        (TokenStore, request(json!({"token": "t"}))),
        (TokenReport, request(json!({}))),
        (TokenReport, request(json!({"token_sha256": "0aF9".repeat(16)}))),
        (TokenReport, request(json!({"token_sha256": "0aF9".repeat(15)}))),
        (TokenReport, request(json!({"token_sha256": "+aF9".repeat(16)}))),
        (TokenReport, request(json!({"token_sha256": "é".repeat(32)}))),
        (TokenReport, request(json!({"token_sha256": 7}))),
    ] {
        fits_exactly(kind, &body);
    }
}

#[test]
fn a_message_with_a_seal_fits_its_schema_exactly_when_a_worker_takes_it() {
    use MessageKind::{TokenRequest, TokenStore, WorkspaceStart};
    for (kind, body) in [
        (TokenRequest, request(json!({"reply_public_key": PUBLIC_KEY}))),
        (TokenRequest, request(json!({"reply_public_key": format!(" {PUBLIC_KEY}")}))),
        (TokenRequest, request(json!({"reply_public_key": &PUBLIC_KEY[..43]}))),
        (TokenRequest, request(json!({"reply_public_key": PUBLIC_KEY.replace("w=", "x=")}))),
        (TokenRequest, request(json!({"reply_public_key": LOW_ORDER}))),
        (TokenRequest, request(json!({"reply_public_key": LOW_ORDER.replace("8=", "9=")}))),
        (TokenRequest, request(json!({"reply_public_key": "A".repeat(43) + "="}))),
        (TokenRequest, request(json!({"reply_public_key": ""}))),
        (TokenRequest, json!({"user_id": "u-1", "host": "h", "reply_public_key": null})),
        (WorkspaceStart, start(json!({"reply_public_key": PUBLIC_KEY}))),
        (WorkspaceStart, start(json!({"reply_public_key": LOW_ORDER}))),
        (TokenStore, sealed(json!({}))),
        (TokenStore, sealed(json!({"key_id": "k-1"}))),
        (TokenStore, sealed(json!({"key_id": ""}))),
        (TokenStore, sealed(json!({"key_id": "k".repeat(65)}))),
        (TokenStore, sealed(json!({"key_id": "a b"}))),
        (TokenStore, sealed(json!({"later": 1}))),
        (TokenStore, sealed(json!({"user_id": null}))),
        (TokenStore, sealed(json!({"host": null}))),
        (TokenStore, sealed(json!({"status": "ok"}))),
        (TokenStore, sealed(json!({"token": {"value": "t"}}))),
        (TokenStore, sealed(json!({"token": 7}))),
        (TokenStore, sealed(json!({"auth_id": "j"}))),
        (TokenStore, sealed(json!({"auth_name": "J."}))),
        (TokenStore, sealed(json!({"sealed": "A".repeat(64)}))),
        (TokenStore, sealed(json!({"sealed": "A".repeat(68)}))),
        (TokenStore, sealed(json!({"sealed": "A".repeat(66) + "=="}))),
        (TokenStore, sealed(json!({"sealed": "A".repeat(65) + "B=="}))),
        (TokenStore, sealed(json!({"sealed": "A".repeat(67) + "="}))),
        (TokenStore, sealed(json!({"sealed": "A".repeat(66)}))),
        (TokenStore, sealed(json!({"sealed": "-".repeat(68)}))),
        (TokenStore, sealed(json!({"sealed": 7}))),
        (TokenStore, sealed(json!({"sealed": null}))),
        (TokenStore, merged(login(json!({})), json!({"key_id": "k-1"}))),
        (TokenStore, json!({"user_id": "u", "host": "h", "token": {"value": "t"}, "sealed": null})),
        (TokenStore, json!({"user_id": "u", "host": "h", "token": null, "sealed": "A".repeat(68)})),
        (
            TokenStore,
            json!({"user_id": "u", "host": "h", "auth_id": null, "sealed": "A".repeat(68), "key_id": null}),
        ),
    ] {
        fits_exactly(kind, &body);
    }
}

fn fits_exactly(kind: MessageKind, body: &Value) {
    let message = match kind {
        MessageKind::TokenRequest => Message::TokenRequest,
        MessageKind::WorkspaceStart => Message::WorkspaceStart,
        MessageKind::TokenStore => Message::TokenStore,
        MessageKind::TokenReport => Message::TokenReport,
    };
    let taken = decode(kind, body.to_string().as_bytes());
    let fits = validator(message).takes(body);
    assert_eq!(fits, taken.is_ok(), "{body}: {:?}", taken.err());
}

fn granted(expires_at: Option<Timestamp>, warnings: Vec<Warning>) -> TokenReply {
    with(TokenValue::Clear("t".into()), expires_at, warnings)
}

fn with_value(value: TokenValue) -> TokenReply {
    with(value, None, Vec::new())
}

fn with(value: TokenValue, expires_at: Option<Timestamp>, warnings: Vec<Warning>) -> TokenReply {
    let time = Timestamp::from_millis(1_577_840_700_000);
    TokenReply::Ok(TokenGrant {
        user_id: "u-1".into(),
        host: "git.example.org".into(),
        token: GrantedToken {
            value,
            username: "x".into(),
            scopes: vec!["repo".into()],
            updated_at: time,
            expires_at,
            reserved_until: time,
        },
        refresh: Refresh::Opportunistic,
        warnings,
    })
}

fn refused(echo: Echo, retry_after_secs: Option<u64>) -> ErrorReply {
    let error = ErrorBody::new(ErrorCode::ProviderUnavailable, "away");
    ErrorReply::new(echo, ErrorBody { retry_after_secs, ..error })
}

fn full_echo() -> Echo {
    Echo { user_id: Some("u".into()), host: Some("h".into()), workspace_id: Some("w".into()) }
}

fn start_reply(tokens: Vec<TokenReply>, error: Option<ErrorBody>) -> Reply {
    Reply::WorkspaceStart(WorkspaceStartReply {
        status: Status::Error,
        workspace_id: Some("ws-1".into()),
        user_id: None,
        tokens,
        error,
        warnings: Vec::new(),
    })
}

#[test]
fn every_reply_that_a_worker_writes_fits_its_schema() {
    let never = || granted(None, vec![]);
    let warned = || {
        granted(
            Some(Timestamp::from_millis(0)),
            vec![Warning::LifetimeClamped, Warning::RefreshFailed, Warning::ReservationShortened],
        )
    };
    let whole = ErrorBody::new(ErrorCode::InvalidRequest, "body");
    let key = SecretKey::generate().public_key();
    let sealed =
        TokenValue::Sealed(SealedContent::new("u-1", "git.example.org", "x", &"t".into()).seal(&key));
    for (message, reply) in [
        (Message::TokenReply, Reply::Token(never())),
        (Message::TokenReply, Reply::Token(warned())),
        (Message::TokenReply, Reply::Token(with_value(sealed))),
        (Message::TokenReply, Reply::Token(TokenReply::Error(refused(full_echo(), Some(12))))),
        (Message::TokenReply, Reply::Token(TokenReply::Error(refused(Echo::default(), None)))),
        (
            Message::WorkspaceStartReply,
            start_reply(vec![warned(), TokenReply::Error(refused(full_echo(), None))], None),
        ),
        (Message::WorkspaceStartReply, start_reply(vec![], Some(whole))),
        (Message::TokenStoreReply, Reply::Store(StoreReply::Ok { warnings: Vec::new() })),
        (Message::TokenStoreReply, Reply::Store(StoreReply::Error(refused(full_echo(), None)))),
        (
            Message::TokenReportReply,
            Reply::Report(ReportReply::Ok { result: ReportResult::NotCurrent, warnings: Vec::new() }),
        ),
        (Message::TokenReportReply, Reply::Report(ReportReply::Error(refused(full_echo(), None)))),
    ] {
        let mut reply = reply;
        let fits = |reply: &Reply| {
            let body = serde_json::from_slice(&reply.encode()).expect("JSON");
            assert!(validator(message).takes(&body), "{message:?}: {body}");
        };
        fits(&reply);
        // What the worker says of a message, it says in a reply of any kind.
        let mut unknown = UnknownFields::default();
        assert!(decode_noting(MessageKind::TokenRequest, br#"{"refreshToken":1}"#, &mut unknown).is_err());
        reply.warnings_mut().extend(unknown.into_iter().map(Warning::UnknownField));
        fits(&reply);
    }
}

#[test]
fn what_is_sealed_in_a_reply_fits_its_schema() {
    let value = "t".into();
    let content = SealedContent::new("u-1", "git.example.org", "x", &value);
    let content = serde_json::to_value(content).expect("JSON");
    assert!(validator(Message::TokenSealed).takes(&content), "{content}");
    assert!(!validator(Message::TokenSealed).takes(&changed(content, "/userinfo", None)));
}

#[test]
fn every_event_that_a_worker_tells_fits_its_schema_and_no_other_does() {
    let (host, user_id) = ("git.example.org".to_owned(), "u-1".to_owned());
    let at = Timestamp::from_millis(1_577_840_700_000);
    let reason = ErrorReason::RefreshInterrupted;
    let events = [
        Event::ReauthorizationRequired {
            host: host.clone(),
            user_id: user_id.clone(),
            at,
            generation: 1,
            reason,
        },
        Event::TokenRefreshed {
            host: host.clone(),
            user_id,
            at,
            generation: 2,
            cause: RefreshCause::Opportunistic,
            expires_at: None,
        },
        Event::ProviderUnavailable { host: host.clone(), at, retry_after_secs: 10, reason: "503".into() },
        Event::ProviderRecovered { host: host.clone(), at },
        Event::ProviderMisconfigured { host, at, since: at, reason: "invalid_grant".into() },
    ];
    let schema = validator(Message::Event);
    for event in events {
        let body: Value = serde_json::from_slice(&event.encode()).expect("JSON");
        assert!(schema.takes(&body), "{body}");
        for (pointer, wrong) in
            [("/event", Some(json!("token.lost"))), ("/host", None), ("/at", Some(json!(7)))]
        {
            let wrong = changed(body.clone(), pointer, wrong);
            assert!(!schema.takes(&wrong), "{pointer}: {wrong}");
        }
    }
}

#[test]
fn a_reply_that_no_worker_writes_does_not_fit() {
    let body =
        |reply: TokenReply| -> Value { serde_json::from_slice(&Reply::Token(reply).encode()).expect("JSON") };
    let ok = body(granted(None, vec![]));
    let error = body(TokenReply::Error(refused(Echo::default(), None)));
    for (good, pointer, wrong) in [
        (&ok, "/status", Some(json!("error"))),
        (&ok, "/status", Some(json!("fine"))),
        (&ok, "/status", None),
        (&ok, "/token", None),
        (&ok, "/token/expires_at", None),
        (&ok, "/token/value", None),
        (&ok, "/token/userinfo", None),
        (&ok, "/token/sealed", Some(json!("both"))),
        (&ok, "/token/reserved_until", Some(Value::Null)),
        (&ok, "/refresh", Some(json!("maybe"))),
        (&ok, "/warnings", Some(json!(["odd"]))),
        (&error, "/status", Some(json!("ok"))),
        (&error, "/error/code", Some(json!("odd"))),
        (&error, "/error/retryable", None),
        (&error, "/error/retry_after_secs", Some(Value::Null)),
        (&error, "/user_id", Some(Value::Null)),
    ] {
        assert!(validator(Message::TokenReply).takes(good), "{good}");
        let body = changed(good.clone(), pointer, wrong);
        assert!(!validator(Message::TokenReply).takes(&body), "{pointer}: {body}");
    }
}

/// `body` with another value at `pointer`, or without it.
fn changed(mut body: Value, pointer: &str, value: Option<Value>) -> Value {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = body.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
    match value {
        Some(value) => parent.insert(name.to_owned(), value),
        None => parent.remove(name),
    };
    body
}

#[test]
fn there_is_a_schema_for_every_message_under_its_name() {
    let mut names: Vec<String> = MessageKind::ALL
        .into_iter()
        .flat_map(|kind| [kind.routing_key(), kind.reply_type()])
        .chain(["token.sealed", "event"])
        .map(Into::into)
        .collect();
    names.sort();
    let bundle = portable::bundle(&all());
    let mut found: Vec<_> = bundle["properties"].as_object().expect("properties").keys().cloned().collect();
    found.sort();
    assert_eq!(found, names);
}
