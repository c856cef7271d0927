//! Doubles as text: what ZSCORE answers and RESP3's `,` carries.

use std::io::{self, Write};

/// Room for [`double_text`].
pub const DOUBLE_MAX: usize = 32;

/// Integers up to here are written without an exponent: all below are exact.
const INTEGER_MAX: f64 = (1_u64 << 52) as f64;

/// A double as Redis 7.2 writes it: the fewest digits that read back as the same number; `inf`,
/// `-inf`, `nan`, `-0`; an integer below 2^52 as one, and an exponent (`1e+21`, `1e-7`) only where
/// plain digits would be much longer. (7.0 writes 17 digits.)
pub fn double_text(value: f64, room: &mut [u8; DOUBLE_MAX]) -> &[u8] {
    let mut rest = room.as_mut_slice();
    // Never fails: at most 25 bytes are written.
    let _ = write_double(value, &mut rest);
    let len = DOUBLE_MAX - rest.len();
    &room[..len]
}

/// Writes the text of [`double_text`].
fn write_double(value: f64, out: &mut &mut [u8]) -> io::Result<()> {
    if value.is_nan() {
        return out.write_all(b"nan");
    }
    if value.is_infinite() || value == 0.0 {
        return write!(out, "{value}");
    }
    if value.abs() < INTEGER_MAX && value.trunc() == value {
        return out.write_all(itoa::Buffer::new().format(value as i64).as_bytes());
    }
    let mut room = [0; DOUBLE_MAX];
    let (mantissa, exponent) = scientific(value, &mut room);
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count() as i32;
    // The value is the digits, without a point, times ten to this.
    let scale = exponent - (digits - 1);
    let plain = if scale >= 0 { exponent < digits + 7 } else { scale > -7 || exponent.abs() < 4 };
    match plain {
        true => write!(out, "{value}"),
        false => write!(out, "{mantissa}e{exponent:+}"),
    }
}

/// The shortest digits of a finite number, with a point behind the first, and its decimal exponent.
fn scientific(value: f64, room: &mut [u8; DOUBLE_MAX]) -> (&str, i32) {
    let mut rest = room.as_mut_slice();
    let _ = write!(rest, "{value:e}");
    let len = DOUBLE_MAX - rest.len();
    let text = str::from_utf8(&room[..len]).unwrap_or_default();
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    (mantissa, exponent.parse().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_short_and_exact() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-3.0, "-3"),
            (0.1, "0.1"),
            (3.25, "3.25"),
            (1e8, "100000000"),
            (4_503_599_627_370_495.0, "4503599627370495"),
            (1234567890123456.5, "1234567890123456.5"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (123_456_789_012_345_680_000.0, "123456789012345680000"),
            (1e-5, "0.00001"),
            (1e-7, "1e-7"),
            (-1.234567e-9, "-1.234567e-9"),
            (0.001_234_567_890_123, "0.001234567890123"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
            (-f64::NAN, "nan"),
        ];
        for (value, text) in cases {
            assert_eq!(double_text(value, &mut [0; DOUBLE_MAX]), text.as_bytes());
        }
    }

    proptest::proptest! {
        #[test]
        fn every_double_reads_back(bits: u64) {
            let value = f64::from_bits(bits);
            let mut room = [0; DOUBLE_MAX];
            let text = std::str::from_utf8(double_text(value, &mut room)).unwrap();
            proptest::prop_assert!(text.len() <= 25, "{}", text);
            let read: f64 = text.parse().unwrap();
            proptest::prop_assert!(read.to_bits() == bits || value.is_nan());
        }
    }
}
