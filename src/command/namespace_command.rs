//! LARDER.NAMESPACE, LARDER.FLUSH and INFO's section `namespaces`: what happens between cache and store, by
//! prefix, and what may change of that while the server runs.

use futures_util::FutureExt;

use super::{
    Args, Session,
    info::Text,
    namespace_figures::NamespaceFigures,
    row::{Flags, Group, NO_KEYS, Row, Run},
    server::{HELP, SUB, help},
};
use crate::{cache::tx::Stop, error::ClientError, protocol::Reply};

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

/// What a namespace is, and what happened in it since the start, by name.
fn fields(figures: &NamespaceFigures) -> Vec<Field> {
    let lookups = &figures.lookups;
    let mut fields = vec![
        Field::Text("prefix", figures.prefix.clone()),
        Field::Number("db", figures.db as u64),
        Field::Text("mode", figures.mode.clone()),
        Field::Text("store", figures.store.clone()),
        Field::Number("items", figures.items as u64),
        Field::Number("bytes", figures.bytes as u64),
        Field::Number("quota", figures.quota.unwrap_or(0) as u64),
        Field::Number("requests", lookups.all()),
        Field::Number("hits", lookups.hits()),
        Field::Number("l1_hits", lookups.l1),
        Field::Number("l2_hits", lookups.l2),
        Field::Number("l3_hits", lookups.l3),
        Field::Number("misses", lookups.misses()),
        Field::Fraction("hit_rate", lookups.hit_rate()),
        Field::Fraction("seconds_saved", figures.seconds_saved()),
        Field::Number("stale_served", figures.stale_served),
        Field::Number("negative_hits", figures.negative_hits),
        Field::Number("stampedes_avoided", figures.stampedes_avoided),
        Field::Number("refreshes", figures.refreshes),
        Field::Number("refresh_errors", figures.refresh_errors),
        Field::Number("loads", figures.loads),
        Field::Number("load_errors", figures.load_errors),
        Field::Fraction("usec_per_load", figures.mean_load() * 1e6),
        Field::Number("writes", figures.writes),
        Field::Number("write_errors", figures.write_errors),
        Field::Number("conflicts", figures.conflicts),
    ];
    if let Some(behind) = &figures.behind {
        fields.extend([
            Field::Number("dirty_records", behind.backlog.records),
            Field::Number("dirty_bytes", behind.backlog.bytes),
            Field::Fraction("flush_lag_seconds", behind.backlog.lag.as_secs_f64()),
            Field::Number("behind_changes", behind.changes),
            Field::Number("flushed", behind.flushed),
            Field::Number("flush_batches", behind.batches),
            Field::Number("retries", behind.retries),
            Field::Number("refusals", behind.refusals),
            Field::Number("dead_letters", behind.dead_letters),
        ]);
    }
    fields
}

/// Writes INFO's section `namespaces`.
pub(super) fn info(session: &Session, text: &mut Text) {
    for (number, figures) in NamespaceFigures::all(&session.shared).iter().enumerate() {
        let fields = fields(figures).into_iter().map(|field| match field {
            Field::Text(name, value) => format!("{name}={value}"),
            Field::Number(name, value) => format!("{name}={value}"),
            Field::Fraction(name, value) => format!("{name}={value:.2}"),
        });
        text.field(&format!("namespace{number}"), fields.collect::<Vec<_>>().join(","));
    }
}

fn show(figures: &NamespaceFigures, reply: &mut Reply<'_>) {
    let fields = fields(figures);
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
    let all = NamespaceFigures::all(&session.shared);
    reply.array(all.len());
    all.iter().for_each(|figures| show(figures, reply));
    Ok(())
}

/// The namespace of a key; null if it has none.
fn info_of_key(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let index = session.shared.cache.policies().index_of(session.db, args.get(2));
    match index.and_then(|index| NamespaceFigures::all(&session.shared).into_iter().nth(index)) {
        Some(figures) => show(&figures, reply),
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
    use crate::{
        command::testing::{call, session_with},
        config::Config,
        policy::{Namespace, NamespaceStats, Policies},
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
