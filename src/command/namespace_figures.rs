//! What is known of a namespace: for INFO, LARDER.NAMESPACE, metrics and the page alike.

use std::{
    cmp::Reverse,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{figures::ratio, shared::Shared};
use crate::{
    cache::counter::Lookups,
    policy::{
        Namespace,
        behind::{Backlog, Line},
    },
};

/// What a namespace is, and what happened in it since the start.
#[derive(Clone, Debug)]
pub struct NamespaceFigures {
    /// Its prefix, what isn't printable escaped.
    pub prefix: String,
    /// The database in which it applies.
    pub db: usize,
    /// What a miss and a write do.
    pub mode: String,
    /// The name of its store; empty: none.
    pub store: String,
    /// Entries in memory.
    pub items: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Bytes that they may take.
    pub quota: Option<usize>,
    /// Lookups of its keys.
    pub lookups: Lookups,
    /// Keys loaded, or found missing in the store.
    pub loads: u64,
    /// Loads that the store failed.
    pub load_errors: u64,
    /// How long all of these took, in seconds.
    pub load_seconds: f64,
    /// Reads answered with a copy past its `ttl`.
    pub stale_served: u64,
    /// Reads answered by the memory of an absence.
    pub negative_hits: u64,
    /// Reads that waited for somebody else's load.
    pub stampedes_avoided: u64,
    /// Loads in the background, and those of them that failed.
    pub refreshes: u64,
    /// See `refreshes`.
    pub refresh_errors: u64,
    /// Keys written to the store, and those that failed.
    pub writes: u64,
    /// See `writes`.
    pub write_errors: u64,
    /// Writes that met a version of somebody else.
    pub conflicts: u64,
    /// What is written behind, if it is.
    pub behind: Option<BehindFigures>,
}

/// What a namespace, or several, have written behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct BehindFigures {
    /// What the store lacks now.
    pub backlog: Backlog,
    /// Changes taken in.
    pub changes: u64,
    /// Changes that the store has, of those that were coalesced the newest.
    pub flushed: u64,
    /// Calls that brought them.
    pub batches: u64,
    /// Calls that the store failed.
    pub retries: u64,
    /// Changes that the store refused.
    pub refusals: u64,
    /// Changes that were given up.
    pub dead_letters: u64,
}

fn get(figure: &AtomicU64) -> u64 {
    figure.load(Relaxed)
}

impl NamespaceFigures {
    /// Those of every namespace, in the order of their numbers.
    pub fn all(shared: &Shared) -> Vec<Self> {
        Self::busiest(shared, usize::MAX)
    }

    /// Those of the namespaces with the most lookups, where there are more than `most`.
    pub fn busiest(shared: &Shared, most: usize) -> Vec<Self> {
        let policies = shared.cache.policies();
        let tallies = shared.cache.memory().tallies();
        let numbers = 0..policies.iter().count();
        let mut lookups: Vec<_> =
            numbers.map(|number| (number, shared.namespace_lookups(number))).collect();
        if lookups.len() > most {
            lookups.sort_by_key(|(_, lookups)| Reverse(lookups.all()));
            lookups.truncate(most);
        }
        let figures = lookups.into_iter().map(|(number, lookups)| {
            let tally = tallies.get(number).copied().unwrap_or_default();
            let known = Self::of(policies.at(number));
            Self { items: tally.items, bytes: tally.bytes, lookups, ..known }
        });
        figures.collect()
    }

    /// What the namespace itself tells.
    fn of(namespace: &Namespace) -> Self {
        let stats = &namespace.stats;
        Self {
            prefix: one_word(&namespace.prefix),
            db: namespace.db,
            mode: namespace.mode(),
            store: namespace.store.as_ref().map_or("", |(name, _)| name).to_owned(),
            items: 0,
            bytes: 0,
            quota: namespace.quota,
            lookups: Lookups::default(),
            loads: get(&stats.loads),
            load_errors: get(&stats.load_errors),
            load_seconds: get(&stats.load_micros) as f64 / 1e6,
            stale_served: get(&stats.stale_served),
            negative_hits: get(&stats.negative_hits),
            stampedes_avoided: get(&stats.joined),
            refreshes: get(&stats.refreshes),
            refresh_errors: get(&stats.refresh_errors),
            writes: get(&stats.writes),
            write_errors: get(&stats.write_errors),
            conflicts: get(&stats.conflicts),
            behind: namespace.line.as_ref().map(|line| BehindFigures::of(line)),
        }
    }

    /// How long a load takes in the mean, in seconds; 0 where there was none.
    pub fn mean_load(&self) -> f64 {
        ratio(1, self.loads + self.load_errors) * self.load_seconds
    }

    /// What hits have saved: their number times the mean of a load, in seconds.
    pub fn seconds_saved(&self) -> f64 {
        self.lookups.hits() as f64 * self.mean_load()
    }
}

impl BehindFigures {
    /// Those of all namespaces together.
    pub fn sum(shared: &Shared) -> Self {
        let lines = shared.cache.policies().iter().filter_map(|namespace| namespace.line.as_ref());
        lines.map(|line| Self::of(line)).fold(Self::default(), Self::and)
    }

    fn and(self, other: Self) -> Self {
        Self {
            backlog: Backlog {
                records: self.backlog.records + other.backlog.records,
                bytes: self.backlog.bytes + other.backlog.bytes,
                lag: self.backlog.lag.max(other.backlog.lag),
            },
            changes: self.changes + other.changes,
            flushed: self.flushed + other.flushed,
            batches: self.batches + other.batches,
            retries: self.retries + other.retries,
            refusals: self.refusals + other.refusals,
            dead_letters: self.dead_letters + other.dead_letters,
        }
    }

    fn of(line: &Line) -> Self {
        let counters = line.counters();
        Self {
            backlog: line.backlog(),
            changes: get(&counters.changes),
            flushed: get(&counters.flushed),
            batches: get(&counters.batches),
            retries: get(&counters.retries),
            refusals: get(&counters.refusals),
            dead_letters: get(&counters.dead_letters),
        }
    }
}

/// A prefix without what would end its field or the line.
fn one_word(prefix: &[u8]) -> String {
    prefix.escape_ascii().to_string().replace(',', "\\x2c")
}
