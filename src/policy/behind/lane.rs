//! One part of a namespace's unflushed changes: which keys are dirty, what they hold, and in which order
//! they go to the store.
//!
//! ```text
//!            put (not dirty yet)                  take, when it is old enough
//!   clean ----------------------> waiting -----------------------------------> flying
//!     ^                              ^                                           | |
//!     |                              |  put while it flew, or the store was down | |
//!     |                              +-------------------------------------------+ |
//!     |            stored, and nothing newer came                                  |
//!     +----------------------------------------------------------------------------+
//! ```
//!
//! A key flies at most once at a time, so its changes reach the store in order; what comes meanwhile waits,
//! and of several the newest counts. One that the store refuses waits apart from the others.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    journal::Position,
    store::{Change, Record},
};

/// What a dirty key takes beside its key and value, roughly.
pub(super) const OVERHEAD: usize = 200;

/// Where a dirty key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the queue, or (refused before) in the heap of those that wait longer.
    Waiting,
    /// On its way to the store.
    Flying,
}

/// A key that the store doesn't have as it is.
#[derive(Debug)]
struct Dirty {
    /// Its newest change.
    change: Change,
    position: Position,
    /// Since when, and in which epoch of FLUSH, the oldest change that isn't stored is here.
    since: Since,
    /// The same of the oldest change that came while one flew.
    since_next: Option<Since>,
    place: Place,
    /// How often the store has refused what it holds.
    refusals: u32,
    /// To which versions of the store it gives way.
    yields_to: u64,
}

/// When something became dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since {
    pub at: Instant,
    /// How often FLUSH was asked for before.
    pub epoch: u64,
}

/// What goes to the store at once: keys, each with its change and the change's position.
#[derive(Debug, Default)]
pub(super) struct Batch(pub Vec<(Bytes, Change, Position)>);

/// When a lane has something to do.
#[derive(Debug)]
pub(super) enum Due {
    /// Now: this.
    Now(Batch),
    /// At this time, unless something comes.
    At(Instant),
    /// When something comes.
    Idle,
}

/// How large a batch may be, and how old a change before it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub delay: Duration,
    pub batch: usize,
    pub bytes: usize,
}

/// The changes of a lane.
#[derive(Default)]
pub(super) struct Lane {
    dirty: HashMap<Bytes, Dirty, ahash::RandomState>,
    /// The waiting keys, those that are dirty for longest first.
    queue: VecDeque<Bytes>,
    /// Refused ones, with the time when they are tried again.
    later: BinaryHeap<Reverse<(Instant, Bytes)>>,
    bytes: usize,
    /// Since when the oldest of those that fly is dirty.
    flying: Option<Instant>,
}

/// What [`Lane::land`] tells of a batch that the store has.
#[derive(Debug, Default)]
pub(super) struct Landed {
    /// Effects that are over.
    pub over: Vec<Position>,
    /// The epoch of each change that is stored, and of the one that came meanwhile.
    pub epochs: Vec<(u64, Option<u64>)>,
}

impl Lane {
    /// How many keys are dirty.
    pub(super) fn len(&self) -> usize {
        self.dirty.len()
    }

    /// What they take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Since when the oldest change is here.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let front = self.queue.front().and_then(|key| self.dirty.get(key));
        // Those that wait apart are few.
        let later = self.later.iter().filter_map(|Reverse((_, key))| self.dirty.get(key));
        front.into_iter().chain(later).map(|dirty| dirty.since.at).chain(self.flying).min()
    }

    /// The unflushed effect of a key.
    pub(super) fn position(&self, key: &[u8]) -> Option<Position> {
        self.dirty.get(key).map(|dirty| dirty.position)
    }

    /// What a key holds, if the store doesn't have it yet.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Change> {
        self.dirty.get(key).map(|dirty| &dirty.change)
    }

    /// Takes a key's newest change; returns since when the key is dirty, if it was clean.
    pub(super) fn put(
        &mut self,
        key: Bytes,
        change: Change,
        position: Position,
        since: impl FnOnce() -> Since,
    ) -> Option<Since> {
        let more = cost(&key, &change);
        if let Some(dirty) = self.dirty.get_mut(&key) {
            self.bytes = self.bytes + more - cost(&key, &dirty.change);
            (dirty.change, dirty.position, dirty.refusals) = (change, position, 0);
            dirty.yields_to = 0;
            if dirty.place == Place::Flying {
                dirty.since_next.get_or_insert_with(since);
            }
            return None;
        }
        self.bytes += more;
        self.queue.push_back(key.clone());
        let (since, place, since_next) = (since(), Place::Waiting, None);
        let (refusals, yields_to) = (0, 0);
        self.dirty
            .insert(key, Dirty { change, position, since, since_next, place, refusals, yields_to });
        Some(since)
    }

    /// A key's change is over if the store has a newer version of it, up to this one.
    pub(super) fn set_yields_to(&mut self, key: &[u8], version: u64) {
        if let Some(dirty) = self.dirty.get_mut(key) {
            dirty.yields_to = version;
        }
    }

    /// Whether a change that the store has passed over for this version is over with that.
    pub(super) fn yields_to(&self, key: &[u8], position: Position, version: u64) -> bool {
        let dirty = self.dirty.get(key).filter(|dirty| dirty.position == position);
        dirty.is_some_and(|dirty| version <= dirty.yields_to)
    }

    /// What is due: those that are old enough, or were here before epoch `hurry`. All of it flies from
    /// here on. What is past its deadline goes as a delete (SEMANTICS 12).
    pub(super) fn take(&mut self, terms: &Terms, hurry: u64, at: Instant, now: u64) -> Due {
        let mut batch = Batch::default();
        let (mut bytes, mut next) = (0, None);
        loop {
            if batch.0.len() >= terms.batch || bytes >= terms.bytes {
                break;
            }
            let refused = self.later.peek().map(|Reverse((due, _))| *due);
            let waiting = self.queue.front().and_then(|key| self.dirty.get(key)).map(|dirty| {
                let is_urgent = dirty.since.epoch < hurry;
                if is_urgent { dirty.since.at } else { dirty.since.at + terms.delay }
            });
            // Refused ones go alone: the others must not be refused with them.
            let key = match (waiting, refused) {
                (_, Some(due)) if due <= at && batch.0.is_empty() => {
                    self.later.pop().map(|Reverse((_, key))| key)
                }
                (Some(due), _) if due <= at => self.queue.pop_front(),
                (waiting, refused) => {
                    next = waiting.into_iter().chain(refused).min();
                    None
                }
            };
            let Some(key) = key else { break };
            let Some(dirty) = self.dirty.get_mut(&key) else { continue };
            let is_alone = dirty.refusals > 0;
            let since = dirty.since.at;
            self.flying = Some(self.flying.map_or(since, |oldest| oldest.min(since)));
            dirty.place = Place::Flying;
            let change = due_change(&dirty.change, now);
            bytes += cost(&key, &change);
            batch.0.push((key, change, dirty.position));
            if is_alone {
                break;
            }
        }
        match next {
            _ if !batch.0.is_empty() => Due::Now(batch),
            Some(at) => Due::At(at),
            None => Due::Idle,
        }
    }

    /// Nothing flies any more: a batch has landed, whole or in parts.
    pub(super) fn all_landed(&mut self) {
        self.flying = None;
    }

    /// How many keys wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Every dirty key.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.dirty.keys()
    }

    /// The store has a batch.
    pub(super) fn land(&mut self, batch: &Batch) -> Landed {
        let mut landed = Landed::default();
        for (key, _, position) in &batch.0 {
            let Some(dirty) = self.dirty.get_mut(key) else { continue };
            landed.epochs.push((dirty.since.epoch, dirty.since_next.map(|since| since.epoch)));
            if dirty.position == *position {
                landed.over.push(*position);
                self.remove(key);
            } else {
                self.wait_again(key);
            }
        }
        landed
    }

    /// The store doesn't have a batch: it waits again, before the others.
    pub(super) fn put_back(&mut self, batch: Batch) {
        for (key, ..) in batch.0.into_iter().rev() {
            if let Some(dirty) = self.dirty.get_mut(&key) {
                (dirty.place, dirty.since_next) = (Place::Waiting, None);
                self.queue.push_front(key);
            }
        }
    }

    /// The store has refused a key's change; says how often by now, or `None` if there is a newer one,
    /// which then is next.
    pub(super) fn refuse(&mut self, key: &Bytes, position: Position) -> Option<u32> {
        let dirty = self.dirty.get_mut(key)?;
        if dirty.position != position {
            // Its journal record is superseded.
            (dirty.place, dirty.since_next) = (Place::Waiting, None);
            self.queue.push_front(key.clone());
            return None;
        }
        dirty.refusals += 1;
        Some(dirty.refusals)
    }

    /// A refused key waits until then.
    pub(super) fn wait_until(&mut self, key: Bytes, at: Instant) {
        if let Some(dirty) = self.dirty.get_mut(&key) {
            (dirty.place, dirty.since_next) = (Place::Waiting, None);
            self.later.push(Reverse((at, key)));
        }
    }

    /// Gives a change of a key up, unless a newer one has come: then that one is next. Returns the epochs
    /// as [`Landed`] has them.
    pub(super) fn give_up(
        &mut self,
        key: &Bytes,
        position: Position,
    ) -> Option<(u64, Option<u64>)> {
        let dirty = self.dirty.get(key)?;
        let epochs = (dirty.since.epoch, dirty.since_next.map(|since| since.epoch));
        if dirty.position == position {
            self.remove(key);
        } else {
            self.wait_again(key);
        }
        Some(epochs)
    }

    fn remove(&mut self, key: &Bytes) {
        if let Some(dirty) = self.dirty.remove(key) {
            self.bytes -= cost(key, &dirty.change);
        }
    }

    /// What came while a key's change flew is the oldest now.
    fn wait_again(&mut self, key: &Bytes) {
        let Some(dirty) = self.dirty.get_mut(key) else { return };
        dirty.since = dirty.since_next.take().unwrap_or(dirty.since);
        dirty.place = Place::Waiting;
        let since = dirty.since;
        // It may be older than some that came while it flew: the queue is in order of age.
        let is_older =
            |other: &Bytes| self.dirty.get(other).is_some_and(|other| other.since.at <= since.at);
        let place = self.queue.iter().rposition(is_older).map_or(0, |at| at + 1);
        self.queue.insert(place, key.clone());
    }
}

/// A change as it is now: past its deadline, a value is gone.
pub(super) fn due_change(change: &Change, now: u64) -> Change {
    match change {
        Change::Put(record) if is_past(record, now) => Change::Delete { version: record.version },
        change => change.clone(),
    }
}

/// Whether a record's data has ended.
pub(super) fn is_past(record: &Record, now: u64) -> bool {
    record.deadline != 0 && record.deadline <= now
}

/// What a key with a change takes, in bytes.
fn cost(key: &[u8], change: &Change) -> usize {
    let value = match change {
        Change::Put(record) => record.value.len(),
        Change::Delete { .. } => 0,
    };
    OVERHEAD + key.len() + value
}
