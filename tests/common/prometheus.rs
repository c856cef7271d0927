//! A Prometheus of the test's own, with the configuration and the rules of `docker/prometheus`, on a free
//! port and in a temporary directory; and what its HTTP API answers. Killed when dropped.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use serde_json::Value;

use super::common::{PATIENCE, free_port, http, missing};

const CONFIG: &str = include_str!("../../docker/prometheus/prometheus.yml");
const RULES: &str = include_str!("../../docker/prometheus/rules.yml");

/// See the module's doc.
pub struct Prometheus {
    child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

/// One series of an answer.
#[derive(Debug)]
pub struct Series {
    labels: Value,
    /// The value.
    pub value: f64,
}

impl Series {
    /// A label; empty if it isn't there, which is the same for Prometheus.
    pub fn label(&self, name: &str) -> &str {
        self.labels[name].as_str().unwrap_or_default()
    }
}

/// An alert rule, as Prometheus has read it.
#[derive(Debug)]
pub struct Rule {
    pub name: String,
    pub expr: String,
    /// Whether its last evaluation went well; empty before the first.
    pub health: String,
    pub error: String,
    /// `inactive`, `pending` or `firing`.
    pub state: String,
}

impl Prometheus {
    /// Starts one that scrapes this address several times a second; `None`, with a word, if it isn't
    /// installed.
    pub fn start(target: &str) -> Option<Self> {
        let there = Command::new("prometheus").arg("--version").stdout(Stdio::null()).status();
        if there.is_err() {
            missing("prometheus");
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = CONFIG.replace("larder:9379", target).replace("15s", "250ms");
        assert!(config.contains(target) && config.contains("250ms"), "{config}");
        fs::write(dir.path().join("prometheus.yml"), config).expect("a file");
        fs::write(dir.path().join("rules.yml"), RULES).expect("a file");
        // Another program may take the port first.
        for _ in 0..5 {
            let address = format!("127.0.0.1:{}", free_port());
            if let Some(child) = run(dir.path(), &address) {
                return Some(Self { child, address, _dir: dir });
            }
        }
        panic!("prometheus doesn't start");
    }

    fn get(&self, path: &str) -> Value {
        let answer = http::get(&self.address, path);
        let value: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(value["status"], "success", "{path}: {}", answer.body);
        value["data"].clone()
    }

    /// The series that a query yields now.
    pub fn query(&self, expr: &str) -> Vec<Series> {
        let data = self.get(&format!("/api/v1/query?query={}", percent_encoded(expr)));
        let series = data["result"].as_array().expect("a vector").iter().map(|one| {
            let value = one["value"][1].as_str().and_then(|value| value.parse().ok());
            Series { labels: one["metric"].clone(), value: value.expect("a number") }
        });
        series.collect()
    }

    /// The one value that a query yields.
    pub fn value(&self, expr: &str) -> f64 {
        match &self.query(expr)[..] {
            [one] => one.value,
            series => panic!("{expr}: {series:?}"),
        }
    }

    /// Every alert rule.
    pub fn rules(&self) -> Vec<Rule> {
        let data = self.get("/api/v1/rules?type=alert");
        let groups = data["groups"].as_array().expect("groups").iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
        let text = |rule: &Value, key: &str| rule[key].as_str().unwrap_or_default().to_owned();
        let rule = |rule: &Value| Rule {
            name: text(rule, "name"),
            expr: text(rule, "query"),
            health: text(rule, "health"),
            error: text(rule, "lastError"),
            state: text(rule, "state"),
        };
        rules.map(rule).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs it until it is ready; `None` if it ends before.
fn run(dir: &Path, address: &str) -> Option<Child> {
    let mut child = Command::new("prometheus")
        .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .arg("--log.level=error")
        .stdin(Stdio::null())
        .spawn()
        .expect("prometheus runs");
    let started = Instant::now();
    loop {
        if child.try_wait().expect("our child").is_some() {
            return None;
        }
        let listens = TcpStream::connect(address).is_ok();
        if listens && http::get(address, "/-/ready").status == 200 {
            return Some(child);
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("prometheus isn't ready in time");
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
