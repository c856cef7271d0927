//! The bytes of segments and records; pictures in the [module's doc](super).

use bytes::Bytes;

use super::{Effect, Position};
use crate::store::{Change, MAX_KEY, Record};

/// The first bytes of a segment.
pub const MAGIC: [u8; 8] = *b"LARDERJN";
/// The formats of segments: those that have a log buffer beside them are of the second.
pub const FORMATS: [u16; 2] = [1, 2];
/// Bytes of a segment's head, and of a record's.
pub const HEAD: usize = 64;
/// The first bytes of a record, to find the next one behind damage.
pub const MARKER: [u8; 4] = *b"LJRE";
/// Numbers of segments and of sequence stay below this, so that there is always a next one.
pub const MAX_NUMBER: u64 = 1 << 62;
/// Runs of acknowledged sequence numbers that one record names, at most.
pub const MAX_RUNS: usize = 4096;
/// Bytes of such a run.
const RUN: usize = 16;
const COPY: u8 = 1;

/// What stands at the beginning of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Its number, one more than that of the segment before it.
    pub id: u64,
    /// Goes into all checksums of its records, so that no other bytes pass for them: neither older ones
    /// of the same place on disk nor a value that a client made up.
    pub salt: u64,
    /// The sequence number that the next effect gets.
    pub next: u64,
    /// The length of the segment before it; 0: it was the first.
    pub previous_len: u64,
    /// No version above this was issued before.
    pub ceiling: u64,
    /// The start of the machine during which it was written; see [`crate::tier::disk::Disk::boot`].
    pub boot: u64,
    /// Whether what comes behind it may be in a log buffer.
    pub is_buffered: bool,
}

/// Why bytes are no segment's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// They begin with something else.
    Magic,
    /// They are of a format that isn't ours.
    Format(u16),
    /// Their checksum doesn't fit.
    Checksum,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The key holds this value.
    Put = 1,
    /// The key is gone.
    Delete = 2,
    /// The store has these.
    Acknowledged = 3,
    /// So many bytes of the segment are synced, and no version was issued above this.
    Mark = 4,
}

/// What stands before key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// It was written again, out of its order.
    pub copy: bool,
    /// The database of its key.
    pub db: u16,
    /// Its place in the order of effects; 0 where it is none.
    pub sequence: u64,
    /// The version of the effect; of a mark, the ceiling.
    pub version: u64,
    /// When the data ends, unix milliseconds; 0: never. Of a mark, the number of the oldest segment; 0: it isn't
    /// said.
    pub deadline: u64,
    /// When it was appended, unix milliseconds.
    pub written: u64,
    /// The older effect of the same key that it takes the place of, 0: none; of a mark, the bytes of the
    /// segment that are synced.
    pub supersedes: u64,
    /// Bytes of the key.
    pub key_len: u32,
    /// Bytes of the value.
    pub value_len: u32,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// They end before it does.
    Short,
    /// What stands before key and value isn't whole.
    Head,
    /// Key and value aren't whole.
    Body,
    /// It is whole, and can't be.
    Malformed,
    /// It is whole, and others are missing before it.
    Gap,
}

impl Defect {
    /// What is wrong, for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Short => "a record is cut short",
            Self::Head | Self::Body => "a checksum doesn't fit",
            Self::Malformed => "a record makes no sense",
            Self::Gap => "records are missing before this",
        }
    }
}

/// What the checksums of a segment's records begin with.
#[derive(Clone)]
pub struct Salted(crc32fast::Hasher);

impl Salted {
    /// Those of a segment with this salt.
    pub fn new(salt: u64) -> Self {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&salt.to_le_bytes());
        Self(sum)
    }

    /// A checksum over salt and bytes, of which there are none yet.
    pub fn begin(&self) -> crc32fast::Hasher {
        self.0.clone()
    }

    /// The checksum over salt and bytes.
    pub fn sum(&self, bytes: &[u8]) -> u32 {
        let mut sum = self.begin();
        sum.update(bytes);
        sum.finalize()
    }
}

fn word<const N: usize>(bytes: &[u8; HEAD], at: usize) -> u64 {
    let mut word = [0; 8];
    word[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(word)
}

/// The checksum of a head: all of it but the place of the checksum.
fn head_sum(salt: &Salted, bytes: &[u8; HEAD], place: std::ops::Range<usize>) -> u32 {
    let mut sum = salt.begin();
    sum.update(&bytes[..place.start]);
    sum.update(&bytes[place.end..]);
    sum.finalize()
}

impl SegmentHead {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[..8].copy_from_slice(&MAGIC);
        let format = FORMATS[usize::from(self.is_buffered)];
        out[8..10].copy_from_slice(&format.to_le_bytes());
        let words = [self.id, self.salt, self.next, self.previous_len, self.ceiling, self.boot];
        for (place, word) in out[16..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let sum = head_sum(&Salted::new(0), &out, 12..16);
        out[12..16].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads them.
    pub fn decode(bytes: &[u8; HEAD]) -> Result<Self, Foreign> {
        if bytes[..8] != MAGIC {
            return Err(Foreign::Magic);
        }
        let format = word::<2>(bytes, 8) as u16;
        if !FORMATS.contains(&format) {
            return Err(Foreign::Format(format));
        }
        if word::<4>(bytes, 12) != u64::from(head_sum(&Salted::new(0), bytes, 12..16)) {
            return Err(Foreign::Checksum);
        }
        Ok(Self {
            id: word::<8>(bytes, 16),
            salt: word::<8>(bytes, 24),
            next: word::<8>(bytes, 32),
            previous_len: word::<8>(bytes, 40),
            ceiling: word::<8>(bytes, 48),
            boot: word::<8>(bytes, 56),
            is_buffered: format == FORMATS[1],
        })
    }
}

/// Bytes of an effect's record; `None` if it is longer than a record may be.
pub fn size(key_len: usize, value_len: usize) -> Option<u32> {
    let len = HEAD.checked_add(key_len)?.checked_add(value_len)?;
    if key_len > MAX_KEY { None } else { u32::try_from(len).ok() }
}

impl Head {
    /// The head of an effect that has no sequence number yet. Its lengths fit ([`size`]).
    pub fn of(effect: &Effect<'_>) -> Self {
        let kind = if effect.value.is_some() { Kind::Put } else { Kind::Delete };
        Self {
            db: effect.db,
            version: effect.version,
            deadline: effect.deadline,
            written: effect.written,
            supersedes: effect.supersedes.map_or(0, Position::sequence),
            key_len: effect.key.len() as u32,
            ..Self::bare(kind, effect.value.map_or(0, <[u8]>::len) as u32)
        }
    }

    /// The head of a record that acknowledges so many runs.
    pub fn acknowledging(runs: usize) -> Self {
        Self::bare(Kind::Acknowledged, (runs * RUN) as u32)
    }

    /// The head of a record that is no effect.
    pub fn bare(kind: Kind, value_len: u32) -> Self {
        Self {
            kind,
            copy: false,
            db: 0,
            sequence: 0,
            version: 0,
            deadline: 0,
            written: 0,
            supersedes: 0,
            key_len: 0,
            value_len,
        }
    }

    /// The bytes of key and value.
    pub fn body_len(&self) -> u64 {
        u64::from(self.key_len) + u64::from(self.value_len)
    }

    /// The bytes of the whole record.
    pub fn record_len(&self) -> u64 {
        HEAD as u64 + self.body_len()
    }

    /// Its bytes, in front of a body with this checksum.
    #[inline]
    pub fn encode(&self, salt: &Salted, body_sum: u32) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[..4].copy_from_slice(&MARKER);
        out[8..12].copy_from_slice(&body_sum.to_le_bytes());
        out[12] = self.kind as u8;
        out[13] = if self.copy { COPY } else { 0 };
        out[14..16].copy_from_slice(&self.db.to_le_bytes());
        let words = [self.sequence, self.version, self.deadline, self.written, self.supersedes];
        for (place, word) in out[16..56].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out[56..60].copy_from_slice(&self.key_len.to_le_bytes());
        out[60..].copy_from_slice(&self.value_len.to_le_bytes());
        let sum = head_sum(salt, &out, 4..8);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads them; gives the checksum that the body has to have, too.
    pub fn decode(bytes: &[u8; HEAD], salt: &Salted) -> Result<(Self, u32), Defect> {
        if word::<4>(bytes, 4) != u64::from(head_sum(salt, bytes, 4..8)) {
            return Err(Defect::Head);
        }
        Ok((Self::read(bytes)?, word::<4>(bytes, 8) as u32))
    }

    /// Reads them, whatever their checksums.
    pub fn read(bytes: &[u8; HEAD]) -> Result<Self, Defect> {
        if bytes[..4] != MARKER {
            return Err(Defect::Head);
        }
        let kind = match bytes[12] {
            1 => Kind::Put,
            2 => Kind::Delete,
            3 => Kind::Acknowledged,
            4 => Kind::Mark,
            _ => return Err(Defect::Malformed),
        };
        let head = Self {
            kind,
            copy: bytes[13] & COPY != 0,
            db: word::<2>(bytes, 14) as u16,
            sequence: word::<8>(bytes, 16),
            version: word::<8>(bytes, 24),
            deadline: word::<8>(bytes, 32),
            written: word::<8>(bytes, 40),
            supersedes: word::<8>(bytes, 48),
            key_len: word::<4>(bytes, 56) as u32,
            value_len: word::<4>(bytes, 60) as u32,
        };
        let sane = bytes[13] & !COPY == 0 && head.is_sane();
        if sane { Ok(head) } else { Err(Defect::Malformed) }
    }

    fn is_sane(&self) -> bool {
        let numbered = (1..MAX_NUMBER).contains(&self.sequence);
        match self.kind {
            Kind::Put => numbered && size(self.key_len as usize, self.value_len as usize).is_some(),
            Kind::Delete => {
                numbered && self.value_len == 0 && size(self.key_len as usize, 0).is_some()
            }
            Kind::Acknowledged => {
                let len = self.value_len as usize;
                !self.copy && self.key_len == 0 && len.is_multiple_of(RUN) && len <= MAX_RUNS * RUN
            }
            Kind::Mark => !self.copy && self.body_len() == 0,
        }
    }

    /// The change that an effect makes, out of the bytes behind the key.
    pub fn change(&self, value: Bytes) -> Change {
        match self.kind {
            Kind::Delete => Change::Delete { version: self.version },
            _ => {
                let (deadline, version) = (self.deadline, self.version);
                Change::Put(Record { value, deadline, version, fresh_for: None })
            }
        }
    }
}

/// Bytes of the records that acknowledge so many effects, at most.
pub fn size_of_runs(effects: usize) -> u64 {
    (effects.div_ceil(MAX_RUNS) * HEAD + effects * RUN) as u64
}

/// Runs of sorted numbers, first and last of each.
pub fn runs(sorted: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    runs
}

/// The body of a record that acknowledges.
pub fn encode_runs(runs: &[(u64, u64)]) -> Vec<u8> {
    runs.iter()
        .flat_map(|(first, last)| [first.to_le_bytes(), last.to_le_bytes()])
        .flatten()
        .collect()
}

/// Reads it; runs that end before they begin are none.
pub fn decode_runs(body: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let number = |bytes: &[u8]| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    body.chunks_exact(RUN)
        .map(move |run| (number(&run[..8]), number(&run[8..])))
        .filter(|(first, last)| first <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back_and_no_flipped_bit_passes() {
        let segment = SegmentHead {
            id: 3,
            salt: 5,
            next: 9,
            previous_len: 77,
            ceiling: 1 << 60,
            boot: 8,
            is_buffered: true,
        };
        let mut bytes = segment.encode();
        assert_eq!(SegmentHead::decode(&bytes), Ok(segment));
        for bit in 0..HEAD * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHead::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let put =
            Change::Put(Record { value: "value".into(), deadline: 4, version: 6, fresh_for: None });
        let effect = Effect {
            db: 300,
            key: b"key",
            value: Some(b"value"),
            deadline: 4,
            version: 6,
            written: 2,
            supersedes: Some(Position::at(1)),
        };
        let head = Head { sequence: 7, ..Head::of(&effect) };
        let mut bytes = head.encode(&Salted::new(11), 13);
        assert_eq!(Head::decode(&bytes, &Salted::new(11)), Ok((head, 13)));
        assert_eq!(Head::decode(&bytes, &Salted::new(12)), Err(Defect::Head));
        assert_eq!(head.change("value".into()), put);
        for bit in 0..HEAD * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&bytes, &Salted::new(11)), Err(Defect::Head), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_though_its_checksum_fits() {
        let head = Head { sequence: 1, ..Head::bare(Kind::Put, u32::MAX) };
        let refused = [
            head,
            Head { sequence: 0, ..Head::bare(Kind::Put, 1) },
            Head { sequence: MAX_NUMBER, ..Head::bare(Kind::Put, 1) },
            Head { sequence: 1, ..Head::bare(Kind::Delete, 1) },
            Head { sequence: 1, key_len: u32::MAX, ..Head::bare(Kind::Delete, 0) },
            Head::bare(Kind::Acknowledged, 15),
            Head::bare(Kind::Acknowledged, (MAX_RUNS as u32 + 1) * 16),
            Head::bare(Kind::Mark, 1),
            Head { copy: true, ..Head::bare(Kind::Mark, 0) },
        ];
        let salt = Salted::new(1);
        for head in refused {
            assert_eq!(
                Head::decode(&head.encode(&salt, 0), &salt),
                Err(Defect::Malformed),
                "{head:?}"
            );
        }
    }

    #[test]
    fn numbers_go_in_runs() {
        let found = runs(&[1, 2, 3, 7, 9, 10]);
        assert_eq!(found, [(1, 3), (7, 7), (9, 10)]);
        assert!(decode_runs(&encode_runs(&found)).eq(found));
        assert_eq!(decode_runs(&encode_runs(&[(5, 4)])).count(), 0);
    }
}
