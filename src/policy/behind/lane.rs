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
//! and of several the newest counts.
//!
//! What the store refuses waits apart from the others: a batch as its pieces, a key that was refused alone
//! until its time comes. However much that is, it takes one call between two batches of the others.

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

/// Into how many pieces a refused batch is cut. Two would find one bad key among many in fewer calls; where
/// most are bad, more pieces need about half as many.
const PIECES: usize = 8;

/// Of the calls for what waits apart, one in so many is for the oldest piece: the others go from the newest
/// on, so that what was written behind many bad keys doesn't wait for all of them.
const FOR_OLDEST: u32 = 4;
/// And one in so many for a key that was refused alone before.
const FOR_ALONE: u32 = 16;
/// Of those that wait apart so many are looked at for their age, while writes wait for the lane.
const LOOKED_AT: usize = 1024;

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
    pub waited: Waited,
}

/// Where the keys of a batch have waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Waited {
    /// With all others.
    #[default]
    Queue,
    /// Apart, as the oldest piece of what was refused.
    Oldest,
    /// Apart, as the newest piece, or alone.
    Newest,
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
        Self { changes: vec![changes], places: vec![places], waited: self.waited }
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
    /// Pieces of refused batches, the newest last: each holds keys that are good or bad.
    pieces: VecDeque<Vec<Number>>,
    /// Keys that were refused alone, with the time when they are tried again.
    later: BinaryHeap<Reverse<(Instant, Number)>>,
    /// How often something that waits apart has had its turn, and whether it had the last one.
    apart: u32,
    was_apart: bool,
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

    /// Since when the oldest change is here; of very many that wait apart, the oldest of some.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let front = self.queue.front().and_then(|number| self.dirty.get(*number));
        let alone = self.later.iter().map(|Reverse((_, number))| number);
        let apart = alone.take(LOOKED_AT).chain(self.pieces.iter().flatten().take(LOOKED_AT));
        let apart = apart.filter_map(|number| self.dirty.get(*number));
        front.into_iter().chain(apart).map(|dirty| dirty.since.at).chain(self.flying).min()
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

    /// What is due: those that are old enough, or were here before epoch `hurry`; and in turns with them
    /// what waits apart. All of it flies from here on. What is past its deadline goes as a delete
    /// (SEMANTICS 12).
    pub(super) fn take(&mut self, terms: &Terms, hurry: u64, at: Instant, now: u64) -> Due {
        let mut waiting = self.front_due(terms, hurry);
        let is_due = waiting.is_some_and(|due| due <= at);
        let apart = if self.was_apart && is_due { None } else { self.take_apart(at) };
        self.was_apart = apart.is_some();
        let mut batch = Batch::default();
        if let Some((waited, numbers)) = apart {
            batch.waited = waited;
            for number in numbers {
                self.fly(&mut batch, number, now);
            }
            return Due::Now(batch);
        }
        // One that is due takes those along that soon will be: else each would go alone, when its time comes.
        let (mut bytes, soon) = (0, at + terms.delay / ALONG);
        while batch.len() < terms.batch && bytes < terms.bytes {
            waiting = self.front_due(terms, hurry);
            let until = if batch.len() == 0 { at } else { soon };
            if waiting.is_none_or(|due| due > until) {
                break;
            }
            let Some(number) = self.queue.pop_front() else { break };
            bytes += self.fly(&mut batch, number, now);
        }
        let refused = self.later.peek().map(|Reverse((due, _))| *due);
        match waiting.into_iter().chain(refused).min() {
            _ if batch.len() > 0 => Due::Now(batch),
            Some(at) => Due::At(at),
            None => Due::Idle,
        }
    }

    /// When the first of the queue is due.
    fn front_due(&self, terms: &Terms, hurry: u64) -> Option<Instant> {
        let since = self.dirty.get(*self.queue.front()?)?.since;
        Some(if since.epoch < hurry { since.at } else { since.at + terms.delay })
    }

    /// What is next of those that wait apart, and due.
    fn take_apart(&mut self, at: Instant) -> Option<(Waited, Vec<Number>)> {
        let alone = self.later.peek().filter(|Reverse((due, _))| *due <= at);
        if alone.is_none() && self.pieces.is_empty() {
            return None;
        }
        self.apart = self.apart.wrapping_add(1);
        if alone.is_some()
            && (self.pieces.is_empty() || self.apart.is_multiple_of(FOR_ALONE))
            && let Some(Reverse((_, number))) = self.later.pop()
        {
            return Some((Waited::Newest, vec![number]));
        }
        if self.apart.is_multiple_of(FOR_OLDEST) {
            return Some((Waited::Oldest, self.pieces.pop_front()?));
        }
        Some((Waited::Newest, self.pieces.pop_back()?))
    }

    /// A key's change flies with a batch; says what it takes, in bytes.
    fn fly(&mut self, batch: &mut Batch, number: Number, now: u64) -> usize {
        let Some(dirty) = self.dirty.get_mut(number) else { return 0 };
        let since = dirty.since.at;
        self.flying = Some(self.flying.map_or(since, |oldest| oldest.min(since)));
        dirty.place = Place::Flying;
        batch.push(dirty.update.change(now), (number, dirty.position));
        cost(&dirty.update)
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

    /// The store doesn't have a batch: it waits again, before the others, or where it has waited.
    pub(super) fn put_back(&mut self, batch: &Batch) {
        let numbers = self.wait(batch);
        match batch.waited {
            Waited::Queue => numbers.iter().rev().for_each(|number| self.queue.push_front(*number)),
            Waited::Oldest => self.pieces.push_front(numbers),
            Waited::Newest => self.pieces.push_back(numbers),
        }
    }

    /// The store has refused a batch of several keys: it waits apart, in pieces.
    pub(super) fn set_apart(&mut self, batch: &Batch) {
        let numbers = self.wait(batch);
        let pieces = numbers.chunks(numbers.len().div_ceil(PIECES).max(1)).map(<[_]>::to_vec);
        match batch.waited {
            Waited::Oldest => pieces.rev().for_each(|piece| self.pieces.push_front(piece)),
            Waited::Queue | Waited::Newest => self.pieces.extend(pieces),
        }
    }

    /// The keys of a batch, which flies no more.
    fn wait(&mut self, batch: &Batch) -> Vec<Number> {
        let mut numbers = Vec::with_capacity(batch.len());
        for (number, _) in &batch.places {
            if let Some(dirty) = self.dirty.get_mut(*number) {
                (dirty.place, dirty.since_next) = (Place::Waiting, None);
                numbers.push(*number);
            }
        }
        numbers
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
