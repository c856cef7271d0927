//! Settle, for writes that go through: the store first, then memory, then the reply.
//!
//! The store is called on the background runtime by a task that holds the keys' turns, so that a client
//! that goes away neither stops a write halfway nor leaves an older copy in memory. What the store
//! refuses is never seen by anybody; when nobody knows how a write ended, the copies are dropped, and
//! nothing of these keys is cached until the store has answered (SEMANTICS 10, 15, 16).

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Cache, Inner, Job,
    counter::Counters,
    turns::Turn,
    tx::{Change, Start, Tx},
};
use crate::{
    error::ClientError,
    policy::{NamespaceStats, Write},
    store::{self, Record, Store, StoreError},
};

/// What goes to a store, and which.
struct Order {
    store: Arc<dyn Store>,
    namespace: usize,
    changes: Vec<(Bytes, store::Change)>,
}

impl Cache {
    /// Brings staged changes to their store and into memory.
    pub(super) async fn settle(
        &self,
        turn: Option<Turn>,
        staged: Vec<Change>,
    ) -> Result<(), ClientError> {
        let Some(turn) = turn.filter(|_| !staged.is_empty()) else { return Ok(()) };
        let staged = last_of_each_key(staged);
        let Some(order) = self.0.order(&staged)? else {
            self.0.publish(staged);
            return Ok(());
        };
        let (sender, answer) = oneshot::channel();
        let work = Settlement { cache: self.0.clone(), turn, staged, answer: Some(sender) };
        self.0.runtime().spawn(work.carry_out(order));
        let died = |_| Err(StoreError::Timeout("the write's task died".into()));
        answer.await.unwrap_or_else(died).map_err(|error| error.client_error())
    }
}

/// A command may write a key more than once; the last change is its effect.
fn last_of_each_key(staged: Vec<Change>) -> Vec<Change> {
    let mut last: Vec<Change> = Vec::with_capacity(staged.len());
    let mut seen = std::collections::HashSet::new();
    for change in staged.into_iter().rev() {
        if seen.insert((change.db, change.key.clone())) {
            last.push(change);
        }
    }
    last.reverse();
    last
}

impl Inner {
    /// What a store has to be told of these changes; an error if it concerns two of them.
    fn order(&self, staged: &[Change]) -> Result<Option<Order>, ClientError> {
        let mut order: Option<(&str, Order)> = None;
        for change in staged {
            let Some(index) = self.policies.index_of(change.db, &change.key) else { continue };
            let namespace = self.policies.at(index);
            let Some((name, store)) = namespace.store.as_ref() else { continue };
            if namespace.write != Write::Through {
                continue;
            }
            let (first, order) = order.get_or_insert_with(|| {
                (name, Order { store: store.clone(), namespace: index, changes: Vec::new() })
            });
            if *first != &**name {
                let text = "CROSSSTORE the command writes keys of more than one store";
                return Err(ClientError::new(text));
            }
            order.changes.push((Bytes::copy_from_slice(&change.key), self.change(change)));
        }
        Ok(order.map(|(_, order)| order))
    }

    fn change(&self, change: &Change) -> store::Change {
        let version = self.next_version();
        match change.entry.as_ref().map(|entry| entry.get()) {
            Some(entry) => store::Change::Put(Record {
                value: Bytes::copy_from_slice(entry.value()),
                deadline: entry.deadline(),
                version,
                fresh_for: None,
            }),
            None => store::Change::Delete { version },
        }
    }

    /// Brings changes into memory, all at once.
    fn publish(&self, staged: Vec<Change>) {
        let now = self.clock.now();
        let cost = |change: &Change| change.entry.as_ref().map_or(0, |entry| entry.get().size());
        let stripe = staged.first().map_or(0, |change| self.memory.stripe_of(change.hash));
        // The store has them: without room they are dropped instead.
        let has_room =
            self.memory.make_room(staged.iter().map(cost).sum(), stripe, now, &[]).is_ok();
        let counters = Counters::default();
        let job = Job {
            db: 0,
            now,
            keys: &[],
            writes: true,
            strict: true,
            room: 0,
            touch: false,
            counters: &counters,
        };
        let start = Start { cache: self, job: &job, pins: &[], staged: None, room: 0 };
        let hashes: Vec<u64> = staged.iter().map(|change| change.hash).collect();
        let mut tx = Tx::begin(start, hashes.into_iter());
        for change in staged {
            let entry = change.entry.filter(|_| has_room);
            let held = tx.publish(Change { entry, ..change });
            debug_assert!(held.is_ok(), "the stripes of all changes are held");
        }
    }

    /// Drops the copies of keys with a store, since nobody knows what it has.
    fn forget(&self, staged: &[Change]) {
        let is_written = |change: &&Change| {
            let namespace = self.policies.of(change.db, &change.key);
            namespace.is_some_and(|namespace| namespace.write == Write::Through)
        };
        let gone = |change: &Change| Change {
            db: change.db,
            hash: change.hash,
            key: change.key.clone(),
            entry: None,
        };
        self.publish(staged.iter().filter(is_written).map(gone).collect());
    }

    /// Drops the copies of keys that a store is being told of: by the next start it may have newer values,
    /// of which nobody has heard (SEMANTICS 15).
    pub(super) fn forget_unsettled(&self) {
        let gone = |(db, key): (usize, Bytes)| Change {
            db,
            hash: self.memory.hash(&key),
            key: (&*key).into(),
            entry: None,
        };
        let changes: Vec<_> = self.turns.places().into_iter().map(gone).collect();
        self.forget(&changes);
    }
}

/// A write under way. When it is dropped unfinished (the store panicked), the copies go.
struct Settlement {
    cache: Arc<Inner>,
    turn: Turn,
    staged: Vec<Change>,
    answer: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl Settlement {
    async fn carry_out(mut self, order: Order) {
        let result = self.tell(&order).await;
        let stats = &self.cache.policies.at(order.namespace).stats;
        match &result {
            Ok(()) => {
                NamespaceStats::add(&stats.writes, order.changes.len() as u64);
                self.cache.publish(std::mem::take(&mut self.staged));
            }
            Err(StoreError::Timeout(_)) => {
                NamespaceStats::add(&stats.write_errors, 1);
                self.cache.forget(&self.staged);
            }
            Err(_) => {
                NamespaceStats::add(&stats.write_errors, 1);
                // Refused or not reached: what memory has is still what the store has.
                self.staged.clear();
            }
        }
        self.answer(result);
    }

    /// Calls the store. Past the time limit the copies go and the client is told that the outcome is
    /// unknown; when the store has answered at last, the copies go again.
    async fn tell(&mut self, order: &Order) -> Result<(), StoreError> {
        let call = order.store.apply(&order.changes);
        tokio::pin!(call);
        if let Ok(result) = tokio::time::timeout(self.cache.store_timeout(), &mut call).await {
            return result;
        }
        let late = || StoreError::Timeout("the write took too long".into());
        self.turn.set_unknown();
        self.cache.forget(&self.staged);
        self.answer(Err(late()));
        let _ = call.await;
        Err(late())
    }

    /// Tells the client, if it hasn't been told. It may be gone.
    fn answer(&mut self, result: Result<(), StoreError>) {
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(result);
        }
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if !self.staged.is_empty() {
            self.cache.forget(&self.staged);
        }
    }
}
