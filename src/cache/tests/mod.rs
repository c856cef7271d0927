//! The rules of reading and writing through, each test a story of SEMANTICS with its number: a cache
//! with a hand-set clock over a memory store whose calls fail, hang and lose their answers as told.

mod alike;
mod batches;
mod behind;
mod conflicts;
mod faults;
mod former;
mod loads;
mod negative;
mod quotas;
mod restarts;
mod rules;
mod stale;
mod tiers;
mod writes;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{
    Ahead, Cache, Job, Refusal, Use,
    counter::{Counter, Counters, Tally},
    release::Release,
    tx::{Key, Stop, Ttl, Tx},
};
use crate::{
    clock::Clock,
    policy::{Loads, Namespace, NamespaceStats, Policies, Read, Write},
    store::{
        self, Change, Record, Store, StoreError,
        faulty::{Faults, Op},
    },
    tier::{entry::Entry, eviction::Eviction, memory::Options},
};

/// Far ahead of the clock that the memory store goes by: there nothing of a test ends.
const NOW: u64 = 4_000_000_000_000;

/// A cache over two stores: `r:` is read through, `w:` is written through too, both with store `main`;
/// `o:` is written through to `other`; all else is plain.
struct Bench {
    cache: Cache,
    clock: Clock,
    faults: Faults,
    main: Arc<dyn Store>,
    counters: Counters,
}

fn down() -> StoreError {
    StoreError::Down("unplugged".into())
}

/// Carries a command out as dispatch does: an attempt, and below if need be.
async fn carry_out(
    cache: &Cache,
    job: &Job<'_>,
    run: &mut impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
) -> Result<(), String> {
    let ended = match cache.attempt(job, &mut *run) {
        Ok(()) => Ok(()),
        Err(Refusal::Client(error)) => Err(error),
        Err(Refusal::Below | Refusal::Busy) => {
            cache.go_below(job, &mut Ahead::default(), run).await
        }
    };
    ended.map_err(|error| error.text().to_owned())
}

impl Bench {
    fn new() -> Self {
        Self::with(store::memory(), Options { limit: 16 << 20, ..Options::default() })
    }

    /// A small cache, with a policy.
    fn small(eviction: Eviction) -> Self {
        Self::with(store::memory(), Options { limit: 1 << 20, eviction, ..Options::default() })
    }

    fn with(inner: Arc<dyn Store>, options: Options) -> Self {
        Self::with_clock(inner, options, Clock::manual(NOW))
    }

    fn with_clock(inner: Arc<dyn Store>, options: Options, clock: Clock) -> Self {
        Self::tuned(inner, options, clock, |_| {})
    }

    /// One whose namespaces have more to say.
    fn tuned(
        inner: Arc<dyn Store>,
        options: Options,
        clock: Clock,
        tune: impl Fn(&mut Namespace),
    ) -> Self {
        let (main, faults) = store::faulty::faulty(inner.clone());
        let namespace = |prefix: &str, write, (name, store): (&str, Arc<dyn Store>)| {
            let mut namespace = Namespace {
                prefix: prefix.as_bytes().into(),
                db: 0,
                read: Read::Through,
                write,
                ttl: Some(Duration::from_secs(10)),
                // A call for each key, so that calls tell of keys.
                loads: Loads { batch: 1, at_once: 1_000 },
                store: Some((name.into(), store)),
                ..Namespace::default()
            };
            tune(&mut namespace);
            namespace
        };
        let policies = Policies::new(vec![
            namespace("r:", Write::None, ("main", main.clone())),
            namespace("w:", Write::Through, ("main", main)),
            namespace("o:", Write::Through, ("other", store::memory())),
        ]);
        let cache = Cache::new(&options, policies, clock.clone(), Some(Handle::current()));
        Self { cache, clock, faults, main: inner, counters: Counters::default() }
    }

    fn key<'a>(&self, key: &'a str) -> Key<'a> {
        Key { bytes: key.as_bytes(), hash: self.cache.memory().hash(key.as_bytes()) }
    }

    /// Runs a command on these keys as dispatch does: an attempt, and below if need be.
    async fn run<T>(
        &self,
        db: usize,
        keys: &[(&str, Use)],
        mut command: impl FnMut(&mut Tx<'_>) -> Result<T, Stop>,
    ) -> Result<T, String> {
        let keys: Vec<_> = keys.iter().map(|(key, use_)| (self.key(key), *use_)).collect();
        let writes = keys.iter().any(|(_, use_)| *use_ != Use::Read);
        let release = Release::default();
        let job = Job {
            db,
            now: self.clock.now(),
            keys: &keys,
            writes,
            strict: writes,
            room: 0,
            touch: true,
            counters: &self.counters,
            release: &release,
        };
        let mut result = None;
        let mut run = |tx: &mut Tx<'_>| command(tx).map(|value| result = Some(value));
        carry_out(&self.cache, &job, &mut run).await?;
        let released = self.cache.released(&release).await;
        released.map_err(|error| error.text().to_owned())?;
        Ok(result.expect("the command ran"))
    }

    async fn get(&self, key: &str) -> Result<Option<String>, String> {
        let found = |tx: &mut Tx<'_>| Ok(tx.get(self.key(key))?.map(text));
        self.run(0, &[(key, Use::Read)], found).await
    }

    /// MGET: the values' lengths.
    async fn lengths(&self, keys: &[String]) -> Result<Vec<Option<usize>>, String> {
        let uses: Vec<_> = keys.iter().map(|key| (key.as_str(), Use::Read)).collect();
        let length = |tx: &mut Tx<'_>, key: &String| {
            Ok(tx.get(self.key(key))?.map(|entry| entry.value().len()))
        };
        self.run(0, &uses, |tx| keys.iter().map(|key| length(tx, key)).collect()).await
    }

    async fn set(&self, key: &str, value: &str) -> Result<(), String> {
        self.mset(&[(key, value)]).await
    }

    async fn mset(&self, pairs: &[(&str, &str)]) -> Result<(), String> {
        let uses: Vec<_> = pairs.iter().map(|(key, _)| (*key, Use::Blind)).collect();
        let set = |tx: &mut Tx<'_>, (key, value): &(&str, &str)| {
            tx.set(self.key(key), &[value.as_bytes()], Ttl::Clear)
        };
        self.run(0, &uses, |tx| pairs.iter().try_for_each(|pair| set(tx, pair))).await
    }

    /// SET NX: whether it was set.
    async fn set_if_absent(&self, key: &str, value: &str) -> Result<bool, String> {
        let set = |tx: &mut Tx<'_>| {
            let free = tx.peek(self.key(key))?.is_none();
            if free {
                tx.set(self.key(key), &[value.as_bytes()], Ttl::Clear)?;
            }
            Ok(free)
        };
        self.run(0, &[(key, Use::Write)], set).await
    }

    async fn append(&self, key: &str, tail: &str) -> Result<(), String> {
        let append = |tx: &mut Tx<'_>| {
            let old = tx.peek(self.key(key))?.map_or(0, |entry| entry.value().len());
            let write = |value: &mut [u8]| value[old..].copy_from_slice(tail.as_bytes());
            tx.edit(self.key(key), old + tail.len(), write)
        };
        self.run(0, &[(key, Use::Write)], append).await
    }

    /// INCR: the new number.
    async fn increment(&self, key: &str) -> Result<i64, String> {
        let increment = |tx: &mut Tx<'_>| {
            let old = tx.peek(self.key(key))?.map_or(0, |entry| text(entry).parse().unwrap());
            tx.set(self.key(key), &[(old + 1).to_string().as_bytes()], Ttl::Keep)?;
            Ok(old + 1)
        };
        self.run(0, &[(key, Use::Write)], increment).await
    }

    async fn remove(&self, key: &str) -> Result<bool, String> {
        self.run(0, &[(key, Use::Write)], |tx| tx.remove(self.key(key))).await
    }

    /// GETDEL: the old value.
    async fn get_and_remove(&self, key: &str) -> Result<Option<String>, String> {
        let get_and_remove = |tx: &mut Tx<'_>| {
            let old = tx.peek(self.key(key))?.map(text);
            tx.remove(self.key(key))?;
            Ok(old)
        };
        self.run(0, &[(key, Use::Write)], get_and_remove).await
    }

    async fn expire(&self, key: &str, deadline: u64) -> Result<bool, String> {
        self.run(0, &[(key, Use::Write)], |tx| tx.set_deadline(self.key(key), deadline)).await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), String> {
        let rename = |tx: &mut Tx<'_>| {
            let value = tx.peek(self.key(from))?.map(text).expect("a source");
            tx.set(self.key(to), &[value.as_bytes()], Ttl::Clear)?;
            tx.remove(self.key(from)).map(drop)
        };
        self.run(0, &[(from, Use::Write), (to, Use::Blind)], rename).await
    }

    /// Waits until no write of the key is under way.
    async fn its_turn(&self, key: &str) -> Result<(), String> {
        self.run(0, &[(key, Use::Blind)], |_| Ok(())).await
    }

    /// What memory holds, whatever the store has.
    fn cached(&self, key: &str) -> Option<String> {
        let key = self.key(key);
        let core = self.cache.memory().lock(self.cache.memory().stripe_of(key.hash));
        let shelf = core.shelf(0)?;
        shelf.find(key.hash, key.bytes).map(|slot| text(shelf.entry(slot)))
    }

    /// What the main store holds, asked behind the cache's back.
    async fn stored(&self, key: &str) -> Option<(String, u64)> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let record = self.main.load(&[key]).await.unwrap().pop().flatten()?;
        Some((String::from_utf8_lossy(&record.value).into_owned(), record.deadline))
    }

    /// Writes to the main store behind the cache's back.
    async fn store(&self, key: &str, value: &[u8]) {
        let value = Bytes::copy_from_slice(value);
        let record = Record { value, version: 1, ..Record::default() };
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.main.apply(&[(key, Change::Put(record))]).await.unwrap();
    }

    /// What happened in the namespace of `r:`.
    fn stats(&self) -> &NamespaceStats {
        &self.cache.policies().of(0, b"r:").expect("it is there").stats
    }

    /// Waits until no load is under way.
    async fn landed(&self) {
        while !self.cache.0.flights.0.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    fn loads(&self) -> u64 {
        self.faults.calls(Op::Load)
    }
}

fn text(entry: Entry<'_>) -> String {
    String::from_utf8_lossy(entry.value()).into_owned()
}

fn some(value: &str) -> Result<Option<String>, String> {
    Ok(Some(value.to_owned()))
}

/// A memory store that panics in its first load and its first apply.
struct Panicking {
    inner: Arc<dyn Store>,
    calls: [std::sync::atomic::AtomicU64; 2],
}

impl Panicking {
    fn shared() -> Arc<dyn Store> {
        Arc::new(Self { inner: store::memory(), calls: Default::default() })
    }

    fn panic_once(&self, op: usize) {
        let calls = self.calls[op].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(calls > 0, "the store panics, as the test wants");
    }
}

impl Store for Panicking {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> store::BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        self.panic_once(0);
        self.inner.load(keys)
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> store::BoxFuture<'a, store::Applied> {
        self.panic_once(1);
        self.inner.apply(changes)
    }

    fn ping(&self) -> store::BoxFuture<'_, Result<(), StoreError>> {
        self.inner.ping()
    }

    fn kind(&self) -> &'static str {
        "panicking"
    }
}
