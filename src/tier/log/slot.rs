//! What the index keeps of a record: where it is, how long, and what is known of it, in 46 bits.

use super::UNIT;

/// Bits of a place, in units of [`UNIT`] bytes: a tebibyte.
pub const PLACE_BITS: u32 = 35;
/// Bits of a length class.
const CLASS_BITS: u32 = 7;
const FLAG_BITS: u32 = 4;
/// Bits of a slot that are ours; the index keeps bits of the hash above them.
pub const SLOT_BITS: u32 = PLACE_BITS + CLASS_BITS + FLAG_BITS;

/// The record waits to be written: its place is a number in the demotion queue.
pub const QUEUED: u64 = 1;
/// It was hit since its segment was last passed over, or begun.
pub const HOT: u64 = 2;
/// Memory has an unchanged copy.
pub const RESIDENT: u64 = 4;
/// It has a deadline.
pub const VOLATILE: u64 = 8;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub u64);

impl Slot {
    /// A record of so many units, in the log.
    pub fn written(place: u64, units: u64, flags: u64) -> Self {
        debug_assert!(place >> PLACE_BITS == 0 && flags & QUEUED == 0);
        Self::of_class(place, class_of(units), flags)
    }

    /// A record whose length class is known.
    pub(super) fn of_class(place: u64, class: u64, flags: u64) -> Self {
        Self(place << (CLASS_BITS + FLAG_BITS) | class << FLAG_BITS | flags)
    }

    /// The length class.
    pub(super) fn class(self) -> u64 {
        self.0 >> FLAG_BITS & ((1 << CLASS_BITS) - 1)
    }

    /// A record that waits to be written.
    pub fn queued(number: u32, flags: u64) -> Self {
        Self(u64::from(number) << (CLASS_BITS + FLAG_BITS) | flags | QUEUED)
    }

    /// The place in units, or the number in the queue.
    #[inline]
    pub fn place(self) -> u64 {
        self.0 >> (CLASS_BITS + FLAG_BITS) & ((1 << PLACE_BITS) - 1)
    }

    /// Units that hold the record, if it is written: at most a fifth more than it has.
    pub fn units(self) -> u64 {
        units_of(self.class())
    }

    /// Bytes that hold the record, if it is written.
    pub fn bytes(self) -> usize {
        self.units() as usize * UNIT
    }

    /// Whether it has this flag.
    #[inline]
    pub fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// The same with a flag set or cleared.
    #[must_use]
    pub fn with(self, flag: u64, on: bool) -> Self {
        Self(if on { self.0 | flag } else { self.0 & !flag })
    }

    /// The same without what isn't so after a restart.
    #[must_use]
    pub fn lasting(self) -> Self {
        Self(self.0 & ((1 << SLOT_BITS) - 1) & !(QUEUED | HOT | RESIDENT))
    }

    /// Whether two slots name the same record.
    #[inline]
    pub fn is_same(self, other: Self) -> bool {
        let what = !(HOT | RESIDENT | VOLATILE);
        self.0 & what == other.0 & what
    }
}

/// Lengths up to 8 units exactly, then four classes per doubling.
fn class_of(units: u64) -> u64 {
    if units <= 8 {
        return units - 1;
    }
    let last = units - 1;
    let exponent = u64::from(63 - last.leading_zeros());
    (exponent - 3) * 4 + (last >> (exponent - 2) & 3) + 8
}

fn units_of(class: u64) -> u64 {
    if class < 8 {
        return class + 1;
    }
    let (exponent, step) = ((class - 8) / 4 + 3, (class - 8) % 4);
    (5 + step) << (exponent - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_its_lengths_and_little_more() {
        for units in (1..5_000).chain([1 << 20, (1 << 20) + 1, 1 << 26]) {
            let held = units_of(class_of(units));
            assert!(held >= units && held * 4 <= units * 5, "{units} {held}");
            assert_eq!(class_of(held), class_of(units));
        }
        assert!(class_of(1 << 27) < 1 << CLASS_BITS);
    }

    #[test]
    fn parts_come_back() {
        let slot = Slot::written((1 << PLACE_BITS) - 1, 17, VOLATILE);
        assert_eq!((slot.place(), slot.units()), ((1 << PLACE_BITS) - 1, 20));
        assert!(slot.has(VOLATILE) && !slot.has(QUEUED | HOT | RESIDENT));
        assert!(slot.with(HOT, true).is_same(slot) && !Slot::queued(3, 0).is_same(slot));
        assert_eq!(Slot::queued(70_000, HOT).place(), 70_000);
        assert_eq!(slot.0 >> SLOT_BITS, 0);
    }
}
