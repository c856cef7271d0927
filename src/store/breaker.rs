//! A circuit breaker around a store: while the store fails, it isn't asked, and its callers are told at
//! once (Nygard, *Release It!*; states and rates as Resilience4j has them,
//! <https://resilience4j.readme.io/docs/circuitbreaker>).
//!
//! ```text
//!            too many of the last calls failed, or were slow
//!   closed ---------------------------------------------------> open
//!     ^                                                          |
//!     | all probes succeeded              after `open_for`, with the next call
//!     |                      a probe failed                      v
//!     +------------ half-open ------------------------------> open again
//! ```
//!
//! Only what is the store's own fault counts (SEMANTICS 17): a refusal is an answer. A call that is given up,
//! or is still without an answer after `limit`, has failed. Calls that began before the state changed
//! count no more.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Applied, BoxFuture, Change, Record, Store, StoreError};
use crate::clock::Clock;

/// When a breaker opens and closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many of the last calls are looked at.
    pub window: usize,
    /// With fewer calls than this nothing is concluded.
    pub least_calls: usize,
    /// It opens when this percentage of them has failed.
    pub failure_percent: u8,
    /// A call that takes this long is slow.
    pub slow: Duration,
    /// It opens when this percentage of them was slow; above 100: never.
    pub slow_percent: u8,
    /// How long it stays open before it lets probes through.
    pub open_for: Duration,
    /// Probes that have to succeed, one after the other or at once, before it closes.
    pub probes: usize,
    /// A call without an answer for so long has failed, even if it goes on.
    pub limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: 100,
            least_calls: 10,
            failure_percent: 50,
            slow: Duration::from_secs(1),
            slow_percent: 100,
            open_for: Duration::from_secs(5),
            probes: 3,
            limit: Duration::from_secs(2),
        }
    }
}

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It lets them through.
    Closed,
    /// It refuses them.
    Open,
    /// It lets a few through, to see.
    HalfOpen,
}

impl State {
    /// The name, as INFO and the log have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Calls that were let through and have ended, or are given up.
    pub calls: u64,
    /// Those that failed by the store's fault.
    pub failures: u64,
    /// Those that were slow.
    pub slow: u64,
    /// Calls that were refused.
    pub rejected: u64,
    /// How often it opened.
    pub opened: u64,
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    failures: AtomicU64,
    slow: AtomicU64,
    rejected: AtomicU64,
    opened: AtomicU64,
}

/// How a call ended.
#[derive(Clone, Copy)]
struct Outcome {
    failed: bool,
    slow: bool,
}

/// The last outcomes, and how many of them were bad.
#[derive(Default)]
struct Window {
    outcomes: VecDeque<Outcome>,
    failed: usize,
    slow: usize,
}

impl Window {
    fn push(&mut self, outcome: Outcome, most: usize) {
        self.outcomes.push_back(outcome);
        self.failed += usize::from(outcome.failed);
        self.slow += usize::from(outcome.slow);
        if self.outcomes.len() > most
            && let Some(oldest) = self.outcomes.pop_front()
        {
            self.failed -= usize::from(oldest.failed);
            self.slow -= usize::from(oldest.slow);
        }
    }
}

struct Inner {
    state: State,
    /// When it opened, in unix milliseconds; `None`: by hand, and it stays so.
    since: Option<u64>,
    /// Rises with each change of state, so that what began before it doesn't count.
    epoch: u64,
    window: Window,
    /// Probes that were let through, and those that succeeded.
    probing: usize,
    passed: usize,
}

struct Shared {
    name: String,
    settings: Settings,
    clock: Clock,
    inner: Mutex<Inner>,
    counters: Counters,
}

/// A breaker; clones are the same one.
#[derive(Clone)]
pub struct Breaker(Arc<Shared>);

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Breaker({}, {})", self.0.name, self.state().name())
    }
}

/// Puts a breaker in front of `inner`; `name` is what the log and errors call the store.
pub fn guarded(
    inner: Arc<dyn Store>,
    name: &str,
    settings: Settings,
    clock: Clock,
) -> (Arc<dyn Store>, Breaker) {
    let breaker = Breaker::new(name, settings, clock);
    (Arc::new(Guarded { inner, breaker: breaker.clone() }), breaker)
}

impl Breaker {
    fn new(name: &str, settings: Settings, clock: Clock) -> Self {
        let inner = Inner {
            state: State::Closed,
            since: None,
            epoch: 0,
            window: Window::default(),
            probing: 0,
            passed: 0,
        };
        Self(Arc::new(Shared {
            name: name.to_owned(),
            settings,
            clock,
            inner: Mutex::new(inner),
            counters: Counters::default(),
        }))
    }

    /// The store's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it does with calls now.
    pub fn state(&self) -> State {
        self.0.inner.lock().state
    }

    /// The figures since the start, or since they were reset.
    pub fn figures(&self) -> Figures {
        let counters = &self.0.counters;
        Figures {
            calls: counters.calls.load(Relaxed),
            failures: counters.failures.load(Relaxed),
            slow: counters.slow.load(Relaxed),
            rejected: counters.rejected.load(Relaxed),
            opened: counters.opened.load(Relaxed),
        }
    }

    /// Opens it by hand: it stays open until it is closed by hand.
    pub fn open(&self) {
        self.turn(&mut self.0.inner.lock(), State::Open, "by hand");
    }

    /// Closes it by hand, and forgets the last calls.
    pub fn close(&self) {
        self.turn(&mut self.0.inner.lock(), State::Closed, "by hand");
    }

    /// Closes it by hand, and forgets all that it has counted.
    pub fn reset(&self) {
        self.close();
        let Counters { calls, failures, slow, rejected, opened } = &self.0.counters;
        for counter in [calls, failures, slow, rejected, opened] {
            counter.store(0, Relaxed);
        }
    }

    fn turn(&self, inner: &mut Inner, state: State, why: &str) {
        let Shared { name, counters, .. } = &*self.0;
        if inner.state != state {
            let (old, new) = (inner.state.name(), state.name());
            if state == State::Open {
                tracing::warn!("store {name}: its breaker was {old} and is {new}: {why}");
            } else {
                tracing::info!("store {name}: its breaker was {old} and is {new}: {why}");
            }
        }
        if state == State::Open {
            counters.opened.fetch_add(1, Relaxed);
        }
        let epoch = inner.epoch + 1;
        let window = Window::default();
        *inner = Inner { state, since: None, epoch, window, probing: 0, passed: 0 };
    }

    /// Lets a call through, or not.
    fn begin(&self) -> Result<Call<'_>, StoreError> {
        let Shared { settings, clock, .. } = &*self.0;
        let now = clock.now();
        let mut inner = self.0.inner.lock();
        let is_over =
            |since: u64| now.saturating_sub(since) >= settings.open_for.as_millis() as u64;
        if inner.state == State::Open && inner.since.is_some_and(is_over) {
            self.turn(&mut inner, State::HalfOpen, "it was open long enough");
        }
        match inner.state {
            State::Closed => {}
            State::HalfOpen if inner.probing < settings.probes => inner.probing += 1,
            state => return Err(self.reject(state)),
        }
        Ok(Call { breaker: self, epoch: inner.epoch, begun: now, has_ended: false })
    }

    /// Counts a call that isn't let through, and says why.
    fn reject(&self, state: State) -> StoreError {
        self.0.counters.rejected.fetch_add(1, Relaxed);
        StoreError::Down(format!("the breaker of store {} is {}", self.0.name, state.name()))
    }

    /// Why a call wouldn't be let through now.
    fn turned_away(&self) -> Option<StoreError> {
        let Shared { settings, clock, .. } = &*self.0;
        let inner = self.0.inner.lock();
        let lasts = match inner.state {
            State::Closed => false,
            State::HalfOpen => inner.probing >= settings.probes,
            State::Open => inner.since.is_none_or(|since| {
                clock.now().saturating_sub(since) < settings.open_for.as_millis() as u64
            }),
        };
        lasts.then(|| self.reject(inner.state))
    }

    fn end(&self, call: &Call<'_>, failed: bool) {
        let Shared { settings, clock, counters, .. } = &*self.0;
        let now = clock.now();
        let took = Duration::from_millis(now.saturating_sub(call.begun));
        let outcome = Outcome { failed, slow: took >= settings.slow };
        counters.calls.fetch_add(1, Relaxed);
        counters.failures.fetch_add(u64::from(outcome.failed), Relaxed);
        counters.slow.fetch_add(u64::from(outcome.slow), Relaxed);
        let mut inner = self.0.inner.lock();
        if call.epoch != inner.epoch {
            return;
        }
        let why = match inner.state {
            State::Closed => {
                inner.window.push(outcome, settings.window);
                verdict(&inner.window, settings)
            }
            State::HalfOpen if outcome.failed => Some("a probe failed".to_owned()),
            State::HalfOpen => {
                inner.passed += 1;
                if inner.passed >= settings.probes {
                    self.turn(&mut inner, State::Closed, "the store answers again");
                }
                None
            }
            State::Open => None,
        };
        if let Some(why) = why {
            self.turn(&mut inner, State::Open, &why);
            inner.since = Some(now);
        }
    }
}

/// Why the last calls open a breaker, if they do.
fn verdict(window: &Window, settings: &Settings) -> Option<String> {
    let calls = window.outcomes.len();
    let reaches = |count: usize, percent: u8| count * 100 >= calls * usize::from(percent);
    if calls < settings.least_calls.min(settings.window) {
        None
    } else if reaches(window.failed, settings.failure_percent) {
        Some(format!("{} of the last {calls} calls failed", window.failed))
    } else if reaches(window.slow, settings.slow_percent) {
        Some(format!("{} of the last {calls} calls were slow", window.slow))
    } else {
        None
    }
}

/// A call under way. One that is dropped was given up.
struct Call<'a> {
    breaker: &'a Breaker,
    epoch: u64,
    begun: u64,
    has_ended: bool,
}

impl Call<'_> {
    fn end(&mut self, failed: bool) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.breaker.end(self, failed);
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.end(true);
    }
}

/// A store behind a breaker.
struct Guarded {
    inner: Arc<dyn Store>,
    breaker: Breaker,
}

impl Guarded {
    async fn watch<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut guard = self.breaker.begin()?;
        let mut call = std::pin::pin!(call);
        let limit = self.breaker.0.settings.limit;
        let result = match tokio::time::timeout(limit, &mut call).await {
            Ok(result) => result,
            Err(_) => {
                guard.end(true);
                // An apply isn't given up: it may still happen.
                call.await
            }
        };
        guard.end(result.as_ref().is_err_and(StoreError::is_stores_fault));
        result
    }
}

impl Store for Guarded {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(self.watch(self.inner.load(keys)))
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(self.watch(self.inner.apply(changes)))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.ping()
    }

    fn turned_away(&self) -> Option<StoreError> {
        self.breaker.turned_away().or_else(|| self.inner.turned_away())
    }

    fn single_loads(&self) -> Option<usize> {
        self.inner.single_loads()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn part(&self, key: &[u8]) -> Result<u32, StoreError> {
        self.inner.part(key)
    }

    fn parts(&self) -> u32 {
        self.inner.parts()
    }

    /// Also while it is open: a replica that isn't asked for its lag would not be asked for anything, and
    /// its breaker would stay open.
    fn lag(&self) -> BoxFuture<'_, Option<Duration>> {
        self.inner.lag()
    }

    fn for_writers(&self) -> Option<Arc<dyn Store>> {
        let inner = self.inner.for_writers()?;
        Some(Arc::new(Self { inner, breaker: self.breaker.clone() }))
    }

    fn report(&self) -> Vec<(String, String)> {
        self.inner.report()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            faulty::{Faults, Op, faulty},
            memory,
            suite::{block_on, key, put, suite},
        },
        *,
    };

    const NOW: u64 = 1_000_000;

    struct Bench {
        store: Arc<dyn Store>,
        faults: Faults,
        breaker: Breaker,
        clock: Clock,
    }

    fn bench(settings: Settings) -> Bench {
        let (inner, faults) = faulty(memory());
        let clock = Clock::manual(NOW);
        let (store, breaker) = guarded(inner, "main", settings, clock.clone());
        Bench { store, faults, breaker, clock }
    }

    impl Bench {
        fn load(&self) -> Result<(), StoreError> {
            block_on(self.store.load(&[key("k")])).map(drop)
        }

        fn loads(&self, count: usize) {
            (0..count).for_each(|_| drop(self.load()));
        }
    }

    fn down() -> StoreError {
        StoreError::Down("no route".into())
    }

    #[test]
    fn a_guarded_store_is_a_store() {
        suite(16, |clock| {
            let inner: Arc<dyn Store> =
                Arc::new(super::super::memory::MemoryStore::new(clock.clone()));
            (guarded(inner, "main", Settings::default(), clock).0, ())
        });
    }

    #[test]
    fn it_opens_when_half_of_the_window_failed_and_not_before() {
        let bench = bench(Settings::default());
        bench.loads(5);
        bench.faults.fail_all(Op::Load, down());
        bench.loads(4);
        assert_eq!((bench.breaker.state(), bench.faults.calls(Op::Load)), (State::Closed, 9));
        bench.loads(1);
        assert_eq!(bench.breaker.state(), State::Open);
        // From now on the store isn't asked.
        let turned_away = bench.store.turned_away();
        let refused = bench.load().expect_err("it is open");
        assert_eq!(refused, StoreError::Down("the breaker of store main is open".into()));
        assert_eq!(turned_away, Some(refused));
        assert_eq!(bench.faults.calls(Op::Load), 10);
        let figures = Figures { calls: 10, failures: 5, slow: 0, rejected: 2, opened: 1 };
        assert_eq!(bench.breaker.figures(), figures);
        bench.clock.set(NOW + 5_000);
        assert_eq!(bench.store.turned_away(), None, "a probe may go");
    }

    #[test]
    fn only_the_last_calls_count() {
        let settings = Settings { window: 10, ..Settings::default() };
        let bench = bench(settings);
        for _ in 0..20 {
            bench.faults.fail_next(Op::Load, 4, down());
            bench.loads(10);
        }
        assert_eq!(bench.breaker.state(), State::Closed);
    }

    /// SEMANTICS 17: *`GET user:abc` on an integer column twenty times opens the breaker for all.*
    #[test]
    fn rule_17_a_refusal_is_an_answer() {
        let bench = bench(Settings::default());
        bench.faults.fail_all(Op::Load, StoreError::Refused("not an integer".into()));
        bench.loads(200);
        assert_eq!((bench.breaker.state(), bench.breaker.figures().failures), (State::Closed, 0));
        bench.faults.fail_all(Op::Apply, StoreError::Timeout("lost".into()));
        for _ in 0..200 {
            let _ = block_on(bench.store.apply(&[put("k", "v", 0, 1)]));
        }
        assert_eq!(bench.breaker.state(), State::Open, "an unknown outcome is the store's fault");
    }

    fn opened() -> Bench {
        let bench = bench(Settings::default());
        bench.faults.fail_all(Op::Load, down());
        bench.loads(10);
        assert_eq!(bench.breaker.state(), State::Open);
        bench
    }

    #[test]
    fn it_recovers_by_probes_alone() {
        let bench = opened();
        bench.faults.clear();
        bench.clock.set(NOW + 4_999);
        assert!(bench.load().is_err());
        bench.clock.set(NOW + 5_000);
        assert!(bench.load().is_ok());
        assert_eq!(bench.breaker.state(), State::HalfOpen);
        bench.loads(2);
        assert_eq!(bench.breaker.state(), State::Closed);
        bench.loads(100);
        assert_eq!(bench.breaker.figures().rejected, 1);
    }

    #[test]
    fn a_probe_that_fails_opens_it_again() {
        let bench = opened();
        bench.clock.set(NOW + 5_000);
        assert_eq!(bench.load(), Err(down()));
        assert_eq!(bench.breaker.state(), State::Open);
        bench.clock.set(NOW + 9_999);
        assert_eq!(bench.faults.calls(Op::Load), 11);
        assert!(bench.load().is_err());
        assert_eq!(bench.faults.calls(Op::Load), 11, "it waits anew");
    }

    #[test]
    fn only_so_many_probes_are_under_way_and_one_given_up_has_failed() {
        let bench = opened();
        bench.faults.clear();
        bench.clock.set(NOW + 5_000);
        let probes: Vec<_> = (0..3).map(|_| bench.breaker.begin().expect("a probe")).collect();
        assert!(bench.breaker.begin().is_err());
        drop(probes);
        assert_eq!(bench.breaker.state(), State::Open);
    }

    #[test]
    fn what_began_before_a_change_does_not_count() {
        let bench = bench(Settings::default());
        let mut late = bench.breaker.begin().expect("closed");
        bench.faults.fail_all(Op::Load, down());
        bench.loads(10);
        bench.faults.clear();
        bench.clock.set(NOW + 5_000);
        bench.loads(1);
        late.end(true);
        assert_eq!(bench.breaker.state(), State::HalfOpen, "the store has answered since");
    }

    #[test]
    fn slow_calls_open_it_too() {
        let bench = bench(Settings { slow_percent: 80, ..Settings::default() });
        for number in 0..10 {
            let mut call = bench.breaker.begin().expect("closed");
            let slow = if number < 2 { 999 } else { 1_000 };
            bench.clock.set(bench.clock.now() + slow);
            call.end(false);
        }
        assert_eq!((bench.breaker.state(), bench.breaker.figures().slow), (State::Open, 8));
    }

    /// A call that hangs counts as failed while it hangs, and once.
    #[tokio::test]
    async fn a_call_that_hangs_has_failed() {
        let limit = Duration::from_millis(1);
        let bench = bench(Settings { least_calls: 1, limit, ..Settings::default() });
        bench.faults.hold(Op::Apply);
        let store = bench.store.clone();
        let hanging = tokio::spawn(async move { store.apply(&[put("k", "v", 0, 1)]).await });
        while bench.breaker.state() == State::Closed {
            tokio::task::yield_now().await;
        }
        bench.faults.release(Op::Apply);
        assert_eq!(
            hanging.await.expect("no panic"),
            Ok(vec![]),
            "its answer counts for its caller"
        );
        assert_eq!((bench.breaker.figures().calls, bench.breaker.state()), (1, State::Open));
    }

    #[test]
    fn by_hand_it_opens_closes_and_forgets() {
        let bench = bench(Settings::default());
        bench.breaker.open();
        bench.clock.set(NOW + 1_000_000);
        assert!(bench.load().is_err(), "no time opens it");
        bench.breaker.close();
        assert!(bench.load().is_ok());
        bench.breaker.reset();
        assert_eq!(bench.breaker.figures(), Figures::default());
    }
}
