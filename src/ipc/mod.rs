//! How do master and workers talk? Words in shared memory, packets on channels, connections handed over.
//!
//! What must not happen here: policy. Who retires, and when, is the master's business.

pub mod channel;
pub mod control;
pub mod handover;
pub mod job;
pub mod scoreboard;
