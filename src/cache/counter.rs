//! Counters that cost one plain store: each thread has its own set, and who reports sums them up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter with one writer at a time and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds, without a locked instruction: only the owning thread writes.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Starts again from zero; an addition at the same moment may win.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// What a thread counts about keys.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lookups that found the key.
    pub hits: Counter,
    /// Lookups that didn't.
    pub misses: Counter,
    /// Hits in the worker's own cache.
    pub local_hits: Counter,
    /// Hits whose entry had to be read from disk.
    pub disk_hits: Counter,
    /// Hits whose entry had to be loaded from a store.
    pub loaded_hits: Counter,
}
