//! Which deliveries of a channel are settled, and the acks that say so.

use std::collections::VecDeque;

use lapin::types::DeliveryTag;

/// The deliveries of a channel from the first one that is in hand on. A broker numbers them from one.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The tag of the first of `deliveries`.
    first: DeliveryTag,
    /// In the order of their tags; those behind the last one are in hand.
    deliveries: VecDeque<Delivery>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// Nothing was settled: an ack must not reach over it.
    InHand,
    /// It is to be acked.
    Answered,
    /// The broker knows already what became of it.
    Told,
}

/// An ack to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    /// The delivery; where it stands for several, the last of them.
    pub(super) tag: DeliveryTag,
    /// How many it stands for: beyond one it is a `multiple` ack.
    pub(super) messages: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { first: 1, deliveries: VecDeque::new() }
    }
}

impl Ledger {
    /// A delivery is to be acked.
    pub(super) fn answered(&mut self, tag: DeliveryTag) {
        self.enter(tag, Delivery::Answered);
    }

    /// A delivery was given back.
    pub(super) fn told(&mut self, tag: DeliveryTag) {
        self.enter(tag, Delivery::Told);
    }

    fn enter(&mut self, tag: DeliveryTag, state: Delivery) {
        let Some(place) = tag.checked_sub(self.first).and_then(|place| usize::try_from(place).ok()) else {
            return;
        };
        if place >= self.deliveries.len() {
            self.deliveries.resize(place + 1, Delivery::InHand);
        }
        self.deliveries[place] = state;
    }

    /// The acks for everything that was answered since the last time: one for all before the first delivery in hand, and
    /// one for each behind it, where one for several would take that along.
    pub(super) fn acks(&mut self) -> Vec<Ack> {
        let mut acks = Vec::new();
        acks.extend(self.ack_of_the_front());
        let (first, deliveries) = (self.first, self.deliveries.iter_mut());
        acks.extend((first..).zip(deliveries).filter(|(_, delivery)| **delivery == Delivery::Answered).map(
            |(tag, delivery)| {
                *delivery = Delivery::Told;
                Ack { tag, messages: 1 }
            },
        ));
        acks
    }

    fn ack_of_the_front(&mut self) -> Option<Ack> {
        let settled = self.deliveries.iter().take_while(|delivery| **delivery != Delivery::InHand).count();
        let front = (self.first..).zip(self.deliveries.drain(..settled));
        let answered = front.filter(|(_, delivery)| *delivery == Delivery::Answered);
        let ack = answered.fold(None, |ack: Option<Ack>, (tag, _)| {
            Some(Ack { tag, messages: ack.map_or(1, |ack| ack.messages + 1) })
        });
        self.first += settled as DeliveryTag;
        ack
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
    fn what_was_given_back_is_not_acked_and_is_in_nobodys_way() {
        let mut ledger = Ledger::default();
        ledger.answered(1);
        ledger.told(2);
        ledger.answered(3);
        ledger.told(4);
        assert_eq!(ledger.acks(), [ack(3, 2)]);
        ledger.answered(5);
        assert_eq!(ledger.acks(), [ack(5, 1)]);
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
                    ledger.told(tag);
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
