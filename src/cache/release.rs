//! What a reply waits for before it may be sent: the journal, when what it tells of isn't durable yet.
//!
//! An attempt is synchronous and doesn't wait; it notes here what its reply has to wait for. A connection
//! carries out a whole pipeline, and waits once for all of it (SEMANTICS 20).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Cache;
use crate::{error::ClientError, journal::Position};

/// What the replies to come wait for; nothing, at first.
#[derive(Debug, Default)]
pub struct Release(AtomicU64);

impl Release {
    /// They wait for this, too.
    pub(super) fn wait_for(&self, position: Position) {
        self.0.fetch_max(position.sequence(), Relaxed);
    }

    /// Whether there is nothing to wait for.
    #[inline]
    pub fn is_free(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    /// What there is to wait for, once.
    fn take(&self) -> Option<Position> {
        Some(self.0.swap(0, Relaxed)).filter(|sequence| *sequence != 0).map(Position::at)
    }

    /// Takes over what another waits for.
    pub fn take_over(&self, other: &Self) {
        if let Some(position) = other.take() {
            self.wait_for(position);
        }
    }
}

impl Cache {
    /// Whether replies may be sent now; where that takes no more than writing to the journal, it is written.
    pub fn is_released(&self, release: &Release) -> bool {
        let position = Position::at(release.0.load(Relaxed));
        release.is_free()
            || self.policies().behind().is_none_or(|behind| behind.journal().write_here(position))
    }

    /// Waits until replies may be sent, and forgets what there was to wait for.
    ///
    /// # Errors
    /// If the journal has failed: whether what was done survives nobody knows.
    pub async fn released(&self, release: &Release) -> Result<(), ClientError> {
        let Some(position) = release.take() else { return Ok(()) };
        let Some(behind) = self.policies().behind() else { return Ok(()) };
        behind.journal().synced(position).await.map_err(|error| error.client_error())
    }
}
