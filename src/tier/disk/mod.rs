//! Files on disk, behind a trait: what L3 and all that must survive a crash is written to.
//!
//! [`real`] is the system's; [`memory`] is none, but knows what a power loss would leave of it; [`faulty`]
//! stands before another one and does what broken disks do. Reads
//! and writes name their place, so that any number of threads may use a file at once.

pub mod buffer;
pub mod faulty;
pub mod map;
pub mod memory;
pub mod real;
pub mod ring;

use std::{ffi::OsString, io, os::fd::BorrowedFd, path::Path, sync::Arc};

use map::Map;

/// The alignment that direct reads and writes need, of place, length and memory alike: what every
/// device and file system that we know of is content with.
pub const PAGE: usize = 4096;

/// Where files are opened.
///
/// Only [`Disk::open`] is asked of all; whoever keeps a directory of files needs the rest.
pub trait Disk: Send + Sync {
    /// Opens a file to read and write, made if it isn't there. `direct` asks to pass the system's page
    /// cache by; where the file system can't, the file is opened without.
    fn open(&self, path: &Path, direct: bool) -> io::Result<Arc<dyn File>>;
    /// Makes a directory, and those above it, if it isn't there.
    fn make_dir(&self, _dir: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The names in a directory, in any order.
    fn list(&self, _dir: &Path) -> io::Result<Vec<OsString>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Takes a file's name away; who has it open still reads it.
    fn remove(&self, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Brings the names in a directory, those that are new and those that are gone, onto the device.
    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Maps so many words of a file, made if it isn't there: what is stored there outlives the process. A power
    /// loss may leave any of it, in any state.
    fn map(&self, _path: &Path, _words: usize) -> io::Result<Map> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// A number that changes where what was never synced may be lost: at each start of the machine. 0: it
    /// can't be known.
    fn boot(&self) -> u64 {
        0
    }
}

/// An open file.
///
/// Duties: a write that returned `Ok` is what later reads see, also those of another process after
/// this one was killed; after [`File::sync`] also after a power loss. A failed write may have written
/// any part. Callers that asked for a direct file keep to [`PAGE`] in place, length and memory, whatever they
/// were given.
pub trait File: Send + Sync {
    /// Fills `buf` from the byte `at` on; returns less than its length at the file's end only.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all of `buf` from the byte `at` on.
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()>;
    /// How long the file is.
    fn size(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Makes the file this long and, if the file system can, takes the room for it now.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes the file this long; room is taken when it is written.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Brings what was written onto the device.
    fn sync(&self) -> io::Result<()>;
    /// Whether reads and writes pass the page cache by.
    fn is_direct(&self) -> bool;
    /// What the system knows it by, if it may be read by way of a [`ring`].
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
