//! Which account logged in, where the provider speaks OpenID Connect: the ID token that comes with a pair when the scope `openid` is
//! asked for.
//!
//! It comes from the token endpoint itself, over TLS, so its signature need not be checked (OpenID Connect Core, section 3.1.3.7).
//! The nonce binds it to the login that this process began. Where `openid` is not asked for there is none: PKCE binds the code.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::LoginError;
use crate::domain::clock::Timestamp;
use crate::domain::text::ShortText;

/// The scope that asks for an ID token.
pub(super) const OPENID: &str = "openid";

/// Bytes of an ID token.
const LONGEST: usize = 32 * 1024;

/// How far the provider's clock may be from ours, in ms.
const SKEW: i64 = 5 * 60 * 1_000;

/// An account at a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The provider's own name for it (`sub`). It never changes.
    pub id: String,
    pub name: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    aud: Audience,
    /// In seconds.
    exp: i64,
    nonce: Option<String>,
    name: Option<String>,
    preferred_username: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Reads an ID token for this client. `nonce` is that of the login, if it had one.
///
/// # Errors
/// [`LoginError::Refused`]: it is of another login or client, too old, or none.
pub(super) fn account(
    id_token: &str,
    client_id: &str,
    nonce: Option<&str>,
    now: Timestamp,
) -> Result<Account, LoginError> {
    let claims = claims(id_token).ok_or_else(|| refused("it cannot be read"))?;
    if let Some(nonce) = nonce {
        let told = claims.nonce.unwrap_or_default();
        if !bool::from(told.as_bytes().ct_eq(nonce.as_bytes())) {
            return Err(refused("it is of another login (nonce)"));
        }
    }
    let is_ours = match &claims.aud {
        Audience::One(client) => client == client_id,
        Audience::Many(clients) => clients.iter().any(|client| client == client_id),
    };
    if !is_ours {
        return Err(refused("it is for another client (aud)"));
    }
    if claims.exp.saturating_mul(1_000).saturating_add(SKEW) <= now.as_millis() {
        return Err(refused("it has expired (exp)"));
    }
    let text = |text: String| ShortText::try_from(&*text).ok().map(|text| text.to_string());
    let id = text(claims.sub).ok_or_else(|| refused("its account has no usable name (sub)"))?;
    Ok(Account { id, name: claims.name.or(claims.preferred_username).and_then(text) })
}

fn claims(id_token: &str) -> Option<Claims> {
    let mut parts = id_token.split('.');
    let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    if id_token.len() > LONGEST {
        return None;
    }
    serde_json::from_slice(&BASE64.decode(claims.trim_end_matches('=')).ok()?).ok()
}

fn refused(why: &str) -> LoginError {
    let detail = format!("the provider's ID token is refused: {why}");
    LoginError::Refused { code: "invalid_id_token".to_owned(), detail }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_577_840_700_000);

    fn token(change: impl FnOnce(&mut Value)) -> String {
        let mut claims = json!({"sub": "248289761001", "aud": "client", "exp": 1_577_840_760, "nonce": "n", "name": "J. Doe"});
        change(&mut claims);
        format!("e30.{}.c2ln", BASE64.encode(claims.to_string()))
    }

    fn read(token: &str) -> Result<Account, String> {
        account(token, "client", Some("n"), NOW).map_err(|error| error.to_string())
    }

    #[test]
    fn the_account_is_that_of_this_login_at_this_client() {
        let jdoe = Account { id: "248289761001".to_owned(), name: Some("J. Doe".to_owned()) };
        assert_eq!(read(&token(|_| {})), Ok(jdoe.clone()));
        assert_eq!(read(&token(|claims| claims["aud"] = json!(["other", "client"]))), Ok(jdoe.clone()));
        assert_eq!(read(&token(|claims| claims["exp"] = json!(1_577_840_500))), Ok(jdoe), "clocks differ");
        for (why, token) in [
            ("nonce", token(|claims| claims["nonce"] = json!("another"))),
            ("nonce", token(|claims| claims["nonce"] = Value::Null)),
            ("aud", token(|claims| claims["aud"] = json!("another"))),
            ("exp", token(|claims| claims["exp"] = json!(1_577_840_000))),
            ("sub", token(|claims| claims["sub"] = json!("a\nb"))),
            ("cannot be read", token(|claims| claims["sub"] = json!(7))),
            ("cannot be read", token(|_| {}).replace("e30.", "e30.e30.")),
            ("cannot be read", "x".repeat(100_000)),
        ] {
            let refused = read(&token).unwrap_err();
            assert!(refused.contains(why), "{why}: {refused}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_shown_is_left_out() {
        let odd = token(|claims| claims["name"] = json!("\u{202e}eoD .J"));
        assert_eq!(read(&odd).unwrap().name, None);
        let plain = token(|claims| {
            claims.as_object_mut().unwrap().remove("name");
            claims["preferred_username"] = json!("jdoe");
        });
        assert_eq!(read(&plain).unwrap().name.as_deref(), Some("jdoe"));
    }
}
