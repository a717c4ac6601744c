//! `tokenkeeper provider list`

use std::collections::BTreeMap;
use std::slice;

use serde::Serialize;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::provider::{ClientAuth, Lifespan, Provider, ProviderKind, RequiredWhileReserved};
use tokenkeeper::store::Store;

use crate::cli::output::{Output, cell, note, or_nothing, table, yes_no};
use crate::cli::{Ending, Failure};

/// Lists the providers and their settings, without client secrets
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Prints a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(store: &Store, arguments: &Arguments) -> Result<Ending, Failure> {
    let providers: Vec<Shown> = store.all_providers().await?.into_iter().map(Shown::from).collect();
    let mut output = Output::new();
    if arguments.json {
        output.json(&providers)?;
    } else if providers.is_empty() {
        note("There are no providers; `tokenkeeper provider apply FILE` creates them.");
    } else {
        output.table(rows(&providers))?;
    }
    Ok(Ending::Good)
}

/// A provider without its secrets, with the keys of the provider file.
#[derive(Serialize)]
struct Shown {
    host: String,
    other_hosts: Vec<String>,
    kind: ProviderKind,
    client_id: String,
    token_url: String,
    token_hosts: Vec<String>,
    allow_private_network: bool,
    client_auth: ClientAuth,
    redirect_uri: Option<String>,
    username: String,
    opportunistic_refresh: bool,
    opportunistic_refresh_window_secs: Option<u64>,
    required_while_reserved: RequiredWhileReserved,
    max_concurrent_refreshes: usize,
    old_token_grace_secs: Lifespan,
    refresh_token_grace_secs: Lifespan,
    refresh_token_idle_lifetime_secs: Option<Lifespan>,
    unstated_lifetime_secs: Option<Lifespan>,
    refresh_parameters: BTreeMap<String, String>,
    validate_url: Option<String>,
    authorization_url: Option<String>,
    device_authorization_url: Option<String>,
    login_scopes: Vec<String>,
    client_secrets: usize,
    refusing_since: Option<Timestamp>,
}

impl From<Provider> for Shown {
    fn from(provider: Provider) -> Self {
        Self {
            authorization_url: provider.authorization_url().map(String::from),
            device_authorization_url: provider.device_authorization_url().map(String::from),
            login_scopes: provider.login_scopes(),
            host: provider.host,
            other_hosts: provider.other_hosts,
            kind: provider.kind,
            client_id: provider.client_id,
            token_url: provider.token_url.into(),
            token_hosts: provider.token_hosts,
            allow_private_network: provider.allow_private_network,
            client_auth: provider.client_auth,
            redirect_uri: provider.redirect_uri,
            username: provider.username,
            opportunistic_refresh: provider.opportunistic_refresh,
            opportunistic_refresh_window_secs: provider
                .opportunistic_refresh_window
                .map(|window| window.as_secs()),
            required_while_reserved: provider.required_while_reserved,
            max_concurrent_refreshes: provider.max_concurrent_refreshes,
            old_token_grace_secs: provider.old_token_grace,
            refresh_token_grace_secs: provider.refresh_token_grace,
            refresh_token_idle_lifetime_secs: provider.refresh_token_idle_lifetime.map(Lifespan::Ends),
            unstated_lifetime_secs: provider.unstated_lifetime,
            refresh_parameters: provider.refresh_parameters.into_iter().collect(),
            validate_url: provider.validate_url.map(String::from),
            client_secrets: 1 + provider.spare_client_secrets.len(),
            refusing_since: provider.refusing_since,
        }
    }
}

fn rows(providers: &[Shown]) -> comfy_table::Table {
    let mut rows = table([
        "HOST",
        "KIND",
        "OPPORTUNISTIC",
        "WINDOW",
        "WHILE RESERVED",
        "AT ONCE",
        "OLD TOKEN",
        "USERNAME",
        "CLIENT ID",
        "AUTH",
        "TOKEN URL",
        "PRIVATE NETWORK",
        "REDIRECT URI",
        "REFUSES EVERYBODY SINCE",
    ]);
    rows.add_rows(providers.iter().map(|provider| {
        [
            cell(hosts(provider)),
            cell(provider.kind),
            cell(yes_no(provider.opportunistic_refresh)),
            cell(or_nothing(provider.opportunistic_refresh_window_secs.map(|secs| format!("{secs}s")))),
            cell(provider.required_while_reserved.name()),
            cell(provider.max_concurrent_refreshes),
            cell(old_token(provider.old_token_grace_secs)),
            cell(&provider.username),
            cell(&provider.client_id),
            cell(provider.client_auth.name()),
            cell(&provider.token_url),
            cell(yes_no(provider.allow_private_network)),
            cell(or_nothing(provider.redirect_uri.as_ref())),
            cell(or_nothing(provider.refusing_since)),
        ]
    }));
    rows
}

fn hosts(provider: &Shown) -> String {
    [slice::from_ref(&provider.host), &provider.other_hosts].concat().join(" ")
}

fn old_token(grace: Lifespan) -> String {
    match grace {
        Lifespan::NONE => "dies at once".to_owned(),
        Lifespan::Ends(grace) => format!("dies after {}s", grace.as_secs()),
        Lifespan::Unlimited => "lives on".to_owned(),
    }
}
