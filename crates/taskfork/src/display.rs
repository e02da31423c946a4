//! How times stand in messages.

use std::time::Duration;

/// `30 seconds`, `1 second`, `0.25 seconds`: at most three decimals, no more than are needed.
pub(crate) fn seconds(time: Duration) -> String {
    let rounded = format!("{:.3}", time.as_secs_f64());
    let number = rounded.trim_end_matches('0').trim_end_matches('.');
    let unit = if number == "1" { "second" } else { "seconds" };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_stand_only_where_they_say_something() {
        assert_eq!(seconds(Duration::from_secs(30)), "30 seconds");
        assert_eq!(seconds(Duration::from_secs(1)), "1 second");
        assert_eq!(seconds(Duration::from_millis(250)), "0.25 seconds");
        assert_eq!(seconds(Duration::ZERO), "0 seconds");
    }
}
