//! A test tool: any store, with faults in front of it.
//!
//! [`faulty`] gives the store and a handle, [`Faults`], by which a test makes calls fail, lose their
//! answers, hang or take long, and learns which calls came. It counts every call, also those that
//! fail or hang. What it notes of keys is bounded, so that it may stand before a long load.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{BoxFuture, Change, Record, Store, StoreError};

/// Keys noted at most, of loads and of applies each; later ones are counted by call only.
const NOTED: usize = 1 << 20;

/// A method of [`Store`] that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// [`Store::load`].
    Load,
    /// [`Store::apply`].
    Apply,
    /// [`Store::ping`].
    Ping,
}

/// Puts faults in front of `inner`; there are none until the handle says so.
pub fn faulty(inner: Arc<dyn Store>) -> (Arc<dyn Store>, Faults) {
    let faults = Faults(Arc::default());
    (Arc::new(FaultyStore { inner, faults: faults.clone() }), faults)
}

/// What is to fail: calls `from..from + times` of `op`, counted as [`Faults::calls`] counts.
#[derive(Debug)]
struct Plan {
    op: Op,
    from: u64,
    times: u64,
    error: StoreError,
    /// The call is done first, and only its answer is lost.
    late: bool,
}

/// What the store has been told and has seen.
#[derive(Default)]
struct State {
    plans: Vec<Plan>,
    delays: [Duration; 3],
    loaded: Vec<Bytes>,
    applied: Vec<Bytes>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    calls: [watch::Sender<u64>; 3],
    held: [watch::Sender<bool>; 3],
}

/// The handle of a [`faulty`] store; clones are the same handle.
#[derive(Clone)]
pub struct Faults(Arc<Shared>);

impl Faults {
    /// The next `times` calls of `op` fail, and don't reach the store.
    pub fn fail_next(&self, op: Op, times: u64, error: StoreError) {
        self.plan(op, 1, times, error, false);
    }

    /// The `n`-th call of `op` from now fails, and doesn't reach the store; 1 is the next one.
    pub fn fail_nth(&self, op: Op, n: u64, error: StoreError) {
        self.plan(op, n, 1, error, false);
    }

    /// All calls of `op` fail until [`Faults::clear`].
    pub fn fail_all(&self, op: Op, error: StoreError) {
        self.plan(op, 1, u64::MAX, error, false);
    }

    /// The next `times` calls of `op` reach the store and are done, but answer with `error`: an
    /// outcome that the caller can't know (SEMANTICS 15).
    pub fn lose_answers(&self, op: Op, times: u64, error: StoreError) {
        self.plan(op, 1, times, error, true);
    }

    /// No call fails any more, none is delayed, and those that hang go on.
    pub fn clear(&self) {
        let mut state = self.0.state.lock();
        state.plans.clear();
        state.delays = Default::default();
        drop(state);
        [Op::Load, Op::Apply, Op::Ping].into_iter().for_each(|op| self.release(op));
    }

    /// Every call of `op` from now on takes this much longer.
    pub fn delay(&self, op: Op, delay: Duration) {
        self.0.state.lock().delays[op as usize] = delay;
    }

    /// Calls of `op` hang before they reach the store, until [`Faults::release`]. One whose future
    /// is dropped while it hangs never happens.
    pub fn hold(&self, op: Op) {
        self.0.held[op as usize].send_replace(true);
    }

    /// Calls of `op` that hang go on, and new ones don't hang.
    pub fn release(&self, op: Op) {
        self.0.held[op as usize].send_replace(false);
    }

    /// How many calls of `op` have begun.
    pub fn calls(&self, op: Op) -> u64 {
        *self.0.calls[op as usize].borrow()
    }

    /// Waits until at least `n` calls of `op` have begun, those that hang included.
    pub async fn wait_for_calls(&self, op: Op, n: u64) {
        let mut calls = self.0.calls[op as usize].subscribe();
        // It can't be closed: its sender is ours.
        let _ = calls.wait_for(|calls| *calls >= n).await;
    }

    /// The keys that the store was asked for and answered, in the order of the answers.
    pub fn loaded(&self) -> Vec<Bytes> {
        self.0.state.lock().loaded.clone()
    }

    /// The keys of the changes that the store took, in the order in which it acknowledged them.
    pub fn applied(&self) -> Vec<Bytes> {
        self.0.state.lock().applied.clone()
    }

    fn plan(&self, op: Op, nth: u64, times: u64, error: StoreError, late: bool) {
        let from = self.calls(op).saturating_add(nth);
        self.0.state.lock().plans.push(Plan { op, from, times, error, late });
    }

    /// Counts a call, hangs and waits as told, and says how it is to fail.
    async fn enter(&self, op: Op) -> Result<Option<StoreError>, StoreError> {
        let mut number = 0;
        self.0.calls[op as usize].send_modify(|calls| {
            *calls += 1;
            number = *calls;
        });
        let mut held = self.0.held[op as usize].subscribe();
        let _ = held.wait_for(|held| !held).await;
        let delay = self.0.state.lock().delays[op as usize];
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.verdict(op, number)
    }

    /// Err: the call fails; Ok(Some): it is done and its answer lost. The earliest plan decides.
    fn verdict(&self, op: Op, number: u64) -> Result<Option<StoreError>, StoreError> {
        let state = self.0.state.lock();
        let hits =
            |plan: &&Plan| plan.op == op && number >= plan.from && number - plan.from < plan.times;
        match state.plans.iter().find(hits) {
            None => Ok(None),
            Some(plan) if plan.late => Ok(Some(plan.error.clone())),
            Some(plan) => Err(plan.error.clone()),
        }
    }
}

/// Notes keys while there is room.
fn note<'a>(noted: &mut Vec<Bytes>, keys: impl Iterator<Item = &'a Bytes>) {
    noted.extend(keys.take(NOTED.saturating_sub(noted.len())).cloned());
}

/// See the module's doc.
struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Faults,
}

impl Store for FaultyStore {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(async move {
            let lost = self.faults.enter(Op::Load).await?;
            let found = self.inner.load(keys).await?;
            note(&mut self.faults.0.state.lock().loaded, keys.iter());
            lost.map_or(Ok(found), Err)
        })
    }

    fn apply<'a>(
        &'a self,
        changes: &'a [(Bytes, Change)],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let lost = self.faults.enter(Op::Apply).await?;
            self.inner.apply(changes).await?;
            note(&mut self.faults.0.state.lock().applied, changes.iter().map(|(key, _)| key));
            lost.map_or(Ok(()), Err)
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let lost = self.faults.enter(Op::Ping).await?;
            self.inner.ping().await?;
            lost.map_or(Ok(()), Err)
        })
    }

    fn turned_away(&self) -> Option<StoreError> {
        self.inner.turned_away()
    }

    fn kind(&self) -> &'static str {
        "faulty"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        memory::MemoryStore,
        suite::{DEFAULT_CASES, block_on, key, put, suite, text},
    };

    fn down() -> StoreError {
        StoreError::Down("unplugged".into())
    }

    #[test]
    fn without_a_plan_it_is_the_store_behind_it() {
        suite(DEFAULT_CASES, |clock| faulty(Arc::new(MemoryStore::new(clock))));
    }

    #[test]
    fn the_planned_calls_fail_and_no_others() {
        let (store, faults) = faulty(crate::store::memory());
        block_on(async {
            faults.fail_nth(Op::Apply, 2, down());
            store.apply(&[put("a", "1", 0, 1)]).await.unwrap();
            assert_eq!(store.apply(&[put("a", "2", 0, 2)]).await, Err(down()));
            store.apply(&[put("b", "3", 0, 3)]).await.unwrap();
            faults.fail_next(Op::Load, 2, down());
            assert_eq!(store.load(&[key("a")]).await, Err(down()));
            assert_eq!(store.load(&[key("a")]).await, Err(down()));
            assert_eq!(text(&*store, "a").await, Some(key("1")));
            faults.fail_all(Op::Ping, down());
            assert_eq!(store.ping().await, Err(down()));
            assert_eq!(store.ping().await, Err(down()));
            faults.clear();
            store.ping().await.unwrap();
        });
        assert_eq!(faults.applied(), [key("a"), key("b")]);
        assert_eq!(faults.loaded(), [key("a")]);
        assert_eq!([Op::Load, Op::Apply, Op::Ping].map(|op| faults.calls(op)), [3, 3, 3]);
    }

    #[test]
    fn a_lost_answer_is_done_all_the_same() {
        let (store, faults) = faulty(crate::store::memory());
        let unknown = StoreError::Timeout("no answer".into());
        block_on(async {
            faults.lose_answers(Op::Apply, 1, unknown.clone());
            assert_eq!(store.apply(&[put("a", "1", 0, 1)]).await, Err(unknown));
            assert_eq!(text(&*store, "a").await, Some(key("1")));
        });
    }

    #[test]
    fn held_calls_wait_for_their_release() {
        let (store, faults) = faulty(crate::store::memory());
        block_on(async {
            faults.hold(Op::Apply);
            let theirs = Arc::clone(&store);
            let call = tokio::spawn(async move { theirs.apply(&[put("a", "1", 0, 1)]).await });
            faults.wait_for_calls(Op::Apply, 1).await;
            assert_eq!(text(&*store, "a").await, None);
            faults.release(Op::Apply);
            call.await.unwrap().unwrap();
            assert_eq!(text(&*store, "a").await, Some(key("1")));
        });
    }

    #[test]
    fn a_delay_lets_time_pass() {
        let (store, faults) = faulty(crate::store::memory());
        let delay = Duration::from_millis(3);
        faults.delay(Op::Ping, delay);
        let began = std::time::Instant::now();
        block_on(store.ping()).unwrap();
        assert!(began.elapsed() >= delay);
    }
}
