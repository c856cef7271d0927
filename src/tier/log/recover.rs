//! Recovery: the index from what is on disk.

use std::time::Instant;

use super::{super::memory::Memory, Log, add};

impl Log {
    /// Brings the records that count into the index. Call it before anything is demoted or served.
    pub fn recover(&self, memory: &Memory) -> u64 {
        let started = Instant::now();
        let mut count = 0;
        for segment in 0..self.shape.segments {
            let items = match self.contents(segment) {
                Ok(items) => items,
                Err(error) => {
                    tracing::warn!("segment {segment} of L3 can't be read: {error}");
                    add(&self.counters.read_errors, 1);
                    self.state.clear_bits(segment..segment + 1);
                    continue;
                }
            };
            for item in &items {
                if memory.adopt_record(item) {
                    count += 1;
                } else {
                    self.state.set_invalid(item.slot.place());
                }
            }
            // A bit without a record, after a power loss.
            let valid = self.state.valid_in(segment).count();
            if valid > items.len() {
                self.state.clear_bits(segment..segment + 1);
                items.iter().for_each(|item| {
                    if memory.record_of(item).is_some() {
                        self.state.set_valid(item.slot.place());
                    }
                });
            }
        }
        add(&self.counters.recovered, count);
        if count > 0 {
            let took = started.elapsed();
            tracing::info!("L3: {count} records found in {took:.1?}");
        }
        count
    }
}
