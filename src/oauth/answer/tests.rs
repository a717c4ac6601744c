use super::super::testing::provider;
use super::*;
use crate::domain::provider::Provider;
use crate::domain::secret::ExposeSecret;

#[derive(Debug, PartialEq)]
enum End {
    Issued,
    Refused,
    Misconfigured,
    FailedWithoutActing,
    MayHaveActed,
    Unreadable,
}

fn end(result: &Result<IssuedPair, RefreshError>) -> End {
    match result {
        Ok(_) => End::Issued,
        Err(RefreshError::Refused { .. }) => End::Refused,
        Err(RefreshError::Misconfigured { .. }) => End::Misconfigured,
        Err(RefreshError::Unavailable { acted: Acted::No, .. }) => End::FailedWithoutActing,
        Err(RefreshError::Unavailable { acted: Acted::Unknown, .. }) => End::MayHaveActed,
        Err(RefreshError::Unreadable { .. }) => End::Unreadable,
        Err(RefreshError::Local { .. }) => unreachable!("an answer came"),
    }
}

fn read(provider: &Provider, answer: &Answer<'_>) -> Result<IssuedPair, RefreshError> {
    read_answer(
        RefreshRequest {
            provider,
            client_secret: &provider.client_secret,
            refresh_token: &"old-r3fresh".into(),
            scopes: &[],
        },
        answer,
    )
}

fn whole(status: u16, body: &str) -> Answer<'_> {
    Answer { status, pause: Pause::default(), body: Body::Whole(body.as_bytes()) }
}

fn detail(result: Result<IssuedPair, RefreshError>) -> String {
    match result.expect_err("no pair") {
        RefreshError::Refused { detail }
        | RefreshError::Misconfigured { detail, .. }
        | RefreshError::Unavailable { detail, .. }
        | RefreshError::Unreadable { detail }
        | RefreshError::Local { detail } => detail,
    }
}

#[test]
fn answers_of_real_providers_are_understood() {
    use ProviderKind::{Bitbucket, BitbucketServer, Generic, Github, Gitlab};
    let github = r#"{"access_token":"ghu_1","expires_in":28800,"refresh_token":"ghr_1",
        "refresh_token_expires_in":15811200,"scope":"","token_type":"bearer"}"#;
    let gitlab_without_expiry = r#"{"access_token":"a1","token_type":"Bearer","refresh_token":"r1",
        "scope":"api","created_at":1607635748}"#;
    let bitbucket = r#"{"access_token":"a1","scopes":"repository account","token_type":"bearer",
        "expires_in":7200,"state":"refresh_token","refresh_token":"old-r3fresh"}"#;
    let bitbucket_server = r#"{"access_token":"a1","token_type":"bearer","expires_in":7200,
        "refresh_token":"r1","scope":"REPO_READ"}"#;
    let bad_refresh_token = r#"{"error":"bad_refresh_token",
        "error_description":"The refresh token passed is incorrect or expired.","error_uri":"https://x.example"}"#;
    let bad_client = r#"{"error":"incorrect_client_credentials",
        "error_description":"The client_id and/or client_secret passed are incorrect."}"#;
    let invalid_grant = r#"{"error":"invalid_grant","error_description":"The grant is invalid."}"#;
    let cloud_refusal = r#"{"error":"invalid_request","error_description":"Invalid refresh_token"}"#;
    let cloud_nonsense = r#"{"error":"invalid_request","error_description":"refresh_token is required"}"#;
    let server_lock =
        r#"{"errors":[{"context":null,"message":"Could not acquire the lock.","exceptionName":null}]}"#;
    let gitea_used = r#"{"error":"unauthorized_client","error_description":"token was already used"}"#;
    let gitea_foreign =
        r#"{"error":"unauthorized_client","error_description":"unable to parse refresh token"}"#;
    let login_page = "<!DOCTYPE html><html><title>Sign in</title></html>";

    for (kind, status, body, expected) in [
        (Github, 200, github, End::Issued),
        (Github, 200, "access_token=ghu_1&expires_in=28800&refresh_token=ghr_1", End::Issued),
        (Github, 200, "error=bad_refresh_token&error_description=expired", End::Refused),
        (Github, 200, bad_refresh_token, End::Refused),
        (Github, 200, bad_client, End::Misconfigured),
        (Github, 200, r#"{"error":"unauthorized_client"}"#, End::Misconfigured),
        (Github, 404, r#"{"error":"Not Found"}"#, End::Misconfigured),
        (Gitlab, 200, gitlab_without_expiry, End::Issued),
        (Gitlab, 400, invalid_grant, End::Refused),
        (Gitlab, 401, invalid_grant, End::Refused),
        (Gitlab, 401, r#"{"error":"invalid_client"}"#, End::Misconfigured),
        (Bitbucket, 200, bitbucket, End::Issued),
        (Bitbucket, 400, cloud_refusal, End::Refused),
        (Bitbucket, 400, cloud_nonsense, End::Misconfigured),
        (BitbucketServer, 200, bitbucket_server, End::Issued),
        (BitbucketServer, 400, invalid_grant, End::Refused),
        (BitbucketServer, 500, server_lock, End::FailedWithoutActing),
        (Generic, 400, gitea_used, End::Refused),
        (Generic, 400, gitea_foreign, End::Refused),
        (Generic, 400, r#"{"error":"unauthorized_client"}"#, End::Misconfigured),
        // One kind's special cases do not apply to another.
        (Gitlab, 400, cloud_refusal, End::Misconfigured),
        (Gitlab, 400, gitea_used, End::Misconfigured),
        // RFC 6749, section 5.2.
        (Generic, 400, invalid_grant, End::Refused),
        (Generic, 400, r#"{"error":"invalid_client"}"#, End::Misconfigured),
        (Generic, 400, r#"{"error":"invalid_scope"}"#, End::Misconfigured),
        (Generic, 400, r#"{"error":"unsupported_grant_type"}"#, End::Misconfigured),
        (Generic, 400, r#"{"error":"made_up"}"#, End::Misconfigured),
        (Generic, 200, r#"{"error":"temporarily_unavailable"}"#, End::FailedWithoutActing),
        (Generic, 400, r#"{"error":"server_error"}"#, End::FailedWithoutActing),
        (Generic, 400, r#"{"error":"slow_down"}"#, End::FailedWithoutActing),
        // A server error refuses nothing, whatever the body says.
        (Generic, 500, invalid_grant, End::FailedWithoutActing),
        (Generic, 503, login_page, End::FailedWithoutActing),
        (Generic, 429, invalid_grant, End::FailedWithoutActing),
        (Generic, 408, "", End::FailedWithoutActing),
        (Generic, 425, "", End::FailedWithoutActing),
        (Generic, 502, login_page, End::MayHaveActed),
        (Generic, 504, login_page, End::MayHaveActed),
        (Generic, 524, login_page, End::MayHaveActed),
        // Not a token endpoint, or the client is refused.
        (Generic, 302, "", End::Misconfigured),
        (Generic, 307, github, End::Misconfigured),
        (Generic, 400, login_page, End::Misconfigured),
        (Generic, 400, "", End::Misconfigured),
        (Generic, 401, "", End::Misconfigured),
        (Generic, 403, login_page, End::Misconfigured),
        (Generic, 404, login_page, End::Misconfigured),
        // The provider reports success, so it may have rotated the pair.
        (Generic, 200, r#"{"access_token":"a1","#, End::Unreadable),
        (Generic, 200, r#" {"access_token":"a1","#, End::Unreadable),
        (Generic, 200, login_page, End::Unreadable),
        (Generic, 200, "It works!", End::Unreadable),
        (Generic, 200, "", End::Unreadable),
        (Generic, 204, "", End::Unreadable),
        (Generic, 200, "{}", End::Unreadable),
        (Generic, 200, r#"{"access_token":""}"#, End::Unreadable),
        (Generic, 200, r#"{"access_token":"a\u0000b"}"#, End::Unreadable),
        (Generic, 200, r#"{"error":""}"#, End::Unreadable),
        (Generic, 200, r#"["a1"]"#, End::Unreadable),
        // An answer with an access token is a pair.
        (Generic, 200, r#"{"access_token":"a1"}"#, End::Issued),
        (Generic, 201, r#"{"access_token":"a1","token_type":"mac"}"#, End::Issued),
        (Generic, 200, r#"{"access_token":"a1","error":null}"#, End::Issued),
    ] {
        let result = read(&provider(kind), &whole(status, body));
        assert_eq!(end(&result), expected, "{kind} answers {status}: {body}\n{result:?}");
    }
}

#[test]
fn every_field_of_a_new_pair_is_read() {
    let body = r#"{"access_token":"a1","expires_in":28800,"refresh_token":"r1",
        "refresh_token_expires_in":15811200,"scope":"repo,gist","token_type":"bearer"}"#;
    let pair = read(&provider(ProviderKind::Github), &whole(200, body)).unwrap();
    assert_eq!(pair.access_token.expose_secret(), "a1");
    assert_eq!(pair.refresh_token.as_ref().map(ExposeSecret::expose_secret), Some("r1"));
    assert_eq!(pair.expires_in, Some(Duration::from_secs(28800)));
    assert_eq!(pair.refresh_token_expires_in, Some(Duration::from_secs(15_811_200)));
    assert_eq!(pair.scopes, Some(vec!["repo".into(), "gist".into()]));
}

#[test]
fn an_incomplete_answer_refuses_nothing() {
    for (status, body, expected) in [
        (200, Body::CutOff(b""), End::Unreadable),
        (200, Body::CutOff(br#"{"access_token":"a1","refresh"#), End::Unreadable),
        (200, Body::CutOff(b"access_token=a1&refresh_token=r"), End::Unreadable),
        (200, Body::TooLong, End::Unreadable),
        (400, Body::CutOff(br#"{"error":"invalid_grant""#), End::FailedWithoutActing),
        (401, Body::CutOff(b""), End::FailedWithoutActing),
        (400, Body::TooLong, End::Misconfigured),
        (404, Body::TooLong, End::Misconfigured),
        (500, Body::CutOff(b""), End::FailedWithoutActing),
        (500, Body::TooLong, End::FailedWithoutActing),
        (502, Body::CutOff(b""), End::MayHaveActed),
        (302, Body::CutOff(b""), End::Misconfigured),
        // The object is complete, although the body is not.
        (200, Body::CutOff(br#"{"access_token":"a1"}"#), End::Issued),
        (400, Body::CutOff(br#"{"error":"invalid_grant"}"#), End::Refused),
    ] {
        let answer = Answer { status, pause: Pause::default(), body };
        assert_eq!(end(&read(&provider(ProviderKind::Generic), &answer)), expected, "{status} {body:?}");
    }
}

#[test]
fn a_pair_is_read_in_any_encoding_and_among_invalid_members() {
    let pair = r#"{"access_token":"a1","refresh_token":"r1","expires_in":7200}"#;
    let beside =
        |odd: &str| format!(r#"{{"access_token":"a1","odd":{odd},"refresh_token":"r1","expires_in":7200}}"#);
    let utf_16 = |unit: fn(u16) -> [u8; 2]| pair.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    let form = "access_token=a1&token_type=bearer&expires_in=7200&refresh_token=r1";
    let mut latin_1 = beside("\"Jos*\"").into_bytes();
    latin_1.iter_mut().filter(|byte| **byte == b'*').for_each(|byte| *byte = 0xe9);
    for body in [
        format!("\u{feff}{pair}").into_bytes(),
        utf_16(u16::to_le_bytes),
        utf_16(u16::to_be_bytes),
        [vec![0xff, 0xfe], utf_16(u16::to_le_bytes)].concat(),
        [vec![0xfe, 0xff], utf_16(u16::to_be_bytes)].concat(),
        latin_1,
        beside(r#""\ud800""#).into_bytes(),
        beside("NaN").into_bytes(),
        beside("1e400").into_bytes(),
        beside(&format!("{}{}", "[".repeat(200), "]".repeat(200))).into_bytes(),
        format!("{pair} and {{more}}").into_bytes(),
        format!("{pair}{pair}").into_bytes(),
        format!("\r\n {pair}").into_bytes(),
        format!("{form}\n").into_bytes(),
        form.into(),
    ] {
        let answer = Answer { body: Body::Whole(&body), ..whole(200, "") };
        let shown = String::from_utf8_lossy(&body);
        let pair = read(&provider(ProviderKind::Generic), &answer)
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        let (access, refresh) = (pair.access_token, pair.refresh_token.expect("it is there"));
        assert_eq!((access.expose_secret(), refresh.expose_secret()), ("a1", "r1"), "{shown}");
        assert_eq!(pair.expires_in, Some(Duration::from_secs(7200)), "{shown}");
    }
}

#[test]
fn every_form_of_a_refused_refresh_token_is_understood() {
    use ProviderKind::{Bitbucket, Generic, Github, Gitlab};
    let error = |code: &str| format!(r#"{{"error":"{code}"}}"#);
    let atlassian = r#"{"error":"unauthorized_client","error_description":"refresh_token is invalid"}"#;
    for (kind, status, body, expected) in [
        (Generic, 403, atlassian.to_owned(), End::Refused),
        (Bitbucket, 403, atlassian.to_owned(), End::Refused),
        (Generic, 400, error("interaction_required"), End::Refused),
        (Generic, 400, error("consent_required"), End::Refused),
        (Generic, 400, error("login_required"), End::Refused),
        (Generic, 400, error("invalid_refresh_token"), End::Refused),
        (Generic, 401, error("refresh_token_reused"), End::Refused),
        (Generic, 400, error("expired_token"), End::Refused),
        (Generic, 401, error("invalid_token"), End::Refused),
        (Gitlab, 400, error("INVALID_GRANT"), End::Refused),
        (Github, 200, error("Bad_Refresh_Token"), End::Refused),
        (Generic, 400, r#"{"error":{"code":"invalid_grant","message":"x"}}"#.to_owned(), End::Refused),
        (Generic, 400, r#"{"error":{"type":"invalid_grant"}}"#.to_owned(), End::Refused),
        (Generic, 400, r#"{"errors":[{"code":"invalid_grant"}]}"#.to_owned(), End::Refused),
        (Generic, 400, r#"{"errors":["invalid_grant"]}"#.to_owned(), End::Refused),
        (Generic, 400, "error=invalid_grant&error_description=expired".to_owned(), End::Refused),
        // These are the operator's to solve.
        (Generic, 400, error("unauthorized_client"), End::Misconfigured),
        (
            Generic,
            403,
            r#"{"error":"unauthorized_client","error_description":"The client may not use refresh tokens"}"#
                .to_owned(),
            End::Misconfigured,
        ),
        (Generic, 400, error("Invalid_Client"), End::Misconfigured),
        (Generic, 400, error("invalid_request"), End::Misconfigured),
    ] {
        let result = read(&provider(kind), &whole(status, &body));
        assert_eq!(end(&result), expected, "{kind} answers {status}: {body}\n{result:?}");
    }
}

#[test]
fn every_form_of_a_rate_limit_is_understood() {
    let secondary = r#"{"message":"You have exceeded a secondary rate limit. Please wait a few minutes."}"#;
    let primary = r#"{"message":"API rate limit exceeded for 192.0.2.1."}"#;
    let minute = Some(Duration::from_secs(60));
    let (told, exhausted) = (
        Pause { retry_after: Some(Duration::from_secs(7)), exhausted: false },
        Pause { retry_after: Some(Duration::from_secs(7)), exhausted: true },
    );
    for (status, pause, body, expected) in [
        (403, Pause::default(), secondary, minute),
        (403, Pause::default(), primary, minute),
        (403, Pause { exhausted: true, ..Pause::default() }, "", minute),
        (403, exhausted, primary, exhausted.retry_after),
        (403, exhausted, r#"{"error":"invalid_client"}"#, exhausted.retry_after),
        (403, told, "<html>", told.retry_after),
        (429, told, "", told.retry_after),
    ] {
        let result = read(&provider(ProviderKind::Github), &Answer { pause, ..whole(status, body) });
        let Err(RefreshError::Unavailable { acted: Acted::No, retry_after, .. }) = &result else {
            panic!("{status} {pause:?} {body}: {result:?}")
        };
        assert_eq!(*retry_after, expected, "{status} {pause:?} {body}");
    }
}

#[test]
fn a_retry_after_is_passed_on_whatever_the_status() {
    for status in [403, 408, 429, 500, 502, 503, 504] {
        let pause = Pause { retry_after: Some(Duration::from_secs(12)), exhausted: false };
        let result = read(&provider(ProviderKind::Github), &Answer { pause, ..whole(status, "") });
        let Err(RefreshError::Unavailable { retry_after: told, .. }) = &result else { panic!("{result:?}") };
        assert_eq!(*told, pause.retry_after, "{status}");
    }
}

#[test]
fn a_detail_names_the_url_the_answer_and_what_to_do() {
    let misconfigured = r#"{"error":"invalid_client","error_description":"Client authentication failed."}"#;
    for (kind, answer, expected) in [
        (
            ProviderKind::Gitlab,
            whole(401, misconfigured),
            "refresh at https://git.example.org/oauth/token: answered 401 invalid_client \"Client authentication \
             failed.\"; check the provider's client_id, client_secret and client_auth",
        ),
        (
            ProviderKind::Gitlab,
            whole(400, r#"{"error":"invalid_grant"}"#),
            "refresh at https://git.example.org/oauth/token: answered 400 invalid_grant; this kind of provider also \
             answers this if redirect_uri is missing; set the provider's redirect_uri",
        ),
        (
            ProviderKind::Github,
            whole(302, ""),
            "refresh at https://git.example.org/login/oauth/access_token: answered 302; redirects are not followed: \
             they would carry the secrets elsewhere; check the provider's token_url",
        ),
        (
            ProviderKind::BitbucketServer,
            whole(500, r#"{"errors":[{"message":"No lock."}]}"#),
            "refresh at https://git.example.org/rest/oauth2/latest/token: answered 500 \"No lock.\"",
        ),
    ] {
        assert_eq!(detail(read(&provider(kind), &answer)), expected);
    }
}

#[test]
fn no_detail_repeats_a_secret_that_the_provider_echoes() {
    let provider = provider(ProviderKind::Generic);
    for status in [200, 302, 400, 401, 403, 404, 429, 500, 502, 503] {
        for field in ["error", "error_description", "message"] {
            let echo =
                "grant old-r3fresh of cl1ent-s3cret, base64 Y2wxZW50LXMzY3JldA==, now gho_16C7e42F292c69";
            let body = serde_json::json!({"error": "invalid_grant", field: echo}).to_string();
            let detail = detail(read(&provider, &whole(status, &body)));
            for secret in ["r3fresh", "s3cret", "Y2wx", "gho_"] {
                assert!(!detail.contains(secret), "{status} {field}: {detail}");
            }
        }
    }
}
