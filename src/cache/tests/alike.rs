//! Keys that the index of L3 can't tell apart: what it knows of their hashes is the same.

use std::{collections::HashMap, path::Path, sync::atomic::Ordering::Relaxed};

use super::{
    tiers::{Tiers, eventually, small_log},
    *,
};
use crate::tier::log;

/// Bits of a hash that the index knows, behind those that name the stripe.
const KNOWN: u32 = 25;
/// Among so many keys there are a few pairs.
const KEYS: u64 = 300_000;

fn open(dir: &Path, queue: usize, memory: usize) -> Tiers {
    let log = log::Options { seeds: Some([1, 2, 3, 4]), queue, ..small_log(dir, &Arc::default()) };
    Tiers::with_log(&log, memory, Eviction::AllkeysS3fifo, &Clock::manual(NOW))
}

/// Pairs of keys that look alike.
fn pairs(tiers: &Tiers) -> Vec<[String; 2]> {
    let bits = tiers.cache.memory().rules().stripe_bits + KNOWN;
    let mut seen: HashMap<u64, u64> = HashMap::new();
    let mut pairs = Vec::new();
    for key in 0..KEYS {
        let known = tiers.key(&name(key)).hash >> (64 - bits);
        if let Some(other) = seen.insert(known, key) {
            pairs.push([name(other), name(key)]);
        }
    }
    pairs
}

fn name(key: u64) -> String {
    format!("key:{key}")
}

fn v1(key: &str) -> Vec<u8> {
    let mut value = key.as_bytes().to_vec();
    value.resize(700, b'1');
    value
}

/// Lets all leave memory, to the last, and be written.
async fn push_out(tiers: &Tiers) {
    let memory = tiers.cache.memory();
    let limit = memory.rules().limit();
    memory.set_limit(0);
    eventually(|| {
        let _ = memory.make_room(0, 0, NOW, &[]);
        tiers.log().queue.rouse();
        memory.resident(0) == 0
    })
    .await;
    memory.set_limit(limit);
    eventually(|| tiers.log().queue.len() == (0, 0)).await;
}

/// Reads compare keys, and a write that looks first (all do until the log is full) tells its key's record from
/// the other's.
#[tokio::test]
async fn keys_that_look_alike_are_told_apart() {
    are_told_apart(64 << 10, 700 << 10).await;
}

/// The same with other sizes, and so other stripes and pairs.
#[tokio::test]
async fn keys_that_look_alike_are_told_apart_in_more_memory() {
    are_told_apart(256 << 10, 1 << 20).await;
}

async fn are_told_apart(queue: usize, memory: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let tiers = open(dir.path(), queue, memory);
    let pairs = pairs(&tiers);
    assert!(pairs.len() >= 4, "{} pairs", pairs.len());
    for key in pairs.iter().flatten() {
        tiers.set(0, key, &v1(key), Ttl::Clear).await.expect("room");
    }
    let get = async |key: &str| tiers.get(0, key).await.expect("no failure");
    // The second time they leave memory unchanged.
    for round in 0..2 {
        push_out(&tiers).await;
        for key in pairs.iter().flatten() {
            let is_right = get(key).await == Some(v1(key));
            assert!(is_right, "round {round}: {key} in {pairs:?}, {:?}", tiers.log().counters);
        }
    }
    assert!(tiers.log().counters.other_keys.load(Relaxed) > 0, "they do look alike");
    push_out(&tiers).await;
    for (number, [one, other]) in pairs.iter().enumerate() {
        let wanted = match number % 4 {
            0 => {
                assert_eq!(tiers.delete(0, one).await, Ok(true));
                None
            }
            1 => {
                tiers.set(0, one, b"v2", Ttl::Clear).await.expect("room");
                Some(b"v2".to_vec())
            }
            2 => {
                tiers.append(0, one, b"+").await.expect("room");
                Some([&v1(one)[..], b"+"].concat())
            }
            _ => {
                assert_eq!(tiers.expire(0, one, NOW + 1_000).await, Ok(true));
                Some(v1(one))
            }
        };
        assert_eq!(get(other).await, Some(v1(other)), "{other} is lost with {one}");
        assert_eq!(get(one).await, wanted, "{one}");
    }
    assert!(!tiers.log().is_full(), "else keys might be forgotten");
}

/// Once the log is full a plain SET takes both away unread, on disk; never one instead of the other.
#[tokio::test]
async fn a_plain_set_forgets_what_looks_like_its_key_and_serves_nothing_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let tiers = open(dir.path(), 256 << 10, 1 << 20);
    let pairs = pairs(&tiers);
    for number in 0..20_000 {
        if tiers.log().is_full() {
            break;
        }
        tiers.set(0, &format!("first:{number}"), &[0; 900], Ttl::Clear).await.expect("room");
    }
    // What comes back soon is worth a place.
    for _ in 0..2 {
        for key in pairs.iter().flatten() {
            tiers.set(0, key, &v1(key), Ttl::Clear).await.expect("room");
        }
        push_out(&tiers).await;
    }
    let of_both = |pair: &&[String; 2]| {
        let below = tiers.cache.memory().below(0, tiers.key(&pair[0]).hash);
        below.is_some_and(|below| below.records.len() == 2)
    };
    let both: Vec<_> = pairs.iter().filter(of_both).collect();
    assert!(!both.is_empty(), "the log has taken them");
    let is_right = async |one: &str, other: &str| {
        let found = tiers.get(0, other).await.expect("no failure");
        assert!(found.is_none_or(|found| found == v1(other)), "{other} is wrong");
        let found = tiers.get(0, one).await.expect("no failure");
        assert!(found.is_none_or(|found| found == b"v2"), "{one} is stale");
    };
    for [one, other] in &both {
        tiers.set(0, one, b"v2", Ttl::Clear).await.expect("room");
        is_right(one, other).await;
    }
    push_out(&tiers).await;
    for [one, other] in &both {
        is_right(one, other).await;
    }
}
