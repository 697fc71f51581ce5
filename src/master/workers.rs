//! Making workers, and keeping as many of them as are wanted.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Instant;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{Master, Phase, Prepared};
use crate::exit;
use crate::ipc::channel::{Channel, ToWorker};
use crate::ipc::scoreboard::SlotState;
use crate::metrics::meters::Meters;
use crate::net::Listener;
use crate::os::fdpass;
use crate::os::fork::{exit_now, fork_blocked, unblock_signals, Side};
use crate::os::mapfile::FileLock;
use crate::os::signals::{Pipe, Signal};
use crate::os::title;
use crate::worker::{self, Boot};

/// What a worker is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Serving.
    Serving,
    /// Serving until a successor is ready.
    AwaitingSuccessor,
    /// Its connections go to another worker.
    HandingOver {
        /// Who takes them.
        to: Pid,
        /// Since when.
        since: Instant,
    },
    /// Told to stop.
    Stopping {
        /// Killed then.
        until: Instant,
    },
}

/// A worker as the master knows it.
#[derive(Debug)]
pub(super) struct WorkerRecord {
    pub(super) pid: Pid,
    pub(super) slot: usize,
    /// The reload it was born after.
    pub(super) generation: u64,
    /// Spawn order: the oldest go first.
    pub(super) age: u64,
    /// `None` once it has hung up.
    pub(super) channel: Option<Channel>,
    pub(super) ready_since: Option<Instant>,
    pub(super) duty: Duty,
    /// The worker whose place it takes.
    pub(super) predecessor: Option<Pid>,
    /// When it was told to abort because it was silent.
    pub(super) aborted: Option<Instant>,
    /// This master has killed it.
    pub(super) killed: bool,
    /// Where it counts, if it does.
    pub(super) meter_slot: Option<usize>,
    /// Why it leaves, as metrics name it, should it leave in peace.
    pub(super) leaves_because: &'static str,
}

impl WorkerRecord {
    /// Sends a signal; a worker that is gone already does not mind.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = kill(self.pid, signal);
    }

    /// Ends it now.
    pub(super) fn kill(&mut self) {
        if !std::mem::replace(&mut self.killed, true) {
            self.signal(Signal::SIGKILL);
        }
    }

    fn serves(&self) -> bool {
        matches!(self.duty, Duty::Serving | Duty::AwaitingSuccessor)
    }
}

impl Master {
    /// Forks and retires workers until there are as many as wanted.
    pub(super) fn converge(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        self.notice_leavers();
        self.replace_waiting();
        let mut missing = self.target.saturating_sub(self.serving());
        while missing > 0 && self.backoff.allows(self.now) && self.spawn(None) {
            missing -= 1;
        }
        self.retire_surplus();
    }

    /// A worker that somebody else has told to stop serves no more.
    fn notice_leavers(&mut self) {
        let until = self.now + self.prepared.settings.graceful_timeout;
        for worker in &mut self.workers {
            let drains = self.board.slot(worker.slot).state() == SlotState::Draining;
            if drains && worker.duty == Duty::Serving && worker.ready_since.is_some() {
                worker.duty = Duty::Stopping { until };
            }
        }
    }

    /// Workers that serve or are about to, each place counted once.
    fn serving(&self) -> usize {
        let awaited =
            |pid: Pid| self.workers.iter().any(|w| w.pid == pid && w.duty == Duty::AwaitingSuccessor);
        self.workers.iter().filter(|w| w.serves() && !w.predecessor.is_some_and(awaited)).count()
    }

    /// Forks successors for workers that wait for one, as long as not too many are on their way out.
    fn replace_waiting(&mut self) {
        let waiting: Vec<Pid> = self
            .workers
            .iter()
            .filter(|w| w.duty == Duty::AwaitingSuccessor)
            .filter(|w| !self.workers.iter().any(|other| other.predecessor == Some(w.pid)))
            .map(|w| w.pid)
            .collect();
        let mut surplus = self.serving().saturating_sub(self.target);
        for pid in waiting {
            // Those on their way out and those on their way in: at most as many as workers.
            let moving = self.workers.iter().filter(|w| !w.serves() || w.predecessor.is_some()).count();
            if moving >= self.target.max(1) || !self.backoff.allows(self.now) {
                return;
            }
            // After a reload to fewer workers not everybody is replaced.
            if surplus > 0 {
                surplus -= 1;
                continue;
            }
            self.spawn(Some(pid));
        }
    }

    /// With more workers than wanted, the oldest give their connections to the least loaded of the others.
    fn retire_surplus(&mut self) {
        let mut surplus = self.serving().saturating_sub(self.target);
        while surplus > 0 {
            surplus -= 1;
            let has_successor = |pid| self.workers.iter().any(|w| w.predecessor == Some(pid));
            let oldest = self
                .workers
                .iter()
                .filter(|w| w.serves() && w.ready_since.is_some() && !has_successor(w.pid))
                .min_by_key(|w| w.age)
                .map(|w| w.pid);
            let Some(from) = oldest else { return };
            let heir = self
                .workers
                .iter()
                .filter(|w| w.pid != from && w.duty == Duty::Serving && w.ready_since.is_some())
                .min_by_key(|w| self.board.slot(w.slot).connections())
                .map(|w| w.pid);
            let Some(to) = heir else { return };
            if let Some(worker) = self.workers.iter_mut().find(|w| w.pid == from) {
                worker.leaves_because = "scaled_down";
            }
            self.hand_over(from, to);
        }
    }

    /// Workers of an earlier configuration are left.
    pub(super) fn is_reloading(&self) -> bool {
        self.workers.iter().any(|worker| worker.generation < self.generation)
    }

    /// Connects two workers so that one can send its connections to the other.
    fn hand_over(&mut self, from: Pid, to: Pid) {
        let connected = || -> std::io::Result<()> {
            let (outgoing, incoming) = fdpass::packet_pair()?;
            let channel = |pid| self.workers.iter().find(|w| w.pid == pid).and_then(|w| w.channel.as_ref());
            let (Some(sender), Some(receiver)) = (channel(from), channel(to)) else {
                return Err(std::io::ErrorKind::NotConnected.into());
            };
            receiver.tell_worker(&ToWorker::Adopt(incoming))?;
            sender.tell_worker(&ToWorker::HandTo(outgoing))
        };
        if let Err(error) = connected() {
            log::debug!("worker {from} cannot hand over to {to}: {error}");
            return;
        }
        let since = self.now;
        if let Some(worker) = self.workers.iter_mut().find(|w| w.pid == from) {
            worker.duty = Duty::HandingOver { to, since };
        }
    }

    /// A worker accepts connections now.
    pub(super) fn worker_ready(&mut self, index: usize) {
        self.ever_ready = true;
        let worker = &mut self.workers[index];
        worker.ready_since = Some(self.now);
        let pid = worker.pid;
        if let Some(predecessor) = worker.predecessor.take() {
            // A predecessor that was told to stop meanwhile keeps its deadline.
            let serves = self.workers.iter().any(|w| w.pid == predecessor && w.serves());
            if serves && self.phase == Phase::Running {
                self.hand_over(predecessor, pid);
            }
        }
    }

    /// A worker could not hand over: the one that was to take its connections is gone.
    pub(super) fn worker_serves_on(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if matches!(worker.duty, Duty::HandingOver { .. }) {
            worker.duty = Duty::AwaitingSuccessor;
        }
    }

    /// A worker has reached its limit.
    pub(super) fn worker_retires(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.duty == Duty::Serving {
            worker.duty = Duty::AwaitingSuccessor;
            worker.leaves_because = "recycled";
        }
    }

    /// Forks one worker; false when that is not possible now.
    fn spawn(&mut self, predecessor: Option<Pid>) -> bool {
        let Some(slot) = self.board.claim() else {
            log::warn!("no free slot for another worker");
            return false;
        };
        let settings = &self.prepared.settings;
        let seed = fastrand::u64(..);
        let jitter = fastrand::u64(0..=settings.max_requests_jitter);
        let limit = (settings.max_requests > 0).then(|| settings.max_requests.saturating_add(jitter));
        let recycled = predecessor.is_some() && !self.is_reloading();
        let quiet = recycled && !self.recycles.speak(self.now);
        let taken: Vec<usize> = self.workers.iter().filter_map(|worker| worker.meter_slot).collect();
        let meters = self.metrics.as_ref().and_then(|metrics| metrics.claim(&taken));
        let forked = Channel::pair().and_then(|ends| Ok((ends, fork_blocked()?)));
        let ((ours, theirs), side) = match forked {
            Ok(forked) => forked,
            Err(error) => {
                log::error!("cannot fork a worker: {error}");
                self.board.slot(slot).set_state(SlotState::Free);
                self.backoff.failed(self.now);
                return false;
            }
        };
        match side {
            Side::Child => {
                drop(ours);
                self.become_worker(slot, theirs, seed, limit, quiet, meters)
            }
            Side::Parent(pid) => {
                self.board.slot(slot).set_pid(pid.as_raw());
                self.workers.push(WorkerRecord {
                    pid,
                    slot,
                    age: self.next_age,
                    generation: self.generation,
                    channel: Some(ours),
                    ready_since: None,
                    duty: Duty::Serving,
                    predecessor,
                    aborted: None,
                    killed: false,
                    meter_slot: meters.map(|(slot, _)| slot),
                    leaves_because: "stopped",
                });
                self.next_age += 1;
                true
            }
        }
    }

    /// The child's way from the fork to its end. Signals are blocked until its own pipe stands.
    fn become_worker(
        &mut self,
        slot: usize,
        channel: Channel,
        seed: u64,
        limit: Option<u64>,
        quiet: bool,
        meters: Option<(usize, FileLock)>,
    ) -> ! {
        self.leave_master("feast-worker");
        title::show("worker", SlotState::Booting.name());
        let meters = self.open_meters(meters);
        fastrand::seed(seed);
        let prepared = self.listeners_of_worker().and_then(|listeners| Ok((listeners, self.begin_child()?)));
        let (listeners, signals) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                log::error!("Exception in worker process: {error}");
                exit_now(exit::BOOT_FAILED);
            }
        };
        let snapshot = self.snapshot();
        let boot = Boot {
            settings: &self.prepared.settings,
            store: &self.prepared.store,
            registry: &self.prepared.registry,
            snapshot,
            stamp: self.prepared.stamp,
            listeners,
            board: &self.board,
            slot,
            channel,
            signals,
            limit,
            meters,
            site: &self.site,
            store_tls: self.prepared.store_tls.clone(),
            tls: self.client_tls(),
            statsd: self.statsd.take(),
            scratch: std::mem::take(&mut self.scratch),
            quiet,
        };
        let code = catch_unwind(AssertUnwindSafe(|| worker::run(boot))).unwrap_or(exit::CRASHED);
        exit_now(code)
    }

    /// Gives up what a child must not hold: a sibling's channel held open here would hide the master's death from
    /// that sibling.
    pub(super) fn leave_master(&mut self, name: &str) {
        self.workers.clear();
        self.jobs.leave();
        self.control = None;
        crate::os::process::set_name(name);
    }

    /// Makes a child its own process: it becomes the user it serves as, and has signals of its own from here on.
    pub(super) fn begin_child(&self) -> std::io::Result<Pipe> {
        self.prepared.settings.identity.assume()?;
        let signals = Pipe::replace()?;
        unblock_signals()?;
        Ok(signals)
    }

    /// Opens a worker's metric files, before it gives up the master's rights. One that cannot serves without.
    fn open_meters(&mut self, slot: Option<(usize, FileLock)>) -> Option<Meters> {
        let metrics = self.metrics.take()?;
        let Prepared { settings, store, .. } = &self.prepared;
        let dir = metrics.directory.path();
        let label = settings.metrics.live_label;
        Meters::open(dir, slot?, label, store.metrics.clone(), &settings.identity)
            .map_err(|error| log::warn!("a worker serves without metrics: {}: {error}", dir.display()))
            .ok()
    }

    /// The sockets a worker accepts on. With `reuse_port` it opens its own while it still has the rights of the
    /// master: the kernel lets only one user share a port.
    fn listeners_of_worker(&mut self) -> std::io::Result<Vec<Listener>> {
        let shared = std::mem::take(&mut self.listeners);
        if !self.prepared.settings.reuse_port {
            return Ok(shared);
        }
        let backlog = self.prepared.settings.backlog;
        shared.iter().map(|listener| listener.sibling(backlog)).collect()
    }
}
