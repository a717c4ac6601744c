//! Bulkheads: how many messages in hand may wait for one resource, or from one publisher, or about one user. So a slow or dead
//! resource cannot take the whole prefetch.
//!
//! A message waits for a host (a refresh there), for a reservation (of one user's token) or for a reply queue (that does not
//! take its reply). Each queue gives each of these resources a quarter of its prefetch as its quota. Messages within the quota
//! wait until their own time is over. Messages over the quota may wait until the resource is stalled, and are refused then. A
//! resource is stalled once its oldest wait or flight is two seconds old. So a burst for one token that takes 50 ms to refresh
//! is refused nothing.
//!
//! A message that waits for a stalled resource is also charged to its publisher and its user. A publisher may have a quarter of
//! the prefetch charged over all resources, and a user half of that, rounded up. So one user's slow token takes at most half of a
//! host's quota. Messages without a publisher count as one publisher's.
//!
//! Suspects (`worker/suspects.rs`) have a queue of their own with a small prefetch, and a quarter of that. Isolated messages
//! are in hand one at a time, so one that waits delays those behind. An isolated message never waits for a stalled resource.
//!
//! Hosts are counted here and not in the refresher's state of a host, because the shares of publisher and user cover all kinds
//! of resources, under one lock.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::contract::MessageKind;
use crate::settings::WorkerSettings;

/// A resource is stalled once its oldest wait or flight is this old.
pub const STALLED_AFTER: Duration = Duration::from_secs(2);

/// The prefetch of suspects.
pub const SUSPECTS_IN_HAND: u16 = 16;

/// The part of a queue's prefetch that may wait for one resource, or for one publisher: a quarter.
const SHARE: usize = 4;

/// The part of a publisher's share that one user may have: half.
const SHARE_OF_A_USER: usize = 2;

/// The queue whose prefetch a message counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// The queue of its kind and all its partitions: one quota for them together.
    Messages(MessageKind),
    Suspects,
    Isolated,
}

/// How many messages of each queue may wait for one resource. Isolated messages have no quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    pub token_requests: usize,
    pub workspace_starts: usize,
    pub token_stores: usize,
    pub token_reports: usize,
    /// Of suspects, whatever their kind.
    pub suspects: usize,
}

/// What messages wait for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// A refresh at a host.
    Host(String),
    /// The end of somebody's reservation of a user's token.
    Reservation { host: String, user_id: String },
    /// A queue that does not take a reply.
    ReplyQueue(String),
}

/// Whom a message that waits is charged to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Principal {
    /// The AMQP user who published it, if the broker vouches for one.
    Publisher(Option<String>),
    User(String),
}

#[derive(Debug, Clone, Copy)]
pub struct Waiter<'a> {
    pub queue: Queue,
    /// The AMQP user who published it.
    pub publisher: Option<&'a str>,
    /// The platform's user whom it is about.
    pub user_id: Option<&'a str>,
}

/// All messages that wait. Clones share them.
#[derive(Debug, Clone)]
pub struct Bulkhead {
    quotas: Quotas,
    waits: Arc<Mutex<Waits>>,
}

/// The right to wait for one resource, kept for as long as the message is in hand.
#[derive(Debug)]
pub struct WaitSlot {
    bulkhead: Bulkhead,
    resource: Resource,
    queue: Queue,
    principals: Vec<Principal>,
    number: u64,
    state: SlotState,
}

/// A flight under way at a host. It counts as outstanding there even if nobody waits for it any more.
#[derive(Debug)]
pub struct OutstandingFlight {
    bulkhead: Bulkhead,
    resource: Resource,
    number: u64,
}

/// The resource is stalled, and too many messages wait for it already, or for the same publisher or user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyWaiting;

#[derive(Debug)]
pub enum Waited<T> {
    /// What the message waited for.
    Completed(T),
    TimedOut,
    TooManyWaiting,
}

/// How a wait is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    /// Not at all: more messages wait than the quota allows.
    OverQuota,
    /// In the resource's quota.
    WithinQuota,
    /// In the quota, and charged to publisher and user, because the resource is stalled.
    Charged,
}

#[derive(Debug, Default)]
struct Waits {
    resources: HashMap<Resource, ResourceWaits>,
    charged: HashMap<(Principal, Queue), usize>,
    last: u64,
}

/// The waits for one resource.
#[derive(Debug, Default)]
struct ResourceWaits {
    /// When each wait and flight began. The numbers grow, so the first entry is the oldest.
    outstanding: BTreeMap<u64, Instant>,
    within_quota: HashMap<Queue, usize>,
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

    fn of_principal(self, principal: &Principal, queue: Queue) -> usize {
        match principal {
            Principal::Publisher(_) => self.of(queue),
            Principal::User(_) => self.of(queue).div_ceil(SHARE_OF_A_USER),
        }
    }
}

impl Bulkhead {
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas, waits: Arc::default() }
    }

    /// Lets a message wait for a resource.
    ///
    /// # Errors
    /// [`TooManyWaiting`]: it may not wait at all.
    pub fn enter(
        &self,
        resource: Resource,
        waiter: Waiter<'_>,
        now: Instant,
    ) -> Result<WaitSlot, TooManyWaiting> {
        let principals = [
            Some(Principal::Publisher(waiter.publisher.map(str::to_owned))),
            waiter.user_id.map(|user| Principal::User(user.to_owned())),
        ];
        let number = self.waits().begin(resource.clone(), now);
        let mut slot = WaitSlot {
            bulkhead: self.clone(),
            resource,
            queue: waiter.queue,
            principals: principals.into_iter().flatten().collect(),
            number,
            state: SlotState::OverQuota,
        };
        // On an error the slot is dropped, which ends the wait again.
        slot.check(now)?;
        Ok(slot)
    }

    /// Counts a flight at a host for as long as the value lives.
    pub fn flight_began(&self, host: &str, now: Instant) -> OutstandingFlight {
        let resource = Resource::Host(host.to_owned());
        let number = self.waits().begin(resource.clone(), now);
        OutstandingFlight { bulkhead: self.clone(), resource, number }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock()
    }
}

impl Waits {
    fn begin(&mut self, resource: Resource, now: Instant) -> u64 {
        self.last += 1;
        self.resources.entry(resource).or_default().outstanding.insert(self.last, now);
        self.last
    }

    /// Ends a wait or a flight. A resource without waits is forgotten, because outsiders choose the names.
    fn end(&mut self, resource: &Resource, number: u64, quota_of: Option<Queue>) {
        let Some(waits) = self.resources.get_mut(resource) else { return };
        waits.outstanding.remove(&number);
        if let Some(within_quota) = quota_of.and_then(|queue| waits.within_quota.get_mut(&queue)) {
            *within_quota -= 1;
        }
        if waits.outstanding.is_empty() {
            self.resources.remove(resource);
        }
    }

    /// When this resource becomes stalled, unless its oldest wait ends before.
    fn stalled_at(&self, resource: &Resource, now: Instant) -> Instant {
        let oldest = self.resources.get(resource).and_then(|waits| waits.outstanding.values().next());
        oldest.copied().unwrap_or(now) + STALLED_AFTER
    }

    fn take_quota(&mut self, resource: &Resource, queue: Queue, quota: usize) -> bool {
        let Some(waits) = self.resources.get_mut(resource) else { return false };
        let within_quota = waits.within_quota.entry(queue).or_default();
        let free = *within_quota < quota;
        *within_quota += usize::from(free);
        free
    }

    /// Charges a wait to all of its principals, or to none.
    fn charge(&mut self, principals: &[Principal], queue: Queue, quotas: Quotas) -> bool {
        let charged =
            |principal: &Principal| self.charged.get(&(principal.clone(), queue)).copied().unwrap_or(0);
        if principals.iter().any(|principal| charged(principal) >= quotas.of_principal(principal, queue)) {
            return false;
        }
        for principal in principals {
            *self.charged.entry((principal.clone(), queue)).or_default() += 1;
        }
        true
    }

    fn release(&mut self, principals: Vec<Principal>, queue: Queue) {
        for principal in principals {
            if let Entry::Occupied(mut charged) = self.charged.entry((principal, queue)) {
                *charged.get_mut() -= 1;
                if *charged.get() == 0 {
                    charged.remove();
                }
            }
        }
    }
}

impl WaitSlot {
    pub const fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Waits for `operation`, at most until then and for as long as the quotas allow.
    pub async fn wait<T>(&mut self, until: Instant, operation: impl Future<Output = T>) -> Waited<T> {
        let mut operation = pin!(operation);
        loop {
            let next_check = match self.check(Instant::now()) {
                Ok(next_check) => next_check.map_or(until, |next_check| next_check.min(until)),
                Err(TooManyWaiting) => return Waited::TooManyWaiting,
            };
            match timeout_at(next_check, operation.as_mut()).await {
                Ok(completed) => return Waited::Completed(completed),
                Err(_) if next_check == until => return Waited::TimedOut,
                Err(_) => {}
            }
        }
    }

    /// Until when the message may wait before another check. None: there is no limit.
    ///
    /// # Errors
    /// [`TooManyWaiting`]: it may not wait any longer.
    pub fn check(&mut self, now: Instant) -> Result<Option<Instant>, TooManyWaiting> {
        let Self { bulkhead, resource, queue, principals, state, .. } = self;
        let quotas = bulkhead.quotas;
        let mut waits = bulkhead.waits.lock();
        if *state == SlotState::Charged {
            return Ok(None);
        }
        let stalled_at = waits.stalled_at(resource, now);
        if *state == SlotState::OverQuota && waits.take_quota(resource, *queue, quotas.of(*queue)) {
            *state = SlotState::WithinQuota;
        }
        if now < stalled_at {
            return Ok(Some(stalled_at));
        }
        if *state == SlotState::WithinQuota && waits.charge(principals, *queue, quotas) {
            *state = SlotState::Charged;
            return Ok(None);
        }
        Err(TooManyWaiting)
    }
}

impl Drop for WaitSlot {
    fn drop(&mut self) {
        let mut waits = self.bulkhead.waits.lock();
        let quota_of = match self.state {
            SlotState::OverQuota => None,
            SlotState::WithinQuota | SlotState::Charged => Some(self.queue),
        };
        waits.end(&self.resource, self.number, quota_of);
        if self.state == SlotState::Charged {
            waits.release(std::mem::take(&mut self.principals), self.queue);
        }
    }
}

impl Drop for OutstandingFlight {
    fn drop(&mut self) {
        self.bulkhead.waits().end(&self.resource, self.number, None);
    }
}

#[cfg(test)]
mod tests;
