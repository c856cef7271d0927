//! Memory and disk as one keyspace, over a socket: what is on disk is a key like any other.

mod common;

use std::collections::HashSet;

use common::{Server, ask, bulk, check, eventually};
use redis::Value;

const FLAGS: &[&str] = &["--memory", "2mb", "--disk-size", "64mb", "--workers", "2"];
const KEYS: usize = 10_000;

/// A server with more keys than memory has room for.
fn filled() -> (Server, redis::Connection) {
    let server = Server::start(FLAGS);
    let mut connection = server.connect();
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(100) {
        let mut pipe = redis::pipe();
        for number in chunk {
            pipe.set(format!("key:{number}"), value(*number)).ignore();
        }
        pipe.query::<()>(&mut connection).expect("there is room on disk");
    }
    (server, connection)
}

fn value(number: usize) -> String {
    format!("{number}:{}", "v".repeat(500 + number % 700))
}

/// A figure of INFO's section `tiers`.
fn figure(connection: &mut redis::Connection, tier: &str, name: &str) -> f64 {
    let text: String = redis::cmd("INFO").arg("tiers").query(connection).expect("a text");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{tier}:")));
    let mut fields = line.expect("the tier").split(',').filter_map(|field| field.split_once('='));
    let found = fields.find(|(field, _)| *field == name).expect("the field");
    found.1.parse().expect("a number")
}

/// The first of the keys that is only on disk.
fn cold_key(connection: &mut redis::Connection, from: usize) -> String {
    let is_cold = |key: &String| {
        let place: Vec<Value> =
            redis::cmd("LARDER.TIER").arg(key).query(connection).expect("a map");
        place.get(1) == Some(&bulk("l3"))
    };
    (from..KEYS).map(|number| format!("key:{number}")).find(is_cold).expect("most keys are on disk")
}

/// SEMANTICS 5, 6: the keyspace commands see keys on disk, each once, and nothing is forgotten while the
/// log isn't full.
#[test]
fn keys_on_disk_are_keys() {
    let (server, mut connection) = filled();
    let connection = &mut connection;
    assert_eq!(ask(connection, "DBSIZE"), Ok(Value::Int(KEYS as i64)));
    assert!(figure(connection, "l3", "entries") > KEYS as f64 / 2.0);
    let all: Vec<String> = redis::cmd("KEYS").arg("*").query(connection).expect("all keys");
    assert_eq!((all.len(), all.into_iter().collect::<HashSet<_>>().len()), (KEYS, KEYS));
    let mut seen = HashSet::new();
    let mut cursor = 0_u64;
    loop {
        let (next, keys): (u64, Vec<String>) =
            redis::cmd("SCAN").arg(cursor).arg("COUNT").arg(500).query(connection).expect("keys");
        seen.extend(keys);
        // What moves between the tiers meanwhile is seen all the same.
        let _: String = redis::cmd("GET")
            .arg(format!("key:{}", seen.len() * 7919 % KEYS))
            .query(connection)
            .expect("a value");
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(seen.len(), KEYS);
    let picked: HashSet<String> =
        (0..50).map(|_| redis::cmd("RANDOMKEY").query(connection).expect("a key")).collect();
    assert!(picked.len() > 30 && picked.is_subset(&seen));
    for number in (0..KEYS).step_by(37) {
        let key = format!("key:{number}");
        let found: String = redis::cmd("GET").arg(&key).query(connection).expect("a value");
        assert_eq!(found, value(number));
    }
    assert!(figure(connection, "l3", "hits") > 100.0);
    assert_eq!(figure(connection, "l3", "bad_records"), 0.0);
    assert!(figure(connection, "l3", "reads_per_hit") <= 1.05);
    // The limit holds with everything that the disk needs in memory.
    assert!(figure(connection, "l2", "bytes") <= figure(connection, "l2", "limit"));
    assert_eq!(ask(connection, "FLUSHDB"), Ok(Value::Okay));
    assert_eq!(ask(connection, "DBSIZE"), Ok(Value::Int(0)));
    assert_eq!(ask(connection, "RANDOMKEY"), Ok(Value::Nil));
    drop(server);
}

/// SEMANTICS 3: a key that is on disk is there, for every command.
#[test]
fn commands_see_what_is_on_disk() {
    let (_server, mut connection) = filled();
    let connection = &mut connection;
    let mut from = 0;
    let mut cold = |connection: &mut redis::Connection| {
        let key = cold_key(connection, from);
        from = key[4..].parse::<usize>().expect("a number") + 1;
        key
    };
    let key = cold(connection);
    check(connection, vec![(&*format!("SETNX {key} x"), Ok(Value::Int(0)))]);
    let key = cold(connection);
    check(connection, vec![(&*format!("SET {key} x NX"), Ok(Value::Nil))]);
    let key = cold(connection);
    check(
        connection,
        vec![
            (&*format!("INCR {key}"), Err("ERR value is not an integer")),
            (&*format!("OBJECT ENCODING {key}"), Ok(bulk("raw"))),
        ],
    );
    let key = cold(connection);
    let length = value(key[4..].parse().expect("a number")).len() as i64;
    check(
        connection,
        vec![
            (&*format!("APPEND {key} !"), Ok(Value::Int(length + 1))),
            (&*format!("STRLEN {key}"), Ok(Value::Int(length + 1))),
        ],
    );
    let key = cold(connection);
    check(
        connection,
        vec![
            (&*format!("PEXPIRE {key} 100000"), Ok(Value::Int(1))),
            (&*format!("PERSIST {key}"), Ok(Value::Int(1))),
            (&*format!("TTL {key}"), Ok(Value::Int(-1))),
            (&*format!("TYPE {key}"), Ok(Value::SimpleString("string".into()))),
        ],
    );
    // The target in another database is on disk too.
    let (key, other) = (cold(connection), cold(connection));
    check(
        connection,
        vec![
            (&*format!("RENAMENX {key} {other}"), Ok(Value::Int(0))),
            (&*format!("COPY {key} {other}"), Ok(Value::Int(0))),
            ("SWAPDB 0 1", Ok(Value::Okay)),
            ("DBSIZE", Ok(Value::Int(0))),
            (&*format!("SET {key} here"), Ok(Value::Okay)),
            (&*format!("COPY {key} {key} DB 1"), Ok(Value::Int(0))),
            (&*format!("MOVE {key} 1"), Ok(Value::Int(0))),
            (&*format!("COPY {key} {key} DB 1 REPLACE"), Ok(Value::Int(1))),
            ("SELECT 1", Ok(Value::Okay)),
            (&*format!("GET {key}"), Ok(bulk("here"))),
            ("DBSIZE", Ok(Value::Int(KEYS as i64))),
        ],
    );
    let key = cold(connection);
    check(
        connection,
        vec![
            (&*format!("DEL {key} {key}"), Ok(Value::Int(1))),
            (&*format!("EXISTS {key}"), Ok(Value::Int(0))),
            (&*format!("LARDER.TIER {key}"), Ok(Value::Nil)),
        ],
    );
}

/// A pipeline of reads and writes of cold keys is answered in order, as if all were in memory.
#[test]
fn pipelines_of_cold_keys_keep_their_order() {
    let (_server, mut connection) = filled();
    let mut pipe = redis::pipe();
    for number in 0..300 {
        pipe.get(format!("key:{number}"));
        if number % 10 == 0 {
            pipe.cmd("APPEND").arg(format!("key:{number}")).arg("+");
            pipe.get(format!("key:{number}"));
        }
    }
    let replies: Vec<Value> = pipe.query(&mut connection).expect("replies");
    let mut replies = replies.into_iter();
    for number in 0..300 {
        assert_eq!(replies.next(), Some(bulk(value(number))));
        if number % 10 == 0 {
            let longer = value(number) + "+";
            assert_eq!(replies.next(), Some(Value::Int(longer.len() as i64)));
            assert_eq!(replies.next(), Some(bulk(longer)));
        }
    }
    let keys: Vec<String> = (0..400).map(|number| format!("key:{}", number * 20 + 5)).collect();
    let found: Vec<String> = redis::cmd("MGET").arg(&keys).query(&mut connection).expect("values");
    assert!(found.iter().enumerate().all(|(at, found)| *found == value(at * 20 + 5)));
}

/// SEMANTICS 6: with `noeviction` the disk makes room until it is full too; then writes are refused and
/// everything is still there.
#[test]
fn nothing_is_forgotten_without_leave() {
    let flags = ["--memory", "2mb", "--disk-size", "8mb", "--maxmemory-policy", "noeviction"];
    let server = Server::start(&flags);
    let mut connection = server.connect();
    let mut written = 0;
    loop {
        let set = redis::cmd("SET")
            .arg(format!("key:{written}"))
            .arg(value(written))
            .exec(&mut connection);
        match set {
            Ok(()) => written += 1,
            Err(why) => {
                assert_eq!(why.code(), Some("OOM"), "{why}");
                break;
            }
        }
        assert!(written < 20_000, "the disk is never full");
    }
    assert!(written > 6_000, "{written}");
    for number in 0..written {
        let found: String =
            redis::cmd("GET").arg(format!("key:{number}")).query(&mut connection).expect("a value");
        assert_eq!(found, value(number));
    }
    // Room is made by deleting.
    for number in 0..written / 2 {
        redis::cmd("DEL").arg(format!("key:{number}")).exec(&mut connection).expect("deletes");
    }
    eventually("writes go on", || {
        redis::cmd("SET").arg("key:new").arg("v").exec(&mut connection).is_ok()
    });
}

/// Where nothing may be forgotten, records that have ended make room, and so does what has a deadline under
/// a policy that lets it go.
#[test]
fn a_full_disk_gets_room_from_what_has_ended() {
    for (policy, ttl) in [("noeviction", 2_000), ("volatile-lru", 1_000_000)] {
        let flags = ["--memory", "2mb", "--disk-size", "8mb", "--maxmemory-policy", policy];
        let server = Server::start(&flags);
        let mut connection = server.connect();
        let mut set = |number: usize| {
            redis::cmd("SET")
                .arg(format!("key:{number}"))
                .arg(value(number))
                .arg("PX")
                .arg(ttl)
                .exec(&mut connection)
        };
        let refused = (0..20_000).find(|number| set(*number).is_err());
        assert_eq!(refused.is_some(), policy == "noeviction", "{policy}: {refused:?}");
        eventually("writes go on", || set(20_001).is_ok());
        // Not only one.
        for number in 30_000..31_000 {
            eventually("writes go on", || set(number).is_ok());
        }
    }
}
