//! LATENCY over the latency monitor (<https://redis.io/docs/latest/commands/latency-doctor/>).

use super::{
    Args, Session, latency_report,
    row::{Flags, Row, Run},
    server::{ANYWHERE, HELP, SUB, help},
    table::{self, Entry},
};
use crate::{cache::tx::Stop, error::ClientError, protocol::Reply};

const ADMIN: Flags = ANYWHERE.with(Flags::ADMIN).with(Flags::NOSCRIPT);
/// What most rows here have in common.
const EVENT: Row = Row { flags: ADMIN, since: "2.8.13", ..SUB };
/// The longest piece of a request that an error repeats, in bytes.
const ECHO: usize = 128;

/// LATENCY.
pub const ROW: Row = Row {
    name: "latency",
    run: Run::Sub(&[
        Row {
            name: "doctor",
            arity: 2,
            run: Run::Session(doctor),
            summary: "Explains the events that were slow.",
            ..EVENT
        },
        Row {
            name: "graph",
            arity: 3,
            run: Run::Session(graph),
            summary: "Draws how long an event took.",
            syntax: "event",
            ..EVENT
        },
        Row { run: Run::Session(help_text), since: "2.8.13", ..HELP },
        Row {
            name: "histogram",
            arity: -2,
            run: Run::Session(histogram),
            since: "7.0.0",
            complexity: "O(N) where N is the number of commands with latency information being retrieved.",
            summary: "Shows how long commands took: their number up to each power of two of microseconds.",
            syntax: "[command [command ...]]",
            ..EVENT
        },
        Row {
            name: "history",
            arity: 3,
            run: Run::Session(history),
            summary: "Lists how long an event took, and when.",
            syntax: "event",
            ..EVENT
        },
        Row {
            name: "latest",
            arity: 2,
            run: Run::Session(latest),
            summary: "Lists the last time that each event was slow.",
            ..EVENT
        },
        Row {
            name: "reset",
            arity: -2,
            run: Run::Session(reset),
            summary: "Forgets what is known of some events, or of all.",
            syntax: "[event [event ...]]",
            ..EVENT
        },
    ]),
    since: "2.8.13",
    complexity: "Depends on subcommand.",
    summary: "The events that were slow.",
    ..SUB
};

fn latest(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let events = session.shared.latency.events();
    reply.array(events.len());
    for (name, event) in events {
        let last = event.samples.back();
        reply.array(4);
        reply.bulk(name.as_bytes());
        reply.integer(last.map_or(0, |sample| sample.at as i64));
        reply.integer(last.map_or(0, |sample| sample.millis as i64));
        reply.integer(event.worst as i64);
    }
    Ok(())
}

fn history(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let found = session.shared.latency.event(args.get(2));
    let samples = found.map(|(_, event)| event.samples).unwrap_or_default();
    reply.array(samples.len());
    for sample in samples {
        reply.array(2);
        reply.integer(sample.at as i64);
        reply.integer(sample.millis as i64);
    }
    Ok(())
}

/// A map of the commands that were called, or of those of these names: how many were timed, and how many took up
/// to so many microseconds.
fn histogram(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let asked = |entry: &&Entry| {
        let name = entry.full_name();
        let of = entry.parent.map(|parent| table::all()[usize::from(parent)].row.name);
        let is = |arg: &[u8]| {
            arg.eq_ignore_ascii_case(name.as_bytes())
                || of.is_some_and(|of| arg.eq_ignore_ascii_case(of.as_bytes()))
        };
        args.len() == 2 || args.from(2).any(is)
    };
    let entries = table::all().iter().filter(asked);
    let durations = |entry: &Entry| session.shared.durations(usize::from(entry.index));
    let all = entries.map(|entry| (entry.full_name(), durations(entry)));
    let all: Vec<_> = all.filter(|(_, durations)| durations.count() > 0).collect();
    reply.map(all.len());
    for (name, durations) in all {
        let counts = durations.by_micros();
        reply.bulk(name.as_bytes());
        reply.map(2);
        reply.bulk(b"calls");
        reply.integer(durations.count() as i64);
        reply.bulk(b"histogram_usec");
        reply.map(counts.len());
        for (micros, below) in counts {
            reply.integer(micros as i64);
            reply.integer(below as i64);
        }
    }
    Ok(())
}

fn reset(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let named = |name: &str| args.from(2).any(|arg| arg.eq_ignore_ascii_case(name.as_bytes()));
    let count = session.shared.latency.reset(|name| args.len() == 2 || named(name));
    reply.integer(count as i64);
    Ok(())
}

fn graph(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let Some((name, event)) = session.shared.latency.event(args.get(2)) else {
        let name = args.get(2);
        let name = String::from_utf8_lossy(name.get(..ECHO).unwrap_or(name));
        let text = format!("ERR No samples available for event '{name}'");
        return Err(ClientError::from(text).into());
    };
    reply.verbatim("txt", latency_report::graph(name, &event, session.now / 1000).as_bytes());
    Ok(())
}

fn doctor(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let events = session.shared.latency.events();
    reply.verbatim("txt", latency_report::doctor(&events, &session.settings).as_bytes());
    Ok(())
}

fn help_text(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    help(
        reply,
        "LATENCY",
        &[
            "DOCTOR",
            "    Explain the events that were slow.",
            "GRAPH <event>",
            "    Draw how long the <event> took.",
            "HISTORY <event>",
            "    Return when the <event> was slow, and how long it took.",
            "HISTOGRAM [<command> ...]",
            "    Show how long the commands took.",
            "    (default: all commands)",
            "LATEST",
            "    Return the last time that each event was slow.",
            "RESET [<event> ...]",
            "    Forget what is known of these events.",
            "    (default: of all events)",
        ],
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::command::testing::{call, session};
    use std::time::Duration;

    #[test]
    fn a_histogram_counts_the_first_calls_all() {
        let mut session = session();
        call(&mut session, &["SET", "a", "x"]);
        call(&mut session, &["CONFIG", "GET", "port"]);
        for _ in 0..10 {
            call(&mut session, &["GET", "a"]);
        }
        let shown = call(&mut session, &["LATENCY", "HISTOGRAM", "get", "nope"]);
        let head = "*2\r\n$3\r\nget\r\n*4\r\n$5\r\ncalls\r\n:10\r\n$14\r\nhistogram_usec\r\n*";
        assert!(shown.starts_with(head) && shown.ends_with(":10\r\n"), "{shown}");
        let shown = call(&mut session, &["LATENCY", "HISTOGRAM", "CONFIG"]);
        assert!(shown.starts_with("*2\r\n$10\r\nconfig|get\r\n"), "{shown}");
        assert_eq!(call(&mut session, &["LATENCY", "HISTOGRAM", "nope"]), "*0\r\n");
        let all = call(&mut session, &["LATENCY", "HISTOGRAM"]);
        assert!(all.contains("set\r\n") && all.contains("latency|histogram\r\n"), "{all}");
        let info = call(&mut session, &["INFO", "latencystats"]);
        assert!(info.contains("\r\nlatency_percentiles_usec_get:p50="), "{info}");
        call(&mut session, &["CONFIG", "SET", "latency-tracking-info-percentiles", "25 99.99"]);
        session.refresh_settings();
        let info = call(&mut session, &["INFO", "latencystats"]);
        assert!(info.contains("_get:p25=") && info.contains(",p99.99="), "{info}");
        let refused = ["CONFIG", "SET", "latency-tracking-info-percentiles", "101"];
        assert!(call(&mut session, &refused).starts_with("-ERR"), "{refused:?}");
        call(&mut session, &["CONFIG", "SET", "latency-tracking", "no"]);
        session.refresh_settings();
        call(&mut session, &["GET", "a"]);
        assert!(call(&mut session, &["LATENCY", "HISTOGRAM", "get"]).contains("calls\r\n:10\r\n"));
        assert_eq!(call(&mut session, &["INFO", "latencystats"]), "$16\r\n# Latencystats\r\n\r\n");
    }

    #[test]
    fn replies_have_the_shape_of_redis() {
        let mut session = session();
        let none = "-ERR No samples available for event 'nope'\r\n";
        assert_eq!(call(&mut session, &["LATENCY", "LATEST"]), "*0\r\n");
        assert_eq!(call(&mut session, &["LATENCY", "HISTORY", "nope"]), "*0\r\n");
        assert_eq!(call(&mut session, &["LATENCY", "GRAPH", "nope"]), none);
        let one = Duration::from_millis(1);
        session.shared.latency.note("command", Duration::from_millis(9), one, 2_000);
        session.shared.latency.note("command", Duration::from_millis(7), one, 3_000);
        assert_eq!(
            call(&mut session, &["LATENCY", "LATEST"]),
            "*1\r\n*4\r\n$7\r\ncommand\r\n:3\r\n:7\r\n:9\r\n"
        );
        assert_eq!(
            call(&mut session, &["LATENCY", "HISTORY", "Command"]),
            "*2\r\n*2\r\n:2\r\n:9\r\n*2\r\n:3\r\n:7\r\n"
        );
        assert!(call(&mut session, &["LATENCY", "GRAPH", "command"]).starts_with('$'));
        assert!(call(&mut session, &["LATENCY", "DOCTOR"]).starts_with('$'));
        assert_eq!(call(&mut session, &["LATENCY", "RESET", "nope", "COMMAND"]), ":1\r\n");
        assert_eq!(call(&mut session, &["LATENCY", "RESET"]), ":0\r\n");
    }
}
