//! Kills of a process that writes the journal: what it was told to be durable is there afterwards.
//!
//! The child is this test's own program. It appends, waits, acknowledges, and says on its output what it
//! was told, each line written before it goes on; the parent kills it after some number of lines, opens
//! the journal, and compares.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use larder::{
    clock::Clock,
    journal::{Effect, Fsync, Journal, Options, Position},
    store::Change,
    tier::disk::real::Real,
};

/// Kills; more with `LARDER_KILLS`.
const KILLS: u64 = 20;
const KEYS: u64 = 40;
const CHILD: &str = "LARDER_JOURNAL_CHILD";
const MARK: &str = "journal-child";

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

fn options(dir: &Path, round: u64) -> Options {
    let policies = [Fsync::Never, Fsync::Interval(Duration::from_millis(5)), Fsync::Always];
    let fsync = policies[(round % 3) as usize];
    Options { fsync, segment: 64 * 1024, limit: 1 << 20, ..Options::new(dir) }
}

fn say(what: &str, number: u64) {
    // Straight to the descriptor: the harness would keep it.
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{MARK} {what} {number}").and_then(|()| out.flush()).expect("the parent reads");
}

fn value(sequence: u64) -> Vec<u8> {
    let mut value = format!("{sequence}:").into_bytes();
    value.resize(value.len() + (sequence * 37 % 3_000) as usize, b'v');
    value
}

/// The child: writes until it is killed.
fn child(dir: &Path, round: u64) {
    let (journal, replay) =
        Journal::open(options(dir, round), Arc::new(Real), Clock::default()).expect("opens");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let mut random = round * 2 + 1;
    // The newest effect of each key that isn't over.
    let mut newest = BTreeMap::new();
    for replayed in replay {
        let replayed = replayed.expect("reads");
        newest.insert(replayed.key.clone(), replayed.position);
    }
    loop {
        let mut last = None;
        for _ in 0..=next(&mut random) % 20 {
            let key = bytes::Bytes::from(format!("key:{}", next(&mut random) % KEYS));
            let mut reservation =
                runtime.block_on(journal.reserve(4_096, Duration::from_secs(60))).expect("room");
            // What is appended next has this number; it is alone.
            let supersedes = newest.get(&key).copied();
            let sequence = last.or(newest.values().max().copied()).map_or(0, Position::sequence);
            let effect = Effect {
                db: 0,
                key: &key,
                value: Some(&value(sequence)),
                deadline: 0,
                version: sequence + 1,
                written: 0,
                supersedes,
            };
            let position = journal.append(&mut reservation, &effect).expect("appended");
            newest.insert(key.clone(), position);
            let key: u64 = String::from_utf8_lossy(&key[4..]).parse().expect("a number");
            say(&format!("appended {key}"), position.sequence());
            if journal.is_synced(position) {
                say("synced", position.sequence());
            }
            last = Some(position);
        }
        if let Some(last) = last {
            runtime.block_on(journal.synced(last)).expect("durable");
            say("synced", last.sequence());
        }
        if next(&mut random).is_multiple_of(3) {
            let count = next(&mut random) as usize % newest.len();
            let ended: Vec<_> =
                newest.iter().take(count).map(|(key, at)| (key.clone(), *at)).collect();
            for (key, position) in &ended {
                say("acknowledges", position.sequence());
                newest.remove(key);
            }
            journal.acknowledge(ended.into_iter().map(|(_, position)| position));
        }
    }
}

/// What the parent has heard: of each effect its key, and how far all of them are durable.
#[derive(Default)]
struct Heard {
    keys: BTreeMap<u64, u64>,
    durable: u64,
    acknowledged: Vec<u64>,
}

impl Heard {
    fn hear(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix(MARK) else { return };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let number = |word: &str| word.parse::<u64>().expect("a number");
        match words[..] {
            ["appended", key, sequence] => {
                self.keys.insert(number(sequence), number(key));
            }
            ["synced", sequence] => self.durable = self.durable.max(number(sequence)),
            ["acknowledges", sequence] => self.acknowledged.push(number(sequence)),
            _ => panic!("{line}"),
        }
    }

    /// Compares with what is in the journal, and takes that for what is known from now on.
    fn check(&mut self, dir: &Path, round: u64) {
        let (journal, replay) =
            Journal::open(options(dir, round), Arc::new(Real), Clock::default()).expect("opens");
        assert!(replay.report().damage.is_empty());
        let found: BTreeMap<u64, u64> = replay
            .map(|replayed| {
                let replayed = replayed.expect("reads");
                let key = String::from_utf8_lossy(&replayed.key[4..]).parse().expect("a number");
                let Change::Put(record) = replayed.change else { panic!("no delete was written") };
                assert_eq!(record.value, value(record.version - 1));
                (replayed.position.sequence(), key)
            })
            .collect();
        drop(journal);
        for key in 0..KEYS {
            let of_key = |map: &BTreeMap<u64, u64>| -> Vec<u64> {
                map.iter().filter(|(_, of)| **of == key).map(|(sequence, _)| *sequence).collect()
            };
            let there = of_key(&found);
            assert!(there.len() <= 1, "each supersedes the one before it: {there:?}");
            let told = of_key(&self.keys);
            let Some(newest) = told.iter().rfind(|sequence| **sequence <= self.durable) else {
                continue;
            };
            match there.first() {
                // The newest that was durable, or one that was appended later.
                Some(sequence) => assert!(sequence >= newest, "{sequence} instead of {newest}"),
                None => assert!(self.acknowledged.contains(newest), "{newest} of {key} is lost"),
            }
        }
        self.durable = found.keys().last().copied().unwrap_or(0).max(self.durable);
        self.keys = found;
    }
}

#[test]
fn what_was_durable_outlives_a_kill() {
    if let Ok(text) = env::var(CHILD) {
        let (round, dir) = text.split_once(':').expect("round and directory");
        return child(Path::new(dir), round.parse().expect("a number"));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("journal");
    let kills = env::var("LARDER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let seed = env::var("LARDER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("LARDER_SEED={seed}");
    let mut random = seed;
    let mut heard = Heard::default();
    for round in 0..kills {
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "what_was_durable_outlives_a_kill", "--nocapture"])
            .env(CHILD, format!("{round}:{}", path.display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let count = 100 + next(&mut random) % 3_000;
        for line in output.by_ref().lines().take(count as usize) {
            heard.hear(&line.expect("text"));
        }
        child.kill().expect("it runs");
        // What it still said before it died; the last line may be cut short.
        let mut rest = String::new();
        output.read_to_string(&mut rest).expect("text");
        let whole = rest.rfind('\n').unwrap_or(0);
        rest[..whole].lines().for_each(|line| heard.hear(line));
        let status = child.wait().expect("it is gone");
        assert_eq!(status.signal(), Some(9), "round {round}: it has ended by itself");
        assert!(!heard.keys.is_empty(), "round {round}: the child has said nothing");
        heard.check(&path, round);
    }
}
