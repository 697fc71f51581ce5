//! Pushed columns as Arrow arrays of the types that a file has. What is accepted, and the texts of refusals, are
//! those of Arrow's casts in the reference (facts: write API, 6.3).

use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, FixedSizeBinaryBuilder, LargeBinaryBuilder, LargeStringBuilder,
    PrimitiveBuilder, StringBuilder,
};
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, Int8Type,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    UInt16Type, UInt32Type, UInt64Type, UInt8Type,
};
use arrow_array::{make_array, Array, ArrayRef, ListArray, NullArray, StructArray};
use arrow_array::{LargeListArray, RecordBatch};
use arrow_schema::{DataType, Field, SchemaRef, TimeUnit};

use crate::feature::cell::{Cell, Column, Kind};
use crate::text::pyfmt;
use crate::text::when;

/// Casts the columns of a frame to `schema`; they have been checked to be the same set.
pub fn cast(schema: &SchemaRef, columns: &[Column<'_>]) -> Result<RecordBatch, String> {
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = columns
            .iter()
            .find(|column| column.name == *field.name())
            .ok_or_else(|| format!("Column {} not found in table", field.name()))?;
        let cells: Vec<&Cell<'_>> = column.cells.iter().collect();
        arrays.push(array(field.data_type(), &column.kind, &cells)?);
    }
    RecordBatch::try_new(schema.clone(), arrays).map_err(|error| error.to_string())
}

/// Arrow's name of the type that a column has before it is cast.
fn from_name(kind: &Kind) -> String {
    match kind {
        Kind::Null => "null".to_owned(),
        Kind::Int(name) => name.trim_start_matches("numpy.").to_owned(),
        Kind::IntNull | Kind::Float(_) => "double".to_owned(),
        Kind::Bool | Kind::BoolNull => "bool".to_owned(),
        Kind::List(item) => format!("list<item: {}>", from_name(item)),
        Kind::Struct => "struct".to_owned(),
        _ => "string".to_owned(),
    }
}

/// Arrow's name of the type that a column is cast to.
fn to_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "bool".to_owned(),
        DataType::Int8 => "int8".to_owned(),
        DataType::Int16 => "int16".to_owned(),
        DataType::Int32 => "int32".to_owned(),
        DataType::Int64 => "int64".to_owned(),
        DataType::UInt8 => "uint8".to_owned(),
        DataType::UInt16 => "uint16".to_owned(),
        DataType::UInt32 => "uint32".to_owned(),
        DataType::UInt64 => "uint64".to_owned(),
        DataType::Float32 => "float".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Utf8 => "utf8".to_owned(),
        DataType::LargeUtf8 => "large_utf8".to_owned(),
        DataType::Binary => "binary".to_owned(),
        DataType::LargeBinary => "large_binary".to_owned(),
        DataType::Timestamp(unit, zone) => {
            let unit = match unit {
                TimeUnit::Second => "s",
                TimeUnit::Millisecond => "ms",
                TimeUnit::Microsecond => "us",
                TimeUnit::Nanosecond => "ns",
            };
            match zone {
                Some(zone) => format!("timestamp[{unit}, tz={zone}]"),
                None => format!("timestamp[{unit}]"),
            }
        }
        DataType::List(_) | DataType::LargeList(_) => "list".to_owned(),
        DataType::Struct(_) => "struct".to_owned(),
        other => other.to_string(),
    }
}

fn unsupported(kind: &Kind, data_type: &DataType) -> String {
    let target = match data_type {
        DataType::Timestamp(..) => "timestamp".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 => "string".to_owned(),
        other => to_name(other),
    };
    let shown = match data_type {
        DataType::Timestamp(..) => "timestamp".to_owned(),
        other => to_name(other),
    };
    format!("Unsupported cast from {} to {shown} using function cast_{target}", from_name(kind))
}

fn unparsed(text: &str, data_type: &DataType) -> String {
    format!("Failed to parse string: '{text}' as a scalar of type {}", to_name(data_type))
}

/// One array of `data_type` from `cells`, which come from a column of `kind`.
pub fn array(data_type: &DataType, kind: &Kind, cells: &[&Cell<'_>]) -> Result<ArrayRef, String> {
    let wrong = || unsupported(kind, data_type);
    macro_rules! ints {
        ($type:ty, $low:expr, $high:expr) => {
            primitives::<$type>(cells, |cell| {
                let number = integer(cell, kind, data_type)?;
                if number < i128::from($low) || number > i128::from($high) {
                    return Err(format!("Integer value {number} not in range: {} to {}", $low, $high));
                }
                Ok(number as <$type as ArrowPrimitiveType>::Native)
            })
        };
    }
    Ok(match data_type {
        DataType::Null if cells.iter().all(|cell| cell.is_null()) => Arc::new(NullArray::new(cells.len())),
        DataType::Int8 => ints!(Int8Type, i8::MIN, i8::MAX)?,
        DataType::Int16 => ints!(Int16Type, i16::MIN, i16::MAX)?,
        DataType::Int32 => ints!(Int32Type, i32::MIN, i32::MAX)?,
        DataType::Int64 => ints!(Int64Type, i64::MIN, i64::MAX)?,
        DataType::UInt8 => ints!(UInt8Type, u8::MIN, u8::MAX)?,
        DataType::UInt16 => ints!(UInt16Type, u16::MIN, u16::MAX)?,
        DataType::UInt32 => ints!(UInt32Type, u32::MIN, u32::MAX)?,
        DataType::UInt64 => ints!(UInt64Type, u64::MIN, u64::MAX)?,
        DataType::Float32 => {
            primitives::<Float32Type>(cells, |cell| Ok(float(cell, kind, data_type, 1 << 24)? as f32))?
        }
        DataType::Float64 => primitives::<Float64Type>(cells, |cell| float(cell, kind, data_type, 1 << 53))?,
        DataType::Boolean => {
            let mut out = BooleanBuilder::with_capacity(cells.len());
            for cell in cells {
                match cell {
                    cell if cell.is_null() => out.append_null(),
                    Cell::Bool(value) => out.append_value(*value),
                    Cell::Int(number) => out.append_value(*number != 0),
                    Cell::Float(number) => out.append_value(*number != 0.0),
                    Cell::Str(text) => out.append_value(match text.to_ascii_lowercase().as_str() {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err(format!("Failed to parse value: {text}")),
                    }),
                    _ => return Err(wrong()),
                }
            }
            Arc::new(out.finish())
        }
        DataType::Utf8 => {
            let mut out = StringBuilder::new();
            for cell in cells {
                out.append_option(text(cell, kind, data_type)?);
            }
            Arc::new(out.finish())
        }
        DataType::LargeUtf8 => {
            let mut out = LargeStringBuilder::new();
            for cell in cells {
                out.append_option(text(cell, kind, data_type)?);
            }
            Arc::new(out.finish())
        }
        DataType::Binary => {
            let mut out = BinaryBuilder::new();
            for cell in cells {
                out.append_option(bytes(cell).map_err(|()| wrong())?);
            }
            Arc::new(out.finish())
        }
        DataType::LargeBinary => {
            let mut out = LargeBinaryBuilder::new();
            for cell in cells {
                out.append_option(bytes(cell).map_err(|()| wrong())?);
            }
            Arc::new(out.finish())
        }
        DataType::FixedSizeBinary(width) => {
            let mut out = FixedSizeBinaryBuilder::new(*width);
            for cell in cells {
                match bytes(cell).map_err(|()| wrong())? {
                    Some(bytes) => out.append_value(bytes).map_err(|error| error.to_string())?,
                    None => out.append_null(),
                }
            }
            Arc::new(out.finish())
        }
        DataType::Timestamp(unit, zone) => {
            let stamp = |cell: &Cell<'_>| timestamp(cell, kind, data_type, *unit, zone.is_some());
            match unit {
                TimeUnit::Second => stamps::<TimestampSecondType>(cells, data_type, stamp)?,
                TimeUnit::Millisecond => stamps::<TimestampMillisecondType>(cells, data_type, stamp)?,
                TimeUnit::Microsecond => stamps::<TimestampMicrosecondType>(cells, data_type, stamp)?,
                TimeUnit::Nanosecond => stamps::<TimestampNanosecondType>(cells, data_type, stamp)?,
            }
        }
        DataType::Date32 => primitives::<Date32Type>(cells, |cell| match cell {
            Cell::Str(text) => match when::parse(text, 0) {
                Ok(found) => Ok(found.nanos.div_euclid(when::SECOND * 86_400) as i32),
                Err(_) => Err(unparsed(text, data_type)),
            },
            Cell::Date(days) => Ok(*days),
            Cell::Int(days) => i32::try_from(*days).map_err(|_| wrong()),
            _ => Err(wrong()),
        })?,
        DataType::List(item) => {
            let (values, lengths) = items(cells).map_err(|()| wrong())?;
            let values = array(item.data_type(), &inner(kind), &values)?;
            let nulls =
                arrow_array::BooleanArray::from(lengths.iter().map(Option::is_some).collect::<Vec<_>>());
            let offsets = arrow_buffer_offsets::<i32>(&lengths);
            Arc::new(
                ListArray::try_new(item.clone(), offsets, values, Some(nulls.values().clone().into()))
                    .map_err(|error| error.to_string())?,
            )
        }
        DataType::LargeList(item) => {
            let (values, lengths) = items(cells).map_err(|()| wrong())?;
            let values = array(item.data_type(), &inner(kind), &values)?;
            let nulls =
                arrow_array::BooleanArray::from(lengths.iter().map(Option::is_some).collect::<Vec<_>>());
            let offsets = arrow_buffer_offsets::<i64>(&lengths);
            Arc::new(
                LargeListArray::try_new(item.clone(), offsets, values, Some(nulls.values().clone().into()))
                    .map_err(|error| error.to_string())?,
            )
        }
        DataType::Struct(fields) => structs(fields, cells).ok_or_else(wrong)??,
        DataType::Map(..) if cells.iter().all(|cell| cell.is_null()) => {
            arrow_array::new_null_array(data_type, cells.len())
        }
        other => return Err(format!("'{other}'")),
    })
}

fn inner(kind: &Kind) -> Kind {
    if let Kind::List(inner) = kind {
        (**inner).clone()
    } else {
        Kind::Null
    }
}

fn primitives<T: ArrowPrimitiveType>(
    cells: &[&Cell<'_>],
    convert: impl Fn(&Cell<'_>) -> Result<T::Native, String>,
) -> Result<ArrayRef, String> {
    let mut out = PrimitiveBuilder::<T>::with_capacity(cells.len());
    for cell in cells {
        if cell.is_null() {
            out.append_null();
        } else {
            out.append_value(convert(cell)?);
        }
    }
    Ok(Arc::new(out.finish()))
}

fn stamps<T: ArrowPrimitiveType<Native = i64>>(
    cells: &[&Cell<'_>],
    data_type: &DataType,
    convert: impl Fn(&Cell<'_>) -> Result<i64, String>,
) -> Result<ArrayRef, String> {
    let array = primitives::<T>(cells, convert)?;
    let data = array.to_data().into_builder().data_type(data_type.clone());
    data.build().map(make_array).map_err(|error| error.to_string())
}

fn integer(cell: &Cell<'_>, kind: &Kind, data_type: &DataType) -> Result<i128, String> {
    match cell {
        Cell::Int(number) => Ok(i128::from(*number)),
        Cell::UInt(number) => Ok(i128::from(*number)),
        Cell::Bool(value) => Ok(i128::from(*value)),
        Cell::Float(number) if number.fract() == 0.0 && number.abs() < 1e38 => Ok(*number as i128),
        Cell::Float(number) => {
            Err(format!("Float value {number:.6} was truncated converting to {}", to_name(data_type)))
        }
        Cell::Str(text) => {
            let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
                Some(hex) => i128::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with(['+', '-'])),
                None if text.starts_with('+') => None,
                None => text.parse().ok(),
            };
            parsed.ok_or_else(|| unparsed(text, data_type))
        }
        _ => Err(unsupported(kind, data_type)),
    }
}

fn float(cell: &Cell<'_>, kind: &Kind, data_type: &DataType, exact: i64) -> Result<f64, String> {
    match cell {
        Cell::Int(number) if *kind == Kind::IntNull || number.abs() <= exact => Ok(*number as f64),
        Cell::Int(number) => Err(format!("Integer value {number} not in range: -{exact} to {exact}")),
        Cell::UInt(number) => Err(format!("Integer value {number} not in range: 0 to {exact}")),
        Cell::Float(number) => Ok(*number),
        Cell::Bool(value) => Ok(f64::from(u8::from(*value))),
        Cell::Str(text) => {
            let plain = !text.is_empty() && !text.starts_with('+') && text.trim() == text.as_ref();
            text.parse().ok().filter(|_| plain).ok_or_else(|| unparsed(text, data_type))
        }
        _ => Err(unsupported(kind, data_type)),
    }
}

fn text(cell: &Cell<'_>, kind: &Kind, data_type: &DataType) -> Result<Option<String>, String> {
    Ok(match cell {
        Cell::Null => None,
        Cell::Float(number) if number.is_nan() => None,
        Cell::Str(text) => Some(text.clone().into_owned()),
        // Arrow prints whole floats with their point, too; an integer beside nulls is one.
        Cell::Int(number) if *kind == Kind::IntNull => Some(float_text(*number as f64)),
        Cell::Int(number) => Some(number.to_string()),
        Cell::UInt(number) => Some(number.to_string()),
        Cell::Float(number) => Some(float_text(*number)),
        Cell::Bool(value) => Some(value.to_string()),
        _ => return Err(unsupported(kind, data_type)),
    })
}

fn float_text(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e10 {
        return format!("{number:.0}");
    }
    let mut out = Vec::new();
    pyfmt::write_f64(&mut out, number);
    String::from_utf8_lossy(&out).into_owned()
}

fn bytes<'c>(cell: &'c Cell<'_>) -> Result<Option<&'c [u8]>, ()> {
    match cell {
        Cell::Null => Ok(None),
        Cell::Str(text) => Ok(Some(text.as_bytes())),
        Cell::Bytes(bytes) => Ok(Some(bytes)),
        _ => Err(()),
    }
}

/// A time in the unit of its column: texts as they are, integers as counts of the unit.
fn timestamp(
    cell: &Cell<'_>,
    kind: &Kind,
    data_type: &DataType,
    unit: TimeUnit,
    zoned: bool,
) -> Result<i64, String> {
    let text = match cell {
        Cell::Int(number) => return Ok(*number),
        Cell::Str(text) => text,
        _ => return Err(unsupported(kind, data_type)),
    };
    let strict =
        text.trim() == text.as_ref() && !text.contains(['t', 'z']) && text.as_bytes().get(4) == Some(&b'-');
    let found = when::parse(text, 0).ok().filter(|found| strict && found.format.is_some());
    // A date alone takes no zone.
    let found = found.filter(|found| found.offset.is_none() || text.len() > 11);
    let Some(found) = found else { return Err(unparsed(text, data_type)) };
    match (found.offset, zoned) {
        (None, true) => {
            return Err(format!(
                "{}: expected a zone offset. If these timestamps are in local time, cast to timestamp without \
                 timezone, then call assume_timezone.",
                unparsed(text, data_type)
            ));
        }
        (Some(_), false) => {
            return Err(format!("{}: expected no zone offset.", unparsed(text, data_type)));
        }
        _ => {}
    }
    let per_unit: i128 = match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1000,
        TimeUnit::Nanosecond => 1,
    };
    // Digits finer than the unit are refused, as Arrow refuses them.
    if found.nanos.rem_euclid(per_unit) != 0 {
        return Err(unparsed(text, data_type));
    }
    i64::try_from(found.nanos / per_unit).map_err(|_| unparsed(text, data_type))
}

type Items<'c> = (Vec<&'c Cell<'c>>, Vec<Option<usize>>);

/// The items of all lists one after the other, and the length of each.
fn items<'c>(cells: &[&'c Cell<'c>]) -> Result<Items<'c>, ()> {
    let (mut values, mut lengths) = (Vec::new(), Vec::new());
    for cell in cells {
        match cell {
            Cell::List(items) => {
                values.extend(items);
                lengths.push(Some(items.len()));
            }
            cell if cell.is_null() => lengths.push(None),
            _ => return Err(()),
        }
    }
    Ok((values, lengths))
}

fn arrow_buffer_offsets<O: arrow_array::OffsetSizeTrait>(
    lengths: &[Option<usize>],
) -> arrow_buffer::OffsetBuffer<O> {
    arrow_buffer::OffsetBuffer::from_lengths(lengths.iter().map(|length| length.unwrap_or(0)))
}

fn structs(fields: &arrow_schema::Fields, cells: &[&Cell<'_>]) -> Option<Result<ArrayRef, String>> {
    let mut nulls = Vec::with_capacity(cells.len());
    for cell in cells {
        match cell {
            Cell::Struct(_) => nulls.push(true),
            cell if cell.is_null() => nulls.push(false),
            _ => return None,
        }
    }
    let null = Cell::Null;
    let member = |field: &Field| -> Result<ArrayRef, String> {
        let values: Vec<Cell<'_>> = cells
            .iter()
            .map(|cell| match cell {
                Cell::Struct(members) => members
                    .iter()
                    .find(|(name, _)| name == field.name())
                    .map_or(null.clone(), |(_, c)| c.clone()),
                _ => null.clone(),
            })
            .collect();
        let kind = crate::feature::cell::infer(field.name(), &values)?;
        array(field.data_type(), &kind, &values.iter().collect::<Vec<_>>())
    };
    let made = || -> Result<ArrayRef, String> {
        let arrays = fields.iter().map(|field| member(field)).collect::<Result<Vec<_>, _>>()?;
        let nulls = arrow_buffer::NullBuffer::from(nulls.clone());
        let array =
            StructArray::try_new(fields.clone(), arrays, Some(nulls)).map_err(|error| error.to_string())?;
        Ok(Arc::new(array))
    };
    Some(made())
}

/// Only so that the list builder's field names can be compared in tests.
#[cfg(test)]
fn list_of_ints(lists: &[&[i64]]) -> ListArray {
    let mut out = arrow_array::builder::ListBuilder::new(PrimitiveBuilder::<Int64Type>::new());
    for list in lists {
        out.values().append_slice(list);
        out.append(true);
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;

    fn one(data_type: &DataType, cell: &Cell<'_>) -> Result<ArrayRef, String> {
        let cells = std::slice::from_ref(cell);
        let kind = crate::feature::cell::infer("v", cells)?;
        array(data_type, &kind, &[cell])
    }

    #[test]
    fn refusals_of_arrow() {
        let utc = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let naive = DataType::Timestamp(TimeUnit::Microsecond, None);
        for (data_type, cell, text) in [
            (&DataType::Int64, Cell::Float(1.5), "Float value 1.500000 was truncated converting to int64"),
            (&DataType::Int64, Cell::Str("x".into()), "Failed to parse string: 'x' as a scalar of type int64"),
            (&DataType::Int32, Cell::Int(2_147_483_648), "Integer value 2147483648 not in range: -2147483648 to 2147483647"),
            (&DataType::Float32, Cell::Int(16_777_217), "Integer value 16777217 not in range: -16777216 to 16777216"),
            (&DataType::Boolean, Cell::Str("perhaps".into()), "Failed to parse value: perhaps"),
            (&utc, Cell::Float(1.5), "Unsupported cast from double to timestamp using function cast_timestamp"),
            (&naive, Cell::Str("2025-03-01T00:00:00Z".into()), "Failed to parse string: '2025-03-01T00:00:00Z' as a scalar of type timestamp[us]: expected no zone offset."),
            (&DataType::Utf8, Cell::List(vec![Cell::Int(1)]), "Unsupported cast from list<item: int64> to utf8 using function cast_string"),
        ] {
            assert_eq!(one(data_type, &cell).unwrap_err(), text);
        }
        assert!(one(&utc, &Cell::Str("2025-03-02Z".into())).is_err());
        assert!(one(&utc, &Cell::Str("Mar 2 2025".into())).is_err());
    }

    #[test]
    fn casts_of_arrow() {
        let utc = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let at = one(&utc, &Cell::Str("1970-01-01T02:00:00.5+02".into())).unwrap();
        assert_eq!(at.as_primitive::<TimestampNanosecondType>().value(0), 500_000_000);
        let text = one(&DataType::Utf8, &Cell::Bool(true)).unwrap();
        assert_eq!(text.as_string::<i32>().value(0), "true");
        let hex = one(&DataType::Int64, &Cell::Str("0x10".into())).unwrap();
        assert_eq!(hex.as_primitive::<Int64Type>().value(0), 16);
        let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
        let made = one(&list, &Cell::List(vec![Cell::Int(1), Cell::Int(2)])).unwrap();
        assert_eq!(made.as_list::<i32>(), &list_of_ints(&[&[1, 2]]));
    }
}
