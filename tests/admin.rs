//! The admin address: what a scrape shows, health, and who may ask.

mod common;

use std::{
    collections::{HashMap, HashSet},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
};

use common::{PATIENCE, Server, eventually, http};
use larder::metrics::{GROUPS, Kind, Metric};

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// All that has metrics: disk, namespaces, write-behind, a store.
const EVERYTHING: &str = "\
disk = { size = '64mb' }
[store.main]
kind = 'redb'
[[namespace]]
prefix = 'user:'
mode = 'write-behind'
store = 'main'
behind = { delay = '10ms' }
quota = { memory = '1mb' }
[[namespace]]
prefix = 'a\"b\\:'
mode = 'read-through'
store = 'main'
";

/// A sample: its name, its labels, and its value.
type Sample = (String, Vec<(String, String)>, f64);

/// Takes the text format apart; panics where it isn't one.
fn samples(text: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (head, value) = line.rsplit_once(' ').expect("a value");
        let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = head.split_once('{').unwrap_or((head, "}"));
        let mut rest = labels.strip_suffix('}').expect("closed");
        let mut found = Vec::new();
        while let Some((label, behind)) = rest.split_once("=\"") {
            let mut text = String::new();
            let mut chars = behind.char_indices();
            let end = loop {
                match chars.next().expect("closed") {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().expect("escaped").1 {
                        'n' => text.push('\n'),
                        char => text.push(char),
                    },
                    (_, char) => text.push(char),
                }
            };
            found.push((label.to_owned(), text));
            rest = behind[end + 1..].trim_start_matches(',');
        }
        samples.push((name.to_owned(), found, value));
    }
    samples
}

fn scrape(server: &Server) -> Vec<Sample> {
    let answer = http::get(server.admin(), "/metrics");
    assert_eq!(answer.status, 200);
    samples(&answer.body)
}

/// The sum of the samples of a name that have these labels.
fn sum(samples: &[Sample], name: &str, with: &[(&str, &str)]) -> f64 {
    let has = |labels: &[(String, String)], (label, value): &(&str, &str)| {
        labels.iter().any(|(known, is)| known == label && is == value)
    };
    let fits = |sample: &&Sample| sample.0 == name && with.iter().all(|pair| has(&sample.1, pair));
    let found: Vec<f64> = samples.iter().filter(fits).map(|sample| sample.2).collect();
    assert!(!found.is_empty(), "{name} {with:?}");
    found.iter().sum()
}

fn declared() -> HashMap<&'static str, &'static Metric> {
    GROUPS.iter().flat_map(|(_, metrics)| *metrics).map(|metric| (metric.name, metric)).collect()
}

#[test]
fn a_scrape_shows_what_is_declared_and_nothing_else() {
    let server = Server::start_with(EVERYTHING, &ADMIN);
    let mut redis = server.connect();
    redis::cmd("SET").arg("user:1").arg("x").exec(&mut redis).expect("set");
    redis::cmd("GET").arg("user:1").query::<String>(&mut redis).expect("there");
    let wrong = redis::cmd("GET").arg("user:1").arg("2").exec(&mut redis);
    assert!(wrong.is_err());

    let answer = http::get(server.admin(), "/metrics");
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    let declared = declared();
    let mut shown = HashSet::new();
    for (name, labels, _) in samples(&answer.body) {
        let parts = ["_bucket", "_sum", "_count"];
        let base = parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(&name);
        let metric = declared.get(base).or_else(|| declared.get(&*name));
        let metric = metric.unwrap_or_else(|| panic!("{name} isn't declared"));
        let names: Vec<&str> = labels.iter().map(|(label, _)| label.as_str()).collect();
        let mut wanted = metric.labels.to_vec();
        wanted.extend(name.ends_with("_bucket").then_some("le"));
        assert_eq!(names, wanted, "{name}");
        shown.insert(metric.name);
    }
    for metric in declared.values() {
        let kind = format!("# TYPE {} {}\n", metric.name, metric.kind.name());
        let help = format!("# HELP {} ", metric.name);
        assert_eq!(answer.body.matches(&kind).count(), 1, "{}", metric.name);
        assert_eq!(answer.body.matches(&help).count(), 1, "{}", metric.name);
        // Not every build has the allocator, and a curve needs more lookups.
        let is_optional = ["larder_allocator_bytes", "larder_mrc_hit_ratio"].contains(&metric.name);
        assert!(is_optional || shown.contains(metric.name), "{} shows nothing", metric.name);
        assert!(metric.kind != Kind::Histogram || answer.body.contains("le=\"+Inf\""));
    }
}

#[test]
fn the_figures_are_true() {
    let server = Server::start_with(EVERYTHING, &ADMIN);
    let mut redis = server.connect();
    let before = scrape(&server);
    for number in 0..200 {
        redis::cmd("SET").arg(format!("user:{number}")).arg("x").exec(&mut redis).expect("set");
        redis::cmd("GET").arg(format!("user:{number}")).exec(&mut redis).expect("hit");
        redis::cmd("GET").arg(format!("plain:{number}")).exec(&mut redis).expect("miss");
    }
    redis::cmd("GET").arg("a\"b\\:1").exec(&mut redis).expect("miss");
    let _ = redis::cmd("INCR").arg("user:1").exec(&mut redis);
    let after = scrape(&server);
    let more = |name, with: &[(&str, &str)]| sum(&after, name, with) - sum(&before, name, with);
    let commands = "larder_commands_total";
    assert_eq!(more(commands, &[("family", "string"), ("outcome", "ok")]), 601.0);
    assert_eq!(more(commands, &[("family", "string"), ("outcome", "error")]), 1.0);
    assert_eq!(more("larder_lookups_total", &[("outcome", "hit")]), 200.0);
    assert_eq!(more("larder_lookups_total", &[("outcome", "miss")]), 201.0);
    let tiers = ["l1", "l2", "l3"].map(|tier| more("larder_tier_hits_total", &[("tier", tier)]));
    assert_eq!(tiers.iter().sum::<f64>(), 200.0);
    assert_eq!(more("larder_namespace_hits_total", &[("namespace", "user:")]), 200.0);
    // A prefix is shown as INFO shows it: what isn't plain is escaped, and then once more for the format.
    assert_eq!(more("larder_namespace_misses_total", &[("namespace", "a\\\"b\\\\:")]), 1.0);
    assert_eq!(sum(&after, "larder_errors_total", &[("code", "ERR")]), 1.0);
    assert_eq!(more("larder_behind_changes_total", &[("namespace", "user:")]), 200.0);
    assert_eq!(sum(&after, "larder_namespace_entries", &[("namespace", "user:")]), 200.0);
    assert!(sum(&after, "larder_journal_bytes", &[]) > 0.0);
    assert_eq!(sum(&after, "larder_breaker_state", &[("state", "closed")]), 1.0);
    // Sampled, but it counts for all but those since the last sample.
    let timed = more("larder_command_duration_seconds_count", &[("family", "string")]);
    assert!((300.0..=602.0).contains(&timed), "{timed}");
    assert!(more("larder_turn_duration_seconds_count", &[]) >= 602.0);
    assert!(more("larder_received_bytes_total", &[]) > 10_000.0);
    assert!(sum(&after, "process_resident_memory_bytes", &[]) > 1e6);
    assert!(sum(&after, "process_open_fds", &[]) > 5.0);
    redis::cmd("LARDER.FLUSH").exec(&mut redis).expect("flushed");
    let flushed = scrape(&server);
    assert_eq!(sum(&flushed, "larder_dirty_records", &[("namespace", "user:")]), 0.0);
    // Counters start again, as a restart of the process would have them.
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut redis).expect("reset");
    assert_eq!(sum(&scrape(&server), "larder_lookups_total", &[("outcome", "hit")]), 0.0);
}

fn state(server: &Server, query: &str) -> serde_json::Value {
    let answer = http::get(server.admin(), &format!("/state{query}"));
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    serde_json::from_str(&answer.body).expect("JSON")
}

#[test]
fn the_state_has_a_history_and_is_asked_for_what_is_new() {
    let server = Server::start_with(EVERYTHING, &ADMIN);
    let mut redis = server.connect();
    for number in 0..100 {
        redis::cmd("SET").arg(format!("user:{number}")).arg("x").exec(&mut redis).expect("set");
        redis::cmd("GET").arg(format!("user:{number}")).exec(&mut redis).expect("hit");
    }
    let mut found = serde_json::Value::Null;
    eventually("there are readings", || {
        found = state(&server, "");
        found["history"].as_array().is_some_and(|history| history.len() > 2)
    });
    let history = found["history"].as_array().expect("readings");
    let sum = |name: &str| history.iter().filter_map(|reading| reading[name].as_u64()).sum::<u64>();
    // For a second each: where the machine was busy, a reading is of more than that.
    assert!((20..=210).contains(&sum("commands")), "{history:?}");
    assert!((10..=105).contains(&(sum("l1") + sum("l2"))), "{history:?}");
    assert!(history.iter().all(|reading| reading["dirty"].is_u64()), "{history:?}");
    let at = |index: usize| history[index]["at"].as_u64().expect("a time");
    let newer = state(&server, &format!("?x=y&since={}", at(1)));
    assert_eq!(newer["history"][0]["at"], at(2));
    for odd in ["?since=", "?since=-1", "?since=x&since", "?&&=", "?since=99999999999999999999"] {
        assert_eq!(state(&server, odd)["history"][0]["at"], at(0), "{odd}");
    }
    let user = &found["namespaces"]["shown"][0];
    assert_eq!((&user["prefix"], &user["requests"]), (&"user:".into(), &100.into()));
    assert_eq!(user["behind"]["changes"], 100);
    assert_eq!(found["stores"][0]["breaker"]["state"], "closed");
}

#[test]
fn the_state_shows_no_secret() {
    let toml = "requirepass = 'hunter2'\n[store.main]\nkind = 'redis'\nurl = 'redis://127.0.0.1:1/7'\n\
                [[namespace]]\nprefix = 'a:'\nmode = 'read-through'\nstore = 'main'\n";
    let server = Server::start_with(toml, &ADMIN);
    let text = http::get(server.admin(), "/state").body;
    assert!(text.contains("(hidden)") && text.contains("\"kind\":\"redis\""), "{text}");
    for secret in ["hunter2", "redis://", "127.0.0.1:1/"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

/// A server that writes through to another one.
fn over_a_store() -> (Server, Server) {
    let upstream = Server::start(&[]);
    let toml = format!(
        "[store.main]\nkind = 'redis'\nurl = 'redis://127.0.0.1:{}/'\nbreaker = false\n\
         [[namespace]]\nprefix = 'a:'\nmode = 'write-through'\nstore = 'main'\n",
        upstream.port()
    );
    let server = Server::start_with(&toml, &ADMIN);
    (server, upstream)
}

#[test]
fn health_has_reasons() {
    let (server, mut upstream) = over_a_store();
    let ready = http::get(server.admin(), "/readyz");
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert!(ready.head.contains("application/json"));
    assert!(ready.body.starts_with("{\"status\":\"ok\",\"checks\":["), "{}", ready.body);
    upstream.kill9();
    eventually("the store is missed", || http::get(server.admin(), "/readyz").status == 503);
    let ready = http::get(server.admin(), "/readyz").body;
    assert!(ready.contains("{\"name\":\"store main\",\"ok\":false,\"reason\":\""), "{ready}");
    let live = http::get(server.admin(), "/livez");
    assert_eq!((live.status, live.body.contains("background-tasks")), (200, true));
}

/// `larder health ...`: its exit code, and what it says.
fn health(words: &[&str]) -> (Option<i32>, String) {
    let mut larder = Command::new(env!("CARGO_BIN_EXE_larder"));
    let output = larder.arg("health").args(words).output().expect("larder runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn health_can_be_asked_from_the_shell() {
    let (server, mut upstream) = over_a_store();
    assert_eq!(health(&[server.admin()]), (Some(0), "ok\n".to_owned()));
    upstream.kill9();
    eventually("the store is missed", || health(&[server.admin()]).0 == Some(1));
    let (_, said) = health(&[server.admin()]);
    assert!(said.starts_with(&format!("larder: {}: store main: ", server.admin())), "{said}");
    assert_eq!(health(&[&format!("{}/livez", server.admin())]), (Some(0), "ok\n".to_owned()));
    // Not a page of ours, not a Larder, nobody, nobody who answers, and nothing that can be asked.
    assert_eq!(health(&[&format!("{}/nowhere", server.admin())]).0, Some(1));
    assert_eq!(health(&[&format!("127.0.0.1:{}", server.port())]).0, Some(1));
    assert_eq!(health(&["127.0.0.1:1"]).0, Some(1));
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = silent.local_addr().expect("bound").to_string();
    let expected = format!("larder: {address}: no answer within 3s\n");
    assert_eq!(health(&[&address]), (Some(1), expected));
    assert_eq!(health(&["--ready"]).0, Some(2));
    assert_eq!(health(&["--help"]).0, Some(0));
}

#[test]
fn a_store_that_nobody_has_to_ask_may_be_away() {
    let toml = "[store.main]\nkind = 'redis'\nurl = 'redis://127.0.0.1:1/'\n\
                [[namespace]]\nprefix = 'a:'\nmode = 'read-through'\nstore = 'main'\nttl = '1m'\nstale_if_error = '1h'\n";
    let server = Server::start_with(toml, &ADMIN);
    assert_eq!(http::get(server.admin(), "/readyz").status, 200);
}

#[test]
fn it_only_reads_and_only_for_this_machine() {
    let server = Server::start(&ADMIN);
    let address = server.admin();
    let ask = |request: String| http::ask(address, &request).status;
    assert_eq!(http::get(address, "/nowhere").status, 404);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request =
            format!("{method} /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        assert_eq!(ask(request), 405, "{method}");
    }
    // A name of somebody else that resolves to this machine, in the browser of who sits at it.
    for host in ["evil.example:9379", "127.0.0.1.evil.example", ""] {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(ask(request), 403, "{host}");
    }
    let head = http::ask(
        address,
        &format!("HEAD /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
    );
    assert_eq!((head.status, head.body.len()), (200, 0));
    let page = http::get(address, "/");
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    // Too long a head, and rubbish.
    let long =
        format!("GET /livez HTTP/1.1\r\nHost: {address}\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(http::ask(address, "PING\r\n\r\n").status, 400);
    assert_eq!(http::get(address, "/livez").status, 200);
}

#[test]
fn many_connections_are_bounded_and_the_next_is_served() {
    let server = Server::start(&ADMIN);
    let idle: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(server.admin()).ok()).collect();
    drop(idle);
    eventually("there is a place again", || {
        let mut stream = TcpStream::connect(server.admin()).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let _ = write!(stream, "GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).is_ok() && answer.contains("200 OK")
    });
}

#[test]
fn the_default_address_is_given_up_where_it_is_taken() {
    let first = Server::start(&ADMIN);
    let taken = first.admin().to_owned();
    // With a leading `-` it may be missing, without it may not.
    let second = Server::start(&["--admin", &format!("-{taken}")]);
    let mut redis = second.connect();
    assert_eq!(redis::cmd("PING").query::<String>(&mut redis).expect("served"), "PONG");
    let larder = Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(["--port", "0", "--admin", &taken, "--dir"])
        .arg(second.dir().join("third"))
        .output()
        .expect("larder runs");
    assert_eq!(larder.status.code(), Some(4), "{}", String::from_utf8_lossy(&larder.stderr));
}
