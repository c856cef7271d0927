//! What the process uses, as INFO and MEMORY report it: memory by the allocator, the tier and the
//! kernel; CPU time by the kernel (`/proc/self`, see proc(5)).

use std::{fs, sync::atomic::Ordering::Relaxed};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    system::sysinfo,
};

use super::{allocator, session::Client, shared::Shared};
use crate::tier::{Weight, memory::Memory};

/// Memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryFigures {
    /// What the program has allocated.
    pub used: u64,
    /// The most of that at any look.
    pub peak: u64,
    /// What it had allocated before there were any keys.
    pub startup: u64,
    /// What the kernel counts as resident.
    pub rss: u64,
    /// Entries: keys, values and headers.
    pub dataset: u64,
    /// What the limit counts: entries, tables, queues.
    pub counted: u64,
    /// Buffers of clients.
    pub clients: u64,
    /// Keys of all databases.
    pub keys: u64,
    /// The allocator's own, if it tells.
    pub allocator: Option<allocator::Figures>,
}

impl MemoryFigures {
    /// The figures of now.
    pub fn now(shared: &Shared) -> Self {
        let memory = shared.cache.memory();
        let allocator = allocator::figures();
        let counted = counted(memory);
        let used = allocator.map_or(0, |figures| figures.allocated).max(counted);
        let dataset = counted.saturating_sub(memory.overhead() as u64);
        let keys = (0..memory.databases()).map(|db| memory.len(db).0 as u64).sum();
        let clients = shared.clients.iter().map(|client| buffered(&client)).sum();
        let peak = shared.note_peak(used);
        let startup = shared.startup_memory.load(Relaxed);
        Self { used, peak, startup, rss: rss(), dataset, counted, clients, keys, allocator }
    }

    /// What isn't entries.
    pub fn overhead(&self) -> u64 {
        self.used.saturating_sub(self.dataset)
    }

    /// Which part of what was allocated since the start is entries, in percent.
    pub fn dataset_percent(&self) -> f64 {
        100.0 * ratio(self.dataset, self.used.saturating_sub(self.startup)).min(1.0)
    }

    /// How much more is resident than used: 1 is none.
    pub fn fragmentation(&self) -> f64 {
        ratio(self.rss, self.used)
    }
}

/// Bytes of a client's requests and replies that wait.
fn buffered(client: &Client) -> u64 {
    client.query_bytes.load(Relaxed) + client.output_bytes.load(Relaxed)
}

/// What the memory limit counts, in bytes.
fn counted(memory: &Memory) -> u64 {
    if memory.rules().weight == Weight::Bytes { memory.used() as u64 } else { 0 }
}

/// What the program has allocated; less than the tier counts only if the allocator isn't the one that
/// tells.
pub fn used_memory(memory: &Memory) -> u64 {
    allocator::figures().map_or(0, |figures| figures.allocated).max(counted(memory))
}

/// `of` in units of `unit`; 0 if that is 0.
pub fn ratio(of: u64, unit: u64) -> f64 {
    if unit == 0 { 0.0 } else { of as f64 / unit as f64 }
}

/// Resident memory of the process.
pub fn rss() -> u64 {
    statm(1)
}

/// Address space of the process.
pub fn address_space() -> u64 {
    statm(0)
}

/// A number of statm, which counts in pages, in bytes.
fn statm(at: usize) -> u64 {
    let pages = |statm: String| statm.split(' ').nth(at)?.parse::<u64>().ok();
    let pages = fs::read_to_string("/proc/self/statm").ok().and_then(pages);
    pages.unwrap_or(0) * page_size() as u64
}

/// The machine's memory.
pub fn system_memory() -> u64 {
    let info = sysinfo();
    // The fields' widths differ by platform.
    #[allow(clippy::useless_conversion, reason = "not where this is 32 bits")]
    let total = u64::from(info.totalram);
    total * u64::from(info.mem_unit)
}

/// CPU seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuFigures {
    /// In the program.
    pub user: f64,
    /// In the kernel for it.
    pub system: f64,
    /// In processes that it had started.
    pub children_user: f64,
    /// In the kernel for these.
    pub children_system: f64,
}

impl CpuFigures {
    /// Of the whole process.
    pub fn of_process() -> Self {
        Self::read("/proc/self/stat")
    }

    /// Of the main thread.
    pub fn of_main_thread() -> Self {
        Self::read(&format!("/proc/self/task/{}/stat", std::process::id()))
    }

    fn read(path: &str) -> Self {
        fs::read_to_string(path).ok().and_then(|stat| Self::parse(&stat)).unwrap_or_default()
    }

    /// From fields 14 to 17 of a stat file, in clock ticks. The second field, the name, stands in
    /// parentheses and may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (_, behind) = stat.rsplit_once(')')?;
        let mut fields = behind.split_ascii_whitespace().skip(11);
        let mut seconds = || {
            let ticks: u64 = fields.next()?.parse().ok()?;
            Some(ratio(ticks, clock_ticks_per_second()))
        };
        Some(Self {
            user: seconds()?,
            system: seconds()?,
            children_user: seconds()?,
            children_system: seconds()?,
        })
    }
}

/// Bytes for people: `1.50M`, as INFO's `_human` fields have them.
pub fn human(bytes: u64) -> String {
    const UNITS: [(u32, char); 5] = [(50, 'P'), (40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
    match UNITS.into_iter().find(|(bits, _)| bytes >> bits != 0) {
        Some((bits, unit)) => format!("{:.2}{unit}", ratio(bytes, 1 << bits)),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{call, session};

    #[test]
    fn bytes_for_people() {
        for (bytes, text) in [
            (0, "0B"),
            (1_023, "1023B"),
            (1_024, "1.00K"),
            (1_113_912, "1.06M"),
            (25_276_063_744, "23.54G"),
            (3 << 40, "3.00T"),
            (u64::MAX, "16384.00P"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn cpu_time_stands_behind_any_name() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 100 250 300 0 20 0";
        let found = CpuFigures::parse(stat).unwrap();
        let ticks = clock_ticks_per_second() as f64;
        assert_eq!(found.user, 100.0 / ticks);
        assert_eq!(found.children_user, 300.0 / ticks);
        assert_eq!(CpuFigures::parse("7 (x"), None);
        assert_ne!(CpuFigures::of_process(), CpuFigures { user: -1.0, ..CpuFigures::default() });
    }

    #[test]
    fn the_dataset_is_part_of_what_is_used() {
        let mut session = session();
        let _ = call(&mut session, &["PING"]);
        let figures = MemoryFigures::now(&session.shared);
        assert!(figures.rss > 1 << 20 && figures.dataset <= figures.counted);
        assert!(figures.counted <= figures.used && figures.used <= figures.peak);
        assert!(system_memory() > figures.rss);
    }
}
