//! The server as a process: start and its errors, settings in force, figures, memory at its limit, the
//! eviction policies, and the end.

mod common;

use std::{
    collections::HashMap,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use common::{PATIENCE, Raw, Server, encode, eventually, signal};

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The body of a bulk reply.
fn body(reply: &str) -> &str {
    reply.split_once("\r\n").map_or("", |(_, body)| body.trim_end_matches("\r\n"))
}

/// The fields of INFO.
fn info(client: &mut Raw, section: &str) -> HashMap<String, String> {
    let reply = client.ask_line(&format!("INFO {section}"));
    let fields = body(&reply).lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    fields
        .map(|line| line.split_once(':').unwrap_or_else(|| panic!("not a field: {line}")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A number of INFO.
fn number(client: &mut Raw, name: &str) -> u64 {
    info(client, "everything")[name].parse().expect("a number")
}

/// Runs larder until it ends.
fn run(args: &[&str], dir: &Path) -> Output {
    let dir = dir.to_str().expect("a plain path");
    Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(args)
        .args(["--dir", dir])
        .output()
        .expect("larder runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

// The end

#[test]
fn signals_end_it_once_all_is_answered() {
    for name in ["TERM", "INT"] {
        let mut server = Server::start(&[]);
        let mut client = server.raw();
        client.ask_line("SET n 0");
        client.send(encode(&["INCR", "n"]).repeat(5_000));
        // The first reply shows that the pipeline is with the server.
        assert_eq!(client.reply(), b":1\r\n");
        signal(server.pid(), name);
        let rest = text(client.read_to_end());
        assert!(rest.ends_with(":5000\r\n"), "{name}: {}", rest.len());
        assert_eq!(server.wait(), Some(0), "{name}");
    }
}

#[test]
fn idle_clients_do_not_hold_it_up() {
    let mut server = Server::start(&[]);
    let (mut one, mut two) = (server.raw(), server.raw());
    one.ask_line("PING");
    assert_eq!(two.ask_line("MONITOR"), "+OK\r\n");
    let started = Instant::now();
    assert_eq!(server.stop(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(one.read_to_end(), b"");
}

#[test]
fn a_client_that_does_not_read_holds_it_up_for_a_bounded_time() {
    let mut server = Server::start(&["--shutdown-timeout", "1s"]);
    let mut client = server.raw();
    let value = "v".repeat(1 << 20);
    client.ask(&["SET", "k", &value]);
    client.send(encode(&["GET", "k"]).repeat(20));
    let mut admin = server.raw();
    eventually("its replies wait", || number(&mut admin, "client_recent_max_output_buffer") > 0);
    let started = Instant::now();
    assert_eq!(server.stop(), Some(0));
    let took = started.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "{took:?}");
}

#[test]
fn a_client_that_keeps_sending_does_not_hold_it_up() {
    let mut server = Server::start(&["--shutdown-timeout", "20s"]);
    let mut client = server.raw();
    client.ask_line("PING");
    let mut sender = client.stream.try_clone().expect("a socket");
    let batch = encode(&["INCR", "n"]).repeat(1000);
    std::thread::scope(|scope| {
        scope.spawn(move || while sender.write_all(&batch).is_ok() {});
        scope.spawn(move || client.read_to_end());
        let started = Instant::now();
        assert_eq!(server.stop(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn a_pause_ends_with_the_server() {
    let mut server = Server::start(&[]);
    let (mut admin, mut client) = (server.raw(), server.raw());
    assert_eq!(admin.ask_line("CLIENT PAUSE 60000"), "+OK\r\n");
    client.send("SET k v\r\n");
    eventually("it waits", || admin.ask_line("CLIENT LIST").contains("qbuf=9"));
    signal(server.pid(), "TERM");
    assert_eq!(client.read_to_end(), b"+OK\r\n");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&["--shutdown-timeout", "1h"]);
    let mut client = server.raw();
    let value = "v".repeat(1 << 20);
    client.ask(&["SET", "k", &value]);
    client.send(encode(&["GET", "k"]).repeat(20));
    let mut admin = server.raw();
    eventually("its replies wait", || number(&mut admin, "client_recent_max_output_buffer") > 0);
    signal(server.pid(), "TERM");
    // Once others are closed the first signal has been seen.
    assert_eq!(admin.read_to_end(), b"");
    signal(server.pid(), "TERM");
    assert_eq!(server.wait(), Some(1));
}

#[test]
fn while_it_ends_nobody_is_let_in() {
    let mut server = Server::start(&["--shutdown-timeout", "1h"]);
    let mut client = server.raw();
    let value = "v".repeat(1 << 20);
    client.ask(&["SET", "k", &value]);
    client.send(encode(&["GET", "k"]).repeat(20));
    let mut admin = server.raw();
    eventually("its replies wait", || number(&mut admin, "client_recent_max_output_buffer") > 0);
    admin.request(&["SHUTDOWN"]);
    assert_eq!(admin.read_to_end(), b"");
    eventually("connecting fails", || {
        std::net::TcpStream::connect(("127.0.0.1", server.port())).is_err()
    });
    // The slow one gets everything, then it ends.
    (0..20).for_each(|_| assert!(client.reply().ends_with(b"v\r\n")));
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn shutdown_answers_what_came_before() {
    for words in ["SHUTDOWN", "SHUTDOWN NOSAVE", "SHUTDOWN NOW"] {
        let mut server = Server::start(&[]);
        let mut client = server.raw();
        client.send(format!("PING\r\n{words}\r\nPING\r\n"));
        assert_eq!(text(client.read_to_end()), "+PONG\r\n", "{words}");
        assert_eq!(server.wait(), Some(0), "{words}");
    }
    let server = Server::start(&[]);
    assert_eq!(server.raw().ask_line("SHUTDOWN ABORT"), "-ERR No shutdown in progress.\r\n");
}

// The start

#[test]
fn a_data_directory_has_one_server() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut first = Server::start_in(dir.path(), &[]);
    let second = run(&["--port", "0"], dir.path());
    assert_eq!(second.status.code(), Some(3), "{}", stderr(&second));
    assert!(stderr(&second).contains("another larder uses it"), "{}", stderr(&second));
    first.kill9();
    // What a crash leaves behind is no obstacle.
    let mut third = Server::start_in(dir.path(), &[]);
    assert_eq!(third.stop(), Some(0));
}

#[test]
fn a_port_in_use_is_said() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let port = server.port().to_string();
    let second = run(&["--port", &port], dir.path());
    assert_eq!(second.status.code(), Some(4), "{}", stderr(&second));
    assert!(stderr(&second).contains(&format!("127.0.0.1:{port}")), "{}", stderr(&second));
}

#[test]
fn an_address_may_be_missing_but_not_in_use() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let port = server.port().to_string();
    for (bind, code) in [("-127.0.0.1", 4), ("-192.0.2.1", 4), ("127.0.0.1 -192.0.2.1", 4)] {
        let ended = run(&["--port", &port, "--bind", bind], dir.path());
        assert_eq!(ended.status.code(), Some(code), "{bind}: {}", stderr(&ended));
    }
    assert_eq!(
        Server::start(&["--bind", "127.0.0.1 -192.0.2.1"]).raw().ask_line("PING"),
        "+PONG\r\n"
    );
}

#[test]
fn a_log_that_cannot_be_written_is_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ended = run(&["--port", "0", "--logfile", "/nonexistent/log"], dir.path());
    assert_eq!(ended.status.code(), Some(2), "{}", stderr(&ended));
    assert!(stderr(&ended).contains("logfile /nonexistent/log: "), "{}", stderr(&ended));
}

#[test]
fn a_wrong_configuration_is_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("larder.toml");
    for (toml, words) in [
        ("port = 0\nmaxclient = 5\n", &["larder.toml:2:1", "`maxclient`", "`maxclients`"][..]),
        ("port = 'x'\n", &["larder.toml:1:8", "`port`"]),
        ("memory = 5mb\n", &["larder.toml:1:"]),
        ("[[namespace]]\nprefix = ''\nmode = 'read-trough'\n", &["larder.toml:3:8", "`mode`"]),
    ] {
        std::fs::write(&path, toml).expect("written");
        let ended = run(&[path.to_str().expect("a plain path")], dir.path());
        let said = stderr(&ended);
        assert_eq!(ended.status.code(), Some(2), "{toml}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{toml}: {said}");
    }
    let ended = run(&["--prot", "1"], dir.path());
    assert_eq!(ended.status.code(), Some(2));
    assert!(stderr(&ended).contains("--port"), "{}", stderr(&ended));
    let ended = run(&["/nonexistent/larder.toml"], dir.path());
    assert_eq!(ended.status.code(), Some(2), "{}", stderr(&ended));
}

#[test]
fn a_directory_that_cannot_be_made_is_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("written");
    let ended = run(&["--port", "0"], &file.join("below"));
    assert_eq!(ended.status.code(), Some(3), "{}", stderr(&ended));
}

#[test]
fn a_unix_socket_is_served() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("larder.sock");
    let flags = ["--unixsocket", path.to_str().expect("a plain path"), "--unixsocketperm", "700"];
    let mut server = Server::start_in(dir.path(), &flags);
    assert_eq!(ping(&path), "+PONG\r\n");
    let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    eventually("the client that hung up is forgotten", || {
        !server.raw().ask_line("CLIENT LIST").contains("larder.sock")
    });
    // One that answers is not taken away from its server.
    let other = tempfile::tempdir().expect("a temporary directory");
    let refused = run(&[&["--port", "0"], &flags[..]].concat(), other.path());
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    // A crash leaves it behind; the next server takes its place, and removes it when it ends.
    server.kill9();
    assert!(path.exists());
    let mut server = Server::start_in(dir.path(), &flags);
    assert_eq!(ping(&path), "+PONG\r\n");
    assert_eq!(server.stop(), Some(0));
    assert!(!path.exists());
    // Another file in its place stays.
    std::fs::write(&path, "precious").expect("written");
    let refused = run(&[&["--port", "0"], &flags[..]].concat(), dir.path());
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
}

/// What a unix socket answers to PING.
fn ping(path: &Path) -> String {
    use std::io::{Read, Write};
    let mut stream = UnixStream::connect(path).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(b"PING\r\n").expect("open");
    let mut reply = [0; 7];
    stream.read_exact(&mut reply).expect("a reply");
    String::from_utf8_lossy(&reply).into_owned()
}

// Settings

#[test]
fn settings_act_at_once() {
    let server = Server::start(&[]);
    let (mut admin, mut idle) = (server.raw(), server.raw());
    let get = |admin: &mut Raw, name: &str| {
        let reply = admin.ask_line(&format!("CONFIG GET {name}"));
        reply.split("\r\n").nth(4).unwrap_or_default().to_owned()
    };
    assert_eq!(get(&mut admin, "maxclients"), "10000");
    assert_eq!(admin.ask_line("CONFIG SET maxmemory 20mb maxmemory-policy allkeys-lru"), "+OK\r\n");
    let memory = info(&mut admin, "memory");
    assert_eq!((&*memory["maxmemory"], &*memory["maxmemory_policy"]), ("20971520", "allkeys-lru"));
    assert_eq!(get(&mut admin, "maxmemory"), "20971520");
    // All of them or none.
    assert!(admin.ask_line("CONFIG SET timeout 100 nope 1").starts_with("-ERR Unknown option"));
    assert_eq!(get(&mut admin, "timeout"), "0");
    assert!(admin.ask_line("CONFIG SET port 1").starts_with("-ERR CONFIG SET failed"));
    assert_eq!(admin.ask_line("CONFIG SET timeout 1"), "+OK\r\n");
    assert_eq!(idle.read_to_end(), b"");
    // The administrator may have been closed for the same reason.
    drop(admin);
    let mut admin = server.raw();
    assert_eq!(admin.ask_line("CONFIG SET timeout 0 maxclients 2"), "+OK\r\n");
    eventually("one client is left", || number(&mut admin, "connected_clients") == 1);
    let mut second = server.raw();
    assert_eq!(second.ask_line("PING"), "+PONG\r\n");
    let refusal = server.raw().read_to_end();
    assert_eq!(text(refusal), "-ERR max number of clients reached\r\n");
    assert_eq!(admin.ask_line("CONFIG SET maxclients 10000 requirepass secret"), "+OK\r\n");
    // Those who are in stay in; new ones have to give it.
    assert_eq!(second.ask_line("PING"), "+PONG\r\n");
    let mut new = server.raw();
    assert_eq!(new.ask_line("PING"), "-NOAUTH Authentication required.\r\n");
    assert_eq!(new.ask_line("AUTH secret"), "+OK\r\n");
    assert_eq!(new.ask_line("CONFIG SET requirepass \"\"").get(..3), Some("+OK"));
}

#[test]
fn settings_are_written_to_the_file() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let toml = "# ours\nmaxclients = 50 # few\ntimeout = \"1h\"\n";
    let mut server = Server::start_with_in(dir.path(), toml, &[]);
    let mut client = server.raw();
    assert_eq!(client.ask_line("CONFIG SET maxclients 60 maxmemory 30mb"), "+OK\r\n");
    assert_eq!(client.ask_line("CONFIG REWRITE"), "+OK\r\n");
    assert_eq!(server.stop(), Some(0));
    let written = std::fs::read_to_string(dir.path().join("larder.toml")).expect("there");
    assert!(written.starts_with("# ours\n") && written.contains("# few"), "{written}");
    // The flags of the first start are in the file now, the next has its own.
    let path = dir.path().join("larder.toml");
    let server = Server::start_in(dir.path(), &[path.to_str().expect("a plain path")]);
    let mut client = server.raw();
    let fields = info(&mut client, "everything");
    assert_eq!((&*fields["maxclients"], &*fields["maxmemory"]), ("60", "31457280"));
    let without = Server::start(&[]);
    let reply = without.raw().ask_line("CONFIG REWRITE");
    assert_eq!(reply, "-ERR The server is running without a config file\r\n");
}

// Figures

#[test]
fn info_is_fields_in_sections() {
    let server = Server::start(&[]);
    let mut client = server.raw();
    client.ask_line("SET k 1");
    client.ask_line("GET k");
    client.ask_line("GET nothing");
    client.ask_line("NOPE");
    let fields = info(&mut client, "everything");
    for (name, value) in [
        ("keyspace_hits", "1"),
        ("keyspace_misses", "1"),
        ("total_error_replies", "1"),
        ("connected_clients", "1"),
        ("errorstat_ERR", "count=1"),
        ("db0", "keys=1,expires=0,avg_ttl=0"),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
    assert!(fields["cmdstat_get"].starts_with("calls=2,"), "{}", fields["cmdstat_get"]);
    assert_eq!(fields["process_id"], server.pid().to_string());
    assert_eq!(fields["tcp_port"], server.port().to_string());
    assert!(fields["used_memory_rss"].parse::<u64>().expect("a number") > 1 << 20);
    let reply = client.ask_line("INFO");
    let titles = body(&reply).lines().filter_map(|line| line.strip_prefix("# "));
    let known = ["Server", "Clients", "Memory", "Persistence", "Stats", "Replication", "CPU"];
    assert_eq!(titles.take(known.len()).collect::<Vec<_>>(), known);
    assert_eq!(client.ask_line("CONFIG RESETSTAT"), "+OK\r\n");
    assert_eq!(number(&mut client, "keyspace_hits"), 0);
}

#[test]
fn the_slow_log_keeps_all_at_threshold_zero() {
    let server = Server::start(&["--slowlog-log-slower-than", "0"]);
    let mut client = server.raw();
    client.ask_line("CLIENT SETNAME me");
    assert_eq!(client.ask_line("SLOWLOG RESET"), "+OK\r\n");
    client.ask_line("SET key value");
    client.ask_line("GET key");
    let log = client.ask_line("SLOWLOG GET");
    let (get, set) = (log.find("$3\r\nGET\r\n$3\r\nkey\r\n"), log.find("$3\r\nSET\r\n$3\r\nkey"));
    assert!(get.expect("GET is there") < set.expect("SET is there"), "{log}");
    assert!(log.contains("$2\r\nme\r\n"), "{log}");
    assert_eq!(client.ask_line("CONFIG SET slowlog-log-slower-than 1000000"), "+OK\r\n");
    client.ask_line("SLOWLOG RESET");
    client.ask_line("GET key");
    assert_eq!(client.ask_line("SLOWLOG LEN"), ":0\r\n");
    client.ask_line("CONFIG SET slowlog-log-slower-than 50000");
    assert_eq!(client.ask_line("DEBUG SLEEP 0.1"), "+OK\r\n");
    assert_eq!(client.ask_line("SLOWLOG LEN"), ":1\r\n");
}

#[test]
fn long_argument_lists_are_timed_whatever_their_class() {
    let server = Server::start(&["--slowlog-log-slower-than", "1500us"]);
    let mut client = server.raw();
    let keys: Vec<String> = (0..200_000).map(|key| format!("key:{key}")).collect();
    let words = std::iter::once("EXISTS").chain(keys.iter().map(String::as_str));
    assert_eq!(client.ask(&words.collect::<Vec<_>>()), b":0\r\n");
    assert_eq!(client.ask_line("SLOWLOG LEN"), ":1\r\n");
    client.ask_line("CONFIG SET slowlog-max-len 0");
    assert_eq!(client.ask_line("SLOWLOG LEN"), ":0\r\n");
}

#[test]
fn debug_sleep_takes_its_time() {
    let server = Server::start(&[]);
    let started = Instant::now();
    assert_eq!(server.raw().ask_line("DEBUG SLEEP 0.2"), "+OK\r\n");
    assert!(started.elapsed() >= Duration::from_millis(200));
}

// Memory

/// A small generator of the test's own: the same numbers at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn memory_stays_below_its_limit() {
    const LIMIT: u64 = 64 << 20;
    let server = Server::start(&["--memory", "64mb"]);
    let (mut writer, mut admin) = (server.raw(), server.raw());
    let value = vec![b'v'; 1 << 20];
    let mut random = Random(1);
    let mut peak = 0;
    for _ in 0..300 {
        let mut batch = Vec::new();
        for _ in 0..20 {
            // Sizes from 10 B to 1 MiB, each magnitude as often as the others.
            let most = 10 << random.below(18);
            let len = (most as usize).min(1 << 20);
            let key = format!("key:{}", random.below(1_000_000));
            batch.extend(encode(&[b"SET", key.as_bytes(), &value[..len]]));
        }
        writer.send(batch);
        let counted = number(&mut admin, "larder_used_memory_counted");
        assert!(counted <= LIMIT, "{counted}");
        (0..20).for_each(|_| assert_eq!(writer.reply(), b"+OK\r\n"));
        peak = peak.max(server.resident() as u64);
    }
    assert!(number(&mut admin, "evicted_keys") > 100);
    assert!(number(&mut admin, "larder_used_memory_counted") > LIMIT / 2);
    assert!(peak < LIMIT * 5 / 4 + (64 << 20), "{peak} bytes resident");
}

#[test]
fn expired_keys_give_their_memory_back_unread() {
    const KEYS: usize = 100_000;
    let server = Server::start(&["--memory", "200mb"]);
    let mut client = server.raw();
    let empty = number(&mut client, "larder_used_memory_counted");
    let value = "v".repeat(100);
    // Removing waits until all are there, so that the count before is known.
    client.ask_line("DEBUG SET-ACTIVE-EXPIRE 0");
    for first in (0..KEYS).step_by(1000) {
        let keys = first..first + 1000;
        let batch = keys.map(|key| encode(&["SET", &format!("key:{key}"), &value, "PX", "100"]));
        client.send(batch.collect::<Vec<_>>().concat());
        (0..1000).for_each(|_| assert_eq!(client.reply(), b"+OK\r\n"));
    }
    let full = number(&mut client, "larder_used_memory_counted");
    assert!(full > empty + (KEYS * 100) as u64, "{full}");
    client.ask_line("DEBUG SET-ACTIVE-EXPIRE 1");
    eventually("all keys are removed", || client.ask_line("DBSIZE") == ":0\r\n");
    let left = number(&mut client, "larder_used_memory_counted");
    assert!(left < empty + (full - empty) / 5, "{left} of {full}, {empty} when empty");
    assert_eq!(number(&mut client, "expired_keys"), KEYS as u64);
}

/// A server with this policy and so little memory that some hundred keys of [`VALUE`] fit.
fn small(policy: &str) -> Server {
    Server::start(&["--memory", "3mb", "--maxmemory-policy", policy])
}

/// Bytes of a value.
const VALUE: usize = 4 << 10;

fn set(client: &mut Raw, key: &str, more: &[&str]) -> String {
    let value = "v".repeat(VALUE);
    text(client.ask(&[&["SET", key, &value], more].concat()))
}

/// How many of `prefix:0` to `prefix:count` are there, none of them read.
fn left(client: &mut Raw, prefix: &str, count: usize) -> usize {
    client.ask_line("CLIENT NO-TOUCH ON");
    let left =
        (0..count).filter(|key| client.ask_line(&format!("EXISTS {prefix}:{key}")) == ":1\r\n");
    let left = left.count();
    client.ask_line("CLIENT NO-TOUCH OFF");
    left
}

const OOM: &str = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";

#[test]
fn noeviction_refuses_writes_that_grow() {
    let server = small("noeviction");
    let mut client = server.raw();
    let stored =
        (0..2000).take_while(|key| set(&mut client, &format!("k:{key}"), &[]) == "+OK\r\n");
    let stored = stored.count();
    assert!((100..1000).contains(&stored), "{stored}");
    assert_eq!(set(&mut client, "another", &[]), OOM);
    assert!(client.ask_line("GET k:0").starts_with("$4096\r\n"));
    assert_eq!(client.ask_line("DBSIZE"), format!(":{stored}\r\n"));
    assert_eq!(client.ask_line("EXPIRE k:0 100"), ":1\r\n");
    assert_eq!(client.ask_line("DEL k:0 k:1"), ":2\r\n");
    assert_eq!(set(&mut client, "another", &[]), "+OK\r\n");
    assert_eq!(number(&mut client, "evicted_keys"), 0);
}

#[test]
fn volatile_policies_spare_persistent_keys() {
    for policy in ["volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"] {
        let server = small(policy);
        let mut client = server.raw();
        for key in 0..100 {
            assert_eq!(set(&mut client, &format!("stays:{key}"), &[]), "+OK\r\n", "{policy}");
        }
        for key in 0..1000 {
            let reply = set(&mut client, &format!("goes:{key}"), &["EX", "1000"]);
            assert_eq!(reply, "+OK\r\n", "{policy}");
        }
        assert_eq!(left(&mut client, "stays", 100), 100, "{policy}");
        assert!((50..900).contains(&left(&mut client, "goes", 1000)), "{policy}");
        // Persistent ones push out all others, then nothing is left to evict.
        let more =
            (0..2000).take_while(|key| set(&mut client, &format!("more:{key}"), &[]) == "+OK\r\n");
        let more = more.count();
        assert!(more < 1000, "{policy}");
        assert_eq!(set(&mut client, "another", &[]), OOM, "{policy}");
        assert_eq!(left(&mut client, "goes", 1000), 0, "{policy}");
        assert_eq!(left(&mut client, "stays", 100), 100, "{policy}");
        assert_eq!(left(&mut client, "more", more), more, "{policy}");
    }
}

#[test]
fn volatile_ttl_takes_the_nearest_deadlines() {
    let server = small("volatile-ttl");
    let mut client = server.raw();
    client.ask_line("CONFIG SET maxmemory-samples 10");
    for key in 0..200 {
        set(&mut client, &format!("late:{key}"), &["EX", "100000"]);
        set(&mut client, &format!("soon:{key}"), &["EX", "1000"]);
    }
    let mut key = 0;
    while number(&mut client, "evicted_keys") < 100 {
        set(&mut client, &format!("later:{key}"), &["EX", "100000"]);
        key += 1;
    }
    let (late, soon) = (left(&mut client, "late", 200), left(&mut client, "soon", 200));
    assert!(late >= 195 && soon <= 110, "{late} late, {soon} soon");
}

/// Fills memory with cold keys while 50 are read again and again; how many of these stay.
fn stay(policy: &str, ttl: &[&str]) -> (usize, usize) {
    let server = small(policy);
    let mut client = server.raw();
    client.ask_line("CONFIG SET maxmemory-samples 10");
    for key in 0..50 {
        set(&mut client, &format!("hot:{key}"), ttl);
        set(&mut client, &format!("old:{key}"), ttl);
    }
    for key in 0..1500 {
        for hot in (key % 5..50).step_by(5) {
            client.ask_line(&format!("STRLEN hot:{hot}"));
        }
        if policy.ends_with("lru") {
            // Its clock has ticks of 16 ms: before a key that is new now is old, some have to pass.
            client.ask_line("DEBUG SLEEP 0.001");
        }
        assert_eq!(set(&mut client, &format!("cold:{key}"), ttl), "+OK\r\n", "{policy}");
    }
    (left(&mut client, "hot", 50), left(&mut client, "old", 50))
}

#[test]
fn policies_keep_what_is_used() {
    let ttl = ["EX", "1000"];
    // LFU takes any of the keys that nobody reads, not the oldest of them.
    for (policy, ttl, old_most) in [
        ("allkeys-s3fifo", &[][..], 10),
        ("allkeys-lru", &[], 10),
        ("volatile-lru", &ttl, 10),
        ("allkeys-lfu", &[], 25),
        ("volatile-lfu", &ttl, 25),
    ] {
        let (hot, old) = stay(policy, ttl);
        assert!(hot >= 45, "{policy} keeps {hot} of 50 hot keys");
        assert!(old <= old_most, "{policy} keeps {old} of 50 keys that nobody reads");
    }
}

#[test]
fn lfu_keeps_the_often_used_before_the_lately_used() {
    let server = small("allkeys-lfu");
    let mut client = server.raw();
    client.ask_line("CONFIG SET maxmemory-samples 10 lfu-log-factor 1");
    for key in 0..50 {
        set(&mut client, &format!("often:{key}"), &[]);
        (0..30).for_each(|_| drop(client.ask_line(&format!("GET often:{key}"))));
    }
    for key in 0..1500 {
        set(&mut client, &format!("once:{key}"), &[]);
    }
    let often = left(&mut client, "often", 50);
    assert!(often >= 45, "{often}");
}

#[test]
fn random_takes_any() {
    let server = small("allkeys-random");
    let mut client = server.raw();
    for key in 0..2000 {
        assert_eq!(set(&mut client, &format!("k:{key}"), &[]), "+OK\r\n");
        client.ask_line("GET k:0");
    }
    // Neither only the oldest nor only the newest are left.
    let all = left(&mut client, "k", 2000);
    let oldest = left(&mut client, "k", 1000);
    assert!((100..1000).contains(&all) && oldest > 0 && oldest < all, "{oldest} of {all}");
}

// The log

#[test]
fn the_log_level_changes_while_the_server_runs() {
    for (level, shown) in [("warning", false), ("notice", true)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("log");
        let flags = ["--loglevel", "warning", "--logfile", path.to_str().expect("a plain path")];
        let mut server = Server::start_in(dir.path(), &flags);
        let reply = server.raw().ask(&["CONFIG", "SET", "loglevel", level]);
        assert_eq!(reply, b"+OK\r\n");
        assert_eq!(server.stop(), Some(0));
        let text = std::fs::read_to_string(&path).expect("the log is there");
        assert_eq!(text.contains("SIGTERM"), shown, "{text}");
    }
}

#[test]
fn a_command_never_evicts_what_it_works_on() {
    let server = Server::start(&["--memory", "16mb"]);
    let mut raw = server.raw();
    let value = vec![b'v'; 7 << 20];
    for words in [["RENAME", "a", "b"], ["COPY", "a", "b"]] {
        assert_eq!(raw.ask(&[&b"SET"[..], b"a", &value]), b"+OK\r\n");
        let reply = raw.ask(&words);
        let found = raw.ask(&["EXISTS", "a", "b"]);
        assert_ne!(found, b":0\r\n", "{words:?}: {}", String::from_utf8_lossy(&reply));
        raw.ask(&["FLUSHALL"]);
    }
}
