//! Batch engines of Feast (Spark, Ray, Snowflake, Kubernetes): the run is handed to the installed Feast SDK, which
//! records it in the registry itself.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::{Observer, Site};
use crate::api::error::ApiError;
use crate::ipc::job::{Report, Run, Window};
use crate::text::when::{self, SECOND};

/// The command of the Feast SDK, unless another one is named.
const FEAST: &str = "feast";
/// How often a silent command is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The Feast command: `FEAST_PREFORK_FEAST`, or `feast` from the path.
pub fn feast_command() -> String {
    std::env::var("FEAST_PREFORK_FEAST")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| FEAST.to_owned())
}

/// The lines of a command's output, whatever bytes they have: a pipe that is read no more would break the command.
fn lines(stream: impl Read) -> impl Iterator<Item = String> {
    let split = BufReader::new(stream).split(b'\n').map_while(Result::ok);
    split.map(|line| String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
}

/// Lets the SDK do the run and passes its output on.
pub(super) fn run(engine: &str, run: &Run, site: &Site, observer: &mut dyn Observer) -> Result<(), ApiError> {
    let other = |text: String| Err(ApiError::Other(text));
    let iso = |nanos: i128| {
        let text = when::python_text(nanos.div_euclid(SECOND) * SECOND, 0).replace(' ', "T");
        text.trim_end_matches("+00:00").to_owned()
    };
    let program = feast_command();
    let mut command = Command::new(&program);
    command.arg("--chdir").arg(&site.store.repo_path);
    match run.window {
        Window::Between { start, end } => command.args(["materialize", &iso(start), &iso(end)]),
        Window::Until { end } => command.args(["materialize-incremental", &iso(end)]),
    };
    for view in &run.views {
        command.args(["-v", view]);
    }
    let begun = std::time::Instant::now();
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            return other(format!(
                "batch_engine {engine} needs Feast's SDK, and `{program}` cannot be run: {error}; install it with \
                 `pip install 'feast[{}]'`, or name it in FEAST_PREFORK_FEAST",
                engine.split('.').next().unwrap_or(engine)
            ));
        }
    };
    let errors = child.stderr.take().map(|stream| {
        std::thread::spawn(move || {
            let mut last = std::collections::VecDeque::new();
            for line in lines(stream) {
                log::info!("{line}");
                if !line.trim().is_empty() {
                    last.push_back(line);
                }
                if last.len() > 3 {
                    last.pop_front();
                }
            }
            last.pop_back().unwrap_or_default()
        })
    });
    if let Some(stream) = child.stdout.take() {
        let (said, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || lines(stream).try_for_each(|line| said.send(line)));
        let mut told = false;
        loop {
            match heard.recv_timeout(LOOK) {
                Ok(line) => observer.say(&line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Also a command that says nothing is stopped.
            if observer.stopped() && !std::mem::replace(&mut told, true) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(child.id().cast_signed()),
                    nix::sys::signal::Signal::SIGTERM,
                );
            }
        }
    }
    let status = child.wait();
    let last = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let success = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    for view in &run.views {
        observer.report(Report::View {
            view: view.clone(),
            success,
            seconds: begun.elapsed().as_secs_f64(),
            reading: 0.0,
            entities: None,
        });
    }
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => other(format!("batch_engine {engine}: `{program}` ended with {status}: {last}")),
        Err(error) => other(format!("batch_engine {engine}: {error}")),
    }
}
