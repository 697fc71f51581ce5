//! Where do the bytes come from? The online stores behind one trait.
//!
//! What must not happen here: anything that knows HTTP, JSON or a request's shape beyond its keys. Nothing
//! above this module knows which store it talks to.

pub mod redis;
pub mod sqlite;
pub mod sqlite_write;

use std::time::Instant;

use mio::Token;

use crate::feature::cells::{Cells, Keys};
use crate::feature::plan::ViewRead;
use crate::feature::rows::{NoTime, Rows};

/// Why a read did not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// A writer holds the store; the same read may succeed in a few milliseconds.
    Busy,
    /// The read failed; the text is what the reference answers.
    Failed(String),
    /// Too many requests wait for the store already.
    Overloaded,
}

/// Why rows were not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unwritten {
    /// The text is what the reference answers.
    Failed(String),
}

/// The writing side of a store: blocking, for threads and jobs. Made after the fork, on first use.
pub trait OnlineWriter: Send {
    /// Stores all rows of all views, or, in stores that have transactions, none.
    fn write(&mut self, views: &[Rows]) -> Result<(), Unwritten>;

    /// What the reference answers to rows without times.
    fn no_time(&self) -> NoTime;
}

/// Whether values are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// They are in the cells.
    Done,
    /// They were asked for; the request is run again when they have come.
    Pending,
}

/// Reads of one request that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    index: u32,
    generation: u32,
}

/// A store of feature values. One instance serves one worker and is made after the fork.
///
/// A request calls [`begin`](Self::begin), [`read`](Self::read) per view, and then [`end`](Self::end), or
/// [`take_ticket`](Self::take_ticket) if a read is pending. A store that answers in place needs only `read` and `end_tick`.
pub trait OnlineStore {
    /// Begins the reads of a request: `resumed` when they were asked for before.
    fn begin(&mut self, resumed: Option<Ticket>, now: Instant) {
        let _ = (resumed, now);
    }

    /// Fetches the features of `view` under every key of `keys` into `cells`, which has been reset to the
    /// right size. Reads between two calls of [`end_tick`](Self::end_tick) see one state of a store that has states.
    fn read(&mut self, view: &ViewRead, keys: &Keys, cells: &mut Cells) -> Result<Progress, ReadError>;

    /// Ends the reads of a request that got its answer.
    fn end(&mut self) {}

    /// Ends the reads of a request that waits.
    fn take_ticket(&mut self) -> Option<Ticket> {
        None
    }

    /// Says who is to be told when the values have come.
    fn own(&mut self, ticket: Ticket, owner: usize) {
        let _ = (ticket, owner);
    }

    /// Nobody waits for these reads any more.
    fn forget(&mut self, ticket: Ticket) {
        let _ = ticket;
    }

    /// Something happened to the connection registered under `token`; `closed` when nothing follows what can be
    /// read now.
    fn ready(&mut self, token: Token, closed: bool, now: Instant) {
        let _ = (token, closed, now);
    }

    /// Does what is due, and appends the owners of reads that have ended.
    fn turn(&mut self, now: Instant, done: &mut Vec<usize>) {
        let _ = (now, done);
    }

    /// When something is due.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Called once at the end of each turn of the loop.
    fn end_tick(&mut self);

    /// A value that is not stored is answered as a null that is there, as the reference does with this store.
    fn missing_is_present(&self) -> bool {
        false
    }
}
