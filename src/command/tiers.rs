//! The tiers, seen from outside: LARDER.TIER, LARDER.STATS, and INFO's section `tiers`.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use futures_util::FutureExt;

use super::{
    Args, Session,
    figures::ratio,
    info::Text,
    row::{Flags, Group, NO_KEYS, Row, Run},
};
use crate::{
    cache::{
        tx::Stop,
        walk::{Place, Tier},
    },
    protocol::Reply,
    tier::log::Log,
};

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "larder.tier",
        arity: 2,
        flags: Flags::READONLY,
        keys: NO_KEYS,
        run: Run::Waiting(|session, args, reply| tier(session, args, reply).boxed_local()),
        group: Group::Larder,
        since: "0.1.0",
        complexity: "O(1)",
        summary: "Says in which tier a key is, without moving it: a map of `tier` (`l2` memory, `queue` \
                  on its way to disk, `l3` disk), `stored` (1 if the disk has a record of it as it is) \
                  and `since` (the unix second at which its segment of the disk was begun; null for \
                  memory, where no time is kept). Null if there is no such key.",
        syntax: "key",
    },
    Row {
        name: "larder.stats",
        arity: 1,
        flags: Flags::READONLY.with(Flags::LOADING).with(Flags::STALE),
        keys: NO_KEYS,
        run: Run::Session(stats),
        group: Group::Larder,
        since: "0.1.0",
        complexity: "O(N) where N is the number of stripes.",
        summary: "Shows the figures of each tier, as INFO's section `tiers` does: a map of maps.",
        syntax: "",
    },
];

async fn tier(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let place = session.cache().place(session.db, args.get(1), session.now).await;
    let Some(Place { tier, stored, since }) = place else {
        reply.null();
        return Ok(());
    };
    let tier = match tier {
        Tier::Memory => "l2",
        Tier::Queue => "queue",
        Tier::Disk => "l3",
    };
    reply.map(3);
    reply.bulk(b"tier");
    reply.bulk(tier.as_bytes());
    reply.bulk(b"stored");
    reply.integer(i64::from(stored));
    reply.bulk(b"since");
    match since {
        Some(second) => reply.integer(second as i64),
        None => reply.null(),
    }
    Ok(())
}

/// A figure of a tier.
enum Figure {
    Count(u64),
    Ratio(f64),
}

type Figures = Vec<(&'static str, Figure)>;

/// The workers' own caches, all together. A lookup that passes them by isn't counted as a miss.
fn local(session: &Session) -> Figures {
    let shared = &session.shared;
    let count = |count: u64| Figure::Count(count);
    vec![
        ("hits", count(shared.all_lookups().l1)),
        ("entries", count(shared.sum(|worker| worker.local_entries.load(Relaxed)))),
        ("bytes", count(shared.sum(|worker| worker.local_bytes.load(Relaxed)))),
        ("limit", count((shared.local_limit() * shared.workers.len()) as u64)),
    ]
}

fn memory(session: &Session) -> Figures {
    let (shared, memory) = (&session.shared, session.cache().memory());
    let lookups = shared.all_lookups();
    vec![
        ("hits", Figure::Count(lookups.l2)),
        ("misses", Figure::Count(lookups.l3 + lookups.misses())),
        ("entries", Figure::Count(memory.all_resident() as u64)),
        ("bytes", Figure::Count(memory.used() as u64)),
        ("limit", Figure::Count(memory.rules().limit() as u64)),
        ("evicted", Figure::Count(memory.evicted())),
        ("expired", Figure::Count(memory.expired())),
        ("usec_per_request", Figure::Ratio(shared.all_durations().mean() / 1e3)),
    ]
}

fn disk(session: &Session, log: &Log) -> Figures {
    let shared = &session.shared;
    let counters = &log.counters;
    let get = |counter: &AtomicU64| counter.load(Relaxed);
    let count = |counter: &AtomicU64| Figure::Count(get(counter));
    let (entries, bytes) = log.live();
    let (waiting, waiting_bytes) = log.queue.len();
    let read_hits = get(&counters.hits).saturating_sub(get(&counters.queue_hits));
    let lookups = shared.all_lookups();
    let amplification = ratio(get(&counters.written_bytes), get(&counters.demoted_bytes));
    vec![
        ("hits", Figure::Count(lookups.l3)),
        ("misses", Figure::Count(lookups.misses())),
        ("entries", Figure::Count(entries)),
        ("bytes", Figure::Count(bytes)),
        ("size", Figure::Count(log.shape().bytes())),
        ("index_bytes", Figure::Count(session.cache().memory().index_bytes() as u64)),
        ("queue_entries", Figure::Count(waiting as u64)),
        ("queue_bytes", Figure::Count(waiting_bytes as u64)),
        ("queue_hits", count(&counters.queue_hits)),
        ("promotions", count(&counters.promotions)),
        ("demotions", count(&counters.demotions)),
        ("demoted_bytes", count(&counters.demoted_bytes)),
        ("unchanged", count(&counters.unchanged)),
        ("rejected", count(&counters.rejected)),
        ("dropped", count(&counters.dropped)),
        ("reinserted", count(&counters.reinserted)),
        ("forgotten", count(&counters.forgotten)),
        ("invalidated", count(&counters.invalidated)),
        ("recovered", count(&counters.recovered)),
        ("reads", count(&counters.reads)),
        ("key_reads", count(&counters.key_reads)),
        ("read_bytes", count(&counters.read_bytes)),
        ("reads_per_hit", Figure::Ratio(ratio(get(&counters.reads), read_hits))),
        (
            "usec_per_read",
            Figure::Ratio(ratio(get(&counters.read_nanos), get(&counters.reads)) / 1e3),
        ),
        ("writes", count(&counters.writes)),
        ("written_bytes", count(&counters.written_bytes)),
        ("write_amplification", Figure::Ratio(amplification)),
        ("other_keys", count(&counters.other_keys)),
        ("bad_records", count(&counters.bad_records)),
        ("read_errors", count(&counters.read_errors)),
        ("write_errors", count(&counters.write_errors)),
        ("timeouts", count(&counters.timeouts)),
    ]
}

fn figures(session: &Session) -> Vec<(&'static str, Figures)> {
    let mut tiers = vec![("l1", local(session)), ("l2", memory(session))];
    if let Some(log) = session.cache().memory().log() {
        tiers.push(("l3", disk(session, log)));
    }
    tiers
}

/// `# Tiers`: a line for each.
pub(super) fn info(session: &Session, text: &mut Text) {
    for (tier, figures) in figures(session) {
        let mut line = String::new();
        for (name, figure) in figures {
            let comma = if line.is_empty() { "" } else { "," };
            // Writing to a string doesn't fail.
            let _ = match figure {
                Figure::Count(count) => write!(line, "{comma}{name}={count}"),
                Figure::Ratio(ratio) => write!(line, "{comma}{name}={ratio:.3}"),
            };
        }
        text.field(tier, line);
    }
}

fn stats(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let tiers = figures(session);
    reply.map(tiers.len());
    for (tier, figures) in tiers {
        reply.bulk(tier.as_bytes());
        reply.map(figures.len());
        for (name, figure) in figures {
            reply.bulk(name.as_bytes());
            match figure {
                Figure::Count(count) => reply.integer(count as i64),
                Figure::Ratio(ratio) => reply.double(ratio),
            }
        }
    }
    Ok(())
}
