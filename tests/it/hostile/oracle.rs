//! Who says whether a body is right: the JSON Schema that the command line publishes, and not the worker's decoder.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use tokenkeeper_testkit::queues::{TOKEN_REPORT, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};
use tokenkeeper_testkit::schema::Validator;

use crate::cli::Cli;

/// The contract's limit.
pub(super) fn max_body_bytes(routing_key: &str) -> usize {
    if routing_key == TOKEN_STORE { 128 * 1024 } else { 64 * 1024 }
}

pub(super) struct Oracle {
    of: HashMap<&'static str, Validator>,
}

impl Oracle {
    pub(super) async fn from_published_schemas(cli: &Cli) -> Self {
        let mut of = HashMap::new();
        for name in [TOKEN_REQUEST, WORKSPACE_START, TOKEN_STORE, TOKEN_REPORT] {
            of.insert(name, Validator::of(cli.run(&["schema", name]).await.good().json()));
        }
        Self { of }
    }

    /// Whether a worker has to take this body.
    pub(super) fn takes(&self, routing_key: &str, body: &[u8]) -> bool {
        if body.len() > max_body_bytes(routing_key) || std::str::from_utf8(body).is_err() {
            return false;
        }
        let Ok(value) = serde_json::from_slice::<Value>(body) else { return false };
        // What a schema cannot say: a field comes once.
        let fields = serde_json::from_slice::<FieldNames>(body).map(|names| names.0).unwrap_or_default();
        let twice = |known: &&str| fields.iter().filter(|name| name == known).count() > 1;
        let known = [
            "user_id",
            "host",
            "workspace_id",
            "repositories",
            "requested_lifetime_secs",
            "token",
            "token_sha256",
            "auth_id",
            "auth_name",
        ];
        !known.iter().any(twice) && self.of[routing_key].takes(&value)
    }
}

/// The names of an object's fields, as often as they come.
struct FieldNames(Vec<String>);

impl<'de> Deserialize<'de> for FieldNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = FieldNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<FieldNames, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = fields.next_entry::<String, IgnoredAny>()? {
                    names.push(name);
                }
                Ok(FieldNames(names))
            }
        }

        deserializer.deserialize_map(Names)
    }
}
