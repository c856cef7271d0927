//! The row of a command: every fact about it, declared once.
//!
//! From its row alone dispatch checks arity and authority, finds and locks the keys, makes room and
//! counts; COMMAND, redis-cli's hints and `docs/commands.md` are made from it too. Adding a command is
//! one row and one function.

use futures_util::future::LocalBoxFuture;

use super::{Args, Session};
use crate::{
    cache::{
        Use,
        tx::{Stop, Tx},
    },
    protocol::Reply,
};

/// A command on keys: synchronous, while their stripes are held.
pub type OnKeys = fn(&mut Tx<'_>, Args<'_>, &mut Reply<'_>) -> Result<(), Stop>;
/// A command on the connection, the server or the whole keyspace: no stripe is held.
pub type OnSession = fn(&mut Session, Args<'_>, &mut Reply<'_>) -> Result<(), Stop>;

/// A command like [`OnSession`] that may have to wait. Dispatch looks whether it is done at once; if
/// not, it is begun anew where waiting is allowed, so it must have changed nothing before it waits.
pub type Waiting = for<'a> fn(
    &'a mut Session,
    Args<'a>,
    &'a mut Reply<'_>,
) -> LocalBoxFuture<'a, Result<(), Stop>>;

/// What carries a command out.
#[derive(Clone, Copy)]
pub enum Run {
    /// A function over keys.
    Keys(OnKeys),
    /// A function over the session.
    Session(OnSession),
    /// A function over the session that may have to wait for the disk.
    Waiting(Waiting),
    /// One of these, named by the first argument.
    Sub(&'static [Row]),
}

/// Where keys stand among the arguments, and what becomes of them.
#[derive(Clone, Copy, Debug)]
pub struct KeySpec {
    /// The index of the first one; the command's name is 0.
    pub first: usize,
    /// The index of the last one; negative: counted from the last argument, which is -1.
    pub last: isize,
    /// Distance between two.
    pub step: usize,
    /// What the command does with them.
    pub use_: Use,
    /// Unless it is empty: without one of these words behind the second argument the old value isn't needed.
    pub blind_without: &'static [&'static str],
}

/// Properties of commands, named as COMMAND INFO names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(pub u32);

impl Flags {
    /// No property.
    pub const NONE: Self = Self(0);
    /// May change keys.
    pub const WRITE: Self = Self(1);
    /// Changes no key.
    pub const READONLY: Self = Self(1 << 1);
    /// May need more memory; refused when there is none.
    pub const DENYOOM: Self = Self(1 << 2);
    /// For administrators.
    pub const ADMIN: Self = Self(1 << 3);
    /// About channels.
    pub const PUBSUB: Self = Self(1 << 4);
    /// Not from scripts.
    pub const NOSCRIPT: Self = Self(1 << 5);
    /// May block the client.
    pub const BLOCKING: Self = Self(1 << 6);
    /// While data is loaded, too.
    pub const LOADING: Self = Self(1 << 7);
    /// On a stale replica, too.
    pub const STALE: Self = Self(1 << 8);
    /// Not shown to MONITOR.
    pub const SKIP_MONITOR: Self = Self(1 << 9);
    /// Not in the slow log.
    pub const SKIP_SLOWLOG: Self = Self(1 << 10);
    /// Constant or logarithmic time.
    pub const FAST: Self = Self(1 << 11);
    /// Before authentication, too.
    pub const NO_AUTH: Self = Self(1 << 12);
    /// Key positions depend on the arguments.
    pub const MOVABLEKEYS: Self = Self(1 << 13);
    /// While a script keeps the server busy, too.
    pub const ALLOW_BUSY: Self = Self(1 << 14);

    /// Both sets of properties.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it has all of `other`.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// All properties with the names that COMMAND INFO uses.
    pub const NAMES: [(Self, &'static str); 15] = [
        (Self::WRITE, "write"),
        (Self::READONLY, "readonly"),
        (Self::DENYOOM, "denyoom"),
        (Self::ADMIN, "admin"),
        (Self::PUBSUB, "pubsub"),
        (Self::NOSCRIPT, "noscript"),
        (Self::BLOCKING, "blocking"),
        (Self::LOADING, "loading"),
        (Self::STALE, "stale"),
        (Self::SKIP_MONITOR, "skip_monitor"),
        (Self::SKIP_SLOWLOG, "skip_slowlog"),
        (Self::FAST, "fast"),
        (Self::NO_AUTH, "no_auth"),
        (Self::MOVABLEKEYS, "movablekeys"),
        (Self::ALLOW_BUSY, "allow_busy"),
    ];
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

/// The family of a command, as COMMAND DOCS groups them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Keys of any type.
    Generic,
    /// Strings.
    String,
    /// Bits of strings.
    Bitmap,
    /// The client's connection.
    Connection,
    /// The server.
    Server,
    /// What only Larder has.
    Larder,
}

impl Group {
    /// The name in COMMAND DOCS.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::String => "string",
            Self::Bitmap => "bitmap",
            Self::Connection => "connection",
            Self::Server => "server",
            Self::Larder => "larder",
        }
    }
}

/// A command, or a subcommand of one.
pub struct Row {
    /// The name in lower case; of a subcommand, only its own part.
    pub name: &'static str,
    /// The number of arguments with the name (and the container's); negative: at least so many.
    pub arity: i32,
    /// Properties.
    pub flags: Flags,
    /// Where the keys are.
    pub keys: &'static [KeySpec],
    /// What carries it out.
    pub run: Run,
    /// The family.
    pub group: Group,
    /// The version of Redis that brought it.
    pub since: &'static str,
    /// Its cost, as Redis's documentation puts it.
    pub complexity: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// The arguments behind the name, in the notation of Redis's documentation:
    /// `key value [NX | XX] [EX seconds | KEEPTTL] [field value ...]`.
    pub syntax: &'static str,
}

impl Row {
    /// The subcommands; none for a plain command.
    pub fn subcommands(&self) -> &'static [Row] {
        match self.run {
            Run::Sub(rows) => rows,
            _ => &[],
        }
    }

    /// Whether so many arguments, the name included, are right.
    #[inline]
    pub fn takes(&self, count: usize) -> bool {
        let wanted = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { count >= wanted } else { count == wanted }
    }

    /// The index of the key of a command that has exactly one, wherever else it has arguments.
    #[inline]
    pub fn single_key(&self) -> Option<(usize, Use)> {
        match self.keys {
            [one] if one.first as isize == one.last => Some((one.first, one.use_)),
            _ => None,
        }
    }

    /// What the command does with a key, given its arguments: a plain SET needs no old value.
    #[inline]
    pub fn use_in(&self, use_: Use, args: Args<'_>) -> Use {
        match self.keys {
            [one] if !one.blind_without.is_empty() => {
                let needs = |word: &&str, arg: &[u8]| arg.eq_ignore_ascii_case(word.as_bytes());
                let is_needed = |arg: &[u8]| one.blind_without.iter().any(|word| needs(word, arg));
                if args.from(3).any(is_needed) { use_ } else { Use::Blind }
            }
            _ => use_,
        }
    }

    /// The indexes of the keys among `count` arguments, and what becomes of each.
    #[inline]
    pub fn key_positions(&self, count: usize) -> impl Iterator<Item = (usize, Use)> + use<> {
        self.keys.iter().flat_map(move |spec| {
            let last = if spec.last < 0 { count as isize + spec.last } else { spec.last };
            let end = (last + 1).clamp(0, count as isize) as usize;
            (spec.first..end).step_by(spec.step).map(move |at| (at, spec.use_))
        })
    }
}

const fn spec(first: usize, last: isize, step: usize, use_: Use) -> KeySpec {
    KeySpec { first, last, step, use_, blind_without: &[] }
}

/// No keys.
pub const NO_KEYS: &[KeySpec] = &[];
/// The first argument, read.
pub const READ_1: &[KeySpec] = &[spec(1, 1, 1, Use::Read)];
/// The first argument, changed.
pub const WRITE_1: &[KeySpec] = &[spec(1, 1, 1, Use::Write)];
/// The first argument of SET: replaced, or changed if one of the options asks for the old value.
pub const SET_1: &[KeySpec] =
    &[KeySpec { blind_without: &["nx", "xx", "get", "keepttl"], ..spec(1, 1, 1, Use::Write) }];
/// The first argument, replaced.
pub const BLIND_1: &[KeySpec] = &[spec(1, 1, 1, Use::Blind)];
/// All arguments, read.
pub const READ_ALL: &[KeySpec] = &[spec(1, -1, 1, Use::Read)];
/// All arguments, changed.
pub const WRITE_ALL: &[KeySpec] = &[spec(1, -1, 1, Use::Write)];
/// Every second argument from the first on, replaced.
pub const BLIND_PAIRS: &[KeySpec] = &[spec(1, -1, 2, Use::Blind)];
/// Every second argument from the first on, changed.
pub const WRITE_PAIRS: &[KeySpec] = &[spec(1, -1, 2, Use::Write)];
/// The first two arguments, read.
pub const READ_2: &[KeySpec] = &[spec(1, 2, 1, Use::Read)];
/// The first two arguments, changed.
pub const WRITE_2: &[KeySpec] = &[spec(1, 2, 1, Use::Write)];
/// The first argument read, the second changed.
pub const READ_WRITE: &[KeySpec] = &[spec(1, 1, 1, Use::Read), spec(2, 2, 1, Use::Write)];
/// The second argument (behind a subcommand), read.
pub const READ_AT_2: &[KeySpec] = &[spec(2, 2, 1, Use::Read)];
/// The second argument replaced, those behind it read (BITOP).
pub const BLIND_AT_2_READ_REST: &[KeySpec] =
    &[spec(2, 2, 1, Use::Blind), spec(3, -1, 1, Use::Read)];
