//! Strings as arrays of bits: SETBIT, GETBIT, BITCOUNT, BITPOS, BITOP.
//!
//! The arithmetic is [`value::bits`](crate::value::bits); bounds, replies and the order of errors are
//! those of Redis 7.0 (<https://redis.io/docs/latest/commands/?group=bitmap>): BITCOUNT and BITPOS
//! don't look at their range when the key is missing, nor BITCOUNT at its unit when the range is empty
//! in any.

use super::{
    Args,
    row::{self, Flags, Group, Row, Run},
    strings::Held,
};
use crate::{
    cache::tx::{Stop, Ttl, Tx},
    error::ClientError,
    protocol::Reply,
    value::{
        bitfield,
        bits::{self, BitOp},
    },
};

const GROW: Flags = Flags::WRITE.with(Flags::DENYOOM);

/// The family's rows, but for those of `bitfield.rs`.
pub const ROWS: &[Row] = &[
    Row {
        name: "setbit",
        arity: 4,
        flags: GROW,
        keys: row::WRITE_1,
        run: Run::Keys(setbit),
        group: Group::Bitmap,
        since: "2.2.0",
        complexity: "O(1)",
        summary: "Sets or clears a bit of the string at a key and returns what it was.",
        syntax: "key offset value",
    },
    Row {
        name: "getbit",
        arity: 3,
        flags: Flags::READONLY.with(Flags::FAST),
        keys: row::READ_1,
        run: Run::Keys(getbit),
        group: Group::Bitmap,
        since: "2.2.0",
        complexity: "O(1)",
        summary: "Returns a bit of the string at a key.",
        syntax: "key offset",
    },
    Row {
        name: "bitcount",
        arity: -2,
        flags: Flags::READONLY,
        keys: row::READ_1,
        run: Run::Keys(bitcount),
        group: Group::Bitmap,
        since: "2.6.0",
        complexity: "O(N)",
        summary: "Counts the set bits of the string at a key, or of a part of it.",
        syntax: "key [start end [BYTE | BIT]]",
    },
    Row {
        name: "bitpos",
        arity: -3,
        flags: Flags::READONLY,
        keys: row::READ_1,
        run: Run::Keys(bitpos),
        group: Group::Bitmap,
        since: "2.8.7",
        complexity: "O(N)",
        summary: "Finds the first set or clear bit of the string at a key.",
        syntax: "key bit [start [end [BYTE | BIT]]]",
    },
    Row {
        name: "bitop",
        arity: -4,
        flags: GROW,
        keys: row::BLIND_AT_2_READ_REST,
        run: Run::Keys(bitop),
        group: Group::Bitmap,
        since: "2.6.0",
        complexity: "O(N)",
        summary: "Combines the bits of several strings and keeps the result at another key.",
        syntax: "<AND | OR | XOR | NOT> destkey key [key ...]",
    },
];

const NOT_A_BIT: ClientError = ClientError::new("ERR bit is not an integer or out of range");
const NEITHER_BIT: ClientError = ClientError::new("ERR The bit argument must be 1 or 0.");
const NOT_TAKES_ONE: ClientError =
    ClientError::new("ERR BITOP NOT must be called with a single source key.");

/// A bit offset within the longest string that there may be.
fn offset(tx: &Tx<'_>, args: Args<'_>) -> Result<usize, ClientError> {
    Ok(bitfield::parse_offset(args.get(2), tx.max_string() as u64)? as usize)
}

fn setbit(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (key, offset) = (args.key(1), offset(tx, args)?);
    let bit = match args.integer(3) {
        Ok(bit @ (0 | 1)) => bit == 1,
        _ => return Err(NOT_A_BIT.into()),
    };
    let len = tx.peek(key)?.map_or(0, |entry| entry.value().len());
    let mut old = false;
    tx.edit(key, len.max(offset / 8 + 1), |bytes| old = bits::set(bytes, offset, bit))?;
    reply.integer(i64::from(old));
    Ok(())
}

fn getbit(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let offset = offset(tx, args)?;
    let bit = tx.string(args.key(1))?.is_some_and(|bytes| bits::get(bytes, offset));
    reply.integer(i64::from(bit));
    Ok(())
}

/// Bits in one unit of a range: 8 for BYTE, 1 for BIT.
fn unit(args: Args<'_>, at: usize) -> Result<usize, ClientError> {
    if args.is(at, "byte") {
        Ok(8)
    } else if args.is(at, "bit") {
        Ok(1)
    } else {
        Err(ClientError::SYNTAX)
    }
}

fn bitcount(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let count = match tx.string(args.key(1))? {
        Some(bytes) => count(bytes, args)?,
        None => 0,
    };
    reply.integer(count as i64);
    Ok(())
}

fn count(bytes: &[u8], args: Args<'_>) -> Result<u64, ClientError> {
    match args.len() {
        2 => return Ok(bits::count(bytes)),
        4 | 5 => {}
        _ => return Err(ClientError::SYNTAX),
    }
    let (start, end) = (args.integer(2)?, args.integer(3)?);
    if start < 0 && end < 0 && start > end {
        return Ok(0);
    }
    let unit = if args.len() == 5 { unit(args, 4)? } else { 8 };
    let range = bits::resolve(start, end, bytes.len() * 8 / unit);
    Ok(bits::count_range(bytes, range.start * unit..range.end * unit))
}

fn bitpos(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let bit = match args.integer(2)? {
        bit @ (0 | 1) => bit == 1,
        _ => return Err(NEITHER_BIT.into()),
    };
    let position = match tx.string(args.key(1))? {
        Some(bytes) => position(bytes, bit, args)?,
        // An endless row of zeros.
        None if bit => None,
        None => Some(0),
    };
    reply.integer(position.map_or(-1, |at| at as i64));
    Ok(())
}

fn position(bytes: &[u8], bit: bool, args: Args<'_>) -> Result<Option<usize>, ClientError> {
    if args.len() > 6 {
        return Err(ClientError::SYNTAX);
    }
    let start = if args.len() > 3 { args.integer(3)? } else { 0 };
    let unit = if args.len() == 6 { unit(args, 5)? } else { 8 };
    let has_end = args.len() > 4;
    let end = if has_end { args.integer(4)? } else { -1 };
    let range = bits::resolve_lenient(start, end, bytes.len() * 8 / unit);
    let range = range.start * unit..range.end * unit;
    // Unless an end was given, zeros follow the string.
    let behind = (!bit && !has_end && !range.is_empty()).then_some(range.end);
    Ok(bits::find(bytes, bit, range).or(behind))
}

fn bitop(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let op = BitOp::parse(args.get(1)).ok_or(ClientError::SYNTAX)?;
    if op == BitOp::Not && args.len() != 4 {
        return Err(NOT_TAKES_ONE.into());
    }
    let result = {
        let sources = (3..args.len()).map(|at| Held::get(tx, args.key(at)));
        let sources: Vec<Held> = sources.collect::<Result<_, Stop>>()?;
        let sources: Vec<&[u8]> = sources.iter().map(Held::bytes).collect();
        bits::combine(op, &sources)
    };
    if result.is_empty() {
        tx.remove(args.key(2))?;
    } else {
        tx.set_raw(args.key(2), &[&result], Ttl::Clear)?;
    }
    reply.integer(result.len() as i64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;

    #[test]
    fn single_bits() {
        let at = Fixture::new();
        assert_eq!(at.run("setbit k 7 1"), ":0|");
        assert_eq!(at.run("setbit k 7 1"), ":1|");
        assert_eq!(at.run("setbit k 17 0"), ":0|");
        assert_eq!(at.run("get k"), "$3|\u{1}\0\0|");
        assert_eq!(at.run("getbit k 7"), ":1|");
        assert_eq!(at.run("getbit k 6"), ":0|");
        assert_eq!(at.run("getbit k 4294967295"), ":0|");
        assert_eq!(at.run("getbit none 0"), ":0|");
        let offset = "-ERR bit offset is not an integer or out of range|";
        for wrong in ["-1", "4294967296", "x"] {
            assert_eq!(at.run(&format!("setbit k {wrong} x")), offset);
            assert_eq!(at.run(&format!("getbit k {wrong}")), offset);
        }
        for wrong in ["2", "-1", "x"] {
            let text = "-ERR bit is not an integer or out of range|";
            assert_eq!(at.run(&format!("setbit k 1 {wrong}")), text);
        }
    }

    #[test]
    fn counting() {
        let at = Fixture::new();
        at.run("set k foobar");
        for (range, count) in [
            ("", 26),
            (" 0 0", 4),
            (" 1 1", 6),
            (" 1 1 byte", 6),
            (" 5 30 BIT", 17),
            (" -2 -1", 7),
            (" 3 1", 0),
        ] {
            assert_eq!(at.run(&format!("bitcount k{range}")), format!(":{count}|"), "{range}");
        }
        for wrong in ["1", "1 2 FOO", "1 2 BIT x"] {
            assert_eq!(at.run(&format!("bitcount k {wrong}")), "-ERR syntax error|");
        }
        let integer = "-ERR value is not an integer or out of range|";
        assert_eq!(at.run("bitcount k 1 x FOO"), integer);
        assert_eq!(at.run("bitcount none x"), ":0|");
    }

    #[test]
    fn finding() {
        let at = Fixture::new();
        at.call(&[b"set", b"k", b"\xff\xf0\x00"]);
        at.call(&[b"set", b"ones", b"\xff\xff"]);
        at.run("set empty \"\"");
        for (what, position) in [
            ("k 0", 12),
            ("k 1", 0),
            ("k 1 2", -1),
            ("k 0 -1", 16),
            ("k 1 7 15 bit", 7),
            ("k 1 13 -1 bit", -1),
            ("ones 0", 16),
            ("ones 0 0 -1", -1),
            ("ones 0 1", 16),
            ("ones 0 2", -1),
            ("empty 0", -1),
            ("none 0", 0),
            ("none 1 x", -1),
        ] {
            assert_eq!(at.run(&format!("bitpos {what}")), format!(":{position}|"), "{what}");
        }
        assert_eq!(at.run("bitpos k 2"), "-ERR The bit argument must be 1 or 0.|");
        assert_eq!(at.run("bitpos k 1 0 x FOO"), "-ERR syntax error|");
        assert_eq!(at.run("bitpos k 1 0 1 BIT x"), "-ERR syntax error|");
        let integer = "-ERR value is not an integer or out of range|";
        assert_eq!(at.run("bitpos k 1 x 0 FOO"), integer);
    }

    #[test]
    fn combining() {
        let at = Fixture::new();
        at.run("mset a abc b ab d old");
        assert_eq!(at.run("bitop and d a b"), ":3|");
        assert_eq!(at.run("get d"), "$3|ab\0|");
        assert_eq!(at.run("bitop OR d d a none"), ":3|");
        assert_eq!(at.run("get d"), "$3|abc|");
        assert_eq!(at.run("bitop xor d d a"), ":3|");
        assert_eq!(at.run("get d"), "$3|\0\0\0|");
        assert_eq!(at.run("bitop not d none"), ":0|");
        assert_eq!(at.run("get d"), "$-1|");
        assert_eq!(at.run("bitop foo d a"), "-ERR syntax error|");
        let text = "-ERR BITOP NOT must be called with a single source key.|";
        assert_eq!(at.run("bitop not d a b"), text);
    }
}
