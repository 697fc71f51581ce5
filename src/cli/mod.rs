//! What did the operator ask for? Flags, environment and file become settings; subcommands become calls.
//!
//! The only place that knows clap, prints to the terminal, and reads the environment.

mod activation;
mod apply;
mod args;
mod commands;
mod ctl;
mod get;
mod init;
mod list;
mod materialize;
mod quickstart;
mod resolve;
mod site;
mod top;

pub use commands::main;
