//! What is known of the traffic: the hottest keys, the largest, and what more memory would bring.
//!
//! Each thread notes a sample of what it does ([`sampler`]); it is brought together here, by the thread itself
//! when it has some, once a second by [`Traffic::tick`], and before a report. The structures are plain data
//! without a clock or a lock of their own: [`hot`], [`big`], [`curve`] over a [`stack`]. All of them have a
//! fixed size: about 750 KiB, and what 256 hot and 256 large keys of at most a kilobyte take; each thread
//! has at most 25 KiB more.

mod big;
pub mod curve;
mod hot;
mod sampler;
mod stack;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};

use super::{counter::Counters, tx::Key};
use crate::tier::{entry::Entry, memory::Memory, shelf::is_live};
use big::Big;
pub use big::BigKey;
pub use curve::Basis;
use curve::Curve;
use hot::Hot;
pub use hot::HotKey;
pub use sampler::Sampler;

/// Sizes of memory of which the curve is shown, in units of the limit.
pub const TIMES: [f64; 5] = [0.5, 1.0, 2.0, 4.0, 8.0];
/// What is used further back than so many times the limit is forgotten.
const HORIZON: u64 = 10;
/// What the table and the queues take for an entry, in bytes, at least and at most: where there are few
/// entries they say nothing.
const LEAST_SHARE: usize = 8;
const MOST_SHARE: usize = 32;

/// What tells a key from all others: the hash, and in its upper bits the database.
fn id(db: usize, hash: u64) -> u64 {
    hash ^ (db as u64) << 56
}

/// What is known of the traffic. At first it isn't watched.
#[derive(Default)]
pub struct Traffic {
    hot: Mutex<Option<Hot>>,
    curve: Mutex<Option<Curve>>,
    big: Mutex<Big>,
    /// Larger entries than that may be among the largest.
    floor: Floor,
    watches_keys: AtomicBool,
}

/// A size in bytes; none is larger at first.
struct Floor(AtomicUsize);

impl Default for Floor {
    fn default() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

/// A point of the curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The size of memory, in units of the limit.
    pub times: f64,
    /// The same in bytes.
    pub bytes: u64,
    /// The part of all lookups that would be hits.
    pub hit_ratio: f64,
}

/// The miss-ratio curve, as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// At each of [`TIMES`]; none before the first lookup.
    pub points: Vec<Point>,
    /// What they rest on.
    pub basis: Basis,
}

fn lock<T>(mutex: &Mutex<T>, waits: bool) -> Option<MutexGuard<'_, T>> {
    if waits { Some(mutex.lock()) } else { mutex.try_lock() }
}

impl Traffic {
    /// Watches the keys, or the curve, from here on; or no more, and forgets what it knew.
    pub fn watch(&self, keys: bool, curve: bool, now: u64) {
        self.watches_keys.store(keys, Relaxed);
        let mut hot = self.hot.lock();
        if hot.is_some() != keys {
            *hot = keys.then(|| Hot::new(now));
            let mut big = self.big.lock();
            *big = Big::default();
            self.floor.0.store(if keys { 0 } else { usize::MAX }, Relaxed);
        }
        let mut known = self.curve.lock();
        if known.is_some() != curve {
            *known = curve.then(|| Curve::new(curve::SPARSE, now));
        }
    }

    /// Whether requests are to be noted.
    pub fn watches_keys(&self) -> bool {
        self.watches_keys.load(Relaxed)
    }

    /// Takes what a thread has noted, if it is enough and nobody else is here.
    pub fn offer(&self, counters: &Counters, now: u64) {
        if counters.sampler.has_enough() {
            self.take(counters, now, false);
        }
    }

    fn take(&self, counters: &Counters, now: u64, waits: bool) {
        let sampler = &counters.sampler;
        let Some(mut pending) = sampler.pending(waits) else { return };
        if let Some(mut hot) = lock(&self.hot, waits) {
            pending.take_requests(|id, db, key, count| {
                hot.iter_mut().for_each(|hot| hot.note(id, db, key, count));
            });
        }
        let Some(mut curve) = lock(&self.curve, waits) else { return };
        let (lookups, lost) = (counters.lookups(), sampler.lost.get());
        // Less than before: the counters have begun again.
        let since = lookups.checked_sub(pending.lookups).unwrap_or(lookups);
        let lost_since = lost - pending.lost;
        (pending.lookups, pending.lost) = (lookups, lost);
        if let Some(curve) = &mut *curve {
            curve.note_lookups(since, lost_since);
            pending.samples.iter().for_each(|sample| curve.note(sample, now));
            curve.keep_cheap();
        }
        pending.samples.clear();
        sampler.follow(curve.as_ref().map(Curve::rate).unwrap_or_default());
    }

    /// Takes what all threads have noted, and lets time pass. Call it once a second.
    pub fn tick<'a>(
        &self,
        threads: impl Iterator<Item = &'a Counters> + Clone,
        memory: &Memory,
        now: u64,
    ) {
        self.gather(threads.clone(), now);
        // The stripes are looked at before the lock, under which nobody waits for one.
        let is_watched = self.curve.lock().is_some();
        let share = if is_watched { share_of_entry(memory) } else { 0 };
        if let Some(curve) = &mut *self.curve.lock() {
            let limit = memory.rules().limit() as u64;
            curve.tick(limit.saturating_mul(HORIZON), share, now);
        }
        if self.watches_keys() {
            self.check_big(memory, now);
        }
        for counters in threads {
            counters.sampler.tick();
            self.take(counters, now, true);
        }
    }

    /// Takes what all threads have noted: before a report.
    pub fn gather<'a>(&self, threads: impl Iterator<Item = &'a Counters>, now: u64) {
        threads.for_each(|counters| self.take(counters, now, true));
        self.hot.lock().iter_mut().for_each(|hot| hot.tick(now));
    }

    /// Forgets what it knows of the keys of databases that got other contents.
    pub fn forget(&self, is_gone: impl Fn(usize) -> bool) {
        self.curve.lock().iter_mut().for_each(|curve| curve.forget(&is_gone));
    }

    /// Follows two databases that have swapped what they hold, as far as it knows the keys.
    pub fn swap(&self, a: usize, b: usize) {
        self.forget(|db| a != b && (db == a || db == b));
        self.big.lock().swap(a, b);
    }

    /// The hottest keys, the hottest first: at most so many.
    pub fn hot_keys(&self, most: usize) -> Vec<HotKey> {
        self.hot.lock().as_ref().map(|hot| hot.top(most)).unwrap_or_default()
    }

    /// How often a key is asked for, as Redis's LFU counters say it: 8 for each doubling of its requests in
    /// a minute, at most 255; 0 if it isn't among the hottest. `None` if keys aren't watched.
    pub fn frequency(&self, db: usize, key: Key<'_>) -> Option<u8> {
        let in_a_minute = self.hot.lock().as_ref()?.in_a_minute(id(db, key.hash));
        Some((8.0 * (1.0 + in_a_minute).log2()).min(255.0) as u8)
    }

    /// The largest keys in memory, the largest first: at most so many.
    pub fn big_keys(&self, most: usize, memory: &Memory, now: u64) -> Vec<BigKey> {
        self.check_big(memory, now);
        let mut all = self.big.lock().all();
        all.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.key.cmp(&b.key)));
        all.truncate(most.min(big::SHOWN));
        all
    }

    /// Whether an entry of so many bytes may be among the largest.
    #[inline]
    pub(super) fn may_be_big(&self, bytes: usize) -> bool {
        bytes > self.floor.0.load(Relaxed)
    }

    /// Notes an entry that may be among the largest.
    #[cold]
    pub(super) fn note_big(&self, db: usize, entry: Entry<'_>) {
        let mut big = self.big.lock();
        if self.watches_keys() {
            self.floor.0.store(big.note(db, entry.key(), entry.size()), Relaxed);
        }
    }

    /// Looks whether the largest keys are still there. No stripe is locked while the list is, since who
    /// writes holds a stripe when it comes here.
    fn check_big(&self, memory: &Memory, now: u64) {
        let size_of = |known: &BigKey| {
            let hash = memory.hash(&known.key);
            let core = memory.lock(memory.stripe_of(hash));
            let shelf = core.shelf(known.db)?;
            let entry = shelf.entry(shelf.find(hash, &known.key)?);
            is_live(entry, now).then(|| entry.size())
        };
        let all = self.big.lock().all();
        let look = |known: BigKey| {
            let size = size_of(&known);
            (known, size)
        };
        let looked: Vec<_> = all.into_iter().map(look).collect();
        let mut big = self.big.lock();
        if self.watches_keys() {
            self.floor.0.store(big.correct(&looked), Relaxed);
        }
    }

    /// What the hit ratio would be at other sizes of memory; `None` if the curve isn't watched.
    pub fn estimate(&self, memory: &Memory) -> Option<Estimate> {
        let curve = self.curve.lock();
        let curve = curve.as_ref()?;
        let (limit, charged) = (memory.rules().limit() as f64, memory.rules().charged() as f64);
        let point = |times: &f64| {
            let bytes = times * limit;
            let hit_ratio = curve.hit_ratio((bytes - charged).max(0.0) as u64)?;
            Some(Point { times: *times, bytes: bytes as u64, hit_ratio })
        };
        Some(Estimate { points: TIMES.iter().filter_map(point).collect(), basis: curve.basis() })
    }

    /// Bytes that the curve takes; 0 if it isn't watched.
    pub fn curve_size(&self) -> usize {
        self.curve.lock().as_ref().map_or(0, Curve::size)
    }
}

/// What the table and the queues take for an entry.
fn share_of_entry(memory: &Memory) -> usize {
    (memory.overhead() / memory.all_resident().max(1)).clamp(LEAST_SHARE, MOST_SHARE)
}
