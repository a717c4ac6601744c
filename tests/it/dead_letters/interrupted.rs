//! A replay that ends half way: every message is replayed or still a dead letter, or both; none is lost.
#![allow(clippy::print_stdout, reason = "how far it was is told")]

use std::process::{Output, Stdio};

use tokenkeeper_testkit::proxy::{FaultProxy, Marker, Then};
use tokenkeeper_testkit::wait::within;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::*;
use crate::cli::signal;

const LETTERS: usize = 2_000;
/// A kill has to come between a confirm and its ack, or the other way round, to be worth anything.
const KILLS: usize = 12;

/// At most 500 letters are under way to the command, so it is half way when this one has come to it.
fn middle(then: Then) -> Marker {
    Marker::new(&format!("m-{}", LETTERS / 2), then)
}

/// Starts to replay everything that is left and waits until it is well under way.
async fn half_way(world: &World, cli: &Cli) -> Child {
    let before = world.broker.queue_depth("token-requests").await;
    let mut command = cli.command(&["dead", "replay", "--all"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the replay to be under way", PATIENCE, async || {
        (world.broker.queue_depth("token-requests").await > before + 50).then_some(())
    })
    .await;
    child
}

async fn ended(child: Child) -> Output {
    within("the replay to end", PATIENCE, child.wait_with_output()).await.unwrap()
}

/// Replays the rest, and counts.
async fn nothing_is_lost(world: &World, laid: &BTreeSet<String>, what: &str, interruptions: usize) {
    let before = world.broker.queue_depth("token-requests").await as usize;
    assert!(before < LETTERS, "{what}: it was half way, and not through");
    let cli = Cli::of(world);
    let rest = cli.run(&["dead", "replay", "--all"]).await.good();
    assert_eq!(world.broker.queue_depth("dead-letters").await, 0);
    let replayed = ids_in(world, "token-requests").await;
    let twice = replayed.len() - LETTERS;
    println!("{what}: {before} of {LETTERS} before, then {}; twice: {twice}", rest.stdout.trim());
    assert_eq!(set(replayed), *laid, "{what}");
    assert!(twice <= interruptions, "{what}: at most the one that was in hand");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_killed_loses_no_dead_letter() {
    let world = world().await;
    let cli = Cli::of(&world);
    let laid = lay_many(&world, LETTERS).await;
    let mut kills = 0;
    // On a busy machine more of them are replayed before each kill.
    while kills < KILLS && (world.broker.queue_depth("token-requests").await as usize) < LETTERS / 2 {
        let child = half_way(&world, &cli).await;
        signal(&child, "KILL").await;
        assert_eq!(ended(child).await.status.code(), None, "killed");
        kills += 1;
    }
    nothing_is_lost(&world, &laid, "SIGKILL", kills).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_told_to_stop_loses_no_dead_letter() {
    let world = world().await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let cli = Cli::of(&world).set("AMQP_URL", &proxy.url(world.broker.url()));
    for sent in ["INT", "TERM"] {
        let laid = lay_many(&world, LETTERS).await;
        proxy.watch_for(middle(Then::Freeze));
        let mut marked = proxy.marked();
        let mut child = cli.start(&["dead", "replay", "--all"]);
        within("the middle of the letters", PATIENCE, marked.changed()).await.unwrap();
        signal(&child, sent).await;
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = within("it to say that it stops", PATIENCE, said.next_line()).await.unwrap().unwrap();
        assert!(line.starts_with("Interrupted: finishing what is in hand."), "{line}");
        proxy.thaw();
        let output = ended(child).await;
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        let told = String::from_utf8(output.stdout).unwrap();
        let replayed = world.broker.queue_depth("token-requests").await;
        assert_eq!(told, format!("replayed {replayed}, failed 0\n"));
        let line = said.next_line().await.unwrap().unwrap();
        assert!(line.contains("run the command again for the rest"), "{line}");
        let left = world.broker.queue_depth("dead-letters").await;
        assert_eq!((left + replayed) as usize, LETTERS, "given back when it has ended, and none twice");
        nothing_is_lost(&world, &laid, sent, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_whose_connection_breaks_loses_no_dead_letter() {
    let world = world().await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let cli = Cli::of(&world).set("AMQP_URL", &proxy.url(world.broker.url()));
    for _ in 0..3 {
        let laid = lay_many(&world, LETTERS).await;
        proxy.watch_for(middle(Then::Cut));
        let mut marked = proxy.marked();
        let child = cli.start(&["dead", "replay", "--all"]);
        within("the middle of the letters", PATIENCE, marked.changed()).await.unwrap();
        proxy.cut_all();
        let output = ended(child).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("run the command again for the rest"),
            "{output:?}"
        );
        nothing_is_lost(&world, &laid, "cut", 1).await;
    }
}
