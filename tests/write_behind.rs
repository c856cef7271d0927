//! Writing behind, over sockets: what was acknowledged is in the store after any kill, the newest value of
//! each key, and no key ever goes back.
//!
//! Connections write and delete keys of their own and keep a record; the server is killed at a random
//! moment and started again, brings its journal to the store, is killed, and the store is looked into.

mod common;

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
use common::{Raw, Server, encode, eventually};

/// Kills; more with `LARDER_KILLS`.
const KILLS: u64 = 60;
const WRITERS: u64 = 4;
/// Keys of each writer.
const KEYS: u64 = 50;

/// `b:` is written behind to redb, synced before it is acknowledged.
const TOML: &str = r#"
memory = "32mb"
workers = 2
[journal]
fsync = "always"
[store.main]
kind = "redb"
path = "STORE"
breaker = false
[[namespace]]
prefix = "b:"
mode = "write-behind"
store = "main"
behind-delay = "20ms"
"#;

fn start(dir: &Path) -> Server {
    let store = dir.join("store.redb");
    let toml = TOML.replace("STORE", store.to_str().expect("a plain path"));
    Server::start_with_in(dir, &toml, &[])
}

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
                assert!(line.starts_with('+') || line.starts_with(':'), "{line}");
                self.keys.entry(*key).or_default().acknowledged = *number;
                answered += 1;
            }
            if answered < asked.len() {
                break;
            }
            asked.iter().for_each(|(key, _)| self.keys.entry(*key).or_default().asked = None);
        }
        self
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
fn look(dir: &Path, keys: &[String]) -> Vec<(u64, u64)> {
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

#[test]
fn kills_lose_nothing_that_was_acknowledged() {
    let kills = std::env::var("LARDER_KILLS").map_or(KILLS, |text| text.parse().expect("a number"));
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
    let mut versions: HashMap<String, (u64, u64)> = HashMap::new();
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
        let mut server = start(dir.path());
        assert_eq!(server.raw().ask_line("LARDER.FLUSH"), "+OK\r\n");
        server.kill9();
        for writer in &mut writers {
            let known: Vec<(u64, Known)> =
                writer.keys.iter().map(|(key, known)| (*key, *known)).collect();
            let names: Vec<String> = known.iter().map(|(key, _)| writer.key(*key)).collect();
            let stored = look(dir.path(), &names);
            for (((key, known), name), (number, version)) in
                known.into_iter().zip(names).zip(stored)
            {
                let is_right = number == known.acknowledged
                    // Unacknowledged ones of a pipeline may be there: any of them, but no older one.
                    || known.asked.is_some() && (number > known.acknowledged || number == 0);
                assert!(
                    is_right,
                    "kill {kill} of seed {seed}: {name} is {number}, acknowledged was {}, asked {:?}",
                    known.acknowledged, known.asked
                );
                acknowledged += u64::from(known.acknowledged == number);
                let before = versions.insert(name.clone(), (number, version)).unwrap_or_default();
                if number > 0 && before.0 > 0 {
                    let in_order = (number, version) >= before;
                    assert!(in_order, "{name} went back from {before:?} to {number} {version}");
                }
                let after = Known { acknowledged: number, asked: None };
                writer.keys.insert(key, after);
            }
        }
    }
    println!("{acknowledged} acknowledged values found");
    assert!(acknowledged > kills * 10, "the writers hardly wrote");
}

fn expect(conn: &mut Raw, line: &str, reply: &str) {
    assert_eq!(conn.ask_line(line).trim_end().replace("\r\n", "|"), reply, "{line}");
}

#[test]
fn a_clean_stop_brings_everything_to_the_store() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = start(dir.path());
    let mut conn = server.raw();
    let mut pipeline = Vec::new();
    for number in 1..=1000_u64 {
        let key = format!("b:0:{}", number % 100).into_bytes();
        pipeline.extend(encode(&[b"SET".to_vec(), key, number.to_string().into_bytes()]));
    }
    conn.send(&pipeline);
    (0..1000).for_each(|_| assert_eq!(conn.reply(), b"+OK\r\n"));
    expect(&mut conn, "SET plain 1", "+OK");
    expect(&mut conn, "GET b:0:7", "$3|907");
    assert_eq!(server.stop(), Some(0));
    let keys: Vec<String> = (0..100).map(|key| format!("b:0:{key}")).collect();
    let stored: Vec<u64> = look(dir.path(), &keys).into_iter().map(|(number, _)| number).collect();
    assert_eq!(stored[0], 1000);
    assert_eq!(stored[1..], (901..1000).collect::<Vec<u64>>());
    // And it is empty after that.
    let server = start(dir.path());
    let mut conn = server.raw();
    eventually("the journal is empty", || {
        conn.ask_line("LARDER.NAMESPACE LIST").contains("dirty_records\r\n:0\r\n")
    });
}

#[test]
fn a_namespace_that_is_taken_away_with_changes_in_the_journal_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = start(dir.path());
    let mut conn = server.raw();
    expect(&mut conn, "SET b:0:1 5", "+OK");
    server.kill9();
    let toml = TOML
        .replace("STORE", dir.path().join("store.redb").to_str().expect("a plain path"))
        .replace("prefix = \"b:\"", "prefix = \"c:\"");
    let path = dir.path().join("other.toml");
    std::fs::write(&path, toml).expect("written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_larder"))
        .args([path.to_str().expect("a plain path"), "--port", "0", "--dir"])
        .arg(dir.path())
        .output()
        .expect("larder runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("\"b:0:1\" in database 0"), "{text}");
    let server = start(dir.path());
    expect(&mut server.raw(), "GET b:0:1", "$1|5");
}
