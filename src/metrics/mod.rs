//! How do numbers in files become one text? Prometheus' multiprocess files: read, merged, printed.
//!
//! A process keeps its numbers in mapped files, one per type; whoever is asked merges the files of all of them.
//! The format, the rules of merging and the text are those of the Python client. What must not happen here:
//! requests, sockets.

pub mod aggregate;
pub mod directory;
pub mod encoder;
pub mod expose;
pub mod figures;
pub mod file;
pub mod handles;
pub mod mapped;
pub mod meters;
pub mod names;
pub mod statsd;
