//! COMMAND: what the server tells of its own commands, so that clients can route them, and redis-cli
//! complete and hint. Everything is made from the rows; `facts` adds what doesn't follow from them,
//! `syntax` turns a row's syntax into a tree of arguments, and `page` makes `docs/commands.md`.
//!
//! The shapes of the replies are those of <https://redis.io/docs/latest/commands/command/> and the
//! pages of its subcommands.

mod facts;
mod names;
mod page;
mod syntax;

pub use page::markdown;

use super::{
    Args, Session,
    row::{Flags, Group, KeySpec, NO_KEYS, OnSession, Row, Run},
    table::{self, Entry},
};
use crate::{
    cache::{Use, tx::Stop},
    error::ClientError,
    protocol::Reply,
    value::glob,
};
use syntax::Argument;

type Done = Result<(), Stop>;

const ALWAYS: Flags = Flags::LOADING.with(Flags::STALE);

const fn row(name: &'static str, arity: i32, run: OnSession, syntax: &'static str) -> Row {
    Row {
        name,
        arity,
        flags: ALWAYS,
        keys: NO_KEYS,
        run: Run::Session(run),
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(N) where N is the number of commands to look up",
        summary: "",
        syntax,
    }
}

/// The row of COMMAND. By its name alone it is a command too, [`all`].
pub(super) const ROW: Row = Row {
    run: Run::Sub(SUBCOMMANDS),
    complexity: "O(N) where N is the total number of commands",
    summary: "Describes all commands.",
    ..row("command", -1, all, "")
};

const SUBCOMMANDS: &[Row] = &[
    Row { complexity: "O(1)", summary: "Counts the commands.", ..row("count", 2, count, "") },
    Row {
        since: "7.0.0",
        summary: "Documents commands, or all.",
        ..row("docs", -2, docs, "[command-name [command-name ...]]")
    },
    Row {
        complexity: "O(N) where N is the number of arguments to the command",
        summary: "Finds the keys among the arguments of a command.",
        ..row("getkeys", -4, getkeys, "command [arg [arg ...]]")
    },
    Row {
        since: "7.0.0",
        complexity: "O(N) where N is the number of arguments to the command",
        summary: "Finds the keys among the arguments of a command, and what becomes of each.",
        ..row("getkeysandflags", -4, getkeysandflags, "command [arg [arg ...]]")
    },
    Row {
        since: "5.0.0",
        complexity: "O(1)",
        summary: "Shows what COMMAND can do.",
        ..row("help", 2, help, "")
    },
    Row {
        summary: "Describes commands, or all.",
        ..row("info", -2, info, "[command-name [command-name ...]]")
    },
    Row {
        since: "7.0.0",
        complexity: "O(N) where N is the total number of commands",
        summary: "Lists the names of commands, those of a category, or those that fit a pattern.",
        ..row(
            "list",
            -2,
            list,
            "[FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]",
        )
    },
];

const HELP: &[&str] = &[
    "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "(no subcommand)",
    "    Describe all commands.",
    "COUNT",
    "    Count the commands.",
    "LIST [FILTERBY (MODULE|ACLCAT|PATTERN) <value>]",
    "    List the names of all commands, or of some.",
    "INFO [<command-name> ...]",
    "    Describe these commands, or all.",
    "DOCS [<command-name> ...]",
    "    Document these commands, or all.",
    "GETKEYS <full-command>",
    "    Find the keys of a command.",
    "GETKEYSANDFLAGS <full-command>",
    "    Find the keys of a command, and what becomes of each.",
    "HELP",
    "    Print this help.",
];

const INVALID: ClientError = ClientError::new("ERR Invalid command specified");
const NO_KEY_ARGUMENTS: ClientError = ClientError::new("ERR The command has no key arguments");
const WRONG_COUNT: ClientError =
    ClientError::new("ERR Invalid number of arguments specified for command");

fn help(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Done {
    reply.array(HELP.len());
    HELP.iter().for_each(|line| reply.simple(line));
    Ok(())
}

/// The commands that aren't subcommands.
fn commands() -> impl Iterator<Item = &'static Entry> {
    table::all().iter().filter(|entry| entry.parent.is_none())
}

/// The subcommands of a command.
fn subcommands(entry: &Entry) -> &'static [Entry] {
    let start = usize::from(entry.index) + 1;
    table::all().get(start..start + entry.row.subcommands().len()).unwrap_or_default()
}

/// A command by `name` or `container|name`, in any case.
fn find(name: &[u8]) -> Option<&'static Entry> {
    match name.iter().position(|&byte| byte == b'|') {
        None => table::find(name),
        Some(bar) => table::find(&name[..bar])?.subcommand(&name[bar + 1..]),
    }
}

fn count(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Done {
    reply.integer(commands().count() as i64);
    Ok(())
}

/// COMMAND by its name alone.
pub(super) fn all(_: &mut Session, _: Args<'_>, reply: &mut Reply<'_>) -> Done {
    reply.array(commands().count());
    commands().for_each(|entry| describe(entry, reply));
    Ok(())
}

fn info(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    if args.len() == 2 {
        return all(session, args, reply);
    }
    reply.array(args.len() - 2);
    for name in args.from(2) {
        match find(name) {
            Some(entry) => describe(entry, reply),
            None => reply.null(),
        }
    }
    Ok(())
}

/// The ten elements of COMMAND INFO.
fn describe(entry: &Entry, reply: &mut Reply<'_>) {
    let name = entry.full_name();
    let (first, last, step) = facts::key_range(entry.row);
    reply.array(10);
    reply.bulk(name.as_bytes());
    reply.integer(i64::from(entry.row.arity));
    flag_set(&flag_names(entry.row.flags), reply);
    [first, last, step].into_iter().for_each(|number| reply.integer(number));
    let categories = facts::categories(entry);
    reply.set(categories.len());
    categories.iter().for_each(|category| reply.simple(&format!("@{category}")));
    let tips = facts::tips(&name);
    reply.set(tips.len());
    tips.iter().for_each(|tip| text(tip, reply));
    let specs = facts::key_specs(entry);
    reply.set(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        key_spec(spec, facts::key_flags(entry, index, spec.use_), reply);
    }
    reply.set(subcommands(entry).len());
    subcommands(entry).iter().for_each(|entry| describe(entry, reply));
}

fn flag_names(flags: Flags) -> Vec<&'static str> {
    Flags::NAMES.iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, name)| *name).collect()
}

fn flag_set(flags: &[&str], reply: &mut Reply<'_>) {
    reply.set(flags.len());
    flags.iter().for_each(|flag| reply.simple(flag));
}

fn text(text: &str, reply: &mut Reply<'_>) {
    reply.bulk(text.as_bytes());
}

/// A key specification: where the search begins, and how it goes on.
fn key_spec(spec: &KeySpec, flags: &[&str], reply: &mut Reply<'_>) {
    let last = match usize::try_from(spec.last) {
        Ok(last) => last.saturating_sub(spec.first) as i64,
        Err(_) => spec.last as i64,
    };
    reply.map(3);
    text("flags", reply);
    flag_set(flags, reply);
    text("begin_search", reply);
    search("index", &[("index", spec.first as i64)], reply);
    text("find_keys", reply);
    search("range", &[("lastkey", last), ("keystep", spec.step as i64), ("limit", 0)], reply);
}

fn search(kind: &str, figures: &[(&str, i64)], reply: &mut Reply<'_>) {
    reply.map(2);
    text("type", reply);
    text(kind, reply);
    text("spec", reply);
    reply.map(figures.len());
    for (name, figure) in figures {
        text(name, reply);
        reply.integer(*figure);
    }
}

fn docs(_: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    if args.len() == 2 {
        reply.map(commands().count());
        commands().for_each(|entry| document(entry, reply));
        return Ok(());
    }
    let map = reply.map_deferred();
    let mut count = 0;
    for entry in args.from(2).filter_map(find) {
        document(entry, reply);
        count += 1;
    }
    reply.finish(map, count);
    Ok(())
}

/// A command's name and its documentation.
fn document(entry: &Entry, reply: &mut Reply<'_>) {
    let row = entry.row;
    // No row's syntax is malformed: a test sees to it.
    let arguments = syntax::arguments(entry).unwrap_or_default();
    let subcommands = subcommands(entry);
    text(&entry.full_name(), reply);
    reply.map(4 + usize::from(!arguments.is_empty()) + usize::from(!subcommands.is_empty()));
    let facts = [
        ("summary", row.summary),
        ("since", row.since),
        ("group", row.group.name()),
        ("complexity", row.complexity),
    ];
    for (name, fact) in facts {
        text(name, reply);
        text(fact, reply);
    }
    if !arguments.is_empty() {
        argument_list(&arguments, reply);
    }
    if !subcommands.is_empty() {
        text("subcommands", reply);
        reply.map(subcommands.len());
        subcommands.iter().for_each(|entry| document(entry, reply));
    }
}

fn argument_list(arguments: &[Argument], reply: &mut Reply<'_>) {
    text("arguments", reply);
    reply.array(arguments.len());
    arguments.iter().for_each(|argument| self::argument(argument, reply));
}

fn argument(argument: &Argument, reply: &mut Reply<'_>) {
    let flags = argument_flags(argument);
    // As in Redis, what is shown to people is told where a value has a name of its own.
    let shown = argument.arguments.is_empty();
    let map = reply.map_deferred();
    let mut pairs = 2;
    text("name", reply);
    text(&argument.name, reply);
    text("type", reply);
    text(argument.kind.name(), reply);
    let mut pair = |name: &str, reply: &mut Reply<'_>| {
        text(name, reply);
        pairs += 1;
    };
    if shown {
        pair("display_text", reply);
        text(&argument.name, reply);
    }
    if let Some(spec) = argument.key_spec {
        pair("key_spec_index", reply);
        reply.integer(spec as i64);
    }
    if let Some(token) = argument.token {
        pair("token", reply);
        text(token, reply);
    }
    if !flags.is_empty() {
        pair("flags", reply);
        flag_set(&flags, reply);
    }
    if !argument.arguments.is_empty() {
        pairs += 1;
        argument_list(&argument.arguments, reply);
    }
    reply.finish(map, pairs);
}

fn argument_flags(argument: &Argument) -> Vec<&'static str> {
    let all = [
        ("optional", argument.optional),
        ("multiple", argument.multiple),
        ("multiple_token", argument.multiple_token),
    ];
    all.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
}

fn list(_: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    let value = args.get(4);
    let fits: Box<dyn Fn(&Entry) -> bool> = match args.len() {
        2 => Box::new(|_| true),
        5 if !args.is(2, "filterby") => return Err(Stop::Client(ClientError::SYNTAX)),
        // There are no modules.
        5 if args.is(3, "module") => Box::new(|_| false),
        5 if args.is(3, "aclcat") => {
            let named = |category: &&str| value.eq_ignore_ascii_case(category.as_bytes());
            let category = facts::CATEGORIES.into_iter().find(named);
            Box::new(move |entry| category.is_some_and(|it| facts::is_in(entry, it)))
        }
        5 if args.is(3, "pattern") => {
            Box::new(|entry| glob::matches_ignore_case(value, entry.full_name().as_bytes()))
        }
        _ => return Err(Stop::Client(ClientError::SYNTAX)),
    };
    let fitting: Vec<&Entry> = table::all().iter().filter(|entry| fits(entry)).collect();
    reply.array(fitting.len());
    fitting.iter().for_each(|entry| text(&entry.full_name(), reply));
    Ok(())
}

/// The command that stands from the third argument on, and how many arguments it has.
fn full_command(args: Args<'_>) -> Result<(&'static Entry, usize), ClientError> {
    let entry = table::find(args.get(2)).ok_or(INVALID)?;
    let entry = match entry.row.run {
        Run::Sub(_) => entry.subcommand(args.get(3)).ok_or(INVALID)?,
        _ => entry,
    };
    if entry.row.keys.is_empty() {
        return Err(NO_KEY_ARGUMENTS);
    }
    let count = args.len() - 2;
    if entry.row.takes(count) { Ok((entry, count)) } else { Err(WRONG_COUNT) }
}

fn getkeys(_: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    let (entry, count) = full_command(args)?;
    let places = || entry.row.key_positions(count);
    reply.array(places().count());
    places().for_each(|(at, _)| reply.bulk(args.get(at + 2)));
    Ok(())
}

fn getkeysandflags(_: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Done {
    let (entry, count) = full_command(args)?;
    let specs = facts::key_specs(entry);
    reply.array(entry.row.key_positions(count).count());
    for (index, spec) in specs.iter().enumerate() {
        let flags = facts::key_flags(entry, index, spec.use_);
        let flags = if flags.contains(&"variable_flags") { flags_of_call(args) } else { flags };
        for (at, _) in spec_positions(spec, count) {
            reply.array(2);
            reply.bulk(args.get(at + 2));
            flag_set(flags, reply);
        }
    }
    Ok(())
}

/// The positions that one specification finds among `count` arguments.
fn spec_positions(spec: &KeySpec, count: usize) -> impl Iterator<Item = (usize, Use)> {
    let last = if spec.last < 0 { count as isize + spec.last } else { spec.last };
    let end = (last + 1).clamp(0, count as isize) as usize;
    (spec.first..end).step_by(spec.step.max(1)).map(|at| (at, spec.use_))
}

/// What SET and BITFIELD do with their key depends on their options.
fn flags_of_call(args: Args<'_>) -> &'static [&'static str] {
    let has = |from: usize, word: &str| (from..args.len()).any(|at| args.is(at, word));
    let all = &["RW", "access", "update"];
    if args.is(2, "set") {
        return if has(5, "get") { all } else { &["OW", "update"] };
    }
    if has(4, "set") || has(4, "incrby") { all } else { &["RO", "access"] }
}
