//! The process model of the shipped binary, under load and under signals.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::load::{Load, ANSWER, BODY};
use common::{children, eventually, is_alive, Client, Repo, Server};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

fn serve(args: &[&str]) -> Server {
    let args = [&["--no-access-log"], args].concat();
    Server::start(Repo::copy_of("kitchen_sink"), &args)
}

fn send_signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn set(pids: &[i32]) -> BTreeSet<i32> {
    pids.iter().copied().collect()
}

#[test]
fn recycling_loses_nothing_and_no_client_notices() {
    let server = serve(&["-w", "2", "--max-requests", "50", "--max-requests-jitter", "10"]);
    let load = Load::start(server.port, 6, 2);
    let mut seen = set(&server.workers());
    let start = load.answered();
    while load.answered() < start + 8000 {
        seen.extend(server.workers());
    }
    let counts = load.stop();
    assert_eq!(counts.failed.load(SeqCst), 0, "failed");
    assert_eq!(counts.reconnects.load(SeqCst), 0, "reconnects");
    assert_eq!(counts.refused.load(SeqCst), 0, "refused");
    assert!(seen.len() > 20, "only {} workers seen", seen.len());
    eventually("two workers are left", || server.workers().len() == 2);
}

#[test]
fn reloading_loses_nothing_and_replaces_everybody() {
    let server = serve(&["-w", "3"]);
    let load = Load::start(server.port, 6, 2);
    for _ in 0..4 {
        let before = set(&server.workers());
        server.signal(Signal::SIGHUP);
        eventually("all workers are new", || {
            let now = set(&server.workers());
            now.len() == 3 && now.is_disjoint(&before)
        });
        load.more(200);
    }
    let counts = load.stop();
    assert_eq!(counts.failed.load(SeqCst), 0, "failed");
    assert_eq!(counts.reconnects.load(SeqCst), 0, "reconnects");
    assert!(server.log().contains("Handling signal: hup") && server.log().contains("Hang up: Master"));
}

#[test]
fn workers_are_added_and_removed_without_loss() {
    let server = serve(&["-w", "1", "--max-requests", "200"]);
    let load = Load::start(server.port, 6, 2);
    for _ in 0..3 {
        server.signal(Signal::SIGTTIN);
    }
    eventually("four workers", || server.workers().len() == 4);
    load.more(500);
    for _ in 0..5 {
        server.signal(Signal::SIGTTOU);
        std::thread::sleep(Duration::from_millis(20));
    }
    eventually("one worker is left", || server.workers().len() == 1);
    load.more(300);
    let counts = load.stop();
    assert_eq!(counts.failed.load(SeqCst), 0, "failed");
    assert_eq!(counts.reconnects.load(SeqCst), 0, "reconnects");
}

#[test]
fn stopping_answers_what_is_under_way() {
    let mut server = serve(&["-w", "2", "--graceful-timeout", "5"]);
    let load = Load::start(server.port, 8, 0);
    let workers = server.workers();
    server.signal(Signal::SIGTERM);
    let status = server.wait();
    let counts = load.stop();
    assert_eq!(status.code(), Some(0));
    assert_eq!(counts.failed.load(SeqCst), 0, "failed");
    assert!(workers.iter().all(|&pid| !is_alive(pid)), "orphans");
    assert!(server.log().contains("Handling signal: term"));
    assert!(server.log().contains("Shutting down: Master"));
}

#[test]
fn connections_opened_before_a_reload_are_answered_after_it() {
    let server = serve(&["-w", "2"]);
    let mut silent: Vec<Client> = (0..8).map(|_| server.client()).collect();
    let mut half: Vec<Client> = (0..8).map(|_| server.client()).collect();
    let request = common::encode("POST", "/get-online-features", &[], BODY.as_bytes());
    for (index, client) in half.iter_mut().enumerate() {
        client.send(&request[..request.len() / 9 * (index + 1)]);
    }
    let before = set(&server.workers());
    server.signal(Signal::SIGHUP);
    eventually("all workers are new", || set(&server.workers()).is_disjoint(&before));
    eventually("two workers", || server.workers().len() == 2);
    for client in &mut silent {
        assert!(client.post("/get-online-features", BODY).text().contains(ANSWER));
    }
    for (index, client) in half.iter_mut().enumerate() {
        client.send(&request[request.len() / 9 * (index + 1)..]);
        let answer = client.receive("POST").unwrap().unwrap();
        assert!(answer.text().contains(ANSWER), "{}", answer.text());
    }
}

#[test]
fn a_killed_worker_loses_only_what_is_in_flight() {
    let server = serve(&["-w", "2"]);
    let load = Load::start(server.port, 8, 0);
    for round in 1..=3 {
        let victim = server.workers()[0];
        send_signal(victim, Signal::SIGKILL);
        eventually("it is replaced", || {
            let now = server.workers();
            now.len() == 2 && !now.contains(&victim)
        });
        load.more(300);
        assert_eq!(server.log().matches("was sent SIGKILL! Perhaps out of memory?").count(), round);
    }
    let counts = load.stop();
    let failed = counts.failed.load(SeqCst);
    assert!(failed <= 3 * 8, "{failed} failed: more than were connected");
}

#[test]
fn no_worker_outlives_the_master() {
    let server = serve(&["-w", "3"]);
    let mut idle = server.client();
    assert_eq!(idle.get("/health").status, 200);
    let workers = server.workers();
    assert_eq!(workers.len(), 3);
    server.signal(Signal::SIGKILL);
    eventually("all workers are gone", || workers.iter().all(|&pid| !is_alive(pid)));
    assert!(Client::try_connect(server.port).is_err(), "the port is still open");
}

#[test]
fn interrupt_and_quit_stop_at_once() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut server = serve(&["-w", "2"]);
        let mut idle = server.client();
        assert_eq!(idle.get("/health").status, 200);
        let start = Instant::now();
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(idle.is_closed());
    }
}

#[test]
fn a_second_signal_is_heard_while_draining() {
    let mut server = serve(&["-w", "1"]);
    let mut idle = server.client();
    assert_eq!(idle.get("/health").status, 200);
    server.signal(Signal::SIGTERM);
    server.wait_for_log("Handling signal: term");
    // Idle connections are kept for their next request.
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_alive(server.pid()));
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log().contains("Quick shutdown requested"));
}

#[test]
fn an_idle_connection_gets_its_last_answer_while_draining() {
    let mut server = serve(&["-w", "1"]);
    let mut idle = server.client();
    assert_eq!(idle.get("/health").status, 200);
    server.signal(Signal::SIGTERM);
    server.wait_for_log("Handling signal: term");
    eventually("new connections are refused", || Client::try_connect(server.port).is_err());
    let answer = idle.post("/get-online-features", BODY);
    assert!(answer.text().contains(ANSWER));
    assert!(answer.closes());
    assert_eq!(server.wait().code(), Some(0));
}

/// Sockets a process holds.
fn sockets(pid: i32) -> usize {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    fds.flatten()
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket")))
        .count()
}

#[test]
fn connections_are_spread_over_workers() {
    for pause in [Duration::ZERO, Duration::from_millis(2)] {
        let mut server = serve(&["-w", "4"]);
        server.wait_for_log_count("Application startup complete.", 4);
        let before: Vec<(i32, usize)> = server.workers().into_iter().map(|pid| (pid, sockets(pid))).collect();
        let mut clients: Vec<Client> = Vec::new();
        for _ in 0..64 {
            clients.push(server.client());
            std::thread::sleep(pause);
        }
        for client in &mut clients {
            assert_eq!(client.get("/health").status, 200);
        }
        let mut held: Vec<usize> = before.iter().map(|&(pid, base)| sockets(pid) - base).collect();
        held.sort_unstable();
        assert_eq!(held.iter().sum::<usize>(), 64);
        assert!(held[3] <= 20, "{held:?} at {pause:?}");
    }
}

#[test]
fn a_silent_worker_is_aborted_and_replaced() {
    let mut server = serve(&["-w", "1", "--timeout", "2"]);
    let victim = server.workers()[0];
    send_signal(victim, Signal::SIGSTOP);
    server.wait_for_log(&format!("[CRITICAL] WORKER TIMEOUT (pid:{victim})"));
    eventually("it is replaced", || server.workers().first().is_some_and(|&pid| pid != victim));
    eventually("requests are answered", || {
        Client::try_connect(server.port).is_ok_and(|mut client| client.get("/health").status == 200)
    });
    assert!(!server.log().contains("Perhaps out of memory"), "the master's own kill");
}

#[test]
fn a_bad_reload_changes_nothing() {
    let mut server = serve(&["-w", "1"]);
    let before = server.workers();
    let yaml = server.repo.path().join("feature_store.yaml");
    let good = fs::read_to_string(&yaml).unwrap();
    fs::write(&yaml, good.replace("sqlite", "bogus")).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for_log("online_store.type: online store type 'bogus' is not supported");
    assert_eq!(server.workers(), before);
    assert_eq!(server.client().get("/health").status, 200);
    fs::write(&yaml, good + "feast_prefork: {workers: 2}\n").unwrap();
    server.signal(Signal::SIGHUP);
    eventually("the new workers stay one, as the flag says", || {
        let now = server.workers();
        now.len() == 1 && now != before
    });
}

#[test]
fn workers_that_cannot_boot_stop_the_server_only_at_first() {
    let repo = Repo::copy_of("kitchen_sink");
    let logs = repo.path().join("logs");
    let file = logs.join("access.log");
    // Some limit of open files is enough for the master and not for a worker; which one depends on what the
    // test itself has open.
    let failed_to_boot = (8..24).any(|limit| {
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {limit}; exec timeout 2 \"$@\""))
            .arg("sh")
            .arg(common::binary())
            .arg("-c")
            .arg(repo.path())
            .args(["serve", "--port", "0", "-w", "3"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        output.status.code() == Some(3)
            && text.contains("exited with code 3.")
            && text.contains("Reason: Worker failed to boot.")
    });
    assert!(failed_to_boot, "no limit made a worker fail");

    fs::create_dir(&logs).unwrap();
    let mut server = Server::start(repo, &["-w", "2", "--access-logfile", file.to_str().unwrap()]);
    server.wait_for_log_count("Application startup complete.", 2);
    fs::remove_dir_all(&logs).unwrap();
    let victim = server.workers()[0];
    send_signal(victim, Signal::SIGKILL);
    server.wait_for_log_count("exited with code 3.", 3);
    assert_eq!(server.client().get("/health").status, 200, "the other worker serves on");
    fs::create_dir(&logs).unwrap();
    eventually("both workers are back", || server.workers().len() == 2);
}

#[test]
fn a_dying_successor_costs_no_connection() {
    let server = serve(&["-w", "1"]);
    let mut idle = server.client();
    assert_eq!(idle.get("/health").status, 200);
    let old = server.workers()[0];
    for _ in 0..5 {
        server.signal(Signal::SIGHUP);
        // The next child to appear is killed as early as it can be seen.
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline {
            if let Some(fresh) = children(server.pid()).into_iter().find(|&pid| pid != old) {
                let _ = kill(Pid::from_raw(fresh), Signal::SIGKILL);
                break;
            }
        }
    }
    eventually("one worker", || server.workers().len() == 1);
    // Either the old worker still holds it, or a successor that lived has got it.
    let mut fresh = server.client();
    assert_eq!(fresh.get("/health").status, 200);
}

#[test]
fn winch_without_a_terminal_stops_the_workers_until_hup() {
    let repo = Repo::copy_of("kitchen_sink");
    // A session of its own has no terminal; setsid becomes the server.
    let mut master = std::process::Command::new("setsid")
        .arg(common::binary())
        .arg("-c")
        .arg(repo.path())
        .args(["serve", "--port", "0", "-w", "2", "--no-access-log"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = master.id() as i32;
    eventually("two workers", || children(pid).len() == 2);
    send_signal(pid, Signal::SIGWINCH);
    eventually("no worker is left", || children(pid).is_empty());
    send_signal(pid, Signal::SIGHUP);
    eventually("workers are back", || children(pid).len() == 2);
    send_signal(pid, Signal::SIGTERM);
    assert_eq!(master.wait().unwrap().code(), Some(0));
}
