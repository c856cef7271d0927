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

impl Tx<'_> {
    /// Fails if there isn't room for `bytes` more. A command that changes several keys, or one by an
    /// amount that its arguments don't show, asks before its first change.
    pub fn ensure_room(&mut self, bytes: usize) -> Result<(), Stop> {
        if bytes <= self.start.room || self.memory().rules().weight == Weight::Entries {
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
        let groups = &self.memory().rules().groups;
        let is_above = |need: &&Need| {
            need.bytes > 0 && need.namespace.is_some_and(|group| groups.is_above(group, need.bytes))
        };
        needs.iter().find(is_above).map_or(Ok(()), |need| Err(Stop::Room(*need)))
    }

    /// Fails if there isn't room for an entry of a key, in memory or within its namespace's quota.
    pub(super) fn ensure_room_for(&mut self, key: Key<'_>, size: usize) -> Result<(), Stop> {
        self.ensure_room(size)?;
        if self.has_quotas { Ok(()) } else { self.check_quotas(std::iter::once((key, size))) }
    }
}
