//! JOURNAL: each pair that was stored, outside of the database's fate (docs/journal.md).
//!
//! A refreshed or stored pair is appended to the stream `<prefix>.pairs` beside the database's write, and before it is handed
//! out. The database keeps a mark: up to where it is known to hold what the journal has. When the database goes back, by a
//! restored backup or a failover that lost commits, the mark goes back with it, and workers read on from there.

mod apply;
mod follow;
mod replay;
mod told;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::apply::Done;
pub use self::follow::Follower;
pub use self::replay::replay;
use self::told::Told;
use crate::broker::{BrokerError, JournalReader, Publisher, ReadFrom};
use crate::domain::clock::Timestamp;
use crate::retry::{Backoff, retry_forever};
use crate::settings::Broker;
use crate::store::{AccountNames, Entry, JournalMark, JournalRecord, JournalledPair, NewPair, Store};
use crate::telemetry;

/// How long a hand-out waits until the broker has the record of its pair. After that it is appended later.
const PATIENCE: Duration = Duration::from_secs(2);

/// Records that the broker did not take in time, and that are appended later. One more is dropped, and counted.
const MOST_LATE: usize = 1_000;

const LATE_AGAIN: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_secs(5));

/// Whether the database is known to hold what the journal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Not yet: the rest of the journal is being read. So many records were read.
    Reading {
        records: u64,
    },
    /// The database does not say how far it is.
    Asking,
    Open,
}

/// The journal, as requests and refreshes use it. Clones share it.
#[derive(Debug, Clone)]
pub struct Journal(Option<Arc<Shared>>);

#[derive(Debug)]
pub(super) struct Shared {
    settings: Arc<Broker>,
    /// Names this process at the broker.
    instance: String,
    store: Store,
    publisher: Publisher,
    gate: watch::Sender<Gate>,
    told: Mutex<Told>,
    /// Until then reservations may be unknown, because the database went back.
    unsure_until: Mutex<Option<Timestamp>>,
    /// The mark that this process saw last. None: none yet.
    seen: Mutex<Option<JournalMark>>,
    /// When the last look at the mark for a refresh began.
    looked_at: tokio::sync::Mutex<Option<Instant>>,
    /// The follower must look at once.
    went_back: Notify,
    late: mpsc::Sender<Vec<u8>>,
    /// One at a time: each opens a connection.
    bringing_up: tokio::sync::Mutex<()>,
}

/// The row is behind its record, and could not be brought up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the row is behind the journal, and could not be brought up to it")]
pub struct StillBehind;

impl Journal {
    /// There is no journal (`broker.journal_max_age_secs = 0`).
    pub const fn none() -> Self {
        Self(None)
    }

    /// The journal, and the task that appends what the broker did not take in time.
    pub fn new(
        settings: Arc<Broker>,
        instance: String,
        store: Store,
        publisher: Publisher,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (late, records) = mpsc::channel(MOST_LATE);
        let append_late = append_late(publisher.clone(), records);
        let shared = Shared {
            settings,
            instance,
            store,
            publisher,
            gate: watch::Sender::new(Gate::Reading { records: 0 }),
            told: Mutex::new(Told::nothing()),
            unsure_until: Mutex::default(),
            seen: Mutex::default(),
            looked_at: tokio::sync::Mutex::default(),
            went_back: Notify::new(),
            late,
            bringing_up: tokio::sync::Mutex::default(),
        };
        (Self(Some(Arc::new(shared))), append_late)
    }

    /// Whether the database holds what the journal has. No journal: always.
    pub fn gate(&self) -> Gate {
        self.0.as_ref().map_or(Gate::Open, |shared| *shared.gate.borrow())
    }

    /// Waits until the gate is open.
    pub async fn opened(&self) {
        let Some(shared) = &self.0 else { return };
        // The sender lives as long as we do.
        let _ = shared.gate.subscribe().wait_for(|gate| *gate == Gate::Open).await;
    }

    /// The same, up to a deadline. Whether it is open.
    pub async fn opened_by(&self, deadline: Instant) -> bool {
        self.gate() == Gate::Open || timeout_at(deadline, self.opened()).await.is_ok()
    }

    /// Whether the database has not gone back, as it says now. For before a refresh: reservations go back, too, and a refresh may end
    /// a token that somebody holds. Who asks at the same time shares the answer.
    pub async fn is_where_it_was(&self) -> bool {
        let Some(shared) = &self.0 else { return true };
        let asked_at = Instant::now();
        let mut looked_at = shared.looked_at.lock().await;
        if self.gate() != Gate::Open {
            return false;
        }
        if looked_at.is_some_and(|began| began >= asked_at) {
            return true;
        }
        // Before the question: the follower may see a later mark meanwhile.
        let (began, seen) = (Instant::now(), shared.seen.lock().clone());
        // A database that is away says so to the next statement as well.
        let Ok(mark) = shared.store.journal_mark().await else { return true };
        *looked_at = Some(began);
        if is_behind(mark.as_ref(), seen.as_ref()) {
            shared.gate.send_replace(Gate::Reading { records: 0 });
            shared.went_back.notify_one();
        }
        self.gate() == Gate::Open
    }

    /// Appends the pair that a refresh of `entry` brought. `spent`: fingerprint of the refresh token that was sent.
    pub async fn refreshed(&self, host: &str, entry: &Entry, pair: &NewPair, spent: &str) {
        if let Some(shared) = &self.0 {
            shared.append(host, &JournalledPair::refreshed(entry, pair, spent)).await;
        }
    }

    /// Appends the pair of a login that was stored at `at`.
    pub async fn logged_in(
        &self,
        host: &str,
        (user_id, account): (&str, &AccountNames),
        pair: &NewPair,
        generation: i64,
        at: Timestamp,
    ) {
        if let Some(shared) = &self.0 {
            let stored = JournalledPair::of_login(user_id, account, pair, generation, at);
            shared.append(host, &stored).await;
        }
    }

    /// Until when every token counts as reserved: the database went back, and reservations went with it. None: it did not.
    pub fn unsure_until(&self, now: Timestamp) -> Option<Timestamp> {
        let until = (*self.0.as_ref()?.unsure_until.lock())?;
        (until > now).then_some(until)
    }

    /// Whether the journal names a newer pair than this row's.
    pub fn is_ahead_of(&self, host: &str, entry: &Entry) -> bool {
        let Some(shared) = &self.0 else { return false };
        let told = shared.told.lock();
        told.last(host, &entry.user_id).is_some_and(|last| entry.is_behind(last.at, last.generation))
    }

    /// Whether the journal names this user at a host.
    pub fn knows(&self, host: &str, user_id: &str) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.told.lock().last(host, user_id).is_some())
    }

    /// Whether the journal names a user's refresh token, by its fingerprint, as spent.
    pub fn is_spent(&self, host: &str, user_id: &str, fingerprint: &str) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.told.lock().is_spent(host, user_id, fingerprint))
    }

    /// Brings a user's row up to the last record about it.
    ///
    /// # Errors
    /// [`StillBehind`]: the record cannot be read or stored, which is logged.
    pub async fn bring_up(&self, host: &str, user_id: &str, provider_id: i64) -> Result<(), StillBehind> {
        let Some(shared) = &self.0 else { return Ok(()) };
        let _one_at_a_time = shared.bringing_up.lock().await;
        let Some(last) = shared.told.lock().last(host, user_id) else { return Ok(()) };
        shared.bring_up(last.offset, user_id, provider_id).await.map_err(|error| {
            telemetry::journal_not_applied(host, &error);
            StillBehind
        })
    }
}

/// Why a row was not brought up to its record.
#[derive(Debug, thiserror::Error)]
enum NotBroughtUp {
    #[error("{0}")]
    Broker(#[from] BrokerError),
    #[error("{0}")]
    Store(#[from] crate::store::StoreError),
    #[error("the record at offset {0} is not there any more, or is about somebody else")]
    Gone(u64),
}

impl Shared {
    async fn append(&self, host: &str, stored: &JournalledPair) {
        let record = self.store.seal_journal(host, stored).encode();
        let appended = timeout(PATIENCE, self.publisher.append(&record)).await;
        let error = match appended {
            Ok(Ok(())) => return telemetry::journal_appended(),
            Ok(Err(error)) => error,
            Err(_) => BrokerError::Timeout { action: "append to the journal".to_owned(), after: PATIENCE },
        };
        let is_lost = self.late.try_send(record).is_err();
        telemetry::journal_not_appended(host, &error, is_lost);
    }

    async fn bring_up(&self, offset: u64, user_id: &str, provider_id: i64) -> Result<(), NotBroughtUp> {
        let name = format!("{} journal of one user", self.instance);
        let mut reader = JournalReader::open(&self.settings, &name, ReadFrom::Offset(offset)).await?;
        let read = timeout(self.settings.operation_timeout, async {
            loop {
                let appended = reader.next().await?;
                if appended.offset >= offset {
                    break Ok(appended);
                }
            }
        });
        let read: Result<_, BrokerError> = read.await.unwrap_or_else(|_| {
            let action = "read a record of the journal".to_owned();
            Err(BrokerError::Timeout { action, after: self.settings.operation_timeout })
        });
        let appended = read?;
        reader.close().await;
        let record = JournalRecord::decode(&appended.body).filter(|_| appended.offset == offset);
        let record = record.ok_or(NotBroughtUp::Gone(offset))?;
        let stored = self.store.open_journal(&record)?;
        if stored.user_id != user_id {
            return Err(NotBroughtUp::Gone(offset));
        }
        self.store.apply_journalled(provider_id, &stored).await?;
        Ok(())
    }
}

/// Whether the mark was written before one that was seen earlier.
fn is_behind(mark: Option<&JournalMark>, seen: Option<&JournalMark>) -> bool {
    seen.is_some_and(|seen| mark.is_none_or(|mark| mark.moves < seen.moves))
}

/// Appends what the broker did not take in time, one record after the other.
async fn append_late(publisher: Publisher, mut records: mpsc::Receiver<Vec<u8>>) {
    while let Some(record) = records.recv().await {
        retry_forever(LATE_AGAIN, |_| async { publisher.append(&record).await.ok() }).await;
        telemetry::journal_appended();
    }
}
