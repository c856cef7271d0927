//! Recovery: the index from what is on disk.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Instant,
};

use super::{super::memory::Memory, Log, add};

impl Log {
    /// Brings the records that count into the index, on all cores, and returns how many there are. Call
    /// it before anything is demoted or served.
    pub fn recover(&self, memory: &Memory) -> u64 {
        let started = Instant::now();
        let (next, count) = (AtomicUsize::new(0), AtomicU64::new(0));
        let recover = || {
            loop {
                let segment = next.fetch_add(1, Relaxed);
                if segment >= self.shape.segments {
                    return;
                }
                count.fetch_add(self.recover_segment(memory, segment), Relaxed);
            }
        };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(recover))));
        let count = count.into_inner();
        add(&self.counters.recovered, count);
        if count > 0 {
            let took = started.elapsed();
            tracing::info!("L3: {count} records found in {took:.1?}");
        }
        count
    }

    fn recover_segment(&self, memory: &Memory, segment: usize) -> u64 {
        let mut items = match self.contents(segment) {
            Ok(items) => items,
            Err(error) => {
                tracing::warn!("segment {segment} of L3 can't be read: {error}");
                add(&self.counters.read_errors, 1);
                self.state.clear_bits(segment..segment + 1);
                return 0;
            }
        };
        let count = memory.adopt_records(&mut items);
        // A bit without a record, after a power loss.
        if self.state.valid_in(segment).count() > items.len() {
            self.state.clear_bits(segment..segment + 1);
            for item in &items {
                if memory.record_of(item).is_some() {
                    self.state.set_valid(item.slot.place());
                }
            }
        }
        count
    }
}
