//! The hash table of L2: 64-byte buckets of eight tagged slots, in hash order.
//!
//! ```text
//!  hash   | stripe | directory ......... | ........................ | (tag: the low 12 bits) |
//!                  | segment (depth) | fraction ..........
//!  bucket = fraction * buckets of the segment >> 64        (multiply-shift: any number of buckets)
//!  slot   | displacement 4 bits | tag 12 bits | entry 48 bits |      0: free
//! ```
//!
//! An entry lies in its home bucket or, when that is full, at most 15 buckets further. The displacement
//! says how far, so that entries can be moved without being read: one that is further from home takes
//! the place of one that is nearer (Robin Hood hashing, Celis, 1986), and removal moves entries back. So
//! a lookup may stop at a bucket with a free slot, or with an entry that is nearer to its home than the
//! wanted one would be. Slots of a bucket are filled from the front: full means the last one is taken.
//!
//! A segment grows alone, by an eighth, when it is full, and shrinks when it is nearly empty; past
//! [`SPLIT`] entries it becomes two (extendible hashing, Fagin et al., 1979). The directory has room for
//! all places that the tier's size may ever ask for, and uses as many as the deepest segment needs, so
//! that those of a small table lie in few cache lines; a segment of less depth stands in a run of them.
//! So growth never stops the world, the load stays near nine tenths, and, because the order of buckets
//! is the order of hashes, a SCAN cursor is a prefix of a hash and stays valid whatever grows.
//!
//! The segments' addresses are atomics, so that [`Lines::prefetch`] may compute a bucket's address
//! without the lock; everything else happens under the stripe's lock, which `&mut Table` stands for.

#![allow(unsafe_code, reason = "buckets and entries are reached through tagged words")]

mod directory;

use std::{
    alloc::{self, Layout},
    ptr,
    sync::atomic::Ordering::Relaxed,
};

use super::{
    class::class,
    entry::{Entry, EntryMut, EntryRef, prefetch, prefetch_entry},
};
pub use directory::Lines;
use directory::{Place, Segment};

/// Slots of a bucket, which is one cache line.
const SLOTS: usize = 8;
/// Bytes of a bucket.
const BUCKET: usize = SLOTS * 8;
/// How many buckets behind its home an entry may lie.
const REACH: usize = 16;
/// Load, in percent, past which a segment grows even though there would be a place.
const FULL: usize = 95;
/// A segment has at most so many buckets: the count is packed beside the address.
const MAX_BUCKETS: usize = (1 << 16) - 1;
/// Entries at which a segment becomes two, if the directory has a place for both.
pub const SPLIT: usize = 2048;
/// Above this size the allocator rounds to pages only.
const LARGE: usize = 32 << 10;
const PAGE: usize = 4 << 10;

const POINTER: u64 = (1 << 48) - 1;
const TAG: u64 = (1 << 12) - 1;
const TAG_BITS: u32 = 12;

/// What hashes a key: the table asks again when it rebuilds a segment.
pub type Hasher = ahash::RandomState;

/// The hash of a key.
#[inline]
pub fn hash(hasher: &Hasher, key: &[u8]) -> u64 {
    use std::hash::{BuildHasher, Hasher as _};
    let mut state = hasher.build_hasher();
    state.write(key);
    state.finish()
}

/// Whether two keys are the same. Most are a few words long, which a call would cost more than.
#[inline]
fn is_same(a: &[u8], b: &[u8]) -> bool {
    match (a.len(), b.len()) {
        (8..=16, len) if len == a.len() => {
            a.first_chunk::<8>() == b.first_chunk::<8>()
                && a.last_chunk::<8>() == b.last_chunk::<8>()
        }
        (17..=32, len) if len == a.len() => {
            a.first_chunk::<16>() == b.first_chunk::<16>()
                && a.last_chunk::<16>() == b.last_chunk::<16>()
        }
        _ => a == b,
    }
}

/// A bit for each slot whose displacement and tag are these.
#[inline]
fn matches(bucket: &[u64; SLOTS], high: u64) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of x86-64, and the loads stay within the bucket.
    unsafe {
        use std::arch::x86_64::{
            __m128i, _mm_castps_si128, _mm_castsi128_ps, _mm_cmpeq_epi16, _mm_loadu_si128,
            _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi16, _mm_shuffle_ps,
            _mm_srai_epi32,
        };
        let at = bucket.as_ptr().cast::<__m128i>();
        let load = |index: usize| _mm_castsi128_ps(_mm_loadu_si128(at.add(index)));
        // The upper halves of four words, shifted down to displacement and tag.
        let upper = |a: usize, b: usize| {
            let halves = _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(load(a), load(b)));
            _mm_srai_epi32::<16>(halves)
        };
        let all = _mm_packs_epi32(upper(0, 1), upper(2, 3));
        let wanted = _mm_set1_epi16(high as i16);
        let equal = _mm_cmpeq_epi16(all, wanted);
        _mm_movemask_epi8(_mm_packs_epi16(equal, equal)) as u32 & 0xff
    }
    #[cfg(not(target_arch = "x86_64"))]
    bucket
        .iter()
        .enumerate()
        .fold(0, |found, (index, word)| found | u32::from(word >> 48 == high) << index)
}

/// Whether an entry of the bucket is nearer to its home than so many buckets.
#[inline]
fn has_nearer(bucket: &[u64; SLOTS], displacement: u64) -> bool {
    bucket.iter().any(|word| word >> (48 + TAG_BITS) < displacement)
}

/// Where an entry stands; valid until the table changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    segment: u32,
    bucket: u16,
    index: u16,
}

/// A reference to an entry for queues and wheel: 20 bits of its place and its tag. Two entries share one
/// about once in 2^32; then either stands for both, which only makes an eviction less well chosen.
pub type Ref = u32;

/// The table of one stripe and database. What a lookup reads stands first.
#[repr(C)]
pub struct Table {
    lines: Lines,
    len: usize,
    bytes: usize,
    hasher: Hasher,
}

impl Table {
    /// An empty table with at most `2^segment_bits` segments for hashes whose first `stripe_bits` are spent.
    pub fn new(stripe_bits: u32, segment_bits: u32, hasher: &Hasher) -> Self {
        Self {
            lines: Lines::new(stripe_bits, segment_bits),
            len: 0,
            bytes: size_of::<Segment>() << segment_bits,
            hasher: hasher.clone(),
        }
    }

    /// The part that may be read without the lock.
    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// The hash of an entry's key.
    pub fn hash_of(&self, entry: Entry<'_>) -> u64 {
        hash(&self.hasher, entry.key())
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of segments and buckets, without the entries.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    fn segment(&self, index: usize) -> &Segment {
        self.lines.segment(index)
    }

    /// The place that counts a segment's entries.
    fn first(&self, place: usize) -> &Segment {
        self.segment(self.lines.first(place))
    }

    /// A bucket of a segment.
    #[inline]
    fn bucket(&self, segment: usize, bucket: usize) -> &[u64; SLOTS] {
        let (buckets, count) = self.segment(segment).buckets();
        debug_assert!(bucket < count);
        // SAFETY: the segment owns `count` buckets, which only `&mut self` changes or frees.
        unsafe { &*buckets.add(bucket) }
    }

    #[inline]
    fn bucket_mut(&mut self, segment: usize, bucket: usize) -> &mut [u64; SLOTS] {
        let (buckets, count) = self.segment(segment).buckets();
        debug_assert!(bucket < count);
        // SAFETY: the segment owns `count` buckets, and `&mut self` is the only way to them.
        unsafe { &mut *buckets.add(bucket) }
    }

    /// The entry of a taken slot's word.
    #[inline]
    fn view(&self, word: u64) -> Entry<'_> {
        // SAFETY: a taken slot's word holds a reference, kept until `&mut self` removes it.
        unsafe { Entry::from_bits(word & POINTER) }
    }

    /// The slot in which the entry for `hash` that `wanted` accepts stands.
    #[inline]
    fn probe(
        &self,
        (segment, home, tag): (usize, usize, u64),
        wanted: impl Fn(Entry<'_>) -> bool,
    ) -> Option<Slot> {
        let count = self.segment(segment).buckets().1;
        let mut at = home;
        for displacement in 0..REACH.min(count) as u64 {
            let bucket = self.bucket(segment, at);
            let high = displacement << TAG_BITS | tag;
            let mut found = matches(bucket, high);
            while found != 0 {
                let index = found.trailing_zeros();
                let word = bucket[index as usize];
                // A free slot looks like an entry at home with tag 0.
                if word != 0 && wanted(self.view(word)) {
                    return Some(Slot {
                        segment: segment as u32,
                        bucket: at as u16,
                        index: index as u16,
                    });
                }
                found &= found - 1;
            }
            if bucket[SLOTS - 1] == 0 || displacement > 0 && has_nearer(bucket, displacement) {
                return None;
            }
            at = if at + 1 == count { 0 } else { at + 1 };
        }
        None
    }

    /// The slot of a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<Slot> {
        let place = self.lines.place(hash);
        let home = place.home(self.segment(place.segment).buckets().1);
        self.probe((place.segment, home, place.tag), |entry| is_same(entry.key(), key))
    }

    /// Starts loading the entry that a key may have into the processor's cache: the first one with its
    /// tag.
    #[inline]
    pub fn prefetch_entry(&self, hash: u64) {
        let place = self.lines.place(hash);
        let count = self.segment(place.segment).buckets().1;
        let mut at = place.home(count);
        for displacement in 0..REACH.min(count) as u64 {
            let bucket = self.bucket(place.segment, at);
            let found = matches(bucket, displacement << TAG_BITS | place.tag);
            if found != 0 {
                let word = bucket[found.trailing_zeros() as usize & (SLOTS - 1)];
                // An empty slot may match too.
                return prefetch_entry(ptr::with_exposed_provenance((word & POINTER) as usize));
            }
            if bucket[SLOTS - 1] == 0 {
                return;
            }
            at = if at + 1 == count { 0 } else { at + 1 };
        }
    }

    /// The entry of a slot.
    #[inline]
    pub fn entry(&self, slot: Slot) -> Entry<'_> {
        self.view(self.bucket(slot.segment as usize, slot.bucket as usize)[slot.index as usize])
    }

    /// Exclusive access to the entry of a slot, if the table holds its only reference.
    pub fn entry_mut(&mut self, slot: Slot) -> Option<EntryMut<'_>> {
        let word = self.bucket(slot.segment as usize, slot.bucket as usize)[slot.index as usize];
        // SAFETY: the slot keeps its reference, and `&mut self` is the only way to the slot.
        unsafe { EntryMut::from_bits(word & POINTER) }
    }

    /// The short reference of a hash, for queues and wheel.
    #[inline]
    pub fn reference(&self, hash: u64) -> Ref {
        let rest = hash << self.lines.stripe_bits;
        ((rest >> 44) as u32) << TAG_BITS | (hash & TAG) as u32
    }

    /// The slot of an entry with this short reference that `wanted` accepts.
    pub fn find_ref(&self, reference: Ref, wanted: impl Fn(Entry<'_>) -> bool) -> Option<Slot> {
        let rest = u64::from(reference >> TAG_BITS) << 44;
        let place = self.lines.place_of(rest, u64::from(reference) & TAG);
        let segment = self.segment(place.segment);
        let count = segment.buckets().1;
        // 20 bits of place name one bucket of a small segment, a few neighbours of a huge one.
        let span = 1u64 << (44 + segment.depth()).min(63);
        let last = Place { fraction: place.fraction | (span - 1), ..place }.home(count);
        // Neighbours share the tag now and then; only the whole reference names the entry.
        let is_it = |entry: Entry<'_>| {
            wanted(entry) && self.reference(hash(&self.hasher, entry.key())) == reference
        };
        (place.home(count)..=last)
            .find_map(|home| self.probe((place.segment, home, place.tag), is_it))
    }

    /// Adds an entry for a hash whose key is not in the table.
    pub fn insert(&mut self, hash: u64, entry: EntryRef) -> Slot {
        let mut place = self.lines.place(hash);
        let mut segment = self.first(place.segment);
        if (segment.used() + 1) * 100 > segment.buckets().1 * SLOTS * FULL {
            self.grow(place.segment, None);
            place = self.lines.place(hash);
            segment = self.first(place.segment);
        }
        segment.set_used(segment.used() + 1);
        let bits = entry.into_bits();
        self.len += 1;
        match self.settle(place, bits) {
            Ok(slot) => slot,
            Err(left_over) => {
                self.grow(place.segment, Some(left_over));
                self.slot_of(hash, bits)
            }
        }
    }

    /// Where an entry, known by its address, stands.
    fn slot_of(&self, hash: u64, bits: u64) -> Slot {
        let place = self.lines.place(hash);
        let home = place.home(self.segment(place.segment).buckets().1);
        let at = ptr::with_exposed_provenance::<u8>(bits as usize);
        self.probe((place.segment, home, place.tag), |entry| entry.is_at(at))
            .expect("the entry was just put there")
    }

    /// Puts an entry into its place, pushing on those that are nearer to home; gives back the word of
    /// the one, this or another, for which there is no place in reach.
    fn settle(&mut self, place: Place, bits: u64) -> Result<Slot, u64> {
        let count = self.segment(place.segment).buckets().1;
        let mut at = place.home(count);
        let mut word = place.tag << 48 | bits;
        let mut first = None;
        for _ in 0..REACH * SLOTS {
            let displacement = word >> (48 + TAG_BITS);
            let bucket = self.bucket_mut(place.segment, at);
            let free = bucket.iter().position(|word| *word == 0);
            let far = |index: &usize| bucket[*index] >> (48 + TAG_BITS);
            // The nearest one, so that all which stay are at least as far as the one that moves on.
            let nearest = (0..SLOTS).min_by_key(far).filter(|index| far(index) < displacement);
            if let Some(index) = free.or(nearest) {
                let slot =
                    Slot { segment: place.segment as u32, bucket: at as u16, index: index as u16 };
                let slot = *first.get_or_insert(slot);
                word = std::mem::replace(&mut bucket[index], word);
                if word == 0 {
                    return Ok(slot);
                }
            }
            if (word >> (48 + TAG_BITS)) as usize + 1 >= REACH.min(count) {
                break;
            }
            word += 1 << (48 + TAG_BITS);
            at = if at + 1 == count { 0 } else { at + 1 };
        }
        Err(word & POINTER)
    }

    /// Puts another entry in the place of one with the same key and gives back the old.
    pub fn replace(&mut self, slot: Slot, entry: EntryRef) -> EntryRef {
        let word =
            &mut self.bucket_mut(slot.segment as usize, slot.bucket as usize)[slot.index as usize];
        let old = *word & POINTER;
        *word = *word & !POINTER | entry.into_bits();
        // SAFETY: the slot held a reference and gives it up.
        unsafe { EntryRef::from_bits(old) }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, slot: Slot) -> EntryRef {
        let (segment, mut at) = (slot.segment as usize, slot.bucket as usize);
        let word = self.bucket(segment, at)[slot.index as usize];
        self.close(segment, at, slot.index as usize);
        // What was displaced moves back, bucket by bucket, so that lookups may stop early.
        let count = self.segment(segment).buckets().1;
        loop {
            let next = if at + 1 == count { 0 } else { at + 1 };
            let Some(index) = self.furthest(segment, next) else { break };
            let moved = self.bucket(segment, next)[index];
            self.close(segment, next, index);
            let free = self.bucket(segment, at).iter().position(|word| *word == 0);
            self.bucket_mut(segment, at)[free.expect("a slot was freed")] =
                moved - (1 << (48 + TAG_BITS));
            at = next;
        }
        self.len -= 1;
        let used = self.first(segment).used() - 1;
        self.first(segment).set_used(used);
        if used * 4 < count * SLOTS && count > 1 {
            self.shrink(segment);
        }
        // SAFETY: the slot held a reference, and its word is gone from the table.
        unsafe { EntryRef::from_bits(word & POINTER) }
    }

    /// Frees a slot and moves the bucket's last one into it.
    fn close(&mut self, segment: usize, bucket: usize, index: usize) {
        let slots = self.bucket_mut(segment, bucket);
        let last = slots.iter().rposition(|word| *word != 0).expect("the slot is taken");
        slots[index] = slots[last];
        slots[last] = 0;
    }

    /// The displaced entry of a bucket that is furthest from its home.
    fn furthest(&self, segment: usize, bucket: usize) -> Option<usize> {
        let slots = self.bucket(segment, bucket).iter().enumerate();
        let (index, word) = slots.max_by_key(|(_, word)| **word >> (48 + TAG_BITS))?;
        (word >> (48 + TAG_BITS) != 0).then_some(index)
    }

    fn grow(&mut self, segment: usize, left_over: Option<u64>) {
        let (depth, old) = (self.segment(segment).depth(), self.segment(segment).buckets().1);
        let mut first = self.lines.first(segment);
        let used = self.segment(first).used();
        let splits = used >= SPLIT && 2 << depth <= self.lines.places().len();
        let wanted = if splits { sparse(used / 2) } else { (old + old.div_ceil(8)).max(1) };
        assert!(wanted <= MAX_BUCKETS, "a segment holds half a million entries");
        if splits && depth == self.lines.bits() {
            self.lines.double();
            first *= 2;
        }
        self.rebuild(first, depth + u32::from(splits), wanted, left_over);
    }

    fn shrink(&mut self, segment: usize) {
        let first = self.lines.first(segment);
        let place = self.segment(first);
        self.rebuild(first, place.depth(), sparse(place.used()), None);
    }

    /// Makes one or two segments of this depth of the one whose first place this is, with `wanted` buckets each or more, and puts its
    /// entries, and the one left over, into them.
    fn rebuild(&mut self, segment: usize, depth: u32, wanted: usize, left_over: Option<u64>) {
        let (old, old_count) = self.segment(segment).buckets();
        let end = segment + self.lines.run(self.segment(segment).depth());
        let words: Vec<u64> = (0..old_count)
            .flat_map(|bucket| *self.bucket(segment, bucket))
            .chain(left_over)
            .filter(|word| *word != 0)
            .map(|word| word & POINTER)
            .collect();
        let mut wanted = wanted;
        loop {
            let count = as_many_as_fit(wanted);
            for first in (segment..end).step_by(self.lines.run(depth)) {
                self.put_segment(first, depth, allocate(count), count);
            }
            if self.settle_all(&words) {
                break;
            }
            for first in (segment..end).step_by(self.lines.run(depth)) {
                free(self.segment(first).buckets().0, count);
            }
            wanted = count + count.div_ceil(8);
        }
        let now = self.segment(segment).buckets().1 * (end - segment) / self.lines.run(depth);
        self.bytes = self.bytes + now * BUCKET - old_count * BUCKET;
        free(old, old_count);
    }

    /// Puts an empty segment into its run of the directory.
    fn put_segment(&self, first: usize, depth: u32, buckets: *mut [u64; SLOTS], count: usize) {
        let word = buckets.expose_provenance() as u64 | u64::from(depth) | (count as u64) << 48;
        for place in &self.lines.places()[first..first + self.lines.run(depth)] {
            place.word.store(word, Relaxed);
        }
        self.segment(first).set_used(0);
    }

    fn settle_all(&mut self, words: &[u64]) -> bool {
        const AHEAD: usize = 16;
        for (index, word) in words.iter().enumerate() {
            if let Some(ahead) = words.get(index + AHEAD) {
                prefetch(ptr::with_exposed_provenance(*ahead as usize));
            }
            let place = self.lines.place(hash(&self.hasher, self.view(*word).key()));
            if self.settle(place, *word).is_err() {
                return false;
            }
            let segment = self.first(place.segment);
            segment.set_used(segment.used() + 1);
        }
        true
    }

    /// The first place of each segment's run.
    fn segments(&self) -> impl Iterator<Item = usize> + use<'_> {
        let len = self.lines.len();
        let next = move |at: &usize| {
            Some(at + self.lines.run(self.segment(*at).depth())).filter(|next| *next < len)
        };
        std::iter::successors(Some(0), next)
    }

    /// Takes everything out. The entries are freed when the result is dropped, wherever that is.
    pub fn take(&mut self) -> Table {
        let segment_bits = self.lines.places().len().ilog2();
        let mut empty = Table::new(self.lines.stripe_bits, segment_bits, &self.hasher);
        self.swap(&mut empty);
        empty
    }

    /// Swaps the contents of two tables of the same shape; their lines stay where they are.
    pub fn swap(&mut self, other: &mut Table) {
        self.lines.swap(&other.lines);
        std::mem::swap(&mut self.len, &mut other.len);
        std::mem::swap(&mut self.bytes, &mut other.bytes);
    }

    /// Shows every entry, in no useful order.
    pub fn for_each(&self, mut seen: impl FnMut(Entry<'_>)) {
        for segment in self.segments() {
            for bucket in 0..self.segment(segment).buckets().1 {
                for word in self.bucket(segment, bucket).iter().filter(|word| **word != 0) {
                    seen(self.view(*word));
                }
            }
        }
    }

    /// Shows the entries whose home is the bucket of `hash`, and returns where the next bucket begins:
    /// a hash without the stripe's bits, or `None` behind the stripe's last.
    pub fn scan(&self, hash: u64, mut seen: impl FnMut(Entry<'_>)) -> Option<u64> {
        let place = self.lines.place(hash);
        let count = self.segment(place.segment).buckets().1;
        let home = place.home(count);
        for displacement in 0..REACH.min(count) {
            let bucket = self.bucket(place.segment, (home + displacement) % count);
            for word in bucket.iter().filter(|word| **word != 0) {
                if (word >> (48 + TAG_BITS)) as usize == displacement {
                    seen(self.view(*word));
                }
            }
            if bucket[SLOTS - 1] == 0 {
                break;
            }
        }
        self.behind(place, home, count)
    }

    /// Where the bucket behind that of `hash` begins (see [`Table::scan`]).
    pub fn behind_bucket(&self, hash: u64) -> Option<u64> {
        let place = self.lines.place(hash);
        let count = self.segment(place.segment).buckets().1;
        self.behind(place, place.home(count), count)
    }

    /// The first hash behind a bucket, in the bits behind the stripe's.
    fn behind(&self, place: Place, home: usize, count: usize) -> Option<u64> {
        let lines = &self.lines;
        let depth = self.segment(place.segment).depth();
        let base = ((lines.first(place.segment) as u128) << 64) >> lines.bits();
        let step = (home as u128 + 1) << (64 - depth);
        // Rounded up wherever bits are pushed out, so that a cursor never leads back.
        let rest =
            base + if home + 1 < count { step.div_ceil(count as u128) } else { 1 << (64 - depth) };
        (rest >> 64 == 0).then(|| rest.div_ceil(1 << lines.stripe_bits) as u64)
    }

    /// A random entry: of the first bucket with entries from a random place on.
    pub fn sample(&self, random: u64) -> Option<Slot> {
        let segments = self.lines.len();
        if self.len == 0 {
            return None;
        }
        (0..segments).find_map(|step| {
            let at = (random as usize % segments + step) % segments;
            let segment = self.lines.first(at);
            let count = self.segment(segment).buckets().1;
            let start = (random >> 20) as usize % count.max(1);
            (0..count).find_map(|step| {
                let bucket = (start + step) % count;
                let slots = self.bucket(segment, bucket);
                let taken = slots.iter().position(|word| *word == 0).unwrap_or(SLOTS);
                (taken > 0).then(|| Slot {
                    segment: segment as u32,
                    bucket: bucket as u16,
                    index: ((random >> 52) as usize % taken) as u16,
                })
            })
        })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for segment in self.segments().collect::<Vec<_>>() {
            let (buckets, count) = self.segment(segment).buckets();
            for bucket in 0..count {
                for word in self.bucket(segment, bucket).iter().filter(|word| **word != 0) {
                    // SAFETY: the slot held a reference; its bucket is freed below.
                    drop(unsafe { EntryRef::from_bits(word & POINTER) });
                }
            }
            free(buckets, count);
        }
        // Those who still prefetch by these lines find nothing.
        self.lines.places().iter().for_each(|place| place.word.store(0, Relaxed));
    }
}

/// Buckets for so many entries and an eighth more.
fn sparse(entries: usize) -> usize {
    (entries * 9 / 8).div_ceil(SLOTS).max(1)
}

/// As many buckets as the allocator gives for the price of `wanted`.
fn as_many_as_fit(wanted: usize) -> usize {
    let bytes = wanted * BUCKET;
    let given = if bytes > LARGE { bytes.next_multiple_of(PAGE) } else { class(bytes) };
    (given / BUCKET).min(MAX_BUCKETS)
}

fn layout(count: usize) -> Layout {
    Layout::from_size_align(count * BUCKET, BUCKET).expect("at most 4 MiB")
}

fn allocate(count: usize) -> *mut [u64; SLOTS] {
    // SAFETY: the layout is not empty, since callers ask for one bucket at least.
    let buckets = unsafe { alloc::alloc_zeroed(layout(count)) };
    if buckets.is_null() {
        alloc::handle_alloc_error(layout(count));
    }
    buckets.cast()
}

fn free(buckets: *mut [u64; SLOTS], count: usize) {
    if count != 0 {
        // SAFETY: `buckets` came from `allocate(count)`, and the caller has taken it out of the table.
        unsafe { alloc::dealloc(buckets.cast(), layout(count)) };
    }
}

#[cfg(test)]
mod tests;
