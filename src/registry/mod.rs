//! What does the repository define? The registry file, decoded.
//!
//! `wire` reads and writes protobuf, `model` and `source` decode the definitions a server needs, `snapshot` indexes
//! one project of them, `edit` changes a registry without losing what it does not know, `file` knows the file and
//! when it has changed. What must not happen here: anything that
//! depends on a request.

pub mod edit;
pub mod file;
pub mod model;
pub mod snapshot;
pub mod source;
pub mod wire;

pub use file::RegistryFile;
pub use snapshot::Snapshot;

/// Why a registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file is not there.
    #[error("Registry not found at path \"{0}\". Have you run \"feast apply\"?")]
    Missing(String),
    /// The file could not be read or created.
    #[error("cannot read the registry {path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file cannot be edited.
    #[error("cannot change the registry {path}: {problem}")]
    Edit {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The bytes are not a `feast.core.Registry`.
    #[error("Error parsing message with type 'feast.core.Registry': {0}")]
    Corrupt(#[from] wire::WireError),
}
