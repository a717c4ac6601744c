//! What all of this is for: a `git clone` that is running is not killed by somebody else's request.

use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::json;
use tokenkeeper_testkit::queues::WORKSPACE_START;
use tokenkeeper_testkit::scm::{CloneError, HoldPoint, Pace, git_clone};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::harness::{
    Dialect, InProcessWorker, Kind, PATIENCE, ScmOptions, World, eventually, on_every_database,
};

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
    git(clone, &["fsck", "--full", "--strict"]).await;
    let commits = git(clone, &["log", "--format=%s", "--reverse"]).await;
    assert_eq!(commits, "Add part 1\nAdd part 2\nAdd part 3\nAdd part 4\n");
    assert_eq!(git(clone, &["status", "--porcelain"]).await, "", "every file is as it was committed");
}

/// Runs a git command that has to work, and gives back what it says.
async fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    // Without the settings of the person who runs the test.
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    let output = command.args(arguments).current_dir(folder).output().await.expect("run git");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
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
async fn a_slow_clone_survives_requests_that_come_all_the_time() {
    let pace = Pace { chunk_bytes: 16 * 1024, pause: Duration::from_millis(20) };
    let options = ScmOptions { pace, ..ScmOptions::new(Dialect::BitbucketServer) };
    let world = World::with_scm(Kind::Sqlite, options).await;
    world.scm.create_repo(PROJECT, REPOSITORY, 1_000_000).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let granted = world.request("jdoe").await;
    assert_eq!(granted["refresh"], "opportunistic", "{granted}");
    let folder = tempfile::tempdir().unwrap();
    let clone = folder.path().join("clone");
    let token = granted["token"]["value"].as_str().unwrap();
    let url = world.scm.clone_url_with_token(PROJECT, REPOSITORY, token);
    let mut competitors = 0;

    let competition = async {
        loop {
            let reply = world.request("jdoe").await;
            assert_eq!((&reply["refresh"], &reply["token"]["value"]), (&json!("reserved"), &json!(token)));
            competitors += 1;
        }
    };
    let cloned = tokio::select! {
        cloned = git_clone(&url, &clone) => cloned,
        () = competition => unreachable!("it goes on for as long as the clone does"),
    };

    cloned.unwrap_or_else(|error| panic!("the clone died: {error}"));
    assert_whole(&clone).await;
    assert!(competitors >= 10, "{competitors} requests came while the clone was running");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_names_another_host_does_not_take_the_clone_there() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.scm.create_repo(PROJECT, REPOSITORY, 200_000).await;
    let worker = world.start_worker().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let value = format!("x@{}/", elsewhere.local_addr().unwrap());
    world.store_pair(&world.scm.authorize_with("jdoe", &value)).await;
    let reply = world.request("jdoe").await;
    let token = &reply["token"];
    assert_eq!(token["value"], value, "{reply}");
    let folder = tempfile::tempdir().unwrap();

    let url = world.scm.clone_url_with_userinfo(PROJECT, REPOSITORY, token["userinfo"].as_str().unwrap());
    let clone = folder.path().join("clone");
    git_clone(&url, &clone).await.unwrap_or_else(|error| panic!("{error}"));
    assert_whole(&clone).await;
    assert!(elsewhere.accept().now_or_never().is_none(), "nobody was there");

    // And as it is it does: else this proves nothing.
    let url = world.scm.clone_url_with_token(PROJECT, REPOSITORY, &value);
    let elsewhere_too = folder.path().join("elsewhere");
    tokio::select! {
        cloned = git_clone(&url, &elsewhere_too) => panic!("it did not go elsewhere: {cloned:?}"),
        accepted = elsewhere.accept() => drop(accepted.unwrap()),
    }
    worker.stop().await;
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

        let cloned = clone_while(
            &world,
            &token,
            point,
            &folder.path().join("clone"),
            Box::pin(async {
                eventually("the reservation to be over", Duration::from_secs(10), async || {
                    let until = world.entry("jdoe").await.state.reserved_until.unwrap();
                    (until.as_millis() <= world.scm.now_ms()).then_some(())
                })
                .await;
                let competitor = world.request_for("jdoe", 1).await;
                assert_eq!(competitor["refresh"], "opportunistic", "{competitor}");
            }),
        )
        .await;

        assert!(cloned.is_err(), "held at {point:?} it outlived its token: these tests prove nothing");
    }
    worker.stop().await;
}
