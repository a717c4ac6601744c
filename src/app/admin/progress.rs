//! Whether a worker's messages in hand are being settled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// If all places are taken and nothing was settled for this long, the messages are stuck: every wait of a message ends
/// before, or leaves most of the places to others.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Every [`Progress`] that lives.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<Vec<Weak<Progress>>>);

impl Watched {
    /// The one of this name; a new one with so many places, if there is none.
    pub(super) fn watch(&self, name: String, prefetch: u16) -> Arc<Progress> {
        let mut watched = self.0.lock();
        watched.retain(|progress| progress.strong_count() > 0);
        let shared = watched.iter().filter_map(Weak::upgrade).find(|progress| progress.name == name);
        shared.unwrap_or_else(|| {
            let progress = Arc::new(Progress::new(name, prefetch));
            watched.push(Arc::downgrade(&progress));
            progress
        })
    }

    pub(super) fn problems(&self, now: Instant) -> Vec<String> {
        self.0.lock().iter().filter_map(|progress| progress.upgrade()?.problem(now)).collect()
    }
}

/// The places for messages in hand of one queue, or of all partitions of a kind, and how these messages move.
#[derive(Debug)]
pub(crate) struct Progress {
    name: String,
    prefetch: u16,
    places: Arc<Semaphore>,
    epoch: Instant,
    /// Milliseconds from `epoch` to when a message was last taken in hand or settled.
    moved: AtomicU64,
}

impl Progress {
    fn new(name: String, prefetch: u16) -> Self {
        let (places, moved) = (Arc::new(Semaphore::new(usize::from(prefetch))), AtomicU64::new(0));
        Self { name, prefetch, places, epoch: Instant::now(), moved }
    }

    /// A message in hand has one of them.
    pub(crate) fn places(&self) -> &Arc<Semaphore> {
        &self.places
    }

    /// A message was taken in hand or settled just now.
    pub(crate) fn note(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
    }

    fn problem(&self, now: Instant) -> Option<String> {
        let moved = self.epoch + Duration::from_millis(self.moved.load(Ordering::Relaxed));
        let stuck = self.places.available_permits() == 0 && now > moved + STUCK_AFTER;
        let Self { name, prefetch, .. } = self;
        stuck.then(|| {
            format!(
                "worker: all {prefetch} messages of {name} that it may have in hand wait, and none was settled for {} s",
                STUCK_AFTER.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(progress: &Progress) -> tokio::sync::OwnedSemaphorePermit {
        progress.note();
        Arc::clone(progress.places()).try_acquire_owned().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_take_all_places_and_of_which_none_is_settled_for_ten_seconds_are_stuck() {
        let progress = Progress::new("token.request".to_owned(), 2);
        let problem_after = async |secs| {
            tokio::time::advance(Duration::from_secs(secs)).await;
            progress.problem(Instant::now())
        };
        let first = take(&progress);
        assert_eq!(problem_after(60).await, None, "there is room");
        let second = take(&progress);
        assert_eq!(problem_after(9).await, None);
        assert!(problem_after(2).await.is_some_and(|problem| problem.contains("token.request")));
        drop(first);
        let third = take(&progress);
        assert_eq!(problem_after(9).await, None, "one was settled");
        assert!(problem_after(2).await.is_some());
        drop((second, third));
        assert_eq!(problem_after(60).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_whose_messages_wait_for_those_of_another_one_is_not_stuck() {
        let watched = Watched::default();
        let [one, other] = [0, 1].map(|_| watched.watch("token.request in partitions".to_owned(), 1));
        let in_hand = take(&one);
        tokio::time::advance(Duration::from_secs(9)).await;
        drop(in_hand);
        let _in_hand = take(&one);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(watched.problems(Instant::now()), Vec::<String>::new());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(watched.problems(Instant::now()).len(), 1, "both are told of at once");
        drop((one, other));
        assert_eq!(watched.problems(Instant::now()), Vec::<String>::new());
    }
}
