//! Looking for a key in L3: what the index knows of it, then the disk, or the queue on the way there. The
//! cache's readers do it for flights, a simulation in between.

use std::io;

use super::{
    demote::Below,
    disk::buffer::Buffer,
    entry::{EntryRef, Meta},
    log::{
        Fetched, Log, add,
        slot::{QUEUED, Slot as Record},
    },
    memory::Memory,
    shelf::is_live,
};

/// How often a record is looked for again because its segment was reclaimed meanwhile.
const TRIES: u32 = 8;

/// A key that isn't in memory, and when it is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The database.
    pub db: usize,
    /// The key.
    pub key: &'a [u8],
    /// Its hash, by [`Memory::hash`].
    pub hash: u64,
    /// The time in unix milliseconds.
    pub now: u64,
}

/// An entry that was found, its version, and its record.
type Found = (u64, EntryRef, Record);

impl Memory {
    /// Looks for a key in L3, and returns a copy of its entry and the record that it came from; who asks
    /// installs it. An error: the disk can't say whether it is there.
    pub fn look_below(
        &self,
        wanted: Wanted<'_>,
        buffer: &mut Buffer,
    ) -> io::Result<Option<(EntryRef, Record)>> {
        let Some(log) = self.log() else { return Ok(None) };
        for _ in 0..TRIES {
            let Some(below) = self.below(wanted.db, wanted.hash) else { return Ok(None) };
            let (best, has_moved) = self.look_once(log, wanted, &below, buffer)?;
            if let Some((_, entry, record)) = best {
                if !is_live(entry.get(), wanted.now) {
                    self.drop_record(below.keyspace, wanted.hash, record);
                    return Ok(None);
                }
                add(&log.counters.hits, 1);
                return Ok(Some((entry, record)));
            }
            if !has_moved {
                return Ok(None);
            }
        }
        Err(io::Error::other("the record moves faster than it can be read"))
    }

    /// The newest of the records that a key may have, and whether one of them wasn't where it should be.
    fn look_once(
        &self,
        log: &Log,
        wanted: Wanted<'_>,
        below: &Below,
        buffer: &mut Buffer,
    ) -> io::Result<(Option<Found>, bool)> {
        let (mut best, mut has_moved): (Option<Found>, _) = (None, false);
        let access = self.rules().eviction().first_access(wanted.now);
        for record in below.records.iter().copied() {
            let found = if record.has(QUEUED) {
                look_in_queue(log, wanted.key, record, access)
            } else {
                log.read(buffer, record, below.keyspace, wanted.key, |found| {
                    (found.head.version, found.entry(access))
                })
            };
            match found {
                Fetched::Found((version, entry)) => {
                    if best.as_ref().is_none_or(|(newest, ..)| version > *newest) {
                        best = Some((version, entry, record));
                    }
                }
                // The place, or the queue's number, may be another record's by now.
                Fetched::Other => {
                    has_moved |= !self.has_record(below.keyspace, wanted.hash, record);
                }
                // What is bad because its segment was reclaimed meanwhile is looked for again.
                Fetched::Bad if self.drop_record(below.keyspace, wanted.hash, record) => {
                    add(&log.counters.bad_records, 1);
                }
                Fetched::Bad => has_moved = true,
                Fetched::Failed(why) => return Err(why),
            }
        }
        Ok((best, has_moved))
    }
}

fn look_in_queue(
    log: &Log,
    key: &[u8],
    record: Record,
    access: Option<u32>,
) -> Fetched<(u64, EntryRef)> {
    let Some(entry) = log.queue.get(record.place() as u32) else { return Fetched::Bad };
    let entry = entry.get();
    if entry.key() != key {
        return Fetched::Other;
    }
    add(&log.counters.queue_hits, 1);
    let copy = EntryRef::new(entry.key(), &[entry.value()], &Meta { access, ..entry.meta() });
    Fetched::Found((u64::MAX, copy))
}
