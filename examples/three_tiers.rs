//! A cache of three tiers that is small enough to follow: L1 holds 3 entries, L2 10, L3 has room for 50.
//! `cargo run --example three_tiers`.
//!
//! What isn't in the cache is loaded from the database and put into all tiers above L3; a hit in a lower
//! tier brings the entry up; what L1 and L2 have no room for is what wasn't used for longest; what leaves
//! L2 goes to L3. These are the server's own tiers, counted in entries instead of bytes and driven by
//! one thread.

use std::time::{Duration, Instant};

use larder::{
    error::Error,
    simulate::{
        replay::{Replay, Setup, Sizes},
        report::{Place, Report},
    },
    tier::{Weight, eviction::Eviction},
};

/// Users that are asked for, one after the other.
pub const REQUESTS: [u64; 8] = [1, 2, 3, 1, 4, 5, 1, 2];
/// Bytes of a user's record, of which a page of the disk holds one. (Longer than 4 KiB, it would stay out
/// of L1.)
const RECORD: usize = 4_000;
/// Bytes of L3: five segments of 16 pages, of which one is always empty and each has a table, so that it
/// has room for 50 records and a few more.
const DISK: u64 = 320 << 10;

/// The cache, and how long its answers took.
pub struct Levels {
    replay: Replay,
    took: [Duration; 4],
    _dir: tempfile::TempDir,
}

impl Levels {
    /// Empty tiers.
    pub fn new() -> Result<Self, Error> {
        let dir = tempfile::tempdir()?;
        let replay = Replay::new(&Setup {
            sizes: Sizes { local: 3, memory: 10, disk: DISK },
            weight: Weight::Entries,
            eviction: Eviction::AllkeysLru,
            queue: 64 << 10,
            segment: None,
            dir: dir.path().to_owned(),
        })?;
        Ok(Self { replay, took: Default::default(), _dir: dir })
    }

    /// Asks for users, and returns where each was found.
    pub fn ask(&mut self, users: impl IntoIterator<Item = u64>) -> Result<Vec<Place>, Error> {
        let ask = |user| {
            let started = Instant::now();
            let place = self.replay.request(format!("user:{user}").as_bytes(), RECORD)?;
            self.took[place as usize] += started.elapsed();
            Ok(place)
        };
        users.into_iter().map(ask).collect()
    }

    /// The figures so far.
    pub fn report(&mut self) -> Result<Report, Error> {
        self.replay.report()
    }

    /// The mean time of an answer from a tier, in microseconds.
    fn mean(&self, place: Place, report: &Report) -> f64 {
        let hits = report.tiers[place as usize].hits.max(1);
        self.took[place as usize].as_secs_f64() * 1e6 / hits as f64
    }
}

fn name(place: Place) -> &'static str {
    match place {
        Place::Local => "L1",
        Place::Memory => "L2",
        Place::Disk => "L3",
        Place::Nowhere => "database",
    }
}

fn print(levels: &mut Levels) -> Result<(), Error> {
    let report = levels.report()?;
    println!("\n{:<10}{:>6}{:>9}{:>12}{:>9}", "", "hits", "share", "mean time", "entries");
    for place in [Place::Local, Place::Memory, Place::Disk, Place::Nowhere] {
        let tier = report.tiers[place as usize];
        let (share, mean) = (report.share(place) * 100.0, levels.mean(place, &report));
        print!("{:<10}{:>6}{share:>7.1} %{mean:>9.1} us", name(place), tier.hits);
        println!("{:>9}", tier.entries);
    }
    println!();
    Ok(())
}

#[allow(dead_code, reason = "a test has this file as a module")]
fn main() -> Result<(), Error> {
    let mut levels = Levels::new()?;
    for user in REQUESTS {
        let place = levels.ask([user])?[0];
        println!("user:{user}  {}", name(place));
    }
    print(&mut levels)?;
    println!("Twelve other users push these out of L1 and L2; then the same requests again.\n");
    levels.ask(11..23)?;
    for user in REQUESTS {
        let place = levels.ask([user])?[0];
        println!("user:{user}  {}", name(place));
    }
    print(&mut levels)
}
