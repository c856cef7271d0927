//! What tests of commands need: a session without a server, requests as words, replies as text.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use tokio::sync::mpsc;

use super::{
    Args, Session, dispatch, prepare,
    session::Client,
    shared::{Shared, ShutdownRequest, WorkerStats},
};
use crate::{
    cache::{
        Cache, Job, Use,
        release::Release,
        tx::{Key, Ttl},
    },
    clock::Clock,
    config::{Config, Live},
    policy::Policies,
    protocol::{Batch, Output, Request, Span},
    tier::memory::Options,
};

/// A request in a buffer of its own.
pub struct Line {
    buf: Vec<u8>,
    spans: Vec<Span>,
}

impl Line {
    /// The request with these arguments.
    pub fn new(words: &[&[u8]]) -> Self {
        let mut buf = Vec::new();
        let place = |word: &&[u8]| {
            let start = buf.len() as u32;
            buf.extend_from_slice(word);
            Span { start, len: word.len() as u32, hash: 0 }
        };
        let spans = words.iter().map(place).collect();
        Self { buf, spans }
    }

    /// Its arguments.
    pub fn args(&self) -> Args<'_> {
        Args::new(&self.buf, &self.spans)
    }
}

/// A client that has just connected from this machine.
pub fn client(id: u64) -> Client {
    Client {
        id,
        addr: "127.0.0.1:50000".into(),
        laddr: "127.0.0.1:6379".into(),
        unix: false,
        fd: 9,
        created: 0,
        last_active: AtomicU64::default(),
        db: Default::default(),
        resp3: Default::default(),
        no_evict: Default::default(),
        no_touch: Default::default(),
        monitor: Default::default(),
        closing: Default::default(),
        busy: Default::default(),
        last_command: Default::default(),
        query_bytes: AtomicU64::default(),
        output_bytes: AtomicU64::default(),
        received: AtomicU64::default(),
        sent: AtomicU64::default(),
        labels: Default::default(),
        ender: Default::default(),
    }
}

/// A session at a time that stands still, and where its SHUTDOWN arrives.
pub fn session_with(
    config: &Config,
    policies: Policies,
) -> (Session, mpsc::UnboundedReceiver<ShutdownRequest>) {
    let (shutdown, requests) = mpsc::unbounded_channel();
    let options = Options { limit: 64 << 20, ..Options::default() };
    let now = 1_700_000_000_000;
    let stats = Arc::new(WorkerStats::new(policies.iter().count()));
    let shared = Arc::new(Shared {
        cache: Cache::new(&options, policies, Clock::manual(now), None),
        stores: Vec::new(),
        breakers: Vec::new(),
        live: Arc::new(Live::new(config)),
        clients: Default::default(),
        last_client: AtomicU64::default(),
        workers: vec![stats.clone()],
        attention: Default::default(),
        pause: Default::default(),
        unpaused: Default::default(),
        monitors: Default::default(),
        slowlog: Default::default(),
        latency: Default::default(),
        errors: Default::default(),
        refused: AtomicU64::default(),
        started: Instant::now(),
        started_at: now,
        run_id: "0123456789abcdef0123456789abcdef01234567".into(),
        port: 6379.into(),
        listeners: Default::default(),
        warming: Default::default(),
        shutdown,
        draining: Default::default(),
        peak_memory: AtomicU64::default(),
        startup_memory: AtomicU64::default(),
        excess: Default::default(),
        lazily_freed: Default::default(),
        rates: Default::default(),
        expiry_off: Default::default(),
    });
    let mut session = Session::new(shared, Arc::new(client(1)), stats);
    session.now = now;
    (session, requests)
}

/// A session with default settings, and where its SHUTDOWN arrives.
pub fn session_with_shutdown() -> (Session, mpsc::UnboundedReceiver<ShutdownRequest>) {
    session_with(&Config::default(), Policies::default())
}

/// A session with default settings.
pub fn session() -> Session {
    session_with_shutdown().0
}

/// Carries a request out, and returns the reply.
pub fn call(session: &mut Session, words: &[&str]) -> String {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let Line { buf, spans } = Line::new(&words);
    let (count, end) = (spans.len() as u32, buf.len() as u32);
    let request = Request { first: 0, count, end };
    let mut batch = Batch { spans, requests: vec![request] };
    let mut found = Vec::new();
    prepare(session, &buf, &mut batch, 0..1, &mut found);
    let mut out = Output::default();
    dispatch(session, found[0].entry, Args::new(&buf, batch.args(&request)), &mut out);
    let wire: Vec<u8> = out.chunks(0).flatten().copied().collect();
    String::from_utf8_lossy(&wire).into_owned()
}

/// Puts a string under a key of the session's database, without a command.
pub fn put(session: &Session, key: &str, value: &str) {
    let hash = session.cache().memory().hash(key.as_bytes());
    let key = Key { bytes: key.as_bytes(), hash };
    let job = Job {
        db: session.db,
        now: session.now,
        keys: &[(key, Use::Blind)],
        writes: true,
        strict: true,
        room: value.len() + 256,
        touch: true,
        counters: &session.stats.keys,
        release: &Release::default(),
    };
    let set = session.cache().attempt(&job, |tx| tx.set(key, &[value.as_bytes()], Ttl::Clear));
    assert_eq!(set, Ok(()));
}
