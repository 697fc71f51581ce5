//! The parts of a read request, one by one: parsing HTTP, reading JSON, printing values, and a whole request
//! against the kitchen sink repository. `cargo bench`; with `-- --test` every bench runs once.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{criterion_group, criterion_main, Criterion};
use feast_prefork::api::json_in::{read_fast, Buffers};
use feast_prefork::api::online::{get_online_features, Scratch};
use feast_prefork::api::{Answer, ApiRules, Context, Freshness, PlanCache};
use feast_prefork::feature::value;
use feast_prefork::feature::zone::LocalZone;
use feast_prefork::http::{Limits, Parser};
use feast_prefork::metrics::meters::{Categories, LiveLabel, Meters};
use feast_prefork::online::sqlite::Sqlite;
use feast_prefork::online::OnlineStore;
use feast_prefork::os::mapfile::FileLock;
use feast_prefork::os::process::Identity;
use feast_prefork::registry::snapshot::SnapshotRules;
use feast_prefork::registry::RegistryFile;
use feast_prefork::text::pyfmt;

fn body(features: usize, rows: usize) -> String {
    let names: Vec<String> = (0..features).map(|number| format!("\"wide:w{number:02}\"")).collect();
    let keys: Vec<String> = (0..rows).map(|row| (1001 + row).to_string()).collect();
    format!(r#"{{"features":[{}],"entities":{{"driver_id":[{}]}}}}"#, names.join(","), keys.join(","))
}

fn parts(c: &mut Criterion) {
    let text = body(10, 10);
    let request = format!(
        "POST /get-online-features HTTP/1.1\r\nhost: 127.0.0.1:6566\r\nuser-agent: bench\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    c.bench_function("http: parse a request", |b| {
        b.iter(|| Parser::new().advance(black_box(request.as_bytes()), &Limits::default()));
    });
    let mut buffers = Buffers::default();
    c.bench_function("json: read a request of 10 x 10", |b| {
        b.iter(|| {
            let request = read_fast(black_box(text.as_bytes()), &mut buffers).unwrap();
            buffers = request.entities.into_buffers();
        });
    });
    let mut out = Vec::with_capacity(64);
    c.bench_function("value: an int64", |b| {
        b.iter(|| {
            out.clear();
            value::write(&mut out, black_box(&[0x20, 0xa0, 0x8d, 0x06]))
        });
    });
    c.bench_function("value: a double", |b| {
        b.iter(|| {
            out.clear();
            pyfmt::write_f64(&mut out, black_box(0.703_726_351_261_138_9));
        });
    });
}

fn requests(c: &mut Criterion) {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kitchen_sink");
    let file = RegistryFile::new(repo.join("registry.db"), "kitchen_sink", SnapshotRules::default());
    let snapshot = Arc::new(file.load(1).unwrap().0);
    let mut store = Sqlite::new(&repo.join("online_store.db"), LocalZone::Utc);
    let (mut plans, mut scratch, mut answer) = (PlanCache::default(), Scratch::default(), Answer::default());
    let dir = tempfile::tempdir().unwrap();
    let owner = FileLock::try_take(&dir.path().join("lock")).unwrap().unwrap();
    let nobody = Identity { uid: None, user: None, gid: None };
    let mut meters =
        Meters::open(dir.path(), (0, owner), LiveLabel::Slot, Categories::default(), &nobody).unwrap();
    for (features, rows, counted) in
        [1, 10, 60].into_iter().zip([1, 10, 100]).flat_map(|(f, r)| [(f, r, false), (f, r, true)])
    {
        let body = body(features, rows);
        let label = if counted { ", counted" } else { "" };
        c.bench_function(&format!("request: {features} x {rows}{label}"), |b| {
            b.iter(|| {
                let mut cx = Context {
                    snapshot: &snapshot,
                    plans: &mut plans,
                    store: &mut store,
                    scratch: &mut scratch,
                    rules: ApiRules { key_version: 3, ..ApiRules::default() },
                    now_nanos: 0,
                    freshness: Freshness::Unchecked,
                    registry_changed: &mut || false,
                    waiting_since: None,
                    asked: &mut None,
                    now: std::time::Instant::now(),
                    meters: counted.then_some(&mut meters),
                    out_of_patience: false,
                };
                let step = get_online_features(black_box(body.as_bytes()), None, &mut cx, &mut answer);
                store.end_tick();
                step
            });
        });
    }
}

criterion_group!(benches, parts, requests);
criterion_main!(benches);
