//! One method per signal, with gunicorn's effects and words.

use std::time::Duration;

use super::{Master, Phase};
use crate::exit;
use crate::os::signals::Signal;

/// Signals the master handles; workers inherit the handlers with a pipe of their own.
pub(super) const HANDLED: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCHLD,
];

/// How long workers may take when they are told to exit at once.
const QUICK: Duration = Duration::from_secs(2);

impl Master {
    pub(super) fn handle(&mut self, signal: Signal) {
        match signal {
            Signal::SIGCHLD => return,
            Signal::SIGWINCH if has_terminal() && !matches!(self.kin, super::Kin::Child(_)) => {
                log::debug!("SIGWINCH ignored. Not daemonized");
                return;
            }
            _ => {}
        }
        log::info!("Handling signal: {}", name(signal));
        match (signal, self.phase) {
            (Signal::SIGTERM, Phase::Running) => {
                let patience = self.prepared.settings.graceful_timeout;
                self.stop(Signal::SIGTERM, patience, exit::OK);
            }
            (Signal::SIGINT | Signal::SIGQUIT, Phase::Running) => {
                self.stop(Signal::SIGQUIT, QUICK, exit::OK);
            }
            (Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT, Phase::Draining { .. }) => {
                log::info!("Quick shutdown requested");
                self.stop(Signal::SIGQUIT, QUICK, exit::OK);
            }
            (Signal::SIGHUP, Phase::Running) => drop(self.reload()),
            (Signal::SIGTTIN, Phase::Running) => {
                self.target = (self.target + 1).min(crate::ipc::scoreboard::MAX_WORKERS);
            }
            (Signal::SIGTTOU, Phase::Running) => self.target -= usize::from(self.target > 1),
            (Signal::SIGUSR1, _) => {
                crate::logging::logger::reopen();
                self.workers.iter().for_each(|worker| worker.signal(Signal::SIGUSR1));
            }
            (Signal::SIGUSR2, Phase::Running) => self.upgrade(),
            (Signal::SIGWINCH, Phase::Running) => self.stop_workers(),
            _ => {}
        }
    }

    /// Ends all workers and keeps the master, until HUP or TTIN brings workers back.
    fn stop_workers(&mut self) {
        log::info!("graceful stop of workers");
        self.target = 0;
        let until = self.now + self.prepared.settings.graceful_timeout;
        for worker in &mut self.workers {
            worker.signal(Signal::SIGTERM);
            worker.duty = super::Duty::Stopping { until };
        }
    }
}

fn name(signal: Signal) -> String {
    signal.as_str().trim_start_matches("SIG").to_ascii_lowercase()
}

/// True when a terminal controls this process; terminals send WINCH whenever they are resized.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}
