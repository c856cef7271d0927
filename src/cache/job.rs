//! What the readers of L3 do for others: jobs as steps between reads (see [`Lookup`]).

use std::{io, time::Duration};

use tokio::sync::oneshot;

use super::{
    flight::{FetchError, Found, Origin},
    pilot::Pilot,
};
use crate::tier::{
    demote::Known,
    log::{
        Log,
        read::{Fetched, KeyRead, Span},
        slot::Slot,
    },
    lookup::{Lookup, Step, Wanted},
};

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
            Self::Search(search) => search.next(),
            Self::Peek(peek) => peek.next(log),
        }
    }

    /// Takes what was read, and how long it took.
    pub(super) fn take(&mut self, log: &Log, read: io::Result<&[u8]>, took: Duration) {
        match self {
            Self::Search(search) => search.take(read, took),
            Self::Peek(peek) => peek.take(log, read),
        }
    }
}

/// Looks for a flight's key and, if it is there, brings it into memory.
pub(super) struct Search {
    /// Until it has answered.
    pilot: Option<Pilot>,
    lookup: Lookup,
    now: u64,
}

fn wanted(pilot: &Pilot, now: u64) -> Wanted<'_> {
    Wanted { db: pilot.db, key: &pilot.key, hash: pilot.hash, now }
}

impl Search {
    pub(super) fn new(pilot: Pilot) -> Self {
        let now = pilot.cache.clock.now();
        Self { pilot: Some(pilot), lookup: Lookup::default(), now }
    }

    fn answer(&mut self, found: Result<Found, FetchError>) {
        if let Some(pilot) = self.pilot.take() {
            pilot.go_on_to_store(found);
        }
    }

    fn next(&mut self) -> Option<Span> {
        let pilot = self.pilot.as_ref()?;
        let found = match self.lookup.next(&pilot.cache.memory, wanted(pilot, self.now)) {
            Step::Read(span) => return Some(span),
            Step::Found(entry, record) => {
                let known = Known::Record(record);
                let entry = pilot.install(entry, known);
                Ok(Found { entry: Some((entry, Origin::Disk)), known })
            }
            Step::Absent => Ok(Found { entry: None, known: Known::None }),
            Step::Failed(why) => {
                tracing::debug!("L3 can't be read: {why}");
                Err(FetchError::Disk)
            }
        };
        self.answer(found);
        None
    }

    fn take(&mut self, read: io::Result<&[u8]>, took: Duration) {
        if let Some(pilot) = &self.pilot {
            self.lookup.take(&pilot.cache.memory, wanted(pilot, self.now), read, took);
        }
    }
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
