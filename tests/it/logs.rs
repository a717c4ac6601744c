//! What a real worker logs: strictly JSON to its last line, and what an operator needs to know. `harness` reads every line that
//! any test's worker logs as strictly.

use serde_json::{Value, json};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST};

use crate::cli::Cli;
use crate::harness::json_lines::assert_json_lines;
use crate::harness::reply::error_message;
use crate::harness::{Dialect, Fault, Kind, WorkerProcess, World};

/// The first line that says this.
#[track_caller]
fn line(log: &str, message: &str) -> Value {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found = lines.into_iter().find(|line| line["message"] == message);
    found.unwrap_or_else(|| panic!("no line says {message:?}: {log}"))
}

async fn line_of(worker: &WorkerProcess, message: &str) -> Value {
    worker.wait_for_log(&format!("\"message\":{}", json!(message)), 1).await;
    line(&worker.log(), message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_line_of_a_failing_start_is_json_and_says_why() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    world.set("admin.listen", taken.local_addr().unwrap());
    let taken = Cli::of(&world);
    let no_settings = Cli::of(&world).set("TOKENKEEPER__BROKER__PREFIXX", "x");
    for (cli, code, cause) in [(taken, 1, "(admin.listen)"), (no_settings, 2, "is not a setting")] {
        let ended = cli.run(&["worker"]).await.with_code(code);
        assert_json_lines(&ended.stderr, "a worker that does not start");
        let last: Value = serde_json::from_str(ended.stderr.lines().last().unwrap()).unwrap();
        assert_eq!((&last["level"], &last["exit_code"]), (&json!("ERROR"), &json!(code)), "{last}");
        assert!(last["message"].as_str().is_some_and(|text| text.contains(cause)), "{last}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_for_people_gets_a_failing_start_as_from_any_command() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    world.set("admin.listen", taken.local_addr().unwrap()).set("log.format", "human");
    let ended = Cli::of(&world).run(&["worker"]).await.with_code(1);
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("admin.listen"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_are_wrong_are_told_in_the_format_that_they_name() {
    let cli = |format: &str| {
        let cli = Cli::with([]).set("TOKENKEEPER__BROKER__PREFIXX", "x");
        cli.write("tokenkeeper.toml", &format!("[log]\nformat = \"{format}\"\n"));
        cli
    };
    let broken = |format: &str| {
        let cli = Cli::with([]).set("TOKENKEEPER__LOG__FORMAT", format);
        cli.write("tokenkeeper.toml", "[log\n");
        cli
    };
    for (cli, is_human) in [
        (cli("human"), true),
        (cli("json"), false),
        // As for a program, which reads this.
        (cli("no such format"), false),
        (broken("human"), true),
        (broken("json"), false),
    ] {
        let ended = cli.run(&["worker"]).await.with_code(2);
        if is_human {
            assert!(ended.stderr.starts_with("error: "), "{ended:?}");
        } else {
            assert_json_lines(&ended.stderr, "a worker that does not start");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_ready_says_with_what_in_one_line() {
    let mut world = World::new(Kind::Postgres, Dialect::GitHub).await;
    let other = world.set("broker.partitions", 2).spawn_worker().await;
    assert_eq!(line_of(&other, "worker ready").await["workers"], 1);
    let worker = world.spawn_worker().await;
    let ready = line_of(&worker, "worker ready").await;
    assert_eq!(ready["workers"], 2, "{ready}");
    assert_eq!(ready["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&ready["database"], &ready["providers"]), (&json!("postgres"), &json!(1)));
    assert_eq!((&ready["queues"], &ready["partitions"]), (&json!(13), &json!(2)), "{ready}");
    assert_eq!(ready["prefetch"], world.settings().worker.prefetch_token_requests);
    assert_eq!(worker.log().matches("\"message\":\"worker ready\"").count(), 1);
    worker.stop(&world).await;
    other.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_its_publisher_and_its_request_as_they_are() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let rule = json!([{"publisher": "somebody else", "hosts": ["*"], "messages": ["token.request"]}]);
    let worker = world.set("access.rules", rule).spawn_worker().await;
    let properties = BasicProperties::default()
        .with_user_id(world.publisher().as_str().into())
        .with_correlation_id("request \"7\"".into());
    let reply = world.send_with("jdoe", properties).await.reply().await.body;
    error_message(&reply, "forbidden");

    let settled = line_of(&worker, "message settled").await;

    assert_eq!((&settled["code"], &settled["publisher"]), (&json!("forbidden"), &json!(world.publisher())));
    assert_eq!(settled["span"]["request_id"], "request \"7\"");
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_told_by_the_name_that_dead_show_takes() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    // One has a name from its publisher, one has none, and one is sealed.
    let named = BasicProperties::default().with_message_id("message-7".into());
    world.broker.publish(TOKEN_REQUEST, "no JSON", named).await;
    world.broker.publish(TOKEN_REQUEST, "no JSON either", BasicProperties::default()).await;
    world.broker.publish("token.store", "{\"token\": 1}", BasicProperties::default()).await;
    worker.wait_for_log("message moved to the dead letters", 3).await;

    let log = worker.log();
    worker.stop(&world).await;

    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<Value> =
        lines.filter(|line| line["message"] == "message moved to the dead letters").collect();
    assert!(told.iter().any(|line| line["id"] == "message-7"), "{told:?}");
    for line in told {
        let shown = Cli::of(&world).run(&["dead", "show", line["id"].as_str().unwrap()]).await.good();
        assert!(shown.stdout.contains(line["reason"].as_str().unwrap()), "{shown:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_refresh_says_what_happened_in_a_field_of_its_own() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.scm.fail_next(1, Fault::InvalidGrant);
    error_message(&world.request("jdoe").await, "reauthorization_required");

    let failed = line_of(&worker, "refresh failed").await;

    assert!(failed["detail"].as_str().is_some_and(|detail| detail.contains("bad_refresh_token")), "{failed}");
    worker.stop(&world).await;
}
