//! Rates: what went by in the last second, from counters that only rise.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;

/// Readings of counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// When, since the start of the server.
    pub at: Duration,
    /// Commands carried out.
    pub commands: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Rounds of the workers' loops.
    pub cycles: u64,
    /// Those of them that were timed.
    pub timed_cycles: u64,
    /// Nanoseconds of these.
    pub cycle_nanos: u64,
}

/// The rates between the last two readings, per second.
#[derive(Debug, Default)]
pub struct Rates {
    last: Mutex<Reading>,
    commands: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    cycles: AtomicU64,
    /// Of one, in nanoseconds.
    cycle_nanos: AtomicU64,
}

impl Rates {
    /// Takes a new reading.
    pub fn note(&self, now: Reading) {
        let mut last = self.last.lock();
        let passed = now.at.saturating_sub(last.at);
        if passed.is_zero() {
            return;
        }
        // A counter that was reset in between has fallen.
        let rate = |new: u64, old: u64| {
            (new.saturating_sub(old) as f64 / passed.as_secs_f64()).round() as u64
        };
        self.commands.store(rate(now.commands, last.commands), Relaxed);
        self.received.store(rate(now.received, last.received), Relaxed);
        self.sent.store(rate(now.sent, last.sent), Relaxed);
        self.cycles.store(rate(now.cycles, last.cycles), Relaxed);
        let nanos = now.cycle_nanos.saturating_sub(last.cycle_nanos);
        let timed = now.timed_cycles.saturating_sub(last.timed_cycles);
        // Where none was timed, the last that were still tell.
        if let Some(nanos) = nanos.checked_div(timed) {
            self.cycle_nanos.store(nanos, Relaxed);
        }
        *last = now;
    }

    /// Commands a second.
    pub fn commands(&self) -> u64 {
        self.commands.load(Relaxed)
    }

    /// Bytes received a second.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Bytes sent a second.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Rounds of the workers' loops a second.
    pub fn cycles(&self) -> u64 {
        self.cycles.load(Relaxed)
    }

    /// How long one of them takes, in nanoseconds.
    pub fn cycle_nanos(&self) -> u64 {
        self.cycle_nanos.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second() {
        let rates = Rates::default();
        let reading = |at, commands| Reading {
            at: Duration::from_millis(at),
            commands,
            received: 10 * commands,
            sent: 0,
            cycles: 2 * commands,
            timed_cycles: commands / 10,
            cycle_nanos: commands * 700,
        };
        rates.note(reading(1_000, 100));
        assert_eq!((rates.commands(), rates.received(), rates.sent()), (100, 1_000, 0));
        rates.note(reading(3_000, 150));
        assert_eq!((rates.commands(), rates.received()), (25, 250));
        assert_eq!((rates.cycles(), rates.cycle_nanos()), (50, 7_000));
        rates.note(reading(3_000, 900));
        assert_eq!(rates.commands(), 25);
        rates.note(reading(4_000, 0));
        assert_eq!((rates.commands(), rates.cycles(), rates.cycle_nanos()), (0, 0, 7_000));
    }
}
