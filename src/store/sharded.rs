//! A store made of others, each of which has a part of the keys: by ranges of a number in the key, or by
//! a consistent hash of the key ([`Ring`]).
//!
//! A load asks all shards that it concerns at once; if one of them fails, all of it fails. A batch of
//! changes goes to one shard as it is. Over several shards it can't be all or none, so it is refused
//! before anything has changed; [`Store::part`] tells callers beforehand (SEMANTICS 16).
//!
//! A key that is in no range, or doesn't fit the pattern, is its client's fault (SEMANTICS 17).

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;

use super::{
    Applied, BoxFuture, Change, Record, Store, StoreError, component::Component, pattern::Pattern,
    ring::Ring,
};

/// How many ranges an error shows.
const SHOWN: usize = 8;

/// Which shard a key belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Router {
    /// By ranges of a number in the key.
    Range(Ranges),
    /// By the key's hash.
    Hash(Ring),
}

/// Ranges of a number that is a part of each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    pattern: Pattern,
    part: usize,
    /// In order; each with the number of its shard.
    ranges: Vec<(Range<u64>, usize)>,
}

impl Ranges {
    /// Ranges of the part of this name, each with the number of its shard.
    ///
    /// # Errors
    /// If the pattern has no such part, or two ranges overlap: the place in `ranges` of the one that
    /// begins later comes with it.
    pub fn new(
        pattern: Pattern,
        part: &str,
        ranges: Vec<(Range<u64>, usize)>,
    ) -> Result<Self, (Option<usize>, String)> {
        let place = pattern.place(part);
        let part = place.ok_or_else(|| (None, format!("the pattern has no `{{{part}}}`")))?;
        let mut order: Vec<usize> = (0..ranges.len()).collect();
        order.sort_by_key(|at| (ranges[*at].0.start, *at));
        for pair in order.windows(2) {
            let (one, next) = (&ranges[pair[0]].0, &ranges[pair[1]].0);
            if next.start < one.end {
                let [one, next] = [one, next].map(|range| format!("{}-{}", range.start, range.end));
                return Err((Some(pair[1]), format!("{next} overlaps {one}")));
            }
        }
        let ranges = order.into_iter().map(|at| ranges[at].clone()).collect();
        Ok(Self { pattern, part, ranges })
    }

    /// Whether a key with this prefix may be in one.
    pub fn may_fit(&self, prefix: &str) -> bool {
        self.pattern.may_fit(prefix)
    }

    fn place(&self, key: &[u8]) -> Result<usize, StoreError> {
        let stray = || StoreError::Refused("the key doesn't fit the store's `pattern`".into());
        let parts = self.pattern.parts_of(key).ok_or_else(stray)?;
        let text = parts[self.part];
        let name = self.pattern.names().nth(self.part).unwrap_or_default();
        if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
            return Err(StoreError::Refused(format!("the key's {name} is no number")));
        }
        let text = String::from_utf8_lossy(text);
        let found = text.parse().ok().and_then(|number: u64| {
            let at = self.ranges.partition_point(|(range, _)| range.end <= number);
            self.ranges.get(at).filter(|(range, _)| range.contains(&number))
        });
        let out = || {
            let text = format!("{name} {text} is in no range ({})", self.describe());
            StoreError::Refused(text)
        };
        found.map(|(_, shard)| *shard).ok_or_else(out)
    }

    /// The ranges with their last numbers, those that touch as one.
    fn describe(&self) -> String {
        let mut merged: Vec<Range<u64>> = Vec::new();
        for (range, _) in &self.ranges {
            match merged.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => merged.push(range.clone()),
            }
        }
        let more = if merged.len() > SHOWN { ", ..." } else { "" };
        let shown = merged.iter().take(SHOWN).map(texts).collect::<Vec<_>>().join(", ");
        shown + more
    }

    /// The ranges of a shard.
    fn of(&self, shard: usize) -> String {
        let own = self.ranges.iter().filter(|(_, owner)| *owner == shard);
        own.map(|(range, _)| texts(range)).collect::<Vec<_>>().join("+")
    }
}

fn texts(range: &Range<u64>) -> String {
    format!("{}-{}", range.start, range.end.saturating_sub(1))
}

impl Router {
    fn place(&self, key: &[u8]) -> Result<usize, StoreError> {
        match self {
            Self::Range(ranges) => ranges.place(key),
            Self::Hash(ring) => Ok(ring.place(key)),
        }
    }
}

/// A store over these shards and their names, in the order that the router has them in.
pub fn sharded(router: Router, shards: Vec<(&str, Arc<dyn Store>)>) -> Arc<dyn Store> {
    let shards = shards.into_iter().map(|(name, store)| Component::new(name, store)).collect();
    Arc::new(Sharded::new(Arc::new(router), shards))
}

/// See the module's doc.
struct Sharded {
    router: Arc<Router>,
    shards: Vec<Component>,
    /// The number of each shard's first part, and of all parts at the end.
    parts: Vec<u32>,
}

impl Sharded {
    fn new(router: Arc<Router>, shards: Vec<Component>) -> Self {
        let mut parts = vec![0];
        for shard in &shards {
            parts.push(parts.last().map_or(0, |part| part + shard.store.parts()));
        }
        Self { router, shards, parts }
    }

    async fn load_all(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        let places = keys.iter().map(|key| self.router.place(key));
        let places = places.collect::<Result<Vec<_>, _>>()?;
        load_split(keys, &places, |shard, keys| async move {
            self.shards[shard].start().load(&keys).await
        })
        .await
    }

    async fn apply_all(&self, changes: &[(Bytes, Change)]) -> Applied {
        let mut shard = None;
        for (key, _) in changes {
            let place = self.router.place(key)?;
            if *shard.get_or_insert(place) != place {
                let text = "the changes are of more than one shard, and can't be all or none";
                return Err(StoreError::Refused(text.into()));
            }
        }
        match shard {
            Some(shard) => self.shards[shard].start().apply(changes).await,
            None => Ok(Vec::new()),
        }
    }

    async fn ping_all(&self) -> Result<(), StoreError> {
        let answers = join_all(self.shards.iter().map(|shard| shard.store.ping())).await;
        answers.into_iter().collect()
    }
}

/// Loads keys at several places, all at once: `load` is called once a place, and the answers come back
/// in the order of the keys.
pub(super) async fn load_split<F>(
    keys: &[Bytes],
    places: &[usize],
    load: impl Fn(usize, Vec<Bytes>) -> F,
) -> Result<Vec<Option<Record>>, StoreError>
where
    F: Future<Output = Result<Vec<Option<Record>>, StoreError>>,
{
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by_key(|at| places[*at]);
    let groups: Vec<&[usize]> = order.chunk_by(|a, b| places[*a] == places[*b]).collect();
    let loads = groups
        .iter()
        .map(|group| load(places[group[0]], group.iter().map(|at| keys[*at].clone()).collect()));
    let mut found = vec![None; keys.len()];
    for (group, answer) in groups.iter().zip(join_all(loads).await) {
        for (at, record) in group.iter().zip(answer?) {
            found[*at] = record;
        }
    }
    Ok(found)
}

impl Store for Sharded {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(self.load_all(keys))
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(self.apply_all(changes))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ping_all())
    }

    /// Any shard may be asked for all of them.
    fn single_loads(&self) -> Option<usize> {
        self.shards.iter().filter_map(|shard| shard.store.single_loads()).min()
    }

    fn kind(&self) -> &'static str {
        "sharded"
    }

    fn part(&self, key: &[u8]) -> Result<u32, StoreError> {
        let shard = self.router.place(key)?;
        Ok(self.parts[shard] + self.shards[shard].store.part(key)?)
    }

    fn parts(&self) -> u32 {
        self.parts.last().copied().unwrap_or(0)
    }

    /// The longest of the shards' lags.
    fn lag(&self) -> BoxFuture<'_, Option<Duration>> {
        Box::pin(async {
            let lags = join_all(self.shards.iter().map(|shard| shard.store.lag())).await;
            let lags: Option<Vec<Duration>> = lags.into_iter().collect();
            lags?.into_iter().max()
        })
    }

    fn for_writers(&self) -> Option<Arc<dyn Store>> {
        let views: Vec<_> = self.shards.iter().map(Component::for_writers).collect();
        if !views.iter().any(|(_, differs)| *differs) {
            return None;
        }
        let shards = views.into_iter().map(|(shard, _)| shard).collect();
        Some(Arc::new(Self::new(self.router.clone(), shards)))
    }

    fn report(&self) -> Vec<(String, String)> {
        let shares = match &*self.router {
            Router::Hash(ring) => ring.shares(),
            Router::Range(_) => Vec::new(),
        };
        let keys = |shard: usize| match &*self.router {
            Router::Range(ranges) => format!("range={}", ranges.of(shard)),
            Router::Hash(_) => format!("share={:.3}", shares[shard]),
        };
        let line = |(at, shard): (usize, &Component)| {
            (shard.name.to_string(), format!("role=shard,{},{}", keys(at), shard.figures()))
        };
        self.shards.iter().enumerate().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            breaker::{Settings, guarded},
            faulty::{Faults, Op, faulty},
            memory,
            memory::MemoryStore,
            suite::{DEFAULT_CASES, block_on, delete, key, put, suite, text},
        },
        *,
    };

    const M: u64 = 1_000_000;

    /// The ranges of the brief: user ids 0-33M, 33-66M, 66-100M.
    fn ranges() -> Ranges {
        let ranges = vec![(66 * M..100 * M, 2), (0..33 * M, 0), (33 * M..66 * M, 1)];
        Ranges::new(Pattern::parse("user:{id}").unwrap(), "id", ranges).unwrap()
    }

    struct Bench {
        store: Arc<dyn Store>,
        shards: Vec<(Arc<dyn Store>, Faults)>,
    }

    fn bench() -> Bench {
        let shards: Vec<_> = (0..3).map(|_| faulty(memory())).collect();
        let named = ["a", "b", "c"].into_iter().zip(shards.iter().map(|(store, _)| store.clone()));
        Bench { store: sharded(Router::Range(ranges()), named.collect()), shards }
    }

    fn refused(text: &str) -> StoreError {
        StoreError::Refused(text.into())
    }

    #[test]
    fn over_one_shard_it_does_its_duties() {
        suite(DEFAULT_CASES, |clock| {
            let shard: Arc<dyn Store> = Arc::new(MemoryStore::new(clock));
            (sharded(Router::Hash(Ring::new(&[("a", 1)])), vec![("a", shard)]), ())
        });
    }

    /// SYSTEMS, row 6.
    #[test]
    fn ids_go_to_the_shard_of_their_range() {
        let place = |key: &str| ranges().place(key.as_bytes());
        for (id, shard) in [(0, 0), (33 * M - 1, 0), (33 * M, 1), (66 * M, 2), (100 * M - 1, 2)] {
            assert_eq!(place(&format!("user:{id}")), Ok(shard), "{id}");
        }
        assert_eq!(place("user:0000000000000000000000007"), Ok(0));
        for (key, why) in [
            ("user:100000000", "id 100000000 is in no range (0-99999999)"),
            ("user:100000001", "id 100000001 is in no range (0-99999999)"),
            (
                "user:99999999999999999999999",
                "id 99999999999999999999999 is in no range (0-99999999)",
            ),
            ("user:abc", "the key's id is no number"),
            ("user:-1", "the key's id is no number"),
            ("user:+1", "the key's id is no number"),
            ("user:1:name", "the key's id is no number"),
            ("user:", "the key doesn't fit the store's `pattern`"),
            ("order:1", "the key doesn't fit the store's `pattern`"),
        ] {
            assert_eq!(place(key), Err(refused(why)), "{key}");
        }
    }

    #[test]
    fn gaps_are_out_and_overlaps_are_refused() {
        let pattern = || Pattern::parse("{kind}:{id}").unwrap();
        let gaps = vec![(0..10, 0), (20..30, 1), (30..31, 0)];
        let gaps = Ranges::new(pattern(), "id", gaps).unwrap();
        assert_eq!(gaps.place(b"x:15"), Err(refused("id 15 is in no range (0-9, 20-30)")));
        assert_eq!((gaps.place(b"x:30"), gaps.of(0)), (Ok(0), "0-9+30-30".into()));
        let overlap = Ranges::new(pattern(), "id", vec![(5..20, 0), (0..10, 1), (20..21, 0)]);
        assert_eq!(overlap, Err((Some(0), "5-20 overlaps 0-10".into())));
        let missing = Ranges::new(pattern(), "ID", Vec::new());
        assert_eq!(missing, Err((None, "the pattern has no `{ID}`".into())));
        let many = (0..20).map(|at| (at * 2..at * 2 + 1, 0)).collect();
        let many = Ranges::new(pattern(), "id", many).unwrap();
        assert!(many.describe().ends_with("14-14, ..."), "{}", many.describe());
    }

    #[test]
    fn a_load_asks_the_shards_at_once_and_answers_in_order() {
        let Bench { store, shards } = bench();
        let names = ["user:66000000", "user:1", "user:33000000", "user:2", "user:1"];
        block_on(async {
            for name in &names[..4] {
                store.apply(&[put(name, name, 0, 1)]).await.unwrap();
            }
            // Each shard waits until all three were asked.
            shards.iter().for_each(|(_, faults)| faults.hold(Op::Load));
            let theirs = store.clone();
            let keys = names.map(key);
            let load = tokio::spawn(async move { theirs.load(&keys).await });
            for (_, faults) in &shards {
                faults.wait_for_calls(Op::Load, 1).await;
            }
            shards.iter().for_each(|(_, faults)| faults.release(Op::Load));
            let found = load.await.unwrap().unwrap();
            let values = found.into_iter().map(|record| record.unwrap().value);
            assert_eq!(values.collect::<Vec<_>>(), names.map(key));
            assert_eq!(shards[0].1.loaded(), ["user:1", "user:2", "user:1"].map(key));
            // A shard that is down fails its keys, and no others.
            shards[1].1.fail_all(Op::Load, StoreError::Down("unplugged".into()));
            assert!(store.load(&[key("user:1"), key("user:33000000")]).await.is_err());
            assert_eq!(text(&*store, "user:1").await, Some(key("user:1")));
            assert_eq!(store.load(&[key("user:1"), key("user:x")]).await, {
                Err(refused("the key's id is no number"))
            });
        });
    }

    #[test]
    fn a_batch_over_two_shards_is_refused_before_anything_changed() {
        let Bench { store, shards } = bench();
        block_on(async {
            let one = [put("user:1", "a", 0, 1), put("user:2", "b", 0, 1), delete("user:3", 1)];
            store.apply(&one).await.unwrap();
            let two = [put("user:1", "x", 0, 2), put("user:33000000", "y", 0, 2)];
            assert!(matches!(store.apply(&two).await, Err(StoreError::Refused(_))));
            let out = [put("user:1", "x", 0, 2), put("user:100000001", "y", 0, 2)];
            assert!(matches!(store.apply(&out).await, Err(StoreError::Refused(_))));
            assert_eq!(text(&*store, "user:1").await, Some(key("a")));
            let applies: Vec<_> =
                shards.iter().map(|(_, faults)| faults.calls(Op::Apply)).collect();
            assert_eq!(applies, [1, 0, 0]);
        });
    }

    #[test]
    fn parts_are_those_of_all_shards() {
        let inner = bench().store;
        let (guarded, _) =
            guarded(inner.clone(), "inner", Settings::default(), crate::clock::Clock::default());
        let ranges = vec![(0..50 * M, 0), (50 * M..200 * M, 1)];
        let ranges = Ranges::new(Pattern::parse("user:{id}").unwrap(), "id", ranges).unwrap();
        let shards = vec![("first", memory()), ("second", faulty(guarded).0)];
        let store = sharded(Router::Range(ranges), shards);
        assert_eq!((inner.parts(), store.parts(), memory().parts()), (3, 4, 1));
        let parts = ["user:49999999", "user:50000000", "user:99000000"];
        assert_eq!(parts.map(|key| store.part(key.as_bytes())), [Ok(0), Ok(2), Ok(3)]);
        let out = refused("id 150000000 is in no range (0-99999999)");
        assert_eq!(store.part(b"user:150000000"), Err(out));
        // Within one shard, over two of its parts.
        let two = [put("user:50000000", "x", 0, 1), put("user:99000000", "y", 0, 1)];
        assert!(matches!(block_on(store.apply(&two)), Err(StoreError::Refused(_))));
    }

    #[test]
    fn its_report_counts_what_each_shard_was_asked() {
        let Bench { store, shards } = bench();
        block_on(async {
            store.apply(&[put("user:1", "a", 0, 1)]).await.unwrap();
            shards[2].1.fail_next(Op::Load, 1, StoreError::Down("unplugged".into()));
            assert!(store.load(&[key("user:2"), key("user:66000000")]).await.is_err());
        });
        let line = |name: &str, range: &str, requests, failures| {
            let counts = format!("requests={requests},in_progress=0,failures={failures}");
            (name.to_owned(), format!("role=shard,range={range},{counts}"))
        };
        let lines = [
            line("a", "0-32999999", 2, 0),
            line("b", "33000000-65999999", 0, 0),
            line("c", "66000000-99999999", 1, 1),
        ];
        assert_eq!(store.report(), lines);
    }
}
