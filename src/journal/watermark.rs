//! A number that rises, and those who wait until it has reached theirs.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::JournalError;

/// How far something has come.
#[derive(Default)]
pub(super) struct Watermark {
    reached: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    failed: Option<JournalError>,
    /// Where each wants to be, in no order: a raise reaches nearly all of them.
    waiters: Vec<(u64, oneshot::Sender<Result<(), JournalError>>)>,
}

impl Watermark {
    /// It stands here.
    pub fn new(reached: u64) -> Self {
        Self { reached: AtomicU64::new(reached), waiting: Mutex::default() }
    }

    /// How far it has come.
    pub fn reached(&self) -> u64 {
        self.reached.load(Acquire)
    }

    /// It has come so far; never back.
    pub fn raise(&self, to: u64) {
        if to <= self.reached() {
            return;
        }
        let mut ready = Vec::new();
        {
            let mut waiting = self.waiting.lock();
            if waiting.failed.is_some() {
                return;
            }
            self.reached.fetch_max(to, Release);
            let waits = |sender: &oneshot::Sender<_>, place: u64| place > to && !sender.is_closed();
            let waiters = &mut waiting.waiters;
            let mut index = 0;
            while index < waiters.len() {
                if waits(&waiters[index].1, waiters[index].0) {
                    index += 1;
                } else {
                    ready.push(waiters.swap_remove(index).1);
                }
            }
        }
        for sender in ready {
            // It may have gone.
            let _ = sender.send(Ok(()));
        }
    }

    /// It has come so far, and nobody waits for less.
    pub fn pass(&self, to: u64) {
        self.reached.store(to, Release);
    }

    /// It goes no further: all who wait, and who will, are told.
    pub fn fail(&self, why: &JournalError) {
        let mut waiting = self.waiting.lock();
        waiting.failed.get_or_insert_with(|| why.clone());
        for (_, sender) in waiting.waiters.drain(..) {
            let _ = sender.send(Err(why.clone()));
        }
    }

    /// Waits until it has come so far.
    pub async fn wait(&self, place: u64) -> Result<(), JournalError> {
        if self.reached() >= place {
            return Ok(());
        }
        let answer = {
            let mut waiting = self.waiting.lock();
            if self.reached() >= place {
                return Ok(());
            }
            if let Some(why) = &waiting.failed {
                return Err(why.clone());
            }
            let (sender, answer) = oneshot::channel();
            waiting.waiters.push((place, sender));
            answer
        };
        answer.await.unwrap_or(Err(JournalError::Closed))
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().waiters.len()
    }
}
