//! Bulkheads: how many messages in hand may wait for one thing, or on behalf of one party, so that whatever is slow or
//! dead leaves the rest of the prefetch window to the others.
//!
//! A message waits for a host (a refresh there), for a reservation (of one user's token) or for a reply queue (one that
//! does not take its reply). Each queue of messages gives each of these a quarter of its prefetch: so many may wait for as
//! long as their own time lasts. Those over it may stand by while the thing is not stalled, which it is as soon as the
//! oldest wait or flight that is outstanding there is two seconds old: a burst for one token that takes 50 ms to refresh is
//! no reason to refuse anybody. Once it is stalled they are refused.
//!
//! Whoever waits for something that is stalled counts for their publisher and their user as well. A publisher has a
//! quarter of the prefetch over everything that is stalled, and a user half of that, so that neither can fill a
//! host's share with one token that is slow. Messages without a publisher share one.
//!
//! Suspects (`worker/suspects.rs`) have a queue of their own with a small prefetch, and a quarter of that. Isolated messages
//! are in hand one at a time, and those behind would wait as well. So an isolated message waits for nothing that is stalled.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::contract::MessageKind;
use crate::settings::WorkerSettings;

/// Something whose oldest wait or flight is older than this is stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(2);

/// The prefetch of suspects.
pub const SUSPECTS_IN_HAND: u16 = 16;

/// What part of a queue's prefetch may wait for one thing, or on behalf of one publisher.
const SHARE: usize = 4;

/// What part of that may wait on behalf of one user.
const SHARE_OF_A_USER: usize = 2;

/// Where a message came from: whose prefetch it takes a place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// The queue of its kind, or a partition.
    Messages(MessageKind),
    /// Suspects, a few at a time.
    Suspects,
    /// One at a time.
    Isolated,
}

/// How many messages of a queue may wait for one thing. Isolated ones may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Of `token.request`.
    pub token_requests: usize,
    /// Of `workspace.start`.
    pub workspace_starts: usize,
    /// Of `token.store`.
    pub token_stores: usize,
    /// Of `token.report` messages.
    pub token_reports: usize,
    /// Of suspects, whatever their kind.
    pub suspects: usize,
}

/// What messages wait for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Thing {
    /// A refresh at a host.
    Host(String),
    /// The end of somebody's reservation of a user's token.
    Reservation {
        /// Where the token is for.
        host: String,
        /// Whose token it is.
        user_id: String,
    },
    /// A queue that does not take its reply.
    ReplyQueue(String),
}

/// On whose behalf a message waits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Party {
    /// The AMQP user who published it, where the broker vouches for one.
    Publisher(Option<String>),
    User(String),
}

/// A message that may have to wait.
#[derive(Debug, Clone, Copy)]
pub struct Waiter<'a> {
    /// Where it came from.
    pub queue: Queue,
    /// The AMQP user who published it.
    pub publisher: Option<&'a str>,
    /// The platform's user whom it is about.
    pub user_id: Option<&'a str>,
}

/// Everybody who waits. Cheap to clone; clones are one and the same.
#[derive(Debug, Clone)]
pub struct Bulkhead {
    quotas: Quotas,
    waits: Arc<Mutex<Waits>>,
}

/// A place to wait for one thing, kept for as long as the message is in hand.
#[derive(Debug)]
pub struct Seat {
    bulkhead: Bulkhead,
    thing: Thing,
    queue: Queue,
    parties: Vec<Party>,
    number: u64,
    place: Place,
}

/// A flight that is outstanding at a host, also when nobody waits for it any more.
#[derive(Debug)]
pub struct Outstanding {
    bulkhead: Bulkhead,
    thing: Thing,
    number: u64,
}

/// Too many wait already, for the same thing or on behalf of the same party, and it is stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded;

/// How a wait ended.
#[derive(Debug)]
pub enum Waited<T> {
    /// What was waited for came.
    Came(T),
    /// It did not in time.
    TimedOut,
    /// The seat is needed for others.
    Crowded,
}

/// What one who waits has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// None yet: more wait than the quota allows.
    StandsBy,
    /// One of the thing's share.
    Seated,
    /// The thing is stalled, and the place counts for publisher and user as well.
    Held,
}

#[derive(Debug, Default)]
struct Waits {
    things: HashMap<Thing, WaitsForThing>,
    parties: HashMap<(Party, Queue), usize>,
    last: u64,
}

/// Who waits for one thing.
#[derive(Debug, Default)]
struct WaitsForThing {
    /// When each wait and flight began. The numbers grow, so the first one is the oldest.
    outstanding: BTreeMap<u64, Instant>,
    seated: HashMap<Queue, usize>,
}

impl Quotas {
    /// A quarter of each prefetch, and one at least.
    pub fn of_prefetch(settings: &WorkerSettings) -> Self {
        let share = |prefetch: u16| (usize::from(prefetch) / SHARE).max(1);
        Self {
            token_requests: share(settings.prefetch_token_requests),
            workspace_starts: share(settings.prefetch_workspace_starts),
            token_stores: share(settings.prefetch_token_stores),
            token_reports: share(settings.prefetch_token_reports),
            suspects: share(SUSPECTS_IN_HAND),
        }
    }

    const fn of(self, queue: Queue) -> usize {
        match queue {
            Queue::Messages(MessageKind::TokenRequest) => self.token_requests,
            Queue::Messages(MessageKind::WorkspaceStart) => self.workspace_starts,
            Queue::Messages(MessageKind::TokenStore) => self.token_stores,
            Queue::Messages(MessageKind::TokenReport) => self.token_reports,
            Queue::Suspects => self.suspects,
            Queue::Isolated => 0,
        }
    }

    fn of_party(self, party: &Party, queue: Queue) -> usize {
        match party {
            Party::Publisher(_) => self.of(queue),
            Party::User(_) => self.of(queue).div_ceil(SHARE_OF_A_USER),
        }
    }
}

impl Bulkhead {
    /// With nobody waiting.
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas, waits: Arc::default() }
    }

    /// A place for a message to wait for something.
    ///
    /// # Errors
    /// [`Crowded`]: it may not wait at all.
    pub fn enter(&self, thing: Thing, waiter: Waiter<'_>, now: Instant) -> Result<Seat, Crowded> {
        let parties = [
            Some(Party::Publisher(waiter.publisher.map(str::to_owned))),
            waiter.user_id.map(|user| Party::User(user.to_owned())),
        ];
        let number = self.waits().begin(thing.clone(), now);
        let mut seat = Seat {
            bulkhead: self.clone(),
            thing,
            queue: waiter.queue,
            parties: parties.into_iter().flatten().collect(),
            number,
            place: Place::StandsBy,
        };
        // Dropped where it is crowded, which takes it off the list again.
        seat.patience(now)?;
        Ok(seat)
    }

    /// Takes note of a flight at a host.
    pub fn take_off(&self, host: &str, now: Instant) -> Outstanding {
        let thing = Thing::Host(host.to_owned());
        let number = self.waits().begin(thing.clone(), now);
        Outstanding { bulkhead: self.clone(), thing, number }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock()
    }
}

impl Waits {
    fn begin(&mut self, thing: Thing, now: Instant) -> u64 {
        self.last += 1;
        self.things.entry(thing).or_default().outstanding.insert(self.last, now);
        self.last
    }

    /// Ends a wait or a flight. What nobody waits for is forgotten: outsiders choose the names.
    fn end(&mut self, thing: &Thing, number: u64, seat_of: Option<Queue>) {
        let Some(waits) = self.things.get_mut(thing) else { return };
        waits.outstanding.remove(&number);
        if let Some(seated) = seat_of.and_then(|queue| waits.seated.get_mut(&queue)) {
            *seated -= 1;
        }
        if waits.outstanding.is_empty() {
            self.things.remove(thing);
        }
    }

    /// When this becomes stalled, if nobody who waits for it gets it before.
    fn stalled_at(&self, thing: &Thing, now: Instant) -> Instant {
        let oldest = self.things.get(thing).and_then(|waits| waits.outstanding.values().next());
        oldest.copied().unwrap_or(now) + STALLED_AFTER
    }

    fn sit_down(&mut self, thing: &Thing, queue: Queue, quota: usize) -> bool {
        let Some(waits) = self.things.get_mut(thing) else { return false };
        let seated = waits.seated.entry(queue).or_default();
        let free = *seated < quota;
        *seated += usize::from(free);
        free
    }

    /// Counts a seat for all of its parties, or for none.
    fn hold(&mut self, parties: &[Party], queue: Queue, quotas: Quotas) -> bool {
        let held = |party: &Party| self.parties.get(&(party.clone(), queue)).copied().unwrap_or(0);
        if parties.iter().any(|party| held(party) >= quotas.of_party(party, queue)) {
            return false;
        }
        for party in parties {
            *self.parties.entry((party.clone(), queue)).or_default() += 1;
        }
        true
    }

    fn let_go(&mut self, parties: Vec<Party>, queue: Queue) {
        for party in parties {
            if let Slot::Occupied(mut held) = self.parties.entry((party, queue)) {
                *held.get_mut() -= 1;
                if *held.get() == 0 {
                    held.remove();
                }
            }
        }
    }
}

impl Seat {
    /// What it is for.
    pub const fn thing(&self) -> &Thing {
        &self.thing
    }

    /// Waits for something until then, or until the seat is needed for others.
    pub async fn wait<T>(&mut self, until: Instant, something: impl Future<Output = T>) -> Waited<T> {
        let mut something = pin!(something);
        loop {
            let patience = match self.patience(Instant::now()) {
                Ok(patience) => patience.map_or(until, |patience| patience.min(until)),
                Err(Crowded) => return Waited::Crowded,
            };
            match timeout_at(patience, something.as_mut()).await {
                Ok(came) => return Waited::Came(came),
                Err(_) if patience == until => return Waited::TimedOut,
                Err(_) => {}
            }
        }
    }

    /// Until when one may wait before another look; none: as long as they like.
    ///
    /// # Errors
    /// [`Crowded`]: no longer.
    pub fn patience(&mut self, now: Instant) -> Result<Option<Instant>, Crowded> {
        let Self { bulkhead, thing, queue, parties, place, .. } = self;
        let quotas = bulkhead.quotas;
        let mut waits = bulkhead.waits.lock();
        if *place == Place::Held {
            return Ok(None);
        }
        let stalled_at = waits.stalled_at(thing, now);
        if *place == Place::StandsBy && waits.sit_down(thing, *queue, quotas.of(*queue)) {
            *place = Place::Seated;
        }
        if now < stalled_at {
            return Ok(Some(stalled_at));
        }
        if *place == Place::Seated && waits.hold(parties, *queue, quotas) {
            *place = Place::Held;
            return Ok(None);
        }
        Err(Crowded)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut waits = self.bulkhead.waits.lock();
        let seat_of = match self.place {
            Place::StandsBy => None,
            Place::Seated | Place::Held => Some(self.queue),
        };
        waits.end(&self.thing, self.number, seat_of);
        if self.place == Place::Held {
            waits.let_go(std::mem::take(&mut self.parties), self.queue);
        }
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.bulkhead.waits().end(&self.thing, self.number, None);
    }
}

#[cfg(test)]
mod tests;
