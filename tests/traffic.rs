//! What a server knows of its traffic, by its own commands and by redis-cli's.

mod common;

use std::{
    collections::HashMap,
    process::Command,
    time::{Duration, Instant},
};

use common::{PATIENCE, Server, missing};

type Rows = Vec<HashMap<String, String>>;

fn rows(server: &Server, command: &str) -> Rows {
    redis::cmd(command).query(&mut server.connect()).expect("rows")
}

/// GETs by several connections: one key as often as all others together.
fn ask(server: &Server, others: u64, rounds: u64) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mut connection = server.connect();
            scope.spawn(move || {
                for round in 0..rounds {
                    let mut pipe = redis::pipe();
                    for step in 0..64 {
                        let number = (thread * rounds * 64 + round * 64 + step) * 7_919 % others;
                        pipe.cmd("GET").arg("hot").cmd("GET").arg(format!("key:{number}"));
                    }
                    let _: Vec<Option<String>> = pipe.query(&mut connection).expect("answers");
                }
            });
        }
    });
}

#[test]
fn the_hottest_key_is_found_whichever_worker_serves_it() {
    let server = Server::start(&["--workers", "2", "--memory", "64mb"]);
    let _: () = redis::cmd("SET").arg("hot").arg("v").query(&mut server.connect()).expect("set");
    ask(&server, 20_000, 100);
    let started = Instant::now();
    let top = rows(&server, "LARDER.HOTKEYS");
    assert_eq!((&*top[0]["key"], &*top[0]["db"]), ("hot", "0"));
    let share: f64 = top[0]["share"].parse().expect("a number");
    assert!((share - 0.5).abs() < 0.1, "{top:?}");
    // Under the default policy OBJECT FREQ tells it, too.
    let frequency = redis::cmd("OBJECT").arg("FREQ").arg("hot").query(&mut server.connect());
    let frequency: u64 = frequency.expect("an estimate");
    assert!((50..256).contains(&frequency), "{frequency}");
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn keys_that_came_back_after_a_restart_may_be_the_largest() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = Server::start_in(dir.path(), &["--memory", "64mb"]);
    let value = "v".repeat(100_000);
    let _: () = redis::cmd("SET").arg("big").arg(value).query(&mut server.connect()).expect("set");
    let _: () = redis::cmd("SET").arg("small").arg("v").query(&mut server.connect()).expect("set");
    assert_eq!(server.stop(), Some(0));
    let server = Server::start_in(dir.path(), &["--memory", "64mb"]);
    let started = Instant::now();
    while rows(&server, "LARDER.BIGKEYS").len() < 2 {
        assert!(started.elapsed() < PATIENCE, "they don't come back");
        std::thread::sleep(Duration::from_millis(20));
    }
    let top = rows(&server, "LARDER.BIGKEYS");
    assert_eq!((&*top[0]["key"], &*top[0]["type"]), ("big", "string"));
    assert!(top[0]["bytes"].parse::<u64>().expect("a number") > 100_000);
}

#[test]
fn the_curve_rises_to_where_everything_fits() {
    let server = Server::start(&["--memory", "4mb", "--workers", "2"]);
    let mut connection = server.connect();
    let value = "v".repeat(900);
    // 12,000 keys of a kilobyte in turns: three times what there is room for.
    for step in 0..600u64 {
        let keys: Vec<_> = (0..60).map(|at| format!("key:{}", (step * 60 + at) % 12_000)).collect();
        let mut pipe = redis::pipe();
        for key in &keys {
            pipe.cmd("GET").arg(key);
        }
        let found: Vec<Option<String>> = pipe.query(&mut connection).expect("answers");
        let mut pipe = redis::pipe();
        pipe.cmd("PING").ignore();
        for (key, _) in keys.iter().zip(found).filter(|(_, found)| found.is_none()) {
            pipe.cmd("SET").arg(key).arg(&value).ignore();
        }
        let _: () = pipe.query(&mut connection).expect("set");
    }
    let curve: HashMap<String, redis::Value> =
        redis::cmd("LARDER.MRC").query(&mut connection).expect("a map");
    let points: Rows = redis::from_redis_value(curve["curve"].clone()).expect("points");
    let ratios: Vec<f64> =
        points.iter().map(|point| point["hit_ratio"].parse().expect("a number")).collect();
    assert!(ratios.is_sorted(), "{ratios:?}");
    assert!(ratios[1] < 0.1 && (ratios[3] - 0.667).abs() < 0.06, "{ratios:?}");
    assert_eq!(points[4]["bytes"], (32 << 20).to_string());
}

/// What a program said, if it is installed.
fn redis_cli(server: &Server, mode: &str) -> Option<String> {
    let port = server.port().to_string();
    let Ok(output) = Command::new("redis-cli").args(["-p", &port, mode]).output() else {
        missing("redis-cli");
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn redis_cli_finds_hot_and_large_keys() {
    let server = Server::start(&["--memory", "64mb"]);
    let mut connection = server.connect();
    for number in 0..500 {
        let size = if number == 77 { 50_000 } else { 10 };
        let key = format!("key:{number}");
        let _: () =
            redis::cmd("SET").arg(key).arg("v".repeat(size)).query(&mut connection).expect("set");
    }
    for _ in 0..2_000 {
        let _: String = redis::cmd("GET").arg("key:42").query(&mut connection).expect("a value");
    }
    let Some(hot) = redis_cli(&server, "--hotkeys") else { return };
    assert!(hot.contains("Sampled 500 keys"), "{hot}");
    let first = hot.lines().find(|line| line.starts_with("hot key found with counter:"));
    assert!(first.is_some_and(|line| line.ends_with("keyname: \"key:42\"")), "{hot}");
    let big = redis_cli(&server, "--bigkeys").expect("installed");
    // How a name is quoted depends on the version.
    let largest = |said: &str, size: &str| {
        let line = said.lines().rfind(|line| line.starts_with("Biggest string found"));
        line.is_some_and(|line| line.contains("key:77") && line.contains(size))
    };
    assert!(largest(&big, "has 50000 bytes"), "{big}");
    let mem = redis_cli(&server, "--memkeys").expect("installed");
    assert!(largest(&mem, "has 5"), "{mem}");
}
