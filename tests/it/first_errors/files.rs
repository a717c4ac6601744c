//! Files and ports of this machine: a worker that cannot use them ends with one line, and does not wait.

use serde_json::json;
use tokio::net::TcpListener;

use super::not_ready_because;
use crate::cli::{Cli, Ended};
use crate::harness::{Dialect, Kind, World};

/// The last line of a worker that did not start.
async fn refused(cli: &Cli) -> String {
    let Ended { stderr, .. } = cli.run(&["worker"]).await.with_code(1);
    assert!(!stderr.contains("os error"), "{stderr}");
    stderr.lines().last().expect("a line").to_owned()
}

fn cli_of(world: &World, variable: &str, value: &str) -> Cli {
    Cli::of(world).set(variable, value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_file_that_cannot_be_used_ends_the_worker_with_the_cause() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let read_only = world.environment()["DATABASE_URL"].replace("?mode=rwc", "?mode=ro");
    for (url, told) in [
        (
            "sqlite://none/t.db",
            "the folder none does not exist; next: mkdir -p none, or correct database.url",
        ),
        ("sqlite://text.db", "text.db cannot be read as a database (database.url): it is no SQLite file"),
        (&read_only, "is read-only (database.url): this user may not write it"),
    ] {
        let cli = cli_of(&world, "DATABASE_URL", url);
        cli.write("text.db", &"This is no database. ".repeat(100));
        let line = refused(&cli).await;
        assert!(line.contains(told), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_and_flags_that_are_broken_end_the_worker_with_the_cause() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = refused(&cli_of(&world, "TOKENKEEPER__ADMIN__LISTEN", &address)).await;
    assert!(line.contains(&format!("cannot listen on {address} (admin.listen): another program")), "{line}");

    let cli = cli_of(&world, "TOKENKEEPER__FLAGS__FILE", "flags.json");
    let line = refused(&cli).await;
    assert!(line.contains("there is no flag file flags.json (flags.file); next: create it"), "{line}");
    cli.write("flags.json", "{\"flags\": {,");
    let line = refused(&cli).await;
    assert!(line.contains("the flag file flags.json is wrong at line 1, column"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_folder_that_cannot_be_written_makes_a_worker_not_ready_until_it_can() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("spool");
    std::fs::write(&folder, "a file in its place").unwrap();
    world.set("worker.spool_dir", folder.display());
    let worker = world.launch_worker_process().await;

    let line = not_ready_because(&worker, "cannot be written (worker.spool_dir)").await;
    assert!(line.starts_with("worker: the spool folder") && line.contains("; next: ls -ld"), "{line}");
    assert_eq!(worker.log().matches("worker.spool_dir").count(), 1);
    std::fs::remove_file(&folder).unwrap();

    worker.wait_until_ready().await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_flag_is_a_warning_that_says_what_was_meant() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flags.json");
    let flag = json!({"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"});
    std::fs::write(&file, json!({"flags": {"opportunistic_token_refreshes": flag}}).to_string()).unwrap();
    world.set("flags.file", file.display());
    let worker = world.spawn_worker().await;
    worker.wait_for_log("did you mean `opportunistic_token_refresh`?", 1).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_says_what_kind_of_file_it_was_given_and_skips_a_byte_order_mark() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world);
    let login = json!({"user_id": "u-1", "host": world.scm.host(), "token": {"value": "t"}});
    let documentation = include_str!("../../../docs/operating.md");
    for (event, text) in [
        ("import of an array", json!([login]).to_string()),
        ("import of pretty-printed JSON", serde_json::to_string_pretty(&login).unwrap()),
        ("import of UTF-16", "\u{feff}{}".to_owned()),
    ] {
        let bytes: Vec<u8> = match event {
            "import of UTF-16" => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            _ => text.into_bytes(),
        };
        std::fs::write(cli.folder.path().join("tokens.json"), bytes).unwrap();
        let ended = cli.run(&["token", "import", "tokens.json"]).await.with_code(1);
        let told = ended.stderr.trim_start_matches("error: ").trim_end();
        let row = format!("| {event} | {} |", told.replace('|', "\\|"));
        assert!(documentation.contains(&row), "docs/operating.md lacks the row:\n{row}");
    }
    cli.write("tokens.json", &format!("\u{feff}{login}\n"));
    let ended = cli.run(&["token", "import", "tokens.json"]).await.good();
    assert!(ended.stdout.starts_with("imported 1, "), "{ended:?}");
    assert_eq!(world.entry("u-1").await.generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_by_every_command_and_ends_the_worker() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = cli_of(&world, "DATABASE_URL", "sqlite://disk/t.db");
    cli.write("empty.jsonl", "");
    let script = r#"
        "$TOKENKEEPER" migrate up > /dev/null
        dd if=/dev/zero of=disk/filler bs=4k 2> /dev/null || true
        "$TOKENKEEPER" token import empty.jsonl || echo "exit code $?"
        "$TOKENKEEPER" token list || echo "exit code $?"
        "$TOKENKEEPER" worker || echo "exit code $?"
    "#;
    let ended = cli.run_on_a_small_disk("16m", script).await.with_code(0);
    assert_eq!(ended.stdout, "exit code 1\nexit code 1\nexit code 1\n", "{ended:?}");
    let told =
        "the disk of the database sqlite://disk/t.db is full (database.url); next: make room there: df -h";
    assert_eq!(ended.stderr.matches(told).count(), 3, "{}", ended.stderr);
    assert!(!ended.stderr.contains("os error"), "{}", ended.stderr);
}
