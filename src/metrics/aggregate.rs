//! Merging the files of many processes, by the rules of the Python client.
//!
//! Workers write the same few keys into their files. So each distinct key is parsed once, files stay open from
//! one scrape to the next, and a scrape of many workers is mostly adding numbers.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::expose::go_float;
use super::file::{Entries, FileName};

/// Label names and values.
pub type Labels = Vec<(String, String)>;

/// One line of the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name with its suffix.
    pub name: String,
    /// Labels in no particular order.
    pub labels: Labels,
    /// The number.
    pub value: f64,
}

/// One metric with its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Name without the suffixes of its samples.
    pub name: String,
    /// What the first file that named it says it is.
    pub kind: Kind,
    /// Help text of the first entry that named it.
    pub help: String,
    /// Samples in the order of their first appearance.
    pub samples: Vec<Sample>,
}

/// Types of the exposition format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Sum and count.
    Summary,
    /// Buckets, sum and count.
    Histogram,
    /// A histogram of current values.
    GaugeHistogram,
    /// Anything.
    Unknown,
    /// Text as labels.
    Info,
    /// States as labels.
    StateSet,
}

impl Kind {
    fn from_prefix(prefix: &str) -> Option<Self> {
        Some(match prefix {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "summary" => Self::Summary,
            "histogram" => Self::Histogram,
            "gaugehistogram" => Self::GaugeHistogram,
            "unknown" | "untyped" => Self::Unknown,
            "info" => Self::Info,
            "stateset" => Self::StateSet,
            _ => return None,
        })
    }
}

/// How the values of a gauge in several processes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    All,
    Min,
    Max,
    Sum,
    MostRecent,
}

impl Mode {
    fn from_name(name: &str) -> Self {
        match name.strip_prefix("live").unwrap_or(name) {
            "min" => Self::Min,
            "max" => Self::Max,
            "sum" => Self::Sum,
            "mostrecent" => Self::MostRecent,
            _ => Self::All,
        }
    }
}

/// One entry as it was read.
#[derive(Clone, Copy)]
struct Reading {
    /// Index of its key among the keys of this merge.
    key: usize,
    /// Index of its file.
    file: usize,
    value: f64,
    timestamp: f64,
}

/// A key taken apart.
#[derive(Debug)]
struct Key {
    family: String,
    sample: String,
    /// Sorted: equal label sets are one, however they were spelt.
    labels: Labels,
    help: String,
}

struct Collected {
    name: String,
    kind: Kind,
    mode: Mode,
    help: String,
    readings: Vec<Reading>,
}

/// What merging a directory gives.
#[derive(Debug, Default)]
pub struct Merged {
    /// Families in the order of their first appearance.
    pub families: Vec<Family>,
    /// Files of which something could not be read.
    pub damaged: Vec<PathBuf>,
}

/// An open file of the directory.
#[derive(Debug)]
struct Known {
    inode: u64,
    file: File,
    name: FileName,
}

/// Merges a directory again and again.
#[derive(Debug, Default)]
pub struct Merger {
    files: HashMap<OsString, Known>,
    keys: HashMap<Box<str>, Option<Rc<Key>>, foldhash::fast::RandomState>,
    buffer: Vec<u8>,
}

/// Most keys kept from one merge to the next.
const MAX_KEYS: usize = 100_000;
/// Read first: the used part of most files.
const FIRST_READ: usize = 8 << 10;

/// Reads and merges the files of `dir` once.
pub fn merge(dir: &Path) -> io::Result<Merged> {
    Merger::default().merge(dir)
}

impl Merger {
    /// Reads and merges the files of `dir`, in the order of their names. Files that vanish, and files that are
    /// none of ours, are passed over; what is whole in a damaged file counts.
    pub fn merge(&mut self, dir: &Path) -> io::Result<Merged> {
        let mut listing: Vec<(OsString, u64)> =
            fs::read_dir(dir)?.flatten().map(|entry| (entry.file_name(), entry.ino())).collect();
        listing.sort_unstable();
        let mut merged = Merged::default();
        let mut collecting = Collecting::default();
        for (name, inode) in &listing {
            let read = self.open(dir, name, *inode).and_then(|known| match known {
                Some(()) => self.read(name).map(Some),
                None => Ok(None),
            });
            let length = match read {
                Ok(Some(length)) => length,
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // Totals without this file would be wrong, and right again later.
                Err(error) => {
                    return Err(io::Error::new(error.kind(), format!("{}: {error}", name.display())))
                }
            };
            let Some(known) = self.files.get(name) else { continue };
            let ids = (known.name.kind.clone(), known.name.mode.clone(), known.name.id.clone());
            let bytes = &self.buffer[..length];
            let Some(kind) = Kind::from_prefix(&ids.0) else {
                if Entries::new(bytes).next().is_some() {
                    merged.damaged.push(dir.join(name));
                }
                continue;
            };
            if !collecting.file(kind, &ids.1, ids.2, bytes, &mut self.keys) {
                merged.damaged.push(dir.join(name));
            }
        }
        if self.files.len() > listing.len() {
            self.files.retain(|name, _| listing.binary_search_by(|(listed, _)| listed.cmp(name)).is_ok());
        }
        if self.keys.len() > MAX_KEYS {
            self.keys.clear();
        }
        merged.families = collecting.finish();
        Ok(merged)
    }

    /// Opens the file called `name`, unless it is open; another inode is another file. `None`: none of ours.
    fn open(&mut self, dir: &Path, name: &OsString, inode: u64) -> io::Result<Option<()>> {
        if self.files.get(name).is_none_or(|known| known.inode != inode) {
            let Some(parsed) = FileName::parse(Path::new(name)) else { return Ok(None) };
            let file = File::open(dir.join(name))?;
            if !file.metadata()?.is_file() {
                return Ok(None);
            }
            self.files.insert(name.clone(), Known { inode, file, name: parsed });
        }
        Ok(Some(()))
    }

    /// Reads the used part of a file into the buffer; returns its length.
    fn read(&mut self, name: &OsString) -> io::Result<usize> {
        let Some(known) = self.files.get(name) else { return Ok(0) };
        if self.buffer.len() < FIRST_READ {
            self.buffer.resize(FIRST_READ, 0);
        }
        let mut length = known.file.read_at(&mut self.buffer[..FIRST_READ], 0)?;
        let wanted = Entries::new(&self.buffer[..length]).declared();
        // A little more than is used: an entry whose timestamp was cut off is still an entry.
        let wanted = wanted.saturating_add(16);
        while length < wanted {
            if self.buffer.len() < wanted {
                // Not more than there is, whatever the file says of itself.
                let size = usize::try_from(known.file.metadata()?.len()).unwrap_or(usize::MAX);
                self.buffer.resize(wanted.min(size.max(FIRST_READ)), 0);
            }
            match known.file.read_at(&mut self.buffer[length..], length as u64)? {
                0 => break,
                more => length += more,
            }
        }
        Ok(length)
    }
}

/// The entries of all files, by family.
#[derive(Default)]
struct Collecting {
    families: Vec<Collected>,
    by_name: HashMap<String, usize>,
    /// Distinct keys with the family of each.
    keys: Vec<(Rc<Key>, usize)>,
    by_text: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    /// Identity of each file: the label of its gauges.
    ids: Vec<String>,
}

type KnownKeys = HashMap<Box<str>, Option<Rc<Key>>, foldhash::fast::RandomState>;

impl Collecting {
    /// Takes the entries of one file; false when some of it could not be read.
    fn file(&mut self, kind: Kind, mode: &str, id: String, bytes: &[u8], known: &mut KnownKeys) -> bool {
        self.ids.push(id);
        let mode = Mode::from_name(mode);
        let mut entries = Entries::new(bytes);
        for entry in entries.by_ref() {
            let Some(key) = self.key(entry.key, kind, known) else { return false };
            let family = &mut self.families[self.keys[key].1];
            if kind == Kind::Gauge {
                family.mode = mode;
            }
            let file = self.ids.len() - 1;
            family.readings.push(Reading { key, file, value: entry.value, timestamp: entry.timestamp });
        }
        !entries.is_damaged()
    }

    /// The index of a key, which names its family when it is the first of it. `None`: not a key.
    fn key(&mut self, text: &str, kind: Kind, known: &mut KnownKeys) -> Option<usize> {
        if let Some(&index) = self.by_text.get(text) {
            return Some(index);
        }
        if !known.contains_key(text) {
            known.insert(text.into(), parse_key(text).map(Rc::new));
        }
        let key = known.get(text)?.clone()?;
        let family = *self.by_name.entry(key.family.clone()).or_insert_with_key(|name| {
            self.families.push(Collected {
                name: name.clone(),
                kind,
                mode: Mode::All,
                help: key.help.clone(),
                readings: Vec::new(),
            });
            self.families.len() - 1
        });
        self.keys.push((key, family));
        self.by_text.insert(text.into(), self.keys.len() - 1);
        Some(self.keys.len() - 1)
    }

    fn finish(self) -> Vec<Family> {
        let Self { families, keys, ids, .. } = self;
        families.into_iter().map(|family| fold(family, &keys, &ids)).collect()
    }
}

/// Reads a key: a JSON list of family, sample, labels and help.
fn parse_key(key: &str) -> Option<Key> {
    let (family, sample, labels, help): (String, String, serde_json::Map<String, serde_json::Value>, String) =
        serde_json::from_str(key).ok()?;
    let mut pairs = Vec::with_capacity(labels.len());
    for (name, value) in labels {
        pairs.push((name, value.as_str()?.to_owned()));
    }
    pairs.sort_unstable();
    Some(Key { family, sample, labels: pairs, help })
}

/// Samples by name and labels, in the order of their first appearance.
#[derive(Default)]
struct Samples {
    list: Vec<Sample>,
    places: HashMap<(String, Labels), usize>,
}

impl Samples {
    /// The place of a sample, if it has one.
    fn find(&self, name: &str, labels: &Labels) -> Option<usize> {
        self.places.get(&(name.to_owned(), labels.clone())).copied()
    }

    /// Appends a sample.
    fn push(&mut self, name: &str, labels: &Labels, value: f64) -> usize {
        self.places.insert((name.to_owned(), labels.clone()), self.list.len());
        self.list.push(Sample { name: name.to_owned(), labels: labels.clone(), value });
        self.list.len() - 1
    }
}

type Keys = [(Rc<Key>, usize)];

fn fold(collected: Collected, keys: &Keys, ids: &[String]) -> Family {
    let Collected { name, kind, mode, help, readings } = collected;
    let samples = match (kind, mode) {
        (Kind::Gauge, Mode::All) => fold_by_process(&readings, keys, ids),
        (Kind::Gauge, mode) => fold_gauge(mode, &readings, keys),
        (Kind::Histogram, _) => fold_histogram(&name, &readings, keys),
        _ => fold_sums(&readings, keys),
    };
    Family { name, kind, help, samples }
}

/// Where each key's numbers go, found once per key.
struct Memo<T>(HashMap<usize, T, foldhash::fast::RandomState>);

impl<T: Copy> Memo<T> {
    fn new() -> Self {
        Self(HashMap::default())
    }

    fn get(&mut self, key: usize, find: impl FnOnce() -> T) -> T {
        *self.0.entry(key).or_insert_with(find)
    }
}

fn fold_sums(readings: &[Reading], keys: &Keys) -> Vec<Sample> {
    let mut samples = Samples::default();
    let mut memo = Memo::new();
    for reading in readings {
        let Key { sample, labels, .. } = &*keys[reading.key].0;
        let place = memo.get(reading.key, || {
            samples.find(sample, labels).unwrap_or_else(|| samples.push(sample, labels, 0.0))
        });
        samples.list[place].value += reading.value;
    }
    samples.list
}

/// One sample per process, told apart by a label.
fn fold_by_process(readings: &[Reading], keys: &Keys, ids: &[String]) -> Vec<Sample> {
    let mut samples = Samples::default();
    for reading in readings {
        let Key { sample, labels, .. } = &*keys[reading.key].0;
        let mut labels: Labels = labels.iter().filter(|(label, _)| label != "pid").cloned().collect();
        labels.push(("pid".to_owned(), ids[reading.file].clone()));
        match samples.find(sample, &labels) {
            Some(place) => samples.list[place].value = reading.value,
            None => {
                samples.push(sample, &labels, reading.value);
            }
        }
    }
    samples.list
}

fn fold_gauge(mode: Mode, readings: &[Reading], keys: &Keys) -> Vec<Sample> {
    let mut samples = Samples::default();
    // The place of a sample once it has a value; the key of the first spelling stands for all.
    let mut places: HashMap<usize, usize> = HashMap::new();
    let mut times: HashMap<usize, f64> = HashMap::new();
    let mut first: HashMap<(String, Labels), usize> = HashMap::new();
    let mut memo = Memo::new();
    for &Reading { key, value, timestamp, .. } in readings {
        let Key { sample, labels, .. } = &*keys[key].0;
        let labels = || -> Labels { labels.iter().filter(|(label, _)| label != "pid").cloned().collect() };
        let identity = memo.get(key, || *first.entry((sample.clone(), labels())).or_insert(key));
        let place = places.get(&identity).copied();
        let known = place.map(|place| samples.list[place].value);
        let new = match mode {
            Mode::Sum => Some(known.unwrap_or(0.0) + value),
            // Not a number is neither less nor greater: the first one stays, a later one is passed over.
            Mode::Min => known.is_none_or(|known| value < known).then_some(value),
            Mode::Max => known.is_none_or(|known| value > known).then_some(value),
            Mode::MostRecent => {
                let time = times.entry(identity).or_insert(0.0);
                let later = *time < timestamp;
                if later {
                    *time = timestamp;
                }
                later.then_some(value)
            }
            Mode::All => Some(value),
        };
        let Some(new) = new else { continue };
        let place = place.unwrap_or_else(|| {
            let place = samples.push(sample, &labels(), 0.0);
            places.insert(identity, place);
            place
        });
        samples.list[place].value = new;
    }
    samples.list
}

/// One label set of a histogram.
struct Group {
    labels: Labels,
    /// Number of the reading that was its first besides buckets.
    first_plain: usize,
    /// Sum, and whatever else is no bucket.
    plain: Vec<Sample>,
    /// Upper bounds and what was counted up to them from the bound before.
    bounds: Vec<(f64, f64)>,
}

/// Where a reading of a histogram goes.
#[derive(Clone, Copy)]
enum Target {
    Bucket(usize, usize),
    Plain(usize, usize),
    /// A bound that is no number belongs nowhere.
    Nowhere,
}

/// The stored buckets are not cumulative; the printed ones are, and the count is their total. Label sets come in
/// the order of their first sum; those that have only buckets follow.
fn fold_histogram(name: &str, readings: &[Reading], keys: &Keys) -> Vec<Sample> {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_labels: HashMap<Labels, usize> = HashMap::new();
    let mut memo = Memo::new();
    for (number, reading) in readings.iter().enumerate() {
        let target = memo.get(reading.key, || {
            let key = &*keys[reading.key].0;
            let labels: Labels = key.labels.iter().filter(|(label, _)| label != "le").cloned().collect();
            let place = *by_labels.entry(labels).or_insert_with_key(|labels| {
                let labels = labels.clone();
                groups.push(Group { labels, first_plain: usize::MAX, plain: Vec::new(), bounds: Vec::new() });
                groups.len() - 1
            });
            groups[place].target(place, key, number)
        });
        match target {
            Target::Bucket(group, bucket) => groups[group].bounds[bucket].1 += reading.value,
            Target::Plain(group, plain) => groups[group].plain[plain].value += reading.value,
            Target::Nowhere => {}
        }
    }
    groups.sort_by_key(|group| group.first_plain);
    groups.into_iter().flat_map(|group| group.samples(name)).collect()
}

impl Group {
    /// Finds or makes the place of `key` in this group, which is number `place`.
    fn target(&mut self, place: usize, key: &Key, number: usize) -> Target {
        let bound = key.labels.iter().find(|(label, _)| label == "le").map(|(_, text)| parse_bound(text));
        match bound {
            Some(None) => Target::Nowhere,
            Some(Some(bound)) => {
                let known = self.bounds.iter().position(|(known, _)| *known == bound);
                let index = known.unwrap_or_else(|| {
                    self.bounds.push((bound, 0.0));
                    self.bounds.len() - 1
                });
                Target::Bucket(place, index)
            }
            None => {
                let known = self.plain.iter().position(|sample| sample.name == key.sample);
                let index = known.unwrap_or_else(|| {
                    self.first_plain = self.first_plain.min(number);
                    let labels = self.labels.clone();
                    self.plain.push(Sample { name: key.sample.clone(), labels, value: 0.0 });
                    self.plain.len() - 1
                });
                Target::Plain(place, index)
            }
        }
    }

    fn samples(self, name: &str) -> Vec<Sample> {
        let Self { labels, plain: mut samples, mut bounds, .. } = self;
        bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total: f64 = bounds.iter().map(|(_, count)| count).sum();
        let count = format!("{name}_count");
        // A count that was stored keeps its place and gets the total.
        let stored =
            samples.iter_mut().find(|sample| sample.name == count).map(|sample| sample.value = total);
        let buckets = bounds.len();
        let mut running = 0.0;
        for (bound, counted) in bounds {
            running += counted;
            let mut labels = labels.clone();
            labels.push(("le".to_owned(), go_float(bound)));
            samples.push(Sample { name: format!("{name}_bucket"), labels, value: running });
        }
        if stored.is_none() && buckets > 0 {
            samples.push(Sample { name: count, labels, value: running });
        }
        samples
    }
}

/// Keeps the samples called one of `names`, and all of the families called so; empty families go.
pub fn restrict(families: &mut Vec<Family>, names: &[String]) {
    families.retain_mut(|family| {
        if !names.contains(&family.name) {
            family.samples.retain(|sample| names.contains(&sample.name));
        }
        !family.samples.is_empty()
    });
}

/// Python's `float(text)`, as far as bounds need it.
fn parse_bound(text: &str) -> Option<f64> {
    let text = text.trim();
    match text.to_ascii_lowercase().trim_start_matches('+') {
        "inf" | "infinity" => Some(f64::INFINITY),
        "-inf" | "-infinity" => Some(f64::NEG_INFINITY),
        _ => text.replace('_', "").parse().ok(),
    }
}
