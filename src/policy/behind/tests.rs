//! The lines of write-behind over a faulty store: what is coalesced, tried again, given up and taken up.

use std::{path::PathBuf, time::Duration};

use super::*;
use crate::{
    policy::{Namespace, Read},
    store::{
        self, StoreError,
        faulty::{Faults, Op},
    },
    tier::disk::memory::Memory,
};

const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    policies: Policies,
    inner: Arc<dyn Store>,
    faults: Faults,
    disk: Memory,
    dir: tempfile::TempDir,
    noted: Noted,
}

/// A cache that notes what it is told.
#[derive(Clone, Default)]
struct Noted(Arc<Notes>);

#[derive(Default)]
struct Notes {
    forgotten: Mutex<Vec<(usize, Bytes)>>,
    conflicts: Mutex<Vec<(Bytes, u64)>>,
}

impl Above for Noted {
    fn landed(&self) {}

    fn forget(&self, db: usize, key: &Bytes) {
        self.0.forgotten.lock().push((db, key.clone()));
    }

    fn conflict(&self, _db: usize, key: &Bytes, stored: u64) -> Option<u64> {
        self.0.conflicts.lock().push((key.clone(), stored));
        Some(stored + 1)
    }
}

fn settings(delay: u64) -> Settings {
    let delay = Duration::from_millis(delay);
    Settings { delay, partitions: 2, tries: 3, ..Settings::default() }
}

fn down() -> StoreError {
    StoreError::Down("unplugged".into())
}

impl Bench {
    /// A namespace `k` that writes behind, over a store with faults.
    fn new(settings: Settings) -> Self {
        Self::open(
            settings,
            store::memory(),
            Memory::new(),
            tempfile::tempdir().expect("a directory"),
        )
        .expect("the journal opens")
    }

    fn open(
        settings: Settings,
        inner: Arc<dyn Store>,
        disk: Memory,
        dir: tempfile::TempDir,
    ) -> Result<Self, Error> {
        let (store, faults) = store::faulty::faulty(inner.clone());
        let namespace = Namespace {
            prefix: b"k".as_slice().into(),
            read: Read::Through,
            write: Write::Behind,
            store: Some(("main".into(), store)),
            behind: settings,
            ..Namespace::default()
        };
        let mut policies = Policies::new(vec![namespace]);
        let options = journal::Options { fsync: Fsync::Never, ..journal::Options::new("/journal") };
        let (dead, disk_too) = (dir.path().join("dead"), Arc::new(disk.clone()));
        Behind::open(&mut policies, options, dead, disk_too, Clock::default())?;
        let noted = Noted::default();
        let behind = policies.behind().expect("it is open").clone();
        behind.start(&Handle::current(), noted.clone(), &Vitals::default());
        Ok(Self { policies, inner, faults, disk, dir, noted })
    }

    fn behind(&self) -> &Behind {
        self.policies.behind().expect("it is open")
    }

    fn line(&self) -> &Line {
        self.policies.at(0).line.as_ref().expect("it writes behind")
    }

    async fn put(&self, key: &str, value: &str, version: u64) -> Position {
        let mut room = self.behind().journal().reserve(1000, PATIENCE).await.expect("room");
        let value = Bytes::copy_from_slice(value.as_bytes());
        let change = Change::Put(Record { value, deadline: 0, version, fresh_for: None });
        let update = Update::of(key.as_bytes(), &change);
        self.line().append(&mut room, update, 0).expect("it is taken in")
    }

    async fn stored(&self, key: &str) -> Option<String> {
        let found =
            self.inner.load(&[Bytes::copy_from_slice(key.as_bytes())]).await.expect("it serves");
        let record = found.into_iter().next().flatten()?;
        Some(String::from_utf8_lossy(&record.value).into_owned())
    }

    async fn flush(&self) {
        let flush = tokio::time::timeout(PATIENCE, self.behind().flush());
        flush.await.expect("in time").expect("the journal is well");
    }

    fn get(&self, key: &str) -> Option<Option<String>> {
        let record = self.line().get(key.as_bytes())?;
        Some(record.map(|record| String::from_utf8_lossy(&record.value).into_owned()))
    }
}

#[tokio::test]
async fn a_key_that_is_written_again_and_again_is_stored_once() {
    let bench = Bench::new(settings(3_600_000));
    for version in 1..=100 {
        bench.put("k1", &version.to_string(), version).await;
    }
    assert_eq!(bench.get("k1"), Some(Some("100".into())));
    assert_eq!(bench.line().backlog().records, 1);
    assert_eq!(bench.faults.calls(Op::Apply), 0, "it waits for its delay");
    bench.flush().await;
    assert_eq!(bench.faults.calls(Op::Apply), 1);
    assert_eq!((bench.get("k1"), bench.stored("k1").await), (None, Some("100".into())));
    let counters = bench.line().counters();
    assert_eq!((counters.changes.load(Relaxed), counters.flushed.load(Relaxed)), (100, 1));
    assert_eq!((bench.behind().bytes(), bench.line().backlog().records), (0, 0));
    let journal = bench.behind().journal();
    bench.put("k2", "x", 101).await;
    bench.flush().await;
    journal.close().expect("it is well");
    assert_eq!(journal.figures().unacknowledged, 0);
}

#[tokio::test]
async fn after_its_delay_a_change_is_stored_by_itself() {
    let bench = Bench::new(settings(0));
    bench.put("k1", "v", 1).await;
    bench.faults.wait_for_calls(Op::Apply, 1).await;
    bench.flush().await;
    assert_eq!(bench.stored("k1").await, Some("v".into()));
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_a_delete() {
    let bench = Bench::new(settings(3_600_000));
    bench.put("k1", "old", 1).await;
    bench.flush().await;
    let mut room = bench.behind().journal().reserve(1000, PATIENCE).await.expect("room");
    let record =
        Record { value: Bytes::from_static(b"new"), deadline: 1, version: 2, fresh_for: None };
    let update = Update::of(b"k1", &Change::Put(record));
    bench.line().append(&mut room, update, 0).expect("taken in");
    assert_eq!(bench.get("k1"), Some(None), "gone, and nobody asks the store, which has it still");
    bench.flush().await;
    assert_eq!(bench.stored("k1").await, None);
}

#[tokio::test]
async fn a_key_flies_alone_and_what_comes_meanwhile_follows() {
    let bench = Bench::new(settings(0));
    bench.faults.hold(Op::Apply);
    bench.put("k1", "1", 1).await;
    bench.faults.wait_for_calls(Op::Apply, 1).await;
    for version in 2..=5 {
        bench.put("k1", &version.to_string(), version).await;
    }
    assert_eq!(bench.get("k1"), Some(Some("5".into())), "the newest is what is read");
    let flushing = bench.behind().flush();
    tokio::pin!(flushing);
    let soon = tokio::time::timeout(Duration::from_millis(20), &mut flushing).await;
    assert!(soon.is_err() && bench.faults.calls(Op::Apply) == 1, "one call for a key at a time");
    bench.faults.release(Op::Apply);
    flushing.await.expect("the journal is well");
    assert_eq!(bench.stored("k1").await, Some("5".into()));
    assert_eq!(bench.faults.applied().len(), 2);
    assert_eq!(bench.behind().bytes(), 0);
}

#[tokio::test]
async fn a_store_that_is_down_is_tried_until_it_is_not() {
    let bench = Bench::new(settings(0));
    bench.faults.fail_all(Op::Apply, down());
    for number in 0..50 {
        bench.put(&format!("k{number}"), "v", number).await;
    }
    bench.faults.wait_for_calls(Op::Apply, 4).await;
    assert_eq!(bench.line().backlog().records, 50);
    bench.faults.clear();
    bench.faults.lose_answers(Op::Apply, 2, StoreError::Timeout("lost".into()));
    bench.flush().await;
    for number in 0..50 {
        assert_eq!(bench.stored(&format!("k{number}")).await, Some("v".into()));
    }
    assert!(bench.line().counters().retries.load(Relaxed) >= 4);
    assert!(bench.behind().dead_letters().is_empty());
}

#[tokio::test]
async fn a_change_that_is_always_refused_becomes_a_dead_letter_and_blocks_nobody() {
    let bench = Bench::new(settings(0));
    bench.faults.refuse(b"k-poison");
    for number in 0..20 {
        bench.put(&format!("k{number}"), "v", number).await;
    }
    bench.put("k-poison", "bad", 77).await;
    bench.flush().await;
    for number in 0..20 {
        assert_eq!(bench.stored(&format!("k{number}")).await, Some("v".into()));
    }
    let letters = bench.behind().dead_letters();
    let [id] = letters.ids().expect("readable")[..] else { panic!("one letter") };
    let letter = letters.read(id).expect("readable").expect("there");
    assert_eq!((&*letter.key, letter.tries, letter.change.version()), (&b"k-poison"[..], 3, 77));
    assert_eq!(bench.get("k-poison"), None);
    let forgotten = bench.noted.0.forgotten.lock().clone();
    assert_eq!(forgotten, [(0, Bytes::from_static(b"k-poison"))], "its copy goes");
    assert_eq!(bench.line().counters().dead_letters.load(Relaxed), 1);
    // A newer value of the key is a change of its own.
    bench.faults.clear();
    bench.put("k-poison", "good", 78).await;
    bench.flush().await;
    assert_eq!(bench.stored("k-poison").await, Some("good".into()));
}

/// A bench with one lane, before which many keys wait: `bad` of them are refused, in front of the others.
async fn crowded(tries: u32, bad: u64, good: u64) -> Bench {
    let bench = Bench::new(Settings { tries, partitions: 1, ..settings(0) });
    bench.faults.hold(Op::Apply);
    for number in 0..bad + good {
        let key =
            if number < bad { format!("k-bad{number}") } else { format!("k{}", number - bad) };
        if number < bad {
            bench.faults.refuse(key.as_bytes());
        }
        bench.put(&key, "v", number + 1).await;
    }
    bench.faults.release(Op::Apply);
    bench
}

#[tokio::test]
async fn many_refused_keys_hold_up_what_is_behind_them_for_few_calls() {
    let bench = crowded(3, 5_000, 1).await;
    let stored = async |key: &str| {
        while bench.stored(key).await.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stored("k0")).await.expect("in time");
    // It was in one batch with bad ones: about a call for each of those, and for what they were in.
    let calls = bench.faults.calls(Op::Apply);
    assert!(calls < 1_000, "{calls} calls");
    // What comes now waits for one call at a time. They are slow enough to be counted.
    bench.faults.delay(Op::Apply, Duration::from_millis(10));
    for number in 1..10 {
        let (key, before) = (format!("k{number}"), bench.faults.calls(Op::Apply));
        bench.put(&key, "v", 10_000 + number).await;
        tokio::time::timeout(PATIENCE, stored(&key)).await.expect("in time");
        let calls = bench.faults.calls(Op::Apply) - before;
        assert!(calls < 6, "{calls} calls");
    }
    assert!(bench.line().backlog().records > 1_000, "most of them still wait");
}

#[tokio::test]
async fn a_few_refused_keys_are_found_in_few_calls_and_a_flush_waits_for_them() {
    let bench = crowded(1, 2, 2_000).await;
    bench.flush().await;
    assert_eq!(bench.line().backlog(), Backlog::default());
    for number in [0, 1, 700, 1_999] {
        assert_eq!(bench.stored(&format!("k{number}")).await, Some("v".into()));
    }
    assert_eq!(bench.line().counters().dead_letters.load(Relaxed), 2);
    let calls = bench.faults.calls(Op::Apply);
    assert!(calls < 60, "{calls} calls");
    assert_eq!((bench.behind().bytes(), bench.line().backlog().bytes), (0, 0));
}

#[tokio::test]
async fn a_key_that_waits_apart_is_stored_as_it_is_by_then_and_after_a_failure() {
    let bench = crowded(2, 3, 3).await;
    bench.faults.fail_nth(Op::Apply, 4, down());
    bench.faults.fail_nth(Op::Apply, 6, down());
    for number in 0..3 {
        bench.put(&format!("k{number}"), "newer", 100 + number).await;
    }
    bench.flush().await;
    for number in 0..3 {
        assert_eq!(bench.stored(&format!("k{number}")).await, Some("newer".into()));
    }
    assert_eq!(bench.line().counters().dead_letters.load(Relaxed), 3);
    assert_eq!(bench.behind().bytes(), 0);
    assert_eq!(bench.line().backlog(), Backlog::default());
}

#[tokio::test]
async fn what_was_not_stored_is_taken_up_at_the_next_start() {
    let bench = Bench::new(settings(3_600_000));
    for version in 1..=10 {
        bench.put("k1", &version.to_string(), version).await;
    }
    bench.put("k2", "stored", 11).await;
    bench.faults.fail_all(Op::Apply, down());
    assert_eq!(bench.behind().end(Duration::from_millis(50)).await, 2, "both stay in the journal");
    bench.behind().journal().close().expect("it is well");
    let Bench { inner, disk, dir, .. } = bench;
    let bench = Bench::open(settings(3_600_000), inner, disk, dir).expect("it opens");
    assert_eq!(bench.get("k1"), Some(Some("10".into())));
    assert!(bench.behind().ceiling() >= 11);
    let mut keys = bench.behind().keys();
    keys.sort();
    assert_eq!(keys, [(0, Bytes::from_static(b"k1")), (0, Bytes::from_static(b"k2"))]);
    bench.flush().await;
    assert_eq!(bench.stored("k1").await, Some("10".into()));
    assert_eq!(bench.stored("k2").await, Some("stored".into()));
}

/// SEMANTICS 17: *`retry` applies only if the store's version is still older.*
#[tokio::test]
async fn rule_17_a_dead_letter_gives_way_to_what_is_newer() {
    let bench = Bench::new(settings(3_600_000));
    let again = async |version| {
        let mut room = bench.behind().journal().reserve(1000, PATIENCE).await.expect("room");
        let value = Bytes::from_static(b"letter");
        let change = Change::Put(Record { value, version, ..Record::default() });
        let key = Bytes::from_static(b"k1");
        let update = Update::of(&key, &change);
        bench.line().append_if_newer(&mut room, update, 0).expect("it is taken in");
    };
    bench.put("k1", "newer", 7).await;
    bench.flush().await;
    again(5).await;
    assert_eq!(bench.get("k1"), Some(Some("letter".into())));
    bench.flush().await;
    assert_eq!((bench.get("k1"), bench.stored("k1").await), (None, Some("newer".into())));
    let forgotten = bench.noted.0.forgotten.lock().clone();
    assert_eq!(forgotten, [(0, Bytes::from_static(b"k1"))], "its copy goes");
    again(8).await;
    bench.flush().await;
    assert_eq!(bench.stored("k1").await, Some("letter".into()));
    // A write that takes its place doesn't give way.
    again(5).await;
    bench.put("k1", "written", 6).await;
    bench.flush().await;
    assert_eq!(bench.stored("k1").await, Some("written".into()));
    let conflicts = bench.noted.0.conflicts.lock().clone();
    assert_eq!(conflicts, [(Bytes::from_static(b"k1"), 8)]);
    assert_eq!(bench.behind().bytes(), 0);
}

#[tokio::test]
async fn a_journal_whose_namespace_is_gone_is_not_thrown_away() {
    let bench = Bench::new(settings(3_600_000));
    bench.put("k1", "v", 1).await;
    bench.behind().journal().close().expect("it is well");
    let mut policies = Policies::new(Vec::new());
    let disk = Arc::new(bench.disk.clone());
    let options = journal::Options::new("/journal");
    let opened =
        Behind::open(&mut policies, options, PathBuf::from("/nowhere"), disk, Clock::default());
    let text = opened.expect_err("its changes would be lost").to_string();
    assert!(text.contains("key \"k1\" in database 0"), "{text}");
}
