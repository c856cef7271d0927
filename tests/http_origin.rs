//! An origin over HTTP behind a real server, as clients see it.

mod common;
#[path = "common/origin.rs"]
mod origin;

use std::time::{Duration, Instant};

use common::{Raw, Server, eventually, expect};
use origin::{Origin, Script};

/// A store `origin` with these lines, and namespaces `page:` and `item:` over it.
fn config(origin: &Origin, timeout: &str, more: &str) -> String {
    let url = origin.url();
    format!(
        "store-timeout = '{timeout}'\n[store.origin]\nkind = 'http'\nurl = '{url}'\n{more}\n\
         [[namespace]]\nprefix = 'page:'\nmode = 'read-through'\nstore = 'origin'\n\
         [[namespace]]\nprefix = 'item:'\nmode = 'write-through'\nstore = 'origin'\n"
    )
}

fn expect_error(conn: &mut Raw, line: &str, start: &str) {
    let reply = conn.ask_line(line);
    assert!(reply.starts_with(&format!("-{start}")), "{line}: {reply}");
}

/// What the origin was asked for a path.
fn asked(origin: &Origin, path: &str) -> Vec<String> {
    let mut all = origin.requests();
    all.retain(|head| head.split(' ').nth(1) == Some(path));
    all
}

#[test]
fn values_are_loaded_written_and_deleted() {
    let origin = Origin::start();
    let server = Server::start_with(&config(&origin, "20s", ""), &[]);
    let conn = &mut server.raw();
    origin.put("/page%3Aa%2Fb", "hello");
    expect(conn, "MGET page:a/b page:none", "*2|$5|hello|$-1");
    expect(conn, "SET item:1 tea", "+OK");
    expect(conn, "APPEND item:1 s", ":4");
    expect(conn, "MSET item:2 a item:3 b", "+OK");
    expect(conn, "DEL item:2 item:9", ":1");
    assert_eq!(conn.ask(&[&b"SET"[..], b"item:\0\xff", b"x\r\n"]), b"+OK\r\n");
    let stored =
        ["/item%3A1", "/item%3A2", "/item%3A3", "/item%3A%00%FF"].map(|key| origin.get(key));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(stored, [text("teas"), None, text("b"), text("x\r\n")]);
    expect(conn, "SET item:4 soon EX 1000", "+OK");
    let put = asked(&origin, "/item%3A4").pop().expect("a request");
    assert!(put.starts_with("PUT /item%3A4 HTTP/1.1\r\n"), "{put}");
    assert!(put.contains("larder-version: ") && put.contains("larder-deadline: "), "{put}");
    // With no word of the origin a copy is good until it is dropped.
    origin.put("/page%3Aa%2Fb", "changed");
    expect(conn, "GET page:a/b", "$5|hello");
    expect(conn, "FLUSHALL", "+OK");
    expect(conn, "GET page:a/b", "$7|changed");
    let left = conn.ask_line("TTL item:4");
    let left: u64 = left.trim_start_matches(':').trim().parse().expect("a deadline");
    assert!((900..=1000).contains(&left), "{left}");
}

#[test]
fn copies_are_as_fresh_as_the_origin_says() {
    let origin = Origin::start();
    let server = Server::start_with(&config(&origin, "20s", ""), &[]);
    let conn = &mut server.raw();
    let answer = |control: &str, body: &str| {
        Script::status(200).header("Cache-Control", control).header("ETag", "\"1\"").body(body)
    };
    // No copy is kept, and it has no deadline of its own.
    origin.script("/page%3Anow", [answer("no-store", "1"), answer("no-cache", "2")]);
    expect(conn, "GET page:now", "$1|1");
    expect(conn, "GET page:now", "$1|2");
    // It is not sent again if it hasn't changed.
    origin.script("/page%3Anow", [Script::status(304).header("Cache-Control", "max-age=3600")]);
    expect(conn, "GET page:now", "$1|2");
    expect(conn, "GET page:now", "$1|2");
    expect(conn, "TTL page:now", ":-1");
    let all = asked(&origin, "/page%3Anow");
    assert!(all.len() == 3 && all[2].contains("if-none-match: \"1\""), "{all:?}");
    // It is loaded again when its time is over.
    origin.script("/page%3Asoon", [answer("max-age=1", "old"), answer("max-age=3600", "new")]);
    expect(conn, "GET page:soon", "$3|old");
    eventually("the copy's time is over", || conn.ask_line("GET page:soon") == "$3\r\nnew\r\n");
    assert_eq!(asked(&origin, "/page%3Asoon").len(), 2);
}

#[test]
fn statuses_say_whose_fault_it_is() {
    let origin = Origin::start();
    let config = config(&origin, "1s", "breaker = false\nmax-body = '1kb'");
    let server = Server::start_with(&config, &[]);
    let conn = &mut server.raw();
    // Each has a key of its own: who asks just behind a load may be given what it brought.
    let mut number = 0;
    let mut load = |script: Script, reply: &str| {
        number += 1;
        origin.script(&format!("/page%3A{number}"), [script]);
        let said = conn.ask_line(&format!("GET page:{number}"));
        assert!(said.starts_with(reply), "{reply}: {said}");
    };
    load(Script::status(410), "$-1");
    load(Script::status(503), "-STOREDOWN the origin answered 503 Service Unavailable");
    load(Script::status(403), "-STOREERR the origin answered 403 Forbidden");
    load(Script::status(301), "-STOREERR the origin answered 301 Moved Permanently; redirects");
    load(Script::status(200).body(&"x".repeat(1025)), "-STOREERR a body of 1025 bytes");
    load(Script::Silent, "-STORETIMEOUT the origin doesn't answer");
    let conn = &mut server.raw();
    expect(conn, "SET item:1 tea", "+OK");
    // Nothing has changed, and the copy stays.
    for status in [429, 503, 403] {
        origin.script("PUT /item%3A1", [Script::status(status)]);
        expect_error(conn, "SET item:1 x", "STORE");
        expect(conn, "GET item:1", "$3|tea");
    }
    // Passed over by an origin that has a newer one.
    origin.script("PUT /item%3A1", [Script::status(412)]);
    expect(conn, "SET item:1 milk", "+OK");
    // SEMANTICS 14: where it says which version it has, the write is sent again under a newer one.
    let far = 1_u64 << 60;
    let passed_over = Script::status(412).header("Larder-Version", &far.to_string());
    origin.script("PUT /item%3A1", [passed_over]);
    expect(conn, "SET item:1 tea", "+OK");
    let again = origin.requests().pop().unwrap_or_default().to_ascii_lowercase();
    assert!(again.contains(&format!("larder-version: {}", far + 1)), "{again}");
    // Nobody knows: the copy goes.
    for script in [Script::status(502), Script::Close, Script::Silent] {
        origin.script("PUT /item%3A1", [script]);
        expect_error(conn, "SET item:1 x", "STORETIMEOUT ");
        eventually("it is loaded again", || conn.ask_line("GET item:1") == "$3\r\ntea\r\n");
    }
    // A batch that ends in the middle.
    origin.script("PUT /item%3A3", [Script::status(403)]);
    expect_error(conn, "MSET item:2 a item:3 b", "STORETIMEOUT 1 of 2 changes are done");
    assert_eq!(origin.get("/item%3A2").as_deref(), Some("a"));
}

#[test]
fn it_comes_back_when_the_origin_does() {
    let mut origin = Origin::start();
    let config = config(&origin, "4s", "breaker = false");
    let server = Server::start_with(&config, &[]);
    let conn = &mut server.raw();
    expect(conn, "SET item:1 tea", "+OK");
    origin.stop();
    expect(conn, "GET item:1", "$3|tea");
    expect_error(conn, "GET item:2", "STOREDOWN error connecting to the origin");
    let origin = Origin::on(origin.port());
    origin.put("/item%3A2", "here");
    eventually("a load", || conn.ask_line("GET item:2") == "$4\r\nhere\r\n");
    eventually("a write", || conn.ask_line("SET item:1 milk") == "+OK\r\n");
    assert_eq!(origin.get("/item%3A1").as_deref(), Some("milk"));
}

/// Sends a GET of so many keys in one pipeline; their replies, and how long all of them took.
fn pipeline(conn: &mut Raw, count: usize) -> (Vec<String>, Duration) {
    let begun = Instant::now();
    (0..count).for_each(|number| conn.request(&["GET", &format!("page:{number}")]));
    let replies = (0..count).map(|_| String::from_utf8_lossy(&conn.reply()).into_owned());
    (replies.collect(), begun.elapsed())
}

#[test]
fn a_pipeline_over_a_slow_origin_takes_a_few_waves() {
    const KEYS: usize = 20;
    // Longer than a request may wait for a connection.
    const LATE: Duration = Duration::from_millis(1_200);
    let origin = Origin::start();
    let server = Server::start_with(&config(&origin, "4s", "breaker = false"), &[]);
    for number in 0..KEYS {
        origin.put(&format!("/page%3A{number}"), "tea");
        origin.script(&format!("/page%3A{number}"), [Script::Late(LATE)]);
    }
    let (replies, took) = pipeline(&mut server.raw(), KEYS);
    assert!(replies.iter().all(|reply| reply == "$3\r\ntea\r\n"), "{replies:?}");
    assert!(took < LATE * KEYS as u32 / 2, "{took:?}");
    let loads = origin.requests().iter().filter(|head| head.starts_with("GET ")).count();
    assert_eq!(loads, KEYS, "each is asked for once");
}

#[test]
fn a_pipeline_over_an_origin_that_hangs_is_answered_in_time() {
    const KEYS: usize = 64;
    let origin = Origin::start();
    let server = Server::start_with(&config(&origin, "2s", "breaker = false"), &[]);
    for number in 0..KEYS {
        let silent = std::iter::repeat_n(Script::Silent, 5);
        origin.script(&format!("/page%3A{number}"), silent);
    }
    let (replies, took) = pipeline(&mut server.raw(), KEYS);
    assert!(replies.iter().all(|reply| reply.starts_with("-STORETIMEOUT ")), "{replies:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
}
