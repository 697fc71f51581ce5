//! Chunked bodies: finding their end, and taking them out of their framing.

use super::{HttpError, Limits};

/// Most framing beyond 16 bytes a chunk and twice its data.
const MAX_OVERHEAD: usize = 16 << 10;
/// Longest line with a chunk size and its extensions.
const MAX_CHUNK_LINE: usize = 8190;

/// Progress through a chunked body; can stop at any byte and go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Next byte to look at.
    at: usize,
    /// Data bytes seen.
    pub decoded: u64,
    /// Bytes of framing beyond what the data justifies.
    overhead: usize,
    trailer_fields: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of a line with a size.
    Size,
    /// Inside data, so many bytes to go.
    Data(u64),
    /// Behind data: CRLF must follow.
    DataEnd,
    /// At the start of a trailer line.
    Trailer,
}

impl Chunks {
    /// Starts at offset `at`.
    pub fn new(at: usize) -> Self {
        Self { state: State::Size, at, decoded: 0, overhead: 0, trailer_fields: 0 }
    }

    /// Goes as far as `buffer` allows; `Some(end)` when the body ends before offset `end`.
    pub fn advance(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, HttpError> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = line(buffer, self.at, MAX_CHUNK_LINE, HttpError::Invalid)? else {
                        return Ok(None);
                    };
                    let size = chunk_size(line)?;
                    // Framing may not outweigh the data: tiny chunks with long extensions would fill the memory.
                    let framing = self.overhead + line.len() + 2;
                    let allowed = usize::try_from(size).unwrap_or(usize::MAX).saturating_mul(2);
                    self.overhead = framing.saturating_sub(allowed.saturating_add(16));
                    if self.overhead > MAX_OVERHEAD {
                        return Err(HttpError::Invalid);
                    }
                    self.at += line.len() + 2;
                    self.decoded = self.decoded.checked_add(size).ok_or(HttpError::Invalid)?;
                    if limits.body != 0 && self.decoded > limits.body {
                        return Err(HttpError::BodyTooLarge);
                    }
                    self.state = if size == 0 { State::Trailer } else { State::Data(size) };
                }
                State::Data(left) => {
                    let here = (buffer.len() - self.at) as u64;
                    if here < left {
                        self.at = buffer.len();
                        self.state = State::Data(left - here);
                        return Ok(None);
                    }
                    self.at += left as usize;
                    self.state = State::DataEnd;
                }
                State::DataEnd => match &buffer[self.at..] {
                    [b'\r', b'\n', ..] => {
                        self.at += 2;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(HttpError::Invalid),
                },
                State::Trailer => {
                    let limit = limits.field_size;
                    let Some(line) = line(buffer, self.at, limit, HttpError::FieldsTooLarge)? else {
                        return Ok(None);
                    };
                    self.at += line.len() + 2;
                    if line.is_empty() {
                        return Ok(Some(self.at));
                    }
                    check_trailer(line)?;
                    self.trailer_fields += 1;
                    if self.trailer_fields > limits.fields {
                        return Err(HttpError::FieldsTooLarge);
                    }
                }
            }
        }
    }
}

/// The line at `at` without its CRLF; `None` when its end has not arrived. A bare CR or LF is refused.
fn line(buffer: &[u8], at: usize, limit: usize, too_long: HttpError) -> Result<Option<&[u8]>, HttpError> {
    let rest = &buffer[at..];
    let Some(end) = memchr::memchr2(b'\r', b'\n', rest) else {
        return if rest.len() > limit { Err(too_long) } else { Ok(None) };
    };
    if end > limit {
        return Err(too_long);
    }
    match &rest[end..] {
        [b'\r', b'\n', ..] => Ok(Some(&rest[..end])),
        [b'\r'] => Ok(None),
        _ => Err(HttpError::Invalid),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, HttpError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    // Leading zeros are fine; more than 15 significant digits are no size anybody means.
    let significant = size.iter().position(|&byte| byte != b'0').unwrap_or(size.len());
    if size.is_empty() || size.len() - significant > 15 {
        return Err(HttpError::Invalid);
    }
    if !extension.is_empty() {
        check_extension(extension)?;
    }
    let value =
        size.iter().fold(0, |sum, &byte| sum << 4 | u64::from(char::from(byte).to_digit(16).unwrap_or(0)));
    Ok(value)
}

/// Chunk extensions are skipped, but must look like some: `;name[=value]`, visible characters only.
fn check_extension(text: &[u8]) -> Result<(), HttpError> {
    let trimmed = text.trim_ascii();
    let named = trimmed.first() == Some(&b';')
        && trimmed
            .get(1..)
            .map(<[u8]>::trim_ascii_start)
            .is_some_and(|name| name.first().is_some_and(|&byte| is_token(byte)));
    let visible = text.iter().all(|&byte| byte == b'\t' || (0x20..0x7f).contains(&byte) || byte >= 0x80);
    if named && visible {
        Ok(())
    } else {
        Err(HttpError::Invalid)
    }
}

/// Trailers are skipped, but must be fields, and none that would change how the message is read.
fn check_trailer(line: &[u8]) -> Result<(), HttpError> {
    const FORBIDDEN: &[&[u8]] =
        &[b"host", b"content-length", b"transfer-encoding", b"trailer", b"authorization", b"te"];
    let colon = memchr::memchr(b':', line).ok_or(HttpError::Invalid)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let fine = !name.is_empty()
        && name.iter().all(|&byte| is_token(byte))
        && !FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
        && value.iter().all(|&byte| byte == b'\t' || (byte >= 0x20 && byte != 0x7f));
    if fine {
        Ok(())
    } else {
        Err(HttpError::Invalid)
    }
}

/// A character of an HTTP token.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Appends the data of the chunked body that begins at `at` and that [`Chunks`] has found complete.
pub fn collect(buffer: &[u8], mut at: usize, out: &mut Vec<u8>) {
    while let Some(length) = memchr::memchr(b'\n', &buffer[at..]) {
        let Ok(size) = chunk_size(&buffer[at..(at + length).saturating_sub(1)]) else { return };
        let data = at + length + 1;
        let Some(bytes) = buffer.get(data..data + size as usize).filter(|bytes| !bytes.is_empty()) else {
            return;
        };
        out.extend_from_slice(bytes);
        at = data + size as usize + 2;
    }
}
