//! The miss-ratio curve: what the hit ratio would be with less or more memory, from a sample of the keys.
//!
//! SHARDS with a fixed number of samples and the correction of its authors (Waldspurger, Park, Garthwaite,
//! Ahmad, "Efficient MRC Construction with SHARDS", FAST 2015): a key is sampled if its hash is below a
//! threshold, which is lowered when there are too many of them; an LRU stack of the sampled keys
//! ([`Stack`]) says how many bytes were used since a key was last, and that, divided by the sampling rate, is
//! the memory from which on the lookup would have been a hit. Lookups that should be in the sample by its rate
//! and aren't (or the reverse: a hot key is in or out by chance) are added to the shortest distance, where
//! hot keys are.
//!
//! What is different here, because a server runs for long and has writes, deadlines and a busy core:
//!
//! - *A write isn't a lookup*, but moves its key to the top, with its size. A key that is looked up and not
//!   there counts as a miss at any size, unless the stack has it (then it was evicted), and only a
//!   write brings it in. If it is asked for once more before that, it was deleted, and goes.
//! - *Deadlines count.* A key past its own isn't there at any size.
//! - *A key that is found though the stack doesn't know it* was there before (a warm restart, a larger
//!   sample): it is deeper than all that the stack has.
//! - *It follows the traffic.* Counts are halved every [`HALF_LIFE`]. What is deeper than the horizon is
//!   forgotten, since it is a miss at all sizes that anybody asks for; so keys that never come back take no
//!   samples from those that do. When few keys are left, more are sampled.
//! - *Its cost has a bound.* A class of keys (by other bits of the hash) that takes an undue part of all
//!   lookups has a very hot key, and leaves the sample: the correction puts the lookups that are missing at
//!   the shortest distance, and that is where they belong. When the sample as a whole takes too much of a
//!   busy server's lookups, the threshold is lowered.

use super::stack::{Node, Stack};

/// Keys that are sampled at most.
pub const MOST: usize = 8192;
/// When there are too many, one in so many of the hashes leaves.
const STEP: u64 = 16;
/// One key in so many is sampled at first.
pub(super) const SPARSE: u32 = 4;
/// Time in which what was counted counts half, in milliseconds.
const HALF_LIFE: f64 = 600_000.0;
/// Classes of keys, by the bits above those that the threshold looks at.
const CLASSES: u64 = 64;
/// Classes that may be left out.
const MOST_EXCLUDED: u32 = 16;
/// The part of the lookups that a class may take, and that the sample may.
const CLASS_SHARE: u64 = 128;
const SHARE: u64 = 64;
/// Lookups in a second from which on cost matters.
const BUSY: u64 = 10_000;
/// How long a class is left out, and how long the threshold stands before it is raised, in milliseconds.
const EXCLUDED_FOR: u64 = 600_000;
const RAISED_AFTER: u64 = 60_000;
/// Lookups and keys in the sample that an estimate needs.
const ENOUGH_LOOKUPS: f64 = 2_000.0;
const ENOUGH_KEYS: usize = 128;

/// What happened to a key of the sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its hash, with its database in the upper bits.
    pub id: u64,
    /// When its entry ends, in unix milliseconds; 0: never, or there is none.
    pub end: u64,
    /// The bytes of its entry.
    pub bytes: u32,
    /// Its database.
    pub db: u16,
    /// What happened.
    pub event: Event,
}

/// See [`Sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was looked up, and memory had it.
    Hit,
    /// It was looked up, and brought from below.
    Fetched,
    /// It was looked up, and isn't there.
    Miss,
    /// It was written.
    Write,
    /// It was deleted.
    Removal,
}

impl Event {
    fn is_lookup(self) -> bool {
        matches!(self, Self::Hit | Self::Fetched | Self::Miss)
    }
}

/// Which keys are sampled: a threshold for the low 32 bits of their hashes, and classes that are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    pub(super) threshold: u32,
    pub(super) excluded: u64,
}

impl Rate {
    /// One key in so many, of all classes.
    fn one_in(sparse: u32) -> Self {
        Self { threshold: u32::MAX / sparse.max(1), excluded: 0 }
    }

    /// Whether keys with this hash are sampled.
    #[inline]
    pub fn takes(self, hash: u64) -> bool {
        (hash as u32) < self.threshold && self.excluded >> class(hash) & 1 == 0
    }

    /// The part of all keys that is.
    pub fn share(self) -> f64 {
        let classes = 1.0 - f64::from(self.excluded.count_ones()) / CLASSES as f64;
        f64::from(self.threshold) / (u64::from(u32::MAX) + 1) as f64 * classes
    }
}

fn class(hash: u64) -> u64 {
    hash >> 32 & (CLASSES - 1)
}

/// Counts by distance, in logarithmic buckets of eight for each power of two.
struct Histogram(Box<[f64; Histogram::BUCKETS]>);

impl Histogram {
    const BUCKETS: usize = 62 * 8;

    fn bucket(bytes: u64) -> usize {
        let bytes = bytes.max(8);
        let log = bytes.ilog2();
        (((log - 3) << 3) as usize | (bytes >> (log - 3) & 7) as usize).min(Self::BUCKETS - 1)
    }

    /// Where a bucket begins, in bytes.
    fn begin(bucket: usize) -> f64 {
        (8 + (bucket & 7)) as f64 * ((bucket >> 3) as f64).exp2()
    }

    fn add(&mut self, bytes: u64, weight: f64) {
        self.0[Self::bucket(bytes)] += weight;
    }

    /// What was counted at distances of at most so many bytes.
    fn within(&self, bytes: u64) -> f64 {
        let last = Self::bucket(bytes);
        let (begin, end) = (Self::begin(last), Self::begin(last + 1));
        let part = ((bytes as f64 - begin) / (end - begin)).clamp(0.0, 1.0);
        self.0[..last].iter().sum::<f64>() + self.0[last] * part
    }
}

/// The curve as it is known now.
pub struct Curve {
    stack: Stack,
    rate: Rate,
    /// The rate at which it may sample at most.
    most: Rate,
    /// How many keys one of the sample stands for.
    scale: f64,
    distances: Histogram,
    /// All lookups, those for which the sample's stand, and the sample's.
    lookups: f64,
    counted: f64,
    samples: f64,
    /// Deeper keys are forgotten, in bytes.
    horizon: u64,
    /// What an entry takes beside itself, in bytes.
    share: u32,
    /// Since cost was last looked at: lookups and writes, and what the sample took of each class.
    recent: u64,
    by_class: [u64; CLASSES as usize],
    ticked: u64,
    excluded_at: u64,
    changed: u64,
}

/// What the curve rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Basis {
    /// Keys of the sample.
    pub keys: usize,
    /// Lookups of them; old ones count less.
    pub samples: f64,
    /// The part of all keys that is sampled.
    pub rate: f64,
    /// Whether that is enough to say anything.
    pub is_enough: bool,
}

impl Curve {
    /// One that samples one key in `sparse`, or fewer, at a time (unix milliseconds).
    pub fn new(sparse: u32, now: u64) -> Self {
        let most = Rate::one_in(sparse);
        Self {
            stack: Stack::new(MOST),
            rate: most,
            most,
            scale: most.share().recip(),
            distances: Histogram(Box::new([0.0; Histogram::BUCKETS])),
            lookups: 0.0,
            counted: 0.0,
            samples: 0.0,
            horizon: u64::MAX,
            share: 0,
            recent: 0,
            by_class: [0; CLASSES as usize],
            ticked: now,
            excluded_at: now,
            changed: now,
        }
    }

    /// Which keys it wants to hear of.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        self.stack.size() + size_of::<Self>() + Histogram::BUCKETS * size_of::<f64>()
    }

    /// Notes lookups of whatever keys; of so many that were sampled nothing is known.
    pub fn note_lookups(&mut self, lookups: u64, lost: u64) {
        self.recent += lookups;
        self.lookups = (self.lookups + lookups as f64 - lost as f64 * self.scale).max(0.0);
    }

    /// Notes what happened to a key of the sample.
    pub fn note(&mut self, sample: &Sample, now: u64) {
        // The threshold may have been lowered since.
        if !self.rate.takes(sample.id) {
            return;
        }
        self.by_class[class(sample.id) as usize] += 1;
        if !sample.event.is_lookup() {
            // Nobody counts writes: those of the sample stand for all.
            self.recent += self.scale as u64;
        }
        let mut known = self.stack.find(sample.id);
        if let Some(place) = known {
            let (node, _) = self.stack.get(place);
            let is_over = node.end != 0 && node.end <= now && sample.event != Event::Hit;
            let was_deleted = node.is_absent && sample.event == Event::Miss;
            if is_over || was_deleted || sample.event == Event::Removal {
                self.stack.remove(place);
                known = None;
            }
        }
        let Sample { id, end, bytes, db, event } = *sample;
        let old = known.map(|place| self.stack.get(place));
        let bytes = match event {
            Event::Miss => old.map_or(0, |(_, bytes)| bytes),
            _ => bytes.saturating_add(self.share),
        };
        if event.is_lookup() {
            let above = known.map(|place| self.stack.above(place));
            let found = event == Event::Hit;
            let above = above.or_else(|| found.then(|| self.stack.total()));
            self.count(above, bytes);
        }
        let node = match (event, old) {
            (Event::Miss, Some((node, _))) => Node { is_absent: true, ..node },
            (Event::Miss, None) | (Event::Removal, _) => return,
            _ => Node { id, end, db, is_absent: false },
        };
        match known {
            Some(place) => self.stack.renew(place, node, bytes),
            None => self.stack.push(node, bytes),
        }
        self.bound();
    }

    /// Counts a lookup of a key above which stand so many bytes of the sample; `None`: it is a miss at any
    /// size.
    fn count(&mut self, above: Option<u64>, bytes: u32) {
        self.samples += 1.0;
        self.counted += self.scale;
        if let Some(above) = above {
            let distance = (above as f64 * self.scale) as u64 + u64::from(bytes);
            self.distances.add(distance, self.scale);
        }
    }

    /// Forgets what is too deep, and samples fewer keys if there are too many.
    fn bound(&mut self) {
        while self.stack.len() > 1 && self.stack.total() as f64 * self.scale > self.horizon as f64 {
            self.stack.pop();
        }
        if self.stack.len() > MOST {
            let threshold = u64::from(self.rate.threshold);
            let threshold = (threshold - threshold / STEP) as u32;
            self.set_rate(Rate { threshold, ..self.rate });
        }
    }

    fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
        self.scale = rate.share().recip();
        self.stack.keep(|node| rate.takes(node.id));
    }

    /// Forgets the keys of a database.
    pub fn forget(&mut self, is_gone: impl Fn(usize) -> bool) {
        self.stack.keep(|node| !is_gone(usize::from(node.db)));
    }

    /// Lets what was counted fade, and keys that have ended go. What is deeper than the horizon will be
    /// forgotten, and an entry takes so much beside itself. Call it about once a second.
    pub fn tick(&mut self, horizon: u64, share: usize, now: u64) {
        self.share = share as u32;
        let elapsed = now.saturating_sub(std::mem::replace(&mut self.ticked, now));
        let fading = (-(elapsed as f64) / HALF_LIFE).exp2();
        self.distances.0.iter_mut().for_each(|count| *count *= fading);
        for sum in [&mut self.lookups, &mut self.counted, &mut self.samples] {
            *sum *= fading;
        }
        self.stack.keep(|node| node.end == 0 || node.end > now);
        self.horizon = horizon;
        self.bound();
        self.bound_cost();
    }

    /// Has the sample stay within its bounds if so much has come before a second was over. Call it when
    /// what was noted was taken, and don't where cost doesn't matter.
    pub fn keep_cheap(&mut self) {
        if self.recent >= BUSY {
            self.bound_cost();
        }
    }

    /// Has what the sample took of the lookups since the last look stay within bounds.
    fn bound_cost(&mut self) {
        let now = self.ticked;
        if self.rate.excluded != 0 && now.saturating_sub(self.excluded_at) > EXCLUDED_FOR {
            self.excluded_at = now;
            self.set_rate(Rate { excluded: 0, ..self.rate });
        }
        let (took, recent) = (self.by_class.iter().sum::<u64>(), self.recent);
        let mut rate = self.rate;
        if recent >= BUSY {
            for (class, took) in self.by_class.iter().enumerate() {
                let may_leave = rate.excluded.count_ones() < MOST_EXCLUDED;
                if took * CLASS_SHARE > recent && may_leave {
                    rate.excluded |= 1 << class;
                    self.excluded_at = now;
                }
            }
            if rate == self.rate && took * SHARE > recent {
                let part = recent as f64 / (took * SHARE) as f64;
                rate.threshold = (f64::from(rate.threshold) * part) as u32;
            }
        }
        let stands = now.saturating_sub(self.changed) >= RAISED_AFTER;
        let is_cheap = took * SHARE * 2 <= recent;
        if rate == self.rate && stands && is_cheap && self.stack.len() < MOST / 8 {
            rate.threshold = rate.threshold.saturating_mul(2).min(self.most.threshold);
        }
        if rate != self.rate {
            self.changed = now;
            self.set_rate(rate);
        }
        self.recent = 0;
        self.by_class.fill(0);
    }

    /// The hit ratio with room for so many bytes of entries, if there was any lookup.
    pub fn hit_ratio(&self, bytes: u64) -> Option<f64> {
        let hits = self.distances.within(bytes) + self.lookups - self.counted;
        (self.lookups > 0.0).then(|| (hits / self.lookups).clamp(0.0, 1.0))
    }

    /// What it rests on.
    pub fn basis(&self) -> Basis {
        let (keys, samples) = (self.stack.len(), self.samples);
        let is_enough = keys >= ENOUGH_KEYS && samples >= ENOUGH_LOOKUPS;
        Basis { keys, samples, rate: self.rate.share(), is_enough }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::tier::shelf::next_random;

    const NOW: u64 = 1_000_000;

    /// A hash for a number.
    fn hash(number: u64) -> u64 {
        let mixed = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(31)
    }

    fn sample(number: u64, bytes: u32, event: Event) -> Sample {
        Sample { id: hash(number), end: 0, bytes, db: 0, event }
    }

    /// Requests by Zipf's law with exponent 1: keys, and for each its bytes.
    fn zipf(count: usize, keys: u64) -> Vec<(u64, u32)> {
        let mut random = 88_172_645_463_325_252u64;
        let mut next = || {
            random = next_random(random);
            let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
            (keys as f64).powf(uniform) as u64
        };
        (0..count).map(|_| next()).map(|key| (key, 50 + (hash(key) % 200) as u32)).collect()
    }

    /// The hit ratio of an LRU cache of so many bytes, by running one.
    fn lru(requests: &[(u64, u32)], capacity: u64) -> f64 {
        let (mut used_at, mut in_order) = (HashMap::new(), std::collections::BTreeMap::new());
        let (mut held, mut hits) = (0, 0u64);
        for (at, (key, bytes)) in requests.iter().enumerate() {
            match used_at.insert(*key, at) {
                Some(before) => {
                    hits += 1;
                    in_order.remove(&before);
                }
                None => held += u64::from(*bytes),
            }
            in_order.insert(at, (*key, *bytes));
            while held > capacity
                && let Some((_, (oldest, bytes))) = in_order.pop_first()
            {
                used_at.remove(&oldest);
                held -= u64::from(bytes);
            }
        }
        hits as f64 / requests.len() as f64
    }

    /// The curve of requests that come by a cache of so many bytes: every one is a GET, and a SET on a miss.
    fn curve_of(requests: &[(u64, u32)], sparse: u32) -> Curve {
        let (mut curve, mut known) = (Curve::new(sparse, NOW), HashMap::new());
        for (step, (key, bytes)) in requests.iter().enumerate() {
            curve.note_lookups(1, 0);
            // One in three is evicted, whichever.
            if known.insert(*key, ()).is_some() && step % 3 != 0 {
                curve.note(&sample(*key, *bytes, Event::Hit), NOW);
            } else {
                curve.note(&sample(*key, *bytes, Event::Miss), NOW);
                curve.note(&sample(*key, *bytes, Event::Write), NOW);
            }
        }
        curve
    }

    #[test]
    fn it_is_exact_where_all_keys_are_sampled() {
        let requests = zipf(40_000, 4_000);
        let curve = curve_of(&requests, 1);
        assert_eq!(curve.basis().samples, 40_000.0);
        for capacity in [3_000, 30_000, 100_000, 300_000, 1_000_000] {
            let (seen, exact) = (curve.hit_ratio(capacity).unwrap(), lru(&requests, capacity));
            assert!((seen - exact).abs() < 0.01, "{capacity}: {seen} and not {exact}");
        }
    }

    #[test]
    fn it_is_near_where_few_are() {
        let requests = zipf(300_000, 100_000);
        let curve = curve_of(&requests, 1);
        let basis = curve.basis();
        assert!((MOST / 2..=MOST).contains(&basis.keys) && basis.rate < 0.3, "{basis:?}");
        let sizes = [60_000, 200_000, 600_000, 2_000_000, 6_000_000];
        let off = |size: &u64| (curve.hit_ratio(*size).unwrap() - lru(&requests, *size)).abs();
        let mean = sizes.iter().map(off).sum::<f64>() / sizes.len() as f64;
        assert!(mean < 0.015, "{mean}");
    }

    #[test]
    fn a_write_is_no_lookup_but_brings_its_key_in() {
        let mut curve = Curve::new(1, NOW);
        for number in 0..100 {
            curve.note(&sample(number, 1_000, Event::Write), NOW);
        }
        assert_eq!((curve.hit_ratio(1 << 30), curve.basis().keys), (None, 100));
        curve.note_lookups(1, 0);
        curve.note(&sample(0, 1_000, Event::Hit), NOW);
        assert_eq!(curve.hit_ratio(50_000), Some(0.0));
        assert_eq!(curve.hit_ratio(120_000), Some(1.0));
    }

    #[test]
    fn what_is_never_there_is_a_miss_at_any_size() {
        let mut curve = Curve::new(1, NOW);
        curve.note_lookups(100, 0);
        (0..100).for_each(|_| curve.note(&sample(7, 0, Event::Miss), NOW));
        assert_eq!((curve.hit_ratio(1 << 40), curve.basis().keys), (Some(0.0), 0));
        // Nor what was deleted unseen: it counts as evicted once.
        curve.note(&sample(8, 10, Event::Write), NOW);
        curve.note_lookups(100, 0);
        (0..100).for_each(|_| curve.note(&sample(8, 0, Event::Miss), NOW));
        let once = curve.hit_ratio(1 << 40).unwrap();
        assert!((once - 0.005).abs() < 1e-6 && curve.basis().keys == 0, "{once}");
    }

    #[test]
    fn deadlines_and_deletions_count() {
        let mut curve = Curve::new(1, NOW);
        let brief = Sample { end: NOW + 500, ..sample(1, 10, Event::Write) };
        curve.note(&brief, NOW);
        curve.note(&sample(2, 10, Event::Write), NOW);
        curve.note(&sample(2, 10, Event::Removal), NOW);
        curve.note_lookups(2, 0);
        curve.note(&sample(1, 0, Event::Miss), NOW + 500);
        curve.note(&sample(2, 0, Event::Miss), NOW);
        assert_eq!((curve.hit_ratio(1 << 40), curve.basis().keys), (Some(0.0), 0));
        curve.note(&brief, NOW);
        curve.tick(u64::MAX, 0, NOW + 1_000);
        assert_eq!(curve.basis().keys, 0);
    }

    #[test]
    fn what_was_there_before_is_deeper_than_all_else() {
        let mut curve = Curve::new(1, NOW);
        (0..10).for_each(|number| curve.note(&sample(number, 100, Event::Write), NOW));
        curve.note_lookups(1, 0);
        curve.note(&sample(77, 100, Event::Hit), NOW);
        assert_eq!((curve.hit_ratio(900), curve.hit_ratio(1_300)), (Some(0.0), Some(1.0)));
    }

    #[test]
    fn it_follows_the_traffic() {
        let mut curve = Curve::new(1, NOW);
        let hits = |curve: &mut Curve, event, now| {
            for round in 0..3_600u64 {
                curve.note_lookups(1, 0);
                curve.note(&sample(1, 10, event), now + round * 1_000);
                curve.tick(u64::MAX, 0, now + round * 1_000);
            }
        };
        curve.note(&sample(1, 10, Event::Write), NOW);
        hits(&mut curve, Event::Hit, NOW);
        assert!(curve.hit_ratio(1_000).unwrap() > 0.99);
        hits(&mut curve, Event::Miss, NOW + 3_600_000);
        assert!(curve.hit_ratio(1_000).unwrap() < 0.02);
    }

    /// Keys that never come back don't push those that do out of the sample for ever.
    #[test]
    fn what_is_beyond_the_horizon_is_forgotten() {
        let mut curve = Curve::new(1, NOW);
        curve.tick(1_000_000, 0, NOW);
        for number in 0..200_000 {
            curve.note(&sample(number, 1_000, Event::Write), NOW);
        }
        let basis = curve.basis();
        assert!((990..=1000).contains(&basis.keys) && basis.rate > 0.99, "{basis:?}");
    }

    #[test]
    fn the_sample_grows_again_when_there_are_few_keys() {
        let mut curve = Curve::new(1, NOW);
        (0..100_000).for_each(|number| curve.note(&sample(number, 10, Event::Write), NOW));
        let before = curve.basis().rate;
        assert!(before < 0.1, "{before}");
        curve.forget(|db| db == 0);
        for second in 0..3_000 {
            curve.note_lookups(1_000, 0);
            curve.tick(u64::MAX, 0, NOW + second * 1_000);
        }
        assert!(curve.basis().rate > 0.99);
    }

    /// A key that takes half of the traffic leaves the sample, and counts as a hit at the shortest distance.
    #[test]
    fn a_very_hot_key_costs_little() {
        let mut curve = Curve::new(1, NOW);
        let cold = 3_000;
        let second = |curve: &mut Curve, at: u64| {
            for step in 0..20_000u64 {
                let number = if step % 2 == 0 { 1 } else { 2 + (step / 2 + at * 10_000) % cold };
                curve.note_lookups(1, 0);
                curve.note(&sample(number, 100, Event::Hit), NOW);
            }
            curve.tick(u64::MAX, 0, NOW + at * 1_000);
        };
        second(&mut curve, 1);
        assert!(!curve.rate().takes(hash(1)));
        // The rest is sampled less and less, until it takes its part.
        (2..12).for_each(|at| second(&mut curve, at));
        assert!(curve.basis().rate < 0.1, "{:?}", curve.basis());
        let half = curve.hit_ratio(20_000).unwrap();
        assert!((half - 0.5).abs() < 0.05, "{half}");
        assert!(curve.hit_ratio(600_000).unwrap() > 0.95);
    }

    #[test]
    fn writes_cost_little_too() {
        let mut curve = Curve::new(1, NOW);
        for number in 0..40_000 {
            curve.note(&sample(number % 5_000, 100, Event::Write), NOW);
            curve.keep_cheap();
        }
        assert!(curve.basis().rate < 0.02, "{:?}", curve.basis());
    }

    #[test]
    fn buckets_are_in_order_and_narrow() {
        let mut last = 0;
        for bytes in (8..5_000).chain((13..63).map(|bits| 1 << bits)) {
            let bucket = Histogram::bucket(bytes);
            assert!(bucket >= last);
            last = bucket;
            let (begin, end) = (Histogram::begin(bucket), Histogram::begin(bucket + 1));
            assert!(begin <= bytes as f64 && (bytes as f64) < end && end / begin <= 1.13);
        }
    }
}
