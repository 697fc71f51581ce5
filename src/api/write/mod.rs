//! The writing routes: push, write-to-online-store, materialize.
//!
//! They run on the worker's writing thread, one at a time, because a commit waits for the disk: nothing here
//! touches the loop. A materialization is only prepared here; the run itself is a job of the master's.

mod body;
mod materialize;
mod push;

pub use materialize::views_of;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::ApiError;
use super::{Answer, ApiRules};
use crate::metrics::meters::Endpoint;
use crate::offline::spool::Spool;
use crate::online::OnlineWriter;
use crate::os::process::wall_clock;
use crate::registry::{RegistryFile, Snapshot};

/// A writing route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteRoute {
    /// `POST /push`
    Push,
    /// `POST /write-to-online-store`
    WriteToOnlineStore,
    /// `POST /materialize`
    Materialize,
    /// `POST /materialize-incremental`
    MaterializeIncremental,
}

impl WriteRoute {
    /// What it is counted as, if it is.
    pub fn endpoint(self) -> Option<Endpoint> {
        match self {
            Self::Push => Some(Endpoint::Push),
            Self::WriteToOnlineStore => None,
            Self::Materialize => Some(Endpoint::Materialize),
            Self::MaterializeIncremental => Some(Endpoint::MaterializeIncremental),
        }
    }
}

/// A request on its way to the writing thread.
#[derive(Debug)]
pub struct Work {
    /// Which route.
    pub route: WriteRoute,
    /// The whole body.
    pub body: Vec<u8>,
    /// Its declared type.
    pub content_type: Option<String>,
    /// The query.
    pub query: String,
    /// Definitions in force when it came.
    pub snapshot: Arc<Snapshot>,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Done {
    /// The answer; without a status when a job will give it.
    pub answer: Answer,
    /// A job that the master is to run.
    pub job: Option<Vec<u8>>,
    /// It was a request, valid in itself, that a handler has taken: it is counted.
    pub handled: bool,
    /// A push that succeeded: its source and where it went.
    pub pushed: Option<(String, String)>,
}

/// What the writing thread has: one for each worker.
pub struct Lane {
    /// The online store.
    pub writer: Box<dyn OnlineWriter>,
    /// The registry, to be edited.
    pub registry: RegistryFile,
    /// Switches.
    pub rules: ApiRules,
    /// Base of relative paths.
    pub repo_path: PathBuf,
    /// Where offline pushes wait for their batch, if they do.
    pub spool: Option<Spool>,
    /// How long one waits for another process that writes the same file.
    pub patience: Duration,
}

impl Lane {
    /// Does one piece of work.
    pub fn run(&mut self, work: &Work) -> Done {
        let mut done = Done::default();
        let outcome = match work.route {
            WriteRoute::Push => push::push(work, self, &mut done),
            WriteRoute::WriteToOnlineStore => push::write(work, self, &mut done),
            WriteRoute::Materialize | WriteRoute::MaterializeIncremental => {
                materialize::prepare(work, self, &mut done)
            }
        };
        if let Err(error) = outcome {
            log::debug!("request failed: {}", error.log_text());
            error.reply(&mut done.answer);
            done.job = None;
            done.pushed = None;
        }
        done
    }
}

fn other(text: impl Into<String>) -> ApiError {
    ApiError::Other(text.into())
}

/// Seconds since the epoch.
fn now() -> i64 {
    wall_clock().as_secs().cast_signed()
}
