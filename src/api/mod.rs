//! What does each route do, step by step?
//!
//! An operation takes a parsed request and the worker's state and answers in one go, or says what it waits
//! for; the worker then gives it the same request again later. What must not happen here: sockets, timers,
//! processes.

pub mod error;
pub mod json_in;
pub mod online;
pub mod routes;
pub mod write;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::feature::plan::Plan;
use crate::metrics::meters::Meters;
use crate::online::{OnlineStore, Ticket};
use crate::registry::Snapshot;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The answer is in [`Answer`].
    Reply,
    /// The registry file is newer than the snapshot: ask again after the reload.
    WaitForRegistry,
    /// A writer holds the store: ask again in a few milliseconds.
    WaitForStore,
    /// The store was asked: run again when the values have come.
    WaitForValues,
    /// A thread or a job will make the answer.
    WaitForWrite,
}

/// A request whose values were asked for: what it needs when it is run again.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The store's name for them.
    pub ticket: Ticket,
    /// The plan they were asked for with.
    pub plan: Rc<Plan>,
}

/// An answer without the headers every answer has. The body buffer is reused between requests.
#[derive(Debug, Default, Clone)]
pub struct Answer {
    /// A handler has taken the request: it was valid in itself.
    pub handled: bool,
    /// Status code.
    pub status: u16,
    /// Media type, if there is one.
    pub content_type: Option<&'static str>,
    /// `allow` header of a 405.
    pub allow: Option<&'static str>,
    /// `location` header of a 307.
    pub location: Option<String>,
    /// `retry-after` header of a 503, seconds.
    pub retry_after: Option<u32>,
    /// The body.
    pub body: Vec<u8>,
    /// The length to announce when the body itself is not sent (HEAD).
    pub withheld: Option<usize>,
}

/// Media type of JSON answers.
pub const JSON: &str = "application/json";

impl Answer {
    /// Makes this an answer without body and without media type.
    pub fn reset(&mut self, status: u16) {
        self.status = status;
        self.content_type = None;
        self.allow = None;
        self.location = None;
        self.retry_after = None;
        self.withheld = None;
        self.body.clear();
    }

    /// Makes this a JSON answer with an empty body to be filled.
    pub fn json(&mut self, status: u16) -> &mut Vec<u8> {
        self.reset(status);
        self.content_type = Some(JSON);
        &mut self.body
    }
}

/// How the worker's registry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The file was not looked at for this request; the snapshot may be old.
    Unchecked,
    /// The file was looked at (and reloaded if it had changed).
    Checked,
    /// It was looked at and could not be read.
    Failed,
}

/// Switches that change answers; all default to what helps users.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApiRules {
    /// `entity_key_serialization_version`
    pub key_version: i64,
    /// Refuse bodies whose content type is not JSON, as the reference does.
    pub strict_content_type: bool,
    /// Answer OUTSIDE_MAX_AGE for values older than their view's TTL.
    pub enforce_ttl: bool,
}

/// What operations work with. Lives as long as the worker.
pub struct Context<'c> {
    /// Definitions in force.
    pub snapshot: &'c Arc<Snapshot>,
    /// Compiled shapes.
    pub plans: &'c mut PlanCache,
    /// The store.
    pub store: &'c mut dyn OnlineStore,
    /// Reused buffers.
    pub scratch: &'c mut online::Scratch,
    /// Switches.
    pub rules: ApiRules,
    /// Wall clock, nanoseconds since the epoch.
    pub now_nanos: i128,
    /// Whether the registry file was looked at for this request.
    pub freshness: Freshness,
    /// Looks at the registry file: true when it is newer than the snapshot.
    pub registry_changed: &'c mut dyn FnMut() -> bool,
    /// Set when the request was tried before and had to wait: when that was.
    pub waiting_since: Option<Instant>,
    /// Set when the values were asked for, and then again when they have to be waited for.
    pub asked: &'c mut Option<Asked>,
    /// The time of this turn.
    pub now: Instant,
    /// Where requests are counted, if they are.
    pub meters: Option<&'c mut Meters>,
    /// The client waits no longer: a busy store fails the request now.
    pub out_of_patience: bool,
}

/// Most plans kept; beyond it all are dropped (shapes come from a client's code, there are few).
const MAX_PLANS: usize = 1024;

/// Compiled plans by the bytes of their shape.
#[derive(Debug, Default)]
pub struct PlanCache {
    generation: u64,
    plans: HashMap<Box<[u8]>, Rc<Plan>, foldhash::fast::RandomState>,
}

impl PlanCache {
    /// The plan of `shape`, if it was made from snapshot `generation`.
    pub fn get(&mut self, shape: &[u8], generation: u64) -> Option<Rc<Plan>> {
        if generation != self.generation {
            self.plans.clear();
            self.generation = generation;
        }
        self.plans.get(shape).cloned()
    }

    /// Keeps a plan.
    pub fn put(&mut self, shape: &[u8], plan: Rc<Plan>) {
        if self.plans.len() >= MAX_PLANS {
            self.plans.clear();
        }
        self.plans.insert(shape.into(), plan);
    }
}
