//! Policies: when the store is asked, and when it is told, by key prefix.
//!
//! A [`Namespace`] is a prefix in one database with its policy, its time to live and its store; the
//! longest prefix wins. Without namespaces every key is plain cache, at no cost.

pub mod behind;
mod prefixes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    error::ClientError,
    store::Store,
    tier::{
        entry::Meta,
        groups::{Group, Grouping},
        log::RestartRule,
        shelf::next_random,
    },
};
use prefixes::Prefixes;

/// A set of names of which the configuration has one.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $type {
            /// The names, as the configuration has them.
            pub const NAMES: &[&str] = &[$($name),+];

            /// The name, as the configuration has it.
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }

            /// What has this name.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

named! {
    /// What a miss does.
    Read {
        /// It is a miss; the application loads.
        #[default]
        Aside = "aside",
        /// It loads from the store.
        Through = "through",
    }
}

named! {
    /// What a write does.
    Write {
        /// It changes the cache.
        #[default]
        None = "none",
        /// It changes the store first, then the cache, then it is answered.
        Through = "through",
        /// It is journaled, changes the cache and is answered; the store gets it later.
        Behind = "behind",
        /// It changes the store; the cached copy goes.
        Around = "around",
    }
}

named! {
    /// What a deadline that a client sets (EXPIRE, SET EX) limits (SEMANTICS 13).
    TtlMeans {
        /// The data: the store gets it, and what is past it is gone.
        #[default]
        Data = "data",
        /// The cached copy alone: the store doesn't learn of it.
        Cache = "cache",
    }
}

named! {
    /// What a restart does with copies that come from before it.
    Restart {
        /// They serve as ever.
        #[default]
        Keep = "keep",
        /// The store is asked before one serves.
        Revalidate = "revalidate",
        /// They are gone.
        Drop = "drop",
    }
}

/// The shorthands for what a miss and a write do (SEMANTICS 18).
const MODES: [(&str, Read, Write); 5] = [
    ("cache-aside", Read::Aside, Write::None),
    ("read-through", Read::Through, Write::None),
    ("write-through", Read::Through, Write::Through),
    ("write-behind", Read::Through, Write::Behind),
    ("write-around", Read::Through, Write::Around),
];

/// The names of the shorthands.
pub const MODE_NAMES: &[&str] = &[MODES[0].0, MODES[1].0, MODES[2].0, MODES[3].0, MODES[4].0];

/// What a shorthand stands for.
pub fn mode_named(name: &str) -> Option<(Read, Write)> {
    MODES.iter().find(|mode| mode.0 == name).map(|mode| (mode.1, mode.2))
}

/// The shorthand for what a miss and a write do; where there is none, both names.
pub fn mode_name(read: Read, write: Write) -> String {
    let mode = MODES.iter().find(|mode| (mode.1, mode.2) == (read, write));
    mode.map_or_else(|| format!("{}/{}", read.name(), write.name()), |mode| mode.0.to_owned())
}

/// What happened below the cache in one namespace.
#[derive(Debug, Default)]
pub struct NamespaceStats {
    /// Keys that were loaded from the store, or were found missing there.
    pub loads: AtomicU64,
    /// Loads that the store failed.
    pub load_errors: AtomicU64,
    /// Microseconds that loads took.
    pub load_micros: AtomicU64,
    /// Keys that were written to the store.
    pub writes: AtomicU64,
    /// Writes that the store failed or refused.
    pub write_errors: AtomicU64,
    /// Writes that the store passed over for a version that was never issued here, and that were sent again
    /// under a newer one.
    pub conflicts: AtomicU64,
    /// Reads that were answered with a copy past its `ttl`, since the store failed or was slow.
    pub stale_served: AtomicU64,
    /// Reads that were answered by the memory of an absence.
    pub negative_hits: AtomicU64,
    /// Those who waited for a load that somebody else had begun.
    pub joined: AtomicU64,
    /// Loads that were begun in the background, for copies past `refresh_after`.
    pub refreshes: AtomicU64,
    /// Of these, those that failed.
    pub refresh_errors: AtomicU64,
}

impl NamespaceStats {
    /// Adds to a figure.
    pub fn add(figure: &AtomicU64, count: u64) {
        figure.fetch_add(count, Relaxed);
    }
}

/// How many loads of one store are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loads {
    /// Keys of one call at most.
    pub batch: usize,
    /// Calls under way at once at most.
    pub at_once: usize,
}

impl Default for Loads {
    fn default() -> Self {
        Self { batch: 128, at_once: 4 }
    }
}

/// A prefix and what holds for its keys; by default all keys of database 0 are plain cache.
#[derive(Default)]
pub struct Namespace {
    /// The prefix; empty: all keys that no other namespace has.
    pub prefix: Box<[u8]>,
    /// The database in which it applies; elsewhere its keys are plain cache.
    pub db: usize,
    /// What a miss does.
    pub read: Read,
    /// What a write does.
    pub write: Write,
    /// At the start, as all times here; what they are now, [`Policies::times`] knows. How long a copy is good
    /// for (with [`Read::Aside`]: the deadline of keys set without one).
    pub ttl: Option<Duration>,
    /// By up to this percentage of it `ttl` is shorter, by chance, so that what came together doesn't end
    /// together.
    pub jitter: u8,
    /// What a client's deadline limits.
    pub ttl_means: TtlMeans,
    /// After this part of `ttl` a read is answered with the copy, and a new one is loaded beside it.
    pub refresh_after: Option<Duration>,
    /// How long beyond `ttl` a copy answers reads while the store fails, or is slower than
    /// `timeout_soft`.
    pub stale_if_error: Option<Duration>,
    /// How long a read believes that the store doesn't have a key.
    pub negative_ttl: Option<Duration>,
    /// How long a load may take before a read is answered with a copy past its `ttl`.
    pub timeout_soft: Option<Duration>,
    /// How long a load may take before it fails; the cache's `store_timeout` where there is none.
    pub timeout_hard: Option<Duration>,
    /// How many loads of the store are under way; the first of its namespaces says it.
    pub loads: Loads,
    /// The store and its name.
    pub store: Option<(Box<str>, Arc<dyn Store>)>,
    /// What a restart does with copies from before it.
    pub restart: Restart,
    /// Bytes that its entries may take in memory; `None`: any.
    pub quota: Option<usize>,
    /// With [`Write::Behind`]: how changes are brought to the store, at the start.
    pub behind: behind::Settings,
    /// With [`Write::Behind`], once the journal is open: its unflushed changes.
    pub line: Option<Arc<behind::Line>>,
    /// What happened below.
    pub stats: NamespaceStats,
}

impl Namespace {
    /// The name of what a miss and a write do, as the configuration has it.
    pub fn mode(&self) -> String {
        mode_name(self.read, self.write)
    }

    /// Whether a command that reads a key that isn't in memory has to ask below: the store, or what the
    /// store doesn't have yet.
    #[inline]
    pub fn is_read_below(&self) -> bool {
        self.read == Read::Through || self.write == Write::Behind
    }

    /// Whether the old value of a key that isn't in memory is in the store: a write that depends on it
    /// asks for it, whatever reads do (SEMANTICS 3).
    #[inline]
    pub fn has_old_value(&self) -> bool {
        self.read == Read::Through || self.write != Write::None
    }

    /// Whether a write has to go to the store before it is answered.
    #[inline]
    pub fn writes_to_store(&self) -> bool {
        matches!(self.write, Write::Through | Write::Around)
    }

    /// Why a write of it is refused that would take more than its quota.
    pub fn over_quota(&self) -> ClientError {
        let prefix = self.prefix.escape_ascii();
        let quota = self.quota.unwrap_or_default();
        let text =
            format!("OOM command not allowed: namespace '{prefix}' has a quota of {quota} bytes");
        ClientError::from(text)
    }
}

/// How good a copy is at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It is good.
    Fresh,
    /// It is good, and a new one is to be loaded beside it.
    Due,
    /// It is past its `ttl`: good only for want of a better one.
    Stale,
}

/// A namespace's times in milliseconds, 0 where there is none, and what follows from them. They may change
/// while the cache runs ([`Policies::change`]), each by itself: who reads some of them meanwhile takes one
/// copy for older or younger than it is, as if they had changed a moment before or after. An entry carries
/// one moment, the end of its keeping:
///
/// ```text
///  loaded             due                    fresh end            kept until
///  |-- refresh_after --|-------- lead --------|--- stale_if_error ---|
///  |------------------- ttl -----------------|
/// ```
#[derive(Debug, Default)]
pub struct Times {
    /// How long a copy is kept at most, with some slack: one that would be kept for longer was made when
    /// other times held. [`EVER`] without a `ttl`.
    longest: Time,
    /// What is left of its keeping when a copy is due for a refresh.
    due: Time,
    /// What is left when its `ttl` ends.
    grace: Time,
    /// How long an absence is believed; 0: not at all.
    negative: Time,
    ttl: Time,
    /// By up to this percentage of it `ttl` is shorter.
    jitter: Time,
    /// The limits of loads.
    soft: Time,
    hard: Time,
}

/// A number that may change: reading it costs as much as reading any other.
#[derive(Debug, Default)]
struct Time(AtomicU64);

impl Time {
    #[inline]
    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn set(&self, time: u64) {
        self.0.store(time, Relaxed);
    }

    fn duration(&self) -> Option<Duration> {
        Some(self.get()).filter(|time| *time != 0).map(Duration::from_millis)
    }
}

/// What every hit on a namespace's keys needs of it.
#[derive(Debug, Default)]
pub struct Rule {
    /// The namespace's number.
    pub number: usize,
    /// Its times.
    pub times: Times,
}

/// By how much clocks of threads differ at most.
const SLACK: u64 = 10_000;
/// Longer than anything is kept, and less than what has ended seems to be kept.
const EVER: u64 = u64::MAX >> 1;

impl Times {
    fn of(namespace: &Namespace) -> Self {
        let times = Self::default();
        times.set(namespace);
        times
    }

    fn set(&self, namespace: &Namespace) {
        let millis = |time: Option<Duration>| time.map_or(0, |time| time.as_millis() as u64);
        let ttl = millis(namespace.ttl);
        let is_through = namespace.read == Read::Through;
        let grace = if is_through && ttl != 0 { millis(namespace.stale_if_error) } else { 0 };
        let until_due = |after: Duration| ttl.saturating_sub(after.as_millis() as u64);
        let lead = namespace.refresh_after.filter(|_| is_through).map_or(0, until_due);
        self.longest.set(if ttl == 0 { EVER } else { ttl + SLACK + grace });
        self.due.set(grace + lead);
        self.grace.set(grace);
        self.negative.set(if is_through { millis(namespace.negative_ttl) } else { 0 });
        self.ttl.set(ttl);
        self.jitter.set(namespace.jitter.into());
        self.soft.set(millis(namespace.timeout_soft));
        self.hard.set(millis(namespace.timeout_hard));
    }

    /// How long a copy of a key that comes now is good for.
    fn ttl(&self, key: &[u8], now: u64) -> Option<u64> {
        let (ttl, jitter) = (Some(self.ttl.get()).filter(|ttl| *ttl != 0)?, self.jitter.get());
        if jitter == 0 {
            return Some(ttl);
        }
        let random = next_random(u64::from(crc32fast::hash(key)) << 32 ^ now | 1) >> 40;
        let most = u128::from(ttl) * u128::from(jitter) / 100;
        Some((ttl - ((most * u128::from(random)) >> 24) as u64).max(1))
    }

    /// How long a load may take before a read is answered with a copy past its `ttl`.
    pub fn timeout_soft(&self) -> Option<Duration> {
        self.soft.duration()
    }

    /// How long a load may take before it fails; `None`: the cache's `store_timeout`.
    pub fn timeout_hard(&self) -> Option<Duration> {
        self.hard.duration()
    }

    /// Whether a copy that is kept until then is fresh beyond doubt.
    #[inline]
    pub fn is_fresh(&self, kept_until: u64, now: u64) -> bool {
        // What has ended seems to be kept for longer than anything.
        let left = kept_until.wrapping_sub(now);
        self.due.get() < left && left <= self.longest.get()
    }

    /// How good a copy is that is kept until then (0: it has no end).
    #[inline]
    pub fn age(&self, kept_until: u64, now: u64) -> Age {
        let (left, longest) = (kept_until.saturating_sub(now), self.longest.get());
        if kept_until == 0 || longest == EVER || self.is_fresh(kept_until, now) {
            Age::Fresh
        } else if self.grace.get() < left && left <= longest {
            Age::Due
        } else {
            Age::Stale
        }
    }

    /// Until when a copy is kept that its store says is good for so long.
    pub fn within(&self, kept_until: u64, fresh_for: Duration, now: u64) -> u64 {
        let fresh_for = u64::try_from(fresh_for.as_millis()).unwrap_or(u64::MAX);
        let end = now.saturating_add(fresh_for).saturating_add(self.grace.get()).max(1);
        if kept_until == 0 { end } else { kept_until.min(end) }
    }

    fn check_from(&self, kept_until: u64) -> u64 {
        kept_until.saturating_sub(self.due.get())
    }

    /// Until when an absence found now is believed; 0: it isn't.
    pub fn negative_until(&self, now: u64) -> u64 {
        match self.negative.get() {
            0 => 0,
            negative => now + negative,
        }
    }

    /// Whether absences are believed.
    #[inline]
    pub fn has_negatives(&self) -> bool {
        self.negative.get() != 0
    }
}

/// All namespaces, the longest prefix first.
#[derive(Default)]
pub struct Policies {
    namespaces: Vec<Namespace>,
    /// What a hit needs of each.
    rules: Vec<Arc<Rule>>,
    /// The same, by prefix.
    prefixes: Prefixes,
    behind: Option<Arc<behind::Behind>>,
    has_quotas: bool,
}

impl Policies {
    /// Namespaces in any order.
    pub fn new(mut namespaces: Vec<Namespace>) -> Self {
        namespaces.sort_by_key(|namespace| std::cmp::Reverse(namespace.prefix.len()));
        let rule = |(number, found)| Arc::new(Rule { number, times: Times::of(found) });
        let rules: Vec<Arc<Rule>> = namespaces.iter().enumerate().map(rule).collect();
        let prefixes = namespaces.iter().zip(&rules);
        let prefixes = prefixes.map(|(found, rule)| (found.db, &*found.prefix, rule.clone()));
        let prefixes = Prefixes::new(prefixes);
        let has_quotas = namespaces.iter().any(|namespace| namespace.quota.is_some());
        Self { namespaces, rules, prefixes, behind: None, has_quotas }
    }

    /// The namespaces as groups of keys that memory counts apart, by their numbers.
    pub fn grouping(&self) -> Grouping {
        let group = |namespace: &Namespace| Group { db: namespace.db, quota: namespace.quota };
        let prefixes = self.prefixes.clone();
        Grouping {
            of: Arc::new(move |db, key| prefixes.find(db, key).map(|rule| rule.number)),
            groups: self.iter().map(group).collect(),
        }
    }

    /// Until when copies from before a restart at this moment are kept, if a namespace says anything of that.
    /// One that is to be revalidated is past its `ttl` from then on: all else follows from that.
    pub fn restart_rule(&self, started: u64) -> Option<Box<RestartRule>> {
        let end = |(namespace, rule): (&Namespace, &Arc<Rule>)| match namespace.restart {
            Restart::Keep => None,
            Restart::Revalidate => Some(started + rule.times.grace.get()),
            Restart::Drop => Some(1),
        };
        let ends: Vec<_> = self.iter().zip(&self.rules).map(end).collect();
        let prefixes = self.prefixes.clone();
        ends.iter().any(Option::is_some).then(|| -> Box<RestartRule> {
            Box::new(move |db, key| ends[prefixes.find(db, key)?.number])
        })
    }

    /// Whether a restart leaves copies that are of no use any more.
    pub fn ends_at_restart(&self) -> bool {
        let ends = |(namespace, rule): (&Namespace, &Arc<Rule>)| match namespace.restart {
            Restart::Keep => false,
            Restart::Revalidate => rule.times.grace.get() == 0,
            Restart::Drop => true,
        };
        self.iter().zip(&self.rules).any(ends)
    }

    /// The namespace of a key that is written, and its number, if it has a quota.
    #[inline]
    pub fn quota_of(&self, db: usize, key: &[u8]) -> Option<(usize, &Namespace)> {
        if !self.has_quotas {
            return None;
        }
        let index = self.index_of(db, key)?;
        // What is written around doesn't stay.
        let bounded = |found: &&Namespace| found.quota.is_some() && found.write != Write::Around;
        Some((index, Some(&self.namespaces[index]).filter(bounded)?))
    }

    /// Whether every key is plain cache.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// All namespaces, the longest prefix first.
    pub fn iter(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter()
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Namespace> {
        self.namespaces.iter_mut()
    }

    /// What is written behind, if a namespace does that and the journal is open.
    #[inline]
    pub fn behind(&self) -> Option<&Arc<behind::Behind>> {
        self.behind.as_ref()
    }

    /// The namespace of a key.
    #[inline]
    pub fn of(&self, db: usize, key: &[u8]) -> Option<&Namespace> {
        self.index_of(db, key).map(|index| &self.namespaces[index])
    }

    /// The number of a key's namespace.
    #[inline]
    pub fn index_of(&self, db: usize, key: &[u8]) -> Option<usize> {
        self.rule(db, key).map(|rule| rule.number)
    }

    /// What a hit on a key needs of its namespace.
    #[inline]
    pub fn rule(&self, db: usize, key: &[u8]) -> Option<&Rule> {
        self.prefixes.find(db, key)
    }

    /// A namespace by its number.
    pub fn at(&self, index: usize) -> &Namespace {
        &self.namespaces[index]
    }

    /// A namespace's times.
    #[inline]
    pub fn times(&self, index: usize) -> &Times {
        &self.rules[index].times
    }

    /// Has the times of the namespace of this prefix and database, and how its changes are brought to its
    /// store, be as those of another one. What of it can't change stays as it is.
    pub fn change(&self, other: &Namespace) {
        let is_it = |own: &Namespace| (&own.prefix, own.db) == (&other.prefix, other.db);
        let Some(index) = self.namespaces.iter().position(is_it) else { return };
        self.times(index).set(other);
        if let Some(line) = &self.namespaces[index].line {
            line.set_settings(other.behind.clone());
        }
    }

    /// From when on a key's copy, which is kept until then, isn't simply good any more; `u64::MAX`: it always
    /// is.
    pub fn check_from(&self, db: usize, key: &[u8], kept_until: u64) -> u64 {
        if kept_until == 0 {
            return u64::MAX;
        }
        self.rule(db, key).map_or(kept_until, |rule| rule.times.check_from(kept_until))
    }

    /// Adds to a new entry what its namespace says of its life.
    #[inline]
    pub fn stamp(&self, db: usize, key: &[u8], now: u64, meta: Meta) -> Meta {
        if self.is_empty() {
            return meta;
        }
        let Some(Rule { number, times }) = self.rule(db, key) else { return meta };
        let Some(ttl) = times.ttl(key, now) else { return meta };
        let end = now + ttl;
        match self.namespaces[*number].read {
            Read::Aside if meta.deadline == 0 => Meta { deadline: end, ..meta },
            Read::Aside => meta,
            Read::Through => Meta { kept_until: end + times.grace.get(), ..meta },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(prefix: &str, read: Read) -> Namespace {
        Namespace {
            prefix: prefix.as_bytes().into(),
            read,
            ttl: Some(Duration::from_secs(1)),
            ..Namespace::default()
        }
    }

    #[test]
    fn prefixes_of_all_lengths_are_compared_whole() {
        let text = "abcdefghijkl\0\0\0\0";
        for len in 0..=text.len() {
            let policies = Policies::new(vec![namespace(&text[..len], Read::Aside)]);
            for key_len in 0..=text.len() {
                let key = &text.as_bytes()[..key_len];
                assert_eq!(policies.of(0, key).is_some(), key_len >= len, "{len} {key_len}");
                let mut other = key.to_vec();
                for at in 0..key_len.min(len) {
                    other[at] ^= 0x80;
                    assert!(policies.of(0, &other).is_none(), "{len} {key_len} {at}");
                    other[at] ^= 0x80;
                }
            }
        }
    }

    #[test]
    fn the_longest_prefix_wins_in_its_database() {
        let policies = Policies::new(vec![
            namespace("", Read::Aside),
            namespace("user:1:", Read::Through),
            namespace("user:", Read::Aside),
        ]);
        let prefix = |db, key: &[u8]| policies.of(db, key).map(|found| &*found.prefix);
        assert_eq!(prefix(0, b"user:1:x"), Some(&b"user:1:"[..]));
        assert_eq!(prefix(0, b"user:2"), Some(&b"user:"[..]));
        assert_eq!(prefix(0, b"else"), Some(&b""[..]));
        assert_eq!(prefix(1, b"user:2"), None);
    }

    #[test]
    fn a_ttl_is_the_deadline_aside_and_freshness_otherwise() {
        let policies =
            Policies::new(vec![namespace("a:", Read::Aside), namespace("t:", Read::Through)]);
        let stamp = |key: &[u8], deadline| {
            let meta = policies.stamp(0, key, 5_000, Meta { deadline, ..Meta::default() });
            (meta.deadline, meta.kept_until)
        };
        assert_eq!(stamp(b"a:1", 0), (6_000, 0));
        assert_eq!(stamp(b"a:1", 9_000), (9_000, 0));
        assert_eq!(stamp(b"t:1", 9_000), (9_000, 6_000));
        assert_eq!(stamp(b"x", 0), (0, 0));
    }

    #[test]
    fn a_copy_is_fresh_then_due_then_stale() {
        let secs = |secs| Some(Duration::from_secs(secs));
        let policies = Policies::new(vec![Namespace {
            ttl: secs(10),
            refresh_after: secs(8),
            stale_if_error: secs(100),
            ..namespace("t:", Read::Through)
        }]);
        let kept = policies.stamp(0, b"t:1", 5_000, Meta::default()).kept_until;
        assert_eq!(kept, 5_000 + 110_000);
        let times = policies.times(0);
        for (now, age) in [
            (5_000, Age::Fresh),
            (12_999, Age::Fresh),
            (13_000, Age::Due),
            (14_999, Age::Due),
            (15_000, Age::Stale),
            (114_999, Age::Stale),
        ] {
            assert_eq!(times.age(kept, now), age, "{now}");
        }
        assert_eq!(times.check_from(kept), 13_000);
        assert_eq!(times.age(0, 1 << 40), Age::Fresh, "it has no end");
        // What was stamped while `stale_if_error` was longer isn't fresh for that long.
        assert_eq!(times.age(kept + 1_000_000, 5_000), Age::Stale);
    }

    #[test]
    fn times_may_change_while_copies_are_there() {
        let secs = |secs| Some(Duration::from_secs(secs));
        let with = |ttl, stale_if_error| Namespace {
            ttl: secs(ttl),
            stale_if_error,
            ..namespace("t:", Read::Through)
        };
        let policies = Policies::new(vec![with(600, None), namespace("t:1", Read::Through)]);
        let stamp = || policies.stamp(0, b"t:2", 5_000, Meta::default()).kept_until;
        let long = stamp();
        policies.change(&with(60, None));
        assert_eq!((long, stamp()), (605_000, 65_000));
        let times = policies.times(1);
        assert_eq!(times.age(long, 5_000), Age::Stale, "no copy is fresh for so long now");
        assert_eq!(times.age(stamp(), 5_000), Age::Fresh);
        // Kept for longer, what is there already ends sooner instead.
        let short = stamp();
        policies.change(&with(60, secs(30)));
        assert_eq!(times.age(short, 34_999), Age::Fresh);
        assert_eq!(times.age(short, 35_000), Age::Stale);
        policies.change(&Namespace { ttl: None, ..with(0, None) });
        assert_eq!(times.age(short, 35_000), Age::Fresh, "it is kept until its end");
        assert_eq!(stamp(), 0);
        // Those of others are as they were, and none is known by another database.
        policies.change(&Namespace { db: 1, ..with(7, None) });
        assert_eq!(stamp(), 0);
        assert_eq!(policies.stamp(0, b"t:1", 5_000, Meta::default()).kept_until, 6_000);
    }

    #[test]
    fn what_comes_together_ends_apart() {
        let policies =
            Policies::new(vec![Namespace { jitter: 20, ..namespace("t:", Read::Through) }]);
        let ends: Vec<u64> = (0..1_000)
            .map(|number| format!("t:{number}"))
            .map(|key| policies.stamp(0, key.as_bytes(), 5_000, Meta::default()).kept_until)
            .collect();
        assert!(ends.iter().all(|end| (5_800..=6_000).contains(end)), "{ends:?}");
        for tenth in 0..10 {
            let part = 5_800 + tenth * 20..5_820 + tenth * 20;
            let count = ends.iter().filter(|end| part.contains(*end)).count();
            assert!((60..150).contains(&count), "{count} of 1,000 in {part:?}");
        }
    }
}
