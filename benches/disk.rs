//! L3 beside memcached's extstore and beside the disk itself: `cargo bench --bench disk [-- OPTIONS]`.
//!
//! 1 GiB of values over little memory, uniform GETs from 50 connections, so that nearly all of them
//! read the disk. Both servers have two threads, both cores and a file on the same disk; a round
//! measures them one after the other in turns, then the disk alone with `fio` (4 KiB random reads, direct, 32
//! under way). Only GETs that answered with their value count; how many of all keys are there is
//! asked first.
//!
//! The page cache is out of the way: Larder reads with direct I/O; extstore can't, so once it is loaded
//! its file leaves the cache, and it goes into a memory cgroup (version 1, which needs root) that leaves
//! it hardly any. Without one it is left out.

mod common;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise};

use common::{
    flags::Flags,
    launch::{report, run_as_child},
    load::{Drive, Load, Sample, measure},
    proc,
    report::{Summary, print_table},
    server::{Server, Setup, in_path},
    wire::{Dialect, Stream},
    zipf::Rng,
};

const OPTIONS: &[(&str, &str)] = &[
    ("rounds", "how often everything is measured [7]"),
    ("seconds", "how long each time [2]"),
    ("values", "bytes of a value, a list [1024,4096]"),
    ("pipelines", "requests per batch [1,16]"),
    ("connections", "of the generator [50]"),
    ("memory", "MiB of both [64, or 256 if extstore can't load its keys with that]"),
    ("threads", "extstore's own threads that read [8]"),
    ("load", "MiB of values a second that are loaded [32]"),
    ("mib", "of values [1024]"),
    ("servers", "the first is compared to all others [larder,larder2,memcached]"),
];

/// So much of what was loaded has to be there.
const THERE: f64 = 0.95;
/// At least so many times extstore's GETs a second.
const SPEED_TARGET: f64 = 1.5;
/// At least so much of the disk's own rate at the longest pipeline.
const DISK_TARGET: f64 = 0.6;
/// Requests encoded.
const STREAM: usize = 1 << 20;
/// What extstore's cgroup leaves for the page cache, and what it allocates from then on.
const CACHE_BYTES: u64 = 32 << 20;

fn main() -> ExitCode {
    run_as_child().unwrap_or_else(|| report(run()))
}

fn run() -> io::Result<()> {
    let Some(flags) = Flags::read(OPTIONS)? else { return Ok(()) };
    println!("{}", proc::machine());
    let values: Vec<usize> = flags.list("values", "1024,4096")?;
    for value_len in values {
        let given = flags.text("memory").map(|_| flags.get("memory", 64u32)).transpose()?;
        let sizes = given.map_or(vec![64, 256], |size| vec![size]);
        for (at, memory_mib) in sizes.iter().enumerate() {
            let is_last = at + 1 == sizes.len();
            if compare(&flags, value_len, *memory_mib, is_last)? {
                break;
            }
        }
    }
    Ok(())
}

/// A server under test and what was measured of it, by pipeline.
struct Entrant {
    server: Server,
    there: f64,
    samples: Vec<Vec<Sample>>,
    _group: Option<Group>,
}

/// Compares the servers with values of one length; false if one couldn't load its keys.
fn compare(flags: &Flags, value_len: usize, memory_mib: u32, is_last: bool) -> io::Result<bool> {
    let keys = (flags.get("mib", 1024u64)? << 20) / value_len as u64;
    let pipelines: Vec<usize> = flags.list("pipelines", "1,16")?;
    println!("\n{keys} values of {value_len} bytes, {memory_mib} MiB of memory");
    let names: Vec<String> = flags.list("servers", "larder,larder2,memcached")?;
    let mut entrants = Vec::new();
    for name in &names {
        let Some((server, group)) = start(flags, name, value_len, memory_mib)? else { continue };
        load_slowly(&server, keys, flags.get("load", 32u64)? << 20)?;
        settle(&server)?;
        if let Some(group) = &group {
            group.enclose(&server)?;
        }
        let dialect = server.kind().dialect();
        let all = Stream::of_lossy_gets(dialect, value_len, 0..keys);
        let there = server.count_hits(&all)? as f64 / keys as f64;
        println!("{name}: {:.1} % of the keys are there", there * 100.0);
        if there < THERE && !is_last {
            return Ok(false);
        }
        let samples = pipelines.iter().map(|_| Vec::new()).collect();
        entrants.push(Entrant { server, there, samples, _group: group });
    }
    let mut rng = Rng::new(42);
    let chosen: Vec<u64> = (0..STREAM).map(|_| rng.below(keys)).collect();
    let stream = |dialect| Stream::of_lossy_gets(dialect, value_len, chosen.iter().copied());
    let (resp, text) = (stream(Dialect::Resp), stream(Dialect::Memcached));
    let (mut disk, dir) = (Vec::new(), tempfile::tempdir()?);
    let seconds = flags.get("seconds", 2.0f64)?;
    let rounds = flags.get("rounds", 7usize)?.max(1);
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (at, pipeline) in pipelines.iter().enumerate() {
            for turn in 0..entrants.len() {
                let entrant = (round + turn) % entrants.len();
                let entrant = &mut entrants[entrant];
                let server = &entrant.server;
                let is_resp = server.kind().dialect() == Dialect::Resp;
                let stream = if is_resp { &resp } else { &text };
                let drive = Drive { server, stream, core: round % 2 };
                let load = Load::asked(flags, *pipeline)?;
                entrant.samples[at].push(measure(&[drive], &load)?);
            }
        }
        disk.extend(fio(dir.path(), seconds)?);
    }
    print(&entrants, &pipelines, &disk);
    Ok(true)
}

/// A server, in a cgroup if it would use the page cache.
fn start(
    flags: &Flags,
    name: &str,
    value_len: usize,
    memory_mib: u32,
) -> io::Result<Option<(Server, Option<Group>)>> {
    let setup = Setup { cores: &[0, 1], memory_mib, workers: 2, value_len, ..Setup::default() };
    // Twice the bytes of the values: neither has to clean up.
    let mib = flags.get("mib", 1024u64)? * 2;
    if !name.starts_with("memcached") {
        let flags = ["--disk-size", &format!("{mib}mb")];
        let server = Server::start(name, &Setup { flags: &flags, ..setup })?;
        return Ok(server.map(|server| (server, None)));
    }
    let group = match Group::new() {
        Ok(group) => group,
        Err(why) => {
            println!("{name} is left out: no memory cgroup can be made ({why})");
            return Ok(None);
        }
    };
    let threads: usize = flags.get("threads", 8)?;
    let file = group.file();
    let options =
        format!("ext_path={}:{mib}M,ext_threads={threads},ext_item_age=1", file.display());
    let flags = ["-o", &options];
    let server = Server::start(name, &Setup { flags: &flags, ..setup })?;
    Ok(server.map(|server| (server, Some(group))))
}

/// A memory cgroup, and a directory for the file of the server that it is for.
struct Group {
    group: PathBuf,
    dir: tempfile::TempDir,
}

impl Group {
    fn new() -> io::Result<Self> {
        let group =
            Path::new("/sys/fs/cgroup/memory").join(format!("larder-{}", std::process::id()));
        fs::create_dir_all(&group)?;
        fs::write(group.join("memory.limit_in_bytes"), CACHE_BYTES.to_string())?;
        Ok(Self { group, dir: tempfile::tempdir()? })
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("extstore")
    }

    /// Takes the file out of the page cache and the server into the group. What it has allocated stays
    /// on the account of the group that it comes from.
    fn enclose(&self, server: &Server) -> io::Result<()> {
        let file = fs::File::open(self.file())?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        fs::write(self.group.join("cgroup.procs"), server.id().to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It stays if the server hasn't gone yet, and is made again for the next.
        let _ = fs::remove_dir(&self.group);
    }
}

/// Loads the keys with so many bytes of values a second: extstore forgets what it can't write in time.
fn load_slowly(server: &Server, keys: u64, rate: u64) -> io::Result<()> {
    let step = rate / 20 / server.value_len() as u64;
    let (start, mut loaded) = (Instant::now(), 0);
    while loaded < keys {
        let end = keys.min(loaded + step.max(1));
        server.load_range(loaded..end)?;
        loaded = end;
        let due =
            Duration::from_secs_f64((loaded * server.value_len() as u64) as f64 / rate as f64);
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(())
}

/// Waits until a server that was loaded is idle.
fn settle(server: &Server) -> io::Result<()> {
    for _ in 0..60 {
        let before = server.cpu()?.nanos;
        thread::sleep(Duration::from_millis(500));
        if server.cpu()?.nanos - before < 20_000_000 {
            break;
        }
    }
    Ok(())
}

/// The disk's own random reads a second; none without fio.
fn fio(dir: &Path, seconds: f64) -> io::Result<Option<f64>> {
    if in_path("fio").is_none() {
        return Ok(None);
    }
    let output = Command::new("fio")
        .args(["--name=larder", "--size=1g", "--rw=randread", "--bs=4k", "--direct=1"])
        .args(["--ioengine=libaio", "--iodepth=32", "--time_based"])
        .args(["--output-format=terse", "--terse-version=3"])
        .arg(format!("--runtime={}", seconds.ceil()))
        .arg(format!("--directory={}", dir.display()))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split(';').nth(7).and_then(|field| field.parse().ok()))
}

fn print(entrants: &[Entrant], pipelines: &[usize], disk: &[f64]) {
    let Some((subject, others)) = entrants.split_first() else { return };
    for (at, pipeline) in pipelines.iter().enumerate() {
        println!("\npipeline {pipeline}");
        let each = |entrant: &Entrant, figure: fn(&Sample) -> f64| {
            entrant.samples[at].iter().map(figure).collect::<Vec<f64>>()
        };
        let rate = |entrant: &Entrant| each(entrant, Sample::throughput);
        let cpu = |entrant: &Entrant| each(entrant, Sample::cpu_per_million);
        let mut rows: Vec<Vec<String>> = entrants
            .iter()
            .map(|entrant| {
                let hits = each(entrant, |sample| {
                    sample.operations as f64 / (sample.operations + sample.misses) as f64
                });
                vec![
                    entrant.server.name().to_owned(),
                    format!("{:.1} %", entrant.there * 100.0),
                    format!("{:.1} %", Summary::of(hits).median * 100.0),
                    format!("{:.0}", Summary::of(rate(entrant))),
                    format!("{:.2}", Summary::of(cpu(entrant))),
                    format!(
                        "{:.0}",
                        Summary::of(each(entrant, |s| s.latency.quantile(0.5))).median
                    ),
                    format!(
                        "{:.0}",
                        Summary::of(each(entrant, |s| s.latency.quantile(0.99))).median
                    ),
                ]
            })
            .collect();
        let own = Summary::of(disk.iter().copied());
        rows.push(vec!["fio".into(), String::new(), String::new(), format!("{own:.0}")]);
        print_table(&["", "there", "hits", "GET/s", "CPU us/GET", "p50 us", "p99 us"], &rows);
        println!();
        let mut rows: Vec<Vec<String>> = others
            .iter()
            .map(|other| {
                let speed = Summary::of_ratios(&rate(subject), &rate(other));
                let cost = Summary::of_ratios(&cpu(subject), &cpu(other));
                let is_twin = other.server.kind() == subject.server.kind();
                let verdict = match is_twin {
                    true => "self-check".to_owned(),
                    false => format!(
                        "{SPEED_TARGET} {}, CPU 1.0 {}",
                        met(speed.median >= SPEED_TARGET),
                        met(cost.median <= 1.0)
                    ),
                };
                let name = format!("{} / {}", subject.server.name(), other.server.name());
                vec![name, format!("{speed:.3}"), format!("{cost:.3}"), verdict]
            })
            .collect();
        if disk.len() == rate(subject).len() {
            let share = Summary::of_ratios(&rate(subject), disk);
            let verdict = format!("{DISK_TARGET} {}", met(share.median >= DISK_TARGET));
            let verdict = if at + 1 == pipelines.len() { verdict } else { String::new() };
            rows.push(vec!["larder / fio".into(), format!("{share:.3}"), String::new(), verdict]);
        }
        print_table(&["", "GET/s", "CPU per GET", "target"], &rows);
    }
}

fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}
