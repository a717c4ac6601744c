//! Times for people: the date, and how far away it is.

use std::time::Duration;

use tokenkeeper::domain::clock::Timestamp;

/// `2020-01-01T01:05:00.000Z (in 4m 59s)`
pub(super) fn date_and_distance(at: Timestamp, now: Timestamp) -> String {
    format!("{at} ({})", distance(at, now))
}

/// `in 4m 59s`, `2d 3h ago`, `now`.
pub(super) fn distance(at: Timestamp, now: Timestamp) -> String {
    let (ahead, behind) = (at.since(now), now.since(at));
    match (coarse(ahead), coarse(behind)) {
        (Some(ahead), _) => format!("in {ahead}"),
        (None, Some(behind)) => format!("{behind} ago"),
        (None, None) => "now".to_owned(),
    }
}

/// The two largest units of a duration, or `None` below a second. Not by `humantime`: it writes 90 days as
/// `2months 29days 2h 52m 48s`.
fn coarse(duration: Duration) -> Option<String> {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let secs = duration.as_secs();
    let first = UNITS.iter().position(|(size, _)| secs >= *size)?;
    let (size, unit) = UNITS[first];
    let (whole, rest) = (secs / size, secs % size);
    Some(match UNITS.get(first + 1) {
        Some((size, smaller)) if rest >= *size => format!("{whole}{unit} {}{smaller}", rest / size),
        _ => format!("{whole}{unit}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_has_at_most_two_units() {
        let now = Timestamp::from_millis(1_577_840_700_000);
        for (secs, expected) in [
            (0, "now"),
            (59, "in 59s"),
            (299, "in 4m 59s"),
            (300, "in 5m"),
            (7_200, "in 2h"),
            (7_230, "in 2h"),
            (93_600, "in 1d 2h"),
            (-61, "1m 1s ago"),
            (-864_000, "10d ago"),
        ] {
            let at = Timestamp::from_millis(now.as_millis() + secs * 1_000);
            assert_eq!(distance(at, now), expected);
        }
        assert_eq!(date_and_distance(now, now), "2020-01-01T01:05:00.000Z (now)");
    }
}
