//! Where do the bytes come from? The online stores behind one trait.
//!
//! What must not happen here: anything that knows HTTP, JSON or a request's shape beyond its keys. Nothing
//! above this module knows which store it talks to.

pub mod sqlite;
pub mod sqlite_write;

use crate::feature::cells::{Cells, Keys};
use crate::feature::plan::ViewRead;

/// Why a read did not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// A writer holds the store; the same read may succeed in a few milliseconds.
    Busy,
    /// The read failed; the text is what the reference answers.
    Failed(String),
}

/// A store of feature values. One instance serves one worker and is made after the fork.
pub trait OnlineStore {
    /// Fetches the features of `view` under every key of `keys` into `cells`, which has been reset to the
    /// right size. Reads between two calls of [`end_tick`](Self::end_tick) see one state of the store.
    fn read(&mut self, view: &ViewRead, keys: &Keys, cells: &mut Cells) -> Result<(), ReadError>;

    /// Ends what the reads of this tick share. Called once after each turn of the loop.
    fn end_tick(&mut self);
}
