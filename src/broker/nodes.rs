//! Which nodes of the broker, and which addresses of a name, were of no use lately. They are tried last.
//!
//! A process has one memory of that for all its connections: where one of them found a frozen node, the others need not wait for
//! it again. It decides no more than an order, so a wrong entry costs a try.

use std::net::SocketAddr;

use parking_lot::Mutex;
use tokio::time::Instant;

/// So many places and connections are remembered. The oldest give way.
const MOST: usize = 64;

/// What this process remembers.
pub(super) static MEMORY: Memory = Memory(Mutex::new(State { failed: Vec::new(), used: Vec::new() }));

pub(super) struct Memory(Mutex<State>);

struct State {
    /// Each place once, and when it failed last.
    failed: Vec<(Place, Instant)>,
    /// By the name of a connection: where it was made to.
    used: Vec<(String, [Place; 2])>,
}

/// Somewhere to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A host and a port of the settings.
    Node(String),
    /// An address of it.
    Address(SocketAddr),
}

impl Memory {
    /// A connection of this name is to be made. If there was one before, it is gone, and where it was made to counts as failed.
    pub(super) fn connects(&self, name: &str) {
        let mut state = self.0.lock();
        if let Some(at) = state.used.iter().position(|(used, _)| used == name) {
            let (_, places) = state.used.remove(at);
            for place in places {
                state.fails(place);
            }
        }
    }

    pub(super) fn failed(&self, place: Place) {
        self.0.lock().fails(place);
    }

    /// A connection of this name was made.
    pub(super) fn connected(&self, name: &str, node: Place, address: SocketAddr) {
        let places = [node, Place::Address(address)];
        let mut state = self.0.lock();
        state.failed.retain(|(failed, _)| !places.contains(failed));
        make_room(&mut state.used);
        state.used.push((name.to_owned(), places));
    }

    /// When it failed last. None, which comes first in order: not lately.
    pub(super) fn last_failure(&self, place: &Place) -> Option<Instant> {
        self.0.lock().failed.iter().find(|(failed, _)| failed == place).map(|&(_, at)| at)
    }
}

impl State {
    fn fails(&mut self, place: Place) {
        self.failed.retain(|(failed, _)| *failed != place);
        make_room(&mut self.failed);
        self.failed.push((place, Instant::now()));
    }
}

fn make_room<T>(list: &mut Vec<T>) {
    if list.len() >= MOST {
        list.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory(Mutex::new(State { failed: Vec::new(), used: Vec::new() }))
    }

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 5672).into()
    }

    fn node(name: &str) -> Place {
        Place::Node(name.to_owned())
    }

    /// The nodes in the order in which they are tried.
    fn order(memory: &Memory) -> [&'static str; 3] {
        let mut names = ["a", "b", "c"];
        names.sort_by_key(|name| memory.last_failure(&node(name)));
        names
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_last_is_tried_last() {
        let memory = memory();
        for (failing, then) in [("a", ["b", "c", "a"]), ("b", ["c", "a", "b"]), ("a", ["c", "b", "a"])] {
            memory.failed(node(failing));
            assert_eq!(order(&memory), then);
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        memory.connected("a connection", node("b"), address(2));
        assert_eq!(order(&memory), ["b", "c", "a"], "it takes connections again");
    }

    #[test]
    fn where_a_connection_was_lost_counts_as_failed_and_where_another_one_lives_does_not() {
        let memory = memory();
        memory.connects("one");
        memory.connected("one", node("a"), address(1));
        memory.connects("other");
        memory.connected("other", node("b"), address(2));
        assert_eq!(order(&memory), ["a", "b", "c"]);

        memory.connects("one");

        assert_eq!(order(&memory), ["b", "c", "a"]);
        assert!(memory.last_failure(&Place::Address(address(1))).is_some());
        assert_eq!(memory.last_failure(&Place::Address(address(2))), None);
    }

    #[test]
    fn names_and_addresses_that_change_for_ever_do_not_fill_the_memory() {
        let memory = memory();
        for number in 0..1_000 {
            memory.failed(node(&format!("node {number}")));
            memory.connected(&format!("connection {number}"), node("a"), address(1));
        }
        let state = memory.0.lock();
        assert_eq!((state.failed.len(), state.used.len()), (MOST, MOST));
        assert_eq!(state.failed.last().map(|(place, _)| place.clone()), Some(node("node 999")));
    }
}
