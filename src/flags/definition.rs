//! Checks a flag file before a provider loads it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{FlagsError, OPPORTUNISTIC_TOKEN_REFRESH, WORKSPACE_START_LIFETIME};
use crate::domain::expected::must_be;

/// A flag file that a provider will accept.
pub(super) struct Checked {
    pub(super) defined: Vec<&'static str>,
    /// Those whose answer for a user never changes, because their rules do not mention the time.
    pub(super) cacheable: Vec<&'static str>,
    /// Variants of our flags that are out of range, and what replaces them. Flags that nobody here knows.
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
    let mut warnings = flags.get(WORKSPACE_START_LIFETIME).map(out_of_range).unwrap_or_default();
    warnings.extend(unknown_flags(flags.keys().map(String::as_str), &ours));
    let is_cacheable = |flag: &Definition| ![&flag.targeting, &evaluators].into_iter().any(mentions_time);
    Ok(Checked {
        defined: ours.into_iter().filter(|&flag| flags.contains_key(flag)).collect(),
        cacheable: ours.into_iter().filter(|&flag| flags.get(flag).is_some_and(is_cacheable)).collect(),
        warnings,
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
    (place, in_plain_words(reason))
}

/// What the parser says, without its own words for what JSON is made of.
fn in_plain_words(reason: &str) -> String {
    if reason.starts_with("EOF") {
        return "the file ends too soon".to_owned();
    }
    must_be(reason).unwrap_or_else(|| reason.to_owned())
}

/// How many flags of other programs a warning names.
const NAMED: usize = 5;

/// Above it, a name is most likely one of ours misspelt (Jaro-Winkler similarity).
const SIMILAR: f64 = 0.85;

/// A line for each flag that looks like one of ours, and one for all the others: a file may be shared with other programs.
fn unknown_flags<'a>(names: impl Iterator<Item = &'a str>, ours: &[&str]) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut foreign = Vec::new();
    for name in names.filter(|name| !ours.contains(name)) {
        let nearest = ours.iter().find(|known| strsim::jaro_winkler(name, known) > SIMILAR);
        match nearest {
            Some(known) => {
                warnings.push(format!("flags.{name} is no flag of tokenkeeper; did you mean `{known}`?"));
            }
            None => foreign.push(name),
        }
    }
    if !foreign.is_empty() {
        let more = if foreign.len() > NAMED { ", …" } else { "" };
        let first = foreign[..foreign.len().min(NAMED)].join(", ");
        let known = ours.join(" and ");
        warnings.push(format!(
            "{} flags are none of tokenkeeper's, which are {known}: {first}{more}",
            foreign.len()
        ));
    }
    warnings
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_flag_is_told_with_the_one_that_was_meant() {
        let ours = [OPPORTUNISTIC_TOKEN_REFRESH, WORKSPACE_START_LIFETIME];
        let told = |names: &[&str]| unknown_flags(names.iter().copied(), &ours);
        assert_eq!(told(&ours), Vec::<String>::new());
        assert_eq!(
            told(&["oportunistic_token_refresh"]),
            [
                "flags.oportunistic_token_refresh is no flag of tokenkeeper; did you mean `opportunistic_token_refresh`?"
            ]
        );
        let others = told(&["a", "b", "c", "d", "e", "f"]);
        assert_eq!(others.len(), 1);
        assert!(
            others[0].starts_with("6 flags are none of tokenkeeper's")
                && others[0].ends_with("a, b, c, d, e, …")
        );
    }
}
