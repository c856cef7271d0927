//! The index of L3: which of the records on disk a key may have, in about nine bytes a record.
//!
//! Keys are on disk; the index knows 25 bits of their hash (behind the bits that name stripe and
//! segment), so that one lookup in about 65,000 finds a record of another key. Whoever reads a record
//! compares its key; whoever invalidates one invalidates all that look alike: a tier may forget.
//!
//! ```text
//!  slot (8 bytes) | hash, 18 bits | place 35 bits | length class 7 | flags 4 |
//!  tail (1 byte)  | hash, 7 bits, and the mark |
//! ```
//!
//! A segment is a sorted array: slots have no gaps, a lookup starts where the hash is expected to be
//! (interpolation) and sees a line or two. Past [`SPLIT`] slots a segment becomes two (extendible
//! hashing, as in the table of L2), which uses up one bit of each slot's hash; the bits below it aren't
//! known, so a mark follows the last known bit. Records are written again or go with their segment of
//! the log, so few slots are older than the last few splits. The order of slots is the order of hashes,
//! which SCAN needs.

use smallvec::SmallVec;

use super::{
    super::class::class,
    slot::{QUEUED, RESIDENT, SLOT_BITS, Slot, VOLATILE},
};

/// Slots at which a segment becomes two.
const SPLIT: usize = 512;
/// Bits of a hash in the slot, and in all; below the last of them stands the mark.
const HEAD_BITS: u32 = 64 - SLOT_BITS;
const TAIL_BITS: u32 = 8;
const FIELD_BITS: u32 = HEAD_BITS + TAIL_BITS;
const KNOWN: u32 = FIELD_BITS - 1;
/// Segments that deep grow without bound; no disk has so many records.
const MAX_DEPTH: u32 = 20;

#[derive(Default)]
struct Segment {
    slots: Vec<u64>,
    tails: Vec<u8>,
    /// Bits of the hash that are the same for all.
    depth: u32,
    /// The fewest bits that are known of a slot.
    least: u32,
    /// The value of the bits that are the same.
    prefix: u64,
}

/// Where a slot stands; valid until the index changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    segment: u32,
    index: u32,
}

/// The index of one stripe and database.
pub struct Index {
    segments: Vec<Segment>,
    /// Which segment has the hashes that begin with these bits.
    directory: Vec<u32>,
    bits: u32,
    stripe_bits: u32,
    len: usize,
    resident: usize,
    volatile: usize,
    /// Of the records that are written: how many, their units, and the units of those without a deadline.
    written: (u64, u64, u64),
    bytes: usize,
}

/// The known bits of a hash whose first bits are shifted out, and the mark.
fn field(fraction: u64) -> u32 {
    ((fraction >> (64 - KNOWN)) as u32) << 1 | 1
}

/// Whether the known bits of a field are those of a complete one.
fn fits(field: u32, wanted: u32) -> bool {
    (field ^ wanted) >> (field.trailing_zeros() + 1) == 0
}

impl Segment {
    fn field(&self, index: usize) -> u32 {
        ((self.slots[index] >> SLOT_BITS) as u32) << TAIL_BITS | u32::from(self.tails[index])
    }

    fn slot(&self, index: usize) -> Slot {
        Slot(self.slots[index] & ((1 << SLOT_BITS) - 1))
    }

    fn bytes(&self) -> usize {
        if self.slots.capacity() == 0 {
            return 0;
        }
        class(self.slots.capacity() * 8) + class(self.tails.capacity())
    }

    /// The first slot whose field, shifted, isn't below `wanted`.
    fn lower(&self, wanted: u32, shift: u32) -> usize {
        let guess = (u64::from(wanted << shift) * self.slots.len() as u64) >> FIELD_BITS;
        let mut at = guess as usize;
        while at > 0 && self.field(at - 1) >> shift >= wanted {
            at -= 1;
        }
        while at < self.slots.len() && self.field(at) >> shift < wanted {
            at += 1;
        }
        at
    }

    fn put(&mut self, index: usize, field: u32, slot: Slot) {
        if self.slots.len() == self.slots.capacity() {
            // The next size class: a quarter more at most.
            let room = class(self.slots.len() * 8 + 8) / 8;
            self.slots.reserve_exact(room - self.slots.len());
            self.tails.reserve_exact(room - self.tails.len());
        }
        self.slots.insert(index, u64::from(field >> TAIL_BITS) << SLOT_BITS | slot.0);
        self.tails.insert(index, field as u8);
    }

    /// Moves the upper half of the hashes into a new segment.
    fn split(&mut self) -> Self {
        let middle = self.lower(1 << (FIELD_BITS - 1), 0);
        let depth = self.depth + 1;
        let half = |range: std::ops::Range<usize>, prefix| {
            let mut half = Self { depth, prefix, least: KNOWN, ..Self::default() };
            half.slots.reserve_exact(class(range.len() * 8) / 8);
            half.tails.reserve_exact(class(range.len() * 8) / 8);
            for index in range {
                let field = self.field(index) << 1 & ((1 << FIELD_BITS) - 1);
                half.least = half.least.min(KNOWN - field.trailing_zeros());
                let at = half.slots.len();
                half.put(at, field, self.slot(index));
            }
            half
        };
        let upper = half(middle..self.slots.len(), self.prefix << 1 | 1);
        *self = half(0..middle, self.prefix << 1);
        upper
    }

    /// The first hash that a slot may have, stripe's bits shifted out.
    fn start(&self, index: usize) -> u64 {
        let field = self.field(index);
        let known = u64::from(field & (field - 1)) >> 1;
        let prefix = if self.depth == 0 { 0 } else { self.prefix << (64 - self.depth) };
        prefix | known << (64 - KNOWN) >> self.depth
    }
}

impl Index {
    /// An empty index for hashes whose first bits are spent.
    pub fn new(stripe_bits: u32) -> Self {
        Self {
            segments: Vec::new(),
            directory: Vec::new(),
            bits: 0,
            stripe_bits,
            len: 0,
            resident: 0,
            volatile: 0,
            written: (0, 0, 0),
            bytes: 0,
        }
    }

    /// Records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Records of which memory has no copy: all, and those with a deadline.
    pub fn cold(&self) -> (usize, usize) {
        (self.len - self.resident, self.volatile)
    }

    /// Records that are written, their units, and the units of those without a deadline.
    pub fn written(&self) -> (u64, u64, u64) {
        self.written
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.bytes
            + self.directory.capacity() * size_of::<u32>()
            + self.segments.capacity() * size_of::<Segment>()
    }

    #[inline]
    fn segment_of(&self, rest: u64) -> u32 {
        // Two shifts, since a shift by 64 is none.
        self.directory[(rest >> 1 >> (63 - self.bits)) as usize]
    }

    /// Where records stand that a key with this hash may have. Most often there is one, or none.
    #[inline]
    pub fn find(&self, hash: u64) -> SmallVec<[At; 2]> {
        if self.len == 0 {
            return SmallVec::new();
        }
        let rest = hash << self.stripe_bits;
        let number = self.segment_of(rest);
        let segment = &self.segments[number as usize];
        let wanted = field(rest << segment.depth);
        let shift = FIELD_BITS - segment.least;
        let mut found = SmallVec::new();
        for index in segment.lower(wanted >> shift, shift)..segment.slots.len() {
            let field = segment.field(index);
            if field >> shift != wanted >> shift {
                break;
            }
            if fits(field, wanted) {
                found.push(At { segment: number, index: index as u32 });
            }
        }
        found
    }

    /// Whether a key with this hash may have a record.
    #[inline]
    pub fn has(&self, hash: u64) -> bool {
        !self.find(hash).is_empty()
    }

    /// Where this record of a key with this hash stands.
    pub fn find_slot(&self, hash: u64, slot: Slot) -> Option<At> {
        self.find(hash).into_iter().find(|at| self.slot(*at).is_same(slot))
    }

    /// What stands there.
    #[inline]
    pub fn slot(&self, at: At) -> Slot {
        self.segments[at.segment as usize].slot(at.index as usize)
    }

    fn count(&mut self, slot: Slot, add: bool) {
        let one = if add { 1 } else { usize::MAX };
        self.len = self.len.wrapping_add(one);
        if !slot.has(QUEUED) {
            let (count, units, lasting) = &mut self.written;
            let change = if add { slot.units() } else { slot.units().wrapping_neg() };
            *count = count.wrapping_add(one as u64);
            *units = units.wrapping_add(change);
            if !slot.has(VOLATILE) {
                *lasting = lasting.wrapping_add(change);
            }
        }
        if slot.has(RESIDENT) {
            self.resident = self.resident.wrapping_add(one);
        } else if slot.has(VOLATILE) {
            self.volatile = self.volatile.wrapping_add(one);
        }
    }

    /// Puts another slot there.
    pub fn set(&mut self, at: At, slot: Slot) {
        self.count(self.slot(at), false);
        self.count(slot, true);
        let word = &mut self.segments[at.segment as usize].slots[at.index as usize];
        *word = *word >> SLOT_BITS << SLOT_BITS | slot.0;
    }

    /// Takes a slot out.
    pub fn remove(&mut self, at: At) -> Slot {
        let slot = self.slot(at);
        self.count(slot, false);
        let segment = &mut self.segments[at.segment as usize];
        let before = segment.bytes();
        segment.slots.remove(at.index as usize);
        segment.tails.remove(at.index as usize);
        if segment.slots.len() < segment.slots.capacity() / 2 {
            let room = class(segment.slots.len() * 8) / 8;
            segment.slots.shrink_to(room);
            segment.tails.shrink_to(room);
        }
        self.bytes = self.bytes - before + segment.bytes();
        slot
    }

    /// Adds a record of a key with this hash.
    pub fn insert(&mut self, hash: u64, slot: Slot) {
        if self.segments.is_empty() {
            self.segments.push(Segment { least: KNOWN, ..Segment::default() });
            self.directory.push(0);
        }
        let rest = hash << self.stripe_bits;
        let mut number = self.segment_of(rest);
        let segment = &self.segments[number as usize];
        if segment.slots.len() >= SPLIT && segment.depth < MAX_DEPTH {
            self.split(number);
            number = self.segment_of(rest);
        }
        let segment = &mut self.segments[number as usize];
        let before = segment.bytes();
        let field = field(rest << segment.depth);
        if segment.slots.is_empty() {
            segment.least = KNOWN;
        }
        let at = segment.lower(field, 0);
        segment.put(at, field, slot);
        self.bytes = self.bytes - before + segment.bytes();
        self.count(slot, true);
    }

    fn split(&mut self, number: u32) {
        let old = self.segments[number as usize].bytes();
        let upper = self.segments[number as usize].split();
        let lower = &self.segments[number as usize];
        self.bytes = self.bytes - old + lower.bytes() + upper.bytes();
        let depth = upper.depth;
        if depth > self.bits {
            self.directory = self.directory.iter().flat_map(|number| [*number, *number]).collect();
            self.bits += 1;
        }
        let run = 1 << (self.bits - depth);
        let first = upper.prefix as usize * run;
        let new = self.segments.len() as u32;
        self.directory[first..first + run].fill(new);
        self.segments.push(upper);
    }

    /// Shows records in the order of their hashes (stripe's bits shifted out) from `from` on and before
    /// `to`, at most about `most` of them: it ends between two that differ above the bit `cell`. Returns
    /// where to go on if that is before `to`.
    pub fn scan(
        &self,
        from: u64,
        to: u128,
        (most, cell): (usize, u32),
        mut seen: impl FnMut(Slot),
    ) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let (mut shown, mut last) = (0, None);
        let mut place = (from >> 1 >> (63 - self.bits)) as usize;
        while place < self.directory.len() {
            let segment = &self.segments[self.directory[place] as usize];
            for index in 0..segment.slots.len() {
                let start = segment.start(index);
                if start < from {
                    continue;
                }
                if u128::from(start) >= to {
                    return None;
                }
                if shown >= most && last != Some(start >> cell) {
                    return Some(start);
                }
                seen(segment.slot(index));
                (shown, last) = (shown + 1, Some(start >> cell));
            }
            place = (segment.prefix as usize + 1) << (self.bits - segment.depth);
        }
        None
    }

    /// Removes the records that `stays` says no to.
    pub fn retain(&mut self, mut stays: impl FnMut(Slot) -> bool) {
        for number in 0..self.segments.len() {
            for index in (0..self.segments[number].slots.len()).rev() {
                let at = At { segment: number as u32, index: index as u32 };
                if !stays(self.slot(at)) {
                    self.remove(at);
                }
            }
        }
    }

    /// A record at random.
    pub fn random(&self, random: u64) -> Option<Slot> {
        let filled = (0..self.directory.len())
            .map(|step| (random as usize).wrapping_add(step) % self.directory.len())
            .map(|place| &self.segments[self.directory[place] as usize])
            .find(|segment| !segment.slots.is_empty())?;
        Some(filled.slot((random >> 32) as usize % filled.slots.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{super::slot::HOT, *};

    fn hash(number: u64) -> u64 {
        let mut hash = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash ^= hash >> 29;
        hash.wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ hash >> 32
    }

    fn place(number: u64) -> Slot {
        Slot::written(number, 1 + number % 20, 0)
    }

    #[test]
    fn every_record_is_found_and_few_others() {
        let mut index = Index::new(3);
        const COUNT: u64 = 200_000;
        for number in 0..COUNT {
            // One stripe's hashes.
            index.insert(hash(number) >> 3, place(number));
        }
        let mut others = 0;
        for number in 0..COUNT {
            let found = index.find(hash(number) >> 3);
            assert!(found.iter().any(|at| index.slot(*at) == place(number)), "{number}");
            others += found.len() - 1;
        }
        assert!(others < 40, "{others}");
        let bytes = index.bytes() as f64 / COUNT as f64;
        assert!(bytes < 11.6, "{bytes}");
    }

    #[test]
    fn bytes_a_record_stay_below_twelve_at_every_size() {
        let mut index = Index::new(0);
        let mut worst: f64 = 0.0;
        for number in 0..400_000 {
            index.insert(hash(number), place(number));
            if number > 7_000 {
                worst = worst.max(index.bytes() as f64 / index.len() as f64);
            }
        }
        assert!(worst < 11.8, "{worst}");
    }

    #[test]
    fn it_does_what_a_map_does() {
        let mut index = Index::new(0);
        let mut model: HashMap<u64, Slot> = HashMap::new();
        let mut random = 7;
        for step in 0..300_000_u64 {
            random = hash(random + step);
            let number = random % 5_000;
            let of = |index: &Index, slot| index.find_slot(hash(number), slot);
            match (random >> 32) % 3 {
                0 => {
                    if let Some(slot) = model.remove(&number) {
                        let at = of(&index, slot).expect("there");
                        assert!(index.remove(at).is_same(slot));
                    }
                }
                1 => {
                    if let Some(slot) = model.get(&number).copied() {
                        let at = of(&index, slot).expect("there");
                        index.set(at, index.slot(at).with(HOT | RESIDENT, random >> 60 & 1 == 1));
                    }
                }
                _ => {
                    let slot = place(step);
                    if let Some(old) = model.insert(number, slot) {
                        index.remove(of(&index, old).expect("there"));
                    }
                    index.insert(hash(number), slot);
                }
            }
            assert_eq!(index.len(), model.len());
        }
        index.retain(|slot| slot.has(RESIDENT));
        assert_eq!(index.cold().0, 0);
    }

    #[test]
    fn a_walk_is_in_order_and_complete_while_the_index_grows() {
        let mut index = Index::new(0);
        (0..3_000).for_each(|number| index.insert(hash(number), place(number)));
        let mut seen = Vec::new();
        let (mut from, mut next) = (0, 3_000);
        loop {
            let behind = index.scan(from, 1 << 64, (7, 16), |slot| seen.push(slot.place()));
            let Some(behind) = behind else { break };
            assert!(behind > from);
            from = behind;
            (next..next + 20).for_each(|number| index.insert(hash(number), place(number)));
            next += 20;
        }
        let old: Vec<u64> = seen.iter().copied().filter(|number| *number < 3_000).collect();
        assert_eq!(old.len(), 3_000);
        assert!(old.is_sorted_by_key(|number| hash(*number)));
        let mut some = 0;
        assert_eq!(index.scan(1 << 60, 1 << 61, (usize::MAX, 16), |_| some += 1), None);
        let all = (0..next).filter(|number| (1 << 60..1 << 61).contains(&hash(*number))).count();
        assert_eq!(some, all);
    }
}
