//! The log with its index and its writer, without threads, on a disk with faults: errors and ends at
//! moments that a running cache meets only by chance.

use std::{fs, path::Path, sync::atomic::Ordering::Relaxed, thread, time::Instant};

use super::{
    super::{
        demote::Known,
        disk::{
            PAGE,
            buffer::Buffer,
            faulty::{Faults, Faulty},
            real::Real,
        },
        entry::{EntryRef, Meta},
        eviction::Eviction,
        lookup::Wanted,
        memory::{Memory, Options as MemoryOptions},
    },
    state::Kind,
    writer::Writer,
    *,
};

const NOW: u64 = 4_000_000_000_000;
const SEGMENT: usize = 64 << 10;
/// Records of one page that a segment has room for.
const PAGES: usize = SEGMENT / PAGE - 1;

/// A log of 16 segments, whose records belong to no entry in memory.
struct Bench {
    faults: Arc<Faults>,
    memory: Memory,
    writer: Writer,
    buffer: Buffer,
}

fn value(key: &str, version: u8, record: usize) -> Vec<u8> {
    vec![version; record - record::size(key.len(), 0, &Meta::default())]
}

impl Bench {
    fn open(dir: &Path, eviction: Eviction) -> Self {
        let faults = Arc::new(Faults::default());
        let options = Options {
            queue: 1 << 20,
            seeds: Some([1, 2, 3, 4]),
            disk: Arc::new(Faulty::new(Real, faults.clone())),
            ..Options::new(dir, 1 << 20)
        };
        let log = Arc::new(Log::open(&options).expect("the log opens"));
        assert_eq!(log.shape(), Shape { segment_bytes: SEGMENT, segments: 16 });
        let memory = Memory::new(&MemoryOptions {
            limit: usize::MAX / 2,
            eviction,
            stripe_bits: Some(4),
            log: Some(log.clone()),
            ..MemoryOptions::default()
        });
        log.recover(&memory);
        Self { faults, memory, writer: Writer::new(log), buffer: Buffer::zeroed(PAGE) }
    }

    /// The process ends without a word, and another one has its files.
    fn killed(self, dir: &Path, eviction: Eviction) -> Self {
        drop(self);
        Self::open(dir, eviction)
    }

    fn log(&self) -> &Log {
        self.memory.log().expect("there is one")
    }

    fn kind(&self, segment: usize) -> Kind {
        self.log().state().segment(segment).1
    }

    /// Valid records of a segment.
    fn valid(&self, segment: usize) -> usize {
        self.log().state().valid_in(segment).count()
    }

    /// The key's old record ends, and another one waits to be written.
    fn put(&self, key: &str, value: &[u8]) {
        self.delete(key);
        let entry = EntryRef::new(key.as_bytes(), &[value], &Meta::default());
        assert!(self.memory.enqueue(0, entry, false).is_ok(), "the queue has room");
    }

    /// Writes records of a page each.
    fn write_pages(&mut self, keys: impl Iterator<Item = String>, version: u8) {
        for key in keys {
            self.put(&key, &value(&key, version, PAGE));
            self.writer.step(&self.memory, true).expect("writes");
        }
    }

    fn delete(&self, key: &str) {
        let hash = self.memory.hash(key.as_bytes());
        let mut core = self.memory.lock(self.memory.stripe_of(hash));
        self.memory.supersede(&mut core, 0, hash, None, || Known::Nothing);
    }

    fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        let hash = self.memory.hash(key.as_bytes());
        let wanted = Wanted { db: 0, key: key.as_bytes(), hash, now: NOW };
        let found = self.memory.look_below(wanted, &mut self.buffer)?;
        Ok(found.map(|(entry, _)| entry.get().value().to_vec()))
    }

    /// Which of these keys are there; they are of a page and of this version.
    fn found(&mut self, keys: impl Iterator<Item = String>, version: u8) -> Vec<String> {
        let mut found = Vec::new();
        for key in keys {
            if let Some(seen) = self.get(&key).expect("readable") {
                assert!(seen == value(&key, version, PAGE), "{key} is wrong");
                found.push(key);
            }
        }
        found
    }

    fn step(&mut self) -> io::Result<usize> {
        self.writer.step(&self.memory, true)
    }
}

fn names(what: &str, count: usize) -> impl Iterator<Item = String> + use<> {
    let what = what.to_owned();
    (0..count).map(move |number| format!("{what}:{number}"))
}

/// Waits for another thread without a pause.
fn until(mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed().as_secs() < 60, "it never holds");
        thread::yield_now();
    }
}

/// A record of three segments fails in its second part, again and again: meanwhile the copy in the queue is
/// read; then it is let go, and nothing else with it.
#[test]
fn a_long_record_that_fails_half_way_is_nothing() {
    const LEN: usize = 150 << 10;
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::open(dir.path(), Eviction::AllkeysS3fifo);
    let before = || names("before", 2 * PAGES + 3);
    bench.write_pages(before(), 1);
    bench.put("long", &[7; LEN]);
    let mut attempts = 0;
    loop {
        assert_eq!(bench.get("long").expect("readable"), Some(vec![7; LEN]), "the queue has it");
        // Before its first attempt the segment before it is ended.
        let others = if attempts == 0 { 1 } else { 0 };
        bench.faults.fail_writes.store(bench.faults.writes() + others + 2, Relaxed);
        attempts += 1;
        assert!(attempts < 10, "it is given up some day");
        if bench.step().is_ok() {
            break;
        }
    }
    bench.faults.fail_writes.store(0, Relaxed);
    assert_eq!(attempts, 3);
    assert_eq!(bench.get("long").expect("readable"), None);
    assert_eq!(bench.log().queue.len(), (0, 0));
    assert_eq!(bench.found(before(), 1).len(), 2 * PAGES + 3);
    // What comes after it, long or not, is written and lasts.
    bench.write_pages(names("after", PAGES), 2);
    bench.put("longer", &[8; LEN + 1]);
    bench.step().expect("writes");
    for _ in 0..2 {
        assert_eq!(bench.get("long").expect("readable"), None);
        assert_eq!(bench.get("longer").expect("readable"), Some(vec![8; LEN + 1]));
        assert_eq!(bench.found(before(), 1).len(), 2 * PAGES + 3);
        assert_eq!(bench.found(names("after", PAGES), 2).len(), PAGES);
        assert_eq!(bench.log().counters.bad_records.load(Relaxed), 0);
        bench = bench.killed(dir.path(), Eviction::AllkeysS3fifo);
    }
}

/// One that ends in the middle of its write is nothing at the next start, and its segments are free.
#[test]
fn a_long_record_that_was_being_written_at_the_end_is_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::open(dir.path(), Eviction::AllkeysS3fifo);
    bench.write_pages(names("before", PAGES), 1);
    bench.put("long", &[7; 150 << 10]);
    bench.faults.fail_writes.store(bench.faults.writes() + 3, Relaxed);
    // As much as this reaches the disk when the process dies in the second part.
    let copy = tempfile::tempdir().expect("a directory");
    bench.faults.hold_writes_after(2);
    thread::scope(|scope| {
        let (writer, memory) = (&mut bench.writer, &bench.memory);
        let writes = bench.faults.writes();
        let writing = scope.spawn(|| writer.step(memory, true));
        until(|| bench.faults.writes() == writes + 3);
        copy_log(dir.path(), copy.path());
        bench.faults.hold_writes(false);
        assert!(writing.join().expect("no panic").is_err());
    });
    let mut bench = Bench::open(copy.path(), Eviction::AllkeysS3fifo);
    assert_eq!(bench.get("long").expect("readable"), None);
    assert_eq!(bench.found(names("before", PAGES), 1).len(), PAGES);
    bench.write_pages(names("after", 4 * PAGES), 2);
    assert_eq!(bench.found(names("after", 4 * PAGES), 2).len(), 4 * PAGES);
    assert_eq!(bench.found(names("before", PAGES), 1).len(), PAGES);
    assert_eq!(bench.log().counters.bad_records.load(Relaxed), 0);
}

/// The files as a killed process leaves them: what is mapped counts as it is now.
fn copy_log(from: &Path, to: &Path) {
    for file in ["log", "state"] {
        fs::copy(from.join(file), to.join(file)).expect("copies");
    }
}

/// A log of which nothing may be forgotten, whose next segment has six records that have to be written
/// again before more is written; their keys, in the order of their places.
fn about_to_reclaim(dir: &Path) -> (Bench, Vec<String>) {
    let mut bench = Bench::open(dir, Eviction::Noeviction);
    // All segments but one.
    bench.write_pages(names("key", 15 * PAGES), 1);
    assert_eq!((bench.valid(0), bench.valid(15)), (PAGES, 0));
    let oldest: Vec<String> = names("key", PAGES).collect();
    // The fourth is in another stripe than those before it.
    let stripe = |key: &String| bench.memory.stripe_of(bench.memory.hash(key.as_bytes()));
    let pivot = PAGES - 3;
    let others: Vec<usize> =
        (0..pivot).filter(|at| stripe(&oldest[*at]) != stripe(&oldest[pivot])).take(3).collect();
    let stays = |at: usize| others.contains(&at) || at >= pivot;
    let left: Vec<String> =
        (0..PAGES).filter(|at| stays(*at)).map(|at| oldest[at].clone()).collect();
    (0..PAGES).filter(|at| !stays(*at)).for_each(|at| bench.delete(&oldest[at]));
    assert_eq!((bench.valid(0), left.len()), (6, 6));
    (bench, left)
}

/// EIO while a segment is reclaimed: what can't be read is lost and counted, and nothing else; the segment
/// is emptied and serves again.
#[test]
fn errors_of_reads_while_a_segment_is_reclaimed_lose_what_they_hit() {
    // Which read fails, counted from the table on; `None`: all do.
    for (failing, lost) in [(Some(0), vec![]), (Some(3), vec![2]), (None, vec![0, 1, 2, 3, 4, 5])] {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut bench, left) = about_to_reclaim(dir.path());
        bench.put("new", &value("new", 1, PAGE));
        // One of so many fails: so many that only one does.
        bench.found(names("key", 15 * PAGES), 1);
        let reads = bench.faults.reads();
        bench.faults.fail_reads.store(failing.map_or(1, |read| reads + read + 1), Relaxed);
        bench.step().expect("reclaim goes on");
        bench.faults.fail_reads.store(0, Relaxed);
        assert_eq!((bench.kind(0), bench.valid(0)), (Kind::Empty, 0), "{failing:?}");
        let found = bench.found(left.iter().cloned(), 1);
        let wanted = (0..6).filter(|at| !lost.contains(at)).map(|at| left[at].clone());
        assert_eq!(found, wanted.collect::<Vec<_>>(), "{failing:?}");
        let counters = &bench.log().counters;
        assert_eq!(counters.reinserted.load(Relaxed), found.len() as u64, "{failing:?}");
        assert!(counters.read_errors.load(Relaxed) >= u64::from(failing != Some(0)), "{failing:?}");
        assert_eq!(bench.memory.evicted(), lost.len() as u64, "{failing:?}: they are counted");
        assert!(failing.is_some() || counters.forgotten.load(Relaxed) == 6, "{counters:?}");
        // The segment is written again, with other records of the same length.
        let all = || names("key", 15 * PAGES).filter(|key| !left.contains(key));
        all().skip(PAGES).take(3 * PAGES).for_each(|key| bench.delete(&key));
        bench.write_pages(names("newer", 2 * PAGES), 2);
        assert_ne!(bench.kind(0), Kind::Empty);
        for _ in 0..2 {
            assert_eq!(bench.found(left.iter().cloned(), 1), found, "{failing:?}");
            assert_eq!(bench.found(names("newer", 2 * PAGES), 2).len(), 2 * PAGES, "{failing:?}");
            assert_eq!(bench.log().counters.bad_records.load(Relaxed), 0, "{failing:?}");
            bench = bench.killed(dir.path(), Eviction::Noeviction);
        }
    }
}

/// The process dies when three of six records that are written again count at their new places and the
/// others still at their old ones; returns the files, and the six keys.
fn killed_while_records_move() -> (tempfile::TempDir, Vec<String>) {
    let [dir, copy] = [0; 2].map(|_| tempfile::tempdir().expect("a directory"));
    let (mut bench, left) = about_to_reclaim(dir.path());
    let stripe_of = |key: &str| bench.memory.stripe_of(bench.memory.hash(key.as_bytes()));
    let pivot = stripe_of(&left[3]);
    let new = names("new", 100).find(|key| stripe_of(key) != pivot).expect("there is one");
    bench.put(&new, &value(&new, 1, PAGE));
    let writes = bench.faults.writes();
    // The table of the segment before; then those six.
    bench.faults.hold_writes_after(1);
    let state = bench.memory.log().expect("a log").clone();
    let valid = || state.state().valid_in(15).count();
    thread::scope(|scope| {
        let (writer, memory) = (&mut bench.writer, &bench.memory);
        let writing = scope.spawn(|| writer.step(memory, true));
        until(|| bench.faults.writes() == writes + 2);
        let held = memory.lock(pivot);
        bench.faults.hold_writes(false);
        until(|| valid() == 3);
        copy_log(dir.path(), copy.path());
        drop(held);
        writing.join().expect("no panic").expect("writes");
    });
    (copy, left)
}

/// What survives a segment is whole, wherever the end came while it moved.
#[test]
fn a_kill_while_records_move_loses_none() {
    let (dir, left) = killed_while_records_move();
    let mut bench = Bench::open(dir.path(), Eviction::Noeviction);
    assert_eq!((bench.valid(0), bench.valid(15)), (3, 3));
    assert_eq!(bench.found(left.iter().cloned(), 1), left);
    bench.write_pages(names("newer", 1), 2);
    assert_eq!((bench.kind(0), bench.valid(0)), (Kind::Empty, 0));
    for _ in 0..2 {
        assert_eq!(bench.found(left.iter().cloned(), 1), left);
        assert_eq!(bench.found(names("newer", 1), 2).len(), 1);
        bench = bench.killed(dir.path(), Eviction::Noeviction);
    }
}

/// A copy that didn't count yet at the end isn't written over in the same generation: the disk may forget the
/// write.
#[test]
fn stale_copies_of_a_reclaim_that_was_killed_never_pass() {
    let (dir, left) = killed_while_records_move();
    let mut bench = Bench::open(dir.path(), Eviction::Noeviction);
    left[3..].iter().for_each(|key| bench.delete(key));
    bench.put(&left[3], &value(&left[3], 2, PAGE));
    bench.faults.lose_writes.store(1, Relaxed);
    bench.step().expect("it looks like that");
    bench.faults.lose_writes.store(0, Relaxed);
    assert!(bench.get(&left[3]).expect("readable").is_none(), "v1 never comes back");
    assert_eq!(bench.log().counters.bad_records.load(Relaxed), 1);
}

/// Two keys whose records the index can't tell apart.
fn alike(memory: &Memory) -> [String; 2] {
    let bits = memory.rules().stripe_bits + 25;
    let mut seen = std::collections::HashMap::new();
    for key in names("alike", 1 << 20) {
        let known = memory.hash(key.as_bytes()) >> (64 - bits);
        if let Some(other) = seen.insert(known, key.clone()) {
            return [other, key];
        }
    }
    unreachable!("among a million keys there are many such pairs");
}

/// A record is read while it waits to be written, and written before its entry comes back to memory: then it
/// doesn't, and neither its record nor that of a key which looks like it is lost.
#[test]
fn a_record_that_moves_while_it_is_fetched_takes_no_other_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::open(dir.path(), Eviction::Noeviction);
    let [one, other] = alike(&bench.memory);
    bench.write_pages([other.clone()].into_iter(), 1);
    let hash = bench.memory.hash(one.as_bytes());
    let entry = EntryRef::new(one.as_bytes(), &[&value(&one, 1, PAGE)], &Meta::default());
    assert!(bench.memory.enqueue(0, entry, false).is_ok(), "the queue has room");
    let ticket = bench.memory.ticket(0, hash);
    let wanted = Wanted { db: 0, key: one.as_bytes(), hash, now: NOW };
    let found = bench.memory.look_below(wanted, &mut bench.buffer).expect("readable");
    let (entry, record) = found.expect("it waits");
    bench.step().expect("writes");
    assert!(!bench.memory.land(0, hash, ticket, entry, Known::Record(record), NOW));
    bench.memory.release(hash, ticket);
    assert_eq!(bench.found([one.clone(), other.clone()].into_iter(), 1), [one, other]);
}

/// A start goes on behind what was written last, so restarts use nothing up.
#[test]
fn a_restart_goes_on_in_its_segment() {
    let dir = tempfile::tempdir().expect("a directory");
    for number in 0..PAGES {
        let mut bench = Bench::open(dir.path(), Eviction::AllkeysS3fifo);
        bench.write_pages([format!("key:{number}")].into_iter(), 1);
        assert_eq!(bench.found(names("key", PAGES), 1).len(), number + 1);
        if number % 2 == 0 {
            bench.writer.close(&bench.memory).expect("closes");
        }
    }
    let mut bench = Bench::open(dir.path(), Eviction::AllkeysS3fifo);
    assert_eq!((bench.log().state().in_turn(), bench.valid(0)), (vec![0], PAGES));
    bench.write_pages(names("more", 1), 1);
    assert_eq!((bench.kind(0), bench.valid(1)), (Kind::Sealed, 1));
    assert_eq!(bench.found(names("key", PAGES), 1).len(), PAGES);
}

/// What L3 says that it holds is never more than there is room for, whatever the lengths.
#[test]
fn what_the_log_holds_fits_into_it() {
    // The first length of a class: all others of it are longer.
    const LEN: usize = 33 * UNIT;
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::open(dir.path(), Eviction::AllkeysS3fifo);
    let size = bench.log().shape().bytes();
    let mut most = 0;
    // They count when they are written, which is when a segment has all that it has room for.
    let of_segment = (SEGMENT - PAGE) / LEN;
    for (number, key) in names("key", 2 * size as usize / LEN).enumerate() {
        bench.put(&key, &value(&key, 1, LEN));
        let is_last = (number + 1).is_multiple_of(of_segment);
        bench.writer.step(&bench.memory, is_last).expect("writes");
        let (records, bytes) = bench.log().live();
        assert!(
            bytes >= records * LEN as u64 && bytes <= size,
            "{bytes} bytes in {records} records"
        );
        most = most.max(records);
    }
    assert!(most * LEN as u64 > size / 10 * 8, "{most} records");
}

/// A log that was written all round isn't full when little of it counts any more: SEMANTICS 6, *until L3's log is
/// full, all victims are admitted*.
#[test]
fn a_log_whose_records_have_ended_is_not_full() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::open(dir.path(), Eviction::AllkeysS3fifo);
    let keys = || names("key", 20 * PAGES);
    bench.write_pages(keys(), 1);
    assert!(bench.log().has_wrapped() && bench.log().is_full());
    keys().for_each(|key| bench.delete(&key));
    assert!(bench.log().has_wrapped() && !bench.log().is_full());
    bench.write_pages(keys(), 2);
    assert!(bench.log().is_full());
    assert!(bench.found(keys(), 2).len() > 12 * PAGES);
}

/// Starts that end before they serve anybody leave the log to the next one; a run without it doesn't.
#[test]
fn starts_that_come_to_nothing_take_nothing_with_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = |last, this| {
        let options =
            Options { runs: Some(Runs { last, this }), ..Options::new(dir.path(), 1 << 20) };
        Log::open(&options).expect("opens").started_empty
    };
    assert!(open(0, 1).is_some());
    for (last, this) in [(1, 2), (1, 3), (1, 4), (4, 5)] {
        assert_eq!(open(last, this), None, "{last}, {this}");
    }
    // Run 6 did without it.
    assert!(open(6, 7).is_some());
}
