//! Memory and disk together, against a plain map.

use std::{collections::HashMap, path::Path, sync::atomic::Ordering::Relaxed};

use super::*;
use crate::{
    cache::tx::Ttl,
    tier::{
        disk::{faulty::Faults as DiskFaults, faulty::Faulty, real::Real},
        log::{self, Log},
    },
};

const KEYS: u64 = 600;

/// A cache of little memory over a small disk.
pub(super) struct Tiers {
    pub(super) cache: Cache,
    pub(super) clock: Clock,
    counters: Counters,
}

/// A log of four mebibytes on a disk with faults.
pub(super) fn small_log(dir: &Path, disk: &Arc<DiskFaults>) -> log::Options {
    log::Options {
        queue: 64 << 10,
        disk: Arc::new(Faulty::new(Real, disk.clone())),
        ..log::Options::new(dir, 4 << 20)
    }
}

impl Tiers {
    fn open(dir: &Path, eviction: Eviction, clock: &Clock) -> Self {
        Self::with_faults(dir, eviction, clock, &Arc::default())
    }

    pub(super) fn with_faults(
        dir: &Path,
        eviction: Eviction,
        clock: &Clock,
        disk: &Arc<DiskFaults>,
    ) -> Self {
        Self::with_log(&small_log(dir, disk), 700 << 10, eviction, clock)
    }

    /// So many bytes of memory over this log.
    pub(super) fn with_log(
        log: &log::Options,
        limit: usize,
        eviction: Eviction,
        clock: &Clock,
    ) -> Self {
        let log = Some(Arc::new(Log::open(log).expect("the log opens")));
        let options = Options { limit, eviction, databases: 4, log, ..Options::default() };
        let runtime = Some(Handle::current());
        let cache = Cache::new(&options, Policies::default(), clock.clone(), runtime);
        // On a busy machine a read isn't to become a miss.
        cache.set_disk_limits(Duration::from_secs(600), 0);
        Self { cache, clock: clock.clone(), counters: Counters::default() }
    }

    pub(super) fn log(&self) -> &Log {
        self.cache.memory().log().expect("there is one")
    }

    pub(super) fn key<'a>(&self, key: &'a str) -> Key<'a> {
        Key { bytes: key.as_bytes(), hash: self.cache.memory().hash(key.as_bytes()) }
    }

    async fn run<T>(
        &self,
        db: usize,
        key: &str,
        use_: Use,
        mut command: impl FnMut(&mut Tx<'_>, Key<'_>) -> Result<T, Stop>,
    ) -> Result<T, String> {
        let key = self.key(key);
        self.run_many(db, &[(key, use_)], |tx| command(tx, key)).await
    }

    pub(super) async fn run_many<T>(
        &self,
        db: usize,
        keys: &[(Key<'_>, Use)],
        mut command: impl FnMut(&mut Tx<'_>) -> Result<T, Stop>,
    ) -> Result<T, String> {
        let writes = keys.iter().any(|(_, use_)| *use_ != Use::Read);
        let job = Job {
            db,
            now: self.clock.now(),
            keys,
            writes,
            strict: writes,
            room: if writes { 5_000 } else { 0 },
            touch: true,
            counters: &self.counters,
            release: &Release::default(),
        };
        let mut result = None;
        let mut run = |tx: &mut Tx<'_>| command(tx).map(|value| result = Some(value));
        carry_out(&self.cache, &job, &mut run).await?;
        Ok(result.expect("the command ran"))
    }

    pub(super) async fn get(&self, db: usize, key: &str) -> Result<Option<Vec<u8>>, String> {
        self.run(db, key, Use::Read, |tx, key| Ok(tx.string(key)?.map(<[u8]>::to_vec))).await
    }

    pub(super) async fn set(
        &self,
        db: usize,
        key: &str,
        value: &[u8],
        ttl: Ttl,
    ) -> Result<(), String> {
        self.run(db, key, Use::Blind, |tx, key| tx.set(key, &[value], ttl)).await
    }

    pub(super) async fn append(&self, db: usize, key: &str, value: &[u8]) -> Result<(), String> {
        self.run(db, key, Use::Write, |tx, key| {
            let old = tx.string(key)?.unwrap_or_default().to_vec();
            tx.set(key, &[&old, value], Ttl::Keep)
        })
        .await
    }

    pub(super) async fn expire(&self, db: usize, key: &str, deadline: u64) -> Result<bool, String> {
        self.run(db, key, Use::Write, |tx, key| tx.set_deadline(key, deadline)).await
    }

    pub(super) async fn delete(&self, db: usize, key: &str) -> Result<bool, String> {
        self.run(db, key, Use::Write, |tx, key| tx.remove(key)).await
    }
}

/// What a plain map says: value and deadline by database and key.
type Model = HashMap<(usize, u64), (Vec<u8>, u64)>;

struct Run {
    random: u64,
    eviction: Eviction,
    misses: u64,
    hits: u64,
}

impl Run {
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// One operation on both, and what it must agree on.
    async fn step(&mut self, tiers: &Tiers, model: &mut Model, number: u64) {
        let (random, kind) = (self.next(), self.next() % 100);
        let (db, key) = ((random % 16 / 15) as usize, random >> 8);
        // Some keys are asked for more often.
        let key = if random & 128 != 0 { key % KEYS } else { key % (KEYS / 20) };
        let name = format!("key:{key}");
        let now = tiers.clock.now();
        model.retain(|at, (_, deadline)| *at != (db, key) || *deadline == 0 || *deadline > now);
        let known = model.get(&(db, key)).cloned();
        match kind {
            0..55 => {
                let found = tiers.get(db, &name).await.expect("reads don't fail");
                self.compare(number, &name, found.as_deref(), known.as_ref());
                if found.is_none() {
                    model.remove(&(db, key));
                }
            }
            55..75 => {
                // Longer than a segment; that has no place on disk where nothing may be forgotten.
                let long = if self.eviction == Eviction::Noeviction { 7_000 } else { 70_000 };
                let len = if random & 0xf00_0000 == 0 { long } else { random % 3_000 };
                let value = value(number, len as usize);
                let deadline = if random & 1 == 0 { 0 } else { now + 1 + random % 5_000 };
                let ttl = if deadline == 0 { Ttl::Clear } else { Ttl::At(deadline) };
                tiers.set(db, &name, &value, ttl).await.expect("there is room");
                model.insert((db, key), (value, deadline));
            }
            75..80 => {
                // What it appends to is either all there or not there.
                tiers.append(db, &name, b"+").await.expect("there is room");
                let found = tiers.get(db, &name).await.expect("reads don't fail");
                let mut wanted = known.clone().unwrap_or_default();
                wanted.0.push(b'+');
                if found.as_deref() == Some(b"+") {
                    self.misses += u64::from(known.is_some());
                    model.insert((db, key), (b"+".to_vec(), 0));
                } else {
                    self.compare(number, &name, found.as_deref(), Some(&wanted));
                    model.remove(&(db, key));
                    if let Some(found) = found {
                        model.insert((db, key), (found, wanted.1));
                    }
                }
            }
            80..87 => {
                let deadline = if random & 1 == 0 { 0 } else { now + 1 + random % 5_000 };
                let found = tiers.expire(db, &name, deadline).await.expect("no failure");
                assert!(!found || known.is_some(), "operation {number}: {name} came back");
                match known {
                    Some((value, _)) if found => drop(model.insert((db, key), (value, deadline))),
                    _ => drop(model.remove(&(db, key))),
                }
            }
            87..97 => {
                let found = tiers.delete(db, &name).await.expect("no failure");
                assert!(!found || known.is_some(), "operation {number}: {name} came back");
                model.remove(&(db, key));
            }
            97..99 => tiers.clock.set(now + random % 300),
            _ if random & 0xff00 == 0 => {
                drop(tiers.cache.memory().flush(db..db + 1));
                model.retain(|(other, _), _| *other != db);
            }
            _ if random & 0xff00 == 0x100 => {
                tiers.cache.memory().swap(0, 1);
                let old = std::mem::take(model);
                model.extend(old.into_iter().map(|((db, key), known)| ((db ^ 1, key), known)));
            }
            _ => {
                for stripe in 0..tiers.cache.memory().stripes() {
                    tiers.cache.memory().expire(stripe, 16, now);
                }
            }
        }
    }

    fn compare(
        &mut self,
        number: u64,
        name: &str,
        found: Option<&[u8]>,
        known: Option<&(Vec<u8>, u64)>,
    ) {
        let seed = std::env::var("LARDER_SEED").unwrap_or_default();
        match (found, known) {
            (Some(found), Some((known, _))) => {
                assert!(found == known, "operation {number}: {name} is stale; seed {seed}");
                self.hits += 1;
            }
            (Some(_), None) => panic!("operation {number}: {name} came back; seed {seed}"),
            (None, Some(_)) => {
                assert!(
                    self.eviction != Eviction::Noeviction,
                    "operation {number}: {name} was forgotten; seed {seed}"
                );
                self.misses += 1;
            }
            (None, None) => {}
        }
    }
}

pub(super) fn value(number: u64, len: usize) -> Vec<u8> {
    let mut value = number.to_le_bytes().to_vec();
    value.resize(len.max(8), number as u8);
    value
}

pub(super) fn seed() -> u64 {
    std::env::var("LARDER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125)
}

/// SEMANTICS 1, 3, 6, 7, 8: whatever moves between memory and disk, nothing older than the last
/// acknowledged write is seen, and nothing deleted.
async fn agree(eviction: Eviction, operations: u64, seed: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Clock::manual(NOW);
    let mut tiers = Tiers::open(dir.path(), eviction, &clock);
    let mut model = Model::new();
    let mut run = Run { random: seed | 1, eviction, misses: 0, hits: 0 };
    let (mut disk_hits, mut recovered) = (0, 0);
    for number in 0..operations {
        run.step(&tiers, &mut model, number).await;
        if run.next().is_multiple_of(20_000) {
            // Memory is gone, as after kill -9; now and then the end is a clean one.
            let counters = &tiers.log().counters;
            disk_hits += counters.hits.load(Relaxed);
            assert_eq!(counters.bad_records.load(Relaxed), 0, "{counters:?}");
            let is_clean = run.next() & 1 == 0;
            if is_clean {
                tiers.cache.close(None).expect("closes");
            }
            drop(tiers);
            tiers = open_again(dir.path(), eviction, &clock).await;
            recovered += tiers.log().counters.recovered.load(Relaxed);
            if eviction == Eviction::Noeviction {
                // What was only in memory is lost with it: start anew with what is left.
                forget_lost(&tiers, &mut model).await;
            }
        }
    }
    let counters = &tiers.log().counters;
    assert!(run.hits > operations / 10, "{} hits", run.hits);
    disk_hits += counters.hits.load(Relaxed);
    assert!(disk_hits > operations / 100, "{disk_hits} {counters:?}");
    assert!(recovered > operations / 1_000, "{recovered} records came back");
    assert_eq!(counters.bad_records.load(Relaxed), 0, "{counters:?}");
}

async fn open_again(dir: &Path, eviction: Eviction, clock: &Clock) -> Tiers {
    is_free(dir).await;
    Tiers::open(dir, eviction, clock)
}

/// The files are free once the threads of the last cache have ended.
pub(super) async fn is_free(dir: &Path) {
    eventually(|| {
        let file = std::fs::File::open(dir.join("state")).expect("the state is there");
        file.try_lock().is_ok()
    })
    .await;
}

async fn forget_lost(tiers: &Tiers, model: &mut Model) {
    let all: Vec<_> = model.iter().map(|(at, known)| (*at, known.clone())).collect();
    for ((db, key), (value, _)) in all {
        let found = tiers.get(db, &format!("key:{key}")).await.expect("reads don't fail");
        assert!(found.as_ref().is_none_or(|found| *found == value), "key:{key} is stale");
        if found.is_none() {
            model.remove(&(db, key));
        }
    }
}

#[tokio::test]
async fn memory_and_disk_do_what_a_map_does() {
    agree(Eviction::AllkeysS3fifo, 800_000, seed()).await;
}

#[tokio::test]
async fn nothing_is_forgotten_without_leave() {
    agree(Eviction::Noeviction, 200_000, seed()).await;
}

/// A cache whose keys are on disk, but for a few; the faults of its disk.
pub(super) async fn filled(keys: u64) -> (tempfile::TempDir, Tiers, Arc<DiskFaults>) {
    let dir = tempfile::tempdir().expect("a directory");
    let faults = Arc::new(DiskFaults::default());
    let clock = Clock::manual(NOW);
    let tiers = Tiers::with_faults(dir.path(), Eviction::AllkeysS3fifo, &clock, &faults);
    for key in 0..keys {
        tiers.set(0, &format!("key:{key}"), &value(key, 1_000), Ttl::Clear).await.expect("room");
    }
    // Until all of it is written.
    eventually(|| tiers.log().queue.len().0 == 0).await;
    (dir, tiers, faults)
}

pub(super) async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never holds");
}

/// Asks for all keys; how many are there, each with its own value.
async fn count(tiers: &Tiers, keys: u64) -> u64 {
    let mut found = 0;
    for key in 0..keys {
        if let Some(seen) = tiers.get(0, &format!("key:{key}")).await.expect("no failure") {
            assert_eq!(seen, value(key, 1_000), "key:{key}");
            found += 1;
        }
    }
    found
}

/// Reads that fail are misses for a read and an error for a write that needs the value (SEMANTICS 3), and
/// nothing is lost: when the disk works again, all is there.
#[tokio::test]
async fn rule_3_a_disk_that_fails_makes_misses_and_loses_nothing() {
    const KEYS: u64 = 1_500;
    let (_dir, tiers, faults) = filled(KEYS).await;
    faults.fail_reads.store(1, Relaxed);
    let found = count(&tiers, KEYS).await;
    assert!(found < KEYS / 2, "{found} are in memory");
    assert!(tiers.log().counters.read_errors.load(Relaxed) >= KEYS - found);
    let mut refused = 0;
    for key in 0..KEYS {
        let key = format!("key:{key}");
        if let Err(text) = tiers.append(0, &key, b"!").await {
            assert!(text.starts_with("TRYAGAIN"), "{text}");
            refused += 1;
        } else {
            tiers.delete(0, &key).await.expect("it is in memory");
        }
    }
    faults.fail_reads.store(0, Relaxed);
    assert_eq!(count(&tiers, KEYS).await, refused);
}

/// A disk that takes too long is a miss for a read, after the limit; the value comes later.
#[tokio::test]
async fn rule_3_a_slow_disk_is_a_miss_for_a_read_only() {
    const KEYS: u64 = 1_200;
    let (_dir, tiers, faults) = filled(KEYS).await;
    tiers.cache.set_disk_limits(Duration::from_millis(5), 0);
    faults.read_delay.store(40_000, Relaxed);
    let cold = cold_keys(&tiers, KEYS);
    assert_eq!(tiers.get(0, &cold[0]).await, Ok(None));
    assert!(tiers.log().counters.timeouts.load(Relaxed) > 0);
    // A write waits for it.
    tiers.append(0, &cold[1], b"!").await.expect("it waits");
    let number = cold[1][4..].parse().expect("a number");
    let wanted = [value(number, 1_000), b"!".to_vec()].concat();
    assert_eq!(tiers.get(0, &cold[1]).await, Ok(Some(wanted)));
    faults.read_delay.store(0, Relaxed);
    tiers.cache.set_disk_limits(Duration::from_secs(5), 0);
    let number = cold[0][4..].parse().expect("a number");
    assert_eq!(tiers.get(0, &cold[0]).await, Ok(Some(value(number, 1_000))));
}

/// Keys that are only on disk.
pub(super) fn cold_keys(tiers: &Tiers, keys: u64) -> Vec<String> {
    let memory = tiers.cache.memory();
    let is_cold = |key: &String| {
        let hash = memory.hash(key.as_bytes());
        let core = memory.lock(memory.stripe_of(hash));
        core.shelf(0).is_some_and(|shelf| shelf.find(hash, key.as_bytes()).is_none())
    };
    let keys = (0..keys).map(|key| format!("key:{key}"));
    keys.filter(is_cold).collect()
}

/// Writes that fail, or find no room, are tried again and then given up: service goes on with what memory
/// holds, and recovers when the disk does.
#[tokio::test]
async fn a_disk_that_takes_no_writes_is_done_without() {
    const KEYS: u64 = 3_000;
    for is_full in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let faults = Arc::new(DiskFaults::default());
        let clock = Clock::manual(NOW);
        let tiers = Tiers::with_faults(dir.path(), Eviction::AllkeysS3fifo, &clock, &faults);
        let fault = if is_full { &faults.full } else { &faults.fail_writes };
        fault.store(1, Relaxed);
        for key in 0..KEYS {
            let key = format!("key:{key}");
            tiers.set(0, &key, &value(1, 1_000), Ttl::Clear).await.expect("service goes on");
        }
        // Once it is known that the disk takes none, nothing waits for it.
        eventually(|| tiers.log().ails()).await;
        assert!(tiers.log().counters.dropped.load(Relaxed) > 0);
        fault.store(0, Relaxed);
        eventually(|| !tiers.log().ails()).await;
        for key in 0..KEYS {
            let key = format!("key:{key}");
            tiers.set(0, &key, &value(2, 1_000), Ttl::Clear).await.expect("service goes on");
        }
        eventually(|| tiers.log().queue.len().0 == 0).await;
        let mut found = 0;
        for key in 0..KEYS {
            if let Some(seen) = tiers.get(0, &format!("key:{key}")).await.expect("no failure") {
                assert_eq!(seen, value(2, 1_000));
                found += 1;
            }
        }
        assert!(found > KEYS / 2, "{found}");
    }
}

/// Writes that the disk acknowledges and forgets leave older bytes of the same place: their generation
/// tells them from what should be there.
#[tokio::test]
async fn stale_bytes_of_a_reused_segment_never_pass() {
    const KEYS: u64 = 1_000;
    let (_dir, tiers, faults) = filled(KEYS).await;
    // Round the log, so that every place held something; then again, forgetting all of it.
    for (round, lose) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
        faults.lose_writes.store(lose, Relaxed);
        for key in 0..4 * KEYS {
            if key.is_multiple_of(16) {
                // What finds no room in the queue would be let go.
                tiers.log().queue.rouse();
                eventually(|| tiers.log().queue.len().0 == 0).await;
            }
            let key = format!("key:{key}");
            tiers.set(0, &key, &value(round, 1_000), Ttl::Clear).await.expect("room");
        }
    }
    eventually(|| tiers.log().queue.len().0 == 0).await;
    for key in 0..4 * KEYS {
        let found = tiers.get(0, &format!("key:{key}")).await.expect("no failure");
        assert!(found.is_none_or(|found| found == value(4, 1_000)), "key:{key} is stale");
    }
    let counters = &tiers.log().counters;
    assert!(counters.bad_records.load(Relaxed) > 0, "{counters:?}");
}

/// Flipped bits: no wrong value, each damaged record counted at its next read.
#[tokio::test]
async fn flipped_bits_are_misses() {
    use std::os::unix::fs::FileExt;
    const KEYS: u64 = 2_000;
    let (dir, tiers, _) = filled(KEYS).await;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(dir.path().join("log"));
    let file = file.expect("the log's file");
    let mut random = seed() | 1;
    for _ in 0..2_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = random % (4 << 20);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("reads");
        byte[0] ^= 1 << (random >> 40 & 7);
        file.write_all_at(&byte, at).expect("writes");
    }
    file.sync_all().expect("syncs");
    let found = count(&tiers, KEYS).await;
    let bad = tiers.log().counters.bad_records.load(Relaxed);
    assert!(bad > 100 && found + bad >= KEYS, "{found} found, {bad} bad");
    // A bad record is gone; it isn't counted again.
    assert_eq!(count(&tiers, KEYS).await, found);
    assert_eq!(tiers.log().counters.bad_records.load(Relaxed), bad);
}
