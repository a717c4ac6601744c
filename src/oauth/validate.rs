//! Checks whether a provider accepts a token that it issued a moment ago.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use tokio::time::{Instant, timeout_at};
use url::{Position, Url};
use zeroize::Zeroizing;

use super::TokenClient;
use super::connection::Message;
use crate::domain::provider::Provider;
use crate::domain::secret::{ExposeSecret, SecretString};
use crate::retry::{Backoff, retry_forever};

/// Providers that need time need less than a second.
const WAITS: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_secs(1));

impl TokenClient {
    /// Sends requests with the access token (RFC 6750, section 2.1) until the answer is not 401, or until `until`. Any
    /// other answer says nothing about the token. Returns whether the token was accepted.
    pub async fn wait_until_accepted(
        &self,
        provider: &Provider,
        url: &Url,
        token: &SecretString,
        until: Instant,
    ) -> bool {
        let accepted = retry_forever(WAITS, async |_| {
            (self.status(provider, url, token).await != Some(StatusCode::UNAUTHORIZED)).then_some(())
        });
        timeout_at(until, accepted).await.is_ok()
    }

    /// The answer's status, or `None` without an answer. The connection is not reused, because nobody reads the body.
    async fn status(&self, provider: &Provider, url: &Url, token: &SecretString) -> Option<StatusCode> {
        let reach = provider.reach(url).ok()?;
        let (_connection, response) = self.send(url, reach, get(url, token).ok()?).await.ok()?;
        Some(response.status())
    }
}

fn get(url: &Url, token: &SecretString) -> Result<Message, hyper::http::Error> {
    let bearer = Zeroizing::new(format!("Bearer {}", token.expose_secret()));
    let mut bearer = HeaderValue::from_str(&bearer)?;
    bearer.set_sensitive(true);
    Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(USER_AGENT, concat!("tokenkeeper/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/json")
        .header(AUTHORIZATION, bearer)
        .body(Full::new(Bytes::new()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::testing::{Endpoint, Reply, http, provider};
    use super::*;
    use crate::domain::clock::{ManualClock, Timestamp};
    use crate::domain::provider::ProviderKind;

    async fn asked(statuses: [&'static str; 3], patience: Duration) -> (bool, usize) {
        let calls = AtomicUsize::new(0);
        let endpoint = Endpoint::start(move |_| {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            Reply::Bytes(http(statuses[call.min(2)], "", "{}"))
        })
        .await;
        let clock = ManualClock::at(Timestamp::from_millis(0));
        let client =
            TokenClient::new(Duration::from_secs(1), Duration::from_secs(1), Arc::new(clock)).unwrap();
        let url = Url::parse(&format!("http://127.0.0.1:{}/user?x=1", endpoint.port)).unwrap();
        let (provider, until) = (provider(ProviderKind::Generic), Instant::now() + patience);
        let accepted = client.wait_until_accepted(&provider, &url, &"t0ken".into(), until).await;
        for seen in endpoint.seen() {
            assert_eq!(seen.line, "GET /user?x=1 HTTP/1.1");
            assert_eq!(seen.headers["authorization"], "Bearer t0ken");
        }
        (accepted, endpoint.seen().len())
    }

    #[tokio::test]
    async fn a_new_token_is_tried_until_the_provider_accepts_it() {
        let (unauthorised, ok) = ("401 Unauthorized", "200 OK");
        let patience = Duration::from_secs(30);
        assert_eq!(asked([ok; 3], patience).await, (true, 1));
        assert_eq!(asked([unauthorised, unauthorised, ok], patience).await, (true, 3));
        assert_eq!(asked(["500 Internal Server Error", ok, ok], patience).await, (true, 1));
        assert!(!asked([unauthorised; 3], Duration::from_millis(50)).await.0);
    }

    #[tokio::test]
    async fn a_token_is_not_sent_without_tls_or_to_a_host_that_is_not_the_providers() {
        let clock = ManualClock::at(Timestamp::from_millis(0));
        let client =
            TokenClient::new(Duration::from_secs(1), Duration::from_secs(1), Arc::new(clock)).unwrap();
        // This machine, by an address that does not say so: it could be reached.
        let endpoint = Endpoint::start(|_| Reply::Bytes(http("200 OK", "", "{}"))).await;
        let reachable = format!("http://[::ffff:127.0.0.1]:{}/user", endpoint.port);
        let provider = Provider { allow_private_network: true, ..provider(ProviderKind::Generic) };
        for url in [&reachable, "http://git.example.org/user", "https://elsewhere.example.org/user"] {
            let url = Url::parse(url).unwrap();
            assert_eq!(client.status(&provider, &url, &"t0ken".into()).await, None);
        }
        assert_eq!(endpoint.seen().len(), 0);
    }
}
