//! Stores that are made of others, over sockets: ranges, replicas and how they are chosen, and faults.
//! What each store has in its file tells a client which one answered.

mod common;

use std::path::Path;

use common::{Server, ask, bulk, check, eventually};
use redis::{Connection, Value};

/// Puts records into a store of its own process: what another program would have left there.
fn fill(path: &Path, pairs: &[(String, &str)]) {
    let store = larder::store::redb(path).expect("a new store");
    let put = |(key, value): &(String, &str)| {
        let value = bytes::Bytes::copy_from_slice(value.as_bytes());
        let record = larder::store::Record { value, deadline: 0, version: 1, fresh_for: None };
        let key = bytes::Bytes::copy_from_slice(key.as_bytes());
        (key, larder::store::Change::Put(record))
    };
    let changes: Vec<_> = pairs.iter().map(put).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(store.apply(&changes)).expect("an empty store takes them");
}

/// `[store.NAME]` over a file of that name.
fn redb(dir: &Path, name: &str) -> String {
    let path = dir.join(format!("{name}.redb"));
    format!("[store.{name}]\nkind = 'redb'\npath = '{}'\n", path.display())
}

fn namespace(prefix: &str, mode: &str, store: &str) -> String {
    format!("[[namespace]]\nprefix = '{prefix}'\nmode = '{mode}'\nstore = '{store}'\n")
}

fn ok() -> Value {
    Value::Okay
}

/// A part's figure in INFO: the number, or the word that stands for it.
fn figure(conn: &mut Connection, part: &str, name: &str) -> String {
    let info: String = redis::cmd("INFO").arg("stores").query(conn).expect("INFO");
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("store_{part}:")));
    let line = line.unwrap_or_else(|| panic!("no {part}: {info}"));
    let value = line.split(',').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    value.unwrap_or_else(|| panic!("no {name}: {line}")).to_owned()
}

/// SYSTEMS, row 6: user ids 0-33M, 33-66M and 66-100M.
const RANGES: &str = "[store.users]\nkind = 'sharded'\nby = 'range'\npattern = 'user:{id}'\nranges = [\n\
    { from = 0, to = 33_000_000, store = 'users-a' },\n\
    { from = 33_000_000, to = 66_000_000, store = 'users-b' },\n\
    { from = 66_000_000, to = 100_000_000, store = 'users-c' },\n]\n";

#[test]
fn users_are_sharded_by_range_and_an_id_out_of_range_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let names = ["users-a", "users-b", "users-c"];
    for (name, id) in names.into_iter().zip([5, 40_000_000, 99_999_999]) {
        let file = dir.path().join(format!("{name}.redb"));
        fill(&file, &[(format!("user:{id}"), name)]);
    }
    let toml = RANGES.to_owned()
        + &names.map(|name| redb(dir.path(), name)).concat()
        + &namespace("user:", "write-through", "users");
    let mut server = Server::start_with_in(dir.path(), &toml, &[]);
    let conn = &mut server.connect();
    let out = "STOREERR id 100000001 is in no range (0-99999999)";
    check(
        conn,
        vec![
            ("GET user:5", Ok(bulk("users-a"))),
            ("GET user:40000000", Ok(bulk("users-b"))),
            ("GET user:99999999", Ok(bulk("users-c"))),
            ("GET user:100000001", Err(out)),
            ("SET user:100000001 x", Err(out)),
            ("GET user:100000000", Err("STOREERR id 100000000 is in no range (0-99999999)")),
            ("GET user:ada", Err("STOREERR the key's id is no number")),
            ("SET user:ada x", Err("STOREERR the key's id is no number")),
            ("SET user:32999999 a", Ok(ok())),
            ("SET user:33000000 b", Ok(ok())),
            ("MSET user:1 x user:2 y", Ok(ok())),
            ("MGET user:2 user:33000000 user:5 user:99999999", {
                Ok(Value::Array(["y", "b", "users-a", "users-c"].map(bulk).to_vec()))
            }),
            // Two shards can't be changed all or none.
            ("MSET user:1 z user:33000000 z", Err("CROSSSTORE ")),
            ("DEL user:1 user:33000000", Err("CROSSSTORE ")),
            ("MGET user:1 user:33000000", Ok(Value::Array(["x", "b"].map(bulk).to_vec()))),
        ],
    );
    // None of that was a store's fault.
    let parts = names.map(|name| format!("users.{name}"));
    assert_eq!(parts.clone().map(|part| figure(conn, &part, "failures")), ["0", "0", "0"]);
    assert_eq!(figure(conn, "users.users-b", "range"), "33000000-65999999");
    let list = ask(conn, "LARDER.BREAKER LIST").expect("a list");
    assert_eq!(list.as_sequence().map(<[Value]>::len), Some(3), "one for each shard: {list:?}");
    assert_eq!(server.stop(), Some(0));
    // Each value is in its own file.
    for (name, key) in [("users-a", "user:32999999"), ("users-b", "user:33000000")] {
        let store = larder::store::redb(dir.path().join(format!("{name}.redb"))).expect("its file");
        let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
        let keys = [bytes::Bytes::copy_from_slice(key.as_bytes())];
        let found = runtime.block_on(store.load(&keys)).expect("a load");
        assert!(found[0].is_some(), "{key} is in {name}");
    }
}

#[test]
fn keys_with_one_tag_can_be_written_together_by_hash() {
    let shards = ["s1", "s2", "s3"];
    let toml = shards.map(|name| format!("[store.{name}]\nkind = 'memory'\n")).concat()
        + "[store.shop]\nkind = 'sharded'\nby = 'hash'\nstores = ['s1', 's2', 's3']\n"
        + &namespace("", "write-through", "shop");
    let server = Server::start_with(&toml, &[]);
    let conn = &mut server.connect();
    for user in 0..20 {
        let line = format!("MSET cart:{{{user}}} a order:{{{user}}}:1 b");
        check(conn, vec![(&line, Ok(ok()))]);
    }
    let requests = shards.map(|name| figure(conn, &format!("shop.{name}"), "requests"));
    let requests = requests.map(|count| count.parse::<u32>().expect("a number"));
    assert!(requests.iter().all(|count| *count > 0), "{requests:?}");
    assert_eq!(requests.iter().sum::<u32>(), 20);
    // Of so many keys some are in another shard.
    let many: String = (0..20).map(|at| format!(" k{at} v")).collect();
    check(conn, vec![(&format!("MSET{many}"), Err("CROSSSTORE "))]);
}

/// Files of a primary and three replicas, in which each key has the store's name as its value.
fn fill_replicas(dir: &Path) -> String {
    let files = |name: &str| {
        let keys: Vec<_> = (0..40).map(|at| (format!("k{at}"), name)).collect();
        fill(&dir.join(format!("{name}.redb")), &keys);
        redb(dir, name)
    };
    ["primary", "r1", "r2", "r3"].map(files).concat()
}

/// `[store.main]` over them.
fn replicated(replicas: &str, more: &str) -> String {
    format!(
        "[store.main]\nkind = 'replicated'\nprimary = 'primary'\nreplicas = {replicas}\n{more}\n"
    )
}

/// Who answers loads of keys that no one has loaded yet.
fn who(conn: &mut Connection, keys: std::ops::Range<u32>) -> Vec<String> {
    let get = |at| redis::cmd("GET").arg(format!("k{at}")).query(conn).expect("a value");
    keys.map(get).collect()
}

/// SYSTEMS, row 3.
#[test]
fn loads_go_round_and_by_weight() {
    let dir = tempfile::tempdir().expect("a directory");
    // The second server must not begin with the copies of the first.
    let cold = "warm-restart = false\n".to_owned();
    let toml = cold.clone()
        + &fill_replicas(dir.path())
        + &replicated("['r1', 'r2', 'r3']", "")
        + &namespace("k", "read-through", "main");
    let mut server = Server::start_with_in(dir.path(), &toml, &[]);
    let conn = &mut server.connect();
    assert_eq!(who(conn, 0..6), ["r1", "r2", "r3", "r1", "r2", "r3"]);
    assert_eq!(who(conn, 0..1), ["r1"], "a copy");
    assert_eq!(figure(conn, "main.r1", "requests"), "2");
    assert_eq!(figure(conn, "main.primary", "requests"), "0");
    assert_eq!(server.stop(), Some(0));
    let by_weight = replicated(
        "['r1', 'r2']",
        "spread = 'weighted'\nweights = [3, 1, 2]\nread-from-primary = true",
    );
    let toml = cold
        + &["primary", "r1", "r2"].map(|name| redb(dir.path(), name)).concat()
        + &by_weight
        + &namespace("k", "read-through", "main");
    let server = Server::start_with_in(dir.path(), &toml, &[]);
    let conn = &mut server.connect();
    assert_eq!(who(conn, 0..6), ["r1", "primary", "r1", "r2", "primary", "r1"]);
    who(conn, 6..24);
    let counts =
        ["r1", "r2", "primary"].map(|name| figure(conn, &format!("main.{name}"), "requests"));
    assert_eq!(counts, ["12", "4", "8"]);
}

/// SYSTEMS, rows 3 and 7: start and completion are counted, also of a load that was given up.
#[test]
fn the_replica_with_the_fewest_reads_in_progress_is_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let toml = "store-timeout = '4s'\n".to_owned()
        + &fill_replicas(dir.path())
        + "[store.slow]\nkind = 'faulty'\nover = 'r1'\nhang-every = 1\nhang-for = '1h'\n"
        + &replicated("['slow', 'r2', 'r3']", "spread = 'least-connections'")
        + &namespace("k", "read-through", "main");
    let server = Server::start_with_in(dir.path(), &toml, &[]);
    let conn = &mut server.connect();
    let mut waiting = server.raw();
    waiting.request(&["GET", "k0"]);
    eventually("the load has started", || figure(conn, "main.slow", "in_progress") == "1");
    assert_eq!(who(conn, 1..5), ["r2", "r3", "r2", "r3"]);
    assert_eq!(figure(conn, "main.slow", "in_progress"), "1");
    assert!(waiting.reply().starts_with(b"-STORETIMEOUT "));
    eventually("the load is over", || figure(conn, "main.slow", "in_progress") == "0");
    // It is free again, and has had the fewest.
    waiting.request(&["GET", "k10"]);
    eventually("it is asked again", || figure(conn, "main.slow", "requests") == "2");
    assert_eq!(who(conn, 11..13), ["r2", "r3"]);
}

/// SYSTEMS, row 7.
#[test]
fn replicas_past_max_lag_are_left_out_and_the_lag_is_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let late = |name: &str, over: &str, lag: &str| {
        format!("[store.{name}]\nkind = 'faulty'\nover = '{over}'\nlag = '{lag}'\n")
    };
    let toml = fill_replicas(dir.path())
        + &late("late", "r1", "3s")
        + &late("well", "r2", "1s")
        + &replicated("['late', 'well', 'r3']", "max-lag = '2s'")
        + &replicated("['late']", "max-lag = '2s'").replace("main", "alone")
        + &namespace("k", "read-through", "main")
        + &namespace("k3", "read-through", "alone");
    let server = Server::start_with_in(dir.path(), &toml, &[]);
    let conn = &mut server.connect();
    // The first lags too much, the third can't tell.
    assert_eq!(who(conn, 4..7), ["r2", "r2", "r2"]);
    let lags = ["late", "well", "r3"].map(|name| figure(conn, &format!("main.{name}"), "lag_ms"));
    assert_eq!(lags, ["3000", "1000", "unknown"]);
    let left_out = ["late", "well"].map(|name| figure(conn, &format!("main.{name}"), "left_out"));
    assert_eq!(left_out, ["3", "0"]);
    // None is left: the primary is asked.
    assert_eq!(who(conn, 30..32), ["primary", "primary"]);
}

/// SEMANTICS 15, and a replica that is down.
#[test]
fn who_writes_reads_the_primary_and_a_replica_that_is_down_is_passed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let toml = fill_replicas(dir.path())
        + "[store.down]\nkind = 'faulty'\nover = 'r1'\nfail-every = 1\n"
        + &replicated("['down', 'r2']", "")
        + &namespace("k", "read-through", "main")
        + &namespace("k2", "write-through", "main");
    let server = Server::start_with_in(dir.path(), &toml, &[]);
    let conn = &mut server.connect();
    assert_eq!(who(conn, 20..23), ["primary", "primary", "primary"]);
    check(conn, vec![("SET k20 new", Ok(ok())), ("GET k20", Ok(bulk("new")))]);
    assert_eq!(who(conn, 0..2), ["r2", "r2"]);
    assert_ne!(figure(conn, "main.down", "failures"), "0");
    assert_eq!(figure(conn, "main.r2", "failures"), "0");
}

#[test]
fn a_faulty_store_fails_as_told() {
    let toml = "[store.real]\nkind = 'memory'\n[store.trial]\nkind = 'faulty'\nover = 'real'\n\
                fail-every = 3\nbreaker = false\n"
        .to_owned()
        + &namespace("", "write-through", "trial");
    let server = Server::start_with(&toml, &[]);
    let down = "STOREDOWN it was made to fail";
    check(
        &mut server.connect(),
        vec![
            ("SET a 1", Ok(ok())),
            ("SET a 2", Ok(ok())),
            ("SET a 3", Err(down)),
            ("GET a", Ok(bulk("2"))),
            ("SET a 4", Ok(ok())),
            ("GET a", Ok(bulk("4"))),
        ],
    );
}

#[test]
fn the_sample_configuration_serves_as_it_is() {
    let sample = include_str!("../config/sharded.toml");
    let dir = tempfile::tempdir().expect("a directory");
    let data = format!("\"{}/", dir.path().display());
    let server = Server::start_with_in(dir.path(), &sample.replace("\"data/", &data), &[]);
    check(
        &mut server.connect(),
        vec![
            ("SET user:17 Ada", Ok(ok())),
            ("GET user:100000001", Err("STOREERR id 100000001 is in no range")),
            ("MSET cart:{ada} tea order:{ada}:1 coffee", Ok(ok())),
            ("SET session:1 x", Ok(ok())),
            ("MGET user:17 cart:{ada} session:1 session:2", {
                let found = ["Ada", "tea", "x"].map(bulk);
                Ok(Value::Array(found.into_iter().chain([Value::Nil]).collect()))
            }),
        ],
    );
}
