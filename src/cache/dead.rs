//! Dead letters: shown, dropped, and tried once more.
//!
//! Each is a file, and there may be very many: the files are dealt with on the background runtime, some at
//! a time, so that no worker waits for them.

use std::{fmt, io, time::Duration};

use super::{
    Cache,
    release::Release,
    tx::{Change, StagedKey},
};
use crate::{
    journal::Journal,
    policy::behind::{
        Update,
        dead::{DeadLetters, Letter},
    },
};

/// How long room in the journal is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many letters are read or removed in one go.
const AT_ONCE: usize = 256;

/// A letter that was read, and the length of its value.
type ReadLetter = (u64, io::Result<(Letter, usize)>);

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
    /// The numbers of all dead letters, the oldest first.
    ///
    /// # Errors
    /// If their directory can't be read.
    pub async fn dead_letter_ids(&self) -> io::Result<Vec<u64>> {
        self.with_letters(DeadLetters::ids).await
    }

    /// Reads dead letters: each with its number, and without its value but with that one's length; or why it
    /// can't be read. Those that are gone are left out.
    ///
    /// # Errors
    /// If the process ends.
    pub async fn read_dead_letters(&self, ids: &[u64]) -> io::Result<Vec<ReadLetter>> {
        let read_one = |letters: &DeadLetters, id| {
            let mut letter = letters.read(id)?;
            let value_len = letter.as_mut().map_or(0, Letter::take_value);
            Ok(letter.map(|letter| (letter, value_len)))
        };
        let mut found = Vec::new();
        for ids in ids.chunks(AT_ONCE) {
            let ids = ids.to_vec();
            let read = move |letters: &DeadLetters| {
                let read = |id| Some((id, read_one(letters, id).transpose()?));
                Ok(ids.into_iter().filter_map(read).collect::<Vec<_>>())
            };
            found.extend(self.with_letters(read).await?);
        }
        Ok(found)
    }

    /// Forgets dead letters; says how many of these there were.
    ///
    /// # Errors
    /// If one can't be removed; others may be gone.
    pub async fn drop_dead_letters(&self, ids: &[u64]) -> io::Result<usize> {
        let mut count = 0;
        for ids in ids.chunks(AT_ONCE) {
            let ids = ids.to_vec();
            count += self.with_letters(move |letters| letters.remove_all(&ids)).await?;
        }
        Ok(count)
    }

    /// Does something with the files of the letters, if there may be any.
    async fn with_letters<T: Default + Send + 'static>(
        &self,
        act: impl FnOnce(&DeadLetters) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let Some(behind) = self.policies().behind() else { return Ok(T::default()) };
        let letters = behind.dead_letters().clone();
        let acting = self.0.runtime().spawn_blocking(move || act(&letters));
        acting.await.map_err(io::Error::other)?
    }

    /// Takes a dead letter up again, if what the store has is still older (SEMANTICS 17).
    pub async fn retry_dead_letter(&self, id: u64) -> Retried {
        self.try_retry(id).await.unwrap_or_else(Retried::Failed)
    }

    async fn try_retry(&self, id: u64) -> Result<Retried, String> {
        let Some(behind) = self.policies().behind() else { return Ok(Retried::Unknown) };
        let letter = self.with_letters(move |letters| letters.read(id)).await;
        let Some(letter) = letter.map_err(|why| why.to_string())? else {
            return Ok(Retried::Unknown);
        };
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
            self.0.account_unflushed();
            self.released(&release).await.map_err(|why| why.text().to_owned())?;
            queued
        };
        let removed = self.with_letters(move |letters| letters.remove(id)).await;
        removed.map_err(|why| why.to_string())?;
        Ok(retried)
    }
}
