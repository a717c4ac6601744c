//! Somebody who listens to a world's events.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::Value;
use tokenkeeper_testkit::wait::{PATIENCE, eventually};

use super::evidence::Place;
use super::world::World;

/// An event as it came.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) routing_key: String,
    pub(crate) properties: lapin::BasicProperties,
    pub(crate) body: Value,
}

/// A queue of its own, bound to the exchange of events. A worker must have declared that.
pub(crate) struct Listener {
    heard: Arc<Mutex<Vec<Heard>>>,
    _channel: Channel,
}

impl Listener {
    /// Listens to what is routed by this pattern; `#` is everything.
    pub(crate) async fn start(world: &World, pattern: &str) -> Self {
        let channel = world.broker.channel().await;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.expect("a queue");
        let exchange = world.broker.name("events");
        channel
            .queue_bind(
                queue.name().clone(),
                exchange.as_str().into(),
                pattern.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .expect("bind it to the exchange of events");
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut deliveries = channel
            .basic_consume(queue.name().clone(), "".into(), options, FieldTable::default())
            .await
            .expect("consume it");
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let (hearing, evidence) = (Arc::clone(&heard), world.evidence.clone());
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = deliveries.next().await {
                let envelope = format!("{} {:?}\n", delivery.routing_key, delivery.properties);
                evidence.add(Place::Event, "an event", [envelope.as_bytes(), &delivery.data].concat());
                let heard = Heard {
                    routing_key: delivery.routing_key.to_string(),
                    properties: delivery.properties,
                    body: serde_json::from_slice(&delivery.data).expect("an event is JSON"),
                };
                hearing.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
            }
        });
        Self { heard, _channel: channel }
    }

    /// Everything heard so far.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often this was heard so far.
    pub(crate) fn times(&self, event: &str) -> usize {
        self.heard().iter().filter(|heard| heard.routing_key == event).count()
    }

    /// Waits until this was heard so many times, and gives back the bodies.
    pub(crate) async fn wait_for(&self, event: &str, times: usize) -> Vec<Value> {
        let what = format!("event {event} to be heard {times} times");
        eventually(&what, PATIENCE, async || (self.times(event) >= times).then_some(())).await;
        let heard = self.heard().into_iter().filter(|heard| heard.routing_key == event);
        heard.map(|heard| heard.body).collect()
    }
}
