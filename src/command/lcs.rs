//! LCS: what two strings have in common, in order.
//!
//! The algorithm is [`value::lcs`](crate::value::lcs); options and replies are those of
//! <https://redis.io/docs/latest/commands/lcs/>. The work is bounded as in Redis: by
//! `proto-max-bulk-len` for the table that Redis would need.

use super::{
    Args,
    row::{self, Flags, Group, Row, Run},
    strings::Held,
};
use crate::{
    cache::tx::{Stop, Tx},
    error::ClientError,
    protocol::Reply,
    value::lcs::{self, Match},
};

/// The row.
pub const ROWS: &[Row] = &[Row {
    name: "lcs",
    arity: -3,
    flags: Flags::READONLY,
    keys: row::READ_2,
    run: Run::Keys(run),
    group: Group::String,
    since: "7.0.0",
    complexity: "O(N*M) where N and M are the lengths of s1 and s2, respectively",
    summary: "Finds the longest common subsequence of the strings at two keys.",
    syntax: "key1 key2 [LEN] [IDX] [MINMATCHLEN min-match-len] [WITHMATCHLEN]",
}];

const LEN_AND_IDX: ClientError =
    ClientError::new("ERR If you want both the length and indexes, please just use IDX.");
const TOO_MUCH: ClientError = ClientError::new(
    "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len",
);

#[derive(Debug, Default)]
struct Options {
    len: bool,
    idx: bool,
    with_match_len: bool,
    min_match_len: i64,
}

impl Options {
    fn parse(args: Args<'_>) -> Result<Self, ClientError> {
        let mut options = Self::default();
        let mut at = 3;
        while at < args.len() {
            if args.is(at, "idx") {
                options.idx = true;
            } else if args.is(at, "len") {
                options.len = true;
            } else if args.is(at, "withmatchlen") {
                options.with_match_len = true;
            } else if args.is(at, "minmatchlen") && at + 1 < args.len() {
                at += 1;
                options.min_match_len = args.integer(at)?;
            } else {
                return Err(ClientError::SYNTAX);
            }
            at += 1;
        }
        if options.len && options.idx { Err(LEN_AND_IDX) } else { Ok(options) }
    }
}

fn run(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (a, b) = (Held::get(tx, args.key(1))?, Held::get(tx, args.key(2))?);
    let (a, b) = (a.bytes(), b.bytes());
    let options = Options::parse(args)?;
    if lcs::transient_bytes(a.len(), b.len()) > tx.max_string() as u64 {
        return Err(TOO_MUCH.into());
    }
    if options.len {
        reply.integer(lcs::length(a, b) as i64);
    } else if options.idx {
        reply_matches(&lcs::matches(a, b), &options, reply);
    } else {
        reply.bulk(&lcs::subsequence(a, b));
    }
    Ok(())
}

fn reply_matches(matches: &[Match], options: &Options, reply: &mut Reply<'_>) {
    let listed = || matches.iter().filter(|found| found.len as i64 >= options.min_match_len);
    reply.map(2);
    reply.bulk(b"matches");
    reply.array(listed().count());
    for found in listed() {
        reply.array(if options.with_match_len { 3 } else { 2 });
        for at in [found.at_a, found.at_b] {
            reply.array(2);
            reply.integer(at as i64);
            reply.integer((at + found.len - 1) as i64);
        }
        if options.with_match_len {
            reply.integer(found.len as i64);
        }
    }
    reply.bulk(b"len");
    reply.integer(matches.iter().map(|found| found.len).sum::<usize>() as i64);
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use crate::protocol::Resp;

    #[test]
    fn the_example_of_the_documentation() {
        let at = Fixture::new();
        at.run("mset key1 ohmytext key2 mynewtext");
        assert_eq!(at.run("lcs key1 key2"), "$6|mytext|");
        assert_eq!(at.run("lcs key1 key2 len"), ":6|");
        let all = "*4|$7|matches|*2|*2|*2|:4|:7|*2|:5|:8|*2|*2|:2|:3|*2|:0|:1|$3|len|:6|";
        assert_eq!(at.run("lcs key1 key2 idx"), all);
        let long = "*4|$7|matches|*1|*3|*2|:4|:7|*2|:5|:8|:4|$3|len|:6|";
        assert_eq!(at.run("lcs key1 key2 IDX minmatchlen 4 withmatchlen"), long);
        let none = "*4|$7|matches|*0|$3|len|:0|";
        assert_eq!(at.run("lcs key1 none idx minmatchlen -5"), none);
        assert_eq!(at.run("lcs none key1"), "$0||");
        assert_eq!(at.run("lcs key1 key1"), "$8|ohmytext|");
    }

    #[test]
    fn a_map_in_resp3() {
        let at = Fixture::with(Resp::V3, 1 << 20);
        assert_eq!(at.run("lcs a b idx"), "%2|$7|matches|*0|$3|len|:0|");
    }

    #[test]
    fn errors() {
        let at = Fixture::new();
        let both = "-ERR If you want both the length and indexes, please just use IDX.|";
        assert_eq!(at.run("lcs a b len idx"), both);
        assert_eq!(at.run("lcs a b minmatchlen"), "-ERR syntax error|");
        assert_eq!(at.run("lcs a b foo"), "-ERR syntax error|");
        let integer = "-ERR value is not an integer or out of range|";
        assert_eq!(at.run("lcs a b minmatchlen x"), integer);
        at.run("mset a 12345 b 12345");
        at.cache.set_max_string(143);
        let text = "-ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len|";
        assert_eq!(at.run("lcs a b"), text);
        at.cache.set_max_string(144);
        assert_eq!(at.run("lcs a b len"), ":5|");
    }
}
