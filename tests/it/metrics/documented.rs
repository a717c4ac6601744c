//! `docs/metrics.md` and `/metrics` have the same metrics, with the same labels.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::store;
use crate::harness::{Dialect, Fault, Kind, PATIENCE, World, eventually};

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

/// Each metric with the names of its labels.
type Metrics = BTreeMap<String, BTreeSet<String>>;

/// The words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the table. Between backticks are metrics in its first column, and their labels in its second one.
fn documented() -> Metrics {
    let mut metrics = Metrics::new();
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `"));
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        for name in quoted(cells[0]) {
            let labels = quoted(cells[1]).map(str::to_owned).collect();
            assert!(metrics.insert(name.to_owned(), labels).is_none(), "{name} stands there twice");
        }
    }
    metrics
}

/// What `/metrics` shows. Histograms have their series' names without the endings.
fn live(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            let name = about.split(' ').next().expect("a name");
            metrics.entry(name.to_owned()).or_default();
        } else if let Some((name, rest)) = line.split_once('{') {
            let name = ["_bucket", "_sum", "_count"]
                .into_iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name);
            let labels = rest.rsplit_once('}').expect("the end of the labels").0;
            let labels = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0.to_owned()));
            metrics.entry(name.to_owned()).or_default().extend(labels.filter(|label| label != "le"));
        }
    }
    metrics
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_metrics_are_those_that_there_are() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    // What has labels that nobody knows before shows up with its first event.
    world.user_with_expired_token("jdoe").await;
    world.request("jdoe").await;
    world.user_with_expired_token("eve").await;
    world.scm.fail_next_for("eve", 1, Fault::InvalidGrant);
    world.request("eve").await;
    store(&world, "dave", json!({"value": "a-token-for-ever"})).await;
    let digest = "0".repeat(64);
    let report = json!({"user_id": "dave", "host": world.scm.host(), "token_sha256": digest});
    world.broker.request("token.report", report).await;

    let documented = documented();

    assert!(documented.len() > 40, "the table was read: {documented:?}");
    // Some are counted a moment after the reply.
    let differences = async || {
        let live = live(&worker.get("metrics").await.1);
        let of = |these: &Metrics, others: &Metrics| -> Vec<String> {
            let missing = these.iter().filter(|(name, labels)| others.get(*name) != Some(labels));
            missing.map(|(name, labels)| format!("{name}{labels:?}")).collect()
        };
        (of(&documented, &live), of(&live, &documented))
    };
    let mut last = (Vec::new(), Vec::new());
    let same = tokio::time::timeout(PATIENCE / 2, async {
        eventually("the same metrics", PATIENCE, async || {
            last = differences().await;
            (last.0.is_empty() && last.1.is_empty()).then_some(())
        })
        .await;
    });
    assert!(same.await.is_ok(), "only in docs/metrics.md: {:#?}\nonly in /metrics: {:#?}", last.0, last.1);
    worker.stop(&world).await;
}
