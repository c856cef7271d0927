//! What the workers' own caches (L1) bring and cost: `cargo bench --bench l1 [-- OPTIONS]`.
//!
//! Four kinds of traffic, GETs only: one hot key, keys by Zipf's law (1.2 and 0.99), and uniform ones. Each
//! is measured with L1 on and off. Instructions per request, of what a connection does with a buffer, are
//! counted by callgrind and steady; so is the ratio of the times of that, in one process and by turns. CPU
//! time per request is that of a server with a worker on each core under the load of a generator on each,
//! in interleaved pairs, beside the same server twice; of a pair each server has several turns, of which
//! the median counts.

mod common;

use std::{
    cell::RefCell,
    io,
    process::{Command, ExitCode},
    rc::Rc,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use common::{
    flags::Flags,
    hot_path::HotPath,
    launch::{report, run_as_child},
    load::{Drive, Load, measure},
    proc,
    report::{Summary, print_table},
    server::{Server, Setup},
    wire::{Dialect, Stream},
    zipf::{Rng, Zipf, permuted},
};
use larder::{
    command::{Session, session::Client},
    config::Config,
};
use rustix::time::{ClockId, clock_gettime};

const OPTIONS: &[(&str, &str)] = &[
    ("mode", "all (default), instructions, path or cpu"),
    ("rounds", "pairs [20]"),
    ("seconds", "how long each server of a pair, in turns [1]"),
    ("connections", "of each generator [50]"),
    ("pipeline", "requests per batch [16]"),
];

const KEYS: u64 = 100_000;
const STREAM: usize = 1 << 19;
const BATCH: usize = 64;
/// Batches before instructions are counted, and while they are.
const WARM: usize = 3_000;
const COUNTED: usize = 3_000;
/// The same for times: requests of a batch, batches of a turn, and turns.
const PATH_BATCH: usize = 128;
const PATH_TURN: usize = 160;
const PATH_ROUNDS: usize = 200;
/// Turns of each server of a pair, and the time under load before each.
const TURNS: usize = 6;
const WARM_UP: Duration = Duration::from_millis(100);
/// More instructions, in percent, that L1 may cost where there is nothing hot.
const INSTRUCTIONS_TARGET: f64 = 2.0;
/// CPU per request with L1 to that without, at most.
const CPU_TARGET: f64 = 1.03;

#[derive(Clone, Copy, PartialEq)]
enum Traffic {
    Hot,
    Zipf(f64),
    Uniform,
}

const TRAFFIC: [(&str, Traffic); 4] = [
    ("one hot key", Traffic::Hot),
    ("Zipf 1.2", Traffic::Zipf(1.2)),
    ("Zipf 0.99", Traffic::Zipf(0.99)),
    ("uniform", Traffic::Uniform),
];

impl Traffic {
    fn keys(self) -> impl Iterator<Item = u64> {
        let mut rng = Rng::new(7);
        let zipf = if let Self::Zipf(skew) = self { skew } else { 0.5 };
        let zipf = Zipf::new(KEYS, zipf);
        std::iter::repeat_with(move || match self {
            Self::Hot => 42,
            Self::Zipf(_) => permuted(zipf.sample(&mut rng), KEYS),
            Self::Uniform => rng.below(KEYS),
        })
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, traffic, l1] = &args[..]
        && flag == "--part"
    {
        run_part(traffic.parse().expect("a number"), l1 == "1");
    }
    if let [_, flag, traffic] = &args[..]
        && flag == "--path"
    {
        run_path(traffic.parse().expect("a number"));
    }
    run_as_child().unwrap_or_else(|| report(run()))
}

fn run() -> io::Result<()> {
    let Some(flags) = Flags::read(OPTIONS)? else { return Ok(()) };
    let mode = flags.text("mode").unwrap_or("all").to_owned();
    println!("{}", proc::machine());
    let is_asked = |name| mode == name || mode == "all";
    if is_asked("instructions") {
        print_instructions()?;
    }
    if is_asked("path") {
        print_path()?;
    }
    if is_asked("cpu") {
        print_cpu(&flags)?;
    }
    Ok(())
}

fn print_instructions() -> io::Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed");
        return Ok(());
    }
    let mut rows = Vec::new();
    for (index, (name, traffic)) in TRAFFIC.iter().enumerate() {
        let (off, on) = (count(index, 0)?, count(index, 1)?);
        let more = (on / off - 1.0) * 100.0;
        let verdict = match traffic {
            Traffic::Uniform if more <= INSTRUCTIONS_TARGET => "2 % met",
            Traffic::Uniform => "2 % missed",
            _ => "",
        };
        rows.push(vec![
            (*name).to_owned(),
            format!("{off:.0}"),
            format!("{on:.0}"),
            format!("{more:+.1} %"),
            verdict.to_owned(),
        ]);
    }
    println!("\ninstructions per GET, pipeline {BATCH}");
    print_table(&["traffic", "off", "on", "more", "target"], &rows);
    Ok(())
}

/// The instructions per request of a child.
fn count(traffic: usize, l1: u64) -> io::Result<f64> {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*counted_step*")
        .arg(std::env::current_exe()?)
        .args(["--part", &traffic.to_string(), &l1.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected"));
    let count = line.and_then(|line| line.rsplit(':').next()?.trim().parse::<u64>().ok());
    let count = count.map(|count| count as f64 / (COUNTED * BATCH) as f64);
    count.ok_or_else(|| io::Error::other(format!("callgrind gave no count: {text}")))
}

/// A server of so many workers in this process, with all keys.
struct Inside {
    server: larder::server::Server,
    dir: std::path::PathBuf,
}

impl Inside {
    fn new(workers: usize) -> Self {
        let dir = std::env::temp_dir().join(format!("larder-l1-{}", std::process::id()));
        let (path, workers) = (dir.to_str().expect("a plain path"), workers.to_string());
        let flags = ["larder", "--port", "0", "--memory", "256mb", "--dir", path];
        let config = Config::from_args(flags.into_iter().chain(["--workers", &workers]));
        let config = config.unwrap_or_else(|_| panic!("a valid configuration"));
        let server = larder::server::Server::start(&config).expect("the server starts");
        let inside = Self { server, dir };
        let (mut path, mut session) = (HotPath::default(), inside.session(0, false));
        for number in 0..KEYS {
            let set = format!(
                "*3\r\n$3\r\nSET\r\n$16\r\nkey:{number:012}\r\n$128\r\n{}\r\n",
                "v".repeat(128)
            );
            path.step(&mut session, &mut set.into_bytes(), true);
        }
        inside
    }

    /// A connection to a worker, with or without a cache of its own.
    fn session(&self, worker: usize, l1: bool) -> Session {
        let shared = self.server.shared();
        let now = shared.cache.clock().now();
        let client = Client::new(0, "bench".into(), "bench".into(), false, 0, now);
        let stats = shared.workers[worker].clone();
        let mut session = Session::new(shared.clone(), Arc::new(client), stats);
        session.now = now;
        let local = l1.then(|| shared.cache.local(shared.local_limit()));
        session.local = local.map(|local| Rc::new(RefCell::new(local)));
        session
    }

    /// Ends the process: the server's threads need no drain.
    fn exit(self) -> ! {
        let _ = std::fs::remove_dir_all(self.dir);
        std::process::exit(0);
    }
}

/// The next so many keys as a buffer of GETs.
fn gets(keys: &mut impl Iterator<Item = u64>, count: usize) -> Vec<u8> {
    let get = |number| format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{number:012}\r\n").into_bytes();
    keys.take(count).flat_map(get).collect()
}

fn run_part(traffic: usize, l1: bool) -> ! {
    let inside = Inside::new(1);
    let (mut path, mut session) = (HotPath::default(), inside.session(0, l1));
    let mut keys = TRAFFIC[traffic].1.keys();
    for _ in 0..WARM {
        path.step(&mut session, &mut gets(&mut keys, BATCH), true);
    }
    for _ in 0..COUNTED {
        counted_step(&mut path, &mut session, &mut gets(&mut keys, BATCH));
    }
    inside.exit()
}

/// What callgrind counts: it finds this by its name, and so leaves out what fills the server.
#[inline(never)]
fn counted_step(path: &mut HotPath, session: &mut Session, requests: &mut [u8]) {
    path.step(session, requests, true);
}

fn print_path() -> io::Result<()> {
    let mut rows = Vec::new();
    for (index, (name, _)) in TRAFFIC.iter().enumerate() {
        let out =
            Command::new(std::env::current_exe()?).args(["--path", &index.to_string()]).output()?;
        if !out.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&out.stderr)));
        }
        let cells = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        rows.push([name, &cells[..]].join("\t").split('\t').map(str::to_owned).collect());
    }
    println!("\nnanoseconds per GET without sockets, two threads, batches of {PATH_BATCH}");
    print_table(&["traffic", "off", "on", "on / off", "off / off"], &rows);
    Ok(())
}

/// Times what a connection does with buffers, on two threads that turn L1 on and off together.
fn run_path(traffic: usize) -> ! {
    let inside = Inside::new(2);
    let mut keys = TRAFFIC[traffic].1.keys();
    let batches: Vec<_> = (0..STREAM / PATH_BATCH).map(|_| gets(&mut keys, PATH_BATCH)).collect();
    let barrier = Barrier::new(2);
    let rows: Vec<[f64; 3]> = thread::scope(|scope| {
        let threads = [0, 1].map(|worker| {
            let (inside, batches, barrier) = (&inside, &batches, &barrier);
            scope.spawn(move || time_path(inside, batches, barrier, worker))
        });
        threads.into_iter().flat_map(|thread| thread.join().expect("it ends well")).collect()
    });
    let of = |at: usize| -> Vec<f64> { rows.iter().map(|row| row[at]).collect() };
    let (on, off, twin) = (of(0), of(1), of(2));
    let (ratio, same) = (Summary::of_ratios(&on, &off), Summary::of_ratios(&twin, &off));
    let [off, on] = [off, on].map(Summary::of);
    println!("{off:.0}\t{on:.0}\t{ratio:.3}\t{same:.3}");
    inside.exit()
}

/// Nanoseconds per GET with L1, without it, and without it again, of many turns.
fn time_path(
    inside: &Inside,
    batches: &[Vec<u8>],
    barrier: &Barrier,
    worker: usize,
) -> Vec<[f64; 3]> {
    let mut path = HotPath::default();
    let mut sessions = [true, false, false].map(|l1| inside.session(worker, l1));
    // Each asks for the same keys, and the threads for different ones at a time.
    let mut starts = [worker * batches.len() / 2; 3];
    let mut buf = Vec::new();
    let mut rows = Vec::new();
    for round in 0..PATH_ROUNDS {
        let mut row = [0.0; 3];
        for turn in 0..3 {
            let at = (round + turn) % 3;
            barrier.wait();
            for step in 0..PATH_TURN {
                buf.clear();
                buf.extend_from_slice(&batches[(starts[at] + step) % batches.len()]);
                let before = thread_nanos();
                path.step(&mut sessions[at], &mut buf, true);
                if step >= PATH_TURN / 4 {
                    row[at] += thread_nanos() - before;
                }
            }
            starts[at] += PATH_TURN;
            row[at] /= (PATH_TURN * 3 / 4 * PATH_BATCH) as f64;
        }
        rows.push(row);
    }
    rows.split_off(PATH_ROUNDS / 4)
}

fn thread_nanos() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn print_cpu(flags: &Flags) -> io::Result<()> {
    let rounds: usize = flags.get("rounds", 20)?;
    let pipeline: usize = flags.get("pipeline", 16)?;
    let setup =
        |flags| Setup { cores: &[0, 1], memory_mib: 1024, workers: 2, flags, ..Setup::default() };
    let mut load = Load::asked(flags, pipeline)?;
    load.duration = Duration::from_secs_f64(flags.get("seconds", 1.0)?) / TURNS as u32;
    load.warm_up = WARM_UP;
    let mut rows = Vec::new();
    for (name, traffic) in TRAFFIC {
        let stream = Stream::of_gets(Dialect::Resp, traffic.keys().take(STREAM));
        let mut found = [const { Vec::new() }; 3];
        for round in 0..rounds {
            eprintln!("{name}: round {} of {rounds}", round + 1);
            let mut servers = Vec::new();
            for flags in [&["--l1", "64mb"][..], &["--l1", "0"], &["--l1", "0"]] {
                let Some(server) = Server::start("larder", &setup(flags))? else { return Ok(()) };
                server.load_keys(KEYS)?;
                servers.push(server);
            }
            let mut turns = [const { Vec::new() }; 3];
            for turn in 0..3 * TURNS {
                // There and back, so that what changes steadily meets all alike.
                let place = if turn / 3 % 2 == 0 { turn % 3 } else { 2 - turn % 3 };
                let at = (round + place) % 3;
                let server = &servers[at];
                let drives = [0, 1].map(|core| Drive { server, stream: &stream, core });
                turns[at].push(measure(&drives, &load)?.cpu_per_million());
            }
            for (found, turns) in found.iter_mut().zip(turns) {
                found.push(Summary::of(turns).median);
            }
        }
        let ratio = Summary::of_ratios(&found[0], &found[1]);
        let twin = Summary::of_ratios(&found[2], &found[1]);
        let most = match traffic {
            Traffic::Hot | Traffic::Zipf(1.2) => 1.0,
            _ => CPU_TARGET,
        };
        let verdict = if ratio.median <= most { "met" } else { "missed" };
        rows.push(vec![
            name.to_owned(),
            format!("{:.3}", Summary::of(found[1].iter().copied())),
            format!("{:.3}", Summary::of(found[0].iter().copied())),
            format!("{ratio:.3}"),
            format!("{twin:.3}"),
            format!("{most:.2} {verdict}"),
        ]);
    }
    println!("\nCPU seconds per million GETs, two workers, pipeline {pipeline}, {rounds} pairs");
    print_table(&["traffic", "off", "on", "on / off", "off / off", "target"], &rows);
    Ok(())
}
