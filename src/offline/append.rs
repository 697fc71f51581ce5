//! Appending pushed rows to a source: all or nothing, one writer at a time on this machine.
//!
//! A file gets the new rows in front, as in the reference, and is replaced at once. Row groups that are large
//! enough are copied as they are, without decoding; the small ones that earlier pushes have left in front are
//! merged with the new rows. A folder gets one more file per partition.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::arrow_writer::ArrowWriter;
use parquet::basic::Compression;
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::cast;
use super::files::{self, Part, Place};
use super::spool::folder_name;
use crate::feature::cell::{self, Cell, Column};
use crate::os::lock::{sync_folder, temporary_beside, RangeLock};
use crate::registry::source::Source;
use crate::text::pyrepr;

/// Row groups in front that are smaller than this are merged with the new rows.
const SMALL_GROUP: i64 = 50_000;
/// Rows of a row group.
const GROUP: usize = 1 << 20;
/// Most bytes of a folder's name.
const MOST_OF_A_NAME: usize = 255;
/// The value of a partition whose rows have none.
const NO_VALUE: &str = "__HIVE_DEFAULT_PARTITION__";
/// Where a file says which batch it has taken last; the source's name among batches follows.
const APPLIED: &str = "feast_prefork.applied";

/// Where the rows of a source go, and what they must look like.
struct Target {
    place: Place,
    parts: Vec<Part>,
    /// Columns of the files.
    schema: SchemaRef,
    /// Columns that the folders' names hold.
    partitions: Vec<String>,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Target {
    fn open(source: &Source, repo: &Path) -> Result<Self, String> {
        if source.path.is_empty() {
            return Err(format!("data source {} is no file source", pyrepr::repr(&source.name)));
        }
        let place = files::resolve(&source.path, repo)?;
        if let Place::Missing(path) | Place::Pattern(path) = &place {
            return Err(path.display().to_string());
        }
        let parts = files::parts(&place)?;
        let first = parts.first().ok_or_else(|| source.path.clone())?;
        let metadata = metadata(&first.path)?;
        let schema = metadata.schema().clone();
        let mut partitions: Vec<String> = Vec::new();
        for (name, _) in &first.partitions {
            partitions.push(name.clone());
        }
        Ok(Self { place, parts, schema, partitions })
    }

    fn check(&self, source: &Source, columns: &[Column<'_>]) -> Result<(), String> {
        let expected: HashSet<&str> = self
            .schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .chain(self.partitions.iter().map(String::as_str))
            .collect();
        // A mapped source takes its own columns as well as the view's names for them.
        let given: HashSet<&str> = columns.iter().map(|column| source.column(&column.name)).collect();
        if expected == given && given.len() == columns.len() {
            return Ok(());
        }
        let list = |a: &HashSet<&str>, b: &HashSet<&str>| {
            let mut names: Vec<&str> = a.difference(b).copied().collect();
            names.sort_unstable();
            pyrepr::repr_list(names)
        };
        Err(format!(
            "The input dataframe columns do not match the batch source columns. missing_expected_columns: {}, \
             extra_unexpected_columns: {}.",
            list(&expected, &given),
            list(&given, &expected)
        ))
    }
}

fn metadata(path: &Path) -> Result<ArrowReaderMetadata, String> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Says whether rows would be taken: columns, and the casts of all values.
pub fn check(source: &Source, repo: &Path, columns: &mut [Column<'_>], labelled: bool) -> Result<(), String> {
    let target = Target::open(source, repo)?;
    if labelled {
        let mut columns = columns.to_vec();
        columns.push(Column { name: "__index_level_0__".into(), kind: cell::INT64, cells: Vec::new() });
        return target.check(source, &columns);
    }
    target.check(source, columns)?;
    let names: Vec<_> = columns.iter().map(|column| column.name.clone()).collect();
    let checked = prepare(source, &target, columns).map(drop);
    // Whoever appends them renames them again.
    columns.iter_mut().zip(names).for_each(|(column, name)| column.name = name);
    checked
}

/// Types and casts the columns; partition columns stay behind as texts.
fn prepare(source: &Source, target: &Target, columns: &mut [Column<'_>]) -> Result<RecordBatch, String> {
    for column in columns.iter_mut() {
        column.name = source.column(&column.name).to_owned().into();
        column.kind = cell::infer(&column.name, &column.cells)?;
    }
    let empty = columns.iter().all(|column| column.cells.is_empty());
    let timed =
        target.schema.fields().iter().any(|f| matches!(f.data_type(), arrow_schema::DataType::Timestamp(..)));
    if empty && timed {
        return Err("Unsupported cast from double to timestamp using function cast_timestamp".to_owned());
    }
    for column in columns.iter().filter(|column| target.partitions.iter().any(|name| *name == column.name)) {
        if let Some(cell) = column.cells.iter().find(|cell| folder(&column.name, cell).len() > MOST_OF_A_NAME)
        {
            return Err(format!("{} cannot be a partition of {}", cell.repr(), column.name));
        }
    }
    cast::cast(&target.schema, columns)
}

/// The folder of the rows whose value in the partition column `name` is `cell`.
fn folder(name: &str, cell: &Cell<'_>) -> String {
    let value = if cell.is_null() { NO_VALUE.to_owned() } else { files::encode(&cell.print(false)) };
    format!("{name}={value}")
}

/// The byte of a lock file that stands for writing the data.
const DATA_BYTE: u32 = 0;

/// Locks the source against other writers of this machine.
fn lock(place: &Place, patience: Duration) -> Result<RangeLock, String> {
    let (Place::File(path) | Place::Folder(path) | Place::Pattern(path) | Place::Missing(path)) = place;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let lock = path.with_file_name(format!(".{name}.lock"));
    RangeLock::take(&lock, DATA_BYTE, patience).map_err(|error| format!("{}: {error}", lock.display()))
}

/// Appends the rows of a frame.
pub fn append(
    source: &Source,
    repo: &Path,
    columns: &mut [Column<'_>],
    patience: Duration,
) -> Result<(), String> {
    let place = files::resolve(&source.path, repo)?;
    let _lock = lock(&place, patience)?;
    let target = Target::open(source, repo)?;
    target.check(source, columns)?;
    let batch = prepare(source, &target, columns)?;
    write(&target, &batch, columns, None)
}

/// A batch of frames that belong together: they land together, exactly once.
pub struct Flush<'f> {
    /// The source.
    pub source: &'f Source,
    /// Base of relative paths.
    pub repo: &'f Path,
    /// The name of the batch: a source that has it already is left alone.
    pub id: &'f str,
    /// How long other writers are waited for.
    pub patience: Duration,
}

impl Flush<'_> {
    /// Removes what a batch that is not complete has left.
    pub fn undo(&self) -> Result<(), String> {
        let Place::Folder(folder) = files::resolve(&self.source.path, self.repo)? else { return Ok(()) };
        let name = format!("push-{}.parquet", self.id);
        for part in files::parts(&Place::Folder(folder))? {
            if part.path.file_name().is_some_and(|found| *found == *name) {
                std::fs::remove_file(&part.path).map_err(text)?;
                sync_folder(&part.path).map_err(text)?;
            }
        }
        Ok(())
    }

    /// What a file calls the batches of this source.
    fn mark(&self) -> (String, &str) {
        (format!("{APPLIED}.{}", folder_name(self.source)), self.id)
    }

    /// True when the batch has landed.
    pub fn is_applied(&self) -> Result<bool, String> {
        let place = files::resolve(&self.source.path, self.repo)?;
        match &place {
            Place::File(path) => Ok(applied(path, &self.mark().0)?.as_deref() == Some(self.id)),
            Place::Folder(path) => path.join(format!("_{}.done", self.id)).try_exists().map_err(text),
            Place::Missing(_) | Place::Pattern(_) => Ok(false),
        }
    }

    /// Keeps other writers away until the result is dropped.
    pub fn open(&self) -> Result<OpenFlush<'_>, String> {
        let place = files::resolve(&self.source.path, self.repo)?;
        let lock = lock(&place, self.patience)?;
        Ok(OpenFlush { flush: self, target: Target::open(self.source, self.repo)?, _lock: lock })
    }
}

/// A source that a batch is being written to.
pub struct OpenFlush<'f> {
    flush: &'f Flush<'f>,
    target: Target,
    _lock: RangeLock,
}

impl OpenFlush<'_> {
    /// Casts a frame, or says why it cannot be a part of the batch.
    pub fn prepare(&self, columns: &mut [Column<'_>]) -> Result<RecordBatch, String> {
        self.target.check(self.flush.source, columns)?;
        prepare(self.flush.source, &self.target, columns)
    }

    /// Writes all of them at once.
    pub fn write(&self, batches: &[RecordBatch], frames: &[Vec<Column<'_>>]) -> Result<(), String> {
        let mut whole: Vec<Column<'_>> = Vec::new();
        if !self.target.partitions.is_empty() {
            frames.iter().for_each(|columns| add_columns(&mut whole, columns));
        }
        let batch = arrow_select::concat::concat_batches(&self.target.schema, batches).map_err(text)?;
        write(&self.target, &batch, &whole, Some(self.flush.mark()))
    }
}

fn add_columns<'a>(whole: &mut Vec<Column<'a>>, columns: &[Column<'a>]) {
    for column in columns {
        match whole.iter_mut().find(|known| known.name == column.name) {
            Some(known) => known.cells.extend(column.cells.iter().cloned()),
            None => whole.push(column.clone()),
        }
    }
}

/// The batch that a file has taken last.
fn applied(path: &Path, key: &str) -> Result<Option<String>, String> {
    let metadata = metadata(path)?;
    let pairs = metadata.metadata().file_metadata().key_value_metadata();
    Ok(pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == key)?.value.clone()))
}

fn write(
    target: &Target,
    batch: &RecordBatch,
    columns: &[Column<'_>],
    mark: Option<(String, &str)>,
) -> Result<(), String> {
    match &target.place {
        Place::File(path) => write_file(path, batch, mark),
        Place::Folder(path) => write_folder(target, path, batch, columns, mark.map(|(_, id)| id)),
        Place::Missing(path) | Place::Pattern(path) => Err(path.display().to_string()),
    }
}

fn properties(pairs: Option<Vec<KeyValue>>) -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(GROUP))
        .set_key_value_metadata(pairs)
        .build()
}

/// Writes `path` anew: the new rows, then the old ones.
fn write_file(path: &Path, batch: &RecordBatch, mark: Option<(String, &str)>) -> Result<(), String> {
    let temporary = temporary_beside(path);
    let written = rewrite(path, &temporary, batch, mark).and_then(|()| {
        let old = std::fs::metadata(path).map_err(text)?;
        let file = File::open(&temporary).map_err(text)?;
        file.set_permissions(old.permissions()).map_err(text)?;
        {
            use std::os::unix::fs::MetadataExt;
            let _ = std::os::unix::fs::chown(&temporary, Some(old.uid()), Some(old.gid()));
        }
        file.sync_all().map_err(text)?;
        std::fs::rename(&temporary, path).map_err(text)?;
        sync_folder(path).map_err(text)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn rewrite(
    path: &Path,
    temporary: &Path,
    batch: &RecordBatch,
    mark: Option<(String, &str)>,
) -> Result<(), String> {
    let old = metadata(path)?;
    let file_metadata = old.metadata().file_metadata();
    let mut pairs: Vec<KeyValue> = file_metadata.key_value_metadata().cloned().unwrap_or_default();
    let key = mark.as_ref().map(|(key, _)| key.as_str());
    pairs.retain(|pair| pair.key != "ARROW:schema" && Some(pair.key.as_str()) != key);
    if let Some((key, id)) = mark {
        pairs.push(KeyValue::new(key, id.to_owned()));
    }
    let out = File::create(temporary).map_err(text)?;
    let mut writer =
        ArrowWriter::try_new(out, old.schema().clone(), Some(properties(Some(pairs)))).map_err(text)?;
    writer.write(batch).map_err(text)?;
    // Small row groups in front are what earlier pushes have left; a file that is laid out in another way than
    // this writer does it is written anew as a whole.
    let groups = old.metadata().row_groups();
    let same_layout = {
        let descriptor = file_metadata.schema_descr();
        let probe = parquet::arrow::ArrowSchemaConverter::new().convert(old.schema()).map_err(text)?;
        probe.root_schema().get_fields() == descriptor.root_schema().get_fields()
    };
    let merged = if same_layout {
        groups.iter().take_while(|group| group.num_rows() < SMALL_GROUP).count()
    } else {
        groups.len()
    };
    let input = File::open(path).map_err(text)?;
    if merged > 0 {
        let builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(input.try_clone().map_err(text)?, old.clone());
        let reader = builder.with_row_groups((0..merged).collect()).build().map_err(text)?;
        for batch in reader {
            writer.write(&batch.map_err(text)?).map_err(text)?;
        }
    }
    writer.flush().map_err(text)?;
    let (mut writer, _) = writer.into_serialized_writer().map_err(text)?;
    for group in &groups[merged..] {
        let mut out = writer.next_row_group().map_err(text)?;
        for column in group.columns() {
            let (_, length) = column.byte_range();
            let close = ColumnCloseResult {
                bytes_written: length,
                rows_written: group.num_rows().cast_unsigned(),
                metadata: column.clone(),
                bloom_filter: None,
                column_index: None,
                offset_index: None,
            };
            out.append_column(&input, close).map_err(text)?;
        }
        out.close().map_err(text)?;
    }
    writer.close().map_err(text)?;
    Ok(())
}

/// Adds a file to the folder, or to each of the partitions that the rows belong to.
fn write_folder(
    target: &Target,
    folder: &Path,
    batch: &RecordBatch,
    columns: &[Column<'_>],
    id: Option<&str>,
) -> Result<(), String> {
    let name = id.map_or_else(|| format!("{:032x}", fastrand::u128(..)), str::to_owned);
    let mut groups: Vec<(PathBuf, Vec<u32>)> = Vec::new();
    for row in 0..batch.num_rows() {
        let mut path = folder.to_owned();
        for partition in &target.partitions {
            let column = columns.iter().find(|column| column.name == *partition);
            let cell = column.and_then(|column| column.cells.get(row)).unwrap_or(&Cell::Null);
            path.push(self::folder(partition, cell));
        }
        match groups.iter_mut().find(|(known, _)| *known == path) {
            Some((_, rows)) => rows.push(row as u32),
            None => groups.push((path, vec![row as u32])),
        }
    }
    let like = target.parts.first().map(|part| part.path.clone());
    let pairs = like.and_then(|path| metadata(&path).ok()).and_then(|old| {
        let pairs = old.metadata().file_metadata().key_value_metadata()?.clone();
        Some(pairs.into_iter().filter(|pair| pair.key != "ARROW:schema").collect::<Vec<_>>())
    });
    // First everything is on disk, then it gets its names.
    let mut written: Vec<(PathBuf, PathBuf)> = Vec::new();
    let write_parts = || -> Result<(), String> {
        for (path, rows) in groups {
            std::fs::create_dir_all(&path).map_err(text)?;
            let indices = arrow_array::UInt32Array::from(rows);
            let part = arrow_select::take::take_record_batch(batch, &indices).map_err(text)?;
            let file = path.join(format!("push-{name}.parquet"));
            let temporary = temporary_beside(&file);
            written.push((temporary.clone(), file));
            let schema: Arc<Schema> = target.schema.clone();
            let out = File::create(&temporary).map_err(text)?;
            let mut writer =
                ArrowWriter::try_new(out, schema, Some(properties(pairs.clone()))).map_err(text)?;
            writer.write(&part).map_err(text)?;
            let out = writer.into_inner().map_err(text)?;
            out.sync_all().map_err(text)?;
        }
        Ok(())
    };
    let done = write_parts().and_then(|()| {
        written.iter().try_for_each(|(temporary, file)| {
            std::fs::rename(temporary, file).map_err(text)?;
            sync_folder(file).map_err(text)?;
            // The folder may be new.
            file.parent().map_or(Ok(()), |folder| sync_folder(folder).map_err(text))
        })
    });
    if let Err(problem) = done {
        for (temporary, file) in &written {
            let _ = std::fs::remove_file(temporary);
            let _ = std::fs::remove_file(file);
        }
        return Err(problem);
    }
    if let Some(id) = id {
        // This says that all files of the batch are there.
        let done = folder.join(format!("_{id}.done"));
        File::create(&done).and_then(|file| file.sync_all()).map_err(text)?;
        sync_folder(&done).map_err(text)?;
    }
    Ok(())
}

/// Removes what says that a batch has landed, once nobody asks any more.
pub fn forget(source: &Source, repo: &Path, id: &str) {
    if let Ok(Place::Folder(path)) = files::resolve(&source.path, repo) {
        let _ = std::fs::remove_file(path.join(format!("_{id}.done")));
    }
}
