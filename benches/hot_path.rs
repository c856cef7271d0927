//! Instructions on the hot path: scanning, dispatch, GET hit, SET, reply, counted by callgrind.
//!
//! `cargo bench --bench hot_path [-- --traffic]`. Each part runs in a child under `valgrind --tool=callgrind` twice, with
//! and without its loop; the difference divided by the loop's length is what one takes. Counts are steady
//! where times are not: the same binary gives the same figures on a busy machine.
//!
//! With `--traffic` it says what it costs to watch the traffic (`hot-keys`, `miss-ratio-curve`) and to time
//! commands (`latency-tracking`): the same over many keys, with all of them off, each on, and all.

mod common;

use std::{path::Path, process::Command, sync::Arc};

use common::hot_path::HotPath;
use larder::{
    command::{Session, session::Client},
    config::Config,
    server::Server,
};

const LOOPS: u64 = 2_000;
const DEPTH: usize = 64;
/// Batches of different keys for `--traffic`, and how often they are carried out.
const BATCHES: usize = 512;
const ROUNDS: u64 = 12;
const WATCHED: &[(&str, [&str; 3])] = &[
    ("off", ["no", "no", "no"]),
    ("hot keys", ["yes", "no", "no"]),
    ("curve", ["no", "yes", "no"]),
    ("durations", ["no", "no", "yes"]),
    ("all", ["yes", "yes", "yes"]),
];
/// A part's name, its requests, how many are in a batch, and whether they are run or only scanned.
type Part = (&'static str, fn(usize) -> Vec<u8>, usize, bool);

const PARTS: &[Part] = &[
    ("scan GET", get, DEPTH, false),
    ("scan SET", set, DEPTH, false),
    ("GET hit, pipeline 64", get, DEPTH, true),
    ("GET hit, alone", get, 1, true),
    ("GET miss, pipeline 64", miss, DEPTH, true),
    ("SET over a value, pipeline 64", set, DEPTH, true),
    ("INCR, pipeline 64", incr, DEPTH, true),
    ("PING, pipeline 64", ping, DEPTH, true),
];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, part, loops] = &args[..]
        && flag == "--part"
    {
        return run(part.parse().expect("a number"), loops.parse().expect("a number"));
    }
    if let [_, flag, watched, part, rounds] = &args[..]
        && flag == "--watched"
    {
        let number = |text: &String| text.parse::<usize>().expect("a number");
        return run_watched(number(watched), number(part), number(rounds));
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        return println!("skipped: valgrind is not installed");
    }
    if args.iter().any(|arg| arg == "--traffic") {
        return print_watched();
    }
    println!("{:<34}{:>14}", "part", "instructions");
    for (index, (name, _, depth, _)) in PARTS.iter().enumerate() {
        let run = |loops: u64| count(&["--part", &index.to_string(), &loops.to_string()]);
        let (Some(long), Some(short)) = (run(LOOPS), run(0)) else {
            return println!("skipped: callgrind gave no count");
        };
        println!("{name:<34}{:>14.1}", (long - short) as f64 / (LOOPS * *depth as u64) as f64);
    }
}

/// What each way of watching costs.
fn print_watched() {
    println!("instructions at pipeline {DEPTH}, {} keys", DEPTH * BATCHES);
    print!("{:<34}", "part");
    WATCHED.iter().for_each(|(name, _)| print!("{name:>18}"));
    println!();
    for (index, (name, _, depth, runs)) in PARTS.iter().enumerate() {
        if *depth != DEPTH || !runs {
            continue;
        }
        print!("{name:<34}");
        let mut off = None;
        for watched in 0..WATCHED.len() {
            let run = |rounds: u64| {
                let numbers =
                    [watched as u64, index as u64, rounds].map(|number| number.to_string());
                count(&["--watched", &numbers[0], &numbers[1], &numbers[2]])
            };
            let (Some(long), Some(short)) = (run(ROUNDS), run(0)) else {
                return println!("skipped: callgrind gave no count");
            };
            let one = (long - short) as f64 / (ROUNDS as usize * BATCHES * DEPTH) as f64;
            let more = (one / *off.get_or_insert(one) - 1.0) * 100.0;
            print!("{:>18}", format!("{one:.1} ({more:+.2} %)"));
        }
        println!();
    }
}

fn run_watched(watched: usize, part: usize, rounds: usize) {
    let (_, request, ..) = PARTS[part];
    let dir = std::env::temp_dir().join(format!("larder-hot-path-{}", std::process::id()));
    let (_, [keys, curve, durations]) = WATCHED[watched];
    let flags = ["--hot-keys", keys, "--miss-ratio-curve", curve, "--latency-tracking", durations];
    let server = start(&dir, &flags);
    let (mut session, mut path) = (session(&server), HotPath::default());
    let batch = |request: fn(usize) -> Vec<u8>, at: usize| -> Vec<u8> {
        (at * DEPTH..(at + 1) * DEPTH).flat_map(request).collect()
    };
    for at in 0..BATCHES {
        path.step(&mut session, &mut batch(set, at), true);
    }
    let mut batches: Vec<_> = (0..BATCHES).map(|at| batch(request, at)).collect();
    batches.iter_mut().for_each(|batch| path.step(&mut session, batch, true));
    server.shared().tick();
    for _ in 0..rounds {
        batches.iter_mut().for_each(|batch| path.step(&mut session, batch, true));
    }
    let _ = std::fs::remove_dir_all(dir);
    // The server's threads need no drain.
    std::process::exit(0);
}

/// The instructions of a child with these arguments.
fn count(args: &[&str]) -> Option<u64> {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // Only what the loop does, not the server's own threads.
        .arg("--toggle-collect=*HotPath*step*")
        .arg(std::env::current_exe().ok()?)
        .args(args)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected"))?.to_owned();
    line.rsplit(':').next()?.trim().parse().ok()
}

fn run(part: usize, loops: u64) {
    let (_, request, depth, runs) = PARTS[part];
    let dir = std::env::temp_dir().join(format!("larder-hot-path-{}", std::process::id()));
    let server = start(&dir, &[]);
    let mut session = session(&server);
    let mut path = HotPath::default();
    let mut warm: Vec<u8> = (0..DEPTH).flat_map(set).collect();
    path.step(&mut session, &mut warm, true);
    let mut requests: Vec<u8> = (0..depth).flat_map(request).collect();
    path.step(&mut session, &mut requests, runs);
    for _ in 0..loops {
        path.step(&mut session, &mut requests, runs);
    }
    let _ = std::fs::remove_dir_all(dir);
    // The server's threads need no drain.
    std::process::exit(0);
}

fn start(dir: &Path, more: &[&str]) -> Server {
    let dir = dir.to_str().expect("a plain path");
    let flags = ["larder", "--port", "0", "--workers", "1", "--memory", "64mb", "--dir", dir];
    let config = Config::from_args(flags.iter().chain(more))
        .unwrap_or_else(|_| panic!("a valid configuration"));
    Server::start(&config).expect("the server starts")
}

fn session(server: &Server) -> Session {
    let shared = server.shared().clone();
    let client =
        Client::new(0, "bench".into(), "bench".into(), false, 0, shared.cache.clock().now());
    let stats = shared.workers[0].clone();
    let mut session = Session::new(shared, Arc::new(client), stats);
    session.now = session.cache().clock().now();
    session
}

fn get(number: usize) -> Vec<u8> {
    format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{number:012}\r\n").into_bytes()
}

fn miss(number: usize) -> Vec<u8> {
    format!("*2\r\n$3\r\nGET\r\n$16\r\nnot:{number:012}\r\n").into_bytes()
}

fn set(number: usize) -> Vec<u8> {
    format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:{number:012}\r\n$128\r\n{}\r\n", "v".repeat(128))
        .into_bytes()
}

fn incr(number: usize) -> Vec<u8> {
    format!("*2\r\n$4\r\nINCR\r\n$16\r\nnum:{number:012}\r\n").into_bytes()
}

fn ping(_: usize) -> Vec<u8> {
    b"*1\r\n$4\r\nPING\r\n".to_vec()
}
