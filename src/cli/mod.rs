//! What did the operator ask for? Flags, environment and file become settings; subcommands become calls.
//!
//! The only place that knows clap, prints to the terminal, and reads the environment.

mod activation;
mod args;
mod commands;
mod ctl;
mod demo_repo;
mod quickstart;
mod resolve;

pub use commands::main;
