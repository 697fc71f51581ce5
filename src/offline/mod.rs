//! Rows in Parquet files: what is materialized, and where offline pushes go.
//!
//! `files` finds the files of a source, `read` turns Arrow columns into cells, `latest` picks the newest row of
//! every entity, `cast` and `append` write pushed rows, `spool` keeps them until their batch is due. Runs on
//! threads and in jobs, never on the loop. What must not happen here: HTTP, the registry file.

pub mod append;
pub mod cast;
pub mod files;
pub mod latest;
pub mod read;
pub mod spool;
