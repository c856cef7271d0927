//! The request scanner: finds the complete requests of a buffer without copying them.
//!
//! A request is an array of bulk strings (`*2\r\n$3\r\nGET\r\n$1\r\nk\r\n`) or an inline line of words.
//! What lies wholly in the buffer with plain headers is read by one tight loop (`quick`); anything
//! else (a piece that is missing, an odd header, an error) by a slower state machine that takes over
//! where that loop stopped and keeps, from call to call, how far it came, so that no byte of a
//! partial request is scanned again. Nothing is reserved for what a header only promises.
//!
//! Errors and their texts are those of redis-server 7.0, tried one by one, but that
//! - more than `Limits::args` (1,048,576) arguments are refused; 7.0 takes up to 2^31 - 1;
//! - a line over `Limits::inline` is always refused, in Redis only if its end came in a later read;
//! - a zero byte is a byte as any other; there it hides the end of the line from the server, which
//!   then waits until the line is too big;
//! - a byte that isn't ASCII is shown as `?` in `expected '$', got '?'`.
//!
//! As there, the byte behind the `\r` of a header and the two behind a bulk aren't checked.

use std::mem;

use memchr::memchr;

use super::{
    inline,
    limits::{Limits, malformed},
};
use crate::error::ProtocolError;

/// Where an argument lies in the buffer, and room for the hash that dispatch computes if it is a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// Offset of its first byte in the buffer.
    pub start: u32,
    /// Its length in bytes.
    pub len: u32,
    /// 0 from the scanner.
    pub hash: u64,
}

impl Span {
    fn new(start: usize, len: usize) -> Self {
        // Fits: `Scanner::scan` refuses buffers past `u32::MAX`.
        Self { start: start as u32, len: len as u32, hash: 0 }
    }

    /// The argument itself, in the buffer that was scanned (empty in one that is shorter).
    #[inline]
    pub fn of<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        buf.get(start..start + self.len as usize).unwrap_or_default()
    }
}

/// One complete request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Index of its first span in [`Batch::spans`].
    pub first: u32,
    /// Number of its spans, at least 1.
    pub count: u32,
    /// Offset just behind it in the buffer.
    pub end: u32,
}

/// The complete requests of one buffer; reused by a worker for all its connections.
#[derive(Debug, Default)]
pub struct Batch {
    /// The arguments of all requests, one after the other.
    pub spans: Vec<Span>,
    /// The requests in the order in which they came.
    pub requests: Vec<Request>,
}

impl Batch {
    /// Forgets all requests and keeps the room.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.requests.clear();
    }

    /// Gives room back, so that space for about `spans` spans remains.
    pub fn shrink_to(&mut self, spans: usize) {
        self.spans.shrink_to(spans);
        self.requests.shrink_to(spans);
    }

    /// The number of requests.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The spans of a request of this batch, its command's name first.
    #[inline]
    pub fn args(&self, request: &Request) -> &[Span] {
        let first = request.first as usize;
        self.spans.get(first..first + request.count as usize).unwrap_or_default()
    }

    /// Adds the request whose spans begin at `first` and which ends at `end` in `buf`.
    #[inline(always)]
    fn push(&mut self, first: usize, end: usize, buf: &[u8]) -> Result<(), ProtocolError> {
        if self.spans.get(first).is_some_and(|name| is_http(name.of(buf))) {
            self.spans.truncate(first);
            return Err(ProtocolError::CrossProtocol);
        }
        let count = self.spans.len() - first;
        self.requests.push(Request { first: first as u32, count: count as u32, end: end as u32 });
        Ok(())
    }
}

/// What a scan found, apart from the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes of complete requests and of skipped empty ones: the caller drops them, after it ran
    /// the batch, and keeps the rest as its tail.
    pub consumed: usize,
    /// At least so many more bytes are needed to complete the partial request's current argument;
    /// 0 if unknown.
    pub need: usize,
    /// Call again with the rest once the batch has run, even if no more bytes come: the batch was
    /// full, or the next request is malformed and the next call will say how.
    pub more: bool,
}

/// The scanner of one connection: how far it came in a request that isn't complete.
#[derive(Debug, Default)]
pub struct Scanner {
    /// Arguments of the partial request: start (from the request's first byte) and length.
    pieces: Vec<(u32, u32)>,
    /// Where, from the request's first byte, the next header or bulk begins.
    pos: u32,
    /// Bytes of the header or line at `pos` that were searched for its end.
    seen: u32,
    /// Arguments still missing; 0 while the request's own header or line is.
    left: u32,
    /// Length of the bulk that begins at `pos`, if its header is complete.
    bulk: Option<u32>,
    /// What every further call answers.
    failed: Option<Box<ProtocolError>>,
}

// 10,000 idle connections have one each.
const _: () = assert!(mem::size_of::<Scanner>() <= 64);

/// What the state machine came to. Offsets are from the request's first byte.
enum Step {
    /// The request's spans are in the batch; it ends here.
    Done(usize),
    /// An empty request, to be passed over, ends here.
    Skip(usize),
    /// The rest hasn't come; so many bytes are missing, or 0.
    Wait(usize),
}

/// Where [`quick`] left a request to the state machine.
struct Stopped {
    /// Where, from the request's first byte, the header begins that it didn't read.
    pos: usize,
    /// Arguments still missing; 0 if that header is the request's own.
    left: usize,
}

impl Scanner {
    /// Scans `buf`, which starts where the last call's `consumed` ended, and adds what it finds to
    /// `batch`, at most `limits.batch` requests. Inline requests are unescaped in place.
    ///
    /// # Errors
    /// If the first request of `buf` is malformed; a malformed one behind good ones is reported by
    /// the next call (see [`Scanned::more`]). After an error every call returns it again.
    pub fn scan(
        &mut self,
        buf: &mut [u8],
        limits: &Limits,
        batch: &mut Batch,
    ) -> Result<Scanned, ProtocolError> {
        let before = batch.len();
        if let Some(error) = &self.failed {
            return Err(ProtocolError::clone(error));
        }
        if u32::try_from(buf.len()).is_err() {
            let error = ProtocolError::Malformed("too big query buffer".into());
            return self.fail(0, error, false);
        }
        let mut at = 0;
        while at < buf.len() && batch.len() - before < limits.batch {
            match self.next(buf, at, limits, batch) {
                Ok(Step::Done(end) | Step::Skip(end)) => at = end,
                Ok(Step::Wait(need)) => return Ok(Scanned { consumed: at, need, more: false }),
                Err(error) => return self.fail(at, error, batch.len() > before),
            }
        }
        Ok(Scanned { consumed: at, need: 0, more: at < buf.len() })
    }

    /// Whether the beginning of a request is waiting for its rest.
    pub fn is_partial(&self) -> bool {
        self.pos | self.seen != 0
    }

    /// The bytes that the scanner holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.pieces.capacity() * mem::size_of::<(u32, u32)>()
    }

    /// Scans the request at `at`. Offsets of the answer are in `buf`.
    #[inline]
    fn next(
        &mut self,
        buf: &mut [u8],
        at: usize,
        limits: &Limits,
        batch: &mut Batch,
    ) -> Result<Step, ProtocolError> {
        let first = batch.spans.len();
        if !self.is_partial() {
            match quick(buf, at, limits, &mut batch.spans) {
                Ok(end) => return batch.push(first, end, buf).map(|()| Step::Done(end)),
                Err(stopped) => self.take_over(&stopped, at, batch.spans.drain(first..)),
            }
        }
        let step = self.resume(&mut buf[at..], at, limits, &mut batch.spans)?;
        if let Step::Wait(_) = step {
            return Ok(step);
        }
        *self = Self::default();
        match step {
            Step::Done(end) => batch.push(first, at + end, buf).map(|()| Step::Done(at + end)),
            Step::Skip(end) | Step::Wait(end) => Ok(Step::Skip(at + end)),
        }
    }

    /// Becomes the state in which [`quick`] stopped in the request at `at`.
    #[cold]
    fn take_over(&mut self, stopped: &Stopped, at: usize, spans: impl Iterator<Item = Span>) {
        spans.for_each(|span| self.keep(span.start as usize - at, span.len));
        self.pos = stopped.pos as u32;
        self.left = stopped.left as u32;
    }

    /// Goes on with the request at the beginning of `buf`, which lies at `at` in the whole buffer.
    #[inline(never)]
    fn resume(
        &mut self,
        buf: &mut [u8],
        at: usize,
        limits: &Limits,
        spans: &mut Vec<Span>,
    ) -> Result<Step, ProtocolError> {
        if self.left == 0 {
            if buf.first() != Some(&b'*') {
                return self.inline(buf, at, limits, spans);
            }
            let Some(line) = self.header(buf, limits, "too big mbulk count string")? else {
                return Ok(Step::Wait(0));
            };
            self.left = limits.check_star(line)?;
            if self.left == 0 {
                return Ok(Step::Skip(self.pos as usize));
            }
        }
        if let Some(need) = self.bulks(buf, limits)? {
            return Ok(Step::Wait(need));
        }
        let place = |&(start, len)| Span::new(at + start as usize, len as usize);
        spans.extend(self.pieces.iter().map(place));
        Ok(Step::Done(self.pos as usize))
    }

    /// Reads the arguments that have come. If some are missing: how many bytes the next one needs.
    fn bulks(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, ProtocolError> {
        while self.left > 0 {
            let len = match self.bulk {
                Some(len) => len,
                None => match self.header(buf, limits, "too big bulk count string")? {
                    Some(line) => limits.check_dollar(line)?,
                    None => return Ok(Some(0)),
                },
            };
            self.bulk = Some(len);
            let end = self.pos as usize + len as usize + 2;
            if end > buf.len() {
                return Ok(Some(end - buf.len()));
            }
            self.keep(self.pos as usize, len);
            self.bulk = None;
            self.pos = end as u32;
            self.left -= 1;
        }
        Ok(None)
    }

    /// The header line at `pos` without its end, and moves behind it; `None` if its end hasn't come.
    fn header<'a>(
        &mut self,
        buf: &'a [u8],
        limits: &Limits,
        too_big: &'static str,
    ) -> Result<Option<&'a [u8]>, ProtocolError> {
        let line = buf.get(self.pos as usize..).unwrap_or_default();
        match self.search(b'\r', line, limits, too_big)? {
            // The byte behind the `\r`, whatever it is, must have come.
            Some(end) if end + 1 < line.len() => {
                self.pos += end as u32 + 2;
                self.seen = 0;
                Ok(Some(&line[..end]))
            }
            Some(end) => {
                self.seen = end as u32;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Reads the line at the beginning of `buf`, if it is complete.
    fn inline(
        &mut self,
        buf: &mut [u8],
        at: usize,
        limits: &Limits,
        spans: &mut Vec<Span>,
    ) -> Result<Step, ProtocolError> {
        let Some(end) = self.search(b'\n', buf, limits, "too big inline request")? else {
            return Ok(Step::Wait(0));
        };
        let line = &mut buf[..end];
        let trimmed = line.len() - usize::from(line.ends_with(b"\r"));
        let first = spans.len();
        if !inline::split(&mut line[..trimmed], |s, len| spans.push(Span::new(at + s, len))) {
            spans.truncate(first);
            return malformed("unbalanced quotes in request");
        }
        Ok(if spans.len() == first { Step::Skip(end + 1) } else { Step::Done(end + 1) })
    }

    /// Finds `byte` in the part of `line` that wasn't searched yet, within `limits.inline`.
    fn search(
        &mut self,
        byte: u8,
        line: &[u8],
        limits: &Limits,
        too_big: &'static str,
    ) -> Result<Option<usize>, ProtocolError> {
        let seen = self.seen as usize;
        let bound = line.len().min(limits.inline.saturating_add(1));
        if let Some(found) = memchr(byte, line.get(seen..bound).unwrap_or_default()) {
            return Ok(Some(seen + found));
        }
        if line.len() > limits.inline {
            return malformed(too_big);
        }
        self.seen = line.len() as u32;
        Ok(None)
    }

    /// Remembers an argument. Room grows by a quarter, so that it stays small beside the arguments,
    /// which take at least six bytes of the buffer each.
    fn keep(&mut self, start: usize, len: u32) {
        if self.pieces.len() == self.pieces.capacity() {
            self.pieces.reserve_exact((self.pieces.len() / 4).max(4));
        }
        self.pieces.push((start as u32, len));
    }

    /// Reports the error of the request at `at`: now, or by the next call if others came before it.
    #[cold]
    fn fail(
        &mut self,
        at: usize,
        error: ProtocolError,
        after_others: bool,
    ) -> Result<Scanned, ProtocolError> {
        *self = Self { failed: Some(Box::new(error.clone())), ..Self::default() };
        if !after_others {
            return Err(error);
        }
        Ok(Scanned { consumed: at, need: 0, more: true })
    }
}

/// Reads the request at `at` if it is a multibulk one, wholly there, with plain headers and within
/// the limits: its end. Else spans of the arguments that it read are in `spans`.
#[inline]
fn quick(buf: &[u8], at: usize, limits: &Limits, spans: &mut Vec<Span>) -> Result<usize, Stopped> {
    let unread = Stopped { pos: 0, left: 0 };
    let Some((count, mut pos)) = plain_header(buf, at, b'*') else { return Err(unread) };
    if count == 0 || count > limits.args {
        return Err(unread);
    }
    for left in (1..=count).rev() {
        match plain_header(buf, pos, b'$') {
            Some((len, start)) if len <= limits.bulk && buf.len() - start >= len + 2 => {
                spans.push(Span::new(start, len));
                pos = start + len + 2;
            }
            _ => return Err(Stopped { pos: pos - at, left }),
        }
    }
    Ok(pos)
}

/// The number of a header at `pos` and the offset behind it; `None` if it isn't complete or isn't a
/// plain number of at most nine digits behind `kind`.
#[inline(always)]
fn plain_header(buf: &[u8], pos: usize, kind: u8) -> Option<(usize, usize)> {
    match *buf.get(pos..)? {
        [k, a @ b'0'..=b'9', b'\r', _, ..] if k == kind => Some((digit(a), pos + 4)),
        [k, a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', _, ..] if k == kind => {
            Some((digit(a) * 10 + digit(b), pos + 5))
        }
        [k, a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', _, ..] if k == kind => {
            Some((digit(a) * 100 + digit(b) * 10 + digit(c), pos + 6))
        }
        [k, b'1'..=b'9', ..] if k == kind => longer_number(buf, pos + 1),
        _ => None,
    }
}

/// [`plain_header`] for up to nine digits, the first of which was checked.
fn longer_number(buf: &[u8], start: usize) -> Option<(usize, usize)> {
    let mut number = 0;
    for (i, byte) in buf.get(start..)?.iter().enumerate().take(10) {
        match byte {
            b'0'..=b'9' if i < 9 => number = number * 10 + digit(*byte),
            b'\r' if start + i + 1 < buf.len() => return Some((number, start + i + 2)),
            _ => return None,
        }
    }
    None
}

/// The value of an ASCII digit.
#[inline(always)]
fn digit(byte: u8) -> usize {
    usize::from(byte - b'0')
}

/// Whether a command's name is the first word of an HTTP request: a browser was tricked into
/// sending one here. (`Host:` starts the line behind `GET / HTTP/1.1`, which is only an error.)
#[inline]
fn is_http(name: &[u8]) -> bool {
    match name {
        [b'p' | b'P', _, _, _] => name.eq_ignore_ascii_case(b"post"),
        [b'h' | b'H', _, _, _, b':'] => name.eq_ignore_ascii_case(b"host:"),
        _ => false,
    }
}
