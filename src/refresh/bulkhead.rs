//! Bulkheads: how many messages in hand may wait for one host, so that a slow or dead one leaves the rest of the
//! prefetch window to the others.
//!
//! Each queue gives a host a quarter of its prefetch: so many messages may wait for as long as their own time lasts.
//! Those over it may stand by while the host is not stalled, which it is as soon as the oldest wait or flight that is
//! outstanding there is two seconds old: a burst for one token that takes 50 ms to refresh is no reason to refuse
//! anybody. Once it is stalled they are refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Boarding, Landing};
use crate::message::MessageKind;

/// A host whose oldest wait or flight is older than this is stalled.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// What part of a queue's prefetch one host may hold.
const SHARE: usize = 4;

/// How many messages of a queue may wait for one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Of `token.request`.
    pub token_requests: usize,
    /// Of `workspace.start`.
    pub workspace_starts: usize,
}

/// Everybody who waits, by host. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Bulkhead {
    quotas: Quotas,
    hosts: Arc<Mutex<HashMap<String, Waits>>>,
}

/// A place to wait for one host, kept for as long as the message is in hand.
#[derive(Debug)]
pub struct Seat {
    bulkhead: Bulkhead,
    host: String,
    kind: MessageKind,
    number: u64,
    seated: bool,
}

/// A flight that is outstanding at a host, also when nobody waits for it any more.
#[derive(Debug)]
pub(super) struct Outstanding {
    bulkhead: Bulkhead,
    host: String,
    number: u64,
}

/// Too many wait for this host already, and it is stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded;

/// How a wait for a landing ended.
#[derive(Debug)]
pub enum Waited {
    /// It landed.
    Landed(Landing),
    /// It did not in time.
    TimedOut,
    /// The seat is needed for others.
    Crowded,
}

/// What there is for one who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Berth {
    /// Within the quota: for as long as they like.
    Seat,
    /// Over it: until then, and then another look.
    StandBy(Instant),
}

/// Who waits for one host.
#[derive(Debug, Default)]
struct Waits {
    /// When each wait and flight began. The numbers grow, so the first one is the oldest.
    outstanding: BTreeMap<u64, Instant>,
    last: u64,
    seated: HashMap<MessageKind, usize>,
}

impl Quotas {
    /// A quarter of each prefetch, and one at least.
    pub fn of_prefetch(token_requests: u16, workspace_starts: u16) -> Self {
        let share = |prefetch: u16| (usize::from(prefetch) / SHARE).max(1);
        Self { token_requests: share(token_requests), workspace_starts: share(workspace_starts) }
    }

    const fn of(self, kind: MessageKind) -> usize {
        match kind {
            MessageKind::TokenRequest => self.token_requests,
            MessageKind::WorkspaceStart => self.workspace_starts,
            // Waits for nobody.
            MessageKind::TokenStore => usize::MAX,
        }
    }
}

impl Waits {
    fn begin(&mut self, now: Instant) -> u64 {
        self.last += 1;
        self.outstanding.insert(self.last, now);
        self.last
    }

    /// What there is at `now` for one more of this kind, or for one who stands by.
    fn berth(&mut self, kind: MessageKind, quota: usize, now: Instant) -> Result<Berth, Crowded> {
        let seated = self.seated.entry(kind).or_default();
        if *seated < quota {
            *seated += 1;
            return Ok(Berth::Seat);
        }
        let oldest = self.outstanding.values().next().copied().unwrap_or(now);
        let stalled_at = oldest + STALLED_AFTER;
        if now < stalled_at { Ok(Berth::StandBy(stalled_at)) } else { Err(Crowded) }
    }

    fn end(&mut self, number: u64, seat_of: Option<MessageKind>) {
        self.outstanding.remove(&number);
        if let Some(seated) = seat_of.and_then(|kind| self.seated.get_mut(&kind)) {
            *seated -= 1;
        }
    }
}

impl Bulkhead {
    pub(super) fn new(quotas: Quotas) -> Self {
        Self { quotas, hosts: Arc::default() }
    }

    /// A place for a message of this kind to wait for a host.
    pub(super) fn enter(&self, host: &str, kind: MessageKind, now: Instant) -> Result<Seat, Crowded> {
        let mut hosts = self.hosts();
        let waits = hosts.entry(host.to_owned()).or_default();
        let seated = waits.berth(kind, self.quotas.of(kind), now)? == Berth::Seat;
        let number = waits.begin(now);
        Ok(Seat { bulkhead: self.clone(), host: host.to_owned(), kind, number, seated })
    }

    /// Takes note of a flight.
    pub(super) fn take_off(&self, host: &str, now: Instant) -> Outstanding {
        let number = self.hosts().entry(host.to_owned()).or_default().begin(now);
        Outstanding { bulkhead: self.clone(), host: host.to_owned(), number }
    }

    fn leave(&self, host: &str, number: u64, seat_of: Option<MessageKind>) {
        if let Some(waits) = self.hosts().get_mut(host) {
            waits.end(number, seat_of);
        }
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<String, Waits>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Waits for a landing until then, or until the seat is needed for others.
    pub async fn wait(&mut self, boarding: &mut Boarding, until: Instant) -> Waited {
        loop {
            let patience = match self.berth(Instant::now()) {
                Ok(Berth::Seat) => until,
                Ok(Berth::StandBy(patience)) => patience.min(until),
                Err(Crowded) => return Waited::Crowded,
            };
            match boarding.landing(patience).await {
                Some(landing) => return Waited::Landed(landing),
                None if patience == until => return Waited::TimedOut,
                None => {}
            }
        }
    }

    fn berth(&mut self, now: Instant) -> Result<Berth, Crowded> {
        if self.seated {
            return Ok(Berth::Seat);
        }
        let quota = self.bulkhead.quotas.of(self.kind);
        let berth = match self.bulkhead.hosts().get_mut(&self.host) {
            Some(waits) => waits.berth(self.kind, quota, now)?,
            // This very wait is on the list.
            None => Berth::Seat,
        };
        self.seated = berth == Berth::Seat;
        Ok(berth)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.bulkhead.leave(&self.host, self.number, self.seated.then_some(self.kind));
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.bulkhead.leave(&self.host, self.number, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: MessageKind = MessageKind::TokenRequest;
    const HOST: &str = "git.example.org";

    fn bulkhead(prefetch: u16) -> (Bulkhead, Instant) {
        (Bulkhead::new(Quotas::of_prefetch(prefetch, 1)), Instant::now())
    }

    fn enter(bulkhead: &Bulkhead, now: Instant) -> Result<Seat, Crowded> {
        bulkhead.enter(HOST, KIND, now)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_quarter_of_the_prefetch_waits_and_one_at_least() {
        for (prefetch, quota) in [(512, 128), (64, 16), (7, 1), (1, 1)] {
            assert_eq!(
                Quotas::of_prefetch(prefetch, 4),
                Quotas { token_requests: quota, workspace_starts: 1 }
            );
        }
    }

    #[test]
    fn those_over_the_quota_stand_by_until_the_oldest_wait_is_old_enough() {
        let (bulkhead, begin) = bulkhead(8);
        let seated: Vec<Seat> = (0..2).map(|_| enter(&bulkhead, begin).unwrap()).collect();
        assert!(seated.iter().all(|seat| seat.seated));
        let mut standing = enter(&bulkhead, begin + ms(400)).unwrap();
        assert!(!standing.seated);
        let stalled = begin + STALLED_AFTER;
        assert_eq!(standing.berth(stalled - ms(1)), Ok(Berth::StandBy(stalled)));
        assert_eq!(standing.berth(stalled), Err(Crowded));
        assert_eq!(enter(&bulkhead, stalled).err(), Some(Crowded));
        assert!(bulkhead.enter("elsewhere.example.org", KIND, stalled).is_ok_and(|seat| seat.seated));
        assert!(bulkhead.enter(HOST, MessageKind::WorkspaceStart, stalled).is_ok_and(|seat| seat.seated));
    }

    #[test]
    fn one_who_stands_by_moves_up_when_a_seat_is_free_and_the_clock_starts_with_the_oldest_who_is_left() {
        let (bulkhead, begin) = bulkhead(8);
        let first = enter(&bulkhead, begin).unwrap();
        let second = enter(&bulkhead, begin + ms(300)).unwrap();
        let mut third = enter(&bulkhead, begin + ms(400)).unwrap();
        let mut fourth = enter(&bulkhead, begin + ms(500)).unwrap();
        drop(first);
        assert_eq!(third.berth(begin + ms(1_100)), Ok(Berth::Seat));
        assert_eq!(fourth.berth(begin + ms(1_100)), Ok(Berth::StandBy(begin + ms(300) + STALLED_AFTER)));
        drop(second);
        assert_eq!(fourth.berth(begin + ms(9_000)), Ok(Berth::Seat));
        drop((third, fourth));
        let waits = &bulkhead.hosts()[HOST];
        assert!(waits.outstanding.is_empty() && waits.seated[&KIND] == 0, "{waits:?}");
    }

    #[test]
    fn a_flight_that_nobody_waits_for_keeps_its_host_stalled() {
        let (bulkhead, begin) = bulkhead(4);
        let flight = bulkhead.take_off(HOST, begin);
        let later = begin + ms(5_000);
        let _seated = enter(&bulkhead, later).unwrap();
        assert_eq!(enter(&bulkhead, later).err(), Some(Crowded));
        drop(flight);
        assert!(enter(&bulkhead, later).is_ok());
    }
}
