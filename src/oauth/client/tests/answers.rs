//! Answers that are incomplete, late, compressed, endless or otherwise odd.

use std::io::Write as _;
use std::time::Instant;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

use super::super::super::body::MAX_ANSWER;
use super::*;

#[tokio::test]
async fn a_pair_is_read_although_its_content_length_counts_characters() {
    let body = r#"{"access_token":"new-access","refresh_token":"new-refresh","user":"Jürgen Müller"}"#;
    let length = body.chars().count();
    let answer = format!("HTTP/1.1 200 OK\r\n{JSON}content-length: {length}\r\n\r\n{body}");
    let endpoint = Endpoint::replying(Reply::Bytes(answer.into())).await;
    let pair = refresh_at(&endpoint).await.unwrap();
    assert_eq!(pair.refresh_token.unwrap().expose_secret(), "new-refresh");
}

#[tokio::test]
async fn a_lost_connection_leaves_open_whether_the_provider_acted() {
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
        let endpoint = Endpoint::replying(reply).await;
        let result = refresh_at(&endpoint).await;
        assert_eq!(acted(&result), Acted::Unknown, "{result:?}");
        assert_eq!(endpoint.seen().len(), 1, "the request was sent again");
    }
}

#[tokio::test]
async fn a_pair_is_complete_with_its_last_brace_whatever_follows() {
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
        let endpoint = Endpoint::replying(reply).await;
        let begin = Instant::now();
        let pair = refresh_at(&endpoint).await.unwrap();
        assert_eq!(pair.access_token.expose_secret(), "new-access");
        assert!(begin.elapsed() < Duration::from_secs(5), "it waited for more than the pair");
    }
}

fn encoded(encoding: &str, bytes: &[u8]) -> Reply {
    let length = bytes.len();
    let head =
        format!("HTTP/1.1 200 OK\r\n{JSON}content-encoding: {encoding}\r\ncontent-length: {length}\r\n\r\n");
    Reply::Bytes([head.as_bytes(), bytes].concat())
}

#[tokio::test]
async fn an_answer_with_unrequested_compression_is_decompressed() {
    let level = Compression::default();
    let [mut gzip, mut half] = [(); 2].map(|()| GzEncoder::new(Vec::new(), level));
    let (mut zlib, mut deflate) =
        (ZlibEncoder::new(Vec::new(), level), DeflateEncoder::new(Vec::new(), level));
    for encoder in [&mut gzip as &mut dyn std::io::Write, &mut zlib, &mut deflate] {
        encoder.write_all(PAIR.as_bytes()).unwrap();
    }
    half.write_all(&PAIR.as_bytes()[..20]).unwrap();
    for (label, bytes, is_pair) in [
        ("gzip", gzip.finish().unwrap(), true),
        ("deflate", zlib.finish().unwrap(), true),
        ("Deflate", deflate.finish().unwrap(), true),
        ("gzip", PAIR.into(), true),
        ("gzip", half.finish().unwrap(), false),
        ("gzip", b"\x1f\x8b no gzip".to_vec(), false),
        ("br", vec![0x8b, 0x02, 0x80], false),
    ] {
        let result = refresh_at(&Endpoint::replying(encoded(label, &bytes)).await).await;
        assert_eq!(result.is_ok(), is_pair, "{label}: {result:?}");
        if !is_pair {
            assert!(matches!(result, Err(RefreshError::Unreadable { .. })), "{label}: {result:?}");
        }
    }
}

#[tokio::test]
async fn the_size_limit_applies_to_the_decompressed_answer() {
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    let filler = vec![b' '; 1024 * 1024];
    for _ in 0..64 {
        bomb.write_all(&filler).unwrap();
    }
    let bomb = encoded("gzip", &bomb.finish().unwrap());
    let result = refresh_at(&Endpoint::replying(bomb).await).await;
    let Err(RefreshError::Unreadable { detail }) = &result else { panic!("{result:?}") };
    assert!(detail.contains("too long"), "{detail}");
}

#[tokio::test]
async fn an_error_status_counts_even_if_the_body_is_incomplete() {
    let answer = b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\n{".to_vec();
    let endpoint = Endpoint::replying(Reply::Bytes(answer)).await;
    assert_eq!(acted(&refresh_at(&endpoint).await), Acted::No);
}

#[tokio::test]
async fn a_timeout_leaves_open_whether_the_provider_acted() {
    let head = http("200 OK", JSON, PAIR);
    let half = head[..head.len() - 10].to_vec();
    for sent in [Vec::new(), half] {
        let endpoint = Endpoint::replying(Reply::Stall(sent)).await;
        let result = impatient_refresh_at(&endpoint).await;
        assert_eq!(acted(&result), Acted::Unknown, "{result:?}");
    }
}

#[tokio::test]
async fn reading_an_endless_answer_stops() {
    let answers: [(&'static [u8], &'static [u8]); 12] = [
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"access_token\":\"a", &[b'a'; 4096]),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n{", &[b'a'; 4096]),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        // HTTP/2: empty SETTINGS and PING frames (RFC 9113, section 6).
        (b"", b"\0\0\0\x04\0\0\0\0\0"),
        (b"", b"\0\0\x08\x06\0\0\0\0\0pingpong"),
        (b"HTTP/1.1 200 OK\r\nx: ", &[b'a'; 4096]),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", &[b'a'; 4096]),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"x: y\r\n"),
    ];
    for (head, more) in answers {
        let mut endpoint = Endpoint::replying(Reply::Endless(head, more)).await;
        let begin = Instant::now();
        let result = refresh_at(&endpoint).await;
        assert_eq!(acted(&result), Acted::Unknown, "{result:?}");
        let (head, more) =
            (String::from_utf8_lossy(head), String::from_utf8_lossy(&more[..more.len().min(40)]));
        assert!(begin.elapsed() < Duration::from_secs(5), "only the timeout ended {head} {more}");
        endpoint.client_left().await;
    }
}

#[tokio::test]
async fn the_timeout_applies_to_an_answer_that_comes_byte_by_byte() {
    for sent in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nx: aaaaaaaaaa"] {
        let mut endpoint = Endpoint::replying(Reply::Drip(sent.into())).await;
        let result = impatient_refresh_at(&endpoint).await;
        assert_eq!(acted(&result), Acted::Unknown, "{result:?}");
        endpoint.client_left().await;
    }
}

#[tokio::test]
async fn an_answer_may_have_hundreds_of_headers_and_interim_answers_before_it() {
    let asked = async |interim: usize, headers: usize| {
        let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(interim);
        let headers = "x-request: 1\r\n".repeat(headers);
        let answer = format!(
            "{interim}HTTP/1.1 200 OK\r\n{JSON}{headers}content-length: {}\r\n\r\n{PAIR}",
            PAIR.len()
        );
        refresh_at(&Endpoint::replying(Reply::Bytes(answer.into())).await).await
    };
    let pair = asked(50, 200).await.unwrap();
    assert_eq!(pair.access_token.expose_secret(), "new-access");
    // And no more than that, though it is far less than an answer may have in bytes.
    for (interim, headers) in [(1_000, 0), (0, 300)] {
        let result = asked(interim, headers).await;
        assert_eq!(acted(&result), Acted::Unknown, "{interim} {headers}: {result:?}");
    }
}

#[tokio::test]
async fn a_connection_is_reused_and_each_answer_has_the_whole_budget() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token_url = Url::parse(&format!("http://{}/token", listener.local_addr().unwrap())).unwrap();
    let body = filled(MAX_ANSWER);
    let answer = format!("HTTP/1.1 200 OK\r\n{JSON}content-length: {}\r\n\r\n{body}", body.len());
    let served = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        for _ in 0..20 {
            read_request(&mut connection).await.expect("the same connection is used");
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

/// A pair in an object of `length` bytes.
fn filled(length: usize) -> String {
    format!("{{{}{}", " ".repeat(length - PAIR.len()), &PAIR[1..])
}

#[tokio::test]
async fn an_answer_is_read_up_to_128_kib() {
    let endpoint = Endpoint::answering("200 OK", JSON, &filled(MAX_ANSWER)).await;
    assert!(refresh_at(&endpoint).await.is_ok());
    let endpoint = Endpoint::answering("200 OK", JSON, &filled(MAX_ANSWER + 1)).await;
    assert_eq!(acted(&refresh_at(&endpoint).await), Acted::Unknown);
}
