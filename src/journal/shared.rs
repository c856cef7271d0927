//! What the journal's users and its writer share: the effects that wait to be written.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{
    Effect, JournalError, Options, Position, figures::Counters, room::Room, watermark::Watermark,
};
use crate::clock::Clock;

/// Room for items that is kept between batches.
const KEPT: usize = 64 * 1024;

/// What the writer is told, in the order in which it is to be written.
pub(super) enum Item {
    /// An effect, and when it was appended.
    Append(u64, Effect, u64),
    /// The store has these.
    Acknowledge(Vec<Position>),
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
    items: VecDeque<Item>,
    /// The sequence number of the next effect.
    next: u64,
    closed: bool,
    failed: Option<JournalError>,
}

/// How long the writer waits for something to write.
pub(super) enum Wait {
    No,
    For(Duration),
    Forever,
}

/// What the writer got.
pub(super) struct Taken {
    /// The ceiling that is asked for.
    pub ceiling: u64,
    pub closed: bool,
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
                items: VecDeque::new(),
                next,
                closed: false,
                failed: None,
            }),
            wake: Condvar::new(),
        }
    }

    /// Takes an effect in: its place in the order is decided here.
    pub fn append(&self, effect: Effect, now: u64) -> Result<Position, JournalError> {
        let version = effect.change.version();
        let sequence = {
            let mut pending = self.pending.lock();
            pending.check()?;
            let sequence = pending.next;
            pending.next += 1;
            pending.items.push_back(Item::Append(sequence, effect, now));
            self.raise_wanted(version);
            sequence
        };
        Ok(Position(sequence))
    }

    /// Has what was taken in written, if the writer sleeps.
    pub fn rouse(&self) {
        // Under the lock, so that a writer that is about to sleep doesn't miss it.
        drop(self.pending.lock());
        self.wake.notify_one();
    }

    pub fn acknowledge(&self, positions: Vec<Position>) {
        {
            let mut pending = self.pending.lock();
            if pending.check().is_err() {
                return;
            }
            pending.items.push_back(Item::Acknowledge(positions));
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

    /// Waits for something to write, and takes all of it. `ceiling` is the one that is written already.
    pub fn take(&self, items: &mut VecDeque<Item>, ceiling: u64, wait: &Wait) -> Taken {
        let mut pending = self.pending.lock();
        let idle = |pending: &Pending| {
            pending.items.is_empty() && !pending.closed && self.wanted.load(Relaxed) <= ceiling
        };
        while items.is_empty() && idle(&pending) {
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
        if items.is_empty() {
            if items.capacity() > KEPT {
                *items = VecDeque::new();
            }
            mem::swap(items, &mut pending.items);
        }
        Taken {
            ceiling: self.wanted.load(Relaxed),
            closed: pending.closed && pending.items.is_empty(),
        }
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
            mem::take(&mut pending.items)
        };
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
