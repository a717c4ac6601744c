//! Which deliveries of a channel are settled, and the acks that say so.

use std::collections::BTreeMap;

use lapin::types::DeliveryTag;

/// The settled deliveries of a channel, from the first delivery on that is still in hand. A broker numbers deliveries from one.
///
/// It keeps runs of tags instead of tags. Between two runs there is a delivery in hand, so there are never more runs than the
/// prefetch allows, however many deliveries overtake one that stays in hand.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Every delivery before this tag is settled, and the broker knows.
    first: DeliveryTag,
    /// From the first tag of a run to its last tag.
    runs: BTreeMap<DeliveryTag, DeliveryTag>,
    answered: Vec<DeliveryTag>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    /// The delivery, or the last of several.
    pub(super) tag: DeliveryTag,
    /// How many it acks. For more than one it is a `multiple` ack.
    pub(super) messages: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { first: 1, runs: BTreeMap::new(), answered: Vec::new() }
    }
}

impl Ledger {
    pub(super) fn answered(&mut self, tag: DeliveryTag) {
        self.answered.push(tag);
    }

    /// A delivery was given back: its nack or reject is written.
    pub(super) fn given_back(&mut self, tag: DeliveryTag) {
        self.settle(tag, tag);
    }

    /// The acks for everything that was answered since the last call. One ack covers all before the first delivery in hand. Each
    /// delivery behind that has an ack of its own, because a `multiple` ack would cover the one in hand too.
    pub(super) fn acks(&mut self) -> Vec<Ack> {
        let mut answered = std::mem::take(&mut self.answered);
        answered.sort_unstable();
        for run in answered.chunk_by(|one, next| one + 1 == *next) {
            if let (Some(&start), Some(&end)) = (run.first(), run.last()) {
                self.settle(start, end);
            }
        }
        if let Some(end) = self.runs.remove(&self.first) {
            self.first = end + 1;
        }
        let (front, behind) = answered.split_at(answered.partition_point(|tag| *tag < self.first));
        let ack_of_the_front = front.last().map(|&tag| Ack { tag, messages: front.len() });
        let acks = behind.iter().map(|&tag| Ack { tag, messages: 1 });
        let acks = ack_of_the_front.into_iter().chain(acks).collect();
        answered.clear();
        self.answered = answered;
        acks
    }

    /// Adds a run, and joins it with the runs that it touches.
    fn settle(&mut self, mut start: DeliveryTag, mut end: DeliveryTag) {
        if let Some((&before, &its_end)) = self.runs.range(..start).next_back()
            && its_end + 1 == start
        {
            self.runs.remove(&before);
            start = before;
        }
        if let Some(its_end) = self.runs.remove(&(end + 1)) {
            end = its_end;
        }
        self.runs.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ack(tag: DeliveryTag, messages: usize) -> Ack {
        Ack { tag, messages }
    }

    #[test]
    fn one_ack_stands_for_all_before_the_first_delivery_in_hand() {
        let mut ledger = Ledger::default();
        for tag in [1, 2, 3, 5] {
            ledger.answered(tag);
        }
        assert_eq!(ledger.acks(), [ack(3, 3), ack(5, 1)]);
        assert_eq!(ledger.acks(), [], "each is acked once");
        ledger.answered(4);
        ledger.answered(6);
        assert_eq!(ledger.acks(), [ack(6, 2)], "the fifth was acked before");
    }

    #[test]
    fn what_was_given_back_is_not_acked_and_holds_up_no_other_ack() {
        let mut ledger = Ledger::default();
        ledger.answered(1);
        ledger.given_back(2);
        ledger.answered(3);
        ledger.given_back(4);
        assert_eq!(ledger.acks(), [ack(3, 2)]);
        ledger.answered(5);
        assert_eq!(ledger.acks(), [ack(5, 1)]);
    }

    #[test]
    fn a_delivery_that_stays_in_hand_costs_no_memory_for_those_that_overtake_it() {
        let mut ledger = Ledger::default();
        for tag in (2..100_000).filter(|tag| *tag != 50_000) {
            ledger.answered(tag);
            if tag % 100 == 0 {
                ledger.acks();
            }
        }
        ledger.acks();
        assert_eq!(ledger.runs.len(), 2, "one run behind each of the two in hand");
        ledger.answered(1);
        assert_eq!(ledger.acks(), [ack(1, 1)], "the others were acked one by one");
        assert_eq!((ledger.first, ledger.runs.len()), (50_000, 1));
    }

    proptest! {
        /// The broker's side of it: whatever the order of settling, exactly what was answered is acked, and once.
        #[test]
        fn whatever_the_order_exactly_what_was_answered_is_acked(
            order in Just((1..=40).collect::<Vec<DeliveryTag>>()).prop_shuffle(),
            given_back in prop::collection::btree_set(1_u64..=40, 0..10),
            pauses in prop::collection::btree_set(0_usize..40, 0..20),
        ) {
            let mut ledger = Ledger::default();
            let (mut unacked, mut answered): (BTreeSet<_>, BTreeSet<_>) = ((1..=40).collect(), BTreeSet::new());
            for (turn, tag) in order.into_iter().enumerate() {
                if given_back.contains(&tag) {
                    prop_assert!(unacked.remove(&tag), "{tag} was acked before it was given back");
                    ledger.given_back(tag);
                } else {
                    answered.insert(tag);
                    ledger.answered(tag);
                }
                if turn != 39 && !pauses.contains(&turn) {
                    continue;
                }
                for Ack { tag, messages } in ledger.acks() {
                    prop_assert!(unacked.contains(&tag), "the broker does not know {tag}");
                    let acked: Vec<_> = match messages {
                        1 => vec![tag],
                        _ => unacked.range(..=tag).copied().collect(),
                    };
                    prop_assert_eq!(acked.len(), messages);
                    for tag in acked {
                        prop_assert!(answered.contains(&tag), "{tag} is still in hand");
                        unacked.remove(&tag);
                    }
                }
            }
            prop_assert!(unacked.is_empty());
        }
    }
}
