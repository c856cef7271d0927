//! The latency monitor: how long slow events took, by event and second
//! (<https://redis.io/docs/latest/operate/oss_and_stack/management/optimization/latency-monitor/>).
//!
//! An event is kept if it took at least `latency-monitor-threshold`; of a second, the worst.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;

/// Samples that are kept of each event.
const SAMPLES: usize = 160;

/// The worst of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When, unix seconds.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

/// What is kept of an event.
#[derive(Clone, Debug, Default)]
pub struct Event {
    /// The last samples, the oldest first; never empty.
    pub samples: VecDeque<Sample>,
    /// The longest that it ever took, in milliseconds.
    pub worst: u64,
}

impl Event {
    fn note(&mut self, sample: Sample) {
        self.worst = self.worst.max(sample.millis);
        match self.samples.back_mut().filter(|last| last.at == sample.at) {
            Some(last) => last.millis = last.millis.max(sample.millis),
            None => {
                if self.samples.len() == SAMPLES {
                    self.samples.pop_front();
                }
                self.samples.push_back(sample);
            }
        }
    }
}

/// The monitor.
#[derive(Debug, Default)]
pub struct Latency(Mutex<BTreeMap<&'static str, Event>>);

impl Latency {
    /// Keeps an event that ended at `now` (unix milliseconds) if it took at least `threshold`, unless
    /// that is zero.
    #[inline]
    pub fn note(&self, event: &'static str, took: Duration, threshold: Duration, now: u64) {
        if !threshold.is_zero() && took >= threshold {
            self.keep(event, Sample { at: now / 1000, millis: took.as_millis() as u64 });
        }
    }

    #[cold]
    fn keep(&self, event: &'static str, sample: Sample) {
        self.0.lock().entry(event).or_default().note(sample);
    }

    /// The names of the events that have samples.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.lock().keys().copied().collect()
    }

    /// What is kept of an event; its name in any case.
    pub fn event(&self, name: &[u8]) -> Option<(&'static str, Event)> {
        let events = self.0.lock();
        let same =
            |(known, _): &(&&'static str, &Event)| known.as_bytes().eq_ignore_ascii_case(name);
        events.iter().find(same).map(|(known, event)| (*known, event.clone()))
    }

    /// All events, by name.
    pub fn events(&self) -> Vec<(&'static str, Event)> {
        self.0.lock().iter().map(|(name, event)| (*name, event.clone())).collect()
    }

    /// Forgets the events for which `forget` says so, and tells how many.
    pub fn reset(&self, forget: impl Fn(&str) -> bool) -> usize {
        let mut events = self.0.lock();
        let before = events.len();
        events.retain(|name, _| !forget(name));
        before - events.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn only_what_reaches_the_threshold_is_kept() {
        let latency = Latency::default();
        latency.note("command", ms(500), Duration::ZERO, 1_000);
        latency.note("command", ms(99), ms(100), 1_000);
        assert!(latency.names().is_empty());
        latency.note("command", ms(100), ms(100), 1_000);
        assert_eq!(latency.names(), ["command"]);
    }

    #[test]
    fn the_worst_of_a_second_and_a_bounded_number_of_seconds() {
        let latency = Latency::default();
        for second in 0..1_000 {
            for took in [20, 40, 30] {
                latency.note("command", ms(took + second % 7), ms(1), second * 1_000 + took);
            }
        }
        let (name, event) = latency.event(b"COMMAND").unwrap();
        assert_eq!((name, event.samples.len(), event.worst), ("command", SAMPLES, 46));
        assert_eq!(event.samples[0], Sample { at: 840, millis: 40 });
    }

    #[test]
    fn events_are_forgotten_by_name() {
        let latency = Latency::default();
        latency.note("a", ms(5), ms(1), 0);
        latency.note("b", ms(5), ms(1), 0);
        assert_eq!(latency.reset(|name| name == "c"), 0);
        assert_eq!(latency.reset(|name| name == "a"), 1);
        assert_eq!((latency.names(), latency.reset(|_| true)), (vec!["b"], 1));
    }
}
