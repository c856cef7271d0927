//! Write-behind: changes that were acknowledged, and that the store gets later.
//!
//! A change of a key in a namespace that writes behind goes into the [journal](crate::journal) and into the
//! namespace's [`Line`] while the key's stripe is held. The line is an overlay over the store (SEMANTICS 12):
//! until the store has a change, every load of the key is answered here. Flushers bring the changes to the
//! store: those of one key one after the other and the newest only, many keys at a time, again and again
//! while the store fails; what it refuses every time becomes a [dead letter](dead) and blocks nobody. What
//! the store has is acknowledged in the journal.

pub mod dead;
mod flusher;
mod lane;
#[cfg(test)]
mod tests;
mod update;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use super::{Policies, Write};
use crate::{
    clock::Clock,
    error::Error,
    journal::{self, Effect, Fsync, Journal, JournalError, Position, Reservation},
    store::{Change, Record, Store},
    tier::disk::Disk,
    vitals::Vitals,
};
use dead::DeadLetters;
use lane::{Landed, Lane, Number, Since};
pub use update::Update;

/// How a namespace brings its changes to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a change waits for newer ones of its key. The longer, the fewer calls.
    pub delay: Duration,
    /// Keys of one call at most.
    pub batch: usize,
    /// Bytes of one call, roughly at most.
    pub batch_bytes: usize,
    /// How often the store may refuse a change before it becomes a dead letter.
    pub tries: u32,
    /// Calls that are under way at once, each with keys of its own.
    pub partitions: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(1),
            batch: 500,
            batch_bytes: 4 << 20,
            tries: 8,
            partitions: 4,
        }
    }
}

/// What happened to a line's changes since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Changes that were taken in.
    pub changes: AtomicU64,
    /// Changes that the store has, each the newest of those that were coalesced.
    pub flushed: AtomicU64,
    /// Calls that brought them.
    pub batches: AtomicU64,
    /// Calls that the store failed, which were or will be tried again.
    pub retries: AtomicU64,
    /// Changes that the store refused.
    pub refusals: AtomicU64,
    /// Changes that were given up.
    pub dead_letters: AtomicU64,
}

/// What a line holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Dirty keys.
    pub records: u64,
    /// What they take in memory, in bytes.
    pub bytes: u64,
    /// How long the oldest change has waited.
    pub lag: Duration,
}

/// One lane, and who waits for something to be in it.
#[derive(Default)]
struct Part {
    lane: Mutex<Lane>,
    wake: Notify,
}

/// What the lines need of the cache above them.
pub trait Above: Send + Sync + 'static {
    /// Changes have reached their store, and take no memory any more.
    fn landed(&self);

    /// A key's cached copy has to go: the store has something else.
    fn forget(&self, db: usize, key: &Bytes);

    /// The store has a version of a key that was never issued here: counts that, and gives a version above it.
    /// `None`: the cache is gone.
    fn conflict(&self, db: usize, key: &Bytes, stored: u64) -> Option<u64>;
}

/// What the lines of a server share.
struct Common {
    journal: Journal,
    dead: DeadLetters,
    clock: Clock,
    /// What all dirty keys take, in bytes.
    bytes: AtomicUsize,
    above: OnceLock<Box<dyn Above>>,
}

/// The unflushed changes of one namespace.
pub struct Line {
    common: Arc<Common>,
    db: u16,
    store: Arc<dyn Store>,
    settings: ArcSwap<Settings>,
    parts: Box<[Part]>,
    hasher: ahash::RandomState,
    records: AtomicUsize,
    /// How often all was asked to be flushed.
    epoch: AtomicU64,
    /// Dirty keys by the epoch in which they became dirty.
    epochs: Mutex<BTreeMap<u64, usize>>,
    /// Told when an epoch is over, or nothing is flushed any more.
    progress: Notify,
    /// The journal has failed, or this is the end: nothing is flushed any more.
    has_stopped: AtomicBool,
    counters: Counters,
}

/// Write-behind of a server: its journal, and a line for each namespace that writes behind.
pub struct Behind {
    common: Arc<Common>,
    lines: Vec<Arc<Line>>,
    /// The newest version that may have been issued before.
    ceiling: u64,
    syncs_first: bool,
}

impl Behind {
    /// Opens the journal for the namespaces that write behind, and takes up what is left in it. If there are
    /// none it only makes sure that nothing is.
    ///
    /// # Errors
    /// [`Error::DataDir`] if the journal can't be read or used; [`Error::Config`] if it holds changes of keys
    /// that no namespace writes behind any more.
    pub fn open(
        policies: &mut Policies,
        options: journal::Options,
        dead: PathBuf,
        disk: Arc<dyn Disk>,
        clock: Clock,
    ) -> Result<(), Error> {
        let dead = DeadLetters::open(dead)?;
        let syncs_first = options.fsync == Fsync::Always;
        let path = options.path.clone();
        let (journal, replay) = Journal::open(options, disk, clock.clone())?;
        let (bytes, above) = (AtomicUsize::new(0), OnceLock::new());
        let common = Arc::new(Common { journal, dead, clock, bytes, above });
        let mut lines = Vec::new();
        for namespace in policies.iter_mut().filter(|namespace| namespace.write == Write::Behind) {
            let Some((_, store)) = &namespace.store else { continue };
            let line = Arc::new(Line::new(
                common.clone(),
                namespace.db as u16,
                store.clone(),
                namespace.behind.clone(),
            ));
            lines.push(line.clone());
            namespace.line = Some(line);
        }
        let report = replay.report().clone();
        // The store may have a newer change of such a key that was flushed, and that a power loss took from
        // the journal. What is ahead of the clock is most likely somebody else's.
        let ours = report.ceiling.min(common.clock.version());
        for replayed in replay {
            let replayed = replayed?;
            let namespace = policies.of(usize::from(replayed.db), &replayed.key);
            let Some(line) = namespace.and_then(|namespace| namespace.line.as_ref()) else {
                let key = String::from_utf8_lossy(&replayed.key).escape_debug().to_string();
                let text = format!(
                    "the journal in {} holds changes that no store has, such as that of key \
                     \"{key}\" in database {}, and no namespace writes it behind any more: start once \
                     with the namespace as it was, so that they are stored",
                    path.display(),
                    replayed.db
                );
                return Err(Error::Config(text));
            };
            let update = Update::of(&replayed.key, &replayed.change);
            line.take_in(update, replayed.position, ours);
        }
        if !lines.is_empty() {
            let ceiling = report.ceiling;
            policies.behind = Some(Arc::new(Self { common, lines, ceiling, syncs_first }));
        }
        Ok(())
    }

    /// Starts bringing changes to the stores, below this cache.
    pub fn start(&self, runtime: &Handle, above: impl Above, vitals: &Vitals) {
        let _ = self.common.above.set(Box::new(above));
        for line in &self.lines {
            for part in 0..line.parts.len() {
                let alive = vitals.guard("a flusher of write-behind");
                runtime.spawn(flusher::run(Arc::downgrade(line), part, alive));
            }
        }
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.common.journal
    }

    /// The changes that were given up.
    pub fn dead_letters(&self) -> &DeadLetters {
        &self.common.dead
    }

    /// Versions up to this one may have been issued before this start.
    pub fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// What all unflushed changes take in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.common.bytes.load(Relaxed)
    }

    /// Whether a reply that shows a change has to wait until it is synced (SEMANTICS 11).
    pub fn syncs_first(&self) -> bool {
        self.syncs_first
    }

    /// Every key that has an unflushed change, with its database.
    pub fn keys(&self) -> Vec<(usize, Bytes)> {
        let of_line = |line: &Arc<Line>| {
            let db = usize::from(line.db);
            let of_part = |part: &Part| {
                let lane = part.lane.lock();
                let keys = lane.keys().map(|key| (db, Bytes::copy_from_slice(key)));
                keys.collect::<Vec<_>>()
            };
            line.parts.iter().flat_map(of_part).collect::<Vec<_>>()
        };
        self.lines.iter().flat_map(of_line).collect()
    }

    /// Waits until the stores have every change that is here now.
    ///
    /// # Errors
    /// If the journal has failed: nothing is flushed any more.
    pub async fn flush(&self) -> Result<(), JournalError> {
        // All are told to hurry before any is waited for.
        let flushing: Vec<_> = self.lines.iter().map(|line| line.hurry()).collect();
        for (line, epoch) in self.lines.iter().zip(flushing) {
            line.flushed(epoch).await?;
        }
        Ok(())
    }

    /// Brings all that is unflushed to the stores, but for no longer than `limit`. Says how many changes stay
    /// in the journal, for the next start.
    pub async fn end(&self, limit: Duration) -> usize {
        let _ = tokio::time::timeout(limit, self.flush()).await;
        self.lines.iter().map(|line| line.records.load(Relaxed)).sum()
    }
}

impl Drop for Behind {
    /// Ends the flushers: what they haven't brought to the stores stays in the journal.
    fn drop(&mut self) {
        for line in &self.lines {
            line.has_stopped.store(true, Relaxed);
            line.parts.iter().for_each(|part| part.wake.notify_one());
        }
    }
}

impl Line {
    fn new(common: Arc<Common>, db: u16, store: Arc<dyn Store>, settings: Settings) -> Self {
        let parts = (0..settings.partitions.max(1)).map(|_| Part::default()).collect();
        Self {
            common,
            db,
            store,
            settings: ArcSwap::from_pointee(settings),
            parts,
            hasher: ahash::RandomState::new(),
            records: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            epochs: Mutex::default(),
            progress: Notify::new(),
            has_stopped: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// The part that a key belongs to, and the key's hash.
    fn part(&self, key: &[u8]) -> (&Part, u64) {
        let hash = self.hasher.hash_one(key);
        (&self.parts[(hash % self.parts.len() as u64) as usize], hash)
    }

    /// What happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How it brings changes to its store.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Has it bring changes to its store in another way from now on; the partitions stay as they are.
    pub fn set_settings(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
        // What is due sooner now isn't slept over.
        self.parts.iter().for_each(|part| part.wake.notify_one());
    }

    /// What is unflushed.
    pub fn backlog(&self) -> Backlog {
        let mut backlog = Backlog::default();
        let now = Instant::now();
        for part in &self.parts {
            let lane = part.lane.lock();
            backlog.records += lane.len() as u64;
            backlog.bytes += lane.bytes() as u64;
            let lag = lane.oldest().map_or(Duration::ZERO, |oldest| now.duration_since(oldest));
            backlog.lag = backlog.lag.max(lag);
        }
        backlog
    }

    /// What a key holds, if the store doesn't have it yet: `Some(None)` if it is gone. A load asks here
    /// before it asks the store.
    pub fn get(&self, key: &[u8]) -> Option<Option<Record>> {
        if self.records.load(Relaxed) == 0 {
            return None;
        }
        let (part, hash) = self.part(key);
        let lane = part.lane.lock();
        let update = lane.get(lane.find(hash, key)?)?;
        Some(match update.change(self.common.clock.now()).1 {
            Change::Put(record) => Some(record),
            Change::Delete { .. } => None,
        })
    }

    /// Whether a key has an unflushed change.
    pub fn has(&self, key: &[u8]) -> bool {
        self.position(key).is_some()
    }

    fn position(&self, key: &[u8]) -> Option<Position> {
        if self.records.load(Relaxed) == 0 {
            return None;
        }
        let (part, hash) = self.part(key);
        let lane = part.lane.lock();
        lane.position(lane.find(hash, key)?)
    }

    /// The place of a key's unflushed change in the journal, if that isn't durable by the policy yet.
    pub fn unsynced(&self, key: &[u8]) -> Option<Position> {
        let position = self.position(key)?;
        (!self.is_synced(position)).then_some(position)
    }

    /// Whether a change is durable by the policy.
    pub fn is_synced(&self, position: Position) -> bool {
        self.common.journal.is_synced(position)
    }

    /// Takes a change of a key in, now (unix milliseconds): into the journal, and into the overlay. Call it
    /// while the key's stripe is held; the reply waits until the position is synced.
    ///
    /// # Errors
    /// As [`Journal::append`]; then nothing was taken in.
    pub fn append(
        &self,
        reservation: &mut Reservation,
        update: Update,
        now: u64,
    ) -> Result<Position, JournalError> {
        let (part, hash) = self.part(update.key());
        let (position, _) =
            self.append_to(part, &mut part.lane.lock(), hash, reservation, update, now)?;
        Ok(position)
    }

    /// The same; but it is over if the store has a newer version of it (SEMANTICS 17).
    ///
    /// # Errors
    /// As [`Line::append`].
    pub fn append_if_newer(
        &self,
        reservation: &mut Reservation,
        update: Update,
        now: u64,
    ) -> Result<Position, JournalError> {
        let (part, hash) = self.part(update.key());
        let mut lane = part.lane.lock();
        let (position, number) = self.append_to(part, &mut lane, hash, reservation, update, now)?;
        lane.set_yields_to(number, u64::MAX);
        Ok(position)
    }

    fn append_to(
        &self,
        part: &Part,
        lane: &mut Lane,
        hash: u64,
        reservation: &mut Reservation,
        update: Update,
        now: u64,
    ) -> Result<(Position, Number), JournalError> {
        let number = lane.find(hash, update.key());
        let effect = Effect {
            db: self.db,
            key: update.key(),
            value: update.value(),
            deadline: update.deadline(),
            version: update.version(),
            written: now,
            supersedes: number.and_then(|number| lane.position(number)),
        };
        let position = self.common.journal.append(reservation, &effect)?;
        Ok((position, self.put(part, lane, (hash, number), update, position)))
    }

    /// Takes up a change that is in the journal; it yields to versions up to this one.
    fn take_in(&self, update: Update, position: Position, yields_to: u64) {
        let (part, hash) = self.part(update.key());
        let mut lane = part.lane.lock();
        let number = lane.find(hash, update.key());
        let number = self.put(part, &mut lane, (hash, number), update, position);
        lane.set_yields_to(number, yields_to);
    }

    fn put(
        &self,
        part: &Part,
        lane: &mut Lane,
        (hash, number): (u64, Option<Number>),
        update: Update,
        position: Position,
    ) -> Number {
        let since = || Since { at: Instant::now(), epoch: self.epoch.load(Relaxed) };
        let before = lane.bytes();
        self.counters.changes.fetch_add(1, Relaxed);
        let number = match number {
            Some(number) => {
                lane.renew(number, update, position, since);
                number
            }
            None => {
                let (since, was_idle) = (since(), lane.waiting() == 0);
                self.records.fetch_add(1, Relaxed);
                *self.epochs.lock().entry(since.epoch).or_default() += 1;
                if was_idle {
                    part.wake.notify_one();
                }
                lane.insert(hash, update, position, since)
            }
        };
        if lane.bytes() != before {
            // Modulo 2^64, so that less is a sum too.
            self.common.bytes.fetch_add(lane.bytes().wrapping_sub(before), Relaxed);
        }
        number
    }

    /// Has all that is here flushed at once; returns the epoch that ends with it.
    fn hurry(&self) -> u64 {
        let epoch = self.epoch.fetch_add(1, Relaxed);
        self.parts.iter().for_each(|part| part.wake.notify_one());
        epoch
    }

    async fn flushed(&self, epoch: u64) -> Result<(), JournalError> {
        loop {
            let mut progress = std::pin::pin!(self.progress.notified());
            progress.as_mut().enable();
            let oldest = self.epochs.lock().keys().next().copied();
            if oldest.is_none_or(|oldest| oldest > epoch) {
                return Ok(());
            }
            if self.has_stopped.load(Relaxed) {
                return Err(self.common.journal.failed().unwrap_or(JournalError::Closed));
            }
            progress.await;
        }
    }

    /// Waits until the store has every change that is here now.
    ///
    /// # Errors
    /// If the journal has failed: nothing is flushed any more.
    pub async fn flush(&self) -> Result<(), JournalError> {
        let epoch = self.hurry();
        self.flushed(epoch).await
    }

    /// Accounts for changes that are over: in the journal, and for those who wait for a flush.
    fn note(&self, landed: &Landed, before: usize, after: usize) {
        self.common.bytes.fetch_sub(before - after, Relaxed);
        self.common.journal.acknowledge(landed.over.iter().copied());
        self.records.fetch_sub(landed.over.len(), Relaxed);
        let mut epochs = self.epochs.lock();
        for (epoch, next) in &landed.epochs {
            if let Some(next) = next {
                *epochs.entry(*next).or_default() += 1;
            }
            if let Some(count) = epochs.get_mut(epoch) {
                *count -= 1;
                if *count == 0 {
                    epochs.remove(epoch);
                }
            }
        }
        drop(epochs);
        self.progress.notify_waiters();
    }
}
