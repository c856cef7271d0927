//! The latency monitor's samples for people: LATENCY GRAPH draws them, LATENCY DOCTOR explains them.

use std::fmt::Write;

use super::latency::{Event, Sample};
use crate::config::Settings;

/// Samples that a graph shows: one a column.
const COLUMNS: usize = 80;
/// Lines of a graph.
const LINES: u64 = 4;
/// A line's three levels, drawn at the top of a column.
const TOPS: [char; 3] = ['_', 'o', '#'];

/// The samples as columns, the oldest on the left, with their ages written downwards below.
pub fn graph(name: &str, event: &Event, now: u64) -> String {
    let from = event.samples.len().saturating_sub(COLUMNS);
    let samples: Vec<Sample> = event.samples.range(from..).copied().collect();
    let high = samples.iter().map(|sample| sample.millis).max().unwrap_or(0);
    let low = samples.iter().map(|sample| sample.millis).min().unwrap_or(0);
    let worst = event.worst;
    let mut text = format!("{name} - high {high} ms, low {low} ms (all time high {worst} ms)\n");
    text.push_str(&"-".repeat(COLUMNS));
    text.push('\n');
    let levels: Vec<u64> = samples.iter().map(|sample| level(sample.millis, low, high)).collect();
    for line in (0..LINES).rev() {
        text.extend(levels.iter().map(|level| piece(*level, line)));
        text.push('\n');
    }
    text.push_str(&" ".repeat(samples.len()));
    text.push('\n');
    let ages: Vec<String> =
        samples.iter().map(|sample| age(now.saturating_sub(sample.at))).collect();
    for line in 0..ages.iter().map(String::len).max().unwrap_or(0) {
        let letter = |age: &String| age.as_bytes().get(line).map_or(' ', |byte| char::from(*byte));
        text.extend(ages.iter().map(letter));
        text.push('\n');
    }
    text
}

/// The height of a column, in levels.
fn level(value: u64, low: u64, high: u64) -> u64 {
    let steps = LINES * TOPS.len() as u64;
    let height = u128::from(value - low) * u128::from(steps) / u128::from((high - low).max(1));
    (height as u64).min(steps - 1)
}

/// What a column of that height shows in a line; the lowest line is 0.
fn piece(level: u64, line: u64) -> char {
    let top = level / TOPS.len() as u64;
    match line.cmp(&top) {
        std::cmp::Ordering::Less => '|',
        std::cmp::Ordering::Equal => TOPS[level as usize % TOPS.len()],
        std::cmp::Ordering::Greater => ' ',
    }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What the events tell, and what to do about them.
pub fn doctor(events: &[(&'static str, Event)], settings: &Settings) -> String {
    let threshold = settings.latency_monitor_threshold;
    if events.is_empty() {
        return if threshold.is_zero() {
            "Latency isn't monitored. CONFIG SET latency-monitor-threshold <milliseconds> keeps \
             the events that take at least so long.\n"
                .to_owned()
        } else {
            format!("No event has taken {} ms or more.\n", threshold.as_millis())
        };
    }
    let mut text = String::from("Some events were slow:\n\n");
    for (number, (name, event)) in events.iter().enumerate() {
        // Writing to a string doesn't fail.
        let _ = writeln!(text, "{}. {}", number + 1, describe(name, event));
    }
    text.push_str("\nWhat may help:\n\n");
    for advice in advice(events, settings) {
        let _ = writeln!(text, "- {advice}");
    }
    text
}

fn describe(name: &str, event: &Event) -> String {
    let count = event.samples.len() as u64;
    let values = || event.samples.iter().map(|sample| sample.millis);
    let mean = values().sum::<u64>() / count.max(1);
    let deviation = values().map(|value| value.abs_diff(mean)).sum::<u64>() / count.max(1);
    let first = event.samples.front().map_or(0, |sample| sample.at);
    let last = event.samples.back().map_or(0, |sample| sample.at);
    let period = last.saturating_sub(first) as f64 / count.max(1) as f64;
    format!(
        "{name}: {count} latency spikes (average {mean}ms, mean deviation {deviation}ms, period \
         {period:.2} sec). Worst all time event {}ms.",
        event.worst
    )
}

fn advice(events: &[(&'static str, Event)], settings: &Settings) -> Vec<String> {
    let named = |name: &str| events.iter().any(|(known, _)| *known == name);
    let threshold = settings.latency_monitor_threshold;
    let mut advice = Vec::new();
    match settings.slowlog_log_slower_than {
        None => advice.push(
            "The slow log is off. CONFIG SET slowlog-log-slower-than 10000 keeps commands of 10 ms \
             and more."
                .to_owned(),
        ),
        Some(least) if !threshold.is_zero() && least > threshold => advice.push(format!(
            "The slow log keeps less than this monitor does. CONFIG SET slowlog-log-slower-than {} \
             makes them agree.",
            threshold.as_micros()
        )),
        Some(_) => {}
    }
    if named("command") {
        advice.push("SLOWLOG GET shows the commands that were slow, with their arguments.".into());
        advice.push("KEYS, FLUSHALL and work on long values take time in proportion.".into());
    }
    if named("fast-command") {
        advice.push(
            "Commands of constant time were slow: the machine may be short of CPU or of memory \
             (swap, transparent huge pages, noisy neighbours)."
                .into(),
        );
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn event(values: &[u64]) -> Event {
        let sample = |(at, millis): (usize, &u64)| Sample { at: at as u64, millis: *millis };
        let samples = values.iter().enumerate().map(sample).collect();
        Event { samples, worst: values.iter().copied().max().unwrap_or(0) }
    }

    #[test]
    fn columns_rise_with_the_values() {
        let text = graph("command", &event(&[10, 1_200, 1_050, 1_500, 1_010]), 4);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "command - high 1500 ms, low 10 ms (all time high 1500 ms)");
        assert_eq!(lines[1], "-".repeat(80));
        assert_eq!(&lines[2..], [" _ # ", " |#|#", " ||||", "_||||", "     ", "43210", "sssss"]);
    }

    #[test]
    fn one_value_and_many() {
        let text = graph("command", &event(&[20]), 7_200);
        assert_eq!(text.lines().skip(2).collect::<Vec<_>>(), [" ", " ", " ", "_", " ", "2", "h"]);
        let text = graph("command", &event(&(0..160).collect::<Vec<_>>()), 160);
        assert!(text.lines().skip(1).all(|line| line.len() == 80));
        assert!(text.starts_with("command - high 159 ms, low 80 ms"));
    }

    #[test]
    fn the_doctor_says_what_is_known() {
        let off = Settings::default();
        assert!(doctor(&[], &off).starts_with("Latency isn't monitored"));
        let threshold = Duration::from_millis(5);
        let on = Settings { latency_monitor_threshold: threshold, ..Settings::default() };
        assert_eq!(doctor(&[], &on), "No event has taken 5 ms or more.\n");
        let text = doctor(&[("command", event(&[10, 20])), ("fast-command", event(&[6]))], &on);
        assert!(text.contains("1. command: 2 latency spikes (average 15ms, mean deviation 5ms"));
        assert!(text.contains("slowlog-log-slower-than 5000") && text.contains("huge pages"));
    }
}
