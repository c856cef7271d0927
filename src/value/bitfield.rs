//! Integers of any width at any bit of a string, for BITFIELD.
//!
//! A field is `i1` to `i64` or `u1` to `u63`, highest bit first, counted from the highest bit of the
//! first byte (<https://redis.io/docs/latest/commands/bitfield/>). A value travels as `i64`, which
//! holds every field. Bits past the end of the string read as zeros.

use super::number::parse_i64;
use crate::error::ClientError;

/// The width and sign of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldType {
    /// Whether the highest bit is a sign.
    pub signed: bool,
    /// The width: 1 to 64, unsigned to 63.
    pub bits: u8,
}

/// What happens to a value that doesn't fit its field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The high bits are dropped.
    #[default]
    Wrap,
    /// The nearest value that fits is taken.
    Sat,
    /// Nothing is written, the reply is nil.
    Fail,
}

impl Overflow {
    /// Reads WRAP, SAT or FAIL, in any case.
    ///
    /// # Errors
    /// `ERR Invalid OVERFLOW type specified`.
    pub fn parse(name: &[u8]) -> Result<Self, ClientError> {
        [("wrap", Self::Wrap), ("sat", Self::Sat), ("fail", Self::Fail)]
            .into_iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
            .map(|(_, overflow)| overflow)
            .ok_or(INVALID_OVERFLOW)
    }
}

const INVALID_OVERFLOW: ClientError = ClientError::new("ERR Invalid OVERFLOW type specified");
const INVALID_OFFSET: ClientError =
    ClientError::new("ERR bit offset is not an integer or out of range");
const INVALID_TYPE: ClientError = ClientError::new(
    "ERR Invalid bitfield type. Use something like i16 u8. \
     Note that u64 is not supported but i64 is.",
);

/// Reads a plain bit offset, as of SETBIT and GETBIT. The string may have `max_bytes`
/// (`proto-max-bulk-len`).
///
/// # Errors
/// `ERR bit offset is not an integer or out of range`.
pub fn parse_offset(text: &[u8], max_bytes: u64) -> Result<u64, ClientError> {
    let offset = parse_i64(text).and_then(|offset| u64::try_from(offset).ok());
    offset.filter(|offset| offset / 8 < max_bytes).ok_or(INVALID_OFFSET)
}

impl FieldType {
    /// Reads `i5`, `u63` and the like.
    ///
    /// # Errors
    /// `ERR Invalid bitfield type. ...`.
    pub fn parse(text: &[u8]) -> Result<Self, ClientError> {
        let (signed, bits, widest) = match text {
            [b'i', bits @ ..] => (true, bits, 64),
            [b'u', bits @ ..] => (false, bits, 63),
            _ => return Err(INVALID_TYPE),
        };
        match parse_i64(bits) {
            Some(bits) if (1..=widest).contains(&bits) => Ok(Self { signed, bits: bits as u8 }),
            _ => Err(INVALID_TYPE),
        }
    }

    /// Reads a bit offset, or `#n` for the n-th field of this width.
    ///
    /// # Errors
    /// `ERR bit offset is not an integer or out of range`.
    pub fn parse_offset(self, text: &[u8], max_bytes: u64) -> Result<u64, ClientError> {
        let [b'#', index @ ..] = text else { return parse_offset(text, max_bytes) };
        let index = parse_i64(index).and_then(|index| u64::try_from(index).ok());
        let offset = index.and_then(|index| index.checked_mul(u64::from(self.bits)));
        offset.filter(|offset| offset / 8 < max_bytes).ok_or(INVALID_OFFSET)
    }

    /// How many bytes a string needs to hold this field at this offset.
    pub fn bytes_needed(self, offset: u64) -> u64 {
        offset.saturating_add(u64::from(self.bits)).div_ceil(8)
    }

    /// The field's value at a bit offset.
    pub fn get(self, bytes: &[u8], offset: u64) -> i64 {
        let (window, shift) = self.window(bytes, offset);
        let high = 64 - u32::from(self.bits);
        let value = (window >> shift) as u64;
        // To the top and back, to copy the sign or zeros into the bits above.
        if self.signed { (value << high) as i64 >> high } else { (value << high >> high) as i64 }
    }

    /// Writes the low bits of a value at a bit offset. The caller has made the bytes long enough;
    /// what would lie past the end is dropped.
    pub fn set(self, bytes: &mut [u8], offset: u64, value: i64) {
        let (window, shift) = self.window(bytes, offset);
        let mask = u128::from(u64::MAX >> (64 - u32::from(self.bits))) << shift;
        let window = window & !mask | (u128::from(value as u64) << shift) & mask;
        let start = usize::try_from(offset / 8).unwrap_or(usize::MAX).min(bytes.len());
        bytes[start..].iter_mut().zip(window.to_be_bytes()).for_each(|(old, new)| *old = new);
    }

    /// The 16 bytes from the offset's on (zeros past the end), and how far above their lowest bit
    /// the field ends. It begins in the first byte, so it always lies within.
    fn window(self, bytes: &[u8], offset: u64) -> (u128, u32) {
        let start = usize::try_from(offset / 8).unwrap_or(usize::MAX).min(bytes.len());
        let mut window = [0; 16];
        window.iter_mut().zip(&bytes[start..]).for_each(|(to, from)| *to = *from);
        (u128::from_be_bytes(window), 128 - u32::from(self.bits) - (offset % 8) as u32)
    }

    /// The smallest and the largest value.
    fn bounds(self) -> (i128, i128) {
        if self.signed {
            let half = 1i128 << (self.bits - 1);
            (-half, half - 1)
        } else {
            (0, (1 << self.bits) - 1)
        }
    }

    /// What SET writes for a value; `None` to fail. To an unsigned field a negative value is the
    /// large number with the same 64 bits, as it is in Redis. (SAT of a far too small number to a
    /// signed field is the smallest value, as documented; Redis 7.0 overflows inwardly near
    /// `i64::MIN` and takes the largest.)
    pub fn fit(self, value: i64, overflow: Overflow) -> Option<i64> {
        let value = if self.signed { i128::from(value) } else { i128::from(value as u64) };
        self.settle(value, overflow)
    }

    /// What INCRBY writes: the sum of the old value and the increment; `None` to fail.
    pub fn add(self, old: i64, increment: i64, overflow: Overflow) -> Option<i64> {
        self.settle(i128::from(old) + i128::from(increment), overflow)
    }

    fn settle(self, value: i128, overflow: Overflow) -> Option<i64> {
        let (min, max) = self.bounds();
        if (min..=max).contains(&value) {
            return Some(value as i64);
        }
        match overflow {
            Overflow::Wrap => Some(self.wrap(value)),
            Overflow::Sat => Some(value.clamp(min, max) as i64),
            Overflow::Fail => None,
        }
    }

    fn wrap(self, value: i128) -> i64 {
        let high = 128 - u32::from(self.bits);
        let top = value << high;
        if self.signed { (top >> high) as i64 } else { (top as u128 >> high) as i64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::bits;
    use proptest::prelude::*;

    const I8: FieldType = FieldType { signed: true, bits: 8 };
    const U8: FieldType = FieldType { signed: false, bits: 8 };
    const I64: FieldType = FieldType { signed: true, bits: 64 };
    const U63: FieldType = FieldType { signed: false, bits: 63 };
    const MAX: u64 = 512 << 20;

    #[test]
    fn types() {
        assert_eq!(FieldType::parse(b"i8"), Ok(I8));
        assert_eq!(FieldType::parse(b"i64"), Ok(I64));
        assert_eq!(FieldType::parse(b"u63"), Ok(U63));
        for text in ["u64", "i65", "i0", "u0", "i", "", "I8", "x8", "i08", "i-1", "8"] {
            assert_eq!(FieldType::parse(text.as_bytes()), Err(INVALID_TYPE), "{text}");
        }
    }

    #[test]
    fn offsets() {
        assert_eq!(parse_offset(b"7", MAX), Ok(7));
        assert_eq!(parse_offset(b"4294967295", MAX), Ok(4294967295));
        assert_eq!(I8.parse_offset(b"#3", MAX), Ok(24));
        assert_eq!(I8.parse_offset(b"3", MAX), Ok(3));
        for text in ["-1", "4294967296", "#", "#-1", "#9223372036854775807", "##1", "", "x"] {
            assert_eq!(I8.parse_offset(text.as_bytes(), MAX), Err(INVALID_OFFSET), "{text}");
        }
        assert_eq!(parse_offset(b"#1", MAX), Err(INVALID_OFFSET));
        assert_eq!(I8.bytes_needed(0), 1);
        assert_eq!(I8.bytes_needed(1), 2);
    }

    #[test]
    fn overflows() {
        use Overflow::{Fail, Sat, Wrap};
        assert_eq!(Overflow::parse(b"Sat"), Ok(Sat));
        assert_eq!(Overflow::parse(b"none"), Err(INVALID_OVERFLOW));
        assert_eq!(I8.add(127, 1, Wrap), Some(-128));
        assert_eq!(I8.add(127, 1, Sat), Some(127));
        assert_eq!(I8.add(127, 1, Fail), None);
        assert_eq!(I8.add(-128, -1, Wrap), Some(127));
        assert_eq!(I8.add(-128, i64::MIN, Sat), Some(-128));
        assert_eq!(U8.add(250, 10, Wrap), Some(4));
        assert_eq!(U8.add(1, -2, Sat), Some(0));
        assert_eq!(U8.add(1, -2, Wrap), Some(255));
        assert_eq!(I64.add(i64::MAX, 1, Wrap), Some(i64::MIN));
        assert_eq!(I64.add(i64::MIN, -1, Sat), Some(i64::MIN));
        assert_eq!(U63.add(i64::MAX, 1, Wrap), Some(0));
        assert_eq!(I8.fit(200, Wrap), Some(-56));
        assert_eq!(U8.fit(-1, Sat), Some(255));
        assert_eq!(U8.fit(-1, Fail), None);
        assert_eq!(U8.fit(257, Wrap), Some(1));
    }

    #[test]
    fn past_the_end() {
        assert_eq!(I8.get(b"", 1_000_000), 0);
        assert_eq!(U8.get(b"\xff", 4), 0xf0);
        let mut bytes = *b"\0";
        U8.set(&mut bytes, 4, 0xff);
        U8.set(&mut bytes, u64::MAX, 0xff);
        assert_eq!(bytes, *b"\x0f");
    }

    fn field() -> impl Strategy<Value = FieldType> {
        (any::<bool>(), 1u8..=64).prop_map(|(signed, bits)| FieldType {
            signed,
            bits: if signed { bits } else { bits.min(63) },
        })
    }

    proptest! {
        #[test]
        fn a_field_is_its_bits(
            field in field(),
            mut bytes in prop::collection::vec(any::<u8>(), 20),
            offset in 0u64..80,
            value: i64,
        ) {
            let before = bytes.clone();
            field.set(&mut bytes, offset, value);
            let end = offset + u64::from(field.bits);
            for at in 0..160 {
                let bit = if (offset..end).contains(&at) {
                    value >> (end - 1 - at) & 1 == 1
                } else {
                    bits::get(&before, at as usize)
                };
                prop_assert_eq!(bits::get(&bytes, at as usize), bit);
            }
            prop_assert_eq!(Some(field.get(&bytes, offset)), field.fit(value, Overflow::Wrap));
        }

        #[test]
        fn overflow_arithmetic(field in field(), a: i64, b: i64) {
            let (min, max) = field.bounds();
            let Some(old) = field.fit(a, Overflow::Wrap) else { unreachable!() };
            let sum = i128::from(old) + i128::from(b);
            let modulus = max - min + 1;
            let wrapped = (sum - min).rem_euclid(modulus) + min;
            prop_assert_eq!(field.add(old, b, Overflow::Wrap).map(i128::from), Some(wrapped));
            let clamped = sum.clamp(min, max);
            prop_assert_eq!(field.add(old, b, Overflow::Sat).map(i128::from), Some(clamped));
            let exact = (clamped == sum).then_some(sum);
            prop_assert_eq!(field.add(old, b, Overflow::Fail).map(i128::from), exact);
        }
    }
}
