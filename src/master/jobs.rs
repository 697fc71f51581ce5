//! Jobs: children that do one long thing, and who waits for their answers.
//!
//! A job outlives the worker that asked for it: the answer goes to whichever worker has the connection by then.
//! A materialization that dies is followed by another job that puts its views back into a usable state.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{Master, Phase};
use crate::exit;
use crate::ipc::channel::{Channel, Incoming, ToWorker, MAX_MESSAGE};
use crate::ipc::control::JobStatus;
use crate::ipc::job::{Job, JobId, Report};
use crate::jobs::{self, flush, materialize, Observer, Site};
use crate::metrics::handles::{Files, Number};
use crate::metrics::names;
use crate::offline::spool::Spool;
use crate::os::fork::{exit_now, fork_blocked, Side};
use crate::os::signals::{Pipe, Signal};
use crate::registry::model::State;

/// Materializations at once, unless `FEAST_MATERIALIZE_MAX_WORKERS` says otherwise.
const DEFAULT_AT_ONCE: usize = 2;
/// Most jobs that wait; more are refused.
const MOST_WAITING: usize = 256;
/// How long a connection may know of a job of which the master has not heard yet.
const HEARSAY: Duration = Duration::from_secs(1);
/// How often writing offline pushes is tried again after a failure.
const FLUSH_PAUSE: Duration = Duration::from_secs(5);
/// Answers kept for connections that are on their way from one worker to another.
const KEPT: usize = 64;
/// How often waiting offline pushes are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// What a stopping server gives its jobs before it kills them.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for a server that is to stop at once.
const QUICK_PATIENCE: Duration = Duration::from_secs(2);

/// A job that waits or runs.
struct Record {
    id: JobId,
    job: Job,
    /// Workers that want the answer.
    waiters: Vec<Pid>,
    running: Option<Running>,
}

struct Running {
    pid: Pid,
    channel: Channel,
    since: Instant,
    answered: bool,
    /// View and percent, for those who look.
    progress: Option<(String, u8)>,
}

/// See the module.
pub(super) struct Jobs {
    records: Vec<Record>,
    answers: VecDeque<(JobId, u16, String)>,
    /// Workers that have asked for jobs which are not known yet: whoever wants the job speaks on another channel.
    asked: Vec<(Instant, Pid, JobId)>,
    /// Answers that a worker could not take, for it was busy.
    untold: Vec<(Pid, JobId, u16, String)>,
    at_once: usize,
    next_own: JobId,
    next_look: Instant,
    inbox: Vec<u8>,
    /// The last look has found so much waiting: pushes, rows.
    backlog: (usize, usize),
    /// No batch is written before then: the last attempt has failed.
    flush_pause: Instant,
    ending: bool,
}

/// What a job does, for people.
fn words(job: &Job) -> String {
    match job {
        Job::Materialize(run) => format!("materialize {}", run.views.join(", ")),
        Job::Restore(views) => format!("restore {}", views.join(", ")),
        Job::Flush => "flush".to_owned(),
    }
}

impl Jobs {
    pub(super) fn new(now: Instant) -> Self {
        let asked = std::env::var("FEAST_MATERIALIZE_MAX_WORKERS").ok();
        let at_once = match asked.as_deref().map(str::parse::<usize>) {
            None => DEFAULT_AT_ONCE,
            Some(Ok(number)) => number.max(1),
            Some(Err(_)) => {
                log::warn!("FEAST_MATERIALIZE_MAX_WORKERS is not a number: {DEFAULT_AT_ONCE} is used");
                DEFAULT_AT_ONCE
            }
        };
        Self {
            records: Vec::new(),
            answers: VecDeque::new(),
            asked: Vec::new(),
            untold: Vec::new(),
            at_once,
            next_own: 0,
            next_look: now,
            inbox: vec![0; MAX_MESSAGE],
            backlog: (0, 0),
            flush_pause: now,
            ending: false,
        }
    }

    /// The channels of running jobs.
    pub(super) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.records.iter().filter_map(|record| record.running.as_ref()).map(|running| &running.channel)
    }

    /// When waiting pushes are looked at.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// True when nothing runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.records.is_empty()
    }

    /// What runs and waits.
    pub(super) fn shown(&self, now: Instant) -> Vec<JobStatus> {
        self.records
            .iter()
            .map(|record| {
                let running = record.running.as_ref();
                let progress = running.and_then(|running| running.progress.clone());
                let what = match &progress {
                    Some((view, _)) => format!("materialize {view}"),
                    None => words(&record.job),
                };
                JobStatus {
                    pid: running.map_or(0, |running| running.pid.as_raw()),
                    what,
                    age_seconds: running.map_or(0, |running| now.duration_since(running.since).as_secs()),
                    percent: progress.map_or(0, |(_, percent)| percent),
                }
            })
            .collect()
    }

    /// Offline pushes that wait, and their rows.
    pub(super) fn backlog(&self) -> (usize, usize) {
        self.backlog
    }

    /// Keeps an answer for connections that are on their way.
    fn remember(&mut self, id: JobId, status: u16, body: &str) {
        self.answers.push_back((id, status, body.to_owned()));
        if self.answers.len() > KEPT {
            self.answers.pop_front();
        }
    }

    /// A child of the master waits for nobody's jobs, and holds none of their channels.
    pub(super) fn leave(&mut self) {
        self.records.clear();
    }

    fn own(&mut self, job: Job) {
        // Ids of workers have a process number in their upper half.
        self.next_own += 1;
        self.records.push(Record { id: self.next_own, job, waiters: Vec::new(), running: None });
    }

    /// Signals every running job.
    pub(super) fn signal(&self, signal: Signal) {
        for running in self.records.iter().filter_map(|record| record.running.as_ref()) {
            let _ = kill(running.pid, signal);
        }
    }
}

impl Master {
    /// A worker wants a job done.
    pub(super) fn job_wanted(&mut self, worker: Pid, id: JobId, bytes: &[u8]) {
        let Some(job) = Job::decode(bytes) else {
            log::error!("a worker wants a job that makes no sense");
            return self.tell(worker, id, 500, "\"the job makes no sense\"");
        };
        let mut waiters = vec![worker];
        self.jobs.asked.retain(|&(_, asking, wanted)| {
            if wanted == id {
                waiters.push(asking);
            }
            wanted != id
        });
        let full = self.jobs.records.iter().filter(|record| record.running.is_none()).count() >= MOST_WAITING;
        let record = Record { id, job, waiters, running: None };
        if full {
            return self.give_up(record, "\"Too many jobs wait already; nothing was begun.\"");
        }
        self.jobs.records.push(record);
    }

    /// Puts views back whose materialization was killed together with its server. Those that were never materialized
    /// before stay as they are: GENERATED, they would not be served.
    pub(super) fn restore_interrupted(&mut self) {
        let views = self.prepared.snapshot.views().iter();
        let views =
            views.filter(|view| view.state == State::Materializing && view.materialized_until.is_some());
        let views: Vec<String> = views.map(|view| view.name.clone()).collect();
        if !views.is_empty() {
            self.jobs.own(Job::Restore(views));
        }
    }

    /// A connection that waits for a job is at `worker` now.
    pub(super) fn job_awaited(&mut self, worker: Pid, id: JobId) {
        if let Some(record) = self.jobs.records.iter_mut().find(|record| record.id == id) {
            record.waiters.push(worker);
            return;
        }
        // The newest: process numbers come again.
        let known = self.jobs.answers.iter().rev().find(|(known, _, _)| *known == id);
        match known.map(|(_, status, body)| (*status, body.clone())) {
            Some((status, body)) => self.tell(worker, id, status, &body),
            None => self.jobs.asked.push((self.now, worker, id)),
        }
    }

    fn tell(&mut self, worker: Pid, id: JobId, status: u16, body: &str) {
        let message = ToWorker::JobDone { id, status, body: body.as_bytes().to_vec() };
        let channel = self.workers.iter().find(|w| w.pid == worker).and_then(|w| w.channel.as_ref());
        match channel.map(|channel| channel.tell_worker(&message)) {
            Some(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.jobs.untold.push((worker, id, status, body.to_owned()));
            }
            Some(Err(error)) => log::warn!("worker {worker} cannot be told the end of a job: {error}"),
            _ => {}
        }
    }

    /// Tells again what could not be told, and answers those who ask for jobs that nobody wants.
    fn settle(&mut self) {
        for (worker, id, status, body) in std::mem::take(&mut self.jobs.untold) {
            self.tell(worker, id, status, &body);
        }
        let now = self.now;
        let (late, early) = std::mem::take(&mut self.jobs.asked)
            .into_iter()
            .partition(|(at, _, _)| now.duration_since(*at) > HEARSAY);
        self.jobs.asked = early;
        for (_, worker, id) in late {
            let body = "\"the job is not known any more; look at the registry for its result\"";
            self.tell(worker, id, 500, body);
        }
    }

    /// Answers a job that is not run; views that were marked for it are put back.
    fn give_up(&mut self, record: Record, body: &str) {
        log::warn!("a job was given up: {body}");
        self.jobs.remember(record.id, 503, body);
        for worker in record.waiters {
            self.tell(worker, record.id, 503, body);
        }
        if let Job::Materialize(run) = record.job {
            if run.in_background {
                self.jobs.own(Job::Restore(run.views));
            }
        }
    }

    /// Starts what can be started, and looks for pushes whose batch is due.
    pub(super) fn run_jobs(&mut self) {
        self.hear_jobs();
        self.settle();
        if self.now >= self.jobs.next_look {
            self.jobs.next_look = self.now + LOOK;
            self.look_at_spool();
        }
        // With a new master at work, what waits is still done.
        let stops = self.phase != Phase::Running && !self.is_succeeded();
        if stops {
            let waits = |r: &Record| r.running.is_none() && matches!(r.job, Job::Materialize(_));
            let (given_up, kept) = std::mem::take(&mut self.jobs.records).into_iter().partition(waits);
            self.jobs.records = kept;
            for record in given_up {
                self.give_up(record, "\"The server stops; nothing was begun, and the run can be repeated.\"");
            }
        }
        loop {
            let busy = self.jobs.records.iter().filter(|record| record.running.is_some()).count();
            let flushing =
                self.jobs.records.iter().any(|record| record.running.is_some() && record.job == Job::Flush);
            let next = self.jobs.records.iter().position(|record| {
                record.running.is_none()
                    && match record.job {
                        Job::Materialize(_) => busy < self.jobs.at_once,
                        Job::Restore(_) => true,
                        Job::Flush => !flushing,
                    }
            });
            let Some(index) = next else { break };
            if !self.start_job(index) {
                break;
            }
        }
    }

    /// Asks for a batch when enough rows wait, or for long enough.
    fn look_at_spool(&mut self) {
        // Without batching, what an earlier server has accepted is written as soon as it is found.
        let (rows, interval) = self.prepared.store.writes.push_batching.unwrap_or((1, Duration::ZERO));
        let waiting = Spool::new(&self.site.spool).backlog();
        let files = waiting.iter().map(|(_, backlog)| backlog.files).sum();
        self.jobs.backlog = (files, waiting.iter().map(|(_, backlog)| backlog.rows).sum());
        if let Some(metrics) = &mut self.metrics {
            metrics.show_backlog(self.jobs.backlog.1);
        }
        let due = waiting.iter().any(|(_, backlog)| {
            // Nothing but an unfinished batch: its process has died.
            backlog.rows >= rows || backlog.oldest >= interval || backlog.files == 0
        });
        let queued = self.jobs.records.iter().any(|record| record.job == Job::Flush);
        if due && !queued && self.now >= self.jobs.flush_pause {
            self.jobs.own(Job::Flush);
        }
    }

    /// The last batch, when everything stops.
    pub(super) fn flush_before_leaving(&mut self) {
        let batches = self.prepared.store.writes.push_batching.is_some() || self.jobs.backlog.0 > 0;
        if batches && !std::mem::replace(&mut self.jobs.ending, true) {
            self.jobs.own(Job::Flush);
        }
    }

    fn start_job(&mut self, index: usize) -> bool {
        // Drawn here: two children of one parent would draw the same numbers.
        let seed = fastrand::u64(..);
        let forked = Channel::pair().and_then(|ends| Ok((ends, fork_blocked()?)));
        match forked {
            Ok(((ours, theirs), Side::Child)) => {
                drop(ours);
                fastrand::seed(seed);
                let job = self.jobs.records[index].job.clone();
                self.become_job(&job, theirs)
            }
            Ok(((ours, _), Side::Parent(pid))) => {
                let record = &mut self.jobs.records[index];
                log::debug!("job {} runs in process {pid}", record.id);
                record.running =
                    Some(Running { pid, channel: ours, since: self.now, answered: false, progress: None });
                true
            }
            Err(error) => {
                log::error!("cannot fork a job: {error}");
                false
            }
        }
    }

    fn become_job(&mut self, job: &Job, channel: Channel) -> ! {
        self.leave_master("feast-job");
        crate::os::title::show("job", &words(job));
        self.listeners.clear();
        self.metrics = None;
        let signals = match self.begin_child() {
            Ok(signals) => signals,
            Err(error) => {
                log::error!("Exception in job process: {error}");
                exit_now(exit::BOOT_FAILED);
            }
        };
        let mut observer = Reporter { channel, signals, stopped: false };
        let site = self.site.clone();
        let run = std::panic::AssertUnwindSafe(|| {
            run(job, &site, &mut observer);
            exit::OK
        });
        exit_now(std::panic::catch_unwind(run).unwrap_or(exit::CRASHED))
    }

    /// Takes what jobs have said.
    pub(super) fn hear_jobs(&mut self) {
        let mut inbox = std::mem::take(&mut self.jobs.inbox);
        for index in 0..self.jobs.records.len() {
            while let Some(running) = &self.jobs.records[index].running {
                match running.channel.receive(&mut inbox) {
                    Ok(Incoming::Message(bytes)) => {
                        if let Some(report) = Report::decode(bytes) {
                            self.job_reports(index, report);
                        }
                    }
                    _ => break,
                }
            }
        }
        self.jobs.inbox = inbox;
    }

    fn job_reports(&mut self, index: usize, report: Report) {
        match report {
            Report::Progress { view, percent } => {
                if let Some(running) = &mut self.jobs.records[index].running {
                    running.progress = Some((view, percent));
                }
            }
            Report::View { view, success, seconds, reading, entities } => {
                let outcome = if success { "materialized" } else { "failed to materialize" };
                let count = entities.map_or(String::new(), |count| format!(": {count} entities"));
                log::info!("{outcome} {view}{count} in {seconds:.1} s");
                let categories = self.prepared.store.metrics.clone();
                if let Some(metrics) = &mut self.metrics {
                    metrics.materialized(
                        &categories,
                        &view,
                        success,
                        seconds,
                        reading,
                        entities.unwrap_or(0),
                    );
                }
            }
            Report::Flushed { rows, rejected } => {
                if let Some(metrics) = &mut self.metrics {
                    metrics.flushed(rows, rejected);
                }
            }
            Report::Answer { status, body } => {
                let record = &mut self.jobs.records[index];
                let (id, waiters) = (record.id, std::mem::take(&mut record.waiters));
                if let Some(running) = &mut record.running {
                    running.answered = true;
                }
                if record.job == Job::Flush && status != 200 {
                    self.jobs.flush_pause = self.now + FLUSH_PAUSE;
                }
                self.jobs.remember(id, status, &body);
                waiters.into_iter().for_each(|worker| self.tell(worker, id, status, &body));
            }
        }
    }

    /// True when the dead process `pid` was a job.
    pub(super) fn job_died(&mut self, pid: Pid) -> bool {
        let is = |record: &Record| record.running.as_ref().is_some_and(|running| running.pid == pid);
        if !self.jobs.records.iter().any(is) {
            return false;
        }
        // What it said last is still in the channel.
        self.hear_jobs();
        let Some(index) = self.jobs.records.iter().position(is) else { return true };
        let answered = self.jobs.records[index].running.as_ref().is_some_and(|running| running.answered);
        if !answered {
            log::error!("job process {pid} died before its end");
            let body =
                "\"The job's process died; nothing was recorded, and the run can be repeated.\"".to_owned();
            self.job_reports(index, Report::Answer { status: 500, body });
            match self.jobs.records[index].job.clone() {
                Job::Materialize(run) => self.jobs.own(Job::Restore(run.views)),
                Job::Flush | Job::Restore(_) => {}
            }
        }
        self.jobs.records.remove(index);
        true
    }

    /// True when jobs keep the master from leaving.
    pub(super) fn waits_for_jobs(&self, since: Instant) -> bool {
        if self.is_succeeded() {
            return !self.jobs.is_idle();
        }
        let patience = if matches!(self.phase, Phase::Quitting { .. }) { QUICK_PATIENCE } else { PATIENCE };
        !self.jobs.is_idle() && self.now.duration_since(since) < patience
    }
}

/// What a job does in its process.
fn run(job: &Job, site: &Site, observer: &mut Reporter) {
    match job {
        Job::Materialize(run) => {
            let done = materialize::run(run, site, observer);
            if let (Err(error), true) = (&done, run.in_background) {
                let views = crate::text::pyrepr::repr_list(run.views.iter().map(String::as_str));
                let name = match run.window {
                    crate::ipc::job::Window::Between { .. } => "materialization",
                    crate::ipc::job::Window::Until { .. } => "materialize-incremental",
                };
                log::error!("Async {name} failed for {views}: {}", error.log_text());
            }
            observer.report(jobs::answer(&done));
        }
        Job::Restore(views) => {
            materialize::restore(views, site);
            observer.report(jobs::answer(&Ok(())));
        }
        Job::Flush => {
            let done = flush::run(site, observer);
            let done = done.map_err(crate::api::error::ApiError::Other);
            observer.report(jobs::answer(&done));
        }
    }
}

/// A job's way to the master.
struct Reporter {
    channel: Channel,
    signals: Pipe,
    stopped: bool,
}

impl Observer for Reporter {
    fn say(&mut self, line: &str) {
        for line in line.lines().filter(|line| !line.is_empty()) {
            log::info!("{line}");
        }
    }

    fn report(&mut self, report: Report) {
        let packet = match report {
            // An answer that is too long for a message keeps its beginning.
            Report::Answer { status, body } if body.len() > MAX_MESSAGE / 2 => {
                let text: String = body.chars().take(MAX_MESSAGE / 16).collect();
                let mut body = Vec::new();
                crate::text::json::write_str(&mut body, &text);
                Report::Answer { status, body: String::from_utf8_lossy(&body).into_owned() }.encode()
            }
            report @ Report::Progress { .. } => {
                // A master that is busy does without.
                let _ = self.channel.send(&report.encode(), &[]);
                return;
            }
            report => report.encode(),
        };
        for _ in 0..1000 {
            match self.channel.send(&packet, &[]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => return,
            }
        }
    }

    fn stopped(&mut self) -> bool {
        for signal in self.signals.drain() {
            self.stopped |= matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT);
        }
        self.stopped
    }
}

/// The metrics of jobs, which the master counts.
pub(super) fn count_run(
    files: &mut Files,
    categories: &crate::metrics::meters::Categories,
    view: &str,
    success: bool,
    (seconds, reading): (f64, f64),
    entities: u64,
) -> std::io::Result<()> {
    let status = if success { "success" } else { "failure" };
    if categories.materialization {
        let count: Number = files.get(&names::MATERIALIZATIONS, &[view, status])?;
        files.add(count, 1.0);
        let took = files.histogram(&names::MATERIALIZATION_DURATION, &[view])?;
        files.observe(&took, seconds);
    }
    if categories.offline_features {
        let status = if success { "success" } else { "error" };
        let count = files.get(&names::OFFLINE_REQUESTS, &["to_arrow", status])?;
        files.add(count, 1.0);
        let took = files.histogram(&names::OFFLINE_LATENCY, &["to_arrow"])?;
        files.observe(&took, reading);
        let rows = files.histogram(&names::OFFLINE_ROWS, &["to_arrow"])?;
        files.observe(&rows, entities as f64);
    }
    Ok(())
}
