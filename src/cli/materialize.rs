//! `materialize` and `materialize-incremental`: the same runs as over HTTP, in this process, with a bar.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::args::{IncrementalArgs, MaterializeArgs};
use super::commands::say;
use super::site::{failed, open, usage};
use crate::api::write::views_of;
use crate::config::store::Location;
use crate::exit;
use crate::ipc::job::{Report, Run, Window};
use crate::jobs::{self, Observer};
use crate::master::{MissingRegistry, StartError};
use crate::os::process::wall_clock;
use crate::os::signals::{Pipe, Signal};
use crate::text::when::{self, WhenError};

/// Materializes a window.
pub(super) fn window(location: &Location, args: &MaterializeArgs) -> Result<i32, StartError> {
    let window = if args.disable_event_timestamp {
        if args.start.is_some() || args.end.is_some() {
            return Err(usage("Cannot specify START_TS or END_TS when --disable-event-timestamp is used"));
        }
        Window::Between { start: 0, end: wall_clock().as_nanos() as i128 }
    } else {
        let (Some(start), Some(end)) = (&args.start, &args.end) else {
            return Err(usage("START_TS and END_TS are required unless --disable-event-timestamp is used"));
        };
        let (start, end) = (time(start)?, time(end)?);
        if start > end {
            return Err(StartError::new(
                exit::CONFIG,
                format!(
                    "The given start_date {} is greater than the given end_date {}.",
                    when::python_text(start, 0),
                    when::python_text(end, 0)
                ),
            ));
        }
        Window::Between { start, end }
    };
    run(location, &args.views, window)
}

/// Materializes from where each view's last run ended.
pub(super) fn incremental(location: &Location, args: &IncrementalArgs) -> Result<i32, StartError> {
    let wrong = || {
        let text = crate::text::pyrepr::repr(&args.end);
        StartError::new(exit::CONFIG, format!("Invalid isoformat string: {text}"))
    };
    // Only the forms of ISO 8601 are taken here, as in the reference.
    let end = when::parse(&args.end, 0).map_err(|_| wrong())?;
    if end.format.is_none_or(|format| !format.starts_with("%Y")) {
        return Err(wrong());
    }
    run(location, &args.views, Window::Until { end: end.nanos })
}

fn time(text: &str) -> Result<i128, StartError> {
    let today = wall_clock().as_secs().cast_signed();
    when::parse(text, today).map(|found| found.nanos).map_err(|error| {
        let problem = match error {
            WhenError::Unknown => format!("Unknown string format: {text}"),
            WhenError::Range(problem) => format!("{problem}: {text}"),
        };
        StartError::new(exit::CONFIG, problem)
    })
}

fn run(location: &Location, views: &[String], window: Window) -> Result<i32, StartError> {
    let (prepared, site) = open(location, MissingRegistry::Refuse)?;
    let named = (!views.is_empty()).then_some(views);
    let views = views_of(&prepared.snapshot, named).map_err(|error| failed(&error))?;
    let run = Run { views, window, in_background: false };
    let mut screen = Screen::new();
    jobs::materialize::run(&run, &site, &mut screen).map_err(|error| failed(&error))?;
    Ok(exit::OK)
}

/// Lines on standard output, and a bar on a terminal.
pub(super) struct Screen {
    bar: Option<ProgressBar>,
    shows: bool,
    signals: Option<Pipe>,
    stopped: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let quiet = std::env::var_os("FEAST_NO_PROGRESS").is_some();
        Self {
            bar: None,
            shows: std::io::stderr().is_terminal() && !quiet,
            signals: Pipe::install(&[Signal::SIGTERM, Signal::SIGINT]).ok(),
            stopped: false,
        }
    }
}

impl Observer for Screen {
    fn say(&mut self, line: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
        say(line);
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Progress { percent, .. } if self.shows => {
                let bar = self.bar.get_or_insert_with(|| {
                    let bar = ProgressBar::new(100);
                    let style = ProgressStyle::with_template("  {bar:40} {percent:>3} %  {elapsed}");
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    bar.enable_steady_tick(Duration::from_millis(200));
                    bar
                });
                bar.set_position(u64::from(percent));
            }
            Report::View { success: true, seconds, entities, .. } => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
                let what = match entities {
                    Some(1) => "1 entity".to_owned(),
                    Some(count) => format!("{count} entities"),
                    None => "done".to_owned(),
                };
                say(&format!("  {what} in {seconds:.1} s"));
            }
            _ => {}
        }
    }

    fn stopped(&mut self) -> bool {
        if let Some(signals) = &mut self.signals {
            self.stopped |= !signals.drain().is_empty();
        }
        self.stopped
    }
}
