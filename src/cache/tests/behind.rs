//! Writing behind, and around: what is acknowledged is in the journal, is seen by every read, and reaches
//! the store.

use std::{collections::HashMap, path::Path, sync::atomic::Ordering::Relaxed};

use super::*;
use crate::{
    journal::{self, Fsync},
    policy::{TtlMeans, behind},
    tier::disk::{
        faulty::{Faults as DiskFaults, Faulty},
        memory::Memory as MemoryDisk,
    },
};

const JOURNAL: &str = "/journal";

/// What a cache that writes behind stands on, over several starts.
pub(super) struct Ground {
    pub(super) disk: MemoryDisk,
    pub(super) faults: Arc<DiskFaults>,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Clock,
    pub(super) dead: tempfile::TempDir,
    pub(super) fsync: Fsync,
    pub(super) settings: behind::Settings,
    pub(super) limit: u64,
    pub(super) memory: usize,
}

impl Ground {
    pub(super) fn new() -> Self {
        let delay = Duration::from_secs(3600);
        Self {
            disk: MemoryDisk::new(),
            faults: Arc::default(),
            store: store::memory(),
            clock: Clock::manual(NOW),
            dead: tempfile::tempdir().expect("a directory"),
            fsync: Fsync::Never,
            settings: behind::Settings { delay, tries: 3, ..behind::Settings::default() },
            limit: 1 << 20,
            memory: 16 << 20,
        }
    }

    /// A cache over it: `b:` is written behind (`c:` with deadlines that are the cache's alone, `a:` without
    /// reading through), `w:` through and `x:` around; all have the same store.
    pub(super) fn start(&self) -> Bench {
        let (main, faults) = store::faulty::faulty(self.store.clone());
        let namespace = |prefix: &str, read, write, ttl_means| Namespace {
            prefix: prefix.as_bytes().into(),
            read,
            write,
            ttl_means,
            store: Some(("main".into(), main.clone())),
            behind: self.settings.clone(),
            ..Namespace::default()
        };
        let mut policies = Policies::new(vec![
            namespace("b:", Read::Through, Write::Behind, TtlMeans::Data),
            namespace("c:", Read::Through, Write::Behind, TtlMeans::Cache),
            namespace("a:", Read::Aside, Write::Behind, TtlMeans::Data),
            namespace("w:", Read::Through, Write::Through, TtlMeans::Data),
            namespace("x:", Read::Through, Write::Around, TtlMeans::Data),
        ]);
        let options = journal::Options {
            fsync: self.fsync,
            limit: self.limit,
            ..journal::Options::new(Path::new(JOURNAL))
        };
        let dead = self.dead.path().join("dead");
        let disk = Arc::new(Faulty::new(self.disk.clone(), self.faults.clone()));
        behind::Behind::open(&mut policies, options, dead, disk, self.clock.clone())
            .expect("the journal opens");
        let options = Options { limit: self.memory, ..Options::default() };
        let cache = Cache::new(&options, policies, self.clock.clone(), Some(Handle::current()));
        let counters = Counters::default();
        Bench { cache, clock: self.clock.clone(), faults, main: self.store.clone(), counters }
    }
}

impl Bench {
    pub(super) async fn flush(&self) {
        let behind = self.cache.policies().behind().expect("it writes behind");
        behind.flush().await.expect("the journal is well");
    }

    /// Drops every cached copy, as eviction may at any time.
    fn forget_all(&self) {
        drop(self.cache.memory().flush(0..1));
    }

    /// Ends as a process does: nothing that it had begun reaches the store any more.
    pub(super) async fn end(self) {
        self.close_journal().await;
        let lines = self.cache.policies().iter().filter_map(|found| found.line.as_ref());
        let lines: Vec<_> = lines.map(Arc::downgrade).collect();
        drop(self);
        while lines.iter().any(|line| line.strong_count() > 0) {
            tokio::task::yield_now().await;
        }
    }

    async fn close_journal(&self) {
        let behind = self.cache.policies().behind().expect("it writes behind");
        behind.journal().close().expect("it is well");
    }
}

#[tokio::test]
async fn a_write_is_answered_before_the_store_has_it_and_every_read_sees_it() {
    let bench = Ground::new().start();
    bench.set("b:1", "one").await.unwrap();
    assert_eq!((bench.stored("b:1").await, bench.faults.calls(Op::Apply)), (None, 0));
    bench.forget_all();
    assert_eq!(bench.get("b:1").await, some("one"), "the overlay has what memory has forgotten");
    assert_eq!(bench.loads(), 0, "nobody asks the store for it");
    bench.flush().await;
    assert_eq!(bench.stored("b:1").await, Some(("one".into(), 0)));
    bench.forget_all();
    assert_eq!(bench.get("b:1").await, some("one"));
    assert_eq!(bench.loads(), 1);
}

/// SEMANTICS 11: *Two workers SET k; memory says 2, the journal 1.*
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rule_11_memory_journal_and_store_have_one_order() {
    let ground = Ground::new();
    for round in 0..20 {
        let bench = Arc::new(ground.start());
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let bench = bench.clone();
                tokio::spawn(async move {
                    for number in 0..20 {
                        bench.set("b:k", &format!("{round}-{writer}-{number}")).await.unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let in_memory = bench.cached("b:k").expect("it is there");
        if round % 2 == 0 {
            bench.flush().await;
            assert_eq!(bench.stored("b:k").await, Some((in_memory.clone(), 0)));
        }
        // Two at once would write the same journal.
        let Ok(bench) = Arc::try_unwrap(bench) else { panic!("the writers have ended") };
        bench.end().await;
        if round % 2 != 0 {
            let bench = ground.start();
            assert_eq!(bench.get("b:k").await, some(&in_memory), "the journal has the same");
            bench.end().await;
        }
    }
}

/// SEMANTICS 11: *After a failed sync such keys answer with an error.*
#[tokio::test]
async fn rule_11_after_a_failed_sync_nothing_unsynced_is_acknowledged_or_shown() {
    let ground = Ground { fsync: Fsync::Always, ..Ground::new() };
    let bench = ground.start();
    bench.set("b:1", "synced").await.unwrap();
    ground.faults.fail_syncs.store(1, Relaxed);
    let lost = bench.set("b:1", "lost").await.unwrap_err();
    assert!(lost.starts_with("JOURNALERR"), "{lost}");
    ground.faults.fail_syncs.store(0, Relaxed);
    let again = bench.set("b:2", "more").await.unwrap_err();
    assert!(again.starts_with("JOURNALERR"), "the sync is never tried again: {again}");
    let shown = bench.get("b:1").await.unwrap_err();
    assert!(shown.starts_with("JOURNALERR"), "{shown}");
    assert_eq!(bench.set("plain", "1").await, Ok(()), "what isn't written behind goes on");
}

/// What of `b:0` to `b:19` a start from this disk has; all of it is as it was written.
async fn left_of_twenty(ground: &mut Ground, disk: MemoryDisk) -> Vec<usize> {
    ground.disk = disk;
    let bench = ground.start();
    let mut left = Vec::new();
    for number in 0..20 {
        let value = bench.get(&format!("b:{number}")).await.expect("the journal is well");
        assert!(value.as_ref().is_none_or(|value| *value == number.to_string()), "{value:?}");
        left.extend(value.map(|_| number));
    }
    left
}

/// SEMANTICS 11: a power loss loses at most what was acknowledged since the last sync, which is an interval
/// ago at most, and in order: nothing is lost before something that is kept. A kill loses nothing, and with
/// `fsync = "always"` neither loses anything.
#[tokio::test]
async fn rule_11_a_power_loss_loses_an_interval_and_a_kill_nothing() {
    const INTERVAL: u64 = 100;
    let every = |fsync| Ground { fsync, ..Ground::new() };
    for mut ground in [Fsync::Interval(Duration::from_millis(INTERVAL)), Fsync::Always].map(every) {
        let bench = ground.start();
        let syncs = || {
            let behind = bench.cache.policies().behind().expect("it writes behind");
            behind.journal().figures().syncs
        };
        for number in 0..10 {
            bench.set(&format!("b:{number}"), &number.to_string()).await.unwrap();
        }
        let before = syncs();
        let later = NOW + INTERVAL;
        bench.clock.set(later);
        let synced = async {
            while ground.fsync != Fsync::Always && syncs() == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), synced).await.expect("an interval is over");
        // The clock stands again: these are younger than the interval.
        for number in 10..20 {
            bench.set(&format!("b:{number}"), &number.to_string()).await.unwrap();
        }
        let killed = ground.disk.after_kill();
        let powerless: Vec<MemoryDisk> = (1..=50)
            .map(|seed| {
                let mut state = seed;
                ground.disk.after_power_loss(|| {
                    state = crate::tier::shelf::next_random(state);
                    state >> 7
                })
            })
            .collect();
        drop(bench);
        let all: Vec<usize> = (0..20).collect();
        assert_eq!(left_of_twenty(&mut ground, killed).await, all, "a kill loses nothing");
        let mut losses = 0;
        for disk in powerless {
            let left = left_of_twenty(&mut ground, disk).await;
            assert_eq!(left, all[..left.len()], "they are lost from the end");
            assert!(left.len() >= 10, "what is older than the interval is lost: {left:?}");
            losses += usize::from(left.len() < 20);
        }
        assert_eq!(losses > 0, ground.fsync != Fsync::Always, "{losses} of 50 lost something");
    }
}

/// SEMANTICS 12: *DEL k is acknowledged and unflushed, GET loads the row back.*
#[tokio::test]
async fn rule_12_a_deleted_key_does_not_come_back_from_the_store() {
    let bench = Ground::new().start();
    bench.store("b:1", b"row").await;
    assert_eq!(bench.remove("b:1").await, Ok(true));
    assert_eq!(bench.get("b:1").await, Ok(None));
    assert_eq!(bench.stored("b:1").await, Some(("row".into(), 0)), "the store has it still");
    drop(bench.cache.memory().flush(0..1));
    assert_eq!(bench.get("b:1").await, Ok(None), "FLUSHALL leaves the overlay alone");
    bench.flush().await;
    assert_eq!(bench.stored("b:1").await, None);
}

/// SEMANTICS 12: *A dirty key expires, GET loads v1.*
#[tokio::test]
async fn rule_12_a_dirty_key_that_expires_is_gone() {
    let bench = Ground::new().start();
    bench.store("b:1", b"v1").await;
    bench.set("b:1", "v2").await.unwrap();
    assert_eq!(bench.expire("b:1", NOW + 1000).await, Ok(true));
    bench.clock.set(NOW + 1000);
    assert_eq!(bench.get("b:1").await, Ok(None));
    bench.flush().await;
    assert_eq!(bench.stored("b:1").await, None, "it is flushed as a delete");
}

/// SEMANTICS 12: unflushed changes count in memory.
#[tokio::test]
async fn rule_12_unflushed_changes_count_in_memory() {
    let bench = Ground::new().start();
    let value = "x".repeat(100_000);
    bench.set("b:1", &value).await.unwrap();
    let with_both = bench.cache.memory().used();
    bench.forget_all();
    let with_overlay = bench.cache.memory().used();
    assert!(with_both >= 200_000 && with_overlay >= 100_000, "{with_both} {with_overlay}");
    bench.flush().await;
    // Nothing further has to be written for it.
    let is_over = async {
        while bench.cache.memory().used() >= 50_000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_over).await.expect("it counts no more");
}

/// SEMANTICS 13: *`ttl = "10m"`; GET loads; APPEND saves "expires in 10 minutes": the row disappears.*
#[tokio::test]
async fn rule_13_a_deadline_of_the_cache_never_reaches_the_store() {
    let bench = Ground::new().start();
    bench.set("c:1", "row").await.unwrap();
    bench.flush().await;
    let calls = bench.faults.calls(Op::Apply);
    assert_eq!(bench.expire("c:1", NOW + 1000).await, Ok(true));
    bench.flush().await;
    assert_eq!(bench.faults.calls(Op::Apply), calls, "the store isn't told");
    bench.append("c:1", "!").await.unwrap();
    bench.flush().await;
    assert_eq!(bench.stored("c:1").await, Some(("row!".into(), 0)));
    bench.clock.set(NOW + 1000);
    assert_eq!(bench.get("c:1").await, some("row!"), "the copy has ended, the row hasn't");
    assert_eq!(bench.expire("c:1", NOW).await, Ok(true));
    bench.flush().await;
    assert_eq!(bench.stored("c:1").await, Some(("row!".into(), 0)));
    // With `ttl_means = "data"` it is the row's.
    bench.set("b:1", "row").await.unwrap();
    assert_eq!(bench.expire("b:1", NOW + 5000).await, Ok(true));
    bench.flush().await;
    assert_eq!(bench.stored("b:1").await, Some(("row".into(), NOW + 5000)));
}

/// SEMANTICS 14: *A counter restarts at 0, the store refuses acknowledged writes as older and the flusher
/// takes that for success.*
#[tokio::test]
async fn rule_14_a_clock_that_was_set_back_issues_no_older_version() {
    let ground = Ground::new();
    let bench = ground.start();
    bench.set("b:1", "before").await.unwrap();
    bench.flush().await;
    bench.end().await;
    let clock = Clock::manual(1000);
    let bench = Ground { clock, ..ground }.start();
    bench.set("b:1", "after").await.unwrap();
    bench.flush().await;
    assert_eq!(bench.stored("b:1").await, Some(("after".into(), 0)));
}

/// SEMANTICS 16: *RENAME across policies stores the target before it deletes the source.*
#[tokio::test]
async fn rule_16_rename_from_a_store_to_the_journal_loses_nothing() {
    let ground = Ground::new();
    let bench = ground.start();
    bench.set("w:1", "value").await.unwrap();
    bench.faults.fail_next(Op::Apply, 1, down());
    let failed = bench.rename("w:1", "b:1").await.unwrap_err();
    assert!(failed.starts_with("STOREDOWN"), "{failed}");
    assert_eq!(bench.stored("w:1").await, Some(("value".into(), 0)), "the source is there");
    bench.rename("w:1", "b:1").await.unwrap();
    assert_eq!(bench.stored("w:1").await, None);
    bench.end().await;
    let bench = ground.start();
    assert_eq!(bench.get("b:1").await, some("value"));
}

/// A DEL of several keys that the store refuses deletes none of them.
#[tokio::test]
async fn a_refused_delete_leaves_the_other_keys_alone() {
    let bench = Ground::new().start();
    for key in ["w:1", "b:1", "plain"] {
        bench.set(key, "here").await.unwrap();
    }
    bench.faults.fail_next(Op::Apply, 1, down());
    let keys = ["w:1", "b:1", "plain"];
    let uses: Vec<_> = keys.iter().map(|key| (*key, Use::Write)).collect();
    let remove =
        |tx: &mut Tx<'_>| keys.iter().try_for_each(|key| tx.remove(bench.key(key)).map(drop));
    let refused = bench.run(0, &uses, remove).await.unwrap_err();
    assert!(refused.starts_with("STOREDOWN"), "{refused}");
    for key in keys {
        assert_eq!(bench.get(key).await, some("here"), "{key}");
    }
}

/// SEMANTICS 17: *A dead letter drops the cached copy.*
#[tokio::test]
async fn rule_17_a_dead_letter_drops_the_cached_copy() {
    let ground = Ground {
        settings: behind::Settings { delay: Duration::ZERO, tries: 2, ..Ground::new().settings },
        ..Ground::new()
    };
    let bench = ground.start();
    bench.store("b:1", b"what the store has").await;
    bench.faults.refuse(b"b:1");
    bench.set("b:1", "poison").await.unwrap();
    bench.flush().await;
    assert_eq!(bench.get("b:1").await, some("what the store has"));
    assert_eq!(bench.cache.policies().behind().expect("it is open").dead_letters().len(), 1);
}

/// SEMANTICS 18: `write = "around"` writes the store and drops the copy.
#[tokio::test]
async fn rule_18_around_writes_the_store_and_drops_the_copy() {
    let bench = Ground::new().start();
    bench.store("x:1", b"old").await;
    assert_eq!(bench.get("x:1").await, some("old"));
    bench.set("x:1", "new").await.unwrap();
    assert_eq!(bench.cached("x:1"), None);
    assert_eq!(bench.stored("x:1").await, Some(("new".into(), 0)));
    bench.append("x:1", "er").await.unwrap();
    assert_eq!(bench.cached("x:1"), None);
    assert_eq!(bench.get("x:1").await, some("newer"));
}

/// SEMANTICS 3, without reading through: a write that depends on the old value has it from the store.
#[tokio::test]
async fn rule_3_a_write_behind_depends_on_what_the_store_has() {
    let bench = Ground::new().start();
    bench.store("a:n", b"41").await;
    assert_eq!(bench.get("a:n").await, Ok(None), "reads don't load");
    assert_eq!(bench.increment("a:n").await, Ok(42));
    bench.forget_all();
    assert_eq!(bench.get("a:n").await, some("42"), "what is unflushed is never hidden");
    bench.flush().await;
    assert_eq!(bench.stored("a:n").await, Some(("42".into(), 0)));
}

#[tokio::test]
async fn a_full_journal_makes_writers_wait_and_then_refuses() {
    let ground = Ground { limit: 20_000, ..Ground::new() };
    let bench = ground.start();
    bench.cache.set_journal_patience(Duration::from_millis(10));
    bench.faults.fail_all(Op::Apply, down());
    let value = "x".repeat(1000);
    let mut taken = 0;
    let refused = loop {
        match bench.set(&format!("b:{taken}"), &value).await {
            Ok(()) => taken += 1,
            Err(why) => break why,
        }
    };
    assert!(refused.starts_with("JOURNALFULL"), "{refused}");
    assert!((10..20).contains(&taken), "{taken}");
    assert_eq!(bench.set("plain", &value).await, Ok(()));
    assert_eq!(bench.get("b:0").await, some(&value));
    bench.cache.set_journal_patience(Duration::from_secs(60));
    bench.faults.clear();
    bench.set("b:more", &value).await.expect("there is room again, in time");
    bench.flush().await;
    for number in 0..taken {
        assert_eq!(bench.stored(&format!("b:{number}")).await, Some((value.clone(), 0)));
    }
}

/// A model of many commands over tiny memory and a store that fails now and then: every read sees the
/// newest acknowledged value, at every moment, and at the end the store has it. A million operations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_dirty_is_ever_hidden_or_lost() {
    const OPERATIONS: u64 = 1_000_000;
    let seed = crate::tier::log::random();
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut random = move |below: u64| {
        state = crate::tier::shelf::next_random(state);
        (state >> 16) % below
    };
    // Refused so often, a change would be a dead letter.
    let settings =
        behind::Settings { delay: Duration::from_millis(2), tries: 20, ..Ground::new().settings };
    // Unflushed changes leave room for others.
    let mut ground = Ground { memory: 1 << 20, limit: 200 << 10, settings, ..Ground::new() };
    let mut bench = ground.start();
    let mut model: HashMap<u64, String> = HashMap::new();
    for operation in 0..OPERATIONS {
        let number = random(3000);
        let key = format!("b:{number}");
        match random(1000) {
            0..450 => assert_eq!(
                bench.get(&key).await,
                Ok(model.get(&number).cloned()),
                "operation {operation} of seed {seed}"
            ),
            450..900 => {
                let value = format!("{operation}-{}", "x".repeat(random(400) as usize));
                bench.set(&key, &value).await.expect("the journal has room");
                model.insert(number, value);
            }
            900..950 => {
                let was_there = bench.remove(&key).await.expect("the journal has room");
                assert_eq!(was_there, model.remove(&number).is_some(), "seed {seed}");
            }
            950..990 => {
                bench.append(&key, "+").await.expect("the journal has room");
                model.entry(number).or_default().push('+');
            }
            990..996 => match random(3) {
                0 => bench.faults.fail_next(Op::Apply, 1, down()),
                1 => bench.faults.lose_answers(Op::Apply, 1, StoreError::Timeout("lost".into())),
                _ => bench.faults.fail_next(Op::Apply, 1, StoreError::Refused("not now".into())),
            },
            996..999 => bench.forget_all(),
            _ if operation % 8 == 0 => {
                // A restart, with what the process had written.
                bench.end().await;
                let disk = ground.disk.after_kill();
                ground = Ground { disk, ..ground };
                bench = ground.start();
            }
            _ => {}
        }
    }
    bench.faults.clear();
    bench.flush().await;
    for number in 0..3000 {
        let stored = bench.stored(&format!("b:{number}")).await.map(|(value, _)| value);
        assert_eq!(stored, model.get(&number).cloned(), "key {number} of seed {seed}");
    }
    let behind = bench.cache.policies().behind().expect("it writes behind");
    assert!(behind.dead_letters().is_empty());
}
