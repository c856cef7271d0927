//! A change that the store doesn't have yet, as it stays in memory.

use bytes::Bytes;

use crate::{
    store::{Change, Record},
    tier::entry::{Entry, EntryRef, Meta},
};

/// The newest change of a key: an entry that the cache shares, so that a value is in memory once.
pub struct Update {
    /// Key and value; the key alone, if it is gone.
    entry: EntryRef,
    is_put: bool,
    deadline: u64,
    version: u64,
}

/// The bytes of an entry: key and value.
struct Both(EntryRef);

impl AsRef<[u8]> for Both {
    fn as_ref(&self) -> &[u8] {
        self.0.get().key_and_value()
    }
}

impl Update {
    /// The key of this entry holds its value, until the data's deadline (unix milliseconds; 0: for ever).
    pub fn put(entry: Entry<'_>, deadline: u64, version: u64) -> Self {
        let copy = || EntryRef::new(entry.key(), &[entry.value()], &Meta::default());
        let entry = entry.share().unwrap_or_else(copy);
        Self { entry, is_put: true, deadline, version }
    }

    /// A key is gone.
    pub fn delete(key: &[u8], version: u64) -> Self {
        let entry = EntryRef::new(key, &[], &Meta::default());
        Self { entry, is_put: false, deadline: 0, version }
    }

    /// What a store would be told of.
    pub fn of(key: &[u8], change: &Change) -> Self {
        match change {
            Change::Put(Record { value, deadline, version, .. }) => {
                let entry = EntryRef::new(key, &[value], &Meta::default());
                Self { entry, is_put: true, deadline: *deadline, version: *version }
            }
            Change::Delete { version } => Self::delete(key, *version),
        }
    }

    /// The same under another version.
    pub fn with_version(&self, version: u64) -> Self {
        let entry = self.entry.get();
        let copy = || EntryRef::new(entry.key(), &[entry.value()], &Meta::default());
        let entry = entry.share().unwrap_or_else(copy);
        let (is_put, deadline) = (self.is_put, self.deadline);
        Self { entry, is_put, deadline, version }
    }

    /// The key.
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.entry.get().key()
    }

    /// What it holds; `None`: it is gone.
    pub fn value(&self) -> Option<&[u8]> {
        self.is_put.then(|| self.entry.get().value())
    }

    /// When that ends, unix milliseconds; 0: never.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// The version of the change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What a store is told now: past its deadline, a value is gone.
    pub fn change(&self, now: u64) -> (Bytes, Change) {
        let is_past = self.deadline != 0 && self.deadline <= now;
        let (deadline, version) = (self.deadline, self.version);
        let shared = self.entry.get().share().map(|entry| Bytes::from_owner(Both(entry)));
        let both =
            shared.unwrap_or_else(|| Bytes::copy_from_slice(self.entry.get().key_and_value()));
        let key = both.slice(..self.key().len());
        if !self.is_put || is_past {
            return (key, Change::Delete { version });
        }
        let value = both.slice(key.len()..);
        (key, Change::Put(Record { value, deadline, version, fresh_for: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_comes_back_as_it_was() {
        let record =
            |deadline| Record { value: "value".into(), deadline, version: 7, fresh_for: None };
        for change in
            [Change::Put(record(0)), Change::Put(record(9)), Change::Delete { version: 7 }]
        {
            let update = Update::of(b"key", &change);
            assert_eq!(update.change(8), (Bytes::from_static(b"key"), change.clone()));
            assert_eq!(update.change(8).1.version(), update.version());
        }
        let ended = Update::of(b"key", &Change::Put(record(9))).change(9).1;
        assert_eq!(ended, Change::Delete { version: 7 });
    }

    #[test]
    fn it_shares_the_entry_of_the_cache() {
        let entry = EntryRef::new(b"key", &[b"value"], &Meta { deadline: 5, ..Meta::default() });
        let update = Update::put(entry.get(), 0, 7);
        assert_eq!(update.key().as_ptr(), entry.get().key().as_ptr());
        let (key, change) = update.change(8);
        drop((entry, update));
        assert_eq!((&key[..], change.value_len()), (&b"key"[..], 5));
    }
}
