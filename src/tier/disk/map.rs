//! Words in a file that is mapped into memory: what is stored there survives the process, whichever way
//! it ends, without a system call.

#![allow(unsafe_code, reason = "atomic words over mapped memory")]

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    slice,
    sync::{Arc, atomic::AtomicU64},
};

use memmap2::{MmapOptions, MmapRaw};

/// A mapped file of 64-bit words.
pub struct Map(Backing);

enum Backing {
    File {
        map: MmapRaw,
        /// Keeps other processes out while it is open.
        _lock: fs::File,
    },
    /// That of a disk in memory.
    Heap(Arc<[AtomicU64]>),
}

impl Map {
    /// Maps the beginning of a file, made if it isn't there, for this process alone. Its room is taken before
    /// it is mapped: a page for which there is none would end the process.
    pub fn open(path: &Path, words: usize) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        file.try_lock().map_err(|why| match why {
            fs::TryLockError::WouldBlock => io::Error::other("another process uses it"),
            fs::TryLockError::Error(why) => why,
        })?;
        let len = words * 8;
        if file.metadata()?.len() < len as u64 {
            file.set_len(len as u64)?;
        }
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len as u64) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(why) => return Err(why.into()),
        }
        let map = MmapOptions::new().len(len).map_raw(&file)?;
        Ok(Self(Backing::File { map, _lock: file }))
    }

    /// Words that others may have, too.
    pub fn of(words: Arc<[AtomicU64]>) -> Self {
        Self(Backing::Heap(words))
    }

    /// The words.
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        match &self.0 {
            // SAFETY: the mapping is page-aligned, `len` bytes long, lives as long as `self`, and is
            // reached in no other way by this process; the lock keeps others of ours from it.
            Backing::File { map, .. } => unsafe {
                slice::from_raw_parts(map.as_ptr().cast(), map.len() / 8)
            },
            Backing::Heap(words) => words,
        }
    }

    /// Brings the words onto the device.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_part(self.words().len())
    }

    /// Brings some of the words onto the device.
    pub fn sync_part(&self, words: usize) -> io::Result<()> {
        match &self.0 {
            Backing::File { map, .. } => map.flush_range(0, words * 8),
            Backing::Heap(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn words_last_and_nobody_else_has_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("words");
        let map = Map::open(&path, 1000).expect("opens");
        map.words()[999].store(7, Relaxed);
        assert!(Map::open(&path, 1000).is_err());
        drop(map);
        let map = Map::open(&path, 1000).expect("opens again");
        assert_eq!(map.words()[999].load(Relaxed), 7);
        map.sync().expect("syncs");
        map.sync_part(10).expect("syncs");
    }
}
