//! `tokenkeeper token`

use std::time::Duration;

use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::domain::secret::ExposeSecret;
use tokenkeeper::store::{Failure, FailureKind, Guarded};

use super::Cli;
use crate::harness::{Dialect, Kind, World, on_every_database};

/// PostgreSQL's clock, an hour ahead of this machine's for every connection from here on.
async fn set_the_databases_clock_ahead(world: &World) {
    let db = world.connection().await;
    let name = world.settings().database.url.expose_secret().rsplit('/').next().unwrap().to_owned();
    for statement in [
        "CREATE SCHEMA ahead",
        "CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql
         AS $$SELECT pg_catalog.clock_timestamp() + interval '1 hour'$$",
        &format!("ALTER DATABASE \"{name}\" SET search_path = public, ahead, pg_catalog"),
    ] {
        db.execute_unprepared(statement).await.unwrap();
    }
}

#[tokio::test]
async fn what_commands_write_is_dated_by_the_databases_clock() {
    let world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    set_the_databases_clock_ahead(&world).await;
    let cli = Cli::of(&world);
    let soon = SystemClock.now().plus(Duration::from_mins(59));
    cli.write("tokens.jsonl", &line(&world, "jdoe", "a-token"));
    cli.run(&["token", "import", "tokens.jsonl"]).await.good();
    assert!(world.entry("jdoe").await.updated_at > soon);
    cli.write("providers.toml", &world.scm.provider_toml("max_concurrent_refreshes = 3"));
    cli.run(&["provider", "apply", "providers.toml"]).await.good();
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
    assert!(provider.updated_at > soon);
}

/// A line of an import.
fn line(world: &World, user: &str, access_token: &str) -> String {
    json!({"user_id": user, "host": world.scm.host(), "token": {"value": access_token, "expires_at": "2030-01-01T00:00:00Z"}})
        .to_string()
}

async fn access_token(world: &World, user: &str) -> String {
    let entry = world.entry(user).await;
    world.store.open_access_token(&entry).unwrap().expose_secret().to_owned()
}

on_every_database! {
    async fn good_lines_are_imported_and_bad_ones_told_by_number_without_their_content(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let cli = Cli::of(&world);
        let pair = world.scm.authorize("jdoe");
        cli.write("tokens.jsonl", &[
            world.scm.token_store_body(&pair).to_string(),
            String::new(),
            "s3cret-line".to_owned(),
            json!({"user_id": "u", "host": "nowhere.example.org", "token": {"value": "s3cret-token"}}).to_string(),
            json!({"user_id": "u", "host": world.scm.host(), "token": {"value": "s3cret\ntoken"}}).to_string(),
            line(&world, "last", "the-last-token"),
        ].join("\n"));

        let ended = cli.run(&["token", "import", "tokens.jsonl"]).await.with_code(1).keeps_secrets_of(&world);

        assert_eq!(ended.stdout, "imported 2, kept 0, failed 3\n");
        let ended = ended.says("line 3: the body must be a JSON object").says("line 4: host: no provider has this host");
        let ended = ended.says("line 5: token.value: must be printable ASCII");
        assert!(!ended.stderr.contains("s3cret") && ended.stderr.lines().count() == 3, "{ended:?}");
        assert_eq!(access_token(&world, "jdoe").await, pair.access_token);
        assert_eq!(access_token(&world, "last").await, "the-last-token");
    }

    async fn of_lines_about_the_same_identity_the_later_one_wins(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let lines: Vec<String> = (0..40)
            .flat_map(|round| ["u-1", "u-2", "u-3"].map(|user| line(&world, user, &format!("{user}-token-{round}"))))
            .collect();

        let ended = Cli::of(&world).run_with_input(&["token", "import", "-"], &lines.join("\n")).await.good();

        assert_eq!(ended.stdout, "imported 120 (117 in place of a stored pair), kept 0, failed 0\n");
        for user in ["u-1", "u-2", "u-3"] {
            assert_eq!(access_token(&world, user).await, format!("{user}-token-39"));
            assert_eq!(world.entry(user).await.generation, 40);
        }
    }

    async fn the_state_of_a_token_is_shown_and_never_the_token(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        // No keys: what is shown must not need them.
        let cli = Cli::of(&world).unset("TOKENKEEPER_KEYS");
        let worker = world.start_worker().await;
        let pair = world.user_with_token("jdoe").await;
        world.user_with_token("other").await;
        worker.stop().await;
        let now = SystemClock.now();
        let entry = world.entry("jdoe").await;
        assert_eq!(world.store.take_lease(&entry, None, "flight-1", "sent", now, Duration::ZERO).await.unwrap(), Guarded::Done);
        let failure = Failure {
            kind: FailureKind::Unavailable,
            message: "answered 503".to_owned(),
            fingerprint: "f".to_owned(),
            at: now,
        };
        assert_eq!(world.store.give_up(&entry, "flight-1", &failure).await.unwrap(), Guarded::Done);
        let hour = Duration::from_secs(3600);
        let entry = world.entry("jdoe").await;
        assert_eq!(world.store.take_lease(&entry, None, "flight-2", "sent", now, hour).await.unwrap(), Guarded::Done);
        let host = world.scm.host();

        let shown = cli.run(&["token", "show", "--user", "jdoe", "--host", &host]).await.good().keeps_secrets_of(&world);
        assert_eq!(shown.value("user"), "jdoe");
        assert_eq!(shown.value("scopes"), Dialect::BitbucketServer.scopes().join(" "));
        assert_eq!(shown.value("refreshable"), "yes");
        assert!(shown.value("expires").starts_with(&Timestamp::from_millis(pair.expires_at_ms).to_string()));
        assert!(shown.value("refresh lease").starts_with("flight-2 until "), "{shown:?}");
        assert!(shown.value("failure").starts_with("provider_unavailable at "), "{shown:?}");
        assert!(shown.value("failure").ends_with(": answered 503"), "{shown:?}");

        let json = ["token", "show", "--user", "jdoe", "--host", &host, "--json"];
        let json = cli.run(&json).await.good().keeps_secrets_of(&world).json();
        let token = &json["token"];
        assert_eq!(token["lease"], json!({"holder": "flight-2", "until": now.plus(hour)}));
        assert_eq!(token["failure"], json!({"code": "provider_unavailable", "message": "answered 503", "at": now}));
        assert_eq!(token["expires_at"], json!(Timestamp::from_millis(pair.expires_at_ms)));
        assert_eq!((&token["reserved_until"], &token["generation"]), (&Value::Null, &json!(1)));

        let list = cli.run(&["token", "list"]).await.good().keeps_secrets_of(&world);
        assert_eq!(list.table()[1..].iter().map(|cells| cells[0]).collect::<Vec<_>>(), ["jdoe", "other"]);
        let list = cli.run(&["token", "list", "--json", "--user", "jdoe", "--host", &host]).await.good().json();
        assert_eq!(list, json!([json]));
        assert_eq!(cli.run(&["token", "list", "--json", "--user", "JDOE"]).await.good().json(), json!([]));

        let missing = ["token", "show", "--user", "nobody", "--host", &host];
        cli.run(&missing).await.with_code(1).says("user nobody has no identity at");
    }

    async fn a_list_of_any_length_is_shown_whole(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let cli = Cli::of(&world);
        let lines: Vec<String> = (0..1_001).map(|number| line(&world, &format!("u-{number}"), "t")).collect();
        cli.run_with_input(&["token", "import", "-"], &lines.join("\n")).await.good();

        let list = cli.run(&["token", "list", "--json"]).await.good().json();

        let mut users: Vec<&str> = list.as_array().unwrap().iter().map(|one| one["user_id"].as_str().unwrap()).collect();
        users.sort_unstable();
        users.dedup();
        assert_eq!(users.len(), 1_001);
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    Cli::of(&world).run(&["token", "import", "none.jsonl"]).await.with_code(1).says("none.jsonl");
}
