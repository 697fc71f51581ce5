//! Is the registry file newer than what is served? Looking at it, and loading it without stopping the loop.

use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Waker;

use crate::registry::file::Stamp;
use crate::registry::{RegistryError, RegistryFile, Snapshot};

/// How a load ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loaded {
    /// The new content is in force.
    Fresh,
    /// The file cannot be used; the old content stays in force.
    Failed,
}

struct WakeOnDrop(Arc<Waker>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        let _ = self.0.wake();
    }
}

type LoadResult = Result<(Snapshot, Option<Stamp>), RegistryError>;

/// The registry as one worker knows it.
#[derive(Debug)]
pub(super) struct Watch {
    file: RegistryFile,
    snapshot: Arc<Snapshot>,
    /// What was looked at last: the content in force, or a version that could not be used.
    stamp: Option<Stamp>,
    ttl: Duration,
    next_check: Option<Instant>,
    /// When the file was last compared with what is served.
    compared: Instant,
    waker: Arc<Waker>,
    loading: Option<Receiver<LoadResult>>,
}

impl Watch {
    pub(super) fn new(
        file: RegistryFile,
        snapshot: Arc<Snapshot>,
        stamp: Option<Stamp>,
        ttl: Duration,
        waker: Arc<Waker>,
    ) -> Self {
        let next_check = (!ttl.is_zero()).then(|| Instant::now() + ttl);
        Self { file, snapshot, stamp, ttl, next_check, compared: Instant::now(), waker, loading: None }
    }

    /// Time since the file was last compared with what is served.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.compared)
    }

    pub(super) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    pub(super) fn next_check(&self) -> Option<Instant> {
        self.next_check
    }

    /// Looks at the file when its time has come. A failure never stops the timer.
    pub(super) fn check_if_due(&mut self, now: Instant) {
        if self.next_check.is_some_and(|at| at <= now) {
            self.next_check = Some(now + self.ttl);
            self.changed();
        }
    }

    /// True when the file differs from what is served; it is being loaded then. A missing file is no change:
    /// what was loaded stays in force.
    pub(super) fn changed(&mut self) -> bool {
        if self.loading.is_some() {
            return true;
        }
        let found = self.file.stamp();
        if found.is_some() {
            self.compared = Instant::now();
        }
        match found {
            // An empty file where there was a registry is one that is being rewritten.
            Some(stamp) if Some(stamp) != self.stamp && !stamp.is_empty() => self.start(),
            _ => false,
        }
    }

    /// Loads in a thread of its own; the waker tells when it is done. False when no thread can be had.
    fn start(&mut self) -> bool {
        let (sender, receiver) = mpsc::channel();
        let (file, waker) = (self.file.clone(), self.waker.clone());
        let generation = self.snapshot.generation + 1;
        let started = std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            // Wakes the loop however this ends; the sender is gone by then.
            let _wake = WakeOnDrop(waker);
            let sender = sender;
            let _ = sender.send(file.load(generation));
        });
        match started {
            Ok(_) => {
                self.loading = Some(receiver);
                true
            }
            Err(error) => {
                log::error!("cannot start the registry thread: {error}");
                false
            }
        }
    }

    /// Takes what the thread has loaded.
    pub(super) fn finish(&mut self) -> Option<Loaded> {
        let result = match self.loading.as_ref()?.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => {
                self.loading = None;
                log::error!("loading the registry broke down; serving the registry loaded before");
                return Some(Loaded::Failed);
            }
        };
        self.loading = None;
        match result {
            Ok((snapshot, stamp)) => {
                self.snapshot = Arc::new(snapshot);
                self.stamp = stamp;
                log::debug!("registry reloaded from {}", self.file.path().display());
                Some(Loaded::Fresh)
            }
            Err(error) => {
                // Remembered, so that one broken version is reported once.
                self.stamp = self.file.stamp();
                log::error!("{error}; serving the registry loaded before");
                Some(Loaded::Failed)
            }
        }
    }
}
