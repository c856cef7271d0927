//! CLIENT: what the server knows of its connections, and what one of them may do to the others.
//!
//! The registry is [`Shared::clients`]; a connection's own state is its [`Session`]. A line of CLIENT
//! LIST has all of Redis 7.2's fields, true where the server knows them and 0 otherwise. Texts and
//! rules: <https://redis.io/docs/latest/commands/client-list/> and its neighbours.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    Args, Session,
    connection::DEFAULT_USER,
    row::{Flags, Group, NO_KEYS, Row, Run},
    session::{After, Client, Replies},
    shared::{Pause, Shared, attention},
    table,
};
use crate::{cache::tx::Stop, error::ClientError, protocol::Reply, value::number};

type Done = Result<(), Stop>;

/// What may be asked of the own connection.
const OWN: Flags = Flags::NOSCRIPT.with(Flags::LOADING).with(Flags::STALE);
/// What concerns others.
const OTHERS: Flags = OWN.with(Flags::ADMIN);

/// The row of a subcommand; all are of one group and have no keys.
const fn row(name: &'static str, arity: i32, flags: Flags, run: super::row::OnSession) -> Row {
    Row {
        name,
        arity,
        flags,
        keys: NO_KEYS,
        run: Run::Session(run),
        group: Group::Connection,
        since: "2.4.0",
        complexity: "O(1)",
        summary: "",
        syntax: "",
    }
}

/// The row of CLIENT.
pub(super) const ROW: Row = Row {
    name: "client",
    arity: -2,
    flags: Flags::NONE,
    keys: NO_KEYS,
    run: Run::Sub(SUBCOMMANDS),
    group: Group::Connection,
    since: "2.4.0",
    complexity: "Depends on subcommand.",
    summary: "Commands about client connections.",
    syntax: "",
};

const SUBCOMMANDS: &[Row] = &[
    Row {
        since: "2.6.9",
        summary: "Answers the name of the connection.",
        ..row("getname", 2, OWN, getname)
    },
    Row {
        since: "5.0.0",
        summary: "Shows what CLIENT can do.",
        ..row("help", 2, Flags::LOADING.with(Flags::STALE), help)
    },
    Row {
        since: "5.0.0",
        summary: "Answers the number of the connection, never used again.",
        ..row("id", 2, OWN, id)
    },
    Row {
        since: "6.2.0",
        summary: "Describes the connection in one line.",
        ..row("info", 2, OWN, info)
    },
    Row {
        complexity: "O(N) where N is the number of client connections",
        summary: "Closes connections, chosen by address, number, type or user.",
        syntax: "<ip:port | <ID client-id | TYPE <NORMAL | MASTER | SLAVE | REPLICA | PUBSUB> | \
                 USER username | ADDR ip:port | LADDR ip:port | SKIPME yes/no> ...>",
        ..row("kill", -3, OTHERS, kill)
    },
    Row {
        complexity: "O(N) where N is the number of client connections",
        summary: "Describes connections, a line each.",
        syntax: "[TYPE <NORMAL | MASTER | REPLICA | PUBSUB> | ID client-id [client-id ...]]",
        ..row("list", -2, OTHERS, list)
    },
    Row {
        since: "7.0.0",
        summary: "Exempts the connection from being closed to save memory, or stops that.",
        syntax: "<ON | OFF>",
        ..row("no-evict", 3, OTHERS, no_evict)
    },
    Row {
        since: "7.2.0",
        summary: "Lets the connection's reads leave keys as warm or cold as they are, or stops that.",
        syntax: "<ON | OFF>",
        ..row("no-touch", 3, OWN, no_touch)
    },
    Row {
        since: "2.9.50",
        summary: "Lets the commands of all clients wait for a while, CLIENT's own left out.",
        syntax: "timeout [WRITE | ALL]",
        ..row("pause", -3, OTHERS, pause)
    },
    Row {
        since: "3.2.0",
        summary: "Says whether the connection's commands are answered.",
        syntax: "<ON | OFF | SKIP>",
        ..row("reply", 3, OWN, reply_mode)
    },
    Row {
        since: "7.2.0",
        summary: "Notes what the client's library says of itself.",
        syntax: "<LIB-NAME libname | LIB-VER libver>",
        ..row("setinfo", 4, OWN, setinfo)
    },
    Row {
        since: "2.6.9",
        summary: "Names the connection.",
        syntax: "connection-name",
        ..row("setname", 3, OWN, setname)
    },
    Row {
        since: "5.0.0",
        complexity: "O(log N) where N is the number of client connections",
        summary: "Ends the waiting of a client in a blocking command.",
        syntax: "client-id [TIMEOUT | ERROR]",
        ..row("unblock", -3, OTHERS, unblock)
    },
    Row {
        since: "6.2.0",
        complexity: "O(N) where N is the number of paused clients",
        summary: "Ends a pause of the clients.",
        ..row("unpause", 2, OTHERS, unpause)
    },
];

const NO_SUCH_CLIENT: ClientError = ClientError::new("ERR No such client");
const BAD_ID: ClientError = ClientError::new("ERR Invalid client ID");
const ID_POSITIVE: ClientError = ClientError::new("ERR client-id should be greater than 0");
const BAD_MODE: ClientError = ClientError::new("ERR CLIENT PAUSE mode must be WRITE or ALL");
const BAD_TIMEOUT: ClientError = ClientError::new("ERR timeout is not an integer or out of range");
const NEGATIVE_TIMEOUT: ClientError = ClientError::new("ERR timeout is negative");
const BAD_REASON: ClientError =
    ClientError::new("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR");
const BAD_NAME: ClientError =
    ClientError::new("ERR Client names cannot contain spaces, newlines or special characters.");

const HELP: &[&str] = &[
    "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GETNAME",
    "    Answer the name of the connection.",
    "ID",
    "    Answer the number of the connection.",
    "INFO",
    "    Describe the connection.",
    "KILL <ip:port>",
    "    Close the connection from <ip:port>.",
    "KILL <option> <value> [<option> <value> [...]]",
    "    Close connections that match all options, which are:",
    "    * ADDR (<ip:port>|<unixsocket>:0)",
    "      The client's address.",
    "    * ID <client-id>",
    "      The connection's number.",
    "    * LADDR (<ip:port>|<unixsocket>:0)",
    "      The server's address.",
    "    * SKIPME (YES|NO)",
    "      Whether the connection itself is spared (default: yes).",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      The client's type.",
    "    * USER <username>",
    "      The user that it is authenticated as.",
    "LIST [TYPE (NORMAL|MASTER|REPLICA|PUBSUB) | ID <client-id> [<client-id> ...]]",
    "    Describe all connections, those of a type, or those with these numbers.",
    "NO-EVICT (ON|OFF)",
    "    Exempt the connection from being closed to save memory.",
    "NO-TOUCH (ON|OFF)",
    "    Leave keys that the connection reads as warm or cold as they are.",
    "PAUSE <timeout> [WRITE|ALL]",
    "    Let all commands, or those that write, wait for <timeout> milliseconds.",
    "REPLY (ON|OFF|SKIP)",
    "    Say whether the connection's commands are answered.",
    "SETINFO (LIB-NAME|LIB-VER) <value>",
    "    Note the name or the version of the client's library.",
    "SETNAME <name>",
    "    Name the connection.",
    "UNBLOCK <clientid> [TIMEOUT|ERROR]",
    "    End the waiting of a client in a blocking command.",
    "UNPAUSE",
    "    End a pause.",
    "HELP",
    "    Print this help.",
];

fn help(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Done {
    reply.array(HELP.len());
    HELP.iter().for_each(|line| reply.simple(line));
    Ok(())
}

fn id(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Done {
    reply.integer(session.client.id as i64);
    Ok(())
}

fn getname(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Done {
    let labels = session.client.labels.lock();
    if labels.name.is_empty() {
        reply.null()
    } else {
        reply.bulk(labels.name.as_bytes())
    }
    Ok(())
}

fn setname(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    set_name(session, args.get(2))?;
    reply.ok();
    Ok(())
}

/// Names a session, or takes its name away if `name` is empty (CLIENT SETNAME, HELLO SETNAME).
pub(super) fn set_name(session: &Session, name: &[u8]) -> Result<(), ClientError> {
    session.client.labels.lock().name = label(name).ok_or(BAD_NAME)?;
    Ok(())
}

/// A word that can stand in a line of CLIENT LIST: printable ASCII without blanks.
fn label(word: &[u8]) -> Option<String> {
    let printable = word.iter().all(|byte| (b'!'..=b'~').contains(byte));
    if printable { String::from_utf8(word.to_vec()).ok() } else { None }
}

fn setinfo(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    let is_name = args.is(2, "lib-name");
    let option = super::shown(args.get(2), super::SHOWN);
    if !is_name && !args.is(2, "lib-ver") {
        return refuse(format!("ERR Unrecognized option '{option}'"));
    }
    let Some(value) = label(args.get(3)) else {
        return refuse(format!(
            "ERR {option} cannot contain spaces, newlines or special characters."
        ));
    };
    let mut labels = session.client.labels.lock();
    *if is_name { &mut labels.lib_name } else { &mut labels.lib_ver } = value;
    reply.ok();
    Ok(())
}

fn refuse(text: String) -> Done {
    Err(Stop::Client(ClientError::from(text)))
}

/// What Redis says to a subcommand with too many arguments.
fn wrong_count(args: Args<'_>) -> Done {
    let name = super::shown(args.get(1), super::SHOWN);
    refuse(format!(
        "ERR unknown subcommand or wrong number of arguments for '{name}'. Try CLIENT HELP."
    ))
}

fn on_or_off(args: Args<'_>) -> Result<bool, ClientError> {
    let on = args.is(2, "on");
    if on || args.is(2, "off") { Ok(on) } else { Err(ClientError::SYNTAX) }
}

fn no_evict(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    session.client.no_evict.store(on_or_off(args)?, Relaxed);
    reply.ok();
    Ok(())
}

fn no_touch(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    session.no_touch = on_or_off(args)?;
    session.client.no_touch.store(session.no_touch, Relaxed);
    reply.ok();
    Ok(())
}

/// Takes back NO-EVICT and NO-TOUCH (RESET).
pub(super) fn forget_modes(session: &mut Session) {
    session.no_touch = false;
    session.client.no_touch.store(false, Relaxed);
    session.client.no_evict.store(false, Relaxed);
}

/// Dispatch takes the answer away according to the new mode.
fn reply_mode(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    if args.is(2, "on") {
        session.replies = Replies::On;
        reply.ok();
    } else if args.is(2, "off") {
        session.replies = Replies::Off;
    } else if !args.is(2, "skip") {
        return Err(Stop::Client(ClientError::SYNTAX));
    } else if session.replies != Replies::Off {
        session.replies = Replies::SkipNext;
    }
    Ok(())
}

fn pause(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    let only_writes = match args.len() {
        3 => false,
        4 if args.is(3, "write") => true,
        4 if args.is(3, "all") => false,
        4 => return Err(Stop::Client(BAD_MODE)),
        _ => return wrong_count(args),
    };
    let timeout = number::parse_i64(args.get(2)).ok_or(BAD_TIMEOUT)?;
    let timeout = u64::try_from(timeout).map_err(|_| NEGATIVE_TIMEOUT)?;
    let now = session.cache().clock().now();
    let asked = Pause { until: now.saturating_add(timeout), only_writes };
    let mut pause = session.shared.pause.lock();
    *pause = Some(pause.filter(|old| old.until > now).map_or(asked, |old| longer(old, asked)));
    session.shared.set_attention(attention::PAUSE, true);
    drop(pause);
    reply.ok();
    Ok(())
}

/// A pause isn't shortened or narrowed by another.
fn longer(old: Pause, new: Pause) -> Pause {
    Pause { until: old.until.max(new.until), only_writes: old.only_writes && new.only_writes }
}

fn unpause(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Done {
    session.shared.unpause();
    reply.ok();
    Ok(())
}

/// No command blocks so far, so there is nobody to wake.
fn unblock(_: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    match args.len() {
        3 => {}
        4 if args.is(3, "timeout") || args.is(3, "error") => {}
        4 => return Err(Stop::Client(BAD_REASON)),
        _ => return wrong_count(args),
    }
    args.integer(2)?;
    reply.integer(0);
    Ok(())
}

/// The types of clients that CLIENT LIST and CLIENT KILL know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Normal,
    /// There are none so far.
    Other,
}

fn type_named(name: &[u8]) -> Result<Type, ClientError> {
    let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    if is("normal") {
        Ok(Type::Normal)
    } else if ["master", "slave", "replica", "pubsub"].into_iter().any(is) {
        Ok(Type::Other)
    } else {
        let name = super::shown(name, super::SHOWN);
        Err(ClientError::from(format!("ERR Unknown client type '{name}'")))
    }
}

/// All clients, the oldest first. None of the registry's locks is held afterwards.
fn clients(shared: &Shared) -> Vec<Arc<Client>> {
    let mut clients: Vec<_> = shared.clients.iter().map(|client| client.clone()).collect();
    clients.sort_unstable_by_key(|client| client.id);
    clients
}

/// Which connections CLIENT KILL ends: those that fit all that is given.
#[derive(Default)]
struct Filter<'a> {
    id: Option<u64>,
    kind: Option<Type>,
    addr: Option<&'a [u8]>,
    laddr: Option<&'a [u8]>,
    with_me: bool,
}

impl<'a> Filter<'a> {
    /// Reads pairs of an option and its value.
    fn parse(args: Args<'a>) -> Result<Self, ClientError> {
        let mut filter = Self::default();
        for at in (2..args.len()).step_by(2) {
            if at + 1 == args.len() {
                return Err(ClientError::SYNTAX);
            }
            filter.option(args, at)?;
        }
        Ok(filter)
    }

    fn option(&mut self, args: Args<'a>, at: usize) -> Result<(), ClientError> {
        let value = args.get(at + 1);
        if args.is(at, "id") {
            self.id = Some(positive(value).ok_or(ID_POSITIVE)?);
        } else if args.is(at, "type") {
            self.kind = Some(type_named(value)?);
        } else if args.is(at, "addr") {
            self.addr = Some(value);
        } else if args.is(at, "laddr") {
            self.laddr = Some(value);
        } else if args.is(at, "user") {
            known_user(value)?;
        } else if args.is(at, "skipme") && (args.is(at + 1, "yes") || args.is(at + 1, "no")) {
            self.with_me = args.is(at + 1, "no");
        } else {
            return Err(ClientError::SYNTAX);
        }
        Ok(())
    }

    fn fits(&self, client: &Client) -> bool {
        self.id.is_none_or(|id| id == client.id)
            && self.kind.is_none_or(|kind| kind == Type::Normal)
            && self.addr.is_none_or(|addr| addr == client.addr.as_bytes())
            && self.laddr.is_none_or(|laddr| laddr == client.laddr.as_bytes())
    }
}

fn positive(text: &[u8]) -> Option<u64> {
    number::parse_i64(text).and_then(|id| u64::try_from(id).ok()).filter(|&id| id > 0)
}

fn known_user(name: &[u8]) -> Result<(), ClientError> {
    if name == DEFAULT_USER.as_bytes() {
        return Ok(());
    }
    let name = super::shown(name, super::SHOWN);
    Err(ClientError::from(format!("ERR No such user '{name}'")))
}

fn kill(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    let by_address = args.len() == 3;
    let filter = if by_address {
        Filter { addr: Some(args.get(2)), with_me: true, ..Filter::default() }
    } else {
        Filter::parse(args)?
    };
    let killed = kill_all(session, &filter);
    match (by_address, killed) {
        (false, killed) => reply.integer(killed),
        (true, 0) => return Err(Stop::Client(NO_SUCH_CLIENT)),
        (true, _) => reply.ok(),
    }
    Ok(())
}

/// Ends all connections that fit; the own one after its reply. Returns how many.
fn kill_all(session: &mut Session, filter: &Filter<'_>) -> i64 {
    let mut killed = 0;
    for client in clients(&session.shared).iter().filter(|client| filter.fits(client)) {
        if client.id != session.client.id {
            client.kill();
        } else if filter.with_me {
            client.closing.store(true, Relaxed);
            session.after = After::Close;
        } else {
            continue;
        }
        killed += 1;
    }
    killed
}

fn info(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    note_command(session, args);
    let mut text = String::new();
    describe(&session.client, session.now, &mut text);
    reply.verbatim("txt", text.as_bytes());
    Ok(())
}

fn list(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    let chosen = if args.len() == 2 {
        clients(&session.shared)
    } else if args.len() == 4 && args.is(2, "type") {
        let normal = type_named(args.get(3))? == Type::Normal;
        if normal { clients(&session.shared) } else { Vec::new() }
    } else if args.len() > 3 && args.is(2, "id") {
        with_ids(&session.shared, args)?
    } else {
        return Err(Stop::Client(ClientError::SYNTAX));
    };
    note_command(session, args);
    let mut text = String::new();
    chosen.iter().for_each(|client| describe(client, session.now, &mut text));
    reply.verbatim("txt", text.as_bytes());
    Ok(())
}

/// The clients with the numbers from the fourth argument on, in this order, each once: the reply
/// isn't longer than that for all clients.
fn with_ids(shared: &Shared, args: Args<'_>) -> Result<Vec<Arc<Client>>, ClientError> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for id in args.from(3) {
        // Any number will do; those that no client has find none.
        let id = number::parse_i64(id).ok_or(BAD_ID)? as u64;
        if let Some(client) = shared.clients.get(&id)
            && seen.insert(id)
        {
            found.push(client.clone());
        }
    }
    Ok(found)
}

/// Lets a client's own line show the command that is being carried out.
fn note_command(session: &Session, args: Args<'_>) {
    let entry = table::find(args.get(0)).and_then(|entry| entry.subcommand(args.get(1)));
    if let Some(entry) = entry {
        session.client.last_command.store(entry.index + 1, Relaxed);
    }
}

/// Appends a client's line.
fn describe(client: &Client, now: u64, text: &mut String) {
    let labels = client.labels.lock().clone();
    let seconds = |since: u64| now.saturating_sub(since) / 1000;
    let queries = client.query_bytes.load(Relaxed);
    let output = client.output_bytes.load(Relaxed);
    let fields: [(&str, String); 31] = [
        ("id", client.id.to_string()),
        ("addr", client.addr.clone()),
        ("laddr", client.laddr.clone()),
        ("fd", client.fd.to_string()),
        ("name", labels.name),
        ("age", seconds(client.created).to_string()),
        ("idle", seconds(client.last_active.load(Relaxed)).to_string()),
        ("flags", flags(client)),
        ("db", client.db.load(Relaxed).to_string()),
        ("sub", "0".into()),
        ("psub", "0".into()),
        ("ssub", "0".into()),
        ("multi", "-1".into()),
        ("watch", "0".into()),
        ("qbuf", queries.to_string()),
        ("qbuf-free", "0".into()),
        ("argv-mem", "0".into()),
        ("multi-mem", "0".into()),
        ("rbs", "0".into()),
        ("rbp", "0".into()),
        ("obl", "0".into()),
        ("oll", u8::from(output > 0).to_string()),
        ("omem", output.to_string()),
        ("tot-mem", (queries + output + size_of::<Client>() as u64).to_string()),
        ("events", if output > 0 { "rw" } else { "r" }.into()),
        ("cmd", last_command(client)),
        ("user", DEFAULT_USER.into()),
        ("redir", "-1".into()),
        ("resp", if client.resp3.load(Relaxed) { "3" } else { "2" }.into()),
        ("lib-name", labels.lib_name),
        ("lib-ver", labels.lib_ver),
    ];
    for (index, (name, value)) in fields.iter().enumerate() {
        let blank = if index > 0 { " " } else { "" };
        text.extend([blank, name, "=", value]);
    }
    text.push('\n');
}

/// The letters for what holds of a client, `N` for nothing.
fn flags(client: &Client) -> String {
    let letters = [
        ('O', client.monitor.load(Relaxed)),
        ('c', client.closing.load(Relaxed)),
        ('U', client.unix),
        ('e', client.no_evict.load(Relaxed)),
        ('T', client.no_touch.load(Relaxed)),
    ];
    let flags: String = letters.iter().filter(|(_, is)| *is).map(|(letter, _)| letter).collect();
    if flags.is_empty() { "N".into() } else { flags }
}

fn last_command(client: &Client) -> String {
    match client.last_command.load(Relaxed).checked_sub(1) {
        Some(index) => table::at(index).full_name(),
        None => "NULL".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64};

    use parking_lot::Mutex;

    use super::*;
    use crate::command::session::Labels;

    fn client() -> Client {
        Client {
            id: 7,
            addr: "127.0.0.1:4000".into(),
            laddr: "127.0.0.1:6379".into(),
            unix: false,
            fd: 9,
            created: 1_000,
            last_active: AtomicU64::new(5_000),
            db: AtomicU32::new(3),
            resp3: AtomicBool::new(true),
            no_evict: AtomicBool::new(false),
            no_touch: AtomicBool::new(false),
            monitor: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            last_command: AtomicU16::new(0),
            query_bytes: AtomicU64::new(0),
            output_bytes: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            labels: Mutex::new(Labels { name: "n".into(), ..Labels::default() }),
            ender: Mutex::new(None),
        }
    }

    #[test]
    fn a_line_has_all_fields() {
        let mut line = String::new();
        describe(&client(), 7_500, &mut line);
        let start = "id=7 addr=127.0.0.1:4000 laddr=127.0.0.1:6379 fd=9 name=n age=6 idle=2 flags=N \
                     db=3 sub=0 psub=0 ssub=0 multi=-1 watch=0 qbuf=0";
        assert!(line.starts_with(start), "{line}");
        let end = "events=r cmd=NULL user=default redir=-1 resp=3 lib-name= lib-ver=\n";
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn flags_are_in_the_order_of_redis() {
        let mut client = client();
        client.unix = true;
        for mark in [&client.monitor, &client.closing, &client.no_evict, &client.no_touch] {
            mark.store(true, Relaxed);
        }
        assert_eq!(flags(&client), "OcUeT");
    }

    #[test]
    fn labels_are_printable_words() {
        assert_eq!(label(b"").as_deref(), Some(""));
        assert_eq!(label(b"a-b:!~").as_deref(), Some("a-b:!~"));
        for word in [&b"a b"[..], b"a\n", b"\x7f", b"\xc3\xa9"] {
            assert!(label(word).is_none());
        }
    }

    #[test]
    fn a_pause_is_not_shortened() {
        let pause = |until, only_writes| Pause { until, only_writes };
        assert_eq!(longer(pause(9, true), pause(5, false)), pause(9, false));
        assert_eq!(longer(pause(5, true), pause(9, true)), pause(9, true));
    }

    #[test]
    fn a_filter_is_all_its_options() {
        let client = client();
        let fits = |filter: Filter<'_>| filter.fits(&client);
        assert!(fits(Filter::default()));
        assert!(fits(Filter { id: Some(7), addr: Some(b"127.0.0.1:4000"), ..Filter::default() }));
        assert!(!fits(Filter { id: Some(7), laddr: Some(b"x"), ..Filter::default() }));
        assert!(!fits(Filter { kind: Some(Type::Other), ..Filter::default() }));
    }
}
