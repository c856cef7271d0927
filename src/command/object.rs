//! OBJECT: how a value is kept, and what the eviction policy knows of it.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    Args, Session,
    row::{Flags, Group, NO_KEYS, READ_AT_2, Row, Run},
};
use crate::{
    cache::tx::{Stop, Tx},
    error::ClientError,
    protocol::Reply,
    tier::{
        entry::Entry,
        eviction::{Eviction, idle_ms},
    },
    value::number::is_canonical_i64,
};

/// What the subcommands about a key share; each names the rest.
const ABOUT_KEY: Row = Row {
    name: "",
    arity: 3,
    flags: Flags::READONLY,
    keys: READ_AT_2,
    run: Run::Sub(&[]),
    group: Group::Generic,
    since: "2.2.3",
    complexity: "O(1)",
    summary: "",
    syntax: "key",
};

/// The row.
pub const ROWS: &[Row] = &[Row {
    name: "object",
    arity: -2,
    flags: Flags::NONE,
    keys: NO_KEYS,
    run: Run::Sub(SUBCOMMANDS),
    group: Group::Generic,
    since: "2.2.3",
    complexity: "Depends on subcommand.",
    summary: "Commands that look behind a key.",
    syntax: "",
}];

const SUBCOMMANDS: &[Row] = &[
    Row {
        name: "encoding",
        run: Run::Keys(encoding),
        summary: "Says in what form a value is kept.",
        ..ABOUT_KEY
    },
    Row {
        name: "freq",
        run: Run::Keys(frequency),
        since: "4.0.0",
        summary: "Shows a key's access counter, under an LFU policy. Under the default policy, and with \
                  `hot-keys`, it is 8 for each doubling of the key's requests in a minute, and 0 if the key isn't \
                  among the hottest.",
        ..ABOUT_KEY
    },
    Row {
        name: "help",
        arity: 2,
        flags: Flags::LOADING.with(Flags::STALE),
        keys: NO_KEYS,
        run: Run::Session(help),
        since: "6.2.0",
        summary: "Describes the subcommands.",
        syntax: "",
        ..ABOUT_KEY
    },
    Row {
        name: "idletime",
        run: Run::Keys(idle_time),
        summary: "Says how many seconds ago a key was last used, under Redis's policies other than LFU; \
                  the default one keeps no such clock.",
        ..ABOUT_KEY
    },
    Row {
        name: "refcount",
        run: Run::Keys(reference_count),
        summary: "Counts the keys that a value belongs to, which is one.",
        ..ABOUT_KEY
    },
];

const HELP: &[&str] = &[
    "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "ENCODING <key>",
    "    Return the kind of internal representation used in order to store the value",
    "    associated with a <key>.",
    "FREQ <key>",
    "    Return the access frequency index of the <key>. The returned integer is",
    "    proportional to the logarithm of the recent access frequency of the key.",
    "IDLETIME <key>",
    "    Return the idle time of the <key>, that is the approximated number of",
    "    seconds elapsed since the last access to the key.",
    "REFCOUNT <key>",
    "    Return the number of references of the value associated with the specified",
    "    <key>.",
    "HELP",
    "    Prints this help.",
];

/// The longest string that Redis keeps in one piece with its header.
const EMBEDDED: usize = 44;

fn encoding(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    match tx.peek(args.key(2))? {
        Some(entry) => reply.bulk(encoding_of(entry).as_bytes()),
        None => reply.null(),
    }
    Ok(())
}

/// What Redis would keep the string as: an edit leaves it `raw`, whatever it holds.
fn encoding_of(entry: Entry<'_>) -> &'static str {
    if entry.is_raw() || entry.value().len() > EMBEDDED {
        "raw"
    } else if is_canonical_i64(entry.value()) {
        "int"
    } else {
        "embstr"
    }
}

fn reference_count(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    match tx.peek(args.key(2))? {
        Some(_) => reply.integer(1),
        None => reply.null(),
    }
    Ok(())
}

/// What the access word of an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tracked {
    Nothing,
    IdleTime,
    Frequency,
}

fn tracked(eviction: Eviction) -> Tracked {
    match eviction {
        Eviction::AllkeysS3fifo => Tracked::Nothing,
        _ if eviction.is_lfu() => Tracked::Frequency,
        _ => Tracked::IdleTime,
    }
}

const NO_FREQUENCY: ClientError = ClientError::new(
    "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that \
     when switching between policies at runtime LRU and LFU data will take some time to adjust.",
);
const NO_IDLE_TIME: ClientError = ClientError::new(
    "ERR An LFU maxmemory policy is selected, idle time not tracked. Please note that when \
     switching between policies at runtime LRU and LFU data will take some time to adjust.",
);
const NO_IDLE_TIME_IN_QUEUES: ClientError = ClientError::new(
    "ERR The allkeys-s3fifo maxmemory policy is selected, idle time not tracked. Please note that \
     when switching between policies at runtime LRU and LFU data will take some time to adjust.",
);

fn frequency(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (eviction, lfu, now) = (tx.rules().eviction(), tx.rules().lfu(), tx.now());
    let estimate = match tracked(eviction) {
        Tracked::Nothing => tx.frequency(args.key(2)),
        Tracked::Frequency | Tracked::IdleTime => None,
    };
    let Some(entry) = tx.peek(args.key(2))? else {
        reply.null();
        return Ok(());
    };
    if let Some(estimate) = estimate {
        reply.integer(i64::from(estimate));
        return Ok(());
    }
    if tracked(eviction) != Tracked::Frequency {
        return Err(NO_FREQUENCY.into());
    }
    // An entry that was made under another policy may keep no word: it was never counted.
    let counter = entry.access().map_or(0, |word| lfu.counter(word.load(Relaxed), now));
    reply.integer(i64::from(counter));
    Ok(())
}

fn idle_time(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (eviction, now) = (tx.rules().eviction(), tx.now());
    let Some(entry) = tx.peek(args.key(2))? else {
        reply.null();
        return Ok(());
    };
    match tracked(eviction) {
        Tracked::Nothing => return Err(NO_IDLE_TIME_IN_QUEUES.into()),
        Tracked::Frequency => return Err(NO_IDLE_TIME.into()),
        Tracked::IdleTime => {}
    }
    let idle = entry.access().map_or(0, |word| idle_ms(word.load(Relaxed), now));
    reply.integer((idle / 1000) as i64);
    Ok(())
}

fn help(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    reply.array(HELP.len());
    HELP.iter().for_each(|line| reply.simple(line));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::keys::testing::Bench, *};

    #[test]
    fn encodings() {
        let bench = Bench::new(ROWS, Default::default());
        for (value, encoding) in [
            (&b"12"[..], "int"),
            (b"-9223372036854775808", "int"),
            (b"9223372036854775808", "embstr"),
            (b"012", "embstr"),
            (b"", "embstr"),
            (&[b'1'; 44], "embstr"),
            (&[b'1'; 45], "raw"),
        ] {
            bench.put("a", value, 0);
            let expected = format!("${}\r\n{encoding}", encoding.len());
            assert_eq!(bench.say("object encoding a"), expected, "{value:?}");
        }
        assert_eq!(bench.say("object encoding x"), "$-1");
        assert_eq!(bench.say("object refcount a"), ":1");
    }

    #[test]
    fn idle_time_counts_since_the_last_use() {
        let mut bench = Bench::new(ROWS, Eviction::Noeviction);
        bench.put("a", b"1", 0);
        bench.now += 7_100;
        assert_eq!(bench.say("object idletime a"), ":7");
        assert_eq!(bench.say("object idletime a"), ":7");
        assert!(bench.say("object freq a").starts_with("-ERR An LFU maxmemory policy is not"));
        assert_eq!(bench.say("object freq x"), "$-1");
    }

    #[test]
    fn frequency_starts_as_in_redis() {
        let bench = Bench::new(ROWS, Eviction::VolatileLfu);
        bench.put("a", b"1", 0);
        assert_eq!(bench.say("object freq a"), ":5");
        assert!(bench.say("object idletime a").starts_with("-ERR An LFU maxmemory policy is sel"));
    }

    #[test]
    fn queues_track_neither() {
        let bench = Bench::new(ROWS, Eviction::AllkeysS3fifo);
        bench.put("a", b"1", 0);
        assert!(bench.say("object idletime a").starts_with("-ERR The allkeys-s3fifo"));
        assert!(bench.say("object freq a").starts_with("-ERR An LFU maxmemory policy is not"));
        // Made under one policy, asked under another.
        bench.cache.memory().set_eviction(Eviction::AllkeysLru);
        assert_eq!(bench.say("object idletime a"), ":0");
    }
}
