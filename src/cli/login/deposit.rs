//! Hands the pair of a login to a worker: a sealed `token.store`.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use tokenkeeper::contract::MessageKind;
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::domain::provider::{Lifespan, Provider};
use tokenkeeper::domain::text::UserId;
use tokenkeeper::oauth::IssuedPair;
use tokenkeeper::oauth::login::{Account, LoggedIn};
use tokenkeeper::settings::{Broker, Settings};
use tokenkeeper::store::{Listing, ListingFilter, Store, database};
use tokenkeeper_client::{Client, DeploymentKey, Error, Progress, Published};

use crate::cli::Failure;
use crate::cli::relative::date_and_distance;
use crate::cli::requester::{NoReply, client};

/// How long a worker may take to store a pair.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is published again, within that time: the pair is lost otherwise.
const RETRIES: u32 = 10;

/// The lifetime of an access token with a refresh token about which nothing is known, as for a refreshed one.
const ASSUMED_LIFETIME: Duration = Duration::from_hours(1);

/// The way to the workers.
pub(super) struct Deposit {
    broker: Broker,
    store: Store,
    listing: Listing,
    client: Client,
    progress: Progress,
}

/// A pair that a worker has stored.
pub(super) struct Kept {
    user: UserId,
    host: String,
    /// When the access token expires. None: never.
    expires_at: Option<Timestamp>,
    refreshable: bool,
}

impl Deposit {
    pub(super) async fn open(settings: &Settings, store: &Store) -> Result<Self, Failure> {
        let listing = Listing::new(database::open_migrated(&settings.database).await?);
        let broker = settings.broker.clone();
        let client = client(&broker, "tokenkeeper login").await;
        let client = client.map_err(|error| not_kept(error, &broker))?;
        Ok(Self { broker, store: store.clone(), listing, client, progress: Progress::new() })
    }

    pub(super) const fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Whether a pair has been published.
    pub(super) fn published(&self) -> Published {
        self.progress.published()
    }

    pub(super) async fn close(self) {
        self.client.close().await;
    }

    /// Publishes the pair and waits until a worker has stored it.
    pub(super) async fn keep(
        &self,
        user: &UserId,
        provider: &Provider,
        login: &LoggedIn,
    ) -> Result<Kept, Failure> {
        let LoggedIn { pair, account } = login;
        // Workers compare dates with that of the database.
        let now = self.store.now().await?;
        let expires_at = lifetime(provider.unstated_lifetime, pair).map(|lifetime| now.plus(lifetime));
        let refresh_token_expires_at = pair.refresh_token_expires_in.map(|lifetime| now.plus(lifetime));
        let host = &provider.host;
        let mut request = self
            .client
            .store(user.as_str(), host, pair.access_token.clone())
            .sealed_to(&self.key()?)
            .timeout(PATIENCE)
            .retries(RETRIES)
            .progress(&self.progress);
        if let Some(token) = &pair.refresh_token {
            request = request.refresh_token(token.clone());
        }
        if let Some(date) = expires_at.and_then(date) {
            request = request.expires_at(date);
        }
        if let Some(date) = refresh_token_expires_at.and_then(date) {
            request = request.refresh_token_expires_at(date);
        }
        if let Some(scopes) = &pair.scopes {
            request = request.scopes(scopes);
        }
        let account = match account {
            Some(account) => Some(account.clone()),
            None => self.known_account(user, host).await?,
        };
        if let Some(Account { id, name }) = account {
            request = request.auth_id(id);
            if let Some(name) = name {
                request = request.auth_name(name);
            }
        }
        request.send().await.map_err(|error| not_kept(error, &self.broker))?;
        let refreshable = pair.refresh_token.is_some();
        Ok(Kept { user: user.clone(), host: host.clone(), expires_at, refreshable })
    }

    /// The account that is stored: where the provider does not name one, what another login flow stored stays.
    async fn known_account(&self, user: &UserId, host: &str) -> Result<Option<Account>, Failure> {
        let filter = ListingFilter { user_id: Some(user.to_string()), host: Some(host.to_owned()) };
        let known = self.listing.page(&filter, 0, 1).await?.pop();
        Ok(known.map(|known| Account { id: known.auth_id, name: known.auth_name }))
    }

    /// The public key that every worker can open: the one that this process would seal with.
    fn key(&self) -> Result<DeploymentKey, Failure> {
        let key = self.store.keys().sealing_key();
        let public_key = DeploymentKey::new(&key.login_public_key().to_string());
        Ok(public_key.context("the deployment's public key cannot be used")?.with_id(key.id()))
    }
}

/// As that of a refreshed pair that no pair was before: said by the answer, by the kind, else assumed. A token that nothing can
/// refresh is handed out until its host rejects it. None: for ever.
fn lifetime(unstated: Option<Lifespan>, pair: &IssuedPair) -> Option<Duration> {
    match (pair.expires_in, unstated, &pair.refresh_token) {
        (Some(told), _, _) => Some(told),
        (None, _, None) | (None, Some(Lifespan::Unlimited), _) => None,
        (None, Some(Lifespan::Ends(known)), Some(_)) => Some(known),
        (None, None, Some(_)) => Some(ASSUMED_LIFETIME),
    }
}

fn date(at: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(at.as_millis())
}

fn not_kept(error: Error, broker: &Broker) -> Failure {
    match error {
        Error::Refused(refusal) => {
            Failure::Failed(anyhow!("the tokens were not stored: a worker answered {refusal}"))
        }
        Error::Reply(unusable) => Failure::NoReply(unusable.into()),
        error => Failure::NoReply(NoReply::of(error, MessageKind::TokenStore, broker).into()),
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, host, expires_at, refreshable } = self;
        write!(f, "Stored: {user} is logged in at {host}; the token ")?;
        match expires_at {
            None => f.write_str("never expires"),
            Some(at) => {
                let until = date_and_distance(*at, SystemClock.now());
                let then =
                    if *refreshable { "and is refreshed by workers" } else { "and cannot be refreshed" };
                write!(f, "expires {until} {then}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenkeeper::domain::secret::SecretString;

    #[test]
    fn a_token_without_a_lifetime_lives_as_its_kind_says_or_for_an_hour_if_it_can_be_refreshed() {
        let pair = |expires_in, refreshable: bool| IssuedPair {
            access_token: "a".into(),
            refresh_token: refreshable.then(|| SecretString::from("r")),
            expires_in,
            refresh_token_expires_in: None,
            scopes: None,
        };
        let (hours, told) = (Duration::from_hours, Some(Duration::from_mins(5)));
        let unlimited = Some(Lifespan::Unlimited);
        for (unstated, pair, expected) in [
            (None, pair(told, false), told),
            (unlimited, pair(told, true), told),
            (None, pair(None, true), Some(hours(1))),
            (Some(Lifespan::Ends(hours(8))), pair(None, true), Some(hours(8))),
            (Some(Lifespan::Ends(hours(8))), pair(None, false), None),
            (unlimited, pair(None, true), None),
        ] {
            assert_eq!(lifetime(unstated, &pair), expected, "{unstated:?} {pair:?}");
        }
    }
}
