//! What a command may do with keys while it holds their stripes.
//!
//! A [`Tx`] is one attempt: dispatch has locked the stripes of the command's keys, made room, and seen
//! that no key has to be fetched from below (a read of one key sees that for itself). The command reads and changes keys synchronously. Where a
//! key's namespace writes through, changes go to a staged copy that only this attempt sees; the cache
//! publishes it when the store has acknowledged. The command can't tell.

mod room;
mod standing;

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::{
    Inner, Job,
    counter::Hit,
    flight::{self, Origin, Pin},
};
use crate::{
    error::ClientError,
    policy::{Rule, TtlMeans, Write},
    tier::{
        Rules,
        demote::Known,
        entry::{Entry, EntryRef, Meta, entry_size},
        memory::{Core, Memory},
        shelf::{is_live, next_random},
        table::Slot,
    },
};

pub(super) use room::Made;
pub use room::Need;
pub(super) use standing::{Due, Standing};

/// A key and its hash.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// The key's bytes.
    pub bytes: &'a [u8],
    /// Their hash, by [`Memory::hash`].
    pub hash: u64,
}

/// Why an attempt stopped. Whatever it replied so far is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The client's mistake, or what it asks can't be had.
    Client(ClientError),
    /// It needs more room; nothing has changed yet. The cache evicts and tries again.
    Room(Need),
    /// It touched a key that has to be fetched first; nothing has changed yet.
    Cold(Cold),
    /// It touched a key of which nobody knows whether memory has what there is to have; nothing has changed
    /// yet.
    Unseen,
    /// It touched a key that isn't among those of its row.
    Stray,
}

/// A key that has to be fetched, of another database than the command's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cold {
    /// The database.
    pub db: usize,
    /// The key.
    pub key: Bytes,
    /// Its hash.
    pub hash: u64,
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// What a write means for a key's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// The key has no deadline afterwards.
    Clear,
    /// It keeps the one it has.
    Keep,
    /// It ends at this unix millisecond.
    At(u64),
}

/// A stripe that the attempt holds.
pub(super) struct Held<'a> {
    stripe: usize,
    core: MutexGuard<'a, Core>,
    /// A bit for each database (modulo 64) whose shelf was changed.
    changed: u64,
}

/// The key of a staged change: mostly short, and gone soon.
pub(super) type StagedKey = SmallVec<[u8; 40]>;

/// A change that waits for its store.
pub(super) struct Change {
    pub(super) db: usize,
    pub(super) hash: u64,
    pub(super) key: StagedKey,
    /// `None`: the key is deleted.
    pub(super) entry: Option<EntryRef>,
    /// Only its deadline was changed.
    pub(super) is_retiming: bool,
}

/// Staged changes, in their order: mostly one.
pub(super) type Changes = SmallVec<[Change; 1]>;

/// One attempt at a command, holding the stripes of its keys.
pub struct Tx<'a> {
    start: Start<'a>,
    held: SmallVec<[Held<'a>; 1]>,
    /// The database that keys are looked up in.
    db: usize,
    view: View,
    /// The entry of the only key, where the worker's own cache has it; then no stripe is held.
    local: Option<Entry<'a>>,
    /// Whether the namespaces' quotas hold all that the command will put.
    has_quotas: bool,
}

/// Where an attempt finds entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    /// Where the stripe says, but nobody has looked yet if that is all there is to have: a lookup stops where
    /// it isn't plainly so. This is for reads of one key, which so look it up once.
    Unseen,
    /// Where the stripes say.
    Plain,
    /// It may be staged, pinned, local, or of another database than the command's.
    Layered,
}

/// What an attempt starts with.
pub(super) struct Start<'a> {
    pub(super) cache: &'a Inner,
    pub(super) job: &'a Job<'a>,
    /// What hydrate has found for keys that may have left memory again (SEMANTICS 2).
    pub(super) pins: &'a [Pin],
    /// The changes so far, where they wait for a store.
    pub(super) staged: Option<&'a mut Changes>,
    /// What was made before the attempt.
    pub(super) made: Made,
}

impl<'a> Tx<'a> {
    /// Locks the stripes of the keys, in ascending order.
    #[inline]
    pub(super) fn begin(start: Start<'a>, hashes: impl Iterator<Item = u64> + Clone) -> Self {
        let memory = &start.cache.memory;
        let lock = |stripe| Held { stripe, core: memory.lock(stripe), changed: 0 };
        let mut stripes = hashes.map(|hash| memory.stripe_of(hash));
        // One key is the rule, and needs no sorting.
        let held = match (stripes.next(), stripes.next()) {
            (None, _) => SmallVec::new(),
            (Some(only), None) => SmallVec::from_buf([lock(only)]),
            (Some(first), Some(second)) => {
                let wanted: u128 =
                    stripes.fold(1 << first | 1 << second, |set, stripe| set | 1 << stripe);
                (0..memory.stripes()).filter(|at| wanted >> at & 1 == 1).map(lock).collect()
            }
        };
        let view = match (&start.staged, start.pins) {
            (None, []) if !start.job.writes && start.job.keys.len() == 1 => View::Unseen,
            (None, []) => View::Plain,
            _ => View::Layered,
        };
        Self { db: start.job.db, start, held, view, local: None, has_quotas: false }
    }

    /// An attempt at reading one key that holds no stripe: the entry is here.
    #[inline]
    pub(super) fn local(start: Start<'a>, entry: Entry<'a>) -> Self {
        let (held, local) = (SmallVec::new(), Some(entry));
        let db = start.job.db;
        Self { db, start, held, view: View::Layered, local, has_quotas: false }
    }

    /// Whether it sees for itself that what it looks up is all there is to have.
    #[inline]
    pub(super) fn is_unseen(&self) -> bool {
        self.view == View::Unseen
    }

    /// Somebody has looked.
    pub(super) fn note_seen(&mut self) {
        if self.is_unseen() {
            self.view = View::Plain;
        }
    }

    #[inline]
    fn memory(&self) -> &'a Memory {
        &self.start.cache.memory
    }

    /// What it is an attempt at.
    pub(super) fn job(&self) -> &'a Job<'a> {
        self.start.job
    }

    /// The time of the attempt in unix milliseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        self.start.job.now
    }

    /// The number of databases.
    pub fn databases(&self) -> usize {
        self.memory().databases()
    }

    /// The database that keys are looked up in.
    pub fn db(&self) -> usize {
        self.db
    }

    /// Looks keys up in another database from here on (COPY, MOVE).
    pub fn select(&mut self, db: usize) {
        self.db = db;
        self.view = View::Layered;
    }

    /// Whether a deadline that a client sets limits only the cached copy of the key (SEMANTICS 13).
    pub fn is_ttl_for_cache(&self, key: Key<'_>) -> bool {
        let namespace = self.start.cache.policies.of(self.db, key.bytes);
        namespace
            .is_some_and(|found| found.ttl_means == TtlMeans::Cache && found.write != Write::None)
    }

    /// The longest string that a command may make (`proto-max-bulk-len`).
    pub fn max_string(&self) -> usize {
        self.start.cache.max_string.load(Relaxed)
    }

    /// The tier's eviction policy and its parameters.
    pub fn rules(&self) -> &Rules {
        self.memory().rules()
    }

    /// Which of the stripes held is that of a hash.
    #[inline(always)]
    fn index(&self, hash: u64) -> Result<usize, Stop> {
        let stripe = self.memory().stripe_of(hash);
        // Most attempts hold one stripe; they are in ascending order.
        match &self.held[..] {
            [one] if one.stripe == stripe => Ok(0),
            many => many.binary_search_by_key(&stripe, |held| held.stripe).map_err(|_| Stop::Stray),
        }
    }

    #[inline(always)]
    fn held(&mut self, hash: u64) -> Result<&mut Held<'a>, Stop> {
        let at = self.index(hash)?;
        Ok(&mut self.held[at])
    }

    /// Where a live entry of the key stands; one past its deadline is removed.
    #[inline]
    fn slot(&mut self, key: Key<'_>) -> Result<Option<Slot>, Stop> {
        let at = self.index(key.hash)?;
        Ok(self.slot_in(at, key))
    }

    #[inline(always)]
    fn slot_in(&mut self, at: usize, key: Key<'_>) -> Option<Slot> {
        let shelf = self.held[at].core.shelf(self.db)?;
        let slot = shelf.find(key.hash, key.bytes)?;
        if is_live(shelf.entry(slot), self.start.job.now) {
            return Some(slot);
        }
        self.expire(at, slot, key.hash);
        None
    }

    #[cold]
    fn expire(&mut self, at: usize, slot: Slot, hash: u64) {
        let (memory, db, held) = (self.memory(), self.db, &mut self.held[at]);
        held.changed |= 1 << (db % 64);
        let shelf = memory.shelf(held.stripe, &mut held.core, db);
        memory.forget_record(shelf, hash, slot);
        drop(shelf.remove(slot, memory.rules()));
        memory.count_expired();
    }

    /// The key's live entry, wherever this attempt has it from.
    #[inline]
    fn entry(&mut self, key: Key<'_>) -> Result<Option<Entry<'_>>, Stop> {
        self.entry_by(if self.is_unseen() { self.rule(key) } else { None }, key)
    }

    /// What holds for the key, if a namespace has it.
    #[inline(always)]
    fn rule(&self, key: Key<'_>) -> Option<&'a Rule> {
        self.start.cache.policies.rule(self.db, key.bytes)
    }

    /// The key's live entry, where this holds for it.
    #[inline(always)]
    fn entry_by(&mut self, rule: Option<&Rule>, key: Key<'_>) -> Result<Option<Entry<'_>>, Stop> {
        if self.view == View::Layered {
            return self.entry_below(key);
        }
        let at = self.index(key.hash)?;
        if self.view == View::Unseen {
            return self.entry_unseen(at, rule, key);
        }
        let Some(slot) = self.slot_in(at, key) else { return Ok(None) };
        Ok(self.held[at].core.shelf(self.db).map(|shelf| shelf.entry(slot)))
    }

    /// The same where there are staged changes or pins, or the entry is local.
    #[inline(never)]
    fn entry_below(&mut self, key: Key<'_>) -> Result<Option<Entry<'_>>, Stop> {
        if let Some(local) = self.local {
            return Ok(Some(local));
        }
        let db = self.db;
        let same = |change: &&Change| {
            change.hash == key.hash && change.db == db && *change.key == *key.bytes
        };
        if let Some(staged) = &self.start.staged
            && let Some(at) = staged.iter().rposition(|change| same(&change))
        {
            let staged = self.start.staged.as_deref();
            return Ok(staged.and_then(|staged| staged[at].entry.as_ref()).map(EntryRef::get));
        }
        let at = self.index(key.hash)?;
        if let Some(slot) = self.slot_in(at, key) {
            return Ok(self.held[at].core.shelf(db).map(|shelf| shelf.entry(slot)));
        }
        if db != self.start.job.db {
            return self.entry_elsewhere(key);
        }
        let now = self.start.job.now;
        // However long it took: what was loaded for this attempt is fresh to it.
        let ended = |entry: &Entry<'_>| entry.deadline() != 0 && entry.deadline() <= now;
        let pinned = flight::find(self.start.pins, db, key);
        Ok(pinned.and_then(Pin::entry).filter(|entry| !ended(entry)))
    }

    /// The pinned entry of a key of another database than the command's: it may have to be fetched.
    fn entry_elsewhere(&mut self, key: Key<'_>) -> Result<Option<Entry<'_>>, Stop> {
        let db = self.db;
        let at = self.index(key.hash)?;
        if let Some(pin) = flight::find(self.start.pins, db, key)
            && (!self.start.job.strict || self.held[at].core.has_ticket(pin.ticket()))
        {
            return Ok(pin.entry());
        }
        if self.held[at].core.shelf(db).is_some_and(|shelf| shelf.has_below(key.hash)) {
            let (key, hash) = (Bytes::copy_from_slice(key.bytes), key.hash);
            return Err(Stop::Cold(Cold { db, key, hash }));
        }
        Ok(None)
    }

    /// The key's entry, without counting it as a hit or a miss and without keeping it warm.
    #[inline]
    pub fn peek(&mut self, key: Key<'_>) -> Result<Option<Entry<'_>>, Stop> {
        self.entry(key)
    }

    /// The key's entry, counted as a hit or a miss.
    #[inline]
    pub fn get(&mut self, key: Key<'_>) -> Result<Option<Entry<'_>>, Stop> {
        let (rules, touch, now) = (self.memory().rules(), self.start.job.touch, self.start.job.now);
        let found = self.look(key)?;
        if touch && let Some(entry) = found {
            keep_warm(entry, key, rules, now);
        }
        Ok(found)
    }

    /// Keeps the key's entry warm, whoever asks (CLIENT NO-TOUCH doesn't concern TOUCH); false if there
    /// is none.
    pub fn touch(&mut self, key: Key<'_>) -> Result<bool, Stop> {
        let (rules, now) = (self.memory().rules(), self.start.job.now);
        let found = self.look(key)?;
        if let Some(entry) = found {
            keep_warm(entry, key, rules, now);
        }
        Ok(found.is_some())
    }

    /// The key's entry, counted as a hit or a miss, but not kept warm.
    #[inline]
    pub fn look(&mut self, key: Key<'_>) -> Result<Option<Entry<'_>>, Stop> {
        let (start, db, is_local) = (&self.start, self.db, self.local.is_some());
        let (counters, pins) = (start.job.counters, start.pins);
        let rule = self.rule(key);
        let found = self.entry_by(rule, key)?;
        let hit = match found {
            None => None,
            Some(_) if is_local => Some(Hit::Local),
            Some(_) if pins.is_empty() => Some(Hit::Memory),
            Some(_) => Some(match flight::find(pins, db, key).and_then(Pin::origin) {
                Some(Origin::Disk) => Hit::Disk,
                Some(Origin::Store) => Hit::Loaded,
                Some(Origin::Stale) | None => Hit::Memory,
            }),
        };
        counters.of(rule.map(|rule| rule.number)).count(hit);
        counters.sampler.looked(db, key, found.zip(hit));
        Ok(found)
    }

    /// Whether the key is there, counted as a hit or a miss, but not kept warm.
    pub fn exists(&mut self, key: Key<'_>) -> Result<bool, Stop> {
        Ok(self.look(key)?.is_some())
    }

    /// The string under a key, counted as a hit or a miss; an error if it holds another type.
    #[inline]
    pub fn string(&mut self, key: Key<'_>) -> Result<Option<&[u8]>, Stop> {
        Ok(self.get(key)?.map(Entry::value))
    }

    /// What a new entry carries beside key and value.
    fn meta(&mut self, key: Key<'_>, deadline: u64, raw: bool) -> Meta {
        let rules = self.memory().rules();
        let meta = Meta {
            deadline,
            kept_until: 0,
            access: rules.eviction().first_access(self.start.job.now),
            raw,
        };
        self.start.cache.policies.stamp(self.db, key.bytes, self.start.job.now, meta)
    }

    fn resolve(&mut self, key: Key<'_>, ttl: Ttl) -> Result<u64, Stop> {
        Ok(match ttl {
            Ttl::Clear => 0,
            Ttl::At(deadline) => deadline,
            Ttl::Keep => self.entry(key)?.map_or(0, Entry::deadline),
        })
    }

    /// Makes the concatenation of `parts` the key's string.
    #[inline]
    pub fn set(&mut self, key: Key<'_>, parts: &[&[u8]], ttl: Ttl) -> Result<(), Stop> {
        self.set_with(key, parts, ttl, false)
    }

    /// Like [`Tx::set`], for a string that an edit made (OBJECT ENCODING says `raw`).
    pub fn set_raw(&mut self, key: Key<'_>, parts: &[&[u8]], ttl: Ttl) -> Result<(), Stop> {
        self.set_with(key, parts, ttl, true)
    }

    fn set_with(&mut self, key: Key<'_>, parts: &[&[u8]], ttl: Ttl, raw: bool) -> Result<(), Stop> {
        let deadline = self.resolve(key, ttl)?;
        let meta = self.meta(key, deadline, raw);
        let len = parts.iter().map(|part| part.len()).sum();
        if self.start.staged.is_none() && self.overwrite(key, parts, len, &meta)? {
            return Ok(());
        }
        self.ensure_room_for(key, entry_size(key.bytes.len(), len, &meta))?;
        self.put(key, EntryRef::new(key.bytes, parts, &meta))
    }

    /// Writes over the old value in place, if nobody else refers to it and it takes the same room.
    #[inline]
    fn overwrite(
        &mut self,
        key: Key<'_>,
        parts: &[&[u8]],
        len: usize,
        meta: &Meta,
    ) -> Result<bool, Stop> {
        let (memory, db, now) = (self.memory(), self.db, self.start.job.now);
        let counters = self.start.job.counters;
        let Some(slot) = self.slot(key)? else { return Ok(false) };
        let held = self.held(key.hash)?;
        memory.supersede(&mut held.core, db, key.hash, Some(slot), || Known::Nothing);
        held.changed |= u64::from(memory.log().is_some()) << (db % 64);
        let shelf = memory.shelf(held.stripe, &mut held.core, db);
        let Some(mut entry) = shelf.entry_mut(slot) else { return Ok(false) };
        if meta.kept_until != 0 || entry.get().kept_until() != 0 || !entry.resize(len) {
            return Ok(false);
        }
        let mut rest = entry.value();
        for part in parts {
            let (now, behind) = rest.split_at_mut(part.len());
            now.copy_from_slice(part);
            rest = behind;
        }
        if entry.get().is_raw() != meta.raw {
            entry.set_raw(meta.raw);
        }
        let view = shelf.entry(slot);
        let rules = memory.rules();
        rules.eviction().touch(view, now, rules.lfu(), || key.hash >> 7);
        if view.deadline() != meta.deadline {
            shelf.set_deadline(slot, key.hash, meta.deadline, rules, now);
            held.changed |= 1 << (db % 64);
        }
        counters.sampler.wrote(db, key, Some(shelf.entry(slot)));
        Ok(true)
    }

    /// Puts an entry under its key, in place or staged.
    fn put(&mut self, key: Key<'_>, entry: EntryRef) -> Result<(), Stop> {
        let db = self.db;
        if db != self.start.job.db && self.has_store(db, key) {
            let text = "ERR a key with a store can't be written from another database";
            return Err(Stop::Client(ClientError::new(text)));
        }
        let cost = self.memory().rules().weight.of(entry.get());
        self.start.made.room = self.start.made.room.saturating_sub(cost);
        let traffic = &self.start.cache.traffic;
        if traffic.may_be_big(cost) {
            traffic.note_big(db, entry.get());
        }
        if let Some(staged) = &mut self.start.staged {
            let (hash, key, entry) = (key.hash, StagedKey::from_slice(key.bytes), Some(entry));
            staged.push(Change { db, hash, key, entry, is_retiming: false });
            return Ok(());
        }
        self.place(key, entry)
    }

    fn place(&mut self, key: Key<'_>, entry: EntryRef) -> Result<(), Stop> {
        let (memory, db, now) = (self.memory(), self.db, self.start.job.now);
        let (pins, counters) = (self.start.pins, self.start.job.counters);
        counters.sampler.wrote(db, key, Some(entry.get()));
        let held = self.held(key.hash)?;
        held.changed |= 1 << (db % 64);
        let shelf = memory.shelf(held.stripe, &mut held.core, db);
        let slot = shelf.find(key.hash, key.bytes);
        let known = known_of(pins, &held.core, db, key);
        memory.supersede(&mut held.core, db, key.hash, slot, || known);
        let shelf = memory.shelf(held.stripe, &mut held.core, db);
        match slot {
            Some(slot) => shelf.replace(slot, key.hash, entry, memory.rules(), now),
            None => shelf.insert(key.hash, entry, memory.rules(), now),
        }
        Ok(())
    }

    fn has_store(&self, db: usize, key: Key<'_>) -> bool {
        self.start
            .cache
            .policies
            .of(db, key.bytes)
            .is_some_and(|namespace| namespace.store.is_some())
    }

    /// Makes the key's string `len` bytes long (a missing key is an empty string; new bytes are zero)
    /// and lets `change` write into it. The deadline stays; the encoding becomes `raw`.
    pub fn edit(
        &mut self,
        key: Key<'_>,
        len: usize,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), Stop> {
        let (memory, db, now) = (self.memory(), self.db, self.start.job.now);
        let counters = self.start.job.counters;
        if self.start.staged.is_none()
            && let Some(slot) = self.slot(key)?
        {
            let held = self.held(key.hash)?;
            memory.supersede(&mut held.core, db, key.hash, Some(slot), || Known::Nothing);
            held.changed |= u64::from(memory.log().is_some()) << (db % 64);
            let shelf = memory.shelf(held.stripe, &mut held.core, db);
            if let Some(mut entry) = shelf.entry_mut(slot)
                && entry.resize(len)
            {
                entry.set_raw(true);
                change(entry.value());
                let rules = memory.rules();
                rules.eviction().touch(entry.get(), now, rules.lfu(), || key.hash >> 7);
                counters.sampler.wrote(db, key, Some(entry.get()));
                return Ok(());
            }
        }
        let deadline = self.resolve(key, Ttl::Keep)?;
        let meta = self.meta(key, deadline, true);
        self.ensure_room_for(key, entry_size(key.bytes.len(), len, &meta))?;
        let mut entry = EntryRef::zeroed(key.bytes, len, &meta);
        let old = self.entry(key)?.map_or(&[][..], Entry::value);
        if let Some(mut alone) = entry.get_mut() {
            let kept = old.len().min(len);
            alone.value()[..kept].copy_from_slice(&old[..kept]);
            change(alone.value());
        }
        self.put(key, entry)
    }

    /// Sets (or, with 0, clears) the key's deadline; false if there is no such key. A deadline that has
    /// passed deletes the key.
    pub fn set_deadline(&mut self, key: Key<'_>, deadline: u64) -> Result<bool, Stop> {
        let (memory, db, now) = (self.memory(), self.db, self.start.job.now);
        let counters = self.start.job.counters;
        if deadline != 0 && deadline <= now {
            if self.start.staged.is_none() {
                return self.remove(key);
            }
            let is_there = self.entry(key)?.is_some();
            if is_there {
                self.stage_removal(key, true);
            }
            return Ok(is_there);
        }
        if self.start.staged.is_none()
            && let Some(slot) = self.slot(key)?
        {
            let held = self.held(key.hash)?;
            held.changed |= 1 << (db % 64);
            memory.supersede(&mut held.core, db, key.hash, Some(slot), || Known::Nothing);
            let shelf = memory.shelf(held.stripe, &mut held.core, db);
            shelf.set_deadline(slot, key.hash, deadline, memory.rules(), now);
            counters.sampler.wrote(db, key, Some(shelf.entry(slot)));
            return Ok(true);
        }
        let Some(entry) = self.entry(key)? else { return Ok(false) };
        let meta = Meta { deadline, ..entry.meta() };
        let copy = EntryRef::new(key.bytes, &[entry.value()], &meta);
        if self.start.staged.is_none() {
            self.ensure_room_for(key, copy.get().size())?;
        }
        self.put(key, copy)?;
        if let Some(staged) = self.start.staged.as_deref_mut().and_then(|staged| staged.last_mut())
        {
            staged.is_retiming = true;
        }
        Ok(true)
    }

    /// How often the key is asked for, as an LFU counter says it; `None` if nobody watches.
    pub fn frequency(&self, key: Key<'_>) -> Option<u8> {
        let Start { cache, job, .. } = self.start;
        cache.traffic.offer(job.counters, job.now);
        cache.traffic.frequency(self.db, key)
    }

    /// Deletes the key; false if there was none.
    pub fn remove(&mut self, key: Key<'_>) -> Result<bool, Stop> {
        let (memory, db) = (self.memory(), self.db);
        if self.start.staged.is_some() {
            if self.entry(key)?.is_none() {
                return Ok(false);
            }
            self.stage_removal(key, false);
            return Ok(true);
        }
        let slot = self.slot(key)?;
        let is_there = slot.is_some() || self.entry(key)?.is_some();
        let (pins, counters) = (self.start.pins, self.start.job.counters);
        counters.sampler.wrote(db, key, None);
        let held = self.held(key.hash)?;
        let known = known_of(pins, &held.core, db, key);
        memory.supersede(&mut held.core, db, key.hash, slot, || known);
        if let Some(pin) = flight::find(pins, db, key) {
            pin.remove();
        }
        held.changed |= u64::from(slot.is_some() || memory.log().is_some()) << (db % 64);
        if let Some(slot) = slot {
            let shelf = memory.shelf(held.stripe, &mut held.core, db);
            drop(shelf.remove(slot, memory.rules()));
        }
        Ok(is_there)
    }

    fn stage_removal(&mut self, key: Key<'_>, is_retiming: bool) {
        let (db, hash, key) = (self.db, key.hash, StagedKey::from_slice(key.bytes));
        if let Some(staged) = self.start.staged.as_deref_mut() {
            staged.push(Change { db, hash, key, entry: None, is_retiming });
        }
    }

    /// Takes what was staged: it isn't staged any more.
    pub(super) fn take_staged(&mut self) -> Changes {
        self.start.staged.take().map(std::mem::take).unwrap_or_default()
    }

    /// Brings a staged change into memory.
    pub(super) fn publish(&mut self, change: Change) -> Result<(), Stop> {
        self.db = change.db;
        let key = Key { bytes: &change.key, hash: change.hash };
        match change.entry {
            Some(entry) => self.place(key, entry),
            None => self.remove(key).map(drop),
        }
    }
}

/// What is known of a key's record, as long as no write has overtaken what was fetched.
#[inline]
fn known_of(pins: &[Pin], core: &Core, db: usize, key: Key<'_>) -> Known {
    if pins.is_empty() {
        return Known::Nothing;
    }
    let pin = flight::find(pins, db, key).filter(|pin| core.has_ticket(pin.ticket()));
    pin.map_or(Known::Nothing, Pin::known)
}

/// Notes a hit on an entry.
#[inline]
fn keep_warm(entry: Entry<'_>, key: Key<'_>, rules: &Rules, now: u64) {
    let random = || next_random(key.hash ^ now.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1) >> 20;
    rules.eviction().touch(entry, now, rules.lfu(), random);
}

impl Drop for Tx<'_> {
    /// Settles the accounts of what was changed, before the stripes are let go.
    #[inline]
    fn drop(&mut self) {
        let memory = self.memory();
        for held in &mut self.held {
            if held.changed != 0 {
                settle(memory, held);
            }
        }
    }
}

fn settle(memory: &Memory, held: &mut Held<'_>) {
    let mut changed = held.changed;
    while changed != 0 {
        let first = changed.trailing_zeros() as usize;
        changed &= changed - 1;
        for db in (first..memory.databases()).step_by(64) {
            if held.core.shelf(db).is_some() {
                memory.report(memory.shelf(held.stripe, &mut held.core, db));
            }
        }
    }
}
