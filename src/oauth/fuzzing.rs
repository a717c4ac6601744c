//! Fuzzing: what token endpoints answer.

#![allow(clippy::missing_panics_doc, reason = "to panic is how a fuzzer reports")]

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{HeaderValue, RETRY_AFTER};

use super::answer::{Answer, Body, read_answer};
use super::detail::RefreshRequest;
use super::pause::Pause;
use super::testing::provider;
use super::{IssuedPair, RefreshError};
use crate::domain::clock::Timestamp;
use crate::domain::escape::is_printable;
use crate::domain::provider::ProviderKind;
use crate::domain::secret::fuzzing::{MARK, assert_untold};
use crate::domain::secret::{ExposeSecret, SecretString};
use crate::domain::token::is_usable_token;

const REFRESH_TOKEN: &str = "refresh-t0ken";
/// The longest text about a failure, in bytes: a URL, a quote of 160 characters, a code of as many, and a hint.
const MAX_DETAIL: usize = 2 * 1024;

/// The input is: kind of provider, status, how much of the body came, `Retry-After` up to a line break, and the body.
pub fn provider_answers(input: &[u8]) {
    let [kind, status, end, rest @ ..] = input else { return };
    let (header, body) = rest.split_at(rest.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    let provider = provider(ProviderKind::ALL[usize::from(*kind) % ProviderKind::ALL.len()]);
    // From 200 to 598, and whatever stands between.
    let status = 200 + u16::from(*status) * 25 / 16;
    let refresh_token = SecretString::from(REFRESH_TOKEN);
    let request = RefreshRequest {
        provider: &provider,
        client_secret: &provider.client_secret,
        refresh_token: &refresh_token,
        scopes: &[],
    };
    let pause = pause(header.trim_ascii_end(), status);
    let read = |body| read_answer(request, &Answer { status, pause, body });
    let body = match end % 3 {
        0 => Body::Whole(body),
        1 => Body::CutOff(body),
        _ => Body::TooLong,
    };
    match read(body) {
        Ok(pair) => {
            assert!((200..300).contains(&status), "a pair with status {status}");
            a_pair(&pair);
        }
        Err(error) => {
            let told = format!("{error} {error:?}");
            for secret in [MARK, REFRESH_TOKEN, provider.client_secret.expose_secret()] {
                assert_untold(&told, secret);
            }
            assert!(is_printable(&error.to_string()), "{error:?}");
            assert!(error.to_string().len() <= MAX_DETAIL, "{error}");
            let is_refused = matches!(error, RefreshError::Refused { .. });
            assert!(!is_refused || (200..500).contains(&status), "status {status} condemns no token");
        }
    }
}

fn a_pair(pair: &IssuedPair) {
    let refresh_token = pair.refresh_token.as_ref().map(ExposeSecret::expose_secret);
    assert!(is_usable_token(pair.access_token.expose_secret()));
    assert!(refresh_token.is_none_or(|token| is_usable_token(token) && token != REFRESH_TOKEN));
    let lifetimes = [pair.expires_in, pair.refresh_token_expires_in];
    let now = Timestamp::from_millis(1_577_836_800_000);
    for lifetime in lifetimes.into_iter().flatten() {
        assert!(
            !lifetime.is_zero() && now.plus(lifetime) > now || lifetime < Duration::from_millis(1),
            "{lifetime:?}"
        );
    }
    for scope in pair.scopes.iter().flatten() {
        assert!((1..=255).contains(&scope.len()) && is_printable(scope), "{scope:?}");
    }
}

fn pause(header: &[u8], status: u16) -> Pause {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(header) {
        headers.insert(RETRY_AFTER, value.clone());
        headers.insert("x-ratelimit-reset", value);
    }
    let pause = Pause::read(&headers, status, Timestamp::from_millis(1_577_836_800_000));
    let longest = Duration::from_hours(366 * 24);
    assert!(pause.retry_after.is_none_or(|pause| !pause.is_zero() && pause <= longest), "{pause:?}");
    pause
}
