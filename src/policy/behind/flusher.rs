//! The flusher of one lane: takes what is due, brings it to the store, and again.
//!
//! What the store fails (it is down, or nobody knows) is tried again with growing pauses, for ever: the
//! journal keeps it. What the store *refuses* waits apart and is asked for in smaller and smaller pieces, until
//! the refused keys are alone; those are tried again, and given up after `tries` (SEMANTICS 17). Each such call
//! goes between two of the others, so that bad keys hold up nobody for long, however many they are.
//!
//! What the store *passes over*, since it has a newer version, isn't stored (SEMANTICS 14). Changes of a key
//! reach the store in order, so that version isn't of this line: the newest value goes into the journal and
//! to the store again, under a version above it. Two kinds of changes give way instead: a dead letter that is
//! tried once more, and what was left in the journal by an earlier start, where the version may be of that.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::{
    Line, Part, Update,
    dead::Letter,
    lane::{Batch, Due, Landed, Number, Terms},
};
use crate::{
    journal::{JournalError, Position},
    store::{Applied, Overtaken, StoreError},
    tier::shelf::next_random,
    vitals::Alive,
};

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
pub(super) async fn run(line: Weak<Line>, part: usize, _alive: Alive) {
    let (mut failures, mut conflicts) = (0, 0);
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
                Ok(()) => (failures, conflicts) = (0, 0),
                Err(Failed::Conflict) => {
                    conflicts += 1;
                    // It is above what the store had; again only if that is ahead again.
                    if conflicts > 1 {
                        tokio::time::sleep(pause(PAUSE, conflicts - 1)).await;
                    }
                }
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
    /// The store had newer versions; what it passed over waits, under newer ones.
    Conflict,
    Store(StoreError),
}

impl Line {
    fn due(&self, part: &Part) -> Due {
        let settings = self.settings.load();
        let terms = Terms {
            delay: settings.delay,
            batch: settings.batch.max(1),
            bytes: settings.batch_bytes,
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
        if let Some(above) = self.common.above.get() {
            above.landed();
        }
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
        // What one call takes.
        let mut left = self.split_by_part(batch);
        let mut has_conflicts = false;
        while let Some(batch) = left.pop() {
            let failed = match self.apply(&batch).await {
                Ok(overtaken) => match self.landed(part, batch, overtaken) {
                    Ok(is_all) => {
                        has_conflicts |= !is_all;
                        continue;
                    }
                    Err(_) => Failed::Journal,
                },
                Err(StoreError::Refused(why)) => {
                    match batch.len() {
                        0 | 1 => self.refused(part, batch, &why).await,
                        _ => part.lane.lock().set_apart(&batch),
                    }
                    continue;
                }
                Err(why) => {
                    left.push(batch);
                    Failed::Store(why)
                }
            };
            let mut lane = part.lane.lock();
            left.iter().for_each(|batch| lane.put_back(batch));
            return Err(failed);
        }
        if has_conflicts { Err(Failed::Conflict) } else { Ok(()) }
    }

    /// A call is of one part of the store: over several it can't be all or none.
    fn split_by_part(&self, batch: Batch) -> Vec<Batch> {
        if self.store.parts() < 2 {
            return vec![batch];
        }
        // A key that is in no part is refused alone.
        let part_of = |key: &[u8]| self.store.part(key).ok();
        let mut parts: HashMap<Option<u32>, Batch> = HashMap::new();
        let waited = batch.waited;
        let empty = || Batch { waited, ..Batch::default() };
        for (change, place) in batch.changes.into_iter().zip(batch.places) {
            parts.entry(part_of(&change.0)).or_insert_with(empty).push(change, place);
        }
        parts.into_values().collect()
    }

    async fn apply(&self, batch: &Batch) -> Applied {
        let call = async { self.store.apply(&batch.changes).await };
        let panicked = |_| Err(StoreError::Timeout("the store panicked".into()));
        AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(panicked)
    }

    /// The store has a batch, but for what it has overtaken. Says whether all of it is over.
    fn landed(
        &self,
        part: &Part,
        mut batch: Batch,
        mut overtaken: Vec<Overtaken>,
    ) -> Result<bool, JournalError> {
        self.counters.batches.fetch_add(1, Relaxed);
        let mut conflicts = Vec::new();
        // From the last on, so that the places of the others stay.
        overtaken.retain(|one| one.place < batch.len());
        overtaken.sort_unstable_by_key(|one| std::cmp::Reverse(one.place));
        overtaken.dedup_by_key(|one| one.place);
        for Overtaken { place, by } in overtaken {
            let (number, position) = batch.places[place];
            let one = batch.swap_remove(place);
            if part.lane.lock().yields_to(number, position, by) {
                self.give_way(part, &one);
            } else {
                conflicts.push((number, one, by));
            }
        }
        self.counters.flushed.fetch_add(batch.len() as u64, Relaxed);
        self.land(part, &batch);
        let is_all = conflicts.is_empty();
        conflicts
            .into_iter()
            .try_for_each(|(number, one, by)| self.send_again(part, number, &one, by))?;
        Ok(is_all)
    }

    fn land(&self, part: &Part, batch: &Batch) {
        let mut lane = part.lane.lock();
        let before = lane.bytes();
        let landed = lane.land(batch);
        self.note(&landed, before, lane.bytes());
    }

    /// What the store has counts more than this.
    fn give_way(&self, part: &Part, one: &Batch) {
        self.land(part, one);
        // The overlay first, so that no load finds it there any more.
        if let Some(above) = self.common.above.get() {
            one.changes.iter().for_each(|(key, _)| above.forget(usize::from(self.db), key));
        }
    }

    /// The store has a version of a key that isn't ours. The newest value takes the place of what was passed
    /// over, in the journal as in the overlay, so that no end of the process loses it; its room is free
    /// as soon as that is written.
    fn send_again(
        &self,
        part: &Part,
        number: Number,
        one: &Batch,
        by: u64,
    ) -> Result<(), JournalError> {
        let mut lane = part.lane.lock();
        // One that came meanwhile may be newer than it by itself.
        let newest = lane.get(number).filter(|newest| newest.version() <= by);
        let again = newest.and_then(|newest| {
            let key = Bytes::copy_from_slice(newest.key());
            let version = self.common.above.get()?.conflict(usize::from(self.db), &key, by)?;
            Some(newest.with_version(version))
        });
        let append = |again: Update| {
            let mut room = self.common.journal.admit(0)?;
            let (hash, now) = (self.part(again.key()).1, self.common.clock.now());
            self.append_to(part, &mut lane, hash, &mut room, again, now).map(drop)
        };
        let appended = again.map_or(Ok(()), append);
        lane.put_back(one);
        appended
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
        if refusals >= self.settings().tries {
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

    fn give_up(&self, part: &Part, key: &Bytes, (number, position): (Number, Position), why: &str) {
        let count = self.counters.dead_letters.fetch_add(1, Relaxed) + 1;
        // Of many only some are told: each is in its file.
        if count.is_power_of_two() {
            let shown = String::from_utf8_lossy(key).escape_debug().to_string();
            tracing::error!(
                "the store refuses what was written to key \"{shown}\": {why}; it is kept as a dead \
                 letter ({count} so far)"
            );
        }
        let mut lane = part.lane.lock();
        let before = lane.bytes();
        let was_newest = lane.position(number) == Some(position);
        let epochs = lane.give_up(number, position).into_iter().collect();
        let over = was_newest.then_some(position).into_iter().collect();
        self.note(&Landed { over, epochs }, before, lane.bytes());
        drop(lane);
        // The overlay first, so that no load finds it there any more.
        if let Some(above) = self.common.above.get() {
            above.forget(usize::from(self.db), key);
        }
    }
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
