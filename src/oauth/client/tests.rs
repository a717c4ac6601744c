use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

mod answers;

use super::super::testing::{Endpoint, Reply, http, provider, read_request};
use super::*;
use crate::domain::clock::{ManualClock, Timestamp};
use crate::domain::provider::ProviderKind;

const PAIR: &str = r#"{"access_token":"new-access","refresh_token":"new-refresh","expires_in":7200}"#;
const JSON: &str = "content-type: application/json\r\n";

fn client(total_timeout: Duration) -> TokenClient {
    let now = Timestamp::parse_rfc3339("2015-10-21T07:28:00Z").unwrap();
    TokenClient::new(Duration::from_millis(300), total_timeout, Arc::new(ManualClock::at(now))).unwrap()
}

async fn refresh(provider: &Provider) -> Result<IssuedPair, RefreshError> {
    client(Duration::from_secs(10)).refresh(provider, &"old-r3fresh".into(), &[]).await
}

async fn refresh_at(endpoint: &Endpoint) -> Result<IssuedPair, RefreshError> {
    refresh(&endpoint.of(provider(ProviderKind::Github))).await
}

async fn impatient_refresh_at(endpoint: &Endpoint) -> Result<IssuedPair, RefreshError> {
    let provider = endpoint.of(provider(ProviderKind::Github));
    client(Duration::from_millis(400)).refresh(&provider, &"old-r3fresh".into(), &[]).await
}

fn acted(result: &Result<IssuedPair, RefreshError>) -> Acted {
    match result {
        Err(RefreshError::Unavailable { acted, .. }) => *acted,
        Err(RefreshError::Unreadable { .. }) => Acted::Unknown,
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test]
async fn each_kind_of_provider_gets_its_own_form_of_request() {
    for kind in ProviderKind::ALL {
        let endpoint = Endpoint::answering("200 OK", JSON, PAIR).await;
        let provider = endpoint.of(provider(kind));
        let pair = refresh(&provider).await.unwrap();
        assert_eq!(pair.access_token.expose_secret(), "new-access");

        let [seen] = &endpoint.seen()[..] else { panic!("{kind} was not asked once") };
        assert_eq!(seen.line, format!("POST {} HTTP/1.1", provider.token_url.path()));
        assert_eq!(seen.headers["accept"], "application/json");
        assert_eq!(seen.headers["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(seen.headers["user-agent"], concat!("tokenkeeper/", env!("CARGO_PKG_VERSION")));
        let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", "old-r3fresh")];
        if kind == ProviderKind::Bitbucket {
            let credentials = BASE64.encode("tokenkeeper-client:cl1ent-s3cret");
            assert_eq!(seen.headers["authorization"], format!("Basic {credentials}"));
        } else {
            assert_eq!(seen.headers.get("authorization"), None, "{kind}");
            form.extend([("client_id", "tokenkeeper-client"), ("client_secret", "cl1ent-s3cret")]);
        }
        if kind == ProviderKind::AzureDevops {
            form.push(("scope", "499b84ac-1321-427f-aa17-267ca6975798/.default offline_access"));
        }
        let form: Vec<_> =
            form.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(seen.form(), form, "{kind}");
    }
}

#[tokio::test]
async fn a_redirect_uri_is_sent_if_set_and_special_characters_are_encoded() {
    let endpoint = Endpoint::answering("200 OK", JSON, PAIR).await;
    let mut provider = endpoint.of(provider(ProviderKind::Gitlab));
    provider.redirect_uri = Some("https://app.example.org/callback?a=b&c=d".into());
    provider.client_secret = "s%/+ &=é".into();
    refresh(&provider).await.unwrap();
    let form = endpoint.seen()[0].form();
    assert!(
        form.contains(&("redirect_uri".into(), "https://app.example.org/callback?a=b&c=d".into())),
        "{form:?}"
    );
    assert!(form.contains(&("client_secret".into(), "s%/+ &=é".into())), "{form:?}");
}

#[tokio::test]
async fn basic_credentials_are_form_encoded_first_and_marked_sensitive() {
    let endpoint = Endpoint::answering("200 OK", JSON, PAIR).await;
    let mut provider = endpoint.of(provider(ProviderKind::Bitbucket));
    provider.client_id = "a b:c".into();
    provider.client_secret = "s%/+".into();
    refresh(&provider).await.unwrap();
    let credentials = endpoint.seen()[0].headers["authorization"].replace("Basic ", "");
    assert_eq!(BASE64.decode(credentials).unwrap(), b"a+b%3Ac:s%25%2F%2B");

    let request = RefreshRequest {
        provider: &provider,
        client_secret: &provider.client_secret,
        refresh_token: &"old-r3fresh".into(),
        scopes: &[],
    };
    let request = post(request).unwrap();
    assert!(request.headers()[AUTHORIZATION].is_sensitive());
}

#[tokio::test]
async fn scopes_are_sent_if_the_kind_requires_them_and_an_operators_parameter_wins() {
    let scopes = ["vso.code".to_owned(), "vso.profile".to_owned()];
    let of_operator = vec![("scope".to_owned(), "all".to_owned()), ("audience".to_owned(), "a b".to_owned())];
    for (kind, parameters, expected) in [
        (ProviderKind::AzureDevops, vec![], vec![("scope", "vso.code vso.profile offline_access")]),
        (ProviderKind::AzureDevops, of_operator, vec![("scope", "all"), ("audience", "a b")]),
        (ProviderKind::Gitea, vec![], vec![]),
    ] {
        let endpoint = Endpoint::answering("200 OK", JSON, PAIR).await;
        let provider = Provider { refresh_parameters: parameters, ..endpoint.of(provider(kind)) };
        client(Duration::from_secs(10)).refresh(&provider, &"old-r3fresh".into(), &scopes).await.unwrap();
        let form = endpoint.seen()[0].form();
        let sent: Vec<_> = form[4..].iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(sent, expected, "{kind}");
    }
}

/// An endpoint that accepts one client secret and answers `refusal` to others.
async fn endpoint_with_secret(secret: &'static str, refusal: &'static str) -> Endpoint {
    Endpoint::start(move |seen| {
        let is_right = seen.form().contains(&("client_secret".into(), secret.into()));
        Reply::Bytes(if is_right {
            http("200 OK", JSON, PAIR)
        } else {
            http("400 Bad Request", JSON, refusal)
        })
    })
    .await
}

#[tokio::test]
async fn spare_client_secrets_are_tried_in_turn_if_the_first_is_refused() {
    const INVALID_CLIENT: &str = r#"{"error":"invalid_client"}"#;
    const INVALID_GRANT: &str = r#"{"error":"invalid_grant"}"#;
    let spare = || vec!["second".into(), "third".into()];
    for (kind, secret, refusal, asked, works) in [
        (ProviderKind::Github, "cl1ent-s3cret", INVALID_CLIENT, 1, true),
        (ProviderKind::Github, "third", INVALID_CLIENT, 3, true),
        (ProviderKind::Github, "another", INVALID_CLIENT, 3, false),
        // The refresh token is refused: no other secret helps.
        (ProviderKind::Github, "second", INVALID_GRANT, 1, false),
        // GitLab answers this for a wrong secret too.
        (ProviderKind::Gitlab, "second", INVALID_GRANT, 2, true),
        (ProviderKind::Gitlab, "second", r#"{"error":"invalid_request"}"#, 1, false),
    ] {
        let endpoint = endpoint_with_secret(secret, refusal).await;
        let provider = Provider { spare_client_secrets: spare(), ..endpoint.of(provider(kind)) };
        let result = refresh(&provider).await;
        assert_eq!((endpoint.seen().len(), result.is_ok()), (asked, works), "{kind} {secret} {refusal}");
        let told = result.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(["cl1ent-s3cret", "second", "third"].iter().all(|secret| !told.contains(secret)), "{told}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let elsewhere = Endpoint::answering("200 OK", JSON, PAIR).await;
        let location = format!("location: http://127.0.0.1:{}/token\r\n", elsewhere.port);
        let endpoint = Endpoint::answering(status, &location, "").await;
        let result = refresh_at(&endpoint).await;
        assert!(matches!(result, Err(RefreshError::Misconfigured { .. })), "{status}: {result:?}");
        assert_eq!(elsewhere.seen().len(), 0, "{status} was followed");
    }
}

#[tokio::test]
async fn a_provider_that_was_not_reached_did_not_act() {
    let refusing = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/token", listener.local_addr().unwrap())
    };
    // The first accepts and stays silent, the second answers without TLS.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute_url = format!("https://{}/token", mute.local_addr().unwrap());
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_url = format!("https://{}/token", plain.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = plain.accept().await {
            let _ = connection.read(&mut [0; 512]).await;
            let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    for url in [refusing, mute_url, plain_url] {
        let token_url = Url::parse(&url).unwrap();
        let result = refresh(&Provider { token_url, ..provider(ProviderKind::Github) }).await;
        assert_eq!(acted(&result), Acted::No, "{url}: {result:?}");
    }
    drop(mute);
}

#[tokio::test]
async fn a_failed_name_lookup_is_a_local_failure() {
    let token_url = Url::parse("https://no-such-host.invalid/token").unwrap();
    let host = "no-such-host.invalid".to_owned();
    let result = refresh(&Provider { host, token_url, ..provider(ProviderKind::Github) }).await;
    assert!(matches!(result, Err(RefreshError::Local { .. })), "{result:?}");
}

#[tokio::test]
async fn secrets_are_not_sent_to_other_machines_without_tls() {
    let endpoint = Endpoint::answering("200 OK", JSON, PAIR).await;
    let token_url = Url::parse(&format!("http://localhost.example.org:{}/token", endpoint.port)).unwrap();
    let result = refresh(&Provider { token_url, ..provider(ProviderKind::Generic) }).await;
    assert!(
        matches!(&result, Err(RefreshError::Misconfigured { detail, .. }) if detail.contains("https")),
        "{result:?}"
    );
    assert_eq!(endpoint.seen().len(), 0);
}

#[tokio::test]
async fn secrets_are_not_sent_to_a_host_that_is_not_the_providers() {
    let token_url = Url::parse("https://elsewhere.example.org/token").unwrap();
    let result = refresh(&Provider { token_url, ..provider(ProviderKind::Generic) }).await;
    let Err(RefreshError::Misconfigured { client: ClientRefusal::No, detail }) = result else {
        panic!("{result:?}")
    };
    assert!(detail.contains("add token_hosts = [\"elsewhere.example.org\"]"), "{detail}");
}

#[tokio::test]
async fn secrets_are_not_sent_to_private_and_metadata_addresses() {
    for (host, told) in [
        ("10.255.255.1", "allow_private_network = true"),
        ("[fc00::1]", "allow_private_network = true"),
        ("169.254.169.254", "where no provider can be"),
        ("[::ffff:169.254.169.254]", "where no provider can be"),
    ] {
        let token_url = Url::parse(&format!("https://{host}/token")).unwrap();
        let host = token_url.host_str().unwrap().to_owned();
        // One that it tried to reach would be unavailable.
        let result = refresh(&Provider { host, token_url, ..provider(ProviderKind::Generic) }).await;
        let Err(RefreshError::Misconfigured { client: ClientRefusal::No, detail }) = result else {
            panic!("{result:?}")
        };
        assert!(detail.contains(told), "{detail}");
    }
}

/// This machine, by an address that does not say so.
fn in_disguise(port: u16) -> Url {
    Url::parse(&format!("http://[::ffff:127.0.0.1]:{port}/token")).unwrap()
}

#[tokio::test]
async fn a_connection_that_was_opened_under_one_rule_is_not_used_under_another() {
    // It keeps its connections open.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = format!("HTTP/1.1 200 OK\r\n{JSON}content-length: {}\r\n\r\n{PAIR}", PAIR.len());
    let served = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut requests = 0;
        while read_request(&mut connection).await.is_some() {
            requests += 1;
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    });
    let provider = Provider { token_url: in_disguise(port), ..provider(ProviderKind::Github) };
    let client = client(Duration::from_secs(30));
    let request = RefreshRequest {
        provider: &provider,
        client_secret: &provider.client_secret,
        refresh_token: &"old-r3fresh".into(),
        scopes: &[],
    };
    for _ in 0..2 {
        client.ask(request, Reach::Private).await.unwrap();
    }
    let refused = client.ask(request, Reach::Public).await;
    assert!(
        matches!(&refused, Err(RefreshError::Misconfigured { detail, .. }) if detail.contains("loopback")),
        "{refused:?}"
    );
    drop(client);
    assert_eq!(served.await.unwrap(), 2, "under one rule a connection is used again");
}

#[tokio::test]
async fn a_retry_after_date_is_compared_with_the_clock() {
    let headers = "retry-after: Wed, 21 Oct 2015 07:28:12 GMT\r\n";
    let endpoint = Endpoint::answering("503 Service Unavailable", headers, "").await;
    let result = refresh(&endpoint.of(provider(ProviderKind::Bitbucket))).await;
    let Err(RefreshError::Unavailable { acted: Acted::No, retry_after, .. }) = result else {
        panic!("{result:?}")
    };
    assert_eq!(retry_after, Some(Duration::from_secs(12)));
}

#[tokio::test]
async fn secrets_that_a_provider_echoes_are_not_repeated() {
    for (kind, status) in [(ProviderKind::Github, "200 OK"), (ProviderKind::Bitbucket, "400 Bad Request")] {
        let endpoint = Endpoint::start(move |seen| {
            let echo = format!("{} {:?} {:?}", seen.body, seen.form(), seen.headers.get("authorization"));
            let body = serde_json::json!({"error": "invalid_grant", "error_description": echo}).to_string();
            Reply::Bytes(http(status, JSON, &body))
        })
        .await;
        let error = refresh(&endpoint.of(provider(kind))).await.unwrap_err();
        let told = format!("{error} {error:?}");
        let credentials = BASE64.encode("tokenkeeper-client:cl1ent-s3cret");
        for secret in ["r3fresh", "s3cret", &credentials[..12]] {
            assert!(!told.contains(secret), "{told}");
        }
        assert!(told.contains("invalid_grant"), "{told}");
    }
}
