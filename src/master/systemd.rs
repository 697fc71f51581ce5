//! What the service manager is told: ready, reloading, stopping, alive, and a line for people.

use std::time::{Duration, Instant};

use super::{Master, Phase};
use crate::os::notify::Notifier;
use crate::os::process::monotonic;

/// How often the line for people is brought up to date.
const STATUS_PERIOD: Duration = Duration::from_secs(5);

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub(super) struct Systemd {
    notifier: Option<Notifier>,
    /// How often it wants to hear that the master is alive.
    watchdog: Option<Duration>,
    next_ping: Option<Instant>,
    next_status: Option<Instant>,
    status: String,
    said: Said,
}

/// The last change of state it was told.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Said {
    #[default]
    Nothing,
    Ready,
    Reloading,
    Stopping,
}

impl Systemd {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub(super) fn find(env: impl Fn(&str) -> Option<String>) -> Self {
        let Some(name) = env("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::default() };
        let notifier = Notifier::connect(&name)
            .map_err(|error| log::warn!("cannot notify the service manager at {name}: {error}"))
            .ok();
        let ours = env("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let period =
            env("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|&micros| ours && micros > 0);
        Self { notifier, watchdog: period.map(|micros| Duration::from_micros(micros) / 2), ..Self::default() }
    }

    /// True when the message has gone; otherwise it is sent again in the next turn.
    fn tell(&self, lines: &str) -> bool {
        let Some(notifier) = &self.notifier else { return false };
        match notifier.tell(lines) {
            Ok(()) => true,
            Err(error) => {
                log::debug!("cannot notify the service manager: {error}");
                false
            }
        }
    }

    /// When it has to hear that the master is alive.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.notifier.as_ref().and(self.next_ping)
    }
}

impl Master {
    /// Tells what has changed since the last turn.
    pub(super) fn notify_systemd(&mut self) {
        if self.systemd.notifier.is_none() {
            return;
        }
        match (self.phase, self.systemd.said) {
            (Phase::Running, Said::Nothing) if self.ever_ready => self.say_ready(),
            (Phase::Running, Said::Reloading) if !self.is_reloading() => self.say_ready(),
            (Phase::Draining { .. } | Phase::Quitting { .. }, said)
                if said != Said::Stopping
                    && self.systemd.tell("STOPPING=1\nSTATUS=Waiting for workers to finish") =>
            {
                self.systemd.said = Said::Stopping;
            }
            _ => {}
        }
        if let Some(period) = self.systemd.watchdog {
            let due = self.systemd.next_ping.is_none_or(|at| at <= self.now);
            if due && self.systemd.tell("WATCHDOG=1") {
                self.systemd.next_ping = Some(self.now + period);
            }
        }
        if self.systemd.said == Said::Ready && self.systemd.next_status.is_none_or(|at| at <= self.now) {
            self.systemd.next_status = Some(self.now + STATUS_PERIOD);
            let status = self.status();
            if status != self.systemd.status && self.systemd.tell(&format!("STATUS={status}")) {
                self.systemd.status = status;
            }
        }
    }

    fn say_ready(&mut self) {
        let status = self.status();
        if self.systemd.tell(&format!("READY=1\nMAINPID={}\nSTATUS={status}", std::process::id())) {
            self.systemd.said = Said::Ready;
            self.systemd.status = status;
        }
    }

    /// The main process is another one from now on.
    pub(super) fn say_successor(&mut self) {
        if let super::Kin::Child(pid) = self.kin {
            if self.systemd.tell(&format!("MAINPID={pid}\nREADY=1")) {
                self.systemd.said = Said::Stopping;
            }
        }
    }

    /// This process is the main one from now on.
    pub(super) fn say_main_again(&mut self) {
        if self.systemd.notifier.is_some() {
            self.say_ready();
        }
    }

    /// A reload begins. Whether it is accepted or not, it ends with another READY.
    pub(super) fn say_reloading(&mut self) {
        if self.systemd.said == Said::Ready {
            self.systemd.said = Said::Reloading;
            let micros = monotonic().as_micros();
            self.systemd.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=Reloading"));
        }
    }

    /// One line about the whole tree.
    fn status(&self) -> String {
        let (serving, connections) = self.board.load();
        format!("{serving} of {} workers serving, {connections} connections", self.target)
    }
}
