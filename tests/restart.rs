//! A restart at size: a million keys come back after SIGTERM, the server serves at once, and the same
//! traffic finds all that was there, from the first request on.

mod common;

use std::{path::Path, time::Instant};

use common::{Raw, Server, encode};

/// Keys that are loaded, and keys that are asked for.
const LOADED: u64 = 1_000_000;
const KEYS: u64 = 2_000_000;
/// Requests before the restart and after it.
const REQUESTS: u64 = 150_000;
const PIPELINE: u64 = 1_000;
/// How soon a server has to serve, in seconds; what isn't optimized has more time.
const SOON: f64 = if cfg!(debug_assertions) { 3.0 } else { 1.0 };

fn value(key: u64) -> String {
    format!("{}", key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24)
}

fn set(key: u64) -> Vec<u8> {
    encode(&["SET", &format!("k{key}"), &value(key)])
}

fn load(raw: &mut Raw) {
    for first in (0..LOADED).step_by(PIPELINE as usize) {
        let keys = first..first + PIPELINE;
        raw.send(keys.clone().flat_map(set).collect::<Vec<_>>());
        keys.for_each(|_| assert_eq!(raw.reply(), b"+OK\r\n"));
    }
}

/// The rank of a key in Zipf's distribution with an exponent a little below 1, where the harmonic sum is
/// near enough to its integral.
fn rank(random: u64) -> u64 {
    const REST: f64 = 0.01;
    let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
    let last = (KEYS as f64).powf(REST);
    ((1.0 + share * (last - 1.0)).powf(1.0 / REST) as u64).min(KEYS) - 1
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    random.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

/// Asks for keys by Zipf and sets those that are missing, as an application does; the share of hits. No key
/// that is there by all that is known is missed.
fn traffic(raw: &mut Raw, mut random: u64, is_there: &mut [bool]) -> f64 {
    let mut hits = 0;
    for _ in 0..REQUESTS / PIPELINE {
        let keys: Vec<u64> = (0..PIPELINE).map(|_| rank(next(&mut random))).collect();
        let gets = keys.iter().flat_map(|key| encode(&["GET", &format!("k{key}")]));
        raw.send(gets.collect::<Vec<_>>());
        let mut missing = Vec::new();
        for key in keys {
            let reply = raw.reply();
            if reply == b"$-1\r\n" {
                assert!(!is_there[key as usize], "k{key} is lost");
                missing.push(key);
                continue;
            }
            let wanted = value(key);
            assert_eq!(reply, format!("${}\r\n{wanted}\r\n", wanted.len()).into_bytes());
            hits += 1;
        }
        raw.send(missing.iter().flat_map(|key| set(*key)).collect::<Vec<_>>());
        for key in missing {
            assert_eq!(raw.reply(), b"+OK\r\n");
            is_there[key as usize] = true;
        }
    }
    hits as f64 / REQUESTS as f64
}

fn size(raw: &mut Raw) -> u64 {
    let reply = raw.ask_line("DBSIZE");
    reply.trim_start_matches(':').trim_end().parse().expect("a number")
}

fn comes_back(dir: &Path, flags: &[&str]) {
    let mut server = Server::start_in(dir, flags);
    let mut raw = server.raw();
    let started = Instant::now();
    load(&mut raw);
    println!("loaded in {:.1?}, {} keys", started.elapsed(), size(&mut raw));
    assert_eq!(size(&mut raw), LOADED, "there is room for all of them");
    let mut is_there: Vec<bool> = (0..KEYS).map(|key| key < LOADED).collect();
    let before = traffic(&mut raw, 20_261_125, &mut is_there);
    let size_before = size(&mut raw);
    println!("{before:.3} hits, {size_before} keys, after {:.1?}", started.elapsed());
    assert_eq!(size_before, is_there.iter().filter(|is_there| **is_there).count() as u64);
    assert_eq!(server.stop(), Some(0));
    println!("stopped after {:.1?}", started.elapsed());

    let spawned = Instant::now();
    let server = Server::start_in(dir, flags);
    let mut raw = server.raw();
    assert_eq!(raw.ask_line("PING"), "+PONG\r\n");
    let took = spawned.elapsed().as_secs_f64();
    println!("{flags:?}: serves {took:.3} s after it was started");
    assert!(took < SOON, "{took:.3} s");
    assert_eq!(size(&mut raw), size_before);
    // Other requests, from the same distribution.
    let after = traffic(&mut raw, 20_261_126, &mut is_there);
    println!("{after:.3} of hits at once, {before:.3} before, {:.1?}", started.elapsed());
    assert!(after >= 0.99 * before, "{after:.3} of {before:.3}");
}

/// SEMANTICS 8: at size, without a disk tier: what comes back is a snapshot of memory.
#[test]
fn a_million_keys_come_back_from_a_snapshot() {
    let dir = tempfile::tempdir().expect("a directory");
    comes_back(dir.path(), &["--memory", "96mb", "--workers", "1"]);
}

/// The same with a disk tier, where most keys are.
#[test]
fn a_million_keys_come_back_from_the_disk_tier() {
    let dir = tempfile::tempdir().expect("a directory");
    // A disk that others use too isn't waited for in vain.
    let patient = ["--disk-read-timeout", "20s"];
    let flags = ["--memory", "64mb", "--disk-size", "1gb", "--workers", "1"];
    comes_back(dir.path(), &[&flags[..], &patient].concat());
}
