//! Writers that are killed: connections write and delete keys of their own and keep a record; the server is
//! killed at a random moment and started again, brings its journal to the store, is killed, and the store is
//! looked into.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::HashMap,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;

use super::common::{Server, encode};

const WRITERS: u64 = 4;
/// Keys of each writer.
const KEYS: u64 = 50;

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// What is known of a key: the last acknowledged number (0: deleted, or never there), and what may have come
/// after it.
#[derive(Clone, Copy, Default)]
struct Known {
    acknowledged: u64,
    asked: Option<u64>,
}

struct Writer {
    number: u64,
    random: u64,
    last: u64,
    keys: HashMap<u64, Known>,
}

impl Writer {
    fn key(&self, key: u64) -> String {
        format!("b:{}:{key}", self.number)
    }

    /// Writes until the server is gone, some at a time in one pipeline.
    fn work(mut self, port: u16, stop: &AtomicBool) -> Self {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return self };
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        while !stop.load(Relaxed) {
            let count = 1 + next(&mut self.random) % 8;
            let (mut request, mut asked) = (Vec::new(), Vec::new());
            for _ in 0..count {
                let random = next(&mut self.random);
                let (key, is_delete) = (random % KEYS, (random >> 32).is_multiple_of(8));
                let name = self.key(key).into_bytes();
                self.last += 1;
                let number = if is_delete { 0 } else { self.last };
                let words = if is_delete {
                    vec![b"DEL".to_vec(), name]
                } else {
                    vec![b"SET".to_vec(), name, number.to_string().into_bytes()]
                };
                request.extend(encode(&words));
                asked.push((key, number));
            }
            // What is asked may be done, from here on.
            for (key, number) in &asked {
                self.keys.entry(*key).or_default().asked = Some(*number);
            }
            if stream.write_all(&request).is_err() {
                break;
            }
            let mut answered = 0;
            for (key, number) in &asked {
                let Some(line) = read_line(&mut stream) else { break };
                answered += 1;
                // A DEL whose old value the store doesn't tell has changed nothing.
                if line.starts_with("-STOREDOWN ") || line.starts_with("-STORETIMEOUT ") {
                    assert_eq!(*number, 0, "a SET needs no store: {line}");
                    continue;
                }
                assert!(line.starts_with('+') || line.starts_with(':'), "{line}");
                self.keys.entry(*key).or_default().acknowledged = *number;
            }
            if answered < asked.len() {
                break;
            }
            asked.iter().for_each(|(key, _)| self.keys.entry(*key).or_default().asked = None);
        }
        self
    }

    /// Compares what the store has with what is known, and goes on from there; how many values are the
    /// acknowledged ones. `versions` has number and version of each key at the last look.
    fn compare(
        &mut self,
        dir: &Path,
        versions: &mut HashMap<String, (u64, u64)>,
        story: &str,
    ) -> u64 {
        let known: Vec<(u64, Known)> =
            self.keys.iter().map(|(key, known)| (*key, *known)).collect();
        let names: Vec<String> = known.iter().map(|(key, _)| self.key(*key)).collect();
        let stored = look(dir, &names);
        let mut count = 0;
        for (((key, known), name), (number, version)) in known.into_iter().zip(names).zip(stored) {
            let is_right = number == known.acknowledged
                // Unacknowledged ones of a pipeline may be there: any of them, but no older one.
                || known.asked.is_some() && (number > known.acknowledged || number == 0);
            assert!(
                is_right,
                "{story}: {name} is {number}, acknowledged was {}, asked {:?}",
                known.acknowledged, known.asked
            );
            count += u64::from(known.acknowledged == number);
            let before = versions.insert(name.clone(), (number, version)).unwrap_or_default();
            if number > 0 && before.0 > 0 {
                let in_order = (number, version) >= before;
                assert!(in_order, "{name} went back from {before:?} to {number} {version}");
            }
            let after = Known { acknowledged: number, asked: None };
            self.keys.insert(key, after);
        }
        count
    }
}

fn read_line(stream: &mut std::net::TcpStream) -> Option<String> {
    use std::io::Read;
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    line.truncate(line.len() - 2);
    Some(String::from_utf8(line).expect("text"))
}

/// What the store has: number and version of each key.
pub fn look(dir: &Path, keys: &[String]) -> Vec<(u64, u64)> {
    let store = larder::store::redb(dir.join("store.redb")).expect("the store opens");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let keys: Vec<Bytes> = keys.iter().map(|key| Bytes::from(key.clone())).collect();
    let found = runtime.block_on(store.load(&keys)).expect("the store serves");
    let number = |record: larder::store::Record| {
        let text = std::str::from_utf8(&record.value).expect("digits");
        (text.parse().expect("a number"), record.version)
    };
    found.into_iter().map(|record| record.map_or((0, 0), number)).collect()
}

/// Kills the server that `start` gives while connections write, `kills` times, or as often as `LARDER_KILLS`
/// says; after each, the one that `heal` gives brings the journal to the store, `store.redb` in the
/// directory, which then has everything that was acknowledged, the newest of each key.
pub fn kill_and_look(kills: u64, start: impl Fn(&Path) -> Server, heal: impl Fn(&Path) -> Server) {
    let kills = std::env::var("LARDER_KILLS").map_or(kills, |text| text.parse().expect("a number"));
    let seed = std::env::var("LARDER_SEED").map_or_else(
        |_| std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64,
        |text| text.parse().expect("a number"),
    );
    println!("LARDER_SEED={seed} LARDER_KILLS={kills}");
    let mut random = seed | 1;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|number| Writer {
            number,
            random: next(&mut random) | 1,
            last: 0,
            keys: HashMap::new(),
        })
        .collect();
    let mut versions = HashMap::new();
    let mut acknowledged = 0;
    for kill in 0..kills {
        let mut server = start(dir.path());
        let (port, stop) = (server.port(), Arc::new(AtomicBool::new(false)));
        let at_work: Vec<_> = writers
            .drain(..)
            .map(|writer| {
                let stop = stop.clone();
                thread::spawn(move || writer.work(port, &stop))
            })
            .collect();
        thread::sleep(Duration::from_micros(next(&mut random) % 150_000));
        server.kill9();
        stop.store(true, Relaxed);
        writers = at_work.into_iter().map(|writer| writer.join().expect("no lie")).collect();
        // The next start brings the journal to the store.
        let mut server = heal(dir.path());
        assert_eq!(server.raw().ask_line("LARDER.FLUSH"), "+OK\r\n");
        server.kill9();
        let story = format!("kill {kill} of seed {seed}");
        for writer in &mut writers {
            acknowledged += writer.compare(dir.path(), &mut versions, &story);
        }
    }
    println!("{acknowledged} acknowledged values found");
    assert!(acknowledged > kills * 10, "the writers hardly wrote");
}
