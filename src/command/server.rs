//! The server's own commands: the rows of their family, and TIME, ROLE and SHUTDOWN.

use super::{
    Args, Session, config_command, debug, info, latency_command, lolwut, memory_command,
    row::{Flags, Group, NO_KEYS, Row, Run},
    session::After,
    shared::ShutdownRequest,
    slowlog,
};
use crate::{cache::tx::Stop, clock, error::ClientError, protocol::Reply};

/// The commands about the server.
pub const ROWS: &[Row] = &[
    config_command::ROW,
    debug::ROW,
    info::ROW,
    latency_command::ROW,
    lolwut::ROW,
    memory_command::ROW,
    Row {
        name: "role",
        arity: 1,
        flags: ANYWHERE.with(Flags::NOSCRIPT).with(Flags::FAST),
        run: Run::Session(role),
        since: "2.8.12",
        summary: "Says which part the server has in replication.",
        ..SUB
    },
    Row {
        name: "shutdown",
        arity: -1,
        flags: ANYWHERE.with(Flags::ADMIN).with(Flags::NOSCRIPT).with(Flags::ALLOW_BUSY),
        run: Run::Session(shutdown),
        summary: "Ends the server once its clients have been answered. There is nothing to save, so SAVE is \
                  refused.",
        syntax: "[NOSAVE | SAVE] [NOW] [FORCE] [ABORT]",
        ..SUB
    },
    slowlog::ROW,
    Row {
        name: "time",
        arity: 1,
        flags: ANYWHERE.with(Flags::FAST),
        run: Run::Session(time),
        since: "2.6.0",
        summary: "Tells the server's time.",
        ..SUB
    },
];

/// While loading, and on a stale replica.
pub(super) const ANYWHERE: Flags = Flags::LOADING.with(Flags::STALE);

/// What most rows of this family have in common.
pub(super) const SUB: Row = Row {
    name: "",
    arity: -2,
    flags: Flags::NONE,
    keys: NO_KEYS,
    run: Run::Sub(&[]),
    group: Group::Server,
    since: "1.0.0",
    complexity: "O(1)",
    summary: "",
    syntax: "",
};

/// What the HELP subcommands have in common.
pub(super) const HELP: Row = Row {
    name: "help",
    arity: 2,
    flags: ANYWHERE,
    since: "5.0.0",
    summary: "Lists the subcommands.",
    ..SUB
};

/// Answers a HELP subcommand: heading, `lines`, and HELP itself.
pub(super) fn help(reply: &mut Reply<'_>, container: &str, lines: &[&str]) {
    reply.array(lines.len() + 3);
    reply.simple(&format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    lines.iter().for_each(|line| reply.simple(line));
    reply.simple("HELP");
    reply.simple("    Print this help.");
}

fn time(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let now = clock::micros();
    reply.array(2);
    reply.bulk((now / 1_000_000).to_string().as_bytes());
    reply.bulk((now % 1_000_000).to_string().as_bytes());
    Ok(())
}

/// A primary at offset 0 without replicas.
fn role(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    reply.array(3);
    reply.bulk(b"master");
    reply.integer(0);
    reply.array(0);
    Ok(())
}

/// What SHUTDOWN's words ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shutdown {
    save: bool,
    nosave: bool,
    now: bool,
    force: bool,
    abort: bool,
}

impl Shutdown {
    fn read(args: Args<'_>) -> Result<Self, ClientError> {
        let mut asked = Self::default();
        for at in 1..args.len() {
            let word = [
                ("save", &mut asked.save),
                ("nosave", &mut asked.nosave),
                ("now", &mut asked.now),
                ("force", &mut asked.force),
                ("abort", &mut asked.abort),
            ]
            .into_iter()
            .find(|(word, _)| args.is(at, word));
            *word.ok_or(ClientError::SYNTAX)?.1 = true;
        }
        let others = asked.save || asked.nosave || asked.now || asked.force;
        if (asked.abort && others) || (asked.save && asked.nosave) {
            return Err(ClientError::SYNTAX);
        }
        Ok(asked)
    }
}

/// Success has no reply: the connection closes.
fn shutdown(session: &mut Session, args: Args<'_>, _: &mut Reply<'_>) -> Result<(), Stop> {
    const NOT_UNDER_WAY: ClientError = ClientError::new("ERR No shutdown in progress.");
    const UNDER_WAY: ClientError = ClientError::new("ERR the shutdown can't be stopped any more");
    const NO_SERVER: ClientError = ClientError::new("ERR nobody is there to shut down");
    let asked = Shutdown::read(args)?;
    if asked.abort {
        let draining = session.shared.draining.load(std::sync::atomic::Ordering::Relaxed);
        return Err(if draining { UNDER_WAY } else { NOT_UNDER_WAY }.into());
    }
    let save = (asked.save || asked.nosave).then_some(asked.save);
    let request = ShutdownRequest { now: asked.now, save };
    session.shared.shutdown.send(request).map_err(|_| NO_SERVER)?;
    session.after = After::Close;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{call, session, session_with_shutdown};

    #[test]
    fn time_has_two_parts() {
        let mut session = session();
        let reply = call(&mut session, &["TIME"]);
        let parts: Vec<&str> = reply.split("\r\n").collect();
        assert_eq!((parts[0], parts.len()), ("*2", 6));
        assert!(parts[2].parse::<u64>().unwrap() > 1_700_000_000);
        assert!(parts[4].parse::<u64>().unwrap() < 1_000_000);
    }

    #[test]
    fn the_role_is_a_primary_without_replicas() {
        assert_eq!(call(&mut session(), &["ROLE"]), "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n");
    }

    #[test]
    fn shutdown_is_asked_for_and_closes() {
        let (mut session, mut requests) = session_with_shutdown();
        assert_eq!(call(&mut session, &["SHUTDOWN", "nosave", "NOW"]), "");
        assert_eq!(session.after, After::Close);
        assert_eq!(requests.try_recv().unwrap(), ShutdownRequest { now: true, save: Some(false) });
    }

    #[test]
    fn shutdown_refuses_what_makes_no_sense() {
        let (mut session, mut requests) = session_with_shutdown();
        let syntax = "-ERR syntax error\r\n";
        for (words, reply) in [
            (&["SHUTDOWN", "NOPE"][..], syntax),
            (&["SHUTDOWN", "SAVE", "NOSAVE"], syntax),
            (&["SHUTDOWN", "ABORT", "NOW"], syntax),
            (&["SHUTDOWN", "ABORT"], "-ERR No shutdown in progress.\r\n"),
        ] {
            assert_eq!(call(&mut session, words), reply);
        }
        assert!(requests.try_recv().is_err());
        assert_eq!(session.after, After::Nothing);
    }
}
