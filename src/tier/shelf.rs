//! A shelf: the entries of one database in one stripe, with their eviction queues and expiry wheel.
//!
//! All of it stands under the stripe's lock; time and randomness come in from outside. A shelf keeps
//! four things true together: the table, the queues, the wheel and the accounts.

use super::{
    Rules, Weight,
    entry::{Entry, EntryMut, EntryRef, Meta},
    eviction::Eviction,
    groups::Parts,
    log::{index::Index, slot::RESIDENT},
    queues::Queues,
    table::{Slot, Table, hash},
    wheel::Wheel,
};

/// Candidates that a sampling policy looks at before it gives up on a shelf with few volatile ones.
const SAMPLE_TRIES: u32 = 64;

/// Entries that are looked at, for each that is spared, before the shelf is given up.
const SPARE_TRIES: usize = 16;

/// The entries of one database in one stripe. What a lookup reads stands first.
#[repr(C)]
pub struct Shelf {
    table: Table,
    queues: Queues,
    wheel: Wheel,
    /// Cost of the entries.
    cost: usize,
    /// Entries with a deadline of either kind.
    volatile: usize,
    /// When those end, added up.
    ends: u128,
    /// The cost last reported to the account of the whole tier.
    pub(super) reported: usize,
    /// Where L3 has records.
    pub(super) records: Index,
    /// What of the entries is in which group.
    parts: Parts,
    db: usize,
}

/// The moment when an entry is of no more use: the earlier of its two deadlines; 0: never.
pub fn end(entry: Entry<'_>) -> u64 {
    match (entry.deadline(), entry.kept_until()) {
        (0, end) | (end, 0) => end,
        (deadline, kept) => deadline.min(kept),
    }
}

/// Whether an entry may still be shown at `now`.
#[inline]
pub fn is_live(entry: Entry<'_>, now: u64) -> bool {
    let end = end(entry);
    end == 0 || end > now
}

/// Whether what an entry carried says that it may no longer be shown at `now`.
pub fn has_ended(meta: &Meta, now: u64) -> bool {
    let is_past = |end: u64| end != 0 && end <= now;
    is_past(meta.deadline) || is_past(meta.kept_until)
}

impl Shelf {
    /// An empty shelf of a database.
    pub fn new(rules: &Rules, db: usize) -> Self {
        Self {
            table: Table::new(rules.stripe_bits, rules.segment_bits, &rules.hasher),
            queues: Queues::new(rules, db),
            wheel: Wheel::default(),
            cost: 0,
            volatile: 0,
            ends: 0,
            reported: 0,
            records: Index::new(rules.stripe_bits),
            parts: Parts::new(rules, db),
            db,
        }
    }

    /// The table, to look only.
    #[inline]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Entries with a deadline.
    pub fn volatile(&self) -> usize {
        self.volatile
    }

    /// When the entries with a deadline end, added up, in unix milliseconds.
    pub(super) fn ends(&self) -> u128 {
        self.ends
    }

    /// The number of its database.
    pub fn db(&self) -> usize {
        self.db
    }

    /// What of the entries is in which group.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What the shelf costs, overhead included where bytes count.
    pub fn used(&self, weight: Weight) -> usize {
        match weight {
            Weight::Bytes => self.cost + self.overhead(),
            Weight::Entries => self.cost,
        }
    }

    /// Bytes beside the entries.
    pub fn overhead(&self) -> usize {
        self.table.bytes() + self.queues.bytes() + self.wheel.bytes() + self.records.bytes()
    }

    /// The slot of a key, whether its entry is past its deadline or not.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<Slot> {
        self.table.find(hash, key)
    }

    /// Whether L3 may have a record of a key with this hash.
    #[inline]
    pub fn has_below(&self, hash: u64) -> bool {
        self.records.has(hash)
    }

    /// The entry of a slot.
    #[inline]
    pub fn entry(&self, slot: Slot) -> Entry<'_> {
        self.table.entry(slot)
    }

    /// Exclusive access to an entry, unless somebody else holds a reference.
    pub fn entry_mut(&mut self, slot: Slot) -> Option<EntryMut<'_>> {
        self.table.entry_mut(slot)
    }

    /// Adds an entry whose key is not on the shelf.
    pub fn insert(&mut self, hash: u64, entry: EntryRef, rules: &Rules, now: u64) {
        self.cost += rules.weight.of(entry.get());
        let slot = self.table.insert(hash, entry);
        let entry = self.table.entry(slot);
        let group = self.parts.group_of(rules, entry);
        self.parts.add(rules, group, entry);
        self.queues.insert(group, self.table.reference(hash), entry, &self.table, rules);
        let end = end(entry);
        if end != 0 {
            self.volatile += 1;
            self.ends += u128::from(end);
            entry.set_timed(true);
            self.wheel.add(self.table.reference(hash), end, now);
            self.bound_wheel(rules, now);
        }
    }

    /// Puts an entry in the place of another with the same key.
    pub fn replace(&mut self, slot: Slot, hash: u64, entry: EntryRef, rules: &Rules, now: u64) {
        let old_end = end(self.table.entry(slot));
        let old = self.table.replace(slot, entry);
        let (old, new) = (old.get(), self.table.entry(slot));
        old.kill();
        let (less, more) = (rules.weight.of(old), rules.weight.of(new));
        self.cost = self.cost - less + more;
        let group = self.parts.group_of(rules, new);
        self.parts.replace(rules, group, old, new);
        self.queues.replace(group, old, new);
        new.set_timed(old.is_timed());
        self.retime(slot, hash, old_end, rules, now);
    }

    /// Changes a deadline (0: none).
    pub fn set_deadline(&mut self, slot: Slot, hash: u64, deadline: u64, rules: &Rules, now: u64) {
        let old_end = end(self.table.entry(slot));
        self.table.entry(slot).set_deadline(deadline);
        self.retime(slot, hash, old_end, rules, now);
    }

    /// Makes the wheel know an entry's end, which was `old_end`.
    fn retime(&mut self, slot: Slot, hash: u64, old_end: u64, rules: &Rules, now: u64) {
        let entry = self.table.entry(slot);
        let new_end = end(entry);
        self.volatile -= usize::from(old_end != 0);
        self.volatile += usize::from(new_end != 0);
        self.ends = self.ends + u128::from(new_end) - u128::from(old_end);
        // A known entry that ends later is put back when it comes up.
        let known = entry.is_timed() && old_end != 0 && old_end <= new_end;
        if new_end != 0 && !known {
            entry.set_timed(true);
            self.wheel.add(self.table.reference(hash), new_end, now);
            self.bound_wheel(rules, now);
        }
    }

    /// Takes an entry off the shelf.
    pub fn remove(&mut self, slot: Slot, rules: &Rules) -> EntryRef {
        let group = self.parts.group_of(rules, self.table.entry(slot));
        self.queues.remove(group, self.table.entry(slot));
        let entry = self.table.remove(slot);
        let view = entry.get();
        self.parts.sub(rules, group, view);
        view.kill();
        self.cost -= rules.weight.of(view);
        let end = end(view);
        self.volatile -= usize::from(end != 0);
        self.ends -= u128::from(end);
        entry
    }

    /// Evicts one entry, of a group with a quota or of all, if the policy finds one that may go; none whose
    /// hash is in `spare`.
    pub fn evict(
        &mut self,
        group: Option<usize>,
        rules: &Rules,
        now: u64,
        mut random: u64,
        spare: &[u64],
    ) -> Option<EntryRef> {
        let mut slot = self.victim(group, rules, now, random)?;
        for _ in 0..=SPARE_TRIES * spare.len() {
            let entry = self.table.entry(slot);
            let hash = if spare.is_empty() { 0 } else { hash(&rules.hasher, entry.key()) };
            if !spare.contains(&hash) {
                return Some(self.remove(slot, rules));
            }
            if rules.eviction() == Eviction::AllkeysS3fifo && entry.queue() == 0 {
                let group = self.parts.group_of(rules, entry);
                let item = self.table.reference(hash);
                self.queues.adopt(group, item, entry, &self.table, rules);
            }
            random = next_random(random);
            slot = match rules.eviction() {
                // The queues might choose the same one again and again.
                Eviction::AllkeysS3fifo => self.random_of(group, random)?,
                _ => self.victim(group, rules, now, random)?,
            };
        }
        None
    }

    /// Who goes next. The queues have let go of it.
    fn victim(
        &mut self,
        group: Option<usize>,
        rules: &Rules,
        now: u64,
        random: u64,
    ) -> Option<Slot> {
        let policy = rules.eviction();
        let slot = match policy {
            Eviction::Noeviction => None,
            Eviction::AllkeysS3fifo => match self.queues.evict(group, &self.table, random) {
                None => self.worst_of_sample(policy, group, rules, now, random),
                slot => slot,
            },
            _ => self.worst_of_sample(policy, group, rules, now, random),
        };
        // To leave memory for the disk is not to be forgotten: anything may.
        match slot {
            None if rules.demotes => {
                self.worst_of_sample(Eviction::AllkeysLru, group, rules, now, random)
            }
            slot => slot,
        }
    }

    /// The entry of a sample that deserves most to go.
    fn worst_of_sample(
        &mut self,
        policy: Eviction,
        group: Option<usize>,
        rules: &Rules,
        now: u64,
        mut random: u64,
    ) -> Option<Slot> {
        let lfu = rules.lfu();
        let mut worst: Option<(u64, Slot)> = None;
        let (mut seen, wanted) = (0, rules.samples());
        for _ in 0..SAMPLE_TRIES {
            random = next_random(random);
            let Some(slot) = self.sample(policy, group, random) else { continue };
            let score = policy.score(self.table.entry(slot), now, lfu);
            if worst.is_none_or(|(best, _)| score > best) {
                worst = Some((score, slot));
            }
            seen += 1;
            if seen >= wanted {
                break;
            }
        }
        worst.map(|(_, slot)| slot)
    }

    /// An entry that the policy may evict, at random.
    fn sample(&mut self, policy: Eviction, group: Option<usize>, random: u64) -> Option<Slot> {
        if !policy.is_volatile() {
            return self.random_of(group, random);
        }
        if group.is_none() {
            return self.sample_volatile(policy == Eviction::VolatileTtl, random);
        }
        self.random_of(group, random).filter(|slot| end(self.table.entry(*slot)) != 0)
    }

    /// An entry at random, of a group with a quota or of all.
    fn random_of(&mut self, group: Option<usize>, random: u64) -> Option<Slot> {
        match group {
            Some(group) => self.queues.sample(group, &self.table, random),
            None => self.random(random),
        }
    }

    /// An entry with a deadline, at random. Items of entries that are gone are dropped on the way: a
    /// slot of the wheel may hold nothing else, and would hide all others.
    fn sample_volatile(&mut self, soonest: bool, mut random: u64) -> Option<Slot> {
        for _ in 0..SAMPLE_TRIES {
            let (place, item) = self.wheel.sample(random, soonest)?;
            let found = self.table.find_ref(item, |entry| end(entry) != 0);
            if found.is_some() {
                return found;
            }
            self.wheel.discard(place);
            if let Some(slot) = self.table.find_ref(item, |entry| entry.is_timed()) {
                self.table.entry(slot).set_timed(false);
            }
            random = next_random(random);
        }
        None
    }

    /// The slot of a random entry.
    pub fn random(&self, random: u64) -> Option<Slot> {
        self.table.sample(random)
    }

    /// Removes an entry that is past its deadline, if one has come up; `Some(None)` when what came up
    /// was put back or stale, `None` when nothing is due.
    pub fn expire_next(&mut self, rules: &Rules, now: u64) -> Option<Option<EntryRef>> {
        let item = self.wheel.next_due(now)?;
        if let Some(slot) = self.table.find_ref(item, |entry| !is_live(entry, now)) {
            return Some(Some(self.remove(slot, rules)));
        }
        if let Some(slot) = self.table.find_ref(item, |entry| entry.is_timed()) {
            let entry = self.table.entry(slot);
            match end(entry) {
                0 => entry.set_timed(false),
                end => self.wheel.add(item, end, now),
            }
        }
        Some(None)
    }

    /// Rebuilds the wheel when most of its items are stale (deadlines that keep moving earlier);
    /// amortised by the items that came since.
    fn bound_wheel(&mut self, rules: &Rules, now: u64) {
        if self.wheel.len() <= self.volatile * 2 + self.table.len() / 2 + 1024 {
            return;
        }
        let mut wheel = Wheel::default();
        self.table.for_each(|entry| {
            let end = end(entry);
            entry.set_timed(end != 0);
            if end != 0 {
                let item = self.table.reference(hash(&rules.hasher, entry.key()));
                wheel.add(item, end, now);
            }
        });
        self.wheel = wheel;
    }

    /// Puts every entry into the queues, or takes every entry out, as the policy now in force needs.
    pub fn follow_policy(&mut self, rules: &Rules) {
        self.queues = Queues::new(rules, self.db);
        self.table.for_each(|entry| {
            entry.set_queue(0);
            let item = self.table.reference(hash(&rules.hasher, entry.key()));
            let group = self.parts.group_of(rules, entry);
            self.queues.adopt(group, item, entry, &self.table, rules);
        });
    }

    /// Lets entries whose record is gone not count as stored any more, by looking at all of them.
    pub(super) fn forget_lost_records(&self) {
        self.table.for_each(|entry| {
            let is_lost = entry.is_stored() && {
                let found = self.records.find(self.table.hash_of(entry));
                !found.into_iter().any(|at| self.records.slot(at).has(RESIDENT))
            };
            if is_lost {
                entry.set_stored(false);
            }
        });
    }

    /// Empties the shelf; the entries are freed when the result is dropped, wherever that is. L3's
    /// records of it must be made invalid beside it.
    pub fn clear(&mut self, rules: &Rules) -> Table {
        self.queues = Queues::new(rules, self.db);
        self.wheel = Wheel::default();
        self.cost = 0;
        self.volatile = 0;
        self.ends = 0;
        self.records = Index::new(rules.stripe_bits);
        let taken = self.table.take();
        self.parts.recount(rules, &self.table);
        taken
    }

    /// Swaps the contents of two shelves. Where one of their databases has groups, keys change theirs: all
    /// of them are looked at.
    pub fn swap(&mut self, other: &mut Self, rules: &Rules) {
        self.table.swap(&mut other.table);
        std::mem::swap(&mut self.queues, &mut other.queues);
        std::mem::swap(&mut self.wheel, &mut other.wheel);
        std::mem::swap(&mut self.cost, &mut other.cost);
        std::mem::swap(&mut self.volatile, &mut other.volatile);
        std::mem::swap(&mut self.ends, &mut other.ends);
        std::mem::swap(&mut self.records, &mut other.records);
        if self.parts.is_empty() && other.parts.is_empty() {
            return;
        }
        for shelf in [self, other] {
            shelf.parts.recount(rules, &shelf.table);
            shelf.follow_policy(rules);
        }
    }
}

/// The next number of a xorshift sequence (Marsaglia, 2003).
pub fn next_random(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    state
}
