//! Expiry: a hierarchical timing wheel of short references, one for each stripe and database.
//!
//! Eight levels of 32 slots (Varghese and Lauck, SOSP 1987, scheme 7): a slot of level 0 is 128 ms wide,
//! of each further level 32 times as wide, so that the whole reaches 4,459 years. An item only says
//! *look at this entry then*: the deadline stands in the entry. A deadline that moved later is found out
//! when the item comes up and is put back; only one that moved earlier needs an item of its own.

use super::{fifo, table::Ref};

/// Most slots hold few items.
type Fifo = fifo::Fifo<32>;

const LEVELS: usize = 8;
const SLOTS: usize = 32;
const SLOT_BITS: u32 = 5;
/// A tick is 2^7 ms.
const TICK_BITS: u32 = 7;

/// The wheel.
#[derive(Default)]
pub struct Wheel {
    levels: [Option<Box<[Fifo; SLOTS]>>; LEVELS],
    /// What has come up and is not yet looked at.
    due: Fifo,
    /// The tick up to which slots have come up.
    now: u64,
    len: usize,
    bytes: usize,
}

impl Wheel {
    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Items, including those of entries that are gone.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Files an item under a deadline in unix milliseconds; `now` is the time of the first item.
    pub fn add(&mut self, item: Ref, deadline: u64, now: u64) {
        if self.len == 0 {
            self.now = now >> TICK_BITS;
        }
        // One tick later, so that the deadline has passed when the slot comes up.
        let tick = ((deadline >> TICK_BITS) + 1).max(self.now + 1);
        let level = ((63 - (tick - self.now).leading_zeros()) / SLOT_BITS) as usize;
        let level = level.min(LEVELS - 1);
        let slot = (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let slots = self.levels[level].get_or_insert_with(|| {
            self.bytes += size_of::<[Fifo; SLOTS]>();
            Box::default()
        });
        self.bytes += slots[slot].push(item);
        self.len += 1;
    }

    /// The next item that has come up by `now`.
    pub fn next_due(&mut self, now: u64) -> Option<Ref> {
        if self.len == 0 {
            return None;
        }
        let end = now >> TICK_BITS;
        while self.due.is_empty() && self.now < end {
            self.now += 1;
            self.turn();
        }
        let before = self.due.bytes();
        let item = self.due.pop()?;
        self.bytes = self.bytes + self.due.bytes() - before;
        self.len -= 1;
        Some(item)
    }

    /// Makes the slots of the present tick due: those of a higher level when the one below wraps.
    fn turn(&mut self) {
        for level in 0..LEVELS {
            let position = self.now >> (SLOT_BITS * level as u32);
            if let Some(slots) = &mut self.levels[level] {
                let slot = &mut slots[position as usize % SLOTS];
                let before = self.due.bytes() + slot.bytes();
                if self.due.is_empty() {
                    std::mem::swap(&mut self.due, slot);
                } else {
                    while let Some(item) = slot.pop() {
                        self.due.push(item);
                    }
                }
                self.bytes = self.bytes + self.due.bytes() + slot.bytes() - before;
            }
            if !position.is_multiple_of(SLOTS as u64) {
                break;
            }
        }
    }

    /// An item chosen by `random`, and where it lies; the soonest slot's if `soonest`.
    pub fn sample(&self, random: u64, soonest: bool) -> Option<(Place, Ref)> {
        let pick = |slot: Option<usize>, fifo: &Fifo| {
            let index = random as usize % fifo.len().max(1);
            fifo.get(index).map(|item| (Place { slot, index }, item))
        };
        if soonest && let Some(found) = pick(None, &self.due) {
            return Some(found);
        }
        let start = if soonest { 0 } else { (random >> 40) as usize };
        let mut places = (0..LEVELS * SLOTS).map(|step| (start + step) % (LEVELS * SLOTS));
        let found = places.find_map(|place| {
            let (level, step) = (place / SLOTS, place % SLOTS);
            let first = (self.now >> (SLOT_BITS * level as u32)) as usize + 1;
            let slot = (first + step) % SLOTS;
            pick(Some(level * SLOTS + slot), &self.levels[level].as_ref()?[slot])
        });
        found.or_else(|| pick(None, &self.due))
    }

    /// Takes out an item that a sample has just found.
    pub fn discard(&mut self, place: Place) {
        let fifo = match place.slot {
            None => Some(&mut self.due),
            Some(slot) => self.levels[slot / SLOTS].as_mut().map(|slots| &mut slots[slot % SLOTS]),
        };
        if let Some(fifo) = fifo {
            let (bytes, len) = (fifo.bytes(), fifo.len());
            fifo.swap_remove(place.index);
            self.bytes = self.bytes + fifo.bytes() - bytes;
            self.len -= len - fifo.len();
        }
    }
}

/// Where an item lies, until the wheel changes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Level times slots plus slot; none for what is due.
    slot: Option<usize>,
    index: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(wheel: &mut Wheel, now: u64) -> Vec<Ref> {
        std::iter::from_fn(|| wheel.next_due(now)).collect()
    }

    #[test]
    fn nothing_early_and_never_more_than_a_tick_late_on_the_lowest_level() {
        let start = 1_700_000_000_123;
        let mut wheel = Wheel::default();
        for item in 0..3_000u32 {
            wheel.add(item, start + u64::from(item), start);
        }
        let mut seen = 0;
        for now in start..start + 4_000 {
            for item in drain(&mut wheel, now) {
                let deadline = start + u64::from(item);
                assert!(deadline <= now && now - deadline <= 2 * (1 << TICK_BITS));
                seen += 1;
            }
        }
        assert_eq!((seen, wheel.len()), (3_000, 0));
    }

    #[test]
    fn far_items_come_up_in_time_when_put_back_each_time() {
        let start = 1_700_000_000_000;
        for wait in [5_000, 600_000, 86_400_000, 40 * 86_400_000, 3_000 * 86_400_000] {
            let mut wheel = Wheel::default();
            let deadline = start + wait;
            wheel.add(7, deadline, start);
            let (mut now, mut turns) = (start, 0);
            loop {
                now += (wait / 100).max(1);
                if wheel.next_due(now).is_some() {
                    if now >= deadline {
                        break;
                    }
                    wheel.add(7, deadline, now);
                    turns += 1;
                }
                assert!(now < deadline + wait / 10 + 300, "wait {wait} forgotten");
            }
            assert!(turns <= LEVELS, "put back {turns} times");
        }
    }

    #[test]
    fn the_soonest_sample_is_of_the_nearest_slot() {
        let mut wheel = Wheel::default();
        for (item, wait) in [(1, 50_000_000), (2, 90_000), (3, 700)] {
            wheel.add(item, 1_000_000 + wait, 1_000_000);
        }
        assert_eq!(wheel.sample(99, true).map(|(_, item)| item), Some(3));
        assert!((0..500).all(|random| wheel.sample(random << 37, false).is_some()));
    }
}
