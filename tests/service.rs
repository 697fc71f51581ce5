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

/// Runs `ctl`; returns exit code and what it printed.
fn ctl(socket: &std::path::Path, words: &[&str]) -> (Option<i32>, String) {
    let done =
        Command::new(common::binary()).arg("ctl").arg("--socket").arg(socket).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    (done.status.code(), text)
}

#[test]
fn the_control_socket_shows_and_tells() {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let args = ["--workers", "2", "--control-socket", socket.to_str().unwrap(), "--graceful-timeout", "1"];
    let mut server = Server::start(Repo::copy_of("kitchen_sink"), &args);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Somebody who says nothing keeps nobody waiting.
    let _silent = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let mut client = server.client();
    for _ in 0..3 {
        client.get("/health");
    }
    let status =
        || -> serde_json::Value { serde_json::from_str(&ctl(&socket, &["--json", "status"]).1).unwrap() };
    let workers = |status: &serde_json::Value, state: &str| {
        let list = status["workers"].as_array().unwrap();
        list.iter().filter(|worker| worker["state"] == state).count()
    };
    let seen = status();
    assert_eq!((&seen["pid"], &seen["phase"]), (&server.pid().into(), &"running".into()));
    let sum = |key: &str| -> u64 {
        status()["workers"].as_array().unwrap().iter().map(|worker| worker[key].as_u64().unwrap()).sum()
    };
    eventually("three requests on one connection", || (sum("requests"), sum("connections")) == (3, 1));
    let (code, table) = ctl(&socket, &["status"]);
    assert!(code == Some(0) && table.contains("2 of 2 workers") && table.contains("serving"), "{table}");
    assert!(table.lines().all(|line| line.len() <= 80), "{table}");
    let (code, list) = ctl(&socket, &["workers"]);
    assert_eq!(code, Some(0));
    assert!(list.trim_start().starts_with("PID"), "{list}");
    let top = Command::new(common::binary()).args(["top", "--socket"]).arg(&socket).output().unwrap();
    let text = String::from_utf8_lossy(&top.stdout).into_owned();
    assert!(top.status.success() && text.contains("requests/s") && text.contains("serving"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(ctl(&socket, &["ttin"]).0, Some(0));
    eventually("a third worker", || workers(&status(), "serving") == 3);
    assert_eq!(ctl(&socket, &["ttou"]).0, Some(0));
    eventually("two workers", || status()["workers"].as_array().unwrap().len() == 2);
    let before = server.workers();
    assert_eq!(ctl(&socket, &["reload"]).0, Some(0));
    eventually("other workers", || {
        server.workers().iter().all(|pid| !before.contains(pid)) && workers(&status(), "serving") == 2
    });
    let mut raw = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    raw.write_all(b"nonsense\n").unwrap();
    let mut said = String::new();
    raw.read_to_string(&mut said).unwrap();
    assert_eq!(said, "{\"error\":\"unknown command\"}\n");
    let mut endless = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let _ = endless.write_all(&vec![b'x'; 100_000]);
    assert_eq!(workers(&status(), "serving"), 2);
    drop(client);
    assert_eq!(ctl(&socket, &["stop"]).0, Some(0));
    assert!(server.wait().success());
    assert!(!socket.exists());
    let (code, text) = ctl(&socket, &["status"]);
    assert!(code == Some(1) && text.contains("start the server with --control-socket"), "{text}");
}
