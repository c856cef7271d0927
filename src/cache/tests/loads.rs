//! Reading through: rules 1 (tickets), 2 (no livelock), 3 (a miss is not an absence), 13 (freshness).

use futures_util::future::join_all;

use super::*;

#[tokio::test]
async fn rule_1_a_load_that_a_write_overtook_is_not_kept() {
    let bench = Bench::new();
    bench.store("r:k", b"v1").await;
    bench.faults.hold(Op::Load);
    let meanwhile = async {
        bench.faults.wait_for_calls(Op::Load, 1).await;
        bench.set("r:k", "v2").await.unwrap();
        assert_eq!(bench.remove("r:k").await, Ok(true));
        // Who asks now doesn't join that flight.
        let late = async {
            bench.faults.wait_for_calls(Op::Load, 2).await;
            bench.store("r:k", b"v3").await;
            bench.faults.release(Op::Load);
        };
        tokio::join!(bench.get("r:k"), late).0
    };
    let (early, late) = tokio::join!(bench.get("r:k"), meanwhile);
    assert!(early.is_ok(), "it had asked before: {early:?}");
    assert_eq!(late, some("v3"));
    assert_eq!((bench.loads(), bench.cached("r:k").as_deref()), (2, Some("v3")));
}

#[tokio::test]
async fn rule_1_an_acknowledged_write_outlives_an_older_load() {
    for flushed in [false, true] {
        let bench = Bench::new();
        bench.store("r:k", b"v1").await;
        bench.faults.hold(Op::Load);
        let write = async {
            bench.faults.wait_for_calls(Op::Load, 1).await;
            bench.set("r:k", "v2").await.unwrap();
            if flushed {
                drop(bench.cache.memory().flush(0..1));
            }
            bench.faults.release(Op::Load);
        };
        let (read, ()) = tokio::join!(bench.get("r:k"), write);
        let kept = (!flushed).then_some("v2");
        assert_eq!(bench.cached("r:k").as_deref(), kept, "flushed: {flushed}");
        assert_eq!(read.unwrap().as_deref(), kept.or(Some("v1")));
    }
}

#[tokio::test]
async fn rule_1_a_flush_cancels_the_loads_under_way() {
    let bench = Bench::new();
    bench.store("r:k", b"v1").await;
    bench.faults.hold(Op::Load);
    let flush = async {
        bench.faults.wait_for_calls(Op::Load, 1).await;
        drop(bench.cache.memory().flush(0..1));
        bench.faults.release(Op::Load);
    };
    let (read, ()) = tokio::join!(bench.get("r:k"), flush);
    assert_eq!((read, bench.cached("r:k")), (some("v1"), None));
}

#[tokio::test]
async fn rule_1_a_write_that_was_overtaken_loads_again() {
    let bench = Bench::new();
    bench.store("r:n", b"5").await;
    bench.faults.hold(Op::Load);
    let write = async {
        bench.faults.wait_for_calls(Op::Load, 1).await;
        bench.set("r:n", "40").await.unwrap();
        drop(bench.cache.memory().flush(0..1));
        bench.store("r:n", b"41").await;
        bench.faults.release(Op::Load);
    };
    let (number, ()) = tokio::join!(bench.increment("r:n"), write);
    assert_eq!((number, bench.loads()), (Ok(42), 2));
}

#[tokio::test]
async fn rule_1_one_load_for_all_who_ask() {
    let bench = Bench::new();
    bench.store("r:k", b"v").await;
    bench.faults.hold(Op::Load);
    let release = async {
        bench.faults.wait_for_calls(Op::Load, 1).await;
        bench.faults.release(Op::Load);
    };
    let (reads, ()) = tokio::join!(join_all((0..100).map(|_| bench.get("r:k"))), release);
    assert!(reads.iter().all(|read| *read == some("v")));
    assert_eq!(bench.loads(), 1);
    assert_eq!(bench.get("r:k").await, some("v"));
    assert_eq!(bench.loads(), 1);
}

#[tokio::test]
async fn rule_1_a_loader_that_panics_hands_over_to_one_waiter() {
    let bench = Bench::with(Panicking::shared(), Options::default());
    let reads = join_all((0..10).map(|_| bench.get("r:k"))).await;
    assert_eq!(reads[0], Err("STOREDOWN the load's task died".to_owned()));
    assert!(reads[1..].iter().all(|read| *read == Ok(None)), "{reads:?}");
    assert_eq!(bench.loads(), 2);
}

fn many(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("r:{number}")).collect()
}

async fn fill(bench: &Bench, keys: &[String], len: usize) {
    for key in keys {
        bench.store(key, &vec![b'x'; len]).await;
    }
}

/// SEMANTICS 2: *1 MB of memory, MGET of 50 cold keys: loading the 40th evicts the 3rd, for ever.*
#[tokio::test]
async fn rule_2_more_cold_keys_than_fit_are_read_at_once() {
    let bench = Bench::small(Eviction::default());
    let keys = many(50);
    fill(&bench, &keys, 30_000).await;
    assert_eq!(bench.lengths(&keys).await, Ok(vec![Some(30_000); 50]));
    assert_eq!(bench.loads(), 50);
}

#[tokio::test]
async fn rule_2_what_was_warm_and_is_pushed_out_is_loaded_once_more() {
    let bench = Bench::small(Eviction::AllkeysLru);
    let keys = many(50);
    fill(&bench, &keys, 30_000).await;
    for key in &keys[..20] {
        bench.get(key).await.unwrap();
    }
    assert_eq!(bench.lengths(&keys).await, Ok(vec![Some(30_000); 50]));
    assert!(bench.loads() <= 20 + 50, "{} loads", bench.loads());
}

#[tokio::test]
async fn rule_2_a_command_pins_no_more_than_its_share() {
    let bench = Bench::small(Eviction::default());
    let keys = many(400);
    fill(&bench, &keys, 30_000).await;
    let refused = bench.lengths(&keys).await.unwrap_err();
    assert!(refused.starts_with("OOM"), "{refused}");
    // Once each key counts, however often it is named.
    let again = vec![keys[0].clone(); 400];
    assert_eq!(bench.lengths(&again).await, Ok(vec![Some(30_000); 400]));
}

#[tokio::test]
async fn rule_2_what_finds_no_room_in_memory_is_there_all_the_same() {
    let bench = Bench::small(Eviction::Noeviction);
    bench.store("r:k", b"v").await;
    bench.cache.memory().set_limit(0);
    assert_eq!(bench.get("r:k").await, some("v"));
    assert_eq!(bench.cached("r:k"), None);
    assert_eq!(bench.remove("r:k").await, Ok(true));
    let expired = bench.expire("r:k", NOW + 1000).await.unwrap_err();
    assert!(expired.starts_with("OOM"), "{expired}");
    let twice = |tx: &mut Tx<'_>| Ok((tx.remove(bench.key("r:k"))?, tx.exists(bench.key("r:k"))?));
    assert_eq!(bench.run(0, &[("r:k", Use::Write)], twice).await, Ok((true, false)));
    bench.cache.memory().set_limit(1 << 20);
    assert_eq!(bench.expire("r:k", NOW + 1000).await, Ok(true));
}

/// SEMANTICS 3: *`lock` is in the store, the store fails or stalls, a second SET NX succeeds.*
#[tokio::test]
async fn rule_3_a_condition_is_not_decided_without_the_old_value() {
    let bench = Bench::new();
    bench.store("w:lock", b"mine").await;
    bench.faults.fail_next(Op::Load, 1, down());
    assert_eq!(bench.set_if_absent("w:lock", "theirs").await, Err("STOREDOWN unplugged".into()));
    // A store that is slow for longer than the limit: nothing has begun, so nothing is unknown.
    bench.cache.set_store_timeout(Duration::from_millis(20));
    bench.faults.hold(Op::Load);
    let slow = bench.set_if_absent("w:lock", "theirs").await.unwrap_err();
    assert!(slow.starts_with("STOREDOWN"), "{slow}");
    assert_eq!((bench.cached("w:lock"), bench.faults.calls(Op::Apply)), (None, 0));
    bench.faults.clear();
    assert_eq!(bench.set_if_absent("w:lock", "theirs").await, Ok(false));
    assert_eq!(bench.stored("w:lock").await, Some(("mine".into(), 0)));
}

#[tokio::test]
async fn rule_3_a_stores_error_is_told_and_not_kept() {
    let bench = Bench::new();
    bench.store("r:k", b"v").await;
    let text = || "no".to_owned();
    let errors = [
        (StoreError::Down(text()), "STOREDOWN no"),
        (StoreError::Refused(text()), "STOREERR no"),
        (StoreError::Timeout(text()), "STORETIMEOUT no"),
    ];
    for (error, told) in errors {
        bench.faults.fail_next(Op::Load, 1, error);
        assert_eq!(bench.get("r:k").await, Err(told.to_owned()));
        assert_eq!(bench.cached("r:k"), None);
    }
    assert_eq!(bench.get("r:k").await, some("v"));
    assert_eq!(bench.loads(), 4);
    let stats = &bench.cache.policies().of(0, b"r:").unwrap().stats;
    assert_eq!(stats.load_errors.load(std::sync::atomic::Ordering::Relaxed), 3);
}

/// A store that takes a minute for each load.
struct Slow {
    inner: Arc<dyn Store>,
    clock: Clock,
}

impl Store for Slow {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> store::BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        self.clock.set(self.clock.now() + 60_000);
        self.inner.load(keys)
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> store::BoxFuture<'a, store::Applied> {
        self.inner.apply(changes)
    }

    fn ping(&self) -> store::BoxFuture<'_, Result<(), StoreError>> {
        self.inner.ping()
    }

    fn kind(&self) -> &'static str {
        "slow"
    }
}

#[tokio::test]
async fn rule_3_a_copy_that_went_stale_while_others_were_loaded_is_not_an_absence() {
    let clock = Clock::manual(NOW);
    let slow = Arc::new(Slow { inner: store::memory(), clock: clock.clone() });
    let bench = Bench::with_clock(slow, Options::default(), clock);
    let keys = many(3);
    fill(&bench, &keys, 3).await;
    // The last load ends long after the ttl of the first copy.
    assert_eq!(bench.lengths(&keys).await, Ok(vec![Some(3); 3]));
    assert_eq!(bench.loads(), 3);
}

#[tokio::test]
async fn rule_13_a_copy_is_loaded_again_after_its_ttl_and_shows_no_deadline() {
    let bench = Bench::new();
    bench.store("r:k", b"v1").await;
    assert_eq!(bench.get("r:k").await, some("v1"));
    let deadline = |tx: &mut Tx<'_>| Ok(tx.peek(bench.key("r:k"))?.map(Entry::deadline));
    assert_eq!(bench.run(0, &[("r:k", Use::Read)], deadline).await, Ok(Some(0)));
    bench.store("r:k", b"v2").await;
    bench.clock.set(NOW + 9_999);
    assert_eq!(bench.get("r:k").await, some("v1"));
    bench.clock.set(NOW + 10_000);
    assert_eq!(bench.get("r:k").await, some("v2"));
    assert_eq!(bench.loads(), 2);
}

#[tokio::test]
async fn rule_13_a_copy_is_good_for_as_long_as_namespace_and_store_both_say() {
    let bench = Bench::new();
    let store = async |value: &'static str, fresh_for: Duration| {
        let fresh_for = Some(fresh_for);
        let record = Record { value: value.into(), version: 1, fresh_for, ..Record::default() };
        bench.main.apply(&[("r:k".into(), Change::Put(record))]).await.unwrap();
    };
    // The namespace says ten seconds.
    for (says, holds) in [(3_000, 3_000), (60_000, 10_000)] {
        store("v1", Duration::from_millis(says)).await;
        assert_eq!(bench.get("r:k").await, some("v1"));
        store("v2", Duration::ZERO).await;
        bench.clock.set(bench.clock.now() + holds - 1);
        assert_eq!(bench.get("r:k").await, some("v1"));
        bench.clock.set(bench.clock.now() + 1);
        assert_eq!(bench.get("r:k").await, some("v2"));
        // Zero: it is for those who asked, and no copy.
        let loads = bench.loads();
        store("v3", Duration::ZERO).await;
        assert_eq!(bench.get("r:k").await, some("v3"));
        assert_eq!(bench.loads(), loads + 1);
    }
}

#[tokio::test]
async fn a_lookup_is_counted_once_whatever_becomes_of_it() {
    let mut bench = Bench::new();
    bench.counters = Counters::for_namespaces(3);
    bench.store("r:k", b"v").await;
    bench.set("k", "v").await.unwrap();
    assert_eq!(bench.expire("k", NOW + 11_000).await, Ok(true));
    for (after, through, plain) in [
        (0, (1, 1, 0), (1, 0, 0)),
        (1, (2, 1, 0), (2, 0, 0)),
        // The copy is past its ttl.
        (10_000, (3, 2, 0), (3, 0, 0)),
        // The other key is past its deadline.
        (11_000, (4, 2, 0), (3, 0, 1)),
    ] {
        bench.clock.set(NOW + after);
        assert_eq!(bench.get("r:k").await, some("v"));
        assert_eq!(bench.get("k").await.unwrap().is_some(), after < 11_000);
        let at = bench.cache.policies().index_of(0, b"r:k").unwrap();
        let counted = [&bench.counters.namespaces[at], &bench.counters.others]
            .map(|tally| (tally.hits.get(), tally.loaded_hits.get(), tally.misses.get()));
        assert_eq!(counted, [through, plain], "after {after} ms");
    }
    assert_eq!(bench.get("r:none").await, Ok(None));
    assert_eq!(bench.get("none").await, Ok(None));
    let all = |figure: fn(&Tally) -> &Counter| bench.counters.all(figure);
    assert_eq!((all(|tally| &tally.hits), all(|tally| &tally.misses)), (7, 3));
}
