//! JSON strings as the reference writes them: UTF-8 outside, or all-ASCII for the inner error documents.

/// What a byte needs inside a JSON string: 0 = goes out as it is, `u` = `\u00xx`, else the letter after `\`.
const ESCAPE: [u8; 256] = {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 0x20 {
        table[code] = b'u';
        code += 1;
    }
    table[b'\n' as usize] = b'n';
    table[b'\r' as usize] = b'r';
    table[b'\t' as usize] = b't';
    table[0x08] = b'b';
    table[0x0c] = b'f';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends `text` as a JSON string with its quotes; only `"`, `\` and code points below 0x20 are escaped.
///
/// ```
/// let mut out = Vec::new();
/// feast_prefork::text::json::write_str(&mut out, "a\"é\n\u{1}");
/// assert_eq!(out, "\"a\\\"é\\n\\u0001\"".as_bytes());
/// ```
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    write_bytes(out, text.as_bytes());
}

/// As [`write_str`] for bytes that are known to be UTF-8.
pub fn write_bytes(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut clean_from = 0;
    for (at, &byte) in text.iter().enumerate() {
        let escape = ESCAPE[byte as usize];
        if escape != 0 {
            out.extend_from_slice(&text[clean_from..at]);
            clean_from = at + 1;
            if escape == b'u' {
                let (high, low) = (HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            } else {
                out.extend_from_slice(&[b'\\', escape]);
            }
        }
    }
    out.extend_from_slice(&text[clean_from..]);
    out.push(b'"');
}

/// Appends `text` as a JSON string in ASCII: everything else becomes `\uXXXX`, with surrogate pairs.
pub fn write_str_ascii(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            ' '..='~' if c != '"' && c != '\\' => out.push(c as u8),
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => {
                out.extend_from_slice(&[b'\\', ESCAPE[c as usize]]);
            }
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write_unit(out, *unit);
                }
            }
        }
    }
    out.push(b'"');
}

fn write_unit(out: &mut Vec<u8>, unit: u16) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(HEX[usize::from(unit >> shift) & 15]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_form_escapes_everything_else() {
        let mut out = Vec::new();
        write_str_ascii(&mut out, "né\u{1F600}\"\\\n\u{7f}");
        assert_eq!(String::from_utf8(out).unwrap(), r#""n\u00e9\ud83d\ude00\"\\\n\u007f""#);
    }

    #[test]
    fn utf8_form_leaves_delete_slash_and_line_separator_alone() {
        let mut out = Vec::new();
        write_str(&mut out, "\u{7f}/\u{2028}\u{8}\u{c}\u{1f}");
        assert_eq!(String::from_utf8(out).unwrap(), "\"\u{7f}/\u{2028}\\b\\f\\u001f\"");
    }
}
