//! `larder simulate` as its users run it: the figures, the chart, and what it says to mistakes.
#![cfg(feature = "simulate")]

use std::{
    fmt::Write as _,
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use flate2::{Compression, write::GzEncoder};
use larder::simulate::report::{Place, Report};

#[path = "../examples/three_tiers.rs"]
mod three_tiers;

const REQUESTS: u64 = 40_000;

/// A trace of keys of which the small numbers are hot, each with a size.
fn trace() -> String {
    let (mut text, mut random) = (String::new(), 88_172_645_463_325_252u64);
    for _ in 0..REQUESTS {
        random = larder::tier::shelf::next_random(random);
        let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
        let number = 12_000f64.powf(uniform) as u64;
        writeln!(text, "key:{number} {}", number * 31 % 700).expect("writes");
    }
    text
}

fn larder(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.arg("simulate").args(args).current_dir(dir);
    command
}

fn run(dir: &Path, args: &[&str]) -> String {
    let output = larder(dir, args).output().expect("larder starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && errors.is_empty(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The first number of the line that begins so.
fn figure(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    let word = line.split_whitespace().nth(1).expect("a number").replace(',', "");
    word.parse().unwrap_or_else(|_| panic!("no number in {line}"))
}

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("plain"), trace()).expect("written");
    dir
}

#[test]
fn the_figures_add_up_and_a_disk_makes_misses_fewer() {
    let dir = sample();
    let alone = run(dir.path(), &["plain", "--memory", "1mb"]);
    let both = run(dir.path(), &["plain", "--memory", "1mb", "--disk", "3mb"]);
    for text in [&alone, &both] {
        let parts = ["L1", "L2", "L3", "miss"].map(|name| figure(text, name));
        assert_eq!(parts.iter().sum::<u64>(), REQUESTS, "{text}");
        assert_eq!(figure(text, "all"), REQUESTS, "{text}");
        assert!(parts[0] > 0 && parts[1] > 0 && parts[3] > 0, "{text}");
    }
    assert_eq!(figure(&alone, "L3"), 0);
    assert!(figure(&both, "L3") > 1_000, "{both}");
    assert!(figure(&both, "miss") < figure(&alone, "miss"), "{alone}{both}");
    assert!(figure(&both, "promotions") > 0 && figure(&both, "demotions") > 0, "{both}");
    assert!(both.contains("write amplification 1.") && both.contains("reads per hit"), "{both}");
}

#[test]
fn the_same_trace_gives_the_same_figures_however_it_comes() {
    let dir = sample();
    let text = fs::read(dir.path().join("plain")).expect("written");
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&text).expect("packs");
    // Its name says nothing.
    fs::write(dir.path().join("packed.txt"), encoder.finish().expect("packs")).expect("written");
    let args = ["--memory", "1mb", "--disk", "2mb"];
    let figures = |text: String| text.split_once("\n\n").expect("a table").1.to_owned();
    let plain = figures(run(dir.path(), &[&["plain"], &args[..]].concat()));
    assert_eq!(figures(run(dir.path(), &[&["plain"], &args[..]].concat())), plain);
    assert_eq!(figures(run(dir.path(), &[&["packed.txt"], &args[..]].concat())), plain);
    let mut piped = larder(dir.path(), &[&["-"], &args[..]].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("larder starts");
    piped.stdin.take().expect("piped").write_all(&text).expect("it is read");
    let output = piped.wait_with_output().expect("it ends");
    assert_eq!(figures(String::from_utf8(output.stdout).expect("text")), plain);
    let left = fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(left, 2, "nothing is left behind");
}

#[test]
fn a_simulation_that_is_killed_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let below = dir.path().join("below");
    fs::create_dir(&below).expect("made");
    let args = ["-", "--memory", "1mb", "--disk", "2mb", "--dir", "below"];
    let mut command = larder(dir.path(), &args);
    let mut killed = command.stdin(Stdio::piped()).spawn().expect("larder starts");
    // More than a pipe holds: it reads, so its files are open.
    let written = killed.stdin.as_mut().expect("piped").write_all(trace().as_bytes());
    written.expect("it is read");
    killed.kill().expect("it runs");
    killed.wait().expect("it ends");
    assert_eq!(fs::read_dir(&below).expect("a directory").count(), 0);
}

#[test]
fn a_limit_ends_it_and_policies_differ() {
    let dir = sample();
    let text = run(dir.path(), &["plain", "--memory", "1mb", "--limit", "1000"]);
    assert_eq!(figure(&text, "all"), 1_000);
    let miss = |policy: &str| {
        let args = ["plain", "--memory", "500kb", "--eviction", policy, "--l1", "0"];
        let text = run(dir.path(), &args);
        assert_eq!(figure(&text, "L1"), 0);
        figure(&text, "miss")
    };
    assert!(miss("allkeys-s3fifo") < miss("allkeys-random"));
}

#[test]
fn a_sweep_draws_a_chart() {
    let dir = sample();
    let text = run(dir.path(), &["plain", "--sweep", "--svg", "chart.svg"]);
    let misses: Vec<f64> = text
        .lines()
        .filter(|line| line.contains('%'))
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let at = words.iter().rposition(|word| *word == "%").expect("a share");
            words[at - 1].parse().expect("a share")
        })
        .collect();
    assert_eq!(misses.len(), 8, "{text}");
    assert!(misses.is_sorted_by(|a, b| a >= b), "{text}");
    let svg = fs::read_to_string(dir.path().join("chart.svg")).expect("there is a chart");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("plain, allkeys-s3fifo") && svg.matches("<circle").count() >= 8);
    run(dir.path(), &["plain", "--sweep", "--memory", "4mb", "--disk", "16mb", "--limit", "5000"]);
    assert!(dir.path().join("miss-ratio.svg").is_file());
}

#[test]
fn mistakes_are_told_with_their_line_and_the_exit_code() {
    let dir = sample();
    fs::write(dir.path().join("bad"), "a 1\nb 2\nc x\n").expect("written");
    fs::write(dir.path().join("cut.gz"), [0x1f, 0x8b, 8, 0, 0]).expect("written");
    let fails = |args: &[&str], code: i32, text: &str| {
        let Output { status, stderr, .. } = larder(dir.path(), args).output().expect("it starts");
        let errors = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(code), "{args:?}: {errors}");
        assert!(errors.starts_with("larder: ") && errors.contains(text), "{args:?}: {errors}");
    };
    fails(&["bad"], 2, "bad:3: the second word is no size in bytes");
    fails(&["bad", "--sweep"], 2, "bad:3: ");
    fails(&["cut.gz"], 2, "cut.gz:1: ");
    fails(&["missing"], 2, "missing: No such file");
    fails(&["."], 2, ".: ");
    fails(&[], 2, "<TRACE>");
    fails(&["plain", "--memory", "much"], 2, "--memory");
    fails(&["plain", "--memory", "1mb", "--disk", "1gb"], 2, "needs");
    fails(&["plain", "--disk", "1mb", "--dir", "no/such"], 3, "no/such");
    fails(&["-", "--sweep"], 2, "it has to be a file");
    fails(&["plain", "--sweep", "--svg", "no/such.svg", "--limit", "9"], 2, "no/such.svg");
}

#[test]
fn help_is_there_and_a_file_of_the_name_is_a_configuration() {
    let dir = sample();
    assert!(run(dir.path(), &["--help"]).contains("Usage: larder simulate"));
    fs::write(dir.path().join("simulate"), "port = 'x'\n").expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_larder"))
        .arg("./simulate")
        .current_dir(dir.path())
        .output()
        .expect("larder starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("./simulate:1:8: `port`"));
}

/// The brief's own example: L1 of 3 entries, L2 of 10, L3 of 50, eight requests; see the example
/// `three_tiers`, which prints it.
#[test]
fn three_tiers_can_be_followed_by_hand() {
    let mut levels = three_tiers::Levels::new().expect("empty tiers");
    let hits = |report: &Report| report.tiers.map(|tier| tier.hits);
    // 1, 2 and 3 are loaded; 1 is in L1; 4 and 5 push 3 and 2 out of it; 1 is still there; 2 is in L2.
    let (db, l1, l2, l3) = (Place::Nowhere, Place::Local, Place::Memory, Place::Disk);
    let places = levels.ask(three_tiers::REQUESTS).expect("answers");
    assert_eq!(places, [db, db, db, l1, db, db, l1, l2]);
    assert_eq!(hits(&levels.report().expect("figures")), [2, 1, 0, 5]);
    // Twelve others leave L2 no room for the five, which L3 has now; a hit there brings them up again.
    levels.ask(11..23).expect("answers");
    assert_eq!(
        levels.ask(three_tiers::REQUESTS).expect("answers"),
        [l3, l3, l3, l1, l3, l3, l1, l2]
    );
    let report = levels.report().expect("figures");
    assert_eq!(hits(&report), [4, 2, 5, 17]);
    assert_eq!(report.tiers.map(|tier| tier.entries)[..2], [3, 10]);

    // Fifty that leave L2 are all in L3; of many more it keeps as many as it has room for.
    let mut levels = three_tiers::Levels::new().expect("empty tiers");
    levels.ask(0..60).expect("answers");
    let places = levels.ask(0..60).expect("answers");
    assert!(!places.contains(&db), "{places:?}");
    levels.ask(100..1_000).expect("answers");
    let entries = levels.report().expect("figures").tiers[l3 as usize].entries;
    assert!((44..=60).contains(&entries), "{entries}");
}
