//! The tables, as text.

use comfy_table::{Cell, CellAlignment, Color, Table, presets::UTF8_BORDERS_ONLY};

use super::{Row, Verdict};
use crate::figures::{milliseconds, whole};

/// What there is nothing to say about.
const NOTHING: &str = "–";

/// A line a system and load.
pub(super) fn measured(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header([
        "scenario",
        "load",
        "system",
        "requests/s",
        "ratio",
        "p50\nms",
        "p99\nms",
        "p99.9\nms",
        "CPU µs\nworker",
        "\nbroker",
        "\ndatabase",
        "\nload",
        "bytes",
        "state-\nments",
        "RSS\nMiB",
        "peak",
    ]);
    let mut before = None;
    for row in rows {
        let again = before == Some((row.scenario, &row.load));
        before = Some((row.scenario, &row.load));
        let mut cells = if again { ["", ""] } else { [row.scenario, &row.load] }.map(Cell::new).to_vec();
        cells.push(Cell::new(&row.system));
        let some = |value: Option<f64>, digits: usize| {
            value.map_or(NOTHING.into(), |value| format!("{value:.digits$}"))
        };
        let numbers = [
            whole(row.median(|sample| sample.per_second)),
            some(row.ratio, 2),
            milliseconds(row.median(|sample| sample.p50_us)),
            milliseconds(row.median(|sample| sample.p99_us)),
            milliseconds(row.median(|sample| sample.p999_us)),
            whole(row.median(|sample| sample.cpu_us.worker)),
            whole(row.median(|sample| sample.cpu_us.broker)),
            whole(row.median(|sample| sample.cpu_us.databases)),
            whole(row.median(|sample| sample.cpu_us.load)),
            row.median_of_some(|sample| sample.bytes).map_or(NOTHING.into(), whole),
            some(row.median_of_some(|sample| sample.statements), 2),
            some(Some(row.median(|sample| sample.rss_mib)), 1),
            some(Some(row.median(|sample| sample.rss_peak_mib)), 1),
        ];
        cells.extend(numbers.map(|number| Cell::new(number).set_alignment(CellAlignment::Right)));
        table.add_row(cells);
    }
    table
}

/// A line a target.
pub(super) fn judged(verdicts: &[Verdict]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["target", "", "measured", ""]);
    for Verdict { what, target, value, met, .. } in verdicts {
        let met = if *met { Cell::new("met").fg(Color::Green) } else { Cell::new("MISSED").fg(Color::Red) };
        table.add_row([Cell::new(what), Cell::new(target), Cell::new(value), met]);
    }
    table
}
