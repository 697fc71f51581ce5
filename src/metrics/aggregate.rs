//! Merging the files of many processes, by the rules of the Python client.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
struct Reading {
    sample: String,
    labels: Labels,
    value: f64,
    timestamp: f64,
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

/// Reads and merges the files of `dir`, in the order of their names. Files that vanish, and files that are none
/// of ours, are passed over; what is whole in a damaged file counts.
pub fn merge(dir: &Path) -> io::Result<Merged> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    let mut merged = Merged::default();
    let mut collected: Vec<Collected> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    for path in paths {
        let Some(name) = FileName::parse(&path) else { continue };
        let Ok(bytes) = fs::read(&path) else { continue };
        let Some(kind) = Kind::from_prefix(&name.kind) else {
            if Entries::new(&bytes).next().is_some() {
                merged.damaged.push(path);
            }
            continue;
        };
        if !collect(&name, kind, &bytes, &mut collected, &mut by_name) {
            merged.damaged.push(path);
        }
    }
    merged.families = collected.into_iter().map(fold).collect();
    Ok(merged)
}

/// Takes the entries of one file; false when some of it could not be read.
fn collect(
    name: &FileName,
    kind: Kind,
    bytes: &[u8],
    collected: &mut Vec<Collected>,
    by_name: &mut HashMap<String, usize>,
) -> bool {
    let mut entries = Entries::new(bytes);
    for entry in entries.by_ref() {
        let Some((family, sample, mut labels, help)) = parse_key(entry.key) else { return false };
        let index = *by_name.entry(family).or_insert_with_key(|family| {
            let (name, mode, readings) = (family.clone(), Mode::All, Vec::new());
            collected.push(Collected { name, kind, mode, help, readings });
            collected.len() - 1
        });
        let metric = &mut collected[index];
        if kind == Kind::Gauge {
            metric.mode = Mode::from_name(&name.mode);
            labels.retain(|(label, _)| label != "pid");
            labels.push(("pid".to_owned(), name.id.clone()));
        }
        metric.readings.push(Reading { sample, labels, value: entry.value, timestamp: entry.timestamp });
    }
    !entries.is_damaged()
}

/// Reads a key: a JSON list of family, sample, labels and help.
fn parse_key(key: &str) -> Option<(String, String, Labels, String)> {
    let (family, sample, labels, help): (String, String, serde_json::Map<String, serde_json::Value>, String) =
        serde_json::from_str(key).ok()?;
    let mut pairs = Vec::with_capacity(labels.len());
    for (name, value) in labels {
        pairs.push((name, value.as_str()?.to_owned()));
    }
    Some((family, sample, pairs, help))
}

/// Samples by name and labels, in the order of their first appearance.
#[derive(Default)]
struct Samples {
    list: Vec<Sample>,
    places: HashMap<(String, Labels), usize>,
}

impl Samples {
    fn place(&mut self, name: &str, labels: &Labels) -> Option<usize> {
        self.places.get(&(name.to_owned(), labels.clone())).copied()
    }

    fn set(&mut self, name: &str, labels: &Labels, value: f64) {
        match self.place(name, labels) {
            Some(place) => self.list[place].value = value,
            None => {
                self.places.insert((name.to_owned(), labels.clone()), self.list.len());
                self.list.push(Sample { name: name.to_owned(), labels: labels.clone(), value });
            }
        }
    }

    fn get(&mut self, name: &str, labels: &Labels) -> Option<f64> {
        self.place(name, labels).map(|place| self.list[place].value)
    }

    fn add(&mut self, name: &str, labels: &Labels, value: f64) {
        let before = self.get(name, labels).unwrap_or(0.0);
        self.set(name, labels, before + value);
    }
}

fn fold(collected: Collected) -> Family {
    let Collected { name, kind, mode, help, mut readings } = collected;
    // Equal label sets are one, however they were spelt.
    for reading in &mut readings {
        reading.labels.sort_unstable();
    }
    let samples = match kind {
        Kind::Gauge => fold_gauge(mode, readings),
        Kind::Histogram => fold_histogram(&name, &readings),
        _ => {
            let mut samples = Samples::default();
            readings.iter().for_each(|r| samples.add(&r.sample, &r.labels, r.value));
            samples.list
        }
    };
    Family { name, kind, help, samples }
}

fn fold_gauge(mode: Mode, readings: Vec<Reading>) -> Vec<Sample> {
    let mut samples = Samples::default();
    let mut times: HashMap<(String, Labels), f64> = HashMap::new();
    for Reading { sample, mut labels, value, timestamp } in readings {
        if mode != Mode::All {
            labels.retain(|(label, _)| label != "pid");
        }
        let known = samples.get(&sample, &labels);
        match mode {
            Mode::All => samples.set(&sample, &labels, value),
            Mode::Sum => samples.add(&sample, &labels, value),
            // Not a number is neither less nor greater: the first one stays, a later one is passed over.
            Mode::Min if known.is_none_or(|known| value < known) => samples.set(&sample, &labels, value),
            Mode::Max if known.is_none_or(|known| value > known) => samples.set(&sample, &labels, value),
            Mode::Min | Mode::Max => {}
            Mode::MostRecent => {
                let time = times.entry((sample.clone(), labels.clone())).or_insert(0.0);
                if *time < timestamp {
                    *time = timestamp;
                    samples.set(&sample, &labels, value);
                }
            }
        }
    }
    samples.list
}

/// One label set of a histogram.
struct Group {
    /// Number of the reading that was its first besides buckets.
    first_plain: usize,
    /// Sum, and whatever else is no bucket.
    plain: Vec<Sample>,
    /// Upper bounds and what was counted up to them from the bound before.
    bounds: Vec<(f64, f64)>,
}

/// The stored buckets are not cumulative; the printed ones are, and the count is their total. Label sets come in
/// the order of their first sum; those that have only buckets follow.
fn fold_histogram(name: &str, readings: &[Reading]) -> Vec<Sample> {
    let mut groups: Vec<(Labels, Group)> = Vec::new();
    for (number, reading) in readings.iter().enumerate() {
        let bound = reading.labels.iter().find(|(label, _)| label == "le");
        let labels: Labels = reading.labels.iter().filter(|(label, _)| label != "le").cloned().collect();
        let place = groups.iter().position(|(known, _)| *known == labels).unwrap_or_else(|| {
            groups.push((labels, Group { first_plain: usize::MAX, plain: Vec::new(), bounds: Vec::new() }));
            groups.len() - 1
        });
        let (labels, group) = &mut groups[place];
        match bound.map(|(_, text)| parse_bound(text)) {
            // A bound that is no number belongs nowhere.
            Some(None) => {}
            Some(Some(bound)) => match group.bounds.iter_mut().find(|(known, _)| *known == bound) {
                Some(known) => known.1 += reading.value,
                None => group.bounds.push((bound, reading.value)),
            },
            None => match group.plain.iter_mut().find(|sample| sample.name == reading.sample) {
                Some(known) => known.value += reading.value,
                None => {
                    group.first_plain = group.first_plain.min(number);
                    group.plain.push(Sample {
                        name: reading.sample.clone(),
                        labels: labels.clone(),
                        value: reading.value,
                    });
                }
            },
        }
    }
    groups.sort_by_key(|(_, group)| group.first_plain);
    let mut samples = Vec::new();
    for (labels, Group { mut plain, mut bounds, .. }) in groups {
        bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total: f64 = bounds.iter().map(|(_, count)| count).sum();
        let count = format!("{name}_count");
        // A count that was stored keeps its place and gets the total.
        let stored = plain.iter_mut().find(|sample| sample.name == count).map(|sample| sample.value = total);
        let buckets = bounds.len();
        samples.append(&mut plain);
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
    }
    samples
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
