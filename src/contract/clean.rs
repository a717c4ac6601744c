//! Which bodies are known to hold no secret. Only these may lie in the dead letters in clear.
//!
//! A secret may stand in any place where a publisher put it by mistake: behind a misspelled key, in a nested object, in a clone
//! URL, in a body that is cut off. So a body is judged by what it may have, and not by what looks like a secret.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Number;
use url::Url;

use super::clone_url::CloneUrl;
use super::request::MessageKind;
use crate::domain::text::{Host, UserId, WorkspaceId};

/// Whether a body of this kind is known to hold no secret. None: no message of the contract, so perhaps a parked pair.
///
/// Never of a `token.store`, sealed or not, and never of a `token.report`: a publisher may send a token in place of its digest. Nor of
/// a request with a `reply_public_key`: a secret key looks the same.
pub fn holds_no_secret(kind: Option<MessageKind>, body: &[u8]) -> bool {
    match kind {
        Some(MessageKind::TokenStore | MessageKind::TokenReport) => false,
        // An empty body needs no seal.
        _ if body.is_empty() => true,
        Some(MessageKind::TokenRequest | MessageKind::WorkspaceStart) => {
            serde_json::from_slice::<CleanRequest>(body).is_ok()
        }
        None => serde_json::from_slice::<SealedPair>(body).is_ok(),
    }
}

/// A request, of which fields may be missing or out of range.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read to be judged")]
struct CleanRequest {
    user_id: Option<UserId>,
    host: Option<Host>,
    workspace_id: Option<WorkspaceId>,
    requested_lifetime_secs: Option<Number>,
    repositories: Option<Vec<CleanUrl>>,
}

/// A parked pair (`store/parked.rs`), which is encrypted already.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read to be judged")]
struct SealedPair {
    host: Host,
    entry_id: i64,
    generation: i64,
    holder: String,
    identity_id: i64,
    key_id: String,
    sealed: String,
}

/// A clone URL without user info, query and fragment, but for the user `git` of ssh.
#[derive(Deserialize)]
#[serde(try_from = "Cow<'_, str>")]
struct CleanUrl;

impl TryFrom<Cow<'_, str>> for CleanUrl {
    type Error = &'static str;

    fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
        const REASON: &str = "may hold a secret";
        CloneUrl::try_from(Cow::Borrowed(&*text)).map_err(|_| REASON)?;
        let is_clean = if text.contains("://") {
            Url::parse(&text).is_ok_and(|url| {
                matches!(url.username(), "" | "git")
                    && url.password().is_none()
                    && url.query().is_none()
                    && url.fragment().is_none()
            })
        } else {
            text.rsplit_once('@').is_none_or(|(user, _)| matches!(user, "git" | "[git"))
        };
        is_clean.then_some(Self).ok_or(REASON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use MessageKind::{TokenReport, TokenRequest, TokenStore, WorkspaceStart};

    #[test]
    fn what_may_hold_a_secret_is_not_clean_wherever_it_stands() {
        for (kind, body) in [
            (Some(TokenStore), "{}"),
            (Some(TokenStore), ""),
            (Some(TokenReport), r#"{"user_id":"u","host":"h"}"#),
            (Some(TokenRequest), r#"{"user_id":"u","token":"t"}"#),
            (Some(TokenRequest), r#"{"\u0074oken":"t"}"#),
            (Some(TokenRequest), r#"{"user_id":"u","host":"h","auth":{"password":"s3cret"}}"#),
            (Some(TokenRequest), r#"{"user_id":{"client_secret":"s3cret"},"host":"h"}"#),
            (Some(TokenRequest), r#"{"user_id":"u","user_id":"s3cret","host":"h"}"#),
            (Some(TokenRequest), r#"{"user_id":"u","host":"s3cret/x"}"#),
            (Some(TokenRequest), r#"{"user_id":"u","host":"h","requested_lifetime_secs":"s3cret"}"#),
            (Some(TokenRequest), r#"{"user_id":"u","host":"h"} s3cret"#),
            (Some(TokenRequest), r#"{"user_id":"s3cr"#),
            (
                Some(TokenRequest),
                r#"{"user_id":"u","host":"h","reply_public_key":"B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="}"#,
            ),
            (Some(TokenRequest), "s3cret"),
            (Some(WorkspaceStart), r#"{"status":"ok","tokens":[{"token":{"value":"t"}}]}"#),
            (Some(WorkspaceStart), r#"{"repositories":["https://jdoe:s3cret@h/p"]}"#),
            (Some(WorkspaceStart), r#"{"repositories":["https://s3cret@h/p"]}"#),
            (Some(WorkspaceStart), r#"{"repositories":["https://h/p?access_token=s3cret"]}"#),
            (Some(WorkspaceStart), r#"{"repositories":["https://h/p#s3cret"]}"#),
            (Some(WorkspaceStart), r#"{"repositories":["s3cret@h:p"]}"#),
            (Some(WorkspaceStart), r#"{"repositories":["s3cret"]}"#),
            (None, r#"{"token":{}}"#),
            (None, "s3cret"),
        ] {
            assert!(!holds_no_secret(kind, body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn a_request_without_a_secret_is_clean_also_where_it_breaks_the_contract() {
        for (kind, body) in [
            (Some(TokenRequest), ""),
            (Some(TokenRequest), "{}"),
            (Some(TokenRequest), r#"{"user_id":"token","requested_lifetime_secs":0}"#),
            (Some(TokenRequest), r#"{"user_id":null,"host":"h","requested_lifetime_secs":1.5}"#),
            (Some(WorkspaceStart), r#"{"workspace_id":"w","user_id":"u","repositories":[]}"#),
            (
                Some(WorkspaceStart),
                r#"{"repositories":["https://h/p","ssh://git@h/p","git@h:p","[git@h:22]:p","h:p"]}"#,
            ),
            (None, ""),
            (
                None,
                r#"{"host":"h","entry_id":1,"generation":2,"holder":"w","identity_id":3,"key_id":"k","sealed":"…"}"#,
            ),
        ] {
            assert!(holds_no_secret(kind, body.as_bytes()), "{body}");
        }
    }
}
