//! Copies that are old: renewed beside the answer while they are good, and an answer for want of a better
//! one when they aren't. Rules 1 (tickets), 3 (a miss is not an absence), 4 (L1), 7 (records).

use std::sync::atomic::Ordering::Relaxed;

use futures_util::future::join_all;

use super::{rules::Local, *};
use crate::{
    cache::walk::Tier,
    store::breaker::{self, guarded},
    tier::log::{self, Log},
};

/// Copies are fresh for ten seconds, due for a refresh after eight, and kept for a hundred more.
fn aging(namespace: &mut Namespace) {
    namespace.refresh_after = Some(Duration::from_secs(8));
    namespace.stale_if_error = Some(Duration::from_secs(100));
}

const DUE: u64 = NOW + 8_000;
const STALE: u64 = NOW + 10_000;
const GONE: u64 = NOW + 110_000;

/// A bench that has a copy of `r:k`, which is `v1`, and of `w:k`, which is `1`.
async fn with_copies(tune: impl Fn(&mut Namespace)) -> Bench {
    let bench =
        Bench::tuned(store::memory(), Options::default(), Clock::manual(NOW), |namespace| {
            aging(namespace);
            tune(namespace);
        });
    bench.store("r:k", b"v1").await;
    bench.store("w:k", b"1").await;
    assert_eq!(bench.get("r:k").await, some("v1"));
    assert_eq!(bench.get("w:k").await, some("1"));
    bench
}

fn figure(figure: &std::sync::atomic::AtomicU64) -> u64 {
    figure.load(Relaxed)
}

/// SEMANTICS 3: *a stale answer is taken for the value.* It serves reads, and only while the store fails.
#[tokio::test]
async fn rule_3_stale_copies_answer_reads_alone_and_only_for_want_of_better() {
    let bench = with_copies(|_| {}).await;
    bench.store("r:k", b"v2").await;
    bench.clock.set(STALE);
    for error in [down(), StoreError::Timeout("lost".into())] {
        bench.faults.fail_all(Op::Load, error);
        assert_eq!(bench.get("r:k").await, some("v1"));
        let there = |tx: &mut Tx<'_>| tx.exists(bench.key("r:k"));
        assert_eq!(bench.run(0, &[("r:k", Use::Read)], there).await, Ok(true));
        let refused = bench.append("r:k", "!").await.unwrap_err();
        assert!(refused.starts_with("STOREDOWN"), "{refused}");
        assert!(bench.increment("w:k").await.is_err() && bench.expire("r:k", GONE).await.is_err());
        assert!(bench.set_if_absent("r:k", "mine").await.is_err());
        bench.faults.clear();
    }
    assert_eq!(figure(&bench.stats().stale_served), 4);
    bench.faults.fail_next(Op::Load, 1, StoreError::Refused("no".into()));
    assert_eq!(bench.get("r:k").await, Err("STOREERR no".into()), "the data is at fault");
    assert_eq!(bench.get("r:k").await, some("v2"), "and then it isn't");
    assert_eq!(bench.increment("w:k").await, Ok(2));
    let loads = bench.loads();
    assert_eq!((bench.get("r:k").await, bench.loads()), (some("v2"), loads), "it is fresh");

    let bench = with_copies(|_| {}).await;
    bench.faults.fail_all(Op::Load, down());
    bench.clock.set(GONE - 1);
    assert_eq!(bench.get("r:k").await, some("v1"));
    bench.clock.set(GONE);
    assert_eq!(bench.get("r:k").await, Err("STOREDOWN unplugged".into()));
}

#[tokio::test]
async fn rule_3_a_stale_copy_that_the_store_has_no_more_is_gone_for_reads_and_writes() {
    let bench = with_copies(|_| {}).await;
    bench.main.apply(&[(Bytes::from_static(b"r:k"), Change::Delete { version: 2 })]).await.unwrap();
    bench.clock.set(STALE);
    assert_eq!((bench.get("r:k").await, bench.cached("r:k")), (Ok(None), None));
    assert_eq!(bench.set_if_absent("r:k", "mine").await, Ok(true));
}

/// What was loaded in a stale copy's place finds no room: nobody sees the old one again.
#[tokio::test]
async fn rule_3_what_finds_no_room_is_not_hidden_by_a_stale_copy() {
    let options = Options { eviction: Eviction::Noeviction, ..Options::default() };
    let bench = Bench::tuned(store::memory(), options, Clock::manual(NOW), aging);
    for key in ["r:k", "r:l"] {
        bench.store(key, b"v1").await;
        assert_eq!(bench.get(key).await, some("v1"));
        bench.store(key, b"v2").await;
    }
    bench.clock.set(STALE);
    bench.cache.memory().set_limit(0);
    assert_eq!((bench.get("r:k").await, bench.cached("r:k")), (some("v2"), None));
    let old = |tx: &mut Tx<'_>| {
        let old = tx.peek(bench.key("r:l"))?.map(text);
        tx.remove(bench.key("r:l"))?;
        Ok(old)
    };
    assert_eq!(bench.run(0, &[("r:l", Use::Write)], old).await, some("v2"));
}

#[tokio::test]
async fn after_the_soft_timeout_a_stale_copy_answers_and_the_load_goes_on() {
    let bench =
        with_copies(|namespace| namespace.timeout_soft = Some(Duration::from_millis(20))).await;
    bench.store("r:k", b"v2").await;
    bench.clock.set(STALE);
    bench.faults.hold(Op::Load);
    assert_eq!(bench.get("r:k").await, some("v1"));
    // Who comes later doesn't wait anew, nor does anybody load again.
    assert_eq!(join_all((0..10).map(|_| bench.get("r:k"))).await, vec![some("v1"); 10]);
    assert_eq!((bench.loads(), figure(&bench.stats().stale_served)), (3, 11));
    // A write waits, and so does a read without a copy.
    let patient = Duration::from_millis(100);
    assert!(tokio::time::timeout(patient, bench.append("r:k", "!")).await.is_err());
    assert!(tokio::time::timeout(patient, bench.get("r:cold")).await.is_err());
    let release = async { bench.faults.release(Op::Load) };
    assert_eq!(tokio::join!(bench.append("r:k", "!"), release).0, Ok(()));
    bench.landed().await;
    assert_eq!(bench.cached("r:k").as_deref(), Some("v2!"));
}

#[tokio::test]
async fn a_copy_that_is_due_is_served_and_renewed_once() {
    let bench = with_copies(|_| {}).await;
    bench.store("r:k", b"v2").await;
    bench.clock.set(DUE - 1);
    assert_eq!((bench.get("r:k").await, bench.loads()), (some("v1"), 2));
    bench.clock.set(DUE);
    bench.faults.hold(Op::Load);
    assert_eq!(join_all((0..100).map(|_| bench.get("r:k"))).await, vec![some("v1"); 100]);
    assert_eq!(bench.lengths(&["r:k".into(), "r:k".into()]).await, Ok(vec![Some(2); 2]));
    bench.faults.wait_for_calls(Op::Load, 3).await;
    bench.faults.release(Op::Load);
    bench.landed().await;
    assert_eq!((bench.cached("r:k").as_deref(), bench.loads()), (Some("v2"), 3));
    assert_eq!(figure(&bench.stats().refreshes), 1);
    // The new copy is good for as long as any.
    bench.clock.set(DUE + 7_999);
    assert_eq!((bench.get("r:k").await, bench.loads()), (some("v2"), 3));
}

/// SEMANTICS 1: *a refresh of k brings v2; meanwhile SET k v3 is acknowledged, or k is deleted or
/// re-timed, or all is flushed; the refresh lands and v2 stays.*
#[tokio::test]
async fn rule_1_a_refresh_that_a_write_overtook_is_not_kept() {
    for step in 0..4 {
        let bench = with_copies(|_| {}).await;
        bench.store("r:k", b"v2").await;
        bench.clock.set(DUE);
        bench.faults.hold(Op::Load);
        assert_eq!(bench.get("r:k").await, some("v1"));
        let left = match step {
            0 => bench.set("r:k", "v3").await.map(|()| Some("v3")),
            1 => bench.remove("r:k").await.map(|_| None),
            2 => bench.expire("r:k", GONE + 5).await.map(|_| Some("v1")),
            _ => {
                drop(bench.cache.memory().flush(0..1));
                Ok(None)
            }
        };
        bench.faults.release(Op::Load);
        bench.landed().await;
        assert_eq!(bench.cached("r:k").as_deref(), left.unwrap(), "step {step}");
    }
}

#[tokio::test]
async fn a_refresh_that_finds_nothing_removes_the_copy() {
    let bench = with_copies(|_| {}).await;
    bench.main.apply(&[(Bytes::from_static(b"r:k"), Change::Delete { version: 2 })]).await.unwrap();
    bench.clock.set(DUE);
    assert_eq!(bench.get("r:k").await, some("v1"));
    bench.landed().await;
    assert_eq!((bench.cached("r:k"), bench.get("r:k").await), (None, Ok(None)));
}

#[tokio::test]
async fn a_refresh_that_fails_leaves_the_copy_and_is_not_tried_at_every_hit() {
    let bench = with_copies(|_| {}).await;
    bench.faults.fail_all(Op::Load, down());
    let read_much = async || {
        for _ in 0..100 {
            assert_eq!(bench.get("r:k").await, some("v1"));
            bench.landed().await;
        }
        bench.loads() - 2
    };
    bench.clock.set(DUE);
    assert_eq!(read_much().await, 1);
    bench.clock.set(DUE + 999);
    assert_eq!(read_much().await, 1);
    bench.clock.set(DUE + 1_000);
    assert_eq!(read_much().await, 2);
    assert_eq!(figure(&bench.stats().refresh_errors), 2);
}

#[tokio::test]
async fn a_refresh_that_is_refused_leaves_the_copy_alone_to_its_end() {
    let bench = with_copies(|_| {}).await;
    bench.faults.fail_all(Op::Load, StoreError::Refused("no".into()));
    for now in [DUE, DUE + 1_500, STALE - 1] {
        bench.clock.set(now);
        for _ in 0..10 {
            assert_eq!(bench.get("r:k").await, some("v1"));
            bench.landed().await;
        }
    }
    assert_eq!(bench.loads(), 3);
    bench.clock.set(STALE);
    assert_eq!(bench.get("r:k").await, Err("STOREERR no".into()));
}

/// SEMANTICS 4: *a worker's own cache serves a copy that is due for a refresh, or stale.* It asks L2.
#[tokio::test]
async fn rule_4_a_workers_own_cache_serves_no_copy_that_is_due() {
    let bench = with_copies(|_| {}).await;
    let mut local = Local { bench: &bench, local: bench.cache.local(1 << 20) };
    local.heat("r:k");
    assert_eq!(local.read("r:k"), (true, Some("v1".into())));
    bench.store("r:k", b"v2").await;
    bench.clock.set(DUE);
    bench.faults.hold(Op::Load);
    local.heat("r:k");
    assert_eq!(local.read("r:k"), (false, Some("v1".into())), "it was not taken in again");
    assert_eq!(figure(&bench.stats().refreshes), 1);
    bench.faults.release(Op::Load);
    bench.landed().await;
    assert_eq!(local.read("r:k").1.as_deref(), Some("v2"));
    local.heat("r:k");
    assert_eq!(local.read("r:k"), (true, Some("v2".into())));
}

/// SEMANTICS 4: *a worker's own cache goes by times that hold no more.*
#[tokio::test]
async fn rule_4_other_times_reach_every_worker() {
    let bench = with_copies(|_| {}).await;
    let mut local = Local { bench: &bench, local: bench.cache.local(1 << 20) };
    local.heat("r:k");
    bench.clock.set(NOW + 2_000);
    assert_eq!(local.read("r:k"), (true, Some("v1".into())));
    bench.cache.change_namespace(&Namespace {
        prefix: b"r:".as_slice().into(),
        read: Read::Through,
        ttl: Some(Duration::from_secs(10)),
        refresh_after: Some(Duration::from_secs(1)),
        stale_if_error: Some(Duration::from_secs(100)),
        ..Namespace::default()
    });
    assert_eq!(local.read("r:k"), (false, Some("v1".into())), "it is due now");
    bench.landed().await;
    assert_eq!(figure(&bench.stats().refreshes), 1);
}

/// While a breaker is open, no key that has a copy waits: not behind calls that hang either.
#[tokio::test]
async fn behind_an_open_breaker_warm_and_stale_keys_are_answered_at_once() {
    let (inner, faults) = store::faulty::faulty(store::memory());
    let clock = Clock::manual(NOW);
    let (main, breaker) = guarded(inner, "main", breaker::Settings::default(), clock.clone());
    let bench = Bench::tuned(main, Options::default(), clock, |namespace| {
        aging(namespace);
        namespace.loads = Loads { batch: 1, at_once: 1 };
        namespace.timeout_hard = Some(Duration::from_secs(3_600));
    });
    bench.store("r:k", b"v1").await;
    assert_eq!(bench.get("r:k").await, some("v1"));
    faults.hold(Op::Load);
    let others = async {
        faults.wait_for_calls(Op::Load, 2).await;
        breaker.open();
        for now in [DUE - 1, DUE, STALE] {
            bench.clock.set(now);
            for _ in 0..50 {
                assert_eq!(bench.get("r:k").await, some("v1"));
            }
        }
        assert!(bench.get("r:other").await.is_err_and(|why| why.starts_with("STOREDOWN")));
        faults.release(Op::Load);
    };
    let (hung, ()) = tokio::join!(bench.get("r:hung"), others);
    assert_eq!(hung, Ok(None));
    assert_eq!(figure(&bench.stats().stale_served), 50);
}

/// A small cache over a disk, aging as above.
fn over_disk(dir: &std::path::Path) -> Bench {
    let log = Log::open(&log::Options { queue: 64 << 10, ..log::Options::new(dir, 64 << 20) });
    let log = Some(Arc::new(log.expect("the log opens")));
    // Whatever leaves goes to disk, and what isn't used leaves soon.
    let eviction = Eviction::AllkeysLru;
    let options = Options { limit: 1 << 20, eviction, log, ..Options::default() };
    Bench::tuned(store::memory(), options, Clock::manual(NOW), aging)
}

/// Pushes a key out of memory, and waits until the disk has it.
async fn push_out(bench: &Bench, key: &str) {
    let place = async || {
        let place = bench.cache.place(0, key.as_bytes(), bench.clock.now()).await;
        place.map(|place| place.tier)
    };
    for other in 0..100_000 {
        match place().await {
            Some(Tier::Disk) => return,
            Some(Tier::Queue) => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => {}
        }
        let _ = bench.set(&format!("other:{}", other % 1_500), &"x".repeat(1_000)).await;
    }
    panic!("{key} stays in memory");
}

/// SEMANTICS 7: *a copy on disk is renewed in memory; the new one is forgotten and the old one read.*
#[tokio::test]
async fn rule_7_a_stale_copy_on_disk_answers_and_what_renews_it_replaces_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let bench = over_disk(dir.path());
    bench.store("r:k", b"v1").await;
    assert_eq!(bench.get("r:k").await, some("v1"));
    push_out(&bench, "r:k").await;
    bench.clock.set(STALE);
    bench.faults.fail_all(Op::Load, down());
    assert_eq!(bench.get("r:k").await, some("v1"));
    assert!(bench.append("r:k", "!").await.is_err_and(|why| why.starts_with("STOREDOWN")));
    assert_eq!(bench.cached("r:k").as_deref(), Some("v1"), "promoted for the next time");
    push_out(&bench, "r:k").await;
    bench.faults.clear();
    bench.store("r:k", b"v2").await;
    assert_eq!(bench.get("r:k").await, some("v2"));
    let loads = bench.loads();
    push_out(&bench, "r:k").await;
    assert_eq!((bench.get("r:k").await, bench.loads()), (some("v2"), loads));
    // In memory it has a record that is no more true once it is renewed there.
    bench.store("r:k", b"v3").await;
    bench.clock.set(STALE + 8_000);
    assert_eq!(bench.get("r:k").await, some("v2"));
    bench.landed().await;
    // The disk's thread cancels a refresh if it moves the key's record meanwhile; then the copy stays.
    let is_renewed = bench.cached("r:k").as_deref() == Some("v3");
    push_out(&bench, "r:k").await;
    let read = bench.get("r:k").await;
    assert!(read == some("v3") || !is_renewed && read == some("v2"), "{is_renewed}: {read:?}");
}

/// SEMANTICS 1: *whatever is refreshed, served stale, believed absent or forgotten: who has seen a value
/// never sees an older one*, while all writes go through the cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_1_nobody_sees_an_older_value_again() {
    const KEYS: [&str; 3] = ["w:a", "w:b", "w:c"];
    let bench =
        Bench::tuned(store::memory(), Options::default(), Clock::manual(NOW), |namespace| {
            aging(namespace);
            namespace.negative_ttl = Some(Duration::from_secs(5));
            namespace.loads = Loads { batch: 2, at_once: 2 };
        });
    let handle = Handle::current();
    let number = |read: Option<String>| read.map_or(0, |text| text.parse::<i64>().expect("one"));
    let act = |thread: u64| {
        let (mut seen, mut random) = ([0; KEYS.len()], thread + 1);
        for step in 0..3_000 {
            random = crate::tier::shelf::next_random(random);
            let at = random as usize % KEYS.len();
            let new = match (thread, random >> 20 & 63) {
                (0, 0) => {
                    bench.faults.fail_next(Op::Load, 3, down());
                    continue;
                }
                (0, 1) => {
                    drop(bench.cache.memory().flush(0..1));
                    continue;
                }
                (0, _) => {
                    bench.clock.set(NOW + step * 300);
                    handle.block_on(bench.get(KEYS[at])).map(number)
                }
                (1, _) => handle.block_on(bench.increment(KEYS[at])),
                _ => handle.block_on(bench.get(KEYS[at])).map(number),
            };
            if let Ok(new) = new {
                assert!(new >= seen[at], "{}: {new} after {}", KEYS[at], seen[at]);
                seen[at] = new;
            }
        }
    };
    let act = &act;
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            (0..4).for_each(|thread| drop(scope.spawn(move || act(thread))))
        });
    });
    bench.landed().await;
    let stats = &bench.cache.policies().of(0, b"w:").expect("it is there").stats;
    let counts = [&stats.refreshes, &stats.stale_served, &stats.negative_hits, &stats.joined];
    assert!(counts.into_iter().take(2).all(|count| figure(count) > 0), "{stats:?}");
}
