//! `tokenkeeper token import`, run again, tried out and interrupted: nobody is logged out by accident.

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokio::io::AsyncWriteExt;

use super::{Cli, ended, signal};
use crate::harness::reply::token;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually, on_every_database};

const HOUR: i64 = 60 * 60 * 1000;

fn hours_from_now(hours: i64) -> Timestamp {
    Timestamp::from_millis(SystemClock.now().as_millis() + hours * HOUR)
}

/// A line about a login of its own.
fn line(world: &World, user: &str, name: &str, issued_at: Option<Timestamp>) -> String {
    let token = json!({"value": format!("{name}-access"), "refresh_token": format!("{name}-refresh")});
    json!({"user_id": user, "host": world.scm.host(), "token": token, "issued_at": issued_at}).to_string()
}

async fn access_token(world: &World, user: &str) -> String {
    let entry = world.entry(user).await;
    world.store.open_access_token(&entry).unwrap().expose_secret().to_owned()
}

async fn imported(cli: &Cli, lines: &[String]) -> String {
    cli.run_with_input(&["token", "import", "-"], &lines.join("\n")).await.good().stdout
}

on_every_database! {
    async fn an_import_that_is_repeated_logs_nobody_out(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let cli = Cli::of(&world);
        let expired = world.scm.authorize_until("jdoe", world.scm.now_ms() - 1000);
        let unused = world.scm.authorize("unused");
        let lines = [&expired, &unused].map(|pair| world.scm.token_store_body(pair).to_string());
        cli.write("tokens.jsonl", &lines.join("\n"));
        let import = ["token", "import", "tokens.jsonl"];
        assert_eq!(cli.run(&import).await.good().stdout, "imported 2, kept 0, failed 0\n");
        let worker = world.start_worker().await;
        let refreshed = world.request("jdoe").await;
        assert_eq!(refreshed["refresh"], "required");
        let before = world.entry("jdoe").await;

        let dry = cli.run(&["token", "import", "tokens.jsonl", "--dry-run"]).await.good();
        assert_eq!(dry.stdout, "would import 0 (0 in place of a stored pair), would keep 2, failed 0\n");
        assert_eq!(cli.run(&import).await.good().stdout, "imported 0, kept 2, failed 0\n");

        assert_eq!(world.entry("jdoe").await.generation, before.generation);
        assert_eq!(json!(access_token(&world, "jdoe").await), token(&refreshed)["value"]);
        assert!(world.scm.is_alive(&access_token(&world, "jdoe").await));
        assert_eq!(world.request_for("jdoe", 86_400).await["status"], "ok", "it can be refreshed again");

        let dry = ["token", "import", "tokens.jsonl", "--replace", "--dry-run", "--json"];
        assert_eq!(cli.run(&dry).await.good().json(), json!({"imported": 2, "replaced": 2, "kept": 0, "failed": 0}));
        assert!(world.scm.is_alive(&access_token(&world, "jdoe").await), "a dry run writes nothing");
        cli.run(&["token", "import", "tokens.jsonl", "--replace"]).await.good();
        assert_eq!(access_token(&world, "jdoe").await, expired.access_token, "as it was told");
        worker.stop().await;
    }

    async fn a_line_is_kept_out_by_a_pair_that_was_issued_or_stored_after_it(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let cli = Cli::of(&world);
        imported(&cli, &[line(&world, "jdoe", "stored-now", None)]).await;

        let older = line(&world, "jdoe", "older", Some(hours_from_now(-1)));
        assert_eq!(imported(&cli, &[older]).await, "imported 0, kept 1, failed 0\n");
        assert_eq!(access_token(&world, "jdoe").await, "stored-now-access");
        let newer = line(&world, "jdoe", "newer", Some(hours_from_now(1)));
        assert_eq!(imported(&cli, &[newer]).await, "imported 1 (1 in place of a stored pair), kept 0, failed 0\n");
        assert_eq!(access_token(&world, "jdoe").await, "newer-access");

        let [first, second] = [("first", -2), ("second", -1)]
            .map(|(name, hours)| (name, Some(hours_from_now(hours))));
        let lines = |user: &str, order: [(&str, Option<Timestamp>); 2]| {
            order.map(|(name, issued_at)| line(&world, user, name, issued_at)).to_vec()
        };
        imported(&cli, &lines("in order", [first, second])).await;
        imported(&cli, &lines("backwards", [second, first])).await;
        for user in ["in order", "backwards"] {
            assert_eq!(access_token(&world, user).await, "second-access", "{user}: by when they were issued");
        }
        let undated = line(&world, "backwards", "undated", None);
        assert_eq!(imported(&cli, &[undated]).await, "imported 1 (1 in place of a stored pair), kept 0, failed 0\n", "another login, as ever");
    }

    async fn an_interrupted_import_says_how_far_it_came_and_goes_on_from_there(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let cli = Cli::of(&world);
        let lines: Vec<String> = (1..=4).map(|number| line(&world, &format!("u-{number}"), "a", None)).collect();
        let mut child = cli.start(&["token", "import", "-"]);
        let mut input = child.stdin.take().unwrap();
        input.write_all(format!("{}\n", lines[..3].join("\n")).as_bytes()).await.unwrap();
        eventually("three users to be there", PATIENCE, async || {
            (stored_users(&cli).await == 3).then_some(())
        })
        .await;

        signal(&child, "INT").await;

        let ended = ended(child).await.with_code(130);
        let ended = ended.says("after line 3; import the file again for the rest");
        assert_eq!(ended.stdout, "imported 3, kept 0, failed 0\n");
        drop(input);
        assert_eq!(imported(&cli, &lines).await, "imported 1, kept 3, failed 0\n");
    }
}

async fn stored_users(cli: &Cli) -> usize {
    let listed = cli.run(&["token", "list", "--json"]).await.good().json();
    listed.as_array().unwrap().iter().filter(|user| user["token"] != Value::Null).count()
}

#[tokio::test]
async fn a_date_of_issue_that_is_none_is_told_by_its_line() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let text = line(&world, "jdoe", "a", None).replace("null", "\"yesterday\"");
    let ended = Cli::of(&world).run_with_input(&["token", "import", "-"], &text).await.with_code(1);
    ended.says("line 1: issued_at: must be an RFC 3339 date");
    imported(&Cli::of(&world), &[line(&world, "jdoe", "a", None)]).await;
    let unset = line(&world, "jdoe", "b", Some(Timestamp::from_millis(0)));
    assert_eq!(
        imported(&Cli::of(&world), &[unset]).await,
        "imported 1 (1 in place of a stored pair), kept 0, failed 0\n",
        "it counts as left out"
    );
}
