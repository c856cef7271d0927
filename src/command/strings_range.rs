//! Parts of strings: APPEND, STRLEN, SETRANGE, GETRANGE and its older name SUBSTR.
//!
//! Edits happen in place where the entry has room, keep the deadline, and leave the encoding `raw`.
//! See <https://redis.io/docs/latest/commands/setrange/>.

use super::{
    Args,
    row::{self, Flags, Group, Row, Run},
    strings::reply_part,
};
use crate::{
    cache::tx::{Stop, Ttl, Tx},
    error::ClientError,
    protocol::Reply,
    value::bits,
};

const GROW: Flags = Flags::WRITE.with(Flags::DENYOOM);

/// The family's rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "append",
        arity: 3,
        flags: GROW.with(Flags::FAST),
        keys: row::WRITE_1,
        run: Run::Keys(append),
        group: Group::String,
        since: "2.0.0",
        complexity: "O(1) amortized: the whole string is copied only when it outgrows its room.",
        summary: "Adds bytes to the end of the string at a key.",
        syntax: "key value",
    },
    Row {
        name: "strlen",
        arity: 2,
        flags: Flags::READONLY.with(Flags::FAST),
        keys: row::READ_1,
        run: Run::Keys(strlen),
        group: Group::String,
        since: "2.2.0",
        complexity: "O(1)",
        summary: "Returns the length of the string at a key.",
        syntax: "key",
    },
    Row {
        name: "setrange",
        arity: 4,
        flags: GROW,
        keys: row::WRITE_1,
        run: Run::Keys(setrange),
        group: Group::String,
        since: "2.2.0",
        complexity: "O(M) where M is the length of the value, as long as the string needn't grow.",
        summary: "Writes over a part of the string at a key, from an offset on.",
        syntax: "key offset value",
    },
    Row {
        name: "getrange",
        arity: 4,
        flags: Flags::READONLY,
        keys: row::READ_1,
        run: Run::Keys(getrange),
        group: Group::String,
        since: "2.4.0",
        complexity: "O(N) where N is the length of the returned string.",
        summary: "Returns a part of the string at a key.",
        syntax: "key start end",
    },
    Row {
        name: "substr",
        arity: 4,
        flags: Flags::READONLY,
        keys: row::READ_1,
        run: Run::Keys(getrange),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(N) where N is the length of the returned string.",
        summary: "Returns a part of the string at a key; GETRANGE by its older name.",
        syntax: "key start end",
    },
];

const OFFSET: ClientError = ClientError::new("ERR offset is out of range");

fn append(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (key, tail) = (args.key(1), args.get(2));
    let Some(old) = tx.peek(key)?.map(|entry| entry.value().len()) else {
        tx.set(key, &[tail], Ttl::Clear)?;
        reply.integer(tail.len() as i64);
        return Ok(());
    };
    let len = grown(tx, old, tail.len())?;
    tx.edit(key, len, |bytes| bytes[old..].copy_from_slice(tail))?;
    reply.integer(len as i64);
    Ok(())
}

fn strlen(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let len = tx.string(args.key(1))?.map_or(0, <[u8]>::len);
    reply.integer(len as i64);
    Ok(())
}

fn setrange(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (key, part) = (args.key(1), args.get(3));
    let offset = usize::try_from(args.integer(2)?).map_err(|_| OFFSET)?;
    let old = tx.peek(key)?.map_or(0, |entry| entry.value().len());
    if part.is_empty() {
        reply.integer(old as i64);
        return Ok(());
    }
    let end = grown(tx, offset, part.len())?;
    let len = old.max(end);
    tx.edit(key, len, |bytes| bytes[offset..end].copy_from_slice(part))?;
    reply.integer(len as i64);
    Ok(())
}

/// The sum of two lengths, if a string may be so long.
fn grown(tx: &Tx<'_>, len: usize, more: usize) -> Result<usize, ClientError> {
    let sum = len.checked_add(more);
    sum.filter(|sum| *sum <= tx.max_string()).ok_or(ClientError::TOO_LONG)
}

fn getrange(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (start, end) = (args.integer(2)?, args.integer(3)?);
    match tx.get(args.key(1))? {
        Some(entry) => {
            let part = bits::resolve(start, end, entry.value().len());
            reply_part(entry, part, reply);
        }
        None => reply.bulk(b""),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use proptest::prelude::*;

    #[test]
    fn appending() {
        let at = Fixture::new();
        assert_eq!(at.run("append k abc"), ":3|");
        assert_eq!(at.run("append k \"\""), ":3|");
        assert_eq!(at.run("append k defg"), ":7|");
        assert_eq!(at.run("strlen k"), ":7|");
        assert_eq!(at.run("get k"), "$7|abcdefg|");
        assert_eq!(at.run("strlen none"), ":0|");
    }

    #[test]
    fn writing_over_a_part() {
        let at = Fixture::new();
        assert_eq!(at.run("setrange k 3 \"\""), ":0|");
        assert_eq!(at.run("get k"), "$-1|");
        assert_eq!(at.run("setrange k 2 xy"), ":4|");
        assert_eq!(at.run("get k"), "$4|\0\0xy|");
        assert_eq!(at.run("setrange k 0 ab"), ":4|");
        assert_eq!(at.run("setrange k 9 \"\""), ":4|");
        assert_eq!(at.run("get k"), "$4|abxy|");
        assert_eq!(at.run("setrange k -1 x"), "-ERR offset is out of range|");
        assert_eq!(at.run("setrange k x x"), "-ERR value is not an integer or out of range|");
    }

    #[test]
    fn strings_have_a_longest_length() {
        let at = Fixture::new();
        at.cache.set_max_string(8);
        let text = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)|";
        assert_eq!(at.run("append k 12345678"), ":8|");
        assert_eq!(at.run("append k 9"), text);
        assert_eq!(at.run("setrange k 8 9"), text);
        assert_eq!(at.run("setrange k 9223372036854775807 9"), text);
        assert_eq!(at.run("setrange k 7 x"), ":8|");
    }

    #[test]
    fn reading_a_part() {
        let at = Fixture::new();
        at.run("set k hello");
        for (range, part) in [("1 3", "ell"), ("-3 -1", "llo"), ("0 99", "hello"), ("-99 0", "h")] {
            let expected = format!("${}|{part}|", part.len());
            assert_eq!(at.run(&format!("getrange k {range}")), expected, "{range}");
            assert_eq!(at.run(&format!("substr k {range}")), expected, "{range}");
        }
        for range in ["3 1", "5 9", "-1 -3", "-9 -8"] {
            let expected = if range == "-9 -8" { "$1|h|" } else { "$0||" };
            assert_eq!(at.run(&format!("getrange k {range}")), expected, "{range}");
        }
        assert_eq!(at.run("getrange none 0 -1"), "$0||");
        assert_eq!(at.run("getrange k 0 x"), "-ERR value is not an integer or out of range|");
    }

    #[test]
    fn large_parts() {
        let at = Fixture::new();
        let value: Vec<u8> = (0..1 << 20).map(|at| at as u8).collect();
        at.call(&[b"set", b"k", &value]);
        for (start, end) in [(0, 20_000), (1000, 900_000), (3, 1 << 20)] {
            let (from, to) = (start.to_string(), (end - 1).to_string());
            let reply = at.call(&[b"getrange", b"k", from.as_bytes(), to.as_bytes()]);
            let head = format!("${}\r\n", end - start);
            assert_eq!(reply, [head.as_bytes(), &value[start..end], b"\r\n"].concat());
        }
    }

    proptest! {
        #[test]
        fn edits_agree_with_a_vector(
            edits in prop::collection::vec(
                (any::<bool>(), 0usize..300, prop::collection::vec(any::<u8>(), 0..80)),
                1..30,
            ),
        ) {
            let (at, mut model) = (Fixture::new(), Vec::new());
            for (append, offset, part) in edits {
                let offset = if append { model.len() } else { offset };
                if append {
                    at.call(&[b"append", b"k", &part]);
                } else {
                    at.call(&[b"setrange", b"k", offset.to_string().as_bytes(), &part]);
                }
                if !part.is_empty() {
                    model.resize(model.len().max(offset + part.len()), 0);
                    model[offset..offset + part.len()].copy_from_slice(&part);
                }
                let len = format!(":{}\r\n", model.len());
                prop_assert_eq!(at.call(&[b"strlen", b"k"]), len.as_bytes());
                let whole = [format!("${}\r\n", model.len()).as_bytes(), &model, b"\r\n"].concat();
                prop_assert_eq!(at.call(&[b"getrange", b"k", b"0", b"-1"]), whole);
            }
        }
    }
}
