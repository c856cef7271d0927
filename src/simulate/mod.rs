//! `larder simulate`: what the tiers would do with a trace of requests.
//!
//! [`trace`] reads the requests, [`replay`] sends them through a cache's own tiers, [`report`] says what
//! came of it; a sweep does so for many sizes of memory and draws a [`chart`].

pub mod chart;
pub mod flags;
pub mod replay;
pub mod report;
pub mod trace;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    io::{self, Write},
    path::Path,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    config::Exit,
    error::Error,
    tier::{
        Weight,
        entry::{Meta, entry_size},
        log,
    },
};
use flags::Orders;
use replay::{Replay, Setup, Sizes};
use report::{Place, Report, percent, size};
use trace::{Request, Trace};

/// The word that asks for a simulation.
pub const WORD: &str = "simulate";
/// Sizes of memory that a sweep tries.
const POINTS: u32 = 8;
/// Of them those that are below `--memory`, each half of the next.
const POINTS_BELOW: u32 = 3;
/// A sweep without `--memory` begins with what all keys take, divided by this.
const SMALLEST: f64 = 100.0;
/// Requests after which the bar moves.
const BAR_STEP: u64 = 1 << 13;

/// Carries out `larder simulate ...`, the program's name first.
pub fn run<I>(args: I) -> Result<(), Exit>
where
    I: IntoIterator<Item: Into<OsString> + Clone>,
{
    let orders = flags::read(args)?;
    let done = match &orders.sweep {
        Some(svg) => sweep(&orders, svg),
        None => once(&orders),
    };
    done.map_err(Exit::Error)
}

fn once(orders: &Orders) -> Result<(), Error> {
    let (memory, disk) = (orders.memory(), orders.disk);
    let report = replay(orders, memory, disk, "")?;
    let disk_text =
        if disk == 0 { "no disk".to_owned() } else { format!("{} of disk", size(disk)) };
    let head = format!(
        "{}: {} of memory, {disk_text}, {}\n\n",
        orders.trace.display(),
        size(memory),
        orders.eviction.name()
    );
    print(&(head + &report.text(disk != 0)))
}

/// One replay of the trace with these sizes.
fn replay(orders: &Orders, memory: u64, disk: u64, label: &str) -> Result<Report, Error> {
    let mut trace = Trace::open(&orders.trace, orders.value_size)?;
    let settings = orders.settings(memory, disk);
    let dir = directory(orders)?;
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let setup = Setup {
        sizes: Sizes { local: bytes(settings.l1_limit()), memory: bytes(memory), disk },
        weight: Weight::Bytes,
        eviction: orders.eviction,
        queue: settings.disk_queue(),
        segment: orders.segment,
        dir: dir.path().to_owned(),
    };
    let mut replay = Replay::new(&setup)?;
    // The log's files are open, and need no names: so nothing is left behind, whatever ends us. (A file
    // system that can't remove open files is tidied at the end.)
    let _ = fs::remove_dir_all(dir.path());
    if let Some(text) = replay.memory().log().and_then(|log| log.objection(memory)) {
        return Err(Error::Config(text));
    }
    for_each(orders, &mut trace, label, |request| {
        replay.request(request.key, request.size).map(drop)
    })?;
    replay.report()
}

/// A directory of our own, which goes when it is dropped.
fn directory(orders: &Orders) -> Result<tempfile::TempDir, Error> {
    let parent = orders.dir.clone().unwrap_or_else(std::env::temp_dir);
    let explain = |why: io::Error| Error::DataDir(parent.clone(), why.to_string());
    tempfile::Builder::new().prefix("larder-simulate-").tempdir_in(&parent).map_err(explain)
}

/// Hands the requests of a trace on, up to the limit, and moves a bar along.
fn for_each(
    orders: &Orders,
    trace: &mut Trace,
    label: &str,
    mut run: impl FnMut(Request<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let bar = bar(trace.progress().1, label);
    let mut count = 0u64;
    while count < orders.limit
        && let Some(request) = trace.request()?
    {
        run(request)?;
        count += 1;
        if count.is_multiple_of(BAR_STEP) {
            bar.set_position(trace.progress().0);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// A bar on the standard error, if that is a terminal.
fn bar(len: Option<u64>, label: &str) -> ProgressBar {
    let template = match len {
        Some(_) => "{msg} {wide_bar} {percent} %, {eta} left",
        None => "{msg} {spinner} {bytes} read",
    };
    let bar = len.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = ProgressStyle::with_template(template);
    style
        .map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
        .with_message(label.to_owned())
}

/// Replays the trace with many sizes of memory.
fn sweep(orders: &Orders, svg: &Path) -> Result<(), Error> {
    if !fs::metadata(&orders.trace).is_ok_and(|data| data.is_file() || data.is_dir()) {
        let name = orders.trace.display();
        let text = format!("{name}: --sweep reads the trace several times: it has to be a file");
        return Err(Error::Config(text));
    }
    let sizes = sizes(orders)?;
    print(&format!(
        "{}: {}\n\n{:>12}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
        orders.trace.display(),
        orders.eviction.name(),
        "memory",
        "disk",
        "L1",
        "L2",
        "L3",
        "miss",
        "written"
    ))?;
    let mut points = Vec::new();
    for (number, (memory, disk)) in sizes.iter().copied().enumerate() {
        let label = format!("{} of {}: {}", number + 1, sizes.len(), size(memory));
        print(&format!("{:>12}{:>12}", size(memory), size(disk)))?;
        match replay(orders, memory, disk, &label) {
            Ok(report) => {
                print(&row(&report))?;
                let below = report.share(Place::Disk) + report.miss_ratio();
                points.push((memory, report.miss_ratio(), below));
            }
            // The log's buffers would take most of so little memory: a server doesn't start either.
            Err(Error::Config(text))
                if points.is_empty() && disk != 0 && number + 1 < sizes.len() =>
            {
                print(&format!("  {text}\n"))?;
            }
            Err(error) => return Err(error),
        }
    }
    let name = orders.trace.file_name().unwrap_or_default().to_string_lossy();
    let title = format!("{}, {}", name.escape_debug(), orders.eviction.name());
    let chart = chart::draw(&title, &points, orders.disk != 0)
        .map_err(|why| Error::Config(format!("--sweep: {why}")))?;
    let explain = |why: io::Error| Error::Config(format!("--svg: {}: {why}", svg.display()));
    fs::write(svg, chart).map_err(explain)?;
    print(&format!("\nthe chart is in {}\n", svg.display()))
}

/// The end of a line of a sweep's table.
fn row(report: &Report) -> String {
    let shares = [Place::Local, Place::Memory, Place::Disk, Place::Nowhere].map(|place| {
        let share = percent(report.share(place));
        format!("{share:>10}")
    });
    let written = report.flow.write_amplification();
    let written = written.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
    format!("{}{written:>10}\n", shares.concat())
}

/// The sizes of memory and disk that a sweep tries.
fn sizes(orders: &Orders) -> Result<Vec<(u64, u64)>, Error> {
    let steps = 0..POINTS;
    let Some(memory) = orders.memory else {
        let all = all_bytes(orders)? as f64;
        let share = |step: u32| SMALLEST.powf(f64::from(step) / f64::from(POINTS - 1) - 1.0);
        return Ok(steps.map(|step| (((all * share(step)) as u64).max(1), 0)).collect());
    };
    let scaled = |bytes: u64, step: u32| (u128::from(bytes) << step >> POINTS_BELOW) as u64;
    let disk = |step| match orders.disk {
        0 => 0,
        disk => scaled(disk, step).clamp(log::LEAST, log::MOST),
    };
    Ok(steps.map(|step| (scaled(memory, step).max(1), disk(step))).collect())
}

/// Bytes of memory that the entries of all keys would take, each as long as it was the last time.
fn all_bytes(orders: &Orders) -> Result<u64, Error> {
    let mut trace = Trace::open(&orders.trace, orders.value_size)?;
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    let mut sizes: HashMap<u64, u32> = HashMap::new();
    for_each(orders, &mut trace, "all keys", |Request { key, size }| {
        let bytes = entry_size(key.len(), size, &Meta::default());
        sizes.insert(hasher.hash_one(key), u32::try_from(bytes).unwrap_or(u32::MAX));
        Ok(())
    })?;
    Ok(sizes.values().map(|bytes| u64::from(*bytes)).sum())
}

/// Prints to the standard output; whoever reads it may go away.
fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => Err(why.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_keeps_proportions() {
        let read = |args: &str| {
            flags::read(["larder", WORD].into_iter().chain(args.split(' '))).expect("orders")
        };
        let around =
            sizes(&read("t --memory 64mb --disk 640mb --sweep")).expect("no trace is read");
        assert_eq!(around.len(), 8);
        assert_eq!(around[0], (8 << 20, 80 << 20));
        assert_eq!(around[3], (64 << 20, 640 << 20));
        assert_eq!(around[7], (1 << 30, 10 << 30));
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for number in 0..1_000 {
            writeln!(file, "key:{number:04} 1000").expect("written");
            writeln!(file, "key:{number:04} 1000").expect("written");
        }
        let path = file.path().to_str().expect("a plain path");
        let all = sizes(&read(&format!("{path} --sweep"))).expect("a trace");
        assert!((1_024_000..1_100_000).contains(&all[7].0), "{all:?}");
        assert!(all[0].0.abs_diff(all[7].0 / 100) < 2 && all.iter().all(|(_, disk)| *disk == 0));
        assert!(all.is_sorted());
    }
}
