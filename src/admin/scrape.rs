//! `/metrics`: every figure there is, as [`metrics`](crate::metrics) declares it.
//!
//! The request path counts in plain counters of each worker; here they are summed up. What has many samples
//! is collected once and written metric by metric, since the format wants those of a metric together.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::process::{Resource, getrlimit};

use crate::{
    cache::traffic::Estimate,
    command::{
        figures::{CpuFigures, MemoryFigures, address_space},
        histogram::{BOUNDED, Durations, bound},
        info::{LARDER_VERSION, REDIS_VERSION},
        namespace_figures::{BehindFigures, NamespaceFigures},
        row::Group,
        shared::Shared,
        table,
    },
    metrics::{self as m, Exposition, Metric},
    store::breaker::State,
    tier::log::Log,
};

/// Error codes that are shown before the first of them: by its first value a series hasn't risen yet, so an
/// alert would miss it.
const CODES: &[&str] =
    &["ERR", "JOURNALERR", "JOURNALFULL", "OOM", "STOREDOWN", "STOREERR", "STORETIMEOUT"];

/// All metrics, in the text format of Prometheus.
pub fn text(shared: &Shared) -> String {
    let mut text = Exposition::default();
    process(shared, &mut text);
    clients(shared, &mut text);
    commands(shared, &mut text);
    tiers(shared, &mut text);
    traffic(shared, &mut text);
    if let Some(log) = shared.cache.memory().disk() {
        disk(shared, log, &mut text);
    }
    let namespaces = Labelled::all(shared);
    if !namespaces.is_empty() {
        self::namespaces(&namespaces, &mut text);
    }
    if let Some(behind) = shared.cache.policies().behind() {
        write_behind(&namespaces, &mut text);
        journal(shared, behind.journal().figures(), &mut text);
    }
    if !shared.breakers.is_empty() {
        breakers(shared, &mut text);
    }
    text.finish()
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

fn process(shared: &Shared, text: &mut Exposition) {
    let cpu = CpuFigures::of_process();
    let memory = MemoryFigures::now(shared);
    let descriptors =
        fs::read_dir("/proc/self/fd").map_or(0, |list| list.count().saturating_sub(1));
    text.many(&m::BUILD_INFO, [([LARDER_VERSION, REDIS_VERSION], 1)]);
    text.one(&m::UPTIME, shared.started.elapsed().as_secs_f64());
    text.one(&m::PROCESS_START, shared.started_at as f64 / 1e3);
    text.one(&m::PROCESS_CPU, cpu.user + cpu.system);
    text.one(&m::PROCESS_RESIDENT, memory.rss);
    text.one(&m::PROCESS_VIRTUAL, address_space());
    text.one(&m::PROCESS_FDS, descriptors);
    if let Some(most) = getrlimit(Resource::Nofile).current {
        text.one(&m::PROCESS_MAX_FDS, most);
    }
    if let Some(figures) = memory.allocator {
        let states = [
            (["allocated"], figures.allocated),
            (["active"], figures.active),
            (["resident"], figures.resident),
        ];
        text.many(&m::ALLOCATOR, states);
    }
    text.one(&m::WORKERS, shared.workers.len());
    text.one(&m::DEAD_TASKS, shared.cache.vitals().dead().len());
}

fn clients(shared: &Shared, text: &mut Exposition) {
    let (mut input, mut output) = (0, 0);
    for client in &shared.clients {
        input += get(&client.query_bytes);
        output += get(&client.output_bytes);
    }
    text.one(&m::CONNECTIONS, shared.clients.len());
    text.one(&m::CONNECTIONS_LIMIT, shared.live.get().maxclients);
    text.one(&m::ACCEPTED, shared.sum(|worker| worker.connections.get()));
    text.one(&m::REJECTED, get(&shared.refused));
    text.one(&m::CUT_OFF, shared.sum(|worker| worker.output_limit_closed.get()));
    text.one(&m::INPUT_BUFFERS, input);
    text.one(&m::OUTPUT_BUFFERS, output);
    text.one(&m::RECEIVED, shared.sum(|worker| worker.received.get()));
    text.one(&m::SENT, shared.sum(|worker| worker.sent.get()));
}

/// What is counted of a family of commands.
struct Family {
    group: Group,
    calls: u64,
    failed: u64,
    rejected: u64,
    durations: Durations,
}

fn families(shared: &Shared) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for entry in table::all() {
        let group = entry.row.group;
        let at = families.iter().position(|family| family.group == group).unwrap_or_else(|| {
            let durations = Durations::default();
            families.push(Family { group, calls: 0, failed: 0, rejected: 0, durations });
            families.len() - 1
        });
        let family = &mut families[at];
        let rows =
            shared.workers.iter().filter_map(|worker| worker.rows.get(usize::from(entry.index)));
        for row in rows {
            family.calls += row.calls.get();
            family.failed += row.failed.get();
            family.rejected += row.rejected.get();
            family.durations.add(&row.durations);
        }
    }
    families
}

fn commands(shared: &Shared, text: &mut Exposition) {
    let families = families(shared);
    let outcomes = families.iter().flat_map(|family| {
        let name = family.group.name();
        let ok = family.calls.saturating_sub(family.failed);
        [
            ([name, "ok"], ok),
            ([name, "error"], family.failed),
            ([name, "rejected"], family.rejected),
        ]
    });
    text.many(&m::COMMANDS, outcomes);
    let bounds: Vec<f64> = (0..BOUNDED).map(|bucket| bound(bucket).as_secs_f64()).collect();
    let durations = families.iter().map(|Family { group, durations, .. }| {
        ([group.name()], durations.buckets.to_vec(), durations.nanos as f64 / 1e9)
    });
    text.histogram(&m::COMMAND_DURATION, &bounds, durations);
    let mut turns = Durations::default();
    shared.workers.iter().for_each(|worker| turns.add(&worker.turns));
    let turns = ([], turns.buckets.to_vec(), turns.nanos as f64 / 1e9);
    text.histogram(&m::TURN_DURATION, &bounds, [turns]);
    let mut errors: BTreeMap<String, u64> =
        CODES.iter().map(|code| ((*code).to_owned(), 0)).collect();
    errors.extend(shared.errors.iter().map(|error| (error.key().clone(), *error.value())));
    text.many(&m::ERRORS, errors.iter().map(|(code, count)| ([code.as_str()], count)));
    text.one(&m::SLOW, shared.slowlog.len());
}

fn tiers(shared: &Shared, text: &mut Exposition) {
    let memory = shared.cache.memory();
    let log = memory.disk();
    let lookups = shared.all_lookups();
    let live = log.map(|log| log.live());
    let resident = memory.all_resident() as u64;
    let tier = |l1: u64, l2: u64, l3: Option<u64>| {
        let tiers = [("l1", Some(l1)), ("l2", Some(l2)), ("l3", l3)];
        tiers.into_iter().filter_map(|(tier, value)| Some(([tier], value?)))
    };
    text.many(&m::LOOKUPS, [(["hit"], lookups.hits()), (["miss"], lookups.misses())]);
    text.many(&m::HITS, tier(lookups.l1, lookups.l2, log.map(|_| lookups.l3)));
    let past_l2 = lookups.l3 + lookups.misses();
    text.many(&m::MISSES, tier(lookups.l2 + past_l2, past_l2, log.map(|_| lookups.misses())));
    let local = shared.sum(|worker| get(&worker.local_entries));
    text.many(&m::ENTRIES, tier(local, resident, live.map(|live| live.0)));
    let local = shared.sum(|worker| get(&worker.local_bytes));
    text.many(&m::BYTES, tier(local, memory.used() as u64, live.map(|live| live.1)));
    let local = shared.local_limit() * shared.workers.len();
    let limits =
        tier(local as u64, memory.rules().limit() as u64, log.map(|log| log.shape().bytes()));
    text.many(&m::LIMIT, limits);
    let keys = (0..memory.databases()).map(|db| (db.to_string(), memory.len(db).0));
    let keys: Vec<_> = keys.filter(|(_, keys)| *keys > 0).collect();
    text.many(&m::KEYS, keys.iter().map(|(db, keys)| ([db.as_str()], keys)));
    text.one(&m::EVICTIONS, memory.evicted());
    text.one(&m::EXPIRATIONS, memory.expired());
}

fn traffic(shared: &Shared, text: &mut Exposition) {
    let Some(Estimate { points, basis }) = shared.miss_ratio_curve() else { return };
    let points = points.iter().filter(|_| basis.is_enough);
    let points: Vec<_> = points.map(|point| (point.times.to_string(), point.hit_ratio)).collect();
    text.many(&m::CURVE, points.iter().map(|(times, ratio)| ([times.as_str()], ratio)));
    text.one(&m::CURVE_KEYS, basis.keys);
    text.one(&m::CURVE_RATE, basis.rate);
}

fn disk(shared: &Shared, log: &Log, text: &mut Exposition) {
    let counters = &log.counters;
    let (waiting, waiting_bytes) = log.queue.len();
    for (metric, counter) in [
        (&m::DEMOTIONS, &counters.demotions),
        (&m::DEMOTED, &counters.demoted_bytes),
        (&m::UNCHANGED, &counters.unchanged),
        (&m::PROMOTIONS, &counters.promotions),
        (&m::REINSERTED, &counters.reinserted),
        (&m::FORGOTTEN, &counters.forgotten),
        (&m::INVALIDATED, &counters.invalidated),
        (&m::DISK_READS, &counters.reads),
        (&m::DISK_READ_BYTES, &counters.read_bytes),
        (&m::DISK_WRITES, &counters.writes),
        (&m::DISK_WRITTEN, &counters.written_bytes),
    ] {
        text.one(metric, get(counter));
    }
    text.one(&m::DISK_READ_SECONDS, get(&counters.read_nanos) as f64 / 1e9);
    let (worthless, behind) = (get(&counters.rejected), get(&counters.dropped));
    text.many(&m::NOT_DEMOTED, [(["admission"], worthless), (["queue"], behind)]);
    let errors = [
        (["read"], get(&counters.read_errors)),
        (["write"], get(&counters.write_errors)),
        (["timeout"], get(&counters.timeouts)),
        (["record"], get(&counters.bad_records)),
    ];
    text.many(&m::DISK_ERRORS, errors);
    text.one(&m::QUEUE_ENTRIES, waiting);
    text.one(&m::QUEUE_BYTES, waiting_bytes);
    text.one(&m::INDEX_BYTES, shared.cache.memory().index_bytes());
}

/// A namespace with what its labels say.
struct Labelled {
    figures: NamespaceFigures,
    db: String,
}

impl Labelled {
    fn all(shared: &Shared) -> Vec<Self> {
        let all = NamespaceFigures::all(shared).into_iter();
        all.map(|figures| Self { db: figures.db.to_string(), figures }).collect()
    }

    fn labels(&self) -> [&str; 2] {
        [&self.figures.prefix, &self.db]
    }

    fn with<'a>(&'a self, third: &'a str) -> [&'a str; 3] {
        [&self.figures.prefix, &self.db, third]
    }
}

fn namespaces(all: &[Labelled], text: &mut Exposition) {
    let hits = all.iter().flat_map(|one| {
        let lookups = &one.figures.lookups;
        [("l1", lookups.l1), ("l2", lookups.l2), ("l3", lookups.l3)]
            .map(|(tier, hits)| (one.with(tier), hits))
    });
    text.many(&m::NAMESPACE_HITS, hits);
    let quotas = all.iter().filter_map(|one| Some((one.labels(), one.figures.quota?)));
    text.many(&m::NAMESPACE_QUOTA, quotas);
    let mut each = |metric: &Metric, figure: fn(&NamespaceFigures) -> u64| {
        text.many(metric, all.iter().map(|one| (one.labels(), figure(&one.figures))));
    };
    each(&m::NAMESPACE_MISSES, |figures| figures.lookups.misses());
    each(&m::NAMESPACE_ENTRIES, |figures| figures.items as u64);
    each(&m::NAMESPACE_BYTES, |figures| figures.bytes as u64);
    each(&m::STALE, |figures| figures.stale_served);
    each(&m::NEGATIVE, |figures| figures.negative_hits);
    each(&m::JOINED, |figures| figures.stampedes_avoided);
    each(&m::CONFLICTS, |figures| figures.conflicts);
    let mut outcomes = |metric: &Metric, figures: fn(&NamespaceFigures) -> (u64, u64)| {
        let samples = all.iter().flat_map(|one| {
            let (ok, errors) = figures(&one.figures);
            [(one.with("ok"), ok), (one.with("error"), errors)]
        });
        text.many(metric, samples);
    };
    outcomes(&m::LOADS, |figures| (figures.loads, figures.load_errors));
    outcomes(&m::REFRESHES, |figures| {
        (figures.refreshes.saturating_sub(figures.refresh_errors), figures.refresh_errors)
    });
    outcomes(&m::STORE_WRITES, |figures| (figures.writes, figures.write_errors));
    let seconds = all.iter().map(|one| (one.labels(), one.figures.load_seconds));
    text.many(&m::LOAD_SECONDS, seconds);
}

fn write_behind(all: &[Labelled], text: &mut Exposition) {
    let mut each = |metric: &Metric, figure: fn(&BehindFigures) -> f64| {
        let samples = all.iter().filter_map(|one| {
            let behind = one.figures.behind.as_ref()?;
            Some((one.labels(), figure(behind)))
        });
        text.many(metric, samples);
    };
    each(&m::DIRTY, |behind| behind.backlog.records as f64);
    each(&m::DIRTY_BYTES, |behind| behind.backlog.bytes as f64);
    each(&m::LAG, |behind| behind.backlog.lag.as_secs_f64());
    each(&m::CHANGES, |behind| behind.changes as f64);
    each(&m::FLUSHED, |behind| behind.flushed as f64);
    each(&m::FLUSHES, |behind| behind.batches as f64);
    each(&m::RETRIES, |behind| behind.retries as f64);
    each(&m::REFUSALS, |behind| behind.refusals as f64);
    each(&m::DEAD_LETTERS, |behind| behind.dead_letters as f64);
}

fn journal(shared: &Shared, figures: crate::journal::Figures, text: &mut Exposition) {
    text.one(&m::JOURNAL_BYTES, figures.disk_bytes);
    text.one(&m::JOURNAL_SEGMENTS, figures.segments);
    text.one(&m::JOURNAL_RECORDS, figures.unacknowledged);
    text.one(&m::JOURNAL_UNFLUSHED, figures.unacknowledged_bytes);
    text.one(&m::JOURNAL_LIMIT, shared.live.get().journal_limit());
    text.one(&m::JOURNAL_AGE, figures.oldest_age as f64 / 1e3);
    text.one(&m::JOURNAL_WRITTEN, figures.written_bytes);
    text.one(&m::SYNCS, figures.syncs);
    text.one(&m::SYNC_SECONDS, figures.sync_micros as f64 / 1e6);
    text.one(&m::JOURNAL_ERRORS, figures.write_errors);
}

fn breakers(shared: &Shared, text: &mut Exposition) {
    let all =
        shared.breakers.iter().map(|breaker| (breaker.name(), breaker.state(), breaker.figures()));
    let all: Vec<_> = all.collect();
    let states = all.iter().flat_map(|(name, state, _)| {
        let states = [State::Closed, State::Open, State::HalfOpen];
        states.map(|other| ([*name, other.name()], u8::from(other == *state)))
    });
    text.many(&m::BREAKER_STATE, states);
    let calls = all.iter().flat_map(|(name, _, figures)| {
        let ok = figures.calls.saturating_sub(figures.failures);
        [([*name, "ok"], ok), ([*name, "error"], figures.failures)]
    });
    text.many(&m::BREAKER_CALLS, calls);
    text.many(&m::BREAKER_SLOW, all.iter().map(|(name, _, figures)| ([*name], figures.slow)));
    text.many(
        &m::BREAKER_REJECTED,
        all.iter().map(|(name, _, figures)| ([*name], figures.rejected)),
    );
    text.many(&m::BREAKER_OPENED, all.iter().map(|(name, _, figures)| ([*name], figures.opened)));
}
