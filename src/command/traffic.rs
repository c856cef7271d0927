//! The traffic, seen from outside: LARDER.HOTKEYS, LARDER.BIGKEYS, LARDER.MRC; and where requests are noted.

use std::ops::Range;

use super::{
    Args, Found, Session, for_each_key,
    memory_command::SLOT,
    row::{Flags, Group, NO_KEYS, Row, Run},
    shared::Shared,
};
use crate::{
    cache::{
        counter::Counters,
        traffic::{Estimate, HotKey},
        tx::{Key, Stop},
    },
    error::ClientError,
    protocol::{Batch, Reply},
};

const ANYWHERE: Flags = Flags::READONLY.with(Flags::LOADING).with(Flags::STALE);
/// Keys that a report has if nothing is said.
const SHOWN: usize = 16;
/// Keys of one request that are noted.
const NOTED: usize = 16;

/// What the rows have in common; each names the rest.
const REPORT: Row = Row {
    name: "",
    arity: -1,
    flags: ANYWHERE,
    keys: NO_KEYS,
    run: Run::Sub(&[]),
    group: Group::Larder,
    since: "0.1.0",
    complexity: "O(1)",
    summary: "",
    syntax: "[COUNT count]",
};

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "larder.bigkeys",
        run: Run::Session(big_keys),
        summary: "Shows the largest keys in memory, at most 128, the largest first: for each a map of `key`, \
                  `db`, `bytes` (what MEMORY USAGE says) and `type`. Keys that were in memory before \
                  `hot-keys` was turned on are missing, as are those longer than a kilobyte; when many of the \
                  largest have gone, so may be some of the next.",
        ..REPORT
    },
    Row {
        name: "larder.hotkeys",
        run: Run::Session(hot_keys),
        summary: "Shows the keys that are asked for most, at most 256, the hottest first: for each a map of \
                  `key`, `db`, `per_second` (requests a second, over about the last minute or two), `error` \
                  (by how much that may be too high, a sample's chance apart) and `share` (of all requests of \
                  keys). All requests count, reads and writes; one in 128 is looked at, or every one where \
                  there are few. Keys longer than a kilobyte are missing.",
        ..REPORT
    },
    Row {
        name: "larder.mrc",
        arity: 1,
        run: Run::Session(curve),
        summary: "Estimates what the hit ratio would be with less or more memory (the miss-ratio curve): a map of \
                  `memory` (the limit, in bytes), `curve` (for 0.5, 1, 2, 4 and 8 times that a map of \
                  `times`, `bytes` and `hit_ratio`), `enough` (1 if there is enough data to go by), \
                  `samples` (lookups in the sample; old ones count less), `keys` (in the sample) and `rate` (the \
                  part of all keys that is sampled). It is that of LRU; Larder's own policy is mostly a bit \
                  better. Null if `miss-ratio-curve` is off.",
        syntax: "",
        ..REPORT
    },
];

impl Shared {
    /// The counters of all threads.
    fn counters(&self) -> impl Iterator<Item = &Counters> + Clone {
        self.workers.iter().map(|worker| &worker.keys)
    }

    /// Watches what the settings say.
    pub(super) fn watch_traffic(&self) {
        let (settings, traffic) = (self.live.get(), self.cache.traffic());
        let now = self.cache.clock().now();
        traffic.watch(settings.hot_keys, settings.miss_ratio_curve, now);
        traffic.gather(self.counters(), now);
    }

    /// Lets what is known of the traffic follow it. Call it once a second.
    pub(super) fn tick_traffic(&self) {
        let now = self.cache.clock().now();
        self.cache.traffic().tick(self.counters(), self.cache.memory(), now);
    }

    /// The hottest keys, the hottest first: at most so many, and none if nobody watches.
    pub fn hot_keys(&self, most: usize) -> Vec<HotKey> {
        let traffic = self.cache.traffic();
        traffic.gather(self.counters(), self.cache.clock().now());
        traffic.hot_keys(most)
    }

    /// The largest keys in memory, the largest first, with what MEMORY USAGE says of each: at most so
    /// many, and none if nobody watches.
    pub fn big_keys(&self, most: usize) -> Vec<crate::cache::traffic::BigKey> {
        let (memory, now) = (self.cache.memory(), self.cache.clock().now());
        let mut all = self.cache.traffic().big_keys(most, memory, now);
        all.iter_mut().for_each(|key| key.bytes += SLOT);
        all
    }

    /// The miss-ratio curve; `None` if nobody watches.
    pub fn miss_ratio_curve(&self) -> Option<Estimate> {
        let traffic = self.cache.traffic();
        traffic.gather(self.counters(), self.cache.clock().now());
        traffic.estimate(self.cache.memory())
    }
}

/// Notes some of the requests of a batch, as the thread's sampler picks them. Those of a client that hasn't
/// authenticated, and questions about a key (OBJECT, MEMORY USAGE), are none.
#[cold]
pub(super) fn note_requests(
    session: &Session,
    buf: &[u8],
    batch: &Batch,
    requests: Range<usize>,
    found: &[Found],
) {
    let (sampler, traffic) = (&session.stats.keys.sampler, session.cache().traffic());
    let watches = traffic.watches_keys();
    sampler.pick(requests.len(), |at, count| {
        let Some(entry) = found[at].entry.filter(|_| watches && session.authenticated) else {
            return;
        };
        let request = &batch.requests[requests.start + at];
        let spans = &batch.spans[request.first as usize..][..request.count as usize];
        if !matches!(entry.row.run, Run::Keys(_)) || !entry.row.takes(spans.len()) {
            return;
        }
        let mut keys = 0;
        for_each_key(entry.row, spans.len(), |_| keys += 1);
        // Of many keys a few stand for all.
        let stride = usize::div_ceil(keys, NOTED).max(1);
        let mut until = sampler.random(stride as u32) as usize;
        for_each_key(entry.row, spans.len(), |place| {
            if until == 0 {
                until = stride;
                let key = Key { bytes: spans[place].of(buf), hash: spans[place].hash };
                sampler.note_request(session.db, key, count * stride as u32);
            }
            until -= 1;
        });
    });
    traffic.offer(&session.stats.keys, session.now);
}

/// `[COUNT count]`.
fn count(args: Args<'_>) -> Result<usize, Stop> {
    match args.len() {
        1 => Ok(SHOWN),
        3 if args.is(1, "count") => {
            let count = usize::try_from(args.integer(2)?).ok().filter(|count| *count > 0);
            Ok(count.ok_or(ClientError::new("ERR COUNT must be greater than 0"))?)
        }
        _ => Err(ClientError::SYNTAX.into()),
    }
}

fn field(reply: &mut Reply<'_>, name: &str, value: f64) {
    reply.bulk(name.as_bytes());
    reply.double(value);
}

fn number(reply: &mut Reply<'_>, name: &str, value: u64) {
    reply.bulk(name.as_bytes());
    reply.integer(value as i64);
}

fn text(reply: &mut Reply<'_>, name: &str, value: &[u8]) {
    reply.bulk(name.as_bytes());
    reply.bulk(value);
}

/// A number with as many digits as mean something.
fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

fn hot_keys(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let all = session.shared.hot_keys(count(args)?);
    reply.array(all.len());
    for HotKey { db, key, per_second, error, share } in &all {
        reply.map(5);
        text(reply, "key", key);
        number(reply, "db", *db as u64);
        field(reply, "per_second", rounded(*per_second, 1));
        field(reply, "error", rounded(*error, 1));
        field(reply, "share", rounded(*share, 5));
    }
    Ok(())
}

fn big_keys(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let all = session.shared.big_keys(count(args)?);
    reply.array(all.len());
    for known in &all {
        reply.map(4);
        text(reply, "key", &known.key);
        number(reply, "db", known.db as u64);
        number(reply, "bytes", known.bytes as u64);
        text(reply, "type", b"string");
    }
    Ok(())
}

fn curve(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let Some(Estimate { points, basis }) = session.shared.miss_ratio_curve() else {
        reply.null();
        return Ok(());
    };
    reply.map(6);
    number(reply, "memory", session.cache().memory().rules().limit() as u64);
    reply.bulk(b"curve");
    reply.array(points.len());
    for point in &points {
        reply.map(3);
        field(reply, "times", point.times);
        number(reply, "bytes", point.bytes);
        field(reply, "hit_ratio", rounded(point.hit_ratio, 4));
    }
    number(reply, "enough", u64::from(basis.is_enough));
    number(reply, "samples", basis.samples as u64);
    number(reply, "keys", basis.keys as u64);
    field(reply, "rate", basis.rate);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{call, session};

    #[test]
    fn the_hottest_keys_come_first() {
        let mut session = session();
        session.shared.apply_settings();
        for number in 0..300 {
            call(&mut session, &["SET", &format!("cold:{number}"), "v"]);
            call(&mut session, &["GET", "hot"]);
        }
        session.db = 2;
        for _ in 0..100 {
            call(&mut session, &["MGET", "warm", "other"]);
            call(&mut session, &["OBJECT", "ENCODING", "cold:1"]);
        }
        let top = session.shared.hot_keys(3);
        let named: Vec<_> = top.iter().map(|hot| (hot.db, &*hot.key)).collect();
        assert_eq!(named, [(0, &b"hot"[..]), (2, b"other"), (2, b"warm")]);
        assert!((top[0].share - 300.0 / 800.0).abs() < 0.02, "{top:?}");
        let said = call(&mut session, &["LARDER.HOTKEYS", "COUNT", "1"]);
        assert!(
            said.starts_with("*1\r\n*10\r\n$3\r\nkey\r\n$3\r\nhot\r\n$2\r\ndb\r\n:0\r\n"),
            "{said}"
        );
        session.db = 0;
        call(&mut session, &["SET", "hot", "v"]);
        // Eight for each doubling.
        assert_eq!(call(&mut session, &["OBJECT", "FREQ", "hot"]), ":65\r\n");
        assert_eq!(call(&mut session, &["OBJECT", "FREQ", "cold:299"]), ":8\r\n");
        for wrong in [&["COUNT"][..], &["COUNT", "0"], &["COUNT", "x"], &["NUMBER", "1"]] {
            let words = [&["LARDER.HOTKEYS"][..], wrong].concat();
            assert!(call(&mut session, &words).starts_with("-ERR"), "{wrong:?}");
        }
    }

    #[test]
    fn the_largest_keys_are_those_that_are_there() {
        let mut session = session();
        session.shared.apply_settings();
        for number in 0..400 {
            let value =
                "v".repeat(if number < 396 { number * 10 } else { 8_000 << (number - 396) });
            call(&mut session, &["SET", &format!("k{number}"), &value]);
        }
        call(&mut session, &["DEL", "k399"]);
        call(&mut session, &["SET", "k398", "short"]);
        call(&mut session, &["APPEND", "k1", &"v".repeat(100_000)]);
        let keys = |session: &crate::command::Session| -> Vec<String> {
            let all = session.shared.big_keys(3);
            all.iter().map(|big| String::from_utf8_lossy(&big.key).into_owned()).collect()
        };
        assert_eq!(keys(&session), ["k1", "k397", "k396"]);
        let usage = call(&mut session, &["MEMORY", "USAGE", "k1"]);
        assert_eq!(usage, format!(":{}\r\n", session.shared.big_keys(1)[0].bytes));
        session.shared.tick();
        assert_eq!(keys(&session), ["k1", "k397", "k396"]);
        call(&mut session, &["SWAPDB", "0", "3"]);
        session.shared.tick();
        assert_eq!(keys(&session), ["k1", "k397", "k396"]);
        assert!(session.shared.big_keys(3).iter().all(|big| big.db == 3));
        call(&mut session, &["FLUSHALL"]);
        assert_eq!(call(&mut session, &["LARDER.BIGKEYS"]), "*0\r\n");
        call(&mut session, &["SET", "k", "v"]);
        assert_eq!(keys(&session), ["k"]);
    }

    #[test]
    fn more_memory_would_bring_more_hits() {
        let mut session = session();
        session.shared.live.config_set(&[(b"maxmemory", b"1mb")]).expect("set");
        session.shared.apply_settings();
        // 3,000 keys of a kilobyte, in turns, of which memory has room for a third.
        let value = "v".repeat(900);
        for step in 0..9_000 {
            let key = format!("key:{}", step % 3_000);
            if call(&mut session, &["GET", &key]) == "$-1\r\n" {
                call(&mut session, &["SET", &key, &value]);
            }
        }
        let estimate = session.shared.miss_ratio_curve().expect("it is watched");
        let ratios: Vec<f64> = estimate.points.iter().map(|point| point.hit_ratio).collect();
        // None of it is a hit until all of it fits. Which few dozen keys are sampled is left to the hash's seed.
        assert!(ratios.is_sorted() && ratios[3] - ratios[1] > 0.25, "{estimate:?}");
        assert!(ratios[3..].iter().all(|ratio| (0.4..0.9).contains(ratio)), "{estimate:?}");
        assert_eq!(estimate.points[2].bytes, 2 << 20);
        let said = call(&mut session, &["LARDER.MRC"]);
        assert!(said.contains("$6\r\nmemory\r\n:1048576\r\n$5\r\ncurve\r\n*5\r\n"), "{said}");
    }

    #[test]
    fn nothing_is_known_where_nobody_watches() {
        let mut session = session();
        let off: [(&[u8], &[u8]); 2] = [(b"hot-keys", b"no"), (b"miss-ratio-curve", b"no")];
        session.shared.live.config_set(&off).expect("set");
        session.shared.apply_settings();
        for _ in 0..100 {
            call(&mut session, &["SET", "k", "v"]);
        }
        session.shared.tick();
        assert_eq!(call(&mut session, &["LARDER.HOTKEYS"]), "*0\r\n");
        assert_eq!(call(&mut session, &["LARDER.BIGKEYS"]), "*0\r\n");
        assert_eq!(call(&mut session, &["LARDER.MRC"]), "$-1\r\n");
        assert!(call(&mut session, &["OBJECT", "FREQ", "k"]).starts_with("-ERR An LFU"));
        // What was counted before it is watched isn't taken for what wasn't sampled.
        let on: [(&[u8], &[u8]); 2] = [(b"hot-keys", b"yes"), (b"miss-ratio-curve", b"yes")];
        session.shared.live.config_set(&on).expect("set");
        session.shared.apply_settings();
        assert!(session.shared.miss_ratio_curve().expect("it is watched").points.is_empty());
    }
}
