//! Settle, for writes that go through: the store first, then memory, then the reply.
//!
//! The store is called on the background runtime by a task that holds the keys' turns, so that a client
//! that goes away neither stops a write halfway nor leaves an older copy in memory. What the store
//! refuses is never seen by anybody; when nobody knows how a write ended, the copies are dropped, and
//! nothing of these keys is cached until the store has answered (SEMANTICS 10, 15, 16). What it passes over
//! for a newer version is sent again before the reply, under a version above that (SEMANTICS 14).

use std::{
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{
    Cache, Inner, Job, Refusal,
    counter::Counters,
    release::Release,
    turns::Turn,
    tx::{Change, Changes, Made, StagedKey, Start, Tx},
};
use crate::{
    error::ClientError,
    journal::{JournalError, Reservation},
    policy::{
        Namespace, NamespaceStats, TtlMeans, Write,
        behind::{Above, Behind, Update},
    },
    store::{self, Overtaken, Store, StoreError},
    tier::entry::EntryRef,
};

/// How often a write is sent again before its reply, where the store has newer versions.
const SENT_AGAIN: usize = 2;

/// What a command's writes are staged in until it has run.
#[derive(Default)]
pub(super) struct Staging {
    pub(super) changes: Changes,
    /// Room in the journal, for those that are written behind.
    pub(super) room: Option<Reservation>,
    /// Whether a store has to take some of them before any is seen.
    pub(super) waits_for_store: bool,
}

/// What goes to a store, and which.
struct Order {
    store: Arc<dyn Store>,
    namespace: usize,
    changes: Vec<(Bytes, store::Change)>,
}

impl Cache {
    /// Takes up what was written behind before, and starts to bring it to the stores.
    pub(super) fn begin_behind(&self) {
        let Some(behind) = self.0.policies.behind() else { return };
        self.0.note_version(behind.ceiling());
        // A copy on disk may be older: the process may have ended between journal and memory.
        behind.keys().iter().for_each(|(db, key)| self.0.forget_key(*db, key));
        self.0.account_unflushed();
        behind.start(self.0.runtime(), Arc::downgrade(&self.0), &self.0.vitals);
    }

    /// Admits a command to the journal that needs so much room, if there is some now; `None`: there isn't.
    pub(super) fn journal_room_now(&self, need: u64) -> Result<Option<Reservation>, Refusal> {
        let Some(behind) = self.0.policies.behind().filter(|_| need > 0) else { return Ok(None) };
        match behind.journal().admit(need) {
            Ok(room) => Ok(Some(room)),
            Err(JournalError::Full) => Ok(None),
            Err(why) => Err(Refusal::Client(why.client_error())),
        }
    }

    /// Takes so much room in the journal, and waits for it; `None`: the command needs none.
    pub(super) async fn journal_room(&self, need: u64) -> Result<Option<Reservation>, ClientError> {
        let Some(behind) = self.0.policies.behind().filter(|_| need > 0) else { return Ok(None) };
        let patience = Duration::from_millis(self.0.journal_patience.load(Relaxed));
        let room = behind.journal().reserve(need, patience).await;
        room.map(Some).map_err(|why| why.client_error())
    }

    /// Brings staged changes to their store and into memory.
    pub(super) async fn settle(
        &self,
        turn: Option<Turn>,
        staging: Staging,
        release: &Release,
    ) -> Result<(), ClientError> {
        let Staging { changes, mut room, .. } = staging;
        let Some(turn) = turn.filter(|_| !changes.is_empty()) else { return Ok(()) };
        let mut staged = last_of_each_key(changes);
        self.0.check_behind(&staged)?;
        let Some(order) = self.0.order(&staged)? else {
            return self.0.publish(staged, room.as_mut(), release);
        };
        // RENAME: what is written behind is safe before the store deletes it here (SEMANTICS 16).
        let deletes =
            |(_, change): &(_, store::Change)| matches!(change, store::Change::Delete { .. });
        if order.changes.iter().all(deletes) && staged.iter().any(|put| self.0.is_put_behind(put)) {
            let (first, rest) = staged.into_iter().partition(|put| self.0.is_put_behind(put));
            self.0.publish(first, room.as_mut(), release)?;
            self.released(release).await?;
            staged = rest;
        }
        let (sender, answer) = oneshot::channel();
        let work = Settlement { cache: self.0.clone(), turn, staged, room, answer: Some(sender) };
        self.0.runtime().spawn(work.carry_out(order));
        let died = |_| Err(Unsettled::Store(StoreError::Timeout("the write's task died".into())));
        let shown = answer.await.unwrap_or_else(died).map_err(|error| error.client_error())?;
        release.take_over(&shown);
        Ok(())
    }
}

/// A command may write a key more than once; the last change is its effect.
fn last_of_each_key(staged: Changes) -> Changes {
    if staged.len() < 2 {
        return staged;
    }
    let mut last = Changes::with_capacity(staged.len());
    let mut seen = std::collections::HashSet::new();
    for change in staged.into_iter().rev() {
        if seen.insert((change.db, change.key.clone())) {
            last.push(change);
        }
    }
    last.reverse();
    last
}

impl Above for Weak<Inner> {
    fn landed(&self) {
        if let Some(inner) = self.upgrade() {
            inner.account_unflushed();
        }
    }

    fn forget(&self, db: usize, key: &Bytes) {
        if let Some(inner) = self.upgrade() {
            inner.forget_key(db, key);
        }
    }

    fn conflict(&self, db: usize, key: &Bytes, stored: u64) -> Option<u64> {
        let inner = self.upgrade()?;
        let namespace = inner.policies.of(db, key)?;
        Some(inner.conflict(namespace, key, stored))
    }
}

impl Inner {
    /// Has what the unflushed changes take counted in memory. No stripe may be held.
    pub(super) fn account_unflushed(&self) {
        let Some(behind) = self.policies.behind() else { return };
        let bytes = behind.bytes();
        if self.unflushed.load(Relaxed) == bytes {
            return;
        }
        let old = self.unflushed.swap(bytes, Relaxed);
        if old != bytes {
            self.memory.account(old, bytes, self.clock.now());
        }
    }

    /// A store has a version of a key that was never issued here (SEMANTICS 14): a newer one.
    fn conflict(&self, namespace: &Namespace, key: &[u8], stored: u64) -> u64 {
        let count = namespace.stats.conflicts.fetch_add(1, Relaxed) + 1;
        // Of many only some are told.
        if count.is_power_of_two() {
            let (prefix, key) = (namespace.prefix.escape_ascii(), key.escape_ascii());
            tracing::warn!(
                "namespace \"{prefix}\": the store has version {stored} of key \"{key}\", which was never \
                 issued here; the newest value is sent again under a newer one ({count} so far)"
            );
        }
        self.note_version(stored);
        self.next_version(self.clock.now())
    }

    /// Brings an order to its store; what that passes over once more, under newer versions.
    async fn send(&self, order: &mut Order) -> Result<(), StoreError> {
        self.cover(&order.changes).await;
        let mut overtaken = order.store.apply(&order.changes).await?;
        for _ in 0..SENT_AGAIN {
            if overtaken.is_empty() {
                return Ok(());
            }
            let namespace = self.policies.at(order.namespace);
            let again = |Overtaken { place, by }| {
                let (key, change) = order.changes.get(place)?;
                let version = self.conflict(namespace, key, by);
                Some((key.clone(), change.clone().with_version(version)))
            };
            order.changes = overtaken.into_iter().filter_map(again).collect();
            self.cover(&order.changes).await;
            // Others of them may be done, and what memory has of these is older than what the store has.
            let partly =
                |why| StoreError::Timeout(format!("a newer version was there, then {why}"));
            overtaken = order.store.apply(&order.changes).await.map_err(partly)?;
        }
        match overtaken.is_empty() {
            true => Ok(()),
            false => Err(StoreError::Timeout("others write newer versions all the time".into())),
        }
    }

    /// Has the journal's ceiling above the versions of changes before anybody sees them. Where the journal has
    /// failed it protects from a clock that is set back no more, and conflicts are what is left.
    async fn cover(&self, changes: &[(Bytes, store::Change)]) {
        let Some(behind) = self.policies.behind() else { return };
        let newest = changes.iter().map(|(_, change)| change.version()).max().unwrap_or(0);
        behind.journal().cover(newest);
        let _ = behind.journal().covered(newest).await;
    }

    /// What a store has to be told of these changes; an error if it concerns two of them, or two parts.
    fn order(&self, staged: &[Change]) -> Result<Option<Order>, ClientError> {
        let mut order: Option<((&str, u32), Order)> = None;
        let now = self.clock.now();
        for change in staged {
            let Some(index) = self.policies.index_of(change.db, &change.key) else { continue };
            let namespace = self.policies.at(index);
            let Some((name, store)) = namespace.store.as_ref() else { continue };
            if !self.is_in_order(change) {
                continue;
            }
            let part = store.part(&change.key).map_err(|error| error.client_error())?;
            let (first, order) = order.get_or_insert_with(|| {
                let changes = Vec::new();
                ((name, part), Order { store: store.clone(), namespace: index, changes })
            });
            if *first != (&**name, part) {
                let text = "CROSSSTORE the command writes keys of more than one store";
                return Err(ClientError::new(text));
            }
            // As it is now, whatever its deadline: the client is answered by what the store says.
            order.changes.push(self.update(namespace, change, now).change(0));
        }
        Ok(order.map(|(_, order)| order))
    }

    /// Refuses keys that are written behind to a store that has no place for them: the store would refuse
    /// them every time (SEMANTICS 17). Nothing has changed by then.
    fn check_behind(&self, staged: &[Change]) -> Result<(), ClientError> {
        for change in staged {
            let Some(namespace) = self.policies.of(change.db, &change.key) else { continue };
            if let (Some(_), Some((_, store))) = (&namespace.line, &namespace.store)
                && !is_for_cache(namespace, change)
            {
                store.part(&change.key).map_err(|error| error.client_error())?;
            }
        }
        Ok(())
    }

    /// Whether a change has to go to a store before it is seen: its namespace writes through, and there is
    /// something in it for the store.
    fn is_in_order(&self, change: &Change) -> bool {
        let namespace = self.policies.of(change.db, &change.key);
        namespace.is_some_and(|found| found.writes_to_store() && !is_for_cache(found, change))
    }

    /// Whether a change gives a key that is written behind a value.
    fn is_put_behind(&self, change: &Change) -> bool {
        let namespace = self.policies.of(change.db, &change.key);
        change.entry.is_some() && namespace.is_some_and(|found| found.write == Write::Behind)
    }

    /// What a store is told of a change. It gets a version here: under the stripe, or in the key's turn.
    fn update(&self, namespace: &Namespace, change: &Change, now: u64) -> Update {
        let version = self.next_version(now);
        let Some(entry) = change.entry.as_ref().map(EntryRef::get) else {
            return Update::delete(&change.key, version);
        };
        let deadline = match namespace.ttl_means {
            TtlMeans::Data => entry.deadline(),
            TtlMeans::Cache => 0,
        };
        Update::put(entry, deadline, version)
    }

    /// Puts what the attempt has staged into the journal and then into memory, while its stripes are held:
    /// so that journal, overlay and memory have one order (SEMANTICS 11). Notes what the reply waits for.
    pub(super) fn sequence(
        &self,
        behind: &Behind,
        tx: &mut Tx<'_>,
        room: Option<&mut Reservation>,
    ) -> Result<(), ClientError> {
        let job = tx.job();
        if let Some(room) = room {
            let staged = last_of_each_key(tx.take_staged());
            self.check_behind(&staged)?;
            self.publish_in(tx, staged, true, Some(room), job.release)?;
        }
        if behind.syncs_first() {
            for (key, _) in job.keys {
                let namespace = self.policies.of(job.db, key.bytes);
                let line = namespace.and_then(|namespace| namespace.line.as_ref());
                if let Some(position) = line.and_then(|line| line.unsynced(key.bytes)) {
                    job.release.wait_for(position);
                }
            }
        }
        Ok(())
    }

    /// Brings changes into memory, all at once; those that are written behind into the journal first.
    fn publish(
        &self,
        staged: Changes,
        room: Option<&mut Reservation>,
        release: &Release,
    ) -> Result<(), ClientError> {
        let now = self.clock.now();
        let cost = |change: &Change| change.entry.as_ref().map_or(0, |entry| entry.get().size());
        let stripe = staged.first().map_or(0, |change| self.memory.stripe_of(change.hash));
        // The store has them: without room they are dropped instead.
        let has_room =
            self.memory.make_room(staged.iter().map(cost).sum(), stripe, now, &[]).is_ok();
        let hashes: Vec<u64> = staged.iter().map(|change| change.hash).collect();
        let quotas: SmallVec<[usize; 1]> = staged
            .iter()
            .filter_map(|change| Some(self.policies.quota_of(change.db, &change.key)?.0))
            .collect();
        let published =
            self.holding(&hashes, |tx| self.publish_in(tx, staged, has_room, room, release));
        for namespace in quotas {
            // What the policy doesn't let go stays: it was seen that there is room.
            let _ = self.memory.make_room_in(namespace, 0, stripe, now, &hashes);
        }
        published
    }

    /// Does something while the stripes of these keys are held.
    pub(super) fn holding<T>(&self, hashes: &[u64], act: impl FnOnce(&mut Tx<'_>) -> T) -> T {
        let (counters, release) = (Counters::default(), Release::default());
        let job = Job {
            db: 0,
            now: self.clock.now(),
            keys: &[],
            writes: true,
            strict: true,
            room: 0,
            touch: false,
            counters: &counters,
            release: &release,
        };
        let start =
            Start { cache: self, job: &job, pins: &[], staged: None, made: Made::default() };
        act(&mut Tx::begin(start, hashes.iter().copied()))
    }

    /// Brings changes into memory as [`Self::publish`] does, where the stripes of all of them are held.
    fn publish_in(
        &self,
        tx: &mut Tx<'_>,
        staged: Changes,
        has_room: bool,
        mut room: Option<&mut Reservation>,
        release: &Release,
    ) -> Result<(), ClientError> {
        let (mut failed, now) = (None, tx.now());
        for change in staged {
            let namespace = self.policies.of(change.db, &change.key);
            let mut is_kept = has_room && failed.is_none();
            if let Some(namespace) = namespace {
                is_kept &= namespace.write != Write::Around || is_for_cache(namespace, &change);
                if let (Some(line), Some(room)) = (&namespace.line, &mut room)
                    && !is_for_cache(namespace, &change)
                    && failed.is_none()
                {
                    match line.append(room, self.update(namespace, &change, now), now) {
                        Ok(position) if line.is_synced(position) => {}
                        Ok(position) => release.wait_for(position),
                        // What the journal has of the others nobody knows: no copy may stay.
                        Err(why) => (failed, is_kept) = (Some(why.client_error()), false),
                    }
                }
            }
            let entry = change.entry.filter(|_| is_kept);
            let held = tx.publish(Change { entry, ..change });
            debug_assert!(held.is_ok(), "the stripes of all changes are held");
        }
        failed.map_or(Ok(()), Err)
    }

    /// Drops the copies of keys with a store, since nobody knows what it has.
    fn forget(&self, staged: &[Change]) {
        let is_written = |change: &&Change| {
            let namespace = self.policies.of(change.db, &change.key);
            namespace.is_some_and(Namespace::writes_to_store)
        };
        let written = staged.iter().filter(is_written);
        self.drop_copies(written.map(|change| (change.db, &change.key)));
    }

    /// Drops the copy of a key: what is below has something else.
    fn forget_key(&self, db: usize, key: &Bytes) {
        self.drop_copies([(db, key)].into_iter());
    }

    /// Drops the copies of keys that a store is being told of: by the next start it may have newer values,
    /// of which nobody has heard (SEMANTICS 15).
    pub(super) fn forget_unsettled(&self) {
        self.drop_copies(self.turns.places().into_iter());
    }

    fn drop_copies<K: AsRef<[u8]>>(&self, keys: impl Iterator<Item = (usize, K)>) {
        let gone = |(db, key): (usize, K)| {
            let key = key.as_ref();
            let (hash, key) = (self.memory.hash(key), StagedKey::from_slice(key));
            Change { db, hash, key, entry: None, is_retiming: false }
        };
        let dropped = self.publish(keys.map(gone).collect(), None, &Release::default());
        debug_assert!(dropped.is_ok(), "nothing is journaled");
    }
}

/// Whether a change is of the cached copy alone: a deadline that limits only that (SEMANTICS 13).
fn is_for_cache(namespace: &Namespace, change: &Change) -> bool {
    change.is_retiming && namespace.ttl_means == TtlMeans::Cache
}

/// A write under way. When it is dropped unfinished (the store panicked), the copies go.
struct Settlement {
    cache: Arc<Inner>,
    turn: Turn,
    staged: Changes,
    /// Room in the journal, for changes that are written behind.
    room: Option<Reservation>,
    answer: Option<oneshot::Sender<Result<Release, Unsettled>>>,
}

/// Why a write isn't acknowledged.
enum Unsettled {
    Store(StoreError),
    Journal(ClientError),
}

impl Unsettled {
    fn client_error(&self) -> ClientError {
        match self {
            Self::Store(error) => error.client_error(),
            Self::Journal(error) => error.clone(),
        }
    }
}

impl Settlement {
    async fn carry_out(mut self, order: Order) {
        let (namespace, count) = (order.namespace, order.changes.len());
        let result = self.tell(order).await;
        let stats = &self.cache.policies.at(namespace).stats;
        let release = Release::default();
        let result = match result {
            Ok(()) => {
                NamespaceStats::add(&stats.writes, count as u64);
                let (staged, room) = (std::mem::take(&mut self.staged), self.room.as_mut());
                self.cache.publish(staged, room, &release).map_err(Unsettled::Journal)
            }
            Err(error) => {
                NamespaceStats::add(&stats.write_errors, 1);
                match error {
                    StoreError::Timeout(_) => self.cache.forget(&self.staged),
                    // Refused or not reached: what memory has is still what the store has.
                    _ => self.staged.clear(),
                }
                Err(Unsettled::Store(error))
            }
        };
        self.answer(result.map(|()| release));
    }

    /// Calls the store. Past the time limit the copies go and the client is told that the outcome is
    /// unknown; when the store has answered at last, the copies go again.
    async fn tell(&mut self, mut order: Order) -> Result<(), StoreError> {
        let cache = self.cache.clone();
        let call = cache.send(&mut order);
        tokio::pin!(call);
        if let Ok(result) = tokio::time::timeout(self.cache.store_timeout(), &mut call).await {
            return result;
        }
        let late = || StoreError::Timeout("the write took too long".into());
        self.turn.set_unknown();
        self.cache.forget(&self.staged);
        self.answer(Err(Unsettled::Store(late())));
        let _ = call.await;
        Err(late())
    }

    /// Tells the client, if it hasn't been told. It may be gone.
    fn answer(&mut self, result: Result<Release, Unsettled>) {
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(result);
        }
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if !self.staged.is_empty() {
            self.cache.forget(&self.staged);
        }
    }
}
