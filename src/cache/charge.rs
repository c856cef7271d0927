//! Memory beside the tiers that counts in the account of `memory`: what clients make the server keep.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::Cache;

/// Bytes that are accounted for until this is dropped. One thread at a time changes them.
pub struct Charge {
    cache: Cache,
    bytes: AtomicUsize,
}

impl Charge {
    /// Nothing yet.
    pub fn new(cache: Cache) -> Self {
        Self { cache, bytes: AtomicUsize::new(0) }
    }

    /// Makes it so many bytes; entries make room for them. Call it with no stripe held.
    #[inline]
    pub fn set(&self, bytes: usize) {
        let old = self.bytes.load(Relaxed);
        if old != bytes {
            self.bytes.store(bytes, Relaxed);
            self.cache.memory().account(old, bytes, self.cache.clock().now());
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}
