//! Writing behind, over sockets: what was acknowledged is in the store after any kill, the newest value of
//! each key, and no key ever goes back.

mod common;
#[path = "common/writers.rs"]
mod writers;

use std::path::Path;

use common::{Server, encode, eventually, expect};
use writers::{kill_and_look, look};

/// Kills; more with `LARDER_KILLS`.
const KILLS: u64 = 60;
/// The same where nothing is synced.
const KILLS_UNSYNCED: u64 = 20;

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
    start_with(dir, "fsync = \"always\"")
}

fn start_with(dir: &Path, fsync: &str) -> Server {
    let store = dir.join("store.redb");
    let toml = TOML.replace("STORE", store.to_str().expect("a plain path"));
    let toml = toml.replace("fsync = \"always\"", fsync);
    Server::start_with_in(dir, &toml, &[])
}

#[test]
fn kills_lose_nothing_that_was_acknowledged() {
    kill_and_look(KILLS, start, start);
}

/// What is acknowledged is in the log buffer, and mostly nowhere else.
#[test]
fn kills_lose_nothing_though_nothing_is_synced() {
    let start = |dir: &Path| start_with(dir, "fsync = \"interval\"\ninterval = \"1h\"");
    kill_and_look(KILLS_UNSYNCED, start, start);
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
    let path = dir.path().join("other.toml");
    // Another one writes behind; or none does, and what is left would come back later over newer values.
    let behind = "mode = \"write-behind\"\nstore = \"main\"\nbehind-delay = \"20ms\"";
    let through = "mode = \"write-through\"\nstore = \"main\"";
    for (from, to) in [("prefix = \"b:\"", "prefix = \"c:\""), (behind, through)] {
        let store = dir.path().join("store.redb");
        let toml = TOML.replace("STORE", store.to_str().expect("a plain path"));
        assert!(toml.contains(from));
        std::fs::write(&path, toml.replace(from, to)).expect("written");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_larder"))
            .args([path.to_str().expect("a plain path"), "--port", "0", "--dir"])
            .arg(dir.path())
            .output()
            .expect("larder runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("\"b:0:1\" in database 0"), "{text}");
    }
    let server = start(dir.path());
    expect(&mut server.raw(), "GET b:0:1", "$1|5");
}
