//! `tokenkeeper schema`

mod asyncapi;
mod examples;
mod portable;

use std::collections::BTreeMap;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::Value;
use tokenkeeper::contract::{
    Event, ReportReply, ReportRequest, SealedContent, StoreMessage, StoreReply, TokenReply, TokenRequest,
    WorkspaceStartReply, WorkspaceStartRequest,
};

use self::examples::Example;
use self::portable::{Ordered, Portable};
use super::output::Output;
use super::{Ending, Failure};

/// Prints the contract for programs: JSON Schemas (draft 2020-12) or an AsyncAPI document
///
/// `token.sealed` is what lies in the sealed box of a reply. Without a name it prints one schema with all messages as definitions.
/// They are generated from the types that the worker reads and writes, and also lie in docs/schema/ and docs/asyncapi.yaml.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper schema token.request
  tokenkeeper schema | jq '.properties | keys'
  tokenkeeper schema --format asyncapi > asyncapi.yaml
  tokenkeeper schema --format examples | jq '.\"token.reply\"[].body'")]
pub(crate) struct Arguments {
    /// Which message
    #[arg(value_name = "NAME")]
    name: Option<Message>,
    /// What to print
    #[arg(long, value_name = "FORMAT", default_value = "json-schema")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON Schema, in JSON
    JsonSchema,
    /// AsyncAPI 3.0 with channels, operations and examples, in YAML; of all messages
    Asyncapi,
    /// Examples of each message, in JSON
    Examples,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    TokenRequest,
    WorkspaceStart,
    TokenStore,
    TokenReport,
    TokenReply,
    WorkspaceStartReply,
    TokenStoreReply,
    TokenReportReply,
    TokenSealed,
    Event,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Ending, Failure> {
    let mut output = Output::new();
    match (arguments.format, arguments.name) {
        (Format::JsonSchema, Some(message)) => output.json(&Ordered(&document(message)?))?,
        (Format::JsonSchema, None) => output.json(&Ordered(&portable::bundle(&all())))?,
        (Format::Examples, message) => output.json(&Ordered(&examples_of(message)?))?,
        (Format::Asyncapi, None) => output.text(&asyncapi::yaml()?)?,
        (Format::Asyncapi, Some(_)) => {
            return Err(Failure::Usage(anyhow::anyhow!(
                "an AsyncAPI document has all messages: leave the name out"
            )));
        }
    }
    Ok(Ending::Good)
}

impl Message {
    /// As the contract calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::TokenRequest => "token.request",
            Self::WorkspaceStart => "workspace.start",
            Self::TokenStore => "token.store",
            Self::TokenReport => "token.report",
            Self::TokenReply => "token.reply",
            Self::WorkspaceStartReply => "workspace.start.reply",
            Self::TokenStoreReply => "token.store.reply",
            Self::TokenReportReply => "token.report.reply",
            Self::TokenSealed => "token.sealed",
            Self::Event => "event",
        }
    }
}

/// By hand, so that the names stand in one place.
impl ValueEnum for Message {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::TokenRequest,
            Self::WorkspaceStart,
            Self::TokenStore,
            Self::TokenReport,
            Self::TokenReply,
            Self::WorkspaceStartReply,
            Self::TokenStoreReply,
            Self::TokenReportReply,
            Self::TokenSealed,
            Self::Event,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

fn all() -> Vec<Portable> {
    Message::value_variants().iter().copied().map(portable).collect()
}

fn portable(message: Message) -> Portable {
    Portable::of(message.name(), schema(message))
}

/// The schema of one message, with its examples.
fn document(message: Message) -> anyhow::Result<Value> {
    let examples = examples::all()?.into_iter().filter(|example| example.message == message);
    Ok(portable(message).document(examples.map(|example| example.body).collect()))
}

/// The examples of one message, or of all, under the messages' names.
fn examples_of(message: Option<Message>) -> anyhow::Result<Value> {
    let mut named: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let wanted = |example: &Example| message.is_none_or(|message| message == example.message);
    for example in examples::all()?.into_iter().filter(wanted) {
        let Example { message, name, summary, body } = example;
        let example = serde_json::json!({"name": name, "summary": summary, "body": body});
        named.entry(message.name()).or_default().push(example);
    }
    Ok(serde_json::to_value(named)?)
}

fn schema(message: Message) -> Schema {
    match message {
        Message::TokenRequest => as_read::<TokenRequest>(),
        Message::WorkspaceStart => as_read::<WorkspaceStartRequest>(),
        Message::TokenStore => as_read::<StoreMessage>(),
        Message::TokenReport => as_read::<ReportRequest>(),
        Message::TokenReply => as_written::<TokenReply>(),
        Message::WorkspaceStartReply => as_written::<WorkspaceStartReply>(),
        Message::TokenStoreReply => as_written::<StoreReply>(),
        Message::TokenReportReply => as_written::<ReportReply>(),
        Message::TokenSealed => as_written::<SealedContent<'_>>(),
        Message::Event => as_written::<Event>(),
    }
}

/// For what a worker reads: fields with a default are optional.
fn as_read<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>()
}

/// For what a worker writes: fields that are always there are required.
fn as_written<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

#[cfg(test)]
mod tests;
