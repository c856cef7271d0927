//! Strings as arrays of bits, for SETBIT, GETBIT, BITCOUNT, BITPOS and BITOP.
//!
//! Bit 0 is the highest bit of the first byte, as in Redis
//! (<https://redis.io/docs/latest/develop/data-types/bitmaps/>). Ranges are half open and in bits
//! or bytes as said; whatever lies past the end of the bytes is cut off.

use std::ops::Range;

/// Turns Redis's inclusive `start` and `end` (negative: from the end) into a range within `length`
/// units; empty if nothing is left. As BITCOUNT and GETRANGE do it.
pub fn resolve(start: i64, end: i64, length: usize) -> Range<usize> {
    // Without this, two indexes before the beginning would both be moved to the first unit.
    if start < 0 && end < 0 && start > end { 0..0 } else { resolve_lenient(start, end, length) }
}

/// [`resolve`] as BITPOS does it: indexes before the beginning mean the first unit, even where the
/// end was before the start.
pub fn resolve_lenient(start: i64, end: i64, length: usize) -> Range<usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let from_end = |index: i64| if index < 0 { (index + length).max(0) } else { index };
    let (start, end) = (from_end(start), from_end(end).min(length - 1));
    if start > end { 0..0 } else { start as usize..end as usize + 1 }
}

/// The number of set bits.
pub fn count(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words: u64 =
        words.iter().map(|word| u64::from(u64::from_ne_bytes(*word).count_ones())).sum();
    words + rest.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
}

/// The number of set bits in a range of bits.
pub fn count_range(bytes: &[u8], bits: Range<usize>) -> u64 {
    let Some(cut) = Cut::new(bytes, bits) else { return 0 };
    count(cut.bytes) - u64::from(cut.before.count_ones()) - u64::from(cut.after.count_ones())
}

/// The first bit of this value in a range of bits.
pub fn find(bytes: &[u8], bit: bool, bits: Range<usize>) -> Option<usize> {
    let start = bits.start / 8;
    let cut = Cut::new(bytes, bits)?;
    let last = cut.bytes.len() - 1;
    // Bytes are turned so that a 1 is searched for; bits outside of the range become 0.
    let flip = if bit { 0 } else { 0xff };
    let seen = |at: usize| {
        let mut byte = cut.bytes[at] ^ flip;
        if at == 0 {
            byte &= cut.first_mask;
        }
        if at == last {
            byte &= cut.last_mask;
        }
        byte
    };
    let found = |at: usize| (start + at) * 8 + seen(at).leading_zeros() as usize;
    if seen(0) != 0 {
        return Some(found(0));
    }
    let at = 1 + skip(cut.bytes.get(1..)?, flip);
    (at <= last && seen(at) != 0).then(|| found(at))
}

/// How many bytes at the head equal `byte`.
fn skip(bytes: &[u8], byte: u8) -> usize {
    let (words, _) = bytes.as_chunks::<8>();
    let head = words.iter().take_while(|word| **word == [byte; 8]).count() * 8;
    head + bytes[head..].iter().take_while(|&&other| other == byte).count()
}

/// A range of bits as the bytes it touches and what of the outer two belongs to it.
struct Cut<'a> {
    bytes: &'a [u8],
    first_mask: u8,
    last_mask: u8,
    /// The first byte's bits before the range.
    before: u8,
    /// The last byte's bits after it.
    after: u8,
}

impl<'a> Cut<'a> {
    /// `None` if the range is empty.
    fn new(bytes: &'a [u8], bits: Range<usize>) -> Option<Self> {
        let end = bits.end.min(bytes.len().saturating_mul(8));
        if bits.start >= end {
            return None;
        }
        let bytes = &bytes[bits.start / 8..end.div_ceil(8)];
        let first_mask = 0xff >> (bits.start % 8);
        let last_mask = !(0xff_u8.checked_shr((end - 1) as u32 % 8 + 1).unwrap_or(0));
        let before = bytes.first()? & !first_mask;
        let after = bytes.last()? & !last_mask;
        Some(Self { bytes, first_mask, last_mask, before, after })
    }
}

/// The bit at an offset; clear past the end.
pub fn get(bytes: &[u8], offset: usize) -> bool {
    bytes.get(offset / 8).is_some_and(|byte| byte & (0x80 >> (offset % 8)) != 0)
}

/// Sets the bit at an offset and returns what it was. The caller has made the bytes long enough;
/// past the end nothing happens.
pub fn set(bytes: &mut [u8], offset: usize, bit: bool) -> bool {
    let Some(byte) = bytes.get_mut(offset / 8) else { return false };
    let mask = 0x80 >> (offset % 8);
    let old = *byte & mask != 0;
    *byte = if bit { *byte | mask } else { *byte & !mask };
    old
}

/// What BITOP does with its sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitOp {
    /// Set where all are.
    And,
    /// Set where any is.
    Or,
    /// Set where an odd number is.
    Xor,
    /// Set where the (only) source isn't.
    Not,
}

impl BitOp {
    /// Reads the operation's name, in any case.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let named = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        [("and", Self::And), ("or", Self::Or), ("xor", Self::Xor), ("not", Self::Not)]
            .into_iter()
            .find_map(|(known, op)| named(known).then_some(op))
    }
}

/// Combines the sources, each as if padded with zeros to the longest. `Not` looks at the first only.
pub fn combine(op: BitOp, sources: &[&[u8]]) -> Vec<u8> {
    let Some((first, others)) = sources.split_first() else { return Vec::new() };
    if op == BitOp::Not {
        return first.iter().map(|byte| !byte).collect();
    }
    let longest = sources.iter().map(|source| source.len()).max().unwrap_or(0);
    let mut out = Vec::with_capacity(longest);
    out.extend_from_slice(first);
    out.resize(longest, 0);
    for other in others {
        let (head, tail) = out.split_at_mut(other.len());
        match op {
            BitOp::And => {
                head.iter_mut().zip(*other).for_each(|(out, byte)| *out &= byte);
                tail.fill(0);
            }
            BitOp::Or => head.iter_mut().zip(*other).for_each(|(out, byte)| *out |= byte),
            BitOp::Xor | BitOp::Not => {
                head.iter_mut().zip(*other).for_each(|(out, byte)| *out ^= byte);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_as_redis_counts_them() {
        assert_eq!(resolve(0, -1, 5), 0..5);
        assert_eq!(resolve(-2, -1, 5), 3..5);
        assert_eq!(resolve(1, 100, 5), 1..5);
        assert_eq!(resolve(3, 2, 5), 0..0);
        assert_eq!(resolve(-100, 0, 5), 0..1);
        assert_eq!(resolve(-100, -200, 5), 0..0);
        assert_eq!(resolve_lenient(-100, -200, 5), 0..1);
        assert_eq!(resolve_lenient(-1, -2, 5), 0..0);
        assert_eq!(resolve(0, -1, 0), 0..0);
        assert_eq!(resolve(i64::MIN, i64::MAX, 5), 0..5);
        assert_eq!(resolve(i64::MAX, i64::MAX, 5), 0..0);
    }

    #[test]
    fn counting() {
        assert_eq!(count(b"foobar"), 26);
        assert_eq!(count_range(b"foobar", 5..31), 17);
        assert_eq!(count_range(b"foobar", 8..16), 6);
        assert_eq!(count_range(b"foobar", 9..10), 1);
        assert_eq!(count_range(b"", 0..80), 0);
        assert_eq!(count_range(b"\xff", 3..usize::MAX), 5);
    }

    #[test]
    fn finding() {
        assert_eq!(find(b"\xff\xf0\x00", false, 0..24), Some(12));
        assert_eq!(find(b"\x00\xff\xf0", true, 0..24), Some(8));
        assert_eq!(find(b"\x00\xff\xf0", true, 16..24), Some(16));
        assert_eq!(find(b"\x00\x00", true, 0..16), None);
        assert_eq!(find(b"\xff\xff", false, 0..16), None);
        assert_eq!(find(b"\xff", true, 8..9), None);
    }

    #[test]
    fn one_bit() {
        let mut bytes = [0u8; 2];
        assert!(!set(&mut bytes, 7, true));
        assert!(set(&mut bytes, 7, true));
        assert_eq!(bytes, [1, 0]);
        assert!(get(&bytes, 7) && !get(&bytes, 8) && !get(&bytes, 1_000_000));
        assert!(set(&mut bytes, 7, false));
        assert!(!set(&mut bytes, 16, true));
        assert_eq!(bytes, [0, 0]);
    }

    #[test]
    fn combining() {
        let sources: [&[u8]; 2] = [b"\xf0\xff\x01", b"\x3c"];
        assert_eq!(combine(BitOp::And, &sources), b"\x30\0\0");
        assert_eq!(combine(BitOp::Or, &sources), b"\xfc\xff\x01");
        assert_eq!(combine(BitOp::Xor, &sources), b"\xcc\xff\x01");
        assert_eq!(combine(BitOp::Not, &sources[..1]), b"\x0f\0\xfe");
        assert_eq!(combine(BitOp::Or, &[]), b"");
        assert_eq!(BitOp::parse(b"xOR"), Some(BitOp::Xor));
        assert_eq!(BitOp::parse(b"nand"), None);
    }

    fn runs() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(
            prop_oneof![4 => Just(0u8), 4 => Just(255u8), 1 => any::<u8>()],
            0..60,
        )
    }

    proptest! {
        #[test]
        fn ranges_agree_with_single_bits(bytes in runs(), a in 0usize..500, b in 0usize..500, bit: bool) {
            let end = b.min(bytes.len() * 8);
            let set = (a..end).filter(|&at| get(&bytes, at)).count() as u64;
            prop_assert_eq!(count_range(&bytes, a..b), set);
            prop_assert_eq!(find(&bytes, bit, a..b), (a..end).find(|&at| get(&bytes, at) == bit));
        }

        #[test]
        fn combining_agrees_with_single_bits(sources in prop::collection::vec(runs(), 1..4)) {
            let sources: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
            let longest = sources.iter().map(|source| source.len()).max().unwrap_or(0);
            let and = combine(BitOp::And, &sources);
            let or = combine(BitOp::Or, &sources);
            let xor = combine(BitOp::Xor, &sources);
            prop_assert!([and.len(), or.len(), xor.len()] == [longest; 3]);
            for at in 0..longest * 8 {
                let ones = sources.iter().filter(|source| get(source, at)).count();
                prop_assert_eq!(get(&and, at), ones == sources.len());
                prop_assert_eq!(get(&or, at), ones > 0);
                prop_assert_eq!(get(&xor, at), ones % 2 == 1);
            }
        }
    }
}
