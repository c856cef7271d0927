//! A disk that is really full: a small file system in memory, which only the server under test sees.
//!
//! The server is started in a mount namespace of its own by `unshare`; where that isn't allowed, the test
//! says so and ends.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{Server, eventually};

/// Mounts a file system of this type on a directory and puts the rest of the words in its own place.
const MOUNT: &str = r#"mount -t "$0" -o "$1" none "$2" && shift 2 && exec "$@""#;
const ROOM: usize = 24 << 20;
const FILLER: usize = 18 << 20;
const VALUES: usize = 30_000;

fn unshare(before: &[&str], kind: &str, options: &str, dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("a plain path");
    let words = [&["--mount"], before, &["sh", "-c", MOUNT, kind, options, dir]].concat();
    words.into_iter().map(str::to_owned).collect()
}

/// The words with which `unshare` may mount: as root, or as one in a namespace of users.
fn allowed(kind: &str, options: &str, dir: &Path) -> Option<Vec<String>> {
    let ways = [&[][..], &["--map-root-user"]].map(|way| unshare(way, kind, options, dir));
    let works = |way: &Vec<String>| {
        let tried = Command::new("unshare").args(way).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let found = ways.into_iter().find(works);
    if found.is_none() {
        // A matter of rights, whatever services are required.
        eprintln!("skipped: mounting isn't allowed here");
    }
    found
}

/// A server whose disk tier, of so many bytes, is on a file system of its own, and that as we see it.
fn start(dir: &Path, kind: &str, options: &str, disk_size: &str) -> Option<(Server, PathBuf)> {
    let mounted = dir.join("mounted");
    fs::create_dir_all(&mounted).expect("a directory");
    let before = allowed(kind, options, &mounted)?;
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let l3 = mounted.join("l3");
    let l3 = l3.to_str().expect("a plain path");
    let flags = ["--memory", "4mb", "--disk-size", disk_size, "--disk-path", l3];
    let server = Server::start_through("unshare", &before, dir, &flags);
    let seen = PathBuf::from(format!("/proc/{}/root{}", server.pid(), mounted.display()));
    Some((server, seen))
}

fn value(number: usize, round: usize) -> String {
    format!("{round}:{number}:{}", "v".repeat(400 + number % 100))
}

fn write(connection: &mut redis::Connection, numbers: std::ops::Range<usize>, round: usize) {
    for chunk in numbers.collect::<Vec<_>>().chunks(100) {
        let mut pipe = redis::pipe();
        for number in chunk {
            pipe.set(format!("key:{number}"), value(*number, round)).ignore();
        }
        pipe.query::<()>(connection).expect("service goes on");
    }
}

/// How many keys are there, each with its newest value.
fn count(connection: &mut redis::Connection, round: usize) -> usize {
    let mut found = 0;
    for chunk in (0..VALUES).collect::<Vec<_>>().chunks(100) {
        let keys: Vec<String> = chunk.iter().map(|number| format!("key:{number}")).collect();
        let values: Vec<Option<String>> =
            redis::cmd("MGET").arg(&keys).query(connection).expect("service goes on");
        for (number, seen) in chunk.iter().zip(values) {
            found += usize::from(seen.is_some());
            assert!(seen.is_none_or(|seen| seen == value(*number, round)), "key:{number} is wrong");
        }
    }
    found
}

fn figure(connection: &mut redis::Connection, name: &str) -> u64 {
    let text: String = redis::cmd("INFO").arg("tiers").query(connection).expect("a text");
    let line = text.lines().find_map(|line| line.strip_prefix("l3:")).expect("the tier");
    let found = line.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    found.expect("the field").parse().expect("a number")
}

/// The disk tier is larger than its file system: what that has room for is used, again and again.
#[test]
fn a_file_system_smaller_than_the_log_serves_for_what_it_holds() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some((mut server, _)) = start(dir.path(), "tmpfs", "size=8m", "32mb") else { return };
    let connection = &mut server.connect();
    for round in 1..=4 {
        write(connection, 0..VALUES, round);
        let found = count(connection, round);
        println!("{found} of {VALUES} keys, {} errors", figure(connection, "write_errors"));
        assert!(found > VALUES / 10, "{found}");
    }
    assert!(figure(connection, "write_errors") > 0);
    assert_eq!(figure(connection, "bad_records"), 0);
    assert_eq!(server.stop(), Some(0));
}

/// Others fill the file system: service goes on with what there is, the errors are counted, and when room
/// appears the disk is used again.
#[test]
fn a_full_file_system_is_done_without_until_it_has_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let size = format!("size={ROOM}");
    let Some((mut server, mounted)) = start(dir.path(), "tmpfs", &size, "20mb") else { return };
    let connection = &mut server.connect();
    println!("direct I/O: {}", has_direct_io(&mounted));
    // The log took its room at once; it is given back, so that somebody else can have it.
    let log = mounted.join("l3/log");
    let length = fs::metadata(&log).expect("the log").len();
    fs::File::options().write(true).open(&log).expect("the log").set_len(0).expect("cut");
    fs::File::options().write(true).open(&log).expect("the log").set_len(length).expect("sparse");
    let filler = mounted.join("filler");
    fs::write(&filler, vec![1; FILLER]).expect("there is room for that");

    write(connection, 0..VALUES, 1);
    eventually("errors are counted", || figure(connection, "write_errors") > 0);
    let found = count(connection, 1);
    println!("full: {found} of {VALUES} keys, {} errors", figure(connection, "write_errors"));
    assert!((VALUES / 4..VALUES * 3 / 4).contains(&found), "{found}");

    fs::remove_file(&filler).expect("it was there");
    let mut round = 1;
    eventually("the disk is used again", || {
        round += 1;
        let before = figure(connection, "write_errors");
        write(connection, 0..VALUES, round);
        figure(connection, "write_errors") == before
    });
    let found = count(connection, round);
    println!("room: {found} of {VALUES} keys after {round} rounds");
    assert!(found > VALUES * 9 / 10, "{found}");
    assert_eq!(figure(connection, "bad_records"), 0);
    assert_eq!(server.stop(), Some(0));
}

/// Whether a file system has direct I/O.
fn has_direct_io(dir: &Path) -> bool {
    let file = dir.join("direct");
    let disk: &dyn larder::tier::disk::Disk = &larder::tier::disk::real::Real;
    let is_direct = disk.open(&file, true).expect("opens either way").is_direct();
    fs::remove_file(&file).expect("it was made");
    is_direct
}

/// A file system without direct I/O: the log does without.
#[test]
fn a_file_system_without_direct_io_is_good_enough() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some((mut server, mounted)) = start(dir.path(), "ramfs", "mode=700", "32mb") else {
        return;
    };
    assert!(!has_direct_io(&mounted), "ramfs has none");
    let connection = &mut server.connect();
    write(connection, 0..VALUES, 1);
    assert_eq!(count(connection, 1), VALUES);
    assert_eq!(figure(connection, "write_errors"), 0);
    assert!(figure(connection, "hits") > VALUES as u64 / 2);
    assert_eq!(server.stop(), Some(0));
}
