//! Metrics of a running server: scraped over HTTP, read by the Python client, through recycles and deaths.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use common::{children, eventually, is_alive, python, Client, Repo, Server};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

type Samples = BTreeMap<String, f64>;

const BODY: &str = r#"{"features":["driver_stats:rating"],"entities":{"driver_id":[1001,1002]}}"#;
const TOTAL: &str = "feast_online_features_request_total{}";
const REQUESTS: &str =
    r#"feast_feature_server_request_total{endpoint="/get-online-features",status="success"}"#;

struct Metered {
    server: Server,
    port: u16,
    dir: tempfile::TempDir,
}

/// Serves with metrics into a directory of its own.
fn serve(repo: Repo, args: &[&str]) -> Metered {
    let dir = tempfile::tempdir().unwrap();
    let args = [&["--metrics", "--metrics-port", "0", "--no-access-log"], args].concat();
    let env = [("PROMETHEUS_MULTIPROC_DIR", dir.path().to_str().unwrap())];
    let server = Server::start_with(repo, &args, &env);
    let port = metrics_port(&server);
    Metered { server, port, dir }
}

fn metrics_port(server: &Server) -> u16 {
    let log = server.log();
    let line = log.split("metrics server listening at: http://").nth(1).unwrap();
    line.split(" (").next().unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

/// The samples of an exposition, labels as the Python side prints them.
fn parse(text: &str) -> Samples {
    let mut samples = Samples::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let name = if name.ends_with('}') { name.to_owned() } else { format!("{name}{{}}") };
        let value = match value {
            "+Inf" => f64::INFINITY,
            other => other.parse().unwrap(),
        };
        samples.insert(name, value);
    }
    samples
}

fn scrape(port: u16) -> Samples {
    let answer = Client::connect(port).get("/metrics");
    assert_eq!(answer.status, 200);
    parse(&answer.text())
}

/// The real Python client on the same directory.
struct Collector {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Collector {
    fn start(dir: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/collector.py");
        let mut child = Command::new(python())
            .arg(script)
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    fn collect(&mut self) -> Samples {
        self.input.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("the Python client can read the directory")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Equal but for the order in which floating-point numbers were added.
fn assert_same(ours: &Samples, theirs: &Samples) {
    assert!(ours.keys().eq(theirs.keys()), "{:?}\n{:?}", ours.keys(), theirs.keys());
    for (name, value) in ours {
        let other = theirs[name];
        assert!((value - other).abs() <= 1e-9 * value.abs(), "{name}: {value} {other}");
    }
}

/// Counters and histograms, without what changes while nobody asks.
fn cumulative(samples: &Samples) -> Samples {
    samples
        .iter()
        .filter(|(name, _)| !name.contains("pid=") && !name.starts_with("feast_prefork_worker"))
        .filter(|(name, _)| !name.starts_with("feast_feature_freshness"))
        .map(|(name, value)| (name.clone(), *value))
        .collect()
}

fn value(samples: &Samples, name: &str) -> f64 {
    samples.get(name).copied().unwrap_or(0.0)
}

#[test]
fn totals_equal_the_requests_while_workers_come_and_go() {
    let metered = serve(
        Repo::copy_of("kitchen_sink"),
        &["--workers", "3", "--max-requests", "20", "--max-requests-jitter", "5"],
    );
    let mut python = Collector::start(metered.dir.path());
    let api = metered.server.port;
    let (sent, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut before = Samples::new();
    for round in 0..8 {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = Client::connect(api);
                        for _ in 0..50 {
                            sent.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(client.post("/get-online-features", BODY).status, 200);
                            answered.fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            // While they run: never less than was answered before, never more than was sent.
            while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                for ours in [true, false] {
                    let least = answered.load(Ordering::SeqCst) as f64;
                    let seen = if ours { scrape(metered.port) } else { python.collect() };
                    let most = sent.load(Ordering::SeqCst) as f64;
                    for name in [TOTAL, REQUESTS] {
                        let total = value(&seen, name);
                        assert!((least..=most).contains(&total), "{name}: {least} {total} {most}");
                    }
                    for (name, was) in &before {
                        // But for the order in which files were added up.
                        assert!(value(&seen, name) >= *was * (1.0 - 1e-12), "{name} went back");
                    }
                    before = cumulative(&seen);
                }
            }
        });
        let (ours, theirs) = (scrape(metered.port), python.collect());
        assert_same(&cumulative(&ours), &cumulative(&theirs));
        let total = answered.load(Ordering::SeqCst) as f64;
        assert_eq!(value(&ours, TOTAL), total);
        assert_eq!(value(&ours, "feast_online_features_entity_count_sum{}"), 2.0 * total);
        assert_eq!(value(&ours, "feast_prefork_http_requests_total{}"), total);
        // Deaths of every kind between the rounds.
        let victim = Pid::from_raw(*metered.server.workers().iter().max().unwrap());
        let scraper = Pid::from_raw(*metered.server.workers().iter().min().unwrap());
        match round {
            1 | 5 => {
                let signal = if round == 1 { Signal::SIGKILL } else { Signal::SIGTERM };
                kill(victim, signal).unwrap();
                eventually("its end", || !is_alive(victim.as_raw()));
            }
            2 => metered.server.signal(Signal::SIGHUP),
            3 => metered.server.signal(Signal::SIGTTIN),
            4 => metered.server.signal(Signal::SIGTTOU),
            6 => {
                kill(scraper, Signal::SIGKILL).unwrap();
                eventually("another metrics server", || {
                    Client::try_connect(metered.port).is_ok_and(|mut client| client.get("/").status == 200)
                });
            }
            _ => {}
        }
    }
    // Three workers, a fourth for a while, their successors, and the master: not one file per recycle.
    let recycled = value(&scrape(metered.port), r#"feast_prefork_worker_exits_total{reason="recycled"}"#);
    assert!(recycled >= 10.0, "{recycled}");
    let files = std::fs::read_dir(metered.dir.path()).unwrap().flatten();
    let cumulative = files.filter(|f| f.file_name().to_string_lossy().starts_with("counter_w")).count();
    assert!(cumulative <= 9, "{cumulative}");
}

#[test]
fn live_gauges_follow_the_processes() {
    let metered = serve(Repo::copy_of("kitchen_sink"), &["--workers", "2"]);
    let cpu = |port| {
        let samples = scrape(port);
        samples.keys().filter(|name| name.starts_with("feast_feature_server_cpu_usage{")).cloned().collect()
    };
    let names = |server: &Server| -> Vec<String> {
        let mut workers = server.workers();
        // The eldest child is the metrics server.
        workers.sort_unstable();
        let mut names: Vec<String> = workers[1..]
            .iter()
            .map(|pid| format!("feast_feature_server_cpu_usage{{pid=\"{pid}\"}}"))
            .collect();
        names.sort();
        names
    };
    eventually("two gauges", || -> bool {
        let shown: Vec<String> = cpu(metered.port);
        shown == names(&metered.server)
    });
    let victim = *metered.server.workers().iter().max().unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    eventually("the dead one's gauge goes", || -> bool {
        let shown: Vec<String> = cpu(metered.port);
        shown.len() == 2 && !shown.iter().any(|name| name.contains(&victim.to_string()))
    });
    let samples = scrape(metered.port);
    assert_eq!(value(&samples, r#"feast_prefork_worker_exits_total{reason="killed"}"#), 1.0);
    assert_eq!(value(&samples, r#"feast_prefork_workers{state="serving"}"#), 2.0);
}

#[test]
fn labels_tell_sizes_and_outcomes() {
    let metered = serve(Repo::copy_of("kitchen_sink"), &["--workers", "1"]);
    let mut client = metered.server.client();
    let ask = |client: &mut Client, body: &str| client.post("/get-online-features", body).status;
    assert_eq!(ask(&mut client, BODY), 200);
    assert_eq!(ask(&mut client, r#"{"feature_service":"nope","entities":{"driver_id":[1]}}"#), 404);
    assert_eq!(ask(&mut client, r#"{"features":["nope:a","nope:b"],"entities":{"driver_id":[1,2,3]}}"#), 404);
    assert_eq!(ask(&mut client, r#"{"features":["noColon"],"entities":{"driver_id":[1]}}"#), 500);
    assert_eq!(ask(&mut client, r#"{"features":[],"entities":{}}"#), 500);
    // Not counted: refused before the handler, or another route.
    assert_eq!(ask(&mut client, "{"), 422);
    assert_eq!(client.get("/health").status, 200);
    assert_eq!(client.get("/nowhere").status, 404);
    let samples = scrape(metered.port);
    let requests = |status: &str| {
        value(
            &samples,
            &format!(
                r#"feast_feature_server_request_total{{endpoint="/get-online-features",status="{status}"}}"#
            ),
        )
    };
    assert_eq!((requests("success"), requests("error")), (1.0, 4.0));
    let sized = |count: &str, views: &str| {
        value(
            &samples,
            &format!(
                "feast_feature_server_request_latency_seconds_count{{endpoint=\"/get-online-features\",\
                 feature_count=\"{count}\",feature_view_count=\"{views}\"}}"
            ),
        )
    };
    assert_eq!(
        (sized("", ""), sized("1-10", "1"), sized("1-10", "0"), sized("0", "0")),
        (1.0, 2.0, 1.0, 1.0)
    );
    assert_eq!(value(&samples, TOTAL), 4.0);
    assert_eq!(value(&samples, "feast_online_features_entity_count_sum{}"), 6.0);
    assert_eq!(value(&samples, "feast_feature_server_online_store_read_duration_seconds_count{}"), 1.0);
    let found = r#"feast_online_features_status_total{feature_view="driver_stats",status="present"}"#;
    assert_eq!(value(&samples, found), 2.0);
    assert_eq!(value(&samples, "feast_prefork_http_requests_total{}"), 8.0);
}

#[test]
fn scrapes_follow_http() {
    let metered = serve(Repo::copy_of("kitchen_sink"), &["--workers", "1"]);
    // Somebody who says nothing, and somebody who never reads, keep nobody waiting.
    let _idle = Client::connect(metered.port);
    let mut deaf = Client::connect(metered.port);
    for _ in 0..200 {
        deaf.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    }
    let mut client = Client::connect(metered.port);
    let get = client.get("/any/path?x=1");
    assert_eq!(get.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(get.text().contains("# TYPE feast_online_features_request_total counter\n"));
    let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                      text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    let open = client.request("GET", "/metrics", &[("Accept", prometheus)], b"");
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8")
    );
    assert!(open.text().ends_with("# EOF\n"));
    let packed = client.request("GET", "/metrics", &[("Accept-Encoding", "br, GZip;q=0.1")], b"");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed.body[..]).read_to_string(&mut text).unwrap();
    assert!(text.contains("feast_online_features_request_total 0.0\n"));
    let head = client.request("HEAD", "/metrics", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_ne!(head.header("content-length"), Some("0"));
    let options = client.request("OPTIONS", "/metrics", &[], b"");
    assert_eq!((options.status, options.header("allow")), (200, Some("OPTIONS,GET")));
    let post = client.request("POST", "/metrics", &[], b"x");
    assert_eq!(post.text(), "# HTTP 405 Method Not Allowed: POST; use OPTIONS or GET\n");
    assert_eq!(client.get("/favicon.ico").body.len(), 0);
    let one = client.get("/metrics?name[]=feast_online_features_request_total");
    assert_eq!(one.text().lines().last(), Some("feast_online_features_request_total 0.0"));
    assert_eq!(one.text().lines().count(), 3);
    let old = client.request("GET", "/", &[("connection", "close")], b"");
    assert!(old.status == 200 && client.is_closed());
    let mut garbage = Client::connect(metered.port);
    garbage.send(b"\x16\x03\x01nonsense\r\n\r\n");
    assert_eq!(garbage.receive("GET").unwrap().unwrap().status, 400);
}

#[test]
fn a_damaged_file_costs_one_line() {
    let mut metered = serve(Repo::copy_of("kitchen_sink"), &["--workers", "1"]);
    std::fs::write(metered.dir.path().join("counter_77.db"), b"\xff\xff\xff\x7fgarbage").unwrap();
    std::fs::write(metered.dir.path().join("counter_78.db"), b"").unwrap();
    for _ in 0..3 {
        assert!(scrape(metered.port).contains_key(TOTAL));
    }
    metered.server.wait_for_log("counter_77.db: damaged");
    assert_eq!(metered.server.log().matches("damaged").count(), 1);
    // A slot whose file is damaged starts anew, and the old file is kept.
    metered.server.client().post("/get-online-features", BODY);
    std::fs::write(metered.dir.path().join("counter_w1.db"), b"\xff\xff\xff\x7fgarbage").unwrap();
    metered.server.signal(Signal::SIGTTIN);
    metered.server.wait_for_log("set aside");
    assert_eq!(value(&scrape(metered.port), TOTAL), 1.0);
}

#[test]
fn nothing_is_left_behind_and_nothing_is_made_when_off() {
    let tmp = tempfile::tempdir().unwrap();
    let tmpdir = [("TMPDIR", tmp.path().to_str().unwrap())];
    let count = || std::fs::read_dir(tmp.path()).unwrap().count();
    let args = ["--metrics", "--metrics-port", "0", "--metrics-host", "127.0.0.1"];
    let mut server = Server::start_with(Repo::copy_of("kitchen_sink"), &args, &tmpdir);
    assert_eq!((count(), children(server.pid()).len()), (1, 2));
    let port = metrics_port(&server);
    assert!(scrape(port).contains_key(TOTAL));
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert_eq!(count(), 0);
    assert!(Client::try_connect(port).is_err());
    let server = Server::start_with(Repo::copy_of("kitchen_sink"), &[], &tmpdir);
    assert_eq!((count(), children(server.pid()).len()), (0, 1));
}

#[test]
fn the_file_switches_metrics_on_and_chooses_them() {
    let repo = Repo::copy_of("kitchen_sink");
    let path = repo.path().join("feature_store.yaml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str(
        "\nfeature_server:\n  type: local\n  metrics: {enabled: true, request: false, audit_logging: true, \
         feature_count_bins: [1, 2]}\n",
    );
    std::fs::write(&path, text).unwrap();
    let mut server = Server::start(repo, &["--metrics-port", "0"]);
    server.client().post("/get-online-features", BODY);
    let samples = scrape(metrics_port(&server));
    assert_eq!(value(&samples, TOTAL), 1.0);
    assert!(!samples.keys().any(|name| name.starts_with("feast_feature_server_request")));
    server.wait_for_log("\"requestor_id\":\"anonymous\",\"entity_keys\":[\"driver_id\"],\"entity_count\":2,");
    let shown = "\"feature_views\":[\"driver_stats\"],\"feature_count\":1,\"status\":\"success\"";
    server.wait_for_log(shown);
}

#[test]
fn a_port_that_is_taken_stops_the_start() {
    let taken = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let repo = Repo::copy_of("kitchen_sink");
    let done = Command::new(common::binary())
        .arg("-c")
        .arg(repo.path())
        .args(["serve", "--port", "0", "--metrics", "--metrics-port", &port])
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1));
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    let line = text.lines().last().unwrap();
    assert!(line.contains("metrics: Can't listen on *:") && line.contains("--metrics-port"), "{text}");
}
