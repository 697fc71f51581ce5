//! Arrow columns as cells.

use std::borrow::Cow;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Date64Type, Decimal128Type, Float16Type, Float32Type, Float64Type,
    Int16Type, Int32Type, Int64Type, Int8Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt16Type, UInt32Type, UInt64Type, UInt8Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};

use crate::feature::cell::{Cell, Kind, FLOAT64, INT64};

/// What the reference's pandas makes of a column of this type; `nulls` among the rows that matter.
pub fn kind_of(data_type: &DataType, nulls: bool) -> Kind {
    let int = |name| if nulls { Kind::IntNull } else { Kind::Int(name) };
    match data_type {
        DataType::Null => Kind::Null,
        DataType::Boolean => Kind::Bool,
        DataType::Int8 => int("numpy.int8"),
        DataType::Int16 => int("numpy.int16"),
        DataType::Int32 => int("numpy.int32"),
        DataType::Int64 => {
            if nulls {
                Kind::IntNull
            } else {
                INT64
            }
        }
        DataType::UInt8 => int("numpy.uint8"),
        DataType::UInt16 => int("numpy.uint16"),
        DataType::UInt32 => int("numpy.uint32"),
        DataType::UInt64 => int("numpy.uint64"),
        DataType::Float16 => Kind::Float("numpy.float16"),
        DataType::Float32 => Kind::Float("numpy.float32"),
        DataType::Float64 => FLOAT64,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Str,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Kind::Bytes
        }
        DataType::Timestamp(..) => Kind::Time,
        DataType::Date32 | DataType::Date64 => Kind::Date,
        DataType::Decimal128(..) | DataType::Decimal256(..) => Kind::Decimal,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Kind::List(Box::new(kind_of(item.data_type(), false)))
        }
        DataType::Struct(_) => Kind::Struct,
        DataType::Map(..) => Kind::Map,
        DataType::Dictionary(_, value) => kind_of(value, nulls),
        _ => Kind::Str,
    }
}

/// The columns of a file.
pub fn schema_of(path: &std::path::Path) -> Result<arrow_schema::SchemaRef, String> {
    use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
    let text = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(|error| text(&error))?;
    let metadata =
        ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(|error| text(&error))?;
    Ok(metadata.schema().clone())
}

/// Reads one cell of a column.
pub type Access<'a> = Box<dyn Fn(usize) -> Cell<'a> + 'a>;

fn access_with<'a>(array: &'a dyn Array, read: impl Fn(usize) -> Cell<'a> + 'a) -> Access<'a> {
    if array.null_count() == 0 {
        Box::new(read)
    } else {
        Box::new(move |row| if array.is_null(row) { Cell::Null } else { read(row) })
    }
}

fn numbers<'a, T: ArrowPrimitiveType>(
    array: &'a dyn Array,
    cell: impl Fn(T::Native) -> Cell<'a> + 'a,
) -> Access<'a> {
    let values = array.as_primitive::<T>().values();
    access_with(array, move |row| cell(values[row]))
}

/// The instants of a timestamp column in nanoseconds; `None`: not a timestamp.
pub fn instants(array: &dyn Array) -> Option<Box<dyn Fn(usize) -> Option<i64> + '_>> {
    fn of<'a, T: ArrowPrimitiveType<Native = i64>>(
        array: &'a dyn Array,
        factor: i64,
    ) -> Box<dyn Fn(usize) -> Option<i64> + 'a> {
        let values = array.as_primitive::<T>().values();
        let nulls = array.null_count() > 0;
        Box::new(move |row| (!(nulls && array.is_null(row))).then(|| values[row].saturating_mul(factor)))
    }
    match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => Some(of::<TimestampSecondType>(array, 1_000_000_000)),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            Some(of::<TimestampMillisecondType>(array, 1_000_000))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => Some(of::<TimestampMicrosecondType>(array, 1000)),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => Some(of::<TimestampNanosecondType>(array, 1)),
        _ => None,
    }
}

/// A reader of `array`.
pub fn access(array: &ArrayRef) -> Result<Access<'_>, String> {
    let plain: &dyn Array = array.as_ref();
    let int = |number: i64| Cell::Int(number);
    Ok(match array.data_type() {
        DataType::Null => Box::new(|_| Cell::Null),
        DataType::Boolean => {
            let values = array.as_boolean();
            access_with(plain, |row| Cell::Bool(values.value(row)))
        }
        DataType::Int8 => numbers::<Int8Type>(plain, move |v| int(v.into())),
        DataType::Int16 => numbers::<Int16Type>(plain, move |v| int(v.into())),
        DataType::Int32 => numbers::<Int32Type>(plain, move |v| int(v.into())),
        DataType::Int64 => numbers::<Int64Type>(plain, int),
        DataType::UInt8 => numbers::<UInt8Type>(plain, move |v| int(v.into())),
        DataType::UInt16 => numbers::<UInt16Type>(plain, move |v| int(v.into())),
        DataType::UInt32 => numbers::<UInt32Type>(plain, move |v| int(v.into())),
        DataType::UInt64 => {
            numbers::<UInt64Type>(plain, |v| i64::try_from(v).map_or(Cell::UInt(v), Cell::Int))
        }
        DataType::Float16 => numbers::<Float16Type>(plain, |v| Cell::Float(v.into())),
        DataType::Float32 => numbers::<Float32Type>(plain, |v| Cell::Float(v.into())),
        DataType::Float64 => numbers::<Float64Type>(plain, Cell::Float),
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            access_with(plain, |row| Cell::Str(Cow::Borrowed(values.value(row))))
        }
        DataType::LargeUtf8 => {
            let values = array.as_string::<i64>();
            access_with(plain, |row| Cell::Str(Cow::Borrowed(values.value(row))))
        }
        DataType::Utf8View => {
            let values = array.as_string_view();
            access_with(plain, |row| Cell::Str(Cow::Borrowed(values.value(row))))
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            access_with(plain, |row| Cell::Bytes(Cow::Borrowed(values.value(row))))
        }
        DataType::LargeBinary => {
            let values = array.as_binary::<i64>();
            access_with(plain, |row| Cell::Bytes(Cow::Borrowed(values.value(row))))
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            access_with(plain, |row| Cell::Bytes(Cow::Borrowed(values.value(row))))
        }
        DataType::Timestamp(unit, _) => {
            let (per_second, digits) = match unit {
                TimeUnit::Second => (1, 0),
                TimeUnit::Millisecond => (1000, 3),
                TimeUnit::Microsecond => (1_000_000, 6),
                TimeUnit::Nanosecond => (1_000_000_000, 9),
            };
            let cell = move |value: i64| {
                let seconds = value.div_euclid(per_second);
                let nanos = (value.rem_euclid(per_second) * (1_000_000_000 / per_second)) as u32;
                Cell::Time { seconds, nanos, digits }
            };
            match unit {
                TimeUnit::Second => numbers::<TimestampSecondType>(plain, cell),
                TimeUnit::Millisecond => numbers::<TimestampMillisecondType>(plain, cell),
                TimeUnit::Microsecond => numbers::<TimestampMicrosecondType>(plain, cell),
                TimeUnit::Nanosecond => numbers::<TimestampNanosecondType>(plain, cell),
            }
        }
        DataType::Date32 => numbers::<Date32Type>(plain, Cell::Date),
        DataType::Date64 => numbers::<Date64Type>(plain, |v| Cell::Date((v / 86_400_000) as i32)),
        DataType::Decimal128(_, scale) => {
            let scale = *scale;
            numbers::<Decimal128Type>(plain, move |v| Cell::Decimal(decimal(v, scale)))
        }
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let offsets = lists.value_offsets();
            list(plain, lists.values(), move |row| (offsets[row] as usize, offsets[row + 1] as usize))?
        }
        DataType::LargeList(_) => {
            let lists = array.as_list::<i64>();
            let offsets = lists.value_offsets();
            list(plain, lists.values(), move |row| (offsets[row] as usize, offsets[row + 1] as usize))?
        }
        DataType::FixedSizeList(_, length) => {
            let length = *length as usize;
            list(plain, array.as_fixed_size_list().values(), move |row| (row * length, (row + 1) * length))?
        }
        DataType::Struct(fields) => {
            let values = array.as_struct();
            let mut members: Vec<(&str, Access<'_>)> = Vec::new();
            for (field, column) in fields.iter().zip(values.columns()) {
                members.push((field.name(), access(column)?));
            }
            access_with(plain, move |row| {
                Cell::Struct(members.iter().map(|(name, read)| (Cow::Borrowed(*name), read(row))).collect())
            })
        }
        DataType::Map(..) => {
            let maps = array.as_map();
            let (keys, values) = (access(maps.keys())?, access(maps.values())?);
            let offsets = maps.value_offsets();
            access_with(plain, move |row| {
                let range = offsets[row] as usize..offsets[row + 1] as usize;
                Cell::Map(range.map(|item| (keys(item), values(item))).collect())
            })
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            if dictionary.values().is_empty() {
                return Ok(Box::new(|_| Cell::Null));
            }
            let values = access(dictionary.values())?;
            let keys = dictionary.normalized_keys();
            access_with(plain, move |row| values(keys[row]))
        }
        other => return Err(format!("a column of type {other} cannot be read")),
    })
}

fn list<'a>(
    array: &'a dyn Array,
    items: &'a ArrayRef,
    range: impl Fn(usize) -> (usize, usize) + 'a,
) -> Result<Access<'a>, String> {
    let item = access(items)?;
    Ok(access_with(array, move |row| {
        let (start, end) = range(row);
        Cell::List((start..end).map(&item).collect())
    }))
}

/// A decimal as Python prints it.
fn decimal(value: i128, scale: i8) -> String {
    let Ok(scale) = usize::try_from(scale) else { return value.to_string() };
    if scale == 0 {
        return value.to_string();
    }
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{}{whole}.{fraction}", if value < 0 { "-" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_their_zeros() {
        assert_eq!(decimal(150, 2), "1.50");
        assert_eq!(decimal(-5, 2), "-0.05");
        assert_eq!(decimal(7, 0), "7");
    }
}
