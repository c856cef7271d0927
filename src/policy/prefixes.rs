//! Finds the namespace of a key: the longest prefix in its database that the key begins with.
//!
//! The prefixes of a database stand in order, and each knows the longest other one that it begins with
//! itself: that is *around* it. What stands between a prefix and a key that begins with it begins with it
//! too. So the last prefix that isn't behind a key is the key's, or one around it is. Mostly not even that
//! one is searched for: the last of all that share a key's first byte is tried before, and where prefixes
//! differ in it there is no other.

/// Bytes of a prefix that are compared at once.
const WORD: usize = size_of::<u64>();
/// The place of what isn't there.
const NOWHERE: u32 = u32::MAX;

/// The prefixes of all databases.
#[derive(Default)]
pub(super) struct Prefixes(Vec<Sorted>);

/// The prefixes of a database, in order.
struct Sorted {
    prefixes: Vec<Prefix>,
    /// By a key's first byte, the place of the last prefix that the key may begin with.
    last: [u32; 256],
}

/// A prefix, as keys are compared with it.
struct Prefix {
    /// Its first bytes.
    first: u64,
    /// Which bytes of a key are compared with them.
    mask: u64,
    /// Whether there is no more to compare.
    is_short: bool,
    /// The place of the one around it.
    around: u32,
    /// Its namespace.
    number: u32,
    bytes: Box<[u8]>,
}

impl Prefixes {
    /// Prefixes with their databases; a namespace's number is its place among them. Of equal ones the first
    /// counts.
    pub(super) fn new<'a>(all: impl Iterator<Item = (usize, &'a [u8])>) -> Self {
        let mut databases: Vec<Vec<Prefix>> = Vec::new();
        for (number, (db, bytes)) in all.enumerate() {
            databases.resize_with(databases.len().max(db + 1), Vec::new);
            databases[db].push(Prefix::new(number, bytes));
        }
        Self(databases.into_iter().map(Sorted::new).collect())
    }

    /// The number of a key's namespace.
    #[inline]
    pub(super) fn find(&self, db: usize, key: &[u8]) -> Option<usize> {
        let sorted = self.0.get(db)?;
        let word = first_word(key);
        let last = sorted.last[(word >> (u64::BITS - u8::BITS)) as usize];
        let last = sorted.prefixes.get(last as usize)?;
        if last.begins(word, key) { Some(last.number as usize) } else { sorted.search(word, key) }
    }
}

impl Sorted {
    fn new(mut prefixes: Vec<Prefix>) -> Self {
        prefixes.sort_by(|one, other| one.bytes.cmp(&other.bytes));
        prefixes.dedup_by(|later, first| later.bytes == first.bytes);
        let mut last = [NOWHERE; 256];
        let mut open: Vec<u32> = Vec::new();
        for at in 0..prefixes.len() {
            while let Some(around) = open.last()
                && !prefixes[at].bytes.starts_with(&prefixes[*around as usize].bytes)
            {
                open.pop();
            }
            prefixes[at].around = open.last().copied().unwrap_or(NOWHERE);
            open.push(at as u32);
            match prefixes[at].bytes.first() {
                Some(byte) => last[usize::from(*byte)] = at as u32,
                None => last.fill(at as u32),
            }
        }
        Self { prefixes, last }
    }

    /// The number of a key's namespace, where the last prefix with its first byte isn't it.
    #[inline(never)]
    fn search(&self, word: u64, key: &[u8]) -> Option<usize> {
        let is_before =
            |prefix: &Prefix| prefix.first < word || prefix.first == word && *prefix.bytes <= *key;
        let mut at = self.prefixes.partition_point(is_before).checked_sub(1)?;
        loop {
            let prefix = self.prefixes.get(at)?;
            if prefix.begins(word, key) {
                return Some(prefix.number as usize);
            }
            at = prefix.around as usize;
        }
    }
}

impl Prefix {
    fn new(number: usize, bytes: &[u8]) -> Self {
        let missing = 8 * WORD.saturating_sub(bytes.len()) as u32;
        Self {
            first: first_word(bytes),
            mask: u64::MAX.checked_shl(missing).unwrap_or(0),
            // A key that ends early may look as if it had zeros there.
            is_short: bytes.len() <= WORD && bytes.last() != Some(&0),
            around: NOWHERE,
            number: number as u32,
            bytes: bytes.into(),
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
        Prefixes::new(prefixes.iter().map(|(db, bytes)| (*db, &bytes[..])))
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
                prop_assert_eq!(index.find(db, key), longest(&prefixes, db, key), "{:?}", key);
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
            assert_eq!(index.find(0, key.as_bytes()), Some(expected), "{key}");
        }
        assert_eq!(index.find(0, b"other"), Some(1_001));
    }
}
