//! A provider as an operator wrote it.

use std::time::Duration;

use url::{Position, Url};

use super::{ClientAuth, Lifespan, LoginSettings, Overrides, Provider, ProviderKind, RequiredWhileReserved};
use crate::domain::clock::Timestamp;
use crate::domain::secret::{ExposeSecret, SecretString};

/// A provider as an operator wrote it. A field that is not set takes the kind's default.
#[derive(Debug, Clone)]
pub struct ProviderRecord {
    pub host: String,
    pub kind: ProviderKind,
    pub client_id: String,
    pub client_secret: SecretString,
    /// Tried in turn if the token endpoint rejects that one.
    pub spare_client_secrets: Vec<SecretString>,
    pub token_url: Option<Url>,
    pub client_auth: Option<ClientAuth>,
    pub redirect_uri: Option<String>,
    pub username: Option<String>,
    pub opportunistic_refresh: Option<bool>,
    pub opportunistic_refresh_window_secs: Option<u32>,
    pub required_while_reserved: Option<RequiredWhileReserved>,
    pub max_concurrent_refreshes: Option<u16>,
    pub overrides: Overrides,
}

/// A setting that changes: its name, its value before and after.
pub type Change = (&'static str, String, String);

/// Neither the record nor its kind has a value.
#[derive(Debug, thiserror::Error)]
#[error("kind {kind} has no default {setting}; set it in the provider file")]
pub struct NoDefault {
    kind: ProviderKind,
    setting: &'static str,
}

impl ProviderRecord {
    /// Every host that this provider serves.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        [&self.host].into_iter().chain(&self.overrides.other_hosts).map(String::as_str)
    }

    /// Fills in the kind's defaults.
    ///
    /// # Errors
    /// [`NoDefault`]; `provider apply` refuses such a record.
    pub fn resolve(
        self,
        id: i64,
        updated_at: Timestamp,
        refusing_since: Option<Timestamp>,
    ) -> Result<Provider, NoDefault> {
        let (profile, kind) = (self.kind.profile(), self.kind);
        let missing = |setting| NoDefault { kind, setting };
        let overrides = self.overrides;
        let idle_lifetime = overrides.refresh_token_idle_lifetime_secs;
        Ok(Provider {
            id,
            token_url: self
                .token_url
                .or_else(|| kind.token_url(&self.host))
                .ok_or_else(|| missing("token_url"))?,
            client_auth: self.client_auth.or(profile.client_auth).ok_or_else(|| missing("client_auth"))?,
            username: self.username.unwrap_or_else(|| profile.username.to_owned()),
            old_token_grace: overrides.old_token_grace(&profile),
            refresh_token_grace: overrides.refresh_token_grace_secs.unwrap_or(profile.refresh_token_grace),
            unstated_lifetime: overrides.unstated_lifetime_secs.or(profile.unstated_lifetime),
            refresh_token_idle_lifetime: idle_lifetime
                .map_or(profile.refresh_token_idle_lifetime, Lifespan::duration),
            opportunistic_refresh: self.opportunistic_refresh.unwrap_or(profile.opportunistic_refresh),
            opportunistic_refresh_window: self
                .opportunistic_refresh_window_secs
                .map(|secs| Duration::from_secs(secs.into())),
            required_while_reserved: self.required_while_reserved.unwrap_or_default(),
            max_concurrent_refreshes: self
                .max_concurrent_refreshes
                .map_or(profile.max_concurrent_refreshes, usize::from),
            host: self.host,
            other_hosts: overrides.other_hosts,
            token_hosts: overrides.token_hosts,
            allow_private_network: overrides.allow_private_network,
            kind,
            client_id: self.client_id,
            client_secret: self.client_secret,
            spare_client_secrets: self.spare_client_secrets,
            redirect_uri: self.redirect_uri,
            refresh_parameters: overrides.refresh_parameters.into_iter().collect(),
            validate_url: overrides.validate_url,
            login: LoginSettings {
                authorization_url: overrides.authorization_url,
                device_authorization_url: overrides.device_authorization_url,
                scopes: overrides.login_scopes,
            },
            updated_at,
            refusing_since,
        })
    }

    /// The changes by which the provider may refuse the refresh tokens that it issued before: another client, which they are
    /// bound to (RFC 6749, section 6), or a token endpoint at another host.
    pub fn moves(&self, after: &Self) -> Vec<Change> {
        let endpoint = |record: &Self| {
            let url = record.token_url.clone().or_else(|| record.kind.token_url(&record.host));
            url.map_or_else(String::new, |url| url[Position::BeforeHost..Position::AfterPort].to_owned())
        };
        let shown = |record: &Self| {
            [("client_id", record.client_id.clone()), ("the host of token_url", endpoint(record))]
        };
        let both = shown(self).into_iter().zip(shown(after));
        both.filter(|(before, after)| before != after)
            .map(|((name, before), (_, after))| (name, before, after))
            .collect()
    }

    /// The settings that differ from `after`. Secrets are not shown.
    pub fn differences(&self, after: &Self) -> Vec<Change> {
        let shown = |record: &Self| {
            [
                ("kind", Some(record.kind.to_string())),
                ("client_id", Some(record.client_id.clone())),
                ("token_url", record.token_url.as_ref().map(Url::to_string)),
                ("client_auth", record.client_auth.map(|auth| auth.name().to_owned())),
                ("redirect_uri", record.redirect_uri.clone()),
                ("username", record.username.clone()),
                ("opportunistic_refresh", record.opportunistic_refresh.map(|on| on.to_string())),
                (
                    "opportunistic_refresh_window_secs",
                    record.opportunistic_refresh_window_secs.map(|secs| secs.to_string()),
                ),
                (
                    "required_while_reserved",
                    record.required_while_reserved.map(|rule| rule.name().to_owned()),
                ),
                ("max_concurrent_refreshes", record.max_concurrent_refreshes.map(|max| max.to_string())),
            ]
        };
        let both = shown(self).into_iter().zip(shown(after));
        let of_columns = both.filter(|((_, before), (_, after))| before != after);
        let of_columns = of_columns.map(|((name, before), (_, after))| (name, before, after));
        let or_default = |value: Option<String>| value.unwrap_or_else(|| "(default)".to_owned());
        let mut changes: Vec<_> = of_columns
            .chain(self.overrides.differences(&after.overrides))
            .map(|(name, before, after)| (name, or_default(before), or_default(after)))
            .collect();
        if !self.has_the_secrets_of(after) {
            changes.push(("client_secret", "(secret)".to_owned(), "(another secret)".to_owned()));
        }
        changes
    }

    fn has_the_secrets_of(&self, other: &Self) -> bool {
        let secrets = |record: &Self| {
            let spare = record.spare_client_secrets.iter();
            [&record.client_secret].into_iter().chain(spare).cloned().collect::<Vec<_>>()
        };
        let (own, others) = (secrets(self), secrets(other));
        own.len() == others.len()
            && own.iter().zip(&others).all(|(own, other)| own.expose_secret() == other.expose_secret())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A provider at `git.example.org` with its kind's defaults.
    pub(in crate::domain::provider) fn provider(kind: ProviderKind) -> Provider {
        let record = ProviderRecord {
            host: "git.example.org".to_owned(),
            kind,
            client_id: "client".to_owned(),
            client_secret: "s3cret".into(),
            spare_client_secrets: Vec::new(),
            token_url: kind.token_url("git.example.org").or("https://git.example.org/token".parse().ok()),
            client_auth: Some(ClientAuth::Body),
            redirect_uri: None,
            username: None,
            opportunistic_refresh: None,
            opportunistic_refresh_window_secs: None,
            required_while_reserved: None,
            max_concurrent_refreshes: None,
            overrides: Overrides::default(),
        };
        record.resolve(1, Timestamp::from_millis(0), None).unwrap()
    }
}
