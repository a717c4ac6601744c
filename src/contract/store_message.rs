//! `token.store`, in clear or sealed.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::decode::decode_noting;
use super::request::{MessageKind, NoStatus, Request, StoredPair, object};
use super::unknown_field::UnknownFields;
use crate::domain::sealed_box::OVERHEAD;
use crate::domain::secret::{KeyRing, LoginNotOpened, is_key_id};
use crate::domain::text::{Host, ShortText, UserId};

/// `token.store`: a user has authorised; tokenkeeper owns the pair from here on.
#[derive(Debug, Clone)]
pub struct StoreRequest {
    /// The platform's user.
    pub user_id: UserId,
    /// The provider's host.
    pub host: Host,
    /// The account's id at the provider; `user_id` where left out.
    pub auth_id: Option<ShortText>,
    /// The account's display name at the provider.
    pub auth_name: Option<ShortText>,
    /// The pair.
    pub token: StoredPair,
}

/// A `token.store` that the broker cannot read: a sealed box over the body of an ordinary one.
///
/// Whoever sees the message at the broker can send it again. So its user and host stand in the box as well, and must be those
/// outside of it: the box stores its pair for that user at that host, and for nobody else.
#[derive(Debug, Clone)]
pub struct SealedStoreRequest {
    /// The platform's user.
    pub user_id: UserId,
    /// The provider's host.
    pub host: Host,
    sealed: SealedBody,
    key_id: Option<KeyId>,
}

/// Why a sealed `token.store` is not taken. Repeats nothing that the publisher sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidSeal {
    #[error("sealed: {0}")]
    NotOpened(#[from] LoginNotOpened),
    #[error("sealed: its content is no token.store: {0}")]
    NoStore(String),
    #[error("sealed: its content is sealed again")]
    SealedTwice,
    #[error("sealed: its {0} is not that of the message")]
    OfSomebodyElse(&'static str),
}

impl SealedStoreRequest {
    /// Opens it with a key of the ring. Notes the fields that the contract does not know, also of a content that is wrong.
    ///
    /// # Errors
    /// [`InvalidSeal`]: no key opens it, or its content is not a `token.store` for the same user and host.
    pub fn open(&self, keys: &KeyRing, unknown: &mut UnknownFields) -> Result<StoreRequest, InvalidSeal> {
        let key_id = self.key_id.as_ref().map(|KeyId(id)| id.as_str());
        let content = keys.open_login(key_id, &self.sealed.0)?;
        let mut unknown_inside = UnknownFields::default();
        let decoded = decode_noting(MessageKind::TokenStore, &content, &mut unknown_inside);
        unknown.extend_from("sealed", unknown_inside);
        match decoded {
            Ok(Request::Store(request)) if request.user_id != self.user_id => {
                Err(InvalidSeal::OfSomebodyElse("user_id"))
            }
            Ok(Request::Store(request)) if request.host != self.host => {
                Err(InvalidSeal::OfSomebodyElse("host"))
            }
            Ok(Request::Store(request)) => Ok(*request),
            // Of a token.store nothing else is decoded.
            Ok(_) => Err(InvalidSeal::SealedTwice),
            Err(invalid) => Err(InvalidSeal::NoStore(invalid.reason)),
        }
    }
}

/// A body of the kind `token.store`.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "Fields")]
#[schemars(
    with = "Fields",
    description = "`token.store`: a user has authorised; tokenkeeper owns the pair from here on."
)]
pub enum StoreMessage {
    /// Its pair stands in it.
    Clear(Box<StoreRequest>),
    /// Its pair lies in a sealed box.
    Sealed(Box<SealedStoreRequest>),
}

impl From<StoreMessage> for Request {
    fn from(message: StoreMessage) -> Self {
        match message {
            StoreMessage::Clear(request) => Self::Store(request),
            StoreMessage::Sealed(request) => Self::SealedStore(request),
        }
    }
}

/// `token.store`: a user has authorised; tokenkeeper owns the pair from here on.
#[derive(Deserialize, JsonSchema)]
#[schemars(
    extend(
        "not" = {"required": ["status"]},
        "oneOf" = [
            {
                "title": "Clear", "description": "A login whose pair stands in it.",
                "required": ["token"], "properties": {"sealed": {"type": "null"}},
            },
            {
                "title": "Sealed", "description": "A login whose pair only the worker can open.",
                "required": ["sealed"],
                "properties": {
                    "sealed": {"type": "string"}, "token": false,
                    "auth_id": {"type": "null"}, "auth_name": {"type": "null"},
                },
            },
        ]
    )
)]
struct Fields {
    /// The platform's user.
    user_id: UserId,
    /// The provider's host.
    host: Host,
    /// The account's id at the provider; `user_id` where left out.
    auth_id: Option<ShortText>,
    /// The account's display name at the provider.
    auth_name: Option<ShortText>,
    /// The pair.
    #[serde(default, deserialize_with = "some_object")]
    #[schemars(with = "StoredPair")]
    token: Option<StoredPair>,
    /// In place of `token`, `auth_id` and `auth_name`: a sealed box (libsodium's `crypto_box_seal`, in base64) over the body of
    /// a `token.store` for the same user and host.
    sealed: Option<SealedBody>,
    /// Beside `sealed`: the id of the key that it is sealed to, as `tokenkeeper keys public --json` prints it. Left out: the
    /// worker tries its newest keys.
    key_id: Option<KeyId>,
    /// Never read.
    #[serde(default, rename = "status")]
    #[schemars(skip)]
    _status: NoStatus,
}

impl TryFrom<Fields> for StoreMessage {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        let Fields { user_id, host, auth_id, auth_name, token, sealed, key_id, _status } = fields;
        match (token, sealed) {
            (Some(token), None) => {
                Ok(Self::Clear(Box::new(StoreRequest { user_id, host, auth_id, auth_name, token })))
            }
            (None, Some(sealed)) if auth_id.is_none() && auth_name.is_none() => {
                Ok(Self::Sealed(Box::new(SealedStoreRequest { user_id, host, sealed, key_id })))
            }
            (None, Some(_)) => Err("auth_id and auth_name: stand in `sealed`, where there is one"),
            (Some(_), Some(_)) => Err("token: stands in `sealed`, where there is one"),
            (None, None) => Err("missing field `token`"),
        }
    }
}

/// A sealed box, as it came.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Cow<'_, str>")]
#[schemars(
    with = "String",
    extend(
        "minLength" = 68,
        "pattern" = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
    )
)]
struct SealedBody(Vec<u8>);

impl TryFrom<Cow<'_, str>> for SealedBody {
    type Error = &'static str;

    fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
        let bytes = BASE64.decode(text.as_bytes()).unwrap_or_default();
        // An empty content seals nothing.
        if bytes.len() > OVERHEAD {
            Ok(Self(bytes))
        } else {
            Err("must be a sealed box (libsodium's crypto_box_seal) in base64, with padding")
        }
    }
}

/// The id of an encryption key, as a publisher says it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Cow<'_, str>")]
#[schemars(with = "String", extend("pattern" = "^[A-Za-z0-9_.-]{1,64}$"))]
struct KeyId(String);

impl TryFrom<Cow<'_, str>> for KeyId {
    type Error = &'static str;

    fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
        if is_key_id(&text) {
            Ok(Self(text.into_owned()))
        } else {
            Err("must be 1 to 64 letters, digits, `-`, `_` or `.`")
        }
    }
}

fn some_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    object(deserializer).map(Some)
}
