//! DEBUG: what tests of clients and of the server need. Only from this machine, as in Redis with
//! `enable-debug-command local`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::Duration,
};

use super::{
    Args, Session,
    row::{Flags, Row, Run},
    server::{ANYWHERE, SUB, help},
    session::Client,
};
use crate::{
    cache::tx::Stop,
    error::ClientError,
    protocol::{Reply, Resp},
    tier::{entry::Entry, eviction::idle_ms, shelf::is_live},
    value::{codec::dump_string, number},
};

/// The longest DEBUG SLEEP: it holds up a whole worker.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Strings up to this length are `embstr`.
const EMBEDDED: usize = 44;
/// The longest spelling of an integer.
const INTEGER_LEN: usize = 20;
/// The longest piece of a request that an error repeats, in bytes.
const ECHO: usize = 128;

/// DEBUG PROTOCOL's double, the one that Redis sends.
#[expect(clippy::approx_constant, reason = "not meant to be pi")]
const DOUBLE: f64 = 3.141;

/// DEBUG.
pub const ROW: Row = Row {
    name: "debug",
    arity: -2,
    flags: ANYWHERE.with(Flags::ADMIN).with(Flags::NOSCRIPT),
    run: Run::Session(debug),
    complexity: "Depends on subcommand.",
    summary: "For tests of clients and of the server.",
    syntax: "subcommand [argument [argument ...]]",
    ..SUB
};

fn debug(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    const FOR_LOCALS: ClientError =
        ClientError::new("ERR DEBUG command not allowed. It works from a local connection only.");
    if !is_local(&session.client) {
        return Err(FOR_LOCALS.into());
    }
    let name = args.get(1).to_ascii_lowercase();
    match (name.as_slice(), args.len()) {
        (b"error", 3) => return Err(ClientError::from(text_of(args.get(2))).into()),
        (b"help", 2) => help_text(reply),
        (b"log", 3) => {
            tracing::info!("DEBUG LOG: {}", text_of(args.get(2)));
            reply.ok();
        }
        (b"object", 3) => object(session, args.get(2), reply)?,
        (b"protocol", 3) => protocol(args.get(2), reply)?,
        (b"set-active-expire", 3) => {
            session.shared.expiry_off.store(args.get(2) == b"0", Relaxed);
            reply.ok();
        }
        (b"sleep", 3) => {
            thread::sleep(sleep_time(args.get(2)));
            reply.ok();
        }
        _ => return Err(unknown(args.get(1)).into()),
    }
    Ok(())
}

/// Whether a client came by the unix socket or the loopback device.
fn is_local(client: &Client) -> bool {
    let ip = |addr: &str| addr.parse::<SocketAddr>().ok().map(|addr| addr.ip());
    client.unix || ip(&client.addr).is_some_and(is_loopback)
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn text_of(arg: &[u8]) -> String {
    String::from_utf8_lossy(arg).into_owned()
}

fn unknown(name: &[u8]) -> ClientError {
    let name = text_of(name.get(..ECHO).unwrap_or(name));
    ClientError::from(format!(
        "ERR unknown subcommand or wrong number of arguments for '{name}'. Try DEBUG HELP."
    ))
}

/// What isn't a number is no time at all, as in Redis.
fn sleep_time(seconds: &[u8]) -> Duration {
    let seconds = number::parse_f64(seconds).unwrap_or(0.0);
    Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_SLEEP.as_secs_f64()))
}

fn object(session: &Session, key: &[u8], reply: &mut Reply<'_>) -> Result<(), ClientError> {
    let memory = session.cache().memory();
    let hash = memory.hash(key);
    let core = memory.lock(memory.stripe_of(hash));
    let shelf = core.shelf(session.db);
    let found = shelf.and_then(|shelf| Some(shelf.entry(shelf.find(hash, key)?)));
    let entry = found.filter(|entry| is_live(*entry, session.now));
    let entry = entry.ok_or(ClientError::NO_SUCH_KEY)?;
    let lfu = memory.rules().eviction().is_lfu();
    let access = entry.access().map(|access| access.load(Relaxed)).filter(|_| !lfu);
    let idle = access.map_or(0, |access| idle_ms(access, session.now) / 1_000);
    reply.simple(&format!(
        "Value at:{:p} refcount:1 encoding:{} serializedlength:{} lru:{} lru_seconds_idle:{idle}",
        entry.value().as_ptr(),
        encoding(entry),
        serialized_len(entry.value()),
        access.unwrap_or(0),
    ));
    Ok(())
}

fn encoding(entry: Entry<'_>) -> &'static str {
    let value = entry.value();
    match value.len() {
        _ if entry.meta().raw => "raw",
        0..=INTEGER_LEN if number::is_canonical_i64(value) => "int",
        0..=EMBEDDED => "embstr",
        _ => "raw",
    }
}

/// The length of what DUMP would give, without its type byte and the footer of version and checksum.
fn serialized_len(value: &[u8]) -> usize {
    dump_string(value).len().saturating_sub(1 + 2 + 8)
}

/// A reply of the type that is named, for tests of clients.
fn protocol(kind: &[u8], reply: &mut Reply<'_>) -> Result<(), ClientError> {
    const UNKNOWN: ClientError = ClientError::new(
        "ERR Wrong protocol type name. Please use one of the following: \
         string|integer|double|bignum|null|array|set|map|attrib|push|verbatim|true|false",
    );
    const NOT_IN_RESP2: ClientError =
        ClientError::new("ERR RESP2 is not supported by this command");
    match kind.to_ascii_lowercase().as_slice() {
        b"string" => reply.bulk(b"Hello World"),
        b"integer" => reply.integer(12_345),
        b"double" => reply.double(DOUBLE),
        b"bignum" => reply.big_number("1234567999999999999999999999999999999"),
        b"null" => reply.null(),
        b"array" => {
            reply.array(3);
            (0..3).for_each(|number| reply.integer(number));
        }
        b"set" => {
            reply.set(3);
            (0..3).for_each(|number| reply.integer(number));
        }
        b"map" => {
            reply.map(3);
            for number in 0..3 {
                reply.integer(number);
                reply.boolean(number == 1);
            }
        }
        // Attributes may be left out at any time, and we never send one.
        b"attrib" => reply.bulk(b"Some real reply following the attribute"),
        b"push" if reply.resp() == Resp::V2 => return Err(NOT_IN_RESP2),
        b"push" => {
            reply.push(2);
            reply.bulk(b"server-cpu-usage");
            reply.integer(42);
            // What is pushed answers nothing.
            reply.bulk(b"Some real reply following the push reply");
        }
        b"verbatim" => reply.verbatim("txt", b"This is a verbatim\nstring"),
        b"true" => reply.boolean(true),
        b"false" => reply.boolean(false),
        _ => return Err(UNKNOWN),
    }
    Ok(())
}

fn help_text(reply: &mut Reply<'_>) {
    help(
        reply,
        "DEBUG",
        &[
            "ERROR <string>",
            "    Return an error with <string> as its text.",
            "LOG <message>",
            "    Write <message> to the log.",
            "OBJECT <key>",
            "    Show how the value of <key> is kept.",
            "PROTOCOL <type>",
            "    Reply with a value of the type: string, integer, double, bignum, null, array,",
            "    set, map, attrib, push, verbatim, true, false.",
            "SET-ACTIVE-EXPIRE <0|1>",
            "    With 0, keys past their deadline stay in memory until they are read.",
            "SLEEP <seconds>",
            "    Hold up the client's worker, for 60 seconds at most. Decimals allowed.",
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{call, client, put, session};

    #[test]
    fn only_for_this_machine() {
        for (addr, local) in [
            ("127.0.0.1:5", true),
            ("127.8.8.8:5", true),
            ("[::1]:5", true),
            ("[::ffff:127.0.0.1]:5", true),
            ("10.0.0.1:5", false),
            ("[2001:db8::1]:5", false),
            ("127.0.0.1.example:5", false),
        ] {
            assert_eq!(is_local(&Client { addr: addr.into(), ..client(1) }), local, "{addr}");
        }
        assert!(is_local(&Client { addr: "/run/larder.sock:0".into(), unix: true, ..client(1) }));
    }

    #[test]
    fn replies_of_each_type() {
        let mut session = session();
        let push = "-ERR RESP2 is not supported by this command\r\n";
        let pushed = ">2\r\n$16\r\nserver-cpu-usage\r\n:42\r\n\
                      $40\r\nSome real reply following the push reply\r\n";
        for (kind, two, three) in [
            ("string", "$11\r\nHello World\r\n", "$11\r\nHello World\r\n"),
            ("double", "$5\r\n3.141\r\n", ",3.141\r\n"),
            ("null", "$-1\r\n", "_\r\n"),
            ("SET", "*3\r\n:0\r\n:1\r\n:2\r\n", "~3\r\n:0\r\n:1\r\n:2\r\n"),
            (
                "map",
                "*6\r\n:0\r\n:0\r\n:1\r\n:1\r\n:2\r\n:0\r\n",
                "%3\r\n:0\r\n#f\r\n:1\r\n#t\r\n:2\r\n#f\r\n",
            ),
            ("push", push, pushed),
            ("true", ":1\r\n", "#t\r\n"),
        ] {
            for (resp, expected) in [(Resp::V2, two), (Resp::V3, three)] {
                session.set_resp(resp);
                assert_eq!(call(&mut session, &["DEBUG", "PROTOCOL", kind]), expected, "{kind}");
            }
        }
        let reply = call(&mut session, &["DEBUG", "PROTOCOL", "nope"]);
        assert!(reply.starts_with("-ERR Wrong protocol type name."));
    }

    #[test]
    fn objects_show_how_they_are_kept() {
        let mut session = session();
        assert_eq!(call(&mut session, &["DEBUG", "OBJECT", "a"]), "-ERR no such key\r\n");
        for (value, encoding, len) in [
            ("hello".to_owned(), "embstr", 6),
            ("12345".to_owned(), "int", 3),
            ("x".repeat(44), "embstr", 8),
            ("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHI".to_owned(), "raw", 46),
        ] {
            put(&session, "a", &value);
            let reply = call(&mut session, &["DEBUG", "OBJECT", "a"]);
            let shown = format!(" refcount:1 encoding:{encoding} serializedlength:{len} lru:");
            assert!(reply.starts_with("+Value at:0x") && reply.contains(&shown), "{reply}");
        }
    }

    #[test]
    fn times_are_bounded() {
        for (text, millis) in
            [("0.25", 250), ("-1", 0), ("x", 0), ("nan", 0), ("inf", 60_000), ("1e300", 60_000)]
        {
            assert_eq!(sleep_time(text.as_bytes()), Duration::from_millis(millis), "{text}");
        }
        assert_eq!(call(&mut session(), &["DEBUG", "SLEEP", "0"]), "+OK\r\n");
    }

    #[test]
    fn flags_and_errors() {
        let mut session = session();
        assert_eq!(call(&mut session, &["DEBUG", "SET-ACTIVE-EXPIRE", "0"]), "+OK\r\n");
        assert!(session.shared.expiry_off.load(Relaxed));
        call(&mut session, &["DEBUG", "SET-ACTIVE-EXPIRE", "1"]);
        assert!(!session.shared.expiry_off.load(Relaxed));
        assert_eq!(call(&mut session, &["DEBUG", "ERROR", "FOO bar"]), "-FOO bar\r\n");
        let text = "-ERR unknown subcommand or wrong number of arguments for 'SLEEP'. Try DEBUG \
                    HELP.\r\n";
        assert_eq!(call(&mut session, &["DEBUG", "SLEEP"]), text);
    }
}
