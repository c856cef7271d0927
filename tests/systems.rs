//! The systems that Larder has to be, each by its row in the list: circuit breaker (4), relational rows and
//! documents (5), cache-aside (8), write-through (9), write-behind (10). Rows 3, 6 and 7 are in `sharded.rs`.

mod common;
#[path = "common/postgres.rs"]
mod instance;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use common::{Redis, Server, ask, bulk, check, eventually};
use instance::{PASSWORD, Postgres};
use redis::{Connection, Value};

fn ok() -> Result<Value, &'static str> {
    Ok(Value::Okay)
}

fn namespace(prefix: &str, mode: &str, store: &str) -> String {
    format!("[[namespace]]\nprefix = '{prefix}'\nmode = '{mode}'\nstore = '{store}'\n")
}

/// A figure of a line in INFO.
fn figure(conn: &mut Connection, section: &str, line: &str, name: &str) -> String {
    let info: String = redis::cmd("INFO").arg(section).query(conn).expect("INFO");
    let line = info.lines().find(|found| found.contains(line));
    let line = line.unwrap_or_else(|| panic!("no such line: {info}"));
    let fields = line.split([',', ':']).find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    fields.unwrap_or_else(|| panic!("no {name}: {line}")).to_owned()
}

fn breaker(conn: &mut Connection, name: &str) -> String {
    figure(conn, "stores", "store_bank:", name)
}

/// SYSTEMS 4: a circuit breaker before an unreliable bank: five failures open it; only the bank's own faults
/// count; while it is open a call fails fast or is answered from the cache; after the recovery timeout
/// probes decide.
#[test]
fn row_4_a_circuit_breaker() {
    let Some(mut bank) = Redis::start() else { return };
    let toml = format!(
        "[store.bank]\nkind = 'redis'\nurl = '{}'\n\
         breaker = {{ window = 5, least-calls = 5, failures = 100, open-for = '2s', probes = 2 }}\n",
        bank.url()
    ) + &namespace("account:", "read-through", "bank")
        + "ttl = '10ms'\nstale-if-error = '1h'\n";
    let server = Server::start_with(&toml, &["--logfile", "/dev/null"]);
    let conn = &mut server.connect();
    bank.ask("SET account:1 96");
    bank.ask("RPUSH account:list x");
    check(conn, vec![("GET account:1", Ok(bulk("96")))]);
    // Closed. What the bank refuses is the caller's fault, however often.
    for _ in 0..20 {
        check(conn, vec![("GET account:list", Err("STOREERR the key holds another type"))]);
    }
    assert_eq!(breaker(conn, "breaker"), "closed");
    assert_eq!(breaker(conn, "failures"), "0");
    // Below the threshold a success is a success: the failures have to be the last five.
    bank.kill();
    for failures in 1..=5 {
        assert_eq!(breaker(conn, "breaker"), "closed", "after {failures} - 1 failures");
        check(conn, vec![(&format!("GET account:cold{failures}"), Err("STOREDOWN "))]);
    }
    assert_eq!([breaker(conn, "breaker"), breaker(conn, "failures")], ["open", "5"]);
    // Open: the bank isn't called, whether it is there or not. A known account is answered from the cache.
    bank.start_again();
    let opened = Instant::now();
    let calls = breaker(conn, "calls");
    for _ in 0..20 {
        check(conn, vec![("GET account:1", Ok(bulk("96")))]);
        let began = Instant::now();
        let said = ask(conn, "GET account:2").expect_err("the breaker is open").to_string();
        if opened.elapsed() < Duration::from_secs(1) {
            assert!(said.contains("breaker"), "{said}");
            assert!(began.elapsed() < Duration::from_millis(100), "it fails fast");
            assert_eq!(breaker(conn, "calls"), calls, "the bank isn't called");
        }
    }
    // Half-open after the recovery timeout; a probe that fails opens it again.
    bank.kill();
    eventually("a probe fails", || {
        let _ = ask(conn, "GET account:2");
        breaker(conn, "opened") == "2"
    });
    assert_eq!(breaker(conn, "breaker"), "open");
    bank.start_again();
    eventually("a probe succeeds", || ask(conn, "GET account:2") == Ok(Value::Nil));
    assert_eq!(breaker(conn, "breaker"), "half-open", "of two one has succeeded");
    check(conn, vec![("GET account:3", Ok(Value::Nil))]);
    assert_eq!([breaker(conn, "breaker"), breaker(conn, "opened")], ["closed", "2"]);
}

/// A server whose store `main` is a Postgres, with the password in the environment.
fn over_postgres(dir: &Path, toml: &str) -> Server {
    let path = dir.join("larder.toml");
    std::fs::write(&path, toml).expect("the configuration is written");
    let args = [path.to_str().expect("a plain path"), "--logfile", "/dev/null"];
    Server::start_through("env", &[&format!("LARDER_TEST_PASSWORD={PASSWORD}")], dir, &args)
}

/// SYSTEMS 5: rows by id over SQL, several at once all or none; documents with nested fields as JSON strings,
/// of which the database sees the fields.
#[test]
fn row_5_relational_rows_and_documents() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.sql(
        "create table accounts (id bigint primary key, balance bigint not null check (balance >= 0)); \
         insert into accounts values (1, 100), (2, 0); \
         create table products (id text primary key, document json not null)",
    );
    let store = |name: &str, sql: &str| {
        let url = postgres.url();
        format!(
            "[store.{name}]\nkind = 'postgres'\nurl = '{url}'\n\
             password-env = 'LARDER_TEST_PASSWORD'\n{sql}\n"
        )
    };
    let toml = "store-timeout = '20s'\n".to_owned()
        + &store(
            "accounts",
            "pattern = 'account:{id}'\nload = 'select balance from accounts where id = :id'\n\
             save = 'insert into accounts values (:id, :value) \
             on conflict (id) do update set balance = excluded.balance'\n\
             delete = 'delete from accounts where id = :id'",
        )
        + &store(
            "products",
            "pattern = 'product:{id}'\nload = 'select document from products where id = :id'\n\
             save = 'insert into products values (:id, :value) \
             on conflict (id) do update set document = excluded.document'\n\
             delete = 'delete from products where id = :id'",
        )
        + &namespace("account:", "write-through", "accounts")
        + &namespace("product:", "write-through", "products");
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = over_postgres(dir.path(), &toml);
    let conn = &mut server.connect();
    let balances = || postgres.sql("select id, balance from accounts order by id");
    let two = |first: &str, second: &str| Ok(Value::Array(vec![bulk(first), bulk(second)]));
    check(
        conn,
        vec![
            ("MGET account:1 account:2", two("100", "0")),
            ("MSET account:1 70 account:2 30", ok()),
            ("MGET account:1 account:2", two("70", "30")),
        ],
    );
    assert_eq!(balances(), ["1|70", "2|30"]);
    // A transfer that would overdraw leaves both as they were, in the database and in the cache, whichever
    // row it is that is refused.
    for line in ["MSET account:2 130 account:1 -30", "MSET account:1 -30 account:2 130"] {
        check(conn, vec![(line, Err("STOREERR new row for relation \"accounts\" violates"))]);
        check(conn, vec![("MGET account:1 account:2", two("70", "30"))]);
        assert_eq!(balances(), ["1|70", "2|30"]);
    }
    check(
        conn,
        vec![("INCRBY account:2 12", Ok(Value::Int(42))), ("DEL account:1", Ok(Value::Int(1)))],
    );
    assert_eq!(balances(), ["2|42"]);
    // Documents come back byte for byte; the database knows what is in them.
    let document =
        r#"{"name":"laptop","specs":{"ram":"16GB","ports":["usb-c","hdmi"]},"price":999}"#;
    let set = format!("SET product:7 {document}");
    let refused = "STOREERR invalid input syntax for type json";
    check(
        conn,
        vec![
            (&*set, ok()),
            ("GET product:7", Ok(bulk(document))),
            (r#"SET product:7 {"name":"#, Err(refused)),
            (r#"SET product:8 {"name":"#, Err(refused)),
            ("GET product:7", Ok(bulk(document))),
            ("GET product:8", Ok(Value::Nil)),
        ],
    );
    let nested = "select document->'specs'->>'ram', document->'specs'->'ports'->>1 from products";
    assert_eq!(postgres.sql(nested), ["16GB|hdmi"]);
    server.kill9();
    let server = over_postgres(dir.path(), &toml);
    let rows = vec![("GET product:7", Ok(bulk(document))), ("GET account:2", Ok(bulk("42")))];
    check(&mut server.connect(), rows);
}

/// A Redis as the database, behind a delay that is long enough to be seen, and a namespace of each mode.
fn late(database: &Redis, delay: Duration) -> String {
    format!(
        "[store.database]\nkind = 'redis'\nurl = '{}'\n\
         [store.late]\nkind = 'faulty'\nover = 'database'\ndelay = '{}ms'\n",
        database.url(),
        delay.as_millis()
    ) + &namespace("through:", "write-through", "database")
        + &namespace("slow:", "write-through", "late")
        + &namespace("behind:", "write-behind", "late")
}

/// SYSTEMS 8: cache-aside: a hit, a miss, what is loaded has a freshness time, what is past it is cleaned up
/// without being asked for; requests, hits, misses, hit rate, time saved, items. Once the application loads, and
/// once Larder does.
#[test]
fn row_8_cache_aside() {
    let Some(database) = Redis::start() else { return };
    let delay = Duration::from_millis(50);
    let toml = late(&database, delay)
        + "[[namespace]]\nprefix = 'aside:'\nmode = 'cache-aside'\nttl = '30s'\n"
        + &namespace("product:", "read-through", "late")
        + "ttl = '30s'\n";
    let server = Server::start_with(&toml, &["--logfile", "/dev/null"]);
    let conn = &mut server.connect();
    database.ask("SET product:1 Laptop");
    database.ask("SET product:2 Phone");
    // The application looks, loads, and puts it there.
    check(conn, vec![("GET aside:1", Ok(Value::Nil)), ("SET aside:1 Laptop", ok())]);
    let hit = ("GET aside:1", Ok(bulk("Laptop")));
    check(conn, vec![hit.clone(), hit.clone(), hit]);
    let lifetime: i64 = redis::cmd("PTTL").arg("aside:1").query(conn).expect("a time");
    assert!((1..=30_000).contains(&lifetime), "{lifetime}");
    // Larder does all of that at the first GET.
    let began = Instant::now();
    check(conn, vec![("GET product:1", Ok(bulk("Laptop")))]);
    assert!(began.elapsed() >= delay, "the first one is loaded");
    let hit = ("GET product:1", Ok(bulk("Laptop")));
    check(conn, vec![hit.clone(), hit.clone(), hit, ("GET product:2", Ok(bulk("Phone")))]);
    for (prefix, expected) in
        [("aside:", ["4", "3", "1", "0.75", "1"]), ("product:", ["5", "3", "2", "0.60", "2"])]
    {
        let names = ["requests", "hits", "misses", "hit_rate", "items"];
        let line = format!("prefix={prefix}");
        let figures = names.map(|name| figure(conn, "namespaces", &line, name));
        assert_eq!(figures, expected, "{prefix}");
    }
    // Hits times the mean time of a load.
    let saved: f64 =
        figure(conn, "namespaces", "prefix=product:", "seconds_saved").parse().unwrap();
    // It is shown in hundredths.
    assert!(saved + 0.005 >= 3.0 * delay.as_secs_f64(), "{saved}");
    // A shorter time for what comes from now on; nobody asks for it again, and it goes.
    for prefix in ["aside:", "product:"] {
        check(conn, vec![(&format!("LARDER.NAMESPACE SET {prefix} ttl 100ms"), ok())]);
    }
    check(conn, vec![("SET aside:1 Laptop", ok()), ("DEL product:1 product:2", Ok(Value::Int(2)))]);
    database.ask("SET product:3 Tablet");
    check(conn, vec![("GET product:3", Ok(bulk("Tablet")))]);
    eventually("what is stale is cleaned up", || {
        ["aside:", "product:"]
            .iter()
            .all(|prefix| figure(conn, "namespaces", &format!("prefix={prefix}"), "items") == "0")
    });
    check(conn, vec![("GET aside:1", Ok(Value::Nil)), ("GET product:3", Ok(bulk("Tablet")))]);
}

/// SYSTEMS 9: cache and database before the answer.
#[test]
fn row_9_write_through() {
    let Some(database) = Redis::start() else { return };
    let delay = Duration::from_millis(200);
    let server = Server::start_with(&late(&database, delay), &["--logfile", "/dev/null"]);
    let conn = &mut server.connect();
    let direct = redis::Client::open(database.url()).expect("a valid address");
    let mut direct = direct.get_connection().expect("it accepts");
    // Whoever has the answer finds it in the database, and in the cache.
    for number in 0..1000 {
        let (key, value) = (format!("through:{}", number % 10), number.to_string());
        check(conn, vec![(&*format!("SET {key} {value}"), ok())]);
        let line = format!("GET {key}");
        check(&mut direct, vec![(&*line, Ok(bulk(&value)))]);
        check(conn, vec![(&*line, Ok(bulk(&value)))]);
    }
    let loads = figure(conn, "namespaces", "prefix=through:", "loads");
    assert!(loads.parse::<u64>().expect("a number") <= 10, "copies answer: {loads} loads");
    // The answer waits for the database, and so does whoever reads: the old value until then.
    check(conn, vec![("SET slow:1 old", ok())]);
    let mut writer = server.raw();
    let began = Instant::now();
    writer.request(&["SET", "slow:1", "new"]);
    check(conn, vec![("GET slow:1", Ok(bulk("old")))]);
    assert!(began.elapsed() < delay, "a reader doesn't wait");
    assert_eq!(writer.reply(), b"+OK\r\n");
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    check(&mut direct, vec![("GET slow:1", Ok(bulk("new")))]);
    check(conn, vec![("GET slow:1", Ok(bulk("new")))]);
}

/// SYSTEMS 10: answered at once, written once a second, one write for many changes; and what the brief calls
/// the risk of inconsistency isn't there: a crash in between loses nothing.
#[test]
fn row_10_write_behind() {
    let Some(database) = Redis::start() else { return };
    let delay = Duration::from_millis(200);
    let dir = tempfile::tempdir().expect("a directory");
    let toml = late(&database, delay);
    let start = || Server::start_with_in(dir.path(), &toml, &["--logfile", "/dev/null"]);
    let mut server = start();
    let conn = &mut server.connect();
    check(conn, vec![("SET behind:views 0", ok()), ("LARDER.FLUSH", ok())]);
    let before = figure(conn, "namespaces", "prefix=behind:", "flushed");
    let began = Instant::now();
    let mut increments = redis::pipe();
    for _ in 0..1000 {
        increments.cmd("INCR").arg("behind:views").ignore();
    }
    increments.query::<()>(conn).expect("all are answered");
    let answered = began.elapsed();
    println!("1000 changes were answered in {answered:?}");
    check(conn, vec![("GET behind:views", Ok(bulk("1000")))]);
    assert!(answered < delay * 10, "nobody waits for the database: {answered:?}");
    eventually("the database has it", || database.ask("GET behind:views") == "1000");
    let stored = began.elapsed();
    assert!(stored >= Duration::from_secs(1) && stored < Duration::from_secs(5), "{stored:?}");
    let number = |text: String| text.parse::<u64>().expect("a number");
    eventually("it is accounted for", || {
        figure(conn, "namespaces", "prefix=behind:", "dirty_records") == "0"
    });
    let writes = number(figure(conn, "namespaces", "prefix=behind:", "flushed")) - number(before);
    println!("1000 changes were {writes} writes, the last {stored:?} after the first change");
    assert!((1..=2).contains(&writes), "1000 changes were {writes} writes");
    // Answered, not yet stored, and then a crash.
    check(conn, vec![("SET behind:order paid", ok())]);
    assert_eq!(database.ask("GET behind:order"), "(nil)");
    server.kill9();
    assert_eq!(database.ask("GET behind:order"), "(nil)");
    let server = start();
    let conn = &mut server.connect();
    check(conn, vec![("GET behind:order", Ok(bulk("paid"))), ("LARDER.FLUSH", ok())]);
    assert_eq!(database.ask("GET behind:order"), "paid");
}
