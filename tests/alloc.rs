//! A request allocates the same number of times however many values it reads.
#![allow(missing_docs, unsafe_code, clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use feast_prefork::api::online::{get_online_features, Scratch};
use feast_prefork::api::{Answer, ApiRules, Context, Freshness, PlanCache, Step};
use feast_prefork::feature::zone::LocalZone;
use feast_prefork::online::sqlite::Sqlite;
use feast_prefork::online::OnlineStore;
use feast_prefork::registry::snapshot::SnapshotRules;
use feast_prefork::registry::{RegistryFile, Snapshot};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the caller of `alloc` promises.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as the caller of `dealloc` promises.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on unchanged.
        unsafe { System.dealloc(pointer, layout) }
    }

    // SAFETY: as the caller of `realloc` promises.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: passed on unchanged.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Service {
    snapshot: Arc<Snapshot>,
    plans: PlanCache,
    store: Sqlite,
    scratch: Scratch,
    answer: Answer,
}

impl Service {
    fn new(repo: &common::Repo) -> Self {
        let rules = SnapshotRules::default();
        let file = RegistryFile::new(repo.path().join("registry.db"), "kitchen_sink", rules);
        Self {
            snapshot: Arc::new(file.load(1).unwrap().0),
            plans: PlanCache::default(),
            store: Sqlite::new(&repo.path().join("online_store.db"), LocalZone::Utc),
            scratch: Scratch::default(),
            answer: Answer::default(),
        }
    }

    /// Answers one request; returns how often it allocated.
    fn request(&mut self, body: &[u8]) -> u64 {
        let before = COUNT.get();
        let mut cx = Context {
            snapshot: &self.snapshot,
            plans: &mut self.plans,
            store: &mut self.store,
            scratch: &mut self.scratch,
            rules: ApiRules { key_version: 3, ..ApiRules::default() },
            now_nanos: 0,
            freshness: Freshness::Unchecked,
            registry_changed: &mut || false,
            waiting_since: None,
            asked: &mut None,
            now: std::time::Instant::now(),
            meters: None,
            out_of_patience: false,
        };
        let step = get_online_features(body, None, &mut cx, &mut self.answer);
        assert_eq!(step, Step::Reply);
        self.store.end_tick();
        let used = COUNT.get() - before;
        assert_eq!(self.answer.status, 200, "{}", String::from_utf8_lossy(&self.answer.body));
        used
    }
}

fn body(features: usize, rows: usize) -> Vec<u8> {
    let names: Vec<String> = (0..features).map(|number| format!("\"wide:w{number:02}\"")).collect();
    let keys: Vec<String> = (0..rows).map(|row| (1001 + row).to_string()).collect();
    format!(r#"{{"features":[{}],"entities":{{"driver_id":[{}]}}}}"#, names.join(","), keys.join(","))
        .into_bytes()
}

#[test]
fn allocations_do_not_grow_with_the_values() {
    let repo = common::Repo::copy_of("kitchen_sink");
    let mut service = Service::new(&repo);
    let shapes = [body(1, 1), body(60, 1), body(60, 200), body(60, 2000)];
    // The first requests make plans and grow the buffers.
    for shape in shapes.iter().chain(&shapes) {
        service.request(shape);
    }
    let used: Vec<u64> = shapes.iter().map(|shape| service.request(shape)).collect();
    assert!(used.iter().all(|&count| count == used[0]), "{used:?}");
    assert!(used[0] <= 10, "{used:?}");
}
