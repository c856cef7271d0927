//! The log of a real server: one line an event in both forms, the level and the form in force, start and
//! stop, bursts of refusals, rotation, and no secret at any level.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Redis, Server, eventually, expect, signal};

/// What could end a line, or do something to a terminal.
const NASTY: &[u8] = b"a\nb\r\t\x1b[31m\x1b]0;x\x07\xc2\x9b2J\0\x7f\xe2\x80\xae\"\\\xff";

/// A server that logs to a file, in a directory that outlives it.
struct Bench {
    dir: tempfile::TempDir,
    server: Server,
}

impl Bench {
    fn new(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("log");
        let mut args = vec!["--logfile", log.to_str().expect("a plain path")];
        args.extend(flags);
        let server = Server::start_in(dir.path(), &args);
        Self { dir, server }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).expect("the log is there")
    }

    /// The lines that hold this.
    fn lines(&self, with: &str) -> Vec<String> {
        let text = self.text();
        text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }

    /// The only line that holds this, once it is there.
    fn line(&self, with: &str) -> String {
        eventually(with, || !self.lines(with).is_empty());
        let lines = self.lines(with);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        lines.into_iter().next().unwrap_or_default()
    }
}

/// Has the server log a text.
fn say(server: &Server, text: &[u8]) {
    assert_eq!(server.raw().ask(&[&b"DEBUG"[..], b"LOG", text]), b"+OK\r\n");
}

#[test]
fn whatever_it_holds_an_event_is_one_line_that_moves_no_cursor() {
    for form in ["text", "json"] {
        let bench = Bench::new(&["--log-format", form, "--loglevel", "debug"]);
        let before = bench.text().lines().count();
        say(&bench.server, NASTY);
        say(&bench.server, b"plain");
        let after = bench.text();
        assert_eq!(after.lines().count(), before + 2, "{after}");
        let is_odd = |char: char| char != '\n' && char.is_control() || char == '\u{202e}';
        assert!(!after.contains(is_odd), "{after:?}");
        let line = bench.line("DEBUG LOG: a");
        if form == "text" {
            let told = "a\\nb\\r\\t\\u{1b}[31m\\u{1b}]0;x\\u{7}\\u{9b}2J\\u{0}\\u{7f}\\u{202e}\"\\\u{fffd}";
            assert!(line.ends_with(&format!(" INFO DEBUG LOG: {told}")), "{line}");
            continue;
        }
        for line in after.lines() {
            let event = json::object(line).unwrap_or_else(|| panic!("not an object: {line}"));
            let names: Vec<_> =
                event.keys().map(String::as_str).filter(|name| *name != "fields").collect();
            assert_eq!(names, ["level", "message", "timestamp"], "{line}");
        }
        let event = json::object(&line).expect("an object");
        let told = format!("DEBUG LOG: {}", String::from_utf8_lossy(NASTY));
        assert_eq!(event["message"], told);
        assert_eq!(event["level"], "INFO");
    }
}

#[test]
fn level_and_form_change_from_the_next_line_on() {
    let bench = Bench::new(&[]);
    let client = &mut bench.server.raw();
    for (form, other) in [("text", "json"), ("json", "text")] {
        expect(client, &format!("CONFIG SET log-format {form}"), "+OK");
        for (level, is_told) in [
            ("warning", false),
            ("notice", true),
            ("verbose", true),
            ("warning", false),
            ("debug", true),
        ] {
            expect(client, &format!("CONFIG SET loglevel {level}"), "+OK");
            let text = format!("{form}-{level}");
            let before = bench.lines(&text).len();
            say(&bench.server, text.as_bytes());
            let lines = bench.lines(&text);
            assert_eq!(lines.len() - before, usize::from(is_told), "{text}");
            let is_json = lines.iter().all(|line| json::object(line).is_some());
            assert!(is_json == (form == "json") || lines.is_empty(), "{lines:?}, not {other}");
        }
    }
    expect(client, "CONFIG GET log-format", "*2|$10|log-format|$4|json");
    let refused = client.ask_line("CONFIG SET log-format xml");
    assert!(refused.contains("one of the following: text, json"), "{refused}");
}

#[test]
fn start_and_stop_are_a_line_each() {
    for (form, reason) in [("text", "SIGTERM"), ("json", "SHUTDOWN")] {
        let mut bench = Bench::new(&["--log-format", form, "--bind", "127.0.0.1"]);
        let (pid, port) = (bench.server.pid(), bench.server.port());
        if reason == "SHUTDOWN" {
            bench.server.raw().send("SHUTDOWN\r\n");
            bench.server.wait();
        } else {
            bench.server.stop();
        }
        let (started, stopped) =
            (bench.line("larder has started"), bench.line("larder has stopped"));
        let version = env!("CARGO_PKG_VERSION");
        for (line, why) in [(&started, ""), (&stopped, reason)] {
            if form == "json" {
                let event = json::object(line).expect("an object");
                let fields = json::object(&event["fields"]).expect("an object");
                assert_eq!(fields["pid"], pid.to_string());
                assert_eq!(fields["port"], port.to_string());
                assert_eq!(fields["version"], version);
                assert_eq!(fields["addresses"], format!("127.0.0.1:{port}"));
                assert_eq!(fields.get("reason").map_or("", String::as_str), why);
            } else {
                let told =
                    format!("version={version} pid={pid} port={port} addresses=127.0.0.1:{port}");
                assert!(line.contains(&told), "{line}");
                assert!(
                    why.is_empty() || line.contains(&format!(" reason={why} uptime=")),
                    "{line}"
                );
            }
        }
        assert!(bench.line("larder is stopping").contains(reason));
        assert_eq!(bench.text().lines().last(), Some(stopped.as_str()));
    }
}

#[test]
fn a_start_that_fails_is_a_line_too() {
    let (server, dir) = (Server::start(&[]), tempfile::tempdir().expect("a temporary directory"));
    let (port, path) = (server.port().to_string(), dir.path().join("log"));
    let (dir, path) = (dir.path().to_str().expect("plain"), path.to_str().expect("plain"));
    let run = |more: &[&str]| {
        let args = ["--port", &port, "--dir", dir, "--bind", "127.0.0.1", "--log-format", "json"];
        let ended = Command::new(env!("CARGO_BIN_EXE_larder")).args(args).args(more).output();
        let ended = ended.expect("it runs");
        assert_eq!(ended.status.code(), Some(4));
        String::from_utf8(ended.stderr).expect("text")
    };
    let why = format!("can't listen on 127.0.0.1:{port}: ");
    // Where the log is what one sees, it is all that one sees.
    let seen = run(&[]);
    let last = json::object(seen.lines().last().expect("a line")).expect("an object");
    assert!(last["level"] == "ERROR" && last["message"].contains(&why), "{seen}");
    let seen = run(&["--logfile", path]);
    assert!(seen.starts_with(&format!("larder: {why}")), "{seen}");
    assert!(fs::read_to_string(path).expect("the log").contains(&why));
}

#[test]
fn a_burst_of_refusals_is_a_line_or_two() {
    let mut bench = Bench::new(&["--maxclients", "1", "--log-format", "json"]);
    let mut first = bench.server.raw();
    expect(&mut first, "PING", "+PONG");
    for _ in 0..300 {
        let mut refused =
            TcpStream::connect(("127.0.0.1", bench.server.port())).expect("it listens");
        let mut text = String::new();
        refused.read_to_string(&mut text).expect("a refusal");
        assert_eq!(text, "-ERR max number of clients reached\r\n");
    }
    let told = "connections not taken: `maxclients` is reached";
    eventually("it is told", || !bench.lines(told).is_empty());
    let reply = first.ask_line("INFO stats");
    assert!(reply.contains("\r\nrejected_connections:300\r\n"), "{reply}");
    bench.server.stop();
    let lines = bench.lines(told);
    assert!(lines.len() <= 3, "{lines:#?}");
    let count = |line: &String| {
        let event = json::object(line).expect("an object");
        let fields = json::object(&event["fields"]).expect("an object");
        assert!(event["level"] == "WARN" && fields["last"].starts_with("127.0.0.1:"), "{line}");
        assert_ne!(fields["seconds"], "0");
        fields["count"].parse::<u64>().expect("a number")
    };
    assert_eq!(lines.iter().map(count).sum::<u64>(), 300);
}

#[test]
fn the_file_is_opened_again_at_sighup() {
    for with_file in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (log, config) = (dir.path().join("log"), dir.path().join("larder.toml"));
        fs::write(&config, "timeout = '1000s'\n").expect("the configuration is written");
        let mut args = vec!["--logfile", log.to_str().expect("plain")];
        if with_file {
            args.insert(0, config.to_str().expect("plain"));
        }
        let server = Server::start_in(dir.path(), &args);
        say(&server, b"before");
        let old = dir.path().join("log.1");
        fs::rename(&log, &old).expect("it is moved");
        say(&server, b"between");
        signal(server.pid(), "HUP");
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        eventually("there is a new file", || read(&log).contains("received SIGHUP"));
        say(&server, b"after");
        let (old, new) = (read(&old), read(&log));
        assert!(old.contains("before") && old.contains("between"), "{old}");
        assert!(new.contains("DEBUG LOG: after") && !new.contains("between"), "{new}");
        assert!(!old.contains("after") && !old.contains("SIGHUP"), "{old}");
        // What can't be opened changes nothing.
        fs::remove_file(&log).expect("it is removed");
        fs::create_dir(&log).expect("a directory");
        signal(server.pid(), "HUP");
        eventually("the server lives", || server.raw().ask_line("PING") == "+PONG\r\n");
    }
}

#[test]
fn breakers_and_reloads_are_a_line_each_at_their_level() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("plain").to_owned();
    let toml = format!(
        "loglevel = 'verbose'\nlog-format = 'json'\nlogfile = '{}'\n\
         [store.web]\nkind = 'http'\nurl = 'http://127.0.0.1:1/'\nbreaker-least-calls = 2\n\
         [[namespace]]\nprefix = 'b:'\nmode = 'read-through'\nstore = 'web'\nttl = '1s'\n",
        path("log")
    );
    let server = Server::start_with_in(dir.path(), &toml, &[]);
    let client = &mut server.raw();
    let events = |with: &str| -> Vec<_> {
        let log = fs::read_to_string(path("log")).expect("the log");
        let events = log.lines().map(|line| json::object(line).expect("an object"));
        events.filter(|event| event["message"].contains(with)).collect()
    };
    let one = |with: &str, level: &str| {
        eventually(with, || !events(with).is_empty());
        let found = events(with);
        assert!(found.len() == 1 && found[0]["level"] == level, "{found:?}");
    };
    eventually("it opens", || {
        assert!(client.ask_line("GET b:1").starts_with("-STOREDOWN"));
        !events("and is open").is_empty()
    });
    one("store web: its breaker was closed and is open: ", "WARN");
    expect(client, "LARDER.BREAKER CLOSE web", "+OK");
    one("and is closed: by hand", "INFO");
    fs::write(path("larder.toml"), toml.replace("verbose", "notice")).expect("written");
    signal(server.pid(), "HUP");
    one("received SIGHUP, the configuration is read again: loglevel", "INFO");
    fs::write(path("larder.toml"), "[").expect("written");
    signal(server.pid(), "HUP");
    one("received SIGHUP, and nothing is changed: ", "WARN");
}

#[test]
fn no_secret_shows_at_any_level() {
    const SECRETS: [&str; 5] =
        ["open-sesame-1", "open-sesame-2", "open-sesame-3", "open-sesame-4", "open-sesame-5"];
    let [first, set, tried, store, wrong] = SECRETS;
    let Some(redis) = Redis::start_with(Some("right-one")) else { return };
    for form in ["text", "json"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name).to_str().expect("plain").to_owned();
        fs::write(path("secret"), store).expect("a file");
        let toml = format!(
            "requirepass = '{first}'\nloglevel = 'debug'\nlog-format = '{form}'\nlogfile = '{}'\n\
             [store.main]\nkind = 'redis'\nurl = 'redis://127.0.0.1:{}'\npassword-file = '{}'\n\
             [store.web]\nkind = 'http'\nurl = 'http://user@127.0.0.1:1/'\npassword-file = '{2}'\n\
             [[namespace]]\nprefix = 'a:'\nmode = 'read-through'\nstore = 'main'\nttl = '1s'\n\
             [[namespace]]\nprefix = 'b:'\nmode = 'read-through'\nstore = 'web'\nttl = '1s'\n",
            path("log"),
            redis.port(),
            path("secret")
        );
        let server = Server::start_with_in(dir.path(), &toml, &[]);
        let (client, log) =
            (&mut server.raw(), || fs::read_to_string(path("log")).expect("the log"));
        assert!(client.ask_line(&format!("AUTH {tried}")).starts_with("-WRONGPASS"));
        expect(client, &format!("AUTH {first}"), "+OK");
        assert!(client.ask_line("GET a:1").starts_with("-STORE"));
        assert!(client.ask_line("GET b:1").starts_with("-STORE"));
        eventually("the store's refusal is told", || log().contains("doesn't let us in"));
        expect(client, &format!("CONFIG SET requirepass {set}"), "+OK");
        assert!(
            client.ask_line(&format!("CONFIG SET requirepass {wrong} nope 1")).starts_with('-')
        );
        // A reload that takes effect, and two that can't.
        for (text, told) in [
            (toml.replace(first, wrong), "is read again: requirepass"),
            (toml.replace(first, wrong) + "nope = 1\n", "nothing is changed"),
            (toml.replace(&format!("'{first}'"), &format!("{wrong}'")), "nothing is changed"),
        ] {
            let before = log().matches(told).count();
            fs::write(path("larder.toml"), text).expect("the configuration is written");
            signal(server.pid(), "HUP");
            eventually(told, || log().matches(told).count() > before);
        }
        let log = log();
        for secret in SECRETS {
            assert!(!log.contains(secret), "{secret}: {log}");
        }
        assert!(!log.contains("sesame"), "{log}");
    }
}

/// Enough of JSON to read what a log has: an object, of texts, plain values and objects.
mod json {
    use super::BTreeMap;

    /// The members; texts without quotes and escapes, other values as they stand. `None`: it isn't one.
    pub fn object(text: &str) -> Option<BTreeMap<String, String>> {
        let (found, rest) = members(text)?;
        rest.is_empty().then_some(found)
    }

    fn members(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
        let (mut found, mut rest) = (BTreeMap::new(), text.strip_prefix('{')?);
        loop {
            let (name, behind) = string(rest)?;
            let (value, behind) = value(behind.strip_prefix(':')?)?;
            if found.insert(name, value).is_some() {
                return None;
            }
            match behind.strip_prefix(',') {
                Some(more) => rest = more,
                None => return Some((found, behind.strip_prefix('}')?)),
            }
        }
    }

    fn value(text: &str) -> Option<(String, &str)> {
        if text.starts_with('"') {
            return string(text);
        }
        if text.starts_with('{') {
            let (_, rest) = members(text)?;
            return Some((text[..text.len() - rest.len()].to_owned(), rest));
        }
        let (plain, rest) = text.split_at(text.find([',', '}'])?);
        let is_plain = matches!(plain, "true" | "false" | "null") || plain.parse::<f64>().is_ok();
        is_plain.then(|| (plain.to_owned(), rest))
    }

    fn string(text: &str) -> Option<(String, &str)> {
        let (mut found, mut chars) = (String::new(), text.strip_prefix('"')?.chars());
        loop {
            match chars.next()? {
                '"' => return Some((found, chars.as_str())),
                '\\' => match chars.next()? {
                    'n' => found.push('\n'),
                    'r' => found.push('\r'),
                    't' => found.push('\t'),
                    'u' => {
                        let (digits, rest) = chars.as_str().split_at_checked(4)?;
                        found.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                        chars = rest.chars();
                    }
                    char @ ('"' | '\\' | '/') => found.push(char),
                    _ => return None,
                },
                char if char < ' ' => return None,
                char => found.push(char),
            }
        }
    }
}
