//! INFO's sections of one line for each command, error, database or namespace.

use super::{Session, histogram::Durations, info::Text, shared::Shared, table};

/// `# Commandstats`: the commands that were called, or refused.
pub(super) fn commands(session: &Session, text: &mut Text) {
    let shared = &session.shared;
    for entry in table::all() {
        let counts = Counts::of(shared, usize::from(entry.index));
        if counts.calls + counts.rejected + counts.failed > 0 {
            text.field(
                &format!("cmdstat_{}", entry.full_name()),
                counts.describe(&shared.durations(usize::from(entry.index))),
            );
        }
    }
}

/// How long all commands lasted together, in microseconds.
pub(super) fn micros(shared: &Shared) -> f64 {
    let all = 0..table::all().len();
    all.map(|index| Counts::of(shared, index).micros(&shared.durations(index))).sum()
}

/// What all workers have counted of one command.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    calls: u64,
    rejected: u64,
    failed: u64,
}

impl Counts {
    fn of(shared: &Shared, index: usize) -> Self {
        let mut sum = Self::default();
        for row in shared.workers.iter().filter_map(|worker| worker.rows.get(index)) {
            sum.calls += row.calls.get();
            sum.rejected += row.rejected.get();
            sum.failed += row.failed.get();
        }
        sum
    }

    /// How long all calls took, in microseconds: those that weren't timed as long as those that were, in the mean.
    fn micros(&self, durations: &Durations) -> f64 {
        durations.mean() / 1_000.0 * self.calls as f64
    }

    fn describe(&self, durations: &Durations) -> String {
        let (micros, mean) = (self.micros(durations), durations.mean() / 1_000.0);
        format!(
            "calls={},usec={},usec_per_call={mean:.2},rejected_calls={},failed_calls={}",
            self.calls, micros as u64, self.rejected, self.failed
        )
    }
}

/// `# Latencystats`: how long the commands took that were called, in microseconds; at most twice what it was.
pub(super) fn latencies(session: &Session, text: &mut Text) {
    let percentiles = &session.settings.latency_tracking_info_percentiles;
    if !session.settings.latency_tracking || percentiles.iter().next().is_none() {
        return;
    }
    for entry in table::all() {
        let durations = session.shared.durations(usize::from(entry.index));
        if durations.count() == 0 {
            continue;
        }
        let shown = percentiles.iter().map(|(name, percent)| {
            let micros = durations.quantile(percent / 100.0).as_nanos() as f64 / 1e3;
            format!("p{name}={micros:.3}")
        });
        let shown = shown.collect::<Vec<_>>().join(",");
        text.field(&format!("latency_percentiles_usec_{}", entry.full_name()), shown);
    }
}

/// `# Errorstats`: the errors that were answered, by code.
pub(super) fn errors(session: &Session, text: &mut Text) {
    let errors = session.shared.errors.iter();
    let mut errors: Vec<_> = errors.map(|error| (error.key().clone(), *error.value())).collect();
    errors.sort();
    for (code, count) in errors {
        text.field(&format!("errorstat_{code}"), format_args!("count={count}"));
    }
}

/// `# Keyspace`: the databases that aren't empty.
pub(super) fn keyspace(session: &Session, text: &mut Text) {
    let memory = session.cache().memory();
    for db in 0..memory.databases() {
        let (keys, expires) = memory.len(db);
        if keys > 0 {
            let ttl = memory.mean_ttl(db, session.now);
            let counts = format_args!("keys={keys},expires={expires},avg_ttl={ttl}");
            text.field(&format!("db{db}"), counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::command::{
        histogram::Histogram,
        testing::{call, put, session},
    };

    #[test]
    fn time_is_measured_or_estimated() {
        let counts = Counts { calls: 10, rejected: 1, failed: 2 };
        let histogram = Histogram::default();
        histogram.note(Duration::from_micros(2), 4);
        let mut durations = Durations::default();
        durations.add(&histogram);
        assert_eq!(
            counts.describe(&durations),
            "calls=10,usec=20,usec_per_call=2.00,rejected_calls=1,failed_calls=2"
        );
        let none = "calls=0,usec=0,usec_per_call=0.00,rejected_calls=0,failed_calls=0";
        assert_eq!(Counts::default().describe(&Durations::default()), none);
    }

    #[test]
    fn commands_and_errors_are_counted() {
        let mut session = session();
        call(&mut session, &["CONFIG", "GET", "timeout"]);
        call(&mut session, &["CONFIG", "SET", "nope", "1"]);
        call(&mut session, &["TIME", "x"]);
        let reply = call(&mut session, &["INFO", "commandstats", "errorstats"]);
        assert!(reply.contains("\r\ncmdstat_config|get:calls=1,"), "{reply}");
        let lines: Vec<&str> = reply.split("\r\n").collect();
        let line = |name: &str| lines.iter().find(|line| line.starts_with(name)).copied();
        assert!(line("cmdstat_config|set:").unwrap().ends_with("rejected_calls=0,failed_calls=1"));
        assert!(line("cmdstat_time:").unwrap().ends_with("rejected_calls=1,failed_calls=0"));
        assert_eq!(line("errorstat_ERR:"), Some("errorstat_ERR:count=2"));
    }

    #[test]
    fn databases() {
        let mut session = session();
        session.select(3);
        put(&session, "a", "x");
        let reply = call(&mut session, &["INFO", "keyspace"]);
        assert!(reply.contains("# Keyspace\r\ndb3:keys=1,expires=0,avg_ttl=0\r\n"), "{reply}");
    }
}
