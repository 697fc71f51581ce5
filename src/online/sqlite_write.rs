//! Tables of the SQLite online store and how rows get into them, byte for byte as the reference does it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, Error, ErrorCode, Result, TransactionBehavior};

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
            let mut table = Table::open(&transaction, rows)?;
            for row in 0..rows.len() {
                table.write(rows, row, &zone)?;
            }
        }
        transaction.commit()
    }
}

/// The statements of one table.
///
/// An entity is looked up once, in the index of its primary key; what is there is updated by its row number and the
/// rest inserted. An upsert per value would search the same index as often as there are values. Nobody else writes
/// meanwhile: the transaction has the lock.
struct Table<'c> {
    find: CachedStatement<'c>,
    update: CachedStatement<'c>,
    insert: CachedStatement<'c>,
    /// Features by name.
    names: HashMap<&'c str, usize, foldhash::fast::RandomState>,
    /// Row number of each feature of the entity at hand.
    places: Vec<Option<i64>>,
}

impl<'c> Table<'c> {
    fn open(connection: &'c Connection, rows: &'c Rows) -> Result<Self> {
        let name = rows.table.replace('"', "\"\"");
        Ok(Self {
            names: rows.features.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect(),
            find: connection
                .prepare_cached(&format!("SELECT feature_name, rowid FROM \"{name}\" WHERE entity_key = ?1"))?,
            update: connection.prepare_cached(&format!(
                "UPDATE \"{name}\" SET value = ?1, value_text = ?2, event_ts = ?3, created_ts = ?4 WHERE rowid = ?5"
            ))?,
            insert: connection.prepare_cached(&format!(
                "INSERT INTO \"{name}\" (value, value_text, event_ts, created_ts, entity_key, feature_name) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
            ))?,
            places: Vec::new(),
        })
    }

    fn write(&mut self, rows: &Rows, row: usize, zone: &LocalZone) -> Result<()> {
        self.places.clear();
        self.places.resize(rows.features.len(), None);
        let mut stored = self.find.query([rows.key(row)])?;
        while let Some(record) = stored.next()? {
            let name = record.get_ref(0)?.as_str().unwrap_or_default();
            if let Some(&feature) = self.names.get(name) {
                self.places[feature] = Some(record.get(1)?);
            }
        }
        drop(stored);
        let head = rows.heads[row];
        let (event, created) = (seconds(head.event, zone), head.created.map(|at| seconds(at, zone)));
        for feature in 0..rows.features.len() {
            let value = rows.value(row, feature);
            let statement = match self.places[feature] {
                Some(place) => {
                    self.update.raw_bind_parameter(5, place)?;
                    &mut self.update
                }
                None => {
                    self.insert.raw_bind_parameter(5, rows.key(row))?;
                    self.insert.raw_bind_parameter(6, rows.features[feature].as_str())?;
                    &mut self.insert
                }
            };
            statement.raw_bind_parameter(1, value)?;
            statement.raw_bind_parameter(2, value_text(value).as_deref())?;
            statement.raw_bind_parameter(3, event)?;
            statement.raw_bind_parameter(4, created)?;
            statement.raw_execute()?;
        }
        Ok(())
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
