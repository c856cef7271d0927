//! A real Postgres behind a real server: a table of its own and tables that are there, as clients see
//! them. Skipped with a word where Postgres isn't installed.

mod common;
#[path = "common/postgres.rs"]
mod instance;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use common::{Raw, Server, eventually, expect, signal};
use instance::{PASSWORD, Postgres};

/// The Postgres that tests share while any of them runs: the last one stops it.
static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

fn shared() -> Option<Arc<Postgres>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(postgres) = shared.upgrade() {
        return Some(postgres);
    }
    let postgres = Arc::new(Postgres::start()?);
    *shared = Arc::downgrade(&postgres);
    Some(postgres)
}

/// A server whose stores find the password in the environment.
fn start(dir: &Path, toml: &str) -> Server {
    start_with(dir, toml, PASSWORD)
}

fn start_with(dir: &Path, toml: &str, password: &str) -> Server {
    let path = dir.join("larder.toml");
    std::fs::write(&path, toml).expect("the configuration is written");
    let (path, log) = (path.to_str().expect("plain"), dir.join("log"));
    let args = [path, "--logfile", log.to_str().expect("plain")];
    Server::start_through("env", &[&format!("LARDER_TEST_PASSWORD={password}")], dir, &args)
}

/// `[store.NAME]`, with these lines.
fn store(postgres: &Postgres, name: &str, more: &str) -> String {
    let url = postgres.url();
    format!(
        "[store.{name}]\nkind = 'postgres'\nurl = '{url}'\npassword-env = 'LARDER_TEST_PASSWORD'\n{more}\n"
    )
}

fn namespace(prefix: &str, mode: &str, store: &str) -> String {
    format!("[[namespace]]\nprefix = '{prefix}'\nmode = '{mode}'\nstore = '{store}'\n")
}

fn expect_error(conn: &mut Raw, line: &str, start: &str) {
    let reply = conn.ask_line(line);
    assert!(reply.starts_with(&format!("-{start}")), "{line}: {reply}");
}

#[test]
fn a_table_of_its_own_loads_writes_deletes_and_keeps_it_all() {
    let Some(postgres) = shared() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let toml = "store-timeout = '20s'\n".to_owned()
        + &store(&postgres, "main", "table = 'kept'")
        + &namespace("order:", "write-through", "main")
        + &namespace("user:", "read-through", "main");
    let mut server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    expect(conn, "GET order:1", "$-1");
    expect(conn, "SET order:1 tea", "+OK");
    expect(conn, "MSET order:2 a order:3 b order:4 c", "+OK");
    expect(conn, "DEL order:3 order:9", ":1");
    expect(conn, "INCR order:count", ":1");
    expect(conn, "SET order:5 soon EX 1000", "+OK");
    assert_eq!(conn.ask(&[&b"SET"[..], b"order:\0\xff", b"\0\r\n\xfe"]), b"+OK\r\n");
    expect(conn, "SET user:1 local", "+OK");
    let rows = "select encode(key, 'escape'), encode(value, 'escape'), deadline > 0, version > 0 \
                from kept where key < '\\x6f726465723a3a' order by key";
    let kept = [
        r"order:\000\377|\000\r\n\376|f|t".replace(r"\r\n", "\r\n"),
        "order:1|tea|f|t".into(),
        "order:2|a|f|t".into(),
        "order:4|c|f|t".into(),
        "order:5|soon|t|t".into(),
    ];
    assert_eq!(postgres.sql(rows), kept);
    server.kill9();
    let server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    expect(conn, "MGET order:4 order:3 order:1 order:count user:1", "*5|$1|c|$-1|$3|tea|$1|1|$-1");
    let left = conn.ask_line("TTL order:5");
    let left: u64 = left.trim_start_matches(':').trim().parse().expect("a deadline");
    assert!((900..=1000).contains(&left), "{left}");
    assert_eq!(conn.ask(&[&b"GET"[..], b"order:\0\xff"]), b"$4\r\n\0\r\n\xfe\r\n");
    // A row changed behind the cache: the copy stays until it is dropped.
    postgres.sql("update kept set value = 'coffee' where key = 'order:1'");
    postgres.sql("insert into kept (key, value) values ('user:1', 'Ada')");
    expect(conn, "GET order:1", "$3|tea");
    expect(conn, "GET user:1", "$3|Ada");
    expect(conn, "FLUSHALL", "+OK");
    expect(conn, "GET order:1", "$6|coffee");
}

/// SEMANTICS 14: *A counter restarts at 0, the store refuses acknowledged writes as older and the flusher takes
/// that for success.*
#[test]
fn rule_14_an_acknowledged_write_wins_over_a_version_from_the_future() {
    let Some(postgres) = shared() else { return };
    // The newest is beyond what `bigint` has without its sign.
    postgres.sql(
        "create table ahead (key bytea primary key, value bytea not null, \
         deadline bigint not null default 0, version bigint not null default 0); \
         insert into ahead (key, value, version) \
         select convert_to(k || i, 'utf8'), 'foreign', 9000000000000000000 + i \
         from unnest(array['b:', 'w:']) as k, generate_series(1, 5) as i; \
         update ahead set version = -9000000000000000000 where key = 'b:5'",
    );
    let dir = tempfile::tempdir().expect("a directory");
    let toml = "store-timeout = '20s'\n".to_owned()
        + &store(&postgres, "main", "table = 'ahead'")
        + &namespace("w:", "write-through", "main")
        + &namespace("b:", "write-behind", "main")
        + "behind-delay = '1h'\nbehind-partitions = 1\n";
    let server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    let rows = |prefix: &str| {
        let newer = "(version < 0 or version > 9000000000000000000)";
        postgres.sql(&format!(
            "select convert_from(value, 'utf8'), count(*), bool_and({newer}) from ahead \
             where key between '{prefix}' and '{prefix}~' group by 1 order by 1"
        ))
    };
    expect(conn, "MSET w:1 ours w:2 ours", "+OK");
    assert_eq!(rows("w:"), ["foreign|3|t", "ours|2|t"]);
    conflicts(conn, "w:", 2);
    expect(conn, "SET w:3 ours", "+OK");
    conflicts(conn, "w:", 2);
    for number in 1..=6 {
        expect(conn, &format!("SET b:{number} ours"), "+OK");
    }
    expect(conn, "LARDER.FLUSH", "+OK");
    assert_eq!(rows("b:"), ["ours|6|t"]);
    conflicts(conn, "b:", 1);
    expect(conn, "DEL b:5", ":1");
    expect(conn, "LARDER.FLUSH", "+OK");
    assert_eq!(rows("b:"), ["ours|5|t"]);
    conflicts(conn, "b:", 1);
}

/// How often the store had a version that was never issued here.
fn conflicts(conn: &mut Raw, key: &str, count: u64) {
    let info = conn.ask_line(&format!("LARDER.NAMESPACE INFO {key}"));
    assert!(info.contains(&format!("conflicts\r\n:{count}\r\n")), "{info}");
}

/// A server that is no standby doesn't lag, and says so.
#[test]
fn a_replica_within_max_lag_is_read() {
    let Some(postgres) = shared() else { return };
    postgres.sql(
        "create table copied (key bytea primary key, value bytea not null, \
         deadline bigint not null default 0, version bigint not null default 0); \
         insert into copied select convert_to('k:' || i, 'utf8'), 'copy' \
         from generate_series(0, 9999) as i",
    );
    let dir = tempfile::tempdir().expect("a directory");
    let toml = "store-timeout = '20s'\n".to_owned()
        + &store(&postgres, "origin", "table = 'origin'")
        + &store(&postgres, "copy", "table = 'copied'")
        + "[store.both]\nkind = 'replicated'\nprimary = 'origin'\nreplicas = ['copy']\n\
           max-lag = '1s'\n"
        + &namespace("k:", "read-through", "both");
    let server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    let mut number = 0;
    // Its first connection may take longer than a lag is waited for.
    eventually("the replica is read", || {
        number += 1;
        conn.ask_line(&format!("GET k:{number}")) == "$4\r\ncopy\r\n"
    });
    let info = conn.ask_line("INFO stores");
    let line = info.lines().find(|line| line.starts_with("store_both.copy:"));
    assert!(line.is_some_and(|line| line.contains(",lag_ms=0,")), "{info}");
}

#[test]
fn tables_that_are_there_are_served_through_sql() {
    let Some(postgres) = shared() else { return };
    postgres.sql(
        "create table people (id bigint primary key, name text check (name <> 'bad'), \
         seen bigint, ends bigint); insert into people values (1, 'Ada'), (2, null)",
    );
    let sql = "pattern = 'user:{id}'\nload = 'select name from people where id = :id'\n\
               save = 'insert into people values (:id, :value, :version, :deadline) \
               on conflict (id) do update set (name, seen, ends) = \
               (excluded.name, excluded.seen, excluded.ends)'\n\
               delete = 'delete from people where id = :id'";
    let dir = tempfile::tempdir().expect("a directory");
    let toml = "store-timeout = '20s'\n".to_owned()
        + &store(&postgres, "people", sql)
        + &namespace("user:", "write-through", "people")
        + "ttl = '200ms'\n";
    let server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    expect(conn, "MGET user:1 user:2 user:3", "*3|$3|Ada|$-1|$-1");
    expect(conn, "SET user:3 Bob", "+OK");
    expect(conn, "APPEND user:1 x", ":4");
    expect(conn, "MSET user:4 a user:5 b user:6 c", "+OK");
    expect(conn, "DEL user:4 user:5", ":2");
    expect(conn, "SET user:6 d EX 1000", "+OK");
    let all = "select id, name, seen > 0, ends > 0 from people order by id";
    let rows = ["1|Adax|t|NULL", "2|NULL|NULL|NULL", "3|Bob|t|NULL", "6|d|t|t"];
    assert_eq!(postgres.sql(all), rows);
    // All or none, and what Postgres refuses is never seen.
    expect_error(conn, "MSET user:1 new user:7 bad user:8 new", "STOREERR new row");
    expect_error(conn, "SET user:1 bad", "STOREERR new row");
    assert_eq!(postgres.sql(all), rows);
    expect(conn, "MGET user:1 user:7 user:8", "*3|$4|Adax|$-1|$-1");
    // The request's own fault, not the store's.
    expect_error(conn, "GET user:abc", "STOREERR invalid input syntax for type bigint");
    expect_error(conn, "GET user:", "STOREERR the key doesn't fit");
    assert!(conn.ask(&[&b"GET"[..], b"user:\xff"]).starts_with(b"-STOREERR "));
    expect(conn, "GET user:3", "$3|Bob");
    // A row changed behind the cache is seen when the copy's time is over.
    postgres.sql("update people set name = 'Bea' where id = 3");
    eventually("the copy's time is over", || conn.ask_line("GET user:3") == "$3\r\nBea\r\n");
    // A table that changes under a prepared statement.
    postgres.sql("alter table people alter name type varchar(100)");
    eventually("it is loaded again", || conn.ask_line("GET user:3") == "$3\r\nBea\r\n");
    expect(conn, "SET user:3 Cleo", "+OK");
}

#[test]
fn a_key_that_does_not_fit_the_pattern_is_refused_at_the_write() {
    let Some(postgres) = shared() else { return };
    postgres.sql("create table fitting (id bigint primary key, name text)");
    let sql = "pattern = 'fit:{id}'\nload = 'select name from fitting where id = :id'\n\
               save = 'insert into fitting values (:id, :value) \
               on conflict (id) do update set name = excluded.name'\n\
               delete = 'delete from fitting where id = :id'";
    for mode in ["write-through", "write-behind"] {
        let dir = tempfile::tempdir().expect("a directory");
        let toml = store(&postgres, "main", sql) + &namespace("fit:", mode, "main");
        let server = start(dir.path(), &toml);
        let conn = &mut server.raw();
        expect_error(conn, "SET fit: x", "STOREERR the key doesn't fit");
        expect_error(conn, "MSET fit:1 a fit: b", "STOREERR the key doesn't fit");
        expect(conn, "GET fit:1", "$-1");
        expect(conn, "SET fit:2 b", "+OK");
        expect(conn, "LARDER.FLUSH", "+OK");
        expect(conn, "LARDER.DEADLETTER LIST", "*0");
        assert_eq!(postgres.sql("delete from fitting returning id, name"), ["2|b"], "{mode}");
    }
}

/// Type, a text that is stored, what comes back.
const TYPES: &[(&str, &str, &str)] = &[
    ("text", "grüß", "grüß"),
    ("varchar(9)", "abc", "abc"),
    ("char(4)", "ab", "ab  "),
    ("bytea", "\\x00", "\\x00"),
    ("json", r#"{"a":1}"#, r#"{"a":1}"#),
    ("jsonb", r#"{"a":1}"#, r#"{"a": 1}"#),
    ("smallint", "-7", "-7"),
    ("int", "007", "7"),
    ("bigint", "9223372036854775807", "9223372036854775807"),
    ("real", "0.1", "0.1"),
    ("double precision", "1e300", "1e+300"),
    ("boolean", "yes", "true"),
    ("numeric(9,2)", "1.5", "1.50"),
    ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("date", "2024-02-29", "2024-02-29"),
    ("timestamp", "2024-02-29T12:00:00", "2024-02-29 12:00:00"),
    ("int[]", "{1,2}", "{1,2}"),
    ("mood", "glad", "glad"),
    ("raw", "any", "any"),
];

#[test]
fn values_are_what_postgres_makes_of_them() {
    let Some(postgres) = shared() else { return };
    postgres.sql("create type mood as enum ('sad', 'glad'); create domain raw as bytea");
    let mut toml = "store-timeout = '20s'\n".to_owned();
    let mut namespaces = String::new();
    for (number, (of_type, ..)) in TYPES.iter().enumerate() {
        postgres.sql(&format!("create table typed{number} (id int primary key, v {of_type})"));
        let sql = format!(
            "pool = 1\npattern = 'typed{number}:{{id}}'\n\
             load = 'select v from typed{number} where id = :id -- the end'\n\
             save = 'insert into typed{number} values (:id, :value) \
             on conflict (id) do update set v = excluded.v;'\n\
             delete = 'update typed{number} set v = null where id = :id'\n"
        );
        toml += &store(&postgres, &format!("s{number}"), &sql);
        namespaces +=
            &namespace(&format!("typed{number}:"), "write-through", &format!("s{number}"));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), &(toml + &namespaces));
    let conn = &mut server.raw();
    for (number, (of_type, stored, _)) in TYPES.iter().enumerate() {
        let reply = conn.ask(&["SET", &format!("typed{number}:1"), stored]);
        assert_eq!(String::from_utf8_lossy(&reply), "+OK\r\n", "{of_type}");
    }
    expect(conn, "FLUSHALL", "+OK");
    for (number, (of_type, _, loaded)) in TYPES.iter().enumerate() {
        let reply = conn.ask_line(&format!("GET typed{number}:1"));
        assert_eq!(reply, format!("${}\r\n{loaded}\r\n", loaded.len()), "{of_type}");
        expect(conn, &format!("DEL typed{number}:1"), ":1");
        expect(conn, &format!("GET typed{number}:1"), "$-1");
    }
    expect_error(conn, "SET typed7:1 seven", "STOREERR invalid input syntax for type integer");
    expect_error(conn, "SET typed17:1 odd", "STOREERR invalid input value for enum");
}

#[test]
fn it_comes_back_when_postgres_does() {
    let Some(mut postgres) = Postgres::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let toml = "store-timeout = '4s'\n".to_owned()
        + &store(&postgres, "main", "")
        + &namespace("order:", "write-through", "main");
    let mut server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    eventually("the first write", || conn.ask_line("SET order:1 tea") == "+OK\r\n");
    postgres.stop();
    // What is in memory is served; what needs the store says so, and has changed nothing.
    expect(conn, "GET order:1", "$3|tea");
    expect_error(conn, "GET order:2", "STOREDOWN ");
    eventually("a lost connection is noticed", || {
        conn.ask_line("SET order:1 milk").starts_with("-STOREDOWN ")
    });
    postgres.start_again();
    eventually("a write", || conn.ask_line("SET order:1 coffee") == "+OK\r\n");
    expect(conn, "GET order:2", "$-1");
    assert_eq!(postgres.sql("select encode(value, 'escape') from larder"), ["coffee"]);
    // A server starts without its store.
    server.kill9();
    postgres.stop();
    let server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    expect(conn, "SET plain 1", "+OK");
    expect_error(conn, "GET order:1", "STOREDOWN error connecting to server");
    postgres.start_again();
    eventually("a load", || conn.ask_line("GET order:1") == "$6\r\ncoffee\r\n");
}

#[test]
fn wrong_credentials_are_said_and_no_secret_is() {
    let Some(postgres) = shared() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let toml = "store-timeout = '20s'\n".to_owned()
        + &store(&postgres, "main", "table = 'secrets'")
        + &namespace("order:", "write-through", "main");
    for (password, reply) in [("hunter2-hunter2", "-STOREDOWN password"), (PASSWORD, "$-1")] {
        let server = start_with(dir.path(), &toml, password);
        let conn = &mut server.raw();
        let said = conn.ask_line("GET order:1");
        assert!(said.starts_with(reply), "{said}");
        let path = dir.path().join("log");
        let log = || std::fs::read_to_string(&path).unwrap_or_default();
        eventually("the log says how the store is", || log().contains("store main (postgres)"));
        let mut shown = said + &log();
        for line in
            ["INFO everything", "CONFIG GET *", "CLIENT LIST", "SLOWLOG GET", "COMMAND DOCS"]
        {
            shown += &conn.ask_line(line);
        }
        assert!(!shown.contains(password), "the password shows");
    }
    let text = toml.replace("larder@", "larder:hunter2@");
    let path = dir.path().join("wrong.toml");
    std::fs::write(&path, text).expect("written");
    let mut larder = std::process::Command::new(env!("CARGO_BIN_EXE_larder"));
    let output = larder.arg(&path).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("wrong.toml:4:7: `url`: no password here"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_slow_statement_is_stopped_and_a_silent_server_given_up() {
    let Some(postgres) = shared() else { return };
    postgres.sql("create table slow (seconds float8 primary key, v text, pause float8 default 0)");
    postgres.sql("insert into slow values (9, 'late', 9)");
    let sql = "pool = 1\nstatement-timeout = '500ms'\npattern = 'slow:{s}'\n\
               load = 'select v from slow, pg_sleep(pause) where seconds = :s'\n\
               save = 'insert into slow (seconds, v) select :s, :value from pg_sleep(:s) \
               on conflict (seconds) do update set v = excluded.v'\n\
               delete = 'delete from slow where seconds = :s'";
    let dir = tempfile::tempdir().expect("a directory");
    let toml = "store-timeout = '4s'\n".to_owned()
        + &store(&postgres, "slow", sql)
        + &namespace("slow:", "write-through", "slow");
    let server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    eventually("it is connected", || conn.ask_line("SET slow:0 x") == "+OK\r\n");
    // Postgres stops the statement: nothing has changed.
    expect_error(conn, "GET slow:9", "STOREDOWN canceling statement due to statement timeout");
    expect_error(conn, "SET slow:3 x", "STOREDOWN canceling statement due to statement timeout");
    assert_eq!(postgres.sql("select seconds, v from slow order by 1"), ["0|x", "9|late"]);
    expect(conn, "FLUSHALL", "+OK");
    expect(conn, "GET slow:0", "$1|x");
    // Postgres says nothing: nobody knows, and the copy goes.
    let backend = "select pid from pg_stat_activity where application_name = 'larder' \
                   and query like '%slow%' and pid <> pg_backend_pid()";
    let pids = || -> Vec<u32> {
        postgres.sql(backend).iter().map(|pid| pid.parse().expect("a pid")).collect()
    };
    let frozen = pids();
    assert_eq!(frozen.len(), 1, "one connection");
    frozen.iter().for_each(|pid| signal(*pid, "STOP"));
    let began = std::time::Instant::now();
    let said = conn.ask_line("SET slow:0 y");
    frozen.iter().for_each(|pid| signal(*pid, "CONT"));
    assert!(said.starts_with("-STORETIMEOUT "), "{said}");
    assert!(began.elapsed() < common::PATIENCE);
    eventually("the old backend is gone", || !pids().contains(&frozen[0]));
    expect(conn, "FLUSHALL", "+OK");
    let kept = postgres.sql("select v from slow where seconds = 0");
    expect(conn, "GET slow:0", &format!("$1|{}", kept[0]));
    expect(conn, "SET slow:0 z", "+OK");
}

#[test]
fn the_sample_configuration_serves_as_it_is() {
    let Some(postgres) = shared() else { return };
    postgres.sql("create table users (id bigint primary key, name text)");
    postgres.sql("insert into users values (1, 'Ada')");
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/config/postgres.toml");
    let sample = std::fs::read_to_string(sample).expect("the sample");
    let here = format!("url = \"{}\"\npassword-env = \"LARDER_TEST_PASSWORD\"", postgres.url());
    let toml = sample.replace("url = \"postgres://larder@127.0.0.1:5432/larder\"", &here);
    let toml = toml.replace("port = 6379", "store-timeout = '20s'");
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), &toml);
    let conn = &mut server.raw();
    expect(conn, "GET user:1", "$3|Ada");
    expect(conn, "SET user:2 Bob", "+OK");
    expect(conn, "SET order:1 tea", "+OK");
    assert_eq!(postgres.sql("select name from users order by id"), ["Ada", "Bob"]);
    assert_eq!(postgres.sql("select encode(value, 'escape') from larder"), ["tea"]);
}
