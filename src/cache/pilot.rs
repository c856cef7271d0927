//! Who carries a load through: from what L3 gave to the store, and back into memory.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use bytes::Bytes;

use super::{
    Inner,
    flight::{FetchError, Flight, Found, Origin},
    loader::{Answer, Loader},
};
use crate::{
    policy::{Age, NamespaceStats},
    store::{Record, StoreError},
    tier::{
        demote::Known,
        entry::{EntryRef, Meta},
    },
};

/// Who carries a load through. Ends the flight when dropped, also by a panic of the store.
pub(super) struct Pilot {
    pub(super) cache: Arc<Inner>,
    pub(super) db: usize,
    pub(super) key: Bytes,
    pub(super) hash: u64,
    pub(super) flight: Arc<Flight>,
    /// The namespace, if it reads through.
    pub(super) namespace: Option<usize>,
    /// Whether nobody waits: a good copy is to be renewed.
    pub(super) refreshes: bool,
    /// Whether it has ended in a way that leaves nothing to be tried again.
    is_settled: bool,
}

impl Pilot {
    pub(super) fn new(
        cache: &Arc<Inner>,
        (db, key, hash): (usize, &Bytes, u64),
        flight: &Arc<Flight>,
        namespace: Option<usize>,
        refreshes: bool,
    ) -> Self {
        let (cache, key, flight) = (cache.clone(), key.clone(), flight.clone());
        Self { cache, db, key, hash, flight, namespace, refreshes, is_settled: false }
    }

    /// Ends the flight with what L3 gave, or, where that is nothing or not good enough, goes on to the
    /// store.
    pub(super) fn go_on_to_store(self, from_disk: Result<Found, FetchError>) {
        let known = from_disk.as_ref().map_or(Known::Nothing, |found| found.known);
        let Some(at) = self.namespace else { return self.end_on_disk(from_disk) };
        if let Ok(Found { entry: Some((copy, _)), .. }) = &from_disk {
            let kept_until = copy.get().kept_until();
            if self.cache.policies.times(at).age(kept_until, self.cache.clock.now()) != Age::Stale {
                return self.end_on_disk(from_disk);
            }
            let _ = self.flight.old.set(copy.clone());
        }
        self.flight.is_on_disk.store(false, Relaxed);
        self.ask_store(at, known);
    }

    fn end_on_disk(mut self, from_disk: Result<Found, FetchError>) {
        self.flight.is_on_disk.store(false, Relaxed);
        self.is_settled = true;
        self.hand_over(from_disk);
    }

    /// Asks the store for the key. The limit counts from here, however long the load waits for others.
    pub(super) fn ask_store(self, at: usize, known: Known) {
        let namespace = self.cache.policies.at(at);
        let limit = self.cache.policies.times(at).timeout_hard();
        let limit = limit.unwrap_or_else(|| self.cache.store_timeout());
        let started = Instant::now();
        if let Some(line) = &namespace.line
            && let Some(record) = line.get(&self.key)
        {
            return self.land_unflushed(at, record, known);
        }
        if !self.flight.asks_store {
            return self.end_on_disk(Ok(Found { entry: None, known }));
        }
        let Some(loader) = self.loader(at) else { return self.land(at, Ok(None), known, started) };
        match loader.ask(self.key.clone(), limit) {
            Err(why) => self.land(at, Err(why), known, started),
            Ok(answer) => {
                let runtime = self.cache.runtime().clone();
                runtime.spawn(async move {
                    let late = || Err(StoreError::Timeout("the load took too long".into()));
                    let answer = tokio::time::timeout(limit, answer).await;
                    // The call may have died: then this flight has, too.
                    let Ok(answer) = answer.unwrap_or_else(|_| Ok(late())) else { return };
                    self.land(at, answer, known, started);
                });
            }
        }
    }

    fn loader(&self, at: usize) -> Option<&Arc<Loader>> {
        self.cache.loaders[at].as_ref()
    }

    /// Ends the flight with what the store doesn't have yet (SEMANTICS 12).
    fn land_unflushed(mut self, at: usize, record: Option<Record>, known: Known) {
        self.is_settled = true;
        let entry = self.take_in(at, record, known);
        self.hand_over(Ok(Found { entry, known }));
    }

    /// Ends the flight with what the store said.
    fn land(mut self, at: usize, answer: Answer, known: Known, started: Instant) {
        let stats = &self.cache.policies.at(at).stats;
        NamespaceStats::add(&stats.load_micros, started.elapsed().as_micros() as u64);
        let result = match answer {
            Ok(record) => {
                NamespaceStats::add(&stats.loads, 1);
                self.is_settled = true;
                Ok(Found { entry: self.take_in(at, record, known), known })
            }
            Err(why) => {
                NamespaceStats::add(&stats.load_errors, 1);
                // What is the data's fault stays so: then the copy is good until its end, and no longer.
                self.is_settled = !why.is_stores_fault();
                if self.refreshes {
                    NamespaceStats::add(&stats.refresh_errors, 1);
                }
                Err(FetchError::Store(why))
            }
        };
        if !self.is_settled {
            self.let_rest();
        }
        self.hand_over(result);
    }

    /// Hands what was found to those who wait, and to nobody who asks from here on: it may be good only for
    /// those who have asked before.
    fn hand_over(&self, found: Result<Found, FetchError>) {
        self.leave();
        self.flight.landing.land(found);
    }

    /// Is the flight no more that those join who ask for the key.
    fn leave(&self) {
        let (place, ticket) = ((self.db, self.key.clone()), self.flight.ticket);
        self.cache.flights.0.remove_if(&place, |_, flight| flight.ticket == ticket);
    }

    /// Installs what came, if no write has overtaken it, and hands it to those who wait.
    fn take_in(
        &self,
        at: usize,
        record: Option<Record>,
        known: Known,
    ) -> Option<(Arc<EntryRef>, Origin)> {
        let Self { cache, db, key, hash, flight, .. } = self;
        let now = cache.clock.now();
        let record = record.filter(|record| record.deadline == 0 || record.deadline > now);
        let Some(record) = record else {
            if !cache.turns.is_unknown(*db, key) {
                let until = cache.policies.times(at).negative_until(now);
                let old = flight.old.get().map(|old| old.get());
                let place = (*db, *hash, &**key);
                cache.memory.land_nothing(place, flight.ticket, old, known, until);
            }
            return None;
        };
        cache.note_version(record.version);
        let access = cache.memory.rules().eviction().first_access(now);
        let meta = Meta { deadline: record.deadline, access, ..Meta::default() };
        let mut meta = cache.policies.stamp(*db, key, now, meta);
        if let Some(fresh_for) = record.fresh_for {
            meta.kept_until = cache.policies.times(at).within(meta.kept_until, fresh_for, now);
        }
        let entry = EntryRef::new(key, &[&record.value], &meta);
        if record.fresh_for.is_some_and(|fresh_for| fresh_for.is_zero()) {
            // Only for those who have asked already.
            return Some((Arc::new(entry), Origin::Store));
        }
        Some((self.install(entry, known), Origin::Store))
    }

    /// Installs an entry; this is known of the key's record.
    pub(super) fn install(&self, entry: EntryRef, known: Known) -> Arc<EntryRef> {
        let Self { cache, db, key, hash, flight, .. } = self;
        if !cache.turns.is_unknown(*db, key)
            && let Some(installed) = entry.try_clone()
        {
            let old = flight.old.get().map(|old| old.get());
            let now = cache.clock.now();
            let place = (*db, *hash);
            if cache.traffic.may_be_big(installed.get().size()) {
                cache.traffic.note_big(*db, installed.get());
            }
            let landed = cache.memory.land_over(place, flight.ticket, installed, known, old, now);
            // Not only a write cancels a ticket: the copy may be as it was, and its record have moved.
            if !landed
                && let Some(old) = old
                && !cache.memory.has_ticket(*hash, flight.ticket)
            {
                old.set_renewing(false);
            }
        }
        Arc::new(entry)
    }

    /// Lets the copy that wasn't renewed be tried again, though not at once.
    fn let_rest(&self) {
        if let Some(old) = self.flight.old.get() {
            if let Some(loader) = self.namespace.and_then(|at| self.loader(at)) {
                loader.rest(self.cache.clock.now());
            }
            old.get().set_renewing(false);
        }
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        if !self.is_settled {
            self.let_rest();
        }
        self.cache.memory.release(self.hash, self.flight.ticket);
        self.leave();
        self.flight.landing.lose();
    }
}
