//! The title of a process: what `ps` shows instead of its command line.
//!
//! Linux shows the memory in which the kernel placed the arguments. It is written over; when the title is longer, the memory
//! behind it as well, where the environment was.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::OnceLock;

/// Address and length of the memory for the title.
static PLACE: OnceLock<Option<(usize, usize)>> = OnceLock::new();

/// Bytes that have been written so far: the rest is empty.
static SHOWN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Makes room for titles. To be called once, by the only thread, when the arguments have been read for the last time.
pub fn prepare() {
    PLACE.get_or_init(|| {
        let place = find()?;
        // The environment moves out of the way: the C library copies what is set.
        for (name, value) in std::env::vars_os() {
            if !name.is_empty() && !name.as_encoded_bytes().contains(&b'=') {
                // A name that is there twice would stay where it was the second time.
                std::env::remove_var(&name);
                std::env::set_var(name, value);
            }
        }
        Some(place)
    });
}

/// Arguments and environment lie next to each other: fields 48 to 51 of `/proc/self/stat`.
fn find() -> Option<(usize, usize)> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may hold anything, but ends with the last parenthesis.
    let (_, rest) = text.rsplit_once(") ")?;
    let words: Vec<usize> =
        rest.split_ascii_whitespace().skip(45).take(4).filter_map(|word| word.parse().ok()).collect();
    let [arguments, arguments_end, environment, environment_end] = words[..] else { return None };
    let is_whole = arguments > 0 && arguments < arguments_end && arguments_end == environment;
    (is_whole && environment < environment_end).then_some((arguments, environment_end - arguments))
}

/// Gives this process a title. Nothing happens where there is no room for one.
pub fn set(title: &str) {
    let Some(Some((start, length))) = PLACE.get().copied() else { return };
    let shown = title.len().min(length - 1);
    let before = SHOWN.swap(shown, Relaxed).min(length);
    let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel has placed arguments and environment in these `length` bytes of the initial stack, which stay mapped
    // and writable; nobody reads them any more: the arguments were read, the environment was copied by `prepare`.
    #[allow(unsafe_code)]
    let place = unsafe { std::slice::from_raw_parts_mut(place, length) };
    place[..shown].copy_from_slice(&title.as_bytes()[..shown]);
    place[shown..before.max(shown)].fill(0);
}

/// Gives this process the title of its role and of what it does.
pub fn show(role: &str, state: &str) {
    set(&format!("feast-prefork: {role} ({state})"));
}
