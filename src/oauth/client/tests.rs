use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

use super::super::body::MAX_ANSWER;
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

fn acted(result: &Result<IssuedPair, RefreshError>) -> Acted {
    match result {
        Err(RefreshError::Unavailable { acted, .. }) => *acted,
        Err(RefreshError::Unreadable { .. }) => Acted::Unknown,
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test]
async fn every_kind_is_asked_in_its_own_way() {
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
async fn a_redirect_uri_is_sent_where_it_is_set_and_signs_survive_the_form() {
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
async fn the_scopes_of_a_token_are_sent_to_the_kind_that_wants_them_and_a_parameter_of_the_operator_wins() {
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

/// An endpoint that takes one secret alone, and refuses others as it is told.
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
async fn spare_client_secrets_are_tried_in_turn_where_the_one_before_is_not_taken() {
    const INVALID_CLIENT: &str = r#"{"error":"invalid_client"}"#;
    const INVALID_GRANT: &str = r#"{"error":"invalid_grant"}"#;
    let spare = || vec!["second".into(), "third".into()];
    for (kind, secret, refusal, asked, works) in [
        (ProviderKind::Github, "cl1ent-s3cret", INVALID_CLIENT, 1, true),
        (ProviderKind::Github, "third", INVALID_CLIENT, 3, true),
        (ProviderKind::Github, "another", INVALID_CLIENT, 3, false),
        // Refused for its refresh token, which no secret makes good.
        (ProviderKind::Github, "second", INVALID_GRANT, 1, false),
        // Which says a wrong secret too.
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
async fn a_pair_whose_length_counts_characters_is_not_lost() {
    let body = r#"{"access_token":"new-access","refresh_token":"new-refresh","user":"Jürgen Müller"}"#;
    let length = body.chars().count();
    let answer = format!("HTTP/1.1 200 OK\r\n{JSON}content-length: {length}\r\n\r\n{body}");
    let endpoint = Endpoint::start(move |_| Reply::Bytes(answer.clone().into_bytes())).await;
    let pair = refresh(&endpoint.of(provider(ProviderKind::Github))).await.unwrap();
    assert_eq!(pair.refresh_token.unwrap().expose_secret(), "new-refresh");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let elsewhere = Endpoint::answering("200 OK", JSON, PAIR).await;
        let location = format!("location: http://127.0.0.1:{}/token\r\n", elsewhere.port);
        let endpoint = Endpoint::answering(status, &location, "").await;
        let result = refresh(&endpoint.of(provider(ProviderKind::Github))).await;
        assert!(matches!(result, Err(RefreshError::Misconfigured { .. })), "{status}: {result:?}");
        assert_eq!(elsewhere.seen().len(), 0, "{status} was followed");
    }
}

#[tokio::test]
async fn the_answer_of_a_lost_connection_may_have_been_a_new_pair() {
    let half = &PAIR[..PAIR.len() / 2];
    let cut_by_length = format!("HTTP/1.1 200 OK\r\n{JSON}content-length: {}\r\n\r\n{half}", PAIR.len());
    let cut_by_chunk =
        format!("HTTP/1.1 200 OK\r\n{JSON}transfer-encoding: chunked\r\n\r\n{:x}\r\n{half}\r\n", half.len());
    for reply in [
        Reply::Close,
        Reply::Bytes(b"HTTP/1.1 200 O".to_vec()),
        Reply::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        Reply::Bytes(cut_by_length.into()),
        Reply::Bytes(cut_by_chunk.into()),
    ] {
        let endpoint = Endpoint::start(move |_| reply.clone()).await;
        let result = refresh(&endpoint.of(provider(ProviderKind::Github))).await;
        assert_eq!(acted(&result), Acted::Unknown, "{result:?}");
        assert_eq!(endpoint.seen().len(), 1, "asked again without being told to");
    }
}

#[tokio::test]
async fn a_pair_is_complete_with_its_last_brace_whatever_comes_behind_it() {
    let longer = PAIR.len() + 20;
    let head = format!("HTTP/1.1 200 OK\r\n{JSON}");
    let size = PAIR.len();
    for reply in [
        Reply::Bytes(format!("{head}content-length: {longer}\r\n\r\n{PAIR}").into()),
        Reply::Bytes(format!("{head}transfer-encoding: chunked\r\n\r\n{size:x}\r\n{PAIR}\r\n").into()),
        Reply::Stall(format!("{head}content-length: {longer}\r\n\r\n{PAIR}").into()),
        Reply::Stall(format!("{head}\r\n{PAIR}").into()),
        Reply::Bytes(format!("{head}\r\n{PAIR}{}", " ".repeat(2 * MAX_ANSWER)).into()),
    ] {
        let endpoint = Endpoint::start(move |_| reply.clone()).await;
        let begin = Instant::now();
        let pair = refresh(&endpoint.of(provider(ProviderKind::Github))).await.unwrap();
        assert_eq!(pair.access_token.expose_secret(), "new-access");
        assert!(begin.elapsed() < Duration::from_secs(5), "it waited for what does not come");
    }
}

#[tokio::test]
async fn an_answer_is_decompressed_though_it_was_not_asked_for() {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    let level = Compression::default();
    let [mut gzip, mut half] = [(); 2].map(|()| GzEncoder::new(Vec::new(), level));
    let (mut zlib, mut deflate) =
        (ZlibEncoder::new(Vec::new(), level), DeflateEncoder::new(Vec::new(), level));
    for encoder in [&mut gzip as &mut dyn std::io::Write, &mut zlib, &mut deflate] {
        encoder.write_all(PAIR.as_bytes()).unwrap();
    }
    std::io::Write::write_all(&mut half, &PAIR.as_bytes()[..20]).unwrap();
    for (label, bytes, is_pair) in [
        ("content-encoding: gzip\r\n", gzip.finish().unwrap(), true),
        ("content-encoding: deflate\r\n", zlib.finish().unwrap(), true),
        ("content-encoding: Deflate\r\n", deflate.finish().unwrap(), true),
        ("content-encoding: gzip\r\n", PAIR.into(), true),
        ("content-encoding: gzip\r\n", half.finish().unwrap(), false),
        ("content-encoding: gzip\r\n", b"\x1f\x8b no gzip".to_vec(), false),
        ("content-encoding: br\r\n", vec![0x8b, 0x02, 0x80], false),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{JSON}{label}content-length: {}\r\n\r\n", bytes.len());
        let answer = [head.into_bytes(), bytes].concat();
        let endpoint = Endpoint::start(move |_| Reply::Bytes(answer.clone())).await;
        let result = refresh(&endpoint.of(provider(ProviderKind::Github))).await;
        assert_eq!(result.is_ok(), is_pair, "{label}: {result:?}");
        if !is_pair {
            assert!(matches!(result, Err(RefreshError::Unreadable { .. })), "{label}: {result:?}");
        }
    }
}

#[tokio::test]
async fn what_is_small_when_compressed_is_read_no_further_than_any_other_answer() {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let filler = vec![b' '; 1024 * 1024];
    for _ in 0..64 {
        std::io::Write::write_all(&mut bomb, &filler).unwrap();
    }
    let bytes = bomb.finish().unwrap();
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", bytes.len());
    let answer = [head.into_bytes(), bytes].concat();
    let endpoint = Endpoint::start(move |_| Reply::Bytes(answer.clone())).await;
    let result = refresh(&endpoint.of(provider(ProviderKind::Github))).await;
    let Err(RefreshError::Unreadable { detail }) = &result else { panic!("{result:?}") };
    assert!(detail.contains("too long"), "{detail}");
}

#[tokio::test]
async fn an_error_is_an_error_even_where_its_body_breaks_off() {
    let endpoint =
        Endpoint::start(|_| Reply::Bytes(b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\n{".to_vec())).await;
    assert_eq!(acted(&refresh(&endpoint.of(provider(ProviderKind::Github))).await), Acted::No);
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_may_have_been_a_new_pair() {
    let head = http("200 OK", JSON, PAIR);
    let half = head[..head.len() - 10].to_vec();
    for sent in [Vec::new(), half] {
        let endpoint = Endpoint::start(move |_| Reply::Stall(sent.clone())).await;
        let provider = endpoint.of(provider(ProviderKind::Github));
        let result = client(Duration::from_millis(400)).refresh(&provider, &"old-r3fresh".into(), &[]).await;
        assert_eq!(acted(&result), Acted::Unknown, "{result:?}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let answers: [(&'static [u8], &'static [u8]); 10] = [
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"access_token\":\"a", &[b'a'; 4096]),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n{", &[b'a'; 4096]),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: ", &[b'a'; 4096]),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", &[b'a'; 4096]),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"x: y\r\n"),
    ];
    for (head, more) in answers {
        let mut endpoint = Endpoint::start(move |_| Reply::Endless(head, more)).await;
        let begin = Instant::now();
        let result = refresh(&endpoint.of(provider(ProviderKind::Github))).await;
        assert_eq!(acted(&result), Acted::Unknown, "{result:?}");
        let (head, more) =
            (String::from_utf8_lossy(head), String::from_utf8_lossy(&more[..more.len().min(40)]));
        assert!(begin.elapsed() < Duration::from_secs(5), "only the timeout ended {head} {more}");
        endpoint.client_left().await;
    }
}

#[tokio::test]
async fn an_answer_that_comes_byte_by_byte_has_no_more_time_than_any_other() {
    for sent in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nx: aaaaaaaaaa"] {
        let mut endpoint = Endpoint::start(move |_| Reply::Drip(sent.into())).await;
        let provider = endpoint.of(provider(ProviderKind::Github));
        let result = client(Duration::from_millis(400)).refresh(&provider, &"old-r3fresh".into(), &[]).await;
        assert_eq!(acted(&result), Acted::Unknown, "{result:?}");
        endpoint.client_left().await;
    }
}

#[tokio::test]
async fn an_answer_may_have_hundreds_of_headers_and_interim_answers_before_it() {
    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(50);
    let headers = "x-request: 1\r\n".repeat(200);
    let answer =
        format!("{interim}HTTP/1.1 200 OK\r\n{JSON}{headers}content-length: {}\r\n\r\n{PAIR}", PAIR.len());
    let endpoint = Endpoint::start(move |_| Reply::Bytes(answer.clone().into())).await;
    let pair = refresh(&endpoint.of(provider(ProviderKind::Github))).await.unwrap();
    assert_eq!(pair.access_token.expose_secret(), "new-access");
}

#[tokio::test]
async fn a_connection_is_used_again_and_each_answer_has_the_whole_budget() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token_url = Url::parse(&format!("http://{}/token", listener.local_addr().unwrap())).unwrap();
    let body = filled(MAX_ANSWER);
    let answer = format!("HTTP/1.1 200 OK\r\n{JSON}content-length: {}\r\n\r\n{body}", body.len());
    let served = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        for _ in 0..20 {
            read_request(&mut connection).await.expect("it comes over the same connection");
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let provider = Provider { token_url, ..provider(ProviderKind::Github) };
    let client = client(Duration::from_secs(10));
    for _ in 0..20 {
        client.refresh(&provider, &"old-r3fresh".into(), &[]).await.unwrap();
    }
    served.await.unwrap();
}

/// A pair in an object of so many bytes.
fn filled(length: usize) -> String {
    format!("{{{}{}", " ".repeat(length - PAIR.len()), &PAIR[1..])
}

#[tokio::test]
async fn an_answer_is_read_up_to_128_kib() {
    let endpoint = Endpoint::answering("200 OK", JSON, &filled(MAX_ANSWER)).await;
    assert!(refresh(&endpoint.of(provider(ProviderKind::Github))).await.is_ok());
    let endpoint = Endpoint::answering("200 OK", JSON, &filled(MAX_ANSWER + 1)).await;
    assert_eq!(acted(&refresh(&endpoint.of(provider(ProviderKind::Github))).await), Acted::Unknown);
}

#[tokio::test]
async fn a_provider_that_was_not_reached_did_not_act() {
    let refusing = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/token", listener.local_addr().unwrap())
    };
    // The first accepts and never speaks TLS, the second does not know it.
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
async fn a_name_that_cannot_be_looked_up_is_held_against_no_host() {
    let token_url = Url::parse("https://no-such-host.invalid/token").unwrap();
    let result = refresh(&Provider { token_url, ..provider(ProviderKind::Github) }).await;
    assert!(matches!(result, Err(RefreshError::Local { .. })), "{result:?}");
}

#[tokio::test]
async fn secrets_do_not_leave_the_machine_without_tls() {
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
async fn a_date_to_come_back_at_is_counted_from_the_clock() {
    let headers = "retry-after: Wed, 21 Oct 2015 07:28:12 GMT\r\n";
    let endpoint = Endpoint::answering("503 Service Unavailable", headers, "").await;
    let result = refresh(&endpoint.of(provider(ProviderKind::Bitbucket))).await;
    let Err(RefreshError::Unavailable { acted: Acted::No, retry_after, .. }) = result else {
        panic!("{result:?}")
    };
    assert_eq!(retry_after, Some(Duration::from_secs(12)));
}

#[tokio::test]
async fn what_a_provider_echoes_is_not_told_on() {
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
