//! Reclaim: an old segment makes room for new records.
//!
//! Segments take their turn like the entries of a clock: one whose records were hit often since its last
//! turn is passed over, which costs no write; of the first that wasn't, some hot records are written again,
//! together with those of other segments, and the others are forgotten.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    super::{entry::EntryRef, memory::Memory, shelf::is_live},
    UNIT, add,
    contents::Item,
    slot::{HOT, RESIDENT, VOLATILE},
    state::Kind,
    writer::{Head, Writer, record_bytes},
};

/// Bytes that may be written for each byte admitted; a little below the promise of 1.2, since what is
/// spent is counted a segment late.
const MOST_WRITTEN: f64 = 1.19;
/// The share of a segment that hot records may take to be written again, however much was saved.
const HOT_MOST: f64 = 0.5;

/// A segment is passed over if hot records take more than this share of it; so many are looked at.
const HOT_ENOUGH: f64 = 0.3;
const LOOKED_AT: usize = 8;

/// What hot records may cost: [`MOST_WRITTEN`] for all that was admitted since the first reclaim, less all
/// that was written, padding and tables included. What one segment doesn't use the next one may, as long
/// as that is less than a segment; nor is more than a segment owed.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    bytes: f64,
    /// Bytes admitted and written until the last reclaim.
    seen: Option<(u64, u64)>,
}

impl Allowance {
    /// Bytes of hot records that may be written again, so many having been admitted and written so far.
    fn spend(&mut self, admitted: u64, written: u64, segment: usize) -> usize {
        let seen = self.seen.replace((admitted, written)).unwrap_or((admitted, written));
        let earned = admitted.saturating_sub(seen.0) as f64 * MOST_WRITTEN;
        let spent = written.saturating_sub(seen.1) as f64;
        let segment = segment as f64;
        self.bytes = (self.bytes + earned - spent).clamp(-segment, segment);
        self.bytes.clamp(0.0, HOT_MOST * segment) as usize
    }
}

impl Writer {
    /// The segment whose turn it is. Those that are passed over get another one.
    pub(super) fn victim(&self, memory: &Memory) -> Option<usize> {
        let state = self.log.state();
        let oldest = self.in_turn();
        if memory.keeps_all() {
            // All of it is written again, so the less the better. The parts of a long record go with it.
            let valid = |segment: &usize| match state.segment(*segment).1 {
                Kind::Part => i64::MAX,
                _ => self.log.valid[*segment].load(Relaxed),
            };
            return oldest.into_iter().min_by_key(valid);
        }
        // The parts of a long record come after it.
        let heat = |segment: usize| match state.segment(segment).1 {
            Kind::Sealed => self.log.hot_share(segment),
            _ => 0.0,
        };
        let looked_at = &oldest[..oldest.len().min(LOOKED_AT)];
        let cool = looked_at.iter().position(|segment| heat(*segment) <= HOT_ENOUGH);
        let coolest = || {
            let heats = looked_at.iter().map(|segment| heat(*segment)).enumerate();
            heats.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
        };
        let at = cool.or_else(coolest)?;
        for segment in &looked_at[..at] {
            self.items_of(memory, *segment).iter().for_each(|item| memory.cool_record(item));
            // What a dropped database left behind.
            self.log.hot[*segment].store(0, Relaxed);
            state.give_turn(*segment);
        }
        Some(looked_at[at])
    }

    /// Empties a segment. Records that may not be forgotten, and some hot ones, are written again; false if
    /// there was no room for all of them where survivors stand, so that the others stand with the new ones.
    pub(super) fn reclaim(&mut self, memory: &Memory, segment: usize) -> io::Result<bool> {
        let mut fitted = true;
        let mut budget = self.hot_budget();
        for item in self.items_of(memory, segment) {
            let Some(slot) = memory.record_of(&item) else { continue };
            let is_kept = memory.keeps(slot.has(VOLATILE));
            let is_hot = slot.has(HOT) && !slot.has(RESIDENT) && slot.bytes() <= budget;
            if !is_kept && !is_hot {
                self.log.note_let_go(item.hash);
                memory.drop_record(item.keyspace, item.hash, item.slot);
                add(&self.log.counters.forgotten, 1);
                continue;
            }
            if !is_kept {
                budget -= slot.bytes();
            }
            let bytes = slot.bytes();
            let fits = !memory.keeps_all() && self.has_room(Head::Again, bytes);
            let head = if fits { Head::Again } else { Head::Fresh };
            fitted &= fits;
            self.turn_to(memory, head)?;
            let empty = self.log.state().empty_segments().next();
            if let Some(empty) = empty.filter(|_| !self.has_room(head, bytes)) {
                self.seal(memory)?;
                self.begin_at(empty, 1, false);
            }
            self.write_again(memory, &item, head)?;
        }
        self.send_all(memory)?;
        self.empty(memory, segment);
        Ok(fitted)
    }

    fn hot_budget(&mut self) -> usize {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = &self.log.counters;
        let (admitted, written) = (count(&counters.demoted_bytes), count(&counters.written_bytes));
        self.allowance.spend(admitted, written, self.log.shape().segment_bytes)
    }

    fn items_of(&self, memory: &Memory, segment: usize) -> Vec<Item> {
        self.log.contents(segment).unwrap_or_else(|error| {
            tracing::warn!("a segment of L3 can't be read: {error}");
            add(&self.log.counters.read_errors, 1);
            memory.drop_segment(segment);
            Vec::new()
        })
    }

    fn write_again(&mut self, memory: &Memory, item: &Item, head: Head) -> io::Result<()> {
        let log = self.log.clone();
        let (generation, _) = log.state().segment(log.segment_of(item.slot.place()));
        let start = item.slot.place() * UNIT as u64;
        let bytes = log.read_bytes(&mut self.reads, start, item.slot.bytes());
        let found = match bytes.map(|bytes| log.read_record(bytes)) {
            Ok(Ok(record))
                if record.head.generation == generation && memory.hash(record.key) == item.hash =>
            {
                Some((record.entry(None), record.head.version))
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
        let room = |entry: &EntryRef| self.has_room(head, record_bytes(entry));
        let found = found.filter(|(entry, _)| room(entry) && !has_ended(entry));
        let Some((entry, version)) = found else {
            memory.drop_record(item.keyspace, item.hash, item.slot);
            return Ok(());
        };
        // It stays of the run that it is of.
        self.put(item.keyspace, item.hash, item.slot, &entry, version);
        add(&log.counters.reinserted, 1);
        add(&log.counters.reinserted_bytes, record_bytes(&entry) as u64);
        self.send_chunk(memory)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Reclaims so many segments of a million bytes, each with so many bytes of hot records and so many
    /// that are lost, and returns the bytes written for each byte admitted.
    fn amplification(hot: usize, lost: u64) -> f64 {
        const SEGMENT: usize = 1_000_000;
        let mut allowance = Allowance::default();
        let (mut admitted, mut written) = (64_000_000, 64_000_000);
        let start = (admitted, written);
        for _ in 0..1_000 {
            let again = allowance.spend(admitted, written, SEGMENT).min(hot);
            admitted += SEGMENT as u64 - again as u64 - lost;
            written += SEGMENT as u64;
        }
        (written - start.1) as f64 / (admitted - start.0) as f64
    }

    #[test]
    fn hot_records_get_what_is_left_of_the_allowance_and_no_more() {
        assert!((1.18..1.2).contains(&amplification(500_000, 0)));
        assert!((1.18..1.2).contains(&amplification(500_000, 100_000)));
        // Few are hot.
        assert!((1.05..1.06).contains(&amplification(50_000, 0)));
        // Padding alone takes more.
        assert!((1.24..1.26).contains(&amplification(500_000, 200_000)));
    }

    #[test]
    fn what_is_saved_may_be_spent_later_but_not_much_of_it() {
        let mut allowance = Allowance::default();
        assert_eq!(allowance.spend(0, 0, 1_000), 0);
        assert_eq!(allowance.spend(1_000, 1_000, 1_000), 190);
        assert_eq!(allowance.spend(100_000, 100_000, 1_000), 500);
        assert_eq!(allowance.spend(100_000, 101_000, 1_000), 0);
        assert_eq!(allowance.spend(101_000, 102_000, 1_000), 190);
    }
}
