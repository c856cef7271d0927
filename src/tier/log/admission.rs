//! What is worth a place in the log once the log is full.
//!
//! Until then everything is. From then on a victim of memory that was never used again is let go the
//! first time and remembered; when it comes back, it is taken. (That is what the ghost queue is for in
//! S3-FIFO, Yang et al., SOSP 2023, and the doorkeeper in TinyLFU, Einziger et al., 2017.) What the log
//! itself lets go of is remembered too. The memory of it is two Bloom filters: one that fills, and the one
//! that was full before; a filter is full with as many keys as the log has room for, or fewer if it is small.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Bytes of the log for which a filter has room for one key, and how many it takes at least.
const BYTES_PER_KEY: u64 = 512;
/// Bits of a filter for each key that it remembers, and how many of them a key sets.
const BITS: usize = 8;
const PROBES: u64 = 4;
const LEAST_WORDS: usize = 64;
const LEAST_KEYS: usize = 64;
/// Words of a cache line.
const LINE: usize = 8;

/// The two filters.
pub struct Admission {
    filters: [Box<[AtomicU64]>; 2],
    /// Which one fills.
    young: AtomicUsize,
    filled: AtomicUsize,
    room: usize,
}

impl Admission {
    /// For a log of so many bytes.
    pub fn new(log: u64) -> Self {
        let words = ((log / BYTES_PER_KEY) as usize * BITS / 64).max(LEAST_WORDS);
        let words = words.next_multiple_of(LINE);
        let filter = || (0..words).map(|_| AtomicU64::new(0)).collect();
        Self {
            filters: [filter(), filter()],
            young: AtomicUsize::new(0),
            filled: AtomicUsize::new(0),
            room: words * 64 / BITS,
        }
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.filters.iter().map(|filter| filter.len() * 8).sum()
    }

    fn bits(&self, hash: u64) -> impl Iterator<Item = (usize, u64)> {
        let words = self.filters[0].len();
        // One line of a filter holds all bits of a key.
        let line =
            (hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % (words / LINE) * LINE;
        (0..PROBES).map(move |probe| {
            let bit = hash >> (probe * 9) & 511;
            (line + (bit / 64) as usize, 1 << (bit % 64))
        })
    }

    /// Whether a key was let go not long ago; if not, it is remembered from now on, together with about so
    /// many others.
    pub fn is_known(&self, hash: u64, others: usize) -> bool {
        let has = |filter: &[AtomicU64]| {
            self.bits(hash).all(|(word, bit)| filter[word].load(Relaxed) & bit != 0)
        };
        let young = self.young.load(Relaxed) & 1;
        if has(&self.filters[young]) || has(&self.filters[young ^ 1]) {
            return true;
        }
        for (word, bit) in self.bits(hash) {
            self.filters[young][word].fetch_or(bit, Relaxed);
        }
        if self.filled.fetch_add(1, Relaxed) + 1 >= others.clamp(LEAST_KEYS, self.room) {
            self.filled.store(0, Relaxed);
            self.filters[young ^ 1].iter().for_each(|word| word.store(0, Relaxed));
            self.young.store(young ^ 1, Relaxed);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> u64 {
        let hash = number.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (hash ^ hash >> 31).wrapping_mul(0x94D0_49BB_1331_11EB)
    }

    #[test]
    fn what_came_lately_is_known_and_little_else() {
        let admission = Admission::new(16 << 20);
        let room = admission.room as u64;
        let false_ones =
            (0..room).filter(|number| admission.is_known(hash(*number), usize::MAX)).count();
        assert!(false_ones < room as usize / 20, "{false_ones} of {room}");
        assert!((room - 100..room).all(|number| admission.is_known(hash(number), usize::MAX)));
        let came =
            (room..4 * room).filter(|number| admission.is_known(hash(*number), usize::MAX)).count();
        assert!(came < room as usize, "{came}");
        let old = (0..room).filter(|number| admission.is_known(hash(*number), usize::MAX)).count();
        assert!(old < room as usize / 5, "{old} of {room}");
    }
}
