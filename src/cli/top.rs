//! `top`: what the workers of a running server do, live on a terminal, once elsewhere.
//!
//! Everything comes from the master's scoreboard and, when metrics are on, from the metric files: no worker is asked.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::termios::{tcgetattr, tcsetattr, LocalFlags, SetArg, Termios};

use super::args::TopArgs;
use super::commands::say;
use super::ctl::unreachable_server;
use crate::exit;
use crate::ipc::control::{ask, Request, Status};
use crate::master::StartError;
use crate::metrics::aggregate::Merger;
use crate::metrics::figures::Figures;
use crate::text::time::duration;

/// Columns and lines of the terminal, or of a small one.
fn size() -> (usize, usize) {
    terminal_size::terminal_size()
        .map_or((80, 24), |(width, height)| (usize::from(width.0), usize::from(height.0).max(8)))
}

/// One look at the server.
struct Look {
    status: Status,
    figures: Option<Figures>,
    at: Instant,
}

impl Look {
    fn take(socket: &Path, merger: &mut Merger) -> Result<Self, StartError> {
        let line = ask(socket, Request::Status).map_err(|error| unreachable_server(socket, &error))?;
        let status: Status = serde_json::from_str(&line).map_err(|error| {
            StartError::new(exit::CONFIG, format!("an answer that makes no sense: {error}"))
        })?;
        let merged = status.metrics_directory.as_ref().and_then(|dir| merger.merge(Path::new(dir)).ok());
        let figures = merged.map(|merged| Figures::of(&merged.families));
        Ok(Self { status, figures, at: Instant::now() })
    }
}

/// Shows the server until `q`, Ctrl-C or the end of the server.
pub(super) fn top(args: &TopArgs) -> Result<i32, StartError> {
    let mut merger = Merger::default();
    let mut before = Look::take(&args.socket, &mut merger)?;
    let live = std::io::stdout().is_terminal() && !args.once;
    if !live {
        std::thread::sleep(Duration::from_millis(500));
        let now = Look::take(&args.socket, &mut merger)?;
        say(&screen(&before, &now, usize::MAX));
        return Ok(exit::OK);
    }
    let _keys = Keys::quiet();
    // An empty screen of its own; what was there comes back.
    print("\x1b[?1049h\x1b[?25l");
    let ended = loop {
        if pressed(Duration::from_secs(1)) {
            break Ok(exit::OK);
        }
        match Look::take(&args.socket, &mut merger) {
            Ok(now) => {
                let (width, height) = size();
                let text = screen(&before, &now, height);
                let lines: Vec<&str> =
                    text.lines().map(|line| &line[..line.floor_char_boundary(width)]).collect();
                let text = lines.join("\x1b[K\r\n");
                print(&format!("\x1b[H{text}\x1b[K\x1b[J"));
                before = now;
            }
            Err(error) => break Err(error),
        }
    };
    print("\x1b[?25h\x1b[?1049l");
    ended
}

fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The terminal as it was, given back at the end.
struct Keys(Option<Termios>);

impl Keys {
    /// Keys arrive at once and are not shown; Ctrl-C is a key like `q`.
    fn quiet() -> Self {
        let stdin = std::io::stdin();
        let old = tcgetattr(&stdin).ok();
        if let Some(mut new) = old.clone() {
            new.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
            let _ = tcsetattr(&stdin, SetArg::TCSANOW, &new);
        }
        Self(old)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, old);
        }
    }
}

/// Waits; true when somebody wants to leave.
fn pressed(wait: Duration) -> bool {
    let stdin = std::io::stdin();
    let until = Instant::now() + wait;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        if !matches!(poll(&mut fds, timeout), Ok(1..)) {
            return false;
        }
        let mut key = [0];
        match nix::unistd::read(&stdin, &mut key) {
            Ok(0) | Err(_) => return true,
            Ok(_) if [b'q', b'Q', 3, 4, 27].contains(&key[0]) => return true,
            Ok(_) => {}
        }
    }
}

/// The text, at most `height` lines of 80 columns.
fn screen(before: &Look, now: &Look, height: usize) -> String {
    let status = &now.status;
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let rate_of = |pid: i32, requests: u64| {
        let then = before.status.workers.iter().find(|worker| worker.pid == pid);
        requests.saturating_sub(then.map_or(0, |worker| worker.requests)) as f64 / seconds
    };
    let serving = status.workers.iter().filter(|worker| worker.state == "serving").count();
    let memory: u64 = status.workers.iter().map(|worker| worker.memory_kib).sum();
    let connections: u32 = status.workers.iter().map(|worker| worker.connections).sum();
    let mut lines = vec![format!(
        "feast-prefork {}  master {}  {}  up {}  {serving} of {} workers",
        status.version,
        status.pid,
        status.phase,
        duration(status.uptime_seconds),
        status.wanted
    )];
    match (&now.figures, &before.figures) {
        (Some(figures), Some(earlier)) => {
            let recent = figures.since(earlier);
            lines.push(format!(
                "{:.0} requests/s  {:.0} errors/s  {connections} connections  {} MiB  {:.0} recycled",
                recent.requests / seconds,
                recent.errors / seconds,
                memory / 1024,
                figures.recycled
            ));
            for (name, times) in [("handler", &recent.handler), ("store", &recent.store)] {
                let (p50, p99) = (times.quantile(0.5), times.quantile(0.99));
                lines.push(format!("{name:<8} mean {:>8}   p50 {p50:>8}   p99 {p99:>8}", times.mean()));
            }
        }
        _ => {
            let rate: f64 = status.workers.iter().map(|worker| rate_of(worker.pid, worker.requests)).sum();
            lines.push(format!(
                "{rate:.0} requests/s  {connections} connections  {} MiB   (latencies need --metrics)",
                memory / 1024
            ));
        }
    }
    for job in &status.jobs {
        lines.push(format!("job {}  {} %  {}", job.pid, job.percent, job.what).chars().take(80).collect());
    }
    if status.offline_pushes_waiting > 0 {
        lines.push(format!("{} offline rows wait for their batch", status.offline_rows_waiting));
    }
    lines.push(String::new());
    lines.push(format!(
        "{:>8} {:<9} {:>6} {:>11} {:>9} {:>6} {:>9} {:>7}",
        "PID", "STATE", "AGE", "REQUESTS", "REQ/S", "CONNS", "MEMORY", "SILENT"
    ));
    let room = height.saturating_sub(lines.len() + 1);
    for worker in status.workers.iter().take(room) {
        lines.push(format!(
            "{:>8} {:<9} {:>6} {:>11} {:>9.0} {:>6} {:>5} MiB {:>7}",
            worker.pid,
            worker.state,
            duration(worker.age_seconds),
            worker.requests,
            rate_of(worker.pid, worker.requests),
            worker.connections,
            worker.memory_kib / 1024,
            duration(worker.silent_seconds)
        ));
    }
    if status.workers.len() > room {
        lines.push(format!("{} more", status.workers.len() - room));
    }
    lines.join("\n")
}
