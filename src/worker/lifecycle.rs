//! From ready to gone: what a worker does about signals, the master's word, and its own limit.

use std::time::{Duration, Instant};

use super::Worker;
use crate::ipc::channel::{Incoming, ToMaster, ToWorker};
use crate::ipc::scoreboard::SlotState;
use crate::os::signals::Signal;
use crate::os::title;

/// How long idle connections are kept when there is neither a successor nor an operator's stop.
const ORPHAN_LINGER: Duration = Duration::from_secs(2);

/// How long a handshake that has begun may hold up a handover.
const HANDSHAKE_LINGER: Duration = Duration::from_secs(2);

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The master knows that a successor is wanted.
    Retiring,
    /// Connections go to another worker.
    HandingOver,
    /// No new connections; every answer is the last of its connection.
    Draining {
        /// Idle connections are closed then.
        idle_until: Instant,
        /// Everything is closed then.
        until: Instant,
    },
    Over,
}

/// Phase and limit of a worker.
#[derive(Debug)]
pub(super) struct Life {
    phase: Phase,
    limit: Option<u64>,
}

impl Life {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { phase: Phase::Serving, limit }
    }

    /// Answers carry `connection: close`.
    pub(super) fn announces_close(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }

    pub(super) fn is_handing_over(&self) -> bool {
        self.phase == Phase::HandingOver
    }

    /// A handover may begin.
    pub(super) fn serves(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Retiring)
    }

    /// When the phase ends by itself.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Draining { idle_until, until } => Some(idle_until.min(until)),
            _ => None,
        }
    }
}

impl Worker<'_> {
    /// Takes what the master has said.
    pub(super) fn hear_master(&mut self) {
        loop {
            match self.channel.from_master(&mut self.scratch) {
                Ok(Incoming::Message(ToWorker::HandTo(socket))) => self.start_handover(socket),
                Ok(Incoming::Message(ToWorker::Adopt(socket))) => self.expect_connections(socket),
                Ok(Incoming::Message(ToWorker::JobDone { id, status, body })) => {
                    self.service.job_done(id, status, body);
                }
                Ok(Incoming::Empty) => return,
                // A descriptor could not be taken; the master will see that nothing came of it.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    log::error!("a message of the master was cut off: {error}");
                }
                Ok(Incoming::Closed) | Err(_) => {
                    if !matches!(self.life.phase, Phase::Draining { .. } | Phase::Over) {
                        log::info!("Parent changed, shutting down: <Worker {}>", std::process::id());
                        self.drain(ORPHAN_LINGER);
                    }
                    // Nobody will ever write again; leaving it in the poll would spin.
                    let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&self.channel));
                    let _ = self.poll.registry().deregister(&mut mio::unix::SourceFd(&fd));
                    return;
                }
            }
        }
    }

    /// Takes what signals have said.
    pub(super) fn hear_signals(&mut self) {
        for signal in self.signals.drain() {
            match signal {
                Signal::SIGTERM => self.drain(self.settings.graceful_timeout),
                Signal::SIGINT | Signal::SIGQUIT => self.life.phase = Phase::Over,
                Signal::SIGUSR1 => self.service.reopen_logs(),
                // HUP, USR2, TTIN, TTOU and WINCH are the master's.
                _ => {}
            }
        }
    }

    /// Says what this worker does, on the scoreboard and in its title.
    fn show(&self, state: SlotState) {
        self.slot.set_state(state);
        title::show("worker", state.name());
    }

    /// Takes what waits in the listeners' queues.
    fn add_waiting(&mut self) {
        for (stream, peer) in self.acceptor.take_waiting() {
            self.add_new(stream, peer);
        }
    }

    /// Stops accepting and ends every connection with its next answer.
    fn drain(&mut self, linger: Duration) {
        if matches!(self.life.phase, Phase::Draining { .. } | Phase::Over) {
            return;
        }
        self.add_waiting();
        self.acceptor.close(&self.poll);
        self.show(SlotState::Draining);
        let now = self.clock.now;
        let until = now + self.settings.graceful_timeout;
        self.life.phase = Phase::Draining { idle_until: (now + linger).min(until), until };
    }

    /// The successor is there: this worker accepts no more.
    pub(super) fn begin_handing_over(&mut self) {
        if self.acceptor.owns_sockets() {
            self.add_waiting();
        }
        self.acceptor.stop(&self.poll);
        self.show(SlotState::Draining);
        self.life.phase = Phase::HandingOver;
        let until = self.clock.now + HANDSHAKE_LINGER;
        self.conns.iter_mut().for_each(|(_, conn)| conn.hurry(until));
    }

    /// The successor is gone: serve on.
    pub(super) fn serve_on(&mut self) {
        self.acceptor.resume(&self.poll, self.clock.now);
        let _ = self.channel.tell_master(&ToMaster::ServingOn);
        self.show(SlotState::Retiring);
        self.life.phase = Phase::Retiring;
    }

    /// Decides at the end of a turn; the exit code when this was the last one.
    pub(super) fn next_step(&mut self) -> Option<i32> {
        match self.life.phase {
            Phase::Serving => {
                let at_limit = self.life.limit.is_some_and(|limit| self.service.requests >= limit);
                if (at_limit || self.service.panicked)
                    && self.channel.tell_master(&ToMaster::Retiring).is_ok()
                {
                    self.show(SlotState::Retiring);
                    self.life.phase = Phase::Retiring;
                    if !self.quiet && at_limit {
                        let limit = self.life.limit.unwrap_or(0);
                        log::info!("Maximum request limit of {limit} exceeded. Terminating process.");
                    }
                }
                None
            }
            Phase::Retiring => None,
            Phase::HandingOver => {
                self.continue_handover();
                let handed_over = self.has_nothing_left() && self.outgoing.is_some();
                handed_over.then(|| self.leave())
            }
            Phase::Draining { idle_until, until } => self.drain_step(idle_until, until),
            Phase::Over => Some(self.leave()),
        }
    }

    fn drain_step(&mut self, idle_until: Instant, until: Instant) -> Option<i32> {
        if self.clock.now >= idle_until {
            let idle: Vec<usize> =
                self.conns.iter().filter(|(_, conn)| conn.is_idle()).map(|(index, _)| index).collect();
            idle.into_iter().for_each(|index| self.close(index));
            self.life.phase = Phase::Draining { idle_until: until, until };
        }
        self.continue_handover();
        (self.has_nothing_left() || self.clock.now >= until).then(|| self.leave())
    }

    /// No connection here, on its way here, or on its way elsewhere.
    fn has_nothing_left(&self) -> bool {
        let sent = self.outgoing.as_ref().is_none_or(super::Outgoing::is_done);
        sent && self.conns.is_empty() && self.inheritances.is_empty()
    }

    fn leave(&mut self) -> i32 {
        if !self.quiet {
            log::info!("Worker exiting (pid: {})", std::process::id());
        }
        self.service.end_turn(&self.clock, 0);
        self.slot.set_connections(0);
        0
    }
}
