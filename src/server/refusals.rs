//! Connections that weren't taken, in the log: a burst of them is one line, not one for each.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The least time between two lines about the same.
const EVERY: Duration = Duration::from_secs(10);

/// What was not taken and not yet told.
#[derive(Default)]
pub(super) struct Refusals(Mutex<BTreeMap<&'static str, Burst>>);

struct Burst {
    count: u64,
    /// When the first of these came.
    began: Instant,
    /// What is known of the last.
    last: String,
    /// When there was a line before.
    told: Option<Instant>,
}

impl Refusals {
    /// Counts a connection that wasn't taken, by the reason; `last` is what is known of this one.
    pub(super) fn note(&self, why: &'static str, last: String) {
        self.note_at(why, last, Instant::now());
    }

    fn note_at(&self, why: &'static str, last: String, now: Instant) {
        let mut all = self.0.lock();
        let burst = all.entry(why).or_insert_with(|| Burst {
            count: 0,
            began: now,
            last: String::new(),
            told: None,
        });
        if burst.count == 0 {
            burst.began = now;
        }
        burst.count += 1;
        burst.last = last;
    }

    /// Tells what there is to tell, and may be told again by now.
    pub(super) fn tell(&self) {
        self.take(Instant::now(), EVERY);
    }

    /// Tells what is left to tell.
    pub(super) fn tell_all(&self) {
        self.take(Instant::now(), Duration::ZERO);
    }

    /// Writes a line for each reason that had none for `every`; returns how many connections those were.
    fn take(&self, now: Instant, every: Duration) -> Vec<u64> {
        let mut counts = Vec::new();
        for (why, burst) in &mut *self.0.lock() {
            let is_early = burst.told.is_some_and(|told| now.duration_since(told) < every);
            if burst.count == 0 || is_early {
                continue;
            }
            let (count, last) = (burst.count, &burst.last);
            let seconds = now.duration_since(burst.began).as_secs_f64().ceil().max(1.0) as u64;
            tracing::warn!(count, seconds, last, "connections not taken: {why}");
            burst.told = Some(now);
            counts.push(std::mem::take(&mut burst.count));
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_soon_and_then_seldom() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let take = |millis| refusals.take(at(millis), EVERY);
        assert!(take(0).is_empty());
        let mut told = Vec::new();
        for millis in 0..35_000 {
            refusals.note_at("full", String::new(), at(millis));
            if millis % 1_000 == 999 {
                told.extend(take(millis));
            }
        }
        assert_eq!(told, [1_000, 10_000, 10_000, 10_000]);
        // Another reason has lines of its own; at the end nothing is left out.
        refusals.note_at("denied", String::new(), at(35_000));
        assert_eq!(take(35_000), [1]);
        assert_eq!(refusals.take(at(35_001), Duration::ZERO), [4_000]);
        assert!(take(99_000).is_empty());
    }
}
