//! What the journal's users and its writer share: the effects that wait to be written.
//!
//! They wait in the [log buffer](LogBuffer), where they are as durable as most need to be. What finds no room
//! there waits in a [`Batch`], and all that come after it: the buffer takes none before those are written.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{
    Effect, Fsync, JournalError, Options, Position,
    figures::Counters,
    format::{self, Head, MAX_RUNS},
    log_buffer::LogBuffer,
    room::Room,
    watermark::Watermark,
};
use crate::clock::Clock;

/// Room for items and for their bytes that is kept between batches.
const KEPT: (usize, usize) = (64 * 1024, 4 * 1024 * 1024);

/// Bytes in the log buffer from which on they are written: the system takes as many at once.
pub(super) const MANY: u64 = 256 * 1024;

/// What is to be written behind what the log buffer has, in its order.
#[derive(Default)]
pub(super) struct Batch {
    items: Vec<Item>,
    /// Key and value of each effect, one after the other.
    bodies: Vec<u8>,
    /// How many of the items, and of their bytes, are done.
    done: (usize, usize),
    /// What all of it takes at most in a segment, in bytes.
    size: u64,
}

enum Item {
    Effect(Head),
    Acknowledge(Vec<(u64, u64)>),
}

/// The next of a batch.
pub(super) enum Next<'a> {
    /// An effect: its head, and key and value.
    Effect(Head, &'a [u8]),
    /// The store has these runs.
    Acknowledge(Vec<(u64, u64)>),
}

impl Batch {
    fn push(&mut self, head: Head, effect: &Effect<'_>) {
        self.size += head.record_len();
        self.items.push(Item::Effect(head));
        self.bodies.extend_from_slice(effect.key);
        self.bodies.extend_from_slice(effect.value.unwrap_or_default());
    }

    fn acknowledge(&mut self, runs: &[(u64, u64)]) {
        self.size += format::size_of_runs(runs.len());
        self.items.push(Item::Acknowledge(runs.to_vec()));
    }

    /// The next item, which is done then.
    pub fn next(&mut self) -> Option<Next<'_>> {
        let (item, body) = self.done;
        let next = match self.items.get_mut(item)? {
            Item::Acknowledge(runs) => Next::Acknowledge(mem::take(runs)),
            Item::Effect(head) => {
                let end = body + head.body_len() as usize;
                self.done.1 = end;
                Next::Effect(*head, &self.bodies[body..end])
            }
        };
        self.done.0 += 1;
        Some(next)
    }

    /// Has a log buffer have what it has room for. Returns the sequence number of the last effect of that.
    fn move_to(&mut self, buffer: &LogBuffer) -> Option<u64> {
        let mut last = None;
        while let Some(item) = self.items.get(self.done.0) {
            let head = match item {
                Item::Effect(head) => *head,
                Item::Acknowledge(runs) => Head::acknowledging(runs.len()),
            };
            if !buffer.has_room(&head) {
                break;
            }
            match self.next() {
                Some(Next::Effect(head, body)) => {
                    let (key, value) = body.split_at(head.key_len as usize);
                    buffer.put(&head, buffer.sum(key, value), key, value);
                    last = Some(head.sequence);
                }
                Some(Next::Acknowledge(runs)) => {
                    let body = format::encode_runs(&runs);
                    buffer.put(&head, buffer.sum(&[], &body), &[], &body);
                }
                None => break,
            }
        }
        last
    }

    /// Whether all of it is done.
    pub fn is_done(&self) -> bool {
        self.done.0 == self.items.len()
    }

    /// Whether some of what isn't done is an effect.
    pub fn has_effects(&self) -> bool {
        self.items[self.done.0..].iter().any(|item| matches!(item, Item::Effect(_)))
    }

    /// Whether there is nothing in it, done or not.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What all of it takes at most in a segment, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn clear(&mut self) {
        self.items.clear();
        self.items.shrink_to(KEPT.0);
        self.bodies.clear();
        self.bodies.shrink_to(KEPT.1);
        (self.done, self.size) = ((0, 0), 0);
    }
}

pub(super) struct Shared {
    pub options: Options,
    pub clock: Clock,
    pub room: Arc<Room>,
    pub counters: Counters,
    pub buffer: LogBuffer,
    /// How far effects are durable by the policy.
    pub durable: Watermark,
    /// Versions up to this are covered by what is durable.
    pub ceiling: Watermark,
    /// The ceiling that was asked for.
    wanted: AtomicU64,
    pending: Mutex<Pending>,
    wake: Condvar,
}

struct Pending {
    batch: Batch,
    /// Some are in batches that aren't written yet.
    is_spilling: bool,
    /// The writer's thread will look for what has to be synced, in time.
    is_timed: bool,
    /// The sequence number of the next effect.
    next: u64,
    /// The writer's thread has something to do that isn't here.
    is_due: bool,
    closed: bool,
    failed: Option<JournalError>,
}

/// How long the writer waits for something to write.
pub(super) enum Wait {
    No,
    For(Duration),
    Forever,
}

impl Shared {
    pub fn new(
        options: Options,
        clock: Clock,
        room: Room,
        buffer: LogBuffer,
        (next, ceiling): (u64, u64),
    ) -> Self {
        Self {
            options,
            clock,
            room: Arc::new(room),
            counters: Counters::default(),
            buffer,
            durable: Watermark::new(next - 1),
            ceiling: Watermark::new(ceiling),
            wanted: AtomicU64::new(ceiling),
            pending: Mutex::new(Pending {
                batch: Batch::default(),
                is_spilling: false,
                is_timed: false,
                next,
                is_due: false,
                closed: false,
                failed: None,
            }),
            wake: Condvar::new(),
        }
    }

    /// Takes an effect in: its place in the order is decided here.
    pub fn append(&self, effect: &Effect<'_>) -> Result<Position, JournalError> {
        let (mut head, value) = (Head::of(effect), effect.value.unwrap_or_default());
        let is_short = self.buffer.may_hold(&head);
        let sum = if is_short { self.buffer.sum(effect.key, value) } else { 0 };
        let mut pending = self.pending.lock();
        pending.check()?;
        let sequence = pending.next;
        pending.next += 1;
        head.sequence = sequence;
        let mut is_due = self.raise_wanted(effect.version);
        // Somebody waits for what it gives back.
        is_due |= effect.supersedes.is_some() && self.room.is_awaited();
        let before = self.buffer.len();
        if is_short && !pending.is_spilling && self.buffer.put(&head, sum, effect.key, value) {
            let has_many = before < MANY && self.buffer.len() >= MANY;
            is_due |=
                has_many || self.syncs_in_time() && !mem::replace(&mut pending.is_timed, true);
            if self.lasts_at_once() {
                self.durable.pass(sequence);
            }
        } else {
            pending.is_spilling = true;
            pending.batch.push(head, effect);
        }
        if is_due {
            pending.is_due = true;
            drop(pending);
            self.wake.notify_one();
        }
        Ok(Position(sequence))
    }

    fn syncs_in_time(&self) -> bool {
        matches!(self.options.fsync, Fsync::Interval(_))
    }

    /// Whether what the log buffer has is durable by the policy.
    pub fn lasts_at_once(&self) -> bool {
        self.buffer.lasts() && self.options.fsync != Fsync::Always
    }

    /// What was taken is written and told of. What was spilled meanwhile goes where it belongs, if it has room
    /// there: else those who go on all the time would spill for ever.
    pub fn has_written(&self) {
        let mut pending = self.pending.lock();
        let moved = pending.batch.move_to(&self.buffer);
        if let Some(sequence) = moved.filter(|_| self.lasts_at_once()) {
            // Before others pass those who wait for it.
            self.durable.raise(sequence);
        }
        if pending.batch.is_done() {
            pending.batch.clear();
            pending.is_spilling = false;
        }
        pending.is_due = true;
        drop(pending);
        self.wake.notify_one();
    }

    /// Has the writer's thread take a turn, if it sleeps.
    pub fn rouse(&self) {
        // Under the lock, so that one that is about to sleep doesn't miss it.
        self.pending.lock().is_due = true;
        self.wake.notify_one();
    }

    /// Takes in that the store has these, behind the effects that were taken in before.
    pub fn acknowledge(&self, mut sequences: Vec<u64>) {
        // The oldest first: whatever part of it survives, no older effect of a key is left where a newer one
        // is gone.
        sequences.sort_unstable();
        sequences.dedup();
        let runs = format::runs(&sequences);
        {
            let mut pending = self.pending.lock();
            if pending.check().is_err() {
                return;
            }
            for runs in runs.chunks(MAX_RUNS) {
                let (head, body) = (Head::acknowledging(runs.len()), format::encode_runs(runs));
                let sum = self.buffer.sum(&[], &body);
                if pending.is_spilling || !self.buffer.put(&head, sum, &[], &body) {
                    pending.is_spilling = true;
                    pending.batch.acknowledge(runs);
                }
            }
            pending.is_due = true;
        }
        self.wake.notify_one();
    }

    /// Asks for a ceiling well above a version, if the one that was asked for comes near.
    pub fn cover(&self, version: u64) {
        let near = version.saturating_add(self.options.ceiling_ahead / 2);
        if near <= self.wanted.load(Relaxed) {
            return;
        }
        {
            // Under the lock, so that a writer that is about to sleep doesn't miss it.
            let _pending = self.pending.lock();
            let _ = self.raise_wanted(version);
        }
        self.wake.notify_one();
    }

    /// Whether another ceiling is asked for now.
    fn raise_wanted(&self, version: u64) -> bool {
        let ahead = self.options.ceiling_ahead;
        let is_near = version.saturating_add(ahead / 2) > self.wanted.load(Relaxed);
        if is_near {
            self.wanted.fetch_max(version.saturating_add(ahead), Relaxed);
        }
        is_near
    }

    /// Waits for something to do, beyond the ceiling that is written already. Says whether anything is taken
    /// in any more, or `None` if the journal has failed. `is_timed`: it waits no longer than until what has to be
    /// synced is.
    pub fn wait(&self, ceiling: u64, wait: &Wait, is_timed: bool) -> Option<bool> {
        let mut pending = self.pending.lock();
        pending.is_timed = is_timed;
        let comes_late = self.syncs_in_time() && !is_timed && self.buffer.len() > 0;
        let idle = |pending: &Pending| {
            pending.batch.items.is_empty()
                && !pending.is_due
                && !comes_late
                && !pending.closed
                && pending.failed.is_none()
                && self.wanted.load(Relaxed) <= ceiling
        };
        while idle(&pending) {
            match wait {
                Wait::No => break,
                Wait::For(time) => {
                    if self.wake.wait_for(&mut pending, *time).timed_out() {
                        break;
                    }
                }
                Wait::Forever => self.wake.wait(&mut pending),
            }
        }
        pending.is_due = false;
        pending.failed.is_none().then_some(!pending.closed)
    }

    /// Takes all that there is to write, in exchange for a batch that is done. Says up to where it is in the log
    /// buffer, and which ceiling is asked for; `None` if the journal has failed: then nobody knows what the
    /// file has, and nothing more goes into it.
    pub fn take(&self, batch: &mut Batch) -> Option<(u64, u64)> {
        let mut pending = self.pending.lock();
        if pending.failed.is_some() {
            return None;
        }
        batch.clear();
        mem::swap(batch, &mut pending.batch);
        Some((self.buffer.end(), self.wanted.load(Relaxed)))
    }

    /// Nothing is taken in any more; what was is still written.
    pub fn close(&self) {
        self.pending.lock().closed = true;
        self.wake.notify_one();
    }

    /// The writer is done.
    pub fn ended(&self) {
        self.room.close();
        self.durable.fail(&JournalError::Closed);
        self.ceiling.fail(&JournalError::Closed);
    }

    /// Nothing is acknowledged any more, for ever.
    pub fn poison(&self, why: &str) {
        let error = JournalError::Poisoned(why.into());
        let dropped = {
            let mut pending = self.pending.lock();
            pending.failed.get_or_insert_with(|| error.clone());
            mem::take(&mut pending.batch)
        };
        self.wake.notify_one();
        drop(dropped);
        // The room first: whoever has heard of the failure gets none any more.
        self.room.close();
        self.durable.fail(&error);
        self.ceiling.fail(&error);
        tracing::error!("journal: {why}; no more writes are acknowledged until a restart");
    }

    /// Why nothing is taken in, if so.
    pub fn failure(&self) -> Option<JournalError> {
        self.pending.lock().check().err()
    }
}

impl Pending {
    fn check(&self) -> Result<(), JournalError> {
        match &self.failed {
            Some(why) => Err(why.clone()),
            None if self.closed => Err(JournalError::Closed),
            None => Ok(()),
        }
    }
}
