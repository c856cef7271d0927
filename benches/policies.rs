//! What policies cost and bring: `cargo bench --bench policies [-- OPTIONS]`.
//!
//! - **hit**: instructions of a GET that hits, of what a connection does with a buffer, counted by
//!   callgrind: in a read-through namespace (of three, with a ttl), against a server without namespaces. And of
//!   a SET in a namespace that writes behind, but for what other threads do for it.
//! - **behind**: SETs of a namespace that writes behind, with the journal synced ten times a second, against a
//!   server without stores: requests and CPU time, until the store has all of them, servers interleaved, and how
//!   many changes one that was stored stands for (Zipf 0.99). Beside them a Redis with its append-only file, synced once a second, and one
//!   without: what a log costs there. The store is in memory, so that what is measured is Larder's work and
//!   not the store's; `--store redb` takes the embedded one, whose work on the same core counts too.
//! - **postgres**: rows per second that write-behind brings to a private PostgreSQL, against the same rows
//!   by one INSERT each (autocommit, one connection, synchronous_commit on) to the same server.

mod common;

#[path = "../tests/common/postgres.rs"]
mod postgres;

use std::{
    io,
    net::TcpStream,
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    flags::Flags,
    hot_path::HotPath,
    launch::{report, run_as_child},
    load::{Drive, Load, measure},
    proc,
    report::{Summary, print_table},
    server::{Server, Setup},
    wire::{Dialect, Stream, key},
    zipf::{Rng, Zipf, permuted},
};
use larder::{
    command::{Session, session::Client},
    config::Config,
};

const OPTIONS: &[(&str, &str)] = &[
    ("mode", "all (default), hit, behind or postgres"),
    ("rounds", "pairs of servers that write behind and don't [10]"),
    ("seconds", "how long each of them is loaded at a time [2]"),
    ("connections", "of the generator [50]"),
    ("store", "what is written behind: memory (default) or redb"),
    ("rows", "rows for PostgreSQL [100000]"),
];

const KEYS: u64 = 100_000;
const STREAM: usize = 1 << 18;
const BATCH: usize = 64;
/// Batches before instructions are counted, and while they are.
const WARM: usize = 2_000;
const COUNTED: usize = 2_000;
/// More instructions, in percent, that a namespace may cost a hit.
const HIT_TARGET: f64 = 3.0;
/// Throughput of writing behind to that without a store, at least.
const BEHIND_TARGET: f64 = 0.8;
/// Rows that write-behind stores, to those of one INSERT each, at least.
const POSTGRES_TARGET: f64 = 20.0;
/// Rows that are inserted one by one.
const SINGLE: usize = 2_000;

/// Three namespaces, of which the last has all keys of the benches.
const NAMESPACES: &str = "\
[store.main]
kind = 'memory'
[[namespace]]
prefix = 'session:'
mode = 'cache-aside'
ttl = '1h'
[[namespace]]
prefix = 'user:'
mode = 'write-through'
store = 'main'
[[namespace]]
prefix = 'key:'
mode = 'read-through'
store = 'main'
ttl = '1h'
";

const BEHIND: &str = "\
[store.main]
kind = 'STORE'
[journal]
fsync = 'interval'
[[namespace]]
prefix = 'key:'
mode = 'write-behind'
store = 'main'
";

/// A Redis that keeps a log of what it was told, too; it brings it nowhere, and never makes it smaller here.
const AOF: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, with] = &args[..]
        && flag == "--part"
    {
        run_part(with);
    }
    run_as_child().unwrap_or_else(|| report(run()))
}

fn run() -> io::Result<()> {
    let Some(flags) = Flags::read(OPTIONS)? else { return Ok(()) };
    let mode = flags.text("mode").unwrap_or("all").to_owned();
    println!("{}", proc::machine());
    let is_asked = |name| mode == name || mode == "all";
    if is_asked("hit") {
        print_hit()?;
    }
    if is_asked("behind") {
        print_behind(&flags)?;
    }
    if is_asked("postgres") {
        print_postgres(&flags)?;
    }
    Ok(())
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

fn print_hit() -> io::Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed");
        return Ok(());
    }
    let row = |part: &str, of: &str, target: Option<f64>| -> io::Result<Vec<String>> {
        let (without, with) = (count(&format!("{part}-without"))?, count(&format!("{part}-with"))?);
        let more = (with / without - 1.0) * 100.0;
        let target = target.map(|most| format!("{most} % {}", verdict(more <= most)));
        Ok(vec![
            of.into(),
            format!("{without:.0}"),
            format!("{with:.0}"),
            format!("{more:+.1} %"),
            target.unwrap_or_default(),
        ])
    };
    let get = row("get", "GET that hits, read-through, one of three", Some(HIT_TARGET))?;
    let set = row("set", "SET, write-behind, by the worker alone", None)?;
    println!("\ninstructions per request, uniform, pipeline {BATCH}");
    print_table(&["", "no namespaces", "with", "more", "target"], &[get, set]);
    Ok(())
}

/// The instructions per request of a child.
fn count(with: &str) -> io::Result<f64> {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--fair-sched=yes", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*counted_step*")
        .arg(std::env::current_exe()?)
        .args(["--part", with])
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected"));
    let count = line.and_then(|line| line.rsplit(':').next()?.trim().parse::<u64>().ok());
    let count = count.map(|count| count as f64 / (COUNTED * BATCH) as f64);
    count.ok_or_else(|| io::Error::other(format!("callgrind gave no count: {text}")))
}

/// A server in this process, with or without namespaces, under GETs or SETs of all keys.
fn run_part(part: &str) -> ! {
    let (sets, file) = match part {
        "get-with" => (false, NAMESPACES.to_owned()),
        "set-with" => (true, BEHIND.replace("STORE", "memory")),
        "set-without" => (true, String::new()),
        _ => (false, String::new()),
    };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("larder.toml");
    std::fs::write(&path, file).expect("it is written");
    let text = |path: &std::path::Path| path.to_str().expect("a plain path").to_owned();
    let (file, data) = (text(&path), text(dir.path()));
    let flags = ["larder", &file, "--port", "0", "--memory", "256mb", "--dir", &data];
    let config = Config::from_args(flags.into_iter().chain(["--workers", "1"]));
    let config = config.unwrap_or_else(|_| panic!("a valid configuration"));
    let server = larder::server::Server::start(&config).expect("the server starts");
    let shared = server.shared();
    let now = shared.cache.clock().now();
    let client = Client::new(0, "bench".into(), "bench".into(), false, 0, now);
    let stats = shared.workers[0].clone();
    let mut session = Session::new(shared.clone(), Arc::new(client), stats);
    session.now = now;
    let local = shared.cache.local(shared.local_limit());
    session.local = Some(std::rc::Rc::new(std::cell::RefCell::new(local)));
    let mut hot = HotPath::default();
    for number in 0..KEYS {
        let mut set = Vec::new();
        Dialect::Resp.push_set(&key(number), 128, &mut set);
        hot.step(&mut session, &mut set, true);
    }
    let mut rng = Rng::new(7);
    let mut requests = || {
        let mut batch = Vec::new();
        for _ in 0..BATCH {
            let key = key(rng.below(KEYS));
            match sets {
                true => Dialect::Resp.push_set(&key, 128, &mut batch),
                false => Dialect::Resp.push_get(&key, &mut batch),
            }
        }
        batch
    };
    for _ in 0..WARM {
        hot.step(&mut session, &mut requests(), true);
    }
    for _ in 0..COUNTED {
        counted_step(&mut hot, &mut session, &mut requests());
    }
    drop(dir);
    std::process::exit(0);
}

/// What callgrind counts: it finds this by its name, and so leaves out what fills the server.
#[inline(never)]
fn counted_step(path: &mut HotPath, session: &mut Session, requests: &mut [u8]) {
    path.step(session, requests, true);
}

fn print_behind(flags: &Flags) -> io::Result<()> {
    let rounds: usize = flags.get("rounds", 10)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("behind.toml");
    let store = flags.text("store").unwrap_or("memory");
    std::fs::write(&file, BEHIND.replace("STORE", store))?;
    let file = file.to_str().ok_or_else(|| io::Error::other("not a plain path"))?;
    let zipf = Zipf::new(KEYS, 0.99);
    let mut rng = Rng::new(11);
    let keys = std::iter::repeat_with(|| permuted(zipf.sample(&mut rng), KEYS));
    let stream = Stream::of_sets(Dialect::Resp, keys.take(STREAM));
    let mut rows = Vec::new();
    let mut coalescing = Vec::new();
    for pipeline in [1, 16, 64] {
        let mut load = Load::asked(flags, pipeline)?;
        load.duration = Duration::from_secs_f64(flags.get("seconds", 2.0)?);
        let mut rates = [const { Vec::new() }; 5];
        let mut costs = [const { Vec::new() }; 5];
        let setup = |flags| Setup { cores: &[0], flags, ..Setup::default() };
        let mut servers = Vec::new();
        let aof_dir = tempfile::tempdir()?;
        let aof_dir =
            aof_dir.path().to_str().ok_or_else(|| io::Error::other("not a plain path"))?;
        let aof = [&["--dir", aof_dir][..], AOF].concat();
        // Those that aren't installed are left out.
        for (name, flags) in [
            ("larder", &[file][..]),
            ("larder", &[]),
            ("larder", &[]),
            ("redis", &aof[..]),
            ("redis", &[]),
        ] {
            servers.extend(Server::start(name, &setup(flags))?);
        }
        if servers.len() < 3 {
            return Ok(());
        }
        for round in 0..rounds {
            eprintln!("pipeline {pipeline}: round {} of {rounds}", round + 1);
            for turn in 0..servers.len() {
                let at = (round + turn) % servers.len();
                let drive = Drive { server: &servers[at], stream: &stream, core: 1 };
                let mut sample = measure(&[drive], &load)?;
                if at == 0 {
                    // What is left of its turn is its own, and not the others'.
                    let (begun, before) = (Instant::now(), servers[0].cpu()?);
                    ask(servers[0].port(), "LARDER.FLUSH")?;
                    sample.seconds += begun.elapsed().as_secs_f64();
                    sample.cpu.nanos += (servers[0].cpu()? - before).nanos;
                }
                rates[at].push(sample.throughput());
                costs[at].push(sample.cpu_per_million());
            }
        }
        let info = ask(servers[0].port(), "INFO namespaces")?;
        let figure = |name: &str| -> f64 {
            let at = info.find(&format!(",{name}=")).map_or(0, |at| at + name.len() + 2);
            let digits = info[at..].split(|c: char| !c.is_ascii_digit()).next();
            digits.and_then(|digits| digits.parse().ok()).unwrap_or(0.0)
        };
        coalescing.push(figure("behind_changes") / figure("flushed"));
        let rate = Summary::of_ratios(&rates[0], &rates[1]);
        let cost = Summary::of_ratios(&costs[1], &costs[0]);
        let is_met = rate.median.min(cost.median) >= BEHIND_TARGET;
        rows.push(vec![
            pipeline.to_string(),
            format!("{:.0}", Summary::of(rates[1].iter().copied())),
            format!("{:.0}", Summary::of(rates[0].iter().copied())),
            format!("{rate:.2}"),
            format!("{:.2}", Summary::of_ratios(&rates[2], &rates[1])),
            format!("{:.2}", Summary::of(costs[1].iter().copied())),
            format!("{:.2}", Summary::of(costs[0].iter().copied())),
            format!("{cost:.2}"),
            format!("{BEHIND_TARGET} {}", verdict(is_met)),
            format!("{:.2}", Summary::of(costs[3].iter().copied())),
            format!("{:.2}", Summary::of_ratios(&costs[4], &costs[3])),
        ]);
    }
    println!(
        "\nSETs a second, store {store}, one worker, 128-byte values, Zipf 0.99 of {KEYS} keys, {rounds} pairs"
    );
    let heads = [
        "pipeline",
        "no store",
        "behind",
        "behind / none",
        "none / none",
        "us none",
        "us behind",
        "CPU none / behind",
        "target",
        "us Redis, AOF",
        "CPU Redis, none / AOF",
    ];
    print_table(&heads, &rows);
    println!("changes for each that was stored: {:.1}", Summary::of(coalescing));
    Ok(())
}

/// Asks a server one thing; the whole answer as text.
fn ask(port: u16, line: &str) -> io::Result<String> {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    stream.write_all(format!("{line}\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    reader.read_line(&mut head)?;
    if let Some(len) = head.strip_prefix('$').and_then(|len| len.trim().parse().ok()) {
        let mut body = vec![0; len];
        reader.read_exact(&mut body)?;
        return Ok(String::from_utf8_lossy(&body).into_owned());
    }
    Ok(head)
}

fn print_postgres(flags: &Flags) -> io::Result<()> {
    let rows: u64 = flags.get("rows", 100_000)?;
    let Some(postgres) = postgres::Postgres::start_durable() else {
        println!("skipped: postgres is not installed");
        return Ok(());
    };
    let single = insert_each(&postgres)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("postgres.toml");
    let password = dir.path().join("password");
    std::fs::write(&password, postgres::PASSWORD)?;
    let toml = format!(
        "[store.main]\nkind = 'postgres'\nurl = '{}'\npassword-file = '{}'\n[[namespace]]\nprefix = 'key:'\n\
         mode = 'write-behind'\nstore = 'main'\nbehind-delay = '1h'\n",
        postgres.url(),
        password.display()
    );
    std::fs::write(&file, toml)?;
    let file = file.to_str().ok_or_else(|| io::Error::other("not a plain path"))?;
    let setup = Setup { cores: &[0, 1], flags: &[file], ..Setup::default() };
    let Some(server) = Server::start("larder", &setup)? else { return Ok(()) };
    server.load_keys(rows)?;
    let started = Instant::now();
    let answer = ask(server.port(), "LARDER.FLUSH")?;
    let behind = rows as f64 / started.elapsed().as_secs_f64();
    if !answer.starts_with("+OK") {
        return Err(io::Error::other(answer));
    }
    let ratio = behind / single;
    println!("\nrows a second that PostgreSQL gets, 128-byte values");
    let row = vec![
        format!("{single:.0}"),
        format!("{behind:.0}"),
        format!("{ratio:.1}"),
        format!("{POSTGRES_TARGET} {}", verdict(ratio >= POSTGRES_TARGET)),
    ];
    print_table(&["one INSERT each", "write-behind", "ratio", "target"], &[row]);
    Ok(())
}

/// Rows a second that one connection inserts one by one, each in a transaction of its own.
fn insert_each(postgres: &postgres::Postgres) -> io::Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(async {
            let mut config: tokio_postgres::Config = postgres.url().parse()?;
            let (client, connection) =
                config.password(postgres::PASSWORD).connect(tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            client
                .batch_execute(
                    "set synchronous_commit = on; create table one (key bytea primary key, value \
                     bytea not null, deadline bigint not null default 0, version bigint not null)",
                )
                .await?;
            let insert =
                client.prepare("insert into one (key, value, version) values ($1, $2, 1)").await?;
            let value = vec![b'v'; 128];
            let started = Instant::now();
            for number in 0..SINGLE as u64 {
                client.execute(&insert, &[&&key(number)[..], &value]).await?;
            }
            Ok::<_, tokio_postgres::Error>(SINGLE as f64 / started.elapsed().as_secs_f64())
        })
        .map_err(io::Error::other)
}
