//! Settings: one TOML file and the environment, validated as a whole before anything starts.
//!
//! A later source wins: defaults, the file, `AMQP_URL` / `DATABASE_URL` / `TOKENKEEPER_KEYS`, and
//! `TOKENKEEPER__SECTION__KEY`. An empty variable counts as not set. `tokenkeeper.example.toml` shows every key.
//!
//! Each key, its range and its default are written only in the `read` of its section. A key that no `read` asks for is
//! unknown.

mod access;
mod admin;
mod audit;
mod broker;
mod circuit;
mod encryption;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod housekeeping;
mod keys_command;
mod limits;
mod nodes;
pub mod provider_file;
mod reader;
mod sources;
#[cfg(test)]
mod tests;
mod tls;
mod url;
mod work;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

pub use self::access::{Access, AccessPolicy, AccessRule, Asked, Denied, PublisherPolicy};
pub use self::admin::{ADMIN_TOKEN_SHAPE, Admin, AdminToken, TlsFiles, is_admin_token};
pub use self::audit::{AuditFile, AuditSettings};
pub use self::broker::{Broker, QueueArguments, Topology};
pub use self::circuit::CircuitSettings;
pub use self::encryption::Encryption;
pub use self::error::{NotToml, Problem, SettingsError, Source};
pub use self::housekeeping::HousekeepingSettings;
pub use self::limits::LimitSettings;
pub use self::nodes::Nodes;
pub use self::url::{ConnectionUrl, ServerUrl};
pub use self::work::{RefreshSettings, WorkerSettings};
use crate::domain::secret::KeyRing;
use crate::flags::FlagFile;
use crate::private_file::FileRule;
use crate::tls::LinkTls;
use reader::Reader;
use sources::Sources;

/// Read from the working folder where no file was named.
pub const DEFAULT_FILE: &str = "tokenkeeper.toml";

/// Everything an operator can set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// RabbitMQ.
    pub broker: Broker,
    /// Where identities and tokens are kept.
    pub database: Database,
    /// What is asked of files that hold secrets.
    pub files: FileRule,
    /// Keys for what is encrypted at rest.
    pub encryption: Encryption,
    /// The endpoint for metrics and health.
    pub admin: Admin,
    /// Feature flags.
    pub flags: FlagSettings,
    /// How many messages a worker takes, and how long it works on each.
    pub worker: WorkerSettings,
    /// How tokens are refreshed.
    pub refresh: RefreshSettings,
    /// What is done about tokens that nobody asks for.
    pub housekeeping: HousekeepingSettings,
    /// Which publisher may ask for what.
    pub access: Access,
    /// How often a publisher may ask.
    pub limits: LimitSettings,
    /// Logs.
    pub log: Log,
    /// Who was given, stored or refused what.
    pub audit: AuditSettings,
}

/// Where identities and tokens are kept.
#[derive(Debug, Clone)]
pub struct Database {
    /// `sqlite://`, `postgres://` or `mysql://` (which is what `mariadb://` becomes).
    pub url: ConnectionUrl,
    /// How the link is protected.
    pub tls: LinkTls,
    /// Whether the worker brings the tables up to date when it starts.
    pub migrate_at_start: bool,
    /// Size of the connection pool.
    pub max_connections: u32,
    /// How long a query waits for a free connection.
    pub acquire_timeout: Duration,
    /// How far the machine's clock may be from the database's at start. The worker follows the database's clock, but a large
    /// offset means that the machine is misconfigured.
    pub max_clock_offset: Duration,
}

/// Feature flags.
#[derive(Debug, Clone)]
pub struct FlagSettings {
    /// The file in flagd's format.
    pub file: FlagFile,
}

/// Logs.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LevelFilter,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `Human` in a terminal, `Json` otherwise.
    Auto,
    /// For people.
    Human,
    /// For machines.
    Json,
}

impl Settings {
    /// Reads `file` and the process's environment. Without `file`, reads [`DEFAULT_FILE`] if it is there.
    ///
    /// # Errors
    /// The file cannot be read, or settings are wrong. The error lists all of them.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let default = Path::new(DEFAULT_FILE);
        // A file that is there but cannot be examined must not be ignored silently.
        let file = file.or_else(|| default.try_exists().unwrap_or(true).then_some(default));
        Self::load_named(file)
    }

    /// The same without [`DEFAULT_FILE`], for a program that runs in somebody else's folder: a settings file may name a command.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_named(file: Option<&Path>) -> Result<Self, SettingsError> {
        Self::load_from(file, process_environment()?)
    }

    /// The same with another environment.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_from(
        file: Option<&Path>,
        environment: HashMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let mut reader = Reader::new(Sources::read(file, environment)?);
        let settings = Self::read(&mut reader);
        reader.finish()?;
        Ok(settings)
    }

    /// How to log that other settings are wrong: as these settings say, where that can be read.
    pub fn log_alone(file: Option<&Path>) -> Log {
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let environment = process_environment().unwrap_or_default();
        // The environment holds even beside a file that is no TOML.
        let sources = Sources::read(file, environment.clone()).or_else(|_| Sources::read(None, environment));
        sources.map_or(Log::DEFAULT, |sources| Log::read(&mut Reader::new(sources)))
    }

    /// The encryption keys, for a command that needs them.
    ///
    /// # Errors
    /// There are no keys. The error says how to make one.
    pub fn key_ring(&self) -> Result<KeyRing, SettingsError> {
        self.encryption.keys.clone().ok_or(SettingsError::NoKeys)
    }

    fn read(from: &mut Reader) -> Self {
        let files = FileRule { require_private: from.boolean("files.require_private").unwrap_or(true) };
        let broker = Broker::read(from, files);
        let settings = Self {
            access: Access::read(from, &broker.prefix),
            broker,
            database: Database::read(from, files),
            files,
            encryption: Encryption::read(from, files),
            admin: Admin::read(from, files),
            flags: FlagSettings::read(from),
            worker: WorkerSettings::read(from),
            refresh: RefreshSettings::read(from, files),
            housekeeping: HousekeepingSettings::read(from),
            limits: LimitSettings::read(from),
            log: Log::read(from),
            audit: AuditSettings::read(from),
        };
        settings.check_order(from);
        settings.check_file(from);
        settings
    }

    /// A settings file that holds a secret is for its owner alone.
    fn check_file(&self, from: &mut Reader) {
        if !self.files.require_private {
            return;
        }
        for (key, is_secret) in [
            ("encryption.keys", self.encryption.keys.is_some()),
            ("admin.token", matches!(self.admin.token, Some(AdminToken::Given(_)))),
            ("broker.url", self.broker.nodes.has_password()),
            ("broker.urls", self.broker.nodes.has_password()),
            ("database.url", self.database.url.has_password()),
        ] {
            if is_secret {
                from.require_private_file(key);
            }
        }
    }

    /// Some limits must not exceed others.
    fn check_order(&self, from: &mut Reader) {
        let Self { worker, refresh, .. } = self;
        let request_budget = ("worker.request_budget_secs", worker.request_budget);
        from.at_most(("refresh.wait_secs", refresh.wait), request_budget);
        from.at_most(("refresh.opportunistic_budget_secs", refresh.opportunistic_budget), request_budget);
        from.at_most(
            ("refresh.connect_timeout_secs", refresh.connect_timeout),
            ("refresh.total_timeout_secs", refresh.total_timeout),
        );
        from.at_most(
            ("refresh.retry_initial_ms", refresh.retry_initial),
            ("refresh.retry_max_ms", refresh.retry_max),
        );
    }
}

impl Database {
    /// The URL as logs and errors show it: without its password.
    pub fn display_url(&self) -> &str {
        self.url.redacted()
    }

    fn read(from: &mut Reader, files: FileRule) -> Self {
        const URL: &str = "sqlite://tokenkeeper.db";
        let url = from.url(["database.url", "database.url_file"], URL, ConnectionUrl::database, files);
        let url = url.unwrap_or_else(ConnectionUrl::refused);
        let tls = tls::database(from, &url, files);
        // The user of an embedded database expects it to work. A shared one is migrated by one replica.
        let migrate_at_start = from.boolean("database.migrate_at_start").unwrap_or(url.is_sqlite());
        Self {
            url,
            tls,
            migrate_at_start,
            max_connections: from.integer("database.max_connections", 1..=1_000, 16),
            acquire_timeout: from.seconds("database.acquire_timeout_secs", 1..=300, 5),
            max_clock_offset: from.seconds("database.max_clock_offset_secs", 1..=86_400, 300),
        }
    }
}

impl FlagSettings {
    fn read(from: &mut Reader) -> Self {
        let file = match from.path("flags.file") {
            Some(file) => FlagFile::Required(file),
            None => FlagFile::Optional(from.beside_the_file("flags.json")),
        };
        Self { file }
    }
}

impl Log {
    const DEFAULT: Self = Self { level: LevelFilter::INFO, format: LogFormat::Auto };

    fn read(from: &mut Reader) -> Self {
        Self {
            level: from.choice(
                "log.level",
                &[
                    ("trace", LevelFilter::TRACE),
                    ("debug", LevelFilter::DEBUG),
                    ("info", LevelFilter::INFO),
                    ("warn", LevelFilter::WARN),
                    ("error", LevelFilter::ERROR),
                ],
                Self::DEFAULT.level,
            ),
            format: from.choice(
                "log.format",
                &[("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)],
                Self::DEFAULT.format,
            ),
        }
    }
}

fn process_environment() -> Result<HashMap<String, String>, SettingsError> {
    let ours = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
    std::env::vars_os()
        .filter_map(ours)
        .filter(|(name, _)| sources::is_read(name))
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(SettingsError::NotUnicode(name)),
        })
        .collect()
}
