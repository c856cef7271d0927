//! A real Redis upstream of a real server, as clients of both see them. Skipped with a word where it isn't
//! installed.

mod common;

use std::path::Path;

use common::{Raw, Redis, Server, eventually, expect, signal};

const PASSWORD: &str = "open-sesame-7f3a";

/// A server whose stores find the password in the environment.
fn start(dir: &Path, toml: &str) -> Server {
    start_with(dir, toml, PASSWORD)
}

fn start_with(dir: &Path, toml: &str, password: &str) -> Server {
    let path = dir.join("larder.toml");
    std::fs::write(&path, toml).expect("the configuration is written");
    let (path, log) = (path.to_str().expect("plain"), dir.join("log"));
    let args = [path, "--logfile", log.to_str().expect("plain")];
    Server::start_through("env", &[&format!("LARDER_TEST_PASSWORD={password}")], dir, &args)
}

/// A store `main` with these lines, and namespaces `order:` and `user:` over it.
fn config(redis: &Redis, timeout: &str, more: &str) -> String {
    let url = redis.url();
    format!(
        "store-timeout = '{timeout}'\n[store.main]\nkind = 'redis'\nurl = '{url}'\n{more}\n\
         [[namespace]]\nprefix = 'order:'\nmode = 'write-through'\nstore = 'main'\n\
         [[namespace]]\nprefix = 'user:'\nmode = 'read-through'\nstore = 'main'\nttl = '200ms'\n"
    )
}

fn expect_error(conn: &mut Raw, line: &str, start: &str) {
    let reply = conn.ask_line(line);
    assert!(reply.starts_with(&format!("-{start}")), "{line}: {reply}");
}

#[test]
fn values_are_plain_strings_that_all_see() {
    for versions in [false, true] {
        let Some(redis) = Redis::start() else { return };
        let dir = tempfile::tempdir().expect("a directory");
        let toml = config(&redis, "20s", &format!("versions = {versions}"));
        let mut server = start(dir.path(), &toml);
        let conn = &mut server.raw();
        // What others wrote is loaded, with its deadline.
        redis.ask("SET user:1 Ada");
        redis.ask("SET order:0 soon PX 1000000");
        expect(conn, "MGET user:1 user:2 order:0", "*3|$3|Ada|$-1|$4|soon");
        let left = conn.ask_line("TTL order:0");
        let left: u64 = left.trim_start_matches(':').trim().parse().expect("a deadline");
        assert!((900..=1000).contains(&left), "{left}");
        // What we write they see.
        expect(conn, "SET order:1 tea", "+OK");
        expect(conn, "MSET order:2 a order:3 b order:4 c", "+OK");
        expect(conn, "DEL order:3 order:9", ":1");
        expect(conn, "INCR order:count", ":1");
        expect(conn, "SET order:5 soon EX 1000", "+OK");
        assert_eq!(conn.ask(&[&b"SET"[..], b"order:\0\xff", b"\0\r\n\xfe"]), b"+OK\r\n");
        assert_eq!(
            redis.ask("MGET order:1 order:2 order:3 order:4 order:count"),
            "tea|a|(nil)|c|1"
        );
        let ends = redis.ask("TTL order:5").replace("(integer) ", "");
        assert!((900..=1000).contains(&ends.parse::<u64>().expect("a deadline")), "{ends}");
        let companions = if versions { 6 } else { 0 };
        let count = redis.ask("KEYS larder:version:*");
        assert_eq!(count.split('|').filter(|key| !key.is_empty()).count(), companions, "{count}");
        // A deadline that a client changes is the data's.
        expect(conn, "PERSIST order:5", ":1");
        assert_eq!(redis.ask("TTL order:5"), "(integer) -1");
        server.kill9();
        let server = start(dir.path(), &toml);
        let conn = &mut server.raw();
        expect(conn, "MGET order:4 order:3 order:1 order:count", "*4|$1|c|$-1|$3|tea|$1|1");
        assert_eq!(conn.ask(&[&b"GET"[..], b"order:\0\xff"]), b"$4\r\n\0\r\n\xfe\r\n");
        // A value changed behind the cache: the copy stays until its time is over, or it is dropped.
        redis.ask("SET order:1 coffee");
        redis.ask("SET user:1 Bea");
        expect(conn, "GET order:1", "$3|tea");
        expect(conn, "FLUSHALL", "+OK");
        expect(conn, "GET order:1", "$6|coffee");
        eventually("the copy's time is over", || conn.ask_line("GET user:1") == "$3\r\nBea\r\n");
        redis.ask("SET user:1 Cleo");
        eventually("the copy's time is over", || conn.ask_line("GET user:1") == "$4\r\nCleo\r\n");
        // An expired key is gone on both sides.
        expect(conn, "SET order:6 brief PX 30", "+OK");
        eventually("it ends", || conn.ask_line("GET order:6") == "$-1\r\n");
        eventually("it ends upstream", || redis.ask("EXISTS order:6") == "(integer) 0");
    }
}

#[test]
fn errors_say_whose_fault_it_is() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), &config(&redis, "20s", "breaker = false"));
    let conn = &mut server.raw();
    redis.ask("RPUSH order:list a");
    expect_error(conn, "GET order:list", "STOREERR the key holds another type than a string there");
    expect_error(conn, "APPEND order:list x", "STOREERR the key holds another type");
    expect_error(conn, "SET order:list x KEEPTTL", "STOREERR the key holds another type");
    // A write that loads nothing replaces whatever is there.
    expect(conn, "SET order:list text", "+OK");
    assert_eq!(redis.ask("GET order:list"), "text");
    expect(conn, "SET order:1 tea", "+OK");
    redis.ask("CONFIG SET maxmemory 1");
    expect_error(conn, "SET order:1 coffee", "STOREDOWN OOM");
    expect_error(conn, "MSET order:2 a order:3 b", "STOREDOWN OOM");
    redis.ask("CONFIG SET maxmemory 0");
    redis.ask("ACL SETUSER default -set");
    expect_error(conn, "SET order:1 coffee", "STOREERR NOPERM");
    redis.ask("ACL SETUSER default +@all");
    redis.ask("REPLICAOF 127.0.0.1 1");
    expect_error(conn, "SET order:1 coffee", "STOREDOWN READONLY");
    redis.ask("REPLICAOF NO ONE");
    // None of them has changed anything.
    assert_eq!(redis.ask("MGET order:1 order:2 order:3"), "tea|(nil)|(nil)");
    expect(conn, "GET order:1", "$3|tea");
    expect(conn, "SET order:1 coffee", "+OK");
}

#[test]
fn it_comes_back_when_redis_does() {
    let Some(mut redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let toml = config(&redis, "4s", "versions = true\nbreaker = false");
    let mut server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    eventually("the first write", || conn.ask_line("SET order:1 tea") == "+OK\r\n");
    redis.kill();
    // What is in memory is served; what needs the store says so.
    expect(conn, "GET order:1", "$3|tea");
    expect_error(conn, "GET order:2", "STOREDOWN ");
    eventually("a lost connection is noticed", || {
        conn.ask_line("SET order:3 milk").starts_with("-STOREDOWN ")
    });
    expect(conn, "GET order:1", "$3|tea");
    redis.start_again();
    // It has forgotten its keys and its scripts.
    eventually("a write", || conn.ask_line("SET order:1 coffee") == "+OK\r\n");
    assert_eq!(redis.ask("GET order:1"), "coffee");
    expect(conn, "GET order:2", "$-1");
    // A server starts without its store.
    server.kill9();
    redis.kill();
    let server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    expect(conn, "SET plain 1", "+OK");
    expect_error(conn, "GET order:1", "STOREDOWN error connecting to redis");
    redis.start_again();
    redis.ask("SET order:1 juice");
    eventually("a load", || conn.ask_line("GET order:1") == "$5\r\njuice\r\n");
}

#[test]
fn wrong_credentials_are_said_and_no_secret_is() {
    let Some(redis) = Redis::start_with(Some(PASSWORD)) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let toml = config(&redis, "20s", "password-env = 'LARDER_TEST_PASSWORD'");
    for (password, reply) in
        [("hunter2-hunter2", "-STOREDOWN redis doesn't let us in"), (PASSWORD, "$-1")]
    {
        let server = start_with(dir.path(), &toml, password);
        let conn = &mut server.raw();
        let said = conn.ask_line("GET order:1");
        assert!(said.starts_with(reply), "{said}");
        let path = dir.path().join("log");
        let log = || std::fs::read_to_string(&path).unwrap_or_default();
        eventually("the log says how the store is", || log().contains("store main (redis)"));
        let mut shown = said + &log();
        for line in
            ["INFO everything", "CONFIG GET *", "CLIENT LIST", "SLOWLOG GET", "LARDER.BREAKER LIST"]
        {
            shown += &conn.ask_line(line);
        }
        assert!(!shown.contains(password), "the password shows");
    }
    let path = dir.path().join("wrong.toml");
    std::fs::write(&path, toml.replace("redis://", "redis://larder:hunter2@")).expect("written");
    let mut larder = std::process::Command::new(env!("CARGO_BIN_EXE_larder"));
    let output = larder.arg(&path).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("wrong.toml:4:7: `url`: no password here"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_silent_server_is_given_up_and_the_breaker_opens() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let breaker = "statement-timeout = '300ms'\nbreaker-window = 4\nbreaker-least-calls = 4\n\
                   breaker-open-for = '1h'";
    let server = start(dir.path(), &config(&redis, "2s", breaker));
    let conn = &mut server.raw();
    eventually("it is connected", || conn.ask_line("SET order:1 tea") == "+OK\r\n");
    signal(redis.pid(), "STOP");
    // Nobody knows what becomes of a write: its copy goes.
    expect_error(conn, "SET order:1 coffee", "STORETIMEOUT redis doesn't answer");
    expect_error(conn, "GET order:1", "STOREDOWN ");
    eventually("the breaker opens", || {
        let said = conn.ask_line("GET order:2");
        said.starts_with("-STOREDOWN ") && said.contains("breaker")
    });
    signal(redis.pid(), "CONT");
    expect(conn, "LARDER.BREAKER CLOSE main", "+OK");
    // As the docs say: what lay in a suspended server's buffer is done when it goes on.
    eventually("it is served again", || conn.ask_line("GET order:1").starts_with('$'));
    eventually("a write", || conn.ask_line("SET order:1 milk") == "+OK\r\n");
    eventually("it is there", || redis.ask("GET order:1") == "milk");
}
