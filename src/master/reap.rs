//! Dead workers, silent workers, and how fast new ones may come.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use super::workers::{Duty, WorkerRecord};
use super::{Master, Phase};
use crate::exit;
use crate::ipc::scoreboard::SlotState;
use crate::metrics::meters::LiveLabel;
use crate::os::signals::Signal;

/// A worker that was ready for so long did not die of its start.
const HEALTHY: Duration = Duration::from_secs(5);
/// How long a silent worker has between ABRT and KILL.
const ABORT_GRACE: Duration = Duration::from_secs(1);
/// Failures this far apart have nothing to do with each other.
const FORGET: Duration = Duration::from_secs(10);
/// Longest pause between attempts to start a worker.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Exit(i32),
    Signal(Signal),
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// A normal end.
    Fine,
    /// Replaced, with a pause if this goes on.
    Crashed,
    /// The server cannot run: the exit code.
    Halt(i32),
}

/// Judges an end. `boots` = no worker of this server has ever been ready.
fn verdict(end: End, boots: bool, told_to_stop: bool) -> Verdict {
    match end {
        End::Exit(0) => Verdict::Fine,
        End::Exit(code @ (exit::BOOT_FAILED | exit::LOAD_FAILED)) if boots => Verdict::Halt(code),
        End::Signal(Signal::SIGTERM | Signal::SIGKILL) if told_to_stop => Verdict::Fine,
        End::Exit(_) | End::Signal(_) => Verdict::Crashed,
    }
}

/// The text for an exit code that stops the server.
pub(super) fn reason(code: i32) -> &'static str {
    match code {
        exit::BOOT_FAILED => "Worker failed to boot.",
        exit::LOAD_FAILED => "App failed to load.",
        _ => "See above.",
    }
}

/// Pauses between starts of workers that keep dying: 0, 0.1, 0.2, 0.4 … 5 s.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Notes a failure at `now`.
    pub(super) fn failed(&mut self, now: Instant) {
        if self.until.is_some_and(|until| now > until + FORGET) {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            n => MAX_PAUSE.min(Duration::from_millis(100) * 2_u32.saturating_pow(n.min(10) - 1)),
        };
        self.failures += 1;
        self.until = Some(now + pause);
    }

    /// True when a worker may be started.
    pub(super) fn allows(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// When the pause ends.
    pub(super) fn wait_until(&self) -> Option<Instant> {
        self.until
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

impl Master {
    /// Takes every dead child off the kernel's list.
    pub(super) fn reap(&mut self) {
        loop {
            let (pid, end) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, End::Exit(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, End::Signal(signal)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    log::error!("waitpid: {error}");
                    return;
                }
            };
            // What it said last is still in its channel.
            self.hear_workers();
            // As process 1 of a container, orphans of others end up here, too.
            let Some(index) = self.workers.iter().position(|worker| worker.pid == pid) else {
                let known =
                    self.scraper_died(pid, self.now) || self.job_died(pid) || self.successor_master_died(pid);
                if !known {
                    log::debug!("reaped pid {pid}, which is not a worker");
                }
                continue;
            };
            let worker = self.workers.swap_remove(index);
            self.bury(&worker, end);
        }
    }

    fn bury(&mut self, worker: &WorkerRecord, end: End) {
        let slot = self.board.slot(worker.slot);
        slot.set_connections(0);
        slot.set_state(SlotState::Free);
        report(worker, end);
        self.bury_metrics(worker, end);
        self.successor_died(worker.pid);
        let told = matches!(worker.duty, Duty::Stopping { .. });
        match verdict(end, !self.ever_ready, told) {
            Verdict::Fine => {}
            Verdict::Halt(code) => {
                if self.exit_code == exit::OK {
                    self.stop(Signal::SIGQUIT, Duration::from_secs(2), code);
                }
            }
            Verdict::Crashed => {
                if worker.ready_since.is_some_and(|since| self.now.duration_since(since) >= HEALTHY) {
                    self.backoff.reset();
                } else if self.phase == Phase::Running {
                    self.backoff.failed(self.now);
                }
            }
        }
    }

    /// Forgets the gauges of a dead worker and counts its end.
    fn bury_metrics(&mut self, worker: &WorkerRecord, end: End) {
        let Some(metrics) = &mut self.metrics else { return };
        if let Some(slot) = worker.meter_slot {
            let by_slot = self.prepared.settings.metrics.live_label == LiveLabel::Slot;
            metrics.directory.bury(&worker.pid.to_string());
            metrics.directory.bury_slot(slot, by_slot);
        }
        metrics.count_exit(match end {
            End::Exit(0) => worker.leaves_because,
            End::Exit(_) => "failed",
            End::Signal(_) if worker.aborted.is_some() => "timeout",
            End::Signal(_) => "killed",
        });
    }

    /// Whoever was handing over to the dead worker serves on and needs another successor.
    fn successor_died(&mut self, dead: Pid) {
        for worker in &mut self.workers {
            if matches!(worker.duty, Duty::HandingOver { to, .. } if to == dead) {
                worker.duty = Duty::AwaitingSuccessor;
            }
        }
    }

    /// Ends workers that have been silent for too long: ABRT first, KILL a second later.
    pub(super) fn murder(&mut self) {
        let settings = &self.prepared.settings;
        for worker in &mut self.workers {
            let patience =
                if worker.ready_since.is_some() { settings.timeout } else { settings.boot_timeout };
            let silence = self.board.slot(worker.slot).silence();
            if patience.is_zero() || silence <= patience {
                continue;
            }
            match worker.aborted {
                None => {
                    crate::critical!(
                        "WORKER TIMEOUT (pid:{}), silent for {:.1} s",
                        worker.pid,
                        silence.as_secs_f32()
                    );
                    worker.aborted = Some(self.now);
                    worker.signal(Signal::SIGABRT);
                }
                Some(at) if self.now.duration_since(at) >= ABORT_GRACE => worker.kill(),
                Some(_) => {}
            }
        }
    }
}

fn report(worker: &WorkerRecord, end: End) {
    let pid = worker.pid;
    match end {
        End::Exit(0) => {}
        End::Exit(code) => log::error!("Worker (pid:{pid}) exited with code {code}."),
        End::Signal(Signal::SIGKILL) if worker.killed => log::error!("Worker (pid:{pid}) was sent SIGKILL!"),
        End::Signal(Signal::SIGKILL) => {
            log::error!("Worker (pid:{pid}) was sent SIGKILL! Perhaps out of memory?");
        }
        End::Signal(Signal::SIGBUS) => log::warn!(
            "Worker (pid:{pid}) was sent SIGBUS! A mapped file was truncated: replace the online store by rename, \
             never in place."
        ),
        End::Signal(Signal::SIGTERM) => log::info!("Worker (pid:{pid}) was sent SIGTERM!"),
        End::Signal(signal) => log::warn!("Worker (pid:{pid}) was sent {signal}!"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_generation_can_stop_the_server() {
        assert_eq!(verdict(End::Exit(3), true, false), Verdict::Halt(3));
        assert_eq!(verdict(End::Exit(4), true, false), Verdict::Halt(4));
        assert_eq!(verdict(End::Exit(3), false, false), Verdict::Crashed);
        assert_eq!(verdict(End::Exit(0), true, false), Verdict::Fine);
        assert_eq!(verdict(End::Signal(Signal::SIGTERM), false, true), Verdict::Fine);
        assert_eq!(verdict(End::Signal(Signal::SIGSEGV), true, false), Verdict::Crashed);
    }

    #[test]
    fn pauses_grow_to_five_seconds() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..9)
            .map(|_| {
                backoff.failed(start);
                backoff.wait_until().unwrap().duration_since(start).as_millis()
            })
            .collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
