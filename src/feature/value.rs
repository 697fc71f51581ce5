//! A stored `feast.types.Value` as JSON text, straight from its bytes.
//!
//! The member present on the wire decides how it is printed; the schema is not consulted. When several
//! members are present the last one wins, and repeated occurrences of one message member are merged.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;

use super::zone;
use crate::registry::wire::{varint, Fields, Payload, WireError, MAX_DEPTH};
use crate::text::{json, pyfmt};

/// Why a value could not be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The bytes are not a `Value`.
    #[error("Error parsing message with type 'feast.types.Value': {0}")]
    Wire(#[from] WireError),
    /// A zoned timestamp outside the years 1 to 9999.
    #[error("date value out of range")]
    Year,
}

/// The seconds a zoned timestamp holds when it stands for "no time".
const NO_TIME: i64 = i64::MIN;

/// Appends the JSON text of the `Value` encoded in `bytes`.
#[inline]
pub fn write(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), ValueError> {
    if let Some((&tag, mut rest)) = bytes.split_first() {
        // The shapes that make up nearly all stores: one scalar and nothing else.
        match tag {
            0x20 | 0x40 => {
                let value = varint(&mut rest)?;
                if rest.is_empty() {
                    pyfmt::write_i64(out, value as i64);
                    return Ok(());
                }
            }
            0x29 => {
                if let Ok(raw) = rest.try_into() {
                    pyfmt::write_json_f64(out, f64::from_le_bytes(raw));
                    return Ok(());
                }
            }
            0x35 => {
                if let Ok(raw) = rest.try_into() {
                    pyfmt::write_json_f64(out, f64::from(f32::from_le_bytes(raw)));
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    write_any(out, bytes, 0)
}

/// Checks that `bytes` decode, without printing them.
pub fn check(bytes: &[u8], scratch: &mut Vec<u8>) -> Result<(), ValueError> {
    scratch.clear();
    match write(scratch, bytes) {
        Err(ValueError::Year) => Ok(()),
        other => other,
    }
}

/// How a member of the oneof is printed.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Bytes,
    Str,
    Int32,
    Int64,
    Double,
    Float,
    Bool,
    Null,
    /// A message with `repeated <shape> val = 1`.
    ListOf(Item),
    Map,
    MapList,
    Values,
    ScalarMap,
    Zoned,
}

#[derive(Clone, Copy, PartialEq)]
enum Item {
    Bytes,
    Str,
    Int32,
    Int64,
    Double,
    Float,
    Bool,
}

/// The shape of field `number`, if it is a member of the oneof and has the wire type of its kind.
fn shape(number: u32, payload: Payload<'_>) -> Option<Shape> {
    let shape = match number {
        1 => Shape::Bytes,
        2 | 32 | 36 | 37 | 44 => Shape::Str,
        3 => Shape::Int32,
        4 | 8 => Shape::Int64,
        5 => Shape::Double,
        6 => Shape::Float,
        7 => Shape::Bool,
        19 => Shape::Null,
        11 | 22 => Shape::ListOf(Item::Bytes),
        12 | 23 | 33 | 38..=41 | 45 | 46 => Shape::ListOf(Item::Str),
        13 | 24 => Shape::ListOf(Item::Int32),
        14 | 18 | 25 | 29 => Shape::ListOf(Item::Int64),
        15 | 26 => Shape::ListOf(Item::Double),
        16 | 27 => Shape::ListOf(Item::Float),
        17 | 28 => Shape::ListOf(Item::Bool),
        20 | 34 => Shape::Map,
        21 | 35 => Shape::MapList,
        42 | 43 => Shape::Values,
        47 => Shape::ScalarMap,
        48 => Shape::Zoned,
        _ => return None,
    };
    let fits = match shape {
        Shape::Int32 | Shape::Int64 | Shape::Bool | Shape::Null => {
            matches!(payload, Payload::Varint(_))
        }
        Shape::Double => matches!(payload, Payload::Fixed64(_)),
        Shape::Float => matches!(payload, Payload::Fixed32(_)),
        _ => matches!(payload, Payload::Bytes(_)),
    };
    fits.then_some(shape)
}

fn write_any(out: &mut Vec<u8>, bytes: &[u8], depth: u32) -> Result<(), ValueError> {
    if depth > MAX_DEPTH {
        return Err(WireError::Corrupt.into());
    }
    let mut last: Option<(u32, Shape, Payload<'_>)> = None;
    // Earlier occurrences of the winning message member, which merge with the last one.
    let mut merged: Vec<u8> = Vec::new();
    for field in Fields::new(bytes) {
        let (number, payload) = field?;
        let Some(shape) = shape(number, payload) else { continue };
        match last {
            Some((before, _, Payload::Bytes(earlier))) if before == number && is_message(shape) => {
                merged.extend_from_slice(earlier);
            }
            _ => {
                // A member that loses is parsed all the same, and a broken one breaks the message.
                if let Some((_, shape, payload)) = last {
                    write_member(&mut Vec::new(), shape, payload, depth)?;
                }
                merged.clear();
            }
        }
        last = Some((number, shape, payload));
    }
    match last {
        None => out.extend_from_slice(b"null"),
        Some((_, shape, Payload::Bytes(bytes))) if !merged.is_empty() => {
            merged.extend_from_slice(bytes);
            write_member(out, shape, Payload::Bytes(&merged), depth)?;
        }
        Some((_, shape, payload)) => write_member(out, shape, payload, depth)?,
    }
    Ok(())
}

fn is_message(shape: Shape) -> bool {
    matches!(
        shape,
        Shape::ListOf(_) | Shape::Map | Shape::MapList | Shape::Values | Shape::ScalarMap | Shape::Zoned
    )
}

fn write_member(out: &mut Vec<u8>, shape: Shape, payload: Payload<'_>, depth: u32) -> Result<(), ValueError> {
    match (shape, payload) {
        (Shape::Bytes, payload) => write_base64(out, payload.bytes()),
        (Shape::Str, payload) => json::write_str(out, payload.str()?),
        (Shape::Int32, payload) => pyfmt::write_i64(out, i64::from(payload.varint() as i32)),
        (Shape::Int64, payload) => pyfmt::write_i64(out, payload.varint() as i64),
        (Shape::Double, Payload::Fixed64(raw)) => {
            pyfmt::write_json_f64(out, f64::from_le_bytes(raw));
        }
        (Shape::Float, Payload::Fixed32(raw)) => {
            pyfmt::write_json_f64(out, f64::from(f32::from_le_bytes(raw)));
        }
        (Shape::Bool, payload) => write_bool(out, payload.varint()),
        (Shape::ListOf(item), payload) => write_list(out, item, payload.bytes())?,
        (Shape::Map, payload) => write_map(out, payload.bytes(), depth)?,
        (Shape::MapList, payload) => {
            write_each(out, payload.bytes(), |out, map| write_map(out, map, depth + 1))?;
        }
        (Shape::Values, payload) => {
            write_each(out, payload.bytes(), |out, value| write_any(out, value, depth + 1))?;
        }
        (Shape::ScalarMap, payload) => {
            Fields::new(payload.bytes()).try_for_each(|field| field.map(|_| ()))?;
            out.extend_from_slice(b"null");
        }
        (Shape::Zoned, payload) => write_zoned(out, payload.bytes())?,
        _ => out.extend_from_slice(b"null"),
    }
    Ok(())
}

fn write_bool(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(if value != 0 { b"true" } else { b"false" });
}

fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
    out.truncate(start + written);
    out.push(b'"');
}

/// Writes `[...]` of what `one` makes of each length-delimited field 1.
fn write_each(
    out: &mut Vec<u8>,
    message: &[u8],
    mut one: impl FnMut(&mut Vec<u8>, &[u8]) -> Result<(), ValueError>,
) -> Result<(), ValueError> {
    out.push(b'[');
    let mut first = true;
    for field in Fields::new(message) {
        let (1, Payload::Bytes(bytes)) = field? else { continue };
        separate(out, &mut first);
        one(out, bytes)?;
    }
    out.push(b']');
    Ok(())
}

fn separate(out: &mut Vec<u8>, first: &mut bool) {
    if !std::mem::take(first) {
        out.push(b',');
    }
}

fn write_list(out: &mut Vec<u8>, item: Item, message: &[u8]) -> Result<(), ValueError> {
    match item {
        Item::Bytes => {
            return write_each(out, message, |out, bytes| {
                write_base64(out, bytes);
                Ok(())
            });
        }
        Item::Str => {
            return write_each(out, message, |out, bytes| {
                let text = std::str::from_utf8(bytes).map_err(|_| WireError::BadUtf8)?;
                json::write_str(out, text);
                Ok(())
            });
        }
        _ => {}
    }
    out.push(b'[');
    let mut first = true;
    let mut number = |out: &mut Vec<u8>, bits: u64| {
        separate(out, &mut first);
        match item {
            Item::Int32 => pyfmt::write_i64(out, i64::from(bits as i32)),
            Item::Int64 => pyfmt::write_i64(out, bits as i64),
            Item::Bool => write_bool(out, bits),
            Item::Float => pyfmt::write_json_f64(out, f64::from(f32::from_bits(bits as u32))),
            _ => pyfmt::write_json_f64(out, f64::from_bits(bits)),
        }
    };
    for field in Fields::new(message) {
        match (item, field?) {
            // Packed: all numbers in one field.
            (Item::Double, (1, Payload::Bytes(packed))) => {
                let (values, rest) = packed.as_chunks::<8>();
                corrupt_unless(rest.is_empty())?;
                values.iter().for_each(|raw| number(out, u64::from_le_bytes(*raw)));
            }
            (Item::Float, (1, Payload::Bytes(packed))) => {
                let (values, rest) = packed.as_chunks::<4>();
                corrupt_unless(rest.is_empty())?;
                values.iter().for_each(|raw| number(out, u64::from(u32::from_le_bytes(*raw))));
            }
            (Item::Int32 | Item::Int64 | Item::Bool, (1, Payload::Bytes(mut packed))) => {
                while !packed.is_empty() {
                    number(out, varint(&mut packed)?);
                }
            }
            // Unpacked: a field a number.
            (Item::Double, (1, Payload::Fixed64(raw))) => number(out, u64::from_le_bytes(raw)),
            (Item::Float, (1, Payload::Fixed32(raw))) => {
                number(out, u64::from(u32::from_le_bytes(raw)));
            }
            (Item::Int32 | Item::Int64 | Item::Bool, (1, Payload::Varint(bits))) => {
                number(out, bits);
            }
            _ => {}
        }
    }
    out.push(b']');
    Ok(())
}

fn corrupt_unless(fine: bool) -> Result<(), WireError> {
    if fine {
        Ok(())
    } else {
        Err(WireError::Corrupt)
    }
}

fn write_map(out: &mut Vec<u8>, message: &[u8], depth: u32) -> Result<(), ValueError> {
    let mut entries: Vec<(&str, &[u8])> = Vec::new();
    for field in Fields::new(message) {
        let (1, Payload::Bytes(entry)) = field? else { continue };
        let (mut key, mut value) = ("", &[][..]);
        for part in Fields::new(entry) {
            match part? {
                (1, payload @ Payload::Bytes(_)) => key = payload.str()?,
                (2, Payload::Bytes(bytes)) => value = bytes,
                _ => {}
            }
        }
        // The last entry of a key wins.
        match entries.iter_mut().find(|(known, _)| *known == key) {
            Some(known) => known.1 = value,
            None => entries.push((key, value)),
        }
    }
    out.push(b'{');
    let mut first = true;
    for (key, value) in entries {
        separate(out, &mut first);
        json::write_str(out, key);
        out.push(b':');
        write_any(out, value, depth + 1)?;
    }
    out.push(b'}');
    Ok(())
}

fn write_zoned(out: &mut Vec<u8>, message: &[u8]) -> Result<(), ValueError> {
    let (mut seconds, mut zone_name) = (0, "");
    for field in Fields::new(message) {
        match field? {
            (1, payload @ Payload::Varint(_)) => seconds = payload.varint() as i64,
            (2, payload @ Payload::Bytes(_)) => zone_name = payload.str()?,
            _ => {}
        }
    }
    if seconds == NO_TIME {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    out.push(b'"');
    if !zone::write_zoned(out, seconds, zone_name) {
        return Err(ValueError::Year);
    }
    out.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(hex: &str) -> Result<String, ValueError> {
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let mut out = Vec::new();
        write(&mut out, &bytes).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_last_member_wins_and_messages_merge() {
        assert_eq!(shown("20012005").unwrap(), "5");
        assert_eq!(shown("2001120161").unwrap(), "\"a\"");
        assert_eq!(shown("72020a0072030a0105").unwrap(), "[5]");
        assert_eq!(shown("72030a010172030a010272030a0103").unwrap(), "[1,2,3]");
        assert_eq!(shown("72030a0101200172030a0102").unwrap(), "[2]");
    }

    #[test]
    fn unknown_and_mistyped_fields_are_null() {
        assert_eq!(shown("").unwrap(), "null");
        assert_eq!(shown("980100").unwrap(), "null");
        assert_eq!(shown("980600").unwrap(), "null");
        assert_eq!(shown("220101").unwrap(), "null");
    }

    #[test]
    fn broken_bytes_are_errors() {
        assert_eq!(shown("20"), Err(ValueError::Wire(WireError::Corrupt)));
        assert_eq!(shown("1201ff"), Err(ValueError::Wire(WireError::BadUtf8)));
        assert_eq!(shown("0001"), Err(ValueError::Wire(WireError::Corrupt)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_printed_as_json_or_refused(bytes: Vec<u8>) {
            let mut out = Vec::new();
            if write(&mut out, &bytes).is_ok() {
                let text = std::str::from_utf8(&out).unwrap();
                proptest::prop_assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
            }
        }
    }
}
