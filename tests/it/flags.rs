//! Feature flags, as a running worker follows them.

use serde_json::{Value, json};

use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// `opportunistic_token_refresh` on, but not for these users.
fn off_for(users: &[&str]) -> Value {
    json!({"flags": {"opportunistic_token_refresh": {
        "state": "ENABLED",
        "variants": {"on": true, "off": false},
        "defaultVariant": "on",
        "targeting": {"if": [{"in": [{"var": "targetingKey"}, users]}, "off"]},
    }}})
}

#[tokio::test]
async fn opportunistic_refresh_is_switched_off_for_one_user_and_follows_the_file() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flags.json");
    std::fs::write(&file, off_for(&["alice"]).to_string()).unwrap();
    world.set("flags.file", file.display());
    let worker = world.start_worker().await;
    for user in ["alice", "bob"] {
        world.user_with_token(user).await;
    }

    assert_eq!(world.request("alice").await["refresh"], "none");
    assert_eq!(world.request("bob").await["refresh"], "opportunistic");

    std::fs::write(&file, "{ this is broken").unwrap();
    eventually("the broken file to be told", PATIENCE, async || {
        crate::harness::logs::captured().contains(&*file.to_string_lossy()).then_some(())
    })
    .await;
    assert_eq!(world.request("alice").await["refresh"], "none", "the last good flags stay in force");

    std::fs::write(&file, off_for(&["bob"]).to_string()).unwrap();
    eventually("the mended file to be in force", PATIENCE, async || {
        // A reservation of alice's is alive, so with the flag on an opportunistic refresh is due but not done.
        (world.request("alice").await["refresh"] == "reserved").then_some(())
    })
    .await;
    worker.stop().await;
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
