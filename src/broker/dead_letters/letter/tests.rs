use lapin::types::FieldArray;

use super::super::replay::properties;
use super::*;
use crate::broker::topology::text;

fn letter(routing_key: &str, properties: BasicProperties, body: &[u8]) -> Letter {
    let mut delivery = Delivery::mock(1, "tk.dead-letters".into(), routing_key.into(), false, body.to_vec());
    delivery.properties = properties;
    Letter::new(delivery, &Names::new("tk"))
}

fn table<const N: usize>(fields: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert(name.into(), value);
    }
    table
}

fn died_in(queue: &str) -> (&'static str, AMQPValue) {
    let death = table([
        ("queue", text(queue)),
        ("exchange", text("somebody-elses")),
        ("reason", text("delivery_limit")),
        ("time", AMQPValue::Timestamp(1_577_840_700)),
    ]);
    let mut deaths = FieldArray::default();
    deaths.push(AMQPValue::FieldTable(death));
    ("x-death", AMQPValue::FieldArray(deaths))
}

fn with_headers(headers: FieldTable) -> BasicProperties {
    BasicProperties::default().with_headers(headers)
}

#[test]
fn a_letter_of_ours_tells_why_and_when_and_goes_where_its_routing_key_says() {
    let headers = table([
        (REASON_HEADER, text("invalid_request")),
        (DETAIL_HEADER, text("missing field `host`")),
        (TIME_HEADER, text("2020-01-01T01:05:00.000Z")),
        // It was put off before.
        died_in("tk.again"),
    ]);
    let letter = letter("token.request", with_headers(headers), b"{}");
    assert_eq!(letter.reason(), "invalid_request");
    assert_eq!(letter.detail().as_deref(), Some("missing field `host`"));
    assert_eq!(letter.died_at(), Some(Timestamp::from_millis(1_577_840_700_000)));
    assert_eq!(letter.kind(), Some(MessageKind::TokenRequest));
}

#[test]
fn no_publisher_chooses_what_is_said_of_its_letter() {
    let forged = table([
        (REASON_HEADER, text("expired")),
        (DETAIL_HEADER, text("drop me")),
        (TIME_HEADER, text("2000-01-01T00:00:00.000Z")),
        died_in("tk.token-stores"),
    ]);
    // The broker leaves our headers, and puts its own in front.
    let of_broker = letter("any.key", with_headers(forged.clone()), b"{}");
    assert_eq!((of_broker.reason().as_str(), of_broker.detail()), ("delivery_limit", None));
    assert_eq!(of_broker.died_at(), Some(Timestamp::from_millis(1_577_840_700_000)));
    assert_eq!(of_broker.kind(), Some(MessageKind::TokenStore));
    // The worker overwrites our headers, and leaves the broker's out.
    let came_with = with_headers(forged);
    let given_up = crate::broker::DeadLetter {
        routing_key: "token.request",
        properties: &came_with,
        reason: "invalid_request",
        detail: "missing field `host`",
        at: Timestamp::from_millis(7),
    };
    let of_worker = letter("token.request", given_up.properties(None, u32::MAX), b"{}");
    assert_eq!(of_worker.reason(), "invalid_request");
    assert_eq!(of_worker.died_at(), Some(Timestamp::from_millis(7)));
    assert_eq!(of_worker.kind(), Some(MessageKind::TokenRequest));
}

#[test]
fn a_letter_of_the_brokers_goes_to_the_queue_it_died_in_and_to_no_exchange_it_names() {
    let of_queue = |queue: &str| letter("any.key", with_headers(table([died_in(queue)])), b"{}");
    let letter = of_queue("tk.workspace-starts");
    assert_eq!(letter.reason(), "delivery_limit");
    assert_eq!(letter.died_at(), Some(Timestamp::from_millis(1_577_840_700_000)));
    assert_eq!(letter.destination(), Some(&Destination::Kind(MessageKind::WorkspaceStart)));
    let of_partition = of_queue("tk.workspace-starts.255");
    assert_eq!(of_partition.destination(), Some(&Destination::Kind(MessageKind::WorkspaceStart)));
    let no_partition = of_queue("tk.workspace-starts.256");
    assert_eq!(no_partition.kind(), None);
    let parked = of_queue("tk.parked-pairs");
    assert_eq!(parked.destination(), Some(&Destination::Queue("tk.parked-pairs".to_owned())));
    for queue in ["tk.dead-letters", "tkx.token-requests", "somebody-elses", ""] {
        assert_eq!(of_queue(queue).destination(), None, "{queue}");
    }
}

#[test]
fn a_letter_that_says_nothing_is_one_all_the_same() {
    let nothing = letter("", BasicProperties::default(), b"\xff");
    assert_eq!(
        (nothing.reason().as_str(), nothing.died_at(), nothing.destination()),
        ("unknown", None, None)
    );
    assert_eq!(nothing.id().len(), 16);
    let nonsense = table([
        ("x-death", AMQPValue::Boolean(true)),
        (REASON_HEADER, AMQPValue::LongLongInt(7)),
        (REPLAY_COUNT_HEADER, text("many")),
        (TIME_HEADER, text("yesterday")),
    ]);
    let nonsense = letter("", with_headers(nonsense).with_type("token.store".into()), b"");
    assert_eq!((nonsense.reason().as_str(), nonsense.died_at()), ("unknown", None));
    assert_eq!((nonsense.kind(), nonsense.replay_count()), (Some(MessageKind::TokenStore), 0));
}

#[test]
fn a_name_is_the_message_id_or_a_fingerprint_that_no_look_changes() {
    let with_id = |id: &str| letter("", BasicProperties::default().with_message_id(id.into()), b"x").id();
    assert_eq!(with_id("m-1"), "m-1");
    assert_eq!(with_id(""), with_id("a\nb"));
    let looked_at = |count| table([("x-delivery-count", AMQPValue::LongLongInt(count))]);
    let id = |properties, body| letter("", properties, body).id();
    assert_eq!(id(with_headers(looked_at(1)), b"x"), id(with_headers(looked_at(2)), b"x"));
    let first = id(BasicProperties::default().with_correlation_id("ab".into()), b"x");
    let second =
        id(BasicProperties::default().with_correlation_id("a".into()).with_reply_to("b".into()), b"x");
    assert_ne!(first, second);
    assert_ne!(id(BasicProperties::default(), b"x"), id(BasicProperties::default(), b"y"));
}

#[test]
fn a_replay_leaves_behind_what_would_make_it_die_or_go_astray() {
    let headers = table([
        (REASON_HEADER, text("invalid_request")),
        (DETAIL_HEADER, text("…")),
        (TIME_HEADER, text("2020-01-01T01:05:00.000Z")),
        died_in("tk.token-requests"),
        ("x-first-death-reason", text("delivery_limit")),
        ("x-delivery-count", AMQPValue::LongLongInt(6)),
        ("CC", text("token.store")),
        ("traceparent", text("00-1-2-01")),
        (REPLAY_COUNT_HEADER, AMQPValue::LongLongInt(2)),
    ]);
    let died = with_headers(headers)
        .with_correlation_id("c".into())
        .with_reply_to("r".into())
        .with_user_id("server".into())
        .with_expiration("1".into())
        .with_timestamp(7);
    let replayed = properties(&letter("token.request", died, b"{}"));
    let headers: Vec<(String, AMQPValue)> = replayed
        .headers()
        .iter()
        .flat_map(FieldTable::inner)
        .map(|(name, value)| (name.to_string(), value.clone()))
        .collect();
    assert_eq!(
        headers,
        [
            ("traceparent".to_owned(), text("00-1-2-01")),
            (PUBLISHER_HEADER.to_owned(), text("server")),
            (REPLAY_COUNT_HEADER.to_owned(), AMQPValue::LongLongInt(3)),
        ]
    );
    let expected = BasicProperties::default()
        .with_correlation_id("c".into())
        .with_reply_to("r".into())
        .with_delivery_mode(2)
        .with_headers(replayed.headers().clone().unwrap());
    assert_eq!(replayed, expected);
}
