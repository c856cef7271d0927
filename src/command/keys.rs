//! Commands on keys of any type: whether they are there, what they hold, and deleting them.
//!
//! Their siblings stand by subject: [`super::relocate`] (RENAME, COPY, MOVE), [`super::expire`]
//! (deadlines), [`super::scan`] (KEYS, SCAN), [`super::object`] (how a value is kept), [`super::dump`]
//! (DUMP, RESTORE) and [`super::keyspace`] (whole databases).

use super::{
    Args,
    row::{Flags, Group, READ_1, READ_ALL, Row, Run, WRITE_ALL},
};
use crate::{
    cache::tx::{Key, Stop, Tx},
    protocol::Reply,
};

/// What most rows here share; each names the rest.
const READ: Row = Row {
    name: "",
    arity: -2,
    flags: Flags::READONLY.with(Flags::FAST),
    keys: READ_ALL,
    run: Run::Sub(&[]),
    group: Group::Generic,
    since: "1.0.0",
    complexity: "O(N) where N is the number of keys.",
    summary: "",
    syntax: "key [key ...]",
};

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "del",
        flags: Flags::WRITE,
        keys: WRITE_ALL,
        run: Run::Keys(delete),
        complexity: "O(N) where N is the number of keys that will be removed.",
        summary: "Deletes keys and says how many there were.",
        ..READ
    },
    Row {
        name: "unlink",
        flags: Flags::WRITE.with(Flags::FAST),
        keys: WRITE_ALL,
        run: Run::Keys(delete),
        since: "4.0.0",
        complexity: "O(1) for each key removed.",
        summary: "Deletes keys and says how many there were, without waiting for their memory.",
        ..READ
    },
    Row {
        name: "exists",
        run: Run::Keys(exists),
        complexity: "O(N) where N is the number of keys to check.",
        summary: "Counts those of the keys that exist; one named twice counts twice.",
        ..READ
    },
    Row {
        name: "type",
        arity: 2,
        keys: READ_1,
        run: Run::Keys(type_of),
        complexity: "O(1)",
        summary: "Says what type of value a key holds.",
        syntax: "key",
        ..READ
    },
    Row {
        name: "touch",
        run: Run::Keys(touch),
        since: "3.2.1",
        complexity: "O(N) where N is the number of keys that will be touched.",
        summary: "Counts those of the keys that exist, and keeps them warm.",
        ..READ
    },
];

fn delete(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let mut count = 0;
    for at in 1..args.len() {
        count += i64::from(tx.remove(args.key(at))?);
    }
    reply.integer(count);
    Ok(())
}

fn exists(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    count(args, reply, |key| tx.exists(key))
}

fn touch(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    count(args, reply, |key| tx.touch(key))
}

/// Replies with how many of the keys `holds` for.
fn count(
    args: Args<'_>,
    reply: &mut Reply<'_>,
    mut holds: impl FnMut(Key<'_>) -> Result<bool, Stop>,
) -> Result<(), Stop> {
    let mut count = 0;
    for at in 1..args.len() {
        count += i64::from(holds(args.key(at))?);
    }
    reply.integer(count);
    Ok(())
}

fn type_of(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let found = tx.peek(args.key(1))?.is_some();
    reply.simple(if found { "string" } else { "none" });
    Ok(())
}

/// What the tests of these families share: a cache and a way to run one command on it.
#[cfg(test)]
pub(super) mod testing {
    use crate::{
        cache::{
            Cache, Job, Refusal, Use,
            counter::Counters,
            release::Release,
            tx::{Key, Ttl, Tx},
        },
        clock::Clock,
        command::{Args, Row, Run},
        policy::Policies,
        protocol::{Output, Reply, Resp, Span},
        tier::{eviction::Eviction, memory::Options},
    };

    /// The time that the tests start at, unix milliseconds.
    pub const NOW: u64 = 1_000_000;

    /// A cache in memory, the time and the database.
    pub struct Bench {
        /// The cache.
        pub cache: Cache,
        /// The time, unix milliseconds.
        pub now: u64,
        /// The database.
        pub db: usize,
        rows: &'static [Row],
    }

    impl Bench {
        /// A cache that knows these commands.
        pub fn new(rows: &'static [Row], eviction: Eviction) -> Self {
            let options = Options { eviction, ..Options::default() };
            let cache = Cache::new(&options, Policies::default(), Clock::manual(NOW), None);
            Self { cache, now: NOW, db: 0, rows }
        }

        fn attempt(
            &self,
            keys: &[(Key<'_>, Use)],
            run: impl FnMut(&mut Tx<'_>) -> Result<(), super::Stop>,
        ) -> Result<(), Refusal> {
            let (db, now, counters) = (self.db, self.now, &Counters::default());
            self.cache.attempt(
                &Job {
                    db,
                    now,
                    keys,
                    writes: true,
                    strict: true,
                    room: 0,
                    touch: true,
                    counters,
                    release: &Release::default(),
                },
                run,
            )
        }

        /// Sets a string; `deadline` 0: none.
        pub fn put(&self, key: &str, value: &[u8], deadline: u64) {
            let key = Key { bytes: key.as_bytes(), hash: self.cache.memory().hash(key.as_bytes()) };
            let ttl = if deadline == 0 { Ttl::Clear } else { Ttl::At(deadline) };
            self.attempt(&[(key, Use::Write)], |tx| tx.set(key, &[value], ttl)).unwrap();
        }

        /// The reply to a command of the rows, as it goes over the wire in RESP2.
        pub fn run(&self, words: &[&[u8]]) -> Vec<u8> {
            let buf = words.concat();
            let mut start = 0;
            let place = |word: &&[u8]| {
                let hash = self.cache.memory().hash(word);
                start += word.len() as u32;
                Span { start: start - word.len() as u32, len: word.len() as u32, hash }
            };
            let spans: Vec<Span> = words.iter().map(place).collect();
            let args = Args::new(&buf, &spans);
            let named = |rows: &'static [Row], at: usize| {
                rows.iter().find(|row| args.is(at, row.name)).expect("a command of the family")
            };
            let row = named(self.rows, 0);
            let row = if row.subcommands().is_empty() { row } else { named(row.subcommands(), 1) };
            assert!(row.takes(args.len()), "{}", row.name);
            let Run::Keys(run) = row.run else { panic!("{} isn't on keys", row.name) };
            let keys: Vec<_> =
                row.key_positions(args.len()).map(|(at, use_)| (args.key(at), use_)).collect();
            let mut out = Output::default();
            let mut reply = Reply::new(&mut out, Resp::V2);
            match self.attempt(&keys, |tx| run(tx, args, &mut reply)) {
                Err(Refusal::Client(error)) => reply.error(&error),
                ended => ended.unwrap(),
            }
            out.chunks(0).flatten().copied().collect()
        }

        /// The reply to a command in words separated by spaces, as text without its last line end.
        pub fn say(&self, words: &str) -> String {
            let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
            let reply = String::from_utf8(self.run(&words)).unwrap();
            reply.trim_end().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ROWS,
        testing::{Bench, NOW},
    };

    #[test]
    fn keys_are_counted_and_deleted() {
        let mut bench = Bench::new(ROWS, Default::default());
        bench.put("a", b"1", 0);
        bench.put("b", b"2", NOW + 10);
        assert_eq!(bench.say("exists a a b x"), ":3");
        assert_eq!(bench.say("touch a b x"), ":2");
        assert_eq!(bench.say("type a"), "+string");
        bench.now += 10;
        assert_eq!(bench.say("exists b"), ":0");
        assert_eq!(bench.say("del a a b"), ":1");
        assert_eq!(bench.say("type a"), "+none");
        bench.put("c", b"", 0);
        assert_eq!(bench.say("unlink c a"), ":1");
    }
}
