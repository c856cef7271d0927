//! What is looked for in L3, as steps between reads: whoever carries a job through asks which bytes it
//! needs, gets them in whatever way, and hands them over, until it needs no more and has answered.

use std::{io, time::Duration};

use tokio::sync::oneshot;

use super::flight::{FetchError, Found, Origin, Pilot};
use crate::tier::{
    demote::{Below, Known},
    entry::{EntryRef, Meta},
    log::{
        Log, add,
        read::{Fetched, KeyRead, Span},
        slot::{QUEUED, Slot},
    },
    shelf::is_live,
};

/// How often a record is looked for again because its segment was reclaimed meanwhile.
const TRIES: u32 = 8;

/// A job for the readers.
pub(super) enum Job {
    /// Looks for a key.
    Search(Search),
    /// Reads whose record it is.
    Peek(Peek),
}

impl Job {
    /// Answers that the disk is too slow.
    pub(super) fn give_up(self) {
        if let Self::Search(mut search) = self {
            search.answer(Err(FetchError::Disk));
        }
    }

    /// What has to be read next; `None` when it has answered.
    pub(super) fn next(&mut self, log: &Log) -> Option<Span> {
        match self {
            Self::Search(search) => search.next(log),
            Self::Peek(peek) => peek.next(log),
        }
    }

    /// Takes what was read, and how long it took.
    pub(super) fn take(&mut self, log: &Log, read: io::Result<&[u8]>, took: Duration) {
        match self {
            Self::Search(search) => search.take(log, read, took),
            Self::Peek(peek) => peek.take(log, read),
        }
    }
}

/// Looks for a flight's key and, if it is there, brings it into memory.
pub(super) struct Search {
    /// Until it has answered.
    pilot: Option<Pilot>,
    below: Option<Below>,
    /// The next of the records below.
    at: usize,
    best: Option<(u64, EntryRef, Slot)>,
    has_moved: bool,
    tries: u32,
    now: u64,
}

impl Search {
    pub(super) fn new(pilot: Pilot) -> Self {
        let now = pilot.cache.clock.now();
        let pilot = Some(pilot);
        Self { pilot, below: None, at: 0, best: None, has_moved: false, tries: 0, now }
    }

    fn answer(&mut self, found: Result<Found, FetchError>) {
        if let Some(pilot) = self.pilot.take() {
            pilot.go_on_to_store(found);
        }
    }

    fn next(&mut self, log: &Log) -> Option<Span> {
        loop {
            let pilot = self.pilot.as_ref()?;
            let Some(below) = &self.below else {
                self.tries += 1;
                self.below = pilot.cache.memory.below(pilot.db, pilot.hash);
                (self.at, self.has_moved) = (0, false);
                if self.tries > TRIES {
                    self.answer(Err(FetchError::Disk));
                } else if self.below.is_none() {
                    self.answer(Ok(Found { entry: None, known: Known::None }));
                }
                continue;
            };
            let Some(record) = below.records.get(self.at).copied() else {
                self.conclude(log);
                continue;
            };
            if !record.has(QUEUED) {
                return Some(log.span_of(record));
            }
            let found = look_in_queue(log, pilot, record);
            self.note(log, found);
        }
    }

    fn take(&mut self, log: &Log, read: io::Result<&[u8]>, took: Duration) {
        let (Some(pilot), Some(below)) = (&self.pilot, &self.below) else { return };
        log.note_read(took);
        let record = below.records[self.at];
        let access = pilot.cache.memory.rules().eviction().first_access(self.now);
        let found = log.judge(read, record, below.keyspace, &pilot.key, |found| {
            (found.head.version, found.entry(access))
        });
        self.note(log, found);
    }

    /// Notes what the present record is, and goes on to the next.
    fn note(&mut self, log: &Log, found: Fetched<(u64, EntryRef)>) {
        let (Some(pilot), Some(below)) = (&self.pilot, &self.below) else { return };
        let memory = &pilot.cache.memory;
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
                self.has_moved |= !memory.has_record(below.keyspace, pilot.hash, record);
            }
            // What is bad because its segment was reclaimed meanwhile is looked for again.
            Fetched::Bad if memory.drop_record(below.keyspace, pilot.hash, record) => {
                add(&log.counters.bad_records, 1);
            }
            Fetched::Bad => self.has_moved = true,
            Fetched::Failed(why) => {
                tracing::debug!("L3 can't be read: {why}");
                self.answer(Err(FetchError::Disk));
            }
        }
    }

    /// All records have been looked at.
    fn conclude(&mut self, log: &Log) {
        let (Some(pilot), Some(below)) = (&self.pilot, self.below.take()) else { return };
        let absent = Found { entry: None, known: Known::None };
        let found = match self.best.take() {
            Some((_, entry, record)) if !is_live(entry.get(), self.now) => {
                pilot.cache.memory.drop_record(below.keyspace, pilot.hash, record);
                absent
            }
            Some((_, entry, record)) => {
                add(&log.counters.hits, 1);
                let known = Known::Record(record);
                let entry = pilot.install(entry, known);
                Found { entry: Some((entry, Origin::Disk)), known }
            }
            None if self.has_moved => return,
            None => absent,
        };
        self.answer(Ok(found));
    }
}

fn look_in_queue(log: &Log, pilot: &Pilot, record: Slot) -> Fetched<(u64, EntryRef)> {
    let Some(entry) = log.queue.get(record.place() as u32) else { return Fetched::Bad };
    let entry = entry.get();
    if entry.key() != &*pilot.key {
        return Fetched::Other;
    }
    add(&log.counters.queue_hits, 1);
    let access = pilot.cache.memory.rules().eviction().first_access(pilot.cache.clock.now());
    let copy = EntryRef::new(entry.key(), &[entry.value()], &Meta { access, ..entry.meta() });
    Fetched::Found((u64::MAX, copy))
}

/// Reads whose record it is that the index has.
pub(super) struct Peek {
    record: Slot,
    /// Bytes that it takes at least.
    bytes: usize,
    /// Until it has answered.
    sender: Option<oneshot::Sender<Option<KeyRead>>>,
}

impl Peek {
    pub(super) fn new(record: Slot) -> (Self, oneshot::Receiver<Option<KeyRead>>) {
        let (sender, read) = oneshot::channel();
        (Self { record, bytes: 0, sender: Some(sender) }, read)
    }

    fn next(&mut self, log: &Log) -> Option<Span> {
        self.sender.as_ref().map(|_| log.span_of_key(self.record, self.bytes))
    }

    fn take(&mut self, log: &Log, read: io::Result<&[u8]>) {
        let key = match log.judge_key(read, self.record) {
            Ok(Fetched::Found(key)) => Some(key),
            Ok(_) => None,
            Err(bytes) => return self.bytes = bytes,
        };
        if let Some(sender) = self.sender.take() {
            // Who asked may have gone.
            let _ = sender.send(key);
        }
    }
}
