//! Pairs that could not be stored before their worker had to stop, on their way back to the database.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::contents::Contents;
use super::entry::Entry;
use super::pair::NewPair;
use super::{Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::secret::{Binding, ExposeSecret, SecretString};

/// A refreshed pair outside of the database. Its secrets are encrypted, and bound to the entry and the generation that it
/// follows. So whoever can write to the queue or the folder cannot bring in a pair of their own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ParkedPair {
    /// Where it was refreshed.
    pub host: String,
    pub entry_id: i64,
    /// The generation that it was obtained from.
    pub generation: i64,
    /// Under whose lease it was refreshed.
    holder: String,
    identity_id: i64,
    key_id: String,
    /// Base64 of the sealed pair in JSON.
    sealed: String,
}

/// The outcome for a parked pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    Stored,
    /// A newer pair is there, or the entry is gone.
    Superseded,
}

impl ParkedPair {
    /// The content of a message or a file.
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "every field has a JSON form")]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a parked pair has a JSON form")
    }

    /// Reads what [`ParkedPair::encode`] wrote.
    ///
    /// # Errors
    /// The text is not JSON, or lacks a field.
    pub fn decode(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// The key that sealed it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// `user` and `provider_id` are the entry's. They do not stand in the pair, so they must be right in the row that it comes
    /// back to.
    fn binding(&self, user: &str, provider_id: i64) -> Binding {
        let format_1 = format!("parked_pair/{}/{}/{}", self.entry_id, self.identity_id, self.generation);
        Binding::new("parked_pair", "sealed")
            .number(self.entry_id)
            .number(self.identity_id)
            .text(user)
            .number(provider_id)
            .number(self.generation)
            .text(&self.host)
            .text(&self.holder)
            .also_in_format_1(format_1)
    }
}

impl Store {
    /// Encrypts a pair that follows `entry`.
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "every field has a JSON form")]
    pub fn seal_parked(&self, host: &str, entry: &Entry, pair: &NewPair, holder: &str) -> ParkedPair {
        let contents = Contents::of(pair);
        let json = SecretString::from(serde_json::to_string(&contents).expect("a pair has a JSON form"));
        let mut parked = ParkedPair {
            host: host.to_owned(),
            entry_id: entry.id,
            generation: entry.generation,
            holder: holder.to_owned(),
            identity_id: entry.identity_id,
            key_id: String::new(),
            sealed: String::new(),
        };
        let sealed = self.keys.seal(&json, parked.binding(&entry.user_id, entry.provider_id));
        parked.sealed = BASE64.encode(sealed.bytes);
        parked.key_id = sealed.key_id;
        parked
    }

    /// Stores a parked pair by the same rule as its flight.
    pub async fn store_parked(
        &self,
        parked: &ParkedPair,
        now: Timestamp,
    ) -> Result<Restored, Arc<StoreError>> {
        let Some(current) = self.reload(parked.entry_id).await? else { return Ok(Restored::Superseded) };
        if current.identity_id != parked.identity_id {
            return Ok(Restored::Superseded);
        }
        self.check(&current)?;
        let pair = self.open_parked(parked, &current)?;
        let as_it_was = Entry { generation: parked.generation, ..current };
        let stored = self.store_refreshed(&as_it_was, &pair, &parked.holder, now).await?;
        Ok(if stored.is_some() { Restored::Stored } else { Restored::Superseded })
    }

    fn open_parked(&self, parked: &ParkedPair, current: &Entry) -> Result<NewPair, StoreError> {
        let what = || format!("the parked pair of token_entry {}", parked.entry_id);
        let corrupt = |reason: String| StoreError::Corrupt { what: what(), reason };
        let sealed = BASE64.decode(&parked.sealed).map_err(|error| corrupt(error.to_string()))?;
        let json = self
            .keys
            .open(&parked.key_id, &sealed, parked.binding(&current.user_id, current.provider_id))
            .map_err(|source| StoreError::Sealed { what: what(), source })?;
        // Its own words could repeat what stands there.
        let contents: Contents<SecretString> =
            serde_json::from_str(json.expose_secret()).map_err(|error| {
                corrupt(format!("its contents are not as written, at column {}", error.column()))
            })?;
        Ok(contents.into())
    }
}
