//! A redis-server of the test's own on a free port, without persistence. Killed when dropped, also by a
//! panic.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redis::Value;

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module's doc.
pub struct Redis {
    child: Option<Child>,
    port: u16,
    dir: tempfile::TempDir,
    password: Option<&'static str>,
}

impl Redis {
    /// Starts it; `None`, with a word, if it isn't installed.
    pub fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// Starts one that wants a password.
    pub fn start_with(password: Option<&'static str>) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut redis = Self { child: None, port: 0, dir, password };
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            let is_required = std::env::var_os("LARDER_REQUIRE_SERVICES");
            assert!(
                is_required.is_none_or(|value| value != "1"),
                "redis-server is required, and not installed"
            );
            eprintln!("skipped: redis-server is not installed");
            return None;
        }
        for _ in 0..20 {
            redis.port = free_port();
            if redis.run() {
                return Some(redis);
            }
        }
        panic!("redis-server doesn't start");
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Where it is, without a password.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Kills it as a crash would; it forgets everything.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts it again, on the same port.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none() && self.run(), "redis-server doesn't start again");
    }

    /// Asks a line of words without spaces in them; the reply as redis-cli has it, items joined by `|`.
    pub fn ask(&self, line: &str) -> String {
        let login = self.password.map_or_else(String::new, |password| format!(":{password}@"));
        let url = format!("redis://{login}127.0.0.1:{}/", self.port);
        let client = redis::Client::open(url).expect("a valid address");
        let mut connection = client.get_connection().expect("it accepts");
        let mut words = line.split(' ');
        let mut command = redis::cmd(words.next().expect("a name"));
        words.for_each(|word| _ = command.arg(word));
        command.query(&mut connection).map_or_else(|why| format!("(error) {why}"), show)
    }

    /// Starts the server; false if it ended, since another program had the port.
    fn run(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--save", "", "--appendonly", "no"]);
        command.args(["--bind", "127.0.0.1", "--enable-debug-command", "yes"]).arg("--dir");
        command.arg(self.dir.path());
        if let Some(password) = self.password {
            command.args(["--requirepass", password]);
        }
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut child = spawned.expect("redis-server runs");
        let started = Instant::now();
        loop {
            if child.try_wait().expect("our child").is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                self.child = Some(child);
                return true;
            }
            if started.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                panic!("redis-server isn't ready in time");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn show(value: Value) -> String {
    match value {
        Value::Nil => "(nil)".into(),
        Value::Int(number) => format!("(integer) {number}"),
        Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Value::SimpleString(text) => text,
        Value::Okay => "OK".into(),
        Value::Array(items) => items.into_iter().map(show).collect::<Vec<_>>().join("|"),
        other => format!("{other:?}"),
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}
