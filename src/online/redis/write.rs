//! Writing features, byte for byte as the reference does it, over a blocking connection and in pipelines.

use redis::{ConnectionLike, Pipeline};

use super::keys;
use crate::registry::model::seconds_and_nanos;
use crate::registry::wire;

/// Rows that go out in one pipeline.
const BATCH: usize = 500;

/// The features of one entity in one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Serialized entity key.
    pub key: Vec<u8>,
    /// Event time, seconds since the epoch and nanoseconds.
    pub event: (i64, i32),
    /// Feature names with serialized values; empty bytes are null.
    pub features: Vec<(String, Vec<u8>)>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Seconds after which an entity expires; every write renews them.
    pub key_ttl: Option<u64>,
    /// Write without a look at what is stored.
    pub skip_dedup: bool,
}

/// Writes the rows of a view, which the store knows as `view`. A row that is not newer than what is stored, or than
/// an earlier row of its entity in this call, is left out whole; a stored time of zero stops nobody. Returns how
/// many rows were written.
pub fn write(
    connection: &mut impl ConnectionLike,
    project: &str,
    view: &str,
    rows: &[Row],
    rules: Rules,
) -> Result<usize, redis::RedisError> {
    let time_field = keys::time_field(view);
    let mut newest: std::collections::HashMap<Vec<u8>, i128> = std::collections::HashMap::new();
    let mut written = 0;
    for batch in rows.chunks(BATCH) {
        let full = |row: &Row| [&row.key[..], project.as_bytes()].concat();
        let stored: Vec<(Option<Vec<u8>>,)> = if rules.skip_dedup {
            vec![(None,); batch.len()]
        } else {
            let mut pipe = Pipeline::new();
            batch.iter().for_each(|row| {
                pipe.cmd("HMGET").arg(full(row)).arg(&time_field);
            });
            pipe.query(connection)?
        };
        let mut pipe = Pipeline::new();
        for (row, (stored,)) in batch.iter().zip(stored) {
            let key = full(row);
            let event = nanoseconds(row.event);
            if !rules.skip_dedup {
                let stored = stored.and_then(|bytes| seconds_and_nanos(&bytes).ok()).map_or(0, nanoseconds);
                let known = newest.get(&key).copied().unwrap_or(0).max(stored);
                if known != 0 && event <= known {
                    continue;
                }
                newest.insert(key.clone(), event);
            }
            let command = pipe.cmd("HSET").arg(&key).arg(&time_field).arg(timestamp(row.event));
            for (feature, value) in &row.features {
                command.arg(&keys::field(view, feature)).arg(value);
            }
            command.ignore();
            if let Some(seconds) = rules.key_ttl {
                pipe.cmd("EXPIRE").arg(&key).arg(seconds).ignore();
            }
            written += 1;
        }
        if !pipe.is_empty() {
            pipe.query::<()>(connection)?;
        }
    }
    Ok(written)
}

fn nanoseconds((seconds, nanos): (i64, i32)) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

/// A serialized `google.protobuf.Timestamp`; the epoch is the empty string.
fn timestamp((seconds, nanos): (i64, i32)) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in [(1, seconds), (2, i64::from(nanos))] {
        if value != 0 {
            wire::put_int(&mut out, number, value);
        }
    }
    out
}
