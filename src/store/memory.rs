//! A store in memory: one map under one lock, exact in every duty but that it forgets with the
//! process.
//!
//! Values are copied in, since a slice of a read buffer would keep the whole buffer alive. A record
//! past its deadline is absent, but gives its memory back only when its key is written again.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::RwLock;

use super::{
    Applied, BoxFuture, Change, MAX_VALUE, Overtaken, Record, Stamp, Store, StoreError, check,
};
use crate::clock::Clock;

type Records = HashMap<Bytes, Record, ahash::RandomState>;

/// See the module's doc.
pub(super) struct MemoryStore {
    records: RwLock<Records>,
    clock: Clock,
}

impl MemoryStore {
    /// An empty store that tells deadlines by `clock`.
    pub(super) fn new(clock: Clock) -> Self {
        Self { records: RwLock::default(), clock }
    }

    fn load_now(&self, keys: &[Bytes]) -> Vec<Option<Record>> {
        let now = self.clock.now();
        let records = self.records.read();
        let live = |key| records.get(key).filter(|record| !Stamp::of(record).is_past(now));
        keys.iter().map(|key| live(key).cloned()).collect()
    }

    fn apply_now(&self, changes: &[(Bytes, Change)]) -> Applied {
        check(changes, MAX_VALUE)?;
        let now = self.clock.now();
        let mut records = self.records.write();
        let one = |(place, change)| apply_one(&mut records, place, change, now);
        Ok(changes.iter().enumerate().filter_map(one).collect())
    }
}

fn apply_one(
    records: &mut Records,
    place: usize,
    (key, change): &(Bytes, Change),
    now: u64,
) -> Option<Overtaken> {
    let overtaken = records.get(key).and_then(|old| Stamp::of(old).overtakes(place, change, now));
    if overtaken.is_some() {
        return overtaken;
    }
    match change {
        Change::Put(record) => {
            let value = Bytes::copy_from_slice(&record.value);
            records.insert(Bytes::copy_from_slice(key), Record { value, ..*record });
        }
        Change::Delete { .. } => {
            records.remove(key);
        }
    }
    None
}

impl Store for MemoryStore {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(async move { Ok(self.load_now(keys)) })
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(async move { self.apply_now(changes) })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn kind(&self) -> &'static str {
        "memory"
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::suite::{DEFAULT_CASES, suite};

    #[test]
    fn memory_does_its_duties() {
        suite(DEFAULT_CASES, |clock| (Arc::new(MemoryStore::new(clock)) as Arc<dyn Store>, ()));
    }

    #[test]
    fn a_read_buffer_is_not_kept() {
        let buffer = Bytes::from(vec![b'x'; 1 << 16]);
        let store = MemoryStore::new(Clock::manual(1));
        let record = Record { value: buffer.slice(..3), version: 1, ..Record::default() };
        store.apply_now(&[(buffer.slice(3..5), Change::Put(record))]).unwrap();
        assert!(buffer.is_unique());
    }
}
