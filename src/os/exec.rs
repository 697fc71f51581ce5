//! Starting another program with sockets of this one.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{fcntl, FcntlArg};
use nix::unistd::{dup2_raw, execve};

/// First descriptor that the program finds its sockets at.
pub const FIRST: RawFd = 3;

/// Becomes `program`, which finds copies of `sockets` from descriptor [`FIRST`] on. Everything else that this process
/// holds is closed by the kernel. Returns only when that is not possible.
pub fn replace(
    program: &Path,
    args: &[OsString],
    env: &[(OsString, OsString)],
    sockets: &[BorrowedFd<'_>],
) -> io::Error {
    let become_it = || -> io::Result<()> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::other);
        let program = text(program.as_os_str())?;
        let args = args.iter().map(|arg| text(arg)).collect::<io::Result<Vec<_>>>()?;
        let env = env
            .iter()
            .map(|(name, value)| {
                let mut pair = name.clone();
                pair.push("=");
                pair.push(value);
                text(&pair)
            })
            .collect::<io::Result<Vec<_>>>()?;
        // Out of the way first: a socket may lie where another one has to go.
        let above = FIRST + sockets.len() as RawFd;
        let mut copies = Vec::new();
        for socket in sockets {
            copies.push(fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(above))?);
        }
        for (index, copy) in copies.into_iter().enumerate() {
            // SAFETY: the number came from the kernel just now, and nothing else in this process knows it.
            let copy = unsafe { OwnedFd::from_raw_fd(copy) };
            // SAFETY: whatever lies at the target belongs to a process image that is about to be replaced; the result is
            // leaked, so that nothing closes it.
            let placed = unsafe { dup2_raw(&copy, FIRST + index as RawFd) }?;
            let _ = placed.into_raw_fd();
            debug_assert_ne!(copy.as_raw_fd(), FIRST + index as RawFd);
        }
        let never = execve(&program, &args, &env)?;
        match never {}
    };
    match become_it() {
        Ok(()) => io::Error::other("the program was not replaced"),
        Err(error) => error,
    }
}
