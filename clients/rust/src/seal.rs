//! Sealed boxes (libsodium's `crypto_box_seal`): replies that the broker cannot read, and logins.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crypto_box::aead::OsRng;
use crypto_box::{PublicKey, SecretKey};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::error::{Error, UnusableReply};

/// What the box of a token holds, and what must not stand beside it.
const IN_THE_BOX: [&str; 2] = ["value", "userinfo"];

/// The key pair of one request.
pub(crate) struct ReplyKey(SecretKey);

impl ReplyKey {
    pub(crate) fn new() -> Self {
        Self(SecretKey::generate(&mut OsRng))
    }

    /// For the field `reply_public_key`.
    pub(crate) fn public_key(&self) -> String {
        BASE64.encode(self.0.public_key().as_bytes())
    }

    /// The reply with each `token.sealed` replaced by what lies in it. `user`: whom the request was about.
    pub(crate) fn open(&self, user: &str, reply: &[u8]) -> Result<Vec<u8>, UnusableReply> {
        let reply = serde_json::from_slice(reply).map_err(|_| UnusableReply::NotUnderstood)?;
        let mut reply: Map<String, Value> = reply;
        // Both places, whatever was asked: a list beside it must not keep a token in clear from being noticed.
        self.open_token(user, &mut reply)?;
        let tokens = reply.get_mut("tokens").and_then(Value::as_array_mut);
        for element in tokens.into_iter().flatten().filter_map(Value::as_object_mut) {
            self.open_token(user, element)?;
        }
        Ok(Value::Object(reply).to_string().into_bytes())
    }

    /// An error has no token, and stays as it is.
    fn open_token(&self, user: &str, reply: &mut Map<String, Value>) -> Result<(), UnusableReply> {
        let host = reply.get("host").and_then(Value::as_str).map(str::to_owned);
        let Some(Value::Object(token)) = reply.get_mut("token") else { return Ok(()) };
        if IN_THE_BOX.iter().any(|field| token.contains_key(*field)) {
            return Err(UnusableReply::NotSealed);
        }
        let sealed = token.remove("sealed").ok_or(UnusableReply::NotSealed)?;
        let sealed = sealed.as_str().and_then(|text| BASE64.decode(text).ok());
        let opened = sealed.and_then(|sealed| self.0.unseal(&sealed).ok()).map(Zeroizing::new);
        let opened = opened.ok_or(UnusableReply::NotOpened)?;
        let opened = serde_json::from_slice(&opened).map_err(|_| UnusableReply::NothingSealed)?;
        let mut opened: Map<String, Value> = opened;
        let inside = |field: &str| opened.get(field).and_then(Value::as_str);
        let is_ours = inside("user_id") == Some(user) && host.is_some() && inside("host") == host.as_deref();
        if !is_ours {
            return Err(UnusableReply::SealedForSomebodyElse);
        }
        for field in IN_THE_BOX {
            if let Some(inside) = opened.remove(field) {
                token.insert(field.to_owned(), inside);
            }
        }
        Ok(())
    }
}

/// The public keys of low order, without their highest bit, which X25519 ignores. With one of them everybody computes the same
/// shared secret, so everybody could open the box. The list is that of libsodium; a test of the contract compares it with the
/// worker's.
const LOW_ORDER: [[u8; 32]; 7] = {
    const fn near_p(lowest: u8) -> [u8; 32] {
        let mut bytes = [0xff; 32];
        bytes[0] = lowest;
        bytes[31] = 0x7f;
        bytes
    }
    let zero = [0; 32];
    let mut one = zero;
    one[0] = 1;
    [
        zero,
        one,
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
            0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
            0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
        ],
        near_p(0xec),
        near_p(0xed),
        near_p(0xee),
    ]
};

/// The public key of a deployment, which logins are sealed to: `tokenkeeper keys public` prints it.
#[derive(Clone)]
pub struct DeploymentKey {
    key: PublicKey,
    id: Option<String>,
}

impl DeploymentKey {
    /// Reads a key: 32 bytes in base64, with padding.
    ///
    /// # Errors
    /// [`Error::Invalid`]: it is not, or it is a key of low order (all zeros, for example), to which nothing can be sealed.
    pub fn new(base64: &str) -> Result<Self, Error> {
        const SHAPE: Error = Error::Invalid("the public key must be 32 bytes in base64, with padding");
        let bytes = BASE64.decode(base64.trim()).map_err(|_| SHAPE)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| SHAPE)?;
        let mut without_highest_bit = bytes;
        without_highest_bit[31] &= 0x7f;
        if LOW_ORDER.contains(&without_highest_bit) {
            return Err(Error::Invalid("the public key is of low order: everybody could open the login"));
        }
        Ok(Self { key: bytes.into(), id: None })
    }

    /// The id of the key, so that a worker need not try its keys: `tokenkeeper keys public --json` prints it.
    #[must_use]
    pub fn with_id(self, id: impl Into<String>) -> Self {
        Self { id: Some(id.into()), ..self }
    }

    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// In base64.
    pub(crate) fn seal(&self, content: &[u8]) -> Result<String, Error> {
        let sealed = self.key.seal(&mut OsRng, content);
        sealed
            .map(|sealed| BASE64.encode(sealed))
            .map_err(|_| Error::Invalid("the login is too long to seal"))
    }
}

/// Shows no key: somebody may have given a secret one in its place.
impl fmt::Debug for DeploymentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeploymentKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sealed_for(key: &ReplyKey, user: &str, host: &str) -> String {
        let content = json!({"user_id": user, "host": host, "value": "s3cret", "userinfo": "x:s3cret"});
        BASE64.encode(key.0.public_key().seal(&mut OsRng, content.to_string().as_bytes()).unwrap())
    }

    fn open(key: &ReplyKey, reply: &Value) -> Result<Value, UnusableReply> {
        let opened = key.open("u-1", reply.to_string().as_bytes())?;
        Ok(serde_json::from_slice(&opened).unwrap())
    }

    #[test]
    fn every_token_of_a_reply_is_opened_and_errors_stay_as_they_are() {
        let key = ReplyKey::new();
        let error = json!({"status": "error", "host": "h-2", "error": {"code": "unknown_host"}});
        let sealed =
            json!({"host": "h-1", "token": {"sealed": sealed_for(&key, "u-1", "h-1"), "username": "x"}});
        let opened =
            json!({"host": "h-1", "token": {"value": "s3cret", "userinfo": "x:s3cret", "username": "x"}});
        assert_eq!(open(&key, &sealed).unwrap(), opened);
        assert_eq!(open(&key, &error).unwrap(), error);
        let start = json!({"tokens": [sealed, error]});
        assert_eq!(open(&key, &start).unwrap(), json!({"tokens": [opened, error]}));
    }

    #[test]
    fn a_token_in_clear_is_noticed_in_whichever_place_it_stands() {
        let key = ReplyKey::new();
        let clear = json!({"host": "h-1", "token": {"value": "s3cret"}});
        let mut beside_an_empty_list = clear.clone();
        beside_an_empty_list["tokens"] = json!([]);
        let mut beside_an_error = clear.clone();
        beside_an_error["tokens"] = json!([{"status": "error"}]);
        for reply in [beside_an_empty_list, beside_an_error, json!({"tokens": [clear]})] {
            assert_eq!(open(&key, &reply), Err(UnusableReply::NotSealed), "{reply}");
        }
    }

    #[test]
    fn a_box_that_names_no_host_is_nobodys() {
        let key = ReplyKey::new();
        let content = json!({"user_id": "u-1", "value": "s3cret", "userinfo": "x:s3cret"});
        let sealed = key.0.public_key().seal(&mut OsRng, content.to_string().as_bytes()).unwrap();
        let token = json!({"sealed": BASE64.encode(sealed)});
        for reply in [json!({"token": token}), json!({"host": null, "token": token})] {
            assert_eq!(open(&key, &reply), Err(UnusableReply::SealedForSomebodyElse), "{reply}");
        }
    }

    #[test]
    fn a_token_in_clear_or_of_somebody_else_is_not_taken() {
        let key = ReplyKey::new();
        for (token, expected) in [
            (json!({"value": "s3cret"}), UnusableReply::NotSealed),
            (json!({"sealed": sealed_for(&ReplyKey::new(), "u-1", "h-1")}), UnusableReply::NotOpened),
            (json!({"sealed": "s3cret"}), UnusableReply::NotOpened),
            (json!({"sealed": sealed_for(&key, "u-2", "h-1")}), UnusableReply::SealedForSomebodyElse),
            (json!({"sealed": sealed_for(&key, "u-1", "h-2")}), UnusableReply::SealedForSomebodyElse),
        ] {
            assert_eq!(open(&key, &json!({"host": "h-1", "token": token})), Err(expected));
        }
    }

    #[test]
    fn what_stands_beside_the_box_is_not_taken_for_what_is_in_it() {
        let key = ReplyKey::new();
        let content = json!({"user_id": "u-1", "host": "h-1", "username": "forged"});
        let sealed = key.0.public_key().seal(&mut OsRng, content.to_string().as_bytes()).unwrap();
        let reply = |beside: &str, value: Value| {
            let sealed = BASE64.encode(&sealed);
            json!({"host": "h-1", "token": {"sealed": sealed, "username": "x", beside: value}})
        };
        let opened = open(&key, &reply("username", json!("x"))).unwrap();
        assert_eq!(opened["token"], json!({"username": "x"}));
        for beside in ["value", "userinfo"] {
            for value in [json!("s3cret"), Value::Null] {
                assert_eq!(open(&key, &reply(beside, value)), Err(UnusableReply::NotSealed), "{beside}");
            }
        }
    }

    #[test]
    fn a_text_that_is_not_a_public_key_is_refused_and_no_key_is_shown() {
        for text in ["", "AAAA", "not base64 at all, but as long as one key.="] {
            assert!(matches!(DeploymentKey::new(text), Err(Error::Invalid(_))), "{text}");
        }
        let mut zero = [0; 32];
        for highest in [0, 0x80] {
            zero[31] = highest;
            let refused = DeploymentKey::new(&BASE64.encode(zero));
            assert!(matches!(refused, Err(Error::Invalid(text)) if text.contains("low order")));
        }
        let text = ReplyKey::new().public_key();
        let key = DeploymentKey::new(&format!("{text}\n")).unwrap().with_id("k-1");
        assert!(!format!("{key:?}").contains(&text) && format!("{key:?}").contains("k-1"));
    }
}
