//! The scoreboard: one slot of shared words per process, written by its owner, read by everybody.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::os::process::monotonic;
use crate::os::shm::Shared;

/// Most worker processes that can live at one time, retiring ones included.
pub const SLOTS: usize = 2048;
/// Most workers that may be asked for: each may have a successor while it retires.
pub const MAX_WORKERS: usize = SLOTS / 2 - 8;

/// What the process in a slot does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotState {
    /// Nobody is here.
    Free = 0,
    /// Forked, not ready.
    Booting = 1,
    /// Accepting and answering.
    Serving = 2,
    /// At its limit, serving until its successor is ready.
    Retiring = 3,
    /// No longer accepting.
    Draining = 4,
}

impl SlotState {
    /// The word that status and metrics use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "gone",
            Self::Booting => "booting",
            Self::Serving => "serving",
            Self::Retiring => "retiring",
            Self::Draining => "draining",
        }
    }
}

/// What the master does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum TreePhase {
    /// Keeping the number of workers.
    Running = 0,
    /// Replacing workers of an earlier configuration.
    Reloading = 1,
    /// Waiting for the last answers.
    Draining = 2,
    /// Ending at once.
    Quitting = 3,
    /// A new master has been started and takes over.
    Upgrading = 4,
    /// It is that new master.
    TakingOver = 5,
}

impl TreePhase {
    const ALL: [Self; 6] =
        [Self::Running, Self::Reloading, Self::Draining, Self::Quitting, Self::Upgrading, Self::TakingOver];

    /// The word that status and titles use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Reloading => "reloading",
            Self::Draining => "draining",
            Self::Quitting => "quitting",
            Self::Upgrading => "upgrading",
            Self::TakingOver => "taking over",
        }
    }
}

fn millis() -> u64 {
    monotonic().as_millis() as u64
}

fn since(then: u64) -> Duration {
    Duration::from_millis(millis().saturating_sub(then))
}

crate::shared_words! {
    /// One process. The size keeps neighbours off each other's cache lines.
    #[derive(Debug)]
    #[repr(C, align(128))]
    pub struct Slot {
        state: AtomicU32,
        pid: AtomicU32,
        connections: AtomicU32,
        /// Milliseconds on the monotonic clock.
        heartbeat: AtomicU64,
        requests: AtomicU64,
        /// When it was forked, milliseconds on the monotonic clock.
        born: AtomicU64,
    }
}

crate::shared_words! {
    /// Facts about the whole tree.
    #[derive(Debug)]
    #[repr(C)]
    pub struct Header {
        /// Slots that were ever used: nobody needs to look behind them.
        used: AtomicU32,
        /// What the master does.
        phase: AtomicU32,
        /// Workers that it keeps.
        wanted: AtomicU32,
        /// When it started, milliseconds on the monotonic clock.
        started: AtomicU64,
    }
}

/// The mapped scoreboard. Made once, before the first fork.
#[derive(Debug)]
pub struct Scoreboard {
    header: Shared<Header>,
    slots: Shared<Slot>,
}

impl Scoreboard {
    /// Maps an empty scoreboard.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            header: Shared::new("feast-prefork-header", 1)?,
            slots: Shared::new("feast-prefork-slots", SLOTS)?,
        })
    }

    /// Takes the lowest free slot for a process about to be forked; `None` when all are taken.
    pub fn claim(&self) -> Option<usize> {
        let index = self.slots.iter().position(|slot| slot.state() == SlotState::Free)?;
        let slot = &self.slots[index];
        slot.pid.store(0, Relaxed);
        slot.connections.store(0, Relaxed);
        slot.requests.store(0, Relaxed);
        slot.born.store(millis(), Relaxed);
        slot.beat();
        slot.set_state(SlotState::Booting);
        self.header[0].used.fetch_max(index as u32 + 1, Relaxed);
        Some(index)
    }

    /// A slot by its number.
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    /// Says what the master does.
    pub fn set_phase(&self, phase: TreePhase, wanted: usize) {
        let header = &self.header[0];
        header.phase.store(phase as u32, Relaxed);
        header.wanted.store(wanted as u32, Relaxed);
        let _ = header.started.compare_exchange(0, millis(), Relaxed, Relaxed);
    }

    /// What the master does, how many workers it keeps, and how long it has been at work.
    pub fn tree(&self) -> (TreePhase, usize, Duration) {
        let header = &self.header[0];
        let phase = TreePhase::ALL.get(header.phase.load(Relaxed) as usize).copied();
        (
            phase.unwrap_or(TreePhase::Running),
            header.wanted.load(Relaxed) as usize,
            since(header.started.load(Relaxed)),
        )
    }

    /// Every slot with somebody in it.
    pub fn taken(&self) -> impl Iterator<Item = &Slot> {
        let used = self.header[0].used.load(Relaxed) as usize;
        self.slots[..used].iter().filter(|slot| slot.state() != SlotState::Free)
    }

    /// Workers that accept, and the connections they hold together.
    pub fn load(&self) -> (u32, u32) {
        let used = self.header[0].used.load(Relaxed) as usize;
        let serving = |slot: &&Slot| matches!(slot.state(), SlotState::Serving | SlotState::Retiring);
        self.slots[..used]
            .iter()
            .filter(serving)
            .fold((0, 0), |(workers, sum), slot| (workers + 1, sum + slot.connections()))
    }
}

impl Slot {
    /// What its process does.
    pub fn state(&self) -> SlotState {
        match self.state.load(Relaxed) {
            1 => SlotState::Booting,
            2 => SlotState::Serving,
            3 => SlotState::Retiring,
            4 => SlotState::Draining,
            _ => SlotState::Free,
        }
    }

    /// Says what its process does.
    pub fn set_state(&self, state: SlotState) {
        self.state.store(state as u32, Relaxed);
    }

    /// Its process, as told by the master.
    pub fn set_pid(&self, pid: i32) {
        self.pid.store(pid.cast_unsigned(), Relaxed);
    }

    /// Its process; 0 for a moment around the fork.
    pub fn pid(&self) -> i32 {
        self.pid.load(Relaxed).cast_signed()
    }

    /// Time since the fork.
    pub fn age(&self) -> Duration {
        since(self.born.load(Relaxed))
    }

    /// Shows that its process is alive.
    pub fn beat(&self) {
        self.heartbeat.store(millis(), Relaxed);
    }

    /// Time since the last beat.
    pub fn silence(&self) -> Duration {
        since(self.heartbeat.load(Relaxed))
    }

    /// Open connections.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Says how many connections are open.
    pub fn set_connections(&self, count: usize) {
        self.connections.store(count as u32, Relaxed);
    }

    /// Requests parsed by this process.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Says how many requests were parsed.
    pub fn set_requests(&self, count: u64) {
        self.requests.store(count, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_slot_is_taken() {
        let board = Scoreboard::new().unwrap();
        assert_eq!((board.claim(), board.claim(), board.claim()), (Some(0), Some(1), Some(2)));
        board.slot(1).set_state(SlotState::Free);
        assert_eq!(board.claim(), Some(1));
        for (index, connections) in [(0, 3), (2, 5)] {
            board.slot(index).set_state(SlotState::Serving);
            board.slot(index).set_connections(connections);
        }
        assert_eq!(board.load(), (2, 8));
    }
}
