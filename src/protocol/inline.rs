//! Inline requests: a line of words as one types it into telnet.
//!
//! Words are separated by white space. A word may end in a quoted part: in double quotes the escapes
//! `\n \r \t \b \a` and `\xHH` are known and any other escaped byte stands for itself; in single
//! quotes only `\'` is. A closing quote must be followed by white space or the end of the line.

/// Splits `line` into words and calls `word(start, len)` for each. Quotes and escapes are resolved
/// in place, for what remains is never longer. False if the quotes are unbalanced; what was
/// resolved until then stays so.
pub(super) fn split(line: &mut [u8], mut word: impl FnMut(usize, usize)) -> bool {
    let mut at = 0;
    loop {
        at += line[at..].iter().take_while(|byte| is_space(**byte)).count();
        if at == line.len() {
            return true;
        }
        let Some((read, written)) = unquote(line, at) else { return false };
        word(at, written - at);
        at = read;
    }
}

/// Resolves the word at `start`: where reading and where writing ended.
fn unquote(line: &mut [u8], start: usize) -> Option<(usize, usize)> {
    let mut at = start;
    // Until the first quote every byte stays where it is.
    while let Some(byte) = line.get(at) {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => break,
            b'"' => return resolve(line, at, double_quoted),
            b'\'' => return resolve(line, at, single_quoted),
            _ => at += 1,
        }
    }
    Some((at, at))
}

/// Resolves the quoted part that opens at `open`, byte by byte as `next` says: the byte meant and how
/// many stand for it.
fn resolve(
    line: &mut [u8],
    open: usize,
    next: fn(&[u8]) -> Option<(u8, usize)>,
) -> Option<(usize, usize)> {
    let quote = line[open];
    let (mut read, mut write) = (open + 1, open);
    loop {
        let rest = &line[read..];
        if rest.first() == Some(&quote) {
            let closes = rest.get(1).is_none_or(|after| is_space(*after));
            return closes.then_some((read + 1, write));
        }
        let (byte, used) = next(rest)?;
        line[write] = byte;
        write += 1;
        read += used;
    }
}

/// The next byte of a part in double quotes, and its length in the line; `None` at the line's end.
fn double_quoted(rest: &[u8]) -> Option<(u8, usize)> {
    match *rest {
        [b'\\', b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
            Some((hex(high) << 4 | hex(low), 4))
        }
        [b'\\', escaped, ..] => Some((unescape(escaped), 2)),
        [byte, ..] => Some((byte, 1)),
        [] => None,
    }
}

/// The next byte of a part in single quotes, and its length in the line; `None` at the line's end.
fn single_quoted(rest: &[u8]) -> Option<(u8, usize)> {
    match *rest {
        [b'\\', b'\'', ..] => Some((b'\'', 2)),
        [byte, ..] => Some((byte, 1)),
        [] => None,
    }
}

/// What a backslash and this byte stand for.
fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// White space as C's `isspace` sees it: vertical tab and form feed too.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut line = line.to_vec();
        let mut spans = Vec::new();
        let balanced = split(&mut line, |start, len| spans.push(start..start + len));
        balanced.then(|| spans.into_iter().map(|span| line[span].to_vec()).collect())
    }

    fn check(line: &[u8], expected: Option<&[&[u8]]>) {
        let expected = expected.map(|words| words.iter().map(|word| word.to_vec()).collect());
        assert_eq!(words(line), expected, "{}", line.escape_ascii());
    }

    /// Each line was given to redis-server 7.0.15.
    #[test]
    fn words_are_those_of_redis() {
        check(b"", Some(&[]));
        check(b" \t\r\x0b\x0c ", Some(&[]));
        check(b"a  b\tc\rd ", Some(&[b"a", b"b", b"c", b"d"]));
        check(b"a\x0bb \x0bc", Some(&[b"a\x0bb", b"c"]));
        check(b"\"\" ''", Some(&[b"", b""]));
        check(br#""a\x41\n\r\t\b\a\q\\\"""#, Some(&[b"aA\n\r\t\x08\x07q\\\""]));
        check(br#""\x4" "\xzz" "\xfF""#, Some(&[b"x4", b"xzz", b"\xff"]));
        check(br"'a\'b\n' 'a\b'", Some(&[br"a'b\n", br"a\b"]));
        check(br#"a"b c"  x"" a\x41"#, Some(&[b"ab c", b"x", br"a\x41"]));
        check(b"\"a\rb\" \x85\xa0", Some(&[b"a\rb", b"\x85\xa0"]));
    }

    #[test]
    fn unbalanced_quotes_are_seen() {
        for line in [r#""abc"#, r#""a"b"#, r#""a""b""#, "a'b c'd", "'a'b", r#""a\"#, r#""a\""#, "'"]
        {
            check(line.as_bytes(), None);
        }
    }
}
