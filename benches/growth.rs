//! Growing never stops the world: ten million inserts into L2 in process, each timed by its thread's own
//! CPU time. `cargo bench --bench growth`.

use larder::tier::{
    entry::{EntryRef, Meta},
    memory::{Memory, Options},
};
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const INSERTS: u64 = 10_000_000;
const LIMIT_MICROS: u64 = 2_000;

fn main() {
    let memory = Memory::new(&Options { limit: 6 << 30, databases: 1, ..Options::default() });
    let (now, mut worst, mut over_100, mut total) = (1_700_000_000_000, 0, 0, 0);
    for number in 0..INSERTS {
        let key = format!("key:{number:012}");
        let started = cpu_nanos();
        insert(&memory, key.as_bytes(), now);
        let took = (cpu_nanos() - started) / 1_000;
        total += took;
        worst = worst.max(took);
        over_100 += u64::from(took > 100);
    }
    println!(
        "{INSERTS} inserts: worst {worst} us of CPU, {over_100} over 100 us, mean {:.2} us",
        { total as f64 / INSERTS as f64 }
    );
    assert!(worst <= LIMIT_MICROS, "an insert took {worst} us");
    assert_eq!(memory.len(0).0 as u64, INSERTS);
}

fn insert(memory: &Memory, key: &[u8], now: u64) {
    let entry = EntryRef::new(key, &[&[7; 32]], &Meta::default());
    let hash = memory.hash(key);
    let stripe = memory.stripe_of(hash);
    memory.make_room(entry.get().size(), stripe, now, &[]).expect("room");
    let mut core = memory.lock(stripe);
    let shelf = memory.shelf(stripe, &mut core, 0);
    shelf.insert(hash, entry, memory.rules(), now);
    memory.report(shelf);
}

/// The CPU time of this thread.
fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
