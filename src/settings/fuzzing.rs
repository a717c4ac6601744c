//! Fuzzing: what operators write.

#![allow(clippy::missing_panics_doc, reason = "to panic is how a fuzzer reports")]

use std::collections::HashMap;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::provider_file::{SecretSource, parse};
use super::{Reader, Settings, SettingsError, Sources};
use crate::domain::secret::fuzzing::{MARK, assert_untold};

/// Keys whose values are secrets, or have some in them. What stands behind other keys is repeated in errors.
const SECRET_KEYS: [&str; 5] = ["url", "urls", "keys", "token", "password"];

/// The input is a settings file, a NUL, and environment variables: `NAME=VALUE` in a line each.
pub fn settings(input: &[u8]) {
    let Ok(input) = str::from_utf8(input) else { return };
    let (file, variables) = input.split_once('\0').unwrap_or((input, ""));
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    let variables: HashMap<String, String> =
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let table = file.parse::<toml::Table>().ok().and_then(|table| serde_json::to_value(table).ok());
    // They would be read, or run: whatever file or program of this machine.
    let names_keys_file = |name: &str| {
        let name = name.to_lowercase();
        name.ends_with("_file") || name.ends_with("keys_command")
    };
    if variables.keys().any(|name| names_keys_file(name))
        || table.as_ref().is_some_and(|table| has_key(table, &names_keys_file))
    {
        return;
    }
    let read = || -> Result<Settings, SettingsError> {
        let mut reader = Reader::new(Sources::of(Some((Path::new("fuzz.toml"), file)), variables.clone())?);
        let settings = Settings::read(&mut reader);
        reader.finish()?;
        Ok(settings)
    };
    let told = match read() {
        Ok(settings) => {
            let (refresh, worker) = (&settings.refresh, &settings.worker);
            assert!(
                refresh.wait <= worker.request_budget && refresh.connect_timeout <= refresh.total_timeout
            );
            format!("{settings:?} {} {}", settings.broker.display_url(), settings.database.display_url())
        }
        Err(error) => format!("{error} {error:?}"),
    };
    // Secrets stand behind keys that are made for them, and nowhere else.
    let elsewhere = table.as_ref().is_some_and(|table| marked_outside(table, false))
        || variables
            .iter()
            .any(|(name, value)| name.contains(MARK) || value.contains(MARK) && !is_secret_name(name))
        || is_shown_of_a_url(input);
    if !elsewhere {
        assert_untold(&told, MARK);
    }
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    ["amqp_url", "database_url", "tokenkeeper_keys"].contains(&name.as_str())
        || SECRET_KEYS.iter().any(|key| name.rsplit("__").next() == Some(key))
}

/// Whether the mark stands in a part of a URL that is shown: before the password or behind it.
fn is_shown_of_a_url(input: &str) -> bool {
    input.match_indices(MARK).any(|(at, _)| {
        let (before, behind) = (&input[..at], &input[at + MARK.len()..]);
        // Where it does not stand as `:…s3cr3t…@`, it may be anything.
        let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let in_password = before.rsplit_once(':').is_some_and(|(_, rest)| is_word(rest))
            && behind.split_once('@').is_some_and(|(rest, _)| is_word(rest));
        let line = before.rsplit('\n').next().unwrap_or_default();
        line.contains("://") && !in_password || line.contains("url") && !line.contains("://")
    })
}

fn has_key(value: &Value, wanted: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, value)| wanted(name) || has_key(value, wanted)),
        Value::Array(items) => items.iter().any(|item| has_key(item, wanted)),
        _ => false,
    }
}

/// Whether the mark stands in a name, or in a value that is repeated.
fn marked_outside(value: &Value, is_secret: bool) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            name.contains(MARK) || marked_outside(value, is_secret || SECRET_KEYS.contains(&name.as_str()))
        }),
        Value::Array(items) => items.iter().any(|item| marked_outside(item, is_secret)),
        Value::String(text) => text.contains(MARK) && !is_secret,
        _ => false,
    }
}

/// What a provider file may point at.
struct Outside;

impl SecretSource for Outside {
    fn variable(&self, name: &str) -> Option<String> {
        (name == "SET").then(|| format!("{MARK}-of-a-variable"))
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        let read = || format!("{MARK}-of-a-file\n");
        (path == Path::new("there.txt")).then(read).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Keys whose values an error may repeat: hosts, and names that look like no secret.
const REPEATED: [&str; 4] = ["host", "other_hosts", "client_secret_env", "client_secret_file"];

/// The input is a provider file.
pub fn provider_files(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let table = text.parse::<toml::Table>().ok().and_then(|table| serde_json::to_value(table).ok());
    match parse(text, &Outside) {
        Ok(records) => {
            assert!(!records.is_empty());
            for record in records {
                let url = record.token_url.as_ref();
                assert!(url.is_none_or(|url| url.password().is_none() && url.username().is_empty()));
                assert!(!record.host.is_empty() && !record.host.contains(['@', '/', ' ']), "{}", record.host);
                assert!((1..=255).contains(&record.client_id.len()) && record.spare_client_secrets.len() < 4);
                assert_untold(&format!("{:?}", record.client_secret), MARK);
            }
        }
        Err(error) => {
            let names = |name: &str| name.contains(MARK);
            let is_named =
                table.as_ref().is_none_or(|table| has_key(table, &names) || is_repeated(table, false));
            if !is_named {
                assert_untold(&format!("{error} {error:?}"), MARK);
            }
        }
    }
}

/// Whether the mark stands behind a key whose value is repeated.
fn is_repeated(value: &Value, here: bool) -> bool {
    match value {
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| is_repeated(value, here || REPEATED.contains(&name.as_str())))
        }
        Value::Array(items) => items.iter().any(|item| is_repeated(item, here)),
        Value::String(text) => here && text.contains(MARK),
        _ => false,
    }
}
