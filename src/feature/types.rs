//! The value types of Feast that a request's entity values can take.

/// Numbers of `feast.types.ValueType.Enum` that decide how a join key is converted and keyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// BYTES 1
    Bytes,
    /// STRING 2
    Str,
    /// INT32 3
    Int32,
    /// INT64 4
    Int64,
    /// DOUBLE 5
    Double,
    /// FLOAT 6
    Float,
    /// BOOL 7
    Bool,
    /// UNIX_TIMESTAMP 8
    Timestamp,
    /// UUID 36
    Uuid,
    /// TIME_UUID 37
    TimeUuid,
    /// DECIMAL 44
    Decimal,
    /// 0, or a type that no join key can have here: the type is taken from the values.
    Inferred,
}

impl KeyType {
    /// From the number stored in the registry.
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Bytes,
            2 => Self::Str,
            3 => Self::Int32,
            4 => Self::Int64,
            5 => Self::Double,
            6 => Self::Float,
            7 => Self::Bool,
            8 => Self::Timestamp,
            36 => Self::Uuid,
            37 => Self::TimeUuid,
            44 => Self::Decimal,
            _ => Self::Inferred,
        }
    }
}
