//! How does text become a setting? `feature_store.yaml`, and the settings of the server.
//!
//! `yaml` is the only file that knows the YAML crate, `expand` replaces variables in the raw text, `store`
//! checks the keys and makes types of them, `settings` holds what the command line decides. What must not
//! happen here: I/O other than reading the one file it is asked to read.

pub mod expand;
mod metrics;
pub mod redis;
pub mod settings;
pub mod store;
pub mod writes;
pub mod yaml;

pub use settings::{Bind, Settings};
pub use store::StoreConfig;

/// A setting that cannot be used: one line with where, what and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}{}{hint}", if .hint.is_empty() { "" } else { "; " })]
pub struct ConfigError {
    /// File and key, or flag.
    pub place: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub hint: String,
}

impl ConfigError {
    /// An error at `place`.
    pub fn new(place: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into(), hint: hint.into() }
    }
}
