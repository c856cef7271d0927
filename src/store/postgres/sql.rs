//! Your own SQL: named parameters (`:id`) become Postgres's `$1`, `$2`, ...
//!
//! The text is taken apart as Postgres's own scanner does it, so that a colon in a string, a quoted
//! name, a comment, a dollar quote or a cast (`::int`) is no parameter. Each place where a name stands
//! gets a number of its own: Postgres then finds a type for each, and one name may stand for a text here
//! and for a number there. A slice of an array needs a blank, `a[1 : n]`.

/// What a parameter stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// A part of the key, by its number in the pattern.
    Part(usize),
    /// The value.
    Value,
    /// The version of the write.
    Version,
    /// When the data ends, in unix milliseconds; NULL for never.
    Deadline,
}

/// One statement as Postgres takes it, and what its parameters stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sql {
    pub(super) text: String,
    pub(super) bindings: Vec<Binding>,
}

/// What a piece of the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Blank,
    Parameter,
    Semicolon,
    Other,
}

impl Sql {
    /// Reads a statement; `known` says what a name stands for.
    pub(super) fn parse(
        text: &str,
        known: impl Fn(&str) -> Option<Binding>,
    ) -> Result<Self, String> {
        let mut sql = Self { text: String::with_capacity(text.len()), bindings: Vec::new() };
        let (mut at, mut is_empty, mut has_ended) = (0, true, false);
        while at < text.len() {
            let (piece, end) = next_piece(text, at)?;
            let found = &text[at..end];
            match piece {
                Piece::Blank => sql.text += found,
                Piece::Semicolon => has_ended = true,
                _ if has_ended => return Err("more than one statement".into()),
                Piece::Parameter => {
                    let binding = known(&found[1..]);
                    let binding = binding.ok_or_else(|| format!("nothing is called `{found}`"))?;
                    sql.bindings.push(binding);
                    sql.text += &format!("${}", sql.bindings.len());
                }
                Piece::Other => {
                    is_empty = false;
                    sql.text += found;
                }
            }
            at = end;
        }
        if is_empty { Err("no statement".into()) } else { Ok(sql) }
    }
}

/// The piece that begins at `at`, and where it ends: always at a whole character, since what begins and
/// ends a piece is ASCII.
fn next_piece(text: &str, at: usize) -> Result<(Piece, usize), String> {
    let bytes = text.as_bytes();
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let other = |end| Ok((Piece::Other, end));
    match (byte(at), byte(at + 1)) {
        (0, _) => Err("a NUL character".into()),
        (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => Ok((Piece::Blank, at + 1)),
        (b'-', b'-') => {
            let line = bytes[at..].iter().position(|byte| *byte == b'\n');
            Ok((Piece::Blank, line.map_or(bytes.len(), |length| at + length)))
        }
        (b'/', b'*') => Ok((Piece::Blank, comment_end(bytes, at)?)),
        (b'\'' | b'"', _) => other(quote_end(bytes, at, false)?),
        (b'$', b'0'..=b'9') => Err("a parameter has a name: `:id`, not `$1`".into()),
        (b'$', _) => other(dollar_end(text, at)?),
        (b':', b':' | b'=') => other(at + 2),
        (b':', first) if first.is_ascii_alphabetic() || first == b'_' => {
            let is_name = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
            let length = bytes[at + 1..].iter().take_while(is_name).count();
            Ok((Piece::Parameter, at + 1 + length))
        }
        (b';', _) => Ok((Piece::Semicolon, at + 1)),
        (b'e' | b'E', b'\'') => other(quote_end(bytes, at + 1, true)?),
        (first, _) if is_word(first) => {
            let is_more = |byte: &&u8| is_word(**byte) || byte.is_ascii_digit() || **byte == b'$';
            other(at + bytes[at..].iter().take_while(is_more).count())
        }
        _ => other(at + 1),
    }
}

/// Whether a name or a keyword may begin with it.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// Comments nest.
fn comment_end(bytes: &[u8], start: usize) -> Result<usize, String> {
    let (mut at, mut depth) = (start, 0);
    while let Some(pair) = bytes.get(at..at + 2) {
        match pair {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Ok(at);
        }
    }
    Err("a comment without its end".into())
}

/// The end of a string or a quoted name; a doubled quote is one of its characters.
fn quote_end(bytes: &[u8], start: usize, has_escapes: bool) -> Result<usize, String> {
    let quote = bytes[start];
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match *byte {
            b'\\' if has_escapes => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return Ok(at + 1),
            _ => at += 1,
        }
    }
    Err("a quote without its end".into())
}

/// The end of a dollar quote (`$$...$$`, `$tag$...$tag$`); a `$` that begins none stands alone.
fn dollar_end(text: &str, start: usize) -> Result<usize, String> {
    let behind = &text.as_bytes()[start + 1..];
    let is_tag = |byte: &&u8| is_word(**byte) || byte.is_ascii_digit();
    let length = behind.iter().take_while(is_tag).count();
    if behind.get(length) != Some(&b'$') {
        return Ok(start + 1);
    }
    let inside = start + length + 2;
    let tag = &text[start..inside];
    let end = text[inside..].find(tag).ok_or("a dollar quote without its end")?;
    Ok(inside + end + tag.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(name: &str) -> Option<Binding> {
        match name {
            "id" => Some(Binding::Part(0)),
            "value" => Some(Binding::Value),
            _ => None,
        }
    }

    #[test]
    fn names_become_numbers() {
        let id = Binding::Part(0);
        for (text, expected, bindings) in [
            ("select :id", "select $1", vec![id]),
            ("select :id,:id , :value", "select $1,$2 , $3", vec![id, id, Binding::Value]),
            ("select :id::int", "select $1::int", vec![id]),
            ("select a::id", "select a::id", vec![]),
            ("select ':id''' , :id", "select ':id''' , $1", vec![id]),
            (r"select E'\':id' , e'\\', :id", r"select E'\':id' , e'\\', $1", vec![id]),
            (r"select '\', :id", r"select '\', $1", vec![id]),
            ("select \":id\"\"\" , :id", "select \":id\"\"\" , $1", vec![id]),
            ("select -- :id\n:id", "select -- :id\n$1", vec![id]),
            ("select /* :x /* : */ :y */ :id", "select /* :x /* : */ :y */ $1", vec![id]),
            ("select $$ :id ' $$, :id", "select $$ :id ' $$, $1", vec![id]),
            ("select $a$ $$ :id $a$, :id", "select $a$ $$ :id $a$, $1", vec![id]),
            ("select a$b, :id", "select a$b, $1", vec![id]),
            ("select a[1 : n], f(x := 1)", "select a[1 : n], f(x := 1)", vec![]),
            ("select 'ü', ü.:id ; -- end", "select 'ü', ü.$1  -- end", vec![id]),
            ("select name'x'", "select name'x'", vec![]),
        ] {
            let sql = Sql::parse(text, known).unwrap();
            assert_eq!((sql.text.as_str(), &sql.bindings), (expected, &bindings), "{text}");
        }
    }

    #[test]
    fn what_is_no_statement_is_refused() {
        for (text, why) in [
            ("", "no statement"),
            (" -- x", "no statement"),
            ("select :nmae", "nothing is called `:nmae`"),
            ("select $1", "a parameter has a name: `:id`, not `$1`"),
            ("select 1; select 2", "more than one statement"),
            ("select 'x", "a quote without its end"),
            (r"select e'\'", "a quote without its end"),
            ("select \"x", "a quote without its end"),
            ("select /* /* */", "a comment without its end"),
            ("select $a$ $b$", "a dollar quote without its end"),
            ("select \0", "a NUL character"),
        ] {
            assert_eq!(Sql::parse(text, known), Err(why.to_owned()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "([a-zü$'\"\\\\:;/*\n -]|:id|e'|\\$a\\$){0,40}") {
            let _ = Sql::parse(&text, known);
        }
    }
}
