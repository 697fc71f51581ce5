//! Listeners in a mio poll with `EPOLLEXCLUSIVE`.
//!
//! mio registers edge-triggered and shared; a prefork server wants level-triggered and exclusive, so that
//! one new connection wakes one worker. An exclusive entry cannot be modified, only deleted and added again.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use mio::{Poll, Token};

/// Adds a listener to `poll` as level-triggered and exclusive; its events carry `token`.
///
/// Adding puts the entry at the end of the kernel's wait queue, which is what balances workers.
pub fn add_exclusive(poll: &Poll, listener: BorrowedFd<'_>, token: Token) -> io::Result<()> {
    let mut event =
        libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLEXCLUSIVE) as u32, u64: token.0 as u64 };
    // SAFETY: both descriptors are open (borrowed for the call) and `event` outlives the call.
    let done = unsafe {
        libc::epoll_ctl(poll.as_raw_fd(), libc::EPOLL_CTL_ADD, listener.as_raw_fd(), &raw mut event)
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Removes a listener that [`add_exclusive`] added. Must happen before the descriptor is closed: the
/// master's copy keeps the socket alive, and epoll would keep reporting a descriptor nobody can delete.
pub fn remove(poll: &Poll, listener: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open; the event pointer may be null for DEL since Linux 2.6.9.
    let done = unsafe {
        libc::epoll_ctl(poll.as_raw_fd(), libc::EPOLL_CTL_DEL, listener.as_raw_fd(), std::ptr::null_mut())
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
