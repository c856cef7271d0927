//! The commands on keys of any type, their deadlines and their databases, as a client of the `redis`
//! crate sees them, in RESP2 and RESP3.

mod common;

use std::collections::HashSet;

use common::{Server, ask, bulk, check, eventually};
use redis::{
    Commands,
    Value::{self, Array, Int, Nil, Okay, SimpleString},
};

fn array(items: &[Value]) -> Result<Value, &'static str> {
    Ok(Array(items.to_vec()))
}

fn simple(text: &str) -> Result<Value, &'static str> {
    Ok(SimpleString(text.to_owned()))
}

#[test]
fn each_command_replies_with_its_type() {
    let server = Server::start(&["--maxmemory-policy", "noeviction"]);
    for mut connection in [server.connect(), server.connect3()] {
        ask(&mut connection, "FLUSHALL").expect("it empties");
        check(
            &mut connection,
            vec![
                ("RANDOMKEY", Ok(Nil)),
                ("MSET a 1 b 2 c 3", Ok(Okay)),
                ("DBSIZE", Ok(Int(3))),
                ("EXISTS a a none", Ok(Int(2))),
                ("TOUCH a b none", Ok(Int(2))),
                ("TYPE a", simple("string")),
                ("TYPE none", simple("none")),
                ("DEL c none", Ok(Int(1))),
                ("UNLINK b", Ok(Int(1))),
                ("RANDOMKEY", Ok(bulk("a"))),
                ("KEYS *", array(&[bulk("a")])),
                ("SCAN 0", array(&[bulk("0"), Array(vec![bulk("a")])])),
                ("SCAN 0 MATCH b* COUNT 10 TYPE string", array(&[bulk("0"), Array(vec![])])),
                ("RENAME a b", Ok(Okay)),
                ("RENAME a b", Err("ERR no such key")),
                ("RENAMENX b b", Ok(Int(0))),
                ("RENAMENX b a", Ok(Int(1))),
                ("COPY a b", Ok(Int(1))),
                ("COPY a b", Ok(Int(0))),
                ("COPY a b REPLACE", Ok(Int(1))),
                ("COPY a b DB 1", Ok(Int(1))),
                ("MOVE a 1", Ok(Int(1))),
                ("MOVE b 1", Ok(Int(0))),
                ("SELECT 1", Ok(Okay)),
                ("MGET a b", array(&[bulk("1"), bulk("1")])),
                ("SWAPDB 0 1", Ok(Okay)),
                ("DBSIZE", Ok(Int(1))),
                ("FLUSHDB ASYNC", Ok(Okay)),
                ("SELECT 0", Ok(Okay)),
                ("DBSIZE", Ok(Int(2))),
                ("OBJECT ENCODING a", Ok(bulk("int"))),
                ("OBJECT REFCOUNT a", Ok(Int(1))),
                ("OBJECT IDLETIME a", Ok(Int(0))),
                ("OBJECT ENCODING none", Ok(Nil)),
                ("FLUSHALL SYNC", Ok(Okay)),
                ("SELECT 16", Err("ERR DB index is out of range")),
            ],
        );
    }
}

#[test]
fn deadlines_are_set_told_and_taken_back() {
    let server = Server::start(&[]);
    for mut connection in [server.connect(), server.connect3()] {
        check(
            &mut connection,
            vec![
                ("SET k v", Ok(Okay)),
                ("TTL k", Ok(Int(-1))),
                ("PTTL none", Ok(Int(-2))),
                ("EXPIRETIME k", Ok(Int(-1))),
                ("PERSIST k", Ok(Int(0))),
                ("EXPIRE k 100 XX", Ok(Int(0))),
                ("EXPIRE k 100 GT", Ok(Int(0))),
                ("EXPIRE k 100 NX", Ok(Int(1))),
                ("PEXPIRE k 200000 LT", Ok(Int(0))),
                ("PEXPIRE k 200000 GT", Ok(Int(1))),
                ("TTL k", Ok(Int(200))),
                ("EXPIREAT k 4000000000", Ok(Int(1))),
                ("PEXPIRETIME k", Ok(Int(4_000_000_000_000))),
                ("PEXPIREAT k 4000000000600", Ok(Int(1))),
                ("EXPIRETIME k", Ok(Int(4_000_000_001))),
                ("PERSIST k", Ok(Int(1))),
                ("EXPIRE k 1 NX GT", Err("ERR NX and XX, GT or LT options at the same time")),
                (
                    "EXPIRE k 9223372036854775807",
                    Err("ERR invalid expire time in 'expire' command"),
                ),
                ("EXPIRE k -1", Ok(Int(1))),
                ("EXISTS k", Ok(Int(0))),
            ],
        );
    }
}

#[test]
fn a_key_is_gone_at_its_deadline_and_counted() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    check(&mut connection, vec![("SET k v PX 20", Ok(Okay)), ("SET l v PX 20", Ok(Okay))]);
    eventually("k expires", || ask(&mut connection, "GET k") == Ok(Nil));
    // Nobody reads the other one.
    eventually("l expires", || ask(&mut connection, "DBSIZE") == Ok(Int(0)));
    let info: String = redis::cmd("INFO").arg("stats").query(&mut connection).expect("text");
    assert!(info.contains("expired_keys:2\r\n"), "{info}");
}

#[test]
fn an_iteration_finds_what_stays() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    let pairs: Vec<_> = (0..5000).map(|at| (format!("stays:{at}"), at)).collect();
    let _: () = connection.mset(&pairs).expect("stored");
    let (mut seen, mut cursor) = (HashSet::new(), "0".to_owned());
    for turn in 0.. {
        // The table grows and shrinks meanwhile.
        let _: () = connection.set(format!("comes:{turn}"), "x").expect("stored");
        let _: () = connection.del(format!("comes:{}", turn / 2)).expect("deleted");
        let mut command = redis::cmd("SCAN");
        command.arg(&cursor).arg("MATCH").arg("stays:*").arg("COUNT").arg(20);
        let (next, keys): (String, Vec<String>) = command.query(&mut connection).expect("a page");
        seen.extend(keys);
        if next == "0" {
            break;
        }
        cursor = next;
    }
    assert_eq!(seen.len(), pairs.len());
}

#[test]
fn what_dump_gives_restore_takes() {
    let server = Server::start(&[]);
    for mut connection in [server.connect(), server.connect3()] {
        ask(&mut connection, "FLUSHALL").expect("it empties");
        for value in ["", "12", "-70000", "text", &"long ".repeat(5000)] {
            let _: () = connection.set("from", value).expect("stored");
            let dump: Vec<u8> =
                redis::cmd("DUMP").arg("from").query(&mut connection).expect("a payload");
            let mut restore = redis::cmd("RESTORE");
            restore.arg("to").arg(100_000).arg(&dump);
            restore.exec(&mut connection).expect("restored");
            let again = restore.exec(&mut connection).expect_err("it is there");
            assert_eq!(again.code(), Some("BUSYKEY"));
            assert_eq!(connection.get::<_, String>("to").expect("text"), value);
            assert_eq!(ask(&mut connection, "TTL to"), Ok(Int(100)));
            ask(&mut connection, "DEL to").expect("deleted");
            let mut wrong = dump.clone();
            wrong[0] ^= 1;
            let refused = redis::cmd("RESTORE").arg("to").arg(0).arg(&wrong).exec(&mut connection);
            assert_eq!(
                refused.expect_err("the sum is wrong").detail(),
                Some("DUMP payload version or checksum are wrong")
            );
        }
        assert_eq!(ask(&mut connection, "DUMP none"), Ok(Nil));
    }
}

#[test]
fn rename_copy_and_restore_keep_or_set_the_deadline() {
    let server = Server::start(&[]);
    check(
        &mut server.connect(),
        vec![
            ("SET a v EXAT 4000000000", Ok(Okay)),
            ("SET b w", Ok(Okay)),
            ("RENAME a b", Ok(Okay)),
            ("EXPIRETIME b", Ok(Int(4_000_000_000))),
            ("COPY b c", Ok(Int(1))),
            ("EXPIRETIME c", Ok(Int(4_000_000_000))),
            ("COPY b b", Err("ERR source and destination objects are the same")),
            ("MOVE b 0", Err("ERR source and destination objects are the same")),
            ("MOVE b 7", Ok(Int(1))),
            ("SELECT 7", Ok(Okay)),
            ("EXPIRETIME b", Ok(Int(4_000_000_000))),
        ],
    );
}
