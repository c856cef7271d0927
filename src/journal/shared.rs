//! What the journal's users and its writer share: the effects that wait to be written.

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
    Effect, JournalError, Options, Position,
    figures::Counters,
    format::{HEAD, Head},
    room::Room,
    watermark::Watermark,
};
use crate::clock::Clock;

/// Room for items and for their bytes that is kept between batches.
const KEPT: (usize, usize) = (64 * 1024, 4 * 1024 * 1024);

/// What is to be written, in its order.
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
    Acknowledge(Vec<Position>),
}

/// The next of a batch.
pub(super) enum Next<'a> {
    /// An effect: its head, and key and value.
    Effect(Head, &'a [u8]),
    /// The store has these.
    Acknowledge(Vec<Position>),
}

impl Batch {
    fn push(&mut self, effect: &Effect<'_>, sequence: u64) {
        let head = Head::of(effect, sequence);
        self.size += HEAD as u64 + head.body_len();
        self.items.push(Item::Effect(head));
        self.bodies.extend_from_slice(effect.key);
        self.bodies.extend_from_slice(effect.value.unwrap_or_default());
    }

    /// The next item, which is done then.
    pub fn next(&mut self) -> Option<Next<'_>> {
        let (item, body) = self.done;
        let next = match self.items.get_mut(item)? {
            Item::Acknowledge(positions) => Next::Acknowledge(mem::take(positions)),
            Item::Effect(head) => {
                let end = body + head.body_len() as usize;
                self.done.1 = end;
                Next::Effect(*head, &self.bodies[body..end])
            }
        };
        self.done.0 += 1;
        Some(next)
    }

    /// Whether all of it is done.
    pub fn is_done(&self) -> bool {
        self.done.0 == self.items.len()
    }

    /// Whether some of what isn't done is an effect.
    pub fn has_effects(&self) -> bool {
        self.items[self.done.0..].iter().any(|item| matches!(item, Item::Effect(_)))
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
    pub fn new(options: Options, clock: Clock, room: Room, next: u64, ceiling: u64) -> Self {
        Self {
            options,
            clock,
            room: Arc::new(room),
            counters: Counters::default(),
            durable: Watermark::new(next - 1),
            ceiling: Watermark::new(ceiling),
            wanted: AtomicU64::new(ceiling),
            pending: Mutex::new(Pending {
                batch: Batch::default(),
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
        let mut pending = self.pending.lock();
        pending.check()?;
        let sequence = pending.next;
        pending.next += 1;
        pending.batch.push(effect, sequence);
        self.raise_wanted(effect.version);
        Ok(Position(sequence))
    }

    /// Has the writer's thread take a turn, if it sleeps.
    pub fn rouse(&self) {
        // Under the lock, so that one that is about to sleep doesn't miss it.
        self.pending.lock().is_due = true;
        self.wake.notify_one();
    }

    pub fn acknowledge(&self, positions: Vec<Position>) {
        {
            let mut pending = self.pending.lock();
            if pending.check().is_err() {
                return;
            }
            pending.batch.size += super::format::size_of_runs(positions.len());
            pending.batch.items.push(Item::Acknowledge(positions));
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
            self.raise_wanted(version);
        }
        self.wake.notify_one();
    }

    fn raise_wanted(&self, version: u64) {
        let ahead = self.options.ceiling_ahead;
        if version.saturating_add(ahead / 2) > self.wanted.load(Relaxed) {
            self.wanted.fetch_max(version.saturating_add(ahead), Relaxed);
        }
    }

    /// Waits for something to do, beyond the ceiling that is written already. Says whether anything is taken
    /// in any more, or `None` if the journal has failed.
    pub fn wait(&self, ceiling: u64, wait: &Wait) -> Option<bool> {
        let mut pending = self.pending.lock();
        let idle = |pending: &Pending| {
            pending.batch.items.is_empty()
                && !pending.is_due
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

    /// Takes all that there is to write, in exchange for a batch that is done. Says which ceiling is asked for,
    /// or `None` if the journal has failed: then nobody knows what the file has, and nothing more goes into it.
    pub fn take(&self, batch: &mut Batch) -> Option<u64> {
        let mut pending = self.pending.lock();
        if pending.failed.is_some() {
            return None;
        }
        batch.clear();
        mem::swap(batch, &mut pending.batch);
        Some(self.wanted.load(Relaxed))
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
