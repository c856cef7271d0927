//! What a scrape costs: `cargo bench --bench scrape`. A server in this process with a thousand namespaces, of
//! which one in ten writes behind, each with keys; CPU time of the thread that scrapes.
//!
//! A scrape holds a stripe's lock while it copies the stripe's figures, and a lane's while it looks for its
//! oldest change. How long is measured by the CPU time that all of them take, for each.

use larder::{admin, config::Config, server::Server};
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NAMESPACES: usize = 1_000;
const KEYS: usize = 100;
const SCRAPES: usize = 100;
/// Milliseconds of a scrape, and of a lock that a request may wait for, at most.
const SCRAPE_TARGET: f64 = 20.0;
const LOCK_TARGET: f64 = 1.0;

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config::from_toml(&toml(dir.path()), "bench").expect("it parses");
    let server = Server::start(&config).expect("it starts");
    fill(server.port());
    let shared = server.shared();
    let mut lens = 0;
    let mut took: Vec<f64> = (0..SCRAPES)
        .map(|_| {
            let (text, took) = timed(|| admin::metrics(shared));
            lens = text.len();
            took
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let (median, worst) = (took[SCRAPES / 2], took[SCRAPES - 1]);
    println!(
        "a scrape of {NAMESPACES} namespaces, {lens} bytes: {median:.2} ms of CPU in the median of {SCRAPES}, \
         {worst:.2} at most; target {SCRAPE_TARGET}: {}",
        verdict(median < SCRAPE_TARGET)
    );
    let memory = shared.cache.memory();
    let stripes = memory.stripes() as f64;
    let worst = |look: &dyn Fn()| (0..SCRAPES).map(|_| timed(look).1).fold(0.0, f64::max);
    let lines = || shared.cache.policies().iter().filter_map(|namespace| namespace.line.as_ref());
    let lanes = (lines().count() * 4) as f64;
    for (what, locks, took) in [
        ("a stripe, figures of namespaces", stripes, worst(&|| drop(memory.tallies()))),
        ("a stripe, its index", stripes, worst(&|| _ = memory.index_bytes())),
        ("a stripe, its keys", stripes, worst(&|| _ = memory.len(0))),
        ("a lane of write-behind", lanes, worst(&|| lines().for_each(|line| _ = line.backlog()))),
    ] {
        let each = took / locks;
        println!(
            "lock of {what}: {:.4} ms of CPU each in the worst of {SCRAPES}; target {LOCK_TARGET}: {}",
            each,
            verdict(each < LOCK_TARGET)
        );
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

fn toml(dir: &std::path::Path) -> String {
    let mut toml = format!(
        "port = 0\nadmin = ''\ndir = '{}'\nmemory = '256mb'\n[store.main]\nkind = 'memory'\n",
        dir.display()
    );
    for number in 0..NAMESPACES {
        let mode = if number % 10 == 0 { "write-behind" } else { "read-through" };
        toml += &format!(
            "[[namespace]]\nprefix = 'n{number}:'\nmode = '{mode}'\nstore = 'main'\n{}",
            if number % 10 == 0 { "behind = { delay = '1h' }\n" } else { "" }
        );
    }
    toml
}

/// Gives each namespace its keys.
fn fill(port: u16) {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).expect("an address");
    let mut connection = client.get_connection().expect("it listens");
    for number in 0..NAMESPACES {
        let mut pipe = redis::pipe();
        (0..KEYS).for_each(|key| {
            pipe.set(format!("n{number}:{key}"), "value").ignore();
            pipe.get(format!("n{number}:{key}")).ignore();
        });
        pipe.query::<()>(&mut connection).expect("answered");
    }
}

/// What something returns, and the milliseconds of this thread's CPU time that it took.
fn timed<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let started = cpu_nanos();
    let result = run();
    (result, (cpu_nanos() - started) as f64 / 1e6)
}

/// The CPU time of this thread.
fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
