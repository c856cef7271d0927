//! Finds the namespace of a key: the longest prefix in its database that the key begins with.
//!
//! The prefixes of a database stand in order, and each knows the longest other one that it begins with
//! itself: that is *around* it. What stands between a prefix and a key that begins with it begins with it
//! too. So the last prefix that isn't behind a key is the key's, or one around it is. Mostly not even that
//! one is searched for: the last of all that share a key's first byte is tried before, and where prefixes
//! differ in it there is no other.

use std::sync::Arc;

use super::Rule;

/// Bytes of a prefix that are compared at once.
const WORD: usize = size_of::<u64>();

/// The prefixes of all databases.
#[derive(Clone, Default)]
pub(super) struct Prefixes(Vec<Sorted>);

/// The prefixes of a database.
#[derive(Clone)]
struct Sorted {
    /// In order.
    prefixes: Vec<Arc<Prefix>>,
    /// By a key's first byte, the last prefix that the key may begin with.
    last: [Option<Arc<Prefix>>; 256],
}

/// A prefix, as keys are compared with it.
struct Prefix {
    /// Its first bytes.
    first: u64,
    /// Which bytes of a key are compared with them.
    mask: u64,
    /// Whether there is no more to compare.
    is_short: bool,
    rule: Arc<Rule>,
    bytes: Box<[u8]>,
    /// The one around it.
    around: Option<Arc<Prefix>>,
}

impl Prefixes {
    /// Prefixes with their databases, and what holds for their keys. Of equal ones the first counts.
    pub(super) fn new<'a>(all: impl Iterator<Item = (usize, &'a [u8], Arc<Rule>)>) -> Self {
        let mut databases: Vec<Vec<Prefix>> = Vec::new();
        for (db, bytes, rule) in all {
            databases.resize_with(databases.len().max(db + 1), Vec::new);
            databases[db].push(Prefix::new(bytes, rule));
        }
        Self(databases.into_iter().map(Sorted::new).collect())
    }

    /// What holds for a key.
    #[inline]
    pub(super) fn find(&self, db: usize, key: &[u8]) -> Option<&Rule> {
        let sorted = self.0.get(db)?;
        let word = first_word(key);
        let last = sorted.last[(word >> (u64::BITS - u8::BITS)) as usize].as_ref()?;
        if last.begins(word, key) { Some(&last.rule) } else { sorted.search(word, key) }
    }
}

impl Sorted {
    fn new(mut unlinked: Vec<Prefix>) -> Self {
        unlinked.sort_by(|one, other| one.bytes.cmp(&other.bytes));
        unlinked.dedup_by(|later, first| later.bytes == first.bytes);
        let mut last = [const { None }; 256];
        let mut prefixes: Vec<Arc<Prefix>> = Vec::with_capacity(unlinked.len());
        for mut prefix in unlinked {
            // What is around it is the one before it, or around that.
            let mut around = prefixes.last();
            while let Some(other) = around
                && !prefix.bytes.starts_with(&other.bytes)
            {
                around = other.around.as_ref();
            }
            prefix.around = around.cloned();
            let prefix = Arc::new(prefix);
            match prefix.bytes.first() {
                Some(byte) => last[usize::from(*byte)] = Some(prefix.clone()),
                None => last.fill(Some(prefix.clone())),
            }
            prefixes.push(prefix);
        }
        Self { prefixes, last }
    }

    /// What holds for a key that doesn't begin with the last prefix that has its first byte.
    #[inline(never)]
    fn search(&self, word: u64, key: &[u8]) -> Option<&Rule> {
        let is_before = |prefix: &Arc<Prefix>| {
            prefix.first < word || prefix.first == word && *prefix.bytes <= *key
        };
        let mut at = self.prefixes.get(self.prefixes.partition_point(is_before).checked_sub(1)?);
        while let Some(prefix) = at {
            if prefix.begins(word, key) {
                return Some(&prefix.rule);
            }
            at = prefix.around.as_ref();
        }
        None
    }
}

impl Prefix {
    fn new(bytes: &[u8], rule: Arc<Rule>) -> Self {
        let missing = 8 * WORD.saturating_sub(bytes.len()) as u32;
        Self {
            first: first_word(bytes),
            mask: u64::MAX.checked_shl(missing).unwrap_or(0),
            // A key that ends early may look as if it had zeros there.
            is_short: bytes.len() <= WORD && bytes.last() != Some(&0),
            rule,
            bytes: bytes.into(),
            around: None,
        }
    }

    /// Whether a key, of which this is the first word, begins with it.
    #[inline]
    fn begins(&self, word: u64, key: &[u8]) -> bool {
        word & self.mask == self.first && (self.is_short || key.starts_with(&self.bytes))
    }
}

/// The first eight bytes, with zeros behind what is shorter: words are in the order of what they begin.
#[inline]
fn first_word(bytes: &[u8]) -> u64 {
    let quad = |bytes: &[u8; 4]| u64::from(u32::from_be_bytes(*bytes));
    if let Some(first) = bytes.first_chunk() {
        return u64::from_be_bytes(*first);
    }
    let missing = 8 * (WORD - bytes.len());
    match (bytes.first_chunk(), bytes.last_chunk()) {
        // They overlap.
        (Some(first), Some(last)) => quad(first) << 32 | quad(last) << missing,
        _ => bytes.iter().rev().fold(0, |word, byte| word >> 8 | u64::from(*byte) << 56),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that are often alike, and zeros among them.
    fn bytes(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0, b'a', b'b', 0xff]), len)
    }

    fn longest(prefixes: &[(usize, Vec<u8>)], db: usize, key: &[u8]) -> Option<usize> {
        let is_of = |at: &usize| prefixes[*at].0 == db && key.starts_with(&prefixes[*at].1);
        // Of equal ones the first.
        (0..prefixes.len()).filter(is_of).rev().max_by_key(|at| prefixes[*at].1.len())
    }

    fn index(prefixes: &[(usize, Vec<u8>)]) -> Prefixes {
        let rule = |number| Arc::new(Rule { number, ..Rule::default() });
        let numbered = prefixes.iter().enumerate();
        Prefixes::new(numbered.map(|(at, (db, bytes))| (*db, &bytes[..], rule(at))))
    }

    fn found(index: &Prefixes, db: usize, key: &[u8]) -> Option<usize> {
        index.find(db, key).map(|rule| rule.number)
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_all_of_them_finds(
            prefixes in prop::collection::vec((0..3_usize, bytes(0..12)), 0..40),
            db in 0..4_usize,
            keys in prop::collection::vec(bytes(0..16), 1..40),
        ) {
            let index = index(&prefixes);
            for key in keys.iter().chain(prefixes.iter().map(|(_, bytes)| bytes)) {
                prop_assert_eq!(found(&index, db, key), longest(&prefixes, db, key), "{:?}", key);
            }
        }
    }

    #[test]
    fn a_thousand_prefixes_are_told_apart() {
        let prefixes: Vec<_> = (0..1_000)
            .map(|number| (0, format!("tenant:{number}:").into_bytes()))
            .chain([(0, b"tenant:".to_vec()), (0, Vec::new())])
            .collect();
        let index = index(&prefixes);
        for number in 0..1_100 {
            let key = format!("tenant:{number}:key");
            let expected = if number < 1_000 { number } else { 1_000 };
            assert_eq!(found(&index, 0, key.as_bytes()), Some(expected), "{key}");
        }
        assert_eq!(found(&index, 0, b"other"), Some(1_001));
    }
}
