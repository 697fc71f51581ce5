//! Tables of the SQLite online store and how rows get into them, byte for byte as the reference does it.

use rusqlite::{params, Connection, Result};

use crate::text::pyfmt;

/// One feature value to store.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// `float_val`
    Float(f32),
    /// `int64_val`
    Int64(i64),
    /// `string_val`
    Str(String),
}

impl Stored {
    /// The serialized `feast.types.Value`.
    pub fn encode(&self) -> Vec<u8> {
        use crate::registry::wire;
        let mut out = Vec::new();
        match self {
            Self::Float(value) => {
                out.push(0x35);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Self::Int64(value) => {
                out.push(0x20);
                wire::put_varint(&mut out, value.cast_unsigned());
            }
            Self::Str(text) => wire::put_bytes(&mut out, 2, text.as_bytes()),
        }
        out
    }

    /// The `value_text` column: Python's `str` of the value.
    fn text(&self) -> String {
        match self {
            Self::Float(value) => {
                let mut out = Vec::new();
                pyfmt::write_f64(&mut out, f64::from(*value));
                String::from_utf8_lossy(&out).into_owned()
            }
            Self::Int64(value) => value.to_string(),
            Self::Str(text) => text.clone(),
        }
    }
}

/// Makes the table of a view and its entity index, unless they are there.
pub fn create_table(connection: &Connection, table: &str) -> Result<()> {
    let name = table.replace('"', "\"\"");
    connection.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS \"{name}\" (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT, \
         vector_value BLOB, event_ts timestamp, created_ts timestamp, PRIMARY KEY(entity_key, feature_name));\
         CREATE INDEX IF NOT EXISTS \"{name}_ek\" ON \"{name}\" (entity_key);"
    ))
}

/// Stores the features of one entity. Times are stored as given: seconds in the process's local time.
pub fn write_row(
    connection: &Connection,
    table: &str,
    entity_key: &[u8],
    features: &[(&str, Stored)],
    event_ts: i64,
    created_ts: Option<i64>,
) -> Result<()> {
    let name = table.replace('"', "\"\"");
    let mut statement = connection.prepare_cached(&format!(
        "INSERT INTO \"{name}\" (entity_key, feature_name, value, value_text, vector_value, event_ts, created_ts) \
         VALUES (?1, ?2, ?3, ?4, NULL, ?5, ?6) ON CONFLICT(entity_key, feature_name) DO UPDATE SET \
         value = excluded.value, value_text = excluded.value_text, vector_value = excluded.vector_value, \
         event_ts = excluded.event_ts, created_ts = excluded.created_ts"
    ))?;
    for (feature, value) in features {
        statement.execute(params![
            entity_key,
            feature,
            value.encode(),
            value.text(),
            event_ts,
            created_ts
        ])?;
    }
    Ok(())
}
