//! The table against a model, across growth, splits and shrinking.

use super::*;
use crate::tier::entry::Meta;
use std::collections::{HashMap, HashSet};

fn hasher() -> Hasher {
    Hasher::with_seeds(1, 2, 3, 4)
}

fn entry(key: &[u8], value: &[u8]) -> EntryRef {
    EntryRef::new(key, &[value], &Meta::default())
}

fn filled(keys: u32, segment_bits: u32) -> (Table, Hasher) {
    let hasher = hasher();
    let mut table = Table::new(3, segment_bits, &hasher);
    for key in 0..keys {
        let key = key.to_be_bytes();
        table.insert(hash(&hasher, &key), entry(&key, &key));
    }
    (table, hasher)
}

#[test]
fn behaves_as_a_map_under_random_steps() {
    let hasher = hasher();
    let mut table = Table::new(2, 1, &hasher);
    let mut model: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut random = 1u64;
    for step in 0..200_000u64 {
        random = crate::tier::shelf::next_random(random);
        // Growing, then shrinking phases.
        let span = if step % 50_000 < 25_000 { 20_000 } else { 20 };
        let key = (random % span).to_le_bytes().to_vec();
        let value = random.to_le_bytes().to_vec();
        let hashed = hash(&hasher, &key);
        match (table.find(hashed, &key), random >> 60) {
            (Some(slot), 0..8) => {
                let old = table.remove(slot);
                assert_eq!(Some(old.get().value().to_vec()), model.remove(&key));
            }
            (Some(slot), _) => {
                table.replace(slot, entry(&key, &value));
                model.insert(key, value);
            }
            (None, _) => {
                assert!(!model.contains_key(&key));
                table.insert(hashed, entry(&key, &value));
                model.insert(key, value);
            }
        }
        assert_eq!(table.len(), model.len());
    }
    for (key, value) in &model {
        let slot = table.find(hash(&hasher, key), key).unwrap();
        assert_eq!(table.entry(slot).value(), value);
    }
}

#[test]
fn the_load_stays_near_nine_tenths() {
    let (mut sum, mut count) = (0.0, 0);
    for keys in [60_000, 70_000, 80_000, 90_000, 100_000, 110_000] {
        let (table, _) = filled(keys, 5);
        sum += table.bytes() as f64 / f64::from(keys);
        count += 1;
    }
    assert!(sum / f64::from(count) < 9.6, "{} bytes a slot", sum / f64::from(count));
}

#[test]
fn a_scan_across_growth_and_shrinking_misses_nothing() {
    let (mut table, hasher) = filled(10_000, 2);
    let mut seen = HashSet::new();
    let (mut at, mut step) = (Some(0u64), 0u32);
    while let Some(cursor) = at {
        at = table.scan(cursor, |entry| {
            seen.insert(entry.key().to_vec());
        });
        assert!(at.is_none_or(|next| next > cursor));
        for _ in 0..7 {
            step += 1;
            let key = (1_000_000 + step % 30_000).to_be_bytes();
            let hashed = hash(&hasher, &key);
            match table.find(hashed, &key) {
                Some(slot) => drop(table.remove(slot)),
                None => drop(table.insert(hashed, entry(&key, b""))),
            }
        }
    }
    assert!((0..10_000u32).all(|key| seen.contains(&key.to_be_bytes()[..])));
}

#[test]
fn short_references_lead_back() {
    let (table, hasher) = filled(50_000, 0);
    for key in 0..50_000u32 {
        let key = key.to_be_bytes();
        let reference = table.reference(hash(&hasher, &key));
        let slot = table.find_ref(reference, |entry| entry.key() == key).unwrap();
        assert_eq!(table.entry(slot).key(), key);
    }
}

#[test]
fn taking_and_swapping_leave_the_lines_in_place() {
    let (mut table, hasher) = filled(1_000, 2);
    let lines = table.lines();
    let taken = table.take();
    assert!(table.is_empty() && taken.len() == 1_000);
    assert!(std::sync::Arc::ptr_eq(&lines.directory, &table.lines().directory));
    lines.prefetch(12345);
    table.insert(hash(&hasher, b"k"), entry(b"k", b"v"));
    lines.prefetch(hash(&hasher, b"k"));
    drop(taken);
    assert!(table.find(hash(&hasher, b"k"), b"k").is_some());
}

/// An empty slot looks like an entry with the tag 0.
#[test]
fn any_hash_may_be_loaded_ahead() {
    let (mut table, hasher) = filled(1, 2);
    for bit in 0..64 {
        table.prefetch_entry(1 << bit);
        table.prefetch_entry(!(1 << bit));
    }
    table.prefetch_entry(0);
    table.prefetch_entry(hash(&hasher, &0u32.to_be_bytes()));
    drop(table.take());
    table.prefetch_entry(0);
}

#[test]
fn samples_reach_every_entry() {
    let (table, _) = filled(200, 2);
    let mut random = 7u64;
    let seen: HashSet<Vec<u8>> = (0..20_000)
        .map(|_| {
            random = crate::tier::shelf::next_random(random);
            table.entry(table.sample(random).unwrap()).key().to_vec()
        })
        .collect();
    assert_eq!(seen.len(), 200);
}
