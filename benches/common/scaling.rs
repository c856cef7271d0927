//! What a second worker and a larger data set cost Larder, in CPU per operation at pipeline 1.
//!
//! **Workers.** On a machine of two cores the generator needs a share of them too, so each core gets
//! the same work in all arrangements: one worker's worth of server and one generator with its 50
//! connections. *One worker*: both on core 0. *Two workers*: the server on cores 0 and 1, a generator
//! on each. *Two servers* of one worker, each on a core with its generator, share nothing of ours:
//! what they cost above one worker is the machine's part (caches, kernel), and no fault of Larder's.
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

/// One arrangement: its name and its generators.
struct Case<'a> {
    name: String,
    drives: Vec<Drive<'a>>,
}

fn compare_workers(flags: &Flags) -> io::Result<()> {
    let start = |cores, workers| loaded(&Setup { cores, memory_gib: 2, workers }, KEYS);
    let Some(one) = start(&[0], 1)? else { return Ok(()) };
    let Some(two) = start(&[0, 1], 2)? else { return Ok(()) };
    let Some(other) = start(&[1], 1)? else { return Ok(()) };
    let stream = &Stream::new(Dialect::Resp, KEYS, STREAM);
    let drive = |server, core| Drive { server, stream, core };
    let cases = [
        Case { name: "one worker".to_owned(), drives: vec![drive(&one, 0)] },
        Case { name: "two workers".to_owned(), drives: vec![drive(&two, 0), drive(&two, 1)] },
        Case { name: "two servers".to_owned(), drives: vec![drive(&one, 0), drive(&other, 1)] },
    ];
    println!("\nworkers, each core with one worker and one generator (target {WORKERS_TARGET:.2})");
    print(&cases, &run_rounds(flags, &cases)?);
    Ok(())
}

fn compare_keys(flags: &Flags) -> io::Result<()> {
    let mut counts: Vec<u64> = flags.list("keys", "100000,1000000,10000000")?;
    counts.retain(|&keys| keys > 0);
    let setup = Setup { cores: &[0], memory_gib: 4, workers: 1 };
    let mut servers = Vec::new();
    for &keys in &counts {
        let Some(server) = loaded(&setup, keys)? else { return Ok(()) };
        servers.push((keys, server, Stream::new(Dialect::Resp, keys, STREAM)));
    }
    let cases: Vec<_> = servers
        .iter()
        .map(|(keys, server, stream)| Case {
            name: format!("{keys} keys"),
            drives: vec![Drive { server, stream, core: 1 }],
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
    let load = Load::asked(flags, 1)?;
    let mut found = vec![Vec::new(); cases.len()];
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for turn in 0..cases.len() {
            let case = (round + turn) % cases.len();
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
