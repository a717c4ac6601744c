//! `tokenkeeper token import`

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokenkeeper::contract::{MessageKind, Request, decode};
use tokenkeeper::domain::clock::{Clock, DatabaseClock};
use tokenkeeper::requests::Login;
use tokenkeeper::store::database::clock_sync;
use tokenkeeper::store::{Store, StoreError};
use tokio::io::AsyncBufRead;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::lines::{Line, Lines};
use crate::cli::output::{Output, note};
use crate::cli::{Ending, Failure};

const WRITERS: usize = 16;
/// For each writer.
const MAX_QUEUED: usize = 16;

/// Imports pairs of access and refresh tokens from a file of JSON lines
///
/// Each line is the body of a token.store message. So the tokens of another system can be imported at once. Identities
/// are created or replaced; of two lines for one identity the later one wins. An invalid line is reported with its
/// number and skipped; the others are imported, and the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = r#"Example of a line, of which user_id, host and token.value are required:
  {"user_id": "u-1", "host": "bitbucket.example.org", "token": {"value": "…"}}

Beside them: auth_id, auth_name; in token: refresh_token, username, scopes,
expires_at, refresh_token_expires_at. `tokenkeeper schema token.store` lists all fields.

Examples:
  tokenkeeper token import tokens.jsonl
  export-tokens | tokenkeeper token import -"#)]
pub(crate) struct Arguments {
    /// The file; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) async fn run(store: Store, arguments: &Arguments) -> Result<Ending, Failure> {
    let file = &arguments.file;
    let (lines, size) = if file == Path::new("-") {
        (Lines::of_stdin().context("cannot read standard input")?, None)
    } else {
        Lines::of_file(file).await.with_context(|| format!("cannot read {}", file.display()))?
    };
    let tally = Arc::new(Tally::new(size));
    let read = import(lines, &store, &tally).await;
    tally.bar.finish_and_clear();
    let (imported, failed) = tally.counts();
    Output::new().line(format_args!("imported {imported}, failed {failed}"))?;
    read?;
    if tally.database_is_lost() {
        Err(anyhow!(
            "the import stopped, because the database does not answer; run it again: importing a pair twice does no harm"
        ))?;
    }
    Ok(if failed == 0 { Ending::Good } else { Ending::Bad })
}

async fn import(
    lines: Lines<impl AsyncBufRead + Unpin>,
    store: &Store,
    tally: &Arc<Tally>,
) -> anyhow::Result<()> {
    let clock = Arc::new(clock_sync::compared_once(store).await?);
    let writers = Writers::start(store, &clock, tally);
    let read = hand_over(lines, store, &writers, tally).await;
    // Pairs that were read before an error are still written.
    writers.finish().await?;
    read.context("cannot read the next line")
}

/// Reads and checks the lines, until the last one or until the database does not answer.
async fn hand_over(
    mut lines: Lines<impl AsyncBufRead + Unpin>,
    store: &Store,
    writers: &Writers,
    tally: &Tally,
) -> io::Result<()> {
    let mut hosts = Hosts { store, known: HashMap::new() };
    while let Some(line) = lines.next().await? {
        if tally.database_is_lost() {
            break;
        }
        tally.bar.inc(line.size);
        if line.text.trim_ascii().is_empty() {
            continue;
        }
        match check(&line, &mut hosts).await {
            Ok(pair) => writers.take(pair).await,
            Err(Rejection::Line(reason)) => tally.fail(line.number, &reason),
            Err(Rejection::Store(error)) => tally.fail_in_store(line.number, &error, store).await,
        }
    }
    Ok(())
}

/// Why a line is not imported.
enum Rejection {
    Line(String),
    Store(StoreError),
}

async fn check(line: &Line, hosts: &mut Hosts<'_>) -> Result<Pair, Rejection> {
    let login = match decode(MessageKind::TokenStore, &line.text) {
        Ok(Request::Store(request)) => Login::from(*request),
        Ok(Request::Token(_) | Request::WorkspaceStart(_) | Request::Report(_)) => {
            return Err(Rejection::Line("is not a token.store".to_owned()));
        }
        Err(invalid) => return Err(Rejection::Line(invalid.reason)),
    };
    match hosts.provider_id(&login.host).await.map_err(Rejection::Store)? {
        Some(provider_id) => Ok(Pair { line: line.number, provider_id, login }),
        None => Err(Rejection::Line(
            "host: no provider has this host; `tokenkeeper provider apply` creates one".to_owned(),
        )),
    }
}

/// Looks each host up once.
struct Hosts<'a> {
    store: &'a Store,
    known: HashMap<String, Option<i64>>,
}

impl Hosts<'_> {
    async fn provider_id(&mut self, host: &str) -> Result<Option<i64>, StoreError> {
        if let Some(known) = self.known.get(host) {
            return Ok(*known);
        }
        let id = self.store.provider(host).await?.map(|provider| provider.id);
        self.known.insert(host.to_owned(), id);
        Ok(id)
    }
}

struct Pair {
    line: usize,
    provider_id: i64,
    login: Login,
}

/// Concurrent writers. Lines for one identity go to the same writer, so that the later line wins.
struct Writers {
    entries: Vec<mpsc::Sender<Pair>>,
    tasks: JoinSet<()>,
    hasher: RandomState,
}

impl Writers {
    fn start(store: &Store, clock: &Arc<DatabaseClock>, tally: &Arc<Tally>) -> Self {
        let mut tasks = JoinSet::new();
        let entries = (0..WRITERS)
            .map(|_| {
                let (entry, pairs) = mpsc::channel(MAX_QUEUED);
                tasks.spawn(write(pairs, store.clone(), Arc::clone(clock), Arc::clone(tally)));
                entry
            })
            .collect();
        Self { entries, tasks, hasher: RandomState::new() }
    }

    async fn take(&self, pair: Pair) {
        let identity = self.hasher.hash_one((&pair.login.user_id, pair.provider_id));
        let writer = usize::try_from(identity % WRITERS as u64).unwrap_or_default();
        // Fails only if the writer panicked, which `finish` reports.
        let _ = self.entries[writer].send(pair).await;
    }

    async fn finish(self) -> anyhow::Result<()> {
        let Self { entries, mut tasks, .. } = self;
        drop(entries);
        while let Some(ended) = tasks.join_next().await {
            ended.context("a writer ended unexpectedly")?;
        }
        Ok(())
    }
}

async fn write(mut pairs: mpsc::Receiver<Pair>, store: Store, clock: Arc<DatabaseClock>, tally: Arc<Tally>) {
    while let Some(Pair { line, provider_id, login }) = pairs.recv().await {
        if tally.database_is_lost() {
            continue;
        }
        let Login { user_id, account, pair, .. } = &login;
        match store.put_login(user_id, provider_id, account, pair, false, clock.now()).await {
            Ok(()) => tally.count_import(),
            Err(error) => tally.fail_in_store(line, &error, &store).await,
        }
    }
}

struct Tally {
    bar: ProgressBar,
    imported: AtomicU64,
    failed: AtomicU64,
    database_lost: AtomicBool,
}

impl Tally {
    fn new(size: Option<u64>) -> Self {
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
        let template = match size {
            Some(_) => "{bar:30} {percent}%  {msg}  {eta} to go",
            None => "{spinner} {msg}  {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            imported: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            database_lost: AtomicBool::new(false),
        }
    }

    fn counts(&self) -> (u64, u64) {
        (self.imported.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    fn database_is_lost(&self) -> bool {
        self.database_lost.load(Ordering::Relaxed)
    }

    fn count_import(&self) {
        let imported = self.imported.fetch_add(1, Ordering::Relaxed) + 1;
        self.bar.set_message(format!("{imported} imported"));
    }

    fn fail(&self, line: usize, reason: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.bar.suspend(|| note(format_args!("line {line}: {reason}")));
    }

    /// If the database caused the error, the import stops: the other lines would fail too.
    async fn fail_in_store(&self, line: usize, error: &StoreError, store: &Store) {
        if error.is_transient() && store.ping().await.is_err() {
            self.database_lost.store(true, Ordering::Relaxed);
        }
        self.fail(line, &error.to_string());
    }
}
