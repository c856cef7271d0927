//! The default eviction, `allkeys-s3fifo`: three FIFO queues, a ghost, and a small queue that finds its
//! own size.
//!
//! New entries enter a *window*; its older half is the *small* queue, where a hit sets a mark (hits in
//! the window don't: they are correlated, see Clock2Q+, Zhai et al., VLDB 2026). What leaves small
//! unmarked is evicted and remembered in the ghost; what is marked moves to *main*, a clock with a mark
//! of two bits (S3-FIFO, Yang et al., SOSP 2023). A key that the ghost remembers enters main at once.
//!
//! Ours is the rest. The share of window and small moves by what the ghost sees: a key that small has
//! just evicted comes back, then small is too small; one that main has just evicted, then main is. So a
//! cache of a hundred entries becomes nearly a FIFO with second chances, a large one keeps a tenth. And
//! three counters keep loops from freezing main: long runs of unmarked victims promote one anyway, and
//! a main that evicts without ever being hit gets nothing from the ghost. Measured on real traces
//! against LRU, ARC, SIEVE, S3-FIFO and Clock2Q+ (`cargo bench --bench hit_ratio`, docs/design.md).
//!
//! Queues hold short references; an entry knows its queue, so an item whose entry is gone, or stands in
//! another queue, is stale and is dropped when it comes up. When more items are stale than live, the
//! queues are rebuilt.

use super::{
    Weight,
    entry::Entry,
    fifo,
    ghost::{Ghost, Origin},
    shelf::next_random,
    table::{Ref, Slot, Table},
};

/// The queues are few and long.
type Fifo = fifo::Fifo<128>;

const WINDOW: u32 = 1;
const SMALL: u32 = 2;
const MAIN: u32 = 3;
/// The highest mark by queue: none, window, small, main.
pub const MARK_TOP: [u32; 4] = [0, 0, 1, 3];

/// Share of window and small at the start, and its bounds.
const TARGET: f64 = 0.10;
const TARGET_MIN: f64 = 0.03;
const TARGET_MAX: f64 = 0.70;
/// The window's share of window and small.
const WINDOW_SHARE: f64 = 0.5;
/// A ghost hit moves the target by so many entries' share.
const STEP: f64 = 2.0;
/// Unmarked victims in a row after which one is promoted anyway, and when there was none for long.
const IDLE: u32 = 32;
const IDLE_IN_DROUGHT: u32 = 8;
/// Evictions that a promotion takes off the drought.
const DROUGHT_CREDIT: usize = 256;
/// Victims of main in a row without a hit, after which the ghost no longer feeds it.
const BARREN: u32 = 16;
/// Second chances that one eviction may give in main.
const CHANCES: u32 = 64;
/// How often a live item is looked for at random before the queues are rebuilt.
const SAMPLE_TRIES: u32 = 8;

/// The queues of one stripe and database.
pub struct Adaptive {
    weight: Weight,
    queues: [Fifo; 4],
    /// Cost of the entries in each queue.
    cost: [usize; 4],
    /// Entries in all of them.
    len: usize,
    ghost: Ghost,
    /// The share of the whole that window and small should have.
    target: f64,
    evicted: bool,
    idle: u32,
    barren: u32,
    drought: usize,
    parity: bool,
}

impl Adaptive {
    /// Empty queues for entries that cost what `weight` says.
    pub fn new(weight: Weight) -> Self {
        Self {
            weight,
            queues: Default::default(),
            cost: [0; 4],
            len: 0,
            ghost: Ghost::default(),
            target: TARGET,
            evicted: false,
            idle: 0,
            barren: 0,
            drought: 0,
            parity: false,
        }
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.queues.iter().map(Fifo::bytes).sum::<usize>() + self.ghost.bytes()
    }

    /// What window and small should cost together, when the whole may cost `capacity`.
    fn target_cost(&self, capacity: usize) -> usize {
        let whole = if self.evicted { self.cost.iter().sum() } else { capacity };
        (self.target * whole as f64) as usize
    }

    /// Notes a new entry that stands in the table.
    pub fn insert(&mut self, item: Ref, entry: Entry<'_>, table: &Table, capacity: usize) {
        self.len += 1;
        let remembered = self.ghost.take(item, self.len);
        if let Some((origin, true)) = remembered {
            let step = STEP / self.len.max(4) as f64;
            self.target += if origin == Origin::Small { step } else { -step };
            self.target = self.target.clamp(TARGET_MIN, TARGET_MAX);
        }
        let target = self.target_cost(capacity);
        let filling =
            !self.evicted && self.cost[WINDOW as usize] + self.cost[SMALL as usize] >= target;
        entry.set_parity(self.parity);
        if filling || remembered.is_some() && self.barren < BARREN {
            if self.evicted {
                self.promoted();
            }
            self.push(MAIN, item, entry);
        } else {
            self.push(WINDOW, item, entry);
            let window = (target as f64 * WINDOW_SHARE) as usize;
            while self.cost[WINDOW as usize] > window && self.queues[WINDOW as usize].len() > 1 {
                self.leave_window(table);
            }
        }
        self.bound(table);
    }

    /// Lets an entry inherit the place of the one that it replaces; a replacement counts as a hit.
    pub fn replace(&mut self, old: Entry<'_>, new: Entry<'_>) {
        let queue = old.queue();
        if queue == 0 {
            return;
        }
        new.set_queue(queue);
        new.set_parity(old.parity());
        new.set_mark((old.mark() + 1).min(MARK_TOP[queue as usize]));
        let (less, more) = (self.weight.of(old), self.weight.of(new));
        let cost = &mut self.cost[queue as usize];
        *cost = *cost - less + more;
    }

    /// Notes that an entry leaves the table; its item stays behind and is stale.
    pub fn remove(&mut self, entry: Entry<'_>) {
        if entry.queue() != 0 {
            self.cost[entry.queue() as usize] -= self.weight.of(entry);
            self.len -= 1;
            entry.set_queue(0);
        }
    }

    /// Cost of the entries.
    pub fn cost(&self) -> usize {
        self.cost.iter().sum()
    }

    /// By how much window and small cost more than their share.
    pub fn excess(&self) -> f64 {
        let small = self.cost[WINDOW as usize] + self.cost[SMALL as usize];
        small as f64 - self.target * self.cost() as f64
    }

    /// Chooses a victim, notes it in the ghost and takes it out of the queues; the caller takes it out
    /// of the table. The victim's mark says whether it was used again since it came. `None`: no entry
    /// stands in a queue.
    pub fn evict(&mut self, table: &Table) -> Option<Slot> {
        self.evicted = true;
        let mut chances = CHANCES;
        loop {
            let small = self.cost[WINDOW as usize] + self.cost[SMALL as usize];
            let main_is_empty = self.queues[MAIN as usize].is_empty();
            let whole = small + self.cost[MAIN as usize];
            let from_small = small > 0 && small as f64 >= self.target * whole as f64;
            let victim = if from_small || main_is_empty {
                if whole == 0 {
                    return None;
                }
                self.evict_small(table)
            } else {
                self.evict_main(table, &mut chances)
            };
            if victim.is_some() {
                return victim;
            }
        }
    }

    /// The head of small, if it is evicted; `None` if it was promoted, or the queue was empty.
    fn evict_small(&mut self, table: &Table) -> Option<Slot> {
        let small = self.cost[WINDOW as usize] + self.cost[SMALL as usize];
        let window = (small as f64 * WINDOW_SHARE) as usize;
        while !self.queues[WINDOW as usize].is_empty()
            && (self.queues[SMALL as usize].is_empty() || self.cost[WINDOW as usize] > window)
        {
            self.leave_window(table);
        }
        let (item, slot) = self.pop(SMALL, table)?;
        let entry = table.entry(slot);
        let limit = if self.drought >= self.len { IDLE_IN_DROUGHT } else { IDLE };
        let marked = entry.mark() > 0;
        if marked || self.idle >= limit {
            if marked {
                self.promoted();
            }
            self.idle = 0;
            entry.set_mark(0);
            self.shift(SMALL, MAIN, item, entry);
            return None;
        }
        self.idle += 1;
        self.drought += 1;
        self.leave(item, entry, Origin::Small);
        Some(slot)
    }

    /// The head of main, if it is evicted; `None` if it got another chance, or the queue was empty.
    fn evict_main(&mut self, table: &Table, chances: &mut u32) -> Option<Slot> {
        let (item, slot) = self.pop(MAIN, table)?;
        let entry = table.entry(slot);
        if entry.mark() > 0 && *chances > 0 {
            *chances -= 1;
            self.barren = 0;
            entry.set_mark(entry.mark() - 1);
            self.queues[MAIN as usize].push(item);
            return None;
        }
        self.barren = self.barren.saturating_add(1);
        self.leave(item, entry, Origin::Main);
        Some(slot)
    }

    fn leave(&mut self, item: Ref, entry: Entry<'_>, origin: Origin) {
        self.ghost.put(item, origin, self.len);
        self.remove(entry);
        entry.set_mark(u32::from(origin == Origin::Main));
    }

    fn push(&mut self, queue: u32, item: Ref, entry: Entry<'_>) {
        entry.set_queue(queue);
        self.cost[queue as usize] += self.weight.of(entry);
        self.queues[queue as usize].push(item);
    }

    /// The head of a queue whose entry still stands in it.
    fn pop(&mut self, queue: u32, table: &Table) -> Option<(Ref, Slot)> {
        while let Some(item) = self.queues[queue as usize].pop() {
            if let Some(slot) = table.find_ref(item, |entry| entry.queue() == queue) {
                return Some((item, slot));
            }
        }
        // Nothing stands here: whatever two equal references may have miscounted ends here.
        self.cost[queue as usize] = 0;
        None
    }

    fn shift(&mut self, from: u32, to: u32, item: Ref, entry: Entry<'_>) {
        self.cost[from as usize] = self.cost[from as usize].saturating_sub(self.weight.of(entry));
        self.push(to, item, entry);
    }

    fn leave_window(&mut self, table: &Table) {
        if let Some((item, slot)) = self.pop(WINDOW, table) {
            let entry = table.entry(slot);
            entry.set_mark(0);
            self.shift(WINDOW, SMALL, item, entry);
        }
    }

    fn promoted(&mut self) {
        self.idle = 0;
        self.drought = self.drought.saturating_sub(DROUGHT_CREDIT);
    }

    /// Adopts an entry that came while another policy was in force.
    pub fn adopt(&mut self, item: Ref, entry: Entry<'_>, table: &Table) {
        self.len += 1;
        entry.set_parity(self.parity);
        entry.set_mark(0);
        self.push(MAIN, item, entry);
        self.bound(table);
    }

    /// An entry at random; it stays in its queue. `None`: no entry stands in one.
    pub fn sample(&mut self, table: &Table, random: u64) -> Option<Slot> {
        if self.len == 0 {
            return None;
        }
        let mut at = random;
        for tries in 0..=SAMPLE_TRIES {
            if tries == SAMPLE_TRIES {
                // Hardly any item is live: those that are are the rest of these.
                self.rebuild(table);
            }
            if let found @ Some(_) = self.sample_once(table, at) {
                return found;
            }
            at = next_random(at);
        }
        None
    }

    fn sample_once(&self, table: &Table, random: u64) -> Option<Slot> {
        let mut index = random as usize % self.items().max(1);
        for queue in WINDOW..=MAIN {
            let items = &self.queues[queue as usize];
            if let Some(item) = items.get(index) {
                return table.find_ref(item, |entry| entry.queue() == queue);
            }
            index -= items.len();
        }
        None
    }

    fn items(&self) -> usize {
        self.queues.iter().map(Fifo::len).sum()
    }

    /// Rebuilds the queues when more items are stale than live; amortised by the removals before.
    fn bound(&mut self, table: &Table) {
        if self.items() > self.len * 2 + 64 {
            self.rebuild(table);
        }
    }

    fn rebuild(&mut self, table: &Table) {
        // The parity of an entry says whether its item was met already in this rebuild.
        self.parity = !self.parity;
        let parity = self.parity;
        for queue in WINDOW..=MAIN {
            let old = std::mem::take(&mut self.queues[queue as usize]);
            for item in old.into_items() {
                let unmet = |entry: Entry<'_>| entry.queue() == queue && entry.parity() != parity;
                if let Some(slot) = table.find_ref(item, unmet) {
                    table.entry(slot).set_parity(parity);
                    self.queues[queue as usize].push(item);
                }
            }
        }
    }
}
