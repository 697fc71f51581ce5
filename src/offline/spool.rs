//! Offline rows that wait for their batch. An accepted push is one file, durable before its answer; a batch takes
//! all that wait, and each row lands exactly once whatever dies when.
//!
//! ```text
//! <root>/<source>/pending/<time>-<pid>-<n>.<rows>.json   the bodies of pushes
//! <root>/<source>/flush                                  the batch being written: its id, then its files
//! <root>/<source>/rejected/                              rows that could not be written, with the reason
//! ```
//!
//! A batch is written to the source together with its id. Whoever finds a `flush` file asks the source: if it has
//! that id, the files have landed and are removed; if not, they are taken again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::append::{self, Flush};
use crate::feature::frame::Frame;
use crate::os::lock::{replace_file, sync_folder, RangeLock};
use crate::os::process::wall_clock;
use crate::registry::source::Source;
use crate::text::pyjson::{self, Json};

/// Most files that wait; beyond them pushes are refused.
const MOST_FILES: usize = 200_000;
/// Most rows of one batch.
const MOST_ROWS: usize = 200_000;
/// Most bytes of pushes in one batch.
const MOST_BYTES: u64 = 64 << 20;
/// How often a process counts what waits.
const COUNT_PERIOD: Duration = Duration::from_secs(1);

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spooled {
    /// It is kept.
    Kept,
    /// Too much waits already.
    Full,
}

/// What waits for one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Pushes.
    pub files: usize,
    /// Their rows.
    pub rows: usize,
    /// Age of the oldest.
    pub oldest: Duration,
}

/// The folder of all sources.
#[derive(Debug, Clone)]
pub struct Spool {
    root: PathBuf,
    written: u64,
    counted: Option<(Instant, usize)>,
}

/// What a batch has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flushed {
    /// Rows that landed.
    pub rows: usize,
    /// Pushes that were set aside.
    pub rejected: usize,
}

impl Spool {
    /// A spool in the folder `root`, which is made when it is needed.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), written: 0, counted: None }
    }

    fn folder(&self, source: &Source) -> PathBuf {
        self.root.join(folder_name(source))
    }

    /// Keeps the body of a push; durable when this returns.
    pub fn add(&mut self, source: &Source, body: &[u8], rows: usize) -> io::Result<Spooled> {
        let pending = self.folder(source).join("pending");
        if !pending.is_dir() {
            fs::create_dir_all(&pending)?;
            sync_folder(&self.folder(source))?;
            sync_folder(&pending)?;
        }
        if self.waiting(&pending) >= MOST_FILES {
            return Ok(Spooled::Full);
        }
        self.written += 1;
        let now = wall_clock().as_nanos();
        let name = format!("{now:020}-{}-{}.{rows}.json", std::process::id(), self.written);
        let temporary = pending.join(format!(".{name}.tmp"));
        let written = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(body)?;
            file.sync_all()?;
            fs::rename(&temporary, pending.join(&name))?;
            File::open(&pending)?.sync_all()
        };
        written().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        Ok(Spooled::Kept)
    }

    /// How many pushes wait, as of a moment ago.
    fn waiting(&mut self, pending: &Path) -> usize {
        let now = Instant::now();
        match &mut self.counted {
            Some((at, count)) if now.duration_since(*at) < COUNT_PERIOD => {
                *count += 1;
                *count
            }
            _ => {
                let count = fs::read_dir(pending).map_or(0, Iterator::count);
                self.counted = Some((now, count));
                count
            }
        }
    }

    /// What waits, by the folders of the sources.
    pub fn backlog(&self) -> Vec<(String, Backlog)> {
        let now = wall_clock().as_nanos();
        let Ok(folders) = fs::read_dir(&self.root) else { return Vec::new() };
        let mut found = Vec::new();
        for folder in folders.filter_map(Result::ok) {
            let name = folder.file_name().to_string_lossy().into_owned();
            let mut backlog = Backlog::default();
            for file in pending_files(&folder.path()).unwrap_or_default() {
                backlog.files += 1;
                backlog.rows += rows_of(&file);
                let since = file.split('-').next().and_then(|time| time.parse::<u128>().ok()).unwrap_or(now);
                let age = Duration::from_nanos(now.saturating_sub(since).min(u128::from(u64::MAX)) as u64);
                backlog.oldest = backlog.oldest.max(age);
            }
            // An unfinished batch waits, too.
            if backlog.files > 0 || folder.path().join("flush").exists() {
                found.push((name, backlog));
            }
        }
        found
    }

    /// Writes what waits for `source`, as one batch.
    pub fn flush(&self, source: &Source, repo: &Path, patience: Duration) -> Result<Flushed, String> {
        let folder = self.folder(source);
        if !folder.is_dir() {
            return Ok(Flushed::default());
        }
        let text = |error: io::Error| format!("{}: {error}", folder.display());
        let _lock = RangeLock::take(&folder.join("lock"), 0, patience).map_err(text)?;
        finish_earlier(&folder, source, repo, patience)?;
        let mut flushed = Flushed::default();
        let files = pending_files(&folder).map_err(text)?;
        if files.is_empty() {
            return Ok(flushed);
        }
        // No two batches share an id, whatever the random numbers of processes are.
        let now = wall_clock().as_nanos() as u64;
        let id = format!("{now:016x}{:08x}{:08x}", std::process::id(), fastrand::u32(..));
        let flush = Flush { source, repo, id: &id, patience };
        let open = flush.open()?;
        let mut taken: Vec<String> = Vec::new();
        let (mut frames, mut batches) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for file in files {
            let path = folder.join("pending").join(&file);
            let size = fs::metadata(&path).map_err(text)?.len();
            // One push is a batch, however large it is.
            if flushed.rows >= MOST_ROWS || (!taken.is_empty() && bytes + size > MOST_BYTES) {
                break;
            }
            bytes += size;
            let body = fs::read(&path).map_err(text)?;
            match columns(&body).and_then(|mut frame| {
                let batch = open.prepare(&mut frame.columns)?;
                Ok((frame.columns, batch))
            }) {
                Ok((columns, batch)) => {
                    flushed.rows += batch.num_rows();
                    frames.push(columns);
                    batches.push(batch);
                    taken.push(file);
                }
                Err(reason) => {
                    reject(&folder, &file, &reason).map_err(text)?;
                    log::error!("an offline push to {} was set aside: {reason}", source.name);
                    flushed.rejected += 1;
                }
            }
        }
        if taken.is_empty() {
            return Ok(flushed);
        }
        let manifest = format!("{id}\n{}\n", taken.join("\n"));
        replace_file(&folder.join("flush"), manifest.as_bytes()).map_err(text)?;
        open.write(&batches, &frames)?;
        remove_batch(&folder, &taken).map_err(text)?;
        append::forget(source, repo, &id);
        Ok(flushed)
    }
}

/// The folder of a source: its name, and what tells apart those whose names need other letters.
pub fn folder_name(source: &Source) -> String {
    let plain: String =
        source.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let hash =
        source.path.bytes().chain(source.name.bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{plain}-{hash:016x}")
}

fn pending_files(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder.join("pending")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_some_and(|end| end == "json") && !name.starts_with('.') {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

fn rows_of(file: &str) -> usize {
    file.trim_end_matches(".json").rsplit('.').next().and_then(|rows| rows.parse().ok()).unwrap_or(0)
}

/// The data in the body of a push.
fn columns(body: &[u8]) -> Result<Frame<'static>, String> {
    let value = pyjson::parse(body).map_err(|_| "not JSON".to_owned())?.value;
    let Json::Object(members) = value else { return Err("no object".to_owned()) };
    let frame = members.into_iter().find(|(name, _)| name == "df").map(|(_, value)| value);
    let Some(Json::Object(columns)) = frame else { return Err("no df".to_owned()) };
    Frame::of(&columns)
}

fn reject(folder: &Path, file: &str, reason: &str) -> io::Result<()> {
    let rejected = folder.join("rejected");
    fs::create_dir_all(&rejected)?;
    replace_file(&rejected.join(format!("{file}.reason")), format!("{reason}\n").as_bytes())?;
    fs::rename(folder.join("pending").join(file), rejected.join(file))?;
    sync_folder(&rejected.join(file))
}

/// Ends a batch whose process has died.
fn finish_earlier(folder: &Path, source: &Source, repo: &Path, patience: Duration) -> Result<(), String> {
    let text = |error: io::Error| format!("{}: {error}", folder.display());
    let manifest = match fs::read_to_string(folder.join("flush")) {
        Ok(manifest) => manifest,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(text(error)),
    };
    let mut lines = manifest.lines();
    let id = lines.next().unwrap_or_default();
    let batch = Flush { source, repo, id, patience };
    if batch.is_applied()? {
        let files: Vec<String> = lines.map(str::to_owned).collect();
        remove_batch(folder, &files).map_err(text)?;
        append::forget(source, repo, id);
    } else {
        batch.undo()?;
        fs::remove_file(folder.join("flush")).map_err(text)?;
    }
    Ok(())
}

/// Removes the files of a batch that has landed, its own file last.
fn remove_batch(folder: &Path, files: &[String]) -> io::Result<()> {
    let pending = folder.join("pending");
    for file in files {
        match fs::remove_file(pending.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(&pending)?.sync_all()?;
    fs::remove_file(folder.join("flush"))?;
    sync_folder(&folder.join("flush"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int64Array, RecordBatch};
    use std::sync::Arc;

    /// A source with one column and one row.
    fn source(dir: &Path, folder: bool) -> Source {
        let schema = Arc::new(arrow_schema::Schema::new(vec![arrow_schema::Field::new(
            "n",
            arrow_schema::DataType::Int64,
            true,
        )]));
        let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from(vec![0]))]).unwrap();
        let path = if folder {
            fs::create_dir(dir.join("data")).unwrap();
            dir.join("data/part.parquet")
        } else {
            dir.join("data.parquet")
        };
        let file = File::create(&path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, schema, None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let path = if folder { "data" } else { "data.parquet" };
        Source { name: "s".to_owned(), path: path.to_owned(), ..Source::default() }
    }

    fn numbers(dir: &Path, source: &Source) -> Vec<i64> {
        use arrow_array::cast::AsArray;
        let place = super::super::files::resolve(&source.path, dir).unwrap();
        let mut found = Vec::new();
        for part in super::super::files::parts(&place).unwrap() {
            let file = File::open(part.path).unwrap();
            let reader =
                parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            for batch in reader.build().unwrap() {
                let batch = batch.unwrap();
                found
                    .extend(batch.column(0).as_primitive::<arrow_array::types::Int64Type>().iter().flatten());
            }
        }
        found.sort_unstable();
        found
    }

    fn push(number: i64) -> Vec<u8> {
        format!("{{\"df\":{{\"n\":[{number}]}}}}").into_bytes()
    }

    /// A process that died between the rename of the data and the removal of what waits.
    fn a_batch_that_landed_is_not_written_again(folder: bool) {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path(), folder);
        let mut spool = Spool::new(&dir.path().join("spool"));
        spool.add(&source, &push(1), 1).unwrap();
        spool.add(&source, &push(2), 1).unwrap();
        let waiting = spool.folder(&source);
        let files = pending_files(&waiting).unwrap();
        let bodies: Vec<Vec<u8>> =
            files.iter().map(|file| fs::read(waiting.join("pending").join(file)).unwrap()).collect();
        // The batch by hand, up to the rename.
        let flush = Flush { source: &source, repo: dir.path(), id: "batch", patience: Duration::ZERO };
        let open = flush.open().unwrap();
        let mut frames: Vec<_> = bodies.iter().map(|body| columns(body).unwrap().columns).collect();
        let batches: Vec<_> = frames.iter_mut().map(|frame| open.prepare(frame).unwrap()).collect();
        fs::write(waiting.join("flush"), format!("batch\n{}\n", files.join("\n"))).unwrap();
        open.write(&batches, &frames).unwrap();
        drop(open);
        // One more push comes before somebody finds the manifest.
        spool.add(&source, &push(3), 1).unwrap();
        let flushed = spool.flush(&source, dir.path(), Duration::ZERO).unwrap();
        assert_eq!(flushed, Flushed { rows: 1, rejected: 0 });
        assert_eq!(numbers(dir.path(), &source), [0, 1, 2, 3]);
        assert!(spool.backlog().is_empty());
        let marks = fs::read_dir(dir.path().join(if folder { "data" } else { "." })).unwrap();
        let marks =
            marks.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "done"));
        assert_eq!(marks.count(), 0);
    }

    #[test]
    fn a_batch_that_landed_in_a_file_is_not_written_again() {
        a_batch_that_landed_is_not_written_again(false);
    }

    #[test]
    fn a_batch_that_landed_in_a_folder_is_not_written_again() {
        a_batch_that_landed_is_not_written_again(true);
    }

    #[test]
    fn a_batch_that_did_not_land_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path(), false);
        let mut spool = Spool::new(&dir.path().join("spool"));
        spool.add(&source, &push(1), 1).unwrap();
        let waiting = spool.folder(&source);
        let files = pending_files(&waiting).unwrap();
        fs::write(waiting.join("flush"), format!("other\n{}\n", files.join("\n"))).unwrap();
        // A file that was being written when its process died is nobody's.
        fs::write(waiting.join("pending/.half.tmp"), "{").unwrap();
        assert_eq!(spool.flush(&source, dir.path(), Duration::ZERO).unwrap().rows, 1);
        assert_eq!(numbers(dir.path(), &source), [0, 1]);
    }
    #[test]
    fn what_a_dead_process_has_left_of_a_batch_is_not_there_twice() {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path(), true);
        let mut spool = Spool::new(&dir.path().join("spool"));
        spool.add(&source, &push(1), 1).unwrap();
        let waiting = spool.folder(&source);
        let files = pending_files(&waiting).unwrap();
        fs::write(waiting.join("flush"), format!("half\n{}\n", files.join("\n"))).unwrap();
        let batch = dir.path().join("data/part.parquet");
        fs::copy(batch, dir.path().join("data/push-half.parquet")).unwrap();
        assert_eq!(spool.flush(&source, dir.path(), Duration::ZERO).unwrap().rows, 1);
        assert_eq!(numbers(dir.path(), &source), [0, 1]);
    }

    #[test]
    fn processes_with_the_same_random_numbers_write_different_batches() {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path(), true);
        let mut spool = Spool::new(&dir.path().join("spool"));
        for number in 1..=3 {
            fastrand::seed(7);
            spool.add(&source, &push(number), 1).unwrap();
            spool.flush(&source, dir.path(), Duration::ZERO).unwrap();
        }
        assert_eq!(numbers(dir.path(), &source), [0, 1, 2, 3]);
    }
}
