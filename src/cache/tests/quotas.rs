//! What each namespace has in memory, and quotas: tallies against a full walk, whose keys go and whose don't.

use std::path::Path;

use super::{tiers::small_log, *};
use crate::tier::{groups::Tally, log::Log, shelf::next_random};

const QUOTA: usize = 48 << 10;
const DATABASES: usize = 4;
/// The number of `p:` in database 0.
const PLAIN: usize = 2;

/// A cache with namespaces in two databases: `r:` over a store, of which only even keys are there, and `p:` of
/// plain keys in database 0, with a quota each, `p:1` without one, and `p:` in database 3, with a quota.
struct Room {
    cache: Cache,
    clock: Clock,
    counters: Counters,
}

fn namespaces(main: Arc<dyn Store>) -> Policies {
    let plain = |prefix: &str, db, quota| Namespace {
        prefix: prefix.as_bytes().into(),
        db,
        quota,
        ..Namespace::default()
    };
    Policies::new(vec![
        Namespace {
            read: Read::Through,
            ttl: Some(Duration::from_secs(100)),
            stale_if_error: Some(Duration::from_secs(10)),
            negative_ttl: Some(Duration::from_secs(10)),
            store: Some(("main".into(), main)),
            ..plain("r:", 0, Some(QUOTA))
        },
        plain("p:", 0, Some(QUOTA)),
        plain("p:1", 0, None),
        plain("p:", 3, Some(QUOTA)),
    ])
}

impl Room {
    fn with(eviction: Eviction, limit: usize, log: Option<Arc<Log>>, main: Arc<dyn Store>) -> Self {
        let clock = Clock::manual(NOW);
        let options = Options { limit, eviction, databases: DATABASES, log, ..Options::default() };
        let runtime = Some(Handle::current());
        let cache = Cache::new(&options, namespaces(main), clock.clone(), runtime);
        Self { cache, clock, counters: Counters::default() }
    }

    fn new(eviction: Eviction) -> Self {
        Self::with(eviction, 1 << 20, None, store::memory())
    }

    fn on_disk(eviction: Eviction, dir: &Path, main: Arc<dyn Store>) -> Self {
        let log = Log::open(&small_log(dir, &Arc::default())).expect("the log opens");
        Self::with(eviction, 1 << 20, Some(Arc::new(log)), main)
    }

    fn key<'a>(&self, key: &'a str) -> Key<'a> {
        Key { bytes: key.as_bytes(), hash: self.cache.memory().hash(key.as_bytes()) }
    }

    async fn run<T>(
        &self,
        db: usize,
        keys: &[(&str, Use)],
        mut command: impl FnMut(&mut Tx<'_>) -> Result<T, Stop>,
    ) -> Result<T, String> {
        let keys: Vec<_> = keys.iter().map(|(key, use_)| (self.key(key), *use_)).collect();
        let writes = keys.iter().any(|(_, use_)| *use_ != Use::Read);
        let job = Job {
            db,
            now: self.clock.now(),
            keys: &keys,
            writes,
            strict: writes,
            room: if writes { 1_000 } else { 0 },
            touch: true,
            counters: &self.counters,
            release: &Release::default(),
        };
        let mut result = None;
        let mut run = |tx: &mut Tx<'_>| command(tx).map(|value| result = Some(value));
        carry_out(&self.cache, &job, &mut run).await?;
        Ok(result.expect("the command ran"))
    }

    async fn set(&self, db: usize, key: &str, len: usize) -> Result<(), String> {
        let value = vec![b'v'; len];
        self.run(db, &[(key, Use::Blind)], |tx| tx.set(self.key(key), &[&value], Ttl::Clear)).await
    }

    async fn get(&self, db: usize, key: &str) -> Result<Option<usize>, String> {
        let len = |tx: &mut Tx<'_>| Ok(tx.get(self.key(key))?.map(|entry| entry.value().len()));
        self.run(db, &[(key, Use::Read)], len).await
    }

    fn is_cached(&self, db: usize, key: &str) -> bool {
        let key = self.key(key);
        let core = self.cache.memory().lock(self.cache.memory().stripe_of(key.hash));
        core.shelf(db).is_some_and(|shelf| shelf.find(key.hash, key.bytes).is_some())
    }

    /// What each namespace has, by looking at every entry.
    fn walk(&self) -> Vec<Tally> {
        let policies = self.cache.policies();
        let mut sums = vec![Tally::default(); policies.iter().count()];
        for stripe in 0..self.cache.memory().stripes() {
            let core = self.cache.memory().lock(stripe);
            for db in 0..DATABASES {
                let Some(shelf) = core.shelf(db) else { continue };
                shelf.table().for_each(|entry| {
                    if let Some(at) = policies.index_of(db, entry.key()) {
                        sums[at].items += 1;
                        sums[at].bytes += entry.size();
                    }
                });
            }
        }
        sums
    }

    /// Has the disk take all that waits for it, and what didn't find room there go.
    fn rest(&self) {
        if let Some(disk) = &self.cache.0.disk {
            let mut writer = disk.writer.lock();
            let writer = writer.as_mut().expect("it is open");
            writer.step(self.cache.memory(), true).expect("no fault");
        }
        self.cache.memory().keep_quotas(self.clock.now());
    }

    /// The tallies and sums are what a walk finds, and no namespace is above its quota.
    fn check(&self, may_be_above: bool, what: &str) {
        let (memory, walked) = (self.cache.memory(), self.walk());
        assert_eq!(memory.tallies(), walked, "{what}");
        for (at, tally) in walked.iter().enumerate() {
            if let Some(quota) = self.cache.policies().at(at).quota {
                assert_eq!(memory.rules().groups.used(at), tally.bytes, "{what}");
                let is_kept = tally.bytes <= quota || may_be_above;
                assert!(is_kept, "{what}: {} of {quota}", tally.bytes);
            }
        }
    }
}

async fn fill_store(store: &Arc<dyn Store>, keys: usize, len: usize) {
    for number in (0..keys).step_by(2) {
        let record = Record { value: vec![b's'; len].into(), version: 1, ..Record::default() };
        let key = Bytes::from(format!("r:{number}"));
        store.apply(&[(key, Change::Put(record))]).await.expect("it works");
    }
}

/// One random operation.
async fn operate(room: &Room, random: &mut u64) {
    let mut next = |most: usize| {
        *random = next_random(*random);
        (*random >> 20) as usize % most
    };
    let prefix = ["p:", "p:1", "r:", "x:"][next(4)];
    let (key, other) = (format!("{prefix}{}", next(90)), format!("p:{}", next(90)));
    let db = [0, 0, 0, 1, 3][next(5)];
    let (key, keys, len) = (key.as_str(), [(key.as_str(), Use::Write)], next(3_000));
    let target = [0, 1, 3][next(3)];
    let soon = room.clock.now() + next(5_000) as u64;
    // What finds no room or has no store is refused; the tallies hold all the same.
    match next(16) {
        0..=3 => drop(room.set(db, key, len).await),
        4 | 5 => drop(room.get(db, key).await),
        6 => drop(
            room.run(db, &keys, |tx| {
                let old = tx.peek(room.key(key))?.map_or(0, |entry| entry.value().len());
                tx.edit(room.key(key), (old + len / 50).min(4_000), |value| value.fill(1))
            })
            .await,
        ),
        7 => drop(room.run(db, &keys, |tx| tx.remove(room.key(key))).await),
        8 => drop(room.run(db, &keys, |tx| tx.set_deadline(room.key(key), soon)).await),
        9 => drop(
            room.run(db, &[(key, Use::Write), (&other, Use::Blind)], |tx| {
                let Some(value) = tx.peek(room.key(key))?.map(text) else { return Ok(()) };
                tx.set(room.key(&other), &[value.as_bytes()], Ttl::Keep)?;
                tx.remove(room.key(key)).map(drop)
            })
            .await,
        ),
        // MOVE.
        10 => drop(
            room.run(db, &keys, |tx| {
                let Some(value) = tx.peek(room.key(key))?.map(text) else { return Ok(()) };
                tx.select(target);
                tx.set(room.key(key), &[value.as_bytes()], Ttl::Clear)?;
                tx.select(db);
                tx.remove(room.key(key)).map(drop)
            })
            .await,
        ),
        11 => {
            room.clock.set(room.clock.now() + next(2_000) as u64);
            for stripe in 0..room.cache.memory().stripes() {
                room.cache.memory().expire(stripe, 10, room.clock.now());
            }
        }
        12 if next(40) == 0 => drop(room.cache.memory().flush(db..db + 1)),
        13 if next(40) == 0 => drop(room.cache.memory().flush(0..DATABASES)),
        14 if next(10) == 0 => {
            room.cache.memory().swap(1, 3);
            room.cache.memory().keep_quotas(room.clock.now());
        }
        15 if next(10) == 0 => {
            room.cache.memory().set_limit([1 << 20, 700 << 10][next(2)]);
            while room.cache.memory().trim(100, room.clock.now()) {}
        }
        _ => {}
    }
    room.landed().await;
}

impl Room {
    async fn landed(&self) {
        while !self.cache.0.flights.0.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

const EVICTIONS: [Eviction; 4] =
    [Eviction::AllkeysS3fifo, Eviction::AllkeysLru, Eviction::AllkeysRandom, Eviction::VolatileTtl];

#[tokio::test]
async fn tallies_are_what_a_walk_finds_and_quotas_hold() {
    for eviction in EVICTIONS {
        for has_disk in [false, true] {
            let what = format!("{eviction:?}, disk {has_disk}");
            let dir = tempfile::tempdir().expect("a directory");
            let main = store::memory();
            fill_store(&main, 90, 700).await;
            let room = match has_disk {
                true => Room::on_disk(eviction, dir.path(), main),
                false => Room::with(eviction, 1 << 20, None, main),
            };
            let mut random = 0x1234_5678_9abc_def1 ^ eviction as u64;
            for number in 0..4_000 {
                operate(&room, &mut random).await;
                if number % 10 == 0 {
                    // Keys without a deadline that a swap brought may have to stay.
                    let may_stay = eviction == Eviction::VolatileTtl && !has_disk;
                    room.rest();
                    room.check(may_stay, &format!("{what}, {number}"));
                }
            }
        }
    }
}

/// Keys of others stay, whatever one namespace writes, and it has nearly all of its quota.
#[tokio::test]
async fn a_namespace_over_its_quota_evicts_its_own_keys() {
    for eviction in [Eviction::AllkeysS3fifo, Eviction::AllkeysLru, Eviction::AllkeysLfu] {
        let room = Room::new(eviction);
        for number in 0..100 {
            room.set(0, &format!("x:{number}"), 1_000).await.expect("room");
            room.set(0, &format!("p:1{number}"), 1_000).await.expect("room");
        }
        for number in 0..1_000 {
            room.set(0, &format!("p:0{number}"), 200 + number % 1_000).await.expect("room");
            room.check(false, &format!("{eviction:?}, {number}"));
        }
        let used = room.walk()[PLAIN].bytes;
        assert!(used > QUOTA * 8 / 10, "{eviction:?}: {used} of {QUOTA}");
        for number in 0..100 {
            let keys = [format!("x:{number}"), format!("p:1{number}")];
            assert!(keys.iter().all(|key| room.is_cached(0, key)), "{eviction:?}, {number}");
        }
        assert!(room.cache.memory().evicted() > 900);
    }
}

/// A namespace's own queues keep what is used in it, and what comes and goes elsewhere doesn't push that out.
#[tokio::test]
async fn used_keys_stay_under_scans_of_the_namespace_and_of_others() {
    let room = Room::new(Eviction::AllkeysS3fifo);
    let hot: Vec<String> = (0..20).map(|number| format!("p:hot{number}")).collect();
    for key in &hot {
        room.set(0, key, 500).await.expect("room");
    }
    let mut misses = 0;
    for number in 0..4_000 {
        room.set(0, &format!("p:0{number}"), 500).await.expect("room");
        room.set(0, &format!("x:{number}"), 500).await.expect("room");
        let key = &hot[number % hot.len()];
        if room.get(0, key).await == Ok(None) {
            misses += 1;
            room.set(0, key, 500).await.expect("room");
        }
    }
    room.check(false, "after the scans");
    assert!(misses < 200, "{misses} misses of 4000");
}

const OOM: &str = "OOM command not allowed: namespace 'p:' has a quota of 49152 bytes";

/// With `noeviction` and no disk a write that would take more is refused, and says why; what takes no more
/// isn't.
#[tokio::test]
async fn without_eviction_a_write_beyond_the_quota_is_refused() {
    let room = Room::new(Eviction::Noeviction);
    let mut number = 0;
    while room.set(0, &format!("p:0{number}"), 900).await.is_ok() {
        number += 1;
    }
    assert_eq!(number, QUOTA / 1024, "to the last byte");
    assert_eq!(room.set(0, "p:0next", 900).await, Err(OOM.into()));
    room.set(0, "p:00", 890).await.expect("in the place of the old value");
    room.set(0, "p:1", 900).await.expect("another namespace");
    room.set(0, "x", 900).await.expect("no namespace");
    room.set(3, "p:0next", 900).await.expect("another database");
    let grow = |tx: &mut Tx<'_>| tx.edit(room.key("p:00"), 2_000, |value| value.fill(1));
    assert_eq!(room.run(0, &[("p:00", Use::Write)], grow).await, Err(OOM.into()));
    assert_eq!(room.get(0, "p:00").await, Ok(Some(890)), "nothing has changed");
    assert_eq!(
        room.run(0, &[("p:01", Use::Write)], |tx| tx.remove(room.key("p:01"))).await,
        Ok(true)
    );
    room.set(0, "p:0next", 900).await.expect("there is room again");
    room.check(false, "after all");
}

/// What is larger than the quota by itself is refused, at no other key's cost; loaded, it is answered and not
/// kept.
#[tokio::test]
async fn a_value_larger_than_the_quota() {
    for eviction in [Eviction::AllkeysS3fifo, Eviction::Noeviction] {
        let main = store::memory();
        fill_store(&main, 1, QUOTA).await;
        let room = Room::with(eviction, 1 << 20, None, main);
        room.set(0, "p:small", 100).await.expect("room");
        room.set(0, "p:0", QUOTA * 8 / 10).await.expect("it fits by itself");
        assert_eq!(room.set(0, "p:0", QUOTA).await, Err(OOM.into()));
        let grow = |tx: &mut Tx<'_>| tx.edit(room.key("p:small"), QUOTA, |value| value.fill(1));
        assert_eq!(room.run(0, &[("p:small", Use::Write)], grow).await, Err(OOM.into()));
        assert!(room.is_cached(0, "p:0") && room.is_cached(0, "p:small"), "{eviction:?}");
        for _ in 0..2 {
            assert_eq!(room.get(0, "r:0").await, Ok(Some(QUOTA)));
            room.landed().await;
        }
        assert!(!room.is_cached(0, "r:0"));
        room.check(false, "after all");
    }
}

/// SEMANTICS 6: with a disk tier what the quota pushes out of memory goes to disk, where nothing is forgotten.
#[tokio::test]
async fn victims_of_a_quota_go_to_disk() {
    for eviction in [Eviction::AllkeysS3fifo, Eviction::Noeviction, Eviction::VolatileLru] {
        let dir = tempfile::tempdir().expect("a directory");
        let room = Room::on_disk(eviction, dir.path(), store::memory());
        for number in 0..200 {
            room.set(0, &format!("p:0{number}"), 1_000).await.expect("the disk takes it");
            room.check(false, &format!("{eviction:?}, {number}"));
        }
        for number in 0..200 {
            assert_eq!(room.get(0, &format!("p:0{number}")).await, Ok(Some(1_000)), "{number}");
        }
        room.landed().await;
        room.check(false, &format!("{eviction:?}, after the promotions"));
        assert_eq!(room.cache.memory().evicted(), 0, "nothing is forgotten");
    }
}

/// SEMANTICS 8: what a restart brings back is counted, and keeps to the quotas.
#[tokio::test]
async fn what_comes_back_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let main = store::memory();
    fill_store(&main, 90, 700).await;
    let room = Room::on_disk(Eviction::AllkeysS3fifo, dir.path(), main.clone());
    for number in 0..90 {
        room.set(0, &format!("p:0{number}"), 700).await.expect("room");
        room.set(3, &format!("p:0{number}"), 700).await.expect("room");
        room.get(0, &format!("r:{number}")).await.expect("the store works");
    }
    let before = room.walk();
    let save = crate::cache::warm::Save {
        dir: dir.path().join("warm"),
        run: None,
        limit: Duration::from_secs(60),
    };
    room.cache.close(Some(&save)).expect("closes");
    drop(room);
    super::tiers::is_free(dir.path()).await;
    let room = Room::on_disk(Eviction::AllkeysS3fifo, dir.path(), main);
    assert_eq!(room.cache.memory().tallies(), vec![Tally::default(); 4]);
    room.cache.warm_up().expect("a disk tier").join().expect("no panic");
    room.check(false, "after the restart");
    for (at, (before, now)) in before.into_iter().zip(room.walk()).enumerate() {
        assert!(now.items * 10 >= before.items * 9, "{at}: {now:?} of {before:?}");
    }
}

/// A shelf knows its database: what is evicted from one comes back in the same, whichever others there are.
#[tokio::test]
async fn victims_of_any_database_come_back_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let room = Room::on_disk(Eviction::Noeviction, dir.path(), store::memory());
    for number in 0..2_000 {
        room.set(3, &format!("x:{number}"), 700).await.expect("the disk takes it");
    }
    for number in 0..2_000 {
        assert_eq!(room.get(3, &format!("x:{number}")).await, Ok(Some(700)), "{number}");
    }
}
