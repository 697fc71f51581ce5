//! What one request works on between its JSON and its answer: keys and fetched values, in reused buffers.

use super::entity::EntityValue;
use super::entity_key::KeyError;
use super::plan::{KeySet, KeySource};

/// The keys of one key set: unique, sorted by their bytes, with the way back from request rows.
#[derive(Debug, Default)]
pub struct Keys {
    bytes: Vec<u8>,
    /// Start of each unique key in `bytes`, and the end of the last.
    bounds: Vec<u32>,
    /// For each row of the request the index of its key.
    unique_of: Vec<u32>,
    order: Vec<u32>,
    scratch: Vec<u8>,
    scratch_bounds: Vec<u32>,
}

impl Keys {
    /// Builds the keys of `rows` rows; `column(i)` gives the converted values of input `i`.
    pub fn build<'c, 'a: 'c>(
        &mut self,
        set: &KeySet,
        rows: usize,
        column: impl Fn(usize) -> &'c [EntityValue<'a>],
    ) -> Result<(), KeyError> {
        self.bytes.clear();
        self.bounds.clear();
        self.unique_of.clear();
        self.scratch.clear();
        self.scratch_bounds.clear();
        let empty = EntityValue::Str("".into());
        for row in 0..rows {
            self.scratch_bounds.push(self.scratch.len() as u32);
            set.layout.begin(&mut self.scratch);
            for source in &set.sources {
                let value = match source {
                    KeySource::Input(input) => &column(*input)[row],
                    KeySource::Dummy => &empty,
                };
                if let Err(error) = set.layout.value(&mut self.scratch, value) {
                    let inputs = set.sources.iter().filter_map(|source| match source {
                        KeySource::Input(input) => Some(column(*input)),
                        KeySource::Dummy => None,
                    });
                    return Err(first_in_order(inputs, source, &column, error));
                }
            }
        }
        self.scratch_bounds.push(self.scratch.len() as u32);
        if rows == 1 {
            std::mem::swap(&mut self.bytes, &mut self.scratch);
            self.bounds.extend_from_slice(&[0, self.bytes.len() as u32]);
            self.unique_of.push(0);
            return Ok(());
        }
        let (scratch, bounds) = (&self.scratch, &self.scratch_bounds);
        let key = |row: u32| &scratch[bounds[row as usize] as usize..bounds[row as usize + 1] as usize];
        self.order.clear();
        self.order.extend(0..rows as u32);
        self.order.sort_unstable_by(|&a, &b| key(a).cmp(key(b)));
        self.unique_of.resize(rows, 0);
        let mut before: Option<&[u8]> = None;
        for &row in &self.order {
            let this = key(row);
            if before != Some(this) {
                self.bounds.push(self.bytes.len() as u32);
                self.bytes.extend_from_slice(this);
                before = Some(this);
            }
            self.unique_of[row as usize] = self.bounds.len() as u32 - 1;
        }
        self.bounds.push(self.bytes.len() as u32);
        Ok(())
    }

    /// Number of distinct keys.
    pub fn len(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// True when there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a distinct key.
    pub fn key(&self, index: usize) -> &[u8] {
        &self.bytes[self.bounds[index] as usize..self.bounds[index + 1] as usize]
    }

    /// For each row of the request the index of its key.
    pub fn unique_of(&self) -> &[u32] {
        &self.unique_of
    }
}

/// The error that the reference meets first: it sorts all rows before it makes keys, which a null does not
/// survive, and then fails at the smallest one. `found` is the error of the row met first here.
fn first_in_order<'c, 'a: 'c>(
    mut inputs: impl Iterator<Item = &'c [EntityValue<'a>]>,
    failed: &KeySource,
    column: &impl Fn(usize) -> &'c [EntityValue<'a>],
    found: KeyError,
) -> KeyError {
    if inputs.any(|values| values.contains(&EntityValue::Null)) {
        return KeyError::Null;
    }
    match (failed, &found) {
        (KeySource::Input(input), KeyError::Unsupported(_)) => {
            let smallest = column(*input).iter().reduce(|a, b| if b.is_less_than(a) { b } else { a });
            smallest.map_or(found, |value| KeyError::Unsupported(value.proto_text()))
        }
        _ => found,
    }
}

/// A fetched value: a range of the arena, or nothing stored under this key and feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    offset: usize,
    len: u32,
}

const ABSENT: Cell = Cell { offset: 0, len: u32::MAX };

/// Event time of an entity's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTime {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanos: u32,
}

/// The Unix epoch: what the answer shows when there is no row.
pub const EPOCH: EventTime = EventTime { seconds: 0, nanos: 0 };

/// The values of one view: a matrix `[key][feature]` over one arena.
#[derive(Debug, Default)]
pub struct Cells {
    arena: Vec<u8>,
    matrix: Vec<Cell>,
    times: Vec<EventTime>,
    found: Vec<bool>,
    features: usize,
}

impl Default for EventTime {
    fn default() -> Self {
        EPOCH
    }
}

impl Cells {
    /// Empties the matrix and gives it a new size.
    pub fn reset(&mut self, keys: usize, features: usize) {
        self.arena.clear();
        self.matrix.clear();
        self.matrix.resize(keys * features, ABSENT);
        self.times.clear();
        self.times.resize(keys, EPOCH);
        self.found.clear();
        self.found.resize(keys, false);
        self.features = features;
    }

    /// Stores the bytes of one value.
    #[inline]
    pub fn put(&mut self, key: usize, feature: usize, value: &[u8]) {
        let cell = Cell { offset: self.arena.len(), len: value.len() as u32 };
        self.arena.extend_from_slice(value);
        self.matrix[key * self.features + feature] = cell;
    }

    /// Records that something is stored under a key, and when it happened.
    #[inline]
    pub fn set_time(&mut self, key: usize, time: EventTime) {
        self.times[key] = time;
        self.found[key] = true;
    }

    /// The bytes of a value, if one is stored.
    #[inline]
    pub fn get(&self, key: usize, feature: usize) -> Option<&[u8]> {
        let cell = self.matrix[key * self.features + feature];
        (cell != ABSENT).then(|| &self.arena[cell.offset..][..cell.len as usize])
    }

    /// The event time of a key's row.
    pub fn time(&self, key: usize) -> EventTime {
        self.times[key]
    }

    /// True when nothing at all is stored under the key.
    pub fn is_missing(&self, key: usize) -> bool {
        !self.found[key]
    }
}
