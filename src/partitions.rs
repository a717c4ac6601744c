//! PARTITIONS: who consumes which partition. One user's messages are in one partition, so all that is asked for a user
//! at once meets in one process, and joins one flight there instead of watching another worker's lease.
//!
//! Who shares is a table of replicas, which each worker writes itself into (`membership.rs`). What each one gets is a pure
//! function of that table ([`Share::of`]), so nobody has to agree with anybody. For a moment two workers may see two
//! tables, and a partition has two consumers or none: the first is harmless, because what keeps two refreshes apart is
//! the lease in the token's row; the second delays what is in that partition.

mod membership;

use std::collections::BTreeSet;
use std::time::Duration;

pub use self::membership::Membership;
use crate::domain::clock::Timestamp;
use crate::store::Replica;

/// How often a worker says that it is there, and looks who else is.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// A worker that has not said so for this long is taken for dead: five heartbeats, so that a slow database or a busy
/// machine moves no partitions.
pub const TTL: Duration = Duration::from_secs(5);

/// One that was dead for this long does not come back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// The partitions of one worker, the same ones for each kind of message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Share {
    owned: BTreeSet<u8>,
    /// How many workers there are, this one included.
    replicas: usize,
}

impl Share {
    /// What `me` gets of `partitions` where these are on the list at `now`.
    ///
    /// A partition goes round the living in the order of their names. One who does not know of it (a rolling change of
    /// `broker.partitions`) is passed over, so that it does not lie idle.
    pub fn of(replicas: &[Replica], me: &str, partitions: u16, now: Timestamp) -> Self {
        let mut living: Vec<&Replica> = replicas.iter().filter(|replica| is_alive(replica, now)).collect();
        living.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        let turn_of = |index: u8| {
            let mut knowing = living.iter().filter(|replica| u16::from(index) < replica.partitions);
            let count = knowing.clone().count();
            knowing.nth(usize::from(index).checked_rem(count)?)
        };
        let all = (0..partitions).map_while(|index| u8::try_from(index).ok());
        let owned = all.filter(|index| turn_of(*index).is_some_and(|owner| owner.id == me)).collect();
        Self { owned, replicas: living.len() }
    }

    /// How many partitions of each kind.
    pub fn len(&self) -> usize {
        self.owned.len()
    }

    /// Whether there are more workers than partitions, and this one got none.
    pub fn is_empty(&self) -> bool {
        self.owned.is_empty()
    }

    /// How many workers share the partitions.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// How many messages of a kind this worker may have in hand from one partition, where it may have `prefetch` from
    /// all of them together; none: it is another worker's.
    pub fn prefetch(&self, index: u8, prefetch: u16) -> Option<u16> {
        let owned = u16::try_from(self.owned.len()).unwrap_or(u16::MAX);
        self.owned.contains(&index).then(|| prefetch.checked_div(owned).unwrap_or(0).max(1))
    }

    /// How many partitions are in this share and not in the other one.
    pub fn beyond(&self, other: &Self) -> usize {
        self.owned.difference(&other.owned).count()
    }
}

fn is_alive(replica: &Replica, now: Timestamp) -> bool {
    now < replica.seen_at.plus(TTL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn replica(id: &str, partitions: u16) -> Replica {
        Replica { id: id.to_owned(), partitions, seen_at: NOW }
    }

    fn shares(replicas: &[Replica]) -> Vec<Share> {
        replicas.iter().map(|replica| Share::of(replicas, &replica.id, replica.partitions, NOW)).collect()
    }

    fn owners(shares: &[Share], index: u8) -> usize {
        shares.iter().filter(|share| share.owned.contains(&index)).count()
    }

    proptest! {
        #[test]
        fn every_partition_has_one_owner_and_shares_differ_by_one_at_most(
            ids in proptest::collection::hash_set("[a-z]{1,8}", 1..20),
            partitions in 1_u16..=256,
        ) {
            let replicas: Vec<Replica> = ids.iter().map(|id| replica(id, partitions)).collect();
            let shares = shares(&replicas);
            for index in (0..partitions).map(|index| u8::try_from(index).unwrap()) {
                prop_assert_eq!(owners(&shares, index), 1, "partition {}", index);
            }
            let sizes = || shares.iter().map(Share::len);
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
            prop_assert_eq!(sizes().sum::<usize>(), usize::from(partitions));
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(
            ids in proptest::collection::vec("[a-z]{1,8}", 1..8),
            partitions in 1_u16..=32,
        ) {
            let replicas: Vec<Replica> = ids.iter().map(|id| replica(id, partitions)).collect();
            let backwards: Vec<Replica> = replicas.iter().rev().cloned().collect();
            for id in &ids {
                let (one, other) =
                    (Share::of(&replicas, id, partitions, NOW), Share::of(&backwards, id, partitions, NOW));
                prop_assert_eq!(one, other);
            }
        }

        #[test]
        fn while_the_number_of_partitions_is_changed_each_of_them_has_one_owner(
            counts in proptest::collection::vec(0_u16..=256, 1..12),
        ) {
            let replicas: Vec<Replica> =
                counts.iter().enumerate().map(|(number, count)| replica(&format!("r-{number}"), *count)).collect();
            let shares = shares(&replicas);
            for index in (0..*counts.iter().max().unwrap()).map(|index| u8::try_from(index).unwrap()) {
                prop_assert_eq!(owners(&shares, index), 1, "partition {}", index);
            }
        }

        #[test]
        fn the_prefetch_of_a_kind_is_shared_out_and_none_gets_less_than_one(
            partitions in 1_u16..=256, prefetch in 1_u16..,
        ) {
            let share = &shares(&[replica("only", partitions)])[0];
            let of_one = share.prefetch(0, prefetch).unwrap();
            let all = u32::from(of_one) * u32::from(partitions);
            prop_assert!(of_one >= 1 && (all <= u32::from(prefetch) || of_one == 1), "{}", of_one);
            prop_assert!(all + u32::from(partitions) > u32::from(prefetch), "hardly any of it is left over");
        }
    }

    #[test]
    fn one_who_was_not_seen_for_the_ttl_has_no_share_and_counts_for_nobody() {
        let gone = Replica {
            seen_at: Timestamp::from_millis(NOW.as_millis() - i64::try_from(TTL.as_millis()).unwrap()),
            ..replica("gone", 4)
        };
        let late =
            Replica { seen_at: Timestamp::from_millis(gone.seen_at.as_millis() + 1), ..replica("late", 4) };
        let both = Share::of(&[gone.clone(), replica("here", 4)], "here", 4, NOW);
        assert_eq!((both.len(), both.replicas()), (4, 1));
        let both = Share::of(&[late, replica("here", 4)], "here", 4, NOW);
        assert_eq!((both.len(), both.replicas()), (2, 2));
        assert!(Share::of(&[gone], "gone", 4, NOW).is_empty());
    }

    #[test]
    fn what_is_another_worker_s_has_no_prefetch() {
        let shares = shares(&[replica("a", 3), replica("b", 3)]);
        assert_eq!([0, 1, 2].map(|index| shares[0].prefetch(index, 64)), [Some(32), None, Some(32)]);
        assert_eq!([0, 1, 2].map(|index| shares[1].prefetch(index, 64)), [None, Some(64), None]);
        assert_eq!((shares[0].beyond(&shares[1]), shares[0].beyond(&shares[0])), (2, 0));
    }
}
