//! Who takes the next connection? Listeners in the poll, and the balance between workers.
//!
//! The kernel wakes one of the waiting workers, and tends to wake the same one. So every worker moves to the
//! end of the queue now and then, and a worker that holds clearly more than its share leaves the queue for a
//! moment. It must leave *before* it is woken: a wake-up that is not used is lost for everybody.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mio::{Poll, Token};

use super::LISTENERS;
use crate::config::Settings;
use crate::ipc::scoreboard::Scoreboard;
use crate::net::{Listener, ListenerName, Stream};
use crate::os::epoll;

/// Accepted connections after which a worker moves to the end of the queue.
const REQUEUE_EVERY: u32 = 16;
/// Pause after running out of descriptors.
const FULL_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the queue.
    Armed,
    /// Out of the queue until then.
    Paused(Instant),
    /// Out of the queue until a connection closes.
    Full,
    /// Out of the queue for good, or until [`Acceptor::resume`].
    Stopped,
}

/// The listeners of one worker.
#[derive(Debug)]
pub(super) struct Acceptor {
    /// Sockets of the master, or with `reuse_port` this worker's own.
    listeners: Vec<Listener>,
    owns_sockets: bool,
    backlog: i32,
    /// Own sockets that were closed, to open them again.
    closed: Vec<ListenerName>,
    most: usize,
    state: State,
    since_requeue: u32,
    warned_full: bool,
}

impl Acceptor {
    /// Starts accepting.
    pub(super) fn new(listeners: Vec<Listener>, settings: &Settings, poll: &Poll) -> io::Result<Self> {
        let mut acceptor = Self {
            listeners,
            owns_sockets: settings.reuse_port,
            backlog: settings.backlog,
            closed: Vec::new(),
            most: settings.worker_connections.unwrap_or(usize::MAX),
            state: State::Stopped,
            since_requeue: 0,
            warned_full: false,
        };
        acceptor.arm(poll)?;
        Ok(acceptor)
    }

    fn arm(&mut self, poll: &Poll) -> io::Result<()> {
        for (index, listener) in self.listeners.iter().enumerate() {
            if let Err(error) = epoll::add_exclusive(poll, listener.as_fd(), Token(LISTENERS + index)) {
                for added in &self.listeners[..index] {
                    let _ = epoll::remove(poll, added.as_fd());
                }
                return Err(error);
            }
        }
        self.state = State::Armed;
        Ok(())
    }

    /// Arms, or tries again soon.
    fn arm_or_retry(&mut self, poll: &Poll, now: Instant) {
        if let Err(error) = self.arm(poll) {
            log::error!("cannot listen, trying again: {error}");
            self.state = State::Paused(now + FULL_PAUSE);
        }
    }

    fn disarm(&mut self, poll: &Poll, state: State) {
        if self.state == State::Armed {
            for listener in &self.listeners {
                let _ = epoll::remove(poll, listener.as_fd());
            }
        }
        self.state = state;
    }

    /// Takes one connection; `None` when another worker was faster.
    pub(super) fn accept(
        &mut self,
        index: usize,
        poll: &Poll,
        now: Instant,
    ) -> Option<(Stream, Option<SocketAddr>)> {
        if self.state != State::Armed {
            return None;
        }
        let listener = self.listeners.get(index)?;
        match listener.accept() {
            Ok(accepted) => {
                self.since_requeue += 1;
                Some(accepted)
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    if !std::mem::replace(&mut self.warned_full, true) {
                        log::warn!("cannot accept, pausing: {error}; raise the limit of open files");
                    }
                    self.disarm(poll, State::Paused(now + FULL_PAUSE));
                    None
                }
                // The client gave up, or another worker took it.
                _ => None,
            },
        }
    }

    /// Decides, after a connection came, whether the next ones are for others. `open` = held by this worker.
    pub(super) fn balance(&mut self, open: usize, board: &Scoreboard, poll: &Poll, now: Instant) {
        if self.state != State::Armed {
            return;
        }
        if open >= self.most {
            return self.disarm(poll, State::Full);
        }
        let (workers, total) = board.load();
        // Above 1.125 x mean + 1.
        if workers > 1 && open as u64 * 8 * u64::from(workers) > u64::from(total) * 9 + 8 * u64::from(workers)
        {
            let pause = Duration::from_micros(fastrand::u64(1000..3000));
            return self.disarm(poll, State::Paused(now + pause));
        }
        if self.since_requeue >= REQUEUE_EVERY {
            self.since_requeue = 0;
            self.disarm(poll, State::Stopped);
            self.arm_or_retry(poll, now);
        }
    }

    /// Goes on after a pause that is over.
    pub(super) fn rearm(&mut self, poll: &Poll, now: Instant) {
        if matches!(self.state, State::Paused(until) if until <= now) {
            self.arm_or_retry(poll, now);
        }
    }

    /// When a pause is over.
    pub(super) fn rearm_at(&self) -> Option<Instant> {
        if let State::Paused(until) = self.state {
            Some(until)
        } else {
            None
        }
    }

    /// A connection was closed; `open` remain.
    pub(super) fn closed_one(&mut self, open: usize, poll: &Poll, now: Instant) {
        if self.state == State::Full && open < self.most {
            self.arm_or_retry(poll, now);
        }
    }

    /// Stops accepting, for as long as another worker may take over. A socket of its own is closed: what the
    /// kernel would still queue there would be lost.
    pub(super) fn stop(&mut self, poll: &Poll) {
        self.disarm(poll, State::Stopped);
        if self.owns_sockets {
            self.closed = self.listeners.drain(..).map(|listener| listener.name().clone()).collect();
        }
    }

    /// Stops for good: clients are refused once every process has closed its copy.
    pub(super) fn close(&mut self, poll: &Poll) {
        self.stop(poll);
        self.listeners.clear();
    }

    /// Accepts again after [`stop`](Self::stop): there is no successor after all.
    pub(super) fn resume(&mut self, poll: &Poll, now: Instant) {
        if self.state != State::Stopped {
            return;
        }
        for name in std::mem::take(&mut self.closed) {
            match name.open_sibling(self.backlog) {
                Ok(listener) => self.listeners.push(listener),
                Err(error) => log::error!("cannot listen again at {name}: {error}"),
            }
        }
        self.arm_or_retry(poll, now);
    }

    /// True when this worker's sockets are its own, so that what waits in them is lost when they close.
    pub(super) fn owns_sockets(&self) -> bool {
        self.owns_sockets
    }

    /// Takes every connection that waits.
    pub(super) fn take_waiting(&self) -> Vec<(Stream, Option<SocketAddr>)> {
        let mut taken = Vec::new();
        for listener in &self.listeners {
            while let Ok(accepted) = listener.accept() {
                taken.push(accepted);
            }
        }
        taken
    }
}
