//! Commands about the client's own connection: greeting, authentication, database, farewell.
//!
//! There is one user, `default`; its password is the setting `requirepass`, and without one anybody
//! is that user. CLIENT has a file of its own (`client.rs`), and so have MONITOR and COMMAND, whose
//! rows stand here as well.

use super::{
    Args, Session, client, docs, monitor,
    row::{Flags, Group, NO_KEYS, Row, Run},
    session::{After, Labels, Replies},
};
use crate::{
    cache::tx::Stop,
    error::ClientError,
    protocol::{Reply, Resp},
    value::number,
};

/// The version of Redis whose commands and replies these are.
pub const REDIS_VERSION: &str = "7.2.4";
/// The only user.
pub const DEFAULT_USER: &str = "default";

/// What commands about the connection itself have in common.
const ALWAYS: Flags = Flags::LOADING.with(Flags::STALE);
/// What may be sent before authentication.
const OPEN: Flags =
    ALWAYS.with(Flags::NOSCRIPT).with(Flags::FAST).with(Flags::NO_AUTH).with(Flags::ALLOW_BUSY);

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "ping",
        arity: -1,
        flags: Flags::FAST,
        keys: NO_KEYS,
        run: Run::Session(ping),
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Answers PONG, or the message, to show that the server is alive.",
        syntax: "[message]",
    },
    Row {
        name: "echo",
        arity: 2,
        flags: ALWAYS.with(Flags::FAST),
        keys: NO_KEYS,
        run: Run::Session(echo),
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Answers the message.",
        syntax: "message",
    },
    Row {
        name: "auth",
        arity: -2,
        flags: OPEN,
        keys: NO_KEYS,
        run: Run::Session(auth),
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(N) where N is the number of passwords defined for the user",
        summary: "Authenticates the connection.",
        syntax: "[username] password",
    },
    Row {
        name: "hello",
        arity: -1,
        flags: OPEN,
        keys: NO_KEYS,
        run: Run::Session(hello),
        group: Group::Connection,
        since: "6.0.0",
        complexity: "O(1)",
        summary: "Chooses the version of the protocol, and says who the server is.",
        syntax: "[protover [AUTH username password] [SETNAME clientname]]",
    },
    Row {
        name: "select",
        arity: 2,
        flags: ALWAYS.with(Flags::FAST),
        keys: NO_KEYS,
        run: Run::Session(select),
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Changes the database of the connection.",
        syntax: "index",
    },
    Row {
        name: "quit",
        arity: -1,
        flags: OPEN,
        keys: NO_KEYS,
        run: Run::Session(quit),
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Closes the connection.",
        syntax: "",
    },
    Row {
        name: "reset",
        arity: 1,
        flags: OPEN,
        keys: NO_KEYS,
        run: Run::Session(reset),
        group: Group::Connection,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Makes the connection as it was when it began.",
        syntax: "",
    },
    client::ROW,
    monitor::ROW,
    docs::ROW,
];

const WRONG_PASS: ClientError =
    ClientError::new("WRONGPASS invalid username-password pair or user is disabled.");
const NO_PASSWORD: ClientError = ClientError::new(
    "ERR AUTH <password> called without any password configured for the default user. \
     Are you sure your configuration is correct?",
);
const HELLO_NO_AUTH: ClientError = ClientError::new(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
     AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol \
     version at the same time",
);
const NO_PROTO: ClientError = ClientError::new("NOPROTO unsupported protocol version");
const NOT_PROTO: ClientError =
    ClientError::new("ERR Protocol version is not an integer or out of range");
const NOT_INT32: ClientError =
    ClientError::new("ERR value is out of range, value must between -2147483648 and 2147483647");
const PING_ARITY: ClientError =
    ClientError::new("ERR wrong number of arguments for 'ping' command");

fn ping(_: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    match args.len() {
        1 => reply.simple("PONG"),
        2 => reply.bulk(args.get(1)),
        _ => return Err(Stop::Client(PING_ARITY)),
    }
    Ok(())
}

fn echo(_: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    reply.bulk(args.get(1));
    Ok(())
}

fn auth(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let (user, password) = match args.len() {
        2 if session.settings.requirepass.is_empty() => return Err(Stop::Client(NO_PASSWORD)),
        2 => (DEFAULT_USER.as_bytes(), args.get(1)),
        3 => (args.get(1), args.get(2)),
        _ => return Err(Stop::Client(ClientError::SYNTAX)),
    };
    authenticate(session, user, password)?;
    reply.ok();
    Ok(())
}

/// Lets the session in if the password is right. A wrong one doesn't throw out who is in already.
fn authenticate(session: &mut Session, user: &[u8], password: &[u8]) -> Result<(), Stop> {
    let wanted = &session.settings.requirepass;
    let known = user == DEFAULT_USER.as_bytes();
    let right = wanted.is_empty() || same_secret(wanted.reveal().as_bytes(), password);
    if !(known && right) {
        session.stats.denied.add(1);
        return Err(Stop::Client(WRONG_PASS));
    }
    session.authenticated = true;
    Ok(())
}

/// Compares in a time that depends on the length of what was sent and on nothing of the secret.
fn same_secret(secret: &[u8], sent: &[u8]) -> bool {
    let mut difference = secret.len() ^ sent.len();
    for (at, byte) in sent.iter().enumerate() {
        let wanted = secret.get(at % secret.len().max(1)).copied().unwrap_or(0);
        difference |= usize::from(wanted ^ byte);
    }
    std::hint::black_box(difference) == 0
}

/// What HELLO was asked for beside the version.
#[derive(Default)]
struct Greeting<'a> {
    user: Option<(&'a [u8], &'a [u8])>,
    name: Option<&'a [u8]>,
}

fn hello(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let version = if args.len() > 1 { Some(version_of(args)?) } else { None };
    let greeting = greeting_of(args)?;
    if let Some((user, password)) = greeting.user {
        authenticate(session, user, password)?;
    }
    if !session.authenticated {
        return Err(Stop::Client(HELLO_NO_AUTH));
    }
    if let Some(name) = greeting.name {
        client::set_name(session, name)?;
    }
    if let Some(version) = version {
        session.set_resp(version);
        reply.set_resp(version);
    }
    introduce(session, reply);
    Ok(())
}

fn version_of(args: Args<'_>) -> Result<Resp, ClientError> {
    match number::parse_i64(args.get(1)) {
        None => Err(NOT_PROTO),
        Some(2) => Ok(Resp::V2),
        Some(3) => Ok(Resp::V3),
        Some(_) => Err(NO_PROTO),
    }
}

fn greeting_of(args: Args<'_>) -> Result<Greeting<'_>, ClientError> {
    let mut greeting = Greeting::default();
    let mut at = 2;
    while at < args.len() {
        let more = args.len() - 1 - at;
        if args.is(at, "auth") && more >= 2 {
            greeting.user = Some((args.get(at + 1), args.get(at + 2)));
            at += 3;
        } else if args.is(at, "setname") && more >= 1 {
            greeting.name = Some(args.get(at + 1));
            at += 2;
        } else {
            let option = super::shown(args.get(at), super::SHOWN);
            return Err(ClientError::from(format!("ERR Syntax error in HELLO option '{option}'")));
        }
    }
    Ok(greeting)
}

fn introduce(session: &Session, reply: &mut Reply<'_>) {
    reply.map(8);
    pair(reply, "server", "redis");
    pair(reply, "version", REDIS_VERSION);
    reply.bulk(b"proto");
    reply.integer(if session.resp == Resp::V3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(session.client.id as i64);
    pair(reply, "mode", "standalone");
    pair(reply, "role", "master");
    reply.bulk(b"modules");
    reply.array(0);
    // Behind Redis's own: in RESP2 some clients read these by their place.
    pair(reply, "larder_version", env!("CARGO_PKG_VERSION"));
}

fn pair(reply: &mut Reply<'_>, name: &str, value: &str) {
    reply.bulk(name.as_bytes());
    reply.bulk(value.as_bytes());
}

fn select(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let index = i32::try_from(args.integer(1)?).map_err(|_| NOT_INT32)?;
    let db = usize::try_from(index).map_err(|_| ClientError::DB_INDEX)?;
    if db >= session.settings.databases as usize {
        return Err(Stop::Client(ClientError::DB_INDEX));
    }
    session.select(db);
    reply.ok();
    Ok(())
}

fn quit(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    session.after = After::Close;
    reply.ok();
    Ok(())
}

fn reset(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    monitor::leave(session);
    session.select(0);
    session.set_resp(Resp::V2);
    reply.set_resp(Resp::V2);
    session.replies = Replies::On;
    session.authenticated = session.settings.requirepass.is_empty();
    client::forget_modes(session);
    forget_name(&mut session.client.labels.lock());
    reply.simple("RESET");
    Ok(())
}

/// Redis keeps what the client's library said of itself.
fn forget_name(labels: &mut Labels) {
    labels.name = String::new();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(same_secret(b"secret", b"secret") && same_secret(b"", b""));
        let others: [&[u8]; 6] = [b"", b"s", b"secre", b"secrets", b"secretsecret", b"Secret"];
        for other in others {
            assert!(!same_secret(b"secret", other), "{other:?}");
        }
        assert!(!same_secret(b"", b"x"));
    }
}
