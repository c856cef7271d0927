//! Every command of COMMAND LIST is carried out once in each protocol, and replies with its kind.

mod common;

use std::collections::BTreeSet;

use common::{Raw, Server};

/// A request that works, and the first byte of its reply in RESP2 and in RESP3. In this order each
/// finds what it needs. QUIT, MONITOR and SHUTDOWN, which end a session, are asked apart.
const REQUESTS: &[(&str, &str)] = &[
    ("PING", "++"),
    ("ECHO hello", "$$"),
    ("SELECT 0", "++"),
    ("AUTH wrong", "--"),
    ("CLIENT HELP", "**"),
    ("CLIENT ID", "::"),
    ("CLIENT INFO", "$="),
    ("CLIENT LIST", "$="),
    ("CLIENT SETNAME me", "++"),
    ("CLIENT GETNAME", "$$"),
    ("CLIENT SETINFO LIB-NAME test", "++"),
    ("CLIENT KILL ID 999999", "::"),
    ("CLIENT PAUSE 0 WRITE", "++"),
    ("CLIENT UNPAUSE", "++"),
    ("CLIENT REPLY ON", "++"),
    ("CLIENT NO-EVICT ON", "++"),
    ("CLIENT NO-TOUCH ON", "++"),
    ("CLIENT UNBLOCK 999999", "::"),
    ("COMMAND COUNT", "::"),
    ("COMMAND DOCS get", "*%"),
    ("COMMAND GETKEYS GET k", "**"),
    ("COMMAND GETKEYSANDFLAGS GET k", "**"),
    ("COMMAND HELP", "**"),
    ("COMMAND INFO get", "**"),
    ("COMMAND LIST", "**"),
    ("COMMAND", "**"),
    ("CONFIG HELP", "**"),
    ("CONFIG GET maxmemory", "*%"),
    ("CONFIG SET timeout 0", "++"),
    ("CONFIG REWRITE", "++"),
    ("INFO server", "$="),
    ("LARDER.BREAKER HELP", "**"),
    ("LARDER.BREAKER LIST", "**"),
    ("LARDER.BREAKER OPEN main", "++"),
    ("LARDER.BREAKER CLOSE main", "++"),
    ("LARDER.BREAKER RESET main", "++"),
    ("LARDER.NAMESPACE HELP", "**"),
    ("LARDER.NAMESPACE LIST", "**"),
    ("LARDER.NAMESPACE INFO k", "$_"),
    ("LARDER.NAMESPACE GET n:", "*%"),
    ("LARDER.NAMESPACE SET n: ttl 5m", "++"),
    ("LARDER.FLUSH", "++"),
    ("LARDER.DEADLETTER HELP", "**"),
    ("LARDER.DEADLETTER LIST", "**"),
    ("LARDER.DEADLETTER RETRY ALL", "**"),
    ("LARDER.DEADLETTER DROP ALL", "::"),
    ("LARDER.BIGKEYS", "**"),
    ("LARDER.HOTKEYS COUNT 3", "**"),
    ("LARDER.MRC", "*%"),
    ("LARDER.STATS", "*%"),
    ("LARDER.TIER k", "$_"),
    ("ROLE", "**"),
    ("TIME", "**"),
    ("LOLWUT", "$="),
    ("DEBUG SLEEP 0", "++"),
    ("SLOWLOG HELP", "**"),
    ("SLOWLOG RESET", "++"),
    ("SLOWLOG GET", "**"),
    ("SLOWLOG LEN", "::"),
    ("LATENCY HELP", "**"),
    ("LATENCY DOCTOR", "$="),
    ("LATENCY GRAPH command", "--"),
    ("LATENCY HISTOGRAM get", "*%"),
    ("LATENCY HISTORY command", "**"),
    ("LATENCY LATEST", "**"),
    ("LATENCY RESET", "::"),
    ("MEMORY HELP", "**"),
    ("MEMORY DOCTOR", "$="),
    ("MEMORY MALLOC-STATS", "$="),
    ("MEMORY PURGE", "++"),
    ("MEMORY STATS", "*%"),
    ("SET k v", "++"),
    ("MEMORY USAGE k", "::"),
    ("GET k", "$$"),
    ("SETNX k v", "::"),
    ("SETEX k 1000 v", "++"),
    ("PSETEX k 1000000 v", "++"),
    ("GETSET k v", "$$"),
    ("GETEX k", "$$"),
    ("GETDEL k", "$$"),
    ("MSET k 1 l 2", "++"),
    ("MSETNX m 1 l 2", "::"),
    ("MGET k l m", "**"),
    ("STRLEN k", "::"),
    ("APPEND k 1", "::"),
    ("INCR k", "::"),
    ("INCRBY k 2", "::"),
    ("DECR k", "::"),
    ("DECRBY k 2", "::"),
    ("INCRBYFLOAT k 0.5", "$$"),
    ("GETRANGE k 0 1", "$$"),
    ("SUBSTR k 0 1", "$$"),
    ("SETRANGE k 2 x", "::"),
    ("LCS k l IDX", "*%"),
    ("SETBIT b 1 1", "::"),
    ("GETBIT b 1", "::"),
    ("BITCOUNT b", "::"),
    ("BITPOS b 1", "::"),
    ("BITOP NOT c b", "::"),
    ("BITFIELD b INCRBY u8 0 1", "**"),
    ("BITFIELD_RO b GET u8 0", "**"),
    ("EXISTS k", "::"),
    ("TOUCH k", "::"),
    ("TYPE k", "++"),
    ("KEYS *", "**"),
    ("SCAN 0", "**"),
    ("RANDOMKEY", "$$"),
    ("DBSIZE", "::"),
    ("OBJECT HELP", "**"),
    ("OBJECT ENCODING k", "$$"),
    ("OBJECT FREQ k", "--"),
    ("OBJECT IDLETIME k", "::"),
    ("OBJECT REFCOUNT k", "::"),
    ("EXPIRE k 1000", "::"),
    ("EXPIREAT k 4000000000", "::"),
    ("PEXPIRE k 1000000", "::"),
    ("PEXPIREAT k 4000000000000", "::"),
    ("EXPIRETIME k", "::"),
    ("PEXPIRETIME k", "::"),
    ("TTL k", "::"),
    ("PTTL k", "::"),
    ("PERSIST k", "::"),
    ("DUMP k", "$$"),
    ("RESTORE new 0 rubbish", "--"),
    ("RENAME k n", "++"),
    ("RENAMENX n k", "::"),
    ("COPY k o", "::"),
    ("MOVE o 1", "::"),
    ("UNLINK l", "::"),
    ("DEL k", "::"),
    ("SWAPDB 0 1", "++"),
    ("FLUSHDB", "++"),
    ("FLUSHALL", "++"),
    ("CONFIG RESETSTAT", "++"),
    ("RESET", "++"),
];

/// Names without a function of their own: their subcommands are called.
const CONTAINERS: &[&str] = &[
    "client",
    "config",
    "larder.breaker",
    "larder.deadletter",
    "larder.namespace",
    "latency",
    "memory",
    "object",
    "slowlog",
];
/// What the test asks apart.
const APART: &[&str] = &["monitor", "quit", "shutdown"];

fn name_of(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let name = words[0].to_ascii_lowercase();
    let is_container = name == "command" || CONTAINERS.contains(&&*name);
    match words.get(1).filter(|_| is_container) {
        Some(sub) => format!("{name}|{}", sub.to_ascii_lowercase()),
        None => name,
    }
}

/// The names that the server has.
fn listed(raw: &mut Raw) -> BTreeSet<String> {
    let reply = raw.ask_line("COMMAND LIST");
    reply.split("\r\n").skip(2).step_by(2).map(str::to_owned).collect()
}

const TOML: &str = "maxmemory-policy = 'noeviction'\n[store.main]\nkind = 'memory'\n\
                    [[namespace]]\nprefix = 'n:'\nmode = 'cache-aside'\n";

#[test]
fn every_command_is_reached_and_replies_with_its_kind() {
    let mut server = Server::start_with(TOML, &[]);
    for (index, hello) in ["HELLO 2", "HELLO 3"].into_iter().enumerate() {
        let mut raw = server.raw();
        raw.ask_line(hello);
        for (line, kinds) in REQUESTS {
            let reply = raw.ask_line(line);
            assert_eq!(
                reply.as_bytes()[0],
                kinds.as_bytes()[index],
                "{hello}, {line}: {reply:.200}"
            );
        }
    }
    for (line, expected) in [("MONITOR", "+OK\r\n"), ("QUIT", "+OK\r\n")] {
        assert_eq!(server.raw().ask_line(line), expected);
    }
    let mut asked: BTreeSet<String> = REQUESTS.iter().map(|(line, _)| name_of(line)).collect();
    asked.extend(CONTAINERS.iter().chain(APART).map(|name| (*name).to_owned()));
    asked.insert("hello".to_owned());
    let listed = listed(&mut server.raw());
    let missed: Vec<_> = listed.symmetric_difference(&asked).collect();
    assert!(missed.is_empty(), "listed, but not asked, or the reverse: {missed:?}");
    server.raw().request(&["SHUTDOWN", "NOSAVE"]);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn every_command_is_counted_by_its_name() {
    let server = Server::start_with("maxmemory-policy = \"noeviction\"\n", &[]);
    let mut raw = server.raw();
    // Behind this one nothing is counted any more.
    let counted = REQUESTS.iter().filter(|(line, _)| *line != "CONFIG RESETSTAT");
    for (line, _) in counted.clone() {
        raw.ask_line(line);
    }
    let info = raw.ask_line("INFO commandstats");
    for (line, _) in counted {
        let field = format!("\ncmdstat_{}:calls=", name_of(line));
        assert!(info.contains(&field), "{line} isn't counted as {field}: {info}");
    }
}

#[test]
fn a_wrong_number_of_arguments_and_a_wrong_name_have_redis_texts() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    for (line, expected) in [
        ("GET", "-ERR wrong number of arguments for 'get' command\r\n"),
        ("config get", "-ERR wrong number of arguments for 'config|get' command\r\n"),
        ("CONFIG NOPE", "-ERR unknown subcommand 'NOPE'. Try CONFIG HELP.\r\n"),
        ("nope a b", "-ERR unknown command 'nope', with args beginning with: 'a' 'b' \r\n"),
    ] {
        assert_eq!(raw.ask_line(line), expected);
    }
}
