//! A store that another one is made of: its name, and what was asked of it. A request counts from its
//! start to its completion, and one that is given up has completed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;

use super::{Applied, Change, Record, Store, StoreError, balance::Load};

/// See the module's doc.
pub(super) struct Component {
    pub(super) name: Box<str>,
    pub(super) store: Arc<dyn Store>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    in_progress: AtomicU64,
    failures: AtomicU64,
}

impl Component {
    /// A store and its name.
    pub(super) fn new(name: &str, store: Arc<dyn Store>) -> Self {
        Self { name: name.into(), store, counts: Arc::default() }
    }

    /// The same one as whoever writes has to see it, counted together; whether that differs.
    pub(super) fn for_writers(&self) -> (Self, bool) {
        let view = self.store.for_writers();
        let differs = view.is_some();
        let store = view.unwrap_or_else(|| self.store.clone());
        (Self { name: self.name.clone(), store, counts: self.counts.clone() }, differs)
    }

    /// Starts a request; it has completed when what this returns is dropped.
    pub(super) fn start(&self) -> Request<'_> {
        self.counts.requests.fetch_add(1, Relaxed);
        self.counts.in_progress.fetch_add(1, Relaxed);
        Request(self)
    }

    /// What it has to do and has done.
    pub(super) fn load(&self) -> Load {
        let Counts { requests, in_progress, .. } = &*self.counts;
        Load { in_progress: in_progress.load(Relaxed), requests: requests.load(Relaxed) }
    }

    /// Its figures, for [`Store::report`].
    pub(super) fn figures(&self) -> String {
        let Load { in_progress, requests } = self.load();
        let failures = self.counts.failures.load(Relaxed);
        format!("requests={requests},in_progress={in_progress},failures={failures}")
    }
}

/// A request under way.
pub(super) struct Request<'a>(&'a Component);

impl Request<'_> {
    /// Loads keys.
    pub(super) async fn load(self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        self.note(self.0.store.load(keys).await)
    }

    /// Applies changes.
    pub(super) async fn apply(self, changes: &[(Bytes, Change)]) -> Applied {
        self.note(self.0.store.apply(changes).await)
    }

    fn note<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let has_failed = result.as_ref().is_err_and(StoreError::is_stores_fault);
        self.0.counts.failures.fetch_add(u64::from(has_failed), Relaxed);
        result
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.0.counts.in_progress.fetch_sub(1, Relaxed);
    }
}
