//! What a second worker and a larger data set cost Larder, in CPU per operation at pipeline 1.
//!
//! **Workers.** A request whose generator runs on the worker's own core costs far less than one that
//! crosses cores, so the mix must be the same in all arrangements: two generators of 50 connections,
//! one on each core, of which half are served on their own core. *One worker*: the server on core 0.
//! *Two workers*: on both cores; connections go to the workers in turn. *Two servers* of one worker,
//! each with both generators at half their load, share nothing of ours: what they cost above one
//! worker is the machine's part (caches, kernel), and no fault of Larder's.
//!
//! **Keys.** One worker on core 0, the generator on core 1, and a server for each number of keys.

use std::io;

use super::{
    flags::Flags,
    load::{Drive, Load, measure},
    report::{Summary, print_table},
    server::{Server, Setup},
    wire::{Dialect, Stream},
};

/// At most so much more CPU per operation with two workers than with one.
const WORKERS_TARGET: f64 = 1.15;
/// At most so much more with the most keys than with the fewest.
const KEYS_TARGET: f64 = 1.30;
/// Keys of the servers whose workers are compared.
const KEYS: u64 = 1_000_000;
/// Requests encoded.
const STREAM: usize = 1 << 20;

/// Runs both comparisons and prints them.
pub fn run(flags: &Flags) -> io::Result<()> {
    compare_workers(flags)?;
    compare_keys(flags)
}

/// One arrangement: its name, its generators, and the connections of each.
struct Case<'a> {
    name: String,
    drives: Vec<Drive<'a>>,
    connections: usize,
}

fn compare_workers(flags: &Flags) -> io::Result<()> {
    let start = |cores, workers| {
        loaded(&Setup { cores, memory_mib: 2048, workers, ..Setup::default() }, KEYS)
    };
    let Some(one) = start(&[0], 1)? else { return Ok(()) };
    let Some(two) = start(&[0, 1], 2)? else { return Ok(()) };
    let Some(other) = start(&[1], 1)? else { return Ok(()) };
    let stream = &Stream::new(Dialect::Resp, KEYS, STREAM);
    let on_each = |server| [0, 1].map(|core| Drive { server, stream, core }).to_vec();
    let connections = flags.get("connections", 50usize)?.max(2);
    let cases = [
        Case { name: "one worker".to_owned(), drives: on_each(&one), connections },
        Case { name: "two workers".to_owned(), drives: on_each(&two), connections },
        Case {
            name: "two servers".to_owned(),
            drives: [on_each(&one), on_each(&other)].concat(),
            connections: connections / 2,
        },
    ];
    println!("\nworkers, a generator on each core (target {WORKERS_TARGET:.2})");
    print(&cases, &run_rounds(flags, &cases)?);
    Ok(())
}

fn compare_keys(flags: &Flags) -> io::Result<()> {
    let mut counts: Vec<u64> = flags.list("keys", "100000,1000000,10000000")?;
    counts.retain(|&keys| keys > 0);
    let setup = Setup { cores: &[0], memory_mib: 4096, ..Setup::default() };
    let mut servers = Vec::new();
    for &keys in &counts {
        let Some(server) = loaded(&setup, keys)? else { return Ok(()) };
        servers.push((keys, server, Stream::new(Dialect::Resp, keys, STREAM)));
    }
    let connections = flags.get("connections", 50usize)?;
    let cases: Vec<_> = servers
        .iter()
        .map(|(keys, server, stream)| Case {
            name: format!("{keys} keys"),
            drives: vec![Drive { server, stream, core: 1 }],
            connections,
        })
        .collect();
    println!("\nkeys, one worker, the generator on the other core (target {KEYS_TARGET:.2})");
    print(&cases, &run_rounds(flags, &cases)?);
    Ok(())
}

/// A server with its keys.
fn loaded(setup: &Setup<'_>, keys: u64) -> io::Result<Option<Server>> {
    let server = Server::start("larder", setup)?;
    server.as_ref().map_or(Ok(()), |server| server.load_keys(keys))?;
    Ok(server)
}

/// CPU per operation of each case, round by round.
fn run_rounds(flags: &Flags, cases: &[Case<'_>]) -> io::Result<Vec<Vec<f64>>> {
    let rounds: usize = flags.get("rounds", 7)?;
    let mut found = vec![Vec::new(); cases.len()];
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for turn in 0..cases.len() {
            let case = (round + turn) % cases.len();
            let load = Load { connections: cases[case].connections, ..Load::asked(flags, 1)? };
            found[case].push(measure(&cases[case].drives, &load)?.cpu_per_million());
        }
    }
    Ok(found)
}

fn print(cases: &[Case<'_>], found: &[Vec<f64>]) {
    let rows: Vec<_> = cases
        .iter()
        .zip(found)
        .map(|(case, cpu)| {
            let ratio = Summary::of_ratios(cpu, &found[0]);
            let cpu = Summary::of(cpu.iter().copied());
            vec![case.name.clone(), format!("{cpu:.3}"), format!("{ratio:.3}")]
        })
        .collect();
    print_table(&["", "CPU s/million [quartiles]", "ratio to the first"], &rows);
}
