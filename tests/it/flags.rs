//! Feature flags, as a running worker follows them.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::logs::captured;
use crate::harness::{Dialect, InProcessWorker, Kind, PATIENCE, World, eventually};

/// `opportunistic_token_refresh` on, but not for these users.
fn off_for(users: &[&str]) -> String {
    json!({"flags": {"opportunistic_token_refresh": {
        "state": "ENABLED",
        "variants": {"on": true, "off": false},
        "defaultVariant": "on",
        "targeting": {"if": [{"in": [{"var": "targetingKey"}, users]}, "off"]},
    }}})
    .to_string()
}

/// A flag file, and a worker that follows it. The users alice and bob have tokens at a Bitbucket Server.
struct Following {
    world: World,
    worker: InProcessWorker,
    file: PathBuf,
    _folder: TempDir,
}

impl Following {
    async fn start(flags: &str) -> Self {
        let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flags.json");
        std::fs::write(&file, flags).unwrap();
        world.set("flags.file", file.display());
        let worker = world.start_worker().await;
        for user in ["alice", "bob"] {
            world.user_with_token(user).await;
        }
        Self { world, worker, file, _folder: folder }
    }

    /// What a request of this user did.
    async fn refresh_of(&self, user: &str) -> Value {
        let reply = self.world.request(user).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        reply["refresh"].clone()
    }

    async fn until_refresh_of(&self, user: &str, refresh: &str) {
        let what = format!("a request of {user} to be answered with {refresh}");
        eventually(&what, PATIENCE, async || (self.refresh_of(user).await == refresh).then_some(())).await;
    }

    /// The line that the worker logs about the file and that says this.
    async fn told(&self, text: &str) -> Value {
        let what = format!("the log to say {text:?} of the flag file");
        let file = self.file.to_string_lossy();
        eventually(&what, PATIENCE, async || {
            let log = captured();
            let line = log.lines().find(|line| line.contains(&*file) && line.contains(text))?;
            Some(serde_json::from_str(line).expect("a line of JSON"))
        })
        .await
    }
}

#[tokio::test]
async fn opportunistic_refresh_is_switched_off_for_one_user_and_follows_the_file() {
    let following = Following::start(&off_for(&["alice"])).await;
    assert_eq!(following.refresh_of("alice").await, "none");
    assert_eq!(following.refresh_of("alice").await, "none", "held or not");
    assert_eq!(following.refresh_of("bob").await, "opportunistic");
    assert_eq!(following.refresh_of("bob").await, "reserved");
    assert_eq!((following.world.scm.refreshes("alice"), following.world.scm.refreshes("bob")), (0, 1));

    std::fs::write(&following.file, off_for(&["bob"])).unwrap();

    // Alice's token is held, so with the flag on an opportunistic refresh is due and not done.
    following.until_refresh_of("alice", "reserved").await;
    assert_eq!(following.refresh_of("bob").await, "none");
    following.worker.stop().await;
}

#[tokio::test]
async fn a_broken_file_is_told_with_its_place_and_the_last_good_flags_stay_until_it_is_mended() {
    let following = Following::start(&off_for(&["alice"])).await;
    assert_eq!(following.refresh_of("alice").await, "none");

    let broken = off_for(&["bob"]).replace("\"on\":true", "\"on\":\"yes\"");
    std::fs::write(&following.file, broken).unwrap();

    let line = following.told("not usable").await;
    assert_eq!(line["level"], "ERROR");
    let error = line["error"].as_str().expect("the error");
    assert!(error.contains("flags.opportunistic_token_refresh.variants.on"), "{error}");
    assert_eq!(following.refresh_of("alice").await, "none");
    assert_eq!(following.refresh_of("bob").await, "opportunistic");
    following.worker.stop().await;
}

#[tokio::test]
async fn a_file_that_is_no_json_is_told_by_line_and_column_and_mending_it_takes_effect() {
    let following = Following::start(&off_for(&["alice"])).await;
    std::fs::write(&following.file, "{\n  \"flags\": [}").unwrap();
    let line = following.told("not usable").await;
    let error = line["error"].as_str().expect("the error");
    assert!(error.contains("line 2, column"), "{error}");
    assert_eq!(following.refresh_of("alice").await, "none");

    std::fs::write(&following.file, off_for(&["bob"])).unwrap();

    following.until_refresh_of("alice", "reserved").await;
    following.worker.stop().await;
}

#[tokio::test]
async fn a_file_that_is_taken_away_is_told_and_its_flags_stay() {
    let following = Following::start(&off_for(&["alice"])).await;
    std::fs::remove_file(&following.file).unwrap();
    following.told("is missing").await;
    assert_eq!(following.refresh_of("alice").await, "none");
    assert_eq!(following.refresh_of("bob").await, "opportunistic");
    following.worker.stop().await;
}

#[tokio::test]
async fn a_worker_does_not_start_on_broken_flags() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flags.json");
    std::fs::write(&file, "{\"flags\": [}").unwrap();
    world.set("flags.file", file.display());
    let refused = world.try_start_worker().await.expect_err("it must not start");
    let reason = format!("{refused:#}");
    assert!(reason.contains("flags.json") && reason.contains("line 1"), "{reason}");
}
