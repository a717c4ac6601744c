//! The Prometheus recorder behind `/metrics`.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::{HANDLING, REFRESH_LATENCY};

/// In seconds, as existing dashboards expect.
const REFRESH_BUCKETS: [f64; 8] = [0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// In seconds. A hot request takes a millisecond, a request that waits for a refresh up to ten seconds.
const HANDLING_BUCKETS: [f64; 12] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// How often histograms are drained into their buckets. The exporter does not do it itself, and keeps every sample
/// until it is done.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Installs the recorder for this process and sets every known series to zero. Fails if there is a recorder already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(REFRESH_LATENCY.into()), &REFRESH_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(HANDLING.into()), &HANDLING_BUCKETS)?
        .install_recorder()?;
    super::describe();
    Ok(handle)
}
