//! INCRBYFLOAT's arithmetic: the 80-bit extended double of x86-64, in software.
//!
//! Redis reads both operands with `strtold`, adds them as `long double`, and prints the sum with 17
//! decimals, trailing zeros cut off. To answer byte for byte the same on every machine we do it by
//! integers: a 64-bit mantissa (IEEE 754 extended format, see the Intel SDM volume 1, chapter 4.2),
//! one rounding to nearest-even in reading, one in adding, one in printing. Reading is exact by long
//! arithmetic (Clinger, "How to read floating point numbers accurately", 1990); texts are shorter
//! than 5 KiB, so that is a few thousand bits at most.

use super::number::{Digits, FloatText, round_to, shift_half_even};
use std::cmp::Ordering;

/// Longer texts (this many bytes or more) aren't numbers to Redis (`MAX_LONG_DOUBLE_CHARS`).
pub const MAX_TEXT: usize = 5 * 1024;

/// Why a sum can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddError {
    /// The first operand (the stored value) isn't a float, or overflows, or vanishes.
    FirstNotFloat,
    /// The second operand (the increment) isn't one.
    SecondNotFloat,
    /// The sum isn't finite.
    NotFinite,
}

/// Adds two floats given as text; the sum as Redis prints it.
///
/// # Errors
/// [`AddError`] says which operand isn't a float, or that the sum isn't finite.
pub fn add(a: &[u8], b: &[u8]) -> Result<String, AddError> {
    let a = Operand::parse(a).ok_or(AddError::FirstNotFloat)?;
    let b = Operand::parse(b).ok_or(AddError::SecondNotFloat)?;
    let (Operand::Finite(a), Operand::Finite(b)) = (a, b) else {
        return Err(AddError::NotFinite);
    };
    a.add(b).map(Float::print).ok_or(AddError::NotFinite)
}

/// Bits of the mantissa.
const PRECISION: i64 = 64;
/// The exponent of the smallest positive number, 2^-16445 (denormal).
const MIN_EXPONENT: i64 = -16445;
/// The exponent of the highest bit of the largest numbers.
const MAX_TOP: i64 = 16383;
/// Above 10^this everything overflows, below 10^-this everything vanishes.
const DECIMAL_BOUND: i64 = 4960;
/// Decimals that are printed before zeros are cut off.
const DECIMALS: usize = 17;

enum Operand {
    /// Of either sign: no sum with it is finite.
    Infinite,
    Finite(Float),
}

impl Operand {
    fn parse(text: &[u8]) -> Option<Self> {
        if text.len() >= MAX_TEXT {
            return None;
        }
        match FloatText::scan(text)? {
            FloatText::Infinity { .. } => Some(Self::Infinite),
            FloatText::Decimal(digits) => Float::from_decimal(&digits).map(Self::Finite),
            FloatText::Hex(digits) => Float::from_hex(&digits).map(Self::Finite),
        }
    }
}

/// `mantissa * 2^exponent`; a mantissa other than 0 has its highest bit set, so that denormals too
/// are compared by exponent (which then lies below [`MIN_EXPONENT`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Float {
    negative: bool,
    mantissa: u64,
    exponent: i64,
}

impl Float {
    fn zero(negative: bool) -> Self {
        Self { negative, mantissa: 0, exponent: 0 }
    }

    /// Rounds once; `None` for an overflow. The lowest bit of the mantissa may be sticky.
    fn round(negative: bool, mantissa: u128, exponent: i64) -> Option<Self> {
        if mantissa == 0 {
            return Some(Self::zero(negative));
        }
        let (mantissa, exponent) = round_to(mantissa, exponent, PRECISION, MIN_EXPONENT);
        if mantissa == 0 {
            return Some(Self::zero(negative));
        }
        let up = mantissa.leading_zeros();
        let exponent = exponent - i64::from(up);
        (exponent + 63 <= MAX_TOP).then_some(Self { negative, mantissa: mantissa << up, exponent })
    }

    /// What isn't zero but would become so is refused, as `strtold` reports a range error.
    fn round_text(negative: bool, mantissa: u128, exponent: i64) -> Option<Self> {
        Self::round(negative, mantissa, exponent).filter(|float| float.mantissa != 0)
    }

    fn from_hex(digits: &Digits<'_>) -> Option<Self> {
        match digits.hex() {
            (0, _) => Some(Self::zero(digits.negative)),
            (mantissa, exponent) => Self::round_text(digits.negative, mantissa, exponent),
        }
    }

    fn from_decimal(text: &Digits<'_>) -> Option<Self> {
        let digits: Vec<u8> = text.all().skip_while(|&digit| digit == b'0').collect();
        let Some(last) = digits.iter().rposition(|&digit| digit != b'0') else {
            return Some(Self::zero(text.negative));
        };
        let cut = digits.len() - last - 1;
        let digits = &digits[..=last];
        let exponent = text.exponent - text.fraction.len() as i64 + cut as i64;
        let magnitude = exponent + digits.len() as i64;
        if magnitude.abs() > DECIMAL_BOUND {
            return None;
        }
        // digits * 10^exponent = digits * 5^exponent * 2^exponent.
        let mut digits = Natural::from_digits(digits);
        let (mantissa, scale) = if exponent >= 0 {
            digits.multiply_by_power_of_5(exponent as u64);
            digits.leading_bits()
        } else {
            let mut divisor = Natural::from(1);
            divisor.multiply_by_power_of_5(exponent.unsigned_abs());
            digits.quotient(divisor)
        };
        Self::round_text(text.negative, mantissa, scale + exponent)
    }

    /// The sum, rounded once; `None` for an overflow.
    fn add(self, other: Self) -> Option<Self> {
        if self.mantissa == 0 || other.mantissa == 0 {
            let sign = self.negative && other.negative;
            let sum = if self.mantissa == 0 { other } else { self };
            return Some(if sum.mantissa == 0 { Self::zero(sign) } else { sum });
        }
        let (large, small) =
            if self.exponent >= other.exponent { (self, other) } else { (other, self) };
        // 62 bits below the larger mantissa: what the smaller one loses past them is sticky, and can
        // only be lost where the sum keeps more than 64 bits above it.
        let exponent = large.exponent - 62;
        let a = u128::from(large.mantissa) << 62;
        let b = shift_sticky(u128::from(small.mantissa) << 62, large.exponent - small.exponent);
        if self.negative == other.negative {
            return Self::round(self.negative, a + b, exponent);
        }
        match a.cmp(&b) {
            Ordering::Equal => Some(Self::zero(false)),
            Ordering::Greater => Self::round(large.negative, a - b, exponent),
            Ordering::Less => Self::round(small.negative, b - a, exponent),
        }
    }

    /// 17 decimals, rounded, then without trailing zeros; never `-0`.
    fn print(self) -> String {
        let mut text = if self.exponent >= 0 {
            let mut whole = Natural::from(self.mantissa);
            whole.shift_left(self.exponent as u64);
            whole.into_decimal()
        } else {
            self.print_fraction()
        };
        if self.negative && text != "0" {
            text.insert(0, '-');
        }
        text
    }

    fn print_fraction(self) -> String {
        let unit = 10u128.pow(DECIMALS as u32);
        // 64 bits times 57: no overflow.
        let scaled = u128::from(self.mantissa) * unit;
        let scaled = shift_half_even(scaled, self.exponent.unsigned_abs());
        let text = format!("{}.{:0DECIMALS$}", scaled / unit, scaled % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Shifts right; the lowest bit is set if any bit got lost.
fn shift_sticky(value: u128, by: i64) -> u128 {
    match by {
        0..=127 => value >> by | u128::from(value & ((1 << by) - 1) != 0),
        _ => u128::from(value != 0),
    }
}

/// A natural number of any size: limbs from the lowest, no leading zero limbs.
struct Natural(Vec<u64>);

impl From<u64> for Natural {
    fn from(value: u64) -> Self {
        Self(if value == 0 { Vec::new() } else { vec![value] })
    }
}

impl Natural {
    fn from_digits(digits: &[u8]) -> Self {
        let mut number = Self(Vec::new());
        for chunk in digits.chunks(19) {
            let value = chunk.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
            number.multiply_add(10u64.pow(chunk.len() as u32), value);
        }
        number
    }

    fn multiply_add(&mut self, factor: u64, summand: u64) {
        let mut carry = summand;
        for limb in &mut self.0 {
            let product = u128::from(*limb) * u128::from(factor) + u128::from(carry);
            *limb = product as u64;
            carry = (product >> 64) as u64;
        }
        if carry != 0 {
            self.0.push(carry);
        }
    }

    fn multiply_by_power_of_5(&mut self, power: u64) {
        // 5^27 is the largest power in 64 bits.
        for _ in 0..power / 27 {
            self.multiply_add(5u64.pow(27), 0);
        }
        self.multiply_add(5u64.pow((power % 27) as u32), 0);
    }

    fn shift_left(&mut self, by: u64) {
        if !by.is_multiple_of(64) {
            self.multiply_add(1 << (by % 64), 0);
        }
        self.0.splice(0..0, std::iter::repeat_n(0, (by / 64) as usize));
    }

    fn bit_length(&self) -> u64 {
        self.0.last().map_or(0, |top| self.0.len() as u64 * 64 - u64::from(top.leading_zeros()))
    }

    /// The highest 128 bits, the lowest of them sticky, and the exponent that goes with them.
    fn leading_bits(mut self) -> (u128, i64) {
        // With the highest limb full, two limbs are 128 bits.
        let up = self.0.last().map_or(0, |top| top.leading_zeros());
        self.shift_left(u64::from(up));
        let [low @ .., second, top] = &self.0[..] else {
            return (u128::from(self.0.first().copied().unwrap_or(0)), -i64::from(up));
        };
        let lost = low.iter().any(|&limb| limb != 0);
        let bits = u128::from(*top) << 64 | u128::from(*second) | u128::from(lost);
        (bits, low.len() as i64 * 64 - i64::from(up))
    }

    /// The quotient to 67 bits or more, the lowest sticky, and the exponent that goes with it.
    /// Both numbers are above zero.
    fn quotient(mut self, mut divisor: Self) -> (u128, i64) {
        const STEPS: u64 = 69;
        let (ours, theirs) = (self.bit_length(), divisor.bit_length());
        self.shift_left(theirs.saturating_sub(ours));
        divisor.shift_left(ours.saturating_sub(theirs));
        let mut quotient = 0u128;
        for _ in 0..STEPS {
            let fits = self.compare(&divisor).is_ge();
            if fits {
                self.subtract(&divisor);
            }
            quotient = quotient << 1 | u128::from(fits);
            self.multiply_add(2, 0);
        }
        let rest = u128::from(!self.0.is_empty());
        (quotient | rest, ours as i64 - theirs as i64 - (STEPS as i64 - 1))
    }

    fn compare(&self, other: &Self) -> Ordering {
        let by_length = self.0.len().cmp(&other.0.len());
        by_length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    /// Subtracts a number that isn't larger.
    fn subtract(&mut self, other: &Self) {
        let mut borrow = false;
        for (index, limb) in self.0.iter_mut().enumerate() {
            let theirs = other.0.get(index).copied().unwrap_or(0);
            (*limb, borrow) = limb.borrowing_sub(theirs, borrow);
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    /// Divides in place; returns the remainder.
    fn divide(&mut self, divisor: u64) -> u64 {
        let mut rest = 0u64;
        for limb in self.0.iter_mut().rev() {
            let value = u128::from(rest) << 64 | u128::from(*limb);
            *limb = (value / u128::from(divisor)) as u64;
            rest = (value % u128::from(divisor)) as u64;
        }
        self.trim();
        rest
    }

    fn into_decimal(mut self) -> String {
        let mut groups = Vec::new();
        while !self.0.is_empty() {
            groups.push(self.divide(10u64.pow(19)));
        }
        let mut text = groups.pop().unwrap_or(0).to_string();
        for group in groups.iter().rev() {
            text.push_str(&format!("{group:019}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What redis-server 7.0.15 on x86-64 answers to SET k a, INCRBYFLOAT k b; `!float` and `!finite`
    /// are its two errors.
    const GOLDEN: [(&str, &str, &str); 65] = [
        ("10.5", "0.1", "10.6"),
        ("5.0e3", "2.0e2", "5200"),
        ("3.0", "1.1", "4.1"),
        ("0.1", "0.2", "0.3"),
        ("1", "-1", "0"),
        ("-0", "-0", "0"),
        ("-1e-30", "0", "0"),
        ("-0.5", "0.5", "0"),
        ("1e17", "0.1", "100000000000000000.1015625"),
        ("1e19", "0.5", "10000000000000000000"),
        ("1e20", "1", "100000000000000000000"),
        ("18446744073709551615", "0.5", "18446744073709551616"),
        ("18446744073709551615", "1", "18446744073709551616"),
        ("18446744073709551616", "1", "18446744073709551616"),
        ("18446744073709551616", "-1e-5", "18446744073709551616"),
        ("9223372036854775807", "9223372036854775807", "18446744073709551614"),
        ("36893488147419103233", "0", "36893488147419103232"),
        ("36893488147419103235", "0", "36893488147419103236"),
        (
            "36893488147419103233.000000000000000000000000000000000000001",
            "0",
            "36893488147419103232",
        ),
        ("0.00000000000000000762939453125", "0", "0.00000000000000001"),
        ("0.5", "4.3368086899420177360e-19", "0.5"),
        ("1e-17", "0", "0.00000000000000001"),
        ("1e-18", "0", "0"),
        ("5e-18", "0", "0"),
        ("5.1e-18", "0", "0.00000000000000001"),
        ("1e-4950", "1e-4950", "0"),
        ("3.6e-4951", "0", "0"),
        ("1.83e-4951", "0", "0"),
        ("1.8e-4951", "0", "!float"),
        ("1e-4960", "0", "!float"),
        ("0.000003814697265625", "0.25", "0.25000381469726562"),
        ("0.1234567890123456789", "0", "0.12345678901234568"),
        ("123456789.123456789", "987654321.987654321", "1111111111.11111110995989293"),
        ("1.1", "2.2", "3.3"),
        ("-1.1", "-2.2", "-3.3"),
        ("3.141592653589793238462643383279", "0", "3.14159265358979324"),
        ("2.718281828459045", "1e10", "10000000002.71828182879835367"),
        ("0x10", "0x.8p1", "17"),
        ("0x1.8P-1", "-.25", "0.5"),
        ("0xffffffffffffffff8", "0", "295147905179352825856"),
        ("0xffffffffffffffff80000000001p-44", "0", "18446744073709551616"),
        ("0x1p16384", "0", "!float"),
        ("0x1p-16445", "0", "0"),
        ("0x1p-16446", "0", "!float"),
        ("+1.", "+.5", "1.5"),
        ("1e30", "1e-30", "1000000000000000000024696061952"),
        ("1e30", "-1e30", "0"),
        ("1e40", "-1e20", "9999999999999999999783686092270256259072"),
        ("0e99999999999999999999", "1", "1"),
        ("000000000000000000000001.500", "0", "1.5"),
        ("1e4933", "0", "!float"),
        ("inf", "1", "!finite"),
        ("1", "-Infinity", "!finite"),
        ("inf", "-inf", "!finite"),
        ("nan", "1", "!float"),
        ("1", "nan", "!float"),
        ("", "1", "!float"),
        ("1", "", "!float"),
        ("1 ", "1", "!float"),
        (" 1", "1", "!float"),
        ("1e", "1", "!float"),
        ("1", "0x", "!float"),
        ("1.", "x", "!float"),
        ("1.18973149535723176502e4932", "1.18973149535723176502e4932", "!finite"),
        ("1\0", "1", "!float"),
    ];

    #[test]
    fn as_redis_answers() {
        for (a, b, expected) in GOLDEN {
            let text = match add(a.as_bytes(), b.as_bytes()) {
                Ok(text) => text,
                Err(AddError::NotFinite) => "!finite".into(),
                Err(AddError::FirstNotFloat | AddError::SecondNotFloat) => "!float".into(),
            };
            assert_eq!(text, expected, "{a:?} + {b:?}");
        }
    }

    #[test]
    fn the_wrong_operand_is_named() {
        assert_eq!(add(b"x", b"y"), Err(AddError::FirstNotFloat));
        assert_eq!(add(b"inf", b"y"), Err(AddError::SecondNotFloat));
    }

    #[test]
    fn texts_are_bounded() {
        let longest = [vec![b'0'; MAX_TEXT - 2], vec![b'7']].concat();
        assert_eq!(add(&longest, b"0").as_deref(), Ok("7"));
        let longer = [&longest[..], b"0"].concat();
        assert_eq!(add(&longer, b"0"), Err(AddError::FirstNotFloat));
        let nines = [vec![b'9'; 4930], b".5e-9860".to_vec()].concat();
        assert_eq!(add(&nines, b"0").as_deref(), Ok("0"));
    }

    #[test]
    fn the_largest_is_printed_whole() {
        let largest = add(b"1.18973149535723176502e4932", b"0").unwrap_or_default();
        assert_eq!(largest.len(), 4933);
        assert!(largest.starts_with("118973149535723176502126385303097020516906332229462420"));
        assert!(largest.ends_with("156604419552086811989770240"));
    }

    proptest! {
        #[test]
        fn whole_numbers_add_exactly(a: i64, b: i64) {
            let sum = i128::from(a) + i128::from(b);
            let text = add(a.to_string().as_bytes(), b.to_string().as_bytes());
            prop_assert_eq!(text, Ok(sum.to_string()));
        }

        #[test]
        fn short_binary_fractions_add_exactly(a: i32, b: i32) {
            // A multiple of 2^-12 has 12 decimals at most.
            let text = |value: f64| {
                let text = format!("{value:.12}");
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            };
            let (a, b) = (f64::from(a) / 4096.0, f64::from(b) / 4096.0);
            let sum = if a + b == 0.0 { "0".into() } else { text(a + b) };
            prop_assert_eq!(add(text(a).as_bytes(), text(b).as_bytes()), Ok(sum));
        }

        #[test]
        fn no_text_panics(a in "[-+]?(0x)?[0-9a-f.]{0,30}([ep][-+]?[0-9]{1,6})?", b in ".{0,8}") {
            let _ = add(a.as_bytes(), b.as_bytes());
            let _ = add(b.as_bytes(), a.as_bytes());
        }
    }
}
