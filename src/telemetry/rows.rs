//! Events of stored rows that cannot be used: changed by somebody else, damaged, or sealed with a key that is not here.

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::Duration;

use lru::LruCache;
use metrics::{counter, describe_counter};
use parking_lot::Mutex;
use tokio::time::Instant;

const UNUSABLE: &str = "tokenkeeper_unusable_rows_total";

/// A row is told of again after this time.
const AGAIN: Duration = Duration::from_mins(10);

/// Of so many rows it is known when they were told of.
const MOST_TOLD: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_023);

static TOLD: LazyLock<Mutex<LruCache<String, Instant>>> =
    LazyLock::new(|| Mutex::new(LruCache::new(MOST_TOLD)));

/// What needs the row is refused. `error` names it. It is logged once, because publishers can ask for it at will.
pub fn row_unusable(error: &dyn Display) {
    counter!(UNUSABLE).increment(1);
    let (text, now) = (error.to_string(), Instant::now());
    if is_due(&mut TOLD.lock(), &text, now) {
        tracing::error!(error = %text, "a stored row cannot be used; what needs it is refused");
    }
}

fn is_due(told: &mut LruCache<String, Instant>, text: &str, now: Instant) -> bool {
    if told.get(text).is_some_and(|at| now < *at + AGAIN) {
        return false;
    }
    told.put(text.to_owned(), now);
    true
}

pub(super) fn describe() {
    describe_counter!(
        UNUSABLE,
        "Times that a stored row was changed, damaged or without its key when it was needed."
    );
    counter!(UNUSABLE).absolute(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_told_of_once_in_ten_minutes_and_another_one_at_once() {
        let (mut told, begin) = (LruCache::new(MOST_TOLD), Instant::now());
        assert!(is_due(&mut told, "row 1", begin));
        assert!(!is_due(&mut told, "row 1", begin + Duration::from_secs(599)));
        assert!(is_due(&mut told, "row 2", begin + Duration::from_secs(599)));
        assert!(is_due(&mut told, "row 1", begin + AGAIN));
    }
}
