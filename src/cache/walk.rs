//! Walks over a database: what memory has and what is only on disk, in the order of hashes.
//!
//! Both are looked at under the same stripe lock, so a key that is there from the first step to the last
//! is seen, wherever it moves meanwhile. Keys on disk have to be read; one whose record has moved since
//! makes the step begin again.

use futures_util::{StreamExt, stream};

use super::{Cache, below::Disk};
use crate::tier::{
    log::slot::{QUEUED, Slot},
    shelf::{has_ended, is_live},
};

/// How often a step begins again before it does without what it can't read.
const TRIES: u32 = 4;
/// Keys of one step that are read at once.
const AT_ONCE: usize = 32;

/// A tier, or the way between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Memory.
    Memory,
    /// The queue to the disk.
    Queue,
    /// The disk.
    Disk,
}

/// Where a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which tier.
    pub tier: Tier,
    /// Whether the disk, or the queue, has a record of it as it is.
    pub stored: bool,
    /// When the segment was begun in which its record is, in unix seconds.
    pub since: Option<u64>,
}

/// What was read of a record's key.
enum Key {
    /// The key.
    Found(Box<[u8]>),
    /// There is none any more.
    Ended,
    /// The record isn't there.
    Moved,
}

impl Cache {
    /// Shows the keys of one step of a walk, and returns the next cursor (0: the end). It waits only if
    /// there are keys that have to be read from disk.
    pub async fn walk(
        &self,
        db: usize,
        cursor: u64,
        now: u64,
        mut found: impl FnMut(&[u8]),
    ) -> u64 {
        let memory = self.memory();
        let Some(disk) = &self.0.disk else {
            return memory.scan(db, cursor, now, |entry| found(entry.key()), |_| {});
        };
        for tries_left in (0..TRIES).rev() {
            let (mut keys, mut cold) = (Vec::new(), Vec::new());
            let show = |entry: crate::tier::entry::Entry<'_>| keys.push(entry.key().into());
            let next = memory.scan(db, cursor, now, show, |record| cold.push(record));
            let read = |record| self.key_of(disk, db, record, now);
            let mut read = stream::iter(cold.into_iter().map(read)).buffered(AT_ONCE);
            let mut has_moved = false;
            while let Some(key) = read.next().await {
                match key {
                    Key::Found(key) => keys.push(key),
                    Key::Ended => {}
                    Key::Moved => has_moved = true,
                }
            }
            if !has_moved || tries_left == 0 {
                keys.iter().for_each(|key| found(key));
                return next;
            }
        }
        0
    }

    /// A random key of a database, if one is found.
    pub async fn random_key(&self, db: usize, now: u64) -> Option<Box<[u8]>> {
        let memory = self.memory();
        for _ in 0..TRIES * TRIES {
            let random = memory.lock(0).random();
            match memory.random(db, random, now, |entry| entry.key().into())? {
                Ok(key) => return Some(key),
                Err(record) => {
                    let disk = self.0.disk.as_ref()?;
                    if let Key::Found(key) = self.key_of(disk, db, record, now).await {
                        return Some(key);
                    }
                }
            }
        }
        None
    }

    /// Where a key is; it stays there.
    pub async fn place(&self, db: usize, key: &[u8], now: u64) -> Option<Place> {
        let memory = self.memory();
        let hash = memory.hash(key);
        let stored = {
            let core = memory.lock(memory.stripe_of(hash));
            let shelf = core.shelf(db)?;
            let entry = shelf.find(hash, key).map(|slot| shelf.entry(slot));
            entry.filter(|entry| is_live(*entry, now)).map(|entry| entry.is_stored())
        };
        if let Some(stored) = stored {
            return Some(Place { tier: Tier::Memory, stored, since: None });
        }
        let (disk, log) = (self.0.disk.as_ref()?, memory.log()?);
        for _ in 0..TRIES {
            for record in memory.below(db, hash)?.records {
                match self.key_of(disk, db, record, now).await {
                    Key::Found(found) if *found == *key => {
                        let is_queued = record.has(QUEUED);
                        let tier = if is_queued { Tier::Queue } else { Tier::Disk };
                        let since = (!is_queued).then(|| log.written_at(record));
                        return Some(Place { tier, stored: true, since });
                    }
                    _ => {}
                }
            }
        }
        None
    }

    async fn key_of(&self, disk: &Disk, db: usize, record: Slot, now: u64) -> Key {
        let memory = self.memory();
        let Some(log) = memory.log() else { return Key::Moved };
        let read = if record.has(QUEUED) {
            log.queue.get(record.place() as u32).map(|entry| {
                let entry = entry.get();
                (entry.key().into(), entry.meta())
            })
        } else {
            disk.read_key(record).await
        };
        let Some((key, meta)) = read else { return Key::Moved };
        // Damaged bytes have another hash, and what has moved isn't in the index any more.
        if !memory.has_record(log.state().keyspace(db), memory.hash(&key), record) {
            return Key::Moved;
        }
        if has_ended(&meta, now) { Key::Ended } else { Key::Found(key) }
    }
}
