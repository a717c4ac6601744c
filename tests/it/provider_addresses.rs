//! Where a provider's tokens and secrets go: to its own hosts, and to addresses of the internet unless it is told otherwise.

use sea_orm::{ConnectionTrait, Statement};
use serde_json::Value;
use tokenkeeper::store::database;
use tokenkeeper_migration::{Migrator, MigratorTrait};

use crate::cli::Cli;
use crate::harness::reply::error_message;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually, on_every_database};

/// A provider block at this host, whose token endpoint is this one.
fn block(world: &World, host: &str, token_url: &str, more: &str) -> String {
    let lines = format!(
        "host = \"{host}\"\ntoken_url = \"{token_url}\"\nredirect_uri = \"https://app.example.org/\"\n{more}"
    );
    world.scm.provider_toml(&lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_at_a_private_address_is_applied_only_where_its_block_allows_that() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world);
    let apply = async |text: &str| cli.run_with_input(&["provider", "apply", "-"], text).await;
    let private = |more| block(&world, "10.255.255.1", "https://10.255.255.1/token", more);

    let refused = apply(&private("")).await.with_code(1).keeps_secrets_of(&world);
    refused
        .says("nothing was written: 10.255.255.1: token_url cannot be used: 10.255.255.1 leads to a private address")
        .says("add allow_private_network = true to the provider file");
    let applied = apply(&private("allow_private_network = true")).await.good();
    assert_eq!(applied.table()[1][..2], ["10.255.255.1", "created"]);
    let listed = cli.run(&["provider", "list", "--json"]).await.good().json();
    assert_eq!(listed[0]["allow_private_network"], true);

    for metadata in ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]"] {
        let url = format!("https://{metadata}/token");
        let host = url::Url::parse(&url).unwrap().host_str().unwrap().to_owned();
        let text = block(&world, &host, &url, "allow_private_network = true");
        apply(&text).await.with_code(1).says("where no provider can be");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_go_to_a_host_that_is_not_the_providers_only_where_its_block_names_it() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world);
    let apply = async |text: &str| cli.run_with_input(&["provider", "apply", "-"], text).await;
    let elsewhere = |more| block(&world, "git.example.org", "https://no-such-host.invalid/token", more);

    apply(&elsewhere(""))
        .await
        .with_code(1)
        .says("`token_url` cannot be used: its host no-such-host.invalid is not the provider's")
        .says("add token_hosts = [\"no-such-host.invalid\"]");
    apply(&elsewhere("token_hosts = [\"no-such-host.invalid\"]")).await.good();
}

/// Waits until the worker knows the provider as it is now and refuses to send it anything, for this reason.
async fn assert_refused(world: &World, told: &str) {
    eventually(&format!("a refusal that says {told}"), PATIENCE, async || {
        let refused = world.request("jdoe").await;
        error_message(&refused, "provider_misconfigured").contains(told).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_was_changed_to_an_address_that_is_not_allowed_sends_nothing_and_condemns_nobody() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.identity_limit_per_minute", 0);
    let first = "https://10.255.255.1/token";
    world.apply_provider(|provider| provider.token_url = Some(first.parse().unwrap())).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    for (token_url, told) in [
        (first, "its host 10.255.255.1 is not the provider's"),
        ("https://elsewhere.example.org/token", "add token_hosts = [\"elsewhere.example.org\"]"),
    ] {
        world.apply_provider(|provider| provider.token_url = Some(token_url.parse().unwrap())).await;
        assert_refused(&world, told).await;
    }
    let of_listed = |provider: &mut tokenkeeper::domain::provider::ProviderRecord| {
        provider.token_url = Some("https://10.255.255.1/token".parse().unwrap());
        provider.overrides.token_hosts = vec!["10.255.255.1".to_owned()];
    };
    world.apply_provider(of_listed).await;
    assert_refused(&world, "allow_private_network = true").await;

    let doctor = Cli::of(&world).run(&["doctor"]).await.with_code(1).keeps_secrets_of(&world);
    assert!(doctor.stdout.contains("add allow_private_network = true"), "{}", doctor.stdout);

    world.apply_provider(|_| {}).await;
    eventually("the token to be refreshed: nobody was condemned", PATIENCE, async || {
        (world.request("jdoe").await["refresh"] == "required").then_some(())
    })
    .await;
    worker.stop().await;
}

on_every_database! {
    async fn providers_that_were_applied_before_the_rule_go_on_being_called_where_they_are(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let db = world.connection().await;
        let since = Migrator::migrations().iter().rev().take_while(|it| !it.name().ends_with("keep_where_providers_are")).count() + 1;
        Migrator::down(&db, Some(since.try_into().unwrap())).await.unwrap();
        for (host, token_url, overrides) in [
            ("git.corp.example", None, None),
            ("keycloak.corp.example:8443", Some("https://login.corp.example/token"), Some(r#"{"other_hosts":["ssh.corp.example"]}"#)),
            ("github.com", None, None),
            ("dev.azure.com", Some("https://login.microsoftonline.com/tenant/oauth2/v2.0/token"), None),
            ("local.example", Some("http://127.0.0.1:7990/token"), None),
        ] {
            let quoted = |text: Option<&str>| text.map_or_else(|| "NULL".to_owned(), |text| format!("'{text}'"));
            let insert = format!(
                "INSERT INTO auth_provider (host, kind, client_id, client_secret_sealed, key_id, token_url, overrides, created_at, updated_at) \
                 SELECT '{host}', kind, client_id, client_secret_sealed, key_id, {}, {}, 1, 1 FROM auth_provider WHERE host = '{}'",
                quoted(token_url), quoted(overrides), world.scm.host()
            );
            db.execute_unprepared(&insert).await.unwrap();
        }

        database::migrate(&db).await.unwrap();
        let overrides = async |host: &str| -> Value {
            let query = format!("SELECT overrides FROM auth_provider WHERE host = '{host}'");
            let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), query)).await.unwrap().unwrap();
            let text: Option<String> = row.try_get("", "overrides").unwrap();
            text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
        };

        assert_eq!(overrides("git.corp.example").await, serde_json::json!({"allow_private_network": true}));
        assert_eq!(overrides("keycloak.corp.example:8443").await, serde_json::json!({
            "other_hosts": ["ssh.corp.example"], "allow_private_network": true, "token_hosts": ["login.corp.example"],
        }));
        for of_the_internet in ["github.com", "local.example", &world.scm.host()] {
            assert_eq!(overrides(of_the_internet).await, Value::Null, "{of_the_internet} needs neither");
        }
        let azure = serde_json::json!({"token_hosts": ["login.microsoftonline.com"]});
        assert_eq!(overrides("dev.azure.com").await, azure);

        Migrator::down(&db, Some(since.try_into().unwrap())).await.unwrap();
        assert_eq!(overrides("git.corp.example").await, Value::Null);
        assert_eq!(overrides("keycloak.corp.example:8443").await, serde_json::json!({"other_hosts": ["ssh.corp.example"]}));
        database::migrate(&db).await.unwrap();
    }
}
