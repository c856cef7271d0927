//! Warm restart: what memory had comes back after a clean stop, and nothing that was changed since.

mod common;

use std::path::Path;

use common::{Server, ask, bulk, check, eventually};
use redis::Value;

const KEYS: usize = 20_000;
const DISK: &[&str] = &["--memory", "4mb", "--disk-size", "64mb"];

fn fill(connection: &mut redis::Connection) {
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(200) {
        let mut pipe = redis::pipe();
        for number in chunk {
            let key = format!("key:{number}");
            pipe.cmd("SET").arg(&key).arg(value(*number)).ignore();
            if number % 3 == 0 {
                pipe.cmd("EXPIRE").arg(&key).arg(5_000).ignore();
            }
        }
        pipe.query::<()>(connection).expect("room");
    }
}

fn value(number: usize) -> String {
    format!("{number}:{}", "v".repeat(number % 500))
}

fn all_are_there(connection: &mut redis::Connection) {
    for number in 0..KEYS {
        let (found, ttl): (Option<String>, i64) = redis::pipe()
            .get(format!("key:{number}"))
            .ttl(format!("key:{number}"))
            .query(connection)
            .expect("replies");
        assert_eq!(found, Some(value(number)), "key:{number}");
        assert!(if number % 3 == 0 { (1..=5_000).contains(&ttl) } else { ttl == -1 }, "{ttl}");
    }
}

/// A server that was filled, stopped and started again.
fn filled_and_restarted(dir: &Path, flags: &[&str]) -> Server {
    let server = Server::start_in(dir, flags);
    fill(&mut server.connect());
    restarted(dir, server, flags)
}

fn restarted(dir: &Path, mut server: Server, flags: &[&str]) -> Server {
    assert_eq!(server.stop(), Some(0));
    Server::start_in(dir, flags)
}

/// All keys are there from the first request on, with their deadlines, with and without a disk tier.
#[test]
fn memory_comes_back_after_a_clean_stop() {
    for flags in [&["--memory", "64mb"][..], DISK] {
        let dir = tempfile::tempdir().expect("a directory");
        let server = filled_and_restarted(dir.path(), flags);
        let mut connection = server.connect();
        assert_eq!(ask(&mut connection, "DBSIZE"), Ok(Value::Int(KEYS as i64)), "{flags:?}");
        all_are_there(&mut connection);
        // Once more: the second time comes from what was brought back.
        let server = restarted(dir.path(), server, flags);
        let mut connection = server.connect();
        all_are_there(&mut connection);
        if flags.len() == 2 {
            eventually("the snapshot has served", || !dir.path().join("warm").exists());
            all_are_there(&mut connection);
        }
    }
}

/// SEMANTICS 8: *clean stop, start, SET k v2, kill -9, start: the old snapshot brings v1 back.* Nor may it
/// bring back a key that was deleted, or one whose deadline was moved.
#[test]
fn an_old_snapshot_brings_nothing_back() {
    const MEMORY: &[&str] = &["--memory", "64mb"];
    // While it still comes back, and when it has served.
    for (flags, has_served) in [(MEMORY, false), (MEMORY, true), (DISK, false)] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = filled_and_restarted(dir.path(), flags);
        if has_served {
            eventually("the snapshot has served", || !dir.path().join("warm").exists());
        }
        let mut connection = server.connect();
        let last = KEYS - 1;
        check(
            &mut connection,
            vec![
                (&*format!("SET key:{last} new"), Ok(Value::Okay)),
                ("SET key:1 new", Ok(Value::Okay)),
                ("APPEND key:2 !", Ok(Value::Int(value(2).len() as i64 + 1))),
                ("DEL key:4", Ok(Value::Int(1))),
                ("PEXPIRE key:5 1", Ok(Value::Int(1))),
                ("RENAME key:7 key:8", Ok(Value::Okay)),
                ("SWAPDB 0 1", Ok(Value::Okay)),
                ("FLUSHDB", Ok(Value::Okay)),
                ("SWAPDB 0 1", Ok(Value::Okay)),
            ],
        );
        server.kill9();
        let server = Server::start_in(dir.path(), flags);
        let mut connection = server.connect();
        for (key, allowed) in [
            (format!("key:{last}"), vec![bulk("new")]),
            ("key:1".into(), vec![bulk("new")]),
            ("key:2".into(), vec![bulk(value(2) + "!")]),
            ("key:4".into(), vec![]),
            ("key:5".into(), vec![]),
            ("key:7".into(), vec![]),
            ("key:8".into(), vec![bulk(value(7))]),
        ] {
            let found = ask(&mut connection, &format!("GET {key}")).expect("a reply");
            assert!(found == Value::Nil || allowed.contains(&found), "{flags:?} {key}: {found:?}");
        }
    }
}

/// A flushed database stays empty, whichever way the server ends.
#[test]
fn what_was_flushed_stays_away() {
    for flags in [&["--memory", "64mb"][..], DISK] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = filled_and_restarted(dir.path(), flags);
        let mut connection = server.connect();
        check(
            &mut connection,
            vec![
                ("SELECT 1", Ok(Value::Okay)),
                ("SET other x", Ok(Value::Okay)),
                ("SELECT 0", Ok(Value::Okay)),
                ("FLUSHDB", Ok(Value::Okay)),
                ("DBSIZE", Ok(Value::Int(0))),
            ],
        );
        server.kill9();
        let server = Server::start_in(dir.path(), flags);
        assert_eq!(ask(&mut server.connect(), "DBSIZE"), Ok(Value::Int(0)), "{flags:?}");
    }
}

/// SHUTDOWN's words go before the setting.
#[test]
fn nothing_is_saved_against_the_will() {
    let dir = tempfile::tempdir().expect("a directory");
    let size_after = |flags: &[&str], end: &str| {
        let mut server = Server::start_in(dir.path(), flags);
        let mut connection = server.connect();
        ask(&mut connection, "SET k v").expect("OK");
        let _ = ask(&mut connection, end);
        assert_eq!(server.wait(), Some(0), "{end}");
        let mut server = Server::start_in(dir.path(), &[]);
        let mut connection = server.connect();
        let size = ask(&mut connection, "DBSIZE").expect("a number");
        ask(&mut connection, "FLUSHALL").expect("OK");
        server.kill9();
        size
    };
    assert_eq!(size_after(&[], "SHUTDOWN"), Value::Int(1));
    assert_eq!(size_after(&[], "SHUTDOWN NOSAVE"), Value::Int(0));
    assert_eq!(size_after(&["--warm-restart", "no"], "SHUTDOWN"), Value::Int(0));
    assert_eq!(size_after(&["--warm-restart", "no"], "SHUTDOWN SAVE"), Value::Int(1));
}

/// SEMANTICS 9: *a slot leaves and returns, and its first owner still has old records.* So far there are no
/// slots, but runs: one that did without a tier has changed what that tier can't know, and it starts empty
/// afterwards.
#[test]
fn a_tier_that_was_left_out_is_not_believed_again() {
    const MEMORY: &[&str] = &["--memory", "64mb"];
    const COLD: &[&str] = &["--memory", "64mb", "--warm-restart", "no"];
    for (first, between) in [(MEMORY, DISK), (DISK, MEMORY), (MEMORY, COLD), (DISK, COLD)] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = Server::start_in(dir.path(), first);
        ask(&mut server.connect(), "SET k old").expect("OK");
        assert_eq!(server.stop(), Some(0));
        // It ends without a word, so that nothing newer is saved.
        let mut server = Server::start_in(dir.path(), between);
        ask(&mut server.connect(), "SET k new").expect("OK");
        server.kill9();
        let server = Server::start_in(dir.path(), first);
        let found = ask(&mut server.connect(), "GET k").expect("a reply");
        assert_eq!(found, Value::Nil, "{first:?} {between:?}");
    }
}

/// Where nothing may be forgotten, a restart forgets nothing, though memory is nearly full.
#[test]
fn noeviction_keeps_all_over_a_restart() {
    let flags = &["--memory", "4mb", "--maxmemory-policy", "noeviction"];
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_in(dir.path(), flags);
    let mut connection = server.connect();
    let mut count = 0;
    let set = |connection: &mut redis::Connection, number: usize| {
        redis::cmd("SET").arg(format!("key:{number}")).arg(value(number)).exec(connection)
    };
    while set(&mut connection, count).is_ok() {
        count += 1;
    }
    let server = restarted(dir.path(), server, flags);
    eventually("the snapshot has served", || !dir.path().join("warm").exists());
    let mut connection = server.connect();
    assert_eq!(ask(&mut connection, "DBSIZE"), Ok(Value::Int(count as i64)));
    for number in 0..count {
        let found = ask(&mut connection, &format!("GET key:{number}"));
        assert_eq!(found, Ok(bulk(value(number))));
    }
}
