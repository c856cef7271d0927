//! Room for records that the store doesn't have yet: where a writer waits, or is refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, TryAcquireError};

use super::JournalError;

/// How many bytes of unacknowledged records there may be.
pub(super) struct Room {
    /// A permit for each byte; those that wait for some get them in order of arrival.
    free: Semaphore,
    /// Bytes that were taken without room; what is given back goes here first.
    debt: Mutex<u64>,
    /// How long somebody has waited in vain since something was given back, in milliseconds.
    in_vain: AtomicU64,
    /// How many wait.
    waiting: AtomicUsize,
}

/// One who waits.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Room for records to come; what isn't used is given back when it is dropped.
#[must_use = "dropping a reservation gives it back"]
pub struct Reservation {
    /// Where the bytes are from.
    room: Option<Arc<Room>>,
    bytes: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reservation").field(&self.bytes).finish()
    }
}

impl Room {
    /// Room for so many bytes, of which some are taken.
    pub fn new(limit: u64, taken: u64) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS as u64 / 2);
        let free = limit.saturating_sub(taken) as usize;
        let debt = Mutex::new(taken.saturating_sub(limit));
        Self {
            free: Semaphore::new(free),
            debt,
            in_vain: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Whether there is so much room, and nobody waits for it: who waits gets all that is given back. It is
    /// taken as it is used, so those who are admitted at once may take it twice.
    pub fn admit(&self, bytes: u32) -> Result<Option<Reservation>, Poisoned> {
        if self.free.is_closed() {
            return Err(Poisoned);
        }
        Ok((self.free() >= bytes as usize).then_some(Reservation { room: None, bytes: 0 }))
    }

    fn try_take(self: &Arc<Self>, bytes: u32) -> Result<Option<Reservation>, Poisoned> {
        match self.free.try_acquire_many(bytes) {
            Ok(permit) => {
                permit.forget();
                Ok(Some(Reservation { room: Some(self.clone()), bytes: u64::from(bytes) }))
            }
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(Poisoned),
        }
    }

    /// Waits for room; not where somebody has waited as long and nothing was given back since, so that many writes
    /// one after the other don't each wait for a store that is down.
    pub async fn take(
        self: &Arc<Self>,
        bytes: u32,
        timeout: Duration,
    ) -> Result<Option<Reservation>, Poisoned> {
        if let Some(reservation) = self.try_take(bytes)? {
            return Ok(Some(reservation));
        }
        let millis = timeout.as_millis() as u64;
        if self.in_vain.load(Relaxed) > millis {
            return Ok(None);
        }
        self.waiting.fetch_add(1, Relaxed);
        let _waits = Waits(&self.waiting);
        let wait = tokio::time::timeout(timeout, self.free.acquire_many(bytes));
        match wait.await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(Some(Reservation { room: Some(self.clone()), bytes: u64::from(bytes) }))
            }
            Ok(Err(_)) => Err(Poisoned),
            Err(_) => {
                self.in_vain.fetch_max(millis + 1, Relaxed);
                Ok(None)
            }
        }
    }

    /// So many bytes are free again.
    pub fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.in_vain.store(0, Relaxed);
        let mut debt = self.debt.lock();
        let paid = bytes.min(*debt);
        *debt -= paid;
        self.free.add_permits((bytes - paid) as usize);
    }

    fn overdraw(&self, bytes: u64) {
        let beyond = bytes - self.free.forget_permits(bytes as usize) as u64;
        if beyond > 0 {
            *self.debt.lock() += beyond;
        }
    }

    /// Whether somebody waits for some.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Nobody gets any more.
    pub fn close(&self) {
        self.free.close();
    }

    /// Bytes that are free.
    pub fn free(&self) -> usize {
        self.free.available_permits()
    }
}

/// The journal is poisoned.
#[derive(Debug)]
pub(super) struct Poisoned;

impl Reservation {
    /// Bytes that are left of it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is of this journal.
    pub(super) fn is_of(&self, room: &Arc<Room>) -> bool {
        self.room.as_ref().is_none_or(|own| Arc::ptr_eq(own, room))
    }

    /// Uses some of it. What is used beyond it is taken as well, over the limit if need be, and later ones
    /// wait for that.
    pub(super) fn spend(&mut self, room: &Room, bytes: u64) {
        let within = bytes.min(self.bytes);
        self.bytes -= within;
        if within < bytes {
            room.overdraw(bytes - within);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(room) = &self.room {
            room.give_back(self.bytes);
        }
    }
}

/// The bytes of a reservation; an error if there will never be room for them.
pub(super) fn checked(bytes: u64, limit: u64) -> Result<u32, JournalError> {
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| u64::from(*bytes) <= limit)
        .ok_or(JournalError::TooLarge { bytes, limit: limit.min(u64::from(u32::MAX)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_over_the_limit_is_paid_back_first() {
        let room = Arc::new(Room::new(100, 30));
        let mut first = room.try_take(50).expect("open").expect("room");
        assert!(room.try_take(21).expect("open").is_none());
        first.spend(&room, 90);
        assert_eq!((first.bytes(), room.free()), (0, 0));
        room.give_back(15);
        assert_eq!(room.free(), 0);
        room.give_back(105);
        assert_eq!(room.free(), 100);
        drop(first);
        assert_eq!(room.free(), 100);
        let over = Room::new(100, 130);
        over.give_back(31);
        assert_eq!(over.free(), 1);
    }
}
