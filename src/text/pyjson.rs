//! JSON exactly as CPython 3.11's `json.loads` reads it: its grammar (`NaN`, `Infinity`, repeated keys, big
//! integers, UTF-16), its error texts and its error positions, which count code points.
//!
//! This reader is the slow one. It runs only on bodies that the fast reader refused.

use std::borrow::Cow;

use super::pyint::MAX_DIGITS;
use super::{json, pyfmt};

/// Deepest nesting that is followed. The reference gives up somewhere between 900 and 990 levels,
/// depending on its own call stack.
pub const MAX_DEPTH: usize = 940;

/// A JSON value. Texts borrow from the body where they can.
#[derive(Debug, Clone, PartialEq)]
pub enum Json<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// Any other integer, as its digits with an optional `-`.
    Big(String),
    /// A number with fraction or exponent, or one of `NaN`, `Infinity`, `-Infinity`.
    Float(f64),
    /// A string.
    Str(Cow<'a, str>),
    /// A list.
    List(Vec<Json<'a>>),
    /// An object; keys are unique, a repeated key keeps its first place and takes its last value.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

impl Json<'_> {
    /// The member called `key`, if this is an object that has one.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Json::Object(members) = self else { return None };
        members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The Python type a value has after `json.loads`.
    pub fn python_type(&self) -> &'static str {
        match self {
            Json::Null => "NoneType",
            Json::Bool(_) => "bool",
            Json::Int(_) | Json::Big(_) => "int",
            Json::Float(_) => "float",
            Json::Str(_) => "str",
            Json::List(_) => "list",
            Json::Object(_) => "dict",
        }
    }

    /// Appends the value as the reference writes it again; false when it holds a number that JSON cannot
    /// express, which fails the whole answer there.
    #[must_use]
    pub fn write(&self, out: &mut Vec<u8>) -> bool {
        match self {
            Json::Null => out.extend_from_slice(b"null"),
            Json::Bool(true) => out.extend_from_slice(b"true"),
            Json::Bool(false) => out.extend_from_slice(b"false"),
            Json::Int(value) => pyfmt::write_i64(out, *value),
            Json::Big(digits) => out.extend_from_slice(digits.as_bytes()),
            Json::Float(value) => {
                if !value.is_finite() {
                    return false;
                }
                pyfmt::write_f64(out, *value);
            }
            Json::Str(text) => json::write_str(out, text),
            Json::List(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    if !item.write(out) {
                        return false;
                    }
                }
                out.push(b']');
            }
            Json::Object(members) => {
                out.push(b'{');
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    json::write_str(out, key);
                    out.push(b':');
                    if !value.write(out) {
                        return false;
                    }
                }
                out.push(b'}');
            }
        }
        true
    }
}

/// Why a body is no JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonError {
    /// A syntax error: its text and the code point it was met at.
    Syntax(&'static str, usize),
    /// Not decodable, nested too deep, or an integer of more than 4300 digits.
    Unreadable,
}

/// A parsed body.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The value. Lone surrogates in strings are replaced by U+FFFD.
    pub value: Json<'static>,
    /// The first lone surrogate and its place in the string that holds it: such a string is accepted here
    /// and fails as soon as the reference encodes it.
    pub lone_surrogate: Option<(u16, usize)>,
}

/// Parses a whole body.
pub fn parse(body: &[u8]) -> Result<Parsed, JsonError> {
    let text = decode(body).ok_or(JsonError::Unreadable)?;
    let mut scanner = Scanner { text: &text, lone: None };
    let start = scanner.skip_space(0);
    let (value, end) = scanner.value(start, 0)?;
    let end = scanner.skip_space(end);
    if end != text.len() {
        return Err(JsonError::Syntax("Extra data", end));
    }
    Ok(Parsed { value, lone_surrogate: scanner.lone })
}

/// Decodes by the byte order mark or the pattern of zero bytes. Surrogates pass.
fn decode(body: &[u8]) -> Option<Vec<u32>> {
    let two = |order: fn([u8; 2]) -> u16, bytes: &[u8]| utf16(bytes, order);
    let four = |order: fn([u8; 4]) -> u32, bytes: &[u8]| utf32(bytes, order);
    match body {
        [0, 0, 0xfe, 0xff, rest @ ..] => four(u32::from_be_bytes, rest),
        [0xff, 0xfe, 0, 0, rest @ ..] => four(u32::from_le_bytes, rest),
        [0xfe, 0xff, rest @ ..] => two(u16::from_be_bytes, rest),
        [0xff, 0xfe, rest @ ..] => two(u16::from_le_bytes, rest),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        [0, second, ..] if body.len() >= 4 && *second != 0 => two(u16::from_be_bytes, body),
        [0, 0, ..] if body.len() >= 4 => four(u32::from_be_bytes, body),
        [_, 0, third, fourth, ..] if *third != 0 || *fourth != 0 => two(u16::from_le_bytes, body),
        [_, 0, _, _, ..] => four(u32::from_le_bytes, body),
        [0, _] => two(u16::from_be_bytes, body),
        [_, 0] => two(u16::from_le_bytes, body),
        _ => utf8(body),
    }
}

fn utf8(mut bytes: &[u8]) -> Option<Vec<u32>> {
    let mut out = Vec::with_capacity(bytes.len());
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.extend(text.chars().map(u32::from));
                return Some(out);
            }
            Err(error) => {
                let (good, bad) = bytes.split_at(error.valid_up_to());
                out.extend(std::str::from_utf8(good).ok()?.chars().map(u32::from));
                let [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, rest @ ..] = bad else {
                    return None;
                };
                out.push(0xd000 | u32::from(second & 0x3f) << 6 | u32::from(third & 0x3f));
                bytes = rest;
            }
        }
    }
}

fn utf16(bytes: &[u8], order: fn([u8; 2]) -> u16) -> Option<Vec<u32>> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let units = pairs.iter().map(|pair| order(*pair));
    rest.is_empty().then(|| {
        char::decode_utf16(units)
            .map(|c| c.map_or_else(|lone| u32::from(lone.unpaired_surrogate()), u32::from))
            .collect()
    })
}

fn utf32(bytes: &[u8], order: fn([u8; 4]) -> u32) -> Option<Vec<u32>> {
    let (quads, rest) = bytes.as_chunks::<4>();
    let codes: Vec<u32> = quads.iter().map(|quad| order(*quad)).collect();
    (rest.is_empty() && codes.iter().all(|&code| code < 0x11_0000)).then_some(codes)
}

struct Scanner<'t> {
    text: &'t [u32],
    lone: Option<(u16, usize)>,
}

const EXPECTING_VALUE: &str = "Expecting value";
const BAD_UNICODE_ESCAPE: &str = "Invalid \\uXXXX escape";

impl Scanner<'_> {
    fn at(&self, index: usize) -> Option<char> {
        // Surrogates are nobody's delimiter; any stand-in will do.
        self.text.get(index).map(|&code| char::from_u32(code).unwrap_or('\u{fffd}'))
    }

    fn skip_space(&self, mut index: usize) -> usize {
        while matches!(self.at(index), Some(' ' | '\t' | '\n' | '\r')) {
            index += 1;
        }
        index
    }

    fn has(&self, index: usize, word: &str) -> bool {
        word.chars().enumerate().all(|(offset, c)| self.at(index + offset) == Some(c))
    }

    fn value(&mut self, index: usize, depth: usize) -> Result<(Json<'static>, usize), JsonError> {
        if depth > MAX_DEPTH {
            return Err(JsonError::Unreadable);
        }
        let word = |text: &str, value| Ok((value, index + text.len()));
        match self.at(index) {
            Some('"') => {
                let (text, end) = self.string(index)?;
                Ok((Json::Str(Cow::Owned(text)), end))
            }
            Some('{') => self.object(index + 1, depth),
            Some('[') => self.list(index + 1, depth),
            Some('n') if self.has(index, "null") => word("null", Json::Null),
            Some('t') if self.has(index, "true") => word("true", Json::Bool(true)),
            Some('f') if self.has(index, "false") => word("false", Json::Bool(false)),
            Some('N') if self.has(index, "NaN") => word("NaN", Json::Float(f64::NAN)),
            Some('I') if self.has(index, "Infinity") => word("Infinity", Json::Float(f64::INFINITY)),
            Some('-') if self.has(index, "-Infinity") => word("-Infinity", Json::Float(f64::NEG_INFINITY)),
            _ => self.number(index),
        }
    }

    fn object(&mut self, index: usize, depth: usize) -> Result<(Json<'static>, usize), JsonError> {
        let mut members: Vec<(Cow<'static, str>, Json<'static>)> = Vec::new();
        // Looking up repeated keys one by one would be quadratic.
        let mut places = std::collections::HashMap::new();
        let mut index = self.skip_space(index);
        if self.at(index) == Some('}') {
            return Ok((Json::Object(members), index + 1));
        }
        loop {
            if self.at(index) != Some('"') {
                let text = "Expecting property name enclosed in double quotes";
                return Err(JsonError::Syntax(text, index));
            }
            let (key, end) = self.string(index)?;
            index = self.skip_space(end);
            if self.at(index) != Some(':') {
                return Err(JsonError::Syntax("Expecting ':' delimiter", index));
            }
            index = self.skip_space(index + 1);
            let (value, end) = self.value(index, depth + 1)?;
            match places.get(&key) {
                Some(&place) => {
                    let member: &mut (Cow<'static, str>, Json<'static>) = &mut members[place];
                    member.1 = value;
                }
                None => {
                    places.insert(key.clone(), members.len());
                    members.push((Cow::Owned(key), value));
                }
            }
            index = self.skip_space(end);
            match self.at(index) {
                Some('}') => return Ok((Json::Object(members), index + 1)),
                Some(',') => index = self.skip_space(index + 1),
                _ => return Err(JsonError::Syntax("Expecting ',' delimiter", index)),
            }
        }
    }

    fn list(&mut self, index: usize, depth: usize) -> Result<(Json<'static>, usize), JsonError> {
        let mut items = Vec::new();
        let mut index = self.skip_space(index);
        if self.at(index) == Some(']') {
            return Ok((Json::List(items), index + 1));
        }
        loop {
            let (value, end) = self.value(index, depth + 1)?;
            items.push(value);
            index = self.skip_space(end);
            match self.at(index) {
                Some(']') => return Ok((Json::List(items), index + 1)),
                Some(',') => index = self.skip_space(index + 1),
                _ => return Err(JsonError::Syntax("Expecting ',' delimiter", index)),
            }
        }
    }

    fn number(&self, start: usize) -> Result<(Json<'static>, usize), JsonError> {
        let nothing = Err(JsonError::Syntax(EXPECTING_VALUE, start));
        let digit = |index: usize| self.at(index).is_some_and(|c| c.is_ascii_digit());
        let digits_from = |mut index: usize| {
            while digit(index) {
                index += 1;
            }
            index
        };
        let first = start + usize::from(self.at(start) == Some('-'));
        let mut end = match self.at(first) {
            Some('0') => first + 1,
            Some('1'..='9') => digits_from(first),
            _ => return nothing,
        };
        let whole_end = end;
        let mut is_float = false;
        if self.at(end) == Some('.') && digit(end + 1) {
            is_float = true;
            end = digits_from(end + 1);
        }
        if matches!(self.at(end), Some('e' | 'E')) {
            let sign = usize::from(matches!(self.at(end + 1), Some('+' | '-')));
            let exponent = end + 1 + sign;
            if digit(exponent) {
                is_float = true;
                end = digits_from(exponent);
            }
        }
        let text: String = (start..end).filter_map(|index| self.at(index)).collect();
        let value = if is_float {
            Json::Float(text.parse().map_err(|_| JsonError::Syntax(EXPECTING_VALUE, start))?)
        } else if whole_end - first > MAX_DIGITS {
            return Err(JsonError::Unreadable);
        } else {
            text.parse().map_or_else(|_| Json::Big(text), Json::Int)
        };
        Ok((value, end))
    }

    /// Reads the string whose opening quote is at `open`; returns it and the index behind the closing one.
    fn string(&mut self, open: usize) -> Result<(String, usize), JsonError> {
        let mut out = String::new();
        let mut length = 0;
        let mut index = open + 1;
        loop {
            let Some(&code) = self.text.get(index) else {
                return Err(JsonError::Syntax("Unterminated string starting at", open));
            };
            let code = match code {
                0x22 => return Ok((out, index + 1)),
                0x5c => {
                    let Some(letter) = self.at(index + 1) else {
                        return Err(JsonError::Syntax("Unterminated string starting at", open));
                    };
                    let plain = match letter {
                        '"' | '\\' | '/' => Some(letter),
                        'b' => Some('\u{8}'),
                        'f' => Some('\u{c}'),
                        'n' => Some('\n'),
                        'r' => Some('\r'),
                        't' => Some('\t'),
                        'u' => None,
                        _ => return Err(JsonError::Syntax("Invalid \\escape", index)),
                    };
                    match plain {
                        Some(c) => {
                            index += 2;
                            u32::from(c)
                        }
                        None => {
                            let (code, end) = self.unicode_escape(index + 1)?;
                            index = end;
                            code
                        }
                    }
                }
                0..=0x1f => return Err(JsonError::Syntax("Invalid control character at", index)),
                _ => {
                    index += 1;
                    code
                }
            };
            match char::from_u32(code) {
                Some(c) => out.push(c),
                None => {
                    self.lone.get_or_insert((code as u16, length));
                    out.push('\u{fffd}');
                }
            }
            length += 1;
        }
    }

    /// Reads `uXXXX` at `index`, and the second half of a surrogate pair if it follows.
    fn unicode_escape(&self, index: usize) -> Result<(u32, usize), JsonError> {
        let bad = |at| JsonError::Syntax(BAD_UNICODE_ESCAPE, at);
        // The scanner wants at least one more character (the closing quote) behind the digits.
        if index + 5 >= self.text.len() {
            return Err(bad(index));
        }
        let high = self.hex4(index + 1).ok_or(bad(index))?;
        let end = index + 5;
        let pair_follows =
            (0xd800..0xdc00).contains(&high) && end + 6 < self.text.len() && self.has(end, "\\u");
        if pair_follows {
            let low = self.hex4(end + 2).ok_or(bad(end + 1))?;
            if (0xdc00..0xe000).contains(&low) {
                return Ok((0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00), end + 6));
            }
        }
        Ok((high, end))
    }

    fn hex4(&self, index: usize) -> Option<u32> {
        (index..index + 4).try_fold(0, |value, at| Some(value << 4 | self.at(at)?.to_digit(16)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syntax(text: &str) -> (&'static str, usize) {
        match parse(text.as_bytes()) {
            Err(JsonError::Syntax(message, at)) => (message, at),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn errors_have_the_texts_and_positions_of_cpython() {
        for (text, message, at) in [
            ("{\"a\":nul}", "Expecting value", 5),
            ("[1,]", "Expecting value", 3),
            ("[1,,2]", "Expecting value", 3),
            ("-", "Expecting value", 0),
            (".5", "Expecting value", 0),
            ("   ", "Expecting value", 3),
            ("{bad", "Expecting property name enclosed in double quotes", 1),
            ("{,}", "Expecting property name enclosed in double quotes", 1),
            ("{\"a\":1,}", "Expecting property name enclosed in double quotes", 7),
            ("{\"a\" 1}", "Expecting ':' delimiter", 5),
            ("[1 2]", "Expecting ',' delimiter", 3),
            ("[1,2", "Expecting ',' delimiter", 4),
            ("{\"a\":1", "Expecting ',' delimiter", 6),
            ("[01]", "Expecting ',' delimiter", 2),
            ("[1.]", "Expecting ',' delimiter", 2),
            ("[1}", "Expecting ',' delimiter", 2),
            ("\"abc", "Unterminated string starting at", 0),
            ("\"a\tb\"", "Invalid control character at", 2),
            ("\"\\z\"", "Invalid \\escape", 1),
            ("\"\\u12\"", "Invalid \\uXXXX escape", 2),
            ("1 2", "Extra data", 2),
            ("00", "Extra data", 1),
            ("1e", "Extra data", 1),
            ("{\"é\":\"é\",}", "Expecting property name enclosed in double quotes", 9),
        ] {
            assert_eq!(syntax(text), (message, at), "{text}");
        }
    }

    #[test]
    fn the_python_only_parts_are_accepted() {
        let value = |text: &str| parse(text.as_bytes()).unwrap().value;
        assert!(matches!(value("NaN"), Json::Float(v) if v.is_nan()));
        assert_eq!(value("-Infinity"), Json::Float(f64::NEG_INFINITY));
        assert_eq!(value("1e400"), Json::Float(f64::INFINITY));
        assert_eq!(value("-0"), Json::Int(0));
        assert_eq!(value("9223372036854775808"), Json::Big("9223372036854775808".into()));
        let repeated = value("{\"a\":1,\"b\":2,\"a\":3}");
        assert_eq!(repeated, Json::Object(vec![("a".into(), Json::Int(3)), ("b".into(), Json::Int(2))]));
        assert_eq!(value("\"\\ud83d\\ude00\""), Json::Str("\u{1f600}".into()));
        assert_eq!(parse(b"\"x\\ud800\"").unwrap().lone_surrogate, Some((0xd800, 1)));
        let utf16: Vec<u8> = "[1]".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(parse(&utf16).unwrap().value, Json::List(vec![Json::Int(1)]));
        assert_eq!(parse(b"\xef\xbb\xbf1").unwrap().value, Json::Int(1));
    }

    #[test]
    fn the_unreadable_is_told_apart_from_the_wrong() {
        let deep = "[".repeat(2000);
        let long = "9".repeat(4301);
        for text in [deep.as_bytes(), long.as_bytes(), b"\"\xff\""] {
            assert_eq!(parse(text), Err(JsonError::Unreadable));
        }
        assert!(parse("9".repeat(4300).as_bytes()).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn what_serde_json_accepts_is_accepted(text in r#"[\[\]{}:, "a0-9.eE+\-ntrufalse\\]{0,20}"#) {
            if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
                proptest::prop_assert!(parse(text.as_bytes()).is_ok());
            }
        }
    }
}
