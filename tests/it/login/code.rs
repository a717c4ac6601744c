//! By a browser on this machine.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;
use tokenkeeper::domain::provider::ProviderKind;
use tokenkeeper_testkit::http;

use super::{Running, free_port, port_of, world_with_redirect};
use crate::cli::{Cli, signal};
use crate::harness::{Dialect, Kind, ScmOptions, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_logs_in_at_every_kind_of_host_and_gets_tokens_that_workers_refresh() {
    use ProviderKind::{AzureDevops, Bitbucket, BitbucketServer, Generic, Gitea, Github, Gitlab};
    for (kind, dialect) in [
        (Github, Dialect::GitHub),
        (Gitlab, Dialect::GitLab),
        (Bitbucket, Dialect::Bitbucket),
        (BitbucketServer, Dialect::BitbucketServer),
        (Gitea, Dialect::GitHub),
        (AzureDevops, Dialect::Generic),
        (Generic, Dialect::Generic),
    ] {
        let (mut world, redirect) = world_with_redirect(dialect).await;
        world.set("access.require_sealed_stores", true);
        // Entra takes http for this name alone.
        let redirect = redirect.replace("127.0.0.1", kind.login().loopback_host);
        world.scm.register_redirect(&redirect);
        let authorize = world.scm.authorize_url();
        world
            .apply_provider(|record| {
                record.kind = kind;
                if dialect == Dialect::Generic {
                    record.overrides.authorization_url = Some(authorize.parse().unwrap());
                    record.overrides.login_scopes = vec!["repo".to_owned(), "offline_access".to_owned()];
                }
            })
            .await;
        let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), world.scm.host());

        let port = port_of(&redirect);
        let mut login = Running::start(&cli, &["login", &host, "--user", "u-1", "--port", &port]);
        let page = login.page().await;
        assert!(login.printed.contains(&format!("redirect URI  {redirect}")), "{}", login.printed);
        let back = world.scm.allow(&page, "jdoe").await;
        let answer = http::client().get(&back).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        for (name, value) in
            [("cache-control", "no-store"), ("referrer-policy", "no-referrer"), ("x-frame-options", "DENY")]
        {
            assert_eq!(answer.headers()[name], value);
        }
        let ended = login.ended().await.good().keeps_secrets_of(&world);
        assert!(
            ended.stdout.contains(&format!("Stored: u-1 is logged in at {host}; the token expires")),
            "{ended:?}"
        );

        let asked = world.scm.authorization_requests().remove(0);
        let expected: Vec<&str> = match kind {
            Bitbucket => vec![],
            AzureDevops | Generic => vec!["repo", "offline_access"],
            kind => kind.login().scopes.to_vec(),
        };
        assert_eq!(asked.get("scope").map(String::as_str).unwrap_or_default(), expected.join(" "), "{kind}");
        assert!(asked["state"].len() >= 43, "256 bits: {}", asked["state"]);

        let token = world.scm.latest_pair("jdoe").unwrap().access_token;
        let reply = world.request("u-1").await;
        let now = world.scm.latest_pair("jdoe").unwrap().access_token;
        assert!(reply["token"]["value"] == *token || reply["token"]["value"] == *now, "{kind}: {reply}");
        // For longer than it lives: with the redirect URI of the login, where the host compares them.
        let reply = world.request_for("u-1", 3 * 3600).await;
        assert_eq!(reply["status"], "ok", "{kind}: {reply}");
        assert!(world.scm.refreshes("jdoe") > 0, "{kind}");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_else_knocks_does_not_end_the_wait() {
    let (world, redirect) = world_with_redirect(Dialect::GitHub).await;
    let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), world.scm.host());
    let port = port_of(&redirect);
    let mut login = Running::start(&cli, &["login", &host, "--user", "u-1", "--port", &port]);
    let page = login.page().await;
    let back = world.scm.allow(&page, "jdoe").await;

    let (http, base) = (http::client(), format!("http://127.0.0.1:{port}"));
    let status = async |url: &str| http.get(url).send().await.unwrap().status().as_u16();
    let state = back.split("state=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    for (url, expected) in [
        (format!("{base}/"), 404),
        (format!("{base}/callback/../x"), 404),
        (back.replace("/callback", "/callback/"), 404),
        (format!("{base}/callback"), 400),
        (format!("{base}/callback?code=c&state=forged"), 400),
        (format!("{base}/callback?error=access_denied&state=forged"), 400),
        (format!("{base}/callback?error=access_denied"), 400),
        (format!("{base}/callback?code=c&state={}", &state[1..]), 400),
        (format!("{back}&state={state}"), 400),
        (format!("{back}&code=another"), 400),
    ] {
        assert_eq!(status(&url).await, expected, "{url}");
    }
    assert_eq!(http.post(&back).send().await.unwrap().status(), 405);
    let rebound = http.get(&back).header("host", "evil.example").send().await.unwrap();
    assert_eq!(rebound.status(), 421, "a name that leads to this machine is another site's");
    // A head that does not fit, and connections that say nothing.
    let mut long = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let _ = long.write_all(format!("GET /callback?{} HTTP/1.1\r\n", "x".repeat(40_000)).as_bytes());
    let mut answer = [0; 12];
    if long.read_exact(&mut answer).is_ok() {
        assert!(answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    let silent: Vec<_> = (0..70).map(|_| TcpStream::connect(format!("127.0.0.1:{port}")).unwrap()).collect();

    // Over a connection of its own: the others may have made room already.
    let answer = http::client().get(&back).send().await.unwrap();
    assert_eq!(answer.status(), 200, "the browser itself gets through");
    login.ended().await.good().keeps_secrets_of(&world);
    drop(silent);
    assert_eq!(world.request("u-1").await["status"], "ok");
    assert!(http.get(&back).send().await.is_err(), "nobody listens any more");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_comes_to_nothing_says_why_and_stores_nothing() {
    let (world, redirect) = world_with_redirect(Dialect::GitLab).await;
    let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), world.scm.host());
    let start = || Running::start(&cli, &["login", &host, "--user", "u-1"]);
    let http = http::client();

    // The port is that of the provider's redirect_uri.
    let mut denied = start();
    let back = world.scm.deny(&denied.page().await).await;
    assert!(back.starts_with(&redirect), "{back}");
    assert_eq!(http.get(&back).send().await.unwrap().status(), 200);
    let ended = denied
        .ended()
        .await
        .with_code(1)
        .says("access_denied \"The user has denied access\"; next: log in again");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");

    // Another server answers in its place (RFC 9207).
    let mut mixed_up = start();
    let page = mixed_up.page().await;
    world.scm.send_issuer("https://evil.example");
    let back = world.scm.allow(&page, "jdoe").await;
    http.get(&back).send().await.unwrap();
    mixed_up
        .ended()
        .await
        .with_code(1)
        .says("another server than the one that was asked")
        .keeps_secrets_of(&world);

    // A code that was used already.
    let mut stolen = start();
    let page = stolen.page().await;
    let first = world.scm.allow(&page, "jdoe").await;
    let second = world.scm.allow(&page, "jdoe").await;
    let code_of = |url: &str| url.split("code=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let unknown = first.replace(&code_of(&first), "never-issued");
    http.get(&unknown).send().await.unwrap();
    let ended = stolen.ended().await.with_code(1).says("answered 400 invalid_grant").keeps_secrets_of(&world);
    assert!(!ended.stderr.contains(&code_of(&second)) && !ended.stderr.contains("never-issued"), "{ended:?}");

    let late = cli.run(&["login", &host, "--user", "u-1", "--timeout", "200ms"]).await.with_code(1);
    late.says("nobody authorised within 200ms; next: log in again, with a longer --timeout");

    let mut interrupted = start();
    interrupted.page().await;
    signal(&interrupted.child, "INT").await;
    interrupted.ended().await.with_code(130).says("nothing was stored; log in again");

    let reply = world.request("u-1").await;
    assert_eq!(reply["error"]["code"], "user_not_found", "{reply}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_whose_pair_could_not_be_refreshed_or_stored_does_not_begin() {
    // GitLab compares the redirect URI of a refresh with that of the login, and the provider's is another one.
    let world = World::new(Kind::Sqlite, Dialect::GitLab).await;
    let (cli, host) = (Cli::of(&world), world.scm.host());
    let login = async || cli.run(&["login", &host, "--user", "u-1"]).await.with_code(1);
    login()
        .await
        .says("the provider's redirect_uri is https://app.example.org/callback")
        .says("next: set redirect_uri = ");
    world.apply_provider(|record| record.redirect_uri = None).await;
    login().await.says("wants the redirect URI of the login with each refresh");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let here = format!("http://{}/callback", taken.local_addr().unwrap());
    world.apply_provider(|record| record.redirect_uri = Some(here.clone())).await;
    login().await.says("for the browser: another program listens there; next: another port");
    let other = cli.run(&["login", &host, "--user", "u-1", "--port", "1"]).await.with_code(1);
    other.says("the browser cannot come back to port 1");

    // Nobody should log in for nothing: the broker is looked at first.
    let free = format!("http://127.0.0.1:{}/callback", free_port());
    world.apply_provider(|record| record.redirect_uri = Some(free.clone())).await;
    let away = Cli::of(&world).set("AMQP_URL", "amqp://me:s3cret@127.0.0.1:1/%2f");
    let ended = away.run(&["login", &host, "--user", "u-1"]).await.with_code(2);
    let ended = ended.says("nothing listens at 127.0.0.1:1");
    assert!(!ended.stdout.contains("Open this page") && !ended.stderr.contains("s3cret"), "{ended:?}");
    // What has to be registered needs no broker, and no port.
    let shown = away.run(&["login", &host, "--user", "u-1", "--dry-run"]).await.good();
    assert!(shown.stdout.contains(&format!("redirect URI  {free}")), "{shown:?}");
    assert!(shown.stdout.contains("read_repository write_repository"), "{shown:?}");

    for (arguments, text) in [
        (
            &["login", "unknown.example.org", "--user", "u-1"][..],
            "no provider has the host unknown.example.org",
        ),
        (&["login", &host], "which user? Set TOKENKEEPER_USER"),
        (&["login"], "required arguments were not provided"),
        (&["login", &host, "--serve"], "cannot be used with"),
        (&["login", &host, "--user", "u-1", "--scope", "a b"], "must be one scope"),
    ] {
        let ended = cli.run(arguments).await;
        assert_ne!(ended.code, 0, "{arguments:?}");
        ended.says(text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_keeps_the_names_of_the_account_and_replaces_what_must_be_authorised_again() {
    let (world, redirect) = world_with_redirect(Dialect::GitHub).await;
    let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), world.scm.host());
    let pair = world.scm.authorize("jdoe");
    let mut body = world.scm.token_store_body(&pair);
    body["user_id"] = json!("u-1");
    body["auth_name"] = json!("J. Doe");
    assert_eq!(world.broker.request("token.store", body).await.body, json!({"status": "ok"}));
    world.scm.revoke("jdoe");
    assert_eq!(world.request_for("u-1", 3 * 3600).await["error"]["code"], "reauthorization_required");

    let port = port_of(&redirect);
    let mut login = Running::start(&cli, &["login", &host, "--user", "u-1", "--port", &port]);
    let back = world.scm.allow(&login.page().await, "jdoe").await;
    http::client().get(&back).send().await.unwrap();
    login.ended().await.good();
    assert_eq!(
        world.request_for("u-1", 60).await["token"]["value"],
        world.scm.latest_pair("jdoe").unwrap().access_token
    );
    let shown = cli.run(&["token", "show", "--user", "u-1", "--host", &host, "--json"]).await.good().json();
    assert_eq!((&shown["auth_id"], &shown["auth_name"]), (&json!("jdoe"), &json!("J. Doe")));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_client_secret_is_tried_where_one_is_refused() {
    let (world, redirect) = world_with_redirect(Dialect::GitHub).await;
    let right = world.scm.client_secret().to_owned();
    world
        .apply_provider(|record| {
            record.spare_client_secrets = vec![right.into()];
            record.client_secret = "not-valid-any-more".into();
        })
        .await;
    let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), world.scm.host());
    let port = port_of(&redirect);
    let mut login = Running::start(&cli, &["login", &host, "--user", "u-1", "--port", &port]);
    let back = world.scm.allow(&login.page().await, "jdoe").await;
    http::client().get(&back).send().await.unwrap();
    login.ended().await.good();
    assert_eq!(world.request("u-1").await["status"], "ok");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_port_will_do_where_the_host_does_not_compare_it() {
    let world = World::with_scm(Kind::Sqlite, ScmOptions::new(Dialect::GitHub)).await;
    let (cli, host) = (Cli::of(&world), world.scm.host());
    let worker = world.start_worker().await;
    let mut login = Running::start(&cli, &["login", &host, "--user", "u-1", "--port", "0"]);
    let page = login.page().await;
    let query = url::Url::parse(&page).unwrap();
    let redirect = query.query_pairs().find(|(name, _)| name == "redirect_uri").unwrap().1.into_owned();
    assert_ne!(port_of(&redirect), "0");
    world.scm.register_redirect(&redirect);
    let back = world.scm.allow(&page, "jdoe").await;
    http::client().get(&back).send().await.unwrap();
    login.ended().await.good();
    worker.stop().await;
}
