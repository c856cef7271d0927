//! How much memory the machine gives us: /proc/meminfo (proc(5)) and the limits of the control
//! group, version 2 (`memory.max`) or 1 (`memory.limit_in_bytes`); see cgroups(7).

use std::{fs, path::Path, sync::OnceLock};

/// What is assumed where nothing can be read: 1 GiB.
const UNKNOWN: u64 = 1 << 30;
/// The least that a share comes to: 16 MiB.
const LEAST: u64 = 16 << 20;

/// A quarter of the machine's memory or of the cgroup's limit, whichever is lower, in bytes. Read
/// once per process.
pub fn memory_share() -> u64 {
    static SHARE: OnceLock<u64> = OnceLock::new();
    *SHARE.get_or_init(|| share(Path::new("/")))
}

/// The share as the files below `root` have it.
fn share(root: &Path) -> u64 {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let total = read("proc/meminfo").as_deref().and_then(total);
    let groups = read("proc/self/cgroup").unwrap_or_default();
    let limit =
        limit_files(&groups).iter().filter_map(|path| read(path)?.trim().parse().ok()).min();
    let bytes = total.into_iter().chain(limit).min().unwrap_or(UNKNOWN);
    (bytes / 4).max(LEAST)
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Where limits may stand, given /proc/self/cgroup: for our group and each one above it. In a
/// container the group's own path is often not mounted, and the limit stands at the root.
fn limit_files(groups: &str) -> Vec<String> {
    groups
        .lines()
        .filter_map(limit_place)
        .flat_map(|(mount, path, file)| {
            let ancestors = Path::new(path).ancestors();
            let place = move |path: &Path| {
                let path = path.to_string_lossy();
                format!("{mount}{}/{file}", path.trim_end_matches('/'))
            };
            ancestors.map(place).collect::<Vec<_>>()
        })
        .collect()
}

/// Mount point, path and file of the memory limit, from a line `id:controllers:/path`.
fn limit_place(line: &str) -> Option<(&'static str, &str, &'static str)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    if controllers.is_empty() {
        return Some(("sys/fs/cgroup", path, "memory.max"));
    }
    let memory = controllers.split(',').any(|name| name == "memory");
    memory.then_some(("sys/fs/cgroup/memory", path, "memory.limit_in_bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16777216 kB\nMemFree:        1 kB\n";
    const GIB: u64 = 1 << 30;

    /// A root directory with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }
        root
    }

    fn share_of(files: &[(&str, &str)]) -> u64 {
        share(root(files).path())
    }

    #[test]
    fn a_machine_without_groups() {
        assert_eq!(share_of(&[("proc/meminfo", MEMINFO)]), 4 * GIB);
        assert_eq!(share_of(&[]), UNKNOWN / 4);
        assert_eq!(share_of(&[("proc/meminfo", "MemTotal: 1024 kB\n")]), LEAST);
    }

    #[test]
    fn version_2_takes_the_lowest_limit_on_the_way_up() {
        let files = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/system.slice/larder.service\n"),
            ("sys/fs/cgroup/system.slice/larder.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "8589934592\n"),
        ];
        assert_eq!(share_of(&files), 2 * GIB);
    }

    #[test]
    fn a_container_has_its_limit_at_the_root() {
        let files = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/docker/0123\n"),
            ("sys/fs/cgroup/memory.max", "4294967296\n"),
        ];
        assert_eq!(share_of(&files), GIB);
    }

    #[test]
    fn version_1_and_no_limit() {
        let limit = |text| {
            share_of(&[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "5:cpu,memory:/app\n3:cpuset:/app\n"),
                ("sys/fs/cgroup/memory/app/memory.limit_in_bytes", text),
            ])
        };
        assert_eq!(limit("4294967296\n"), GIB);
        assert_eq!(limit("9223372036854771712\n"), 4 * GIB);
        assert_eq!(limit("nonsense"), 4 * GIB);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(memory_share() >= LEAST);
    }
}
