use std::collections::{BTreeSet, HashMap};
use std::fs::File as OpenFile;
use std::io;
use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat};
use serde_json::Value;
use zeroize::Zeroize;

use super::error::{NotToml, SettingsError, Source};
use super::reader::{Found, Written};
use crate::private_file::{Exposed, text_of};

/// The values of file and environment, merged, and where each one came from.
pub(super) struct Sources {
    merged: Value,
    file: Option<PathBuf>,
    /// How the file is exposed to other users, if it is.
    exposed: Option<Exposed>,
    /// The variable behind each key that the environment sets.
    variables: HashMap<String, String>,
}

const PREFIX: &str = "TOKENKEEPER__";
const SEPARATOR: &str = "__";

/// Names that other programs use too, or that are shorter to type. A `TOKENKEEPER__…` name wins over them.
const ALIASES: [(&str, &str); 3] =
    [("AMQP_URL", "broker.url"), ("DATABASE_URL", "database.url"), ("TOKENKEEPER_KEYS", "encryption.keys")];

/// Whether an environment variable is a setting. `TOKENKEEPER_…` with one underscore is not: Kubernetes sets
/// `TOKENKEEPER_PORT` and the like for a service named tokenkeeper.
pub(super) fn is_read(variable: &str) -> bool {
    key_of(variable).is_some()
}

/// The environment variable that sets `key`.
pub(super) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', SEPARATOR).to_uppercase())
}

impl Sources {
    pub(super) fn read(
        file: Option<&Path>,
        environment: HashMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let Some(path) = file else { return Self::of(None, environment) };
        let read = || -> io::Result<_> {
            let mut file = OpenFile::open(path)?;
            Ok((text_of(&mut file)?, Exposed::of(&file)?))
        };
        let (text, exposed) =
            read().map_err(|error| SettingsError::Unreadable { path: path.to_owned(), error })?;
        let mut sources = Self::of(Some((path, &text)), environment)?;
        sources.exposed = exposed;
        Ok(sources)
    }

    /// The same of a file's path and text.
    pub(super) fn of(
        file: Option<(&Path, &str)>,
        environment: HashMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let mut builder = Config::builder();
        if let Some((path, text)) = file {
            check_syntax(path, text)?;
            builder = builder.add_source(File::from_str(text, FileFormat::Toml));
        }
        let (values, variables) = select(environment);
        let merged = builder.add_source(Environment::default().source(Some(values))).build()?;
        let merged = merged.try_deserialize()?;
        Ok(Self { merged, file: file.map(|(path, _)| path.to_owned()), exposed: None, variables })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.merged, |value, name| value.get(name))
    }

    pub(super) fn source(&self, key: &str) -> Source {
        match (self.variables.get(key), &self.file) {
            (Some(variable), _) => Source::Variable(variable.clone()),
            (None, Some(file)) if self.get(key).is_some() => Source::File(file.clone()),
            (None, _) => Source::Default,
        }
    }

    /// The file and how it is exposed, if `key` stands in a file that other users may read.
    pub(super) fn exposed(&self, key: &str) -> Option<(&Path, Exposed)> {
        let stands_there = matches!(self.source(key), Source::File(_));
        Some((self.file.as_deref().filter(|_| stands_there)?, self.exposed?))
    }

    pub(super) fn is_variable(&self, key: &str) -> bool {
        self.variables.contains_key(key)
    }

    /// Relative paths in the settings file start here. Without a file: empty, which is the working folder.
    pub(super) fn folder(&self) -> &Path {
        self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""))
    }
}

/// The values may be secrets. What the `config` crate copied meanwhile cannot be wiped.
impl Drop for Sources {
    fn drop(&mut self) {
        wipe(&mut self.merged);
    }
}

/// Overwrites every text in a value.
pub(super) fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Written for Sources {
    fn value(&self, key: &str) -> Option<Found> {
        Some(match self.get(key)?.clone() {
            Value::String(text) if self.is_variable(key) => Found::Text(text.trim().to_owned()),
            value => Found::Typed(value),
        })
    }

    fn keys(&self) -> BTreeSet<String> {
        let mut keys: BTreeSet<String> = self.variables.keys().cloned().collect();
        collect_keys(&self.merged, "", &mut keys);
        keys
    }

    fn repeat(found: &Found) -> String {
        match found {
            Found::Typed(Value::Array(_)) => "; it is a list".to_owned(),
            Found::Typed(Value::Object(_)) => "; it is a section".to_owned(),
            Found::Typed(Value::String(text)) | Found::Text(text) => format!("; it is the text `{text}`"),
            Found::Typed(value) => format!("; it is `{value}`"),
        }
    }
}

fn collect_keys(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(section) => {
            for (name, value) in section {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect_keys(value, &path, keys);
            }
        }
        _ => {
            keys.insert(path.to_owned());
        }
    }
}

/// By key: the values that the environment sets, and the names of the variables.
fn select(environment: HashMap<String, String>) -> (HashMap<String, String>, HashMap<String, String>) {
    let (mut values, mut variables) = (HashMap::new(), HashMap::new());
    for (variable, value) in environment.into_iter().filter(|(_, value)| !value.is_empty()) {
        let Some(key) = key_of(&variable) else { continue };
        let is_alias = !variable.starts_with(PREFIX);
        if is_alias && variables.contains_key(&key) {
            continue;
        }
        values.insert(key.clone(), value);
        variables.insert(key, variable);
    }
    (values, variables)
}

fn key_of(variable: &str) -> Option<String> {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == variable).map(|(_, key)| (*key).to_owned());
    let own = || variable.strip_prefix(PREFIX).map(|rest| rest.to_lowercase().replace(SEPARATOR, "."));
    alias.or_else(own)
}

/// Checks that the text is TOML before the `config` crate reads it: that crate's error repeats the wrong line, which may
/// hold a password.
fn check_syntax(path: &Path, text: &str) -> Result<(), SettingsError> {
    match toml::from_str::<toml::Table>(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(SettingsError::Syntax { path: path.to_owned(), error: NotToml::new(text, &error) }),
    }
}
