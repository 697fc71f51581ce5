//! Zones of zoned timestamps, and the time zone of the process.

use jiff::tz::{Offset, TimeZone};
use jiff::Timestamp;

use crate::text::time;

/// The zone a stored zone text means: an IANA name, `UTC`, `GMT`, or a fixed offset `[UTC|GMT]±HH[:]MM`.
/// `None` for a text that is none of these; the reference then uses UTC.
pub fn find(text: &str) -> Option<TimeZone> {
    if text.is_empty() {
        return Some(TimeZone::UTC);
    }
    if let Ok(zone) = TimeZone::get(text) {
        // The reference's database is case-sensitive, this one is not.
        if zone.iana_name() == Some(text) {
            return Some(zone);
        }
    }
    let bare = text.strip_prefix("UTC").or_else(|| text.strip_prefix("GMT"));
    match bare {
        Some("") => Some(TimeZone::UTC),
        _ => fixed_offset(bare.unwrap_or(text)),
    }
}

fn fixed_offset(text: &str) -> Option<TimeZone> {
    let (negative, digits) = match text.as_bytes() {
        [b'+', digits @ ..] => (false, digits),
        [b'-', digits @ ..] => (true, digits),
        _ => return None,
    };
    let ([h1, h2, b':', m1, m2] | [h1, h2, m1, m2]) = *digits else { return None };
    if ![h1, h2, m1, m2].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |tens: u8, ones: u8| i32::from(tens - b'0') * 10 + i32::from(ones - b'0');
    let seconds = number(h1, h2) * 3600 + number(m1, m2) * 60;
    // Python's timezone() takes offsets strictly below one day.
    if seconds >= 86_400 {
        return None;
    }
    Offset::from_seconds(if negative { -seconds } else { seconds }).ok().map(TimeZone::fixed)
}

/// Appends `seconds` as ISO 8601 in the zone called `text`, always with its offset; false when the year is
/// outside what Python can hold.
#[must_use]
pub fn write_zoned(out: &mut Vec<u8>, seconds: i64, text: &str) -> bool {
    let zone = find(text).unwrap_or(TimeZone::UTC);
    let Some(offset) = offset_at(&zone, seconds) else { return false };
    let local = seconds + i64::from(offset);
    if !time::PYTHON_RANGE.contains(&local) {
        return false;
    }
    time::write_civil(out, local);
    let size = offset.abs();
    out.push(if offset < 0 { b'-' } else { b'+' });
    let shown = if size % 60 == 0 {
        format!("{:02}:{:02}", size / 3600, size / 60 % 60)
    } else {
        format!("{:02}:{:02}:{:02}", size / 3600, size / 60 % 60, size % 60)
    };
    out.extend_from_slice(shown.as_bytes());
    true
}

fn offset_at(zone: &TimeZone, seconds: i64) -> Option<i32> {
    Some(zone.to_offset(Timestamp::from_second(seconds).ok()?).seconds())
}

/// The time zone this process runs in, for stores that keep local times.
#[derive(Debug, Clone)]
pub enum LocalZone {
    /// Local time is UTC.
    Utc,
    /// Any other zone.
    Other(Box<TimeZone>),
}

impl LocalZone {
    /// The zone of `TZ` or of the system.
    pub fn of_process() -> Self {
        let zone = TimeZone::system();
        if zone == TimeZone::UTC || matches!(zone.iana_name(), Some("UTC" | "Etc/UTC" | "Etc/UCT" | "Zulu")) {
            Self::Utc
        } else {
            Self::Other(Box::new(zone))
        }
    }

    /// The instant at which the wall clock shows `local` (the inverse of [`wall_clock`](Self::wall_clock);
    /// around a change of the clocks one of two answers, or the nearest).
    pub fn instant_of(&self, local: i64) -> i64 {
        let offset = |at| match self {
            Self::Utc => 0,
            Self::Other(zone) => offset_at(zone, at).map_or(0, i64::from),
        };
        local - offset(local - offset(local))
    }

    /// The wall clock at `seconds`, as seconds since 1970-01-01T00:00:00 on that clock; `None` outside the
    /// years 1 to 9999.
    pub fn wall_clock(&self, seconds: i64) -> Option<i64> {
        let local = match self {
            Self::Utc => seconds,
            Self::Other(zone) => seconds.checked_add(i64::from(offset_at(zone, seconds)?))?,
        };
        time::PYTHON_RANGE.contains(&local).then_some(local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(seconds: i64, zone: &str) -> String {
        let mut out = Vec::new();
        assert!(write_zoned(&mut out, seconds, zone));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn zones_are_names_offsets_or_utc() {
        assert_eq!(shown(1_704_110_400, ""), "2024-01-01T12:00:00+00:00");
        assert_eq!(shown(1_704_110_400, "America/Los_Angeles"), "2024-01-01T04:00:00-08:00");
        assert_eq!(shown(1_704_110_400, "-07:00"), "2024-01-01T05:00:00-07:00");
        assert_eq!(shown(1_704_110_400, "UTC+0530"), "2024-01-01T17:30:00+05:30");
        assert_eq!(shown(1_704_110_400, "Mars/Base"), "2024-01-01T12:00:00+00:00");
        assert_eq!(shown(1_704_110_400, "Z"), "2024-01-01T12:00:00+00:00");
        assert_eq!(shown(-4_000_000_000, "Europe/Zurich"), "1843-03-31T17:27:28+00:34:08");
    }
}
