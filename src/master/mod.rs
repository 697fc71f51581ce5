//! Which processes exist, and in which phase? The arbiter: binds, forks, watches, reaps.
//!
//! One thread, one loop, no sleeps: stopping and reloading are phases with deadlines, so that a second
//! signal is always heard. Boot and reload share one path: load (may fail, nothing has changed), then commit.
//! What must not happen here: threads, TLS, SQL, requests.

mod control;
mod jobs;
mod metrics;
mod pidfile;
mod prepare;
mod reap;
mod recycle_log;
mod signals;
mod systemd;
mod upgrade;
mod workers;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::exit;
use crate::ipc::channel::{Incoming, ToMaster, MAX_MESSAGE};
use crate::ipc::control::Control;
use crate::ipc::scoreboard::{Scoreboard, TreePhase};
use crate::jobs::Site;
use crate::metrics::statsd::{Statsd, StatsdSettings};
use crate::net::{Listener, ListenerName};
use crate::os::signals::{Pipe, Signal};
use crate::os::title;
use crate::tls::server::ClientCerts;
use crate::tls::tickets::Rotation;
use crate::worker;

use jobs::Jobs;
use metrics::Metrics;
use pidfile::PidFile;
pub use prepare::{bind_all, load, MissingRegistry, Prepared, StartError};
use reap::Backoff;
use recycle_log::RecycleLog;
use systemd::Systemd;
use upgrade::{Kin, Program};
use workers::{Duty, WorkerRecord};

/// What the whole tree is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Keeping the number of workers.
    Running,
    /// Workers finish their work.
    Draining {
        /// What is left then is killed.
        until: Instant,
    },
    /// Workers exit at once.
    Quitting {
        /// What is left then is killed.
        until: Instant,
    },
}

/// What a worker gets beyond its own deadline before it is killed.
const KILL_MARGIN: Duration = Duration::from_secs(1);
/// The least time a handover has.
const MIN_HANDOVER: Duration = Duration::from_secs(2);

/// Loads configuration and registry anew, for a reload.
pub type Loader = Box<dyn Fn() -> Result<Prepared, StartError>>;

/// The master process.
pub struct Master {
    prepared: Prepared,
    loader: Loader,
    listeners: Vec<Listener>,
    board: Scoreboard,
    signals: Pipe,
    workers: Vec<WorkerRecord>,
    /// Number of workers to keep.
    target: usize,
    /// Counts reloads; workers of an earlier one are replaced.
    generation: u64,
    next_age: u64,
    phase: Phase,
    exit_code: i32,
    ever_ready: bool,
    backoff: Backoff,
    recycles: RecycleLog,
    metrics: Option<Metrics>,
    site: Site,
    jobs: Jobs,
    /// When the last worker of a stopping server has gone.
    emptied: Option<Instant>,
    inbox: Vec<u8>,
    systemd: Systemd,
    control: Option<Control>,
    started: Instant,
    pid_file: Option<PidFile>,
    kin: Kin,
    program: Program,
    /// For the next worker to read into.
    scratch: Vec<u8>,
    next_registry_check: Option<Instant>,
    statsd: Option<Statsd>,
    /// What its title says.
    shown: Option<TreePhase>,
    /// Keys of TLS sessions, if clients' connections are encrypted.
    tickets: Option<Rotation>,
    now: Instant,
}

/// Keys for sessions of TLS clients. Clients that show certificates show them each time.
fn tickets(prepared: &Prepared, now: Instant) -> Result<Option<Rotation>, StartError> {
    let wanted = prepared.settings.tls.as_ref().is_some_and(|files| files.clients == ClientCerts::None);
    wanted
        .then(|| Rotation::new(now))
        .transpose()
        .map_err(|error| StartError::new(exit::CONFIG, format!("TLS: no keys for sessions: {error}")))
}

/// The way to the statsd server. One that cannot be found costs its figures, not the service.
fn open_statsd(prepared: &Prepared) -> Option<Statsd> {
    let settings = prepared.settings.statsd.as_ref()?;
    Statsd::open(settings)
        .map_err(|error| {
            let StatsdSettings { host, port, .. } = settings;
            log::warn!("--statsd-host {host}:{port}: {error}; no figures go there until the next reload");
        })
        .ok()
}

fn open_control(path: &std::path::Path) -> Result<Control, StartError> {
    Control::open(path).map_err(|error| {
        StartError::new(
            exit::CONFIG,
            format!("--control-socket: cannot listen on {}: {error}", path.display()),
        )
    })
}

impl Master {
    /// Opens the listeners. Everything that can be wrong with the settings shows here, before any fork.
    pub fn new(prepared: Prepared, loader: Loader) -> Result<Self, StartError> {
        log::info!("Starting feast-prefork {}", env!("CARGO_PKG_VERSION"));
        let failed = |error: io::Error| StartError::new(exit::CONFIG, format!("cannot start: {error}"));
        let kin = Kin::find(|name| std::env::var(name).ok());
        let named = |path: &Option<std::path::PathBuf>| path.as_deref().map(|path| kin.name(path));
        let pid_file = named(&prepared.settings.pid_file).map(|path| PidFile::create(&path)).transpose()?;
        let board = Scoreboard::new().map_err(failed)?;
        let signals = Pipe::install(signals::HANDLED).map_err(failed)?;
        let listeners = bind_all(&prepared.settings)?;
        let metrics = &prepared.settings.metrics;
        let metrics =
            metrics.enabled.then(|| Metrics::open(metrics, &prepared.settings.identity)).transpose()?;
        let now = Instant::now();
        let tickets = tickets(&prepared, now)?;
        // Last, because its file would be left behind by a start that fails.
        let control = named(&prepared.settings.control_socket).map(|path| open_control(&path)).transpose()?;
        Ok(Self {
            shown: None,
            statsd: open_statsd(&prepared),
            tickets,
            target: prepared.settings.workers,
            next_registry_check: prepared.next_check(now),
            site: Site::new(&prepared.store, &prepared.registry, &prepared.settings),
            prepared,
            loader,
            listeners,
            board,
            signals,
            workers: Vec::new(),
            generation: 0,
            next_age: 1,
            phase: Phase::Running,
            exit_code: exit::OK,
            ever_ready: false,
            backoff: Backoff::default(),
            recycles: RecycleLog::new(now),
            metrics,
            jobs: Jobs::new(now),
            emptied: None,
            inbox: vec![0; MAX_MESSAGE],
            control,
            started: now,
            systemd: Systemd::find(|name| std::env::var(name).ok()),
            pid_file,
            kin,
            program: Program::of_process(),
            scratch: vec![0; worker::SCRATCH],
            now,
        })
    }

    /// Where it listens.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Runs until everything has stopped; returns the exit code.
    pub fn run(mut self) -> i32 {
        log::info!("Listening at: {} ({})", self.addresses().join(","), std::process::id());
        log::info!("Using worker: feast-prefork");
        title::prepare();
        worker::warm_up();
        // The jobs of a master that is being replaced go on.
        if !matches!(self.kin, Kin::Parent(_)) {
            self.restore_interrupted();
        }
        loop {
            self.promote();
            self.keep_scraper();
            self.converge();
            self.wait();
            for signal in self.signals.drain() {
                self.handle(signal);
            }
            self.serve_control();
            self.hear_workers();
            self.run_jobs();
            self.reap();
            self.murder();
            self.overdue();
            self.refresh_registry();
            self.rotate_tickets();
            self.recycles.report(self.now);
            self.show_states();
            self.notify_systemd();
            if self.workers.is_empty() && self.phase != Phase::Running && self.jobs_are_done() {
                return self.leave();
            }
        }
    }

    /// After the last worker: what is under way ends at its next good place, and waiting pushes are written.
    fn jobs_are_done(&mut self) -> bool {
        let since = *self.emptied.get_or_insert(self.now);
        if self.exit_code == exit::OK {
            self.flush_before_leaving();
            self.run_jobs();
        }
        if self.waits_for_jobs(since) {
            return false;
        }
        self.jobs.signal(Signal::SIGKILL);
        true
    }

    fn addresses(&self) -> Vec<String> {
        let secure = self.prepared.tls.is_some();
        let name = |name: &ListenerName| if secure { name.secure() } else { name.to_string() };
        self.listeners.iter().map(|listener| name(listener.name())).collect()
    }

    /// Waits for a signal, a worker's word, or the next thing to do.
    fn wait(&mut self) {
        let wait = self.next_deadline().saturating_duration_since(Instant::now());
        let millis = u16::try_from(wait.as_millis().max(1)).unwrap_or(1000);
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.control.iter().flat_map(Control::descriptors).map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        let channels = self.workers.iter().filter_map(|worker| worker.channel.as_ref());
        let channels = channels.chain(self.jobs.channels());
        fds.extend(channels.map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut fds, PollTimeout::from(millis));
        self.now = Instant::now();
    }

    fn next_deadline(&self) -> Instant {
        let stop = match self.phase {
            Phase::Running => None,
            Phase::Draining { until } | Phase::Quitting { until } => Some(until),
        };
        [
            stop,
            self.backoff.wait_until(),
            self.next_registry_check,
            self.systemd.deadline(),
            Some(self.jobs.next_look()),
        ]
        .into_iter()
        .flatten()
        .filter(|at| *at > self.now)
        .fold(self.now + Duration::from_secs(1), Instant::min)
    }

    /// Takes what workers have said.
    fn hear_workers(&mut self) {
        let mut inbox = std::mem::take(&mut self.inbox);
        for index in 0..self.workers.len() {
            while let Some(channel) = &self.workers[index].channel {
                let pid = self.workers[index].pid;
                match channel.from_worker(&mut inbox) {
                    Ok(Incoming::Message(ToMaster::Ready)) => self.worker_ready(index),
                    Ok(Incoming::Message(ToMaster::Retiring)) => self.worker_retires(index),
                    Ok(Incoming::Message(ToMaster::ServingOn)) => self.worker_serves_on(index),
                    Ok(Incoming::Message(ToMaster::RunJob(id, job))) => self.job_wanted(pid, id, &job),
                    Ok(Incoming::Message(ToMaster::AwaitJob(id))) => self.job_awaited(pid, id),
                    Ok(Incoming::Empty) => break,
                    // A dying worker hangs up before it can be reaped; polling it until then would spin.
                    Ok(Incoming::Closed) | Err(_) => self.workers[index].channel = None,
                }
            }
        }
        self.inbox = inbox;
    }

    /// Stops everything: `signal` says how workers take it.
    fn stop(&mut self, signal: Signal, patience: Duration, exit_code: i32) {
        let until = self.now + patience;
        self.exit_code = self.exit_code.max(exit_code);
        self.close_listeners();
        // With a new master at work there is time for jobs to end.
        if !matches!(self.kin, Kin::Child(_)) {
            self.jobs.signal(Signal::SIGTERM);
        }
        self.say_successor();
        let quick = signal == Signal::SIGQUIT;
        self.phase = if quick { Phase::Quitting { until } } else { Phase::Draining { until } };
        for worker in &mut self.workers {
            worker.signal(signal);
            worker.duty = Duty::Stopping { until };
            worker.leaves_because = "stopped";
        }
    }

    fn close_listeners(&mut self) {
        let succeeded = matches!(self.kin, Kin::Child(_));
        for listener in self.listeners.drain(..) {
            if !succeeded {
                listener.remove_file();
            }
        }
    }

    /// Kills what did not stop in time.
    fn overdue(&mut self) {
        for worker in &mut self.workers {
            match worker.duty {
                // The worker has the same deadline: it leaves by itself if it can.
                Duty::Stopping { until } if until + KILL_MARGIN <= self.now => worker.kill(),
                Duty::HandingOver { since, .. }
                    if self.now.duration_since(since)
                        > self.prepared.settings.graceful_timeout.max(MIN_HANDOVER) =>
                {
                    // Its clients are too slow for a handover: they get their answers and no more.
                    worker.signal(Signal::SIGTERM);
                    let until = self.now + self.prepared.settings.graceful_timeout;
                    worker.duty = Duty::Stopping { until };
                }
                _ => {}
            }
        }
    }

    /// Looks at the registry file, so that new workers never start with an old one.
    fn refresh_registry(&mut self) {
        if self.next_registry_check.is_none_or(|at| at > self.now) {
            return;
        }
        self.next_registry_check = self.prepared.next_check(self.now);
        self.prepared.refresh();
    }

    /// Sessions of TLS clients are sealed with keys that do not stay.
    fn rotate_tickets(&mut self) {
        if let Some(Err(error)) = self.tickets.as_mut().map(|tickets| tickets.rotate_if_due(self.now)) {
            log::error!("cannot make a new key for TLS sessions: {error}");
        }
    }

    /// What a worker shows to TLS clients.
    fn client_tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        let mut config = self.prepared.tls.clone()?;
        if let Some(tickets) = &self.tickets {
            config.ticketer = tickets.tickets();
        }
        Some(Arc::new(config))
    }

    fn show_states(&mut self) {
        let phase = self.tree_phase();
        self.board.set_phase(phase, self.target);
        if self.shown != Some(phase) {
            self.shown = Some(phase);
            title::show("master", phase.name());
        }
        if let Some(statsd) = &mut self.statsd {
            // A new master speaks for both.
            if !matches!(self.kin, Kin::Child(_)) {
                statsd.workers(self.workers.len(), self.now);
            }
            statsd.end_turn();
        }
        if let Some(metrics) = &self.metrics {
            metrics.show_states(self.workers.iter().map(|worker| self.board.slot(worker.slot).state()));
        }
    }

    fn leave(&mut self) -> i32 {
        let succeeded = self.is_succeeded();
        if let Some(metrics) = &mut self.metrics {
            metrics.close(succeeded);
        }
        if let Some(control) = &self.control {
            control.close();
        }
        if self.exit_code == exit::OK {
            log::info!("Shutting down: Master");
        } else {
            log::error!("Shutting down: Master");
            log::error!("Reason: {}", reap::reason(self.exit_code));
        }
        self.exit_code
    }

    /// Reloads: the new settings are checked first, and a mistake changes nothing.
    fn reload(&mut self) -> Result<(), StartError> {
        log::info!("Hang up: Master");
        self.say_reloading();
        self.try_reload()
            .inspect_err(|error| log::error!("reload refused, the old settings stay in force: {error}"))
    }

    fn try_reload(&mut self) -> Result<(), StartError> {
        let next = (self.loader)()?;
        let tickets = tickets(&next, self.now)?;
        self.rebind(&next)?;
        crate::logging::logger::reopen();
        // Whoever was let in under the old settings shows again who it is: tickets from before are worth nothing.
        self.tickets = tickets;
        if self.prepared.settings.statsd != next.settings.statsd {
            self.statsd = open_statsd(&next);
        }
        self.target = next.settings.workers;
        self.prepared = next;
        self.site = Site::new(&self.prepared.store, &self.prepared.registry, &self.prepared.settings);
        self.next_registry_check = self.prepared.next_check(self.now);
        self.generation += 1;
        self.backoff = Backoff::default();
        for worker in &mut self.workers {
            if matches!(worker.duty, Duty::Serving) {
                worker.duty = Duty::AwaitingSuccessor;
                worker.leaves_because = "reloaded";
            }
        }
        Ok(())
    }

    /// Opens the listeners that are new, keeps those that stay, closes the others. An error changes nothing.
    fn rebind(&mut self, next: &Prepared) -> Result<(), StartError> {
        let (old, new) = (&self.prepared.settings, &next.settings);
        let fixed =
            |what: &str| StartError::new(exit::CONFIG, format!("{what} can only be changed by a restart"));
        if old.reuse_port != new.reuse_port {
            return Err(fixed("reuse_port"));
        }
        if (&old.pid_file, &old.control_socket) != (&new.pid_file, &new.control_socket) {
            return Err(fixed("the pid file and the control socket"));
        }
        if old.tls.is_some() != new.tls.is_some() {
            return Err(fixed("whether clients' connections are encrypted"));
        }
        if old.metrics != new.metrics {
            return Err(fixed("whether and where metrics are served"));
        }
        if old.binds == new.binds {
            return Ok(());
        }
        let mut opened = Vec::new();
        for bind in &new.binds {
            let kept = old.binds.contains(bind);
            opened.push(if kept { None } else { Some(prepare::open(bind, new)?) });
        }
        let mut kept: Vec<(crate::config::Bind, Listener)> =
            old.binds.iter().cloned().zip(self.listeners.drain(..)).collect();
        for (bind, opened) in new.binds.iter().zip(opened) {
            let listener = opened.or_else(|| {
                let place = kept.iter().position(|(known, _)| known == bind)?;
                Some(kept.swap_remove(place).1)
            });
            self.listeners.extend(listener);
        }
        for (_, closed) in kept {
            closed.remove_file();
        }
        log::info!("Listening at: {}", self.addresses().join(","));
        Ok(())
    }

    /// What a child takes over from the master: definitions, settings and sockets, as they are now.
    fn snapshot(&self) -> Arc<crate::registry::Snapshot> {
        self.prepared.snapshot.clone()
    }
}
