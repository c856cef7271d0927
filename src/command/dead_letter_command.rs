//! LARDER.DEADLETTER: the changes that their store refused every time.
//!
//! All of them wait for files, and so run below. A command that has to wait begins there once more: each waits
//! before it does anything, so that nothing is done twice.

use futures_util::FutureExt;

use super::{
    Args, Session,
    row::{Flags, Group, Row, Run},
    server::{HELP, SUB, help},
};
use crate::{
    cache::{Cache, tx::Stop},
    error::ClientError,
    policy::behind::dead::Letter,
    protocol::Reply,
    store::Change,
};

const COMMAND: Row = Row {
    flags: Flags::ADMIN,
    since: "0.1.0",
    complexity: "O(N) where N is the number of dead letters.",
    ..SUB
};
/// What LIST shows of a letter.
const FIELDS: usize = 8;
/// Letters that LIST shows unless it is told.
const SHOWN: usize = 100;

/// The rows of this family.
pub const ROWS: &[Row] = &[Row {
    name: "larder.deadletter",
    arity: -2,
    run: Run::Sub(&[
        Row {
            name: "drop",
            arity: -3,
            run: Run::Waiting(|session, args, reply| drop_some(session, args, reply).boxed_local()),
            summary: "Forgets dead letters, these or all; returns how many there were.",
            syntax: "<id [id ...] | ALL>",
            ..COMMAND
        },
        Row { name: "help", run: Run::Session(help_text), since: "0.1.0", ..HELP },
        Row {
            name: "list",
            arity: -2,
            run: Run::Waiting(|session, args, reply| list(session, args, reply).boxed_local()),
            summary: "Shows dead letters, the oldest first: id, time, database, key, what was to happen, \
                      how often it was tried and why it was refused.",
            syntax: "[count]",
            ..COMMAND
        },
        Row {
            name: "retry",
            arity: -3,
            run: Run::Waiting(|session, args, reply| retry(session, args, reply).boxed_local()),
            summary: "Brings dead letters, these or all, to their store once more, unless what it has \
                      is newer; returns what became of each.",
            syntax: "<id [id ...] | ALL>",
            ..COMMAND
        },
    ]),
    group: Group::Larder,
    since: "0.1.0",
    complexity: "Depends on subcommand.",
    summary: "The changes written behind that their store refused every time.",
    ..SUB
}];

fn help_text(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let lines = [
        "DROP <<id> [<id> ...] | ALL>",
        "    Forget dead letters.",
        "LIST [<count>]",
        "    Show dead letters, the oldest first.",
        "    (default: the first 100)",
        "RETRY <<id> [<id> ...] | ALL>",
        "    Bring dead letters to their store once more, unless what it has is newer.",
    ];
    help(reply, "LARDER.DEADLETTER", &lines);
    Ok(())
}

/// An error of the directory of letters.
fn broken(why: &std::io::Error) -> ClientError {
    ClientError::from(format!("ERR the dead letters: {why}"))
}

/// The letters that the arguments name. Waits, so that what follows is done below, and once.
async fn named(cache: &Cache, args: Args<'_>) -> Result<Vec<u64>, Stop> {
    tokio::task::yield_now().await;
    if args.len() == 3 && args.get(2).eq_ignore_ascii_case(b"all") {
        return Ok(cache.dead_letter_ids().await.map_err(|why| broken(&why))?);
    }
    (2..args.len())
        .map(|at| Ok(u64::try_from(args.integer(at)?).map_err(|_| ClientError::NOT_INTEGER)?))
        .collect()
}

async fn list(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let most = match args.len() {
        2 => SHOWN,
        _ => usize::try_from(args.integer(2)?).map_err(|_| ClientError::NOT_INTEGER)?,
    };
    tokio::task::yield_now().await;
    let cache = &session.shared.cache;
    let mut ids = cache.dead_letter_ids().await.map_err(|why| broken(&why))?;
    ids.truncate(most);
    let letters = cache.read_dead_letters(&ids).await.map_err(|why| broken(&why))?;
    reply.array(letters.len());
    for (id, letter) in letters {
        // One that is damaged is shown as such: it can be dropped.
        match letter {
            Ok((letter, value_len)) => show(&letter, value_len, reply),
            Err(why) => {
                reply.map(2);
                reply.bulk(b"id");
                reply.integer(id as i64);
                reply.bulk(b"error");
                reply.bulk(why.to_string().as_bytes());
            }
        }
    }
    Ok(())
}

fn show(letter: &Letter, value_len: usize, reply: &mut Reply<'_>) {
    let change = match &letter.change {
        Change::Put(_) => "put",
        Change::Delete { .. } => "delete",
    };
    reply.map(FIELDS);
    for (name, number) in [
        ("id", letter.id),
        ("time", letter.time),
        ("db", u64::from(letter.db)),
        ("tries", u64::from(letter.tries)),
        ("value_bytes", value_len as u64),
    ] {
        reply.bulk(name.as_bytes());
        reply.integer(number as i64);
    }
    for (name, text) in [
        ("key", &letter.key[..]),
        ("change", change.as_bytes()),
        ("error", letter.reason.as_bytes()),
    ] {
        reply.bulk(name.as_bytes());
        reply.bulk(text);
    }
}

async fn drop_some(
    session: &mut Session,
    args: Args<'_>,
    reply: &mut Reply<'_>,
) -> Result<(), Stop> {
    let cache = &session.shared.cache;
    let ids = named(cache, args).await?;
    let count = cache.drop_dead_letters(&ids).await.map_err(|why| broken(&why))?;
    reply.integer(count as i64);
    Ok(())
}

async fn retry(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let cache = &session.shared.cache;
    let ids = named(cache, args).await?;
    reply.array(ids.len());
    for id in ids {
        let retried = cache.retry_dead_letter(id).await;
        reply.bulk(retried.to_string().as_bytes());
    }
    Ok(())
}
