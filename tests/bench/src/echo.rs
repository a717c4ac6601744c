//! The echo worker: the least that a worker on RabbitMQ does which answers every message and loses none.
//!
//! It consumes from a queue that tokenkeeper's own code declared, with tokenkeeper's prefetch, publishes a reply as long
//! as a token's over one confirming channel, waits for the confirm, and acks. It looks at nothing and knows no database.
//! What tokenkeeper does in comparison is the price of its work; what this costs is the broker's and the library's.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, Consumer, PublisherConfirm,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    },
    types::FieldTable,
};
use tokenkeeper::{
    broker::{Feed, Names, connect, declare},
    contract::{DIRECT_REPLY_TO, MessageKind},
    settings::Settings,
};
use tokio::sync::mpsc;

use crate::load::OK;

/// What one echo worker is told.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The broker.
    #[arg(long)]
    url: String,
    /// First part of the name of every exchange and queue.
    #[arg(long)]
    prefix: String,
    /// How long a reply is, in bytes.
    #[arg(long)]
    reply_bytes: usize,
    /// Acks what is confirmed in groups, in order, instead of each message.
    #[arg(long)]
    grouped: bool,
}

/// Answers until it is killed, or until its connection is gone.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let settings = HashMap::from([
        ("AMQP_URL".to_owned(), arguments.url),
        ("TOKENKEEPER__BROKER__PREFIX".to_owned(), arguments.prefix),
    ]);
    let settings = Settings::load_from(None, settings).context("read the settings")?;
    // Over one connection, as tokenkeeper does it, echo is no faster: the limit must not be the slower one.
    let consuming = connect(&settings.broker, "echo consume").await?;
    let publishing = connect(&settings.broker, "echo publish").await?;
    declare(&consuming, &settings.broker).await?;
    let replies = confirming_channel(&publishing).await?;
    let queue = Names::new(&settings.broker.prefix).queue(Feed::Messages(MessageKind::TokenRequest));
    let consumer = consume(&consuming, &queue, settings.worker.prefetch_token_requests).await?;
    let echo = Echo { replies, reply_bytes: arguments.reply_bytes };
    if arguments.grouped {
        echo.with_grouped_acks(consumer).await
    } else {
        echo.with_single_acks(consumer).await
    }
}

async fn confirming_channel(connection: &Connection) -> Result<Channel> {
    let channel = connection.create_channel().await.context("open a channel for replies")?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.context("ask for confirms")?;
    Ok(channel)
}

async fn consume(connection: &Connection, queue: &str, prefetch: u16) -> Result<Consumer> {
    let channel = connection.create_channel().await.context("open a channel to consume on")?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.context("set the prefetch")?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(queue.into(), "echo".into(), options, arguments).await;
    consumer.with_context(|| format!("consume queue {queue}"))
}

/// Begins as a token's reply does, is as long, and holds a token for whoever reads one. The fields of the request are in it: the
/// Rust client takes no reply about another user.
fn reply(request: &[u8], length: usize) -> Vec<u8> {
    const TOKEN: &[u8] = br#"","refresh":"none","token":{"value":"x","username":"x","scopes":[],"updated_at":"2020-01-01T00:00:00.000Z","expires_at":null,"reserved_until":"2020-01-01T00:00:00.000Z"}}"#;
    let fields = request.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")).unwrap_or_default();
    let mut reply = Vec::with_capacity(length);
    reply.extend_from_slice(OK);
    if !fields.is_empty() {
        reply.push(b',');
        reply.extend_from_slice(fields);
    }
    reply.extend_from_slice(br#","filling":""#);
    reply.resize(length.saturating_sub(TOKEN.len()).max(reply.len()), b'x');
    reply.extend_from_slice(TOKEN);
    reply
}

struct Echo {
    replies: Channel,
    reply_bytes: usize,
}

impl Echo {
    /// A task a message, and an ack a message.
    async fn with_single_acks(self, mut consumer: Consumer) -> Result<()> {
        let echo = Arc::new(self);
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.context("consume")?;
            tokio::spawn(Arc::clone(&echo).answer(delivery));
        }
        bail!("the broker cancelled the echo worker's consumer")
    }

    /// What comes too late for its ack is delivered again, and the load generator calls that a second reply.
    async fn answer(self: Arc<Self>, delivery: Delivery) {
        if let Ok(confirm) = self.publish(&delivery).await
            && confirmed(confirm.await).is_ok()
        {
            let _ = delivery.acker.ack(BasicAckOptions::default()).await;
        }
    }

    /// Publishes in order, and acks up to the last message before which everything is confirmed.
    async fn with_grouped_acks(self, mut consumer: Consumer) -> Result<()> {
        let (confirms, published) = mpsc::unbounded_channel();
        let acking = tokio::spawn(ack_in_groups(published));
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.context("consume")?;
            let confirm = self.publish(&delivery).await?;
            if confirms.send((delivery, confirm)).is_err() {
                break;
            }
        }
        acking.await.context("ack")?
    }

    async fn publish(&self, request: &Delivery) -> Result<PublisherConfirm> {
        let reply_to = request.properties.reply_to().clone().context("a request has no reply_to")?;
        let mut properties = BasicProperties::default()
            .with_type("token.reply".into())
            .with_content_type("application/json".into());
        if let Some(id) = request.properties.correlation_id().clone() {
            properties = properties.with_correlation_id(id);
        }
        // A broker up to 4.1 returns what goes to a direct reply-to, and delivers it all the same.
        let mandatory = !reply_to.as_str().starts_with(DIRECT_REPLY_TO);
        let mandatory = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
        let reply = reply(&request.data, self.reply_bytes);
        let publish = self.replies.basic_publish("".into(), reply_to, mandatory, &reply, properties);
        publish.await.context("publish a reply")
    }
}

async fn ack_in_groups(mut published: mpsc::UnboundedReceiver<(Delivery, PublisherConfirm)>) -> Result<()> {
    let mut next = published.recv().await;
    while let Some((delivery, confirm)) = next.take() {
        confirmed(confirm.await)?;
        let mut last = delivery;
        while let Ok((delivery, mut confirm)) = published.try_recv() {
            let Some(confirmation) = (&mut confirm).now_or_never() else {
                next = Some((delivery, confirm));
                break;
            };
            confirmed(confirmation)?;
            last = delivery;
        }
        last.acker.ack(BasicAckOptions { multiple: true }).await.context("ack")?;
        if next.is_none() {
            next = published.recv().await;
        }
    }
    bail!("the broker cancelled the echo worker's consumer")
}

fn confirmed(confirmation: lapin::Result<Confirmation>) -> Result<()> {
    match confirmation.context("wait for a confirm")? {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("a reply was not taken: {other:?}"),
    }
}
