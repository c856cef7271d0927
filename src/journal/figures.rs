//! What the journal tells of itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The journal in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Bytes of all segments on disk.
    pub disk_bytes: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Effects that the store doesn't have.
    pub unacknowledged: u64,
    /// Bytes of their records.
    pub unacknowledged_bytes: u64,
    /// How long ago the oldest of them was appended, in milliseconds.
    pub oldest_age: u64,
    /// Effects that were written since the start.
    pub written: u64,
    /// Bytes that were written since the start, marks, acknowledgements and copies included.
    pub written_bytes: u64,
    /// Records that were written again so that their segment could go.
    pub compacted: u64,
    /// Syncs of files.
    pub syncs: u64,
    /// Microseconds that they took.
    pub sync_micros: u64,
    /// Microseconds that the longest took.
    pub longest_sync: u64,
    /// Writes and syncs that failed: more than none, and the journal is poisoned.
    pub write_errors: u64,
    /// Old segments that couldn't be read or removed; tried again later.
    pub compaction_errors: u64,
    /// Those who wait for effects to be durable.
    pub waiting: u64,
    /// Whether nothing is acknowledged any more.
    pub poisoned: bool,
}

/// What the writer counts, for others to read.
#[derive(Default)]
pub(super) struct Counters {
    pub disk_bytes: AtomicU64,
    pub segments: AtomicU64,
    pub unacknowledged: AtomicU64,
    pub unacknowledged_bytes: AtomicU64,
    /// When the oldest unacknowledged effect was appended; `u64::MAX`: there is none.
    pub oldest: AtomicU64,
    pub written: AtomicU64,
    pub written_bytes: AtomicU64,
    pub compacted: AtomicU64,
    pub syncs: AtomicU64,
    pub sync_micros: AtomicU64,
    pub longest_sync: AtomicU64,
    pub write_errors: AtomicU64,
    pub compaction_errors: AtomicU64,
}

impl Counters {
    /// Counts a sync.
    pub fn synced(&self, micros: u64) {
        self.syncs.fetch_add(1, Relaxed);
        self.sync_micros.fetch_add(micros, Relaxed);
        self.longest_sync.fetch_max(micros, Relaxed);
    }

    /// The figures at this time; what the writer doesn't count is left open.
    pub fn figures(&self, now: u64) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        Figures {
            disk_bytes: get(&self.disk_bytes),
            segments: get(&self.segments),
            unacknowledged: get(&self.unacknowledged),
            unacknowledged_bytes: get(&self.unacknowledged_bytes),
            oldest_age: now.saturating_sub(get(&self.oldest)),
            written: get(&self.written),
            written_bytes: get(&self.written_bytes),
            compacted: get(&self.compacted),
            syncs: get(&self.syncs),
            sync_micros: get(&self.sync_micros),
            longest_sync: get(&self.longest_sync),
            write_errors: get(&self.write_errors),
            compaction_errors: get(&self.compaction_errors),
            waiting: 0,
            poisoned: false,
        }
    }
}
