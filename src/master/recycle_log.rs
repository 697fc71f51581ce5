//! Workers that come and go many times a second: a few speak, the rest is one line every ten seconds.

use std::time::{Duration, Instant};

/// Recycles per second whose lines are written.
const SPOKEN_PER_SECOND: u32 = 3;
/// How often the others are summed up.
const EVERY: Duration = Duration::from_secs(10);

/// Counts recycles.
#[derive(Debug)]
pub(super) struct RecycleLog {
    second: Instant,
    spoken: u32,
    silent: u64,
    reported: Instant,
}

impl RecycleLog {
    pub(super) fn new(now: Instant) -> Self {
        Self { second: now, spoken: 0, silent: 0, reported: now }
    }

    /// True when the next worker may write its lines.
    pub(super) fn speak(&mut self, now: Instant) -> bool {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.spoken = 0;
        }
        self.spoken += 1;
        let speaks = self.spoken <= SPOKEN_PER_SECOND;
        self.silent += u64::from(!speaks);
        speaks
    }

    /// Writes the summary when it is time and there is something to say.
    pub(super) fn report(&mut self, now: Instant) {
        if now.duration_since(self.reported) < EVERY {
            return;
        }
        self.reported = now;
        if self.silent > 0 {
            log::info!("{} more workers were recycled in the last {} s", self.silent, EVERY.as_secs());
            self.silent = 0;
        }
    }
}
