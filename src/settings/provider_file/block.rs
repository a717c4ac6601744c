//! One `[[provider]]` block.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::{Problem, SecretSource, client_secret};
use crate::domain::escape::is_printable;
use crate::domain::provider::{
    ClientAuth, Lifespan, Overrides, ProviderKind, ProviderRecord, RequiredWhileReserved, TokenEndpoint,
    is_safe_token_url, is_scope, is_token_host,
};
use crate::domain::secret::SecretString;
use crate::domain::text::{Host, Username};
use crate::settings::reader::{Found, Reader, Written};

/// Reads one block.
pub(super) struct Block {
    number: usize,
    /// Names the block in errors, once it is known to be a host.
    host: Option<String>,
    keys: Reader<Table>,
}

impl Block {
    pub(super) const fn new(number: usize, table: serde_json::Map<String, Value>) -> Self {
        Self { number, host: None, keys: Reader::new(Table(table)) }
    }

    /// Returns no record if a required key is missing or wrong. There may be problems beside a record.
    pub(super) fn read(&mut self, secrets: &dyn SecretSource) -> Option<ProviderRecord> {
        let keys = &mut self.keys;
        self.host = keys.required("host", |keys, key| keys.text(key, is_host, HOST));
        let kinds = ProviderKind::ALL.map(|kind| (kind.name(), kind));
        let kind = keys.required("kind", |keys, key| keys.one_of(key, &kinds));
        let client_id = keys.required("client_id", |keys, key| keys.text(key, is_client_id, CLIENT_ID));
        let client_secrets = self.client_secrets(secrets);
        let token_url = self.url("token_url");
        let client_auth = self.keys.one_of("client_auth", &CLIENT_AUTHS);
        let redirect_uri = self.keys.text("redirect_uri", is_redirect_uri, REDIRECT_URI);
        let username = self.keys.text("username", is_username, USERNAME);
        let opportunistic_refresh = self.keys.boolean("opportunistic_refresh");
        let window = self.integer("opportunistic_refresh_window_secs", 1..=u32::MAX.into());
        let required_while_reserved = self.keys.one_of("required_while_reserved", &RULES);
        let max_concurrent_refreshes = self.integer("max_concurrent_refreshes", 1..=u16::MAX.into());
        let overrides = self.overrides();
        if let Some(kind) = kind {
            self.require_what_has_no_default(kind);
        }
        for (key, nearest) in self.keys.unknown_keys() {
            self.problem(&key, format!("is not a key of a provider; did you mean `{nearest}`?"));
        }
        let mut client_secrets = client_secrets.into_iter();
        let record = ProviderRecord {
            host: self.host.clone()?,
            kind: kind?,
            client_id: client_id?,
            client_secret: client_secrets.next()?,
            spare_client_secrets: client_secrets.collect(),
            token_url,
            client_auth,
            redirect_uri,
            username,
            opportunistic_refresh,
            opportunistic_refresh_window_secs: window,
            required_while_reserved,
            max_concurrent_refreshes,
            overrides,
        };
        self.require_known_hosts(&record);
        Some(record)
    }

    /// Says it of a URL that nothing would be sent to.
    fn require_known_hosts(&mut self, record: &ProviderRecord) {
        let overrides = &record.overrides;
        // A browser alone goes to `authorization_url`, and no secret with it.
        let urls = [
            ("token_url", &record.token_url),
            ("validate_url", &overrides.validate_url),
            ("device_authorization_url", &overrides.device_authorization_url),
        ];
        for (key, url) in urls {
            if let Some(Err(error)) = url.as_ref().map(|url| record.reach(url)) {
                self.problem(key, format!("cannot be used: {error}"));
            }
        }
    }

    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    pub(super) fn problem(&mut self, key: &str, text: impl Into<String>) {
        self.keys.problem(key, text);
    }

    pub(super) fn into_problems(self) -> impl Iterator<Item = Problem> {
        let block = match self.host {
            Some(host) => format!("provider {} ({host})", self.number),
            None => format!("provider {}", self.number),
        };
        self.keys.into_problems().map(move |(key, text)| Problem { block: block.clone(), key, text })
    }

    fn overrides(&mut self) -> Overrides {
        let overrides = Overrides {
            kills_old_token: self.keys.boolean("kills_old_token"),
            old_token_grace_secs: self.lifespan("old_token_grace_secs"),
            refresh_token_grace_secs: self.lifespan("refresh_token_grace_secs"),
            refresh_token_idle_lifetime_secs: self.lifespan("refresh_token_idle_lifetime_secs"),
            unstated_lifetime_secs: self.lifespan("unstated_lifetime_secs"),
            refresh_parameters: self
                .keys
                .read("refresh_parameters", REFRESH_PARAMETERS, |found| read_parameters(found.typed()?))
                .unwrap_or_default(),
            other_hosts: self
                .keys
                .read("other_hosts", OTHER_HOSTS, |found| read_hosts(found.typed()?))
                .unwrap_or_default(),
            validate_url: self.url("validate_url"),
            token_hosts: self
                .keys
                .read("token_hosts", TOKEN_HOSTS, |found| read_token_hosts(found.typed()?))
                .unwrap_or_default(),
            allow_private_network: self.keys.boolean("allow_private_network").unwrap_or_default(),
            authorization_url: self.url("authorization_url"),
            device_authorization_url: self.url("device_authorization_url"),
            login_scopes: self
                .keys
                .read("login_scopes", LOGIN_SCOPES, |found| read_scopes(found.typed()?))
                .unwrap_or_default(),
        };
        if overrides.contradicts_itself() {
            self.problem(
                "kills_old_token",
                "says the contrary of old_token_grace_secs; leave one of them out",
            );
        }
        for (key, lifespan) in [
            ("refresh_token_idle_lifetime_secs", overrides.refresh_token_idle_lifetime_secs),
            ("unstated_lifetime_secs", overrides.unstated_lifetime_secs),
        ] {
            if lifespan == Some(Lifespan::NONE) {
                self.problem(key, "must be at least 1");
            }
        }
        overrides
    }

    /// In the order in which they are tried.
    fn client_secrets(&mut self, secrets: &dyn SecretSource) -> Vec<SecretString> {
        let given = client_secret::KEYS.map(|key| (key, self.keys.value(key)));
        let mut given = given.into_iter().filter_map(|(key, found)| Some((key, found?)));
        let (key, found) = match (given.next(), given.next()) {
            (Some(only), None) => only,
            (_, second) => {
                let key = second.map_or(client_secret::KEYS[0], |(key, _)| key);
                self.problem(
                    key,
                    "must be there once: client_secret, client_secret_env or client_secret_file",
                );
                return Vec::new();
            }
        };
        let texts = match found.typed() {
            Some(Value::String(text)) => vec![text.as_str()],
            Some(Value::Array(texts)) if (1..=MAX_CLIENT_SECRETS).contains(&texts.len()) => {
                texts.iter().map(|text| text.as_str().unwrap_or_default()).collect()
            }
            _ => {
                self.problem(
                    key,
                    format!("must be text in quotes, or a list of at most {MAX_CLIENT_SECRETS}"),
                );
                return Vec::new();
            }
        };
        let mut usable = Vec::new();
        for text in texts {
            match client_secret::find(key, text, secrets) {
                Ok(secret) => usable.push(secret),
                Err(text) => self.problem(key, text),
            }
        }
        usable
    }

    fn require_what_has_no_default(&mut self, kind: ProviderKind) {
        let profile = kind.profile();
        let needed = [
            ("token_url", profile.token_endpoint == TokenEndpoint::Told),
            ("client_auth", profile.client_auth.is_none()),
        ];
        for (key, needed) in needed {
            if needed && !self.keys.is_set(key) {
                self.problem(key, format!("is missing; kind {kind} has no default for it"));
            }
        }
    }

    fn lifespan(&mut self, key: &'static str) -> Option<Lifespan> {
        self.keys.read(key, LIFESPAN, |found| Lifespan::deserialize(found.typed()?).ok())
    }

    fn url(&mut self, key: &'static str) -> Option<Url> {
        self.keys.text(key, is_token_url, TOKEN_URL).and_then(|url| Url::parse(&url).ok())
    }

    fn integer<T: TryFrom<i64>>(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Option<T> {
        let shape = format!("a whole number from {} to {}", range.start(), range.end());
        self.keys.number(key, range, &shape)
    }
}

/// A block's keys and values, as JSON. A date becomes a table with the field [`DATE`].
struct Table(serde_json::Map<String, Value>);

impl Written for Table {
    fn value(&self, key: &str) -> Option<Found> {
        self.0.get(key).cloned().map(Found::Typed)
    }

    fn keys(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    /// An operator may have put a secret behind the wrong key.
    fn repeat(_: &Found) -> String {
        String::new()
    }
}

/// How `toml` gives a date to `serde_json`. No key takes a date.
const DATE: &str = "$__toml_private_datetime";

const CLIENT_AUTHS: [(&str, ClientAuth); 2] =
    [(ClientAuth::Body.name(), ClientAuth::Body), (ClientAuth::Basic.name(), ClientAuth::Basic)];

const RULES: [(&str, RequiredWhileReserved); 3] = {
    use RequiredWhileReserved::{GrantRemaining, Refresh, Wait};
    [(Refresh.name(), Refresh), (Wait.name(), Wait), (GrantRemaining.name(), GrantRemaining)]
};

const HOST: &str = "the bare host in lower case as it stands in clone URLs, with a port where there is one, like \
                    git.example.org or git.example.org:8443";

/// A host as [`CloneUrl`](crate::contract::CloneUrl) reads it off a clone URL, else no repository would ever find it.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let as_read = Url::parse(&format!("https://{name}/"));
    text.len() <= 255
        && as_read.is_ok_and(|url| url.host_str() == Some(name))
        && port.is_none_or(|port| {
            port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port)
        })
}

const CLIENT_ID: &str = "1 to 255 printable ASCII characters (RFC 6749, appendix A.1)";

fn is_client_id(text: &str) -> bool {
    (1..=255).contains(&text.len()) && is_printable_ascii(text)
}

pub(super) fn is_printable_ascii(text: &str) -> bool {
    text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

const TOKEN_URL: &str =
    "an https URL (http for loopback addresses alone) without user, password and fragment";

fn is_token_url(text: &str) -> bool {
    Url::parse(text)
        .is_ok_and(|url| is_safe_token_url(&url) && !names_a_user(&url) && url.fragment().is_none())
}

fn names_a_user(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

const LIFESPAN: &str = "a whole number of seconds from 0 to 4294967295, or \"unlimited\"";

const MAX_CLIENT_SECRETS: usize = 4;

const OTHER_HOSTS: &str =
    "a list of at most 16 hosts as requests or clone URLs name them, like [\"ssh.example.org\"]";

fn read_hosts(value: &Value) -> Option<Vec<String>> {
    let hosts = value.as_array().filter(|hosts| hosts.len() <= 16)?;
    hosts.iter().map(|host| Host::try_from(host.as_str()?).ok().map(|host| host.to_string())).collect()
}

const TOKEN_HOSTS: &str =
    "a list of at most 16 hosts in lower case and without a port, like [\"login.example.org\"]";

fn read_token_hosts(value: &Value) -> Option<Vec<String>> {
    let hosts = value.as_array().filter(|hosts| hosts.len() <= 16)?;
    hosts.iter().map(|host| host.as_str().filter(|host| is_token_host(host)).map(str::to_owned)).collect()
}

const LOGIN_SCOPES: &str =
    "a list of at most 32 scopes without blanks, like [\"repo\"] (RFC 6749, section 3.3)";

fn read_scopes(value: &Value) -> Option<Vec<String>> {
    let scopes = value.as_array().filter(|scopes| scopes.len() <= 32)?;
    scopes.iter().map(|scope| scope.as_str().filter(|scope| is_scope(scope)).map(str::to_owned)).collect()
}

const REFRESH_PARAMETERS: &str = "a table of at most 16 names and texts in printable ASCII, like { audience = \"api\" }, without what OAuth sends \
     itself: grant_type, refresh_token, client_id, client_secret and redirect_uri";

fn read_parameters(value: &Value) -> Option<BTreeMap<String, String>> {
    const OF_OAUTH: [&str; 5] = ["grant_type", "refresh_token", "client_id", "client_secret", "redirect_uri"];
    let is_short = |text: &str| (1..=1024).contains(&text.len()) && is_printable_ascii(text);
    let read = |(name, value): (&String, &Value)| {
        let value = value.as_str().filter(|text| is_short(text))?;
        (is_short(name) && name != DATE && !OF_OAUTH.contains(&name.as_str()))
            .then(|| (name.clone(), value.to_owned()))
    };
    value.as_object().filter(|table| table.len() <= 16)?.iter().map(read).collect()
}

const REDIRECT_URI: &str =
    "an absolute URI without fragment (RFC 6749, section 3.1.2), as it was at authorisation";

fn is_redirect_uri(text: &str) -> bool {
    // `Url` passes over line breaks and tabs.
    Url::parse(text).is_ok_and(|url| url.fragment().is_none()) && text.trim() == text && is_printable(text)
}

const USERNAME: &str = "1 to 255 characters, none of them a blank or a control character";

fn is_username(text: &str) -> bool {
    Username::try_from(text).is_ok()
}
