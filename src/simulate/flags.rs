//! The command line of `larder simulate`.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgAction, ArgMatches, Command, builder::PossibleValuesParser, error::ErrorKind,
    value_parser,
};

use super::trace::LONGEST_VALUE;
use crate::{
    config::{Exit, Kind, MaxmemoryPolicy, Settings, Value},
    tier::{disk::PAGE, eviction::Eviction, log},
};

/// Memory that is simulated, unless told otherwise.
const MEMORY: u64 = 64 << 20;
/// The longest segment: places in a segment's table are that short.
const SEGMENT_MOST: u64 = 16 << 20;

/// What is to be simulated.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The trace; `-` is the standard input.
    pub trace: PathBuf,
    /// Bytes of memory, if they were given.
    pub memory: Option<u64>,
    /// Bytes of the disk; 0: none.
    pub disk: u64,
    /// Bytes of L1 at most.
    pub l1: u64,
    /// Bytes of the values of lines without a size.
    pub value_size: usize,
    /// Which keys make room.
    pub eviction: Eviction,
    /// Requests after which it ends.
    pub limit: u64,
    /// Where the disk's files are for the time of the simulation; `None`: where temporary files are.
    pub dir: Option<PathBuf>,
    /// Bytes of a segment of the disk; `None`: by its size.
    pub segment: Option<usize>,
    /// Whether many sizes of memory are simulated, and where the chart goes.
    pub sweep: Option<PathBuf>,
}

impl Orders {
    /// Bytes of memory.
    pub fn memory(&self) -> u64 {
        self.memory.unwrap_or(MEMORY)
    }

    /// A server's settings for such sizes.
    pub fn settings(&self, memory: u64, disk: u64) -> Settings {
        Settings { memory, disk_size: disk, l1: self.l1, ..Settings::default() }
    }
}

/// Reads the arguments, the program's name and `simulate` first.
pub fn read<I>(args: I) -> Result<Orders, Exit>
where
    I: IntoIterator<Item: Into<OsString> + Clone>,
{
    let args = args.into_iter().skip(1);
    let matches = command().try_get_matches_from(args).map_err(|error| exit(&error))?;
    let orders = orders(&matches)?;
    if orders.disk != 0 && orders.disk < log::LEAST {
        return Err("--disk: less than 512kb, the smallest there is; 0 is none".to_owned().into());
    }
    if orders.segment.is_some_and(|segment| segment as u64 > orders.disk / 4) {
        return Err("--segment: a disk has at least four".to_owned().into());
    }
    if orders.sweep.is_some() && orders.disk != 0 && orders.memory.is_none() {
        return Err("--sweep: --disk needs --memory, whose multiple it is".to_owned().into());
    }
    Ok(orders)
}

fn orders(matches: &ArgMatches) -> Result<Orders, Exit> {
    let bytes = |name: &str| matches.get_one::<u64>(name).copied();
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    let name = matches.get_one::<String>("eviction").map_or("", String::as_str);
    Ok(Orders {
        trace: path("TRACE").unwrap_or_default(),
        memory: bytes("memory"),
        disk: bytes("disk").unwrap_or(0),
        l1: bytes("l1").unwrap_or(Settings::default().l1),
        value_size: bytes("value-size").unwrap_or(0) as usize,
        eviction: Eviction::from_name(name).unwrap_or_default(),
        limit: bytes("limit").unwrap_or(u64::MAX),
        dir: path("dir"),
        segment: bytes("segment").map(|bytes| bytes as usize),
        sweep: matches.get_flag("sweep").then(|| path("svg").unwrap_or_default()),
    })
}

fn exit(error: &clap::Error) -> Exit {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp => Exit::Help(text),
        _ => text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned().into(),
    }
}

/// A size as settings have it, within bounds.
fn size(low: u64, high: u64) -> impl Fn(&str) -> Result<u64, String> + Clone {
    let kind = Kind::Bytes(low, high);
    move |text| match kind.parse(text) {
        Ok(Value::Bytes(bytes)) => Ok(bytes),
        Ok(_) => Err("not a size".to_owned()),
        Err(refusal) => Err(kind.explain(&refusal)),
    }
}

fn segment(text: &str) -> Result<u64, String> {
    let bytes = size(64 << 10, SEGMENT_MOST)(text)?;
    if bytes.is_multiple_of(PAGE as u64) { Ok(bytes) } else { Err("no multiple of 4kb".to_owned()) }
}

fn command() -> Command {
    let flag = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("larder simulate")
        .override_usage("larder simulate TRACE [--flag value ...]")
        .about(
            "Replays a trace of requests through the server's own tiers, one worker's, and says how \
             many each of them would have answered.",
        )
        .after_help(
            "A trace has a request a line: a key and, if it is known, the bytes of its value, with a \
             space between them. It may be packed by gzip or xz. Each line is a GET and, where that \
             misses, a SET. The same trace gives the same figures each time.\n\n\
             Sizes are bytes or have a unit, as the server's settings have (64mb, 1gb). The exit code is 2 \
             if the arguments or the trace are wrong, 3 if the disk's directory can't be used, 1 for \
             anything else.",
        )
        .arg(
            Arg::new("TRACE")
                .help("The trace; - is the standard input")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            flag("memory", "SIZE", "Memory, for all that a server keeps there [default: 64mb]")
                .value_parser(size(1, i64::MAX as u64)),
        )
        .arg(
            flag("disk", "SIZE", "The third tier on disk; 0: none")
                .default_value("0")
                .value_parser(size(0, log::MOST)),
        )
        .arg(
            flag("l1", "SIZE", "The worker's own cache, at most a fiftieth of memory; 0: none")
                .default_value("64mb")
                .value_parser(size(0, i64::MAX as u64)),
        )
        .arg(
            flag("value-size", "SIZE", "The value of a line that doesn't say how long it is")
                .default_value("1kb")
                .value_parser(size(0, LONGEST_VALUE)),
        )
        .arg(
            flag("eviction", "POLICY", "Which keys make room when memory is full")
                .visible_alias("maxmemory-policy")
                .ignore_case(true)
                .default_value(Eviction::default().name())
                .value_parser(PossibleValuesParser::new(MaxmemoryPolicy::NAMES)),
        )
        .arg(
            flag("limit", "N", "Ends after so many requests").value_parser(value_parser!(u64)),
        )
        .arg(
            flag("dir", "DIR", "Where the disk's files are meanwhile [default: as $TMPDIR says]")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            flag("segment", "SIZE", "Segments of the disk [default: a 64th of it, at most 16mb]")
                .value_parser(segment),
        )
        .arg(
            flag("sweep", "", "Replays the trace with eight sizes of memory, and draws a chart: from an \
                 eighth of --memory to 16 times as much, or, without it, from a hundredth of \
                 what all keys would take to all of it. The disk keeps its proportion to memory")
                .action(ArgAction::SetTrue),
        )
        .arg(
            flag("svg", "FILE", "Where the chart of --sweep goes")
                .default_value("miss-ratio.svg")
                .value_parser(value_parser!(PathBuf)),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(args: &str) -> Result<Orders, Exit> {
        read(["larder", "simulate"].into_iter().chain(args.split_whitespace()))
    }

    fn error(args: &str) -> String {
        match from(args) {
            Err(Exit::Error(error)) => {
                assert_eq!(error.exit_code(), 2);
                error.to_string()
            }
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn clap_has_nothing_against_it() {
        command().debug_assert();
    }

    #[test]
    fn orders_have_defaults() {
        let orders = from("t").expect("orders");
        assert_eq!((orders.memory(), orders.disk, orders.value_size), (64 << 20, 0, 1 << 10));
        assert_eq!((orders.eviction, orders.limit), (Eviction::AllkeysS3fifo, u64::MAX));
        assert!(orders.sweep.is_none() && orders.dir.is_none());
        let orders = from("- --memory 1gb --disk 10gb --eviction ALLKEYS-LRU --sweep --svg x.svg");
        let orders = orders.expect("orders");
        assert_eq!((orders.memory, orders.disk), (Some(1 << 30), 10 << 30));
        assert_eq!(orders.eviction, Eviction::AllkeysLru);
        assert_eq!(orders.sweep, Some("x.svg".into()));
    }

    #[test]
    fn mistakes_are_explained() {
        assert!(error("").contains("<TRACE>"));
        assert!(error("t --memory 0").contains("'--memory <SIZE>'"));
        assert!(error("t --memory much").contains("invalid value 'much'"));
        assert!(error("t --disk 1kb").starts_with("--disk: less than 512kb"));
        assert!(error("t --disk 1mb --segment 1mb").starts_with("--segment"));
        assert!(error("t --disk 1gb --segment 70000").contains("no multiple of 4kb"));
        assert!(error("t --disk 1gb --sweep").starts_with("--sweep"));
        assert!(error("t --eviction lru").contains("allkeys-lru"));
        assert!(error("t --limit -1").contains("--limit") || error("t --limit -1").contains("-1"));
    }

    #[test]
    fn the_help_names_every_flag() {
        let Err(Exit::Help(help)) = from("--help") else { panic!("no help") };
        for flag in ["memory", "disk", "l1", "value-size", "eviction", "limit", "dir", "svg"] {
            assert!(help.contains(&format!("--{flag}")), "{flag}");
        }
        assert!(help.contains("larder simulate"), "{help}");
    }
}
