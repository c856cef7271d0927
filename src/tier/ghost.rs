//! The ghost: a short memory of what was evicted, in two bytes an item and without a clock.
//!
//! Buckets of 16 fingerprints: eight lanes are a queue of what left the small queue, eight of what left
//! the main one, the newest first. A fingerprint's position in its half is its age.

use super::table::Ref;

const LANES: usize = 8;

/// Which queue evicted an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The window or the small queue.
    Small,
    /// The main queue.
    Main,
}

/// The ghost of one stripe and database.
#[derive(Default)]
pub struct Ghost {
    buckets: Vec<[[u16; LANES]; 2]>,
}

impl Ghost {
    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<[[u16; LANES]; 2]>()
    }

    /// How many items of each origin are remembered: half as many as there are entries.
    fn depth(&self, entries: usize) -> usize {
        let buckets = self.buckets.len();
        ((entries / 2 + buckets / 2) / buckets.max(1)).clamp(1, LANES)
    }

    fn place(&self, item: Ref) -> (usize, u16) {
        // Fibonacci hashing spreads the place's bits over bucket and fingerprint.
        let mixed = u64::from(item).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let bucket = (mixed >> 16) as usize & (self.buckets.len() - 1);
        (bucket, ((mixed >> 48) as u16).max(1))
    }

    /// Remembers an evicted item of a table with so many entries.
    pub fn put(&mut self, item: Ref, origin: Origin, entries: usize) {
        self.fit(entries);
        let (bucket, fingerprint) = self.place(item);
        let lanes = &mut self.buckets[bucket][origin as usize];
        let end = lanes.iter().position(|lane| *lane == 0).unwrap_or(LANES - 1);
        lanes.copy_within(0..end, 1);
        lanes[0] = fingerprint;
    }

    /// Forgets an item and says where it came from and whether it was evicted lately (within half of
    /// the ghost's depth); `None` if it isn't remembered.
    pub fn take(&mut self, item: Ref, entries: usize) -> Option<(Origin, bool)> {
        if self.buckets.is_empty() {
            return None;
        }
        let depth = self.depth(entries);
        let (bucket, fingerprint) = self.place(item);
        let mut found = None;
        for origin in [Origin::Small, Origin::Main] {
            let lanes = &mut self.buckets[bucket][origin as usize];
            if let Some(age) = lanes.iter().position(|lane| *lane == fingerprint) {
                lanes[age] = 0;
                if age < depth && found.is_none() {
                    found = Some((origin, age * 2 < depth));
                }
            }
        }
        found
    }

    /// Doubles or halves the buckets as the number of entries changes. Doubling copies the ghost onto
    /// itself: every item is found in both halves, and the wrong one ages out.
    fn fit(&mut self, entries: usize) {
        let wanted = (entries / 2).div_ceil(LANES).next_power_of_two();
        while self.buckets.len() < wanted {
            if self.buckets.is_empty() {
                self.buckets.reserve_exact(wanted);
                self.buckets.resize(wanted, Default::default());
            } else {
                self.buckets.reserve_exact(self.buckets.len());
                self.buckets.extend_from_within(..);
            }
        }
        if self.buckets.len() > wanted * 2 {
            self.buckets.truncate(wanted);
            self.buckets.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_young_by_origin_and_forgets_the_old() {
        let mut ghost = Ghost::default();
        let item = |number: u32| number.wrapping_mul(0x9E37_79B1);
        for number in 0..1_000 {
            let origin = if number % 2 == 0 { Origin::Small } else { Origin::Main };
            ghost.put(item(number), origin, 400);
        }
        let young = (800..1_000).filter(|number| ghost.take(item(*number), 400).is_some()).count();
        let old = (0..200).filter(|number| ghost.take(item(*number), 400).is_some()).count();
        assert!(young > 160 && old < 10, "{young} {old}");
        assert_eq!(ghost.take(item(999), 400), None);
        ghost.put(item(5), Origin::Main, 400);
        assert_eq!(ghost.take(item(5), 400), Some((Origin::Main, true)));
    }

    #[test]
    fn follows_the_number_of_entries() {
        let mut ghost = Ghost::default();
        ghost.put(1, Origin::Small, 1 << 10);
        ghost.put(2, Origin::Small, 1 << 14);
        assert!(ghost.take(1, 1 << 14).is_some());
        assert!(ghost.bytes() <= 4 << 14);
        ghost.put(3, Origin::Small, 100);
        assert!(ghost.bytes() <= 4 * 128 && ghost.take(3, 100).is_some());
    }
}
