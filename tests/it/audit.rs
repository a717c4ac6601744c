//! The audit log of a real worker process: a line for each token that is handed out, stored or reported, each refusal and each
//! refresh, and no secret.

mod chain;

use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, WORKSPACE_START};

use crate::cli::Cli;
use crate::harness::json_lines::assert_json_lines;
use crate::harness::logs::assert_holds_none_of;
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, Kind, PATIENCE, World, eventually};

/// What it holds of users and of whoever sent it is escaped, and stays what it is.
const REQUEST_ID: &str = "r \"1\" \\ é";

/// A world whose workers write an audit log into a file of this folder.
async fn audited_world() -> (World, TempDir, PathBuf) {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    world.set("audit.to", "file").set("audit.file", file.display());
    (world, folder, file)
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    assert_json_lines(&text, "an audit log");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A line without its date.
fn undated(mut line: Value) -> Value {
    let date = line.as_object_mut().unwrap().remove("timestamp").expect("a date");
    assert!(date.as_str().is_some_and(|date| date.ends_with('Z')), "{date}");
    line
}

async fn ask(world: &World, user: &str) -> Value {
    let signed = BasicProperties::default()
        .with_user_id(world.publisher().as_str().into())
        .with_correlation_id(REQUEST_ID.into());
    world.send_with(user, signed).await.reply().await.body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_given_stored_or_refused_what_is_told_in_a_line_each() {
    let (world, _folder, file) = audited_world().await;
    let worker = world.spawn_worker().await;
    let (host, publisher) = (world.scm.host(), world.publisher());

    world.user_with_expired_token("alice").await;
    let refreshed = ask(&world, "alice").await;
    let held = ask(&world, "alice").await;
    error_message(&ask(&world, "nobody").await, "user_not_found");
    world.user_with_expired_token("bob").await;
    world.scm.fail_next_for("bob", 1, Fault::InvalidGrant);
    error_message(&ask(&world, "bob").await, "reauthorization_required");
    let malformed = json!({"user_id": "mallory", "host": host, "requested_lifetime_secs": "an hour"});
    world.broker.request(TOKEN_REQUEST, malformed).await;
    worker.stop(&world).await;

    let handed_out = |reply: &Value, refresh: &str| {
        json!({
            "event": "token_handed_out", "outcome": refresh, "kind": "token.request", "publisher": publisher,
            "user": "alice", "host": host, "sealed": false, "generation": 2, "reserved_until": token(reply)["reserved_until"],
            "request_id": REQUEST_ID,
        })
    };
    let refused = |user: &str, code: &str| {
        json!({
            "event": "refused", "outcome": code, "kind": "token.request", "publisher": publisher,
            "user": user, "host": host, "request_id": REQUEST_ID,
        })
    };
    let refresh = |event: &str, outcome: &str, user: &str, generation: u32| {
        json!({
            "event": event, "outcome": outcome, "cause": "required", "user": user, "host": host,
            "generation": generation,
        })
    };
    let mut told: Vec<Value> = lines(&file).into_iter().map(undated).collect();
    let mut stored = told.extract_if(.., |line| line["event"] == "token_stored");
    for user in ["alice", "bob"] {
        let mut line = stored.next().expect("a line for each login");
        line.as_object_mut().unwrap().remove("request_id");
        let expected = json!({
            "event": "token_stored", "outcome": "created", "kind": "token.store", "user": user, "host": host,
            "generation": 1, "sealed": false,
        });
        assert_eq!(line, expected);
    }
    drop(stored);
    let reserved_until = told[0].as_object_mut().unwrap().remove("reserved_until");
    assert_eq!(reserved_until, Some(token(&refreshed)["reserved_until"].clone()));
    assert_eq!(
        told[..6],
        [
            refresh("token_refreshed", "stored", "alice", 2),
            handed_out(&refreshed, "required"),
            handed_out(&held, "reserved"),
            refused("nobody", "user_not_found"),
            refresh("refresh_failed", "reauthorization_required", "bob", 1),
            refused("bob", "reauthorization_required"),
        ]
    );
    let malformed = &told[6];
    assert_eq!((&malformed["outcome"], &malformed["user"]), (&json!("invalid_request"), &json!("mallory")));
    assert_eq!(told.len(), 7, "{told:#?}");
    assert_holds_none_of(std::fs::read_to_string(&file).unwrap(), &world.secrets(), "the audit log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_setting_there_is_no_audit_log_and_on_standard_output_it_is_lines_of_json_too() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    for (to, expected) in [("off", 0), ("stdout", 1)] {
        let worker = world.set("audit.to", to).spawn_worker().await;
        error_message(&ask(&world, "nobody").await, "user_not_found");
        let told = || worker.log().matches(r#""event":"refused""#).count();
        eventually("the line", PATIENCE, async || (told() == expected).then_some(())).await;
        worker.stop(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_cannot_be_written_are_counted_and_cost_no_reply() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    // Whatever is written there fails as on a full disk.
    world.set("audit.to", "file").set("audit.file", "/dev/full");
    let worker = world.spawn_worker().await;
    let lost = r#"tokenkeeper_audit_lines_lost_total{reason="failed"}"#;
    eventually("lines to be lost", PATIENCE, async || {
        for reply in world.send_many("nobody", 200).await {
            error_message(&reply.reply().await.body, "user_not_found");
        }
        (worker.count(lost).await > 0).then_some(())
    })
    .await;
    assert!(worker.log().contains("cannot write the audit log; check audit.file and its disk"));
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_audit_log_cannot_be_opened_does_not_start() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("audit.to", "file").set("audit.file", "/no/such/folder/audit.jsonl");
    let ended = Cli::of(&world).run(&["worker"]).await.with_code(1);
    assert_json_lines(&ended.stderr, "a worker that does not start");
    ended.says("cannot write the audit log /no/such/folder/audit.jsonl (audit.file)").says("next: ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_is_repeated_and_changes_nothing_is_not_told_as_stored() {
    let (world, _folder, file) = audited_world().await;
    let worker = world.spawn_worker().await;
    let first = world.user_with_token("jdoe").await;
    world.store_pair(&first).await;
    world.user_with_token("jdoe").await;
    worker.stop(&world).await;

    let told = lines(&file).into_iter().map(|line| (line["outcome"].clone(), line["generation"].clone()));
    let expected = [("created", 1), ("kept", 1), ("replaced", 2)];
    assert!(told.eq(expected.map(|(outcome, generation)| (json!(outcome), json!(generation)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_log_that_takes_nothing_loses_lines_which_are_counted_and_holds_nobody_up() {
    let (mut world, folder, _) = audited_world().await;
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Open at the other end, and nobody reads.
    let _reader = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    world.set("audit.file", pipe.display());
    let worker = world.spawn_worker().await;
    world.user_with_token("bystander").await;
    // A line for each host: some 19,000.
    let repositories: Vec<String> =
        (0..16).map(|number| format!("https://h{number}.invalid/o/r.git")).collect();
    let start =
        json!({"workspace_id": "ws-1", "user_id": "mallory", "repositories": repositories}).to_string();
    let flood = (0..1_200).map(|_| world.broker.send(WORKSPACE_START, &start, BasicProperties::default()));

    let flood = join_all(flood).await;
    for _ in 0..20 {
        token(&world.request("bystander").await);
    }
    for reply in flood {
        error_message(&reply.reply().await.body["tokens"][0], "unknown_host");
    }

    assert!(worker.count(r#"tokenkeeper_audit_lines_lost_total{reason="full"}"#).await > 0);
    worker.wait_for_log("the audit log takes lines too slowly; a line is lost", 1).await;
    token(&world.request("bystander").await);
    worker.stop(&world).await;
}
