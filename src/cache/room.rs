//! Room for what a command writes: made before its attempt, in memory and within its namespaces' quotas, and
//! made up for behind it.

use std::time::Duration;

use super::{Cache, Job, Refusal, Use};
use crate::{
    error::ClientError,
    tier::{Weight, memory::NoRoom},
};

/// How long a write waits for room on disk before it gives up with `-OOM`.
pub(super) const ROOM_PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits at a time.
const ROOM_STEP: Duration = Duration::from_millis(20);

impl Cache {
    /// Makes so much room in memory, and says how much of that there is in each of the keys' namespaces with a
    /// quota: all, or nothing is known.
    #[inline]
    pub(super) fn make_room(
        &self,
        job: &Job<'_>,
        room: usize,
        spare: &[u64],
    ) -> Result<usize, Refusal> {
        let memory = &self.0.memory;
        let stripe = job.keys.first().map_or(0, |(key, _)| memory.stripe_of(key.hash));
        let need = match memory.rules().weight {
            Weight::Bytes => room,
            Weight::Entries => job.keys.len(),
        };
        memory.make_room(need, stripe, job.now, spare).map_err(|why| self.refusal(why, None))?;
        let mut in_quotas = room;
        self.each_quota(job, |namespace, quota| {
            // Only the attempt knows what it takes: a larger value is refused then, and so is what finds no
            // room now.
            if room > quota || self.make_room_in(job, namespace, room, spare).is_err() {
                in_quotas = 0;
            }
        });
        Ok(in_quotas)
    }

    fn refusal(&self, why: NoRoom, namespace: Option<usize>) -> Refusal {
        match why {
            NoRoom::Full => Refusal::Client(self.no_room(namespace)),
            NoRoom::Busy => Refusal::Busy,
        }
    }

    /// Makes room for so many bytes within a namespace's quota.
    pub(super) fn make_room_in(
        &self,
        job: &Job<'_>,
        namespace: usize,
        bytes: usize,
        spare: &[u64],
    ) -> Result<(), Refusal> {
        let memory = &self.0.memory;
        let stripe = job.keys.first().map_or(0, |(key, _)| memory.stripe_of(key.hash));
        let made = memory.make_room_in(namespace, bytes, stripe, job.now, spare);
        made.map_err(|why| self.refusal(why, Some(namespace)))
    }

    /// Shows the namespaces with a quota, and that, of keys that the command may write.
    #[inline]
    fn each_quota(&self, job: &Job<'_>, mut show: impl FnMut(usize, usize)) {
        let written = job.keys.iter().filter(|(_, use_)| *use_ != Use::Read);
        for (key, _) in written {
            if let Some((number, namespace)) = self.0.policies.quota_of(job.db, key.bytes)
                && let Some(quota) = namespace.quota
            {
                show(number, quota);
            }
        }
    }

    /// Makes up for what the tables themselves have grown by, and for what others have written into the same
    /// namespaces meanwhile, before the command is answered.
    #[inline]
    pub(super) fn trim(&self, job: &Job<'_>) {
        let memory = &self.0.memory;
        if job.room != 0 && memory.used() > memory.rules().limit() {
            let stripe = job.keys.first().map_or(0, |(key, _)| memory.stripe_of(key.hash));
            let _ = memory.make_room(0, stripe, job.now, &[]);
        }
        if job.writes {
            self.each_quota(job, |namespace, _| drop(self.make_room_in(job, namespace, 0, &[])));
        }
    }

    /// Why a write is refused for which there is no room, in a namespace or at all.
    pub(super) fn no_room(&self, namespace: Option<usize>) -> ClientError {
        let policies = &self.0.policies;
        namespace.map_or(ClientError::OOM, |namespace| policies.at(namespace).over_quota())
    }

    /// Waits until the queue to L3 has taken a step.
    pub(super) async fn wait_for_room(
        &self,
        until: tokio::time::Instant,
    ) -> Result<(), ClientError> {
        let Some(log) = self.0.memory.log() else { return Err(ClientError::OOM) };
        if tokio::time::Instant::now() >= until {
            return Err(ClientError::OOM);
        }
        log.queue.rouse();
        // Whoever comes between the last try and this call is told soon enough.
        let _ = tokio::time::timeout(ROOM_STEP, log.room.notified()).await;
        Ok(())
    }
}
