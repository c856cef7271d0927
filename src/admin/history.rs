//! The last minutes, for whoever opens the page: a reading of the counters each second, in a ring.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    cache::counter::Lookups,
    clock,
    command::{
        figures::used_memory, histogram::Durations, namespace_figures::BehindFigures,
        shared::Shared,
    },
};

/// How often a reading is taken.
const INTERVAL: Duration = Duration::from_secs(1);
/// Readings that are kept: ten minutes.
const KEPT: usize = 600;

/// What happened in a second, each figure for a second, and what there was at its end.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Reading {
    /// Its end in unix milliseconds; no two readings have the same.
    pub(super) at: u64,
    commands: u64,
    /// Lookups by the tier that answered them.
    l1: u64,
    l2: u64,
    l3: u64,
    misses: u64,
    /// How long commands took, in microseconds; nothing if none was timed.
    p50: Option<f64>,
    p99: Option<f64>,
    p999: Option<f64>,
    received: u64,
    sent: u64,
    /// What the program has allocated, and what of it the limit counts.
    memory: u64,
    counted: u64,
    connections: u64,
    /// Keys that are written behind and that their stores don't have yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    dirty: Option<u64>,
    /// How many seconds the oldest of them has waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<f64>,
}

/// Readings, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Reading>>);

impl History {
    /// Those that were taken after this, unix milliseconds.
    pub(super) fn since(&self, at: u64) -> Vec<Reading> {
        let readings = self.0.lock();
        let first = readings.partition_point(|reading| reading.at <= at);
        readings.range(first..).cloned().collect()
    }

    /// Adds a reading; the oldest makes room.
    fn push(&self, mut reading: Reading) {
        let mut readings = self.0.lock();
        if let Some(last) = readings.back() {
            // The machine's clock may have been set back.
            reading.at = reading.at.max(last.at + 1);
        }
        if readings.len() == KEPT {
            readings.pop_front();
        }
        readings.push_back(reading);
    }
}

/// Takes a reading each second, until the task is dropped.
pub(super) async fn keep(history: Arc<History>, shared: Arc<Shared>) {
    let _alive = shared.cache.vitals().guard("the task that keeps the history of the page");
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.tick().await;
    let mut before = Counts::now(&shared);
    loop {
        interval.tick().await;
        let now = Counts::now(&shared);
        history.push(now.since(&before, &shared));
        before = now;
    }
}

/// Counters at a moment.
struct Counts {
    at: Instant,
    commands: u64,
    received: u64,
    sent: u64,
    lookups: Lookups,
    durations: Durations,
}

impl Counts {
    fn now(shared: &Shared) -> Self {
        Self {
            at: Instant::now(),
            commands: shared.sum(|worker| worker.commands.get()),
            received: shared.sum(|worker| worker.received.get()),
            sent: shared.sum(|worker| worker.sent.get()),
            lookups: shared.all_lookups(),
            durations: shared.all_durations(),
        }
    }

    fn since(&self, before: &Self, shared: &Shared) -> Reading {
        let passed = self.at.duration_since(before.at).as_secs_f64();
        let rate = |figure: fn(&Self) -> u64| rate(figure(self), figure(before), passed);
        let durations = self.durations.since(&before.durations);
        let micros = |share| {
            let quantile = durations.quantile(share);
            (durations.count() > 0).then(|| quantile.as_nanos() as f64 / 1e3)
        };
        let writes_behind = shared.cache.policies().behind().is_some();
        let backlog = writes_behind.then(|| BehindFigures::sum(shared).backlog);
        Reading {
            at: clock::micros() / 1000,
            commands: rate(|counts| counts.commands),
            l1: rate(|counts| counts.lookups.l1),
            l2: rate(|counts| counts.lookups.l2),
            l3: rate(|counts| counts.lookups.l3),
            misses: rate(|counts| counts.lookups.misses()),
            p50: micros(0.5),
            p99: micros(0.99),
            p999: micros(0.999),
            received: rate(|counts| counts.received),
            sent: rate(|counts| counts.sent),
            memory: used_memory(shared.cache.memory()),
            counted: shared.cache.memory().used() as u64,
            connections: shared.clients.len() as u64,
            dirty: backlog.map(|backlog| backlog.records),
            lag: backlog.map(|backlog| backlog.lag.as_secs_f64()),
        }
    }
}

/// How much a counter rose in a second; one that has fallen was started again.
fn rate(now: u64, before: u64, passed: f64) -> u64 {
    let rise = if now < before { now } else { now - before };
    if passed > 0.0 { (rise as f64 / passed).round() as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{call, session};

    fn reading(at: u64) -> Reading {
        let session = session();
        let counts = Counts::now(&session.shared);
        Reading { at, ..counts.since(&counts, &session.shared) }
    }

    #[test]
    fn the_newest_are_kept_and_those_since_are_given() {
        let history = History::default();
        let one = reading(0);
        for at in 1..=KEPT as u64 + 5 {
            history.push(Reading { at: at * 1000, ..one.clone() });
        }
        let all = history.since(0);
        assert_eq!((all.len(), all[0].at), (KEPT, 6_000));
        let ats: Vec<u64> = history.since(603_000).iter().map(|reading| reading.at).collect();
        assert_eq!(ats, [604_000, 605_000]);
        assert!(history.since(u64::MAX).is_empty());
        // The clock was set back.
        history.push(Reading { at: 7, ..one });
        assert_eq!(history.since(605_000)[0].at, 605_001);
    }

    #[test]
    fn a_reading_is_what_rose_in_its_second() {
        let mut session = session();
        let mut before = Counts::now(&session.shared);
        before.at -= Duration::from_secs(2);
        for _ in 0..20 {
            call(&mut session, &["GET", "nothing"]);
        }
        let reading = Counts::now(&session.shared).since(&before, &session.shared);
        assert_eq!((reading.misses, reading.l1 + reading.l2 + reading.l3), (10, 0));
        assert_eq!((reading.dirty, reading.lag), (None, None));
    }

    #[test]
    fn rates_survive_a_reset() {
        assert_eq!(rate(30, 10, 2.0), 10);
        assert_eq!(rate(4, 1_000, 1.0), 4);
        assert_eq!(rate(4, 1, 0.0), 0);
    }
}
