//! Keys that a store was found not to have, for as long as that is believed: notes in their stripe, beside
//! the tickets, which whatever changes the key removes.
//!
//! They are no entries: no walk or count shows them, only a read that would else ask the store looks here.
//! They count in `memory` and take a 64th of it at most, a stripe its share of that; beyond it the
//! oldest note goes.

use std::hash::{BuildHasherDefault, Hasher};

use lru::LruCache;

use super::{
    Weight,
    memory::{Core, Memory},
};

/// What a note takes beside its key: the node of the list, the map's slot, the allocations' rounding.
const NODE: usize = 112;
/// Longer keys leave no notes, in bytes.
const LONGEST: usize = 1024;
/// The part of memory that they may take.
const SHARE: usize = 64;
/// What a stripe's may take at least, in bytes; where memory counts entries, all of them.
const LEAST: usize = 4 << 10;

/// The notes of one stripe, the newest first.
pub(super) struct Negatives {
    notes: LruCache<u64, Note, BuildHasherDefault<Identity>>,
    bytes: usize,
    /// The bytes last reported to the account of the whole tier.
    reported: usize,
}

struct Note {
    db: usize,
    key: Box<[u8]>,
    until: u64,
}

/// Places are hashes already.
#[derive(Default)]
pub(super) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only whole words are hashed");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

impl Default for Negatives {
    fn default() -> Self {
        let notes = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        Self { notes, bytes: 0, reported: 0 }
    }
}

/// One key of each hash and database has a place.
fn place(db: usize, hash: u64) -> u64 {
    hash ^ (db as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn size(key: &[u8]) -> usize {
    NODE + key.len()
}

impl Negatives {
    pub(super) fn has(&self, db: usize, hash: u64, key: &[u8], now: u64) -> bool {
        let note = self.notes.peek(&place(db, hash));
        note.is_some_and(|note| note.until > now && note.db == db && *note.key == *key)
    }

    /// Notes a key until a moment, and keeps to so many bytes.
    pub(super) fn insert(&mut self, db: usize, hash: u64, key: &[u8], until: u64, most: usize) {
        if key.len() > LONGEST {
            return;
        }
        self.bytes += size(key);
        let note = Note { db, key: key.into(), until };
        if let Some((_, old)) = self.notes.push(place(db, hash), note) {
            self.bytes -= size(&old.key);
        }
        while self.bytes > most
            && let Some((_, oldest)) = self.notes.pop_lru()
        {
            self.bytes -= size(&oldest.key);
        }
    }

    pub(super) fn remove(&mut self, db: usize, hash: u64) {
        if let Some(gone) = self.notes.pop(&place(db, hash)) {
            self.bytes -= size(&gone.key);
        }
    }

    /// Removes those of some databases.
    fn clear(&mut self, is_of: impl Fn(usize) -> bool) {
        let gone: Vec<u64> =
            self.notes.iter().filter(|(_, note)| is_of(note.db)).map(|(at, _)| *at).collect();
        for at in gone {
            if let Some(note) = self.notes.pop(&at) {
                self.bytes -= size(&note.key);
            }
        }
    }
}

impl Core {
    /// Cancels the flights of some databases, and removes what is known of absences there.
    pub(super) fn cancel_all(&mut self, is_of: impl Fn(usize) -> bool) {
        self.tickets.retain(|waiting| !is_of(waiting.db));
        if let Some(negatives) = &mut self.negatives {
            negatives.clear(is_of);
        }
    }
}

impl Memory {
    /// What the notes of a stripe may take, in bytes.
    pub(super) fn negative_bytes(&self) -> usize {
        let share = match self.rules().weight {
            Weight::Bytes => self.rules().limit() / SHARE / self.stripes(),
            Weight::Entries => 0,
        };
        share.max(LEAST)
    }

    /// Adds what a stripe's notes have changed by to the account. (Those that a write removed are taken
    /// out of it when the next one comes.)
    pub(super) fn report_negatives(&self, core: &mut Core) {
        if let Some(negatives) = &mut core.negatives
            && self.rules().weight == Weight::Bytes
        {
            self.add_used(negatives.bytes.wrapping_sub(negatives.reported));
            negatives.reported = negatives.bytes;
        }
    }

    /// Keys that are known to be in no store.
    pub fn negatives(&self) -> usize {
        let count = |core: &Core| core.negatives.as_ref().map_or(0, |found| found.notes.len());
        (0..self.stripes()).map(|stripe| count(&self.lock(stripe))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_the_bytes_are_right() {
        let mut negatives = Negatives::default();
        for hash in 0..100 {
            negatives.insert(0, hash, b"key", 10, 10 * size(b"key"));
        }
        assert_eq!((negatives.notes.len(), negatives.bytes), (10, 10 * size(b"key")));
        assert!(negatives.has(0, 99, b"key", 9) && !negatives.has(0, 89, b"key", 9));
        assert!(!negatives.has(0, 99, b"key", 10), "it has ended");
        assert!(!negatives.has(1, 99, b"key", 9) && !negatives.has(0, 99, b"other", 9));
        negatives.insert(0, 99, b"key", 20, usize::MAX);
        negatives.insert(3, 99, b"key", 20, usize::MAX);
        assert!(negatives.has(0, 99, b"key", 19) && negatives.has(3, 99, b"key", 19));
        negatives.remove(0, 99);
        assert!(!negatives.has(0, 99, b"key", 0));
        negatives.clear(|db| db == 3);
        assert_eq!((negatives.notes.len(), negatives.bytes), (9, 9 * size(b"key")));
        negatives.insert(0, 7, &[b'x'; LONGEST + 1], 20, usize::MAX);
        assert_eq!(negatives.notes.len(), 9);
    }
}
