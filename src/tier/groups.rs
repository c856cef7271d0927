//! Groups of keys that are counted apart, and may have a quota. Which group a key is in says whoever makes
//! the tier; what groups are for the tier doesn't know.
//!
//! A shelf counts its part of each group under its stripe's lock, and who asks sums up. Of a group with a
//! quota there is one sum beside that, and its entries have eviction queues of their own
//! ([`super::queues`]), so that a victim is found without passing over other keys.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{Rules, entry::Entry, memory::Memory, table::Table};

/// The group of a key in a database, by its number.
pub type GroupOf = dyn Fn(usize, &[u8]) -> Option<usize> + Send + Sync;

/// A group of keys.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The database that its keys are in.
    pub db: usize,
    /// Bytes that its entries may take; `None`: any.
    pub quota: Option<usize>,
}

/// The groups that a tier is made with.
#[derive(Clone)]
pub struct Grouping {
    /// Which one a key is in.
    pub of: Arc<GroupOf>,
    /// All of them.
    pub groups: Vec<Group>,
}

impl fmt::Debug for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grouping").field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// How many entries there are, and the bytes that they take from the allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Entries.
    pub items: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// The groups of a tier.
#[derive(Default)]
pub struct Groups {
    grouping: Option<Grouping>,
    /// Bytes of each, if it has a quota.
    used: Box<[AtomicUsize]>,
}

impl Groups {
    pub(super) fn new(grouping: Option<&Grouping>) -> Self {
        let count = grouping.map_or(0, |grouping| grouping.groups.len());
        Self {
            grouping: grouping.filter(|_| count > 0).cloned(),
            used: (0..count).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// Groups, if a database has some of them; 0 if it has none.
    pub(super) fn count_in(&self, db: usize) -> usize {
        let groups = self.grouping.as_ref().map_or(&[][..], |grouping| &grouping.groups);
        if groups.iter().any(|group| group.db == db) { groups.len() } else { 0 }
    }

    /// The group of a key.
    #[inline]
    pub fn of(&self, db: usize, key: &[u8]) -> Option<usize> {
        (self.grouping.as_ref()?.of)(db, key)
    }

    /// A group's quota.
    pub fn quota(&self, group: usize) -> Option<usize> {
        self.grouping.as_ref()?.groups.get(group)?.quota
    }

    /// Bytes that the entries of a group with a quota take.
    pub fn used(&self, group: usize) -> usize {
        self.used[group].load(Relaxed)
    }

    /// Whether so many bytes more are above a group's quota.
    #[inline]
    pub fn is_above(&self, group: usize, need: usize) -> bool {
        self.quota(group).is_some_and(|quota| self.used(group) + need > quota)
    }

    fn add_used(&self, group: usize, change: usize) {
        if self.quota(group).is_some() {
            self.used[group].fetch_add(change, Relaxed);
        }
    }
}

/// What a shelf has of each group; empty where there are none in its database.
#[derive(Default)]
pub struct Parts {
    db: usize,
    tallies: Box<[Tally]>,
}

impl Parts {
    pub(super) fn new(rules: &Rules, db: usize) -> Self {
        Self { db, tallies: vec![Tally::default(); rules.groups.count_in(db)].into() }
    }

    /// Whether the database has no groups.
    pub fn is_empty(&self) -> bool {
        self.tallies.is_empty()
    }

    /// The tallies, by the groups' numbers.
    pub fn tallies(&self) -> &[Tally] {
        &self.tallies
    }

    /// The group of an entry.
    #[inline]
    pub(super) fn group_of(&self, rules: &Rules, entry: Entry<'_>) -> Option<usize> {
        if self.tallies.is_empty() {
            return None;
        }
        rules.groups.of(self.db, entry.key())
    }

    /// Counts an entry of a group that comes.
    #[inline]
    pub(super) fn add(&mut self, rules: &Rules, group: Option<usize>, entry: Entry<'_>) {
        self.change(rules, group, 1, entry.size());
    }

    /// Counts an entry of a group that goes.
    #[inline]
    pub(super) fn sub(&mut self, rules: &Rules, group: Option<usize>, entry: Entry<'_>) {
        self.change(rules, group, usize::MAX, entry.size().wrapping_neg());
    }

    /// Counts an entry of a group that comes in the place of another one.
    #[inline]
    pub(super) fn replace(
        &mut self,
        rules: &Rules,
        group: Option<usize>,
        old: Entry<'_>,
        new: Entry<'_>,
    ) {
        let more = new.size().wrapping_sub(old.size());
        if more != 0 {
            self.change(rules, group, 0, more);
        }
    }

    /// Negative numbers wrap around.
    #[inline]
    fn change(&mut self, rules: &Rules, group: Option<usize>, items: usize, bytes: usize) {
        if let Some(group) = group
            && let Some(tally) = self.tallies.get_mut(group)
        {
            tally.items = tally.items.wrapping_add(items);
            tally.bytes = tally.bytes.wrapping_add(bytes);
            rules.groups.add_used(group, bytes);
        }
    }

    /// Counts anew what is in a table.
    pub(super) fn recount(&mut self, rules: &Rules, table: &Table) {
        for group in 0..self.tallies.len() {
            let Tally { items, bytes } = self.tallies[group];
            self.change(rules, Some(group), items.wrapping_neg(), bytes.wrapping_neg());
        }
        if !self.tallies.is_empty() && !table.is_empty() {
            table.for_each(|entry| self.add(rules, self.group_of(rules, entry), entry));
        }
    }
}

impl Memory {
    /// What there is of each group.
    pub fn tallies(&self) -> Vec<Tally> {
        let mut sums = vec![Tally::default(); self.rules().groups.used.len()];
        for stripe in 0..self.stripes() {
            for shelf in self.lock(stripe).shelves() {
                for (sum, part) in sums.iter_mut().zip(shelf.parts().tallies()) {
                    sum.items += part.items;
                    sum.bytes += part.bytes;
                }
            }
        }
        sums
    }

    /// Evicts what groups have beyond their quotas: a database got other contents, or the disk had no room.
    pub fn keep_quotas(&self, now: u64) {
        for group in 0..self.rules().groups.used.len() {
            // What the policy doesn't let go stays.
            let _ = self.make_room_in(group, 0, group % self.stripes(), now, &[]);
        }
    }
}
