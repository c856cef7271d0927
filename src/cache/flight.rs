//! Loads under way: one for each key, whoever asks, and pins that carry what they brought.
//!
//! A flight runs on the background runtime, so that a client that goes away doesn't end it. Those who
//! ask while it is under way wait for it; if its task dies without an answer, they ask again, and
//! exactly one of them becomes the next flight (who had started the dead one is told of it). A flight
//! that a write has overtaken (its ticket is cancelled, SEMANTICS 1) is not joined any more, and what it
//! brings is not installed.
//!
//! A flight looks into L3 first, on one of its threads, and then, in a namespace that reads through, asks
//! the store ([`super::pilot`]). Who waits too long for the disk takes it for a miss, if all they want is to
//! read (SEMANTICS 3), or asks the store without it.
//!
//! A flight may have an old copy that it is to renew. Where the store fails, or is slow, those who only read
//! take that; a *refresh* renews a copy that is still good, and nobody waits for it.

use std::{
    future::pending,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use dashmap::{DashMap, Entry as Place};
use futures_util::future::{FutureExt, Shared};
use tokio::time::{Instant, sleep_until};

use super::{
    Inner, Use,
    landing::Landing,
    pilot::Pilot,
    tx::{Due, Key},
};
use crate::{
    policy::{Age, NamespaceStats, Read},
    store::StoreError,
    tier::{
        demote::Known,
        entry::{Entry, EntryRef},
        shelf::is_live,
        tickets::Ticket,
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
    /// It is an old copy, in want of a better one.
    Stale,
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
pub(super) struct Flight {
    pub(super) ticket: Ticket,
    pub(super) landing: Landing<Result<Found, FetchError>>,
    /// Whether it is still looking into L3.
    pub(super) is_on_disk: AtomicBool,
    /// Whether it asks the store for what memory and disk don't have.
    pub(super) asks_store: bool,
    /// The copy that it is to renew, once that is known.
    pub(super) old: OnceLock<Arc<EntryRef>>,
    /// Who took over when it died: for all who waited, however late they hear of it.
    successor: OnceLock<Arc<Flight>>,
    begun: Instant,
}

impl Flight {
    fn new(ticket: Ticket, is_on_disk: bool, asks_store: bool, old: Option<EntryRef>) -> Self {
        Self {
            ticket,
            landing: Landing::default(),
            is_on_disk: AtomicBool::new(is_on_disk),
            asks_store,
            old: old.map_or_else(OnceLock::new, |old| OnceLock::from(Arc::new(old))),
            successor: OnceLock::new(),
            begun: Instant::now(),
        }
    }
}

/// The end of the time that the disk has.
pub(super) type Patience = Shared<tokio::time::Sleep>;

/// The loads under way, by database and key.
#[derive(Default)]
pub(super) struct Flights(pub(super) DashMap<(usize, Bytes), Arc<Flight>>);

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
        let use_ = if writes { Use::Write } else { Use::Read };
        let namespace = self.asks_below(pin.db, &pin.key, use_);
        let mut soft = Soft::of(self, namespace.filter(|_| !writes));
        let mut skips_disk = false;
        let (mut flight, mut is_ours) =
            self.board(pin.db, &pin.key, pin.hash, (namespace, writes, skips_disk));
        if !is_ours {
            self.count(namespace, |stats| &stats.joined);
        }
        let mut has_died = false;
        loop {
            let landed = tokio::select! {
                biased;
                landed = flight.landing.wait() => landed,
                old = soft.passes(&flight) => return Ok(self.serve_stale(namespace, old)),
                () = has_passed(&mut patience) => {
                    patience = None;
                    skips_disk = true;
                    // If it is the store that is slow, that has a limit of its own.
                    if flight.is_on_disk.load(Relaxed) {
                        self.note_slow_disk();
                        if writes || namespace.is_none() {
                            return Err(FetchError::Disk);
                        }
                    }
                    (flight, is_ours) =
                        self.board(pin.db, &pin.key, pin.hash, (namespace, writes, skips_disk));
                    continue;
                }
            };
            let failure = match landed {
                Some(Err(FetchError::Store(why))) => why,
                Some(landed) => return landed,
                // The flight's task died. Were it not the end for who started it, a store that always
                // panics would be called for ever.
                None if is_ours => StoreError::Down("the load's task died".into()),
                None => {
                    let board =
                        || self.board(pin.db, &pin.key, pin.hash, (namespace, writes, skips_disk));
                    (flight, is_ours) = match std::mem::replace(&mut has_died, true) {
                        false => take_over(&flight, board),
                        // There is no chain of them.
                        true => board(),
                    };
                    continue;
                }
            };
            return match self.old_copy(&flight) {
                Some(old) if !writes && failure.is_stores_fault() => {
                    Ok(self.serve_stale(namespace, old))
                }
                _ => Err(FetchError::Store(failure)),
            };
        }
    }

    /// The copy that a flight is to renew, if it may still be shown.
    fn old_copy(&self, flight: &Flight) -> Option<Arc<EntryRef>> {
        flight.old.get().filter(|old| is_live(old.get(), self.clock.now())).cloned()
    }

    fn serve_stale(&self, namespace: Option<usize>, old: Arc<EntryRef>) -> Found {
        self.count(namespace, |stats| &stats.stale_served);
        Found { entry: Some((old, Origin::Stale)), known: Known::Nothing }
    }

    fn count(
        &self,
        namespace: Option<usize>,
        figure: impl FnOnce(&NamespaceStats) -> &std::sync::atomic::AtomicU64,
    ) {
        if let Some(at) = namespace {
            NamespaceStats::add(figure(&self.policies.at(at).stats), 1);
        }
    }

    /// Joins the flight for a key, or starts one; says whether it is a new one.
    fn board(
        self: &Arc<Self>,
        db: usize,
        key: &Bytes,
        hash: u64,
        (namespace, writes, skips_disk): (Option<usize>, bool, bool),
    ) -> (Arc<Flight>, bool) {
        let asks_store =
            namespace.is_some_and(|at| writes || self.policies.at(at).read == Read::Through);
        let place = self.flights.0.entry((db, key.clone()));
        if let Place::Occupied(place) = &place
            && self.may_join(place.get(), hash)
            && (!asks_store || place.get().asks_store)
            && (!skips_disk || !place.get().is_on_disk.load(Relaxed))
        {
            return (place.get().clone(), false);
        }
        let (ticket, old) = self.begin(db, key, hash, namespace);
        let renews = old.is_some();
        let reads_disk = !skips_disk && !renews && self.memory.has_below(db, hash);
        let flight = Arc::new(Flight::new(ticket, reads_disk, asks_store, old));
        let pilot = Pilot::new(self, (db, key, hash), &flight, namespace, false);
        // The map is let go before the task starts: one that can't start ends its flight at once.
        drop(place.insert(flight.clone()));
        match &self.disk {
            Some(disk) if reads_disk => disk.fly(pilot),
            _ => {
                // The copy may leave for the disk in the meantime.
                let known = if skips_disk || renews { Known::Nothing } else { Known::None };
                pilot.go_on_to_store(Ok(Found { entry: None, known }));
            }
        }
        (flight, true)
    }

    /// A ticket for a flight, and the stale copy in memory that it is to renew.
    fn begin(
        &self,
        db: usize,
        key: &Bytes,
        hash: u64,
        namespace: Option<usize>,
    ) -> (Ticket, Option<EntryRef>) {
        let Some(at) = namespace else { return (self.memory.ticket(db, hash), None) };
        let (times, now) = (self.policies.times(at), self.clock.now());
        let (ticket, found) = self.memory.ticket_over(db, hash, key);
        let is_stale = |old: &EntryRef| times.age(old.get().kept_until(), now) == Age::Stale;
        (ticket, found.filter(is_stale))
    }

    /// Starts a load beside a copy that is still good.
    pub(super) fn refresh(self: &Arc<Self>, db: usize, key: Key<'_>, due: Due) {
        let Due { namespace, entry, ticket, .. } = due;
        let bytes = Bytes::copy_from_slice(key.bytes);
        let place = self.flights.0.entry((db, bytes.clone()));
        if let Place::Occupied(place) = &place
            && self.may_join(place.get(), key.hash)
        {
            // One that began before the copy was there: whoever meets it next tries again.
            entry.get().set_renewing(false);
            return self.memory.release(key.hash, ticket);
        }
        let flight = Arc::new(Flight::new(ticket, false, true, Some(entry)));
        let pilot = Pilot::new(self, (db, &bytes, key.hash), &flight, Some(namespace), true);
        drop(place.insert(flight));
        self.count(Some(namespace), |stats| &stats.refreshes);
        pilot.ask_store(namespace, Known::Nothing);
    }

    /// Whether what a flight brings is for later askers too: it lives, it has not failed, and no write
    /// has overtaken it.
    fn may_join(&self, flight: &Flight, hash: u64) -> bool {
        flight.landing.promises(Result::is_ok) && self.memory.has_ticket(hash, flight.ticket)
    }
}

/// The flight that follows one that died: whoever hears of that first starts it, or joins one that there is.
fn take_over(dead: &Flight, board: impl FnOnce() -> (Arc<Flight>, bool)) -> (Arc<Flight>, bool) {
    let mut is_ours = false;
    let next = dead.successor.get_or_init(|| {
        let (next, is_new) = board();
        is_ours = is_new;
        next
    });
    (next.clone(), is_ours)
}

/// Ends with the time that the disk has, if it has a limit.
async fn has_passed(patience: &mut Option<Patience>) {
    match patience {
        Some(patience) => patience.await,
        None => pending().await,
    }
}

/// A read's patience with a store, where there is an old copy.
struct Soft<'a> {
    cache: &'a Inner,
    limit: Option<std::time::Duration>,
}

impl<'a> Soft<'a> {
    fn of(cache: &'a Inner, namespace: Option<usize>) -> Self {
        let limit = namespace.and_then(|at| cache.policies.times(at).timeout_soft());
        Self { cache, limit }
    }

    /// Ends with the old copy when the flight has taken too long, from its beginning on: who comes later
    /// waits less.
    async fn passes(&mut self, flight: &Flight) -> Arc<EntryRef> {
        let Some(limit) = self.limit else { return pending().await };
        let mut until = flight.begun + limit;
        // Whether there is a copy shows when the disk has been asked.
        while flight.old.get().is_some() || flight.is_on_disk.load(Relaxed) {
            sleep_until(until).await;
            if let Some(old) = self.cache.old_copy(flight) {
                return old;
            }
            until = Instant::now() + limit;
        }
        self.limit = None;
        pending().await
    }
}
