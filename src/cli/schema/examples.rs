//! Examples of every message. Replies and events are what the worker's own types write; its own types read the requests.

use std::borrow::Cow;

use serde_json::{Value, json};
use tokenkeeper::contract::{
    Echo, ErrorBody, ErrorCode, ErrorReason, ErrorReply, Event, GrantedToken, MessageKind, Refresh,
    RefreshCause, Reply, ReportReply, ReportResult, SealedContent, Status, StoreReply, TokenGrant,
    TokenReply, TokenValue, UnknownFields, Warning, WorkspaceStartReply, decode_noting,
};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::sealed_box::PublicKey;
use tokenkeeper::domain::secret::SecretString;

use super::Message;

const USER: &str = "u-1";
const HOST: &str = "bitbucket.example.org";
const WORKSPACE: &str = "ws-1";
const USERNAME: &str = "x-token-auth";
const TOKEN: &str = "example-access-token";
const SHA_256_OF_TOKEN: &str = "6753f72e5f9ed09ace06acdf6eb4d78ddf59fe5fa2896d686e764c59d575c35b";

/// Its secret key is the bytes 1 to 32.
const PUBLIC_KEY: &str = "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw=";
/// What a worker could seal to it.
const SEALED_REPLY: &str = "\
    6GM7230uJ6RyRW9/yXxAkhyPlAiMhV1RgxtbitUaygJWYbaNBuPSrpQlCDrU7f9l+F29iWRtBe3EzJmmgbxAsdl5BUCw/CU3THMH\
    /ObQYq8x+kpx404y9XzOyaKdbZo2fMpjjhDkVqPrd1pmZxT66sS5hkIhmoqqH3ZcUHVlWIU2CWYNIxYc6OX4wd5SNT7W/3bwFuvf\
    N8qxIMKWbz8O9fNEZtGscnibHJhf3F5N";
/// What a login flow could seal to the encryption key `k-2020` whose 32 bytes are all 32.
const SEALED_LOGIN: &str = "\
    zhhk2X2waswzw2rWYEt8CZGBoPmptTIzswWhji+IVVWWnB2t6ikqiG72XWEyqX+JSwlEjG1zqgur+wHif6cBRgmEUK9/YQXTzssj\
    W9IaidO2yjR6WGB13zSmEzBiJ1raZdz2xn+5lkfwZUMmM1vS0IZhrfvsHhU8htP4zxjn7SvL8Y6nPIIO/drn6lw7RHxAymoLyOSX\
    zCrERE4jNzlGTCSBFPG+pXnu+MeVaBT5pNo9";

/// A message as it could be.
#[derive(Debug)]
pub(super) struct Example {
    pub(super) message: Message,
    /// Of its message's examples, this one.
    pub(super) name: String,
    pub(super) summary: String,
    pub(super) body: Value,
}

impl Example {
    fn new(message: Message, name: &str, summary: impl Into<String>, body: Value) -> Self {
        Self { message, name: name.to_owned(), summary: summary.into(), body }
    }
}

/// Every example, the messages in the order of the contract.
pub(super) fn all() -> anyhow::Result<Vec<Example>> {
    let mut all = requests();
    for (message, name, summary, reply) in replies() {
        let mut body = serde_json::from_slice(&reply.encode())?;
        put_the_same_box(&mut body);
        all.push(Example::new(message, &name, summary, body));
    }
    let value = SecretString::from(TOKEN);
    let sealed = serde_json::to_value(SealedContent::new(USER, HOST, USERNAME, &value))?;
    all.push(Example::new(Message::TokenSealed, "content", "What lies in the box of a sealed reply", sealed));
    for (summary, event) in events() {
        let body = serde_json::from_slice(&event.encode())?;
        all.push(Example::new(Message::Event, event.name(), summary, body));
    }
    Ok(all)
}

fn requests() -> Vec<Example> {
    let request = |message, name, summary: &str, body| Example::new(message, name, summary, body);
    vec![
        request(
            Message::TokenRequest,
            "minimal",
            "A token that works for five minutes",
            json!({"user_id": USER, "host": HOST}),
        ),
        request(
            Message::TokenRequest,
            "lifetime",
            "A token that works for an hour",
            json!({"user_id": USER, "host": HOST, "requested_lifetime_secs": 3600}),
        ),
        request(
            Message::TokenRequest,
            "sealed",
            "A token that only the requester can read; the secret key is the bytes 1 to 32",
            json!({"user_id": USER, "host": HOST, "reply_public_key": PUBLIC_KEY}),
        ),
        request(
            Message::WorkspaceStart,
            "two_hosts",
            "The tokens that clone these repositories",
            json!({
                "workspace_id": WORKSPACE, "user_id": USER, "requested_lifetime_secs": 600,
                "repositories": [format!("https://{HOST}/scm/proj/repo.git"), "git@github.com:owner/repo.git"],
            }),
        ),
        request(
            Message::WorkspaceStart,
            "sealed",
            "The same, sealed to the requester's key",
            json!({
                "workspace_id": WORKSPACE, "user_id": USER, "reply_public_key": PUBLIC_KEY,
                "repositories": [format!("https://{HOST}/scm/proj/repo.git")],
            }),
        ),
        request(
            Message::TokenStore,
            "minimal",
            "A token that never expires, and cannot be refreshed",
            json!({"user_id": USER, "host": HOST, "token": {"value": TOKEN}}),
        ),
        request(
            Message::TokenStore,
            "whole",
            "A pair with all that a provider says of it",
            json!({
                "user_id": USER, "host": HOST, "auth_id": "jdoe", "auth_name": "J. Doe",
                "token": {
                    "value": TOKEN, "refresh_token": "example-refresh-token", "username": USERNAME,
                    "scopes": ["repo"], "expires_at": "2020-01-01T02:00:00.000Z",
                    "refresh_token_expires_at": "2020-07-01T00:00:00.000Z",
                },
            }),
        ),
        request(
            Message::TokenStore,
            "sealed",
            "A pair that only the worker can read; its encryption key is 32 bytes of 0x20",
            json!({"user_id": USER, "host": HOST, "sealed": SEALED_LOGIN, "key_id": "k-2020"}),
        ),
        request(
            Message::TokenReport,
            "report",
            "The host rejected the token with this SHA-256",
            json!({"user_id": USER, "host": HOST, "token_sha256": SHA_256_OF_TOKEN}),
        ),
    ]
}

type NamedReply = (Message, String, String, Reply);

fn replies() -> Vec<NamedReply> {
    let mut all = token_replies();
    all.extend(start_replies());
    let mut other = |message, name: &str, summary: &str, reply| {
        all.push((message, name.to_owned(), summary.to_owned(), reply));
    };
    let misspelled = unknown_field(MessageKind::TokenStore, r#"{"token": {"refreshToken": "t"}}"#);
    for (name, summary, reply) in [
        ("ok", "The pair is stored", StoreReply::Ok { warnings: Vec::new() }),
        ("warning", "It is stored, and a field was not understood", StoreReply::Ok { warnings: misspelled }),
        ("error", "It is not", StoreReply::Error(refused(ErrorCode::UnknownHost))),
    ] {
        other(Message::TokenStoreReply, name, summary, Reply::Store(reply));
    }
    for (result, summary) in [
        (ReportResult::Refreshed, "There is a new token"),
        (ReportResult::Held, "Somebody holds the token; it is refreshed after that"),
        (ReportResult::Withdrawn, "There is no refresh token; it is not handed out any more"),
        (ReportResult::NotCurrent, "It is not the token that is handed out now"),
    ] {
        let reply = ReportReply::Ok { result, warnings: Vec::new() };
        other(Message::TokenReportReply, result.name(), summary, Reply::Report(reply));
    }
    let error = Reply::Report(ReportReply::Error(refused(ErrorCode::ReauthorizationRequired)));
    other(Message::TokenReportReply, "error", "The token was checked, and there is no other one", error);
    all
}

fn token_replies() -> Vec<NamedReply> {
    let reply = |name: &str, summary: &str, reply| {
        (Message::TokenReply, name.to_owned(), summary.to_owned(), Reply::Token(reply))
    };
    let mut warnings = vec![Warning::LifetimeShort, Warning::TokenReported];
    warnings.extend(unknown_field(MessageKind::TokenRequest, r#"{"lifetime": 300}"#));
    let mut all = vec![
        reply("ok", "The stored token is good for long enough", granted(Refresh::None, Vec::new())),
        reply("refreshed", "A new token", granted(Refresh::Required, Vec::new())),
        reply(
            "warnings",
            "Somebody holds the token, and a field was not understood",
            granted(Refresh::Reserved, warnings),
        ),
        reply("never_expires", "A token without an end", never_expires()),
        reply("sealed", "A token that opens with the secret key of the bytes 1 to 32", sealed()),
    ];
    all.extend(ErrorCode::ALL.map(|code| {
        let name = format!("error_{}", code.name());
        let when = if code.is_retryable() {
            "the same request may succeed later"
        } else {
            "trying again does not help"
        };
        (
            Message::TokenReply,
            name,
            format!("Error `{}`: {when}", code.name()),
            Reply::Token(TokenReply::Error(refused(code))),
        )
    }));
    all
}

fn start_replies() -> Vec<NamedReply> {
    let reply = |name: &str, summary: &str, status, tokens, error| {
        let whole = WorkspaceStartReply {
            status,
            workspace_id: Some(WORKSPACE.to_owned()),
            user_id: Some(USER.to_owned()),
            tokens,
            error,
            warnings: Vec::new(),
        };
        (Message::WorkspaceStartReply, name.to_owned(), summary.to_owned(), Reply::WorkspaceStart(whole))
    };
    let unreadable = ErrorBody::new(ErrorCode::InvalidRequest, "workspace_id: must be 1 to 255 characters");
    vec![
        reply("ok", "All tokens", Status::Ok, vec![granted(Refresh::None, Vec::new())], None),
        reply("sealed", "All tokens, each in a box", Status::Ok, vec![sealed()], None),
        reply(
            "partial",
            "One token, and a host that is away",
            Status::Error,
            vec![
                granted(Refresh::None, Vec::new()),
                TokenReply::Error(refused(ErrorCode::ProviderUnavailable)),
            ],
            None,
        ),
        reply("error", "The message as a whole is wrong", Status::Error, Vec::new(), Some(unreadable)),
    ]
}

fn granted(refresh: Refresh, warnings: Vec<Warning>) -> TokenReply {
    TokenReply::Ok(TokenGrant {
        user_id: USER.to_owned(),
        host: HOST.to_owned(),
        token: token(TokenValue::Clear(TOKEN.into()), Some(TIME + 3_600_000)),
        refresh,
        warnings,
    })
}

fn with(token: GrantedToken) -> TokenReply {
    let (user_id, host) = (USER.to_owned(), HOST.to_owned());
    TokenReply::Ok(TokenGrant { user_id, host, token, refresh: Refresh::None, warnings: Vec::new() })
}

fn never_expires() -> TokenReply {
    with(token(TokenValue::Clear(TOKEN.into()), None))
}

fn sealed() -> TokenReply {
    let value = SecretString::from(TOKEN);
    let content = SealedContent::new(USER, HOST, USERNAME, &value);
    let value = match PublicKey::try_from(Cow::Borrowed(PUBLIC_KEY)) {
        Ok(key) => TokenValue::Sealed(content.seal(&key)),
        // It is one: a test opens the box.
        Err(_) => TokenValue::Clear(value),
    };
    with(token(value, Some(TIME + 3_600_000)))
}

/// Each time that a content is sealed, another box comes of it.
fn put_the_same_box(reply: &mut Value) {
    match reply {
        Value::Object(fields) => {
            if let Some(sealed) = fields.get_mut("sealed") {
                *sealed = SEALED_REPLY.into();
            }
            fields.values_mut().for_each(put_the_same_box);
        }
        Value::Array(elements) => elements.iter_mut().for_each(put_the_same_box),
        _ => {}
    }
}

/// What the worker says of a field in this body.
fn unknown_field(kind: MessageKind, body: &str) -> Vec<Warning> {
    let mut unknown = UnknownFields::default();
    // The body is incomplete, and its fields are noted all the same.
    let _ = decode_noting(kind, body.as_bytes(), &mut unknown);
    unknown.into_iter().map(Warning::UnknownField).collect()
}

/// 2020-01-01T01:00:00.000Z
const TIME: i64 = 1_577_840_400_000;

fn token(value: TokenValue, expires_at: Option<i64>) -> GrantedToken {
    GrantedToken {
        value,
        username: USERNAME.to_owned(),
        scopes: vec!["repo".to_owned()],
        updated_at: Timestamp::from_millis(TIME - 3_600_000),
        expires_at: expires_at.map(Timestamp::from_millis),
        reserved_until: Timestamp::from_millis(TIME + 300_000),
    }
}

fn refused(code: ErrorCode) -> ErrorReply {
    let echo = Echo::of_user(USER, HOST);
    let error = ErrorBody::new(code, message(code));
    let error = match code {
        ErrorCode::ProviderUnavailable => ErrorBody { retry_after_secs: Some(12), ..error },
        ErrorCode::ReauthorizationRequired => {
            ErrorBody { reason: Some(ErrorReason::RefreshTokenRefused), ..error }
        }
        _ => error,
    };
    ErrorReply::new(echo, error)
}

const fn message(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidRequest => "requested_lifetime_secs: must be a whole number from 1 to 86400",
        ErrorCode::UnknownHost => "no provider has this host",
        ErrorCode::UserNotFound => "the user has no identity",
        ErrorCode::IdentityNotFound => "the user has no identity at this host",
        ErrorCode::TokenNotFound => "the identity has no token",
        ErrorCode::NotRefreshable => "the token is too short, and there is no refresh token",
        ErrorCode::ReauthorizationRequired => "the provider refuses the refresh token",
        ErrorCode::ProviderMisconfigured => "the provider refuses the client",
        ErrorCode::ProviderUnavailable => "the provider does not answer",
        ErrorCode::RefreshTimeout => "another worker's refresh did not end in time",
        ErrorCode::DeadlineExceeded => "the request's time is over",
        ErrorCode::Forbidden => "this publisher may not have it",
        ErrorCode::Internal => "internal error",
    }
}

fn events() -> [(&'static str, Event); 5] {
    let (host, user_id, at) = (|| HOST.to_owned(), || USER.to_owned(), Timestamp::from_millis(TIME));
    [
        (
            "The user must log in again",
            Event::ReauthorizationRequired {
                host: host(),
                user_id: user_id(),
                at,
                generation: 7,
                reason: ErrorReason::RefreshTokenRefused,
            },
        ),
        (
            "A new pair is stored",
            Event::TokenRefreshed {
                host: host(),
                user_id: user_id(),
                at,
                generation: 8,
                cause: RefreshCause::Required,
                expires_at: Some(Timestamp::from_millis(TIME + 3_600_000)),
            },
        ),
        (
            "A worker leaves this host alone",
            Event::ProviderUnavailable {
                host: host(),
                at,
                retry_after_secs: 30,
                reason: "the token endpoint answered 503".to_owned(),
            },
        ),
        ("The host works again", Event::ProviderRecovered { host: host(), at }),
        (
            "The host refuses everybody: an operator must act",
            Event::ProviderMisconfigured {
                host: host(),
                at,
                since: Timestamp::from_millis(TIME - 600_000),
                reason: "invalid_client".to_owned(),
            },
        ),
    ]
}
