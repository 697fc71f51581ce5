//! What runs in processes of its own, and as commands: materialization, and writing batches of offline pushes.
//!
//! A job has its own memory and its own connections, and nobody's requests wait for it. What must not happen here:
//! sockets of clients, forks.

pub mod engine;
pub mod flush;
pub mod materialize;

use std::path::PathBuf;
use std::time::Duration;

use crate::api::error::ApiError;
use crate::config::settings::Journal;
use crate::config::store::OnlineStoreConfig;
use crate::config::{Settings, StoreConfig};
use crate::feature::zone::LocalZone;
use crate::ipc::job::Report;
use crate::online::redis::write::RedisWriter;
use crate::online::sqlite_write::SqliteWriter;
use crate::online::OnlineWriter;
use crate::registry::RegistryFile;

/// How long a writer waits for another one.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Where a job works.
#[derive(Debug, Clone)]
pub struct Site {
    /// The repository.
    pub store: StoreConfig,
    /// Its registry.
    pub registry: RegistryFile,
    /// What happens to a SQLite store's journal.
    pub journal: Journal,
    /// Where offline pushes wait.
    pub spool: PathBuf,
}

impl Site {
    /// Of a configured server or command.
    pub fn new(store: &StoreConfig, registry: &RegistryFile, settings: &Settings) -> Self {
        Self {
            store: store.clone(),
            registry: registry.clone(),
            journal: settings.sqlite_journal,
            spool: settings.spool.clone().unwrap_or_else(|| store.repo_path.join(".feast_prefork_spool")),
        }
    }

    /// The writing side of the online store.
    pub fn writer(&self) -> Box<dyn OnlineWriter> {
        match &self.store.online_store {
            OnlineStoreConfig::Sqlite { path } => {
                Box::new(SqliteWriter::new(path, LocalZone::of_process(), self.journal, PATIENCE))
            }
            OnlineStoreConfig::Redis(config) => Box::new(RedisWriter::new(config, &self.store.project)),
        }
    }

    /// A writer for a job.
    pub fn job_writer(&self) -> Box<dyn OnlineWriter> {
        match &self.store.online_store {
            OnlineStoreConfig::Redis(config) => {
                Box::new(RedisWriter::new(config, &self.store.project).patient())
            }
            OnlineStoreConfig::Sqlite { .. } => self.writer(),
        }
    }

    /// The name of the store in messages.
    pub fn store_name(&self) -> &'static str {
        match &self.store.online_store {
            OnlineStoreConfig::Sqlite { .. } => "sqlite",
            OnlineStoreConfig::Redis(_) => "redis",
        }
    }
}

/// Who hears of a job's progress.
pub trait Observer {
    /// A line for people.
    fn say(&mut self, line: &str);
    /// Something happened.
    fn report(&mut self, report: Report);
    /// True when the job is to end at the next good place.
    fn stopped(&mut self) -> bool;
}

/// The answer to whoever waits for a job.
pub fn answer(result: &Result<(), ApiError>) -> Report {
    match result {
        Ok(()) => Report::Answer { status: 200, body: "null".to_owned() },
        Err(error) => {
            let mut answer = crate::api::Answer::default();
            error.reply(&mut answer);
            Report::Answer { status: answer.status, body: String::from_utf8_lossy(&answer.body).into_owned() }
        }
    }
}
