//! The system's files.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    sync::Arc,
};

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::{Disk, File, map::Map};

/// The system's file system.
pub struct Real;

struct Open {
    file: fs::File,
    direct: bool,
}

impl Disk for Real {
    fn open(&self, path: &Path, direct: bool) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        if direct {
            let flag = OFlags::DIRECT.bits() as i32;
            match options.clone().custom_flags(flag).open(path) {
                Ok(file) => return Ok(Arc::new(Open { file, direct: true })),
                // The file system has no direct I/O.
                Err(why) if why.kind() == io::ErrorKind::InvalidInput => {}
                Err(why) => return Err(why),
            }
        }
        Ok(Arc::new(Open { file: options.open(path)?, direct: false }))
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        dir.parent().filter(|above| !above.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_dir(dir)
    }

    fn map(&self, path: &Path, words: usize) -> io::Result<Map> {
        Map::open(path, words)
    }

    fn boot(&self) -> u64 {
        let [first, second] = boot_id();
        first ^ second
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// The id of this boot of the machine; 0 if it isn't known.
pub fn boot_id() -> [u64; 2] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).unwrap_or(0);
    [id as u64, (id >> 64) as u64]
}

impl File for Open {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read_at(&mut buf[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(buf, at)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        match fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{PAGE, buffer::Buffer},
        *,
    };

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        for direct in [false, true] {
            let path = dir.path().join(format!("{direct}"));
            let file = Real.open(&path, direct).expect("opens");
            file.allocate(8 * PAGE as u64).expect("room");
            let mut buffer = Buffer::zeroed(2 * PAGE);
            buffer.fill(7);
            file.write_at(&buffer, PAGE as u64).expect("writes");
            file.sync().expect("syncs");
            buffer.fill(0);
            assert_eq!(file.read_at(&mut buffer, 2 * PAGE as u64).expect("reads"), 2 * PAGE);
            assert!(buffer[..PAGE].iter().all(|byte| *byte == 7) && buffer[PAGE..] == [0; PAGE]);
            assert_eq!(file.read_at(&mut buffer, 7 * PAGE as u64).expect("the end"), PAGE);
        }
    }
}
