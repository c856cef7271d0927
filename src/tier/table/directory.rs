//! The directory of a table: which segment has a hash, and where its buckets are.
//!
//! A segment of less than full depth stands in a run of places; all of them name its buckets, and the
//! first counts its entries.

use std::{
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{POINTER, SLOTS, TAG, prefetch};

/// A place of the directory: a segment's address and depth (buckets are aligned to 64, which leaves six
/// bits), the number of its buckets above bit 48, and, at the first place of its run, its entries.
#[derive(Default)]
pub(super) struct Segment {
    pub(super) word: AtomicU64,
    used: AtomicU64,
}

const DEPTH: u64 = 63;

impl Segment {
    #[inline]
    pub(super) fn buckets(&self) -> (*mut [u64; SLOTS], usize) {
        Self::unpack(self.word.load(Relaxed))
    }

    #[inline]
    pub(super) fn unpack(word: u64) -> (*mut [u64; SLOTS], usize) {
        let at = (word & POINTER & !DEPTH) as usize;
        (ptr::with_exposed_provenance_mut(at), (word >> 48) as usize)
    }

    pub(super) fn become_as(&self, other: &Self) {
        self.word.store(other.word.load(Relaxed), Relaxed);
        self.used.store(other.used.load(Relaxed), Relaxed);
    }

    #[inline]
    pub(super) fn depth(&self) -> u32 {
        (self.word.load(Relaxed) & DEPTH) as u32
    }

    pub(super) fn set_used(&self, used: usize) {
        self.used.store(used as u64, Relaxed);
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed) as usize
    }
}

/// The part of a hash behind the stripe's bits, split for one segment.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// One of the segment's places in the directory.
    pub(super) segment: usize,
    pub(super) fraction: u64,
    pub(super) tag: u64,
}

impl Place {
    #[inline]
    pub(super) fn home(self, buckets: usize) -> usize {
        ((u128::from(self.fraction) * buckets as u128) >> 64) as usize
    }
}

/// The addresses of a table's segments, readable without the lock.
#[derive(Clone)]
pub struct Lines {
    /// As many places as there may ever be, behind one that says how many are in use: a lookup in a
    /// small table reads one cache line.
    pub(super) directory: Arc<[Segment]>,
    pub(super) stripe_bits: u32,
}

impl Lines {
    pub(super) fn new(stripe_bits: u32, segment_bits: u32) -> Self {
        let directory = (0..=1usize << segment_bits).map(|_| Segment::default()).collect();
        Self { directory, stripe_bits }
    }

    /// log2 of the places in use: the depth of the deepest segment.
    #[inline]
    pub(super) fn bits(&self) -> u32 {
        self.directory[0].word.load(Relaxed) as u32
    }

    pub(super) fn set_bits(&self, bits: u32) {
        self.directory[0].word.store(u64::from(bits), Relaxed);
    }

    /// All places, in use or not.
    pub(super) fn places(&self) -> &[Segment] {
        &self.directory[1..]
    }

    #[inline]
    pub(super) fn segment(&self, place: usize) -> &Segment {
        &self.directory[place + 1]
    }

    /// The places in use.
    #[inline]
    pub(super) fn len(&self) -> usize {
        1 << self.bits()
    }

    /// The place of a hash whose stripe's bits are shifted out.
    #[inline]
    pub(super) fn index(&self, rest: u64) -> usize {
        // Two shifts, since a shift by 64 is none.
        (rest >> 1 >> (63 - self.bits())) as usize
    }

    #[inline]
    pub(super) fn place(&self, hash: u64) -> Place {
        self.place_of(hash << self.stripe_bits, hash & TAG)
    }

    #[inline]
    pub(super) fn place_of(&self, rest: u64, tag: u64) -> Place {
        let segment = self.index(rest);
        Place { segment, fraction: rest << self.segment(segment).depth(), tag }
    }

    /// The places of the directory that a segment of this depth takes.
    #[inline]
    pub(super) fn run(&self, depth: u32) -> usize {
        1 << (self.bits() - depth)
    }

    /// The first place of the segment that has this one.
    pub(super) fn first(&self, place: usize) -> usize {
        place & !(self.run(self.segment(place).depth()) - 1)
    }

    /// Takes twice as many places into use.
    pub(super) fn double(&self) {
        for place in (0..self.len()).rev() {
            self.segment(2 * place + 1).become_as(self.segment(place));
            self.segment(2 * place).become_as(self.segment(place));
        }
        self.set_bits(self.bits() + 1);
    }

    /// Swaps the contents of two directories of one size.
    pub(super) fn swap(&self, other: &Self) {
        let exchange =
            |a: &AtomicU64, b: &AtomicU64| b.store(a.swap(b.load(Relaxed), Relaxed), Relaxed);
        for (a, b) in self.directory.iter().zip(&*other.directory) {
            exchange(&a.word, &b.word);
            exchange(&a.used, &b.used);
        }
    }

    /// Starts loading the home bucket of a hash and the one behind it into the processor's cache.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        // While the directory doubles, this may be some other bucket: a hint that doesn't help.
        let rest = hash << self.stripe_bits;
        let word = self.segment(self.index(rest)).word.load(Relaxed);
        let (buckets, count) = Segment::unpack(word);
        if count != 0 {
            let fraction = rest << (word & DEPTH);
            let home = buckets.wrapping_add(Place { segment: 0, fraction, tag: 0 }.home(count));
            prefetch(home.cast());
            prefetch(home.wrapping_add(1).cast());
        }
    }
}
