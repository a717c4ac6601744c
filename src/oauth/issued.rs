//! Reads a new pair from the fields of an answer, in the forms that providers use.

use std::time::Duration;

use serde_json::Value;

use super::IssuedPair;
use crate::domain::escape::is_printable;
use crate::domain::secret::{ExposeSecret, SecretString};
use crate::domain::token::is_usable_token;

/// The end of a longer lifetime may not fit a date in our messages.
const LONGEST_LIFETIME: Duration = Duration::from_hours(100 * 365 * 24);

/// The pair in an answer to `sent`, or `None` without a usable access token. Tokens are moved, not copied.
pub(super) fn take_pair(answer: &mut Value, sent: &SecretString) -> Option<IssuedPair> {
    let access_token = take_token(answer, "access_token")?;
    // An unusable new refresh token is ignored: the access token is valid, and its user is served.
    let refresh_token = take_token(answer, "refresh_token")
        .filter(|refresh_token| refresh_token.expose_secret() != sent.expose_secret());
    Some(IssuedPair {
        access_token,
        refresh_token,
        expires_in: answer.get("expires_in").and_then(lifetime),
        // The names that GitHub and Keycloak use.
        refresh_token_expires_in: ["refresh_token_expires_in", "refresh_expires_in"]
            .into_iter()
            .find_map(|name| answer.get(name).and_then(lifetime)),
        // The names that RFC 6749 and Bitbucket Cloud use.
        scopes: ["scope", "scopes"]
            .into_iter()
            .find_map(|name| answer.get(name).map(scope_list).filter(|scopes| !scopes.is_empty())),
    })
}

fn take_token(answer: &mut Value, name: &str) -> Option<SecretString> {
    match answer.get_mut(name)?.take() {
        Value::String(token) if is_usable_token(&token) => Some(token.into()),
        _ => None,
    }
}

/// Zero or less says nothing: no token is dead when it is issued. Keycloak writes zero for refresh tokens that never
/// expire (offline tokens).
fn lifetime(value: &Value) -> Option<Duration> {
    let lifetime = Duration::try_from_secs_f64(seconds(value)?).ok()?;
    (!lifetime.is_zero() && lifetime <= LONGEST_LIFETIME).then_some(lifetime)
}

/// `7200`, `7200.0`, and `"7200"` from some providers.
fn seconds(value: &Value) -> Option<f64> {
    let seconds = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    seconds.filter(|seconds| seconds.is_finite())
}

/// The same limit as in a `token.store`.
const MAX_SCOPE_LEN: usize = 255;

/// Scopes are separated by blanks (RFC 6749, section 3.3), by commas at GitHub; some providers send a JSON array. An
/// invalid scope is left out: the pair is valid without it.
fn scope_list(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text
            .split(|sign: char| sign.is_whitespace() || sign == ',')
            .filter(|scope| (1..=MAX_SCOPE_LEN).contains(&scope.len()) && is_printable(scope))
            .map(str::to_owned)
            .collect(),
        Value::Array(items) => items.iter().flat_map(scope_list).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::token::MAX_TOKEN_LEN;

    fn pair(mut answer: Value) -> Option<IssuedPair> {
        take_pair(&mut answer, &"old-refresh".into())
    }

    fn with(name: &str, value: Value) -> IssuedPair {
        let mut answer = json!({"access_token": "a"});
        answer[name] = value;
        pair(answer).unwrap()
    }

    #[test]
    fn every_form_of_an_access_tokens_lifetime_is_read() {
        let life = |value| with("expires_in", value).expires_in;
        let two_hours = Some(Duration::from_secs(7200));
        for spelling in [json!(7200), json!(7200.0), json!("7200"), json!(" 7200 "), json!("7200.0")] {
            assert_eq!(life(spelling.clone()), two_hours, "{spelling}");
        }
        for untold in [
            json!(0),
            json!("0"),
            json!(-1),
            json!(-3.5),
            json!(null),
            json!("soon"),
            json!(""),
            json!({}),
            json!(1e300),
            json!(u64::MAX),
            json!("-inf"),
            json!("NaN"),
        ] {
            assert_eq!(life(untold.clone()), None, "{untold}");
        }
    }

    #[test]
    fn the_lifetime_of_a_refresh_token_has_two_names_and_zero_means_that_it_never_expires() {
        let half_a_year = Some(Duration::from_secs(15_811_200));
        for name in ["refresh_token_expires_in", "refresh_expires_in"] {
            assert_eq!(with(name, json!(15_811_200)).refresh_token_expires_in, half_a_year, "{name}");
            assert_eq!(with(name, json!(0)).refresh_token_expires_in, None, "{name}");
        }
    }

    #[test]
    fn every_form_of_scopes_is_read() {
        let told = Some(vec!["repo".to_owned(), "read:org".to_owned()]);
        for spelling in [
            json!("repo read:org"),
            json!("repo,read:org"),
            json!(["repo", "read:org"]),
            json!("repo, read:org "),
        ] {
            assert_eq!(with("scope", spelling.clone()).scopes, told, "{spelling}");
            assert_eq!(with("scopes", spelling.clone()).scopes, told, "{spelling}");
        }
        for untold in [
            json!(null),
            json!(""),
            json!(" "),
            json!([]),
            json!(7),
            json!("\u{9b}2J"),
            json!("x".repeat(256)),
        ] {
            assert_eq!(with("scope", untold.clone()).scopes, None, "{untold}");
        }
    }

    #[test]
    fn an_invalid_scope_is_left_out() {
        for odd in ["re\u{1b}po", "re\0po", "re\u{202e}po", "re\u{7f}po"] {
            let pair = with("scope", json!(format!("repo {odd} read:org")));
            assert_eq!(pair.scopes, Some(vec!["repo".to_owned(), "read:org".to_owned()]), "{odd:?}");
        }
    }

    #[test]
    fn an_omitted_or_repeated_refresh_token_leaves_the_old_one_valid() {
        let refresh_token =
            |value| with("refresh_token", value).refresh_token.map(|token| token.expose_secret().to_owned());
        assert_eq!(refresh_token(json!("new-refresh")), Some("new-refresh".to_owned()));
        for kept in [json!(null), json!(""), json!("old-refresh"), json!("line\nbreak"), json!(5)] {
            assert_eq!(refresh_token(kept.clone()), None, "{kept}");
        }
    }

    #[test]
    fn without_a_usable_access_token_there_is_no_pair() {
        let longest = "a".repeat(MAX_TOKEN_LEN);
        assert!(pair(json!({"access_token": longest})).is_some());
        for unusable in
            [json!(null), json!(""), json!(5), json!("a\nb"), json!("tokén"), json!(longest + "a")]
        {
            assert!(pair(json!({"access_token": unusable})).is_none(), "{unusable}");
        }
        assert!(pair(json!({})).is_none() && pair(json!([])).is_none());
    }
}
