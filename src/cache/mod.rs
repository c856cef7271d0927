//! The cache: the one place that knows in which order tiers and stores are asked and told.
//!
//! A command is tried while its keys' stripes are held ([`Cache::attempt`]): synchronous, and all there
//! is to a hit. When a key has to come from a store, or a write has to go to one, the attempt ends
//! *below* having changed nothing, and [`Cache::go_below`] takes over: it takes the keys' turns if they
//! write through, *hydrates* cold keys (once for all who ask), tries again with what it found pinned,
//! and *settles*: the store first, then memory, then the reply.

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
use futures_util::future::try_join_all;
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

/// How long a store may take before the client is told that the outcome is unknown.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an attempt makes room before it gives up with `-OOM`.
const ROOM_TRIES: u32 = 4;
/// How often a write hydrates anew because other writes overtook it.
const HYDRATE_TRIES: u32 = 64;

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
}

impl Inner {
    fn runtime(&self) -> &Handle {
        self.runtime.as_ref().expect("checked when a namespace has a store")
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
        let inner = &*self.0;
        let mut room = job.room;
        for _ in 0..ROOM_TRIES {
            if room != 0 {
                self.make_room(job, room)?;
            }
            if let Some(staged) = &mut staged {
                staged.clear();
            }
            let start = Start {
                memory: &inner.memory,
                policies: &inner.policies,
                db: job.db,
                now: job.now,
                touch: job.touch,
                counters: job.counters,
                pins,
                staged: staged.as_deref_mut(),
                room,
                max_string: inner.max_string.load(Relaxed),
            };
            let mut tx = Tx::begin(start, job.keys.iter().map(|(key, _)| key.hash));
            if !inner.policies.is_empty() && !self.is_resident(job, &mut tx)? {
                return Err(Refusal::Below);
            }
            match run(&mut tx) {
                Ok(()) => return Ok(()),
                Err(Stop::Client(error)) => return Err(Refusal::Client(error)),
                Err(Stop::Room(bytes)) => room = bytes,
                Err(Stop::Stray) => {
                    let text = "ERR the command touched a key that it didn't name";
                    return Err(Refusal::Client(ClientError::new(text)));
                }
            }
        }
        Err(Refusal::Client(ClientError::OOM))
    }

    #[inline]
    fn make_room(&self, job: &Job<'_>, room: usize) -> Result<(), Refusal> {
        let memory = &self.0.memory;
        let stripe = job.keys.first().map_or(0, |(key, _)| memory.stripe_of(key.hash));
        let need = match memory.rules().weight {
            crate::tier::Weight::Bytes => room,
            crate::tier::Weight::Entries => job.keys.len(),
        };
        memory.make_room(need, stripe, job.now).map_err(|_| Refusal::Client(ClientError::OOM))
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
        let turn = if settles { Some(self.take_turns(job).await) } else { None };
        let mut staged = Vec::new();
        let mut pins: Vec<Pin> = Vec::new();
        for _ in 0..HYDRATE_TRIES {
            let stage = settles.then_some(&mut staged);
            let job = Job { now: self.0.clock.now(), ..*job };
            match self.try_with(&job, &pins, stage, &mut run) {
                Ok(()) => return self.settle(turn, staged).await,
                Err(Refusal::Client(error)) => return Err(error),
                Err(Refusal::Below) => {
                    pins.clear();
                    pins = self.hydrate(&job).await.map_err(|error| error.client_error())?;
                }
            }
        }
        Err(ClientError::new("TRYAGAIN the keys change faster than they can be loaded"))
    }

    async fn take_turns(&self, job: &Job<'_>) -> turns::Turn {
        let place = |(key, _): &(Key<'_>, Use)| (job.db, Bytes::copy_from_slice(key.bytes));
        self.0.turns.take(job.keys.iter().map(place).collect()).await
    }

    /// Fetches the keys that aren't in memory, concurrently.
    async fn hydrate(&self, job: &Job<'_>) -> Result<Vec<Pin>, StoreError> {
        let loads = |(key, use_): &&(Key<'_>, Use)| {
            *use_ != Use::Blind && self.reads_through(job.db, key.bytes)
        };
        let cold = job.keys.iter().filter(loads).filter(|(key, _)| !self.is_in_memory(job, *key));
        let fetch = |(key, _): &(Key<'_>, Use)| {
            self.0.fetch(job.db, Bytes::copy_from_slice(key.bytes), key.hash)
        };
        try_join_all(cold.map(fetch)).await
    }

    fn is_in_memory(&self, job: &Job<'_>, key: Key<'_>) -> bool {
        let core = self.0.memory.lock(self.0.memory.stripe_of(key.hash));
        let Some(shelf) = core.shelf(job.db) else { return false };
        let slot = shelf.find(key.hash, key.bytes);
        slot.is_some_and(|slot| crate::tier::shelf::is_live(shelf.entry(slot), job.now))
    }
}
