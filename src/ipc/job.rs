//! Jobs: what a worker asks the master to have done in a process of its own, and what that process reports.

use serde::{Deserialize, Serialize};

/// Names a job for as long as somebody waits for it: the process number of who asked, and a count.
pub type JobId = u64;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// Materialize views.
    Materialize(Run),
    /// A job has died: put its views back into a state that can be materialized.
    Restore(Vec<String>),
    /// Write waiting offline pushes to their sources.
    Flush,
}

/// A materialization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Views, in the order in which they are run; every name was checked.
    pub views: Vec<String>,
    /// Which rows.
    pub window: Window,
    /// Nobody waits for the answer; the views are marked already.
    pub in_background: bool,
}

/// A window of time, nanoseconds since the epoch, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Window {
    /// The same for all views.
    Between {
        /// First instant.
        start: i128,
        /// Last instant.
        end: i128,
    },
    /// From where each view's last run ended.
    Until {
        /// Last instant.
        end: i128,
    },
}

/// What a job says on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// How far a view is.
    Progress {
        /// The view.
        view: String,
        /// Percent.
        percent: u8,
    },
    /// A view has ended.
    View {
        /// The view.
        view: String,
        /// Whether all went well.
        success: bool,
        /// How long it took.
        seconds: f64,
        /// How long its source was read before the first entity was written.
        reading: f64,
        /// Entities stored, if that is known.
        entities: Option<u64>,
    },
    /// Offline pushes were written.
    Flushed {
        /// Rows that landed.
        rows: u64,
        /// Pushes that were set aside.
        rejected: u64,
    },
    /// The end: the answer of whoever waits.
    Answer {
        /// Status.
        status: u16,
        /// JSON.
        body: String,
    },
}

impl Job {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl Report {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}
