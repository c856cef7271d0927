//! L3: a log of segments on disk, with an index in memory.
//!
//! ```text
//!  dir/log    | segment 0 | segment 1 | ...            each written from its beginning to its end
//!  segment    | record | record | ...   | table of its records, from the end |
//!  dir/state  what must survive the process: see [`state`]
//! ```
//!
//! **Demotion.** What memory evicts enters a bounded [`queue`]; its index entry names the queue's number,
//! so it can be found, and invalidated, at any moment (SEMANTICS 7). The [`writer`] takes what waits,
//! writes it behind the last record, and then, under the stripe's lock, turns the index entry into a
//! place in the log and sets the record's bit in the mapped [`state`].
//!
//! **Validity.** A record counts only if its bit is set: what was never finished, was overwritten,
//! deleted or re-timed, or belongs to contents that a database no longer has, is nothing. So kill -9 can
//! neither lose an invalidation nor bring back a record whose index entry was dropped.
//!
//! **Reclaim.** When no segment is empty an old one makes room: some of its records that were hit are written
//! again, the others are forgotten, unless the eviction policy says that they may not be: then they are
//! written again, all of them.
//!
//! Nothing here starts a thread: [`writer::Writer::step`] and [`Log::read_span`] do their work when they are
//! called, by the cache's threads, by a test, or by a simulation.

pub mod admission;
pub mod contents;
pub mod index;
pub mod queue;
pub mod read;
mod reclaim;
pub mod record;
pub mod recover;
pub mod slot;
pub mod state;
#[cfg(test)]
mod tests;
pub mod writer;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicI64, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use super::{
    disk::{self, Disk, File},
    entry::Entry,
    table::{Hasher, hash},
};
use admission::Admission;
use queue::Queue;
use slot::Slot;
use state::{Hashing, Shape, State};

/// Records begin at multiples of so many bytes.
pub const UNIT: usize = 32;
/// The longest segment, and the shortest.
const SEGMENT_MOST: u64 = 16 << 20;
const SEGMENT_LEAST: u64 = 64 << 10;
/// A log has at least so many segments of less than the greatest length.
const SEGMENTS: u64 = 64;
/// The smallest log, and the largest: what the index's places can name.
pub const LEAST: u64 = SEGMENT_LEAST * 8;
/// See [`LEAST`].
pub const MOST: u64 = (UNIT as u64) << slot::PLACE_BITS;
/// The list of hot records, which tells of the log as it was.
pub const HOT_LIST: &str = "hot";
/// Bytes of the queue of a snapshot, which nothing enters.
const SNAPSHOT_QUEUE: usize = 64 << 10;
/// What counts fills the log when it takes so much of it.
const FULL_PERCENT: u64 = 70;
/// What may not be forgotten may fill so much of the log: cleaning needs the rest.
const KEPT_PERCENT: u64 = 80;

/// When what was found on disk at the start is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recover {
    /// After a clean stop, or if only the process had ended since.
    #[default]
    Strict,
    /// Always: after a power loss some of it may be older than what was acknowledged.
    BestEffort,
    /// Never.
    None,
}

/// What a log is opened with.
#[derive(Clone)]
pub struct Options {
    /// The directory of its files.
    pub dir: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of a segment; `None`: by the size.
    pub segment: Option<usize>,
    /// Whether to believe what is there.
    pub recover: Recover,
    /// Bytes of entries that may wait to be written.
    pub queue: usize,
    /// Bytes that are written at once, at most; what waits must be able to grow to four times as much.
    pub chunk: usize,
    /// Whether it holds a snapshot: it takes in nothing once it is open, and takes its room on disk as
    /// it needs it.
    pub snapshot: bool,
    /// The run before this one and this one, where a run may have done without the log: what such a run
    /// changed, the log doesn't know.
    pub runs: Option<Runs>,
    /// What a new log hashes keys with; `None`: something random.
    pub seeds: Option<[u64; 4]>,
    /// The disk.
    pub disk: Arc<dyn Disk>,
}

/// Two runs of a server, one after the other, by random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// The one before; 0 if there was none.
    pub last: u64,
    /// The present one.
    pub this: u64,
}

impl Options {
    /// The usual, for a directory and a size.
    pub fn new(dir: &Path, size: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            size,
            segment: None,
            recover: Recover::default(),
            queue: 8 << 20,
            chunk: writer::CHUNK,
            snapshot: false,
            runs: None,
            seeds: None,
            disk: Arc::new(disk::real::Real),
        }
    }

    fn shape(&self) -> Shape {
        let by_size = (self.size / SEGMENTS).clamp(SEGMENT_LEAST, SEGMENT_MOST);
        let segment = self.segment.map_or(1 << by_size.ilog2(), |bytes| bytes as u64);
        let segments = (self.size.min(MOST) / segment).max(4);
        Shape { segment_bytes: segment as usize, segments: segments as usize }
    }
}

/// Until when what a former run has left of a key of a database may be kept, in unix milliseconds; `None`: as
/// long as it says itself.
pub type RestartRule = dyn Fn(usize, &[u8]) -> Option<u64> + Send + Sync;

/// Counts since the start.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Counters {
    /// Reads of the disk for a key, and the time they took.
    pub reads: AtomicU64,
    pub read_nanos: AtomicU64,
    /// Reads to learn a record's key.
    pub key_reads: AtomicU64,
    /// Bytes read for whatever reason.
    pub read_bytes: AtomicU64,
    /// Reads that found their key.
    pub hits: AtomicU64,
    /// Hits on entries that waited to be written.
    pub queue_hits: AtomicU64,
    /// Reads that found the record of another key.
    pub other_keys: AtomicU64,
    pub read_errors: AtomicU64,
    /// Records whose checksum, generation or form was wrong.
    pub bad_records: AtomicU64,
    /// Reads that took longer than they may.
    pub timeouts: AtomicU64,
    pub writes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub write_errors: AtomicU64,
    /// Entries that left memory for the queue, and the bytes of their records.
    pub demotions: AtomicU64,
    pub demoted_bytes: AtomicU64,
    /// Entries whose record was on disk already.
    pub unchanged: AtomicU64,
    /// Entries that came back to memory.
    pub promotions: AtomicU64,
    /// Victims that weren't worth a place.
    pub rejected: AtomicU64,
    /// Victims for which the queue had no room.
    pub dropped: AtomicU64,
    /// Hot records that were written again when their segment was reclaimed, and their bytes.
    pub reinserted: AtomicU64,
    pub reinserted_bytes: AtomicU64,
    /// Records that went with their segment.
    pub forgotten: AtomicU64,
    /// Records that a change of their key made invalid.
    pub invalidated: AtomicU64,
    /// Records found at the start.
    pub recovered: AtomicU64,
}

/// A random number other than 0.
pub fn random() -> u64 {
    // The only source of randomness that std offers: seeds of its own hasher.
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() | 1
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}

/// The log.
pub struct Log {
    shape: Shape,
    file: Arc<dyn File>,
    state: State,
    hashing: Hashing,
    /// Entries that wait to be written.
    pub queue: Queue,
    /// Bytes that are written at once.
    chunk: usize,
    dir: PathBuf,
    is_snapshot: bool,
    /// What is worth a place.
    pub admission: Admission,
    /// What happened since the start.
    pub counters: Counters,
    /// The highest version of the runs before this one, and the rule for their records.
    former: u64,
    restart: OnceLock<Box<RestartRule>>,
    /// Units of valid records, and of those without a deadline.
    live: AtomicU64,
    lasting: AtomicU64,
    /// Whether a write found no room for what may not be forgotten.
    wants_room: AtomicBool,
    records: AtomicU64,
    /// Units of hot records by segment, and of all that are valid. After a database was dropped it is too
    /// much for a while.
    hot: Box<[AtomicI64]>,
    valid: Box<[AtomicI64]>,
    /// Whether every segment was written, so that more is written over what was there.
    has_wrapped: AtomicBool,
    /// Whether the last writes failed, again and again.
    ails: AtomicBool,
    /// Why it started empty, if it did.
    pub started_empty: Option<&'static str>,
    /// Tells those who wait for room in the queue.
    pub room: tokio::sync::Notify,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// The hash of something that tells one hash function from another.
fn fingerprint(hasher: &Hasher) -> u64 {
    hash(hasher, b"larder") ^ hash(hasher, &[7; 100])
}

fn new_hashing(seeds: Option<[u64; 4]>) -> Hashing {
    let seeds = seeds.unwrap_or_else(|| [random(), random(), random(), random()]);
    Hashing { seeds, fingerprint: fingerprint(&hasher_of(&seeds)) }
}

fn hasher_of(seeds: &[u64; 4]) -> Hasher {
    Hasher::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3])
}

impl Log {
    /// Opens a log, made if there is none. What it holds is found by [`recover`].
    pub fn open(options: &Options) -> io::Result<Self> {
        fs::create_dir_all(&options.dir)?;
        let shape = options.shape();
        let path = options.dir.join("state");
        let mut state = State::open(&path, shape)?;
        let file = options.disk.open(&options.dir.join("log"), true)?;
        let hashing = state.hashing();
        let why = match (state.mismatch(), options.recover) {
            (Some(why), _) => Some(why),
            (None, Recover::None) => Some("it is told to"),
            (None, _) if fingerprint(&hasher_of(&hashing.seeds)) != hashing.fingerprint => {
                Some("another build wrote it")
            }
            (None, _) if options.runs.is_some_and(|runs| !state.is_of_run(runs.last)) => {
                Some("the last run did without it")
            }
            (None, Recover::Strict) if !state.is_trusted() => {
                Some("the machine was started anew without a clean stop before")
            }
            (None, _) => None,
        };
        if why.is_some() {
            // The old one may be of another size: what was mapped beyond goes.
            drop(state);
            fs::remove_file(&path)?;
            let _ = fs::remove_file(options.dir.join(HOT_LIST));
            state = State::open(&path, shape)?;
            state.format(&new_hashing(options.seeds));
        }
        if let Some(runs) = options.runs {
            state.set_runs(runs.this, runs.last);
        }
        let hashing = state.hashing();
        if options.snapshot {
            file.set_len(shape.bytes())?;
        } else if let Err(error) = file.allocate(shape.bytes()) {
            tracing::warn!("{}: no room for all of it yet: {error}", options.dir.display());
        }
        state.begin()?;
        let former = state.begin_versions();
        let chunk = (options.queue / 4).clamp(64 << 10, writer::CHUNK).min(options.chunk);
        let is_used = |at: &usize| state.segment(*at).1 != state::Kind::Empty;
        // One is always empty.
        let has_wrapped = (0..shape.segments).filter(is_used).count() + 1 >= shape.segments;
        Ok(Self {
            shape,
            file,
            state,
            hashing,
            queue: Queue::new(options.queue, chunk),
            chunk,
            dir: options.dir.clone(),
            is_snapshot: options.snapshot,
            admission: Admission::new(shape.bytes()),
            counters: Counters::default(),
            former,
            restart: OnceLock::new(),
            live: AtomicU64::new(0),
            lasting: AtomicU64::new(0),
            wants_room: AtomicBool::new(false),
            records: AtomicU64::new(0),
            hot: (0..shape.segments).map(|_| AtomicI64::new(0)).collect(),
            valid: (0..shape.segments).map(|_| AtomicI64::new(0)).collect(),
            has_wrapped: AtomicBool::new(has_wrapped),
            ails: AtomicBool::new(false),
            started_empty: why,
            room: tokio::sync::Notify::new(),
        })
    }

    /// Opens a snapshot, if there is one that may be believed.
    pub fn open_snapshot(
        dir: &Path,
        recover: Recover,
        runs: Option<Runs>,
    ) -> io::Result<Option<Self>> {
        let Some(shape) = State::shape_of(&dir.join("state"))? else { return Ok(None) };
        let options = Options {
            segment: Some(shape.segment_bytes),
            recover,
            runs,
            queue: SNAPSHOT_QUEUE,
            snapshot: true,
            ..Options::new(dir, shape.bytes())
        };
        let log = Self::open(&options)?;
        if let Some(why) = log.started_empty {
            tracing::info!("the snapshot in {} isn't used: {why}", dir.display());
            return Ok(None);
        }
        Ok(Some(log))
    }

    /// Sets the rule for records of former runs, before any is read.
    pub fn set_restart_rule(&self, rule: Box<RestartRule>) {
        let is_first = self.restart.set(rule).is_ok();
        debug_assert!(is_first, "there is one cache over a log");
    }

    /// What a record says, as far as it holds in this run.
    pub(super) fn judged(&self, mut head: record::Head, key: &[u8]) -> record::Head {
        if head.version <= self.former
            && let Some(rule) = self.restart.get()
            && let Some(db) = self.state.database(head.keyspace)
            && let Some(end) = rule(db, key)
        {
            let kept_until = &mut head.meta.kept_until;
            *kept_until = if *kept_until == 0 { end } else { end.min(*kept_until) };
        }
        head
    }

    /// Reads the record at the beginning of `bytes`, as far as it holds in this run.
    pub fn read_record<'a>(&self, bytes: &'a [u8]) -> Result<record::Record<'a>, record::Defect> {
        let mut record = record::read(bytes)?;
        record.head = self.judged(record.head, record.key);
        Ok(record)
    }

    /// Whether it holds a snapshot, which takes in nothing.
    #[inline]
    pub fn is_snapshot(&self) -> bool {
        self.is_snapshot
    }

    /// The directory of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What hashes keys: it has to be the same at the next start.
    pub fn hasher(&self) -> Hasher {
        hasher_of(&self.hashing.seeds)
    }

    /// Its size.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Its mapped state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Bytes of memory that it takes beside the index.
    pub fn bytes(&self) -> usize {
        self.queue.most_bytes() + self.admission.bytes() + self.state.bytes() + 2 * self.chunk
    }

    /// Why so much memory is too little for what the log takes of it, if it is.
    pub fn objection(&self, memory: u64) -> Option<String> {
        (self.bytes() as u64 > memory / 2).then(|| {
            format!(
                "a disk of {} MiB needs {:.1} MiB of memory, more than half of what there is",
                self.shape.bytes() >> 20,
                self.bytes() as f64 / 1_048_576.0
            )
        })
    }

    /// Whether every segment was written, so that more is written over what was there.
    pub fn has_wrapped(&self) -> bool {
        self.has_wrapped.load(Acquire)
    }

    fn set_wrapped(&self) {
        self.has_wrapped.store(true, Release);
    }

    /// Whether what counts fills it. (Tables, padding and what is being written take the rest.)
    pub fn is_full(&self) -> bool {
        self.has_wrapped() && self.live().1 >= self.shape.bytes() / 100 * FULL_PERCENT
    }

    /// Whether there are records with a deadline.
    fn has_volatile(&self) -> bool {
        self.live.load(Relaxed) > self.lasting.load(Relaxed)
    }

    /// Notes that a key was let go of; says whether that was so not long ago already. As many keys are
    /// remembered as the log has room for records like those that it has, as in S3-FIFO.
    pub(super) fn note_let_go(&self, hash: u64) -> bool {
        let (records, bytes) = self.live();
        let others = self.shape.bytes() as f64 * records as f64 / bytes as f64;
        // If there are none, as many as possible.
        self.admission.is_known(hash, if bytes == 0 { usize::MAX } else { others as usize })
    }

    /// Whether the disk takes no writes. What would wait for it is let go then, where it may be forgotten.
    pub fn ails(&self) -> bool {
        self.ails.load(Relaxed)
    }

    /// Valid records, and their bytes: rounded up to length classes, but never more than there is room for.
    pub fn live(&self) -> (u64, u64) {
        let bytes = self.live.load(Relaxed) * UNIT as u64;
        (self.records.load(Relaxed), bytes.min(self.shape.bytes()))
    }

    /// Whether there is room for records that may not be forgotten: all, or those without a deadline. If
    /// not, the writer looks for some that have ended.
    pub fn may_keep(&self, all: bool) -> bool {
        let kept = if all { &self.live } else { &self.lasting }.load(Relaxed) * UNIT as u64;
        // One segment is always empty.
        let usable = self.shape.bytes() - self.shape.segment_bytes as u64;
        let may = kept + (self.queue.len().1 as u64) < usable / 100 * KEPT_PERCENT;
        if !may {
            self.wants_room.store(true, Relaxed);
        }
        may
    }

    /// Whether an entry's record fits. One that is longer than a segment takes the place of whole
    /// segments, so it doesn't where those may not be forgotten.
    pub fn fits(&self, entry: Entry<'_>, keeps: bool) -> bool {
        let bytes = record::size(entry.key().len(), entry.value().len(), &entry.meta());
        let most =
            if keeps { self.shape.segment_bytes / 8 } else { self.shape.bytes() as usize / 4 };
        bytes <= most
    }

    /// Notes that a record was hit, for the first time since its segment was passed over. Call it under the
    /// stripe's lock.
    pub(super) fn note_hot(&self, slot: Slot) {
        self.hot[self.segment_of(slot.place())].fetch_add(slot.units() as i64, Relaxed);
    }

    /// Notes that a record isn't hot any more, or isn't there any more.
    pub(super) fn note_cold(&self, slot: Slot) {
        self.hot[self.segment_of(slot.place())].fetch_sub(slot.units() as i64, Relaxed);
    }

    /// The share of a segment that hot records take.
    fn hot_share(&self, segment: usize) -> f64 {
        self.hot[segment].load(Relaxed) as f64 / self.shape.units() as f64
    }

    /// Notes that a record is valid from now on. Call it under the stripe's lock.
    pub(super) fn validate(&self, slot: Slot) {
        self.state.set_valid(slot.place());
        self.valid[self.segment_of(slot.place())].fetch_add(slot.units() as i64, Relaxed);
        self.live.fetch_add(slot.units(), Relaxed);
        if !slot.has(slot::VOLATILE) {
            self.lasting.fetch_add(slot.units(), Relaxed);
        }
        self.records.fetch_add(1, Relaxed);
    }

    /// Notes that what the index had is no longer valid. Call it under the stripe's lock, before the
    /// change that made it so is seen.
    pub fn invalidate(&self, slot: Slot) {
        // What waits in the queue is let go by the writer, which finds no index entry for it.
        if !slot.has(slot::QUEUED) {
            self.state.set_invalid(slot.place());
            self.valid[self.segment_of(slot.place())].fetch_sub(slot.units() as i64, Relaxed);
            if slot.has(slot::HOT) {
                self.note_cold(slot);
            }
            self.live.fetch_sub(slot.units(), Relaxed);
            if !slot.has(slot::VOLATILE) {
                self.lasting.fetch_sub(slot.units(), Relaxed);
            }
            self.records.fetch_sub(1, Relaxed);
        }
    }

    /// Notes that an index with so many records, and units, was dropped; no database has these contents
    /// any more.
    pub fn note_dropped(&self, (records, units, lasting): (u64, u64, u64)) {
        self.live.fetch_sub(units, Relaxed);
        self.lasting.fetch_sub(lasting, Relaxed);
        self.records.fetch_sub(records, Relaxed);
    }

    /// The segment of a place.
    pub fn segment_of(&self, place: u64) -> usize {
        (place / self.shape.units()) as usize
    }

    /// When the segment of a record was begun, in unix seconds.
    pub fn written_at(&self, slot: Slot) -> u64 {
        self.state.begun_at(self.segment_of(slot.place()))
    }
}
