//! The addresses that a host's name leads to, and which of them may be connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use tokio::net::lookup_host;
use tokio::time::timeout;
use url::Url;

use super::connect::{host_of, port_of};
use crate::domain::network::{Reach, Zone};

/// Finds the addresses of a name.
pub(super) type Lookup = fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

/// How long an operator's command waits for the name service.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn system_lookup(name: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    async move { lookup_host((name.as_str(), port)).await.map(Vec::from_iter) }.boxed()
}

/// The addresses that `reach` permits.
///
/// # Errors
/// It permits none. The text says where the first one leads, and no address: requesters read it too.
pub(super) fn permitted(
    mut addresses: Vec<SocketAddr>,
    host: &str,
    reach: Reach,
) -> Result<Vec<SocketAddr>, String> {
    let first = addresses.first().map_or(Zone::Forbidden, |address| Zone::of(address.ip()));
    addresses.retain(|address| reach.permits(Zone::of(address.ip())));
    if !addresses.is_empty() {
        return Ok(addresses);
    }
    let next = match (reach, first) {
        (Reach::Public, Zone::Private | Zone::Loopback) => {
            "; if that is meant, add allow_private_network = true to the provider file and apply it"
        }
        _ => ", where no provider can be; correct the URL or the name service",
    };
    Err(format!("{host} leads to a {first} address{next}"))
}

/// The address that stands in a URL in place of a name.
pub(super) fn literal(url: &Url) -> Option<SocketAddr> {
    host_of(url).parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port_of(url)))
}

/// Why a worker would not connect to this URL, as far as this machine's name service can tell. `None` also for a name that it
/// does not know, or that a proxy looks up: a worker may see another network.
pub async fn refused(url: &Url, reach: Reach) -> Option<String> {
    permitted(addresses(url).await?, host_of(url), reach).err()
}

/// Whether every address of this URL's host is of the internet. `false` also where that is not known.
pub async fn is_public(url: &Url) -> bool {
    let is_public = |address: &SocketAddr| Zone::of(address.ip()) == Zone::Public;
    addresses(url).await.is_some_and(|addresses| addresses.iter().all(is_public))
}

async fn addresses(url: &Url) -> Option<Vec<SocketAddr>> {
    if let Some(address) = literal(url) {
        return Some(vec![address]);
    }
    let uri = Uri::try_from(url.as_str()).ok()?;
    if Matcher::from_system().intercept(&uri).is_some() {
        return None;
    }
    let found = timeout(PATIENCE, system_lookup(host_of(url).to_owned(), port_of(url))).await;
    found.ok()?.ok().filter(|addresses| !addresses.is_empty())
}
