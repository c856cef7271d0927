//! Bytes that aren't what was written.

use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;
use crate::tier::disk::Disk;

/// A disk with a journal of `count` effects, each synced, in one segment or several.
fn written(count: u64, segment: u64) -> Memory {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, Options { segment, ..options(Fsync::Always) });
    for version in 1..=count {
        write(&journal, put("key", "some value", version));
    }
    drop(journal);
    disk
}

fn best_effort() -> Options {
    Options { recover: Recover::BestEffort, ..options(Fsync::Always) }
}

fn refusal(disk: &Memory, options: Options) -> (PathBuf, String) {
    match try_open(disk, options).err() {
        Some(Error::DataDir(path, why)) => (path, why),
        other => panic!("{other:?}"),
    }
}

/// Copies a disk, with one of its files changed.
fn with(disk: &Memory, id: u64, bytes: &[u8]) -> Memory {
    let copy = disk.after_kill();
    copy.put(&path(id), bytes);
    copy
}

#[test]
fn a_record_cut_at_any_byte_is_cut_off() {
    let disk = written(3, 1 << 20);
    let bytes = segment(&disk, 1);
    let record = format::HEAD + 13;
    for cut in 1..=record {
        let torn = with(&disk, 1, &bytes[..bytes.len() - cut]);
        let (journal, replayed, report) = open(&torn, options(Fsync::Always));
        assert_eq!(replayed.len(), 2, "{cut}");
        let torn_bytes = record - cut;
        assert_eq!(report.torn.map_or(0, |it| it.bytes), torn_bytes as u64, "{cut}");
        // What comes next takes its place, and all is well.
        assert_eq!(write(&journal, put("key", "new", 9)), Position(3));
        drop(journal);
        let (_, replayed, report) = open(&torn, options(Fsync::Always));
        assert_eq!((replayed.len(), report.torn), (3, None));
    }
}

#[test]
fn a_last_record_with_a_flipped_bit_is_cut_off() {
    let disk = written(3, 1 << 20);
    let bytes = segment(&disk, 1);
    for bit in (bytes.len() - format::HEAD - 13) * 8..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (_, replayed, report) = open(&with(&disk, 1, &bytes), options(Fsync::Always));
        assert_eq!((replayed.len(), report.torn.is_some()), (2, true), "bit {bit}");
    }
}

#[test]
fn a_flipped_bit_anywhere_else_is_refused_with_its_place() {
    let disk = written(40, 1024);
    let newest = disk.files().len() as u64;
    assert!(newest > 3);
    for id in 1..=newest {
        let bytes = segment(&disk, id);
        let last = if id == newest { bytes.len() - format::HEAD - 13 } else { bytes.len() };
        for at in 0..last {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let damaged = with(&disk, id, &bytes);
            let (file, why) = refusal(&damaged, options(Fsync::Always));
            assert_eq!(file, path(id), "byte {at} of {id}");
            let is_format = (8..10).contains(&at);
            assert!(is_format || why.contains("damaged at byte"), "byte {at} of {id}: {why}");
            if is_format {
                assert_eq!(refusal(&damaged, best_effort()).0, path(id));
                continue;
            }
            // Nothing was changed by that, and who wants to goes on without it.
            assert_eq!(segment(&damaged, id), bytes);
            let (_, replayed, report) = open(&damaged, best_effort());
            assert!(report.damaged > 0 && replayed.len() <= 40, "byte {at} of {id}");
            assert!(replayed.len() >= 28, "byte {at} of {id}: {}", replayed.len());
        }
    }
}

#[test]
fn the_place_of_damage_is_named() {
    let disk = written(3, 1 << 20);
    let mut bytes = segment(&disk, 1);
    // Head, mark, first record, mark, second record.
    let at = format::HEAD * 4 + 13;
    bytes[at + format::HEAD + 5] ^= 1;
    let (_, why) = refusal(&with(&disk, 1, &bytes), options(Fsync::Always));
    assert!(why.contains(&format!("damaged at byte {at}: a checksum")), "{why}");
}

#[test]
fn missing_segments_and_shortened_ones_are_damage() {
    let disk = written(40, 1024);
    for gone in [1, 2] {
        let missing = disk.after_kill();
        missing.remove(&path(gone)).expect("it is there");
        let (file, why) = refusal(&missing, options(Fsync::Always));
        assert!(file == path(gone) && why.contains("missing"), "{why}");
    }
    let missing = disk.after_kill();
    missing.remove(&path(2)).expect("it is there");
    assert!(open(&missing, best_effort()).1.len() > 20);
    // At the end of a record, so that no checksum tells.
    let bytes = segment(&disk, 2);
    let last = memchr::memmem::rfind(&bytes, &format::MARKER).expect("a record");
    let shortened = with(&disk, 2, &bytes[..last]);
    let (file, why) = refusal(&shortened, options(Fsync::Always));
    assert!(file == path(2) && why.contains("another length"), "{why}");
    assert!(open(&shortened, best_effort()).1.len() >= 39);
    // One that isn't the journal's is none of its business.
    disk.put(&Path::new(DIR).join("notes.txt"), b"hello");
    assert_eq!(open(&disk, options(Fsync::Always)).1.len(), 40);
}

#[test]
fn other_formats_are_refused_whatever_is_wanted() {
    let disk = written(1, 1 << 20);
    let mut bytes = segment(&disk, 1);
    bytes[8] = 3;
    for options in [options(Fsync::Always), best_effort()] {
        let (_, why) = refusal(&with(&disk, 1, &bytes), options);
        assert_eq!(why, "format 3 of the journal, this program knows 2");
    }
}

#[test]
fn a_segment_that_was_never_begun_is_begun_again() {
    let disk = written(2, 1 << 20);
    for len in 0..=format::HEAD {
        let cut = with(&disk, 2, &vec![0; len]);
        let (journal, replayed, report) = open(&cut, options(Fsync::Always));
        assert_eq!((replayed.len(), report.torn.is_some()), (2, true));
        write(&journal, put("key", "", 3));
        drop(journal);
        assert_eq!(open(&cut, options(Fsync::Always)).1.len(), 3);
    }
    // With something behind it, it had been.
    let (_, why) = refusal(&with(&disk, 2, &[0; format::HEAD + 1]), options(Fsync::Always));
    assert!(why.contains("doesn't begin as a segment"), "{why}");
}

/// A client can't make a torn end look like damage: it doesn't know the salt.
#[test]
fn a_value_that_looks_like_a_record_is_none() {
    let other = written(3, 1 << 20);
    let disk = Memory::new();
    let (journal, ..) = open(&disk, Options { segment: 1 << 20, ..options(Fsync::Always) });
    for version in [1, 2] {
        let value = segment(&other, 1).into();
        let change = Change::Put(Record { value, version, ..Record::default() });
        write(&journal, Effect { change, ..put("key", "", 0) });
    }
    drop(journal);
    let bytes = segment(&disk, 1);
    let (_, replayed, report) =
        open(&with(&disk, 1, &bytes[..bytes.len() - 1]), options(Fsync::Always));
    assert_eq!((replayed.len(), report.torn.is_some()), (1, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is in the files: no panic, and whoever goes on can work.
    #[test]
    fn any_damage_is_survived(
        changes in prop::collection::vec((0u64..6, any::<usize>(), any::<u8>(), 0u8..5), 1..12),
        strict: bool,
    ) {
        let disk = written(30, 1024);
        for (id, at, byte, how) in changes {
            let Some(mut bytes) = disk.read(&path(id)) else { continue };
            let at = at % (bytes.len() + 1);
            match how {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                2 => bytes.splice(at.min(bytes.len()).., std::iter::repeat_n(byte, 500)).for_each(drop),
                3 => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len()))),
                _ => bytes.iter_mut().skip(at).take(4).for_each(|it| *it ^= byte),
            }
            disk.put(&path(id), &bytes);
        }
        let options = if strict { options(Fsync::Always) } else { best_effort() };
        if let Ok((journal, replay)) = try_open(&disk, options.clone()) {
            let replayed: Vec<Replayed> = replay.map(|it| it.expect("it was checked")).collect();
            prop_assert!(replayed.is_sorted_by_key(|it| it.position));
            let position = write(&journal, put("key", "new", 100));
            prop_assert!(replayed.iter().all(|it| it.position < position));
            drop(journal);
            let (_, again, _) = open(&disk, options);
            prop_assert_eq!(again.len(), replayed.len() + 1);
        }
    }
}

/// An image of a process that was killed with eight effects, of which some are in the log buffer alone.
fn killed() -> Memory {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, options(Fsync::Never));
    for version in 1..=8 {
        append_only(&journal, put("key", "some value", version)).expect("appended");
    }
    disk.after_kill()
}

#[test]
fn a_log_buffer_that_is_gone_is_missed() {
    let disk = killed();
    let path = log_buffer::path_of(Path::new(DIR));
    disk.remove_map(&path);
    let (file, why) = refusal(&disk.after_kill(), options(Fsync::Never));
    assert!(file == path && why.contains("is missing"), "{why}");
    let (_, replayed, report) = open(&disk.after_kill(), best_effort());
    assert_eq!((replayed.len(), report.damaged), (0, 1));
    // After a start of the machine nobody can tell.
    assert_eq!(open(&disk.after_reboot(), options(Fsync::Never)).2.damaged, 0);
}

#[test]
fn of_a_damaged_log_buffer_best_effort_takes_the_beginning() {
    let damaged = |at: usize| {
        let disk = killed();
        let map = disk.map(&log_buffer::path_of(Path::new(DIR)), 0).expect("it is there");
        map.words()[at].fetch_xor(1 << 40, Relaxed);
        disk
    };
    // Each record takes 8 words for its head, 1 for its key and 2 for its value.
    let disk = damaged(8 + 4 * 11 + 9);
    for _ in 0..2 {
        let (_, why) = refusal(&disk, options(Fsync::Never));
        assert!(why.contains("damaged at byte 416: a checksum doesn't fit"), "{why}");
    }
    let (_, replayed, report) = open(&disk, best_effort());
    assert_eq!((replayed.len(), report.damaged), (4, 1));
    // A number that was never given is no reason to go on behind it.
    let disk = damaged(8 + 2);
    let (journal, replayed, _) = open(&disk, best_effort());
    assert_eq!(replayed.len(), 0);
    assert_eq!(write(&journal, put("key", "new", 9)), Position(1));
    drop(journal);
    assert_eq!(open(&disk, options(Fsync::Never)).1.len(), 1);
    // Its beginning.
    let disk = damaged(0);
    let (_, why) = refusal(&disk, options(Fsync::Never));
    assert!(why.contains("it doesn't begin as a log buffer"), "{why}");
    assert_eq!(open(&disk, best_effort()).1.len(), 0);
    assert_eq!(open(&disk, options(Fsync::Never)).2.damaged, 0);
}

#[test]
fn of_a_log_buffer_behind_a_gap_best_effort_takes_all() {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, options(Fsync::Never));
    write(&journal, put("key", "lost", 1));
    until("it is written", || journal.figures().written == 1);
    for version in 2..=4 {
        append_only(&journal, put("key", "kept", version)).expect("appended");
    }
    let disk = disk.after_kill();
    let cut = segment(&disk, 1)[..format::HEAD].to_vec();
    let (_, why) = refusal(&with(&disk, 1, &cut), options(Fsync::Never));
    assert!(why.contains("records are missing"), "{why}");
    let damaged = with(&disk, 1, &cut);
    let (journal, replayed, _) = open(&damaged, best_effort());
    let sequences: Vec<u64> = replayed.iter().map(|it| it.position.0).collect();
    assert_eq!(sequences, [2, 3, 4]);
    drop(journal);
    assert_eq!(open(&damaged, best_effort()).1.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The same of the log buffer.
    #[test]
    fn any_damage_of_the_log_buffer_is_survived(
        changes in prop::collection::vec((0usize..140, any::<u64>(), 0u8..3), 1..4),
        strict: bool,
        boots: bool,
    ) {
        let disk = if boots { killed().after_reboot() } else { killed() };
        let path = log_buffer::path_of(Path::new(DIR));
        {
            let map = disk.map(&path, 0).expect("it is there");
            for (at, word, how) in changes {
                let was = &map.words()[at];
                match how {
                    0 => was.store(word, Relaxed),
                    1 => was.store(word % 200, Relaxed),
                    _ => was.store(was.load(Relaxed) ^ (1 << (word % 64)), Relaxed),
                }
            }
        }
        let options = if strict { options(Fsync::Never) } else { Options { fsync: Fsync::Never, ..best_effort() } };
        if let Ok((journal, replay)) = try_open(&disk, options.clone()) {
            let replayed: Vec<Replayed> = replay.map(|it| it.expect("it was checked")).collect();
            prop_assert!(replayed.len() <= 8);
            prop_assert!(replayed.iter().all(|it| it.change == put("", "some value", it.position.0).change));
            write(&journal, put("key", "new", 100));
            drop(journal);
            prop_assert_eq!(open(&disk, options).1.len(), replayed.len() + 1);
        }
    }
}
