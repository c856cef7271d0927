//! Bodies that came with an `ETag`, the last used ones, within a number of bytes: a load of such a key asks
//! whether it has changed, and an origin that says no sends no body.

use bytes::Bytes;
use hyper::header::HeaderValue;
use lru::LruCache;
use parking_lot::Mutex;

use crate::store::Record;

/// What an entry takes beside its key, tag and value, roughly.
const OVERHEAD: usize = 256;
/// One body takes at most this part of all.
const SHARE: usize = 8;

/// See the module's doc.
pub(super) struct Kept {
    bodies: Mutex<Bodies>,
    limit: usize,
}

struct Bodies {
    all: LruCache<Bytes, KeptBody>,
    bytes: usize,
}

/// A body, and what the origin calls it.
#[derive(Clone, Debug)]
pub(super) struct KeptBody {
    pub(super) etag: HeaderValue,
    pub(super) record: Record,
}

fn size(key: &Bytes, body: &KeptBody) -> usize {
    OVERHEAD + key.len() + body.etag.len() + body.record.value.len()
}

impl Kept {
    /// At most so many bytes; 0: nothing is kept.
    pub(super) fn new(limit: usize) -> Self {
        let bodies = Bodies { all: LruCache::unbounded(), bytes: 0 };
        Self { bodies: Mutex::new(bodies), limit }
    }

    pub(super) fn get(&self, key: &Bytes) -> Option<KeptBody> {
        self.bodies.lock().all.get(key).cloned()
    }

    pub(super) fn forget(&self, key: &Bytes) {
        self.bodies.lock().remove(key);
    }

    pub(super) fn insert(&self, key: &Bytes, body: KeptBody) {
        // A slice of a larger buffer would keep all of it.
        let key = Bytes::copy_from_slice(key);
        let size = size(&key, &body);
        let mut bodies = self.bodies.lock();
        bodies.remove(&key);
        if size > self.limit / SHARE {
            return;
        }
        bodies.bytes += size;
        bodies.all.put(key, body);
        while bodies.bytes > self.limit
            && let Some((key, _)) = bodies.all.peek_lru()
        {
            let key = key.clone();
            bodies.remove(&key);
        }
    }
}

impl Bodies {
    fn remove(&mut self, key: &Bytes) {
        if let Some(body) = self.all.pop(key) {
            self.bytes -= size(key, &body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_used_are_kept_within_the_limit() {
        let kept = Kept::new(8 * 1024);
        let body = |len: usize| {
            let record = Record { value: vec![0; len].into(), ..Record::default() };
            KeptBody { etag: HeaderValue::from_static("\"1\""), record }
        };
        let keys: Vec<Bytes> = (0..20).map(|number| format!("{number}").into()).collect();
        for key in &keys {
            kept.insert(key, body(700));
            assert!(kept.get(&keys[0]).is_some(), "it is used");
        }
        let left = keys.iter().filter(|key| kept.get(key).is_some()).count();
        assert_eq!(left, 8);
        kept.insert(&keys[0], body(2000));
        assert!(kept.get(&keys[0]).is_none(), "more than its share");
        keys.iter().for_each(|key| kept.forget(key));
        assert_eq!(kept.bodies.lock().bytes, 0);
    }
}
