//! The requests of the load, encoded beforehand, and the check of their replies.
//!
//! Key number 42 is `key:000000000042`, and its value is that key again and again, so that a reply
//! proves by itself that it belongs to the question, to its last byte. All replies to a kind of request
//! have one length, but for a miss, which makes the check a few comparisons.

use std::{io, ops::Range};

use super::zipf::{Rng, Zipf, permuted};

/// Bytes of a key.
pub const KEY_LEN: usize = 16;
/// Bytes of a value in the load.
pub const VALUE_LEN: usize = 128;

/// The skew of the load, as YCSB has it.
const SKEW: f64 = 0.99;

/// A key.
pub type Key = [u8; KEY_LEN];

/// The key of a number below 10^12.
pub fn key(number: u64) -> Key {
    let mut key = *b"key:000000000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// Appends the value of a key, `len` bytes long.
pub fn push_value(key: &Key, len: usize, out: &mut Vec<u8>) {
    out.extend(key.iter().cycle().take(len));
}

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// RESP2.
    Resp,
    /// memcached's classic text protocol.
    Memcached,
    /// RESP2 of GETs only, all answered with the value of key 0 (see [`super::floor`]).
    Constant,
}

impl Dialect {
    /// Appends a GET.
    pub fn push_get(self, key: &Key, out: &mut Vec<u8>) {
        out.extend_from_slice(self.get_head());
        out.extend_from_slice(key);
        out.extend_from_slice(b"\r\n");
    }

    /// Appends a SET of the key's value, `len` bytes long.
    pub fn push_set(self, key: &Key, len: usize, out: &mut Vec<u8>) {
        let text = std::str::from_utf8(key).unwrap_or_default();
        let head = match self {
            Self::Memcached => format!("set {text} 0 0 {len}\r\n"),
            _ => format!("*3\r\n$3\r\nSET\r\n${KEY_LEN}\r\n{text}\r\n${len}\r\n"),
        };
        out.extend_from_slice(head.as_bytes());
        push_value(key, len, out);
        out.extend_from_slice(b"\r\n");
    }

    /// Appends the reply to a GET that finds the value, `len` bytes long.
    pub fn push_hit(self, key: &Key, len: usize, out: &mut Vec<u8>) {
        if self == Self::Memcached {
            out.extend_from_slice(b"VALUE ");
            out.extend_from_slice(key);
            out.extend_from_slice(format!(" 0 {len}\r\n").as_bytes());
        } else {
            out.extend_from_slice(format!("${len}\r\n").as_bytes());
        }
        push_value(key, len, out);
        out.extend_from_slice(self.hit_end());
    }

    /// What stands behind the value of a hit.
    fn hit_end(self) -> &'static [u8] {
        if self == Self::Memcached { b"\r\nEND\r\n" } else { b"\r\n" }
    }

    /// The reply to a GET that finds nothing.
    fn miss(self) -> &'static [u8] {
        if self == Self::Memcached { b"END\r\n" } else { b"$-1\r\n" }
    }

    /// The reply to a SET.
    pub fn stored(self) -> &'static [u8] {
        if self == Self::Memcached { b"STORED\r\n" } else { b"+OK\r\n" }
    }

    /// What a GET begins with.
    fn get_head(self) -> &'static [u8] {
        if self == Self::Memcached { b"get " } else { b"*2\r\n$3\r\nGET\r\n$16\r\n" }
    }
}

/// A long run of encoded requests; any piece of it is a batch.
pub struct Stream {
    dialect: Dialect,
    value_len: usize,
    /// Whether a GET may find nothing.
    may_miss: bool,
    bytes: Vec<u8>,
    requests: Vec<Request>,
    /// What stands before the value of key 0 in the reply to a GET.
    head: Vec<u8>,
    /// Bytes of the reply to a GET that finds its value.
    hit_len: usize,
}

/// Where a request begins in the bytes, and which it is.
struct Request {
    start: u32,
    set: bool,
}

/// What a look at some replies found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Bytes of whole replies; the rest is the beginning of one.
    pub used: usize,
    /// GETs that found nothing.
    pub misses: u64,
}

impl Stream {
    fn empty(dialect: Dialect, value_len: usize, may_miss: bool) -> Self {
        let mut head = Vec::new();
        dialect.push_hit(&key(0), value_len, &mut head);
        let hit_len = head.len();
        head.truncate(hit_len - dialect.hit_end().len() - value_len);
        let (bytes, requests) = (Vec::new(), Vec::new());
        Self { dialect, value_len, may_miss, bytes, requests, head, hit_len }
    }

    /// GETs of these keys.
    pub fn of_gets(dialect: Dialect, keys: impl Iterator<Item = u64>) -> Self {
        Self { may_miss: false, ..Self::of_lossy_gets(dialect, VALUE_LEN, keys) }
    }

    /// SETs of these keys.
    pub fn of_sets(dialect: Dialect, keys: impl Iterator<Item = u64>) -> Self {
        let mut stream = Self::empty(dialect, VALUE_LEN, false);
        keys.for_each(|number| stream.push(&key(number), true));
        stream
    }

    /// GETs of these keys, whose values are `value_len` bytes long, or gone.
    pub fn of_lossy_gets(
        dialect: Dialect,
        value_len: usize,
        keys: impl Iterator<Item = u64>,
    ) -> Self {
        let mut stream = Self::empty(dialect, value_len, true);
        keys.for_each(|number| stream.push(&key(number), false));
        stream
    }

    /// `length` requests over `keys` keys: nine GETs to one SET, in [`Dialect::Constant`] GETs only.
    pub fn new(dialect: Dialect, keys: u64, length: usize) -> Self {
        let (zipf, mut rng) = (Zipf::new(keys, SKEW), Rng::new(42));
        let mut stream = Self::empty(dialect, VALUE_LEN, false);
        for _ in 0..length {
            let key = key(permuted(zipf.sample(&mut rng), keys));
            let set = rng.below(10) == 0 && dialect != Dialect::Constant;
            stream.push(&key, set);
        }
        stream
    }

    fn push(&mut self, key: &Key, set: bool) {
        let start = u32::try_from(self.bytes.len()).expect("a stream stays below 4 GiB");
        self.requests.push(Request { start, set });
        match set {
            true => self.dialect.push_set(key, self.value_len, &mut self.bytes),
            false => self.dialect.push_get(key, &mut self.bytes),
        }
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// The most bytes that the replies to so many requests take.
    pub fn reply_bytes(&self, requests: usize) -> usize {
        requests * self.hit_len.max(self.dialect.stored().len())
    }

    /// The bytes of a run of requests.
    pub fn encoded(&self, batch: &Range<usize>) -> &[u8] {
        let end = self.bytes.len();
        let at = |index| {
            self.requests.get(index).map_or(end, |request: &Request| request.start as usize)
        };
        &self.bytes[at(batch.start)..at(batch.end)]
    }

    /// Checks the replies to `pending` and takes the answered requests from it. Fails on a wrong reply.
    pub fn check(&self, pending: &mut Range<usize>, replies: &[u8]) -> io::Result<Checked> {
        let mut rest = replies;
        let mut misses = 0;
        let miss = self.dialect.miss();
        while pending.start < pending.end {
            let set = self.requests[pending.start].set;
            if !set && self.may_miss && rest.starts_with(miss) {
                misses += 1;
                pending.start += 1;
                rest = &rest[miss.len()..];
                continue;
            }
            let len = if set { self.dialect.stored().len() } else { self.hit_len };
            let Some((reply, behind)) = rest.split_at_checked(len) else {
                if !(self.may_miss && miss.starts_with(rest)) {
                    check_begin(rest, if set { self.dialect.stored() } else { self.hit_begin() })?;
                }
                return Ok(Checked { used: replies.len() - rest.len(), misses });
            };
            self.check_one(pending.start, reply)?;
            pending.start += 1;
            rest = behind;
        }
        if rest.is_empty() { Ok(Checked { used: replies.len(), misses }) } else { Err(wrong(rest)) }
    }

    /// Checks one reply of the right length.
    fn check_one(&self, index: usize, reply: &[u8]) -> io::Result<()> {
        if self.requests[index].set {
            return check_begin(reply, self.dialect.stored());
        }
        let key = self.expected_key(index);
        let (head, rest) = reply.split_at(self.head.len());
        let (value, end) = rest.split_at(self.value_len);
        let begin = self.hit_begin().len();
        // memcached repeats the key.
        let named = if begin < head.len() { begin..begin + KEY_LEN } else { 0..0 };
        let is_right = head[..begin] == self.head[..begin]
            && head[named.clone()] == key[..named.len()]
            && head[named.end..] == self.head[named.end..]
            && value.chunks(KEY_LEN).all(|part| *part == key[..part.len()])
            && end == self.dialect.hit_end();
        if is_right { Ok(()) } else { Err(wrong(reply)) }
    }

    /// What a hit begins with, whatever its key.
    fn hit_begin(&self) -> &[u8] {
        match self.dialect {
            Dialect::Memcached => b"VALUE ",
            _ => &self.head,
        }
    }

    /// The key whose value answers a GET.
    fn expected_key(&self, index: usize) -> &Key {
        if self.dialect == Dialect::Constant {
            return b"key:000000000000";
        }
        let start = self.requests[index].start as usize + self.dialect.get_head().len();
        self.bytes[start..].first_chunk().expect("a GET holds a key")
    }
}

/// Compares as far as both reach.
fn check_begin(reply: &[u8], expected: &[u8]) -> io::Result<()> {
    let shared = reply.len().min(expected.len());
    if reply[..shared] == expected[..shared] { Ok(()) } else { Err(wrong(reply)) }
}

fn wrong(reply: &[u8]) -> io::Error {
    let shown = &reply[..reply.len().min(80)];
    io::Error::other(format!("wrong reply: \"{}\"", shown.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Dialect; 3] = [Dialect::Resp, Dialect::Memcached, Dialect::Constant];

    /// The right replies to a batch.
    fn answer(stream: &Stream, batch: Range<usize>) -> Vec<u8> {
        let mut out = Vec::new();
        for index in batch {
            match stream.requests[index].set {
                true => out.extend_from_slice(stream.dialect.stored()),
                false => {
                    let key = stream.expected_key(index);
                    stream.dialect.push_hit(key, stream.value_len, &mut out);
                }
            }
        }
        out
    }

    #[test]
    fn a_get_is_a_get() {
        let mut out = Vec::new();
        Dialect::Resp.push_get(&key(42), &mut out);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000042\r\n");
        assert_eq!(key(123_456_789_012), *b"key:123456789012");
    }

    #[test]
    fn right_replies_pass_however_they_are_cut() {
        for dialect in ALL {
            let stream = Stream::new(dialect, 1_000, 200);
            let replies = answer(&stream, 10..80);
            for cut in 0..replies.len() {
                let mut pending = 10..80;
                let Checked { used, .. } = stream.check(&mut pending, &replies[..cut]).unwrap();
                assert!(used <= cut);
                let rest = stream.check(&mut pending, &replies[used..]).unwrap();
                assert_eq!(rest, Checked { used: replies.len() - used, misses: 0 });
                assert!(pending.is_empty());
            }
        }
    }

    #[test]
    fn wrong_replies_fail() {
        for dialect in ALL {
            let stream = Stream::new(dialect, 1_000, 64);
            let batch = 0..64;
            let replies = answer(&stream, batch.clone());
            let fails = |replies: &[u8]| stream.check(&mut batch.clone(), replies).is_err();
            assert!(!fails(&replies));
            assert!(fails(b"-ERR no\r\n") && fails(b"$-1\r\n") && fails(b"END\r\n"));
            assert!(fails(&[&replies[..], b"x"].concat()));
            let mut torn = replies.clone();
            torn[stream.head.len() + VALUE_LEN - 1] ^= 1;
            assert!(fails(&torn));
        }
    }

    #[test]
    fn misses_are_counted_where_they_may_be() {
        for dialect in [Dialect::Resp, Dialect::Memcached] {
            let stream = Stream::of_lossy_gets(dialect, 1_000, 0..3);
            let mut replies = dialect.miss().to_vec();
            dialect.push_hit(&key(1), 1_000, &mut replies);
            replies.extend_from_slice(dialect.miss());
            for cut in 0..replies.len() {
                let mut pending = 0..3;
                let first = stream.check(&mut pending, &replies[..cut]).unwrap();
                let second = stream.check(&mut pending, &replies[first.used..]).unwrap();
                assert_eq!((pending.len(), first.misses + second.misses), (0, 2));
            }
            let strict = Stream::of_gets(dialect, 0..1);
            assert!(strict.check(&mut (0..1), dialect.miss()).is_err());
        }
    }

    #[test]
    fn batches_are_slices() {
        let stream = Stream::new(Dialect::Resp, 100, 50);
        let whole = [stream.encoded(&(0..20)), stream.encoded(&(20..50))].concat();
        assert_eq!(whole, stream.bytes);
        assert_eq!(stream.len(), 50);
    }
}
