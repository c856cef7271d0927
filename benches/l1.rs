//! What the workers' own caches (L1) bring and cost: `cargo bench --bench l1 [-- OPTIONS]`.
//!
//! Four kinds of traffic, GETs only: one hot key, keys by Zipf's law (1.2 and 0.99), and uniform ones. Each
//! is measured with L1 on and off. Instructions per request, of what a connection does with a buffer, are
//! counted by callgrind and steady; CPU time per request is that of a server with a worker on each core
//! under the load of a generator on each, in interleaved pairs, beside the same server twice.

mod common;

use std::{io, process::Command, process::ExitCode, sync::Arc};

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

const OPTIONS: &[(&str, &str)] = &[
    ("mode", "all (default), instructions or cpu"),
    ("rounds", "pairs [20]"),
    ("seconds", "how long each time [1]"),
    ("connections", "of each generator [50]"),
    ("pipeline", "requests per batch [16]"),
];

const KEYS: u64 = 100_000;
const STREAM: usize = 1 << 19;
const BATCH: usize = 64;
/// Batches before and after which instructions are counted.
const WARM: u64 = 3_000;
const COUNTED: u64 = 3_000;
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
    if let [_, flag, traffic, l1, loops] = &args[..]
        && flag == "--part"
    {
        let number = |text: &String| text.parse().expect("a number");
        run_part(number(traffic) as usize, number(l1) == 1, number(loops));
    }
    run_as_child().unwrap_or_else(|| report(run()))
}

fn run() -> io::Result<()> {
    let Some(flags) = Flags::read(OPTIONS)? else { return Ok(()) };
    let mode = flags.text("mode").unwrap_or("all").to_owned();
    println!("{}", proc::machine());
    if mode != "cpu" {
        print_instructions()?;
    }
    if mode != "instructions" {
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
        let per_request = |l1| {
            let (long, short) = (count(index, l1, COUNTED)?, count(index, l1, 0)?);
            Ok::<_, io::Error>((long - short) as f64 / (COUNTED * BATCH as u64) as f64)
        };
        let (off, on) = (per_request(0)?, per_request(1)?);
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

/// The instructions of a child that runs so many batches.
fn count(traffic: usize, l1: u64, loops: u64) -> io::Result<u64> {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*HotPath*step*")
        .arg(std::env::current_exe()?)
        .args(["--part", &traffic.to_string(), &l1.to_string(), &loops.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected"));
    let count = line.and_then(|line| line.rsplit(':').next()?.trim().parse().ok());
    count.ok_or_else(|| io::Error::other(format!("callgrind gave no count: {text}")))
}

fn run_part(traffic: usize, l1: bool, loops: u64) -> ! {
    let dir = std::env::temp_dir().join(format!("larder-l1-{}", std::process::id()));
    let path = dir.to_str().expect("a plain path");
    let flags = ["larder", "--port", "0", "--workers", "1", "--memory", "256mb", "--dir", path];
    let config = Config::from_args(flags).unwrap_or_else(|_| panic!("a valid configuration"));
    let server = larder::server::Server::start(&config).expect("the server starts");
    let shared = server.shared().clone();
    let now = shared.cache.clock().now();
    let client = Client::new(0, "bench".into(), "bench".into(), false, 0, now);
    let stats = shared.workers[0].clone();
    let mut session = Session::new(shared.clone(), Arc::new(client), stats);
    session.now = now;
    let mut path = HotPath::default();
    for number in 0..KEYS {
        let set = format!(
            "*3\r\n$3\r\nSET\r\n$16\r\nkey:{number:012}\r\n$128\r\n{}\r\n",
            "v".repeat(128)
        );
        path.step(&mut session, &mut set.into_bytes(), true);
    }
    if l1 {
        let local = shared.cache.local(shared.local_limit());
        session.local = Some(std::rc::Rc::new(std::cell::RefCell::new(local)));
    }
    let mut keys = TRAFFIC[traffic].1.keys();
    let mut batch = || -> Vec<u8> {
        let get = |number| format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{number:012}\r\n").into_bytes();
        keys.by_ref().take(BATCH).flat_map(get).collect()
    };
    for _ in 0..WARM {
        path.step(&mut session, &mut batch(), true);
    }
    for _ in 0..loops {
        path.step(&mut session, &mut batch(), true);
    }
    let _ = std::fs::remove_dir_all(dir);
    // The server's threads need no drain.
    std::process::exit(0);
}

fn print_cpu(flags: &Flags) -> io::Result<()> {
    let rounds: usize = flags.get("rounds", 20)?;
    let pipeline: usize = flags.get("pipeline", 16)?;
    let setup =
        |flags| Setup { cores: &[0, 1], memory_mib: 1024, workers: 2, flags, ..Setup::default() };
    let mut load = Load::asked(flags, pipeline)?;
    load.duration = std::time::Duration::from_secs_f64(flags.get("seconds", 1.0)?);
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
            for turn in 0..3 {
                let at = (round + turn) % 3;
                let server = &servers[at];
                let drives = [0, 1].map(|core| Drive { server, stream: &stream, core });
                found[at].push(measure(&drives, &load)?.cpu_per_million());
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
