//! What upstream publishes. Reading checks: a value of these types is valid.

use std::fmt;
use std::marker::PhantomData;

use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

use super::clone_url::Repository;
use super::lifetime::LifetimeSecs;
use super::store_message::{SealedStoreRequest, StoreRequest};
use crate::domain::clock::Timestamp;
use crate::domain::sealed_box::PublicKey;
use crate::domain::text::{Host, ShortText, UserId, Username, WorkspaceId};
use crate::domain::token::{MAX_TOKEN_LEN, is_usable_token};

/// The kinds of message, each with its routing key, queue and type of reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MessageKind {
    /// One token of one user.
    #[serde(rename = "token.request")]
    TokenRequest,
    /// The tokens a workspace needs to clone its repositories.
    #[serde(rename = "workspace.start")]
    WorkspaceStart,
    /// A pair that a login flow obtained.
    #[serde(rename = "token.store")]
    TokenStore,
    /// A token that a host rejected.
    #[serde(rename = "token.report")]
    TokenReport,
}

impl MessageKind {
    pub const ALL: [Self; 4] =
        [Self::TokenRequest, Self::WorkspaceStart, Self::TokenStore, Self::TokenReport];

    /// The kinds that have partitions: they come often, and meet other messages of the same user.
    pub const PARTITIONED: [Self; 3] = [Self::TokenRequest, Self::WorkspaceStart, Self::TokenStore];

    /// Also the kind's name in logs and metrics.
    pub const fn routing_key(self) -> &'static str {
        match self {
            Self::TokenRequest => "token.request",
            Self::WorkspaceStart => "workspace.start",
            Self::TokenStore => "token.store",
            Self::TokenReport => "token.report",
        }
    }

    pub fn queue(self, prefix: &str) -> String {
        let name = match self {
            Self::TokenRequest => "token-requests",
            Self::WorkspaceStart => "workspace-starts",
            Self::TokenStore => "token-stores",
            Self::TokenReport => "token-reports",
        };
        format!("{prefix}.{name}")
    }

    /// The AMQP `type` of its reply.
    pub const fn reply_type(self) -> &'static str {
        match self {
            Self::TokenRequest => "token.reply",
            Self::WorkspaceStart => "workspace.start.reply",
            Self::TokenStore => "token.store.reply",
            Self::TokenReport => "token.report.reply",
        }
    }

    /// Whether a publisher must say where the reply goes.
    pub const fn needs_reply_to(self) -> bool {
        match self {
            Self::TokenRequest | Self::WorkspaceStart => true,
            Self::TokenStore | Self::TokenReport => false,
        }
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.routing_key())
    }
}

/// A decoded message.
#[derive(Debug)]
pub enum Request {
    /// `token.request`
    Token(TokenRequest),
    /// `workspace.start`
    WorkspaceStart(WorkspaceStartRequest),
    /// `token.store`
    Store(Box<StoreRequest>),
    /// `token.store`, with a pair that is not opened yet
    SealedStore(Box<SealedStoreRequest>),
    /// `token.report`
    Report(ReportRequest),
}

impl Request {
    /// The platform's user.
    pub fn user_id(&self) -> &str {
        match self {
            Self::Token(request) => request.user_id.as_str(),
            Self::WorkspaceStart(request) => request.user_id.as_str(),
            Self::Store(request) => request.user_id.as_str(),
            Self::SealedStore(request) => request.user_id.as_str(),
            Self::Report(request) => request.user_id.as_str(),
        }
    }

    /// The lifetime that the message names itself.
    pub fn requested_lifetime(&self) -> Option<LifetimeSecs> {
        match self {
            Self::Token(request) => request.requested_lifetime_secs,
            Self::WorkspaceStart(request) => request.requested_lifetime_secs,
            Self::Store(_) | Self::SealedStore(_) | Self::Report(_) => None,
        }
    }

    /// The provider's host, where the message is about one.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Token(request) => Some(request.host.as_str()),
            Self::WorkspaceStart(_) => None,
            Self::Store(request) => Some(request.host.as_str()),
            Self::SealedStore(request) => Some(request.host.as_str()),
            Self::Report(request) => Some(request.host.as_str()),
        }
    }

    /// The field by which this message would keep its token from the broker, if it does not have it.
    pub const fn missing_seal(&self) -> Option<&'static str> {
        match self {
            Self::Token(TokenRequest { reply_public_key: None, .. })
            | Self::WorkspaceStart(WorkspaceStartRequest { reply_public_key: None, .. }) => {
                Some("reply_public_key")
            }
            Self::Store(_) => Some("sealed"),
            Self::Token(_) | Self::WorkspaceStart(_) | Self::SealedStore(_) | Self::Report(_) => None,
        }
    }
}

/// `token.request`: hand out a user's token for a host.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("not" = {"required": ["status"]}))]
pub struct TokenRequest {
    /// The platform's user.
    pub user_id: UserId,
    /// The provider's host.
    pub host: Host,
    /// How long from now the token must work; 300 where left out.
    pub requested_lifetime_secs: Option<LifetimeSecs>,
    /// An X25519 public key, in base64: the reply's token is sealed to it. Left out: the token is in clear.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "PublicKey")]
    pub reply_public_key: Option<PublicKey>,
    /// Never read.
    #[serde(default, rename = "status")]
    #[schemars(skip)]
    _status: NoStatus,
}

/// `workspace.start`: hand out the tokens that a workspace needs to clone its repositories.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("not" = {"required": ["status"]}))]
pub struct WorkspaceStartRequest {
    /// The workspace; echoed in the reply.
    pub workspace_id: WorkspaceId,
    /// The platform's user.
    pub user_id: UserId,
    /// Clone URLs; their distinct hosts decide which tokens are handed out.
    #[serde(deserialize_with = "repositories")]
    #[schemars(length(min = 1, max = 16))]
    pub repositories: Vec<Repository>,
    /// How long from now the tokens must work; where left out the user's feature flag decides.
    pub requested_lifetime_secs: Option<LifetimeSecs>,
    /// An X25519 public key, in base64: the reply's tokens are sealed to it. Left out: they are in clear.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "PublicKey")]
    pub reply_public_key: Option<PublicKey>,
    /// Never read.
    #[serde(default, rename = "status")]
    #[schemars(skip)]
    _status: NoStatus,
}

/// What a workspace start asks for, without repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// A token for this host.
    TokenFor(&'a Host),
    /// The repository in this place, counted from zero, has no readable clone URL.
    Unreadable(usize),
}

impl WorkspaceStartRequest {
    /// In the order of first appearance.
    pub fn wanted(&self) -> Vec<Wanted<'_>> {
        let mut all: Vec<Wanted<'_>> = Vec::new();
        for (place, repository) in self.repositories.iter().enumerate() {
            let wanted = match repository {
                Repository::At(url) => Wanted::TokenFor(url.host()),
                Repository::Unreadable => Wanted::Unreadable(place),
            };
            if !all.contains(&wanted) {
                all.push(wanted);
            }
        }
        all
    }
}

/// `token.report`: the host rejected a token that was handed out.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("not" = {"required": ["status"]}))]
pub struct ReportRequest {
    /// The platform's user.
    pub user_id: UserId,
    /// The provider's host.
    pub host: Host,
    /// SHA-256 of the access token, in hexadecimal digits: which one was rejected.
    pub token_sha256: TokenDigest,
    /// Never read.
    #[serde(default, rename = "status")]
    #[schemars(skip)]
    _status: NoStatus,
}

/// SHA-256 of an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9A-Fa-f]{64}$"))]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Whether it is that of this token.
    pub fn is_of(&self, token: &SecretString) -> bool {
        self.0 == <[u8; 32]>::from(Sha256::digest(token.expose_secret()))
    }
}

impl TryFrom<String> for TokenDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const SHAPE: &str = "must be the SHA-256 of the token: 64 hexadecimal digits";
        if text.len() != 64 || !text.is_ascii() {
            return Err(SHAPE);
        }
        let mut digest = [0; 32];
        for (place, byte) in digest.iter_mut().enumerate() {
            let digits = text.get(2 * place..2 * place + 2).filter(|digits| !digits.starts_with('+'));
            *byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or(SHAPE)?;
        }
        Ok(Self(digest))
    }
}

/// The absence of `status`. Every reply has that field, so a request with it is a reply that came back, whose other fields
/// could be those of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct NoStatus;

impl NoStatus {
    pub(super) const REFUSAL: &str = "stands in replies alone, so this is no request";
}

impl<'de> Deserialize<'de> for NoStatus {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom(Self::REFUSAL))
    }
}

/// A pair as a login flow obtained it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct StoredPair {
    /// The access token.
    #[serde(deserialize_with = "token_value")]
    #[schemars(with = "String", length(min = 1, max = 32768), regex(pattern = "^[!-~]*$"))]
    pub value: SecretString,
    /// The refresh token; left out: the pair cannot be refreshed.
    #[serde(default, deserialize_with = "optional_token_value")]
    #[schemars(with = "Option<String>", length(min = 1, max = 32768), regex(pattern = "^[!-~]*$"))]
    pub refresh_token: Option<SecretString>,
    /// Git user name that goes with the token; the provider's where left out.
    pub username: Option<Username>,
    /// The scopes that were granted.
    pub scopes: Option<Vec<ShortText>>,
    /// When the access token expires; left out: never.
    pub expires_at: Option<Timestamp>,
    /// When the refresh token expires; left out: not known.
    pub refresh_token_expires_at: Option<Timestamp>,
}

/// A token from a login flow must be usable, as a refreshed one must, and have no blanks. No provider issues blanks, and they
/// break URLs and credential lines. (A refreshed token with blanks is kept all the same: the user has no other.)
fn check_token(token: &SecretString) -> Result<(), &'static str> {
    let token = token.expose_secret();
    if !(1..=MAX_TOKEN_LEN).contains(&token.len()) {
        return Err("must be 1 to 32768 bytes");
    }
    if !is_usable_token(token) || token.contains(' ') {
        return Err("must be printable ASCII without blanks");
    }
    Ok(())
}

/// Reads a field that may be left out and must not be null. A null where a key should be is a requester's mistake, which would cost
/// it the seal.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads a struct only from an object. Serde alone would also take an array.
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct ObjectOnly<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectOnly<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(fields))
        }
    }

    deserializer.deserialize_map(ObjectOnly(PhantomData))
}

fn token_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    let token = SecretString::from(String::deserialize(deserializer)?);
    check_token(&token).map_err(de::Error::custom)?;
    Ok(token)
}

fn optional_token_value<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SecretString>, D::Error> {
    let Some(token) = Option::<String>::deserialize(deserializer)?.map(SecretString::from) else {
        return Ok(None);
    };
    check_token(&token).map_err(de::Error::custom)?;
    Ok(Some(token))
}

fn repositories<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Repository>, D::Error> {
    let repositories = Vec::<Repository>::deserialize(deserializer)?;
    if (1..=16).contains(&repositories.len()) {
        Ok(repositories)
    } else {
        Err(de::Error::custom("must be 1 to 16 clone URLs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_hexadecimal_digits_however_json_spells_them() {
        let digest = "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0";
        let read = |text: String| serde_json::from_str::<TokenDigest>(&text);
        for spelled in [
            format!("\"{digest}\""),
            format!("\"{}\"", digest.to_uppercase()),
            format!("\"\\u00{:x}{}\"", digest.as_bytes()[0], &digest[1..]),
        ] {
            let read = read(spelled.clone()).unwrap_or_else(|error| panic!("{spelled}: {error}"));
            assert!(read.is_of(&"s3cret".into()) && !read.is_of(&"another".into()), "{spelled}");
        }
        for wrong in ["\"\"".to_owned(), format!("\"{}\"", &digest[1..]), format!("\"+{}\"", &digest[1..])] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
