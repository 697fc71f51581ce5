//! The file that holds the master's process number, by gunicorn's rules.

use std::fs;
use std::path::{Path, PathBuf};

use super::StartError;
use crate::exit;
use crate::os::process;

/// A file made by this process, which removes it at its end.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    pid: u32,
}

impl PidFile {
    /// Writes the file: beside its place first, so that nobody ever reads half a number. A file that names a
    /// process that runs is an error; any other is replaced.
    pub(super) fn create(path: &Path) -> Result<Self, StartError> {
        let failed = |problem: String| StartError::new(exit::CONFIG, format!("--pid: {problem}"));
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(failed(format!("{} doesn't exist. Can't create pidfile.", folder.display())));
        }
        let other = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let pid = std::process::id();
        if let Some(other) = other.filter(|&other| process::exists(other) && other.cast_unsigned() != pid) {
            let shown = path.display();
            return Err(failed(format!("Already running on PID {other} (or pid file '{shown}' is stale)")));
        }
        let beside = path.with_file_name(format!(".{pid}.pid"));
        fs::write(&beside, format!("{pid}\n"))
            .and_then(|()| fs::rename(&beside, path))
            .map_err(|error| failed(format!("'{}' isn't writable: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), pid })
    }
}

impl PidFile {
    /// Moves the file to `path`, which nobody else uses any more.
    pub(super) fn rename(&mut self, path: &Path) {
        match fs::rename(&self.path, path) {
            Ok(()) => path.clone_into(&mut self.path),
            Err(error) => log::error!("the pid file stays at {}: {error}", self.path.display()),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A forked child has a copy of this value, but not the file.
        if self.pid != std::process::id() {
            return;
        }
        if fs::read_to_string(&self.path).is_ok_and(|text| text.trim() == self.pid.to_string()) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_replaced_and_a_live_one_respected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        fs::write(&path, "999999999\n").unwrap();
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "1\n").unwrap();
        let error = PidFile::create(&path).unwrap_err().to_string();
        assert!(error.contains("Already running on PID 1"), "{error}");
        assert!(PidFile::create(&dir.path().join("no/x.pid"))
            .unwrap_err()
            .to_string()
            .contains("doesn't exist"));
        // Somebody else's file stays.
        fs::write(&path, "garbage").unwrap();
        let file = PidFile::create(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists());
    }
}
