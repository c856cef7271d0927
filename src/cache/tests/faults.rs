//! Faults of the disk at size, and ends in the middle of a write: what is damaged is a miss and counted,
//! all else is there, and the log goes on.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::Ordering::Relaxed,
};

use futures_util::{StreamExt, stream};

use super::{
    tiers::{Tiers, eventually, filled, is_free, seed, value},
    *,
};
use crate::{
    cache::warm::Save,
    tier::{
        disk::{PAGE, faulty::Faults as DiskFaults},
        log::{self, UNIT, record},
        shelf::next_random,
    },
};

fn name(key: u64) -> String {
    format!("key:{key}")
}

/// The file of a log, to be damaged.
fn file_of(dir: &Path) -> File {
    let file = File::options().read(true).write(true).open(dir.join("log"));
    file.expect("the log's file")
}

/// Where the valid records of these keys are, in the order of their places; each is `len` bytes of value.
fn records(tiers: &Tiers, keys: u64, len: usize) -> Vec<(Range<u64>, u64)> {
    let of_hash: HashMap<u64, u64> =
        (0..keys).map(|key| (tiers.key(&name(key)).hash, key)).collect();
    let log = tiers.log();
    let items = (0..log.shape().segments).flat_map(|at| log.contents(at).expect("readable"));
    let place = |item: log::contents::Item| {
        let key = of_hash[&item.hash];
        let start = item.slot.place() * UNIT as u64;
        let bytes = record::size(name(key).len(), len, &Default::default());
        (start..start + bytes as u64, key)
    };
    let mut records: Vec<_> = items.map(place).collect();
    records.sort_unstable_by_key(|(range, _)| range.start);
    records
}

/// Keys whose record others read too, since the index can't tell them apart: it may be found damaged, and
/// counted, before its own key is asked for.
fn alike(tiers: &Tiers, keys: u64, records: &[(Range<u64>, u64)]) -> HashSet<u64> {
    let others = |key: u64| {
        let below = tiers.cache.memory().below(0, tiers.key(&name(key)).hash);
        let found = below.into_iter().flat_map(|below| below.records);
        let key_of = |slot: log::slot::Slot| {
            let start = slot.place() * UNIT as u64;
            let at = records.binary_search_by_key(&start, |(range, _)| range.start).ok()?;
            Some(records[at].1)
        };
        let written = found.filter(|slot| !slot.has(log::slot::QUEUED));
        written.filter_map(key_of).filter(|other| *other != key).collect::<Vec<_>>()
    };
    (0..keys).flat_map(others).collect()
}

fn is_in_memory(tiers: &Tiers, key: u64) -> bool {
    let (name, memory) = (name(key), tiers.cache.memory());
    let key = tiers.key(&name);
    let core = memory.lock(memory.stripe_of(key.hash));
    core.shelf(0).is_some_and(|shelf| shelf.find(key.hash, key.bytes).is_some())
}

/// Reads keys, many at a time; those that aren't there. All others have their own value.
async fn missing(tiers: &Tiers, keys: impl Iterator<Item = u64>, len: usize) -> Vec<u64> {
    let read = |key| async move { (key, tiers.get(0, &name(key)).await.expect("no failure")) };
    let mut reads = stream::iter(keys.map(read)).buffer_unordered(64);
    let mut missing = Vec::new();
    while let Some((key, found)) = reads.next().await {
        match found {
            Some(found) => assert!(found == value(key, len), "key:{key} is wrong"),
            None => missing.push(key),
        }
    }
    missing
}

/// 100,000 flipped bits in 256 MiB of records, while these are read: no wrong value; each damaged record
/// is counted once, at its next read, and no other is missed. So it is after a restart, though no segment's
/// table is whole.
#[tokio::test]
async fn flipped_bits_at_size_are_misses_and_each_is_counted() {
    const KEYS: u64 = 70_000;
    const LEN: usize = 4_000;
    const DAMAGED: u64 = 256 << 20;
    const FLIPS: usize = 100_000;
    const ROUNDS: usize = 100;
    let dir = tempfile::tempdir().expect("a directory");
    let options = log::Options::new(dir.path(), 512 << 20);
    let clock = Clock::manual(NOW);
    let open = || Tiers::with_log(&options, 24 << 20, Eviction::AllkeysS3fifo, &clock);
    let tiers = open();
    for key in 0..KEYS {
        tiers.set(0, &name(key), &value(key, LEN), Ttl::Clear).await.expect("room");
    }
    let segment = DAMAGED as usize / tiers.log().shape().segment_bytes;
    eventually(|| tiers.log().state().in_turn().len() > segment).await;

    let records = records(&tiers, KEYS, LEN);
    let alike = alike(&tiers, KEYS, &records);
    let file = file_of(dir.path());
    let (mut flipped, mut damaged, mut missed) = (HashSet::new(), HashSet::new(), HashSet::new());
    let mut random = seed() | 1;
    for round in 1..=ROUNDS {
        while flipped.len() < FLIPS / ROUNDS * round {
            random = next_random(random);
            let (at, bit) = (random % DAMAGED, random >> 40 & 7);
            let next = records.partition_point(|(range, _)| range.start <= at);
            let hit = records[..next].last().filter(|(range, _)| range.contains(&at));
            if hit.is_some_and(|(_, key)| alike.contains(key)) || !flipped.insert((at, bit)) {
                continue;
            }
            damaged.extend(hit.map(|(_, key)| *key));
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("reads");
            file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("writes");
        }
        let some = (0..400).map(|step| next_random(random ^ step << 20 | 1) % KEYS);
        missed.extend(missing(&tiers, some, LEN).await);
        let bad = tiers.log().counters.bad_records.load(Relaxed);
        assert_eq!(bad, missed.len() as u64, "counted when it is read, and once");
    }
    missed.extend(missing(&tiers, 0..KEYS, LEN).await);
    assert!(missed.is_subset(&damaged), "only what is damaged is missed");
    assert!(damaged.len() > 40_000, "{} are damaged", damaged.len());
    // Some were read in memory, and left it after that.
    let unread: Vec<u64> = damaged.difference(&missed).copied().collect();
    missed.extend(missing(&tiers, unread.into_iter(), LEN).await);
    let unread: Vec<u64> = damaged.difference(&missed).copied().collect();
    assert!(unread.iter().all(|key| is_in_memory(&tiers, *key)), "all others were read");
    let bad = tiers.log().counters.bad_records.load(Relaxed);
    assert_eq!(bad, missed.len() as u64);

    let save = Save { dir: dir.path().join("warm"), run: None, limit: Duration::from_secs(20) };
    tiers.cache.close(Some(&save)).expect("closes");
    drop(tiers);
    is_free(dir.path()).await;
    let tiers = open();
    let missed: HashSet<u64> = missing(&tiers, 0..KEYS, LEN).await.into_iter().collect();
    assert_eq!(missed, damaged, "what was damaged, and only that, is gone");
    let bad = tiers.log().counters.bad_records.load(Relaxed);
    assert_eq!(bad, unread.len() as u64);
}

const KEYS: u64 = 2_000;
const LEN: usize = 1_000;

fn small(dir: &Path, faults: &Arc<DiskFaults>) -> Tiers {
    Tiers::with_faults(dir, Eviction::AllkeysS3fifo, &Clock::manual(NOW), faults)
}

/// The process is gone without a word, and another one has its files.
async fn killed(tiers: Tiers, dir: &Path, faults: &Arc<DiskFaults>) -> Tiers {
    drop(tiers);
    is_free(dir).await;
    small(dir, faults)
}

/// The log takes in new keys, which last over another end.
async fn goes_on(tiers: Tiers, dir: &Path, faults: &Arc<DiskFaults>) {
    for key in 0..KEYS {
        tiers.set(0, &name(key), &value(key, LEN), Ttl::Clear).await.expect("room");
    }
    eventually(|| tiers.log().queue.len().0 == 0).await;
    let kept: Vec<u64> = records(&tiers, KEYS, LEN).into_iter().map(|(_, key)| key).collect();
    assert!(kept.len() as u64 > KEYS / 2, "{} are on disk", kept.len());
    assert!(missing(&tiers, 0..KEYS, LEN).await.is_empty());
    let tiers = killed(tiers, dir, faults).await;
    assert!(missing(&tiers, kept.into_iter(), LEN).await.is_empty());
}

/// An end in the middle of a write: what was written before is a hit, what was being written a miss.
#[tokio::test]
async fn a_torn_write_takes_nothing_with_it() {
    let (dir, tiers, faults) = filled(KEYS).await;
    faults.fail_writes.store(1, Relaxed);
    // New keys push old ones out of memory; half of what is written of them gets to the disk.
    for key in KEYS..2 * KEYS {
        if tiers.log().counters.write_errors.load(Relaxed) > 0 {
            break;
        }
        tiers.set(0, &name(key), &value(key, LEN), Ttl::Clear).await.expect("room");
    }
    eventually(|| tiers.log().counters.write_errors.load(Relaxed) > 0).await;
    let whole: HashSet<u64> =
        records(&tiers, 2 * KEYS, LEN).into_iter().map(|(_, key)| key).collect();
    assert!(whole.len() as u64 > KEYS / 2, "{} are whole", whole.len());
    let tiers = killed(tiers, dir.path(), &faults).await;
    faults.fail_writes.store(0, Relaxed);
    let missed = missing(&tiers, 0..2 * KEYS, LEN).await;
    assert!(missed.iter().all(|key| !whole.contains(key)), "what was whole is there");
    assert_eq!(missed.len() + whole.len(), 2 * KEYS as usize, "what was torn isn't");
    assert_eq!(tiers.log().counters.bad_records.load(Relaxed), 0);
    goes_on(tiers, dir.path(), &faults).await;
}

/// How the end of a file may be lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    /// From here on there are zeroes, to the end of the segment.
    Zeroes,
    /// Here the file ends.
    Cut,
}

/// The tail of a segment is lost, from the middle of a record on: what is before it is a hit, that record
/// and what was behind it are misses, each counted once.
#[tokio::test]
async fn a_segment_without_its_tail_has_what_is_before_it() {
    for (loss, is_last) in [(Loss::Zeroes, true), (Loss::Zeroes, false), (Loss::Cut, true)] {
        let (dir, tiers, faults) = filled(KEYS).await;
        let shape = tiers.log().shape();
        let bytes = shape.segment_bytes as u64;
        let records = records(&tiers, KEYS, LEN);
        let open = records.last().expect("there are some").0.start / bytes;
        let segment = if is_last { open } else { open - 3 };
        let (from, to) = (segment * bytes, (segment + 1) * bytes);
        let within: Vec<_> =
            records.iter().filter(|(range, _)| (from..to).contains(&range.start)).collect();
        let torn = &within[within.len() / 2].0;
        let cut = torn.start + (torn.end - torn.start) / 2;
        drop(tiers);
        is_free(dir.path()).await;
        let file = file_of(dir.path());
        match loss {
            Loss::Zeroes => {
                file.write_all_at(&vec![0; (to - cut) as usize], cut).expect("writes");
            }
            Loss::Cut => file.set_len(cut / PAGE as u64 * PAGE as u64 + 1).expect("cuts"),
        }
        let tiers = small(dir.path(), &faults);
        let kept_until = if loss == Loss::Cut { cut / PAGE as u64 * PAGE as u64 } else { cut };
        let is_lost = |range: &Range<u64>| range.end > kept_until && range.start < to;
        let lost = records.iter().filter(|(range, _)| is_lost(range)).count();
        let kept: HashSet<u64> =
            records.iter().filter(|(range, _)| !is_lost(range)).map(|(_, key)| *key).collect();
        assert!(lost > 5 && kept.len() > 800, "{loss:?}: {lost} lost, {} kept", kept.len());
        let missed = missing(&tiers, 0..KEYS, LEN).await;
        assert!(missed.iter().all(|key| !kept.contains(key)), "{loss:?}: what was whole is there");
        assert_eq!(missed.len() + kept.len(), KEYS as usize, "{loss:?}");
        let bad = tiers.log().counters.bad_records.load(Relaxed);
        assert_eq!(bad, lost as u64, "{loss:?}: each is counted");
        goes_on(tiers, dir.path(), &faults).await;
    }
}

/// A deleted record stands at the end of the log, and the next one of its key, as long as it, comes to
/// stand there after a restart; but the disk forgets the write.
#[tokio::test]
async fn stale_bytes_of_a_segment_that_was_gone_on_with_never_pass() {
    let dir = tempfile::tempdir().expect("a directory");
    let faults = Arc::new(DiskFaults::default());
    let save = Save { dir: dir.path().join("warm"), run: None, limit: Duration::from_secs(20) };
    let tiers = small(dir.path(), &faults);
    tiers.set(0, "k", b"v1", Ttl::Clear).await.expect("room");
    tiers.cache.close(Some(&save)).expect("closes");
    let tiers = killed(tiers, dir.path(), &faults).await;
    assert_eq!(tiers.get(0, "k").await, Ok(Some(b"v1".to_vec())));
    assert_eq!(tiers.delete(0, "k").await, Ok(true));
    let tiers = killed(tiers, dir.path(), &faults).await;
    assert_eq!(tiers.get(0, "k").await, Ok(None));
    tiers.set(0, "k", b"v2", Ttl::Clear).await.expect("room");
    faults.lose_writes.store(1, Relaxed);
    tiers.cache.close(Some(&save)).expect("closes");
    let tiers = killed(tiers, dir.path(), &faults).await;
    assert_eq!(tiers.get(0, "k").await, Ok(None));
    assert_eq!(tiers.log().counters.bad_records.load(Relaxed), 1);
}
