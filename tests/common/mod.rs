//! What the tests share: servers of their own on ports that the system chooses, and raw connections.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

#[path = "http.rs"]
pub mod http;
#[path = "redis.rs"]
mod instance;

pub use instance::Redis;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A Larder of the test's own; killed when dropped.
pub struct Server {
    child: Child,
    port: u16,
    admin: Option<String>,
    dir: PathBuf,
    keep: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts a server with these flags on a free port, in a directory of its own.
    pub fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut server = Self::start_in(dir.path(), flags);
        server.keep = Some(dir);
        server
    }

    /// Starts a server with a configuration file.
    pub fn start_with(toml: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut server = Self::start_with_in(dir.path(), toml, flags);
        server.keep = Some(dir);
        server
    }

    /// Starts a server with a configuration file, in a directory that outlives it.
    pub fn start_with_in(dir: &Path, toml: &str, flags: &[&str]) -> Self {
        let path = dir.join("larder.toml");
        std::fs::write(&path, toml).expect("the configuration is written");
        let mut all = vec![path.to_str().expect("a plain path")];
        all.extend(flags);
        Self::start_in(dir, &all)
    }

    /// Starts a server in a directory that outlives it.
    pub fn start_in(dir: &Path, args: &[&str]) -> Self {
        Self::start_through(env!("CARGO_BIN_EXE_larder"), &[], dir, args)
    }

    /// Starts a server by a program, such as a shell, that gets the server's path and arguments behind
    /// its own and puts the server in its own place.
    pub fn start_through(program: &str, before: &[&str], dir: &Path, args: &[&str]) -> Self {
        let larder = env!("CARGO_BIN_EXE_larder");
        let path = (program != larder).then_some(larder);
        // The default's port is one for all.
        let no_admin: &[&str] = if args.contains(&"--admin") { &[] } else { &["--admin", ""] };
        let mut child = Command::new(program)
            .args(before)
            .args(path)
            .args(args)
            .args(no_admin)
            .args(["--port", "0", "--dir", dir.to_str().expect("a plain path")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("larder starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut admin = None;
        let port = loop {
            let line = lines.next().expect("larder says when it is ready").expect("text");
            if let Some((_, address)) = line.split_once("watched at http://") {
                admin = address.split_once('/').map(|(address, _)| address.to_owned());
            }
            if let Some(port) = line.strip_prefix("ready port=") {
                break port.parse().expect("a port");
            }
        };
        // Whatever it prints later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port, admin, dir: dir.to_owned(), keep: None }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The admin address, of a server that was started with `--admin`.
    pub fn admin(&self) -> &str {
        self.admin.as_deref().expect("an admin address")
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A connection of bytes.
    pub fn raw(&self) -> Raw {
        Raw::connect(self.port)
    }

    /// A client of the `redis` crate.
    pub fn client(&self) -> redis::Client {
        redis::Client::open(format!("redis://127.0.0.1:{}/", self.port)).expect("a valid address")
    }

    /// A connection of the `redis` crate, RESP2.
    pub fn connect(&self) -> redis::Connection {
        self.client().get_connection().expect("larder accepts")
    }

    /// A connection of the `redis` crate, RESP3.
    pub fn connect3(&self) -> redis::Connection {
        let address = format!("redis://127.0.0.1:{}/?protocol=resp3", self.port);
        let client = redis::Client::open(address).expect("a valid address");
        client.get_connection().expect("larder accepts")
    }

    /// Sends SIGTERM and waits for the end; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        signal(self.pid(), "TERM");
        self.wait()
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "larder doesn't end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the process as a crash would.
    pub fn kill9(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).expect("Linux");
        let pages: usize = text.split(' ').nth(1).expect("statm").parse().expect("a number");
        pages * 4096
    }

    /// CPU time of the whole process in seconds.
    pub fn cpu(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("Linux");
        let behind = text.rsplit(')').next().expect("stat");
        let field = |at: usize| -> f64 {
            behind.split_whitespace().nth(at).expect("stat").parse().expect("a number")
        };
        (field(11) + field(12)) / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("kill is there").success());
}

/// Starts a redis-server; `None`, with a word, if it isn't installed.
pub fn redis7() -> Option<Redis> {
    Redis::start()
}

/// Says that a program is missing, and fails where all are required.
pub fn missing(program: &str) {
    assert!(
        std::env::var_os("LARDER_REQUIRE_SERVICES").is_none_or(|value| value != "1"),
        "{program} is required, and not installed"
    );
    eprintln!("skipped: {program} is not installed");
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}

/// Asks one line; its reply is this, lines joined by `|`.
pub fn expect(conn: &mut Raw, line: &str, reply: &str) {
    assert_eq!(conn.ask_line(line).trim_end().replace("\r\n", "|"), reply, "{line}");
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Asks a line of words without spaces in them through the `redis` crate.
pub fn ask(connection: &mut redis::Connection, line: &str) -> redis::RedisResult<redis::Value> {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().expect("a name"));
    words.for_each(|word| _ = command.arg(word));
    command.query(connection)
}

/// The bulk string that a client of the `redis` crate sees.
pub fn bulk(text: impl AsRef<[u8]>) -> redis::Value {
    redis::Value::BulkString(text.as_ref().to_vec())
}

/// Asks each line, and compares the reply; a line's reply may be an error that begins so.
pub fn check(connection: &mut redis::Connection, table: Vec<(&str, Result<redis::Value, &str>)>) {
    for (line, expected) in table {
        match (ask(connection, line), expected) {
            (Ok(reply), Ok(expected)) => assert_eq!(reply, expected, "{line}"),
            (Err(why), Err(text)) => {
                let said = format!("{} {}", why.code().unwrap_or(""), why.detail().unwrap_or(""));
                assert!(said.starts_with(text), "{line}: {said}");
            }
            (reply, expected) => panic!("{line}: {reply:?} instead of {expected:?}"),
        }
    }
}

/// A connection of bytes.
pub struct Raw {
    pub stream: TcpStream,
    buf: Vec<u8>,
}

impl Raw {
    /// Connects to a port of this machine.
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, buf: Vec::new() }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the server reads");
    }

    /// Sends a request of words.
    pub fn request(&mut self, words: &[impl AsRef<[u8]>]) {
        self.send(encode(words));
    }

    /// Sends a request and returns its reply's bytes.
    pub fn ask(&mut self, words: &[impl AsRef<[u8]>]) -> Vec<u8> {
        self.request(words);
        self.reply()
    }

    /// Sends a line of words without spaces in them, and returns the reply as text.
    pub fn ask_line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        String::from_utf8_lossy(&self.ask(&words)).into_owned()
    }

    /// The bytes of the next reply.
    pub fn reply(&mut self) -> Vec<u8> {
        loop {
            if let Some(end) = reply_end(&self.buf, 0) {
                return self.buf.drain(..end).collect();
            }
            let mut chunk = [0; 65_536];
            let count = self.stream.read(&mut chunk).expect("a reply in time");
            assert!(count > 0, "closed before the reply; so far: {:?}", self.text());
            self.buf.extend_from_slice(&chunk[..count]);
        }
    }

    /// Everything until the server closes.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.buf);
        let mut chunk = [0; 65_536];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return rest,
                Ok(count) => rest.extend_from_slice(&chunk[..count]),
                Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => return rest,
                Err(why) => panic!("not closed: {why}"),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.buf).into_owned()
    }
}

/// A request as an array of bulk strings.
pub fn encode(words: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.as_ref().len()).as_bytes());
        bytes.extend_from_slice(word.as_ref());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Where the reply that starts at `at` ends, if it is complete; RESP2 and RESP3.
pub fn reply_end(buf: &[u8], at: usize) -> Option<usize> {
    let line = at + buf.get(at..)?.windows(2).position(|pair| pair == b"\r\n")?;
    let (kind, head) = (buf[at], &buf[at + 1..line]);
    let number = || -> Option<i64> { std::str::from_utf8(head).ok()?.parse().ok() };
    let behind = line + 2;
    match kind {
        b'$' | b'=' | b'!' => {
            let len = number()?;
            let end = if len < 0 { behind } else { behind + len as usize + 2 };
            (buf.len() >= end).then_some(end)
        }
        b'*' | b'~' | b'>' | b'%' => {
            let len = number()?;
            let items = len.max(0) * if kind == b'%' { 2 } else { 1 };
            (0..items).try_fold(behind, |at, _| reply_end(buf, at))
        }
        _ => Some(behind),
    }
}
