//! Real git: clones of public and private repositories, submodules, and what a rejected token leads to.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;
use std::path::PathBuf;
use tokenkeeper_testkit::scm::{ScmOptions, SimulatedScm};
use tokio::net::TcpListener;

use super::*;

async fn assert_cloned(git: &Git<'_>, clone: &str) {
    let log = git.run(&["-C", clone, "log", "--format=%s", "--reverse"]).await.good();
    assert_eq!(log.stdout, "Add part 1\nAdd part 2\nAdd part 3\nAdd part 4\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_repository_is_cloned_by_a_plain_git_clone_in_each_way_to_set_the_helper() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    world.scm.create_repo("proj", "repo", 20_000).await;
    let url = world.scm.clone_url("proj", "repo");

    for (number, helper) in
        ["!tokenkeeper credential", "tokenkeeper credential", "tokenkeeper"].into_iter().enumerate()
    {
        let cli = cli_of(&world, "jdoe");
        let git = Git::with_helpers(&cli, &[helper]);
        if number == 1 {
            git.set("[credential]\n\tuseHttpPath = true\n");
        }
        let cloned = git.run(&["clone", "--quiet", &url, "clone"]).await.good().keeps_secrets_of(&world);
        assert_eq!(cloned.stderr, "", "{helper}");
        assert_cloned(&git, "clone").await;
        let config = std::fs::read_to_string(cli.folder.path().join("clone/.git/config")).unwrap();
        assert!(config.contains(&url), "the token stands nowhere in it: {config}");
        // Another user name in the URL is git's business.
        let named = url.replacen("http://", "http://somebody@", 1);
        git.run(&["clone", "--quiet", &named, "named"]).await.good();
    }
    let cli = Cli::of(&world);
    let absolute = format!("{} credential --user jdoe --lifetime 10m", env!("CARGO_BIN_EXE_tokenkeeper"));
    let git = Git::with_helpers(&cli, &[&absolute]);
    git.run(&["clone", "--quiet", &url, "clone"]).await.good();
    worker.stop().await;
}

/// A server of a bare repository that asks nobody for a password: git's "dumb" protocol, which is files.
async fn public_repository(folder: PathBuf) -> String {
    async fn file(State(folder): State<PathBuf>, uri: Uri) -> impl IntoResponse {
        let path = folder.join(uri.path().trim_start_matches('/'));
        std::fs::read(path).map_err(|_| StatusCode::NOT_FOUND)
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(get(file)).with_state(folder);
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/public.git")
}

/// A bare repository with one commit of a tree with these files.
async fn bare_repository(git: &Git<'_>, name: &str, files: &[(&str, &str)]) {
    let folder = git.cli.folder.path().join("made");
    git.run(&["init", "--quiet", "made"]).await.good();
    for (file, content) in files {
        std::fs::write(folder.join(file), content).unwrap();
    }
    let commit =
        ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "--message", "Begin"];
    git.run_in(&folder, &["add", "."], "").await.good();
    git.run_in(&folder, &commit, "").await.good();
    git.run(&["clone", "--quiet", "--bare", "made", name]).await.good();
    git.run(&["-C", name, "update-server-info"]).await.good();
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_repository_is_cloned_without_a_token_and_without_a_broker() {
    let cli = Cli::with([]).set("AMQP_URL", "amqp://127.0.0.1:1/%2f");
    let git = Git::new(&cli);
    bare_repository(&git, "public.git", &[("a", "1")]).await;
    let url = public_repository(cli.folder.path().to_owned()).await;
    let cloned = git.run(&["clone", "--quiet", &url, "clone"]).await.good();
    assert_eq!(cloned.stderr, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submodules_of_two_hosts_are_cloned_each_with_the_token_of_its_host() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let other = SimulatedScm::start(ScmOptions::new(Dialect::GitLab)).await;
    world.apply(&other, |_| {}).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let login = other.token_store_body(&other.authorize("jdoe"));
    assert_eq!(world.broker.request("token.store", login).await.body["status"], "ok");
    world.scm.create_repo("proj", "one", 20_000).await;
    other.create_repo("proj", "two", 20_000).await;
    let cli = cli_of(&world, "jdoe");
    let git = Git::new(&cli);
    let modules = [("one", world.scm.clone_url("proj", "one")), ("two", other.clone_url("proj", "two"))];
    git.run(&["init", "--quiet", "whole"]).await.good();
    let whole = cli.folder.path().join("whole");
    for (name, url) in &modules {
        git.run_in(&whole, &["submodule", "--quiet", "add", url, name], "").await.good();
    }
    let commit =
        ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "--message", "Begin"];
    git.run_in(&whole, &commit, "").await.good();

    let clone = ["clone", "--quiet", "--recurse-submodules", "whole", "clone"];
    git.run(&clone).await.good().keeps_secrets_of(&world);

    assert_cloned(&git, "clone/one").await;
    assert_cloned(&git, "clone/two").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_its_host_rejects_is_reported_and_the_next_clone_has_a_new_one() {
    // Of this kind an old token outlives a refresh by ten minutes, so the reservation of a clone does not keep a reported one.
    let world = World::new(Kind::Sqlite, Dialect::Bitbucket).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    world.scm.create_repo("proj", "repo", 20_000).await;
    let cli = cli_of(&world, "jdoe");
    let git = Git::new(&cli);
    let url = world.scm.clone_url("proj", "repo");
    world.scm.kill(&pair.access_token);

    let rejected = git.run(&["clone", "--quiet", &url, "rejected"]).await.with_code(128);
    assert!(rejected.stderr.contains("Authentication failed"), "{rejected:?}");
    assert_eq!(world.scm.refreshes("jdoe"), 1, "git erased it, which is a report");
    git.run(&["clone", "--quiet", &url, "clone"]).await.good();
    assert_cloned(&git, "clone").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_login_is_needed_git_fails_with_one_clear_line_and_the_next_helper_is_asked() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.scm.create_repo("proj", "repo", 20_000).await;
    let cli = cli_of(&world, "nobody");
    let url = world.scm.clone_url("proj", "repo");

    let failed = Git::new(&cli).run(&["clone", "--quiet", &url, "clone"]).await.with_code(128);
    let line =
        format!("error: tokenkeeper: user nobody must log in at {} (user_not_found: ", world.scm.host());
    assert_eq!(failed.stderr.lines().filter(|told| told.starts_with(&line)).count(), 1, "{failed:?}");

    // As a person's own helper that has a password.
    let pair = world.scm.authorize("jdoe");
    let other = format!("!echo username=x; echo password={}; true", pair.access_token);
    let git = Git::with_helpers(&cli, &["!tokenkeeper credential", &other]);
    git.run(&["clone", "--quiet", &url, "clone"]).await.good();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_keeps_passwords_does_not_keep_tokens_for_longer_than_they_are_reserved() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    world.scm.create_repo("proj", "repo", 20_000).await;
    let cli = cli_of(&world, "jdoe");
    // It writes down what it is to store.
    let keeper = "!f() { test $1 = store && cat >> $HOME/kept; }; f";
    let git = Git::with_helpers(&cli, &[keeper, "!tokenkeeper credential"]);

    git.run(&["clone", "--quiet", &world.scm.clone_url("proj", "repo"), "clone"]).await.good();

    let kept = std::fs::read_to_string(cli.folder.path().join("kept")).unwrap();
    let reserved = world.entry("jdoe").await.state.reserved_until.unwrap().as_millis() / 1000;
    assert!(kept.contains(&format!("password_expiry_utc={reserved}\n")), "{kept}");
    assert!(kept.contains("ephemeral=1\n"), "it may know that this is for now alone: {kept}");
    assert!(kept.contains(&format!("password={}\n", pair.access_token)), "{kept}");
    worker.stop().await;
}
