//! The text about a failed refresh: our own words, and at most a few plain words from the provider.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::error::Error;

use url::Position;

use crate::domain::escape::is_unprintable;
use crate::domain::plain::{LEFT_OUT, plain_words};
use crate::domain::provider::Provider;
use crate::domain::secret::{ExposeSecret, SecretString};

const MAX_QUOTE_CHARS: usize = 160;

#[derive(Clone, Copy)]
pub(super) struct RefreshRequest<'a> {
    pub(super) provider: &'a Provider,
    /// The secret that is sent: the provider may have several.
    pub(super) client_secret: &'a SecretString,
    pub(super) refresh_token: &'a SecretString,
    /// The token's scopes, if they are known.
    pub(super) scopes: &'a [String],
}

impl RefreshRequest<'_> {
    /// Adds the URL to `outcome`, without user info and query: they may hold secrets.
    pub(super) fn tell(&self, outcome: &str) -> String {
        let url = &self.provider.token_url;
        let place = &url[Position::BeforeHost..Position::AfterPath];
        format!("refresh at {}://{place}: {outcome}", url.scheme())
    }

    /// Quotes the provider's text. The provider may echo what we sent, or any token. So the secrets that we know are
    /// removed first, and then every word that is not a plain word: a random token never is one.
    pub(super) fn quote(&self, text: &str) -> String {
        let mut secrets = [self.client_secret, self.refresh_token].map(ExposeSecret::expose_secret);
        // The longer one first: if the shorter is a part of it, removing that would leave the rest.
        secrets.sort_by_key(|secret| Reverse(secret.len()));
        let text = secrets
            .into_iter()
            .filter(|secret| !secret.is_empty())
            .fold(Cow::Borrowed(text), |text, secret| text.replace(secret, LEFT_OUT).into());
        shortened(&plain_words(&text))
    }
}

/// The innermost cause of an error. Only for errors before anything was sent: later ones may quote the peer.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    shortened(&innermost.to_string().replace(is_unprintable, " "))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE_CHARS) {
        Some((end, _)) => format!("{}{LEFT_OUT}", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::provider::ProviderKind;
    use crate::oauth::testing::provider;

    fn request<'a>(provider: &'a Provider, refresh_token: &'a SecretString) -> RefreshRequest<'a> {
        RefreshRequest { provider, client_secret: &provider.client_secret, refresh_token, scopes: &[] }
    }

    fn quoted(text: &str, client_secret: &str, refresh_token: &str) -> String {
        let provider = Provider { client_secret: client_secret.into(), ..provider(ProviderKind::Generic) };
        request(&provider, &refresh_token.into()).quote(text)
    }

    #[test]
    fn real_error_texts_are_quoted_unchanged() {
        for text in [
            "The refresh token passed is incorrect or expired.",
            "The client_id and/or client_secret passed are incorrect.",
            "Invalid refresh_token",
            "The provided authorization grant is invalid, expired, revoked, does not match the redirection URI \
             used in the authorization request,",
            "unsupported_grant_type",
            "Try again (HTTP) in 10 s",
        ] {
            assert_eq!(quoted(text, "s3cret", "r3fresh"), text);
        }
    }

    #[test]
    fn known_secrets_are_removed_even_if_they_look_like_words() {
        let text = "client secret correct horse does not fit token correct horse battery";
        let quoted = quoted(text, "correct horse", "correct horse battery");
        assert_eq!(quoted, "client secret … does not fit token …");
    }

    #[test]
    fn unknown_tokens_are_removed() {
        for token in [
            "gho_16C7e42F292c6912E7710c838347Ae178B4a",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJqZG9lIn0.c2lnbmF0dXJl",
            "8f14e45fceea167a5a36dedd4bea2543",
            "dGhlIGNsaWVudDpzM2NyZXQ=",
            "QWxhZGRpbjpvcGVuIHNlc2FtZQ",
            "token=abc",
            "12345678",
            "\u{202e}drow",
        ] {
            let text = format!("token '{token}' is unknown, {token} {token}");
            assert_eq!(quoted(&text, "s3cret", "r3fresh"), "token … is unknown, …", "{token}");
        }
    }

    #[test]
    fn quotes_are_one_short_line() {
        let long = "word\r\n\tword\u{1b}[31m ".repeat(100);
        let quoted = quoted(&long, "s3cret", "r3fresh");
        assert!(quoted.starts_with("word … word …") && quoted.ends_with(LEFT_OUT), "{quoted}");
        assert_eq!(quoted.chars().count(), MAX_QUOTE_CHARS + 1);
    }

    #[test]
    fn the_url_is_shown_without_user_info_and_query() {
        let mut provider = provider(ProviderKind::Generic);
        provider.token_url = "https://jdoe:pw@git.example.org:8443/oauth/token?key=pw".parse().unwrap();
        let told = request(&provider, &"r3fresh".into()).tell("answered 404");
        assert_eq!(told, "refresh at https://git.example.org:8443/oauth/token: answered 404");
    }
}
