//! Commands that give a value another key or another database: RENAME, RENAMENX, COPY, MOVE.
//!
//! A key's bytes are part of its entry, so each of them makes a new entry, with the same deadline;
//! all but COPY then remove the old one. The new one is put first: where a store is told, it has the
//! value under the new key before it loses it under the old one (SEMANTICS 16).

use std::sync::atomic::Ordering::Relaxed;

use super::{
    Args,
    row::{Flags, Group, KeySpec, READ_WRITE, Row, Run, WRITE_1, WRITE_2},
};
use crate::{
    cache::{
        Use,
        tx::{Key, Stop, Ttl, Tx},
    },
    error::ClientError,
    protocol::Reply,
    tier::entry::{Entry, EntryRef, Meta},
    value::number::parse_i64,
};

/// RENAME needs nothing of what the new name held.
const RENAME_KEYS: &[KeySpec] = &[
    KeySpec { first: 1, last: 1, step: 1, use_: Use::Write, blind_without: &[] },
    KeySpec { first: 2, last: 2, step: 1, use_: Use::Blind, blind_without: &[] },
];

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "rename",
        arity: 3,
        flags: Flags::WRITE,
        keys: RENAME_KEYS,
        run: Run::Keys(rename),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Gives a key another name, in place of a key that had it.",
        syntax: "key newkey",
    },
    Row {
        name: "renamenx",
        arity: 3,
        flags: Flags::WRITE.with(Flags::FAST),
        keys: WRITE_2,
        run: Run::Keys(rename_if_free),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Gives a key another name that no key has.",
        syntax: "key newkey",
    },
    Row {
        name: "copy",
        arity: -3,
        flags: Flags::WRITE.with(Flags::DENYOOM),
        keys: READ_WRITE,
        run: Run::Keys(copy),
        group: Group::Generic,
        since: "6.2.0",
        complexity: "O(N) worst case for collections, where N is the number of nested items. \
                     O(1) for string values.",
        summary: "Copies a value and its deadline to another key.",
        syntax: "source destination [DB destination-db] [REPLACE]",
    },
    Row {
        name: "move",
        arity: 3,
        flags: Flags::WRITE.with(Flags::FAST),
        keys: WRITE_1,
        run: Run::Keys(move_away),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Moves a key to another database that hasn't got it.",
        syntax: "key db",
    },
];

const SAME: ClientError = ClientError::new("ERR source and destination objects are the same");
const NOT_AN_I32: ClientError =
    ClientError::new("ERR value is out of range, value must between -2147483648 and 2147483647");

/// A value that outlives changes of its key, and what came with it.
struct Taken {
    value: Value,
    meta: Meta,
}

enum Value {
    Shared(EntryRef),
    /// Of an entry that has too many references already.
    Copied(Vec<u8>),
}

impl Taken {
    fn of(entry: Entry<'_>) -> Self {
        let value = match entry.share() {
            Some(shared) => Value::Shared(shared),
            None => Value::Copied(entry.value().to_vec()),
        };
        Self { value, meta: entry.meta() }
    }

    fn bytes(&self) -> &[u8] {
        match &self.value {
            Value::Shared(entry) => entry.as_ref(),
            Value::Copied(bytes) => bytes,
        }
    }

    /// Puts the value under a key; nothing has changed if there is no room.
    fn put(&self, tx: &mut Tx<'_>, key: Key<'_>) -> Result<(), Stop> {
        let ttl = if self.meta.deadline == 0 { Ttl::Clear } else { Ttl::At(self.meta.deadline) };
        if self.meta.raw {
            tx.set_raw(key, &[self.bytes()], ttl)
        } else {
            tx.set(key, &[self.bytes()], ttl)
        }
    }

    /// Like [`Taken::put`], as warm as it was.
    fn put_warm(&self, tx: &mut Tx<'_>, key: Key<'_>) -> Result<(), Stop> {
        self.put(tx, key)?;
        let access = tx.peek(key)?.and_then(Entry::access);
        if let (Some(access), Some(word)) = (access, self.meta.access) {
            access.store(word, Relaxed);
        }
        Ok(())
    }
}

fn take(tx: &mut Tx<'_>, key: Key<'_>) -> Result<Option<Taken>, Stop> {
    Ok(tx.peek(key)?.map(Taken::of))
}

fn rename(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (from, to) = (args.key(1), args.key(2));
    let taken = take(tx, from)?.ok_or(ClientError::NO_SUCH_KEY)?;
    if from.bytes != to.bytes {
        taken.put_warm(tx, to)?;
        tx.remove(from)?;
    }
    reply.ok();
    Ok(())
}

fn rename_if_free(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (from, to) = (args.key(1), args.key(2));
    let taken = take(tx, from)?.ok_or(ClientError::NO_SUCH_KEY)?;
    // The same name is taken, by the key itself.
    let free = tx.peek(to)?.is_none();
    if free {
        taken.put_warm(tx, to)?;
        tx.remove(from)?;
    }
    reply.integer(i64::from(free));
    Ok(())
}

/// COPY's options.
struct Copying {
    db: usize,
    replace: bool,
}

impl Copying {
    fn parse(tx: &Tx<'_>, args: Args<'_>) -> Result<Self, ClientError> {
        let mut options = Self { db: tx.db(), replace: false };
        let mut at = 3;
        while at < args.len() {
            if args.is(at, "replace") {
                options.replace = true;
            } else if args.is(at, "db") && at + 1 < args.len() {
                at += 1;
                options.db = database(tx, args.get(at))?;
            } else {
                return Err(ClientError::SYNTAX);
            }
            at += 1;
        }
        Ok(options)
    }
}

fn copy(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let options = Copying::parse(tx, args)?;
    let (from, to) = (args.key(1), args.key(2));
    if options.db == tx.db() && from.bytes == to.bytes {
        return Err(SAME.into());
    }
    let Some(taken) = tx.get(from)?.map(Taken::of) else {
        reply.integer(0);
        return Ok(());
    };
    tx.select(options.db);
    let free = options.replace || tx.peek(to)?.is_none();
    if free {
        taken.put(tx, to)?;
    }
    reply.integer(i64::from(free));
    Ok(())
}

fn move_away(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (home, target) = (tx.db(), database(tx, args.get(2))?);
    if target == home {
        return Err(SAME.into());
    }
    let key = args.key(1);
    let taken = take(tx, key)?;
    tx.select(target);
    let free = tx.peek(key)?.is_none();
    let moved = taken.filter(|_| free);
    if let Some(taken) = &moved {
        taken.put_warm(tx, key)?;
        tx.select(home);
        tx.remove(key)?;
    }
    reply.integer(i64::from(moved.is_some()));
    Ok(())
}

/// The database that an argument names.
fn database(tx: &Tx<'_>, text: &[u8]) -> Result<usize, ClientError> {
    let number = parse_i64(text).ok_or(ClientError::NOT_INTEGER)?;
    let number = i32::try_from(number).map_err(|_| NOT_AN_I32)?;
    let db = usize::try_from(number).ok().filter(|db| *db < tx.databases());
    db.ok_or(ClientError::DB_INDEX)
}

#[cfg(test)]
mod tests {
    use super::{
        super::keys::testing::{Bench, NOW},
        ROWS,
    };
    use crate::{
        cache::tx::Key,
        tier::{entry::Entry, eviction::Eviction},
    };

    /// What a key of database `db` holds, with its deadline.
    fn held(bench: &Bench, db: usize, key: &str) -> Option<(Vec<u8>, u64)> {
        let memory = bench.cache.memory();
        let key = Key { bytes: key.as_bytes(), hash: memory.hash(key.as_bytes()) };
        let core = memory.lock(memory.stripe_of(key.hash));
        let shelf = core.shelf(db)?;
        let show = |entry: Entry<'_>| (entry.value().to_vec(), entry.deadline());
        shelf.find(key.hash, key.bytes).map(|slot| show(shelf.entry(slot)))
    }

    fn value(text: &str, deadline: u64) -> Option<(Vec<u8>, u64)> {
        Some((text.into(), deadline))
    }

    #[test]
    fn rename_keeps_value_and_deadline() {
        let bench = Bench::new(ROWS, Default::default());
        bench.put("a", b"1", NOW + 5);
        bench.put("b", b"2", 0);
        assert_eq!(bench.say("rename x b"), "-ERR no such key");
        assert_eq!(bench.say("rename a a"), "+OK");
        assert_eq!(bench.say("renamenx a b"), ":0");
        assert_eq!(bench.say("renamenx a a"), ":0");
        assert_eq!(bench.say("rename a b"), "+OK");
        assert_eq!((held(&bench, 0, "a"), held(&bench, 0, "b")), (None, value("1", NOW + 5)));
        assert_eq!(bench.say("renamenx b c"), ":1");
        assert_eq!((held(&bench, 0, "b"), held(&bench, 0, "c")), (None, value("1", NOW + 5)));
        assert_eq!(bench.say("renamenx b c"), "-ERR no such key");
    }

    #[test]
    fn rename_keeps_what_the_eviction_policy_knows() {
        let mut bench = Bench::new(ROWS, Eviction::AllkeysLru);
        bench.put("a", b"1", 0);
        bench.now += 60_000;
        bench.say("rename a b");
        let memory = bench.cache.memory();
        let hash = memory.hash(b"b");
        let core = memory.lock(memory.stripe_of(hash));
        let shelf = core.shelf(0).unwrap();
        let meta = shelf.entry(shelf.find(hash, b"b").unwrap()).meta();
        assert_eq!(meta.access, Eviction::AllkeysLru.first_access(NOW));
    }

    #[test]
    fn copy_goes_to_another_key_or_database() {
        let bench = Bench::new(ROWS, Default::default());
        bench.put("a", b"1", NOW + 5);
        assert_eq!(bench.say("copy x b"), ":0");
        assert_eq!(bench.say("copy a b"), ":1");
        assert_eq!(bench.say("copy a b"), ":0");
        bench.put("b", b"2", 0);
        assert_eq!(bench.say("copy b a replace"), ":1");
        assert_eq!(held(&bench, 0, "a"), value("2", 0));
        assert_eq!(bench.say("copy a a db 3"), ":1");
        assert_eq!(bench.say("copy a a db 3"), ":0");
        assert_eq!(held(&bench, 3, "a"), value("2", 0));
        for (command, error) in [
            ("copy a a", "source and destination objects are the same"),
            ("copy x x db 0", "source and destination objects are the same"),
            ("copy a b db 16", "DB index is out of range"),
            ("copy a b db -1", "DB index is out of range"),
            ("copy a b db x", "value is not an integer or out of range"),
            ("copy a b db", "syntax error"),
            ("copy a b db 16 foo", "DB index is out of range"),
        ] {
            assert_eq!(bench.say(command), format!("-ERR {error}"), "{command}");
        }
        let far = bench.say("copy a b db 2147483648");
        assert!(far.starts_with("-ERR value is out of range"), "{far}");
    }

    #[test]
    fn move_needs_a_free_place() {
        let mut bench = Bench::new(ROWS, Default::default());
        bench.put("a", b"1", NOW + 5);
        assert_eq!(bench.say("move a 0"), "-ERR source and destination objects are the same");
        assert_eq!(bench.say("move a 16"), "-ERR DB index is out of range");
        assert_eq!(bench.say("move x 1"), ":0");
        assert_eq!(bench.say("move a 1"), ":1");
        assert_eq!((held(&bench, 0, "a"), held(&bench, 1, "a")), (None, value("1", NOW + 5)));
        bench.put("a", b"2", 0);
        assert_eq!(bench.say("move a 1"), ":0");
        assert_eq!(held(&bench, 0, "a"), value("2", 0));
        bench.now += 5;
        assert_eq!(bench.say("move a 1"), ":1");
        assert_eq!(held(&bench, 1, "a"), value("2", 0));
    }
}
