//! Messages that are answered late, or never, and those beside them.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokenkeeper_testkit::queues::{BasicProperties, PendingReply, TOKEN_REQUEST};

use super::*;

#[tokio::test]
async fn others_are_answered_while_one_is_slow() {
    let broker = TestBroker::connect().await;
    let _fake = Fake::start(&broker, &[]).await;
    let began = Instant::now();
    let slow = broker
        .send(TOKEN_REQUEST, request("slow-2s.error-internal").to_string(), BasicProperties::default())
        .await;
    let slow = async {
        let reply = slow.reply().await.body;
        (reply, began.elapsed())
    };
    let others = async {
        for number in 0..50 {
            let reply = broker.request(TOKEN_REQUEST, request(&format!("u-{number}"))).await.body;
            assert_eq!(reply["status"], "ok", "{reply}");
        }
        began.elapsed()
    };
    let ((reply, slow), others) = tokio::join!(slow, others);
    assert_eq!(reply["error"]["code"], "internal");
    assert!(slow >= Duration::from_secs(2), "{slow:?}");
    assert!(others < slow, "{others:?} and {slow:?}");
}

#[tokio::test]
async fn a_request_whose_time_ends_first_is_told_so() {
    let broker = TestBroker::connect().await;
    let _fake = Fake::start(&broker, &[]).await;
    let began = Instant::now();
    let expiring = BasicProperties::default().with_expiration("700".into());
    let reply =
        broker.send(TOKEN_REQUEST, request("slow-10m").to_string(), expiring).await.reply().await.body;
    assert_eq!(reply["error"]["code"], "deadline_exceeded");
    assert!(began.elapsed() >= Duration::from_millis(700));
}

#[tokio::test]
async fn a_silent_one_is_never_answered_and_does_not_come_again() {
    let broker = TestBroker::connect().await;
    let mut fake = Fake::start(&broker, &[]).await;
    let silent = broker.send(TOKEN_REQUEST, request("silent").to_string(), BasicProperties::default()).await;
    let after = broker.request(TOKEN_REQUEST, request("u-1")).await.body;
    assert_eq!(after["status"], "ok");
    assert_eq!(fake.end("TERM").await, Some(0));
    // What was not acked would be back.
    assert_eq!(broker.queue_depth("token-requests").await, 0);
    let replies = broker.replies_seen();
    let to_silent = |reply: &&tokenkeeper_testkit::queues::Reply| {
        reply.properties.correlation_id().as_ref().is_some_and(|id| id.as_str() == silent.correlation_id())
    };
    assert_eq!(replies.iter().filter(to_silent).count(), 0);
}

#[tokio::test]
async fn a_thousand_requests_in_flight_are_each_answered_once() {
    let broker = TestBroker::connect().await;
    let _fake = Fake::start(&broker, &[]).await;
    let pending = join_all((0..1_000).map(async |number| {
        let user = format!("slow-200ms.u-{number}");
        broker.send(TOKEN_REQUEST, request(&user).to_string(), BasicProperties::default()).await
    }))
    .await;
    let replies = join_all(pending.into_iter().map(PendingReply::reply)).await;
    for (number, reply) in replies.iter().enumerate() {
        assert_eq!(reply.body["user_id"], format!("slow-200ms.u-{number}"));
        assert_eq!(reply.body["status"], "ok");
    }
    assert!(broker.stray_replies().is_empty());
}

#[tokio::test]
async fn it_has_no_more_in_hand_than_its_prefetch_and_gives_all_of_it_back_when_it_ends() {
    let broker = TestBroker::connect().await;
    let mut fake =
        Fake::start_with(&broker, &[], &[("TOKENKEEPER__WORKER__PREFETCH_TOKEN_REQUESTS", "50")]).await;
    join_all((0..200).map(async |number| {
        let body = request(&format!("slow-10m.u-{number}")).to_string();
        let forever = BasicProperties::default().with_reply_to(broker.reply_queue().into());
        broker.publish(TOKEN_REQUEST, body, forever.with_expiration("600000".into())).await;
    }))
    .await;
    let waiting = async |count| {
        eventually(&format!("{count} messages to wait in the queue"), PATIENCE, async || {
            (broker.queue_depth("token-requests").await == count).then_some(())
        })
        .await;
    };
    waiting(150).await;
    assert_eq!(fake.end("INT").await, Some(0));
    waiting(200).await;
}
