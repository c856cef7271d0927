//! Numbers as Redis reads and writes them: integers, doubles, and the syntax floats share.
//!
//! An integer has one spelling only. A float is what C's `strtod` takes in whole (decimal or
//! hexadecimal, `inf`, `infinity`), without white space around it, that is not NaN and that neither
//! overflows nor vanishes. Rounding is to nearest, ties to even, throughout.

use std::ops::Not;

/// Reads a 64-bit integer in its only spelling: no `+`, no leading zero, no space, no `-0`.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] => negative.not().then_some(0),
        // 19 digits hold every i64; they can't overflow a u64.
        [b'1'..=b'9', ..] if digits.len() <= 19 => signed(negative, magnitude(digits)?),
        _ => None,
    }
}

/// Whether the text is the one spelling of a 64-bit integer.
pub fn is_canonical_i64(text: &[u8]) -> bool {
    parse_i64(text).is_some()
}

fn magnitude(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, digit| {
        digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0'))
    })
}

fn signed(negative: bool, magnitude: u64) -> Option<i64> {
    if negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

/// Reads a double. Infinity only by name: `1e400` and `1e-400` are refused, as is NaN.
pub fn parse_f64(text: &[u8]) -> Option<f64> {
    match FloatText::scan(text)? {
        FloatText::Infinity { negative: true } => Some(f64::NEG_INFINITY),
        FloatText::Infinity { negative: false } => Some(f64::INFINITY),
        FloatText::Decimal(digits) => {
            let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
            (value.is_finite() && (value != 0.0 || digits.is_zero())).then_some(value)
        }
        FloatText::Hex(digits) => {
            let value = hex_to_f64(&digits);
            (value.is_finite() && (value != 0.0 || digits.is_zero())).then_some(value)
        }
    }
}

/// Writes a double in the fewest digits that read back as the same one, laid out as Redis 7.2 does:
/// whole numbers below 2^52 as integers, exponents (`1e+20`, `1e-7`) where zeros would grow long.
pub fn format_f64(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.into();
    }
    if value.abs() < (1u64 << 52) as f64 && value.fract() == 0.0 {
        return format!("{value:.0}");
    }
    lay_out(&format!("{value:e}"))
}

/// From `d.ddde7` to the layout of [`format_f64`].
fn lay_out(scientific: &str) -> String {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let digits = mantissa.replace('.', "");
    let count = digits.len() as i32;
    let last = exponent - count + 1;
    if last >= 0 && exponent < count + 7 {
        return format!("{sign}{digits}{}", "0".repeat(last as usize));
    }
    if last < 0 && (last > -7 || exponent.abs() < 4) {
        return format!("{sign}{}", with_point(&digits, exponent));
    }
    let point = if count > 1 { "." } else { "" };
    let (head, tail) = digits.split_at(1);
    format!("{sign}{head}{point}{tail}e{exponent:+}")
}

fn with_point(digits: &str, exponent: i32) -> String {
    if exponent < 0 {
        return format!("0.{}{digits}", "0".repeat((-exponent - 1) as usize));
    }
    let (whole, fraction) = digits.split_at(exponent as usize + 1);
    format!("{whole}.{fraction}")
}

/// A float's text, taken apart but not yet rounded. NaN is no float here.
pub(super) enum FloatText<'a> {
    /// `inf` or `infinity`, in any case.
    Infinity { negative: bool },
    /// Digits to base 10, exponent to base 10.
    Decimal(Digits<'a>),
    /// Digits to base 16, exponent to base 2.
    Hex(Digits<'a>),
}

/// Sign, digits around the point, and exponent of a float's text.
pub(super) struct Digits<'a> {
    pub negative: bool,
    pub whole: &'a [u8],
    pub fraction: &'a [u8],
    /// As written; held at [`EXPONENT_BOUND`], which is past all that digits could make up for.
    pub exponent: i64,
}

/// Larger than the digits of any string we could hold, small enough not to overflow in sums.
const EXPONENT_BOUND: i64 = 1_000_000_000_000_000;

impl<'a> FloatText<'a> {
    /// Takes the whole text as `strtod` would, or nothing.
    pub(super) fn scan(text: &'a [u8]) -> Option<Self> {
        let (negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        if rest.eq_ignore_ascii_case(b"inf") || rest.eq_ignore_ascii_case(b"infinity") {
            return Some(Self::Infinity { negative });
        }
        match rest {
            [b'0', b'x' | b'X', rest @ ..] => {
                Digits::scan(negative, rest, u8::is_ascii_hexdigit, b'p').map(Self::Hex)
            }
            _ => Digits::scan(negative, rest, u8::is_ascii_digit, b'e').map(Self::Decimal),
        }
    }
}

impl<'a> Digits<'a> {
    fn scan(negative: bool, text: &'a [u8], digit: fn(&u8) -> bool, mark: u8) -> Option<Self> {
        let (whole, rest) = split_run(text, digit);
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => split_run(rest, digit),
            _ => (&rest[..0], rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let exponent = match rest {
            [] => 0,
            [first, rest @ ..] if first.eq_ignore_ascii_case(&mark) => scan_exponent(rest)?,
            _ => return None,
        };
        Some(Self { negative, whole, fraction, exponent })
    }

    /// All digits in order, without the point.
    pub(super) fn all(&self) -> impl Iterator<Item = u8> {
        self.whole.iter().chain(self.fraction).copied()
    }

    /// Whether every digit is 0.
    pub(super) fn is_zero(&self) -> bool {
        self.all().all(|digit| digit == b'0')
    }

    /// The value of hexadecimal digits as `mantissa * 2^exponent`, the sign apart.
    ///
    /// At least 121 bits are kept; what doesn't fit leaves a mark in the lowest (it is "sticky"), so
    /// that rounding to fewer bits still sees which side of a tie it is on.
    pub(super) fn hex(&self) -> (u128, i64) {
        let mut mantissa = 0u128;
        let mut exponent = self.exponent - 4 * self.fraction.len() as i64;
        for digit in self.all() {
            let value = u128::from((digit as char).to_digit(16).unwrap_or(0));
            if mantissa >> 120 == 0 {
                mantissa = mantissa << 4 | value;
            } else {
                mantissa |= u128::from(value != 0);
                exponent += 4;
            }
        }
        (mantissa, exponent)
    }
}

fn split_run(text: &[u8], belongs: fn(&u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !belongs(byte)).unwrap_or(text.len());
    text.split_at(end)
}

fn scan_exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    let magnitude = digits.iter().try_fold(0i64, |value, digit| {
        let next = || (value * 10 + i64::from(digit - b'0')).min(EXPONENT_BOUND);
        digit.is_ascii_digit().then(next)
    })?;
    Some(if negative { -magnitude } else { magnitude })
}

fn hex_to_f64(digits: &Digits<'_>) -> f64 {
    let (mantissa, exponent) = digits.hex();
    let magnitude = if mantissa == 0 { 0.0 } else { to_f64(mantissa, exponent) };
    if digits.negative { -magnitude } else { magnitude }
}

/// `mantissa * 2^exponent` as a double; the mantissa isn't zero.
fn to_f64(mantissa: u128, exponent: i64) -> f64 {
    let (mantissa, exponent) = round_to(mantissa, exponent, 53, -1074);
    if mantissa == 0 {
        return 0.0;
    }
    if exponent + i64::from(mantissa.ilog2()) > 1023 {
        return f64::INFINITY;
    }
    let unit = match exponent {
        -1022.. => f64::from_bits(((exponent + 1023) as u64) << 52),
        _ => f64::from_bits(1 << (exponent + 1074)),
    };
    mantissa as f64 * unit
}

/// Rounds `mantissa * 2^exponent` to `precision` bits (at most 64), and to a multiple of
/// `2^min_exponent` where that is coarser. The mantissa isn't zero; the result's may be.
pub(super) fn round_to(
    mantissa: u128,
    exponent: i64,
    precision: i64,
    min_exponent: i64,
) -> (u64, i64) {
    let length = i64::from(mantissa.ilog2()) + 1;
    let unit = (exponent + length - precision).max(min_exponent);
    if unit <= exponent {
        return (mantissa as u64, exponent);
    }
    let rounded = shift_half_even(mantissa, (unit - exponent) as u64);
    match u64::try_from(rounded) {
        Ok(rounded) => (rounded, unit),
        // Rounded up to 2^64.
        Err(_) => (1 << 63, unit + 1),
    }
}

/// Shifts right by at least one bit, to the nearest; a tie goes to the even.
pub(super) fn shift_half_even(value: u128, by: u64) -> u128 {
    let (quotient, half) = match by {
        1..=127 => (value >> by, 1u128 << (by - 1)),
        128 => (0, 1 << 127),
        _ => return 0,
    };
    let rest = if by == 128 { value } else { value & ((1 << by) - 1) };
    let up = rest > half || (rest == half && quotient & 1 == 1);
    quotient + u128::from(up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn integers_have_one_spelling() {
        assert_eq!(parse_i64(b"0"), Some(0));
        assert_eq!(parse_i64(b"-7"), Some(-7));
        assert_eq!(parse_i64(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(parse_i64(b"-9223372036854775808"), Some(i64::MIN));
        for text in [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "01",
            "-0",
            "-01",
            "00",
            "1.0",
            "1a",
            "0x1",
            "--1",
            "9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
            "99999999999999999999",
        ] {
            assert!(!is_canonical_i64(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn doubles_as_strtod_takes_them() {
        for (text, value) in [
            ("1", 1.0),
            ("+1.", 1.0),
            ("-.5", -0.5),
            ("1e3", 1000.0),
            ("1E-2", 0.01),
            ("0x10", 16.0),
            ("0X.8p1", 1.0),
            ("-0x1.8P-1", -0.75),
            ("0x1p-1074", 5e-324),
            ("0x1.fffffffffffff7p1023", f64::MAX),
            ("0x1.00000000000008p0", 1.0),
            ("0x1.000000000000080000000000000000000000000000000001p0", 1.0 + f64::EPSILON),
            ("inf", f64::INFINITY),
            ("-iNfInItY", f64::NEG_INFINITY),
            ("0e-999999999999999999999", 0.0),
        ] {
            assert_eq!(parse_f64(text.as_bytes()), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_double() {
        for text in [
            "",
            " 1",
            "1 ",
            "1e",
            "1e+",
            ".",
            "-",
            "+",
            "0x",
            "0x.",
            "0x1p",
            "0x1g",
            "nan",
            "-nan",
            "nan(1)",
            "infi",
            "1e400",
            "-1e400",
            "1e-400",
            "0x1p1024",
            "0x1p-1076",
            "1,5",
            "1\0",
            "0x1.fffffffffffff8p1023",
            "1e5.0",
            "+-1",
        ] {
            assert_eq!(parse_f64(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn doubles_are_written_short() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (3.0, "3"),
            (-17.0, "-17"),
            (1e15, "1000000000000000"),
            (0.1, "0.1"),
            (-3.25, "-3.25"),
            (1e20, "1e+20"),
            (1.5e300, "1.5e+300"),
            (1e-7, "1e-7"),
            (0.000001, "0.000001"),
            (1.25e-9, "1.25e-9"),
            (123456.789, "123456.789"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(format_f64(value), text);
        }
    }

    proptest! {
        #[test]
        fn integers_round_trip(value: i64) {
            prop_assert_eq!(parse_i64(value.to_string().as_bytes()), Some(value));
        }

        #[test]
        fn integers_agree_with_std(text in "[-+ ]?[0-9]{0,21}") {
            let canonical = text.parse::<i64>().ok().filter(|value| value.to_string() == text);
            prop_assert_eq!(parse_i64(text.as_bytes()), canonical);
        }

        #[test]
        fn doubles_round_trip(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(!value.is_nan());
            prop_assert_eq!(parse_f64(format_f64(value).as_bytes()), Some(value));
        }

        #[test]
        fn hex_round_trips(bits in 1u64..0x7ff0_0000_0000_0000) {
            let exponent = (bits >> 52).max(1) as i64 - 1075;
            let hidden = u64::from(bits >> 52 != 0) << 52;
            let text = format!("0x{:x}p{exponent}", (bits & ((1 << 52) - 1)) | hidden);
            prop_assert_eq!(parse_f64(text.as_bytes()), Some(f64::from_bits(bits)));
        }
    }
}
