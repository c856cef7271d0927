//! What values a setting takes: read and written as Redis does it (CONFIG, flags) and as the file
//! does it (TOML, sizes and durations with their unit), with the words for what was expected.

use std::time::Duration;

use toml_edit::{Array, Formatted, Value as Toml};

use super::{
    types::{BindAddress, Endpoint, OutputLimit, OutputLimits, Percentiles},
    unit::{Measure, duration_text, parse_duration, parse_size, size_text},
};

/// The most addresses that `bind` may list.
const MAX_WORDS: usize = 16;
/// The longest text of a setting, in bytes.
const MAX_TEXT: usize = 4096;
/// From here on an upper bound of a size isn't worth a word.
const HUGE: u64 = i64::MAX as u64;

/// The kind of a setting, with its bounds (inclusive).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `yes` or `no`; in the file `true` or `false`.
    Bool,
    /// A whole number.
    Integer(i64, i64),
    /// Permission bits, in octal.
    Octal,
    /// A size in bytes.
    Bytes(u64, u64),
    /// A duration. CONFIG counts it in this unit, within these bounds; a lower bound of -1 means
    /// that it can be off.
    Time(Unit, i64, i64),
    /// One of these names.
    Choice(&'static [&'static str]),
    /// Any text; empty is none.
    Text,
    /// A path; empty is none.
    Path,
    /// A text that is never shown but to who asks for it with CONFIG GET.
    Secret,
    /// Addresses to listen on.
    Addresses,
    /// An address with a port to listen on; empty is none.
    Endpoint,
    /// Percentiles, from 0 to 100.
    Percentiles,
    /// Output limits by class of client.
    Limits,
    /// A list in a table of the file, which its reader takes apart; this is what it is a list of.
    List(&'static str),
}

/// The unit in which CONFIG counts a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// The name, as the docs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Micros => "microseconds",
            Self::Millis => "milliseconds",
            Self::Seconds => "seconds",
        }
    }

    /// Microseconds in one.
    const fn micros(self) -> u64 {
        match self {
            Self::Micros => 1,
            Self::Millis => 1_000,
            Self::Seconds => 1_000_000,
        }
    }

    fn duration(self, count: u64) -> Duration {
        Duration::from_micros(count.saturating_mul(self.micros()))
    }

    /// How often the unit fits, if it does so exactly.
    fn count(self, duration: Duration) -> Option<i64> {
        let micros = u64::try_from(duration.as_micros()).ok()?;
        let exact = micros.is_multiple_of(self.micros());
        exact.then(|| i64::try_from(micros / self.micros()).ok()).flatten()
    }
}

/// The value of a setting on its way between text and [`super::Settings`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Integer`] and [`Kind::Octal`].
    Integer(i64),
    /// Of [`Kind::Bytes`].
    Bytes(u64),
    /// Of [`Kind::Time`]; `None` is off.
    Time(Option<Duration>),
    /// Of [`Kind::Choice`]: the name as the table has it.
    Choice(&'static str),
    /// Of [`Kind::Text`], [`Kind::Path`], [`Kind::Secret`] and [`Kind::Endpoint`].
    Text(String),
    /// Of [`Kind::Addresses`] and [`Kind::Percentiles`].
    Words(Vec<String>),
    /// Of [`Kind::Limits`]: the classes named, the others keep what they have.
    Limits(Vec<(&'static str, OutputLimit)>),
}

/// Why a text is no value of a kind. It never holds the text itself, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It doesn't have the form.
    Form,
    /// It is out of bounds.
    Bounds,
    /// The file wants a unit.
    Unit,
    /// Something only this kind can say.
    Because(&'static str),
}

impl Kind {
    /// Reads what CONFIG SET or a flag says: Redis's forms, and sizes and durations with a unit.
    pub fn parse(self, text: &str) -> Result<Value, Refusal> {
        match self {
            Self::Bool => yes_or_no(text).map(Value::Bool).ok_or(Refusal::Form),
            Self::Integer(low, high) => {
                within(integer(text).ok_or(Refusal::Form)?, low, high).map(Value::Integer)
            }
            Self::Octal => octal(text),
            Self::Bytes(low, high) => match parse_size(text).ok_or(Refusal::Form)? {
                Measure::Bare(bytes) | Measure::With(bytes) => {
                    within(bytes, low, high).map(Value::Bytes)
                }
            },
            Self::Time(unit, low, high) => time(text, unit, low, high),
            Self::Choice(names) => {
                let known = names.iter().find(|name| name.eq_ignore_ascii_case(text));
                known.map(|name| Value::Choice(name)).ok_or(Refusal::Form)
            }
            Self::Text | Self::Path | Self::Secret => bounded(text),
            Self::Addresses => addresses(text.split_ascii_whitespace()),
            Self::Endpoint => match text {
                "" => Ok(Value::Text(String::new())),
                text => Endpoint::parse(text).map_err(Refusal::Because).and_then(|_| bounded(text)),
            },
            Self::Percentiles => words(text.split_ascii_whitespace(), Percentiles::parse),
            Self::Limits => OutputLimits::parse(text).map(Value::Limits).map_err(Refusal::Because),
            Self::List(_) => Err(Refusal::Form),
        }
    }

    /// Reads what the file says: TOML's own types, sizes and durations with their unit.
    pub fn parse_toml(self, toml: &Toml) -> Result<Value, Refusal> {
        match (self, toml) {
            (Self::Bool, Toml::Boolean(yes)) => Ok(Value::Bool(*yes.value())),
            (Self::Integer(low, high), Toml::Integer(number)) => {
                within(*number.value(), low, high).map(Value::Integer)
            }
            (Self::Octal, Toml::Integer(number)) => octal_integer(number),
            (Self::Bytes(..) | Self::Time(..), Toml::Integer(number)) => match number.value() {
                0 => self.parse("0"),
                _ => Err(Refusal::Unit),
            },
            (Self::Bytes(..), Toml::String(text)) => match parse_size(text.value()) {
                Some(Measure::Bare(1..)) => Err(Refusal::Unit),
                _ => self.parse(text.value()),
            },
            (Self::Time(..), Toml::String(text)) => match parse_duration(text.value()) {
                Some(Measure::Bare(1..)) => Err(Refusal::Unit),
                None if text.value() == "-1" => Err(Refusal::Form),
                _ => self.parse(text.value()),
            },
            (Self::Integer(..), Toml::String(_)) => Err(Refusal::Form),
            (Self::Addresses, Toml::Array(list)) => strings(list).and_then(addresses),
            (Self::Percentiles, Toml::Array(list)) => {
                strings(list).and_then(|list| words(list, Percentiles::parse))
            }
            (_, Toml::String(text)) => self.parse(text.value()),
            _ => Err(Refusal::Form),
        }
    }

    /// The value as CONFIG GET answers it: numbers in bytes and in the setting's unit.
    pub fn redis_text(self, value: &Value) -> String {
        match (self, value) {
            (Self::Octal, Value::Integer(bits)) => format!("{bits:o}"),
            (Self::Time(unit, ..), Value::Time(Some(time))) => {
                unit.count(*time).unwrap_or(i64::MAX).to_string()
            }
            (_, Value::Bool(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
            (_, Value::Integer(number)) => number.to_string(),
            (_, Value::Bytes(bytes)) => bytes.to_string(),
            (_, Value::Time(_)) => "-1".to_owned(),
            (_, Value::Choice(name)) => (*name).to_owned(),
            (_, Value::Text(text)) => text.clone(),
            (_, Value::Words(words)) => words.join(" "),
            (_, Value::Limits(limits)) => limits_text(limits, |bytes| bytes.to_string()),
        }
    }

    /// The value as the file has it.
    pub fn toml(self, value: &Value) -> Toml {
        match (self, value) {
            (Self::Octal, Value::Integer(bits)) => format!("{bits:o}").into(),
            (_, Value::Bool(yes)) => (*yes).into(),
            (_, Value::Integer(number)) => (*number).into(),
            (_, Value::Bytes(bytes)) => size_text(*bytes).into(),
            (_, Value::Time(None)) => "off".into(),
            (_, Value::Time(Some(time))) => duration_text(*time).into(),
            (_, Value::Choice(name)) => (*name).into(),
            (_, Value::Text(text)) => text.as_str().into(),
            (_, Value::Words(words)) => Toml::Array(words.iter().collect()),
            (_, Value::Limits(limits)) => limits_text(limits, size_text).into(),
        }
    }

    /// What was expected, for messages about a file or a flag.
    pub fn expected(self) -> String {
        match self {
            Self::Bool => "yes or no (in a file true or false)".to_owned(),
            Self::Integer(low, high) if high >= i64::from(i32::MAX) => {
                format!("an integer of at least {low}")
            }
            Self::Integer(low, high) => format!("an integer from {low} to {high}"),
            Self::Octal => "permissions in octal, such as \"700\"".to_owned(),
            Self::Bytes(low, high) => {
                format!("a size with its unit, such as \"512mb\"{}", size_bounds(low, high))
            }
            Self::Time(unit, low, _) => {
                let off = if low < 0 { ", or \"off\"" } else { "" };
                format!("a duration in whole {} with its unit, such as \"10s\"{off}", unit.name())
            }
            Self::Choice(names) => format!("one of {}", names.join(", ")),
            Self::Text | Self::Secret => "a text".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Addresses => format!("at most {MAX_WORDS} addresses, such as \"127.0.0.1\""),
            Self::Endpoint => "an address and a port, such as \"127.0.0.1:9379\"".to_owned(),
            Self::Percentiles => "percentiles, such as \"50 99 99.9\"".to_owned(),
            Self::Limits => "limits such as \"normal 64mb 0 0\"".to_owned(),
            Self::List(what) => format!("a {what}"),
        }
    }

    /// The reason as a message about a file or a flag has it.
    pub fn explain(self, refusal: &Refusal) -> String {
        match refusal {
            Refusal::Because(why) => format!("{why}; expected {}", self.expected()),
            Refusal::Unit => format!("a bare number has no unit; expected {}", self.expected()),
            Refusal::Form | Refusal::Bounds => format!("expected {}", self.expected()),
        }
    }

    /// The reason in Redis's words, as CONFIG SET answers it.
    pub fn redis_error(self, refusal: &Refusal) -> String {
        match (refusal, self) {
            (Refusal::Because(why), _) => (*why).to_owned(),
            (Refusal::Bounds, Self::Integer(low, high) | Self::Time(_, low, high)) => {
                format!("argument must be between {low} and {high} inclusive")
            }
            (Refusal::Bounds, Self::Bytes(low, high)) => {
                format!("argument must be between {low} and {high} inclusive")
            }
            (_, Self::Bool) => "argument must be 'yes' or 'no'".to_owned(),
            (_, Self::Bytes(..)) => "argument must be a memory value".to_owned(),
            (_, Self::Choice(names)) => {
                format!("argument(s) must be one of the following: {}", names.join(", "))
            }
            (_, Self::Integer(..) | Self::Time(..)) => {
                "argument couldn't be parsed into an integer".to_owned()
            }
            (_, kind) => format!("expected {}", kind.expected()),
        }
    }

    /// The placeholder of the value in `--help`.
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Bool => "YES|NO",
            Self::Integer(..) => "N",
            Self::Octal => "OCTAL",
            Self::Bytes(..) => "SIZE",
            Self::Time(..) => "DURATION",
            Self::Choice(_) => "NAME",
            Self::Text | Self::Secret => "TEXT",
            Self::Path => "PATH",
            Self::Addresses => "ADDRESS",
            Self::Endpoint => "ADDRESS:PORT",
            Self::List(_) => "LIST",
            Self::Percentiles => "PERCENTILES",
            Self::Limits => "LIMITS",
        }
    }
}

fn yes_or_no(text: &str) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case("yes") => Some(true),
        _ if text.eq_ignore_ascii_case("no") => Some(false),
        _ => None,
    }
}

/// A number as Redis reads it: no plus sign, no leading zero, no blank.
fn integer(text: &str) -> Option<i64> {
    text.parse::<i64>().ok().filter(|number| number.to_string() == text)
}

fn within<T: PartialOrd>(number: T, low: T, high: T) -> Result<T, Refusal> {
    if number < low || number > high { Err(Refusal::Bounds) } else { Ok(number) }
}

fn octal(text: &str) -> Result<Value, Refusal> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let bits = i64::from_str_radix(text, 8).ok().filter(|_| digits).ok_or(Refusal::Form)?;
    within(bits, 0, 0o777).map(Value::Integer).map_err(|_| Refusal::Form)
}

/// `0o700`, not `700`, which TOML reads in decimal.
fn octal_integer(number: &Formatted<i64>) -> Result<Value, Refusal> {
    let repr = number.as_repr().and_then(|repr| repr.as_raw().as_str()).unwrap_or_default();
    if *number.value() != 0 && !repr.starts_with("0o") {
        return Err(Refusal::Because("an integer here is decimal"));
    }
    within(*number.value(), 0, 0o777).map(Value::Integer).map_err(|_| Refusal::Form)
}

/// A duration: a bare number counts in `unit`, -1 and `off` are off where that is allowed.
fn time(text: &str, unit: Unit, low: i64, high: i64) -> Result<Value, Refusal> {
    if low < 0 && text.eq_ignore_ascii_case("off") {
        return Ok(Value::Time(None));
    }
    let count = match parse_duration(text) {
        Some(Measure::With(time)) => unit.count(time).ok_or(Refusal::Bounds)?,
        _ => integer(text).ok_or(Refusal::Form)?,
    };
    let count = within(count, low, high)?;
    Ok(Value::Time(u64::try_from(count).ok().map(|count| unit.duration(count))))
}

fn bounded(text: &str) -> Result<Value, Refusal> {
    if text.len() > MAX_TEXT {
        return Err(Refusal::Because("longer than 4096 bytes"));
    }
    Ok(Value::Text(text.to_owned()))
}

fn addresses<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Value, Refusal> {
    words(list, |word| BindAddress::parse(word).map(|address| address.to_string()))
}

/// Words, each as this reads it.
fn words<'a>(
    list: impl IntoIterator<Item = &'a str>,
    parse: fn(&str) -> Result<String, &'static str>,
) -> Result<Value, Refusal> {
    let words: Result<Vec<_>, _> = list.into_iter().map(parse).collect();
    let words = words.map_err(Refusal::Because)?;
    if words.len() > MAX_WORDS {
        return Err(Refusal::Because("there are too many of them"));
    }
    Ok(Value::Words(words))
}

fn strings(list: &Array) -> Result<Vec<&str>, Refusal> {
    list.iter().map(|item| item.as_str().ok_or(Refusal::Form)).collect()
}

fn size_bounds(low: u64, high: u64) -> String {
    match (low, high) {
        (0, _) => String::new(),
        (low, HUGE..) => format!(", at least {}", size_text(low)),
        (low, high) => format!(", from {} to {}", size_text(low), size_text(high)),
    }
}

fn limits_text(limits: &[(&str, OutputLimit)], size: impl Fn(u64) -> String) -> String {
    let one = |(class, limit): &(&str, OutputLimit)| {
        let (hard, soft) = (size(limit.hard), size(limit.soft));
        format!("{class} {hard} {soft} {}", limit.soft_time.as_secs())
    };
    limits.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Kind = Kind::Time(Unit::Seconds, 0, i32::MAX as i64);
    const SLOWLOG: Kind = Kind::Time(Unit::Micros, -1, i64::MAX / 1_000_000);

    fn refused(kind: Kind, text: &str) -> String {
        kind.parse(text).map_err(|refusal| kind.redis_error(&refusal)).expect_err(text)
    }

    fn from_file(kind: Kind, toml: &str) -> Result<Value, Refusal> {
        kind.parse_toml(&toml.parse().expect(toml))
    }

    #[test]
    fn the_words_are_redis_words() {
        let not_an_integer = "argument couldn't be parsed into an integer";
        for text in ["abc", "+5", "007", "-0", " 5", "", "99999999999999999999"] {
            assert_eq!(refused(TIMEOUT, text), not_an_integer, "{text:?}");
        }
        let bounds = "argument must be between 0 and 2147483647 inclusive";
        assert_eq!(refused(TIMEOUT, "-1"), bounds);
        assert_eq!(refused(Kind::Bytes(0, u64::MAX), "-1"), "argument must be a memory value");
        assert_eq!(refused(Kind::Bool, "maybe"), "argument must be 'yes' or 'no'");
        let names = "argument(s) must be one of the following: a, b";
        assert_eq!(refused(Kind::Choice(&["a", "b"]), "c"), names);
        for (text, error) in [
            ("normal 1 2", "Wrong number of arguments in buffer limit configuration."),
            ("foo 1 2 3", "Invalid client class specified in buffer limit configuration."),
            (
                "normal a 2 3",
                "Error in hard, soft or soft_seconds setting in buffer limit configuration.",
            ),
        ] {
            assert_eq!(refused(Kind::Limits, text), error);
        }
    }

    #[test]
    fn durations_with_and_without_unit() {
        let minute = Value::Time(Some(Duration::from_secs(60)));
        assert_eq!(TIMEOUT.parse("60").as_ref(), Ok(&minute));
        assert_eq!(TIMEOUT.parse("1m").as_ref(), Ok(&minute));
        assert_eq!(from_file(TIMEOUT, "'1m'"), Ok(minute.clone()));
        assert_eq!(from_file(TIMEOUT, "60"), Err(Refusal::Unit));
        assert_eq!(from_file(TIMEOUT, "'60'"), Err(Refusal::Unit));
        assert_eq!(from_file(TIMEOUT, "0"), Ok(Value::Time(Some(Duration::ZERO))));
        assert_eq!(TIMEOUT.parse("1500ms"), Err(Refusal::Bounds));
        assert_eq!(TIMEOUT.redis_text(&minute), "60");
        assert_eq!(SLOWLOG.parse("-1"), Ok(Value::Time(None)));
        assert_eq!(from_file(SLOWLOG, "'off'"), Ok(Value::Time(None)));
        assert_eq!(from_file(SLOWLOG, "'-1'"), Err(Refusal::Form));
        assert_eq!(SLOWLOG.redis_text(&Value::Time(None)), "-1");
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(Kind::Octal.parse("700"), Ok(Value::Integer(0o700)));
        assert_eq!(from_file(Kind::Octal, "'770'"), Ok(Value::Integer(0o770)));
        assert_eq!(from_file(Kind::Octal, "0o770"), Ok(Value::Integer(0o770)));
        assert!(from_file(Kind::Octal, "400").is_err());
        assert!(Kind::Octal.parse("1000").is_err());
        assert!(Kind::Octal.parse("8").is_err());
        assert!(Kind::Octal.parse("+7").is_err());
    }

    #[test]
    fn addresses_are_checked() {
        let words =
            |list: &[&str]| Ok(Value::Words(list.iter().map(ToString::to_string).collect()));
        assert_eq!(Kind::Addresses.parse("* -::*"), words(&["0.0.0.0", "-::"]));
        assert_eq!(
            from_file(Kind::Addresses, "['::1', 'localhost']"),
            words(&["::1", "localhost"])
        );
        assert_eq!(from_file(Kind::Addresses, "''"), words(&[]));
        for bad in ["127.0.0.1:6379", "[::1]", "a/b", "-", "--port"] {
            assert!(Kind::Addresses.parse(bad).is_err(), "{bad}");
        }
        assert!(Kind::Addresses.parse(&"::1 ".repeat(17)).is_err());
    }

    #[test]
    fn wrong_types_say_what_was_expected() {
        let kind = Kind::Integer(0, 65_535);
        let refusal = from_file(kind, "'6379'").expect_err("a string");
        assert_eq!(kind.explain(&refusal), "expected an integer from 0 to 65535");
        let kind = Kind::Bytes(1 << 20, i64::MAX as u64);
        let text = "expected a size with its unit, such as \"512mb\", at least 1mb";
        assert_eq!(kind.explain(&Refusal::Bounds), text);
    }

    proptest! {
        #[test]
        fn redis_text_parses_back(
            count in 0..=i64::from(i32::MAX),
            bytes: u64,
            bits in 0..=0o777i64,
        ) {
            for (kind, text) in [
                (TIMEOUT, count.to_string()),
                (SLOWLOG, count.to_string()),
                (Kind::Bytes(0, u64::MAX), bytes.to_string()),
                (Kind::Octal, format!("{bits:o}")),
                (Kind::Limits, format!("normal {bytes} {count} 1")),
            ] {
                let value = kind.parse(&text).expect("a value");
                prop_assert_eq!(kind.redis_text(&value), text);
                prop_assert_eq!(kind.parse_toml(&kind.toml(&value)), Ok(value));
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,40}") {
            for kind in [TIMEOUT, SLOWLOG, Kind::Octal, Kind::Addresses, Kind::Limits, Kind::Bool] {
                let _ = kind.parse(&text);
            }
        }
    }
}
