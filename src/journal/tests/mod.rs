//! Tests of the journal as its users see it, on a disk in memory.

mod crashes;
mod damage;
mod faults;
mod space;

use std::{path::Path, sync::Arc, thread, time::Duration};

use bytes::Bytes;

use super::*;
use crate::{
    store::{Change, Record},
    tier::disk::{
        faulty::{Faults, Faulty},
        memory::Memory,
    },
};

const DIR: &str = "journal";
const SOON: Duration = Duration::from_millis(1);
const LATE: Duration = Duration::from_secs(600);

fn options(fsync: Fsync) -> Options {
    let (segment, limit, buffer) = (1024, 1 << 20, 4096);
    Options { fsync, segment, limit, buffer, ceiling_ahead: 100, ..Options::new(DIR) }
}

fn try_open(disk: &Memory, options: Options) -> Result<(Journal, Replay), Error> {
    Journal::open(options, Arc::new(disk.clone()), Clock::manual(1000))
}

/// Opens it and reads all that it brings back.
fn open(disk: &Memory, options: Options) -> (Journal, Vec<Replayed>, Report) {
    let (journal, replay) = try_open(disk, options).expect("opens");
    let report = replay.report().clone();
    (journal, replay.map(|replayed| replayed.expect("reads")).collect(), report)
}

/// A journal on a disk with faults.
fn open_faulty(disk: &Memory, options: Options, clock: Clock) -> (Journal, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let faulty = Faulty::new(disk.clone(), faults.clone());
    let (journal, _) = Journal::open(options, Arc::new(faulty), clock).expect("opens");
    (journal, faults)
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(future)
}

/// An effect that has its bytes.
#[derive(Clone, Debug)]
struct Effect {
    db: u16,
    key: Bytes,
    change: Change,
    supersedes: Option<Position>,
}

impl Effect {
    fn borrowed(&self, written: u64) -> super::Effect<'_> {
        let (value, deadline) = match &self.change {
            Change::Put(record) => (Some(&record.value[..]), record.deadline),
            Change::Delete { .. } => (None, 0),
        };
        let Self { db, key, change, supersedes } = self;
        let (supersedes, version) = (*supersedes, change.version());
        super::Effect { db: *db, key, value, deadline, version, written, supersedes }
    }
}

fn put(key: &str, value: &str, version: u64) -> Effect {
    let record = Record { value: value.to_owned().into(), deadline: 7, version, fresh_for: None };
    Effect { db: 3, key: key.to_owned().into(), change: Change::Put(record), supersedes: None }
}

fn append(journal: &Journal, effect: Effect) -> Result<Position, JournalError> {
    let position = append_only(journal, effect)?;
    // As one who waits does.
    journal.shared.rouse();
    Ok(position)
}

fn append_only(journal: &Journal, effect: Effect) -> Result<Position, JournalError> {
    let cost = Journal::cost(effect.key.len(), effect.change.value_len());
    let mut reservation = journal.admit(cost)?;
    let now = journal.shared.clock.now();
    journal.append(&mut reservation, &effect.borrowed(now))
}

/// Appends, and waits until it is durable.
fn write(journal: &Journal, effect: Effect) -> Position {
    let position = append(journal, effect).expect("appended");
    wait(journal.synced(position)).expect("durable");
    position
}

/// Waits until the writer has done what it does by itself.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

fn values(replayed: &[Replayed]) -> Vec<(u64, String, Option<String>)> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let value = |change: &Change| match change {
        Change::Put(record) => Some(text(&record.value)),
        Change::Delete { .. } => None,
    };
    replayed.iter().map(|it| (it.position.0, text(&it.key), value(&it.change))).collect()
}

#[test]
fn what_the_store_does_not_have_comes_back_in_order() {
    let disk = Memory::new();
    let (journal, replayed, report) = open(&disk, options(Fsync::Always));
    assert!(replayed.is_empty() && report == Report::default());
    let first = write(&journal, put("a", "1", 10));
    let delete = Change::Delete { version: 11 };
    write(&journal, Effect { change: delete.clone(), ..put("b", "", 0) });
    let third = write(&journal, put("a", "3", 12));
    assert!(first < third && journal.is_synced(third));
    journal.acknowledge([first]);
    // What is acknowledged is written before what is appended later.
    write(&journal, put("c", "", 13));
    let (_second, replayed, report) = open(&disk.after_kill(), options(Fsync::Always));
    let expected = [(2, "b", None), (3, "a", Some("3")), (4, "c", Some(""))];
    let expected = expected.map(|(sequence, key, value)| {
        (sequence, key.to_owned(), value.map(|value: &str| value.to_owned()))
    });
    assert_eq!(values(&replayed), expected);
    assert_eq!((&replayed[0].change, replayed[0].db, replayed[0].written), (&delete, 3, 1000));
    assert_eq!(replayed[1].change, put("a", "3", 12).change);
    assert_eq!((report.records, report.torn), (3, None));
}

#[test]
fn an_effect_ends_the_one_that_it_supersedes() {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, options(Fsync::Never));
    let mut last = None;
    for version in 0..2000 {
        // Far more than the limit, would they not free each other's room.
        let effect = Effect { supersedes: last, ..put("k", &"v".repeat(1000), version) };
        last = Some(write(&journal, effect));
    }
    until("all is written", || journal.figures().written == 2000);
    // Acknowledging what is over does nothing.
    journal.acknowledge([Position(1), Position(1999), Position(77_777)]);
    assert_eq!(journal.close(), Ok(()));
    assert_eq!(journal.figures().unacknowledged, 1);
    let (_, replayed, _) = open(&disk, options(Fsync::Never));
    assert_eq!(values(&replayed), [(2000, "k".to_owned(), Some("v".repeat(1000)))]);
}

/// SEMANTICS 11: room is where a writer waits or is refused.
#[test]
fn room_is_given_in_order_of_arrival_and_given_back() {
    let disk = Memory::new();
    let cost = Journal::cost(1, 36);
    assert_eq!(cost, MEMORY + 101);
    let options = Options { limit: 3 * cost, ..options(Fsync::Always) };
    let (journal, ..) = open(&disk, options.clone());
    let journal = Arc::new(journal);
    let effect = |key| put(key, &"v".repeat(36), 1);
    let [first, ..] = ["a", "b", "c"].map(|key| write(&journal, effect(key)));
    assert_eq!(journal.admit(1).unwrap_err(), JournalError::Full);
    assert_eq!(wait(journal.reserve(1, SOON)).unwrap_err(), JournalError::Full);
    // Who comes after somebody has waited in vain is refused at once; not who has more patience.
    let again = wait(async { futures_util::poll!(std::pin::pin!(journal.reserve(1, SOON))) });
    assert!(matches!(again, std::task::Poll::Ready(Err(JournalError::Full))));
    let too_large = wait(journal.reserve(3 * cost + 1, LATE)).unwrap_err();
    assert_eq!(too_large, JournalError::TooLarge { bytes: 3 * cost + 1, limit: 3 * cost });
    assert!(too_large.client_error().text().starts_with("JOURNALFULL "));
    wait(async {
        let large = journal.reserve(cost, LATE);
        let small = journal.reserve(1, LATE);
        tokio::pin!(large, small);
        // Both wait; the first that came is served first, though the second needs less.
        assert!(futures_util::poll!(&mut large).is_pending());
        assert!(futures_util::poll!(&mut small).is_pending());
        journal.acknowledge([first]);
        let reserved = large.await.expect("room");
        assert!(futures_util::poll!(&mut small).is_pending());
        drop(reserved);
        drop(small.await.expect("what was given back"));
    });
    assert!(journal.admit(cost).is_ok());
    drop(journal);
    // What comes back takes its room, over the limit if need be.
    let (journal, replayed, _) = open(&disk, Options { limit: cost, ..options });
    assert_eq!(journal.admit(1).unwrap_err(), JournalError::Full);
    journal.acknowledge([replayed[0].position]);
    until("acknowledged", || journal.figures().unacknowledged == 1);
    assert_eq!(journal.admit(1).unwrap_err(), JournalError::Full);
    journal.acknowledge([replayed[1].position]);
    drop(wait(journal.reserve(cost, LATE)).expect("room"));
}

#[test]
fn one_sync_serves_all_who_wait() {
    let disk = Memory::new();
    let large = Options { segment: 1 << 20, ..options(Fsync::Always) };
    let (journal, faults) = open_faulty(&disk, large, Clock::default());
    let before = faults.syncs();
    faults.hold_syncs(true);
    let first = append(&journal, put("first", "", 1)).expect("appended");
    faults.await_syncs(before + 1);
    let positions: Vec<Position> = thread::scope(|scope| {
        let append = |key: u64| append(&journal, put(&format!("{key}"), "", key));
        let threads: Vec<_> = (0..100).map(|key| scope.spawn(move || append(key))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic").expect("room")).collect()
    });
    assert!(!journal.is_synced(first));
    faults.hold_syncs(false);
    wait(futures_util::future::join_all(positions.iter().map(|it| journal.synced(*it))))
        .into_iter()
        .for_each(|synced| assert_eq!(synced, Ok(())));
    assert_eq!(faults.syncs(), before + 2);
    assert_eq!(journal.figures().syncs, 1 + 2);
}

#[test]
fn an_interval_is_kept_by_the_clock() {
    let clock = Clock::manual(10_000);
    let disk = Memory::new();
    let large =
        Options { segment: 1 << 20, ..options(Fsync::Interval(Duration::from_millis(100))) };
    let (journal, faults) = open_faulty(&disk, large, clock.clone());
    let before = faults.syncs();
    for version in 0..20 {
        write(&journal, put("k", "", version));
    }
    assert_eq!(faults.syncs(), before);
    assert_eq!(journal.figures().oldest_age, 0);
    clock.set(10_100);
    // Nothing has to be appended for it.
    faults.await_syncs(before + 1);
    assert_eq!(journal.figures().oldest_age, 100);
    clock.set(10_150);
    write(&journal, put("k", "", 21));
    assert_eq!(faults.syncs(), before + 1);
    // A clock that is set back holds nothing up.
    clock.set(5);
    faults.await_syncs(before + 2);
    // And when it is closed.
    write(&journal, put("k", "", 22));
    journal.close().expect("no faults");
    assert_eq!(faults.syncs(), before + 3);
}

/// SEMANTICS 14: versions never go back.
#[test]
fn the_ceiling_is_ahead_of_what_was_issued() {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, options(Fsync::Always));
    assert_eq!(journal.ceiling(), 0);
    journal.cover(1000);
    wait(journal.covered(1000)).expect("covered");
    assert_eq!(journal.ceiling(), 1100);
    let syncs = journal.figures().syncs;
    journal.cover(1049);
    wait(journal.covered(1049)).expect("covered");
    assert_eq!(journal.figures().syncs, syncs, "it was ahead");
    let position = write(&journal, put("k", "v", 1051));
    assert!(journal.ceiling() >= 1051);
    let (second, _, report) = open(&disk.after_power_loss(|| 0), options(Fsync::Always));
    assert_eq!(report.ceiling, 1151);
    drop(second);
    // Segments that go take nothing of it with them.
    journal.acknowledge([position]);
    let mut last = None;
    for _ in 0..100 {
        last = Some(write(&journal, Effect { supersedes: last, ..put("k", "v", 3) }));
    }
    drop(journal);
    assert_eq!(open(&disk, options(Fsync::Always)).2.ceiling, 1151);
    let (journal, ..) = open(&Memory::new(), options(Fsync::Never));
    journal.cover(u64::MAX);
    wait(journal.covered(u64::MAX)).expect("covered");
}

#[test]
fn a_closed_journal_has_written_all_and_takes_no_more() {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, options(Fsync::Never));
    let mut reservation = wait(journal.reserve(1000, SOON)).expect("room");
    let position =
        journal.append(&mut reservation, &put("k", "v", 1).borrowed(0)).expect("appended");
    assert_eq!(reservation.bytes(), 1000 - Journal::cost(1, 1));
    journal.close().expect("no faults");
    assert_eq!(wait(journal.synced(position)), Ok(()));
    assert_eq!(wait(journal.synced(Position(2))), Err(JournalError::Closed));
    assert_eq!(
        journal.append(&mut reservation, &put("k", "v", 1).borrowed(0)),
        Err(JournalError::Closed)
    );
    assert_eq!(journal.admit(1).unwrap_err(), JournalError::Closed);
    journal.acknowledge([position]);
    let after = disk.after_power_loss(|| 0);
    assert_eq!(open(&after, options(Fsync::Never)).1.len(), 1);
}

#[test]
fn records_longer_than_a_segment_have_their_own() {
    let disk = Memory::new();
    let (journal, ..) = open(&disk, options(Fsync::Always));
    for (version, len) in [10, 5_000, 300_000, 20].into_iter().enumerate() {
        write(&journal, put("k", &"v".repeat(len), version as u64));
    }
    let too_long = Effect { key: vec![0; crate::store::MAX_KEY + 1].into(), ..put("", "", 9) };
    let mut reservation = journal.admit(1).expect("room");
    let refused = journal.append(&mut reservation, &too_long.borrowed(0));
    assert!(matches!(refused, Err(JournalError::TooLarge { .. })));
    let (_, replayed, _) = open(&disk.after_power_loss(|| 0), options(Fsync::Always));
    let lens: Vec<_> = values(&replayed).into_iter().map(|it| it.2.map(|it| it.len())).collect();
    assert_eq!(lens, [Some(10), Some(5_000), Some(300_000), Some(20)]);
    assert!(disk.files().len() >= 4);
}

#[test]
fn a_wait_may_be_dropped() {
    let disk = Memory::new();
    let (journal, faults) = open_faulty(&disk, options(Fsync::Always), Clock::default());
    let before = faults.syncs();
    faults.hold_syncs(true);
    let position = append(&journal, put("k", "", 1)).expect("appended");
    faults.await_syncs(before + 1);
    wait(async {
        for _ in 0..10 {
            let synced = journal.synced(position);
            tokio::pin!(synced);
            assert!(futures_util::poll!(&mut synced).is_pending());
        }
    });
    assert_eq!(journal.figures().waiting, 10);
    faults.hold_syncs(false);
    wait(journal.synced(position)).expect("durable");
    assert_eq!(journal.figures().waiting, 0);
}

/// What stands in a segment of the journal.
fn segment(disk: &Memory, id: u64) -> Vec<u8> {
    disk.read(&path(id)).expect("it is there")
}

fn path(id: u64) -> PathBuf {
    recover::path_of(Path::new(DIR), id)
}
