//! L1: a worker's own cache of the hottest strings, in front of memory and without a lock.
//!
//! It holds references to entries of L2. Whoever replaces or removes an entry marks it dead while they
//! hold its stripe, before the new one can be seen and before they reply; FLUSH* and SWAPDB raise a
//! generation instead. A hit compares generation, mark, deadline, and the moment from which a new copy may have
//! to be loaded, so it is never stale, and no message
//! has to reach a worker (SEMANTICS 4). It serves reads of one key.
//!
//! A key enters when it was met three times in a sample of the hits of L2, before the keys it shares a
//! place of the sketch with pushed it out: that takes about a two-thousandth of the traffic. A gate
//! watches what probing brings: where it finds less than a quarter of what is asked for, nearly all
//! lookups pass it by. So traffic without hot keys costs a few instructions.
//!
//! It has a thousand keys at most: a hit saves two locks, about 30 ns, which a few lines of cache that come
//! from afar would take. For the same reason a request's entry is loaded while those before it are carried
//! out ([`LocalCache::prefetch`]), as those of L2 are.
//!
//! Where memory counts entries, so does L1, and then it is as plain as in a textbook: it takes in all
//! that is read, and never passes a lookup by.

use std::{
    hash::{BuildHasherDefault, Hasher},
    num::NonZeroUsize,
};

use lru::LruCache;

use super::{
    Cache, Job, Refusal,
    charge::Charge,
    tx::{Key, Made, Start, Stop, Tx},
};
use crate::tier::{
    Weight,
    entry::{Entry, EntryRef},
    shelf::is_live,
};

/// Longer entries stay out, in bytes.
const LONGEST: usize = 4 << 10;
/// What an entry takes beside itself: the map's node and slot.
const NODE: usize = 96;
/// Entries that it has at most. Its index then takes 80 KiB and stays in the core's own cache; one with
/// room for what the limit would allow is spread over megabytes, and a hit costs more than L2's.
const MOST: usize = 1024;
/// One hit of L2 in so many is looked at.
const SAMPLE: u32 = 16;
/// One hit of ours in so many moves its entry to the front of the list, which touches four others: the
/// order is none the worse for it.
const PROMOTE: u32 = 8;
/// Places of the sketch, and samples after which a key enters.
const PLACES: usize = 512;
const ENOUGH: u32 = 3;
/// The gate looks at the hits of so many probes; if they are fewer than a quarter, so many lookups pass
/// by before a shorter trial.
const WINDOW: u32 = 1024;
const TRIAL: u32 = 256;
const CLOSED: u32 = 8192;
const LEAST_HITS: u32 = 4;
/// Entries that one look for dead ones takes.
const TIDIED: usize = 64;

/// Keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only whole words are hashed");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

struct Local {
    entry: EntryRef,
    db: usize,
    generation: u64,
    /// From when on L2 has to be asked, since a new copy may have to be loaded.
    check_from: u64,
}

impl Local {
    /// Whether it is what the job's only key holds now.
    #[inline]
    fn is_of(&self, job: &Job<'_>, key: Key<'_>, generation: u64) -> bool {
        let entry = self.entry.get();
        self.db == job.db
            && self.generation == generation
            && job.now < self.check_from
            && !entry.is_dead()
            && is_live(entry, job.now)
            && entry.key() == key.bytes
    }
}

/// A worker's own cache.
pub struct LocalCache {
    cache: Cache,
    entries: LruCache<u64, Local, BuildHasherDefault<Identity>>,
    /// What its entries take of the limit.
    held: usize,
    limit: usize,
    charge: Charge,
    gate: Gate,
    sketch: Box<[u32; PLACES]>,
    until_sample: u32,
    /// Of so many lookups that it couldn't serve one is looked at.
    sample: u32,
    /// Of so many hits one makes its entry the most recent.
    promote: u32,
}

/// Whether probing pays.
struct Gate {
    /// Lookups that still pass by.
    closed: u32,
    /// Probes left of the window.
    probes: u32,
    window: u32,
    hits: u32,
    /// Lookups that pass by when it has closed.
    closes_for: u32,
}

impl Gate {
    /// Whether this lookup is a probe.
    #[inline]
    fn is_open(&mut self) -> bool {
        if self.closed != 0 {
            self.closed -= 1;
            return false;
        }
        self.probes -= 1;
        if self.probes == 0 {
            self.judge();
        }
        true
    }

    #[cold]
    fn judge(&mut self) {
        let pays = self.hits >= self.window / LEAST_HITS;
        self.window = if pays { WINDOW } else { TRIAL };
        self.closed = if pays { 0 } else { self.closes_for };
        (self.probes, self.hits) = (self.window, 0);
    }
}

impl Cache {
    /// A cache of so many bytes in front of this one (entries, if that counts entries), for one thread.
    pub fn local(&self, limit: usize) -> LocalCache {
        let (most, sample, promote, closes_for) = match self.0.memory.rules().weight {
            Weight::Bytes => (MOST, SAMPLE, PROMOTE, CLOSED),
            Weight::Entries => (limit, 1, 1, 0),
        };
        let most = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        LocalCache {
            cache: self.clone(),
            entries: LruCache::with_hasher(most, BuildHasherDefault::default()),
            held: 0,
            limit,
            charge: Charge::new(self.clone()),
            gate: Gate { closed: 0, probes: TRIAL, window: TRIAL, hits: 0, closes_for },
            sketch: Box::new([0; PLACES]),
            until_sample: sample,
            sample,
            promote,
        }
    }
}

impl LocalCache {
    /// Changes how many bytes it may hold; with 0 it holds none and isn't asked.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.shrink();
        self.charge.set(self.held);
    }

    /// Entries, and what they take of the limit.
    pub fn len(&self) -> (usize, usize) {
        (self.entries.len(), self.held)
    }

    /// What an entry takes of the limit.
    fn weight(&self, entry: Entry<'_>) -> usize {
        match self.cache.0.memory.rules().weight {
            Weight::Bytes => entry.size() + NODE,
            Weight::Entries => 1,
        }
    }

    /// Starts loading the entry of a key with this hash; false if it isn't here or not worth a look.
    #[inline]
    pub fn prefetch(&self, hash: u64) -> bool {
        let found = if self.gate.closed == 0 { self.entries.peek(&hash) } else { None };
        found.inspect(|local| local.entry.get().prefetch()).is_some()
    }

    /// Tries a command that reads one key; `None`: it is for the cache.
    #[inline]
    pub fn serve(
        &mut self,
        job: &Job<'_>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Option<Result<(), Refusal>> {
        if self.gate.is_open() {
            let served = self.look(job, run);
            if served.is_some() {
                return served;
            }
        }
        self.until_sample -= 1;
        if self.until_sample == 0 { self.sample(job, run) } else { None }
    }

    fn look(
        &mut self,
        job: &Job<'_>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Option<Result<(), Refusal>> {
        let (key, _) = job.keys[0];
        let Self { cache, entries, gate, promote, .. } = self;
        let generation = cache.0.memory.generation();
        let found = entries.peek(&key.hash)?;
        if !found.is_of(job, key, generation) {
            self.remove(key.hash);
            return None;
        }
        let start = Start { cache: &cache.0, job, pins: &[], staged: None, made: Made::default() };
        let result = run(&mut Tx::local(start, found.entry.get()));
        match result {
            Ok(()) => {
                gate.hits += 1;
                if gate.hits.is_multiple_of(*promote) {
                    entries.promote(&key.hash);
                }
                Some(Ok(()))
            }
            Err(Stop::Client(error)) => Some(Err(Refusal::Client(error))),
            // It needs more than the entry.
            Err(_) => None,
        }
    }

    #[cold]
    fn remove(&mut self, hash: u64) {
        if let Some(gone) = self.entries.pop(&hash) {
            self.held -= self.weight(gone.entry.get());
        }
    }

    /// Counts a lookup; where it makes a key hot, carries the command out in the cache and takes its key
    /// in.
    #[cold]
    fn sample(
        &mut self,
        job: &Job<'_>,
        run: &mut dyn FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Option<Result<(), Refusal>> {
        self.until_sample = self.sample;
        let (key, _) = job.keys[0];
        if self.limit == 0 || self.sample != 1 && !self.is_hot(key.hash) {
            return None;
        }
        Some(self.attempt(job, run))
    }

    /// Carries a command out in the cache, and takes its key in.
    fn attempt(
        &mut self,
        job: &Job<'_>,
        run: &mut dyn FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Refusal> {
        let (key, _) = job.keys[0];
        let mut found = None;
        // As of before the entry is read: a flush in between must not go unnoticed.
        let generation = self.cache.0.memory.generation();
        let result = self.cache.attempt(job, |tx| {
            run(tx)?;
            found = tx.peek(key)?.filter(|entry| entry.size() <= LONGEST).and_then(Entry::share);
            Ok(())
        });
        if let Some(entry) = found {
            let kept_until = entry.get().kept_until();
            let check_from = self.cache.0.policies.check_from(job.db, key.bytes, kept_until);
            // What isn't durable yet may still be lost: L2 knows, and this doesn't.
            if job.now < check_from && job.release.is_free() {
                self.put(key.hash, Local { entry, db: job.db, generation, check_from });
            }
        }
        result
    }

    /// Takes in a key that came from below, if it takes in all: to be called when it has come.
    pub fn note_arrival(&mut self, job: &Job<'_>) {
        if self.sample == 1 && self.limit != 0 {
            // What has left memory again isn't taken in.
            let _ = self.attempt(job, &mut |_| Ok(()));
        }
    }

    /// Counts a key in the sketch; says whether it was met often enough.
    fn is_hot(&mut self, hash: u64) -> bool {
        let place = &mut self.sketch[hash as usize % PLACES];
        let (tag, count) = ((hash >> 32) as u32 & !3, *place & 3);
        if *place & !3 == tag {
            if count == ENOUGH - 1 {
                *place = 0;
                return true;
            }
            *place += 1;
        } else if count == 0 {
            *place = tag | 1;
        } else {
            *place -= 1;
        }
        false
    }

    fn put(&mut self, hash: u64, local: Local) {
        self.held += self.weight(local.entry.get());
        if let Some((_, gone)) = self.entries.push(hash, local) {
            self.held -= self.weight(gone.entry.get());
        }
        self.shrink();
        self.charge.set(self.held);
    }

    fn shrink(&mut self) {
        while self.held > self.limit
            && let Some((_, gone)) = self.entries.pop_lru()
        {
            self.held -= self.weight(gone.entry.get());
        }
    }

    /// Lets go of dead entries among those that were not used for longest. Call it now and then.
    pub fn tidy(&mut self) {
        let generation = self.cache.0.memory.generation();
        let is_gone = |local: &Local| local.generation != generation || local.entry.get().is_dead();
        let oldest = self.entries.iter().rev().take(TIDIED);
        let gone: Vec<u64> =
            oldest.filter(|(_, local)| is_gone(local)).map(|(hash, _)| *hash).collect();
        gone.into_iter().for_each(|hash| self.remove(hash));
        self.charge.set(self.held);
    }
}
