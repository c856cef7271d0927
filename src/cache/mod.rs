//! The cache: the one place that knows in which order tiers and stores are asked and told.
//!
//! A command is tried while its keys' stripes are held ([`Cache::attempt`]): synchronous, and all there
//! is to a hit. When a key has to come from a store, or a write has to go to one, the attempt ends
//! *below* having changed nothing, and [`Cache::go_below`] takes over: it takes the keys' turns if they
//! write through, *hydrates* cold keys (once for all who ask), tries again with what it found pinned,
//! and *settles*: the store first, then memory, then the reply.

mod below;
pub mod charge;
pub mod counter;
mod dead;
mod flight;
mod job;
mod landing;
mod loader;
pub mod local;
mod pilot;
mod readers;
pub mod release;
mod room;
mod settle;
pub mod traffic;
mod turns;
pub mod tx;
pub mod walk;
pub mod warm;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;

use crate::{
    clock::{self, Clock},
    error::ClientError,
    journal::{Journal, Reservation},
    policy::{Age, Namespace, NamespaceStats, Policies, Write},
    store::StoreError,
    tier::{
        memory::{Memory, Options},
        shelf::is_live,
    },
    vitals::Vitals,
};
use counter::Counters;
pub use dead::Retried;
use flight::{FetchError, Pin};
use loader::Loader;
use release::Release;
use room::ROOM_PATIENCE;
use settle::Staging;
use traffic::Traffic;
use tx::{Cold, Due, Key, Made, Need, Standing, Start, Stop, Tx};

/// How long a write waits for room in the journal before it gives up, unless told otherwise.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a store may take, unless told otherwise.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an attempt makes room before it gives up with `-OOM`.
const ROOM_TRIES: u32 = 4;
/// How often a write hydrates anew because other writes overtook it.
const HYDRATE_TRIES: u32 = 64;
/// How often a read of several keys does so before it takes what has been overtaken.
const STRICT_TRIES: u32 = 8;
/// How long one timer serves for all that is fetched by one command.
const SAME_TIME: Duration = Duration::from_millis(10);
/// Loads that one command has under way at once.
const LOADS_AT_ONCE: usize = 128;
/// What one command may pin beside memory: a quarter of it, but at least this many bytes.
const PINNED_LEAST: usize = 4 << 20;

/// What a command does with one of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It reads the value.
    Read,
    /// It changes the value, depending on the old one.
    Write,
    /// It replaces the value, whatever it was.
    Blind,
}

/// An attempt's keys and circumstances.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The database.
    pub db: usize,
    /// The time in unix milliseconds.
    pub now: u64,
    /// The keys, with what becomes of them.
    pub keys: &'a [(Key<'a>, Use)],
    /// Whether the command may change keys.
    pub writes: bool,
    /// The room that the command's arguments ask for, in bytes; 0 if it can't grow memory.
    pub room: usize,
    /// Whether what was fetched for it serves only as long as no write has overtaken it.
    pub strict: bool,
    /// Whether hits keep entries warm.
    pub touch: bool,
    /// Where hits and misses are counted.
    pub counters: &'a Counters,
    /// What the reply has to wait for, when the attempt is done.
    pub release: &'a Release,
}

/// What was fetched for some commands before their turn.
#[derive(Default)]
pub struct Ahead {
    pins: Vec<Pin>,
    /// Keys that could not be had, and why.
    failed: HashMap<Bytes, ClientError>,
}

/// Why an attempt didn't end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// This is the answer.
    Client(ClientError),
    /// It has to go below; nothing has changed.
    Below,
    /// It has to wait for room on disk, below; nothing has changed.
    Busy,
}

/// How a command's writes come to their stores.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They don't.
    None,
    /// By the journal: it is told while the stripes are held.
    Behind,
    /// At once: the store is told before memory changes.
    Through,
}

/// Why one try of an attempt didn't end well.
enum Failed {
    /// There wasn't this room; nothing has changed.
    Room(Need),
    /// It touched a key, in this database, that has to be fetched first; nothing has changed.
    Cold(Cold),
    Refused(Refusal),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A cache, cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    memory: Memory,
    /// The threads of L3.
    disk: Option<below::Disk>,
    /// Whether there may be keys in L3, or in a snapshot.
    has_below: AtomicBool,
    policies: Policies,
    /// The loads of each namespace's store.
    loaders: Vec<Option<Arc<Loader>>>,
    flights: flight::Flights,
    turns: Arc<turns::Turns>,
    clock: Clock,
    runtime: Option<Handle>,
    /// `proto-max-bulk-len`.
    max_string: AtomicUsize,
    /// The newest version issued or seen (SEMANTICS 14).
    version: AtomicU64,
    /// In milliseconds.
    store_timeout: AtomicU64,
    /// The same, for room in the journal.
    journal_patience: AtomicU64,
    /// What unflushed changes take, as far as it is accounted for in memory.
    unflushed: AtomicUsize,
    vitals: Vitals,
    traffic: Traffic,
}

impl Inner {
    fn runtime(&self) -> &Handle {
        self.runtime.as_ref().expect("checked when a namespace has a store")
    }

    /// Whether what isn't in memory is nowhere.
    #[inline]
    fn has_all_in_memory(&self) -> bool {
        self.policies.is_empty() && !self.has_below.load(Relaxed)
    }

    /// The number of a key's namespace, if what isn't in memory has to be asked for below: by one who will
    /// write what depends on it, or by one who only reads.
    #[inline]
    fn asks_below(&self, db: usize, key: &[u8], use_: Use) -> Option<usize> {
        let found = self.policies.index_of(db, key)?;
        let namespace = self.policies.at(found);
        let asks = match use_ {
            Use::Read => namespace.is_read_below(),
            Use::Write => namespace.has_old_value(),
            Use::Blind => false,
        };
        asks.then_some(found)
    }

    /// Whether a namespace's store has failed a moment ago, so that nothing is to be refreshed.
    fn rests(&self, namespace: usize, now: u64) -> bool {
        self.loaders[namespace].as_ref().is_none_or(|loader| loader.rests(now))
    }

    fn store_timeout(&self) -> Duration {
        Duration::from_millis(self.store_timeout.load(Relaxed))
    }

    /// Takes note of a version that a store returned, so that ours are newer.
    fn note_version(&self, seen: u64) {
        self.version.fetch_max(seen, Relaxed);
    }

    /// A version newer than all before: that of the clock (it is `now`), or one more than the last. There is
    /// none above the highest; stores take equal ones for newer.
    fn next_version(&self, now: u64) -> u64 {
        let now = clock::version_at(now);
        let next = |last: u64| now.max(last.saturating_add(1));
        self.version.fetch_update(Relaxed, Relaxed, |last| Some(next(last))).map_or(now, next)
    }
}

impl Cache {
    /// A cache in memory, with policies. Stores need a tokio runtime to be called on.
    ///
    /// # Panics
    /// If a namespace has a store and there is no runtime.
    pub fn new(
        options: &Options,
        policies: Policies,
        clock: Clock,
        runtime: Option<Handle>,
    ) -> Self {
        let needs_runtime = policies.iter().any(|namespace| namespace.store.is_some());
        assert!(runtime.is_some() || !needs_runtime, "a namespace with a store needs a runtime");
        let grouping = Some(policies.grouping()).filter(|_| !policies.is_empty());
        let memory = Memory::new(&Options { grouping, ..options.clone() });
        if let Some(log) = memory.log()
            && let Some(rule) = policies.restart_rule(clock.now())
        {
            log.set_restart_rule(rule);
        }
        let vitals = Vitals::default();
        let disk = memory.log().map(|log| below::Disk::start(log, &memory, &vitals));
        let cache = Self::over(memory, disk, policies, clock, runtime, vitals);
        if let Some(disk) = &cache.0.disk {
            disk.write_for(&cache.0);
        }
        cache.begin_behind();
        cache
    }

    /// A cache that starts no thread, for a simulation: whoever has it does what L3 needs in between. A
    /// read of a key that may be there ends *below*; see [`Memory::look_below`] and
    /// [`Writer::step`](crate::tier::log::writer::Writer::step).
    pub fn without_threads(options: &Options, clock: Clock) -> Self {
        let (memory, policies) = (Memory::new(options), Policies::default());
        Self::over(memory, None, policies, clock, None, Vitals::default())
    }

    fn over(
        memory: Memory,
        disk: Option<below::Disk>,
        policies: Policies,
        clock: Clock,
        runtime: Option<Handle>,
        vitals: Vitals,
    ) -> Self {
        let has_below = AtomicBool::new(memory.log().is_some());
        let loaders = runtime.as_ref().map_or_else(
            || policies.iter().map(|_| None).collect(),
            |runtime| loaders(&policies, runtime),
        );
        Self(Arc::new(Inner {
            memory,
            disk,
            has_below,
            policies,
            loaders,
            flights: flight::Flights::default(),
            turns: Arc::default(),
            clock,
            runtime,
            max_string: AtomicUsize::new(512 << 20),
            version: AtomicU64::new(0),
            store_timeout: AtomicU64::new(STORE_TIMEOUT.as_millis() as u64),
            journal_patience: AtomicU64::new(JOURNAL_PATIENCE.as_millis() as u64),
            unflushed: AtomicUsize::new(0),
            vitals,
            traffic: Traffic::default(),
        }))
    }

    /// Which of its threads and tasks have died.
    pub fn vitals(&self) -> &Vitals {
        &self.0.vitals
    }

    /// The memory tier.
    #[inline]
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// Changes the length of the longest string that a command may make.
    pub fn set_max_string(&self, bytes: usize) {
        self.0.max_string.store(bytes, Relaxed);
    }

    /// Has a namespace's times, and how its changes are brought to its store, be as those of this one from
    /// now on.
    pub fn change_namespace(&self, namespace: &Namespace) {
        self.0.policies.change(namespace);
        // L1 has noted when its copies are to be looked at again.
        self.0.memory.outdate();
    }

    /// Changes how long a store may take: then a load fails, and a write's outcome is unknown.
    pub fn set_store_timeout(&self, limit: Duration) {
        self.0.store_timeout.store(limit.as_millis() as u64, Relaxed);
    }

    /// Changes how long a write waits for room in the journal; then it is refused.
    pub fn set_journal_patience(&self, limit: Duration) {
        self.0.journal_patience.store(limit.as_millis() as u64, Relaxed);
    }

    /// Changes how long a read of the disk may take, and how many bytes a second may be written there
    /// (0: any).
    pub fn set_disk_limits(&self, read: Duration, write_rate: u64) {
        if let Some(disk) = &self.0.disk {
            disk.read_limit.store(read.as_micros() as u64, Relaxed);
            disk.write_rate.store(write_rate, Relaxed);
        }
    }

    /// The namespaces.
    pub fn policies(&self) -> &Policies {
        &self.0.policies
    }

    /// What is known of the traffic.
    pub fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Tries a command while holding the stripes of its keys. `run` is called at most once with effect;
    /// it must take back what it replied before it is called again. Nobody may hear of what it has done
    /// before its [`Release`] has been waited for ([`Cache::released`]).
    #[inline]
    pub fn attempt(
        &self,
        job: &Job<'_>,
        mut run: impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Refusal> {
        let (way, need) = self.way(job);
        let result = match way {
            Way::None => self.try_with(job, &[], None, &mut run),
            Way::Behind => self.try_behind(job, need, &mut run),
            Way::Through => Err(Refusal::Below.into()),
        };
        result.map_err(|failed| match failed {
            Failed::Refused(refusal) => refusal,
            Failed::Room(_) | Failed::Cold(_) => Refusal::Below,
        })
    }

    /// Tries a command that writes behind, if the journal has room for it now.
    #[inline(never)]
    fn try_behind(
        &self,
        job: &Job<'_>,
        need: u64,
        run: &mut dyn FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Failed> {
        let Some(room) = self.journal_room_now(need)? else { return Err(Refusal::Below.into()) };
        let mut staging = Staging { room: Some(room), ..Staging::default() };
        let result = self.try_with(job, &[], Some(&mut staging), &mut &mut *run);
        self.0.account_unflushed();
        result
    }

    #[inline]
    fn try_with(
        &self,
        job: &Job<'_>,
        pins: &[Pin],
        mut staging: Option<&mut Staging>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Failed> {
        match self.try_once(job, (job.room, None), &[], pins, staging.as_deref_mut(), run) {
            Err(Failed::Room(need)) => self.try_again(job, need, pins, staging, run),
            result => result,
        }
    }

    /// Goes on with an attempt that found too little room.
    #[cold]
    fn try_again(
        &self,
        job: &Job<'_>,
        mut need: Need,
        pins: &[Pin],
        mut staging: Option<&mut Staging>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Failed> {
        // What the command works on must not make the room for what it makes of it.
        let spare: Vec<u64> = job.keys.iter().map(|(key, _)| key.hash).collect();
        let mut room = job.room;
        for _ in 1..ROOM_TRIES {
            let within = Some(need).filter(|need| need.namespace.is_some());
            match need.namespace {
                Some(namespace) => self.make_room_in(job, namespace, need.bytes, &spare)?,
                None => room = need.bytes,
            }
            match self.try_once(job, (room, within), &spare, pins, staging.as_deref_mut(), run) {
                Err(Failed::Room(more)) => need = more,
                result => return result,
            }
        }
        Err(Refusal::Client(self.no_room(need.namespace)).into())
    }

    #[inline]
    fn try_once(
        &self,
        job: &Job<'_>,
        (room, within): (usize, Option<Need>),
        spare: &[u64],
        pins: &[Pin],
        staging: Option<&mut Staging>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Failed> {
        let inner = &*self.0;
        let in_quotas = if room == 0 { 0 } else { self.make_room(job, room, spare)? };
        let made = Made { room, in_quotas, within };
        let (staged, mut journal) = match staging {
            Some(Staging { changes, room, waits_for_store }) => {
                changes.clear();
                (Some(changes), room.as_mut().filter(|_| !*waits_for_store))
            }
            None => (None, None),
        };
        let start = Start { cache: inner, job, pins, staged, made };
        let mut tx = Tx::begin(start, job.keys.iter().map(|(key, _)| key.hash));
        let mut ended = Err(Stop::Unseen);
        if tx.is_unseen() || inner.has_all_in_memory() {
            ended = self.run_in(&mut tx, journal.as_deref_mut(), run);
        }
        if let Err(Stop::Unseen) = ended {
            ended = self.run_seen(job, tx, journal, run);
        } else {
            drop(tx);
        }
        match ended {
            Ok(()) => {
                self.trim(job);
                Ok(())
            }
            Err(Stop::Client(error)) => Err(Refusal::Client(error).into()),
            Err(Stop::Room(bytes)) => Err(Failed::Room(bytes)),
            Err(Stop::Cold(cold)) => Err(Failed::Cold(cold)),
            Err(Stop::Unseen) => Err(Refusal::Below.into()),
            Err(Stop::Stray) => {
                let text = "ERR the command touched a key that it didn't name";
                Err(Refusal::Client(ClientError::new(text)).into())
            }
        }
    }

    /// Runs a command, and what it wrote goes to the journal if it has to.
    #[inline(always)]
    fn run_in(
        &self,
        tx: &mut Tx<'_>,
        journal: Option<&mut Reservation>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        run(tx)?;
        let Some(behind) = self.0.policies.behind() else { return Ok(()) };
        self.0.sequence(behind, tx, journal).map_err(Stop::Client)
    }

    /// Goes on with an attempt for which it has to be looked first whether all of its keys are there.
    #[inline(never)]
    fn run_seen(
        &self,
        job: &Job<'_>,
        mut tx: Tx<'_>,
        journal: Option<&mut Reservation>,
        run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut due = Vec::new();
        let ended = if self.is_resident(job, &mut tx, &mut due)? {
            tx.note_seen();
            self.run_in(&mut tx, journal, run)
        } else {
            Err(Stop::Unseen)
        };
        drop(tx);
        if !due.is_empty() {
            self.refresh(job, due);
        }
        ended
    }

    /// Starts loads beside copies that were met while due for a refresh.
    #[cold]
    fn refresh(&self, job: &Job<'_>, due: Vec<Due>) {
        for due in due {
            let (key, _) = job.keys[due.index];
            self.0.refresh(job.db, key, due);
        }
    }

    /// Whether no key has to be loaded before the command may run; notes copies that are due for a
    /// refresh.
    fn is_resident(
        &self,
        job: &Job<'_>,
        tx: &mut Tx<'_>,
        due: &mut Vec<Due>,
    ) -> Result<bool, Stop> {
        let inner = &*self.0;
        let may_forget = inner.memory.may_forget();
        for (index, (key, use_)) in job.keys.iter().enumerate() {
            let namespace = match use_ {
                // What looks like an old record of the key may be another key's: it goes with it, unless
                // nothing may be forgotten.
                Use::Blind if may_forget || inner.disk.is_none() => continue,
                Use::Blind => None,
                Use::Read | Use::Write => inner.asks_below(job.db, key.bytes, *use_),
            };
            let Some(at) = namespace else {
                if tx.is_resident(*key)? {
                    continue;
                }
                return Ok(false);
            };
            match tx.standing(*key, !job.writes, inner.policies.times(at))? {
                Standing::Good => {}
                Standing::Negative => {
                    NamespaceStats::add(&inner.policies.at(at).stats.negative_hits, 1);
                }
                Standing::Due if job.writes || inner.rests(at, job.now) => {}
                Standing::Due => due.extend(tx.take_due(*key, index, at)?),
                Standing::Cold => return Ok(false),
            }
        }
        Ok(true)
    }

    /// How the command's writes come to their stores, and the room that they need in the journal.
    #[inline]
    fn way(&self, job: &Job<'_>) -> (Way, u64) {
        if !job.writes || self.0.policies.is_empty() {
            return (Way::None, 0);
        }
        let (mut way, mut need) = (Way::None, 0);
        for (key, use_) in job.keys {
            let Some(namespace) = self.0.policies.of(job.db, key.bytes) else { continue };
            match namespace.write {
                _ if *use_ == Use::Read => {}
                Write::None => {}
                Write::Behind => {
                    need += Journal::cost(key.bytes.len(), 0);
                    if way == Way::None {
                        way = Way::Behind;
                    }
                }
                Write::Through | Write::Around => way = Way::Through,
            }
        }
        (way, if need == 0 { 0 } else { need + job.room as u64 })
    }

    /// Fetches what some reads of one connection need, all at once. A key that fails does so for all of
    /// them: asked one after the other, each would wait for a slow store anew. What is too much to be pinned
    /// together is left to each.
    pub async fn fetch_ahead(&self, job: &Job<'_>) -> Ahead {
        let Ahead { mut pins, mut failed } = Ahead::default();
        let note = |key, why| {
            failed.insert(key, why);
            Ok(())
        };
        match self.hydrate(job, &mut pins, note).await {
            Ok(()) => Ahead { pins, failed },
            Err(_) => Ahead::default(),
        }
    }

    /// Carries out a command whose attempt ended below; some of what it needs may have been fetched
    /// ahead.
    pub async fn go_below(
        &self,
        job: &Job<'_>,
        ahead: &mut Ahead,
        mut run: impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
    ) -> Result<(), ClientError> {
        let (way, need) = self.way(job);
        let turn = if way == Way::Through { Some(self.take_turns(job).await?) } else { None };
        let mut staging = Staging {
            room: self.journal_room(need).await?,
            waits_for_store: way == Way::Through,
            ..Staging::default()
        };
        let Ahead { pins, failed } = ahead;
        // Of what was fetched ahead, what a write has overtaken since may be older than what an earlier
        // command of this connection has seen.
        let mut strict = !pins.is_empty();
        let patience = tokio::time::Instant::now() + ROOM_PATIENCE;
        let mut tries = 0;
        while tries < HYDRATE_TRIES {
            tries += 1;
            let stage = (way != Way::None).then_some(&mut staging);
            let job = Job { now: self.0.clock.now(), ..*job };
            // Of several keys all are to be of one moment, if that can be had.
            let is_one_moment = job.keys.len() > 1 && tries <= STRICT_TRIES;
            let job = Job { strict: strict || job.writes || is_one_moment, ..job };
            match self.try_with(&job, pins, stage, &mut run) {
                Ok(()) => {
                    self.settle(turn, staging, job.release).await?;
                    self.0.account_unflushed();
                    return self.released(job.release).await;
                }
                Err(Failed::Refused(Refusal::Client(error))) => return Err(error),
                Err(Failed::Refused(Refusal::Busy)) => {
                    // Waiting has a limit of its own.
                    tries -= 1;
                    self.wait_for_room(patience).await?;
                }
                Err(Failed::Refused(Refusal::Below) | Failed::Room(_)) => {
                    // A read had asked before any write that has overtaken what it holds.
                    if std::mem::take(&mut strict) {
                        pins.retain(|pin| !pin.is_among(job.db, job.keys));
                    }
                    pins.retain(|pin| !job.strict || pin.is_current());
                    if !failed.is_empty() {
                        let mut cold = self.cold_keys(&job, pins).into_iter();
                        let failure = cold.find_map(|key| failed.get(key.bytes));
                        failure.map_or(Ok(()), |why| Err(why.clone()))?;
                    }
                    self.hydrate(&job, pins, |_, why| Err(why)).await?;
                }
                Err(Failed::Cold(Cold { db, key, hash })) => {
                    pins.retain(|pin| !job.writes || pin.is_current());
                    let patience = self.0.patience(job.writes);
                    let pin = self.0.fetch(db, key, hash, job.writes, patience).await;
                    pins.push(pin.map_err(|error| explain(&job, error))?);
                    flight::sort(pins);
                }
            }
        }
        Err(ClientError::new("TRYAGAIN the keys change faster than they can be loaded"))
    }

    async fn take_turns(&self, job: &Job<'_>) -> Result<turns::Turn, ClientError> {
        let place = |(key, _): &(Key<'_>, Use)| (job.db, Bytes::copy_from_slice(key.bytes));
        self.0.turns.take(job.keys.iter().map(place).collect(), self.0.store_timeout()).await
    }

    /// Fetches the keys that are neither in memory nor pinned, concurrently, and pins them. Where one fails,
    /// `failed` says whether to go on.
    async fn hydrate(
        &self,
        job: &Job<'_>,
        pins: &mut Vec<Pin>,
        mut failed: impl FnMut(Bytes, ClientError) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut patience = self.0.patience(job.writes);
        let mut since = std::time::Instant::now();
        let fetch = |key: Key<'_>| {
            let bytes = Bytes::copy_from_slice(key.bytes);
            // What begins at about the same time has one timer.
            if since.elapsed() > SAME_TIME {
                (patience, since) = (self.0.patience(job.writes), std::time::Instant::now());
            }
            let fetch = self.0.fetch(job.db, bytes.clone(), key.hash, job.writes, patience.clone());
            async move { fetch.await.map_err(|error| (bytes, error)) }
        };
        let cold = self.cold_keys(job, pins);
        let mut fetched = stream::iter(cold.into_iter().map(fetch)).buffer_unordered(LOADS_AT_ONCE);
        let most = (self.0.memory.rules().limit() / 4).max(PINNED_LEAST);
        let mut size: usize = pins.iter().map(Pin::size).sum();
        while let Some(pin) = fetched.next().await {
            let pin = match pin {
                Ok(pin) => pin,
                Err((key, error)) => {
                    failed(key, explain(job, error))?;
                    continue;
                }
            };
            size += pin.size();
            // One value alone is bounded by its own length.
            if size > most && !pins.is_empty() {
                return Err(ClientError::OOM);
            }
            pins.push(pin);
        }
        flight::sort(pins);
        Ok(())
    }

    /// The keys, each once, that have to be loaded.
    fn cold_keys<'a>(&self, job: &Job<'a>, pins: &[Pin]) -> Vec<Key<'a>> {
        let inner = &*self.0;
        let may_forget = inner.memory.may_forget();
        let is_cold = |(key, use_): &&(Key<'_>, Use)| {
            let namespace = match use_ {
                Use::Blind if may_forget => return false,
                Use::Blind => None,
                Use::Read | Use::Write => inner.asks_below(job.db, key.bytes, *use_),
            };
            (namespace.is_some() || inner.memory.has_below(job.db, key.hash))
                && flight::find(pins, job.db, *key).is_none()
                && !self.is_at_hand(job, *key, namespace)
        };
        let mut cold: Vec<_> = job.keys.iter().filter(is_cold).map(|(key, _)| *key).collect();
        cold.sort_unstable_by_key(|key| (key.hash, key.bytes));
        cold.dedup_by_key(|key| key.bytes);
        cold
    }

    /// Whether memory has what an attempt may take, as [`Tx::standing`] says for one that holds the stripe.
    fn is_at_hand(&self, job: &Job<'_>, key: Key<'_>, namespace: Option<usize>) -> bool {
        let times = namespace.map(|at| self.0.policies.times(at));
        let core = self.0.memory.lock(self.0.memory.stripe_of(key.hash));
        let entry = core.shelf(job.db).and_then(|shelf| {
            let slot = shelf.find(key.hash, key.bytes)?;
            Some(shelf.entry(slot))
        });
        match (entry.filter(|entry| is_live(*entry, job.now)), times) {
            (Some(_), None) => true,
            (Some(entry), Some(times)) => times.age(entry.kept_until(), job.now) != Age::Stale,
            (None, None) => false,
            (None, Some(times)) => {
                !job.writes
                    && times.has_negatives()
                    && core.is_negative(job.db, key.hash, key.bytes, job.now)
            }
        }
    }
}

/// A loader for each store, by the namespaces.
fn loaders(policies: &Policies, runtime: &Handle) -> Vec<Option<Arc<Loader>>> {
    let mut loaders: Vec<Option<Arc<Loader>>> = Vec::new();
    for namespace in policies.iter() {
        let loader = namespace.store.as_ref().map(|(_, store)| {
            let known = loaders.iter().flatten().find(|loader| loader.is_of(store)).cloned();
            let new = || Arc::new(Loader::new(store.clone(), namespace.loads, runtime.clone()));
            known.unwrap_or_else(new)
        });
        loaders.push(loader);
    }
    loaders
}

/// A load's failure as a client sees it. A write that couldn't begin has no unknown outcome
/// (SEMANTICS 3).
fn explain(job: &Job<'_>, error: FetchError) -> ClientError {
    match error {
        FetchError::Disk => ClientError::new("TRYAGAIN the disk doesn't answer"),
        FetchError::Store(StoreError::Timeout(text)) if job.writes => {
            StoreError::Down(text).client_error()
        }
        FetchError::Store(error) => error.client_error(),
    }
}

#[cfg(test)]
mod tests;
