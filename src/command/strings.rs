//! Strings as wholes: GET, SET and their kin.
//!
//! GET's hit copies the value into the reply and allocates nothing; SET allocates the entry at most.
//! Several keys at once are in `strings_many.rs`, parts of strings in `strings_range.rs`, numbers in
//! `strings_number.rs`. Options, replies and
//! the order of errors are those of <https://redis.io/docs/latest/commands/?group=string>.

use std::ops::Range;

use bytes::Bytes;

use super::{
    Args,
    expiry::{self, Expiry, Unit},
    row::{self, Flags, Group, Row, Run},
};
use crate::{
    cache::tx::{Key, Stop, Ttl, Tx},
    error::ClientError,
    protocol::Reply,
    tier::entry::{Entry, EntryRef},
};

/// Values longer than this are replied by reference; shorter ones are copied sooner than shared.
const BY_REFERENCE: usize = 16 << 10;

const GROW: Flags = Flags::WRITE.with(Flags::DENYOOM);

/// The family's rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "get",
        arity: 2,
        flags: Flags::READONLY.with(Flags::FAST),
        keys: row::READ_1,
        run: Run::Keys(get),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns the string at a key.",
        syntax: "key",
    },
    Row {
        name: "set",
        arity: -3,
        flags: GROW,
        keys: row::SET_1,
        run: Run::Keys(set),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Makes a string the value of a key, whatever it held, with a deadline if asked.",
        syntax: "key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds | \
                 PXAT unix-time-milliseconds | KEEPTTL]",
    },
    Row {
        name: "setnx",
        arity: 3,
        flags: GROW.with(Flags::FAST),
        keys: row::WRITE_1,
        run: Run::Keys(setnx),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Sets a key to a string if there is no such key yet.",
        syntax: "key value",
    },
    Row {
        name: "setex",
        arity: 4,
        flags: GROW,
        keys: row::BLIND_1,
        run: Run::Keys(setex),
        group: Group::String,
        since: "2.0.0",
        complexity: "O(1)",
        summary: "Sets a key to a string that lives for so many seconds.",
        syntax: "key seconds value",
    },
    Row {
        name: "psetex",
        arity: 4,
        flags: GROW,
        keys: row::BLIND_1,
        run: Run::Keys(psetex),
        group: Group::String,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Sets a key to a string that lives for so many milliseconds.",
        syntax: "key milliseconds value",
    },
    Row {
        name: "getset",
        arity: 3,
        flags: GROW.with(Flags::FAST),
        keys: row::WRITE_1,
        run: Run::Keys(getset),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Sets a key to a string and returns the one that it held.",
        syntax: "key value",
    },
    Row {
        name: "getdel",
        arity: 2,
        flags: Flags::WRITE.with(Flags::FAST),
        keys: row::WRITE_1,
        run: Run::Keys(getdel),
        group: Group::String,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Returns the string at a key and deletes the key.",
        syntax: "key",
    },
    Row {
        name: "getex",
        arity: -2,
        flags: Flags::WRITE.with(Flags::FAST),
        keys: row::WRITE_1,
        run: Run::Keys(getex),
        group: Group::String,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Returns the string at a key and sets or clears the key's deadline.",
        syntax: "key [EX seconds | PX milliseconds | EXAT unix-time-seconds | \
                 PXAT unix-time-milliseconds | PERSIST]",
    },
];

/// Replies with an entry's value: by reference if it is large.
#[inline]
pub(super) fn reply_value(entry: Entry<'_>, reply: &mut Reply<'_>) {
    let value = entry.value();
    if value.len() <= BY_REFERENCE {
        reply.bulk(value);
    } else {
        reply_part(entry, 0..value.len(), reply);
    }
}

/// Replies with a part of an entry's value. A reference keeps the whole value from being edited in
/// place until it is sent, so a small part of a large value is copied.
pub(super) fn reply_part(entry: Entry<'_>, part: Range<usize>, reply: &mut Reply<'_>) {
    let value = entry.value();
    if part.len() > BY_REFERENCE
        && part.len() >= value.len() / 8
        && let Some(whole) = entry.share()
    {
        return reply.shared(Bytes::from_owner(whole).slice(part));
    }
    reply.bulk(&value[part]);
}

/// Replies with what was found; nil if nothing was.
#[inline]
pub(super) fn reply_found(found: Option<Entry<'_>>, reply: &mut Reply<'_>) {
    match found {
        Some(entry) => reply_value(entry, reply),
        None => reply.null(),
    }
}

/// A value of which a command needs several at a time.
pub(super) enum Held {
    /// The entry's own bytes.
    Shared(EntryRef),
    /// A copy, where there are too many references already; empty for a missing key.
    Copied(Vec<u8>),
}

impl Held {
    /// Reads a key; a missing one is an empty string.
    pub(super) fn get(tx: &mut Tx<'_>, key: Key<'_>) -> Result<Self, Stop> {
        Ok(match tx.get(key)? {
            Some(entry) => {
                entry.share().map_or_else(|| Self::Copied(entry.value().to_vec()), Self::Shared)
            }
            None => Self::Copied(Vec::new()),
        })
    }

    /// The value.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(entry) => entry.as_ref(),
            Self::Copied(bytes) => bytes,
        }
    }
}

#[inline]
fn get(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    reply_found(tx.get(args.key(1))?, reply);
    Ok(())
}

#[inline]
fn set(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    if args.len() > 3 {
        return set_with(tx, args, reply);
    }
    tx.set(args.key(1), &[args.get(2)], Ttl::Clear)?;
    reply.ok();
    Ok(())
}

/// SET with options.
fn set_with(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let key = args.key(1);
    let Options { condition, get, expiry } = Options::parse(args)?;
    let ttl = expiry.ttl(tx.now(), "set")?.unwrap_or(Ttl::Clear);
    if condition == Condition::Absent && matches!(ttl, Ttl::At(_)) && tx.is_ttl_for_cache(key) {
        let text = "ERR SET with NX and a TTL in a namespace with ttl-means cache: the TTL would end \
                    the cached copy and not the data, so that a lock would never be free again";
        return Err(ClientError::new(text).into());
    }
    if get || condition != Condition::Always {
        let old = if get { tx.get(key)? } else { tx.peek(key)? };
        let admitted = condition.admits(old.is_some());
        if get {
            reply_found(old, reply);
        }
        if !admitted {
            if !get {
                reply.null();
            }
            return Ok(());
        }
    }
    tx.set(key, &[args.get(2)], ttl)?;
    if !get {
        reply.ok();
    }
    Ok(())
}

/// NX and XX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Condition {
    #[default]
    Always,
    /// NX.
    Absent,
    /// XX.
    Present,
}

impl Condition {
    fn admits(self, found: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => !found,
            Self::Present => found,
        }
    }
}

/// SET's options.
#[derive(Debug, Default)]
struct Options<'a> {
    condition: Condition,
    get: bool,
    expiry: Expiry<'a>,
}

impl<'a> Options<'a> {
    fn parse(args: Args<'a>) -> Result<Self, ClientError> {
        let mut options = Self::default();
        let mut at = 3;
        while at < args.len() {
            at = options.take(args, at)?;
        }
        Ok(options)
    }

    /// Takes the option at `at`; returns the index behind it.
    fn take(&mut self, args: Args<'a>, at: usize) -> Result<usize, ClientError> {
        let condition = [("nx", Condition::Absent), ("xx", Condition::Present)]
            .into_iter()
            .find_map(|(word, condition)| args.is(at, word).then_some(condition));
        if let Some(condition) = condition {
            if ![Condition::Always, condition].contains(&self.condition) {
                return Err(ClientError::SYNTAX);
            }
            self.condition = condition;
        } else if args.is(at, "get") {
            self.get = true;
        } else {
            return self.expiry.take(args, at, ("keepttl", Expiry::Keep));
        }
        Ok(at + 1)
    }
}

fn setnx(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let key = args.key(1);
    let absent = tx.peek(key)?.is_none();
    if absent {
        tx.set(key, &[args.get(2)], Ttl::Clear)?;
    }
    reply.integer(i64::from(absent));
    Ok(())
}

fn setex(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    set_for(tx, args, reply, Unit::Seconds, "setex")
}

fn psetex(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    set_for(tx, args, reply, Unit::Milliseconds, "psetex")
}

fn set_for(
    tx: &mut Tx<'_>,
    args: Args<'_>,
    reply: &mut Reply<'_>,
    unit: Unit,
    command: &str,
) -> Result<(), Stop> {
    let deadline = expiry::deadline(args.get(2), unit, Some(tx.now()), command)?;
    tx.set(args.key(1), &[args.get(3)], Ttl::At(deadline))?;
    reply.ok();
    Ok(())
}

fn getset(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let key = args.key(1);
    reply_found(tx.get(key)?, reply);
    tx.set(key, &[args.get(2)], Ttl::Clear)
}

fn getdel(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let key = args.key(1);
    reply_found(tx.get(key)?, reply);
    tx.remove(key).map(drop)
}

fn getex(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let key = args.key(1);
    let mut expiry = Expiry::default();
    let mut at = 2;
    while at < args.len() {
        at = expiry.take(args, at, ("persist", Expiry::Persist))?;
    }
    let now = tx.now();
    let Some(entry) = tx.get(key)? else {
        reply.null();
        return Ok(());
    };
    // Only now, as in Redis: of a missing key even a wrong time is answered with nil.
    let ttl = expiry.ttl(now, "getex")?;
    let old = entry.deadline();
    reply_value(entry, reply);
    match ttl {
        Some(Ttl::At(deadline)) => tx.set_deadline(key, deadline).map(drop),
        Some(Ttl::Clear) if old != 0 => tx.set_deadline(key, 0).map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, NOW};
    use super::*;
    use crate::protocol::Resp;

    #[test]
    fn set_and_get() {
        let at = Fixture::new();
        assert_eq!(at.run("get k"), "$-1|");
        assert_eq!(at.run("set k v"), "+OK|");
        assert_eq!(at.run("get k"), "$1|v|");
        assert_eq!(at.run("set k \"\""), "+OK|");
        assert_eq!(at.run("get k"), "$0||");
        at.run("set a 3");
        assert_eq!(at.run("getset a x"), "$1|3|");
        assert_eq!(at.run("getdel a"), "$1|x|");
        assert_eq!(at.run("getdel a"), "$-1|");
        assert_eq!(Fixture::with(Resp::V3, 1 << 20).run("get a"), "_|");
    }

    #[test]
    fn conditions() {
        let at = Fixture::new();
        assert_eq!(at.run("set k 1 xx"), "$-1|");
        assert_eq!(at.run("set k 1 XX get"), "$-1|");
        assert_eq!(at.run("set k 1 nx"), "+OK|");
        assert_eq!(at.run("set k 2 nx"), "$-1|");
        assert_eq!(at.run("set k 2 get NX"), "$1|1|");
        assert_eq!(at.run("set k 2 xx"), "+OK|");
        assert_eq!(at.run("set k 3 xx get"), "$1|2|");
        assert_eq!(at.run("set new 1 nx get"), "$-1|");
        assert_eq!(at.run("get new"), "$1|1|");
        assert_eq!(at.run("setnx k 4"), ":0|");
        assert_eq!(at.run("setnx other 4"), ":1|");
    }

    #[test]
    fn options_that_exclude_each_other() {
        let at = Fixture::new();
        for options in ["nx xx", "ex 1 px 1", "ex 1 keepttl", "persist", "ex", "foo", "xx ex"] {
            assert_eq!(at.run(&format!("set k v {options}")), "-ERR syntax error|", "{options}");
        }
        for options in ["keepttl", "ex 1 persist", "ex 1 exat 1", "get", "px"] {
            assert_eq!(at.run(&format!("getex k {options}")), "-ERR syntax error|", "{options}");
        }
    }

    fn deadline(at: &Fixture, key: &str) -> Option<u64> {
        let memory = at.cache.memory();
        let hash = memory.hash(key.as_bytes());
        let core = memory.lock(memory.stripe_of(hash));
        let shelf = core.shelf(0)?;
        let slot = shelf.find(hash, key.as_bytes())?;
        Some(shelf.entry(slot).deadline())
    }

    #[test]
    fn deadlines() {
        let at = Fixture::new();
        at.run("set k v ex 10 ex 20");
        assert_eq!(deadline(&at, "k"), Some(NOW + 20_000));
        at.run("set k w keepttl keepttl");
        assert_eq!(deadline(&at, "k"), Some(NOW + 20_000));
        at.run("set k w");
        assert_eq!(deadline(&at, "k"), Some(0));
        at.run("setex k 7 v");
        assert_eq!(deadline(&at, "k"), Some(NOW + 7_000));
        at.run("psetex k 7 v");
        assert_eq!(deadline(&at, "k"), Some(NOW + 7));
        assert_eq!(at.run("getex k exat 1800000000"), "$1|v|");
        assert_eq!(deadline(&at, "k"), Some(1_800_000_000_000));
        assert_eq!(at.run("getex k"), "$1|v|");
        assert_eq!(deadline(&at, "k"), Some(1_800_000_000_000));
        assert_eq!(at.run("getex k persist"), "$1|v|");
        assert_eq!(deadline(&at, "k"), Some(0));
        assert_eq!(at.run("getex k pxat 1"), "$1|v|");
        assert_eq!(deadline(&at, "k"), None);
        assert_eq!(at.run("set k v pxat 1"), "+OK|");
        assert_eq!(at.run("get k"), "$-1|");
        assert_eq!(at.run("getex k ex 0"), "$-1|");
        at.run("set k v");
        assert_eq!(at.run("getex k ex 0"), "-ERR invalid expire time in 'getex' command|");
        assert_eq!(at.run("psetex k -1 v"), "-ERR invalid expire time in 'psetex' command|");
        assert_eq!(at.run("setex k x v"), "-ERR value is not an integer or out of range|");
    }

    #[test]
    fn a_deadline_that_has_passed_is_a_missing_key() {
        let at = Fixture::new();
        at.run("set k v px 5");
        at.clock.set(NOW + 4);
        assert_eq!(at.run("get k"), "$1|v|");
        at.clock.set(NOW + 5);
        assert_eq!(at.run("set k w xx"), "$-1|");
        assert_eq!(at.run("setnx k w"), ":1|");
    }

    #[test]
    fn large_values_survive_their_key() {
        let at = Fixture::new();
        let value = vec![b'x'; BY_REFERENCE + 1];
        at.call(&[b"set", b"k", &value]);
        let expected = [b"$16385\r\n", &value[..], b"\r\n"].concat();
        assert_eq!(at.call(&[b"get", b"k"]), expected);
        assert_eq!(at.call(&[b"getset", b"k", b"y"]), expected);
        at.call(&[b"set", b"k", &value]);
        assert_eq!(at.call(&[b"getdel", b"k"]), expected);
    }
}
