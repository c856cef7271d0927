//! Miss ratios of L2 alone: every eviction policy beside exact LRU, on real traces in process.
//!
//! `cargo bench --bench hit_ratio [-- --quick]`. Traces are read at `../shared/traces`; where they are
//! missing, a generated Zipf trace takes their place. Every line is a GET, and a SET on a miss. Capacity
//! counts entries, so that the figures can be compared with published ones; the last table counts bytes.

#[path = "common/traces.rs"]
mod traces;

use std::collections::HashMap;

use larder::tier::{
    Weight,
    entry::{EntryRef, Meta},
    eviction::Eviction,
    memory::{Memory, Options},
};

/// A request: a key and the size of its value.
type Request = (u64, u32);

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let mut traces: Vec<(String, Vec<Request>)> = ["twitter52", "orm_busy", "web12", "oltp"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), read(name)?)))
        .collect();
    if traces.is_empty() {
        println!("../shared/traces isn't there: a generated Zipf trace instead");
        traces.push(("zipf".into(), zipf(2_000_000, 200_000)));
    }
    if quick {
        traces.iter_mut().for_each(|(_, requests)| requests.truncate(1_000_000));
    }
    by_entries(&traces);
    by_stripes(&traces);
    tiny_and_loops(&traces);
    by_bytes(&traces);
}

fn by_entries(traces: &[(String, Vec<Request>)]) {
    println!("\nMiss ratio in percent, one stripe, capacity in entries");
    print!("{:<12}{:>9}{:>8}", "trace", "entries", "LRU");
    let policies = [
        Eviction::AllkeysS3fifo,
        Eviction::AllkeysLru,
        Eviction::AllkeysLfu,
        Eviction::AllkeysRandom,
    ];
    policies.iter().for_each(|policy| print!("{:>16}", policy.name()));
    println!();
    for (name, requests) in traces {
        let distinct = distinct(requests);
        for share in [1_000, 100, 10] {
            let capacity = distinct / share;
            if capacity < 50 {
                continue;
            }
            print!("{name:<12}{capacity:>9}{:>8.2}", lru(requests, capacity));
            for policy in policies {
                print!("{:>16.2}", replay(requests, capacity, Weight::Entries, policy, Some(0)));
            }
            println!();
        }
    }
}

fn by_stripes(traces: &[(String, Vec<Request>)]) {
    println!("\nallkeys-s3fifo by number of stripes, 50,000 entries");
    println!("{:<12}{:>8}{:>8}{:>8}{:>8}", "trace", 1, 8, 32, 128);
    for (name, requests) in traces {
        print!("{name:<12}");
        for bits in [0, 3, 5, 7] {
            let policy = Eviction::AllkeysS3fifo;
            print!("{:>8.2}", replay(requests, 50_000, Weight::Entries, policy, Some(bits)));
        }
        println!();
    }
}

fn tiny_and_loops(traces: &[(String, Vec<Request>)]) {
    println!(
        "\nA hundred entries, and loops over twice the entries (hits from the second pass on)"
    );
    let policy = Eviction::AllkeysS3fifo;
    if let Some((name, requests)) = traces.iter().find(|(name, _)| name == "orm_busy") {
        for capacity in [76, 100] {
            let ours = replay(requests, capacity, Weight::Entries, policy, None);
            println!("{name} {capacity}: {ours:.2}, LRU {:.2}", lru(requests, capacity));
        }
    }
    for capacity in [100u64, 1_000, 50_000] {
        let requests: Vec<Request> =
            (0..capacity * 2 * 10).map(|at| (at % (capacity * 2), 1)).collect();
        let miss = replay(&requests, capacity as usize, Weight::Entries, policy, None);
        println!(
            "loop over {} with {capacity} entries: {miss:.2} % misses in 10 passes",
            capacity * 2
        );
    }
}

fn by_bytes(traces: &[(String, Vec<Request>)]) {
    println!(
        "\nMiss ratio in percent by bytes, all overhead included, stripes as a server has them"
    );
    for (name, requests) in traces.iter().filter(|(name, _)| name == "twitter52") {
        let mut sizes: HashMap<u64, usize> = HashMap::new();
        for (key, size) in requests {
            sizes.insert(*key, *size as usize);
        }
        let total: usize = sizes.values().sum();
        for policy in [Eviction::AllkeysS3fifo, Eviction::AllkeysLru] {
            let miss = replay(requests, total / 10, Weight::Bytes, policy, None);
            println!("{name} at {} MiB (10 %), {}: {miss:.2}", (total / 10) >> 20, policy.name());
        }
    }
}

/// The miss ratio in percent of a memory tier.
fn replay(
    requests: &[Request],
    limit: usize,
    weight: Weight,
    eviction: Eviction,
    stripe_bits: Option<u32>,
) -> f64 {
    let options =
        Options { limit, weight, eviction, databases: 1, stripe_bits, ..Options::default() };
    let memory = Memory::new(&options);
    let value = vec![0; 1 << 20];
    let (mut misses, mut random) = (0, 1u64);
    for (step, (key, size)) in requests.iter().enumerate() {
        // A clock that moves with the requests, for the policies that look at it.
        let now = 1_700_000_000_000 + step as u64 * 20;
        let name = key.to_be_bytes();
        let hash = memory.hash(&name);
        let stripe = memory.stripe_of(hash);
        {
            let core = memory.lock(stripe);
            let shelf = core.shelf(0);
            if let Some((shelf, slot)) =
                shelf.and_then(|shelf| Some((shelf, shelf.find(hash, &name)?)))
            {
                random = larder::tier::shelf::next_random(random);
                eviction.touch(shelf.entry(slot), now, memory.rules().lfu(), || random);
                continue;
            }
        }
        misses += 1;
        let meta = Meta { access: eviction.first_access(now), ..Meta::default() };
        let len = (*size as usize).saturating_sub(name.len()).min(value.len());
        let len = if weight == Weight::Entries { 0 } else { len };
        let entry = EntryRef::new(&name, &[&value[..len]], &meta);
        let need = weight.of(entry.get());
        if memory.make_room(need, stripe, now, &[]).is_ok() {
            let mut core = memory.lock(stripe);
            let shelf = memory.shelf(stripe, &mut core, 0);
            shelf.insert(hash, entry, memory.rules(), now);
            memory.report(shelf);
        }
    }
    f64::from(misses) * 100.0 / requests.len() as f64
}

/// The miss ratio in percent of exact LRU.
fn lru(requests: &[Request], capacity: usize) -> f64 {
    const NONE: u32 = u32::MAX;
    // A doubly linked list in vectors: keys are small numbers.
    let keys = requests.iter().map(|(key, _)| *key).max().unwrap_or(0) as usize + 2;
    let (mut before, mut behind) = (vec![NONE; keys], vec![NONE; keys]);
    let end = keys - 1;
    before[end] = end as u32;
    behind[end] = end as u32;
    let (mut len, mut misses) = (0, 0);
    for (key, _) in requests {
        let key = *key as usize;
        if before[key] != NONE {
            let (left, right) = (before[key], behind[key]);
            behind[left as usize] = right;
            before[right as usize] = left;
        } else {
            misses += 1;
            len += 1;
            if len > capacity {
                let oldest = before[end] as usize;
                let left = before[oldest];
                behind[left as usize] = end as u32;
                before[end] = left;
                before[oldest] = NONE;
                len -= 1;
            }
        }
        let first = behind[end];
        behind[key] = first;
        before[key] = end as u32;
        before[first as usize] = key as u32;
        behind[end] = key as u32;
    }
    f64::from(misses) * 100.0 / requests.len() as f64
}

fn distinct(requests: &[Request]) -> usize {
    requests.iter().map(|(key, _)| *key).collect::<std::collections::HashSet<_>>().len()
}

fn read(name: &str) -> Option<Vec<Request>> {
    let requests = traces::read(name)?.into_iter();
    Some(requests.map(|(key, size)| (key, size.unwrap_or(1))).collect())
}

/// A Zipf trace of exponent 1 by inversion (its sum is a logarithm).
fn zipf(count: usize, keys: u64) -> Vec<Request> {
    let mut random = 88_172_645_463_325_252u64;
    (0..count)
        .map(|_| {
            random = larder::tier::shelf::next_random(random);
            let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
            ((keys as f64).powf(uniform) as u64, 1)
        })
        .collect()
}
