//! A file mapped by its one writer and read by other processes through ordinary reads.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::process::Identity;
use memmap2::MmapMut;
use nix::fcntl::posix_fallocate;

/// Size of a new file, the least that is mapped.
pub const FIRST_SIZE: usize = 64 << 10;

/// See the module. The file never shrinks and all of its blocks exist, so that a full disk shows when it grows
/// and not as a SIGBUS when it is written.
#[derive(Debug)]
pub struct MapFile {
    file: File,
    map: MmapMut,
}

impl MapFile {
    /// Opens the file at `path`, or makes one whose first eight bytes are `header`: it appears under its name
    /// only once it is complete, so that no reader ever sees an empty one.
    pub fn open(path: &Path, header: [u8; 8]) -> io::Result<Self> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, header)?,
            opened => opened?,
        };
        let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // Also a file that was copied with holes has all of its blocks then.
        allocate(&file, size.max(FIRST_SIZE))?;
        let map = map(&file)?;
        Ok(Self { file, map })
    }

    /// Gives the file to the user that will go on with it.
    pub fn give_to(&self, identity: &Identity) -> io::Result<()> {
        use std::os::fd::AsFd;
        if identity.uid.is_some() || identity.gid.is_some() {
            nix::unistd::fchown(self.file.as_fd(), identity.uid, identity.gid)?;
        }
        Ok(())
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Makes room for `size` bytes by doubling.
    pub fn grow_to(&mut self, size: usize) -> io::Result<()> {
        let mut wanted = self.map.len();
        while wanted < size {
            wanted *= 2;
        }
        if wanted > self.map.len() {
            allocate(&self.file, wanted)?;
            self.map = map(&self.file)?;
        }
        Ok(())
    }

    /// Copies bytes into a part of the file that readers do not look at yet.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        self.map[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads the eight bytes at `at`, which is a multiple of eight.
    #[inline]
    pub fn load(&self, at: usize) -> f64 {
        f64::from_bits(self.word(at).load(Ordering::Relaxed))
    }

    /// Stores eight bytes at once, so that a reader never sees half a number.
    #[inline]
    pub fn store(&self, at: usize, value: f64) {
        self.word(at).store(value.to_bits(), Ordering::Relaxed);
    }

    /// Stores the four bytes at the start of the file after everything written before.
    pub fn publish(&self, used: i32) {
        assert!(self.map.len() >= 4, "files are at least FIRST_SIZE long");
        // SAFETY: the map is page-aligned, long enough (asserted), lives as long as `self`, and an atomic may
        // be written by whoever has a shared reference.
        let word = unsafe { AtomicI32::from_ptr(self.map.as_ptr().cast_mut().cast()) };
        word.store(used, Ordering::Release);
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.map.len(), "a place inside the file");
        // SAFETY: within the map (asserted).
        let place = unsafe { self.map.as_ptr().add(at) };
        // SAFETY: page-aligned base plus a multiple of eight; the map lives as long as `self`; all accesses to
        // this word after its entry was published are atomic.
        unsafe { AtomicU64::from_ptr(place.cast_mut().cast()) }
    }
}

fn create(path: &Path, header: [u8; 8]) -> io::Result<File> {
    use std::io::Write;
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let hidden = Path::new(&name);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(hidden)?;
    let made = allocate(&file, FIRST_SIZE)
        .and_then(|()| file.write_all(&header))
        .and_then(|()| std::fs::rename(hidden, path));
    if made.is_err() {
        let _ = std::fs::remove_file(hidden);
    }
    made.map(|()| file)
}

fn allocate(file: &File, size: usize) -> io::Result<()> {
    Ok(posix_fallocate(file, 0, size as i64)?)
}

fn map(file: &File) -> io::Result<MmapMut> {
    // SAFETY: the file is written by this process alone (its owner holds the slot's lock), never shrinks, and
    // what is shared with readers is written atomically.
    unsafe { MmapMut::map_mut(file) }
}

/// A lock file that is locked as long as this value, or the copy that a forked child has of it, lives.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Locks the file at `path`, creating it; `None` when somebody else has it.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        // Closing the descriptor, not unlocking it, ends the lock: the child's copy keeps it.
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}
