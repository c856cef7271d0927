//! The way of replies to their sockets: what several connections of a worker have to say in one turn is
//! sent together at its end.
//!
//! Sending wakes the peer; a peer that is woken once and then finds replies waiting costs both sides
//! less than one that is woken for each (the same reason for which Redis sends before it sleeps). What
//! a socket doesn't take waits in its [`Channel`], and nothing more is read from it meanwhile.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::sync::Notify;

use super::stream::Stream;
use crate::{
    cache::charge::Charge,
    command::{session::Client, shared::WorkerStats},
    config::OutputLimit,
    protocol::Output,
};

/// Bytes of replies that are sent without waiting for the turn's end.
const AT_ONCE: usize = 64 << 10;
/// Pieces that one write takes at most.
const PIECES: usize = 64;
/// Room that a large batch has grown is given back down to this.
const KEEP: usize = 256 << 10;

/// A socket, with what it did not take.
pub(super) struct Channel {
    pub(super) stream: Stream,
    client: Arc<Client>,
    stats: Arc<WorkerStats>,
    charge: Charge,
    pending: RefCell<Output>,
    /// Bytes of `pending` that were sent since.
    sent: Cell<usize>,
    /// Since when more waits than the soft limit allows, unix milliseconds; 0: it doesn't.
    soft_since: Cell<u64>,
    drained: Notify,
    broken: Cell<bool>,
}

impl Channel {
    /// A channel with nothing to send.
    pub(super) fn new(
        stream: Stream,
        client: Arc<Client>,
        stats: Arc<WorkerStats>,
        charge: Charge,
    ) -> Rc<Self> {
        Rc::new(Self {
            stream,
            client,
            stats,
            charge,
            pending: RefCell::default(),
            sent: Cell::new(0),
            soft_since: Cell::new(0),
            drained: Notify::new(),
            broken: Cell::new(false),
        })
    }

    /// Whether the socket has not taken all yet.
    #[inline]
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.borrow().is_empty()
    }

    /// Sends a whole output.
    pub(super) fn send(&self, mut out: Output) {
        let len = out.len();
        self.send_part(&mut out, 0, len, true);
    }

    /// Sends the bytes of `out` from `start` to `end`; `last` if nothing follows them there.
    #[inline]
    fn send_part(&self, out: &mut Output, start: usize, end: usize, last: bool) {
        let waits = self.is_pending();
        let from = if waits { start } else { self.write(out, start, end) };
        if from == end || self.broken.get() {
            return;
        }
        let rest = if last {
            out.take_rest(from)
        } else {
            let mut rest = Output::default();
            out.copy(from..end, &mut rest);
            rest
        };
        self.pending.borrow_mut().append(rest);
        self.note_pending();
    }

    /// Writes the bytes from `start` to `end`, as far as the socket takes them: says how far. Less than
    /// all means that the poll will tell when it takes more.
    #[inline]
    fn write(&self, out: &Output, start: usize, end: usize) -> usize {
        let mut from = start;
        while from < end && !self.broken.get() {
            match self.write_once(out, from, end) {
                0 => break,
                sent => from += sent,
            }
        }
        let sent = (from - start) as u64;
        self.stats.sent.add(sent);
        self.client.sent.store(self.client.sent.load(Relaxed) + sent, Relaxed);
        from
    }

    #[inline]
    fn write_once(&self, out: &Output, start: usize, end: usize) -> usize {
        let result = match out.plain(start..end) {
            Some(bytes) => self.stream.write(bytes),
            None => self.write_pieces(out, start, end),
        };
        match result {
            Ok(sent) => {
                self.stats.writes.add(1);
                sent
            }
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                // The reading side learns of it by itself.
                self.broken.set(true);
                0
            }
        }
    }

    fn write_pieces(&self, out: &Output, start: usize, end: usize) -> io::Result<usize> {
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let (mut count, mut left) = (0, end - start);
        for (piece, chunk) in pieces.iter_mut().zip(out.chunks(start)) {
            let chunk = &chunk[..chunk.len().min(left)];
            left -= chunk.len();
            *piece = IoSlice::new(chunk);
            count += 1;
            if left == 0 {
                break;
            }
        }
        self.stream.write_pieces(&pieces[..count])
    }

    /// Sends more of what is pending: the socket takes some again, or is broken.
    pub(super) fn send_pending(&self) {
        let mut pending = self.pending.borrow_mut();
        let end = pending.len();
        let sent = self.write(&pending, self.sent.get(), end);
        let all = sent == end || self.broken.get();
        self.sent.set(if all { 0 } else { sent });
        if all {
            *pending = Output::default();
        } else if sent > end / 2 {
            pending.discard(self.sent.take());
        }
        drop(pending);
        self.note_pending();
        if all {
            self.drained.notify_waiters();
        }
    }

    fn note_pending(&self) {
        let pending = self.pending.borrow();
        // Values by reference too: they may have left the cache, and live on here alone.
        self.charge.set(pending.len());
        self.client.output_bytes.store((pending.len() - self.sent.get()) as u64, Relaxed);
    }

    /// Whether more waits than a limit allows, or has for longer than the soft one does.
    pub(super) fn is_over(&self, limit: &OutputLimit, now: u64) -> bool {
        let waits = self.client.output_bytes.load(Relaxed);
        if limit.soft == 0 || waits <= limit.soft {
            self.soft_since.set(0);
            return false;
        }
        if self.soft_since.get() == 0 {
            self.soft_since.set(now);
        }
        now.saturating_sub(self.soft_since.get()) > limit.soft_time.as_millis() as u64
    }

    /// Gives up what the socket has not taken: the connection is over.
    pub(super) fn abandon(&self) {
        if self.is_pending() {
            self.stream.end();
            self.broken.set(true);
            self.send_pending();
        }
    }

    /// Waits until nothing is pending.
    pub(super) async fn drained(&self) {
        while self.is_pending() {
            self.drained.notified().await;
        }
    }
}

/// The replies of one turn of a worker.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) out: Output,
    parts: Vec<(Rc<Channel>, usize)>,
}

impl Outbox {
    /// Notes that what was appended to `out` since the last part is for this channel. It is sent at the
    /// turn's end; at once if it is large. Only the last part may hold references to values.
    #[inline]
    pub(super) fn post(&mut self, channel: &Rc<Channel>, has_references: bool) {
        let end = self.out.len();
        self.parts.push((channel.clone(), end));
        if has_references || end > AT_ONCE {
            self.send();
        }
    }

    /// Sends everything.
    pub(super) fn send(&mut self) {
        let (mut start, count) = (0, self.parts.len());
        for (index, (channel, end)) in self.parts.drain(..).enumerate() {
            channel.send_part(&mut self.out, start, end, index + 1 == count);
            start = end;
        }
        self.out.clear();
        self.out.shrink_to(KEEP);
    }
}
