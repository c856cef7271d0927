//! What a memory tier does by itself.

use super::*;
use crate::tier::entry::{EntryRef, Meta};

const NOW: u64 = 1_700_000_000_000;

fn set(memory: &Memory, key: &[u8], deadline: u64, now: u64) {
    let entry = EntryRef::new(key, &[b"v"], &Meta { deadline, ..Meta::default() });
    let hash = memory.hash(key);
    let mut core = memory.lock(memory.stripe_of(hash));
    let shelf = memory.shelf(memory.stripe_of(hash), &mut core, 0);
    shelf.insert(hash, entry, memory.rules(), now);
    memory.report(shelf);
}

#[test]
fn every_entry_leaves_at_its_deadline_without_a_read() {
    for _ in 0..20 {
        let memory = Memory::new(&Options { limit: 1 << 30, ..Options::default() });
        for number in 0..30_000u64 {
            let now = NOW + number / 100;
            set(&memory, &number.to_be_bytes(), now + 100 + number % 7_000, now);
        }
        for now in (NOW..NOW + 8_000).step_by(100) {
            for stripe in 0..memory.stripes() {
                while memory.expire(stripe, 32, now) == 32 {}
            }
        }
        assert_eq!(memory.len(0), (0, 0));
        assert_eq!(memory.expired(), 30_000);
    }
}
