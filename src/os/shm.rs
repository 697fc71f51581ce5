//! Memory shared by a process and the children it forks.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;

use memmap2::{MmapMut, MmapOptions};
use nix::sys::memfd::{memfd_create, MFdFlags};

/// Types made of atomics only, for which all-zero bytes are a valid value.
///
/// # Safety
/// Implement only for `repr(C)` types whose every field is an atomic integer (or an array of such types):
/// other processes change the memory at any time.
pub unsafe trait AllAtomic: Sync {}

/// Declares a `repr(C)` struct of atomics and claims [`AllAtomic`] for it, so that the claim cannot be made
/// for anything else: every field type must be one of the standard atomic integers.
#[macro_export]
macro_rules! shared_words {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $field:ident: $kind:ident,)* }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$fmeta])* $field: ::std::sync::atomic::$kind,)* }
        // SAFETY: `repr(C)` is written at each use, and every field is a type of `std::sync::atomic`, for
        // which all-zero bytes are valid.
        #[allow(unsafe_code)]
        unsafe impl $crate::os::shm::AllAtomic for $name {}
    };
}

/// A fixed array of `T` in a memory file that survives `fork` as one and the same memory. It starts zeroed;
/// a page costs memory only once it is touched.
#[derive(Debug)]
pub struct Shared<T: AllAtomic> {
    map: MmapMut,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: AllAtomic> Shared<T> {
    /// Maps `len` elements; `name` shows up in `/proc/<pid>/maps`.
    pub fn new(name: &str, len: usize) -> io::Result<Self> {
        let name = CString::new(name).map_err(io::Error::other)?;
        let file = File::from(memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC)?);
        let bytes = len * size_of::<T>();
        file.set_len(bytes as u64)?;
        // SAFETY: the file is ours alone and never shrinks; concurrent writers exist by design, which is
        // why `T` consists of atomics.
        let map = unsafe { MmapOptions::new().len(bytes).map_mut(&file) }?;
        assert_eq!(map.as_ptr() as usize % align_of::<T>(), 0, "mappings are page-aligned");
        Ok(Self { map, len, kind: PhantomData })
    }
}

impl<T: AllAtomic> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the map is `len * size_of::<T>()` bytes, aligned (asserted in `new`), lives as long as
        // `self`, and any bytes are a valid `T`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}
