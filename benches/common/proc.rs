//! What `/proc` says about a server: its CPU time and its memory.

use std::{fs, io, ops::Sub};

/// CPU time of a process since its start, or between two readings.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    /// Nanoseconds on a core, user and system together, as the scheduler counts them.
    pub nanos: u64,
    /// Clock ticks in user mode: coarse, good for the split only.
    pub user: u64,
    /// Clock ticks in the kernel.
    pub system: u64,
}

impl Cpu {
    /// The share of the kernel, 0 to 1.
    pub fn system_share(&self) -> f64 {
        self.system as f64 / ((self.user + self.system).max(1)) as f64
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(earlier.nanos),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

impl std::iter::Sum for Cpu {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, cpu| Self {
            nanos: sum.nanos + cpu.nanos,
            user: sum.user + cpu.user,
            system: sum.system + cpu.system,
        })
    }
}

/// The CPU time of all threads of a process. Nanoseconds come from `schedstat`, or, on a kernel
/// without, from the ticks (10 ms each, so measure for seconds).
pub fn cpu(pid: u32) -> io::Result<Cpu> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (user, system) = ticks(&stat).ok_or_else(|| io::Error::other("unreadable stat"))?;
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    let nanos = scheduled(pid)?.unwrap_or((user + system) * tick);
    Ok(Cpu { nanos, user, system })
}

/// Resident memory of a process in bytes (`VmRSS`).
pub fn resident(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmRSS"))
}

/// Fields 14 and 15, counted behind the name, which may hold anything.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The sum over the threads of the first field of `schedstat`; `None` where the kernel has none.
fn scheduled(pid: u32) -> io::Result<Option<u64>> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two reads.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        total += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok((total > 0).then_some(total))
}

/// The machine in a line: model, cores, and how busy it already is.
pub fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{}, {} cores, load average {}",
        model.map_or("unknown CPU", |(_, name)| name),
        cpus.lines().filter(|line| line.starts_with("processor")).count(),
        load.split(' ').next().unwrap_or("unknown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_stand_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 55 66 0 0 20 0";
        assert_eq!(ticks(stat), Some((55, 66)));
        assert_eq!(ticks("7 (x) S"), None);
    }

    #[test]
    fn own_process_is_readable() {
        assert!(resident(std::process::id()).unwrap() > 0);
        assert!(cpu(std::process::id()).is_ok());
    }
}
