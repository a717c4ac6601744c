//! Follows the journal: reads what the database may lack, then goes on reading, and moves the mark.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::apply::{Applying, Done};
use super::{Gate, Journal, Shared, is_behind};
use crate::broker::{AGAIN, Appended, BrokerError, JournalReader, ReadFrom};
use crate::domain::clock::Clock;
use crate::retry::retry_until_cancelled;
use crate::store::{Guarded, JournalMark, JournalRecord, JournalledPair, StoreError};
use crate::telemetry;

/// Who has it moves the mark on.
const DUTY: &str = "journal";

/// How long the duty lasts. It is kept with every tick.
const DUTY_TTL: Duration = Duration::from_secs(10);

/// How often the mark is looked at: so soon it is noticed that the database went back.
const TICK: Duration = Duration::from_secs(1);

/// The same while the database does not answer.
const SOON: Duration = Duration::from_millis(100);

/// A mark that nobody moved for so long: whoever had the duty may be gone.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// A record of so long ago is stored, or its worker is in trouble.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// A database whose mark stood still for so long before a pair that it lacks was put back. Workers move the mark with every tick.
const MARK_STOOD_STILL: Duration = Duration::from_secs(30);

/// For so long after the database went back, reservations count as unknown: the longest lifetime that a request may ask for.
const LONGEST_RESERVATION: Duration = Duration::from_hours(24);

/// Records that are applied together.
const PAGE: usize = 1_000;

/// Records that wait to be settled. If there are more, they are read again.
const MOST_UNSETTLED: usize = 10_000;

/// Follows the journal for a process.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    applying: Applying,
    clock: Arc<dyn Clock>,
    /// This process saw the mark go back, and has not read on from there yet.
    went_back: AtomicBool,
    /// Whether this process moves the mark.
    has_duty: AtomicBool,
}

/// Why following begins anew.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Broker(#[from] BrokerError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the database went back")]
    WentBack,
    #[error("too many records wait to be settled")]
    TooMany,
}

/// A record that was read, and may not be stored yet.
#[derive(Debug)]
struct Unsettled {
    offset: u64,
    fingerprint: String,
    read_at: Instant,
    /// None: no record of a pair, or one that cannot be opened.
    stored: Option<(String, JournalledPair)>,
}

impl Follower {
    /// None: there is no journal.
    pub fn new(journal: &Journal, clock: Arc<dyn Clock>) -> Option<Self> {
        let shared = Arc::clone(journal.0.as_ref()?);
        let applying = Applying::new(shared.store.clone());
        Some(Self {
            shared,
            applying,
            clock,
            went_back: AtomicBool::default(),
            has_duty: AtomicBool::default(),
        })
    }

    /// Follows over as many connections as that takes. Begins none after `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let lost = |broken: &Broken| {
            telemetry::journal_not_followed(broken);
            AGAIN
        };
        if let Some(never) = retry_until_cancelled(&stop, lost, || self.follow()).await {
            match never {}
        }
    }

    /// Over one connection.
    async fn follow(&self) -> Result<Infallible, Broken> {
        let name = format!("{} journal", self.shared.instance);
        let mark = self.shared.store.journal_mark().await?;
        let from = mark.as_ref().map_or(ReadFrom::First, |mark| ReadFrom::Offset(mark.offset));
        let mut reader = JournalReader::open(&self.shared.settings, &name, from).await?;
        let mark = match self.read_rest(&mut reader, mark.as_ref()).await? {
            Rest::Read(mark) => mark,
            Rest::OtherJournal => {
                telemetry::journal_is_another();
                reader = JournalReader::open(&self.shared.settings, &name, ReadFrom::First).await?;
                match self.read_rest(&mut reader, None).await? {
                    Rest::Read(mark) => mark,
                    Rest::OtherJournal => return Err(Broken::WentBack),
                }
            }
        };
        self.see(mark);
        self.shared.gate.send_replace(Gate::Open);
        self.keep_following(&mut reader).await
    }

    /// Reads on from the mark to a record of our own, which is appended now, and applies what it reads.
    async fn read_rest(
        &self,
        reader: &mut JournalReader,
        mark: Option<&JournalMark>,
    ) -> Result<Rest, Broken> {
        let ours = Uuid::new_v4().to_string().into_bytes();
        self.shared.publisher.append(&ours).await?;
        let (mut page, mut done, mut read) = (Vec::new(), Done::default(), 0);
        let mut is_first = true;
        let end = loop {
            let record = timeout(self.shared.settings.operation_timeout, reader.next()).await;
            let record = record.unwrap_or_else(|_| {
                let action = "read the journal".to_owned();
                Err(BrokerError::Timeout { action, after: self.shared.settings.operation_timeout })
            })?;
            let is_ours = record.body == ours;
            if let Some(mark) = mark {
                if record.offset < mark.offset {
                    if is_ours {
                        return Ok(Rest::OtherJournal);
                    }
                    // The broker sends whole chunks.
                    continue;
                }
                if mem::take(&mut is_first) {
                    if record.offset == mark.offset && fingerprint_of(&record) != mark.fingerprint {
                        return Ok(Rest::OtherJournal);
                    }
                    if record.offset > mark.offset + 1 {
                        telemetry::journal_too_short(mark.moved_at);
                    }
                }
            }
            if is_ours {
                break record;
            }
            read += 1;
            page.extend(self.note(&record));
            if page.len() == PAGE {
                done.add(self.applying.apply(mem::take(&mut page)).await?);
                self.shared.gate.send_replace(Gate::Reading { records: read });
                telemetry::journal_read(read, done.stored);
            }
        };
        done.add(self.applying.apply(page).await?);
        let now = self.clock.now();
        let stood_still =
            mark.zip(done.latest).is_some_and(|(mark, latest)| latest > mark.moved_at.plus(MARK_STOOD_STILL));
        let went_back = stood_still || self.went_back.load(Ordering::Relaxed);
        if done.stored > 0 {
            telemetry::journal_applied(done.stored, done.left, went_back);
        }
        let moved = JournalMark {
            offset: end.offset,
            fingerprint: fingerprint_of(&end),
            moves: mark.map_or(1, |mark| mark.moves + 1),
            moved_at: now,
            unsure_until: went_back.then(|| now.plus(LONGEST_RESERVATION)),
        };
        self.shared.store.move_journal_mark(&moved, mark.is_none()).await?;
        self.went_back.store(false, Ordering::Relaxed);
        Ok(Rest::Read(moved))
    }

    async fn keep_following(&self, reader: &mut JournalReader) -> Result<Infallible, Broken> {
        let mut unsettled = VecDeque::new();
        let (mut tick, mut retry) = (interval(TICK), interval(SOON));
        loop {
            let asking = *self.shared.gate.borrow() == Gate::Asking;
            tokio::select! {
                record = reader.next() => {
                    unsettled.push_back(self.unsettled(&record?));
                    if unsettled.len() > MOST_UNSETTLED {
                        return Err(Broken::TooMany);
                    }
                }
                _ = tick.tick(), if !asking => self.look(&mut unsettled).await?,
                _ = retry.tick(), if asking => self.look(&mut unsettled).await?,
                () = self.shared.went_back.notified() => self.look(&mut unsettled).await?,
            }
        }
    }

    /// Looks where the mark stands now, and moves it on if it is this worker's turn.
    async fn look(&self, unsettled: &mut VecDeque<Unsettled>) -> Result<(), Broken> {
        let asked = timeout(self.shared.settings.operation_timeout, self.shared.store.journal_mark()).await;
        let Ok(Ok(stands)) = asked else {
            // When it is back, it may have gone back.
            self.shared.gate.send_replace(Gate::Asking);
            return Ok(());
        };
        let seen = self.shared.seen.lock().clone();
        let Some(mark) = stands.filter(|mark| !is_behind(Some(mark), seen.as_ref())) else {
            self.shared.gate.send_replace(Gate::Reading { records: 0 });
            self.went_back.store(true, Ordering::Relaxed);
            self.shared.store.forget_known();
            telemetry::database_went_back(seen.map(|seen| seen.moved_at));
            return Err(Broken::WentBack);
        };
        self.see(mark.clone());
        self.shared.gate.send_if_modified(|gate| mem::replace(gate, Gate::Open) != Gate::Open);
        while unsettled.front().is_some_and(|record| record.offset <= mark.offset) {
            unsettled.pop_front();
        }
        match self.settle(&mark, unsettled).await {
            Ok(()) => Ok(()),
            // The next tick tries it again.
            Err(error) if error.is_transient() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn see(&self, mark: JournalMark) {
        *self.shared.unsure_until.lock() = mark.unsure_until;
        *self.shared.seen.lock() = Some(mark);
    }

    /// Sees to it that the database holds what was read some time ago, and moves the mark there.
    async fn settle(
        &self,
        mark: &JournalMark,
        unsettled: &mut VecDeque<Unsettled>,
    ) -> Result<(), StoreError> {
        let (store, now) = (&self.shared.store, self.clock.now());
        // Somebody has the duty while the mark is fresh. To ask for it would make the database log an error.
        if now.since(mark.moved_at) < STALE_AFTER && !self.has_duty.load(Ordering::Relaxed) {
            return Ok(());
        }
        let duty = store.take_duty(DUTY, &self.shared.instance, now, DUTY_TTL).await?;
        self.has_duty.store(duty == Guarded::Done, Ordering::Relaxed);
        if duty == Guarded::Moved {
            return Ok(());
        }
        let settled = unsettled.iter().take_while(|record| record.read_at.elapsed() >= SETTLED_AFTER).count();
        let settled: Vec<Unsettled> = unsettled.drain(..settled.min(PAGE)).collect();
        let mut moved = JournalMark { moved_at: now, unsure_until: None, ..mark.clone() };
        if let Some(last) = settled.last() {
            moved.offset = last.offset;
            moved.fingerprint.clone_from(&last.fingerprint);
        }
        let records = settled.into_iter().filter_map(|record| record.stored).collect();
        let done = self.applying.apply(records).await?;
        if done.stored > 0 {
            telemetry::journal_applied(done.stored, done.left, false);
        }
        store.move_journal_mark(&moved, false).await
    }

    fn unsettled(&self, record: &Appended) -> Unsettled {
        Unsettled {
            offset: record.offset,
            fingerprint: fingerprint_of(record),
            read_at: Instant::now(),
            stored: self.note(record),
        }
    }

    /// Opens a record, and remembers what it tells. None: it tells of no pair, or cannot be opened, which is logged.
    fn note(&self, record: &Appended) -> Option<(String, JournalledPair)> {
        let sealed = JournalRecord::decode(&record.body)?;
        match self.shared.store.open_journal(&sealed) {
            Ok(stored) => {
                self.shared.told.lock().note(&sealed.host, &stored, record.offset);
                Some((sealed.host, stored))
            }
            Err(error) => {
                telemetry::journal_not_applied(&sealed.host, &error);
                None
            }
        }
    }
}

/// What reading on from the mark found.
enum Rest {
    /// All of it was applied: the mark stands here now.
    Read(JournalMark),
    /// The mark belongs to a journal that is gone.
    OtherJournal,
}

fn fingerprint_of(record: &Appended) -> String {
    BASE64.encode(Sha256::digest(&record.body))
}
