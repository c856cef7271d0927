//! A connection: what the socket has is read, all complete requests are carried out, and their replies
//! leave in one write.
//!
//! Reading, scanning and running happen in one go in the worker's scratch, which all its connections
//! share; a connection keeps only the tail of a partial request, and its channel the replies that the
//! socket did not take. While there are such replies nothing more is read, so a client that doesn't read
//! costs at most one batch, and is closed when that is over its limit.

use std::{
    future::poll_fn,
    io, mem,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use super::{
    outbox::Channel,
    stream::Source,
    worker::{Local, Registration},
};
use crate::{
    command::{self, Args, Next, OwnedArgs, Session, session::After, table::Entry},
    protocol::{Batch, Limits, Output, Reply, Scanner},
};

/// Bytes that one read takes at most.
const READ: usize = 64 << 10;
/// A tail grows by at least so much, and at most by what it holds already.
const TAIL_STEP: usize = 16 << 10;
/// One batch of fast commands in so many is timed.
const SAMPLE_BATCHES: u32 = 16;
/// Spans of a large batch that are kept for the next.
const KEEP_SPANS: usize = 16 << 10;

/// What a worker's connections work in, one at a time.
pub(super) struct Scratch {
    input: Box<[u8]>,
    batch: Batch,
    found: Vec<Option<&'static Entry>>,
    batches: u32,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { input: vec![0; READ].into(), batch: Batch::default(), found: Vec::new(), batches: 0 }
    }
}

/// What is to be done when the scratch has been left.
enum Step {
    /// Everything is answered: read on.
    Read,
    /// More complete requests are waiting, after others had their turn.
    Again,
    /// This command goes below.
    Below(OwnedArgs, &'static Entry),
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
struct Connection {
    local: Rc<Local>,
    session: Session,
    source: Source,
    channel: Rc<Channel>,
    scanner: Scanner,
    /// The bytes of requests that are not complete or not yet carried out.
    tail: Vec<u8>,
    /// How much the tail needs to grow before it is worth scanning again.
    need: usize,
    settings_version: u64,
}

/// Serves a connection until it ends.
pub(super) async fn serve(
    local: Rc<Local>,
    session: Session,
    source: Source,
    channel: Rc<Channel>,
    registration: Registration,
) {
    let settings_version = local.shared.live.version();
    let mut connection = Connection {
        local,
        session,
        source,
        channel,
        scanner: Scanner::default(),
        tail: Vec::new(),
        need: 0,
        settings_version,
    };
    connection.refresh_settings(0);
    let ended = connection.run().await;
    if let Err(why) = ended
        && !matches!(why.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    {
        tracing::debug!("client {}: {why}", connection.session.client.addr);
    }
    drop(registration);
}

impl Connection {
    async fn run(&mut self) -> io::Result<()> {
        let mut again = false;
        loop {
            let step = match &mut self.session.monitor {
                None => poll_fn(|cx| self.poll_step(cx, again)).await?,
                Some(_) => self.watch(again).await?,
            };
            again = false;
            match step {
                Step::Read => {}
                Step::Again => {
                    again = true;
                    tokio::task::yield_now().await;
                }
                Step::Blocked => {
                    self.channel.drained().await;
                    again = !self.tail.is_empty();
                }
                Step::Below(args, entry) => {
                    self.go_below(args, entry).await;
                    again = true;
                }
                Step::Pause => {
                    self.wait_for_pause().await;
                    again = true;
                }
                Step::Close => {
                    self.local.outbox.flush();
                    self.channel.drained().await;
                    return Ok(());
                }
                Step::Drop => return Ok(()),
            }
        }
    }

    /// Reads, unless there are requests left over (`again`), and carries out what is complete.
    fn poll_step(&mut self, cx: &mut Context<'_>, again: bool) -> Poll<io::Result<Step>> {
        if self.channel.pending() != 0 {
            return Poll::Ready(Ok(Step::Blocked));
        }
        let local = self.local.clone();
        let scratch = &mut *local.scratch.borrow_mut();
        if self.tail.is_empty() {
            if again {
                return Poll::Ready(Ok(Step::Read));
            }
            let count = ready!(self.source.poll_read(cx, &mut scratch.input))?;
            let mut input = mem::take(&mut scratch.input);
            let ended = self.received(count, &mut input[..count], scratch);
            if ended.1 < count {
                self.keep(&input[ended.1..count]);
            }
            scratch.input = input;
            return Poll::Ready(Ok(self.check_tail(ended.0)));
        }
        let mut tail = mem::take(&mut self.tail);
        let mut count = 0;
        if !again {
            let grow = self.need.clamp(TAIL_STEP, tail.len().max(TAIL_STEP));
            tail.reserve(grow);
            let polled = self.source.poll_append(cx, &mut tail);
            match polled {
                Poll::Ready(Ok(read)) => count = read,
                other => {
                    self.tail = tail;
                    return other.map(|result| result.map(|_| Step::Read));
                }
            }
        }
        if !again && count == 0 {
            return Poll::Ready(Ok(Step::Close));
        }
        let (step, consumed) = self.received(count, &mut tail, scratch);
        if consumed == 0 {
            // Nothing is complete yet: copying it at each read would take quadratic time.
            self.tail = tail;
        } else if consumed < tail.len() {
            self.keep(&tail[consumed..]);
        }
        Poll::Ready(Ok(self.check_tail(step)))
    }

    /// Carries out the complete requests of a buffer, of which `count` bytes are new; returns how much
    /// of it is done with.
    fn received(&mut self, count: usize, buf: &mut [u8], scratch: &mut Scratch) -> (Step, usize) {
        if buf.is_empty() {
            return (Step::Close, 0);
        }
        self.begin_batch(count as u64);
        scratch.batches = scratch.batches.wrapping_add(1);
        let started = scratch.batches.is_multiple_of(SAMPLE_BATCHES).then(Instant::now);
        let commands = self.session.stats.commands.get();
        let (step, consumed) = self.reply(buf, scratch);
        if let Some(started) = started {
            let commands = self.session.stats.commands.get().wrapping_sub(commands);
            command::note_batch(&self.session, commands, started.elapsed().as_nanos() as u64);
        }
        scratch.batch.shrink_to(KEEP_SPANS);
        (step, consumed)
    }

    /// Notes how much is kept, and ends a connection that keeps too much.
    fn check_tail(&self, step: Step) -> Step {
        let client = &self.session.client;
        client.query_bytes.store(self.tail.len() as u64, Relaxed);
        if self.tail.len() as u64 <= self.session.settings.client_query_buffer_limit {
            return step;
        }
        tracing::warn!("client {}: over the query buffer limit", client.addr);
        Step::Close
    }

    /// Carries out what a buffer holds, and posts the replies.
    fn reply(&mut self, buf: &mut [u8], scratch: &mut Scratch) -> (Step, usize) {
        let local = self.local.clone();
        let mut out = local.outbox.out.borrow_mut();
        let mark = out.mark();
        let before = out.len();
        let ended = self.carry_out(buf, scratch, &mut out);
        let (replied, has_references) = (out.len() != before, out.has_splices_behind(mark));
        drop(out);
        if replied {
            local.outbox.post(&self.channel, has_references);
        }
        ended
    }

    fn keep(&mut self, rest: &[u8]) {
        self.tail = Vec::with_capacity(rest.len());
        self.tail.extend_from_slice(rest);
    }

    /// What is read once for a batch: the time, and the settings if they have changed.
    fn begin_batch(&mut self, received: u64) {
        let version = self.local.shared.live.version();
        if version != self.settings_version {
            self.refresh_settings(version);
        }
        let session = &mut self.session;
        session.now = self.local.shared.cache.clock().now();
        session.stats.received.add(received);
        let client = &session.client;
        client.last_active.store(session.now, Relaxed);
        client.received.store(client.received.load(Relaxed) + received, Relaxed);
    }

    fn refresh_settings(&mut self, version: u64) {
        self.settings_version = version;
        self.session.refresh_settings();
    }

    /// Runs requests until the buffer has no complete one, something has to wait, or others should have
    /// their turn. Returns how much of the buffer is done with.
    fn carry_out(
        &mut self,
        buf: &mut [u8],
        scratch: &mut Scratch,
        out: &mut Output,
    ) -> (Step, usize) {
        // Before a client is known its requests are small, and each may change what the next may be.
        let limits = if self.session.authenticated {
            Limits::authenticated(self.session.settings.proto_max_bulk_len as usize)
        } else {
            Limits::anonymous()
        };
        let scanned = match self.scanner.scan(buf, &limits, &mut scratch.batch) {
            Ok(scanned) => scanned,
            Err(error) => {
                Reply::new(out, self.session.resp).protocol_error(&error);
                return (Step::Close, buf.len());
            }
        };
        self.need = scanned.need;
        let Some(stopped) = self.run_batch(buf, scratch, out) else {
            let step = if scanned.more { Step::Again } else { Step::Read };
            return (step, scanned.consumed);
        };
        // What follows is scanned again when its time comes.
        self.scanner = Scanner::default();
        self.need = 0;
        stopped
    }

    /// Runs the requests of a batch; says where and why it stopped, unless all are done.
    fn run_batch(
        &mut self,
        buf: &[u8],
        scratch: &mut Scratch,
        out: &mut Output,
    ) -> Option<(Step, usize)> {
        let Scratch { batch, found, .. } = scratch;
        command::prepare(&self.session, buf, batch, found);
        let limit = self.session.settings.client_output_buffer_limit.normal.hard as usize;
        let limit = out.len() + if limit == 0 { usize::MAX / 2 } else { limit };
        let mark = out.mark();
        let mut start = 0;
        for (request, entry) in batch.requests.iter().zip(found.iter()) {
            let args = Args::new(buf, batch.args(request));
            let end = request.end as usize;
            match command::dispatch(&mut self.session, *entry, args, out) {
                Next::Done => {}
                Next::Pause => return Some((Step::Pause, start)),
                Next::Below => return Some((Step::Below(args.to_owned(), (*entry)?), end)),
            }
            start = end;
            if out.len() > limit {
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

    #[cold]
    fn over_limit(&self) {
        let addr = &self.session.client.addr;
        tracing::warn!("client {addr}: its replies are over client-output-buffer-limit");
        self.session.stats.output_limit_closed.add(1);
    }

    async fn go_below(&mut self, args: OwnedArgs, entry: &'static Entry) {
        self.local.outbox.flush();
        self.session.client.busy.store(true, Relaxed);
        let mut out = Output::default();
        command::below(&mut self.session, entry, args.get(), &mut out).await;
        self.session.client.busy.store(false, Relaxed);
        self.channel.send(out);
    }

    /// Waits while clients are paused.
    async fn wait_for_pause(&self) {
        let shared = &self.local.shared;
        let unpaused = shared.unpaused.notified();
        tokio::pin!(unpaused);
        unpaused.as_mut().enable();
        let Some(pause) = *shared.pause.lock() else { return };
        let left = pause.until.saturating_sub(shared.cache.clock().now());
        let _ = tokio::time::timeout(Duration::from_millis(left), unpaused).await;
    }

    /// Shows every command to a client in MONITOR mode, and carries out what it sends.
    async fn watch(&mut self, again: bool) -> io::Result<Step> {
        let Some(mut lines) = self.session.monitor.take() else { return Ok(Step::Read) };
        let step = loop {
            tokio::select! {
                biased;
                line = lines.recv() => match line {
                    Some(line) => {
                        let mut out = Output::default();
                        out.extend(&line);
                        self.channel.send(out);
                        self.channel.drained().await;
                    }
                    // It was too slow, and is closed.
                    None => return Ok(Step::Close),
                },
                step = poll_fn(|cx| self.poll_step(cx, again)) => break step,
            }
        };
        // RESET ends it; then the lines' other end is gone too.
        if self.session.client.monitor.load(Relaxed) {
            self.session.monitor = Some(lines);
        }
        step
    }
}
