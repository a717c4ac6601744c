//! What requests for tokens came to.

use std::collections::HashMap;
use std::sync::LazyLock;

use metrics::{Counter, counter, describe_counter};
use parking_lot::RwLock;

use crate::contract::ReportResult;

const REPORTS: &str = "tokenkeeper_token_reports_total";
const REFRESH_REQUESTS: &str = "gitpod_scm_token_refresh_requests_total";

/// What a request for one token came to: label `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenResult {
    /// It was refreshed for this request.
    Success,
    /// Another worker's refresh, or the request's own time, ran out.
    Timeout,
    /// Any other error.
    Error,
    /// The stored token was handed out.
    StillValid,
    /// There is no token.
    NoToken,
    /// Too short, and no refresh token.
    NotRefreshable,
    /// The wait ran out, and the last look found a token.
    SuccessAfterTimeout,
}

impl TokenResult {
    const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::StillValid => "still_valid",
            Self::NoToken => "no_token",
            Self::NotRefreshable => "not_refreshable",
            Self::SuccessAfterTimeout => "success_after_timeout",
        }
    }
}

/// Whether an opportunistic refresh played a part: label `opportunisticRefresh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opportunism {
    /// It was due, and was tried.
    True,
    /// It was not due.
    False,
    /// It was due, but somebody holds the token.
    Reserved,
}

impl Opportunism {
    const fn name(self) -> &'static str {
        match self {
            Self::True => "true",
            Self::False => "false",
            Self::Reserved => "reserved",
        }
    }
}

/// A request for one token was decided.
pub fn token_requested(host: &str, result: TokenResult, opportunism: Opportunism) {
    count(host, result, opportunism);
    tracing::debug!(result = result.name(), opportunistic = opportunism.name(), "token requested");
}

/// Somebody reported that a host rejects a token, and this came of it.
pub fn token_reported(host: &str, result: ReportResult) {
    let result = match result {
        ReportResult::Refreshed => "refreshed",
        ReportResult::Held => "held",
        ReportResult::Withdrawn => "withdrawn",
        ReportResult::NotCurrent => "not_current",
    };
    counter!(REPORTS, "host" => host.to_owned(), "result" => result).increment(1);
    tracing::info!(result, "token reported");
}

/// Describes these metrics.
pub(super) fn describe() {
    describe_counter!(REPORTS, "Tokens that were reported as rejected by their host, by what came of it.");
    describe_counter!(REFRESH_REQUESTS, "Requests for one token, by result.");
}

/// A host's series.
type Series = HashMap<(TokenResult, Opportunism), Counter>;

/// The series are looked up once, since looking one up takes longer than counting. They grow no further than the
/// recorder's own: only hosts that have a provider are counted.
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
