//! Messages that came from a queue and have no place in hand yet, in their order.

use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use lapin::message::Delivery;
use tokio::time::{Instant, Sleep, sleep_until};

/// A delivery, and when it came to this worker.
pub(super) struct Arrival {
    pub(super) delivery: Delivery,
    pub(super) at: Instant,
}

impl Arrival {
    pub(super) fn now(delivery: Delivery) -> Self {
        Self { delivery, at: Instant::now() }
    }
}

/// Those that wait: no more than the prefetch.
#[derive(Default)]
pub(super) struct Arrivals {
    waiting: VecDeque<Arrival>,
    /// How many of them, from the front, `earliest` is known for.
    known: usize,
    /// When the time of the first one is over, or before that.
    earliest: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Arrivals {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.waiting.push_back(Arrival::now(delivery));
    }

    pub(super) fn pop(&mut self) -> Option<Arrival> {
        self.known = self.known.saturating_sub(1);
        self.waiting.pop_front()
    }

    /// Those whose time ended while they waited. `ends_at` says when it does; None: while they wait, never. `context` is woken
    /// when the next one's time ends.
    pub(super) fn take_overdue(
        &mut self,
        context: &mut Context<'_>,
        ends_at: impl Fn(&Arrival) -> Option<Instant>,
    ) -> Vec<Arrival> {
        let of_new_ones = self.waiting.range(self.known..).filter_map(&ends_at).min();
        self.known = self.waiting.len();
        self.earliest = self.earliest.into_iter().chain(of_new_ones).min();
        let mut overdue = Vec::new();
        while let Some(earliest) = self.earliest
            && self.rings_at(earliest, context)
        {
            self.earliest = None;
            for arrival in mem::take(&mut self.waiting) {
                match ends_at(&arrival) {
                    // Of a time that is over it may say that it ends now.
                    Some(end) if end <= Instant::now() => overdue.push(arrival),
                    end => {
                        self.earliest = self.earliest.into_iter().chain(end).min();
                        self.waiting.push_back(arrival);
                    }
                }
            }
            self.known = self.waiting.len();
        }
        overdue
    }

    fn rings_at(&mut self, end: Instant, context: &mut Context<'_>) -> bool {
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if alarm.deadline() != end {
            alarm.as_mut().reset(end);
        }
        matches!(alarm.as_mut().poll(context), Poll::Ready(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    fn arrivals(tags: impl IntoIterator<Item = u64>) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for tag in tags {
            arrivals.push(Delivery::mock(tag, "".into(), "".into(), false, Vec::new()));
        }
        arrivals
    }

    /// The tags of the overdue ones, where the time of each ends so many seconds after its arrival. 0: it has none.
    async fn overdue(arrivals: &mut Arrivals) -> Vec<u64> {
        let ends_at = |arrival: &Arrival| match arrival.delivery.delivery_tag {
            0 => None,
            secs => Some(arrival.at + Duration::from_secs(secs)),
        };
        let taken = poll_fn(|context| {
            let taken = arrivals.take_overdue(context, ends_at);
            if taken.is_empty() { Poll::Pending } else { Poll::Ready(taken) }
        });
        taken.await.iter().map(|arrival| arrival.delivery.delivery_tag).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn whose_time_ends_is_taken_when_it_does_and_the_others_keep_their_order() {
        let (mut arrivals, begin) = (arrivals([0, 5, 2, 0, 3]), Instant::now());
        assert_eq!(overdue(&mut arrivals).await, [2]);
        // Its time ends as the fourth second does.
        arrivals.push(Delivery::mock(2, "".into(), "".into(), false, Vec::new()));
        for next in [3, 2, 5] {
            assert_eq!(overdue(&mut arrivals).await, [next]);
        }
        assert!(begin.elapsed() < Duration::from_secs(6), "as soon as it ends");
        let rest = [arrivals.pop(), arrivals.pop(), arrivals.pop()];
        assert_eq!(rest.map(|it| it.map(|it| it.delivery.delivery_tag)), [Some(0), Some(0), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_got_a_place_is_not_waited_for() {
        let mut arrivals = arrivals([1, 4]);
        let alone = |arrivals: &mut Arrivals, context: &mut Context<'_>| {
            arrivals.take_overdue(context, |arrival| Some(arrival.at + Duration::from_secs(1))).len()
        };
        assert_eq!(poll_fn(|context| Poll::Ready(alone(&mut arrivals, context))).await, 0);
        assert_eq!(arrivals.pop().map(|first| first.delivery.delivery_tag), Some(1));
        assert_eq!(overdue(&mut arrivals).await, [4]);
        assert!(arrivals.is_empty());
    }
}
