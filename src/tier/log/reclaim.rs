//! Reclaim: the oldest segment makes room for new records.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    super::{entry::EntryRef, memory::Memory, shelf::is_live},
    UNIT, add,
    contents::Item,
    record,
    slot::{HOT, RESIDENT, VOLATILE},
    state::Kind,
    writer::{Writer, record_bytes},
};

/// Bytes that may be written for each byte admitted.
const MOST_WRITTEN: f64 = 1.2;
/// The share of a segment that hot records may take to be written again: at least, however much padding
/// takes, and at most.
const HOT_LEAST: f64 = 0.04;
const HOT_MOST: f64 = 0.15;

impl Writer {
    /// Empties a segment. Records that may not be forgotten, and some hot ones, are written again.
    pub(super) fn reclaim(&mut self, memory: &Memory, segment: usize) -> io::Result<()> {
        if self.log.state().segment(segment).1 == Kind::Empty {
            return Ok(());
        }
        let mut budget = self.hot_budget();
        for item in self.items_of(memory, segment) {
            let Some(slot) = memory.record_of(&item) else { continue };
            let is_kept = memory.keeps(slot.has(VOLATILE));
            let is_hot = slot.has(HOT) && !slot.has(RESIDENT) && slot.bytes() <= budget;
            if !is_kept && !is_hot {
                if slot.has(RESIDENT) && slot.has(HOT) {
                    // It has proved its worth: it is taken when it leaves memory.
                    self.log.admission.is_known(item.hash);
                }
                memory.drop_record(item.keyspace, item.hash, item.slot);
                add(&self.log.counters.forgotten, 1);
                continue;
            }
            if !is_kept {
                budget -= slot.bytes();
            }
            self.write_again(memory, &item);
        }
        self.send_all(memory)?;
        self.empty(memory, segment);
        Ok(())
    }

    /// Bytes of hot records that may be written again into the segment that is begun: what is written in
    /// all, padding and tables included, is to stay below [`MOST_WRITTEN`] times what is admitted.
    fn hot_budget(&self) -> usize {
        let count = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let counters = &self.log.counters;
        let records = count(&counters.demoted_bytes) + count(&counters.reinserted_bytes);
        // With this share of a segment for records, of which hot ones take `share`: 1 / (payload - share).
        let payload = records / count(&counters.written_bytes).max(1.0);
        let share = (payload - 1.0 / MOST_WRITTEN).clamp(HOT_LEAST, HOT_MOST);
        (self.log.shape().segment_bytes as f64 * share) as usize
    }

    fn items_of(&self, memory: &Memory, segment: usize) -> Vec<Item> {
        self.log.contents(segment).unwrap_or_else(|error| {
            tracing::warn!("a segment of L3 can't be read: {error}");
            add(&self.log.counters.read_errors, 1);
            memory.drop_segment(segment);
            Vec::new()
        })
    }

    fn write_again(&mut self, memory: &Memory, item: &Item) {
        let log = self.log.clone();
        let (generation, _) = log.state().segment(log.segment_of(item.slot.place()));
        let start = item.slot.place() * UNIT as u64;
        let bytes = log.read_bytes(&mut self.reads, start, item.slot.bytes());
        let entry = match bytes.map(record::read) {
            Ok(Ok(record))
                if record.head.generation == generation && memory.hash(record.key) == item.hash =>
            {
                Some(record.entry(None))
            }
            Ok(_) => {
                add(&log.counters.bad_records, 1);
                None
            }
            Err(_) => {
                add(&log.counters.read_errors, 1);
                None
            }
        };
        let has_ended = |entry: &EntryRef| !is_live(entry.get(), crate::clock::micros() / 1_000);
        let room = |entry: &EntryRef| self.has_room(record_bytes(entry));
        let Some(entry) = entry.filter(|entry| room(entry) && !has_ended(entry)) else {
            memory.drop_record(item.keyspace, item.hash, item.slot);
            return;
        };
        self.put(item.keyspace, item.hash, item.slot, &entry);
        add(&log.counters.reinserted, 1);
        add(&log.counters.reinserted_bytes, record_bytes(&entry) as u64);
    }

    /// Empties a segment without a second chance for anything.
    pub(super) fn forget(&self, memory: &Memory, segment: usize) {
        for item in self.items_of(memory, segment) {
            memory.drop_record(item.keyspace, item.hash, item.slot);
            add(&self.log.counters.forgotten, 1);
        }
        self.empty(memory, segment);
    }

    fn empty(&self, memory: &Memory, segment: usize) {
        let state = self.log.state();
        // What the table didn't tell of.
        if state.valid_in(segment).next().is_some() {
            memory.drop_segment(segment);
        }
        state.clear_bits(segment..segment + 1);
        let (generation, _) = state.segment(segment);
        state.set_segment(segment, generation, Kind::Empty);
    }
}
