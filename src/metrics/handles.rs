//! Counters, gauges and histograms as places in mapped files: an update is a load, an add and a store.

use std::io;
use std::path::{Path, PathBuf};

use super::expose::go_float;
use super::mapped::{key, FileKind, Place, Writer};
use super::names::{Kind, Metric};
use crate::os::process::Identity;

/// One number of one of a writer's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    file: u8,
    place: Place,
}

/// The numbers of one label set of a histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    file: u8,
    sum: Place,
    /// Upper bounds with the bucket of each; the last bound is infinite.
    buckets: Box<[(f64, Place)]>,
}

/// The files of one writer, opened as its metrics need them.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    id: String,
    open: Vec<(FileKind, Writer)>,
    /// Who the files are given to.
    reader: Option<Identity>,
}

impl Files {
    /// No file yet. `id` becomes the end of their names; it has no `_`.
    pub fn new(dir: &Path, id: impl Into<String>) -> Self {
        Self { dir: dir.to_owned(), id: id.into(), open: Vec::new(), reader: None }
    }

    /// As [`new`](Self::new); files are given to another user, who reads them.
    pub fn given_to(dir: &Path, id: impl Into<String>, reader: &Identity) -> Self {
        Self { reader: Some(reader.clone()), ..Self::new(dir, id) }
    }

    /// Throws the entries of one file away, which exists then.
    pub fn clear(&mut self, kind: FileKind) -> io::Result<()> {
        let file = self.file(kind)?;
        self.open[usize::from(file)].1.clear();
        Ok(())
    }

    /// The number under `key` in the file of `kind`; it starts at 0.
    pub fn number(&mut self, kind: FileKind, key: &str) -> io::Result<Number> {
        let file = self.file(kind)?;
        let place = self.open[usize::from(file)].1.place(key)?;
        Ok(Number { file, place })
    }

    fn file(&mut self, kind: FileKind) -> io::Result<u8> {
        if let Some(index) = self.open.iter().position(|(known, _)| *known == kind) {
            return Ok(index as u8);
        }
        let (writer, damaged) = Writer::open(&self.dir, kind, &self.id)?;
        if let Some(path) = damaged {
            log::warn!("a damaged metric file was set aside as {}", path.display());
        }
        if let Some(reader) = &self.reader {
            writer.give_to(reader)?;
        }
        self.open.push((kind, writer));
        Ok(self.open.len() as u8 - 1)
    }

    /// A counter or gauge with these label values.
    pub fn get(&mut self, metric: &Metric<'_>, values: &[&str]) -> io::Result<Number> {
        let labels = labels(metric, values);
        match metric.kind {
            Kind::Gauge(mode) => {
                let key = key(metric.family, metric.family, &labels, metric.help);
                self.number(FileKind::Gauge(mode), &key)
            }
            Kind::Counter | Kind::Histogram(_) => {
                let sample = format!("{}_total", metric.family);
                self.number(FileKind::Counter, &key(metric.family, &sample, &labels, metric.help))
            }
        }
    }

    /// A histogram with these label values: its sum and a bucket per bound, in this order.
    pub fn histogram(&mut self, metric: &Metric<'_>, values: &[&str]) -> io::Result<Histogram> {
        let bounds = match metric.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Counter | Kind::Gauge(_) => &[],
        };
        let labels = labels(metric, values);
        let family = metric.family;
        let sum = key(family, &format!("{family}_sum"), &labels, metric.help);
        let sum = self.number(FileKind::Histogram, &sum)?;
        let name = format!("{family}_bucket");
        let mut buckets = Vec::with_capacity(bounds.len() + 1);
        for bound in bounds.iter().copied().filter(|bound| bound.is_finite()).chain([f64::INFINITY]) {
            let text = go_float(bound);
            let labels = [&labels[..], &[("le", &text)]].concat();
            let bucket = self.number(FileKind::Histogram, &key(family, &name, &labels, metric.help))?;
            buckets.push((bound, bucket.place));
        }
        Ok(Histogram { file: sum.file, sum: sum.place, buckets: buckets.into() })
    }

    /// Adds to a number.
    #[inline]
    pub fn add(&self, number: Number, by: f64) {
        self.open[usize::from(number.file)].1.add(number.place, by);
    }

    /// Sets a number.
    #[inline]
    pub fn set(&self, number: Number, value: f64) {
        self.set_at(number, value, 0.0);
    }

    /// Sets a number of a gauge that shows the latest; `timestamp` in seconds since the epoch.
    pub fn set_at(&self, number: Number, value: f64, timestamp: f64) {
        self.open[usize::from(number.file)].1.set(number.place, value, timestamp);
    }

    /// Counts a value: into the sum first, then into the first bucket that holds it. A value that is not a
    /// number is in no bucket.
    #[inline]
    pub fn observe(&self, histogram: &Histogram, value: f64) {
        let writer = &self.open[usize::from(histogram.file)].1;
        writer.add(histogram.sum, value);
        if let Some(&(_, bucket)) = histogram.buckets.iter().find(|(bound, _)| value <= *bound) {
            writer.add(bucket, 1.0);
        }
    }
}

fn labels<'l>(metric: &Metric<'l>, values: &[&'l str]) -> Vec<(&'l str, &'l str)> {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.family);
    metric.labels.iter().copied().zip(values.iter().copied()).collect()
}
