//! L2: entries in memory shared by all workers.
//!
//! A key's hash names its stripe; a stripe is a lock over one shelf for each database. What all shelves
//! cost is summed up in one account, which only growth and shrinking touch; room is made before a write
//! takes its stripes, by evicting from the key's own stripe or from one above its fair share.

use std::{
    iter,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, SeqCst},
        },
    },
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    Rules, Weight,
    demote::Evicted,
    entry::Entry,
    eviction::Eviction,
    groups::{Grouping, Groups},
    log::{
        Log,
        slot::{RESIDENT, Slot as Record},
    },
    negative::Negatives,
    shelf::{Shelf, is_live, next_random},
    table::{Hasher, Lines, SPLIT, Table, hash},
    tickets::Waiting,
};

/// Memory for which there is one stripe, up to [`MAX_STRIPE_BITS`].
const STRIPE_MEMORY: usize = 1 << 20;
const MAX_STRIPE_BITS: u32 = 7;
/// Entries that a stripe has at least, lest hit ratios suffer.
const STRIPE_ENTRIES: usize = 100;
/// Entries for which a table's directory has a place, when they are about [`ENTRY_BYTES`] each.
const SEGMENT_ENTRIES: usize = SPLIT / 2;
const ENTRY_BYTES: usize = 128;
const MAX_SEGMENT_BITS: u32 = 12;
/// A cursor is this many bits shorter than a hash, so that it fits a JavaScript number.
const CURSOR_SHIFT: u32 = 16;

/// Records of L3 that one step of a walk shows at most, but for those of one cursor.
const COLD_AT_ONCE: usize = 64;

/// What a memory tier is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Capacity, in what `weight` says.
    pub limit: usize,
    /// In what capacity is counted.
    pub weight: Weight,
    /// The eviction policy.
    pub eviction: Eviction,
    /// Databases.
    pub databases: usize,
    /// log2 of the number of stripes; `None`: by the capacity.
    pub stripe_bits: Option<u32>,
    /// What keys are hashed with, where no log says it; `None`: something random.
    pub seeds: Option<[u64; 4]>,
    /// L3, if there is one: what is evicted goes there.
    pub log: Option<Arc<Log>>,
    /// Which keys are counted apart, if some are.
    pub grouping: Option<Grouping>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limit: 256 << 20,
            weight: Weight::Bytes,
            eviction: Eviction::default(),
            databases: 16,
            stripe_bits: None,
            seeds: None,
            log: None,
            grouping: None,
        }
    }
}

/// What stands under a stripe's lock.
#[repr(C)]
pub struct Core {
    /// The shelf of database 0, which most use alone, beside the lock.
    home: Shelf,
    /// Those of the others, made when they are needed.
    others: Box<[Option<Box<Shelf>>]>,
    pub(super) tickets: Vec<Waiting>,
    pub(super) next_ticket: u64,
    /// Keys that a store doesn't have, if there ever was one.
    pub(super) negatives: Option<Box<Negatives>>,
    random: u64,
}

/// A lock on cache lines of its own.
#[repr(align(128))]
struct Stripe(Mutex<Core>);

/// The tier.
pub struct Memory {
    rules: Rules,
    stripes: Box<[Stripe]>,
    /// What may be read without a lock, by database and stripe.
    lines: Box<[Box<[OnceLock<Lines>]>]>,
    used: AtomicUsize,
    evicted: AtomicU64,
    expired: AtomicU64,
    /// The stripe that gives when the key's own can't.
    hand: AtomicUsize,
    databases: usize,
    log: Option<Arc<Log>>,
    /// Raised when a database gets other contents at once.
    generation: AtomicU64,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// Nothing may be evicted.
    Full,
    /// What is evicted has to wait for the disk.
    Busy,
}

/// What the log takes of the capacity for itself. (Where entries are counted, nothing else is.)
fn charge_of_log(options: &Options) -> usize {
    let log = options.log.as_ref().filter(|_| options.weight == Weight::Bytes);
    log.map_or(0, |log| log.bytes())
}

fn hasher(options: &Options) -> Hasher {
    match (&options.log, options.seeds) {
        (Some(log), _) => log.hasher(),
        (None, Some([a, b, c, d])) => Hasher::with_seeds(a, b, c, d),
        (None, None) => Hasher::new(),
    }
}

impl Memory {
    /// An empty tier.
    pub fn new(options: &Options) -> Self {
        let per_stripe = match options.weight {
            Weight::Bytes => STRIPE_MEMORY,
            Weight::Entries => STRIPE_ENTRIES,
        };
        let by_capacity = (options.limit / per_stripe).max(1).ilog2().min(MAX_STRIPE_BITS);
        let stripe_bits = options.stripe_bits.unwrap_or(by_capacity).min(MAX_STRIPE_BITS);
        let entries = match options.weight {
            Weight::Bytes => options.limit / ENTRY_BYTES,
            Weight::Entries => options.limit,
        };
        let segments = (entries >> stripe_bits) / SEGMENT_ENTRIES;
        let rules = Rules {
            hasher: hasher(options),
            weight: options.weight,
            stripe_bits,
            segment_bits: segments.max(1).ilog2().min(MAX_SEGMENT_BITS),
            groups: Groups::new(options.grouping.as_ref()),
            demotes: options.log.as_ref().is_some_and(|log| !log.is_snapshot()),
            limit: AtomicUsize::new(options.limit),
            charged: AtomicUsize::new(charge_of_log(options)),
            eviction: AtomicU8::new(options.eviction as u8),
            samples: AtomicU32::new(5),
            lfu_log_factor: AtomicU32::new(10),
            lfu_decay: AtomicU32::new(1),
        };
        let seed = hash(&rules.hasher, b"stripe");
        let stripe = |number: u64| {
            Stripe(Mutex::new(Core {
                home: Shelf::new(&rules, 0),
                others: (1..options.databases).map(|_| None).collect(),
                tickets: Vec::new(),
                next_ticket: 0,
                negatives: None,
                random: seed ^ number | 1,
            }))
        };
        let stripes: Box<[_]> = (0..1u64 << stripe_bits).map(stripe).collect();
        let lines_of = |stripe: &Stripe| OnceLock::from(stripe.0.lock().home.table().lines());
        let first = stripes.iter().map(lines_of).collect();
        let others =
            (1..options.databases).map(|_| stripes.iter().map(|_| OnceLock::new()).collect());
        let lines = iter::once(first).chain(others).collect();
        Self {
            stripes,
            lines,
            rules,
            used: AtomicUsize::new(charge_of_log(options)),
            evicted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            hand: AtomicUsize::new(0),
            databases: options.databases,
            log: options.log.clone(),
            generation: AtomicU64::new(0),
        }
    }

    /// How often a database got other contents at once: then no entry seen before counts any more, though
    /// none of them is marked dead (SEMANTICS 4).
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Has no entry that was seen before count any more, without another look at it here.
    pub fn outdate(&self) {
        self.generation.fetch_add(1, SeqCst);
    }

    /// L3, if there is one.
    #[inline]
    pub fn log(&self) -> Option<&Arc<Log>> {
        self.log.as_ref()
    }

    /// L3, if what leaves memory goes there; a snapshot only gives back what a restart left in it.
    pub fn disk(&self) -> Option<&Arc<Log>> {
        self.log().filter(|log| !log.is_snapshot())
    }

    /// What the shelves go by.
    #[inline]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Databases.
    pub fn databases(&self) -> usize {
        self.databases
    }

    /// The number of stripes.
    pub fn stripes(&self) -> usize {
        self.stripes.len()
    }

    /// The hash of a key.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        hash(&self.rules.hasher, key)
    }

    /// The number of a hash's stripe.
    #[inline]
    pub fn stripe_of(&self, hash: u64) -> usize {
        (hash >> 1 >> (63 - self.rules.stripe_bits)) as usize
    }

    /// Locks a stripe.
    #[inline]
    pub fn lock(&self, stripe: usize) -> MutexGuard<'_, Core> {
        self.stripes[stripe].0.lock()
    }

    /// Starts loading what a lookup of `hash` reads first.
    #[inline]
    pub fn prefetch(&self, db: usize, hash: u64) {
        if let Some(lines) = self.lines[db][self.stripe_of(hash)].get() {
            lines.prefetch(hash);
        }
    }

    /// Starts loading the entry of `hash`, if its stripe is free: call it some time after `prefetch`.
    #[inline]
    pub fn prefetch_entry(&self, db: usize, hash: u64) {
        if let Some(core) = self.stripes[self.stripe_of(hash)].0.try_lock()
            && let Some(shelf) = core.shelf(db)
        {
            shelf.table().prefetch_entry(hash);
        }
    }

    /// The shelf of a database, made if there is none.
    #[inline]
    pub fn shelf<'a>(&self, stripe: usize, core: &'a mut Core, db: usize) -> &'a mut Shelf {
        if db == 0 {
            return &mut core.home;
        }
        core.others[db - 1].get_or_insert_with(|| {
            let shelf = Box::new(Shelf::new(&self.rules, db));
            let is_first = self.lines[db][stripe].set(shelf.table().lines()).is_ok();
            debug_assert!(is_first, "a shelf is made once");
            shelf
        })
    }

    /// Adds what a shelf's cost has changed by to the account.
    #[inline]
    pub fn report(&self, shelf: &mut Shelf) {
        let used = shelf.used(self.rules.weight);
        let change = used.wrapping_sub(shelf.reported);
        if change != 0 {
            self.used.fetch_add(change, Relaxed);
            shelf.reported = used;
        }
    }

    /// Accounts for memory outside the tier that its capacity has to cover: it was `old` bytes and is
    /// `new`. Entries make room for it. (Where entries are counted, nothing else is.)
    pub fn account(&self, old: usize, new: usize, now: u64) {
        if self.rules.weight == Weight::Bytes {
            if new > old {
                // Without victims more is used than the capacity, and writes wait for better times.
                let _ = self.make_room(new - old, self.next_stripe(), now, &[]);
            }
            self.used.fetch_add(new.wrapping_sub(old), Relaxed);
            self.rules.charged.fetch_add(new.wrapping_sub(old), Relaxed);
        }
    }

    /// The stripe that gives next.
    fn next_stripe(&self) -> usize {
        self.hand.fetch_add(1, Relaxed) % self.stripes.len()
    }

    /// Evicts a bounded number of entries if more is used than the capacity, which was lowered; says
    /// whether that is still so.
    pub fn trim(&self, most: usize, now: u64) -> bool {
        let above = self.used().saturating_sub(self.rules.limit());
        if above == 0 || !self.may_evict() {
            return false;
        }
        let count = self.stripes.len();
        let (mut hand, mut barren) = (self.next_stripe(), 0);
        for _ in 0..most {
            barren = match self.evict_from(hand, None, false, now, &[]) {
                Evicted::One => 0,
                Evicted::None => barren + 1,
                Evicted::Busy | Evicted::Full => return false,
            };
            hand = (hand + 1) % count;
            if self.used() <= self.rules.limit() || barren > count {
                return false;
            }
        }
        true
    }

    /// Adds to what is used of the capacity (a negative number wraps around).
    pub(super) fn add_used(&self, change: usize) {
        self.used.fetch_add(change, Relaxed);
    }

    /// What is used of the capacity.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Entries evicted since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    /// Entries expired since the start.
    pub fn expired(&self) -> u64 {
        self.expired.load(Relaxed)
    }

    /// Counts an entry that a lookup found past its deadline.
    pub fn count_expired(&self) {
        self.expired.fetch_add(1, Relaxed);
    }

    /// Zeroes the counters.
    pub fn reset_counters(&self) {
        self.evicted.store(0, Relaxed);
        self.expired.store(0, Relaxed);
    }

    /// Makes room for `need` more, preferably in the stripe that will need it, without evicting an entry
    /// whose hash is in `spare`. Call it with no stripe held.
    #[inline]
    pub fn make_room(
        &self,
        need: usize,
        stripe: usize,
        now: u64,
        spare: &[u64],
    ) -> Result<(), NoRoom> {
        if !self.is_above(None, need) {
            return Ok(());
        }
        self.evict_until(None, need, stripe, now, spare)
    }

    /// Makes room for `need` more within a group's quota, if it has one, by evicting keys of the group.
    #[inline]
    pub fn make_room_in(
        &self,
        group: usize,
        need: usize,
        stripe: usize,
        now: u64,
        spare: &[u64],
    ) -> Result<(), NoRoom> {
        if !self.is_above(Some(group), need) {
            return Ok(());
        }
        self.evict_until(Some(group), need, stripe, now, spare)
    }

    /// Whether `need` more is above the capacity, or a group's quota.
    #[inline]
    fn is_above(&self, group: Option<usize>, need: usize) -> bool {
        match group {
            None => self.used() + need > self.rules.limit(),
            Some(group) => self.rules.groups.is_above(group, need),
        }
    }

    #[cold]
    fn evict_until(
        &self,
        group: Option<usize>,
        need: usize,
        stripe: usize,
        now: u64,
        spare: &[u64],
    ) -> Result<(), NoRoom> {
        let limit = match group {
            None => self.rules.limit(),
            Some(group) => self.rules.groups.quota(group).unwrap_or(usize::MAX),
        };
        if need > limit || !self.may_evict() {
            return Err(NoRoom::Full);
        }
        let mut victim = stripe;
        // From here on by itself: whoever else evicts must not make it pass a stripe over.
        let mut hand = self.next_stripe();
        let mut barren = 0;
        while self.is_above(group, need) {
            match self.evict_from(victim, group, barren < self.stripes.len(), now, spare) {
                Evicted::One => {
                    barren = 0;
                    continue;
                }
                Evicted::None => barren += 1,
                Evicted::Busy => return Err(NoRoom::Busy),
                Evicted::Full => return Err(NoRoom::Full),
            }
            if barren > 2 * self.stripes.len() {
                return Err(NoRoom::Full);
            }
            victim = hand;
            hand = (hand + 1) % self.stripes.len();
        }
        Ok(())
    }

    /// Evicts one entry of a stripe, of a group or of all, if it has one (and, if asked so, uses more than
    /// nine tenths of its fair share).
    fn evict_from(
        &self,
        stripe: usize,
        group: Option<usize>,
        fair: bool,
        now: u64,
        spare: &[u64],
    ) -> Evicted {
        let mut core = self.lock(stripe);
        let core = &mut *core;
        core.random = next_random(core.random);
        let random = core.random;
        let used = |shelf: &Shelf| match group {
            None => shelf.reported,
            Some(group) => shelf.parts().tallies().get(group).map_or(0, |tally| tally.bytes),
        };
        let share = match group.and_then(|group| self.rules.groups.quota(group)) {
            None => self.rules.capacity(),
            Some(quota) => quota >> self.rules.stripe_bits,
        };
        let fullest = core
            .shelves_mut()
            .filter(|shelf| !shelf.table().is_empty() && (group.is_none() || used(shelf) > 0))
            .max_by_key(|shelf| used(shelf))
            .filter(|shelf| !fair || used(shelf) >= share / 10 * 9);
        let Some(shelf) = fullest else { return Evicted::None };
        let db = shelf.db();
        // Where it goes is known before it leaves.
        let permit = match self.permit() {
            Ok(permit) => permit,
            Err(why) => return why,
        };
        let victim = shelf.evict(group, &self.rules, now, random, spare);
        // What was passed over may have moved in the queues.
        self.report(shelf);
        let Some(entry) = victim else {
            self.give_back(permit);
            return Evicted::None;
        };
        let hash = hash(&self.rules.hasher, entry.get().key());
        let records = shelf.records.len();
        let has_left = self.demote(shelf, db, hash, entry, permit, now);
        self.report(shelf);
        if shelf.records.len() > records {
            core.cancel(db, hash);
        }
        if has_left { Evicted::One } else { Evicted::None }
    }

    /// Whether the policy lets anything leave.
    fn may_evict(&self) -> bool {
        self.rules.demotes || self.rules.eviction() != Eviction::Noeviction
    }

    /// Takes the log's own memory out of the account, when it is done with.
    pub(super) fn uncharge_log(&self) {
        if self.rules.weight == Weight::Bytes
            && let Some(log) = &self.log
        {
            self.used.fetch_sub(log.bytes(), Relaxed);
            self.rules.charged.fetch_sub(log.bytes(), Relaxed);
        }
    }

    /// Counts entries that were forgotten to make room.
    pub(super) fn count_evicted(&self, count: u64) {
        self.evicted.fetch_add(count, Relaxed);
    }

    /// Removes up to `limit` entries of a stripe that are past their deadline, and says how many.
    pub fn expire(&self, stripe: usize, limit: usize, now: u64) -> usize {
        let mut core = self.lock(stripe);
        let mut count = 0;
        for shelf in core.shelves_mut() {
            let mut looked = 0;
            while looked < limit
                && let Some(expired) = shelf.expire_next(&self.rules, now)
            {
                looked += 1;
                if let Some(entry) = expired {
                    count += 1;
                    self.forget_left(shelf, entry.get());
                }
            }
            self.report(shelf);
        }
        self.expired.fetch_add(count as u64, Relaxed);
        count
    }

    /// Keys of a database in memory and on disk, and those of them with a deadline.
    pub fn len(&self, db: usize) -> (usize, usize) {
        let mut sum = (0, 0);
        for stripe in 0..self.stripes.len() {
            if let Some(shelf) = self.lock(stripe).shelf(db) {
                let (cold, volatile) = shelf.records.cold();
                sum.0 += shelf.table().len() + cold;
                sum.1 += shelf.volatile() + volatile;
            }
        }
        sum
    }

    /// Entries of a database in memory.
    pub fn resident(&self, db: usize) -> usize {
        let count = |core: &Core| core.shelf(db).map_or(0, |shelf| shelf.table().len());
        (0..self.stripes.len()).map(|stripe| count(&self.lock(stripe))).sum()
    }

    /// Entries of all databases in memory.
    pub fn all_resident(&self) -> usize {
        let count = |core: &Core| core.shelves().map(|shelf| shelf.table().len()).sum::<usize>();
        (0..self.stripes.len()).map(|stripe| count(&self.lock(stripe))).sum()
    }

    /// Bytes of the index of L3.
    pub fn index_bytes(&self) -> usize {
        let bytes = |core: &Core| core.shelves().map(|shelf| shelf.records.bytes()).sum::<usize>();
        (0..self.stripes.len()).map(|stripe| bytes(&self.lock(stripe))).sum()
    }

    /// Bytes beside the entries, of all databases.
    pub fn overhead(&self) -> usize {
        let core_overhead = |core: &Core| core.shelves().map(Shelf::overhead).sum::<usize>();
        (0..self.stripes.len()).map(|stripe| core_overhead(&self.lock(stripe))).sum()
    }

    /// Empties databases, while all stripes are held. What was in them is freed when the result is
    /// dropped.
    pub fn flush(&self, databases: Range<usize>) -> Vec<Table> {
        let mut held: Vec<_> = (0..self.stripes.len()).map(|stripe| self.lock(stripe)).collect();
        if let Some(log) = &self.log {
            log.state().renew(databases.clone());
        }
        self.generation.fetch_add(1, SeqCst);
        let mut taken = Vec::new();
        for core in &mut held {
            core.cancel_all(|db| databases.contains(&db));
            self.report_negatives(core);
            for db in databases.clone() {
                if let Some(shelf) = core.shelf_mut(db) {
                    if let Some(log) = &self.log {
                        log.note_dropped(shelf.records.written());
                    }
                    taken.push(shelf.clear(&self.rules));
                    self.report(shelf);
                }
            }
        }
        taken
    }

    /// Swaps two databases, stripe by stripe while all are held.
    pub fn swap(&self, a: usize, b: usize) {
        if a == b {
            return;
        }
        let mut held: Vec<_> = (0..self.stripes.len()).map(|stripe| self.lock(stripe)).collect();
        if let Some(log) = &self.log {
            log.state().swap(a, b);
        }
        self.generation.fetch_add(1, SeqCst);
        for (stripe, core) in held.iter_mut().enumerate() {
            core.cancel_all(|db| db == a || db == b);
            self.shelf(stripe, core, a);
            self.shelf(stripe, core, b);
            let core = &mut **core;
            let (low, high) = core.others.split_at_mut(a.max(b) - 1);
            let low = match a.min(b) {
                0 => Some(&mut core.home),
                db => low[db - 1].as_deref_mut(),
            };
            if let (Some(low), Some(high)) = (low, &mut high[0]) {
                low.swap(high, &self.rules);
                self.report(low);
                self.report(high);
            }
        }
    }

    /// Shows the live entries of one bucket from a cursor on, and the records of L3 with these hashes
    /// that memory has no copy of; returns the next cursor (0: the end).
    pub fn scan(
        &self,
        db: usize,
        cursor: u64,
        now: u64,
        mut seen: impl FnMut(Entry<'_>),
        mut cold: impl FnMut(Record),
    ) -> u64 {
        let Some(hash) = cursor.checked_mul(1 << CURSOR_SHIFT) else { return 0 };
        let stripe = self.stripe_of(hash);
        let core = self.lock(stripe);
        let show = |entry: Entry<'_>| {
            if is_live(entry, now) {
                seen(entry);
            }
        };
        let bits = self.rules.stripe_bits;
        let mut next = (stripe as u128 + 1) << 64 >> bits;
        if let Some(shelf) = core.shelf(db) {
            let filled = Some(shelf.table()).filter(|table| !table.is_empty());
            let start = (stripe as u128) << 64 >> bits;
            if let Some(rest) = filled.and_then(|table| table.behind_bucket(hash)) {
                next = (start | u128::from(rest)).next_multiple_of(1 << CURSOR_SHIFT);
            }
            let to = (next - start) << bits;
            let show_cold = |record: Record| {
                if !record.has(RESIDENT) {
                    cold(record);
                }
            };
            let cell = CURSOR_SHIFT + bits;
            match shelf.records.scan(hash << bits, to, (COLD_AT_ONCE, cell), show_cold) {
                // The bucket is shown with the last of its records.
                Some(rest) => next = start | u128::from(rest >> cell << CURSOR_SHIFT),
                None => drop(filled.map(|table| table.scan(hash, show))),
            }
        }
        // Behind the last stripe all 64 bits are used up, and the cursor is 0.
        (next.div_ceil(1 << CURSOR_SHIFT) as u64) & (u64::MAX >> CURSOR_SHIFT)
    }

    /// Shows a random live entry of a database, or names a record of L3, if one is found.
    pub fn random<T>(
        &self,
        db: usize,
        random: u64,
        now: u64,
        show: impl FnOnce(Entry<'_>) -> T,
    ) -> Option<Result<T, Record>> {
        let count = self.stripes.len();
        for step in 0..count {
            let core = self.lock((random as usize % count + step) % count);
            let Some(shelf) = core.shelf(db) else { continue };
            let (cold, _) = shelf.records.cold();
            let mut sample = random;
            for _ in 0..16 {
                sample = next_random(sample);
                let total = shelf.table().len() + cold;
                if total == 0 {
                    break;
                }
                if sample as usize % total >= shelf.table().len() {
                    match shelf.records.random(next_random(sample)) {
                        Some(record) if !record.has(RESIDENT) => return Some(Err(record)),
                        _ => continue,
                    }
                }
                let Some(slot) = shelf.random(sample) else { continue };
                if is_live(shelf.entry(slot), now) {
                    return Some(Ok(show(shelf.entry(slot))));
                }
            }
        }
        None
    }

    /// Changes the capacity. What is above it is evicted by the next writes.
    pub fn set_limit(&self, limit: usize) {
        self.rules.limit.store(limit, Relaxed);
    }

    /// Changes the eviction policy.
    pub fn set_eviction(&self, eviction: Eviction) {
        let old = self.rules.eviction.swap(eviction as u8, Relaxed);
        if old == eviction as u8 {
            return;
        }
        for stripe in 0..self.stripes.len() {
            for shelf in self.lock(stripe).shelves_mut() {
                shelf.follow_policy(&self.rules);
                self.report(shelf);
            }
        }
    }

    /// Changes the parameters of the sampling policies.
    pub fn set_sampling(&self, samples: u32, lfu_log_factor: u32, lfu_decay: u32) {
        self.rules.samples.store(samples, Relaxed);
        self.rules.lfu_log_factor.store(lfu_log_factor, Relaxed);
        self.rules.lfu_decay.store(lfu_decay, Relaxed);
    }
}

impl Core {
    /// The shelf of a database, if there is one.
    #[inline]
    pub fn shelf(&self, db: usize) -> Option<&Shelf> {
        if db == 0 { Some(&self.home) } else { self.others[db - 1].as_deref() }
    }

    pub(super) fn shelf_mut(&mut self, db: usize) -> Option<&mut Shelf> {
        if db == 0 { Some(&mut self.home) } else { self.others[db - 1].as_deref_mut() }
    }

    pub(super) fn shelves(&self) -> impl Iterator<Item = &Shelf> {
        iter::once(&self.home).chain(self.others.iter().flatten().map(|shelf| &**shelf))
    }

    pub(super) fn shelves_mut(&mut self) -> impl Iterator<Item = &mut Shelf> {
        let others = self.others.iter_mut().flatten().map(|shelf| &mut **shelf);
        iter::once(&mut self.home).chain(others)
    }

    /// A random number.
    pub fn random(&mut self) -> u64 {
        self.random = next_random(self.random);
        self.random
    }
}

#[cfg(test)]
mod tests;
