use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{Problem, SettingsError, Source};
use super::sources::{Sources, variable_of};
use super::url::ConnectionUrl;
use crate::domain::secret::{KeyRing, SecretString};

/// Reads one key after the other and goes on after a wrong one, so that an operator is told all of them at once.
///
/// A wrong or missing value is read as its default; [`Reader::finish`] tells whether there was a wrong one.
pub(super) struct Reader {
    sources: Sources,
    known: Vec<&'static str>,
    problems: Vec<Problem>,
}

/// A value as its source has it: numbers and booleans of a file have a type, a variable is always text.
enum Found {
    Typed(Value),
    Text(String),
}

impl Reader {
    pub(super) fn new(sources: Sources) -> Self {
        Self { sources, known: Vec::new(), problems: Vec::new() }
    }

    /// # Errors
    /// Everything that was wrong, keys that nobody asked for included.
    pub(super) fn finish(mut self) -> Result<(), SettingsError> {
        for key in self.sources.keys() {
            if !self.known.contains(&key.as_str()) {
                let text = self.unknown(&key);
                self.problem(&key, &text);
            }
        }
        if self.problems.is_empty() { Ok(()) } else { Err(SettingsError::Invalid(self.problems)) }
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> &[&'static str] {
        &self.known
    }

    pub(super) fn problem(&mut self, key: &str, text: &str) {
        let source = self.sources.source(key);
        self.problems.push(Problem { key: key.to_owned(), source, text: text.to_owned() });
    }

    /// Told only where every value is right by itself, else one mistake would be told twice.
    pub(super) fn at_most(&mut self, (key, value): (&str, Duration), (limit_key, limit): (&str, Duration)) {
        if self.problems.is_empty() && value > limit {
            let source = self.sources.source(limit_key);
            let text =
                format!("is {value:?}, and must not be longer than `{limit_key}` ({source}), {limit:?}");
            self.problem(key, &text);
        }
    }

    pub(super) fn integer<T>(&mut self, key: &'static str, range: RangeInclusive<i64>, default: T) -> T
    where
        T: TryFrom<i64> + Display,
    {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.number(key, &expected, &range, default)
    }

    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
        default: u64,
    ) -> Duration {
        let expected = format!("a whole number of seconds from {} to {}", range.start(), range.end());
        Duration::from_secs(self.number(key, &expected, &range, default))
    }

    pub(super) fn milliseconds(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
        default: u64,
    ) -> Duration {
        let expected = format!("a whole number of milliseconds from {} to {}", range.start(), range.end());
        Duration::from_millis(self.number(key, &expected, &range, default))
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.shown(key, "true or false", |found| match found {
            Found::Typed(value) => value.as_bool(),
            Found::Text(text) => text.parse().ok(),
        })
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        let names: Vec<&str> = choices.iter().map(|&(name, _)| name).collect();
        let expected = format!("one of {}", names.join(", "));
        let choice = self.shown(key, &expected, |found| {
            let text = found.text()?;
            choices.iter().find(|(name, _)| *name == text).map(|&(_, choice)| choice)
        });
        choice.unwrap_or(default)
    }

    /// Text that `fits`; `shape` says which does.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        default: &str,
        fits: fn(&str) -> bool,
        shape: &str,
    ) -> String {
        let text = self.shown(key, shape, |found| found.text().filter(|text| fits(text)).map(str::to_owned));
        text.unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn address(&mut self, key: &'static str, default: SocketAddr) -> SocketAddr {
        let expected =
            format!("an IP address with a port, for example {default} or 0.0.0.0:{}", default.port());
        self.shown(key, &expected, |found| found.text()?.parse().ok()).unwrap_or(default)
    }

    /// A path in the settings file counts from that file's folder, one in a variable from the working folder.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.shown(key, "the path of a file", |found| {
            found.text().filter(|text| !text.is_empty()).map(PathBuf::from)
        })?;
        Some(if self.sources.is_variable(key) { path } else { self.sources.folder().join(path) })
    }

    pub(super) fn beside_the_file(&self, name: &str) -> PathBuf {
        self.sources.folder().join(name)
    }

    pub(super) fn url(
        &mut self,
        key: &'static str,
        default: &'static str,
        parse: fn(&str) -> Result<ConnectionUrl, &'static str>,
    ) -> ConnectionUrl {
        let found = self.found(key);
        let url = parse(found.as_ref().map_or(Some(default), Found::text).unwrap_or_default());
        url.unwrap_or_else(|expected| {
            self.problem(key, expected);
            ConnectionUrl::refused()
        })
    }

    /// Text that `fits` and that no error repeats.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        fits: fn(&str) -> bool,
        shape: &str,
    ) -> Option<SecretString> {
        let secret = self.found(key)?.text().filter(|text| fits(text)).map(SecretString::from);
        if secret.is_none() {
            self.problem(key, &format!("must be {shape}"));
        }
        secret
    }

    pub(super) fn key_ring(&mut self, key: &'static str) -> Option<KeyRing> {
        let found = self.found(key)?;
        let parsed = match found.text() {
            Some(text) => KeyRing::parse(text).map_err(|error| format!("is wrong: {error}")),
            None => Err("must be text: `id:base64`, or several of them with commas between".to_owned()),
        };
        parsed.map_err(|text| self.problem(key, &text)).ok()
    }

    pub(super) fn key_ring_file(&mut self, key: &'static str) -> Option<KeyRing> {
        let path = self.path(key)?;
        let ring = match fs::read_to_string(&path) {
            Ok(text) => KeyRing::parse(&text).map_err(|error| error.to_string()),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        let told = |text| self.problem(key, &format!("names {}, which is wrong: {text}", path.display()));
        ring.map_err(told).ok()
    }

    /// A list of tables in the file, or the same as JSON in a variable.
    pub(super) fn list<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<Vec<T>> {
        let value = match self.found(key)? {
            Found::Typed(value) => Ok(value),
            Found::Text(text) => serde_json::from_str(&text).map_err(|_| "must be a JSON array".to_owned()),
        };
        let list = value.and_then(|value| {
            serde_path_to_error::deserialize(value).map_err(|error| {
                let path = error.path().to_string();
                format!("is wrong at `{key}{}`: {}", path.trim_start_matches('.'), error.into_inner())
            })
        });
        list.map_err(|text| self.problem(key, &text)).ok()
    }

    fn number<T>(&mut self, key: &'static str, expected: &str, range: &RangeInclusive<i64>, default: T) -> T
    where
        T: TryFrom<i64> + Display,
    {
        let expected = format!("{expected}, for example {default}");
        let number = self.shown(key, &expected, |found| {
            let number = match found {
                Found::Typed(value) => value.as_i64(),
                Found::Text(text) => text.parse().ok(),
            };
            T::try_from(number.filter(|number| range.contains(number))?).ok()
        });
        number.unwrap_or(default)
    }

    /// A value that is no secret, so the error repeats it.
    fn shown<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&Found) -> Option<T>,
    ) -> Option<T> {
        let found = self.found(key)?;
        let parsed = parse(&found);
        if parsed.is_none() {
            self.problem(key, &format!("must be {expected}; it is {}", found.shown()));
        }
        parsed
    }

    fn found(&mut self, key: &'static str) -> Option<Found> {
        self.known.push(key);
        let value = self.sources.get(key)?.clone();
        Some(match value {
            Value::String(text) if self.sources.is_variable(key) => Found::Text(text.trim().to_owned()),
            value => Found::Typed(value),
        })
    }

    fn unknown(&self, key: &str) -> String {
        let section = format!("{key}.");
        if let Some(inside) = self.known.iter().find(|known| known.starts_with(&section)) {
            return format!("is a section and cannot have a value; a key in it is `{inside}`");
        }
        let nearest = self.known.iter().max_by(|a, b| similarity(key, a).total_cmp(&similarity(key, b)));
        let nearest = nearest.copied().unwrap_or_default();
        match self.sources.source(key) {
            Source::Variable(_) => format!("is not a setting; did you mean {}?", variable_of(nearest)),
            Source::File(_) | Source::Default => format!("is not a setting; did you mean `{nearest}`?"),
        }
    }
}

impl Found {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Typed(value) => value.as_str(),
            Self::Text(text) => Some(text),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Typed(Value::Array(_)) => "a list".to_owned(),
            Self::Typed(Value::Object(_)) => "a section".to_owned(),
            Self::Typed(Value::String(text)) | Self::Text(text) => format!("the text `{text}`"),
            Self::Typed(value) => format!("`{value}`"),
        }
    }
}

/// Whole keys tell `brokers.url` from `database.url`, names alone find `prefix` in its section.
fn similarity(key: &str, known: &str) -> f64 {
    fn name(key: &str) -> &str {
        key.rsplit_once('.').map_or(key, |(_, name)| name)
    }
    strsim::jaro_winkler(key, known) + strsim::jaro_winkler(name(key), name(known))
}
