//! The table: what was done to tokenkeeper, and what came of it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;

use crate::{standing::Standing, truth::Findings};

/// How many details of one kind are printed; the file has all.
const SHOWN: usize = 5;

/// In characters.
const WIDTH: u16 = 180;

/// One line of the table.
#[derive(Serialize)]
pub(crate) struct Row {
    scenario: &'static str,
    fault: String,
    load: String,
    requests: usize,
    answered: usize,
    errors: BTreeMap<String, usize>,
    dead_lettered: usize,
    lost: usize,
    refreshes: usize,
    extra_refreshes: usize,
    broken_reservations: usize,
    two_at_once: usize,
    without_token: usize,
    killed_inside_call: usize,
    answer_lost: usize,
    /// From "it is back" to the first answer, in milliseconds.
    recovery_ms: Option<i64>,
    promises: Vec<Promise>,
    /// What stands behind the numbers.
    details: Vec<String>,
    /// What belongs to the line, in full.
    notes: Vec<String>,
    seconds: u64,
}

/// Something that must hold.
#[derive(Serialize)]
struct Promise {
    what: String,
    held: bool,
}

impl Row {
    pub(crate) fn new(
        scenario: &'static str,
        fault: impl Into<String>,
        load: impl Into<String>,
        findings: &Findings,
        standing: &Standing,
    ) -> Self {
        let mut row = Self {
            scenario,
            fault: fault.into(),
            load: load.into(),
            requests: findings.requests,
            answered: findings.answered,
            errors: findings.errors.clone(),
            dead_lettered: findings.dead_lettered,
            lost: findings.lost.len(),
            refreshes: findings.refreshes,
            extra_refreshes: findings.extra_refreshes,
            broken_reservations: findings.broken_reservations.len(),
            two_at_once: findings.overlapping.len(),
            without_token: standing.without.len(),
            killed_inside_call: standing.killed_inside.len(),
            answer_lost: standing.answer_lost.len(),
            recovery_ms: None,
            promises: Vec::new(),
            details: Vec::new(),
            notes: Vec::new(),
            seconds: 0,
        };
        row.promise("every request is answered or in the dead letters", row.lost == 0);
        row.promise("no opportunistic refresh inside a live reservation", row.broken_reservations == 0);
        row.promise("never two refreshes in flight for a user", row.two_at_once == 0);
        row.promise("nobody is left without a working token", row.without_token == 0);
        if row.answer_lost > 0 {
            row.note(format!("{} users whose new pair the provider never told anybody", row.answer_lost));
        }
        row.details.extend(findings.lost.iter().map(|id| format!("lost: {id}")));
        row.details
            .extend(findings.broken_reservations.iter().map(|what| format!("broken reservation: {what}")));
        row.details.extend(findings.overlapping.iter().map(|user| format!("two at once: {user}")));
        row.details.extend(standing.without.iter().map(|what| format!("no working token: {what}")));
        row
    }

    /// Notes something that must hold, and whether it did.
    pub(crate) fn promise(&mut self, what: impl Into<String>, held: bool) {
        self.promises.push(Promise { what: what.into(), held });
    }

    /// Notes something worth knowing.
    pub(crate) fn detail(&mut self, what: impl Into<String>) {
        self.details.push(what.into());
    }

    /// Notes something that is printed with the table in any case.
    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }

    /// Notes how long it took from "it is back" to the first answer.
    pub(crate) fn recovered_in(&mut self, recovery_ms: Option<i64>) {
        self.recovery_ms = recovery_ms;
    }

    /// Notes how long the scenario took.
    pub(crate) fn took(&mut self, duration: Duration) {
        self.seconds = duration.as_secs();
    }

    fn broken(&self) -> impl Iterator<Item = &str> {
        self.promises.iter().filter(|promise| !promise.held).map(|promise| promise.what.as_str())
    }
}

/// All lines so far.
#[derive(Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        self.0.extend(rows);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every promise was kept.
    pub(crate) fn all_held(&self) -> bool {
        self.0.iter().all(|row| row.broken().next().is_none())
    }

    /// The table, with what was broken below it.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![self.table().to_string()];
        for row in &self.0 {
            let Row { scenario, fault, details, .. } = row;
            lines.extend(row.broken().map(|promise| format!("BROKEN  {scenario}, {fault}: {promise}")));
            lines.extend(row.notes.iter().map(|note| format!("        {scenario}: {note}")));
            lines.extend(details.iter().take(SHOWN).map(|detail| format!("        {scenario}: {detail}")));
            if details.len() > SHOWN {
                let more = details.len() - SHOWN;
                lines.push(format!("        {scenario}: … and {more} more, see {scenario}.json"));
            }
        }
        lines.join("\n") + "\n"
    }

    /// Writes the table, and a file for each scenario.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let mut scenarios = BTreeMap::<_, Vec<_>>::new();
        for row in &self.0 {
            scenarios.entry(row.scenario).or_default().push(row);
        }
        for (scenario, rows) in scenarios {
            let file = folder.join(format!("{scenario}.json"));
            let json = serde_json::to_string_pretty(&rows)? + "\n";
            fs::write(&file, json).with_context(|| format!("write {}", file.display()))?;
        }
        fs::write(folder.join("table.txt"), self.text()).context("write the table")
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH).set_header([
            "fault",
            "load",
            "requests",
            "answered",
            "errors by code",
            "dead\nletters",
            "lost",
            "refreshes",
            "extra",
            "broken\nreserv.",
            "two at\nonce",
            "no\ntoken",
            "killed\nin call",
            "recovery",
            "",
        ]);
        for row in &self.0 {
            let errors: Vec<_> = row.errors.iter().map(|(code, count)| format!("{count} {code}")).collect();
            let numbers = [
                row.dead_lettered,
                row.lost,
                row.refreshes,
                row.extra_refreshes,
                row.broken_reservations,
                row.two_at_once,
                row.without_token,
                row.killed_inside_call,
            ];
            let mut cells = vec![Cell::new(&row.fault), Cell::new(&row.load)];
            cells.extend([row.requests, row.answered].map(number));
            cells.push(Cell::new(if errors.is_empty() { "–".to_owned() } else { errors.join("\n") }));
            cells.extend(numbers.map(number));
            cells.push(Cell::new(row.recovery_ms.map_or("–".to_owned(), seconds)));
            cells.push(match row.broken().next() {
                None => Cell::new("held").fg(Color::Green),
                Some(_) => Cell::new("BROKEN").fg(Color::Red),
            });
            table.add_row(cells);
        }
        table
    }
}

fn number(count: usize) -> Cell {
    Cell::new(count).set_alignment(CellAlignment::Right)
}

fn seconds(milliseconds: i64) -> String {
    format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
}
