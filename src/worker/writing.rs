//! The thread that writes: requests go in, answers come out, and the loop never waits for a disk.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::Arc;

use mio::Waker;

use crate::api::write::{Done, Lane, Work};

/// Names a request on the writing thread.
pub(super) type Ticket = u64;

/// Most requests that wait for the thread.
const QUEUE: usize = 1024;

/// Makes what the thread works with, in the thread.
type MakeLane = Box<dyn Fn() -> Lane + Send + Sync>;

/// The way to the thread and the way back.
type Started = (SyncSender<(Ticket, Work)>, Receiver<(Ticket, Done)>);

/// The loop's end. The thread is started by the first request.
pub(super) struct Writing {
    make: Arc<MakeLane>,
    waker: Arc<Waker>,
    started: Option<Started>,
    next: Ticket,
    /// Requests given to the thread and not taken back.
    under_way: usize,
}

impl Writing {
    pub(super) fn new(make: MakeLane, waker: Arc<Waker>) -> Self {
        Self { make: Arc::new(make), waker, started: None, next: 0, under_way: 0 }
    }

    /// Gives a request to the thread; `None` when too many wait for it already.
    pub(super) fn submit(&mut self, work: Work) -> Option<Ticket> {
        if self.started.is_none() {
            self.start();
        }
        let (sender, _) = self.started.as_ref()?;
        let ticket = self.next;
        match sender.try_send((ticket, work)) {
            Ok(()) => {
                self.next += 1;
                self.under_way += 1;
                Some(ticket)
            }
            Err(TrySendError::Full(_)) => None,
            Err(TrySendError::Disconnected(_)) => {
                self.started = None;
                None
            }
        }
    }

    /// The next request that is done.
    pub(super) fn take(&mut self) -> Option<(Ticket, Done)> {
        if self.under_way == 0 {
            return None;
        }
        let done = self.started.as_ref()?.1.try_recv().ok()?;
        self.under_way -= 1;
        Some(done)
    }

    fn start(&mut self) {
        let (sender, work) = mpsc::sync_channel::<(Ticket, Work)>(QUEUE);
        let (results, receiver) = mpsc::channel();
        let (make, waker) = (self.make.clone(), self.waker.clone());
        let started = std::thread::Builder::new().name("writing".to_owned()).spawn(move || {
            let mut lane = make();
            while let Ok((ticket, work)) = work.recv() {
                let done = catch_unwind(AssertUnwindSafe(|| lane.run(&work))).unwrap_or_else(|_| {
                    // Whatever state it was in, the next request finds a fresh one.
                    lane = make();
                    let mut done = Done::default();
                    done.answer.json(500).extend_from_slice(b"\"internal error\"");
                    done
                });
                if results.send((ticket, done)).is_err() {
                    return;
                }
                let _ = waker.wake();
            }
        });
        match started {
            Ok(_) => self.started = Some((sender, receiver)),
            Err(error) => log::error!("cannot start the writing thread: {error}"),
        }
    }
}
