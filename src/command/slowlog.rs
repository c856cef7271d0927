//! The slow log: the last commands that took longer than `slowlog-log-slower-than`, and SLOWLOG over
//! it (<https://redis.io/docs/latest/commands/slowlog-get/>).
//!
//! An entry keeps at most [`MAX_ARGS`] arguments of [`MAX_BYTES`] bytes each, and no password: what
//! follows AUTH, or a secret setting's name, is replaced before it is kept.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;

use super::{
    Args, Session,
    row::{Flags, Row, Run},
    server::{HELP, SUB, help},
    session::Client,
};
use crate::{
    cache::tx::Stop, config::SETTINGS, error::ClientError, protocol::Reply, value::number,
};

/// Arguments that an entry keeps; the last says how many there were more.
const MAX_ARGS: usize = 32;
/// Bytes that an entry keeps of an argument.
const MAX_BYTES: usize = 128;
/// What stands for a password.
const REDACTED: &[u8] = b"(redacted)";
/// How many entries SLOWLOG GET shows unless told.
const SHOWN: i64 = 10;

/// A command that was slow.
#[derive(Clone, Debug)]
pub struct Slow {
    /// Its number.
    pub id: i64,
    /// When it ended, unix seconds.
    pub at: u64,
    /// How long it took.
    pub took: Duration,
    /// Its arguments, shortened and without passwords.
    pub args: Vec<Vec<u8>>,
    /// The client's address.
    pub peer: String,
    /// The client's name.
    pub client: String,
}

#[derive(Debug, Default)]
struct Log {
    next_id: i64,
    /// The newest first.
    entries: VecDeque<Slow>,
}

/// The slow log.
#[derive(Debug, Default)]
pub struct Slowlog(Mutex<Log>);

impl Slowlog {
    /// Keeps a command that `took` too long and ended at `now` (unix milliseconds), and lets go of the
    /// oldest entries above `max`.
    #[cold]
    pub fn note(&self, args: Args<'_>, took: Duration, client: &Client, now: u64, max: usize) {
        let args = kept(args);
        let name = client.labels.lock().name.clone();
        let mut log = self.0.lock();
        let id = log.next_id;
        log.next_id += 1;
        let peer = client.addr.clone();
        log.entries.push_front(Slow { id, at: now / 1000, took, args, peer, client: name });
        log.entries.truncate(max);
    }

    /// Lets go of the oldest entries above `max`.
    pub fn trim(&self, max: usize) {
        self.0.lock().entries.truncate(max);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.lock().entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all entries; their numbers aren't used again.
    pub fn reset(&self) {
        self.0.lock().entries.clear();
    }

    /// The newest `count` entries.
    pub fn newest(&self, count: usize) -> Vec<Slow> {
        self.0.lock().entries.iter().take(count).cloned().collect()
    }

    /// Writes the newest `count` entries.
    fn show(&self, count: usize, reply: &mut Reply<'_>) {
        let log = self.0.lock();
        let count = count.min(log.entries.len());
        reply.array(count);
        for slow in log.entries.iter().take(count) {
            slow.show(reply);
        }
    }
}

impl Slow {
    fn show(&self, reply: &mut Reply<'_>) {
        reply.array(6);
        reply.integer(self.id);
        reply.integer(self.at as i64);
        reply.integer(self.took.as_micros() as i64);
        reply.array(self.args.len());
        self.args.iter().for_each(|arg| reply.bulk(arg));
        reply.bulk(self.peer.as_bytes());
        reply.bulk(self.client.as_bytes());
    }
}

/// What an entry keeps of a command's arguments.
fn kept(args: Args<'_>) -> Vec<Vec<u8>> {
    let fits = args.len() <= MAX_ARGS;
    let whole = if fits { args.len() } else { MAX_ARGS - 1 };
    let keep = |at| if is_secret(args, at) { REDACTED.to_vec() } else { shortened(args.get(at)) };
    let mut kept: Vec<_> = (0..whole).map(keep).collect();
    if !fits {
        kept.push(format!("... ({} more arguments)", args.len() - whole).into_bytes());
    }
    kept
}

fn shortened(arg: &[u8]) -> Vec<u8> {
    let Some(start) = arg.get(..MAX_BYTES).filter(|start| start.len() < arg.len()) else {
        return arg.to_vec();
    };
    let rest = format!("... ({} more bytes)", arg.len() - start.len());
    [start, rest.as_bytes()].concat()
}

/// Whether an argument is a password, or the name that belongs to one.
fn is_secret(args: Args<'_>, at: usize) -> bool {
    match at {
        0 => false,
        _ if args.is(0, "auth") => true,
        _ if args.is(0, "hello") => {
            let from = at.saturating_sub(2).max(1);
            (from..at).any(|before| args.is(before, "auth"))
        }
        _ if args.is(0, "config") && args.is(1, "set") => {
            at > 2 && at % 2 == 1 && names_secret(args.get(at - 1))
        }
        _ => false,
    }
}

fn names_secret(name: &[u8]) -> bool {
    let mut secrets = SETTINGS.iter().filter(|setting| setting.is_secret());
    secrets.any(|row| row.names().any(|known| known.as_bytes().eq_ignore_ascii_case(name)))
}

/// SLOWLOG.
pub const ROW: Row = Row {
    name: "slowlog",
    arity: -2,
    run: Run::Sub(&[
        Row {
            name: "get",
            arity: -2,
            flags: ADMIN,
            run: Run::Session(get),
            since: "2.2.12",
            complexity: "O(N) where N is the number of entries returned",
            summary: "Shows the newest entries of the slow log.",
            syntax: "[count]",
            ..SUB
        },
        Row { name: "help", run: Run::Session(help_text), since: "6.2.0", ..HELP },
        Row {
            name: "len",
            arity: 2,
            flags: ADMIN,
            run: Run::Session(len),
            since: "2.2.12",
            summary: "Counts the entries of the slow log.",
            ..SUB
        },
        Row {
            name: "reset",
            arity: 2,
            flags: ADMIN,
            run: Run::Session(reset),
            since: "2.2.12",
            complexity: "O(N) where N is the number of entries in the slowlog",
            summary: "Forgets the entries of the slow log.",
            ..SUB
        },
    ]),
    since: "2.2.12",
    complexity: "Depends on subcommand.",
    summary: "The commands that were slow.",
    ..SUB
};

const ADMIN: Flags = Flags::ADMIN.with(Flags::LOADING).with(Flags::STALE);

fn get(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    const RANGE: ClientError = ClientError::new("ERR count should be greater than or equal to -1");
    let count = match args.len() {
        2 => SHOWN,
        3 => number::parse_i64(args.get(2)).filter(|count| *count >= -1).ok_or(RANGE)?,
        _ => {
            let name = String::from_utf8_lossy(args.get(1));
            let text = "ERR unknown subcommand or wrong number of arguments for";
            return Err(ClientError::from(format!("{text} '{name}'. Try SLOWLOG HELP.")).into());
        }
    };
    // -1: all.
    session.shared.slowlog.show(usize::try_from(count).unwrap_or(usize::MAX), reply);
    Ok(())
}

fn len(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    reply.integer(session.shared.slowlog.len() as i64);
    Ok(())
}

fn reset(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    session.shared.slowlog.reset();
    reply.ok();
    Ok(())
}

fn help_text(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    help(
        reply,
        "SLOWLOG",
        &[
            "GET [<count>]",
            "    Return the newest <count> entries (default: 10, -1 means all).",
            "    An entry is an array of: id, unix time, microseconds, arguments,",
            "    the client's address and its name.",
            "LEN",
            "    Return the number of entries.",
            "RESET",
            "    Forget all entries.",
        ],
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{Line, client};

    fn noted(words: &[&[u8]]) -> Vec<String> {
        let log = Slowlog::default();
        let line = Line::new(words);
        log.note(line.args(), Duration::from_micros(7), &client(1), 5_000, 10);
        let log = log.0.lock();
        log.entries[0].args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
    }

    #[test]
    fn the_newest_stay() {
        let log = Slowlog::default();
        let line = Line::new(&[b"GET", b"a"]);
        for micros in 1..=5 {
            log.note(line.args(), Duration::from_micros(micros), &client(1), 5_999, 3);
        }
        let ids =
            |log: &Slowlog| log.0.lock().entries.iter().map(|slow| slow.id).collect::<Vec<_>>();
        assert_eq!(ids(&log), [4, 3, 2]);
        assert_eq!(log.0.lock().entries[0].at, 5);
        log.reset();
        assert!(log.is_empty());
        log.note(line.args(), Duration::ZERO, &client(1), 0, 0);
        assert!(log.is_empty());
        log.note(line.args(), Duration::ZERO, &client(1), 0, 1);
        assert_eq!(ids(&log), [6]);
    }

    #[test]
    fn long_arguments_are_cut() {
        assert_eq!(noted(&[b"SET", &[b'x'; 128]])[1], "x".repeat(128));
        let cut = format!("{}... (72 more bytes)", "x".repeat(128));
        assert_eq!(noted(&[b"SET", &[b'x'; 200]])[1], cut);
    }

    #[test]
    fn many_arguments_are_cut() {
        let kept = noted(&[b"k".as_slice(); 32]);
        assert_eq!((kept.len(), kept[31].as_str()), (32, "k"));
        let kept = noted(&[b"k".as_slice(); 41]);
        assert_eq!((kept.len(), kept[31].as_str()), (32, "... (10 more arguments)"));
    }

    #[test]
    fn passwords_are_not_kept() {
        let hidden = "(redacted)";
        assert_eq!(noted(&[b"Auth", b"me", b"pw"]), ["Auth", hidden, hidden]);
        assert_eq!(
            noted(&[b"HELLO", b"3", b"auth", b"me", b"pw", b"SETNAME", b"x"]),
            ["HELLO", "3", "auth", hidden, hidden, "SETNAME", "x"]
        );
        assert_eq!(
            noted(&[b"config", b"SET", b"timeout", b"1", b"RequirePass", b"pw"]),
            ["config", "SET", "timeout", "1", "RequirePass", hidden]
        );
        assert_eq!(noted(&[b"SET", b"auth", b"pw"]), ["SET", "auth", "pw"]);
    }
}
