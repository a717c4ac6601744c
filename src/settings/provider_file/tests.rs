use std::io;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::domain::clock::Timestamp;
use crate::domain::provider::{ClientAuth, Lifespan, ProviderKind, RequiredWhileReserved};
use crate::domain::secret::ExposeSecret;

struct Outside;

impl SecretSource for Outside {
    fn variable(&self, name: &str) -> Option<String> {
        (name == "SECRET").then(|| "s3cret-of-variable".to_owned())
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        match path.to_str() {
            Some("secret.txt") => Ok("s3cret-of-file\r\n".to_owned()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such file")),
        }
    }
}

fn parsed(text: &str) -> Vec<ProviderRecord> {
    parse(text, &Outside).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refused(text: &str) -> String {
    parse(text, &Outside).expect_err(text).to_string()
}

/// A good block with `lines` behind it.
fn block(host: &str, lines: &str) -> String {
    format!(
        "[[provider]]\nhost = \"{host}\"\nkind = \"github\"\nclient_id = \"id\"\nclient_secret = \"s3cret\"\n{lines}\n"
    )
}

/// A good block without the line of `key`, and with `line` instead.
fn with(key: &str, line: &str) -> String {
    let good = block("git.example.org", "");
    let kept: Vec<&str> = good.lines().filter(|kept| !kept.starts_with(&format!("{key} ="))).collect();
    format!("{}\n{line}\n", kept.join("\n"))
}

#[test]
fn a_block_with_every_key_is_read() {
    let records = parsed(
        r#"
        [[provider]]
        host = "bitbucket.example.org:7990"
        kind = "bitbucket_server"
        client_id = "id"
        client_secret = "s3cret"
        token_url = "https://bitbucket.example.org/context/rest/oauth2/latest/token"
        client_auth = "basic"
        redirect_uri = "https://app.example.org/callback"
        username = "x-token-auth"
        opportunistic_refresh = false
        opportunistic_refresh_window_secs = 1800
        required_while_reserved = "grant_remaining"
        max_concurrent_refreshes = 4
        "#,
    );
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!(
        (record.host.as_str(), record.kind),
        ("bitbucket.example.org:7990", ProviderKind::BitbucketServer)
    );
    assert_eq!(record.client_secret.expose_secret(), "s3cret");
    assert_eq!(record.token_url.as_ref().unwrap().path(), "/context/rest/oauth2/latest/token");
    assert_eq!(record.client_auth, Some(ClientAuth::Basic));
    assert_eq!(record.redirect_uri.as_deref(), Some("https://app.example.org/callback"));
    assert_eq!(record.username.as_deref(), Some("x-token-auth"));
    assert_eq!(record.opportunistic_refresh, Some(false));
    assert_eq!(record.opportunistic_refresh_window_secs, Some(1800));
    assert_eq!(record.required_while_reserved, Some(RequiredWhileReserved::GrantRemaining));
    assert_eq!(record.max_concurrent_refreshes, Some(4));
}

#[test]
fn what_is_left_out_is_the_kinds_default() {
    let records = parsed(&(block("git.example.org", "") + &block("git.example.org:8443", "")));
    assert_eq!(records.len(), 2);
    let provider = records[0].clone().resolve(1, Timestamp::from_millis(0), None).expect("a provider");
    assert_eq!(provider.token_url.as_str(), "https://git.example.org/login/oauth/access_token");
    assert_eq!(provider.username, "x-access-token");
}

#[test]
fn the_secret_may_stand_in_a_variable_or_in_a_file() {
    for (line, expected) in [
        ("client_secret_env = \"SECRET\"", "s3cret-of-variable"),
        ("client_secret_file = \"secret.txt\"", "s3cret-of-file"),
    ] {
        let records = parsed(&with("client_secret", line));
        assert_eq!(records[0].client_secret.expose_secret(), expected);
    }
}

#[test]
fn a_secret_behind_the_wrong_key_is_not_repeated() {
    for key in ["client_secret_env", "client_secret_file"] {
        let error = refused(&with("client_secret", &format!("{key} = \"s3cret-0123456789abcdef\"")));
        assert!(!error.contains("s3cret-") && error.contains("may be the secret itself"), "{error}");
    }
}

#[test]
fn a_host_is_what_a_clone_url_is_found_by() {
    for host in
        ["git.example.org", "git.example.org:443", "127.0.0.1:7990", "localhost", "[::1]:7990", "a_b.c"]
    {
        assert_eq!(parsed(&block(host, ""))[0].host, host);
    }
    for host in [
        "",
        "https://git.example.org",
        "git.example.org/",
        "git.example.org/bitbucket",
        "user@git.example.org",
        "Git.example.org",
        "git.example.org:",
        "git.example.org:0",
        "git.example.org:08443",
        "git.example.org:70000",
        "git example.org",
        "127.1",
        "::1",
    ] {
        let error = refused(&block(host, ""));
        assert!(
            error.starts_with("provider 1: `host` must be the bare host in lower case"),
            "{host}: {error}"
        );
    }
}

#[test]
fn a_mistake_is_told_with_its_block_its_key_and_what_is_right() {
    let long = "x".repeat(256);
    for (text, expected) in [
        (with("host", ""), "provider 1: `host` is missing".to_owned()),
        (with("kind", ""), "provider 1 (git.example.org): `kind` is missing".into()),
        (
            with("kind", "kind = \"gogs\""),
            "provider 1 (git.example.org): `kind` must be one of github, gitlab, bitbucket, bitbucket_server, gitea, azure_devops, generic"
                .into(),
        ),
        (with("client_id", ""), "provider 1 (git.example.org): `client_id` is missing".into()),
        (
            with("client_id", &format!("client_id = \"{long}\"")),
            "provider 1 (git.example.org): `client_id` must be 1 to 255 printable ASCII characters (RFC 6749, appendix A.1)".into(),
        ),
        (
            with("client_secret", ""),
            "provider 1 (git.example.org): `client_secret` must be there once: client_secret, client_secret_env or client_secret_file".into(),
        ),
        (
            block("git.example.org", "client_secret_env = \"SECRET\""),
            "provider 1 (git.example.org): `client_secret_env` must be there once: client_secret, client_secret_env or client_secret_file".into(),
        ),
        (
            with("client_secret", "client_secret_env = \"UNSET\""),
            "provider 1 (git.example.org): `client_secret_env` names an environment variable that is not set: UNSET".into(),
        ),
        (
            with("client_secret", "client_secret_file = \"none.txt\""),
            "provider 1 (git.example.org): `client_secret_file` names a file that cannot be read (no such file): none.txt".into(),
        ),
        (
            with("kind", "kind = \"generic\"\nclient_auth = \"basic\""),
            "provider 1 (git.example.org): `token_url` is missing; kind generic has no default for it".into(),
        ),
        (
            with("kind", "kind = \"generic\"\ntoken_url = \"https://git.example.org/token\""),
            "provider 1 (git.example.org): `client_auth` is missing; kind generic has no default for it".into(),
        ),
        (
            block("git.example.org", "opportunistic_refresh = \"yes\""),
            "provider 1 (git.example.org): `opportunistic_refresh` must be true or false".into(),
        ),
        (
            block("git.example.org", "opportunistic_refresh_window_secs = 0"),
            "provider 1 (git.example.org): `opportunistic_refresh_window_secs` must be a whole number from 1 to 4294967295".into(),
        ),
        (
            block("git.example.org", "max_concurrent_refreshes = 0"),
            "provider 1 (git.example.org): `max_concurrent_refreshes` must be a whole number from 1 to 65535".into(),
        ),
        (
            block("git.example.org", "required_while_reserved = \"never\""),
            "provider 1 (git.example.org): `required_while_reserved` must be one of refresh, wait, grant_remaining".into(),
        ),
        (
            block("git.example.org", "username = \"\""),
            "provider 1 (git.example.org): `username` must be 1 to 255 characters, none of them a blank or a control character".into(),
        ),
        (
            block("git.example.org", "redirect = \"https://app.example.org\""),
            "provider 1 (git.example.org): `redirect` is not a key of a provider; did you mean `redirect_uri`?".into(),
        ),
        (
            block("git.example.org", "") + &block("git.example.org", ""),
            "provider 2 (git.example.org): `host` has git.example.org, which provider 1 has already".into(),
        ),
        (String::new(), "the file: `provider` must be at least one [[provider]] block, and nothing else".into()),
        (
            "[provider]\nhost = \"git.example.org\"".to_owned(),
            "the file: `provider` must be a list: write [[provider]] with two brackets above each block".into(),
        ),
        (
            "host = \"x\"\n".to_owned() + &block("git.example.org", ""),
            "the file: `host` is not a key here; every setting stands in a [[provider]] block".into(),
        ),
    ] {
        assert_eq!(refused(&text), expected, "{text}");
    }
}

#[test]
fn a_mistake_in_what_overrides_a_kind_is_told() {
    let rows: [(String, String); 12] = [
        (
            block("git.example.org", "other_hosts = [\"a.example.org\", \"a.example.org\"]"),
            "provider 1 (git.example.org): `other_hosts` has a.example.org, which provider 1 has already".into(),
        ),
        (
            block("git.example.org", "other_hosts = [\"https://a.example.org\"]"),
            "provider 1 (git.example.org): `other_hosts` must be a list of at most 16 hosts as requests or clone URLs name them, like [\"ssh.example.org\"]".into(),
        ),
        (
            block("git.example.org", "old_token_grace_secs = \"for ever\""),
            "provider 1 (git.example.org): `old_token_grace_secs` must be a whole number of seconds from 0 to 4294967295, or \"unlimited\"".into(),
        ),
        (
            block("git.example.org", "kills_old_token = true\nold_token_grace_secs = \"unlimited\""),
            "provider 1 (git.example.org): `kills_old_token` says the contrary of old_token_grace_secs; leave one of them out".into(),
        ),
        (
            block("git.example.org", "unstated_lifetime_secs = 0"),
            "provider 1 (git.example.org): `unstated_lifetime_secs` must be at least 1".into(),
        ),
        (
            block("git.example.org", "refresh_parameters = { grant_type = \"password\" }"),
            "provider 1 (git.example.org): `refresh_parameters` must be a table of at most 16 names and texts in printable ASCII, like { audience = \"api\" }, without what OAuth sends itself: grant_type, refresh_token, client_id, client_secret and redirect_uri".into(),
        ),
        (
            block("git.example.org", "refresh_parameters = 2026-01-01"),
            "provider 1 (git.example.org): `refresh_parameters` must be a table of at most 16 names and texts in printable ASCII, like { audience = \"api\" }, without what OAuth sends itself: grant_type, refresh_token, client_id, client_secret and redirect_uri".into(),
        ),
        (
            block("git.example.org", "validate_url = \"http://git.example.org/user\""),
            "provider 1 (git.example.org): `validate_url` must be an https URL (http for loopback addresses alone) without user, password and fragment".into(),
        ),
        (
            block("git.example.org", "token_url = \"https://login.example.org/token\""),
            "provider 1 (git.example.org): `token_url` cannot be used: its host login.example.org is not the provider's; if tokens may go there, add token_hosts = [\"login.example.org\"] to the provider file and apply it".into(),
        ),
        (
            block("git.example.org", "validate_url = \"https://login.example.org/user\""),
            "provider 1 (git.example.org): `validate_url` cannot be used: its host login.example.org is not the provider's; if tokens may go there, add token_hosts = [\"login.example.org\"] to the provider file and apply it".into(),
        ),
        (
            block("git.example.org", "token_hosts = [\"https://login.example.org\"]"),
            "provider 1 (git.example.org): `token_hosts` must be a list of at most 16 hosts in lower case and without a port, like [\"login.example.org\"]".into(),
        ),
        (
            with("client_secret", "client_secret = [\"a\", \"b\", \"c\", \"d\", \"e\"]"),
            "provider 1 (git.example.org): `client_secret` must be text in quotes, or a list of at most 4".into(),
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(refused(&text), expected, "{text}");
    }
}

#[test]
fn what_a_kind_says_can_be_overridden() {
    let text = block(
        "git.example.org",
        r#"other_hosts = ["ssh.example.org", "GIT.example.org."]
        old_token_grace_secs = 600
        refresh_token_grace_secs = "unlimited"
        refresh_token_idle_lifetime_secs = 7776000
        unstated_lifetime_secs = "unlimited"
        refresh_parameters = { audience = "api" }
        validate_url = "https://api.example.org/user"
        token_hosts = ["api.example.org"]
        allow_private_network = true"#,
    );
    let text = text.replace("client_secret = \"s3cret\"", "client_secret = [\"new\", \"old\"]");
    let record = parse(&text, &Outside).unwrap().remove(0);
    assert_eq!(record.client_secret.expose_secret(), "new");
    assert_eq!(record.spare_client_secrets[0].expose_secret(), "old");
    let provider = record.resolve(1, Timestamp::from_millis(0), None).unwrap();
    assert_eq!(provider.other_hosts, ["ssh.example.org", "GIT.example.org."]);
    assert_eq!(provider.old_token_grace, Lifespan::secs(600));
    assert_eq!(provider.refresh_token_grace, Lifespan::Unlimited);
    assert_eq!(provider.refresh_token_idle_lifetime, Some(Duration::from_hours(24 * 90)));
    assert_eq!(provider.unstated_lifetime, Some(Lifespan::Unlimited));
    assert_eq!(provider.refresh_parameters, [("audience".to_owned(), "api".to_owned())]);
    assert_eq!(provider.validate_url.unwrap().as_str(), "https://api.example.org/user");
    assert_eq!(provider.token_hosts, ["api.example.org"]);
    assert!(provider.allow_private_network);
}

#[test]
fn a_token_url_is_https_except_to_loopback() {
    for (url, good) in [
        ("https://git.example.org/token", true),
        ("http://127.0.0.1:7990/token", true),
        ("http://git.example.org/token", false),
        ("https://user:s3cret@git.example.org/token", false),
        ("https://git.example.org/token#x", false),
        ("/token", false),
    ] {
        let result = parse(&block("git.example.org", &format!("token_url = \"{url}\"")), &Outside);
        assert_eq!(result.is_ok(), good, "{url}");
    }
}

#[test]
fn every_mistake_of_a_file_is_told_at_once_and_no_value_is_repeated() {
    let text = r#"
        [[provider]]
        host = "https://x:s3cret@git.example.org"
        kind = "s3cret"
        client_id = 7
        client_secret = 7

        [[provider]]
        host = "git.example.org"
        kind = "github"
        client_id = "id"
        client_secret = "s3cret\n"
        opportunistic_refresh = "s3cret"
    "#;
    let Err(ProviderFileError::Invalid(problems)) = parse(text, &Outside) else { panic!("must be refused") };
    let told: Vec<(&str, &str)> =
        problems.iter().map(|problem| (problem.block.as_str(), problem.key.as_str())).collect();
    assert_eq!(
        told,
        [
            ("provider 1", "host"),
            ("provider 1", "kind"),
            ("provider 1", "client_id"),
            ("provider 1", "client_secret"),
            ("provider 2 (git.example.org)", "client_secret"),
            ("provider 2 (git.example.org)", "opportunistic_refresh"),
        ]
    );
    assert!(!refused(text).contains("s3cret"), "{}", refused(text));
}

#[test]
fn what_is_no_toml_is_told_with_its_place_and_without_its_text() {
    let error = refused("[[provider]]\nclient_secret = s3cret\n");
    assert!(error.starts_with("line 2, column 17: "), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}
