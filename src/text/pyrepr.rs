//! Python's `repr(str)` and the list of strings that error texts show.

use std::fmt::Write;

use super::{in_ranges, unicode};

/// `text` as `repr(text)`: in `'`, or in `"` when it holds a `'` and no `"`; non-printables escaped.
///
/// ```
/// use feast_prefork::text::pyrepr::repr;
/// assert_eq!(repr("a\\b\n\u{a0}é"), r"'a\\b\n\xa0é'");
/// assert_eq!(repr("it's"), "\"it's\"");
/// assert_eq!(repr("it's \"x\""), "'it\\'s \"x\"'");
/// ```
pub fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        let code = c as u32;
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ if in_ranges(unicode::PRINTABLE, code) => out.push(c),
            _ => {
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
    out
}

/// A Python list of strings: `['a', 'b']`.
pub fn repr_list<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let shown: Vec<String> = items.into_iter().map(repr).collect();
    format!("[{}]", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_printables_take_the_shortest_escape() {
        assert_eq!(repr("\u{0}\u{7f}\u{200b}\u{e000}\u{f0000}"), r"'\x00\x7f\u200b\ue000\U000f0000'");
        assert_eq!(repr_list(["a", "it's"]), r#"['a', "it's"]"#);
    }
}
