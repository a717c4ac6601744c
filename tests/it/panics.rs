//! Bugs in the worker itself: the message, the refresh or the start that meets one harms nobody else.

use std::net::TcpListener;

use serde_json::Value;
use tokenkeeper_testkit::proxy::FaultProxy;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::harness::reply::token;
use crate::harness::{Dialect, Fault, Kind, PATIENCE, World, eventually};

/// A bug: it panics where a span or an event of this thread carries a text. The worker must run on the test's thread.
struct Bug {
    text: &'static str,
}

impl Bug {
    fn with(text: &'static str) -> DefaultGuard {
        tracing::subscriber::set_default(Registry::default().with(Self { text }))
    }
}

impl<S: Subscriber> Layer<S> for Bug {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        attributes.record(&mut Bite(self.text));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut Bite(self.text));
    }
}

struct Bite(&'static str);

impl Visit for Bite {
    fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
        assert!(format!("{value:?}") != self.0, "a bug that is met by {}", self.0);
    }

    fn record_str(&mut self, _: &Field, value: &str) {
        assert!(value != self.0, "a bug that is met by {}", self.0);
    }
}

#[tokio::test]
async fn a_message_whose_handling_panics_becomes_a_dead_letter_and_the_others_are_answered() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let _bug = Bug::with("mallory");
    let worker = world.start_worker().await;
    let pair = world.user_with_token("alice").await;

    let before = world.send_many("alice", 20).await;
    let _bitten = world.send("mallory").await;
    let behind = world.send_many("alice", 20).await;

    for request in before.into_iter().chain(behind) {
        assert_eq!(token(&request.reply().await.body)["value"], pair.access_token.as_str());
    }
    let letters = world.broker.wait_for_dead_letters(1).await;
    let body: Value = serde_json::from_slice(&letters[0].body).unwrap();
    assert_eq!((letters.len(), &body["user_id"]), (1, &Value::from("mallory")));
    worker.stop().await;
}

#[tokio::test]
async fn the_requesters_of_a_refresh_that_panics_are_told_and_do_not_start_the_next_one() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    let pair = world.user_with_token("alice").await;
    world.scm.fail_always_for("jdoe", Fault::Status(500));
    let bug = Bug::with("refresh failed; it will be retried");

    let requests = world.send_many("jdoe", 5).await;
    let bystander = world.send("alice").await;

    for request in requests {
        let reply = request.reply().await.body;
        assert_eq!(reply["error"]["code"], "internal", "{reply}");
        assert_eq!(reply["error"]["retryable"], true, "{reply}");
    }
    assert_eq!(token(&bystander.reply().await.body)["value"], pair.access_token.as_str());
    assert_eq!(world.scm.refresh_requests("jdoe"), 1, "the bug was met once, not once a requester");
    drop(bug);
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_that_does_not_start_leaves_nothing_running() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = proxy.url(world.broker.url());
    world.set_broker_url(url).set("admin.listen", taken.local_addr().unwrap());

    let error = world.try_start_worker().await.expect_err("the port is taken").to_string();

    assert!(error.contains("admin.listen"), "{error}");
    eventually("its connections to be closed", PATIENCE, async || (proxy.connections() == 0).then_some(()))
        .await;
}
