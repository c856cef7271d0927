//! The demotion queue: entries that left memory and are not on disk yet. They can be read meanwhile.
//!
//! A number names an entry; the index holds it until the record is written. Numbers are given out under
//! the stripe's lock and given back by the writer alone, so a number that the index holds is never
//! somebody else's.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::*},
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use parking_lot::{Condvar, Mutex};

use super::super::entry::EntryRef;

/// Bytes for which there is a number.
const BYTES_PER_NUMBER: usize = 256;
const LEAST_NUMBERS: usize = 256;
const MOST_NUMBERS: usize = 1 << 16;

/// An entry that waits to be written.
#[derive(Clone, Copy, Debug)]
pub struct Demotion {
    /// Its number in the queue.
    pub number: u32,
    /// The contents of a database that it belongs to.
    pub keyspace: u32,
    /// The hash of its key.
    pub hash: u64,
    /// Bytes of its entry.
    pub size: u32,
}

/// A place in the queue that is free and reserved.
#[derive(Debug)]
pub struct Permit(u32);

/// The queue.
pub struct Queue {
    entries: Box<[Mutex<Option<EntryRef>>]>,
    free: ArrayQueue<u32>,
    waiting: ArrayQueue<Demotion>,
    bytes: AtomicUsize,
    /// Of these, those that the writer has not taken.
    untaken: AtomicUsize,
    limit: usize,
    /// Bytes in the queue for which the writer is woken.
    enough: usize,
    sleeps: Mutex<bool>,
    is_asleep: AtomicBool,
    wake: Condvar,
}

impl Queue {
    /// An empty queue for so many bytes of entries; the writer is woken when `enough` wait.
    pub fn new(limit: usize, enough: usize) -> Self {
        let numbers = (limit / BYTES_PER_NUMBER).clamp(LEAST_NUMBERS, MOST_NUMBERS);
        let free = ArrayQueue::new(numbers);
        (0..numbers as u32)
            .for_each(|number| free.push(number).expect("there is a place for each"));
        Self {
            entries: (0..numbers).map(|_| Mutex::new(None)).collect(),
            free,
            waiting: ArrayQueue::new(numbers),
            bytes: AtomicUsize::new(0),
            untaken: AtomicUsize::new(0),
            limit,
            enough,
            sleeps: Mutex::new(false),
            is_asleep: AtomicBool::new(false),
            wake: Condvar::new(),
        }
    }

    /// Bytes of memory that queue and entries may take.
    pub fn most_bytes(&self) -> usize {
        self.limit + self.entries.len() * (size_of::<Mutex<Option<EntryRef>>>() + 48)
    }

    /// Entries that wait, and their bytes.
    pub fn len(&self) -> (usize, usize) {
        (self.waiting.len(), self.bytes.load(Relaxed))
    }

    /// Whether as much waits as the writer is woken for.
    pub fn has_enough(&self) -> bool {
        self.untaken.load(Relaxed) >= self.enough
    }

    /// Reserves a place, if there is room.
    pub fn reserve(&self) -> Option<Permit> {
        if self.bytes.load(Relaxed) >= self.limit {
            self.rouse();
            return None;
        }
        self.free.pop().map(Permit)
    }

    /// Gives back a place that isn't needed.
    pub fn release(&self, permit: Permit) {
        self.put_back(permit.0);
    }

    /// Puts an entry in, and returns its number.
    pub fn push(&self, permit: Permit, keyspace: u32, hash: u64, entry: EntryRef) -> u32 {
        let Permit(number) = permit;
        let size = entry.get().size();
        self.bytes.fetch_add(size, Relaxed);
        let counted = size.min(u32::MAX as usize);
        *self.entries[number as usize].lock() = Some(entry);
        // Before the writer can take it, so that the sum never falls below nothing.
        let untaken = self.untaken.fetch_add(counted, Relaxed) + counted;
        let pushed = self.waiting.push(Demotion { number, keyspace, hash, size: counted as u32 });
        debug_assert!(pushed.is_ok(), "there is a place for each number");
        if untaken >= self.enough {
            self.rouse();
        }
        number
    }

    /// The entry of a number.
    pub fn get(&self, number: u32) -> Option<EntryRef> {
        let entry = self.entries[number as usize].lock();
        let copy = |entry: &EntryRef| {
            let view = entry.get();
            EntryRef::new(view.key(), &[view.value()], &view.meta())
        };
        entry.as_ref().map(|entry| entry.try_clone().unwrap_or_else(|| copy(entry)))
    }

    /// The next entry to be written.
    pub fn pop(&self) -> Option<Demotion> {
        let demotion = self.waiting.pop()?;
        self.untaken.fetch_sub(demotion.size as usize, Relaxed);
        Some(demotion)
    }

    /// Lets go of an entry and its number, when the index holds it no longer.
    pub fn free(&self, number: u32) {
        if let Some(entry) = self.entries[number as usize].lock().take() {
            self.bytes.fetch_sub(entry.get().size(), Relaxed);
        }
        self.put_back(number);
    }

    fn put_back(&self, number: u32) {
        let put = self.free.push(number);
        debug_assert!(put.is_ok(), "a number is given back once");
    }

    /// Wakes the writer.
    pub fn rouse(&self) {
        if self.is_asleep.load(Relaxed) {
            *self.sleeps.lock() = false;
            self.wake.notify_all();
        }
    }

    /// Sleeps until there is enough to write, but no longer than this.
    pub fn sleep(&self, limit: Duration) {
        let mut sleeps = self.sleeps.lock();
        *sleeps = true;
        self.is_asleep.store(true, Relaxed);
        if !self.has_enough() {
            self.wake.wait_while_for(&mut sleeps, |sleeps| *sleeps, limit);
        }
        self.is_asleep.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::entry::Meta, *};

    #[test]
    fn entries_wait_in_order_and_can_be_read() {
        let queue = Queue::new(900, 10_000);
        let entry = |key: &str| EntryRef::new(key.as_bytes(), &[&[0; 300]], &Meta::default());
        let numbers: Vec<u32> = ["a", "b", "c"]
            .into_iter()
            .map(|key| queue.push(queue.reserve().expect("room"), 1, 2, entry(key)))
            .collect();
        assert!(queue.reserve().is_none(), "bytes are bounded");
        let first = queue.pop().expect("one waits");
        assert_eq!(first.number, numbers[0]);
        assert_eq!(queue.get(first.number).expect("readable").get().key(), b"a");
        queue.free(first.number);
        assert!(queue.get(first.number).is_none());
        let permit = queue.reserve().expect("room again");
        queue.release(permit);
        assert_eq!(queue.len().0, 2);
    }
}
