//! A real trace over sockets: hit rates as applications see them, beside the in-process replay.
//!
//! `cargo bench --bench trace [-- --requests 1000000]`. The first requests of `twitter52` at
//! `../shared/traces` (a generated Zipf trace where that is missing) go to a Larder with memory for a
//! tenth of the distinct bytes, twice: as an application does cache-aside (GET, and SET on nil), and as
//! plain GETs of a read-through namespace whose redb store holds every key. Both hit rates are printed
//! beside that of L2 alone in this process, given the same memory; they have to agree.
//!
//! Order decides hit rates. So up to [`CONNECTIONS`] neighbouring requests, of different keys, are under
//! way at a time, one on each connection, and all are answered before the next begin.

mod common;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ExitCode, Stdio},
    time::Instant,
};

use bytes::Bytes;
use common::{
    fill::connect,
    flags::Flags,
    histogram::Histogram,
    launch,
    zipf::{Rng, Zipf},
};
use flate2::read::GzDecoder;
use larder::{
    store::{self, Change, Record},
    tier::{
        Weight,
        entry::{EntryRef, Meta},
        memory::{Memory, Options},
    },
};
use tempfile::TempDir;

const CONNECTIONS: usize = 8;
/// How far the hit rates may be apart, in percent of all requests.
const TOLERANCE: f64 = 0.5;
/// Records that the store is given at once.
const BATCH: usize = 20_000;
/// Key and value are no longer than this together.
const LONGEST: u32 = 1 << 20;

/// A key and the bytes of its value.
type Request = ([u8; 8], usize);

fn main() -> ExitCode {
    launch::run_as_child().unwrap_or_else(|| launch::report(run()))
}

fn run() -> io::Result<()> {
    let known = [("requests", "how many requests of the trace (1000000)")];
    let Some(flags) = Flags::read(&known)? else { return Ok(()) };
    let trace = Trace::read(flags.get("requests", 1_000_000)?)?;
    trace.describe();
    let replay = trace.replay();
    println!("in process: {replay:.2} % hits\n");
    let aside = report("cache-aside", &trace, replay, &aside(&trace)?);
    let through = report("read-through", &trace, replay, &through(&trace)?);
    if aside && through { Ok(()) } else { Err(io::Error::other("the hit rates don't agree")) }
}

/// Requests, and what they are about.
struct Trace {
    requests: Vec<Request>,
    distinct: Vec<Request>,
    /// The memory to give a cache, in KiB.
    memory_kib: usize,
}

impl Trace {
    /// The first requests of the trace. A key keeps the size of its first request.
    fn read(count: usize) -> io::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/traces/twitter52.txt.gz");
        let raw: Vec<(u64, u32)> = match File::open(path) {
            Ok(file) => BufReader::new(GzDecoder::new(file))
                .lines()
                .take(count)
                .map(|line| line.and_then(|line| parse(&line)))
                .collect::<io::Result<_>>()?,
            Err(_) => generated(count),
        };
        let mut sizes: HashMap<u64, usize> = HashMap::new();
        let mut distinct = Vec::new();
        let mut requests = Vec::with_capacity(raw.len());
        for (key, size) in raw {
            let len = (size.min(LONGEST) as usize).saturating_sub(8);
            let request = (key.to_be_bytes(), *sizes.entry(key).or_insert(len));
            if sizes.len() > distinct.len() {
                distinct.push(request);
            }
            requests.push(request);
        }
        let total: usize = distinct.iter().map(|(key, len)| key.len() + len).sum();
        Ok(Self { requests, distinct, memory_kib: total / 10 / 1024 })
    }

    fn describe(&self) {
        println!(
            "{} requests of {} keys, memory {} KiB: a tenth of their bytes",
            self.requests.len(),
            self.distinct.len(),
            self.memory_kib
        );
    }

    /// The hit rate in percent of L2 alone, with the stripes that a server has.
    fn replay(&self) -> f64 {
        let memory = Memory::new(&Options { limit: self.memory_kib << 10, ..Options::default() });
        let (eviction, value) = (memory.rules().eviction(), vec![b'v'; LONGEST as usize]);
        let mut hits = 0u64;
        for (step, (key, len)) in self.requests.iter().enumerate() {
            let now = 1_700_000_000_000 + step as u64 / 50;
            let hash = memory.hash(key);
            let stripe = memory.stripe_of(hash);
            {
                let core = memory.lock(stripe);
                if let Some(shelf) = core.shelf(0)
                    && let Some(slot) = shelf.find(hash, key)
                {
                    eviction.touch(shelf.entry(slot), now, memory.rules().lfu(), || hash >> 7);
                    hits += 1;
                    continue;
                }
            }
            let meta = Meta { access: eviction.first_access(now), ..Meta::default() };
            let entry = EntryRef::new(key, &[&value[..*len]], &meta);
            if memory.make_room(Weight::Bytes.of(entry.get()), stripe, now, &[]).is_ok() {
                let mut core = memory.lock(stripe);
                let shelf = memory.shelf(stripe, &mut core, 0);
                shelf.insert(hash, entry, memory.rules(), now);
                memory.report(shelf);
            }
        }
        hits as f64 * 100.0 / self.requests.len() as f64
    }
}

fn parse(line: &str) -> io::Result<(u64, u32)> {
    let numbers = line.split_once(' ').unwrap_or((line, "100"));
    let wrong = |_| io::Error::other(format!("no request: {line:?}"));
    Ok((numbers.0.parse().map_err(wrong)?, numbers.1.parse().map_err(wrong)?))
}

/// What stands for the trace where it is missing.
fn generated(count: usize) -> Vec<(u64, u32)> {
    println!("../shared/traces isn't there: a generated Zipf trace instead");
    let (zipf, mut rng) = (Zipf::new(count as u64 / 8 + 1, 0.99), Rng::new(52));
    let size = |key: u64| 40 + (key % 321) as u32;
    (0..count).map(|_| zipf.sample(&mut rng)).map(|key| (key, size(key))).collect()
}

/// What a run over sockets brought.
struct Outcome {
    hit_rate: f64,
    loads: u64,
    seconds: f64,
    gets: Histogram,
    sets: Histogram,
}

/// Prints it, and says whether the hit rate agrees with the replay's.
fn report(name: &str, trace: &Trace, replay: f64, outcome: &Outcome) -> bool {
    let Outcome { hit_rate, loads, seconds, gets, sets } = outcome;
    let apart = hit_rate - replay;
    println!("{name}: {hit_rate:.2} % hits, {apart:+.2} to the replay; {loads} loads");
    let rate = trace.requests.len() as f64 / seconds / 1e3;
    println!("  {seconds:.1} s, {rate:.0} thousand requests a second");
    for (kind, times) in [("GET", gets), ("SET", sets)] {
        if times.max() > 0.0 {
            let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|q| times.quantile(q));
            println!(
                "  {kind} microseconds: p50 {p50:.0}, p90 {p90:.0}, p99 {p99:.0}, p99.9 {p999:.0}, \
                 max {:.0}",
                times.max()
            );
        }
    }
    apart.abs() <= TOLERANCE
}

/// GET, and SET on nil.
fn aside(trace: &Trace) -> io::Result<Outcome> {
    let server = Server::start(TempDir::new()?, "", trace)?;
    drive(&server, trace, true)
}

/// GETs of what the store has.
fn through(trace: &Trace) -> io::Result<Outcome> {
    let dir = TempDir::new()?;
    let started = Instant::now();
    fill_store(&dir.path().join("store.redb"), &trace.distinct)?;
    println!("filled the store in {:.1} s", started.elapsed().as_secs_f64());
    let toml = "[store.main]\nkind = \"redb\"\n\n\
                [[namespace]]\nprefix = \"\"\nmode = \"read-through\"\nstore = \"main\"\n";
    drive(&Server::start(dir, toml, trace)?, trace, false)
}

fn fill_store(path: &Path, records: &[Request]) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let store = store::redb(path).map_err(io::Error::other)?;
    let value = Bytes::from(vec![b'v'; LONGEST as usize]);
    for batch in records.chunks(BATCH) {
        let put = |(key, len): &Request| {
            let record = Record { value: value.slice(..*len), version: 1, ..Record::default() };
            (Bytes::copy_from_slice(key), Change::Put(record))
        };
        let changes: Vec<_> = batch.iter().map(put).collect();
        runtime.block_on(store.apply(&changes)).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Sends the trace in windows of neighbouring requests whose keys differ.
fn drive(server: &Server, trace: &Trace, sets: bool) -> io::Result<Outcome> {
    let connections: io::Result<Vec<_>> =
        (0..CONNECTIONS).map(|_| Connection::open(server.port)).collect();
    let mut connections = connections?;
    let value = vec![b'v'; LONGEST as usize];
    let (mut gets_took, mut sets_took) = (Histogram::new(), Histogram::new());
    let started = Instant::now();
    let mut rest = &trace.requests[..];
    while !rest.is_empty() {
        let window = window(rest);
        for (connection, (key, _)) in connections.iter_mut().zip(window) {
            connection.send(&[b"GET", key])?;
        }
        let mut missed = [false; CONNECTIONS];
        for ((connection, (_, len)), missed) in connections.iter_mut().zip(window).zip(&mut missed)
        {
            *missed = !connection.read_value(*len)?;
            gets_took.record(connection.sent.elapsed());
        }
        if !sets && missed.contains(&true) {
            return Err(io::Error::other("a key that the store holds was not found"));
        }
        let missing = || window.iter().zip(missed).filter(|(_, missed)| *missed);
        for (connection, ((key, len), _)) in connections.iter_mut().zip(missing()) {
            connection.send(&[b"SET", key, &value[..*len]])?;
        }
        for (connection, _) in connections.iter_mut().zip(missing()) {
            connection.expect(b"+OK\r\n")?;
            sets_took.record(connection.sent.elapsed());
        }
        rest = &rest[window.len()..];
    }
    let seconds = started.elapsed().as_secs_f64();
    let info = connections[0].info()?;
    let figure = |name: &str| figure(&info, name).unwrap_or(0);
    let (hits, misses, loads) =
        (figure("keyspace_hits:"), figure("keyspace_misses:"), figure(",loads="));
    // A key that was loaded is a hit to its client, but not to memory.
    let hit_rate = (hits - loads) as f64 * 100.0 / (hits + misses).max(1) as f64;
    Ok(Outcome { hit_rate, loads, seconds, gets: gets_took, sets: sets_took })
}

/// The next requests, up to the first whose key is among them already.
fn window(rest: &[Request]) -> &[Request] {
    let mut seen = HashSet::with_capacity(CONNECTIONS);
    let most = &rest[..rest.len().min(CONNECTIONS)];
    let end = most.iter().position(|(key, _)| !seen.insert(key));
    &rest[..end.unwrap_or(most.len())]
}

/// The number behind a name in INFO.
fn figure(info: &str, name: &str) -> Option<u64> {
    let behind = info.split_once(name)?.1;
    behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A connection with one request under way at most.
struct Connection {
    socket: TcpStream,
    request: Vec<u8>,
    reply: Vec<u8>,
    sent: Instant,
}

impl Connection {
    fn open(port: u16) -> io::Result<Self> {
        let (request, reply) = (Vec::new(), vec![0; LONGEST as usize + 64]);
        Ok(Self { socket: connect(port)?, request, reply, sent: Instant::now() })
    }

    fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        self.request.clear();
        write!(self.request, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.request, "${}\r\n", word.len())?;
            self.request.extend_from_slice(word);
            self.request.extend_from_slice(b"\r\n");
        }
        self.sent = Instant::now();
        self.socket.write_all(&self.request)
    }

    /// Reads nil, or a value that must have this length: whether it was a value.
    fn read_value(&mut self, len: usize) -> io::Result<bool> {
        let mut got = 0;
        let mut whole = usize::MAX;
        while got < whole {
            got += self.read_some(got)?;
            if self.reply[..got].starts_with(b"$-1\r\n") {
                return Ok(false);
            }
            if let Some(end) = self.reply[..got].windows(2).position(|pair| pair == b"\r\n") {
                let head = format!("${len}");
                if self.reply[..end] != *head.as_bytes() {
                    return Err(self.wrong(got, &head));
                }
                whole = end + 2 + len + 2;
            }
        }
        Ok(true)
    }

    fn expect(&mut self, reply: &[u8]) -> io::Result<()> {
        let mut got = 0;
        while got < reply.len() {
            got += self.read_some(got)?;
        }
        if self.reply[..got] == *reply { Ok(()) } else { Err(self.wrong(got, "+OK")) }
    }

    fn info(&mut self) -> io::Result<String> {
        self.send(&[b"INFO", b"everything"])?;
        let mut got = 0;
        loop {
            got += self.read_some(got)?;
            let text = String::from_utf8_lossy(&self.reply[..got]);
            let Some((head, body)) = text.split_once("\r\n") else { continue };
            let len: usize = head[1..].parse().map_err(|_| self.wrong(got, "INFO"))?;
            if body.len() >= len + 2 {
                return Ok(body.to_owned());
            }
        }
    }

    fn read_some(&mut self, from: usize) -> io::Result<usize> {
        match self.socket.read(&mut self.reply[from..])? {
            0 => Err(io::Error::other("the server closed the connection")),
            count => Ok(count),
        }
    }

    fn wrong(&self, got: usize, wanted: &str) -> io::Error {
        let start = String::from_utf8_lossy(&self.reply[..got.min(60)]).into_owned();
        io::Error::other(format!("{start:?} where {wanted:?} was expected"))
    }
}

/// A Larder of the bench's own; killed when dropped.
struct Server {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Server {
    /// Starts it in a directory with this configuration and the trace's memory.
    fn start(dir: TempDir, toml: &str, trace: &Trace) -> io::Result<Self> {
        let file = dir.path().join("larder.toml");
        std::fs::write(&file, toml)?;
        let program =
            std::env::var_os("LARDER_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into());
        let mut command = launch::command(program.as_ref(), &[0, 1])?;
        command.arg(file).args(["--port", "0", "--workers", "1", "--memory"]);
        command.arg(format!("{}kb", trace.memory_kib)).arg("--dir").arg(dir.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take();
        let mut server = Self { child, port: 0, _dir: dir };
        let mut lines =
            BufReader::new(stdout.ok_or_else(|| io::Error::other("no output"))?).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ready port=").and_then(|port| port.parse().ok()));
        // What it prints later must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        server.port = port.ok_or_else(|| io::Error::other("larder didn't start"))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either fails only if the child is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
