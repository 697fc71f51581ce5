//! One multiprocess file: a header of eight bytes and entries back to back.
//!
//! `used` (i32) and four zero bytes; then per entry the length of its key (i32), the key, one to eight spaces up
//! to a multiple of eight, the value and a timestamp (f64 each). All in the byte order of the host. What a writer
//! leaves behind when it is killed is read as far as it is whole.

use std::path::Path;

/// One number of one process.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'f> {
    /// JSON text: family, sample, labels, help.
    pub key: &'f str,
    /// The number.
    pub value: f64,
    /// When it was set, for gauges that show the latest; else 0.
    pub timestamp: f64,
}

/// Walks the entries of a file's bytes.
#[derive(Debug, Clone)]
pub struct Entries<'f> {
    bytes: &'f [u8],
    at: usize,
    used: usize,
    declared: usize,
    damaged: bool,
}

const HEADER: usize = 8;

impl<'f> Entries<'f> {
    /// Starts at the first entry. A file too short for a header has none.
    pub fn new(bytes: &'f [u8]) -> Self {
        let declared = bytes.first_chunk::<4>().map_or(0, |raw| i32::from_ne_bytes(*raw));
        let declared = usize::try_from(declared).unwrap_or(0);
        let used = declared.min(bytes.len());
        Self { bytes, at: HEADER, used, declared, damaged: declared > bytes.len() }
    }

    /// Bytes in use, as the header says; 0 when it says nothing sensible.
    pub fn declared(&self) -> usize {
        self.declared
    }

    /// True when something was found that no whole entry explains.
    pub fn is_damaged(&self) -> bool {
        self.damaged
    }

    /// Offset of the byte behind the last entry that was walked; at the end, of the used part.
    pub fn position(&self) -> usize {
        self.at
    }

    fn entry(&self) -> Option<(Entry<'f>, usize)> {
        let raw = self.bytes.get(self.at..)?.first_chunk::<4>()?;
        let length = usize::try_from(i32::from_ne_bytes(*raw)).ok().filter(|&length| length > 0)?;
        let key_at = self.at + 4;
        if key_at.checked_add(length)? > self.used {
            return None;
        }
        let key = std::str::from_utf8(&self.bytes[key_at..key_at + length]).ok()?;
        let value_at = key_at + length + padding(length);
        let number = |at: usize| Some(f64::from_ne_bytes(*self.bytes.get(at..)?.first_chunk::<8>()?));
        // A file cut right behind the value is still good for the value.
        let entry = Entry { key, value: number(value_at)?, timestamp: number(value_at + 8).unwrap_or(0.0) };
        Some((entry, value_at + 16))
    }
}

/// Spaces behind a key of `length` bytes: never none, and the value starts at a multiple of eight.
pub fn padding(length: usize) -> usize {
    8 - (length + 4) % 8
}

impl<'f> Iterator for Entries<'f> {
    type Item = Entry<'f>;

    fn next(&mut self) -> Option<Entry<'f>> {
        if self.at >= self.used {
            return None;
        }
        match self.entry() {
            Some((entry, next)) => {
                self.at = next;
                Some(entry)
            }
            None => {
                self.damaged = true;
                self.at = self.used;
                None
            }
        }
    }
}

/// What a file's name says: `{type}_{id}.db`, or `gauge_{mode}_{id}.db`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileName {
    /// Text before the first `_`.
    pub kind: String,
    /// Mode of a gauge, else empty.
    pub mode: String,
    /// Process or slot.
    pub id: String,
}

impl FileName {
    /// Reads a name. `None`: not one of ours (hidden, another suffix, too few parts).
    pub fn parse(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let stem = name.strip_suffix(".db").filter(|_| !name.starts_with('.'))?;
        let mut parts = stem.split('_');
        let kind = parts.next()?.to_owned();
        let first = parts.next()?.to_owned();
        if kind != "gauge" {
            return Some(Self { kind, mode: String::new(), id: first });
        }
        Some(Self { kind, mode: first, id: parts.next()?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_eight() {
        assert_eq!([3, 4, 11, 12].map(|n| 4 + n + padding(n) + 16), [24, 32, 32, 40]);
    }

    #[test]
    fn names_are_taken_apart() {
        let of = |name: &str| FileName::parse(Path::new(name)).map(|n| (n.kind, n.mode, n.id));
        let some = |a: &str, b: &str, c: &str| Some((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(of("d/counter_12.db"), some("counter", "", "12"));
        assert_eq!(of("gauge_livemax_w1.db"), some("gauge", "livemax", "w1"));
        assert_eq!(of("counter_8_9.db"), some("counter", "", "8"));
        for name in [".counter_1.db", "counter_1.db.tmp", "counter.db", "gauge_1.db", "x"] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Entries::new(&bytes).count();
        }
    }
}
