//! RESP2 from the front of a buffer, token by token. Nothing is copied, and however a stream is cut, the tokens
//! are the same: a token is returned once it is complete, and looking again costs only its short header.

/// One piece of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'b> {
    /// The next so many values belong together; `None` is the null list.
    Array(Option<usize>),
    /// Bytes; `None` is the null value.
    Bulk(Option<&'b [u8]>),
    /// A status line.
    Simple(&'b [u8]),
    /// An error line, without its `-`.
    Error(&'b [u8]),
    /// A number.
    Integer(i64),
}

/// The stream is not RESP; nothing behind this point can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Protocol Error: the server's reply is not RESP")]
pub struct Malformed;

/// Longest line that is no bulk value.
const MAX_LINE: usize = 64 << 10;
/// Largest bulk value; Redis allows no larger ones.
const MAX_BULK: i64 = 512 << 20;

/// The token at the front of `buffer` and its length in bytes; `None` when it is not complete.
#[inline]
pub fn next(buffer: &[u8]) -> Result<Option<(Token<'_>, usize)>, Malformed> {
    let Some((&kind, rest)) = buffer.split_first() else { return Ok(None) };
    match kind {
        b'$' => {
            let Some((length, header)) = number(rest)? else { return Ok(None) };
            let start = 1 + header;
            if length < 0 {
                return if length == -1 { Ok(Some((Token::Bulk(None), start))) } else { Err(Malformed) };
            }
            if length > MAX_BULK {
                return Err(Malformed);
            }
            let end = start + length as usize;
            match buffer.get(end..end + 2) {
                Some(b"\r\n") => Ok(Some((Token::Bulk(Some(&buffer[start..end])), end + 2))),
                Some(_) => Err(Malformed),
                None => Ok(None),
            }
        }
        b'*' => {
            let Some((length, header)) = number(rest)? else { return Ok(None) };
            let length = match length {
                -1 => None,
                0.. => Some(length as usize),
                _ => return Err(Malformed),
            };
            Ok(Some((Token::Array(length), 1 + header)))
        }
        b':' => Ok(number(rest)?.map(|(number, header)| (Token::Integer(number), 1 + header))),
        b'+' | b'-' => {
            let Some(end) = memchr::memchr(b'\n', rest) else {
                return if rest.len() > MAX_LINE { Err(Malformed) } else { Ok(None) };
            };
            let line = rest[..end].strip_suffix(b"\r").ok_or(Malformed)?;
            let token = if kind == b'+' { Token::Simple(line) } else { Token::Error(line) };
            Ok(Some((token, end + 2)))
        }
        _ => Err(Malformed),
    }
}

/// A decimal number and its line end; returns both their lengths together.
#[inline]
fn number(bytes: &[u8]) -> Result<Option<(i64, usize)>, Malformed> {
    let negative = bytes.first() == Some(&b'-');
    let signed = negative || bytes.first() == Some(&b'+');
    let mut value: i64 = 0;
    let mut at = usize::from(signed);
    let from = at;
    loop {
        match bytes.get(at) {
            Some(digit @ b'0'..=b'9') => {
                value = value
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(i64::from(digit - b'0')))
                    .ok_or(Malformed)?;
                at += 1;
            }
            Some(b'\r') if at > from => break,
            Some(_) => return Err(Malformed),
            None => return Ok(None),
        }
    }
    match bytes.get(at + 1) {
        Some(b'\n') => Ok(Some((if negative { -value } else { value }, at + 2))),
        Some(_) => Err(Malformed),
        None => Ok(None),
    }
}

/// Appends a command: a list of bulk values.
pub fn write_command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    write_header(out, b'*', parts.len());
    parts.iter().for_each(|part| write_bulk(out, part));
}

/// Appends a bulk value.
#[inline]
pub fn write_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    write_header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends a kind and a length.
#[inline]
pub fn write_header(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use redis::Value;

    /// Reads one whole value, as far as `buffer` holds it; `None` when it is cut off.
    fn value(buffer: &[u8], at: &mut usize) -> Result<Option<Value>, Malformed> {
        let Some((token, length)) = next(&buffer[*at..])? else { return Ok(None) };
        *at += length;
        Ok(Some(match token {
            Token::Array(None) | Token::Bulk(None) => Value::Nil,
            Token::Bulk(Some(bytes)) => Value::BulkString(bytes.to_vec()),
            Token::Simple(b"OK") => Value::Okay,
            Token::Simple(text) => Value::SimpleString(String::from_utf8_lossy(text).into_owned()),
            Token::Integer(number) => Value::Int(number),
            Token::Error(text) => Value::SimpleString(format!("error {}", String::from_utf8_lossy(text))),
            Token::Array(Some(count)) => {
                let mut list = Vec::new();
                for _ in 0..count {
                    match value(buffer, at)? {
                        Some(item) => list.push(item),
                        None => return Ok(None),
                    }
                }
                Value::Array(list)
            }
        }))
    }

    fn encode(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Nil => out.extend_from_slice(b"$-1\r\n"),
            Value::Int(number) => out.extend_from_slice(format!(":{number}\r\n").as_bytes()),
            Value::BulkString(bytes) => write_bulk(out, bytes),
            Value::SimpleString(text) => out.extend_from_slice(format!("+{text}\r\n").as_bytes()),
            Value::Array(list) => {
                write_header(out, b'*', list.len());
                list.iter().for_each(|item| encode(item, out));
            }
            _ => {}
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<i64>().prop_map(|n| Value::Int(n.max(-i64::MAX))),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::BulkString),
            "[a-z ]{0,12}".prop_map(Value::SimpleString),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(Value::Array))
    }

    proptest! {
        #[test]
        fn replies_read_as_the_redis_crate_reads_them(value_in in values()) {
            let mut bytes = Vec::new();
            encode(&value_in, &mut bytes);
            let oracle = redis::parse_redis_value(&bytes).unwrap();
            let mut at = 0;
            prop_assert_eq!(value(&bytes, &mut at), Ok(Some(oracle)));
            prop_assert_eq!(at, bytes.len());
        }

        #[test]
        fn cuts_change_nothing(list in prop::collection::vec(values(), 1..5), cuts in prop::collection::vec(any::<usize>(), 0..8)) {
            let mut bytes = Vec::new();
            list.iter().for_each(|item| encode(item, &mut bytes));
            let whole = tokens(&bytes, &[]);
            prop_assert_eq!(tokens(&bytes, &cuts), whole);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut at = 0;
            while let Ok(Some((_, length))) = next(&bytes[at..]) {
                at += length;
            }
        }
    }

    /// The tokens of `bytes` when they arrive in pieces.
    fn tokens(bytes: &[u8], cuts: &[usize]) -> Vec<String> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let (mut at, mut found) = (0, Vec::new());
        for cut in cuts {
            while let Some((token, length)) = next(&bytes[at..cut]).unwrap() {
                found.push(format!("{token:?}"));
                at += length;
            }
        }
        found
    }

    #[test]
    fn what_is_not_resp_is_refused() {
        for bytes in
            [&b"x"[..], b"$-2\r\n", b"$1\r\nab\r\n", b"*-3\r\n", b":1x\r\n", b"$\r\n", b"+a\n", b":1\rx"]
        {
            assert_eq!(next(bytes), Err(Malformed), "{bytes:?}");
        }
    }
}
