//! The largest keys: a list of so many, and the size that a key has to exceed to come in.
//!
//! Every entry that comes into memory is compared with that size, so as long as none of the list has left, it
//! has the largest keys there are. It keeps twice as many as it shows: half of them may go before the rest
//! can be wrong.

use super::hot::LONGEST;

/// Keys that it keeps, and that it shows.
const MOST: usize = 256;
pub(super) const SHOWN: usize = MOST / 2;

/// A large key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BigKey {
    /// Its database.
    pub db: usize,
    /// The key.
    pub key: Box<[u8]>,
    /// What its entry takes of memory, in bytes.
    pub bytes: usize,
}

/// The list.
#[derive(Default)]
pub(super) struct Big(Vec<BigKey>);

impl Big {
    /// Takes a key in, if it is among the largest; returns the size that others have to exceed.
    pub(super) fn note(&mut self, db: usize, key: &[u8], bytes: usize) -> usize {
        if key.len() > LONGEST {
            return self.floor();
        }
        if let Some(known) = self.0.iter_mut().find(|known| known.db == db && *known.key == *key) {
            known.bytes = bytes;
        } else if self.0.len() < MOST {
            self.0.push(BigKey { db, key: key.into(), bytes });
        } else if let Some(least) = self.0.iter_mut().min_by_key(|known| known.bytes)
            && least.bytes < bytes
        {
            *least = BigKey { db, key: key.into(), bytes };
        }
        self.floor()
    }

    fn floor(&self) -> usize {
        let least = self.0.iter().map(|known| known.bytes).min();
        least.filter(|_| self.0.len() == MOST).unwrap_or(0)
    }

    /// Two databases have swapped what they hold.
    pub(super) fn swap(&mut self, a: usize, b: usize) {
        for known in &mut self.0 {
            known.db = match known.db {
                db if db == a => b,
                db if db == b => a,
                db => db,
            };
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<BigKey> {
        self.0.clone()
    }

    /// Corrects what is known of keys that were looked at, each with its size now (`None`: it is gone);
    /// returns the size that others have to exceed.
    pub(super) fn correct(&mut self, looked: &[(BigKey, Option<usize>)]) -> usize {
        for (seen, now) in looked {
            // What has been written since is newer than the look.
            let Some(at) = self.0.iter().position(|known| known == seen) else { continue };
            match now {
                Some(bytes) => self.0[at].bytes = *bytes,
                None => drop(self.0.swap_remove(at)),
            }
        }
        self.floor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(big: &mut Big, number: usize, bytes: usize) -> usize {
        big.note(0, &number.to_be_bytes(), bytes)
    }

    #[test]
    fn the_largest_stay() {
        let mut big = Big::default();
        let sizes: Vec<usize> = (0..5000).map(|number| number * 7919 % 5003).collect();
        let mut floor = 0;
        for (number, bytes) in sizes.iter().enumerate() {
            if *bytes > floor {
                floor = note(&mut big, number, *bytes);
            }
        }
        let mut kept: Vec<_> = big.all().into_iter().map(|known| known.bytes).collect();
        let mut all = sizes;
        kept.sort_unstable();
        all.sort_unstable();
        assert_eq!(kept, all[all.len() - MOST..]);
        assert_eq!(floor, kept[0]);
    }

    #[test]
    fn a_key_that_went_makes_room() {
        let mut big = Big::default();
        let floor = (0..MOST).map(|number| note(&mut big, number, 100 + number)).last();
        assert_eq!(floor, Some(100));
        let looked: Vec<_> = big.all().into_iter().map(|known| (known.clone(), None)).collect();
        assert_eq!(big.correct(&looked[..1]), 0);
        assert_eq!(note(&mut big, 9999, 1), 1);
        // One that was written since it was looked at stays.
        note(&mut big, 7, 5000);
        big.correct(&looked[7..8]);
        assert!(big.all().iter().any(|known| known.bytes == 5000));
        // A smaller value is known when it is looked at.
        let seen = big.all().into_iter().find(|known| known.bytes == 5000).expect("it is there");
        assert_eq!(big.correct(&[(seen, Some(0))]), 0);
    }
}
