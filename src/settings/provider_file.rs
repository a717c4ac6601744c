//! The provider file of `tokenkeeper provider apply` (docs/contract.md, Providers): TOML into [`ProviderRecord`]s.
//!
//! An error lists every mistake. It repeats no value, because any value may be a secret, but the name of a missing variable or
//! file that looks like one. [`SecretSource`] reads the environment variables and files that the file names.

mod block;
mod client_secret;
mod error;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use self::block::Block;
pub use self::error::{Problem, ProviderFileError};
use super::error::NotToml;
use crate::domain::provider::ProviderRecord;

/// Where the secrets are that a provider file only points at.
pub trait SecretSource {
    /// The value of an environment variable, where it is set.
    fn variable(&self, name: &str) -> Option<String>;
    /// The text of a file.
    fn file(&self, path: &Path) -> io::Result<String>;
}

/// Reads a provider file: one record for each `[[provider]]` block, in order.
///
/// # Errors
/// [`ProviderFileError`] with everything that is wrong. No record comes out of a file with a mistake in it.
pub fn parse(text: &str, secrets: &dyn SecretSource) -> Result<Vec<ProviderRecord>, ProviderFileError> {
    let file: Map<String, Value> = toml::from_str(text).map_err(|error| NotToml::new(text, &error))?;
    let mut problems = Vec::new();
    let mut records = Vec::new();
    let mut hosts: Vec<(usize, String)> = Vec::new();
    for (number, table) in (1..).zip(blocks(file, &mut problems)) {
        let mut block = Block::new(number, table);
        let record = block.read(secrets);
        let own = block.host().map(str::to_owned);
        let others = record.as_ref().map(|record| record.overrides.other_hosts.clone()).unwrap_or_default();
        let own = own.into_iter().map(|host| ("host", host));
        for (key, host) in own.chain(others.into_iter().map(|host| ("other_hosts", host))) {
            if let Some((first, _)) = hosts.iter().find(|(_, earlier)| *earlier == host) {
                block.problem(key, format!("has {host}, which provider {first} has already"));
            }
            hosts.push((number, host));
        }
        records.extend(record);
        problems.extend(block.into_problems());
    }
    if problems.is_empty() { Ok(records) } else { Err(ProviderFileError::Invalid(problems)) }
}

/// Whether a client secret stands in the file itself.
pub fn holds_secret(text: &str) -> bool {
    let file: Map<String, Value> = toml::from_str(text).unwrap_or_default();
    let blocks = file.get(BLOCKS).and_then(Value::as_array);
    blocks.is_some_and(|blocks| blocks.iter().any(|block| block.get("client_secret").is_some()))
}

const BLOCKS: &str = "provider";

fn blocks(mut file: Map<String, Value>, problems: &mut Vec<Problem>) -> Vec<Map<String, Value>> {
    let mut wrong = |key: &str, text: &str| {
        problems.push(Problem { block: "the file".into(), key: key.into(), text: text.into() });
    };
    for key in file.keys().filter(|key| *key != BLOCKS) {
        wrong(key, "is not a key here; every setting stands in a [[provider]] block");
    }
    let entries = match file.remove(BLOCKS) {
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            wrong(BLOCKS, "must be a list: write [[provider]] with two brackets above each block");
            return Vec::new();
        }
        None => Vec::new(),
    };
    let count = entries.len();
    let table = |entry| if let Value::Object(table) = entry { Some(table) } else { None };
    let tables: Vec<_> = entries.into_iter().filter_map(table).collect();
    if tables.is_empty() || tables.len() < count {
        wrong(BLOCKS, "must be at least one [[provider]] block, and nothing else");
    }
    tables
}
