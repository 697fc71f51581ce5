//! feast-prefork: a prefork feature server for Feast repositories.
//!
//! The library exists so that tests and benches reach the modules; the product is the `feast-prefork`
//! binary. Modules use only modules of the rows above them:
//!
//! | modules | question |
//! |---|---|
//! | [`text`], [`os`], [`exit`] | How does Python print this? What does the kernel need? |
//! | [`net`], [`tls`], [`http`], [`registry`], [`logging`], [`config`], [`ipc`], [`metrics`] | How do bytes become a connection, a request, a definition, a line, a setting, a number? |
//! | [`feature`] | Which cells does a request need and how are they keyed, typed and printed? |
//! | [`online`], [`offline`] | Where do the bytes come from, and where do they go? |
//! | [`api`] | What does each route do, step by step? |
//! | [`jobs`], [`define`] | What runs in a process of its own? What does a repository declare? |
//! | [`worker`], [`scrape`] | When does each step run? Who reads the metric files? |
//! | [`master`] | Which processes exist, and in which phase? |
//! | [`cli`] | What did the operator ask for? |

pub mod api;
pub mod cli;
pub mod config;
pub mod define;
pub mod exit;
pub mod feature;
pub mod http;
pub mod ipc;
pub mod jobs;
pub mod logging;
pub mod master;
pub mod metrics;
pub mod net;
pub mod offline;
pub mod online;
pub mod os;
pub mod registry;
pub mod scrape;
pub mod text;
pub mod tls;
pub mod worker;
