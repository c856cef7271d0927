//! One replay: requests through the tiers of a cache, one after the other.
//!
//! The tiers are the server's own, L1 included (one worker's). Only the threads are missing: what L3's
//! readers and its writer would do is done in between, at the same occasions, and the clock moves with
//! the requests. So the same requests give the same figures each time.

use std::{io, path::PathBuf, sync::Arc};

use super::report::{Flow, Place, Report, Tier};
use crate::{
    cache::{
        Cache, Job, Refusal, Use,
        counter::Counters,
        local::LocalCache,
        release::Release,
        tx::{Key, Stop, Ttl, Tx},
    },
    clock::Clock,
    error::Error,
    tier::{
        Weight,
        demote::Known,
        disk::{Disk, File, PAGE, buffer::Buffer, real::Real},
        entry::{Meta, entry_size},
        eviction::Eviction,
        log::{self, Log, writer::Writer},
        lookup::Wanted,
        memory::{Memory, Options},
    },
};

/// When a replay begins, in unix milliseconds.
const START: u64 = 1_700_000_000_000;
/// How far the clock moves with each request: so far that the access clock of `allkeys-lru`, which counts
/// in 16 ms, tells one request from the next.
const STEP: u64 = 20;
/// What keys are hashed with.
const SEEDS: [u64; 4] = [0x6c61_7264, 0x6572_2020, 0x7369_6d75, 0x6c61_7465];
/// How often a request tries to find room while the queue to L3 is full.
const TRIES: u32 = 64;
/// Requests after which L1 lets go of what is dead, as a worker does each second.
const TIDY: u64 = 1 << 14;

/// The capacities of the tiers, in what [`Setup::weight`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// L1, which counts in `memory` if that is in bytes; 0: none.
    pub local: usize,
    /// L2 and all that is kept in memory beside it: L1, L3's index and buffers.
    pub memory: usize,
    /// L3, always in bytes; 0: none.
    pub disk: u64,
}

/// What a replay is made with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The capacities.
    pub sizes: Sizes,
    /// In what memory is counted.
    pub weight: Weight,
    /// Which keys make room.
    pub eviction: Eviction,
    /// Bytes of entries that may wait to be written to disk.
    pub queue: usize,
    /// Bytes of a segment of the disk; `None`: by its size.
    pub segment: Option<usize>,
    /// An empty directory for the disk's files.
    pub dir: PathBuf,
}

/// A replay under way.
pub struct Replay {
    cache: Cache,
    local: LocalCache,
    counters: Counters,
    clock: Clock,
    below: Option<Below>,
    /// The value that is being set.
    value: Vec<u8>,
    requests: u64,
    refused: u64,
    tiers: [Tier; 4],
}

/// What the threads of L3 would have.
struct Below {
    log: Arc<Log>,
    writer: Writer,
    buffer: Buffer,
}

impl Replay {
    /// Empty tiers.
    pub fn new(setup: &Setup) -> Result<Self, Error> {
        let Setup { sizes, weight, eviction, .. } = *setup;
        let log = (sizes.disk != 0).then(|| open_log(setup)).transpose()?;
        let seeds = Some(SEEDS);
        let options = Options {
            limit: sizes.memory,
            weight,
            eviction,
            databases: 1,
            stripe_bits: None,
            seeds,
            log,
            grouping: None,
        };
        let clock = Clock::manual(START);
        let cache = Cache::without_threads(&options, clock.clone());
        let below = options.log.map(|log| Below {
            writer: Writer::new(log.clone()),
            buffer: Buffer::zeroed(PAGE),
            log,
        });
        Ok(Self {
            local: cache.local(sizes.local),
            cache,
            counters: Counters::default(),
            clock,
            below,
            value: Vec::new(),
            requests: 0,
            refused: 0,
            tiers: Default::default(),
        })
    }

    /// L2, and through it L3.
    pub fn memory(&self) -> &Memory {
        self.cache.memory()
    }

    /// Bytes of memory that L3's writer has beside those that [`Log::bytes`] counts.
    pub fn writer_bytes(&self) -> usize {
        self.below.as_ref().map_or(0, |below| below.writer.bytes())
    }

    /// A GET of a key and, if that is a miss, a SET of a value of so many bytes; returns where the key was.
    pub fn request(&mut self, key: &[u8], size: usize) -> Result<Place, Error> {
        self.requests += 1;
        self.clock.set(START + self.requests * STEP);
        let key = Key { bytes: key, hash: self.memory().hash(key) };
        let (place, bytes) = self.get(key)?;
        if place == Place::Nowhere {
            self.set(key, size)?;
        }
        let tier = &mut self.tiers[place as usize];
        tier.hits += 1;
        tier.bytes += bytes.unwrap_or(size) as u64;
        if matches!(place, Place::Disk | Place::Nowhere) {
            let keys = [(key, Use::Read)];
            self.local.note_arrival(&job(
                self.clock.now(),
                &keys,
                0,
                &self.counters,
                &Release::default(),
            ));
        }
        if let Some(below) = &mut self.below {
            below.write(self.cache.memory())?;
        }
        if self.requests.is_multiple_of(TIDY) {
            self.local.tidy();
        }
        Ok(place)
    }

    /// Looks a key up, and brings it into memory if it is on disk; returns where it was and how long its
    /// value is.
    fn get(&mut self, key: Key<'_>) -> Result<(Place, Option<usize>), Error> {
        let Self { cache, local, counters, clock, .. } = self;
        let release = &Release::default();
        let keys = [(key, Use::Read)];
        let job = job(clock.now(), &keys, 0, counters, release);
        let local_hits = counters.all(|tally| &tally.local_hits);
        let mut found = None;
        let mut run = |tx: &mut Tx<'_>| -> Result<(), Stop> {
            let value = tx.string(key)?;
            found = value.map(|value| (value.len(), is_value_of(key.bytes, value)));
            Ok(())
        };
        let served = local.serve(&job, &mut run);
        let served = served.unwrap_or_else(|| cache.attempt(&job, &mut run));
        let mut place = match (&served, found) {
            (Ok(()), None) => Place::Nowhere,
            (Ok(()), Some(_)) if counters.all(|tally| &tally.local_hits) > local_hits => {
                Place::Local
            }
            (Ok(()), Some(_)) => Place::Memory,
            (Err(Refusal::Client(why)), _) => {
                return Err(io::Error::other(why.to_string()).into());
            }
            (Err(_), _) => Place::Disk,
        };
        if place == Place::Disk {
            found = self.promote(key)?;
            if found.is_none() {
                place = Place::Nowhere;
            }
        }
        match found {
            Some((_, false)) => {
                let key = String::from_utf8_lossy(key.bytes).escape_debug().to_string();
                Err(io::Error::other(format!("the value of \"{key}\" is another key's")).into())
            }
            found => Ok((place, found.map(|(len, _)| len))),
        }
    }

    /// Brings a key from disk into memory, as a flight does, and counts the hit there.
    fn promote(&mut self, key: Key<'_>) -> Result<Option<(usize, bool)>, Error> {
        let Self { cache, below, counters, clock, .. } = self;
        let release = &Release::default();
        let Some(below) = below else { return Ok(None) };
        let (memory, now) = (cache.memory(), clock.now());
        let ticket = memory.ticket(0, key.hash);
        let wanted = Wanted { db: 0, key: key.bytes, hash: key.hash, now };
        let looked = memory.look_below(wanted, &mut below.buffer)?;
        let found = looked.map(|(entry, record)| {
            let value = entry.get().value();
            let found = (value.len(), is_value_of(key.bytes, value));
            memory.land(0, key.hash, ticket, entry, Known::Record(record), now);
            found
        });
        memory.release(key.hash, ticket);
        if found.is_some() {
            let keys = [(key, Use::Read)];
            // Where there was no room for it, it is read and not kept.
            let _ = cache
                .attempt(&job(now, &keys, 0, counters, release), |tx| tx.string(key).map(drop));
        }
        Ok(found)
    }

    fn set(&mut self, key: Key<'_>, size: usize) -> Result<(), Error> {
        let Self { cache, below, counters, clock, value, refused, .. } = self;
        let release = &Release::default();
        let room = entry_size(key.bytes.len(), size, &Meta { access: Some(0), ..Meta::default() });
        if cache.memory().rules().weight == Weight::Bytes && room > cache.memory().rules().limit() {
            *refused += 1;
            return Ok(());
        }
        fill(value, key.bytes, size);
        let keys = [(key, Use::Blind)];
        let job =
            Job { writes: true, strict: true, ..job(clock.now(), &keys, room, counters, release) };
        for _ in 0..TRIES {
            match cache.attempt(&job, |tx| tx.set(key, &[value], Ttl::Clear)) {
                Ok(()) => return Ok(()),
                Err(Refusal::Client(_)) => break,
                Err(_) => {
                    let Some(below) = below else { break };
                    below.make_room(cache.memory())?;
                }
            }
        }
        *refused += 1;
        Ok(())
    }

    /// Writes what waits, and says what has happened so far.
    pub fn report(&mut self) -> Result<Report, Error> {
        let memory = self.cache.memory();
        let (mut tiers, mut flow) = (self.tiers, Flow::default());
        let (entries, held) = self.local.len();
        (tiers[Place::Local as usize].entries, tiers[Place::Local as usize].held) =
            (entries as u64, held as u64);
        tiers[Place::Memory as usize].entries = memory.resident(0) as u64;
        tiers[Place::Memory as usize].held = memory.used() as u64;
        flow.evicted = memory.evicted();
        if let Some(below) = &mut self.below {
            below.writer.step(memory, true)?;
            let (records, bytes) = below.log.live();
            let disk = &mut tiers[Place::Disk as usize];
            (disk.entries, disk.held) = (records, bytes);
            flow.count(&below.log);
            flow.index_bytes = memory.index_bytes() as u64;
        }
        Ok(Report { requests: self.requests, refused: self.refused, tiers, flow })
    }
}

impl Below {
    /// Does what the writer does when it is woken: takes what waits until nothing does.
    fn write(&mut self, memory: &Memory) -> io::Result<()> {
        if self.log.queue.has_enough() {
            while self.writer.step(memory, false)? > 0 {}
        }
        Ok(())
    }

    /// Makes room in the queue.
    fn make_room(&mut self, memory: &Memory) -> io::Result<()> {
        if self.writer.step(memory, false)? == 0 {
            self.writer.step(memory, true)?;
        }
        Ok(())
    }
}

fn job<'a>(
    now: u64,
    keys: &'a [(Key<'a>, Use)],
    room: usize,
    counters: &'a Counters,
    release: &'a Release,
) -> Job<'a> {
    Job { db: 0, now, keys, writes: false, room, strict: false, touch: true, counters, release }
}

/// Makes a value that tells whose it is: its key and a line end, again and again.
fn fill(value: &mut Vec<u8>, key: &[u8], size: usize) {
    value.clear();
    value.extend_from_slice(key);
    value.push(b'\n');
    while value.len() < size {
        let more = value.len().min(size - value.len());
        value.extend_from_within(..more);
    }
    value.truncate(size);
}

/// Whether [`fill`] made a value for this key.
fn is_value_of(key: &[u8], value: &[u8]) -> bool {
    let period = key.len() + 1;
    match value.get(key.len()) {
        None => key.starts_with(value),
        Some(end) => {
            value.starts_with(key)
                && *end == b'\n'
                && value.get(period..).is_some_and(|rest| *rest == value[..rest.len()])
        }
    }
}

fn open_log(setup: &Setup) -> Result<Arc<Log>, Error> {
    let options = log::Options {
        queue: setup.queue,
        // A server's queue is never so short that this differs.
        chunk: (setup.queue / 4 / PAGE * PAGE).max(PAGE),
        segment: setup.segment,
        recover: log::Recover::None,
        seeds: Some(SEEDS),
        disk: Arc::new(Lazy),
        ..log::Options::new(&setup.dir, setup.sizes.disk)
    };
    let log =
        Log::open(&options).map_err(|why| Error::DataDir(setup.dir.clone(), why.to_string()))?;
    Ok(Arc::new(log))
}

/// The system's file system, used gently: files take room as they are written, and the page cache may
/// have them, since nobody measures how long reads take.
struct Lazy;

struct LazyFile(Arc<dyn File>);

impl Disk for Lazy {
    fn open(&self, path: &std::path::Path, _: bool) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(LazyFile(Real.open(path, false)?)))
    }
}

impl File for LazyFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.0.write_at(buf, at)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::shelf::next_random;

    fn setup(dir: &std::path::Path, memory: usize, disk: u64) -> Setup {
        Setup {
            sizes: Sizes { local: memory / 50, memory, disk },
            weight: Weight::Bytes,
            eviction: Eviction::default(),
            queue: 64 << 10,
            segment: None,
            dir: dir.to_owned(),
        }
    }

    /// Requests for keys of which the small numbers are hot, with sizes that depend on the key.
    fn run(setup: &Setup, requests: u64) -> Report {
        let mut replay = Replay::new(setup).expect("opens");
        let mut random = 9;
        for _ in 0..requests {
            random = next_random(random);
            let number = (20_000f64).powf((random >> 11) as f64 / (1u64 << 53) as f64) as u64;
            let key = format!("key:{number}");
            replay.request(key.as_bytes(), (number * 37 % 900) as usize).expect("no failure");
        }
        replay.report().expect("writes")
    }

    #[test]
    fn a_value_tells_whose_it_is() {
        let mut value = Vec::new();
        for size in [0, 1, 2, 3, 4, 5, 100, 1000] {
            fill(&mut value, b"abc", size);
            assert_eq!(value.len(), size);
            assert!(is_value_of(b"abc", &value), "{size}");
            assert!(size < 4 || !is_value_of(b"ab", &value) && !is_value_of(b"abcd", &value));
        }
        value[500] ^= 1;
        assert!(!is_value_of(b"abc", &value));
    }

    #[test]
    fn the_same_requests_give_the_same_figures() {
        let reports = [0; 2].map(|_| {
            let dir = tempfile::tempdir().expect("a directory");
            run(&setup(dir.path(), 1 << 20, 2 << 20), 60_000)
        });
        assert_eq!(reports[0], reports[1]);
        let report = &reports[0];
        assert_eq!(report.tiers.iter().map(|tier| tier.hits).sum::<u64>(), 60_000);
        assert!(report.tiers.iter().all(|tier| tier.hits > 100), "{report:?}");
        assert!(report.flow.reads >= report.tiers[Place::Disk as usize].hits / 2);
    }

    /// A set of keys that a third of the log holds, asked for again and again, while a stream of others passes
    /// through: segments of the set are passed over when their turn comes, so it stays, and nearly nothing
    /// of it is written again.
    #[test]
    fn segments_of_hot_records_are_passed_over() {
        const HOT: u64 = 1_200;
        let dir = tempfile::tempdir().expect("a directory");
        let mut replay = Replay::new(&setup(dir.path(), 1 << 20, 4 << 20)).expect("opens");
        let mut ask = |key: String| replay.request(key.as_bytes(), 1_000).expect("no failure");
        for key in 0..5 * HOT {
            ask(format!("hot:{}", key % HOT));
        }
        let mut late_misses = 0;
        for step in 0..40 * HOT {
            let place = ask(format!("hot:{}", step % HOT));
            late_misses += u64::from(step > 4 * HOT && place == Place::Nowhere);
            // Each of them comes back once, so that all are worth a place.
            ask(format!("new:{}", step / 1_000 * 500 + step % 500));
        }
        let report = replay.report().expect("writes");
        let flow = &report.flow;
        assert!(flow.forgotten > 10_000, "the log went round: {flow:?}");
        let asked = 36 * HOT;
        assert!(late_misses < asked / 50, "{late_misses} of {asked} were missed: {flow:?}");
        assert!(flow.reinserted < HOT, "{flow:?}");
    }

    #[test]
    fn a_disk_makes_misses_fewer() {
        let dir = tempfile::tempdir().expect("a directory");
        let alone = run(&setup(dir.path(), 1 << 20, 0), 60_000);
        let both = run(&setup(dir.path(), 1 << 20, 4 << 20), 60_000);
        assert_eq!(alone.tiers[Place::Disk as usize], Tier::default());
        assert!(both.miss_ratio() < alone.miss_ratio() - 0.02, "{both:?} {alone:?}");
    }

    #[test]
    fn tiny_tiers_lose_nothing_but_hits() {
        let dir = tempfile::tempdir().expect("a directory");
        for (number, memory) in [0, 1, 1 << 10, 64 << 10, 200 << 10].into_iter().enumerate() {
            for disk in [0, log::LEAST] {
                let dir = dir.path().join(format!("{number}-{disk}"));
                let report = run(&setup(&dir, memory, disk), 5_000);
                assert_eq!(report.tiers.iter().map(|tier| tier.hits).sum::<u64>(), 5_000);
            }
        }
    }

    #[test]
    fn capacity_may_count_entries() {
        let dir = tempfile::tempdir().expect("a directory");
        let setup = Setup { weight: Weight::Entries, ..setup(dir.path(), 10, 0) };
        let report = run(&setup, 5_000);
        assert_eq!(report.tiers[Place::Memory as usize].entries, 10);
    }

    #[test]
    fn every_policy_is_replayed() {
        for eviction in Eviction::ALL {
            let dir = tempfile::tempdir().expect("a directory");
            let setup = Setup { eviction, ..setup(dir.path(), 600 << 10, 1 << 20) };
            let report = run(&setup, 20_000);
            assert_eq!(report.tiers.iter().map(|tier| tier.hits).sum::<u64>(), 20_000);
        }
    }
}
