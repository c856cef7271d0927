//! The servers under test, as children of the bench: started on a free loopback port, killed when
//! dropped.

use std::{
    env,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    fill::{connect, fill},
    launch,
    proc::{self, Cpu},
    wire::{Dialect, Stream, VALUE_LEN, key},
};

/// A server that doesn't listen after this long never will.
const START: Duration = Duration::from_secs(20);
/// GETs under way at once when all keys are asked for.
const SWEEP: usize = 64;

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The binary of this crate, or the one that `LARDER_BIN` names.
    Larder,
    /// `redis-server` from the PATH.
    Redis,
    /// `memcached` from the PATH.
    Memcached,
    /// The one that answers without parsing (see [`super::floor`]).
    Floor,
}

impl Kind {
    /// The kind of a server by its name; a second one of a kind has a 2 behind its name.
    pub fn of(name: &str) -> Option<Self> {
        match first_of(name) {
            "larder" | UNWATCHED => Some(Self::Larder),
            "redis" => Some(Self::Redis),
            "memcached" => Some(Self::Memcached),
            "floor" => Some(Self::Floor),
            _ => None,
        }
    }

    /// How it is spoken to.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Larder | Self::Redis => Dialect::Resp,
            Self::Memcached => Dialect::Memcached,
            Self::Floor => Dialect::Constant,
        }
    }

    /// Whether there is a program to start; says so if not.
    pub fn installed(self) -> bool {
        let installed = self.program().is_some();
        if !installed {
            let name = format!("{self:?}").to_lowercase();
            eprintln!("{name}: not installed, left out");
        }
        installed
    }

    /// The program to start, if it is there.
    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Larder => env::var_os("LARDER_BIN")
                .or(option_env!("CARGO_BIN_EXE_larder").map(Into::into))
                .map(PathBuf::from)
                .filter(|path| path.is_file()),
            Self::Redis => in_path("redis-server"),
            Self::Memcached => in_path("memcached"),
            Self::Floor => env::current_exe().ok(),
        }
    }
}

/// The name of a server without the 2 of a second one.
pub fn first_of(name: &str) -> &str {
    name.strip_suffix('2').unwrap_or(name)
}

/// A Larder that neither times commands nor samples keys, and has no admin address.
const UNWATCHED: &str = "unwatched";
const UNWATCHED_FLAGS: [&str; 8] =
    ["--admin", "", "--latency-tracking", "no", "--hot-keys", "no", "--miss-ratio-curve", "no"];

/// How servers are set up.
pub struct Setup<'a> {
    /// The cores a server may use.
    pub cores: &'a [usize],
    /// Its memory in MiB, in `--memory` and memcached's `-m`.
    pub memory_mib: u32,
    /// Larder's `--workers`, memcached's `-t`.
    pub workers: usize,
    /// More of Larder's flags, or of the peer's.
    pub flags: &'a [&'a str],
    /// The bytes of the values that are loaded.
    pub value_len: usize,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        let memory_mib = 1024;
        Self { cores: &[0], memory_mib, workers: 1, flags: &[], value_len: VALUE_LEN }
    }
}

/// A running server.
pub struct Server {
    name: String,
    kind: Kind,
    port: u16,
    value_len: usize,
    child: Child,
    /// Larder's `--dir`, removed after the child is gone.
    _dir: Option<TempDir>,
}

impl Server {
    /// Starts the server of that name; `None`, and a word about it, if it isn't installed.
    pub fn start(name: &str, setup: &Setup<'_>) -> io::Result<Option<Self>> {
        let kind = Kind::of(name).ok_or_else(|| io::Error::other(format!("no server {name:?}")))?;
        if !kind.installed() {
            return Ok(None);
        }
        let program = kind.program().unwrap_or_default();
        let start = match kind {
            Kind::Larder => Self::start_larder(name, &program, setup),
            Kind::Floor => Self::announced(name, kind, launch::floor_command(setup.cores)?, None),
            Kind::Redis | Kind::Memcached => Self::start_peer(name, kind, &program, setup),
        };
        let mut server =
            start.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        server.value_len = setup.value_len;
        Ok(Some(server))
    }

    fn start_larder(name: &str, program: &Path, setup: &Setup<'_>) -> io::Result<Self> {
        let dir = TempDir::new()?;
        let mut command = launch::command(program, setup.cores)?;
        command
            .args(["--port", "0", "--workers", &setup.workers.to_string()])
            .args(["--memory", &format!("{}mb", setup.memory_mib), "--dir"])
            .arg(dir.path())
            .args(setup.flags);
        match first_of(name) {
            UNWATCHED => command.args(UNWATCHED_FLAGS),
            // Each its own: the default's port is one for all.
            _ => command.args(["--admin", "127.0.0.1:0"]),
        };
        Self::announced(name, Kind::Larder, command, Some(dir))
    }

    fn of_child(name: &str, kind: Kind, child: Child, dir: Option<TempDir>) -> Self {
        Self { name: name.to_owned(), kind, port: 0, value_len: VALUE_LEN, child, _dir: dir }
    }

    /// Starts a server that chooses its port and prints it.
    fn announced(
        name: &str,
        kind: Kind,
        mut command: Command,
        dir: Option<TempDir>,
    ) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take();
        let mut server = Self::of_child(name, kind, child, dir);
        let stdout = stdout.ok_or_else(|| io::Error::other("no standard output"))?;
        server.port = ready_port(stdout)?;
        Ok(server)
    }

    /// Starts a server that is told its port, and waits until it listens.
    fn start_peer(name: &str, kind: Kind, program: &Path, setup: &Setup<'_>) -> io::Result<Self> {
        let port = free_port()?;
        let mut command = launch::command(program, setup.cores)?;
        command.args(peer_arguments(kind, port, setup)).args(setup.flags);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut server = Self::of_child(name, kind, child, None);
        server.port = port;
        let deadline = Instant::now() + START;
        while let Err(error) = connect(port) {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("ended at start: {status}")));
            }
            if Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// The name it was started by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes of its values.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its CPU time so far.
    pub fn cpu(&self) -> io::Result<Cpu> {
        proc::cpu(self.child.id())
    }

    /// Its resident memory in bytes.
    pub fn resident(&self) -> io::Result<u64> {
        proc::resident(self.child.id())
    }

    /// How many of a stream's GETs find their value, asked once in order.
    pub fn count_hits(&self, stream: &Stream) -> io::Result<u64> {
        let mut socket = connect(self.port)?;
        let mut hits = 0;
        let mut replies = vec![0; stream.reply_bytes(SWEEP) + 1];
        for first in (0..stream.len()).step_by(SWEEP) {
            let mut pending = first..stream.len().min(first + SWEEP);
            hits += pending.len() as u64;
            socket.write_all(stream.encoded(&pending))?;
            let mut filled = 0;
            while !pending.is_empty() {
                match socket.read(&mut replies[filled..])? {
                    0 => return Err(io::Error::other("the server closed the connection")),
                    count => filled += count,
                }
                let checked = stream.check(&mut pending, &replies[..filled])?;
                hits -= checked.misses;
                replies.copy_within(checked.used..filled, 0);
                filled -= checked.used;
            }
        }
        Ok(hits)
    }

    /// Loads the keys `0..keys` with their values; the floor has none.
    pub fn load_keys(&self, keys: u64) -> io::Result<()> {
        self.load_range(0..keys)
    }

    /// Loads some keys with their values.
    pub fn load_range(&self, keys: Range<u64>) -> io::Result<()> {
        let dialect = self.kind.dialect();
        if dialect == Dialect::Constant {
            return Ok(());
        }
        let first = keys.start;
        fill(&mut connect(self.port)?, keys.end - first, dialect.stored(), |number, out| {
            dialect.push_set(&key(first + number), self.value_len, out);
        })
        .map_err(|error| io::Error::other(format!("{}, loading: {error}", self.name)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either fails only if the child is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No persistence, loopback only.
fn peer_arguments(kind: Kind, port: u16, setup: &Setup<'_>) -> Vec<String> {
    let line = match kind {
        Kind::Memcached => {
            // memcached refuses to run as root unless told so.
            let user = if rustix::process::getuid().is_root() { " -u root" } else { "" };
            let Setup { workers, memory_mib, .. } = setup;
            format!("-t {workers} -m {memory_mib} -p {port} -U 0 -l 127.0.0.1{user}")
        }
        _ => format!("--port {port} --bind 127.0.0.1 --appendonly no --save"),
    };
    let mut arguments: Vec<String> = line.split(' ').map(String::from).collect();
    if kind == Kind::Redis {
        arguments.push(String::new());
    }
    arguments
}

/// The port of the line that has `ready port=N`. What is printed behind it is read and dropped, so
/// that the server never waits for us.
fn ready_port(stdout: ChildStdout) -> io::Result<u16> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(port) = parse_ready(&line) {
                // Nobody listens any more after a timeout.
                let _ = sender.send(port);
            }
        }
    });
    receiver.recv_timeout(START).map_err(|error| {
        io::Error::other(match error {
            RecvTimeoutError::Timeout => "never said `ready port=`",
            RecvTimeoutError::Disconnected => "ended before it said `ready port=`",
        })
    })
}

fn parse_ready(line: &str) -> Option<u16> {
    let digits = line.split_once("ready port=")?.1;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A port nobody listens on just now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Where a program is, if it is installed.
pub fn in_path(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program.as_ref())).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_lines_are_understood() {
        assert_eq!(parse_ready("larder 0.1.0 ready port=6379"), Some(6379));
        assert_eq!(parse_ready("ready port=7000, 2 workers"), Some(7000));
        assert_eq!(parse_ready("ready port=70000"), None);
        assert_eq!(parse_ready("ready"), None);
    }

    #[test]
    fn names_have_kinds() {
        assert_eq!(Kind::of("larder2"), Some(Kind::Larder));
        assert_eq!(Kind::of("redis"), Some(Kind::Redis));
        assert_eq!(Kind::of("valkey"), None);
    }
}
