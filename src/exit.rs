//! Exit codes of the master and of its workers, documented in `docs/operations.md`.

/// Normal stop.
pub const OK: i32 = 0;
/// Bad configuration, unsupported type, or an address that cannot be bound.
pub const CONFIG: i32 = 1;
/// Bad command line.
pub const USAGE: i32 = 2;
/// The first workers could not start.
pub const BOOT_FAILED: i32 = 3;
/// The registry cannot be read.
pub const LOAD_FAILED: i32 = 4;
/// A worker's loop broke down.
pub const CRASHED: i32 = 255;
