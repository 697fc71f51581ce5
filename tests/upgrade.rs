//! A new binary takes over: under load, back again, and when it cannot start.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

use common::load::Load;
use common::{eventually, OnDrop, Repo, Server};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

fn ctl(socket: &Path, words: &[&str]) -> (Option<i32>, String) {
    let output =
        Command::new(common::binary()).arg("ctl").arg("--socket").arg(socket).args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn status(socket: &Path) -> serde_json::Value {
    serde_json::from_str(&ctl(socket, &["--json", "status"]).1).unwrap_or_default()
}

fn pid_in(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A server started from a copy of the binary, which can be replaced.
struct Setup {
    dir: tempfile::TempDir,
    server: Server,
}

impl Setup {
    fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(common::binary(), dir.path().join("feast-prefork")).unwrap();
        let (socket, pid) = (dir.path().join("control"), dir.path().join("pid"));
        let own =
            ["--no-access-log", "--control-socket", socket.to_str().unwrap(), "--pid", pid.to_str().unwrap()];
        let args = [&own[..], args].concat();
        let server = Server::start_program(
            &dir.path().join("feast-prefork"),
            Repo::copy_of("kitchen_sink"),
            &args,
            &[],
        );
        Self { dir, server }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Puts another program in the place of the binary.
    fn replace(&self, content: &[u8]) {
        use std::os::unix::fs::PermissionsExt;
        let new = self.path("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, self.path("feast-prefork")).unwrap();
    }
}

#[test]
fn an_upgrade_under_load_fails_nobody() {
    let mut setup =
        Setup::start(&["-w", "2", "--metrics", "--metrics-port", "0", "--metrics-host", "127.0.0.1"]);
    let old = setup.server.pid();
    let (socket, pid) = (setup.path("control"), setup.path("pid"));
    assert_eq!(pid_in(&pid), Some(old));
    let load = Load::start(setup.server.port, 6, 2);
    setup.replace(&fs::read(common::binary()).unwrap());
    let (code, text) = ctl(&socket, &["upgrade"]);
    assert_eq!(code, Some(0), "{text}\n{}", setup.server.log());
    let new = pid_in(&pid).unwrap();
    let _end = OnDrop(|| {
        let _ = kill(Pid::from_raw(new), Signal::SIGTERM);
    });
    assert_ne!(new, old);
    assert!(text.contains(&format!("(master {new}) has taken over from master {old}")), "{text}");
    setup.server.wait();
    assert!(!setup.path("pid.2").exists() && !setup.path("control.2").exists());
    load.more(2000);
    let counts = load.stop();
    assert_eq!(counts.failed.load(SeqCst), 0, "failed");
    assert_eq!(counts.refused.load(SeqCst), 0, "refused");
    assert_eq!(status(&socket)["pid"], new);
    // Totals go on where the old server's were.
    let log = setup.server.log();
    let port: u16 = log
        .split("Prometheus metrics server listening at: http://127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap();
    let answered = counts.answered.load(SeqCst);
    let text = common::Client::connect(port).get("/metrics").text();
    let total: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix("feast_prefork_http_requests_total "))
        .unwrap()
        .parse()
        .unwrap();
    assert!(total >= answered as f64, "{total} of {answered}");
    let directory = status(&socket)["metrics_directory"].as_str().unwrap().to_owned();
    assert!(Path::new(&directory).exists());
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    eventually("the new master ends", || !common::is_alive(new));
    assert!(!pid.exists() && !socket.exists());
    assert!(!Path::new(&directory).exists(), "the last master has removed the metrics");
}

#[test]
fn workers_come_back_when_the_new_master_ends() {
    let setup = Setup::start(&["-w", "2"]);
    setup.server.signal(Signal::SIGUSR2);
    let serving = |name: &str| -> usize {
        let list = status(&setup.path(name))["workers"].as_array().cloned().unwrap_or_default();
        list.iter().filter(|worker| worker["state"] == "serving").count()
    };
    eventually("the new master serves", || serving("control.2") == 2);
    setup.server.signal(Signal::SIGWINCH);
    eventually("the old workers have gone", || serving("control") == 0);
    // A reload that is refused says so, to whoever has asked.
    let yaml = setup.server.repo().path().join("feature_store.yaml");
    fs::rename(&yaml, yaml.with_extension("away")).unwrap();
    let (code, text) = ctl(&setup.path("control"), &["reload"]);
    assert!(code == Some(1) && text.contains("Error: Can't find feature repo configuration file"), "{text}");
    assert_eq!(serving("control"), 0);
    fs::rename(yaml.with_extension("away"), &yaml).unwrap();
    let new = pid_in(&setup.path("pid.2")).unwrap();
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    eventually("the old workers are back", || serving("control") == 2);
    assert!(setup.server.log().contains("ours come back"));
    assert_eq!(setup.server.client().get("/health").status, 200);
    assert_eq!(ctl(&setup.path("control"), &["reload"]), (Some(0), "reload\n".to_owned()));
}

#[test]
fn the_way_back() {
    let mut setup = Setup::start(&["-w", "2"]);
    let old = setup.server.pid();
    setup.server.signal(Signal::SIGUSR2);
    eventually("the new master writes its number", || pid_in(&setup.path("pid.2")).is_some());
    let new = pid_in(&setup.path("pid.2")).unwrap();
    eventually("the new master serves", || {
        status(&setup.path("control.2"))["workers"]
            .as_array()
            .is_some_and(|workers| workers.iter().filter(|worker| worker["state"] == "serving").count() == 2)
    });
    assert_eq!(pid_in(&setup.path("pid")), Some(old));
    // Neither makes a third one.
    setup.server.signal(Signal::SIGUSR2);
    setup.server.wait_for_log("USR2 signal ignored. Child exists.");
    kill(Pid::from_raw(new), Signal::SIGUSR2).unwrap();
    setup.server.wait_for_log("USR2 signal ignored. Parent exists.");
    // The old workers go and come back.
    let workers = || -> usize { status(&setup.path("control"))["workers"].as_array().map_or(0, Vec::len) };
    setup.server.signal(Signal::SIGWINCH);
    eventually("the old workers have gone", || workers() == 0);
    assert_eq!(setup.server.client().get("/health").status, 200);
    setup.server.signal(Signal::SIGHUP);
    eventually("the old workers are back", || workers() == 2);
    // The new master is sent away; the old one can try again.
    kill(Pid::from_raw(new), Signal::SIGQUIT).unwrap();
    setup.server.wait_for_log("this one goes on");
    assert!(!setup.path("pid.2").exists());
    assert_eq!(pid_in(&setup.path("pid")), Some(old));
    assert_eq!(setup.server.client().get("/health").status, 200);
    let (code, text) = ctl(&setup.path("control"), &["upgrade"]);
    assert_eq!(code, Some(0), "{text}");
    let third = pid_in(&setup.path("pid")).unwrap();
    setup.server.wait();
    kill(Pid::from_raw(third), Signal::SIGTERM).unwrap();
    eventually("the last master ends", || !common::is_alive(third));
}

#[test]
fn a_unix_socket_goes_with_the_last_master() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("api.sock");
    let bind = format!("unix:{}", file.display());
    let mut setup = Setup::start(&["-w", "1", "--bind", "127.0.0.1:0", "--bind", &bind]);
    let ask = || {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(&file).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.starts_with("HTTP/1.1 200")
    };
    for turn in 0..2 {
        let (code, text) = ctl(&setup.path("control"), &["upgrade"]);
        assert_eq!(code, Some(0), "{text}");
        if turn == 0 {
            setup.server.wait();
        }
        assert!(file.exists() && ask(), "turn {turn}");
    }
    let last = pid_in(&setup.path("pid")).unwrap();
    kill(Pid::from_raw(last), Signal::SIGTERM).unwrap();
    eventually("the last master ends", || !common::is_alive(last));
    assert!(!file.exists());
}

#[test]
fn a_binary_that_cannot_start_changes_nothing() {
    let mut setup = Setup::start(&["-w", "1"]);
    let old = setup.server.pid();
    setup.replace(b"#!/bin/sh\nexit 1\n");
    let (code, text) = ctl(&setup.path("control"), &["upgrade"]);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("master {old} goes on")), "{text}");
    setup.server.wait_for_log("this one goes on");
    setup.replace(b"not a program");
    setup.server.signal(Signal::SIGUSR2);
    setup.server.wait_for_log("the new binary cannot be started");
    setup.server.wait_for_log_count("this one goes on", 2);
    assert_eq!(setup.server.client().get("/health").status, 200);
    assert_eq!(pid_in(&setup.path("pid")), Some(old));
}

#[test]
fn the_service_manager_is_told_who_the_main_process_is() {
    use std::os::unix::net::UnixDatagram;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let control = dir.path().join("control");
    let mut server = Server::start_with(
        Repo::copy_of("kitchen_sink"),
        &["--control-socket", control.to_str().unwrap()],
        &[("NOTIFY_SOCKET", path.to_str().unwrap())],
    );
    let old = server.pid();
    let (code, text) = ctl(&control, &["upgrade"]);
    assert_eq!(code, Some(0), "{text}");
    let new = status(&control)["pid"].as_i64().unwrap() as i32;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while !said.iter().any(|line: &String| *line == format!("MAINPID={new}")) {
        let length = socket.recv(&mut buffer).unwrap();
        said.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
    }
    assert!(said.contains(&format!("MAINPID={old}")));
    assert!(!said.contains(&"STOPPING=1".to_owned()), "{said:?}");
    server.wait();
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    eventually("the new master ends", || !common::is_alive(new));
}
