//! Log lines that outsiders can bring about as often as they like.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// At most one line in this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets one line through now and then, and counts the others.
#[derive(Debug)]
pub(super) struct Seldom(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    kept_back: u64,
}

impl Seldom {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(State { last: None, kept_back: 0 }))
    }

    /// Whether a line may be written now, and how many were not since the last one.
    pub(super) fn lets_through(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.last.is_some_and(|last| now < last + PAUSE) {
            state.kept_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_says_how_many_were_kept_back() {
        let (seldom, begin) = (Seldom::new(), Instant::now());
        assert_eq!(seldom.lets_through(begin), Some(0));
        assert_eq!(seldom.lets_through(begin + Duration::from_millis(1)), None);
        assert_eq!(seldom.lets_through(begin + Duration::from_millis(999)), None);
        assert_eq!(seldom.lets_through(begin + PAUSE), Some(2));
        assert_eq!(seldom.lets_through(begin + PAUSE * 2), Some(0));
    }
}
