//! LARDER.NAMESPACE, LARDER.FLUSH and INFO's section `namespaces`: what happens between cache and store, by
//! prefix, and what may change of that while the server runs.

use std::sync::atomic::Ordering::Relaxed;

use futures_util::FutureExt;

use super::{
    Args, Session,
    figures::ratio,
    info::Text,
    row::{Flags, Group, NO_KEYS, Row, Run},
    server::{HELP, SUB, help},
};
use crate::{
    cache::{counter::Tally, tx::Stop},
    error::ClientError,
    policy::Namespace,
    protocol::Reply,
    tier::groups,
};

const READ: Flags = Flags::LOADING.with(Flags::STALE);

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "larder.namespace",
        arity: -2,
        run: Run::Sub(&[
            Row {
                name: "get",
                arity: 3,
                flags: Flags::ADMIN.with(READ),
                run: Run::Session(get),
                complexity: "O(N) where N is the number of namespaces.",
                since: "0.1.0",
                summary: "Shows what can be set of the namespace of a prefix: keys and values, as CONFIG GET \
                          has values; an empty one is none.",
                syntax: "prefix",
                ..SUB
            },
            Row { name: "help", run: Run::Session(help_text), since: "0.1.0", ..HELP },
            Row {
                name: "info",
                arity: 3,
                flags: READ,
                run: Run::Session(info_of_key),
                complexity: "O(N) where N is the number of namespaces.",
                since: "0.1.0",
                summary: "Shows the namespace of a key, and what happened in it since the start.",
                syntax: "key",
                ..SUB
            },
            Row {
                name: "list",
                arity: 2,
                flags: READ,
                run: Run::Session(list),
                complexity: "O(N) where N is the number of namespaces.",
                since: "0.1.0",
                summary: "Shows every namespace, and what happened in it since the start.",
                syntax: "",
                ..SUB
            },
            Row {
                name: "set",
                arity: -5,
                flags: Flags::ADMIN.with(READ),
                run: Run::Session(set),
                complexity: "O(N) where N is the number of namespaces.",
                since: "0.1.0",
                summary: "Changes keys of the namespace of a prefix, in the selected database, all of them or \
                          none; `default` takes one out. Those that take a restart are refused.",
                syntax: "prefix key value [key value ...]",
                ..SUB
            },
        ]),
        group: Group::Larder,
        since: "0.1.0",
        complexity: "Depends on subcommand.",
        summary: "The namespaces: what a miss and a write of the keys with a prefix do.",
        ..SUB
    },
    Row {
        name: "larder.flush",
        arity: -1,
        flags: Flags::ADMIN,
        keys: NO_KEYS,
        run: Run::Waiting(|session, args, reply| flush(session, args, reply).boxed_local()),
        group: Group::Larder,
        since: "0.1.0",
        complexity: "O(N) where N is the number of unflushed changes.",
        summary: "Waits until the stores have every change that was written behind before it, in all \
                  namespaces or in those with these prefixes.",
        syntax: "[prefix [prefix ...]]",
    },
];

fn help_text(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let lines = [
        "GET <prefix>",
        "    Show what can be set of the namespace of the prefix.",
        "INFO <key>",
        "    Show the namespace of the key, in the selected database.",
        "LIST",
        "    Show every namespace.",
        "SET <prefix> <key> <value> [<key> <value> ...]",
        "    Change keys of the namespace of the prefix, all of them or none.",
        "    (the value 'default' takes one out)",
    ];
    help(reply, "LARDER.NAMESPACE", &lines);
    Ok(())
}

/// What is shown of a namespace: its name for a field, and the value.
enum Field {
    Text(&'static str, String),
    Number(&'static str, u64),
    /// With two digits behind the point.
    Fraction(&'static str, f64),
}

/// What a namespace is, and what happened in it since the start.
fn fields(
    session: &Session,
    (number, namespace): (usize, &Namespace),
    tally: groups::Tally,
) -> Vec<Field> {
    let stats = &namespace.stats;
    let get = |figure: &std::sync::atomic::AtomicU64| figure.load(Relaxed);
    let loads = get(&stats.loads);
    let load_errors = get(&stats.load_errors);
    let store = namespace.store.as_ref().map_or("", |(name, _)| name);
    let sum = |count: fn(&Tally) -> u64| {
        session.shared.sum(|worker| worker.keys.namespaces.get(number).map_or(0, count))
    };
    let (hits, misses) = (sum(|tally| tally.hits.get()), sum(|tally| tally.misses.get()));
    let (l1, l3) = (sum(|tally| tally.local_hits.get()), sum(|tally| tally.disk_hits.get()));
    let loaded = sum(|tally| tally.loaded_hits.get());
    let mean_load = ratio(get(&stats.load_micros), loads + load_errors);
    // What was loaded for a read was no hit to it.
    let cached = hits - loaded.min(hits);
    let mut fields = vec![
        Field::Text("prefix", one_word(&namespace.prefix)),
        Field::Number("db", namespace.db as u64),
        Field::Text("mode", namespace.mode()),
        Field::Text("store", store.to_owned()),
        Field::Number("items", tally.items as u64),
        Field::Number("bytes", tally.bytes as u64),
        Field::Number("quota", namespace.quota.unwrap_or(0) as u64),
        Field::Number("requests", hits + misses),
        Field::Number("hits", cached),
        Field::Number("l1_hits", l1),
        Field::Number("l2_hits", cached - (l1 + l3).min(cached)),
        Field::Number("l3_hits", l3),
        Field::Number("misses", misses + loaded),
        Field::Fraction("hit_rate", ratio(cached, hits + misses)),
        Field::Fraction("seconds_saved", cached as f64 * mean_load / 1e6),
        Field::Number("stale_served", get(&stats.stale_served)),
        Field::Number("negative_hits", get(&stats.negative_hits)),
        Field::Number("stampedes_avoided", get(&stats.joined)),
        Field::Number("refreshes", get(&stats.refreshes)),
        Field::Number("refresh_errors", get(&stats.refresh_errors)),
        Field::Number("loads", loads),
        Field::Number("load_errors", load_errors),
        Field::Fraction("usec_per_load", mean_load),
        Field::Number("writes", get(&stats.writes)),
        Field::Number("write_errors", get(&stats.write_errors)),
        Field::Number("conflicts", get(&stats.conflicts)),
    ];
    if let Some(line) = &namespace.line {
        let (backlog, counters) = (line.backlog(), line.counters());
        fields.extend([
            Field::Number("dirty_records", backlog.records),
            Field::Number("dirty_bytes", backlog.bytes),
            Field::Fraction("flush_lag_seconds", backlog.lag.as_secs_f64()),
            Field::Number("behind_changes", get(&counters.changes)),
            Field::Number("flushed", get(&counters.flushed)),
            Field::Number("flush_batches", get(&counters.batches)),
            Field::Number("retries", get(&counters.retries)),
            Field::Number("refusals", get(&counters.refusals)),
            Field::Number("dead_letters", get(&counters.dead_letters)),
        ]);
    }
    fields
}

/// A prefix without what would end its field or the line.
fn one_word(prefix: &[u8]) -> String {
    prefix.escape_ascii().to_string().replace(',', "\\x2c")
}

/// Writes INFO's section `namespaces`.
pub(super) fn info(session: &Session, text: &mut Text) {
    let tallies = session.cache().memory().tallies();
    let namespaces = session.cache().policies().iter().enumerate();
    for ((number, namespace), tally) in namespaces.zip(tallies) {
        let fields = fields(session, (number, namespace), tally).into_iter();
        let fields = fields.map(|field| match field {
            Field::Text(name, value) => format!("{name}={value}"),
            Field::Number(name, value) => format!("{name}={value}"),
            Field::Fraction(name, value) => format!("{name}={value:.2}"),
        });
        text.field(&format!("namespace{number}"), fields.collect::<Vec<_>>().join(","));
    }
}

fn show(
    session: &Session,
    namespace: (usize, &Namespace),
    tally: groups::Tally,
    reply: &mut Reply<'_>,
) {
    let fields = fields(session, namespace, tally);
    reply.map(fields.len());
    for field in fields {
        match field {
            Field::Text(name, value) => {
                reply.bulk(name.as_bytes());
                reply.bulk(value.as_bytes());
            }
            Field::Number(name, value) => {
                reply.bulk(name.as_bytes());
                reply.integer(value as i64);
            }
            Field::Fraction(name, value) => {
                reply.bulk(name.as_bytes());
                reply.double(value);
            }
        }
    }
}

fn list(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let policies = session.shared.cache.policies();
    reply.array(policies.iter().count());
    let tallies = session.shared.cache.memory().tallies();
    for (namespace, tally) in policies.iter().enumerate().zip(tallies) {
        show(session, namespace, tally, reply);
    }
    Ok(())
}

/// The namespace of a key; null if it has none.
fn info_of_key(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let policies = session.shared.cache.policies();
    match policies.index_of(session.db, args.get(2)) {
        Some(index) => {
            let tally = session.shared.cache.memory().tallies()[index];
            show(session, (index, policies.at(index)), tally, reply);
        }
        None => reply.null(),
    }
    Ok(())
}

fn get(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let found = session.shared.live.get_namespace(args.get(2), session.db)?;
    reply.map(found.len());
    for (name, value) in found {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    Ok(())
}

fn set(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    if args.len().is_multiple_of(2) {
        return Err(ClientError::SYNTAX.into());
    }
    let pair = |at| (args.get(at), args.get(at + 1));
    let pairs: Vec<_> = (3..args.len()).step_by(2).map(pair).collect();
    let shared = &session.shared;
    let apply = |all: &[_]| shared.apply_namespaces(all);
    shared.live.set_namespace((args.get(2), session.db), &pairs, apply)?;
    reply.ok();
    Ok(())
}

async fn flush(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let policies = session.shared.cache.policies();
    let mut lines = Vec::new();
    for prefix in args.from(1) {
        let mut named = policies.iter().filter(|namespace| *namespace.prefix == *prefix).peekable();
        if named.peek().is_none() {
            return Err(ClientError::new("ERR no namespace has this prefix").into());
        }
        lines.extend(named.filter_map(|namespace| namespace.line.as_ref()));
    }
    let flushed = async {
        match policies.behind() {
            Some(behind) if args.len() == 1 => behind.flush().await,
            _ => {
                for line in lines {
                    line.flush().await?;
                }
                Ok(())
            }
        }
    };
    flushed.await.map_err(|why| why.client_error())?;
    reply.ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::testing::{call, session_with},
        config::Config,
        policy::{NamespaceStats, Policies},
    };

    #[test]
    fn what_happened_in_a_namespace() {
        let namespace = Namespace { prefix: b"a,\n:"[..].into(), ..Namespace::default() };
        NamespaceStats::add(&namespace.stats.loads, 4);
        NamespaceStats::add(&namespace.stats.load_micros, 10);
        let policies = Policies::new(vec![namespace]);
        let (mut session, _requests) = session_with(&Config::default(), policies);
        call(&mut session, &["GET", "a,\n:x"]);
        call(&mut session, &["SET", "a,\n:x", "1"]);
        call(&mut session, &["GET", "a,\n:x"]);
        call(&mut session, &["GET", "a,\n:x"]);
        call(&mut session, &["GET", "else"]);
        let reply = call(&mut session, &["INFO", "namespaces"]);
        let line = "namespace0:prefix=a\\x2c\\n:,db=0,mode=cache-aside,store=,items=1,bytes=32,quota=0,\
                    requests=3,hits=2,l1_hits=0,l2_hits=2,l3_hits=0,misses=1,hit_rate=0.67,seconds_saved=0.00,\
                    stale_served=0,negative_hits=0,stampedes_avoided=0,refreshes=0,\
                    refresh_errors=0,loads=4,load_errors=0,usec_per_load=2.50,writes=0,\
                    write_errors=0,conflicts=0\r\n";
        assert!(reply.contains(line), "{reply}");
        let shown = call(&mut session, &["LARDER.NAMESPACE", "INFO", "a,\n:x"]);
        assert!(shown.starts_with("*52\r\n$6\r\nprefix\r\n$8\r\na\\x2c\\n:\r\n"), "{shown}");
        assert_eq!(call(&mut session, &["LARDER.NAMESPACE", "INFO", "b"]), "$-1\r\n");
        assert!(call(&mut session, &["LARDER.NAMESPACE", "LIST"]).starts_with("*1\r\n*52\r\n"));
    }
}
