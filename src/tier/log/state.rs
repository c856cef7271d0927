//! What must be known of the log at the next start, kept in mapped memory so that it survives the
//! process: shape, keyspaces, segments, and for each record whether it is valid.
//!
//! ```text
//!  word   0  magic        1  format        2  segment bytes   3  segments
//!         4  hash seeds, 4 words           8  fingerprint of the hash
//!         9  boot id, 2 words             11  status: 1 in use, 2 closed cleanly
//!        12  which keyspace table counts  13  last keyspace    14  version  15  turns given
//!        16  the run that used it last, and the one before it
//!       512  keyspace table 0, 256 u32   640  keyspace table 1
//!      1024  segments, 2 words each: generation (low half), kind (8 bits) and turn (24); number of
//!              records, or of pages while it is open, (low half) and the unix second at which it was begun
//! ```
//!
//! A bit is set after its record was written, under the lock of the key's stripe and together with the
//! index entry; it is cleared under the same lock before a change of the key is seen. So after kill -9
//! the set bits are exactly what the index had. A power loss may lose either; it shows in the boot id.

use std::{
    cmp::Reverse,
    fs,
    io::{self, Read},
    path::Path,
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

use super::{
    super::disk::{PAGE, map::Map, real::boot_id},
    UNIT,
};

const MAGIC: u64 = u64::from_le_bytes(*b"LARDERL3");
const FORMAT: u64 = 2;
const SEEDS: usize = 4;
const FINGERPRINT: usize = 8;
const BOOT: usize = 9;
const STATUS: usize = 11;
const SELECTOR: usize = 12;
const LAST_KEYSPACE: usize = 13;
const VERSION: usize = 14;
const TURNS: usize = 15;
const RUNS: [usize; 2] = [16, 17];
const TABLES: [usize; 2] = [512, 640];
/// By how much a start raises the version: more than a power loss can take from what is on the device.
const VERSION_STEP: u64 = 1 << 32;
/// Databases that a table has room for.
pub const DATABASES: usize = 256;
const SEGMENTS: usize = 1024;
/// Where the word of a segment has its kind and its turn, and the turns that it can tell apart: as many as
/// there can be segments.
const KIND_SHIFT: u32 = 32;
const TURN_SHIFT: u32 = 40;
const TURN_MASK: u64 = (1 << (u64::BITS - TURN_SHIFT)) - 1;
/// Words before the bitmap that say what the rest is.
const HEAD_WORDS: usize = SEGMENTS;

const IN_USE: u64 = 1;
const CLEAN: u64 = 2;

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Nothing that counts.
    Empty = 0,
    /// Records; more are being written.
    Open = 1,
    /// Records, and their table at the end.
    Sealed = 2,
    /// The beginning of one record that is longer than a segment.
    Long = 3,
    /// A further part of such a record.
    Part = 4,
}

/// The log's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a segment.
    pub segment_bytes: usize,
    /// Segments.
    pub segments: usize,
}

impl Shape {
    /// Units of a segment.
    pub fn units(self) -> u64 {
        (self.segment_bytes / UNIT) as u64
    }

    /// Bytes of the log.
    pub fn bytes(self) -> u64 {
        self.segment_bytes as u64 * self.segments as u64
    }

    fn bitmap(self) -> usize {
        (SEGMENTS + 2 * self.segments).next_multiple_of(PAGE / 8)
    }

    fn words(self) -> usize {
        self.bitmap() + self.segments * self.segment_bytes / UNIT / 64
    }
}

/// What the hash must be for stored hashes to mean anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashing {
    /// The seeds.
    pub seeds: [u64; 4],
    /// The hash of something.
    pub fingerprint: u64,
}

/// The mapped state.
pub struct State {
    map: Map,
    shape: Shape,
}

impl State {
    /// The shape that a log's state says it has, if there is one.
    pub fn shape_of(path: &Path) -> io::Result<Option<Shape>> {
        let mut head = [0; 32];
        match fs::File::open(path) {
            Ok(mut file) => file.read_exact(&mut head)?,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(why),
        }
        let word =
            |at: usize| head[at * 8..][..8].try_into().map_or(0, u64::from_le_bytes) as usize;
        let shape = Shape { segment_bytes: word(2), segments: word(3) };
        let len = fs::metadata(path)?.len();
        let is_sound = word(0) as u64 == MAGIC
            && word(1) as u64 == FORMAT
            && shape.segment_bytes.is_multiple_of(PAGE)
            && (PAGE..=1 << 30).contains(&shape.segment_bytes)
            && (1..=1 << 24).contains(&shape.segments)
            && shape.words() as u64 * 8 <= len;
        Ok(is_sound.then_some(shape))
    }

    /// Maps the state of a log of this shape, whatever it says.
    pub fn open(path: &Path, shape: Shape) -> io::Result<Self> {
        let map = Map::open(path, shape.words())?;
        Ok(Self { map, shape })
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        &self.map.words()[at]
    }

    fn get(&self, at: usize) -> u64 {
        self.word(at).load(Relaxed)
    }

    fn put(&self, at: usize, value: u64) {
        self.word(at).store(value, Relaxed);
    }

    /// Why the state found isn't that of this log; `None` if it is.
    pub fn mismatch(&self) -> Option<&'static str> {
        if self.get(0) == 0 {
            return Some("there is none yet");
        }
        if self.get(0) != MAGIC || self.get(1) != FORMAT {
            return Some("it has another format");
        }
        let shape = (self.shape.segment_bytes as u64, self.shape.segments as u64);
        if (self.get(2), self.get(3)) != shape {
            return Some("it has another size");
        }
        None
    }

    /// Whether it was closed cleanly, or the machine hasn't been started anew since.
    pub fn is_trusted(&self) -> bool {
        let boot = [self.get(BOOT), self.get(BOOT + 1)];
        self.get(STATUS) == CLEAN || boot != [0; 2] && boot == boot_id()
    }

    /// The hashing that the records' hashes come from.
    pub fn hashing(&self) -> Hashing {
        let seeds = [0, 1, 2, 3].map(|at| self.get(SEEDS + at));
        Hashing { seeds, fingerprint: self.get(FINGERPRINT) }
    }

    /// Starts from nothing.
    pub fn format(&self, hashing: &Hashing) {
        for word in &self.map.words()[..self.shape.bitmap()] {
            word.store(0, Relaxed);
        }
        self.clear_bits(0..self.shape.segments);
        self.put(1, FORMAT);
        self.put(2, self.shape.segment_bytes as u64);
        self.put(3, self.shape.segments as u64);
        (0..4).for_each(|at| self.put(SEEDS + at, hashing.seeds[at]));
        self.put(FINGERPRINT, hashing.fingerprint);
        let first: [u32; DATABASES] = std::array::from_fn(|db| db as u32 + 1);
        self.put(LAST_KEYSPACE, DATABASES as u64);
        self.set_keyspaces(&first);
        self.put(0, MAGIC);
    }

    /// Makes all of it useless: whoever finds it starts from nothing.
    pub fn forget(&self) {
        self.word(0).store(0, SeqCst);
    }

    /// Notes, durably, that it is in use: from here on a power loss shows.
    pub fn begin(&self) -> io::Result<()> {
        let boot = boot_id();
        self.put(STATUS, IN_USE);
        self.put(BOOT, boot[0]);
        self.put(BOOT + 1, boot[1]);
        self.map.sync_part(HEAD_WORDS)
    }

    /// Notes, durably, that all of it is on the device.
    pub fn close(&self) -> io::Result<()> {
        self.map.sync()?;
        self.put(STATUS, CLEAN);
        self.map.sync_part(HEAD_WORDS)
    }

    fn keyspaces(&self) -> [u32; DATABASES] {
        let table = TABLES[self.get(SELECTOR) as usize & 1];
        std::array::from_fn(|db| (self.get(table + db / 2) >> (db % 2 * 32)) as u32)
    }

    /// Puts another table in force, at once.
    fn set_keyspaces(&self, keyspaces: &[u32; DATABASES]) {
        let other = self.get(SELECTOR) & 1 ^ 1;
        for (at, pair) in keyspaces.chunks_exact(2).enumerate() {
            let word = u64::from(pair[1]) << 32 | u64::from(pair[0]);
            self.put(TABLES[other as usize] + at, word);
        }
        self.word(SELECTOR).store(other, SeqCst);
    }

    /// The contents that a database has.
    pub fn keyspace(&self, db: usize) -> u32 {
        let table = TABLES[self.get(SELECTOR) as usize & 1];
        (self.get(table + db / 2) >> (db % 2 * 32)) as u32
    }

    /// The database that has these contents, if one has.
    pub fn database(&self, keyspace: u32) -> Option<usize> {
        (0..DATABASES).find(|db| self.keyspace(*db) == keyspace)
    }

    /// Gives databases new contents. Call it while all stripes are held.
    pub fn renew(&self, databases: impl Iterator<Item = usize>) {
        let mut keyspaces = self.keyspaces();
        for db in databases {
            let next = self.get(LAST_KEYSPACE) + 1;
            self.put(LAST_KEYSPACE, next);
            keyspaces[db] = next as u32;
        }
        self.set_keyspaces(&keyspaces);
    }

    /// Gives two databases each other's contents. Call it while all stripes are held.
    pub fn swap(&self, a: usize, b: usize) {
        let mut keyspaces = self.keyspaces();
        keyspaces.swap(a, b);
        self.set_keyspaces(&keyspaces);
    }

    /// Whether the run of the server that used it last was this one, or came after this one and ended before
    /// it served anybody, so that nobody has noted it but us.
    pub fn is_of_run(&self, last: u64) -> bool {
        RUNS.iter().any(|at| self.get(*at) == last)
    }

    /// Notes the run that uses it and the one before.
    pub fn set_runs(&self, this: u64, last: u64) {
        self.put(RUNS[0], this);
        self.put(RUNS[1], last);
    }

    /// Begins a run: returns the highest version of the runs before it. Those to come are higher.
    pub fn begin_versions(&self) -> u64 {
        let former = self.get(VERSION) + VERSION_STEP;
        self.put(VERSION, former);
        former
    }

    /// The next version.
    pub fn next_version(&self) -> u64 {
        self.word(VERSION).fetch_add(1, Relaxed) + 1
    }

    /// Puts a segment behind all others in the order in which they are reclaimed.
    pub fn give_turn(&self, segment: usize) {
        let turn = self.word(TURNS).fetch_add(1, Relaxed) + 1;
        let at = SEGMENTS + 2 * segment;
        let rest = self.get(at) & ((1 << TURN_SHIFT) - 1);
        self.put(at, (turn & TURN_MASK) << TURN_SHIFT | rest);
    }

    /// The segments that aren't empty, in the order in which they are reclaimed.
    pub fn in_turn(&self) -> Vec<usize> {
        let turns = self.get(TURNS);
        let age = |segment: &usize| {
            let turn = self.get(SEGMENTS + 2 * segment) >> TURN_SHIFT;
            Reverse(turns.wrapping_sub(turn) & TURN_MASK)
        };
        let is_used = |segment: &usize| self.segment(*segment).1 != Kind::Empty;
        let mut used: Vec<usize> = (0..self.shape.segments).filter(is_used).collect();
        used.sort_by_cached_key(age);
        used
    }

    /// The segments that hold nothing.
    pub fn empty_segments(&self) -> impl Iterator<Item = usize> {
        (0..self.shape.segments).filter(|segment| self.segment(*segment).1 == Kind::Empty)
    }

    /// A segment's generation and what it holds.
    pub fn segment(&self, segment: usize) -> (u32, Kind) {
        let word = self.get(SEGMENTS + 2 * segment);
        let kind = match word >> KIND_SHIFT & 0xff {
            1 => Kind::Open,
            2 => Kind::Sealed,
            3 => Kind::Long,
            4 => Kind::Part,
            _ => Kind::Empty,
        };
        (word as u32, kind)
    }

    /// Notes what a segment holds.
    pub fn set_segment(&self, segment: usize, generation: u32, kind: Kind) {
        let at = SEGMENTS + 2 * segment;
        let turn = self.get(at) >> TURN_SHIFT << TURN_SHIFT;
        self.put(at, turn | u64::from(kind as u32) << KIND_SHIFT | u64::from(generation));
    }

    /// Records of a sealed segment, valid or not.
    pub fn count(&self, segment: usize) -> usize {
        self.get(SEGMENTS + 2 * segment + 1) as u32 as usize
    }

    /// Notes a sealed segment's records.
    pub fn set_count(&self, segment: usize, count: usize) {
        let begun = self.begun_at(segment);
        self.put(SEGMENTS + 2 * segment + 1, begun << 32 | count as u64);
    }

    /// Bytes of an open segment, from its beginning on, that may have been written.
    pub fn reached(&self, segment: usize) -> u64 {
        (self.count(segment) * PAGE) as u64
    }

    /// Notes that an open segment is about to be written up to here.
    pub fn set_reached(&self, segment: usize, bytes: u64) {
        self.set_count(segment, bytes as usize / PAGE);
    }

    /// When a segment was begun, in unix seconds.
    pub fn begun_at(&self, segment: usize) -> u64 {
        self.get(SEGMENTS + 2 * segment + 1) >> 32
    }

    /// Notes that a segment is begun at this unix second.
    pub fn set_begun(&self, segment: usize, second: u64) {
        self.put(SEGMENTS + 2 * segment + 1, second << 32);
    }

    fn bit(&self, place: u64) -> (&AtomicU64, u64) {
        (self.word(self.shape.bitmap() + (place / 64) as usize), 1 << (place % 64))
    }

    /// Notes that a valid record begins at this unit.
    pub fn set_valid(&self, place: u64) {
        let (word, bit) = self.bit(place);
        word.fetch_or(bit, Relaxed);
    }

    /// Notes that the record which begins at this unit is no longer valid.
    pub fn set_invalid(&self, place: u64) {
        let (word, bit) = self.bit(place);
        word.fetch_and(!bit, Relaxed);
    }

    /// Whether a valid record begins at this unit.
    pub fn is_valid(&self, place: u64) -> bool {
        let (word, bit) = self.bit(place);
        word.load(Relaxed) & bit != 0
    }

    fn bits(&self, segments: std::ops::Range<usize>) -> &[AtomicU64] {
        let words = self.shape.segment_bytes / UNIT / 64;
        let first = self.shape.bitmap();
        &self.map.words()[first + segments.start * words..first + segments.end * words]
    }

    /// Makes all records of some segments invalid.
    pub fn clear_bits(&self, segments: std::ops::Range<usize>) {
        self.bits(segments).iter().for_each(|word| word.store(0, Relaxed));
    }

    /// The units of a segment at which valid records begin.
    pub fn valid_in(&self, segment: usize) -> impl Iterator<Item = u64> {
        let words = self.bits(segment..segment + 1).iter().enumerate();
        words.flat_map(|(at, word)| {
            let mut bits = word.load(Relaxed);
            std::iter::from_fn(move || {
                let next = (bits != 0).then(|| u64::from(bits.trailing_zeros()));
                bits &= bits.wrapping_sub(1);
                next.map(|bit| at as u64 * 64 + bit)
            })
        })
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> usize {
        self.shape.words() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { segment_bytes: 64 << 10, segments: 5 };
    const HASHING: Hashing = Hashing { seeds: [1, 2, 3, 4], fingerprint: 5 };

    #[test]
    fn what_is_noted_is_there_after_another_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let state = State::open(&path, SHAPE).expect("opens");
        assert!(state.mismatch().is_some());
        state.format(&HASHING);
        state.begin().expect("syncs");
        state.set_segment(4, 9, Kind::Sealed);
        state.set_count(4, 77);
        state.set_valid(4 * SHAPE.units() + 63);
        state.set_valid(4 * SHAPE.units() + 64);
        state.set_valid(3 * SHAPE.units());
        state.set_invalid(3 * SHAPE.units());
        drop(state);
        let state = State::open(&path, SHAPE).expect("opens");
        assert_eq!((state.mismatch(), state.is_trusted()), (None, true));
        assert_eq!((state.segment(4), state.count(4)), ((9, Kind::Sealed), 77));
        assert_eq!(state.valid_in(4).collect::<Vec<_>>(), [63, 64]);
        assert_eq!(state.valid_in(3).count(), 0);
        assert_eq!(state.hashing(), HASHING);
    }

    #[test]
    fn segments_are_reclaimed_in_turn() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = State::open(&dir.path().join("state"), SHAPE).expect("opens");
        state.format(&HASHING);
        // The turns begin again in between.
        state.put(TURNS, TURN_MASK - 1);
        for segment in [3, 0, 4] {
            state.set_segment(segment, 7, Kind::Sealed);
            state.give_turn(segment);
        }
        assert_eq!((state.in_turn(), state.empty_segments().next()), (vec![3, 0, 4], Some(1)));
        state.give_turn(3);
        state.set_segment(4, 8, Kind::Open);
        state.set_segment(0, 7, Kind::Empty);
        assert_eq!((state.in_turn(), state.empty_segments().next()), (vec![4, 3], Some(0)));
        assert_eq!((state.segment(3), state.segment(4)), ((7, Kind::Sealed), (8, Kind::Open)));
    }

    #[test]
    fn another_boot_is_trusted_only_after_a_clean_close() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = State::open(&dir.path().join("state"), SHAPE).expect("opens");
        state.format(&HASHING);
        state.begin().expect("syncs");
        state.put(BOOT, 1);
        assert!(!state.is_trusted());
        state.close().expect("syncs");
        assert!(state.is_trusted());
    }

    #[test]
    fn keyspaces_change_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = State::open(&dir.path().join("state"), SHAPE).expect("opens");
        state.format(&HASHING);
        let (zero, one) = (state.keyspace(0), state.keyspace(1));
        state.swap(0, 1);
        assert_eq!((state.database(zero), state.database(one)), (Some(1), Some(0)));
        state.renew([1].into_iter());
        assert_eq!((state.database(zero), state.database(one)), (None, Some(0)));
        assert!(state.keyspace(1) > DATABASES as u32);
    }
}
