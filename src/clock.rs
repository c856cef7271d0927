//! The only `now`: wall time in unix milliseconds, and a hand-set clock for tests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Where the time comes from.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// A clock that stands at `now` (unix milliseconds) until [`Clock::set`] moves it.
    pub fn manual(now: u64) -> Self {
        Self(Some(Arc::new(AtomicU64::new(now))))
    }

    /// Moves a manual clock; the system's clock isn't ours to move.
    pub fn set(&self, now: u64) {
        if let Some(hand) = &self.0 {
            hand.store(now, Relaxed);
        }
    }

    /// The time as versions of writes have it (SEMANTICS 14): in unix microseconds.
    pub fn version(&self) -> u64 {
        version_at(self.now())
    }

    /// The time in unix milliseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        match &self.0 {
            Some(hand) => hand.load(Relaxed),
            None => micros() / 1000,
        }
    }
}

/// A time in unix milliseconds as versions of writes have it.
#[inline]
pub fn version_at(now: u64) -> u64 {
    now.saturating_mul(1000)
}

/// The system's time in unix microseconds.
pub fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_until_it_is_moved() {
        let clock = Clock::manual(5);
        let same = clock.clone();
        assert_eq!(clock.now(), 5);
        same.set(9);
        assert_eq!(clock.now(), 9);
        assert!(Clock::default().now() > 1_700_000_000_000);
    }
}
