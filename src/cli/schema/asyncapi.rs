//! The AsyncAPI document: what is published where, and what comes of it.

use serde_json::{Map, Value, json};
use tokenkeeper::broker::{Feed, Names};
use tokenkeeper::contract::{Event, MessageKind};

use super::examples::{self, Example};
use super::portable::{Ordered, Portable, all_definitions, moved_to};
use super::{Message, all};

/// The default of `broker.prefix`.
const PREFIX: &str = "tokenkeeper";
const BINDING: &str = "0.3.0";
const REPLIES: &str = "replies";
const EVENTS: &str = "events";
const SCHEMAS: &str = "#/components/schemas/";

const DESCRIPTION: &str = "\
Hands out, reserves and refreshes users' OAuth tokens for source-code hosts.

A requester publishes a message to the direct exchange, and reads the reply from the queue that it names in `reply_to`, or from \
`amq.rabbitmq.reply-to`. Names have the default prefix `tokenkeeper` (the setting `broker.prefix`). With partitions \
(`broker.partitions`), the exchange of a kind has the name of its queue, and the routing key is the user.

Bodies are JSON objects in UTF-8 of at most 64 KiB (`token.store`: 128 KiB). A message with unknown fields is served, and a newer \
worker may add fields to what it writes. docs/contract.md has the rules.";

/// The document.
pub(super) fn yaml() -> anyhow::Result<String> {
    let document = document()?;
    let text = serde_saphyr::to_string(&Ordered(&document))?;
    Ok(format!("# Written by scripts/schema.sh.\n{text}"))
}

pub(super) fn document() -> anyhow::Result<Value> {
    let (messages, examples) = (all(), examples::all()?);
    let mut channels = Map::new();
    let mut operations = Map::new();
    for kind in MessageKind::ALL {
        channels.insert(kind.routing_key().to_owned(), request_channel(kind));
        channels.insert(format!("{}.queue", kind.routing_key()), queue_channel(kind));
        operations.insert(kind.routing_key().to_owned(), request_operation(kind));
    }
    channels.insert(REPLIES.to_owned(), reply_channel());
    channels.insert(EVENTS.to_owned(), events_channel());
    operations.insert(EVENTS.to_owned(), events_operation());
    Ok(json!({
        "asyncapi": "3.0.0",
        "id": "urn:tokenkeeper",
        "info": {
            "title": "tokenkeeper",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": env!("CARGO_PKG_LICENSE")},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": component_messages(&examples), "schemas": schemas(&messages)},
    }))
}

fn request_channel(kind: MessageKind) -> Value {
    let name = kind.routing_key();
    json!({
        "address": name,
        "title": format!("{name} by routing key"),
        "description": format!(
            "Where `{name}` is published. The message comes to the queue `{}`.", kind.queue(PREFIX)
        ),
        "messages": component([name]),
        "bindings": {"amqp": by_routing_key(&exchange(Names::new(PREFIX).exchange(), "direct"))},
    })
}

/// The queue behind a routing key. Nobody but the worker touches it.
fn queue_channel(kind: MessageKind) -> Value {
    let (name, queue) = (kind.routing_key(), Names::new(PREFIX).queue(Feed::Messages(kind)));
    json!({
        "address": queue,
        "title": format!("queue of {name}"),
        "description": "A quorum queue, bound to the exchange by the routing key. The worker declares both when it starts, \
                        and consumes it; publish by the exchange.",
        "messages": component([name]),
        "bindings": {"amqp": {
            "is": "queue",
            "queue": {"name": queue, "durable": true, "exclusive": false, "autoDelete": false, "vhost": "/"},
            "bindingVersion": BINDING,
        }},
    })
}

fn reply_channel() -> Value {
    json!({
        "address": null,
        "title": "replies",
        "description": "The queue that `reply_to` of the request names, or `amq.rabbitmq.reply-to`: by the default exchange, with \
                        that name as the routing key.",
        "messages": component(MessageKind::ALL.map(MessageKind::reply_type)),
        "bindings": {"amqp": by_routing_key(&exchange("", "default"))},
    })
}

fn events_channel() -> Value {
    json!({
        "address": "{event}",
        "title": "events",
        "description": "News, for whoever binds a queue: an event may come twice (same `message_id`), or be dropped where the \
                        broker is away for long.",
        "parameters": {"event": {"description": "The name of the event.", "enum": Event::NAMES}},
        "messages": component(Event::NAMES),
        "bindings": {"amqp": by_routing_key(&exchange(&Names::new(PREFIX).events(), "topic"))},
    })
}

fn exchange(name: &str, kind: &str) -> Value {
    json!({"name": name, "type": kind, "durable": true, "autoDelete": false, "vhost": "/"})
}

fn by_routing_key(exchange: &Value) -> Value {
    json!({"is": "routingKey", "exchange": exchange, "bindingVersion": BINDING})
}

/// References to messages of the components, as a channel has them.
fn component<const N: usize>(names: [&str; N]) -> Value {
    let reference = |name: &str| (name.to_owned(), json!({"$ref": format!("#/components/messages/{name}")}));
    names.map(reference).into_iter().collect::<Map<_, _>>().into()
}

/// `token.request` in a path of references.
fn in_channel(channel: &str, message: &str) -> Value {
    json!({"$ref": format!("#/channels/{channel}/messages/{message}")})
}

fn request_operation(kind: MessageKind) -> Value {
    let (name, reply) = (kind.routing_key(), kind.reply_type());
    let required = if kind.needs_reply_to() { "Required." } else { "Without it there is no reply." };
    json!({
        "action": "receive",
        "title": name,
        "summary": format!("The worker takes a `{name}`, and answers with a `{reply}`."),
        "description": "Publish it `mandatory`, with a confirm, and with the time that you wait as `expiration`, in milliseconds. \
                        The worker acks it once its reply is confirmed.",
        "channel": {"$ref": format!("#/channels/{name}")},
        "messages": [in_channel(name, name)],
        "bindings": {"amqp": {
            "expiration": 10_000, "mandatory": true, "timestamp": true, "ack": true, "bindingVersion": BINDING,
        }},
        "reply": {
            "address": {
                "location": "$message.header#/reply_to",
                "description": format!("The property `reply_to` of the request. {required}"),
            },
            "channel": {"$ref": format!("#/channels/{REPLIES}")},
            "messages": [in_channel(REPLIES, reply)],
        },
    })
}

fn events_operation() -> Value {
    json!({
        "action": "send",
        "title": "events",
        "summary": "The worker tells what happened, whether anybody listens or not.",
        "channel": {"$ref": format!("#/channels/{EVENTS}")},
        "messages": Event::NAMES.map(|name| in_channel(EVENTS, name)),
        "bindings": {"amqp": {"mandatory": false, "deliveryMode": 2, "bindingVersion": BINDING}},
    })
}

fn component_messages(examples: &[Example]) -> Map<String, Value> {
    let of = |message: Message| examples.iter().filter(move |example| example.message == message);
    let mut messages = Map::new();
    for message in [Message::TokenRequest, Message::WorkspaceStart, Message::TokenStore, Message::TokenReport]
    {
        let kind = Kind::Request { needs_reply_to: needs_reply_to(message) };
        messages.insert(
            message.name().to_owned(),
            component_message(message, message.name(), &kind, of(message)),
        );
    }
    for message in [
        Message::TokenReply,
        Message::WorkspaceStartReply,
        Message::TokenStoreReply,
        Message::TokenReportReply,
    ] {
        let value = component_message(message, message.name(), &Kind::Reply, of(message));
        messages.insert(message.name().to_owned(), value);
    }
    for name in Event::NAMES {
        let examples = of(Message::Event).filter(|example| example.name == name);
        messages.insert(name.to_owned(), component_message(Message::Event, name, &Kind::Event, examples));
    }
    messages
}

fn needs_reply_to(message: Message) -> bool {
    MessageKind::ALL.into_iter().any(|kind| kind.routing_key() == message.name() && kind.needs_reply_to())
}

enum Kind {
    Request { needs_reply_to: bool },
    Reply,
    Event,
}

fn component_message<'a>(
    message: Message,
    name: &str,
    kind: &Kind,
    examples: impl Iterator<Item = &'a Example>,
) -> Value {
    let schema = match kind {
        Kind::Event => super::portable::in_code(&format!("event.{name}")),
        Kind::Request { .. } | Kind::Reply => super::portable::in_code(message.name()),
    };
    let examples: Vec<Value> = examples
        .map(|example| {
            json!({
                "name": example.name, "summary": example.summary,
                "headers": example_headers(name, kind), "payload": example.body,
            })
        })
        .collect();
    let mut fields = json!({
        "name": name,
        "title": schema,
        "contentType": "application/json",
        "headers": headers(name, kind),
        "payload": {"$ref": format!("{SCHEMAS}{schema}")},
        "bindings": {"amqp": {"messageType": name, "bindingVersion": BINDING}},
        "examples": examples,
    });
    if !matches!(kind, Kind::Event) {
        fields["correlationId"] = json!({
            "location": "$message.header#/correlation_id",
            "description": "Copied to the reply byte for byte; `message_id` is used where it is absent.",
        });
    }
    fields
}

/// The AMQP properties, under the names of the contract.
fn headers(name: &str, kind: &Kind) -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let trace = || text("W3C trace context, a header of AMQP; copied to the reply.");
    match kind {
        Kind::Request { needs_reply_to } => json!({
            "type": "object",
            "description": "AMQP properties.",
            "required": if *needs_reply_to { vec!["reply_to"] } else { Vec::new() },
            "properties": {
                "reply_to": text("A queue of the requester, or `amq.rabbitmq.reply-to`."),
                "correlation_id": text("Copied to the reply byte for byte."),
                "message_id": text("In place of `correlation_id`, where that is absent."),
                "expiration": {
                    "type": "string", "pattern": "^[0-9]+$",
                    "description": "How long the requester waits, in milliseconds; at most ten minutes count.",
                },
                "timestamp": {
                    "type": "integer", "minimum": 0,
                    "description": "When it was published, in seconds since 1970; `expiration` counts from it.",
                },
                "user_id": text("Who published; the broker checks it."),
                "traceparent": trace(),
            },
        }),
        Kind::Reply => json!({
            "type": "object",
            "description": "AMQP properties.",
            "required": ["type"],
            "properties": {
                "type": {"type": "string", "const": name},
                "correlation_id": text("That of the request."),
                "traceparent": trace(),
            },
        }),
        Kind::Event => json!({
            "type": "object",
            "description": "AMQP properties.",
            "required": ["type", "message_id"],
            "properties": {
                "type": {"type": "string", "const": name},
                "message_id": text("The same where an event comes twice."),
            },
        }),
    }
}

fn example_headers(name: &str, kind: &Kind) -> Value {
    match kind {
        Kind::Request { .. } => {
            json!({"reply_to": "amq.rabbitmq.reply-to", "correlation_id": "c-1", "expiration": "10000"})
        }
        Kind::Reply => json!({"type": name, "correlation_id": "c-1"}),
        Kind::Event => json!({"type": name, "message_id": "7a1f6a0e-6a0b-4a0e-9a51-0d3c1d1f9b52"}),
    }
}

fn schemas(messages: &[Portable]) -> Map<String, Value> {
    let moved = |(name, mut schema): (String, Value)| {
        moved_to(SCHEMAS, &mut schema);
        (name, schema)
    };
    all_definitions(messages).into_iter().map(moved).collect()
}
