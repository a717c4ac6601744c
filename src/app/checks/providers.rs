//! The providers, without spending a token, and the users who must log in again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::DatabaseConnection;
use tokio::time::{Instant, timeout};

use super::within;
use crate::domain::clock::SystemClock;
use crate::domain::finding::Finding;
use crate::domain::problem::Problem;
use crate::domain::provider::Provider;
use crate::oauth::{ClientRefusal, RefreshError, TokenClient, address};
use crate::settings::Settings;
use crate::store::database::Place;
use crate::store::{Store, standings};

/// A refresh token that no provider has issued.
const NOBODYS_TOKEN: &str = "tokenkeeper-doctor-asks-with-no-token";

pub(super) async fn look(
    settings: &Settings,
    db: Option<DatabaseConnection>,
    limit: Duration,
) -> Vec<Finding> {
    let Some(db) = db else {
        let why = format!("{} cannot be read", Place::new(&settings.database).url());
        return vec![Finding::not_looked("providers", &why), Finding::not_looked("users", why)];
    };
    let mut findings = match timeout(limit, providers(settings, &db)).await {
        Ok(Ok(providers)) => ask_all(settings, &providers, limit).await,
        Ok(Err(finding)) => vec![finding],
        Err(_) => vec![Finding::not_looked("providers", "the database does not answer in time")],
    };
    findings.extend(within("users", limit, users(db)).await);
    findings
}

async fn providers(settings: &Settings, db: &DatabaseConnection) -> Result<Vec<Provider>, Finding> {
    const CHECK: &str = "providers";
    let keys = settings.key_ring().map_err(|error| Finding::not_looked(CHECK, error.to_string()))?;
    let providers = Store::new(db.clone(), keys).all_providers().await;
    let providers = providers.map_err(|error| {
        let cause = error.to_string();
        Finding::wrong(
            CHECK,
            Problem::new("the providers cannot be read", cause, "tokenkeeper provider list"),
        )
    })?;
    if providers.is_empty() {
        let problem = Problem::new(
            "there are no providers",
            "nobody has applied any",
            "tokenkeeper provider apply FILE",
        );
        return Err(Finding::warning(CHECK, problem));
    }
    Ok(providers)
}

async fn ask_all(settings: &Settings, providers: &[Provider], limit: Duration) -> Vec<Finding> {
    let (connect, total) = (settings.refresh.connect_timeout, settings.refresh.total_timeout);
    let client = match TokenClient::with_tls(connect, total, Arc::new(SystemClock), &settings.refresh.tls) {
        Ok(client) => client,
        Err(error) => {
            let problem = Problem::new(
                "no provider can be asked",
                error.to_string(),
                "apt-get install ca-certificates",
            );
            return vec![Finding::wrong("providers", problem)];
        }
    };
    let asked = providers.iter().map(|provider| {
        let check = format!("provider {}", provider.host);
        let client = client.clone();
        async move {
            let ask = async { vec![ask(&client, provider, &check).await] };
            within(&check, limit, ask).await
        }
    });
    join_all(asked).await.concat()
}

/// Asks the token endpoint to refresh a token that nobody has. The answer of a good one is OAuth's, and a refusal.
async fn ask(client: &TokenClient, provider: &Provider, check: &str) -> Finding {
    let begin = Instant::now();
    let answer = client.refresh(provider, &NOBODYS_TOKEN.into(), &[]).await;
    let took = begin.elapsed();
    let host = &provider.host;
    let problem = match answer {
        Err(RefreshError::Refused { .. }) => match provider.refusing_since {
            None if provider.allow_private_network && address::is_public(&provider.token_url).await => {
                let what = format!("{host} may be in a private network, and is not");
                let cause =
                    "allow_private_network is set, by its provider file or by the update that brought it";
                let next = "leave it out: tokenkeeper provider apply FILE";
                return Finding::warning(check, Problem::new(what, cause, next));
            }
            None => return Finding::good(check, format!("its token endpoint answers in {took:.0?}")),
            Some(since) => Problem::new(
                format!("{host} has refused everybody since {since}"),
                "its client secret was changed, or redirect_uri is missing",
                "tokenkeeper provider apply FILE",
            ),
        },
        Ok(_) => {
            let what = format!("{host} issues tokens for a refresh token that nobody has");
            return Finding::warning(
                check,
                Problem::new(what, "this is no real provider", "correct token_url"),
            );
        }
        Err(RefreshError::Misconfigured {
            client: ClientRefusal::Certain | ClientRefusal::Perhaps,
            detail,
        }) => Problem::new(
            format!("{host} refuses our client_id or client_secret"),
            detail,
            "correct them: tokenkeeper provider apply FILE",
        ),
        Err(RefreshError::Misconfigured { client: ClientRefusal::No, detail }) => Problem::new(
            format!("{host} does not refresh tokens at token_url"),
            detail,
            "correct the provider: tokenkeeper provider apply FILE",
        ),
        Err(RefreshError::Unreadable { detail }) => Problem::new(
            format!("what answers at token_url of {host} is no token endpoint"),
            detail,
            "correct token_url: tokenkeeper provider apply FILE",
        ),
        Err(RefreshError::Unavailable { detail, .. }) => {
            Problem::new(format!("{host} cannot be asked"), detail, format!("curl -v {}", shown(provider)))
        }
        Err(RefreshError::Local { detail }) => Problem::new(
            format!("this machine cannot reach {host}"),
            detail,
            format!("curl -v {}", shown(provider)),
        ),
    };
    Finding::wrong(check, problem)
}

/// The URL without what may be a secret.
fn shown(provider: &Provider) -> String {
    let mut url = provider.token_url.clone();
    url.set_query(None);
    // It fails for URLs that have no user info either.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    url.into()
}

/// Who must log in again, by host.
async fn users(db: DatabaseConnection) -> Vec<Finding> {
    const CHECK: &str = "users";
    let hosts = standings(&db).await.map(|mut hosts| {
        hosts.retain(|host| host.must_log_in > 0);
        hosts
    });
    let finding = match hosts {
        Err(error) => Finding::not_looked(CHECK, error.to_string()),
        Ok(hosts) if hosts.is_empty() => Finding::good(CHECK, "nobody must log in again"),
        Ok(hosts) => {
            let all: u32 = hosts.iter().map(|host| host.must_log_in).sum();
            let by_host: Vec<String> =
                hosts.iter().map(|host| format!("{} at {}", host.must_log_in, host.host)).collect();
            let what = format!("{all} tokens wait for their users to log in again: {}", by_host.join(", "));
            let cause = "their providers refuse the refresh tokens";
            Finding::warning(
                CHECK,
                Problem::new(what, cause, "tokenkeeper token list --json, and ask those users"),
            )
        }
    };
    vec![finding]
}
