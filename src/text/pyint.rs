//! Python's `int(text)`.

use super::{in_ranges, pyrepr, unicode};

/// Why a text is no integer, in the words of the reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntError(pub String);

/// The longest run of digits CPython converts.
pub const MAX_DIGITS: usize = 4300;

/// Reads `text` as `int(text)` does: surrounding white space, a sign, any Unicode decimal digits with
/// single underscores between them. The result is the ASCII digits with a leading `-` when negative and no
/// leading zeros, because the number may be larger than any machine integer.
pub fn parse(text: &str) -> Result<String, IntError> {
    let trimmed = text.trim_matches(is_blank);
    let (negative, digits) = match trimmed.as_bytes().first() {
        Some(b'-') => (true, &trimmed[1..]),
        Some(b'+') => (false, &trimmed[1..]),
        _ => (false, trimmed),
    };
    let mut number = String::with_capacity(digits.len() + 1);
    let mut after_digit = false;
    for c in digits.chars() {
        match decimal(c) {
            Some(digit) => {
                number.push(char::from(b'0' + digit));
                after_digit = true;
            }
            None if c == '_' && after_digit => after_digit = false,
            None => return Err(invalid(text)),
        }
    }
    if !after_digit {
        return Err(invalid(text));
    }
    if number.len() > MAX_DIGITS {
        return Err(IntError(format!(
            "Exceeds the limit ({MAX_DIGITS} digits) for integer string conversion: value has {} digits; \
             use sys.set_int_max_str_digits() to increase the limit",
            number.len()
        )));
    }
    let significant = number.trim_start_matches('0');
    Ok(match (significant, negative) {
        ("", _) => "0".to_owned(),
        (digits, true) => format!("-{digits}"),
        (digits, false) => digits.to_owned(),
    })
}

/// As [`parse`] for a number that must fit 64 bits: `Ok(Err(digits))` when it does not.
pub fn parse_i64(text: &str) -> Result<Result<i64, String>, IntError> {
    // Plain short decimals need no copy; everything else takes the exact way.
    let plain = text.strip_prefix('-').unwrap_or(text);
    if (1..=18).contains(&plain.len()) && plain.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(text.parse().map_err(|_| text.to_owned()));
    }
    parse(text).map(|digits| digits.parse().map_err(|_| digits))
}

/// White space to `int()`: that of ASCII without the separators 0x1c to 0x1f, and beyond ASCII that of Unicode.
fn is_blank(c: char) -> bool {
    if c.is_ascii() {
        matches!(c, ' ' | '\t'..='\r')
    } else {
        in_ranges(unicode::SPACE, c as u32)
    }
}

fn invalid(text: &str) -> IntError {
    let mut shown = pyrepr::repr(text);
    if let Some((cut, _)) = shown.char_indices().nth(200) {
        shown.truncate(cut);
    }
    IntError(format!("invalid literal for int() with base 10: {shown}"))
}

fn decimal(c: char) -> Option<u8> {
    if c.is_ascii() {
        return c.is_ascii_digit().then(|| c as u8 - b'0');
    }
    let code = c as u32;
    let before = unicode::DECIMAL_ZEROS.partition_point(|&zero| zero <= code);
    let zero = *unicode::DECIMAL_ZEROS.get(before.checked_sub(1)?)?;
    (code - zero < 10).then_some((code - zero) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_python_accepts() {
        for (text, value) in [
            ("1001", 1001),
            (" 1002 ", 1002),
            ("1_001", 1001),
            ("+1001", 1001),
            ("-7", -7),
            ("00", 0),
            ("-0", 0),
            ("\u{ff11}\u{ff10}\u{ff10}\u{ff11}", 1001),
            ("\u{a0}1002\u{2003}", 1002),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_i64(text), Ok(Ok(value)), "{text:?}");
        }
        assert_eq!(parse_i64("9223372036854775808"), Ok(Err("9223372036854775808".to_owned())));
    }

    #[test]
    fn refuses_what_python_refuses() {
        for text in ["", " ", "abc", "1__0", "_1", "1_", "1.0", "- 1", "0x10", "+-1", "1 2"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        let IntError(message) = parse("it's").unwrap_err();
        assert_eq!(message, "invalid literal for int() with base 10: \"it's\"");
        let IntError(message) = parse(&"1".repeat(4301)).unwrap_err();
        assert!(message.contains("value has 4301 digits"));
    }
}
