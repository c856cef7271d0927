//! What all sessions share: the cache, the settings, the clients, and what is counted.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::{
    histogram::{Durations, Histogram, Sampler},
    monitor,
    session::Client,
    slowlog::Slowlog,
    table,
};
use crate::{
    cache::{
        Cache,
        counter::{Counter, Counters, Lookups, Tally},
    },
    config::Live,
    store::{Store, breaker::Breaker},
};

/// What a worker counts; only the worker writes, anybody reads.
pub struct WorkerStats {
    /// Lookups.
    pub keys: Counters,
    /// Commands carried out.
    pub commands: Counter,
    /// By the row's index.
    pub rows: Box<[RowStats]>,
    /// Connections accepted.
    pub connections: Counter,
    /// Bytes received.
    pub received: Counter,
    /// Bytes sent.
    pub sent: Counter,
    /// Reads that brought something.
    pub reads: Counter,
    /// Writes that sent something.
    pub writes: Counter,
    /// Error replies.
    pub errors: Counter,
    /// Passwords that were wrong.
    pub denied: Counter,
    /// Clients closed because what they sent came to no end.
    pub query_limit_closed: Counter,
    /// Clients closed because they did not read their replies.
    pub output_limit_closed: Counter,
    /// How long its turns took, each with the commands of all connections that were ready.
    pub turns: Histogram,
    /// Which of the fast commands are timed.
    pub sampler: Sampler,
    /// Rounds of the worker's loop; of these those that were timed, and their nanoseconds.
    pub cycles: Counter,
    /// See `cycles`.
    pub timed_cycles: Counter,
    /// See `cycles`.
    pub cycle_nanos: Counter,
    /// Nanoseconds spent on removing what has expired, and how often not all of it was, for lack of time.
    pub expire_nanos: Counter,
    /// See `expire_nanos`.
    pub expire_cut_short: Counter,
    /// Connections of this worker now.
    pub clients: AtomicU32,
    /// Entries in the worker's own cache a moment ago, and their bytes.
    pub local_entries: AtomicU64,
    /// See `local_entries`.
    pub local_bytes: AtomicU64,
}

/// What a worker counts for one command.
#[derive(Default)]
pub struct RowStats {
    /// Times it was carried out.
    pub calls: Counter,
    /// How long it took; where it is fast, by samples that count for all.
    pub durations: Histogram,
    /// Times it was refused before it ran.
    pub rejected: Counter,
    /// Times it ended in an error.
    pub failed: Counter,
}

impl WorkerStats {
    /// Nothing has happened yet, in so many namespaces.
    pub fn new(namespaces: usize) -> Self {
        Self {
            keys: Counters::for_namespaces(namespaces),
            commands: Counter::default(),
            rows: (0..table::all().len()).map(|_| RowStats::default()).collect(),
            connections: Counter::default(),
            received: Counter::default(),
            sent: Counter::default(),
            reads: Counter::default(),
            writes: Counter::default(),
            errors: Counter::default(),
            denied: Counter::default(),
            query_limit_closed: Counter::default(),
            output_limit_closed: Counter::default(),
            turns: Histogram::default(),
            sampler: Sampler::default(),
            cycles: Counter::default(),
            timed_cycles: Counter::default(),
            cycle_nanos: Counter::default(),
            expire_nanos: Counter::default(),
            expire_cut_short: Counter::default(),
            clients: AtomicU32::new(0),
            local_entries: Default::default(),
            local_bytes: Default::default(),
        }
    }
}

/// Bits of [`Shared::attention`]: what dispatch has to look at before each command.
pub mod attention {
    /// Somebody monitors.
    pub const MONITOR: u32 = 1;
    /// Clients are paused.
    pub const PAUSE: u32 = 2;
}

/// What CLIENT PAUSE asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Until when, unix milliseconds.
    pub until: u64,
    /// Whether only writes wait.
    pub only_writes: bool,
}

/// How SHUTDOWN was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ShutdownRequest {
    /// Without waiting for clients.
    pub now: bool,
    /// Whether memory is saved for the next start; `None`: as `warm-restart` says.
    pub save: Option<bool>,
}

/// For how long more memory was used than allowed, in milliseconds, as far as looks at it tell.
#[derive(Debug, Default)]
pub struct Excess {
    /// Since when, unix milliseconds; 0: it isn't.
    since: AtomicU64,
    /// What is over.
    over: AtomicU64,
}

impl Excess {
    /// Notes a look. One thread looks.
    pub fn note(&self, is_above: bool, now: u64) {
        match (self.since.load(Relaxed), is_above) {
            (0, true) => self.since.store(now, Relaxed),
            (0, false) | (_, true) => {}
            (_, false) => {
                self.over.fetch_add(self.current(now), Relaxed);
                self.since.store(0, Relaxed);
            }
        }
    }

    /// For how long it has been so.
    pub fn current(&self, now: u64) -> u64 {
        match self.since.load(Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        }
    }

    /// For how long it was so, all in all.
    pub fn total(&self, now: u64) -> u64 {
        self.over.load(Relaxed) + self.current(now)
    }

    /// Starts again.
    pub fn reset(&self) {
        self.since.store(0, Relaxed);
        self.over.store(0, Relaxed);
    }
}

/// Entries that a thread of their own frees.
#[derive(Debug, Default)]
pub struct LazilyFreed {
    /// Those that wait for it.
    pub pending: AtomicU64,
    /// Those that it has freed.
    pub freed: AtomicU64,
}

/// What all sessions share.
pub struct Shared {
    /// The cache.
    pub cache: Cache,
    /// The stores and their names, in the order of the file.
    pub stores: Vec<(Box<str>, Arc<dyn Store>)>,
    /// The breakers of its stores.
    pub breakers: Vec<Breaker>,
    /// The settings.
    pub live: Arc<Live>,
    /// All connections, by number.
    pub clients: DashMap<u64, Arc<Client>>,
    /// The last number given to a client.
    pub last_client: AtomicU64,
    /// Each worker's counters.
    pub workers: Vec<Arc<WorkerStats>>,
    /// What dispatch must look at before each command (see [`attention`]).
    pub attention: AtomicU32,
    /// CLIENT PAUSE.
    pub pause: Mutex<Option<Pause>>,
    /// Wakes those who wait for a pause to end.
    pub unpaused: Notify,
    /// Those who watch all commands.
    pub monitors: Mutex<Vec<monitor::Watcher>>,
    /// The slow log.
    pub slowlog: Slowlog,
    /// LATENCY's events.
    pub latency: super::latency::Latency,
    /// Error replies by code.
    pub errors: DashMap<String, u64>,
    /// Connections refused because of `maxclients`.
    pub refused: AtomicU64,
    /// When the server started.
    pub started: Instant,
    /// The same, unix milliseconds.
    pub started_at: u64,
    /// Forty hexadecimal digits that name this run.
    pub run_id: String,
    /// The port that is listened on, 0 if none.
    pub port: AtomicU32,
    /// What is listened on: INFO's fields and their values.
    pub listeners: OnceLock<Vec<(&'static str, String)>>,
    /// The thread that brings memory back after a restart, if there is one.
    pub warming: OnceLock<thread::JoinHandle<()>>,
    /// Asks the server to end.
    pub shutdown: mpsc::UnboundedSender<ShutdownRequest>,
    /// Whether the server is ending.
    pub draining: AtomicBool,
    /// The most memory that was used at any look.
    pub peak_memory: AtomicU64,
    /// What was used before there were any keys.
    pub startup_memory: AtomicU64,
    /// For how long more was used than allowed.
    pub excess: Excess,
    /// What is freed beside the commands.
    pub lazily_freed: Arc<LazilyFreed>,
    /// Figures of a second ago, for instantaneous rates.
    pub rates: super::rates::Rates,
    /// Whether expired keys wait until they are read (DEBUG SET-ACTIVE-EXPIRE 0).
    pub expiry_off: AtomicBool,
}

impl Shared {
    /// The sum of a figure over all workers.
    pub fn sum(&self, figure: impl Fn(&WorkerStats) -> u64) -> u64 {
        self.workers.iter().map(|worker| figure(worker)).sum()
    }

    /// How long a command took, by its row's index.
    pub fn durations(&self, row: usize) -> Durations {
        let mut sum = Durations::default();
        let rows = self.workers.iter().filter_map(|worker| worker.rows.get(row));
        rows.for_each(|row| sum.add(&row.durations));
        sum
    }

    /// How long all commands took.
    pub fn all_durations(&self) -> Durations {
        let mut sum = Durations::default();
        let rows = self.workers.iter().flat_map(|worker| &worker.rows);
        rows.for_each(|row| sum.add(&row.durations));
        sum
    }

    /// The lookups of all keys.
    pub fn all_lookups(&self) -> Lookups {
        let mut sum = Lookups::default();
        self.workers
            .iter()
            .flat_map(|worker| worker.keys.tallies())
            .for_each(|tally| sum.add(tally));
        sum
    }

    /// The lookups of a namespace's keys, by its number.
    pub fn namespace_lookups(&self, number: usize) -> Lookups {
        let mut sum = Lookups::default();
        let tallies = self.workers.iter().filter_map(|worker| worker.keys.namespaces.get(number));
        tallies.for_each(|tally| sum.add(tally));
        sum
    }

    /// A figure of the lookups of all keys.
    pub fn lookups(&self, figure: fn(&Tally) -> &Counter) -> u64 {
        self.sum(|worker| worker.keys.all(figure))
    }

    /// Counts an error reply by its code.
    pub fn count_error(&self, code: &str) {
        // Codes are few; a client can't make new ones.
        *self.errors.entry(code.to_owned()).or_insert(0) += 1;
    }

    /// Ends a pause of the clients.
    pub fn unpause(&self) {
        let mut pause = self.pause.lock();
        *pause = None;
        self.set_attention(attention::PAUSE, false);
        drop(pause);
        self.unpaused.notify_waiters();
    }

    /// Sets or clears a bit of `attention`.
    pub fn set_attention(&self, bit: u32, on: bool) {
        if on {
            self.attention.fetch_or(bit, Relaxed);
        } else {
            self.attention.fetch_and(!bit, Relaxed);
        }
    }
}
