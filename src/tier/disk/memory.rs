//! A disk in memory that knows which of its bytes were synced, to see what a crash leaves.
//!
//! After a kill of the process there is what was written; after a power loss what was synced, and of the
//! rest any sectors, in files of any length between the synced and the written one, under the names that
//! their directory had when it was synced.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use super::{Disk, File, map::Map};

/// What a device writes whole or not at all, at least.
const SECTOR: usize = 512;

/// A disk in memory; clones are the same disk.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Names>>, u64);

#[derive(Default)]
struct Names {
    now: BTreeMap<PathBuf, Content>,
    synced: BTreeMap<PathBuf, Content>,
    /// What is mapped, apart from the files.
    maps: BTreeMap<PathBuf, Arc<[AtomicU64]>>,
}

impl Names {
    /// Copies of what is mapped, but for the sectors that `keeps` says no of.
    fn copied_maps(&self, mut keeps: impl FnMut() -> bool) -> BTreeMap<PathBuf, Arc<[AtomicU64]>> {
        let mut copied = |(path, words): (&PathBuf, &Arc<[AtomicU64]>)| {
            let copy: Arc<[AtomicU64]> = words.iter().map(|_| AtomicU64::new(0)).collect();
            for (to, from) in copy.chunks(SECTOR / 8).zip(words.chunks(SECTOR / 8)) {
                if keeps() {
                    to.iter()
                        .zip(from)
                        .for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
                }
            }
            (path.clone(), copy)
        };
        self.maps.iter().map(&mut copied).collect()
    }
}

type Content = Arc<Mutex<Bytes>>;

#[derive(Clone, Default)]
struct Bytes {
    now: Vec<u8>,
    synced: Vec<u8>,
}

fn content(bytes: &[u8]) -> Content {
    Arc::new(Mutex::new(Bytes { now: bytes.to_vec(), synced: bytes.to_vec() }))
}

impl Memory {
    /// An empty disk.
    pub fn new() -> Self {
        Self(Arc::default(), 1)
    }

    /// Another disk, with what is there after the process was killed: all that was written.
    pub fn after_kill(&self) -> Self {
        let names = self.0.lock();
        // Before the files, which what is mapped goes to: between the two it is in both.
        let maps = names.copied_maps(|| true);
        let copied: BTreeMap<PathBuf, Content> = names
            .now
            .iter()
            .map(|(path, content)| (path.clone(), Arc::new(Mutex::new(content.lock().clone()))))
            .collect();
        // What was synced of names that are gone can be told from what was never synced no more, so
        // the copy takes them to be synced: nobody loses power twice.
        Self(Arc::new(Mutex::new(Names { synced: copied.clone(), now: copied, maps })), self.1)
    }

    /// Another disk, with what may be there after a power loss; `random` gives the choices.
    pub fn after_power_loss(&self, mut random: impl FnMut() -> u64) -> Self {
        let names = self.0.lock();
        let mut left = BTreeMap::new();
        let paths: BTreeSet<&PathBuf> = names.now.keys().chain(names.synced.keys()).collect();
        for path in paths {
            let content_of = match (names.now.get(path), names.synced.get(path)) {
                (Some(now), Some(_)) => now,
                (Some(only), None) | (None, Some(only)) if random().is_multiple_of(2) => only,
                _ => continue,
            };
            left.insert(path.clone(), content(&content_of.lock().survivor(&mut random)));
        }
        let maps = names.copied_maps(|| random().is_multiple_of(2));
        Self(Arc::new(Mutex::new(Names { synced: left.clone(), now: left, maps })), self.1 + 1)
    }

    /// Another disk, with what is there after the machine was stopped and started in good order, though the
    /// process had been killed.
    pub fn after_reboot(&self) -> Self {
        let Self(names, boot) = self.after_kill();
        Self(names, boot + 1)
    }

    /// Takes a mapped file away.
    pub fn remove_map(&self, path: &Path) {
        self.0.lock().maps.remove(path);
    }

    /// What is in a file now.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        self.0.lock().now.get(path).map(|content| content.lock().now.clone())
    }

    /// Puts this into a file, synced, whatever was there.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let content = content(bytes);
        let mut names = self.0.lock();
        names.now.insert(path.to_owned(), content.clone());
        names.synced.insert(path.to_owned(), content);
    }

    /// All files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.lock().now.keys().cloned().collect()
    }
}

impl Bytes {
    /// What was synced, and some sectors of what was only written.
    fn survivor(&self, random: &mut impl FnMut() -> u64) -> Vec<u8> {
        let (shorter, longer) = (self.now.len().min(self.synced.len()), self.now.len());
        let len = match longer.saturating_sub(shorter) {
            0 => longer,
            more => shorter + (random() % (more as u64 + 1)) as usize,
        };
        let mut left = self.synced.clone();
        left.resize(len, 0);
        for at in (0..len).step_by(SECTOR) {
            let end = (at + SECTOR).min(len);
            if !random().is_multiple_of(3) {
                left[at..end].copy_from_slice(&self.now[at..end]);
            }
        }
        left
    }
}

struct MemoryFile(Content);

impl Disk for Memory {
    fn open(&self, path: &Path, _: bool) -> io::Result<Arc<dyn File>> {
        let content = self.0.lock().now.entry(path.to_owned()).or_default().clone();
        Ok(Arc::new(MemoryFile(content)))
    }

    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let names = self.0.lock();
        let inside = names.now.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()).map(OsString::from).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let gone = self.0.lock().now.remove(path);
        gone.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut names = self.0.lock();
        let Names { now, synced, .. } = &mut *names;
        synced.retain(|path, _| path.parent() != Some(dir));
        let inside = now.iter().filter(|(path, _)| path.parent() == Some(dir));
        synced.extend(inside.map(|(path, content)| (path.clone(), content.clone())));
        Ok(())
    }

    fn map(&self, path: &Path, words: usize) -> io::Result<Map> {
        let mut names = self.0.lock();
        let words = names
            .maps
            .entry(path.to_owned())
            .or_insert_with(|| std::iter::repeat_with(AtomicU64::default).take(words).collect());
        Ok(Map::of(words.clone()))
    }

    fn boot(&self) -> u64 {
        self.1
    }
}

impl File for MemoryFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let bytes = self.0.lock();
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.now.len());
        let count = buf.len().min(bytes.now.len() - from);
        buf[..count].copy_from_slice(&bytes.now[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        let mut bytes = self.0.lock();
        let from = usize::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = from + buf.len();
        if bytes.now.len() < end {
            bytes.now.resize(end, 0);
        }
        bytes.now[from..end].copy_from_slice(buf);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().now.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.0.lock().now.resize(len, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut bytes = self.0.lock();
        bytes.synced = bytes.now.clone();
        Ok(())
    }

    fn is_direct(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_loss_keeps_what_was_synced_and_anything_of_the_rest() {
        let disk = Memory::new();
        let path = Path::new("dir/file");
        let file = disk.open(path, false).expect("opens");
        file.write_at(&[1; 1000], 0).expect("writes");
        file.sync().expect("syncs");
        disk.sync_dir(Path::new("dir")).expect("syncs");
        file.write_at(&[2; 2000], 1000).expect("writes");
        assert_eq!(disk.after_kill().read(path).map(|bytes| bytes.len()), Some(3000));
        let mut random = 1;
        let mut lengths = BTreeSet::new();
        for _ in 0..50 {
            let left = disk.after_power_loss(|| {
                random = crate::tier::shelf::next_random(random);
                random
            });
            let left = left.read(path).expect("its name was synced");
            assert!(left[..1000] == [1; 1000] && left.len() <= 3000);
            assert!(left[1000..].iter().all(|byte| [0, 2].contains(byte)));
            lengths.insert(left.len());
        }
        assert!(lengths.len() > 10);
    }
}
