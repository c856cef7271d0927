//! A store made of a primary and its replicas: writes go to the primary, loads are spread over the
//! replicas ([`Balance`]). The databases themselves bring what is written to the replicas; Larder doesn't.
//!
//! A load that a replica fails is asked of another one, at last of the primary. A refusal is an answer.
//!
//! **Lag.** Replicas that can tell are asked for their lag, at most every `lag_check` and beside the
//! loads. With `max_lag` a replica answers only while its lag was found to be no more than that within
//! the last two `lag_check`; one that can't tell is left out. Without any the primary is asked.
//!
//! **Reading what was written** (SEMANTICS 15). Who writes gets a view of the store that loads from the
//! primary only; or, where it is told to load from replicas, not before a write must have reached those
//! that are asked: for `max_lag` + 2 x `lag_check`. Of what was written when, a table of fixed size
//! remembers the newest write of each of its slots, so that keys that share one may ask the primary
//! without need, and no key is forgotten. Writes past this server are not in it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{
    Applied, BoxFuture, Change, Record, Store, StoreError,
    balance::{Balance, Spread},
    component::Component,
    sharded::load_split,
};
use crate::clock::Clock;

/// Slots of the table of writes.
const SLOTS: usize = 1 << 14;
/// How long a replica may take to tell its lag.
const LAG_PATIENCE: Duration = Duration::from_millis(500);

/// How a store with replicas is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicatedOptions {
    /// How loads are spread.
    pub spread: Spread,
    /// With [`Spread::Weighted`]: the replicas' weights, then the primary's if it takes part; 1 where
    /// there is none.
    pub weights: Vec<u32>,
    /// Whether the primary takes part in loads.
    pub read_from_primary: bool,
    /// What lags more isn't asked.
    pub max_lag: Option<Duration>,
    /// How often replicas are asked for their lag at most.
    pub lag_check: Duration,
    /// Whether those who write load from replicas, too. It needs a `max_lag`.
    pub load_from_replicas: bool,
}

impl Default for ReplicatedOptions {
    fn default() -> Self {
        Self {
            spread: Spread::RoundRobin,
            weights: Vec::new(),
            read_from_primary: false,
            max_lag: None,
            lag_check: Duration::from_secs(1),
            load_from_replicas: false,
        }
    }
}

/// A store over a primary and its replicas, each with its name.
pub fn replicated(
    options: ReplicatedOptions,
    primary: (&str, Arc<dyn Store>),
    replicas: Vec<(&str, Arc<dyn Store>)>,
    clock: Clock,
) -> Arc<dyn Store> {
    let member = |(name, store): (&str, Arc<dyn Store>)| {
        let component = Component::new(name, store);
        Arc::new(Member { component, lag: Mutex::default(), left_out: AtomicU64::new(0) })
    };
    let (name, store) = primary;
    // The primary is always asked as by those who write: what it is for is not to be older than that.
    let store = store.for_writers().unwrap_or(store);
    let mut members: Vec<_> = replicas.into_iter().map(member).collect();
    members.push(member((name, store)));
    let weight = |at: usize| options.weights.get(at).copied().unwrap_or(1);
    let weights = (0..members.len()).map(weight).collect();
    let balance = Balance::new(options.spread, weights);
    let longest = options.max_lag.unwrap_or_default() + 2 * options.lag_check;
    let recent = options.load_from_replicas.then(|| Recent::new(longest));
    let set = Set { members, balance, options, recent, clock };
    Arc::new(Replicated { set: Arc::new(set), is_for_writers: false })
}

/// A replica or the primary.
struct Member {
    component: Component,
    lag: Mutex<Lag>,
    /// Loads that it took no part in because of its lag.
    left_out: AtomicU64,
}

/// What is known of a member's lag.
#[derive(Clone, Copy, Default)]
struct Lag {
    /// When it was asked for it last, in unix milliseconds.
    at: Option<u64>,
    found: Option<Duration>,
    is_asked: bool,
}

/// Asks for a lag; one that is given up has found none.
struct Question {
    member: Arc<Member>,
    begun: u64,
    found: Option<Duration>,
}

impl Question {
    fn answer(mut self, found: Option<Duration>) {
        self.found = found;
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        *self.member.lag.lock() = Lag { at: Some(self.begun), found: self.found, is_asked: false };
    }
}

impl Member {
    /// Starts to ask for the lag, if the last time is too long ago.
    fn ask_lag(self: &Arc<Self>, now: u64, check: u64) -> Option<JoinHandle<()>> {
        let mut lag = self.lag.lock();
        if lag.is_asked || lag.at.is_some_and(|at| now.abs_diff(at) < check) {
            return None;
        }
        lag.is_asked = true;
        // A question that can't be asked takes the lock.
        drop(lag);
        let question = Question { member: self.clone(), begun: now, found: None };
        Some(tokio::spawn(async move {
            let lag = question.member.component.store.lag();
            let found = tokio::time::timeout(LAG_PATIENCE, lag).await;
            question.answer(found.unwrap_or(None));
        }))
    }

    /// The lag, if it was found lately enough.
    fn known_lag(&self, now: u64, check: u64) -> Option<Duration> {
        let lag = *self.lag.lock();
        lag.at.filter(|at| now.abs_diff(*at) <= 2 * check).and(lag.found)
    }
}

/// When the keys of each slot were written last, in unix milliseconds.
struct Recent {
    slots: Box<[AtomicU64]>,
    /// For how long a write is recent.
    longest: u64,
}

impl Recent {
    fn new(longest: Duration) -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self { slots, longest: longest.as_millis() as u64 }
    }

    fn slot(&self, key: &[u8]) -> &AtomicU64 {
        &self.slots[crc32fast::hash(key) as usize % SLOTS]
    }

    fn note(&self, changes: &[(Bytes, Change)], now: u64) {
        changes.iter().for_each(|(key, _)| _ = self.slot(key).fetch_max(now, Relaxed));
    }

    fn has(&self, key: &[u8], now: u64) -> bool {
        let at = self.slot(key).load(Relaxed);
        at != 0 && now.saturating_sub(at) <= self.longest
    }
}

/// What all views of the store share.
struct Set {
    /// The primary is the last.
    members: Vec<Arc<Member>>,
    balance: Balance,
    options: ReplicatedOptions,
    recent: Option<Recent>,
    clock: Clock,
}

impl Set {
    fn primary(&self) -> &Component {
        &self.members[self.members.len() - 1].component
    }

    fn check(&self) -> u64 {
        self.options.lag_check.as_millis() as u64
    }

    /// Sees to it that lags are known, as far as they can be. Who starts to ask waits for the answer, if
    /// loads depend on it and nothing usable is known; others don't.
    async fn ask_lags(&self) {
        let (now, check) = (self.clock.now(), self.check());
        let replicas = &self.members[..self.members.len() - 1];
        let needs = self.options.max_lag.is_some();
        let mut asked = Vec::new();
        for replica in replicas {
            let waits = needs && replica.known_lag(now, check).is_none();
            asked.extend(replica.ask_lag(now, check).filter(|_| waits));
        }
        for answer in asked {
            // A store that panicked has told nothing.
            let _ = answer.await;
        }
    }

    /// Whether a member takes part in loads now.
    fn may_load(&self, at: usize) -> bool {
        if at + 1 == self.members.len() {
            return self.options.read_from_primary;
        }
        let Some(max_lag) = self.options.max_lag else { return true };
        let lag = self.members[at].known_lag(self.clock.now(), self.check());
        let may = lag.is_some_and(|lag| lag <= max_lag);
        self.members[at].left_out.fetch_add(u64::from(!may), Relaxed);
        may
    }

    async fn load_spread(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        self.ask_lags().await;
        let mut left: Vec<bool> = (0..self.members.len()).map(|at| self.may_load(at)).collect();
        let mut failed = None;
        loop {
            let request = self.balance.choose(
                |at| left[at],
                |at| self.members[at].component.load(),
                |at| (at, self.members[at].component.start()),
            );
            let Some((at, request)) = request else { break };
            left[at] = false;
            match request.load(keys).await {
                Err(error) if error.is_stores_fault() => failed = Some((at, error)),
                answer => return answer,
            }
            // The primary comes last: it has the writes to do.
        }
        match failed {
            Some((_, error)) if self.options.read_from_primary => Err(error),
            _ => self.primary().start().load(keys).await,
        }
    }

    async fn load(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        let Some(recent) = &self.recent else { return self.load_spread(keys).await };
        let now = self.clock.now();
        let places: Vec<_> = keys.iter().map(|key| usize::from(recent.has(key, now))).collect();
        load_split(keys, &places, |place, keys| async move {
            match place {
                0 => self.load_spread(&keys).await,
                _ => self.primary().start().load(&keys).await,
            }
        })
        .await
    }

    async fn apply(&self, changes: &[(Bytes, Change)]) -> Applied {
        let note = || {
            if let Some(recent) = &self.recent {
                recent.note(changes, self.clock.now());
            }
        };
        // From before it may be seen, until long enough after it may last have happened.
        note();
        let result = self.primary().start().apply(changes).await;
        note();
        result
    }
}

/// See the module's doc.
struct Replicated {
    set: Arc<Set>,
    is_for_writers: bool,
}

impl Store for Replicated {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(async move {
            if self.is_for_writers && !self.set.options.load_from_replicas {
                self.set.primary().start().load(keys).await
            } else {
                self.set.load(keys).await
            }
        })
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(self.set.apply(changes))
    }

    /// Whether the primary would serve.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.set.primary().store.ping()
    }

    /// Any member may be asked for all of them.
    fn single_loads(&self) -> Option<usize> {
        let members = self.set.members.iter();
        members.filter_map(|member| member.component.store.single_loads()).min()
    }

    fn kind(&self) -> &'static str {
        "replicated"
    }

    fn part(&self, key: &[u8]) -> Result<u32, StoreError> {
        self.set.primary().store.part(key)
    }

    fn parts(&self) -> u32 {
        self.set.primary().store.parts()
    }

    fn for_writers(&self) -> Option<Arc<dyn Store>> {
        let set = self.set.clone();
        (!self.is_for_writers).then(|| Arc::new(Self { set, is_for_writers: true }) as Arc<_>)
    }

    fn report(&self) -> Vec<(String, String)> {
        let primary = self.set.members.len() - 1;
        let now = self.set.clock.now();
        let line = |(at, member): (usize, &Arc<Member>)| {
            let name = member.component.name.to_string();
            let figures = member.component.figures();
            if at == primary {
                return (name, format!("role=primary,{figures}"));
            }
            let Lag { at, found, .. } = *member.lag.lock();
            let millis = |found: Option<u64>| found.map_or("unknown".into(), |ms| ms.to_string());
            let lag = millis(found.map(|lag| lag.as_millis() as u64));
            let age = millis(at.map(|at| now.saturating_sub(at)));
            let left_out = member.left_out.load(Relaxed);
            let lag = format!("left_out={left_out},lag_ms={lag},lag_age_ms={age}");
            (name, format!("role=replica,{figures},{lag}"))
        };
        self.set.members.iter().enumerate().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            faulty::{Faults, Op, faulty},
            memory,
            memory::MemoryStore,
            sharded::{Router, sharded},
            suite::{DEFAULT_CASES, block_on, key, put, suite, text},
        },
        *,
    };

    const NOW: u64 = 1_000_000;

    /// Three replicas and a primary, behind faults; each has its own name as the value of every key `k0`
    /// to `k19`, so that an answer tells who gave it.
    struct Bench {
        store: Arc<dyn Store>,
        members: Vec<(Arc<dyn Store>, Faults)>,
        clock: Clock,
    }

    const NAMES: [&str; 4] = ["r1", "r2", "r3", "primary"];

    fn bench(options: ReplicatedOptions) -> Bench {
        let members: Vec<_> = NAMES.iter().map(|_| faulty(memory())).collect();
        for ((store, _), name) in members.iter().zip(NAMES) {
            let changes: Vec<_> = (0..20).map(|at| put(format!("k{at}"), name, 0, 1)).collect();
            block_on(store.apply(&changes)).unwrap();
        }
        let clock = Clock::manual(NOW);
        let mut named: Vec<_> =
            NAMES.into_iter().zip(members.iter().map(|(store, _)| store.clone())).collect();
        let primary = named.pop().unwrap();
        let store = replicated(options, primary, named, clock.clone());
        Bench { store, members, clock }
    }

    impl Bench {
        fn set_lags(&self, millis: [u64; 3]) {
            for ((_, faults), millis) in self.members.iter().zip(millis) {
                faults.set_lag(Some(Duration::from_millis(millis)));
            }
        }

        /// Who answers the next loads.
        async fn who(&self, store: &dyn Store, loads: usize) -> Vec<Bytes> {
            let mut who = Vec::new();
            for at in 0..loads {
                who.push(text(store, &format!("k{}", at % 20)).await.unwrap());
            }
            who
        }

        fn line(&self, name: &str) -> String {
            let report = self.store.report();
            report.into_iter().find(|(known, _)| known == name).unwrap().1
        }
    }

    fn down() -> StoreError {
        StoreError::Down("unplugged".into())
    }

    #[test]
    fn without_replicas_that_differ_it_does_its_duties() {
        suite(DEFAULT_CASES, |clock| {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
            let replicas = vec![("r1", store.clone()), ("r2", store.clone())];
            (replicated(ReplicatedOptions::default(), ("p", store), replicas, clock), ())
        });
    }

    /// SYSTEMS, row 3.
    #[test]
    fn loads_are_spread_and_writes_go_to_the_primary() {
        let bench1 = bench(ReplicatedOptions::default());
        let options = ReplicatedOptions {
            spread: Spread::Weighted,
            weights: vec![3, 1, 1, 1],
            read_from_primary: true,
            ..ReplicatedOptions::default()
        };
        let bench2 = bench(options);
        block_on(async {
            let who = bench1.who(&*bench1.store, 5).await;
            assert_eq!(who, ["r1", "r2", "r3", "r1", "r2"]);
            let who = bench2.who(&*bench2.store, 6).await;
            assert_eq!(who, ["r1", "r2", "r1", "r3", "primary", "r1"]);
            bench1.store.apply(&[put("k0", "new", 0, 2)]).await.unwrap();
            let applies = bench1.members.iter().map(|(_, faults)| faults.calls(Op::Apply));
            assert_eq!(applies.collect::<Vec<_>>(), [1, 1, 1, 2]);
        });
    }

    /// SYSTEMS, rows 3 and 7: start and completion are counted, also of a load that is given up.
    #[test]
    fn the_replica_with_the_fewest_in_progress_is_asked() {
        let spread = Spread::LeastConnections;
        let bench = bench(ReplicatedOptions { spread, ..ReplicatedOptions::default() });
        block_on(async {
            bench.members[0].1.hold(Op::Load);
            let store = bench.store.clone();
            let held = tokio::spawn(async move { text(&*store, "k1").await });
            bench.members[0].1.wait_for_calls(Op::Load, 1).await;
            assert_eq!(bench.who(&*bench.store, 4).await, ["r2", "r3", "r2", "r3"]);
            let line = bench.line("r1");
            assert!(line.starts_with("role=replica,requests=1,in_progress=1,failures=0"), "{line}");
            // It is given up: from here on the first has had the fewest.
            held.abort();
            assert!(held.await.unwrap_err().is_cancelled());
            bench.members[0].1.release(Op::Load);
            assert_eq!(bench.who(&*bench.store, 3).await, ["r1", "r1", "r2"]);
        });
        let line = bench.line("r1");
        assert!(line.starts_with("role=replica,requests=3,in_progress=0,failures=0"), "{line}");
    }

    #[test]
    fn what_a_replica_fails_another_one_answers_and_at_last_the_primary() {
        let bench = bench(ReplicatedOptions::default());
        block_on(async {
            bench.members[0].1.fail_all(Op::Load, down());
            assert_eq!(bench.who(&*bench.store, 4).await, ["r2", "r3", "r2", "r3"]);
            bench.members[1].1.fail_all(Op::Load, StoreError::Timeout("late".into()));
            bench.members[2].1.fail_all(Op::Load, down());
            assert_eq!(bench.who(&*bench.store, 2).await, ["primary", "primary"]);
            bench.members[3].1.fail_all(Op::Load, StoreError::Down("all of it".into()));
            let failed = bench.store.load(&[key("k1")]).await;
            assert_eq!(failed, Err(StoreError::Down("all of it".into())));
            // A refusal is an answer.
            let refused = StoreError::Refused("no".into());
            bench.members.iter().for_each(|(_, faults)| faults.clear());
            bench.members.iter().for_each(|(_, faults)| faults.fail_all(Op::Load, refused.clone()));
            let calls = || bench.members.iter().map(|(_, faults)| faults.calls(Op::Load)).sum();
            let before: u64 = calls();
            assert_eq!(bench.store.load(&[key("k1")]).await, Err(refused));
            assert_eq!(calls() - before, 1);
        });
    }

    /// SYSTEMS, row 7.
    #[test]
    fn a_replica_that_lags_too_much_or_cannot_tell_is_left_out() {
        let max_lag = Some(Duration::from_secs(2));
        let bench = bench(ReplicatedOptions { max_lag, ..ReplicatedOptions::default() });
        block_on(async {
            assert_eq!(bench.who(&*bench.store, 1).await, ["primary"], "none can tell");
            bench.clock.set(NOW + 1_000);
            bench.set_lags([0, 2_001, 2_000]);
            bench.who(&*bench.store, 1).await;
            bench.clock.set(NOW + 3_001);
            assert_eq!(bench.who(&*bench.store, 4).await, ["r3", "r1", "r3", "r1"]);
            assert!(bench.line("r2").ends_with("lag_ms=2001,lag_age_ms=0"), "{}", bench.line("r2"));
            // It isn't asked again within the second.
            bench.set_lags([2_001, 2_001, 2_001]);
            bench.clock.set(NOW + 4_000);
            assert_eq!(bench.who(&*bench.store, 2).await, ["r3", "r1"]);
            bench.clock.set(NOW + 10_000);
            assert_eq!(bench.who(&*bench.store, 2).await, ["primary", "primary"]);
            bench.set_lags([2_001, 2_001, 10]);
            bench.clock.set(NOW + 20_000);
            assert_eq!(bench.who(&*bench.store, 2).await, ["r3", "r3"]);
        });
    }

    #[test]
    fn a_lag_that_is_no_bound_is_shown_all_the_same() {
        let bench = bench(ReplicatedOptions::default());
        bench.set_lags([7, 2_000, 0]);
        assert!(bench.line("r1").ends_with("left_out=0,lag_ms=unknown,lag_age_ms=unknown"));
        block_on(async {
            bench.who(&*bench.store, 1).await;
            while !bench.line("r2").contains("lag_ms=2000") {
                tokio::task::yield_now().await;
            }
        });
        bench.clock.set(NOW + 60_000);
        assert!(bench.line("r2").ends_with("lag_ms=2000,lag_age_ms=60000"));
    }

    /// SEMANTICS 15: where a write isn't `none`, loads go to the primary.
    #[test]
    fn who_writes_loads_from_the_primary() {
        let bench = bench(ReplicatedOptions::default());
        let shards = vec![("main", bench.store.clone())];
        let ring = super::super::ring::Ring::new(&[("main", 1)]);
        let sharded = sharded(Router::Hash(ring), shards);
        block_on(async {
            for outer in [&bench.store, &sharded, &faulty(bench.store.clone()).0] {
                let view = outer.for_writers().expect("it differs");
                assert_eq!(bench.who(&*view, 3).await, ["primary", "primary", "primary"]);
                assert_ne!(bench.who(&**outer, 1).await, ["primary"]);
            }
        });
        assert!(memory().for_writers().is_none());
        assert!(bench.line("primary").starts_with("role=primary,requests=9"));
    }

    /// SEMANTICS 15: unless `load_from = "replicas"`, and then not within `max_lag` of a write.
    #[test]
    fn who_loads_from_replicas_does_not_see_what_is_older_than_its_write() {
        let bench = bench(ReplicatedOptions {
            max_lag: Some(Duration::from_secs(2)),
            load_from_replicas: true,
            ..ReplicatedOptions::default()
        });
        bench.set_lags([0, 0, 0]);
        let view = bench.store.for_writers().expect("a view");
        block_on(async {
            view.apply(&[put("k1", "new", 0, 2)]).await.unwrap();
            // 2 s of lag, measured at most twice a second ago.
            for (millis, k1) in [(0, "new"), (3_999, "new"), (4_000, "new"), (4_001, "r2")] {
                bench.clock.set(NOW + millis);
                let found = view.load(&[key("k0"), key("k1")]).await.unwrap();
                let values: Vec<_> = found.into_iter().map(|found| found.unwrap().value).collect();
                assert_ne!(values[0], "primary");
                assert_eq!(values[1] == "new", k1 == "new", "{millis}: {values:?}");
            }
        });
    }
}
