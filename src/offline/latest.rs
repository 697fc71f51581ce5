//! The newest row of every entity in a window of time.
//!
//! Two passes: the first reads keys and times only and remembers, per entity, which row wins; the second reads
//! the features of the winners. Memory grows with the number of entities, not of rows.

use std::fs::File;
use std::path::Path;

use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Schema, TimeUnit};
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::ProjectionMask;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;
use std::hash::BuildHasher;

use super::files::Part;
use super::read::{access, instants, kind_of, Access};
use crate::feature::cell::{Cell, Column, Kind, INT64};
use crate::feature::encode;
use crate::feature::rows::{missing_columns, Nanos, Rows, Target};
use crate::registry::source::Source;

/// Rows decoded at once.
const BATCH: usize = 8192;
/// Bytes of values that are held at once when entities have to be sorted.
const MOST_SORTED: usize = 256 << 20;
/// Files that stay open during a scan.
const MOST_OPEN: usize = 256;
/// Rows handed on at once.
const CHUNK: usize = 2_000;

/// What is read and how.
pub struct Scan<'s> {
    /// The files.
    pub parts: &'s [Part],
    /// What they are called, for messages.
    pub name: &'s str,
    /// The source's columns.
    pub source: &'s Source,
    /// What is made of them.
    pub target: &'s Target,
    /// First instant of the window, nanoseconds; microseconds count.
    pub start: i128,
    /// Last instant of the window.
    pub end: i128,
    /// Hand the entities on in the order of their keys.
    pub sorted: bool,
    /// What the reference answers for a winner without a created time, if that is an error.
    pub no_created: Option<&'static str>,
}

/// Why a scan has ended early.
#[derive(Debug)]
pub enum Halt {
    /// The data, in the words of the reference where it has some.
    Data(String),
    /// Join keys that the data does not have.
    JoinKeys(String),
    /// Whoever takes the rows wants no more.
    Stopped,
}

impl From<String> for Halt {
    fn from(text: String) -> Self {
        Self::Data(text)
    }
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Rows whose keys were read, of all rows in the files that may matter.
    Read {
        /// So far.
        rows: u64,
        /// Together.
        of: u64,
    },
    /// Entities handed on.
    Written {
        /// So far.
        entities: u64,
        /// Together.
        of: u64,
    },
}

/// Who takes the rows.
pub trait Sink {
    /// Takes some.
    fn rows(&mut self, rows: &Rows) -> Result<(), Halt>;
    /// Hears how far it is, and may stop.
    fn progress(&mut self, progress: Progress) -> Result<(), Halt>;
}

/// A file that is read: its metadata and those of its row groups that may hold rows of the window.
struct Opened<'s> {
    part: &'s Part,
    metadata: ArrowReaderMetadata,
    groups: Vec<usize>,
    /// The file itself, of which another one may take the place meanwhile; of the first files only.
    file: Option<File>,
}

impl Opened<'_> {
    /// The file that the metadata belong to.
    fn file(&self) -> std::io::Result<File> {
        self.file.as_ref().map_or_else(|| File::open(&self.part.path), File::try_clone)
    }
}

struct Winner {
    /// Where the values of its key are in the arena.
    key: (u32, u32),
    event: Nanos,
    created: Option<Nanos>,
    row: u64,
}

/// Scans; returns the number of entities handed on.
pub fn scan(scan: &Scan<'_>, sink: &mut dyn Sink) -> Result<u64, Halt> {
    let opened = open(scan)?;
    let Some(first) = opened.first() else { return Ok(0) };
    check_columns(scan, first)?;
    opened.iter().filter(|file| !file.groups.is_empty()).try_for_each(|file| check_columns(scan, file))?;
    let mut winners = Winners::default();
    find_winners(scan, &opened, &mut winners, sink)?;
    let total = winners.list.len() as u64;
    if total == 0 {
        return Ok(0);
    }
    winners.table = HashTable::new();
    write_winners(scan, &opened, &winners, sink)?;
    Ok(total)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Halt {
    Halt::Data(format!("{}: {error}", path.display()))
}

fn open<'s>(scan: &Scan<'s>) -> Result<Vec<Opened<'s>>, Halt> {
    let mut opened = Vec::new();
    for part in scan.parts {
        let file = File::open(&part.path).map_err(|error| unreadable(&part.path, &error))?;
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
            .map_err(|error| unreadable(&part.path, &error))?;
        let time = scan.source.column(&scan.target.timestamp);
        let leaf = leaf_of(&metadata, time);
        let unit = metadata.schema().field_with_name(time).ok().map(|field| field.data_type().clone());
        let groups = metadata.metadata().row_groups().iter().enumerate();
        let groups = groups
            .filter(|(_, group)| may_match(group, leaf, unit.as_ref(), scan.start, scan.end))
            .map(|(index, _)| index)
            .collect();
        let file = (opened.len() < MOST_OPEN).then_some(file);
        opened.push(Opened { part, metadata, groups, file });
    }
    Ok(opened)
}

/// The column of the file that holds the top-level field `name`, if that has one column.
fn leaf_of(metadata: &ArrowReaderMetadata, name: &str) -> Option<usize> {
    let descriptor = metadata.metadata().file_metadata().schema_descr();
    (0..descriptor.num_columns()).find(|&index| descriptor.column(index).path().parts() == [name])
}

/// False when the statistics say that no row of the group lies in the window.
fn may_match(
    group: &RowGroupMetaData,
    leaf: Option<usize>,
    unit: Option<&DataType>,
    start: i128,
    end: i128,
) -> bool {
    let factor = match unit {
        Some(DataType::Timestamp(TimeUnit::Second, _)) => 1_000_000_000,
        Some(DataType::Timestamp(TimeUnit::Millisecond, _)) => 1_000_000,
        Some(DataType::Timestamp(TimeUnit::Microsecond, _)) => 1000,
        Some(DataType::Timestamp(TimeUnit::Nanosecond, _)) => 1,
        _ => return true,
    };
    let statistics = leaf.and_then(|leaf| group.column(leaf).statistics());
    let Some(Statistics::Int64(values)) = statistics else { return true };
    let (Some(least), Some(most)) = (values.min_opt(), values.max_opt()) else { return true };
    // Whole microseconds on both sides.
    i128::from(*most) * factor >= start - 1000 && i128::from(*least) * factor <= end + 1000
}

/// The names that the scan needs, as the files call them.
fn needed<'s>(scan: &'s Scan<'_>) -> (Vec<&'s str>, Vec<&'s str>) {
    let column = |name: &'s str| scan.source.column(name);
    let mut keys: Vec<&str> = Vec::new();
    if !scan.target.entityless {
        keys.extend(scan.target.keys.iter().map(|(name, _)| column(name)));
    }
    (keys, scan.target.features.iter().map(|(name, _)| column(name)).collect())
}

fn check_columns(scan: &Scan<'_>, first: &Opened<'_>) -> Result<(), Halt> {
    let schema = first.metadata.schema();
    let has = |name: &str| {
        schema.field_with_name(name).is_ok() || first.part.partitions.iter().any(|(known, _)| known == name)
    };
    let (keys, features) = needed(scan);
    let missing: Vec<&str> = keys.iter().copied().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        let set = |names: &[&str]| {
            let mut names: Vec<String> = names.iter().map(|name| crate::text::pyrepr::repr(name)).collect();
            names.sort();
            format!("{{{}}}", names.join(", "))
        };
        return Err(Halt::JoinKeys(format!(
            "The DataFrame from {} being materialized must have at least {} columns present, but these were missing: \
             {} ",
            scan.name,
            set(&keys),
            set(&missing)
        )));
    }
    for name in [scan.source.column(&scan.target.timestamp), scan.source.column(&scan.target.created)] {
        if !name.is_empty() && !has(name) {
            return Err(Halt::Data(crate::text::pyrepr::repr(name)));
        }
    }
    if schema.field_with_name(scan.source.column(&scan.target.timestamp)).is_err() {
        return Err(Halt::Data(not_a_time(&DataType::Utf8)));
    }
    let missing: Vec<&str> = features.iter().copied().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        return Err(Halt::Data(missing_columns(&missing, features.len())));
    }
    Ok(())
}

/// The newest rows so far, by the values of their keys.
#[derive(Default)]
struct Winners {
    list: Vec<Winner>,
    arena: Vec<u8>,
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Winners {
    fn key(&self, index: u32) -> &[u8] {
        let (start, end) = self.list[index as usize].key;
        &self.arena[start as usize..end as usize]
    }

    /// Lets a row take part.
    fn offer(&mut self, key: &[u8], event: Nanos, created: Option<Nanos>, row: u64) -> Result<(), Halt> {
        let hash = self.hasher.hash_one(key);
        let (list, arena) = (&self.list, &self.arena);
        let of = |index: u32| {
            let (start, end) = list[index as usize].key;
            &arena[start as usize..end as usize]
        };
        if let Some(&index) = self.table.find(hash, |&index| of(index) == key) {
            let winner = &mut self.list[index as usize];
            // Microseconds count; a missing created time loses; of equals the first one stays.
            let rank = |event: Nanos, created: Option<Nanos>| (event.div_euclid(1000), created);
            if rank(event, created) > rank(winner.event, winner.created) {
                winner.event = event;
                winner.created = created;
                winner.row = row;
            }
            return Ok(());
        }
        let start = self.arena.len();
        if start + key.len() > u32::MAX as usize || self.list.len() >= u32::MAX as usize {
            return Err(Halt::Data("too many entities for one run; materialize shorter windows".to_owned()));
        }
        self.arena.extend_from_slice(key);
        let index = self.list.len() as u32;
        self.list.push(Winner { key: (start as u32, self.arena.len() as u32), event, created, row });
        let (list, arena, hasher) = (&self.list, &self.arena, &self.hasher);
        self.table.insert_unique(hash, index, |&index| {
            let (start, end) = list[index as usize].key;
            hasher.hash_one(&arena[start as usize..end as usize])
        });
        Ok(())
    }
}

/// A column of a batch, or the value that the file's folder gives to all rows.
enum Values<'b> {
    Array(Access<'b>),
    Constant(Cell<'b>),
    Absent,
}

impl<'b> Values<'b> {
    fn of(batch: &'b RecordBatch, name: &str, part: &'b Part) -> Result<(Self, Option<&'b DataType>), Halt> {
        if let Some(array) = batch.column_by_name(name) {
            return Ok((Self::Array(access(array)?), Some(array.data_type())));
        }
        let partition = part.partitions.iter().find(|(known, _)| known == name);
        Ok((partition.map_or(Self::Absent, |(_, value)| Self::Constant(partition_cell(value))), None))
    }

    #[inline]
    fn get(&self, row: usize) -> Cell<'b> {
        match self {
            Self::Array(read) => read(row),
            Self::Constant(cell) => cell.clone(),
            Self::Absent => Cell::Null,
        }
    }
}

/// What a folder's name says: a number where it is one.
pub(super) fn partition_cell(value: &str) -> Cell<'_> {
    match value.parse::<i32>() {
        Ok(number) => Cell::Int(number.into()),
        Err(_) if value == "__HIVE_DEFAULT_PARTITION__" => Cell::Null,
        Err(_) => Cell::Str(value.into()),
    }
}

/// Calls `each` with every batch of the row groups that `wanted` selects, the number of its first row, and that of
/// the file; rows are counted over all row groups that may match.
fn batches(
    opened: &[Opened<'_>],
    columns: &[&str],
    mut wanted: impl FnMut(u64, u64) -> bool,
    mut each: impl FnMut(&RecordBatch, u64, usize) -> Result<(), Halt>,
) -> Result<(), Halt> {
    let mut first_row = 0;
    for (number, opened) in opened.iter().enumerate() {
        let part = opened.part;
        let mut groups = Vec::new();
        let mut starts = Vec::new();
        for &group in &opened.groups {
            let rows = opened.metadata.metadata().row_group(group).num_rows().cast_unsigned();
            if wanted(first_row, rows) {
                groups.push(group);
                starts.push((first_row, rows));
            }
            first_row += rows;
        }
        let schema: &Schema = opened.metadata.schema();
        let indices: Vec<usize> = columns.iter().filter_map(|name| schema.index_of(name).ok()).collect();
        for (group, (start, rows)) in groups.into_iter().zip(starts) {
            let file = opened.file().map_err(|error| unreadable(&part.path, &error))?;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, opened.metadata.clone());
            let mask = ProjectionMask::roots(builder.parquet_schema(), indices.iter().copied());
            let reader = builder
                .with_projection(mask)
                .with_row_groups(vec![group])
                .with_batch_size(BATCH)
                .build()
                .map_err(|error| unreadable(&part.path, &error))?;
            let mut row = start;
            for batch in reader {
                let batch = batch.map_err(|error| unreadable(&part.path, &error))?;
                each(&batch, row, number)?;
                row += batch.num_rows() as u64;
            }
            if row != start + rows {
                return Err(unreadable(&part.path, &"a row group has other rows than it says"));
            }
        }
    }
    Ok(())
}

fn find_winners(
    scan: &Scan<'_>,
    opened: &[Opened<'_>],
    winners: &mut Winners,
    sink: &mut dyn Sink,
) -> Result<(), Halt> {
    let total: u64 = opened
        .iter()
        .flat_map(|o| o.groups.iter().map(|&g| o.metadata.metadata().row_group(g).num_rows().cast_unsigned()))
        .sum();
    let (keys, _) = needed(scan);
    let time = scan.source.column(&scan.target.timestamp);
    let made = scan.source.column(&scan.target.created);
    let mut columns = keys.clone();
    columns.push(time);
    if !made.is_empty() {
        columns.push(made);
    }
    let (start, end) = (scan.start.div_euclid(1000), scan.end.div_euclid(1000));
    let mut key = Vec::new();
    batches(
        opened,
        &columns,
        |_, _| true,
        |batch, first_row, file| {
            let part = opened[file].part;
            let event = batch.column_by_name(time).map(|array| {
                instants(array.as_ref()).ok_or_else(|| Halt::Data(not_a_time(array.data_type())))
            });
            let Some(event) = event.transpose()? else { return Ok(()) };
            let created = batch.column_by_name(made).map(|array| {
                instants(array.as_ref()).ok_or_else(|| Halt::Data(not_a_time(array.data_type())))
            });
            let created = created.transpose()?;
            let mut readers = Vec::new();
            for (name, (_, value_type)) in keys.iter().zip(&scan.target.keys) {
                let (values, data_type) = Values::of(batch, name, part)?;
                let kind = data_type.map_or(INT64, |data_type| kind_of(data_type, false));
                readers.push((values, kind, *value_type));
            }
            for row in 0..batch.num_rows() {
                let Some(event) = event(row) else { continue };
                let micros = i128::from(event).div_euclid(1000);
                if micros < start || micros > end {
                    continue;
                }
                key.clear();
                for (values, kind, value_type) in &readers {
                    let value = encode::join_key(*value_type, kind, &values.get(row))?;
                    scan.target.layout.value(&mut key, &value).map_err(|_| {
                        Halt::Data("Value type not supported for feast feature store: ".to_owned())
                    })?;
                }
                let created = created.as_ref().and_then(|created| created(row));
                winners.offer(&key, event, created, first_row + row as u64)?;
            }
            sink.progress(Progress::Read { rows: first_row + batch.num_rows() as u64, of: total })
        },
    )
}

fn not_a_time(data_type: &DataType) -> String {
    let class = match data_type {
        DataType::Date32 | DataType::Date64 => "datetime.date",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "str",
        DataType::Float32 | DataType::Float64 => "float",
        _ => "int",
    };
    format!("'{class}' object has no attribute 'tzinfo'")
}

/// Reads the features of the winners and hands them on.
fn write_winners(
    scan: &Scan<'_>,
    opened: &[Opened<'_>],
    winners: &Winners,
    sink: &mut dyn Sink,
) -> Result<(), Halt> {
    let total = winners.list.len() as u64;
    let mut written = 0;
    let mut by_row: Vec<u32> = (0..winners.list.len() as u32).collect();
    by_row.sort_unstable_by_key(|&index| winners.list[index as usize].row);
    let (_, features) = needed(scan);
    let kinds = opened.iter().map(|file| kinds(scan, file, &features)).collect::<Result<Vec<_>, _>>()?;
    let mut rows = Rows::of(scan.target);
    // Where in `rows` each winner is, when they are to be sorted afterwards.
    let mut places: Vec<(u32, u32)> = Vec::new();
    let mut next = 0;
    let row_of = |at: usize| by_row.get(at).map(|&index| winners.list[index as usize].row);
    let mut flush = |rows: &Rows, sink: &mut dyn Sink| -> Result<(), Halt> {
        sink.rows(rows)?;
        written += rows.len() as u64;
        sink.progress(Progress::Written { entities: written, of: total })
    };
    let mut peek = 0;
    let wanted = |first: u64, count: u64| {
        let any = row_of(peek).is_some_and(|row| row < first + count);
        while row_of(peek).is_some_and(|row| row < first + count) {
            peek += 1;
        }
        any
    };
    batches(opened, &features, wanted, |batch, first_row, file| {
        let part = opened[file].part;
        let last_row = first_row + batch.num_rows() as u64;
        if row_of(next).is_none_or(|row| row >= last_row) {
            return Ok(());
        }
        let mut readers = Vec::with_capacity(features.len());
        for name in &features {
            readers.push(Values::of(batch, name, part)?.0);
        }
        while let Some(row) = row_of(next).filter(|&row| row < last_row) {
            let index = by_row[next];
            let winner = &winners.list[index as usize];
            if let (None, Some(text), false) =
                (winner.created, scan.no_created, scan.target.created.is_empty())
            {
                return Err(Halt::Data(text.to_owned()));
            }
            let at = (row - first_row) as usize;
            let pushed: Result<(), String> = rows.push(
                winner.event,
                winner.created,
                |out| {
                    scan.target.layout.begin(out);
                    if scan.target.entityless {
                        let empty = crate::feature::entity::EntityValue::Str("".into());
                        return scan.target.layout.value(out, &empty).map_err(|error| error.message());
                    }
                    out.extend_from_slice(winners.key(index));
                    Ok(())
                },
                |feature, out| {
                    let cell = readers[feature].get(at);
                    encode::encode(scan.target.features[feature].1, &kinds[file][feature], &cell, out)
                },
            );
            pushed?;
            next += 1;
            if scan.sorted {
                places.push((index, rows.len() as u32 - 1));
                if rows.size() >= MOST_SORTED {
                    flush_sorted(&mut rows, &mut places, winners, &mut flush, sink)?;
                }
            } else if rows.len() >= CHUNK || rows.size() >= MOST_SORTED {
                flush(&rows, sink)?;
                rows.clear();
            }
        }
        Ok(())
    })?;
    if scan.sorted {
        flush_sorted(&mut rows, &mut places, winners, &mut flush, sink)
    } else if rows.is_empty() {
        Ok(())
    } else {
        flush(&rows, sink)
    }
}

/// Hands on what is held in the order of the keys, and forgets it.
fn flush_sorted(
    rows: &mut Rows,
    places: &mut Vec<(u32, u32)>,
    winners: &Winners,
    flush: &mut impl FnMut(&Rows, &mut dyn Sink) -> Result<(), Halt>,
    sink: &mut dyn Sink,
) -> Result<(), Halt> {
    places.sort_unstable_by(|a, b| winners.key(a.0).cmp(winners.key(b.0)));
    let mut chunk = rows.empty_copy();
    for part in places.chunks(CHUNK) {
        chunk.clear();
        part.iter().for_each(|&(_, row)| chunk.push_from(rows, row as usize));
        flush(&chunk, sink)?;
    }
    places.clear();
    rows.clear();
    Ok(())
}

/// The types of a file's feature columns, checked against the features'.
fn kinds(scan: &Scan<'_>, opened: &Opened<'_>, features: &[&str]) -> Result<Vec<Kind>, Halt> {
    let mut kinds = Vec::new();
    for (name, (_, value_type)) in features.iter().zip(&scan.target.features) {
        let mut kind = Kind::Str;
        if let Ok(field) = opened.metadata.schema().field_with_name(name) {
            let nulls = leaf_of(&opened.metadata, name).is_some_and(|leaf| {
                opened.groups.iter().any(|&group| {
                    let column = opened.metadata.metadata().row_group(group).column(leaf);
                    column.statistics().is_some_and(|s| s.null_count_opt().unwrap_or(0) > 0)
                })
            });
            kind = kind_of(field.data_type(), nulls);
        }
        // One value of the type decides, as the reference asks the first one.
        let sample = match &kind {
            Kind::Null | Kind::List(_) | Kind::Struct | Kind::Map => None,
            Kind::Str => Some(Cell::Str("x".into())),
            Kind::Bytes => Some(Cell::Bytes((&b"x"[..]).into())),
            Kind::Bool | Kind::BoolNull => Some(Cell::Bool(true)),
            Kind::Time => Some(Cell::Time { seconds: 1, nanos: 0, digits: 0 }),
            Kind::Date => Some(Cell::Date(1)),
            Kind::Decimal => Some(Cell::Decimal("1".to_owned())),
            Kind::Int(_) | Kind::IntNull => Some(Cell::Int(1)),
            Kind::Float(_) => Some(Cell::Float(1.0)),
        };
        if let Some(sample) = sample {
            let column = Column { name: (*name).into(), kind: kind.clone(), cells: vec![sample] };
            encode::check(*value_type, &column)?;
        }
        kinds.push(kind);
    }
    Ok(kinds)
}
