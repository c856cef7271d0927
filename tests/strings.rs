//! The string commands as a client of the `redis` crate sees them, in RESP2 and RESP3.

mod common;

use common::{Server, ask, bulk, check, encode};
use redis::Value::{self, Array, Int, Map, Nil, Okay};

fn array(items: &[Value]) -> Result<Value, &'static str> {
    Ok(Array(items.to_vec()))
}

#[test]
fn each_command_replies_with_its_type() {
    let server = Server::start(&[]);
    for mut connection in [server.connect(), server.connect3()] {
        ask(&mut connection, "FLUSHALL").expect("it empties");
        check(
            &mut connection,
            vec![
                ("SET k v", Ok(Okay)),
                ("GET k", Ok(bulk("v"))),
                ("GET none", Ok(Nil)),
                ("SET k w NX", Ok(Nil)),
                ("SET k w XX GET", Ok(bulk("v"))),
                ("SET none w XX GET", Ok(Nil)),
                ("SETNX k x", Ok(Int(0))),
                ("SETNX new x", Ok(Int(1))),
                ("SETEX e 100 v", Ok(Okay)),
                ("PSETEX p 100000 v", Ok(Okay)),
                ("TTL e", Ok(Int(100))),
                ("TTL p", Ok(Int(100))),
                ("GETSET k y", Ok(bulk("w"))),
                ("GETDEL k", Ok(bulk("y"))),
                ("GETDEL k", Ok(Nil)),
                ("GETEX e PERSIST", Ok(bulk("v"))),
                ("TTL e", Ok(Int(-1))),
                ("GETEX none", Ok(Nil)),
                ("MSET a 1 b 2", Ok(Okay)),
                ("MGET a none b", array(&[bulk("1"), Nil, bulk("2")])),
                ("MSETNX a 3 c 4", Ok(Int(0))),
                ("MSETNX c 4 d 5", Ok(Int(1))),
                ("STRLEN a", Ok(Int(1))),
                ("STRLEN none", Ok(Int(0))),
                ("APPEND a 23", Ok(Int(3))),
                ("GETRANGE a 0 -2", Ok(bulk("12"))),
                ("SUBSTR a 1 1", Ok(bulk("2"))),
                ("SETRANGE a 5 x", Ok(Int(6))),
                ("GET a", Ok(bulk("123\0\0x"))),
                ("INCR n", Ok(Int(1))),
                ("INCRBY n 10", Ok(Int(11))),
                ("DECR n", Ok(Int(10))),
                ("DECRBY n 20", Ok(Int(-10))),
                ("INCRBYFLOAT n 0.5", Ok(bulk("-9.5"))),
            ],
        );
    }
}

#[test]
fn lcs_has_a_map_in_resp3() {
    let server = Server::start(&[]);
    let (mut two, mut three) = (server.connect(), server.connect3());
    check(
        &mut two,
        vec![
            ("MSET x ohmytext y mynewtext", Ok(Okay)),
            ("LCS x y", Ok(bulk("mytext"))),
            ("LCS x y LEN", Ok(Int(6))),
            ("LCS x y LEN IDX", Err("ERR If you want both the length and indexes")),
        ],
    );
    let range = |from, to| Array(vec![Int(from), Int(to)]);
    let matches = Array(vec![
        Array(vec![range(4, 7), range(5, 8), Int(4)]),
        Array(vec![range(2, 3), range(0, 1), Int(2)]),
    ]);
    let line = "LCS x y IDX WITHMATCHLEN";
    let flat = vec![bulk("matches"), matches.clone(), bulk("len"), Int(6)];
    check(&mut two, vec![(line, Ok(Array(flat)))]);
    let pairs = vec![(bulk("matches"), matches), (bulk("len"), Int(6))];
    check(&mut three, vec![(line, Ok(Map(pairs)))]);
}

#[test]
fn null_has_its_form_in_each_protocol() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    assert_eq!(raw.ask_line("GET none"), "$-1\r\n");
    assert!(raw.ask_line("HELLO 3").starts_with('%'));
    assert_eq!(raw.ask_line("GET none"), "_\r\n");
    assert_eq!(raw.ask_line("MGET none"), "*1\r\n_\r\n");
    assert_eq!(raw.ask_line("SET none v XX"), "_\r\n");
}

#[test]
fn errors_have_redis_texts() {
    let server = Server::start(&[]);
    check(
        &mut server.connect(),
        vec![
            ("SET k text", Ok(Okay)),
            ("INCR k", Err("ERR value is not an integer or out of range")),
            ("INCRBYFLOAT k 1", Err("ERR value is not a valid float")),
            ("SET n 9223372036854775807", Ok(Okay)),
            ("INCR n", Err("ERR increment or decrement would overflow")),
            ("DECRBY n -9223372036854775808", Err("ERR decrement would overflow")),
            ("INCRBYFLOAT n inf", Err("ERR increment would produce NaN or Infinity")),
            ("SET k v EX 0", Err("ERR invalid expire time in 'set' command")),
            ("SETEX k -1 v", Err("ERR invalid expire time in 'setex' command")),
            ("GETEX k PX 0", Err("ERR invalid expire time in 'getex' command")),
            ("SET k v NX XX", Err("ERR syntax error")),
            ("SET k v EX 1 KEEPTTL", Err("ERR syntax error")),
            ("SETRANGE k -1 v", Err("ERR offset is out of range")),
            ("SETRANGE k 536870912 v", Err("ERR string exceeds maximum allowed size")),
            ("MSET a", Err("ERR wrong number of arguments for 'mset' command")),
            ("MSET a 1 b", Err("ERR wrong number of arguments for 'mset' command")),
            ("GET k", Ok(bulk("text"))),
        ],
    );
}

#[test]
fn a_plain_set_forgets_the_deadline_and_keepttl_keeps_it() {
    let server = Server::start(&[]);
    check(
        &mut server.connect(),
        vec![
            ("SET k v EX 1000", Ok(Okay)),
            ("SET k w KEEPTTL", Ok(Okay)),
            ("TTL k", Ok(Int(1000))),
            ("APPEND k x", Ok(Int(2))),
            ("TTL k", Ok(Int(1000))),
            ("GETSET k v", Ok(bulk("wx"))),
            ("TTL k", Ok(Int(-1))),
            ("SET k v EXAT 1", Ok(Okay)),
            ("EXISTS k", Ok(Int(0))),
        ],
    );
}

#[test]
fn any_bytes_of_any_length_come_back() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    for len in [0, 1, 44, 16_383, 16_384, 16_385, 1_000_000, 5_000_000] {
        let value: Vec<u8> = (0..len).map(|at: usize| (at % 251) as u8).collect();
        let key: &[u8] = b"\x00k\r\n\xff";
        assert_eq!(raw.ask(&[b"SET", key, &value]), b"+OK\r\n");
        let expected = [format!("${len}\r\n").as_bytes(), &value, b"\r\n"].concat();
        assert!(raw.ask(&[b"GET", key]) == expected, "{len} bytes");
        // Twice in one batch, with something behind.
        let get = encode(&[b"GET", key]);
        raw.send([&get[..], &get, &encode(&["PING"])].concat());
        assert!(raw.reply() == expected && raw.reply() == expected, "{len} bytes in a batch");
        assert_eq!(raw.reply(), b"+PONG\r\n");
    }
}
