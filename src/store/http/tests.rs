//! The suite over a small origin that keeps versions and deadlines, and what its answers mean.

#[path = "../../../tests/common/origin.rs"]
mod instance;

use std::{sync::Arc, time::Duration};

use super::*;
use crate::store::suite::{Limits, block_on, delete, key, put, suite_within, text};
use instance::{Origin, Script};

/// Random histories: each change is a round trip.
const CASES: u32 = 32;
/// A byte of a key is three of a URL, which has 65,000.
const LONGEST_KEY: usize = 20_000;

fn options(origin: &Origin) -> HttpOptions {
    let mut options = HttpOptions::new(&origin.url()).unwrap();
    options.set_pool(4);
    // The machine is shared: the suite is not about time.
    options.set_timeouts(Duration::from_secs(60), None).unwrap();
    options
}

#[test]
fn it_does_its_duties_over_an_origin_that_keeps_versions() {
    suite_within(CASES, Limits { clock: false, key: LONGEST_KEY, ..Limits::NONE }, |clock| {
        let origin = Origin::start();
        let store: Arc<dyn Store> = Arc::new(HttpStore::new(&options(&origin), clock));
        (store, origin)
    });
}

fn store(origin: &Origin) -> HttpStore {
    HttpStore::new(&options(origin), Clock::default())
}

async fn load(store: &HttpStore, name: &str) -> Result<Option<Record>, StoreError> {
    store.load(&[key(name)]).await.map(|mut found| found.pop().flatten())
}

#[test]
fn statuses_of_loads_are_by_who_is_at_fault() {
    let origin = Origin::start();
    let store = store(&origin);
    block_on(async {
        for (status, wanted) in [
            (404, Ok(None)),
            (410, Ok(None)),
            (500, Err(StoreError::Down("the origin answered 500 Internal Server Error".into()))),
            (503, Err(StoreError::Down("the origin answered 503 Service Unavailable".into()))),
            (429, Err(StoreError::Down("the origin answered 429 Too Many Requests".into()))),
            (403, Err(StoreError::Refused("the origin answered 403 Forbidden".into()))),
            (204, Err(StoreError::Refused("the origin answered 204 No Content".into()))),
            (
                304,
                Err(StoreError::Refused(
                    "the origin answered 304 Not Modified; redirects are not followed".into(),
                )),
            ),
            (
                302,
                Err(StoreError::Refused(
                    "the origin answered 302 Found; redirects are not followed".into(),
                )),
            ),
        ] {
            origin.script("/k", [Script::status(status)]);
            assert_eq!(load(&store, "k").await, wanted, "{status}");
        }
        origin.script("/k", [Script::Close, Script::status(200).body("x")]);
        let found = load(&store, "k").await.unwrap().unwrap();
        assert_eq!(found.value, "x", "a load is asked again where the connection is lost");
        origin.script("/k", [Script::Close, Script::Close, Script::Close]);
        assert!(matches!(load(&store, "k").await, Err(StoreError::Down(_))));
    });
}

#[test]
fn freshness_is_the_copys_and_never_the_datas() {
    let origin = Origin::start();
    let store = store(&origin);
    block_on(async {
        for (control, fresh) in [("max-age=60", 60), ("no-store", 0), ("max-age=9, s-maxage=3", 3)]
        {
            let answer = Script::status(200).header("Cache-Control", control).body("x");
            origin.script("/k", [answer]);
            let found = load(&store, "k").await.unwrap().unwrap();
            assert_eq!((found.deadline, found.fresh_for), (0, Some(Duration::from_secs(fresh))));
        }
    });
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let origin = Origin::start();
    let store = store(&origin);
    block_on(async {
        let tagged =
            Script::status(200).header("ETag", "\"1\"").header("Cache-Control", "max-age=1");
        let same = Script::status(304).header("Cache-Control", "max-age=7");
        origin.script("/k", [tagged.body("value"), same]);
        load(&store, "k").await.unwrap();
        let found = load(&store, "k").await.unwrap().unwrap();
        assert_eq!((&*found.value, found.fresh_for), (&b"value"[..], Some(Duration::from_secs(7))));
        let asked = origin.requests();
        assert!(asked[1].contains("if-none-match: \"1\""), "{asked:?}");
        // A write forgets it, and what may not be kept isn't.
        origin.script("/k", [Script::status(200), Script::status(200).body("new")]);
        store.apply(&[put("k", "new", 0, 1)]).await.unwrap();
        load(&store, "k").await.unwrap();
        assert!(!origin.requests()[3].contains("if-none-match"));
        let secret =
            Script::status(200).header("ETag", "\"2\"").header("Cache-Control", "no-store");
        origin.script("/k", [secret.body("x"), Script::status(404)]);
        load(&store, "k").await.unwrap();
        assert_eq!(load(&store, "k").await, Ok(None));
        assert!(!origin.requests()[5].contains("if-none-match"));
    });
}

#[test]
fn statuses_of_changes() {
    let origin = Origin::start();
    let mut options = options(&origin);
    options.set_timeouts(Duration::from_millis(800), None).unwrap();
    let store = HttpStore::new(&options, Clock::default());
    block_on(async {
        for status in [200, 201, 204, 412] {
            origin.script("/k", [Script::status(status)]);
            store.apply(&[put("k", "v", 0, 7)]).await.unwrap();
        }
        for status in [204, 404, 410, 412] {
            origin.script("/k", [Script::status(status)]);
            store.apply(&[delete("k", 8)]).await.unwrap();
        }
        let asked = origin.requests();
        assert!(asked[0].starts_with("PUT /k ") && asked[0].contains("larder-version: 7"));
        assert!(asked[4].starts_with("DELETE /k ") && asked[4].contains("larder-version: 8"));
        let apply = async |script: Script| {
            origin.script("/k", [script]);
            store.apply(&[put("k", "v", 0, 7)]).await
        };
        let (down, refused, unknown) = (0, 1, 2);
        for (script, wanted) in [
            (Script::status(503), down),
            (Script::status(429), down),
            (Script::status(404), refused),
            (Script::status(409), refused),
            (Script::status(301), refused),
            // Broken off, or a gateway that lost the origin: nobody knows.
            (Script::status(500), unknown),
            (Script::status(502), unknown),
            (Script::status(504), unknown),
            (Script::Close, unknown),
            (Script::Silent, unknown),
        ] {
            let shown = format!("{script:?}");
            let got = match apply(script).await {
                Err(StoreError::Down(_)) => down,
                Err(StoreError::Refused(_)) => refused,
                Err(StoreError::Timeout(_)) => unknown,
                Ok(_) => panic!("{shown}"),
            };
            assert_eq!(got, wanted, "{shown}");
        }
    });
}

/// HTTP has no all or none: the part of a store's duties that can't be held, as it is.
#[test]
fn a_batch_that_ends_in_the_middle_is_an_unknown_outcome() {
    let origin = Origin::start();
    let store = store(&origin);
    block_on(async {
        let batch = [put("a", "1", 0, 1), put("b", "2", 0, 1), put("c", "3", 0, 1)];
        origin.script("/b", [Script::status(403)]);
        let text =
            "1 of 3 changes are done, then the store refused: the origin answered 403 Forbidden";
        assert_eq!(store.apply(&batch).await, Err(StoreError::Timeout(text.into())));
        assert_eq!(text_of(&store, "a").await.as_deref(), Some(&b"1"[..]));
        assert_eq!(text_of(&store, "c").await, None);
        // Where nothing had changed yet, that is known.
        origin.script("/a", [Script::status(403)]);
        let refused = store.apply(&batch).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    });
}

async fn text_of(store: &HttpStore, name: &str) -> Option<Bytes> {
    text(store, name).await
}

#[test]
fn bodies_are_bounded_and_requests_carry_a_password() {
    let origin = Origin::start();
    let mut options = options(&origin);
    options.set_max_body(10);
    options.set_password("token").unwrap();
    let store = HttpStore::new(&options, Clock::default());
    block_on(async {
        for len in [11, 3 << 20] {
            origin.script("/k", [Script::status(200).body(&"x".repeat(len))]);
            let refused = load(&store, "k").await;
            assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
        }
        let refused = store.apply(&[put("k", "12345678901", 0, 1)]).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))));
        assert!(origin.requests().iter().all(|ask| ask.contains("authorization: Bearer token")));
        origin.script("/", [Script::status(404), Script::status(503)]);
        store.ping().await.unwrap();
        assert!(matches!(store.ping().await, Err(StoreError::Down(_))));
    });
}

#[test]
fn many_keys_are_loaded_in_order() {
    let origin = Origin::start();
    let store = store(&origin);
    block_on(async {
        let keys: Vec<Bytes> = (0..50).map(|number| key(&format!("k{number}"))).collect();
        let some = keys.iter().step_by(2).map(|key| put(key, key, 0, 1));
        store.apply(&some.collect::<Vec<_>>()).await.unwrap();
        let found = store.load(&keys).await.unwrap();
        for (number, (key, record)) in keys.iter().zip(found).enumerate() {
            let wanted = number.is_multiple_of(2).then_some(key);
            assert_eq!(record.as_ref().map(|record| &record.value), wanted);
        }
    });
}
