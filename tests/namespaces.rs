//! Namespaces with a redb store, over sockets: a miss is loaded, a write is in the store before its
//! reply, and both outlive the server. The rules are tested one by one in `src/cache/tests`; here is
//! what clients see of them.

mod common;

use std::path::Path;

use common::{Raw, Server, eventually, expect};

/// Two stores; `user:` and `order:` as in `config/larder.toml`, `bill:` in the other store.
const TOML: &str = r#"
[store.main]
kind = "redb"

[store.other]
kind = "redb"
path = "PATH"

[[namespace]]
prefix = "user:"
mode = "read-through"
store = "main"
ttl = "10m"

[[namespace]]
prefix = "order:"
mode = "write-through"
store = "main"
ttl = "10m"

[[namespace]]
prefix = "bill:"
mode = "write-through"
store = "other"
"#;

fn toml(dir: &Path) -> String {
    TOML.replace("PATH", dir.join("other.redb").to_str().expect("a plain path"))
}

fn start(dir: &Path) -> Server {
    Server::start_with_in(dir, &toml(dir), &[])
}

fn expect_error(conn: &mut Raw, line: &str, code: &str) {
    let reply = conn.ask_line(line);
    assert!(reply.starts_with(&format!("-{code} ")), "{line}: {reply}");
}

/// A figure of a namespace's line in INFO.
fn figure(conn: &mut Raw, prefix: &str, name: &str) -> u64 {
    let info = conn.ask_line("INFO namespaces");
    let line = info.lines().find(|line| line.contains(&format!("prefix={prefix},")));
    let line = line.unwrap_or_else(|| panic!("no namespace {prefix}: {info}"));
    let value = line.split(',').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {line}"))
}

/// Puts records into a store of its own process: what another program would have left there.
fn fill(path: &Path, pairs: &[(&str, &str)]) {
    fill_with(path, 1, pairs);
}

/// The same, with a version.
fn fill_with(path: &Path, version: u64, pairs: &[(&str, &str)]) {
    let store = larder::store::redb(path).expect("a new store");
    let put = |(key, value): &(&str, &str)| {
        let value = bytes::Bytes::copy_from_slice(value.as_bytes());
        let record = larder::store::Record { value, version, ..Default::default() };
        let key = bytes::Bytes::copy_from_slice(key.as_bytes());
        (key, larder::store::Change::Put(record))
    };
    let changes: Vec<_> = pairs.iter().map(put).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(store.apply(&changes)).expect("the store takes them");
}

#[test]
fn a_miss_is_loaded_and_a_write_is_stored_before_its_reply_and_both_outlive_a_crash() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fill(&dir.path().join("store.redb"), &[("user:1", "Ada"), ("order:1", "tea")]);
    let mut server = start(dir.path());
    let conn = &mut server.raw();
    expect(conn, "GET user:1", "$3|Ada");
    expect(conn, "GET order:1", "$3|tea");
    expect(conn, "GET user:2", "$-1");
    expect(conn, "SET order:1 coffee", "+OK");
    expect(conn, "INCR order:count", ":1");
    expect(conn, "SET user:1 local", "+OK");
    server.kill9();
    let mut server = start(dir.path());
    let conn = &mut server.raw();
    expect(conn, "MGET order:1 order:count user:1", "*3|$6|coffee|$1|1|$3|Ada");
    expect(conn, "DEL order:1", ":1");
    server.kill9();
    let mut server = start(dir.path());
    let conn = &mut server.raw();
    expect(conn, "EXISTS order:1 order:count", ":1");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn every_acknowledged_write_is_in_the_store_at_a_crash() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for round in 0..3 {
        let mut server = start(dir.path());
        let conn = &mut server.raw();
        for number in 0..20 {
            expect(conn, &format!("SET order:{number} {round}-{number}"), "+OK");
        }
        server.kill9();
        let server = start(dir.path());
        let conn = &mut server.raw();
        for number in 0..20 {
            let value = format!("{round}-{number}");
            expect(conn, &format!("GET order:{number}"), &format!("${}|{value}", value.len()));
        }
    }
}

#[test]
fn the_sample_configuration_serves_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fill(&dir.path().join("store.redb"), &[("user:1", "Ada")]);
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/config/larder.toml");
    let mut server = Server::start_in(dir.path(), &[sample]);
    let conn = &mut server.raw();
    expect(conn, "GET user:1", "$3|Ada");
    expect(conn, "TTL user:1", ":-1");
    expect(conn, "SET order:1 tea", "+OK");
    expect(conn, "SET page:1 html", "+OK");
    expect(conn, "TTL page:1", ":300");
    server.kill9();
    let server = Server::start_in(dir.path(), &[sample]);
    let conn = &mut server.raw();
    expect(conn, "MGET user:1 order:1 page:1", "*3|$3|Ada|$3|tea|$-1");
}

#[test]
fn many_clients_that_miss_one_key_load_it_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fill(&dir.path().join("store.redb"), &[("user:1", "Ada")]);
    let server = start(dir.path());
    let mut clients: Vec<Raw> = (0..100).map(|_| server.raw()).collect();
    clients.iter_mut().for_each(|client| client.request(&["GET", "user:1"]));
    for client in &mut clients {
        assert_eq!(client.reply(), b"$3\r\nAda\r\n");
    }
    // Whoever comes when it has landed finds it in memory; they never load side by side.
    let loads = figure(&mut server.raw(), "user:", "loads");
    assert!((1..=3).contains(&loads), "{loads} loads");
}

#[test]
fn rule_10_increments_of_many_clients_are_all_stored() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = start(dir.path());
    let mut clients: Vec<Raw> = (0..8).map(|_| server.raw()).collect();
    for client in &mut clients {
        (0..5).for_each(|_| client.request(&["INCR", "order:n"]));
    }
    let mut seen: Vec<String> = Vec::new();
    for client in &mut clients {
        seen.extend((0..5).map(|_| String::from_utf8(client.reply()).expect("text")));
    }
    seen.sort_by_key(|reply| reply.trim_start_matches(':').trim().parse::<u32>().expect("one"));
    assert_eq!(seen, (1..=40).map(|number| format!(":{number}\r\n")).collect::<Vec<_>>());
    server.kill9();
    expect(&mut start(dir.path()).raw(), "GET order:n", "$2|40");
}

#[test]
fn rule_10_a_client_that_hangs_up_leaves_a_whole_write() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = start(dir.path());
    for number in 0..20 {
        let mut client = server.raw();
        client.request(&[
            "MSET",
            &format!("order:a{number}"),
            "x",
            &format!("order:b{number}"),
            "x",
        ]);
        drop(client);
    }
    let conn = &mut server.raw();
    for number in 0..20 {
        let both = format!("EXISTS order:a{number} order:b{number}");
        eventually("the write is done", || conn.ask_line(&both) == ":2\r\n");
    }
}

#[test]
fn rule_13_a_copys_ttl_is_never_the_datas() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = start(dir.path());
    let conn = &mut server.raw();
    expect(conn, "SET order:1 a", "+OK");
    expect(conn, "APPEND order:1 b", ":2");
    expect(conn, "TTL order:1", ":-1");
    expect(conn, "SET order:2 a EX 1000", "+OK");
    expect(conn, "APPEND order:2 b", ":2");
    server.kill9();
    let server = start(dir.path());
    let conn = &mut server.raw();
    expect(conn, "TTL order:1", ":-1");
    let left = conn.ask_line("TTL order:2");
    let left: u64 = left.trim_start_matches(':').trim().parse().expect("a deadline");
    assert!((980..=1000).contains(&left), "{left}");
}

#[test]
fn rule_16_one_store_for_a_command_and_one_database_for_a_namespace() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fill(&dir.path().join("store.redb"), &[("user:1", "Ada")]);
    let server = start(dir.path());
    let conn = &mut server.raw();
    expect_error(conn, "MSET order:1 a bill:1 b", "CROSSSTORE");
    expect(conn, "EXISTS order:1 bill:1", ":0");
    expect(conn, "MSET order:1 a plain b", "+OK");
    expect_error(conn, "RENAME order:1 bill:1", "CROSSSTORE");
    expect(conn, "RENAME order:1 order:2", "+OK");
    expect(conn, "RENAME plain order:3", "+OK");
    expect(conn, "FLUSHALL", "+OK");
    expect(conn, "MGET order:1 order:2 order:3 user:1 plain", "*5|$-1|$1|a|$1|b|$3|Ada|$-1");
    expect_error(conn, "SWAPDB 0 1", "ERR");
    expect_error(conn, "SWAPDB 1 0", "ERR");
    expect(conn, "SWAPDB 1 2", "+OK");
    expect(conn, "SELECT 1", "+OK");
    expect(conn, "GET user:1", "$-1");
    expect(conn, "MSET order:2 elsewhere order:5 elsewhere", "+OK");
    expect_error(conn, "MOVE order:5 0", "ERR");
    expect_error(conn, "COPY order:2 order:9 DB 0", "ERR");
    expect(conn, "SELECT 0", "+OK");
    expect(conn, "GET order:2", "$1|a");
}

#[test]
fn a_namespace_may_live_in_another_database() {
    let toml = "[store.s]\nkind = 'redb'\npath = 'PATH'\n[[namespace]]\nprefix = 'order:'\ndb = 3\n\
                mode = 'write-through'\nstore = 's'\n";
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("s.redb");
    let toml = toml.replace("PATH", path.to_str().expect("a plain path"));
    let mut server = Server::start_with_in(dir.path(), &toml, &[]);
    let conn = &mut server.raw();
    expect(conn, "SET order:1 plain", "+OK");
    expect(conn, "SELECT 3", "+OK");
    expect(conn, "SET order:1 stored", "+OK");
    server.kill9();
    let server = Server::start_with_in(dir.path(), &toml, &[]);
    let conn = &mut server.raw();
    expect(conn, "GET order:1", "$-1");
    expect(conn, "SELECT 3", "+OK");
    expect(conn, "GET order:1", "$6|stored");
}

/// SYSTEMS 4: while a store's breaker is open, what needs the store fails at once, what memory has is
/// served, and others go on; closed again, all is as before.
#[test]
fn a_breaker_keeps_calls_from_its_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path());
    let mut conn = server.raw();
    expect(&mut conn, "SET order:1 a", "+OK");
    expect(&mut conn, "SET bill:1 b", "+OK");
    expect(&mut conn, "LARDER.BREAKER OPEN main", "+OK");
    expect(&mut conn, "GET order:1", "$1|a");
    for line in ["GET order:2", "SET order:1 c", "INCR order:3", "GETDEL order:1"] {
        expect_error(&mut conn, line, "STOREDOWN");
    }
    expect(&mut conn, "GET order:1", "$1|a");
    expect(&mut conn, "SET bill:1 c", "+OK");
    let info = conn.ask_line("INFO stores");
    assert!(info.contains("store_main:breaker=open,calls="), "{info}");
    assert!(info.contains(",rejected=4,opened=1\r\n"), "{info}");
    expect_error(&mut conn, "LARDER.BREAKER CLOSE nope", "ERR");
    expect(&mut conn, "LARDER.BREAKER RESET main", "+OK");
    expect(&mut conn, "SET order:1 c", "+OK");
    let list = conn.ask_line("LARDER.BREAKER LIST").replace("\r\n", "|");
    let closed = "$5|store|$4|main|$5|state|$6|closed|$5|calls|:1|$8|failures|:0|";
    assert!(list.contains(closed), "{list}");
}

/// While the store fails, copies past their `ttl` and what is known to be absent answer reads, and no
/// write.
#[test]
fn old_copies_and_absences_answer_reads_while_the_store_fails() {
    let toml = "[store.main]\nkind = 'redb'\n[[namespace]]\nprefix = 'user:'\nstore = 'main'\n\
                mode = 'read-through'\nttl = '500ms'\nstale_if_error = '1h'\nnegative-ttl = '1h'\n\
                timeout = { soft = '100ms', hard = '1s' }\n";
    let dir = tempfile::tempdir().expect("a directory");
    fill(&dir.path().join("store.redb"), &[("user:1", "Ada")]);
    let server = Server::start_with_in(dir.path(), toml, &[]);
    let conn = &mut server.raw();
    expect(conn, "GET user:1", "$3|Ada");
    expect(conn, "GET user:2", "$-1");
    expect(conn, "LARDER.BREAKER OPEN main", "+OK");
    std::thread::sleep(std::time::Duration::from_millis(700));
    for _ in 0..3 {
        expect(conn, "GET user:1", "$3|Ada");
        expect(conn, "MGET user:2 user:1", "*2|$-1|$3|Ada");
        expect(conn, "EXISTS user:1 user:2", ":1");
        expect(conn, "TTL user:1", ":-1");
    }
    for line in ["GET user:3", "APPEND user:1 x", "INCR user:2", "SET user:2 x NX"] {
        expect_error(conn, line, "STOREDOWN");
    }
    expect(conn, "LARDER.BREAKER RESET main", "+OK");
    expect(conn, "INCR user:2", ":1");
    expect(conn, "APPEND user:1 x", ":4");
}

const RESTART: &str = r#"
memory = "2mb"
disk = { size = "64mb" }
maxmemory-policy = "allkeys-lru"

[store.main]
kind = "redb"

[[namespace]]
prefix = "keep:"
mode = "read-through"
store = "main"
ttl = "1h"

[[namespace]]
prefix = "ask:"
mode = "read-through"
store = "main"
ttl = "1h"
stale-if-error = "1h"
restart = "revalidate"

[[namespace]]
prefix = "drop:"
mode = "cache-aside"
restart = "drop"
"#;

/// Writes until these keys are on disk and no longer in memory.
fn push_out(conn: &mut Raw, keys: &[&str]) {
    let mut number = 0;
    let padding = "x".repeat(500);
    eventually("they are on disk", || {
        for _ in 0..500 {
            number += 1;
            expect(conn, &format!("SET filler:{number} {padding}"), "+OK");
        }
        keys.iter().all(|key| conn.ask_line(&format!("LARDER.TIER {key}")).contains("\r\nl3\r\n"))
    });
}

/// SEMANTICS 8: the store is written while Larder is down. After a clean stop and after a crash each
/// namespace does with its old copies what it says, at every restart anew.
#[test]
fn rule_8_restart_says_what_becomes_of_old_copies() {
    for crashes in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = dir.path().join("store.redb");
        fill(&store, &[("keep:1", "old"), ("ask:1", "old"), ("ask:2", "old")]);
        let mut server = Server::start_with_in(dir.path(), RESTART, &[]);
        let conn = &mut server.raw();
        expect(conn, "MGET keep:1 ask:1 ask:2", "*3|$3|old|$3|old|$3|old");
        expect(conn, "SET drop:1 x", "+OK");
        expect(conn, "SET plain x", "+OK");
        for version in 2..4 {
            push_out(conn, &["keep:1", "ask:1", "ask:2"]);
            // What has been to the disk in this run is as good as ever.
            let loads = figure(conn, "ask:", "loads");
            expect(conn, "EXISTS ask:1 ask:2", ":2");
            assert_eq!(figure(conn, "ask:", "loads"), loads);
            if crashes {
                server.kill9();
            } else {
                assert_eq!(server.stop(), Some(0));
            }
            let new = format!("v{version}");
            fill_with(&store, version, &[("keep:1", &new), ("ask:1", &new)]);
            server = Server::start_with_in(dir.path(), RESTART, &[]);
            *conn = server.raw();
            expect(conn, "GET keep:1", "$3|old");
            expect(conn, "LARDER.BREAKER OPEN main", "+OK");
            expect(conn, "GET ask:2", "$3|old");
            assert_eq!(figure(conn, "ask:", "stale_served"), 1);
            expect(conn, "LARDER.BREAKER RESET main", "+OK");
            expect(conn, "GET ask:1", &format!("$2|{new}"));
            expect(conn, "GET ask:2", "$3|old");
            assert_eq!(figure(conn, "ask:", "loads"), 2);
            expect(conn, "GET drop:1", "$-1");
            expect(conn, "SET drop:1 x", "+OK");
        }
    }
}
