//! The load generator: one thread and one epoll keep a number of connections busy, each with one
//! batch of requests under way, and time every batch from its sending to the last of its replies.
//!
//! It must be cheaper than what it measures. So requests are encoded beforehand ([`Stream`]), a
//! connection costs one read and one write per batch, and the check of a reply is a few comparisons.
//! Closed loop: the next batch leaves when the one before is answered.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    ops::Range,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use rustix::{buffer::spare_capacity, event::epoll, time::Timespec};

use super::{
    fill::{PATIENCE, connect},
    flags::Flags,
    histogram::Histogram,
    launch::pin,
    proc::Cpu,
    server::Server,
    wire::{Checked, Stream},
};

/// The longest pipeline: its replies fit one read with room to spare.
pub const MAX_PIPELINE: usize = 256;
/// What one read may bring, if a batch's replies aren't longer.
const READ: usize = 64 * 1024;

/// How much load, for how long.
pub struct Load {
    /// Connections of each generator.
    pub connections: usize,
    /// Requests of a batch, to [`MAX_PIPELINE`].
    pub pipeline: usize,
    /// Time under load before anything counts.
    pub warm_up: Duration,
    /// Time that counts.
    pub duration: Duration,
}

impl Load {
    /// The load that a bench's `--connections` and `--seconds` ask for.
    pub fn asked(flags: &Flags, pipeline: usize) -> io::Result<Self> {
        Ok(Self {
            connections: flags.get("connections", 50usize)?.clamp(1, 10_000),
            pipeline,
            warm_up: Duration::from_millis(300),
            duration: Duration::from_secs_f64(flags.get("seconds", 2.0f64)?.clamp(0.1, 600.0)),
        })
    }
}

/// One generator: which server it loads with what, and the core it runs on.
#[derive(Clone, Copy)]
pub struct Drive<'a> {
    /// The server.
    pub server: &'a Server,
    /// Requests in the server's dialect.
    pub stream: &'a Stream,
    /// The generator's core.
    pub core: usize,
}

/// What a measurement found.
pub struct Sample {
    /// Requests answered, but for GETs that found nothing.
    pub operations: u64,
    /// GETs that found nothing.
    pub misses: u64,
    /// In this many seconds.
    pub seconds: f64,
    /// CPU time of the servers.
    pub cpu: Cpu,
    /// Time of each batch.
    pub latency: Histogram,
}

impl Sample {
    /// Requests per second.
    pub fn throughput(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// CPU seconds of the servers per million requests (microseconds per request).
    pub fn cpu_per_million(&self) -> f64 {
        self.cpu.nanos as f64 / 1e3 / self.operations as f64
    }

    /// Cores that the servers kept busy. Where one worker is far below 1, the generator, or a
    /// stranger on its core, held it back.
    pub fn busy(&self) -> f64 {
        self.cpu.nanos as f64 / 1e9 / self.seconds
    }
}

/// What the measuring thread and a generator tell each other.
#[derive(Default)]
struct Gauge {
    /// Requests answered so far.
    operations: AtomicU64,
    /// How many of them found nothing.
    misses: AtomicU64,
    /// Latencies count.
    recording: AtomicBool,
    /// No more batches.
    stopped: AtomicBool,
}

/// Runs all drives at once and measures them as one. Fails if a server answers wrongly or stops
/// answering.
pub fn measure(drives: &[Drive<'_>], load: &Load) -> io::Result<Sample> {
    let gauges: Vec<Gauge> = drives.iter().map(|_| Gauge::default()).collect();
    thread::scope(|scope| {
        let generators: Vec<_> = drives
            .iter()
            .zip(&gauges)
            .map(|(drive, gauge)| scope.spawn(move || generate(drive, gauge, load)))
            .collect();
        let readings = observe(drives, &gauges, load);
        // Whatever the observer met, the generators must be told to end.
        gauges.iter().for_each(|gauge| gauge.stopped.store(true, Relaxed));
        let mut latency = Histogram::new();
        for generator in generators {
            latency.merge(&generator.join().expect("a generator doesn't panic")?);
        }
        let (before, after) = readings?;
        let misses = after.misses - before.misses;
        Ok(Sample {
            operations: (after.operations - before.operations - misses).max(1),
            misses,
            seconds: (after.at - before.at).as_secs_f64(),
            cpu: after.cpu - before.cpu,
            latency,
        })
    })
}

/// Time, operations and CPU, read in one go: the difference of two is free of the scheduler's whims.
struct Reading {
    at: Instant,
    operations: u64,
    misses: u64,
    cpu: Cpu,
}

/// Reads at both ends of the time that counts.
fn observe(drives: &[Drive<'_>], gauges: &[Gauge], load: &Load) -> io::Result<(Reading, Reading)> {
    let record = |on| gauges.iter().for_each(|gauge| gauge.recording.store(on, Relaxed));
    thread::sleep(load.warm_up);
    record(true);
    let before = read(drives, gauges)?;
    thread::sleep(load.duration);
    let after = read(drives, gauges)?;
    record(false);
    Ok((before, after))
}

fn read(drives: &[Drive<'_>], gauges: &[Gauge]) -> io::Result<Reading> {
    let sum =
        |of: fn(&Gauge) -> &AtomicU64| gauges.iter().map(|gauge| of(gauge).load(Relaxed)).sum();
    let operations = sum(|gauge| &gauge.operations);
    let misses = sum(|gauge| &gauge.misses);
    let mut servers: Vec<&Server> = drives.iter().map(|drive| drive.server).collect();
    servers.sort_by_key(|server| server.port());
    servers.dedup_by_key(|server| server.port());
    let cpu = servers.into_iter().map(Server::cpu).sum::<io::Result<Cpu>>()?;
    Ok(Reading { at: Instant::now(), operations, misses, cpu })
}

/// A generator's thread.
fn generate(drive: &Drive<'_>, gauge: &Gauge, load: &Load) -> io::Result<Histogram> {
    pin(&[drive.core])?;
    Generator::new(drive, gauge, load)
        .and_then(Generator::run)
        .map_err(|error| io::Error::other(format!("{}, under load: {error}", drive.server.name())))
}

struct Generator<'a> {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    stream: &'a Stream,
    /// The request that the next batch begins with.
    cursor: usize,
    pipeline: usize,
    gauge: &'a Gauge,
    scratch: Vec<u8>,
    latency: Histogram,
}

struct Connection {
    socket: TcpStream,
    /// Requests sent and not yet answered.
    pending: Range<usize>,
    /// Requests whose bytes the socket has not taken whole, and how many it has.
    unsent: Option<(Range<usize>, usize)>,
    /// The beginning of a reply.
    tail: Vec<u8>,
    sent_at: Instant,
    /// GETs of the batch that found nothing.
    misses: u64,
}

impl<'a> Generator<'a> {
    fn new(drive: &Drive<'a>, gauge: &'a Gauge, load: &Load) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(load.connections);
        for index in 0..load.connections {
            let connection = Connection::open(drive.server.port())?;
            // Edge-triggered, so that readiness to write costs nothing while nothing is unsent.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            let mark = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &connection.socket, mark, flags)?;
            connections.push(connection);
        }
        // Every measurement begins at the first request: all servers are asked for the same keys.
        let (pipeline, stream) = (load.pipeline, drive.stream);
        let room = stream.reply_bytes(pipeline) + 1;
        let (scratch, latency) = (vec![0; room.max(READ)], Histogram::new());
        Ok(Self { epoll, connections, stream, cursor: 0, pipeline, gauge, scratch, latency })
    }

    /// Loads the server until told to stop and all batches are answered.
    fn run(mut self) -> io::Result<Histogram> {
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        for index in 0..self.connections.len() {
            self.send(index, Instant::now())?;
        }
        let mut busy = self.connections.len();
        let mut events = Vec::with_capacity(busy);
        while busy > 0 {
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&patience))?;
            if events.is_empty() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no reply"));
            }
            for event in events.drain(..) {
                busy -= usize::from(self.serve(event.data.u64() as usize)?);
            }
        }
        Ok(self.latency)
    }

    /// Goes on with a connection that has news; true if it has ended.
    fn serve(&mut self, index: usize) -> io::Result<bool> {
        let connection = &mut self.connections[index];
        connection.flush(self.stream)?;
        if connection.pending.is_empty() || !connection.receive(self.stream, &mut self.scratch)? {
            return Ok(false);
        }
        let now = Instant::now();
        if self.gauge.recording.load(Relaxed) {
            self.latency.record(now - connection.sent_at);
        }
        // This thread alone writes it: no need for an atomic addition.
        let add = |counter: &AtomicU64, more| counter.store(counter.load(Relaxed) + more, Relaxed);
        add(&self.gauge.operations, self.pipeline as u64);
        add(&self.gauge.misses, std::mem::take(&mut connection.misses));
        if self.gauge.stopped.load(Relaxed) {
            return Ok(true);
        }
        self.send(index, now)?;
        Ok(false)
    }

    /// Sends the next batch; `now` is when its time begins.
    fn send(&mut self, index: usize, now: Instant) -> io::Result<()> {
        if self.cursor + self.pipeline > self.stream.len() {
            self.cursor = 0;
        }
        let batch = self.cursor..self.cursor + self.pipeline;
        self.cursor = batch.end;
        let connection = &mut self.connections[index];
        connection.sent_at = now;
        connection.unsent = Some((batch.clone(), 0));
        connection.pending = batch;
        connection.flush(self.stream)
    }
}

impl Connection {
    fn open(port: u16) -> io::Result<Self> {
        let socket = connect(port)?;
        socket.set_nonblocking(true)?;
        let (tail, sent_at) = (Vec::new(), Instant::now());
        Ok(Self { socket, pending: 0..0, unsent: None, tail, sent_at, misses: 0 })
    }

    /// Writes what the socket takes of the unsent bytes.
    fn flush(&mut self, stream: &Stream) -> io::Result<()> {
        let Some((batch, sent)) = &mut self.unsent else { return Ok(()) };
        let bytes = stream.encoded(batch);
        match self.socket.write(&bytes[*sent..]) {
            Ok(n) => *sent += n,
            // The end of the jam is an event.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if *sent == bytes.len() {
            self.unsent = None;
        }
        Ok(())
    }

    /// Reads and checks replies; true if the batch is answered. One read takes all there is, since a
    /// batch's replies are shorter than `scratch`.
    fn receive(&mut self, stream: &Stream, scratch: &mut [u8]) -> io::Result<bool> {
        let kept = self.tail.len();
        scratch[..kept].copy_from_slice(&self.tail);
        let read = match self.socket.read(&mut scratch[kept..]) {
            Ok(0) => return Err(io::Error::other("the server closed the connection")),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let replies = &scratch[..kept + read];
        let Checked { used, misses } = stream.check(&mut self.pending, replies)?;
        self.misses += misses;
        self.tail.clear();
        self.tail.extend_from_slice(&replies[used..]);
        Ok(self.pending.is_empty())
    }
}
