//! Which cells does a request need, and how are they keyed, typed and printed?
//!
//! Everything here is pure: bytes and definitions in, bytes out. A request's feature list is compiled once
//! into a [`plan::Plan`]; after that a request is array indexing and copying. What must not happen here:
//! I/O, clocks, HTTP.

pub mod cell;
pub mod cells;
pub mod document;
pub mod encode;
pub mod entity;
pub mod entity_key;
pub mod frame;
pub mod plan;
pub mod resolve;
pub mod rows;
pub mod types;
pub mod value;
pub mod zone;
