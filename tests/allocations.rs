//! A GET's hit allocates nothing, and a SET the entry alone: a server in this process, whose allocations
//! are counted while a client that makes none asks it.
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use larder::{config::Config, server::Server};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: the caller's duty.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's duty.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Batches that are counted, of [`DEPTH`] requests.
const BATCHES: usize = 2_000;
const DEPTH: usize = 10;
/// What the server's clocks and the runtimes may allocate meanwhile.
const SPARE: usize = BATCHES * DEPTH / 100;

/// Sends the same batch again and again; how many allocations the server made.
fn allocations(client: &mut TcpStream, batch: &[u8], reply: usize, room: &mut [u8]) -> usize {
    let mut run = |batches| {
        for _ in 0..batches {
            client.write_all(batch).expect("the server reads");
            client.read_exact(&mut room[..reply * DEPTH]).expect("the server answers");
        }
    };
    // What grows once has grown before.
    run(100);
    let before = COUNT.load(Relaxed);
    run(BATCHES);
    COUNT.load(Relaxed) - before
}

#[test]
fn a_hit_allocates_nothing_and_a_set_its_entry() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().to_str().expect("a plain path");
    let flags = ["larder", "--port", "0", "--workers", "1", "--memory", "64mb", "--dir", path];
    let config = Config::from_args(flags).unwrap_or_else(|_| panic!("a valid configuration"));
    let server = Server::start(&config).expect("the server starts");
    let mut client = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
    let mut room = vec![0; 1 << 16];
    let value = "v".repeat(100);
    let set = |len: usize| {
        let value = &value[..len];
        format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n${len}\r\n{value}\r\n")
    };
    // Values of the same length go in place; these take turns in length, so that each is made anew.
    let sets = [set(100), set(40)].concat().repeat(DEPTH / 2);
    let made = allocations(&mut client, sets.as_bytes(), "+OK\r\n".len(), &mut room);
    assert!(made.abs_diff(BATCHES * DEPTH) < SPARE, "{made} for {} SETs", BATCHES * DEPTH);
    let gets = "*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n".repeat(DEPTH);
    let reply = "$40\r\n\r\n".len() + 40;
    let made = allocations(&mut client, gets.as_bytes(), reply, &mut room);
    assert!(made < SPARE, "{made} for {} GETs", BATCHES * DEPTH);
}
