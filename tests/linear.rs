//! One key, many connections on many workers: what each of them sees fits one order of all operations
//! (linearizability; Herlihy and Wing, 1990), with the hottest keys served from the workers' own caches.
//!
//! Every SET writes a number of its own, larger than all before it by the writer's clock of turns: writers
//! take turns by an atomic counter, so that each knows which writes were acknowledged before it began. A
//! read must not return a value that was overwritten before the read began, nor one whose write began
//! after the read ended; a deleted or expired key must not be seen again.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use common::{Raw, Server};

const READERS: usize = 6;
const WRITES: u64 = 30_000;

/// What all may know: the number of the last write that was sent, and of the last that was answered.
#[derive(Default)]
struct Turns {
    sent: AtomicU64,
    answered: AtomicU64,
    over: AtomicBool,
}

/// Number 0 means absent; a write with an even number deletes or expires the key, others set it.
fn number_of(reply: &[u8]) -> Option<u64> {
    let line = reply.windows(2).position(|pair| pair == b"\r\n")?;
    let value = reply.get(line + 2..reply.len() - 2).filter(|_| reply[1] != b'-')?;
    let digits = value.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn read(server: &Server, turns: &Turns) -> u64 {
    let mut raw = server.raw();
    let mut reads = 0;
    // A batch of reads: what a later one sees is never older than what an earlier one saw.
    let batch = common::encode(&["GET", "hot"]).repeat(8);
    while !turns.over.load(SeqCst) {
        let before = turns.answered.load(SeqCst);
        raw.send(&batch);
        let mut newest = 0;
        for _ in 0..8 {
            let reply = raw.reply();
            reads += 1;
            let Some(seen) = number_of(&reply) else { continue };
            let after = turns.sent.load(SeqCst);
            assert!(seen >= before, "read {seen}, though {before} was answered before it began");
            assert!(seen <= after, "read {seen}, though only {after} was sent");
            assert!(seen >= newest, "read {seen} after {newest}");
            newest = seen;
        }
    }
    reads
}

/// An absent key is right only if a delete may be the newest write.
fn read_absence(server: &Server, turns: &Turns) {
    let mut raw = server.raw();
    while !turns.over.load(SeqCst) {
        let before = turns.answered.load(SeqCst);
        let is_absent = number_of(&raw.ask(&["GET", "hot"])).is_none();
        let after = turns.sent.load(SeqCst);
        let may_be = (before..=after).any(|number| number % 2 == 0);
        assert!(!is_absent || may_be, "absent, between writes {before} and {after}");
    }
}

fn check(flags: &[&str]) {
    let server = Arc::new(Server::start(flags));
    let turns = Arc::new(Turns::default());
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let (server, turns) = (server.clone(), turns.clone());
            thread::spawn(move || {
                if number % 3 == 2 {
                    read_absence(&server, &turns);
                    return 0;
                }
                read(&server, &turns)
            })
        })
        .collect();
    let mut writers: Vec<Raw> = (0..4).map(|_| server.raw()).collect();
    let mut random = 12_345_u64;
    for number in 1..=WRITES {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let writer = &mut writers[(random >> 33) as usize % 4];
        // Some writes come at once, so that the key is hot in between for the others.
        if (random >> 40).is_multiple_of(8) {
            thread::sleep(Duration::from_micros((random >> 50) % 500));
        }
        turns.sent.store(number, SeqCst);
        match (number % 2, (random >> 20) % 4) {
            (1, 0) => {
                let value = format!("{number} {}", "v".repeat((random >> 50) as usize % 100));
                drop(writer.ask(&["SET", "hot", &value, "EX", "100"]));
            }
            (1, _) => drop(writer.ask(&["SET", "hot", &number.to_string()])),
            (_, 0) => drop(writer.ask(&["PEXPIREAT", "hot", "1"])),
            (_, 1) => drop(writer.ask(&["FLUSHDB"])),
            _ => drop(writer.ask(&["DEL", "hot"])),
        }
        turns.answered.store(number, SeqCst);
    }
    turns.over.store(true, SeqCst);
    let reads: u64 = readers.into_iter().map(|reader| reader.join().expect("no stale read")).sum();
    assert!(reads > 10_000, "{reads}");
    let info = writers[0].ask(&["INFO", "tiers"]);
    let info = String::from_utf8_lossy(&info).into_owned();
    let hits = info.split("l1:hits=").nth(1).and_then(|text| text.split(',').next());
    let hits: u64 = hits.expect("the field").parse().expect("a number");
    println!("{reads} reads, {hits} of them in L1");
    let expected = !flags.contains(&"--l1");
    assert_eq!(hits > 100, expected, "{hits} hits in L1");
}

/// SEMANTICS 4: *a torn MGET.* Two keys that MSET changes together are never seen half changed, though each of
/// them alone is served from the workers' own caches.
#[test]
fn two_keys_change_together() {
    const READS: usize = 4_000;
    let server = Server::start(&["--workers", "4", "--memory", "64mb"]);
    let set = |raw: &mut Raw, number: u64| {
        let number = number.to_string();
        assert_eq!(raw.ask(&["MSET", "a", &number, "b", &number]), b"+OK\r\n");
    };
    set(&mut server.raw(), 0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut raw = server.raw();
            let mut written = 0;
            while !over.load(SeqCst) {
                written += 1;
                set(&mut raw, written);
            }
            written
        });
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut raw = server.raw();
                    let heat = common::encode(&["GET", "a"]).repeat(50);
                    let mut changes = 0;
                    let mut last = None;
                    for _ in 0..READS {
                        raw.send(&heat);
                        raw.request(&["MGET", "a", "b"]);
                        (0..50).for_each(|_| drop(raw.reply()));
                        let reply = String::from_utf8(raw.reply()).expect("numbers");
                        let words: Vec<&str> = reply.split("\r\n").collect();
                        assert_eq!(words[2], words[4], "half of an MSET: {reply:?}");
                        changes += u64::from(last.as_deref() != Some(words[2]));
                        last = Some(words[2].to_owned());
                    }
                    changes
                })
            })
            .collect();
        let changes: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        over.store(true, SeqCst);
        let written = writer.join().expect("it writes");
        let changes: u64 = changes.into_iter().map(|changes| changes.expect("no half")).sum();
        assert!(changes > 1_000, "{changes} changes seen of {written}");
    });
}

/// SEMANTICS 4: no stale read of a hot key, whichever worker serves it.
#[test]
fn one_hot_key_has_one_history() {
    check(&["--workers", "4", "--memory", "64mb"]);
}

/// The same without L1, so that the checker is known to have nothing against that.
#[test]
fn one_key_has_one_history_without_l1() {
    check(&["--workers", "4", "--memory", "64mb", "--l1", "0"]);
}
