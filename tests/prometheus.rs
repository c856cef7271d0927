//! Larder as Prometheus sees it: Debian's `prometheus` scrapes a Larder with the configuration of
//! `docker/stack.toml`, and answers every query of the dashboard and every alert rule with what a known load
//! has left behind.

mod common;
#[path = "common/postgres.rs"]
mod postgres;
#[path = "common/prometheus.rs"]
mod prometheus;

use std::{
    collections::HashMap,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use common::{Raw, Server, eventually, http, missing};
use larder::metrics::{GROUPS, Kind, Metric};
use postgres::{PASSWORD, Postgres};
use prometheus::{Prometheus, Series};
use serde_json::Value;

const DASHBOARD: &str = include_str!("../docker/grafana/larder.json");
const STACK: &str = include_str!("../docker/stack.toml");
const PROMETHEUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/prometheus");

/// What the load needs beyond the stack: a store that takes its time, and a quota that is soon full.
const MORE: &str = "\
[store.origin]
kind = 'memory'
[store.slow]
kind = 'faulty'
over = 'origin'
delay = '20ms'
[[namespace]]
prefix = 'slow:'
mode = 'read-through'
store = 'slow'
[[namespace]]
prefix = 'tiny:'
mode = 'cache-aside'
quota = { memory = '1mb' }
";
/// Longer than the load takes, so that a rate over it counts all of the load.
const WINDOW: (&str, f64) = ("5m", 300.0);

/// The Larder of `docker/compose.yaml`, small, and with its Postgres elsewhere.
fn stack(postgres: &Postgres, dir: &Path) -> Server {
    let url = "postgres://larder@postgres:5432/larder";
    assert!(STACK.contains(url), "{STACK}");
    let toml = STACK.replace(url, &postgres.url()).replace("128mb", "8mb") + MORE;
    let path = dir.join("larder.toml");
    std::fs::write(&path, toml).expect("a file");
    let mut args = vec![path.to_str().expect("a plain path")];
    args.extend(["--bind", "127.0.0.1", "--admin", "127.0.0.1:0"]);
    args.extend(["--memory", "16mb", "--disk-size", "128mb", "--workers", "1"]);
    Server::start_through("env", &[&format!("POSTGRES_PASSWORD={PASSWORD}")], dir, &args)
}

/// What a load did, as its client saw it.
#[derive(Default)]
struct Load {
    commands: u64,
    hits: u64,
    misses: u64,
}

impl Load {
    fn ask(&mut self, client: &mut Raw, words: &[&str]) -> String {
        self.commands += 1;
        String::from_utf8_lossy(&client.ask(words)).into_owned()
    }

    fn get(&mut self, client: &mut Raw, key: &str) {
        let is_miss = self.ask(client, &["GET", key]).starts_with("$-1");
        *if is_miss { &mut self.misses } else { &mut self.hits } += 1;
    }

    /// Three of four reads of `user:` hit, and 29 of 30 of `page:`; one key is hot; what doesn't fit into memory
    /// is on disk; and of all commands three in a hundred wait for a slow store.
    fn run(client: &mut Raw) -> Self {
        let mut load = Self::default();
        load.ask(client, &["SET", "page:hot", "<html>"]);
        (0..2000).for_each(|_| load.get(client, "page:hot"));
        let large = "x".repeat(32 << 10);
        for number in 0..1000 {
            assert_eq!(load.ask(client, &["SET", &format!("blob:{number}"), &large]), "+OK\r\n");
        }
        for number in 0..1000 {
            load.get(client, &format!("blob:{number}"));
        }
        for number in 0..100 {
            let (user, page) = (format!("user:{number}"), format!("page:{number}"));
            load.ask(client, &["SET", &user, "Ada"]);
            load.ask(client, &["SET", &page, "<html>"]);
            (0..3).for_each(|_| load.get(client, &user));
            load.get(client, &format!("user:none:{number}"));
            (0..9).for_each(|_| load.get(client, &page));
            load.get(client, &format!("page:none:{number}"));
            load.get(client, &format!("slow:{number}:a"));
            load.get(client, &format!("slow:{number}:b"));
        }
        assert!(load.ask(client, &["INCR", "user:1"]).starts_with("-ERR"));
        let huge = "x".repeat(2 << 20);
        assert!(load.ask(client, &["SET", "tiny:1", &huge]).starts_with("-OOM"));
        assert_eq!(load.ask(client, &["LARDER.FLUSH"]), "+OK\r\n");
        load
    }
}

/// The dashboard's queries with the title of their panel, its variables in place.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let rows = panels.clone().flat_map(|row| row["panels"].as_array().into_iter().flatten());
    let mut found = Vec::new();
    for panel in panels.chain(rows) {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().expect("a query");
            let expr = expr.replace("$__rate_interval", WINDOW.0);
            let expr = expr.replace("$instance", ".*").replace("$namespace", ".*");
            assert!(!expr.contains('$'), "{expr}");
            found.push((title.to_owned(), expr));
        }
    }
    found
}

/// The query of a panel that has one.
fn query_of(title: &str) -> String {
    let mut fits = queries().into_iter().filter(|(name, _)| name == title);
    let (one, more) = (fits.next(), fits.next());
    assert!(more.is_none(), "{title} has several");
    one.unwrap_or_else(|| panic!("there is no panel {title}")).1
}

fn close(what: &str, is: f64, expected: f64, by: f64) {
    assert!((is - expected).abs() <= by, "{what}: {is} instead of {expected}");
}

#[test]
fn every_query_and_every_rule_is_answered_with_what_the_load_did() {
    let Some(postgres) = Postgres::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = stack(&postgres, dir.path());
    let Some(prometheus) = Prometheus::start(server.admin()) else { return };
    let scraped = || prometheus.query("count_over_time(larder_uptime_seconds[5m])");
    let scrapes = || scraped().first().map_or(0.0, |series| series.value);
    eventually("it is scraped", || scrapes() >= 2.0);
    let load = Load::run(&mut server.raw());
    let before = scrapes();
    eventually("it is scraped after the load", || scrapes() >= before + 4.0);

    for (title, query) in queries() {
        let series = prometheus.query(&query);
        assert!(!series.is_empty(), "{title}: nothing from {query}");
        assert!(series.iter().all(|one| one.value.is_finite()), "{title}: {query}: {series:?}");
    }
    the_figures_are_true(&prometheus, &load, &server);
    the_rules_are_about_something(&prometheus);
    promtool_likes(&http::get(server.admin(), "/metrics").body);

    assert_eq!(server.stop(), Some(0));
    let down = || prometheus.rules().into_iter().find(|rule| rule.name == "LarderDown");
    eventually("its end is seen", || down().is_some_and(|rule| rule.state == "pending"));
}

/// The dashboard's figures against those of the client that made the load, and of the server.
fn the_figures_are_true(prometheus: &Prometheus, load: &Load, server: &Server) {
    let all = (load.hits + load.misses) as f64;
    close("hit rate", prometheus.value(&query_of("Hit rate")), load.hits as f64 / all, 0.02);

    let tiers = by(prometheus.query(&query_of("Hit rate by tier")), "tier");
    let text = http::get(server.admin(), "/metrics").body;
    for tier in ["l1", "l2", "l3"] {
        let counter = format!("larder_tier_hits_total{{tier=\"{tier}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&counter)).expect("counted");
        let hits: f64 = line.parse().expect("a number");
        assert!(hits >= 100.0, "{tier}: {hits}");
        close(tier, tiers[tier], hits / all, 0.02);
    }
    close("all tiers", tiers.values().sum(), load.hits as f64 / all, 0.02);

    let namespaces = by(prometheus.query(&query_of("Hit rate by namespace")), "namespace");
    let expected = [("user:", 300.0 / 400.0), ("page:", 2900.0 / 3000.0), ("slow:", 0.0)];
    for (namespace, rate) in expected {
        close(namespace, namespaces[namespace], rate, 0.02);
    }
    let parts = prometheus.query(&query_of("Hit rate by namespace and tier"));
    for (namespace, rate) in expected {
        let of = parts.iter().filter(|part| part.label("namespace") == namespace);
        close(namespace, of.map(|part| part.value).sum(), rate, 0.02);
    }

    // All of the load is in the window, and nothing else is.
    let requests = prometheus.value(&query_of("Requests")) * WINDOW.1;
    close("requests", requests, load.commands as f64, load.commands as f64 * 0.05);
    let families = by(prometheus.query(&query_of("Requests by family")), "family");
    let strings = families["string"] * WINDOW.1;
    close("strings", strings, load.commands as f64, load.commands as f64 * 0.05);

    // Three commands in a hundred waited for 20 ms; the middle one for nothing.
    let p99 = prometheus.value(&query_of("p99"));
    assert!((0.016..1.0).contains(&p99), "{p99}");
    let quantiles = queries().into_iter().filter(|(title, _)| title == "Duration of commands");
    let quantiles: Vec<f64> = quantiles.map(|(_, query)| prometheus.value(&query)).collect();
    let [p50, same, p999] = quantiles[..] else { panic!("{quantiles:?}") };
    close("p99", same, p99, p99 * 0.2);
    assert!(p50 < 0.01 && p50 < p99 && p99 <= p999, "{quantiles:?}");
    let load_time = by(prometheus.query(&query_of("Time of a load")), "namespace");
    assert!((0.02..0.5).contains(&load_time["slow:"]), "{load_time:?}");
}

/// The values of an answer by a label.
fn by(series: Vec<Series>, label: &str) -> HashMap<String, f64> {
    let pairs: HashMap<_, _> =
        series.iter().map(|one| (one.label(label).to_owned(), one.value)).collect();
    assert_eq!(pairs.len(), series.len(), "{series:?}");
    pairs
}

/// A rule over a name that doesn't exist never fires, and nobody notices.
fn the_rules_are_about_something(prometheus: &Prometheus) {
    eventually("the rules are evaluated", || {
        prometheus.rules().iter().all(|rule| !rule.health.is_empty() && rule.health != "unknown")
    });
    // The one error of the load that there is an alert for: it is counted from the first one on.
    let refused = || prometheus.rules().into_iter().find(|rule| rule.name == "LarderWritesRefused");
    eventually("-OOM is seen", || refused().is_some_and(|rule| rule.state == "pending"));
    let rules = prometheus.rules();
    assert!(rules.len() >= 10, "{rules:?}");
    for rule in rules {
        assert_eq!((&*rule.health, &*rule.error), ("ok", ""), "{}", rule.name);
        assert_ne!(rule.state, "firing", "{}", rule.name);
        prometheus.query(&rule.expr);
        let selectors = selectors(&rule.expr);
        assert!(!selectors.is_empty(), "{}", rule.expr);
        for selector in selectors {
            let count = prometheus.query(&format!("count({selector})"));
            assert_eq!(count.len(), 1, "{}: no series for {selector}", rule.name);
        }
    }
}

/// What PromQL means by a word of its own, as far as it is used here.
const WORDS: &[&str] = &[
    "sum",
    "max",
    "count",
    "rate",
    "increase",
    "by",
    "on",
    "and",
    "offset",
    "histogram_quantile",
    "group_left",
];

/// The metric that a word names; what a histogram shows has its part behind the name.
fn metric(word: &str) -> Option<&'static Metric> {
    let parts = ["_bucket", "_sum", "_count"];
    let base = parts.iter().find_map(|part| word.strip_suffix(part));
    GROUPS.iter().flat_map(|(_, all)| *all).find(|metric| match metric.kind {
        Kind::Histogram => Some(metric.name) == base,
        Kind::Counter | Kind::Gauge => metric.name == word,
    })
}

fn is_label(word: &str) -> bool {
    let mut all = GROUPS.iter().flat_map(|(_, all)| *all);
    ["job", "instance", "le"].contains(&word) || all.any(|metric| metric.labels.contains(&word))
}

/// The selectors of an expression (`name{label="value"}`). Each word of it must be known: a metric that is
/// declared, one of its labels, or PromQL's own.
fn selectors(expr: &str) -> Vec<String> {
    let is_part = |sign: char| sign.is_alphanumeric() || "_:.".contains(sign);
    let (mut found, mut rest) = (Vec::new(), expr);
    while let Some(at) = rest.find(is_part) {
        let end = rest[at..].find(|sign| !is_part(sign)).map_or(rest.len(), |len| at + len);
        let word = &rest[at..end];
        rest = &rest[end..];
        if word == "up" || metric(word).is_some() {
            // No value of a label has a brace in it here.
            let braces =
                if rest.starts_with('{') { rest.find('}').expect("closed") + 1 } else { 0 };
            check_labels(word, &rest[..braces]);
            found.push(format!("{word}{}", &rest[..braces]));
            rest = &rest[braces..];
        } else {
            let is_number = word.starts_with(|sign: char| sign.is_ascii_digit());
            let is_known = is_number || WORDS.contains(&word) || is_label(word);
            assert!(is_known, "{word} is unknown: {expr}");
        }
    }
    found
}

/// The labels in a selector's braces must be its metric's, or those that every target has.
fn check_labels(word: &str, braces: &str) {
    let inside = braces.trim_matches(['{', '}']);
    for matcher in inside.split("\",").filter(|matcher| !matcher.trim().is_empty()) {
        let label = matcher.split(['=', '!']).next().expect("a label").trim();
        let is_own = metric(word).is_some_and(|metric| metric.labels.contains(&label));
        assert!(is_own || ["job", "instance"].contains(&label), "{word} has no label {label}");
    }
}

#[test]
fn the_words_of_every_query_are_known() {
    for (title, query) in queries() {
        assert!(!selectors(&query).is_empty(), "{title}: {query}");
    }
    let found = selectors(
        "sum by (le) (rate(larder_command_duration_seconds_bucket{family!~\"a|b\"}[5m])) > 1e3",
    );
    assert_eq!(found, ["larder_command_duration_seconds_bucket{family!~\"a|b\"}"]);
    for wrong in [
        "larder_lookup_total",
        "larder_lookups_total{outcom=\"hit\"}",
        "sum by (outcom) (larder_lookups_total)",
        "larder_command_duration_seconds",
        "larder_lookups_total_count",
    ] {
        assert!(std::panic::catch_unwind(|| selectors(wrong)).is_err(), "{wrong}");
    }
}

/// Runs promtool with a text as its input; what it says.
fn promtool(args: &[&str], input: &str) -> Option<String> {
    let mut promtool = Command::new("promtool");
    let promtool = promtool.args(args).current_dir(PROMETHEUS).stdin(Stdio::piped());
    let Ok(mut child) = promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
        missing("promtool");
        return None;
    };
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("our child");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "promtool {args:?}: {said}");
    Some(said)
}

/// Its linter has nothing to say about a scrape.
fn promtool_likes(metrics: &str) {
    if let Some(said) = promtool(&["check", "metrics"], metrics) {
        assert_eq!(said, "");
    }
}

#[test]
fn promtool_accepts_the_configuration_and_the_rules() {
    promtool(&["check", "config", "prometheus.yml"], "");
    promtool(&["check", "rules", "rules.yml"], "");
    promtool(&["test", "rules", "rules_test.yml"], "");
}
