use std::path::Path;

use tempfile::TempDir;

use super::*;

const SIZE_BYTES: usize = 3 * 1024 * 1024;

async fn scm_with_repository(options: ScmOptions) -> SimulatedScm {
    let scm = SimulatedScm::start(options).await;
    scm.create_repo("proj", "repo", SIZE_BYTES).await;
    scm
}

async fn clone(scm: &SimulatedScm, access_token: &str) -> (TempDir, Result<(), CloneError>) {
    let folder = tempfile::tempdir().expect("a folder");
    let url = scm.clone_url_with_token("proj", "repo", access_token);
    let cloned = git_clone(&url, &folder.path().join("clone")).await;
    (folder, cloned)
}

fn size_of(clone: &Path) -> u64 {
    let files = std::fs::read_dir(clone).expect("a clone");
    files
        .map(|file| file.expect("a file").metadata().expect("its size"))
        .filter(std::fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}

#[tokio::test]
async fn a_clone_works_with_a_living_token_and_fails_with_a_dead_one() {
    for dialect in [Dialect::BitbucketServer, Dialect::Bitbucket] {
        let scm = scm_with_repository(ScmOptions::new(dialect)).await;
        let pair = scm.authorize("alice");
        let (folder, cloned) = clone(&scm, &pair.access_token).await;
        cloned.expect("a clone with a living token");
        assert_eq!(size_of(&folder.path().join("clone")), SIZE_BYTES as u64);

        scm.revoke("alice");
        let (_folder, cloned) = clone(&scm, &pair.access_token).await;
        let error = cloned.expect_err("a clone with a dead token");
        assert!(error.stderr.contains("Authentication failed"), "{error}");
    }
}

#[tokio::test]
async fn a_clone_of_what_is_not_there_fails_for_that_reason() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let pair = scm.authorize("alice");
    let (_folder, cloned) = clone(&scm, &pair.access_token).await;
    let error = cloned.expect_err("there is no repository");
    assert!(error.stderr.contains("not found"), "{error}");
}

#[tokio::test]
async fn a_refresh_between_the_requests_of_a_clone_breaks_it_where_it_kills_the_old_token() {
    assert_breaks_at(HoldPoint::BetweenRequests, "401").await;
}

#[tokio::test]
async fn a_refresh_in_the_middle_of_the_pack_breaks_the_clone_where_it_kills_the_old_token() {
    assert_breaks_at(HoldPoint::InPack, "early EOF").await;
}

async fn assert_breaks_at(point: HoldPoint, complaint: &str) {
    for dialect in [Dialect::BitbucketServer, Dialect::Bitbucket] {
        let scm = scm_with_repository(ScmOptions::new(dialect)).await;
        let pair = scm.authorize("alice");
        let gate = scm.hold_clones(point);
        let refreshing = async {
            gate.wait_for_clone_started().await;
            refresh_well(&scm, &pair).await;
            gate.release();
        };
        let ((_folder, cloned), ()) = tokio::join!(clone(&scm, &pair.access_token), refreshing);
        match (dialect.kills_old_token(), cloned) {
            (true, Err(error)) => assert!(error.stderr.contains(complaint), "{error}"),
            (true, Ok(())) => panic!("the clone survived the death of its token"),
            (false, cloned) => cloned.expect("the token lives on, and so does the clone"),
        }
    }
}

#[tokio::test]
async fn a_held_clone_goes_on_when_it_is_released() {
    let scm = scm_with_repository(ScmOptions::new(Dialect::BitbucketServer)).await;
    let pair = scm.authorize("alice");
    for point in [HoldPoint::BetweenRequests, HoldPoint::InPack] {
        let gate = scm.hold_clones(point);
        let releasing = async {
            gate.wait_for_clone_started().await;
            gate.release();
        };
        let ((_folder, cloned), ()) = tokio::join!(clone(&scm, &pair.access_token), releasing);
        cloned.expect("a clone");
    }
}

#[tokio::test]
async fn a_throttled_clone_takes_its_time_and_dies_with_its_token() {
    let pace = Pace { chunk_bytes: 64 * 1024, pause: Duration::from_millis(40) };
    let scm = scm_with_repository(ScmOptions { pace, ..ScmOptions::new(Dialect::BitbucketServer) }).await;
    let pair = scm.authorize("alice");
    let pauses = u32::try_from(SIZE_BYTES / pace.chunk_bytes - 1).expect("a small number");
    let started = tokio::time::Instant::now();
    let (_folder, cloned) = clone(&scm, &pair.access_token).await;
    cloned.expect("a slow clone");
    assert!(started.elapsed() >= pace.pause * pauses);

    let gate = scm.hold_clones(HoldPoint::InPack);
    let refreshing = async {
        gate.wait_for_clone_started().await;
        gate.release();
        refresh_well(&scm, &pair).await;
    };
    let ((_folder, cloned), ()) = tokio::join!(clone(&scm, &pair.access_token), refreshing);
    cloned.expect_err("the token died while the pack was under way");
}
