//! MONITOR: a client sees every command as it is carried out.
//!
//! Dispatch calls [`show`] for each command while [`attention::MONITOR`] is set. The line is made once
//! and appended to every monitor's lines, which its connection's worker takes from there; a monitor that
//! falls behind by more than [`BEHIND_MAX`] bytes is dropped and closed, so it can slow or fill nobody
//! else. See <https://redis.io/docs/latest/commands/monitor/>.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Args, Session,
    row::{Flags, Group, NO_KEYS, Row, Run},
    session::{After, Client},
    shared::{Shared, attention},
    table,
};
use crate::{
    cache::{charge::Charge, tx::Stop},
    clock,
    protocol::Reply,
};

/// Bytes of lines that wait for a monitor at most.
const BEHIND_MAX: usize = 16 << 20;
/// Bytes of one argument that are shown; Redis has no such bound.
const ARGUMENT_MAX: usize = 16 << 10;
/// Bytes of a line after which no further argument is shown.
const LINE_MAX: usize = 32 << 10;

/// A client in MONITOR mode: its number, and where its lines go.
pub struct Watcher {
    id: u64,
    lines: Arc<Waiting>,
}

/// Where a monitor's lines come from.
pub struct Lines(Arc<Waiting>);

struct Waiting {
    /// Changed under the lock of `text`.
    charge: Charge,
    /// `None`: there will be no more.
    text: Mutex<Option<Vec<u8>>>,
    changed: Notify,
}

impl Lines {
    /// The lines that came since the last call, or the next ones; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            match &mut *self.0.text.lock() {
                Some(text) if text.is_empty() => {}
                Some(text) => {
                    self.0.charge.set(0);
                    return Some(std::mem::take(text));
                }
                None => return None,
            }
            self.0.changed.notified().await;
        }
    }
}

impl Watcher {
    /// Appends a line; `false` if too many wait already.
    fn show(&self, line: &[u8]) -> bool {
        let mut text = self.lines.text.lock();
        let room = text.as_mut().filter(|text| text.len() + line.len() <= BEHIND_MAX);
        let Some(text) = room else { return false };
        text.extend_from_slice(line);
        self.lines.charge.set(text.len());
        self.lines.changed.notify_one();
        true
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut text = self.lines.text.lock();
        *text = None;
        self.lines.charge.set(0);
        drop(text);
        self.lines.changed.notify_one();
    }
}

/// The row of MONITOR.
pub(super) const ROW: Row = Row {
    name: "monitor",
    arity: 1,
    flags: Flags::ADMIN.with(Flags::NOSCRIPT).with(Flags::LOADING).with(Flags::STALE),
    keys: NO_KEYS,
    run: Run::Session(monitor),
    group: Group::Server,
    since: "1.0.0",
    complexity: "O(1), and O(N) for each command that is shown to N monitors.",
    summary: "Shows every command that the server carries out, as it comes; an argument above 16 KiB only \
              in part.",
    syntax: "",
};

fn monitor(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    reply.ok();
    if session.client.monitor.swap(true, Relaxed) {
        return Ok(());
    }
    let lines = Arc::new(Waiting {
        charge: Charge::new(session.cache().clone()),
        text: Mutex::new(Some(Vec::new())),
        changed: Notify::new(),
    });
    session.monitor = Some(Lines(lines.clone()));
    let mut monitors = session.shared.monitors.lock();
    monitors.push(Watcher { id: session.client.id, lines });
    session.shared.set_attention(attention::MONITOR, true);
    drop(monitors);
    session.after = After::Monitor;
    Ok(())
}

/// Ends a session's monitoring (RESET).
pub(super) fn leave(session: &mut Session) {
    if session.client.monitor.swap(false, Relaxed) {
        session.monitor = None;
        forget(&session.shared, session.client.id);
    }
}

/// Takes a client that has gone off the list of monitors.
pub fn forget(shared: &Shared, id: u64) {
    let mut monitors = shared.monitors.lock();
    monitors.retain(|monitor| monitor.id != id);
    if monitors.is_empty() {
        shared.set_attention(attention::MONITOR, false);
    }
}

/// Shows a command to all monitors. Commands for administrators stay hidden, as in Redis.
#[cold]
pub fn show(session: &Session, args: Args<'_>) {
    let entry = table::find(args.get(0));
    let entry = entry.map(|entry| entry.subcommand(args.get(1)).unwrap_or(entry));
    if entry.is_some_and(|entry| entry.row.flags.has(Flags::ADMIN)) {
        return;
    }
    let line = line(clock::micros(), session.db, &session.client, args);
    for id in send(&session.shared, line.as_bytes()) {
        if let Some(client) = session.shared.clients.get(&id).map(|client| client.clone()) {
            client.kill();
        }
    }
}

/// Hands a line to all monitors; returns those that have no room for it and were dropped.
fn send(shared: &Shared, line: &[u8]) -> Vec<u64> {
    let mut slow = Vec::new();
    let mut monitors = shared.monitors.lock();
    monitors.retain(|monitor| {
        let shown = monitor.show(line);
        if !shown {
            slow.push(monitor.id);
        }
        shown
    });
    if monitors.is_empty() {
        shared.set_attention(attention::MONITOR, false);
    }
    slow
}

/// `+1339518083.107412 [0 127.0.0.1:60866] "keys" "*"`, with its line end.
fn line(micros: u64, db: usize, client: &Client, args: Args<'_>) -> String {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    format!("+{seconds}.{micros:06} [{db} {}]{}\r\n", address(client), arguments(args))
}

/// The arguments in quotes, a blank before each.
fn arguments(args: Args<'_>) -> String {
    let mut text = String::new();
    for (index, argument) in args.from(0).enumerate() {
        text.push(' ');
        if text.len() > LINE_MAX {
            // Never fails: a String takes everything.
            let _ = write!(text, "... ({} more arguments)", args.len() - index);
            break;
        }
        if is_secret(args, index) {
            text.push_str("\"(redacted)\"");
        } else {
            quote(argument, &mut text);
        }
    }
    text
}

fn address(client: &Client) -> String {
    let path = client.addr.strip_suffix(":0").filter(|_| client.unix);
    path.map_or_else(|| client.addr.clone(), |path| format!("unix:{path}"))
}

/// Whether an argument names a user or a password: everything of AUTH, and the two behind AUTH in
/// HELLO.
fn is_secret(args: Args<'_>, index: usize) -> bool {
    let behind_auth = |at: usize| at >= 2 && args.is(at, "auth");
    if args.is(0, "auth") {
        index > 0
    } else if args.is(0, "hello") {
        index >= 3 && (behind_auth(index - 1) || behind_auth(index - 2))
    } else {
        false
    }
}

/// Appends an argument in quotes, with escapes for what can't be printed.
fn quote(argument: &[u8], line: &mut String) {
    line.push('"');
    for &byte in &argument[..argument.len().min(ARGUMENT_MAX)] {
        match byte {
            b'\\' | b'"' => line.extend(['\\', char::from(byte)]),
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            0x07 => line.push_str("\\a"),
            0x08 => line.push_str("\\b"),
            b' '..=b'~' => line.push(char::from(byte)),
            _ => {
                let _ = write!(line, "\\x{byte:02x}");
            }
        }
    }
    if argument.len() > ARGUMENT_MAX {
        let _ = write!(line, "... ({} more bytes)", argument.len() - ARGUMENT_MAX);
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Span;

    /// What `quote` or `line` makes of arguments.
    fn with_args<T>(words: &[&[u8]], f: impl FnOnce(Args<'_>) -> T) -> T {
        let mut start = 0;
        let spans: Vec<Span> = words
            .iter()
            .map(|word| {
                let span = Span { start, len: word.len() as u32, hash: 0 };
                start += span.len;
                span
            })
            .collect();
        f(Args::new(&words.concat(), &spans))
    }

    fn shown(words: &[&[u8]]) -> String {
        with_args(words, arguments)
    }

    #[test]
    fn arguments_are_quoted_and_escaped() {
        assert_eq!(shown(&[b"keys", b"*"]), r#" "keys" "*""#);
        assert_eq!(
            shown(&[b"get", b"a\"\\\n\r\t\x07\x08\x00\x7f\xc3\xa9 ~"]),
            r#" "get" "a\"\\\n\r\t\a\b\x00\x7f\xc3\xa9 ~""#
        );
        assert_eq!(shown(&[b""]), r#" """#);
    }

    #[test]
    fn passwords_are_hidden() {
        assert_eq!(shown(&[b"AUTH", b"p"]), r#" "AUTH" "(redacted)""#);
        assert_eq!(shown(&[b"auth", b"u", b"p"]), r#" "auth" "(redacted)" "(redacted)""#);
        assert_eq!(
            shown(&[b"HELLO", b"2", b"setname", b"n", b"Auth", b"u", b"p"]),
            r#" "HELLO" "2" "setname" "n" "Auth" "(redacted)" "(redacted)""#
        );
        assert_eq!(shown(&[b"get", b"auth", b"x", b"y"]), r#" "get" "auth" "x" "y""#);
    }

    #[test]
    fn a_line_is_bounded() {
        let long = vec![b'\0'; ARGUMENT_MAX + 7];
        let words: Vec<&[u8]> = vec![&long; 9];
        let shown = shown(&words);
        assert!(shown.contains("... (7 more bytes)\""));
        assert!(shown.ends_with("... (8 more arguments)"), "{}", &shown[shown.len() - 40..]);
        assert!(shown.len() < LINE_MAX + 4 * ARGUMENT_MAX);
    }
}
