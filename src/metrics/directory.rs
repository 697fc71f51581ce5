//! The directory of the files, and who writes which: slots are locked by their owners.
//!
//! A slot's files go on when its owner is gone: totals never go back, and there are as many files as there
//! were ever workers at one time, however many of them come and go.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::mapped::FileKind;
use crate::os::mapfile::FileLock;
use crate::os::process;

/// Modes of gauges whose files go when their process goes.
const LIVE: [&str; 5] = ["liveall", "livemin", "livemax", "livesum", "livemostrecent"];

/// See the module.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Made by this process.
    made: bool,
    /// Removed by it.
    own: bool,
}

impl Directory {
    /// Finds the directory the environment names, as Feast and its metrics library do, or makes one of its own
    /// under the temporary directory. Files of processes that are gone are cleaned up.
    pub fn open(env: impl Fn(&str) -> Option<String>) -> io::Result<Self> {
        let named = |name| env(name).filter(|value| !value.is_empty());
        let preset = named("PROMETHEUS_MULTIPROC_DIR").or_else(|| named("PROMETHEUS_MULTIPROCESS_DIR"));
        let Some(preset) = preset.map(PathBuf::from) else {
            let base = named("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
            return Ok(Self { path: make_private(&base)?, made: true, own: true });
        };
        let shown = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", preset.display()));
        let made = !preset.exists();
        if made {
            let above = preset.parent().map_or(Ok(()), fs::create_dir_all);
            above.and_then(|()| fs::DirBuilder::new().mode(0o700).create(&preset)).map_err(shown)?;
        }
        let path = preset.canonicalize().map_err(shown)?;
        let directory = Self { path, made, own: false };
        directory.clean().map_err(shown)?;
        // Shows now, and not in every worker, that files cannot be made.
        let probe = directory.path.join(".probe");
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(shown)?;
        Ok(directory)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when this process has made it.
    pub fn is_new(&self) -> bool {
        self.made
    }

    /// True when it goes with this process.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// Takes over from the process that has made it.
    pub fn adopt(&mut self) {
        self.own = true;
    }

    /// Takes the lowest slot at or above `from` that no living process owns; `prefix` tells the roles apart.
    pub fn claim(&self, prefix: char, mut from: usize) -> io::Result<(usize, FileLock)> {
        loop {
            if let Some(lock) = FileLock::try_take(&self.lock_path(prefix, from))? {
                return Ok((from, lock));
            }
            from += 1;
        }
    }

    /// Removes the live gauges of a process, or of a slot, that is gone, and what it may have left half made.
    pub fn bury(&self, id: &str) {
        for mode in LIVE {
            let path = self.path.join(FileKind::Gauge(mode).file_name(id));
            let _ = fs::remove_file(path.with_extension("db.tmp"));
            let _ = fs::remove_file(path);
        }
    }

    /// Forgets what the gauges of a slot showed last, unless somebody else owns the slot by now. The maxima's file
    /// is emptied and stays, because readers do not expect it to vanish.
    pub fn bury_slot(&self, slot: usize, live: bool) {
        use std::os::unix::fs::FileExt;
        let Ok(Some(_owner)) = FileLock::try_take(&self.lock_path('w', slot)) else { return };
        let path = self.path.join(FileKind::Gauge("max").file_name(&format!("w{slot}")));
        if let Ok(file) = fs::OpenOptions::new().write(true).open(path) {
            let _ = file.write_all_at(&8_i32.to_ne_bytes(), 0);
        }
        if live {
            self.bury(&format!("w{slot}"));
        }
    }

    fn lock_path(&self, prefix: char, slot: usize) -> PathBuf {
        self.path.join(format!(".{prefix}{slot}.lock"))
    }

    /// Removes live gauges whose process does not exist, forgets those of slots without an owner, and removes what
    /// an interrupted start has left.
    pub fn clean(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (stem, unfinished) = match name.strip_suffix(".tmp") {
                Some(stem) => (stem, true),
                None => (name, false),
            };
            let Some((kind, id)) = stem.strip_suffix(".db").and_then(|stem| stem.rsplit_once('_')) else {
                continue;
            };
            let live = kind.starts_with("gauge_live");
            let slot = id.strip_prefix('w').and_then(|number| number.parse::<usize>().ok());
            match (id.parse::<i32>(), slot) {
                (Ok(pid), _) if (live || unfinished) && !process::exists(pid) => {
                    let _ = fs::remove_file(entry.path());
                }
                (_, Some(slot)) if kind == "gauge_max" || live => self.bury_slot(slot, true),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the directory if it was made by this process.
    pub fn remove(&self) {
        if self.own {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn make_private(base: &Path) -> io::Result<PathBuf> {
    loop {
        let name: String = (0..8).map(|_| fastrand::alphanumeric().to_ascii_lowercase()).collect();
        let path = base.join(format!("feast_metrics_{name}"));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_one_owner() {
        let dir = Directory { path: tempfile::tempdir().unwrap().keep(), made: true, own: true };
        let (first, lock) = dir.claim('w', 0).unwrap();
        let (second, _other) = dir.claim('w', 0).unwrap();
        assert_eq!((first, second), (0, 1));
        drop(lock);
        assert_eq!(dir.claim('w', 0).unwrap().0, 0);
        assert_eq!(dir.claim('m', 0).unwrap().0, 0);
        dir.remove();
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_preset_directory_loses_the_gauges_of_the_dead_only() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        for name in ["gauge_liveall_999999999.db", "gauge_all_999999999.db", "counter_w0.db"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        fs::write(dir.path().join(format!("gauge_livesum_{own}.db")), b"").unwrap();
        let text = dir.path().join("new/sub").to_str().unwrap().to_owned();
        assert!(Directory::open(|name| (name == "PROMETHEUS_MULTIPROCESS_DIR").then(|| text.clone())).is_ok());
        let text = dir.path().to_str().unwrap().to_owned();
        Directory::open(|name| (name == "PROMETHEUS_MULTIPROC_DIR").then(|| text.clone())).unwrap();
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let live = format!("gauge_livesum_{own}.db");
        assert_eq!(left, ["counter_w0.db", "gauge_all_999999999.db", live.as_str(), "new"]);
    }
}
