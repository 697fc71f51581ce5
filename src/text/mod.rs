//! How does Python print this? Pure functions that append to byte buffers.
//!
//! The reference server is a Python program; its floats, `repr`s, `int()` and timestamps are part of what
//! clients see. What must not happen here: I/O, clocks, allocation per value.

pub mod fastjson;
pub mod json;
pub mod pyfmt;
pub mod pyint;
pub mod pyjson;
pub mod pyrepr;
pub mod time;
mod unicode;
pub mod when;

/// True when `code` lies in one of the sorted inclusive `ranges`.
fn in_ranges(ranges: &[(u32, u32)], code: u32) -> bool {
    ranges
        .binary_search_by(|&(first, last)| {
            if last < code {
                std::cmp::Ordering::Less
            } else if first > code {
                std::cmp::Ordering::Greater
            } else {
                std::cmp::Ordering::Equal
            }
        })
        .is_ok()
}
