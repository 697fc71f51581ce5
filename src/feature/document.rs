//! Values that hold others: maps, structs, JSON, lists of lists. Their members are typed by what they are.

use std::borrow::Cow;

use super::cell::{Cell, Kind, FLOAT64, INT64, TOO_LARGE};
use super::encode::{encode_list, put_scalar, types as t};
use super::entity::EntityValue;
use crate::registry::wire::{put_bytes, put_message};
use crate::text::pyjson::{self, Json, JsonError};
use crate::text::{json, pyfmt};

/// Maps, structs and JSON.
pub(super) fn encode_document(
    value_type: u32,
    kind: &Kind,
    cell: &Cell<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    if cell.is_null() && !(matches!(cell, Cell::Float(_))) {
        return Ok(());
    }
    match value_type {
        t::JSON => {
            let text = json_text(kind, cell)?;
            put_bytes(out, t::JSON, text.as_bytes());
        }
        t::JSON_LIST => {
            let taken_apart: Vec<Cell<'_>>;
            let items = match cell {
                Cell::List(items) => items,
                // As Python iterates them.
                Cell::Str(text) => {
                    taken_apart = text.chars().map(|c| Cell::Str(c.to_string().into())).collect();
                    &taken_apart
                }
                Cell::Struct(members) => {
                    taken_apart = members.iter().map(|(name, _)| Cell::Str(name.clone())).collect();
                    &taken_apart
                }
                _ => return Err(format!("'{}' object is not iterable", kind.numpy_class())),
            };
            let mut body = Vec::new();
            let inner = if let Kind::List(inner) = kind { (**inner).clone() } else { Kind::Str };
            for item in items {
                let text = match item {
                    Cell::Null if !inner.is_float() => "null".to_owned(),
                    Cell::Str(text) => match parse_document(text) {
                        Ok(_) => text.clone().into_owned(),
                        Err(problem) => return Err(format!("Invalid JSON string in JSON_LIST: {problem}")),
                    },
                    _ => json_text(&inner, item)?,
                };
                put_bytes(&mut body, 1, text.as_bytes());
            }
            put_bytes(out, t::JSON_LIST, &body);
        }
        t::MAP | t::STRUCT => {
            let mut body = Vec::new();
            put_map_of(value_type, kind, cell, &mut body)?;
            put_bytes(out, value_type, &body);
        }
        _ => {
            let mut body = Vec::new();
            put_map_list_of(value_type, kind, cell, &mut body)?;
            put_bytes(out, value_type, &body);
        }
    }
    Ok(())
}

/// The text of a Json feature.
fn json_text(kind: &Kind, cell: &Cell<'_>) -> Result<String, String> {
    match cell {
        Cell::Str(text) => match parse_document(text) {
            Ok(_) => Ok(text.clone().into_owned()),
            Err(problem) => Err(format!("Invalid JSON string for JSON type: {problem}")),
        },
        Cell::Struct(_) => {
            let mut out = Vec::new();
            write_json(&mut out, cell);
            Ok(String::from_utf8_lossy(&out).into_owned())
        }
        Cell::Float(_) | Cell::Int(_) | Cell::Bool(_) | Cell::Null if kind.is_float() => {
            let mut out = Vec::new();
            match cell {
                Cell::Int(number) => pyfmt::write_f64(&mut out, *number as f64),
                Cell::Bool(value) => pyfmt::write_f64(&mut out, f64::from(u8::from(*value))),
                Cell::Float(number) => write_json_float(&mut out, *number),
                _ => out.extend_from_slice(b"NaN"),
            }
            Ok(String::from_utf8_lossy(&out).into_owned())
        }
        Cell::Bool(value) if *kind == Kind::BoolNull => Ok(value.to_string()),
        _ => {
            let class = kind.numpy_class().trim_start_matches("numpy.");
            Err(format!("Object of type {class} is not JSON serializable"))
        }
    }
}

fn write_json_float(out: &mut Vec<u8>, number: f64) {
    if number.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if number.is_infinite() {
        out.extend_from_slice(if number < 0.0 { b"-Infinity" } else { b"Infinity" });
    } else {
        pyfmt::write_f64(out, number);
    }
}

/// `json.dumps`: `", "` and `": "`, and nothing beyond ASCII.
fn write_json(out: &mut Vec<u8>, cell: &Cell<'_>) {
    match cell {
        Cell::Null => out.extend_from_slice(b"null"),
        Cell::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Cell::Float(number) => write_json_float(out, *number),
        Cell::Str(text) => json::write_str_ascii(out, text),
        Cell::List(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.extend_from_slice(b", ");
                }
                write_json(out, item);
            }
            out.push(b']');
        }
        Cell::Struct(members) => {
            out.push(b'{');
            for (index, (name, item)) in members.iter().enumerate() {
                if index > 0 {
                    out.extend_from_slice(b", ");
                }
                json::write_str_ascii(out, name);
                out.extend_from_slice(b": ");
                write_json(out, item);
            }
            out.push(b'}');
        }
        Cell::Int(_) | Cell::UInt(_) => out.extend_from_slice(cell.print(false).as_bytes()),
        other => json::write_str_ascii(out, &other.print(false)),
    }
}

/// A text that holds JSON; the error in the words of Python's decoder.
fn parse_document(text: &str) -> Result<Cell<'static>, String> {
    match pyjson::parse(text.as_bytes()) {
        Ok(parsed) => Ok(from_json(parsed.value)),
        Err(JsonError::Syntax(problem, at)) => {
            let before: String = text.chars().take(at).collect();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
            Err(format!("{problem}: line {line} column {column} (char {at})"))
        }
        Err(JsonError::Unreadable) => Err("maximum recursion depth exceeded".to_owned()),
    }
}

/// A JSON value as a cell.
pub fn from_json(value: Json<'_>) -> Cell<'_> {
    match value {
        Json::Null => Cell::Null,
        Json::Bool(value) => Cell::Bool(value),
        Json::Int(number) => Cell::Int(number),
        Json::Big(digits) => digits.parse().map_or(Cell::Decimal(digits), Cell::UInt),
        Json::Float(number) => Cell::Float(number),
        Json::Str(text) => Cell::Str(text),
        Json::List(items) => Cell::List(items.into_iter().map(from_json).collect()),
        Json::Object(members) => {
            Cell::Struct(members.into_iter().map(|(name, value)| (name, from_json(value))).collect())
        }
    }
}

/// True when a number somewhere in the value fits no machine integer.
pub fn holds_huge(cell: &Cell<'_>) -> bool {
    match cell {
        Cell::Decimal(_) => true,
        Cell::List(items) => items.iter().any(holds_huge),
        Cell::Struct(members) => members.iter().any(|(_, cell)| holds_huge(cell)),
        _ => false,
    }
}

fn put_map_of(value_type: u32, kind: &Kind, cell: &Cell<'_>, out: &mut Vec<u8>) -> Result<(), String> {
    match cell {
        Cell::Struct(members) => put_members(out, members),
        Cell::Str(text) => match parse_document(text)? {
            Cell::Struct(members) => put_members(out, &members),
            other if value_type == t::STRUCT => put_printed(out, &python_text(&other)),
            other => Err(format!(
                "Expected dict for MAP type, got {}: {}",
                python_type(&other),
                python_repr(&other)
            )),
        },
        Cell::List(_) if value_type == t::STRUCT => put_printed(out, &numpy_text(kind, cell)),
        other if value_type == t::STRUCT => put_printed(out, &other.print(kind.is_float())),
        other => {
            let class = kind.numpy_class().trim_start_matches("numpy.");
            Err(format!("Expected dict for MAP type, got {class}: {}", numpy_repr(kind, other)))
        }
    }
}

/// What is no object becomes one with a single member.
fn put_printed(out: &mut Vec<u8>, text: &str) -> Result<(), String> {
    put_members(out, &[("_value".into(), Cell::Str(text.to_owned().into()))])
}

fn put_map_list_of(value_type: u32, kind: &Kind, cell: &Cell<'_>, out: &mut Vec<u8>) -> Result<(), String> {
    let parsed;
    let items = match cell {
        Cell::List(items) if value_type == t::STRUCT_LIST => items,
        Cell::Str(text) => {
            parsed = parse_document(text)?;
            match &parsed {
                Cell::List(items) => items,
                other => {
                    return Err(format!(
                        "Expected list for MAP_LIST type, got {}: {}",
                        python_type(other),
                        python_repr(other)
                    ));
                }
            }
        }
        other if value_type == t::STRUCT_LIST && !matches!(other, Cell::Struct(_)) => {
            return Err(format!("'{}' object is not iterable", kind.numpy_class()));
        }
        Cell::Struct(_) if value_type == t::STRUCT_LIST => {
            return Err("MapList can only contain dictionaries, got <class 'str'>".to_owned());
        }
        other => {
            let class = kind.numpy_class().trim_start_matches("numpy.");
            return Err(format!("Expected list for MAP_LIST type, got {class}: {}", numpy_repr(kind, other)));
        }
    };
    for item in items {
        let class = match kind {
            Kind::List(inner) => inner.numpy_class(),
            _ => python_type(item),
        };
        match item {
            Cell::Struct(members) => {
                let mut body = Vec::new();
                put_members(&mut body, members)?;
                put_bytes(out, 1, &body);
            }
            Cell::Null => {
                return Err("MapList can only contain dictionaries, got <class 'NoneType'>".to_owned())
            }
            _ => return Err(format!("MapList can only contain dictionaries, got <class '{class}'>")),
        }
    }
    Ok(())
}

fn python_type(cell: &Cell<'_>) -> &'static str {
    match cell {
        Cell::List(_) => "list",
        other => other.python_class(),
    }
}

/// `str` as plain Python shows it.
fn python_text(cell: &Cell<'_>) -> String {
    match cell {
        Cell::Str(text) => text.clone().into_owned(),
        other => python_repr(other),
    }
}

/// `repr` as plain Python shows it: lists with commas.
fn python_repr(cell: &Cell<'_>) -> String {
    match cell {
        Cell::List(items) => {
            let items: Vec<String> = items.iter().map(python_repr).collect();
            format!("[{}]", items.join(", "))
        }
        Cell::Struct(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, cell)| format!("{}: {}", crate::text::pyrepr::repr(name), python_repr(cell)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
        other => other.repr(),
    }
}

/// The items of an array as numpy shows them: numbers aligned, whole floats with a point.
fn numpy_items(kind: &Kind, items: &[Cell<'_>]) -> Vec<String> {
    let right = |texts: Vec<String>, least: usize| -> Vec<String> {
        let width = texts.iter().map(String::len).max().unwrap_or(0).max(least);
        texts.into_iter().map(|text| format!("{text:>width$}")).collect()
    };
    match kind {
        Kind::Bool => right(items.iter().map(|item| item.print(false)).collect(), 5),
        Kind::Int(_) => right(items.iter().map(|item| item.print(false)).collect(), 0),
        Kind::IntNull | Kind::Float(_) => {
            let texts: Vec<String> = items
                .iter()
                .map(|item| {
                    let text = item.print(true);
                    text.strip_suffix(".0").map_or_else(|| text.clone(), |whole| format!("{whole}."))
                })
                .collect();
            let fraction = |text: &str| text.split_once('.').map_or(0, |(_, digits)| digits.len());
            let most = texts.iter().map(|text| fraction(text)).max().unwrap_or(0);
            let aligned = texts.into_iter().map(|text| {
                let missing = if text.contains('.') { most - fraction(&text) } else { 0 };
                format!("{text}{}", " ".repeat(missing))
            });
            right(aligned.collect(), 0)
        }
        Kind::List(inner) => items.iter().map(|item| numpy_repr(&Kind::List(inner.clone()), item)).collect(),
        _ => items.iter().map(python_repr).collect(),
    }
}

/// `str` of an array.
fn numpy_text(kind: &Kind, cell: &Cell<'_>) -> String {
    match (kind, cell) {
        (Kind::List(inner), Cell::List(items)) => format!("[{}]", numpy_items(inner, items).join(" ")),
        _ => cell.print(false),
    }
}

/// `repr` as numpy shows it.
fn numpy_repr(kind: &Kind, cell: &Cell<'_>) -> String {
    match (kind, cell) {
        (Kind::List(inner), Cell::List(items)) => {
            let object = !matches!(**inner, Kind::Int(_) | Kind::IntNull | Kind::Float(_) | Kind::Bool);
            let items = numpy_items(inner, items).join(", ");
            format!("array([{items}]{})", if object { ", dtype=object" } else { "" })
        }
        (Kind::IntNull, cell) => format!("np.float64({})", cell.print(true)),
        (Kind::Int(name) | Kind::Float(name), cell) => {
            format!("np.{}({})", name.trim_start_matches("numpy."), cell.repr())
        }
        (Kind::Bool, cell) => format!("np.{}_", cell.repr()),
        (Kind::Struct, Cell::Struct(members)) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, cell)| {
                    let kind = super::cell::infer(name, std::slice::from_ref(cell)).unwrap_or(Kind::Str);
                    let shown = match &kind {
                        Kind::List(_) => numpy_repr(&kind, cell),
                        _ => python_repr(cell),
                    };
                    format!("{}: {shown}", crate::text::pyrepr::repr(name))
                })
                .collect();
            format!("{{{}}}", members.join(", "))
        }
        (_, cell) => python_repr(cell),
    }
}

/// The entries of a map message; values are typed by what they are.
fn put_members(out: &mut Vec<u8>, members: &[(Cow<'_, str>, Cell<'_>)]) -> Result<(), String> {
    for (name, cell) in members {
        let mut value = Vec::new();
        put_inferred(&mut value, cell)?;
        put_message(out, 1, |out| {
            put_bytes(out, 1, name.as_bytes());
            put_bytes(out, 2, &value);
        });
    }
    Ok(())
}

/// A value inside a map.
fn put_inferred(out: &mut Vec<u8>, cell: &Cell<'_>) -> Result<(), String> {
    match cell {
        Cell::Null => {}
        Cell::Bool(value) => put_scalar(out, t::BOOL, &EntityValue::Bool(*value)),
        Cell::Int(number) => put_scalar(out, t::INT64, &EntityValue::Int64(*number)),
        Cell::UInt(number) => return Err(format!("Value out of range: {number}")),
        Cell::Float(number) => put_scalar(out, t::DOUBLE, &EntityValue::Double(*number)),
        Cell::Str(text) => put_bytes(out, t::STRING, text.as_bytes()),
        Cell::Bytes(bytes) => put_bytes(out, t::BYTES, bytes),
        Cell::Time { seconds, .. } => put_scalar(out, t::UNIX_TIMESTAMP, &EntityValue::Timestamp(*seconds)),
        Cell::Date(days) => {
            put_scalar(out, t::UNIX_TIMESTAMP, &EntityValue::Timestamp(i64::from(*days) * 86_400));
        }
        Cell::Decimal(_) => return Err(TOO_LARGE.to_owned()),
        Cell::Struct(members) => {
            let mut body = Vec::new();
            put_members(&mut body, members)?;
            put_bytes(out, t::MAP, &body);
        }
        Cell::Map(_) => return Err("Expected dict for MAP type, got list".to_owned()),
        Cell::List(items) => {
            let Some(first) = items.iter().find(|item| !item.is_null()) else {
                return Err("Couldn't infer value type from empty value".to_owned());
            };
            let floats = items.iter().any(|item| matches!(item, Cell::Float(_)));
            let (number, kind) = match first {
                Cell::Bool(_) => (17, Kind::Bool),
                Cell::Int(_) if floats => (15, FLOAT64),
                Cell::Int(_) => (14, INT64),
                Cell::Float(_) => (15, FLOAT64),
                Cell::Str(_) => (12, Kind::Str),
                Cell::Bytes(_) => (11, Kind::Bytes),
                Cell::Time { .. } => (18, Kind::Time),
                other => {
                    let shown = python_repr(other);
                    return Err(format!(
                        "Expected list for MAP_LIST type, got ndarray: array([{shown}], dtype=object)"
                    ));
                }
            };
            encode_list(number, number - 10, false, &Kind::List(Box::new(kind)), cell, out)?;
        }
    }
    Ok(())
}

/// Lists of lists: each inner list is a value of its own.
pub(super) fn encode_nested(value_type: u32, cell: &Cell<'_>, out: &mut Vec<u8>) -> Result<(), String> {
    let Cell::List(items) = cell else {
        return if cell.is_null() {
            Ok(())
        } else {
            Err(format!("'{}' object is not iterable", cell.python_class()))
        };
    };
    let mut body = Vec::new();
    for item in items {
        let mut value = Vec::new();
        match item {
            Cell::List(inner) if inner.iter().any(|cell| !cell.is_null()) => put_inferred(&mut value, item)?,
            Cell::List(_) | Cell::Null => {}
            Cell::Str(text) => put_inferred(&mut value, &Cell::List(vec![Cell::Str(text.clone())]))?,
            other => return Err(format!("'numpy.{}64' object is not iterable", other.python_class())),
        }
        put_bytes(&mut body, 1, &value);
    }
    put_bytes(out, value_type, &body);
    Ok(())
}
