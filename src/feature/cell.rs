//! What a column of incoming data holds, whether it came as JSON or from a Parquet file.
//!
//! The reference carries everything through pandas and Arrow, and what it accepts depends on the type the whole
//! column has there. [`Kind`] is that type; the cells keep the values as they came, so that an integer beside a
//! null stays an integer.

use std::borrow::Cow;

use crate::text::{pyfmt, pyrepr, time};

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    /// Null, or NaN in a column of numbers.
    Null,
    /// A bool.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// An integer above that.
    UInt(u64),
    /// A float of 64 bits; one of 32 bits is widened.
    Float(f64),
    /// Text.
    Str(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// An instant.
    Time {
        /// Whole seconds since the epoch, floored.
        seconds: i64,
        /// Nanoseconds beyond them.
        nanos: u32,
        /// Digits of the fraction that its column has: 0, 3, 6 or 9.
        digits: u8,
    },
    /// Days since the epoch.
    Date(i32),
    /// A decimal, printed.
    Decimal(String),
    /// A list.
    List(Vec<Cell<'a>>),
    /// An object or a struct.
    Struct(Vec<(Cow<'a, str>, Cell<'a>)>),
    /// Arrow's map type, which the reference cannot store as a Map: its entries.
    Map(Vec<(Cell<'a>, Cell<'a>)>),
}

/// The type of a whole column, as the reference sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but nulls.
    Null,
    /// Integers without nulls: numpy's name for them.
    Int(&'static str),
    /// Integers beside nulls, which numpy takes for floats.
    IntNull,
    /// Floats: numpy's name for them.
    Float(&'static str),
    /// Bools without nulls.
    Bool,
    /// Bools beside nulls, which stay Python's.
    BoolNull,
    /// Text.
    Str,
    /// Bytes.
    Bytes,
    /// Instants.
    Time,
    /// Dates.
    Date,
    /// Decimals.
    Decimal,
    /// Lists of something.
    List(Box<Kind>),
    /// Objects.
    Struct,
    /// Arrow maps.
    Map,
}

/// A named column.
#[derive(Debug, Clone)]
pub struct Column<'a> {
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its type.
    pub kind: Kind,
    /// Its values.
    pub cells: Vec<Cell<'a>>,
}

/// 64-bit integers.
pub const INT64: Kind = Kind::Int("numpy.int64");
/// 64-bit floats.
pub const FLOAT64: Kind = Kind::Float("numpy.float64");

impl Cell<'_> {
    /// True for null and for NaN.
    pub fn is_null(&self) -> bool {
        match self {
            Cell::Null => true,
            Cell::Float(value) => value.is_nan(),
            _ => false,
        }
    }

    /// True for what a scalar feature cannot hold.
    pub fn is_container(&self) -> bool {
        matches!(self, Cell::List(_) | Cell::Struct(_) | Cell::Map(_))
    }

    /// Python's `str` of the value; `float` when its column is one of floats to numpy.
    pub fn print(&self, float: bool) -> String {
        let mut out = Vec::new();
        match self {
            Cell::Null => return if float { "nan".to_owned() } else { "None".to_owned() },
            Cell::Bool(value) if float => pyfmt::write_f64(&mut out, f64::from(u8::from(*value))),
            Cell::Bool(value) => return if *value { "True" } else { "False" }.to_owned(),
            Cell::Int(value) if float => pyfmt::write_f64(&mut out, *value as f64),
            Cell::Int(value) => pyfmt::write_i64(&mut out, *value),
            Cell::UInt(value) => return value.to_string(),
            Cell::Float(value) => pyfmt::write_f64(&mut out, *value),
            Cell::Str(text) => return text.clone().into_owned(),
            Cell::Bytes(bytes) => return bytes_repr(bytes),
            Cell::Time { seconds, nanos, digits } => {
                time::write_civil(&mut out, *seconds);
                if *digits > 0 {
                    let text = format!(".{nanos:09}");
                    out.extend_from_slice(&text.as_bytes()[..=usize::from(*digits)]);
                }
            }
            Cell::Date(days) => {
                time::write_civil(&mut out, i64::from(*days) * 86_400);
                out.truncate(10);
            }
            Cell::Decimal(text) => return text.clone(),
            Cell::List(items) => {
                let items: Vec<String> = items.iter().map(Cell::repr).collect();
                return format!("[{}]", items.join(" "));
            }
            Cell::Struct(members) => {
                let shown: Vec<String> = members
                    .iter()
                    .map(|(name, cell)| format!("{}: {}", pyrepr::repr(name), cell.repr()))
                    .collect();
                return format!("{{{}}}", shown.join(", "));
            }
            Cell::Map(entries) => {
                let shown: Vec<String> = entries
                    .iter()
                    .map(|(key, value)| format!("({}, {})", key.repr(), value.repr()))
                    .collect();
                return format!("[{}]", shown.join(", "));
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Python's `repr` of the value.
    pub fn repr(&self) -> String {
        match self {
            Cell::Str(text) => pyrepr::repr(text),
            other => other.print(false),
        }
    }

    /// The Python class of the value inside a list.
    pub fn python_class(&self) -> &'static str {
        match self {
            Cell::Null => "NoneType",
            Cell::Bool(_) => "bool",
            Cell::Int(_) | Cell::UInt(_) => "int",
            Cell::Float(_) => "float",
            Cell::Str(_) => "str",
            Cell::Bytes(_) => "bytes",
            Cell::Time { .. } => "numpy.datetime64",
            Cell::Date(_) => "datetime.date",
            Cell::Decimal(_) => "decimal.Decimal",
            Cell::List(_) | Cell::Map(_) => "numpy.ndarray",
            Cell::Struct(_) => "dict",
        }
    }
}

impl Kind {
    /// The Python class of a value of such a column.
    pub fn numpy_class(&self) -> &'static str {
        match self {
            Kind::Null => "NoneType",
            Kind::Int(name) | Kind::Float(name) => name,
            Kind::IntNull => "numpy.float64",
            Kind::Bool => "numpy.bool",
            Kind::BoolNull => "bool",
            Kind::Str => "str",
            Kind::Bytes => "bytes",
            Kind::Time => "numpy.datetime64",
            Kind::Date => "datetime.date",
            Kind::Decimal => "decimal.Decimal",
            Kind::List(_) | Kind::Map => "numpy.ndarray",
            Kind::Struct => "dict",
        }
    }

    /// True when numpy holds the column as floats.
    pub fn is_float(&self) -> bool {
        matches!(self, Kind::IntNull | Kind::Float(_))
    }
}

/// Python's `repr` of bytes.
fn bytes_repr(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
    let mut out = format!("b{quote}");
    for &byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            _ if char::from(byte) == quote => {
                out.push('\\');
                out.push(quote);
            }
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push(quote);
    out
}

/// The type of `cells`, which came as JSON; the reference's error when they do not go together.
pub fn infer(name: &str, cells: &[Cell<'_>]) -> Result<Kind, String> {
    infer_kind(cells).map_err(|problem| match problem {
        Mixed::Whole(text) => text,
        Mixed::Column(text) => {
            format!("({}, 'Conversion failed for column {name} with type object')", pyrepr::repr(&text))
        }
    })
}

enum Mixed {
    Whole(String),
    Column(String),
}

fn infer_kind(cells: &[Cell<'_>]) -> Result<Kind, Mixed> {
    let mut kind = Kind::Null;
    let mut nulls = false;
    let mut above = false;
    let mut negative = false;
    let mut items: Vec<&Cell<'_>> = Vec::new();
    for cell in cells {
        let wrong = |wanted: &str| {
            Err(Mixed::Column(format!(
                "Could not convert {} with type {}: tried to convert to {wanted}",
                cell.repr(),
                python(cell)
            )))
        };
        match (&kind, cell) {
            (_, Cell::Null) => nulls = true,
            (Kind::Int(_) | Kind::Float(_) | Kind::Bool, Cell::List(_)) => {
                return Err(Mixed::Column("cannot mix list and non-list, non-null values".to_owned()));
            }
            (Kind::Null | Kind::Int(_), Cell::Int(number)) => {
                negative |= *number < 0;
                kind = INT64;
            }
            (Kind::Null | Kind::Int(_), Cell::UInt(_)) => {
                above = true;
                kind = INT64;
            }
            (Kind::Null | Kind::Int(_), Cell::Float(_)) => kind = FLOAT64,
            (Kind::Float(_), Cell::Int(_) | Cell::UInt(_) | Cell::Float(_) | Cell::Bool(_)) => {}
            (Kind::Null | Kind::Bool, Cell::Bool(_)) => kind = Kind::Bool,
            (Kind::Null | Kind::Str, Cell::Str(_)) => kind = Kind::Str,
            (Kind::Null | Kind::Struct, Cell::Struct(_)) => kind = Kind::Struct,
            (Kind::Null | Kind::List(_), Cell::List(list)) => {
                items.extend(list);
                kind = Kind::List(Box::new(Kind::Null));
            }
            (Kind::Int(_), Cell::Bool(_)) => {
                return Err(Mixed::Column("Expected integer, got bool".to_owned()))
            }
            (Kind::Int(_), _) => return wrong("int64"),
            (Kind::Float(_), _) => return wrong("double"),
            (Kind::Bool, _) => return wrong("boolean"),
            (Kind::Str, _) => {
                return Err(Mixed::Column(format!("Expected bytes, got a '{}' object", python(cell))));
            }
            (Kind::Struct, _) => {
                return Err(Mixed::Column("cannot mix struct and non-struct, non-null values".to_owned()));
            }
            (Kind::List(_), _) => {
                return Err(Mixed::Column("cannot mix list and non-list, non-null values".to_owned()));
            }
            _ => {}
        }
    }
    match kind {
        Kind::Int(_) if above && negative => Err(too_large()),
        Kind::Int(_) if above => Ok(if nulls { Kind::IntNull } else { Kind::Int("numpy.uint64") }),
        Kind::Int(_) if nulls => Ok(Kind::IntNull),
        Kind::Bool if nulls => Ok(Kind::BoolNull),
        Kind::List(_) => {
            let items: Vec<Cell<'_>> = items.into_iter().cloned().collect();
            Ok(Kind::List(Box::new(infer_kind(&items)?)))
        }
        other => Ok(other),
    }
}

fn too_large() -> Mixed {
    Mixed::Whole(TOO_LARGE.to_owned())
}

/// What the reference says about integers that fit no machine type.
pub const TOO_LARGE: &str = "Python int too large to convert to C long";

fn python(cell: &Cell<'_>) -> &'static str {
    match cell {
        Cell::List(_) => "list",
        other => other.python_class(),
    }
}
