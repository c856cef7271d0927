//! The rules that the tiers keep, each test a story of SEMANTICS with its number, where the way goes over
//! the disk or the worker's own cache. (Stories of stores are beside this file, crashes in `tests/`.)

use std::{path::Path, sync::atomic::Ordering::Relaxed};

use futures_util::future::join_all;

use super::{
    tiers::{Tiers, cold_keys, eventually, filled, is_free, small_log, value},
    *,
};
use crate::{
    cache::local::LocalCache,
    tier::{disk::faulty::Faults as DiskFaults, log, log::slot::QUEUED},
};

/// So many keys fill the log, so that a plain SET doesn't wait for what the disk has.
const MANY: u64 = 6_000;

/// A cache of about a megabyte of memory, over a small log with a longer queue than that of [`filled`].
fn with_queue(dir: &Path, faults: &Arc<DiskFaults>, clock: &Clock, eviction: Eviction) -> Tiers {
    let options = log::Options { queue: 512 << 10, ..small_log(dir, faults) };
    Tiers::with_log(&options, 1_700 << 10, eviction, clock)
}

fn number(key: &str) -> u64 {
    key[4..].parse().expect("a number")
}

/// Keys that are only on disk, and written there.
fn keys_on_disk(tiers: &Tiers, keys: u64) -> Vec<String> {
    let memory = tiers.cache.memory();
    let is_written = |key: &String| {
        let below = memory.below(0, tiers.key(key).hash);
        below.is_some_and(|below| below.records.iter().all(|record| !record.has(QUEUED)))
    };
    cold_keys(tiers, keys).into_iter().filter(is_written).collect()
}

fn is_in_memory(tiers: &Tiers, key: &str) -> bool {
    let (key, memory) = (tiers.key(key), tiers.cache.memory());
    let core = memory.lock(memory.stripe_of(key.hash));
    core.shelf(0).is_some_and(|shelf| shelf.find(key.hash, key.bytes).is_some())
}

/// Sets other keys until this one has left memory.
async fn push_out(tiers: &Tiers, key: &str) {
    for other in 0..10 * MANY {
        if !is_in_memory(tiers, key) {
            return;
        }
        tiers.set(0, &format!("other:{other}"), &[0; 1_000], Ttl::Clear).await.expect("room");
    }
    panic!("{key} stays in memory");
}

/// SEMANTICS 1: *a load of k brings v1; meanwhile SET k v2 is acknowledged and v2 is evicted; the load
/// lands and v1 stays.*
#[tokio::test]
async fn rule_1_a_load_is_not_kept_though_the_newer_value_was_evicted() {
    let bench = Bench::small(Eviction::AllkeysLru);
    bench.store("r:k", b"v1").await;
    bench.faults.hold(Op::Load);
    let write = async {
        bench.faults.wait_for_calls(Op::Load, 1).await;
        bench.set("r:k", "v2").await.unwrap();
        for other in 0..100_000 {
            if bench.cached("r:k").is_none() {
                break;
            }
            bench.set(&format!("other:{other}"), &"x".repeat(1_000)).await.unwrap();
        }
        bench.faults.release(Op::Load);
    };
    let (read, ()) = tokio::join!(bench.get("r:k"), write);
    assert_eq!((read, bench.cached("r:k")), (some("v1"), None), "it had asked before");
}

/// SEMANTICS 1: *from disk a promotion of k brings v1; meanwhile SET k v2 is acknowledged and v2 is
/// evicted (or k is deleted, or all is flushed); the promotion lands and v1 stays.*
#[tokio::test]
async fn rule_1_a_promotion_that_a_write_overtook_is_not_kept() {
    let (_dir, tiers, faults) = filled(MANY).await;
    for step in 0..=20 {
        // Nothing is written, so that nothing is reclaimed.
        let writer = &tiers.cache.0.disk.as_ref().expect("a disk").writer;
        eventually(|| writer.lock().is_some() && tiers.log().queue.len().0 == 0).await;
        let key = &keys_on_disk(&tiers, MANY)[step];
        let is_flushed = step == 20;
        let before = tiers.get(0, key);
        faults.hold_reads(true);
        let reads = faults.reads();
        let write = async {
            eventually(|| faults.reads() > reads).await;
            if is_flushed {
                drop(tiers.cache.memory().flush(0..1));
            } else {
                tiers.set(0, key, b"v2", Ttl::Clear).await.expect("room");
                push_out(&tiers, key).await;
            }
            faults.hold_reads(false);
        };
        let (early, ()) = tokio::join!(before, write);
        let v1 = value(number(key), 1_000);
        assert!(early.is_ok_and(|early| early.is_none_or(|early| early == v1)), "as it was");
        let late = tiers.get(0, key).await.expect("no failure");
        let may_be: &[Option<&[u8]>] = if is_flushed { &[None] } else { &[None, Some(b"v2")] };
        assert!(may_be.contains(&late.as_deref()), "{key} came back");
    }
}

/// SEMANTICS 2: *1 MB of memory, MGET of 50 cold keys: loading the 40th evicts the 3rd, for ever.*
#[tokio::test]
async fn rule_2_many_cold_keys_on_disk_are_read_at_once() {
    const LEN: usize = 30_000;
    let dir = tempfile::tempdir().expect("a directory");
    let faults = Arc::new(DiskFaults::default());
    let clock = Clock::manual(NOW);
    let tiers = with_queue(dir.path(), &faults, &clock, Eviction::AllkeysS3fifo);
    for key in 0..80 {
        tiers.set(0, &format!("key:{key}"), &value(key, LEN), Ttl::Clear).await.expect("room");
    }
    eventually(|| keys_on_disk(&tiers, 80).len() >= 50).await;
    let names = keys_on_disk(&tiers, 80);
    let keys: Vec<_> = names[..50].iter().map(|key| (tiers.key(key), Use::Read)).collect();
    let hits = tiers.log().counters.hits.load(Relaxed);
    let values = tiers
        .run_many(0, &keys, |tx| {
            keys.iter().map(|(key, _)| Ok(tx.string(*key)?.map(<[u8]>::to_vec))).collect()
        })
        .await;
    let values: Vec<Option<Vec<u8>>> = values.expect("it ends");
    for (key, found) in names.iter().zip(values) {
        assert_eq!(found, Some(value(number(key), LEN)), "{key}");
    }
    let hits = tiers.log().counters.hits.load(Relaxed) - hits;
    assert!(hits <= 55, "{hits} reads for 50 keys");
}

/// SEMANTICS 3: *`lock:1` is on disk, the disk stalls, a second SET NX succeeds.* It must not; and a read
/// of the same is a miss.
#[tokio::test]
async fn rule_3_a_lock_on_a_stalled_disk_is_not_given_twice() {
    let (_dir, tiers, faults) = filled(1_200).await;
    let lock = &keys_on_disk(&tiers, 1_200)[0];
    tiers.cache.set_disk_limits(Duration::from_millis(5), 0);
    tiers.cache.set_store_timeout(Duration::from_millis(20));
    let set_nx = async || {
        let key = tiers.key(lock);
        let set = |tx: &mut Tx<'_>| {
            let is_free = tx.peek(key)?.is_none();
            if is_free {
                tx.set(key, &[b"theirs"], Ttl::Clear)?;
            }
            Ok(is_free)
        };
        tiers.run_many(0, &[(key, Use::Write)], set).await
    };
    faults.hold_reads(true);
    for _ in 0..3 {
        let refused = set_nx().await.expect_err("nobody knows whether it is free");
        assert!(refused.starts_with("TRYAGAIN"), "{refused}");
        assert_eq!(tiers.get(0, lock).await, Ok(None), "a read takes it for a miss");
    }
    assert!(tiers.append(0, lock, b"!").await.is_err_and(|why| why.starts_with("TRYAGAIN")));
    assert!(tiers.delete(0, lock).await.is_err_and(|why| why.starts_with("TRYAGAIN")));
    assert!(tiers.expire(0, lock, NOW + 1).await.is_err_and(|why| why.starts_with("TRYAGAIN")));
    faults.hold_reads(false);
    tiers.cache.set_disk_limits(Duration::from_secs(20), 0);
    assert_eq!(set_nx().await, Ok(false));
    assert_eq!(tiers.get(0, lock).await, Ok(Some(value(number(lock), 1_000))));
}

/// A worker's own cache, before a [`Bench`].
pub(super) struct Local<'a> {
    pub(super) bench: &'a Bench,
    pub(super) local: LocalCache,
}

impl<'a> Local<'a> {
    /// One that has `k` as `v1`.
    async fn with_hot_key(bench: &'a Bench) -> Self {
        bench.set("k", "v1").await.expect("room");
        let mut local = Self { bench, local: bench.cache.local(1 << 20) };
        local.heat("k");
        assert_eq!(local.read("k"), (true, Some("v1".into())), "the worker has it");
        local
    }

    /// Reads a key until the worker would have it, if it may.
    pub(super) fn heat(&mut self, key: &str) {
        (0..5_000).for_each(|_| drop(self.read(key)));
    }

    /// GET as a worker does it: whether its own cache served it, and the value.
    pub(super) fn read(&mut self, key: &str) -> (bool, Option<String>) {
        let key = self.bench.key(key);
        let keys = [(key, Use::Read)];
        let job = Job {
            db: 0,
            now: self.bench.clock.now(),
            keys: &keys,
            writes: false,
            strict: false,
            room: 0,
            touch: true,
            counters: &self.bench.counters,
            release: &Release::default(),
        };
        let mut found = None;
        let mut run = |tx: &mut Tx<'_>| {
            found = tx.get(key)?.map(text);
            Ok(())
        };
        let hits = self.bench.counters.all(|tally| &tally.local_hits);
        let served = self.local.serve(&job, &mut run);
        served.unwrap_or_else(|| self.bench.cache.attempt(&job, &mut run)).expect("no failure");
        (self.bench.counters.all(|tally| &tally.local_hits) > hits, found)
    }

    fn finds(&mut self, value: Option<&str>) {
        for _ in 0..100 {
            assert_eq!(self.read("k").1.as_deref(), value);
        }
    }
}

/// SEMANTICS 4: *SWAPDB, FLUSHALL.* What a worker has of its own ends with the contents of the database.
#[tokio::test]
async fn rule_4_swapdb_and_flushall_reach_every_worker() {
    let bench = Bench::new();
    let mut local = Local::with_hot_key(&bench).await;
    bench.cache.memory().swap(0, 1);
    local.finds(None);
    bench.set("k", "other").await.expect("room");
    local.finds(Some("other"));
    bench.cache.memory().swap(0, 1);
    local.finds(Some("v1"));
    local.heat("k");
    drop(bench.cache.memory().flush(0..16));
    local.finds(None);
}

/// SEMANTICS 4: *EXPIRE.* A deadline counts at once, in an entry that a worker has too.
#[tokio::test]
async fn rule_4_expire_and_every_write_reach_every_worker() {
    let bench = Bench::new();
    let mut local = Local::with_hot_key(&bench).await;
    assert_eq!(bench.expire("k", NOW + 1_000).await, Ok(true));
    local.finds(Some("v1"));
    local.heat("k");
    bench.clock.set(NOW + 1_000);
    local.finds(None);
    bench.set("k", "v2").await.expect("room");
    local.heat("k");
    bench.append("k", "+").await.expect("room");
    local.finds(Some("v2+"));
    local.heat("k");
    bench.set("k", "v3+").await.expect("room");
    local.finds(Some("v3+"));
    bench.rename("k", "l").await.expect("room");
    local.finds(None);
    bench.rename("l", "k").await.expect("room");
    local.heat("k");
    assert_eq!(bench.remove("k").await, Ok(true));
    local.finds(None);
}

/// However much memory it may take, a worker's own cache has no more keys than its core's cache is good
/// for; and it may be given memory later.
#[tokio::test]
async fn a_workers_own_cache_is_small() {
    let bench = Bench::new();
    let mut local = Local { bench: &bench, local: bench.cache.local(0) };
    let keys: Vec<String> = (0..1_500).map(|number| format!("k{number}")).collect();
    for key in &keys {
        bench.set(key, "v").await.expect("room");
    }
    let heat = |local: &mut Local<'_>| {
        keys.iter().for_each(|key| (0..100).for_each(|_| drop(local.read(key))));
    };
    heat(&mut local);
    assert_eq!(local.local.len(), (0, 0));
    local.local.set_limit(64 << 20);
    heat(&mut local);
    assert_eq!(local.local.len().0, 1024);
    assert!(
        local.read("k1499").0 && !local.read("k0").0,
        "the last ones have pushed the first out"
    );
}

/// SEMANTICS 4: *EXPIRE of a 100 MB string.* Long strings never enter a worker's own cache, and change in
/// place: nothing is copied.
#[tokio::test]
async fn rule_4_long_strings_stay_in_one_place() {
    let bench = Bench::new();
    const LEN: usize = 100 << 10;
    let long = "x".repeat(LEN);
    bench.set("k", &long).await.expect("room");
    let mut local = Local { bench: &bench, local: bench.cache.local(64 << 20) };
    (0..200).for_each(|_| assert_eq!(local.read("k").1.map(|value| value.len()), Some(LEN)));
    assert_eq!(local.local.len(), (0, 0));
    let place = async || {
        let at = |tx: &mut Tx<'_>| Ok(tx.peek(bench.key("k"))?.map(|entry| entry.value().as_ptr()));
        bench.run(0, &[("k", Use::Read)], at).await.expect("it is there").map(|at| at as usize)
    };
    let before = place().await;
    assert_eq!(bench.expire("k", NOW + 1_000).await, Ok(true));
    bench
        .run(0, &[("k", Use::Write)], |tx| tx.edit(bench.key("k"), LEN, |value| value[5] = b'y'))
        .await
        .expect("there is room, since none is needed");
    assert_eq!(place().await, before);
}

/// SEMANTICS 5: what is in memory and on disk too is counted, and walked over, once.
#[tokio::test]
async fn rule_5_nothing_is_counted_twice() {
    const KEYS: u64 = 2_000;
    let (_dir, tiers, _) = filled(KEYS).await;
    for round in 0..3 {
        // Each round brings others back to memory, which are on disk as well then.
        for key in (0..KEYS).filter(|key| key % 3 == round) {
            assert!(tiers.get(0, &format!("key:{key}")).await.expect("no failure").is_some());
        }
        let memory = tiers.cache.memory();
        let stored = (0..memory.stripes())
            .flat_map(|stripe| (0..4).map(move |coldness| (stripe, coldness)))
            .map(|(stripe, coldness)| memory.of_coldness(stripe, coldness, true, NOW).len());
        assert!(stored.sum::<usize>() > 50, "many are in both");
        assert_eq!(memory.len(0), (KEYS as usize, 0));
        let (mut cursor, mut seen) = (0, Vec::new());
        loop {
            let show = |key: &[u8]| seen.push(String::from_utf8_lossy(key).into_owned());
            cursor = tiers.cache.walk(0, cursor, NOW, show).await;
            if cursor == 0 {
                break;
            }
        }
        seen.sort_unstable();
        let walked = seen.len();
        seen.dedup();
        assert_eq!((walked, seen.len()), (KEYS as usize, KEYS as usize));
    }
}

/// SEMANTICS 6: *memory so small that keys live on disk, while admission drops them.* Until the log is full
/// nothing is dropped, however seldom it is asked for; then admission does.
#[tokio::test]
async fn rule_6_until_the_log_is_full_all_victims_are_admitted() {
    let (_dir, tiers, _) = filled(2_500).await;
    assert!(!tiers.log().is_full());
    let counters = &tiers.log().counters;
    let forgotten = [&counters.rejected, &counters.dropped, &counters.forgotten];
    assert_eq!(forgotten.map(|count| count.load(Relaxed)), [0; 3]);
    for key in 0..2_500 {
        let found = tiers.get(0, &format!("key:{key}")).await.expect("no failure");
        assert_eq!(found, Some(value(key, 1_000)), "key:{key}");
    }
    for key in 2_500..MANY {
        tiers.set(0, &format!("key:{key}"), &value(key, 1_000), Ttl::Clear).await.expect("room");
    }
    assert!(tiers.log().is_full());
    assert!(counters.rejected.load(Relaxed) > 100, "{counters:?}");
}

/// SEMANTICS 6: with `noeviction` nothing is forgotten: writes wait for room in the queue to a slow disk, and
/// get `-OOM` when the disk is full too.
#[tokio::test]
async fn rule_6_noeviction_waits_for_the_disk_and_then_refuses() {
    let dir = tempfile::tempdir().expect("a directory");
    let faults = Arc::new(DiskFaults::default());
    let clock = Clock::manual(NOW);
    let tiers = with_queue(dir.path(), &faults, &clock, Eviction::Noeviction);
    faults.hold_writes(true);
    let mut written = 0;
    let mut waited = false;
    loop {
        let key = format!("key:{written}");
        let value = value(written, 1_000);
        let mut set = std::pin::pin!(tiers.set(0, &key, &value, Ttl::Clear));
        let first =
            std::future::poll_fn(|context| std::task::Poll::Ready(set.as_mut().poll(context)));
        let done = match first.await {
            std::task::Poll::Ready(done) => done,
            std::task::Poll::Pending => {
                waited = true;
                faults.hold_writes(false);
                set.await
            }
        };
        match done {
            Ok(()) => written += 1,
            Err(why) => {
                assert!(why.starts_with("OOM"), "{why}");
                break;
            }
        }
        assert!(written < MANY, "the disk is never full");
    }
    assert!(waited && written > 2_500, "{written}");
    for key in 0..written {
        let found = tiers.get(0, &format!("key:{key}")).await.expect("no failure");
        assert_eq!(found, Some(value(key, 1_000)), "key:{key}");
    }
}

/// What happens to a key while its old value waits to be written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Set,
    Delete,
    Append,
    Expire,
    Flush,
    Swap,
}

const V1: &[u8] = &[b'1'; 500];

async fn change(tiers: &Tiers, key: &str, change: Change) {
    match change {
        Change::Set => tiers.set(0, key, b"v2", Ttl::Clear).await.expect("room"),
        Change::Delete => assert_eq!(tiers.delete(0, key).await, Ok(true)),
        Change::Append => tiers.append(0, key, b"+").await.expect("room"),
        Change::Expire => assert_eq!(tiers.expire(0, key, NOW + 1).await, Ok(true)),
        Change::Flush => drop(tiers.cache.memory().flush(0..1)),
        Change::Swap => tiers.cache.memory().swap(0, 1),
    }
}

async fn rule_7(what: Change) {
    let dir = tempfile::tempdir().expect("a directory");
    let faults = Arc::new(DiskFaults::default());
    let clock = Clock::manual(NOW);
    let open = || with_queue(dir.path(), &faults, &clock, Eviction::AllkeysS3fifo);
    let tiers = open();
    let mut set = 0;
    let mut fill = async |cold: usize| loop {
        for _ in 0..20 {
            tiers.set(0, &format!("key:{set}"), V1, Ttl::Clear).await.expect("room");
            set += 1;
        }
        let all = cold_keys(&tiers, set);
        if all.len() >= cold {
            break all;
        }
    };
    fill(50).await;
    eventually(|| tiers.log().queue.len() == (0, 0)).await;
    // The disk is slow: what leaves memory from here on waits in the queue, or is being written.
    faults.hold_writes(true);
    let all = fill(100).await;
    // Some of them are read meanwhile.
    let read = join_all(all.iter().step_by(2).map(|key| tiers.get(0, key))).await;
    assert!(read.iter().all(|found| *found == Ok(Some(V1.to_vec()))), "{read:?}");
    if matches!(what, Change::Flush | Change::Swap) {
        change(&tiers, "", what).await;
    } else {
        for key in &all {
            change(&tiers, key, what).await;
        }
    }
    faults.hold_writes(false);
    clock.set(NOW + 2);
    let longer = [V1, b"+"].concat();
    let allowed: &[Option<&[u8]>] = match what {
        Change::Set => &[Some(b"v2"), None],
        Change::Append => &[Some(&longer), None],
        _ => &[None],
    };
    eventually(|| tiers.log().queue.len() == (0, 0)).await;
    for key in &all {
        let found = tiers.get(0, key).await.expect("no failure");
        assert!(allowed.contains(&found.as_deref()), "{what:?} {key}: {found:?}");
    }
    // Memory is gone with the process; what is on disk must not bring v1 back.
    drop(tiers);
    is_free(dir.path()).await;
    let tiers = open();
    for key in &all {
        let found = tiers.get(0, key).await.expect("no failure");
        assert!(allowed.contains(&found.as_deref()), "{what:?} {key} came back: {found:?}");
        let there = tiers.get(1, key).await.expect("no failure");
        assert_eq!(there.is_some(), what == Change::Swap, "{what:?} {key}: {there:?}");
    }
}

/// SEMANTICS 7: *k=v1 waits in the demotion queue, SET k v2 finds nothing to invalidate, v1 is written and
/// found later.* The same for what else changes a key, or all of them.
#[tokio::test]
async fn rule_7_what_changed_while_it_waited_is_never_found() {
    use self::Change::{Append, Delete, Expire, Flush, Set, Swap};
    for what in [Set, Delete, Append, Expire, Flush, Swap] {
        rule_7(what).await;
    }
}
