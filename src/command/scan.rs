//! Commands that walk a database: KEYS, SCAN, RANDOMKEY.
//!
//! The walk goes in hash order, bucket by bucket, and holds a stripe only while it looks at one bucket.
//! A cursor is a prefix of a hash, so it stays good while tables grow: a key that is there from the
//! first call to the last is seen at least once. Nothing of it is kept here between two calls.

use futures_util::FutureExt;

use super::{
    Args, Session,
    row::{Flags, Group, NO_KEYS, Row, Run},
};
use crate::{
    cache::{Cache, tx::Stop},
    error::ClientError,
    protocol::Reply,
    value::glob,
};

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "keys",
        arity: 2,
        flags: Flags::READONLY,
        keys: NO_KEYS,
        run: Run::Waiting(|session, args, reply| keys(session, args, reply).boxed_local()),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(N) with N being the number of keys in the database, under the assumption \
                     that the key names in the database and the given pattern have limited length.",
        summary: "Lists the keys in memory and on disk that fit a pattern.",
        syntax: "pattern",
    },
    Row {
        name: "scan",
        arity: -2,
        flags: Flags::READONLY,
        keys: NO_KEYS,
        run: Run::Waiting(|session, args, reply| scan(session, args, reply).boxed_local()),
        group: Group::Generic,
        since: "2.8.0",
        complexity: "O(1) for every call. O(N) for a complete iteration, where N is the number of \
                     keys in the database.",
        summary: "Lists the keys in memory and on disk, some with each call.",
        syntax: "cursor [MATCH pattern] [COUNT count] [TYPE type]",
    },
    Row {
        name: "randomkey",
        arity: 1,
        flags: Flags::READONLY,
        keys: NO_KEYS,
        run: Run::Waiting(|session, _, reply| random_key(session, reply).boxed_local()),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Picks a key of those in memory and on disk.",
        syntax: "",
    },
];

/// SCAN looks for so many keys if it isn't told.
const COUNT: u64 = 10;
/// More than this a single call doesn't look for, whatever it is told.
const MAX_COUNT: u64 = 10_000_000;
/// Buckets that a call visits for each key that it looks for.
const BUCKETS_PER_KEY: u64 = 10;
/// Buckets that a call visits at least before it gives up (some 0.1 ms): an almost empty database has
/// as many as a full one's memory asks for, and takes few calls nevertheless.
const MIN_BUCKETS: u64 = 4096;

/// A glob pattern, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pattern<'a>(Option<&'a [u8]>);

impl<'a> Pattern<'a> {
    /// The lone `*` means all keys, the empty one included.
    fn new(pattern: &'a [u8]) -> Self {
        Self((pattern != b"*").then_some(pattern))
    }

    fn fits(self, key: &[u8]) -> bool {
        self.0.is_none_or(|pattern| glob::matches(pattern, key))
    }
}

async fn keys(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let pattern = Pattern::new(args.get(1));
    let (db, now) = (session.db, session.now);
    let list = reply.array_deferred();
    let (mut count, mut cursor) = (0, 0);
    loop {
        let found = |key: &[u8]| {
            if pattern.fits(key) {
                reply.bulk(key);
                count += 1;
            }
        };
        cursor = session.cache().walk(db, cursor, now, found).await;
        if cursor == 0 {
            break;
        }
    }
    reply.finish(list, count);
    Ok(())
}

/// What a call of SCAN looks for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'a> {
    cursor: u64,
    pattern: Pattern<'a>,
    count: u64,
    /// Whether keys of the wanted type are among those we hold.
    of_type: bool,
}

impl<'a> Wanted<'a> {
    fn parse(args: Args<'a>) -> Result<Self, ClientError> {
        let cursor = cursor(args.get(1)).ok_or(INVALID_CURSOR)?;
        let mut wanted = Self { cursor, pattern: Pattern(None), count: COUNT, of_type: true };
        for at in (2..args.len()).step_by(2) {
            if at + 1 == args.len() {
                return Err(ClientError::SYNTAX);
            }
            wanted.option(args, at)?;
        }
        Ok(wanted)
    }

    fn option(&mut self, args: Args<'a>, at: usize) -> Result<(), ClientError> {
        if args.is(at, "match") {
            self.pattern = Pattern::new(args.get(at + 1));
        } else if args.is(at, "count") {
            let count = u64::try_from(args.integer(at + 1)?).unwrap_or(0);
            if count == 0 {
                return Err(ClientError::SYNTAX);
            }
            self.count = count.min(MAX_COUNT);
        } else if args.is(at, "type") {
            // As in Redis before 8.0, no key is of a type that doesn't exist.
            self.of_type = args.is(at + 1, "string");
        } else {
            return Err(ClientError::SYNTAX);
        }
        Ok(())
    }

    /// Shows the keys of the next part to `found`, and returns the cursor behind it.
    async fn look(&self, cache: &Cache, db: usize, now: u64, mut found: impl FnMut(&[u8])) -> u64 {
        let mut cursor = self.cursor;
        let mut seen = 0;
        for _ in 0..(self.count * BUCKETS_PER_KEY).max(MIN_BUCKETS) {
            let show = |key: &[u8]| {
                seen += 1;
                if self.of_type && self.pattern.fits(key) {
                    found(key);
                }
            };
            cursor = cache.walk(db, cursor, now, show).await;
            if cursor == 0 || seen >= self.count {
                break;
            }
        }
        cursor
    }
}

const INVALID_CURSOR: ClientError = ClientError::new("ERR invalid cursor");

/// A cursor as Redis reads it, by C's `strtoul`: with a sign if you like, and empty is 0.
fn cursor(text: &[u8]) -> Option<u64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() && !text.is_empty() {
        return None;
    }
    let push = |sum: u64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    };
    let value = digits.iter().try_fold(0, push)?;
    Some(if negative { value.wrapping_neg() } else { value })
}

/// Keys, one behind the other: the cursor, which is replied first, is known last.
#[derive(Default)]
struct Found {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Found {
    fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }

    fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |end| &self.bytes[std::mem::replace(&mut start, *end)..*end])
    }
}

async fn scan(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let wanted = Wanted::parse(args)?;
    let mut found = Found::default();
    let (cache, db, now) = (session.cache(), session.db, session.now);
    let cursor = wanted.look(cache, db, now, |key| found.push(key)).await;
    reply.array(2);
    reply.bulk(itoa::Buffer::new().format(cursor).as_bytes());
    reply.array(found.ends.len());
    found.keys().for_each(|key| reply.bulk(key));
    Ok(())
}

async fn random_key(session: &mut Session, reply: &mut Reply<'_>) -> Result<(), Stop> {
    match session.cache().random_key(session.db, session.now).await {
        Some(key) => reply.bulk(&key),
        None => reply.null(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::keys::testing::Bench, *};
    use crate::protocol::Span;
    use std::collections::HashSet;

    fn parse(words: &[&str]) -> Result<(u64, u64, bool, bool), String> {
        let buf = words.concat();
        let mut start = 0;
        let place = |word: &&str| {
            start += word.len() as u32;
            Span { start: start - word.len() as u32, len: word.len() as u32, hash: 0 }
        };
        let spans: Vec<Span> = words.iter().map(place).collect();
        let wanted = Wanted::parse(Args::new(buf.as_bytes(), &spans));
        wanted
            .map(|wanted| (wanted.cursor, wanted.count, wanted.of_type, wanted.pattern.0.is_some()))
            .map_err(|error| error.text().to_owned())
    }

    #[test]
    fn cursors_are_read_as_redis_reads_them() {
        for (text, value) in [
            ("0", Some(0)),
            ("", Some(0)),
            ("+5", Some(5)),
            ("007", Some(7)),
            ("-1", Some(u64::MAX)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-", None),
            (" 1", None),
            ("1 ", None),
            ("x", None),
            ("--1", None),
        ] {
            assert_eq!(cursor(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn options() {
        assert_eq!(parse(&["scan", "0"]), Ok((0, 10, true, false)));
        let all = ["scan", "7", "COUNT", "3", "match", "a*", "type", "STRING"];
        assert_eq!(parse(&all), Ok((7, 3, true, true)));
        assert_eq!(parse(&["scan", "0", "type", "foo", "match", "*"]), Ok((0, 10, false, false)));
        let huge = parse(&["scan", "0", "count", "9223372036854775807"]);
        assert_eq!(huge, Ok((0, MAX_COUNT, true, false)));
        for (words, error) in [
            (&["scan", "x", "foo"][..], "ERR invalid cursor"),
            (&["scan", "0", "count", "0"], "ERR syntax error"),
            (&["scan", "0", "count", "-1"], "ERR syntax error"),
            (&["scan", "0", "count", "x"], "ERR value is not an integer or out of range"),
            (&["scan", "0", "count"], "ERR syntax error"),
            (&["scan", "0", "foo", "bar"], "ERR syntax error"),
        ] {
            assert_eq!(parse(words), Err(error.to_owned()), "{words:?}");
        }
    }

    fn walk(bench: &Bench, mut wanted: Wanted<'_>) -> (usize, HashSet<Vec<u8>>) {
        let (mut calls, mut found) = (0, HashSet::new());
        loop {
            let show = |key: &[u8]| {
                found.insert(key.to_vec());
            };
            let looked = wanted.look(&bench.cache, bench.db, bench.now, show);
            wanted.cursor = looked.now_or_never().expect("nothing is on disk");
            calls += 1;
            if wanted.cursor == 0 {
                return (calls, found);
            }
        }
    }

    #[test]
    fn a_walk_shows_every_key() {
        let bench = Bench::new(&[], Default::default());
        (0..5000).for_each(|number| bench.put(&format!("key:{number}"), b"v", 0));
        let wanted = |count, of_type, pattern: &'static str| Wanted {
            cursor: 0,
            count,
            of_type,
            pattern: Pattern::new(pattern.as_bytes()),
        };
        let (calls, found) = walk(&bench, wanted(10, true, "*"));
        assert!(calls > 100 && found.len() == 5000, "{calls} {}", found.len());
        assert_eq!(walk(&bench, wanted(MAX_COUNT, true, "*")).0, 1);
        assert_eq!(walk(&bench, wanted(100, true, "key:12?")).1.len(), 10);
        assert_eq!(walk(&bench, wanted(100, false, "*")).1.len(), 0);
    }

    #[test]
    fn any_cursor_ends() {
        let bench = Bench::new(&[], Default::default());
        bench.put("a", b"1", 0);
        for cursor in [1, 1 << 47, (1 << 48) - 1, 1 << 48, u64::MAX] {
            walk(&bench, Wanted { cursor, pattern: Pattern(None), count: 1000, of_type: true });
        }
    }

    #[test]
    fn the_lone_star_fits_the_empty_key() {
        assert!(Pattern::new(b"*").fits(b""));
        assert!(Pattern::new(b"").fits(b"") && !Pattern::new(b"").fits(b"a"));
    }
}
