//! Looking for a key in L3, as steps between reads: what the index knows of it, then the disk, or the
//! queue on the way there. Whoever carries a search through asks what it needs, reads that in whatever
//! way, and hands it over, until it needs no more.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    demote::Below,
    disk::buffer::Buffer,
    entry::{EntryRef, Meta},
    log::{
        Log, add,
        read::{Fetched, Span},
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

/// What a search needs, or its end.
pub enum Step {
    /// These bytes of the log: read them and [take](Lookup::take) them.
    Read(Span),
    /// A copy of the key's entry, and the record that it came from. Who asked installs it.
    Found(EntryRef, Record),
    /// L3 doesn't have the key.
    Absent,
    /// The disk can't say whether it has.
    Failed(io::Error),
}

/// A search for a key.
#[derive(Default)]
pub struct Lookup {
    below: Option<Below>,
    /// The next of the records below.
    at: usize,
    best: Option<(u64, EntryRef, Record)>,
    has_moved: bool,
    failed: Option<io::Error>,
    tries: u32,
}

impl Lookup {
    /// What it needs next. All calls are for the same key and memory.
    pub fn next(&mut self, memory: &Memory, wanted: Wanted<'_>) -> Step {
        let Some(log) = memory.log() else { return Step::Absent };
        loop {
            if let Some(why) = self.failed.take() {
                return Step::Failed(why);
            }
            let Some(below) = &self.below else {
                self.tries += 1;
                if self.tries > TRIES {
                    return Step::Failed(io::Error::other(
                        "the record moves faster than it is read",
                    ));
                }
                let Some(below) = memory.below(wanted.db, wanted.hash) else { return Step::Absent };
                (self.below, self.at, self.has_moved) = (Some(below), 0, false);
                continue;
            };
            match below.records.get(self.at).copied() {
                Some(record) if record.has(QUEUED) => {
                    let access = memory.rules().eviction().first_access(wanted.now);
                    let found = look_in_queue(log, wanted.key, record, access);
                    self.note(log, memory, wanted, found);
                }
                Some(record) => return Step::Read(log.span_of(record)),
                None => {
                    let keyspace = below.keyspace;
                    self.below = None;
                    match self.best.take() {
                        Some((_, entry, record)) if is_live(entry.get(), wanted.now) => {
                            add(&log.counters.hits, 1);
                            return Step::Found(entry, record);
                        }
                        Some((_, _, record)) => {
                            memory.drop_record(keyspace, wanted.hash, record);
                            return Step::Absent;
                        }
                        None if !self.has_moved => return Step::Absent,
                        None => {}
                    }
                }
            }
        }
    }

    /// Takes what was read, and how long it took.
    pub fn take(
        &mut self,
        memory: &Memory,
        wanted: Wanted<'_>,
        read: io::Result<&[u8]>,
        took: Duration,
    ) {
        let (Some(log), Some(below)) = (memory.log(), &self.below) else { return };
        let record = below.records[self.at];
        let access = memory.rules().eviction().first_access(wanted.now);
        log.note_read(took);
        let found = log.judge(read, record, below.keyspace, wanted.key, |found| {
            (found.head.version, found.entry(access))
        });
        self.note(log, memory, wanted, found);
    }

    /// Notes what the present record is, and goes on to the next.
    fn note(
        &mut self,
        log: &Log,
        memory: &Memory,
        wanted: Wanted<'_>,
        found: Fetched<(u64, EntryRef)>,
    ) {
        let Some(below) = &self.below else { return };
        let record = below.records[self.at];
        self.at += 1;
        match found {
            Fetched::Found((version, entry)) => {
                if self.best.as_ref().is_none_or(|(newest, ..)| version > *newest) {
                    self.best = Some((version, entry, record));
                }
            }
            // The place, or the queue's number, may be another record's by now.
            Fetched::Other => {
                self.has_moved |= !memory.has_record(below.keyspace, wanted.hash, record);
            }
            // What is bad because its segment was reclaimed meanwhile is looked for again.
            Fetched::Bad if memory.drop_record(below.keyspace, wanted.hash, record) => {
                add(&log.counters.bad_records, 1);
            }
            Fetched::Bad => self.has_moved = true,
            Fetched::Failed(why) => self.failed = Some(why),
        }
    }
}

impl Memory {
    /// Looks for a key in L3, and waits for the disk.
    pub fn look_below(
        &self,
        wanted: Wanted<'_>,
        buffer: &mut Buffer,
    ) -> io::Result<Option<(EntryRef, Record)>> {
        let mut lookup = Lookup::default();
        loop {
            match lookup.next(self, wanted) {
                Step::Read(span) => {
                    let Some(log) = self.log() else { return Ok(None) };
                    let started = Instant::now();
                    let read = log.read_span(buffer, &span);
                    lookup.take(self, wanted, read, started.elapsed());
                }
                Step::Found(entry, record) => return Ok(Some((entry, record))),
                Step::Absent => return Ok(None),
                Step::Failed(why) => return Err(why),
            }
        }
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
