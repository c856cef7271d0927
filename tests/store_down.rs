//! A store that goes down and comes back, as clients see it: the breaker opens, what memory has is answered as
//! fast as ever, the rest fails at once, and it recovers by itself.

mod common;

use std::time::{Duration, Instant};

use common::{Raw, Redis, Server, eventually};

/// Keys of each kind.
const KEYS: usize = 500;
/// GETs that are measured.
const GETS: usize = 10_000;
/// Calls that the breaker looks at.
const WINDOW: usize = 10;
/// How long a copy of `stale:` is fresh.
const TTL: Duration = Duration::from_millis(20);

const TOML: &str = "
[store.main]
kind = 'redis'
url = 'URL'
breaker = { window = 10, least-calls = 5, failures = 50, open-for = '1s', probes = 3 }
[[namespace]]
prefix = 'warm:'
mode = 'read-through'
store = 'main'
[[namespace]]
prefix = 'stale:'
mode = 'read-through'
store = 'main'
ttl = '20ms'
stale_if_error = '1h'
[[namespace]]
prefix = 'order:'
mode = 'write-through'
store = 'main'
";

/// The breaker's state, by LARDER.BREAKER LIST and INFO, which agree.
fn state(conn: &mut Raw) -> String {
    let list = conn.ask_line("LARDER.BREAKER LIST").replace("\r\n", "|");
    let state = list.split("|state|").nth(1).and_then(|rest| rest.split('|').nth(1));
    let state = state.unwrap_or_else(|| panic!("{list}")).to_owned();
    let info = conn.ask_line("INFO stores");
    assert!(info.contains(&format!("store_main:breaker={state},")), "{state}: {info}");
    state
}

/// The median time of so many GETs, one after the other; each answer is looked at.
fn median(
    conn: &mut Raw,
    prefix: &str,
    count: usize,
    is_right: impl Fn(&[u8]) -> bool,
) -> Duration {
    let mut times: Vec<Duration> = (0..count)
        .map(|number| {
            let key = format!("{prefix}{}", number % KEYS);
            let began = Instant::now();
            let reply = conn.ask(&["GET", &key]);
            let took = began.elapsed();
            assert!(is_right(&reply), "{key}: {}", String::from_utf8_lossy(&reply));
            took
        })
        .collect();
    times.sort_unstable();
    let (median, longest) = (times[count / 2], times[count - 1]);
    println!("{count} GETs of {prefix}: median {median:?}, longest {longest:?}");
    median
}

/// SYSTEMS 4: while it is open, stale values where the namespace allows, else a clear error.
#[test]
fn a_store_that_goes_down_is_noticed_borne_and_taken_up_again() {
    let Some(mut redis) = Redis::start() else { return };
    let server = Server::start_with(
        &TOML.replace("URL", &redis.url()),
        &["--logfile", "/dev/null", "--workers", "1"],
    );
    let conn = &mut server.raw();
    let mut upstream = Raw::connect(redis.port());
    for prefix in ["warm:", "stale:"] {
        (0..KEYS).for_each(|key| upstream.request(&["SET", &format!("{prefix}{key}"), "value"]));
        (0..KEYS).for_each(|_| assert_eq!(upstream.reply(), b"+OK\r\n"));
        (0..KEYS).for_each(|key| conn.request(&["GET", &format!("{prefix}{key}")]));
        (0..KEYS).for_each(|_| assert_eq!(conn.reply(), b"$5\r\nvalue\r\n"));
    }
    let loaded = Instant::now();
    assert_eq!(conn.ask_line("SET order:1 tea"), "+OK\r\n");
    assert_eq!(state(conn), "closed");

    redis.kill();
    let mut failed = 0;
    while state(conn) == "closed" {
        let said = conn.ask_line(&format!("GET warm:cold{failed}"));
        assert!(said.starts_with("-STOREDOWN "), "{said}");
        failed += 1;
        assert!(failed <= WINDOW, "the breaker doesn't open");
    }
    assert_eq!(state(conn), "open");
    println!("the breaker opened after {failed} failures");
    eventually("the copies are past their time", || loaded.elapsed() > TTL);

    let value = |reply: &[u8]| reply == b"$5\r\nvalue\r\n";
    let down = |reply: &[u8]| reply.starts_with(b"-STOREDOWN ");
    let warm = median(conn, "warm:", GETS, value);
    let stale = median(conn, "stale:", GETS, value);
    let cold = median(conn, "order:cold", 1000, down);
    for median in [warm, stale, cold] {
        assert!(median < Duration::from_millis(1), "{median:?}");
    }
    // A write that needs the store fails at once too, and has changed nothing.
    let said = conn.ask_line("SET order:1 coffee");
    assert!(said.starts_with("-STOREDOWN "), "{said}");
    assert_eq!(conn.ask_line("GET order:1"), "$3\r\ntea\r\n");
    assert_ne!(state(conn), "closed");

    redis.start_again();
    // Nobody tells it; three probes close it.
    let mut states = vec![state(conn)];
    eventually("it recovers", || {
        conn.ask_line("GET order:any");
        let now = state(conn);
        if states.last() != Some(&now) {
            states.push(now);
        }
        states.last().is_some_and(|state| state == "closed")
    });
    assert_eq!(states, ["open", "half-open", "closed"]);
    assert_eq!(conn.ask_line("SET order:1 coffee"), "+OK\r\n");
    assert_eq!(redis.ask("GET order:1"), "coffee");
    // What the server forgot is seen as soon as it is asked again; what is fresh stays.
    eventually("stale copies are loaded", || conn.ask_line("GET stale:1") == "$-1\r\n");
    assert_eq!(conn.ask_line("GET warm:1"), "$5\r\nvalue\r\n");
}
