//! Wall-clock time as RFC 3339 with nanoseconds, in UTC: what begins each line of a CRI log.

use std::time::{SystemTime, UNIX_EPOCH};

/// Length of a stamp: `2026-11-24T08:15:30.000000001Z`.
pub(crate) const LEN: usize = 30;

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Formats `nanos` since 1970; times before that count as 1970.
pub(crate) fn format(nanos: i64) -> [u8; LEN] {
    let nanos = nanos.max(0).cast_unsigned();
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (year, month, day) = date(seconds / 86_400);
    let second = seconds % 86_400;
    let mut out = *b"0000-00-00T00:00:00.000000000Z";
    let fields = [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
    ];
    for (at, width, value) in fields.into_iter().chain([(20, 9, fraction)]) {
        let mut value = value;
        for digit in out[at..at + width].iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
    out
}

/// Days since 1970 to year, month and day: counted in eras of 400 years that begin on 1 March, so that leap days come last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (-5, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_078_099_199_999_999_999, "2004-02-29T23:59:59.999999999Z"),
            (1_767_225_600_123_456_789, "2026-01-01T00:00:00.123456789Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&format(nanos)).unwrap(), text);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = date(0);
        for days in 1..80_000 {
            let (y, m, d) = date(days);
            let next_day = (y, m, d) == (last.0, last.1, last.2 + 1);
            let next_month = (y, m, d) == (last.0, last.1 + 1, 1) || (y, m, d) == (last.0 + 1, 1, 1) && last.1 == 12;
            assert!(next_day || next_month && last.2 >= 28, "{last:?} -> {:?}", (y, m, d));
            last = (y, m, d);
        }
    }
}
