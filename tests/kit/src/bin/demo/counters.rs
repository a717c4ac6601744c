//! The workers' counters, read from `/metrics` and laid side by side.

use std::{collections::BTreeMap, error::Error, str::FromStr};

use anyhow::{Context, Result};

/// Every metric of one worker.
pub(crate) struct Counters(Vec<Sample>);

/// One line of the Prometheus text format
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
struct Sample {
    name: String,
    /// As they stand there: `name="value"`.
    labels: Vec<String>,
    value: String,
}

impl Counters {
    /// Reads what `/metrics` answered.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(Self(lines.map(Sample::parse).collect::<Result<_>>()?))
    }

    /// The sum over all series of this name that have all of these labels; they count whole things.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> Result<usize> {
        let matching = self.0.iter().filter(|sample| sample.name == name && sample.has(labels));
        matching.map(Sample::read::<usize>).sum()
    }
}

impl Sample {
    fn parse(line: &str) -> Result<Self> {
        let (series, value) = line.rsplit_once(' ').with_context(|| format!("not a metric: {line}"))?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        // None of our label values holds a comma.
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        Ok(Self {
            name: name.to_owned(),
            labels: labels.map(str::to_owned).collect(),
            value: value.to_owned(),
        })
    }

    fn read<T: FromStr<Err: Error + Send + Sync + 'static>>(&self) -> Result<T> {
        self.value.parse().with_context(|| format!("{} is not such a number: {}", self.name, self.value))
    }

    fn has(&self, labels: &[&str]) -> bool {
        labels.iter().all(|wanted| self.labels.iter().any(|label| label == wanted))
    }

    /// What counts up: counters, and of the histograms their number and sum.
    fn is_shown(&self) -> bool {
        let is_histogram = self.name.contains("_seconds");
        self.name.ends_with("_total")
            || (self.name.starts_with("gitpod_") && is_histogram && !self.name.ends_with("_bucket"))
    }

    /// The labels that tell series of one name apart. The demo has one host.
    fn shown_labels(&self) -> String {
        let labels = self.labels.iter().filter(|label| !label.starts_with("host="));
        labels.map(|label| label.replace('"', "")).collect::<Vec<_>>().join("  ")
    }
}

/// The counters of two workers, a row a series, with their sums. Series that are zero everywhere are left out;
/// names of which nothing is left are given back beside the table.
pub(crate) fn table(workers: &[Counters; 2]) -> Result<(Vec<String>, Vec<String>)> {
    let series = side_by_side(workers)?;
    let mut rows = vec![row("", ["worker 1", "worker 2", "sum"].map(str::to_owned))];
    let mut at_zero = Vec::new();
    for (name, by_labels) in &series {
        let counted: Vec<_> =
            by_labels.iter().filter(|(_, values)| values.iter().any(|v| *v > 0.0)).collect();
        match counted.as_slice() {
            [] => at_zero.push(name.clone()),
            [(labels, values)] if labels.is_empty() => rows.push(row(name, numbers(name, values))),
            several => {
                rows.push(name.clone());
                rows.extend(
                    several
                        .iter()
                        .map(|(labels, values)| row(&format!("    {labels}"), numbers(name, values))),
                );
            }
        }
    }
    Ok((rows, at_zero))
}

type Series = BTreeMap<String, BTreeMap<String, [f64; 2]>>;

fn side_by_side(workers: &[Counters; 2]) -> Result<Series> {
    let mut series = Series::new();
    for (worker, counters) in workers.iter().enumerate() {
        for sample in counters.0.iter().filter(|sample| sample.is_shown()) {
            let by_labels = series.entry(sample.name.clone()).or_default();
            by_labels.entry(sample.shown_labels()).or_default()[worker] += sample.read::<f64>()?;
        }
    }
    Ok(series)
}

fn numbers(name: &str, [one, two]: &[f64; 2]) -> [String; 3] {
    let decimals = if name.ends_with("_sum") { 3 } else { 0 };
    [*one, *two, one + two].map(|value| format!("{value:.decimals$}"))
}

fn row(label: &str, [one, two, sum]: [String; 3]) -> String {
    format!("{label:<68}{one:>10}{two:>11}{sum:>11}")
}
