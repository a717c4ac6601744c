//! What all of this is for: a `git clone` that is running is not killed by somebody else's request.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokenkeeper_testkit::queues::WORKSPACE_START;
use tokenkeeper_testkit::scm::{CloneError, HoldPoint, git_clone};
use tokio::process::Command;

use crate::harness::{Dialect, InProcessWorker, Kind, PATIENCE, World, eventually, on_every_database};

const PROJECT: &str = "proj";
const REPOSITORY: &str = "repo";

/// A Bitbucket Server with a repository, a worker, and jdoe's token, valid for two hours.
async fn world_with_repository(kind: Kind) -> (World, InProcessWorker) {
    let world = World::new(kind, Dialect::BitbucketServer).await;
    world.scm.create_repo(PROJECT, REPOSITORY, 200_000).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    (world, worker)
}

/// Clones with this token; while the clone is held at `point`, `meanwhile` happens.
async fn clone_while(
    world: &World,
    token: &str,
    point: HoldPoint,
    destination: &Path,
    meanwhile: impl Future<Output = ()>,
) -> Result<(), CloneError> {
    let gate = world.scm.hold_clones(point);
    let url = world.scm.clone_url_with_token(PROJECT, REPOSITORY, token);
    let clone = git_clone(&url, destination);
    let competition = async {
        gate.wait_for_clone_started().await;
        meanwhile.await;
        gate.release();
    };
    tokio::join!(clone, competition).0
}

async fn assert_whole(clone: &Path) {
    let checked = Command::new("git").args(["fsck", "--full", "--strict"]).current_dir(clone).output().await;
    let checked = checked.expect("run git fsck");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

on_every_database! {
    async fn a_clone_that_is_running_survives_the_requests_of_others(kind: Kind) {
        let (world, worker) = world_with_repository(kind).await;
        for point in [HoldPoint::BetweenRequests, HoldPoint::InPack] {
            let folder = tempfile::tempdir().unwrap();
            let clone = folder.path().join("clone");
            let url = world.scm.clone_url(PROJECT, REPOSITORY);
            let start = json!({"workspace_id": "ws-1", "user_id": "jdoe", "repositories": [url]});
            let started = world.broker.request(WORKSPACE_START, start).await.body;
            assert_eq!(started["status"], "ok", "{started}");
            let token = started["tokens"][0]["token"]["value"].as_str().unwrap().to_owned();
            let refreshes = world.scm.refreshes("jdoe");

            let cloned = clone_while(&world, &token, point, &clone, async {
                for _ in 0..5 {
                    let reply = world.request("jdoe").await;
                    assert_eq!(reply["refresh"], "reserved", "{reply}");
                    assert_eq!(reply["token"]["value"], json!(token));
                }
            })
            .await;

            cloned.unwrap_or_else(|error| panic!("the clone held at {point:?} died: {error}"));
            assert_whole(&clone).await;
            assert_eq!(world.scm.refreshes("jdoe"), refreshes, "nobody refreshed under it");
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn the_same_clone_dies_when_its_token_is_not_reserved_any_more() {
    let (world, worker) = world_with_repository(Kind::Sqlite).await;
    for point in [HoldPoint::BetweenRequests, HoldPoint::InPack] {
        let folder = tempfile::tempdir().unwrap();
        let reply = eventually("the reservation of the round before to be over", PATIENCE, async || {
            let until = world.entry("jdoe").await.state.reserved_until;
            let over = until.is_none_or(|until| until.as_millis() <= world.scm.now_ms());
            if over { Some(world.request_for("jdoe", 1).await) } else { None }
        })
        .await;
        let token = reply["token"]["value"].as_str().unwrap().to_owned();

        let cloned = clone_while(&world, &token, point, &folder.path().join("clone"), async {
            eventually("the reservation to be over", Duration::from_secs(10), async || {
                let until = world.entry("jdoe").await.state.reserved_until.unwrap();
                (until.as_millis() <= world.scm.now_ms()).then_some(())
            })
            .await;
            let competitor = world.request_for("jdoe", 1).await;
            assert_eq!(competitor["refresh"], "opportunistic", "{competitor}");
        })
        .await;

        assert!(cloned.is_err(), "held at {point:?} it outlived its token: these tests prove nothing");
    }
    worker.stop().await;
}
