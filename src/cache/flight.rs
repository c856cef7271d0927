//! Loads under way: one for each key, whoever asks, and pins that carry what they brought.
//!
//! A flight runs on the background runtime, so that a client that goes away doesn't end it. Those who
//! ask while it is under way wait for it; if its task dies without an answer, they ask again, and
//! exactly one of them becomes the next flight (who had started the dead one is told of it). A flight that a write has overtaken (its ticket is
//! cancelled, SEMANTICS 1) is not joined any more, and what it brings is not installed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use dashmap::{DashMap, Entry as Place};
use tokio::sync::watch;

use super::{Inner, tx::Key};
use crate::{
    policy::NamespaceStats,
    store::{Record, StoreError},
    tier::{
        entry::{Entry, EntryRef, Meta},
        memory::Ticket,
    },
};

/// What a load brought: the entry, or that there is none.
pub(super) type Found = Option<Arc<EntryRef>>;
type Landing = Option<Result<Found, StoreError>>;

/// A load that others may wait for.
struct Flight {
    ticket: Ticket,
    landing: watch::Receiver<Landing>,
}

/// The loads under way, by database and key.
#[derive(Default)]
pub(super) struct Flights(DashMap<(usize, Bytes), Flight>);

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
        self.found.as_deref().map(EntryRef::get)
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
    /// Fetches a key from its store, and pins what was found.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        db: usize,
        key: Bytes,
        hash: u64,
    ) -> Result<Pin, StoreError> {
        let ticket = self.memory.ticket(db, hash);
        let (cache, gone) = (self.clone(), AtomicBool::new(false));
        let mut pin = Pin { cache, db, key, hash, ticket, found: None, gone };
        loop {
            let (mut landing, is_ours) = self.board(db, &pin.key, hash);
            let landed = landing.wait_for(Option::is_some).await;
            match landed {
                Ok(landed) => {
                    pin.found = landed.clone().expect("waited for it")?;
                    return Ok(pin);
                }
                // The flight's task died. Were it not the end for who started it, a store that always
                // panics would be called for ever.
                Err(_) if is_ours => return Err(StoreError::Down("the load's task died".into())),
                Err(_) => {}
            }
        }
    }

    /// Joins the flight for a key, or starts one; says whether it is a new one.
    fn board(
        self: &Arc<Self>,
        db: usize,
        key: &Bytes,
        hash: u64,
    ) -> (watch::Receiver<Landing>, bool) {
        let place = self.flights.0.entry((db, key.clone()));
        if let Place::Occupied(place) = &place
            && self.may_join(place.get(), hash)
        {
            return (place.get().landing.clone(), false);
        }
        let ticket = self.memory.ticket(db, hash);
        let (sender, landing) = watch::channel(None);
        let pilot = Pilot { cache: self.clone(), db, key: key.clone(), hash, ticket };
        // The map is let go before the task starts: one that can't start ends its flight at once.
        drop(place.insert(Flight { ticket, landing: landing.clone() }));
        self.runtime().spawn(async move {
            let result = pilot.fly().await;
            let _ = sender.send(Some(result));
        });
        (landing, true)
    }

    /// Whether what a flight brings is for later askers too: it lives, it has not failed, and no write
    /// has overtaken it.
    fn may_join(&self, flight: &Flight, hash: u64) -> bool {
        let flies = match &*flight.landing.borrow() {
            None => flight.landing.has_changed().is_ok(),
            Some(landed) => landed.is_ok(),
        };
        flies && self.memory.has_ticket(hash, flight.ticket)
    }
}

/// Who carries a load through. Ends the flight when dropped, also by a panic of the store.
struct Pilot {
    cache: Arc<Inner>,
    db: usize,
    key: Bytes,
    hash: u64,
    ticket: Ticket,
}

impl Pilot {
    async fn fly(&self) -> Result<Found, StoreError> {
        let namespace = self.cache.policies.of(self.db, &self.key);
        let Some((namespace, (_, store))) =
            namespace.and_then(|namespace| Some((namespace, namespace.store.as_ref()?)))
        else {
            return Ok(None);
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
                Ok(self.land(records.pop().flatten()))
            }
            Err(error) => {
                NamespaceStats::add(&stats.load_errors, 1);
                Err(error)
            }
        }
    }

    /// Installs what came, if no write has overtaken it, and hands it to those who wait.
    fn land(&self, record: Option<Record>) -> Found {
        let Pilot { cache, db, key, hash, ticket } = self;
        let now = cache.clock.now();
        let record = record.filter(|record| record.deadline == 0 || record.deadline > now)?;
        cache.note_version(record.version);
        let access = cache.memory.rules().eviction().first_access(now);
        let meta = Meta { deadline: record.deadline, access, ..Meta::default() };
        let meta = cache.policies.stamp(*db, key, now, meta);
        let entry = EntryRef::new(key, &[&record.value], &meta);
        if !cache.turns.is_unknown(*db, key)
            && let Some(installed) = entry.try_clone()
        {
            cache.memory.land(*db, *hash, *ticket, installed, now);
        }
        Some(Arc::new(entry))
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.cache.memory.release(self.hash, self.ticket);
        let place = (self.db, self.key.clone());
        self.cache.flights.0.remove_if(&place, |_, flight| flight.ticket == self.ticket);
    }
}
