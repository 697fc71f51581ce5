//! The registry file: reading it, and noticing that it has changed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::snapshot::{Snapshot, SnapshotRules};
use super::{wire, RegistryError};

/// How often a file is read again when it was being rewritten meanwhile.
const RACE_RETRIES: u32 = 3;

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
