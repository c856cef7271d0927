//! MEMORY: what keys and the whole server take, and pages given back
//! (<https://redis.io/docs/latest/commands/memory-stats/>).

use super::{
    Args, Session, allocator,
    figures::{MemoryFigures, human, ratio},
    row::{Flags, READ_AT_2, Row, Run},
    server::{HELP, SUB, help},
};
use crate::{
    cache::tx::{Stop, Tx},
    error::ClientError,
    protocol::Reply,
};

/// What a key's slot in the table takes.
pub(super) const SLOT: usize = 8;
/// Below so much used memory MEMORY DOCTOR has nothing to say.
const SMALL: u64 = 5 << 20;
/// Resident memory that no allocation needs, from which MEMORY DOCTOR speaks of it.
const WASTE: u64 = 10 << 20;

/// MEMORY.
pub const ROW: Row = Row {
    name: "memory",
    run: Run::Sub(&[
        Row {
            name: "doctor",
            arity: 2,
            run: Run::Session(doctor),
            since: "4.0.0",
            summary: "Looks for problems with memory.",
            ..SUB
        },
        Row { run: Run::Session(help_text), since: "4.0.0", ..HELP },
        Row {
            name: "malloc-stats",
            arity: 2,
            run: Run::Session(malloc_stats),
            since: "4.0.0",
            complexity: "Depends on how much memory is allocated, could be slow",
            summary: "Shows the allocator's own report.",
            ..SUB
        },
        Row {
            name: "purge",
            arity: 2,
            run: Run::Session(purge),
            since: "4.0.0",
            complexity: "Depends on how much memory is allocated, could be slow",
            summary: "Gives free pages back to the system.",
            ..SUB
        },
        Row {
            name: "stats",
            arity: 2,
            run: Run::Session(stats),
            since: "4.0.0",
            summary: "Shows what memory is used for.",
            ..SUB
        },
        Row {
            name: "usage",
            arity: -3,
            flags: Flags::READONLY,
            keys: READ_AT_2,
            run: Run::Keys(usage),
            since: "4.0.0",
            complexity: "O(N) where N is the number of samples.",
            summary: "Tells how many bytes a key takes.",
            syntax: "key [SAMPLES count]",
            ..SUB
        },
    ]),
    since: "4.0.0",
    complexity: "Depends on subcommand.",
    summary: "What memory is used for.",
    ..SUB
};

fn usage(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let mut at = 3;
    while at < args.len() {
        if !args.is(at, "samples") || at + 1 == args.len() || args.integer(at + 1)? < 0 {
            return Err(ClientError::SYNTAX.into());
        }
        at += 2;
    }
    match tx.peek(args.key(2))? {
        Some(entry) => reply.integer((entry.size() + SLOT) as i64),
        None => reply.null(),
    }
    Ok(())
}

fn stats(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let memory = MemoryFigures::now(&session.shared);
    let map = reply.map_deferred();
    let mut pairs = Pairs { reply, count: 0 };
    pairs.bytes("peak.allocated", memory.peak);
    pairs.bytes("total.allocated", memory.used);
    pairs.bytes("startup.allocated", memory.startup);
    pairs.bytes("replication.backlog", 0);
    pairs.bytes("clients.slaves", 0);
    pairs.bytes("clients.normal", memory.clients);
    pairs.bytes("cluster.links", 0);
    pairs.bytes("aof.buffer", 0);
    pairs.bytes("overhead.total", memory.overhead());
    pairs.bytes("keys.count", memory.keys);
    pairs.bytes("keys.bytes-per-key", memory.counted.checked_div(memory.keys).unwrap_or(0));
    pairs.bytes("dataset.bytes", memory.dataset);
    pairs.number("dataset.percentage", memory.dataset_percent());
    pairs.number("peak.percentage", 100.0 * ratio(memory.used, memory.peak));
    if let Some(figures) = memory.allocator {
        pairs.bytes("allocator.allocated", figures.allocated);
        pairs.bytes("allocator.active", figures.active);
        pairs.bytes("allocator.resident", figures.resident);
        pairs.number("allocator-fragmentation.ratio", ratio(figures.active, figures.allocated));
        pairs.excess("allocator-fragmentation.bytes", figures.active, figures.allocated);
        pairs.number("allocator-rss.ratio", ratio(figures.resident, figures.active));
        pairs.excess("allocator-rss.bytes", figures.resident, figures.active);
        pairs.number("rss-overhead.ratio", ratio(memory.rss, figures.resident));
        pairs.excess("rss-overhead.bytes", memory.rss, figures.resident);
    }
    pairs.number("fragmentation", memory.fragmentation());
    pairs.excess("fragmentation.bytes", memory.rss, memory.used);
    let count = pairs.count;
    reply.finish(map, count);
    Ok(())
}

/// Writes a map of named figures.
struct Pairs<'a, 'b> {
    reply: &'a mut Reply<'b>,
    count: usize,
}

impl Pairs<'_, '_> {
    fn name(&mut self, name: &str) {
        self.reply.bulk(name.as_bytes());
        self.count += 1;
    }

    fn bytes(&mut self, name: &str, bytes: u64) {
        self.name(name);
        self.reply.integer(bytes as i64);
    }

    fn number(&mut self, name: &str, number: f64) {
        self.name(name);
        self.reply.double(number);
    }

    /// How much more `of` is than `than`; less than nothing is possible.
    fn excess(&mut self, name: &str, of: u64, than: u64) {
        self.name(name);
        self.reply.integer(of.wrapping_sub(than) as i64);
    }
}

fn doctor(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let limit = session.cache().memory().rules().limit() as u64;
    reply.verbatim("txt", diagnose(&MemoryFigures::now(&session.shared), limit).as_bytes());
    Ok(())
}

/// What is wrong with memory, in words.
fn diagnose(memory: &MemoryFigures, limit: u64) -> String {
    if memory.used < SMALL {
        return "Hardly any memory is in use: there is nothing to look at yet.\n".to_owned();
    }
    let mut found = Vec::new();
    if memory.peak > memory.used / 2 * 3 {
        found.push(format!(
            "Peak: {} were in use once, {} are now. Resident memory may stay near the peak; MEMORY \
             PURGE gives back what is free.",
            human(memory.peak),
            human(memory.used)
        ));
    }
    if memory.fragmentation() > 1.4 && memory.rss - memory.used > WASTE {
        found.push(format!(
            "Fragmentation: {} are resident for {} in use (ratio {:.2}). MEMORY PURGE may help; if \
             it doesn't, sizes of values have changed much since they were written.",
            human(memory.rss),
            human(memory.used),
            memory.fragmentation()
        ));
    }
    if memory.counted > limit {
        found.push(format!(
            "Limit: {} are counted of {} allowed. The next writes evict keys, or fail under \
             noeviction.",
            human(memory.counted),
            human(limit)
        ));
    }
    if memory.clients > memory.used / 10 {
        found.push(format!(
            "Clients: {} are replies and requests that wait for slow clients (CLIENT LIST).",
            human(memory.clients)
        ));
    }
    if found.is_empty() {
        return "Nothing is wrong with memory.\n".to_owned();
    }
    found.iter().map(|problem| format!("* {problem}\n")).collect()
}

fn purge(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    // Nothing to do is no error.
    allocator::purge();
    reply.ok();
    Ok(())
}

fn malloc_stats(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let report = allocator::report();
    let text = report.as_deref().unwrap_or("The allocator doesn't report.\n");
    reply.verbatim("txt", text.as_bytes());
    Ok(())
}

fn help_text(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    help(
        reply,
        "MEMORY",
        &[
            "DOCTOR",
            "    Look for problems with memory.",
            "MALLOC-STATS",
            "    Return the allocator's own report.",
            "PURGE",
            "    Give free pages back to the system.",
            "STATS",
            "    Return what memory is used for.",
            "USAGE <key> [SAMPLES <count>]",
            "    Return the bytes that <key> and its value take. SAMPLES is accepted for",
            "    values that have elements.",
        ],
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{call, put, session};

    #[test]
    fn usage_is_the_entry_and_its_slot() {
        let mut session = session();
        assert_eq!(call(&mut session, &["MEMORY", "USAGE", "a"]), "$-1\r\n");
        put(&session, "a", &"x".repeat(100));
        // 16 of header, 1 of key, 100 of value: the class of 128, and 8 for the slot.
        assert_eq!(call(&mut session, &["MEMORY", "USAGE", "a"]), ":136\r\n");
        let twice = ["MEMORY", "USAGE", "a", "SAMPLES", "5", "samples", "0"];
        assert_eq!(call(&mut session, &twice), ":136\r\n");
        for (words, text) in [
            (&["SAMPLES"][..], "syntax error"),
            (&["NOPE", "3"], "syntax error"),
            (&["SAMPLES", "-1"], "syntax error"),
            (&["SAMPLES", "1", "2"], "syntax error"),
            (&["SAMPLES", "x"], "value is not an integer or out of range"),
        ] {
            let line = [&["MEMORY", "USAGE", "a"], words].concat();
            assert_eq!(call(&mut session, &line), format!("-ERR {text}\r\n"));
        }
    }

    #[test]
    fn stats_are_a_map() {
        let mut session = session();
        put(&session, "a", "x");
        let reply = call(&mut session, &["MEMORY", "STATS"]);
        assert!(reply.starts_with('*') && reply.contains("$10\r\nkeys.count\r\n:1\r\n"), "{reply}");
        assert_eq!(call(&mut session, &["MEMORY", "PURGE"]), "+OK\r\n");
        assert!(call(&mut session, &["MEMORY", "MALLOC-STATS"]).starts_with('$'));
    }

    #[test]
    fn the_doctor_names_what_is_wrong() {
        let well = MemoryFigures {
            used: 100 << 20,
            peak: 100 << 20,
            startup: 5 << 20,
            rss: 110 << 20,
            dataset: 80 << 20,
            counted: 90 << 20,
            clients: 0,
            keys: 1,
            allocator: None,
        };
        let limit = 100 << 20;
        assert_eq!(diagnose(&well, limit), "Nothing is wrong with memory.\n");
        assert!(diagnose(&MemoryFigures { used: 1, ..well }, limit).starts_with("Hardly"));
        let ill = MemoryFigures { peak: 1 << 30, rss: 1 << 30, clients: 50 << 20, ..well };
        let text = diagnose(&ill, 1 << 20);
        for word in ["Peak", "Fragmentation", "Limit", "Clients"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
