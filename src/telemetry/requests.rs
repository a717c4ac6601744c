//! Results of requests for tokens.

use std::collections::HashMap;
use std::sync::LazyLock;

use metrics::{Counter, counter, describe_counter};
use parking_lot::RwLock;

use super::label;
use crate::contract::ReportResult;

const REPORTS: &str = "tokenkeeper_token_reports_total";
const REFRESH_REQUESTS: &str = "gitpod_scm_token_refresh_requests_total";

label! {
    /// Label `result`.
    pub enum TokenResult {
        /// The token was refreshed for this request.
        Success = "success",
        /// Another worker's refresh or this request took too long.
        Timeout = "timeout",
        Error = "error",
        StillValid = "still_valid",
        NoToken = "no_token",
        /// The token expires too soon, and there is no refresh token.
        NotRefreshable = "not_refreshable",
        /// The wait timed out, but the final check found a token.
        SuccessAfterTimeout = "success_after_timeout",
    }
}

label! {
    /// Label `opportunisticRefresh`.
    pub enum Opportunism {
        /// An opportunistic refresh was due and was tried.
        True = "true",
        False = "false",
        /// It was due, but the token is reserved.
        Reserved = "reserved",
    }
}

pub fn token_requested(host: &str, result: TokenResult, opportunism: Opportunism) {
    count(host, result, opportunism);
    tracing::debug!(result = result.name(), opportunistic = opportunism.name(), "token requested");
}

pub fn token_reported(host: &str, result: ReportResult) {
    let result = result.name();
    counter!(REPORTS, "host" => host.to_owned(), "result" => result).increment(1);
    tracing::info!(result, "token reported");
}

pub(super) fn describe() {
    describe_counter!(REPORTS, "Reports of tokens that a host rejects, by result.");
    describe_counter!(REFRESH_REQUESTS, "Requests for one token, by result.");
}

type Series = HashMap<(TokenResult, Opportunism), Counter>;

/// The series are looked up once, because a lookup takes longer than counting. Their number is bounded: only hosts with
/// a provider are counted.
fn count(host: &str, result: TokenResult, opportunism: Opportunism) {
    static HOSTS: LazyLock<RwLock<HashMap<String, Series>>> = LazyLock::new(RwLock::default);
    let labels = (result, opportunism);
    {
        let hosts = HOSTS.read();
        if let Some(counter) = hosts.get(host).and_then(|series| series.get(&labels)) {
            return counter.increment(1);
        }
    }
    let counter = counter!(
        REFRESH_REQUESTS,
        "host" => host.to_owned(), "result" => result.name(), "opportunisticRefresh" => opportunism.name()
    );
    counter.increment(1);
    let mut hosts = HOSTS.write();
    hosts.entry(host.to_owned()).or_default().insert(labels, counter);
}
