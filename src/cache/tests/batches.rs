//! Loads of one store together: few calls, few at once, and no key fails for another's sake.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::future::join_all;

use super::*;

/// A memory store that counts, and refuses every batch with a certain key.
struct Counting {
    inner: Arc<dyn Store>,
    bad: Option<Bytes>,
    single: Option<usize>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    most_keys: AtomicUsize,
}

impl Counting {
    fn new(bad: Option<&'static str>) -> Arc<Self> {
        Self::over(bad, None)
    }

    fn over(bad: Option<&'static str>, single: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            inner: store::memory(),
            bad: bad.map(|bad| Bytes::from_static(bad.as_bytes())),
            single,
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            most_keys: AtomicUsize::new(0),
        })
    }
}

impl Store for Counting {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> store::BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(async move {
            let under_way = self.under_way.fetch_add(1, Relaxed) + 1;
            self.most_under_way.fetch_max(under_way, Relaxed);
            self.most_keys.fetch_max(keys.len(), Relaxed);
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            self.under_way.fetch_sub(1, Relaxed);
            if self.bad.as_ref().is_some_and(|bad| keys.contains(bad)) {
                return Err(StoreError::Refused("not a number".into()));
            }
            self.inner.load(keys).await
        })
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> store::BoxFuture<'a, store::Applied> {
        self.inner.apply(changes)
    }

    fn ping(&self) -> store::BoxFuture<'_, Result<(), StoreError>> {
        self.inner.ping()
    }

    fn single_loads(&self) -> Option<usize> {
        self.single
    }

    fn kind(&self) -> &'static str {
        "counting"
    }
}

fn bench(store: Arc<dyn Store>, loads: Loads) -> Bench {
    let options = Options { limit: 64 << 20, ..Options::default() };
    Bench::tuned(store, options, Clock::manual(NOW), |namespace| namespace.loads = loads)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("r:{number}")).collect()
}

async fn fill(bench: &Bench, keys: &[String]) {
    let put = |key: &String| {
        let value = Bytes::copy_from_slice(key.as_bytes());
        (value.clone(), Change::Put(Record { value, deadline: 0, version: 1, fresh_for: None }))
    };
    let changes: Vec<_> = keys.iter().map(put).collect();
    bench.main.apply(&changes).await.expect("room");
}

async fn get_all(bench: &Bench, keys: &[String]) -> Vec<Result<Option<String>, String>> {
    join_all(keys.iter().map(|key| bench.get(key))).await
}

#[tokio::test]
async fn ten_thousand_cold_keys_take_few_calls_and_few_at_once() {
    const BATCH: usize = 100;
    let store = Counting::new(None);
    let bench = bench(store.clone(), Loads { batch: BATCH, at_once: 3 });
    let keys = names(10_000);
    fill(&bench, &keys).await;
    // The first calls hang until all have asked.
    bench.cache.set_store_timeout(Duration::from_secs(3_600));
    bench.faults.hold(Op::Load);
    let release = async {
        while bench.cache.0.flights.0.len() < keys.len() {
            tokio::task::yield_now().await;
        }
        bench.faults.release(Op::Load);
    };
    let (reads, ()) = tokio::join!(get_all(&bench, &keys), release);
    assert!(reads.iter().zip(&keys).all(|(read, key)| *read == some(key)));
    let calls = bench.loads() as usize;
    assert!((10_000 / BATCH..=10_000 / BATCH + 3).contains(&calls), "{calls} calls");
    assert!(store.most_under_way.load(Relaxed) <= 3 && store.most_keys.load(Relaxed) == BATCH);
    assert_eq!(bench.stats().loads.load(Relaxed), 10_000);
}

#[tokio::test]
async fn a_lone_key_goes_out_at_once_and_those_behind_it_gather() {
    let bench = bench(store::memory(), Loads { batch: 10, at_once: 1 });
    bench.faults.hold(Op::Load);
    let keys = names(21);
    let others = async {
        bench.faults.wait_for_calls(Op::Load, 1).await;
        let release = async {
            tokio::task::yield_now().await;
            bench.faults.release(Op::Load);
        };
        tokio::join!(get_all(&bench, &keys[1..]), release).0
    };
    let (first, others) = tokio::join!(bench.get(&keys[0]), others);
    assert!(first == Ok(None) && others.iter().all(|read| *read == Ok(None)));
    assert_eq!(bench.loads(), 3, "one alone, and twice ten");
}

/// SEMANTICS 17: *one key that the store can't read.* It fails alone.
#[tokio::test]
async fn rule_17_a_key_that_is_refused_fails_alone() {
    let bench = bench(Counting::new(Some("r:50")), Loads { batch: 100, at_once: 2 });
    let keys = names(100);
    fill(&bench, &keys).await;
    let reads = get_all(&bench, &keys).await;
    for (key, read) in keys.iter().zip(&reads) {
        match key.as_str() {
            "r:50" => assert_eq!(*read, Err("STOREERR not a number".into())),
            key => assert_eq!(*read, some(key)),
        }
    }
    assert!(bench.loads() <= 20, "{} calls: halves, not each by itself", bench.loads());
}

#[tokio::test]
async fn a_store_that_is_down_fails_the_batch_and_is_asked_once() {
    let bench = bench(store::memory(), Loads { batch: 100, at_once: 2 });
    bench.faults.fail_next(Op::Load, 1, down());
    let reads = get_all(&bench, &names(10)).await;
    assert!(reads.iter().all(|read| *read == Err("STOREDOWN unplugged".into())), "{reads:?}");
    assert_eq!((bench.loads(), bench.stats().load_errors.load(Relaxed)), (1, 10));
    assert_eq!(bench.get("r:1").await, Ok(None));
}

#[tokio::test]
async fn a_store_without_batches_is_asked_for_single_keys() {
    let store = Counting::over(None, Some(3));
    let bench = bench(store.clone(), Loads { batch: 100, at_once: 10 });
    let keys = names(50);
    fill(&bench, &keys).await;
    let reads = get_all(&bench, &keys).await;
    assert!(reads.iter().zip(&keys).all(|(read, key)| *read == some(key)));
    let most = (store.most_keys.load(Relaxed), store.most_under_way.load(Relaxed));
    assert_eq!((most, bench.loads()), ((1, 3), 50));
}

/// SEMANTICS 2: what a run of reads has found is its answer, a failure too.
#[tokio::test]
async fn rule_2_a_run_of_reads_asks_for_each_key_once() {
    let bench = bench(store::memory(), Loads { batch: 1, at_once: 10 });
    let names = names(5);
    fill(&bench, &names).await;
    bench.faults.fail_next(Op::Load, 1, down());
    let keys: Vec<_> = names.iter().map(|name| (bench.key(name), Use::Read)).collect();
    let release = Release::default();
    let job = Job {
        db: 0,
        now: NOW,
        keys: &keys,
        writes: false,
        strict: false,
        room: 0,
        touch: true,
        counters: &bench.counters,
        release: &release,
    };
    let mut ahead = bench.cache.fetch_ahead(&job).await;
    let mut failed = Vec::new();
    // Two reads of each key.
    for at in [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] {
        let mut found = None;
        let mut run = |tx: &mut Tx<'_>| {
            found = tx.get(keys[at].0)?.map(text);
            Ok(())
        };
        let job = Job { keys: &keys[at..=at], ..job };
        match bench.cache.go_below(&job, &mut ahead, &mut run).await {
            Ok(()) => assert_eq!(found.as_ref(), Some(&names[at])),
            Err(why) => failed.push((at, why.text().to_owned())),
        }
    }
    assert_eq!((failed.len(), bench.loads()), (2, 5), "{failed:?}");
    assert!(failed[0] == failed[1] && failed[0].1 == "STOREDOWN unplugged", "{failed:?}");
    // That was for the run alone.
    let name = &names[failed[0].0];
    assert_eq!(bench.get(name).await, some(name));
}

/// Lets loads hang until so many wait for what others have begun.
async fn release_when_joined(bench: &Bench, count: u64) {
    bench.faults.hold(Op::Load);
    while bench.stats().joined.load(Relaxed) < count {
        tokio::task::yield_now().await;
    }
    bench.faults.release(Op::Load);
}

/// SEMANTICS 1: *the load's task dies.* One of those who wait for a key takes over, and nobody hangs.
#[tokio::test]
async fn rule_1_a_call_that_panics_hands_each_key_over_once() {
    let bench = bench(Panicking::shared(), Loads { batch: 100, at_once: 2 });
    let reads = tokio::join!(
        join_all((0..1_000).map(|_| bench.get("r:k"))),
        release_when_joined(&bench, 999)
    );
    assert_eq!(reads.0.iter().filter(|read| read.is_err()).count(), 1);
    assert_eq!(bench.loads(), 2);

    let bench = self::bench(Panicking::shared(), Loads { batch: 100, at_once: 2 });
    let keys = names(10);
    let reads = tokio::join!(
        join_all((0..100).map(|_| get_all(&bench, &keys))),
        release_when_joined(&bench, 990)
    );
    let failed = reads.0.iter().flatten().filter(|read| read.is_err()).count();
    assert_eq!(failed, 10, "who began each load is told");
    assert!((2..=11).contains(&bench.loads()), "{} calls", bench.loads());
}

/// SEMANTICS 1: *the loader is cancelled.* Nobody hangs, not even those whose call hadn't begun.
#[tokio::test]
async fn rule_1_nobody_waits_for_a_runtime_that_ended() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut bench = bench(store::memory(), Loads { batch: 1, at_once: 1 });
    let (hung, faults) = store::faulty::faulty(store::memory());
    let policies = Policies::new(vec![Namespace {
        prefix: b"r:"[..].into(),
        read: Read::Through,
        store: Some(("main".into(), hung)),
        loads: Loads { batch: 1, at_once: 1 },
        ..Namespace::default()
    }]);
    let handle = Some(runtime.handle().clone());
    bench.cache = Cache::new(&Options::default(), policies, Clock::manual(NOW), handle);
    bench.cache.set_store_timeout(Duration::from_secs(3_600));
    faults.hold(Op::Load);
    let end = async {
        faults.wait_for_calls(Op::Load, 1).await;
        runtime.shutdown_background();
    };
    let keys = names(10);
    let reads = join_all((0..10).map(|_| get_all(&bench, &keys)));
    let (reads, ()) = tokio::join!(reads, end);
    assert!(reads.iter().flatten().all(Result::is_err), "{reads:?}");
}

/// A key's time counts in the queue too; and a call that its keys have left isn't made.
#[tokio::test]
async fn who_waits_in_the_queue_is_answered_in_time() {
    let bench =
        Bench::tuned(store::memory(), Options::default(), Clock::manual(NOW), |namespace| {
            namespace.loads = Loads { batch: 1, at_once: 1 };
            let hard = if *namespace.prefix == *b"w:" { 20 } else { 3_600_000 };
            namespace.timeout_hard = Some(Duration::from_millis(hard));
        });
    bench.faults.hold(Op::Load);
    let queued = async {
        bench.faults.wait_for_calls(Op::Load, 1).await;
        let late = bench.get("w:k").await;
        bench.faults.release(Op::Load);
        late
    };
    let (first, queued) = tokio::join!(bench.get("r:k"), queued);
    assert_eq!(queued, Err("STORETIMEOUT the load took too long".into()));
    assert_eq!((first, bench.loads()), (Ok(None), 1));
    assert_eq!((bench.get("w:k").await, bench.loads()), (Ok(None), 2));
}
