//! Materialization: the newest row of every entity in a window, from a view's source into the online store.
//!
//! Per view: one run at a time on this machine, the state MATERIALIZING while it runs (decision: such a view is
//! served), values written in short transactions, then the interval in the registry. A run that fails or is
//! stopped puts the state back and records nothing.

use std::time::{Duration, Instant};

use super::{engine, Observer, Site};
use crate::api::error::ApiError;
use crate::feature::rows::{Rows, Target};
use crate::ipc::job::{Report, Run, Window};
use crate::offline::files;
use crate::offline::latest::{self, Halt, Progress, Scan, Sink};
use crate::online::{OnlineWriter, Unwritten};
use crate::os::lock::RangeLock;
use crate::os::process::wall_clock;
use crate::registry::edit::{self, state, Change, Time};
use crate::registry::model::View;
use crate::registry::source::SourceKind;
use crate::registry::{RegistryError, Snapshot};
use crate::text::when::{self, SECOND};

/// Values of one transaction of a SQL store, so that nobody waits long for its lock.
const VALUES_PER_COMMIT: usize = 10_000;
/// A year, as the reference counts it.
const YEAR: i128 = 52 * 7 * 86_400 * SECOND;

fn other(text: impl Into<String>) -> ApiError {
    ApiError::Other(text.into())
}

/// Runs a materialization.
pub fn run(run: &Run, site: &Site, observer: &mut dyn Observer) -> Result<(), ApiError> {
    let count = run.views.len();
    let store = site.store_name();
    match run.window {
        Window::Between { start, end } => observer.say(&format!(
            "Materializing {count} feature views from {} to {} into the {store} online store.\n",
            shown(start),
            shown(end)
        )),
        Window::Until { end } => observer.say(&format!(
            "Materializing {count} feature views to {} into the {store} online store.\n",
            shown(end)
        )),
    }
    if let Some(engine) = &site.store.writes.batch_engine {
        let done = engine::run(engine, run, site, observer);
        if done.is_err() && run.in_background {
            restore(&run.views, site);
        }
        return done;
    }
    for (index, view) in run.views.iter().enumerate() {
        let done = run_view(view, run, site, observer);
        if done.is_err() && run.in_background {
            // This one, if it has not come far enough to do so itself, and those whose turn never comes.
            restore(&run.views[index..], site);
        }
        done?;
    }
    Ok(())
}

/// A time without its fraction, as the reference prints windows.
fn shown(nanos: i128) -> String {
    when::python_text(nanos.div_euclid(SECOND) * SECOND, 0)
}

/// Puts views that are marked as being materialized back, so that the next run can begin.
pub fn restore(views: &[String], site: &Site) {
    let project = &site.store.project;
    let path = site.registry.lock_path();
    // Views that somebody else is materializing are as they should be.
    let (mut locks, mut free) = (Vec::new(), Vec::new());
    for view in views {
        match try_lock_view(&path, view) {
            Ok(Some(lock)) => locks.push(lock),
            Ok(None) => continue,
            Err(error) => log::error!("{}: {error}", path.display()),
        }
        free.push(view);
    }
    let edited: Result<(), RegistryError> = site.registry.update(|bytes, id, now| {
        let mut edited: Option<Vec<u8>> = None;
        for view in &free {
            if edit::state_of(bytes, project, view)? == Some(state::MATERIALIZING) {
                let change = Change::State(edit::state_without_run(bytes, project, view)?);
                let before = edited.as_deref().unwrap_or(bytes);
                edited = Some(edit::change_views(before, project, &[view.as_str()], change, id, now)?);
            }
        }
        Ok(edited)
    });
    if let Err(error) = edited {
        log::error!("{error}");
    }
}

/// The byte of the lock file that stands for materializing a view.
fn view_byte(view: &str) -> u32 {
    let hash =
        view.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    1 + (hash >> 2)
}

/// Keeps everybody else from materializing a view, as long as the result lives; `path` is that of the registry's lock
/// file. `None`: somebody does so already.
pub fn try_lock_view(path: &std::path::Path, view: &str) -> std::io::Result<Option<RangeLock>> {
    RangeLock::try_take(path, view_byte(view))
}

fn run_view(name: &str, run: &Run, site: &Site, observer: &mut dyn Observer) -> Result<(), ApiError> {
    let path = site.registry.lock_path();
    let _running = loop {
        match try_lock_view(&path, name) {
            Ok(Some(lock)) => break lock,
            Ok(None) if observer.stopped() => return Err(stopped()),
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(other(error.to_string())),
        }
    };
    let (snapshot, _) = site.registry.load(0).map_err(|error| other(error.to_string()))?;
    let view = snapshot.view(name).ok_or_else(|| ApiError::Feast {
        status: 404,
        class: "FeatureViewNotFoundException",
        message: format!("Feature view {name} does not exist in project {}", snapshot.project),
    })?;
    let (start, end) = window(view, run.window, observer);
    let previous = begin(name, site)?;
    let begun = Instant::now();
    let mut taker = Taker {
        writer: site.job_writer(),
        observer,
        view: name,
        most: VALUES_PER_COMMIT,
        batch: site.store.writes.write_batch,
        percent: None,
        begun,
        reading: None,
    };
    let done = write(view, &snapshot, site, (start, end), &mut taker);
    let reading = taker.reading.unwrap_or_else(|| begun.elapsed());
    let done = done.and_then(|entities| {
        let (start, end) = (time(start), time(end));
        change(name, site, Change::Materialized { start, end })?;
        Ok(entities)
    });
    if done.is_err() && previous != state::UNSPECIFIED {
        change(name, site, Change::State(previous))
            .unwrap_or_else(|error| log::error!("{}", error.log_text()));
    }
    observer.report(Report::View {
        view: name.to_owned(),
        success: done.is_ok(),
        seconds: begun.elapsed().as_secs_f64(),
        reading: reading.as_secs_f64(),
        entities: Some(done.as_ref().copied().unwrap_or(0)),
    });
    done.map(|_| ())
}

fn stopped() -> ApiError {
    ApiError::Unavailable("The server stops; nothing was recorded, and the run can be repeated.".to_owned())
}

/// The registry keeps microseconds.
fn time(nanos: i128) -> Time {
    let micros = nanos.div_euclid(1000);
    (micros.div_euclid(1_000_000) as i64, (micros.rem_euclid(1_000_000) * 1000) as i32)
}

/// Begin and end for a view.
fn window(view: &View, window: Window, observer: &mut dyn Observer) -> (i128, i128) {
    let (start, end) = match window {
        Window::Between { start, end } => {
            observer.say(&format!("{}:", view.name));
            return (start, end);
        }
        Window::Until { end } => {
            let now = wall_clock().as_nanos() as i128;
            let start = view.materialized_until.unwrap_or_else(|| {
                if view.ttl_nanos > 0 {
                    return now - view.ttl_nanos;
                }
                observer.say(&format!(
                    "Since the ttl is 0 for feature view {}, the start date will be set to 1 year before the \
                     current time.",
                    view.name
                ));
                now - YEAR
            });
            (start, end)
        }
    };
    observer.say(&format!("{} from {} to {}:", view.name, shown(start), shown(end)));
    (start, end)
}

/// Marks the view; returns the state to go back to should the run fail.
fn begin(name: &str, site: &Site) -> Result<u64, ApiError> {
    let project = &site.store.project;
    let mut previous = state::UNSPECIFIED;
    let edited: Result<(), Refusal> = site.registry.update(|bytes, id, now| {
        let found = edit::state_of(bytes, project, name).map_err(RegistryError::from)?.unwrap_or(0);
        previous = found;
        if found == state::MATERIALIZING {
            previous = edit::state_without_run(bytes, project, name).map_err(RegistryError::from)?;
        }
        match found {
            state::UNSPECIFIED | state::MATERIALIZING => Ok(None),
            state::CREATED => Err(Refusal(format!(
                "FeatureView {name} cannot transition from {} to MATERIALIZING.",
                state::name(found)
            ))),
            _ => {
                let change = Change::State(state::MATERIALIZING);
                let edited = edit::change_views(bytes, project, &[name], change, id, now);
                Ok(Some(edited.map_err(RegistryError::from)?))
            }
        }
    });
    edited.map_err(|Refusal(text)| other(text))?;
    Ok(previous)
}

struct Refusal(String);

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Self(error.to_string())
    }
}

fn change(name: &str, site: &Site, change: Change) -> Result<(), ApiError> {
    let project = &site.store.project;
    let edited: Result<(), RegistryError> = site
        .registry
        .update(|bytes, id, now| Ok(Some(edit::change_views(bytes, project, &[name], change, id, now)?)));
    edited.map_err(|error| other(error.to_string()))
}

/// Scans the source of a view and writes what wins.
fn write(
    view: &View,
    snapshot: &Snapshot,
    site: &Site,
    (start, end): (i128, i128),
    taker: &mut Taker<'_>,
) -> Result<u64, ApiError> {
    let Some(source) = &view.batch_source else {
        return Err(other(format!("FeatureView {} has no batch source to materialize from.", view.name)));
    };
    if source.kind != SourceKind::File {
        return Err(ApiError::Unsupported(format!(
            "Data source '{}' is not a file: this server reads Parquet files. Materialize the view with Feast's SDK, \
             or set a batch_engine.",
            source.name
        )));
    }
    if end < start {
        return Ok(0);
    }
    let place = files::resolve(&source.path, &site.store.repo_path).map_err(other)?;
    let parts = files::parts(&place).map_err(other)?;
    let target = Target::of(view, snapshot, site.store.key_version);
    let scan = Scan {
        parts: &parts,
        name: &source.path,
        source,
        target: &target,
        start,
        end,
        sorted: site.store_name() == "sqlite",
        no_created: taker.writer.no_time().created,
    };
    let scanned = latest::scan(&scan, taker);
    scanned.map_err(|halt| match halt {
        Halt::Data(text) => other(text),
        Halt::JoinKeys(message) => {
            ApiError::Feast { status: 500, class: "FeastJoinKeysDuringMaterialization", message }
        }
        Halt::Stopped => stopped(),
    })
}

/// Writes what a scan hands on.
struct Taker<'t> {
    writer: Box<dyn OnlineWriter>,
    observer: &'t mut dyn Observer,
    view: &'t str,
    /// Values of one transaction.
    most: usize,
    /// `materialization.online_write_batch_size`
    batch: Option<usize>,
    percent: Option<u8>,
    begun: Instant,
    reading: Option<Duration>,
}

impl Sink for Taker<'_> {
    fn rows(&mut self, rows: &Rows) -> Result<(), Halt> {
        self.reading.get_or_insert_with(|| self.begun.elapsed());
        let most = self.batch.unwrap_or(usize::MAX).min((self.most / rows.features.len().max(1)).max(1));
        let written = if rows.len() <= most {
            self.writer.write(std::slice::from_ref(rows))
        } else {
            let mut part = rows.empty_copy();
            (0..rows.len()).try_for_each(|row| {
                part.push_from(rows, row);
                if part.len() < most && row + 1 < rows.len() {
                    return Ok(());
                }
                let written = self.writer.write(std::slice::from_ref(&part));
                part.clear();
                written
            })
        };
        written.map_err(|Unwritten::Failed(text)| Halt::Data(text))
    }

    fn progress(&mut self, progress: Progress) -> Result<(), Halt> {
        if self.observer.stopped() {
            return Err(Halt::Stopped);
        }
        // Reading keys is the smaller part of the work.
        let percent = match progress {
            Progress::Read { rows, of } => 30 * rows / of.max(1),
            Progress::Written { entities, of } => 30 + 70 * entities / of.max(1),
        } as u8;
        if self.percent != Some(percent) {
            self.percent = Some(percent);
            self.observer.report(Report::Progress { view: self.view.to_owned(), percent });
        }
        Ok(())
    }
}
