//! The registry file: reading it, and noticing that it has changed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::edit::Time;
use super::model::Registry;
use super::snapshot::{Snapshot, SnapshotRules};
use super::{wire, RegistryError};
use crate::os::lock::{replace_file_if, RangeLock};
use crate::os::process::wall_clock;

/// How often a file is read again when it was being rewritten meanwhile.
const RACE_RETRIES: u32 = 3;

/// How long a writer waits for another one.
const WRITERS_PATIENCE: Duration = Duration::from_secs(10);
/// How often an edit is done again because somebody who knows no lock has written meanwhile.
const EDIT_RETRIES: u32 = 20;
/// The byte of the lock file that stands for the registry itself.
const REGISTRY_BYTE: u32 = 0;

/// What identifies one version of the file. The reference's writers truncate and rewrite the same inode, so
/// size and modification time are looked at, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    modified: SystemTime,
    size: u64,
    inode: u64,
}

impl Stamp {
    /// True for a file of zero bytes.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }
}

/// A file registry and how to read it.
#[derive(Debug, Clone)]
pub struct RegistryFile {
    path: PathBuf,
    project: String,
    rules: SnapshotRules,
}

impl RegistryFile {
    /// A registry at `path`, of which `project` is served.
    pub fn new(path: PathBuf, project: &str, rules: SnapshotRules) -> Self {
        Self { path, project: project.to_owned(), rules }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stamp of the file as it is now; `None` when it is missing or cannot be looked at.
    pub fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let found = fs::metadata(&self.path).ok()?;
        Some(Stamp { modified: found.modified().ok()?, size: found.len(), inode: found.ino() })
    }

    /// Reads and decodes the file as `generation`. The stamp returned is that of the bytes decoded.
    pub fn load(&self, generation: u64) -> Result<(Snapshot, Option<Stamp>), RegistryError> {
        let mut attempt = 0;
        loop {
            let before = self.stamp();
            let bytes = fs::read(&self.path).map_err(|error| match error.kind() {
                ErrorKind::NotFound => RegistryError::Missing(self.path.display().to_string()),
                _ => RegistryError::Io { path: self.path.display().to_string(), error },
            })?;
            let decoded = Snapshot::decode(&bytes, &self.project, self.rules, generation);
            // A writer that truncates and rewrites in place can be caught half way: look again.
            let torn = before != self.stamp() || decoded.is_err();
            attempt += 1;
            if !torn || attempt > RACE_RETRIES {
                return Ok((decoded?, before));
            }
            if decoded.is_err() {
                std::thread::yield_now();
            }
        }
    }

    /// The file whose bytes are locked by writers: byte 0 for the registry, one byte per view for who materializes it.
    pub fn lock_path(&self) -> PathBuf {
        // Whoever comes by a link takes the same lock.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".lock");
        path.with_file_name(name)
    }

    /// Edits the file: one writer at a time on this machine, all or nothing, and never on top of what another
    /// program has written meanwhile. `edit` gets the content, a fresh version id and the time; `None` leaves the
    /// file as it is. A file that is no registry, or empty, is not touched.
    pub fn update<E: From<RegistryError>>(
        &self,
        mut edit: impl FnMut(&[u8], &str, Time) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<(), E> {
        let failed = |problem: String| RegistryError::Edit { path: self.path.display().to_string(), problem };
        let lock = RangeLock::take(&self.lock_path(), REGISTRY_BYTE, WRITERS_PATIENCE);
        let _lock = lock.map_err(|error| failed(error.to_string()))?;
        for _ in 0..EDIT_RETRIES {
            let before = self.stamp();
            let bytes = fs::read(&self.path).map_err(|error| failed(error.to_string()))?;
            if bytes.is_empty() || Registry::decode(&bytes).is_err() || before != self.stamp() {
                // A writer without a lock may be in the middle of it.
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let now = wall_clock();
            let now = (now.as_secs().cast_signed(), (now.subsec_micros() * 1000).cast_signed());
            let Some(edited) = edit(&bytes, &version_id(), now)? else { return Ok(()) };
            // A link stays one: what it points to is replaced.
            let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
            let replaced = replace_file_if(&path, &edited, || before == self.stamp());
            if replaced.map_err(|error| failed(error.to_string()))? {
                return Ok(());
            }
        }
        Err(failed("it is empty, broken, or changes all the time".to_owned()).into())
    }

    /// Creates an empty registry file if none is there, as the reference does at start; true if it did.
    /// One missing folder above it is created, too.
    pub fn create_if_missing(&self, version_id: &str, now: (i64, i32)) -> Result<bool, RegistryError> {
        let failed = |error| RegistryError::Io { path: self.path.display().to_string(), error };
        match fs::metadata(&self.path) {
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(folder) = self.path.parent() {
            if !folder.exists() {
                fs::create_dir(folder).map_err(failed)?;
            }
        }
        fs::write(&self.path, empty_registry(version_id, now)).map_err(failed)?;
        Ok(true)
    }
}

/// A random UUID, version 4.
pub fn version_id() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A registry without objects: schema version, version id and time of the last change (seconds, nanos).
pub fn empty_registry(version_id: &str, (seconds, nanos): (i64, i32)) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_str(&mut out, 3, "1");
    wire::put_str(&mut out, 4, version_id);
    wire::put_message(&mut out, 5, |out| {
        wire::put_int(out, 1, seconds);
        wire::put_int(out, 2, i64::from(nanos));
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_ids_are_uuids() {
        let id = version_id();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!("89ab".contains(&id[19..20]));
    }

    #[test]
    fn an_edit_sees_what_was_written_meanwhile_and_spares_broken_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.db");
        let file = RegistryFile::new(path.clone(), "p", SnapshotRules::default());
        fs::write(&path, empty_registry("one", (1, 0))).unwrap();
        let mut seen = 0;
        let edited: Result<(), RegistryError> = file.update(|bytes, _, _| {
            seen += 1;
            if seen == 1 {
                // Somebody who knows no lock.
                fs::write(&path, empty_registry("another one", (2, 0))).unwrap();
            }
            let mut out = bytes.to_vec();
            wire::put_str(&mut out, 99, "edited");
            Ok(Some(out))
        });
        edited.unwrap();
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.windows(11).any(|window| window == b"another one"));
        assert!(bytes.ends_with(b"edited"));
        fs::write(&path, [0xff]).unwrap();
        let refused: Result<(), RegistryError> = file.update(|_, _, _| Ok(Some(Vec::new())));
        assert!(refused.unwrap_err().to_string().contains("empty, broken"));
        assert_eq!(fs::read(&path).unwrap(), [0xff]);
    }
}
