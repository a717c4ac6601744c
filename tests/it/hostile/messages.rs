//! What is published: good requests, and everything that is not.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use tokenkeeper_testkit::queues::{TOKEN_REPORT, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};

use super::HOSTILE;
use super::oracle::{Oracle, max_body_bytes};
use super::strange::{strange_headers, strange_value};

/// Numbers the messages; goes with them into the dead letters.
pub(super) const HEADER: &str = "x-test-number";
/// So many of the hostile bodies in the first half have one of these 10 MiB. In the second half there are none: the allocator keeps
/// what it needed for those that were in hand at once, by chance, which would hide what the worker keeps.
const LARGE_EVERY: usize = 250;
const LARGE: usize = 10 * 1024 * 1024;

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ok,
    /// `invalid_request`
    Invalid,
    /// Anything else.
    Other,
}

/// A message, and what has to become of it.
pub(super) struct Message {
    pub(super) number: i64,
    pub(super) what: &'static str,
    pub(super) routing_key: &'static str,
    pub(super) body: Vec<u8>,
    pub(super) properties: BasicProperties,
    /// The correlation id of the reply that has to come, if any, and what it says.
    pub(super) reply: Option<(String, Answer)>,
    /// Whether it goes to the dead letters.
    pub(super) is_refused: bool,
}

/// A body, and whether a worker has to take it where that is known by the way it is made.
struct Body {
    what: &'static str,
    routing_key: &'static str,
    bytes: Vec<u8>,
    is_right: Option<bool>,
}

/// Where the reply shall go.
#[derive(Debug, Clone, Copy)]
enum ReplyTo {
    Us,
    NoQueue,
    /// Where no reply may go.
    Unfit,
    Missing,
}

/// Makes the same messages from the same seed.
pub(super) struct Generator {
    runner: TestRunner,
    host: String,
    reply_to: String,
    users: Vec<String>,
}

impl Generator {
    pub(super) fn new(seed: u64, host: &str, reply_to: &str, users: &[String]) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let runner = TestRunner::new_with_rng(Config::default(), rng);
        Self { runner, host: host.to_owned(), reply_to: reply_to.to_owned(), users: users.to_vec() }
    }

    /// A request that is right and gets a token.
    pub(super) fn good(&mut self, number: usize) -> Message {
        let user = self.pick(select(self.users.clone()));
        let body = json!({"user_id": user, "host": self.host}).to_string().into_bytes();
        let id = format!("good-{number}");
        let number = -1 - i64::try_from(number).unwrap();
        let properties = BasicProperties::default()
            .with_reply_to(self.reply_to.as_str().into())
            .with_correlation_id(id.as_str().into())
            .with_headers(numbered(number));
        let reply = Some((id, Answer::Ok));
        Message {
            number,
            what: "good",
            routing_key: TOKEN_REQUEST,
            body,
            properties,
            reply,
            is_refused: false,
        }
    }

    pub(super) fn hostile(&mut self, number: usize, oracle: &Oracle) -> Message {
        let is_large = number < HOSTILE / 2 && number % LARGE_EVERY == LARGE_EVERY / 2;
        let body = if is_large { self.large() } else { self.body() };
        let is_right = body.is_right.unwrap_or_else(|| oracle.takes(body.routing_key, &body.bytes));
        let number = i64::try_from(number).unwrap();
        let (properties, id, to) = self.properties(number);
        let needs_reply_to = ![TOKEN_STORE, TOKEN_REPORT].contains(&body.routing_key);
        // It is not repeated either: the reply has no id then.
        let (properties, id, steers) = match self.pick(0..20_u8) {
            0 => (properties.with_correlation_id("c\u{1b}[2J\n".into()), String::new(), true),
            1 => (properties.with_message_id("m\u{9b}2J\u{202e}".into()), String::new(), true),
            _ => (properties, id, false),
        };
        let is_refused = match to {
            ReplyTo::Us | ReplyTo::NoQueue => !is_right || steers,
            ReplyTo::Unfit => true,
            ReplyTo::Missing => !is_right || steers || needs_reply_to,
        };
        let answer = if is_refused { Answer::Invalid } else { Answer::Other };
        let reply = matches!(to, ReplyTo::Us).then_some((id, answer));
        let Body { what, routing_key, bytes: body, .. } = body;
        Message { number, what, routing_key, body, properties, reply, is_refused }
    }

    fn pick<T>(&mut self, strategy: impl Strategy<Value = T>) -> T {
        strategy.new_tree(&mut self.runner).expect("it rejects nothing").current()
    }

    // --- Bodies ---

    fn body(&mut self) -> Body {
        match self.pick(0..100_u8) {
            0..45 => self.wrong_field(),
            45..75 => self.flipped(),
            75..85 => self.random(),
            85..90 => self.repeated_field(),
            90..95 => self.nested(),
            _ => self.just_too_large(),
        }
    }

    /// An object that is right. Its user is nobody's.
    fn right(&mut self, routing_key: &str) -> Value {
        let user = format!("h-{}", self.pick(0..1_000_u32));
        let host = if self.pick(any::<bool>()) { self.host.clone() } else { "git.example.org".to_owned() };
        match routing_key {
            TOKEN_REQUEST => json!({"user_id": user, "host": host, "requested_lifetime_secs": 300}),
            TOKEN_REPORT => json!({"user_id": user, "host": host, "token_sha256": "0f".repeat(32)}),
            WORKSPACE_START => json!({
                "workspace_id": "ws-1", "user_id": user, "requested_lifetime_secs": 600,
                "repositories": [format!("https://{host}/scm/p/r.git"), "git@git.example.org:o/r.git"],
            }),
            _ => json!({
                "user_id": user, "host": host, "auth_id": "jdoe", "auth_name": "J. Doe",
                "token": {"value": "t-0123456789", "username": "x", "scopes": ["repo"]},
            }),
        }
    }

    fn routing_key(&mut self) -> &'static str {
        self.pick(select(vec![TOKEN_REQUEST, WORKSPACE_START, TOKEN_STORE, TOKEN_REPORT]))
    }

    /// One or two fields with a value that they may or may not have, or without one.
    fn wrong_field(&mut self) -> Body {
        let routing_key = self.routing_key();
        let mut body = self.right(routing_key);
        for _ in 0..self.pick(1..3_u8) {
            let inner = routing_key == TOKEN_STORE && self.pick(any::<bool>());
            let fields = if inner { &mut body["token"] } else { &mut body };
            // The first change may have put something else there.
            let Value::Object(fields) = fields else { continue };
            let known: &[&str] = match (routing_key, inner) {
                (_, true) => &[
                    "value",
                    "refresh_token",
                    "username",
                    "scopes",
                    "expires_at",
                    "refresh_token_expires_at",
                ],
                (TOKEN_REQUEST, _) => &["user_id", "host", "requested_lifetime_secs"],
                (TOKEN_REPORT, _) => &["user_id", "host", "token_sha256"],
                (WORKSPACE_START, _) => {
                    &["workspace_id", "user_id", "repositories", "requested_lifetime_secs"]
                }
                _ => &["user_id", "host", "auth_id", "auth_name", "token"],
            };
            let field = self.pick(select(known.to_vec()));
            let value = self.pick(strange_value());
            if self.pick(0..6_u8) == 0 {
                fields.remove(field);
            } else {
                fields.insert(field.to_owned(), value);
            }
        }
        Body {
            what: "a field with a strange value",
            routing_key,
            bytes: body.to_string().into_bytes(),
            is_right: None,
        }
    }

    /// Some bytes of a right body changed, taken out, doubled or put in.
    fn flipped(&mut self) -> Body {
        // Not of a clone URL, about which the schema says nothing.
        let routing_key = self.pick(select(vec![TOKEN_REQUEST, TOKEN_STORE, TOKEN_REPORT]));
        let mut bytes = self.right(routing_key).to_string().into_bytes();
        for _ in 0..self.pick(1..6_u8) {
            if bytes.is_empty() {
                break;
            }
            let at = self.pick(any::<Index>()).index(bytes.len());
            match self.pick(0..5_u8) {
                0 => bytes[at] ^= 1 << self.pick(0..8_u8),
                1 => bytes[at] = self.pick(any::<u8>()),
                2 => drop(bytes.remove(at)),
                3 => bytes.insert(at, self.pick(any::<u8>())),
                _ => bytes.truncate(at),
            }
        }
        Body { what: "flipped bytes", routing_key, bytes, is_right: None }
    }

    fn random(&mut self) -> Body {
        let bytes = self.pick(vec(any::<u8>(), 0..400));
        Body { what: "random bytes", routing_key: self.routing_key(), bytes, is_right: None }
    }

    fn repeated_field(&mut self) -> Body {
        let routing_key = self.routing_key();
        let right = self.right(routing_key).to_string();
        let again = format!("{{\"user_id\":\"again\",{}", &right[1..]);
        Body {
            what: "a field that comes twice",
            routing_key,
            bytes: again.into_bytes(),
            is_right: Some(false),
        }
    }

    /// Deep nesting: in a field that is not looked at it is no harm, elsewhere it is not taken.
    fn nested(&mut self) -> Body {
        let routing_key = self.routing_key();
        let depth = self.pick(select(vec![100, 127, 128, 129, 5_000, 30_000]));
        let (open, close) = self.pick(select(vec![("[", "]"), ("{\"a\":", "}")]));
        let depth = if open.len() == 1 { depth } else { depth.min(10_000) };
        let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        let right = self.right(routing_key).to_string();
        let (text, is_right) = match self.pick(0..3_u8) {
            0 => (format!("{{\"later\":{deep},{}", &right[1..]), true),
            1 => (
                format!("{{\"host\":{deep},\"user_id\":\"u\",\"workspace_id\":{deep},\"repositories\":[]}}"),
                false,
            ),
            // Never closed.
            _ => (format!("{{\"later\":{},{}", open.repeat(depth), &right[1..]), false),
        };
        let is_right = is_right && text.len() <= max_body_bytes(routing_key);
        Body { what: "deep nesting", routing_key, bytes: text.into_bytes(), is_right: Some(is_right) }
    }

    fn just_too_large(&mut self) -> Body {
        let routing_key = self.routing_key();
        let right = self.right(routing_key).to_string();
        let over: usize = self.pick(0..3_usize);
        let most = max_body_bytes(routing_key);
        let fill = most + over - right.len() - "\"x\":\"\",".len();
        let text = format!("{{\"x\":\"{}\",{}", "y".repeat(fill), &right[1..]);
        assert_eq!(text.len(), most + over);
        let bytes = text.into_bytes();
        Body { what: "as large as may be, and a little", routing_key, bytes, is_right: Some(over == 0) }
    }

    fn large(&mut self) -> Body {
        let routing_key = self.routing_key();
        let right = self.right(routing_key).to_string();
        let bytes = match self.pick(0..4_u8) {
            0 => vec![self.pick(any::<u8>()); LARGE],
            1 => format!("{{\"x\":\"{}\",{}", "y".repeat(LARGE), &right[1..]).into_bytes(),
            2 => b"[".repeat(LARGE),
            _ => format!("{{\"x\":{},{}", "{\"a\":".repeat(LARGE / 5), &right[1..]).into_bytes(),
        };
        Body { what: "10 MiB", routing_key, bytes, is_right: Some(false) }
    }

    // --- Properties ---

    /// Properties, and by which id a reply comes to where.
    fn properties(&mut self, number: i64) -> (BasicProperties, String, ReplyTo) {
        let mut properties = BasicProperties::default();
        let mut headers = numbered(number);
        let padded = |name: &str| {
            format!("{name}-{number}-").chars().chain(std::iter::repeat('é')).take(130).collect::<String>()
        };
        let long = |name: &str| -> String {
            let mut text = padded(name);
            while text.len() > 255 {
                text.pop();
            }
            text
        };
        let id = match self.pick(0..20_u8) {
            0 => String::new(),
            1..4 => {
                properties = properties.with_message_id(long("m").into());
                long("m")
            }
            4..8 => {
                properties = properties.with_correlation_id(long("c").into());
                long("c")
            }
            _ => {
                properties = properties.with_correlation_id(format!("c-{number}").into());
                format!("c-{number}")
            }
        };
        let to = match self.pick(0..20_u8) {
            0 => ReplyTo::Missing,
            1 => ReplyTo::NoQueue,
            2 => ReplyTo::Unfit,
            _ => ReplyTo::Us,
        };
        properties = match to {
            ReplyTo::Us => properties.with_reply_to(self.reply_to.as_str().into()),
            ReplyTo::NoQueue => {
                let nowhere = ["nowhere", "/queues/nowhere", &"n".repeat(255)].map(str::to_owned);
                properties.with_reply_to(self.pick(select(nowhere.to_vec())).as_str().into())
            }
            ReplyTo::Unfit => {
                let unfit = ["amq.rabbitmq.reply-to.g1h2AA", "amq.gen-x", "nowhere\0\n", "a\u{202e}b"];
                properties.with_reply_to(self.pick(select(unfit.to_vec())).into())
            }
            ReplyTo::Missing if self.pick(any::<bool>()) => properties.with_reply_to("".into()),
            ReplyTo::Missing => properties,
        };
        if self.pick(0..4_u8) == 0 {
            let text = self.pick(select(vec![
                "é".repeat(127),
                "\u{1b}[2J\n".to_owned(),
                "application/xml".to_owned(),
            ]));
            properties = properties
                .with_content_type(text.as_str().into())
                .with_content_encoding(text.as_str().into())
                .with_type(text.as_str().into())
                .with_app_id(text.as_str().into())
                .with_cluster_id(text.as_str().into())
                .with_priority(self.pick(any::<u8>()))
                .with_delivery_mode(self.pick(1..3_u8));
        }
        if self.pick(0..4_u8) == 0 {
            let times = vec![0, 1, 1_577_840_700, i64::MAX as u64, u64::MAX, u64::MAX / 1000, 99_999_999_999];
            properties = properties.with_timestamp(self.pick(select(times)));
        }
        if self.pick(0..8_u8) == 0 {
            // None so short that the broker would drop the message before anybody sees it.
            let lifetimes = vec!["4294967295", "86400000", "3600000"];
            properties = properties.with_expiration(self.pick(select(lifetimes)).into());
        }
        if self.pick(0..3_u8) == 0 {
            for (name, value) in self.pick(strange_headers()) {
                headers.insert(name.as_str().into(), value);
            }
        }
        (properties.with_headers(headers), id, to)
    }
}

fn numbered(number: i64) -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert(HEADER.into(), AMQPValue::LongLongInt(number));
    headers
}
