//! `audit.chain`, and `tokenkeeper audit verify` over what real workers wrote.

use std::fs;

use super::{ask, audited_world, lines};
use crate::cli::{Cli, Ended};
use crate::harness::logs::assert_holds_none_of;
use crate::harness::{PATIENCE, WorkerProcess, World, eventually};
use tokenkeeper::domain::secret::{ExposeSecret, KeyRing};

const SEQUENCE: &str = "tokenkeeper_audit_chain_sequence";

async fn refused(world: &World, worker: &WorkerProcess, last: usize) {
    ask(world, "nobody").await;
    eventually("the line of a refusal", PATIENCE, async || {
        (worker.count(SEQUENCE).await == last).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chain_goes_on_behind_a_worker_that_was_killed_and_whoever_changes_a_line_is_found() {
    let (mut world, _folder, file) = audited_world().await;
    world.set("audit.chain", true);
    let path = file.to_str().unwrap();
    let cli = Cli::of(&world);
    let verify = async || -> Ended { cli.run(&["audit", "verify", path]).await.keeps_secrets_of(&world) };

    let first = world.spawn_worker().await;
    refused(&world, &first, 2).await;
    refused(&world, &first, 3).await;
    cli.run(&["worker"]).await.with_code(1).says("another process writes it");
    first.signal("KILL").await;
    first.wait(&world).await;
    assert_eq!(verify().await.good().stdout, "unbroken: sequence numbers 1 to 3\n");
    // As if it had been killed in the middle of a line.
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() - 20]).unwrap();
    verify().await.good().says("line 3: unfinished");

    let second = world.spawn_worker().await;
    second.wait_for_log("the chain of the audit log goes on", 1).await;
    refused(&world, &second, 4).await;
    second.stop(&world).await;
    let ended = verify().await.good().says("line 3: unfinished");
    assert_eq!(ended.stdout, "unbroken: sequence numbers 1 to 4\n");
    let text = fs::read_to_string(&file).unwrap();
    assert_holds_none_of(&text, &world.secrets(), "the audit log");
    let of_input = cli.run_with_input(&["audit", "verify", "-"], &text).await.good();
    assert_eq!(of_input.stdout, ended.stdout);

    fs::write(&file, text.replacen("user_not_found", "unknown_host", 1)).unwrap();
    let told = verify().await.with_code(1).stdout;
    assert!(told.starts_with(&format!("{path}, line 2: broken: ")) && told.contains("was changed"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_looked_at_is_no_broken_chain() {
    let (mut world, folder, file) = audited_world().await;
    world.set("audit.chain", true);
    let worker = world.spawn_worker().await;
    refused(&world, &worker, 2).await;
    worker.stop(&world).await;
    assert_eq!(lines(&file).len(), 2);
    let verify = ["audit", "verify", file.to_str().unwrap()];
    let other = KeyRing::generate("other");
    let cli = Cli::of(&world).set("TOKENKEEPER_KEYS", other.expose_secret());
    cli.run(&verify).await.with_code(2).says("the key `test` is not among the encryption keys");
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let cli = Cli::of(&world);
    cli.run(&["audit", "verify", empty.to_str().unwrap()]).await.with_code(2).says("there is no line");
    cli.run(&["audit", "verify", "/no/such/file"]).await.with_code(2).says("/no/such/file");
    let endless = "x".repeat(200_000);
    let ended = cli.run_with_input(&["audit", "verify", "-"], &endless).await.with_code(1);
    assert!(ended.stdout.contains("longer than any line"), "{}", ended.stdout);
}
