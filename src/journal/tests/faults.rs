//! Disks that fail.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

/// After a failure nothing is acknowledged, and nothing is tried again.
fn is_poisoned(journal: &Journal, faults: &Faults, position: Position) {
    let why = wait(journal.synced(position)).unwrap_err();
    assert!(matches!(why, JournalError::Poisoned(_)), "{why:?}");
    assert_eq!(why.client_error().code(), "JOURNALERR");
    // The disk has recovered, the journal hasn't.
    faults.fail_syncs.store(0, Relaxed);
    faults.fail_writes.store(0, Relaxed);
    faults.full.store(0, Relaxed);
    let (syncs, writes) = (faults.syncs(), faults.writes());
    for _ in 0..3 {
        assert_eq!(append(journal, put("k", "", 9)), Err(why.clone()));
        assert_eq!(wait(journal.reserve(1, LATE)).unwrap_err(), why);
        assert_eq!(wait(journal.synced(position)), Err(why.clone()));
        assert_eq!(wait(journal.covered(u64::MAX)), Err(why.clone()));
        journal.cover(1 << 40);
        journal.acknowledge([Position(1)]);
    }
    assert_eq!(journal.failed(), Some(why.clone()));
    assert!(journal.figures().poisoned && journal.figures().write_errors == 1);
    assert_eq!(journal.close(), Err(why));
    assert_eq!((faults.syncs(), faults.writes()), (syncs, writes));
}

#[test]
fn a_sync_that_fails_is_never_tried_again() {
    let disk = Memory::new();
    let (journal, faults) = open_faulty(&disk, options(Fsync::Always), Clock::default());
    let durable = write(&journal, put("k", "durable", 1));
    faults.fail_syncs.store(1, Relaxed);
    let lost = append(&journal, put("k", "lost", 2)).expect("appended");
    is_poisoned(&journal, &faults, lost);
    assert_eq!(wait(journal.synced(durable)), Ok(()));
    drop(journal);
    let (_, replayed, _) = open(&disk.after_power_loss(|| 0), options(Fsync::Always));
    assert_eq!(values(&replayed)[0], (1, "k".into(), Some("durable".into())));
}

#[test]
fn a_sync_at_intervals_that_fails_poisons_too() {
    let disk = Memory::new();
    let clock = Clock::manual(1000);
    let interval = Fsync::Interval(Duration::from_millis(10));
    let (journal, faults) = open_faulty(&disk, options(interval), clock.clone());
    write(&journal, put("k", "", 1));
    faults.fail_syncs.store(1, Relaxed);
    clock.set(2000);
    until("it has failed", || journal.failed().is_some());
    is_poisoned(&journal, &faults, Position(2));
}

#[test]
fn a_write_that_fails_poisons() {
    for full in [false, true] {
        let disk = Memory::new();
        let (journal, faults) = open_faulty(&disk, options(Fsync::Never), Clock::default());
        write(&journal, put("k", "written", 1));
        until("it is written", || journal.figures().written == 1);
        let fault = if full { &faults.full } else { &faults.fail_writes };
        fault.store(1, Relaxed);
        // Nobody writes it yet.
        let kept = append_only(&journal, put("k", "kept", 2)).expect("appended");
        assert!(journal.is_synced(kept));
        let long = "v".repeat(5000);
        let lost = append(&journal, put("k", &long, 3)).expect("appended");
        is_poisoned(&journal, &faults, lost);
        assert_eq!(wait(journal.synced(kept)), Ok(()));
        drop(journal);
        // What was acknowledged is in the log buffer; what had no room there wasn't.
        let (_, replayed, report) = open(&disk, options(Fsync::Never));
        let expected =
            [(1, "k".into(), Some("written".into())), (2, "k".into(), Some("kept".into()))];
        assert_eq!(values(&replayed), expected);
        assert_eq!(report.torn.is_some(), !full);
    }
}

#[test]
fn all_who_wait_hear_of_the_failure() {
    let disk = Memory::new();
    let limit = 3 * Journal::cost(1, 0);
    let options = Options { limit, ..options(Fsync::Always) };
    let (journal, faults) = open_faulty(&disk, options, Clock::default());
    let before = faults.syncs();
    faults.hold_syncs(true);
    faults.fail_syncs.store(1, Relaxed);
    let first = append(&journal, put("a", "", 1)).expect("appended");
    faults.await_syncs(before + 1);
    let second = append(&journal, put("b", "", 1)).expect("appended");
    wait(async {
        let (one, two) = (journal.synced(first), journal.synced(second));
        let (room, covered) = (journal.reserve(limit, LATE), journal.covered(1 << 50));
        tokio::pin!(one, two, room, covered);
        assert!(futures_util::poll!(&mut one).is_pending());
        assert!(futures_util::poll!(&mut two).is_pending());
        assert!(futures_util::poll!(&mut room).is_pending());
        assert!(futures_util::poll!(&mut covered).is_pending());
        faults.hold_syncs(false);
        let is_poisoned = |why: &JournalError| matches!(why, JournalError::Poisoned(_));
        assert!(is_poisoned(&one.await.unwrap_err()) && is_poisoned(&two.await.unwrap_err()));
        assert!(is_poisoned(&room.await.unwrap_err()) && is_poisoned(&covered.await.unwrap_err()));
    });
}

#[test]
fn an_open_that_fails_says_so() {
    let disk = Memory::new();
    drop(open(&disk, options(Fsync::Always)));
    for (writes, syncs) in [(1, 0), (0, 1)] {
        let faults = Arc::new(Faults::default());
        faults.fail_writes.store(writes, Relaxed);
        faults.fail_syncs.store(syncs, Relaxed);
        let faulty = Arc::new(Faulty::new(disk.after_kill(), faults));
        let opened = Journal::open(options(Fsync::Always), faulty, Clock::default());
        assert!(matches!(opened.err(), Some(Error::DataDir(..))));
    }
}

#[test]
fn an_old_segment_that_cannot_be_read_stays() {
    let disk = Memory::new();
    let clock = Clock::manual(1000);
    let (journal, faults) = open_faulty(&disk, options(Fsync::Always), clock.clone());
    let straggler = write(&journal, put("old", "value", 1));
    faults.fail_reads.store(1, Relaxed);
    let mut last = None;
    for version in 2..100 {
        last = Some(write(&journal, Effect { supersedes: last, ..put("k", "value", version) }));
    }
    until("it is noticed", || journal.figures().compaction_errors > 0);
    write(&journal, put("other", "", 1));
    let (_, replayed, _) = open(&disk.after_kill(), options(Fsync::Always));
    assert_eq!(replayed[0].position, straggler);
    faults.fail_reads.store(0, Relaxed);
    clock.set(60_000);
    write(&journal, put("other", "", 2));
    until("tried again", || journal.figures().compacted > 0);
}
