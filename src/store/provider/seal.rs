//! What keeps a provider's row from being changed by whoever can write the database: its secrets open only beside the settings
//! that they were applied with.

use tokenkeeper_entity::auth_provider;

use super::json;
use crate::domain::provider::ProviderRecord;
use crate::domain::secret::{Binding, ExposeSecret, Sealer, SecretString};
use crate::store::Store;

/// The two encrypted columns of a provider.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) enum SecretColumn {
    ClientSecret,
    SpareClientSecrets,
}

impl SecretColumn {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ClientSecret => "client_secret_sealed",
            Self::SpareClientSecrets => "spare_client_secrets_sealed",
        }
    }

    /// What it is bound to: the row, and every setting there. `refusing_since` is left out: workers write it, and a wrong one
    /// delays refreshes alone.
    pub(in crate::store) fn binding(self, row: &auth_provider::Model) -> Binding {
        let auth_provider::Model {
            id,
            host,
            kind,
            client_id,
            client_secret_sealed: _,
            spare_client_secrets_sealed,
            key_id: _,
            token_url,
            client_auth,
            redirect_uri,
            username,
            opportunistic_refresh,
            opportunistic_refresh_window_secs,
            required_while_reserved,
            max_concurrent_refreshes,
            overrides,
            refusing_since: _,
            created_at: _,
            updated_at,
        } = row;
        Binding::new("auth_provider", self.name())
            .number(*id)
            .text(host)
            .text(kind)
            .text(client_id)
            // Whether there are spare secrets.
            .number(spare_client_secrets_sealed.is_some().into())
            .optional_text(token_url.as_deref())
            .optional_text(client_auth.as_deref())
            .optional_text(redirect_uri.as_deref())
            .optional_text(username.as_deref())
            .optional_number(opportunistic_refresh.map(i64::from))
            .optional_number(*opportunistic_refresh_window_secs)
            .optional_text(required_while_reserved.as_deref())
            .optional_number(max_concurrent_refreshes.map(i64::from))
            .optional_text(overrides.as_deref())
            .number(*updated_at)
            .in_format_1(format!("auth_provider/{}/{host}", self.name()))
    }
}

impl Store {
    /// The row with the record's secrets, sealed as everything is sealed now.
    pub(super) fn seal_row(
        &self,
        row: auth_provider::Model,
        record: &ProviderRecord,
    ) -> auth_provider::Model {
        seal(&self.keys.sealer(), row, &record.client_secret, spare_secrets(record).as_ref())
    }
}

/// The row with these secrets.
pub(in crate::store) fn seal(
    sealer: &Sealer<'_>,
    mut row: auth_provider::Model,
    secret: &SecretString,
    spare: Option<&SecretString>,
) -> auth_provider::Model {
    // Whether there are any is part of what both are bound to.
    row.spare_client_secrets_sealed = spare.map(|_| Vec::new());
    let spare = spare.map(|spare| sealer.seal(spare, SecretColumn::SpareClientSecrets.binding(&row)).bytes);
    let secret = sealer.seal(secret, SecretColumn::ClientSecret.binding(&row));
    row.spare_client_secrets_sealed = spare;
    row.client_secret_sealed = secret.bytes;
    row.key_id = secret.key_id;
    row
}

/// All secrets as one.
fn spare_secrets(record: &ProviderRecord) -> Option<SecretString> {
    let spare: Vec<&str> = record.spare_client_secrets.iter().map(ExposeSecret::expose_secret).collect();
    (!spare.is_empty()).then(|| json(&spare).into())
}
