//! When the entries of a whole tier end, for INFO: on average, and how many have and are still there.

use super::{
    memory::Memory,
    shelf::{end, next_random},
};

/// Entries that are looked at to say how many are past their end.
const LOOKS: usize = 512;

impl Memory {
    /// How long a database's entries with an end have left on average, in milliseconds.
    pub fn mean_ttl(&self, db: usize, now: u64) -> u64 {
        let (mut ends, mut count) = (0, 0);
        for stripe in 0..self.stripes() {
            if let Some(shelf) = self.lock(stripe).shelf(db) {
                ends += shelf.ends();
                count += shelf.volatile() as u128;
            }
        }
        (ends.checked_div(count).unwrap_or(0) as u64).saturating_sub(now)
    }

    /// Which part of the entries with an end, from 0 to 1, is past it and still there, by a sample.
    pub fn stale_part(&self, now: u64) -> f64 {
        let (mut seen, mut past) = (0_u32, 0_u32);
        for stripe in 0..self.stripes() {
            let mut core = self.lock(stripe);
            let mut random = core.random();
            for shelf in core.shelves() {
                for _ in 0..LOOKS.div_ceil(self.stripes()) {
                    random = next_random(random);
                    let Some(slot) = shelf.random(random) else { break };
                    let end = end(shelf.entry(slot));
                    seen += u32::from(end != 0);
                    past += u32::from(end != 0 && end <= now);
                }
            }
        }
        f64::from(past) / f64::from(seen.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::{
        entry::{EntryRef, Meta},
        memory::Options,
    };

    const NOW: u64 = 1_700_000_000_000;

    /// Writes a key with so many milliseconds left, 0 being no end.
    fn put(memory: &Memory, key: u64, left: u64, kept: u64) {
        let end = |left| if left == 0 { 0 } else { NOW + left };
        let meta = Meta { deadline: end(left), kept_until: end(kept), ..Meta::default() };
        let (key, hash) = (key.to_be_bytes(), memory.hash(&key.to_be_bytes()));
        let entry = EntryRef::new(&key, &[b"v"], &meta);
        let mut core = memory.lock(memory.stripe_of(hash));
        let shelf = memory.shelf(memory.stripe_of(hash), &mut core, 0);
        match shelf.find(hash, &key) {
            Some(slot) => shelf.replace(slot, hash, entry, memory.rules(), NOW),
            None => shelf.insert(hash, entry, memory.rules(), NOW),
        }
        memory.report(shelf);
    }

    #[test]
    fn the_mean_is_exact_whatever_happens_to_entries() {
        let memory = Memory::new(&Options::default());
        assert_eq!((memory.mean_ttl(0, NOW), memory.mean_ttl(9, NOW)), (0, 0));
        (0..1_000).for_each(|key| put(&memory, key, 1_000, 0));
        assert_eq!(memory.mean_ttl(0, NOW), 1_000);
        // Half of them longer, as copies; some for ever; a deadline moved.
        (0..500).for_each(|key| put(&memory, key, 9_000, 3_000));
        assert_eq!(memory.mean_ttl(0, NOW), 2_000);
        (0..500).for_each(|key| put(&memory, key, 0, 0));
        assert_eq!(memory.mean_ttl(0, NOW), 1_000);
        let hash = memory.hash(&7_u64.to_be_bytes());
        let stripe = memory.stripe_of(hash);
        let mut core = memory.lock(stripe);
        let shelf = memory.shelf(stripe, &mut core, 0);
        let slot = shelf.find(hash, &7_u64.to_be_bytes()).expect("it was put");
        shelf.set_deadline(slot, hash, NOW + 502_000, memory.rules(), NOW);
        drop(core);
        assert_eq!(memory.mean_ttl(0, NOW), 2_000);
        // The five hundred leave.
        for stripe in 0..memory.stripes() {
            while memory.expire(stripe, 32, NOW + 2_000) != 0 {}
        }
        assert_eq!(memory.mean_ttl(0, NOW + 2_000), 500_000);
        memory.swap(0, 3);
        assert_eq!((memory.mean_ttl(0, NOW), memory.mean_ttl(3, NOW)), (0, 502_000));
        drop(memory.flush(0..16));
        assert_eq!(memory.mean_ttl(3, NOW), 0);
    }

    #[test]
    fn what_is_past_its_end_is_seen_in_a_sample() {
        let memory = Memory::new(&Options::default());
        assert_eq!(memory.stale_part(NOW), 0.0);
        (0..2_000).for_each(|key| put(&memory, key, 1_000 + (key % 2) * 1_000, 0));
        (2_000..3_000).for_each(|key| put(&memory, key, 0, 0));
        assert_eq!(memory.stale_part(NOW), 0.0);
        let half = memory.stale_part(NOW + 1_500);
        assert!((0.3..0.7).contains(&half), "{half}");
        assert_eq!(memory.stale_part(NOW + 2_000), 1.0);
    }
}
