//! An HTTP client for a test's own questions.

use std::time::Duration;

use rustls::crypto::{CryptoProvider, ring};

/// A client that follows no redirect, uses no proxy and gives up after 30 s.
///
/// reqwest is built without a TLS provider of its own and panics where none is installed in the process; this
/// installs ring's first, as the worker does.
#[expect(clippy::disallowed_methods, reason = "a test's questions are not the worker's refreshes")]
pub fn client() -> reqwest::Client {
    if CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster, and then there is one.
        let _ = ring::default_provider().install_default();
    }
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .expect("build an HTTP client")
}
