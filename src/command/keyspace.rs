//! Commands on whole databases: DBSIZE, FLUSHDB, FLUSHALL, SWAPDB.
//!
//! Flushing takes the tables away at once; what was in them is freed on a thread of its own if it is
//! much (ten million entries take a second), whether SYNC or ASYNC was asked for. Stores are told
//! nothing: what is flushed is only forgotten.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    Args, Session,
    row::{Flags, Group, NO_KEYS, Row, Run},
    shared::LazilyFreed,
};
use crate::{
    cache::{Cache, tx::Stop},
    error::ClientError,
    protocol::Reply,
    tier::table::Table,
    value::number::parse_i64,
};

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "dbsize",
        arity: 1,
        flags: Flags::READONLY.with(Flags::FAST),
        keys: NO_KEYS,
        run: Run::Session(size),
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Counts the keys of the database that are in memory.",
        syntax: "",
    },
    Row {
        name: "flushdb",
        arity: -1,
        flags: Flags::WRITE,
        keys: NO_KEYS,
        run: Run::Session(flush_one),
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(N) where N is the number of keys in the selected database",
        summary: "Empties the database.",
        syntax: "[ASYNC | SYNC]",
    },
    Row {
        name: "flushall",
        arity: -1,
        flags: Flags::WRITE,
        keys: NO_KEYS,
        run: Run::Session(flush_all),
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(N) where N is the total number of keys in all databases",
        summary: "Empties all databases.",
        syntax: "[ASYNC | SYNC]",
    },
    Row {
        name: "swapdb",
        arity: 3,
        flags: Flags::WRITE.with(Flags::FAST),
        keys: NO_KEYS,
        run: Run::Session(swap),
        group: Group::Server,
        since: "4.0.0",
        complexity: "O(N) where N is the number of stripes.",
        summary: "Gives two databases each other's keys.",
        syntax: "index1 index2",
    },
];

/// So many entries are freed at once: about half a millisecond.
const FREED_AT_ONCE: usize = 5_000;

fn size(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (keys, _) = session.cache().memory().len(session.db);
    reply.integer(keys as i64);
    Ok(())
}

fn flush_one(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    check_mode(args)?;
    let db = session.db;
    free(session.cache().memory().flush(db..db + 1), &session.shared.lazily_freed);
    session.cache().traffic().forget(|gone| gone == db);
    reply.ok();
    Ok(())
}

fn flush_all(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    check_mode(args)?;
    let memory = session.cache().memory();
    free(memory.flush(0..memory.databases()), &session.shared.lazily_freed);
    session.cache().traffic().forget(|_| true);
    reply.ok();
    Ok(())
}

/// ASYNC and SYNC mean the same here (see the module's doc); anything else is an error.
fn check_mode(args: Args<'_>) -> Result<(), ClientError> {
    match args.len() {
        1 => Ok(()),
        2 if args.is(1, "async") || args.is(1, "sync") => Ok(()),
        _ => Err(ClientError::SYNTAX),
    }
}

/// Frees what was flushed; says whether another thread does it.
fn free(tables: Vec<Table>, figures: &Arc<LazilyFreed>) -> bool {
    let entries = tables.iter().map(Table::len).sum::<usize>();
    if entries <= FREED_AT_ONCE {
        return false;
    }
    let (entries, counted) = (entries as u64, figures.clone());
    figures.pending.fetch_add(entries, Relaxed);
    let free = move || {
        drop(tables);
        counted.pending.fetch_sub(entries, Relaxed);
        counted.freed.fetch_add(entries, Relaxed);
    };
    let thread = std::thread::Builder::new().name("larder-free".into());
    let is_elsewhere = thread.spawn(free).is_ok();
    if !is_elsewhere {
        // Without a thread it is done: the tables went with the closure.
        figures.pending.fetch_sub(entries, Relaxed);
    }
    is_elsewhere
}

fn swap(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (a, b) = swapped(session.cache(), args.get(1), args.get(2))?;
    session.cache().memory().swap(a, b);
    session.cache().traffic().swap(a, b);
    session.cache().memory().keep_quotas(session.now);
    reply.ok();
    Ok(())
}

const INVALID_FIRST: ClientError = ClientError::new("ERR invalid first DB index");
const INVALID_SECOND: ClientError = ClientError::new("ERR invalid second DB index");

/// The databases that SWAPDB names, if they may be swapped.
fn swapped(cache: &Cache, first: &[u8], second: &[u8]) -> Result<(usize, usize), ClientError> {
    let number = |text| parse_i64(text).and_then(|number| i32::try_from(number).ok());
    let first = number(first).ok_or(INVALID_FIRST)?;
    let second = number(second).ok_or(INVALID_SECOND)?;
    let databases = cache.memory().databases();
    let index = |number| usize::try_from(number).ok().filter(|db| *db < databases);
    let (a, b) = index(first).zip(index(second)).ok_or(ClientError::DB_INDEX)?;
    if a != b {
        check_owners(cache, a, b)?;
    }
    Ok((a, b))
}

/// A namespace with a store lives in one database (SEMANTICS 16): elsewhere its keys would be lost to
/// it, and others would take their place.
fn check_owners(cache: &Cache, a: usize, b: usize) -> Result<(), ClientError> {
    let mut namespaces = cache.policies().iter();
    let owner = namespaces.find(|found| found.store.is_some() && (found.db == a || found.db == b));
    owner.map_or(Ok(()), |found| {
        let (prefix, db) = (String::from_utf8_lossy(&found.prefix), found.db);
        Err(ClientError::from(format!(
            "ERR database {db} can't be swapped: its namespace '{prefix}' has a store"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::keys::testing::Bench, *};
    use crate::{
        clock::Clock,
        policy::{Namespace, Policies, Read, Write},
        tier::memory::Options,
    };

    #[test]
    fn much_is_freed_elsewhere() {
        let (bench, figures) = (Bench::new(&[], Default::default()), Arc::default());
        let fill = |count: usize| {
            (0..count).for_each(|number| bench.put(&format!("{number}"), b"v", 0));
            free(bench.cache.memory().flush(0..1), &figures)
        };
        assert!(!fill(FREED_AT_ONCE));
        assert!(fill(FREED_AT_ONCE + 1));
        let count = FREED_AT_ONCE as u64 + 1;
        while figures.freed.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        assert_eq!((figures.pending.load(Relaxed), figures.freed.load(Relaxed)), (0, count));
        assert_eq!(bench.cache.memory().len(0), (0, 0));
    }

    fn refusal(cache: &Cache, first: &str, second: &str) -> String {
        let error = swapped(cache, first.as_bytes(), second.as_bytes()).unwrap_err();
        error.text().to_owned()
    }

    #[test]
    fn databases_to_swap_are_checked() {
        let bench = Bench::new(&[], Default::default());
        let cache = &bench.cache;
        assert_eq!(swapped(cache, b"1", b"15"), Ok((1, 15)));
        assert_eq!(refusal(cache, "x", "y"), "ERR invalid first DB index");
        assert_eq!(refusal(cache, "0", "y"), "ERR invalid second DB index");
        assert_eq!(refusal(cache, "2147483648", "0"), "ERR invalid first DB index");
        assert_eq!(refusal(cache, "0", "16"), "ERR DB index is out of range");
        assert_eq!(refusal(cache, "-1", "0"), "ERR DB index is out of range");
    }

    #[tokio::test]
    async fn a_database_with_a_store_stays() {
        let namespace = Namespace {
            prefix: b"user:"[..].into(),
            db: 3,
            read: Read::Through,
            write: Write::None,
            ttl: None,
            store: Some(("main".into(), crate::store::memory())),
            ..Namespace::default()
        };
        let runtime = Some(tokio::runtime::Handle::current());
        let policies = Policies::new(vec![namespace]);
        let cache = Cache::new(&Options::default(), policies, Clock::manual(1), runtime);
        assert_eq!(swapped(&cache, b"0", b"1"), Ok((0, 1)));
        assert_eq!(swapped(&cache, b"3", b"3"), Ok((3, 3)));
        let text = "ERR database 3 can't be swapped: its namespace 'user:' has a store";
        assert_eq!(refusal(&cache, "1", "3"), text);
    }
}
