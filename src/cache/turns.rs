//! Turns: writes of one key to its store go one after the other, in the order in which they came.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use dashmap::{DashMap, DashSet};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::error::ClientError;

type Place = (usize, Bytes);

const STUCK: ClientError =
    ClientError::new("STOREDOWN an earlier write of the key is still without an answer");

/// The keys that are being written through, and those whose last write ended nobody knows how.
#[derive(Default)]
pub(super) struct Turns {
    queues: DashMap<Place, Arc<Mutex<()>>>,
    unknown: DashSet<Place>,
}

/// The turns of a command's keys.
pub(super) struct Turn {
    turns: Arc<Turns>,
    held: Vec<(Place, Option<OwnedMutexGuard<()>>)>,
}

impl Turns {
    /// Waits for the turns of keys, in the keys' order, so that two commands never wait for each other.
    /// It fails if it has waited for `patience` and nobody knows how the write before it ends.
    pub(super) async fn take(
        self: &Arc<Self>,
        mut places: Vec<Place>,
        patience: Duration,
    ) -> Result<Turn, ClientError> {
        places.sort();
        places.dedup();
        let mut turn = Turn { turns: self.clone(), held: Vec::with_capacity(places.len()) };
        for place in places {
            let queue = self.queues.entry(place.clone()).or_default().clone();
            // Noted first: a caller who gives up while waiting leaves no queue behind.
            turn.held.push((place.clone(), None));
            let mut lock = pin!(queue.lock_owned());
            let guard = loop {
                match tokio::time::timeout(patience, &mut lock).await {
                    Ok(guard) => break guard,
                    Err(_) if self.unknown.contains(&place) => return Err(STUCK),
                    Err(_) => {}
                }
            };
            if let Some((_, held)) = turn.held.last_mut() {
                *held = Some(guard);
            }
        }
        Ok(turn)
    }

    /// The keys whose turn somebody has or waits for.
    pub(super) fn places(&self) -> Vec<Place> {
        self.queues.iter().map(|queue| queue.key().clone()).collect()
    }

    /// Whether the outcome of the key's last write is unknown: then nothing of it may be cached.
    pub(super) fn is_unknown(&self, db: usize, key: &Bytes) -> bool {
        !self.unknown.is_empty() && self.unknown.contains(&(db, key.clone()))
    }
}

impl Turn {
    /// Notes that nobody knows how the write under way ends, until the turn ends (SEMANTICS 15).
    pub(super) fn set_unknown(&self) {
        for (place, _) in &self.held {
            self.turns.unknown.insert(place.clone());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        for (place, guard) in self.held.drain(..) {
            // One that only waited knows nothing of the outcome.
            if guard.is_some() {
                self.turns.unknown.remove(&place);
            }
            drop(guard);
            // The map's own reference is the last one when nobody holds or waits.
            self.turns.queues.remove_if(&place, |_, queue| Arc::strong_count(queue) == 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn place(key: &'static str) -> Place {
        (0, Bytes::from_static(key.as_bytes()))
    }

    #[tokio::test]
    async fn turns_are_taken_in_order_and_leave_nothing_behind() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(vec![place("b"), place("a"), place("b")], PATIENCE).await.unwrap();
        let (turns_too, seen) = (turns.clone(), Arc::new(parking_lot::Mutex::new(Vec::new())));
        let waiters: Vec<_> = (0..3)
            .map(|number| {
                let (turns, seen) = (turns_too.clone(), seen.clone());
                tokio::spawn(async move {
                    let _turn = turns.take(vec![place("a")], PATIENCE).await.unwrap();
                    seen.lock().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(seen.lock().is_empty());
        drop(first);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*seen.lock(), [0, 1, 2]);
        assert!(turns.queues.is_empty());
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_frees_its_place() {
        let turns = Arc::new(Turns::default());
        let held = turns.take(vec![place("a")], PATIENCE).await.unwrap();
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(vec![place("a"), place("b")], PATIENCE).await }
        });
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.is_err());
        drop(held);
        drop(turns.take(vec![place("a"), place("b")], PATIENCE).await.unwrap());
        assert!(turns.queues.is_empty());
    }
}
