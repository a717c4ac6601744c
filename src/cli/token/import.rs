//! `tokenkeeper token import`

mod tally;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use serde::Deserialize;
use tokenkeeper::contract::{MessageKind, Request, decode};
use tokenkeeper::domain::clock::{Clock, DatabaseClock, Timestamp};
use tokenkeeper::requests::Login;
use tokenkeeper::store::database::clock_sync;
use tokenkeeper::store::{LoginEffect, PairSource, Store, StoreError};
use tokio::io::AsyncBufRead;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::tally::Tally;
use super::lines::{Line, Lines};
use crate::cli::ending::Interrupted;
use crate::cli::interruption::stoppable;
use crate::cli::output::Output;
use crate::cli::{Ending, Failure};

const WRITERS: usize = 16;
/// For each writer.
const MAX_QUEUED: usize = 16;

/// Imports pairs of access and refresh tokens from a file of JSON lines
///
/// Each line is the body of a token.store message. So the tokens of another system can be imported at once. Identities
/// are created or replaced; of two lines for one identity the later one wins. An invalid line is reported with its
/// number and skipped; the others are imported, and the exit code is 1.
///
/// A newer pair is kept, so a file may be imported again. It is newer if it came from the line's own login and was refreshed
/// since. It is newer, too, if it was issued or stored after the date `issued_at` of the line.
#[derive(Debug, clap::Args)]
#[command(after_help = r#"Example of a line, of which user_id, host and token.value are required:
  {"user_id": "u-1", "host": "bitbucket.example.org", "token": {"value": "…"}}

Beside them: auth_id, auth_name; in token: refresh_token, username, scopes,
expires_at, refresh_token_expires_at. `tokenkeeper schema token.store` lists all fields.
A line may also have issued_at: when the provider issued the pair.

Examples:
  tokenkeeper token import --dry-run tokens.jsonl
  tokenkeeper token import tokens.jsonl
  export-tokens | tokenkeeper token import -"#)]
pub(crate) struct Arguments {
    /// The file; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Also replaces newer pairs. Users whose imported pair has been used up must then log in again
    #[arg(long)]
    replace: bool,
    /// Only shows what an import would do. Each line is compared with what is stored, and not with the lines before it
    #[arg(long)]
    dry_run: bool,
    /// Prints the numbers as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(store: Store, arguments: &Arguments) -> Result<Ending, Failure> {
    let stop = CancellationToken::new();
    let left = "the pairs of the lines before are stored; import the file again for the rest";
    stoppable(&stop, left, run_until(&stop, &store, arguments)).await
}

async fn run_until(
    stop: &CancellationToken,
    store: &Store,
    arguments: &Arguments,
) -> Result<Ending, Failure> {
    let file = &arguments.file;
    let name = (file != Path::new("-")).then(|| file.display().to_string());
    let unreadable = || format!("cannot read {}", name.as_deref().unwrap_or("standard input"));
    let (mut lines, size) = match &name {
        None => (Lines::of_stdin().with_context(unreadable)?, None),
        Some(_) => Lines::of_file(file).await.with_context(unreadable)?,
    };
    if let Some(problem) = lines.mistake(name.as_deref()).await.with_context(unreadable)? {
        return Err(problem.into());
    }
    let tally = Arc::new(Tally::new(size));
    let read = import(stop, lines, store, arguments, &tally).await;
    tally.bar.finish_and_clear();
    let counts = tally.counts();
    let mut output = Output::new();
    if arguments.json {
        output.json(&counts)?;
    } else {
        output.line(counts.in_words(arguments.dry_run))?;
    }
    if let HandedOver::Interrupted { last_line } = read? {
        Err(anyhow!(Interrupted).context(format!(
            "the import stopped after line {last_line}; import the file again for the rest: newer pairs are kept"
        )))?;
    }
    if tally.database_is_lost() {
        Err(anyhow!(
            "the import stopped, because the database does not answer; run it again: importing a pair twice does no harm"
        ))?;
    }
    Ok(if counts.failed == 0 { Ending::Good } else { Ending::Bad })
}

async fn import(
    stop: &CancellationToken,
    lines: Lines<impl AsyncBufRead + Unpin>,
    store: &Store,
    arguments: &Arguments,
    tally: &Arc<Tally>,
) -> anyhow::Result<HandedOver> {
    let clock = Arc::new(clock_sync::compared_once(store).await?);
    let target =
        Target { store: store.clone(), clock, replace: arguments.replace, dry_run: arguments.dry_run };
    let writers = Writers::start(&target, tally);
    let read = hand_over(stop, lines, store, &writers, tally).await;
    // Pairs that were read before an error or an interruption are still written.
    writers.finish().await?;
    read.context("cannot read the next line")
}

enum HandedOver {
    All,
    /// `last_line` is the last one that was read; 0: none was.
    Interrupted {
        last_line: usize,
    },
}

/// Reads and checks the lines, until the last one, until it is stopped, or until the database does not answer.
async fn hand_over(
    stop: &CancellationToken,
    mut lines: Lines<impl AsyncBufRead + Unpin>,
    store: &Store,
    writers: &Writers,
    tally: &Tally,
) -> io::Result<HandedOver> {
    let mut hosts = Hosts { store, known: HashMap::new() };
    let mut last_line = 0;
    loop {
        let line = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(HandedOver::Interrupted { last_line }),
            line = lines.next() => line?,
        };
        let Some(line) = line else { break };
        if tally.database_is_lost() {
            break;
        }
        last_line = line.number;
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
    Ok(HandedOver::All)
}

/// Why a line is not imported.
enum Rejection {
    Line(String),
    Store(StoreError),
}

async fn check(line: &Line, hosts: &mut Hosts<'_>) -> Result<Pair, Rejection> {
    let mut login = match decode(MessageKind::TokenStore, &line.text) {
        Ok(Request::Store(request)) => Login::from(*request),
        Ok(Request::SealedStore(_)) => {
            return Err(Rejection::Line(
                "sealed: an import takes no sealed logins; publish it as a token.store".to_owned(),
            ));
        }
        Ok(Request::Token(_) | Request::WorkspaceStart(_) | Request::Report(_)) => {
            return Err(Rejection::Line("is not a token.store".to_owned()));
        }
        Err(invalid) => return Err(Rejection::Line(invalid.reason)),
    };
    let dated: Dated = serde_json::from_slice(&line.text).map_err(|_| {
        Rejection::Line("issued_at: must be an RFC 3339 date like 2020-01-01T01:05:00.000Z".to_owned())
    })?;
    // A date in 1970 or earlier counts as left out, as those of a `token.store` do.
    if let Some(issued_at) = dated.issued_at.filter(|at| at.as_millis() > 0) {
        login.pair.source = PairSource::DatedLogin { issued_at };
    }
    match hosts.provider_id(&login.host).await.map_err(Rejection::Store)? {
        Some(provider_id) => Ok(Pair { line: line.number, provider_id, login }),
        None => Err(Rejection::Line(
            "host: no provider has this host; `tokenkeeper provider apply` creates one".to_owned(),
        )),
    }
}

/// What a line has beside the fields of a `token.store`.
#[derive(Deserialize)]
struct Dated {
    issued_at: Option<Timestamp>,
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

/// Where the pairs go, and how.
#[derive(Clone)]
struct Target {
    store: Store,
    clock: Arc<DatabaseClock>,
    /// Newer pairs are replaced, too.
    replace: bool,
    /// Nothing is written.
    dry_run: bool,
}

impl Target {
    async fn take(&self, provider_id: i64, login: &Login) -> Result<LoginEffect, StoreError> {
        let Login { user_id, account, pair, .. } = login;
        if self.dry_run {
            return self.store.preview_login(user_id, provider_id, pair, self.replace).await;
        }
        let now = self.clock.now();
        let stored = self.store.put_login(user_id, provider_id, account, pair, self.replace, now).await?;
        Ok(stored.effect)
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
    fn start(target: &Target, tally: &Arc<Tally>) -> Self {
        let mut tasks = JoinSet::new();
        let entries = (0..WRITERS)
            .map(|_| {
                let (entry, pairs) = mpsc::channel(MAX_QUEUED);
                tasks.spawn(write(pairs, target.clone(), Arc::clone(tally)));
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

async fn write(mut pairs: mpsc::Receiver<Pair>, target: Target, tally: Arc<Tally>) {
    while let Some(Pair { line, provider_id, login }) = pairs.recv().await {
        if tally.database_is_lost() {
            continue;
        }
        match target.take(provider_id, &login).await {
            Ok(effect) => tally.count(effect),
            Err(error) => tally.fail_in_store(line, &error, &target.store).await,
        }
    }
}
