//! Values on their way into a store: what each feature type accepts, and the serialized `feast.types.Value` it
//! becomes. The rules and the texts of errors are those of the reference's conversion (facts: write API, 4.2).

use std::borrow::Cow;
use std::collections::HashSet;

use super::cell::{Cell, Column, Kind};
use super::document::{encode_document, encode_nested};
use super::entity::EntityValue;
use crate::registry::wire::{put_bytes, put_varint};
use crate::text::{pyint, pyrepr};

/// Numbers of `feast.types.ValueType.Enum`, which are also the field numbers in `Value`.
pub mod types {
    #![allow(missing_docs)]
    pub const BYTES: u32 = 1;
    pub const STRING: u32 = 2;
    pub const INT32: u32 = 3;
    pub const INT64: u32 = 4;
    pub const DOUBLE: u32 = 5;
    pub const FLOAT: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const UNIX_TIMESTAMP: u32 = 8;
    pub const MAP: u32 = 20;
    pub const MAP_LIST: u32 = 21;
    pub const JSON: u32 = 32;
    pub const JSON_LIST: u32 = 33;
    pub const STRUCT: u32 = 34;
    pub const STRUCT_LIST: u32 = 35;
    pub const UUID: u32 = 36;
    pub const TIME_UUID: u32 = 37;
    pub const VALUE_LIST: u32 = 42;
    pub const VALUE_SET: u32 = 43;
    pub const DECIMAL: u32 = 44;
    pub const SCALAR_MAP: u32 = 47;
    pub const ZONED_TIMESTAMP: u32 = 48;
}

use types as t;

/// What a list holds: the type of its items.
fn item_of(value_type: u32) -> Option<(u32, bool)> {
    match value_type {
        11..=18 => Some((value_type - 10, false)),
        22..=29 => Some((value_type - 21, true)),
        38 => Some((t::UUID, false)),
        39 => Some((t::TIME_UUID, false)),
        40 => Some((t::UUID, true)),
        41 => Some((t::TIME_UUID, true)),
        45 => Some((t::DECIMAL, false)),
        46 => Some((t::DECIMAL, true)),
        _ => None,
    }
}

/// Checks once what the reference decides by a column's type or its first value.
pub fn check(value_type: u32, column: &Column<'_>) -> Result<(), String> {
    let Some(first) = column.cells.iter().find(|cell| !cell.is_null() && !cell.is_container()) else {
        return Ok(());
    };
    let zero = match first {
        Cell::Int(number) => *number == 0,
        Cell::Float(number) => *number == 0.0,
        _ => false,
    };
    let kind = &column.kind;
    let refuse = |accepted: &[&str]| {
        let shown: Vec<String> = accepted.iter().map(|name| format!("<class '{name}'>")).collect();
        Err(format!("Type `<class '{}'>` not in {{{}}}", kind.numpy_class(), shown.join(", ")))
    };
    match value_type {
        t::DOUBLE => match kind {
            Kind::Int("numpy.int64") | Kind::IntNull | Kind::Float("numpy.float64") | Kind::Decimal => Ok(()),
            _ => refuse(&["float", "numpy.float64", "int", "numpy.int64", "decimal.Decimal"]),
        },
        t::BOOL => match kind {
            Kind::Int("numpy.int64") | Kind::Bool | Kind::BoolNull => Ok(()),
            _ => refuse(&["numpy.bool", "numpy.int64", "bool", "int"]),
        },
        t::BYTES => match kind {
            Kind::Bytes => Ok(()),
            Kind::Int(_) | Kind::IntNull | Kind::Float(_) if zero => {
                Err(format!("expected bytes, {} found", kind.numpy_class()))
            }
            _ => refuse(&["bytes"]),
        },
        t::UUID | t::TIME_UUID | t::DECIMAL => match kind {
            Kind::Str => Ok(()),
            Kind::Decimal if value_type == t::DECIMAL => Ok(()),
            Kind::Int(_) | Kind::IntNull | Kind::Float(_) if zero => Ok(()),
            _ if value_type == t::DECIMAL => refuse(&["decimal.Decimal", "str"]),
            _ => refuse(&["uuid.UUID", "str"]),
        },
        t::ZONED_TIMESTAMP | t::SCALAR_MAP => Err(format!(
            "Type `<class '{}'>` cannot be stored as {}",
            kind.numpy_class(),
            if value_type == t::SCALAR_MAP { "SCALAR_MAP" } else { "ZONED_TIMESTAMP" }
        )),
        _ => Ok(()),
    }
}

/// Appends the serialized value of one cell of a column of `kind`; nothing for a null.
pub fn encode(value_type: u32, kind: &Kind, cell: &Cell<'_>, out: &mut Vec<u8>) -> Result<(), String> {
    match value_type {
        t::MAP | t::STRUCT | t::MAP_LIST | t::STRUCT_LIST | t::JSON | t::JSON_LIST => {
            return encode_document(value_type, kind, cell, out);
        }
        t::VALUE_LIST | t::VALUE_SET => return encode_nested(value_type, cell, out),
        _ => {}
    }
    if let Some((item, unique)) = item_of(value_type) {
        return encode_list(value_type, item, unique, kind, cell, out);
    }
    match scalar(value_type, kind, cell)? {
        EntityValue::Null => {}
        value => put_scalar(out, value_type, &value),
    }
    Ok(())
}

/// Converts a join key of type `value_type`. Null stays null; so does a list or an object.
pub fn join_key(value_type: u32, kind: &Kind, cell: &Cell<'_>) -> Result<EntityValue<'static>, String> {
    scalar(value_type, kind, cell)
}

pub(super) fn put_scalar(out: &mut Vec<u8>, number: u32, value: &EntityValue<'_>) {
    let varint = |out: &mut Vec<u8>, value: u64| {
        put_varint(out, u64::from(number) << 3);
        put_varint(out, value);
    };
    match value {
        EntityValue::Bytes(bytes) => put_bytes(out, number, bytes),
        EntityValue::Str(text) => put_bytes(out, number, text.as_bytes()),
        EntityValue::Text(_, text) => put_bytes(out, number, text.as_bytes()),
        EntityValue::Int32(value) => varint(out, i64::from(*value).cast_unsigned()),
        EntityValue::Int64(value) | EntityValue::Timestamp(value) => varint(out, value.cast_unsigned()),
        EntityValue::Double(value) => {
            put_varint(out, u64::from(number) << 3 | 1);
            out.extend_from_slice(&value.to_le_bytes());
        }
        EntityValue::Float(value) => {
            put_varint(out, u64::from(number) << 3 | 5);
            out.extend_from_slice(&value.to_le_bytes());
        }
        EntityValue::Bool(value) => varint(out, u64::from(*value)),
        _ => {}
    }
}

/// Converts a scalar.
fn scalar(value_type: u32, kind: &Kind, cell: &Cell<'_>) -> Result<EntityValue<'static>, String> {
    if cell.is_null() || (cell.is_container() && value_type != t::BYTES) {
        return Ok(EntityValue::Null);
    }
    let text = || cell.print(kind.is_float());
    Ok(match value_type {
        t::INT32 => {
            let number = integer(cell)?;
            EntityValue::Int32(i32::try_from(number).map_err(|_| format!("Value out of range: {number}"))?)
        }
        t::INT64 => EntityValue::Int64(integer(cell)?),
        t::UNIX_TIMESTAMP => EntityValue::Timestamp(match cell {
            Cell::Time { seconds, .. } => *seconds,
            Cell::Date(days) => i64::from(*days) * 86_400,
            _ => integer(cell)?,
        }),
        t::FLOAT => EntityValue::Float(float(cell)? as f32),
        t::DOUBLE => EntityValue::Double(float(cell)?),
        t::BOOL => EntityValue::Bool(match cell {
            Cell::Bool(value) => *value,
            Cell::Int(number) => *number != 0,
            other => {
                return Err(format!("bad argument type for built-in operation: {}", other.python_class()))
            }
        }),
        t::BYTES => match cell {
            Cell::Bytes(bytes) => EntityValue::Bytes(bytes.to_vec()),
            other if other.is_container() => EntityValue::Null,
            other => return Err(format!("expected bytes, {} found", other.python_class())),
        },
        t::UUID => EntityValue::Text("uuid_val", text()),
        t::TIME_UUID => EntityValue::Text("time_uuid_val", text()),
        t::DECIMAL => EntityValue::Text("decimal_val", text()),
        t::ZONED_TIMESTAMP | t::SCALAR_MAP => EntityValue::Null,
        _ => EntityValue::Str(Cow::Owned(text())),
    })
}

/// Python's `int(value)` where it fits 64 bits.
fn integer(cell: &Cell<'_>) -> Result<i64, String> {
    let out_of_range = |shown: String| format!("Value out of range: {shown}");
    match cell {
        Cell::Int(number) => Ok(*number),
        Cell::UInt(number) => Err(out_of_range(number.to_string())),
        Cell::Bool(value) => Ok(i64::from(*value)),
        Cell::Float(number) if number.is_infinite() => {
            Err("cannot convert float infinity to integer".to_owned())
        }
        Cell::Float(number) => {
            let whole = number.trunc();
            // 2^63 as a float; below it every whole float fits.
            if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&whole) {
                Ok(whole as i64)
            } else {
                Err(out_of_range(format!("{whole:.0}")))
            }
        }
        Cell::Str(text) => match pyint::parse_i64(text) {
            Ok(Ok(number)) => Ok(number),
            Ok(Err(digits)) => Err(out_of_range(digits)),
            Err(pyint::IntError(text)) => Err(text),
        },
        Cell::Decimal(text) => {
            let whole = text.split('.').next().unwrap_or_default();
            whole.parse().map_err(|_| out_of_range(whole.to_owned()))
        }
        other => Err(format!(
            "int() argument must be a string, a bytes-like object or a real number, not '{}'",
            other.python_class()
        )),
    }
}

/// Python's `float(value)`.
fn float(cell: &Cell<'_>) -> Result<f64, String> {
    match cell {
        Cell::Int(number) => Ok(*number as f64),
        Cell::UInt(number) => Ok(*number as f64),
        Cell::Bool(value) => Ok(f64::from(u8::from(*value))),
        Cell::Float(number) => Ok(*number),
        Cell::Str(text) => python_float(text)
            .ok_or_else(|| format!("could not convert string to float: {}", pyrepr::repr(text))),
        Cell::Decimal(text) => {
            text.parse().map_err(|_| format!("could not convert string to float: '{text}'"))
        }
        other => {
            Err(format!("float() argument must be a string or a real number, not '{}'", other.python_class()))
        }
    }
}

/// Python's `float(text)`.
fn python_float(text: &str) -> Option<f64> {
    let trimmed = text.trim();
    let plain = trimmed.trim_start_matches(['+', '-']);
    let lower = plain.to_ascii_lowercase();
    if trimmed.len() - plain.len() > 1 {
        return None;
    }
    if ["inf", "infinity", "nan"].contains(&lower.as_str()) {
        let value = if lower == "nan" { f64::NAN } else { f64::INFINITY };
        return Some(if trimmed.starts_with('-') { -value } else { value });
    }
    // Underscores stand between digits only.
    let bytes = plain.as_bytes();
    let digit = |index: Option<usize>| index.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let fits = |(index, byte): (usize, &u8)| match byte {
        b'_' => digit(index.checked_sub(1)) && digit(index.checked_add(1)),
        b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-' => true,
        _ => false,
    };
    if plain.is_empty() || !bytes.iter().enumerate().all(fits) {
        return None;
    }
    trimmed.replace('_', "").trim_start_matches('+').parse().ok()
}

/// Lists and sets of one scalar type.
pub(super) fn encode_list(
    value_type: u32,
    item: u32,
    unique: bool,
    kind: &Kind,
    cell: &Cell<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let owned;
    let items: &[Cell<'_>] = match cell {
        Cell::List(items) => items,
        cell if cell.is_null() => return Ok(()),
        // A text is taken apart into characters, an object into its keys, as Python iterates them.
        Cell::Str(text) => {
            owned = text.chars().map(|c| Cell::Str(c.to_string().into())).collect::<Vec<_>>();
            &owned
        }
        Cell::Struct(members) => {
            owned = members.iter().map(|(name, _)| Cell::Str(name.clone())).collect::<Vec<_>>();
            &owned
        }
        Cell::Map(_) => return Err(format!("'{}' object is not iterable", kind.numpy_class())),
        _ => return Err(format!("'{}' object is not iterable", kind.numpy_class())),
    };
    let inner = if let Kind::List(inner) = kind { (**inner).clone() } else { Kind::Str };
    let mut body = Vec::new();
    let mut seen: Vec<EntityValue<'static>> = Vec::new();
    let mut known = HashSet::new();
    // A set of a text's characters, or of an object's keys, was never made a set in the reference.
    if unique && matches!(cell, Cell::List(_)) {
        if let Some(item) = items.iter().find(|item| item.is_container()) {
            return Err(format!("unhashable type: '{}'", item.python_class()));
        }
        for cell in items {
            if cell.is_null() {
                return Err(match item {
                    t::STRING | t::UUID | t::TIME_UUID | t::DECIMAL => {
                        "bad argument type for built-in operation"
                    }
                    _ => "'NoneType' object cannot be interpreted as an integer",
                }
                .to_owned());
            }
            // The values of an array, not of a list: their classes are numpy's.
            let value = list_item(item, &inner, cell).map_err(|text| {
                let of_list = format!("<class '{}'> not", class_in_list(&inner, cell));
                text.replace(&of_list, &format!("<class '{}'> not", inner.numpy_class()))
            })?;
            if known.insert(identity(&value)) || is_nan(&value) {
                seen.push(value);
            }
        }
        // Python's sets of small integers are in ascending order; others have none.
        if seen.iter().all(|value| matches!(value, EntityValue::Int32(_) | EntityValue::Int64(_))) {
            seen.sort_by_key(|value| match value {
                EntityValue::Int32(number) => i64::from(*number),
                EntityValue::Int64(number) => *number,
                _ => 0,
            });
        }
    } else {
        // Integers beside nulls are floats in the reference's arrays, which it refuses.
        let wants_int = matches!(item, t::INT32 | t::INT64);
        if wants_int && matches!(inner, Kind::Int(_)) && items.iter().any(Cell::is_null) {
            let first = items.iter().find(|cell| !cell.is_null());
            let shown = first.map_or("nan".to_owned(), |cell| cell.print(true));
            return Err(format!(
                "Value \"{shown}\" is of type <class 'float'> not of type <class 'numpy.int64'>"
            ));
        }
        for cell in items {
            seen.push(list_item(item, &inner, cell)?);
        }
    }
    put_items(&mut body, item, &seen);
    put_bytes(out, value_type, &body);
    Ok(())
}

/// Equal for values that are equal in a set.
fn identity(value: &EntityValue<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        // Zero has two signs.
        EntityValue::Float(number) if *number == 0.0 => put_scalar(&mut out, 1, &EntityValue::Float(0.0)),
        EntityValue::Double(number) if *number == 0.0 => put_scalar(&mut out, 1, &EntityValue::Double(0.0)),
        value => put_scalar(&mut out, 1, value),
    }
    out
}

/// True for what is not equal to itself.
fn is_nan(value: &EntityValue<'_>) -> bool {
    match value {
        EntityValue::Float(number) => number.is_nan(),
        EntityValue::Double(number) => number.is_nan(),
        _ => false,
    }
}

/// The Python class of an item of a list whose items are of `kind`.
fn class_in_list(kind: &Kind, cell: &Cell<'_>) -> &'static str {
    if kind.is_float() && matches!(cell, Cell::Int(_) | Cell::Bool(_)) {
        "float"
    } else {
        cell.python_class()
    }
}

fn list_item(item: u32, kind: &Kind, cell: &Cell<'_>) -> Result<EntityValue<'static>, String> {
    let float_kind = kind.is_float();
    if cell.is_null() {
        return Ok(match item {
            t::INT32 => EntityValue::Int32(0),
            t::INT64 => EntityValue::Int64(0),
            t::FLOAT => EntityValue::Float(if float_kind { f32::NAN } else { 0.0 }),
            t::DOUBLE => EntityValue::Double(if float_kind { f64::NAN } else { 0.0 }),
            t::BOOL => EntityValue::Bool(false),
            t::BYTES => EntityValue::Bytes(Vec::new()),
            t::UNIX_TIMESTAMP => EntityValue::Timestamp(i64::MIN),
            _ => EntityValue::Str("".into()),
        });
    }
    let wrong = |wanted: &str| {
        let class = class_in_list(kind, cell);
        let shown = cell.print(float_kind);
        Err(format!("Value \"{shown}\" is of type <class '{class}'> not of type <class '{wanted}'>"))
    };
    match (item, cell) {
        (t::INT32, Cell::Int(number)) if !float_kind => i32::try_from(*number)
            .map(EntityValue::Int32)
            .map_err(|_| format!("Value out of range: {number}")),
        (t::INT64, Cell::Int(number)) if !float_kind => Ok(EntityValue::Int64(*number)),
        (t::INT32, _) => wrong("numpy.int64"),
        (t::INT64, _) => wrong("numpy.int64"),
        (t::FLOAT, Cell::Float(_) | Cell::Int(_)) if float_kind => {
            Ok(EntityValue::Float(float(cell)? as f32))
        }
        (t::DOUBLE, Cell::Float(_) | Cell::Int(_)) if float_kind => Ok(EntityValue::Double(float(cell)?)),
        (t::FLOAT, _) => wrong("numpy.float32"),
        (t::DOUBLE, _) => wrong("numpy.float64"),
        (t::BOOL, Cell::Bool(value)) => Ok(EntityValue::Bool(*value)),
        (t::BOOL, _) => wrong("numpy.bool"),
        (t::BYTES, Cell::Bytes(bytes)) => Ok(EntityValue::Bytes(bytes.to_vec())),
        (t::BYTES, _) => wrong("numpy.bytes_"),
        (t::UNIX_TIMESTAMP, Cell::Int(number)) if !float_kind => Ok(EntityValue::Timestamp(*number)),
        (t::UNIX_TIMESTAMP, Cell::Time { seconds, .. }) => Ok(EntityValue::Timestamp(*seconds)),
        (t::UNIX_TIMESTAMP, Cell::Date(days)) => Ok(EntityValue::Timestamp(i64::from(*days) * 86_400)),
        (t::UNIX_TIMESTAMP, _) => wrong("numpy.datetime64"),
        (_, Cell::Str(text)) => Ok(EntityValue::Str(text.clone().into_owned().into())),
        (t::DECIMAL, Cell::Decimal(text)) => Ok(EntityValue::Str(text.clone().into())),
        (_, _) => wrong("numpy.str_"),
    }
}

/// Field 1 of a list message: packed numbers, or one field per text.
fn put_items(out: &mut Vec<u8>, item: u32, values: &[EntityValue<'_>]) {
    let mut packed = Vec::new();
    for value in values {
        match value {
            EntityValue::Int32(number) => put_varint(&mut packed, i64::from(*number).cast_unsigned()),
            EntityValue::Int64(number) | EntityValue::Timestamp(number) => {
                put_varint(&mut packed, number.cast_unsigned());
            }
            EntityValue::Float(number) => packed.extend_from_slice(&number.to_le_bytes()),
            EntityValue::Double(number) => packed.extend_from_slice(&number.to_le_bytes()),
            EntityValue::Bool(value) => put_varint(&mut packed, u64::from(*value)),
            EntityValue::Bytes(bytes) => put_bytes(out, 1, bytes),
            EntityValue::Str(text) => put_bytes(out, 1, text.as_bytes()),
            _ => {}
        }
    }
    let numbers = matches!(item, t::INT32..=t::UNIX_TIMESTAMP);
    if numbers && !packed.is_empty() {
        put_bytes(out, 1, &packed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::cell::{infer, FLOAT64, INT64};
    use super::super::document::from_json;
    use super::*;
    use crate::text::pyjson;

    fn stored(value_type: u32, body: &str) -> Result<Vec<String>, String> {
        let Cell::List(cells) = from_json(pyjson::parse(body.as_bytes()).unwrap().value) else { panic!() };
        let kind = infer("v", &cells)?;
        let column = Column { name: "v".into(), kind, cells };
        check(value_type, &column)?;
        column
            .cells
            .iter()
            .map(|cell| {
                let mut out = Vec::new();
                encode(value_type, &column.kind, cell, &mut out)?;
                Ok(out.iter().fold(String::new(), |text, byte| format!("{text}{byte:02X}")))
            })
            .collect()
    }

    #[test]
    fn examples_of_the_reference() {
        for (value_type, body, hex) in [
            (4, "[7]", "2007"),
            (3, "[-1]", "18FFFFFFFFFFFFFFFFFF01"),
            (6, "[0.5]", "350000003F"),
            (5, "[1]", "29000000000000F03F"),
            (2, "[\"n\"]", "12016E"),
            (7, "[true]", "3801"),
            (8, "[1]", "4001"),
            (14, "[[1,2]]", "72040A020102"),
            (12, "[[]]", "6200"),
            (20, "[{\"a\":\"b\"}]", "A2010A0A080A01611203120162"),
            (44, "[\"1.50\"]", "E20204312E3530"),
            (24, "[[3,1,3,2]]", "C201050A03010203"),
            (32, "[{\"a\":\"é\"}]", "82020F7B2261223A20225C7530306539227D"),
        ] {
            assert_eq!(stored(value_type, body), Ok(vec![hex.to_owned()]), "{value_type} {body}");
        }
        assert_eq!(stored(2, "[5, null]").unwrap(), ["1203352E30", ""]);
        assert_eq!(stored(4, "[9007199254740993, null]").unwrap(), ["208180808080808010", ""]);
        assert_eq!(stored(8, "[5, null]").unwrap(), ["4005", ""]);
    }

    #[test]
    fn refusals_of_the_reference() {
        for (value_type, body, text) in [
            (4, "[\"1.5\"]", "invalid literal for int() with base 10: '1.5'"),
            (3, "[2147483648]", "Value out of range: 2147483648"),
            (6, "[\"x\"]", "could not convert string to float: 'x'"),
            (7, "[1.5]", "Type `<class 'numpy.float64'>` not in {<class 'numpy.bool'>, <class 'numpy.int64'>, <class 'bool'>, <class 'int'>}"),
            (1, "[0]", "expected bytes, numpy.int64 found"),
            (14, "[[1,null]]", "Value \"1.0\" is of type <class 'float'> not of type <class 'numpy.int64'>"),
            (15, "[[1]]", "Value \"1\" is of type <class 'int'> not of type <class 'numpy.float64'>"),
            (14, "[5]", "'numpy.int64' object is not iterable"),
            (20, "[[1]]", "Expected dict for MAP type, got ndarray: array([1])"),
            (20, "[\"[1]\"]", "Expected dict for MAP type, got list: [1]"),
            (32, "[\"x\"]", "Invalid JSON string for JSON type: Expecting value: line 1 column 1 (char 0)"),
            (32, "[1]", "Object of type int64 is not JSON serializable"),
            (35, "[[1]]", "MapList can only contain dictionaries, got <class 'numpy.int64'>"),
            (2, "[1,true]", "('Expected integer, got bool', 'Conversion failed for column v with type object')"),
            (2, "[1,\"x\"]", "(\"Could not convert 'x' with type str: tried to convert to int64\", 'Conversion failed for column v with type object')"),
            (2, "[\"x\",1]", "(\"Expected bytes, got a 'int' object\", 'Conversion failed for column v with type object')"),
            (23, "[[\"a\",null]]", "bad argument type for built-in operation"),
        ] {
            assert_eq!(stored(value_type, body), Err(text.to_owned()), "{value_type} {body}");
        }
    }

    #[test]
    fn floats_as_python_reads_them() {
        for (text, value) in [
            (" 1.5 ", 1.5),
            ("1e3", 1000.0),
            ("-inf", f64::NEG_INFINITY),
            ("1_0", 10.0),
            (".5", 0.5),
            ("5.", 5.0),
        ] {
            assert_eq!(python_float(text), Some(value), "{text}");
        }
        for text in ["", "x", "1__0", "_1", "0x10", "1 2", "--1", "e5", "infi"] {
            assert_eq!(python_float(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(value_type in 0_u32..50, text: String) {
            let kind = Kind::Str;
            let _ = encode(value_type, &kind, &Cell::Str(text.into()), &mut Vec::new());
            let _ = encode(value_type, &INT64, &Cell::Int(5), &mut Vec::new());
            let _ = encode(value_type, &FLOAT64, &Cell::Float(0.5), &mut Vec::new());
        }
    }
}
