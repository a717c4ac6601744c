//! Events as a stream.

use futures_util::FutureExt;
use tokenkeeper_client::{Event, EventKind, Events, RefreshCause};
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::wait::{PATIENCE, eventually, within};

use super::*;

async fn next(events: &mut Events) -> Result<Event, Error> {
    within("an event", PATIENCE, events.next()).await.expect("the stream goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_heard_from_the_first_one_and_again_after_the_connection_was_away() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let client = Client::connect(options_at(&world, &proxy.url(world.broker.url()))).await.unwrap();
    let mut events = client.events("token.*").await.unwrap();
    for user in ["alice", "bob", "carol"] {
        world.user_with_expired_token(user).await;
    }

    assert!(client.token("alice", world.scm.host()).send().await.is_ok());
    let event = next(&mut events).await.unwrap();
    assert_eq!((event.kind, event.cause), (EventKind::TokenRefreshed, Some(RefreshCause::Required)));
    assert_eq!((event.user_id.as_deref(), event.host), (Some("alice"), world.scm.host()));
    assert!(event.message_id.is_some() && event.generation == Some(2) && event.expires_at.is_some());

    // What is no event does not end the stream.
    let channel = world.broker.channel().await;
    let (exchange, key) = (world.broker.name("events"), ShortString::from("token.refreshed"));
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    drop(channel.basic_publish(exchange.into(), key, options, b"{", properties).await.unwrap().await);
    // One that comes twice is told once, also over the next connection.
    let send_twice = async |event: &str| {
        let body = json!({"event": event, "host": "h", "at": "2020-01-01T00:00:00.000Z"}).to_string();
        for id in ["one", "one", event] {
            let properties = BasicProperties::default().with_message_id(id.into());
            let (exchange, key) = (world.broker.name("events"), ShortString::from("token.refreshed"));
            let publish = channel.basic_publish(exchange.into(), key, options, body.as_bytes(), properties);
            drop(publish.await.unwrap().await);
        }
    };
    send_twice("token.first").await;
    for (id, name) in [("one", "token.first"), ("token.first", "token.first")] {
        let event = next(&mut events).await.unwrap();
        assert_eq!((event.message_id.as_deref(), event.kind.as_str()), (Some(id), name));
    }
    proxy.cut_all();
    let missed = next(&mut events).await.unwrap_err();
    assert!(matches!(missed, Error::EventsMissed), "{missed:?}");
    send_twice("token.second").await;
    let event = next(&mut events).await.unwrap();
    assert_eq!((event.message_id.as_deref(), event.kind.as_str()), (Some("token.second"), "token.second"));
    world.scm.revoke("bob");
    assert!(client.token("bob", world.scm.host()).send().await.is_err());
    let event = next(&mut events).await.unwrap();
    assert_eq!((event.kind, event.user_id.as_deref()), (EventKind::ReauthorizationRequired, Some("bob")));
    assert_eq!(event.reason.as_deref(), Some("refresh_token_refused"));

    client.close().await;
    assert!(within("the end of the stream", PATIENCE, events.next()).await.is_none());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_the_last_clone_of_its_client_and_so_does_the_connection() {
    let world = world_without_a_worker().await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let client = Client::connect(options_at(&world, &proxy.url(world.broker.url()))).await.unwrap();
    let mut events = client.events("#").await.unwrap();
    let clone = client.clone();
    drop(client);
    assert!(events.next().now_or_never().is_none(), "the clone holds it");
    drop(clone);
    assert!(within("the end of the stream", PATIENCE, events.next()).await.is_none());
    drop(events);
    eventually("no connection", PATIENCE, async || (proxy.connections() == 0).then_some(())).await;
}
