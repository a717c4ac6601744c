//! Reads keys that an operator wrote. It goes on after a wrong value, so that one error lists all mistakes.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroize;

use super::error::{Problem, SettingsError, Source};
use super::keys_command;
use super::sources::{Sources, variable_of, wipe};
use crate::domain::expected::must_be;
use crate::domain::secret::{KeyRing, SecretString};
use crate::private_file::{Exposed, FileRule};

/// Keys and values that an operator wrote.
pub(super) trait Written {
    /// The value of a key that is set.
    fn value(&self, key: &str) -> Option<Found>;
    /// Every key that is set.
    fn keys(&self) -> BTreeSet<String>;
    /// Repeats a wrong value for an error. Empty if any value may be a secret.
    fn repeat(found: &Found) -> String;
}

/// A value of a file has a type. A variable is always text.
pub(super) enum Found {
    Typed(Value),
    Text(String),
}

/// Remembers the keys that were asked for, and the mistakes.
pub(super) struct Reader<W = Sources> {
    written: W,
    known: Vec<&'static str>,
    problems: Vec<(String, String)>,
}

impl<W: Written> Reader<W> {
    pub(super) const fn new(written: W) -> Self {
        Self { written, known: Vec::new(), problems: Vec::new() }
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> &[&'static str] {
        &self.known
    }

    pub(super) fn problem(&mut self, key: &str, text: impl Into<String>) {
        self.problems.push((key.to_owned(), text.into()));
    }

    /// The keys that nobody asked for, each with the most similar known key.
    pub(super) fn unknown_keys(&self) -> Vec<(String, &'static str)> {
        let nearest = |key: &str| {
            let nearest = self.known.iter().max_by(|a, b| similarity(key, a).total_cmp(&similarity(key, b)));
            nearest.copied().unwrap_or_default()
        };
        let mut keys = self.written.keys();
        keys.retain(|key| !self.known.contains(&key.as_str()));
        keys.into_iter().map(|key| (nearest(&key), key)).map(|(nearest, key)| (key, nearest)).collect()
    }

    pub(super) fn into_problems(self) -> impl Iterator<Item = (String, String)> {
        self.problems.into_iter()
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        self.written.value(key).is_some()
    }

    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        let value = read(self, key);
        if !self.is_set(key) {
            self.problem(key, "is missing");
        }
        value
    }

    /// A value that `parse` accepts; `shape` says which those are.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        shape: &str,
        parse: impl FnOnce(&Found) -> Option<T>,
    ) -> Option<T> {
        let found = self.value(key)?;
        let parsed = parse(&found);
        if parsed.is_none() {
            self.problem(key, format!("must be {shape}{}", W::repeat(&found)));
        }
        parsed
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.read(key, "true or false", |found| match found {
            Found::Typed(value) => value.as_bool(),
            Found::Text(text) => text.parse().ok(),
        })
    }

    pub(super) fn number<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
        shape: &str,
    ) -> Option<T> {
        self.read(key, shape, |found| {
            let number = match found {
                Found::Typed(value) => value.as_i64(),
                Found::Text(text) => text.parse().ok(),
            };
            T::try_from(number.filter(|number| range.contains(number))?).ok()
        })
    }

    pub(super) fn one_of<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|&(name, _)| name).collect();
        self.read(key, &format!("one of {}", names.join(", ")), |found| {
            let text = found.text()?;
            choices.iter().find(|(name, _)| *name == text).map(|&(_, choice)| choice)
        })
    }

    pub(super) fn text(&mut self, key: &'static str, fits: fn(&str) -> bool, shape: &str) -> Option<String> {
        self.read(key, shape, |found| found.text().filter(|text| fits(text)).map(str::to_owned))
    }

    pub(super) fn value(&mut self, key: &'static str) -> Option<Found> {
        self.known.push(key);
        self.written.value(key)
    }
}

impl Found {
    pub(super) const fn typed(&self) -> Option<&Value> {
        match self {
            Self::Typed(value) => Some(value),
            Self::Text(_) => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Typed(value) => value.as_str(),
            Self::Text(text) => Some(text),
        }
    }

    /// Overwrites a secret that was read.
    pub(super) fn wipe(self) {
        match self {
            Self::Typed(mut value) => wipe(&mut value),
            Self::Text(mut text) => text.zeroize(),
        }
    }
}

/// A wrong or missing setting is read as its default. [`Reader::finish`] returns what was wrong.
impl Reader<Sources> {
    /// # Errors
    /// All mistakes, unknown keys included.
    pub(super) fn finish(mut self) -> Result<(), SettingsError> {
        for (key, nearest) in self.unknown_keys() {
            let text = self.unknown(&key, nearest);
            self.problem(&key, text);
        }
        let problem =
            |(key, text): (String, String)| Problem { source: self.written.source(&key), key, text };
        let problems: Vec<Problem> = self.problems.into_iter().map(problem).collect();
        if problems.is_empty() { Ok(()) } else { Err(SettingsError::Invalid(problems)) }
    }

    /// Compares only if every value is right by itself. Otherwise one mistake would be reported twice.
    pub(super) fn at_most(&mut self, (key, value): (&str, Duration), (limit_key, limit): (&str, Duration)) {
        if self.problems.is_empty() && value > limit {
            let source = self.written.source(limit_key);
            self.problem(
                key,
                format!("is {value:?}, and must not be longer than `{limit_key}` ({source}), {limit:?}"),
            );
        }
    }

    pub(super) fn integer<T>(&mut self, key: &'static str, range: RangeInclusive<i64>, default: T) -> T
    where
        T: TryFrom<i64> + Display,
    {
        self.whole(key, "", range, default)
    }

    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
        default: u64,
    ) -> Duration {
        Duration::from_secs(self.whole(key, " of seconds", range, default))
    }

    pub(super) fn milliseconds(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
        default: u64,
    ) -> Duration {
        Duration::from_millis(self.whole(key, " of milliseconds", range, default))
    }

    fn whole<T>(&mut self, key: &'static str, unit: &str, range: RangeInclusive<i64>, default: T) -> T
    where
        T: TryFrom<i64> + Display,
    {
        let (least, most) = (range.start(), range.end());
        let shape = format!("a whole number{unit} from {least} to {most}, for example {default}");
        self.number(key, range, &shape).unwrap_or(default)
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        self.one_of(key, choices).unwrap_or(default)
    }

    pub(super) fn address(&mut self, key: &'static str, default: SocketAddr) -> SocketAddr {
        let shape = format!("an IP address with a port, for example {default} or 0.0.0.0:{}", default.port());
        self.read(key, &shape, |found| found.text()?.parse().ok()).unwrap_or(default)
    }

    /// A path in the settings file counts from that file's folder, one in a variable from the working folder.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.text(key, |text| !text.is_empty(), "the path of a file").map(PathBuf::from)?;
        Some(if self.written.is_variable(key) { path } else { self.beside_the_file(path) })
    }

    pub(super) fn beside_the_file(&self, path: impl AsRef<Path>) -> PathBuf {
        self.written.folder().join(path)
    }

    /// The URL behind the first key, or in the file that the second one names. None: it is wrong.
    pub(super) fn url<T>(
        &mut self,
        [key, file_key]: [&'static str; 2],
        default: &'static str,
        parse: fn(&str) -> Result<T, &'static str>,
        files: FileRule,
    ) -> Option<T> {
        let (found, path) = (self.value(key), self.path(file_key));
        let url = match (found, path) {
            (Some(_), Some(_)) => Err((file_key, format!("is set beside `{key}`; set one of the two"))),
            (None, Some(path)) => match files.file(path.clone()).read() {
                Ok(text) => parse(text.trim())
                    .map_err(|expected| format!("names {}; what stands there {expected}", path.display())),
                Err(error) => Err(format!("names {}, which is wrong: {error}", path.display())),
            }
            .map_err(|text| (file_key, text)),
            (None, None) => parse(default).map_err(|expected| (key, expected.to_owned())),
            (Some(found), None) => {
                let url = parse(found.text().unwrap_or_default());
                found.wipe();
                url.map_err(|expected| (key, expected.to_owned()))
            }
        };
        url.map_err(|(key, text)| self.problem(key, text)).ok()
    }

    /// The value of `key` is a secret: if it stands in a file that other users may read, that is a problem.
    pub(super) fn require_private_file(&mut self, key: &str) {
        if let Some((path, exposed)) = self.written.exposed(key) {
            let text = format!("is a secret, and {exposed}; next: {}", Exposed::next(path));
            self.problem(key, text);
        }
    }

    /// Text that `fits` and that no error repeats.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        fits: fn(&str) -> bool,
        shape: &str,
    ) -> Option<SecretString> {
        let found = self.value(key)?;
        let secret = found.text().filter(|text| fits(text)).map(SecretString::from);
        found.wipe();
        if secret.is_none() {
            self.problem(key, format!("must be {shape}"));
        }
        secret
    }

    pub(super) fn key_ring(&mut self, key: &'static str) -> Option<KeyRing> {
        let found = self.value(key)?;
        let parsed = match found.text() {
            Some(text) => KeyRing::parse(text).map_err(|error| format!("is wrong: {error}")),
            None => Err("must be text: `id:base64`, or several of them with commas between".to_owned()),
        };
        found.wipe();
        parsed.map_err(|text| self.problem(key, text)).ok()
    }

    pub(super) fn key_ring_file(&mut self, key: &'static str, files: FileRule) -> Option<KeyRing> {
        let path = self.path(key)?;
        let ring = match files.file(path.clone()).read() {
            Ok(text) => KeyRing::parse(&text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let told = |text| self.problem(key, format!("names {}, which is wrong: {text}", path.display()));
        ring.map_err(told).ok()
    }

    /// Runs the command, once.
    pub(super) fn key_ring_of_command(
        &mut self,
        key: &'static str,
        command: &[String],
        limit: Duration,
    ) -> Option<KeyRing> {
        let ring = match keys_command::run(command, limit) {
            Ok(text) => KeyRing::parse(&text).map_err(|error| format!("printed no keys: {error}")),
            Err(error) => Err(format!("brings no keys: {error}")),
        };
        ring.map_err(|text| self.problem(key, text)).ok()
    }

    /// A list of tables in the file, or the same as JSON in a variable.
    pub(super) fn list<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<Vec<T>> {
        let value = match self.value(key)? {
            Found::Typed(value) => Ok(value),
            Found::Text(text) => serde_json::from_str(&text).map_err(|_| "must be a JSON array".to_owned()),
        };
        let list = value.and_then(|value| {
            serde_path_to_error::deserialize(value).map_err(|error| {
                let (path, told) = (error.path().to_string(), error.into_inner().to_string());
                let told = must_be(&told).or_else(|| unknown_field(&told)).unwrap_or(told);
                format!("is wrong at `{key}{}`: {told}", path.trim_start_matches('.'))
            })
        });
        list.map_err(|text| self.problem(key, text)).ok()
    }

    fn unknown(&self, key: &str, nearest: &str) -> String {
        let section = format!("{key}.");
        if let Some(inside) = self.known.iter().find(|known| known.starts_with(&section)) {
            return format!("is a section and cannot have a value; a key in it is `{inside}`");
        }
        match self.written.source(key) {
            Source::Variable(_) => format!("is not a setting; did you mean {}?", variable_of(nearest)),
            Source::File(_) | Source::Default => format!("is not a setting; did you mean `{nearest}`?"),
        }
    }
}

/// What serde says of a key that a table in a list does not know, with the most similar one.
fn unknown_field(message: &str) -> Option<String> {
    let mut names = message.strip_prefix("unknown field `")?.split('`').step_by(2);
    let name = names.next()?;
    let nearest = names.max_by(|a, b| similarity(name, a).total_cmp(&similarity(name, b)))?;
    Some(format!("unknown field `{name}`; did you mean `{nearest}`?"))
}

/// Compares whole keys, to tell `brokers.url` from `database.url`, and last parts, to find `prefix` in its section.
fn similarity(key: &str, known: &str) -> f64 {
    fn name(key: &str) -> &str {
        key.rsplit_once('.').map_or(key, |(_, name)| name)
    }
    strsim::jaro_winkler(key, known) + strsim::jaro_winkler(name(key), name(known))
}
