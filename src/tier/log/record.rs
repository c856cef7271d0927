//! A record on disk: an entry with what it takes to know that it is one, and whose.
//!
//! ```text
//!  0      4            8         16                        24         28       32         36
//!  +------+------------+---------+-----------+-------------+----------+--------+----------+---------+
//!  | CRC  | generation | version | deadline  | type, flags | keyspace | key    | value    | kept    |
//!  | u32  | u32        | u64     | 48 bits   | 8, 8 bits   | u32      | len    | len u32  | until   |
//!  |      |            |         |           |             |          | u32    |          | u64, if |
//!  +------+------------+---------+-----------+-------------+----------+--------+----------+---------+
//!  | key | value | nothing, up to a multiple of 32 bytes |
//! ```
//!
//! Little-endian. The CRC-32 (IEEE) covers all behind it to the end of the value. The generation is that
//! of the segment in which the record was written, so that older bytes of the same place never pass;
//! the keyspace names the contents that the database had (FLUSHDB gives it new ones).

use super::{
    super::entry::{EntryRef, Meta},
    UNIT,
};

/// Bytes before the optional ones and the key.
pub const HEADER: usize = 36;
/// A string. (Other types are written by the codec when they exist.)
const STRING: u8 = 0;
const KEPT: u8 = 1;
const RAW: u8 = 2;

/// What a record says beside key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The generation of its segment.
    pub generation: u32,
    /// Newer records of a key have higher ones.
    pub version: u64,
    /// The contents of a database that it belongs to.
    pub keyspace: u32,
    /// Deadlines and flags of the entry.
    pub meta: Meta,
}

/// A record's bytes, checked.
#[derive(Debug)]
pub struct Record<'a> {
    /// What it says.
    pub head: Head,
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// It ends behind the bytes: so many are needed.
    Short(usize),
    /// Its lengths, type or flags can't be.
    Malformed,
    /// Its checksum doesn't fit.
    Checksum,
}

/// Bytes of a record.
pub fn size(key_len: usize, value_len: usize, meta: &Meta) -> usize {
    HEADER + if meta.kept_until != 0 { 8 } else { 0 } + key_len + value_len
}

/// Units that so many bytes take.
pub fn units(bytes: usize) -> u64 {
    bytes.div_ceil(UNIT) as u64
}

/// The part of a record before the value, checksum included.
pub fn beginning(head: &Head, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0; size(key.len(), 0, &head.meta)];
    write_head(&mut out, head, key, value.len());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&out[4..]);
    sum.update(value);
    out[..4].copy_from_slice(&sum.finalize().to_le_bytes());
    out
}

/// Writes the part of a record before the value; the checksum is left open.
fn write_head(out: &mut [u8], head: &Head, key: &[u8], value_len: usize) {
    let meta = &head.meta;
    let flags = if meta.kept_until != 0 { KEPT } else { 0 } | if meta.raw { RAW } else { 0 };
    out[4..8].copy_from_slice(&head.generation.to_le_bytes());
    out[8..16].copy_from_slice(&head.version.to_le_bytes());
    out[16..22].copy_from_slice(&meta.deadline.to_le_bytes()[..6]);
    out[22] = STRING;
    out[23] = flags;
    out[24..28].copy_from_slice(&head.keyspace.to_le_bytes());
    out[28..32].copy_from_slice(&(key.len() as u32).to_le_bytes());
    out[32..36].copy_from_slice(&(value_len as u32).to_le_bytes());
    let mut at = HEADER;
    if meta.kept_until != 0 {
        out[at..at + 8].copy_from_slice(&meta.kept_until.to_le_bytes());
        at += 8;
    }
    out[at..at + key.len()].copy_from_slice(key);
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(word)
}

/// Where the parts of a record stand.
struct Parts {
    key_at: usize,
    value_at: usize,
    end: usize,
}

fn parts(bytes: &[u8]) -> Result<Parts, Defect> {
    if bytes.len() < HEADER {
        return Err(Defect::Short(HEADER));
    }
    let (kind, flags) = (bytes[22], bytes[23]);
    if kind != STRING || flags & !(KEPT | RAW) != 0 {
        return Err(Defect::Malformed);
    }
    let (key_len, value_len) = (number::<4>(bytes, 28) as usize, number::<4>(bytes, 32) as usize);
    let key_at = HEADER + if flags & KEPT != 0 { 8 } else { 0 };
    let value_at = key_at + key_len;
    Ok(Parts { key_at, value_at, end: value_at + value_len })
}

/// Reads deadlines and key at the beginning of a record, unchecked: the rest need not be there.
pub fn peek(bytes: &[u8]) -> Result<(Head, &[u8]), Defect> {
    let Parts { key_at, value_at, .. } = parts(bytes)?;
    let key = bytes.get(key_at..value_at).ok_or(Defect::Short(value_at))?;
    Ok((head(bytes), key))
}

/// Reads the record at the beginning of `bytes`.
pub fn read(bytes: &[u8]) -> Result<Record<'_>, Defect> {
    let Parts { key_at, value_at, end } = parts(bytes)?;
    if bytes.len() < end {
        return Err(Defect::Short(end));
    }
    if u64::from(crc32fast::hash(&bytes[4..end])) != number::<4>(bytes, 0) {
        return Err(Defect::Checksum);
    }
    let (key, value) = (&bytes[key_at..value_at], &bytes[value_at..end]);
    Ok(Record { head: head(bytes), key, value })
}

/// What stands before the key; the lengths have been checked.
fn head(bytes: &[u8]) -> Head {
    let flags = bytes[23];
    let is_kept = flags & KEPT != 0 && bytes.len() >= HEADER + 8;
    let kept_until = if is_kept { number::<8>(bytes, HEADER) } else { 0 };
    let meta =
        Meta { deadline: number::<6>(bytes, 16), kept_until, access: None, raw: flags & RAW != 0 };
    Head {
        generation: number::<4>(bytes, 4) as u32,
        version: number::<8>(bytes, 8),
        keyspace: number::<4>(bytes, 24) as u32,
        meta,
    }
}

impl Record<'_> {
    /// The entry that it was, with an access clock if the policy in force keeps one.
    pub fn entry(&self, access: Option<u32>) -> EntryRef {
        EntryRef::new(self.key, &[self.value], &Meta { access, ..self.head.meta })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kept_until: u64) -> Head {
        let meta = Meta { deadline: (1 << 48) - 1, kept_until, access: None, raw: true };
        Head { generation: 7, version: u64::MAX - 1, keyspace: 9, meta }
    }

    fn write(out: &mut [u8], head: &Head, key: &[u8], value: &[u8]) -> usize {
        let beginning = beginning(head, key, value);
        let end = beginning.len() + value.len();
        out[..beginning.len()].copy_from_slice(&beginning);
        out[beginning.len()..end].copy_from_slice(value);
        end
    }

    #[test]
    fn a_record_comes_back() {
        for kept_until in [0, 1 << 50] {
            let head = head(kept_until);
            let mut bytes = [0xEE; 128];
            let end = write(&mut bytes, &head, b"key", b"value");
            assert_eq!(end, size(3, 5, &head.meta));
            let record = read(&bytes).expect("whole");
            assert_eq!((record.head, record.key, record.value), (head, &b"key"[..], &b"value"[..]));
            assert_eq!(record.entry(Some(4)).get().access().map(|_| ()), Some(()));
            assert_eq!(read(&bytes[..end - 1]).unwrap_err(), Defect::Short(end));
            assert_eq!(read(&bytes[..9]).unwrap_err(), Defect::Short(HEADER));
        }
    }

    #[test]
    fn no_flipped_bit_passes() {
        let mut bytes = [0; 128];
        let end = write(&mut bytes, &head(5), b"key", b"some value");
        for bit in 0..end * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn absurd_lengths_reserve_nothing() {
        let mut bytes = [0; 64];
        write(&mut bytes, &head(0), b"", b"");
        bytes[28..36].fill(0xff);
        assert!(matches!(read(&bytes), Err(Defect::Short(_))));
    }
}
