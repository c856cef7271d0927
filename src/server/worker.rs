//! A worker: a thread with a poll of its own, on which its connections live.
//!
//! Each round of its loop takes what the poll tells, reads, carries out and answers it in one
//! [turn](super::turn), and sleeps when there is no more. What has to wait (for a store, for a paused
//! server, for a socket that takes no more) waits in a task beside the loop: the connection leaves its
//! seat for the task, and comes back when it may go on. So a request that has all it needs in memory
//! never meets a future, and no request meets another thread.
//!
//! Timers and stores belong to the background runtime, whose wake-ups ring the worker's [`Alarm`].

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{self, Receiver, Sender},
    },
    task::{Context, Waker},
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use mio::{Events, Poll, Registry, Token, event::Event};
use slab::Slab;
use tokio::{
    runtime::Handle,
    task::{AbortHandle, LocalSet, spawn_local},
    time::MissedTickBehavior,
};

use super::{
    alarm::Alarm,
    connection::{Connection, Step},
    cycles::Cycles,
    outbox::Channel,
    stream::Stream,
    turn::{Part, Turn},
};
use crate::{
    cache::{charge::Charge, local::LocalCache, release::Release},
    command::{
        Session, TIDY_EVERY, monitor,
        session::Client,
        shared::{Shared, WorkerStats},
    },
    error::{ClientError, Error},
    protocol::Output,
};

/// Entries that one look at a stripe removes at most while it holds the lock.
const TIDY_AT_ONCE: usize = 32;
/// How long one wake may spend on them before others have their turn.
const TIDY_BUDGET: Duration = Duration::from_millis(2);
/// How often idle clients, and those that don't read, are looked for.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Events that one look at the poll takes at most.
const EVENTS: usize = 256;
/// The alarm's token; connections have those of their seats.
const ALARM: Token = Token(usize::MAX);

/// What a worker is told.
pub(super) enum Message {
    /// A new connection.
    Connection(OwnedFd, Arc<Client>),
    /// The client with this number, if it still has this seat, is to be disconnected.
    Close(usize, u64),
    /// To let every connection answer what has arrived, and end within this time.
    Drain(Duration),
}

/// Where a worker is told something, from any thread.
#[derive(Clone)]
pub(super) struct Post {
    inbox: Sender<Message>,
    alarm: Arc<Alarm>,
}

impl Post {
    /// Tells the worker; a worker that has ended hears nothing.
    pub(super) fn send(&self, message: Message) {
        if self.inbox.send(message).is_ok() {
            self.alarm.ring();
        }
    }
}

/// A worker's handle.
pub(super) struct Worker {
    pub(super) post: Post,
    thread: thread::JoinHandle<()>,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start(
        index: usize,
        shared: Arc<Shared>,
        stats: Arc<WorkerStats>,
        runtime: Handle,
    ) -> Result<Self, Error> {
        let poll = Poll::new()?;
        let alarm = Alarm::new(poll.registry(), ALARM)?;
        let (sender, inbox) = mpsc::channel();
        let post = Post { inbox: sender, alarm };
        let registry = poll.registry().try_clone()?;
        let own_post = post.clone();
        let thread =
            thread::Builder::new().name(format!("larder-worker-{index}")).spawn(move || {
                let _runtime = runtime.enter();
                let _alive = shared.cache.vitals().guard(format!("worker {index}"));
                let cache = Rc::new(RefCell::new(shared.cache.local(shared.local_limit())));
                let local = Local {
                    index,
                    cache,
                    shared,
                    stats,
                    registry,
                    post: own_post,
                    seats: RefCell::default(),
                    ready: RefCell::default(),
                    draining: Cell::new(false),
                };
                Rc::new(local).run(poll, &inbox);
            })?;
        Ok(Self { post, thread })
    }

    /// Waits for the thread to end, but no longer than this; says whether it has ended.
    pub(super) fn join(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.thread.is_finished()
    }
}

impl Drop for Worker {
    /// Ends the thread, if it hasn't ended.
    fn drop(&mut self) {
        self.post.send(Message::Drain(Duration::ZERO));
    }
}

/// A connection's place at its worker.
struct Seat {
    channel: Rc<Channel>,
    client: Arc<Client>,
    /// Not here during its turn, nor while a task waits for it.
    connection: Option<Box<Connection>>,
    /// The task that has it.
    task: Option<AbortHandle>,
    /// Whether it is among the ready ones.
    is_ready: bool,
    /// Whether the client will send nothing more: reading tells when all has been read.
    ended: bool,
    /// Whether it has sent urgent data, so that a short read doesn't mean that all was read.
    urgent: bool,
    /// Whether it waits for a pause to end.
    paused: bool,
}

/// What a worker's loop and its tasks share; it never leaves the thread.
struct Local {
    index: usize,
    shared: Arc<Shared>,
    stats: Arc<WorkerStats>,
    registry: Registry,
    post: Post,
    seats: RefCell<Slab<Seat>>,
    /// Seats whose connections have something to read or to carry out.
    ready: RefCell<VecDeque<usize>>,
    /// Whether what has arrived is the last that is read.
    draining: Cell<bool>,
    /// The hottest keys, without a lock.
    cache: Rc<RefCell<LocalCache>>,
}

impl Local {
    fn run(self: &Rc<Self>, mut poll: Poll, inbox: &Receiver<Message>) {
        let mut tasks = LocalSet::new();
        let _tasks = tasks.enter();
        spawn_local(self.clone().tidy_for_ever());
        spawn_local(self.clone().watch_for_ever());
        let alarm = self.post.alarm.clone();
        let waker = Waker::from(alarm.clone());
        let mut context = Context::from_waker(&waker);
        let (mut turn, mut cycles) = (Turn::default(), Cycles::default());
        let mut events = Events::with_capacity(EVENTS);
        let mut drained_by: Option<Instant> = None;
        loop {
            if alarm.has_rung() {
                let drain = self.read_inbox(inbox).map(|limit| Instant::now() + limit);
                drained_by = drain.or(drained_by);
                // The ticks never end, so neither does the set.
                let _ = Pin::new(&mut tasks).poll(&mut context);
            }
            if drained_by.is_some_and(|deadline| self.is_drained(deadline)) {
                return;
            }
            let timeout = if self.ready.borrow().is_empty() && alarm.set() {
                drained_by.map(|deadline| deadline.saturating_duration_since(Instant::now()))
            } else {
                Some(Duration::ZERO)
            };
            cycles.end(&self.stats);
            let polled = poll.poll(&mut events, timeout);
            cycles.begin(&self.stats);
            alarm.unset();
            if let Err(why) = polled
                && why.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!("worker {} can't poll: {why}", self.index);
                return;
            }
            events.iter().for_each(|event| self.note(event));
            self.take_turn(&mut turn);
        }
    }

    /// Does what it is told; returns how long a drain may take, if it is told to.
    fn read_inbox(self: &Rc<Self>, inbox: &Receiver<Message>) -> Option<Duration> {
        let mut drain = None;
        for message in inbox.try_iter() {
            match message {
                Message::Connection(socket, client) => self.open(socket, client),
                Message::Close(key, id) => self.close_client(key, id),
                Message::Drain(limit) => {
                    self.draining.set(true);
                    let mut seats = self.seats.borrow_mut();
                    seats.iter_mut().for_each(|(key, seat)| self.make_ready(key, seat));
                    drain = Some(limit);
                }
            }
        }
        drain
    }

    /// Whether every connection has answered what had arrived, or the time for it is over.
    fn is_drained(&self, deadline: Instant) -> bool {
        let left = self.seats.borrow().len();
        if left != 0 && Instant::now() >= deadline {
            tracing::warn!("{left} clients did not take their replies in time");
            return true;
        }
        left == 0
    }

    /// Gives a connection a seat.
    fn open(self: &Rc<Self>, socket: OwnedFd, client: Arc<Client>) {
        let stream = Stream::new(socket);
        let mut seats = self.seats.borrow_mut();
        let seat = seats.vacant_entry();
        let key = seat.key();
        if let Err(why) = stream.register(&self.registry, Token(key)) {
            tracing::warn!("client {}: {why}", client.addr);
            return self.forget(&client);
        }
        self.stats.connections.add(1);
        let charge = Charge::new(self.shared.cache.clone());
        let channel = Channel::new(stream, client.clone(), self.stats.clone(), charge);
        let mut session = Session::new(self.shared.clone(), client.clone(), self.stats.clone());
        session.local = Some(self.cache.clone());
        let connection = Box::new(Connection::new(session, channel.clone()));
        seat.insert(Seat {
            channel,
            client: client.clone(),
            connection: Some(connection),
            task: None,
            is_ready: false,
            ended: false,
            urgent: false,
            paused: false,
        });
        if self.draining.get() {
            self.make_ready(key, &mut seats[key]);
        }
        let (post, id) = (self.post.clone(), client.id);
        *client.ender.lock() = Some(Box::new(move || post.send(Message::Close(key, id))));
        // It may have been killed before it was here.
        if client.closing.load(Relaxed) {
            client.kill();
        }
    }

    /// Notes what the poll tells of a connection.
    #[inline]
    fn note(&self, event: &Event) {
        let mut seats = self.seats.borrow_mut();
        let Token(key) = event.token();
        // An event may be older than a seat; it does no harm to look.
        let Some(seat) = seats.get_mut(key) else { return };
        if event.is_writable() && seat.channel.is_pending() {
            seat.channel.send_pending();
            let now = self.shared.cache.clock().now();
            seat.client.last_active.store(now, Relaxed);
        }
        seat.ended |= event.is_read_closed() || event.is_error();
        seat.urgent |= event.is_priority();
        if event.is_readable() || seat.ended {
            self.make_ready(key, seat);
        }
        // Who leaves during a pause has changed their mind, as in Redis.
        if seat.ended && seat.paused {
            drop(seats);
            self.close(key);
        }
    }

    #[inline]
    fn make_ready(&self, key: usize, seat: &mut Seat) {
        if !seat.is_ready && seat.connection.is_some() {
            seat.is_ready = true;
            self.ready.borrow_mut().push_back(key);
        }
    }

    /// Serves the connections that are ready now, or as many as fit one turn.
    #[inline]
    fn take_turn(self: &Rc<Self>, turn: &mut Turn) {
        let count = self.ready.borrow().len();
        if count == 0 {
            return;
        }
        let now = self.shared.cache.clock().now();
        for _ in 0..count {
            if turn.is_full() {
                break;
            }
            let Some(key) = self.ready.borrow_mut().pop_front() else { break };
            if let Some(connection) = self.leave_seat(key) {
                turn.gather(key, connection, now);
            }
        }
        turn.carry_out();
        let (mut held, release): (Vec<Part>, _) = (Vec::new(), Release::default());
        for part in turn.finish() {
            match &part.connection.held {
                Some(waiting) => {
                    release.take_over(waiting.release());
                    held.push(part);
                }
                None => self.go_on(part),
            }
        }
        if held.is_empty() {
            return;
        }
        if self.shared.cache.is_released(&release) {
            return self.let_go(held, &Ok(()));
        }
        let local = self.clone();
        spawn_local(async move {
            let released = local.shared.cache.released(&release).await;
            // The poll may have told of them meanwhile.
            let rest = held.iter_mut().filter(|part| matches!(part.step, Step::Rest));
            rest.for_each(|part| part.step = Step::Again);
            local.let_go(held, &released);
        });
    }

    /// Sends the replies of a turn that waited for the journal, all when the last of them may be sent.
    fn let_go(self: &Rc<Self>, held: Vec<Part>, released: &Result<(), ClientError>) {
        for mut part in held {
            let Some(waiting) = part.connection.held.take() else { continue };
            // It may have been closed meanwhile, and its seat be another's.
            let id = part.connection.session.client.id;
            if self.seats.borrow().get(part.key).is_none_or(|seat| seat.client.id != id) {
                continue;
            }
            part.connection.channel.send(waiting.replies(released));
            self.go_on(part);
        }
    }

    #[inline]
    fn leave_seat(&self, key: usize) -> Option<Box<Connection>> {
        let mut seats = self.seats.borrow_mut();
        let seat = seats.get_mut(key)?;
        seat.is_ready = false;
        let mut connection = seat.connection.take();
        if self.draining.get() {
            connection.iter_mut().for_each(|connection| connection.read_no_more());
        }
        connection
    }

    /// Gives a connection its seat back, at once or when it may go on.
    #[inline]
    fn go_on(self: &Rc<Self>, part: Part) {
        let Part { key, mut connection, step, .. } = part;
        if let Some(lines) = connection.session.monitor.take() {
            let client = connection.session.client.clone();
            spawn_local(show_lines(connection.channel.clone(), client, lines));
        }
        match step {
            Step::Rest => self.take_seat(key, connection, false),
            Step::Again => self.take_seat(key, connection, true),
            Step::Drop => self.close(key),
            Step::Close if !connection.channel.is_pending() => self.close(key),
            step => {
                let local = self.clone();
                let paused = matches!(step, Step::Pause);
                let task = spawn_local(async move {
                    // A command with a defect ends its own connection and no other.
                    let waited = AssertUnwindSafe(connection.wait(step)).catch_unwind().await;
                    if waited.unwrap_or(false) {
                        // The poll may have told of it meanwhile.
                        local.take_seat(key, connection, true);
                    } else {
                        local.close(key);
                    }
                });
                if let Some(seat) = self.seats.borrow_mut().get_mut(key) {
                    seat.task = Some(task.abort_handle());
                    seat.paused = paused;
                }
            }
        }
    }

    #[inline]
    fn take_seat(&self, key: usize, connection: Box<Connection>, is_ready: bool) {
        let mut seats = self.seats.borrow_mut();
        let Some(seat) = seats.get_mut(key) else { return };
        let may_have_more = (seat.ended || seat.urgent) && !connection.is_dry();
        seat.connection = Some(connection);
        seat.task = None;
        seat.paused = false;
        if is_ready || may_have_more {
            self.make_ready(key, seat);
        }
    }

    /// Ends a connection, whatever it is doing.
    fn close(&self, key: usize) {
        let Some(seat) = self.seats.borrow_mut().try_remove(key) else { return };
        seat.channel.abandon();
        if let Some(task) = seat.task {
            task.abort();
        }
        self.forget(&seat.client);
    }

    fn close_client(&self, key: usize, id: u64) {
        if self.seats.borrow().get(key).is_some_and(|seat| seat.client.id == id) {
            self.close(key);
        }
    }

    /// Takes a client off the lists.
    fn forget(&self, client: &Client) {
        self.stats.clients.fetch_sub(1, Relaxed);
        self.shared.clients.remove(&client.id);
        if client.monitor.load(Relaxed) {
            monitor::forget(&self.shared, client.id);
        }
    }

    async fn tidy_for_ever(self: Rc<Self>) {
        let mut tick = tokio::time::interval(TIDY_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.tidy_own();
            if self.index == 0 {
                self.shared.note_excess();
            }
            self.tidy().await;
        }
    }

    /// Lets its own cache go of dead entries, and tells others of it.
    fn tidy_own(&self) {
        let mut cache = self.cache.borrow_mut();
        cache.set_limit(self.shared.local_limit());
        cache.tidy();
        let (entries, bytes) = cache.len();
        self.stats.local_entries.store(entries as u64, Relaxed);
        self.stats.local_bytes.store(bytes as u64, Relaxed);
    }

    /// Removes expired entries of this worker's share of the stripes, and what is above the limit or a quota.
    async fn tidy(&self) {
        let cache = &self.shared.cache;
        let memory = cache.memory();
        let started = Instant::now();
        let stripes = (self.index..memory.stripes()).step_by(self.shared.workers.len());
        for stripe in stripes.filter(|_| self.shared.expires_actively()) {
            let now = cache.clock().now();
            while self.expire(stripe, now) {
                tokio::task::yield_now().await;
                if started.elapsed() > TIDY_BUDGET * 10 {
                    self.stats.expire_cut_short.add(1);
                    return;
                }
            }
            if started.elapsed() > TIDY_BUDGET {
                tokio::task::yield_now().await;
            }
        }
        while memory.trim(TIDY_AT_ONCE, cache.clock().now()) {
            tokio::task::yield_now().await;
        }
        memory.keep_quotas(cache.clock().now());
    }

    /// Removes some expired entries of a stripe; says whether there may be more.
    fn expire(&self, stripe: usize, now: u64) -> bool {
        let started = Instant::now();
        let count = self.shared.cache.memory().expire(stripe, TIDY_AT_ONCE, now);
        self.stats.expire_nanos.add(started.elapsed().as_nanos() as u64);
        count == TIDY_AT_ONCE
    }

    async fn watch_for_ever(self: Rc<Self>) {
        let mut tick = tokio::time::interval(WATCH_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.watch();
        }
    }

    /// Closes the clients that have been idle for longer than `timeout`, or leave more of their replies
    /// unread than they may.
    fn watch(&self) {
        let settings = self.shared.live.get().clone();
        let timeout = settings.timeout.as_millis() as u64;
        let limit = &settings.client_output_buffer_limit.normal;
        let now = self.shared.cache.clock().now();
        for (_, seat) in self.seats.borrow().iter() {
            let client = &seat.client;
            let idle = now.saturating_sub(client.last_active.load(Relaxed));
            let waits = client.busy.load(Relaxed) || client.monitor.load(Relaxed);
            if timeout != 0 && idle > timeout && !waits {
                client.kill();
            } else if seat.channel.is_over(limit, now) {
                let addr = &client.addr;
                tracing::warn!("client {addr}: its replies are over client-output-buffer-limit");
                self.stats.output_limit_closed.add(1);
                client.kill();
            }
        }
    }
}

/// Sends a monitor the lines that it is shown, until it goes or leaves.
async fn show_lines(channel: Rc<Channel>, client: Arc<Client>, mut lines: monitor::Lines) {
    while let Some(text) = lines.next().await
        && client.monitor.load(Relaxed)
    {
        let mut out = Output::default();
        out.extend(&text);
        channel.send(out);
        channel.drained().await;
    }
}
