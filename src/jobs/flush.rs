//! Writing waiting offline pushes to their sources.

use std::time::Duration;

use super::{Observer, Site};
use crate::ipc::job::Report;
use crate::offline::spool::{folder_name, Spool};
use crate::registry::source::Source;

/// How long other writers of a source are waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// Writes one batch for every source that has something waiting.
pub fn run(site: &Site, observer: &mut dyn Observer) -> Result<(), String> {
    let spool = Spool::new(&site.spool);
    let backlog = spool.backlog();
    if backlog.is_empty() {
        return Ok(());
    }
    let (snapshot, _) = site.registry.load(0).map_err(|error| error.to_string())?;
    let sources: Vec<&Source> =
        snapshot.views().iter().filter_map(|view| view.batch_source.as_ref()).collect();
    let mut problem = Ok(());
    for (folder, waiting) in backlog {
        let Some(source) = sources.iter().find(|source| folder_name(source) == folder) else {
            log::warn!(
                "{} offline rows in {folder} wait for a source that the registry does not have",
                waiting.rows
            );
            problem = Err(format!("{folder}: no such source"));
            continue;
        };
        match spool.flush(source, &site.store.repo_path, PATIENCE) {
            Ok(flushed) => {
                log::info!("wrote {} offline rows to {}", flushed.rows, source.path);
                observer
                    .report(Report::Flushed { rows: flushed.rows as u64, rejected: flushed.rejected as u64 });
            }
            Err(error) => {
                log::error!(
                    "offline rows for {} could not be written and are tried again: {error}",
                    source.path
                );
                problem = Err(error);
            }
        }
        if observer.stopped() {
            break;
        }
    }
    problem
}
