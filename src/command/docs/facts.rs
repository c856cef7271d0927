//! What COMMAND INFO says of a row beyond the row itself: categories of ACLs, hints for clients
//! ("tips"), and what becomes of each key. Nearly all of it follows from the row's flags, group and key
//! uses; the exceptions, which are Redis's, are listed here by name.
//!
//! See <https://redis.io/docs/latest/commands/command/> and the pages on command tips and key
//! specifications beside it.

use crate::{
    cache::Use,
    command::{
        row::{Flags, Group, KeySpec, Row},
        table::Entry,
    },
};

/// All categories, in the order in which COMMAND INFO lists them.
pub const CATEGORIES: [&str; 21] = [
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "hyperloglog",
    "geo",
    "stream",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
];

/// Categories that flags and group don't show, by command or container.
const MORE_CATEGORIES: &[(&str, &[&str])] = &[
    ("command", &["connection"]),
    ("dbsize", &["keyspace"]),
    ("flushall", &["keyspace", "dangerous"]),
    ("flushdb", &["keyspace", "dangerous"]),
    ("info", &["dangerous"]),
    ("keys", &["dangerous"]),
    ("lastsave", &["admin", "dangerous"]),
    ("restore", &["dangerous"]),
    ("role", &["admin", "dangerous"]),
    ("swapdb", &["keyspace", "dangerous"]),
];

/// The categories of a command, without their `@`.
pub fn categories(entry: &Entry) -> Vec<&'static str> {
    CATEGORIES.into_iter().filter(|category| is_in(entry, category)).collect()
}

/// Whether a command is of a category.
pub fn is_in(entry: &Entry, category: &str) -> bool {
    let (row, flags) = (entry.row, entry.row.flags);
    let full_name = entry.full_name();
    let family = full_name.split('|').next().unwrap_or_default();
    let by_row = match category {
        "read" => flags.has(Flags::READONLY),
        "write" => flags.has(Flags::WRITE),
        "admin" | "dangerous" => flags.has(Flags::ADMIN),
        "fast" => flags.has(Flags::FAST),
        "slow" => !flags.has(Flags::FAST),
        "blocking" => flags.has(Flags::BLOCKING),
        "pubsub" => flags.has(Flags::PUBSUB),
        _ => !is_container(row) && category == group_category(row.group),
    };
    let more = MORE_CATEGORIES.iter().find(|(name, _)| *name == family);
    by_row || more.is_some_and(|(_, categories)| categories.contains(&category))
}

/// A container that does nothing by itself.
fn is_container(row: &Row) -> bool {
    !row.subcommands().is_empty() && row.arity.unsigned_abs() > 1
}

fn group_category(group: Group) -> &'static str {
    match group {
        Group::Generic => "keyspace",
        Group::String => "string",
        Group::Bitmap => "bitmap",
        Group::Connection => "connection",
        Group::Server | Group::Larder => "",
    }
}

const MULTI_SUM: &[&str] = &["request_policy:multi_shard", "response_policy:agg_sum"];
const SHARDS_SUM: &[&str] = &["request_policy:all_shards", "response_policy:agg_sum"];
const SHARDS_ALL: &[&str] = &["request_policy:all_shards", "response_policy:all_succeeded"];
const NODES_ALL: &[&str] = &["request_policy:all_nodes", "response_policy:all_succeeded"];
const VARIES: &[&str] = &["nondeterministic_output"];
const ORDER_VARIES: &[&str] = &["nondeterministic_output_order"];
const SHARDS_SPECIAL: &[&str] =
    &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"];
const NODES_SPECIAL: &[&str] =
    &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"];

const TIPS: &[(&str, &[&str])] = &[
    ("client|info", VARIES),
    ("client|list", VARIES),
    ("command", ORDER_VARIES),
    ("command|docs", ORDER_VARIES),
    ("command|info", ORDER_VARIES),
    ("command|list", ORDER_VARIES),
    ("config|resetstat", NODES_ALL),
    ("config|rewrite", NODES_ALL),
    ("config|set", NODES_ALL),
    ("dbsize", SHARDS_SUM),
    ("del", MULTI_SUM),
    ("dump", VARIES),
    ("exists", MULTI_SUM),
    ("flushall", SHARDS_ALL),
    ("flushdb", SHARDS_ALL),
    ("info", SHARDS_SPECIAL),
    ("keys", &["request_policy:all_shards", "nondeterministic_output_order"]),
    ("lastsave", VARIES),
    ("latency|doctor", NODES_SPECIAL),
    ("latency|graph", NODES_SPECIAL),
    ("latency|histogram", NODES_SPECIAL),
    ("latency|history", NODES_SPECIAL),
    ("latency|latest", NODES_SPECIAL),
    ("latency|reset", &["request_policy:all_nodes", "response_policy:agg_sum"]),
    ("memory|doctor", SHARDS_SPECIAL),
    ("memory|malloc-stats", SHARDS_SPECIAL),
    ("memory|purge", SHARDS_ALL),
    ("memory|stats", SHARDS_SPECIAL),
    ("mget", &["request_policy:multi_shard"]),
    ("mset", &["request_policy:multi_shard", "response_policy:all_succeeded"]),
    ("object|encoding", VARIES),
    ("object|freq", VARIES),
    ("object|idletime", VARIES),
    ("object|refcount", VARIES),
    ("ping", SHARDS_ALL),
    ("pttl", VARIES),
    (
        "randomkey",
        &["request_policy:all_shards", "response_policy:special", "nondeterministic_output"],
    ),
    ("scan", &["nondeterministic_output", "request_policy:special", "response_policy:special"]),
    ("slowlog|get", &["request_policy:all_nodes", "nondeterministic_output"]),
    (
        "slowlog|len",
        &["request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"],
    ),
    ("slowlog|reset", NODES_ALL),
    ("time", VARIES),
    ("touch", MULTI_SUM),
    ("ttl", VARIES),
    ("unlink", MULTI_SUM),
];

/// The hints for clients of a command.
pub fn tips(full_name: &str) -> &'static [&'static str] {
    TIPS.iter().find(|(name, _)| *name == full_name).map_or(&[], |(_, tips)| tips)
}

/// What becomes of the keys of one specification: `RO`, `RW`, `OW` (overwritten) or `RM` (removed), then
/// what is done with the value.
const KEY_FLAGS: &[(&str, &[&[&str]])] = &[
    ("append", &[&["RW", "insert"]]),
    ("bitfield", &[&["RW", "access", "update", "variable_flags"]]),
    ("copy", &[&["RO", "access"], &["OW", "update"]]),
    ("del", &[&["RM", "delete"]]),
    ("exists", &[&["RO"]]),
    ("expire", &[&["RW", "update"]]),
    ("expireat", &[&["RW", "update"]]),
    ("getdel", &[&["RW", "access", "delete"]]),
    ("memory|usage", &[&["RO"]]),
    ("msetnx", &[&["OW", "insert"]]),
    ("object|encoding", &[&["RO"]]),
    ("object|freq", &[&["RO"]]),
    ("object|idletime", &[&["RO"]]),
    ("object|refcount", &[&["RO"]]),
    ("persist", &[&["RW", "update"]]),
    ("pexpire", &[&["RW", "update"]]),
    ("pexpireat", &[&["RW", "update"]]),
    ("rename", &[&["RW", "access", "delete"], &["OW", "update"]]),
    ("renamenx", &[&["RW", "access", "delete"], &["OW", "insert"]]),
    ("restore", &[&["OW", "update"]]),
    ("set", &[&["RW", "access", "update", "variable_flags"]]),
    ("setnx", &[&["OW", "insert"]]),
    ("setrange", &[&["RW", "update"]]),
    ("strlen", &[&["RO"]]),
    ("touch", &[&["RO"]]),
    ("type", &[&["RO"]]),
    ("unlink", &[&["RM", "delete"]]),
];

/// What becomes of the keys that the specification `index` of [`key_specs`] finds.
pub fn key_flags(entry: &Entry, index: usize, use_: Use) -> &'static [&'static str] {
    let full_name = entry.full_name();
    let special = KEY_FLAGS.iter().find(|(name, _)| *name == full_name);
    if let Some(flags) = special.and_then(|(_, specs)| specs.get(index)) {
        return flags;
    }
    match use_ {
        Use::Read => &["RO", "access"],
        Use::Write => &["RW", "access", "update"],
        Use::Blind => &["OW", "update"],
    }
}

/// The key specifications as COMMAND INFO shows them: where Redis has one for each of two keys and the
/// row one for both, it is split.
pub fn key_specs(entry: &Entry) -> Vec<KeySpec> {
    let full_name = entry.full_name();
    let shown = KEY_FLAGS.iter().find(|(name, _)| *name == full_name);
    let split = shown.is_some_and(|(_, specs)| specs.len() > entry.row.keys.len());
    let single = |spec: &KeySpec| match (split, usize::try_from(spec.last)) {
        (true, Ok(last)) => (spec.first..=last)
            .step_by(spec.step.max(1))
            .map(|at| KeySpec { first: at, last: at as isize, ..*spec })
            .collect(),
        _ => vec![*spec],
    };
    entry.row.keys.iter().flat_map(single).collect()
}

/// First key, last key and step, as clients knew keys before there were specifications; zeros: none.
pub fn key_range(row: &Row) -> (i64, i64, i64) {
    let Some(first) = row.keys.first() else { return (0, 0, 0) };
    let open = row.keys.iter().map(|spec| spec.last).find(|last| *last < 0);
    let last = open.or(row.keys.iter().map(|spec| spec.last).max()).unwrap_or_default();
    (first.first as i64, last as i64, first.step as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::table;

    #[test]
    fn exceptions_are_about_commands_that_exist_in_redis() {
        let known: Vec<&str> =
            super::super::names::COMMANDS.iter().flat_map(|(_, names)| names.split(' ')).collect();
        let tables = TIPS.iter().map(|(name, _)| name);
        let tables = tables.chain(KEY_FLAGS.iter().map(|(name, _)| name));
        for name in tables.chain(MORE_CATEGORIES.iter().map(|(name, _)| name)) {
            assert!(known.contains(name), "{name}");
        }
    }

    #[test]
    fn every_command_is_fast_or_slow_and_every_category_has_its_name() {
        for entry in table::all() {
            let categories = categories(entry);
            assert_ne!(categories.contains(&"fast"), categories.contains(&"slow"));
        }
        let more = MORE_CATEGORIES.iter().flat_map(|(_, categories)| categories.iter());
        assert!(more.into_iter().all(|category| CATEGORIES.contains(category)));
    }

    #[test]
    fn key_positions_as_old_clients_know_them() {
        let info = table::find(b"command").unwrap();
        assert_eq!(key_range(info.row), (0, 0, 0));
        assert!(key_specs(info).is_empty());
    }
}
