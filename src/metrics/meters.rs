//! What a worker counts. Its numbers belong to a slot that a later worker continues; its gauges to its pid.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::handles::{Files, Histogram, Number};
use super::mapped::FileKind;
use super::names;
use crate::os::mapfile::FileLock;
use crate::os::process::{self, Identity};

/// What is counted, and how sizes of requests become labels: `feature_server.metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Categories {
    /// Processor and memory of each worker.
    pub resource: bool,
    /// Requests and their latency.
    pub request: bool,
    /// Rows, values and store reads of online requests.
    pub online_features: bool,
    /// Pushes.
    pub push: bool,
    /// Materializations.
    pub materialization: bool,
    /// Age of each view's last materialization.
    pub freshness: bool,
    /// Reads of the offline store.
    pub offline_features: bool,
    /// A log line per online request.
    pub audit: bool,
    /// Upper bounds of the classes that numbers of features fall into.
    pub bins: Vec<u64>,
}

impl Default for Categories {
    fn default() -> Self {
        Self {
            resource: true,
            request: true,
            online_features: true,
            push: true,
            materialization: true,
            freshness: true,
            offline_features: true,
            audit: false,
            bins: vec![10, 50, 200],
        }
    }
}

impl Categories {
    /// The label for `count` features: `0`, the class it falls into, or the open class above the last.
    pub fn bin(&self, count: u64) -> String {
        if count == 0 {
            return "0".to_owned();
        }
        let mut lower = 1;
        for &upper in &self.bins {
            if count <= upper {
                return format!("{lower}-{upper}");
            }
            lower = upper + 1;
        }
        format!("{lower}+")
    }
}

/// Handlers whose requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /get-online-features`
    OnlineFeatures,
    /// `POST /push`
    Push,
    /// `POST /materialize`
    Materialize,
    /// `POST /materialize-incremental`
    MaterializeIncremental,
}

impl Endpoint {
    fn label(self) -> &'static str {
        match self {
            Self::OnlineFeatures => "/get-online-features",
            Self::Push => "/push",
            Self::Materialize => "/materialize",
            Self::MaterializeIncremental => "/materialize-incremental",
        }
    }
}

/// Sizes of an online request, as labels show them: features asked for, and the views they are in. `None` for
/// a service that does not exist.
pub type Sizes = Option<(u64, u64)>;

/// The label that tells the live gauges of processes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveLabel {
    /// The process number, as in the reference.
    Pid,
    /// The slot: the series goes on when a worker is replaced.
    Slot,
}

impl LiveLabel {
    /// The label of the process `pid` in `slot`, which is also the end of its files' names.
    pub fn id(self, slot: usize, pid: u32) -> String {
        match self {
            Self::Pid => pid.to_string(),
            Self::Slot => format!("w{slot}"),
        }
    }
}

/// How often processor and memory are measured, and how soon after the start for the first time.
const RESOURCE_PERIOD: Duration = Duration::from_secs(5);
const FIRST_MEASUREMENT: Duration = Duration::from_secs(1);
/// How often the age of views is measured.
const FRESHNESS_PERIOD: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct Meters {
    categories: Categories,
    slot: Files,
    live: Files,
    fixed: Fixed,
    requests: HashMap<(Endpoint, bool), Number, foldhash::fast::RandomState>,
    latencies: HashMap<(Endpoint, Sizes), Histogram, foldhash::fast::RandomState>,
    statuses: HashMap<String, [Option<Number>; 2], foldhash::fast::RandomState>,
    /// A new label set could not be stored; reported once.
    full: bool,
    measured: (Instant, Duration),
    next_resource: Instant,
    next_freshness: Instant,
    /// Keeps others off the slot as long as this process lives.
    _owner: FileLock,
}

/// Numbers that exist from the start.
#[derive(Debug)]
struct Fixed {
    cpu: Number,
    memory: Number,
    online_requests: Number,
    entity_count: Histogram,
    store_reads: Histogram,
    http_requests: Number,
    connections_accepted: Number,
    connections: Number,
    waiting: Number,
    registry_age: Number,
    registry_errors: Number,
    store_errors: Number,
}

impl Meters {
    /// Opens the files of slot `slot` in `dir`, and those of this process.
    pub fn open(
        dir: &Path,
        (slot, owner): (usize, FileLock),
        label: LiveLabel,
        categories: Categories,
        reader: &Identity,
    ) -> io::Result<Self> {
        let slot_id = format!("w{slot}");
        let live_id = label.id(slot, std::process::id());
        let mut slot = Files::given_to(dir, slot_id, reader);
        let mut live = Files::given_to(dir, live_id, reader);
        // What an earlier owner saw last is not true for ever.
        slot.clear(FileKind::Gauge("max"))?;
        live.clear(FileKind::Gauge("liveall"))?;
        let fixed = Fixed {
            cpu: live.get(&names::CPU, &[])?,
            memory: live.get(&names::MEMORY, &[])?,
            online_requests: slot.get(&names::ONLINE_REQUESTS, &[])?,
            entity_count: slot.histogram(&names::ENTITY_COUNT, &[])?,
            store_reads: slot.histogram(&names::STORE_READS, &[])?,
            http_requests: slot.get(&names::HTTP_REQUESTS, &[])?,
            connections_accepted: slot.get(&names::CONNECTIONS_ACCEPTED, &[])?,
            connections: live.get(&names::CONNECTIONS, &[])?,
            waiting: live.get(&names::WAITING, &[])?,
            registry_age: live.get(&names::REGISTRY_AGE, &[])?,
            registry_errors: slot.get(&names::REGISTRY_ERRORS, &[])?,
            store_errors: slot.get(&names::STORE_ERRORS, &[])?,
        };
        let now = Instant::now();
        let meters = Self {
            slot,
            live,
            fixed,
            requests: HashMap::default(),
            latencies: HashMap::default(),
            statuses: HashMap::default(),
            full: false,
            measured: (now, process::cpu_time()),
            next_resource: now + FIRST_MEASUREMENT,
            next_freshness: now,
            categories,
            _owner: owner,
        };
        if meters.categories.resource {
            meters.live.set(meters.fixed.memory, process::memory_percent());
        }
        Ok(meters)
    }

    /// True when a log line per online request is wanted.
    pub fn audits(&self) -> bool {
        self.categories.audit
    }

    /// Counts a request that a handler has ended with; `took` since it began.
    pub fn request(&mut self, endpoint: Endpoint, succeeded: bool, sizes: Sizes, took: Duration) {
        if !self.categories.request {
            return;
        }
        // Requests of one class share their series.
        let class = sizes.map(|(features, views)| (self.class(features), views));
        if !self.latencies.contains_key(&(endpoint, class)) {
            let count = sizes.map_or(String::new(), |(features, _)| self.categories.bin(features));
            let views = sizes.map_or(String::new(), |(_, views)| views.to_string());
            let made = self.slot.histogram(&names::REQUEST_LATENCY, &[endpoint.label(), &count, &views]);
            if let Some(made) = self.check(made) {
                self.latencies.insert((endpoint, class), made);
            }
        }
        if let Some(histogram) = self.latencies.get(&(endpoint, class)) {
            self.slot.observe(histogram, took.as_secs_f64());
        }
        let known = self.requests.get(&(endpoint, succeeded)).copied();
        let number = known.or_else(|| {
            let status = if succeeded { "success" } else { "error" };
            let made = self.slot.get(&names::REQUESTS, &[endpoint.label(), status]);
            let made = self.check(made)?;
            self.requests.insert((endpoint, succeeded), made);
            Some(made)
        });
        if let Some(number) = number {
            self.slot.add(number, 1.0);
        }
    }

    /// The number of the class that `features` fall into.
    fn class(&self, features: u64) -> u64 {
        match features {
            0 => 0,
            _ => 1 + self.categories.bins.iter().take_while(|&&upper| upper < features).count() as u64,
        }
    }

    /// Counts a push that succeeded.
    pub fn push(&mut self, source: &str, mode: &str) {
        if self.categories.push {
            let made = self.slot.get(&names::PUSHES, &[source, mode]);
            if let Some(number) = self.check(made) {
                self.slot.add(number, 1.0);
            }
        }
    }

    /// Counts an online request whose features were found; `rows` is the length of its first entity list.
    pub fn online_request(&mut self, rows: usize) {
        if self.categories.online_features {
            self.slot.add(self.fixed.online_requests, 1.0);
            self.slot.observe(&self.fixed.entity_count, rows as f64);
        }
    }

    /// Counts the read phase of an online request whose views could all be read.
    pub fn store_read(&mut self, took: Duration) {
        if self.categories.online_features {
            self.slot.observe(&self.fixed.store_reads, took.as_secs_f64());
        }
    }

    /// Counts the values of one view in one answer; a zero is not recorded.
    pub fn statuses(&mut self, view: &str, present: u64, not_found: u64) {
        if !self.categories.online_features {
            return;
        }
        if !self.statuses.contains_key(view) {
            self.statuses.insert(view.to_owned(), [None, None]);
        }
        for (index, label, count) in [(0, "present", present), (1, "not_found", not_found)] {
            if count == 0 {
                continue;
            }
            let known = self.statuses.get(view).and_then(|numbers| numbers[index]);
            let number = known.or_else(|| {
                let made = self.slot.get(&names::STATUSES, &[view, label]);
                let made = self.check(made)?;
                if let Some(numbers) = self.statuses.get_mut(view) {
                    numbers[index] = Some(made);
                }
                Some(made)
            });
            if let Some(number) = number {
                self.slot.add(number, count as f64);
            }
        }
    }

    /// Counts a request that the online store has failed.
    pub fn store_error(&mut self) {
        self.slot.add(self.fixed.store_errors, 1.0);
    }

    /// Counts an accepted connection.
    pub fn accepted(&mut self) {
        self.slot.add(self.fixed.connections_accepted, 1.0);
    }

    /// Counts a registry file that could not be used.
    pub fn registry_error(&mut self) {
        self.slot.add(self.fixed.registry_errors, 1.0);
    }

    /// Counts a request whose head was parsed.
    pub fn http_request(&mut self) {
        self.slot.add(self.fixed.http_requests, 1.0);
    }

    /// Shows what a turn of the loop has left: open connections and requests that wait.
    pub fn end_turn(&mut self, connections: usize, waiting: usize) {
        self.live.set(self.fixed.connections, connections as f64);
        self.live.set(self.fixed.waiting, waiting as f64);
    }

    /// When something is measured next.
    pub fn next_measurement(&self) -> Instant {
        self.next_resource.min(self.next_freshness)
    }

    /// Measures what is due. `registry_age`: since the registry file was last looked at.
    pub fn measure(&mut self, now: Instant, registry_age: Duration) {
        if now < self.next_resource {
            return;
        }
        self.next_resource = now + RESOURCE_PERIOD;
        self.live.set(self.fixed.registry_age, registry_age.as_secs_f64());
        if self.categories.resource {
            let (before, used_before) = self.measured;
            let used = process::cpu_time();
            let wall = now.saturating_duration_since(before).as_secs_f64().max(1e-3);
            let percent = used.saturating_sub(used_before).as_secs_f64() / wall * 100.0;
            self.live.set(self.fixed.cpu, (percent * 10.0).round() / 10.0);
            self.live.set(self.fixed.memory, process::memory_percent());
            self.measured = (now, used);
        }
    }

    /// True when the age of views is due; the next time is set.
    pub fn freshness_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_freshness;
        if due {
            self.next_freshness = now + FRESHNESS_PERIOD;
        }
        due && self.categories.freshness
    }

    /// Sets the age of one view.
    pub fn freshness(&mut self, view: &str, project: &str, age_seconds: f64) {
        let made = self.slot.get(&names::FRESHNESS, &[view, project]);
        if let Some(number) = self.check(made) {
            self.slot.set(number, age_seconds);
        }
    }

    /// A series that cannot be stored is left out; the others go on.
    fn check<T>(&mut self, made: io::Result<T>) -> Option<T> {
        made.map_err(|error| {
            if !std::mem::replace(&mut self.full, true) {
                log::warn!("metrics of this worker are incomplete: {error}");
            }
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_fall_into_classes() {
        let label =
            |bins: &[u64], count| Categories { bins: bins.to_vec(), ..Categories::default() }.bin(count);
        let default = [10, 50, 200];
        for (count, expected) in [
            (0, "0"),
            (1, "1-10"),
            (10, "1-10"),
            (11, "11-50"),
            (51, "51-200"),
            (200, "51-200"),
            (201, "201+"),
        ] {
            assert_eq!(label(&default, count), expected);
        }
        assert_eq!(label(&[], 7), "1+");
        assert_eq!([1, 2, 3, 4].map(|n| label(&[1, 3], n)), ["1-1", "2-3", "2-3", "4+"]);
    }

    #[test]
    fn the_next_owner_of_a_slot_counts_on() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let owner = FileLock::try_take(&dir.path().join(".w4.lock")).unwrap().unwrap();
            let slot = (4, owner);
            let nobody = Identity { uid: None, user: None, gid: None };
            let categories = Categories::default();
            let mut meters = Meters::open(dir.path(), slot, LiveLabel::Slot, categories, &nobody).unwrap();
            meters.online_request(3);
            meters.request(Endpoint::OnlineFeatures, true, Some((7, 1)), Duration::from_millis(1));
            meters.request(Endpoint::OnlineFeatures, false, None, Duration::from_millis(1));
        }
        let merged = crate::metrics::aggregate::merge(dir.path()).unwrap();
        let value = |name: &str| {
            let samples = merged.families.iter().flat_map(|family| &family.samples);
            samples.filter(|sample| sample.name == name).map(|sample| sample.value).sum::<f64>()
        };
        assert_eq!(value("feast_online_features_request_total"), 3.0);
        assert_eq!(value("feast_online_features_entity_count_sum"), 9.0);
        assert_eq!(value("feast_feature_server_request_total"), 6.0);
        assert_eq!(value("feast_feature_server_request_latency_seconds_count"), 6.0);
        // Counters, histograms, maxima, live gauges and the lock.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5);
    }
}
