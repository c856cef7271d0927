//! Sizes and durations as text: `"64mb"`, `"100ms"`.
//!
//! Sizes have the units of redis.conf
//! (<https://redis.io/docs/latest/operate/oss_and_stack/management/config-file/>): `1k` is 1000
//! bytes, `1kb` 1024, and so on to `g` and `gb`, in either case. Durations have `us`, `ms`, `s`,
//! `m`, `h`, `d`. A number is a whole one: `1.5gb` is refused, as Redis refuses it.

use std::time::Duration;

const SIZES: [(&str, u64); 7] = [
    ("b", 1),
    ("k", 1_000),
    ("kb", 1 << 10),
    ("m", 1_000_000),
    ("mb", 1 << 20),
    ("g", 1_000_000_000),
    ("gb", 1 << 30),
];

/// Units of durations, in microseconds.
const DURATIONS: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// What a number with an optional unit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure<T> {
    /// A number alone; what it means is the setting's business.
    Bare(u64),
    /// A number with its unit.
    With(T),
}

/// A size in bytes; `None` if the text isn't one or is past 2^64.
pub fn parse_size(text: &str) -> Option<Measure<u64>> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Some(Measure::Bare(number));
    }
    number.checked_mul(factor(&SIZES, unit)?).map(Measure::With)
}

/// A duration; `None` if the text isn't one or is past 2^64 microseconds.
pub fn parse_duration(text: &str) -> Option<Measure<Duration>> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Some(Measure::Bare(number));
    }
    let micros = number.checked_mul(factor(&DURATIONS, unit)?)?;
    Some(Measure::With(Duration::from_micros(micros)))
}

/// The shortest exact text of a size, in powers of 1024: `512mb`, `1500b`; `0` needs no unit.
pub fn size_text(bytes: u64) -> String {
    largest(bytes, SIZES.iter().filter(|(name, _)| name.ends_with('b')))
}

/// The shortest exact text of a duration: `10m`, `1500ms`; `0` needs no unit.
pub fn duration_text(duration: Duration) -> String {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    largest(micros, DURATIONS.iter())
}

/// Digits and the letters behind them.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|&(_, factor)| factor)
}

fn largest<'a>(number: u64, units: impl DoubleEndedIterator<Item = &'a (&'a str, u64)>) -> String {
    if number == 0 {
        return "0".to_owned();
    }
    let fits = units.rev().find(|(_, factor)| number.is_multiple_of(*factor));
    fits.map_or_else(|| number.to_string(), |(unit, factor)| format!("{}{unit}", number / factor))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_redis_sizes() {
        for (text, bytes) in [
            ("1b", 1),
            ("1k", 1_000),
            ("1KB", 1_024),
            ("3m", 3_000_000),
            ("64mb", 67_108_864),
            ("2g", 2_000_000_000),
            ("4Gb", 4_294_967_296),
        ] {
            assert_eq!(parse_size(text), Some(Measure::With(bytes)), "{text}");
        }
        assert_eq!(parse_size("1234"), Some(Measure::Bare(1234)));
    }

    #[test]
    fn what_is_no_measure_is_refused() {
        for text in ["", "mb", "1.5mb", "-1", "+1", " 1mb", "1 mb", "1mb ", "1tb", "99999999999gb"]
        {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
        for text in ["", "s", "-1s", "1.5s", "1 s", "1y", "99999999999999999d"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn texts_are_short() {
        assert_eq!(size_text(0), "0");
        assert_eq!(size_text(512 << 20), "512mb");
        assert_eq!(size_text(1_500), "1500b");
        assert_eq!(duration_text(Duration::from_secs(600)), "10m");
        assert_eq!(duration_text(Duration::from_millis(1_500)), "1500ms");
        assert_eq!(duration_text(Duration::ZERO), "0");
    }

    proptest! {
        #[test]
        fn texts_parse_back(number in 1u64..) {
            prop_assert_eq!(parse_size(&size_text(number)), Some(Measure::With(number)));
            let duration = Duration::from_micros(number);
            let text = duration_text(duration);
            prop_assert_eq!(parse_duration(&text), Some(Measure::With(duration)));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,30}") {
            let _ = (parse_size(&text), parse_duration(&text));
        }
    }
}
