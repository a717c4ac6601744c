//! What the pages of a login have in common: how connections are served, and what every answer says to a browser.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Extension, Request};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use axum::{Router, middleware};
use tokenkeeper::app::connections::{Connections, converse};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a running answer may still take when the listener ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long a connection may be idle: longer than a provider and a worker take for a login together.
const PATIENCE: Duration = Duration::from_secs(90);

/// The pause after a failed accept, for an open file to be closed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// No script at all, nothing from elsewhere, and no frame of another site around it.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (CACHE_CONTROL, "no-store"),
    // The URL of a page may hold a code.
    (REFERRER_POLICY, "no-referrer"),
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_FRAME_OPTIONS, "DENY"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves until it is stopped. Each request carries its [`Peer`].
pub(super) async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let router = router.layer(middleware::from_fn(protect));
    let mut connections =
        Connections::new(|| tracing::warn!("too many connections: the longest idle is closed"));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, address)) = accepted else {
            // Most likely the limit of open files is reached.
            connections.close_longest_idle();
            sleep(ACCEPT_AGAIN).await;
            continue;
        };
        connections.admit(|last_active| {
            let router = router.clone().layer(Extension(Peer(address)));
            converse(stream, router, last_active, PATIENCE, stop.clone())
        });
    }
    let _ = timeout(LAST_ANSWERS, connections.ended()).await;
}

async fn protect(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        // A style sheet may be kept.
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Whether the request names this authority: a page of another site, whose name leads to this machine, does not.
pub(super) fn is_for(headers: &HeaderMap, authorities: &[String]) -> bool {
    let mut named = headers.get_all(HOST).iter();
    let (first, second) = (named.next(), named.next());
    let first = first.and_then(|host| host.to_str().ok());
    second.is_none()
        && first.is_some_and(|host| authorities.iter().any(|known| known.eq_ignore_ascii_case(host)))
}

/// For the text of HTML, and for values in quotes.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for symbol in tokenkeeper::domain::escape::line(text).chars() {
        match symbol {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            symbol => escaped.push(symbol),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_place_in_a_page() {
        let text = "<script>'\"&\u{202e}\u{1b}[2J";
        assert_eq!(escaped(text), "&lt;script&gt;&#39;&quot;&amp;\\u202e\\u001b[2J");
    }

    #[test]
    fn a_request_names_one_host_that_is_known() {
        let headers = |hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, HeaderValue::from_static(host));
            }
            headers
        };
        let known = ["127.0.0.1:7919".to_owned(), "logins.example.org".to_owned()];
        assert!(is_for(&headers(&["127.0.0.1:7919"]), &known));
        assert!(is_for(&headers(&["Logins.example.org"]), &known));
        for hosts in [&[][..], &["evil.example:7919"], &["127.0.0.1"], &["127.0.0.1:7919", "127.0.0.1:7919"]]
        {
            assert!(!is_for(&headers(hosts), &known), "{hosts:?}");
        }
    }
}
