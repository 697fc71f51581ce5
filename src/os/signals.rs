//! Signals as bytes in a pipe: a handler writes the number, the loop reads it.
//!
//! One pipe serves a process at a time. A forked child calls [`Pipe::replace`], after which the handlers
//! it inherited write into its own pipe; no handler has to be taken down and set up again.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
pub use nix::sys::signal::Signal;

static WRITE_END: AtomicI32 = AtomicI32::new(-1);

/// The reading side of this process's signals, in order of delivery.
#[derive(Debug)]
pub struct Pipe {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl Pipe {
    /// Installs handlers for `signals` and returns the pipe they write to. Call once, before any fork.
    pub fn install(signals: &[Signal]) -> io::Result<Self> {
        let pipe = Self::replace()?;
        for &signal in signals {
            let number = signal as i32;
            let handler = move || {
                let byte = [number as u8];
                let fd: RawFd = WRITE_END.load(Ordering::Relaxed);
                // SAFETY: write(2) is async-signal-safe, and the buffer lives on this stack. A full
                // pipe or a closed descriptor only loses this one byte.
                let _ = unsafe { libc::write(fd, byte.as_ptr().cast(), 1) };
            };
            // SAFETY: the handler calls nothing but write(2) and an atomic load.
            unsafe { signal_hook::low_level::register(number, handler) }?;
        }
        Ok(pipe)
    }

    /// A new pipe for this process; the handlers write to it from now on.
    pub fn replace() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        for fd in [reader.as_fd(), writer.as_fd()] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        WRITE_END.store(writer.as_raw_fd(), Ordering::Relaxed);
        Ok(Self { reader, _writer: writer })
    }

    /// The signals that have arrived since the last call.
    pub fn drain(&mut self) -> Vec<Signal> {
        let mut seen = Vec::new();
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = self.reader.read(&mut bytes) {
            seen.extend(bytes[..count].iter().filter_map(|&b| Signal::try_from(i32::from(b)).ok()));
        }
        seen
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl AsRawFd for Pipe {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}
