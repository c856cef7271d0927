//! How many rounds a worker's loop makes, and how long they take: INFO's `eventloop_` fields.
//!
//! A round goes from the poll's answer to the next question; sleep is no part of it. One in so many is
//! timed, so that a round of a single request doesn't pay for two looks at the clock.

use std::time::Instant;

use crate::command::shared::WorkerStats;

/// One round in so many is timed.
const SAMPLE: u32 = 16;

/// A worker's rounds.
#[derive(Default)]
pub(super) struct Cycles {
    count: u32,
    /// When the present one began, if it is timed.
    started: Option<Instant>,
}

impl Cycles {
    /// A round begins.
    #[inline]
    pub(super) fn begin(&mut self, stats: &WorkerStats) {
        stats.cycles.add(1);
        self.count = self.count.wrapping_add(1);
        if self.count.is_multiple_of(SAMPLE) {
            self.started = Some(Instant::now());
        }
    }

    /// A round, if one had begun, is over.
    #[inline]
    pub(super) fn end(&mut self, stats: &WorkerStats) {
        if let Some(started) = self.started.take() {
            stats.timed_cycles.add(1);
            stats.cycle_nanos.add(started.elapsed().as_nanos() as u64);
        }
    }
}
