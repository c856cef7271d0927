//! What a connection may ask about itself and about others, over sockets: greeting, authentication,
//! protocol errors, CLIENT, MONITOR.

mod common;

use std::io::Write;

use common::{Raw, Server, encode, eventually};

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The value of a field of a line of CLIENT LIST or CLIENT INFO.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let mut fields = line.trim_end().split(' ').filter_map(|field| field.split_once('='));
    fields.find(|(found, _)| *found == name).unwrap_or_else(|| panic!("{name} in {line}")).1
}

/// A connection's number.
fn id(client: &mut Raw) -> String {
    client.ask_line("CLIENT ID").trim_end()[1..].to_owned()
}

/// A line of the server's about a client, "" if it has gone.
fn listed(client: &mut Raw, id: &str) -> String {
    let reply = client.ask_line(&format!("CLIENT LIST ID {id}"));
    reply.split_once("\r\n").expect("a bulk").1.to_owned()
}

#[test]
fn hello_chooses_the_protocol() {
    let server = Server::start(&[]);
    let mut client = server.raw();
    let reply = client.ask_line("HELLO");
    assert!(reply.starts_with("*16\r\n$6\r\nserver\r\n$5\r\nredis\r\n"), "{reply}");
    assert!(reply.contains("$5\r\nproto\r\n:2\r\n"), "{reply}");
    let reply = client.ask_line("HELLO 3 SETNAME me");
    assert!(reply.starts_with("%8\r\n") && reply.contains("$5\r\nproto\r\n:3\r\n"), "{reply}");
    assert_eq!(client.ask_line("CLIENT GETNAME"), "$2\r\nme\r\n");
    assert_eq!(client.ask_line("GET nothing"), "_\r\n");
    assert_eq!(client.ask_line("HELLO 4"), "-NOPROTO unsupported protocol version\r\n");
    assert_eq!(client.ask_line("GET nothing"), "_\r\n");
    let error = "-ERR Protocol version is not an integer or out of range\r\n";
    assert_eq!(client.ask_line("HELLO x"), error);
    let error = "-ERR Syntax error in HELLO option 'nope'\r\n";
    assert_eq!(client.ask_line("HELLO 3 nope"), error);
    assert!(client.ask_line("HELLO 2").starts_with("*16\r\n"));
    assert_eq!(client.ask_line("GET nothing"), "$-1\r\n");
}

#[test]
fn ping_echo_select_reset_quit() {
    let server = Server::start(&["--databases", "4"]);
    let mut client = server.raw();
    assert_eq!(client.ask_line("PING"), "+PONG\r\n");
    assert_eq!(client.ask_line("PING x"), "$1\r\nx\r\n");
    assert_eq!(client.ask_line("ECHO y"), "$1\r\ny\r\n");
    assert_eq!(client.ask_line("SET k 0"), "+OK\r\n");
    assert_eq!(client.ask_line("SELECT 3"), "+OK\r\n");
    assert_eq!(client.ask_line("GET k"), "$-1\r\n");
    assert_eq!(client.ask_line("SELECT 4"), "-ERR DB index is out of range\r\n");
    assert_eq!(client.ask_line("SELECT x"), "-ERR value is not an integer or out of range\r\n");
    assert!(client.ask_line("HELLO 3").starts_with('%'));
    client.ask_line("CLIENT SETNAME me");
    assert_eq!(client.ask_line("RESET"), "+RESET\r\n");
    assert_eq!(client.ask_line("GET k"), "$1\r\n0\r\n");
    assert_eq!(client.ask_line("CLIENT GETNAME"), "$-1\r\n");
    // What comes behind QUIT isn't carried out.
    client.send("PING\r\nQUIT\r\nSET k 1\r\n");
    assert_eq!(text(client.read_to_end()), "+PONG\r\n+OK\r\n");
    assert_eq!(server.raw().ask_line("GET k"), "$1\r\n0\r\n");
}

#[test]
fn a_password_is_asked_for() {
    let server = Server::start(&["--requirepass", "secret"]);
    let mut client = server.raw();
    let noauth = "-NOAUTH Authentication required.\r\n";
    assert_eq!(client.ask_line("GET k"), noauth);
    assert_eq!(client.ask_line("PING"), noauth);
    assert!(client.ask_line("HELLO 3").starts_with("-NOAUTH HELLO must be called with"));
    let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    assert_eq!(client.ask_line("AUTH no"), wrong);
    assert_eq!(client.ask_line("AUTH somebody secret"), wrong);
    assert_eq!(client.ask_line("HELLO 3 AUTH default no"), wrong);
    assert_eq!(client.ask_line("AUTH a b c"), "-ERR syntax error\r\n");
    assert_eq!(client.ask_line("AUTH default secret"), "+OK\r\n");
    assert_eq!(client.ask_line("GET k"), "$-1\r\n");
    // A wrong password later doesn't throw out.
    assert_eq!(client.ask_line("AUTH no"), wrong);
    assert_eq!(client.ask_line("GET k"), "$-1\r\n");
    assert_eq!(client.ask_line("RESET"), "+RESET\r\n");
    assert_eq!(client.ask_line("GET k"), noauth);
    assert!(client.ask_line("HELLO 3 AUTH default secret SETNAME me").starts_with("%8\r\n"));
    assert_eq!(client.ask_line("GET k"), "_\r\n");
    let open = Server::start(&[]);
    assert!(open.raw().ask_line("AUTH x").starts_with("-ERR AUTH <password> called without any"));
}

#[test]
fn before_auth_requests_are_small() {
    let server = Server::start(&["--requirepass", "secret"]);
    let ten = vec!["PING"; 10];
    let mut client = server.raw();
    assert_eq!(text(client.ask(&ten)), "-NOAUTH Authentication required.\r\n");
    client.request(&["PING"; 11]);
    let error = "-ERR Protocol error: unauthenticated multibulk length\r\n";
    assert_eq!(text(client.read_to_end()), error);
    let mut client = server.raw();
    client.send(format!("*2\r\n$4\r\nECHO\r\n${}\r\n", 17 << 10));
    let error = "-ERR Protocol error: unauthenticated bulk length\r\n";
    assert_eq!(text(client.read_to_end()), error);
    // An AUTH in the same pipeline opens the limits for what follows.
    let mut client = server.raw();
    let value = "v".repeat(17 << 10);
    let mut many = vec!["MSET"];
    many.extend(["a"; 20]);
    let mut pipeline = encode(&["AUTH", "secret"]);
    pipeline.extend(encode(&["SET", "k", &value]));
    pipeline.extend(encode(&many));
    pipeline.extend(encode(&["STRLEN", "k"]));
    client.send(pipeline);
    let replies: Vec<String> = (0..4).map(|_| text(client.reply())).collect();
    assert_eq!(replies, ["+OK\r\n", "+OK\r\n", "+OK\r\n", ":17408\r\n"]);
}

#[test]
fn inline_commands() {
    let server = Server::start(&[]);
    let mut client = server.raw();
    client.send("\r\nSET k \"a b\\x41\\n\"\r\nGET k\nset 'it''s' x\r\nPING\r\n");
    let all: Vec<String> = (0..2).map(|_| text(client.reply())).collect();
    assert_eq!(all, ["+OK\r\n", "$5\r\na bA\n\r\n"]);
    assert_eq!(text(client.read_to_end()), "-ERR Protocol error: unbalanced quotes in request\r\n");
    let mut client = server.raw();
    client.send("x".repeat(65 << 10));
    assert_eq!(text(client.read_to_end()), "-ERR Protocol error: too big inline request\r\n");
}

#[test]
fn web_requests_close_the_connection() {
    let server = Server::start(&[]);
    for first in ["POST / HTTP/1.1\r\n", "Host: localhost\r\n", "post x\r\n", "host: y\r\n"] {
        let mut client = server.raw();
        client.send(format!("{first}SET forged 1\r\n"));
        assert_eq!(text(client.read_to_end()), "", "{first}");
    }
    assert_eq!(server.raw().ask_line("EXISTS forged"), ":0\r\n");
}

#[test]
fn protocol_errors_follow_earlier_replies_and_close() {
    let server = Server::start(&[]);
    for (wrong, error) in [
        ("*x\r\n", "invalid multibulk length"),
        ("*1048577\r\n", "invalid multibulk length"),
        ("*1\r\n:4\r\n", "expected '$', got ':'"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$536870913\r\n", "invalid bulk length"),
        ("*1\r\n$x\r\n", "invalid bulk length"),
    ] {
        let mut client = server.raw();
        client.send(format!("PING\r\nECHO x\r\n{wrong}"));
        let all = format!("+PONG\r\n$1\r\nx\r\n-ERR Protocol error: {error}\r\n");
        assert_eq!(text(client.read_to_end()), all, "{wrong}");
    }
    // Empty requests are no error.
    let mut client = server.raw();
    client.send("*0\r\n*-1\r\n\r\nPING\r\n");
    assert_eq!(text(client.reply()), "+PONG\r\n");
}

#[test]
fn a_request_may_come_in_pieces() {
    let server = Server::start(&[]);
    let mut client = server.raw();
    let pipeline = [encode(&["SET", "k", "value"]), encode(&["GET", "k"])].concat();
    for byte in pipeline {
        client.send([byte]);
    }
    assert_eq!(text(client.reply()), "+OK\r\n");
    assert_eq!(text(client.reply()), "$5\r\nvalue\r\n");
}

#[test]
fn a_half_closed_client_is_answered() {
    let server = Server::start(&[]);
    let mut client = server.raw();
    client.send("PING\r\nPING\r\n");
    client.stream.shutdown(std::net::Shutdown::Write).expect("open");
    assert_eq!(text(client.read_to_end()), "+PONG\r\n+PONG\r\n");
}

#[test]
fn clients_are_listed() {
    let server = Server::start(&[]);
    let (mut one, mut two) = (server.raw(), server.raw());
    let name = one.stream.local_addr().expect("bound").to_string();
    one.ask_line("HELLO 3 SETNAME me");
    one.ask_line("SELECT 5");
    one.ask_line("CLIENT SETINFO LIB-NAME lib");
    one.ask_line("CLIENT SETINFO LIB-VER 1.2");
    one.ask_line("CLIENT NO-EVICT ON");
    let line = one.ask_line("CLIENT INFO");
    let line = line.split_once("txt:").expect("a verbatim text").1.to_owned();
    let shown = ["addr", "name", "db", "flags", "lib-name", "lib-ver", "resp", "user", "cmd"];
    let wanted = [&name, "me", "5", "e", "lib", "1.2", "3", "default", "client|info"];
    assert_eq!(shown.map(|name| field(&line, name)), wanted, "{line}");
    let port = format!("127.0.0.1:{}", server.port());
    assert_eq!(field(&line, "laddr"), port);
    for number in ["id", "fd", "age", "idle", "qbuf", "omem", "tot-mem"] {
        field(&line, number).parse::<u64>().expect(number);
    }
    let id_one = id(&mut one);
    let id_two = id(&mut two);
    assert!(id_one.parse::<u64>().unwrap() < id_two.parse::<u64>().unwrap());
    let all = two.ask_line("CLIENT LIST");
    assert!(all.contains(&format!("id={id_one} addr={name}")) && all.contains("id="), "{all}");
    assert_eq!(all.matches("\nid=").count(), 2, "{all}");
    assert_eq!(two.ask_line("CLIENT LIST TYPE pubsub"), "$0\r\n\r\n");
    assert_eq!(field(&listed(&mut two, &id_one), "cmd"), "client|id");
    two.ask_line("CLIENT SETNAME x");
    assert!(two.ask(&["CLIENT", "SETNAME", "a b"]).starts_with(b"-ERR Client names cannot"));
    two.ask_line("CLIENT NO-TOUCH ON");
    assert!(field(&listed(&mut one, &id_two), "flags").contains('T'));
    drop(one);
    eventually("a client that has gone isn't listed", || {
        listed(&mut two, &id_one).trim_end().is_empty()
    });
}

#[test]
fn clients_kill_clients() {
    let server = Server::start(&[]);
    let mut admin = server.raw();
    let mut other = server.raw();
    let other_id = id(&mut other);
    assert_eq!(admin.ask_line(&format!("CLIENT KILL ID {other_id}")), ":1\r\n");
    assert_eq!(text(other.read_to_end()), "");
    let mut other = server.raw();
    other.ask_line("PING");
    let address = other.stream.local_addr().expect("bound");
    assert_eq!(admin.ask_line(&format!("CLIENT KILL {address}")), "+OK\r\n");
    assert_eq!(text(other.read_to_end()), "");
    assert_eq!(admin.ask_line("CLIENT KILL 1.2.3.4:5"), "-ERR No such client\r\n");
    assert_eq!(admin.ask_line("CLIENT KILL ID 999"), ":0\r\n");
    assert_eq!(admin.ask_line("CLIENT KILL TYPE normal"), ":0\r\n");
    // Oneself: the reply comes first.
    let mut other = server.raw();
    other.ask_line("PING");
    admin.send("CLIENT KILL TYPE normal SKIPME no\r\nPING\r\n");
    assert_eq!(text(admin.read_to_end()), ":2\r\n");
    assert_eq!(text(other.read_to_end()), "");
    assert_eq!(server.raw().ask_line("PING"), "+PONG\r\n");
}

#[test]
fn a_client_that_does_not_read_can_be_killed() {
    let server = Server::start(&[]);
    let mut admin = server.raw();
    let value = "v".repeat(1 << 20);
    admin.ask(&["SET", "k", &value]);
    let mut other = server.raw();
    let other_id = id(&mut other);
    (0..20).for_each(|_| other.request(&["GET", "k"]));
    eventually("its replies wait", || field(&listed(&mut admin, &other_id), "omem") != "0");
    let descriptors = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("Linux");
        files.count()
    };
    let before = descriptors();
    assert_eq!(admin.ask_line(&format!("CLIENT KILL ID {other_id}")), ":1\r\n");
    // Its descriptor comes back although it never reads.
    eventually("its socket is closed", || descriptors() < before);
    assert!(other.read_to_end().len() < 20 << 20);
}

#[test]
fn clients_are_paused() {
    let server = Server::start(&[]);
    let (mut admin, mut other) = (server.raw(), server.raw());
    let other_id = id(&mut other);
    assert_eq!(admin.ask_line("CLIENT PAUSE 100000 WRITE"), "+OK\r\n");
    assert_eq!(other.ask_line("GET k"), "$-1\r\n");
    other.send(encode(&["SET", "k", "1"]));
    other.send(encode(&["GET", "k"]));
    eventually("the write waits", || field(&listed(&mut admin, &other_id), "qbuf") != "0");
    assert_eq!(admin.ask_line("GET k"), "$-1\r\n");
    assert_eq!(admin.ask_line("CLIENT UNPAUSE"), "+OK\r\n");
    assert_eq!(
        (text(other.reply()), text(other.reply())),
        ("+OK\r\n".into(), "$1\r\n1\r\n".into())
    );
    // All commands, until the time is over.
    assert_eq!(admin.ask_line("CLIENT PAUSE 300"), "+OK\r\n");
    let started = std::time::Instant::now();
    assert_eq!(other.ask_line("GET k"), "$1\r\n1\r\n");
    assert!(started.elapsed() >= std::time::Duration::from_millis(200));
    assert!(admin.ask_line("CLIENT PAUSE -1").starts_with("-ERR timeout is negative"));
    assert!(admin.ask_line("CLIENT PAUSE x").starts_with("-ERR timeout is not an integer"));
}

#[test]
fn a_paused_client_can_go_and_be_killed() {
    let server = Server::start(&[]);
    let (mut admin, mut other) = (server.raw(), server.raw());
    let other_id = id(&mut other);
    admin.ask_line("CLIENT PAUSE 100000");
    other.request(&["GET", "k"]);
    eventually("it waits", || field(&listed(&mut admin, &other_id), "qbuf") != "0");
    assert_eq!(admin.ask_line(&format!("CLIENT KILL ID {other_id}")), ":1\r\n");
    assert_eq!(text(other.read_to_end()), "");
}

#[test]
fn replies_are_left_out() {
    let server = Server::start(&[]);
    let mut client = server.raw();
    client.send("CLIENT REPLY OFF\r\nPING\r\nNOPE\r\nSET k 1\r\nCLIENT REPLY SKIP\r\nPING\r\n");
    assert_eq!(client.ask_line("CLIENT REPLY ON"), "+OK\r\n");
    client.send("CLIENT REPLY SKIP\r\nINCR k\r\n");
    assert_eq!(client.ask_line("GET k"), "$1\r\n2\r\n");
    assert_eq!(client.ask_line("CLIENT REPLY NOPE"), "-ERR syntax error\r\n");
}

#[test]
fn reads_that_do_not_touch() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lfu"]);
    let mut client = server.raw();
    client.ask_line("SET k 1");
    client.ask_line("CLIENT NO-TOUCH ON");
    let before = client.ask_line("OBJECT FREQ k");
    (0..1000).for_each(|_| drop(client.ask_line("GET k")));
    assert_eq!(client.ask_line("OBJECT FREQ k"), before);
    client.ask_line("CLIENT NO-TOUCH OFF");
    (0..1000).for_each(|_| drop(client.ask_line("GET k")));
    assert_ne!(client.ask_line("OBJECT FREQ k"), before);
}

#[test]
fn touch_touches_whatever_the_mode() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lfu"]);
    let mut client = server.raw();
    client.ask_line("SET k v");
    client.ask_line("CLIENT NO-TOUCH ON");
    (0..1000).for_each(|_| assert_eq!(client.ask_line("TOUCH k"), ":1\r\n"));
    assert_ne!(client.ask_line("OBJECT FREQ k"), ":5\r\n");
}

#[test]
fn hello_has_redis_fields_in_redis_order() {
    let server = Server::start(&[]);
    let reply = text(server.raw().ask_line("HELLO 2").into());
    let known = ["server", "version", "proto", "id", "mode", "role", "modules", "larder_version"];
    let names: Vec<&str> = reply.split("\r\n").filter(|word| known.contains(word)).collect();
    assert_eq!(names, known);
}

#[test]
fn who_leaves_during_a_pause_writes_nothing() {
    let server = Server::start(&["--workers", "1"]);
    let (mut admin, mut client) = (server.raw(), server.raw());
    assert_eq!(admin.ask_line("CLIENT PAUSE 60000"), "+OK\r\n");
    client.send("SET k v\r\n");
    eventually("it waits", || admin.ask_line("CLIENT LIST").contains("qbuf=9"));
    drop(client);
    // Its leaving is known before a later client's request.
    server.raw().ask_line("CLIENT ID");
    eventually("it has gone", || !admin.ask_line("CLIENT LIST").contains("qbuf=9"));
    assert_eq!(admin.ask_line("CLIENT UNPAUSE"), "+OK\r\n");
    assert_eq!(admin.ask_line("EXISTS k"), ":0\r\n");
}

#[test]
fn monitors_see_commands() {
    let server = Server::start(&["--requirepass", "secret"]);
    let (mut watcher, mut other) = (server.raw(), server.raw());
    watcher.ask_line("AUTH secret");
    assert_eq!(watcher.ask_line("MONITOR"), "+OK\r\n");
    other.ask_line("AUTH secret");
    other.ask_line("HELLO 3 AUTH default secret");
    other.ask_line("SELECT 2");
    other.ask(&["SET", "k", "a \"b\"\r\n\0"]);
    other.ask_line("CONFIG GET port");
    other.ask_line("GET k");
    let mut line = || {
        let line = text(watcher.reply());
        let (time, rest) = line.split_once(" [").expect("a line of MONITOR");
        assert!(time[1..].parse::<f64>().is_ok() && time.starts_with('+'), "{line}");
        let (client, words) = rest.split_once("] ").expect("a line of MONITOR");
        (client.split_once(' ').expect("database and address").0.to_owned(), words.to_owned())
    };
    let lines: Vec<_> = (0..5).map(|_| line()).collect();
    assert_eq!(lines[0].1, "\"AUTH\" \"(redacted)\"\r\n");
    assert_eq!(lines[1].1, "\"HELLO\" \"3\" \"AUTH\" \"(redacted)\" \"(redacted)\"\r\n");
    assert_eq!(lines[2].1, "\"SELECT\" \"2\"\r\n");
    assert_eq!(lines[3], ("2".into(), "\"SET\" \"k\" \"a \\\"b\\\"\\r\\n\\x00\"\r\n".into()));
    // What an administrator does stays hidden.
    assert_eq!(lines[4], ("2".into(), "\"GET\" \"k\"\r\n".into()));
    assert_eq!(watcher.ask_line("RESET"), "+RESET\r\n");
    other.ask_line("GET k");
    assert_eq!(watcher.ask_line("PING"), "-NOAUTH Authentication required.\r\n");
}

#[test]
fn a_monitor_sees_all_of_a_long_pipeline() {
    let server = Server::start(&[]);
    let (mut watcher, mut other) = (server.raw(), server.raw());
    assert_eq!(watcher.ask_line("MONITOR"), "+OK\r\n");
    other.send(encode(&["SET", "k", "v"]).repeat(20_000));
    (0..20_000).for_each(|_| assert_eq!(other.reply(), b"+OK\r\n"));
    (0..20_000).for_each(|_| assert!(text(watcher.reply()).ends_with("\"SET\" \"k\" \"v\"\r\n")));
}

#[test]
fn a_slow_monitor_is_cut_off() {
    let server = Server::start(&[]);
    let (mut watcher, mut other) = (server.raw(), server.raw());
    let watcher_id = id(&mut watcher);
    assert_eq!(watcher.ask_line("MONITOR"), "+OK\r\n");
    let before = server.resident();
    let value = "v".repeat(8 << 10);
    let batch = encode(&["SET", "k", &value]).repeat(100);
    eventually("it is cut off", || {
        other.send(&batch);
        (0..100).for_each(|_| assert_eq!(other.reply(), b"+OK\r\n"));
        listed(&mut other, &watcher_id).trim_end().is_empty()
    });
    let rise = server.resident().saturating_sub(before);
    assert!(rise < 64 << 20, "{rise} bytes for a monitor");
    watcher.read_to_end();
    assert_eq!(other.ask_line("PING"), "+PONG\r\n");
}

#[test]
fn clients_that_vanish_are_forgotten() {
    let server = Server::start(&[]);
    let mut admin = server.raw();
    for _ in 0..50 {
        let mut client = server.raw();
        client.stream.write_all(b"*2\r\n$3\r\nGET\r\n$100\r\nhalf").expect("open");
    }
    eventually("one client is left", || {
        admin.ask_line("INFO clients").contains("\r\nconnected_clients:1\r\n")
    });
}
