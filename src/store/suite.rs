//! The one suite that every store passes: a check for each duty, each on a fresh store, and random
//! batches against a model.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{BoxFuture, Change, MAX_KEY, Overtaken, Record, Store, StoreError};
use crate::clock::Clock;

/// Random histories for a store that is quick.
pub(super) const DEFAULT_CASES: u32 = 256;

/// Where the suite's clock stands, in unix milliseconds: in the year 2100, so that a server with a clock
/// of its own ends nothing that by the suite's clock is there.
const NOW: u64 = 4_102_444_800_000;

/// What a store's backend can hold.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Whether it keeps versions.
    pub(super) versions: bool,
    /// Whether deadlines end versions there by the suite's clock, and not by one of its own.
    pub(super) clock: bool,
    /// The longest key, in bytes.
    pub(super) key: usize,
}

impl Limits {
    /// All that a store is to hold.
    pub(super) const NONE: Self = Self { versions: true, clock: true, key: MAX_KEY };

    /// What of a record is there when it is loaded.
    fn kept(self, record: Record) -> Record {
        Record { version: if self.versions { record.version } else { 0 }, ..record }
    }
}

type Check = for<'a> fn(&'a Arc<dyn Store>, &'a Clock, Limits) -> BoxFuture<'a, ()>;

/// Runs all checks. `open` makes an empty store that tells deadlines by the clock it is given, and
/// a guard that is dropped after it; `cases` is the number of random histories.
pub(super) fn suite<G>(cases: u32, open: impl Fn(Clock) -> (Arc<dyn Store>, G)) {
    suite_within(cases, Limits::NONE, open);
}

/// Runs all checks that a backend with these limits can pass.
pub(super) fn suite_within<G>(
    cases: u32,
    limits: Limits,
    open: impl Fn(Clock) -> (Arc<dyn Store>, G),
) {
    let checks: [Check; 12] = [
        |store, _, limits| Box::pin(answers_are_in_the_order_of_the_keys(store, limits)),
        |store, _, _| Box::pin(a_delete_deletes(store)),
        |store, _, _| Box::pin(the_last_of_a_key_wins(store)),
        |store, clock, _| Box::pin(a_deadline_ends_a_record(store, clock)),
        |store, _, limits| Box::pin(an_older_change_is_passed_over(store, limits)),
        |store, _, limits| Box::pin(what_is_passed_over_is_told(store, limits)),
        |store, clock, limits| {
            Box::pin(a_passed_deadline_forgets_the_version(store, clock, limits))
        },
        |store, _, limits| Box::pin(any_bytes_are_a_key_and_a_value(store, limits)),
        |store, _, _| Box::pin(long_values_come_back_whole(store)),
        |store, _, _| Box::pin(a_refused_batch_changes_nothing(store)),
        |store, _, _| Box::pin(nothing_is_a_batch_too(store)),
        |store, _, limits| Box::pin(many_at_once(store, limits)),
    ];
    for check in checks {
        let clock = Clock::manual(NOW);
        let (store, _guard) = open(clock.clone());
        block_on(check(&store, &clock, limits));
    }
    let (store, _guard) = open(Clock::manual(NOW));
    agrees_with_a_model(cases, limits, &store);
}

/// Runs a future to its end on a runtime of its own.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap().block_on(future)
}

/// A key.
pub(super) fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A change that stores a value.
pub(super) fn put(
    key: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
    deadline: u64,
    version: u64,
) -> (Bytes, Change) {
    let value = Bytes::copy_from_slice(value.as_ref());
    (
        Bytes::copy_from_slice(key.as_ref()),
        Change::Put(Record { value, deadline, version, ..Record::default() }),
    )
}

/// A change that deletes.
pub(super) fn delete(name: &str, version: u64) -> (Bytes, Change) {
    (key(name), Change::Delete { version })
}

/// What a store holds for one key.
async fn load(store: &dyn Store, name: &[u8]) -> Option<Record> {
    let found = store.load(&[Bytes::copy_from_slice(name)]).await.unwrap();
    assert_eq!(found.len(), 1);
    found.into_iter().next().flatten()
}

/// The value a store holds for one key.
pub(super) async fn text(store: &dyn Store, name: &str) -> Option<Bytes> {
    load(store, name.as_bytes()).await.map(|record| record.value)
}

async fn answers_are_in_the_order_of_the_keys(store: &Arc<dyn Store>, limits: Limits) {
    store.apply(&[put("a", "1", NOW + 5, 7), put("c", "3", 0, 9)]).await.unwrap();
    let keys = [key("c"), key("b"), key("a"), key("c")];
    let found = store.load(&keys).await.unwrap();
    let a = Record { value: key("1"), deadline: NOW + 5, version: 7, fresh_for: None };
    let c = Record { value: key("3"), deadline: 0, version: 9, fresh_for: None };
    let (a, c) = (limits.kept(a), limits.kept(c));
    assert_eq!(found, [Some(c.clone()), None, Some(a), Some(c)]);
}

async fn a_delete_deletes(store: &Arc<dyn Store>) {
    store.apply(&[put("a", "1", 0, 1), put("b", "2", 0, 1)]).await.unwrap();
    store.apply(&[delete("a", 2), delete("never", 2)]).await.unwrap();
    assert_eq!(text(&**store, "a").await, None);
    assert_eq!(text(&**store, "b").await, Some(key("2")));
    store.apply(&[put("a", "again", 0, 3)]).await.unwrap();
    assert_eq!(text(&**store, "a").await, Some(key("again")));
}

async fn the_last_of_a_key_wins(store: &Arc<dyn Store>) {
    let changes = [
        put("a", "1", 0, 1),
        put("a", "2", 0, 1),
        put("b", "1", 0, 1),
        delete("b", 2),
        delete("c", 1),
        put("c", "1", 0, 2),
        put("a", "3", 0, 2),
    ];
    store.apply(&changes).await.unwrap();
    assert_eq!(text(&**store, "a").await, Some(key("3")));
    assert_eq!(text(&**store, "b").await, None);
    assert_eq!(text(&**store, "c").await, Some(key("1")));
}

async fn a_deadline_ends_a_record(store: &Arc<dyn Store>, clock: &Clock) {
    store.apply(&[put("a", "1", NOW + 10, 1), put("past", "1", NOW, 1)]).await.unwrap();
    assert_eq!(text(&**store, "past").await, None);
    clock.set(NOW + 9);
    assert_eq!(text(&**store, "a").await, Some(key("1")));
    clock.set(NOW + 10);
    assert_eq!(text(&**store, "a").await, None);
}

async fn an_older_change_is_passed_over(store: &Arc<dyn Store>, limits: Limits) {
    if !limits.versions {
        return;
    }
    store.apply(&[put("a", "5", 0, 5)]).await.unwrap();
    // The old one is passed over, the rest of its batch is not.
    store.apply(&[put("a", "4", 0, 4), delete("a", 4), put("b", "1", 0, 1)]).await.unwrap();
    assert_eq!(text(&**store, "a").await, Some(key("5")));
    assert_eq!(text(&**store, "b").await, Some(key("1")));
    store.apply(&[put("a", "5 again", 0, 5)]).await.unwrap();
    assert_eq!(text(&**store, "a").await, Some(key("5 again")));
    store.apply(&[put("a", "max", 0, u64::MAX)]).await.unwrap();
    assert_eq!(load(&**store, b"a").await.unwrap().version, u64::MAX);
    store.apply(&[delete("a", u64::MAX)]).await.unwrap();
    assert_eq!(text(&**store, "a").await, None);
}

/// SEMANTICS 14: *the store refuses acknowledged writes as older and the flusher takes that for success.*
async fn what_is_passed_over_is_told(store: &Arc<dyn Store>, limits: Limits) {
    if !limits.versions {
        let changes = [put("a", "5", 0, 5), put("a", "4", 0, 4)];
        assert_eq!(store.apply(&changes).await, Ok(vec![]));
        return;
    }
    let far = 1 << 63;
    let told = |place, by| Overtaken { place, by };
    let changes = [put("a", "9", 0, 9), put("b", "far", 0, far), put("c", "9", 0, 9)];
    assert_eq!(store.apply(&changes).await, Ok(vec![]));
    let changes = [put("new", "1", 0, 1), delete("a", 8), put("c", "9", 0, 9), put("b", "1", 0, 1)];
    let mut overtaken = store.apply(&changes).await.unwrap();
    overtaken.sort_by_key(|told| told.place);
    assert_eq!(overtaken, [told(1, 9), told(3, far)]);
    // An equal one is applied again, and a delete of what isn't there has nothing to do.
    let same = [put("a", "9", 0, 9), delete("never", 1), delete("c", 9)];
    assert_eq!(store.apply(&same).await, Ok(vec![]));
    // The last one of a key is told of at least, also where its own batch has overtaken it.
    let changes = [put("d", "7", 0, 7), put("a", "2", 0, 2), put("d", "5", 0, 5), delete("a", 3)];
    let overtaken = store.apply(&changes).await.unwrap();
    for last in [told(2, 7), told(3, 9)] {
        assert_eq!(overtaken.iter().filter(|one| **one == last).count(), 1, "{overtaken:?}");
    }
}

async fn a_passed_deadline_forgets_the_version(
    store: &Arc<dyn Store>,
    clock: &Clock,
    limits: Limits,
) {
    if !limits.clock {
        return;
    }
    store.apply(&[put("a", "9", NOW + 1, 9)]).await.unwrap();
    clock.set(NOW + 1);
    assert_eq!(store.apply(&[put("a", "2", 0, 2)]).await, Ok(vec![]));
    assert_eq!(text(&**store, "a").await, Some(key("2")));
}

async fn any_bytes_are_a_key_and_a_value(store: &Arc<dyn Store>, limits: Limits) {
    let all: Vec<u8> = (0..=255).collect();
    let longest = vec![0xff; limits.key];
    let names: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"a\r\nb", &all, &longest];
    for (i, name) in names.into_iter().enumerate() {
        store.apply(&[put(name, [i as u8], 0, 1)]).await.unwrap();
    }
    for (i, name) in names.into_iter().enumerate() {
        assert_eq!(load(&**store, name).await.unwrap().value[..], [i as u8]);
    }
    store.apply(&[put("empty", "", 0, 1), put("all", &all, 0, 1)]).await.unwrap();
    assert_eq!(text(&**store, "empty").await, Some(Bytes::new()));
    assert_eq!(text(&**store, "all").await, Some(all.into()));
}

async fn long_values_come_back_whole(store: &Arc<dyn Store>) {
    let long: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    let name = |i| format!("long{i}");
    let changes: Vec<_> = (0..8).map(|i| put(name(i), &long[i..], 0, 1)).collect();
    store.apply(&changes).await.unwrap();
    for i in 0..8 {
        assert_eq!(text(&**store, &name(i)).await.unwrap(), long[i..]);
    }
    store.apply(&[put(name(0), "short", 0, 2)]).await.unwrap();
    assert_eq!(text(&**store, &name(0)).await, Some(key("short")));
}

async fn a_refused_batch_changes_nothing(store: &Arc<dyn Store>) {
    store.apply(&[put("a", "old", 0, 1)]).await.unwrap();
    let too_long = put(vec![b'k'; MAX_KEY + 1], "", 0, 2);
    let refused = store.apply(&[put("a", "new", 0, 2), delete("b", 2), too_long]).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))));
    assert_eq!(text(&**store, "a").await, Some(key("old")));
}

async fn nothing_is_a_batch_too(store: &Arc<dyn Store>) {
    store.apply(&[]).await.unwrap();
    assert_eq!(store.load(&[]).await.unwrap(), []);
    store.ping().await.unwrap();
    assert!(!store.kind().is_empty());
}

/// Tasks write keys of their own and one common key; each sees its own writes at once.
async fn many_at_once(store: &Arc<dyn Store>, limits: Limits) {
    let tasks: Vec<_> = (0..64)
        .map(|task: u64| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                for round in 1..=4 {
                    let own = format!("own{task}");
                    let common = put("common", task.to_string(), 0, task * 10 + round);
                    let changes = [put(&own, round.to_string(), 0, round), common];
                    store.apply(&changes).await.unwrap();
                    assert_eq!(text(&*store, &own).await, Some(key(&round.to_string())));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    if !limits.versions {
        return;
    }
    let common = load(&**store, b"common").await.unwrap();
    assert_eq!((&common.value[..], common.version), (&b"63"[..], 634));
}

/// One change of a random history: key, value (None: delete), deadline, version.
type Step = (u8, Option<u8>, u64, u64);

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let deadline = prop_oneof![3 => Just(0), 1 => Just(NOW - 1), 1 => Just(NOW + 1)];
    let step = (0..6u8, proptest::option::weighted(0.7, any::<u8>()), deadline, 0..8u64);
    proptest::collection::vec(proptest::collection::vec(step, 0..6), 1..8)
}

/// The last change of each key in a batch that was overtaken: batch, key, by which version.
type Told = Vec<(usize, u8, u64)>;

/// What must be there, and what must be told: written again in the plainest way.
fn model(history: &[Vec<Step>], limits: Limits) -> (HashMap<u8, Record>, Told) {
    let mut records = HashMap::<u8, Record>::new();
    let mut told = Told::new();
    for (number, batch) in history.iter().enumerate() {
        for (place, (key, value, deadline, version)) in batch.iter().copied().enumerate() {
            if let Some(old) = records.get(&key)
                && limits.versions
                && old.version > version
            {
                if batch[place + 1..].iter().all(|later| later.0 != key) {
                    told.push((number, key, old.version));
                }
                continue;
            }
            records.remove(&key);
            if let Some(value) = value.filter(|_| deadline == 0 || deadline > NOW) {
                let value = Bytes::copy_from_slice(&[value]);
                records.insert(key, Record { value, deadline, version, fresh_for: None });
            }
        }
    }
    told.sort_unstable();
    (records, told)
}

async fn replay(
    store: &dyn Store,
    case: u32,
    history: &[Vec<Step>],
) -> (Vec<Option<Record>>, Told) {
    let mut told = Told::new();
    let name = |key: u8| format!("{case}:{key}");
    for (number, batch) in history.iter().enumerate() {
        let change = |&(key, value, deadline, version): &Step| match value {
            Some(value) => put(name(key), [value], deadline, version),
            None => delete(&name(key), version),
        };
        let changes: Vec<_> = batch.iter().map(change).collect();
        for Overtaken { place, by } in store.apply(&changes).await.unwrap() {
            let key = batch[place].0;
            if batch[place + 1..].iter().all(|later| later.0 != key) {
                told.push((number, key, by));
            }
        }
    }
    told.sort_unstable();
    let keys: Vec<Bytes> = (0..6).map(|i| key(&name(i))).collect();
    (store.load(&keys).await.unwrap(), told)
}

fn agrees_with_a_model(cases: u32, limits: Limits, store: &Arc<dyn Store>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let case = std::cell::Cell::new(0);
    let tested = TestRunner::new(config).run(&steps(), |history| {
        case.set(case.get() + 1);
        let (found, told) = block_on(replay(&**store, case.get(), &history));
        let (records, to_tell) = model(&history, limits);
        let expected: Vec<_> =
            (0..6).map(|i| records.get(&i).map(|record| limits.kept(record.clone()))).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(told, to_tell);
        Ok(())
    });
    tested.unwrap_or_else(|why| panic!("{}: {why}", store.kind()));
}
