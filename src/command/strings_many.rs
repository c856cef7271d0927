//! Several strings at a time: MGET, MSET, MSETNX.
//!
//! All keys' stripes are held, so each command is seen whole or not at all
//! (<https://redis.io/docs/latest/commands/mset/>).

use super::{
    Args,
    row::{self, Flags, Group, Row, Run},
    strings::reply_found,
};
use crate::{
    cache::tx::{Stop, Ttl, Tx},
    error::ClientError,
    protocol::Reply,
    tier::entry::{Meta, entry_size},
};

const FLAGS: Flags = Flags::WRITE.with(Flags::DENYOOM);

/// The family's rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "mget",
        arity: -2,
        flags: Flags::READONLY.with(Flags::FAST),
        keys: row::READ_ALL,
        run: Run::Keys(mget),
        group: Group::String,
        since: "1.0.0",
        complexity: "O(N) where N is the number of keys to retrieve.",
        summary: "Returns the strings at several keys.",
        syntax: "key [key ...]",
    },
    Row {
        name: "mset",
        arity: -3,
        flags: FLAGS,
        keys: row::BLIND_PAIRS,
        run: Run::Keys(mset),
        group: Group::String,
        since: "1.0.1",
        complexity: "O(N) where N is the number of keys to set.",
        summary: "Sets several keys to strings, all at once.",
        syntax: "key value [key value ...]",
    },
    Row {
        name: "msetnx",
        arity: -3,
        flags: FLAGS,
        keys: row::WRITE_PAIRS,
        run: Run::Keys(msetnx),
        group: Group::String,
        since: "1.0.1",
        complexity: "O(N) where N is the number of keys to set.",
        summary: "Sets several keys to strings, all at once, if none of them is there yet.",
        syntax: "key value [key value ...]",
    },
];

fn mget(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    reply.array(args.len() - 1);
    for at in 1..args.len() {
        reply_found(tx.get(args.key(at))?, reply);
    }
    Ok(())
}

fn mset(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    check_pairs(args, "mset")?;
    set_pairs(tx, args)?;
    reply.ok();
    Ok(())
}

fn msetnx(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    check_pairs(args, "msetnx")?;
    for at in (1..args.len()).step_by(2) {
        if tx.peek(args.key(at))?.is_some() {
            reply.integer(0);
            return Ok(());
        }
    }
    set_pairs(tx, args)?;
    reply.integer(1);
    Ok(())
}

fn check_pairs(args: Args<'_>, command: &str) -> Result<(), ClientError> {
    if args.len() % 2 == 1 {
        return Ok(());
    }
    Err(ClientError::from(format!("ERR wrong number of arguments for '{command}' command")))
}

/// What makes an entry as large as it may be.
const LARGEST: Meta = Meta { deadline: 1, kept_until: 1, access: Some(0), raw: false };
/// More than an entry takes beside key and value, rounding apart: header, deadline, queue.
const ENTRY_OVERHEAD: usize = 64;

fn set_pairs(tx: &mut Tx<'_>, args: Args<'_>) -> Result<(), Stop> {
    // All or nothing; a size class is at most a quarter larger than what it holds.
    tx.ensure_room(args.bytes() * 5 / 4 + args.len() / 2 * ENTRY_OVERHEAD)?;
    let size = |at| entry_size(args.get(at).len(), args.get(at + 1).len(), &LARGEST);
    tx.ensure_quotas((1..args.len()).step_by(2).map(|at| (args.key(at), size(at))))?;
    for at in (1..args.len()).step_by(2) {
        tx.set(args.key(at), &[args.get(at + 1)], Ttl::Clear)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use crate::protocol::Resp;

    #[test]
    fn several_keys() {
        let at = Fixture::new();
        assert_eq!(at.run("mset a 1 b 2 a 3"), "+OK|");
        assert_eq!(at.run("mget a none b"), "*3|$1|3|$-1|$1|2|");
        assert_eq!(at.run("msetnx fresh 1 a 2"), ":0|");
        assert_eq!(at.run("msetnx fresh 1 fresh 2"), ":1|");
        assert_eq!(at.run("mget a fresh"), "*2|$1|3|$1|2|");
        let odd = "-ERR wrong number of arguments for 'msetnx' command|";
        assert_eq!(at.run("msetnx a b c"), odd);
        assert_eq!(Fixture::with(Resp::V3, 1 << 20).run("mget a"), "*1|_|");
    }

    #[test]
    fn many_pairs_are_set_at_once_or_not_at_all() {
        let at = Fixture::with(Resp::V2, 1 << 20);
        let value = vec![b'x'; 400 << 10];
        let oom = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n";
        let reply = at.call(&[b"msetnx", b"a", &value, b"b", &value, b"c", &value]);
        assert_eq!(reply, oom);
        assert_eq!(at.run("mget a b c"), "*3|$-1|$-1|$-1|");
    }
}
