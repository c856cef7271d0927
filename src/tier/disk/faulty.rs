//! A disk that does what broken ones do: it fails, stalls, fills up, or forgets, as it is told.

use std::{
    ffi::OsString,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{Disk, File, map::Map};

/// What is wrong with a disk, changed while it is in use.
#[derive(Debug, Default)]
pub struct Faults {
    /// Of so many reads one fails with EIO; 0: none.
    pub fail_reads: AtomicU64,
    /// Of so many writes one fails with EIO; 0: none.
    pub fail_writes: AtomicU64,
    /// Of so many syncs, of files and of directories, one fails with EIO; 0: none.
    pub fail_syncs: AtomicU64,
    /// Writes fail for lack of room unless this is 0.
    pub full: AtomicU64,
    /// Writes are acknowledged and forgotten unless this is 0.
    pub lose_writes: AtomicU64,
    /// How long each read takes longer, in microseconds.
    pub read_delay: AtomicU64,
    /// How long each write takes longer, in microseconds.
    pub write_delay: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    syncs: AtomicU64,
    /// How many reads, writes and syncs pass; the others wait. `None`: all pass.
    passing: Mutex<[Option<u64>; 3]>,
    freed: Condvar,
}

const READS: usize = 0;
const WRITES: usize = 1;
const SYNCS: usize = 2;

impl Faults {
    /// Lets reads wait, or go on.
    pub fn hold_reads(&self, holds: bool) {
        self.hold(READS, holds.then_some(0));
    }

    /// Lets writes wait, or go on.
    pub fn hold_writes(&self, holds: bool) {
        self.hold(WRITES, holds.then_some(0));
    }

    /// Lets so many more writes pass; the others wait.
    pub fn hold_writes_after(&self, more: u64) {
        self.hold(WRITES, Some(self.writes() + more));
    }

    /// Lets syncs wait, or go on.
    pub fn hold_syncs(&self, holds: bool) {
        self.hold(SYNCS, holds.then_some(0));
    }

    /// Waits until so many syncs have begun.
    pub fn await_syncs(&self, count: u64) {
        let waits = |_: &mut [Option<u64>; 3]| self.syncs() < count;
        self.freed.wait_while(&mut self.passing.lock(), waits);
    }

    fn hold(&self, which: usize, passing: Option<u64>) {
        self.passing.lock()[which] = passing;
        self.freed.notify_all();
    }

    fn pass(&self, which: usize, count: u64) {
        let waits =
            |passing: &mut [Option<u64>; 3]| passing[which].is_some_and(|most| count > most);
        self.freed.wait_while(&mut self.passing.lock(), waits);
    }

    fn sync(&self) -> io::Result<()> {
        let count = {
            // Under the lock, so that who waits for it doesn't miss it.
            let _passing = self.passing.lock();
            self.syncs.fetch_add(1, Relaxed) + 1
        };
        self.freed.notify_all();
        self.pass(SYNCS, count);
        if fails(&self.fail_syncs, count) { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Relaxed)
    }

    /// Syncs so far, of files and of directories.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Relaxed)
    }
}

/// Another disk with [`Faults`].
pub struct Faulty<D> {
    inner: D,
    faults: Arc<Faults>,
}

impl<D: Disk> Faulty<D> {
    /// Puts faults before a disk.
    pub fn new(inner: D, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

struct FaultyFile {
    inner: Arc<dyn File>,
    faults: Arc<Faults>,
}

fn fails(one_of: &AtomicU64, count: u64) -> bool {
    let one_of = one_of.load(Relaxed);
    one_of != 0 && count.is_multiple_of(one_of)
}

fn stall(delay: &AtomicU64) {
    let delay = delay.load(Relaxed);
    if delay != 0 {
        thread::sleep(Duration::from_micros(delay));
    }
}

impl<D: Disk> Disk for Faulty<D> {
    fn open(&self, path: &Path, direct: bool) -> io::Result<Arc<dyn File>> {
        let inner = self.inner.open(path, direct)?;
        Ok(Arc::new(FaultyFile { inner, faults: self.faults.clone() }))
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.make_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        self.inner.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.faults.sync()?;
        self.inner.sync_dir(dir)
    }

    fn map(&self, path: &Path, words: usize) -> io::Result<Map> {
        self.inner.map(path, words)
    }

    fn boot(&self) -> u64 {
        self.inner.boot()
    }
}

impl File for FaultyFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let count = self.faults.reads.fetch_add(1, Relaxed) + 1;
        self.faults.pass(READS, count);
        stall(&self.faults.read_delay);
        if fails(&self.faults.fail_reads, count) {
            return Err(rustix::io::Errno::IO.into());
        }
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        let count = self.faults.writes.fetch_add(1, Relaxed) + 1;
        self.faults.pass(WRITES, count);
        stall(&self.faults.write_delay);
        if self.faults.full.load(Relaxed) != 0 {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        if fails(&self.faults.fail_writes, count) {
            // As a torn write does: the beginning is there, the end isn't.
            let unit = if self.inner.is_direct() { super::PAGE } else { 1 };
            let half = (buf.len() / 2).next_multiple_of(unit).min(buf.len());
            self.inner.write_at(&buf[..half], at)?;
            return Err(rustix::io::Errno::IO.into());
        }
        if self.faults.lose_writes.load(Relaxed) != 0 {
            return Ok(());
        }
        self.inner.write_at(buf, at)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.sync()?;
        self.inner.sync()
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn is_direct(&self) -> bool {
        self.inner.is_direct()
    }
}
