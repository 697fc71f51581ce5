//! A new binary takes over from a running one, as in gunicorn: USR2 starts it with the same sockets, both serve, then
//! the old master is told to stop (or the new one, which is the way back).
//!
//! The new master is told of its sockets the way a service manager would tell it. It is its own master from the
//! start; until the old one has gone, its pid file and control socket have `.2` at their end.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::unistd::{getppid, Pid};

use super::{Master, Phase};
use crate::exit;
use crate::os::exec;
use crate::os::fork::{exit_now, fork_blocked, unblock_signals, Side};
use crate::os::process;

/// Says whose place a new master is going to take.
pub(super) const PARENT: &str = "FEAST_PREFORK_UPGRADES";
/// Says that the directory of the metrics goes with the last master.
const OWN_METRICS: &str = "FEAST_PREFORK_OWNS_METRICS";
/// Name of a socket whose file goes with the last master.
const OWN: &str = "own";
/// What a name gets while another master has it.
const SECOND: &str = ".2";

/// The other master, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kin {
    /// There is none.
    Alone,
    /// It was started by this one.
    Child(Pid),
    /// It has started this one.
    Parent(Pid),
}

impl Kin {
    /// From the environment; a parent that is gone is none.
    pub(super) fn find(env: impl Fn(&str) -> Option<String>) -> Self {
        let parent = env(PARENT).and_then(|text| text.parse().ok()).map(Pid::from_raw);
        parent.filter(|parent| *parent == getppid()).map_or(Self::Alone, Self::Parent)
    }

    /// The name that this master uses for now instead of `path`.
    pub(super) fn name(self, path: &Path) -> PathBuf {
        match self {
            Self::Parent(_) => second(path),
            _ => path.to_owned(),
        }
    }
}

fn second(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SECOND);
    PathBuf::from(name)
}

/// How to start this program again: taken when it starts, because a replaced file has another name afterwards.
#[derive(Debug, Clone)]
pub(super) struct Program {
    path: Option<PathBuf>,
    args: Vec<OsString>,
}

impl Program {
    pub(super) fn of_process() -> Self {
        Self { path: std::env::current_exe().ok(), args: std::env::args_os().collect() }
    }
}

impl Master {
    /// Starts the binary that is there now.
    pub(super) fn upgrade(&mut self) {
        match self.kin {
            Kin::Child(_) => return log::warn!("USR2 signal ignored. Child exists."),
            Kin::Parent(_) => return log::warn!("USR2 signal ignored. Parent exists."),
            Kin::Alone => {}
        }
        match fork_blocked() {
            Ok(Side::Parent(pid)) => {
                log::info!("Upgrading: the new master is {pid}");
                self.kin = Kin::Child(pid);
            }
            Ok(Side::Child) => self.become_successor(),
            Err(error) => log::error!("cannot fork for the upgrade: {error}"),
        }
    }

    fn become_successor(&mut self) -> ! {
        let parent = std::os::unix::process::parent_id();
        // With a socket per worker everybody opens their own.
        let shared = !self.prepared.settings.reuse_port;
        let mut sockets = Vec::new();
        let mut names = Vec::new();
        if shared {
            sockets.extend(self.listeners.iter().map(AsFd::as_fd));
            names.extend(
                self.listeners.iter().map(|listener| if listener.owns_file() { OWN } else { "http" }),
            );
        }
        if let Some(metrics) = &self.metrics {
            sockets.push(metrics.listener());
            names.push("metrics");
        }
        let ours = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", PARENT, OWN_METRICS];
        let mut env: Vec<(OsString, OsString)> =
            std::env::vars_os().filter(|(name, _)| !ours.iter().any(|known| name == known)).collect();
        let mut set = |name: &str, value: String| env.push((name.into(), value.into()));
        set(PARENT, parent.to_string());
        if !sockets.is_empty() {
            set("LISTEN_PID", std::process::id().to_string());
            set("LISTEN_FDS", sockets.len().to_string());
            set("LISTEN_FDNAMES", names.join(":"));
        }
        if let Some(metrics) = &self.metrics {
            let directory = metrics.directory.path().as_os_str().to_owned();
            env.retain(|(name, _)| name != "PROMETHEUS_MULTIPROC_DIR");
            env.push(("PROMETHEUS_MULTIPROC_DIR".into(), directory));
            if metrics.directory.is_own() {
                env.push((OWN_METRICS.into(), "1".into()));
            }
        }
        let Program { path, args } = &self.program;
        let error = match path {
            Some(path) => {
                let _ = unblock_signals();
                exec::replace(path, args, &env, &sockets)
            }
            None => std::io::Error::other("the path of the program is not known"),
        };
        log::error!("the new binary cannot be started: {error}");
        exit_now(exit::CONFIG)
    }

    /// True when the dead process `pid` was the new master: this one serves on.
    pub(super) fn successor_master_died(&mut self, pid: Pid) -> bool {
        let was = self.kin == Kin::Child(pid);
        if was {
            self.kin = Kin::Alone;
            log::error!("the new master ({pid}) has ended; this one goes on");
            if self.target == 0 && self.phase == Phase::Running {
                log::info!("its workers had taken the place of ours: ours come back");
                self.target = self.prepared.settings.workers;
            }
        }
        was
    }

    /// Takes the names of the old master once it has gone.
    pub(super) fn promote(&mut self) {
        let Kin::Parent(parent) = self.kin else { return };
        if getppid() == parent {
            return;
        }
        self.kin = Kin::Alone;
        log::info!("the old master ({parent}) has gone; this one takes its place");
        if let Some(file) = &mut self.pid_file {
            if let Some(path) = &self.prepared.settings.pid_file {
                file.rename(path);
            }
        }
        if let (Some(control), Some(path)) = (&mut self.control, &self.prepared.settings.control_socket) {
            if let Err(error) = control.rename(path) {
                log::error!("the control socket stays at {}: {error}", second(path).display());
            }
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        for (listener, name) in self.listeners.iter_mut().zip(names.split(':')) {
            if name == OWN {
                listener.own_file();
            }
        }
        if let Some(metrics) = self.metrics.as_mut().filter(|_| std::env::var_os(OWN_METRICS).is_some()) {
            metrics.directory.adopt();
        }
        self.say_main_again();
    }

    /// True while a new master serves on the same sockets: what it needs stays.
    pub(super) fn is_succeeded(&self) -> bool {
        matches!(self.kin, Kin::Child(pid) if process::exists(pid.as_raw())) && self.phase != Phase::Running
    }
}
