//! Writing multiprocess files: one process per file, entries appended, numbers updated in place.
//!
//! An entry is written whole behind the used part and then taken in by one store, so that a process killed at
//! any moment leaves a file that reads as if it had been killed a little earlier.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::file::{padding, Entries};
use crate::os::mapfile::MapFile;
use crate::os::process::Identity;
use crate::text::json;

/// Types of files. Metrics of one type share one file per writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `counter_{id}.db`
    Counter,
    /// `histogram_{id}.db`
    Histogram,
    /// `summary_{id}.db`
    Summary,
    /// `gauge_{mode}_{id}.db`
    Gauge(&'static str),
}

impl FileKind {
    /// Name of the file of writer `id`.
    pub fn file_name(self, id: &str) -> String {
        match self {
            Self::Counter => format!("counter_{id}.db"),
            Self::Histogram => format!("histogram_{id}.db"),
            Self::Summary => format!("summary_{id}.db"),
            Self::Gauge(mode) => format!("gauge_{mode}_{id}.db"),
        }
    }
}

/// Where a number lives: the offset of its value in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

/// The first bytes of a file without entries.
const EMPTY: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0];
/// No file grows beyond this: label values come from requests.
const MAX_SIZE: usize = 16 << 20;

/// One file being written.
#[derive(Debug)]
pub struct Writer {
    file: MapFile,
    used: usize,
    places: HashMap<Box<str>, Place, foldhash::fast::RandomState>,
}

impl Writer {
    /// Opens the file of `kind` for writer `id`; numbers of an earlier owner go on. A damaged file is set aside
    /// as `{name}.bad-{time}`, and its path returned.
    pub fn open(dir: &Path, kind: FileKind, id: &str) -> io::Result<(Self, Option<PathBuf>)> {
        let path = dir.join(kind.file_name(id));
        match Self::index(MapFile::open(&path, EMPTY)?) {
            Some(writer) => Ok((writer, None)),
            None => {
                let seconds = crate::os::process::wall_clock().as_secs();
                let aside = PathBuf::from(format!("{}.bad-{seconds}", path.display()));
                std::fs::rename(&path, &aside)?;
                let fresh = Self::index(MapFile::open(&path, EMPTY)?);
                fresh.map(|writer| (writer, Some(aside))).ok_or_else(|| io::ErrorKind::InvalidData.into())
            }
        }
    }

    /// Notes where everything is. `None`: the file is damaged.
    fn index(file: MapFile) -> Option<Self> {
        let mut places = HashMap::default();
        let mut entries = Entries::new(file.bytes());
        while let Some(entry) = entries.next() {
            let place = Place(u32::try_from(entries.position() - 16).ok()?);
            places.entry(entry.key.into()).or_insert(place);
        }
        let used = entries.position();
        if entries.is_damaged() || used > file.bytes().len() {
            return None;
        }
        file.publish(i32::try_from(used).ok()?);
        Some(Self { file, used, places })
    }

    /// Gives the file to the user that reads it.
    pub fn give_to(&self, identity: &Identity) -> io::Result<()> {
        self.file.give_to(identity)
    }

    /// Throws all entries away.
    pub fn clear(&mut self) {
        self.file.publish(8);
        self.used = 8;
        self.places.clear();
    }

    /// The place of `key`, which is appended with 0 when it is new.
    pub fn place(&mut self, key: &str) -> io::Result<Place> {
        if let Some(&place) = self.places.get(key) {
            return Ok(place);
        }
        let value_at = self.used + 4 + key.len() + padding(key.len());
        let end = value_at + 16;
        if end > MAX_SIZE {
            return Err(io::Error::other("too many different labels"));
        }
        self.file.grow_to(end)?;
        let mut entry = Vec::with_capacity(end - self.used);
        entry.extend_from_slice(&(key.len() as i32).to_ne_bytes());
        entry.extend_from_slice(key.as_bytes());
        entry.resize(value_at - self.used, b' ');
        entry.resize(end - self.used, 0);
        self.file.write(self.used, &entry);
        self.file.publish(end as i32);
        self.used = end;
        let place = Place(value_at as u32);
        self.places.insert(key.into(), place);
        Ok(place)
    }

    /// Adds to a number.
    #[inline]
    pub fn add(&self, place: Place, by: f64) {
        let at = place.0 as usize;
        self.file.store(at, self.file.load(at) + by);
    }

    /// Sets a number and its timestamp (0 except for gauges that show the latest).
    #[inline]
    pub fn set(&self, place: Place, value: f64, timestamp: f64) {
        let at = place.0 as usize;
        self.file.store(at, value);
        self.file.store(at + 8, timestamp);
    }
}

/// The key of an entry, byte for byte as Python's JSON writer makes it; `labels` are sorted here.
pub fn key(family: &str, sample: &str, labels: &[(&str, &str)], help: &str) -> String {
    let mut sorted = labels.to_vec();
    sorted.sort_unstable();
    let mut out = b"[".to_vec();
    json::write_str_ascii(&mut out, family);
    out.extend_from_slice(b", ");
    json::write_str_ascii(&mut out, sample);
    out.extend_from_slice(b", {");
    for (index, (name, value)) in sorted.into_iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        json::write_str_ascii(&mut out, name);
        out.extend_from_slice(b": ");
        json::write_str_ascii(&mut out, value);
    }
    out.extend_from_slice(b"}, ");
    json::write_str_ascii(&mut out, help);
    out.push(b']');
    String::from_utf8_lossy(&out).into_owned()
}
