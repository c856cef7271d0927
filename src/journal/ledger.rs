//! Which effects the store doesn't have yet, and where in which segment each stands.
//!
//! The same changes make it when records are written and when they are read again at a start, in the
//! same order; so what a start finds is what the last run knew. Segments go from the oldest on only:
//! then a record that ends another one (by superseding or acknowledging it) is there as long as that one.
//!
//! Effects are written in the order of their sequence numbers, without gaps, so a segment needs no map: it
//! has a slot for each of its effects from its first live one on. The few that stand elsewhere (copies,
//! and what a damaged journal has left) are in a map.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
};

use super::MEMORY;
use crate::tier::disk::File;

/// Where an effect's record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of its segment.
    pub segment: u64,
    /// The byte at which it begins.
    pub at: u64,
    /// Its bytes.
    pub len: u32,
    /// When it was appended, unix milliseconds.
    pub written: u64,
}

/// A segment that is on disk.
pub struct Segment {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub path: PathBuf,
    /// Its file.
    pub file: Arc<dyn File>,
    /// What its checksums begin with.
    pub salt: u64,
    /// Its bytes, with those that wait to be written.
    pub len: u64,
    /// How many of its records the store doesn't have.
    pub live: u64,
    effects: Run,
}

impl Segment {
    /// One of which nothing is known to be live yet.
    pub fn new(id: u64, path: PathBuf, file: Arc<dyn File>, salt: u64, len: u64) -> Self {
        Self { id, path, file, salt, len, live: 0, effects: Run::default() }
    }

    fn place(&self, slot: Slot) -> Place {
        let Slot { at, len, written } = slot;
        Place { segment: self.id, at: u64::from(at), len, written }
    }
}

/// The effects of a segment that stand in their order; the first is live.
#[derive(Default)]
struct Run {
    /// The sequence number of the first. It isn't below those of the segments before, also where there is none.
    first: u64,
    slots: VecDeque<Slot>,
}

/// An effect's record in its segment.
#[derive(Clone, Copy)]
struct Slot {
    at: u32,
    /// 0: it is over.
    len: u32,
    written: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn slot(&self, sequence: u64) -> Option<Slot> {
        let index = sequence.checked_sub(self.first)?;
        self.slots.get(usize::try_from(index).ok()?).copied().filter(|slot| slot.len != 0)
    }

    /// Whether the next effect may stand behind them.
    fn takes(&self, sequence: u64) -> bool {
        self.slots.is_empty() || self.end() == sequence
    }

    fn push(&mut self, sequence: u64, slot: Slot) {
        if self.slots.is_empty() {
            self.first = sequence;
        }
        self.slots.push_back(slot);
    }

    /// Ends those of these that are live, and gives back how many and their bytes.
    fn end_all(&mut self, sequences: &RangeInclusive<u64>) -> (u64, u64) {
        let from = (*sequences.start()).max(self.first);
        let until = sequences.end().saturating_add(1).min(self.end());
        let (mut count, mut bytes) = (0, 0);
        for sequence in from..until {
            let slot = &mut self.slots[(sequence - self.first) as usize];
            count += u64::from(slot.len != 0);
            bytes += u64::from(std::mem::take(&mut slot.len));
        }
        while self.slots.front().is_some_and(|slot| slot.len == 0) {
            self.slots.pop_front();
            self.first += 1;
        }
        (count, bytes)
    }

    fn live(&self) -> impl Iterator<Item = (u64, Slot)> {
        (self.first..).zip(self.slots.iter().copied()).filter(|(_, slot)| slot.len != 0)
    }
}

/// What the store doesn't have yet.
#[derive(Default)]
pub struct Ledger {
    segments: VecDeque<Segment>,
    /// Those that stand out of order, wherever they are.
    others: BTreeMap<u64, Place>,
    /// The number that follows the highest that was put.
    next: u64,
    live: u64,
    live_bytes: u64,
}

impl Ledger {
    /// A new segment, in which records stand from now on.
    pub fn begin(&mut self, mut segment: Segment) {
        segment.effects.first = self.next;
        self.segments.push_back(segment);
    }

    /// The index of the segment that has this effect, if one has it in order.
    fn index_of(&self, sequence: u64) -> usize {
        let behind = self.segments.partition_point(|segment| segment.effects.first <= sequence);
        behind.saturating_sub(1)
    }

    /// An effect has got this place; one that it supersedes is ended. Gives back the room of those that are
    /// unacknowledged no more.
    pub fn put(&mut self, sequence: u64, place: Place, supersedes: u64) -> u64 {
        let mut freed = 0;
        if !self.put_in_order(sequence, place) {
            freed += self.end(sequence..=sequence);
            self.others.insert(sequence, place);
        }
        self.next = self.next.max(sequence + 1);
        if let Some(segment) = self.segment_mut(place.segment) {
            segment.live += 1;
        }
        self.live += 1;
        self.live_bytes += u64::from(place.len);
        if supersedes != 0 && supersedes < sequence {
            freed += self.end(supersedes..=supersedes);
        }
        freed
    }

    /// Puts an effect behind those of the newest segment, if that is its place in the order.
    fn put_in_order(&mut self, sequence: u64, place: Place) -> bool {
        let Place { at, len, written, .. } = place;
        let (Ok(at), true) = (u32::try_from(at), sequence >= self.next && len > 0) else {
            return false;
        };
        let newest = self.segments.back_mut().filter(|newest| newest.id == place.segment);
        let Some(newest) = newest.filter(|newest| newest.effects.takes(sequence)) else {
            return false;
        };
        newest.effects.push(sequence, Slot { at, len, written });
        true
    }

    /// The store has these. Gives back their room.
    pub fn end(&mut self, sequences: RangeInclusive<u64>) -> u64 {
        let before = self.room();
        let from = self.index_of(*sequences.start());
        for segment in self.segments.range_mut(from..) {
            if segment.effects.first > *sequences.end() {
                break;
            }
            let (count, bytes) = segment.effects.end_all(&sequences);
            segment.live -= count;
            self.live -= count;
            self.live_bytes -= bytes;
        }
        while let Some((&sequence, _)) = self.others.range(sequences.clone()).next() {
            let Some(place) = self.others.remove(&sequence) else { break };
            if let Some(segment) = self.segment_mut(place.segment) {
                segment.live -= 1;
            }
            self.live -= 1;
            self.live_bytes -= u64::from(place.len);
        }
        before - self.room()
    }

    /// Where an effect stands that the store doesn't have.
    pub fn place(&self, sequence: u64) -> Option<Place> {
        let segment = self.segments.get(self.index_of(sequence));
        let found = segment.and_then(|found| Some(found.place(found.effects.slot(sequence)?)));
        found.or_else(|| self.others.get(&sequence).copied())
    }

    /// All of them, in their order.
    pub fn all(&self) -> Vec<(u64, Place)> {
        let mut all: Vec<_> = self.others.iter().map(|(at, place)| (*at, *place)).collect();
        for segment in &self.segments {
            let place = |(sequence, slot)| (sequence, segment.place(slot));
            all.extend(segment.effects.live().map(place));
        }
        all.sort_unstable_by_key(|(sequence, _)| *sequence);
        all
    }

    /// How many they are.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// The room that they take.
    pub fn room(&self) -> u64 {
        self.live_bytes + self.live * MEMORY
    }

    /// The bytes of their records.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// When the oldest of them was appended.
    pub fn oldest(&self) -> Option<u64> {
        let first = |segment: &Segment| segment.effects.slots.front().map(|slot| slot.written);
        let others = self.others.first_key_value().map(|(_, place)| place.written);
        self.segments.iter().find_map(first).into_iter().chain(others).min()
    }

    /// A segment by its number.
    pub fn segment(&self, id: u64) -> Option<&Segment> {
        let index = self.segments.binary_search_by_key(&id, |segment| segment.id).ok()?;
        self.segments.get(index)
    }

    fn segment_mut(&mut self, id: u64) -> Option<&mut Segment> {
        let index = self.segments.binary_search_by_key(&id, |segment| segment.id).ok()?;
        self.segments.get_mut(index)
    }

    /// All segments, the oldest first.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &Segment> {
        self.segments.iter()
    }

    /// The oldest segment, unless it is the one in which records stand now.
    pub fn oldest_segment(&self) -> Option<&Segment> {
        self.segments.front().filter(|_| self.segments.len() > 1)
    }

    /// The oldest segment is gone.
    pub fn remove_oldest(&mut self) {
        self.segments.pop_front();
    }

    /// The segment in which records stand now.
    pub fn newest(&self) -> Option<&Segment> {
        self.segments.back()
    }

    /// The segment in which records stand now has grown.
    pub fn grow(&mut self, bytes: u64) {
        if let Some(segment) = self.segments.back_mut() {
            segment.len += bytes;
        }
    }

    /// Bytes of all segments.
    pub fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tier::disk::{Disk, memory::Memory};

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for id in [3, 4] {
            let file = Memory::new().open(Path::new("x"), false).expect("opens");
            ledger.begin(Segment::new(id, PathBuf::new(), file, 0, 100));
        }
        ledger
    }

    fn at(segment: u64, len: u32) -> Place {
        Place { segment, at: 64, len, written: 5 }
    }

    #[test]
    fn what_is_superseded_or_acknowledged_counts_no_more() {
        let mut ledger = ledger();
        assert_eq!(ledger.put(1, at(3, 10), 0), 0);
        assert_eq!(ledger.put(2, at(3, 20), 0), 0);
        assert_eq!(ledger.put(3, at(4, 30), 1), 10 + MEMORY);
        assert_eq!((ledger.live_bytes(), ledger.live()), (50, 2));
        assert_eq!(ledger.oldest_segment().map(|segment| segment.live), Some(1));
        // Written again, elsewhere.
        assert_eq!(ledger.put(2, at(4, 20), 0), 20 + MEMORY);
        assert_eq!(ledger.segments().map(|segment| segment.live).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(ledger.end(0..=u64::MAX), 50 + 2 * MEMORY);
        assert_eq!(ledger.end(2..=2), 0);
        assert_eq!((ledger.live_bytes(), ledger.oldest()), (0, None));
        ledger.remove_oldest();
        assert!(ledger.oldest_segment().is_none() && ledger.segment(3).is_none());
    }

    #[test]
    fn it_knows_what_a_map_of_all_effects_would() {
        const ROOM: u64 = 10 + MEMORY;
        let mut ledger = ledger();
        let mut map: BTreeMap<u64, Place> = BTreeMap::new();
        let mut seed = 0x9E37_79B9_7F4A_7C15;
        let mut random = |below: u64| {
            seed = crate::tier::shelf::next_random(seed);
            (seed >> 33) % below
        };
        let (mut next, mut newest) = (1_u64, 4);
        for step in 0..5_000 {
            let place = Place { segment: newest, at: 64 + step, len: 10, written: step };
            let some = next.saturating_sub(1 + random(40));
            let ended: Vec<u64> = match random(20) {
                0 => {
                    newest += 1;
                    let file = Memory::new().open(Path::new("x"), false).expect("opens");
                    ledger.begin(Segment::new(newest, PathBuf::new(), file, 0, 0));
                    Vec::new()
                }
                // A copy of one that is live, or one behind a gap.
                1 if map.contains_key(&some) => {
                    assert_eq!(ledger.put(some, place, 0), ROOM);
                    map.insert(some, place);
                    Vec::new()
                }
                1 => {
                    next += random(3);
                    Vec::new()
                }
                2..5 => {
                    let until = some + random(10);
                    let over = map.range(some..=until).count() as u64;
                    assert_eq!(ledger.end(some..=until), ROOM * over);
                    (some..=until).collect()
                }
                _ => {
                    let freed = if some > 0 && map.contains_key(&some) { ROOM } else { 0 };
                    assert_eq!(ledger.put(next, place, some), freed);
                    map.insert(next, place);
                    next += 1;
                    vec![some]
                }
            };
            map.retain(|sequence, _| !ended.contains(sequence));
            assert_eq!(ledger.place(some), map.get(&some).copied());
            assert_eq!(
                (ledger.live(), ledger.live_bytes()),
                (map.len() as u64, 10 * map.len() as u64)
            );
            while ledger.oldest_segment().is_some_and(|oldest| oldest.live == 0) {
                ledger.remove_oldest();
            }
            if step % 100 == 0 {
                assert!(ledger.all().into_iter().eq(map.clone()));
                for segment in ledger.segments() {
                    let live = map.values().filter(|place| place.segment == segment.id).count();
                    assert_eq!(segment.live, live as u64);
                }
                let oldest = map.first_key_value().map(|(_, place)| place.written);
                // A copy says when it was appended first; here it says when it was copied.
                assert!(ledger.oldest().is_some() == oldest.is_some());
            }
        }
    }
}
