//! The limit holds: SETs of values from 10 B to 1 MiB at 100 % eviction.
//!
//! `cargo bench --bench limit [-- --minutes 10]`. First through a server: what it accounts stays at or
//! below `memory`, and what is resident below 1.25 times that and 64 MiB. Then in process, each SET timed
//! by its thread's own CPU time, which a busy machine doesn't change: none takes over 50 ms.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use larder::{
    cache::{
        Cache, Job, Use,
        counter::Counters,
        release::Release,
        tx::{Key, Ttl},
    },
    clock::Clock,
    policy::Policies,
    tier::{memory::Options, shelf::next_random},
};
use rustix::time::{ClockId, clock_gettime};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 512 * MIB;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let minutes = args.iter().position(|arg| arg == "--minutes");
    let minutes: f64 = minutes.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(1.0);
    through_a_server(Duration::from_secs_f64(minutes * 60.0));
    in_process(Duration::from_secs_f64(minutes * 6.0));
}

/// A length between 10 B and 1 MiB, every magnitude as often.
fn length(random: u64) -> usize {
    let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
    (10.0 * 104_857.6f64.powf(uniform)) as usize
}

fn through_a_server(time: Duration) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let binary = std::env::var("LARDER_BIN").unwrap_or(env!("CARGO_BIN_EXE_larder").into());
    let child = Command::new(binary)
        .args(["--port", "0", "--workers", "1", "--memory", &format!("{MEMORY}")])
        .args(["--dir", dir.path().to_str().expect("a plain path")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("larder starts");
    let mut server = Server(child);
    let port = ready(&mut server.0);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("larder accepts");
    stream.set_nodelay(true).expect("a socket");
    let (value, mut random, started) = (vec![b'v'; 1 << 20], 99u64, Instant::now());
    let (mut sets, mut accounted, mut resident) = (0u64, 0, 0);
    while started.elapsed() < time {
        for _ in 0..500 {
            random = next_random(random);
            let key = format!("key:{:08}", random % 10_000_000);
            let value = &value[..length(next_random(random ^ 77))];
            let head =
                format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
            stream.write_all(head.as_bytes()).expect("larder reads");
            stream.write_all(value).expect("larder reads");
            stream.write_all(b"\r\n").expect("larder reads");
            let mut reply = [0; 5];
            stream.read_exact(&mut reply).expect("a reply");
            assert_eq!(&reply, b"+OK\r\n");
            sets += 1;
        }
        accounted = accounted.max(figure(&mut stream, "larder_used_memory_counted:"));
        resident = resident.max(figure(&mut stream, "used_memory_rss:"));
    }
    let percent = |bytes: u64| bytes as f64 * 100.0 / MEMORY as f64;
    println!("{sets} SETs in {} s, memory = {} MiB", time.as_secs(), MEMORY / MIB);
    println!(
        "accounted at most {:.1} % of it, resident {:.1} %",
        percent(accounted),
        percent(resident)
    );
    assert!(accounted <= MEMORY, "accounted {accounted}");
    assert!(resident <= MEMORY / 4 * 5 + 64 * MIB, "resident {resident}");
}

fn ready(child: &mut Child) -> u16 {
    use std::io::{BufRead, BufReader};
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    lines
        .find_map(|line| line.ok()?.strip_prefix("ready port=")?.parse().ok())
        .expect("larder says when it is ready")
}

fn figure(stream: &mut TcpStream, name: &str) -> u64 {
    stream.write_all(b"INFO memory\r\n").expect("larder reads");
    let mut text = Vec::new();
    let mut chunk = [0; 16_384];
    while !text.ends_with(b"\r\n\r\n") && !text.ends_with(b"\n\r\n") {
        let count = stream.read(&mut chunk).expect("a reply");
        text.extend_from_slice(&chunk[..count]);
        if count < chunk.len() && text.len() > 200 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the field is there");
    line.trim().parse().expect("a number")
}

fn in_process(time: Duration) {
    let limit = 256 << 20;
    let options = Options { limit, databases: 1, ..Options::default() };
    let cache = Cache::new(&options, Policies::default(), Clock::default(), None);
    let (counters, value, started) = (Counters::default(), vec![b'v'; 1 << 20], Instant::now());
    let (mut random, mut worst, mut sets) = (7u64, 0, 0u64);
    while started.elapsed() < time {
        random = next_random(random);
        let name = format!("key:{:08}", random % 10_000_000);
        let key = Key { bytes: name.as_bytes(), hash: cache.memory().hash(name.as_bytes()) };
        let value = &value[..length(next_random(random ^ 77))];
        let job = Job {
            db: 0,
            now: cache.clock().now(),
            keys: &[(key, Use::Blind)],
            writes: true,
            strict: true,
            room: value.len() * 5 / 4 + 128,
            touch: true,
            counters: &counters,
            release: &Release::default(),
        };
        let before = cpu_micros();
        cache.attempt(&job, |tx| tx.set(key, &[value], Ttl::Clear)).expect("room is made");
        worst = worst.max(cpu_micros() - before);
        assert!(cache.memory().used() <= limit);
        sets += 1;
    }
    println!("{sets} SETs in process: worst {worst} us of CPU");
    assert!(worst <= 50_000, "a SET took {worst} us");
}

/// The CPU time of this thread.
fn cpu_micros() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
