//! What a restart does with copies from before it (SEMANTICS 8: *the store is written behind Larder's back
//! while it is down, and the old copy serves for ever*).

use std::{path::Path, sync::atomic::Ordering::Relaxed};

use super::{
    tiers::{is_free, small_log},
    *,
};
use crate::{
    cache::warm::Save,
    policy::Restart,
    tier::{
        log::{self, Log},
        shelf::next_random,
    },
};

const KEYS: usize = 200;

/// Where copies outlive the process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    /// In the log of a disk tier, with a clean stop.
    Stopped,
    /// The same, and the process was killed.
    Killed,
    /// In a snapshot.
    Snapshot,
}

const ALL: [Kept; 3] = [Kept::Stopped, Kept::Killed, Kept::Snapshot];

/// A store that outlives its caches, and where they keep what they have.
struct Place {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    kept: Kept,
    restart: Restart,
    stale_if_error: Option<Duration>,
    timeout_soft: Option<Duration>,
    eviction: Eviction,
    clock: Clock,
}

impl Place {
    fn new(kept: Kept, restart: Restart, stale_if_error: u64) -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            store: store::memory(),
            kept,
            restart,
            stale_if_error: Some(Duration::from_secs(stale_if_error))
                .filter(|time| !time.is_zero()),
            timeout_soft: None,
            eviction: Eviction::default(),
            clock: Clock::manual(NOW),
        }
    }

    fn log_dir(&self) -> std::path::PathBuf {
        self.dir.path().join(if self.kept == Kept::Snapshot { "warm" } else { "l3" })
    }

    /// A cache in which copies are fresh for an hour.
    fn start(&self) -> Bench {
        let options = match self.kept {
            Kept::Snapshot => snapshot_options(&self.log_dir()),
            _ => Some(small_log(&self.log_dir(), &Arc::default())),
        };
        let log = options.map(|options| Arc::new(Log::open(&options).expect("it opens")));
        let options =
            Options { limit: 32 << 20, eviction: self.eviction, log, ..Options::default() };
        let bench = Bench::tuned(self.store.clone(), options, self.clock.clone(), |namespace| {
            namespace.ttl = Some(Duration::from_secs(3_600));
            namespace.restart = self.restart;
            namespace.stale_if_error = self.stale_if_error;
            namespace.timeout_soft = self.timeout_soft;
        });
        if let Some(warming) = bench.cache.warm_up() {
            warming.join().expect("no panic");
        }
        bench
    }

    /// Ends a cache, as far as what it had is to survive, and starts another one.
    async fn restart(&self, bench: Bench) -> Bench {
        match self.kept {
            Kept::Killed => push_out(&bench),
            _ => {
                let limit = Duration::from_secs(60);
                let save = Save { dir: self.dir.path().join("warm"), run: None, limit };
                bench.cache.close(Some(&save)).expect("closes");
            }
        }
        drop(bench);
        is_free(&self.log_dir()).await;
        self.start()
    }
}

fn snapshot_options(dir: &Path) -> Option<log::Options> {
    let shape = log::state::State::shape_of(&dir.join("state")).expect("readable")?;
    Some(log::Options {
        segment: Some(shape.segment_bytes),
        snapshot: true,
        ..log::Options::new(dir, shape.bytes())
    })
}

/// Has all that memory has go to disk, and waits until it is there.
fn push_out(bench: &Bench) {
    let memory = bench.cache.memory();
    let limit = memory.rules().limit();
    memory.set_limit(1);
    let queue = &memory.log().expect("a disk").queue;
    while memory.resident(0) > 0 || queue.len() != (0, 0) {
        memory.trim(1_000, bench.clock.now());
        let mut writer = bench.cache.0.disk.as_ref().expect("a disk").writer.lock();
        writer.as_mut().expect("it is open").step(memory, true).expect("no fault");
    }
    memory.set_limit(limit);
}

async fn fill(bench: &Bench, value: &str) {
    for number in 0..KEYS {
        bench.store(&format!("r:{number}"), value.as_bytes()).await;
    }
}

/// Reads all keys, and says how many loads that took.
async fn read(bench: &Bench, value: &str) -> u64 {
    let loads = bench.loads();
    for number in 0..KEYS {
        assert_eq!(bench.get(&format!("r:{number}")).await, some(value), "{number}");
    }
    bench.loads() - loads
}

const EACH: u64 = KEYS as u64;

/// SEMANTICS 8: by default a copy is good until it has ended, however many restarts come between.
#[tokio::test]
async fn copies_are_kept_over_a_restart() {
    for kept in ALL {
        let place = Place::new(kept, Restart::Keep, 0);
        let bench = place.start();
        fill(&bench, "v1").await;
        assert_eq!(read(&bench, "v1").await, EACH);
        let bench = place.restart(bench).await;
        fill(&bench, "v2").await;
        assert_eq!(read(&bench, "v1").await, 0, "{kept:?}");
    }
}

/// SEMANTICS 8: with `revalidate` no copy from before a restart is taken for good, and every one since is,
/// also when it has been to the disk; so it is after every further restart.
#[tokio::test]
async fn copies_from_before_are_revalidated() {
    for kept in ALL {
        for stale_if_error in [0, 600] {
            let place = Place::new(kept, Restart::Revalidate, stale_if_error);
            let mut bench = place.start();
            fill(&bench, "v1").await;
            assert_eq!(read(&bench, "v1").await, EACH);
            for run in ["v2", "v3"] {
                bench = place.restart(bench).await;
                // A run in which nobody asks changes nothing.
                bench = place.restart(bench).await;
                fill(&bench, run).await;
                assert_eq!(read(&bench, run).await, EACH, "{kept:?}, {stale_if_error}");
                if kept != Kept::Snapshot {
                    push_out(&bench);
                }
                assert_eq!(read(&bench, run).await, 0, "{kept:?}: they are of this run");
            }
        }
    }
}

/// A copy from before serves reads, and no write, while the store fails; until `stale-if-error` is over since
/// the start, or its own time.
#[tokio::test]
async fn copies_from_before_serve_while_the_store_fails() {
    for kept in ALL {
        let place = Place::new(kept, Restart::Revalidate, 600);
        let bench = place.start();
        fill(&bench, "v1").await;
        read(&bench, "v1").await;
        let bench = place.restart(bench).await;
        bench.faults.fail_all(Op::Load, down());
        read(&bench, "v1").await;
        assert_eq!(bench.stats().stale_served.load(Relaxed), EACH, "{kept:?}");
        assert!(bench.append("r:0", "!").await.is_err(), "{kept:?}");
        place.clock.set(place.clock.now() + 599_000);
        assert_eq!(bench.get("r:1").await, some("v1"));
        place.clock.set(place.clock.now() + 1_000);
        assert!(bench.get("r:1").await.is_err(), "{kept:?}");
        bench.faults.clear();
        fill(&bench, "v2").await;
        assert_eq!(read(&bench, "v2").await, EACH, "{kept:?}");
    }
}

/// Nobody waits longer than `timeout-soft` for a store that is slow after a restart.
#[tokio::test]
async fn copies_from_before_serve_when_the_store_is_slow() {
    for kept in ALL {
        let place = Place {
            timeout_soft: Some(Duration::from_millis(5)),
            ..Place::new(kept, Restart::Revalidate, 600)
        };
        let bench = place.start();
        fill(&bench, "v1").await;
        read(&bench, "v1").await;
        let bench = place.restart(bench).await;
        fill(&bench, "v2").await;
        bench.faults.hold(Op::Load);
        assert_eq!(bench.get("r:0").await, some("v1"), "{kept:?}");
        bench.faults.release(Op::Load);
        bench.landed().await;
        assert_eq!(bench.get("r:0").await, some("v2"), "{kept:?}");
    }
}

/// What was dropped is never served, doesn't show in a walk, and gives its room back without being read.
#[tokio::test]
async fn copies_from_before_are_dropped() {
    for kept in ALL {
        let place = Place::new(kept, Restart::Drop, 600);
        let bench = place.start();
        fill(&bench, "v1").await;
        read(&bench, "v1").await;
        let bench = place.restart(bench).await;
        bench.faults.fail_all(Op::Load, down());
        assert!(bench.get("r:0").await.is_err(), "{kept:?}");
        let (mut cursor, mut seen) = (0, 0);
        loop {
            let is_r = |key: &[u8]| seen += usize::from(key.starts_with(b"r:"));
            cursor = bench.cache.walk(0, cursor, NOW, is_r).await;
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(seen, 0, "{kept:?}");
        if let Some(sweeping) = bench.cache.sweep() {
            sweeping.join().expect("no panic");
        }
        assert_eq!(bench.cache.memory().len(0), (0, 0), "{kept:?}");
        bench.faults.clear();
        assert_eq!(read(&bench, "v1").await, EACH);
        if kept != Kept::Snapshot {
            push_out(&bench);
        }
        assert_eq!(read(&bench, "v1").await, 0, "{kept:?}: they are of this run");
    }
}

/// A record that is written again when its segment is reclaimed stays of the run that it is of.
#[tokio::test]
async fn a_record_that_is_written_again_is_no_newer() {
    let place = Place {
        eviction: Eviction::Noeviction,
        ..Place::new(Kept::Killed, Restart::Revalidate, 600)
    };
    let bench = place.start();
    fill(&bench, "v1").await;
    read(&bench, "v1").await;
    let bench = place.restart(bench).await;
    let place_of = |number: usize| {
        let hash = bench.key(&format!("r:{number}")).hash;
        bench.cache.memory().below(0, hash).map(|below| below.records[0].place())
    };
    let before: Vec<_> = (0..KEYS).map(place_of).collect();
    let mut random = 7;
    for round in 0.. {
        assert!(round < 500, "all segments are reclaimed");
        for _ in 0..300 {
            random = next_random(random);
            let key = format!("other:{}", random % 2_400);
            bench.set(&key, &"x".repeat(1_000)).await.expect("room");
        }
        push_out(&bench);
        if (0..KEYS).all(|number| place_of(number) != before[number]) {
            break;
        }
    }
    fill(&bench, "v2").await;
    assert_eq!(read(&bench, "v2").await, EACH);
}
