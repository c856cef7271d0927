//! Strings as numbers: INCR and its kin, INCRBYFLOAT.
//!
//! A key that is missing counts as 0, and keeps the deadline that it has. Integers are signed 64 bits
//! in their one spelling; floats are added as x86's 80-bit extended doubles, as Redis does
//! (<https://redis.io/docs/latest/commands/incrbyfloat/>).

use super::{
    Args,
    row::{self, Flags, Group, Row, Run},
};
use crate::{
    cache::tx::{Key, Stop, Ttl, Tx},
    error::ClientError,
    protocol::Reply,
    tier::entry::Entry,
    value::{
        long_double::{self, AddError},
        number,
    },
};

const FLAGS: Flags = Flags::WRITE.with(Flags::DENYOOM).with(Flags::FAST);

/// The family's rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "incr",
        arity: 2,
        flags: FLAGS,
        keys: row::WRITE_1,
        run: Run::Keys(incr),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Adds one to the integer at a key.",
        syntax: "key",
    },
    Row {
        name: "decr",
        arity: 2,
        flags: FLAGS,
        keys: row::WRITE_1,
        run: Run::Keys(decr),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Takes one from the integer at a key.",
        syntax: "key",
    },
    Row {
        name: "incrby",
        arity: 3,
        flags: FLAGS,
        keys: row::WRITE_1,
        run: Run::Keys(incrby),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Adds a number to the integer at a key.",
        syntax: "key increment",
    },
    Row {
        name: "decrby",
        arity: 3,
        flags: FLAGS,
        keys: row::WRITE_1,
        run: Run::Keys(decrby),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Takes a number from the integer at a key.",
        syntax: "key decrement",
    },
    Row {
        name: "incrbyfloat",
        arity: 3,
        flags: FLAGS,
        keys: row::WRITE_1,
        run: Run::Keys(incrbyfloat),
        group: Group::String,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Adds a number, which may have decimals, to the number at a key.",
        syntax: "key increment",
    },
];

const OVERFLOW: ClientError = ClientError::new("ERR increment or decrement would overflow");
const DECREMENT_OVERFLOW: ClientError = ClientError::new("ERR decrement would overflow");
const NOT_FINITE: ClientError = ClientError::new("ERR increment would produce NaN or Infinity");

fn incr(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    add(tx, args.key(1), 1, reply)
}

fn decr(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    add(tx, args.key(1), -1, reply)
}

fn incrby(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    add(tx, args.key(1), args.integer(2)?, reply)
}

fn decrby(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let increment = args.integer(2)?.checked_neg().ok_or(DECREMENT_OVERFLOW)?;
    add(tx, args.key(1), increment, reply)
}

#[inline]
fn add(tx: &mut Tx<'_>, key: Key<'_>, increment: i64, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (old, ttl) = match tx.peek(key)? {
        Some(entry) => {
            let old = number::parse_i64(entry.value()).ok_or(ClientError::NOT_INTEGER)?;
            (old, kept(entry))
        }
        None => (0, Ttl::Clear),
    };
    let new = old.checked_add(increment).ok_or(OVERFLOW)?;
    tx.set(key, &[itoa::Buffer::new().format(new).as_bytes()], ttl)?;
    reply.integer(new);
    Ok(())
}

/// [`Ttl::Keep`] of an entry that is at hand, which spares a lookup.
#[inline]
fn kept(entry: Entry<'_>) -> Ttl {
    match entry.deadline() {
        0 => Ttl::Clear,
        deadline => Ttl::At(deadline),
    }
}

fn incrbyfloat(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let key = args.key(1);
    let (old, ttl) = match tx.peek(key)? {
        Some(entry) => (entry.value(), kept(entry)),
        None => (&b"0"[..], Ttl::Clear),
    };
    let sum = long_double::add(old, args.get(2)).map_err(|error| match error {
        AddError::FirstNotFloat | AddError::SecondNotFloat => ClientError::NOT_FLOAT,
        AddError::NotFinite => NOT_FINITE,
    })?;
    tx.set(key, &[sum.as_bytes()], ttl)?;
    reply.bulk(sum.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, NOW};

    const NOT_INTEGER: &str = "-ERR value is not an integer or out of range|";

    #[test]
    fn integers() {
        let at = Fixture::new();
        assert_eq!(at.run("incr n"), ":1|");
        assert_eq!(at.run("incrby n 41"), ":42|");
        assert_eq!(at.run("decrby n 50"), ":-8|");
        assert_eq!(at.run("decr n"), ":-9|");
        assert_eq!(at.run("get n"), "$2|-9|");
        assert_eq!(at.run("incrby n x"), NOT_INTEGER);
        for odd in ["x", "1.0", "01", "\"\"", "9223372036854775808"] {
            at.run(&format!("set odd {odd}"));
            assert_eq!(at.run("incr odd"), NOT_INTEGER, "{odd}");
        }
    }

    #[test]
    fn the_ends_of_the_integers() {
        let at = Fixture::new();
        let overflow = "-ERR increment or decrement would overflow|";
        at.run("set n 9223372036854775807");
        assert_eq!(at.run("incr n"), overflow);
        assert_eq!(at.run("incrby n -9223372036854775808"), ":-1|");
        assert_eq!(at.run("incrby n -9223372036854775808"), overflow);
        let text = "-ERR decrement would overflow|";
        assert_eq!(at.run("decrby n -9223372036854775808"), text);
    }

    #[test]
    fn floats() {
        let at = Fixture::new();
        assert_eq!(at.run("incrbyfloat f 10.5"), "$4|10.5|");
        assert_eq!(at.run("incrbyfloat f 0.1"), "$4|10.6|");
        assert_eq!(at.run("incrbyfloat f -10.6"), "$1|0|");
        assert_eq!(at.run("incrbyfloat f 5e3"), "$4|5000|");
        assert_eq!(at.run("incrbyfloat f x"), "-ERR value is not a valid float|");
        let text = "-ERR increment would produce NaN or Infinity|";
        assert_eq!(at.run("incrbyfloat f inf"), text);
        at.run("set f abc");
        assert_eq!(at.run("incrbyfloat f 1"), "-ERR value is not a valid float|");
    }

    #[test]
    fn the_deadline_stays() {
        let at = Fixture::new();
        at.run("set n 1 px 5");
        at.run("set m 1 px 5");
        assert_eq!(at.run("incrby n 1000000000000000000"), ":1000000000000000001|");
        assert_eq!(at.run("incrbyfloat m 1.5"), "$3|2.5|");
        at.clock.set(NOW + 5);
        assert_eq!(at.run("incr n"), ":1|");
        assert_eq!(at.run("incrbyfloat m 1"), "$1|1|");
    }
}
