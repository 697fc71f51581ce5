//! What operators see from outside: titles of processes, figures for statsd, the status page.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::net::UdpSocket;
use std::time::Duration;

use common::load::Load;
use common::{children, eventually, Client, Repo, Server};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

fn serve(args: &[&str]) -> Server {
    Server::start(Repo::copy_of("kitchen_sink"), &[&["--no-access-log"], args].concat())
}

/// What `ps` shows of a process.
fn title(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

#[test]
fn titles_name_role_and_state() {
    let server = serve(&["-w", "2", "--metrics", "--metrics-port", "0", "--metrics-host", "127.0.0.1"]);
    eventually("titles", || title(server.pid()) == "feast-prefork: master (running)");
    let count = |wanted: &str| children(server.pid()).iter().filter(|pid| title(**pid) == wanted).count();
    eventually("titles of workers", || count("feast-prefork: worker (serving)") == 2);
    assert_eq!(count("feast-prefork: metrics (serving)"), 1);
    // A worker with a connection that does not end says what it is waiting for.
    let mut client = server.client();
    client.send(b"POST /get-online-features HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{");
    let busy = || server.workers().into_iter().find(|pid| sockets(*pid) > 0);
    eventually("the connection is somewhere", || busy().is_some());
    kill(Pid::from_raw(busy().unwrap()), Signal::SIGTERM).unwrap();
    eventually("it drains", || count("feast-prefork: worker (draining)") == 1);
    server.signal(Signal::SIGTERM);
    eventually("the master, too", || title(server.pid()) == "feast-prefork: master (draining)");
}

/// Connections of a process, by the board of the kernel.
fn sockets(pid: i32) -> usize {
    let Ok(list) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // State 01 is an established connection.
    let established: Vec<&str> = table
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            (words.get(3) == Some(&"01")).then(|| words.get(9).copied()).flatten()
        })
        .collect();
    list.flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| {
            let name = link.to_string_lossy().into_owned();
            established.iter().any(|inode| name == format!("socket:[{inode}]"))
        })
        .count()
}

#[test]
fn the_environment_survives_a_title() {
    // Settings that stand in the environment are read again by a reload, when the title stands where it was.
    let long = "x".repeat(3000);
    let env = [("FEAST_PREFORK_CMD_ARGS", "--workers 3"), ("FEAST_PREFORK_TEST", &long)];
    let server = Server::start_with(Repo::copy_of("kitchen_sink"), &[], &env);
    eventually("a title", || title(server.pid()) == "feast-prefork: master (running)");
    let before = server.workers();
    assert_eq!(before.len(), 3);
    server.signal(Signal::SIGHUP);
    eventually("three new workers", || {
        let now = server.workers();
        now.len() == 3 && now.iter().all(|pid| !before.contains(pid))
    });
}

#[test]
fn statsd_gets_gunicorns_figures() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let address = receiver.local_addr().unwrap().to_string();
    let args = ["-w", "2", "--max-requests", "40", "--statsd-host", &address];
    let server = serve(&[&args[..], &["--statsd-prefix", "feast", "--dogstatsd-tags", "env:t"]].concat());
    let mut client = server.client();
    for _ in 0..200 {
        assert_eq!(client.get("/health").status, 200);
    }
    assert_eq!(client.get("/nowhere").status, 404);
    let mut buffer = [0; 2000];
    let (mut requests, mut good, mut missing, mut durations, mut workers) = (0, 0, 0, 0, false);
    let number = |line: &str, name: &str| -> Option<u64> {
        let rest = line.strip_prefix("feast.gunicorn.")?.strip_prefix(name)?.strip_prefix(':')?;
        assert!(rest.ends_with("|#env:t"), "{line}");
        rest.split('|').next()?.parse().ok()
    };
    eventually("all figures", || {
        while let Ok(length) = receiver.recv(&mut buffer) {
            for line in std::str::from_utf8(&buffer[..length]).unwrap().lines() {
                requests += number(line, "requests").unwrap_or(0);
                good += number(line, "request.status.200").unwrap_or(0);
                missing += number(line, "request.status.404").unwrap_or(0);
                durations += u64::from(line.starts_with("feast.gunicorn.request.duration:"));
                workers |= line == "feast.gunicorn.workers:2|g|#env:t";
            }
        }
        requests >= 201
    });
    assert_eq!((requests, good, missing, durations), (201, 200, 1, 201));
    assert!(workers);
}

#[test]
fn a_statsd_server_that_cannot_be_found_costs_its_figures_only() {
    let server = serve(&["--statsd-host", "statsd.invalid:8125"]);
    assert!(server.log().contains("--statsd-host statsd.invalid:8125: "), "{}", server.log());
    assert_eq!(server.client().get("/health").status, 200);
}

/// The port that serves metrics.
fn metrics_port(server: &Server) -> u16 {
    let log = server.log();
    let (_, rest) = log.split_once("Prometheus metrics server listening at: http://127.0.0.1:").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_request_that_moves_is_counted_once() {
    let args = ["-w", "1", "--max-requests", "0", "--metrics", "--metrics-port", "0"];
    let server = serve(&[&args[..], &["--metrics-host", "127.0.0.1"]].concat());
    let body = r#"{"features":["driver_stats:nickname"],"entities":{"driver_id":[1001]}}"#;
    let headers = [("content-type", "application/json")];
    let bytes = common::encode("POST", "/get-online-features", &headers, body.as_bytes());
    let mut client = server.client();
    let (first, rest) = bytes.split_at(bytes.len() - 10);
    client.send(first);
    for _ in 0..3 {
        let before = server.workers();
        server.signal(Signal::SIGHUP);
        eventually("a new worker", || {
            let now = server.workers();
            let only = now.iter().filter(|pid| title(**pid).contains("worker")).count() == 1;
            only && now.iter().all(|pid| !before.contains(pid) || title(*pid).contains("metrics"))
        });
    }
    client.send(rest);
    assert_eq!(client.receive("POST").unwrap().unwrap().status, 200);
    eventually("one request", || {
        let text = Client::connect(metrics_port(&server)).get("/metrics").text();
        text.lines().any(|line| line == "feast_prefork_http_requests_total 1.0")
    });
}

#[test]
fn the_status_page_shows_the_workers() {
    let server = serve(&["-w", "2", "--metrics", "--metrics-port", "0", "--metrics-host", "127.0.0.1"]);
    let port = metrics_port(&server);
    let load = Load::start(server.port, 4, 0);
    let mut client = Client::connect(port);
    let page = client.get("/status");
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    for pid in server.workers().into_iter().filter(|pid| title(*pid).contains("worker")) {
        assert!(page.text().contains(&format!("<td>{pid}<td class=\"serving\">")), "{}", page.text());
    }
    let text = page.text();
    assert!(text.contains(&format!("master {}, running", server.pid())) && text.contains("2 of 2 workers"));
    assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("<script"));
    // Rates are those of the time between two looks.
    eventually("a rate", || {
        let text = client.get("/status").text();
        let (_, rest) = text.split_once("<dt>requests/s</dt><dd>").unwrap();
        rest.split('<').next().unwrap().parse::<f64>().unwrap() > 0.0
    });
    let html = client.request("GET", "/", &[("accept", "text/html,*/*;q=0.8")], b"");
    assert!(html.text().starts_with("<!doctype html>"));
    assert!(client.get("/").text().starts_with("# HELP "));
    assert!(client.get("/metrics").text().starts_with("# HELP "));
    load.stop();
}
