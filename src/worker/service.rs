//! What answers requests inside a worker: routes, the registry, the store, the access log. No sockets.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Poll, Waker};

use super::refresh::{Loaded, Watch};
use super::writing::{Ticket, Writing};
use super::{Boot, Clock};
use crate::api::error::ApiError;
use crate::api::routes::{self, Match, Route};
use crate::api::write::{Lane, Work, WriteRoute};
use crate::api::{online, Answer, ApiRules, Asked, Context, Freshness, PlanCache, Step};
use crate::config::settings::TrustedPeers;
use crate::config::store::OnlineStoreConfig;
use crate::config::{Settings, StoreConfig};
use crate::feature::zone::LocalZone;
use crate::http::date::DateCache;
use crate::http::respond::{self, ResponseHead};
use crate::http::{body, Framing, Head, HttpError, Version};
use crate::ipc::channel::ToMaster;
use crate::ipc::job::JobId;
use crate::jobs;
use crate::logging::access::{AccessLog, Entry};
use crate::metrics::meters::Meters;
use crate::metrics::statsd::Statsd;
use crate::offline::spool::Spool;
use crate::online::redis;
use crate::online::sqlite::Sqlite;
use crate::online::OnlineStore;
use crate::registry::Snapshot;

/// How often a busy store is asked again, and for how long (the reference's patience).
const STORE_RETRY: Duration = Duration::from_millis(5);
/// How soon a master that was busy is told again.
const BUSY_MASTER: Duration = Duration::from_millis(5);
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// A request on its way in.
pub(super) struct Incoming<'i> {
    pub(super) head: &'i Head,
    /// The whole request; the head's ranges count from its first byte.
    pub(super) bytes: &'i [u8],
    pub(super) peer: Option<SocketAddr>,
    /// Set when the request has waited.
    pub(super) retry: Option<Retry>,
    /// The connection ends with this answer whatever the client wants.
    pub(super) closing: bool,
}

impl Incoming<'_> {
    /// When its answer was first worked on.
    fn began(&self, clock: &Clock) -> Instant {
        self.retry.as_ref().map_or(clock.now, |retry| retry.since)
    }
}

/// What a request that has waited is told.
#[derive(Debug, Clone)]
pub(super) struct Retry {
    pub(super) freshness: Freshness,
    pub(super) since: Instant,
    /// What the store was asked for.
    pub(super) asked: Option<Asked>,
    /// The answer that the writing thread or a job has made.
    pub(super) done: Option<Answer>,
    /// The job that will make it.
    pub(super) job: Option<JobId>,
}

impl Retry {
    fn new(freshness: Freshness, since: Instant) -> Self {
        Self { freshness, since, asked: None, done: None, job: None }
    }

    /// Of a request that waits for a job.
    pub(super) fn of_job(job: JobId) -> Self {
        Self { job: Some(job), ..Self::new(Freshness::Checked, Instant::now()) }
    }
}

/// What the request of a connection waits for.
#[derive(Debug)]
struct Parked {
    step: Step,
    since: Instant,
    asked: Option<Asked>,
    writes: Option<Writes>,
}

/// Who will answer a writing request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// The writing thread.
    Thread(Ticket),
    /// A job of the master's.
    Job(JobId),
}

/// See the module.
pub(super) struct Service {
    /// Requests whose head this process has parsed; connections count them.
    pub(super) requests: u64,
    /// An operation has panicked: this process should be replaced.
    pub(super) panicked: bool,
    watch: Watch,
    plans: PlanCache,
    store: Box<dyn OnlineStore>,
    scratch: online::Scratch,
    /// What this worker counts, if anything is counted.
    pub(super) meters: Option<Meters>,
    statsd: Option<Statsd>,
    rules: ApiRules,
    trusted: TrustedPeers,
    /// Clients have come by TLS.
    secure: bool,
    answer: Answer,
    head: Vec<u8>,
    body: Vec<u8>,
    date: DateCache,
    access: AccessLog,
    /// By the index of the connection.
    parked: HashMap<usize, Parked, foldhash::fast::RandomState>,
    /// What the last request that waits has asked the store for.
    asked: Option<Asked>,
    /// Connections whose values have come.
    answered: Vec<usize>,
    last_step: Step,
    last_since: Option<Instant>,
    next_retry: Option<Instant>,
    registry_loaded: Option<Loaded>,
    writing: Writing,
    /// What the last writing request that waits is waiting for.
    writes: Option<Writes>,
    /// Connections that wait for the writing thread.
    writers: HashMap<Ticket, usize, foldhash::fast::RandomState>,
    /// Answers of jobs that nobody has taken yet.
    jobs_done: Vec<(JobId, Answer)>,
    /// For the master.
    messages: Vec<ToMaster>,
    next_job: u64,
}

impl Service {
    /// The store's connections are registered in `poll` from token `first_token` on.
    pub(super) fn new(
        boot: &mut Boot<'_>,
        waker: Arc<Waker>,
        poll: &Poll,
        first_token: usize,
    ) -> io::Result<Self> {
        let settings = boot.settings;
        let tls = boot.store_tls.clone();
        let store = open_store(settings, boot.store, tls, poll, first_token, waker.clone())?;
        let rules = ApiRules {
            key_version: boot.store.key_version,
            strict_content_type: settings.strict_content_type,
            enforce_ttl: settings.enforce_ttl,
        };
        let site = boot.site.clone();
        let make_lane = move || Lane {
            writer: site.writer(),
            registry: site.registry.clone(),
            rules,
            repo_path: site.store.repo_path.clone(),
            spool: site.store.writes.push_batching.map(|_| Spool::new(&site.spool)),
            patience: jobs::PATIENCE,
        };
        let writing = Writing::new(Box::new(make_lane), waker.clone());
        Ok(Self {
            requests: 0,
            panicked: false,
            watch: Watch::new(
                boot.registry.clone(),
                boot.snapshot.clone(),
                boot.stamp,
                settings.registry_ttl,
                waker,
            ),
            plans: PlanCache::default(),
            store,
            scratch: online::Scratch::default(),
            meters: boot.meters.take(),
            statsd: boot.statsd.take(),
            rules,
            trusted: settings.trusted.clone(),
            secure: boot.tls.is_some(),
            answer: Answer::default(),
            head: Vec::with_capacity(256),
            body: Vec::new(),
            date: DateCache::default(),
            access: AccessLog::open(&settings.access_log, settings.access_format.as_deref())?,
            parked: HashMap::default(),
            asked: None,
            answered: Vec::new(),
            last_step: Step::Reply,
            last_since: None,
            next_retry: None,
            registry_loaded: None,
            writing,
            writes: None,
            writers: HashMap::default(),
            jobs_done: Vec::new(),
            messages: Vec::new(),
            next_job: 0,
        })
    }

    /// Counts a request whose head has been parsed.
    pub(super) fn count_request(&mut self) {
        self.requests += 1;
        if let Some(meters) = &mut self.meters {
            meters.http_request();
        }
    }

    /// Answers a request into [`reply`](Self::reply), or says what it waits for.
    pub(super) fn answer(&mut self, incoming: &Incoming<'_>, clock: &Clock) -> Step {
        let step = catch_unwind(AssertUnwindSafe(|| self.route(incoming, clock))).unwrap_or_else(|_| {
            self.panicked = true;
            self.store.end();
            self.asked = None;
            self.plans = PlanCache::default();
            self.scratch = online::Scratch::default();
            self.answer.json(500).extend_from_slice(b"\"internal error\"");
            Step::Reply
        });
        if step == Step::Reply {
            let close = incoming.closing || !incoming.head.keep_alive;
            self.write_head(close, clock);
            self.log_access(incoming, clock);
            if let Some(statsd) = &mut self.statsd {
                statsd.request(self.answer.status, incoming.began(clock).elapsed());
            }
        } else {
            self.last_step = step;
            self.last_since = incoming.retry.as_ref().map(|retry| retry.since);
        }
        step
    }

    fn route(&mut self, incoming: &Incoming<'_>, clock: &Clock) -> Step {
        let Incoming { head, bytes, .. } = *incoming;
        let text = |range: &std::ops::Range<usize>| std::str::from_utf8(&bytes[range.clone()]).unwrap_or("");
        let (method, path) = (text(&head.method), text(&head.path));
        let found = routes::find(method, path);
        let retry = incoming.retry.as_ref();
        let freshness = retry.map_or(Freshness::Unchecked, |retry| retry.freshness);
        let step = match found {
            Match::Run(Route::OnlineFeatures) => {
                let content_type = head.content_type.as_ref().map(text);
                let mut decoded = std::mem::take(&mut self.body);
                decoded.clear();
                let request_body = match head.framing {
                    Framing::Length(_) => &bytes[head.end..],
                    Framing::Chunked => {
                        body::collect(bytes, head.end, &mut decoded);
                        &decoded
                    }
                };
                self.asked = retry.and_then(|retry| retry.asked.clone());
                let mut cx = Context {
                    snapshot: &self.watch.snapshot().clone(),
                    plans: &mut self.plans,
                    store: &mut *self.store,
                    scratch: &mut self.scratch,
                    rules: self.rules,
                    now_nanos: clock.wall.as_nanos() as i128,
                    freshness,
                    registry_changed: &mut || self.watch.changed(),
                    waiting_since: retry.map(|retry| retry.since),
                    asked: &mut self.asked,
                    now: clock.now,
                    meters: self.meters.as_mut(),
                    out_of_patience: retry
                        .is_some_and(|retry| clock.now.duration_since(retry.since) >= STORE_PATIENCE),
                };
                let answer = &mut self.answer;
                let step = online::get_online_features(request_body, content_type, &mut cx, answer);
                self.body = decoded;
                step
            }
            Match::Run(Route::Health) => {
                if freshness == Freshness::Unchecked && self.watch.changed() {
                    Step::WaitForRegistry
                } else {
                    let healthy = freshness != Freshness::Failed;
                    self.answer.reset(if healthy { 200 } else { 503 });
                    Step::Reply
                }
            }
            Match::Run(Route::Write(route)) => self.write(route, incoming),
            Match::Run(Route::Later(path)) => {
                routes::later(path, &mut self.answer);
                Step::Reply
            }
            refused => {
                let host = head.host.as_ref().map_or("", text);
                let own = if self.secure { "https" } else { "http" };
                let scheme = head
                    .forwarded_proto
                    .as_ref()
                    .filter(|_| self.trusted.trusts(incoming.peer.map(|peer| peer.ip())))
                    .map_or(own, text);
                let origin = routes::origin(if scheme == "https" { "https" } else { "http" }, host);
                routes::refuse(&refused, &origin, text(&head.query), &mut self.answer);
                Step::Reply
            }
        };
        if step == Step::Reply && method == "HEAD" {
            self.answer.withheld = Some(self.answer.body.len());
        }
        step
    }

    /// Gives a writing request to its thread, or takes the answer that it has made.
    fn write(&mut self, route: WriteRoute, incoming: &Incoming<'_>) -> Step {
        let Incoming { head, bytes, retry, .. } = incoming;
        if let Some(answer) = retry.as_ref().and_then(|retry| retry.done.clone()) {
            self.answer = answer;
            if let (Some(meters), Some(endpoint)) = (&mut self.meters, route.endpoint()) {
                let since = retry.as_ref().map_or_else(Instant::now, |retry| retry.since);
                if self.answer.handled {
                    let fine = self.answer.status < 400 || self.answer.status == 409;
                    meters.request(endpoint, fine, None, since.elapsed());
                }
            }
            return Step::Reply;
        }
        if let Some(job) = retry.as_ref().and_then(|retry| retry.job) {
            self.messages.push(ToMaster::AwaitJob(job));
            self.writes = Some(Writes::Job(job));
            return Step::WaitForWrite;
        }
        let checked = retry.as_ref().is_some_and(|retry| retry.freshness != Freshness::Unchecked);
        if !checked && self.watch.changed() {
            return Step::WaitForRegistry;
        }
        let text = |range: &std::ops::Range<usize>| std::str::from_utf8(&bytes[range.clone()]).unwrap_or("");
        let body = match head.framing {
            Framing::Length(_) => bytes[head.end..].to_vec(),
            Framing::Chunked => {
                let mut decoded = Vec::new();
                body::collect(bytes, head.end, &mut decoded);
                decoded
            }
        };
        let work = Work {
            route,
            body,
            content_type: head.content_type.as_ref().map(|range| text(range).to_owned()),
            query: text(&head.query).to_owned(),
            snapshot: self.watch.snapshot().clone(),
        };
        match self.writing.submit(work) {
            Some(ticket) => {
                self.writes = Some(Writes::Thread(ticket));
                // The connection is known when it is parked.
                self.writers.insert(ticket, usize::MAX);
                Step::WaitForWrite
            }
            None => {
                ApiError::Overloaded("Too many requests wait to be written").reply(&mut self.answer);
                Step::Reply
            }
        }
    }

    /// Takes what the writing thread has done.
    fn take_written(&mut self, ready: &mut Vec<(usize, Retry)>) {
        while let Some((ticket, done)) = self.writing.take() {
            let Some(index) = self.writers.remove(&ticket) else { continue };
            let waits = done.answer.status == 0;
            let mut waiting =
                self.parked.get_mut(&index).filter(|p| p.writes == Some(Writes::Thread(ticket)));
            if let Some(job) = done.job {
                let id = u64::from(std::process::id()) << 32 | self.next_job;
                self.next_job = (self.next_job + 1) & 0xffff_ffff;
                self.messages.push(ToMaster::RunJob(id, job));
                if let Some(parked) = waiting.as_mut().filter(|_| waits) {
                    parked.writes = Some(Writes::Job(id));
                    continue;
                }
            }
            if let (Some((source, mode)), Some(meters)) = (&done.pushed, &mut self.meters) {
                meters.push(source, mode);
            }
            if waiting.is_some() {
                if let Some(parked) = self.parked.remove(&index) {
                    let answer = Answer { handled: done.handled, ..done.answer };
                    let retry = Retry::new(Freshness::Checked, parked.since);
                    ready.push((index, Retry { done: Some(answer), ..retry }));
                }
            }
        }
        for (id, answer) in std::mem::take(&mut self.jobs_done) {
            let waiting: Vec<usize> = self
                .parked
                .iter()
                .filter(|(_, parked)| parked.writes == Some(Writes::Job(id)))
                .map(|(&index, _)| index)
                .collect();
            for index in waiting {
                let Some(parked) = self.parked.remove(&index) else { continue };
                let retry = Retry::new(Freshness::Checked, parked.since);
                ready.push((index, Retry { done: Some(answer.clone()), ..retry }));
            }
        }
    }

    /// A job has ended.
    pub(super) fn job_done(&mut self, id: JobId, status: u16, body: Vec<u8>) {
        let mut answer = Answer { handled: true, ..Answer::default() };
        *answer.json(status) = body;
        self.jobs_done.push((id, answer));
    }

    /// The master could not be asked.
    pub(super) fn job_refused(&mut self, message: &ToMaster, error: &io::Error) {
        log::error!("a job could not be started: {error}");
        if let ToMaster::RunJob(id, _) | ToMaster::AwaitJob(id) = message {
            self.job_done(*id, 500, b"\"the job could not be started\"".to_vec());
            self.next_retry.get_or_insert_with(Instant::now);
        }
    }

    /// What the master is to be told.
    pub(super) fn take_messages(&mut self) -> Vec<ToMaster> {
        std::mem::take(&mut self.messages)
    }

    /// The master is busy: it is told in a later turn.
    pub(super) fn tell_later(&mut self, message: ToMaster) {
        self.messages.push(message);
        self.next_retry.get_or_insert_with(|| Instant::now() + BUSY_MASTER);
    }

    /// The job that the request of connection `index` waits for.
    pub(super) fn awaited_job(&self, index: usize) -> Option<JobId> {
        match self.parked.get(&index)?.writes {
            Some(Writes::Job(id)) => Some(id),
            _ => None,
        }
    }

    /// Makes the answer to something that is not a request.
    pub(super) fn refuse(&mut self, error: HttpError, clock: &Clock) {
        let (status, text) = error.answer();
        self.answer.reset(status);
        self.answer.content_type = Some("text/plain; charset=utf-8");
        self.answer.body.extend_from_slice(text.as_bytes());
        if error == HttpError::Invalid {
            log::warn!("{text}");
        }
        self.write_head(true, clock);
    }

    fn write_head(&mut self, close: bool, clock: &Clock) {
        self.head.clear();
        let head = ResponseHead {
            status: self.answer.status,
            date: self.date.at(clock.wall),
            allow: self.answer.allow,
            length: self.answer.withheld.unwrap_or(self.answer.body.len()),
            content_type: self.answer.content_type,
            location: self.answer.location.as_deref(),
            retry_after: self.answer.retry_after,
            close,
        };
        respond::write(&mut self.head, &head);
    }

    /// Head and body of the answer made last.
    pub(super) fn reply(&self) -> (&[u8], &[u8]) {
        let body: &[u8] = if self.answer.withheld.is_some() { b"" } else { &self.answer.body };
        (&self.head, body)
    }

    fn log_access(&mut self, incoming: &Incoming<'_>, clock: &Clock) {
        if !self.access.is_on() {
            return;
        }
        let Incoming { head, bytes, .. } = *incoming;
        let text = |range: &std::ops::Range<usize>| std::str::from_utf8(&bytes[range.clone()]).unwrap_or("");
        let (address, port) = self.client(incoming);
        let raw_path = text(&head.path);
        let path = routes::percent_decode(raw_path);
        self.access.add(&Entry {
            address: &address,
            port,
            method: text(&head.method),
            raw_path,
            path: &path,
            query: text(&head.query),
            version: if head.version == Version::Http10 { "1.0" } else { "1.1" },
            status: self.answer.status,
            length: self.reply().1.len(),
            took: incoming.began(clock).elapsed(),
            head: &bytes[head.start..head.end],
            response_head: &self.head,
        });
    }

    /// Address and port of the client: the peer, or what a trusted peer says about it (then with port 0).
    fn client(&self, incoming: &Incoming<'_>) -> (String, Option<u16>) {
        let peer = incoming.peer;
        let forwarded =
            incoming.head.forwarded_for.as_ref().filter(|_| self.trusted.trusts(peer.map(|peer| peer.ip())));
        if let Some(range) = forwarded {
            let list = String::from_utf8_lossy(&incoming.bytes[range.clone()]);
            let hops: Vec<&str> = list.split(',').map(str::trim).filter(|hop| !hop.is_empty()).collect();
            let untrusted =
                hops.iter().rev().find(|hop| hop.parse().map_or(true, |ip| !self.trusted.trusts(Some(ip))));
            if let Some(hop) = untrusted.or(hops.first()) {
                return ((*hop).to_owned(), Some(0));
            }
        }
        peer.map_or((String::new(), None), |peer| (peer.ip().to_string(), Some(peer.port())))
    }

    /// Remembers that the request of connection `index` waits for what the last step said.
    pub(super) fn park(&mut self, index: usize) {
        let now = Instant::now();
        let since = self.last_since.take().unwrap_or(now);
        if self.last_step == Step::WaitForStore {
            self.next_retry.get_or_insert(now + STORE_RETRY);
        }
        let asked = self.asked.take();
        if let Some(asked) = &asked {
            self.store.own(asked.ticket, index);
        }
        let writes = self.writes.take();
        if let Some(Writes::Thread(ticket)) = writes {
            if let Some(owner) = self.writers.get_mut(&ticket) {
                *owner = index;
            }
        }
        self.parked.insert(index, Parked { step: self.last_step, since, asked, writes });
    }

    /// Forgets a connection that is gone.
    pub(super) fn forget(&mut self, index: usize) {
        if let Some(Parked { asked: Some(asked), .. }) = self.parked.remove(&index) {
            self.store.forget(asked.ticket);
        }
    }

    /// Something happened to a connection of the store.
    pub(super) fn store_ready(&mut self, event: &Event, clock: &Clock) {
        self.store.ready(event.token(), event.is_read_closed(), clock.now);
    }

    /// The loading thread has something: the loop takes it at the end of the turn's events.
    pub(super) fn registry_loaded(&mut self) {
        if let Some(loaded) = self.watch.finish() {
            if let (Loaded::Failed, Some(meters)) = (loaded, &mut self.meters) {
                meters.registry_error();
            }
            self.registry_loaded = Some(loaded);
        }
    }

    /// Connections whose requests can try again.
    pub(super) fn take_ready(&mut self, now: Instant) -> Vec<(usize, Retry)> {
        self.watch.check_if_due(now);
        let loaded = self.registry_loaded.take();
        let store_due = self.next_retry.is_some_and(|at| at <= now);
        if store_due {
            self.next_retry = None;
        }
        let mut ready = Vec::new();
        self.take_written(&mut ready);
        self.store.turn(now, &mut self.answered);
        for index in self.answered.drain(..) {
            if let Some(Parked { since, asked, .. }) = self.parked.remove(&index) {
                ready.push((index, Retry { asked, ..Retry::new(Freshness::Checked, since) }));
            }
        }
        if self.parked.is_empty() || (loaded.is_none() && !store_due) {
            return ready;
        }
        self.parked.retain(|&index, parked| {
            let freshness = match (parked.step, loaded) {
                (Step::WaitForRegistry, Some(Loaded::Fresh)) => Freshness::Checked,
                (Step::WaitForRegistry, Some(Loaded::Failed)) => Freshness::Failed,
                (Step::WaitForStore, _) if store_due => Freshness::Checked,
                _ => return true,
            };
            ready.push((index, Retry::new(freshness, parked.since)));
            false
        });
        ready
    }

    /// When a busy store is asked again, or something is due in the store itself.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.next_retry.into_iter().chain(self.store.deadline()).min()
    }

    /// When the registry file is looked at.
    pub(super) fn refresh_at(&self) -> Option<Instant> {
        self.watch.next_check()
    }

    /// Ends what the requests of a turn shared; `connections` are open.
    pub(super) fn end_turn(&mut self, clock: &Clock, connections: usize) {
        self.store.end_tick();
        self.access.flush();
        if let Some(statsd) = &mut self.statsd {
            statsd.end_turn();
        }
        let Some(meters) = &mut self.meters else { return };
        meters.end_turn(connections, self.parked.len());
        if meters.next_measurement() <= clock.now {
            meters.measure(clock.now, self.watch.age(clock.now));
            if meters.freshness_due(clock.now) {
                measure_freshness(meters, self.watch.snapshot(), clock.wall);
            }
        }
    }

    /// When something is measured that no request brings along.
    pub(super) fn measure_at(&self) -> Option<Instant> {
        self.meters.as_ref().map(Meters::next_measurement)
    }

    /// Opens the log files again.
    pub(super) fn reopen_logs(&mut self) {
        self.access.reopen();
        crate::logging::logger::reopen();
    }
}

/// Sets the age of every view that was ever materialized.
fn measure_freshness(meters: &mut Meters, snapshot: &Snapshot, wall: Duration) {
    for view in snapshot.views() {
        if let Some(until) = view.materialized_until {
            let age = (wall.as_nanos() as i128 - until) / 1000;
            meters.freshness(&view.name, &snapshot.project, age as f64 / 1e6);
        }
    }
}

/// Opens the reading side of the online store; its connections are registered in `poll` from token `first_token` on.
pub(crate) fn open_store(
    settings: &Settings,
    store: &StoreConfig,
    tls: Option<Arc<rustls::ClientConfig>>,
    poll: &Poll,
    first_token: usize,
    waker: Arc<Waker>,
) -> io::Result<Box<dyn OnlineStore>> {
    Ok(match &store.online_store {
        OnlineStoreConfig::Sqlite { path } => Box::new(Sqlite::new(path, LocalZone::of_process())),
        OnlineStoreConfig::Redis(config) => {
            let limits =
                redis::Limits { deadline: settings.store_timeout, in_flight: settings.store_in_flight };
            let registry = poll.registry().try_clone()?;
            Box::new(redis::Redis::new(config, tls, &store.project, limits, registry, first_token, waker))
        }
    })
}
