//! What a request may measure, and how Redis refuses what doesn't fit or isn't a number.

use crate::error::ProtocolError;

/// `proto-max-bulk-len` if nothing else is configured.
const DEFAULT_MAX_BULK: usize = 512 << 20;

/// What a request may measure. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest bulk string.
    pub bulk: usize,
    /// Most arguments of a multibulk request.
    pub args: usize,
    /// Longest inline request, and longest header line.
    pub inline: usize,
    /// At most this many requests per scan.
    pub batch: usize,
    /// Whether the client has authenticated, which decides the error texts.
    pub authenticated: bool,
}

impl Limits {
    /// The limits of a client that may run commands; `max_bulk` is `proto-max-bulk-len`.
    pub const fn authenticated(max_bulk: usize) -> Self {
        Self { bulk: max_bulk, args: 1 << 20, inline: 64 << 10, batch: 128, authenticated: true }
    }

    /// The limits before AUTH: one request at a time, since it may change them.
    pub const fn anonymous() -> Self {
        Self { bulk: 16 << 10, args: 10, inline: 64 << 10, batch: 1, authenticated: false }
    }

    /// The number of arguments that a request's header line says; 0 if it is to be skipped.
    pub(super) fn check_star(&self, line: &[u8]) -> Result<u32, ProtocolError> {
        let text = line.strip_prefix(b"*").unwrap_or_default();
        let count = integer(text).filter(|count| *count <= i64::from(i32::MAX));
        match count {
            None => malformed("invalid multibulk length"),
            Some(..=0) => Ok(0),
            Some(count) if count as u64 <= self.args as u64 => Ok(count as u32),
            Some(_) if self.authenticated => malformed("invalid multibulk length"),
            Some(_) => malformed("unauthenticated multibulk length"),
        }
    }

    /// The length that a bulk's header line says.
    pub(super) fn check_dollar(&self, line: &[u8]) -> Result<u32, ProtocolError> {
        match line {
            [b'$', number @ ..] => self.check_bulk(number),
            // An empty line: its end is what came instead. Redis shows that as a space.
            [] => malformed("expected '$', got ' '"),
            [other, ..] => Err(ProtocolError::Malformed(expected_dollar(*other).into())),
        }
    }

    /// The length of a bulk string that a header's text says.
    fn check_bulk(&self, text: &[u8]) -> Result<u32, ProtocolError> {
        let Some(len) = integer(text).and_then(|len| u32::try_from(len).ok()) else {
            return malformed("invalid bulk length");
        };
        match len as usize {
            size if size <= self.bulk => Ok(len),
            size if self.authenticated || size > DEFAULT_MAX_BULK => {
                malformed("invalid bulk length")
            }
            _ => malformed("unauthenticated bulk length"),
        }
    }
}

/// The error text for a byte in place of a `$`.
fn expected_dollar(got: u8) -> String {
    let shown = match got {
        b'\n' | 0 => ' ',
        _ if got.is_ascii() => char::from(got),
        _ => '?',
    };
    format!("expected '$', got '{shown}'")
}

/// A number as Redis takes it in a header: no sign but `-`, no leading zeros, in the range of `i64`.
fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        b"0" => (text.len() == 1).then_some(0),
        [b'1'..=b'9', ..] => str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// The error with this text.
pub(super) fn malformed<T>(text: &'static str) -> Result<T, ProtocolError> {
    Err(ProtocolError::Malformed(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_as_redis_takes_them() {
        let max = i64::MAX.to_string();
        let good = [("0", 0), ("7", 7), ("-1", -1), ("120", 120), (&max, i64::MAX)];
        for (text, number) in good {
            assert_eq!(integer(text.as_bytes()), Some(number));
        }
        assert_eq!(integer(i64::MIN.to_string().as_bytes()), Some(i64::MIN));
        for text in ["", "-", "-0", "00", "01", "+1", " 1", "1 ", "1x", "9223372036854775808"] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
    }
}
