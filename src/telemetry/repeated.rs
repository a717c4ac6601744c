//! Log lines of failures that repeat with every try: once for each text, and then once a minute.

use std::fmt::Display;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const AGAIN: Duration = Duration::from_mins(1);

/// So many different texts are told within a minute. Some name a row, and there are many rows.
const MOST: usize = 64;

/// What one function told lately.
#[derive(Debug)]
pub(super) struct Repeated(Mutex<Vec<Line>>);

#[derive(Debug)]
struct Line {
    text: String,
    told_at: Instant,
    kept_back: u64,
}

impl Repeated {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// `Some`: log it. The number says how many lines with this text were suppressed since the last one.
    pub(super) fn lets_through(&self, text: &dyn Display, now: Instant) -> Option<u64> {
        let text = text.to_string();
        let mut lines = self.0.lock();
        if let Some(line) = lines.iter_mut().find(|line| line.text == text) {
            if now < line.told_at + AGAIN {
                line.kept_back += 1;
                return None;
            }
            line.told_at = now;
            return Some(std::mem::take(&mut line.kept_back));
        }
        lines.retain(|line| now < line.told_at + AGAIN);
        if lines.len() == MOST {
            return None;
        }
        lines.push(Line { text, told_at: now, kept_back: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_told_once_a_minute_with_the_number_of_suppressed_lines_and_another_one_at_once() {
        let (repeated, begin) = (Repeated::new(), Instant::now());
        assert_eq!(repeated.lets_through(&"one", begin), Some(0));
        assert_eq!(repeated.lets_through(&"one", begin + Duration::from_secs(59)), None);
        assert_eq!(repeated.lets_through(&"other", begin + Duration::from_secs(59)), Some(0));
        assert_eq!(repeated.lets_through(&"one", begin + AGAIN), Some(1));
        assert_eq!(repeated.lets_through(&"one", begin + AGAIN * 2), Some(0));
    }

    #[test]
    fn ever_new_texts_fill_neither_the_log_nor_the_memory() {
        let (repeated, begin) = (Repeated::new(), Instant::now());
        let told = (0..1_000).filter_map(|number| repeated.lets_through(&number, begin)).count();
        assert_eq!(told, MOST);
        assert_eq!(repeated.lets_through(&"later", begin + AGAIN), Some(0));
        assert_eq!(repeated.0.lock().len(), 1);
    }
}
