//! How long things take: fixed buckets, one writer, and a sampler for what is too short to be timed each time.
//!
//! Two looks at the clock cost a tenth of a GET. So of fast commands one in [`INTERVAL`] is timed, at
//! distances that chance decides, and counts for all since the last one: what is added up over all of them
//! is right in the mean, whatever pattern the commands follow.

use std::time::Duration;

use crate::{cache::counter::Counter, tier::shelf::next_random};

/// The upper bound of the first bucket in nanoseconds; each further one is twice as high.
const FIRST: u64 = 250;
/// Buckets with an upper bound; the last is of two seconds.
pub const BOUNDED: usize = 24;
/// Of so many fast commands one is timed, in the mean.
const INTERVAL: u64 = 64;

/// Durations by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BOUNDED + 1],
    nanos: Counter,
}

impl Histogram {
    /// Counts a duration so many times.
    #[inline]
    pub fn note(&self, took: Duration, times: u64) {
        let nanos = took.as_nanos() as u64;
        self.buckets[bucket(nanos)].add(times);
        self.nanos.add(nanos * times);
    }

    /// Starts again from zero.
    pub fn reset(&self) {
        self.buckets.iter().chain([&self.nanos]).for_each(Counter::reset);
    }
}

/// The bucket of a duration: the first whose bound isn't below it.
#[inline]
fn bucket(nanos: u64) -> usize {
    let doublings = u64::BITS - (nanos.saturating_sub(1) / FIRST).leading_zeros();
    (doublings as usize).min(BOUNDED)
}

/// The upper bound of a bucket.
pub fn bound(bucket: usize) -> Duration {
    Duration::from_nanos(FIRST << bucket)
}

/// What several histograms have together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many there are in each bucket.
    pub buckets: [u64; BOUNDED + 1],
    /// Their sum in nanoseconds.
    pub nanos: u64,
}

impl Durations {
    /// Adds what a histogram has.
    pub fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += bucket.get();
        }
        self.nanos += histogram.nanos.get();
    }

    /// Those that came after `before`; all, where the histograms started again in between.
    pub fn since(&self, before: &Self) -> Self {
        let is_later = |(now, before): (&u64, &u64)| now >= before;
        if !self.buckets.iter().zip(&before.buckets).all(is_later) {
            return self.clone();
        }
        let mut since = self.clone();
        since.buckets.iter_mut().zip(&before.buckets).for_each(|(now, before)| *now -= before);
        since.nanos = since.nanos.saturating_sub(before.nanos);
        since
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many took up to so many whole microseconds, where that is more than for fewer.
    pub fn by_micros(&self) -> Vec<(u64, u64)> {
        let mut counts: Vec<(u64, u64)> = Vec::new();
        let mut below = 0;
        for (at, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            below += count;
            let micros = bound(at).as_micros().max(1) as u64;
            match counts.last_mut().filter(|last| last.0 == micros) {
                Some(last) => last.1 = below,
                None => counts.push((micros, below)),
            }
        }
        counts
    }

    /// The mean in nanoseconds; 0 of none.
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.nanos as f64 / count as f64,
        }
    }

    /// The bound of the bucket below which this share of them (0 to 1) is; zero of none.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut sum = 0;
        let within = |count: &u64| {
            sum += count;
            sum >= wanted
        };
        let at = self.buckets.iter().position(within);
        at.map_or(Duration::ZERO, |bucket| bound(bucket.min(BOUNDED - 1)))
    }
}

/// Says which commands are timed.
#[derive(Debug, Default)]
pub struct Sampler {
    left: Counter,
    interval: Counter,
    random: Counter,
}

impl Sampler {
    /// Whether this one is timed, and for how many it counts.
    #[inline]
    pub fn take(&self) -> Option<u64> {
        let left = self.left.get();
        if left > 1 {
            self.left.set(left - 1);
            return None;
        }
        Some(self.draw())
    }

    #[cold]
    fn draw(&self) -> u64 {
        let random = match self.random.get() {
            0 => crate::clock::micros() | 1,
            random => next_random(random),
        };
        self.random.set(random);
        let interval = self.interval.get();
        let next = 1 + (random >> 32) % (2 * INTERVAL - 1);
        self.left.set(next);
        self.interval.set(next);
        interval.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_holds_it() {
        for (nanos, at) in [(0, 0), (1, 0), (250, 0), (251, 1), (500, 1), (501, 2), (1_000, 2)] {
            assert_eq!(bucket(nanos), at, "{nanos}");
        }
        for at in 0..BOUNDED {
            let bound = bound(at).as_nanos() as u64;
            assert_eq!((bucket(bound), bucket(bound + 1)), (at, at + 1));
        }
        assert_eq!(bucket(u64::MAX), BOUNDED);
    }

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let (histogram, mut all) = (Histogram::default(), Durations::default());
        assert_eq!((all.quantile(0.5), all.mean()), (Duration::ZERO, 0.0));
        histogram.note(Duration::from_nanos(200), 98);
        histogram.note(Duration::from_micros(3), 1);
        histogram.note(Duration::from_secs(9), 1);
        all.add(&histogram);
        assert_eq!(all.count(), 100);
        assert_eq!(all.quantile(0.0), Duration::from_nanos(250));
        assert_eq!(all.quantile(0.98), Duration::from_nanos(250));
        assert_eq!(all.quantile(0.99), Duration::from_micros(4));
        assert_eq!(all.quantile(1.0), bound(BOUNDED - 1));
        assert_eq!(all.by_micros(), [(1, 98), (4, 99), (4_194_304, 100)]);
        assert_eq!(all.nanos, 98 * 200 + 3_000 + 9_000_000_000);
    }

    #[test]
    fn what_came_since() {
        let (histogram, mut before, mut after) =
            (Histogram::default(), Durations::default(), Durations::default());
        histogram.note(Duration::from_micros(1), 5);
        before.add(&histogram);
        histogram.note(Duration::from_micros(9), 2);
        after.add(&histogram);
        let since = after.since(&before);
        assert_eq!((since.count(), since.nanos), (2, 18_000));
        assert_eq!(since.quantile(0.5), Duration::from_micros(16));
        // Started again in between.
        assert_eq!(before.since(&after), before);
    }

    #[test]
    fn what_is_sampled_counts_for_all_and_follows_no_pattern() {
        const ALL: u64 = 200_000;
        let sampler = Sampler::default();
        // Of each four the first is of another kind.
        let (mut firsts, mut sum, mut samples) = (0, 0, 0);
        for at in 0..ALL {
            if let Some(times) = sampler.take() {
                samples += 1;
                sum += times;
                firsts += if at % 4 == 0 { times } else { 0 };
            }
        }
        assert!(sum <= ALL && sum > ALL - 2 * INTERVAL, "{sum}");
        assert!((ALL / INTERVAL / 2..ALL / INTERVAL * 2).contains(&samples), "{samples}");
        assert!((ALL / 5..ALL * 3 / 10).contains(&firsts), "{firsts}");
    }
}
