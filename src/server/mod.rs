//! The server: addresses, workers, and the way from start to the end.
//!
//! An acceptor on the background runtime gives each new connection to the worker with the fewest; a
//! connection lives and dies on its worker. The background runtime also runs what stores need. At a
//! signal or SHUTDOWN the server stops accepting, lets every connection answer what it has sent, and
//! ends within `shutdown-timeout`. At SIGHUP it reads its configuration again.

mod accept;
mod alarm;
mod connection;
mod cycles;
mod held;
mod machine;
mod outbox;
mod refusals;
mod stores;
mod stream;
mod turn;
mod worker;

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc},
};

use crate::{
    admin,
    cache::{Cache, warm::Save},
    clock::Clock,
    command::{
        info::LARDER_VERSION,
        shared::{Shared, ShutdownRequest, WorkerStats},
    },
    config::{self, Config, Live, Settings},
    error::Error,
    tier::{
        eviction::Eviction,
        log::{self, Log},
        memory::Options,
    },
};
use refusals::Refusals;
use stores::Opened;
use worker::{Message, Worker};

/// The number of the last run, in the data directory.
const RUN: &str = "RUN";
/// Where memory is saved, in the data directory.
const SNAPSHOT: &str = "warm";
/// Threads of the background runtime.
const BACKGROUND_THREADS: usize = 2;
/// How much longer than it may a worker takes at most to end.
const LAST_SECOND: Duration = Duration::from_secs(1);
/// How often rates are taken and idle clients are looked for.
const TICK: Duration = Duration::from_secs(1);

/// A server that listens.
pub struct Server {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    background: Runtime,
    shutdown: mpsc::UnboundedReceiver<ShutdownRequest>,
    signals: Signals,
    listening: accept::Listening,
    admin: Option<SocketAddr>,
    run: u64,
    /// Keeps a second server out of the data directory.
    _lock: fs::File,
}

impl Server {
    /// Opens the data directory and the stores, starts the workers, and listens.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let settings = &config.settings;
        let lock = lock_dir(&settings.dir)?;
        let background = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(BACKGROUND_THREADS)
            .thread_name("larder-background")
            .enable_all()
            .build()?;
        // Past a limit on the size of files a write fails, and doesn't end the process.
        let too_large = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
        let _ = background.block_on(async { signal(too_large) })?;
        let opened = stores::open(config)?;
        let (sender, shutdown) = mpsc::unbounded_channel();
        let runs = runs(&settings.dir)?;
        let log = open_log(settings, runs)?;
        begin_run(&settings.dir, runs)?;
        let shared = Arc::new(shared(config, opened, log, &background, sender));
        shared.apply_settings();
        shared.note_startup();
        if settings.warm_restart
            && let Some(warming) = shared.cache.warm_up()
        {
            // Once at most: the server is new.
            let _ = shared.warming.set(warming);
        }
        shared.cache.sweep();
        let workers = shared.workers.iter().enumerate();
        let workers = workers
            .map(|(index, stats)| {
                let runtime = background.handle().clone();
                Worker::start(index, shared.clone(), stats.clone(), runtime)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let posts = workers.iter().map(|worker| worker.post.clone()).collect();
        let signals = background.block_on(async { Signals::new() })?;
        let hangups = background.block_on(async { signal(SignalKind::hangup()) })?;
        let listen = async {
            let admin = accept::listen_admin(settings.admin.as_ref()).await?;
            Ok((accept::listen(&shared, settings, posts).await?, admin))
        };
        let (listening, admin) = match background.block_on(listen) {
            Ok(listening) => listening,
            Err(why) => {
                // They use the runtime, which ends with this.
                end_workers(workers, Instant::now(), Duration::ZERO);
                return Err(why);
            }
        };
        let address = admin.as_ref().and_then(|listener| listener.local_addr().ok());
        admin.map(|listener| background.spawn(admin::serve(listener, shared.clone())));
        background.spawn(tick(shared.clone(), listening.refusals.clone()));
        background.spawn(greet(shared.clone()));
        background.spawn(reload(shared.clone(), hangups));
        tracing::info!(
            version = LARDER_VERSION,
            pid = process::id(),
            port = shared.port.load(Relaxed),
            addresses = listening.addresses.join(" "),
            "larder has started"
        );
        Ok(Self {
            shared,
            workers,
            background,
            shutdown,
            signals,
            listening,
            admin: address,
            run: runs.this,
            _lock: lock,
        })
    }

    /// The TCP port that is listened on; 0 if there is none.
    pub fn port(&self) -> u16 {
        self.shared.port.load(Relaxed) as u16
    }

    /// The admin address, if there is one.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// What sessions share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A few lines for whoever starts the server: version, addresses, tiers, limits.
    pub fn banner(&self) -> String {
        let settings = self.shared.live.get();
        let memory = self.shared.cache.memory();
        let listening = self.listening.addresses.join(", ");
        let mut text = format!(
            "larder {} listens on {listening}\n  memory: {} MiB in {} stripes, {}; {} workers; {} databases; at most {} clients\n",
            LARDER_VERSION,
            settings.memory_limit() >> 20,
            memory.stripes(),
            memory.rules().eviction().name(),
            self.workers.len(),
            memory.databases(),
            settings.maxclients,
        );
        if let Some(log) = memory.log() {
            let shape = log.shape();
            text += &format!(
                "  disk: {} MiB in {} segments, {} records found\n",
                shape.bytes() >> 20,
                shape.segments,
                log.live().0,
            );
        }
        if let Some(admin) = self.admin {
            text += &format!("  watched at http://{admin}/ (page) and http://{admin}/metrics\n");
        }
        for namespace in self.shared.cache.policies().iter() {
            let prefix = String::from_utf8_lossy(&namespace.prefix).escape_debug().to_string();
            let store = namespace.store.as_ref().map_or("no store".into(), |(name, store)| {
                format!("store {name} ({})", store.kind())
            });
            text += &format!("  prefix \"{prefix}\": {}, {store}\n", namespace.mode());
        }
        text
    }

    /// Serves until a signal or SHUTDOWN, then drains.
    pub fn run(mut self) -> Result<(), Error> {
        let end = wait_for_end(&mut self.shutdown, &mut self.signals);
        let (reason, request) = self.background.block_on(end);
        let started = Instant::now();
        let limit =
            if request.now { Duration::ZERO } else { self.shared.live.get().shutdown_timeout };
        self.shared.draining.store(true, Relaxed);
        self.shared.unpause();
        self.listening.stop();
        let clients = self.shared.clients.len();
        tracing::info!(reason, clients, "larder is stopping");
        // A second signal ends at once.
        let mut signals = self.signals;
        self.background.spawn(async move {
            tracing::warn!("{} again: ending at once", signals.next().await);
            process::exit(1);
        });
        let have_ended = end_workers(self.workers, started, limit);
        drain(&self.shared, &self.background);
        if have_ended {
            save(&self.shared, self.run, &request);
        } else {
            // What a command still changes must not be older in what is saved.
            tracing::warn!("a worker doesn't end: memory is not saved");
        }
        self.background.shutdown_timeout(limit.saturating_sub(started.elapsed()));
        let uptime = self.shared.started.elapsed().as_secs();
        tracing::info!(
            version = LARDER_VERSION,
            pid = process::id(),
            port = self.shared.port.load(Relaxed),
            addresses = self.listening.addresses.join(" "),
            reason,
            uptime,
            "larder has stopped"
        );
        Ok(())
    }
}

/// Has the workers end, within a limit that counts from when it was started; says whether all have.
fn end_workers(workers: Vec<Worker>, started: Instant, limit: Duration) -> bool {
    workers.iter().for_each(|worker| worker.post.send(Message::Drain(limit)));
    let join = |worker: Worker| worker.join(limit.saturating_sub(started.elapsed()) + LAST_SECOND);
    let have_ended: Vec<bool> = workers.into_iter().map(join).collect();
    have_ended.into_iter().all(|has_ended| has_ended)
}

/// Closes the disk tier and brings memory to disk, if that is wanted.
fn save(shared: &Shared, run: u64, request: &ShutdownRequest) {
    let settings = shared.live.get();
    let limit = settings.warm_timeout;
    let save = Save { dir: settings.dir.join(SNAPSHOT), run: Some(run), limit };
    let wanted = request.save.unwrap_or(settings.warm_restart);
    let started = Instant::now();
    match shared.cache.close(wanted.then_some(&save)) {
        Ok(_) if !wanted => {}
        Ok(saved) => {
            let (entries, took) = (saved.entries, started.elapsed());
            tracing::info!("{entries} keys saved for the next start in {took:.1?}");
            if !saved.complete {
                tracing::warn!("the others were not saved: `warm-timeout` was over, or no room");
            }
        }
        Err(why) => tracing::warn!("memory was not saved: {why}"),
    }
}

/// Waits for a signal or SHUTDOWN; says which it was.
async fn wait_for_end(
    shutdown: &mut mpsc::UnboundedReceiver<ShutdownRequest>,
    signals: &mut Signals,
) -> (&'static str, ShutdownRequest) {
    tokio::select! {
        signal = signals.next() => (signal, ShutdownRequest::default()),
        request = shutdown.recv() => ("SHUTDOWN", request.unwrap_or_default()),
    }
}

/// The signals that ask the server to end, caught from before it says that it is ready.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Opens the log's file and reads the configuration again at each SIGHUP. All that has changed takes effect, or
/// nothing.
async fn reload(shared: Arc<Shared>, mut hangups: Signal) {
    let _alive = shared.cache.vitals().guard("the task that reloads the configuration");
    while hangups.recv().await.is_some() {
        match crate::log::reopen() {
            Ok(true) if shared.live.path().is_none() => {
                tracing::info!("received SIGHUP: the log's file is opened again");
                continue;
            }
            Ok(_) => {}
            Err(why) => {
                tracing::warn!("received SIGHUP, and the log goes on in the old file: {why}");
            }
        }
        let shared = shared.clone();
        let reloaded = tokio::task::spawn_blocking(move || shared.reload()).await;
        match reloaded.unwrap_or_else(|why| Err(why.to_string())) {
            Ok(changed) if changed.is_empty() => {
                tracing::info!("received SIGHUP: the configuration is as it was");
            }
            Ok(changed) => {
                tracing::info!(
                    "received SIGHUP, the configuration is read again: {}",
                    changed.join(", ")
                );
            }
            Err(why) => tracing::warn!("received SIGHUP, and nothing is changed: {why}"),
        }
    }
}

/// What happens once a second.
async fn tick(shared: Arc<Shared>, refusals: Arc<Refusals>) {
    let _alive = shared.cache.vitals().guard("the task that ticks");
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        shared.tick();
        refusals.tell();
    }
}

/// Asks every store whether it would serve, for the log: a cache starts without its store, but whoever
/// starts it should hear of a wrong password before the first request does.
async fn greet(shared: Arc<Shared>) {
    let mut asked: Vec<&str> = Vec::new();
    for namespace in shared.cache.policies().iter() {
        let Some((name, store)) = &namespace.store else { continue };
        if asked.contains(&&**name) {
            continue;
        }
        asked.push(name);
        match store.ping().await {
            Ok(()) => tracing::info!("store {name} ({}) serves", store.kind()),
            Err(why) => tracing::warn!("store {name} ({}): {why}", store.kind()),
        }
    }
}

/// Makes the data directory and keeps others out of it.
fn lock_dir(dir: &Path) -> Result<fs::File, Error> {
    let fail = |why: String| Error::DataDir(dir.to_owned(), why);
    fs::create_dir_all(dir).map_err(|why| fail(why.to_string()))?;
    let file = fs::File::create(dir.join("LOCK")).map_err(|why| fail(why.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(fail("another larder uses it".into())),
        Err(fs::TryLockError::Error(why)) => Err(fail(why.to_string())),
    }
}

/// Opens the third tier, if there is to be one.
fn open_log(settings: &Settings, runs: log::Runs) -> Result<Option<Arc<Log>>, Error> {
    let recover = match settings.disk_recover {
        config::Recover::Strict => log::Recover::Strict,
        config::Recover::BestEffort => log::Recover::BestEffort,
        config::Recover::None => log::Recover::None,
    };
    if settings.disk_size == 0 {
        return open_snapshot(settings, recover, runs);
    }
    forget_snapshot(&settings.dir);
    let dir = settings.disk_path.clone().unwrap_or_else(|| settings.dir.join("l3"));
    let queue = settings.disk_queue();
    let runs = Some(runs);
    let options =
        log::Options { queue, recover, runs, ..log::Options::new(&dir, settings.disk_size) };
    let log = Log::open(&options).map_err(|why| Error::DataDir(dir.clone(), why.to_string()))?;
    if let Some(text) = log.objection(settings.memory_limit()) {
        return Err(Error::Config(text));
    }
    if let Some(why) = log.started_empty {
        tracing::info!("L3 in {} starts empty: {why}", dir.display());
    }
    Ok(Some(Arc::new(log)))
}

/// Opens what memory was saved in, if it was and is wanted.
fn open_snapshot(
    settings: &Settings,
    recover: log::Recover,
    runs: log::Runs,
) -> Result<Option<Arc<Log>>, Error> {
    let dir = settings.dir.join(SNAPSHOT);
    if settings.warm_restart {
        match Log::open_snapshot(&dir, recover, Some(runs)) {
            Ok(Some(log)) => return Ok(Some(Arc::new(log))),
            Ok(None) => {}
            Err(why) => tracing::warn!("the snapshot in {} isn't used: {why}", dir.display()),
        }
    }
    forget_snapshot(&settings.dir);
    Ok(None)
}

/// Removes a snapshot that isn't used: a later start must not take it for the last.
fn forget_snapshot(dir: &Path) {
    if let Err(why) = fs::remove_dir_all(dir.join(SNAPSHOT))
        && why.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("an old snapshot can't be removed: {why}");
    }
}

/// The run of the server before this one, by the data directory, and a number for this one.
fn runs(dir: &Path) -> Result<log::Runs, Error> {
    let fail = |why: io::Error| Error::DataDir(dir.to_owned(), why.to_string());
    let last = match fs::read(dir.join(RUN)) {
        Ok(bytes) => bytes.try_into().map_or(0, u64::from_le_bytes),
        Err(why) if why.kind() == io::ErrorKind::NotFound => 0,
        Err(why) => return Err(fail(why)),
    };
    Ok(log::Runs { last, this: log::random() })
}

/// Notes, durably, that this run is the last one: a tier that it doesn't use is out of date from here on.
fn begin_run(dir: &Path, runs: log::Runs) -> Result<(), Error> {
    let write = || {
        let new = dir.join(RUN).with_extension("new");
        fs::write(&new, runs.this.to_le_bytes())?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, dir.join(RUN))?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|why: io::Error| Error::DataDir(dir.to_owned(), why.to_string()))
}

/// Brings what the stores lack to them, within a limit.
fn drain(shared: &Shared, background: &Runtime) {
    let Some(behind) = shared.cache.policies().behind() else { return };
    let limit = shared.live.get().journal_drain;
    let left = background.block_on(behind.end(limit));
    if left > 0 {
        tracing::warn!(
            "{left} changes that their stores lack stay in the journal for the next start"
        );
    }
    if let Err(why) = behind.journal().close() {
        tracing::error!("the journal: {why}");
    }
}

fn shared(
    config: &Config,
    opened: Opened,
    log: Option<Arc<Log>>,
    background: &Runtime,
    shutdown: mpsc::UnboundedSender<ShutdownRequest>,
) -> Shared {
    let mut config = config.clone();
    machine::fit_descriptors(&mut config.settings);
    let settings = &config.settings;
    let options = Options {
        limit: settings.memory_limit() as usize,
        eviction: Eviction::from_name(settings.maxmemory_policy.name()).unwrap_or_default(),
        databases: settings.databases as usize,
        log,
        ..Options::default()
    };
    let clock = Clock::default();
    let started_at = clock.now();
    let cache = Cache::new(&options, opened.policies, clock, Some(background.handle().clone()));
    cache.set_store_timeout(settings.store_timeout);
    let namespaces = cache.policies().iter().count();
    let workers = match settings.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers as usize,
    };
    Shared {
        cache,
        stores: opened.stores,
        breakers: opened.breakers,
        live: Arc::new(Live::new(&config)),
        clients: DashMap::new(),
        last_client: AtomicU64::new(0),
        workers: (0..workers).map(|_| Arc::new(WorkerStats::new(namespaces))).collect(),
        attention: AtomicU32::new(0),
        pause: Mutex::new(None),
        unpaused: Notify::new(),
        monitors: Mutex::new(Vec::new()),
        slowlog: Default::default(),
        latency: Default::default(),
        errors: DashMap::new(),
        refused: AtomicU64::new(0),
        started: Instant::now(),
        started_at,
        run_id: machine::run_id(),
        port: AtomicU32::new(0),
        listeners: Default::default(),
        warming: Default::default(),
        shutdown,
        draining: AtomicBool::new(false),
        peak_memory: AtomicU64::new(0),
        startup_memory: AtomicU64::new(0),
        excess: Default::default(),
        lazily_freed: Default::default(),
        rates: Default::default(),
        expiry_off: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;

    #[test]
    fn a_server_that_is_dropped_lets_go_of_its_clients() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = crate::config::Settings {
            port: 0,
            workers: 2,
            dir: dir.path().into(),
            ..crate::config::Settings::default()
        };
        let config = Config { settings, ..Config::default() };
        let server = Server::start(&config).expect("the server starts");
        let mut client = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
        client.write_all(b"PING\r\n").expect("open");
        let mut reply = [0; 7];
        client.read_exact(&mut reply).expect("an answer");
        drop(server);
        assert_eq!(client.read(&mut reply).expect("the end"), 0);
    }
}
