//! What the store doesn't have: reads believe it for a while, and no change passes unnoticed.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

fn remembering(namespace: &mut Namespace) {
    namespace.negative_ttl = Some(Duration::from_secs(5));
}

fn bench() -> Bench {
    Bench::tuned(store::memory(), Options::default(), Clock::manual(NOW), remembering)
}

fn hits(bench: &Bench) -> u64 {
    bench.stats().negative_hits.load(Relaxed)
}

#[tokio::test]
async fn an_absence_is_believed_for_a_while_and_shows_nowhere() {
    let bench = bench();
    assert_eq!((bench.get("r:k").await, bench.loads()), (Ok(None), 1));
    bench.store("r:k", b"v").await;
    bench.clock.set(NOW + 4_999);
    assert_eq!((bench.get("r:k").await, bench.loads(), hits(&bench)), (Ok(None), 1, 1));
    assert_eq!((bench.cache.memory().len(0), bench.cache.memory().negatives()), ((0, 0), 1));
    assert_eq!(bench.cache.random_key(0, NOW).await, None);
    // Of several keys the others are loaded, and it alone isn't.
    bench.store("r:l", b"v").await;
    let both = ["r:k".to_owned(), "r:l".to_owned()];
    assert_eq!((bench.lengths(&both).await, bench.loads()), (Ok(vec![None, Some(1)]), 2));
    bench.clock.set(NOW + 5_000);
    assert_eq!((bench.get("r:k").await, bench.loads()), (some("v"), 3));
    assert_eq!(bench.cache.memory().negatives(), 0);
}

/// SEMANTICS 3: *SET NX believes that a lock is free, since a read found it so.* A write asks.
#[tokio::test]
async fn rule_3_only_reads_believe_in_an_absence() {
    let bench = bench();
    assert_eq!(bench.get("w:lock").await, Ok(None));
    bench.store("w:lock", b"theirs").await;
    assert_eq!(bench.set_if_absent("w:lock", "mine").await, Ok(false));
    assert_eq!(bench.get("w:lock").await, some("theirs"));
    assert_eq!(bench.get("w:n").await, Ok(None));
    bench.faults.fail_all(Op::Load, down());
    assert_eq!(bench.increment("w:n").await, Err("STOREDOWN unplugged".into()));
    assert_eq!(bench.get("w:n").await, Ok(None));
}

/// SEMANTICS 1: *a key is found missing, set, and evicted; a read believes that it is missing.*
#[tokio::test]
async fn rule_1_every_change_ends_the_belief_in_an_absence() {
    for key in ["r:k", "w:k"] {
        for step in 0..4 {
            let bench = bench();
            assert_eq!(bench.get(key).await, Ok(None));
            match step {
                0 => bench.set(key, "v").await.unwrap(),
                1 => bench.append(key, "v").await.unwrap(),
                2 => assert_eq!(bench.set_if_absent(key, "v").await, Ok(true)),
                _ => {}
            }
            // Memory forgets, the store has it.
            drop(bench.cache.memory().flush(0..1));
            bench.store(key, b"stored").await;
            // What was written through is newer than what was put there by hand.
            let wanted = if key == "w:k" && step < 3 { "v" } else { "stored" };
            assert_eq!(bench.get(key).await, some(wanted), "{key}, step {step}");
        }
    }
    let bench = bench();
    assert_eq!(bench.get("r:k").await, Ok(None));
    bench.set("r:k", "v").await.unwrap();
    assert_eq!(bench.remove("r:k").await, Ok(true));
    bench.store("r:k", b"stored").await;
    assert_eq!(bench.get("r:k").await, some("stored"));
}

/// SEMANTICS 1: *a load finds nothing; meanwhile the key is set and forgotten.*
#[tokio::test]
async fn rule_1_an_absence_that_a_write_overtook_is_not_believed() {
    let bench = bench();
    bench.faults.hold(Op::Load);
    let write = async {
        bench.faults.wait_for_calls(Op::Load, 1).await;
        bench.set("w:k", "v").await.unwrap();
        drop(bench.cache.memory().flush(0..1));
        // The load is answered as of before.
        let delete = Change::Delete { version: u64::MAX };
        bench.main.apply(&[(Bytes::from_static(b"w:k"), delete)]).await.unwrap();
        bench.faults.release(Op::Load);
    };
    assert_eq!(tokio::join!(bench.get("w:k"), write).0, Ok(None));
    assert_eq!((bench.cache.memory().negatives(), bench.cached("w:k")), (0, None));
}

#[tokio::test]
async fn absences_are_bounded_and_count() {
    let options = Options { limit: 1 << 20, ..Options::default() };
    let bench = Bench::tuned(store::memory(), options, Clock::manual(NOW), remembering);
    assert_eq!(bench.get("r:k").await, Ok(None));
    drop(bench.cache.memory().flush(0..16));
    let empty = bench.cache.memory().used();
    for number in 0..20_000 {
        assert_eq!(bench.get(&format!("r:{number}")).await, Ok(None));
    }
    let memory = bench.cache.memory();
    let used = memory.used() - empty;
    assert!((5_000..=(1 << 20) / 64).contains(&used), "{used} bytes");
    assert!((40..=150).contains(&memory.negatives()), "{} notes", memory.negatives());
    assert_eq!((bench.get("r:19999").await, hits(&bench)), (Ok(None), 1), "the newest are there");
    drop(memory.flush(0..16));
    assert_eq!((memory.negatives(), memory.used()), (0, empty));
}
