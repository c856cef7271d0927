//! Commands: the table, and the one way through which each of them is carried out.
//!
//! [`dispatch`] finds the row, checks arity, authority and pause, counts, and hands a command over keys
//! to the cache, which holds the keys' stripes while the command's function runs. What can't be done
//! while they are held (a load, a write to a store) comes back as [`Next::Below`] and is carried out by
//! [`below`], where waiting is allowed. Replies of a command that stopped are taken back.

mod allocator;
mod apply;
pub mod args;
pub mod bitfield;
pub mod bits;
mod breaker_command;
pub mod client;
pub mod config_command;
pub mod connection;
mod dead_letter_command;
pub mod debug;
pub mod docs;
pub mod dump;
pub mod expire;
mod expiry;
pub mod figures;
#[cfg(test)]
mod fixture;
pub mod histogram;
pub mod info;
mod info_counts;
pub mod keys;
pub mod keyspace;
pub mod latency;
pub mod latency_command;
pub mod latency_report;
pub mod lcs;
pub mod lolwut;
pub mod memory_command;
pub mod monitor;
mod namespace_command;
pub mod namespace_figures;
pub mod object;
pub mod rates;
pub mod relocate;
pub mod row;
pub mod scan;
pub mod server;
pub mod session;
pub mod shared;
pub mod slowlog;
pub mod strings;
pub mod strings_many;
pub mod strings_number;
pub mod strings_range;
pub mod table;
#[cfg(test)]
pub mod testing;
pub mod tiers;
pub mod traffic;

use std::{
    ops::Range,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use smallvec::SmallVec;

pub use apply::most_clients;
pub use args::{Args, OwnedArgs};
pub use row::{Flags, Row, Run};
pub use session::Session;

use crate::{
    cache::{
        Ahead, Job, Refusal, Use,
        tx::{Key, Stop, Tx},
    },
    error::ClientError,
    protocol::{Batch, Output, Reply, Resp, Span},
};
use session::{After, Replies};
use shared::attention;
use table::Entry;

/// How a command ended, for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is answered.
    Done,
    /// It has to go below: nothing has changed, nothing is answered; call [`below`].
    Below,
    /// It waits while clients are paused: nothing has changed; call again later.
    Pause,
}

/// Bytes that an entry may take beside its key and value: header, rounding, slot and queues.
const ROOM_OVERHEAD: usize = 96;
/// Unknown commands and subcommands are shown with at most so many bytes of name and arguments.
const SHOWN: usize = 128;
/// `slowlog-log-slower-than` below which every command is timed by itself, in microseconds.
pub const TIME_EACH_BELOW: u128 = 1_000;

/// How often a worker looks for expired entries, and for entries above a lowered limit.
pub const TIDY_EVERY: Duration = Duration::from_millis(100);

/// Arguments of a command that is fast whatever its class.
const FEW: usize = 16;
/// Bytes of the arguments of a command that isn't slow as a class.
const LONG: usize = 64 * 1024;
/// So many calls of each command are all timed.
const FIRST_CALLS: u64 = 64;

type Keys<'a> = SmallVec<[(Key<'a>, Use); 1]>;

/// How many requests ahead the table's lines are loaded, and entries half as many: about as long as
/// memory takes to answer, and few enough that they are still in the first cache when they are used.
const AHEAD: usize = 16;

/// What is known of a request before it is carried out.
#[derive(Clone, Copy)]
pub struct Found {
    /// Its command.
    pub entry: Option<&'static Entry>,
    /// The database and the hash of its key, if it has one for which the table is yet to be loaded.
    key: Option<(usize, u64)>,
}

/// Finds the commands of some of a batch's requests, which are in `buf`, and hashes their keys.
#[inline]
pub fn prepare(
    session: &Session,
    buf: &[u8],
    batch: &mut Batch,
    requests: Range<usize>,
    found: &mut Vec<Found>,
) {
    let memory = session.cache().memory();
    let first = found.len();
    let mut last: (&[u8], Option<&'static Entry>) = (&[], None);
    for request in &batch.requests[requests.clone()] {
        let spans = &mut batch.spans[request.first as usize..][..request.count as usize];
        // A pipeline is mostly of one command.
        let name = spans[0].of(buf);
        if name != last.0 {
            last = (name, table::find(name));
        }
        let entry = last.1;
        let mut key = None;
        if let Some(entry) = entry {
            let row = resolve(entry, buf, spans).row;
            for_each_key(row, spans.len(), |at| {
                let hash = memory.hash(spans[at].of(buf));
                spans[at].hash = hash;
                key = Some((session.db, hash));
            });
        }
        found.push(Found { entry, key });
    }
    if !session.stats.keys.sampler.passes(requests.len()) {
        traffic::note_requests(session, buf, batch, requests, &found[first..]);
    }
}

/// Starts loading what the first requests of a turn will look at.
pub fn load_first(session: &Session, found: &mut [Found]) {
    // With a single one there is nothing to do meanwhile.
    if found.len() > 1 {
        found.iter_mut().take(AHEAD).for_each(|found| load_line(session, found));
        found.iter().take(AHEAD / 2).for_each(|found| load_entry(session, found));
    }
}

/// Starts loading what requests that come a little later than `at` will look at: first the line of the
/// table, then the entry.
#[inline]
pub fn load_ahead(session: &Session, found: &mut [Found], at: usize) {
    if let Some(later) = found.get_mut(at + AHEAD) {
        load_line(session, later);
    }
    if let Some(later) = found.get(at + AHEAD / 2) {
        load_entry(session, later);
    }
}

/// Starts loading a request's line of the table. What the worker has of its own needs none, only the
/// entry.
#[inline]
fn load_line(session: &Session, found: &mut Found) {
    let Some((db, hash)) = found.key else { return };
    if session.local.as_ref().is_some_and(|local| local.borrow().prefetch(hash)) {
        found.key = None;
    } else {
        session.cache().memory().prefetch(db, hash);
    }
}

#[inline]
fn load_entry(session: &Session, found: &Found) {
    if let Some((db, hash)) = found.key {
        session.cache().memory().prefetch_entry(db, hash);
    }
}

#[inline]
fn for_each_key(row: &Row, count: usize, mut seen: impl FnMut(usize)) {
    match row.single_key() {
        Some((at, _)) if at < count => seen(at),
        Some(_) => {}
        None => row.key_positions(count).for_each(|(at, _)| seen(at)),
    }
}

/// The subcommand's entry where there is one.
#[inline]
fn resolve(entry: &'static Entry, buf: &[u8], spans: &[Span]) -> &'static Entry {
    match entry.row.run {
        Run::Sub(_) => {
            let name = spans.get(1).map_or(&[][..], |span| span.of(buf));
            entry.subcommand(name).unwrap_or(entry)
        }
        _ => entry,
    }
}

/// Carries out one command, as far as it can be without waiting.
#[inline]
pub fn dispatch(
    session: &mut Session,
    found: Option<&'static Entry>,
    args: Args<'_>,
    out: &mut Output,
) -> Next {
    let entry = match admit(session, found, args) {
        Ok(entry) => entry,
        Err(refused) => {
            refuse(session, found, &refused, out);
            return Next::Done;
        }
    };
    if session.shared.attention.load(Relaxed) & attention::PAUSE != 0 && is_paused(session, entry) {
        return Next::Pause;
    }
    let mark = out.mark();
    let next = match times(session, entry, args) {
        Some(times) => timed(session, entry, args, times, out),
        None => carry_out(session, entry, args, out),
    };
    if next == Next::Done {
        if session.replies != Replies::On {
            silence(session, mark, out);
        }
        session.stats.rows[usize::from(entry.index)].calls.add(1);
        session.stats.commands.add(1);
        session.client.last_command.store(entry.index + 1, Relaxed);
        show(session, entry, args);
    }
    next
}

/// Whether a command is timed, and for how many it counts: slow classes, long arguments and the first few of each
/// command always, the others if the slow log asks for it, or as samples.
#[inline]
fn times(session: &Session, entry: &Entry, args: Args<'_>) -> Option<u64> {
    if !entry.is_brief || session.times_each || args.len() > FEW {
        return Some(1);
    }
    if !entry.row.flags.has(Flags::FAST) && args.bytes() > LONG {
        return Some(1);
    }
    if !session.tracks {
        return None;
    }
    let calls = session.stats.rows[usize::from(entry.index)].calls.get();
    if calls < FIRST_CALLS { Some(1) } else { session.stats.sampler.take() }
}

/// Carries out a command that counts for so many of its like.
#[inline(never)]
fn timed(
    session: &mut Session,
    entry: &'static Entry,
    args: Args<'_>,
    times: u64,
    out: &mut Output,
) -> Next {
    let started = Instant::now();
    let next = carry_out(session, entry, args, out);
    if next == Next::Done {
        note_time(session, entry, args, started, times);
    }
    next
}

/// Counts the time that a command took, and logs it if it was slow.
fn note_time(session: &Session, entry: &Entry, args: Args<'_>, started: Instant, times: u64) {
    let took = started.elapsed();
    if session.tracks {
        session.stats.rows[usize::from(entry.index)].durations.note(took, times);
    }
    if !entry.row.flags.has(Flags::SKIP_SLOWLOG) {
        let settings = &session.settings;
        let slow = settings.slowlog_log_slower_than.is_some_and(|least| took >= least);
        if slow {
            let max = settings.slowlog_max_len as usize;
            session.shared.slowlog.note(args, took, &session.client, session.now, max);
        }
        let fast = entry.row.flags.has(Flags::FAST);
        let event = if fast { "fast-command" } else { "command" };
        session.shared.latency.note(event, took, settings.latency_monitor_threshold, session.now);
    }
}

/// Checks what the row says: name, arity, authority.
#[inline]
fn admit(
    session: &Session,
    found: Option<&'static Entry>,
    args: Args<'_>,
) -> Result<&'static Entry, ClientError> {
    let Some(mut entry) = found else { return Err(unknown(args)) };
    if let Run::Sub(_) = entry.row.run
        && args.len() > 1
    {
        entry = entry.subcommand(args.get(1)).ok_or_else(|| unknown_subcommand(entry, args))?;
    }
    if !entry.row.takes(args.len()) {
        return Err(wrong_arity(entry));
    }
    if !session.authenticated && !entry.row.flags.has(Flags::NO_AUTH) {
        return Err(ClientError::new("NOAUTH Authentication required."));
    }
    Ok(entry)
}

#[cold]
fn refuse(
    session: &mut Session,
    found: Option<&'static Entry>,
    error: &ClientError,
    out: &mut Output,
) {
    if let Some(entry) = found {
        session.stats.rows[usize::from(entry.index)].rejected.add(1);
    }
    session.stats.commands.add(1);
    let mark = out.mark();
    fail(session, error, &mut Reply::new(out, session.resp));
    silence(session, mark, out);
}

/// Answers with an error, in place of a reply that was counted already.
pub fn write_error(error: &ClientError, out: &mut Output) {
    // An error is the same in both versions of the protocol.
    Reply::new(out, Resp::V2).error(error);
}

/// Answers with an error, and counts it.
fn fail(session: &Session, error: &ClientError, reply: &mut Reply<'_>) {
    session.stats.errors.add(1);
    session.shared.count_error(error.code());
    reply.error(error);
}

#[cold]
fn silence(session: &mut Session, mark: crate::protocol::Mark, out: &mut Output) {
    match session.replies {
        Replies::On => {}
        Replies::Off => out.truncate(mark),
        Replies::SkipNext => {
            out.truncate(mark);
            session.replies = Replies::Skip;
        }
        Replies::Skip => {
            out.truncate(mark);
            session.replies = Replies::On;
        }
    }
}

/// Runs the command's function.
#[inline]
fn carry_out(
    session: &mut Session,
    entry: &'static Entry,
    args: Args<'_>,
    out: &mut Output,
) -> Next {
    let mark = out.mark();
    let mut reply = Reply::new(out, session.resp);
    let result = match entry.row.run {
        Run::Keys(run) => {
            let mut run = |tx: &mut Tx<'_>| {
                reply.truncate(mark);
                run(tx, args, &mut reply)
            };
            // Most have one key, and need no list.
            let attempt = match entry.row.single_key() {
                Some((at, use_)) => {
                    let use_ = entry.row.use_in(use_, args);
                    attempt_one(session, entry.row, args, (args.key(at), use_), run)
                }
                None => attempt_many(session, entry.row, args, &mut run),
            };
            match attempt {
                Err(Refusal::Below | Refusal::Busy) => {
                    reply.truncate(mark);
                    return Next::Below;
                }
                Err(Refusal::Client(error)) => Err(error),
                Ok(()) => Ok(()),
            }
        }
        Run::Session(run) => run(session, args, &mut reply).map_err(refusal),
        Run::Waiting(run) => match run(session, args, &mut reply).now_or_never() {
            Some(result) => result.map_err(refusal),
            None => {
                reply.truncate(mark);
                return Next::Below;
            }
        },
        // COMMAND is the only container that is a command too.
        Run::Sub(_) if entry.row.takes(1) => docs::all(session, args, &mut reply).map_err(refusal),
        // A container by its name alone: its arity refuses that before.
        Run::Sub(_) => Err(wrong_arity(entry)),
    };
    if let Err(error) = result {
        reply.truncate(mark);
        session.stats.rows[usize::from(entry.index)].failed.add(1);
        fail(session, &error, &mut reply);
    }
    Next::Done
}

/// What a client is told when a command over the session stops.
fn refusal(stop: Stop) -> ClientError {
    match stop {
        Stop::Client(error) => error,
        _ => ClientError::OOM,
    }
}

/// A command that goes below.
pub struct Errand {
    /// What its name was found to be.
    pub found: &'static Entry,
    /// Its arguments.
    pub args: OwnedArgs,
}

/// Whether a command is a plain read of keys, which may go below together with other such.
pub fn may_run_ahead(session: &Session, found: &Entry, args: Args<'_>) -> bool {
    let row = found.row;
    let is_read = matches!(row.run, Run::Keys(_)) && row.flags.has(Flags::READONLY);
    is_read && row.takes(args.len()) && session.shared.attention.load(Relaxed) == 0
}

/// Carries out commands that have to go below, where they may wait for a store or the disk: one, or a run
/// of reads. What the reads need is fetched together; they are answered in their order.
pub async fn below(session: &mut Session, errands: &[Errand], out: &mut Output) {
    let mut ahead = Ahead::default();
    if errands.len() > 1 {
        let keys: Keys<'_> = errands
            .iter()
            .flat_map(|errand| keys_of(errand.found.row, errand.args.get()))
            .collect();
        let job = Job {
            writes: false,
            room: 0,
            ..job_of(session, errands[0].found.row, errands[0].args.get(), &keys)
        };
        ahead = session.shared.cache.fetch_ahead(&job).await;
    }
    for Errand { found, args } in errands {
        if out.is_cut() {
            return;
        }
        run_below(session, found, args.get(), &mut ahead, out).await;
    }
}

async fn run_below(
    session: &mut Session,
    found: &'static Entry,
    args: Args<'_>,
    ahead: &mut Ahead,
    out: &mut Output,
) {
    let entry = found.subcommand(args.get(1)).unwrap_or(found);
    let started = Instant::now();
    let mark = out.mark();
    let mut reply = Reply::new(out, session.resp);
    let result = match entry.row.run {
        Run::Keys(run) => {
            let keys = keys_of(entry.row, args);
            let job = job_of(session, entry.row, args, &keys);
            let run = |tx: &mut Tx<'_>| {
                reply.truncate(mark);
                run(tx, args, &mut reply)
            };
            session.shared.cache.go_below(&job, ahead, run).await
        }
        Run::Waiting(run) => run(session, args, &mut reply).await.map_err(refusal),
        Run::Session(_) | Run::Sub(_) => return,
    };
    if let Err(error) = result {
        reply.truncate(mark);
        session.stats.rows[usize::from(entry.index)].failed.add(1);
        fail(session, &error, &mut reply);
    }
    if session.replies != Replies::On {
        silence(session, mark, out);
    }
    session.stats.rows[usize::from(entry.index)].calls.add(1);
    session.stats.commands.add(1);
    session.client.last_command.store(entry.index + 1, Relaxed);
    note_time(session, entry, args, started, 1);
    show(session, entry, args);
}

#[inline(always)]
fn attempt(
    session: &Session,
    row: &Row,
    args: Args<'_>,
    keys: &[(Key<'_>, Use)],
    run: impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
) -> Result<(), Refusal> {
    session.shared.cache.attempt(&job_of(session, row, args, keys), run)
}

/// Tries a command over one key; the worker's own cache may have what it reads.
#[inline(always)]
fn attempt_one(
    session: &Session,
    row: &Row,
    args: Args<'_>,
    (key, use_): (Key<'_>, Use),
    mut run: impl FnMut(&mut Tx<'_>) -> Result<(), Stop>,
) -> Result<(), Refusal> {
    let keys = [(key, use_)];
    let job = job_of(session, row, args, &keys);
    if let Some(local) = &session.local
        && use_ == Use::Read
        && !job.writes
        && let Some(served) = local.borrow_mut().serve(&job, &mut run)
    {
        return served;
    }
    session.shared.cache.attempt(&job, run)
}

#[inline(never)]
fn attempt_many(
    session: &Session,
    row: &Row,
    args: Args<'_>,
    run: &mut dyn FnMut(&mut Tx<'_>) -> Result<(), Stop>,
) -> Result<(), Refusal> {
    attempt(session, row, args, &keys_of(row, args), run)
}

fn keys_of<'a>(row: &Row, args: Args<'a>) -> Keys<'a> {
    let key = |(at, use_)| (args.key(at), row.use_in(use_, args));
    row.key_positions(args.len()).map(key).collect()
}

#[inline]
fn job_of<'a>(
    session: &'a Session,
    row: &Row,
    args: Args<'_>,
    keys: &'a [(Key<'a>, Use)],
) -> Job<'a> {
    let grows = row.flags.has(Flags::DENYOOM);
    // Rounding to a size class adds a quarter at most.
    let room = if grows { args.bytes() * 5 / 4 + keys.len() * ROOM_OVERHEAD } else { 0 };
    Job {
        db: session.db,
        now: session.now,
        keys,
        writes: row.flags.has(Flags::WRITE),
        strict: row.flags.has(Flags::WRITE),
        room,
        touch: !session.no_touch,
        counters: &session.stats.keys,
        release: &session.release,
    }
}

/// Shows a command to those who monitor, after it was carried out, as Redis does.
#[inline]
fn show(session: &Session, entry: &Entry, args: Args<'_>) {
    let monitored = session.shared.attention.load(Relaxed) & attention::MONITOR != 0;
    if monitored && !entry.row.flags.has(Flags::SKIP_MONITOR) {
        monitor::show(session, args);
    }
}

/// Whether CLIENT PAUSE concerns a command now; a pause that is over is forgotten.
#[cold]
fn is_paused(session: &Session, entry: &Entry) -> bool {
    let mut pause = session.shared.pause.lock();
    let now = session.shared.cache.clock().now();
    let Some(asked) = pause.filter(|asked| now < asked.until) else {
        *pause = None;
        session.shared.set_attention(attention::PAUSE, false);
        return false;
    };
    let exempt = entry.full_name().starts_with("client|");
    !exempt && (!asked.only_writes || entry.row.flags.has(Flags::WRITE))
}

#[cold]
fn unknown(args: Args<'_>) -> ClientError {
    let mut text = String::from("ERR unknown command '");
    text.push_str(&shown(args.get(0), SHOWN));
    text.push_str("', with args beginning with: ");
    let mut left = SHOWN;
    for arg in args.from(1) {
        if left == 0 {
            break;
        }
        text.push('\'');
        text.push_str(&shown(arg, left));
        text.push_str("' ");
        // As many as are sent, not as many as they are in UTF-8.
        let sent = arg.iter().take(left).take_while(|&&byte| byte != 0).count();
        left = left.saturating_sub(sent + "'' ".len());
    }
    ClientError::from(text)
}

fn unknown_subcommand(entry: &Entry, args: Args<'_>) -> ClientError {
    let name = shown(args.get(1), SHOWN);
    let container = entry.row.name.to_ascii_uppercase();
    ClientError::from(format!("ERR unknown subcommand '{name}'. Try {container} HELP."))
}

/// The error for a wrong number of arguments.
pub fn wrong_arity(entry: &Entry) -> ClientError {
    ClientError::from(format!("ERR wrong number of arguments for '{}' command", entry.full_name()))
}

/// At most `most` bytes of what a client sent, as text; Redis's texts end at a zero byte.
fn shown(bytes: &[u8], most: usize) -> String {
    let end = bytes.iter().take(most).take_while(|&&byte| byte != 0).count();
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Takes what the last command asked its connection to do.
pub fn take_after(session: &mut Session) -> After {
    std::mem::take(&mut session.after)
}
