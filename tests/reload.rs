//! A configuration that changes while the server runs, over sockets: by SIGHUP, by LARDER.NAMESPACE SET, and
//! into the file by CONFIG REWRITE.

mod common;

use std::path::{Path, PathBuf};

use common::{Raw, Server, eventually, expect, signal};

const TOML: &str = r#"
timeout = "1000s"
[store.main]
kind = "redb"
[[namespace]]
prefix = "w:"
mode = "write-through"
store = "main"
ttl = "1h"  # long
[[namespace]]
prefix = "b:"
mode = "write-behind"
store = "main"
behind-delay = "1h"
"#;

struct Bench {
    dir: tempfile::TempDir,
    server: Server,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write(dir.path(), TOML);
        let server = start(dir.path());
        Self { dir, server }
    }

    /// Has the server read this file.
    fn reload(&self, toml: &str) {
        write(self.dir.path(), toml);
        signal(self.server.pid(), "HUP");
    }

    /// Waits until the log has this.
    fn logged(&self, text: &str) {
        let log = self.dir.path().join("log");
        eventually(text, || std::fs::read_to_string(&log).is_ok_and(|log| log.contains(text)));
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("larder.toml")
}

fn write(dir: &Path, toml: &str) {
    std::fs::write(file(dir), toml).expect("the configuration is written");
}

fn start(dir: &Path) -> Server {
    let (path, log) = (file(dir), dir.join("log"));
    let args = [
        path.to_str().expect("a plain path"),
        "--logfile",
        log.to_str().expect("a plain path"),
        "--maxclients",
        "77",
    ];
    Server::start_through(env!("CARGO_BIN_EXE_larder"), &[], dir, &args)
}

/// A key of a namespace as it is in force.
fn setting(conn: &mut Raw, prefix: &str, key: &str) -> String {
    after(&conn.ask_line(&format!("LARDER.NAMESPACE GET {prefix}")), key, 2)
}

/// A figure of a namespace.
fn figure(conn: &mut Raw, key: &str, name: &str) -> String {
    after(&conn.ask_line(&format!("LARDER.NAMESPACE INFO {key}")), name, 1)
}

/// The line that comes so many lines behind this one.
fn after(reply: &str, line: &str, lines: usize) -> String {
    let mut found = reply.lines().skip_while(|other| *other != line).skip(lines);
    found.next().unwrap_or_else(|| panic!("no {line}: {reply}")).to_owned()
}

#[test]
fn at_sighup_what_is_safe_takes_effect() {
    let bench = Bench::new();
    let conn = &mut bench.server.raw();
    expect(conn, "SET w:1 tea", "+OK");
    expect(conn, "FLUSHALL", "+OK");
    (0..3).for_each(|_| expect(conn, "GET w:1", "$3|tea"));
    assert_eq!(figure(conn, "w:", "loads"), ":1");
    let changed = TOML.replace("\"1h\"  # long", "\"50ms\"").replace("1000s", "2000s");
    bench.reload(&(changed.clone() + "negative-ttl = '1s'\nbehind-tries = 3\n"));
    bench.logged(
        "received SIGHUP, the configuration is read again: timeout, `ttl` of namespace `w:`, ",
    );
    assert_eq!(setting(conn, "w:", "ttl"), "50");
    assert_eq!(setting(conn, "b:", "behind-tries"), "3");
    assert_eq!(setting(conn, "b:", "negative-ttl"), "1000");
    expect(conn, "CONFIG GET timeout", "*2|$7|timeout|$4|2000");
    // No copy is good for an hour any more.
    expect(conn, "GET w:1", "$3|tea");
    assert_eq!(figure(conn, "w:", "loads"), ":2");
    eventually("the new copy ends, too", || {
        expect(conn, "GET w:1", "$3|tea");
        figure(conn, "w:", "loads") == ":3"
    });
    // The file holds again, where CONFIG SET had another value; a flag wins over both.
    expect(conn, "CONFIG SET timeout 7 maxclients 50", "+OK");
    bench.reload(&format!("maxclients = 9{}", changed.replace("2000s", "3000s")));
    eventually("it is read", || conn.ask_line("CONFIG GET timeout").ends_with("3000\r\n"));
    expect(conn, "CONFIG GET maxclients", "*2|$10|maxclients|$2|77");
}

#[test]
fn at_sighup_what_takes_a_restart_is_refused_with_all_the_rest() {
    let bench = Bench::new();
    let conn = &mut bench.server.raw();
    let shorter = TOML.replace("\"1h\"  # long", "\"50ms\"").replace("1000s", "2000s");
    for (text, why) in [
        (
            shorter.replace("write-through", "write-around"),
            "larder.toml:7:8: a change of `mode` of namespace `w:` takes a restart",
        ),
        (
            shorter.replace("\"redb\"", "\"memory\""),
            "larder.toml:3:1: a new or changed store `main` takes a restart",
        ),
        (
            format!("databases = 3{shorter}"),
            "larder.toml:1:1: a change of `databases` takes a restart",
        ),
        (
            shorter.replace("\"50ms\"", "\"50\""),
            "larder.toml:9:7: `ttl`: a bare number has no unit",
        ),
        ("[".to_owned(), "larder.toml:1:"),
    ] {
        bench.reload(&text);
        bench.logged(why);
        assert_eq!(setting(conn, "w:", "ttl"), "3600000");
        expect(conn, "CONFIG GET timeout", "*2|$7|timeout|$4|1000");
    }
    bench.logged("received SIGHUP, and nothing is changed: ");
    bench.reload(TOML);
    bench.logged("received SIGHUP: the configuration is as it was");
}

#[test]
fn keys_of_a_namespace_are_set_by_command_and_outlive_a_restart_once_rewritten() {
    let mut bench = Bench::new();
    let conn = &mut bench.server.raw();
    // What waits for its delay goes when that is over.
    expect(conn, "SET b:1 tea", "+OK");
    assert_eq!(figure(conn, "b:", "dirty_records"), ":1");
    expect(conn, "LARDER.NAMESPACE SET b: behind-delay 0 behind-batch 7", "+OK");
    eventually("it is stored", || figure(conn, "b:", "dirty_records") == ":0");
    expect(conn, "LARDER.NAMESPACE SET w: ttl 5m STALE-IF-ERROR 1h", "+OK");
    for (line, error) in [
        ("SET x: ttl 5m", "ERR no namespace has this prefix"),
        ("GET x:", "ERR no namespace has this prefix"),
        ("SET w: ttl 5m store other", "ERR a change of `store` takes a restart"),
        ("SET w: ttl 5m tll 5m", "ERR a namespace has no `tll`"),
        ("SET w: ttl soon", "ERR `ttl`: expected a duration"),
        ("SET w: ttl default", "ERR `stale-if-error` without a `ttl`"),
        ("SET w: jitter 5 behind-delay 5", "ERR `behind-delay` where nothing is written behind"),
        ("SET w: ttl", "ERR wrong number of arguments"),
        ("SET w: ttl 5m jitter", "ERR syntax error"),
    ] {
        let reply = conn.ask_line(&format!("LARDER.NAMESPACE {line}"));
        assert!(reply.starts_with(&format!("-{error}")), "{line}: {reply}");
    }
    expect(conn, "SELECT 1", "+OK");
    expect(conn, "LARDER.NAMESPACE GET w:", "-ERR no namespace has this prefix");
    expect(conn, "SELECT 0", "+OK");
    assert_eq!(setting(conn, "w:", "ttl"), "300000");
    assert_eq!(setting(conn, "w:", "jitter"), "0");
    assert_eq!(setting(conn, "w:", "negative-ttl"), "");
    expect(conn, "CONFIG REWRITE", "+OK");
    let text = std::fs::read_to_string(file(bench.dir.path())).expect("readable");
    assert!(text.contains("ttl = \"5m\"  # long\nstale-if-error = \"1h\"\n"), "{text}");
    assert!(text.contains("behind-delay = \"0\"\nbehind-batch = 7\n"), "{text}");
    assert_eq!(bench.server.stop(), Some(0));
    bench.server = start(bench.dir.path());
    let conn = &mut bench.server.raw();
    assert_eq!(setting(conn, "w:", "ttl"), "300000");
    assert_eq!(setting(conn, "b:", "behind-batch"), "7");
}
