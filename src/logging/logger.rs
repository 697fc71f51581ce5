//! The error log: `[2026-11-20 15:40:12 +0000] [18516] [INFO] message`, local time, one write a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use jiff::tz::TimeZone;
use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Longest line; what is longer is cut, so that a line stays one atomic write to a pipe.
const MAX_LINE: usize = 4096;

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to.
    File(PathBuf),
}

impl Target {
    /// Opens the file, if it is one, creating it.
    pub fn open(&self) -> io::Result<Option<File>> {
        match self {
            Self::File(path) => open_append(path).map(Some),
            _ => Ok(None),
        }
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Lines of this process, by level. A forked process goes on counting where its parent was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    warnings: u64,
    errors: u64,
    criticals: u64,
}

static WARNINGS: AtomicU64 = AtomicU64::new(0);
static ERRORS: AtomicU64 = AtomicU64::new(0);
static CRITICALS: AtomicU64 = AtomicU64::new(0);

/// How many lines there have been.
pub fn counts() -> Counts {
    Counts {
        warnings: WARNINGS.load(Relaxed),
        errors: ERRORS.load(Relaxed),
        criticals: CRITICALS.load(Relaxed),
    }
}

impl Counts {
    /// gunicorn's names of the levels that have had lines since `earlier`, with their number.
    pub fn since(&self, earlier: &Self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("warning", self.warnings - earlier.warnings),
            ("error", self.errors - earlier.errors),
            ("critical", self.criticals - earlier.criticals),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
    }
}

struct Logger {
    target: Target,
    zone: TimeZone,
    file: Mutex<Option<File>>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Sets up the error log of this process and its children. Later calls only change the level.
pub fn init(target: &Target, level: LevelFilter) -> io::Result<()> {
    let file = target.open()?;
    log::set_max_level(level);
    let logger = LOGGER.get_or_init(|| Logger {
        target: target.clone(),
        zone: TimeZone::system(),
        file: Mutex::new(file),
    });
    let _ = log::set_logger(logger);
    Ok(())
}

/// Opens the log file again, after it was moved away. Keeps the old one when that fails.
pub fn reopen() {
    let Some(logger) = LOGGER.get() else { return };
    match logger.target.open() {
        Ok(file) => *logger.file.lock().unwrap_or_else(PoisonError::into_inner) = file,
        Err(error) => log::error!("cannot reopen the error log: {error}"),
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // A CRITICAL line is an error whose target says so; the facade has no such level.
        let level = match record.level() {
            Level::Error if record.target() == CRITICAL => CRITICAL,
            Level::Error => "ERROR",
            Level::Warn => "WARNING",
            Level::Info => "INFO",
            Level::Debug | Level::Trace => "DEBUG",
        };
        match level {
            CRITICAL => CRITICALS.fetch_add(1, Relaxed),
            "ERROR" => ERRORS.fetch_add(1, Relaxed),
            "WARNING" => WARNINGS.fetch_add(1, Relaxed),
            _ => 0,
        };
        let now = Timestamp::now().to_zoned(self.zone.clone());
        let mut line = format!(
            "[{}] [{}] [{level}] {}",
            now.strftime("%Y-%m-%d %H:%M:%S %z"),
            std::process::id(),
            record.args()
        );
        if line.len() >= MAX_LINE {
            line.truncate(line.floor_char_boundary(MAX_LINE - 5));
            line.push_str(" ...");
        }
        line.push('\n');
        let _ = match (&self.target, &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner)) {
            (Target::Off, _) => Ok(()),
            (Target::File(_), Some(file)) => file.write_all(line.as_bytes()),
            (Target::Stdout, _) => io::stdout().lock().write_all(line.as_bytes()),
            _ => io::stderr().lock().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

/// The target that makes an error line a CRITICAL one.
pub const CRITICAL: &str = "CRITICAL";

/// Logs at gunicorn's level CRITICAL.
#[macro_export]
macro_rules! critical {
    ($($arg:tt)+) => { log::error!(target: $crate::logging::logger::CRITICAL, $($arg)+) };
}
