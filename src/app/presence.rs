//! A process that seals, among the others that do (`domain/key_use.rs`): its row, its keys, and the key that it seals with.

use std::future::Future;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::domain::key_use::{
    Canary, Fit, KnownWorker, problem_with_format_1, problem_with_ring, problem_with_settings,
};
use crate::domain::problem::Problem;
use crate::domain::secret::{Format, RingKey};
use crate::store::{KeyProof, Store, StoreError};
use crate::telemetry;

/// How often a process says that it lives, and looks whether it may seal with a newer key.
const BEAT: Duration = Duration::from_secs(5);

/// How long a process that ends waits for its row to be removed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process among the others. It must be ended ([`Presence::end`]), or it counts as living for a while.
#[derive(Debug)]
pub struct Presence {
    store: Store,
    id: String,
    command: &'static str,
    /// The place in the ring of the key that it seals with.
    place: Option<usize>,
    waits: Option<Waits>,
    /// Who does not read the newest format, while it seals in an older one for their sake.
    behind: Vec<KnownWorker>,
}

/// A newer key that a process does not seal with yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    pub key_id: String,
    /// Who does not hold it.
    pub lacking: Vec<KnownWorker>,
}

/// Whether a process may seal with a key.
enum Permission {
    Granted,
    /// These do not hold the key.
    Lacking(Vec<KnownWorker>),
}

impl Presence {
    /// Joins the others with the keys of `store`, and chooses the key that the store seals with.
    ///
    /// # Errors
    /// A [`Problem`] if the ring does not open what others seal, or if others could not open what this process seals.
    pub async fn begin(store: &Store, id: String, command: &'static str) -> anyhow::Result<Self> {
        let mut presence =
            Self { store: store.clone(), id, command, place: None, waits: None, behind: Vec::new() };
        // Who refuses format 1 never writes it, whatever the database says of others.
        let first = if store.keys().accepts_format_1() { Format::One } else { Format::NEWEST };
        store.keys().seal_in(first);
        match presence.join().await {
            Ok(()) => Ok(presence),
            Err(error) => {
                presence.end().await;
                Err(error)
            }
        }
    }

    /// The same for a command, while it does its `work`.
    ///
    /// # Errors
    /// As [`Presence::begin`], and what `work` says.
    pub async fn during<T, E: From<anyhow::Error>>(
        store: &Store,
        command: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut presence = Self::of_command(store, command).await?;
        let done = presence.keep_during(work).await;
        presence.end().await;
        done
    }

    /// As [`Presence::begin`], with a name of its own.
    pub async fn of_command(store: &Store, command: &'static str) -> anyhow::Result<Self> {
        Self::begin(store, format!("command-{}", Uuid::new_v4().simple()), command).await
    }

    /// Does `work`, and keeps the row meanwhile.
    pub async fn keep_during<T, E: From<anyhow::Error>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            done = work => done,
            problem = self.keep() => Err(E::from(anyhow::Error::from(problem))),
        }
    }

    /// Keeps the row, and begins to seal with a newer key when everybody holds it. Returns only if the ring does not open what
    /// others seal: this process was silent for so long that they did not wait for it.
    pub async fn keep(&mut self) -> Problem {
        loop {
            sleep(BEAT).await;
            match timeout(BEAT, self.beat()).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(problem))) => return problem,
                Ok(Err(error)) => telemetry::worker_not_kept(&error),
                Err(_) => telemetry::worker_not_kept(&StoreError::NoAnswer),
            }
        }
    }

    /// Leaves the others. A row that stays behind counts as living for a minute.
    pub async fn end(self) {
        match timeout(PATIENCE, self.store.remove_worker(&self.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => telemetry::worker_not_kept(&error),
            Err(_) => telemetry::worker_not_kept(&StoreError::NoAnswer),
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The first key that it would seal with, if everybody held it.
    pub const fn waits(&self) -> Option<&Waits> {
        self.waits.as_ref()
    }

    /// Who does not read the newest format. Nobody: this process seals in it.
    pub fn behind(&self) -> &[KnownWorker] {
        &self.behind
    }

    async fn join(&mut self) -> anyhow::Result<()> {
        // Before the look at the canaries: whoever announces a key after that look sees this row.
        self.say().await?;
        let canaries = self.store.canaries().await?;
        if let Some(problem) = self.problem(&canaries).await? {
            return Err(problem.into());
        }
        self.choose_format(&canaries).await?;
        self.choose().await?;
        if self.place.is_none() {
            return Err(self.nobody_could_read().into());
        }
        // Others are told what it seals with.
        Ok(self.say().await?)
    }

    async fn say(&self) -> Result<(), StoreError> {
        let seals_with = self.place.map(|_| self.store.keys().sealing_key().id());
        self.store.keep_worker(&self.id, self.command, seals_with).await
    }

    async fn beat(&mut self) -> Result<Option<Problem>, StoreError> {
        // A key that was chosen in the last beat is told in this one. By then what was sealed before is stored.
        self.say().await?;
        let mut canaries = self.store.canaries().await?;
        // Whoever announces a key waits for this process.
        canaries.retain(Canary::is_in_use);
        if let Some(problem) = self.problem(&canaries).await? {
            return Ok(Some(problem));
        }
        let key = self.store.keys().sealing_key();
        if !canaries.iter().any(|canary| canary.key_id == key.id()) {
            // Retired while this process began to seal with it.
            let _ = self.store.announce_key(key).await?;
            let _ = self.store.put_key_into_use(key.id()).await?;
        }
        self.choose_format(&canaries).await?;
        self.choose().await?;
        Ok(None)
    }

    /// Why the ring does not do. None: it opens all of these canaries.
    async fn problem(&self, canaries: &[Canary]) -> Result<Option<Problem>, StoreError> {
        let ring = self.store.keys();
        if let Some(problem) = problem_with_settings(ring, canaries) {
            return Ok(Some(problem));
        }
        let (mut missing, mut other) = (Vec::new(), Vec::new());
        // A key that somebody dropped before there were canaries: rows that nobody missed may be left of it.
        let mut dropped = Vec::new();
        for canary in canaries {
            let id = canary.key_id.as_str();
            match canary.fit(ring) {
                Fit::Opens | Fit::OtherDeployment | Fit::RefusedFormat => {}
                Fit::Missing if canary.sealed.is_none() => dropped.push(id),
                Fit::Missing => missing.push(id),
                Fit::OtherKey => other.push(id),
                Fit::Unproven => {
                    let key = ring.keys().iter().find(|key| key.id() == id);
                    let Some(key) = key else { continue };
                    match self.store.prove_key(key).await? {
                        KeyProof::Proven => {}
                        KeyProof::RefusedFormat => return Ok(Some(problem_with_format_1())),
                        KeyProof::OtherKey => other.push(id),
                    }
                }
            }
        }
        if missing.len() + other.len() + dropped.len() == canaries.len() {
            missing.append(&mut dropped);
        }
        if !dropped.is_empty() {
            telemetry::keys_dropped(&dropped.join(", "));
        }
        Ok(problem_with_ring(&missing, &other))
    }

    /// Seals in the newest format once everybody reads it. Never goes back.
    async fn choose_format(&mut self, canaries: &[Canary]) -> Result<(), StoreError> {
        let store = self.store.clone();
        let is_chosen = store.keys().sealing_format() == Format::NEWEST;
        let behind = if is_chosen { Vec::new() } else { self.reading_less().await? };
        if behind.is_empty() {
            // From here on no older version starts. One that started before has its row.
            for canary in canaries.iter().filter(|canary| canary.format() == Some(Format::One)) {
                let _ = store.renew_canary(canary).await?;
            }
        }
        if is_chosen {
            return Ok(());
        }
        let behind = if behind.is_empty() { self.reading_less().await? } else { behind };
        if behind.is_empty() {
            store.keys().seal_in(Format::NEWEST);
        } else if self.behind.is_empty() {
            telemetry::format_waits(Format::NEWEST.number(), &names(&behind));
        }
        self.behind = behind;
        Ok(())
    }

    /// Who may live and does not read the newest format.
    async fn reading_less(&self) -> Result<Vec<KnownWorker>, StoreError> {
        let mut workers = self.store.workers().await?;
        workers
            .retain(|worker| worker.is_waited_for && worker.id != self.id && !worker.reads(Format::NEWEST));
        Ok(workers)
    }

    /// Chooses the first key of the ring that everybody can read. Never goes back to an older one.
    async fn choose(&mut self) -> Result<(), StoreError> {
        let store = self.store.clone();
        let keys = store.keys().keys();
        let mut waits = None;
        for (place, key) in keys.iter().enumerate().take(self.place.unwrap_or(keys.len())) {
            match self.permission(key).await? {
                Permission::Granted => {
                    store.keys().seal_with(place);
                    self.place = Some(place);
                    telemetry::sealing_begins(key.id());
                    break;
                }
                Permission::Lacking(lacking) => {
                    waits.get_or_insert(Waits { key_id: key.id().to_owned(), lacking });
                }
            }
        }
        if let Some(waits) = &waits
            && self.waits.as_ref().is_none_or(|before| before.key_id != waits.key_id)
        {
            telemetry::sealing_waits(&waits.key_id, &names(&waits.lacking));
        }
        self.waits = waits;
        Ok(())
    }

    /// The four steps of `domain/key_use.rs`.
    async fn permission(&self, key: &RingKey) -> Result<Permission, StoreError> {
        let opens = |canary: &Canary| canary.fit(self.store.keys()) == Fit::Opens;
        let canary = self.store.canary(key.id()).await?;
        if canary.as_ref().is_some_and(|canary| canary.is_in_use() && opens(canary)) {
            return Ok(Permission::Granted);
        }
        let lacking = self.lacking(key).await?;
        if !lacking.is_empty() {
            return Ok(Permission::Lacking(lacking));
        }
        if canary.is_none() {
            let _ = self.store.announce_key(key).await?;
        }
        let lacking = self.lacking(key).await?;
        // Somebody who is gone may have announced another key of this id.
        let is_ours = self.store.canary(key.id()).await?.as_ref().is_some_and(opens);
        if !lacking.is_empty() || !is_ours {
            return Ok(Permission::Lacking(lacking));
        }
        let _ = self.store.put_key_into_use(key.id()).await?;
        // Somebody may have retired it meanwhile.
        let is_in_use = self.store.canary(key.id()).await?.as_ref().is_some_and(Canary::is_in_use);
        Ok(if is_in_use { Permission::Granted } else { Permission::Lacking(lacking) })
    }

    /// Who may live and does not hold the key.
    async fn lacking(&self, key: &RingKey) -> Result<Vec<KnownWorker>, StoreError> {
        let mut workers = self.store.workers().await?;
        workers.retain(|worker| worker.is_waited_for && worker.id != self.id && !worker.holds(key));
        Ok(workers)
    }

    fn nobody_could_read(&self) -> Problem {
        let lacking = self.waits.as_ref().map(|waits| names(&waits.lacking)).unwrap_or_default();
        Problem::new(
            "no encryption key here (`encryption.keys`, TOKENKEEPER_KEYS) is known to all other workers",
            format!("a key that others lack cannot be used yet, as by {lacking}"),
            "give all the same keys; a worker that was killed counts for ten minutes: `tokenkeeper keys status` shows it",
        )
    }
}

/// For people.
pub fn names(workers: &[KnownWorker]) -> String {
    workers.iter().map(|worker| format!("{} ({})", worker.id, worker.command)).collect::<Vec<_>>().join(", ")
}
