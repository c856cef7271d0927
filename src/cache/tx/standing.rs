//! Whether what memory has of a key is all there is to have, or the key has to be fetched.
//!
//! That is looked at for each key before a command runs; a read of one key sees for itself, where it is plain.

use super::{
    super::flight::{self, Origin},
    Key, Stop, Tx,
};
use crate::{
    policy::{Age, Rule, Times},
    tier::{
        entry::{Entry, EntryRef},
        tickets::Ticket,
    },
};

/// A copy that is good, but for which a new one is to be loaded beside it.
pub(in crate::cache) struct Due {
    /// Which of the attempt's keys it is of.
    pub(in crate::cache) index: usize,
    pub(in crate::cache) namespace: usize,
    pub(in crate::cache) entry: EntryRef,
    /// From when it was met on: a write since then has to be noticed.
    pub(in crate::cache) ticket: Ticket,
}

/// What an attempt may do with a key of a namespace that reads through.
pub(in crate::cache) enum Standing {
    /// It has what there is to have.
    Good,
    /// It is known to be absent.
    Negative,
    /// It has a copy that is due for a refresh.
    Due,
    /// It has to be fetched.
    Cold,
}

impl Tx<'_> {
    /// The key's entry, if it is plainly good, or there is plainly none.
    #[inline(always)]
    pub(super) fn entry_unseen(
        &self,
        at: usize,
        rule: Option<&Rule>,
        key: Key<'_>,
    ) -> Result<Option<Entry<'_>>, Stop> {
        let (cache, now) = (self.start.cache, self.start.job.now);
        let shelf = self.held[at].core.shelf(self.db);
        match shelf.and_then(|shelf| Some(shelf.entry(shelf.find(key.hash, key.bytes)?))) {
            Some(entry) if is_plainly_good(entry, rule, now) => Ok(Some(entry)),
            None if cache.has_all_in_memory() => Ok(None),
            _ => Err(Stop::Unseen),
        }
    }

    /// Whether a key's entry is in memory, or was pinned for this attempt by a flight that no write has
    /// overtaken (a read may use one that was overtaken: it asked before), or is nowhere: L3 has no record
    /// that may be it. (A key that is read through has a [`Standing`].)
    #[inline]
    pub(in crate::cache) fn is_resident(&mut self, key: Key<'_>) -> Result<bool, Stop> {
        let at = self.index(key.hash)?;
        if self.slot_in(at, key).is_some() {
            return Ok(true);
        }
        let core = &self.held[at].core;
        if let Some(pin) = flight::find(self.start.pins, self.db, key)
            && (!self.start.job.strict || core.has_ticket(pin.ticket()))
        {
            return Ok(true);
        }
        Ok(!core.shelf(self.db).is_some_and(|shelf| shelf.has_below(key.hash)))
    }

    /// Whether what memory, or a pin, has of a key that is read through is good for this attempt. Only a read
    /// believes in an absence without having asked for it (SEMANTICS 3).
    pub(in crate::cache) fn standing(
        &mut self,
        key: Key<'_>,
        reads: bool,
        times: &Times,
    ) -> Result<Standing, Stop> {
        let (now, strict, db) = (self.start.job.now, self.start.job.strict, self.db);
        let at = self.index(key.hash)?;
        let slot = self.slot_in(at, key);
        let core = &self.held[at].core;
        if let Some(slot) = slot
            && let Some(shelf) = core.shelf(db)
        {
            match times.age(shelf.entry(slot).kept_until(), now) {
                Age::Fresh => return Ok(Standing::Good),
                Age::Due => return Ok(Standing::Due),
                Age::Stale => {}
            }
        }
        let pins = self.start.pins;
        let pin =
            flight::find(pins, db, key).filter(|pin| !strict || core.has_ticket(pin.ticket()));
        match pin {
            Some(pin) => {
                // What was loaded, or found to be gone, found no room: the old copy must not hide that.
                if let Some(slot) = slot
                    && pin.origin() != Some(Origin::Stale)
                {
                    self.expire(at, slot, key.hash);
                }
                Ok(Standing::Good)
            }
            None if slot.is_none()
                && reads
                && times.has_negatives()
                && core.is_negative(db, key.hash, key.bytes, now) =>
            {
                Ok(Standing::Negative)
            }
            None => Ok(Standing::Cold),
        }
    }

    /// Takes the copy of a key that is due for a refresh, once: whoever meets it later doesn't get it.
    pub(in crate::cache) fn take_due(
        &mut self,
        key: Key<'_>,
        index: usize,
        namespace: usize,
    ) -> Result<Option<Due>, Stop> {
        let (db, at) = (self.db, self.index(key.hash)?);
        let Some(slot) = self.slot_in(at, key) else { return Ok(None) };
        let core = &mut self.held[at].core;
        let entry = core.shelf(db).map(|shelf| shelf.entry(slot));
        let entry = entry.filter(|entry| !entry.is_renewing()).and_then(Entry::share);
        Ok(entry.map(|entry| {
            entry.get().set_renewing(true);
            Due { index, namespace, entry, ticket: core.ticket(db, key.hash) }
        }))
    }
}

/// Whether an entry hasn't ended, and is fresh if a namespace's rule says when that is.
#[inline(always)]
fn is_plainly_good(entry: Entry<'_>, rule: Option<&Rule>, now: u64) -> bool {
    let has_ended = |end: u64| end.wrapping_sub(1) < now;
    let kept_until = entry.kept_until();
    // A copy that is fresh hasn't ended.
    !has_ended(entry.deadline())
        && (kept_until == 0
            || match rule {
                Some(rule) => rule.times.is_fresh(kept_until, now),
                None => !has_ended(kept_until),
            })
}
