//! `token.store`: a pair that a login flow obtained, kept from here on.

use super::refusal::Refusal;
use super::{Handler, Outcome, TimeFrame};
use crate::contract::{
    Echo, ErrorBody, ErrorCode, ErrorReply, MessageKind, SealedStoreRequest, ShortText, StoreReply,
    StoreRequest, UnknownFields,
};
use crate::domain::clock::Timestamp;
use crate::store::{AccountNames, LoginEffect, NewPair, PairSource, StoredLogin};
use crate::telemetry;
use crate::telemetry::audit::{self, Asker};

/// Whether the broker could read the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seal {
    None,
    Opened,
}

impl Handler {
    /// Opens a sealed login and stores its pair. One that does not open is kept, as every message that breaks the contract is: it
    /// may have been sealed to a key that this worker lacks.
    pub(super) async fn store_sealed_pair(
        &self,
        request: &SealedStoreRequest,
        time: TimeFrame,
        asker: Asker<'_>,
    ) -> Outcome {
        let mut unknown = UnknownFields::default();
        let opened = request.open(&self.keys, &mut unknown);
        if !unknown.is_empty() {
            telemetry::unknown_fields(asker.kind);
        }
        let mut outcome = match opened {
            Ok(login) => Outcome::store(self.store_pair(login, time, asker, Seal::Opened).await),
            Err(invalid) => {
                let echo = Echo::of_user(request.user_id.as_str(), request.host.as_str());
                let refused = Outcome::invalid(MessageKind::TokenStore, echo, invalid.to_string());
                refused.audit(asker);
                refused
            }
        };
        outcome.warn_of(unknown);
        outcome
    }

    pub(super) async fn store_pair(
        &self,
        request: StoreRequest,
        time: TimeFrame,
        asker: Asker<'_>,
        seal: Seal,
    ) -> StoreReply {
        let echo = Echo::of_user(request.user_id.as_str(), request.host.as_str());
        let login = Login::from(request);
        let stored = self.in_time(time, || self.try_store(&login, asker)).await;
        match stored {
            Ok(StoredLogin { effect, generation }) => {
                let sealed = seal == Seal::Opened;
                audit::stored(asker, &login.user_id, &login.host, effect.name(), generation, sealed);
                StoreReply::Ok { warnings: Vec::new() }
            }
            Err(error) => {
                audit::refused(asker, Some(&login.user_id), Some(&login.host), error.code);
                StoreReply::Error(ErrorReply::new(echo, error))
            }
        }
    }

    async fn try_store(&self, login: &Login, asker: Asker<'_>) -> Result<StoredLogin, Refusal> {
        let provider = self.allowed_provider(asker, &login.host).await?;
        let now = self.clock.now();
        let Login { user_id, account, pair, .. } = login;
        let stored = self.store.put_login(user_id, provider.id, account, pair, false, now).await?;
        match stored.effect {
            LoginEffect::Created | LoginEffect::Replaced => {
                let (host, whose) = (&provider.host, (user_id.as_str(), account));
                self.journal.logged_in(host, whose, pair, stored.generation, now).await;
                tracing::info!("token pair stored");
            }
            LoginEffect::Kept => tracing::info!("the login is repeated: the stored token pair stays"),
        }
        Ok(stored)
    }
}

/// A `token.store` with what it leaves out filled in.
pub struct Login {
    pub user_id: String,
    pub host: String,
    pub account: AccountNames,
    pub pair: NewPair,
}

impl From<StoreRequest> for Login {
    fn from(request: StoreRequest) -> Self {
        let text = |text: Option<ShortText>| text.map(|text| text.to_string());
        let user_id = request.user_id.to_string();
        let account = AccountNames {
            auth_id: text(request.auth_id).unwrap_or_else(|| user_id.clone()),
            auth_name: text(request.auth_name),
        };
        let scopes = request.token.scopes.unwrap_or_default();
        let pair = NewPair {
            access_token: request.token.value,
            refresh_token: request.token.refresh_token,
            username: request.token.username.map(|username| username.to_string()),
            scopes: scopes.iter().map(ShortText::to_string).collect(),
            expires_at: request.token.expires_at.filter(|at| is_set(*at)),
            refresh_token_expires_at: request.token.refresh_token_expires_at.filter(|at| is_set(*at)),
            source: PairSource::Login,
        };
        Self { user_id, host: request.host.to_string(), account, pair }
    }
}

/// Whether somebody set this date. Unset it is the first second of the year 1 in Go, and the epoch elsewhere.
const fn is_set(at: Timestamp) -> bool {
    at.as_millis() > 0
}

impl Refusal {
    pub(super) fn unknown_host(host: &str) -> Self {
        let message =
            format!("no provider has the host {host}; `tokenkeeper provider list` shows those there are");
        Self::Answer(ErrorBody::new(ErrorCode::UnknownHost, message))
    }
}
