//! Quotas of namespaces, over sockets: what clients see of them, and that the bound holds under load. The
//! rules are tested one by one in `src/cache/tests`.

mod common;

use common::{Raw, Server, encode, expect};

const TOML: &str = r#"
memory = "16mb"
POLICY

[store.main]
kind = "memory"

[[namespace]]
prefix = "page:"
mode = "cache-aside"
quota = { memory = "1mb" }

[[namespace]]
prefix = "user:"
mode = "write-through"
store = "main"
quota-memory = "256kb"

[[namespace]]
prefix = "free:"
mode = "cache-aside"
"#;

const QUOTA: u64 = 1 << 20;

fn start(policy: &str) -> Server {
    Server::start_with(&TOML.replace("POLICY", policy), &[])
}

/// Items, bytes and quota of a namespace, by LARDER.NAMESPACE.
fn sizes(conn: &mut Raw, key: &str) -> (u64, u64, u64) {
    let reply = conn.ask_line(&format!("LARDER.NAMESPACE INFO {key}"));
    let lines: Vec<&str> = reply.split("\r\n").collect();
    let figure = |name: &str| {
        let at = lines.iter().position(|line| *line == name).expect("it is shown");
        lines[at + 1].trim_start_matches(':').parse().expect("a number")
    };
    (figure("items"), figure("bytes"), figure("quota"))
}

fn set(key: &str, len: usize) -> Vec<u8> {
    encode(&["SET", key, &"v".repeat(len)])
}

/// Asks a line in which `$` stands for a value.
fn ask(conn: &mut Raw, line: &str, value: &str) -> String {
    let words: Vec<_> =
        line.split(' ').map(|word| if word == "$" { value } else { word }).collect();
    String::from_utf8_lossy(&conn.ask(&words)).into_owned()
}

/// Several clients write far more than fits, of all sizes; the namespace never has more than its quota when
/// they pause, and nobody else's keys go.
#[test]
fn a_quota_holds_under_load_and_others_keep_their_keys() {
    let server = start("");
    let mut clients: Vec<Raw> = (0..4).map(|_| server.raw()).collect();
    let conn = &mut server.raw();
    for number in 0..500 {
        expect(conn, &format!("SET free:{number} value"), "+OK");
        expect(conn, &format!("SET else:{number} value"), "+OK");
    }
    assert_eq!(sizes(conn, "free:1"), (500, 500 * 32, 0));
    for round in 0..20 {
        for (at, client) in clients.iter_mut().enumerate() {
            let sets = (0..200).flat_map(|number| {
                set(&format!("page:{round}:{at}:{number}"), (round * 97 + number * 31) % 9_000)
            });
            client.send(sets.collect::<Vec<_>>());
        }
        for client in &mut clients {
            (0..200).for_each(|_| assert_eq!(client.reply(), b"+OK\r\n"));
        }
        let (items, bytes, quota) = sizes(conn, "page:1");
        assert_eq!(quota, QUOTA);
        assert!(bytes <= QUOTA && items > 0, "{bytes} bytes in round {round}");
        assert!(round < 2 || bytes > QUOTA * 8 / 10, "{bytes} bytes in round {round}");
    }
    for number in 0..500 {
        expect(conn, &format!("MGET free:{number} else:{number}"), "*2|$5|value|$5|value");
    }
    let info = conn.ask_line("INFO namespaces");
    assert!(
        info.contains("prefix=free:,db=0,mode=cache-aside,store=,items=500,bytes=16000,"),
        "{info}"
    );
    expect(conn, "FLUSHALL", "+OK");
    assert_eq!(sizes(conn, "page:1"), (0, 0, QUOTA));
    assert_eq!(sizes(conn, "free:1"), (0, 0, 0));
}

/// What a client is told that writes more than fits; all keys of a command are set, or none.
#[test]
fn refusals_name_the_namespace() {
    let server = start("maxmemory-policy = \"noeviction\"");
    let conn = &mut server.raw();
    let oom = |prefix: &str, quota: u64| {
        let text = "-OOM command not allowed: namespace";
        format!("{text} '{prefix}' has a quota of {quota} bytes\r\n")
    };
    let value = "v".repeat(200 << 10);
    for number in 0..4 {
        assert_eq!(ask(conn, &format!("SET page:{number} $"), &value), "+OK\r\n");
    }
    let full = oom("page:", QUOTA);
    for line in
        ["SET page:4 $", "APPEND page:3 $", "MSET free:1 x page:4 $", "MSETNX page:4 x page:5 $"]
    {
        assert_eq!(ask(conn, line, &value), full, "{line}");
    }
    assert_eq!(ask(conn, "SET page:3 $", &value), "+OK\r\n", "as long as before");
    expect(conn, "EXISTS free:1 page:4 page:5", ":0");
    expect(conn, "DEL page:0 page:1", ":2");
    assert_eq!(ask(conn, "MSETNX page:4 x page:5 $", &value), ":1\r\n");
    // A store isn't told of what can't be kept.
    let larger = "v".repeat(300 << 10);
    assert_eq!(ask(conn, "SET user:1 $", &larger), oom("user:", 256 << 10));
    expect(conn, "EXISTS user:1", ":0");
    assert_eq!(ask(conn, "SET user:1 $", &value), "+OK\r\n");
    expect(conn, "COPY user:1 page:6", ":1");
    assert_eq!(conn.ask_line("COPY user:1 page:7"), full);
}

#[test]
fn a_quota_of_more_than_memory_or_of_nothing_is_refused_with_its_line() {
    for (quota, why) in [
        ("quota = { memory = \"17mb\" }", "5:20: `quota-memory` is more than `memory`"),
        ("quota-memory = 0", "5:16: `quota-memory`"),
    ] {
        let toml = format!(
            "memory = \"16mb\"\n[[namespace]]\nprefix = \"\"\nmode = \"cache-aside\"\n{quota}\n"
        );
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("larder.toml");
        std::fs::write(&path, toml).expect("written");
        let ended = std::process::Command::new(env!("CARGO_BIN_EXE_larder"))
            .arg(&path)
            .output()
            .expect("larder starts");
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{told}");
        assert!(told.contains(why), "{told}");
    }
}
