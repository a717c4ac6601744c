//! The bearer token of the admin endpoint (RFC 6750, section 2.1).

use anyhow::{Context, ensure};
use axum::http::HeaderValue;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::domain::secret::ExposeSecret;
use crate::settings::{ADMIN_TOKEN_SHAPE, AdminToken, is_admin_token};

/// A digest of the token: of the same length for every token, and useless to whoever finds it.
pub(super) struct BearerToken([u8; 32]);

impl BearerToken {
    /// An error names the setting.
    pub(super) fn read(source: &AdminToken) -> anyhow::Result<Self> {
        let token = match source {
            AdminToken::Given(token) => token.clone(),
            AdminToken::File(file) => {
                let place = || format!("{} (setting admin.token_file)", file.path().display());
                let text = file.read().with_context(|| format!("cannot use {}", place()))?;
                let token = text.trim();
                ensure!(is_admin_token(token), "{} holds no valid token: {}", place(), ADMIN_TOKEN_SHAPE);
                token.into()
            }
        };
        Ok(Self(digest(token.expose_secret())))
    }

    /// Whether the header has the token, compared in constant time.
    pub(super) fn is_shown_in(&self, authorization: Option<&HeaderValue>) -> bool {
        let shown = authorization
            .and_then(|header| header.to_str().ok())
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        shown.is_some_and(|(_, token)| self.0.ct_eq(&digest(token.trim())).into())
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_token_with_the_scheme_bearer_is_accepted() {
        let token = BearerToken::read(&AdminToken::Given("0123456789abcdef".into())).unwrap();
        let is_shown = |header: &str| token.is_shown_in(Some(&HeaderValue::from_str(header).unwrap()));
        assert!(is_shown("Bearer 0123456789abcdef") && is_shown("bearer  0123456789abcdef"));
        for wrong in [
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(!is_shown(wrong), "{wrong}");
        }
        assert!(!token.is_shown_in(None));
    }
}
