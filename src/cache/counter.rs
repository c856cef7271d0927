//! Counters that cost one plain store: each thread has its own set, and who reports sums them up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::traffic::Sampler;

/// A counter with one writer at a time and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds, without a locked instruction: only the owning thread writes.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Sets the count, as its owner.
    #[inline]
    pub fn set(&self, count: u64) {
        self.0.store(count, Relaxed);
    }

    /// Starts again from zero; an addition at the same moment may win.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// What a thread counts about keys: every lookup once.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lookups of each namespace's keys, by its number; empty if nobody wants to know.
    pub namespaces: Box<[Tally]>,
    /// Those of all other keys.
    pub others: Tally,
    /// A sample of what the thread does.
    pub sampler: Sampler,
}

/// Lookups, by what came of them.
#[derive(Debug, Default)]
pub struct Tally {
    /// Lookups that found the key.
    pub hits: Counter,
    /// Lookups that didn't.
    pub misses: Counter,
    /// Hits in the worker's own cache.
    pub local_hits: Counter,
    /// Hits whose entry had to be read from disk.
    pub disk_hits: Counter,
    /// Hits whose entry had to be loaded from a store.
    pub loaded_hits: Counter,
}

/// Where a lookup found a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    /// In the worker's own cache.
    Local,
    /// In memory.
    Memory,
    /// On disk.
    Disk,
    /// In a store.
    Loaded,
}

impl Counters {
    /// Counters that count so many namespaces apart, too.
    pub fn for_namespaces(count: usize) -> Self {
        let namespaces = (0..count).map(|_| Tally::default()).collect();
        Self { namespaces, ..Self::default() }
    }

    /// Where a lookup of a key of this namespace is counted.
    #[inline]
    pub(super) fn of(&self, namespace: Option<usize>) -> &Tally {
        namespace.and_then(|number| self.namespaces.get(number)).unwrap_or(&self.others)
    }

    /// What is counted of each namespace, and of all other keys.
    pub fn tallies(&self) -> impl Iterator<Item = &Tally> {
        self.namespaces.iter().chain([&self.others])
    }

    /// A figure of all keys.
    pub fn all(&self, figure: impl Fn(&Tally) -> &Counter) -> u64 {
        self.tallies().map(|tally| figure(tally).get()).sum()
    }

    /// All lookups.
    pub fn lookups(&self) -> u64 {
        self.all(|tally| &tally.hits) + self.all(|tally| &tally.misses)
    }

    /// Starts again from zero.
    pub fn reset(&self) {
        for tally in self.tallies() {
            let Tally { hits, misses, local_hits, disk_hits, loaded_hits } = tally;
            for counter in [hits, misses, local_hits, disk_hits, loaded_hits] {
                counter.reset();
            }
        }
    }
}

/// Lookups of several threads, by who answered them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// The workers' own caches.
    pub l1: u64,
    /// Memory.
    pub l2: u64,
    /// The disk.
    pub l3: u64,
    /// A store: for the cache a miss.
    pub loaded: u64,
    /// Nobody.
    pub absent: u64,
}

impl Lookups {
    /// Adds what a thread has counted.
    pub fn add(&mut self, tally: &Tally) {
        let (local, disk) = (tally.local_hits.get(), tally.disk_hits.get());
        let loaded = tally.loaded_hits.get();
        self.l1 += local;
        // While the counters are read others count.
        self.l2 += tally.hits.get().saturating_sub(local + disk + loaded);
        self.l3 += disk;
        self.loaded += loaded;
        self.absent += tally.misses.get();
    }

    /// Those that the cache answered.
    pub fn hits(&self) -> u64 {
        self.l1 + self.l2 + self.l3
    }

    /// Those that it didn't.
    pub fn misses(&self) -> u64 {
        self.loaded + self.absent
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        self.hits() + self.misses()
    }

    /// The share that the cache answered; 0 of none.
    pub fn hit_rate(&self) -> f64 {
        if self.all() == 0 { 0.0 } else { self.hits() as f64 / self.all() as f64 }
    }
}

impl Tally {
    #[inline]
    pub(super) fn count(&self, found: Option<Hit>) {
        let Some(hit) = found else { return self.misses.add(1) };
        self.hits.add(1);
        match hit {
            Hit::Memory => {}
            Hit::Local => self.local_hits.add(1),
            Hit::Disk => self.disk_hits.add(1),
            Hit::Loaded => self.loaded_hits.add(1),
        }
    }
}
