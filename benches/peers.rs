//! Larder beside its peers: `cargo bench --bench peers [-- OPTIONS]`, `-- --help` names the options.
//!
//! Each server has core 0 for itself, the generator core 1. The load: keys of 16 bytes, values of
//! 128, nine GETs to one SET, keys by Zipf's law (0.99), 50 connections. A round starts and loads
//! every server anew and measures it at every pipeline, in an order that turns from round to round,
//! and only what was measured in the same round is compared: a machine's mood passes over all alike.
//! (Anew, because the pages that a process happens to get are worth up to 20 % at pipeline 64: of two
//! redis-servers kept for all rounds, one was always the faster.)
//!
//! The figure that counts is CPU per operation: throughput of a closed loop says as much about the
//! generator as about the server. `floor` gets GETs only. Whether a difference means anything, the
//! self-check tells: the same server twice should give a ratio of 1.
//!
//! `--mode scaling` asks what a second worker and more keys cost (see [`scaling`]).

mod common;

use std::{io, path::Path, process::ExitCode};

use common::{
    flags::{Flags, bad},
    launch::{pin, report, run_as_child},
    load::{Drive, Load, MAX_PIPELINE, Sample, measure},
    proc,
    report::{Record, Summary, print_table, write_json},
    scaling,
    server::{Kind, Server, Setup, first_of},
    wire::Stream,
};

const OPTIONS: &[(&str, &str)] = &[
    ("mode", "peers (default) or scaling"),
    (
        "servers",
        "the first is compared to all others: larder,larder2,redis,memcached,floor; unwatched is a \
         larder that times and samples nothing",
    ),
    ("rounds", "how often everything is measured [7]"),
    ("seconds", "how long each time [2]"),
    ("pipelines", "requests per batch [1,16,64]"),
    ("connections", "of each generator [50]"),
    ("keys", "how many [1000000]; with --mode scaling a list [100000,1000000,10000000]"),
    ("json", "a file for the results as well"),
];

/// Requests encoded per dialect: far more than any cache of the CPU holds the keys of.
const STREAM: usize = 1 << 20;

/// CPU per operation that is aimed at: of `larder` to a peer at a pipeline, at most so much.
const TARGETS: &[(&str, usize, f64)] = &[
    ("redis", 1, 0.85),
    ("redis", 16, 0.42),
    ("redis", 64, 0.30),
    ("memcached", 1, 1.0),
    ("memcached", 16, 1.0),
    ("memcached", 64, 1.0),
    ("floor", 1, 1.15),
    ("unwatched", 1, 1.03),
    ("unwatched", 16, 1.03),
    ("unwatched", 64, 1.03),
];

fn main() -> ExitCode {
    run_as_child().unwrap_or_else(|| report(run()))
}

fn run() -> io::Result<()> {
    let Some(flags) = Flags::read(OPTIONS)? else { return Ok(()) };
    pin(&[1])?;
    println!("{}", proc::machine());
    match flags.text("mode").unwrap_or("peers") {
        "peers" => compare(&flags),
        "scaling" => scaling::run(&flags),
        other => Err(bad(&format!("no mode {other:?}"))),
    }
}

/// A server's name, and what all rounds found, by pipeline.
struct Entrant {
    name: String,
    kind: Kind,
    samples: Vec<Vec<Sample>>,
}

fn compare(flags: &Flags) -> io::Result<()> {
    let pipelines: Vec<usize> = flags.list("pipelines", "1,16,64")?;
    if pipelines.iter().any(|depth| !(1..=MAX_PIPELINE).contains(depth)) {
        return Err(bad(&format!("pipelines go from 1 to {MAX_PIPELINE}")));
    }
    let names: Vec<String> = flags.list("servers", "larder,larder2,redis,memcached,floor")?;
    let mut entrants = enter(&names, pipelines.len())?;
    run_rounds(flags, &mut entrants, &pipelines)?;
    let mut records = Vec::new();
    for (at, depth) in pipelines.iter().enumerate() {
        println!("\npipeline {depth} (latency is a batch's; medians over the rounds)");
        print_servers(&entrants, at);
        print_ratios(&entrants, at, *depth);
        records.extend(entrants.iter().map(|entrant| entrant.record(at, *depth, &entrants[0])));
    }
    flags.text("json").map_or(Ok(()), |path| write_json(Path::new(path), &records))
}

/// The servers that are installed.
fn enter(names: &[String], pipelines: usize) -> io::Result<Vec<Entrant>> {
    let mut entrants = Vec::new();
    for name in names {
        let kind = Kind::of(name).ok_or_else(|| bad(&format!("no server {name:?}")))?;
        if kind.installed() {
            let samples = (0..pipelines).map(|_| Vec::new()).collect();
            entrants.push(Entrant { name: name.clone(), kind, samples });
        }
    }
    if entrants.is_empty() { Err(io::Error::other("no server to measure")) } else { Ok(entrants) }
}

fn run_rounds(flags: &Flags, entrants: &mut [Entrant], pipelines: &[usize]) -> io::Result<()> {
    let rounds = flags.get("rounds", 7usize)?.max(1);
    let keys = flags.get("keys", 1_000_000u64)?.max(1);
    let streams = Streams::new(entrants, keys);
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let servers = start(entrants, keys, round)?;
        for (at, &pipeline) in pipelines.iter().enumerate() {
            let load = Load::asked(flags, pipeline)?;
            for (index, server) in &servers {
                let drive = Drive { server, stream: streams.of(server.kind()), core: 1 };
                entrants[*index].samples[at].push(measure(&[drive], &load)?);
            }
        }
    }
    Ok(())
}

/// Starts and loads the servers of a round, in the round's order.
fn start(entrants: &[Entrant], keys: u64, round: usize) -> io::Result<Vec<(usize, Server)>> {
    let mut servers = Vec::new();
    for index in order(entrants.len(), round) {
        let setup = Setup { memory_mib: 2048, ..Setup::default() };
        let Some(server) = Server::start(&entrants[index].name, &setup)? else { continue };
        server.load_keys(keys)?;
        servers.push((index, server));
    }
    Ok(servers)
}

/// Every server comes first in its turn, and odd rounds go backwards, so that none follows the same
/// neighbour always.
fn order(servers: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..servers).map(|turn| (round + turn) % servers).collect();
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// One stream of requests for each dialect that is spoken.
struct Streams(Vec<(Kind, Stream)>);

impl Streams {
    fn new(entrants: &[Entrant], keys: u64) -> Self {
        let mut streams: Vec<(Kind, Stream)> = Vec::new();
        for kind in entrants.iter().map(|entrant| entrant.kind) {
            let spoken = streams.iter().any(|(known, _)| known.dialect() == kind.dialect());
            if !spoken {
                streams.push((kind, Stream::new(kind.dialect(), keys, STREAM)));
            }
        }
        Self(streams)
    }

    fn of(&self, kind: Kind) -> &Stream {
        let same = |(known, _): &&(Kind, Stream)| known.dialect() == kind.dialect();
        &self.0.iter().find(same).expect("every kind has its stream").1
    }
}

impl Entrant {
    fn each(&self, at: usize, figure: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.samples[at].iter().map(figure).collect()
    }

    fn median(&self, at: usize, figure: impl Fn(&Sample) -> f64) -> f64 {
        Summary::of(self.each(at, figure)).median
    }

    fn cpu(&self, at: usize) -> Vec<f64> {
        self.each(at, Sample::cpu_per_million)
    }

    fn row(&self, at: usize) -> Vec<String> {
        let micros = |q: f64| format!("{:.0}", self.median(at, |s| s.latency.quantile(q)));
        let max = self.each(at, |sample| sample.latency.max()).into_iter().fold(0.0, f64::max);
        vec![
            self.name.clone(),
            format!("{:.0}", self.median(at, Sample::throughput) / 1e3),
            micros(0.5),
            micros(0.99),
            micros(0.999),
            format!("{max:.0}"),
            format!("{:.3}", Summary::of(self.cpu(at))),
            format!("{:.0} %", self.median(at, |sample| sample.cpu.system_share()) * 100.0),
            format!("{:.0} %", self.median(at, Sample::busy) * 100.0),
        ]
    }

    fn record(&self, at: usize, pipeline: usize, subject: &Self) -> Record {
        Record::default()
            .text("server", &self.name)
            .number("pipeline", pipeline as f64)
            .number("operations_per_second", self.median(at, Sample::throughput))
            .number("p50_us", self.median(at, |sample| sample.latency.quantile(0.5)))
            .number("p99_us", self.median(at, |sample| sample.latency.quantile(0.99)))
            .number("p999_us", self.median(at, |sample| sample.latency.quantile(0.999)))
            .summary("cpu_seconds_per_million", Summary::of(self.cpu(at)))
            .summary("subject_cpu_ratio", Summary::of_ratios(&subject.cpu(at), &self.cpu(at)))
    }
}

fn print_servers(entrants: &[Entrant], at: usize) {
    let heads = [
        "server",
        "kops/s",
        "p50 us",
        "p99",
        "p99.9",
        "max",
        "CPU s/million [quartiles]",
        "kernel",
        "busy",
    ];
    let rows: Vec<_> = entrants.iter().map(|entrant| entrant.row(at)).collect();
    print_table(&heads, &rows);
}

/// The first server's CPU per operation to that of each other, round by round.
fn print_ratios(entrants: &[Entrant], at: usize, pipeline: usize) {
    let Some((subject, others)) = entrants.split_first() else { return };
    if others.is_empty() {
        return;
    }
    let ratio = |other: &Entrant| Summary::of_ratios(&subject.cpu(at), &other.cpu(at));
    let is_twin = |other: &Entrant| first_of(&other.name) == first_of(&subject.name);
    let twin = others.iter().find(|other| is_twin(other));
    let noise = twin.map(|twin| (ratio(twin).median - 1.0).abs());
    let rows: Vec<_> = others
        .iter()
        .map(|other| {
            let (ratio, name) = (ratio(other), other.name.as_str());
            let verdict = if is_twin(other) {
                "self-check".to_owned()
            } else {
                verdict(target(subject, name, pipeline), ratio.median, noise)
            };
            vec![format!("{} / {name}", subject.name), format!("{ratio:.3}"), verdict]
        })
        .collect();
    println!();
    print_table(&["CPU per operation", "ratio [quartiles]", "target"], &rows);
}

fn target(subject: &Entrant, peer: &str, pipeline: usize) -> Option<f64> {
    let same = |(name, depth, _): &&(&str, usize, f64)| *name == peer && *depth == pipeline;
    let target = TARGETS.iter().find(same).map(|(_, _, ratio)| *ratio);
    target.filter(|_| subject.kind == Kind::Larder)
}

/// Whether a target is met. The self-check must be nearer to 1 than half of the ratio's distance to
/// the target, or the verdict is only noise.
fn verdict(target: Option<f64>, ratio: f64, noise: Option<f64>) -> String {
    let Some(target) = target else { return String::new() };
    let word = if ratio <= target { "met" } else { "missed" };
    let margin = (ratio / target - 1.0).abs();
    match noise {
        Some(noise) if noise > margin / 2.0 => {
            format!("{target:.2} {word}, unsure: self-check off by {:.1} %", noise * 100.0)
        }
        _ => format!("{target:.2} {word}"),
    }
}
