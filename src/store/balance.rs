//! Which of several copies answers a request: in turn, in turn by weight, or the one with the fewest
//! requests in progress. It knows nothing of what the copies are.
//!
//! In turn is by weight with equal weights: each choice gives every candidate its weight, takes the
//! richest, and lets that one pay for all (the smooth weighted round robin of nginx), so that weights 3
//! and 1 give `a a b a` and not `a a a b`.

use parking_lot::Mutex;

/// How requests are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// One after the other.
    #[default]
    RoundRobin,
    /// One after the other, as often as its weight says.
    Weighted,
    /// The one with the fewest requests in progress; of several, the one that had the fewest so far.
    LeastConnections,
}

impl Spread {
    /// The names, as the configuration has them.
    pub const NAMES: &'static [&'static str] = &["round-robin", "weighted", "least-connections"];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        let at = Self::NAMES.iter().position(|known| *known == name)?;
        [Self::RoundRobin, Self::Weighted, Self::LeastConnections].get(at).copied()
    }
}

/// What a copy has to do and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Requests that have started and have not completed.
    pub in_progress: u64,
    /// Requests that have started.
    pub requests: u64,
}

/// See the module's doc.
#[derive(Debug)]
pub struct Balance {
    spread: Spread,
    weights: Vec<u32>,
    /// What each copy has on its account.
    credits: Mutex<Vec<i64>>,
}

impl Balance {
    /// Over as many copies as there are weights.
    pub fn new(spread: Spread, weights: Vec<u32>) -> Self {
        let credits = Mutex::new(vec![0; weights.len()]);
        Self { spread, weights, credits }
    }

    /// Chooses among the copies that may be chosen, and starts a request there by `start` before anybody
    /// else chooses.
    pub fn choose<T>(
        &self,
        may: impl Fn(usize) -> bool,
        load: impl Fn(usize) -> Load,
        start: impl FnOnce(usize) -> T,
    ) -> Option<T> {
        let mut credits = self.credits.lock();
        let candidates = (0..credits.len()).filter(|copy| may(*copy));
        let chosen = match self.spread {
            Spread::LeastConnections => candidates.min_by_key(|copy| load(*copy))?,
            Spread::RoundRobin | Spread::Weighted => {
                let mut all = 0;
                let mut richest: Option<usize> = None;
                for copy in candidates {
                    let weight = match self.spread {
                        Spread::Weighted => i64::from(self.weights[copy].max(1)),
                        _ => 1,
                    };
                    all += weight;
                    credits[copy] += weight;
                    // Of several the first.
                    if richest.is_none_or(|richest| credits[copy] > credits[richest]) {
                        richest = Some(copy);
                    }
                }
                let richest = richest?;
                credits[richest] -= all;
                richest
            }
        };
        Some(start(chosen))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn choices(balance: &Balance, count: usize, may: impl Fn(usize) -> bool) -> Vec<usize> {
        let choose = || balance.choose(&may, |_| Load::default(), |copy| copy);
        (0..count).map(|_| choose().expect("somebody may")).collect()
    }

    #[test]
    fn round_robin_goes_round() {
        let balance = Balance::new(Spread::RoundRobin, vec![9, 1, 1]);
        assert_eq!(choices(&balance, 7, |_| true), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn whoever_may_not_is_left_out() {
        let balance = Balance::new(Spread::RoundRobin, vec![1, 1, 1]);
        assert_eq!(choices(&balance, 4, |copy| copy != 1), [0, 2, 0, 2]);
        assert_eq!(choices(&balance, 3, |_| true), [0, 1, 2]);
        assert_eq!(balance.choose(|_| false, |_| Load::default(), |copy| copy), None);
    }

    #[test]
    fn weights_are_shares_and_take_turns() {
        let balance = Balance::new(Spread::Weighted, vec![5, 1, 1]);
        assert_eq!(choices(&balance, 7, |_| true), [0, 0, 1, 0, 2, 0, 0]);
        let balance = Balance::new(Spread::Weighted, vec![3, 2, 1]);
        let chosen = choices(&balance, 600, |_| true);
        let count = |copy| chosen.iter().filter(|chosen| **chosen == copy).count();
        assert_eq!([count(0), count(1), count(2)], [300, 200, 100]);
    }

    #[test]
    fn the_fewest_in_progress_then_the_fewest_so_far() {
        let balance = Balance::new(Spread::LeastConnections, vec![1, 1, 1]);
        let loads = RefCell::new([Load::default(); 3]);
        let start = |copy: usize| {
            loads.borrow_mut()[copy].in_progress += 1;
            loads.borrow_mut()[copy].requests += 1;
            copy
        };
        let choose = || balance.choose(|_| true, |copy| loads.borrow()[copy], start);
        assert_eq!([choose(), choose(), choose(), choose()], [Some(0), Some(1), Some(2), Some(0)]);
        // The second and the third complete; the second gets the next, since both had one.
        loads.borrow_mut()[1].in_progress -= 1;
        loads.borrow_mut()[2].in_progress -= 1;
        assert_eq!([choose(), choose(), choose()], [Some(1), Some(2), Some(1)]);
    }
}
