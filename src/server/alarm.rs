//! What wakes a worker: its inbox and its tasks ring, from any thread.
//!
//! A worker that is awake looks at a flag between its turns; only one that sleeps in its poll costs a
//! system call to wake.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Wake,
};

use mio::{Registry, Token, Waker};

/// A worker's alarm.
pub(super) struct Alarm {
    rung: AtomicBool,
    asleep: AtomicBool,
    waker: Waker,
}

impl Alarm {
    /// An alarm that ends the sleep in a poll; its event has this token.
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Arc<Self>> {
        let waker = Waker::new(registry, token)?;
        Ok(Arc::new(Self { rung: AtomicBool::new(true), asleep: AtomicBool::new(false), waker }))
    }

    /// Has the worker look at its inbox and its tasks.
    pub(super) fn ring(&self) {
        self.rung.store(true, SeqCst);
        if self.asleep.swap(false, SeqCst)
            && let Err(why) = self.waker.wake()
        {
            tracing::error!("a worker can't be woken: {why}");
        }
    }

    /// Whether it has rung since the last call.
    #[inline]
    pub(super) fn has_rung(&self) -> bool {
        self.rung.load(SeqCst) && self.rung.swap(false, SeqCst)
    }

    /// Says that the worker will sleep; `false` if it must not, since it rang in between.
    #[inline]
    pub(super) fn set(&self) -> bool {
        // Stored before `rung` is read, as `ring` stores `rung` before it reads this: one of the two
        // sees the other.
        self.asleep.store(true, SeqCst);
        !self.rung.load(SeqCst)
    }

    /// Says that the worker is awake.
    #[inline]
    pub(super) fn unset(&self) {
        self.asleep.store(false, SeqCst);
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
