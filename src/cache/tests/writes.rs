//! Writing through: rules 10 (turns and staged copies), 13 (two deadlines), 15 (unknown outcomes), 16
//! (one store per write).

use super::*;

/// A bench where `w:k` is `v1`, in memory and in the store.
async fn with_old_value() -> Bench {
    let bench = Bench::new();
    bench.store("w:k", b"v1").await;
    assert_eq!(bench.get("w:k").await, some("v1"));
    bench
}

#[tokio::test]
async fn rule_10_readers_see_the_old_value_until_the_store_has_acknowledged() {
    let bench = with_old_value().await;
    bench.faults.hold(Op::Apply);
    let meanwhile = async {
        bench.faults.wait_for_calls(Op::Apply, 1).await;
        assert_eq!(bench.get("w:k").await, some("v1"));
        bench.faults.release(Op::Apply);
    };
    let (written, ()) = tokio::join!(bench.set("w:k", "v2"), meanwhile);
    assert_eq!((written, bench.get("w:k").await), (Ok(()), some("v2")));
    assert_eq!(bench.stored("w:k").await, Some(("v2".into(), 0)));
}

#[tokio::test]
async fn rule_10_a_refused_write_is_never_seen() {
    let bench = with_old_value().await;
    for (error, told) in [(StoreError::Refused("no".into()), "STOREERR no"), (down(), "STOREDOWN")]
    {
        bench.faults.fail_next(Op::Apply, 2, error);
        let refused = bench.set("w:k", "v2").await.unwrap_err();
        assert!(refused.starts_with(told), "{refused}");
        assert!(bench.append("w:k", "+").await.is_err());
        assert_eq!(bench.cached("w:k").as_deref(), Some("v1"));
    }
    assert_eq!(bench.remove("w:k").await, Ok(true));
    assert_eq!((bench.cached("w:k"), bench.stored("w:k").await), (None, None));
}

/// Refused commands of the test below, all kinds together.
const REFUSED: usize = 100_000;

/// *INCR makes 6 of 5 and lets go; another reads 6; the database refuses.* Nobody reads what is refused, at
/// any moment: readers on threads of their own poll all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rule_10_no_reader_sees_a_refused_write_at_any_moment() {
    let bench = Arc::new(Bench::new());
    let keys = ["w:0", "w:1", "w:2", "w:3"];
    for key in keys {
        bench.store(key, b"5").await;
        assert_eq!(bench.get(key).await, some("5"));
    }
    bench.faults.fail_all(Op::Apply, StoreError::Refused("no".into()));
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let read = |number: usize| {
        let (bench, is_over) = (bench.clone(), is_over.clone());
        tokio::spawn(async move {
            let all = keys.map(str::to_owned);
            let mut reads = 0_u64;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                let key = keys[(reads as usize + number) % keys.len()];
                assert_eq!(bench.get(key).await, some("5"), "after {reads} reads");
                assert_eq!(bench.lengths(&all).await, Ok(vec![Some(1); 4]), "after {reads} reads");
                reads += 1;
                tokio::task::yield_now().await;
            }
            reads
        })
    };
    let readers: Vec<_> = (0..2).map(read).collect();
    let write = |number: usize| {
        let bench = bench.clone();
        tokio::spawn(async move {
            for round in 0..REFUSED / keys.len() {
                // Two writers of each key, so that they wait for each other as well.
                let (key, other) = (keys[number / 2], keys[number / 2 + 2]);
                let refused = match round % 5 {
                    0 => bench.set(key, "seen").await,
                    1 => bench.increment(key).await.map(drop),
                    2 => bench.get_and_remove(key).await.map(drop),
                    3 => bench.append(key, "seen").await,
                    _ => bench.mset(&[(other, "seen"), (key, "seen")]).await,
                };
                assert_eq!(refused, Err("STOREERR no".into()));
            }
        })
    };
    for writer in (0..keys.len()).map(write).collect::<Vec<_>>() {
        writer.await.expect("each is refused");
    }
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        let reads = reader.await.expect("it sees only what is stored");
        println!("{reads} reads");
        assert!(reads > 1000, "it hardly read: {reads}");
    }
    assert_eq!(bench.faults.calls(Op::Apply), REFUSED as u64);
    bench.faults.clear();
    assert_eq!(bench.increment("w:0").await, Ok(6));
}

/// A memory store that notes what each apply put where, in the order in which it did.
struct Noting {
    inner: Arc<dyn Store>,
    puts: std::sync::Mutex<Vec<(Bytes, Bytes)>>,
}

impl Store for Noting {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> store::BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        self.inner.load(keys)
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> store::BoxFuture<'a, store::Applied> {
        Box::pin(async move {
            // Others come in between, wherever they may.
            tokio::task::yield_now().await;
            let overtaken = self.inner.apply(changes).await?;
            let put = |(key, change): &(Bytes, Change)| match change {
                Change::Put(record) => Some((key.clone(), record.value.clone())),
                Change::Delete { .. } => None,
            };
            self.puts.lock().unwrap().extend(changes.iter().filter_map(put));
            tokio::task::yield_now().await;
            Ok(overtaken)
        })
    }

    fn ping(&self) -> store::BoxFuture<'_, Result<(), StoreError>> {
        self.inner.ping()
    }

    fn kind(&self) -> &'static str {
        "noting"
    }
}

/// Readers see a key's values in the order in which the store got them, and at the end the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rule_10_sixteen_writers_have_one_order_in_store_and_cache() {
    const WRITES: usize = 200;
    let keys = ["w:0", "w:1", "w:2"];
    let noting = Arc::new(Noting { inner: store::memory(), puts: Default::default() });
    let bench = Arc::new(Bench::with(noting.clone(), Options::default()));
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watch = |key: &'static str| {
        let (bench, is_over) = (bench.clone(), is_over.clone());
        tokio::spawn(async move {
            let mut seen: Vec<String> = Vec::new();
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                let value = bench.get(key).await.expect("the store is well");
                seen.extend(value.filter(|value| seen.last() != Some(value)));
                tokio::task::yield_now().await;
            }
            seen
        })
    };
    let watchers: Vec<_> = keys.map(watch).into();
    let write = |writer: usize| {
        let bench = bench.clone();
        tokio::spawn(async move {
            for number in 0..WRITES {
                let value = format!("{writer}-{number}");
                let key = keys[(writer + number) % keys.len()];
                let other = keys[(writer + number + 1) % keys.len()];
                match number % 3 {
                    0 => bench.mset(&[(key, &value), (other, &value)]).await.unwrap(),
                    1 => bench.append(key, &format!("+{value}")).await.unwrap(),
                    _ => bench.set(key, &value).await.unwrap(),
                }
            }
        })
    };
    for writer in (0..16).map(write).collect::<Vec<_>>() {
        writer.await.expect("all are stored");
    }
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    let puts = std::mem::take(&mut *noting.puts.lock().unwrap());
    for (key, watcher) in keys.into_iter().zip(watchers) {
        let of_key = puts.iter().filter(|(of, _)| of == key);
        let mut stored = of_key.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        let last = stored.clone().last().expect("it was written");
        let seen = watcher.await.expect("it sees values");
        println!("{} of {} values seen", seen.len(), stored.clone().count());
        assert!(seen.len() > 10, "it hardly read");
        for value in seen {
            assert!(stored.any(|stored| stored == value), "{key}: {value} was seen out of order");
        }
        assert_eq!(bench.cached(key), Some(last.clone()));
        assert_eq!(bench.stored(key).await, Some((last, 0)));
    }
}

#[tokio::test]
async fn rule_10_writers_of_a_key_wait_their_turn() {
    let bench = Bench::new();
    bench.store("w:n", b"5").await;
    bench.faults.hold(Op::Apply);
    let release = async {
        bench.faults.wait_for_calls(Op::Apply, 1).await;
        tokio::task::yield_now().await;
        assert_eq!(bench.faults.calls(Op::Apply), 1, "the second waits");
        // Another key's writer doesn't.
        let other = async {
            bench.faults.wait_for_calls(Op::Apply, 2).await;
            bench.faults.release(Op::Apply);
        };
        tokio::join!(bench.set("w:other", "x"), other).0
    };
    let (first, second, other) =
        tokio::join!(bench.increment("w:n"), bench.increment("w:n"), release);
    assert_eq!((first, second, other), (Ok(6), Ok(7), Ok(())));
    assert_eq!(bench.stored("w:n").await, Some(("7".into(), 0)));
}

#[tokio::test]
async fn rule_10_what_follows_a_refusal_builds_on_the_old_value() {
    let bench = Bench::new();
    bench.store("w:n", b"5").await;
    bench.faults.fail_next(Op::Apply, 1, StoreError::Refused("no".into()));
    let (first, second) = tokio::join!(bench.increment("w:n"), bench.increment("w:n"));
    assert_eq!((first, second), (Err("STOREERR no".into()), Ok(6)));
}

#[tokio::test]
async fn rule_10_a_client_that_goes_away_leaves_no_write_halfway() {
    let bench = with_old_value().await;
    bench.faults.hold(Op::Apply);
    tokio::select! {
        biased;
        _ = bench.set("w:k", "v2") => panic!("the store has not answered"),
        () = bench.faults.wait_for_calls(Op::Apply, 1) => {}
    }
    assert_eq!(bench.get("w:k").await, some("v1"));
    bench.faults.release(Op::Apply);
    bench.its_turn("w:k").await.unwrap();
    assert_eq!(bench.cached("w:k").as_deref(), Some("v2"));
    assert_eq!(bench.stored("w:k").await, Some(("v2".into(), 0)));
}

#[tokio::test]
async fn rule_13_a_copys_ttl_is_not_stored() {
    let bench = with_old_value().await;
    bench.append("w:k", "+").await.unwrap();
    assert_eq!(bench.stored("w:k").await, Some(("v1+".into(), 0)));
    // The data's own deadline is.
    assert_eq!(bench.expire("w:k", NOW + 60_000).await, Ok(true));
    bench.append("w:k", "+").await.unwrap();
    assert_eq!(bench.stored("w:k").await, Some(("v1++".into(), NOW + 60_000)));
    bench.clock.set(NOW + 10_000);
    bench.store("w:k", b"ignored, it is older").await;
    assert_eq!((bench.get("w:k").await, bench.loads()), (some("v1++"), 2));
    bench.clock.set(NOW + 60_000);
    assert_eq!(bench.get("w:k").await, Ok(None));
}

#[tokio::test]
async fn rule_15_an_unknown_outcome_is_not_cached_until_it_is_known() {
    let bench = with_old_value().await;
    bench.cache.set_store_timeout(Duration::from_millis(20));
    bench.faults.hold(Op::Apply);
    let unknown = bench.set("w:k", "v2").await.unwrap_err();
    assert!(unknown.starts_with("STORETIMEOUT"), "{unknown}");
    assert_eq!(bench.cached("w:k"), None, "the copy is dropped before the client is told");
    for _ in 0..2 {
        assert_eq!((bench.get("w:k").await, bench.cached("w:k")), (some("v1"), None));
        // Another writer gives up in the end, having changed nothing.
        let stuck = bench.set("w:k", "v3").await.unwrap_err();
        assert!(stuck.starts_with("STOREDOWN"), "{stuck}");
    }
    bench.faults.release(Op::Apply);
    bench.its_turn("w:k").await.unwrap();
    assert_eq!(bench.get("w:k").await, some("v2"));
    assert_eq!(bench.cached("w:k").as_deref(), Some("v2"));
    assert_eq!(bench.faults.calls(Op::Apply), 1);
}

#[tokio::test]
async fn rule_15_a_load_from_before_the_late_answer_is_not_kept() {
    let bench = with_old_value().await;
    bench.cache.set_store_timeout(Duration::from_millis(20));
    bench.faults.hold(Op::Apply);
    assert!(bench.set("w:k", "v2").await.is_err());
    // A load that began while the outcome was unknown, and lands when it is known.
    bench.cache.set_store_timeout(Duration::from_secs(60));
    bench.faults.hold(Op::Load);
    let end = async {
        bench.faults.wait_for_calls(Op::Load, 2).await;
        bench.faults.release(Op::Apply);
        bench.its_turn("w:k").await.unwrap();
        bench.faults.release(Op::Load);
    };
    tokio::join!(bench.get("w:k"), end).0.unwrap();
    assert_eq!(bench.cached("w:k"), None);
    assert_eq!(bench.get("w:k").await, some("v2"));
}

#[tokio::test]
async fn rule_15_a_lost_answer_drops_the_copy() {
    let bench = with_old_value().await;
    bench.faults.lose_answers(Op::Apply, 1, StoreError::Timeout("lost".into()));
    assert_eq!(bench.set("w:k", "v2").await, Err("STORETIMEOUT lost".into()));
    assert_eq!((bench.cached("w:k"), bench.get("w:k").await), (None, some("v2")));
}

#[tokio::test]
async fn rule_15_a_store_that_panics_leaves_no_copy_and_no_turn() {
    let bench = Bench::with(Panicking::shared(), Options::default());
    let died = bench.set("w:k", "v").await.unwrap_err();
    assert!(died.starts_with("STORETIMEOUT"), "{died}");
    assert_eq!(bench.cached("w:k"), None);
    bench.set("w:k", "v").await.unwrap();
    assert_eq!(bench.cached("w:k").as_deref(), Some("v"));
}

#[tokio::test]
async fn rule_16_a_command_writes_to_one_store() {
    let bench = Bench::new();
    let pairs = [("w:a", "1"), ("o:b", "2"), ("plain", "3")];
    let crossed = bench.mset(&pairs).await.unwrap_err();
    assert!(crossed.starts_with("CROSSSTORE"), "{crossed}");
    assert!(pairs.iter().all(|(key, _)| bench.cached(key).is_none()));
    assert_eq!((bench.faults.calls(Op::Apply), bench.stored("w:a").await), (0, None));
    // Several keys of one store are one apply, and plain keys may come along.
    bench.mset(&[("w:a", "1"), ("plain", "3"), ("w:b", "2")]).await.unwrap();
    assert_eq!(bench.faults.calls(Op::Apply), 1);
    assert_eq!(bench.cached("plain").as_deref(), Some("3"));
}

#[tokio::test]
async fn rule_16_a_batch_is_refused_as_a_whole() {
    let bench = Bench::new();
    bench.mset(&[("w:a", "1"), ("plain", "1")]).await.unwrap();
    bench.faults.fail_next(Op::Apply, 1, StoreError::Refused("no".into()));
    assert!(bench.mset(&[("w:a", "2"), ("plain", "2"), ("w:c", "2")]).await.is_err());
    let cached = ["w:a", "plain", "w:c"].map(|key| bench.cached(key));
    assert_eq!(cached, [Some("1".into()), Some("1".into()), None]);
}

#[tokio::test]
async fn rule_16_a_rename_stores_the_target_before_it_deletes_the_source() {
    let bench = with_old_value().await;
    bench.rename("w:k", "w:new").await.unwrap();
    assert_eq!(bench.faults.applied(), ["w:new", "w:k"]);
    assert_eq!(bench.faults.calls(Op::Apply), 1);
    assert_eq!((bench.cached("w:k"), bench.get("w:k").await), (None, Ok(None)));
    assert_eq!(bench.get("w:new").await, some("v1"));
}

#[tokio::test]
async fn rule_16_a_rename_that_fails_keeps_its_source() {
    let bench = Bench::new();
    bench.set("plain", "v").await.unwrap();
    bench.faults.fail_next(Op::Apply, 1, down());
    assert!(bench.rename("plain", "w:k").await.is_err());
    bench.faults.fail_next(Op::Apply, 1, StoreError::Timeout("nobody knows".into()));
    assert!(bench.rename("plain", "w:k").await.is_err());
    assert_eq!((bench.cached("plain").as_deref(), bench.cached("w:k")), (Some("v"), None));
    bench.rename("plain", "w:k").await.unwrap();
    assert_eq!(bench.stored("w:k").await, Some(("v".into(), 0)));
    assert_eq!(bench.cached("plain"), None);
}

#[tokio::test]
async fn rule_16_a_namespace_lives_in_its_database() {
    let bench = Bench::new();
    bench.store("w:k", b"stored").await;
    let key = bench.key("w:k");
    let set = |tx: &mut Tx<'_>| tx.set(key, &[b"plain"], Ttl::Clear);
    bench.run(1, &[("w:k", Use::Blind)], set).await.unwrap();
    assert_eq!(bench.faults.calls(Op::Apply), 0);
    let get = |tx: &mut Tx<'_>| Ok(tx.get(key)?.map(text));
    assert_eq!(bench.run(1, &[("w:k", Use::Read)], get).await, some("plain"));
    assert_eq!(bench.get("w:k").await, some("stored"));
    // What would write it from elsewhere is refused.
    let across = |tx: &mut Tx<'_>| {
        tx.select(0);
        tx.set(key, &[b"x"], Ttl::Clear)
    };
    assert!(bench.run(1, &[("w:k", Use::Write)], across).await.is_err());
    assert_eq!(bench.cached("w:k").as_deref(), Some("stored"));
}

#[tokio::test]
async fn rule_16_a_flush_forgets_copies_and_no_data() {
    let bench = with_old_value().await;
    bench.set("w:k", "v2").await.unwrap();
    drop(bench.cache.memory().flush(0..1));
    assert_eq!((bench.cached("w:k"), bench.get("w:k").await), (None, some("v2")));
}
