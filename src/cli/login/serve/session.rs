//! The browser's session: a random cookie, and a token for forms that only pages of this process have. The process keeps nothing of
//! it, so nobody can fill its memory with sessions.

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use oauth2::CsrfToken;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokenkeeper::domain::secret::{ExposeSecret, SecretString};
use tokenkeeper::domain::text::UserId;

/// Bytes of a session and of the key: 256 bits.
const LEN: u32 = 32;

#[derive(Debug)]
pub(super) struct Sessions {
    key: SecretString,
    cookie: &'static str,
    is_secure: bool,
}

/// One browser's.
#[derive(Clone)]
pub(super) struct Session(String);

impl Session {
    /// Compared in constant time.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Sessions {
    /// `is_secure`: whether browsers reach the page with TLS.
    pub(super) fn new(is_secure: bool) -> Self {
        // No other host, nor a page without TLS, can set a cookie with this prefix (RFC 6265bis, section 4.1.3.2).
        let cookie = if is_secure { "__Host-tokenkeeper" } else { "tokenkeeper" };
        Self { key: random().into(), cookie, is_secure }
    }

    /// The session of a request.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<Session> {
        let texts = headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
        let cookies =
            texts.flat_map(|text| text.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
        let mut own = cookies.filter(|(name, _)| *name == self.cookie).map(|(_, value)| value);
        let session = own.next().filter(|_| own.next().is_none())?;
        let is_one = BASE64.decode(session).is_ok_and(|bytes| bytes.len() == LEN as usize);
        is_one.then(|| Session(session.to_owned()))
    }

    /// A new session, and the cookie that brings it back. It comes back from a provider's redirect too, which `Strict` would
    /// prevent.
    pub(super) fn begin(&self) -> (Session, Option<HeaderValue>) {
        let session = Session(random());
        let secure = if self.is_secure { "; Secure" } else { "" };
        let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Lax{secure}", self.cookie, session.0);
        (session, HeaderValue::from_str(&cookie).ok())
    }

    /// What a form of this user in this session must bring.
    pub(super) fn form_token(&self, session: &Session, user: &UserId) -> String {
        BASE64.encode(self.code(session, user).finalize().into_bytes())
    }

    /// Compared in constant time.
    pub(super) fn is_form_token(&self, session: &Session, user: &UserId, token: &str) -> bool {
        BASE64.decode(token).is_ok_and(|token| self.code(session, user).verify_slice(&token).is_ok())
    }

    #[allow(clippy::expect_used, reason = "HMAC takes a key of any length")]
    fn code(&self, session: &Session, user: &UserId) -> Hmac<Sha256> {
        let key = self.key.expose_secret().as_bytes();
        let mut code = Hmac::<Sha256>::new_from_slice(key).expect("a key");
        code.update(session.0.as_bytes());
        // The session has always the same length.
        code.update(user.as_str().as_bytes());
        code
    }
}

/// Shows nothing that a browser could bring.
impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

fn random() -> String {
    CsrfToken::new_random_len(LEN).secret().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cookies(cookies: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(cookies).unwrap())])
    }

    fn user(name: &str) -> UserId {
        UserId::try_from(name).unwrap()
    }

    #[test]
    fn a_browser_brings_its_session_back() {
        for is_secure in [true, false] {
            let sessions = Sessions::new(is_secure);
            let (session, cookie) = sessions.begin();
            let cookie = cookie.unwrap().to_str().unwrap().to_owned();
            assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure") == is_secure, "{cookie}");
            assert!(cookie.starts_with("__Host-") == is_secure, "{cookie}");
            let pair = cookie.split(';').next().unwrap();
            assert!(sessions.of(&with_cookies(&format!("a=b; {pair}; c=d"))).unwrap().is(&session));
            assert!(
                sessions.of(&with_cookies(&format!("{pair}; {pair}"))).is_none(),
                "one of them is another's"
            );
            assert!(sessions.of(&with_cookies("tokenkeeper=AAAA; __Host-tokenkeeper=AAAA")).is_none());
        }
    }

    #[test]
    fn a_form_token_is_for_one_user_in_one_session_of_one_process() {
        let sessions = Sessions::new(true);
        let ((session, _), (other, _)) = (sessions.begin(), sessions.begin());
        let token = sessions.form_token(&session, &user("jdoe"));
        assert!(sessions.is_form_token(&session, &user("jdoe"), &token));
        assert!(!sessions.is_form_token(&session, &user("root"), &token));
        assert!(!sessions.is_form_token(&other, &user("jdoe"), &token));
        assert!(!Sessions::new(true).is_form_token(&session, &user("jdoe"), &token));
        assert!(!sessions.is_form_token(&session, &user("jdoe"), "") && !token.is_empty());
    }
}
