//! Whether a worker's messages in hand are being settled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::Feed;

/// A full prefetch is stuck if no message was settled for this long. Every wait of a message is shorter, or is limited to
/// a small part of the prefetch.
const STUCK_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Progress {
    feed: Feed,
    prefetch: usize,
    epoch: Instant,
    /// Milliseconds from `epoch` to when the prefetch filled up or a message was settled last. 0: it is not full.
    full_since: AtomicU64,
}

impl Progress {
    pub(super) fn new(feed: Feed, prefetch: u16) -> Self {
        let full_since = AtomicU64::new(0);
        Self { feed, prefetch: usize::from(prefetch), epoch: Instant::now(), full_since }
    }

    /// Call this after each change of the messages in hand.
    pub(crate) fn note(&self, in_hand: usize, settled: usize) {
        if in_hand < self.prefetch {
            self.full_since.store(0, Ordering::Relaxed);
        } else if settled > 0 || self.full_since.load(Ordering::Relaxed) == 0 {
            let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.full_since.store(now.max(1), Ordering::Relaxed);
        }
    }

    pub(super) fn problem(&self, now: Instant) -> Option<String> {
        let full_since = self.full_since.load(Ordering::Relaxed);
        let stuck = full_since > 0 && now > self.epoch + Duration::from_millis(full_since) + STUCK_AFTER;
        let Self { feed, prefetch, .. } = self;
        stuck.then(|| {
            format!(
                "worker: the prefetch of {feed} is full ({prefetch} messages), and none was settled for {} s",
                STUCK_AFTER.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::MessageKind;

    #[tokio::test(start_paused = true)]
    async fn a_full_prefetch_is_stuck_if_no_message_is_settled_for_ten_seconds() {
        let progress = Progress::new(Feed::Messages(MessageKind::TokenRequest), 2);
        let problem_after = async |secs| {
            tokio::time::advance(Duration::from_secs(secs)).await;
            progress.problem(Instant::now())
        };
        progress.note(1, 0);
        assert_eq!(problem_after(60).await, None, "there is room");
        progress.note(2, 0);
        progress.note(2, 0);
        assert_eq!(problem_after(9).await, None);
        assert!(problem_after(2).await.is_some_and(|problem| problem.contains("token.request")));
        progress.note(2, 1);
        assert_eq!(problem_after(9).await, None, "one was settled");
        assert!(problem_after(2).await.is_some());
        progress.note(1, 1);
        assert_eq!(problem_after(60).await, None);
    }
}
