//! The eviction queues of a shelf: those that most entries stand in, and of each group with a quota its own
//! ([`super::groups`]).
//!
//! A group over its quota evicts from its own queues. When memory is full the queues give whose new entries
//! have grown furthest beyond their share ([`Adaptive::excess`]), so that keys that come and go in one group
//! don't push out what is used in another; when none have, one of them gives by chance, the larger the more
//! likely.
//!
//! Under a policy that samples, entries of a group with a quota stand in its main queue, which is then only
//! a list to sample.

use super::{
    Rules,
    adaptive::Adaptive,
    entry::Entry,
    eviction::Eviction,
    table::{Ref, Slot, Table},
};

/// The queues of one stripe and database.
pub struct Queues {
    common: Adaptive,
    /// Those of groups with a quota, by the groups' numbers.
    own: Box<[Option<Box<Adaptive>>]>,
    /// Bytes of these.
    own_bytes: usize,
}

impl Queues {
    /// Empty queues for a database's entries.
    pub(super) fn new(rules: &Rules, db: usize) -> Self {
        let own = |group| {
            let has_quota = rules.groups.quota(group).is_some();
            has_quota.then(|| Box::new(Adaptive::new(rules.weight)))
        };
        let own = (0..rules.groups.count_in(db)).map(own).collect();
        Self { common: Adaptive::new(rules.weight), own, own_bytes: 0 }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.common.bytes() + self.own_bytes
    }

    /// Does something with the queues of a group; says whether they are its own.
    #[inline]
    fn with<T>(&mut self, group: Option<usize>, act: impl FnOnce(&mut Adaptive, bool) -> T) -> T {
        let own = group.and_then(|group| self.own.get_mut(group)?.as_mut());
        let Some(own) = own else { return act(&mut self.common, false) };
        let before = own.bytes();
        let result = act(own, true);
        self.own_bytes = self.own_bytes + own.bytes() - before;
        result
    }

    /// Notes a new entry that stands in the table.
    #[inline]
    pub(super) fn insert(
        &mut self,
        group: Option<usize>,
        item: Ref,
        entry: Entry<'_>,
        table: &Table,
        rules: &Rules,
    ) {
        let is_sampled = rules.eviction() != Eviction::AllkeysS3fifo;
        self.with(group, |queues, is_own| {
            if !is_sampled {
                let share = group.filter(|_| is_own).and_then(|group| rules.groups.quota(group));
                let share = share.map_or(usize::MAX, |quota| quota >> rules.stripe_bits);
                queues.insert(item, entry, table, rules.capacity().min(share));
            } else if is_own {
                queues.adopt(item, entry, table);
            }
        });
    }

    /// Lets an entry inherit the place of the one that it replaces; a replacement counts as a hit.
    #[inline]
    pub(super) fn replace(&mut self, group: Option<usize>, old: Entry<'_>, new: Entry<'_>) {
        self.with(group, |queues, _| queues.replace(old, new));
    }

    /// Notes that an entry leaves the table.
    #[inline]
    pub(super) fn remove(&mut self, group: Option<usize>, entry: Entry<'_>) {
        self.with(group, |queues, _| queues.remove(entry));
    }

    /// Adopts an entry that stands in no queue.
    pub(super) fn adopt(
        &mut self,
        group: Option<usize>,
        item: Ref,
        entry: Entry<'_>,
        table: &Table,
        rules: &Rules,
    ) {
        let is_sampled = rules.eviction() != Eviction::AllkeysS3fifo;
        self.with(group, |queues, is_own| {
            if is_own || !is_sampled {
                queues.adopt(item, entry, table);
            }
        });
    }

    /// Chooses a victim, of a group with a quota or of all, and takes it out of the queues; `None`: no entry
    /// stands in them.
    pub(super) fn evict(
        &mut self,
        group: Option<usize>,
        table: &Table,
        random: u64,
    ) -> Option<Slot> {
        let from = if group.is_some() || self.own.is_empty() { group } else { self.giver(random) };
        self.with(from, |queues, is_own| {
            // Only the queues of its own have nothing but a group's entries.
            let may = is_own || group.is_none();
            may.then(|| queues.evict(table)).flatten()
        })
    }

    /// An entry of a group with a quota, at random.
    pub(super) fn sample(&mut self, group: usize, table: &Table, random: u64) -> Option<Slot> {
        self.with(Some(group), |queues, is_own| {
            is_own.then(|| queues.sample(table, random)).flatten()
        })
    }

    /// Whose queues give; `None`: those that are nobody's own.
    fn giver(&self, random: u64) -> Option<usize> {
        let own = self.own.iter().enumerate();
        let own = own.filter_map(|(group, queues)| Some((Some(group), &**queues.as_ref()?)));
        let all = || std::iter::once((None, &self.common)).chain(own.clone());
        let filled = || all().filter(|(_, queues)| queues.cost() > 0);
        let most = filled().max_by(|a, b| a.1.excess().total_cmp(&b.1.excess()))?;
        if most.1.excess() >= 0.0 {
            return most.0;
        }
        let sum: usize = filled().map(|(_, queues)| queues.cost()).sum();
        let mut left = random as usize % sum.max(1);
        let drawn = filled().find(|(_, queues)| {
            let is_it = left < queues.cost();
            left = left.wrapping_sub(queues.cost());
            is_it
        });
        drawn.map_or(most.0, |(group, _)| group)
    }
}
