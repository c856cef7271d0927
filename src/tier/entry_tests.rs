//! Tests of [`entry`](super::entry). They stand apart because `tests/loom.rs` compiles that file too.

use super::entry::*;

fn sample(meta: Meta) -> EntryRef {
    EntryRef::new(b"key", &[b"va", b"lue"], &meta)
}

#[test]
fn parts_come_back_with_every_optional_word() {
    for kept_until in [0, 77] {
        for access in [None, Some(9)] {
            for key in [&b"k"[..], &[7; 65_535], &[8; 70_000]] {
                let meta = Meta { deadline: 5, kept_until, access, raw: true };
                let entry = EntryRef::new(key, &[b"abc", b"", b"de"], &meta);
                assert_eq!(entry.get().key(), key);
                assert_eq!(entry.get().value(), b"abcde");
                assert_eq!(entry.get().meta(), meta);
                assert_eq!(entry.get().size(), entry_size(key.len(), 5, &meta));
            }
        }
    }
}

#[test]
fn a_string_of_16_and_32_bytes_takes_64() {
    assert_eq!(entry_size(16, 32, &Meta::default()), 64);
    assert_eq!(entry_size(16, 128, &Meta { deadline: 1, ..Meta::default() }), 160);
}

#[test]
fn marks_are_independent_and_saturate() {
    let entry = sample(Meta::default());
    let view = entry.get();
    for _ in 0..9 {
        view.touch(3);
    }
    view.set_queue(2);
    view.set_parity(true);
    view.set_timed(true);
    assert_eq!((view.mark(), view.queue(), view.parity(), view.is_timed()), (3, 2, true, true));
    view.set_mark(1);
    view.set_queue(1);
    view.set_parity(false);
    assert_eq!((view.mark(), view.queue(), view.parity(), view.is_timed()), (1, 1, false, true));
    view.set_deadline(u64::MAX);
    assert_eq!((view.deadline(), view.key()), (MAX_DEADLINE, &b"key"[..]));
}

#[test]
fn in_place_only_while_alone_and_within_the_class() {
    let mut entry = sample(Meta::default());
    let other = entry.try_clone().unwrap();
    assert!(entry.get_mut().is_none());
    entry.get().kill();
    assert!(other.get().is_dead());
    drop(other);
    let mut alone = entry.get_mut().unwrap();
    assert!(alone.resize(13) && !alone.resize(14));
    assert_eq!(alone.value(), b"value\0\0\0\0\0\0\0\0");
    assert!(alone.resize(1));
    assert_eq!(entry.get().value(), b"v");
}

#[test]
fn references_are_bounded() {
    let entry = sample(Meta::default());
    let many: Vec<_> = std::iter::from_fn(|| entry.try_clone()).collect();
    assert_eq!(many.len(), MOST_REFS - 1);
    drop(many);
    assert!(entry.try_clone().is_some());
}

#[test]
fn zeroed_is_zero() {
    let mut entry = EntryRef::zeroed(b"k", 100_000, &Meta::default());
    assert!(entry.get().value().iter().all(|byte| *byte == 0));
    entry.get_mut().unwrap().value()[99_999] = 1;
    assert_eq!(entry.get().value()[99_999], 1);
}

#[test]
fn the_last_reference_frees_on_another_thread() {
    let entry = sample(Meta::default());
    let threads: Vec<_> = (0..4)
        .map(|_| entry.try_clone().unwrap())
        .map(|entry| std::thread::spawn(move || entry.get().value().len()))
        .collect();
    drop(entry);
    assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 5));
}
