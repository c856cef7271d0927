//! Which effects the store doesn't have yet, and where in which segment each stands.
//!
//! The same changes make it when records are written and when they are read again at a start, in the
//! same order; so what a start finds is what the last run knew. Segments go from the oldest on only:
//! then a record that ends another one (by superseding or acknowledging it) is there as long as that one.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
};

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
}

/// What the store doesn't have yet.
#[derive(Default)]
pub struct Ledger {
    live: BTreeMap<u64, Place>,
    live_bytes: u64,
    segments: VecDeque<Segment>,
}

impl Ledger {
    /// A new segment, in which records stand from now on.
    pub fn begin(&mut self, segment: Segment) {
        self.segments.push_back(segment);
    }

    /// An effect has got this place; one that it supersedes is ended. Gives back the bytes that are
    /// unacknowledged no more.
    pub fn put(&mut self, sequence: u64, place: Place, supersedes: u64) -> u64 {
        if let Some(segment) = self.segment_mut(place.segment) {
            segment.live += 1;
        }
        self.live_bytes += u64::from(place.len);
        let before = self.live.insert(sequence, place).map_or(0, |before| self.left(before));
        before + if supersedes < sequence { self.end(supersedes..=supersedes) } else { 0 }
    }

    /// The store has these. Gives back their bytes.
    pub fn end(&mut self, sequences: RangeInclusive<u64>) -> u64 {
        let mut bytes = 0;
        while let Some((&sequence, _)) = self.live.range(sequences.clone()).next() {
            bytes += self.live.remove(&sequence).map_or(0, |place| self.left(place));
        }
        bytes
    }

    fn left(&mut self, place: Place) -> u64 {
        if let Some(segment) = self.segment_mut(place.segment) {
            segment.live = segment.live.saturating_sub(1);
        }
        self.live_bytes -= u64::from(place.len);
        u64::from(place.len)
    }

    /// Where an effect stands that the store doesn't have.
    pub fn place(&self, sequence: u64) -> Option<Place> {
        self.live.get(&sequence).copied()
    }

    /// All of them, in their order.
    pub fn live(&self) -> impl ExactSizeIterator<Item = (u64, Place)> {
        self.live.iter().map(|(sequence, place)| (*sequence, *place))
    }

    /// The bytes of their records.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// When the oldest of them was appended.
    pub fn oldest(&self) -> Option<u64> {
        self.live.first_key_value().map(|(_, place)| place.written)
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
            let path = PathBuf::new();
            ledger.begin(Segment { id, path, file, salt: 0, len: 100, live: 0 });
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
        assert_eq!(ledger.put(3, at(4, 30), 1), 10);
        assert_eq!((ledger.live_bytes(), ledger.live().count()), (50, 2));
        assert_eq!(ledger.oldest_segment().map(|segment| segment.live), Some(1));
        // Written again, elsewhere.
        assert_eq!(ledger.put(2, at(4, 20), 0), 20);
        assert_eq!(ledger.segments().map(|segment| segment.live).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(ledger.end(0..=u64::MAX), 50);
        assert_eq!(ledger.end(2..=2), 0);
        assert_eq!((ledger.live_bytes(), ledger.oldest()), (0, None));
        ledger.remove_oldest();
        assert!(ledger.oldest_segment().is_none() && ledger.segment(3).is_none());
    }
}
