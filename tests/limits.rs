//! What clients can't do to the server, nor to each other: idle ones, those that don't read, slow
//! ones, too many of them, and those that announce more than they send.

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use common::{PATIENCE, Raw, Server, encode, eventually};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// Raises our own limit of descriptors; returns how many there may be.
fn descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A number of INFO.
fn info(client: &mut Raw, name: &str) -> u64 {
    let text = client.ask_line("INFO");
    let value = text.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

/// Sends until the other side closes; returns what it said.
fn flood(client: &mut Raw, bytes: &[u8]) -> Vec<u8> {
    let mut sent = 0;
    while sent < 64 << 20 {
        match client.stream.write(bytes) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    client.read_to_end()
}

#[test]
fn idle_connections_are_cheap() {
    const WANTED: u64 = 10_000;
    let possible = descriptors().saturating_sub(200).min(WANTED);
    if possible < WANTED {
        eprintln!("only {possible} connections instead of {WANTED}: the hard limit is too low");
    }
    let server = Server::start(&["--maxclients", "10200"]);
    let mut admin = server.raw();
    // What the first few cost is not by connection.
    let mut idle: Vec<TcpStream> = (0..100).map(|_| greet(&server)).collect();
    let before = server.resident();
    idle.extend((0..possible).map(|_| greet(&server)));
    assert_eq!(info(&mut admin, "connected_clients"), possible + 101);
    let each = server.resident().saturating_sub(before) as u64 / possible;
    eprintln!("{each} bytes for each of {possible} connections");
    assert!(each <= 8 << 10, "{each} bytes for each of {possible} connections");
    drop(idle);
    eventually("they are forgotten", || info(&mut admin, "connected_clients") == 1);
}

/// A connection that has done something.
fn greet(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).expect("accepted");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(b"PING\r\n").expect("accepted");
    let mut reply = [0; 7];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"+PONG\r\n");
    stream
}

#[test]
fn a_client_that_never_reads_is_cut_off_alone() {
    let server = Server::start(&["--client-output-buffer-limit", "normal 8mb 0 0"]);
    let mut other = server.raw();
    let value = "v".repeat(1 << 20);
    other.ask(&["SET", "big", &value]);
    other.ask(&["SET", "small", "x"]);
    let before = server.resident();
    let mut deaf = server.raw();
    deaf.send(encode(&["GET", "big"]).repeat(500));
    let mut peak = before;
    eventually("it is closed at the limit", || {
        peak = peak.max(server.resident());
        assert_eq!(other.ask_line("GET small"), "$1\r\nx\r\n");
        info(&mut other, "client_output_buffer_limit_disconnections") == 1
    });
    eventually("it is forgotten", || info(&mut other, "connected_clients") == 1);
    assert!(peak - before < 32 << 20, "{} bytes more", peak - before);
    assert!(deaf.read_to_end().len() < 500 << 20);
}

#[test]
fn a_client_that_reads_late_below_the_limit_gets_everything() {
    let server = Server::start(&[]);
    let mut other = server.raw();
    // No batch is over the limit of 64 MiB, all of them are: what isn't read holds up the next.
    let value = "v".repeat(256 << 10);
    other.ask(&["SET", "big", &value]);
    let before = server.resident();
    let mut late = server.raw();
    late.send(encode(&["GET", "big"]).repeat(400));
    eventually("replies wait", || info(&mut other, "client_recent_max_output_buffer") > 0);
    assert_eq!(other.ask_line("PING"), "+PONG\r\n");
    let replies: usize = (0..400).map(|_| late.reply().len()).sum();
    assert_eq!(replies, 400 * ((256 << 10) + "$262144\r\n\r\n".len()));
    let rise = server.resident().saturating_sub(before);
    assert!(rise < 32 << 20, "{rise} bytes more");
}

#[test]
fn slow_senders_slow_nobody() {
    let server = Server::start(&["--workers", "1"]);
    let mut quick = server.raw();
    let mut half = server.raw();
    half.send(format!("*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n${}\r\n", 1 << 20));
    half.send("v".repeat(1 << 19));
    let slow = encode(&["SET", "slow", "value"]);
    let mut senders: Vec<Raw> = (0..50).map(|_| server.raw()).collect();
    let mut worst = Duration::ZERO;
    for byte in &slow {
        senders.iter_mut().for_each(|sender| sender.send([*byte]));
        let started = Instant::now();
        assert_eq!(quick.ask_line("PING"), "+PONG\r\n");
        worst = worst.max(started.elapsed());
    }
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    senders.iter_mut().for_each(|sender| assert_eq!(sender.reply(), b"+OK\r\n"));
    half.send("v".repeat(1 << 19));
    half.send("\r\n");
    assert_eq!(half.reply(), b"+OK\r\n");
    assert_eq!(quick.ask_line("STRLEN half"), ":1048576\r\n");
}

#[test]
fn a_long_value_in_small_pieces_takes_linear_time() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = server.raw();
    let len = 16 << 20;
    client.send(format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${len}\r\n"));
    let before = server.cpu();
    let piece = "v".repeat(8 << 10);
    for _ in 0..len / piece.len() {
        client.send(&piece);
    }
    client.send("\r\n");
    assert_eq!(client.reply(), b"+OK\r\n");
    let cpu = server.cpu() - before;
    assert!(cpu < 1.0, "{cpu} s of CPU time");
}

/// How many descriptors a server has open.
fn open(server: &Server) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("Linux").count() as u64
}

#[test]
fn at_the_descriptor_limit_it_neither_spins_nor_dies() {
    let server = Server::start(&[]);
    let mut admin = server.raw();
    admin.ask_line("PING");
    let pid = Pid::from_raw(server.pid() as i32);
    let limit = open(&server) + 5;
    let low = Rlimit { current: Some(limit), ..getrlimit(Resource::Nofile) };
    let old = prlimit(pid, Resource::Nofile, low).expect("our child");
    let mut waiting: Vec<Raw> = (0..20).map(|_| server.raw()).collect();
    eventually("it has no descriptor left", || open(&server) >= limit);
    let (before, started) = (server.cpu(), Instant::now());
    while started.elapsed() < Duration::from_secs(1) {
        assert_eq!(admin.ask_line("PING"), "+PONG\r\n");
        std::thread::sleep(Duration::from_millis(50));
    }
    let cpu = server.cpu() - before;
    assert!(cpu < 0.3, "{cpu} s of CPU time in a second of waiting");
    // Room again: those that waited are served.
    prlimit(pid, Resource::Nofile, old).expect("our child");
    for client in &mut waiting {
        assert_eq!(client.ask_line("PING"), "+PONG\r\n");
    }
}

#[test]
fn a_low_descriptor_limit_trims_maxclients() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let command = "ulimit -n 100; exec \"$@\"";
    let server = Server::start_through("sh", &["-c", command, "sh"], dir.path(), &[]);
    let mut admin = server.raw();
    let most = info(&mut admin, "maxclients");
    assert!((1..100).contains(&most), "{most}");
    let mut clients: Vec<Raw> = (0..most + 10).map(|_| server.raw()).collect();
    eventually("all were looked at", || info(&mut admin, "rejected_connections") >= 10);
    let mut refused = 0;
    for client in &mut clients {
        let _ = client.stream.write_all(b"QUIT\r\n");
        let reply = client.read_to_end();
        assert!(reply == b"+OK\r\n" || reply.starts_with(b"-ERR max") || reply.is_empty());
        refused += u64::from(reply != b"+OK\r\n");
    }
    assert!(refused >= 10, "{refused}");
    drop(clients);
    eventually("they are forgotten", || info(&mut admin, "connected_clients") == 1);
    assert_eq!(server.raw().ask_line("PING"), "+PONG\r\n");
}

#[test]
fn too_many_clients_are_refused() {
    let server = Server::start(&["--maxclients", "3"]);
    let mut clients: Vec<Raw> = (0..3).map(|_| server.raw()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask_line("PING"), "+PONG\r\n"));
    let refusal = server.raw().read_to_end();
    assert_eq!(refusal, b"-ERR max number of clients reached\r\n");
    assert_eq!(info(&mut clients[0], "rejected_connections"), 1);
    clients.pop();
    eventually("one has gone", || info(&mut clients[0], "connected_clients") == 2);
    assert_eq!(server.raw().ask_line("PING"), "+PONG\r\n");
}

#[test]
fn idle_clients_are_closed() {
    let server = Server::start(&["--timeout", "1s"]);
    let (mut idle, mut watcher) = (server.raw(), server.raw());
    assert_eq!(watcher.ask_line("MONITOR"), "+OK\r\n");
    let started = Instant::now();
    idle.ask_line("PING");
    assert_eq!(idle.read_to_end(), b"");
    assert!(started.elapsed() >= Duration::from_secs(1));
    // One that watches isn't idle.
    server.raw().ask_line("PING");
    assert!(watcher.reply().ends_with(b"\"PING\"\r\n"));
}

#[test]
fn announcements_reserve_no_memory() {
    let server = Server::start(&[]);
    let mut admin = server.raw();
    let half: Vec<Vec<u8>> = vec![
        b"*1048576\r\n".to_vec(),
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n".to_vec(),
        b"*2\r\n$536870912\r\nx".to_vec(),
        b"*2147483647\r\n".to_vec(),
        b"*1048577\r\n".to_vec(),
        b"*1\r\n".repeat(20_000),
        b"*-2147483648\r\n".repeat(20),
        b"*1\r\n$-5\r\n".to_vec(),
        b"*2\r\n$3\r\nGETxx$1\r\nk\r\n".to_vec(),
        b"*9223372036854775808\r\n".to_vec(),
        b"$".repeat(60_000),
    ];
    let send = |rounds: usize| -> Vec<Raw> {
        let all = half.iter().cycle().take(rounds * half.len());
        let sent = all.map(|bytes| {
            let mut client = server.raw();
            let _ = client.stream.write_all(bytes);
            client
        });
        sent.collect()
    };
    // Once to warm up what every kind of error needs.
    drop(send(4));
    eventually("they are forgotten", || info(&mut admin, "connected_clients") == 1);
    let before = server.resident();
    let clients = send(1);
    assert_eq!(admin.ask_line("PING"), "+PONG\r\n");
    let still_open = clients.len() as u64;
    eventually("the wrong ones are closed", || info(&mut admin, "connected_clients") <= still_open);
    let rise = server.resident().saturating_sub(before);
    assert!(rise < 1 << 20, "{rise} bytes");
    assert_eq!(admin.ask_line("PING"), "+PONG\r\n");
}

#[test]
fn unfinished_requests_are_bounded() {
    let server = Server::start(&["--client-query-buffer-limit", "4mb"]);
    let mut admin = server.raw();
    let before = server.resident();
    let mut client = server.raw();
    client.send("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n");
    flood(&mut client, "v".repeat(64 << 10).as_bytes());
    let rise = server.resident().saturating_sub(before);
    assert!(rise < 32 << 20, "{rise} bytes");
    eventually("it is closed", || info(&mut admin, "connected_clients") == 1);
}

/// Asks for so many values of 1 MiB and reads none.
fn ask_for(server: &Server, values: usize) -> Raw {
    let value = "v".repeat(1 << 20);
    assert_eq!(server.raw().ask(&["SET", "big", &value]), b"+OK\r\n");
    let mut client = server.raw();
    client.send(b"GET big\r\n".repeat(values));
    client
}

#[test]
fn replies_above_the_soft_limit_wait_only_so_long() {
    let server = Server::start(&["--client-output-buffer-limit", "normal 0 5mb 1"]);
    let mut admin = server.raw();
    let mut client = ask_for(&server, 40);
    eventually("it is closed at the limit", || {
        info(&mut admin, "client_output_buffer_limit_disconnections") == 1
    });
    client.read_to_end();
}

#[test]
fn a_client_that_takes_nothing_is_idle() {
    let server = Server::start(&["--timeout", "1s"]);
    let _client = ask_for(&server, 40);
    let mut admin = server.raw();
    eventually("replies wait", || info(&mut admin, "client_recent_max_output_buffer") > 0);
    eventually("it is closed", || info(&mut admin, "connected_clients") == 1);
}

#[test]
fn one_reply_may_be_larger_than_the_limit() {
    let server = Server::start(&["--client-output-buffer-limit", "normal 1mb 0 0"]);
    let mut client = server.raw();
    let value = "v".repeat(5 << 20);
    assert_eq!(client.ask(&["SET", "big", &value]), b"+OK\r\n");
    for words in [vec!["GET", "big"], vec!["ECHO", &value]] {
        assert_eq!(client.ask(&words).len(), value.len() + "$5242880\r\n\r\n".len());
    }
}

#[test]
fn a_command_of_many_values_stops_at_the_limit() {
    let server = Server::start(&["--client-output-buffer-limit", "normal 1mb 0 0"]);
    let (mut admin, mut client) = (server.raw(), server.raw());
    admin.ask(&["SET", "k", &"v".repeat(16_000)]);
    let before = server.resident();
    client.send(encode(&[&["MGET"][..], &["k"; 60_000]].concat()));
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(info(&mut admin, "client_output_buffer_limit_disconnections"), 1);
    let rise = server.resident().saturating_sub(before);
    assert!(rise < 32 << 20, "{rise} bytes");
}

#[test]
fn values_that_only_replies_refer_to_are_in_the_account() {
    let server = Server::start(&["--memory", "64mb"]);
    let mut admin = server.raw();
    let mut deaf = Vec::new();
    for _ in 0..5 {
        for key in 0..40 {
            admin.ask(&["SET", &format!("k{key}"), &"v".repeat(1 << 20)]);
        }
        let mut client = server.raw();
        (0..40).for_each(|key| client.send(format!("GET k{key}\r\n")));
        // Later ones find few keys: what they get may all be in the sockets.
        let done = format!("cmdstat_get:calls={},", 40 * (deaf.len() + 1));
        eventually("replies wait, or are on their way", || {
            info(&mut admin, "connected_clients") == 2 + deaf.len() as u64
                && (admin.ask_line("CLIENT LIST").matches(" omem=0 ").count() == 1
                    || admin.ask_line("INFO commandstats").contains(&done))
        });
        deaf.push(client);
    }
    eventually("keys make room", || info(&mut admin, "evicted_keys") > 40);
}

#[test]
fn what_follows_urgent_data_is_read() {
    let server = Server::start(&["--workers", "1"]);
    let (mut admin, mut client) = (server.raw(), server.raw());
    // While the worker sleeps all of it arrives.
    admin.send("DEBUG SLEEP 0.2\r\n");
    client.send("PING\r\n");
    rustix::net::send(&client.stream, b"!", rustix::net::SendFlags::OOB).expect("open");
    client.send("PING\r\n");
    assert_eq!(client.reply(), b"+PONG\r\n");
    assert_eq!(client.reply(), b"+PONG\r\n");
}

#[test]
fn who_waits_for_a_pause_is_not_idle() {
    let server = Server::start(&["--timeout", "1s"]);
    let (mut admin, mut client) = (server.raw(), server.raw());
    admin.ask_line("CLIENT PAUSE 2500");
    assert_eq!(client.ask_line("PING"), "+PONG\r\n");
}

#[test]
fn what_clients_make_the_server_keep_is_in_the_account() {
    let server = Server::start(&["--memory", "64mb"]);
    let mut admin = server.raw();
    let value = "v".repeat(100_000);
    for key in 0..400 {
        admin.ask(&["SET", &key.to_string(), &value]);
    }
    assert_eq!(info(&mut admin, "evicted_keys"), 0);
    let mut client = server.raw();
    client.send("*2\r\n$4\r\nECHO\r\n$60000000\r\n");
    client.send("v".repeat(40_000_000));
    eventually("keys make room", || info(&mut admin, "evicted_keys") > 100);
    assert!(info(&mut admin, "larder_used_memory_counted") <= 64 << 20);
    drop(client);
    let left = info(&mut admin, "evicted_keys");
    eventually("it is given back", || {
        info(&mut admin, "larder_used_memory_counted") <= (400 - left) * 120_000
    });
}

#[test]
fn a_lowered_limit_is_kept_without_a_write() {
    let server = Server::start(&["--memory", "64mb"]);
    let mut admin = server.raw();
    let value = "v".repeat(1000);
    let all: Vec<u8> =
        (0..40_000).flat_map(|key: u32| encode(&["SET", &key.to_string(), &value])).collect();
    admin.send(all);
    (0..40_000).for_each(|_| assert_eq!(admin.reply(), b"+OK\r\n"));
    assert_eq!(admin.ask_line("CONFIG SET maxmemory 16mb"), "+OK\r\n");
    eventually("it is", || info(&mut admin, "larder_used_memory_counted") <= 16 << 20);
    assert!(info(&mut admin, "evicted_keys") > 20_000);
}
