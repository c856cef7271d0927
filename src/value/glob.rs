//! Redis's glob patterns: `*`, `?`, `[abc]`, `[^a]`, `[a-z]`, and `\x` for a literal `x`.
//!
//! The rules are those of the KEYS page (<https://redis.io/docs/latest/commands/keys/>), over bytes.
//! Every element but `*` takes exactly one byte, so it is enough to return to the *last* star when
//! something doesn't fit: time is at most pattern times text, there is no recursion, and a pattern
//! such as `a*a*a*a*b` has no exponential case (CVE-2022-36021).

/// Whether the pattern fits the whole text.
///
/// As in Redis, a class without its `]` ends with the pattern, a `\` at the very end stands for
/// itself, and no pattern but the empty one fits the empty text (KEYS and SCAN take the lone `*` for
/// "all" before they ask).
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    run(pattern, text, exact)
}

/// [`matches`], with ASCII letters equal in both cases (but for those behind a `\` in a class).
pub fn matches_ignore_case(pattern: &[u8], text: &[u8]) -> bool {
    run(pattern, text, u8_lower)
}

/// How a byte is seen before it is compared.
type Fold = fn(u8) -> u8;

fn exact(byte: u8) -> u8 {
    byte
}

fn u8_lower(byte: u8) -> u8 {
    byte.to_ascii_lowercase()
}

fn run(pattern: &[u8], text: &[u8], fold: Fold) -> bool {
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut p, mut t) = (0, 0);
    // Behind the last star: the pattern's rest, and where in the text it was last tried.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            if p == pattern.len() {
                return true;
            }
            retry = Some((p, t));
        } else if let Some(used) = one(&pattern[p..], text[t], fold) {
            p += used;
            t += 1;
        } else if let Some((rest, tried)) = retry {
            retry = Some((rest, tried + 1));
            (p, t) = (rest, tried + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Fits one byte to the element at the pattern's head; returns the element's length if it fits.
fn one(pattern: &[u8], byte: u8, fold: Fold) -> Option<usize> {
    let same = |literal: u8| fold(literal) == fold(byte);
    match *pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', ref class @ ..] => one_of(class, byte, fold).map(|used| used + 1),
        [b'\\', literal, ..] => same(literal).then_some(2),
        [literal, ..] => same(literal).then_some(1),
    }
}

/// Fits one byte to a class (given behind its `[`); returns the class's length, its `]` included.
fn one_of(class: &[u8], byte: u8, fold: Fold) -> Option<usize> {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match class[at..] {
            [] => break,
            [b'\\', literal, ..] => {
                found |= literal == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [from, b'-', to, ..] => {
                found |= within(from, to, byte, fold);
                at += 3;
            }
            [literal, ..] => {
                found |= fold(literal) == fold(byte);
                at += 1;
            }
        }
    }
    (found != negated).then_some(at)
}

/// Whether the byte lies in a range, whose ends may come in either order.
fn within(from: u8, to: u8, byte: u8, fold: Fold) -> bool {
    let (low, high) = (fold(from.min(to)), fold(from.max(to)));
    (low..=high).contains(&fold(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(pattern: &str, text: &str) -> bool {
        matches(pattern.as_bytes(), text.as_bytes())
    }

    #[test]
    fn elements() {
        for (pattern, text) in [
            ("h?llo", "hello"),
            ("h*llo", "hllo"),
            ("h*llo", "heeeello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hbllo"),
            ("h[a-b]llo", "hbllo"),
            ("h[b-a]llo", "hallo"),
            ("\\*x", "*x"),
            ("a**", "a"),
            ("*a*", "bab"),
            ("[a-]x", "a"),
            ("", ""),
            ("[\\]]", "]"),
            ("x\\", "x\\"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("h?llo", "hllo"),
            ("h[^e]llo", "hello"),
            ("h[a-b]llo", "hcllo"),
            ("\\*x", "ax"),
            ("*", ""),
            ("a", ""),
            ("", "a"),
            ("A", "a"),
            ("[]", "a"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_class_without_its_end_ends_with_the_pattern() {
        assert!(fits("[abc", "b"));
        assert!(fits("[^", "b"));
        assert!(fits("[\\", "\\"));
        assert!(fits("[a-", "-"));
        assert!(!fits("[", "["));
        assert!(!fits("[abc", "bc"));
    }

    #[test]
    fn case() {
        assert!(matches_ignore_case(b"MaxMem*", b"maxmemory"));
        assert!(matches_ignore_case(b"[A-C]x[D]", b"bXd"));
        assert!(!matches_ignore_case(b"[\\A]", b"a"));
    }

    #[test]
    fn many_stars_stay_cheap() {
        let pattern = b"a*".repeat(5_000);
        let text = vec![b'a'; 20_000];
        assert!(matches(&pattern, &text));
        assert!(!matches(&[&pattern[..], b"b"].concat(), &text));
    }

    /// The definition, by recursion.
    fn model(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|skip| model(rest, &text[skip..])),
            _ => text.first().is_some_and(|&byte| {
                one(pattern, byte, exact).is_some_and(|used| model(&pattern[used..], &text[1..]))
            }),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            pattern in "[ab*?^\\[\\]\\\\-]{0,12}",
            text in "[ab\\]\\\\-]{1,10}",
        ) {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches(pattern, text), model(pattern, text));
        }
    }
}
