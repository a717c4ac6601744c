use super::super::testing::provider;
use super::*;
use crate::provider::Provider;
use crate::secret::ExposeSecret;

const JSON: &str = "application/json; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// The end of a refresh, without its words.
#[derive(Debug, PartialEq)]
enum End {
    Issued,
    Refused,
    Misconfigured,
    /// The provider did not act.
    Failed,
    /// It may have acted.
    Lost,
}

fn end(result: &Result<IssuedPair, RefreshError>) -> End {
    match result {
        Ok(_) => End::Issued,
        Err(RefreshError::Refused { .. }) => End::Refused,
        Err(RefreshError::Misconfigured { .. }) => End::Misconfigured,
        Err(RefreshError::Unavailable { acted: Acted::No, .. }) => End::Failed,
        Err(RefreshError::Unavailable { acted: Acted::Unknown, .. }) => End::Lost,
        Err(RefreshError::Local { .. }) => unreachable!("an answer came"),
    }
}

fn read(provider: &Provider, answer: &Answer<'_>) -> Result<IssuedPair, RefreshError> {
    read_answer(RefreshRequest { provider, refresh_token: &"old-r3fresh".into() }, answer)
}

fn whole<'a>(status: u16, content_type: &'a str, body: &'a str) -> Answer<'a> {
    Answer { status, content_type: Some(content_type), retry_after: None, body: Body::Whole(body.as_bytes()) }
}

fn detail(result: Result<IssuedPair, RefreshError>) -> String {
    match result.expect_err("no pair") {
        RefreshError::Refused { detail }
        | RefreshError::Misconfigured { detail }
        | RefreshError::Unavailable { detail, .. }
        | RefreshError::Local { detail } => detail,
    }
}

#[test]
fn raw_answers_seen_in_the_field_are_told_apart() {
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
    let form = "application/x-www-form-urlencoded";

    for (kind, status, content_type, body, expected) in [
        (Github, 200, JSON, github, End::Issued),
        (Github, 200, form, "access_token=ghu_1&expires_in=28800&refresh_token=ghr_1", End::Issued),
        (Github, 200, form, "error=bad_refresh_token&error_description=expired", End::Refused),
        (Github, 200, JSON, bad_refresh_token, End::Refused),
        (Github, 200, JSON, bad_client, End::Misconfigured),
        (Github, 200, JSON, r#"{"error":"unauthorized_client"}"#, End::Misconfigured),
        (Github, 404, JSON, r#"{"error":"Not Found"}"#, End::Misconfigured),
        (Gitlab, 200, JSON, gitlab_without_expiry, End::Issued),
        (Gitlab, 400, JSON, invalid_grant, End::Refused),
        (Gitlab, 401, JSON, invalid_grant, End::Refused),
        (Gitlab, 401, JSON, r#"{"error":"invalid_client"}"#, End::Misconfigured),
        (Bitbucket, 200, JSON, bitbucket, End::Issued),
        (Bitbucket, 400, JSON, cloud_refusal, End::Refused),
        (Bitbucket, 400, JSON, cloud_nonsense, End::Misconfigured),
        (BitbucketServer, 200, JSON, bitbucket_server, End::Issued),
        (BitbucketServer, 400, JSON, invalid_grant, End::Refused),
        (BitbucketServer, 500, JSON, server_lock, End::Failed),
        (Generic, 400, JSON, gitea_used, End::Refused),
        (Generic, 400, JSON, gitea_foreign, End::Refused),
        (Generic, 400, JSON, r#"{"error":"unauthorized_client"}"#, End::Misconfigured),
        // One kind's dialect is not another's.
        (Gitlab, 400, JSON, cloud_refusal, End::Misconfigured),
        (Gitlab, 400, JSON, gitea_used, End::Misconfigured),
        // RFC 6749, section 5.2.
        (Generic, 400, JSON, invalid_grant, End::Refused),
        (Generic, 400, JSON, r#"{"error":"invalid_client"}"#, End::Misconfigured),
        (Generic, 400, JSON, r#"{"error":"invalid_scope"}"#, End::Misconfigured),
        (Generic, 400, JSON, r#"{"error":"unsupported_grant_type"}"#, End::Misconfigured),
        (Generic, 400, JSON, r#"{"error":"made_up"}"#, End::Misconfigured),
        (Generic, 200, JSON, r#"{"error":"temporarily_unavailable"}"#, End::Failed),
        (Generic, 400, JSON, r#"{"error":"server_error"}"#, End::Failed),
        (Generic, 400, JSON, r#"{"error":"slow_down"}"#, End::Failed),
        // A server error condemns nothing, whatever it says.
        (Generic, 500, JSON, invalid_grant, End::Failed),
        (Generic, 503, HTML, login_page, End::Failed),
        (Generic, 429, JSON, invalid_grant, End::Failed),
        (Generic, 408, "text/plain", "", End::Failed),
        (Generic, 425, "text/plain", "", End::Failed),
        (Generic, 502, HTML, login_page, End::Lost),
        (Generic, 504, HTML, login_page, End::Lost),
        (Generic, 524, HTML, login_page, End::Lost),
        // Not a token endpoint, or not for us.
        (Generic, 200, HTML, login_page, End::Misconfigured),
        (Generic, 200, "text/plain", "It works!", End::Misconfigured),
        (Generic, 302, HTML, "", End::Misconfigured),
        (Generic, 307, JSON, github, End::Misconfigured),
        (Generic, 400, HTML, login_page, End::Misconfigured),
        (Generic, 400, JSON, "", End::Misconfigured),
        (Generic, 401, "text/plain", "", End::Misconfigured),
        (Generic, 403, HTML, login_page, End::Misconfigured),
        (Generic, 404, HTML, login_page, End::Misconfigured),
        // It says that it succeeded, so it may have rotated the pair.
        (Generic, 200, JSON, r#"{"access_token":"a1","#, End::Lost),
        (Generic, 200, "text/plain", r#" {"access_token":"a1","#, End::Lost),
        (Generic, 200, JSON, login_page, End::Lost),
        (Generic, 200, JSON, "", End::Lost),
        (Generic, 204, "", "", End::Lost),
        (Generic, 200, JSON, "{}", End::Lost),
        (Generic, 200, JSON, r#"{"access_token":""}"#, End::Lost),
        (Generic, 200, JSON, r#"{"access_token":"a\u0000b"}"#, End::Lost),
        (Generic, 200, JSON, r#"{"error":""}"#, End::Lost),
        (Generic, 200, JSON, r#"["a1"]"#, End::Lost),
        // A pair is a pair.
        (Generic, 200, "text/plain", r#"{"access_token":"a1"}"#, End::Issued),
        (Generic, 201, JSON, r#"{"access_token":"a1","token_type":"mac"}"#, End::Issued),
        (Generic, 200, JSON, r#"{"access_token":"a1","error":null}"#, End::Issued),
    ] {
        let result = read(&provider(kind), &whole(status, content_type, body));
        assert_eq!(end(&result), expected, "{kind} answers {status} ({content_type}): {body}\n{result:?}");
    }
}

#[test]
fn every_field_of_a_new_pair_is_read() {
    let body = r#"{"access_token":"a1","expires_in":28800,"refresh_token":"r1",
        "refresh_token_expires_in":15811200,"scope":"repo,gist","token_type":"bearer"}"#;
    let pair = read(&provider(ProviderKind::Github), &whole(200, JSON, body)).unwrap();
    assert_eq!(pair.access_token.expose_secret(), "a1");
    assert_eq!(pair.refresh_token.as_ref().map(ExposeSecret::expose_secret), Some("r1"));
    assert_eq!(pair.expires_in, Some(Duration::from_secs(28800)));
    assert_eq!(pair.refresh_token_expires_in, Some(Duration::from_secs(15_811_200)));
    assert_eq!(pair.scopes, Some(vec!["repo".into(), "gist".into()]));
}

#[test]
fn what_did_not_come_whole_refuses_nothing() {
    for (status, body, expected) in [
        (200, Body::CutOff, End::Lost),
        (200, Body::TooLong, End::Lost),
        (400, Body::CutOff, End::Failed),
        (401, Body::CutOff, End::Failed),
        (400, Body::TooLong, End::Misconfigured),
        (404, Body::TooLong, End::Misconfigured),
        (500, Body::CutOff, End::Failed),
        (500, Body::TooLong, End::Failed),
        (502, Body::CutOff, End::Lost),
        (302, Body::CutOff, End::Misconfigured),
    ] {
        let answer = Answer { status, content_type: Some(JSON), retry_after: None, body };
        assert_eq!(end(&read(&provider(ProviderKind::Generic), &answer)), expected, "{status}");
    }
}

#[test]
fn retry_after_is_passed_on_wherever_it_is_said() {
    for status in [403, 408, 429, 500, 502, 503, 504] {
        let retry_after = Some(Duration::from_secs(12));
        let answer = Answer { retry_after, ..whole(status, HTML, "") };
        let result = read(&provider(ProviderKind::Github), &answer);
        let Err(RefreshError::Unavailable { retry_after: told, .. }) = &result else { panic!("{result:?}") };
        assert_eq!(*told, retry_after, "{status}");
    }
}

#[test]
fn retry_after_is_read_as_seconds_and_as_a_date() {
    let now = Timestamp::parse_rfc3339("2015-10-21T07:28:00Z").unwrap();
    for (header, expected) in [
        ("120", Some(Duration::from_secs(120))),
        (" 0 ", Some(Duration::ZERO)),
        ("Wed, 21 Oct 2015 07:28:30 GMT", Some(Duration::from_secs(30))),
        ("Wed, 21 Oct 2015 07:27:00 GMT", Some(Duration::ZERO)),
        ("-5", None),
        ("soon", None),
        ("", None),
    ] {
        assert_eq!(read_retry_after(header, now), expected, "{header:?}");
    }
}

#[test]
fn a_detail_says_where_what_came_back_and_what_to_do() {
    let misconfigured = r#"{"error":"invalid_client","error_description":"Client authentication failed."}"#;
    for (kind, answer, expected) in [
        (
            ProviderKind::Gitlab,
            whole(401, JSON, misconfigured),
            "refresh at https://git.example.org/oauth/token: answered 401 invalid_client \"Client authentication \
             failed.\"; check the provider's client_id, client_secret and client_auth",
        ),
        (
            ProviderKind::Gitlab,
            whole(400, JSON, r#"{"error":"invalid_grant"}"#),
            "refresh at https://git.example.org/oauth/token: answered 400 invalid_grant; this kind of provider also \
             answers so where the provider has no redirect_uri set",
        ),
        (
            ProviderKind::Github,
            whole(302, HTML, ""),
            "refresh at https://git.example.org/login/oauth/access_token: answered 302; redirects are not followed: \
             they would carry the secrets elsewhere; check the provider's token_url",
        ),
        (
            ProviderKind::BitbucketServer,
            whole(500, JSON, r#"{"errors":[{"message":"No lock."}]}"#),
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
            let detail = detail(read(&provider, &whole(status, JSON, &body)));
            for secret in ["r3fresh", "s3cret", "Y2wx", "gho_"] {
                assert!(!detail.contains(secret), "{status} {field}: {detail}");
            }
        }
    }
}
