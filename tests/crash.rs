//! Kills: what a server that died had acknowledged is never undone by what its successor finds on disk
//! (SEMANTICS 7, 8).
//!
//! Connections write, overwrite, delete and re-time keys of their own and keep a record of what was
//! acknowledged; the server is killed at a random moment, started again, and asked for every key.

mod common;

use std::{
    collections::HashMap,
    io::{Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{Server, encode, reply_end};

/// Kills; more with `LARDER_KILLS`.
const KILLS: u64 = 100;
const WRITERS: u64 = 4;
/// Keys of each writer.
const KEYS: u64 = 1_000;
const FLAGS: &[&str] = &["--memory", "2mb", "--disk-size", "24mb", "--workers", "2"];
/// Deadlines are compared with this tolerance, in milliseconds.
const SLACK: u64 = 200;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// What a key may hold: a value and when it ends (0: never), or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Holds(u64, u64),
}

/// What is known of a key: the last acknowledged state, and one that may have come after it.
#[derive(Clone, Debug)]
struct Known {
    acknowledged: State,
    asked: Option<State>,
}

impl Known {
    fn new() -> Self {
        Self { acknowledged: State::Absent, asked: None }
    }

    /// Whether a value may be read now. A cache may always forget.
    fn allows(&self, version: u64, now: u64) -> bool {
        let holds = |state: &State| match state {
            State::Holds(known, deadline) => {
                *known == version && (*deadline == 0 || now < deadline + SLACK)
            }
            State::Absent => false,
        };
        holds(&self.acknowledged) || self.asked.as_ref().is_some_and(holds)
    }
}

fn value(version: u64) -> Vec<u8> {
    let mut value = format!("{version}:").into_bytes();
    value.resize(value.len() + 100 + (version % 1_900) as usize, b'v');
    value
}

fn version_of(value: &[u8]) -> u64 {
    let digits = value.split(|byte| *byte == b':').next().expect("a part");
    let version = std::str::from_utf8(digits).expect("digits").parse().expect("a number");
    assert_eq!(value, self::value(version), "the value is damaged");
    version
}

struct Writer {
    number: u64,
    random: u64,
    version: u64,
    keys: HashMap<u64, Known>,
}

impl Writer {
    fn key(&self, key: u64) -> String {
        format!("writer:{}:{key}", self.number)
    }

    /// Writes until the server is gone.
    fn work(mut self, port: u16, stop: &AtomicBool) -> Self {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return self };
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        while !stop.load(Relaxed) {
            let random = next(&mut self.random);
            let key = random % KEYS;
            let name = self.key(key);
            let known = self.keys.get(&key).cloned().unwrap_or_else(Known::new);
            self.version += 1;
            let deadline = now() + 1 + random % 2_000;
            let (words, after): (Vec<Vec<u8>>, State) = match (random >> 32) % 20 {
                0..10 => (
                    vec![b"SET".to_vec(), name.into(), value(self.version)],
                    State::Holds(self.version, 0),
                ),
                10..12 => (
                    vec![
                        b"SET".to_vec(),
                        name.into(),
                        value(self.version),
                        b"PXAT".to_vec(),
                        deadline.to_string().into(),
                    ],
                    State::Holds(self.version, deadline),
                ),
                12..15 => (vec![b"DEL".to_vec(), name.into()], State::Absent),
                15..16 => {
                    let after = match known.acknowledged {
                        State::Holds(version, _) => State::Holds(version, deadline),
                        State::Absent => State::Absent,
                    };
                    let time = deadline.to_string().into();
                    (vec![b"PEXPIREAT".to_vec(), name.into(), time], after)
                }
                _ => {
                    // Moves keys between the tiers.
                    let Some(reply) = ask(&mut stream, &[b"GET".to_vec(), name.into()]) else {
                        break;
                    };
                    if let Some(found) = reply {
                        let version = version_of(&found);
                        assert!(known.allows(version, now()), "key {key}: {version}, {known:?}");
                    }
                    continue;
                }
            };
            let entry = self.keys.entry(key).or_insert_with(Known::new);
            entry.asked = Some(after.clone());
            if ask(&mut stream, &words).is_none() {
                break;
            }
            *entry = Known { acknowledged: after, asked: None };
        }
        self
    }

    /// Compares what the server has with what is known; returns how many keys were found.
    fn compare(&mut self, port: u16) -> u64 {
        let mut stream =
            std::net::TcpStream::connect(("127.0.0.1", port)).expect("the server serves");
        let mut found = 0;
        for (key, known) in &mut self.keys {
            let name = format!("writer:{}:{key}", self.number);
            let reply = ask(&mut stream, &[b"GET".to_vec(), name.clone().into()]).expect("a reply");
            let after = match reply {
                None => State::Absent,
                Some(value) => {
                    found += 1;
                    let version = version_of(&value);
                    assert!(known.allows(version, now()), "{name} is {version}, but {known:?}");
                    let deadline = [Some(&known.acknowledged), known.asked.as_ref()]
                        .into_iter()
                        .flatten()
                        .find_map(|state| match state {
                            State::Holds(known, deadline) if *known == version => Some(*deadline),
                            _ => None,
                        });
                    State::Holds(version, deadline.unwrap_or(0))
                }
            };
            // A re-timing that wasn't acknowledged leaves two deadlines possible.
            let asked = known.asked.take().filter(|asked| {
                matches!((asked, &after), (State::Holds(a, _), State::Holds(b, _)) if a == b)
            });
            *known = Known { acknowledged: after, asked };
        }
        found
    }
}

/// Sends a request and reads a bulk string, or anything else as nothing; `None` if the server is gone.
fn ask(stream: &mut std::net::TcpStream, words: &[Vec<u8>]) -> Option<Option<Vec<u8>>> {
    stream.write_all(&encode(words)).ok()?;
    let (mut buf, mut chunk) = (Vec::new(), [0; 8192]);
    while reply_end(&buf, 0).is_none() {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        buf.extend_from_slice(&chunk[..count]);
    }
    assert_ne!(buf[0], b'-', "{}", String::from_utf8_lossy(&buf));
    let line = buf.windows(2).position(|pair| pair == b"\r\n").expect("a line");
    let is_value = buf[0] == b'$' && buf[1] != b'-';
    Some(is_value.then(|| buf[line + 2..buf.len() - 2].to_vec()))
}

fn seed() -> u64 {
    let seed = std::env::var("LARDER_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.unwrap_or_else(|| now() | 1)
}

fn start(dir: &Path) -> Server {
    Server::start_in(dir, FLAGS)
}

/// The records on disk, by INFO.
fn entries(server: &Server) -> f64 {
    let text: String = redis::cmd("INFO").arg("tiers").query(&mut server.connect()).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix("l3:")).expect("a third tier");
    let entries = line.split(',').find_map(|field| field.strip_prefix("entries="));
    entries.expect("the field").parse().expect("a number")
}

/// SEMANTICS 7, 8: *v1 waits to be written, SET k v2, kill -9, start: v1 is back.*
#[test]
fn kills_bring_back_nothing_that_was_overwritten_or_deleted() {
    let kills = std::env::var("LARDER_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills: u64 = kills.unwrap_or(KILLS);
    let seed = seed();
    println!("LARDER_SEED={seed}");
    let dir = tempfile::tempdir().expect("a directory");
    let mut random = seed;
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|number| Writer {
            number,
            random: next(&mut random) | 1,
            version: 0,
            keys: HashMap::new(),
        })
        .collect();
    let mut server = start(dir.path());
    let (mut kept, mut had, mut total) = (0.0, 0.0, 0);
    for kill in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let port = server.port();
        let threads: Vec<_> = writers
            .drain(..)
            .map(|writer| {
                let stop = stop.clone();
                thread::spawn(move || writer.work(port, &stop))
            })
            .collect();
        thread::sleep(Duration::from_micros(20_000 + next(&mut random) % 80_000));
        // Now and then the end comes in a quiet moment, when what is on disk can be counted.
        let is_quiet = kill % 5 == 4;
        if is_quiet {
            stop.store(true, Relaxed);
            writers =
                threads.into_iter().map(|thread| thread.join().expect("no stale read")).collect();
            let before = entries(&server);
            server.kill9();
            server = start(dir.path());
            had += before;
            kept += entries(&server);
        } else {
            server.kill9();
            writers =
                threads.into_iter().map(|thread| thread.join().expect("no stale read")).collect();
            server = start(dir.path());
        }
        let found: u64 = writers.iter_mut().map(|writer| writer.compare(server.port())).sum();
        total += found;
    }
    // Fewer where the machine is slow; it is here to see that something was compared.
    assert!(total > kills * KEYS / 50, "only {total} keys were found; seed {seed}");
    assert!(had > 100.0 && kept >= had * 0.9, "{kept} of {had} records came back; seed {seed}");
}
