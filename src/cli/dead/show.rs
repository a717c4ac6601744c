//! `tokenkeeper dead show`

use std::borrow::Cow;

use anyhow::anyhow;
use comfy_table::Table;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokenkeeper::broker::dead_letters::{Letter, Unopened, is_ours};
use tokenkeeper::contract::RedactedBody;
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::settings::Broker;

use super::summary::Summary;
use super::{open, progress};
use crate::cli::output::{Output, cell, key_value_table, note, or_nothing};
use crate::cli::relative::date_and_distance;
use crate::cli::{Ending, Failure};

/// Shows one dead letter: properties, headers and body, without secrets
///
/// Of the body only the contract's fields are shown. Tokens are left out, and so is everything unexpected, because it
/// may be a token. A body that is not a JSON object is not shown, and neither are texts in unknown headers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tokenkeeper dead show 5f0c2a9be1d37746")]
pub(crate) struct Arguments {
    /// As `dead list` shows it
    #[arg(value_name = "ID")]
    id: String,
    /// Prints a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    summary: Summary,
    properties: Map<String, Value>,
    headers: Map<String, Value>,
    /// `None`: not a JSON object, or sealed.
    body: Option<Value>,
    /// Why there is no body.
    body_hint: Option<String>,
}

pub(super) async fn run(
    settings: &Broker,
    keys: Option<&KeyRing>,
    arguments: &Arguments,
) -> Result<Ending, Failure> {
    let Arguments { id, json } = arguments;
    let mut letters = open(settings).await?;
    let bar = progress(&letters);
    let (mut shown, mut twins) = (None, 0);
    while let Some(letter) = letters.next().await? {
        bar.inc(1);
        if letter.id() == *id {
            match shown {
                None => shown = Some(Shown::of(&letter, letter.open(keys))),
                Some(_) => twins += 1,
            }
        }
    }
    bar.finish_and_clear();
    letters.close().await?;
    let missing = || anyhow!("no dead letter has the ID {id}; `tokenkeeper dead list` lists them");
    let (shown, unopened) = shown.ok_or_else(missing)?;
    let mut output = Output::new();
    if *json {
        output.json(&shown)?;
    } else {
        output.table(rows(&shown, SystemClock.now()))?;
    }
    if twins > 0 {
        note(format_args!("This is the oldest letter with this ID; there are {twins} more."));
    }
    if let Some(unopened) = unopened {
        return Err(anyhow!(unopened).context("the body cannot be shown").into());
    }
    Ok(Ending::Good)
}

impl Shown {
    fn of(letter: &Letter, body: Result<Cow<'_, [u8]>, Unopened>) -> (Self, Option<Unopened>) {
        let summary = Summary::of(letter, body.as_deref().ok());
        let (shown, unopened) = match body {
            Ok(body) => (RedactedBody::of(&body), None),
            Err(unopened) => (RedactedBody::Other("sealed".to_owned()), Some(unopened)),
        };
        let (body, body_hint) = match shown {
            RedactedBody::Object(body) => (Some(body), None),
            RedactedBody::Other(hint) => (None, Some(hint)),
        };
        let shown = Self {
            summary,
            properties: properties(letter.properties()),
            headers: headers(letter.properties().headers().as_ref()),
            body,
            body_hint,
        };
        (shown, unopened)
    }
}

fn properties(properties: &BasicProperties) -> Map<String, Value> {
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| json!(text.as_str()));
    let number = |value: Option<u8>| value.map(|number| json!(number));
    let named = [
        ("content_type", text(properties.content_type())),
        ("content_encoding", text(properties.content_encoding())),
        ("delivery_mode", number(*properties.delivery_mode())),
        ("priority", number(*properties.priority())),
        ("correlation_id", text(properties.correlation_id())),
        ("reply_to", text(properties.reply_to())),
        ("expiration", text(properties.expiration())),
        ("message_id", text(properties.message_id())),
        ("timestamp", properties.timestamp().map(date)),
        ("type", text(properties.kind())),
        ("user_id", text(properties.user_id())),
        ("app_id", text(properties.app_id())),
        ("cluster_id", text(properties.cluster_id())),
    ];
    named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn headers(headers: Option<&FieldTable>) -> Map<String, Value> {
    let known = |name: &str| {
        is_ours(name)
            || name.starts_with("x-tokenkeeper-")
            || matches!(name, "traceparent" | "x-delivery-count")
    };
    let headers = headers.into_iter().flat_map(FieldTable::inner);
    headers.map(|(name, value)| (name.to_string(), header(value, known(name.as_str())))).collect()
}

/// An unknown header may hold anything: a number is shown, a text is not.
fn header(value: &AMQPValue, known: bool) -> Value {
    let hidden = |bytes: usize| json!(format!("[not shown: {bytes} bytes]"));
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(value) => json!(value),
        AMQPValue::ShortShortUInt(value) => json!(value),
        AMQPValue::ShortInt(value) => json!(value),
        AMQPValue::ShortUInt(value) => json!(value),
        AMQPValue::LongInt(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Float(value) => json!(value),
        AMQPValue::Double(value) => json!(value),
        AMQPValue::DecimalValue(value) => json!(format!("{} / 10^{}", value.value, value.scale)),
        AMQPValue::Timestamp(secs) => date(*secs),
        AMQPValue::LongString(text) if known => json!(text.to_string()),
        AMQPValue::LongString(text) => hidden(text.as_bytes().len()),
        AMQPValue::ShortString(text) if known => json!(text.as_str()),
        AMQPValue::ShortString(text) => hidden(text.as_str().len()),
        AMQPValue::ByteArray(bytes) => hidden(bytes.as_slice().len()),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(|item| header(item, known)).collect(),
        AMQPValue::FieldTable(fields) => {
            let fields = fields.inner().iter();
            Value::Object(fields.map(|(name, value)| (name.to_string(), header(value, known))).collect())
        }
        AMQPValue::Void => Value::Null,
    }
}

/// Seconds since 1970. A publisher may have sent any number.
fn date(secs: u64) -> Value {
    match i64::try_from(secs).ok().and_then(|secs| secs.checked_mul(1000)) {
        Some(millis) => json!(Timestamp::from_millis(millis).to_string()),
        None => json!(secs),
    }
}

fn rows(shown: &Shown, now: Timestamp) -> Table {
    let Shown { summary, properties, headers, body, body_hint } = shown;
    let mut rows = key_value_table();
    let mut add = |name: &str, value: String| {
        rows.add_row([cell(name), cell(value)]);
    };
    add("id", summary.id.clone());
    add("when", or_nothing(summary.at.map(|at| date_and_distance(at, now))));
    add("reason", summary.reason.clone());
    add("detail", or_nothing(summary.detail.as_ref()));
    add("type", or_nothing(summary.kind.as_ref()));
    add("user", or_nothing(summary.user_id.as_ref()));
    add("host", or_nothing(summary.hosts()));
    add("workspace", or_nothing(summary.workspace_id.as_ref()));
    add("publisher", or_nothing(summary.publisher.as_ref()));
    add("replays", summary.replays.to_string());
    for (name, value) in properties {
        add(&format!("property {name}"), plain(value));
    }
    for (name, value) in headers {
        add(&format!("header {name}"), plain(value));
    }
    add("body size", format!("{} bytes", summary.bytes));
    let body = body.as_ref().map_or_else(|| or_nothing(body_hint.as_ref()), |body| format!("{body:#}"));
    // The body is the only value of several lines. Each becomes a row.
    for (number, line) in body.lines().enumerate() {
        add(if number == 0 { "body" } else { "" }, line.to_owned());
    }
    rows
}

/// A text without its quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
