//! Random numbers for the load: a small generator, and keys drawn by Zipf's law over a permuted order.
//!
//! Everything is seeded, so that two runs ask for the same keys.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub struct Rng(u64);

impl Rng {
    /// A generator whose numbers follow from `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number in `0..n`; the bias of the multiplication is below `n / 2^64`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A number in `[0, 1)` of 53 random bits.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Ranks from `0..n` where rank `r` is drawn in proportion to `(r + 1)^-skew`.
///
/// Rejection-inversion, so that ten million ranks need no table (Hörmann and Derflinger:
/// "Rejection-inversion to generate variates from monotone discrete distributions", 1996).
pub struct Zipf {
    ranks: u64,
    skew: f64,
    /// The area under the hat at its left end, less the first rank's own share.
    left: f64,
    /// The area up to its right end.
    right: f64,
    /// How far left of its rank a point may lie and still be taken unseen.
    sure: f64,
}

impl Zipf {
    /// A distribution over `ranks` (at least 1) with `skew` above 0 and not exactly 1.
    pub fn new(ranks: u64, skew: f64) -> Self {
        let mut zipf = Self { ranks, skew, left: 0.0, right: 0.0, sure: 0.0 };
        zipf.left = zipf.area(1.5) - 1.0;
        zipf.right = zipf.area(ranks as f64 + 0.5);
        zipf.sure = 2.0 - zipf.inverse(zipf.area(2.5) - 2f64.powf(-skew));
        zipf
    }

    /// The next rank; 0 is the most frequent.
    pub fn sample(&self, rng: &mut Rng) -> u64 {
        loop {
            let area = self.right + rng.fraction() * (self.left - self.right);
            let point = self.inverse(area);
            let rank = point.round().clamp(1.0, self.ranks as f64);
            let bar = || self.area(rank + 0.5) - rank.powf(-self.skew);
            if rank - point <= self.sure || area >= bar() {
                return rank as u64 - 1;
            }
        }
    }

    /// The integral of `x^-skew` from 1 to `x`.
    fn area(&self, x: f64) -> f64 {
        (x.powf(1.0 - self.skew) - 1.0) / (1.0 - self.skew)
    }

    /// The point up to which the integral is `area`.
    fn inverse(&self, area: f64) -> f64 {
        (1.0 + area * (1.0 - self.skew)).powf(1.0 / (1.0 - self.skew))
    }
}

/// A prime near 2^32 over the golden ratio: multiples of it modulo any smaller number are well spread.
const STEP: u64 = 2_654_435_761;

/// The key of a rank: a permutation of `0..keys`, so that keys loaded together aren't hot together.
/// `keys` is below [`STEP`], which therefore shares no factor with it.
pub fn permuted(rank: u64, keys: u64) -> u64 {
    debug_assert!(rank < keys && keys < STEP);
    rank * STEP % keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_ranks_come_as_often_as_the_law_says() {
        let (ranks, draws) = (1_000, 400_000);
        let zipf = Zipf::new(ranks, 0.99);
        let mut rng = Rng::new(7);
        let mut seen = vec![0u32; ranks as usize];
        (0..draws).for_each(|_| seen[zipf.sample(&mut rng) as usize] += 1);
        let total: f64 = (1..=ranks).map(|r| (r as f64).powf(-0.99)).sum();
        for rank in [0, 1, 2, 9, 99] {
            let expected = f64::from(draws) * (rank as f64 + 1.0).powf(-0.99) / total;
            let off = (f64::from(seen[rank]) - expected).abs();
            assert!(off < 5.0 * expected.sqrt(), "rank {rank}: {} for {expected}", seen[rank]);
        }
    }

    #[test]
    fn permutation_reaches_every_key_once() {
        let keys = 10_000;
        let mut all: Vec<u64> = (0..keys).map(|rank| permuted(rank, keys)).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..keys));
    }

    #[test]
    fn below_stays_below() {
        let mut rng = Rng::new(1);
        assert!((0..1_000).all(|_| rng.below(3) < 3));
    }
}
