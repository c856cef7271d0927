//! Ends and starts while something is under way: what a warm restart brings back, and calls of a store that
//! end after the stop.

use std::{fs, path::Path, thread};

use super::{
    tiers::{eventually, is_free},
    *,
};
use crate::{
    cache::warm::Save,
    tier::{
        disk::{faulty::Faults as DiskFaults, faulty::Faulty, real::Real},
        log::{self, Log},
    },
};

const KEYS: u64 = 300;

/// Where memory is saved.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    /// In the log of a disk tier.
    Tier,
    /// In a snapshot.
    Snapshot,
}

fn save(dir: &Path) -> Save {
    Save { dir: dir.join("warm"), run: None, limit: Duration::from_secs(60) }
}

/// A cache over this store and what was saved here, if it was.
fn open(kept: Kept, dir: &Path, store: &Arc<dyn Store>, disk: &Arc<DiskFaults>) -> Bench {
    let with_faults =
        |options| log::Options { disk: Arc::new(Faulty::new(Real, disk.clone())), ..options };
    let options = match kept {
        Kept::Tier => Some(log::Options::new(&dir.join("l3"), 4 << 20)),
        Kept::Snapshot => {
            let shape = log::state::State::shape_of(&dir.join("warm/state")).expect("readable");
            shape.map(|shape| log::Options {
                segment: Some(shape.segment_bytes),
                snapshot: true,
                ..log::Options::new(&dir.join("warm"), shape.bytes())
            })
        }
    };
    let log = options.map(|options| Arc::new(Log::open(&with_faults(options)).expect("it opens")));
    Bench::with(store.clone(), Options { limit: 32 << 20, log, ..Options::default() })
}

async fn get_in(bench: &Bench, db: usize, key: &str) -> Option<String> {
    let found = |tx: &mut Tx<'_>| Ok(tx.get(bench.key(key))?.map(text));
    bench.run(db, &[(key, Use::Read)], found).await.expect("no failure")
}

fn len(bench: &Bench, db: usize) -> usize {
    bench.cache.memory().len(db).0
}

/// A cache that was saved and opened again; what it had is being read, and waits for the disk.
async fn coming_back(kept: Kept, dir: &Path) -> (Bench, Arc<DiskFaults>, thread::JoinHandle<()>) {
    let (store, faults) = (store::memory(), Arc::new(DiskFaults::default()));
    let bench = open(kept, dir, &store, &faults);
    for key in 0..KEYS {
        bench.set(&format!("key:{key}"), &format!("v{key}")).await.expect("room");
    }
    let saved = bench.cache.close(Some(&save(dir))).expect("closes");
    assert_eq!(saved.entries, KEYS as usize);
    drop(bench);
    let log = dir.join(if kept == Kept::Tier { "l3" } else { "warm" });
    is_free(&log).await;
    let bench = open(kept, dir, &store, &faults);
    assert_eq!((len(&bench, 0), len(&bench, 1)), (KEYS as usize, 0));
    let reads = faults.reads();
    faults.hold_reads(true);
    let warming = bench.cache.warm_up().expect("there is something");
    eventually(|| faults.reads() > reads).await;
    (bench, faults, warming)
}

/// SEMANTICS 1, 8: all is swapped, or flushed, while a warm restart has it under way: it comes back in the
/// database that it belongs to now, or not at all, and so it is after another restart.
#[tokio::test]
async fn swapped_and_flushed_while_a_warm_restart_brings_it_back() {
    for kept in [Kept::Tier, Kept::Snapshot] {
        for (swaps, flushes) in [(true, false), (false, true), (true, true)] {
            let what = format!("{kept:?}, swaps {swaps}, flushes {flushes}");
            let dir = tempfile::tempdir().expect("a directory");
            let (bench, faults, warming) = coming_back(kept, dir.path()).await;
            if swaps {
                bench.cache.memory().swap(0, 1);
            }
            if flushes {
                let db = usize::from(swaps);
                drop(bench.cache.memory().flush(db..db + 1));
            }
            bench.set("key:0", "new").await.expect("room");
            faults.hold_reads(false);
            warming.join().expect("no panic");
            let is_as_it_was = async |bench: &Bench| {
                let there = if swaps && !flushes { KEYS as usize } else { 0 };
                assert_eq!((len(bench, 0), len(bench, 1)), (1, there), "{what}");
                for key in 0..KEYS {
                    let (name, value) = (format!("key:{key}"), format!("v{key}"));
                    let wanted = (key == 0).then(|| "new".to_owned());
                    assert_eq!(get_in(bench, 0, &name).await, wanted, "{what}");
                    let wanted = (there > 0).then_some(value);
                    assert_eq!(get_in(bench, 1, &name).await, wanted, "{what}");
                }
            };
            is_as_it_was(&bench).await;
            bench.cache.close(Some(&save(dir.path()))).expect("closes");
            drop(bench);
            if kept == Kept::Tier {
                is_free(&dir.path().join("l3")).await;
            }
            let bench = open(kept, dir.path(), &store::memory(), &faults);
            is_as_it_was(&bench).await;
            if let Some(warming) = bench.cache.warm_up() {
                warming.join().expect("no panic");
            }
            is_as_it_was(&bench).await;
        }
    }
}

/// The files as the process leaves them at its end.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

/// When a write ends that was under way at the stop.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// After memory was saved, and the cache hears of it.
    Late,
    /// When the process is gone.
    TooLate,
    /// It was taken for lost before, and ends after memory was saved.
    Lost,
}

/// SEMANTICS 8, 15: *SET v2 times out, GET caches v1, v2 commits late.* The client has gone, the server stops
/// and saves memory, and only then the store has v2: the next start doesn't serve v1.
#[tokio::test]
async fn rule_15_a_write_that_ends_after_the_stop_leaves_nothing_stale() {
    for kept in [Kept::Tier, Kept::Snapshot] {
        for ends in [Ends::Late, Ends::TooLate, Ends::Lost] {
            let what = format!("{kept:?}, {ends:?}");
            let (dir, other) =
                (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("one"));
            let (store, faults) = (store::memory(), Arc::default());
            let bench = open(kept, dir.path(), &store, &faults);
            bench.set("w:k", "v1").await.expect("room");
            bench.set("w:other", "v1").await.expect("room");
            if let Ends::Lost = ends {
                bench.cache.set_store_timeout(Duration::from_millis(1));
            }
            let calls = bench.faults.calls(Op::Apply);
            bench.faults.hold(Op::Apply);
            // Who asked for it doesn't wait for the end, unless it is told that there may be none.
            tokio::select! {
                ended = bench.set("w:k", "v2") => {
                    assert!(ended.is_err() && matches!(ends, Ends::Lost), "{what}: {ended:?}");
                }
                () = async {
                    bench.faults.wait_for_calls(Op::Apply, calls + 1).await;
                    if let Ends::Lost = ends {
                        std::future::pending().await
                    }
                } => {}
            }
            let saved = bench.cache.close(Some(&save(dir.path()))).expect("closes");
            assert_eq!(saved.entries, 1, "{what}: the other key is saved");
            if let Ends::TooLate = ends {
                copy(dir.path(), other.path());
            }
            bench.faults.release(Op::Apply);
            bench.its_turn("w:k").await.expect("it ends");
            assert_eq!(bench.stored("w:k").await, Some(("v2".into(), 0)), "{what}");
            if !matches!(ends, Ends::TooLate) {
                copy(dir.path(), other.path());
            }
            let next = open(kept, other.path(), &store, &faults);
            assert!(next.cached("w:k").is_none(), "{what}");
            if let Some(warming) = next.cache.warm_up() {
                warming.join().expect("no panic");
            }
            assert_eq!(next.get("w:k").await, some("v2"), "{what}");
            assert_eq!(next.get("w:other").await, some("v1"), "{what}");
            assert_eq!(next.loads(), 1, "{what}: the other one came from what was saved");
        }
    }
}
