//! Under a service manager: what it is told, the sockets it opens, and the pid file.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{eventually, Client, Repo, Server, PATIENCE};
use nix::sys::signal::Signal;

/// Receives until a message holds `text`; returns that message.
fn hear(socket: &UnixDatagram, text: &str) -> String {
    let start = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        assert!(start.elapsed() < PATIENCE, "never told {text}");
        if let Ok(length) = socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.contains(text) {
                return message;
            }
        }
    }
}

#[test]
fn the_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")];
    let mut server = Server::start_with(Repo::copy_of("kitchen_sink"), &["--workers", "2"], &env);
    let ready = hear(&socket, "READY=1");
    assert!(ready.contains(&format!("MAINPID={}", server.pid())), "{ready}");
    hear(&socket, "WATCHDOG=1");
    hear(&socket, "WATCHDOG=1");
    server.signal(Signal::SIGHUP);
    let reloading = hear(&socket, "RELOADING=1");
    let micros: u128 =
        reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap().parse().unwrap();
    assert!(micros > 0);
    assert!(hear(&socket, "READY=1").contains("of 2 workers serving"));
    // A reload that is refused ends, too.
    std::fs::write(server.repo.path().join("feature_store.yaml"), "nonsense").unwrap();
    server.signal(Signal::SIGHUP);
    hear(&socket, "RELOADING=1");
    hear(&socket, "READY=1");
    server.signal(Signal::SIGTERM);
    hear(&socket, "STOPPING=1");
    assert!(server.wait().success());
}

#[test]
fn sockets_come_from_systemd() {
    let repo = Repo::copy_of("kitchen_sink");
    let port = common::redis::free_port();
    let metrics = common::redis::free_port();
    let mut child = Command::new("systemd-socket-activate")
        .args(["-l", &format!("127.0.0.1:{port}"), "-l", &format!("127.0.0.1:{metrics}")])
        .args(["--fdname=http:metrics", common::binary(), "-c"])
        .arg(repo.path())
        .args(["serve", "--workers", "2", "--metrics", "--port", "1", "--graceful-timeout", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("systemd-socket-activate is missing: run scripts/test, which installs it");
    // The first connection starts the server, and waits for it.
    eventually("the socket", || Client::try_connect(port).is_ok());
    let body = r#"{"features":["driver_stats:rating"],"entities":{"driver_id":[1001]}}"#;
    let mut client = Client::connect(port);
    assert_eq!(client.post("/get-online-features", body).status, 200);
    let scraped = Client::connect(metrics).get("/metrics").text();
    assert!(scraped.contains("feast_online_features_request_total 1.0"));
    // Its pid is that of the activator: it was executed in its place.
    let master = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(master, Signal::SIGHUP).unwrap();
    assert_eq!(client.post("/get-online-features", body).status, 200);
    nix::sys::signal::kill(master, Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_pid_file_comes_and_goes_with_the_master() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.pid");
    let args = ["--pid", path.to_str().unwrap(), "--max-requests", "5", "--max-requests-jitter", "0"];
    let mut server = Server::start(Repo::copy_of("kitchen_sink"), &args);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", server.pid()));
    let mut client = server.client();
    for _ in 0..40 {
        client.get("/health");
    }
    assert!(path.exists(), "a recycled worker leaves it alone");
    let repo = Repo::copy_of("kitchen_sink");
    let second = Command::new(common::binary())
        .arg("-c")
        .arg(repo.path())
        .args(["serve", "--port", "0"])
        .args(args)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains(&format!("Already running on PID {}", server.pid())), "{text}");
    drop(client);
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(!path.exists());
}

#[test]
fn the_units_are_valid_and_hardened() {
    let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let dir = tempfile::tempdir().unwrap();
    // Verified with a program that exists here; everything else is the unit's.
    let unit = dir.path().join("feast-prefork.service");
    let text = std::fs::read_to_string(config.join("feast-prefork.service")).unwrap();
    std::fs::write(&unit, text.replace("/usr/bin/feast-prefork", common::binary())).unwrap();
    std::fs::copy(config.join("feast-prefork.socket"), dir.path().join("feast-prefork.socket")).unwrap();
    for name in ["feast-prefork.service", "feast-prefork.socket"] {
        let done = Command::new("systemd-analyze").arg("verify").arg(dir.path().join(name)).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success() && !said.contains("feast-prefork"), "{name}: {said}");
    }
    let done = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=30", "--no-pager"])
        .arg(&unit)
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{}\n{table}", String::from_utf8_lossy(&done.stderr));
}
