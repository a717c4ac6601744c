//! What the Rust client writes is what a worker reads, and the other way round.

use std::fmt::Debug;
use std::path::Path;

use chrono::DateTime;
use schemars::{JsonSchema, schema_for};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenkeeper_client as client;
use tokenkeeper_client::wire;

use super::{
    Echo, ErrorBody, ErrorCode, ErrorReason, ErrorReply, Event, GrantedToken, MessageKind, Refresh,
    RefreshCause, Reply, ReportReply, ReportResult, Request, SealedContent, Status, StoreReply, TokenGrant,
    TokenReply, TokenValue, UnknownFields, Warning, WorkspaceStartReply, decode_noting, max_body_bytes,
};
use crate::domain::clock::Timestamp;
use crate::domain::escape;
use crate::domain::sealed_box::{PublicKey, SecretKey};

const USER: &str = "u-1";
const HOST: &str = "git.example.org";

fn read<T: DeserializeOwned>(reply: &Reply) -> T {
    let body = reply.encode();
    serde_json::from_slice(&body)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&body)))
}

fn grant(value: TokenValue, expires_at: Option<Timestamp>) -> TokenReply {
    let time = Timestamp::from_millis(1_577_836_800_123);
    TokenReply::Ok(TokenGrant {
        user_id: USER.to_owned(),
        host: HOST.to_owned(),
        token: GrantedToken {
            value,
            username: "x-token-auth".to_owned(),
            scopes: vec!["repo".to_owned()],
            updated_at: time,
            expires_at,
            reserved_until: time,
        },
        refresh: Refresh::Opportunistic,
        warnings: vec![Warning::LifetimeShort],
    })
}

fn error() -> ErrorBody {
    ErrorBody {
        retry_after_secs: Some(12),
        reason: Some(ErrorReason::RefreshInterrupted),
        ..ErrorBody::new(ErrorCode::ProviderUnavailable, "the host is away")
    }
}

fn refusal() -> ErrorReply {
    let echo = Echo { user_id: Some(USER.to_owned()), host: Some(HOST.to_owned()), workspace_id: None };
    ErrorReply::new(echo, error())
}

fn assert_error(told: Option<&wire::ErrorBody>) {
    let told = told.expect("an error");
    assert_eq!((&told.code, &*told.message), (&client::ErrorCode::ProviderUnavailable, "the host is away"));
    assert_eq!(
        (told.retryable, told.retry_after_secs, told.reason.as_deref()),
        (true, Some(12), Some("refresh_interrupted"))
    );
}

#[test]
fn the_client_reads_every_reply_of_a_worker() {
    let value = || TokenValue::Clear("s3cret/token".into());
    for expires_at in [None, Some(Timestamp::from_millis(1_577_836_801_000))] {
        let reply: wire::TokenReply = read(&Reply::Token(grant(value(), expires_at)));
        assert_eq!((reply.status, reply.user_id.as_deref()), (wire::Status::Ok, Some(USER)));
        assert_eq!(reply.refresh, Some(client::Refresh::Opportunistic));
        assert_eq!(reply.warnings, [client::Warning::LifetimeShort]);
        let token = reply.token.expect("a token");
        assert_eq!(token.value.expect("in clear").expose_secret(), "s3cret/token");
        assert_eq!(token.userinfo.expect("it is in clear").expose_secret(), "x-token-auth:s3cret%2Ftoken");
        assert_eq!(token.expires_at.map(|at| at.timestamp_millis()), expires_at.map(Timestamp::as_millis));
        assert_eq!(token.reserved_until.timestamp_millis(), 1_577_836_800_123);
    }

    let key = SecretKey::generate();
    let value = SecretString::from("s3cret");
    let sealed = SealedContent::new(USER, HOST, "x", &value).seal(&key.public_key());
    let reply: wire::TokenReply = read(&Reply::Token(grant(TokenValue::Sealed(sealed), None)));
    let token = reply.token.expect("a token");
    assert!(token.sealed.is_some() && token.value.is_none() && token.userinfo.is_none());

    let reply: wire::TokenReply = read(&Reply::Token(TokenReply::Error(refusal())));
    assert_eq!((reply.status, reply.host.as_deref()), (wire::Status::Error, Some(HOST)));
    assert_error(reply.error.as_ref());

    let reply: wire::WorkspaceStartReply = read(&Reply::WorkspaceStart(WorkspaceStartReply {
        status: Status::Error,
        workspace_id: Some("ws-1".to_owned()),
        user_id: Some(USER.to_owned()),
        tokens: vec![grant(TokenValue::Clear(value), None), TokenReply::Error(refusal())],
        error: None,
        warnings: Vec::new(),
    }));
    assert_eq!((reply.status, reply.workspace_id.as_deref()), (wire::Status::Error, Some("ws-1")));
    assert!(reply.tokens[0].token.is_some());
    assert_error(reply.tokens[1].error.as_ref());

    let reply: wire::WorkspaceStartReply = read(&Reply::WorkspaceStart(WorkspaceStartReply {
        status: Status::Error,
        workspace_id: None,
        user_id: None,
        tokens: Vec::new(),
        error: Some(error()),
        warnings: vec![Warning::TokenReported],
    }));
    assert_error(reply.error.as_ref());
    assert_eq!(reply.warnings, [client::Warning::TokenReported]);

    let warnings = vec![Warning::RefreshFailed];
    let reply: wire::StoreReply = read(&Reply::Store(StoreReply::Ok { warnings: warnings.clone() }));
    assert_eq!((reply.status, reply.warnings.len()), (wire::Status::Ok, 1));
    let reply: wire::StoreReply = read(&Reply::Store(StoreReply::Error(refusal())));
    assert_error(reply.error.as_ref());

    let reply: wire::ReportReply =
        read(&Reply::Report(ReportReply::Ok { result: ReportResult::NotCurrent, warnings }));
    assert_eq!(reply.result, Some(client::ReportResult::NotCurrent));
    let reply: wire::ReportReply = read(&Reply::Report(ReportReply::Error(refusal())));
    assert_error(reply.error.as_ref());
}

#[test]
fn the_client_reads_every_event_of_a_worker() {
    let (at, since) = (Timestamp::from_millis(1_000), Timestamp::from_millis(500));
    let (host, user_id) = (HOST.to_owned(), USER.to_owned());
    let (condemned, refreshed) = (user_id.clone(), user_id);
    let reason = "503".to_owned();
    let events = [
        Event::ReauthorizationRequired {
            host: host.clone(),
            user_id: condemned,
            at,
            generation: 7,
            reason: ErrorReason::RefreshTokenRefused,
        },
        Event::TokenRefreshed {
            host: host.clone(),
            user_id: refreshed,
            at,
            generation: 7,
            cause: RefreshCause::Required,
            expires_at: Some(since),
        },
        Event::ProviderUnavailable { host: host.clone(), at, retry_after_secs: 9, reason: reason.clone() },
        Event::ProviderRecovered { host: host.clone(), at },
        Event::ProviderMisconfigured { host, at, since, reason },
    ];
    assert_eq!(events.len(), Event::NAMES.len());
    for event in events {
        let read: client::Event = serde_json::from_slice(&event.encode()).unwrap();
        assert_eq!(read.kind.as_str(), event.name());
        assert!(!matches!(read.kind, client::EventKind::Other(_)), "{read:?}");
        assert_eq!((&*read.host, read.at.timestamp_millis()), (HOST, 1_000));
        match event {
            Event::ReauthorizationRequired { .. } => {
                assert_eq!((read.user_id.as_deref(), read.generation), (Some(USER), Some(7)));
                assert_eq!(read.reason.as_deref(), Some("refresh_token_refused"));
            }
            Event::TokenRefreshed { .. } => {
                assert_eq!(read.cause, Some(client::RefreshCause::Required));
                assert_eq!(read.expires_at.map(|at| at.timestamp_millis()), Some(500));
            }
            Event::ProviderUnavailable { .. } => assert_eq!(read.retry_after_secs, Some(9)),
            Event::ProviderRecovered { .. } => {}
            Event::ProviderMisconfigured { .. } => {
                assert_eq!(read.since.map(|at| at.timestamp_millis()), Some(500));
            }
        }
    }
}

/// All words of an enum of the contract, from its JSON Schema.
fn words<T: JsonSchema>() -> Vec<String> {
    fn collect(schema: &Value, into: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                into.extend(fields.get("const").and_then(Value::as_str).map(str::to_owned));
                let listed = fields.get("enum").and_then(Value::as_array).into_iter().flatten();
                into.extend(listed.filter_map(Value::as_str).map(str::to_owned));
                fields.values().for_each(|inner| collect(inner, into));
            }
            Value::Array(items) => items.iter().for_each(|inner| collect(inner, into)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&schema_for!(T).to_value(), &mut found);
    found
}

fn assert_known<Ours: JsonSchema, Theirs: DeserializeOwned + Debug>(least: usize) {
    let words = words::<Ours>();
    assert!(words.len() >= least, "{words:?}");
    for word in words {
        let read: Theirs = serde_json::from_value(Value::from(&*word)).unwrap();
        assert!(!format!("{read:?}").starts_with("Other"), "the client does not know `{word}`");
    }
}

#[test]
fn the_client_knows_every_word_of_the_contract() {
    assert_known::<ErrorCode, client::ErrorCode>(13);
    assert_known::<Refresh, client::Refresh>(4);
    assert_known::<Warning, client::Warning>(5);
    assert_known::<ReportResult, client::ReportResult>(4);
    assert_known::<RefreshCause, client::RefreshCause>(2);
    for code in words::<ErrorCode>() {
        let code = client::ErrorCode::from(std::borrow::Cow::from(code));
        assert_eq!(code.to_string(), code.as_str());
    }
}

fn decoded(kind: MessageKind, body: &impl serde::Serialize) -> Request {
    let body = serde_json::to_vec(body).unwrap();
    let mut unknown = UnknownFields::default();
    let decoded = decode_noting(kind, &body, &mut unknown);
    assert!(unknown.is_empty(), "{unknown:?}: {}", String::from_utf8_lossy(&body));
    decoded.unwrap_or_else(|invalid| panic!("{invalid}: {}", String::from_utf8_lossy(&body)))
}

#[test]
fn a_worker_reads_every_request_of_the_client_without_a_warning() {
    let key = || Some(SecretKey::generate().public_key().to_string());
    for (lifetime, reply_public_key) in [(None, None), (Some(600), key())] {
        let is_sealed = reply_public_key.is_some();
        let request = decoded(
            MessageKind::TokenRequest,
            &wire::TokenRequest {
                user_id: USER,
                host: HOST,
                requested_lifetime_secs: lifetime,
                reply_public_key: reply_public_key.clone(),
            },
        );
        assert_eq!((request.user_id(), request.host()), (USER, Some(HOST)));
        assert_eq!(request.requested_lifetime().map(|it| it.duration().as_secs()), lifetime);
        assert_eq!(request.missing_seal().is_none(), is_sealed);
        let request = decoded(
            MessageKind::WorkspaceStart,
            &wire::WorkspaceStart {
                workspace_id: "ws-1",
                user_id: USER,
                repositories: &["https://git.example.org/p/r.git".to_owned()],
                requested_lifetime_secs: lifetime,
                reply_public_key,
            },
        );
        assert_eq!(request.requested_lifetime().map(|it| it.duration().as_secs()), lifetime);
        assert_eq!(request.missing_seal().is_none(), is_sealed);
    }

    let (value, refresh_token) = (SecretString::from("access"), SecretString::from("refresh"));
    let least = wire::Pair {
        value: wire::Secret(&value),
        refresh_token: None,
        username: None,
        scopes: None,
        expires_at: None,
        refresh_token_expires_at: None,
    };
    let all = wire::Pair {
        refresh_token: Some(wire::Secret(&refresh_token)),
        username: Some("x"),
        scopes: Some(&["repo".to_owned()]),
        expires_at: DateTime::from_timestamp_millis(1_577_836_800_123),
        refresh_token_expires_at: DateTime::from_timestamp_millis(1_577_836_800_456),
        ..least.clone()
    };
    let login =
        |auth, token| wire::TokenStore { user_id: USER, host: HOST, auth_id: auth, auth_name: auth, token };
    let Request::Store(store) = decoded(MessageKind::TokenStore, &login(None, least)) else {
        panic!("a login")
    };
    assert!(
        store.token.refresh_token.is_none() && store.token.expires_at.is_none() && store.auth_id.is_none()
    );
    let Request::Store(store) = decoded(MessageKind::TokenStore, &login(Some("jdoe"), all)) else {
        panic!("a login")
    };
    assert_eq!(store.token.value.expose_secret(), "access");
    assert_eq!(store.token.refresh_token.expect("it is there").expose_secret(), "refresh");
    assert_eq!(store.token.expires_at, Some(Timestamp::from_millis(1_577_836_800_123)));
    assert_eq!(store.token.refresh_token_expires_at, Some(Timestamp::from_millis(1_577_836_800_456)));
    assert_eq!(store.auth_id.expect("it is there").as_str(), "jdoe");

    let sealed = "A".repeat(72);
    let request = decoded(
        MessageKind::TokenStore,
        &wire::SealedTokenStore { user_id: USER, host: HOST, sealed, key_id: Some("k-1") },
    );
    assert!(matches!(request, Request::SealedStore(_)));

    let digest = "0a".repeat(32);
    let report = wire::TokenReport { user_id: USER, host: HOST, token_sha256: &digest };
    assert!(matches!(decoded(MessageKind::TokenReport, &report), Request::Report(_)));
}

#[test]
fn the_client_sends_no_body_that_a_worker_would_refuse_for_its_length() {
    for kind in MessageKind::ALL {
        let same = match kind {
            MessageKind::TokenRequest => client::MessageKind::TokenRequest,
            MessageKind::WorkspaceStart => client::MessageKind::WorkspaceStart,
            MessageKind::TokenStore => client::MessageKind::TokenStore,
            MessageKind::TokenReport => client::MessageKind::TokenReport,
        };
        assert_eq!((same.routing_key(), same.longest_body()), (kind.routing_key(), max_body_bytes(kind)));
    }
}

#[test]
fn the_client_shows_text_of_others_as_the_worker_does() {
    for symbol in '\0'..=char::MAX {
        let text = symbol.to_string();
        let shown = client::Warning::from(std::borrow::Cow::from(&*text)).to_string();
        assert_eq!(shown, escape::line(&text), "{symbol:?}");
    }
}

#[test]
fn the_client_seals_to_no_key_that_a_worker_would_refuse() {
    let schema = schema_for!(PublicKey).to_value();
    let refused = schema["not"]["enum"].as_array().expect("the keys of low order");
    assert!(refused.len() >= 14, "{refused:?}");
    for key in refused {
        let key = key.as_str().expect("base64");
        assert!(PublicKey::try_from(std::borrow::Cow::from(key)).is_err(), "{key}");
        assert!(client::DeploymentKey::new(key).is_err(), "{key}");
    }
    assert!(client::DeploymentKey::new(&SecretKey::generate().public_key().to_string()).is_ok());
}

#[test]
fn the_client_uses_nothing_of_the_worker() {
    #[derive(Deserialize)]
    struct Manifest {
        dependencies: toml::Table,
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/rust/Cargo.toml");
    let manifest: Manifest = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    for name in manifest.dependencies.keys() {
        let is_ours = name.starts_with("tokenkeeper");
        let is_large = ["sea-orm", "sqlx", "axum", "hyper", "reqwest", "clap"].contains(&&**name);
        assert!(!is_ours && !is_large, "who asks for tokens would build {name}");
    }
}
