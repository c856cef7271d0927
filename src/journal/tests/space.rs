//! What goes from the disk, and when.

use super::*;

#[test]
fn segments_go_when_the_store_has_what_is_in_them() {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, options(Fsync::Always));
    let positions: Vec<Position> =
        (0..100).map(|version| write(&journal, put("key", "value", version))).collect();
    let before = journal.figures();
    assert!(before.segments > 5 && before.unacknowledged == 100);
    // The last first.
    for batch in positions.rchunks(7) {
        journal.acknowledge(batch.iter().rev().copied());
    }
    until("all but the newest are removed", || journal.figures().segments == 1);
    assert_eq!(disk.files().len(), 1);
    assert_eq!(journal.figures().unacknowledged_bytes, 0);
    drop(journal);
    let (journal, replayed, _) = open(&disk, options(Fsync::Always));
    assert!(replayed.is_empty());
    assert_eq!(write(&journal, put("key", "", 1)), Position(101));
}

#[test]
fn a_straggler_is_moved_and_stays_in_its_place() {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, options(Fsync::Always));
    let straggler = write(&journal, put("old", "first", 1));
    let same = write(&journal, put("twice", "older", 2));
    let mut last = None;
    for version in 3..200 {
        last = Some(write(&journal, Effect { supersedes: last, ..put("hot", "value", version) }));
    }
    let newer = write(&journal, put("twice", "newer", 200));
    for _ in 0..100 {
        last = Some(write(&journal, Effect { supersedes: last, ..put("hot", "value", 0) }));
    }
    let bound =
        |figures: Figures| figures.disk_bytes <= 2 * figures.unacknowledged_bytes + 2 * 1024;
    until("compacted", || bound(journal.figures()));
    assert!(journal.figures().compacted >= 2);
    for image in [disk.after_kill(), disk.after_power_loss(|| 1)] {
        let (_, replayed, _) = open(&image, options(Fsync::Always));
        let found: Vec<u64> = replayed.iter().map(|it| it.position.0).collect();
        assert_eq!(found[..3], [straggler.0, same.0, newer.0]);
        assert_eq!(replayed[0].change, put("", "first", 1).change);
        assert_eq!(replayed[0].written, 1000);
    }
    journal.acknowledge([straggler, same]);
    drop(journal);
    let (_, replayed, _) = open(&disk, options(Fsync::Always));
    assert_eq!(values(&replayed)[0], (newer.0, "twice".into(), Some("newer".into())));
}

#[test]
fn what_cannot_be_removed_is_tried_again() {
    let disk = Memory::new();
    let clock = Clock::manual(1000);
    let (journal, _) = open_faulty(&disk, options(Fsync::Always), clock.clone());
    let mut last = None;
    // Somebody else removes it.
    disk.remove(&path(1)).expect("it is there");
    for version in 0..50 {
        last = Some(write(&journal, Effect { supersedes: last, ..put("k", "value", version) }));
    }
    until("it is noticed", || journal.figures().compaction_errors > 0);
    assert!(journal.figures().segments > 3 && !journal.figures().poisoned);
    disk.put(&path(1), b"");
    clock.set(60_000);
    write(&journal, Effect { supersedes: last, ..put("k", "value", 51) });
    until("tried again", || journal.figures().segments < 3);
}

#[test]
fn acknowledgements_far_apart_fit_into_several_records() {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, Options { segment: 1 << 20, ..options(Fsync::Never) });
    let mut reservation = journal.admit(1 << 20).expect("room");
    let append = |version| {
        journal.append(&mut reservation, &put("k", "", version).borrowed(0)).expect("room")
    };
    let positions: Vec<Position> = (0..10_000).map(append).collect();
    drop(reservation);
    journal.acknowledge(positions.iter().copied().step_by(2));
    journal.close().expect("no faults");
    let (_, replayed, _) = open(&disk, options(Fsync::Never));
    assert_eq!(replayed.len(), 5_000);
    assert!(replayed.iter().all(|it| it.position.0.is_multiple_of(2)));
}
