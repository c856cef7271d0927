//! Reads of files that the kernel carries out while we go on: io_uring (Axboe, "Efficient IO with
//! io_uring", 2019).
//!
//! One thread has a ring, begins reads and waits for whichever ends first; others wake it by its
//! [`Bell`]. All that is begun between two waits goes to the kernel in one system call, which is what
//! makes it cheaper than threads that read: the device is told once, and nobody is woken for each.

#![allow(unsafe_code, reason = "the kernel writes into buffers that the ring owns")]

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use io_uring::{IoUring, opcode, types::Fd};
use rustix::{
    event::{EventfdFlags, PollFlags, eventfd},
    io::Errno,
};
use slab::Slab;

use super::{File, buffer::Buffer};

/// What the bell's completion is marked with; reads are marked by their place.
const BELL: u64 = u64::MAX;

/// A ring of reads, for the thread that made it.
pub struct Ring {
    ring: IoUring,
    bell: Bell,
    /// Whether the ring listens to its bell.
    listens: bool,
    reads: Slab<Read>,
}

/// Wakes the thread that waits for a ring.
#[derive(Clone)]
pub struct Bell(Arc<OwnedFd>);

/// A read under way.
struct Read {
    file: Arc<dyn File>,
    buffer: Buffer,
    at: u64,
    len: usize,
    filled: usize,
    token: usize,
}

/// A read that has ended.
pub struct Ended {
    /// What it was begun with.
    pub token: usize,
    /// See [`Ended::token`].
    pub buffer: Buffer,
    /// How many bytes it has filled: fewer than asked for at the file's end only.
    pub read: io::Result<usize>,
}

impl Bell {
    /// A bell that nobody listens to yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Ends the present wait, or the next one.
    pub fn ring(&self) {
        // Full is as good: it rings.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn silence(&self) {
        // Nothing to read is silence.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl Ring {
    /// A ring for so many reads at once. Fails where the kernel has none, or forbids it.
    pub fn new(reads: u32, bell: Bell) -> io::Result<Self> {
        let entries = (reads + 1).next_power_of_two();
        // What has ended is looked at only when we wait: nothing interrupts us between. Before Linux 6.1
        // that can't be had.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        Ok(Self { ring, bell, listens: false, reads: Slab::new() })
    }

    /// Reads under way.
    pub fn under_way(&self) -> usize {
        self.reads.len()
    }

    /// Begins to fill the first `len` bytes of a buffer from the byte `at` on; see [`Ring::wait`].
    ///
    /// # Panics
    /// If the file has no descriptor, or more reads are under way than the ring is for.
    pub fn begin(
        &mut self,
        token: usize,
        file: &Arc<dyn File>,
        buffer: Buffer,
        at: u64,
        len: usize,
    ) {
        assert!(len <= buffer.len() && u32::try_from(len).is_ok(), "the buffer is long enough");
        let read = Read { file: file.clone(), buffer, at, len, filled: 0, token };
        let place = self.reads.insert(read);
        self.push(place);
    }

    fn push(&mut self, place: usize) {
        let read = &mut self.reads[place];
        let rest = &mut read.buffer[read.filled..read.len];
        let file = read.file.descriptor().expect("a file of the system");
        let entry = opcode::Read::new(Fd(file.as_raw_fd()), rest.as_mut_ptr(), rest.len() as u32)
            .offset(read.at + read.filled as u64)
            .build()
            .user_data(place as u64);
        // SAFETY: the descriptor stays open and the buffer's memory allocated, and nobody else has the
        // buffer, until the read's completion takes both out of `reads`; dropping the ring waits for
        // that, or leaks them. Moving a `Buffer` (when the slab grows) doesn't move its memory.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "there is a place for each read");
    }

    /// Hands over what was begun, waits until a read has ended or the bell rings, and takes what has
    /// ended.
    pub fn wait(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        if !self.listens {
            let entry = opcode::PollAdd::new(
                Fd(self.bell.0.as_fd().as_raw_fd()),
                u32::from(PollFlags::IN.bits()),
            )
            .build()
            .user_data(BELL);
            // SAFETY: it names no memory, and the bell's descriptor is open as long as the ring is.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            assert!(pushed.is_ok(), "there is a place for the bell");
            self.listens = true;
        }
        if let Err(why) = self.ring.submit_and_wait(1) {
            // A signal came, or what has ended has to be taken first.
            let passes = [Errno::INTR, Errno::BUSY, Errno::AGAIN].map(Some);
            if !passes.contains(&Errno::from_io_error(&why)) {
                return Err(why);
            }
        }
        self.take(ended);
        Ok(())
    }

    fn take(&mut self, ended: &mut Vec<Ended>) {
        loop {
            let completion = self.ring.completion().next();
            let Some(completion) = completion else { return };
            match completion.user_data() {
                BELL => {
                    self.listens = false;
                    self.bell.silence();
                }
                place => ended.extend(self.end(place as usize, completion.result())),
            }
        }
    }

    /// Takes what the kernel says of a read; one that isn't done goes on.
    fn end(&mut self, place: usize, result: i32) -> Option<Ended> {
        let read = &mut self.reads[place];
        let result = match usize::try_from(result) {
            Ok(count) => {
                read.filled += count;
                (count == 0 || read.filled == read.len).then_some(Ok(read.filled))
            }
            Err(_) => match Errno::from_raw_os_error(-result) {
                Errno::INTR | Errno::AGAIN => None,
                why => Some(Err(why.into())),
            },
        };
        let Some(result) = result else {
            self.push(place);
            return None;
        };
        let Read { buffer, token, .. } = self.reads.remove(place);
        Some(Ended { token, buffer, read: result })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while !self.reads.is_empty() {
            if self.wait(&mut ended).is_err() {
                // The kernel may still write into them.
                mem::forget(mem::take(&mut self.reads));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Disk, PAGE, real::Real},
        *,
    };

    fn ring(reads: u32) -> Option<(Ring, Bell)> {
        let bell = Bell::new().expect("a bell");
        match Ring::new(reads, bell.clone()) {
            Ok(ring) => Some((ring, bell)),
            Err(why) => {
                eprintln!("skipped: this kernel gives no io_uring ({why})");
                None
            }
        }
    }

    fn file(pages: u64) -> (tempfile::TempDir, Arc<dyn File>) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = Real.open(&dir.path().join("file"), true).expect("opens");
        let mut buffer = Buffer::zeroed(PAGE);
        for page in 0..pages {
            buffer.fill(page as u8);
            file.write_at(&buffer, page * PAGE as u64).expect("writes");
        }
        (dir, file)
    }

    #[test]
    fn reads_end_with_what_is_in_the_file() {
        let Some((mut ring, bell)) = ring(8) else { return };
        let (_dir, file) = file(64);
        let mut ended = Vec::new();
        let mut seen = 0;
        for page in 0..64usize {
            while ring.under_way() == 8 {
                ring.wait(&mut ended).expect("waits");
            }
            ring.begin(page, &file, Buffer::zeroed(PAGE), (page * PAGE) as u64, PAGE);
            bell.ring();
        }
        while seen < 64 {
            for Ended { token, buffer, read } in ended.drain(..) {
                assert_eq!(read.expect("reads"), PAGE);
                assert!(buffer.iter().all(|byte| *byte == token as u8), "page {token}");
                seen += 1;
            }
            if seen < 64 {
                ring.wait(&mut ended).expect("waits");
            }
        }
    }

    #[test]
    fn the_end_of_the_file_and_errors_are_told() {
        let Some((mut ring, _)) = ring(2) else { return };
        let (_dir, file) = file(1);
        ring.begin(7, &file, Buffer::zeroed(2 * PAGE), 0, 2 * PAGE);
        // No file is so long.
        ring.begin(8, &file, Buffer::zeroed(PAGE), u64::MAX - PAGE as u64, PAGE);
        let mut ended = Vec::new();
        while ring.under_way() > 0 {
            ring.wait(&mut ended).expect("waits");
        }
        ended.sort_by_key(|ended| ended.token);
        assert_eq!(*ended[0].read.as_ref().expect("reads"), PAGE);
        assert!(ended[1].read.is_err());
    }

    #[test]
    fn a_bell_ends_the_wait_also_before_it() {
        let Some((mut ring, bell)) = ring(1) else { return };
        let mut ended = Vec::new();
        bell.ring();
        ring.wait(&mut ended).expect("it rang");
        let thread = std::thread::spawn(move || bell.ring());
        ring.wait(&mut ended).expect("it rings");
        thread.join().expect("no panic");
        assert!(ended.is_empty());
    }

    #[test]
    fn a_ring_may_go_with_reads_under_way() {
        let (_dir, file) = file(32);
        for _ in 0..20 {
            let Some((mut ring, _)) = ring(32) else { return };
            for page in 0..32 {
                ring.begin(page, &file, Buffer::zeroed(PAGE), (page * PAGE) as u64, PAGE);
            }
        }
    }
}
