//! Rate limits for log lines that outsiders can trigger at will.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// At most one line in this time.
const PAUSE: Duration = Duration::from_secs(1);

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

    /// `Some`: write the line. The number says how many lines were suppressed since the last one.
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
    fn one_line_a_second_is_written_with_the_number_of_suppressed_ones() {
        let (seldom, begin) = (Seldom::new(), Instant::now());
        assert_eq!(seldom.lets_through(begin), Some(0));
        assert_eq!(seldom.lets_through(begin + Duration::from_millis(1)), None);
        assert_eq!(seldom.lets_through(begin + Duration::from_millis(999)), None);
        assert_eq!(seldom.lets_through(begin + PAUSE), Some(2));
        assert_eq!(seldom.lets_through(begin + PAUSE * 2), Some(0));
    }
}
