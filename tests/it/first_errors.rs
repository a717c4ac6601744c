//! What an operator meets first when something is wrong: one line that says what, where, why, and the next command. A server is
//! waited for, whatever is wrong there; a file is not.

mod broker;
mod database;
mod files;
mod read_only;
mod rights;

use tokenkeeper_testkit::database::TestDatabase;

use crate::harness::{PATIENCE, WorkerProcess, World, eventually};

/// Waits until `/readyz` says this, and gives back the whole line.
async fn not_ready_because(worker: &WorkerProcess, text: &str) -> String {
    let what = format!("/readyz to say {text:?}");
    eventually(&what, PATIENCE, async || {
        let (status, body) = worker.get("readyz").await;
        let line = body.lines().find(|line| status == 503 && line.contains(text));
        line.map(str::to_owned)
    })
    .await
}

/// The command behind `next:`.
fn next(line: &str) -> &str {
    line.split_once("; next: ").expect("a problem says what to do next").1
}

/// It told of the database once, and no library beside it.
fn assert_told_once(worker: &WorkerProcess) {
    let log = worker.log();
    let alarming = |line: &&str| line.contains(r#""level":"ERROR""#) || line.contains(r#""level":"WARN""#);
    let lines: Vec<&str> = log.lines().filter(alarming).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("waiting for the database"), "{}", lines[0]);
    for inner in ["os error", "error returned from database", "SSLRequest", "pool timed out"] {
        assert!(!log.contains(inner), "{inner:?} are a library's words:\n{log}");
    }
}

/// A worker at another database than its world's, which need not be usable.
async fn launch_at(world: &mut World, url: &str) -> WorkerProcess {
    world.set("database.url", url).set("database.acquire_timeout_secs", 2);
    world.launch_worker_process().await
}

/// The URL of a database with another user.
fn as_user(database: &TestDatabase, user: &str, password: &str) -> String {
    let mut url = url::Url::parse(database.url()).expect("the URL of a database");
    url.set_username(user).expect("a URL that takes a user");
    url.set_password(Some(password)).expect("a URL that takes a password");
    url.into()
}
