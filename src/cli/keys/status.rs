//! `tokenkeeper keys status`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;
use tokenkeeper::broker::dead_letters::{DeadLetters, DeadLettersError};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::key_use::{Canary, Fit, KnownWorker, problem_with_ring};
use tokenkeeper::domain::problem::{Problem, of_system};
use tokenkeeper::domain::secret::{KeyRing, RingKey};
use tokenkeeper::parking::{Spool, waiting};
use tokenkeeper::settings::{Broker, Settings};
use tokenkeeper::store::{KeyRows, Store};

use crate::cli::ending::chain;
use crate::cli::output::{Output, cell, note, or_nothing, table, verdict};
use crate::cli::provider::open_store;
use crate::cli::relative::distance;
use crate::cli::{Ending, Failure};

/// How long it waits while somebody else looks at the dead letters.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows what is encrypted with which key, and which worker has which keys
///
/// Counts every token and every provider. Parked pairs are those on the broker's queue and in this machine's spool folder.
/// The exit code is 1 if something is encrypted with a key that is not among the configured encryption keys; the error names
/// it. What cannot be looked at is left out, and said.
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
    /// Tokens and providers that `keys rotate` would rewrite in the newest format.
    in_format_1: u64,
    /// On the broker's queue and in this machine's spool folder. None: one of the two could not be looked at.
    parked_pairs: Option<u64>,
    /// Those of the spool folder. None: it could not be read.
    spooled_pairs: Option<u64>,
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
    /// The ring is of another deployment.
    OtherDeployment,
}

/// What is sealed outside of the tables, by key.
pub(super) struct Outside {
    pub(super) parked: BTreeMap<String, u64>,
    /// An error: somebody else has them for long, as a worker does that seals many.
    pub(super) letters: Result<BTreeMap<String, u64>, DeadLettersError>,
}

/// The same, as far as it could be looked at.
#[derive(Default)]
struct Seen {
    on_the_queue: Option<waiting::PairsByKey>,
    spooled: Option<waiting::PairsByKey>,
    letters: Option<BTreeMap<String, u64>>,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments) -> Result<Ending, Failure> {
    let store = open_store(settings).await?;
    let (rows, canaries, workers) =
        (store.rows_by_key().await?, store.canaries().await?, store.workers().await?);
    let seen = look_outside(settings).await;
    let status = status(store.keys(), &rows, &canaries, &seen, workers);
    let mut output = Output::new();
    if arguments.json {
        output.json(&status)?;
    } else {
        print(&status, &store, &mut output).await?;
    }
    match unreadable(&status) {
        None => Ok(Ending::Good),
        Some(problem) => Err(problem.into()),
    }
}

/// Says what could not be looked at.
async fn look_outside(settings: &Settings) -> Seen {
    let spool = Spool::new(&settings.worker.spool_dir);
    let spooled = waiting::in_the_folder(&spool).await;
    if let Err(error) = &spooled {
        let folder = spool.folder().display();
        note(format_args!("The spool folder {folder} was not looked at: {}.", of_system(error)));
    }
    let (on_the_queue, letters) = match waiting::on_the_queue(&settings.broker).await {
        Ok(pairs) => (Some(pairs), letters(&settings.broker).await.map_err(anyhow::Error::from)),
        Err(error) => (None, Err(error.into())),
    };
    if let Err(error) = &letters {
        let (what, seen) = match on_the_queue {
            Some(_) => ("dead letters", ""),
            None => ("parked pairs and dead letters", " PARKED shows the pairs of the spool folder alone."),
        };
        note(format_args!("The broker was not asked for {what}: {}.{seen}", chain(error)));
    }
    Seen { on_the_queue, spooled: spooled.ok(), letters: letters.ok() }
}

/// That something is encrypted with a key that is not here.
fn unreadable(status: &Status) -> Option<Problem> {
    let lost = |place: Place| status.keys.iter().filter(move |key| !key.is_readable() && key.ring == place);
    let missing: Vec<&KeyStatus> = lost(Place::Missing).collect();
    let other: Vec<&str> = lost(Place::OtherKey).map(|key| key.id.as_str()).collect();
    if missing.is_empty() || !other.is_empty() {
        let missing: Vec<&str> = missing.iter().map(|key| key.id.as_str()).collect();
        return problem_with_ring(&missing, &other);
    }
    let missing: Vec<String> =
        missing.iter().map(|key| format!("`{}` ({})", key.id, key.what_it_encrypts())).collect();
    Some(Problem::new(
        format!("the encryption keys (`encryption.keys`, TOKENKEEPER_KEYS) lack {}", missing.join(", ")),
        "what these encrypt cannot be read",
        "add them, as the other workers have them, or run `tokenkeeper keys rotate` where they are",
    ))
}

/// What lies on the broker.
pub(super) async fn outside(settings: &Broker) -> anyhow::Result<Outside> {
    Ok(Outside { parked: waiting::on_the_queue(settings).await?, letters: letters(settings).await })
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
    seen: &Seen,
    workers: Vec<KnownWorker>,
) -> Status {
    let living: Vec<&KnownWorker> = workers.iter().filter(|worker| worker.is_living).collect();
    let of_ring = ring.keys().iter().map(RingKey::id);
    let mut others: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    others.extend(canaries.iter().map(|canary| canary.key_id.as_str()));
    let outside = [&seen.on_the_queue, &seen.spooled, &seen.letters];
    others.extend(outside.into_iter().flatten().flat_map(BTreeMap::keys).map(String::as_str));
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
            (_, Some(Fit::OtherDeployment)) => Place::OtherDeployment,
            (Some(0), _) => Place::First,
            (Some(_), _) => Place::Behind,
        };
        let holds = |worker: &&&KnownWorker| match key {
            Some(place) => worker.holds(&ring.keys()[place]),
            None => worker.key_checks.contains_key(id),
        };
        let (read_by, not_read_by): (Vec<&KnownWorker>, Vec<&KnownWorker>) = living.iter().partition(holds);
        let names = |workers: Vec<&KnownWorker>| workers.iter().map(|worker| worker.id.clone()).collect();
        let counted = |by_key: &Option<BTreeMap<String, u64>>| {
            by_key.as_ref().map(|by_key| by_key.get(id).copied().unwrap_or_default())
        };
        let (on_the_queue, spooled_pairs) = (counted(&seen.on_the_queue), counted(&seen.spooled));
        let KeyRows { tokens, providers, in_format_1 } = rows.get(id).copied().unwrap_or_default();
        KeyStatus {
            id: id.to_owned(),
            ring: ring_place,
            in_use_since: canary.and_then(|canary| canary.in_use_since),
            tokens,
            providers,
            in_format_1,
            parked_pairs: on_the_queue.zip(spooled_pairs).map(|(queued, spooled)| queued + spooled),
            spooled_pairs,
            dead_letters: counted(&seen.letters),
            read_by: names(read_by),
            not_read_by: names(not_read_by),
        }
    });
    let keys = keys.collect();
    Status { keys, workers }
}

impl KeyStatus {
    /// As `2 tokens, 1 parked pair`.
    fn what_it_encrypts(&self) -> String {
        let parked = self.parked_pairs.or(self.spooled_pairs).unwrap_or_default();
        let counts = [
            (self.tokens, "token"),
            (self.providers, "provider"),
            (parked, "parked pair"),
            (self.dead_letters.unwrap_or_default(), "dead letter"),
        ];
        let told = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        });
        told.collect::<Vec<_>>().join(", ")
    }

    /// Whether this ring opens all that is sealed with it.
    fn is_readable(&self) -> bool {
        let parked = self.parked_pairs.or(self.spooled_pairs).unwrap_or_default();
        let sealed = self.tokens + self.providers + parked;
        match self.ring {
            Place::First | Place::Behind => true,
            Place::Missing => sealed + self.dead_letters.unwrap_or_default() == 0,
            Place::OtherKey | Place::OtherDeployment => false,
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
    let mut rows = table([
        "KEY",
        "RING",
        "IN USE SINCE",
        "TOKENS",
        "PROVIDERS",
        "FORMAT 1",
        "PARKED",
        "DEAD LETTERS",
        "READ BY",
    ]);
    rows.add_rows(status.keys.iter().map(|key| {
        let ring = match key.ring {
            Place::First => "first",
            Place::Behind => "yes",
            Place::Missing => "no",
            Place::OtherKey => "another key of this id",
            Place::OtherDeployment => "of another deployment",
        };
        let living = key.read_by.len() + key.not_read_by.len();
        [
            cell(&key.id),
            verdict(key.is_readable(), ring),
            cell(or_nothing(key.in_use_since)),
            cell(key.tokens),
            cell(key.providers),
            verdict(key.in_format_1 == 0, key.in_format_1),
            cell(or_nothing(key.parked_pairs.or(key.spooled_pairs))),
            cell(or_nothing(key.dead_letters)),
            verdict(key.not_read_by.is_empty(), format_args!("{} of {living}", key.read_by.len())),
        ]
    }));
    rows
}
