//! The serialised form of a value: what DUMP gives and RESTORE takes.
//!
//! ```text
//! type (1) | value ... | RDB version (2, little endian) | CRC-64 of all before (8, little endian)
//! ```
//!
//! Type 0 is a string, encoded as in Redis's RDB files: small integers as integers, what compresses
//! by LZF, the rest as it is, each behind a length prefix. (The format is described in
//! <https://rdb.fnordig.de/file_format.html>; LZF is Marc Lehmann's.) We write version 10, which
//! Redis 7.0 reads, and read up to 12. What comes from outside is bounded by the caller's limit, and
//! memory is taken only as far as the bytes at hand can account for.

use super::{lzf, number::parse_i64};
use crc::{CRC_64_REDIS, Crc, Table};

/// The RDB version that we write.
pub const WRITE_VERSION: u16 = 10;
/// The newest RDB version that we read.
pub const READ_VERSION: u16 = 12;

/// Version and checksum behind the value.
const FOOTER: usize = 10;
const TYPE_STRING: u8 = 0;
/// First bytes of a string that isn't stored as it is.
const INT8: u8 = 0xc0;
const INT16: u8 = 0xc1;
const INT32: u8 = 0xc2;
const LZF: u8 = 0xc3;
/// First bytes of the long forms of a length.
const LENGTH_32: u8 = 0x80;
const LENGTH_64: u8 = 0x81;

static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_REDIS);

/// A value read from its serialised form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// A string.
    String(Vec<u8>),
}

/// Why a payload can't be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecError {
    /// Too short, too new, or not what was written: `ERR DUMP payload version or checksum are wrong`.
    Checksum,
    /// The checksum is right but the value makes no sense or is too long: `ERR Bad data format`.
    Malformed,
    /// A type (its RDB byte) that we don't know: also `ERR Bad data format`.
    Unsupported(u8),
}

/// Serialises a string.
pub fn dump_string(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 1 + 9 + FOOTER);
    out.push(TYPE_STRING);
    write_string(&mut out, value);
    out.extend_from_slice(&WRITE_VERSION.to_le_bytes());
    let checksum = CRC.checksum(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// Reads a serialised value of at most `limit` bytes. Bytes behind the value are ignored, as in Redis.
///
/// # Errors
/// [`CodecError`] says what is wrong with the payload.
pub fn load(payload: &[u8], limit: usize) -> Result<Loaded, CodecError> {
    let (body, checksum) = payload.split_last_chunk().ok_or(CodecError::Checksum)?;
    let (value, version) = body.split_last_chunk().ok_or(CodecError::Checksum)?;
    if u16::from_le_bytes(*version) > READ_VERSION
        || u64::from_le_bytes(*checksum) != CRC.checksum(body)
    {
        return Err(CodecError::Checksum);
    }
    match value.split_first() {
        Some((&TYPE_STRING, rest)) => {
            Reader { rest, limit }.string().map(Loaded::String).ok_or(CodecError::Malformed)
        }
        Some((&other, _)) => Err(CodecError::Unsupported(other)),
        None => Err(CodecError::Malformed),
    }
}

fn write_string(out: &mut Vec<u8>, value: &[u8]) {
    if let Some(small) = parse_i64(value).and_then(|value| i32::try_from(value).ok()) {
        return write_integer(out, small);
    }
    // Redis's own bounds: below 21 bytes nothing is gained, and 4 bytes must be.
    if value.len() > 20
        && let Some(packed) = lzf::compress(value, value.len() - 4)
    {
        out.push(LZF);
        write_length(out, packed.len());
        write_length(out, value.len());
        return out.extend_from_slice(&packed);
    }
    write_length(out, value.len());
    out.extend_from_slice(value);
}

fn write_integer(out: &mut Vec<u8>, value: i32) {
    if let Ok(value) = i8::try_from(value) {
        out.extend_from_slice(&[INT8, value as u8]);
    } else if let Ok(value) = i16::try_from(value) {
        out.push(INT16);
        out.extend_from_slice(&value.to_le_bytes());
    } else {
        out.push(INT32);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn write_length(out: &mut Vec<u8>, length: usize) {
    if length < 1 << 6 {
        out.push(length as u8);
    } else if length < 1 << 14 {
        out.extend_from_slice(&(length as u16 | 0x4000).to_be_bytes());
    } else if let Ok(length) = u32::try_from(length) {
        out.push(LENGTH_32);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(LENGTH_64);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

/// What is left to read; `None` wherever it makes no sense.
struct Reader<'a> {
    rest: &'a [u8],
    limit: usize,
}

impl<'a> Reader<'a> {
    fn string(&mut self) -> Option<Vec<u8>> {
        match *self.rest.first()? {
            INT8 => self.integer(|[_, byte]: [u8; 2]| i32::from(byte as i8)),
            INT16 => self.integer(|[_, a, b]: [u8; 3]| i32::from(i16::from_le_bytes([a, b]))),
            INT32 => self.integer(|[_, rest @ ..]: [u8; 5]| i32::from_le_bytes(rest)),
            LZF => self.compressed(),
            _ => {
                let length = self.length().filter(|&length| length <= self.limit)?;
                self.take(length).map(<[u8]>::to_vec)
            }
        }
    }

    fn integer<const N: usize>(&mut self, value: fn([u8; N]) -> i32) -> Option<Vec<u8>> {
        let text = value(self.array()?).to_string();
        (text.len() <= self.limit).then(|| text.into_bytes())
    }

    fn compressed(&mut self) -> Option<Vec<u8>> {
        let [_] = self.array()?;
        let packed = self.length()?;
        let length = self.length().filter(|&length| length <= self.limit)?;
        lzf::decompress(self.take(packed)?, length)
    }

    fn length(&mut self) -> Option<usize> {
        match *self.rest.first()? {
            LENGTH_32 => {
                let [_, length @ ..] = self.array::<5>()?;
                usize::try_from(u32::from_be_bytes(length)).ok()
            }
            LENGTH_64 => {
                let [_, length @ ..] = self.array::<9>()?;
                usize::try_from(u64::from_be_bytes(length)).ok()
            }
            0x00..=0x3f => self.array().map(|[length]| usize::from(length)),
            0x40..=0x7f => self.array().map(|pair| usize::from(u16::from_be_bytes(pair) & 0x3fff)),
            _ => None,
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;

    fn sealed(body: &[u8]) -> Vec<u8> {
        let mut out = [body, &[10, 0]].concat();
        out.extend_from_slice(&CRC.checksum(&out).to_le_bytes());
        out
    }

    fn loads(payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        load(payload, LIMIT).map(|Loaded::String(value)| value)
    }

    #[test]
    fn the_checksum_is_redis_s() {
        assert_eq!(CRC.checksum(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn lengths() {
        for length in [0, 1, 63, 64, 16_383, 16_384, 70_000] {
            let value: Vec<u8> = random_bytes(length);
            assert_eq!(loads(&dump_string(&value)), Ok(value), "{length}");
        }
        let mut long = vec![0, LENGTH_64, 0, 0, 0, 0, 0, 0, 0, 2];
        long.extend_from_slice(b"ab");
        assert_eq!(loads(&sealed(&long)), Ok(b"ab".to_vec()));
    }

    /// Incompressible, and the same in every run (xorshift).
    fn random_bytes(length: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252u64;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..length).map(next).collect()
    }

    #[test]
    fn integers_are_kept_as_integers() {
        for (text, length) in [
            ("0", 2),
            ("-128", 2),
            ("127", 2),
            ("128", 3),
            ("-32768", 3),
            ("32768", 5),
            ("-2147483648", 5),
            ("2147483647", 5),
            ("2147483648", 11),
            ("007", 4),
            ("+1", 3),
        ] {
            let dump = dump_string(text.as_bytes());
            assert_eq!(dump.len(), 1 + length + FOOTER, "{text}");
            assert_eq!(loads(&dump), Ok(text.into()), "{text}");
        }
    }

    #[test]
    fn what_repeats_is_compressed() {
        for value in [vec![b'a'; 21], vec![0; 100_000], b"abcdefg ".repeat(500)] {
            let dump = dump_string(&value);
            assert!(dump.len() < value.len() / 20 + 26, "{}", dump.len());
            assert_eq!(loads(&dump), Ok(value));
        }
        assert_eq!(dump_string(&[b'a'; 20]).len(), 1 + 1 + 20 + FOOTER);
    }

    /// What redis-server 7.0.15 dumps.
    #[test]
    fn what_redis_writes_is_read() {
        for (value, dump) in [
            (vec![], "00000a005d9b5c400f7fa2da"),
            (b"hello".to_vec(), "000568656c6c6f0a006372df766534200a"),
            (b"-7".to_vec(), "00c0f90a005e26d130d7a242ab"),
            (b"1000".to_vec(), "00c1e8030a0089d1478ebac4b764"),
            (b"-70000".to_vec(), "00c290eefeff0a002875de7b13eb2800"),
            (b"2147483648".to_vec(), "000a323134373438333634380a00e7b129a34c1d76ee"),
            (vec![b'a'; 21], "00c30615016161e00a000a00fd0cb36807413f68"),
            (
                b"abcabcabcd".repeat(6),
                "00c3133c03616263616002006480062005e01e090163640a0025b78d7035744c86",
            ),
            (vec![b'a'; 600], "00c30f4258016161e0ff00e0ff00e03b000161610a00db91885f1e83e579"),
        ] {
            let bytes: Vec<u8> = (0..dump.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&dump[at..at + 2], 16).unwrap_or(0))
                .collect();
            assert_eq!(loads(&bytes).as_ref(), Ok(&value), "{dump}");
            if value.len() <= 20 {
                assert_eq!(dump_string(&value), bytes, "{dump}");
            }
        }
    }

    #[test]
    fn refusals() {
        let good = dump_string(b"hello");
        assert_eq!(loads(b""), Err(CodecError::Checksum));
        assert_eq!(loads(&good[2..]), Err(CodecError::Checksum));
        let mut newer = b"\0\x01a\x0d\0".to_vec();
        newer.extend_from_slice(&CRC.checksum(&newer).to_le_bytes());
        assert_eq!(loads(&newer), Err(CodecError::Checksum));
        assert_eq!(loads(&sealed(&[14, 1])), Err(CodecError::Unsupported(14)));
        for body in [
            &b""[..],
            b"\0",
            b"\0\x05abcd",
            b"\0\xc4",
            b"\0\xc2\0\0\0",
            b"\0\x82",
            b"\0\x81\xff\xff\xff\xff\xff\xff\xff\xff",
            // Says 1 MiB, could be 264 bytes at most.
            b"\0\xc3\x03\x80\0\x10\0\0\xe0\xff\x00",
            // Refers to before the beginning.
            b"\0\xc3\x02\x03\x20\x00",
            // Makes more, and less, than it says.
            b"\0\xc3\x02\0\0a",
            b"\0\xc3\x02\x02\0a",
            b"\0\xc3\xc0\x01a",
        ] {
            assert_eq!(loads(&sealed(body)), Err(CodecError::Malformed), "{body:?}");
        }
    }

    #[test]
    fn the_limit_holds() {
        for value in [&b"hello world"[..], b"1000", &[b'a'; 300]] {
            let dump = dump_string(value);
            assert!(load(&dump, value.len()).is_ok());
            assert_eq!(load(&dump, value.len() - 1), Err(CodecError::Malformed));
        }
    }

    fn values() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            prop::collection::vec(0u8..3, 0..2000),
            (prop::collection::vec(any::<u8>(), 1..40), 1usize..600)
                .prop_map(|(unit, n)| unit.repeat(n)),
            any::<i64>().prop_map(|value| value.to_string().into_bytes()),
            any::<i16>().prop_map(|value| value.to_string().into_bytes()),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(value in values()) {
            let dump = dump_string(&value);
            prop_assert!(dump.len() <= value.len() + 1 + 5 + FOOTER);
            prop_assert_eq!(loads(&dump), Ok(value));
        }

        /// The checksum made right again, so that the readers behind it see the damage.
        #[test]
        fn mutations_stay_bounded(
            value in values(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            limit in 0usize..4000,
        ) {
            let mut dump = dump_string(&value);
            dump.truncate(dump.len() - FOOTER);
            for (at, byte) in changes {
                let at = at.index(dump.len());
                dump[at] = byte;
            }
            if let Ok(Loaded::String(loaded)) = load(&sealed(&dump), limit) {
                prop_assert!(loaded.len() <= limit && loaded.capacity() <= limit.max(11));
            }
        }

        #[test]
        fn noise_is_refused_or_read(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = load(&body, 1000);
            if let Ok(Loaded::String(loaded)) = load(&sealed(&[&[0, LZF], &body[..]].concat()), 1000) {
                prop_assert!(loaded.len() <= 1000);
            }
        }
    }
}
