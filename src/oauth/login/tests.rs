use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::domain::clock::SystemClock;
use crate::domain::provider::{LoginSettings, ProviderKind};
use crate::oauth::testing::{Endpoint, Reply, http, provider};

const HERE: &str = "http://127.0.0.1:7919/callback";
const CODE: &str = "c0de-T0p-S3cret";
const PAIR: &str = r#"{"access_token": "acc3ss-1", "refresh_token": "refr3sh-1", "token_type": "bearer",
    "expires_in": 7200, "scope": "repo,user", "refresh_token_expires_in": 15897600}"#;

fn client() -> TokenClient {
    let second = Duration::from_secs(1);
    TokenClient::new(second, second, Arc::new(SystemClock)).unwrap()
}

/// A provider whose endpoints are all this one.
fn at(endpoint: &Endpoint, kind: ProviderKind) -> Provider {
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", endpoint.port).parse().ok();
    let login = LoginSettings {
        authorization_url: url("/authorize?prompt=login"),
        device_authorization_url: url("/device"),
        scopes: vec!["repo".to_owned()],
    };
    Provider { login, ..endpoint.of(provider(kind)) }
}

async fn exchanged(kind: ProviderKind, reply: Reply) -> Result<IssuedPair, LoginError> {
    let endpoint = Endpoint::replying(reply).await;
    let (client, provider) = (client(), at(&endpoint, kind));
    let logins = Logins::at(&client, &provider);
    let login = logins.begin(HERE, &[]).unwrap();
    Ok(logins.exchange(login, &CODE.into()).await?.pair)
}

fn answer(status: &str, body: &str) -> Reply {
    Reply::Bytes(http(status, "", body))
}

#[test]
fn a_browser_is_sent_with_all_that_guards_its_way_back() {
    let client = client();
    let provider = Provider {
        login: LoginSettings {
            authorization_url: "https://git.example.org/authorize?prompt=login".parse().ok(),
            ..LoginSettings::default()
        },
        ..provider(ProviderKind::Github)
    };
    let logins = Logins::at(&client, &provider);
    let login = logins.begin(HERE, &["repo".to_owned(), "user".to_owned()]).unwrap();
    let query = |login: &PendingLogin, name: &str| {
        let mut found = login.url().query_pairs().filter(|(own, _)| own == name);
        let value = found.next().map(|(_, value)| value.into_owned());
        assert!(found.next().is_none(), "{name} twice");
        value.unwrap_or_default()
    };
    for (name, expected) in [
        ("prompt", "login"),
        ("response_type", "code"),
        ("client_id", "tokenkeeper-client"),
        ("redirect_uri", HERE),
        ("scope", "repo user"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(query(&login, name), expected);
    }
    let (state, challenge) = (query(&login, "state"), query(&login, "code_challenge"));
    assert_eq!((state.len(), challenge.len()), (43, 43));
    assert!(login.is_answered_by(&state) && !login.is_answered_by(&state[1..]) && !login.is_answered_by(""));
    let other = logins.begin(HERE, &[]).unwrap();
    assert_ne!(query(&other, "state"), state);
    assert_ne!(query(&other, "code_challenge"), challenge);
    assert_eq!(query(&other, "scope"), "");
    let shown = format!("{login:?}");
    assert!(!shown.contains(&state) && !shown.contains(login.verifier.secret()), "{shown}");
}

#[tokio::test]
async fn a_code_is_exchanged_in_every_dialect() {
    let form = "access_token=acc3ss-1&refresh_token=refr3sh-1&expires_in=7200&scope=repo%2Cuser&refresh_token_expires_in=15897600";
    for (kind, body) in [
        (ProviderKind::Github, PAIR.to_owned()),
        (ProviderKind::Github, form.to_owned()),
        (ProviderKind::Bitbucket, PAIR.replace("\"scope\"", "\"scopes\"").replace(',', " ,")),
        (ProviderKind::Generic, PAIR.replace("\"token_type\": \"bearer\",", "").replace("7200", "\"7200\"")),
    ] {
        let pair = exchanged(kind, answer("200 OK", &body)).await.unwrap();
        assert_eq!(pair.access_token.expose_secret(), "acc3ss-1");
        assert_eq!(pair.refresh_token.unwrap().expose_secret(), "refr3sh-1");
        assert_eq!(pair.expires_in, Some(Duration::from_secs(7200)));
        assert_eq!(pair.refresh_token_expires_in, Some(Duration::from_secs(15_897_600)));
        assert_eq!(pair.scopes.unwrap(), ["repo", "user"], "{body}");
    }
}

#[tokio::test]
async fn a_request_has_what_the_rfcs_ask_for() {
    for kind in [ProviderKind::Github, ProviderKind::Bitbucket] {
        let endpoint = Endpoint::answering("200 OK", "", PAIR).await;
        let (client, provider) = (client(), at(&endpoint, kind));
        let logins = Logins::at(&client, &provider);
        let login = logins.begin(HERE, &[]).unwrap();
        let verifier = login.verifier.secret().clone();
        logins.exchange(login, &CODE.into()).await.unwrap();
        let seen = endpoint.seen().remove(0);
        assert_eq!(seen.line, format!("POST {} HTTP/1.1", provider.token_url.path()));
        assert_eq!(seen.headers["accept"], "application/json");
        assert_eq!(seen.headers["host"], format!("127.0.0.1:{}", endpoint.port));
        assert!(seen.headers["user-agent"].starts_with("tokenkeeper/"));
        let form = seen.form();
        for expected in [
            ("grant_type", "authorization_code"),
            ("code", CODE),
            ("code_verifier", &verifier),
            ("redirect_uri", HERE),
        ] {
            assert!(
                form.iter().any(|(name, value)| (name.as_str(), value.as_str()) == expected),
                "{expected:?}"
            );
        }
        let in_body = form.iter().any(|(name, value)| name == "client_secret" && value == "cl1ent-s3cret");
        assert_eq!(in_body, kind == ProviderKind::Github);
        assert_eq!(seen.headers.contains_key("authorization"), kind == ProviderKind::Bitbucket);
    }
}

#[tokio::test]
async fn what_is_no_pair_is_told_in_plain_words_without_a_secret() {
    let echo = format!(
        r#"{{"error": "invalid_grant", "error_description": "no {CODE} cl1ent-s3cret \u001b[2J here"}}"#
    );
    for (reply, expected) in [
        (
            answer("200 OK", r#"{"error": "bad_verification_code"}"#),
            "answered 200 bad_verification_code; the code is used",
        ),
        (answer("400 Bad Request", &echo), "answered 400 invalid_grant \"no … here\"; the code is used"),
        (
            answer("401 Unauthorized", r#"{"error": "invalid_client"}"#),
            "check the provider's client_id, client_secret",
        ),
        (answer("400 Bad Request", r#"{"error": "\u001b[2Jacc3ss"}"#), "answered 400 unknown_error"),
        (answer("200 OK", "<html>Log in</html>"), "answered 200 without a token"),
        (answer("200 OK", r#"{"access_token": "a\nb"}"#), "answered 200 without a token"),
        (answer("404 Not Found", "no"), "answered 404; check its URL"),
        (
            Reply::Bytes(http("302 Found", "location: https://evil.example/\r\n", "")),
            "redirects are not followed",
        ),
        (answer("503 Service Unavailable", r#"{"error": "server_error"}"#), "answered 503"),
        (
            answer("200 OK", &format!(r#"{{"access_token": "{}"}}"#, "x".repeat(200_000))),
            "answered 200 without a token",
        ),
        (Reply::Close, "the connection closed before an answer came"),
        (Reply::Stall(Vec::new()), "no answer within 1s"),
        (Reply::Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), "answered 200 without a token"),
        (
            Reply::Endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            "the connection closed before an answer came",
        ),
    ] {
        let error = exchanged(ProviderKind::Github, reply).await.unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(told.contains(expected), "{told}");
        for secret in [CODE, "cl1ent-s3cret", "\u{1b}", "acc3ss"] {
            assert!(!told.contains(secret), "{told}");
        }
    }
}

#[tokio::test]
async fn no_secret_goes_to_a_host_that_is_not_the_providers() {
    let endpoint = Endpoint::answering("200 OK", "", PAIR).await;
    let client = client();
    let elsewhere = |path: &str| format!("http://[::ffff:127.0.0.1]:{}{path}", endpoint.port).parse();
    let login = LoginSettings {
        authorization_url: elsewhere("/authorize").ok(),
        device_authorization_url: elsewhere("/device").ok(),
        scopes: Vec::new(),
    };
    let token_url = elsewhere("/token").unwrap();
    let provider =
        Provider { login, token_url, allow_private_network: true, ..provider(ProviderKind::Generic) };
    let logins = Logins::at(&client, &provider);
    let login = logins.begin(HERE, &[]).unwrap();
    let refused = logins.exchange(login, &CODE.into()).await.unwrap_err();
    assert!(refused.to_string().contains("not sent: the URL is not https"), "{refused}");
    assert!(logins.begin_device(&[]).await.is_err());
    assert_eq!(endpoint.seen().len(), 0);
}

async fn device(body: &str) -> Result<PendingDevice, LoginError> {
    let endpoint = Endpoint::answering("200 OK", "", body).await;
    let (client, provider) = (client(), at(&endpoint, ProviderKind::Github));
    Logins::at(&client, &provider).begin_device(&["repo".to_owned()]).await
}

#[tokio::test]
async fn a_code_for_a_device_is_taken_within_bounds() {
    let with = |more: &str| {
        format!(
            r#"{{"device_code": "d", "user_code": "WDJB-MJHT", "verification_uri": "https://git.example.org/device"{more}}}"#
        )
    };
    let plain = device(&with("")).await.unwrap();
    assert_eq!((plain.user_code(), plain.page()), ("WDJB-MJHT", "https://git.example.org/device"));
    assert_eq!(
        (plain.expires_in(), plain.answer.interval()),
        (Duration::from_mins(30), Duration::from_secs(5))
    );
    for (given, expires_in, interval) in [
        (r#", "expires_in": 900, "interval": 7"#, 900, 7),
        (r#", "expires_in": 0, "interval": 0"#, 1, 1),
        (r#", "expires_in": 18446744073709551615, "interval": 18446744073709551615"#, 1800, 60),
        (r#", "expires_in": "60", "interval": -5"#, 60, 5),
    ] {
        let device = device(&with(given)).await.unwrap();
        let expected = (Duration::from_secs(expires_in), Duration::from_secs(interval));
        assert_eq!((device.expires_in(), device.answer.interval()), expected, "{given}");
    }
    let draft = with("").replace("verification_uri", "verification_url");
    assert!(device(&draft).await.is_ok());
    // A page without TLS, or one that names a user, is not shown.
    for page in
        ["http://git.example.org/device", "https://git.example.org@evil.example/", "javascript:alert(1)", "x"]
    {
        assert!(device(&with("").replace("https://git.example.org/device", page)).await.is_err(), "{page}");
        let complete = device(&with(&format!(r#", "verification_uri_complete": "{page}""#))).await.unwrap();
        assert_eq!(complete.page_with_code(), None, "{page}");
    }
    let complete =
        device(&with(r#", "verification_uri_complete": "https://git.example.org/?c=1""#)).await.unwrap();
    assert_eq!(complete.page_with_code(), Some("https://git.example.org/?c=1"));
    for code in [r"\u001b[2J", "", &"x".repeat(65)] {
        assert!(device(&with("").replace("WDJB-MJHT", code)).await.is_err(), "{code}");
    }
    assert!(device(r#"{"device_code": "d"}"#).await.is_err());
}

#[tokio::test]
async fn a_device_is_asked_about_until_there_is_an_answer_that_counts() {
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let code = r#"{"device_code": "d", "user_code": "u", "verification_uri": "https://git.example.org/", "interval": 1}"#;
    let endpoint = Endpoint::start(move |seen| {
        let body = if seen.line.contains("/device") {
            code
        } else {
            match counted.fetch_add(1, Ordering::Relaxed) {
                // As GitHub says it.
                0 => r#"{"error": "authorization_pending"}"#,
                1 => return Reply::Bytes(http("502 Bad Gateway", "", "")),
                _ => PAIR,
            }
        };
        Reply::Bytes(http("200 OK", "", body))
    })
    .await;
    let (client, provider) = (client(), at(&endpoint, ProviderKind::Github));
    let logins = Logins::at(&client, &provider);
    let device = logins.begin_device(&["repo".to_owned()]).await.unwrap();
    assert_eq!(logins.finish_device(&device).await.unwrap().pair.access_token.expose_secret(), "acc3ss-1");
    assert_eq!(polls.load(Ordering::Relaxed), 3);
    let sent = endpoint.seen();
    assert!(sent[0].form().contains(&("scope".to_owned(), "repo".to_owned())));
    let grant = ("grant_type".to_owned(), "urn:ietf:params:oauth:grant-type:device_code".to_owned());
    assert!(
        sent[1].form().contains(&grant)
            && sent[1].form().contains(&("device_code".to_owned(), "d".to_owned()))
    );
}

#[tokio::test]
async fn what_will_not_change_ends_a_device_login_at_once() {
    let code = r#"{"device_code": "d", "user_code": "u", "verification_uri": "https://git.example.org/", "interval": 60}"#;
    for (status, body, expected) in [
        ("200 OK", r#"{"error": "access_denied"}"#, "access_denied"),
        ("400 Bad Request", r#"{"error": "expired_token"}"#, "nobody authorised in time"),
        ("404 Not Found", "", "check its URL"),
        ("302 Found", "", "redirects are not followed"),
        ("200 OK", "<html>", "without a token"),
    ] {
        let endpoint = Endpoint::start(move |seen| {
            let is_device = seen.line.contains("/device");
            Reply::Bytes(if is_device { http("200 OK", "", code) } else { http(status, "", body) })
        })
        .await;
        let (client, provider) = (client(), at(&endpoint, ProviderKind::Github));
        let logins = Logins::at(&client, &provider);
        let device = logins.begin_device(&[]).await.unwrap();
        let error = logins.finish_device(&device).await.map(drop).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn an_id_token_is_bound_to_its_login_by_a_nonce() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

    let nonce = Arc::new(parking_lot::Mutex::new(String::new()));
    let told = Arc::clone(&nonce);
    let endpoint = Endpoint::start(move |_| {
        let claims = format!(
            r#"{{"sub": "7", "aud": "tokenkeeper-client", "exp": 9999999999, "nonce": "{}"}}"#,
            told.lock()
        );
        let body = PAIR.replacen('{', &format!(r#"{{"id_token": "e30.{}.c2ln","#, BASE64.encode(claims)), 1);
        Reply::Bytes(http("200 OK", "", &body))
    })
    .await;
    let (client, provider) = (client(), at(&endpoint, ProviderKind::Generic));
    let logins = Logins::at(&client, &provider);
    let openid = ["repo".to_owned(), "openid".to_owned()];
    let sent = |login: &PendingLogin| {
        login.url().query_pairs().find(|(name, _)| name == "nonce").map(|(_, nonce)| nonce.into_owned())
    };
    let login = logins.begin(HERE, &openid).unwrap();
    *nonce.lock() = sent(&login).unwrap();
    assert_eq!(logins.exchange(login, &CODE.into()).await.unwrap().account.unwrap().id, "7");
    let replayed = logins.begin(HERE, &openid).unwrap();
    let refused = logins.exchange(replayed, &CODE.into()).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("of another login (nonce)"), "{refused}");
    assert_eq!(sent(&logins.begin(HERE, &[]).unwrap()), None, "nobody asks for an ID token");
}
