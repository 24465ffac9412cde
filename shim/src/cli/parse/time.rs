//! Times: durations (`90s`, `1h30m`), moments (RFC 3339).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `10` (seconds), `10s`, `1.5m`, `1h30m`, `2d`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write it like 90s, 10m, 1h30m or 2d");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, tail) = tail.split_at(tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len()));
        let factor = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A moment, or a duration before now; nanoseconds since 1970.
pub fn since(text: &str) -> Result<i64, String> {
    if let Some(at) = rfc3339(text) {
        return Ok(at);
    }
    let ago =
        duration(text).map_err(|_| format!("{text:?} is no time: write it like 10m, 2h, or 2026-01-31T12:00:00Z"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(now.saturating_sub(ago).as_nanos()).unwrap_or(i64::MAX))
}

/// Nanoseconds since 1970 of an RFC 3339 time; a date alone is its beginning in UTC.
pub fn rfc3339(text: &str) -> Option<i64> {
    let date = text.get(..10)?;
    let (year, month, day) = (number(date, 0..4)?, number(date, 5..7)?, number(date, 8..10)?);
    if date.as_bytes()[4] != b'-'
        || date.as_bytes()[7] != b'-'
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
    {
        return None;
    }
    let (clock, zone) = match &text[10..] {
        "" => ("00:00:00", "Z"),
        rest => {
            let rest = rest.strip_prefix(['T', 't', ' '])?;
            rest.split_at(rest.find(['Z', 'z', '+', '-'])?)
        }
    };
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let (hour, minute, second) = (number(whole, 0..2)?, number(whole, 3..5)?, number(whole, 6..8)?);
    if whole.len() != 8
        || whole.as_bytes()[2] != b':'
        || whole.as_bytes()[5] != b':'
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset(zone)?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds(fraction)?)
}

/// An RFC 3339 time in UTC, to the second; `-` for zero.
pub fn show(nanoseconds: i64) -> String {
    if nanoseconds <= 0 {
        return "-".to_owned();
    }
    let seconds = nanoseconds / 1_000_000_000;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn number(text: &str, range: std::ops::Range<usize>) -> Option<i64> {
    let digits = text.get(range)?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

fn nanoseconds(fraction: &str) -> Option<i64> {
    if fraction.is_empty() {
        return Some(0);
    }
    let digits = &fraction.get(..fraction.len().min(9))?;
    let all_digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let value: i64 = digits.parse().ok()?;
    all_digits.then(|| value * 10_i64.pow(9 - digits.len() as u32))
}

fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (hours, minutes) = (number(zone, 1..3)?, number(zone, 4..6)?);
    let whole = zone.len() == 6 && zone.as_bytes()[3] == b':' && hours < 24 && minutes < 60;
    let seconds = hours * 3600 + minutes * 60;
    whole.then_some(if zone.starts_with('-') { -seconds } else { seconds })
}

/// Days from 1970-01-01 to a date of the Gregorian calendar: eras of 400 years, years that begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The way back.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        let seconds = |text| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("10"), Ok(10.0));
        assert_eq!(seconds("0"), Ok(0.0));
        assert_eq!(seconds("90s"), Ok(90.0));
        assert_eq!(seconds("1h30m"), Ok(5400.0));
        assert_eq!(seconds("1.5m"), Ok(90.0));
        assert_eq!(seconds("2d"), Ok(172_800.0));
        assert_eq!(seconds("500ms"), Ok(0.5));
        for text in ["", "s", "-1s", "1x", "1.2.3s", "1e99d", "10 s", "m5"] {
            assert!(duration(text).unwrap_err().contains("is no time"), "{text}");
        }
    }

    #[test]
    fn moments() {
        assert_eq!(rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(rfc3339("2000-02-29T12:00:00.5+02:00"), Some(951_818_400_500_000_000));
        assert_eq!(rfc3339("2000-02-29T12:00:00.5-00:30"), Some(951_827_400_500_000_000));
        assert_eq!(rfc3339("2026-01-31"), rfc3339("2026-01-31T00:00:00Z"));
        assert_eq!(rfc3339("2026-01-31T12:00:00.123456789Z").map(|at| at % 1_000_000_000), Some(123_456_789));
        for text in [
            "",
            "10m",
            "2026-13-01",
            "2026-01-31T25:00:00Z",
            "2026-01-31T12:00:00",
            "2026-01-31T1:00:00Z",
            "2026-01-31T12:00:00+2:00",
        ] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
        assert_eq!(show(951_818_400_500_000_000), "2000-02-29T10:00:00Z");
        assert_eq!(show(0), "-");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in 1_i64..200_000_000_000) {
            let text = show(seconds.min(9_000_000_000) * 1_000_000_000);
            prop_assert_eq!(rfc3339(&text), Some(seconds.min(9_000_000_000) * 1_000_000_000));
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,40}") {
            let _ = (rfc3339(&text), duration(&text), since(&text));
        }
    }
}
