//! A connection: its bytes, its requests, and what it waits for.
//!
//! What the socket has is read into the worker's room, and all complete requests in it are carried out
//! in one go (see [`turn`](super::turn)). A connection keeps only the tail of a partial request, and its
//! channel the replies that the socket did not take. While there are such replies nothing more is read,
//! so a client that doesn't read costs at most one batch, and is closed when that is over its limit.

use std::{io, mem, ops::Range, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{held::Held, outbox::Channel};
use crate::{
    cache::charge::Charge,
    command::{self, Args, Errand, Found, Next, Session, session::After, table::Entry},
    error::ProtocolError,
    protocol::{Batch, Limits, Output, Request, Scanned, Scanner},
};

/// A tail grows by at least so much, and at most by what it holds already.
const TAIL_STEP: usize = 16 << 10;

/// Reads of one pipeline that go below together, at most.
const RUN: usize = 64;

/// Where a connection's bytes are.
pub(super) enum Arrived {
    /// So many in the worker's room.
    InRoom(usize),
    /// In a buffer of the connection's own, behind what it had kept.
    Own(Vec<u8>),
}

/// What becomes of a connection after its part of a turn.
pub(super) enum Step {
    /// It has its seat until the poll tells of it.
    Rest,
    /// There may be more to read or to carry out, after others had their turn.
    Again,
    /// These commands go below: one, or a run of reads.
    Below(Vec<Errand>),
    /// Clients are paused; the tail begins with the command that waits.
    Pause,
    /// The socket has not taken earlier replies.
    Blocked,
    /// The end, once pending replies are sent.
    Close,
    /// The end, whatever is pending.
    Drop,
}

/// A connection.
pub(super) struct Connection {
    pub(super) session: Session,
    pub(super) channel: Rc<Channel>,
    /// Replies of this turn that wait for the journal.
    pub(super) held: Option<Box<Held>>,
    scanner: Scanner,
    /// The bytes of requests that are not complete or not yet carried out.
    tail: Vec<u8>,
    charge: Charge,
    /// Whether the tail may hold complete requests.
    left_over: bool,
    /// How much the tail needs to grow before it is worth scanning again.
    need: usize,
    /// Bytes that are still read while the server ends: those that had arrived.
    last_bytes: Option<usize>,
    /// Whether the last read found nothing.
    is_dry: bool,
    settings_version: u64,
}

impl Connection {
    /// A connection that has just been accepted.
    pub(super) fn new(mut session: Session, channel: Rc<Channel>) -> Self {
        let charge = Charge::new(session.cache().clone());
        let settings_version = session.shared.live.version();
        session.refresh_settings();
        Self {
            session,
            channel,
            held: None,
            scanner: Scanner::default(),
            tail: Vec::new(),
            charge,
            left_over: false,
            need: 0,
            last_bytes: None,
            is_dry: false,
            settings_version,
        }
    }

    /// Reads, into the room unless there is a tail; not if requests are left over or replies pending.
    pub(super) fn read(&mut self, room: &mut [u8], now: u64) -> (Arrived, Step) {
        if self.channel.is_pending() {
            return (Arrived::InRoom(0), Step::Blocked);
        }
        // While its requests run, what they make of it is accounted for; a worker has one large buffer
        // in that state.
        self.charge.set(0);
        if mem::take(&mut self.left_over) {
            self.begin(0, now);
            return (Arrived::Own(mem::take(&mut self.tail)), Step::Again);
        }
        if self.last_bytes == Some(0) {
            return (Arrived::InRoom(0), Step::Close);
        }
        let stream = &self.channel.stream;
        let (read, asked) = if self.tail.is_empty() {
            (stream.read(room), room.len())
        } else {
            self.tail.reserve(self.need.clamp(TAIL_STEP, self.tail.len().max(TAIL_STEP)));
            let spare = self.tail.capacity() - self.tail.len();
            (stream.read_behind(&mut self.tail), spare)
        };
        let step = match read {
            Ok(0) => Step::Close,
            Ok(count) => {
                self.session.stats.reads.add(1);
                self.begin(count as u64, now);
                self.is_dry = false;
                let mut step = if count == asked { Step::Again } else { Step::Rest };
                if let Some(last) = &mut self.last_bytes {
                    *last = last.saturating_sub(count);
                    step = Step::Again;
                }
                let in_room = self.tail.is_empty();
                let own = mem::take(&mut self.tail);
                return (if in_room { Arrived::InRoom(count) } else { Arrived::Own(own) }, step);
            }
            Err(why) => {
                self.charge.set(self.tail.len());
                match why.kind() {
                    io::ErrorKind::WouldBlock if self.last_bytes.is_some() => Step::Close,
                    io::ErrorKind::WouldBlock => {
                        self.is_dry = true;
                        Step::Rest
                    }
                    io::ErrorKind::Interrupted => Step::Again,
                    _ => Step::Drop,
                }
            }
        };
        (Arrived::InRoom(0), step)
    }

    /// Has what has arrived until now be the last that is read.
    pub(super) fn read_no_more(&mut self) {
        if self.last_bytes.is_none() {
            self.last_bytes = Some(self.channel.stream.arrived());
        }
    }

    /// Whether the last read found nothing, so that the poll will tell of more.
    #[inline]
    pub(super) fn is_dry(&self) -> bool {
        self.is_dry
    }

    /// What is done once for a batch: its time, and the settings if they have changed.
    fn begin(&mut self, received: u64, now: u64) {
        let session = &mut self.session;
        let version = session.shared.live.version();
        if version != self.settings_version {
            self.settings_version = version;
            session.refresh_settings();
        }
        session.now = now;
        session.stats.received.add(received);
        let client = &session.client;
        client.last_active.store(now, Relaxed);
        client.received.store(client.received.load(Relaxed) + received, Relaxed);
    }

    /// Adds the complete requests of a buffer to the batch.
    pub(super) fn scan(
        &mut self,
        buf: &mut [u8],
        batch: &mut Batch,
    ) -> Result<Scanned, ProtocolError> {
        // Before a client is known its requests are small, and each may change what the next may be.
        let limits = if self.session.authenticated {
            Limits::authenticated(self.session.settings.proto_max_bulk_len as usize)
        } else {
            Limits::anonymous()
        };
        let scanned = self.scanner.scan(buf, &limits, batch)?;
        self.need = scanned.need;
        self.left_over = scanned.more;
        Ok(scanned)
    }

    /// Runs some of a batch's requests, which are in `buf`; says why it stopped and where in `buf`, unless
    /// all are done. What follows is scanned again when its time comes (see [`Self::scan_again`]).
    pub(super) fn run(
        &mut self,
        buf: &[u8],
        batch: &Batch,
        requests: Range<usize>,
        found: &mut [Found],
        out: &mut Output,
    ) -> Option<(Step, usize)> {
        let limit = out.len() + self.output_limit();
        out.set_limit(limit);
        let (mark, origin) = (out.mark(), out.len());
        let mut start = 0;
        let last = requests.end;
        for at in requests {
            command::load_ahead(&self.session, found, at);
            let (request, entry) = (&batch.requests[at], found[at].entry);
            let args = Args::new(buf, batch.args(request));
            let end = request.end as usize;
            let before = out.len();
            match command::dispatch(&mut self.session, entry, args, out) {
                Next::Done => {}
                Next::Pause => return Some((Step::Pause, start)),
                Next::Below => {
                    let first = Errand { found: entry?, args: args.to_owned() };
                    let rest = batch.requests.get(at + 1..last).unwrap_or_default();
                    return Some(self.go_below_with(
                        first,
                        buf,
                        batch,
                        rest,
                        &found[at + 1..],
                        end,
                    ));
                }
            }
            if !self.session.release.is_free() {
                let held = self.held.get_or_insert_default();
                held.add(&self.session.release, before - origin..out.len() - origin);
            }
            start = end;
            if before > limit || out.is_cut() {
                self.over_limit();
                out.truncate(mark);
                return Some((Step::Drop, buf.len()));
            }
            match command::take_after(&mut self.session) {
                After::Nothing => {}
                After::Close => return Some((Step::Close, buf.len())),
                After::Pause => return Some((Step::Pause, start)),
                After::Monitor => return Some((Step::Again, end)),
            }
        }
        None
    }

    /// Has what is kept scanned from its beginning.
    pub(super) fn scan_again(&mut self) {
        self.scanner = Scanner::default();
        self.need = 0;
        self.left_over = true;
    }

    /// What replies may take before one more value ends the connection.
    fn output_limit(&self) -> usize {
        match self.session.settings.client_output_buffer_limit.normal.hard as usize {
            0 => usize::MAX / 2,
            limit => limit,
        }
    }

    #[cold]
    fn over_limit(&self) {
        let addr = &self.session.client.addr;
        tracing::warn!("client {addr}: its replies are over client-output-buffer-limit");
        self.session.stats.output_limit_closed.add(1);
    }

    /// Keeps what isn't done with until more has come, or others had their turn.
    #[inline]
    pub(super) fn keep(&mut self, rest: Vec<u8>) {
        self.left_over &= !rest.is_empty();
        self.session.client.query_bytes.store(rest.len() as u64, Relaxed);
        self.charge.set(rest.len());
        self.tail = rest;
    }

    /// Whether more is kept than a client may make the server keep.
    #[inline]
    pub(super) fn keeps_too_much(&self) -> bool {
        let too_much = self.tail.len() as u64 > self.session.settings.client_query_buffer_limit;
        if too_much {
            tracing::warn!("client {}: over the query buffer limit", self.session.client.addr);
            self.session.stats.query_limit_closed.add(1);
        }
        too_much
    }

    /// Waits, away from its seat, until it may go on; `false` if it is over.
    pub(super) async fn wait(&mut self, step: Step) -> bool {
        match step {
            Step::Rest | Step::Again => {}
            Step::Below(errands) => return self.go_below(errands).await,
            Step::Pause => {
                self.session.client.busy.store(true, Relaxed);
                self.wait_for_pause().await;
                self.session.client.busy.store(false, Relaxed);
            }
            Step::Blocked => self.channel.drained().await,
            Step::Close => {
                self.channel.drained().await;
                return false;
            }
            Step::Drop => return false,
        }
        true
    }

    /// A command goes below, and with it the reads that follow it: what they need is fetched at once.
    #[cold]
    fn go_below_with(
        &self,
        first: Errand,
        buf: &[u8],
        batch: &Batch,
        rest: &[Request],
        found: &[Found],
        mut end: usize,
    ) -> (Step, usize) {
        let session = &self.session;
        let is_read = command::may_run_ahead(session, first.found, first.args.get());
        let most = if is_read { RUN - 1 } else { 0 };
        let mut errands = vec![first];
        for (request, found) in rest.iter().zip(found).take(most) {
            let args = Args::new(buf, batch.args(request));
            let is_read = |found: &&Entry| command::may_run_ahead(session, found, args);
            let Some(found) = found.entry.filter(is_read) else { break };
            errands.push(Errand { found, args: args.to_owned() });
            end = request.end as usize;
        }
        (Step::Below(errands), end)
    }

    async fn go_below(&mut self, errands: Vec<Errand>) -> bool {
        self.session.client.busy.store(true, Relaxed);
        let mut out = Output::default();
        out.set_limit(self.output_limit());
        command::below(&mut self.session, &errands, &mut out).await;
        self.session.client.busy.store(false, Relaxed);
        if out.is_cut() {
            self.over_limit();
            return false;
        }
        self.channel.send(out);
        true
    }

    /// Waits while clients are paused.
    async fn wait_for_pause(&self) {
        let shared = &self.session.shared;
        let unpaused = shared.unpaused.notified();
        tokio::pin!(unpaused);
        unpaused.as_mut().enable();
        let Some(pause) = *shared.pause.lock() else { return };
        let left = pause.until.saturating_sub(shared.cache.clock().now());
        let _ = tokio::time::timeout(Duration::from_millis(left), unpaused).await;
    }
}
