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
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use hashbrown::HashTable;
use slab::Slab;
use tokio::time::Instant;

use super::update::Update;
use crate::{
    journal::{Journal, Position},
    store::Change,
};

/// What a dirty key takes beside its key and value, roughly: what it takes of the journal's room, so that its
/// limit is one on memory.
pub(super) const OVERHEAD: usize = Journal::cost(0, 0) as usize;

/// By this part of the delay a change may go earlier, with one that is due.
const ALONG: u32 = 8;

/// Where a dirty key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the queue, or (refused before) in the heap of those that wait longer.
    Waiting,
    /// On its way to the store.
    Flying,
}

/// A key that the store doesn't have as it is.
struct Dirty {
    hash: u64,
    /// Its newest change.
    update: Update,
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

/// The number of a dirty key in its lane, as long as it is dirty.
pub(super) type Number = usize;

/// What goes to the store at once: changes of keys, and of each the key's number and the change's position.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub changes: Vec<(Bytes, Change)>,
    pub places: Vec<(Number, Position)>,
}

impl Batch {
    pub(super) fn push(&mut self, change: (Bytes, Change), place: (Number, Position)) {
        self.changes.push(change);
        self.places.push(place);
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Takes one out; the last gets its place.
    pub(super) fn swap_remove(&mut self, at: usize) -> Self {
        let (changes, places) = (self.changes.swap_remove(at), self.places.swap_remove(at));
        Self { changes: vec![changes], places: vec![places] }
    }

    /// The last of them, from this one on.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        Self { changes: self.changes.split_off(at), places: self.places.split_off(at) }
    }
}

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

/// The changes of a lane. A key is found by its hash, which the caller makes.
#[derive(Default)]
pub(super) struct Lane {
    dirty: Slab<Dirty>,
    numbers: HashTable<Number>,
    /// The waiting keys, those that are dirty for longest first.
    queue: VecDeque<Number>,
    /// Refused ones, with the time when they are tried again.
    later: BinaryHeap<Reverse<(Instant, Number)>>,
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
        let front = self.queue.front().and_then(|number| self.dirty.get(*number));
        // Those that wait apart are few.
        let later = self.later.iter().filter_map(|Reverse((_, number))| self.dirty.get(*number));
        front.into_iter().chain(later).map(|dirty| dirty.since.at).chain(self.flying).min()
    }

    /// The number of a key, if it is dirty.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<Number> {
        let is_it = |number: &Number| {
            let dirty = &self.dirty[*number];
            dirty.hash == hash && dirty.update.key() == key
        };
        self.numbers.find(hash, is_it).copied()
    }

    /// The unflushed effect of a key.
    pub(super) fn position(&self, number: Number) -> Option<Position> {
        self.dirty.get(number).map(|dirty| dirty.position)
    }

    /// What a key holds that the store doesn't have yet.
    pub(super) fn get(&self, number: Number) -> Option<&Update> {
        self.dirty.get(number).map(|dirty| &dirty.update)
    }

    /// Takes a dirty key's newest change.
    pub(super) fn renew(
        &mut self,
        number: Number,
        update: Update,
        position: Position,
        since: impl FnOnce() -> Since,
    ) {
        let Some(dirty) = self.dirty.get_mut(number) else { return };
        self.bytes = self.bytes + cost(&update) - cost(&dirty.update);
        (dirty.update, dirty.position, dirty.refusals) = (update, position, 0);
        dirty.yields_to = 0;
        if dirty.place == Place::Flying {
            dirty.since_next.get_or_insert_with(since);
        }
    }

    /// Takes the change of a key that isn't dirty yet.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        update: Update,
        position: Position,
        since: Since,
    ) -> Number {
        self.bytes += cost(&update);
        let (place, since_next, refusals, yields_to) = (Place::Waiting, None, 0, 0);
        let dirty = Dirty { hash, update, position, since, since_next, place, refusals, yields_to };
        let number = self.dirty.insert(dirty);
        let hash_of = |number: &Number| self.dirty[*number].hash;
        self.numbers.insert_unique(hash, number, hash_of);
        self.queue.push_back(number);
        number
    }

    /// A key's change is over if the store has a newer version of it, up to this one.
    pub(super) fn set_yields_to(&mut self, number: Number, version: u64) {
        if let Some(dirty) = self.dirty.get_mut(number) {
            dirty.yields_to = version;
        }
    }

    /// Whether a change that the store has passed over for this version is over with that.
    pub(super) fn yields_to(&self, number: Number, position: Position, version: u64) -> bool {
        let dirty = self.dirty.get(number).filter(|dirty| dirty.position == position);
        dirty.is_some_and(|dirty| version <= dirty.yields_to)
    }

    /// What is due: those that are old enough, or were here before epoch `hurry`. All of it flies from
    /// here on. What is past its deadline goes as a delete (SEMANTICS 12).
    pub(super) fn take(&mut self, terms: &Terms, hurry: u64, at: Instant, now: u64) -> Due {
        let mut batch = Batch::default();
        let (mut bytes, mut next) = (0, None);
        // One that is due takes those along that soon will be: else each would go alone, when its time comes.
        let soon = at + terms.delay / ALONG;
        while batch.len() < terms.batch && bytes < terms.bytes {
            let refused = self.later.peek().map(|Reverse((due, _))| *due);
            let front = self.queue.front().and_then(|number| self.dirty.get(*number));
            let waiting = front.map(|dirty| {
                let is_urgent = dirty.since.epoch < hurry;
                if is_urgent { dirty.since.at } else { dirty.since.at + terms.delay }
            });
            // Refused ones go alone: the others must not be refused with them.
            let number = match (waiting, refused) {
                (_, Some(due)) if due <= at && batch.len() == 0 => {
                    self.later.pop().map(|Reverse((_, number))| number)
                }
                (Some(due), _) if due <= if batch.len() == 0 { at } else { soon } => {
                    self.queue.pop_front()
                }
                (waiting, refused) => {
                    next = waiting.into_iter().chain(refused).min();
                    None
                }
            };
            let Some(number) = number else { break };
            let Some(dirty) = self.dirty.get_mut(number) else { continue };
            let since = dirty.since.at;
            self.flying = Some(self.flying.map_or(since, |oldest| oldest.min(since)));
            dirty.place = Place::Flying;
            bytes += cost(&dirty.update);
            batch.push(dirty.update.change(now), (number, dirty.position));
            if dirty.refusals > 0 {
                break;
            }
        }
        match next {
            _ if batch.len() > 0 => Due::Now(batch),
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
    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.dirty.iter().map(|(_, dirty)| dirty.update.key())
    }

    /// The store has a batch.
    pub(super) fn land(&mut self, batch: &Batch) -> Landed {
        let mut landed = Landed::default();
        for (number, position) in &batch.places {
            let epochs = self.give_up(*number, *position);
            if self.position(*number).is_none() {
                landed.over.push(*position);
            }
            landed.epochs.extend(epochs);
        }
        landed
    }

    /// The store doesn't have a batch: it waits again, before the others.
    pub(super) fn put_back(&mut self, batch: &Batch) {
        for (number, _) in batch.places.iter().rev() {
            if let Some(dirty) = self.dirty.get_mut(*number) {
                (dirty.place, dirty.since_next) = (Place::Waiting, None);
                self.queue.push_front(*number);
            }
        }
    }

    /// The store has refused a key's change; says how often by now, or `None` if there is a newer one,
    /// which then is next.
    pub(super) fn refuse(&mut self, number: Number, position: Position) -> Option<u32> {
        let dirty = self.dirty.get_mut(number)?;
        if dirty.position != position {
            // Its journal record is superseded.
            (dirty.place, dirty.since_next) = (Place::Waiting, None);
            self.queue.push_front(number);
            return None;
        }
        dirty.refusals += 1;
        Some(dirty.refusals)
    }

    /// A refused key waits until then.
    pub(super) fn wait_until(&mut self, number: Number, at: Instant) {
        if let Some(dirty) = self.dirty.get_mut(number) {
            (dirty.place, dirty.since_next) = (Place::Waiting, None);
            self.later.push(Reverse((at, number)));
        }
    }

    /// Has done with a change of a key that flew, unless a newer one has come: then that one is next.
    /// Returns the epochs as [`Landed`] has them.
    pub(super) fn give_up(
        &mut self,
        number: Number,
        position: Position,
    ) -> Option<(u64, Option<u64>)> {
        let dirty = self.dirty.get(number)?;
        let epochs = (dirty.since.epoch, dirty.since_next.map(|since| since.epoch));
        if dirty.position == position {
            self.remove(number);
        } else {
            self.wait_again(number);
        }
        Some(epochs)
    }

    fn remove(&mut self, number: Number) {
        let Some(dirty) = self.dirty.try_remove(number) else { return };
        self.bytes -= cost(&dirty.update);
        if let Ok(found) = self.numbers.find_entry(dirty.hash, |other| *other == number) {
            found.remove();
        }
    }

    /// What came while a key's change flew is the oldest now.
    fn wait_again(&mut self, number: Number) {
        let Some(dirty) = self.dirty.get_mut(number) else { return };
        dirty.since = dirty.since_next.take().unwrap_or(dirty.since);
        dirty.place = Place::Waiting;
        let since = dirty.since;
        // It may be older than some that came while it flew: the queue is in order of age.
        let is_older = |other: &Number| self.dirty[*other].since.at <= since.at;
        let place = self.queue.iter().rposition(is_older).map_or(0, |at| at + 1);
        self.queue.insert(place, number);
    }
}

/// What a key with a change takes, in bytes.
fn cost(update: &Update) -> usize {
    OVERHEAD + update.key().len() + update.value().map_or(0, <[u8]>::len)
}
