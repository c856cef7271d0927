//! What one thread notes of its traffic, to be taken by [`Traffic`](super::Traffic) now and then.
//!
//! Most of it passes by: a lookup costs one comparison of its hash, a batch of requests one of its length.
//! What is noted goes into short lists that the thread itself empties when they have become longer, and the
//! server once a second. Nobody waits for anybody: what finds a list full, or taken, is dropped and counted.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};

use super::{
    curve::{Event, Rate, Sample},
    hot::LONGEST,
    id,
};
use crate::{
    cache::{
        counter::{Counter, Hit},
        tx::Key,
    },
    tier::{
        entry::Entry,
        shelf::{self, next_random},
    },
};

/// Of so many requests one is noted, in the mean; all of them while a second has no more than [`QUIET`].
const EVERY: u32 = 128;
const QUIET: u32 = 1_000;
/// Samples and requests that may wait, and so many as are taken at once.
const SAMPLES: usize = 512;
const REQUESTS: usize = 128;
const ENOUGH: usize = 32;
/// Bytes of keys that may wait.
const BYTES: usize = 8 << 10;

/// What a thread notes. Only that thread does; anybody may take.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Keys with hashes below it are sampled, but for some classes.
    threshold: AtomicU32,
    excluded: AtomicU64,
    /// Requests that pass by before the next is noted, and what one counts for.
    until: AtomicU32,
    every: AtomicU32,
    /// What the requests that were noted count for, since the last second began.
    noted: AtomicU32,
    random: AtomicU64,
    /// Lookups and requests that should have been noted, and were dropped.
    pub(super) lost: Counter,
    pub(super) lost_requests: Counter,
    pending: Mutex<Pending>,
}

/// What waits to be taken.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) samples: Vec<Sample>,
    requests: Vec<Request>,
    keys: Vec<u8>,
    /// What the thread had counted when it was last taken: lookups, and those that were lost.
    pub(super) lookups: u64,
    pub(super) lost: u64,
}

/// A request of a key, which stands behind those before it.
#[derive(Debug)]
struct Request {
    id: u64,
    db: u16,
    len: u16,
    count: u32,
}

impl Pending {
    /// Takes the requests out: hash and database, the database, the key, and what it counts for.
    pub(super) fn take_requests(&mut self, mut seen: impl FnMut(u64, usize, &[u8], u64)) {
        let mut rest = &self.keys[..];
        for request in self.requests.drain(..) {
            let (key, behind) = rest.split_at(usize::from(request.len));
            seen(request.id, usize::from(request.db), key, u64::from(request.count));
            rest = behind;
        }
        self.keys.clear();
    }
}

impl Sampler {
    /// Whether keys with this hash are sampled, as far as the threshold says.
    #[inline(always)]
    fn has(&self, hash: u64) -> bool {
        (hash as u32) < self.threshold.load(Relaxed)
    }

    /// Notes a lookup, if the key is sampled.
    #[inline(always)]
    pub(in crate::cache) fn looked(
        &self,
        db: usize,
        key: Key<'_>,
        found: Option<(Entry<'_>, Hit)>,
    ) {
        if self.has(key.hash) {
            self.note_lookup(db, key, found);
        }
    }

    /// Notes that a key was written or (`None`) deleted, if it is sampled.
    #[inline(always)]
    pub(in crate::cache) fn wrote(&self, db: usize, key: Key<'_>, entry: Option<Entry<'_>>) {
        if self.has(key.hash) {
            let event = if entry.is_some() { Event::Write } else { Event::Removal };
            self.note(db, key, entry, event);
        }
    }

    #[cold]
    fn note_lookup(&self, db: usize, key: Key<'_>, found: Option<(Entry<'_>, Hit)>) {
        let event = match found {
            None => Event::Miss,
            Some((_, Hit::Local | Hit::Memory)) => Event::Hit,
            Some((_, Hit::Disk | Hit::Loaded)) => Event::Fetched,
        };
        if !self.note(db, key, found.map(|(entry, _)| entry), event) {
            self.lost.add(1);
        }
    }

    /// Says whether there was room for it.
    #[cold]
    fn note(&self, db: usize, key: Key<'_>, entry: Option<Entry<'_>>, event: Event) -> bool {
        let threshold = self.threshold.load(Relaxed);
        let rate = Rate { threshold, excluded: self.excluded.load(Relaxed) };
        if !rate.takes(key.hash) {
            return true;
        }
        let Some(mut pending) = self.pending.try_lock() else { return false };
        if pending.samples.len() >= SAMPLES {
            return false;
        }
        pending.samples.push(Sample {
            id: id(db, key.hash),
            end: entry.map_or(0, shelf::end),
            bytes: entry.map_or(0, |entry| u32::try_from(entry.size()).unwrap_or(u32::MAX)),
            db: db as u16,
            event,
        });
        true
    }

    /// Whether none of the next so many requests is to be noted.
    #[inline]
    pub fn passes(&self, requests: usize) -> bool {
        let until = self.until.load(Relaxed);
        if requests as u64 > u64::from(until) {
            return false;
        }
        self.until.store(until - requests as u32, Relaxed);
        true
    }

    /// Names those of the next so many requests that are to be noted, and what each counts for. How many
    /// lie between two is left to chance, lest it beat with what clients do in turns.
    pub fn pick(&self, requests: usize, mut picked: impl FnMut(usize, u32)) {
        let mut at = self.until.load(Relaxed) as usize;
        while at < requests {
            let every = self.every.load(Relaxed).max(1);
            picked(at, every);
            let noted = self.noted.load(Relaxed).saturating_add(every);
            self.noted.store(noted, Relaxed);
            if noted > QUIET {
                self.every.store(EVERY, Relaxed);
            }
            at += 1 + self.random(2 * every - 1) as usize;
        }
        self.until.store((at - requests) as u32, Relaxed);
    }

    /// A number below `below`, at random.
    pub fn random(&self, below: u32) -> u32 {
        let random = next_random(self.random.load(Relaxed) | 1);
        self.random.store(random, Relaxed);
        (random >> 32) as u32 % below.max(1)
    }

    /// Notes a request of a key that counts for so many.
    pub fn note_request(&self, db: usize, key: Key<'_>, count: u32) {
        if key.bytes.len() > LONGEST {
            return;
        }
        let pending = self.pending.try_lock();
        let has_room = |pending: &MutexGuard<'_, Pending>| {
            pending.requests.len() < REQUESTS && pending.keys.len() + key.bytes.len() <= BYTES
        };
        let Some(mut pending) = pending.filter(has_room) else { return self.lost_requests.add(1) };
        let (id, len) = (id(db, key.hash), key.bytes.len() as u16);
        pending.requests.push(Request { id, db: db as u16, len, count });
        pending.keys.extend_from_slice(key.bytes);
    }

    /// Whether enough waits to be taken.
    pub(super) fn has_enough(&self) -> bool {
        let is_enough = |pending: MutexGuard<'_, Pending>| {
            pending.samples.len() >= ENOUGH
                || pending.requests.len() >= ENOUGH
                || pending.keys.len() > BYTES / 2
        };
        self.pending.try_lock().is_some_and(is_enough)
    }

    /// What waits, if it can be had.
    pub(super) fn pending(&self, waits: bool) -> Option<MutexGuard<'_, Pending>> {
        if waits { Some(self.pending.lock()) } else { self.pending.try_lock() }
    }

    /// Samples these keys from here on.
    pub(super) fn follow(&self, rate: Rate) {
        self.excluded.store(rate.excluded, Relaxed);
        self.threshold.store(rate.threshold, Relaxed);
    }

    /// A second is over: how many requests were there?
    pub(super) fn tick(&self) {
        let is_quiet = self.noted.swap(0, Relaxed) <= QUIET;
        self.every.store(if is_quiet { 1 } else { EVERY }, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(sampler: &Sampler, batches: usize, size: usize) -> Vec<(usize, u32)> {
        let mut all = Vec::new();
        for batch in 0..batches {
            if !sampler.passes(size) {
                sampler.pick(size, |at, count| all.push((batch * size + at, count)));
            }
        }
        all
    }

    #[test]
    fn one_request_in_so_many_is_picked_and_no_place_of_a_batch_preferred() {
        for size in [1, 64, 1000] {
            let sampler = Sampler::default();
            let all = picked(&sampler, 6_400_000 / size, size);
            let counted: u64 = all.iter().map(|(_, count)| u64::from(*count)).sum();
            assert!((6_250_000..6_550_000).contains(&counted), "batches of {size}: {counted}");
            let late = all.iter().filter(|(at, _)| at % size >= size / 2).count();
            assert!(size == 1 || (all.len() * 9 / 20..all.len() * 11 / 20).contains(&late));
        }
    }

    #[test]
    fn all_requests_are_picked_where_there_are_few() {
        let sampler = Sampler::default();
        for _ in 0..3 {
            let all = picked(&sampler, 90, 10);
            assert_eq!(all.len(), 900);
            sampler.tick();
        }
        // More in a second, and it is enough.
        assert!(picked(&sampler, 10_000, 10).len() < 3_000);
        sampler.tick();
        assert!(picked(&sampler, 10_000, 10).len() < 2_000);
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let sampler = Sampler::default();
        sampler.follow(Rate { threshold: u32::MAX, excluded: 0 });
        for number in 0..2 * SAMPLES as u64 {
            let key = Key { bytes: b"k", hash: number };
            sampler.looked(0, key, None);
            sampler.note_request(0, key, 1);
        }
        assert_eq!(sampler.lost.get(), SAMPLES as u64);
        assert_eq!(sampler.lost_requests.get(), (2 * SAMPLES - REQUESTS) as u64);
        let held = sampler.pending(true);
        sampler.looked(0, Key { bytes: b"k", hash: 1 }, None);
        drop(held);
        assert_eq!(sampler.lost.get(), SAMPLES as u64 + 1);
    }
}
