//! A worker: a thread with a runtime of its own, on which its connections live.
//!
//! Tasks never move to another thread. Between the connections' turns the worker removes expired
//! entries of its share of the stripes, a bounded number per wake.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use tokio::{runtime::Builder, sync::mpsc, time::MissedTickBehavior};

use super::{
    connection::{self, Scratch},
    outbox::{Channel, Outbox},
    stream::Accepted,
};
use crate::{
    command::{
        Session, monitor,
        session::Client,
        shared::{Shared, WorkerStats},
    },
    error::Error,
};

/// How often expired entries are looked for.
const EXPIRE_EVERY: Duration = Duration::from_millis(100);
/// Entries that one look at a stripe removes at most while it holds the lock.
const EXPIRE_AT_ONCE: usize = 32;
/// How long one wake may spend on expired entries.
const EXPIRE_BUDGET: Duration = Duration::from_millis(2);
/// How often idle clients are looked for.
const IDLE_EVERY: Duration = Duration::from_secs(1);

/// What a worker is told.
pub(super) enum Message {
    /// A new connection.
    Connection(Accepted, Arc<Client>),
    /// To let every connection answer what has arrived, and end within this time.
    Drain(Duration),
}

/// A worker's handle.
pub(super) struct Worker {
    pub(super) post: mpsc::UnboundedSender<Message>,
    thread: thread::JoinHandle<()>,
}

/// A connection that lives here.
type Open = (Weak<Channel>, Arc<Client>);

/// What the connections of a worker share; it never leaves the thread.
pub(super) struct Local {
    pub(super) shared: Arc<Shared>,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) scratch: RefCell<Scratch>,
    pub(super) outbox: Outbox,
    connections: RefCell<HashMap<u64, Open>>,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start(
        index: usize,
        shared: Arc<Shared>,
        stats: Arc<WorkerStats>,
    ) -> Result<Self, Error> {
        let (post, inbox) = mpsc::unbounded_channel();
        let thread =
            thread::Builder::new().name(format!("larder-worker-{index}")).spawn(move || {
                let runtime =
                    Builder::new_current_thread().enable_all().build_local(Default::default());
                match runtime {
                    Ok(runtime) => runtime.block_on(run(index, shared, stats, inbox)),
                    Err(why) => tracing::error!("worker {index} can't start: {why}"),
                }
            })?;
        Ok(Self { post, thread })
    }

    /// Waits for the thread to end, but no longer than this.
    pub(super) fn join(self, limit: Duration) {
        let deadline = Instant::now() + limit;
        drop(self.post);
        while !self.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

async fn run(
    index: usize,
    shared: Arc<Shared>,
    stats: Arc<WorkerStats>,
    mut inbox: mpsc::UnboundedReceiver<Message>,
) {
    let local = Rc::new(Local {
        shared,
        stats,
        scratch: RefCell::default(),
        outbox: Outbox::default(),
        connections: RefCell::default(),
    });
    let sender = local.clone();
    tokio::task::spawn_local(async move { sender.outbox.run().await });
    let mut expire = tokio::time::interval(EXPIRE_EVERY);
    let mut idle = tokio::time::interval(IDLE_EVERY);
    expire.set_missed_tick_behavior(MissedTickBehavior::Delay);
    idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                Some(Message::Connection(socket, client)) => local.open(socket, client),
                Some(Message::Drain(limit)) => return local.drain(limit).await,
                None => return,
            },
            _ = expire.tick() => local.expire(index).await,
            _ = idle.tick() => local.close_idle(),
        }
    }
}

impl Local {
    fn open(self: &Rc<Self>, socket: Accepted, client: Arc<Client>) {
        let registered: io::Result<_> = socket.register();
        let (source, sink) = match registered {
            Ok(halves) => halves,
            Err(why) => {
                tracing::warn!("client {}: {why}", client.addr);
                self.shared.clients.remove(&client.id);
                self.stats.clients.fetch_sub(1, Relaxed);
                return;
            }
        };
        self.stats.connections.add(1);
        let channel = Channel::new(sink, client.clone(), self.stats.clone());
        let place = (Rc::downgrade(&channel), client.clone());
        self.connections.borrow_mut().insert(client.id, place);
        let session = Session::new(self.shared.clone(), client.clone(), self.stats.clone());
        let registration = Registration { local: self.clone(), client: client.clone() };
        let task = tokio::task::spawn_local(connection::serve(
            self.clone(),
            session,
            source,
            channel,
            registration,
        ));
        *client.abort.lock() = Some(task.abort_handle());
        // It may have been killed before it was here.
        if client.closing.load(Relaxed) {
            client.kill();
        }
    }

    /// Removes expired entries of this worker's share of the stripes.
    async fn expire(&self, index: usize) {
        if !self.shared.expires_actively() {
            return;
        }
        let memory = self.shared.cache.memory();
        let started = Instant::now();
        for stripe in (index..memory.stripes()).step_by(self.shared.workers.len()) {
            let now = self.shared.cache.clock().now();
            while memory.expire(stripe, EXPIRE_AT_ONCE, now) == EXPIRE_AT_ONCE {
                tokio::task::yield_now().await;
                if started.elapsed() > EXPIRE_BUDGET * 10 {
                    return;
                }
            }
            if started.elapsed() > EXPIRE_BUDGET {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Closes the clients that have been idle for longer than `timeout`.
    fn close_idle(&self) {
        let timeout = self.shared.live.get().timeout.as_millis() as u64;
        if timeout == 0 {
            return;
        }
        let now = self.shared.cache.clock().now();
        for (_, client) in self.connections.borrow().values() {
            let idle = now.saturating_sub(client.last_active.load(Relaxed));
            if idle > timeout && !client.busy.load(Relaxed) && !client.monitor.load(Relaxed) {
                client.kill();
            }
        }
    }

    /// Ends the reading halves, and waits until every connection has answered what had arrived.
    async fn drain(&self, limit: Duration) {
        for (channel, _) in self.connections.borrow().values() {
            if let Some(channel) = channel.upgrade() {
                channel.sink.end_reading();
            }
        }
        let all_closed = async {
            while !self.connections.borrow().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(limit, all_closed).await.is_err() {
            let left = self.connections.borrow().len();
            tracing::warn!("{left} clients did not take their replies in time");
        }
    }
}

/// A connection's place among the clients; gives it up when dropped.
pub(super) struct Registration {
    local: Rc<Local>,
    client: Arc<Client>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let (id, shared) = (self.client.id, &self.local.shared);
        let place = self.local.connections.borrow_mut().remove(&id);
        if let Some(channel) = place.and_then(|(channel, _)| channel.upgrade()) {
            channel.abandon();
        }
        self.local.stats.clients.fetch_sub(1, Relaxed);
        shared.clients.remove(&id);
        if self.client.monitor.load(Relaxed) {
            monitor::forget(shared, id);
        }
    }
}
