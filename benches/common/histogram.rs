//! A histogram of durations with logarithmic buckets: fixed memory, no sample is lost, and any
//! quantile is off by 3 % at most.

use std::time::Duration;

/// Each power of two is cut into this many buckets, as a power of two itself.
const PRECISION: u32 = 5;
const STEPS: usize = 1 << PRECISION;
/// Enough for durations to 2^40 ns, some 18 minutes; longer ones count in the last bucket.
const BUCKETS: usize = STEPS * (40 - PRECISION as usize + 1);

/// Counts of durations in nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    /// A histogram with nothing in it.
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let nanos = duration.as_nanos() as u64;
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// The duration in microseconds that a share `q` of all stays at or below; 0 if there are none.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = (q * self.total as f64).ceil() as u64;
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank.max(1)
        });
        reached.map_or(0.0, |index| upper(index).min(self.max) as f64 / 1e3)
    }

    /// The longest duration in microseconds, exactly.
    pub fn max(&self) -> f64 {
        self.max as f64 / 1e3
    }
}

/// The bucket of a duration: the first `2 * STEPS` hold one nanosecond each, the next `STEPS` two,
/// and so on.
fn bucket(nanos: u64) -> usize {
    let shift = nanos.checked_ilog2().unwrap_or(0).saturating_sub(PRECISION);
    (shift as usize * STEPS + (nanos >> shift) as usize).min(BUCKETS - 1)
}

/// The longest duration of a bucket.
fn upper(index: usize) -> u64 {
    let shift = (index / STEPS).saturating_sub(1);
    let step = (index - shift * STEPS) as u64;
    ((step + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_in_a_narrow_bucket() {
        for nanos in (0..5_000).chain((5_000..1 << 39).step_by(987_654_321)) {
            let index = bucket(nanos);
            assert!(upper(index) >= nanos, "{nanos}");
            assert!(index == 0 || upper(index - 1) < nanos, "{nanos}");
            assert!(upper(index) - nanos <= nanos / 31, "{nanos}");
        }
    }

    #[test]
    fn quantiles_of_a_ramp() {
        let mut histogram = Histogram::new();
        (1..=1_000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        for (q, micros) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let off: f64 = histogram.quantile(q) / micros - 1.0;
            assert!((0.0..0.04).contains(&off), "{q}: {}", histogram.quantile(q));
        }
        assert_eq!(histogram.max(), 1_000.0);
    }

    #[test]
    fn endless_durations_count_in_the_last_bucket() {
        let mut histogram = Histogram::new();
        histogram.record(Duration::from_secs(1 << 30));
        assert!(histogram.quantile(0.5) > 1e9);
        assert_eq!(Histogram::new().quantile(0.5), 0.0);
    }
}
