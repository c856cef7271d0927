//! The way of replies to their sockets: what several connections of a worker have to say in one turn is
//! sent together at its end.
//!
//! Sending wakes the peer; a peer that is woken once and then finds replies waiting costs both sides
//! less than one that is woken for each (the same reason for which Redis sends before it sleeps). What
//! a socket doesn't take waits in its [`Channel`], and nothing more is read from it meanwhile.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::{self, IoSlice},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Poll, Waker},
};

use tokio::sync::Notify;

use super::stream::Sink;
use crate::{
    command::{session::Client, shared::WorkerStats},
    protocol::Output,
};

/// Bytes of replies that are sent without waiting for the turn's end.
const AT_ONCE: usize = 64 << 10;
/// Pieces that one write takes at most.
const PIECES: usize = 64;
/// Room that a large batch has grown is given back down to this.
const KEEP: usize = 256 << 10;

/// A socket's writing side, with what it did not take.
pub(super) struct Channel {
    pub(super) sink: Sink,
    client: Arc<Client>,
    stats: Arc<WorkerStats>,
    pending: RefCell<Output>,
    drained: Notify,
    broken: Cell<bool>,
}

impl Channel {
    /// A channel with nothing to send.
    pub(super) fn new(sink: Sink, client: Arc<Client>, stats: Arc<WorkerStats>) -> Rc<Self> {
        Rc::new(Self {
            sink,
            client,
            stats,
            pending: RefCell::default(),
            drained: Notify::new(),
            broken: Cell::new(false),
        })
    }

    /// Bytes that the socket did not take yet.
    pub(super) fn pending(&self) -> usize {
        self.pending.borrow().len()
    }

    /// Whether writing has failed.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Sends a whole output.
    pub(super) fn send(self: &Rc<Self>, mut out: Output) {
        let len = out.len();
        self.send_part(&mut out, 0, len, true);
    }

    /// Sends the bytes of `out` from `start` to `end`; `last` if nothing follows them there.
    fn send_part(self: &Rc<Self>, out: &mut Output, start: usize, end: usize, last: bool) {
        let waiting = self.pending() != 0;
        let sent = if waiting || self.is_broken() { 0 } else { self.write(out, start, end) };
        let from = start + sent;
        if from == end || self.is_broken() {
            return;
        }
        let rest = if last { out.take_rest(from) } else { copy(out, from, end) };
        self.pending.borrow_mut().append(rest);
        self.note_pending();
        if !waiting {
            tokio::task::spawn_local(self.clone().drain());
        }
    }

    /// Writes as much as the socket takes.
    fn write(&self, out: &Output, start: usize, end: usize) -> usize {
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
        let result = match &pieces[..count] {
            [] => Ok(0),
            [one] => self.sink.try_write(one),
            many => self.sink.try_write_vectored(many),
        };
        match result {
            Ok(sent) => {
                self.stats.sent.add(sent as u64);
                self.client.sent.store(self.client.sent.load(Relaxed) + sent as u64, Relaxed);
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

    /// Sends what is pending whenever the socket takes more.
    async fn drain(self: Rc<Self>) {
        let mut from = 0;
        loop {
            let writable = self.sink.writable().await;
            let pending = self.pending.borrow();
            if writable.is_ok() {
                from += self.write(&pending, from, pending.len());
            }
            if writable.is_err() || self.is_broken() || from == pending.len() {
                drop(pending);
                break;
            }
        }
        *self.pending.borrow_mut() = Output::default();
        self.note_pending();
        self.drained.notify_waiters();
    }

    fn note_pending(&self) {
        let pending = self.pending() as u64;
        self.client.output_bytes.store(pending, Relaxed);
        self.client.busy.store(pending != 0, Relaxed);
    }

    /// Gives up what the socket has not taken: the connection is over.
    pub(super) fn abandon(&self) {
        if self.pending() != 0 {
            // Wakes whoever waits for the socket to take more; it then finds it broken.
            self.broken.set(true);
            self.sink.end();
        }
    }

    /// Waits until nothing is pending.
    pub(super) async fn drained(&self) {
        while self.pending() != 0 {
            self.drained.notified().await;
        }
    }
}

fn copy(out: &Output, from: usize, end: usize) -> Output {
    let (mut rest, mut left) = (Output::default(), end - from);
    for chunk in out.chunks(from) {
        let chunk = &chunk[..chunk.len().min(left)];
        rest.extend(chunk);
        left -= chunk.len();
        if left == 0 {
            break;
        }
    }
    rest
}

/// The replies of one turn of a worker.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) out: RefCell<Output>,
    parts: RefCell<Vec<(Rc<Channel>, usize)>>,
    waker: RefCell<Option<Waker>>,
}

impl Outbox {
    /// Notes that what was appended to `out` since the last part is for this channel. It is sent at the
    /// turn's end; at once if it is large. Only the last part may hold references to values.
    pub(super) fn post(&self, channel: &Rc<Channel>, has_references: bool) {
        let end = self.out.borrow().len();
        self.parts.borrow_mut().push((channel.clone(), end));
        if has_references || end > AT_ONCE {
            self.flush();
        } else if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Sends everything.
    pub(super) fn flush(&self) {
        let (mut out, mut parts) = (self.out.borrow_mut(), self.parts.borrow_mut());
        let (mut start, count) = (0, parts.len());
        for (index, (channel, end)) in parts.drain(..).enumerate() {
            channel.send_part(&mut out, start, end, index + 1 == count);
            start = end;
        }
        out.clear();
        out.shrink_to(KEEP);
    }

    /// Sends at the end of each turn in which something was posted, for ever.
    pub(super) async fn run(&self) {
        loop {
            poll_fn(|cx| {
                if self.parts.borrow().is_empty() {
                    *self.waker.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            self.flush();
        }
    }
}
