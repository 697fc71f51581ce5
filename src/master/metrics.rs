//! The metrics directory, the process that serves it, and what the master counts itself.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use nix::sys::signal::kill;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use socket2::Socket;

use super::reap::Backoff;
use super::{Master, Phase, StartError};
use crate::config::settings::MetricsSettings;
use crate::config::Bind;
use crate::exit;
use crate::ipc::channel::Channel;
use crate::ipc::scoreboard::SlotState;
use crate::metrics::directory::Directory;
use crate::metrics::handles::{Files, Number};
use crate::metrics::meters::Categories;
use crate::metrics::names;
use crate::os::fork::{exit_now, fork_blocked, Side};
use crate::os::mapfile::FileLock;
use crate::os::process::Identity;
use crate::os::signals::{Pipe, Signal};
use crate::os::sockets;
use crate::scrape;

/// Connections the kernel queues for the metrics port.
const BACKLOG: i32 = 128;
/// States of workers that are shown.
const STATES: [SlotState; 4] =
    [SlotState::Booting, SlotState::Serving, SlotState::Retiring, SlotState::Draining];

/// See the module.
pub(super) struct Metrics {
    pub(super) directory: Directory,
    listener: Socket,
    address: SocketAddr,
    scraper: Option<Scraper>,
    backoff: Backoff,
    files: Files,
    live: Files,
    /// In the order of [`STATES`].
    states: Vec<Number>,
    exits: HashMap<&'static str, Number>,
    _owner: FileLock,
}

/// The process that serves the directory.
struct Scraper {
    pid: Pid,
    /// Hangs up when the master dies.
    _channel: Channel,
}

impl Metrics {
    /// Opens directory and port.
    pub(super) fn open(settings: &MetricsSettings, identity: &Identity) -> Result<Self, StartError> {
        let failed = |problem: String| StartError::new(exit::CONFIG, format!("metrics: {problem}"));
        let (listener, address) = bind(settings)?;
        let directory = Directory::open(|name| std::env::var(name).ok()).map_err(|error| {
            failed(format!(
                "cannot use the directory {error}; name a writable one in PROMETHEUS_MULTIPROC_DIR"
            ))
        })?;
        let made = || -> io::Result<_> {
            // The process that reads the files runs as the same user as the workers.
            if directory.is_new() && (identity.uid.is_some() || identity.gid.is_some()) {
                nix::unistd::chown(directory.path(), identity.uid, identity.gid)?;
            }
            let (number, owner) = directory.claim('m', 0)?;
            let mut files = Files::given_to(directory.path(), format!("m{number}"), identity);
            // A process that had our number is not us.
            directory.bury(&std::process::id().to_string());
            let mut live = Files::given_to(directory.path(), std::process::id().to_string(), identity);
            let build = live.get(&names::BUILD, &[env!("CARGO_PKG_VERSION")])?;
            live.set(build, 1.0);
            let mut states = Vec::new();
            for state in STATES {
                states.push(live.get(&names::WORKERS, &[state.name()])?);
            }
            let mut exits = HashMap::new();
            exits.insert("recycled", files.get(&names::WORKER_EXITS, &["recycled"])?);
            Ok((owner, files, live, states, exits))
        };
        let (owner, files, live, states, exits) = made().map_err(|error| {
            directory.remove();
            failed(format!("cannot write files: {error}"))
        })?;
        Ok(Self {
            directory,
            listener,
            address,
            scraper: None,
            backoff: Backoff::default(),
            files,
            live,
            states,
            exits,
            _owner: owner,
        })
    }

    /// The slot of the next worker; `None` (with a line in the log) when it has to do without metrics.
    pub(super) fn claim(&self, taken: &[usize]) -> Option<(usize, FileLock)> {
        let free = (0..=taken.len()).find(|slot| !taken.contains(slot))?;
        match self.directory.claim('w', free) {
            Ok(slot) => Some(slot),
            Err(error) => {
                log::warn!("a worker starts without metrics: {}: {error}", self.directory.path().display());
                None
            }
        }
    }

    /// Counts the end of a worker.
    pub(super) fn count_exit(&mut self, reason: &'static str) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.exits.entry(reason) {
            match self.files.get(&names::WORKER_EXITS, &[reason]) {
                Ok(number) => entry.insert(number),
                Err(_) => return,
            };
        }
        self.files.add(self.exits[reason], 1.0);
    }

    /// Shows how many workers are in which state.
    pub(super) fn show_states(&self, states: impl Iterator<Item = SlotState>) {
        let mut counts = [0_u32; STATES.len()];
        for state in states {
            if let Some(index) = STATES.iter().position(|known| *known == state) {
                counts[index] += 1;
            }
        }
        for (number, count) in self.states.iter().zip(counts) {
            self.live.set(*number, f64::from(count));
        }
    }

    /// Counts the run of one view.
    pub(super) fn materialized(
        &mut self,
        categories: &Categories,
        view: &str,
        success: bool,
        seconds: f64,
        reading: f64,
        entities: u64,
    ) {
        let counted =
            super::jobs::count_run(&mut self.files, categories, view, success, (seconds, reading), entities);
        if let Err(error) = counted {
            log::warn!("a materialization is not counted: {error}");
        }
    }

    /// Counts a batch of offline pushes.
    pub(super) fn flushed(&mut self, rows: u64, rejected: u64) {
        for (name, by) in [(&names::FLUSHED_ROWS, rows), (&names::REJECTED_PUSHES, rejected)] {
            if let Ok(number) = self.files.get(name, &[]) {
                self.files.add(number, by as f64);
            }
        }
    }

    /// Shows how many offline rows wait.
    pub(super) fn show_backlog(&mut self, rows: usize) {
        if let Ok(number) = self.live.get(&names::SPOOL_ROWS, &[]) {
            self.live.set(number, rows as f64);
        }
    }

    /// Ends the scraper and removes what this process has made, unless another master goes on with it.
    pub(super) fn close(&mut self, succeeded: bool) {
        if let Some(scraper) = self.scraper.take() {
            let _ = kill(scraper.pid, Signal::SIGKILL);
            let _ = waitpid(scraper.pid, None);
        }
        self.directory.bury(&std::process::id().to_string());
        if !succeeded {
            self.directory.remove();
        }
    }

    /// The socket that serves metrics.
    pub(super) fn listener(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.listener)
    }
}

/// Opens the port: on every address of the machine unless one is named, IPv4 alone where there is no IPv6.
fn bind(settings: &MetricsSettings) -> Result<(Socket, SocketAddr), StartError> {
    let port = settings.port;
    let shown = settings.host.as_deref().unwrap_or("*");
    let failed = |problem: String| {
        StartError::new(exit::CONFIG, format!("metrics: Can't listen on {shown}:{port}: {problem}"))
    };
    let opened = match &settings.host {
        Some(host) if host.starts_with("fd://") => {
            let number = host.trim_start_matches("fd://").parse();
            let number = number.map_err(|_| failed("not a descriptor number".to_owned()))?;
            sockets::adopt(number, BACKLOG)
        }
        Some(host) => {
            let address = Bind::resolve(host, port).map_err(failed)?;
            sockets::listen_tcp(address, BACKLOG, false)
        }
        None => sockets::listen_tcp(([0_u16; 8], port).into(), BACKLOG, false).or_else(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                return Err(error);
            }
            sockets::listen_tcp(([0, 0, 0, 0], port).into(), BACKLOG, false)
        }),
    };
    let socket = opened.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => failed(format!(
            "address already in use; choose another --metrics-port or stop the other server ({error})"
        )),
        _ => failed(error.to_string()),
    })?;
    let address = socket.local_addr().ok().and_then(|address| address.as_socket());
    address.map(|address| (socket, address)).ok_or_else(|| failed("no address".to_owned()))
}

impl Master {
    /// Starts the process that serves metrics when there is none.
    pub(super) fn keep_scraper(&mut self) {
        let starts = |metrics: &Metrics| metrics.scraper.is_none() && metrics.backoff.allows(self.now);
        if !matches!(self.phase, Phase::Running) || !self.metrics.as_ref().is_some_and(starts) {
            return;
        }
        let forked = Channel::pair().and_then(|ends| Ok((ends, fork_blocked()?)));
        match forked {
            Ok(((ours, theirs), Side::Child)) => {
                drop(ours);
                self.become_scraper(theirs)
            }
            Ok(((ours, _), Side::Parent(pid))) => {
                let Some(metrics) = &mut self.metrics else { return };
                metrics.scraper = Some(Scraper { pid, _channel: ours });
                log::info!("Prometheus metrics server listening at: http://{} ({pid})", metrics.address);
            }
            Err(error) => {
                log::error!("cannot fork the metrics server: {error}");
                if let Some(metrics) = &mut self.metrics {
                    metrics.backoff.failed(self.now);
                }
            }
        }
    }

    fn become_scraper(&mut self, channel: Channel) -> ! {
        self.leave_master("feast-metrics");
        crate::os::title::show("metrics", "serving");
        self.listeners.clear();
        let Some(metrics) = self.metrics.take() else { exit_now(exit::CRASHED) };
        let started = || -> io::Result<(Socket, Pipe)> {
            let listener = metrics.listener.try_clone()?;
            Ok((listener, self.begin_child()?))
        };
        let code = match started() {
            Ok((listener, signals)) => {
                let board = &self.board;
                let boot =
                    scrape::Boot { listener, directory: metrics.directory.path(), board, channel, signals };
                let run = std::panic::AssertUnwindSafe(|| scrape::run(boot));
                std::panic::catch_unwind(run).unwrap_or(exit::CRASHED)
            }
            Err(error) => {
                log::error!("Exception in metrics process: {error}");
                exit::BOOT_FAILED
            }
        };
        exit_now(code)
    }

    /// True when the dead process `pid` was the metrics server; another one is started.
    pub(super) fn scraper_died(&mut self, pid: Pid, now: Instant) -> bool {
        let Some(metrics) = &mut self.metrics else { return false };
        let was = metrics.scraper.as_ref().is_some_and(|scraper| scraper.pid == pid);
        if was {
            metrics.scraper = None;
            metrics.backoff.failed(now);
            log::warn!("the metrics server (pid:{pid}) ended");
        }
        was
    }
}
