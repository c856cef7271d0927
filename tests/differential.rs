//! Random sequences of commands against redis-server 7.0 and Larder, in RESP2 and RESP3: every reply is
//! the same, byte for byte, or the difference is in `tests/differences.toml` with its reason.
//!
//! Replies without an order are compared as sets, times with a tolerance, payloads of DUMP by what they
//! become where they are restored. `LARDER_SEED` chooses another sequence, `LARDER_COMMANDS` another
//! length.

mod common;
#[path = "differential/differences.rs"]
mod differences;
#[path = "differential/generator.rs"]
mod generator;

use common::{Raw, Server, encode, redis7, reply_end};
use differences::Difference;
use generator::Generator;

/// A command, or a reply taken apart.
pub type Words = Vec<Vec<u8>>;

const SEED: u64 = 7;
const COMMANDS: usize = 100_000;
/// Commands that are under way at a time.
const CHUNK: usize = 100;
/// Differences that are worth a look before the test gives up.
const ENOUGH: usize = 40;
/// Seconds by which two servers may see a deadline differently.
const TOLERANCE: i64 = 3;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn larder_replies_as_redis_does() {
    let Some(redis) = redis7() else { return };
    let larder = Server::start(&["--maxmemory-policy", "noeviction", "--memory", "1gb"]);
    let seed = from_environment("LARDER_SEED", SEED);
    let commands = from_environment("LARDER_COMMANDS", COMMANDS as u64) as usize;
    let mut all = Vec::new();
    let known = differences::known();
    let mut met = vec![0; known.len()];
    for (session, hello) in ["2", "3"].into_iter().enumerate() {
        let mut pair =
            Pair::new(redis.port(), larder.port(), hello, seed ^ ((session as u64) << 32), &known);
        for _ in 0..commands / 2 / CHUNK {
            pair.chunk();
            if pair.unexplained.len() >= ENOUGH {
                break;
            }
        }
        all.append(&mut pair.unexplained);
        met.iter_mut().zip(&pair.met).for_each(|(sum, count)| *sum += count);
    }
    assert!(
        all.is_empty(),
        "{} differences with LARDER_SEED={seed}:\n\n{}",
        all.len(),
        all.join("\n\n")
    );
    for (entry, count) in known.iter().zip(&met) {
        let expected = seed == SEED && commands >= COMMANDS;
        assert!(*count > 0 || !expected, "no longer seen: {}", entry.title());
    }
}

/// A command with both replies.
struct Turn {
    words: Words,
    redis: Vec<u8>,
    larder: Vec<u8>,
}

/// Names the command whose reply doesn't come.
struct Waiting<'a>(&'a Words);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("waiting for the reply to {}", shown(self.0));
        }
    }
}

/// The two servers, asked the same.
struct Pair<'a> {
    redis: Raw,
    larder: Raw,
    hello: &'static str,
    generator: Generator,
    /// What was asked since both were empty.
    turns: Vec<Turn>,
    known: &'a [Difference],
    met: Vec<usize>,
    unexplained: Vec<String>,
}

impl<'a> Pair<'a> {
    fn new(
        redis: u16,
        larder: u16,
        hello: &'static str,
        seed: u64,
        known: &'a [Difference],
    ) -> Self {
        let mut pair = Self {
            redis: Raw::connect(redis),
            larder: Raw::connect(larder),
            hello,
            generator: Generator::new(seed),
            turns: Vec::new(),
            known,
            met: vec![0; known.len()],
            unexplained: Vec::new(),
        };
        pair.start_over();
        pair
    }

    /// Empties both servers, after a difference that may have left them with different contents.
    fn start_over(&mut self) {
        self.turns.clear();
        for words in [&["RESET"][..], &["FLUSHALL"], &["HELLO", self.hello]] {
            self.redis.ask(words);
            self.larder.ask(words);
        }
    }

    /// Asks both a chunk of commands, compares, then compares what SCAN and DUMP see.
    fn chunk(&mut self) {
        let commands: Vec<Words> = (0..CHUNK).map(|_| self.generator.command()).collect();
        let mut bytes = Vec::new();
        for words in &commands {
            bytes.extend(if self.generator.random.one_in(20) {
                inline(words)
            } else {
                encode(words)
            });
        }
        self.redis.send(&bytes);
        self.larder.send(&bytes);
        let before = self.unexplained.len();
        for words in commands {
            let waiting = Waiting(&words);
            let (redis, larder) = (self.redis.reply(), self.larder.reply());
            drop(waiting);
            self.compare(words, redis, larder);
        }
        self.scan();
        self.cross_restore();
        if self.unexplained.len() > before {
            self.start_over();
        }
        // Enough to show what led to a difference.
        let old = self.turns.len().saturating_sub(2000);
        self.turns.drain(..old);
    }

    fn compare(&mut self, words: Words, redis: Vec<u8>, larder: Vec<u8>) {
        if !agree(&words, &redis, &larder) {
            let explains = |entry: &Difference| entry.explains(&words, &redis, &larder);
            match self.known.iter().position(explains) {
                Some(at) => self.met[at] += 1,
                None => self.unexplained.push(self.story(&words, &redis, &larder)),
            }
        }
        self.turns.push(Turn { words, redis, larder });
    }

    /// A difference with the last commands that named one of the same keys, or all of them.
    fn story(&self, words: &Words, redis: &[u8], larder: &[u8]) -> String {
        let sweeping = [&b"flushall"[..], b"flushdb", b"select", b"swapdb", b"reset"];
        let related = |turn: &&Turn| {
            let name = turn.words[0].to_ascii_lowercase();
            let shares = turn.words[1..].iter().any(|word| words[1..].contains(word));
            shares || sweeping.contains(&&*name)
        };
        let mut lines: Vec<String> =
            self.turns.iter().rev().filter(related).take(12).map(line).collect();
        lines.reverse();
        lines.push(format!("RESP{} > {}", self.hello, shown(words)));
        lines.push(format!("  redis:  {}", redis.escape_ascii()));
        lines.push(format!("  larder: {}", larder.escape_ascii()));
        lines.join("\n")
    }

    /// Compares the keys that a whole iteration of SCAN finds.
    fn scan(&mut self) {
        let count = (1 + self.generator.random.below(4)).to_string();
        let redis = iterate(&mut self.redis, &count);
        let larder = iterate(&mut self.larder, &count);
        let words = vec![b"SCAN".to_vec(), b"(all)".to_vec()];
        self.compare(words, encode(&redis), encode(&larder));
    }

    /// Restores what DUMP gives on either server on the other one, and compares what it became.
    fn cross_restore(&mut self) {
        let key = self.generator.key();
        let ask: [&[u8]; 2] = [b"DUMP", &key];
        let payloads = [bulk(&self.redis.ask(&ask)), bulk(&self.larder.ask(&ask))];
        let [Some(of_redis), Some(of_larder)] = payloads else { return };
        let restore: [&[u8]; 5] = [b"RESTORE", b"restored", b"0", &of_larder, b"REPLACE"];
        let mut seen_by_redis = self.redis.ask(&restore);
        let restore: [&[u8]; 5] = [b"RESTORE", b"restored", b"0", &of_redis, b"REPLACE"];
        let mut seen_by_larder = self.larder.ask(&restore);
        for words in [["GET", "restored"], ["DEL", "restored"]] {
            seen_by_redis.extend(self.redis.ask(&words));
            seen_by_larder.extend(self.larder.ask(&words));
        }
        self.compare(
            vec![b"DUMP".to_vec(), key, b"(restored)".to_vec()],
            seen_by_redis,
            seen_by_larder,
        );
        self.generator.payloads.extend([of_redis, of_larder]);
        if self.generator.payloads.len() > 64 {
            self.generator.payloads.drain(..2);
        }
    }
}

/// The keys of a whole iteration, sorted, each once.
fn iterate(server: &mut Raw, count: &str) -> Words {
    let (mut keys, mut cursor) = (Words::new(), b"0".to_vec());
    loop {
        let reply = server.ask(&[b"SCAN", &*cursor, b"COUNT", count.as_bytes()]);
        let items = items(&reply);
        keys.extend(crate::items(items[1]).iter().filter_map(|item| bulk(item)));
        cursor = bulk(items[0]).expect("a cursor");
        if cursor == b"0" {
            keys.sort();
            keys.dedup();
            return keys;
        }
    }
}

/// The request as a line for humans; as an array if the words don't fit one.
fn inline(words: &Words) -> Vec<u8> {
    let plain = |word: &Vec<u8>| !word.is_empty() && word.iter().all(u8::is_ascii_alphanumeric);
    if !words.iter().all(plain) {
        return encode(words);
    }
    let mut line = words.join(&b' ');
    line.extend(b"\r\n");
    line
}

/// Whether two replies to a command mean the same.
fn agree(words: &Words, redis: &[u8], larder: &[u8]) -> bool {
    if redis == larder {
        return true;
    }
    let kind = |reply: &[u8]| reply.first().copied();
    if kind(redis) != kind(larder) {
        return false;
    }
    // What an error repeats of a request is made UTF-8.
    if kind(redis) == Some(b'-') {
        return String::from_utf8_lossy(redis) == String::from_utf8_lossy(larder);
    }
    let is = |at: usize, name: &str| words[at].eq_ignore_ascii_case(name.as_bytes());
    let name = words[0].to_ascii_lowercase();
    match &*name {
        b"keys" => sorted(items(redis)) == sorted(items(larder)),
        b"scan" if words[1] != b"(all)" => same_scan(words, redis, larder),
        b"ttl" | b"expiretime" => close(redis, larder, TOLERANCE),
        b"pttl" | b"pexpiretime" => close(redis, larder, TOLERANCE * 1000),
        // Redis counts some commands that fail, and lookups that change nothing, as uses.
        b"object" if is(1, "idletime") => integer(redis).is_some() && integer(larder).is_some(),
        b"randomkey" => bulk(redis).is_some() && bulk(larder).is_some(),
        b"dump" if words.len() == 2 => bulk(redis).is_some() && bulk(larder).is_some(),
        b"memory" => integer(redis).is_some() && integer(larder).is_some(),
        b"command" if words.len() == 1 || is(1, "info") => true,
        b"command" => sorted(items(redis)) == sorted(items(larder)),
        b"time" => items(redis).len() == items(larder).len(),
        // Either names its own version and the connection's number.
        b"hello" => true,
        // What was slow is up to the machine.
        b"slowlog" => true,
        _ => false,
    }
}

/// A part of an iteration may be any part; one that is whole has the same keys.
fn same_scan(words: &Words, redis: &[u8], larder: &[u8]) -> bool {
    let [redis, larder] = [items(redis), items(larder)];
    let is_whole = words[1] == b"0" && redis[0] == larder[0];
    !is_whole || sorted(items(redis[1])) == sorted(items(larder[1]))
}

fn sorted(mut items: Vec<&[u8]>) -> Vec<&[u8]> {
    items.sort_unstable();
    items
}

fn close(redis: &[u8], larder: &[u8], tolerance: i64) -> bool {
    let numbers = integer(redis).zip(integer(larder));
    numbers.is_some_and(|(redis, larder)| {
        redis >= 0 && larder >= 0 && redis.abs_diff(larder) <= tolerance as u64
    })
}

fn integer(reply: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(reply).ok()?.strip_prefix(':')?;
    text.trim_end().parse().ok()
}

/// The bytes of a bulk string; `None` for others and for null.
fn bulk(reply: &[u8]) -> Option<Vec<u8>> {
    let line = reply.windows(2).position(|pair| pair == b"\r\n")?;
    let is_bulk = reply.starts_with(b"$") && !reply.starts_with(b"$-");
    is_bulk.then(|| reply[line + 2..reply.len() - 2].to_vec())
}

/// The replies in an array, a set, a map.
fn items(reply: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let Some(line) = reply.windows(2).position(|pair| pair == b"\r\n") else { return found };
    let mut at = line + 2;
    while let Some(end) = (at < reply.len()).then(|| reply_end(reply, at)).flatten() {
        found.push(&reply[at..end]);
        at = end;
    }
    found
}

fn shown(words: &Words) -> String {
    let word = |word: &Vec<u8>| format!("\"{}\"", short(word));
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn line(turn: &Turn) -> String {
    let reply = short(&turn.redis);
    let agreed = if turn.redis == turn.larder { "" } else { "  (differs)" };
    format!("  {} -> {reply}{agreed}", shown(&turn.words))
}

fn short(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(100)];
    let more = if cut.len() < bytes.len() { "..." } else { "" };
    format!("{}{more}", cut.escape_ascii())
}
