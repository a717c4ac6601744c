use lapin::{
    ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicRejectOptions, ExchangeDeclareOptions, QueueBindOptions,
    },
    types::AMQPValue,
};
use serde_json::json;

use super::*;

/// Declares what a worker declares, as far as the kit has to know it.
async fn declare_topology(broker: &TestBroker) {
    let channel = broker.channel().await;
    for exchange in [broker.prefix().to_owned(), broker.name("dead-letters")] {
        let declared = channel.exchange_declare(
            exchange.into(),
            ExchangeKind::Direct,
            ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() },
            FieldTable::default(),
        );
        declared.await.expect("declare an exchange");
    }
    for (suffix, exchange, routing_key) in [
        ("token-requests", broker.prefix().to_owned(), TOKEN_REQUEST),
        ("dead-letters", broker.name("dead-letters"), "dead"),
    ] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        if suffix != "dead-letters" {
            let dead_letters = broker.name("dead-letters").into_bytes();
            arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(dead_letters.into()));
            arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString("dead".into()));
        }
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let queue = broker.name(suffix);
        channel.queue_declare(queue.as_str().into(), durable, arguments).await.expect("declare a queue");
        let bound = channel.queue_bind(
            queue.into(),
            exchange.into(),
            routing_key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.expect("bind a queue");
    }
}

/// Answers every request with its own body, and the body `"twice"` with two replies.
async fn start_echo(broker: &TestBroker) {
    use futures_util::StreamExt;
    declare_topology(broker).await;
    let channel = broker.channel().await;
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let queue = broker.name("token-requests");
    let mut requests = channel
        .basic_consume(queue.into(), "echo".into(), no_ack, FieldTable::default())
        .await
        .expect("consume");
    tokio::spawn(async move {
        while let Some(Ok(request)) = requests.next().await {
            let Some(reply_to) = request.properties.reply_to().clone() else { continue };
            let times = if request.data == b"\"twice\"" { 2 } else { 1 };
            for _ in 0..times {
                let properties = request.properties.clone();
                let reply = channel.basic_publish(
                    "".into(),
                    reply_to.clone(),
                    lapin::options::BasicPublishOptions::default(),
                    &request.data,
                    properties,
                );
                reply.await.expect("reply");
            }
        }
    });
    broker.wait_for_consumer("token-requests").await;
}

#[tokio::test]
async fn thousands_of_requests_at_once_each_get_their_own_reply() {
    let broker = TestBroker::connect().await;
    start_echo(&broker).await;
    let requests = (0..3_000).map(|number| {
        let broker = &broker;
        async move {
            let reply = match number % 2 {
                0 => broker.request(TOKEN_REQUEST, json!({ "number": number })).await,
                _ => broker.request_direct(TOKEN_REQUEST, json!({ "number": number })).await,
            };
            assert_eq!(reply.body["number"], number);
        }
    });
    futures_util::future::join_all(requests).await;
    assert!(broker.stray_replies().is_empty());
}

#[tokio::test]
async fn a_message_id_stands_in_for_a_correlation_id_and_a_second_reply_is_a_stray() {
    let broker = TestBroker::connect().await;
    start_echo(&broker).await;
    let named = BasicProperties::default().with_message_id("m-1".into());
    let reply = broker.send(TOKEN_REQUEST, "\"twice\"", named).await.reply().await;
    assert_eq!(reply.properties.correlation_id(), &None);
    assert_eq!(reply.body, "twice");
    let strays = eventually("the second reply", PATIENCE, async || {
        Some(broker.stray_replies()).filter(|strays| !strays.is_empty())
    });
    assert_eq!(strays.await.len(), 1);
    assert!(broker.stray_replies().is_empty(), "each stray is told once");
}

#[tokio::test]
async fn a_message_without_reply_to_stays_in_the_queue_and_its_rejection_is_a_dead_letter() {
    let broker = TestBroker::connect().await;
    declare_topology(&broker).await;
    broker.publish(TOKEN_REQUEST, "{broken", BasicProperties::default()).await;
    assert_eq!(broker.queue_depth("token-requests").await, 1);
    assert_eq!(broker.consumers("token-requests").await, 0);

    let channel = broker.channel().await;
    let taken = channel
        .basic_get(broker.name("token-requests").into(), BasicGetOptions::default())
        .await
        .expect("get");
    let message = taken.expect("a message").delivery;
    assert_eq!(message.properties.reply_to(), &None);
    message.reject(BasicRejectOptions { requeue: false }).await.expect("reject");
    let letters = broker.wait_for_dead_letters(1).await;
    assert_eq!(letters[0].body, b"{broken");
    assert!(letters[0].headers.contains_key("x-death"));
    assert!(broker.dead_letters().await.is_empty(), "dead letters are taken, not looked at");
}

#[tokio::test]
async fn no_reply_is_told_after_the_timeout() {
    let broker = TestBroker::connect().await;
    declare_topology(&broker).await;
    let pending = broker.send(TOKEN_REQUEST, "{}", BasicProperties::default()).await;
    assert!(pending.reply_within(Duration::from_millis(50)).await.is_none());
}

#[tokio::test]
#[should_panic(expected = "Is the worker up?")]
async fn a_request_without_an_exchange_fails_at_once_and_says_why() {
    let broker = TestBroker::connect().await;
    broker.request(TOKEN_REQUEST, json!({})).await;
}

#[tokio::test]
#[should_panic(expected = "could not be routed")]
async fn a_request_that_no_queue_wants_fails_at_once_and_says_why() {
    let broker = TestBroker::connect().await;
    declare_topology(&broker).await;
    broker.request("unknown.key", json!({})).await;
}

#[tokio::test]
async fn everything_under_the_prefix_is_deleted_with_the_broker() {
    let broker = TestBroker::connect().await;
    declare_topology(&broker).await;
    let (prefix, dead_letters) = (broker.prefix().to_owned(), broker.name("dead-letters"));
    drop(broker);

    let later = TestBroker::connect().await;
    assert!(later.inspect(&format!("{prefix}.token-requests")).await.is_none());
    assert!(later.inspect(&dead_letters).await.is_none());
    for exchange in [prefix, dead_letters] {
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let channel = later.channel().await;
        let found = channel
            .exchange_declare(exchange.into(), ExchangeKind::Direct, passive, FieldTable::default())
            .await;
        assert!(found.is_err(), "an exchange is left over");
    }
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_named_without_its_password_and_with_what_to_do() {
    let failed = tokio::spawn(TestBroker::connect_to("amqp://me:hidden@127.0.0.1:1/%2f")).await;
    let panicked = failed.err().expect("nobody listens there").into_panic();
    let text = *panicked.downcast::<String>().expect("a text");
    assert!(text.contains("127.0.0.1:1") && text.contains("scripts/services.sh"), "{text}");
    assert!(!text.contains("hidden"), "{text}");
}
