//! LARDER.BREAKER and INFO's section `stores`: the circuit breakers of the stores, and what stores that
//! are made of others asked of them.

use super::{
    Args, Session,
    info::Text,
    row::{Flags, Group, Row, Run},
    server::{HELP, SUB, help},
};
use crate::{
    cache::tx::Stop,
    error::ClientError,
    protocol::Reply,
    store::breaker::{Breaker, Figures},
};

const ADMIN: Flags = Flags::ADMIN.with(Flags::LOADING).with(Flags::STALE);
/// What LIST shows of a breaker.
const FIELDS: usize = 7;

const COMMAND: Row = Row { arity: 3, flags: ADMIN, since: "0.1.0", syntax: "store", ..SUB };

/// The rows of this family.
pub const ROWS: &[Row] = &[Row {
    name: "larder.breaker",
    arity: -2,
    run: Run::Sub(&[
        Row {
            name: "close",
            run: Run::Session(|session, args, reply| set(session, args, reply, Breaker::close)),
            summary: "Closes a store's breaker and forgets its last calls, also if it was opened by hand.",
            ..COMMAND
        },
        Row { name: "help", run: Run::Session(help_text), since: "0.1.0", ..HELP },
        Row {
            name: "list",
            arity: 2,
            run: Run::Session(list),
            complexity: "O(N) where N is the number of stores.",
            summary: "Shows each store's breaker: its state (`closed`, `open`, `half-open`), and since \
                      the start the calls that were let through, those that failed and those that were \
                      slow, those that were rejected, and how often it opened.",
            syntax: "",
            ..COMMAND
        },
        Row {
            name: "open",
            run: Run::Session(|session, args, reply| set(session, args, reply, Breaker::open)),
            summary: "Opens a store's breaker: the store isn't asked until CLOSE or RESET.",
            ..COMMAND
        },
        Row {
            name: "reset",
            run: Run::Session(|session, args, reply| set(session, args, reply, Breaker::reset)),
            summary: "Closes a store's breaker and sets its figures to 0.",
            ..COMMAND
        },
    ]),
    group: Group::Larder,
    since: "0.1.0",
    complexity: "Depends on subcommand.",
    summary: "The circuit breakers of the stores.",
    ..SUB
}];

fn help_text(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let lines = [
        "CLOSE <store>",
        "    Let calls through, and forget the last ones.",
        "LIST",
        "    Show the breaker of each store.",
        "OPEN <store>",
        "    Don't ask the store until CLOSE or RESET.",
        "RESET <store>",
        "    CLOSE, and set the figures to 0.",
    ];
    help(reply, "LARDER.BREAKER", &lines);
    Ok(())
}

fn set(
    session: &mut Session,
    args: Args<'_>,
    reply: &mut Reply<'_>,
    act: fn(&Breaker),
) -> Result<(), Stop> {
    let name = args.get(2);
    let breakers = &session.shared.breakers;
    let Some(breaker) = breakers.iter().find(|breaker| breaker.name().as_bytes() == name) else {
        return Err(ClientError::new("ERR no such store, or it has no breaker").into());
    };
    act(breaker);
    reply.ok();
    Ok(())
}

fn figures_of(breaker: &Breaker) -> [(&'static str, u64); FIELDS - 2] {
    let Figures { calls, failures, slow, rejected, opened } = breaker.figures();
    [
        ("calls", calls),
        ("failures", failures),
        ("slow", slow),
        ("rejected", rejected),
        ("opened", opened),
    ]
}

fn list(session: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    reply.array(session.shared.breakers.len());
    for breaker in &session.shared.breakers {
        reply.map(FIELDS);
        reply.bulk(b"store");
        reply.bulk(breaker.name().as_bytes());
        reply.bulk(b"state");
        reply.bulk(breaker.state().name().as_bytes());
        for (name, figure) in figures_of(breaker) {
            reply.bulk(name.as_bytes());
            reply.integer(figure as i64);
        }
    }
    Ok(())
}

/// Writes INFO's section `stores`: a line for each breaker, and one for each part of a store.
pub(super) fn info(session: &Session, text: &mut Text) {
    for breaker in &session.shared.breakers {
        let figures = figures_of(breaker).map(|(name, figure)| format!(",{name}={figure}"));
        let state = breaker.state().name();
        text.field(
            &format!("store_{}", breaker.name()),
            format!("breaker={state}{}", figures.concat()),
        );
    }
    // A store's name has no dot.
    for (name, store) in &session.shared.stores {
        for (part, figures) in store.report() {
            text.field(&format!("store_{name}.{part}"), figures);
        }
    }
}
