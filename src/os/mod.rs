//! What does the kernel need? Small typed wrappers around system calls; no policy.
//!
//! This is the only module of the crate where `unsafe` is allowed, and each block says why it is sound.
//! What must not happen here: decisions. A function does what its name says and reports the error.
#![allow(unsafe_code)]

pub mod epoll;
pub mod exec;
pub mod fdpass;
pub mod fork;
pub mod lock;
pub mod mapfile;
pub mod notify;
pub mod process;
pub mod shm;
pub mod signals;
pub mod sockets;
pub mod title;
