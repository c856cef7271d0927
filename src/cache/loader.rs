//! Loads of one store: what is asked at the same time is asked together.
//!
//! So many calls are under way at most. While there are fewer a key goes out at once; otherwise keys wait
//! for a call to end, and leave together. A call takes its keys when its task first runs, so what one
//! command asks for in a row needs no other call. Where a store refuses a batch, one key of it may be at
//! fault: its halves are asked again, down to the key alone. A store that knows no batches
//! ([`Store::single_loads`]) gets one key a call, as many at once as it has connections.
//!
//! A key's time limit counts from when it is asked for, in the queue or not, and is kept by who asks; a call's
//! counts from when it starts, so that a queue doesn't cut calls short. A call that dies, by a panic of the
//! store, answers none of its keys and hinders no other; one that can't even start, since the runtime ends,
//! takes with it all that wait.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    policy::Loads,
    store::{Record, Store, StoreError},
};

/// Keys that wait for a call at most, and their bytes.
const MOST_WAITING: usize = 1 << 16;
const MOST_BYTES: usize = 64 << 20;
/// Bytes of the keys of one call, unless it is one key.
const BATCH_BYTES: usize = 1 << 20;
/// How long nothing is refreshed from a store that has failed, in milliseconds.
const REST: u64 = 1_000;

/// What a store says of one key.
pub(super) type Answer = Result<Option<Record>, StoreError>;

/// The loads of one store.
pub(super) struct Loader {
    store: Arc<dyn Store>,
    loads: Loads,
    runtime: Handle,
    state: Mutex<State>,
    /// Until when nothing is refreshed.
    rests_until: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Wanted>,
    /// Bytes of the keys that wait.
    bytes: usize,
    /// Parts of batches that were refused.
    parts: Vec<Vec<Wanted>>,
    under_way: usize,
    /// Whether one of those hasn't taken its keys yet.
    is_starting: bool,
}

/// A key, and who wants it.
struct Wanted {
    key: Bytes,
    limit: Duration,
    sender: oneshot::Sender<Answer>,
}

impl Loader {
    pub(super) fn new(store: Arc<dyn Store>, loads: Loads, runtime: Handle) -> Self {
        let loads = match store.single_loads() {
            Some(at_once) => Loads { batch: 1, at_once },
            None => loads,
        };
        let loads = Loads { batch: loads.batch.max(1), at_once: loads.at_once.max(1) };
        Self { store, loads, runtime, state: Mutex::default(), rests_until: AtomicU64::new(0) }
    }

    /// Whether it loads from this store.
    pub(super) fn is_of(&self, store: &Arc<dyn Store>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.store), Arc::as_ptr(store))
    }

    /// Asks for a key, without waiting; an error if there is no hope. The answer never comes if the call
    /// dies.
    pub(super) fn ask(
        self: &Arc<Self>,
        key: Bytes,
        limit: Duration,
    ) -> Result<oneshot::Receiver<Answer>, StoreError> {
        if let Some(why) = self.store.turned_away() {
            return Err(why);
        }
        let (sender, answer) = oneshot::channel();
        let mut state = self.state.lock();
        if state.waiting.len() >= MOST_WAITING || state.bytes + key.len() > MOST_BYTES {
            return Err(StoreError::Down("too many loads wait for the store".into()));
        }
        state.bytes += key.len();
        state.waiting.push_back(Wanted { key, limit, sender });
        drop(state);
        self.start();
        Ok(answer)
    }

    /// Starts a call if there is something to ask for and fewer are under way than may be.
    fn start(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let has_work = !state.waiting.is_empty() || !state.parts.is_empty();
        if !has_work || state.is_starting || state.under_way >= self.loads.at_once {
            return;
        }
        state.under_way += 1;
        state.is_starting = true;
        drop(state);
        self.runtime.spawn(Call { loader: self.clone(), keys: None }.carry_out());
    }

    /// The keys of the next call, of those that are still wanted.
    fn take(self: &Arc<Self>) -> Vec<Wanted> {
        let mut state = self.state.lock();
        state.is_starting = false;
        let mut batch = state.parts.pop().unwrap_or_default();
        batch.retain(|wanted| !wanted.sender.is_closed());
        if batch.is_empty() {
            let mut bytes = 0;
            while batch.len() < self.loads.batch
                && let Some(next) = state.waiting.front()
                && (batch.is_empty() || bytes + next.key.len() <= BATCH_BYTES)
                && let Some(wanted) = state.waiting.pop_front()
            {
                state.bytes -= wanted.key.len();
                // Who asked may have gone, or waited for too long.
                if !wanted.sender.is_closed() {
                    bytes += wanted.key.len();
                    batch.push(wanted);
                }
            }
        }
        drop(state);
        self.start();
        batch
    }

    /// Notes that the store has failed.
    pub(super) fn rest(&self, now: u64) {
        self.rests_until.store(now + REST, Relaxed);
    }

    /// Whether the store has failed a moment ago, so that nothing is to be refreshed yet.
    pub(super) fn rests(&self, now: u64) -> bool {
        // A clock that was set back doesn't make it rest for longer.
        (now + 1..=now + REST).contains(&self.rests_until.load(Relaxed))
    }
}

/// A call of the store, under way or about to be. However it ends, the next may start.
struct Call {
    loader: Arc<Loader>,
    /// What it asks for, once it has begun.
    keys: Option<Vec<Wanted>>,
}

impl Call {
    async fn carry_out(mut self) {
        let batch = self.keys.insert(self.loader.take());
        let keys: Vec<Bytes> = batch.iter().map(|wanted| wanted.key.clone()).collect();
        let Some(limit) = batch.iter().map(|wanted| wanted.limit).max() else { return };
        let loaded = tokio::time::timeout(limit, self.loader.store.load(&keys)).await;
        let late = |_| Err(StoreError::Timeout("the load took too long".into()));
        let loaded = loaded.unwrap_or_else(late).and_then(|records| {
            let (count, wanted) = (records.len(), keys.len());
            let wrong = || StoreError::Down(format!("{count} answers for {wanted} keys"));
            if count == wanted { Ok(records) } else { Err(wrong()) }
        });
        let mut batch = std::mem::take(batch);
        match loaded {
            Ok(records) => {
                for (wanted, record) in batch.into_iter().zip(records) {
                    // Who asked may have gone.
                    let _ = wanted.sender.send(Ok(record));
                }
            }
            Err(StoreError::Refused(_)) if batch.len() > 1 => {
                let rest = batch.split_off(batch.len() / 2);
                self.loader.state.lock().parts.extend([rest, batch]);
            }
            Err(why) => {
                for wanted in batch {
                    let _ = wanted.sender.send(Err(why.clone()));
                }
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.loader.state.lock();
        state.under_way -= 1;
        if self.keys.is_some() {
            drop(state);
            return self.loader.start();
        }
        // It never ran, and the next wouldn't: the runtime ends.
        state.is_starting = false;
        let lost = std::mem::take(&mut *state);
        state.under_way = lost.under_way;
        drop(state);
        drop(lost);
    }
}
