//! The log buffer: effects and acknowledgements on their way to a segment, in mapped memory.
//!
//! What is stored there outlives the process without a system call. So an effect that needn't outlive a power
//! loss is durable as soon as it is here, and goes to its segment with many others, in the order in which they
//! came. It is a ring of 64-bit words; positions count words and only grow.
//!
//! ```text
//! word 0         1             2      3       4     5..8   8
//!  +-----------+-------------+------+-------+-----+------+--------+--------+-----
//!  | LARDERLB  | format: 1   | boot | start | end | 0    | record | record | ...
//!  | magic     |             |      |       |     |      |        |        |
//!  +-----------+-------------+------+-------+-----+------+--------+--------+-----
//!
//! record: the head that it has in a segment (8 words), without checksums | key | value,
//!         key and value each filled up to whole words
//! ```
//!
//! A record is here from when `end` is behind it, which is stored last; and no more from when `start` is,
//! which is stored when the system has it in a segment. A kill may fall between: who reads tells by the
//! sequence number what is in both. Memory that outlives a process is as the process left it, so there is
//! nothing to check; after a power loss, which `boot` tells, there is nothing to read.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use super::format::{Defect, HEAD, Head, Kind};
use crate::tier::disk::{Disk, map::Map};

const MAGIC: u64 = u64::from_le_bytes(*b"LARDERLB");
const FORMAT: u64 = 1;
/// Words before the records.
const RECORDS: usize = 8;
const WORD: usize = size_of::<u64>();
/// Words of a record's head.
const HEAD_WORDS: u64 = (HEAD / WORD) as u64;

const BOOT: usize = 2;
const START: usize = 3;
const END: usize = 4;

/// Records that aren't in a segment yet. One puts them in and another one takes them out, at the same time
/// if they like.
pub(super) struct LogBuffer {
    map: Map,
    mask: u64,
    lasts: bool,
}

/// The effects that a start finds and no segment has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// The sequence number behind the last; 0: there is none.
    pub next: u64,
    /// The highest version.
    pub version: u64,
    /// How many they are, and their bytes in a segment.
    pub count: u64,
    pub bytes: u64,
}

/// The name of the log buffer.
pub(super) fn path_of(dir: &Path) -> PathBuf {
    dir.join("log-buffer")
}

/// The words that so many bytes take.
fn words(bytes: u32) -> u64 {
    u64::from(bytes).div_ceil(WORD as u64)
}

/// The words of a record.
fn words_of(head: &Head) -> u64 {
    HEAD_WORDS + words(head.key_len) + words(head.value_len)
}

impl LogBuffer {
    /// Maps a buffer for this many bytes of records, a power of two. What an earlier start of the machine left
    /// in it is gone.
    pub fn open(disk: &dyn Disk, path: &Path, bytes: usize) -> io::Result<Self> {
        let ring = (bytes / WORD).next_power_of_two();
        let map = disk.map(path, RECORDS + ring)?;
        let boot = disk.boot();
        // Where nobody knows whether the machine was started since, nobody knows what it is.
        let buffer = Self { map, mask: ring as u64 - 1, lasts: boot != 0 };
        match (buffer.head(0).load(Relaxed), buffer.head(1).load(Relaxed)) {
            (0, _) | (MAGIC, FORMAT) => {}
            (MAGIC, format) => {
                let text =
                    format!("format {format} of the log buffer, this program knows {FORMAT}");
                return Err(io::Error::other(text));
            }
            _ => return Err(io::Error::other("it is no log buffer")),
        }
        if !buffer.lasts
            || buffer.head(0).load(Relaxed) == 0
            || buffer.head(BOOT).load(Relaxed) != boot
        {
            // As one that is used no more until all of it is set.
            buffer.head(BOOT).store(0, Release);
            buffer.head(START).store(0, Release);
            buffer.head(END).store(0, Release);
            buffer.head(1).store(FORMAT, Release);
            buffer.head(0).store(MAGIC, Release);
            buffer.head(BOOT).store(boot, Release);
        }
        Ok(buffer)
    }

    /// Whether what is put in outlives the process.
    pub fn lasts(&self) -> bool {
        self.lasts
    }

    #[inline]
    fn head(&self, at: usize) -> &AtomicU64 {
        &self.map.words()[at]
    }

    #[inline]
    fn ring(&self) -> &[AtomicU64] {
        &self.map.words()[RECORDS..]
    }

    /// Where the first record stands.
    pub fn start(&self) -> u64 {
        self.head(START).load(Acquire)
    }

    /// Where the next record will stand.
    pub fn end(&self) -> u64 {
        self.head(END).load(Acquire)
    }

    /// Bytes that are taken.
    pub fn len(&self) -> u64 {
        (self.end() - self.start()) * WORD as u64
    }

    /// Puts a record behind the others, if there is room. One at a time.
    pub fn put(&self, head: &Head, key: &[u8], value: &[u8]) -> bool {
        let (end, needs) = (self.end(), words_of(head));
        if needs > self.mask + 1 - (end - self.start()) {
            return false;
        }
        self.store(end, &head.plain());
        self.store(end + HEAD_WORDS, key);
        self.store(end + HEAD_WORDS + words(head.key_len), value);
        self.head(END).store(end + needs, Release);
        true
    }

    fn store(&self, mut at: u64, bytes: &[u8]) {
        let ring = self.ring();
        let (whole, rest) = bytes.as_chunks::<WORD>();
        for chunk in whole {
            ring[(at & self.mask) as usize].store(u64::from_ne_bytes(*chunk), Relaxed);
            at += 1;
        }
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            ring[(at & self.mask) as usize].store(u64::from_ne_bytes(last), Relaxed);
        }
    }

    /// The head of the record at a place between start and end, and the places of its key and value.
    pub fn read(&self, at: u64) -> Result<(Head, Range<u64>), Defect> {
        let mut bytes = [0; HEAD];
        for (chunk, at) in bytes.as_chunks_mut::<WORD>().0.iter_mut().zip(at..) {
            *chunk = self.ring()[(at & self.mask) as usize].load(Relaxed).to_ne_bytes();
        }
        let head = Head::read(&bytes)?;
        Ok((head, at + HEAD_WORDS..at + words_of(&head)))
    }

    /// Adds the key and value of a record to these bytes.
    pub fn read_body(&self, head: &Head, at: u64, out: &mut Vec<u8>) {
        self.load(at, head.key_len, out);
        self.load(at + words(head.key_len), head.value_len, out);
    }

    fn load(&self, at: u64, len: u32, out: &mut Vec<u8>) {
        let end = out.len() + len as usize;
        for at in at..at + words(len) {
            let word = self.ring()[(at & self.mask) as usize].load(Relaxed);
            out.extend_from_slice(&word.to_ne_bytes());
        }
        out.truncate(end);
    }

    /// The system has what stands before this place in a segment.
    pub fn free(&self, until: u64) {
        self.head(START).store(until, Release);
    }

    /// Looks at what was left behind the effects that segments have.
    pub fn left(&self, next: u64) -> Result<Left, Defect> {
        let (mut at, end) = (self.start(), self.end());
        if end.checked_sub(at).is_none_or(|len| len > self.mask + 1) {
            return Err(Defect::Malformed);
        }
        let (mut left, mut last) = (Left::default(), None);
        while at < end {
            let (head, body) = self.read(at)?;
            let follows = match head.kind {
                Kind::Put | Kind::Delete => last.is_none_or(|last| head.sequence == last + 1),
                Kind::Acknowledged => true,
                Kind::Mark => false,
            };
            if !follows || body.end > end {
                return Err(Defect::Malformed);
            }
            at = body.end;
            if head.kind == Kind::Acknowledged {
                continue;
            }
            last = Some(head.sequence);
            if head.sequence < next {
                continue;
            }
            if left.count == 0 && head.sequence > next {
                return Err(Defect::Gap);
            }
            left = Left {
                next: head.sequence + 1,
                version: left.version.max(head.version),
                count: left.count + 1,
                bytes: left.bytes + HEAD as u64 + head.body_len(),
            };
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::disk::memory::Memory;

    fn open(disk: &Memory) -> LogBuffer {
        LogBuffer::open(disk, &path_of(Path::new("journal")), 1024).expect("opens")
    }

    fn head(sequence: u64, key: &[u8], value: &[u8]) -> Head {
        let (key_len, version) = (key.len() as u32, 100 + sequence);
        Head { sequence, version, key_len, ..Head::bare(Kind::Put, value.len() as u32) }
    }

    #[test]
    fn records_go_round_and_come_out_as_they_went_in() {
        let disk = Memory::new();
        let buffer = open(&disk);
        assert!(buffer.lasts());
        let (mut put, mut taken) = (1, 1);
        for round in 0..1000_u64 {
            let body = |sequence: u64| {
                let byte = sequence as u8;
                (vec![byte; (sequence % 41) as usize], vec![!byte; (sequence % 301) as usize])
            };
            let (key, value) = body(put);
            if buffer.put(&head(put, &key, &value), &key, &value) {
                put += 1;
            } else {
                assert!(buffer.len() > 512);
            }
            if round % 3 == 0 || buffer.len() > 900 {
                let (read, place) = buffer.read(buffer.start()).expect("a record");
                let (key, value) = body(taken);
                assert_eq!(read, head(taken, &key, &value));
                let mut bytes = vec![7];
                buffer.read_body(&read, place.start, &mut bytes);
                assert_eq!(bytes, [&[7][..], &key, &value].concat());
                buffer.free(place.end);
                taken += 1;
            }
        }
        assert!(taken > 300);
    }

    #[test]
    fn what_a_kill_leaves_is_there_and_what_a_power_loss_leaves_is_not() {
        let disk = Memory::new();
        let buffer = open(&disk);
        for sequence in 5..9 {
            assert!(buffer.put(&head(sequence, b"key", b"value"), b"key", b"value"));
        }
        let killed = open(&disk.after_kill());
        let left = Left { next: 9, version: 108, count: 2, bytes: 2 * (64 + 8) };
        assert_eq!(killed.left(7), Ok(left));
        assert_eq!(killed.left(9), Ok(Left::default()));
        assert_eq!(killed.left(4), Err(Defect::Gap));
        for seed in 0..20 {
            let mut random = (0..).map(|sector| seed >> (sector % 5) & 1);
            let lost = open(&disk.after_power_loss(|| random.next().unwrap_or(0)));
            assert_eq!((lost.left(7), lost.len()), (Ok(Left::default()), 0));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let disk = Memory::new();
        let buffer = open(&disk);
        assert!(buffer.put(&head(5, b"key", b"value"), b"key", b"value"));
        buffer.head(END).store(9, Relaxed);
        assert_eq!(open(&disk).left(5), Err(Defect::Malformed));
        buffer.head(END).store(1 << 40, Relaxed);
        assert_eq!(open(&disk).left(5), Err(Defect::Malformed));
        buffer.head(START).store(1 << 41, Relaxed);
        assert_eq!(open(&disk).left(5), Err(Defect::Malformed));
        let path = path_of(Path::new("journal"));
        buffer.head(1).store(2, Relaxed);
        assert!(LogBuffer::open(&disk, &path, 1024).is_err());
        buffer.head(0).store(2, Relaxed);
        assert!(LogBuffer::open(&disk, &path, 1024).is_err());
    }
}
