//! Reads from the SQLite online store.
//!
//! Opened after the fork, on first use (a connection must not cross a fork). Every turn of the loop that
//! reads has one read transaction; a writer that holds the file makes a read [`ReadError::Busy`] instead of
//! blocking the loop. All features of an entity are looked at, not only the requested ones, because the last
//! record in insertion order carries the event time, and because one broken value fails the read there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, Row, Statement};

use super::{OnlineStore, Progress, ReadError};
use crate::feature::cells::{Cells, EventTime, Keys};
use crate::feature::plan::ViewRead;
use crate::feature::value;
use crate::feature::zone::LocalZone;
use crate::text::{pyint, pyrepr, time};

/// Page cache of one connection in KiB.
const CACHE_KIB: i64 = 2_000;

/// Lets the library set itself up. A process that forks does it before, so that its children need not: no
/// connection crosses the fork, only the library's tables.
pub fn warm_up() {
    if let Err(error) = Connection::open_in_memory() {
        log::debug!("SQLite: {error}");
    }
}

/// A lazily opened store.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    zone: LocalZone,
    open: Option<Open>,
    scratch: Vec<u8>,
    guesses: Vec<u32>,
}

/// Connections live as long as their process, which is what lets statements be kept beside them.
#[derive(Debug)]
struct Open {
    connection: &'static Connection,
    begin: Statement<'static>,
    commit: Statement<'static>,
    selects: HashMap<String, Statement<'static>, foldhash::fast::RandomState>,
    in_transaction: bool,
}

impl Sqlite {
    /// A store in the file at `path`. Event times are local times of `zone`, as in the reference.
    pub fn new(path: &Path, zone: LocalZone) -> Self {
        Self { path: path.to_owned(), zone, open: None, scratch: Vec::new(), guesses: Vec::new() }
    }

    fn connect(&mut self) -> Result<(), Error> {
        if self.open.is_none() {
            self.open = Some(Open::new(&self.path)?);
        }
        Ok(())
    }
}

impl Open {
    fn new(path: &Path) -> Result<Self, Error> {
        // Read-write so that a journal left by a crashed writer can be rolled back; never created.
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_READ_WRITE)
            .or_else(|_| Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_READ_ONLY))?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "mmap_size", 1_i64 << 32)?;
        let connection: &'static Connection = Box::leak(Box::new(connection));
        Ok(Self {
            connection,
            begin: connection.prepare("BEGIN")?,
            commit: connection.prepare("COMMIT")?,
            selects: HashMap::default(),
            in_transaction: false,
        })
    }

    fn begin(&mut self) -> Result<(), Error> {
        if !self.in_transaction {
            self.begin.execute([])?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// The statement that reads one entity of `table`, in the order of the table's entity index.
    fn select(&mut self, table: &str) -> Result<&mut Statement<'static>, Error> {
        if !self.selects.contains_key(table) {
            let quoted = table.replace('"', "\"\"");
            let sql = |hint: &str| {
                format!("SELECT feature_name, value, event_ts FROM \"{quoted}\" {hint} WHERE entity_key = ?1")
            };
            // Tables made by other tools may lack the index; the reference then goes by the primary key.
            let statement =
                self.connection.prepare(&sql(&format!("INDEXED BY \"{quoted}_ek\""))).or_else(|error| {
                    match message(&error) {
                        Some(text) if text.starts_with("no such index") => self.connection.prepare(&sql("")),
                        _ => Err(error),
                    }
                })?;
            self.selects.insert(table.to_owned(), statement);
        }
        self.selects.get_mut(table).ok_or(Error::InvalidQuery)
    }
}

impl OnlineStore for Sqlite {
    fn read(&mut self, view: &ViewRead, keys: &Keys, cells: &mut Cells) -> Result<Progress, ReadError> {
        if let Err(error) = self.connect() {
            // The reference creates a missing file, so that its tables are what is missing.
            if !self.path.exists() {
                return Err(ReadError::Failed(format!("no such table: {}", view.table)));
            }
            return Err(failure(&error));
        }
        let Some(open) = &mut self.open else { return Err(ReadError::Busy) };
        open.begin().map_err(|error| failure(&error))?;
        let statement = open.select(&view.table).map_err(|error| failure(&error))?;
        let mut reader =
            Reader { view, cells, zone: &self.zone, scratch: &mut self.scratch, guesses: &mut self.guesses };
        reader.guesses.clear();
        for index in 0..keys.len() {
            let mut rows = statement.query([keys.key(index)]).map_err(|error| failure(&error))?;
            let mut position = 0;
            let mut last = None;
            while let Some(row) = rows.next().map_err(|error| failure(&error))? {
                last = Some(reader.record(row, index, position)?);
                position += 1;
            }
            if let Some(time) = last {
                reader.cells.set_time(index, time);
            }
        }
        Ok(Progress::Done)
    }

    fn end_tick(&mut self) {
        if let Some(open) = self.open.as_mut().filter(|open| open.in_transaction) {
            open.in_transaction = false;
            if open.commit.execute([]).is_err() {
                // Without a transaction there is nothing to end; with one, it must not stay open.
                let _ = open.connection.execute_batch("ROLLBACK");
            }
        }
    }
}

/// A feature that the request did not ask for.
const UNASKED: u32 = u32::MAX;

struct Reader<'r> {
    view: &'r ViewRead,
    cells: &'r mut Cells,
    zone: &'r LocalZone,
    scratch: &'r mut Vec<u8>,
    /// For each position in an entity's records the feature found there last time: entities are written
    /// alike, so that a look at the name usually confirms the guess.
    guesses: &'r mut Vec<u32>,
}

impl Reader<'_> {
    /// Takes one record of the key at `index`; returns its event time.
    fn record(&mut self, row: &Row<'_>, index: usize, position: usize) -> Result<EventTime, ReadError> {
        let column = |number| row.get_ref(number).map_err(|error| failure(&error));
        let feature = match column(0)? {
            ValueRef::Text(name) => self.feature(name, position),
            _ => None,
        };
        let bytes = match column(1)? {
            ValueRef::Blob(bytes) => bytes,
            other => return Err(ReadError::Failed(format!("expected bytes, {} found", type_name(other)))),
        };
        match feature {
            Some(feature) => self.cells.put(index, feature, bytes),
            None => value::check(bytes, self.scratch).map_err(|e| ReadError::Failed(e.to_string()))?,
        }
        event_time(column(2)?, self.zone).map_err(ReadError::Failed)
    }

    #[inline]
    fn feature(&mut self, name: &[u8], position: usize) -> Option<usize> {
        if let Some(&guess) = self.guesses.get(position) {
            if guess != UNASKED && self.view.features[guess as usize].as_bytes() == name {
                return Some(guess as usize);
            }
        }
        let found = std::str::from_utf8(name).ok().and_then(|name| self.view.feature(name));
        if self.guesses.len() <= position {
            self.guesses.resize(position + 1, UNASKED);
        }
        self.guesses[position] = found.map_or(UNASKED, |index| index as u32);
        found
    }
}

fn type_name(value: ValueRef<'_>) -> &'static str {
    match value {
        ValueRef::Null => "NoneType",
        ValueRef::Integer(_) => "int",
        ValueRef::Real(_) => "float",
        ValueRef::Text(_) => "str",
        ValueRef::Blob(_) => "bytes",
    }
}

/// Reads the event time as the reference's adapter does: an integer, or a text that is one.
fn event_time(value: ValueRef<'_>, zone: &LocalZone) -> Result<EventTime, String> {
    let seconds = match value {
        ValueRef::Integer(seconds) => seconds,
        ValueRef::Null => return Err("'NoneType' object has no attribute 'tzinfo'".to_owned()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => from_text(&String::from_utf8_lossy(bytes))?,
        ValueRef::Real(number) => {
            let mut text = Vec::new();
            crate::text::pyfmt::write_f64(&mut text, number);
            from_text(&String::from_utf8_lossy(&text))?
        }
    };
    match zone.wall_clock(seconds) {
        Some(seconds) => Ok(EventTime { seconds, nanos: 0 }),
        None => Err(format!("year {} is out of range", time::civil(seconds).year)),
    }
}

fn from_text(text: &str) -> Result<i64, String> {
    match pyint::parse_i64(text) {
        Ok(Ok(seconds)) => Ok(seconds),
        Ok(Err(_)) => Err("timestamp out of range for platform time_t".to_owned()),
        Err(_) => Err(format!("invalid literal for int() with base 10: b{}", pyrepr::repr(text))),
    }
}

fn message(error: &Error) -> Option<&str> {
    match error {
        Error::SqliteFailure(_, Some(text)) => Some(text),
        Error::SqlInputError { msg, .. } => Some(msg),
        _ => None,
    }
}

fn failure(error: &Error) -> ReadError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ReadError::Busy,
        _ => ReadError::Failed(message(error).map_or_else(|| error.to_string(), str::to_owned)),
    }
}
