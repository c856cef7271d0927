//! The miss-ratio curve beside exact simulation of LRU, on real traces in process.
//!
//! `cargo bench --bench curve [-- --quick]`. Traces are read at `../shared/traces`; where they are missing, a
//! generated Zipf trace takes their place. Every line is a GET, and a SET on a miss; a tenth of the trace's
//! bytes is what memory has, so nine GETs in ten that find nothing are of keys that were evicted. The curve is
//! asked at twenty sizes from 1 to 100 % of all bytes, each larger than the one before by the same factor. Keys
//! are hashed anew for each of several runs. The last table is what a server does: it begins with one key in
//! four, and bounds what its sample costs.

#[path = "common/traces.rs"]
mod traces;

use std::{collections::HashMap, time::Instant};

use larder::{
    cache::traffic::curve::{Curve, Event, Sample},
    tier::table::{Hasher, hash},
};

/// Sizes at which curves are compared, and hash functions that each is averaged over.
const SIZES: usize = 20;
const RUNS: u64 = 8;
/// Bytes of a key and its value where the trace tells none.
const UNIT: u32 = 100;
/// Requests between two ticks of a server's clock.
const TICK: usize = 100_000;

/// Keys, each with its bytes if the trace tells them.
type Trace = Vec<(u64, Option<u32>)>;

/// A trace, as exact simulation sees it.
struct Exact {
    name: String,
    /// Keys and bytes.
    requests: Vec<(u64, u32)>,
    /// The memory from which on each would be a hit; `None`: it is the first of its key.
    distances: Vec<Option<u64>>,
    bytes: u64,
    keys: usize,
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let mut all: Vec<(String, Trace)> = ["twitter52", "orm_busy", "web12", "oltp"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), traces::read(name)?)))
        .collect();
    if all.is_empty() {
        println!("../shared/traces isn't there: a generated Zipf trace instead");
        all.push(("zipf".into(), zipf(2_000_000, 200_000)));
    }
    if quick {
        all.iter_mut().for_each(|(_, requests)| requests.truncate(1_000_000));
    }
    let all: Vec<_> = all.into_iter().map(|(name, requests)| Exact::new(name, requests)).collect();
    for (title, sparse, ticks) in [
        ("8,192 samples, all keys at first", 1, false),
        ("one key in a hundred", 100, false),
        ("as in a server: one key in four at first, its cost bounded", 4, true),
    ] {
        println!("\n{title}");
        println!(
            "{:<12}{:>9}{:>9}{:>10}{:>10}{:>10}{:>12}",
            "trace", "keys", "sampled", "mean err", "worst run", "worst at", "ns a sample"
        );
        all.iter().for_each(|exact| compare(exact, sparse, ticks));
    }
    println!(
        "\nErrors in points of the hit ratio: mean absolute error over {SIZES} sizes; {RUNS} runs"
    );
}

fn compare(exact: &Exact, sparse: u32, ticks: bool) {
    let sizes: Vec<u64> = (0..SIZES)
        .map(|at| (exact.bytes as f64 * 0.01f64.powf(1.0 - at as f64 / (SIZES - 1) as f64)) as u64)
        .collect();
    let truth = exact.hit_ratios(&sizes);
    let (mut errors, mut worst_at, mut keys, mut nanos) = (Vec::new(), 0f64, 0, 0.0);
    for seed in 0..RUNS {
        let (curve, took) = sample(exact, sparse, ticks, seed);
        let estimate = sizes.iter().map(|size| curve.hit_ratio(*size).unwrap_or_default());
        let off: Vec<f64> = estimate.zip(&truth).map(|(a, b)| (a - b).abs() * 100.0).collect();
        errors.push(off.iter().sum::<f64>() / off.len() as f64);
        worst_at = off.into_iter().fold(worst_at, f64::max);
        keys += curve.basis().keys;
        nanos += took;
    }
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    let worst = errors.into_iter().fold(0f64, f64::max);
    println!(
        "{:<12}{:>9}{:>9}{mean:>10.2}{worst:>10.2}{worst_at:>10.2}{:>12.0}",
        exact.name,
        exact.keys,
        keys / RUNS as usize,
        nanos / RUNS as f64
    );
}

/// The curve of a trace by a sample, and the nanoseconds that each sample took.
fn sample(exact: &Exact, sparse: u32, ticks: bool, seed: u64) -> (Curve, f64) {
    let hasher = Hasher::with_seeds(seed, 1, 2, 3);
    let mut curve = Curve::new(sparse, 0);
    let (mut samples, mut nanos) = (0u64, 0u128);
    let mut batch = Vec::new();
    for (step, ((key, bytes), distance)) in exact.requests.iter().zip(&exact.distances).enumerate()
    {
        let id = hash(&hasher, &key.to_be_bytes());
        if curve.rate().takes(id) {
            let event = |event| Sample { id, end: 0, bytes: *bytes, db: 0, event };
            if distance.is_some_and(|distance| distance <= exact.bytes / 10) {
                batch.push(event(Event::Hit));
            } else {
                batch.extend([event(Event::Miss), event(Event::Write)]);
            }
        }
        if batch.len() >= 32 || step + 1 == exact.requests.len() {
            let started = Instant::now();
            batch.iter().for_each(|sample| curve.note(sample, 0));
            nanos += started.elapsed().as_nanos();
            samples += batch.len() as u64;
            batch.clear();
        }
        curve.note_lookups(1, 0);
        if ticks && batch.is_empty() {
            curve.keep_cheap();
        }
        if ticks && step % TICK == TICK - 1 {
            curve.tick(u64::MAX, 0, 0);
        }
    }
    (curve, nanos as f64 / samples.max(1) as f64)
}

impl Exact {
    /// Distances by a tree of partial sums over all requests (Fenwick), in which each key stands at its last.
    fn new(name: String, requests: Trace) -> Self {
        let with_bytes = |(key, bytes): (u64, Option<u32>)| (key, bytes.unwrap_or(UNIT).max(1));
        let requests: Vec<_> = requests.into_iter().map(with_bytes).collect();
        let mut tree = vec![0u64; requests.len() + 1];
        let add = |tree: &mut Vec<u64>, at: usize, bytes: u64, adds: bool| {
            let mut at = at + 1;
            while at < tree.len() {
                tree[at] = if adds { tree[at] + bytes } else { tree[at] - bytes };
                at += at & at.wrapping_neg();
            }
        };
        let up_to = |tree: &[u64], at: usize| {
            let (mut at, mut sum) = (at + 1, 0);
            while at > 0 {
                sum += tree[at];
                at -= at & at.wrapping_neg();
            }
            sum
        };
        let mut last: HashMap<u64, (usize, u32)> = HashMap::new();
        let (mut distances, mut bytes) = (Vec::with_capacity(requests.len()), 0);
        for (at, (key, size)) in requests.iter().enumerate() {
            let before = last.insert(*key, (at, *size));
            distances.push(before.map(|(before, old)| {
                let above = bytes - up_to(&tree, before);
                add(&mut tree, before, u64::from(old), false);
                bytes -= u64::from(old);
                above + u64::from(*size)
            }));
            add(&mut tree, at, u64::from(*size), true);
            bytes += u64::from(*size);
        }
        Self { name, requests, distances, bytes, keys: last.len() }
    }

    fn hit_ratios(&self, sizes: &[u64]) -> Vec<f64> {
        let mut sorted: Vec<u64> = self.distances.iter().flatten().copied().collect();
        sorted.sort_unstable();
        let hits = |size: &u64| sorted.partition_point(|distance| distance <= size);
        sizes.iter().map(|size| hits(size) as f64 / self.requests.len() as f64).collect()
    }
}

/// A Zipf trace of exponent 1 by inversion (its sum is a logarithm).
fn zipf(count: usize, keys: u64) -> Trace {
    let mut random = 88_172_645_463_325_252u64;
    (0..count)
        .map(|_| {
            random = larder::tier::shelf::next_random(random);
            let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
            ((keys as f64).powf(uniform) as u64, None)
        })
        .collect()
}
