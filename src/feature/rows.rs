//! Rows of one view on their way into an online store.

use super::cell::{Cell, Column, Kind};
use super::encode;
use super::entity_key::{KeyError, KeyLayout};
use super::plan::{stored_name, table_name};
use crate::registry::model::View;
use crate::registry::snapshot::DUMMY_JOIN_KEY;
use crate::registry::Snapshot;
use crate::text::when::{self, WhenError, SECOND};

/// Most bytes of the rows of one frame; places in them have 32 bits.
const MOST_BYTES: usize = 1 << 30;

/// Nanoseconds since the epoch.
pub type Nanos = i64;

/// Serialized rows, each with the same features.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// The view's name.
    pub view: String,
    /// The name it is stored under.
    pub stored: String,
    /// Its table in a SQL store.
    pub table: String,
    /// Feature names in the order of the values.
    pub features: Vec<String>,
    /// One per row.
    pub heads: Vec<Head>,
    /// Keys and values of all rows.
    arena: Vec<u8>,
    /// Where each value ends in `arena`, row by row.
    ends: Vec<u32>,
}

/// Key and times of a row.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    key: (u32, u32),
    /// Event time.
    pub event: Nanos,
    /// Time the row was made.
    pub created: Option<Nanos>,
}

impl Rows {
    /// No rows of a view that is stored as `stored`, in a SQL store in `table`.
    pub fn new(view: &str, stored: &str, table: &str, features: Vec<String>) -> Self {
        let (view, stored, table) = (view.to_owned(), stored.to_owned(), table.to_owned());
        Self { view, stored, table, features, ..Self::default() }
    }

    /// No rows of a view.
    pub fn of(target: &Target) -> Self {
        let features = target.features.iter().map(|(name, _)| name.clone()).collect();
        Self::new(&target.view, &target.stored, &target.table, features)
    }

    /// No rows of the same view.
    #[must_use]
    pub fn empty_copy(&self) -> Self {
        Self::new(&self.view, &self.stored, &self.table, self.features.clone())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Bytes held.
    pub fn size(&self) -> usize {
        self.arena.len() + self.ends.len() * 4 + self.heads.len() * size_of::<Head>()
    }

    /// Forgets all rows and keeps the memory.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.arena.clear();
        self.ends.clear();
    }

    /// The serialized entity key of a row.
    pub fn key(&self, row: usize) -> &[u8] {
        let (start, end) = self.heads[row].key;
        &self.arena[start as usize..end as usize]
    }

    /// The serialized value of a feature; empty = null.
    pub fn value(&self, row: usize, feature: usize) -> &[u8] {
        let index = row * self.features.len() + feature;
        let start = if feature == 0 { self.heads[row].key.1 } else { self.ends[index - 1] };
        &self.arena[start as usize..self.ends[index] as usize]
    }

    /// Adds a copy of a row of `other`, which has the same features.
    pub fn push_from(&mut self, other: &Self, row: usize) {
        let head = other.heads[row];
        let pushed: Result<(), std::convert::Infallible> = self.push(
            head.event,
            head.created,
            |out| {
                out.extend_from_slice(other.key(row));
                Ok(())
            },
            |feature, out| {
                out.extend_from_slice(other.value(row, feature));
                Ok(())
            },
        );
        let Ok(()) = pushed;
    }

    /// Adds a row: `key` appends its key, `value` the value of the feature with that index.
    pub fn push<E>(
        &mut self,
        event: Nanos,
        created: Option<Nanos>,
        key: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
        mut value: impl FnMut(usize, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.arena.len() as u32;
        key(&mut self.arena)?;
        self.heads.push(Head { key: (start, self.arena.len() as u32), event, created });
        for feature in 0..self.features.len() {
            value(feature, &mut self.arena)?;
            self.ends.push(self.arena.len() as u32);
        }
        Ok(())
    }
}

/// A view as something to write to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The view's name.
    pub view: String,
    /// The name it is stored under.
    pub stored: String,
    /// Its table.
    pub table: String,
    /// Features with their types.
    pub features: Vec<(String, u32)>,
    /// Join keys with their types, sorted by name.
    pub keys: Vec<(String, u32)>,
    /// The key's fixed part.
    pub layout: KeyLayout,
    /// Column with the event time, as the view calls it.
    pub timestamp: String,
    /// Column with the time a row was made, as the view calls it; empty = none.
    pub created: String,
    /// The view has no entities: everything is stored under one key.
    pub entityless: bool,
}

impl Target {
    /// Of a view of `snapshot`.
    pub fn of(view: &View, snapshot: &Snapshot, key_version: i64) -> Self {
        let version = if snapshot.rules.versioning { view.version } else { 0 };
        let stored = stored_name(&view.name, version);
        let mut keys: Vec<(String, u32)> =
            view.entity_columns.iter().map(|field| (field.name.clone(), field.value_type)).collect();
        let entityless = keys.is_empty() || keys.iter().all(|(name, _)| name == DUMMY_JOIN_KEY);
        if entityless {
            keys = vec![(DUMMY_JOIN_KEY.to_owned(), encode::types::STRING)];
        }
        keys.sort();
        keys.dedup_by(|a, b| a.0 == b.0);
        let names: Vec<&str> = keys.iter().map(|(name, _)| name.as_str()).collect();
        let layout = KeyLayout::new(&names, key_version);
        let source = view.batch_source.as_ref().or(view.stream_source.as_ref());
        let mapped = |name: &str| source.map_or(name, |source| source.mapped(name)).to_owned();
        Self {
            view: view.name.clone(),
            table: table_name(&snapshot.project, &stored),
            stored,
            features: view.features.iter().map(|f| (f.name.clone(), f.value_type)).collect(),
            layout,
            keys,
            timestamp: mapped(source.map_or("event_timestamp", |source| &source.timestamp_field)),
            created: mapped(source.map_or("", |source| &source.created_field)),
            entityless,
        }
    }

    /// Appends the key of row `row`; `columns` are those of [`keys`](Self::keys), in their order.
    pub fn put_key(&self, columns: &[&Column<'_>], row: usize, out: &mut Vec<u8>) -> Result<(), String> {
        self.layout.begin(out);
        if self.entityless {
            let empty = super::entity::EntityValue::Str("".into());
            return self.layout.value(out, &empty).map_err(|error| error.message());
        }
        for ((_, value_type), column) in self.keys.iter().zip(columns) {
            let value = encode::join_key(*value_type, &column.kind, &column.cells[row])?;
            self.layout.value(out, &value).map_err(|error| match error {
                KeyError::Null => "Value type not supported for feast feature store: ".to_owned(),
                other => other.message(),
            })?;
        }
        Ok(())
    }
}

/// What a store says about a row without a time, in the reference.
#[derive(Debug, Clone, Copy)]
pub struct NoTime {
    /// No event time.
    pub event: &'static str,
    /// No created time; `None` where that does not matter.
    pub created: Option<&'static str>,
}

/// Why a time column cannot be read, and the instants in it otherwise.
pub fn times(column: &Column<'_>, now: i64) -> Result<Vec<Option<Nanos>>, String> {
    match &column.kind {
        Kind::Bool => return Err("dtype bool cannot be converted to datetime64[ns]".to_owned()),
        Kind::List(_) | Kind::Map => {
            return Err("<class 'numpy.ndarray'> is not convertible to datetime, at position 0".to_owned());
        }
        Kind::Struct => return Err("<class 'dict'> is not convertible to datetime, at position 0".to_owned()),
        _ => {}
    }
    let mut form = Form::Unseen;
    let mut out = Vec::with_capacity(column.cells.len());
    for (position, cell) in column.cells.iter().enumerate() {
        out.push(match cell {
            Cell::Int(nanos) => Some(*nanos),
            Cell::Float(nanos) if !nanos.is_nan() => Some(*nanos as i64),
            Cell::Time { seconds, nanos, .. } => {
                let whole = i128::from(*seconds) * SECOND + i128::from(*nanos);
                Some(i64::try_from(whole).map_err(|_| out_of_bounds(&cell.print(false), position))?)
            }
            Cell::Date(days) => Some(i64::from(*days) * 86_400 * SECOND as i64),
            Cell::Str(text) if !["", "nan", "NaN", "NaT"].contains(&text.as_ref()) => {
                Some(time_of_text(text, position, &mut form, now)?)
            }
            _ => None,
        });
    }
    Ok(out)
}

fn out_of_bounds(text: &str, position: usize) -> String {
    format!("Out of bounds nanosecond timestamp: {text}, at position {position}")
}

/// The form that the texts of a column have.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// None has been seen.
    Unseen,
    /// Any: the first one had no form that could be named.
    Loose,
    /// This one.
    Fixed(String),
}

/// The first text of a column decides about the form of all others; a loose form decides nothing.
fn time_of_text(text: &str, position: usize, form: &mut Form, now: i64) -> Result<Nanos, String> {
    if ["now", "today"].contains(&text) {
        if *form == Form::Unseen {
            *form = Form::Loose;
        }
        return i64::try_from(i128::from(now) * SECOND).map_err(|_| out_of_bounds(text, position));
    }
    let found = when::parse(text, now).map_err(|error| match error {
        WhenError::Unknown => {
            format!("Unknown datetime string format, unable to parse: {text}, at position {position}")
        }
        WhenError::Range(problem) => format!("{problem}: {text}, at position {position}"),
    })?;
    if *form == Form::Unseen {
        *form = found.format.clone().map_or(Form::Loose, Form::Fixed);
    }
    if let (Form::Fixed(wanted), Some(has)) = (&*form, found.format.as_deref()) {
        if !same_format(wanted, has) {
            return Err(mismatch(text, position, wanted, has));
        }
    }
    i64::try_from(found.nanos).map_err(|_| out_of_bounds(text, position))
}

/// Month, day and clock may have one digit or two; a fraction any number of them.
fn same_format(wanted: &str, has: &str) -> bool {
    wanted.replace(['t', ','], "T") == has.replace(['t', ','], "T")
}

fn mismatch(text: &str, position: usize, wanted: &str, has: &str) -> String {
    const HINT: &str = "You might want to try:\n    - passing `format` if your strings have a consistent format;\n    \
        - passing `format='ISO8601'` if your strings are all ISO8601 but not necessarily in exactly the same format;\n    \
        - passing `format='mixed'`, and the format will be inferred for each element individually. You might want to \
        use `dayfirst` alongside this.";
    match has.strip_prefix(wanted) {
        Some(rest) if !rest.is_empty() => {
            // What the longer form adds begins with a point, a sign, a letter or a blank.
            let marks: &[char] = if rest.starts_with(['.', ',']) {
                &['.', ',']
            } else if rest.contains("%z") {
                &['Z', 'z', '+', '-', 'U', 'G', ' ']
            } else {
                &['T', ' ', ':']
            };
            let date = (0..=text.len().min(10)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            let cut = text[date..].find(marks).map_or(text.len(), |at| at + date);
            let rest = crate::text::pyrepr::repr(&text[cut..]);
            let rest = rest.trim_matches('\'');
            format!("unconverted data remains when parsing with format \"{wanted}\": \"{rest}\", at position {position}. {HINT}")
        }
        _ => {
            format!("time data \"{text}\" doesn't match format \"{wanted}\", at position {position}. {HINT}")
        }
    }
}

/// True when a frame has rows and all feature columns, with a value in them: only then the types of its columns
/// matter.
pub fn reaches_values(target: &Target, columns: &[Column<'_>]) -> bool {
    let mut values = false;
    let complete = target.features.iter().all(|(name, _)| {
        let found = columns.iter().find(|column| column.name == *name);
        values |= found.is_some_and(|column| column.cells.iter().any(|cell| !cell.is_null()));
        found.is_some()
    });
    complete && values
}

/// Converts all rows of a frame for one view. `Ok(None)`: nothing to store.
///
/// The order of checks is the reference's: rows, feature columns, values at all, join keys, times, values.
pub fn convert(
    target: &Target,
    rename: &dyn Fn(&str) -> String,
    columns: &[Column<'_>],
    checked: &dyn Fn() -> Result<(), String>,
    no_time: NoTime,
    now: i64,
) -> Result<Option<Rows>, String> {
    let rows = columns.first().map_or(0, |column| column.cells.len());
    if rows == 0 {
        return Ok(None);
    }
    let mut features = Vec::with_capacity(target.features.len());
    let mut missing = Vec::new();
    for (name, _) in &target.features {
        match columns.iter().find(|column| column.name == *name) {
            Some(column) => features.push(column),
            None => missing.push(name.as_str()),
        }
    }
    if !missing.is_empty() {
        return Err(missing_columns(&missing, target.features.len()));
    }
    if features.iter().all(|column| column.cells.iter().all(Cell::is_null)) {
        return Ok(None);
    }
    checked()?;
    let find = |name: &str| columns.iter().find(|column| rename(&column.name) == name);
    let mut keys = Vec::new();
    if !target.entityless {
        for (name, _) in &target.keys {
            keys.push(find(name).ok_or_else(|| format!("Column {name} not found in table"))?);
        }
    }
    let absent = |name: &str| format!("'Field \"{name}\" does not exist in schema'");
    let event = find(&target.timestamp).ok_or_else(|| absent(&target.timestamp))?;
    let created = match target.created.as_str() {
        "" => None,
        name => Some(find(name).ok_or_else(|| absent(name))?),
    };
    for ((_, value_type), column) in target.features.iter().zip(&features) {
        encode::check(*value_type, column)?;
    }
    let events = times(event, now)?;
    let created = created.map(|column| times(column, now)).transpose()?;
    let mut out = Rows::of(target);
    for row in 0..rows {
        let event = events[row];
        let made = created.as_ref().and_then(|times| times[row]);
        let push = out.push(
            event.unwrap_or(0),
            made,
            |out| target.put_key(&keys, row, out),
            |feature, out| {
                let column = features[feature];
                encode::encode(target.features[feature].1, &column.kind, &column.cells[row], out)
            },
        );
        push?;
        if out.size() > MOST_BYTES {
            return Err("The frame is too large: send fewer rows at once".to_owned());
        }
        if event.is_none() {
            return Err(no_time.event.to_owned());
        }
        if let (None, Some(_), Some(text)) = (made, &created, no_time.created) {
            return Err(text.to_owned());
        }
    }
    Ok(Some(out))
}

/// pandas' error about columns that are not there: a `KeyError`, which prints as a `repr`.
pub fn missing_columns(missing: &[&str], all: usize) -> String {
    let text = if missing.len() == all {
        let names = crate::text::pyrepr::repr_list(missing.iter().copied());
        format!("None of [Index({names}, dtype='object')] are in the [columns]")
    } else {
        format!("{} not in index", crate::text::pyrepr::repr_list(missing.iter().copied()))
    };
    crate::text::pyrepr::repr(&text)
}
