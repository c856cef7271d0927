//! The reply writer: one method for each type of RESP2 and RESP3.
//!
//! A command says what it means (a map, a double, a null) and the writer knows how the client's
//! version of the protocol says it; types that RESP2 lacks are written as Redis writes them there.
//! See <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::io::Write;

use bytes::Bytes;

use super::{
    double::{DOUBLE_MAX, double_text},
    output::{Mark, Output},
};
use crate::error::{ClientError, ProtocolError};

/// The version of the protocol that a client speaks (HELLO).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Resp {
    /// RESP2, until HELLO says otherwise.
    #[default]
    V2,
    /// RESP3.
    V3,
}

/// Writes replies for one client to the end of an output.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Output,
    resp: Resp,
}

/// An aggregate whose length isn't known yet: its header's place. See [`Reply::array_deferred`].
#[derive(Debug)]
#[must_use = "without its header the reply is malformed"]
pub struct Deferred {
    mark: Mark,
    kind: Aggregate,
}

/// The types that hold other replies.
#[derive(Clone, Copy, Debug)]
enum Aggregate {
    Array,
    Map,
    Set,
    Push,
}

impl Aggregate {
    /// The type byte, and the number of replies in it that `n` stands for.
    #[inline]
    fn header(self, resp: Resp, n: usize) -> (u8, usize) {
        match (self, resp) {
            (Self::Map, Resp::V3) => (b'%', n),
            (Self::Map, Resp::V2) => (b'*', n * 2),
            (Self::Set, Resp::V3) => (b'~', n),
            (Self::Push, Resp::V3) => (b'>', n),
            (Self::Array, _) | (Self::Set | Self::Push, Resp::V2) => (b'*', n),
        }
    }
}

/// Longest header: type byte, 20 digits, line end.
const HEADER_MAX: usize = 24;

impl<'a> Reply<'a> {
    /// A writer at the end of `out` for a client that speaks `resp`.
    #[inline]
    pub fn new(out: &'a mut Output, resp: Resp) -> Self {
        Self { out, resp }
    }

    /// The client's version of the protocol.
    #[inline]
    pub fn resp(&self) -> Resp {
        self.resp
    }

    /// Changes the version for what follows (HELLO answers in the new one).
    pub fn set_resp(&mut self, resp: Resp) {
        self.resp = resp;
    }

    /// The end as it is now, for [`Self::truncate`].
    #[inline]
    pub fn mark(&self) -> Mark {
        self.out.mark()
    }

    /// Takes back what was written after `mark`.
    pub fn truncate(&mut self, mark: Mark) {
        self.out.truncate(mark);
    }

    /// `+OK`.
    #[inline]
    pub fn ok(&mut self) {
        self.out.extend(b"+OK\r\n");
    }

    /// A simple string. CR and LF become spaces.
    pub fn simple(&mut self, text: &str) {
        self.line(b"+", text);
    }

    /// An error. CR and LF become spaces.
    #[cold]
    pub fn error(&mut self, error: &ClientError) {
        self.line(b"-", error.text().trim_matches(['\r', '\n']));
    }

    /// What a peer hears before it is cut off: nothing, if it doesn't speak the protocol at all.
    #[cold]
    pub fn protocol_error(&mut self, error: &ProtocolError) {
        if let ProtocolError::Malformed(text) = error {
            self.line(b"-ERR Protocol error: ", text);
        }
    }

    /// An integer.
    #[inline]
    pub fn integer(&mut self, value: i64) {
        self.number(b':', value);
    }

    /// A bulk string, copied.
    #[inline]
    pub fn bulk(&mut self, value: &[u8]) {
        if !self.out.takes_value() {
            return;
        }
        self.out.bytes.reserve(HEADER_MAX + value.len() + 2);
        self.header(b'$', value.len());
        self.out.extend(value);
        self.out.extend(b"\r\n");
    }

    /// A bulk string by reference: nothing is copied, so it pays for large values.
    pub fn shared(&mut self, value: Bytes) {
        if !self.out.takes_value() {
            return;
        }
        self.header(b'$', value.len());
        self.out.splice(value);
        self.out.extend(b"\r\n");
    }

    /// The null that stands for a missing value.
    #[inline]
    pub fn null(&mut self) {
        self.out.extend(if self.resp == Resp::V3 { b"_\r\n".as_slice() } else { b"$-1\r\n" });
    }

    /// The null that stands for a missing array.
    pub fn null_array(&mut self) {
        self.out.extend(if self.resp == Resp::V3 { b"_\r\n".as_slice() } else { b"*-1\r\n" });
    }

    /// The header of an array; `n` replies follow.
    #[inline]
    pub fn array(&mut self, n: usize) {
        self.aggregate(Aggregate::Array, n);
    }

    /// The header of a map; `n` pairs of replies follow. RESP2: an array.
    pub fn map(&mut self, n: usize) {
        self.aggregate(Aggregate::Map, n);
    }

    /// The header of a set; `n` replies follow. RESP2: an array.
    pub fn set(&mut self, n: usize) {
        self.aggregate(Aggregate::Set, n);
    }

    /// The header of a push message, which answers no request; `n` replies follow. RESP2: an array.
    pub fn push(&mut self, n: usize) {
        self.aggregate(Aggregate::Push, n);
    }

    /// An array whose length is said by [`Self::finish`], after its elements were written. Several
    /// may be open, finished innermost first.
    pub fn array_deferred(&mut self) -> Deferred {
        Deferred { mark: self.mark(), kind: Aggregate::Array }
    }

    /// A map whose number of pairs is said by [`Self::finish`].
    pub fn map_deferred(&mut self) -> Deferred {
        Deferred { mark: self.mark(), kind: Aggregate::Map }
    }

    /// A set whose length is said by [`Self::finish`].
    pub fn set_deferred(&mut self) -> Deferred {
        Deferred { mark: self.mark(), kind: Aggregate::Set }
    }

    /// Writes the header of an aggregate whose elements, `n` of them (pairs, for a map), follow it.
    /// Costs a move of their bytes.
    pub fn finish(&mut self, deferred: Deferred, n: usize) {
        let (kind, n) = deferred.kind.header(self.resp, n);
        let mut line = [0; HEADER_MAX];
        let mut rest = line.as_mut_slice();
        // Never fails: a header fits.
        let _ = write!(rest, "{}{n}\r\n", char::from(kind));
        let len = HEADER_MAX - rest.len();
        self.out.insert(deferred.mark, &line[..len]);
    }

    /// A double, in the shortest form that reads back as the same number. RESP2: a bulk string.
    pub fn double(&mut self, value: f64) {
        let mut room = [0; DOUBLE_MAX];
        let text = double_text(value, &mut room);
        match self.resp {
            Resp::V2 => self.bulk(text),
            Resp::V3 => {
                self.out.extend(b",");
                self.out.extend(text);
                self.out.extend(b"\r\n");
            }
        }
    }

    /// A truth value. RESP2: the integer 1 or 0.
    pub fn boolean(&mut self, value: bool) {
        self.out.extend(match (self.resp, value) {
            (Resp::V3, true) => b"#t\r\n",
            (Resp::V3, false) => b"#f\r\n",
            (Resp::V2, true) => b":1\r\n",
            (Resp::V2, false) => b":0\r\n",
        });
    }

    /// An integer of any size, in decimal digits. RESP2: a bulk string.
    pub fn big_number(&mut self, digits: &str) {
        match self.resp {
            Resp::V2 => self.bulk(digits.as_bytes()),
            Resp::V3 => self.line(b"(", digits),
        }
    }

    /// A text with its format, three letters (`txt`, `mkd`). RESP2: a bulk string without it.
    pub fn verbatim(&mut self, format: &str, text: &[u8]) {
        debug_assert_eq!(format.len(), 3);
        if self.resp == Resp::V2 {
            return self.bulk(text);
        }
        self.header(b'=', format.len() + 1 + text.len());
        self.out.extend(format.as_bytes());
        self.out.extend(b":");
        self.out.extend(text);
        self.out.extend(b"\r\n");
    }

    /// The header of an aggregate.
    #[inline]
    fn aggregate(&mut self, kind: Aggregate, n: usize) {
        let (kind, n) = kind.header(self.resp, n);
        self.header(kind, n);
    }

    /// A type byte, a length and a line end.
    #[inline]
    fn header(&mut self, kind: u8, n: usize) {
        // A value's length always fits.
        self.number(kind, n as i64);
    }

    /// A type byte, a number and a line end. The short ones, which are most, cost one store.
    #[inline]
    fn number(&mut self, kind: u8, value: i64) {
        // Lengths are small numbers: in 32 bits a division is a multiplication.
        let small = value as u32;
        let digit = |unit: u32| b'0' + (small / unit % 10) as u8;
        match value {
            0..10 => self.out.extend(&[kind, digit(1), b'\r', b'\n']),
            10..100 => self.out.extend(&[kind, digit(10), digit(1), b'\r', b'\n']),
            100..1000 => {
                self.out.extend(&[kind, digit(100), digit(10), digit(1), b'\r', b'\n']);
            }
            _ => self.long_number(kind, value),
        }
    }

    /// [`Self::number`] for what is negative or has more than three digits.
    fn long_number(&mut self, kind: u8, value: i64) {
        let mut number = itoa::Buffer::new();
        let number = number.format(value).as_bytes();
        self.out.bytes.reserve(HEADER_MAX);
        self.out.extend(&[kind]);
        self.out.extend(number);
        self.out.extend(b"\r\n");
    }

    /// A line of text, whose own line ends become spaces.
    fn line(&mut self, prefix: &[u8], text: &str) {
        self.out.extend(prefix);
        let start = self.out.bytes.len();
        self.out.extend(text.as_bytes());
        let line = &mut self.out.bytes[start..];
        line.iter_mut().filter(|byte| matches!(byte, b'\r' | b'\n')).for_each(|byte| *byte = b' ');
        self.out.extend(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use redis_protocol::{
        resp2::{decode as resp2, types::OwnedFrame as Two},
        resp3::{
            decode::complete as resp3,
            types::{OwnedFrame as Three, VerbatimStringFormat},
        },
    };

    use super::*;

    /// What `write` writes, joined.
    fn wire(resp: Resp, write: impl FnOnce(&mut Reply<'_>)) -> Vec<u8> {
        let mut out = Output::default();
        write(&mut Reply::new(&mut out, resp));
        let wire: Vec<u8> = out.chunks(0).flatten().copied().collect();
        assert_eq!(wire.len(), out.len());
        wire
    }

    /// Writes in both versions and compares with what another implementation decodes.
    fn check(write: impl Fn(&mut Reply<'_>), two: Two, three: Three) {
        let bytes = wire(Resp::V2, &write);
        let decoded = resp2::decode(&bytes).expect("well formed").expect("complete");
        assert_eq!(decoded, (two, bytes.len()), "{}", bytes.escape_ascii());
        let bytes = wire(Resp::V3, &write);
        let decoded = resp3::decode(&bytes).expect("well formed").expect("complete");
        assert_eq!(decoded, (three, bytes.len()), "{}", bytes.escape_ascii());
    }

    fn blob(data: &[u8]) -> Three {
        Three::BlobString { data: data.to_vec(), attributes: None }
    }

    fn number(data: i64) -> Three {
        Three::Number { data, attributes: None }
    }

    fn simple(text: &str) -> Three {
        Three::SimpleString { data: text.into(), attributes: None }
    }

    #[test]
    fn lines() {
        check(|r| r.ok(), Two::SimpleString(b"OK".to_vec()), simple("OK"));
        check(|r| r.simple("a\r\nb"), Two::SimpleString(b"a  b".to_vec()), simple("a  b"));
        let error = ClientError::from("ERR no\r\n+OK".to_string());
        let text = "ERR no  +OK".to_string();
        let three = Three::SimpleError { data: text.clone(), attributes: None };
        check(|r| r.error(&error), Two::Error(text), three);
        let error = ProtocolError::Malformed("invalid bulk length".into());
        let expected = b"-ERR Protocol error: invalid bulk length\r\n";
        assert_eq!(wire(Resp::V2, |r| r.protocol_error(&error)), expected);
        assert_eq!(wire(Resp::V2, |r| r.protocol_error(&ProtocolError::CrossProtocol)), b"");
    }

    #[test]
    fn scalars() {
        for value in [0, 1, -1, 42, i64::MAX, i64::MIN] {
            check(|r| r.integer(value), Two::Integer(value), number(value));
        }
        check(
            |r| r.boolean(true),
            Two::Integer(1),
            Three::Boolean { data: true, attributes: None },
        );
        check(
            |r| r.boolean(false),
            Two::Integer(0),
            Three::Boolean { data: false, attributes: None },
        );
        check(|r| r.null(), Two::Null, Three::Null);
        check(|r| r.null_array(), Two::Null, Three::Null);
        assert_eq!(wire(Resp::V2, |r| r.null()), b"$-1\r\n");
        assert_eq!(wire(Resp::V2, |r| r.null_array()), b"*-1\r\n");
        let digits = "3492890328409238509324850943850943825024385";
        let three = Three::BigNumber { data: digits.into(), attributes: None };
        check(|r| r.big_number(digits), Two::BulkString(digits.into()), three);
    }

    #[test]
    fn strings() {
        for len in [0, 1, 9, 10, 99, 100, 70_000] {
            let value = vec![b'\n'; len];
            let shared = Bytes::from(value.clone());
            check(|r| r.bulk(&value), Two::BulkString(value.clone()), blob(&value));
            check(|r| r.shared(shared.clone()), Two::BulkString(value.clone()), blob(&value));
        }
        let format = VerbatimStringFormat::Text;
        let three = Three::VerbatimString { data: b"a\nb".to_vec(), format, attributes: None };
        check(|r| r.verbatim("txt", b"a\nb"), Two::BulkString(b"a\nb".to_vec()), three);
    }

    #[test]
    fn aggregates() {
        let twos = |n: i64| Two::Array((0..n).map(Two::Integer).collect());
        let threes = |n: i64| (0..n).map(number).collect::<Vec<_>>();
        let write = |r: &mut Reply<'_>, n: i64| (0..n).for_each(|i| r.integer(i));
        for n in [0, 3, 11] {
            let array = Three::Array { data: threes(n), attributes: None };
            check(|r| (r.array(n as usize), write(r, n)).1, twos(n), array);
            let set = Three::Set { data: threes(n).into_iter().collect(), attributes: None };
            check(|r| (r.set(n as usize), write(r, n)).1, twos(n), set);
            let pairs = threes(2 * n);
            let pairs = pairs.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
            let map = Three::Map { data: pairs.collect(), attributes: None };
            check(|r| (r.map(n as usize), write(r, 2 * n)).1, twos(2 * n), map);
        }
        let push = Three::Push { data: vec![blob(b"message"), blob(b"x")], attributes: None };
        let words = [b"message".to_vec(), b"x".to_vec()];
        let array = Two::Array(words.clone().map(Two::BulkString).to_vec());
        check(|r| (r.push(2), words.iter().for_each(|word| r.bulk(word))).1, array, push);
    }

    #[test]
    fn deferred_headers_stand_where_they_belong() {
        let write = |known: bool| {
            move |r: &mut Reply<'_>| {
                r.shared(Bytes::from_static(b"before"));
                let outer = if known { None } else { Some(r.array_deferred()) };
                outer.is_none().then(|| r.array(11));
                (0..9).for_each(|i| r.integer(i));
                r.shared(Bytes::from_static(b"inside"));
                let inner = if known { None } else { Some(r.map_deferred()) };
                inner.is_none().then(|| r.map(1));
                r.shared(Bytes::from_static(b"key"));
                let set = if known { None } else { Some(r.set_deferred()) };
                set.is_none().then(|| r.set(0));
                set.into_iter().for_each(|set| r.finish(set, 0));
                inner.into_iter().for_each(|inner| r.finish(inner, 1));
                outer.into_iter().for_each(|outer| r.finish(outer, 11));
                r.shared(Bytes::from_static(b"after"));
            }
        };
        for resp in [Resp::V2, Resp::V3] {
            let (late, known) = (wire(resp, write(false)), wire(resp, write(true)));
            assert_eq!(late.escape_ascii().to_string(), known.escape_ascii().to_string());
        }
    }

    #[test]
    fn truncation_takes_back_a_reply() {
        let mut out = Output::default();
        let mut reply = Reply::new(&mut out, Resp::V3);
        reply.shared(Bytes::from_static(b"kept"));
        let mark = reply.mark();
        reply.array(2);
        reply.shared(Bytes::from_static(b"dropped"));
        reply.truncate(mark);
        reply.error(&ClientError::SYNTAX);
        let wire: Vec<u8> = out.chunks(0).flatten().copied().collect();
        assert_eq!(wire, b"$4\r\nkept\r\n-ERR syntax error\r\n");
    }

    #[test]
    fn doubles() {
        for value in [0.0, 1.5, -1e300, 1e-9, f64::INFINITY, f64::NEG_INFINITY] {
            let mut room = [0; DOUBLE_MAX];
            let text = double_text(value, &mut room).to_vec();
            let three = Three::Double { data: value, attributes: None };
            check(|r| r.double(value), Two::BulkString(text), three);
        }
        assert_eq!(wire(Resp::V3, |r| r.double(f64::NAN)), b",nan\r\n");
    }
}
