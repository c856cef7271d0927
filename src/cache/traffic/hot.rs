//! The hottest keys: Space-Saving (Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k
//! Elements in Data Streams", ICDT 2005) over a sample of the requests.
//!
//! It has a fixed number of counters. A key that has none takes over one of the lowest, and with it its
//! count, which from then on is the key's error: a count is never too low by what it has seen, and too high by at most its
//! error. Counts are halved once a minute, and so is the time that they stand for, so that they tell of now.

use hashbrown::HashTable;

/// Keys that it has counters for.
const MOST: usize = 256;
/// Longer keys aren't counted, in bytes.
pub(super) const LONGEST: usize = 1024;
/// Time in which counts lose half of their weight, in milliseconds.
const HALVED_EVERY: u64 = 60_000;

struct Counter {
    id: u64,
    db: usize,
    key: Vec<u8>,
    count: u64,
    /// By how much the count may be too high.
    error: u64,
}

/// A hot key.
#[derive(Clone, Debug, PartialEq)]
pub struct HotKey {
    /// Its database.
    pub db: usize,
    /// The key.
    pub key: Box<[u8]>,
    /// Requests a second, about.
    pub per_second: f64,
    /// By how much that may be too high for want of counters.
    pub error: f64,
    /// Its part of all requests of keys.
    pub share: f64,
}

/// The counters.
pub(super) struct Hot {
    counters: Vec<Counter>,
    places: HashTable<u16>,
    /// No counter is lower. Counters of this count are looked for from the hand on.
    lowest: u64,
    hand: usize,
    /// All that was counted, and the seconds that it took; halved with the counters.
    total: u64,
    seconds: f64,
    ticked: u64,
    halved: u64,
}

impl Hot {
    /// Nothing has been counted at a time (unix milliseconds).
    pub(super) fn new(now: u64) -> Self {
        Self {
            counters: Vec::with_capacity(MOST),
            places: HashTable::with_capacity(MOST),
            lowest: 0,
            hand: 0,
            total: 0,
            seconds: 0.0,
            ticked: now,
            halved: now,
        }
    }

    /// Counts requests of a key.
    pub(super) fn note(&mut self, id: u64, db: usize, key: &[u8], count: u64) {
        self.total += count;
        if let Some(at) = self.find(id) {
            self.counters[at].count += count;
            return;
        }
        let place = if self.counters.len() < MOST {
            let new = Counter { id, db, key: key.to_vec(), count, error: 0 };
            self.counters.push(new);
            self.counters.len() - 1
        } else {
            let place = self.take_lowest();
            let counter = &mut self.counters[place];
            (counter.id, counter.db) = (id, db);
            counter.key.clear();
            counter.key.extend_from_slice(key);
            counter.error = counter.count;
            counter.count += count;
            place
        };
        let counters = &self.counters;
        let id_at = |at: &u16| counters[usize::from(*at)].id;
        self.places.insert_unique(id, place as u16, id_at);
    }

    fn find(&self, id: u64) -> Option<usize> {
        let counters = &self.counters;
        let found = self.places.find(id, |at| counters[usize::from(*at)].id == id);
        found.map(|at| usize::from(*at))
    }

    /// Takes one of the lowest counters from its key.
    fn take_lowest(&mut self) -> usize {
        let from_hand = (self.hand..MOST).chain(0..self.hand);
        let found = from_hand.into_iter().find(|at| self.counters[*at].count <= self.lowest);
        let place = found.unwrap_or_else(|| {
            let lowest = (0..MOST).min_by_key(|at| self.counters[*at].count).unwrap_or(0);
            self.lowest = self.counters[lowest].count;
            lowest
        });
        self.hand = (place + 1) % MOST;
        let id = self.counters[place].id;
        if let Ok(entry) = self.places.find_entry(id, |at| usize::from(*at) == place) {
            entry.remove();
        }
        place
    }

    /// Lets time pass. Call it about once a second, and before a report.
    pub(super) fn tick(&mut self, now: u64) {
        let elapsed = now.saturating_sub(std::mem::replace(&mut self.ticked, now));
        self.seconds += elapsed as f64 / 1000.0;
        if now.saturating_sub(self.halved) < HALVED_EVERY {
            return;
        }
        self.halved = now;
        self.seconds /= 2.0;
        self.total /= 2;
        self.lowest /= 2;
        for counter in &mut self.counters {
            counter.count /= 2;
            counter.error = counter.error.div_ceil(2).min(counter.count);
        }
    }

    /// The hottest keys, the hottest first: those that were certainly asked for.
    pub(super) fn top(&self, most: usize) -> Vec<HotKey> {
        let is_certain = |counter: &&Counter| counter.count > counter.error;
        let mut found: Vec<_> = self.counters.iter().filter(is_certain).collect();
        found.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        let seconds = self.seconds.max(1.0);
        let report = |counter: &Counter| HotKey {
            db: counter.db,
            key: counter.key.as_slice().into(),
            per_second: counter.count as f64 / seconds,
            error: counter.error as f64 / seconds,
            share: counter.count as f64 / self.total.max(1) as f64,
        };
        found.into_iter().take(most).map(report).collect()
    }

    /// Requests of a key in a minute that there certainly were, about; 0 if it isn't among the hottest.
    pub(super) fn in_a_minute(&self, id: u64) -> f64 {
        let known = self.find(id).map(|at| &self.counters[at]);
        let count = known.map_or(0, |counter| counter.count - counter.error);
        count as f64 * 60.0 / self.seconds.max(60.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn note(hot: &mut Hot, number: u64, count: u64) {
        hot.note(number.wrapping_mul(0x9E37_79B9_7F4A_7C15), 0, &number.to_be_bytes(), count);
    }

    proptest! {
        /// What the paper promises: no count is too low, none too high by more than its error, and no error
        /// above what would be each counter's if all had the same.
        #[test]
        fn counts_are_within_their_errors(numbers in prop::collection::vec((0..1200u64, 1..9u64), 1..4000)) {
            let (mut hot, mut exact) = (Hot::new(0), HashMap::new());
            for (number, count) in numbers {
                // A few of them are asked for often.
                let number = if number < 600 { number % 20 } else { number };
                note(&mut hot, number, count);
                *exact.entry(number).or_insert(0u64) += count;
            }
            let total: u64 = exact.values().sum();
            for counter in &hot.counters {
                let number = u64::from_be_bytes(counter.key[..].try_into().expect("eight bytes"));
                prop_assert!(counter.count >= exact[&number]);
                prop_assert!(counter.count - counter.error <= exact[&number]);
                prop_assert!(counter.error <= total / MOST as u64);
            }
            for (number, count) in exact {
                if count > total / MOST as u64 {
                    let id = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    prop_assert!(hot.find(id).is_some(), "{number} is missing");
                }
            }
        }
    }

    #[test]
    fn what_was_hot_gives_way_to_what_is() {
        let mut hot = Hot::new(0);
        for second in 1..=600 {
            let key = if second <= 300 { 1 } else { 2 };
            note(&mut hot, key, 1000);
            note(&mut hot, 1000 + second, 1);
            hot.tick(second * 1000);
        }
        let top = hot.top(2);
        assert_eq!(
            (&*top[0].key, &*top[1].key),
            (&2u64.to_be_bytes()[..], &1u64.to_be_bytes()[..])
        );
        assert!((top[0].per_second - 970.0).abs() < 30.0, "{top:?}");
        assert!(top[1].per_second < 40.0 && top[0].share > 0.95, "{top:?}");
    }

    #[test]
    fn rates_are_those_of_the_time_that_has_passed() {
        let mut hot = Hot::new(5_000);
        (0..1000).for_each(|_| note(&mut hot, 7, 64));
        hot.tick(5_000 + 32_000);
        assert_eq!(hot.top(1)[0].per_second, 2000.0);
    }
}
