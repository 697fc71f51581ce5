//! What the control socket is answered: from the scoreboard and the records, never from workers.

use super::upgrade::Kin;
use super::workers::WorkerRecord;
use super::{Master, Phase};
use crate::ipc::control::{self, Request, Status, WorkerStatus};
use crate::ipc::scoreboard::TreePhase;
use crate::os::process;
use crate::os::signals::Signal;

impl Master {
    /// Answers whoever has asked something.
    pub(super) fn serve_control(&mut self) {
        let Some(asked) = self.control.as_mut().map(|control| control.take(self.now)) else { return };
        for (stream, request) in asked {
            let Some(request) = request else {
                control::answer(stream, &serde_json::json!({ "error": "unknown command" }));
                continue;
            };
            let signal = match request {
                Request::Status => {
                    control::answer(stream, &self.describe());
                    continue;
                }
                // What is wrong with the new settings is known at once.
                Request::Reload if self.phase == Phase::Running => {
                    match self.reload() {
                        Ok(()) => control::answer(stream, &serde_json::json!({ "accepted": request.word() })),
                        Err(error) => {
                            control::answer(stream, &serde_json::json!({ "error": error.to_string() }));
                        }
                    }
                    continue;
                }
                Request::Reload => Signal::SIGHUP,
                Request::Ttin => Signal::SIGTTIN,
                Request::Ttou => Signal::SIGTTOU,
                Request::Reopen => Signal::SIGUSR1,
                Request::Upgrade => Signal::SIGUSR2,
                Request::Stop => Signal::SIGTERM,
            };
            control::answer(stream, &serde_json::json!({ "accepted": request.word() }));
            self.handle(signal);
        }
    }

    /// What this master does, in a word.
    pub(super) fn tree_phase(&self) -> TreePhase {
        match (self.phase, &self.kin) {
            (Phase::Draining { .. }, _) => TreePhase::Draining,
            (Phase::Quitting { .. }, _) => TreePhase::Quitting,
            (Phase::Running, Kin::Child(_)) => TreePhase::Upgrading,
            (Phase::Running, Kin::Parent(_)) => TreePhase::TakingOver,
            (Phase::Running, Kin::Alone) if self.is_reloading() => TreePhase::Reloading,
            (Phase::Running, Kin::Alone) => TreePhase::Running,
        }
    }

    fn describe(&self) -> Status {
        let mut workers: Vec<&WorkerRecord> = self.workers.iter().collect();
        workers.sort_by_key(|worker| worker.age);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id().cast_signed(),
            phase: self.tree_phase().name().to_owned(),
            uptime_seconds: self.now.duration_since(self.started).as_secs(),
            wanted: self.target,
            listeners: self.addresses(),
            workers: workers.into_iter().map(|worker| self.describe_worker(worker)).collect(),
            jobs: self.jobs.shown(self.now),
            offline_pushes_waiting: self.jobs.backlog().0,
            offline_rows_waiting: self.jobs.backlog().1,
            metrics_directory: self
                .metrics
                .as_ref()
                .map(|metrics| metrics.directory.path().display().to_string()),
        }
    }

    fn describe_worker(&self, worker: &WorkerRecord) -> WorkerStatus {
        let slot = self.board.slot(worker.slot);
        WorkerStatus {
            pid: worker.pid.as_raw(),
            slot: worker.slot,
            state: slot.state().name().to_owned(),
            age_seconds: slot.age().as_secs(),
            requests: slot.requests(),
            connections: slot.connections(),
            silent_seconds: slot.silence().as_secs(),
            memory_kib: process::resident_kib(worker.pid.as_raw()),
        }
    }
}
