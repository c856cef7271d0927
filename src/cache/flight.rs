//! Loads under way: one for each key, whoever asks, and pins that carry what they brought.
//!
//! A flight runs on the background runtime, so that a client that goes away doesn't end it. Those who
//! ask while it is under way wait for it; if its task dies without an answer, they ask again, and
//! exactly one of them becomes the next flight (who had started the dead one is told of it). A flight
//! that a write has overtaken (its ticket is cancelled, SEMANTICS 1) is not joined any more, and what it
//! brings is not installed.
//!
//! A flight looks into L3 first, on one of its threads, and then, in a namespace that reads through, asks
//! the store. Who waits too long for the disk takes it for a miss, if all they want is to read
//! (SEMANTICS 3), or asks the store without it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use dashmap::{DashMap, Entry as Place};
use futures_util::future::{Either, FutureExt, Shared, select};

use super::{Inner, Use, landing::Landing, tx::Key};
use crate::{
    policy::{NamespaceStats, Read},
    store::{Record, StoreError},
    tier::{
        demote::Known,
        entry::{Entry, EntryRef, Meta},
        memory::Ticket,
    },
};

/// What a flight brought.
#[derive(Clone)]
pub(super) struct Found {
    /// The entry and where it was; `None`: there is none.
    pub(super) entry: Option<(Arc<EntryRef>, Origin)>,
    /// What is known of the key's record in L3.
    pub(super) known: Known,
}

/// Where an entry was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Disk,
    Store,
}

/// Why a flight brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FetchError {
    /// The disk failed, or took too long.
    Disk,
    /// The store failed.
    Store(StoreError),
}

/// A load that others may wait for.
struct Flight {
    ticket: Ticket,
    landing: Landing<Result<Found, FetchError>>,
    /// Whether it is still looking into L3.
    is_on_disk: AtomicBool,
    /// Whether it asks the store, too.
    asks_store: bool,
}

/// The end of the time that the disk has.
pub(super) type Patience = Shared<tokio::time::Sleep>;

/// The loads under way, by database and key.
#[derive(Default)]
pub(super) struct Flights(DashMap<(usize, Bytes), Arc<Flight>>);

/// What hydrate found for one key, kept until the attempt ends. Its own ticket says whether a write has
/// come between.
pub(super) struct Pin {
    cache: Arc<Inner>,
    db: usize,
    key: Bytes,
    hash: u64,
    ticket: Ticket,
    found: Found,
    /// The attempt has removed the key.
    gone: AtomicBool,
}

/// Puts pins in the order that [`find`] needs.
pub(super) fn sort(pins: &mut [Pin]) {
    pins.sort_unstable_by_key(|pin| pin.hash);
}

/// The pin of a key among sorted ones, unless the attempt has removed the key.
pub(super) fn find<'a>(pins: &'a [Pin], db: usize, key: Key<'_>) -> Option<&'a Pin> {
    let from = pins.partition_point(|pin| pin.hash < key.hash);
    let same_hash = pins[from..].iter().take_while(|pin| pin.hash == key.hash);
    same_hash.filter(|pin| !pin.gone.load(Relaxed)).find(|pin| pin.is_of(db, key))
}

impl Pin {
    fn is_of(&self, db: usize, key: Key<'_>) -> bool {
        self.hash == key.hash && self.db == db && *self.key == *key.bytes
    }

    /// Whether it is of one of these keys.
    pub(super) fn is_among(&self, db: usize, keys: &[(Key<'_>, Use)]) -> bool {
        keys.iter().any(|(key, _)| self.is_of(db, *key))
    }

    /// Whether no write has overtaken it.
    pub(super) fn is_current(&self) -> bool {
        self.cache.memory.has_ticket(self.hash, self.ticket)
    }

    /// Notes that the attempt has removed the key.
    pub(super) fn remove(&self) {
        self.gone.store(true, Relaxed);
    }

    /// The bytes that it keeps from being freed.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.entry().map_or(0, Entry::size)
    }

    /// The entry that was found.
    pub(super) fn entry(&self) -> Option<Entry<'_>> {
        self.found.entry.as_ref().map(|(entry, _)| entry.get())
    }

    /// What is known of the key's record.
    pub(super) fn known(&self) -> Known {
        self.found.known
    }

    /// Where it was found.
    pub(super) fn origin(&self) -> Option<Origin> {
        self.found.entry.as_ref().map(|(_, origin)| *origin)
    }

    /// The ticket that a write of the key cancels.
    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.cache.memory.release(self.hash, self.ticket);
    }
}

impl Inner {
    /// How long the disk is waited for, by all that is fetched at once.
    pub(super) fn patience(&self, writes: bool) -> Option<Patience> {
        self.disk_patience(writes).map(|limit| tokio::time::sleep(limit).shared())
    }

    /// Fetches a key from below, and pins what was found. A fetch for a write doesn't take a failure of
    /// the disk for an absence.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        db: usize,
        key: Bytes,
        hash: u64,
        writes: bool,
        patience: Option<Patience>,
    ) -> Result<Pin, FetchError> {
        let ticket = self.memory.ticket(db, hash);
        let (cache, gone) = (self.clone(), AtomicBool::new(false));
        let found = Found { entry: None, known: Known::Nothing };
        let mut pin = Pin { cache, db, key, hash, ticket, found, gone };
        match self.wait_for(&pin, writes, patience).await {
            Ok(found) => pin.found = found,
            Err(FetchError::Disk) if !writes => {}
            Err(error) => return Err(error),
        }
        Ok(pin)
    }

    async fn wait_for(
        self: &Arc<Self>,
        pin: &Pin,
        writes: bool,
        mut patience: Option<Patience>,
    ) -> Result<Found, FetchError> {
        let mut skips_disk = false;
        loop {
            let (flight, is_ours) = self.board(pin.db, &pin.key, pin.hash, writes, skips_disk);
            let landed = match patience.take() {
                Some(patience) => match select(flight.landing.wait(), patience).await {
                    Either::Left((landed, _)) => landed,
                    Either::Right(_) => {
                        skips_disk = true;
                        // If it is the store that is slow, that has a limit of its own.
                        if flight.is_on_disk.load(Relaxed) {
                            self.note_slow_disk();
                            if writes || !self.asks_below(pin.db, &pin.key, Use::Read) {
                                return Err(FetchError::Disk);
                            }
                        }
                        continue;
                    }
                },
                None => flight.landing.wait().await,
            };
            match landed {
                Some(landed) => return landed,
                // The flight's task died. Were it not the end for who started it, a store that always
                // panics would be called for ever.
                None if is_ours => {
                    let text = "the load's task died".into();
                    return Err(FetchError::Store(StoreError::Down(text)));
                }
                None => {}
            }
        }
    }

    /// Joins the flight for a key, or starts one; says whether it is a new one.
    fn board(
        self: &Arc<Self>,
        db: usize,
        key: &Bytes,
        hash: u64,
        writes: bool,
        skips_disk: bool,
    ) -> (Arc<Flight>, bool) {
        let asks_store = self.asks_store(db, key, writes);
        let place = self.flights.0.entry((db, key.clone()));
        if let Place::Occupied(place) = &place
            && self.may_join(place.get(), hash)
            && (!asks_store || place.get().asks_store)
            && (!skips_disk || !place.get().is_on_disk.load(Relaxed))
        {
            return (place.get().clone(), false);
        }
        let reads_disk = !skips_disk && self.memory.has_below(db, hash);
        let flight = Arc::new(Flight {
            ticket: self.memory.ticket(db, hash),
            landing: Landing::default(),
            is_on_disk: AtomicBool::new(reads_disk),
            asks_store,
        });
        let pilot =
            Pilot { cache: self.clone(), db, key: key.clone(), hash, flight: flight.clone() };
        // The map is let go before the task starts: one that can't start ends its flight at once.
        drop(place.insert(flight.clone()));
        match &self.disk {
            Some(disk) if reads_disk => disk.fly(pilot),
            _ => {
                let known = if skips_disk { Known::Nothing } else { Known::None };
                pilot.go_on_to_store(Ok(Found { entry: None, known }));
            }
        }
        (flight, true)
    }

    /// Whether the store is asked for what memory and disk don't have.
    fn asks_store(&self, db: usize, key: &[u8], writes: bool) -> bool {
        self.policies.of(db, key).is_some_and(|namespace| {
            namespace.read == Read::Through || writes && namespace.has_old_value()
        })
    }

    /// Whether what a flight brings is for later askers too: it lives, it has not failed, and no write
    /// has overtaken it.
    fn may_join(&self, flight: &Flight, hash: u64) -> bool {
        flight.landing.promises(Result::is_ok) && self.memory.has_ticket(hash, flight.ticket)
    }
}

/// Who carries a load through. Ends the flight when dropped, also by a panic of the store.
pub(super) struct Pilot {
    pub(super) cache: Arc<Inner>,
    pub(super) db: usize,
    pub(super) key: Bytes,
    pub(super) hash: u64,
    flight: Arc<Flight>,
}

impl Pilot {
    /// Ends the flight with what L3 gave, or, where that is nothing, goes on to the store.
    pub(super) fn go_on_to_store(self, from_disk: Result<Found, FetchError>) {
        self.flight.is_on_disk.store(false, Relaxed);
        let found = matches!(&from_disk, Ok(Found { entry: Some(_), .. }));
        let known = from_disk.as_ref().map_or(Known::Nothing, |found| found.known);
        if !found && let Some(record) = self.unflushed() {
            let entry = self.land(record, known);
            return self.flight.landing.land(Ok(Found { entry, known }));
        }
        if found || !self.flight.asks_store {
            return self.flight.landing.land(from_disk);
        }
        let runtime = self.cache.runtime().clone();
        runtime.spawn(async move {
            let result = self.load(known).await.map_err(FetchError::Store);
            self.flight.landing.land(result);
        });
    }

    /// What the key holds if the store doesn't have it yet: `Some(None)` if it is gone (SEMANTICS 12).
    fn unflushed(&self) -> Option<Option<Record>> {
        self.cache.policies.of(self.db, &self.key)?.line.as_ref()?.get(&self.key)
    }

    async fn load(&self, known: Known) -> Result<Found, StoreError> {
        let namespace = self.cache.policies.of(self.db, &self.key);
        let Some((namespace, (_, store))) =
            namespace.and_then(|namespace| Some((namespace, namespace.store.as_ref()?)))
        else {
            return Ok(Found { entry: None, known });
        };
        let stats = &namespace.stats;
        let started = std::time::Instant::now();
        let keys = [self.key.clone()];
        let loaded = tokio::time::timeout(self.cache.store_timeout(), store.load(&keys)).await;
        NamespaceStats::add(&stats.load_micros, started.elapsed().as_micros() as u64);
        let loaded =
            loaded.unwrap_or_else(|_| Err(StoreError::Timeout("the load took too long".into())));
        match loaded {
            Ok(mut records) => {
                NamespaceStats::add(&stats.loads, 1);
                Ok(Found { entry: self.land(records.pop().flatten(), known), known })
            }
            Err(error) => {
                NamespaceStats::add(&stats.load_errors, 1);
                Err(error)
            }
        }
    }

    /// Installs what came, if no write has overtaken it, and hands it to those who wait.
    fn land(&self, record: Option<Record>, known: Known) -> Option<(Arc<EntryRef>, Origin)> {
        let cache = &self.cache;
        let now = cache.clock.now();
        let record = record.filter(|record| record.deadline == 0 || record.deadline > now)?;
        cache.note_version(record.version);
        let access = cache.memory.rules().eviction().first_access(now);
        let meta = Meta { deadline: record.deadline, access, ..Meta::default() };
        let meta = cache.policies.stamp(self.db, &self.key, now, meta);
        let meta = fresh_within(meta, record.fresh_for, now);
        let entry = EntryRef::new(&self.key, &[&record.value], &meta);
        if record.fresh_for.is_some_and(|fresh_for| fresh_for.is_zero()) {
            // Only for those who have asked already.
            return Some((Arc::new(entry), Origin::Store));
        }
        Some((self.install(entry, known), Origin::Store))
    }

    /// Installs an entry; this is known of the key's record.
    pub(super) fn install(&self, entry: EntryRef, known: Known) -> Arc<EntryRef> {
        let Self { cache, db, key, hash, flight } = self;
        if !cache.turns.is_unknown(*db, key)
            && let Some(installed) = entry.try_clone()
        {
            cache.memory.land(*db, *hash, flight.ticket, installed, known, cache.clock.now());
        }
        Arc::new(entry)
    }
}

/// A copy is good for as long as its namespace and its store both say.
fn fresh_within(meta: Meta, fresh_for: Option<Duration>, now: u64) -> Meta {
    let Some(fresh_for) = fresh_for else { return meta };
    let end = now.saturating_add(u64::try_from(fresh_for.as_millis()).unwrap_or(u64::MAX)).max(1);
    let fresh_until = if meta.fresh_until == 0 { end } else { meta.fresh_until.min(end) };
    Meta { fresh_until, ..meta }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        let ticket = self.flight.ticket;
        self.cache.memory.release(self.hash, ticket);
        let place = (self.db, self.key.clone());
        self.cache.flights.0.remove_if(&place, |_, flight| flight.ticket == ticket);
        self.flight.landing.lose();
    }
}
