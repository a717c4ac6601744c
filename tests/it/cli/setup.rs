//! Help, keys, schemas, wrong usage, and how a worker starts and stops.

use std::process::Stdio;

use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST};

use super::Cli;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

const COMMANDS: [&[&str]; 23] = [
    &["worker"],
    &["migrate"],
    &["migrate", "up"],
    &["migrate", "down"],
    &["migrate", "status"],
    &["migrate", "fresh"],
    &["provider", "apply"],
    &["provider", "list"],
    &["provider", "remove"],
    &["token", "import"],
    &["token", "list"],
    &["token", "show"],
    &["dead", "summary"],
    &["dead", "list"],
    &["dead", "show"],
    &["dead", "replay"],
    &["dead", "drop"],
    &["doctor"],
    &["housekeeping"],
    &["keys", "generate"],
    &["keys", "status"],
    &["keys", "rotate"],
    &["schema"],
];

#[tokio::test]
async fn every_command_explains_itself_without_settings() {
    let cli = Cli::with([("TOKENKEEPER__NO__SUCH".to_owned(), "1".to_owned())]);
    for command in COMMANDS.into_iter().chain([&["request"][..], &["workspace-start"], &["fake"]]) {
        let help = cli.run(&[command, &["--help"]].concat()).await.good().stdout;
        assert!(help.contains("Usage: tokenkeeper"), "{help}");
    }
    let version = cli.run(&["--version"]).await.good().stdout;
    assert_eq!(version.trim(), concat!("tokenkeeper ", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn wrong_usage_and_wrong_settings_exit_with_2_and_say_what_is_right() {
    let cli = Cli::with([]);
    cli.run(&[]).await.with_code(2);
    cli.run(&["refresh"]).await.with_code(2).says("unrecognized subcommand");
    cli.run(&["migrate", "down", "--steps", "0"]).await.with_code(2);
    cli.run(&["token", "list", "--config", "none.toml"]).await.with_code(2).says("none.toml");
    let wrong = Cli::with([("AMQP_URL".to_owned(), "http://u:s3cret@host".to_owned())]);
    let ended = wrong.run(&["token", "list"]).await.with_code(2).says("`broker.url` (AMQP_URL) must be");
    assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
    let unknown = Cli::with([("TOKENKEEPER__BROKER__PREFIXX".to_owned(), "x".to_owned())]);
    unknown.run(&["migrate", "status"]).await.with_code(2).says("TOKENKEEPER__BROKER__PREFIX?");
}

#[tokio::test]
async fn a_settings_file_is_named_by_option_or_variable_and_an_empty_variable_counts_as_unset() {
    let cli = Cli::with([("TOKENKEEPER_CONFIG".to_owned(), "other.toml".to_owned())]);
    cli.write("other.toml", "[database]\nurl = \"sqlite://other.db\"\n");
    cli.run(&["migrate", "up"]).await.good();
    assert!(cli.folder.path().join("other.db").exists());
    cli.write("third.toml", "[database]\nurl = \"sqlite://third.db\"\n");
    cli.run(&["--config", "third.toml", "migrate", "up"]).await.good();
    assert!(cli.folder.path().join("third.db").exists());
    let cli = cli.set("TOKENKEEPER_CONFIG", "");
    cli.run(&["migrate", "up"]).await.good();
    assert!(cli.folder.path().join("tokenkeeper.db").exists());
}

#[tokio::test]
async fn a_generated_key_is_printed_as_the_setting_takes_it() {
    let cli = Cli::with([]);
    let first = cli.run(&["keys", "generate"]).await.good().says("TOKENKEEPER_KEYS");
    let second = cli.run(&["keys", "generate", "--id", "k-2"]).await.good();
    assert_eq!(first.stdout.lines().count(), 1);
    assert!(first.stdout.starts_with("k-") && second.stdout.starts_with("k-2:"), "{second:?}");
    let ring = format!("{},{}", first.stdout.trim(), second.stdout.trim());
    let cli = cli.set("TOKENKEEPER_KEYS", &ring);
    cli.run(&["migrate", "up"]).await.good();
    cli.run(&["provider", "list"]).await.good();
    Cli::with([]).run(&["keys", "generate", "--id", "a b"]).await.with_code(2).says("--id must be");
}

#[tokio::test]
async fn commands_that_need_keys_refuse_without_them_and_say_how_to_make_some() {
    let cli = Cli::with([]);
    cli.write("tokens.jsonl", "");
    for command in [&["worker"][..], &["provider", "list"], &["token", "import", "tokens.jsonl"]] {
        cli.run(command).await.with_code(2).says("tokenkeeper keys generate");
    }
    assert!(!cli.folder.path().join("tokenkeeper.db").exists(), "nothing was begun");
    cli.run(&["migrate", "up"]).await.good();
    cli.run(&["token", "list"]).await.good();
}

#[tokio::test]
async fn the_contract_comes_as_one_schema_or_all_or_as_asyncapi() {
    let cli = Cli::with([]);
    let all = cli.run(&["schema"]).await.good().json();
    let names: Vec<&String> = all["properties"].as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 10);
    for name in names {
        let one = cli.run(&["schema", name]).await.good().json();
        assert_eq!(one["$id"], format!("urn:tokenkeeper:{name}"));
        let examples = cli.run(&["schema", name, "--format", "examples"]).await.good().json();
        assert_eq!(examples[name][0]["body"], one["examples"][0]);
    }
    cli.run(&["schema", "token.reques"]).await.with_code(2).says("token.request");
    let asyncapi = cli.run(&["schema", "--format", "asyncapi"]).await.good().stdout;
    assert!(asyncapi.contains("asyncapi: \"3.0.0\""), "{asyncapi}");
    cli.run(&["schema", "event", "--format", "asyncapi"]).await.with_code(2).says("leave the name out");
}

#[tokio::test]
async fn a_closed_output_pipe_is_no_error() {
    let cli = Cli::with([]);
    let mut child = cli.command(&["schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The other end of the pipe is gone before it is written to, or while it is.
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_worker_at_once_with_1() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let body = world.token_request("jdoe").to_string();
    let _pending = world.broker.send(TOKEN_REQUEST, body, BasicProperties::default()).await;
    gate.wait_for_parked(1).await;
    worker.signal("TERM").await;
    eventually("the worker to stop softly", PATIENCE, async || {
        worker.log().contains("finishing what is in hand").then_some(())
    })
    .await;
    worker.signal("TERM").await;
    assert_eq!(worker.wait(&world).await.code(), Some(1));
}
