//! A Postgres of the test's own: a new cluster in a temporary directory, on a free port, run by a user
//! without rights where the test runs as root. Stopped when dropped, also by a panic.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    net::{TcpListener, TcpStream},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The password of the user `larder`.
pub const PASSWORD: &str = "open-sesame-7f3a";

/// How long it may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module's doc.
pub struct Postgres {
    programs: PathBuf,
    user: Option<u32>,
    dir: tempfile::TempDir,
    port: u16,
    fsync: &'static str,
    child: Option<Child>,
}

impl Postgres {
    /// Makes a cluster and starts it; `None`, with a word, if Postgres isn't installed.
    pub fn start() -> Option<Self> {
        Self::start_with("fsync=off")
    }

    /// The same, but it syncs what it commits, for a benchmark.
    pub fn start_durable() -> Option<Self> {
        Self::start_with("fsync=on")
    }

    fn start_with(fsync: &'static str) -> Option<Self> {
        let Some(programs) = programs() else {
            let is_required = std::env::var_os("LARDER_REQUIRE_SERVICES");
            assert!(
                is_required.is_none_or(|value| value != "1"),
                "postgres is required, and not installed"
            );
            eprintln!("skipped: postgres is not installed");
            return None;
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let user = unprivileged();
        if let Some(user) = user {
            chown(dir.path(), Some(user), None).expect("we are root");
        }
        let mut postgres = Self { programs, user, dir, port: 0, fsync, child: None };
        postgres.init();
        for _ in 0..20 {
            postgres.port = free_port();
            if postgres.run() {
                return Some(postgres);
            }
        }
        panic!("postgres doesn't start");
    }

    /// Where it is, without a password.
    pub fn url(&self) -> String {
        format!("postgres://larder@127.0.0.1:{}/postgres", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it as `pg_ctl stop -m fast` does; connections are cut.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal(child.id(), "INT");
        let started = Instant::now();
        while child.try_wait().expect("our child").is_none() {
            if started.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again, on the same port.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it is running");
        assert!(self.run(), "postgres doesn't start again");
    }

    /// Runs SQL, and returns the rows as texts, columns joined by `|`, NULL as `NULL`.
    pub fn sql(&self, text: &str) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(self.ask(text)).expect(text)
    }

    async fn ask(&self, text: &str) -> Result<Vec<String>, tokio_postgres::Error> {
        let mut config: tokio_postgres::Config = self.url().parse()?;
        let (client, connection) = config.password(PASSWORD).connect(tokio_postgres::NoTls).await?;
        let connection = tokio::spawn(connection);
        let messages = client.simple_query(text).await?;
        drop(client);
        let _ = connection.await;
        let row = |row: &tokio_postgres::SimpleQueryRow| {
            let columns = (0..row.len()).map(|at| row.get(at).unwrap_or("NULL"));
            columns.collect::<Vec<_>>().join("|")
        };
        let rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(found) => Some(row(found)),
            _ => None,
        });
        Ok(rows.collect())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn init(&self) {
        let password = self.dir.path().join("password");
        std::fs::write(&password, PASSWORD).expect("a file");
        let mut command = self.command("initdb");
        command.arg("-D").arg(self.data()).arg("--pwfile").arg(&password).args([
            "--username=larder",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ]);
        let output = command.stdin(Stdio::null()).output().expect("initdb runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "initdb: {said}");
    }

    /// Starts the server; false if it ended, since another program had the port.
    fn run(&mut self) -> bool {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            self.fsync,
            "shared_buffers=8MB",
            "log_min_messages=fatal",
        ] {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("postgres runs");
        let started = Instant::now();
        loop {
            if child.try_wait().expect("our child").is_some() {
                return false;
            }
            // It writes `ready` here when it serves.
            let pid_file = std::fs::read_to_string(self.data().join("postmaster.pid"));
            let is_ready = pid_file.is_ok_and(|text| {
                let is_ours = text.lines().next() == Some(&child.id().to_string());
                is_ours && text.lines().any(|line| line.trim() == "ready")
            });
            if is_ready && TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                self.child = Some(child);
                return true;
            }
            if started.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                panic!("postgres isn't ready in time");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// One of Postgres's programs, as a user without rights. `setpriv` puts the program in its own place,
    /// so that the child's pid is the program's.
    fn command(&self, program: &str) -> Command {
        let path = self.programs.join(program);
        let mut command = match self.user {
            None => Command::new(path),
            Some(user) => {
                let mut command = Command::new("setpriv");
                let user = user.to_string();
                command.args([&format!("--reuid={user}"), "--clear-groups", "--inh-caps=-all"]);
                command.arg(path);
                command
            }
        };
        command.current_dir(self.dir.path()).env("LC_ALL", "C");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The directory of Postgres's programs: the newest of Debian's, or where PATH finds them.
fn programs() -> Option<PathBuf> {
    let has_both = |dir: &Path| dir.join("initdb").is_file() && dir.join("postgres").is_file();
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = debian
        .map(|version| version.path().join("bin"))
        .filter(|dir| has_both(dir))
        .max_by_key(|dir| {
            let version =
                dir.parent().and_then(|dir| dir.file_name()?.to_str()?.parse::<u32>().ok());
            version.unwrap_or(0)
        });
    let path = std::env::var_os("PATH").unwrap_or_default();
    newest.or_else(|| std::env::split_paths(&path).find(|dir| has_both(dir)))
}

/// The user that runs Postgres where we are root, whom it refuses.
fn unprivileged() -> Option<u32> {
    let id = |args: &[&str]| {
        let output = Command::new("id").args(args).stderr(Stdio::null()).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
    };
    (id(&["-u"]) == Some(0))
        .then(|| id(&["-u", "postgres"]).or_else(|| id(&["-u", "nobody"])).expect("`nobody`"))
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("kill is there").success());
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}
