//! Timestamps as text: the proleptic Gregorian calendar without any time zone. And spans of time for people.

/// Seconds per day.
const DAY: i64 = 86_400;

/// A calendar date and a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// Astronomical year (0 is 1 BC).
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// Seconds since midnight.
    pub second_of_day: u32,
}

/// Splits seconds since 1970-01-01T00:00:00 into calendar fields.
pub fn civil(seconds: i64) -> Civil {
    let (days, second_of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Days are counted from 0000-03-01, so that the leap day is the last day of a year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    Civil {
        year: year_of_era + era * 400 + i64::from(month <= 2),
        month: month as u8,
        day: day as u8,
        second_of_day: second_of_day as u32,
    }
}

/// The first and last second that Python's `datetime` can hold (years 1 to 9999).
pub const PYTHON_RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Appends `YYYY-MM-DDTHH:MM:SS`.
pub fn write_civil(out: &mut Vec<u8>, seconds: i64) {
    let at = civil(seconds);
    if !(0..=9999).contains(&at.year) {
        out.extend_from_slice(format!("{:05}", at.year).as_bytes());
    } else {
        two(out, at.year / 100);
        two(out, at.year % 100);
    }
    out.push(b'-');
    two(out, i64::from(at.month));
    out.push(b'-');
    two(out, i64::from(at.day));
    out.push(b'T');
    let second = i64::from(at.second_of_day);
    two(out, second / 3600);
    out.push(b':');
    two(out, second / 60 % 60);
    out.push(b':');
    two(out, second % 60);
}

/// Appends `YYYY-MM-DDTHH:MM:SS[.fff[fff[fff]]]Z`: the fraction has the fewest of 0, 3, 6 or 9 digits that
/// hold `nanos` (protobuf's JSON form of a Timestamp).
pub fn write_rfc3339(out: &mut Vec<u8>, seconds: i64, nanos: u32) {
    write_civil(out, seconds);
    if nanos != 0 {
        let text = format!(".{nanos:09}");
        let keep = if nanos.is_multiple_of(1_000_000) {
            4
        } else if nanos.is_multiple_of(1_000) {
            7
        } else {
            10
        };
        out.extend_from_slice(&text.as_bytes()[..keep]);
    }
    out.push(b'Z');
}

fn two(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&[b'0' + (value / 10) as u8, b'0' + (value % 10) as u8]);
}

/// A span of time in its largest unit, e.g. `95s`, `3h`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seconds: i64, nanos: u32) -> String {
        let mut out = Vec::new();
        write_rfc3339(&mut out, seconds, nanos);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fractions_are_as_short_as_they_can_be() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_704_110_400, 120_000_000), "2024-01-01T12:00:00.120Z");
        assert_eq!(text(1_704_110_400, 123_456_000), "2024-01-01T12:00:00.123456Z");
        assert_eq!(text(1_704_110_400, 1), "2024-01-01T12:00:00.000000001Z");
        assert_eq!(text(-2, 0), "1969-12-31T23:59:58Z");
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_calendar_library(seconds in PYTHON_RANGE) {
            let at = jiff::Timestamp::from_second(seconds.min(253_402_200_000)).unwrap();
            proptest::prop_assert_eq!(text(at.as_second(), 0), at.to_string());
        }
    }
}
