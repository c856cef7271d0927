//! Memory and disk together: hits beside one tier of the same size, bytes written, bytes of memory.
//!
//! `cargo bench --bench tiers [-- --quick]`. Traces are read at `../shared/traces`; where they are
//! missing, a generated Zipf trace takes their place. All of it runs through the tiers themselves, as
//! `larder simulate` does.
//!
//! - **Hits**: L2 and L3 as 1 to 9, together a tenth of the bytes of the trace's keys and values, beside
//!   the default policy in memory alone with the sum. L2 pays for the index and for what waits in the
//!   queue; what doesn't grow with the keys (the queue's numbers, two chunks, the mapped state) comes on
//!   top. L1 is off in both.
//! - **Write amplification**: bytes written for each byte of a victim's record that was admitted, from the
//!   moment on when the log is full, Zipf 0.99.
//! - **Memory for each record**: the index, and all else that grows with the log.

mod common;

use std::{collections::HashMap, path::Path};

use common::{
    traces,
    zipf::{Rng, Zipf, permuted},
};
use larder::{
    simulate::{
        replay::{Replay, Setup, Sizes},
        report::{Flow, Place, Report, grouped, percent, size},
    },
    tier::{
        Weight,
        eviction::Eviction,
        log::{Log, UNIT},
    },
};

/// A request: a key and the bytes of key and value.
type Request = (u64, u32);

/// Bytes of a key.
const KEY: usize = 16;
/// Bytes of key and value where the trace has none: those of the other tables here, and those of a page,
/// which the traces without sizes are of. A tenth of a short trace of small values makes a log whose
/// segments have five pages, and rounding to pages takes a part of it that no real log loses.
const UNSIZED: [(&str, u32); 2] = [("1 KiB", 1 << 10), ("4 KiB", 4 << 10)];
const PAGE: u64 = 4096;

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    memory();
    hits(quick);
    writes(quick);
}

/// A key of [`KEY`] bytes.
fn name(key: u64) -> String {
    format!("{key:016x}")
}

/// Requests after which a run ends that writes little.
const MOST_REQUESTS: u64 = 30_000_000;

/// Bytes of entries that may wait to be written.
fn queue(memory: usize) -> usize {
    (memory / 8).clamp(16 << 10, 1 << 20)
}

fn setup(dir: &Path, memory: usize, disk: u64, segment: Option<usize>) -> Setup {
    Setup {
        sizes: Sizes { local: 0, memory, disk },
        weight: Weight::Bytes,
        eviction: Eviction::default(),
        queue: queue(memory),
        segment,
        dir: dir.to_owned(),
    }
}

/// A replay whose memory is for entries, the index and the queue.
fn open(memory: usize, disk: u64, segment: Option<usize>) -> (Replay, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str, memory| setup(&dir.path().join(name), memory, disk, segment);
    let fixed = {
        let replay = Replay::new(&at("probe", memory)).expect("opens");
        replay.memory().log().map_or(0, |log| log.bytes() - queue(memory))
    };
    (Replay::new(&at("log", memory + fixed)).expect("opens"), dir)
}

fn send(replay: &mut Replay, (key, bytes): Request) {
    let value = (bytes as usize).saturating_sub(KEY);
    replay.request(name(key).as_bytes(), value).expect("the disk works");
}

fn hits(quick: bool) {
    println!("\nMisses in percent, L2 : L3 = 1 : 9, together a tenth of the trace's bytes");
    println!(
        "{:<16}{:>11}{:>11}{:>11}{:>9}{:>9}{:>7}{:>9}{:>9}{:>9}{:>9}{:>11}",
        "trace", "sum", "L2", "L3", "one", "two", "more", "L2", "L3", "written", "reads", "index"
    );
    for (name, mut requests) in traces() {
        if quick {
            requests.truncate(1_000_000);
        }
        let sizes: HashMap<u64, u32> = requests.iter().copied().collect();
        let sum = sizes.values().map(|bytes| u64::from(*bytes)).sum::<u64>() / 10;
        let segment = (sum * 9 / 10 / 64).next_multiple_of(PAGE);
        let (l2, l3) = ((sum / 10) as usize, sum * 9 / 10 / segment * segment);
        let replay = |(mut replay, _dir): (Replay, tempfile::TempDir)| {
            requests.iter().for_each(|request| send(&mut replay, *request));
            replay.report().expect("the disk works")
        };
        let one = replay(open(sum as usize, 0, None));
        let two = replay(open(l2, l3, Some(segment as usize)));
        let more = (two.miss_ratio() - one.miss_ratio()) * 100.0;
        let share = |report: &Report, place| percent(report.share(place));
        let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"));
        println!(
            "{name:<16}{:>11}{:>11}{:>11}{:>9}{:>9}{more:>7.2}{:>9}{:>9}{:>9}{:>9}{:>11}",
            size(sum),
            size(l2 as u64),
            size(l3),
            share(&one, Place::Nowhere),
            share(&two, Place::Nowhere),
            share(&two, Place::Memory),
            share(&two, Place::Disk),
            ratio(two.flow.write_amplification()),
            ratio(two.flow.reads_per_hit()),
            size(two.flow.index_bytes),
        );
    }
}

fn writes(quick: bool) {
    println!("\nBytes written for each byte admitted, the log being full, Zipf 0.99");
    println!(
        "{:<14}{:>10}{:>10}{:>10}{:>12}{:>12}{:>12}{:>10}{:>10}",
        "key and value",
        "written",
        "padding",
        "again",
        "admitted",
        "reinserted",
        "written",
        "reads",
        "misses"
    );
    let disk = 64u64 << 20;
    for (label, least, most) in [
        ("100 B", 100, 100),
        ("200 B", 200, 200),
        ("50 to 2000 B", 50, 2000),
        ("1 KiB", 1024, 1024),
        ("8 KiB", 8192, 8192),
    ] {
        let mean = u64::midpoint(least, most);
        let keys = 4 * disk / mean;
        let bytes = |key: u64| (least + key % (most - least + 1)) as u32;
        let (mut replay, _dir) = open(disk as usize / 9, disk, None);
        let mut next = zipf(keys);
        let mut step = |replay: &mut Replay| {
            let key = next();
            send(replay, (key, bytes(key)));
        };
        while !log(&replay).is_full() {
            step(&mut replay);
        }
        let before = replay.report().expect("the disk works");
        let until = before.flow.written_bytes + if quick { disk / 2 } else { 2 * disk };
        let mut requests = 0u64;
        while written(&replay) < until && requests < MOST_REQUESTS {
            step(&mut replay);
            requests += 1;
        }
        let after = replay.report().expect("the disk works");
        let flow = difference(&after.flow, &before.flow);
        let ratio = |bytes: u64| bytes as f64 / flow.demoted_bytes as f64;
        let again = ratio(flow.reinserted_bytes);
        let padding = ratio(flow.written_bytes) - 1.0 - again;
        println!(
            "{label:<14}{:>10.3}{padding:>10.3}{again:>10.3}{:>12}{:>12}{:>12}{:>10.3}{:>10}",
            ratio(flow.written_bytes),
            size(flow.demoted_bytes),
            size(flow.reinserted_bytes),
            size(flow.written_bytes),
            flow.reads_per_hit().unwrap_or(0.0),
            percent((after.tiers[3].hits - before.tiers[3].hits) as f64 / requests as f64),
        );
    }
}

fn log(replay: &Replay) -> &Log {
    replay.memory().log().expect("there is a disk")
}

fn written(replay: &Replay) -> u64 {
    log(replay).counters.written_bytes.load(std::sync::atomic::Ordering::Relaxed)
}

fn difference(after: &Flow, before: &Flow) -> Flow {
    Flow {
        demoted_bytes: after.demoted_bytes - before.demoted_bytes,
        reinserted_bytes: after.reinserted_bytes - before.reinserted_bytes,
        written_bytes: after.written_bytes - before.written_bytes,
        reads: after.reads - before.reads,
        read_hits: after.read_hits - before.read_hits,
        ..Flow::default()
    }
}

fn memory() {
    const RECORDS: u64 = 1_000_000;
    const BYTES: u32 = 100;
    println!(
        "\nBytes of memory for each of 1,000,000 records of 100 bytes (16 of key, 84 of value)"
    );
    // A record in whole units and its place in its segment's table; three segments aren't full.
    let disk = RECORDS * (160 + 16) / 60 * 64;
    let (mut replay, _dir) = open(32 << 20, disk, None);
    let mut key = 0;
    while log(&replay).live().0 < RECORDS {
        key += 1;
        send(&mut replay, (key, BYTES));
    }
    let records = log(&replay).live().0;
    let (shape, chunks) = (log(&replay).shape(), log(&replay).bytes());
    let bits = shape.bytes() as usize / UNIT / 8;
    let segments = shape.segments * 16;
    let parts = [
        ("index", replay.memory().index_bytes()),
        ("validity, a bit for 32 bytes of the log", bits),
        ("two words a segment", segments),
        ("admission", log(&replay).admission.bytes()),
        ("the writer's list of its segment", replay.writer_bytes()),
    ];
    for (name, bytes) in parts {
        println!("{name:<42}{:>14}{:>8.3}", grouped(bytes as u64), bytes as f64 / records as f64);
    }
    let sum: usize = parts.iter().map(|(_, bytes)| bytes).sum();
    println!("{:<42}{:>14}{:>8.3}", "all", grouped(sum as u64), sum as f64 / records as f64);
    let state = log(&replay).state().bytes();
    let queue = log(&replay).queue.most_bytes();
    let rest = [
        ("fixed: the rest of the state", state - bits - segments),
        ("fixed: queue and its numbers", queue),
        ("fixed: two chunks", chunks - state - queue - log(&replay).admission.bytes()),
    ];
    for (name, bytes) in rest {
        println!("{name:<42}{:>14}", grouped(bytes as u64));
    }
    println!(
        "log of {}, segments of {}, {} records",
        size(shape.bytes()),
        size(shape.segment_bytes as u64),
        grouped(records)
    );
}

fn traces() -> Vec<(String, Vec<Request>)> {
    let mut traces = Vec::new();
    for name in ["twitter52", "orm_busy", "web12", "oltp"] {
        let Some(requests) = traces::read(name) else { continue };
        if requests.iter().all(|(_, bytes)| bytes.is_some()) {
            let requests = requests.iter().map(|(key, bytes)| (*key, bytes.unwrap_or(0)));
            traces.push((name.to_owned(), requests.collect()));
            continue;
        }
        for (label, bytes) in UNSIZED {
            let requests = requests.iter().map(|(key, own)| (*key, own.unwrap_or(bytes)));
            traces.push((format!("{name}, {label}"), requests.collect()));
        }
    }
    if traces.is_empty() {
        println!("../shared/traces isn't there: a generated Zipf trace instead");
        let mut next = zipf(200_000);
        let requests = (0..2_000_000).map(|_| (next(), UNSIZED[0].1)).collect();
        traces.push(("zipf".into(), requests));
    }
    traces
}

/// Keys by Zipf's law with the exponent 0.99.
fn zipf(keys: u64) -> impl FnMut() -> u64 {
    let (zipf, mut rng) = (Zipf::new(keys, 0.99), Rng::new(42));
    move || permuted(zipf.sample(&mut rng), keys)
}
