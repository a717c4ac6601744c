//! What people read about a refresh that failed: worded by us, with at most a few plain words of the provider's.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::error::Error;

use url::Position;

use crate::domain::escape::is_unprintable;
use crate::domain::provider::Provider;
use crate::domain::secret::{ExposeSecret, SecretString};

/// Stands for what is left out.
const LEFT_OUT: &str = "…";
/// Most characters quoted of somebody else's text.
const MAX_QUOTE: usize = 160;

/// One refresh: where it goes, and which secrets must not be told about it.
#[derive(Clone, Copy)]
pub(super) struct RefreshRequest<'a> {
    pub(super) provider: &'a Provider,
    /// The one that is sent: the provider may have several.
    pub(super) client_secret: &'a SecretString,
    pub(super) refresh_token: &'a SecretString,
    /// What the token may do as far as is known.
    pub(super) scopes: &'a [String],
}

impl RefreshRequest<'_> {
    /// `outcome` with the place it happened at. Of the URL, neither user info nor query: they may hold secrets.
    pub(super) fn tell(&self, outcome: &str) -> String {
        let url = &self.provider.token_url;
        let place = &url[Position::BeforeHost..Position::AfterPath];
        format!("refresh at {}://{place}: {outcome}", url.scheme())
    }

    /// Quotes what the provider wrote. It may have echoed what we sent, or any token: the secrets we know are
    /// cut out, and then every word that is not a plain word, which a random token never is.
    pub(super) fn quote(&self, text: &str) -> String {
        let mut secrets = [self.client_secret, self.refresh_token].map(ExposeSecret::expose_secret);
        // The longer one first: cutting out a part of it would leave the rest standing.
        secrets.sort_by_key(|secret| Reverse(secret.len()));
        let text = secrets
            .into_iter()
            .filter(|secret| !secret.is_empty())
            .fold(Cow::Borrowed(text), |text, secret| text.replace(secret, LEFT_OUT).into());
        let mut words: Vec<&str> =
            text.split_whitespace().map(|word| if is_plain_word(word) { word } else { LEFT_OUT }).collect();
        words.dedup_by(|word, before| word == before && *word == LEFT_OUT);
        shortened(&words.join(" "))
    }
}

/// The innermost cause of an error. Only for errors from before anything was sent: later ones may quote the peer.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    shortened(&innermost.to_string().replace(is_unprintable, " "))
}

/// Words of error texts and OAuth parameter names: `expired,` `client_id` `and/or` `(HTTP` `10`.
///
/// Tokens are long and random: they have digits, mixed case or other signs, or are longer than a word.
fn is_plain_word(word: &str) -> bool {
    let is_part = |part: &str| match part.as_bytes() {
        [first, rest @ ..] if part.len() <= 20 && first.is_ascii_alphabetic() => {
            rest.iter().all(u8::is_ascii_lowercase) || part.bytes().all(|byte| byte.is_ascii_uppercase())
        }
        digits => (1..=4).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
    };
    let word = word.trim_matches(|sign| ".,:;!?()\"'`".contains(sign));
    word.len() <= 32 && word.split(['_', '-', '/', '\'']).all(is_part)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE) {
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
    fn what_providers_really_write_is_quoted_as_it_stands() {
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
    fn secrets_that_look_like_words_are_cut_out_because_we_know_them() {
        let text = "client secret correct horse does not fit token correct horse battery";
        let quoted = quoted(text, "correct horse", "correct horse battery");
        assert_eq!(quoted, "client secret … does not fit token …");
    }

    #[test]
    fn tokens_that_we_do_not_know_are_left_out() {
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
        assert_eq!(quoted.chars().count(), MAX_QUOTE + 1);
    }

    #[test]
    fn the_place_is_told_without_user_info_and_query() {
        let mut provider = provider(ProviderKind::Generic);
        provider.token_url = "https://jdoe:pw@git.example.org:8443/oauth/token?key=pw".parse().unwrap();
        let told = request(&provider, &"r3fresh".into()).tell("answered 404");
        assert_eq!(told, "refresh at https://git.example.org:8443/oauth/token: answered 404");
    }
}
