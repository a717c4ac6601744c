//! Numbers: what is typical of several rounds, and how a number is written.

/// The middle one; between two, the mean of both. None of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "nothing here counts up to 2^53")]
pub(crate) const fn float(count: u64) -> f64 {
    count as f64
}

/// With blanks between thousands: `12 345`.
pub(crate) fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as milliseconds, with as many decimals as tell something.
pub(crate) fn milliseconds(us: f64) -> String {
    let ms = us / 1000.0;
    match ms {
        0.0..10.0 => format!("{ms:.2}"),
        10.0..100.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            ["7", "999", "1 000", "1 234 567"],
            [7.0, 999.0, 1e3, 1_234_567.0].map(whole).each_ref().map(String::as_str)
        );
    }
}
