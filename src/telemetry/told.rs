//! Which problems were logged lately: each once, and again once a minute while it lasts.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::problem::Problem;

const AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Told(Vec<(Problem, Instant)>);

impl Told {
    /// Whether to log the problem now. A new one is logged at once.
    pub(super) fn is_due(&mut self, problem: &Problem, now: Instant) -> bool {
        self.0.retain(|(_, at)| now < *at + AGAIN);
        let is_due = self.0.iter().all(|(told, _)| told != problem);
        if is_due {
            self.0.push((problem.clone(), now));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_logged_once_a_minute_and_another_one_at_once() {
        let (mut told, begin) = (Told::default(), Instant::now());
        let [one, other] = ["one", "other"].map(|what| Problem::new(what, "", "next"));
        assert!(told.is_due(&one, begin));
        assert!(!told.is_due(&one, begin + Duration::from_secs(59)));
        assert!(told.is_due(&other, begin + Duration::from_secs(59)));
        assert!(told.is_due(&one, begin + AGAIN));
        assert!(!told.is_due(&other, begin + AGAIN));
    }
}
