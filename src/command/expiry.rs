//! Deadlines as commands say them: a number, its unit, and whether it counts from now.
//!
//! SET, GETEX, SETEX and PSETEX take only times above zero
//! (<https://redis.io/docs/latest/commands/set/>); the EXPIRE family, which takes any, has its own
//! rule over the same units.

use super::Args;
use crate::{cache::tx::Ttl, error::ClientError, tier::entry::MAX_DEADLINE, value::number};

/// In what a time is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
}

/// The deadline in unix milliseconds that a positive time means, at most [`MAX_DEADLINE`].
///
/// `relative` is the present (unix milliseconds) where the time counts from it, `None` where it is a
/// unix time itself; `command` is named in the error.
///
/// # Errors
/// `ERR value is not an integer or out of range`; `ERR invalid expire time in '...' command` for what
/// isn't above zero or doesn't fit 63 bits as milliseconds.
pub(super) fn deadline(
    raw: &[u8],
    unit: Unit,
    relative: Option<u64>,
    command: &str,
) -> Result<u64, ClientError> {
    let time = number::parse_i64(raw).ok_or(ClientError::NOT_INTEGER)?;
    let positive = (time > 0).then_some(time);
    let millis = positive.and_then(|time| match unit {
        Unit::Seconds => time.checked_mul(1000),
        Unit::Milliseconds => Some(time),
    });
    let at = millis.and_then(|millis| millis.checked_add_unsigned(relative.unwrap_or(0)));
    match at {
        Some(at) => Ok((at as u64).min(MAX_DEADLINE)),
        None => Err(invalid(command)),
    }
}

/// `ERR invalid expire time in '...' command`.
pub(super) fn invalid(command: &str) -> ClientError {
    ClientError::from(format!("ERR invalid expire time in '{command}' command"))
}

/// What EX, PX, EXAT and PXAT say of the number behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scale {
    unit: Unit,
    relative: bool,
}

impl Scale {
    /// Reads the word, in any case.
    fn parse(word: &[u8]) -> Option<Self> {
        let known: [(&[u8], Unit, bool); 4] = [
            (b"ex", Unit::Seconds, true),
            (b"px", Unit::Milliseconds, true),
            (b"exat", Unit::Seconds, false),
            (b"pxat", Unit::Milliseconds, false),
        ];
        known
            .into_iter()
            .find(|(name, ..)| word.eq_ignore_ascii_case(name))
            .map(|(_, unit, relative)| Self { unit, relative })
    }
}

/// The part of SET's and GETEX's options that is about the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Expiry<'a> {
    /// Nothing was said.
    #[default]
    Unsaid,
    /// KEEPTTL.
    Keep,
    /// PERSIST.
    Persist,
    /// EX, PX, EXAT or PXAT with its number, not yet read.
    Given(Scale, &'a [u8]),
}

impl<'a> Expiry<'a> {
    /// Takes the option at `at`, whose bare word may be `bare` (KEEPTTL or PERSIST); returns the index
    /// behind it. The same option may come again, and the last one counts.
    ///
    /// # Errors
    /// `ERR syntax error` for another word, a missing number, or two different options.
    pub(super) fn take(
        &mut self,
        args: Args<'a>,
        at: usize,
        (word, bare): (&str, Self),
    ) -> Result<usize, ClientError> {
        let (said, next) = if args.is(at, word) {
            (bare, at + 1)
        } else {
            let scale = Scale::parse(args.get(at)).filter(|_| at + 1 < args.len());
            (Self::Given(scale.ok_or(ClientError::SYNTAX)?, args.get(at + 1)), at + 2)
        };
        let fits = match (*self, said) {
            (Self::Unsaid, _) => true,
            (Self::Given(before, _), Self::Given(now, _)) => before == now,
            (before, now) => before == now,
        };
        if !fits {
            return Err(ClientError::SYNTAX);
        }
        *self = said;
        Ok(next)
    }

    /// What it means for a write at the time `now`; `None` if nothing was said.
    ///
    /// # Errors
    /// Those of [`deadline`].
    pub(super) fn ttl(self, now: u64, command: &str) -> Result<Option<Ttl>, ClientError> {
        Ok(match self {
            Self::Unsaid => None,
            Self::Keep => Some(Ttl::Keep),
            Self::Persist => Some(Ttl::Clear),
            Self::Given(Scale { unit, relative }, raw) => {
                Some(Ttl::At(deadline(raw, unit, relative.then_some(now), command)?))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn units_and_origins() {
        let at = |raw: &str, unit, relative| deadline(raw.as_bytes(), unit, relative, "set");
        assert_eq!(at("10", Unit::Seconds, Some(NOW)), Ok(NOW + 10_000));
        assert_eq!(at("10", Unit::Milliseconds, Some(NOW)), Ok(NOW + 10));
        assert_eq!(at("10", Unit::Seconds, None), Ok(10_000));
        assert_eq!(at("10", Unit::Milliseconds, None), Ok(10));
    }

    #[test]
    fn far_deadlines_are_capped_and_impossible_ones_refused() {
        let at = |raw: &str, unit, relative| deadline(raw.as_bytes(), unit, relative, "set");
        let refused = Err(ClientError::new("ERR invalid expire time in 'set' command"));
        let longest = i64::MAX.to_string();
        assert_eq!(at(&longest, Unit::Milliseconds, None), Ok(MAX_DEADLINE));
        assert_eq!(at(&longest, Unit::Milliseconds, Some(1)), refused);
        assert_eq!(at("9223372036854775", Unit::Seconds, None), Ok(MAX_DEADLINE));
        assert_eq!(at("9223372036854776", Unit::Seconds, None), refused);
        assert_eq!(at("9223372036854775", Unit::Seconds, Some(NOW)), refused);
        for raw in ["0", "-1", "-9223372036854775808"] {
            assert_eq!(at(raw, Unit::Seconds, Some(NOW)), refused);
        }
        for raw in ["", "x", "1.5", " 1", "9223372036854775808"] {
            assert_eq!(at(raw, Unit::Seconds, None), Err(ClientError::NOT_INTEGER));
        }
    }
}
