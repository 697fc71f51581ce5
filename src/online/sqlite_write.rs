//! Tables of the SQLite online store and how rows get into them, byte for byte as the reference does it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Error, ErrorCode, Result, TransactionBehavior};

use super::{OnlineWriter, Unwritten};
use crate::config::settings::Journal;
use crate::feature::rows::{Nanos, NoTime, Rows};
use crate::feature::zone::LocalZone;
use crate::text::pyfmt;

/// Makes the table of a view and its entity index, unless they are there.
pub fn create_table(connection: &Connection, table: &str) -> Result<()> {
    let name = table.replace('"', "\"\"");
    connection.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS \"{name}\" (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT, \
         vector_value BLOB, event_ts timestamp, created_ts timestamp, PRIMARY KEY(entity_key, feature_name));\
         CREATE INDEX IF NOT EXISTS \"{name}_ek\" ON \"{name}\" (entity_key);"
    ))
}

/// The value beside a serialized one that people can read: a text as it is, numbers and bools as Python prints them.
fn value_text(value: &[u8]) -> Option<std::borrow::Cow<'_, str>> {
    use crate::registry::wire::{Fields, Payload};
    let mut out = Vec::new();
    match Fields::new(value).next()?.ok()? {
        (2, Payload::Bytes(bytes)) => return std::str::from_utf8(bytes).ok().map(Into::into),
        (3, Payload::Varint(number)) => pyfmt::write_i64(&mut out, i64::from(number as i32)),
        (4, Payload::Varint(number)) => pyfmt::write_i64(&mut out, number.cast_signed()),
        (5, Payload::Fixed64(raw)) => pyfmt::write_f64(&mut out, f64::from_le_bytes(raw)),
        (6, Payload::Fixed32(raw)) => pyfmt::write_f64(&mut out, f64::from(f32::from_le_bytes(raw))),
        (7, Payload::Varint(value)) => return Some(if value != 0 { "True" } else { "False" }.into()),
        _ => return None,
    }
    String::from_utf8(out).ok().map(Into::into)
}

/// A connection that writes. Writers of all processes wait for each other.
pub struct SqliteWriter {
    path: PathBuf,
    zone: LocalZone,
    journal: Journal,
    patience: Duration,
    open: Option<Connection>,
}

impl SqliteWriter {
    /// A writer to the file at `path`, opened on first use. Times are stored as local times of `zone`.
    pub fn new(path: &Path, zone: LocalZone, journal: Journal, patience: Duration) -> Self {
        Self { path: path.to_owned(), zone, journal, patience, open: None }
    }

    fn connection(&mut self) -> Result<&mut Connection> {
        if self.open.is_none() {
            if let Some(folder) = self.path.parent().filter(|folder| !folder.exists()) {
                let _ = std::fs::create_dir(folder);
            }
            let connection = Connection::open(&self.path)?;
            connection.busy_timeout(self.patience)?;
            connection.pragma_update(None, "cache_size", -WRITE_CACHE_KIB)?;
            connection.set_prepared_statement_cache_capacity(64);
            if self.journal == Journal::Wal {
                // Somebody who reads right now can prevent it; the next opening tries again.
                let set: Result<String> =
                    connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0));
                if !set.as_deref().is_ok_and(|mode| mode == "wal") {
                    log::debug!("{}: journal mode not changed: {set:?}", self.path.display());
                }
            }
            // With a journal written ahead this syncs at each commit, too: what was acknowledged is durable.
            connection.pragma_update(None, "synchronous", "full")?;
            self.open = Some(connection);
        }
        self.open.as_mut().ok_or(Error::InvalidQuery)
    }

    fn try_write(&mut self, views: &[Rows]) -> Result<()> {
        let zone = self.zone.clone();
        let connection = self.connection()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for rows in views {
            let name = rows.table.replace('"', "\"\"");
            // Every statement is made anew when the table has changed: that is the library's business.
            let mut statement = transaction.prepare_cached(&format!(
                "INSERT INTO \"{name}\" (entity_key, feature_name, value, value_text, event_ts, created_ts) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT(entity_key, feature_name) DO UPDATE SET \
                 value = excluded.value, value_text = excluded.value_text, event_ts = excluded.event_ts, \
                 created_ts = excluded.created_ts"
            ))?;
            for row in 0..rows.len() {
                let head = rows.heads[row];
                statement.raw_bind_parameter(1, rows.key(row))?;
                statement.raw_bind_parameter(5, seconds(head.event, &zone))?;
                statement.raw_bind_parameter(6, head.created.map(|at| seconds(at, &zone)))?;
                for feature in 0..rows.features.len() {
                    let value = rows.value(row, feature);
                    statement.raw_bind_parameter(2, rows.features[feature].as_str())?;
                    statement.raw_bind_parameter(3, value)?;
                    statement.raw_bind_parameter(4, value_text(value).as_deref())?;
                    statement.raw_execute()?;
                }
            }
        }
        transaction.commit()
    }
}

/// Page cache of a writer in KiB.
const WRITE_CACHE_KIB: i64 = 64 << 10;

/// Whole seconds, cut towards zero as Python's `int` does, in the local time of the process.
fn seconds(at: Nanos, zone: &LocalZone) -> i64 {
    zone.instant_of(at / 1_000_000_000)
}

impl OnlineWriter for SqliteWriter {
    fn write(&mut self, views: &[Rows]) -> std::result::Result<(), Unwritten> {
        self.try_write(views).map_err(|error| {
            if !matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
            {
                // Whatever state the connection is in, the next write begins with a new one.
                self.open = None;
            }
            Unwritten::Failed(match &error {
                Error::SqliteFailure(_, Some(text)) => text.clone(),
                Error::SqlInputError { msg, .. } => msg.clone(),
                other => other.to_string(),
            })
        })
    }

    fn no_time(&self) -> NoTime {
        NoTime {
            event: "Error binding parameter 5: type 'NaTType' is not supported",
            created: Some("Error binding parameter 6: type 'NaTType' is not supported"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_beside_values_are_pythons() {
        for (value, text) in [
            (&[0x35, 0, 0, 0, 0x3f][..], Some("0.5")),
            (&[0x20, 7], Some("7")),
            (&[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some("-1")),
            (&[0x12, 1, b'n'], Some("n")),
            (&[0x38, 1], Some("True")),
            (&[0x62, 0], None),
            (&[], None),
        ] {
            assert_eq!(value_text(value).as_deref(), text);
        }
    }
}
