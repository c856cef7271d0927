//! Reads a row's syntax, in the notation of Redis's documentation, into the tree of arguments that
//! COMMAND DOCS answers and redis-cli hints from.
//!
//! ```text
//! choice   = sequence { "|" sequence }
//! sequence = { item }
//! item     = word | "[" choice "]" | "<" choice ">" | "(" choice ")" | item "..." | "[" choice "..." "]"
//! ```
//!
//! A word in capitals is a token, sent as it is; another names a value. `[ ]` is optional, `< >` and
//! `( )` group. A bracket that ends in `...` says that what stands before it, and is spelled once more in
//! it, may be repeated: `key value [key value ...]`.

use super::facts::key_specs;
use crate::command::{row::KeySpec, table::Entry};

/// What an argument is, named as COMMAND DOCS names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    String,
    /// An integer.
    Integer,
    /// A floating point number.
    Double,
    /// The name of a key.
    Key,
    /// A glob pattern.
    Pattern,
    /// A point in time.
    UnixTime,
    /// A word that stands for itself.
    PureToken,
    /// One of several arguments.
    OneOf,
    /// Several arguments, one after the other.
    Block,
}

impl Kind {
    /// The name in COMMAND DOCS.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Double => "double",
            Self::Key => "key",
            Self::Pattern => "pattern",
            Self::UnixTime => "unix-time",
            Self::PureToken => "pure-token",
            Self::OneOf => "oneof",
            Self::Block => "block",
        }
    }

    fn has_parts(self) -> bool {
        matches!(self, Self::OneOf | Self::Block)
    }
}

/// An argument of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The word that stands before it, or that it is.
    pub token: Option<&'static str>,
    /// Whether it may be left out.
    pub optional: bool,
    /// Whether it may be repeated.
    pub multiple: bool,
    /// Whether its token is repeated with it.
    pub multiple_token: bool,
    /// Which of the row's key specifications finds it.
    pub key_spec: Option<usize>,
    /// Its alternatives, or its parts.
    pub arguments: Vec<Argument>,
}

impl Argument {
    fn new(name: String, kind: Kind) -> Self {
        Self {
            name,
            kind,
            token: None,
            optional: false,
            multiple: false,
            multiple_token: false,
            key_spec: None,
            arguments: Vec::new(),
        }
    }

    fn word(word: &'static str) -> Self {
        if !is_token(word) {
            return Self::new(word.to_owned(), kind_of(word));
        }
        Self { token: Some(word), ..Self::new(word.to_ascii_lowercase(), Kind::PureToken) }
    }

    /// One argument of several, named after them.
    fn of(kind: Kind, arguments: Vec<Self>) -> Self {
        let names: Vec<&str> = arguments.iter().map(|argument| argument.name.as_str()).collect();
        let name = names.join("-");
        Self { arguments, ..Self::new(name, kind) }
    }
}

/// Names of values that aren't plain strings.
const KINDS: &[(Kind, &[&str])] = &[
    (Kind::Key, &["key", "key1", "key2", "newkey", "source", "destination", "destkey"]),
    (Kind::Pattern, &["pattern"]),
    (Kind::UnixTime, &["unix-time-seconds", "unix-time-milliseconds"]),
    (
        Kind::Integer,
        &[
            "bit",
            "client-id",
            "count",
            "cursor",
            "db",
            "decrement",
            "destination-db",
            "end",
            "frequency",
            "increment",
            "index",
            "index1",
            "index2",
            "len",
            "length",
            "milliseconds",
            "min-match-len",
            "numkeys",
            "offset",
            "port",
            "protover",
            "samples",
            "seconds",
            "start",
            "timeout",
            "ttl",
            "version",
        ],
    ),
];

fn kind_of(name: &str) -> Kind {
    KINDS.iter().find(|(_, names)| names.contains(&name)).map_or(Kind::String, |(kind, _)| *kind)
}

fn is_token(word: &str) -> bool {
    !word.contains(|c: char| c.is_ascii_lowercase())
        && word.contains(|c: char| c.is_ascii_uppercase())
}

/// The kinds of single rows' arguments that [`KINDS`] can't tell.
const KINDS_IN: &[(&str, &str, Kind)] =
    &[("incrbyfloat", "increment", Kind::Double), ("setbit", "value", Kind::Integer)];

/// The arguments of a command; each key names its specification among [`key_specs`].
///
/// # Errors
/// What is wrong with the row's syntax.
pub fn arguments(entry: &Entry) -> Result<Vec<Argument>, String> {
    let mut arguments = parse(entry.row.syntax, &key_specs(entry))?;
    for (_, name, kind) in KINDS_IN.iter().filter(|(of, ..)| *of == entry.row.name) {
        let named = arguments.iter_mut().filter(|argument| argument.name == *name);
        named.for_each(|argument| argument.kind = *kind);
    }
    Ok(arguments)
}

/// The arguments that a row's syntax describes, keys tied to the row's specifications.
///
/// # Errors
/// What is wrong with the syntax, and where.
fn parse(syntax: &'static str, keys: &[KeySpec]) -> Result<Vec<Argument>, String> {
    let mut parser = Parser { rest: lex(syntax) };
    let mut arguments = parser.choice()?.into_list();
    if let Some(extra) = parser.next() {
        return Err(format!("`{extra}` is not opened"));
    }
    tie_keys(&mut arguments, &mut KeyPlaces { keys, spec: 0, used: 0 });
    Ok(arguments)
}

/// Words and marks, the first one last.
fn lex(syntax: &'static str) -> Vec<&'static str> {
    let is_mark = |c: char| "[]<>()|".contains(c);
    let mut found = Vec::new();
    for mut word in syntax.split_ascii_whitespace() {
        while !word.is_empty() {
            let end = if word.starts_with(is_mark) {
                1
            } else if word.starts_with("...") {
                3
            } else {
                word.find(is_mark).or_else(|| word.find("...")).unwrap_or(word.len())
            };
            let (piece, rest) = word.split_at(end);
            found.push(piece);
            word = rest;
        }
    }
    found.reverse();
    found
}

/// Alternatives, each a sequence; one alone is just a sequence.
#[derive(Clone, Debug, PartialEq)]
struct Choice(Vec<Vec<Argument>>);

impl Choice {
    fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// As arguments one after the other.
    fn into_list(self) -> Vec<Argument> {
        match <[_; 1]>::try_from(self.0) {
            Ok([only]) => only,
            Err(alternatives) => vec![Self(alternatives).into_one()],
        }
    }

    /// As one argument.
    fn into_one(self) -> Argument {
        let mut parts: Vec<Argument> = self.0.into_iter().map(one).collect();
        match parts.len() {
            1 => parts.remove(0),
            _ => Argument::of(Kind::OneOf, parts),
        }
    }
}

/// A sequence as one argument. A token at its head becomes the token of the whole.
fn one(mut sequence: Vec<Argument>) -> Argument {
    if sequence.len() == 1 {
        return sequence.remove(0);
    }
    let leads = sequence.first().is_some_and(|head| head.kind == Kind::PureToken && !head.optional);
    let token = if leads { sequence.remove(0).token } else { None };
    match sequence.len() {
        1 if sequence[0].token.is_none() && !sequence[0].optional => {
            let repeated = sequence[0].multiple_token;
            Argument { token, multiple_token: repeated, ..sequence.remove(0) }
        }
        _ => Argument { token, ..Argument::of(Kind::Block, sequence) },
    }
}

/// What a bracket turned out to be.
enum Bracket {
    /// An optional argument.
    Optional(Argument),
    /// The repetition of what stands before.
    Repeat(Choice),
}

struct Parser {
    /// What is still to be read, the next one last.
    rest: Vec<&'static str>,
}

impl Parser {
    fn peek(&self) -> Option<&'static str> {
        self.rest.last().copied()
    }

    fn next(&mut self) -> Option<&'static str> {
        self.rest.pop()
    }

    fn takes(&mut self, mark: &str) -> bool {
        let found = self.peek() == Some(mark);
        if found {
            self.rest.pop();
        }
        found
    }

    fn expect(&mut self, mark: &str) -> Result<(), String> {
        if self.takes(mark) {
            Ok(())
        } else {
            Err(format!("`{mark}` is missing before {:?}", self.peek()))
        }
    }

    /// Reads to a closing mark or the end.
    fn choice(&mut self) -> Result<Choice, String> {
        let mut choice = Choice(vec![Vec::new()]);
        loop {
            match self.peek() {
                None | Some("]" | ">" | ")") => return Ok(choice),
                Some("...") if self.rest.len() > 1 && self.rest[self.rest.len() - 2] == "]" => {
                    return Ok(choice);
                }
                Some("|") => {
                    self.next();
                    if choice.0.last().is_none_or(Vec::is_empty) {
                        return Err("an alternative is empty".to_owned());
                    }
                    choice.0.push(Vec::new());
                }
                Some(_) => self.item(&mut choice)?,
            }
        }
    }

    /// Reads one item to the end of the last alternative.
    fn item(&mut self, choice: &mut Choice) -> Result<(), String> {
        let open = self.next().unwrap_or_default();
        let argument = match open {
            "[" => match self.bracket()? {
                Bracket::Optional(argument) => argument,
                Bracket::Repeat(repeated) => return repeat(choice, &repeated),
            },
            "<" | "(" => self.group(if open == "<" { ">" } else { ")" })?,
            "..." => return self.repeat_last(choice),
            word => Argument::word(word),
        };
        if let Some(sequence) = choice.0.last_mut() {
            push(sequence, argument);
        }
        Ok(())
    }

    fn group(&mut self, close: &str) -> Result<Argument, String> {
        let choice = self.choice()?;
        if choice.is_empty() {
            return Err("a group is empty".to_owned());
        }
        self.expect(close)?;
        Ok(choice.into_one())
    }

    fn bracket(&mut self) -> Result<Bracket, String> {
        let choice = self.choice()?;
        if choice.is_empty() {
            return Err("a bracket is empty".to_owned());
        }
        let repeats = self.takes("...");
        self.expect("]")?;
        if repeats {
            return Ok(Bracket::Repeat(choice));
        }
        Ok(Bracket::Optional(Argument { optional: true, ..choice.into_one() }))
    }

    /// `x ...`: the item before may be repeated.
    fn repeat_last(&mut self, choice: &mut Choice) -> Result<(), String> {
        let last = choice.0.last_mut().and_then(|sequence| sequence.last_mut());
        last.ok_or_else(|| "`...` repeats nothing".to_owned())?.multiple = true;
        Ok(())
    }
}

/// Appends an argument; one value behind a token takes the token.
fn push(sequence: &mut Vec<Argument>, argument: Argument) {
    let is_value = argument.token.is_none() && !argument.optional && argument.kind != Kind::Block;
    match sequence.last_mut() {
        Some(head) if is_value && head.kind == Kind::PureToken && !head.optional => {
            let token = head.token;
            *head = Argument { token, ..argument };
        }
        _ => sequence.push(argument),
    }
}

/// Marks what stands at the end of `choice`, and once more in a bracket, as multiple.
fn repeat(choice: &mut Choice, repeated: &Choice) -> Result<(), String> {
    if choice == repeated && choice.0.len() > 1 {
        let whole = std::mem::replace(choice, Choice(Vec::new())).into_one();
        choice.0.push(vec![multiple(whole)]);
        return Ok(());
    }
    let ([again], Some(sequence)) = (repeated.0.as_slice(), choice.0.last_mut()) else {
        return Err("a choice is repeated that doesn't stand before".to_owned());
    };
    let start = sequence.len().checked_sub(again.len()).unwrap_or(sequence.len());
    if sequence[start..] == again[..] && !again.is_empty() {
        let parts = sequence.split_off(start);
        sequence.push(multiple(one(parts)));
        return Ok(());
    }
    // `ID client-id [client-id ...]`: the value is repeated without its token.
    match (sequence.last_mut(), again.as_slice()) {
        (Some(last), [value]) if last.name == value.name && last.kind == value.kind => {
            last.multiple = true;
            Ok(())
        }
        _ => Err("something is repeated that doesn't stand before".to_owned()),
    }
}

fn multiple(argument: Argument) -> Argument {
    Argument { multiple: true, multiple_token: argument.token.is_some(), ..argument }
}

/// Gives the keys, in their order, the row's specifications in theirs.
struct KeyPlaces<'a> {
    keys: &'a [KeySpec],
    spec: usize,
    /// Keys that the current specification has found.
    used: usize,
}

impl KeyPlaces<'_> {
    fn next(&mut self) -> Option<usize> {
        let spec = self.keys.get(self.spec)?;
        let count = match usize::try_from(spec.last) {
            Ok(last) => last.saturating_sub(spec.first) / spec.step.max(1) + 1,
            Err(_) => usize::MAX,
        };
        if self.used < count {
            self.used += 1;
            return Some(self.spec);
        }
        (self.spec, self.used) = (self.spec + 1, 0);
        self.next()
    }
}

fn tie_keys(arguments: &mut [Argument], places: &mut KeyPlaces<'_>) {
    for argument in arguments {
        if argument.kind.has_parts() {
            tie_keys(&mut argument.arguments, places);
        } else if argument.kind == Kind::Key {
            argument.key_spec = places.next();
            if argument.key_spec.is_none() {
                argument.kind = Kind::String;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{row, table};

    /// A tree in a short form: `name:kind`, `TOKEN=`, `?` optional, `*` multiple, `+` with its token.
    fn show(arguments: &[Argument]) -> String {
        let show_one = |argument: &Argument| {
            let token = argument.token.map(|token| format!("{token}=")).unwrap_or_default();
            let what = match argument.kind {
                Kind::PureToken => String::new(),
                Kind::OneOf => format!("<{}>", show(&argument.arguments)),
                Kind::Block => format!("({})", show(&argument.arguments)),
                kind => format!("{}:{}", argument.name, kind.name()),
            };
            let mark = |is: bool, mark: &'static str| if is { mark } else { "" };
            let spec = argument.key_spec.map(|spec| spec.to_string()).unwrap_or_default();
            let multiple =
                mark(argument.multiple, "*").to_owned() + mark(argument.multiple_token, "+");
            format!("{token}{what}{spec}{}{multiple}", mark(argument.optional, "?"))
        };
        arguments.iter().map(show_one).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(syntax: &'static str, keys: &[KeySpec], expected: &str) {
        let found = parse(syntax, keys).map(|arguments| show(&arguments));
        assert_eq!(found.as_deref(), Ok(expected), "{syntax}");
    }

    #[test]
    fn simple_arguments() {
        check("", row::NO_KEYS, "");
        check("key", row::READ_1, "key:key0");
        check("key", row::NO_KEYS, "key:string");
        check("[message]", row::NO_KEYS, "message:string?");
        check("key offset value", row::WRITE_1, "key:key0 offset:integer value:string");
        check("key newkey", row::WRITE_2, "key:key0 newkey:key0");
        check("source destination", row::READ_WRITE, "source:key0 destination:key1");
    }

    #[test]
    fn tokens_and_choices() {
        check("<ON | OFF>", row::NO_KEYS, "<ON= OFF=>");
        check("timeout [WRITE | ALL]", row::NO_KEYS, "timeout:integer <WRITE= ALL=>?");
        check("[EX seconds | KEEPTTL]", row::NO_KEYS, "<EX=seconds:integer KEEPTTL=>?");
        check("[COUNT count [ANY]]", row::NO_KEYS, "(COUNT=count:integer ANY=?)?");
        check("[LIMIT offset count]", row::NO_KEYS, "(LIMIT=offset:integer count:integer)?");
        check("[TYPE <A | B>]", row::NO_KEYS, "TYPE=<A= B=>?");
        check("ip:port | <ID id | ME>", row::NO_KEYS, "<ip:port:string <ID=id:string ME=>>");
    }

    #[test]
    fn repetitions() {
        check("key [key ...]", row::READ_ALL, "key:key0*");
        check("key value [key value ...]", row::BLIND_PAIRS, "(key:key0 value:string)*");
        check("[section [section ...]]", row::NO_KEYS, "section:string?*");
        check("[GET pattern [GET pattern ...]]", row::NO_KEYS, "GET=pattern:pattern?*+");
        check("[ID id [id ...]]", row::NO_KEYS, "ID=id:string?*");
        check("name ...", row::NO_KEYS, "name:string*");
        check("<ID id | ME> ...", row::NO_KEYS, "<ID=id:string ME=>*");
        check(
            "<AND | OR> destkey key [key ...]",
            row::BLIND_AT_2_READ_REST,
            "<AND= OR=> destkey:key0 key:key1*",
        );
        check(
            "key [GET encoding offset | [OVERFLOW <WRAP | SAT>] <SET encoding offset value | \
             INCRBY encoding offset increment> [GET encoding offset | [OVERFLOW <WRAP | SAT>] \
             <SET encoding offset value | INCRBY encoding offset increment> ...]]",
            row::WRITE_1,
            "key:key0 <(GET=encoding:string offset:integer) (OVERFLOW=<WRAP= SAT=>? \
             <(SET=encoding:string offset:integer value:string) \
             (INCRBY=encoding:string offset:integer increment:integer)>)>?*",
        );
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let wrong = ["[a", "a]", "<a", "<a]", "a | | b", "[]", "<>", "...", "a [b ...]", "[a ...]"];
        for syntax in wrong {
            assert!(parse(syntax, row::NO_KEYS).is_err(), "{syntax}");
        }
    }

    #[test]
    fn every_row_parses_and_ties_all_its_keys() {
        for entry in table::all() {
            let name = entry.full_name();
            let arguments = arguments(entry);
            let arguments = arguments.unwrap_or_else(|why| panic!("{name}: {why}"));
            let found = show(&arguments);
            let tied =
                (0..key_specs(entry).len()).all(|spec| found.contains(&format!(":key{spec}")));
            assert!(tied, "{name}: {found}");
        }
    }
}
