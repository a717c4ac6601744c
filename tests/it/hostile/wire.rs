//! What only the wire knows: a header frame that is full to its last byte, and texts that are no UTF-8.

use std::net::Ipv4Addr;

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::json;
use tokenkeeper_testkit::queues::TOKEN_REQUEST;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cli::Cli;
use crate::harness::links::Link;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// The broker's limit of a frame.
const FRAME_MAX: usize = 131_072;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_headers_leave_no_room_for_a_reason_is_still_dead_lettered() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    for room in [300, 200, 100, 60] {
        let mut headers = FieldTable::default();
        headers.insert(
            "x-upstream".into(),
            AMQPValue::LongString(LongString::from(vec![b'x'; FRAME_MAX - room - 100])),
        );
        let properties = BasicProperties::default().with_message_id("m-1".into()).with_headers(headers);
        let reply = world.broker.send(TOKEN_REQUEST, "{}", properties).await;
        assert_eq!(reply.reply().await.body["error"]["code"], "invalid_request");
        let letters = world.broker.wait_for_dead_letters(1).await;
        assert_eq!(letters.len(), 1);
        let reason = letters[0].headers.inner().get("x-tokenkeeper-reason");
        assert_eq!(reason, Some(&AMQPValue::LongString("invalid_request".into())));
        assert_eq!(letters[0].body, b"{}");
    }
    assert_eq!(world.request("jdoe").await["status"], "ok");
    assert_eq!(worker.reconnects(Link::Publish).await, 0);
    worker.stop(&world).await;
}

/// A text that publishers mark a message with. The proxy makes it a text that is no UTF-8.
const MARK: &str = "not-utf-8";

/// The same as the client library gives it back: vendor/amq-protocol-types/README.md.
const OF_MARK: &str =
    "\u{10ffff}\u{10ffff}\u{10ffff}\u{10ffff}\u{10ffff}\u{10ffff}\u{10ffff}\u{10ffff}\u{10ffff}";

/// A way to the broker on which every [`MARK`] turns into bytes of the same number that are no UTF-8: AMQP does not
/// forbid them, and the client library here cannot write them.
async fn garbling_proxy(upstream: String) -> std::net::SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let broker = TcpStream::connect(&upstream).await.unwrap();
            let (mut client_reads, mut client_writes) = client.into_split();
            let (mut broker_reads, mut broker_writes) = broker.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut broker_reads, &mut client_writes).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 20];
                while let Ok(count @ 1..) = client_reads.read(&mut buffer).await {
                    let bytes = &mut buffer[..count];
                    while let Some(at) =
                        bytes.windows(MARK.len()).position(|window| window == MARK.as_bytes())
                    {
                        bytes[at..at + MARK.len()].fill(0xff);
                    }
                    broker_writes.write_all(bytes).await.unwrap();
                }
            });
        }
    });
    address
}

/// A channel on which every [`MARK`] is garbled, and its connection.
async fn garbled(world: &World) -> (lapin::Connection, lapin::Channel) {
    let mut url = url::Url::parse(world.broker.url()).unwrap();
    let address = garbling_proxy(format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672))).await;
    url.set_port(Some(address.port())).unwrap();
    let connection =
        lapin::Connection::connect(url.as_str(), lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

async fn publish(world: &World, channel: &lapin::Channel, body: &[u8], properties: BasicProperties) {
    let exchange = world.broker.prefix().into();
    let options = BasicPublishOptions::default();
    let published = channel.basic_publish(exchange, TOKEN_REQUEST.into(), options, body, properties);
    assert!(published.await.unwrap().await.unwrap().is_ack());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correlation_id_that_is_not_utf_8_comes_back_byte_for_byte() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let (_connection, channel) = garbled(&world).await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let name = format!("{}-garbled", world.broker.prefix());
    channel.queue_declare(name.as_str().into(), exclusive, FieldTable::default()).await.unwrap();
    let body = json!({"user_id": "jdoe", "host": world.scm.host()}).to_string();
    for (id, as_read) in [
        (MARK.to_owned(), OF_MARK.to_owned()),
        (format!("a é {MARK}"), format!("a \u{10ffc3}\u{10ffa9} {OF_MARK}")),
        ("c-1 é".to_owned(), "c-1 é".to_owned()),
        (MARK.repeat(28), OF_MARK.repeat(28)),
    ] {
        let properties = BasicProperties::default()
            .with_correlation_id(id.as_str().into())
            .with_reply_to(name.as_str().into());
        publish(&world, &channel, body.as_bytes(), properties).await;
        let reply = eventually("the reply", PATIENCE, async || {
            let no_ack = BasicGetOptions { no_ack: true };
            channel.basic_get(name.as_str().into(), no_ack).await.unwrap()
        })
        .await;
        assert_eq!(
            reply.properties.correlation_id().as_ref().map(ShortString::as_str),
            Some(as_read.as_str())
        );
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_that_are_not_utf_8_cost_nobody_else_an_answer() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let (_connection, channel) = garbled(&world).await;
    let mut headers = FieldTable::default();
    headers.insert(MARK.into(), AMQPValue::Boolean(true));
    let garbled = [
        BasicProperties::default().with_correlation_id(MARK.into()),
        BasicProperties::default().with_message_id(MARK.repeat(28).as_str().into()),
        BasicProperties::default().with_reply_to(MARK.into()).with_type(MARK.into()),
        BasicProperties::default().with_headers(headers),
    ];
    let before = world.send_many("jdoe", 50).await;
    for properties in &garbled {
        publish(&world, &channel, b"{}", properties.clone()).await;
    }
    let after = world.send_many("jdoe", 50).await;

    for pending in before.into_iter().chain(after) {
        assert_eq!(pending.reply().await.body["status"], "ok");
    }
    eventually("the messages to be laid aside", PATIENCE, async || {
        (world.broker.queue_depth("dead-letters").await as usize == garbled.len()).then_some(())
    })
    .await;
    assert_eq!(worker.reconnects(Link::Consume).await, 0);
    worker.stop(&world).await;
    let listed = Cli::of(&world).run(&["dead", "list", "--json"]).await.good().json();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), garbled.len());
    assert!(listed.iter().all(|letter| letter["reason"] == "invalid_request"), "{listed:?}");
}
