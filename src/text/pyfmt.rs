//! Python's `repr(float)`: shortest digits that round-trip, fixed notation for exponents -4 to 15.

/// Appends `value` as Python prints it. Not-a-number and infinities come out as `nan`, `inf`, `-inf`.
///
/// ```
/// let mut out = Vec::new();
/// for value in [1.0, 1e16, 0.00001, -0.0, 1.5e-7] {
///     feast_prefork::text::pyfmt::write_f64(&mut out, value);
///     out.push(b' ');
/// }
/// assert_eq!(out, b"1.0 1e+16 1e-05 -0.0 1.5e-07 ");
/// ```
pub fn write_f64(out: &mut Vec<u8>, value: f64) {
    if !value.is_finite() {
        let text: &[u8] = if value.is_nan() {
            b"nan"
        } else if value > 0.0 {
            b"inf"
        } else {
            b"-inf"
        };
        return out.extend_from_slice(text);
    }
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(value).as_bytes();
    // Fixed notation agrees with Python's from 1e-4 to below 1e16; zero has no exponent at all.
    let size = value.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        return out.extend_from_slice(text);
    }
    write_scientific(out, text);
}

/// Rewrites any decimal notation as `d[.ddd]e<sign><at least two digits>`.
fn write_scientific(out: &mut Vec<u8>, text: &[u8]) {
    let (mantissa, exponent) = match text.iter().position(|&b| b == b'e' || b == b'E') {
        Some(at) => (&text[..at], parse_exponent(&text[at + 1..])),
        None => (text, 0),
    };
    let (sign, mantissa) = match mantissa.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, mantissa),
    };
    let point = mantissa.iter().position(|&b| b == b'.').unwrap_or(mantissa.len());
    let mut digits = [0; 32];
    let mut count = 0;
    let mut first = None;
    for (at, &byte) in mantissa.iter().filter(|&&b| b != b'.').enumerate() {
        if first.is_none() && byte == b'0' {
            continue;
        }
        first.get_or_insert(at);
        digits[count] = byte;
        count += 1;
    }
    while count > 1 && digits[count - 1] == b'0' {
        count -= 1;
    }
    let exponent = exponent + point as i32 - 1 - first.unwrap_or(0) as i32;
    if sign {
        out.push(b'-');
    }
    out.push(digits[0]);
    if count > 1 {
        out.push(b'.');
        out.extend_from_slice(&digits[1..count]);
    }
    out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
    if exponent.abs() < 10 {
        out.push(b'0');
    }
    out.extend_from_slice(itoa::Buffer::new().format(exponent.abs()).as_bytes());
}

fn parse_exponent(text: &[u8]) -> i32 {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let size = digits.iter().fold(0, |sum, &digit| sum * 10 + i32::from(digit - b'0'));
    if negative {
        -size
    } else {
        size
    }
}

/// Appends `value` as a JSON value: a number, or one of the strings `"NaN"`, `"Infinity"`, `"-Infinity"`.
pub fn write_json_f64(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        write_f64(out, value);
    } else if value.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else if value > 0.0 {
        out.extend_from_slice(b"\"Infinity\"");
    } else {
        out.extend_from_slice(b"\"-Infinity\"");
    }
}

/// Appends an integer.
pub fn write_i64(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: f64) -> String {
        let mut out = Vec::new();
        write_f64(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn equals_the_recorded_python_texts() {
        for (value, expected) in [
            (100_000.0, "100000.0"),
            (0.0001, "0.0001"),
            (0.000_123_45, "0.00012345"),
            (0.000_099, "9.9e-05"),
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.5e16, "1.5e+16"),
            (1.234_567_890_123_456_8e17, "1.2345678901234568e+17"),
            (1e22, "1e+22"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (1e-7, "1e-07"),
            (-1.5e-10, "-1.5e-10"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::from(0.1_f32), "0.10000000149011612"),
            (f64::from(4.7_f32), "4.699999809265137"),
            (0.0, "0.0"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(text(value), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn reads_back_as_the_same_double(bits: u64) {
            let value = f64::from_bits(bits);
            proptest::prop_assume!(value.is_finite());
            proptest::prop_assert_eq!(text(value).parse::<f64>().unwrap().to_bits(), bits);
        }
    }
}
