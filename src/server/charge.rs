//! What a connection's buffers take, in the account of `memory`.

use std::cell::Cell;

use crate::cache::Cache;

/// Bytes that are accounted for until this is dropped.
pub(super) struct Charge {
    cache: Cache,
    bytes: Cell<usize>,
}

impl Charge {
    /// Nothing yet.
    pub(super) fn new(cache: Cache) -> Self {
        Self { cache, bytes: Cell::new(0) }
    }

    /// Makes it so many bytes.
    #[inline]
    pub(super) fn set(&self, bytes: usize) {
        let old = self.bytes.replace(bytes);
        if old != bytes {
            self.cache.memory().account(old, bytes, self.cache.clock().now());
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}
