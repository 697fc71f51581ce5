//! The bytes a store looks an entity up by.
//!
//! Layout (all integers little-endian u32): number of keys; per key, sorted by name: the STRING tag, the
//! name's length, the name; then per value in the same order: type tag, length, value. Versions below 3
//! leave out the number and the lengths of the names; versions 0 and 1 write an int64 in four bytes.

use super::entity::EntityValue;

/// Why a value cannot be part of a key; the texts are the reference's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyError {
    /// A null.
    Null,
    /// A type that cannot be a key, shown as protobuf text.
    Unsupported(String),
    /// An int64 that versions 0 and 1 cannot hold.
    TooLong,
}

impl KeyError {
    /// What the reference answers.
    pub fn message(&self) -> String {
        match self {
            Self::Null => "attribute name must be string, not 'NoneType'".to_owned(),
            Self::Unsupported(shown) => {
                format!("Value type not supported for feast feature store: {shown}")
            }
            Self::TooLong => "'l' format requires -2147483648 <= number <= 2147483647".to_owned(),
        }
    }
}

/// Writes keys of one view: the names part is fixed, values follow.
#[derive(Debug, Clone)]
pub struct KeyLayout {
    head: Vec<u8>,
    int64_in_4_bytes: bool,
}

impl KeyLayout {
    /// A layout for join key names that are already sorted by code point.
    pub fn new(sorted_names: &[&str], version: i64) -> Self {
        let mut head = Vec::new();
        if version > 2 {
            head.extend_from_slice(&(sorted_names.len() as u32).to_le_bytes());
        }
        for name in sorted_names {
            head.extend_from_slice(&2_u32.to_le_bytes());
            if version > 2 {
                head.extend_from_slice(&(name.len() as u32).to_le_bytes());
            }
            head.extend_from_slice(name.as_bytes());
        }
        Self { head, int64_in_4_bytes: (0..2).contains(&version) }
    }

    /// Starts a key.
    pub fn begin(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
    }

    /// Adds the next value; call in the order of the sorted names.
    pub fn value(&self, out: &mut Vec<u8>, value: &EntityValue<'_>) -> Result<(), KeyError> {
        match value {
            EntityValue::Str(text) => put(out, 2, text.as_bytes()),
            EntityValue::Bytes(bytes) => put(out, 1, bytes),
            EntityValue::Int32(number) => put(out, 3, &number.to_le_bytes()),
            EntityValue::Int64(number) if self.int64_in_4_bytes => {
                let short = i32::try_from(*number).map_err(|_| KeyError::TooLong)?;
                put(out, 4, &short.to_le_bytes());
            }
            EntityValue::Int64(number) => put(out, 4, &number.to_le_bytes()),
            EntityValue::Timestamp(seconds) => put(out, 8, &seconds.to_le_bytes()),
            EntityValue::Null => return Err(KeyError::Null),
            other => return Err(KeyError::Unsupported(other.proto_text())),
        }
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}
