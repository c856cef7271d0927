//! A session: what a connection's commands share, and what other sessions may know of it.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use super::{
    monitor,
    shared::{Shared, WorkerStats},
};
use crate::{
    cache::{Cache, local::LocalCache, release::Release},
    config::Settings,
    protocol::Resp,
};

/// What CLIENT REPLY asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Replies {
    /// Every command is answered.
    #[default]
    On,
    /// None is.
    Off,
    /// The next one is not (CLIENT REPLY SKIP was the last command).
    SkipNext,
    /// This one is not.
    Skip,
}

/// What a command asks of its connection once it has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum After {
    /// To go on.
    #[default]
    Nothing,
    /// To send what is there, and close.
    Close,
    /// To wait while clients are paused, then to run the same command (it has not run).
    Pause,
    /// To show every command from now on (MONITOR).
    Monitor,
}

/// A connection's side of the commands; it lives and dies on one worker.
pub struct Session {
    /// What all sessions share.
    pub shared: Arc<Shared>,
    /// What other sessions see of this one.
    pub client: Arc<Client>,
    /// The worker's counters.
    pub stats: Arc<WorkerStats>,
    /// The settings in force when this batch began.
    pub settings: Arc<Settings>,
    /// The version of the protocol that it speaks.
    pub resp: Resp,
    /// The database.
    pub db: usize,
    /// Whether it may do more than authenticate.
    pub authenticated: bool,
    /// Whether its commands are answered.
    pub replies: Replies,
    /// Whether its hits leave entries as warm or cold as they are.
    pub no_touch: bool,
    /// Whether every command is timed by itself (the slow log's threshold is low).
    pub times_each: bool,
    /// Whether it is kept how long commands take.
    pub tracks: bool,
    /// The time of the batch in unix milliseconds.
    pub now: u64,
    /// What the connection has to do after the command.
    pub after: After,
    /// Where the commands of all others arrive, from MONITOR on.
    pub monitor: Option<monitor::Lines>,
    /// The worker's own cache.
    pub local: Option<Rc<RefCell<LocalCache>>>,
    /// What the reply of the last command waits for.
    pub release: Release,
}

impl Session {
    /// A session as it is when a client has connected.
    pub fn new(shared: Arc<Shared>, client: Arc<Client>, stats: Arc<WorkerStats>) -> Self {
        let settings = shared.live.get().clone();
        Self {
            authenticated: settings.requirepass.is_empty(),
            settings,
            shared,
            client,
            stats,
            resp: Resp::V2,
            db: 0,
            replies: Replies::On,
            no_touch: false,
            times_each: false,
            tracks: true,
            now: 0,
            after: After::Nothing,
            monitor: None,
            local: None,
            release: Release::default(),
        }
    }

    /// The cache.
    #[inline]
    pub fn cache(&self) -> &Cache {
        &self.shared.cache
    }

    /// Changes the database, for itself and in what others see.
    pub fn select(&mut self, db: usize) {
        self.db = db;
        self.client.db.store(db as u32, Relaxed);
    }

    /// Changes the version of the protocol, for itself and in what others see.
    pub fn set_resp(&mut self, resp: Resp) {
        self.resp = resp;
        self.client.resp3.store(resp == Resp::V3, Relaxed);
    }
}

/// What a client says of itself.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// CLIENT SETNAME.
    pub name: String,
    /// CLIENT SETINFO LIB-NAME.
    pub lib_name: String,
    /// CLIENT SETINFO LIB-VER.
    pub lib_ver: String,
}

/// Asks a connection's worker to close it.
pub type Ender = Box<dyn FnOnce() + Send>;

/// What all sessions may know of one: CLIENT LIST shows it, CLIENT KILL ends it.
pub struct Client {
    /// Its number, never used again.
    pub id: u64,
    /// The peer's address, `ip:port`, or the path of the unix socket with `:0`.
    pub addr: String,
    /// Our side's address.
    pub laddr: String,
    /// Whether it came by the unix socket.
    pub unix: bool,
    /// The socket's file descriptor.
    pub fd: i32,
    /// When it connected, unix milliseconds.
    pub created: u64,
    /// When it last sent a request, unix milliseconds.
    pub last_active: AtomicU64,
    /// The database it has selected.
    pub db: AtomicU32,
    /// Whether it speaks RESP3.
    pub resp3: AtomicBool,
    /// CLIENT NO-EVICT.
    pub no_evict: AtomicBool,
    /// CLIENT NO-TOUCH.
    pub no_touch: AtomicBool,
    /// Whether it is in MONITOR mode.
    pub monitor: AtomicBool,
    /// Whether it closes once its replies are sent.
    pub closing: AtomicBool,
    /// Whether it waits for a store or a pause, and so isn't idle.
    pub busy: AtomicBool,
    /// The index of the last command's row plus 1; 0: none yet.
    pub last_command: AtomicU16,
    /// Bytes of requests that wait to be complete.
    pub query_bytes: AtomicU64,
    /// Bytes of replies that wait to be sent.
    pub output_bytes: AtomicU64,
    /// Bytes received.
    pub received: AtomicU64,
    /// Bytes sent.
    pub sent: AtomicU64,
    /// What it says of itself.
    pub labels: Mutex<Labels>,
    /// Asks the connection's worker to close it, once.
    pub ender: Mutex<Option<Ender>>,
}

impl Client {
    /// A client that has just connected, at `now` in unix milliseconds.
    pub fn new(id: u64, addr: String, laddr: String, unix: bool, fd: i32, now: u64) -> Self {
        Self {
            id,
            addr,
            laddr,
            unix,
            fd,
            created: now,
            last_active: now.into(),
            db: 0.into(),
            resp3: false.into(),
            no_evict: false.into(),
            no_touch: false.into(),
            monitor: false.into(),
            closing: false.into(),
            busy: false.into(),
            last_command: 0.into(),
            query_bytes: 0.into(),
            output_bytes: 0.into(),
            received: 0.into(),
            sent: 0.into(),
            labels: Mutex::default(),
            ender: Mutex::default(),
        }
    }

    /// Closes the connection, from any thread.
    pub fn kill(&self) {
        let mut ender = self.ender.lock();
        self.closing.store(true, Relaxed);
        if let Some(end) = ender.take() {
            end();
        }
    }
}
