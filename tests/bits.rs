//! The bit commands as a client of the `redis` crate sees them, in RESP2 and RESP3.

mod common;

use common::{Server, ask, bulk, check};
use redis::Value::{self, Array, Int, Nil, Okay};

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
                ("SETBIT k 7 1", Ok(Int(0))),
                ("SETBIT k 7 0", Ok(Int(1))),
                ("GETBIT k 7", Ok(Int(0))),
                ("GETBIT k 4294967295", Ok(Int(0))),
                ("SET f foobar", Ok(Okay)),
                ("BITCOUNT f", Ok(Int(26))),
                ("BITCOUNT f 1 1", Ok(Int(6))),
                ("BITCOUNT f 5 30 BIT", Ok(Int(17))),
                ("BITCOUNT none", Ok(Int(0))),
                ("BITPOS f 1", Ok(Int(1))),
                ("BITPOS f 0 1 -1", Ok(Int(8))),
                ("BITPOS f 1 9 -1 BIT", Ok(Int(9))),
                ("BITPOS none 1", Ok(Int(-1))),
                ("SET g abcdef", Ok(Okay)),
                ("BITOP AND d f g", Ok(Int(6))),
                ("GET d", Ok(bulk("`bc`ab"))),
                ("BITOP NOT d f", Ok(Int(6))),
                ("BITOP XOR d f f", Ok(Int(6))),
                ("BITCOUNT d", Ok(Int(0))),
                ("BITOP OR d none", Ok(Int(0))),
                ("EXISTS d", Ok(Int(0))),
                ("BITFIELD b INCRBY i5 100 1 GET u4 0", array(&[Int(1), Int(0)])),
                (
                    "BITFIELD b SET u8 0 200 OVERFLOW SAT INCRBY u8 0 100",
                    array(&[Int(0), Int(255)]),
                ),
                ("BITFIELD b OVERFLOW FAIL INCRBY u8 0 1", array(&[Nil])),
                ("BITFIELD b INCRBY u8 0 1", array(&[Int(0)])),
                ("BITFIELD_RO b GET u8 #0 GET i8 97", array(&[Int(0), Int(1)])),
                ("BITFIELD_RO none GET i64 0", array(&[Int(0)])),
            ],
        );
    }
}

#[test]
fn an_end_that_is_not_named_lies_behind_the_string() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    redis::cmd("SET").arg("k").arg(b"\xff\xff").exec(&mut connection).expect("a string");
    check(
        &mut connection,
        vec![
            ("BITPOS k 0", Ok(Int(16))),
            ("BITPOS k 0 0", Ok(Int(16))),
            ("BITPOS k 0 0 -1", Ok(Int(-1))),
            ("BITPOS k 1 5", Ok(Int(-1))),
            ("BITPOS none 0", Ok(Int(0))),
        ],
    );
}

#[test]
fn errors_have_redis_texts() {
    let server = Server::start(&[]);
    let offset = "ERR bit offset is not an integer or out of range";
    let encoding = "ERR Invalid bitfield type. Use something like i16 u8.";
    check(
        &mut server.connect(),
        vec![
            ("SETBIT k 4294967296 1", Err(offset)),
            ("SETBIT k -1 1", Err(offset)),
            ("GETBIT k x", Err(offset)),
            ("SETBIT k 0 2", Err("ERR bit is not an integer or out of range")),
            ("BITPOS k 2", Err("ERR The bit argument must be 1 or 0.")),
            ("SET e x", Ok(Okay)),
            ("BITCOUNT e 0", Err("ERR syntax error")),
            ("BITCOUNT e 0 1 BITS", Err("ERR syntax error")),
            ("BITOP NOT d a b", Err("ERR BITOP NOT must be called with a single source key.")),
            ("BITOP NAND d a b", Err("ERR syntax error")),
            ("BITFIELD k GET u64 0", Err(encoding)),
            ("BITFIELD k GET i65 0", Err(encoding)),
            ("BITFIELD k GET u8 -1", Err(offset)),
            ("BITFIELD k OVERFLOW NONE", Err("ERR Invalid OVERFLOW type specified")),
            ("BITFIELD_RO k SET u8 0 1", Err("ERR BITFIELD_RO only supports the GET subcommand")),
            ("EXISTS k d", Ok(Int(0))),
        ],
    );
}
