//! A worker's turn: what has arrived on its connections is read and scanned, then carried out, then
//! answered.
//!
//! First all, then all: while one request is carried out, what later ones will look at is on its way
//! from memory, whichever connection they came by. So a worker with fifty connections that send one
//! request at a time waits for memory as little as one with a single pipeline of fifty.

use std::{
    mem,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use super::{
    connection::{Arrived, Connection, Step},
    outbox::Outbox,
};
use crate::{
    command::{self, Found, session::Replies},
    error::ProtocolError,
    protocol::{Batch, Reply},
};

/// Bytes that one read takes at most.
const READ: usize = 64 << 10;
/// What a turn reads into; nothing more is read when less than one read's room is left.
const ROOM: usize = 2 * READ;
/// Requests after which nothing more is read.
const MANY: usize = 512;
/// Room of a large turn that is kept for the next, in spans and requests.
const KEEP: usize = 16 << 10;

/// What a worker works in, one turn after the other.
pub(super) struct Turn {
    room: Box<[u8]>,
    used: usize,
    /// Bytes in buffers of the connections' own.
    own: usize,
    batch: Batch,
    found: Vec<Found>,
    parts: Vec<Part>,
    outbox: Outbox,
}

/// One connection's part of a turn.
pub(super) struct Part {
    /// The connection's seat.
    pub(super) key: usize,
    /// The connection, away from its seat for the turn.
    pub(super) connection: Box<Connection>,
    /// What becomes of it.
    pub(super) step: Step,
    /// Its bytes, if it has a buffer of its own, else empty.
    own: Vec<u8>,
    /// Its bytes in the turn's room.
    place: Range<usize>,
    /// How many of them are done with.
    consumed: usize,
    /// Its requests in the batch.
    requests: Range<usize>,
    /// Why there can't be more.
    error: Option<ProtocolError>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            room: vec![0; ROOM].into(),
            used: 0,
            own: 0,
            batch: Batch::default(),
            found: Vec::new(),
            parts: Vec::new(),
            outbox: Outbox::default(),
        }
    }
}

impl Turn {
    /// Whether what was gathered should be carried out before anything more is read.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.used + READ > ROOM || self.own > ROOM || self.batch.len() >= MANY
    }

    /// Reads what has arrived on a connection, scans it, and finds its commands.
    pub(super) fn gather(&mut self, key: usize, mut connection: Box<Connection>, now: u64) {
        let (start, first) = (self.used, self.batch.len());
        let (arrived, step) = connection.read(&mut self.room[start..start + READ], now);
        let mut own = Vec::new();
        match arrived {
            Arrived::InRoom(count) => self.used += count,
            Arrived::Own(buf) => own = buf,
        }
        self.own += own.len();
        let place = start..self.used;
        let buf = if own.is_empty() { &mut self.room[place.clone()] } else { &mut own[..] };
        let (mut step, mut consumed, mut error) = (step, 0, None);
        if !buf.is_empty() {
            match connection.scan(buf, &mut self.batch) {
                Ok(scanned) => {
                    consumed = scanned.consumed;
                    step = if scanned.more { Step::Again } else { step };
                }
                Err(why) => (step, consumed, error) = (Step::Close, buf.len(), Some(why)),
            }
        }
        let requests = first..self.batch.len();
        let (session, batch) = (&connection.session, &mut self.batch);
        command::prepare(session, buf, batch, requests.clone(), &mut self.found);
        self.parts.push(Part { key, connection, step, own, place, consumed, requests, error });
    }

    /// Carries out what was gathered, and sends the replies.
    pub(super) fn carry_out(&mut self) {
        let Self { room, batch, found, parts, outbox, .. } = self;
        let tracks = parts.first().is_some_and(|part| part.connection.session.tracks);
        let started = tracks.then(Instant::now);
        if let Some(part) = parts.first() {
            command::load_first(&part.connection.session, found);
        }
        for part in parts.iter_mut() {
            part.carry_out(room, batch, found, outbox);
        }
        if let (Some(started), Some(part)) = (started, parts.first()) {
            part.connection.session.stats.turns.note(started.elapsed(), 1);
        }
        outbox.send();
    }

    /// Takes out the parts, each with what becomes of its connection; nothing is left.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = Part> {
        (self.used, self.own) = (0, 0);
        self.batch.clear();
        self.batch.shrink_to(KEEP);
        self.found.clear();
        self.found.shrink_to(KEEP);
        self.parts.drain(..)
    }
}

impl Part {
    fn carry_out(&mut self, room: &[u8], batch: &Batch, found: &mut [Found], outbox: &mut Outbox) {
        let Outbox { out, .. } = outbox;
        let (connection, mark, before) = (&mut *self.connection, out.mark(), out.len());
        let buf = if self.own.is_empty() { &room[self.place.clone()] } else { &self.own[..] };
        let requests = self.requests.clone();
        // A command with a defect ends its own connection and no other.
        let ran =
            catch_unwind(AssertUnwindSafe(|| connection.run(buf, batch, requests, found, out)));
        match ran {
            Ok(None) => {}
            Ok(Some((step, consumed))) => {
                (self.step, self.consumed) = (step, consumed);
                connection.scan_again();
            }
            Err(_) => {
                tracing::error!("client {}: a command panicked", connection.session.client.addr);
                out.truncate(mark);
                connection.held = None;
                (self.step, self.consumed) = (Step::Drop, buf.len());
            }
        }
        if let Some(error) = &self.error
            && connection.session.replies == Replies::On
        {
            Reply::new(out, connection.session.resp).protocol_error(error);
        }
        // A long tail of which nothing is complete yet is moved: copying it at each read would take
        // quadratic time. Where nothing has come, what was kept still is.
        if !buf.is_empty() {
            let is_whole = self.consumed == 0 && !self.own.is_empty();
            let rest =
                if is_whole { mem::take(&mut self.own) } else { buf[self.consumed..].to_vec() };
            connection.keep(rest);
        }
        if connection.keeps_too_much() {
            self.step = Step::Close;
        }
        if let Some(held) = &mut connection.held {
            held.out = out.split_off(mark);
        } else if out.len() != before {
            let has_references = out.has_splices_behind(mark);
            outbox.post(&connection.channel, has_references);
        }
    }
}
