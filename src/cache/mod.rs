//! The cache: the one place that knows in which order tiers and stores are asked and told.
//!
//! A command is tried while its keys' stripes are held ([`Cache::attempt`]): synchronous, and all there
//! is to a hit. When a key has to come from a store, or a write has to go to one, the attempt ends
//! *below* having changed nothing, and [`Cache::go_below`] takes over: it takes the keys' turns if they
//! write through, *hydrates* cold keys (once for all who ask), tries again with what it found pinned,
//! and *settles*: the store first, then memory, then the reply.

pub mod charge;
pub mod counter;
mod flight;
mod settle;
mod turns;
pub mod tx;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;

use crate::{
    clock::Clock,
    error::ClientError,
    policy::{Policies, Read, Write},
    store::StoreError,
    tier::memory::{Memory, Options},
};
use counter::Counters;
use flight::Pin;
use tx::{Change, Key, Start, Stop, Tx};

/// How long a store may take, unless told otherwise.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an attempt makes room before it gives up with `-OOM`.
const ROOM_TRIES: u32 = 4;
/// How often a write hydrates anew because other writes overtook it.
const HYDRATE_TRIES: u32 = 64;
/// Loads that one command has under way at once.
const LOADS_AT_ONCE: usize = 128;
/// What one command may pin beside memory: a quarter of it, but at least this many bytes.
const PINNED_LEAST: usize = 4 << 20;

/// What a command does with one of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It reads the value.
    Read,
    /// It changes the value, depending on the old one.
    Write,
    /// It replaces the value, whatever it was.
    Blind,
}

/// An attempt's keys and circumstances.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The database.
    pub db: usize,
    /// The time in unix milliseconds.
    pub now: u64,
    /// The keys, with what becomes of them.
    pub keys: &'a [(Key<'a>, Use)],
    /// Whether the command may change keys.
    pub writes: bool,
    /// The room that the command's arguments ask for, in bytes; 0 if it can't grow memory.
    pub room: usize,
    /// Whether hits keep entries warm.
    pub touch: bool,
    /// Where hits and misses are counted.
    pub counters: &'a Counters,
}

/// Why an attempt didn't end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// This is the answer.
    Client(ClientError),
    /// It has to go below; nothing has changed.
    Below,
}

/// Why one try of an attempt didn't end well.
enum Failed {
    /// There wasn't room for so many bytes more; nothing has changed.
    Room(usize),
    Refused(Refusal),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A cache, cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    memory: Memory,
    policies: Policies,
    flights: flight::Flights,
    turns: Arc<turns::Turns>,
    clock: Clock,
    runtime: Option<Handle>,
    /// `proto-max-bulk-len`.
    max_string: AtomicUsize,
    /// The newest version issued or seen (SEMANTICS 14).
    version: AtomicU64,
    /// In milliseconds.
    store_timeout: AtomicU64,
}

impl Inner {
    fn runtime(&self) -> &Handle {
        self.runtime.as_ref().expect("checked when a namespace has a store")
    }

    fn store_timeout(&self) -> Duration {
        Duration::from_millis(self.store_timeout.load(Relaxed))
    }

    /// Takes note of a version that a store returned, so that ours are newer.
    fn note_version(&self, seen: u64) {
        self.version.fetch_max(seen, Relaxed);
    }

    /// A version newer than all before: the clock in microseconds, or one more than the last.
    fn next_version(&self) -> u64 {
        let now = self.clock.now() * 1000;
        let next = |last: u64| Some(now.max(last + 1));
        self.version.fetch_update(Relaxed, Relaxed, next).map_or(now, |last| now.max(last + 1))
    }
}

impl Cache {
    /// A cache in memory, with policies. Stores need a tokio runtime to be called on.
    ///
    /// # Panics
    /// If a namespace has a store and there is no runtime.
    pub fn new(
        options: &Options,
        policies: Policies,
        clock: Clock,
        runtime: Option<Handle>,
    ) -> Self {
        let needs_runtime = policies.iter().any(|namespace| namespace.store.is_some());
        assert!(runtime.is_some() || !needs_runtime, "a namespace with a store needs a runtime");
        Self(Arc::new(Inner {
            memory: Memory::new(options),
            policies,
            flights: flight::Flights::default(),
            turns: Arc::default(),
            clock,
            runtime,
            max_string: AtomicUsize::new(512 << 20),
            version: AtomicU64::new(0),
            store_timeout: AtomicU64::new(STORE_TIMEOUT.as_millis() as u64),
        }))
    }

    /// The memory tier.
    #[inline]
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// Changes the length of the longest string that a command may make.
    pub fn set_max_string(&self, bytes: usize) {
        self.0.max_string.store(bytes, Relaxed);
    }

    /// Changes how long a store may take: then a load fails, and a write's outcome is unknown.
    pub fn set_store_timeout(&self, limit: Duration) {
        self.0.store_timeout.store(limit.as_millis() as u64, Relaxed);
    }

    /// The namespaces.
    pub fn policies(&self) -> &Policies {
        &self.0.policies
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Tries a command while holding the stripes of its keys. `run` is called at most once with effect;
    /// it must take back what it replied before it is called again.
    #[inline]
    pub fn attempt(
        &self,
        job: &Job<'_>,
        mut run: impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Refusal> {
        if !self.0.policies.is_empty() && self.writes_through(job) {
            return Err(Refusal::Below);
        }
        self.try_with(job, &[], None, &mut run)
    }

    #[inline]
    fn try_with(
        &self,
        job: &Job<'_>,
        pins: &[Pin],
        mut staged: Option<&mut Vec<Change>>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Refusal> {
        match self.try_once(job, job.room, &[], pins, staged.as_deref_mut(), run) {
            Err(Failed::Room(room)) => self.try_again(job, room, pins, staged, run),
            Err(Failed::Refused(refusal)) => Err(refusal),
            Ok(()) => Ok(()),
        }
    }

    /// Goes on with an attempt that found too little room.
    #[cold]
    fn try_again(
        &self,
        job: &Job<'_>,
        mut room: usize,
        pins: &[Pin],
        mut staged: Option<&mut Vec<Change>>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Refusal> {
        // What the command works on must not make the room for what it makes of it.
        let spare: Vec<u64> = job.keys.iter().map(|(key, _)| key.hash).collect();
        for _ in 1..ROOM_TRIES {
            match self.try_once(job, room, &spare, pins, staged.as_deref_mut(), run) {
                Err(Failed::Room(more)) => room = more,
                Err(Failed::Refused(refusal)) => return Err(refusal),
                Ok(()) => return Ok(()),
            }
        }
        Err(Refusal::Client(ClientError::OOM))
    }

    #[inline]
    fn try_once(
        &self,
        job: &Job<'_>,
        room: usize,
        spare: &[u64],
        pins: &[Pin],
        mut staged: Option<&mut Vec<Change>>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Failed> {
        let inner = &*self.0;
        if room != 0 {
            self.make_room(job, room, spare)?;
        }
        if let Some(staged) = &mut staged {
            staged.clear();
        }
        let start = Start { cache: inner, job, pins, staged, room };
        let mut tx = Tx::begin(start, job.keys.iter().map(|(key, _)| key.hash));
        if !inner.policies.is_empty() && !self.is_resident(job, &mut tx)? {
            return Err(Refusal::Below.into());
        }
        match run(&mut tx) {
            Ok(()) => {
                drop(tx);
                self.trim(job);
                Ok(())
            }
            Err(Stop::Client(error)) => Err(Refusal::Client(error).into()),
            Err(Stop::Room(bytes)) => Err(Failed::Room(bytes)),
            Err(Stop::Stray) => {
                let text = "ERR the command touched a key that it didn't name";
                Err(Refusal::Client(ClientError::new(text)).into())
            }
        }
    }

    #[inline]
    fn make_room(&self, job: &Job<'_>, room: usize, spare: &[u64]) -> Result<(), Refusal> {
        let memory = &self.0.memory;
        let stripe = job.keys.first().map_or(0, |(key, _)| memory.stripe_of(key.hash));
        let need = match memory.rules().weight {
            crate::tier::Weight::Bytes => room,
            crate::tier::Weight::Entries => job.keys.len(),
        };
        memory
            .make_room(need, stripe, job.now, spare)
            .map_err(|_| Refusal::Client(ClientError::OOM))
    }

    /// Makes up for what the tables themselves have grown by, before the command is answered.
    #[inline]
    fn trim(&self, job: &Job<'_>) {
        let memory = &self.0.memory;
        if job.room != 0 && memory.used() > memory.rules().limit() {
            let stripe = job.keys.first().map_or(0, |(key, _)| memory.stripe_of(key.hash));
            let _ = memory.make_room(0, stripe, job.now, &[]);
        }
    }

    /// Whether no key has to be loaded before the command may run.
    fn is_resident(&self, job: &Job<'_>, tx: &mut Tx<'_>) -> Result<bool, Refusal> {
        for (key, use_) in job.keys {
            let loads = *use_ != Use::Blind && self.reads_through(job.db, key.bytes);
            let stray = |_| Refusal::Client(ClientError::new("ERR key is not held"));
            if loads && !tx.is_resident(*key, job.writes).map_err(stray)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn reads_through(&self, db: usize, key: &[u8]) -> bool {
        self.0.policies.of(db, key).is_some_and(|namespace| namespace.read == Read::Through)
    }

    /// Whether the command writes a key that its namespace writes through.
    fn writes_through(&self, job: &Job<'_>) -> bool {
        job.keys.iter().any(|(key, use_)| {
            let namespace = self.0.policies.of(job.db, key.bytes);
            *use_ != Use::Read && namespace.is_some_and(|found| found.write == Write::Through)
        })
    }

    /// Carries out a command whose attempt ended below.
    pub async fn go_below(
        &self,
        job: &Job<'_>,
        mut run: impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), ClientError> {
        let settles = self.writes_through(job);
        let turn = if settles { Some(self.take_turns(job).await?) } else { None };
        let mut staged = Vec::new();
        let mut pins: Vec<Pin> = Vec::new();
        for _ in 0..HYDRATE_TRIES {
            let stage = settles.then_some(&mut staged);
            let job = Job { now: self.0.clock.now(), ..*job };
            match self.try_with(&job, &pins, stage, &mut run) {
                Ok(()) => return self.settle(turn, staged).await,
                Err(Refusal::Client(error)) => return Err(error),
                Err(Refusal::Below) => {
                    // A read had asked before any write that has overtaken what it holds.
                    pins.retain(|pin| !job.writes || pin.is_current());
                    self.hydrate(&job, &mut pins).await?;
                }
            }
        }
        Err(ClientError::new("TRYAGAIN the keys change faster than they can be loaded"))
    }

    async fn take_turns(&self, job: &Job<'_>) -> Result<turns::Turn, ClientError> {
        let place = |(key, _): &(Key<'_>, Use)| (job.db, Bytes::copy_from_slice(key.bytes));
        self.0.turns.take(job.keys.iter().map(place).collect(), self.0.store_timeout()).await
    }

    /// Fetches the keys that are neither in memory nor pinned, concurrently, and pins them.
    async fn hydrate(&self, job: &Job<'_>, pins: &mut Vec<Pin>) -> Result<(), ClientError> {
        let fetch =
            |key: Key<'_>| self.0.fetch(job.db, Bytes::copy_from_slice(key.bytes), key.hash);
        let cold = self.cold_keys(job, pins);
        let mut fetched = stream::iter(cold.into_iter().map(fetch)).buffer_unordered(LOADS_AT_ONCE);
        let most = (self.0.memory.rules().limit() / 4).max(PINNED_LEAST);
        let mut size: usize = pins.iter().map(Pin::size).sum();
        while let Some(pin) = fetched.next().await {
            let pin = pin.map_err(|error| explain(job, error))?;
            size += pin.size();
            // One value alone is bounded by its own length.
            if size > most && !pins.is_empty() {
                return Err(ClientError::OOM);
            }
            pins.push(pin);
        }
        flight::sort(pins);
        Ok(())
    }

    /// The keys, each once, that have to be loaded.
    fn cold_keys<'a>(&self, job: &Job<'a>, pins: &[Pin]) -> Vec<Key<'a>> {
        let loads = |(key, use_): &&(Key<'_>, Use)| {
            *use_ != Use::Blind && self.reads_through(job.db, key.bytes)
        };
        let is_cold = |key: &Key<'_>| {
            flight::find(pins, job.db, *key).is_none() && !self.is_in_memory(job, *key)
        };
        let keys = job.keys.iter().filter(loads).map(|(key, _)| *key);
        let mut cold: Vec<_> = keys.filter(is_cold).collect();
        cold.sort_unstable_by_key(|key| (key.hash, key.bytes));
        cold.dedup_by_key(|key| key.bytes);
        cold
    }

    fn is_in_memory(&self, job: &Job<'_>, key: Key<'_>) -> bool {
        let core = self.0.memory.lock(self.0.memory.stripe_of(key.hash));
        let Some(shelf) = core.shelf(job.db) else { return false };
        let slot = shelf.find(key.hash, key.bytes);
        slot.is_some_and(|slot| crate::tier::shelf::is_live(shelf.entry(slot), job.now))
    }
}

/// A load's failure as a client sees it. A write that couldn't begin has no unknown outcome
/// (SEMANTICS 3).
fn explain(job: &Job<'_>, error: StoreError) -> ClientError {
    match error {
        StoreError::Timeout(text) if job.writes => StoreError::Down(text).client_error(),
        error => error.client_error(),
    }
}

#[cfg(test)]
mod tests;
