//! Protobuf on the wire: a reader over slices that borrows, and a writer that appends.
//!
//! Own code instead of a generated one because values are printed straight from their bytes (no object per
//! value) and because a message that is edited must keep fields it does not know.

/// A message that cannot be decoded, in the words of the reference's runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Truncated, an impossible tag, or a varint without end.
    #[error("Wire format was corrupt")]
    Corrupt,
    /// A string field holds bytes that are not UTF-8.
    #[error("String field had bad UTF-8")]
    BadUtf8,
}

/// Deepest nesting of groups or messages that is followed (the reference's runtime stops at 100, too).
pub const MAX_DEPTH: u32 = 100;

/// One field's payload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Payload<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64([u8; 8]),
    /// Wire type 2: string, bytes, message or packed list.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32([u8; 4]),
    /// Wire type 3: a group, skipped as a whole.
    Group,
}

impl<'a> Payload<'a> {
    /// The bytes of a length-delimited field; empty when the field has another wire type (protobuf treats
    /// such a field as unknown).
    pub fn bytes(self) -> &'a [u8] {
        if let Payload::Bytes(bytes) = self {
            bytes
        } else {
            &[]
        }
    }

    /// The integer of a varint field; 0 when the field has another wire type.
    pub fn varint(self) -> u64 {
        if let Payload::Varint(value) = self {
            value
        } else {
            0
        }
    }

    /// The text of a string field.
    pub fn str(self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()).map_err(|_| WireError::BadUtf8)
    }
}

/// Iterates over the fields of one message: `(field number, payload)` in wire order.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads `message`.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn field(&mut self, depth: u32) -> Result<(u32, Payload<'a>), WireError> {
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::Corrupt)?;
        if number == 0 || number > 0x1fff_ffff {
            return Err(WireError::Corrupt);
        }
        let payload = match tag & 7 {
            0 => Payload::Varint(varint(&mut self.rest)?),
            1 => Payload::Fixed64(self.fixed()?),
            2 => {
                let length = varint(&mut self.rest)?;
                let length = usize::try_from(length).map_err(|_| WireError::Corrupt)?;
                let (bytes, rest) = self.rest.split_at_checked(length).ok_or(WireError::Corrupt)?;
                self.rest = rest;
                Payload::Bytes(bytes)
            }
            3 => {
                self.skip_group(number, depth + 1)?;
                Payload::Group
            }
            5 => Payload::Fixed32(self.fixed()?),
            _ => return Err(WireError::Corrupt),
        };
        Ok((number, payload))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Corrupt)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn skip_group(&mut self, number: u32, depth: u32) -> Result<(), WireError> {
        if depth > MAX_DEPTH {
            return Err(WireError::Corrupt);
        }
        loop {
            let mut ahead = self.rest;
            let tag = varint(&mut ahead)?;
            if tag & 7 == 4 {
                self.rest = ahead;
                return if tag >> 3 == u64::from(number) { Ok(()) } else { Err(WireError::Corrupt) };
            }
            self.field(depth)?;
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Payload<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.field(0);
        if found.is_err() {
            self.rest = &[];
        }
        Some(found)
    }
}

/// A field with its number, all its bytes, and what they hold.
pub type RawField<'a> = (u32, &'a [u8], Payload<'a>);

/// The fields of `message` with all their bytes, tag included: what an edit copies.
pub fn raw_fields(message: &[u8]) -> Result<Vec<RawField<'_>>, WireError> {
    let mut fields = Fields::new(message);
    let mut found = Vec::new();
    let mut rest = message;
    while let Some(field) = fields.next() {
        let (number, payload) = field?;
        let raw = &rest[..rest.len() - fields.rest().len()];
        rest = fields.rest();
        found.push((number, raw, payload));
    }
    Ok(found)
}

/// Takes one varint off the front of `rest`.
#[inline]
pub fn varint(rest: &mut &[u8]) -> Result<u64, WireError> {
    // One-byte values are the most common: tags, lengths, small numbers.
    if let Some((&first, tail)) = rest.split_first() {
        if first < 0x80 {
            *rest = tail;
            return Ok(u64::from(first));
        }
    }
    let mut value = 0_u64;
    for (index, &byte) in rest.iter().enumerate().take(10) {
        if index == 9 && byte > 1 {
            return Err(WireError::Corrupt);
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(WireError::Corrupt)
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends an integer, bool or enum field; a zero is left out, as proto3 does.
pub fn put_int(out: &mut Vec<u8>, number: u32, value: i64) {
    if value != 0 {
        put_varint(out, u64::from(number) << 3);
        put_varint(out, value as u64);
    }
}

/// Appends a string, bytes or message field, empty ones too.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a string field; an empty one is left out, as proto3 does.
pub fn put_str(out: &mut Vec<u8>, number: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(out, number, text.as_bytes());
    }
}

/// Appends a message field whose content `fill` writes.
pub fn put_message(out: &mut Vec<u8>, number: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put_bytes(out, number, &inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_wire_order_and_unknown_groups_are_skipped() {
        let mut message = Vec::new();
        put_int(&mut message, 4, -1);
        message.extend_from_slice(&[0x2b, 0x08, 0x01, 0x33, 0x34, 0x2c]); // group 5 { 1: 1, group 6 {} }
        put_str(&mut message, 2, "x");
        let fields: Vec<_> = Fields::new(&message).collect::<Result<_, _>>().unwrap();
        assert_eq!(fields, [(4, Payload::Varint(u64::MAX)), (5, Payload::Group), (2, Payload::Bytes(b"x"))]);
    }

    #[test]
    fn broken_messages_end_with_an_error() {
        for broken in [&[0x00][..], &[0x08], &[0x0a, 5, 1], &[0x0c], &[0x29, 1], &[0x2b, 0x08], &[0xff; 11]] {
            assert!(Fields::new(broken).any(|field| field.is_err()), "{broken:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn varints_round_trip(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut rest = &out[..];
            proptest::prop_assert_eq!(varint(&mut rest), Ok(value));
            proptest::prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Fields::new(&bytes).count();
        }
    }
}
