//! A test tool: any store, with faults in front of it.
//!
//! [`faulty`] gives the store and a handle, [`Faults`], by which a test makes calls fail, lose their
//! answers, hang or take long, and learns which calls came. It counts every call, also those that
//! fail or hang. What it notes of keys is bounded, so that it may stand before a long load.
//!
//! [`Regular`] faults come by themselves: with them an application can be tried on a store that fails.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Applied, BoxFuture, Change, Record, Store, StoreError};

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

/// Faults that come by themselves, to loads and to applies, each counted by itself; the same at every
/// run. 0 is never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regular {
    /// Each n-th call fails, and doesn't reach the store.
    pub fail_every: u64,
    /// This percentage of the calls fails, by a chance that `seed` decides.
    pub fail_percent: u8,
    /// Decides which calls fail.
    pub seed: u64,
    /// Each n-th call hangs before it reaches the store, and never does.
    pub hang_every: u64,
    /// How long a call hangs before it fails.
    pub hang_for: Duration,
    /// How much longer each call takes.
    pub delay: Duration,
    /// The lag that the store tells of, whatever it is.
    pub lag: Option<Duration>,
}

impl Default for Regular {
    fn default() -> Self {
        Self {
            fail_every: 0,
            fail_percent: 0,
            seed: 0,
            hang_every: 0,
            hang_for: Duration::from_secs(10),
            delay: Duration::ZERO,
            lag: None,
        }
    }
}

impl Regular {
    fn hangs(&self, number: u64) -> bool {
        self.hang_every != 0 && number.is_multiple_of(self.hang_every)
    }

    fn fails(&self, number: u64) -> bool {
        let by_chance = || (mix(self.seed ^ mix(number)) % 100) < u64::from(self.fail_percent);
        self.fail_every != 0 && number.is_multiple_of(self.fail_every) || by_chance()
    }
}

/// A number that looks like chance (splitmix64).
fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
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
    regular: Regular,
    loaded: Vec<Bytes>,
    applied: Vec<Bytes>,
    refused: HashSet<Bytes>,
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

    /// Changes of this key are refused until [`Faults::clear`], and with them all of their call.
    pub fn refuse(&self, key: &[u8]) {
        self.0.state.lock().refused.insert(Bytes::copy_from_slice(key));
    }

    /// No call fails any more, none is delayed, and those that hang go on.
    pub fn clear(&self) {
        let mut state = self.0.state.lock();
        state.plans.clear();
        state.refused.clear();
        state.delays = Default::default();
        drop(state);
        [Op::Load, Op::Apply, Op::Ping].into_iter().for_each(|op| self.release(op));
    }

    /// Every call of `op` from now on takes this much longer.
    pub fn delay(&self, op: Op, delay: Duration) {
        self.0.state.lock().delays[op as usize] = delay;
    }

    /// From now on there are these faults, too.
    pub fn regularly(&self, regular: Regular) {
        self.0.state.lock().regular = regular;
    }

    /// The lag that the store tells of; None: what the store behind it tells.
    pub fn set_lag(&self, lag: Option<Duration>) {
        self.0.state.lock().regular.lag = lag;
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
        let (mut delay, regular) = {
            let state = self.0.state.lock();
            (state.delays[op as usize], (op != Op::Ping).then(|| state.regular.clone()))
        };
        delay += regular.as_ref().map_or(Duration::ZERO, |regular| regular.delay);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match regular {
            Some(regular) if regular.hangs(number) => {
                tokio::time::sleep(regular.hang_for).await;
                Err(StoreError::Timeout("it was made to hang".into()))
            }
            Some(regular) if regular.fails(number) => {
                Err(StoreError::Down("it was made to fail".into()))
            }
            _ => self.verdict(op, number),
        }
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

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(async move {
            let lost = self.faults.enter(Op::Apply).await?;
            let is_refused = |key: &Bytes| self.faults.0.state.lock().refused.contains(key);
            if changes.iter().any(|(key, _)| is_refused(key)) {
                return Err(StoreError::Refused("not this key".into()));
            }
            let overtaken = self.inner.apply(changes).await?;
            note(&mut self.faults.0.state.lock().applied, changes.iter().map(|(key, _)| key));
            lost.map_or(Ok(overtaken), Err)
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

    fn single_loads(&self) -> Option<usize> {
        self.inner.single_loads()
    }

    fn kind(&self) -> &'static str {
        "faulty"
    }

    fn part(&self, key: &[u8]) -> Result<u32, StoreError> {
        self.inner.part(key)
    }

    fn parts(&self) -> u32 {
        self.inner.parts()
    }

    fn lag(&self) -> BoxFuture<'_, Option<Duration>> {
        let told = self.faults.0.state.lock().regular.lag;
        Box::pin(async move {
            match told {
                Some(lag) => Some(lag),
                None => self.inner.lag().await,
            }
        })
    }

    fn for_writers(&self) -> Option<Arc<dyn Store>> {
        let inner = self.inner.for_writers()?;
        Some(Arc::new(Self { inner, faults: self.faults.clone() }))
    }

    fn report(&self) -> Vec<(String, String)> {
        self.inner.report()
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
    #[test]
    fn regular_faults_come_by_themselves_and_at_every_run_alike() {
        let run = |regular: Regular| {
            let (store, faults) = faulty(crate::store::memory());
            faults.regularly(regular);
            let load = |_| block_on(store.load(&[key("a")])).is_err();
            let failed: Vec<bool> = (0..200).map(load).collect();
            block_on(store.ping()).unwrap();
            failed
        };
        let every = run(Regular { fail_every: 3, ..Regular::default() });
        assert_eq!(every[..6], [false, false, true, false, false, true]);
        let by_chance = |seed| run(Regular { fail_percent: 30, seed, ..Regular::default() });
        assert_eq!(by_chance(1), by_chance(1));
        assert_ne!(by_chance(1), by_chance(2));
        let count = by_chance(1).iter().filter(|failed| **failed).count();
        assert!((40..80).contains(&count), "{count}");
        let hang_for = Duration::from_millis(1);
        let hang = run(Regular { hang_every: 2, hang_for, ..Regular::default() });
        assert_eq!(hang[..4], [false, true, false, true]);
    }
}
