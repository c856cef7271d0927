//! The log buffer: effects and acknowledgements on their way to a segment, in mapped memory.
//!
//! What is stored there outlives the process without a system call. So an effect that needn't outlive a power
//! loss is durable as soon as it is here, and goes to its segment with many others, in the order in which they
//! came. It is a ring of 64-bit words; positions count words and only grow.
//!
//! ```text
//! word 0         1        2      3       4     5      6          7   8
//!  +-----------+--------+------+-------+-----+------+----------+---+--------+--------+-----
//!  | LARDERLB  | format | boot | start | end | salt | words of | 0 | record | record | ...
//!  | magic     | : 1    |      |       |     |      | the ring |   |        |        |
//!  +-----------+--------+------+-------+-----+------+----------+---+--------+--------+-----
//!
//! record: as in a segment, but key and value are each filled up to whole words
//! ```
//!
//! A record is here from when `end` is behind it, which is stored last; and no more from when `start` is,
//! which is stored when the system has it in a segment. A kill may fall between: who reads tells by the
//! sequence number what is in both. What a process leaves is whole. A start of the machine, which `boot`
//! tells, leaves it whole if it was an orderly one, and in pieces after a power loss: then checksums tell how far
//! it can be used.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use super::format::{Defect, HEAD, Head, Kind, MAX_NUMBER, Salted};
use crate::tier::{
    disk::{Disk, PAGE, map::Map},
    log::random,
};

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
const SALT: usize = 5;
const RING: usize = 6;

/// Records that aren't in a segment yet. One puts them in and another one takes them out, at the same time
/// if they like.
pub(super) struct LogBuffer {
    map: Map,
    mask: u64,
    boot: u64,
    /// What is put in outlives the process.
    lasts: bool,
    /// What checksums of what was found begin with.
    former: Salted,
    /// The same of what is put in.
    salt: u64,
    salted: Salted,
    /// The machine wasn't started since what was found was written.
    is_of_boot: bool,
    /// There was none.
    is_new: bool,
    /// Why nothing can be read of it.
    defect: Option<&'static str>,
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
    /// What makes no sense behind them: from which byte of the file on, how many bytes, and why.
    pub cut: Option<(u64, u64, Defect)>,
    /// Where it begins, if it is known where records are.
    until: Option<u64>,
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

/// Bytes into the first of these words; the last is filled up.
fn store(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<WORD>();
    for (word, chunk) in words.iter().zip(whole) {
        word.store(u64::from_ne_bytes(*chunk), Relaxed);
    }
    if let Some(word) = words.get(whole.len()).filter(|_| !rest.is_empty()) {
        let mut last = [0; WORD];
        last[..rest.len()].copy_from_slice(rest);
        word.store(u64::from_ne_bytes(last), Relaxed);
    }
}

/// The first of these words, as whole ones.
fn load(words: &[AtomicU64], out: &mut [u8]) {
    for (chunk, word) in out.as_chunks_mut::<WORD>().0.iter_mut().zip(words) {
        *chunk = word.load(Relaxed).to_ne_bytes();
    }
}

/// Whether a file system can't map files, or not for one process alone.
fn is_unsupported(why: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::NODEV, Errno::OPNOTSUPP, Errno::NOLCK, Errno::NOSYS];
    why.kind() == io::ErrorKind::Unsupported
        || codes.iter().any(|code| why.raw_os_error() == Some(code.raw_os_error()))
}

impl LogBuffer {
    /// Maps a buffer for this many bytes of records, a power of two. Nothing may be put in before
    /// [`LogBuffer::begin`].
    pub fn open(disk: &dyn Disk, path: &Path, bytes: usize) -> io::Result<Self> {
        let ring = (bytes / WORD).next_power_of_two();
        let (map, can_last) = match disk.map(path, RECORDS + ring) {
            Err(why) if is_unsupported(&why) => {
                tracing::warn!(
                    "journal: {} can't be mapped, so replies wait until changes are written: {why}",
                    path.display()
                );
                let words = std::iter::repeat_with(AtomicU64::default).take(RECORDS + ring);
                (Map::of(words.collect()), false)
            }
            map => (map?, true),
        };
        let (boot, salt) = (disk.boot(), random());
        let mut buffer = Self {
            map,
            mask: ring as u64 - 1,
            boot,
            // Where nobody knows whether the machine was started since, nobody knows what is whole.
            lasts: can_last && boot != 0,
            former: Salted::new(0),
            salt,
            salted: Salted::new(salt),
            is_of_boot: false,
            is_new: false,
            defect: None,
        };
        let word = |at: usize| buffer.head(at).load(Relaxed);
        let [magic, format, words] = [0, 1, RING].map(word);
        let (is_empty, former, was) = (word(START) == word(END), word(SALT), word(BOOT));
        match (magic, format) {
            (0, _) => {
                buffer.is_new = true;
                buffer.clear();
            }
            (MAGIC, FORMAT) if words == ring as u64 => {
                buffer.former = Salted::new(former);
                buffer.is_of_boot = boot != 0 && was == boot;
            }
            (MAGIC, FORMAT) if is_empty => buffer.clear(),
            (MAGIC, FORMAT) => buffer.defect = Some("it holds changes, and is of another size"),
            (MAGIC, format) => {
                let text =
                    format!("format {format} of the log buffer, this program knows {FORMAT}");
                return Err(io::Error::other(text));
            }
            _ => buffer.defect = Some("it doesn't begin as a log buffer"),
        }
        Ok(buffer)
    }

    /// Forgets what it has, whatever it is.
    pub fn clear(&self) {
        // As one that nobody knows, until all of it is set.
        self.head(0).store(0, Release);
        self.head(START).store(0, Release);
        self.head(END).store(0, Release);
        self.head(RING).store(self.mask + 1, Release);
        self.head(1).store(FORMAT, Release);
        self.head(0).store(MAGIC, Release);
    }

    /// From now on records are put in. It is empty.
    pub fn begin(&self) {
        self.head(SALT).store(self.salt, Release);
        self.head(BOOT).store(self.boot, Release);
    }

    /// Why nothing can be read of it, if so; then it has to be cleared.
    pub fn defect(&self) -> Option<&'static str> {
        self.defect
    }

    /// Whether it was last used since the machine was started: then it is as it was left.
    pub fn is_of_boot(&self) -> bool {
        self.is_of_boot
    }

    /// Whether there was none.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether what is put in outlives the process.
    pub fn lasts(&self) -> bool {
        self.lasts
    }

    /// The salt of the checksums of what is put in.
    pub fn salt(&self) -> u64 {
        self.salt
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
        // In this order: of what comes and goes meanwhile, some is counted that isn't there any more.
        let start = self.start();
        self.end().saturating_sub(start).min(self.mask + 1) * WORD as u64
    }

    /// The checksum that a record's body has here.
    pub fn sum(&self, key: &[u8], value: &[u8]) -> u32 {
        let mut sum = self.salted.begin();
        sum.update(key);
        sum.update(value);
        sum.finalize()
    }

    /// Whether there would be room for a record, were it the only one.
    pub fn may_hold(&self, head: &Head) -> bool {
        words_of(head) <= self.mask + 1
    }

    /// Whether there is room for a record.
    pub fn has_room(&self, head: &Head) -> bool {
        words_of(head) <= self.mask + 1 - (self.end() - self.start())
    }

    /// Puts a record, of whose body this is the checksum, behind the others, if there is room. One at a time.
    pub fn put(&self, head: &Head, sum: u32, key: &[u8], value: &[u8]) -> bool {
        if !self.has_room(head) {
            return false;
        }
        let (end, needs) = (self.end(), words_of(head));
        let (encoded, key_words) = (head.encode(&self.salted, sum), words(head.key_len));
        let (near, _) = self.from(end);
        if let Some((place, _)) = near.split_at_checked(needs as usize) {
            let (head_place, place) = place.split_at(HEAD_WORDS as usize);
            let (key_place, value_place) = place.split_at(key_words as usize);
            store(head_place, &encoded);
            store(key_place, key);
            store(value_place, value);
        } else {
            // It goes over the ring's end.
            self.store(end, &encoded);
            self.store(end + HEAD_WORDS, key);
            self.store(end + HEAD_WORDS + key_words, value);
        }
        self.head(END).store(end + needs, Release);
        true
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        let (near, far) = self.from(at);
        let (first, rest) = bytes.split_at(bytes.len().min(near.len() * WORD));
        store(near, first);
        store(far, rest);
    }

    /// The ring from a place to its end, and what comes then.
    fn from(&self, at: u64) -> (&[AtomicU64], &[AtomicU64]) {
        let ring = self.ring();
        (&ring[(at & self.mask) as usize..], ring)
    }

    /// The head of the record at a place between start and end, and the places of its key and value.
    pub fn read(&self, at: u64) -> Result<(Head, Range<u64>), Defect> {
        let mut bytes = [0; HEAD];
        self.load(at, &mut bytes);
        let head = Head::read(&bytes)?;
        Ok((head, at + HEAD_WORDS..at + words_of(&head)))
    }

    /// Adds the key and value of a record to these bytes.
    pub fn read_body(&self, head: &Head, at: u64, out: &mut Vec<u8>) {
        self.add(at, head.key_len, out);
        self.add(at + words(head.key_len), head.value_len, out);
    }

    /// Adds a record that was put in since it was begun, as a segment with its salt has it.
    pub fn read_whole(&self, head: &Head, body: u64, out: &mut Vec<u8>) {
        self.add(body - HEAD_WORDS, HEAD as u32, out);
        self.read_body(head, body, out);
    }

    fn add(&self, at: u64, len: u32, out: &mut Vec<u8>) {
        let from = out.len();
        out.resize(from + words(len) as usize * WORD, 0);
        self.load(at, &mut out[from..]);
        out.truncate(from + len as usize);
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        let (near, far) = self.from(at);
        let (first, rest) = out.split_at_mut(out.len().min(near.len() * WORD));
        load(near, first);
        load(far, rest);
    }

    /// The system has what stands before this place in a segment.
    pub fn free(&self, until: u64) {
        self.head(START).store(until, Release);
    }

    /// Has the pages at hand where the next records come to stand: the system takes them back now and then to
    /// write them, and who stores there then waits for it.
    pub fn prepare(&self, bytes: u64) {
        let end = self.end();
        for at in (end..end + bytes / WORD as u64).step_by(PAGE / WORD) {
            self.ring()[(at & self.mask) as usize].fetch_or(0, Relaxed);
        }
    }

    /// The sequence number of the first effect that was left, if all up to it is whole.
    pub fn first(&self) -> Option<u64> {
        let (mut at, end) = (self.start(), self.end());
        if end.checked_sub(at)? > self.mask + 1 {
            return None;
        }
        while at < end {
            let head = self.record(at, end, u64::MAX, None).ok()?;
            if head.kind != Kind::Acknowledged {
                return Some(head.sequence);
            }
            at += words_of(&head);
        }
        None
    }

    /// Looks at what was left behind the effects that segments have, up to the first defect.
    pub fn left(&self, next: u64) -> Left {
        let (mut at, end) = (self.start(), self.end());
        let mut left = Left::default();
        if end < at || end - at > self.mask + 1 || end > MAX_NUMBER {
            return Left { cut: Some((0, self.bytes(self.mask + 1), Defect::Malformed)), ..left };
        }
        let mut last = None;
        while at < end {
            match self.record(at, end, next, last) {
                Ok(head) => {
                    at += words_of(&head);
                    if head.kind != Kind::Acknowledged {
                        last = Some(head.sequence);
                        left.note(&head, next);
                    }
                }
                Err(defect) => {
                    let place = self.bytes(RECORDS as u64 + (at & self.mask));
                    left.cut = Some((place, self.bytes(end - at), defect));
                    break;
                }
            }
        }
        Left { until: Some(at), ..left }
    }

    /// Cuts off what makes no sense behind what was left.
    pub fn cut_off(&self, left: &Left) {
        match left.until {
            Some(until) => self.head(END).store(until, Release),
            None => self.clear(),
        }
    }

    fn bytes(&self, words: u64) -> u64 {
        words * WORD as u64
    }

    /// Checks the record at a place, where the effect `last` is before it.
    fn record(&self, at: u64, end: u64, next: u64, last: Option<u64>) -> Result<Head, Defect> {
        let mut bytes = [0; HEAD];
        self.load(at, &mut bytes);
        let (head, sum) = Head::decode(&bytes, &self.former)?;
        if at + words_of(&head) > end {
            return Err(Defect::Short);
        }
        let mut body = Vec::new();
        self.read_body(&head, at + HEAD_WORDS, &mut body);
        if self.former.sum(&body) != sum {
            return Err(Defect::Body);
        }
        match (head.kind, last) {
            (Kind::Acknowledged, _) => Ok(head),
            (Kind::Mark, _) => Err(Defect::Malformed),
            (_, Some(last)) if head.sequence != last + 1 => Err(Defect::Malformed),
            (_, None) if head.sequence > next => Err(Defect::Gap),
            _ => Ok(head),
        }
    }
}

impl Left {
    fn note(&mut self, head: &Head, next: u64) {
        if head.sequence >= next {
            self.next = head.sequence + 1;
            self.version = self.version.max(head.version);
            self.count += 1;
            self.bytes += head.record_len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::disk::memory::Memory;

    fn open(disk: &Memory) -> LogBuffer {
        LogBuffer::open(disk, &path_of(Path::new("journal")), 1024).expect("opens")
    }

    fn put(buffer: &LogBuffer, head: &Head, key: &[u8], value: &[u8]) -> bool {
        buffer.put(head, buffer.sum(key, value), key, value)
    }

    fn head(sequence: u64, key: &[u8], value: &[u8]) -> Head {
        let (key_len, version) = (key.len() as u32, 100 + sequence);
        Head { sequence, version, key_len, ..Head::bare(Kind::Put, value.len() as u32) }
    }

    #[test]
    fn records_go_round_and_come_out_as_they_went_in() {
        let disk = Memory::new();
        let buffer = open(&disk);
        assert!(buffer.lasts() && buffer.is_new());
        buffer.begin();
        let (mut next, mut taken) = (1, 1);
        for round in 0..1000_u64 {
            let body = |sequence: u64| {
                let byte = sequence as u8;
                (vec![byte; (sequence % 41) as usize], vec![!byte; (sequence % 301) as usize])
            };
            let (key, value) = body(next);
            if put(&buffer, &head(next, &key, &value), &key, &value) {
                next += 1;
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
                bytes.clear();
                buffer.read_whole(&read, place.start, &mut bytes);
                let salted = Salted::new(buffer.salt());
                let sum = salted.sum(&bytes[HEAD..]);
                assert_eq!(bytes[..HEAD], read.encode(&salted, sum));
                buffer.free(place.end);
                taken += 1;
            }
        }
        assert!(taken > 300);
    }

    /// One with the effects 5 to 8.
    fn with_four(disk: &Memory) -> LogBuffer {
        let buffer = open(disk);
        buffer.begin();
        for sequence in 5..9 {
            assert!(put(&buffer, &head(sequence, b"key", &[7; 100]), b"key", &[7; 100]));
        }
        buffer
    }

    #[test]
    fn what_a_kill_leaves_is_there() {
        let disk = Memory::new();
        let _buffer = with_four(&disk);
        let killed = open(&disk.after_kill());
        let left = Left {
            next: 9,
            version: 108,
            count: 2,
            bytes: 2 * (64 + 103),
            cut: None,
            until: Some(4 * 22),
        };
        assert_eq!((killed.left(7), killed.first()), (left, Some(5)));
        assert_eq!(killed.left(9), Left { until: Some(4 * 22), ..Left::default() });
        let gap = open(&disk.after_kill()).left(4);
        assert_eq!((gap.count, gap.cut), (0, Some((64, 4 * 22 * 8, Defect::Gap))));
    }

    #[test]
    fn of_what_a_start_of_the_machine_leaves_the_whole_beginning_is_used() {
        let disk = Memory::new();
        let _buffer = with_four(&disk);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..32 {
            // Sectors by chance, or all of them.
            let mut random =
                (0..).map(|sector| if seed == 31 { 0 } else { seed >> (sector % 5) & 1 });
            let lost = open(&disk.after_power_loss(|| random.next().unwrap_or(0)));
            let left = lost.left(5);
            assert!(left.count == 0 || left.next == 5 + left.count, "{left:?}");
            // What doesn't continue the segments is of no use.
            assert_eq!((lost.left(9).count, lost.left(4).count), (0, 0));
            seen.insert(left.count);
        }
        assert!(seen.contains(&4) && seen.contains(&0) && seen.len() > 2, "{seen:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let disk = Memory::new();
        let buffer = with_four(&disk);
        let is_cut = |at: usize, word: u64, kept: u64, why: Defect| {
            let copy = disk.after_kill();
            let map = copy.map(&path_of(Path::new("journal")), 0).expect("it is there");
            map.words()[at].store(word, Relaxed);
            let opened = open(&copy);
            assert!(opened.len() <= 1024);
            let left = opened.left(5);
            assert_eq!((left.count, left.cut.map(|cut| cut.2)), (kept, Some(why)), "word {at}");
            opened.cut_off(&left);
            let again = opened.left(5);
            assert_eq!((again.count, again.cut), (kept, None), "it is cut off");
        };
        is_cut(END, 12, 0, Defect::Short);
        is_cut(END, 50, 2, Defect::Short);
        is_cut(END, 1 << 40, 0, Defect::Malformed);
        is_cut(END, u64::MAX, 0, Defect::Malformed);
        is_cut(START, 1 << 41, 0, Defect::Malformed);
        is_cut(SALT, 0, 0, Defect::Head);
        is_cut(RECORDS + 8, 0, 0, Defect::Body);
        is_cut(RECORDS + 22 + 2, 1, 1, Defect::Head);
        for (at, word) in [(RING, 64), (0, 2)] {
            let was = buffer.map.words()[at].swap(word, Relaxed);
            assert!(open(&disk).defect().is_some(), "word {at}");
            buffer.map.words()[at].store(was, Relaxed);
        }
        buffer.head(1).store(2, Relaxed);
        assert!(LogBuffer::open(&disk, &path_of(Path::new("journal")), 1024).is_err());
        buffer.head(1).store(FORMAT, Relaxed);
        buffer.free(buffer.end());
        buffer.head(RING).store(64, Relaxed);
        assert!(open(&disk).defect().is_none());
    }
}
