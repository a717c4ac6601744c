//! `auth_provider.overrides`: providers that were applied before go on being called where they are.
//!
//! From here on a provider's tokens go to its own hosts alone, and to addresses of the internet. What was applied before that
//! rule gets the two settings that allow more (`token_hosts`, `allow_private_network`), as if its operator had written
//! them: an update must not cut a company off from its own servers. `tokenkeeper doctor` tells of those that need neither.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::ConnectionTrait;
use serde_json::{Map, Value};
use url::{Host, Url};

const TABLE: &str = "auth_provider";
const ALLOW_PRIVATE_NETWORK: &str = "allow_private_network";
const TOKEN_HOSTS: &str = "token_hosts";

/// Vendors' own services, which are not in anybody's private network.
const OF_THE_INTERNET: [&str; 7] = [
    "github.com",
    "api.github.com",
    "gitlab.com",
    "bitbucket.org",
    "api.bitbucket.org",
    "dev.azure.com",
    "login.microsoftonline.com",
];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// It can be run again: what is there stays.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        change_all(manager, |host, token_url, overrides| {
            let own = format!("https://{host}/");
            let validate_url = overrides.get("validate_url").and_then(Value::as_str);
            let urls = [Some(token_url.unwrap_or(&own)), validate_url].into_iter().flatten();
            let urls: Vec<Url> = urls.filter_map(|url| Url::parse(url).ok()).collect();
            // This machine needs no permission.
            let urls = urls.iter().filter(|url| !names_loopback(url));
            let called: Vec<&str> = urls.filter_map(Url::host_str).collect();
            if called.iter().any(|name| !OF_THE_INTERNET.contains(name)) {
                overrides.entry(ALLOW_PRIVATE_NETWORK).or_insert(true.into());
            }
            let mut elsewhere = called;
            elsewhere.retain(|name| *name != without_port(host));
            elsewhere.dedup();
            if !elsewhere.is_empty() {
                overrides.entry(TOKEN_HOSTS).or_insert_with(|| elsewhere.into());
            }
        })
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        change_all(manager, |_, _, overrides| {
            overrides.remove(ALLOW_PRIVATE_NETWORK);
            overrides.remove(TOKEN_HOSTS);
        })
        .await
    }
}

/// Changes the overrides of each provider, by its host and token URL.
async fn change_all(
    manager: &SchemaManager<'_>,
    change: impl Fn(&str, Option<&str>, &mut Map<String, Value>),
) -> Result<(), DbErr> {
    let db = manager.get_connection();
    let columns = ["id", "host", "token_url", "overrides"];
    let all = Query::select().columns(columns).from(TABLE).to_owned();
    for row in db.query_all(&all).await? {
        let id: i64 = row.try_get("", "id")?;
        let host: String = row.try_get("", "host")?;
        let token_url: Option<String> = row.try_get("", "token_url")?;
        let written: Option<String> = row.try_get("", "overrides")?;
        let read = written.as_deref().map_or(Ok(Map::new()), serde_json::from_str::<Map<_, _>>);
        let before =
            read.map_err(|error| DbErr::Custom(format!("overrides of auth_provider {id}: {error}")))?;
        let mut after = before.clone();
        change(&host, token_url.as_deref(), &mut after);
        if after == before {
            continue;
        }
        let text = (!after.is_empty()).then(|| Value::Object(after).to_string());
        let update = Query::update()
            .table(TABLE)
            .value("overrides", text)
            .and_where(Expr::col("id").eq(id))
            .to_owned();
        db.execute(&update).await?;
    }
    Ok(())
}

fn names_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    }
}
