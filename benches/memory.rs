//! Bytes of memory per key, Larder beside redis-server: `cargo bench --bench memory [-- OPTIONS]`.
//!
//! For each count of keys a fresh server is started and its resident memory read; then it is loaded
//! through one pipelined connection, told `MEMORY PURGE`, and read again. The difference by the count
//! is what a key costs, with table, eviction queue and allocator. Keys have 16 bytes. The mean over
//! several counts is what matters: a table that doubles looks good or bad at any single one.

mod common;

use std::{io, net::TcpStream, process::ExitCode, thread, time::Duration};

use common::{
    fill::{ask, connect, fill},
    flags::Flags,
    launch::{report, run_as_child},
    proc,
    report::print_table,
    server::{Server, Setup},
    wire::{Dialect, KEY_LEN, key, push_value},
    zipf::Rng,
};

const OPTIONS: &[(&str, &str)] = &[
    ("servers", "the first is compared to the others [larder,redis]"),
    ("counts", "numbers of keys [1000000,1400000,2000000,2800000]"),
    ("values", "bytes of a value [32,128]"),
];

/// Bytes a key that Larder may cost on the mean, by the length of the value.
const TARGETS: &[(usize, f64)] = &[(32, 84.0), (128, 180.0)];

/// Resident memory is read so often at most until it stands still.
const READS: usize = 100;

fn main() -> ExitCode {
    run_as_child().unwrap_or_else(|| report(run()))
}

fn run() -> io::Result<()> {
    let Some(flags) = Flags::read(OPTIONS)? else { return Ok(()) };
    println!("{}", proc::machine());
    let servers: Vec<String> = flags.list("servers", "larder,redis")?;
    let counts: Vec<u64> = flags.list("counts", "1000000,1400000,2000000,2800000")?;
    for value_len in flags.list("values", "32,128")? {
        for deadline in [false, true] {
            compare(&servers, &counts, Shape { value_len, deadline })?;
        }
    }
    Ok(())
}

/// What the keys are like.
#[derive(Clone, Copy)]
struct Shape {
    /// Bytes of a value.
    value_len: usize,
    /// Each key with a deadline, one to two hours from now.
    deadline: bool,
}

/// Prints bytes per key, a row for each server and a column for each count.
fn compare(servers: &[String], counts: &[u64], shape: Shape) -> io::Result<()> {
    let Shape { value_len, deadline } = shape;
    let ttl = if deadline { ", with a deadline" } else { "" };
    println!("\nbytes per key: {KEY_LEN} B key, {value_len} B value{ttl}");
    let mut found = vec![Vec::new(); servers.len()];
    for &count in counts {
        for (name, costs) in servers.iter().zip(&mut found) {
            costs.extend(cost(name, count, shape)?);
        }
    }
    let counts: Vec<String> = counts.iter().map(u64::to_string).collect();
    let mut heads = vec!["keys"];
    heads.extend(counts.iter().map(String::as_str));
    heads.extend(["mean", "first / this", "target"]);
    let present = servers.iter().zip(&found).filter(|(_, costs)| !costs.is_empty());
    let rows: Vec<_> = present.map(|(name, costs)| row(name, costs, &found[0], shape)).collect();
    if !rows.is_empty() {
        print_table(&heads, &rows);
    }
    Ok(())
}

fn row(name: &str, costs: &[f64], first: &[f64], shape: Shape) -> Vec<String> {
    let mean = |costs: &[f64]| costs.iter().sum::<f64>() / costs.len() as f64;
    let target = TARGETS.iter().find(|(len, _)| *len == shape.value_len && name == "larder");
    let mut row = vec![name.to_owned()];
    row.extend(costs.iter().map(|cost| format!("{cost:.1}")));
    row.push(format!("{:.1}", mean(costs)));
    row.push(match first {
        [] => String::new(),
        first => format!("{:.2}", mean(first) / mean(costs)),
    });
    row.push(target.map_or(String::new(), |(_, most)| {
        let word = if mean(costs) <= *most { "met" } else { "missed" };
        format!("{most:.0} {word}")
    }));
    row
}

/// What a key costs a fresh server, in bytes; `None` if there is no such server.
fn cost(name: &str, count: u64, shape: Shape) -> io::Result<Option<f64>> {
    let setup = Setup { cores: &[0, 1], memory_mib: 6144, ..Setup::default() };
    let Some(server) = Server::start(name, &setup)? else { return Ok(None) };
    let mut socket = connect(server.port())?;
    ask(&mut socket, b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n")?;
    let empty = settled(&server)?;
    load(&mut socket, count, shape)
        .map_err(|error| io::Error::other(format!("{name}, loading: {error}")))?;
    ask(&mut socket, b"*2\r\n$6\r\nMEMORY\r\n$5\r\nPURGE\r\n", b"+OK\r\n")?;
    let full = settled(&server)?;
    Ok(Some(full.saturating_sub(empty) as f64 / count as f64))
}

/// Sets the keys, and makes sure that all are there.
fn load(socket: &mut TcpStream, count: u64, shape: Shape) -> io::Result<()> {
    let mut rng = Rng::new(count);
    fill(socket, count, b"+OK\r\n", |number, out| match shape.deadline {
        true => push_set_ex(number, shape.value_len, 3_600 + rng.below(3_600), out),
        false => Dialect::Resp.push_set(&key(number), shape.value_len, out),
    })?;
    ask(socket, b"*1\r\n$6\r\nDBSIZE\r\n", format!(":{count}\r\n").as_bytes())
}

/// Appends a SET with EX; `seconds` has four digits.
fn push_set_ex(number: u64, value_len: usize, seconds: u64, out: &mut Vec<u8>) {
    let key = key(number);
    out.extend_from_slice(b"*5\r\n$3\r\nSET\r\n$16\r\n");
    out.extend_from_slice(&key);
    out.extend_from_slice(format!("\r\n${value_len}\r\n").as_bytes());
    push_value(&key, value_len, out);
    out.extend_from_slice(format!("\r\n$2\r\nEX\r\n$4\r\n{seconds}\r\n").as_bytes());
}

/// Resident memory once two readings in a row agree, or after [`READS`] of them.
fn settled(server: &Server) -> io::Result<u64> {
    let mut last = server.resident()?;
    for _ in 0..READS {
        thread::sleep(Duration::from_millis(20));
        let now = server.resident()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}
