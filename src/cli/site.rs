//! What the commands that work on a repository share: opening it, and errors in one line.

use super::args::ServeArgs;
use super::commands::configure;
use crate::api::error::ApiError;
use crate::config::store::Location;
use crate::exit;
use crate::jobs::Site;
use crate::master::{self, MissingRegistry, Prepared, StartError};

/// Opens a repository. Warnings go to the log.
pub(super) fn open(location: &Location, missing: MissingRegistry) -> Result<(Prepared, Site), StartError> {
    let (_, settings, store) =
        configure(location, &ServeArgs { no_access_log: true, ..ServeArgs::default() })?;
    for warning in &store.warnings {
        log::warn!("{warning}");
    }
    let prepared = master::load(settings, store, missing)?;
    let site = Site::new(&prepared.store, &prepared.registry, &prepared.settings);
    Ok((prepared, site))
}

/// An error of a run as this program ends with it.
pub(super) fn failed(error: &ApiError) -> StartError {
    StartError::new(exit::CONFIG, error.log_text())
}

/// A mistake on the command line.
pub(super) fn usage(text: impl Into<String>) -> StartError {
    StartError::new(exit::USAGE, text.into())
}
