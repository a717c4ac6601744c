//! `tokenkeeper schema`

use std::collections::BTreeMap;

use clap::ValueEnum;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use tokenkeeper::contract::{
    Event, ReportReply, ReportRequest, SealedContent, StoreMessage, StoreReply, TokenReply, TokenRequest,
    WorkspaceStartReply, WorkspaceStartRequest,
};

use super::output::Output;
use super::{Ending, Failure};

/// Prints the JSON Schema (draft 2020-12) of messages, replies and events
///
/// `token.sealed` is what lies in the sealed box of a reply. Without a name it prints an object with all schemas. They are generated from the types that the worker reads and
/// writes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper schema token.request
  tokenkeeper schema | jq 'keys'")]
pub(crate) struct Arguments {
    /// Which message
    #[arg(value_name = "NAME")]
    name: Option<Message>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Message {
    #[value(name = "token.request")]
    TokenRequest,
    #[value(name = "workspace.start")]
    WorkspaceStart,
    #[value(name = "token.store")]
    TokenStore,
    #[value(name = "token.report")]
    TokenReport,
    #[value(name = "token.reply")]
    TokenReply,
    #[value(name = "workspace.start.reply")]
    WorkspaceStartReply,
    #[value(name = "token.store.reply")]
    TokenStoreReply,
    #[value(name = "token.report.reply")]
    TokenReportReply,
    #[value(name = "token.sealed")]
    TokenSealed,
    #[value(name = "event")]
    Event,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Ending, Failure> {
    let mut output = Output::new();
    match arguments.name {
        Some(name) => output.json(&schema(name))?,
        None => output.json(&all())?,
    }
    Ok(Ending::Good)
}

fn all() -> BTreeMap<String, Schema> {
    let named =
        |message: &Message| Some((message.to_possible_value()?.get_name().to_owned(), schema(*message)));
    Message::value_variants().iter().filter_map(named).collect()
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
