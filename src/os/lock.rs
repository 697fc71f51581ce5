//! Locks between processes on parts of a file, given back when the file is closed or its process dies.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};

/// One locked byte of a lock file. The file stays behind, empty.
#[derive(Debug)]
pub struct RangeLock {
    _file: File,
}

/// How often somebody who waits looks again.
const RETRY: Duration = Duration::from_millis(5);

impl RangeLock {
    /// Locks byte `offset` of the file at `path`, waiting up to `patience` for another holder.
    pub fn take(path: &Path, offset: u32, patience: Duration) -> io::Result<Self> {
        let until = Instant::now() + patience;
        loop {
            if let Some(lock) = Self::try_take(path, offset)? {
                return Ok(lock);
            }
            if Instant::now() >= until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds the lock"));
            }
            std::thread::sleep(RETRY);
        }
    }

    /// As [`take`](Self::take) without waiting: `None` when somebody else holds it.
    pub fn try_take(path: &Path, offset: u32) -> io::Result<Option<Self>> {
        let file = open_lock_file(path)?;
        let range = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: libc::off_t::from(offset),
            l_len: 1,
            l_pid: 0,
        };
        // A lock of the open file, not of the process: closing another descriptor of the same file does not
        // give it back.
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&range)) {
            Ok(_) => Ok(Some(Self { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(io::Error::new(
                io::Error::from(error).kind(),
                format!("{} (descriptor {}): {error}", path.display(), file.as_raw_fd()),
            )),
        }
    }
}

/// Opens a lock file. A new one belongs to whom its folder belongs, with the folder's rights to write: a command run
/// by root does not lock the server out.
fn open_lock_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match OpenOptions::new().create_new(true).write(true).mode(0o600).open(path) {
        Ok(file) => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = std::fs::metadata(folder.unwrap_or(Path::new(".")))?;
            let _ = std::os::unix::fs::fchown(&file, Some(folder.uid()), Some(folder.gid()));
            file.set_permissions(std::fs::Permissions::from_mode(0o600 | folder.mode() & 0o066))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).open(path).map_err(named)
        }
        Err(error) => Err(named(error)),
    }
}

/// Replaces the file at `path` by `bytes` at once: readers find the old content or the new one, whole. Mode and,
/// where allowed, owner of the old file are kept.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_file_if(path, bytes, || true).map(drop)
}

/// As [`replace_file`], unless `unchanged` says no once the new content is on disk; true when it was replaced.
pub fn replace_file_if(path: &Path, bytes: &[u8], unchanged: impl FnOnce() -> bool) -> io::Result<bool> {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    let temporary = temporary_beside(path);
    let write = || -> io::Result<bool> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        if let Ok(old) = std::fs::metadata(path) {
            file.set_permissions(old.permissions())?;
            let _ = std::os::unix::fs::chown(&temporary, Some(old.uid()), Some(old.gid()));
        }
        file.sync_all()?;
        if !unchanged() {
            std::fs::remove_file(&temporary)?;
            return Ok(false);
        }
        std::fs::rename(&temporary, path)?;
        sync_folder(path).map(|()| true)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// A name for a file that will take the place of `path`.
pub fn temporary_beside(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.{:08x}.tmp", std::process::id(), fastrand::u32(..)))
}

/// Makes the folder of `path` durable, so that a rename in it is.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_has_one_holder_and_other_bytes_are_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = RangeLock::take(&path, 7, Duration::ZERO).unwrap();
        assert!(RangeLock::try_take(&path, 7).unwrap().is_none());
        assert!(RangeLock::try_take(&path, 8).unwrap().is_some());
        drop(held);
        assert!(RangeLock::try_take(&path, 7).unwrap().is_some());
    }

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
