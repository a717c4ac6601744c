//! Fuzzing: dead letters. Anybody who may publish can write their headers.

use std::borrow::Cow;

use lapin::message::Delivery;
use lapin::protocol::basic::parse_properties;

use super::letter::{Destination, Letter, is_ours};
use super::replay::{REPLAY_COUNT_HEADER, properties};
use super::seal::{Sealed, open};
use crate::broker::Names;
use crate::contract::{MessageKind, holds_no_secret};
use crate::domain::escape::is_printable;
use crate::domain::secret::fuzzing::ring;

const EXCHANGES: [&str; 3] = ["fuzz.dead-letters", "fuzz", "somebody-elses"];
const KEYS: [&str; 6] =
    ["token.request", "token.store", "workspace.start", "token.report", "fuzz.parked-pairs", "any"];

/// The input is: exchange, routing key, and what a broker sends: properties in AMQP's format, and the body behind them.
pub fn dead_letters(input: &[u8]) {
    let [exchange, key, rest @ ..] = input else { return };
    let exchange = EXCHANGES[usize::from(*exchange) % EXCHANGES.len()];
    let key = KEYS[usize::from(*key) % KEYS.len()];
    let Ok((body, properties)) = parse_properties(rest) else { return };
    let mut delivery = Delivery::mock(1, exchange.into(), key.into(), false, body.to_vec());
    delivery.properties = properties;
    let letter = Letter::new(delivery, &Names::new("fuzz"));
    a_letter(&letter);
    a_seal(&letter, key);
}

fn a_letter(letter: &Letter) {
    let id = letter.id();
    assert!(!id.is_empty() && id.len() <= 3 * 255 && is_printable(&id), "{id:?}");
    // Headers choose among our own queues alone.
    if let Some(Destination::Queue(queue)) = letter.destination() {
        assert!(queue.starts_with("fuzz.") && queue != "fuzz.dead-letters", "{queue:?}");
    }
    let told = format!("{letter:?} {} {:?} {:?}", letter.reason(), letter.detail(), letter.died_at());
    assert!(told.len() < 4 * (letter.body().len() + 64 * 1024), "as long as the letter, and no longer");
    let replayed = properties(letter);
    let headers = replayed.headers().clone().unwrap_or_default();
    let name_of_ours = headers.inner().keys().find(|name| is_ours(name.as_str()));
    assert_eq!(name_of_ours, None, "what was said of the letter stays behind");
    assert!(headers.contains_key(REPLAY_COUNT_HEADER));
    assert!(replayed.expiration().is_none(), "it would be too old at once");
}

fn a_seal(letter: &Letter, key: &str) {
    let (ring, body) = (ring(), letter.body());
    // Nobody without the key wrote a seal that opens.
    match letter.open(Some(&ring)) {
        Ok(opened) => assert!(matches!(opened, Cow::Borrowed(clear) if clear == body)),
        Err(error) => assert!(error.to_string().len() < 512, "{error}"),
    }
    let kind = MessageKind::ALL.into_iter().find(|kind| kind.routing_key() == key);
    let Some(sealed) = Sealed::of(&ring, kind, key, letter.properties(), body) else {
        assert!(holds_no_secret(kind, body));
        return;
    };
    let marked = sealed.mark(letter.properties().clone());
    assert_eq!(open(Some(&ring), key, &marked, &sealed.body).as_deref(), Ok(body));
    assert!(open(Some(&ring), "elsewhere", &marked, &sealed.body).is_err(), "it was moved");
}
