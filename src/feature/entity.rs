//! Entity values: what a JSON value becomes as a key column, and how that is echoed.
//!
//! The rules are those of the reference's conversion (`docs/compatibility.md` names none that differ): a
//! declared type converts by its own rules; without one the first value that is not empty decides.

use std::borrow::Cow;
use std::fmt::Write;

use super::types::KeyType;
use crate::text::pyint;
use crate::text::pyjson::{self, Json, JsonError};
use crate::text::{json, pyfmt, pyrepr};

/// One converted value.
#[derive(Debug, Clone, PartialEq)]
pub enum EntityValue<'a> {
    /// Nothing set.
    Null,
    /// `int32_val`
    Int32(i32),
    /// `int64_val`
    Int64(i64),
    /// `unix_timestamp_val`, seconds.
    Timestamp(i64),
    /// `string_val`
    Str(Cow<'a, str>),
    /// `bytes_val`; no JSON value becomes one, keys of stored rows do.
    Bytes(Vec<u8>),
    /// `double_val`
    Double(f64),
    /// `float_val`
    Float(f32),
    /// `bool_val`
    Bool(bool),
    /// A text kept in the named member: `uuid_val`, `time_uuid_val`, `decimal_val`.
    Text(&'static str, String),
    /// A list of one kind: member name, items.
    List(&'static str, Vec<EntityValue<'a>>),
    /// `map_val`
    Map(Vec<(String, EntityValue<'a>)>),
}

/// A timestamp that stands for "no time".
const NOT_A_TIME: i64 = i64::MIN;

impl EntityValue<'_> {
    /// Appends the value as the response echoes it.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Int32(value) => pyfmt::write_i64(out, i64::from(*value)),
            Self::Int64(value) | Self::Timestamp(value) => pyfmt::write_i64(out, *value),
            Self::Str(text) => json::write_str(out, text),
            Self::Text(_, text) => json::write_str(out, text),
            Self::Bytes(_) => out.extend_from_slice(b"null"),
            Self::Double(value) => pyfmt::write_json_f64(out, *value),
            Self::Float(value) => pyfmt::write_json_f64(out, f64::from(*value)),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::List(_, items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write_json(out);
                }
                out.push(b']');
            }
            Self::Map(entries) => {
                out.push(b'{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    json::write_str(out, key);
                    out.push(b':');
                    value.write_json(out);
                }
                out.push(b'}');
            }
        }
    }

    /// The value in protobuf's text form, as the reference shows a value that cannot be a key.
    pub fn proto_text(&self) -> String {
        let mut out = String::new();
        self.write_proto_text(&mut out, 0);
        out
    }

    /// Python's `<` for values that can be compared; false for all others.
    pub fn is_less_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Double(a), Self::Double(b)) => a < b,
            (Self::Float(a), Self::Float(b)) => a < b,
            (Self::Bool(a), Self::Bool(b)) => !a & b,
            (Self::Text(_, a), Self::Text(_, b)) => a < b,
            _ => false,
        }
    }

    fn write_proto_text(&self, out: &mut String, indent: usize) {
        let (member, text) = match self {
            Self::Null | Self::Bytes(_) => return,
            Self::List(member, items) => {
                return block(out, indent, member, |out| {
                    items.iter().for_each(|item| item.write_item_text(out, indent + 2));
                });
            }
            Self::Map(entries) => {
                return block(out, indent, "map_val", |out| write_entries_text(out, indent + 2, entries));
            }
            Self::Int32(value) => ("int32_val", value.to_string()),
            Self::Int64(value) => ("int64_val", value.to_string()),
            Self::Timestamp(value) => ("unix_timestamp_val", value.to_string()),
            Self::Double(value) => ("double_val", number_text(*value)),
            Self::Float(value) => ("float_val", number_text(f64::from(*value))),
            Self::Bool(value) => ("bool_val", value.to_string()),
            Self::Str(text) => ("string_val", format!("\"{}\"", c_escape(text))),
            Self::Text(member, text) => (*member, format!("\"{}\"", c_escape(text))),
        };
        let _ = writeln!(out, "{:indent$}{member}: {text}", "");
    }

    /// An item of a list: the bare value, without the member it would have alone.
    fn write_item_text(&self, out: &mut String, indent: usize) {
        if let Self::Map(entries) = self {
            return block(out, indent, "val", |out| write_entries_text(out, indent + 2, entries));
        }
        let shown = self.proto_text();
        let bare = shown.split_once(": ").map_or(shown.as_str(), |(_, value)| value);
        let _ = writeln!(out, "{:indent$}val: {}", "", bare.trim_end());
    }
}

/// `name {`, what `fill` writes, `}`.
fn block(out: &mut String, indent: usize, name: &str, fill: impl FnOnce(&mut String)) {
    let _ = writeln!(out, "{:indent$}{name} {{", "");
    fill(out);
    let _ = writeln!(out, "{:indent$}}}", "");
}

fn write_entries_text(out: &mut String, indent: usize, entries: &[(String, EntityValue<'_>)]) {
    for (key, value) in entries {
        block(out, indent, "val", |out| {
            let inner = indent + 2;
            let _ = writeln!(out, "{:inner$}key: \"{}\"", "", c_escape(key));
            block(out, inner, "value", |out| value.write_proto_text(out, inner + 2));
        });
    }
}

/// A double in protobuf's text form: C's `%.15g`, or `%.17g` where that would read back as another number.
fn number_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let short = general(value, 15);
    if short.parse() == Ok(value) {
        short
    } else {
        general(value, 17)
    }
}

/// C's `%.{digits}g`.
fn general(value: f64, digits: usize) -> String {
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), exponent.abs());
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    trim(&format!("{value:.decimals$}"))
}

fn c_escape(text: &str) -> String {
    let mut out = String::new();
    for &byte in text.as_bytes() {
        let _ = match byte {
            b'\n' => write!(out, "\\n"),
            b'\r' => write!(out, "\\r"),
            b'\t' => write!(out, "\\t"),
            b'"' | b'\'' | b'\\' => write!(out, "\\{}", char::from(byte)),
            0x20..=0x7e => write!(out, "{}", char::from(byte)),
            _ => write!(out, "\\{byte:03o}"),
        };
    }
    out
}

/// Converts a column of a request to `declared` and appends the results to `out`. The error is the text of
/// the reference's 500.
pub fn convert<'a>(
    column: &[Json<'a>],
    declared: KeyType,
    out: &mut Vec<EntityValue<'a>>,
) -> Result<(), String> {
    if declared == KeyType::Inferred {
        return infer(column, out);
    }
    let sample = column.iter().find(|value| !counts_as_null(value));
    let Some(sample) = sample else {
        out.extend(column.iter().map(|_| EntityValue::Null));
        return Ok(());
    };
    check_sample(sample, declared)?;
    for value in column {
        out.push(scalar(value, declared)?);
    }
    Ok(())
}

/// Lists and objects, like null and NaN, are no value for a scalar type.
fn counts_as_null(value: &Json<'_>) -> bool {
    matches!(value, Json::Null | Json::List(_) | Json::Object(_))
}

fn class_error(value: &Json<'_>, classes: &str) -> String {
    format!("Type `<class '{}'>` not in {{{classes}}}", value.python_type())
}

/// Some types look at the class of the first value only.
fn check_sample(sample: &Json<'_>, declared: KeyType) -> Result<(), String> {
    const NUMBERS: &str = "<class 'float'>, <class 'numpy.float64'>, <class 'int'>, \
                           <class 'numpy.int64'>, <class 'decimal.Decimal'>";
    let is_str = matches!(sample, Json::Str(_));
    let is_int = matches!(sample, Json::Int(_) | Json::Big(_));
    let is_bool = matches!(sample, Json::Bool(_));
    let (fits, classes) = match declared {
        KeyType::Bytes => (false, "<class 'bytes'>"),
        KeyType::Uuid | KeyType::TimeUuid => (is_str, "<class 'uuid.UUID'>, <class 'str'>"),
        KeyType::Decimal => (is_str, "<class 'decimal.Decimal'>, <class 'str'>"),
        KeyType::Double => (is_int || matches!(sample, Json::Float(_)), NUMBERS),
        KeyType::Bool => {
            (is_bool || is_int, "<class 'numpy.bool'>, <class 'numpy.int64'>, <class 'bool'>, <class 'int'>")
        }
        _ => return Ok(()),
    };
    // A sample that equals zero is only asked whether it is a number at all.
    match sample {
        Json::Int(0) => Ok(()),
        Json::Float(zero) if *zero == 0.0 => Ok(()),
        Json::Bool(false) if declared != KeyType::Bool => Err(class_error(sample, NUMBERS)),
        _ if fits => Ok(()),
        _ => Err(class_error(sample, classes)),
    }
}

fn scalar<'a>(value: &Json<'a>, declared: KeyType) -> Result<EntityValue<'a>, String> {
    if counts_as_null(value) {
        return Ok(EntityValue::Null);
    }
    let is_nan = matches!(value, Json::Float(number) if number.is_nan());
    Ok(match declared {
        KeyType::Int64 if is_nan => EntityValue::Null,
        KeyType::Int32 if is_nan => EntityValue::Null,
        KeyType::Str | KeyType::Double | KeyType::Float if is_nan => EntityValue::Null,
        KeyType::Int64 => EntityValue::Int64(integer(value)?),
        KeyType::Int32 => {
            let number = integer(value)?;
            EntityValue::Int32(number.try_into().map_err(|_| out_of_range(&number.to_string()))?)
        }
        KeyType::Timestamp => EntityValue::Timestamp(match value {
            Json::Float(_) => NOT_A_TIME,
            _ => integer(value)?,
        }),
        KeyType::Str => EntityValue::Str(match value {
            Json::Str(text) => text.clone(),
            other => Cow::Owned(python_str(other)),
        }),
        KeyType::Bytes => return Err(format!("expected bytes, {} found", value.python_type())),
        KeyType::Double => EntityValue::Double(real(value)?),
        KeyType::Float => EntityValue::Float(match value {
            Json::Str(text) => text
                .trim()
                .parse()
                .map_err(|_| format!("could not convert string to float: {}", pyrepr::repr(text)))?,
            _ => real(value)? as f32,
        }),
        KeyType::Bool => EntityValue::Bool(truth(value)?),
        KeyType::Uuid => EntityValue::Text("uuid_val", python_str(value)),
        KeyType::TimeUuid => EntityValue::Text("time_uuid_val", python_str(value)),
        KeyType::Decimal => EntityValue::Text("decimal_val", python_str(value)),
        KeyType::Inferred => EntityValue::Null,
    })
}

fn out_of_range(number: &str) -> String {
    format!("Value out of range: {number}")
}

/// Python's `int(value)`, which must fit 64 bits.
fn integer(value: &Json<'_>) -> Result<i64, String> {
    match value {
        Json::Int(number) => Ok(*number),
        Json::Bool(flag) => Ok(i64::from(*flag)),
        Json::Big(digits) => Err(out_of_range(digits)),
        Json::Float(number) if number.is_infinite() => {
            Err("cannot convert float infinity to integer".to_owned())
        }
        Json::Float(number) => {
            let whole = number.trunc();
            // 2^63 is exactly representable; everything below it in size fits.
            if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&whole) {
                Ok(whole as i64)
            } else {
                Err(out_of_range(&format!("{whole:.0}")))
            }
        }
        Json::Str(text) => match pyint::parse_i64(text) {
            Ok(Ok(number)) => Ok(number),
            Ok(Err(digits)) => Err(out_of_range(&digits)),
            Err(error) => Err(error.0),
        },
        other => Err(format!(
            "int() argument must be a string, a bytes-like object or a real number, not '{}'",
            other.python_type()
        )),
    }
}

/// What protobuf accepts for a double.
fn real(value: &Json<'_>) -> Result<f64, String> {
    match value {
        Json::Float(number) => Ok(*number),
        Json::Int(number) => Ok(*number as f64),
        Json::Big(digits) => digits
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite())
            .ok_or_else(|| "int too large to convert to float".to_owned()),
        Json::Bool(flag) => Ok(f64::from(u8::from(*flag))),
        other => Err(format!("must be real number, not {}", other.python_type())),
    }
}

/// What protobuf accepts for a bool.
fn truth(value: &Json<'_>) -> Result<bool, String> {
    match value {
        Json::Bool(flag) => Ok(*flag),
        Json::Int(number) => Ok(*number != 0),
        Json::Big(_) => Err("Python int too large to convert to C long".to_owned()),
        other => Err(not_an_integer(other)),
    }
}

fn not_an_integer(value: &Json<'_>) -> String {
    format!("'{}' object cannot be interpreted as an integer", value.python_type())
}

/// Python's `str(value)`.
fn python_str(value: &Json<'_>) -> String {
    match value {
        Json::Str(text) => text.clone().into_owned(),
        other => python_repr(other),
    }
}

/// Python's `repr(value)`.
fn python_repr(value: &Json<'_>) -> String {
    match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Int(number) => number.to_string(),
        Json::Big(digits) => digits.clone(),
        Json::Float(number) => {
            let mut out = Vec::new();
            pyfmt::write_f64(&mut out, *number);
            String::from_utf8_lossy(&out).into_owned()
        }
        Json::Str(text) => pyrepr::repr(text),
        Json::List(items) => {
            let items: Vec<String> = items.iter().map(python_repr).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(key, value)| format!("{}: {}", pyrepr::repr(key), python_repr(value)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
    }
}

const EMPTY: &str = "Couldn't infer value type from empty value";
/// Protobuf name of a list of maps.
const MAP_LIST: &str = "map_list_val";

fn infer<'a>(column: &[Json<'a>], out: &mut Vec<EntityValue<'a>>) -> Result<(), String> {
    if column.iter().all(|value| *value == Json::Null) {
        out.extend(column.iter().map(|_| EntityValue::Null));
        return Ok(());
    }
    let is_empty = |value: &&Json<'_>| match value {
        Json::Null => true,
        Json::List(items) => items.is_empty(),
        Json::Object(members) => members.is_empty(),
        _ => false,
    };
    let sample = column.iter().find(|value| !is_empty(value)).ok_or(EMPTY)?;
    let inferred = Inferred::of(sample)?;
    for value in column {
        out.push(inferred.convert(value)?);
    }
    Ok(())
}

/// The type that a sample stands for.
#[derive(Clone, Copy)]
enum Inferred {
    Scalar(KeyType),
    Map,
    MapList,
    List(Element),
}

/// The common type of a list's items.
#[derive(Clone, Copy, PartialEq)]
enum Element {
    Int64,
    Double,
    Str,
    Bool,
    Map,
}

impl Element {
    fn of(item: &Json<'_>) -> Result<Self, String> {
        Ok(match item {
            Json::Int(_) | Json::Big(_) => Self::Int64,
            Json::Float(_) => Self::Double,
            Json::Str(_) => Self::Str,
            Json::Bool(_) => Self::Bool,
            Json::Object(_) => Self::Map,
            Json::Null => {
                return Err(
                    "Value with native type nonetype cannot be converted into Feast value type".to_owned()
                )
            }
            Json::List(_) => {
                return Err("Value type for field  is <class 'list'> but recursion is not allowed. Nested \
                            collection types cannot be inferred automatically; use an explicit Field dtype \
                            instead (e.g., dtype=Array(Array(Int32)))."
                    .to_owned())
            }
        })
    }

    fn value_type(self) -> &'static str {
        match self {
            Self::Int64 => "INT64",
            Self::Double => "DOUBLE",
            Self::Str => "STRING",
            Self::Bool => "BOOL",
            Self::Map => "MAP",
        }
    }

    fn member(self) -> &'static str {
        match self {
            Self::Int64 => "int64_list_val",
            Self::Double => "double_list_val",
            Self::Str => "string_list_val",
            Self::Bool => "bool_list_val",
            Self::Map => MAP_LIST,
        }
    }

    fn convert<'a>(self, item: &Json<'a>) -> Result<EntityValue<'a>, String> {
        let is_null = *item == Json::Null;
        Ok(match self {
            Self::Int64 if is_null => EntityValue::Int64(0),
            Self::Double if is_null => EntityValue::Double(0.0),
            Self::Str if is_null => EntityValue::Str(Cow::Borrowed("")),
            Self::Int64 => EntityValue::Int64(match item {
                Json::Int(number) => *number,
                Json::Bool(_) => {
                    let text = "Field feast.types.Int64List.val: Expected an int, got a boolean.";
                    return Err(text.to_owned());
                }
                Json::Big(digits) => return Err(out_of_range(digits)),
                other => return Err(not_an_integer(other)),
            }),
            Self::Double => EntityValue::Double(real(item)?),
            Self::Bool => EntityValue::Bool(is_truthy(item)),
            Self::Str => match item {
                Json::Str(text) => EntityValue::Str(text.clone()),
                _ => return Err("bad argument type for built-in operation".to_owned()),
            },
            Self::Map => map(item)?,
        })
    }
}

impl Inferred {
    fn of(sample: &Json<'_>) -> Result<Self, String> {
        let Json::List(items) = sample else {
            return Ok(match Element::of(sample)? {
                Element::Int64 => Self::Scalar(KeyType::Int64),
                Element::Double => Self::Scalar(KeyType::Double),
                Element::Str => Self::Scalar(KeyType::Str),
                Element::Bool => Self::Scalar(KeyType::Bool),
                Element::Map => Self::Map,
            });
        };
        if matches!(items.first(), Some(Json::Object(_))) {
            return Ok(Self::MapList);
        }
        let mut common: Option<Element> = None;
        for item in items {
            let found = Element::of(item)?;
            match common {
                Some(before) if before != found => {
                    return Err(format!(
                        "List value type for field  is inconsistent. ValueType.{} different from ValueType.{}.",
                        before.value_type(),
                        found.value_type()
                    ));
                }
                _ => common = Some(found),
            }
        }
        common.map(Self::List).ok_or_else(|| EMPTY.to_owned())
    }

    fn convert<'a>(self, value: &Json<'a>) -> Result<EntityValue<'a>, String> {
        match (self, value) {
            (_, Json::Null) => Ok(EntityValue::Null),
            (Self::Scalar(kind), value) => scalar(value, kind),
            (Self::Map, value) => map(value),
            (Self::MapList, value) => map_list(value),
            (Self::List(element), value) => {
                let items: Result<_, _> = match value {
                    Json::List(items) => items.iter().map(|item| element.convert(item)).collect(),
                    // Whatever Python can iterate over is a list to it: a text's characters, an object's keys.
                    Json::Str(text) => {
                        text.chars().map(|c| element.convert(&Json::Str(c.to_string().into()))).collect()
                    }
                    Json::Object(members) => {
                        members.iter().map(|(key, _)| element.convert(&Json::Str(key.clone()))).collect()
                    }
                    other if element == Element::Bool => {
                        return Err(format!("'{}' object is not iterable", other.python_type()))
                    }
                    _ => return Err("must assign iterable".to_owned()),
                };
                Ok(EntityValue::List(element.member(), items?))
            }
        }
    }
}

/// A map: an object, or the text of one.
fn map<'a>(value: &Json<'a>) -> Result<EntityValue<'a>, String> {
    let members = match value {
        Json::Null => return Ok(EntityValue::Null),
        Json::Object(members) => members,
        Json::Str(text) => {
            return match json_text(text)? {
                object @ Json::Object(_) => map(&object),
                other => Err(not_a_dict(&other)),
            };
        }
        other => return Err(not_a_dict(other)),
    };
    let mut entries = Vec::with_capacity(members.len());
    for (key, value) in members {
        let converted = match value {
            Json::Null => EntityValue::Null,
            Json::Object(_) => map(value)?,
            Json::List(items) if items.is_empty() => return Err(EMPTY.to_owned()),
            value => Inferred::of(value)?.convert(value)?,
        };
        entries.push((key.clone().into_owned(), converted));
    }
    Ok(EntityValue::Map(entries))
}

/// A list of maps, or the text of one.
fn map_list<'a>(value: &Json<'a>) -> Result<EntityValue<'a>, String> {
    let items = match value {
        Json::List(items) => items,
        Json::Str(text) => {
            return match json_text(text)? {
                list @ Json::List(_) => map_list(&list),
                other => Err(not_a_list(&other)),
            };
        }
        other => return Err(not_a_list(other)),
    };
    let maps: Result<_, String> = items
        .iter()
        .map(|item| match item {
            Json::Object(_) => map(item),
            other => {
                Err(format!("MapList can only contain dictionaries, got <class '{}'>", other.python_type()))
            }
        })
        .collect();
    Ok(EntityValue::List(MAP_LIST, maps?))
}

/// What `json.loads(text)` makes of a text.
fn json_text(text: &str) -> Result<Json<'static>, String> {
    let parsed = pyjson::parse(text.as_bytes()).map_err(|error| decode_error(text, &error))?;
    Ok(parsed.value)
}

fn not_a_list(value: &Json<'_>) -> String {
    format!("Expected list for MAP_LIST type, got {}: {}", value.python_type(), python_str(value))
}

/// What Python's `bool()` says of a value.
fn is_truthy(value: &Json<'_>) -> bool {
    match value {
        Json::Null => false,
        Json::Bool(flag) => *flag,
        Json::Int(number) => *number != 0,
        Json::Big(_) => true,
        Json::Float(number) => *number != 0.0,
        Json::Str(text) => !text.is_empty(),
        Json::List(items) => !items.is_empty(),
        Json::Object(members) => !members.is_empty(),
    }
}

fn not_a_dict(value: &Json<'_>) -> String {
    format!("Expected dict for MAP type, got {}: {}", value.python_type(), python_str(value))
}

fn decode_error(text: &str, error: &JsonError) -> String {
    match error {
        JsonError::Syntax(message, at) => {
            let before: Vec<char> = text.chars().take(*at).collect();
            let line = before.iter().filter(|&&c| c == '\n').count() + 1;
            let column = before.iter().rev().take_while(|&&c| c != '\n').count() + 1;
            format!("{message}: line {line} column {column} (char {at})")
        }
        JsonError::Unreadable => "maximum recursion depth exceeded".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_in_protobuf_text_are_cs_general_format() {
        for (value, expected) in [
            (1.5, "1.5"),
            (1001.0, "1001"),
            (0.1, "0.1"),
            (1e22, "1e+22"),
            (1e-7, "1e-07"),
            (-9.223_372_036_854_776e18, "-9.2233720368547758e+18"),
            (0.1 + 0.2, "0.30000000000000004"),
            (123_456.0, "123456"),
            (1e15, "1e+15"),
            (-0.0, "-0"),
        ] {
            assert_eq!(number_text(value), expected);
        }
    }

    #[test]
    fn lists_of_an_undeclared_key_fail_as_in_the_reference() {
        let iterable = "must assign iterable";
        let argument = "bad argument type for built-in operation";
        for (column, expected) in [
            (r#"[{"a":{}}]"#, Ok(())),
            (r#"[[{"a":1},{"b":{}}]]"#, Ok(())),
            (r#"[[true],[null,"",1.5]]"#, Ok(())),
            (r#"[["a"],"xyz"]"#, Ok(())),
            (r#"[{"a":[]}]"#, Err(EMPTY)),
            ("[[1],[true]]", Err("Field feast.types.Int64List.val: Expected an int, got a boolean.")),
            (r#"[[1],"x"]"#, Err("'str' object cannot be interpreted as an integer")),
            ("[[true],true]", Err("'bool' object is not iterable")),
            ("[[1],1]", Err(iterable)),
            (r#"[["a"],["b",1]]"#, Err(argument)),
            (r#"[[{"a":1},1]]"#, Err("MapList can only contain dictionaries, got <class 'int'>")),
            (r#"[[{"a":1}],5]"#, Err("Expected list for MAP_LIST type, got int: 5")),
        ] {
            let Json::List(values) = pyjson::parse(column.as_bytes()).unwrap().value else { continue };
            let result = infer(&values, &mut Vec::new());
            assert_eq!(result, expected.map_err(str::to_owned), "{column}");
        }
    }

    #[test]
    fn nested_values_are_shown_as_protobuf_shows_them() {
        let inner = EntityValue::Map(vec![(
            "b".to_owned(),
            EntityValue::List("double_list_val", vec![EntityValue::Double(1.5)]),
        )]);
        let value = EntityValue::Map(vec![("a".to_owned(), inner)]);
        let expected = "map_val {\n  val {\n    key: \"a\"\n    value {\n      map_val {\n        val {\n          \
                        key: \"b\"\n          value {\n            double_list_val {\n              val: 1.5\n            \
                        }\n          }\n        }\n      }\n    }\n  }\n}\n";
        assert_eq!(value.proto_text(), expected);
    }
}
