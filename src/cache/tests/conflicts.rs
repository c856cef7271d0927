//! SEMANTICS 14: *A counter restarts at 0, the store refuses acknowledged writes as older and the flusher
//! takes that for success.*

use std::sync::atomic::Ordering::Relaxed;

use super::{behind::Ground, *};
use crate::store::{Applied, Overtaken};

/// A version that no clock of ours issues for some thousand years.
const FAR: u64 = 1 << 60;

/// Every kind of store that compares versions without a server.
fn grounds() -> Vec<(Ground, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().expect("a directory");
    let redb = store::redb(dir.path().join("store.redb")).expect("a new file");
    let memory = Ground::new();
    vec![(memory, None), (Ground { store: redb, ..Ground::new() }, Some(dir))]
}

impl Bench {
    /// Somebody else writes to the main store.
    async fn foreign(&self, key: &str, version: u64) {
        let record = Record { value: Bytes::from_static(b"foreign"), version, ..Record::default() };
        let change = (Bytes::copy_from_slice(key.as_bytes()), Change::Put(record));
        assert_eq!(self.main.apply(&[change]).await, Ok(vec![]));
    }

    async fn version(&self, key: &str) -> u64 {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let found = self.main.load(&[key]).await.unwrap().pop().flatten();
        found.map_or(0, |record| record.version)
    }

    fn conflicts(&self, key: &str) -> u64 {
        let namespace = self.cache.policies().of(0, key.as_bytes()).expect("it is there");
        namespace.stats.conflicts.load(Relaxed)
    }

    async fn value(&self, key: &str) -> Option<String> {
        self.stored(key).await.map(|(value, _)| value)
    }
}

#[tokio::test]
async fn rule_14_an_acknowledged_write_wins_over_a_version_from_the_future() {
    for key in ["b:1", "w:1", "x:1"] {
        for (ground, _dir) in grounds() {
            let bench = ground.start();
            bench.foreign(key, FAR).await;
            bench.set(key, "ours").await.unwrap();
            bench.flush().await;
            assert_eq!(bench.value(key).await.as_deref(), Some("ours"), "{key}");
            assert_eq!(bench.conflicts(key), 1, "{key}");
            assert!(bench.version(key).await > FAR);
            assert_eq!(bench.get(key).await, some("ours"));
            // The clock is above it from now on, also for other keys.
            let other = key.replace('1', "2");
            bench.foreign(&other, FAR).await;
            bench.set(&other, "ours").await.unwrap();
            bench.set(key, "again").await.unwrap();
            bench.flush().await;
            assert_eq!(bench.value(&other).await.as_deref(), Some("ours"));
            assert_eq!(bench.value(key).await.as_deref(), Some("again"));
            assert_eq!(bench.conflicts(key), 1, "{key}");
            bench.end().await;
        }
    }
}

#[tokio::test]
async fn rule_14_of_a_batch_only_what_was_passed_over_is_sent_again() {
    for (ground, _dir) in grounds() {
        let bench = ground.start();
        let key = |prefix: &str, number: usize| format!("{prefix}:{number}");
        for number in (0..90).step_by(3) {
            bench.foreign(&key("b", number), FAR + number as u64).await;
            bench.foreign(&key("w", number), FAR + number as u64).await;
        }
        for number in 0..90 {
            bench.set(&key("b", number), "ours").await.unwrap();
        }
        // A delete has to win as well.
        bench.remove("b:0").await.unwrap();
        let keys: Vec<String> = (0..90).map(|number| key("w", number)).collect();
        let pairs: Vec<_> = keys.iter().map(|key| (key.as_str(), "ours")).collect();
        bench.mset(&pairs).await.unwrap();
        bench.flush().await;
        for number in 0..90 {
            let expected = (number > 0).then_some("ours");
            assert_eq!(bench.value(&key("b", number)).await.as_deref(), expected, "{number}");
            assert_eq!(bench.value(&key("w", number)).await.as_deref(), Some("ours"), "{number}");
        }
        assert!((1..=30).contains(&bench.conflicts("b:1")), "{}", bench.conflicts("b:1"));
        let behind = bench.cache.policies().behind().expect("it writes behind");
        assert_eq!(behind.bytes(), 0, "nothing is left");
    }
}

/// The newest value is what is sent again, and nothing of the journal is left behind.
#[tokio::test]
async fn rule_14_what_was_written_meanwhile_is_sent_instead() {
    let bench = Ground::new().start();
    bench.foreign("b:1", FAR).await;
    bench.set("b:1", "first").await.unwrap();
    bench.faults.hold(Op::Apply);
    let behind = bench.cache.policies().behind().expect("it writes behind").clone();
    let flush = tokio::spawn(async move { behind.flush().await });
    bench.faults.wait_for_calls(Op::Apply, 1).await;
    bench.set("b:1", "second").await.unwrap();
    bench.faults.release(Op::Apply);
    flush.await.unwrap().unwrap();
    bench.flush().await;
    assert_eq!(bench.value("b:1").await.as_deref(), Some("second"));
    assert_eq!(bench.conflicts("b:1"), 1);
    let behind = bench.cache.policies().behind().expect("it writes behind");
    behind.journal().close().expect("it is well");
    assert_eq!(behind.journal().figures().unacknowledged, 0);
}

/// A retry after an unknown outcome, and after a restart, finds its own version: no conflict.
#[tokio::test]
async fn rule_14_a_change_that_is_stored_already_is_no_conflict() {
    let ground = Ground::new();
    let bench = ground.start();
    let lost = || StoreError::Timeout("no answer".into());
    bench.faults.lose_answers(Op::Apply, 1, lost());
    bench.set("b:1", "ours").await.unwrap();
    bench.flush().await;
    assert_eq!((bench.conflicts("b:1"), bench.faults.calls(Op::Apply)), (0, 2));
    bench.faults.lose_answers(Op::Apply, u64::MAX / 2, lost());
    bench.set("b:1", "newer").await.unwrap();
    let behind = bench.cache.policies().behind().expect("it writes behind").clone();
    let flush = tokio::spawn(async move { behind.flush().await });
    bench.faults.wait_for_calls(Op::Apply, 3).await;
    while bench.value("b:1").await.as_deref() != Some("newer") {
        tokio::task::yield_now().await;
    }
    flush.abort();
    let _ = flush.await;
    bench.end().await;
    let bench = ground.start();
    assert!(bench.cache.policies().behind().is_some_and(|behind| behind.keys().len() == 1));
    bench.flush().await;
    assert_eq!(bench.value("b:1").await.as_deref(), Some("newer"));
    assert_eq!(bench.conflicts("b:1"), 0);
}

#[tokio::test]
async fn rule_14_a_restart_between_loses_nothing() {
    let ground = Ground::new();
    let bench = ground.start();
    for key in ["b:1", "b:2"] {
        bench.foreign(key, FAR).await;
    }
    bench.set("b:1", "ours").await.unwrap();
    bench.set("b:2", "ours").await.unwrap();
    // The first call of each passes over, and then the store is down.
    (2..1000).for_each(|n| bench.faults.fail_nth(Op::Apply, n, down()));
    let behind = bench.cache.policies().behind().expect("it writes behind").clone();
    let flush = tokio::spawn(async move { behind.flush().await });
    bench.faults.wait_for_calls(Op::Apply, 3).await;
    flush.abort();
    let _ = flush.await;
    bench.end().await;
    let bench = ground.start();
    for key in ["b:1", "b:2"] {
        assert_eq!(bench.get(key).await, some("ours"));
    }
    bench.flush().await;
    for key in ["b:1", "b:2"] {
        assert_eq!(bench.value(key).await.as_deref(), Some("ours"));
    }
}

/// A power loss takes the newest record of the journal, but not what the store has: the older one that is
/// left gives way, and nobody reads it any more.
#[tokio::test]
async fn rule_14_what_an_earlier_start_stored_is_no_conflict() {
    let ground = Ground::new();
    let bench = ground.start();
    bench.set("b:1", "older").await.unwrap();
    bench.end().await;
    ground.clock.set(NOW + 1000);
    let bench = ground.start();
    bench.foreign("b:1", (NOW + 500) * 1000).await;
    assert_eq!(bench.get("b:1").await, some("older"));
    bench.flush().await;
    assert_eq!(bench.value("b:1").await.as_deref(), Some("foreign"));
    assert_eq!(bench.conflicts("b:1"), 0);
    assert_eq!(bench.get("b:1").await, some("foreign"));
    // What it can't have issued is one.
    bench.set("b:2", "ours").await.unwrap();
    bench.end().await;
    let bench = ground.start();
    bench.foreign("b:2", FAR).await;
    bench.flush().await;
    assert_eq!(bench.value("b:2").await.as_deref(), Some("ours"));
    assert_eq!(bench.conflicts("b:2"), 1);
}

/// What was written through is covered by the journal's ceiling: a clock that is set back issues newer ones.
#[tokio::test]
async fn rule_14_versions_of_writes_through_are_covered_too() {
    let ground = Ground::new();
    let bench = ground.start();
    bench.set("w:1", "before").await.unwrap();
    bench.end().await;
    let clock = Clock::manual(1000);
    let bench = Ground { clock, ..ground }.start();
    bench.set("w:1", "after").await.unwrap();
    assert_eq!(bench.value("w:1").await.as_deref(), Some("after"));
    assert_eq!(bench.conflicts("w:1"), 0);
}

/// A store that is always ahead.
struct Racing;

impl Store for Racing {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> store::BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        let foreign = Record { value: Bytes::from_static(b"foreign"), ..Record::default() };
        Box::pin(async move { Ok(vec![Some(foreign); keys.len()]) })
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> store::BoxFuture<'a, Applied> {
        let ahead = |(place, change): (usize, &(Bytes, Change))| Overtaken {
            place,
            by: change.1.version() + 1,
        };
        Box::pin(async move { Ok(changes.iter().enumerate().map(ahead).collect()) })
    }

    fn ping(&self) -> store::BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn kind(&self) -> &'static str {
        "racing"
    }
}

#[tokio::test]
async fn rule_14_a_write_through_that_never_gets_there_is_not_acknowledged() {
    let bench = Ground { store: Arc::new(Racing), ..Ground::new() }.start();
    assert_eq!(bench.get("w:1").await, some("foreign"));
    let failed = bench.set("w:1", "ours").await.unwrap_err();
    assert!(failed.starts_with("STORETIMEOUT others write newer versions"), "{failed}");
    assert_eq!((bench.conflicts("w:1"), bench.faults.calls(Op::Apply)), (2, 3));
    assert_eq!(bench.cached("w:1"), None);
}
