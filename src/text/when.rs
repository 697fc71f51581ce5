//! Times as people and programs write them: ISO 8601 and its relatives, and the loose forms (`March 1, 2025`)
//! that the reference's date parsers take.
//!
//! A text is read once into its parts; what remains unsaid is midnight, or today for the loose forms.

use super::time;

/// Nanoseconds of a second.
pub const SECOND: i128 = 1_000_000_000;

/// An instant read from a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    /// Nanoseconds since 1970-01-01T00:00:00Z; a text without a zone is taken for UTC.
    pub nanos: i128,
    /// Offset from UTC in seconds, when the text names one.
    pub offset: Option<i32>,
    /// The shape of the text in `strftime` notation; `None` for a loose form.
    pub format: Option<String>,
}

/// Why a text is no time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhenError {
    /// No known form.
    Unknown,
    /// The form is known, a part is out of its range: the reference's words.
    Range(String),
}

/// Reads any form; `today` (seconds since the epoch) fills in what a loose form leaves out.
pub fn parse(text: &str, today: i64) -> Result<When, WhenError> {
    let trimmed = text.trim();
    if let Some(found) = iso(trimmed) {
        return found;
    }
    if let Some(found) = slashes(trimmed) {
        return found;
    }
    loose(trimmed, today)
}

/// Days since 1970-01-01 of a date.
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn length_of(year: i64, month: i64) -> i64 {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The parts of a time; checked when they are put together.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    nanos: i64,
    offset: Option<i32>,
}

impl Parts {
    fn instant(self) -> Result<i128, WhenError> {
        let range = |text: &str| Err(WhenError::Range(text.to_owned()));
        if !(1..=9999).contains(&self.year) {
            return Err(WhenError::Range(format!("year {} is out of range", self.year)));
        }
        if !(1..=12).contains(&self.month) {
            return range("month must be in 1..12");
        }
        if !(1..=length_of(self.year, self.month)).contains(&self.day) {
            return range("day is out of range for month");
        }
        if self.hour > 23 {
            return range("hour must be in 0..23");
        }
        if self.minute > 59 {
            return range("minute must be in 0..59");
        }
        if self.second > 59 {
            return range("second must be in 0..59");
        }
        let seconds = days(self.year, self.month, self.day) * 86_400
            + self.hour * 3600
            + self.minute * 60
            + self.second
            - i64::from(self.offset.unwrap_or(0));
        Ok(i128::from(seconds) * SECOND + i128::from(self.nanos))
    }

    fn finish(self, format: Option<String>) -> Result<When, WhenError> {
        Ok(When { nanos: self.instant()?, offset: self.offset, format })
    }
}

/// A reader over ASCII text.
#[derive(Clone)]
struct Scan<'t> {
    rest: &'t str,
}

impl Scan<'_> {
    /// Between `least` and `most` digits.
    fn digits(&mut self, least: usize, most: usize) -> Option<(i64, usize)> {
        let count = self.rest.bytes().take(most).take_while(u8::is_ascii_digit).count();
        if count < least {
            return None;
        }
        let (number, rest) = self.rest.split_at(count);
        self.rest = rest;
        number.parse().ok().map(|number| (number, count))
    }

    fn take(&mut self, options: &[char]) -> Option<char> {
        let c = self.rest.chars().next().filter(|c| options.contains(c))?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// A fraction's digits as nanoseconds; finer ones are cut.
    fn fraction(&mut self) -> Option<i64> {
        let count = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at(count);
        self.rest = rest;
        (count > 0).then(|| format!("{digits:0<9}")[..9].parse().unwrap_or(0))
    }

    /// `Z`, `UTC`, `+02:00`, `+0200`, `+02`, or nothing.
    fn zone(&self) -> Result<Option<i32>, WhenError> {
        let text = self.rest.trim();
        if text.is_empty() {
            return Ok(None);
        }
        offset(text).map(Some).ok_or(WhenError::Unknown)
    }
}

/// The offset in seconds that a zone's text names.
fn offset(text: &str) -> Option<i32> {
    if ["Z", "z", "UTC", "GMT", "utc", "gmt"].contains(&text) {
        return Some(0);
    }
    let (sign, digits) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let digits = match digits.split_once(':') {
        Some((hours, minutes)) if hours.len() == 2 && minutes.len() == 2 => format!("{hours}{minutes}"),
        Some(_) => return None,
        None => digits.to_owned(),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) || ![2, 4].contains(&digits.len()) {
        return None;
    }
    let hours: i32 = digits[..2].parse().ok()?;
    let minutes: i32 = digits.get(2..).filter(|m| !m.is_empty()).map_or(Some(0), |m| m.parse().ok())?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Year first. `None`: another form.
fn iso(text: &str) -> Option<Result<When, WhenError>> {
    let mut scan = Scan { rest: text };
    let mut parts = Parts { month: 1, day: 1, ..Parts::default() };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let mut format = String::from("%Y");
    match digits {
        8 => {
            parts.year = scan.digits(4, 4)?.0;
            parts.month = scan.digits(2, 2)?.0;
            parts.day = scan.digits(2, 2)?.0;
            format.push_str("%m%d");
        }
        4 => {
            parts.year = scan.digits(4, 4)?.0;
            if let Some(separator) = scan.take(&['-', '/']) {
                parts.month = scan.digits(1, 2)?.0;
                format.push_str(&format!("{separator}%m"));
                if scan.take(&[separator]).is_some() {
                    parts.day = scan.digits(1, 2)?.0;
                    format.push_str(&format!("{separator}%d"));
                }
            }
        }
        // A lone number of another length is a year that no calendar has.
        _ if digits == text.len() && digits > 8 => {
            return Some(Err(WhenError::Range(format!("year {text} is out of range"))));
        }
        _ => return None,
    }
    if scan.rest.is_empty() {
        return Some(parts.finish(Some(format)));
    }
    let separator = scan.take(&['T', 't', ' '])?;
    format.push(separator);
    clock(&mut scan, &mut parts, &mut format)?;
    Some(parts.finish(Some(format)))
}

/// The time of day and the zone, to the end of the text.
fn clock(scan: &mut Scan<'_>, parts: &mut Parts, format: &mut String) -> Option<()> {
    let (hour, width) = scan.digits(1, 2)?;
    parts.hour = hour;
    format.push_str("%H");
    let colon = scan.take(&[':']).is_some();
    if colon || (width == 2 && scan.rest.starts_with(|c: char| c.is_ascii_digit())) {
        let mark = if colon { ":" } else { "" };
        parts.minute = scan.digits(1, 2)?.0;
        format.push_str(&format!("{mark}%M"));
        let more = if colon {
            scan.take(&[':']).is_some()
        } else {
            scan.rest.starts_with(|c: char| c.is_ascii_digit())
        };
        if more {
            parts.second = scan.digits(1, 2)?.0;
            format.push_str(&format!("{mark}%S"));
            if let Some(point) = scan.take(&['.', ',']) {
                parts.nanos = scan.fraction()?;
                format.push_str(&format!("{point}%f"));
            }
        }
    }
    let blank = scan.rest.starts_with(' ');
    parts.offset = scan.zone().ok()?;
    if parts.offset.is_some() {
        format.push_str(if blank { " %z" } else { "%z" });
    }
    Some(())
}

/// `03/01/2025`: the month first unless that cannot be.
fn slashes(text: &str) -> Option<Result<When, WhenError>> {
    let mut scan = Scan { rest: text };
    let first = scan.digits(1, 2)?.0;
    let separator = scan.take(&['/', '-', '.'])?;
    let second = scan.digits(1, 2)?.0;
    scan.take(&[separator])?;
    let year = scan.digits(4, 4)?.0;
    let day_first = first > 12;
    let (month, day) = if day_first { (second, first) } else { (first, second) };
    let mut parts = Parts { year, month, day, ..Parts::default() };
    let mut format = if day_first {
        format!("%d{separator}%m{separator}%Y")
    } else {
        format!("%m{separator}%d{separator}%Y")
    };
    if !scan.rest.is_empty() {
        format.push(scan.take(&['T', ' '])?);
        clock(&mut scan, &mut parts, &mut format)?;
    }
    Some(parts.finish(Some(format)))
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// The place of a name, or of its first three letters, in `names`.
fn named(word: &str, names: &[&str]) -> Option<usize> {
    let word = word.to_ascii_lowercase();
    names.iter().position(|name| *name == word || (word.len() == 3 && name.starts_with(&word)))
}

/// Words and numbers in any order; what is left out is that of `today`.
fn loose(text: &str, today: i64) -> Result<When, WhenError> {
    let now = time::civil(today);
    let mut parts =
        Parts { year: now.year, month: i64::from(now.month), day: i64::from(now.day), ..Parts::default() };
    let (mut month, mut day, mut year, mut clock_seen, mut weekday) = (None, None, None, false, None);
    let mut afternoon = None;
    let mut words = 0;
    for token in text.split([' ', ',', '\t']).filter(|token| !token.is_empty()) {
        words += 1;
        let lower = token.to_ascii_lowercase();
        let word = lower.trim_end_matches('.');
        if let Some(index) = named(word, &MONTHS) {
            month = Some(index as i64 + 1);
        } else if let Some(index) = named(word, &WEEKDAYS) {
            weekday = Some(index as i64);
        } else if word == "am" || word == "pm" {
            afternoon = Some(word == "pm");
        } else if token.contains(':') && token.starts_with(|c: char| c.is_ascii_digit()) {
            let mut scan = Scan { rest: token };
            clock(&mut scan, &mut parts, &mut String::new()).ok_or(WhenError::Unknown)?;
            clock_seen = true;
        } else if clock_seen && offset(token).is_some() {
            parts.offset = offset(token);
        } else if lower.bytes().all(|b| b.is_ascii_digit()) {
            let number: i64 = lower.parse().map_err(|_| WhenError::Unknown)?;
            match lower.len() {
                1 | 2 if day.is_none() => day = Some(number),
                4 if year.is_none() => year = Some(number),
                _ => return Err(WhenError::Unknown),
            }
        } else if let Some(number) = ordinal(word).filter(|_| day.is_none()) {
            day = Some(number);
        } else if clock_seen && token.len() >= 3 && token.bytes().all(|b| b.is_ascii_uppercase()) {
            // The name of a zone that is not known here, as in the reference, changes nothing.
        } else {
            return Err(WhenError::Unknown);
        }
    }
    let dated = month.is_some() || day.is_some() || year.is_some();
    if words == 0 || !(dated || clock_seen || weekday.is_some()) {
        return Err(WhenError::Unknown);
    }
    match afternoon {
        Some(true) if parts.hour < 12 => parts.hour += 12,
        Some(false) if parts.hour == 12 => parts.hour = 0,
        _ => {}
    }
    parts.month = month.unwrap_or(parts.month);
    parts.year = year.unwrap_or(parts.year);
    parts.day = day.unwrap_or_else(|| parts.day.min(length_of(parts.year, parts.month)));
    if let (Some(weekday), false) = (weekday, dated) {
        let day_number = days(parts.year, parts.month, parts.day);
        // 1970-01-01 was a Thursday.
        let ahead = (weekday - (day_number + 3)).rem_euclid(7);
        let at = time::civil((day_number + ahead) * 86_400);
        parts.year = at.year;
        parts.month = i64::from(at.month);
        parts.day = i64::from(at.day);
    }
    parts.finish(None)
}

fn ordinal(word: &str) -> Option<i64> {
    ["st", "nd", "rd", "th"].iter().find_map(|end| word.strip_suffix(end)?.parse().ok())
}

/// A time as Python prints a `datetime` with an offset: `2025-03-01 00:00:00+00:00`, microseconds if there are any.
pub fn python_text(nanos: i128, offset: i32) -> String {
    let local = nanos + i128::from(offset) * SECOND;
    let (seconds, rest) = (local.div_euclid(SECOND) as i64, local.rem_euclid(SECOND));
    let mut out = Vec::new();
    time::write_civil(&mut out, seconds);
    let mut text = String::from_utf8_lossy(&out).replace('T', " ");
    if rest >= 1000 {
        text.push_str(&format!(".{:06}", rest / 1000));
    }
    let sign = if offset < 0 { '-' } else { '+' };
    let minutes = offset.abs() / 60;
    text.push_str(&format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<String, WhenError> {
        parse(text, 1_740_823_200).map(|when| python_text(when.nanos, 0))
    }

    #[test]
    fn the_usual_forms() {
        for (text, shown) in [
            ("2025-03-01T10:00:00Z", "2025-03-01 10:00:00+00:00"),
            ("2025-03-01t10:00:00z", "2025-03-01 10:00:00+00:00"),
            ("2025-03-01 10:00:00-0530", "2025-03-01 15:30:00+00:00"),
            ("2025-03-01T10:00:00-08", "2025-03-01 18:00:00+00:00"),
            ("2025-03-01T10:00:00 UTC", "2025-03-01 10:00:00+00:00"),
            ("2025-03-01T10", "2025-03-01 10:00:00+00:00"),
            ("2025-03", "2025-03-01 00:00:00+00:00"),
            ("2025", "2025-01-01 00:00:00+00:00"),
            ("20250301T100000Z", "2025-03-01 10:00:00+00:00"),
            ("2025-3-1 1:2:3", "2025-03-01 01:02:03+00:00"),
            ("2025/03/01 10:00:00", "2025-03-01 10:00:00+00:00"),
            ("2025-03-01T10:00:00,5", "2025-03-01 10:00:00.500000+00:00"),
            (" 2025-03-01 ", "2025-03-01 00:00:00+00:00"),
            ("03/01/2025", "2025-03-01 00:00:00+00:00"),
            ("13/03/2025", "2025-03-13 00:00:00+00:00"),
            ("March 1, 2025", "2025-03-01 00:00:00+00:00"),
            ("Sat, 01 Mar 2025 10:00:00 GMT", "2025-03-01 10:00:00+00:00"),
            ("1 Mar 2025 10:00:00 PST", "2025-03-01 10:00:00+00:00"),
            ("12:00", "2025-03-01 12:00:00+00:00"),
            ("Sat", "2025-03-01 00:00:00+00:00"),
        ] {
            assert_eq!(at(text).as_deref(), Ok(shown), "{text}");
        }
    }

    #[test]
    fn what_is_no_time() {
        let range = |text: &str| Err(WhenError::Range(text.to_owned()));
        assert_eq!(at("2025-02-30"), range("day is out of range for month"));
        assert_eq!(at("2025-13-01"), range("month must be in 1..12"));
        assert_eq!(at("2025-03-01T24:00:00"), range("hour must be in 0..23"));
        assert_eq!(at("1740823200"), range("year 1740823200 is out of range"));
        for text in ["garbage", "", "2025-060", "2025-W09-6", "null", "2025-03-01T10:00:00 America/New_York"]
        {
            assert_eq!(at(text), Err(WhenError::Unknown), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn dates_and_days_agree(day in -700_000_i64..2_900_000) {
            let at = time::civil(day * 86_400);
            proptest::prop_assert_eq!(days(at.year, i64::from(at.month), i64::from(at.day)), day);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text, 0);
        }
    }
}
