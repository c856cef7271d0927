//! The flusher of one lane: takes what is due, brings it to the store, and again.
//!
//! What the store fails (it is down, or nobody knows) is tried again with growing pauses, for ever: the
//! journal keeps it. What the store *refuses* is asked for in halves, until the refused keys are alone;
//! those are tried again apart from the others, and given up after `tries` (SEMANTICS 17).

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{
    Line, Part,
    dead::Letter,
    lane::{Batch, Due, Landed, Number, Terms},
};
use crate::{journal::Position, store::StoreError, tier::shelf::next_random};

/// The shortest and the longest pause after the store has failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The same after it has refused a change.
const APART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How often it looks whether the cache is still there.
const LOOK: Duration = Duration::from_secs(1);

/// The n-th pause, n from 1: twice as long each time, and up to half of it shorter by chance, so that
/// those who failed together don't come back together.
fn pause((least, most): (Duration, Duration), n: u32) -> Duration {
    static SEED: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
    let random = next_random(SEED.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed) | 1) >> 40;
    let whole = least.saturating_mul(1 << (n - 1).min(16)).min(most);
    whole - whole.mul_f64(random as f64 / f64::from(1 << 24) / 2.0)
}

/// Flushes a lane until its line is gone, or the journal has failed.
pub(super) async fn run(line: Weak<Line>, part: usize) {
    let mut failures = 0;
    loop {
        let Some(line) = line.upgrade() else { return };
        let part = &line.parts[part];
        let mut wake = std::pin::pin!(part.wake.notified());
        wake.as_mut().enable();
        if line.has_stopped.load(Relaxed) {
            return;
        }
        match line.due(part) {
            Due::Idle => drop(tokio::time::timeout(LOOK, wake).await),
            Due::At(at) => {
                let at = at.min(Instant::now() + LOOK);
                drop(tokio::time::timeout_at(at, wake).await);
            }
            Due::Now(batch) => match line.carry(part, batch).await {
                Ok(()) => failures = 0,
                Err(Failed::Journal) => {
                    line.has_stopped.store(true, Relaxed);
                    line.progress.notify_waiters();
                    return;
                }
                Err(Failed::Store(why)) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!("write-behind: {why}; it is tried again until it is stored");
                    }
                    line.counters.retries.fetch_add(1, Relaxed);
                    tokio::time::sleep(pause(PAUSE, failures)).await;
                }
            },
        }
    }
}

/// Why a batch isn't in the store.
enum Failed {
    /// The journal doesn't vouch for it.
    Journal,
    Store(StoreError),
}

impl Line {
    fn due(&self, part: &Part) -> Due {
        let terms = Terms {
            delay: self.settings.delay,
            batch: self.settings.batch.max(1),
            bytes: self.settings.batch_bytes,
        };
        let journal = &self.common.journal;
        let is_pressed = journal.is_half_full();
        let hurry = if is_pressed { u64::MAX } else { self.epoch.load(Relaxed) };
        part.lane.lock().take(&terms, hurry, Instant::now(), self.common.clock.now())
    }

    /// Brings a batch to the store. What doesn't get there waits again.
    async fn carry(&self, part: &Part, batch: Batch) -> Result<(), Failed> {
        let result = self.carry_all(part, batch).await;
        part.lane.lock().all_landed();
        result
    }

    async fn carry_all(&self, part: &Part, batch: Batch) -> Result<(), Failed> {
        let last = batch.places.iter().map(|(_, position)| *position).max();
        if let Some(last) = last
            && self.common.journal.synced(last).await.is_err()
        {
            part.lane.lock().put_back(&batch);
            return Err(Failed::Journal);
        }
        // What one call takes, and halves of what was refused; the first on top.
        let mut left = self.split_by_part(batch);
        while let Some(batch) = left.pop() {
            match self.apply(&batch).await {
                Ok(()) => self.land(part, &batch),
                Err(StoreError::Refused(why)) => match split(batch) {
                    Ok((first, second)) => left.extend([second, first]),
                    Err(batch) => self.refused(part, batch, &why).await,
                },
                Err(why) => {
                    left.push(batch);
                    let mut lane = part.lane.lock();
                    left.iter().for_each(|batch| lane.put_back(batch));
                    return Err(Failed::Store(why));
                }
            }
        }
        Ok(())
    }

    /// A call is of one part of the store: over several it can't be all or none.
    fn split_by_part(&self, batch: Batch) -> Vec<Batch> {
        if self.store.parts() < 2 {
            return vec![batch];
        }
        // A key that is in no part is refused alone.
        let part_of = |key: &[u8]| self.store.part(key).ok();
        let mut parts: HashMap<Option<u32>, Batch> = HashMap::new();
        for (change, place) in batch.changes.into_iter().zip(batch.places) {
            parts.entry(part_of(&change.0)).or_default().push(change, place);
        }
        parts.into_values().collect()
    }

    async fn apply(&self, batch: &Batch) -> Result<(), StoreError> {
        let call = async { self.store.apply(&batch.changes).await };
        let panicked = |_| Err(StoreError::Timeout("the store panicked".into()));
        AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(panicked)
    }

    fn land(&self, part: &Part, batch: &Batch) {
        self.counters.batches.fetch_add(1, Relaxed);
        self.counters.flushed.fetch_add(batch.len() as u64, Relaxed);
        let mut lane = part.lane.lock();
        let before = lane.bytes();
        let landed = lane.land(batch);
        self.note(&landed, before, lane.bytes());
    }

    /// The store has refused a key's change.
    async fn refused(&self, part: &Part, batch: Batch, why: &str) {
        self.counters.refusals.fetch_add(1, Relaxed);
        let Some(((key, change), (number, position))) =
            batch.changes.into_iter().zip(batch.places).next()
        else {
            return;
        };
        let refusals = part.lane.lock().refuse(number, position);
        let Some(refusals) = refusals else { return };
        if refusals >= self.settings.tries {
            let (time, db) = (self.common.clock.now(), self.db);
            let id = position.sequence();
            let reason = why.to_owned();
            let letter = Letter { id, time, db, tries: refusals, reason, key: key.clone(), change };
            match self.common.dead.keep(letter).await {
                Ok(()) => return self.give_up(part, &key, (number, position), why),
                Err(why) => tracing::error!("a dead letter can't be kept: {why}"),
            }
        }
        let at = Instant::now() + pause(APART, refusals);
        part.lane.lock().wait_until(number, at);
    }

    fn give_up(
        &self,
        part: &Part,
        key: &bytes::Bytes,
        (number, position): (Number, Position),
        why: &str,
    ) {
        let shown = String::from_utf8_lossy(key).escape_debug().to_string();
        tracing::error!(
            "the store refuses what was written to key \"{shown}\": {why}; it is kept as a dead letter"
        );
        self.counters.dead_letters.fetch_add(1, Relaxed);
        let mut lane = part.lane.lock();
        let before = lane.bytes();
        let was_newest = lane.position(number) == Some(position);
        let epochs = lane.give_up(number, position).into_iter().collect();
        let over = was_newest.then_some(position).into_iter().collect();
        self.note(&Landed { over, epochs }, before, lane.bytes());
        drop(lane);
        // The overlay first, so that no load finds it there any more.
        if let Some(on_dead) = self.common.on_dead.get() {
            on_dead(usize::from(self.db), key);
        }
    }
}

/// The halves of a batch; itself, if it has only one key.
fn split(mut batch: Batch) -> Result<(Batch, Batch), Batch> {
    if batch.len() < 2 {
        return Err(batch);
    }
    let second = batch.split_off(batch.len() / 2);
    Ok((batch, second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let (least, most) = PAUSE;
        for n in 1..100 {
            let taken = pause(PAUSE, n);
            assert!(taken >= least / 2 && taken <= most, "{taken:?}");
        }
        assert!(pause(PAUSE, 1) <= least);
        let some: std::collections::HashSet<_> = (0..100).map(|_| pause(PAUSE, 10)).collect();
        assert!(some.len() > 50);
    }
}
