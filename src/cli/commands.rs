//! Subcommands.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use log::LevelFilter;

use super::args::{Cli, Command, ListCommand, MetricsCommand, MetricsFormat, ServeArgs};
use super::{activation, apply, ctl, get, init, list, materialize, quickstart, resolve, top};
use crate::config::store::Location;
use crate::config::StoreConfig;
use crate::exit;
use crate::logging::logger::{self, Target};
use crate::master::{self, Master, MissingRegistry, Prepared, StartError};
use crate::metrics::aggregate;
use crate::metrics::expose::{self, Format};
use crate::os::process;

/// The program. The exit code is one of [`exit`].
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let location = Location {
        chdir: cli.chdir,
        file: cli.feature_store_yaml,
        base64: std::env::var("FEATURE_STORE_YAML_BASE64").ok().filter(|text| !text.is_empty()),
    };
    let done = match cli.command {
        Command::Serve(args) => serve(location, *args, cli.log_level),
        Command::Quickstart(args) => quickstart::run(&args, cli.log_level),
        Command::Metrics(MetricsCommand::Render { dir, format }) => render_metrics(&dir, format),
        Command::Ctl(args) => ctl::run(&args),
        Command::Top(args) => top::top(&args),
        Command::Init(args) => init::init(&args),
        Command::Version => {
            say(&format!("feast-prefork {}", env!("CARGO_PKG_VERSION")));
            Ok(exit::OK)
        }
        command => on_repository(command, &location, cli.log_level),
    };
    let code = done.unwrap_or_else(|error| {
        complain(&error);
        error.code
    });
    // The master's objects are not torn down: the system does that faster.
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Commands that open a repository, do one thing and end.
fn on_repository(command: Command, location: &Location, level: LevelFilter) -> Result<i32, StartError> {
    // What a server says at level info is noise here, unless it was asked for.
    let level = if level == LevelFilter::Info { LevelFilter::Warn } else { level };
    start_logging(&Target::Stderr, level)?;
    match command {
        Command::Apply => apply::apply(location, false),
        Command::Plan => apply::apply(location, true),
        Command::Teardown => apply::teardown(location),
        Command::Materialize(args) => materialize::window(location, &args),
        Command::MaterializeIncremental(args) => materialize::incremental(location, &args),
        Command::FeatureViews(ListCommand::List) => list::views(location),
        Command::Entities(ListCommand::List) => list::entities(location),
        Command::FeatureServices(ListCommand::List) => list::services(location),
        Command::GetOnlineFeatures(args) => get::get(location, &args),
        _ => Ok(exit::OK),
    }
}

/// Prints what a scrape of `dir` answers; files with damage are named on standard error.
fn render_metrics(dir: &Path, format: MetricsFormat) -> Result<i32, StartError> {
    let merged = aggregate::merge(dir).map_err(|error| {
        let text = format!("cannot read {}: {error}; name a directory of multiprocess files", dir.display());
        StartError::new(exit::CONFIG, text)
    })?;
    for path in &merged.damaged {
        let _ = writeln!(std::io::stderr().lock(), "damaged, read as far as it is whole: {}", path.display());
    }
    let format = match format {
        MetricsFormat::Text => Format::Text,
        MetricsFormat::Openmetrics => Format::OpenMetrics,
    };
    let _ = std::io::stdout().lock().write_all(expose::render(&merged.families, format).as_bytes());
    Ok(exit::OK)
}

/// Prints a line to standard output; a closed pipe is nobody's problem.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints a startup error: one line, in red when a person is looking.
fn complain(error: &StartError) {
    let mut out = std::io::stderr().lock();
    let _ = if out.is_terminal() {
        writeln!(out, "\x1b[1;31mError:\x1b[0m {error}")
    } else {
        writeln!(out, "Error: {error}")
    };
}

/// Reads files and layers of settings: what boot and reload both do first.
fn prepare(location: &Location, flags: &ServeArgs, missing: MissingRegistry) -> Result<Prepared, StartError> {
    let (_, settings, store) = configure(location, flags)?;
    for warning in &store.warnings {
        log::warn!("{warning}");
    }
    master::load(settings, store, missing)
}

pub(super) fn configure(
    location: &Location,
    flags: &ServeArgs,
) -> Result<(ServeArgs, crate::config::Settings, StoreConfig), StartError> {
    let store = StoreConfig::load(location, |name| std::env::var(name).ok())?;
    let words = std::env::var(resolve::CMD_ARGS).ok();
    let mut args = resolve::layers(flags, words.as_deref(), &store)?;
    activation::apply(&mut args, |name| std::env::var(name).ok());
    let settings = resolve::settings(&args)?;
    resolve::check_together(&args, &settings)?;
    Ok((args, settings, store))
}

/// Serves a repository until told to stop.
pub(super) fn serve(location: Location, flags: ServeArgs, level: LevelFilter) -> Result<i32, StartError> {
    // Mistakes on the command line show before a file is looked at.
    resolve::settings(&flags)?;
    if flags.print_config {
        let (args, settings, _) = configure(&location, &flags)?;
        say(&resolve::print(&args, &settings));
        return Ok(exit::OK);
    }
    if flags.check_config {
        start_logging(&Target::Stderr, level)?;
        let prepared = prepare(&location, &flags, MissingRegistry::Refuse)?;
        say(&format!(
            "ok: project {}, {} views, registry {}",
            prepared.snapshot.project,
            prepared.snapshot.views().len(),
            prepared.registry.path().display()
        ));
        return Ok(exit::OK);
    }
    let (_, settings, _) = configure(&location, &flags)?;
    start_logging(&settings.error_log, level)?;
    // With a log file the terminal may be nobody's: what stops a start, or an upgrade, is said in both.
    let in_file = matches!(settings.error_log, Target::File(_));
    prepare(&location, &flags, MissingRegistry::Create)
        .and_then(|prepared| {
            let loader = Box::new(move || prepare(&location, &flags, MissingRegistry::Refuse));
            run_master(prepared, loader)
        })
        .inspect_err(|error| {
            if in_file {
                log::error!("cannot start: {error}");
            }
        })
}

/// Runs the server until it stops.
fn run_master(prepared: Prepared, loader: master::Loader) -> Result<i32, StartError> {
    let _ = process::raise_open_file_limit();
    process::set_name("feast-master");
    let master = Master::new(prepared, loader)?;
    Ok(master.run())
}

/// Sets up the error log, and lets a panic be a line in it.
fn start_logging(target: &Target, level: LevelFilter) -> Result<(), StartError> {
    logger::init(target, level).map_err(|error| match target {
        Target::File(path) => StartError::unwritable("--error-logfile", path, &error),
        _ => StartError::new(exit::CONFIG, error.to_string()),
    })?;
    std::panic::set_hook(Box::new(|info| {
        let trace = std::backtrace::Backtrace::force_capture().to_string().replace('\n', " | ");
        log::error!("{} | {trace}", info.to_string().replace('\n', " "));
    }));
    Ok(())
}
