//! Commands tried in unit tests without a server: a small cache with a hand-set clock, and a way to
//! run a row's function over it as dispatch does.

use super::{Args, Run, table};
use crate::{
    cache::{Cache, Job, Refusal, counter::Counters, release::Release},
    clock::Clock,
    command::row::Flags,
    policy::Policies,
    protocol::{Output, Reply, Resp, Span},
    tier::memory::Options,
};

/// The time at which every fixture starts, unix milliseconds.
pub(super) const NOW: u64 = 1_700_000_000_000;

/// A cache, and what an attempt needs beside it.
pub(super) struct Fixture {
    pub(super) cache: Cache,
    pub(super) clock: Clock,
    pub(super) counters: Counters,
    resp: Resp,
}

impl Fixture {
    /// An empty cache of 16 MiB whose clients speak RESP2.
    pub(super) fn new() -> Self {
        Self::with(Resp::V2, 16 << 20)
    }

    /// An empty cache of so many bytes whose clients speak `resp`.
    pub(super) fn with(resp: Resp, limit: usize) -> Self {
        let clock = Clock::manual(NOW);
        let options = Options { limit, ..Options::default() };
        let cache = Cache::new(&options, Policies::default(), clock.clone(), None);
        Self { cache, clock, counters: Counters::default(), resp }
    }

    /// Runs a command given as words between spaces, `""` being the empty word; the reply as it goes
    /// on the wire, line ends shown as `|`.
    pub(super) fn run(&self, line: &str) -> String {
        let words = line.split(' ').map(|word| if word == "\"\"" { "" } else { word }.as_bytes());
        let reply = self.call(&words.collect::<Vec<_>>());
        String::from_utf8_lossy(&reply).replace("\r\n", "|")
    }

    /// Runs a command; the reply as it goes on the wire.
    pub(super) fn call(&self, words: &[&[u8]]) -> Vec<u8> {
        let row = table::find(words[0]).expect("a known command").row;
        let Run::Keys(run) = row.run else { panic!("not a command on keys") };
        let (buf, mut spans) = (words.concat(), Vec::new());
        for word in words {
            let start = spans.last().map_or(0, |last: &Span| last.start + last.len);
            spans.push(Span {
                start,
                len: word.len() as u32,
                hash: self.cache.memory().hash(word),
            });
        }
        let args = Args::new(&buf, &spans);
        assert!(row.takes(args.len()), "arity of {}", row.name);
        let keys: Vec<_> =
            row.key_positions(args.len()).map(|(at, use_)| (args.key(at), use_)).collect();
        let job = Job {
            db: 0,
            now: self.clock.now(),
            keys: &keys,
            writes: row.flags.has(Flags::WRITE),
            strict: true,
            room: 0,
            touch: true,
            counters: &self.counters,
            release: &Release::default(),
        };
        let mut out = Output::default();
        let mark = out.mark();
        let mut reply = Reply::new(&mut out, self.resp);
        let attempt = self.cache.attempt(&job, |tx| {
            reply.truncate(mark);
            run(tx, args, &mut reply)
        });
        if let Err(refusal) = attempt {
            reply.truncate(mark);
            match refusal {
                Refusal::Client(error) => reply.error(&error),
                Refusal::Below | Refusal::Busy => panic!("nothing is below"),
            }
        }
        out.chunks(0).flatten().copied().collect()
    }
}
