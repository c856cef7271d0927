//! What the page shows, as JSON: the figures of now, and the readings that the page doesn't have yet.
//!
//! All of it is collected when it is asked for. What it takes locks for it takes piece by piece, a stripe or
//! a lane at a time, so no request waits for the whole. Lists are bounded.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;

use super::{
    health::{self, Health},
    history::{History, Reading},
};
use crate::{
    cache::{counter::Lookups, traffic},
    clock,
    command::{
        figures::{MemoryFigures, ratio},
        info::LARDER_VERSION,
        namespace_figures::{BehindFigures, NamespaceFigures},
        shared::Shared,
        slowlog,
    },
    config::{SETTINGS, Setting, Settings},
    journal,
    store::{Store, breaker::Breaker},
    tier::log::Log,
};

/// Namespaces that are sent at most: those with the most requests.
const NAMESPACES: usize = 200;
/// Entries of the slow log that are sent.
const SLOW: usize = 20;
/// Hot keys and big keys that are sent.
const KEYS: usize = 20;
/// What stands for a secret.
const MASKED: &str = "(hidden)";

/// All of it. Times are in seconds where nothing else is said.
#[derive(Debug, Serialize)]
pub(super) struct State {
    version: &'static str,
    run_id: String,
    /// Unix milliseconds; the figures are of this moment or a little after.
    now: u64,
    uptime: u64,
    port: u32,
    workers: usize,
    health: Health,
    ending: bool,
    commands: u64,
    errors: u64,
    received: u64,
    sent: u64,
    evicted: u64,
    expired: u64,
    keys: u64,
    connections: Connections,
    memory: Memory,
    tiers: Vec<Tier>,
    /// Lookups that no tier answered.
    misses: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<Disk>,
    namespaces: Namespaces,
    stores: Vec<StoreState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<AllBehind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    curve: Option<Vec<Point>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hot_keys: Option<Vec<HotKey>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    big_keys: Option<Vec<BigKey>>,
    slow: Slowest,
    settings: Vec<Value>,
    history: Vec<Reading>,
}

impl State {
    /// What there is now, with the readings after `since` (unix milliseconds).
    pub(super) fn now(shared: &Shared, history: &History, since: u64) -> Self {
        let now = clock::micros() / 1000;
        let memory = shared.cache.memory();
        let figures = MemoryFigures::now(shared);
        let lookups = shared.all_lookups();
        let log = memory.disk().map(|log| &**log);
        let watches = shared.cache.traffic().watches_keys();
        Self {
            version: LARDER_VERSION,
            run_id: shared.run_id.clone(),
            now,
            uptime: shared.started.elapsed().as_secs(),
            port: shared.port.load(Relaxed),
            workers: shared.workers.len(),
            health: health::live(shared),
            ending: shared.draining.load(Relaxed),
            commands: shared.sum(|worker| worker.commands.get()),
            errors: shared.sum(|worker| worker.errors.get()),
            received: shared.sum(|worker| worker.received.get()),
            sent: shared.sum(|worker| worker.sent.get()),
            evicted: memory.evicted(),
            expired: memory.expired(),
            keys: figures.keys,
            connections: Connections::now(shared),
            memory: Memory::of(shared, &figures),
            tiers: Tier::all(shared, &lookups, log),
            misses: lookups.misses(),
            disk: log.map(Disk::of),
            namespaces: Namespaces::now(shared),
            stores: shared.stores.iter().map(|store| StoreState::of(shared, store)).collect(),
            behind: shared.cache.policies().behind().map(|behind| AllBehind {
                sum: Behind::of(BehindFigures::sum(shared)),
                journal: Journal::of(behind.journal().figures(), shared.live.get().journal_limit()),
            }),
            curve: curve(shared),
            hot_keys: watches.then(|| HotKey::all(shared)),
            big_keys: watches.then(|| BigKey::all(shared)),
            slow: Slowest::now(shared),
            settings: settings(&shared.live.get()),
            history: history.since(since),
        }
    }
}

/// What the hit ratio would be with so many times the memory.
#[derive(Debug, Serialize)]
struct Point {
    factor: f64,
    hit_ratio: f64,
}

fn curve(shared: &Shared) -> Option<Vec<Point>> {
    let estimate = shared.miss_ratio_curve().filter(|estimate| estimate.basis.is_enough)?;
    let point = |point: &traffic::Point| Point { factor: point.times, hit_ratio: point.hit_ratio };
    Some(estimate.points.iter().map(point).collect())
}

#[derive(Debug, Serialize)]
struct HotKey {
    key: String,
    db: usize,
    per_second: f64,
}

impl HotKey {
    fn all(shared: &Shared) -> Vec<Self> {
        let all = shared.hot_keys(KEYS).into_iter();
        all.map(|hot| Self { key: readable(&hot.key), db: hot.db, per_second: hot.per_second })
            .collect()
    }
}

#[derive(Debug, Serialize)]
struct BigKey {
    key: String,
    db: usize,
    bytes: usize,
    kind: &'static str,
}

impl BigKey {
    fn all(shared: &Shared) -> Vec<Self> {
        let all = shared.big_keys(KEYS).into_iter();
        let kind = "string";
        all.map(|big| Self { key: readable(&big.key), db: big.db, bytes: big.bytes, kind })
            .collect()
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

#[derive(Debug, Serialize)]
struct Connections {
    now: usize,
    limit: u32,
    accepted: u64,
    rejected: u64,
}

impl Connections {
    fn now(shared: &Shared) -> Self {
        Self {
            now: shared.clients.len(),
            limit: shared.live.get().maxclients,
            accepted: shared.sum(|worker| worker.connections.get()),
            rejected: get(&shared.refused),
        }
    }
}

/// Memory of the process; what is limited is L2's line in `tiers`.
#[derive(Debug, Serialize)]
struct Memory {
    used: u64,
    peak: u64,
    resident: u64,
    policy: &'static str,
}

impl Memory {
    fn of(shared: &Shared, figures: &MemoryFigures) -> Self {
        Self {
            used: figures.used,
            peak: figures.peak,
            resident: figures.rss,
            policy: shared.cache.memory().rules().eviction().name(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Tier {
    name: &'static str,
    hits: u64,
    entries: u64,
    bytes: u64,
    limit: u64,
}

impl Tier {
    fn all(shared: &Shared, lookups: &Lookups, log: Option<&Log>) -> Vec<Self> {
        let memory = shared.cache.memory();
        let local = Self {
            name: "l1",
            hits: lookups.l1,
            entries: shared.sum(|worker| get(&worker.local_entries)),
            bytes: shared.sum(|worker| get(&worker.local_bytes)),
            limit: (shared.local_limit() * shared.workers.len()) as u64,
        };
        let memory = Self {
            name: "l2",
            hits: lookups.l2,
            entries: memory.all_resident() as u64,
            bytes: memory.used() as u64,
            limit: memory.rules().limit() as u64,
        };
        let disk = log.map(|log| {
            let (entries, bytes) = log.live();
            let limit = log.shape().bytes();
            Self { name: "l3", hits: lookups.l3, entries, bytes, limit }
        });
        [local, memory].into_iter().chain(disk).collect()
    }
}

#[derive(Debug, Serialize)]
struct Disk {
    promotions: u64,
    demotions: u64,
    rejected: u64,
    written: u64,
    queue_bytes: usize,
    /// The mean of a read.
    read: f64,
    errors: u64,
}

impl Disk {
    fn of(log: &Log) -> Self {
        let counters = &log.counters;
        let errors = [
            &counters.read_errors,
            &counters.write_errors,
            &counters.timeouts,
            &counters.bad_records,
        ];
        Self {
            promotions: get(&counters.promotions),
            demotions: get(&counters.demotions),
            rejected: get(&counters.rejected) + get(&counters.dropped),
            written: get(&counters.written_bytes),
            queue_bytes: log.queue.len().1,
            read: ratio(get(&counters.read_nanos), get(&counters.reads)) / 1e9,
            errors: errors.into_iter().map(get).sum(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Namespaces {
    /// How many there are.
    count: usize,
    shown: Vec<NamespaceState>,
}

impl Namespaces {
    fn now(shared: &Shared) -> Self {
        let count = shared.cache.policies().iter().count();
        let all = NamespaceFigures::busiest(shared, NAMESPACES);
        Self { count, shown: all.into_iter().map(NamespaceState::of).collect() }
    }
}

#[derive(Debug, Serialize)]
struct NamespaceState {
    prefix: String,
    db: usize,
    mode: String,
    store: String,
    requests: u64,
    l1: u64,
    l2: u64,
    l3: u64,
    misses: u64,
    hit_rate: f64,
    loads: u64,
    load_errors: u64,
    /// The mean of a load; nothing if there was none.
    load_time: Option<f64>,
    saved: f64,
    stale: u64,
    negative: u64,
    joined: u64,
    refreshes: u64,
    refresh_errors: u64,
    writes: u64,
    write_errors: u64,
    conflicts: u64,
    entries: usize,
    bytes: usize,
    quota: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<Behind>,
}

impl NamespaceState {
    fn of(figures: NamespaceFigures) -> Self {
        let lookups = figures.lookups;
        let loads = figures.loads + figures.load_errors;
        Self {
            requests: lookups.all(),
            l1: lookups.l1,
            l2: lookups.l2,
            l3: lookups.l3,
            misses: lookups.misses(),
            hit_rate: lookups.hit_rate(),
            loads: figures.loads,
            load_errors: figures.load_errors,
            load_time: (loads > 0).then(|| figures.mean_load()),
            saved: figures.seconds_saved(),
            stale: figures.stale_served,
            negative: figures.negative_hits,
            joined: figures.stampedes_avoided,
            refreshes: figures.refreshes,
            refresh_errors: figures.refresh_errors,
            writes: figures.writes,
            write_errors: figures.write_errors,
            conflicts: figures.conflicts,
            entries: figures.items,
            bytes: figures.bytes,
            quota: figures.quota,
            behind: figures.behind.map(Behind::of),
            prefix: figures.prefix,
            db: figures.db,
            mode: figures.mode,
            store: figures.store,
        }
    }
}

/// What a namespace, or all of them, have written behind.
#[derive(Debug, Serialize)]
struct Behind {
    dirty: u64,
    bytes: u64,
    lag: f64,
    changes: u64,
    flushed: u64,
    retries: u64,
    refusals: u64,
    dead_letters: u64,
}

impl Behind {
    fn of(figures: BehindFigures) -> Self {
        Self {
            dirty: figures.backlog.records,
            bytes: figures.backlog.bytes,
            lag: figures.backlog.lag.as_secs_f64(),
            changes: figures.changes,
            flushed: figures.flushed,
            retries: figures.retries,
            refusals: figures.refusals,
            dead_letters: figures.dead_letters,
        }
    }
}

/// What all namespaces have written behind, and the journal of it.
#[derive(Debug, Serialize)]
struct AllBehind {
    #[serde(flatten)]
    sum: Behind,
    journal: Journal,
}

#[derive(Debug, Serialize)]
struct Journal {
    bytes: u64,
    segments: u64,
    unflushed: u64,
    unflushed_bytes: u64,
    /// Bytes that they may take.
    limit: u64,
    oldest: f64,
    syncs: u64,
    /// The mean of a sync.
    sync: f64,
    waiting: u64,
    failed: bool,
}

impl Journal {
    fn of(figures: journal::Figures, limit: u64) -> Self {
        Self {
            bytes: figures.disk_bytes,
            segments: figures.segments,
            unflushed: figures.unacknowledged,
            unflushed_bytes: figures.unacknowledged_bytes,
            limit,
            oldest: figures.oldest_age as f64 / 1e3,
            syncs: figures.syncs,
            sync: ratio(figures.sync_micros, figures.syncs) / 1e6,
            waiting: figures.waiting,
            failed: figures.poisoned,
        }
    }
}

#[derive(Debug, Serialize)]
struct StoreState {
    name: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<BreakerState>,
    /// What a store that is made of others tells of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parts: BTreeMap<String, String>,
}

impl StoreState {
    fn of(shared: &Shared, (name, store): &(Box<str>, Arc<dyn Store>)) -> Self {
        let breaker = shared.breakers.iter().find(|breaker| breaker.name() == &**name);
        Self {
            name: name.to_string(),
            kind: store.kind(),
            breaker: breaker.map(BreakerState::of),
            parts: store.report().into_iter().collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct BreakerState {
    state: &'static str,
    calls: u64,
    failures: u64,
    slow: u64,
    rejected: u64,
    opened: u64,
}

impl BreakerState {
    fn of(breaker: &Breaker) -> Self {
        let figures = breaker.figures();
        Self {
            state: breaker.state().name(),
            calls: figures.calls,
            failures: figures.failures,
            slow: figures.slow,
            rejected: figures.rejected,
            opened: figures.opened,
        }
    }
}

/// The slow log.
#[derive(Debug, Serialize)]
struct Slowest {
    /// How many entries there are.
    count: usize,
    newest: Vec<Slow>,
}

#[derive(Debug, Serialize)]
struct Slow {
    id: i64,
    /// Unix seconds.
    at: u64,
    took: f64,
    args: Vec<String>,
    peer: String,
    client: String,
}

impl Slowest {
    fn now(shared: &Shared) -> Self {
        let newest = shared.slowlog.newest(SLOW).into_iter().map(Slow::of).collect();
        Self { count: shared.slowlog.len(), newest }
    }
}

impl Slow {
    fn of(slow: slowlog::Slow) -> Self {
        Self {
            id: slow.id,
            at: slow.at,
            took: slow.took.as_secs_f64(),
            args: slow.args.iter().map(|arg| readable(arg)).collect(),
            peer: slow.peer,
            client: slow.client,
        }
    }
}

/// Bytes of a client for people: what doesn't print, or turns the line around, is escaped.
fn readable(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else { return bytes.escape_ascii().to_string() };
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\'' => shown.push(char),
            char => shown.extend(char.escape_debug()),
        }
    }
    shown
}

/// A setting that is in force.
#[derive(Debug, Serialize)]
struct Value {
    name: &'static str,
    group: &'static str,
    /// As the file would have it.
    value: String,
    is_default: bool,
}

fn settings(settings: &Settings) -> Vec<Value> {
    let defaults = Settings::default();
    let value = |setting: &'static Setting| {
        let is_default = setting.value(settings) == setting.value(&defaults);
        let masks = setting.is_secret() && !is_default;
        let value = if masks { MASKED.to_owned() } else { setting.text(settings) };
        Value { name: setting.name, group: setting.group, value, is_default }
    };
    SETTINGS.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        command::testing::{Line, call, client, session, session_with},
        config::Config,
        policy::{Namespace, Policies},
    };

    #[test]
    fn bytes_for_people() {
        for (bytes, text) in [
            (&b"user:1"[..], "user:1"),
            (b"<b>\"it's\"</b>", "<b>\"it's\"</b>"),
            (b"a\nb\\", "a\\nb\\\\"),
            ("Käse \u{202e}".as_bytes(), "Käse \\u{202e}"),
            (b"\xff\x00", "\\xff\\x00"),
        ] {
            assert_eq!(readable(bytes), text);
        }
    }

    #[test]
    fn secrets_are_masked_and_only_they() {
        let mut changed = Settings::default();
        for (name, text) in [("requirepass", "hunter2"), ("maxclients", "7")] {
            let setting = Setting::named(name).expect("a setting");
            setting.parse_into(&mut changed, text).expect("a value");
        }
        let all = settings(&changed);
        let value = |name: &str| {
            let found = all.iter().find(|value| value.name == name).expect("a setting");
            (found.value.as_str(), found.is_default)
        };
        assert_eq!(all.len(), SETTINGS.len());
        assert_eq!(value("requirepass"), (MASKED, false));
        assert_eq!(value("maxclients"), ("7", false));
        assert_eq!(value("port"), ("6379", true));
        assert_eq!(value("l1"), ("\"64mb\"", true));
        let unset = settings(&Settings::default());
        assert!(unset.iter().all(|value| value.is_default && value.value != MASKED));
    }

    #[test]
    fn the_busiest_namespaces_are_sent() {
        let namespace =
            |at| Namespace { prefix: format!("n{at}:").as_bytes().into(), ..Namespace::default() };
        let policies = Policies::new((0..NAMESPACES + 50).map(namespace).collect());
        let (mut session, _requests) = session_with(&Config::default(), policies);
        call(&mut session, &["GET", "n249:x"]);
        let state = State::now(&session.shared, &History::default(), 0);
        let Namespaces { count, shown } = state.namespaces;
        assert_eq!((count, shown.len()), (NAMESPACES + 50, NAMESPACES));
        assert_eq!((shown[0].prefix.as_str(), shown[0].requests), ("n249:", 1));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let session = session();
        let note = |took| {
            let line = Line::new(&[b"AUTH", b"hunter2"]);
            session.shared.slowlog.note(line.args(), took, &client(1), 5_000, 128);
        };
        (0..30).for_each(|micros| note(Duration::from_micros(micros)));
        let state = State::now(&session.shared, &History::default(), 0);
        let json = serde_json::to_value(state).expect("JSON");
        for absent in ["disk", "behind"] {
            assert!(json.get(absent).is_none(), "{absent}");
        }
        assert_eq!(json["tiers"].as_array().map(Vec::len), Some(2));
        assert_eq!(json["slow"]["count"], 30);
        assert_eq!(json["slow"]["newest"].as_array().map(Vec::len), Some(SLOW));
        assert_eq!(json["slow"]["newest"][0]["args"][1], "(redacted)");
        assert!(!json.to_string().contains("hunter2"));
    }
}
