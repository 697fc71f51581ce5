//! `feast-prefork ctl`: asks a running server through its control socket.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::{CtlArgs, CtlCommand};
use super::commands::say;
use crate::exit;
use crate::ipc::control::{ask, Request, Status};
use crate::master::StartError;
use crate::text::time::duration;

/// Asks, and prints the answer as a table, or as JSON.
pub(super) fn run(args: &CtlArgs) -> Result<i32, StartError> {
    let request = match args.command {
        CtlCommand::Status | CtlCommand::Workers => Request::Status,
        CtlCommand::Reload => Request::Reload,
        CtlCommand::Ttin => Request::Ttin,
        CtlCommand::Ttou => Request::Ttou,
        CtlCommand::Reopen => Request::Reopen,
        CtlCommand::Upgrade => return upgrade(args),
        CtlCommand::Stop => Request::Stop,
    };
    let line = ask(&args.socket, request).map_err(|error| unreachable_server(&args.socket, &error))?;
    if request != Request::Status {
        return said(&line, args.json);
    }
    if args.json {
        say(line.trim_end());
        return Ok(exit::OK);
    }
    let status: Status = serde_json::from_str(&line)
        .map_err(|error| StartError::new(exit::CONFIG, format!("an answer that makes no sense: {error}")))?;
    let table = table(&status);
    // Without the lines about the server.
    let from = if matches!(args.command, CtlCommand::Workers) { 3 } else { 0 };
    say(&table.lines().skip(from).collect::<Vec<_>>().join("\n"));
    Ok(exit::OK)
}

/// Shows whether the master does what it was told.
fn said(line: &str, json: bool) -> Result<i32, StartError> {
    let answer: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    let error = answer["error"].as_str().map(|text| StartError::new(exit::CONFIG, text));
    match (error, json) {
        (error, true) => {
            say(line.trim_end());
            Ok(error.map_or(exit::OK, |error| error.code))
        }
        (Some(error), false) => Err(error),
        (None, false) => {
            say(answer["accepted"].as_str().unwrap_or(line.trim_end()));
            Ok(exit::OK)
        }
    }
}

/// How long a new master may take until all its workers serve.
const UPGRADE_PATIENCE: Duration = Duration::from_mins(1);

/// The whole dance: the new master is started, watched until it serves, and then the old one is told to stop.
fn upgrade(args: &CtlArgs) -> Result<i32, StartError> {
    let failed = |text: String| StartError::new(exit::CONFIG, text);
    let status_of =
        |path: &Path| -> Option<Status> { serde_json::from_str(&ask(path, Request::Status).ok()?).ok() };
    let line =
        ask(&args.socket, Request::Status).map_err(|error| unreachable_server(&args.socket, &error))?;
    let old: Status = serde_json::from_str(&line)
        .map_err(|error| failed(format!("an answer that makes no sense: {error}")))?;
    let mut second = args.socket.clone().into_os_string();
    second.push(".2");
    let second = PathBuf::from(second);
    ask(&args.socket, Request::Upgrade).map_err(|error| unreachable_server(&args.socket, &error))?;
    let until = Instant::now() + UPGRADE_PATIENCE;
    let started = Instant::now();
    let new = loop {
        let serving = |status: &Status| {
            status.workers.iter().filter(|worker| worker.state == "serving").count() >= status.wanted
        };
        if let Some(status) = status_of(&second).filter(|status| status.pid != old.pid && serving(status)) {
            break status;
        }
        // A new master that cannot start is gone after a moment; the old one has said why in its log.
        let gone = started.elapsed() > Duration::from_secs(2) && !second.exists();
        if gone || Instant::now() > until {
            return Err(failed(format!(
                "the new master does not serve; master {} goes on: see its log",
                old.pid
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    ask(&args.socket, Request::Stop).map_err(|error| unreachable_server(&args.socket, &error))?;
    // The new master takes the old one's name when that has gone.
    while status_of(&args.socket).is_none_or(|status| status.pid != new.pid) {
        if Instant::now() > until + UPGRADE_PATIENCE {
            return Err(failed(format!("master {} serves, but master {} does not end", new.pid, old.pid)));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    say(&if args.json {
        serde_json::json!({ "from": old.pid, "to": new.pid, "version": new.version }).to_string()
    } else {
        format!("feast-prefork {} (master {}) has taken over from master {}", new.version, new.pid, old.pid)
    });
    Ok(exit::OK)
}

pub(super) fn unreachable_server(path: &Path, error: &std::io::Error) -> StartError {
    let text =
        format!("{}: {error}; start the server with --control-socket, and ask as its user", path.display());
    StartError::new(exit::CONFIG, text)
}

/// The status for people: fits 80 columns.
fn table(status: &Status) -> String {
    let mut lines = vec![
        format!(
            "feast-prefork {}  master {}  {}  up {}  {} of {} workers",
            status.version,
            status.pid,
            status.phase,
            duration(status.uptime_seconds),
            status.workers.iter().filter(|worker| worker.state == "serving").count(),
            status.wanted,
        ),
        status.listeners.join("  "),
        String::new(),
        format!(
            "{:>8} {:>5}  {:<9} {:>8} {:>12} {:>6} {:>9}",
            "PID", "SLOT", "STATE", "AGE", "REQUESTS", "CONNS", "MEMORY"
        ),
    ];
    lines.extend(status.workers.iter().map(|worker| {
        format!(
            "{:>8} {:>5}  {:<9} {:>8} {:>12} {:>6} {:>5} MiB",
            worker.pid,
            worker.slot,
            worker.state,
            duration(worker.age_seconds),
            worker.requests,
            worker.connections,
            worker.memory_kib / 1024,
        )
    }));
    for job in &status.jobs {
        let state = if job.pid == 0 { "waits".to_owned() } else { format!("{} %", job.percent) };
        lines.push(format!(
            "{:>8}   job  {:<9} {:>8} {}",
            job.pid,
            state,
            duration(job.age_seconds),
            job.what
        ));
    }
    if status.offline_pushes_waiting > 0 {
        lines.push(format!(
            "{} offline pushes with {} rows wait for their batch",
            status.offline_pushes_waiting, status.offline_rows_waiting
        ));
    }
    lines.join("\n")
}
