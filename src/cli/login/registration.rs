//! What an operator registers at the provider, before anybody can log in there.

use tokenkeeper::domain::provider::Provider;

use crate::cli::output::{Output, cell, key_value_table};

pub(super) struct Registration<'a> {
    pub(super) provider: &'a Provider,
    pub(super) scopes: &'a [String],
    /// None: the browser does not come back.
    pub(super) redirect_uri: Option<&'a str>,
}

impl Registration<'_> {
    pub(super) fn print(&self, output: &mut Output) -> anyhow::Result<()> {
        let Self { provider, scopes, redirect_uri } = self;
        let login = provider.kind.login();
        output.line(format_args!(
            "At {} (kind {}) this has to be registered, once:",
            provider.host, provider.kind
        ))?;
        let mut rows = key_value_table();
        let mut add = |name: &str, value: &str| {
            rows.add_row([cell(format_args!("  {name}")), cell(value)]);
        };
        add("where", login.registered_at);
        if let Some(redirect_uri) = redirect_uri {
            add("redirect URI", redirect_uri);
        }
        add("client id", &provider.client_id);
        add("scopes", &if scopes.is_empty() { "those of the client".to_owned() } else { scopes.join(" ") });
        if !login.remark.is_empty() {
            add("note", login.remark);
        }
        output.table(rows)
    }
}
