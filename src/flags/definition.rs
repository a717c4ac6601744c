//! Checks a flag file before a provider loads it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{FlagsError, OPPORTUNISTIC_TOKEN_REFRESH, WORKSPACE_START_LIFETIME};

/// A flag file that a provider will accept.
pub(super) struct Checked {
    pub(super) defined: Vec<&'static str>,
    /// Those whose answer for a user never changes, because their rules do not mention the time.
    pub(super) cacheable: Vec<&'static str>,
    /// Variants of our flags that are out of range, and what replaces them.
    pub(super) warnings: Vec<String>,
}

/// A file in flagd's format, <https://flagd.dev/reference/flag-definitions/>. Only what the provider requires is
/// checked, so that a file can be shared with other programs.
#[derive(Deserialize)]
struct Definitions {
    flags: BTreeMap<String, Definition>,
    /// Parts of rules, for `$ref`.
    #[serde(default, rename = "$evaluators")]
    evaluators: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Definition {
    #[serde(rename = "state")]
    _state: State,
    variants: BTreeMap<String, Value>,
    default_variant: String,
    #[serde(default)]
    targeting: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum State {
    Enabled,
    Disabled,
}

/// Checks that the provider will accept `text`, and that our flags have values of the right type.
///
/// # Errors
/// [`FlagsError::Definition`] with the place: line and column, the path of the wrong key, or both.
pub(super) fn check(file: &Path, text: &str) -> Result<Checked, FlagsError> {
    let wrong = |place, reason| FlagsError::Definition { file: file.to_owned(), place, reason };
    let Definitions { flags, evaluators } = parse(text).map_err(|(place, reason)| wrong(place, reason))?;
    for (name, flag) in &flags {
        flag.check(name).map_err(|(key, reason)| wrong(format!("flags.{name}.{key}"), reason))?;
    }
    let ours = [OPPORTUNISTIC_TOKEN_REFRESH, WORKSPACE_START_LIFETIME];
    let is_cacheable = |flag: &Definition| ![&flag.targeting, &evaluators].into_iter().any(mentions_time);
    Ok(Checked {
        defined: ours.into_iter().filter(|&flag| flags.contains_key(flag)).collect(),
        cacheable: ours.into_iter().filter(|&flag| flags.get(flag).is_some_and(is_cacheable)).collect(),
        warnings: flags.get(WORKSPACE_START_LIFETIME).map(out_of_range).unwrap_or_default(),
    })
}

/// Whether a rule names the time (`$flagd.timestamp`). A rule that does not is never shown the time: `flag_set` hides
/// it, so that such a rule cannot read it by a path put together from parts.
fn mentions_time(rule: &Value) -> bool {
    rule.to_string().contains("timestamp")
}

fn parse(text: &str) -> Result<Definitions, (String, String)> {
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        place_and_reason(error.inner(), Some(path.as_str()).filter(|path| *path != "."))
    })?;
    json.end().map_err(|error| place_and_reason(&error, None))?;
    Ok(parsed)
}

/// A wrong value has a path. Text that is not JSON has only a line and a column.
fn place_and_reason(error: &serde_json::Error, path: Option<&str>) -> (String, String) {
    let position = format!("line {}, column {}", error.line(), error.column());
    let told = error.to_string();
    let reason = told.rsplit_once(" at line ").map_or(told.as_str(), |(reason, _)| reason);
    let place = match path {
        Some(path) if error.is_data() => format!("{path} ({position})"),
        Some(_) | None => position,
    };
    (place, reason.to_owned())
}

impl Definition {
    /// The error is the wrong key below the flag, and what is expected there.
    fn check(&self, name: &str) -> Result<(), (String, String)> {
        let (right, expected): (fn(&Value) -> bool, _) = match name {
            OPPORTUNISTIC_TOKEN_REFRESH => (Value::is_boolean, "must be true or false"),
            WORKSPACE_START_LIFETIME => (Value::is_i64, "must be a whole number of minutes"),
            _ => (|_| true, "may be anything"),
        };
        if let Some((variant, value)) = self.variants.iter().find(|(_, value)| !right(value)) {
            return Err((format!("variants.{variant}"), format!("{expected}; it is {value}")));
        }
        if self.variants.contains_key(&self.default_variant) {
            return Ok(());
        }
        let variants: Vec<&str> = self.variants.keys().map(String::as_str).collect();
        let reason =
            format!("`{}` is not one of the variants: {}", self.default_variant, variants.join(", "));
        Err(("defaultVariant".to_owned(), reason))
    }
}

fn out_of_range(lifetime: &Definition) -> Vec<String> {
    let minutes = lifetime.variants.iter().filter_map(|(variant, value)| Some((variant, value.as_i64()?)));
    minutes
        .filter(|&(_, minutes)| super::lifetime_of(minutes).is_none())
        .map(|(variant, minutes)| {
            format!(
                "flags.{WORKSPACE_START_LIFETIME}.variants.{variant} is {minutes}, which is not within 1 to 1440 \
                 minutes; its users get the default of 10 minutes"
            )
        })
        .collect()
}
