//! The suite over a real Redis, and what only a real one shows.

#[path = "../../../tests/common/redis.rs"]
mod instance;

use std::{sync::Arc, time::Duration};

use super::*;
use crate::store::suite::{Limits, block_on, delete, key, put, suite, suite_within, text};
use instance::Redis;

/// Random histories: each batch is a round trip.
const CASES: u32 = 64;

fn open(redis: &Redis, versions: bool, clock: Clock) -> Arc<dyn Store> {
    Arc::new(RedisStore::new(&options(redis, versions), clock))
}

fn options(redis: &Redis, versions: bool) -> RedisOptions {
    let mut options = RedisOptions::new(&redis.url()).unwrap();
    options.set_versions(versions);
    options.set_pool(4);
    // The machine is shared: the suite is not about time.
    options.set_timeouts(Duration::from_secs(60), None).unwrap();
    options
}

#[test]
fn with_versions_it_does_its_duties() {
    let Some(redis) = Redis::start() else { return };
    suite(CASES, |clock| {
        redis.ask("FLUSHALL");
        (open(&redis, true, clock), ())
    });
}

#[test]
fn without_versions_it_does_all_but_that() {
    let Some(redis) = Redis::start() else { return };
    suite_within(CASES, Limits { versions: false, ..Limits::NONE }, |clock| {
        redis.ask("FLUSHALL");
        (open(&redis, false, clock), ())
    });
}

/// The part of the suite that can't be held, as it is.
#[test]
fn without_versions_an_older_change_is_applied() {
    let Some(redis) = Redis::start() else { return };
    let store = open(&redis, false, Clock::default());
    block_on(async {
        store.apply(&[put("a", "5", 0, 5)]).await.unwrap();
        store.apply(&[put("a", "4", 0, 4)]).await.unwrap();
        assert_eq!(text(&*store, "a").await, Some(key("4")));
    });
    assert_eq!(redis.ask("KEYS *"), "a", "no companion");
}

/// A server before version 7, or a user who may not ask: TIME and PTTL instead.
#[test]
fn deadlines_come_without_pexpiretime_too() {
    let Some(redis) = Redis::start() else { return };
    redis.ask("ACL SETUSER old on >x ~* &* +@all -pexpiretime");
    let mut options = options(&redis, false);
    options.login = options.login.set_username("old").set_password("x");
    let clock = Clock::default();
    let store = RedisStore::new(&options, clock.clone());
    block_on(async {
        let deadline = clock.now() + 1_000_000;
        store.apply(&[put("a", "1", deadline, 1), put("b", "1", 0, 1)]).await.unwrap();
        let found = store.load(&[key("a"), key("b")]).await.unwrap();
        let ends: Vec<u64> = found.into_iter().flatten().map(|record| record.deadline).collect();
        assert!(ends[0].abs_diff(deadline) <= 50, "{} and {deadline}", ends[0]);
        assert_eq!(ends[1], 0);
        assert!(!store.connections.ready().await.unwrap().knows_pexpiretime());
    });
}

#[test]
fn versions_live_as_long_as_their_keys_and_forgotten_scripts_come_again() {
    let Some(redis) = Redis::start() else { return };
    let clock = Clock::default();
    let store = open(&redis, true, clock.clone());
    block_on(async {
        store.apply(&[put("a", "5", 0, 5), put("b", "5", clock.now() + 60_000, 5)]).await.unwrap();
        assert_eq!(redis.ask("PTTL larder:version:a"), "(integer) -1");
        assert_eq!(
            redis.ask("PEXPIRETIME larder:version:b"),
            redis.ask("PEXPIRETIME b"),
            "they end together"
        );
        // Others delete it: its version counts no more.
        redis.ask("DEL a");
        store.apply(&[put("a", "4", 0, 4)]).await.unwrap();
        assert_eq!(text(&*store, "a").await, Some(key("4")));
        redis.ask("SCRIPT FLUSH");
        store.apply(&[put("a", "3", 0, 3), delete("b", 6)]).await.unwrap();
        assert_eq!(text(&*store, "a").await, Some(key("4")), "the older one is passed over");
        assert_eq!(redis.ask("EXISTS b larder:version:b"), "(integer) 0");
        // What isn't ours beside a key is no version.
        redis.ask("DEL larder:version:a");
        redis.ask("LPUSH larder:version:a x");
        let found = store.load(&[key("a")]).await.unwrap();
        assert_eq!(found[0].as_ref().map(|record| record.version), Some(0));
    });
}

#[test]
fn errors_are_by_who_is_at_fault() {
    let Some(redis) = Redis::start() else { return };
    for versions in [false, true] {
        redis.ask("FLUSHALL");
        let store = open(&redis, versions, Clock::default());
        block_on(async {
            redis.ask("LPUSH list x");
            redis.ask("SET a old");
            let refused = store.load(&[key("a"), key("list")]).await;
            let text = "list: the key holds another type than a string there";
            assert_eq!(refused, Err(StoreError::Refused(text.into())));
            redis.ask("CONFIG SET maxmemory 1");
            let down = store.apply(&[put("a", "new", 0, 1), delete("list", 1)]).await;
            assert!(matches!(&down, Err(StoreError::Down(why)) if why.contains("OOM")), "{down:?}");
            redis.ask("CONFIG SET maxmemory 0");
            assert_eq!(redis.ask("EXISTS list"), "(integer) 1", "all or none");
            redis.ask("REPLICAOF 127.0.0.1 1");
            redis.ask("CONFIG SET replica-serve-stale-data no");
            let down = store.apply(&[put("a", "new", 0, 1)]).await;
            assert!(matches!(down, Err(StoreError::Down(_))), "{down:?}");
            let down = store.load(&[key("a")]).await;
            assert!(matches!(down, Err(StoreError::Down(_))), "{down:?}");
            redis.ask("REPLICAOF NO ONE");
            store.apply(&[put("list", "a string now", 0, 1)]).await.unwrap();
            redis.ask("ACL SETUSER default -set");
            let refused = store.apply(&[delete("a", 2), put("b", "x", 0, 2)]).await;
            redis.ask("ACL SETUSER default +@all");
            // A script has no way back: what it had done before the error stays.
            match versions {
                false => assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}"),
                true => assert!(matches!(refused, Err(StoreError::Timeout(_))), "{refused:?}"),
            }
            assert_eq!(redis.ask("EXISTS a"), if versions { "(integer) 0" } else { "(integer) 1" });
        });
    }
}

#[test]
fn an_answer_that_is_too_long_ends_its_connection_only() {
    let Some(redis) = Redis::start() else { return };
    let store = RedisStore::new(&options(&redis, false), Clock::default());
    block_on(async {
        let long = vec![b'x'; 100_000];
        store.apply(&[put("long", &long, 0, 1)]).await.unwrap();
        let connection = store.connections.ready().await.unwrap();
        let trouble = connection.ask(::redis::cmd("GET").arg("long"), 10_000).await.unwrap_err();
        let text = "an answer of more than 10000 bytes";
        assert_eq!(trouble.of_load(), StoreError::Refused(text.into()));
        assert_eq!(text_of(&store, "long").await, long);
    });
}

async fn text_of(store: &RedisStore, name: &str) -> Bytes {
    text(store, name).await.unwrap()
}
