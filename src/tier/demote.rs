//! What happens between L2 and L3: demotion, promotion, invalidation.
//!
//! A shelf has the index of its keys' records beside its table; both stand under the stripe's lock. Of a
//! key there is at most one valid record, and an entry in memory that has one, unchanged, is marked
//! *stored* and its record *resident*. So an entry that isn't stored has no record, and only the first
//! change of one that is, or of a key that isn't in memory, has to look into the index.

use smallvec::SmallVec;

use super::{
    entry::{Entry, EntryRef},
    eviction::Eviction,
    log::{
        Log, add,
        contents::Item,
        queue::Permit,
        record,
        slot::{HOT, QUEUED, RESIDENT, Slot as Record, VOLATILE},
    },
    memory::{Core, Memory},
    shelf::{Shelf, is_live},
    table::{Slot, hash},
};

/// How an attempt to evict an entry ended.
pub(super) enum Evicted {
    /// One has left memory.
    One,
    /// None could be chosen here.
    None,
    /// The queue to L3 is full, and what would leave may not be forgotten.
    Busy,
    /// The disk is full, and what would leave may not be forgotten.
    Full,
}

/// What is known of a key's record while the key isn't in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is this one.
    Record(Record),
    /// There is none: what looks like it belongs to other keys.
    None,
    /// Nothing: what looks like it may be it.
    Nothing,
}

/// Records that a key may have.
pub struct Below {
    /// The contents of its database.
    pub keyspace: u32,
    /// The records: most often one.
    pub records: SmallVec<[Record; 2]>,
}

impl Memory {
    /// Whether the policy doesn't let a key, with a deadline or without, be forgotten to make room.
    pub fn keeps(&self, volatile: bool) -> bool {
        match self.rules().eviction() {
            Eviction::Noeviction => true,
            policy => policy.is_volatile() && !volatile,
        }
    }

    /// Whether there may be keys that the policy doesn't let be forgotten.
    pub fn keeps_all(&self) -> bool {
        self.keeps(false)
    }

    /// A place in the queue to L3; `None`: what leaves is forgotten.
    pub(super) fn permit(&self) -> Result<Option<Permit>, Evicted> {
        let Some(log) = self.disk() else { return Ok(None) };
        let keeps = self.keeps_all();
        if keeps && !log.may_keep(self.keeps(true)) {
            return Err(Evicted::Full);
        }
        match log.queue.reserve() {
            // Until the log is full nothing is forgotten either (SEMANTICS 6), if the disk takes it.
            None if keeps || !(log.has_wrapped() || log.ails()) => Err(Evicted::Busy),
            permit => Ok(permit),
        }
    }

    pub(super) fn give_back(&self, permit: Option<Permit>) {
        if let (Some(log), Some(permit)) = (self.log(), permit) {
            log.queue.release(permit);
        }
    }

    /// Takes care of an entry that has just left memory to make room; false if it had to come back. The
    /// flights of its key are to be cancelled: they may have seen that it has no record.
    pub(super) fn demote(
        &self,
        shelf: &mut Shelf,
        db: usize,
        hash: u64,
        entry: EntryRef,
        permit: Option<Permit>,
        now: u64,
    ) -> bool {
        let Some(log) = self.log() else {
            self.count_evicted(1);
            return true;
        };
        let view = entry.get();
        let volatile = view.deadline() != 0;
        if !is_live(view, now) {
            self.forget_left(shelf, view);
        } else if view.is_stored() && has_left(log, shelf, hash) {
            add(&log.counters.unchanged, 1);
        } else if log.is_snapshot() {
            self.count_evicted(1);
        } else if self.keeps(volatile) && !log.fits(view, self.keeps_all()) {
            let copy = EntryRef::new(view.key(), &[view.value()], &view.meta());
            shelf.insert(hash, copy, self.rules(), now);
            self.give_back(permit);
            return false;
        } else if !log.fits(view, self.keeps_all()) || !self.is_worth(log, view, hash) {
            add(&log.counters.rejected, 1);
            self.count_evicted(1);
        } else if let Some(permit) = permit {
            let bytes = record::size(view.key().len(), view.value().len(), &view.meta());
            add(&log.counters.demotions, 1);
            add(&log.counters.demoted_bytes, bytes as u64);
            let number = log.queue.push(permit, log.state().keyspace(db), hash, entry);
            let flags = if volatile { VOLATILE } else { 0 };
            shelf.records.insert(hash, Record::queued(number, flags));
            return true;
        } else {
            add(&log.counters.dropped, 1);
            self.count_evicted(1);
        }
        self.give_back(permit);
        true
    }

    /// Whether a victim is worth a place on disk.
    fn is_worth(&self, log: &Log, entry: Entry<'_>, hash: u64) -> bool {
        !log.is_full()
            || self.keeps(entry.deadline() != 0)
            || self.rules().eviction() != Eviction::AllkeysS3fifo
            || entry.mark() > 0
            || entry.is_stored()
            || log.note_let_go(hash)
    }

    /// Cancels the flights of a key that changes, and makes its records invalid (SEMANTICS 1, 7). The
    /// key stands in `slot`, if it is in memory; if not, `known` is what is known of its record. Call it
    /// before the change is seen.
    #[inline]
    pub fn supersede(
        &self,
        core: &mut Core,
        db: usize,
        hash: u64,
        slot: Option<Slot>,
        known: impl FnOnce() -> Known,
    ) {
        core.cancel(db, hash);
        if let Some(log) = self.log() {
            drop_superseded(log, core, db, hash, slot, known);
        }
    }

    /// Whether a key may be forgotten because another one looks like it.
    pub fn may_forget(&self) -> bool {
        self.log().is_some_and(|log| log.has_wrapped() || log.is_snapshot()) && !self.keeps_all()
    }

    /// Makes the record of an entry invalid that leaves memory because it has ended. (Nobody who waits for
    /// its key is wronged: flights go on.)
    pub fn forget_record(&self, shelf: &mut Shelf, hash: u64, slot: Slot) {
        let is_stored = shelf.entry(slot).is_stored();
        self.forget_record_of(shelf, is_stored, || hash);
    }

    /// The same for an entry that has left already.
    pub(super) fn forget_left(&self, shelf: &mut Shelf, entry: Entry<'_>) {
        let hasher = &self.rules().hasher;
        self.forget_record_of(shelf, entry.is_stored(), || hash(hasher, entry.key()));
    }

    fn forget_record_of(&self, shelf: &mut Shelf, is_stored: bool, hash: impl FnOnce() -> u64) {
        if let Some(log) = self.log().filter(|_| is_stored) {
            drop_resident(log, shelf, hash());
        }
    }

    /// Notes that an entry is about to be installed; this is known of its record.
    pub(super) fn note_promotion(
        &self,
        shelf: &mut Shelf,
        hash: u64,
        old: Option<Slot>,
        entry: Entry<'_>,
        known: Known,
    ) {
        let Some(log) = self.log() else { return };
        if old.is_some_and(|slot| shelf.entry(slot).is_stored()) {
            // The record ended with its entry.
            return drop_resident(log, shelf, hash);
        }
        let Known::Record(from) = known else { return drop_cold(log, shelf, hash, known) };
        // If it isn't there it was forgotten since.
        if let Some(at) = shelf.records.find_slot(hash, from) {
            let record = shelf.records.slot(at);
            let hot = if record.has(QUEUED) { 0 } else { HOT };
            if hot & !record.0 != 0 {
                log.note_hot(record);
            }
            shelf.records.set(at, record.with(RESIDENT | hot, true));
            entry.set_stored(true);
        }
        add(&log.counters.promotions, 1);
    }

    /// Notes that a copy, which stands in `slot` if it is in memory, is about to be renewed or to go: its
    /// record, if it has one, is out of date. False if that may stay: what looks like it may be another
    /// key's, which must not be forgotten.
    pub(super) fn note_renewal(
        &self,
        shelf: &mut Shelf,
        hash: u64,
        slot: Option<Slot>,
        known: Known,
    ) -> bool {
        let Some(log) = self.log() else { return true };
        match slot {
            Some(slot) if shelf.entry(slot).is_stored() => drop_resident(log, shelf, hash),
            Some(_) => {}
            None if known == Known::Nothing && self.keeps_all() => return !shelf.has_below(hash),
            None => drop_cold(log, shelf, hash, known),
        }
        true
    }

    /// Records that a key with this hash may have, while it isn't in memory.
    pub fn below(&self, db: usize, hash: u64) -> Option<Below> {
        let log = self.log()?;
        let core = self.lock(self.stripe_of(hash));
        let shelf = core.shelf(db)?;
        let found = shelf.records.find(hash);
        if found.is_empty() {
            return None;
        }
        let records = found.into_iter().map(|at| shelf.records.slot(at)).collect();
        Some(Below { keyspace: log.state().keyspace(db), records })
    }

    /// Whether L3 may have a record of a key with this hash.
    pub fn has_below(&self, db: usize, hash: u64) -> bool {
        self.log().is_some()
            && self.lock(self.stripe_of(hash)).shelf(db).is_some_and(|shelf| shelf.has_below(hash))
    }

    /// Does something with the stripe of a key and the database that has its record's contents, if one has.
    fn with_core<T>(
        &self,
        keyspace: u32,
        hash: u64,
        run: impl FnOnce(&Log, &mut Core, usize) -> T,
    ) -> Option<T> {
        let log = self.log()?;
        let stripe = self.stripe_of(hash);
        let mut core = self.lock(stripe);
        // While a stripe is held no database changes its contents.
        let db = log.state().database(keyspace).filter(|db| *db < self.databases())?;
        let result = run(log, &mut core, db);
        self.report(self.shelf(stripe, &mut core, db));
        Some(result)
    }

    fn with_records<T>(
        &self,
        keyspace: u32,
        hash: u64,
        run: impl FnOnce(&Log, &mut Shelf) -> T,
    ) -> Option<T> {
        self.with_core(keyspace, hash, |log, core, db| Some(run(log, core.shelf_mut(db)?)))?
    }

    /// Whether the index has this record of a key with this hash.
    pub fn has_record(&self, keyspace: u32, hash: u64, record: Record) -> bool {
        let has = |_: &Log, shelf: &mut Shelf| shelf.records.find_slot(hash, record).is_some();
        self.with_records(keyspace, hash, has).unwrap_or(false)
    }

    /// What the index has of a record of the log, if it still counts.
    pub fn record_of(&self, item: &Item) -> Option<Record> {
        self.with_records(item.keyspace, item.hash, |_, shelf| {
            let at = shelf.records.find_slot(item.hash, item.slot)?;
            Some(shelf.records.slot(at))
        })?
    }

    /// Notes that a record has to be hit again to count as hot.
    pub fn cool_record(&self, item: &Item) {
        self.with_records(item.keyspace, item.hash, |log, shelf| {
            let Some(at) = shelf.records.find_slot(item.hash, item.slot) else { return };
            let record = shelf.records.slot(at);
            if record.has(HOT) {
                log.note_cold(record);
                shelf.records.set(at, record.with(HOT, false));
            }
        });
    }

    /// Forgets a record; false if the index didn't have it.
    pub fn drop_record(&self, keyspace: u32, hash: u64, record: Record) -> bool {
        let drop = |log: &Log, shelf: &mut Shelf| {
            let Some(at) = shelf.records.find_slot(hash, record) else { return false };
            if shelf.records.slot(at).has(RESIDENT) {
                forget_stored(self, shelf, hash);
            } else {
                self.count_evicted(1);
            }
            log.invalidate(shelf.records.remove(at));
            true
        };
        self.with_records(keyspace, hash, drop).unwrap_or(false)
    }

    /// Puts a copy of an entry that stays in memory into the queue to a log, whose index may be this
    /// memory's own or another's; gives it back if the queue is full.
    pub fn enqueue(&self, db: usize, entry: EntryRef, stays: bool) -> Result<(), EntryRef> {
        let Some(log) = self.log() else { return Ok(()) };
        let Some(permit) = log.queue.reserve() else { return Err(entry) };
        let view = entry.get();
        let hash = self.hash(view.key());
        let stripe = self.stripe_of(hash);
        let mut core = self.lock(stripe);
        // Since it was looked for it may have been replaced.
        if view.is_dead() || stays && view.is_stored() {
            log.queue.release(permit);
            return Ok(());
        }
        let shelf = self.shelf(stripe, &mut core, db);
        let mut flags = if view.deadline() != 0 { VOLATILE } else { 0 };
        if stays {
            view.set_stored(true);
            flags |= RESIDENT;
        }
        let number = log.queue.push(permit, log.state().keyspace(db), hash, entry);
        shelf.records.insert(hash, Record::queued(number, flags));
        self.report(shelf);
        Ok(())
    }

    /// The entries of a stripe that are this cold and live, with their databases; those that L3 has are
    /// left out, or only they are shown.
    pub fn of_coldness(
        &self,
        stripe: usize,
        coldness: u64,
        stored: bool,
        now: u64,
    ) -> Vec<(usize, EntryRef)> {
        let rules = self.rules();
        let (policy, lfu) = (rules.eviction(), rules.lfu());
        let core = self.lock(stripe);
        let mut found = Vec::new();
        for db in 0..self.databases() {
            let Some(shelf) = core.shelf(db) else { continue };
            shelf.table().for_each(|entry| {
                let is_wanted = policy.coldness(entry, now, lfu) == coldness
                    && entry.is_stored() == stored
                    && is_live(entry, now);
                if is_wanted && let Some(entry) = entry.share() {
                    found.push((db, entry));
                }
            });
        }
        found
    }

    /// The record of a key in memory, if L3 has one of it as it is.
    pub fn resident_record(&self, db: usize, key: &[u8]) -> Option<Item> {
        let log = self.log()?;
        let hash = self.hash(key);
        let core = self.lock(self.stripe_of(hash));
        let shelf = core.shelf(db)?;
        let mut found = shelf.records.find(hash).into_iter().map(|at| shelf.records.slot(at));
        let slot = found.find(|record| record.has(RESIDENT) && !record.has(QUEUED))?;
        Some(Item { hash, keyspace: log.state().keyspace(db), slot })
    }

    /// Lets go of all records: the snapshot that they are in has served.
    pub fn drop_records(&self) {
        for stripe in 0..self.stripes() {
            let mut core = self.lock(stripe);
            for shelf in core.shelves_mut() {
                shelf.records = super::log::index::Index::new(self.rules().stripe_bits);
                self.report(shelf);
            }
        }
        self.uncharge_log();
    }

    /// Notes that a record is written now; the index had it as `from`. The flights of its key are cancelled:
    /// they have seen it there.
    pub fn move_record(&self, item: &Item, from: Record) {
        self.with_core(item.keyspace, item.hash, |log, core, db| {
            core.cancel(db, item.hash);
            let Some(shelf) = core.shelf_mut(db) else { return };
            let Some(at) = shelf.records.find_slot(item.hash, from) else { return };
            let old = shelf.records.slot(at);
            // One that is written again has to be hit again.
            let new = Record(item.slot.0 | old.0 & RESIDENT);
            log.invalidate(old);
            log.validate(new);
            shelf.records.set(at, new);
        });
    }

    /// Brings records that were found on disk into the index, but for those that belong to nothing:
    /// they become invalid. Returns how many it brought. The items are put in order.
    pub fn adopt_records(&self, items: &mut [Item]) -> u64 {
        let Some(log) = self.log() else { return 0 };
        let mut count = 0;
        // In the order of the index, which then grows at its end, and one lock for each stripe.
        items.sort_unstable_by_key(|item| item.hash);
        for items in items.chunk_by(|a, b| self.stripe_of(a.hash) == self.stripe_of(b.hash)) {
            let stripe = self.stripe_of(items[0].hash);
            let mut core = self.lock(stripe);
            let (mut keyspace, mut db) = (0, None);
            for item in items {
                if keyspace != item.keyspace {
                    keyspace = item.keyspace;
                    db = log.state().database(keyspace).filter(|db| *db < self.databases());
                }
                match db {
                    Some(db) => {
                        let shelf = self.shelf(stripe, &mut core, db);
                        shelf.records.insert(item.hash, item.slot);
                        log.validate(item.slot);
                        count += 1;
                    }
                    None => log.state().set_invalid(item.slot.place()),
                }
            }
            core.shelves_mut().for_each(|shelf| self.report(shelf));
        }
        count
    }

    /// Forgets all records of a segment, by looking at every one there is.
    pub fn drop_segment(&self, segment: usize) {
        let Some(log) = self.log() else { return };
        let units = log.shape().units();
        let first = segment as u64 * units;
        let is_there = |record: Record| {
            !record.has(QUEUED) && (first..first + units).contains(&record.place())
        };
        for stripe in 0..self.stripes() {
            let mut core = self.lock(stripe);
            for shelf in core.shelves_mut() {
                shelf.records.retain(|record| {
                    if is_there(record) {
                        log.invalidate(record);
                        add(&log.counters.forgotten, 1);
                        self.count_evicted(u64::from(!record.has(RESIDENT)));
                    }
                    !is_there(record)
                });
                shelf.forget_lost_records();
                self.report(shelf);
            }
        }
    }
}

/// Notes that a stored entry has left memory unchanged; false if its record isn't known for sure.
fn has_left(log: &Log, shelf: &mut Shelf, hash: u64) -> bool {
    let found = shelf.records.find(hash);
    let resident: SmallVec<[_; 2]> =
        found.into_iter().filter(|at| shelf.records.slot(*at).has(RESIDENT)).collect();
    if let [at] = resident[..] {
        let record = shelf.records.slot(at);
        shelf.records.set(at, record.with(RESIDENT, false));
        return true;
    }
    // Two keys in memory that look alike: which record is whose would have to be read.
    drop_resident(log, shelf, hash);
    false
}

fn drop_superseded(
    log: &Log,
    core: &mut Core,
    db: usize,
    hash: u64,
    slot: Option<Slot>,
    known: impl FnOnce() -> Known,
) {
    let Some(shelf) = core.shelf_mut(db) else { return };
    let Some(slot) = slot else { return drop_cold(log, shelf, hash, known()) };
    let entry = shelf.entry(slot);
    if entry.is_stored() {
        entry.set_stored(false);
        drop_resident(log, shelf, hash);
    }
}

/// Makes the record invalid of a key in memory with this hash; where there are two such keys, of both.
fn drop_resident(log: &Log, shelf: &mut Shelf, hash: u64) {
    if drop_records(log, shelf, hash, |record| record.has(RESIDENT)) > 1 {
        shelf.forget_lost_records();
    }
}

/// Makes the record invalid of a key with this hash that isn't in memory.
fn drop_cold(log: &Log, shelf: &mut Shelf, hash: u64, known: Known) {
    let _ = match known {
        Known::None => 0,
        // If it isn't there it was forgotten: had it moved, nothing would be known of it.
        Known::Record(known) => drop_records(log, shelf, hash, |record| record.is_same(known)),
        Known::Nothing => drop_records(log, shelf, hash, |record| !record.has(RESIDENT)),
    };
}

/// Drops those records of a hash that `goes` says, and returns how many there were.
fn drop_records(log: &Log, shelf: &mut Shelf, hash: u64, goes: impl Fn(Record) -> bool) -> usize {
    let mut count = 0;
    loop {
        let found = shelf.records.find(hash);
        let going = found.into_iter().find(|at| goes(shelf.records.slot(*at)));
        let Some(at) = going else { return count };
        count += 1;
        log.invalidate(shelf.records.remove(at));
        add(&log.counters.invalidated, 1);
    }
}

/// Notes that an entry in memory has no record any more.
fn forget_stored(memory: &Memory, shelf: &Shelf, hash_of_key: u64) {
    let hasher = &memory.rules().hasher;
    let item = shelf.table().reference(hash_of_key);
    let wanted = |entry: Entry<'_>| entry.is_stored() && hash(hasher, entry.key()) == hash_of_key;
    if let Some(slot) = shelf.table().find_ref(item, wanted) {
        shelf.entry(slot).set_stored(false);
    }
}
