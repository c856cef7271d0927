//! CONFIG: the settings in force, and the counters' start
//! (<https://redis.io/docs/latest/commands/config-set/>).

use super::{
    Args, Session, most_clients,
    row::{Flags, Row, Run},
    server::{ANYWHERE, HELP, SUB, help},
};
use crate::{
    cache::tx::Stop,
    config::{Config, Live},
    error::ClientError,
    protocol::Reply,
    value::glob::matches_ignore_case,
};

const ADMIN: Flags = ANYWHERE.with(Flags::ADMIN).with(Flags::NOSCRIPT);

/// CONFIG.
pub const ROW: Row = Row {
    name: "config",
    run: Run::Sub(&[
        Row {
            name: "get",
            arity: -3,
            flags: ADMIN,
            run: Run::Session(get),
            since: "2.0.0",
            complexity: "O(N) when N is the number of configuration parameters provided",
            summary: "Shows settings by name or by pattern.",
            syntax: "parameter [parameter ...]",
            ..SUB
        },
        Row { run: Run::Session(help_text), ..HELP },
        Row {
            name: "resetstat",
            arity: 2,
            flags: ADMIN,
            run: Run::Session(resetstat),
            since: "2.0.0",
            summary: "Starts the counters that INFO shows again.",
            ..SUB
        },
        Row {
            name: "rewrite",
            arity: 2,
            flags: ADMIN,
            run: Run::Session(rewrite),
            since: "2.8.0",
            summary: "Writes the settings in force into the configuration file.",
            ..SUB
        },
        Row {
            name: "set",
            arity: -4,
            flags: ADMIN,
            run: Run::Session(set),
            since: "2.0.0",
            complexity: "O(N) when N is the number of configuration parameters provided",
            summary: "Changes settings, all of them or none.",
            syntax: "parameter value [parameter value ...]",
            ..SUB
        },
    ]),
    since: "2.0.0",
    complexity: "Depends on subcommand.",
    summary: "The settings of the server.",
    ..SUB
};

fn get(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let patterns: Vec<&[u8]> = args.from(2).collect();
    let found = session.shared.live.config_get(&patterns, matches_ignore_case);
    reply.map(found.len());
    for (name, value) in found {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    Ok(())
}

fn set(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    if args.len() % 2 == 1 {
        return Err(ClientError::SYNTAX.into());
    }
    let value = |at| (args.get(at), args.get(at + 1));
    let pairs: Vec<_> = (2..args.len()).step_by(2).map(value).collect();
    check_maxclients(&session.shared.live, &pairs)?;
    session.shared.live.config_set(&pairs)?;
    session.shared.apply_settings();
    session.refresh_settings();
    reply.ok();
    Ok(())
}

/// Refuses more clients than there may be file descriptors. What else is wrong with the settings is
/// said first, so they are tried on a copy.
fn check_maxclients(live: &Live, pairs: &[(&[u8], &[u8])]) -> Result<(), ClientError> {
    if !pairs.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"maxclients")) {
        return Ok(());
    }
    let settings = live.get().as_ref().clone();
    let copy = Live::new(&Config { settings, ..Config::default() });
    copy.config_set(pairs)?;
    let most = most_clients();
    if copy.get().maxclients <= most.max(live.get().maxclients) {
        return Ok(());
    }
    Err(ClientError::from(format!(
        "ERR CONFIG SET failed (possibly related to argument 'maxclients') - The operating system \
         is not able to handle the specified number of clients, try with {most}"
    )))
}

fn resetstat(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    session.shared.reset_statistics();
    reply.ok();
    Ok(())
}

fn rewrite(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    session.shared.live.rewrite()?;
    reply.ok();
    Ok(())
}

fn help_text(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    help(
        reply,
        "CONFIG",
        &[
            "GET <pattern> [<pattern> ...]",
            "    Return the settings that match a glob-like <pattern>, with their values.",
            "SET <directive> <value> [<directive> <value> ...]",
            "    Change settings, all of them or none.",
            "RESETSTAT",
            "    Start the counters that INFO reports again.",
            "REWRITE",
            "    Write the settings in force into the configuration file.",
        ],
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{
        command::testing::{call, session},
        protocol::Resp,
    };

    #[test]
    fn a_setting_goes_in_and_acts_at_once() {
        let mut session = session();
        assert_eq!(call(&mut session, &["CONFIG", "SET", "maxmemory", "100mb"]), "+OK\r\n");
        assert_eq!(session.cache().memory().rules().limit(), 100 << 20);
        assert_eq!(session.settings.memory, 100 << 20);
        let reply = call(&mut session, &["CONFIG", "GET", "MaxMemory", "nope"]);
        assert_eq!(reply, "*2\r\n$9\r\nMaxMemory\r\n$9\r\n104857600\r\n");
        session.set_resp(Resp::V3);
        let reply = call(&mut session, &["CONFIG", "GET", "maxmemory-s*"]);
        assert_eq!(reply, "%1\r\n$17\r\nmaxmemory-samples\r\n$1\r\n5\r\n");
    }

    #[test]
    fn a_low_threshold_times_each_command() {
        let mut session = session();
        call(&mut session, &["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
        assert!(session.times_each);
        call(&mut session, &["CONFIG", "SET", "slowlog-log-slower-than", "-1"]);
        assert!(!session.times_each);
    }

    #[test]
    fn refusals() {
        let mut session = session();
        let unknown = "-ERR Unknown option or number of arguments for CONFIG SET - 'nope'\r\n";
        let many = "-ERR CONFIG SET failed (possibly related to argument 'maxclients') - The \
                    operating system is not able to handle the specified number of clients, try \
                    with ";
        for (words, reply) in [
            (&["CONFIG", "SET", "a", "b", "c"][..], "-ERR syntax error\r\n"),
            (&["CONFIG", "SET", "maxclients", "4000000000", "nope", "1"], unknown),
            (&["CONFIG", "SET", "maxclients", "4000000000"], many),
            (&["CONFIG", "REWRITE"], "-ERR The server is running without a config file\r\n"),
            (&["CONFIG", "SET", "a"], "-ERR wrong number of arguments for 'config|set' command"),
            (&["CONFIG", "NOPE"], "-ERR unknown subcommand 'NOPE'. Try CONFIG HELP.\r\n"),
        ] {
            let found = call(&mut session, words);
            assert!(found.starts_with(reply), "{found}");
        }
        assert_eq!(session.shared.live.version(), 0);
        assert_eq!(call(&mut session, &["CONFIG", "SET", "maxclients", "50"]), "+OK\r\n");
    }

    #[test]
    fn resetstat_starts_again() {
        let mut session = session();
        call(&mut session, &["NOSUCHCOMMAND"]);
        assert_eq!(session.shared.errors.len(), 1);
        assert_eq!(call(&mut session, &["CONFIG", "RESETSTAT"]), "+OK\r\n");
        assert_eq!((session.shared.errors.len(), session.stats.commands.get()), (0, 1));
    }
}
