//! Whether there is room for what an attempt is about to put: in memory, and within its namespaces' quotas.

use smallvec::SmallVec;

use super::{Key, Stop, Tx};
use crate::tier::Weight;

/// Room that an attempt needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// So many bytes more.
    pub bytes: usize,
    /// Within the quota of this namespace; `None`: in memory.
    pub namespace: Option<usize>,
}

/// Room that was made before an attempt. What others take of it meanwhile is made up for afterwards.
#[derive(Clone, Copy, Default)]
pub(in crate::cache) struct Made {
    /// In memory, as far as it isn't used up.
    pub(in crate::cache) room: usize,
    /// Within the quotas of all namespaces that the command's keys are in.
    pub(in crate::cache) in_quotas: usize,
    /// What an attempt before this one needed within one quota.
    pub(in crate::cache) within: Option<Need>,
}

impl Tx<'_> {
    /// Fails if there isn't room for `bytes` more. A command that changes several keys, or one by an
    /// amount that its arguments don't show, asks before its first change.
    pub fn ensure_room(&mut self, bytes: usize) -> Result<(), Stop> {
        if bytes <= self.start.made.room || self.memory().rules().weight == Weight::Entries {
            return Ok(());
        }
        let is_above = self.memory().used() + bytes > self.memory().rules().limit();
        if is_above { Err(Stop::Room(Need { bytes, namespace: None })) } else { Ok(()) }
    }

    /// Fails if the namespaces' quotas don't hold entries of these keys and sizes. A command that changes
    /// several keys asks before its first change; that holds for all of them.
    pub fn ensure_quotas<'k>(
        &mut self,
        sizes: impl Iterator<Item = (Key<'k>, usize)>,
    ) -> Result<(), Stop> {
        self.check_quotas(sizes)?;
        self.has_quotas = true;
        Ok(())
    }

    fn check_quotas<'k>(
        &mut self,
        sizes: impl Iterator<Item = (Key<'k>, usize)>,
    ) -> Result<(), Stop> {
        let policies = &self.start.cache.policies;
        let mut needs: SmallVec<[Need; 1]> = SmallVec::new();
        for (key, size) in sizes {
            let Some((number, namespace)) = policies.quota_of(self.db, key.bytes) else { continue };
            if namespace.quota.is_some_and(|quota| size > quota) {
                return Err(Stop::Client(namespace.over_quota()));
            }
            // It gives its place to the new one.
            let (db, slot) = (self.db, self.slot(key)?);
            let shelf = self.held(key.hash)?.core.shelf(db);
            let old = slot.zip(shelf).map_or(0, |(slot, shelf)| shelf.entry(slot).size());
            let bytes = size.saturating_sub(old);
            match needs.iter_mut().find(|need| need.namespace == Some(number)) {
                Some(need) => need.bytes += bytes,
                None => needs.push(Need { bytes, namespace: Some(number) }),
            }
        }
        let (groups, made) = (&self.memory().rules().groups, self.start.made);
        // What others have taken since isn't asked for again, lest one who is slow finds no room for ever.
        let in_quotas = if self.db == self.start.job.db { made.in_quotas } else { 0 };
        let is_made = |need: &Need| {
            let within = made.within.filter(|within| within.namespace == need.namespace);
            need.bytes <= within.map_or(0, |within| within.bytes).max(in_quotas)
        };
        let lacks = |need: &&Need| {
            let is_above = |group| groups.is_above(group, need.bytes);
            !is_made(need) && need.namespace.is_some_and(is_above)
        };
        needs.iter().find(lacks).map_or(Ok(()), |need| Err(Stop::Room(*need)))
    }

    /// Fails if there isn't room for an entry of a key, in memory or within its namespace's quota.
    pub(super) fn ensure_room_for(&mut self, key: Key<'_>, size: usize) -> Result<(), Stop> {
        self.ensure_room(size)?;
        if self.has_quotas { Ok(()) } else { self.check_quotas(std::iter::once((key, size))) }
    }
}
