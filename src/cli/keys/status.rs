//! `tokenkeeper keys status`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;
use tokenkeeper::broker::dead_letters::{DeadLetters, DeadLettersError};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::key_use::{Canary, Fit, KnownWorker};
use tokenkeeper::domain::secret::{KeyRing, RingKey};
use tokenkeeper::parking::{Spool, waiting};
use tokenkeeper::settings::{Broker, Settings};
use tokenkeeper::store::{KeyRows, Store};

use crate::cli::output::{Output, cell, note, or_nothing, table, verdict};
use crate::cli::provider::open_store;
use crate::cli::relative::distance;
use crate::cli::{Ending, Failure};

/// How long it waits while somebody else looks at the dead letters.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows what is encrypted with which key, and which worker has which keys
///
/// Counts every token and every provider. Parked pairs are those on the broker's queue and in this machine's spool folder.
/// The exit code is 1 if something is encrypted with a key that is not among the configured encryption keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper keys status
  tokenkeeper keys status --json | jq -r '.keys[] | select(.not_read_by != []) | .id'")]
pub(crate) struct Arguments {
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Status {
    keys: Vec<KeyStatus>,
    workers: Vec<KnownWorker>,
}

#[derive(Serialize)]
struct KeyStatus {
    id: String,
    ring: Place,
    in_use_since: Option<Timestamp>,
    tokens: u64,
    providers: u64,
    /// None: the broker did not say.
    parked_pairs: Option<u64>,
    /// None: the broker did not say.
    dead_letters: Option<u64>,
    /// Living workers and commands that have it.
    read_by: Vec<String>,
    not_read_by: Vec<String>,
}

/// Where a key is in the configured ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Place {
    First,
    Behind,
    Missing,
    /// The ring has another key of this id.
    OtherKey,
}

/// What is sealed outside of the tables, by key.
#[derive(Default)]
pub(super) struct Outside {
    pub(super) parked: BTreeMap<String, u64>,
    pub(super) letters: BTreeMap<String, u64>,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments) -> Result<Ending, Failure> {
    let store = open_store(settings).await?;
    let (rows, canaries, workers) =
        (store.rows_by_key().await?, store.canaries().await?, store.workers().await?);
    let mut outside = match outside(&settings.broker).await {
        Ok(outside) => Some(outside),
        Err(error) => {
            note(format_args!("The broker was not asked for parked pairs and dead letters: {error:#}"));
            None
        }
    };
    for (key_id, pairs) in in_the_folder(settings).await? {
        if let Some(outside) = &mut outside {
            *outside.parked.entry(key_id).or_default() += pairs;
        }
    }
    let status = status(store.keys(), &rows, &canaries, outside.as_ref(), workers);
    let is_readable = status.keys.iter().all(KeyStatus::is_readable);
    let mut output = Output::new();
    if arguments.json {
        output.json(&status)?;
    } else {
        print(&status, &store, &mut output).await?;
    }
    Ok(if is_readable { Ending::Good } else { Ending::Bad })
}

/// Pairs in the spool folder of this machine, by their keys.
async fn in_the_folder(settings: &Settings) -> anyhow::Result<waiting::PairsByKey> {
    Ok(waiting::in_the_folder(&Spool::new(&settings.worker.spool_dir)).await?)
}

/// What lies on the broker.
pub(super) async fn outside(settings: &Broker) -> anyhow::Result<Outside> {
    Ok(Outside { parked: waiting::on_the_queue(settings).await?, letters: letters(settings).await? })
}

async fn letters(settings: &Broker) -> Result<BTreeMap<String, u64>, DeadLettersError> {
    let mut by_key = BTreeMap::new();
    let mut letters = match DeadLetters::open(settings, PATIENCE, || ()).await {
        Ok(letters) => letters,
        Err(DeadLettersError::NoQueue { .. }) => return Ok(by_key),
        Err(error) => return Err(error),
    };
    while let Some(letter) = letters.next().await? {
        // A pair that no worker could read lies there as it was parked.
        if let Some(key_id) = letter.key_id().or_else(|| waiting::key_of(letter.body())) {
            *by_key.entry(key_id).or_default() += 1;
        }
    }
    letters.close().await?;
    Ok(by_key)
}

fn status(
    ring: &KeyRing,
    rows: &BTreeMap<String, KeyRows>,
    canaries: &[Canary],
    outside: Option<&Outside>,
    workers: Vec<KnownWorker>,
) -> Status {
    let living: Vec<&KnownWorker> = workers.iter().filter(|worker| worker.is_living).collect();
    let of_ring = ring.keys().iter().map(RingKey::id);
    let mut others: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    others.extend(canaries.iter().map(|canary| canary.key_id.as_str()));
    others
        .extend(outside.iter().flat_map(|it| it.parked.keys().chain(it.letters.keys())).map(String::as_str));
    others.extend(living.iter().flat_map(|worker| worker.key_checks.keys()).map(String::as_str));
    for id in of_ring.clone() {
        others.remove(id);
    }
    let keys = of_ring.chain(others).map(|id| {
        let key = ring.keys().iter().position(|key| key.id() == id);
        let canary = canaries.iter().find(|canary| canary.key_id == id);
        let ring_place = match (key, canary.map(|canary| canary.fit(ring))) {
            (None, _) => Place::Missing,
            (_, Some(Fit::OtherKey)) => Place::OtherKey,
            (Some(0), _) => Place::First,
            (Some(_), _) => Place::Behind,
        };
        let holds = |worker: &&&KnownWorker| match key {
            Some(place) => worker.holds(&ring.keys()[place]),
            None => worker.key_checks.contains_key(id),
        };
        let (read_by, not_read_by): (Vec<&KnownWorker>, Vec<&KnownWorker>) = living.iter().partition(holds);
        let names = |workers: Vec<&KnownWorker>| workers.iter().map(|worker| worker.id.clone()).collect();
        let counted = |by_key: fn(&Outside) -> &BTreeMap<String, u64>| {
            outside.map(|outside| by_key(outside).get(id).copied().unwrap_or_default())
        };
        let KeyRows { tokens, providers } = rows.get(id).copied().unwrap_or_default();
        KeyStatus {
            id: id.to_owned(),
            ring: ring_place,
            in_use_since: canary.and_then(|canary| canary.in_use_since),
            tokens,
            providers,
            parked_pairs: counted(|outside| &outside.parked),
            dead_letters: counted(|outside| &outside.letters),
            read_by: names(read_by),
            not_read_by: names(not_read_by),
        }
    });
    let keys = keys.collect();
    Status { keys, workers }
}

impl KeyStatus {
    /// Whether this ring opens all that is sealed with it.
    fn is_readable(&self) -> bool {
        let sealed = self.tokens + self.providers + self.parked_pairs.unwrap_or_default();
        match self.ring {
            Place::First | Place::Behind => true,
            Place::Missing => sealed + self.dead_letters.unwrap_or_default() == 0,
            Place::OtherKey => false,
        }
    }
}

async fn print(status: &Status, store: &Store, output: &mut Output) -> anyhow::Result<()> {
    output.table(key_rows(status))?;
    let now = store.now().await?;
    let mut rows = table(["WORKER", "COMMAND", "VERSION", "STARTED", "LAST SEEN", "ENCRYPTS WITH", "KEYS"]);
    rows.add_rows(status.workers.iter().map(|worker| {
        let keys: Vec<&str> = worker.key_checks.keys().map(String::as_str).collect();
        [
            cell(&worker.id),
            cell(&worker.command),
            cell(&worker.version),
            cell(distance(worker.started_at, now)),
            verdict(worker.is_living, distance(worker.last_seen_at, now)),
            cell(or_nothing(worker.seals_with.as_ref())),
            cell(keys.join(" ")),
        ]
    }));
    if !status.workers.is_empty() {
        output.line("")?;
    }
    output.table(rows)
}

fn key_rows(status: &Status) -> Table {
    let mut rows =
        table(["KEY", "RING", "IN USE SINCE", "TOKENS", "PROVIDERS", "PARKED", "DEAD LETTERS", "READ BY"]);
    rows.add_rows(status.keys.iter().map(|key| {
        let ring = match key.ring {
            Place::First => "first",
            Place::Behind => "yes",
            Place::Missing => "no",
            Place::OtherKey => "another key of this id",
        };
        let living = key.read_by.len() + key.not_read_by.len();
        [
            cell(&key.id),
            verdict(key.is_readable(), ring),
            cell(or_nothing(key.in_use_since)),
            cell(key.tokens),
            cell(key.providers),
            cell(or_nothing(key.parked_pairs)),
            cell(or_nothing(key.dead_letters)),
            verdict(key.not_read_by.is_empty(), format_args!("{} of {living}", key.read_by.len())),
        ]
    }));
    rows
}
