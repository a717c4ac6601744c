use super::*;

fn reason(kind: MessageKind, body: &str) -> String {
    decode(kind, body.as_bytes()).expect_err("must be refused").reason
}

#[test]
fn a_good_request_is_read_whatever_unknown_fields_it_has() {
    for whole in ["86400", "86400.0", "8.64e4"] {
        let body = format!(
            r#"{{"user_id":"u-1","host":"h.example.org","requested_lifetime_secs":{whole},"later":[1]}}"#
        );
        let Ok(Request::Token(request)) = decode(MessageKind::TokenRequest, body.as_bytes()) else {
            panic!("{whole} is not read")
        };
        assert_eq!(request.user_id.as_str(), "u-1");
        assert_eq!(request.requested_lifetime_secs.unwrap().duration().as_secs(), 86400);
    }
}

#[test]
fn unknown_fields_are_noted_wherever_they_stand_and_also_of_a_wrong_message() {
    use MessageKind::{TokenReport, TokenRequest, TokenStore, WorkspaceStart};
    for (kind, body, expected) in [
        (TokenRequest, r#"{"user_id":"u","host":"h","requested_lifetime_secs":null}"#, &[][..]),
        (TokenRequest, r#"{"user_id":"u","host":"h","lifetime":{"a":{"b":1}}}"#, &["lifetime"]),
        (TokenRequest, r#"{"user_id":"u","Host":"h"}"#, &["Host"]),
        (
            WorkspaceStart,
            r#"{"workspace_id":"w","user_id":"u","repositories":["https://h/r"],"r\u0065po":1}"#,
            &["repo"],
        ),
        (
            TokenStore,
            r#"{"x":1,"user_id":"u","host":"h","token":{"value":"t","refreshToken":"r"}}"#,
            &["x", "token.refreshToken"],
        ),
        (TokenStore, r#"{"user_id":"u","host":"h","token":{"Value":"s3cret"}}"#, &["token.Value"]),
        (TokenReport, r#"{"user_id":"u","host":"h","token":"s3cret"}"#, &["token"]),
    ] {
        let mut unknown = UnknownFields::default();
        let decoded = decode_noting(kind, body.as_bytes(), &mut unknown);
        let noted = serde_json::to_value(unknown.into_iter().collect::<Vec<_>>()).unwrap();
        let expected: Vec<String> = expected.iter().map(|name| format!("unknown_field: {name}")).collect();
        assert_eq!(noted, serde_json::json!(expected), "{body}: {decoded:?}");
    }
}

#[test]
fn the_reason_names_the_field_and_what_would_be_right() {
    use MessageKind::{TokenRequest, TokenStore, WorkspaceStart};
    for (kind, body, expected) in [
        (TokenRequest, "", "the body is not JSON (line 1, column 0)"),
        (TokenRequest, "{", "the body is not JSON (line 1, column 1)"),
        (TokenRequest, r#"["u","h"]"#, "the body must be a JSON object"),
        (TokenRequest, "7", "the body must be a JSON object"),
        (TokenStore, r#"{"user_id":"u","host":"h","token":["t"]}"#, "token: must be an object"),
        (TokenRequest, r#"{"host":"h"}"#, "missing field `user_id`"),
        (TokenRequest, r#"{"user_id":"u"}"#, "missing field `host`"),
        (TokenRequest, r#"{"user_id":7,"host":"h"}"#, "user_id: must be a string"),
        (TokenRequest, r#"{"user_id":"","host":"h"}"#, "user_id: must be 1 to 255 characters"),
        (
            TokenRequest,
            r#"{"user_id":"a\u0000b","host":"h"}"#,
            "user_id: must not contain control characters",
        ),
        (
            TokenRequest,
            r#"{"user_id":"u","host":"https://h/"}"#,
            "host: must be a bare host name, with a port where there is one, like bitbucket.example.org:7990",
        ),
        (
            TokenRequest,
            r#"{"user_id":"u","host":"h","requested_lifetime_secs":0}"#,
            "requested_lifetime_secs: must be a whole number from 1 to 86400",
        ),
        (
            TokenRequest,
            r#"{"user_id":"u","host":"h","requested_lifetime_secs":86401}"#,
            "requested_lifetime_secs: must be a whole number from 1 to 86400",
        ),
        (
            TokenRequest,
            r#"{"user_id":"u","host":"h","requested_lifetime_secs":-1}"#,
            "requested_lifetime_secs: must be a whole number from 1 to 86400",
        ),
        (
            TokenRequest,
            r#"{"user_id":"u","host":"h","requested_lifetime_secs":"5m"}"#,
            "requested_lifetime_secs: must be a whole number from 1 to 86400",
        ),
        (
            TokenRequest,
            r#"{"user_id":"u","host":"h","requested_lifetime_secs":300.5}"#,
            "requested_lifetime_secs: must be a whole number from 1 to 86400",
        ),
        (
            TokenRequest,
            r#"{"user_id":"u","host":"h","requested_lifetime_secs":1e300}"#,
            "requested_lifetime_secs: must be a whole number from 1 to 86400",
        ),
        (TokenRequest, r#"{"user_id":"u","host":"h","user_id":"v"}"#, "duplicate field `user_id`"),
        (
            WorkspaceStart,
            r#"{"workspace_id":"w","user_id":"u","repositories":[]}"#,
            "repositories: must be 1 to 16 clone URLs",
        ),
        (
            WorkspaceStart,
            r#"{"workspace_id":"w","user_id":"u","repositories":["x",7]}"#,
            "repositories[1]: must be a string",
        ),
        (
            TokenStore,
            r#"{"user_id":"u","host":"h","token":{"value":""}}"#,
            "token.value: must be 1 to 32768 bytes",
        ),
        (
            TokenStore,
            r#"{"user_id":"u","host":"h","token":{"value":"a","expires_at":"soon"}}"#,
            "token.expires_at: not an RFC 3339 date like 2020-01-01T01:05:00.000Z: premature end of input",
        ),
    ] {
        assert_eq!(reason(kind, body), expected, "{body}");
    }
    let documented =
        "| lifetime as text or fraction | requested_lifetime_secs: must be a whole number from 1 to 86400 |";
    assert!(include_str!("../../../docs/operating.md").contains(documented));
}

#[test]
fn a_body_that_is_not_utf_8_is_refused_also_where_the_field_is_ignored() {
    for body in
        [&b"{\"user_id\":\"\xff\",\"host\":\"h\"}"[..], b"{\"user_id\":\"u\",\"host\":\"h\",\"x\":\"\xc3\"}"]
    {
        let error = decode(MessageKind::TokenRequest, body).unwrap_err();
        assert_eq!(error.reason, "the body is not UTF-8");
    }
}

#[test]
fn a_body_that_has_a_status_is_a_reply_and_no_request_whatever_else_is_in_it() {
    for body in [
        r#"{"status":"ok","user_id":"u","host":"h","token":{"value":"t"}}"#,
        r#"{"user_id":"u","host":"h","token":{"value":"t"},"status":null}"#,
        r#"{"user_id":"u","host":"h","token":{"value":"t"},"st\u0061tus":{"later":[1]}}"#,
        r#"{"status":"error","user_id":7,"workspace_id":"w","repositories":["https://h/r"]}"#,
        r#"{"workspace_id":"w","user_id":"u","repositories":["https://h/r"],"status":"ok","status":"ok"}"#,
        r#"{"status":"ok"}"#,
    ] {
        for kind in MessageKind::ALL {
            let refused = decode(kind, body.as_bytes()).unwrap_err();
            assert!(!refused.is_request, "{kind}: {body}");
            assert_eq!(refused.reason, "status: stands in replies alone, so this is no request");
        }
    }
    for body in [
        r#"{"user_id":"u","host":"h","token":{"value":"t","status":"ok"}}"#,
        r#"{"user_id":"u","host":"h","token":{"value":"t"},"Status":1}"#,
    ] {
        assert!(decode(MessageKind::TokenStore, body.as_bytes()).is_ok(), "{body}");
    }
    assert!(decode(MessageKind::TokenRequest, br#"{"user_id":7,"host":"h"}"#).unwrap_err().is_request);
}

#[test]
fn what_stands_behind_the_object_and_too_large_a_body_are_told() {
    let behind = reason(MessageKind::TokenRequest, r#"{"user_id":"u","host":"h"} x"#);
    assert_eq!(behind, "the body is not JSON (line 1, column 28)");
    let large = format!(r#"{{"user_id":"u","host":"h","x":"{}"}}"#, "y".repeat(MAX_BODY_BYTES));
    assert!(reason(MessageKind::TokenRequest, &large).contains("at most 65536"));
    assert!(reason(MessageKind::TokenStore, &large).contains("at most 131072"));
    let longest = "t".repeat(MAX_TOKEN_LEN);
    let login = format!(
        r#"{{"user_id":"u","host":"h","token":{{"value":"{longest}","refresh_token":"{longest}"}}}}"#
    );
    assert!(decode(MessageKind::TokenStore, login.as_bytes()).is_ok());
}

#[test]
fn user_and_host_are_echoed_where_they_could_be_read() {
    let body = br#"{"user_id":"u-1","host":"h","requested_lifetime_secs":0}"#;
    let error = decode(MessageKind::TokenRequest, body).unwrap_err();
    assert_eq!(error.echo.user_id.as_deref(), Some("u-1"));
    assert_eq!(error.echo.host.as_deref(), Some("h"));
    let error = decode(MessageKind::TokenRequest, br#"{"user_id":"u-1","host":7}"#).unwrap_err();
    assert_eq!((error.echo.user_id.as_deref(), error.echo.host), (Some("u-1"), None));
    let body = br#"{"user_id":"u\n1","host":"https://jdoe:s3cret@h/"}"#;
    let error = decode(MessageKind::TokenRequest, body).unwrap_err();
    assert_eq!(*error.echo, Echo::default(), "what stands there is neither a user nor a host");
}

#[test]
fn a_misplaced_token_is_not_repeated_in_the_reason() {
    for body in [
        r#"{"user_id":"u","host":"h","token":"s3cret-token"}"#,
        r#"{"user_id":"u","host":"h","token":{"value":"a","scopes":"s3cret-token, expected x"}}"#,
        r#"{"user_id":"u","host":"h","token":{"value":"a","expires_at":"s3cret-token"}}"#,
        r#"{"user_id":"u","host":"h","token":{"value":"s3cret-tokené"}}"#,
        r#"{"user_id":"u","host":"s3cret-token/x","token":{"value":"a"}}"#,
    ] {
        let reason = reason(MessageKind::TokenStore, body);
        assert!(!reason.contains("s3cret"), "{reason}");
    }
}

#[test]
fn a_pair_of_sixteen_kib_is_taken_and_a_larger_one_is_not() {
    let body =
        |len: usize| format!(r#"{{"user_id":"u","host":"h","token":{{"value":"{}"}}}}"#, "t".repeat(len));
    assert!(decode(MessageKind::TokenStore, body(32 * 1024).as_bytes()).is_ok());
    assert_eq!(
        reason(MessageKind::TokenStore, &body(32 * 1024 + 1)),
        "token.value: must be 1 to 32768 bytes"
    );
}
