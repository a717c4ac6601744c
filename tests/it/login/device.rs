//! By a code that a person types on another device.

use super::{Running, world_with_redirect};
use crate::cli::Cli;
use crate::harness::{Dialect, World};

async fn world(dialect: Dialect) -> World {
    world_with_redirect(dialect).await.0
}

fn start(cli: &Cli, host: &str) -> Running {
    Running::start(cli, &["login", host, "--user", "u-1", "--device"])
}

async fn code(login: &mut Running) -> String {
    login.line_with("  code  ").await.trim().trim_start_matches("code").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_logs_in_on_another_device() {
    for dialect in [Dialect::GitHub, Dialect::GitLab] {
        let mut world = world(dialect).await;
        world.set("access.require_sealed_stores", true);
        let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), world.scm.host());
        let mut login = start(&cli, &host);
        let code = code(&mut login).await;
        login.line_with("Waiting until").await;
        assert!(!login.printed.contains("redirect URI"), "{}", login.printed);
        assert!(world.scm.type_code(&code, Some("jdoe")));
        let ended = login.ended().await.good().keeps_secrets_of(&world);
        assert!(ended.stdout.contains("Stored: u-1 is logged in at"), "{ended:?}");
        let reply = world.request("u-1").await;
        assert_eq!(reply["token"]["value"], world.scm.latest_pair("jdoe").unwrap().access_token);
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_asked_too_often_is_asked_less_often() {
    let world = world(Dialect::GitHub).await;
    let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), world.scm.host());
    world.scm.slow_down(1);
    let mut login = start(&cli, &host);
    let code = code(&mut login).await;
    assert!(world.scm.type_code(&code, Some("jdoe")));
    login.ended().await.good();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_login_that_comes_to_nothing_says_why() {
    let world = world(Dialect::GitHub).await;
    let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), world.scm.host());
    let mut denied = start(&cli, &host);
    let code = code(&mut denied).await;
    assert!(world.scm.type_code(&code, None));
    denied
        .ended()
        .await
        .with_code(1)
        .says("access_denied \"The user denied the request.\"; next: log in again");

    let late = ["login", &host, "--user", "u-1", "--device", "--timeout", "300ms"];
    cli.run(&late).await.with_code(1).says("nobody authorised within 300ms");

    world.apply_provider(|record| record.client_secret = "wrong".into()).await;
    let ended = cli.run(&["login", &host, "--user", "u-1", "--device"]).await.with_code(1);
    ended.says("incorrect_client_credentials").says("check the provider's client_id, client_secret");
    assert_eq!(world.request("u-1").await["error"]["code"], "user_not_found");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_without_a_device_flow_says_so() {
    let world = world(Dialect::Bitbucket).await;
    let (cli, host) = (Cli::of(&world), world.scm.host());
    let ended = cli.run(&["login", &host, "--user", "u-1", "--device"]).await.with_code(1);
    ended.says("kind bitbucket has no device flow").says("next: log in without --device");
}
