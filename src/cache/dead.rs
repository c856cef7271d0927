//! Dead letters, tried once more.

use std::{fmt, time::Duration};

use super::{
    Cache,
    release::Release,
    tx::{Change, StagedKey},
};
use crate::{journal::Journal, policy::behind::Update};

/// How long room in the journal is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a dead letter that was to be tried once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It is in the journal again, and will be stored, unless what the store has is newer by then. If the store
    /// refuses it again it becomes a dead letter of another number.
    Queued,
    /// The key has a newer value, so it is over.
    Overtaken,
    /// There is no letter of this number.
    Unknown,
    /// It stays a dead letter, for this reason.
    Failed(String),
}

impl fmt::Display for Retried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queued => f.write_str("queued: it is stored unless the store has a newer value"),
            Self::Overtaken => f.write_str("overtaken: the key has a newer value"),
            Self::Unknown => f.write_str("unknown"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

impl Cache {
    /// Takes a dead letter up again, if what the store has is still older (SEMANTICS 17).
    pub async fn retry_dead_letter(&self, id: u64) -> Retried {
        self.try_retry(id).await.unwrap_or_else(Retried::Failed)
    }

    async fn try_retry(&self, id: u64) -> Result<Retried, String> {
        let Some(behind) = self.policies().behind() else { return Ok(Retried::Unknown) };
        let letters = behind.dead_letters();
        let letter = letters.read(id).map_err(|why| why.to_string())?;
        let Some(letter) = letter else { return Ok(Retried::Unknown) };
        let (db, key) = (usize::from(letter.db), letter.key);
        let namespace = self.policies().of(db, &key);
        let found = namespace.and_then(|found| Some((found.line.as_ref()?, found.store.as_ref()?)));
        let (line, (_, store)) = found.ok_or("no namespace writes the key behind any more")?;
        let stored = store.load(std::slice::from_ref(&key)).await.map_err(|why| why.to_string())?;
        let stored = stored.into_iter().flatten().next().map_or(0, |record| record.version);
        self.0.note_version(stored);
        let retried = if stored >= letter.change.version() {
            Retried::Overtaken
        } else {
            let need = Journal::cost(key.len(), letter.change.value_len());
            let room = behind.journal().reserve(need, PATIENCE).await;
            let mut room = room.map_err(|why| why.to_string())?;
            let hash = self.memory().hash(&key);
            let release = Release::default();
            let queued = self.0.holding(&[hash], |tx| {
                if line.has(&key) {
                    return Ok(Retried::Overtaken);
                }
                let update = Update::of(&key, &letter.change);
                let position = line.append_if_newer(&mut room, update, self.clock().now())?;
                release.wait_for(position);
                // The copy is of what the store has.
                let key = StagedKey::from_slice(&key);
                let gone = Change { db, hash, key, entry: None, is_retiming: false };
                let held = tx.publish(gone);
                debug_assert!(held.is_ok(), "its stripe is held");
                Ok::<_, crate::journal::JournalError>(Retried::Queued)
            });
            let queued = queued.map_err(|why| why.to_string())?;
            self.account_unflushed();
            self.released(&release).await.map_err(|why| why.text().to_owned())?;
            queued
        };
        letters.remove(id).map_err(|why| why.to_string())?;
        Ok(retried)
    }
}
