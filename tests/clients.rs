//! Clients in other languages: redis-py, node-redis and redis-cli, where they are installed.
//!
//! `LARDER_PYTHON` names a Python with redis-py (default `python3`), `NODE_PATH` the folder of modules
//! with node-redis. The scripts are in `tests/clients/`.

mod common;

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::mpsc,
};

use common::{PATIENCE, Server, missing};

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Whether a program can be run with these arguments, and succeeds.
fn works(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program).args(args).output();
    output.is_ok_and(|output| output.status.success())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

/// Runs a script with both versions of the protocol, each against a server of its own.
fn run_both(program: &str, name: &str) {
    for protocol in ["2", "3"] {
        let server = Server::start(&[]);
        let port = server.port().to_string();
        let mut command = Command::new(program);
        let output = command.arg(script(name)).args([&port, protocol]).output().expect("it runs");
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{name}, RESP{protocol}: {said}");
        eprint!("{said}");
    }
}

#[test]
fn redis_py() {
    let python = std::env::var("LARDER_PYTHON").unwrap_or_else(|_| "python3".into());
    if !works(&python, &["-c", "import redis"]) {
        return missing("redis-py (LARDER_PYTHON names a Python that has it)");
    }
    run_both(&python, "redis_py.py");
}

#[test]
fn node_redis() {
    if !works("node", &["-e", "require('redis')"]) {
        return missing("node-redis (NODE_PATH names the folder that has it)");
    }
    run_both("node", "node_redis.cjs");
}

/// Runs redis-cli with these arguments and this input; `None` if it isn't installed.
fn redis_cli(server: &Server, args: &[&str], input: &str) -> Option<Output> {
    if !works("redis-cli", &["--version"]) {
        missing("redis-cli");
        return None;
    }
    let mut child = Command::new("redis-cli")
        .args(["-p", &server.port().to_string()])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    Some(child.wait_with_output().expect("it ends"))
}

#[test]
fn redis_cli_runs_commands() {
    let server = Server::start(&["--requirepass", "secret"]);
    let ask = |args: &[&str], input: &str| -> Option<String> {
        let all = [&["-a", "secret", "--no-auth-warning"], args].concat();
        redis_cli(&server, &all, input).map(|output| text(&output.stdout))
    };
    let Some(pong) = ask(&["PING"], "") else { return };
    assert_eq!(pong, "PONG\n");
    let asked = ask(&[], "SET k \"a b\"\nGET k\nINCR k\nGET nothing\n").expect("installed");
    let wanted = "OK\na b\nERR value is not an integer or out of range\n\n\n";
    assert_eq!(asked, wanted);
    let asked = ask(&["-3", "--no-raw", "CONFIG", "GET", "maxclients"], "").expect("installed");
    assert_eq!(asked, "1# \"maxclients\" => \"10000\"\n");
    assert_eq!(ask(&["-n", "3", "DBSIZE"], "").expect("installed"), "0\n");
    assert_eq!(ask(&["-x", "SET", "from-input"], "text").expect("installed"), "OK\n");
    assert_eq!(ask(&["--scan"], "").expect("installed").lines().count(), 2);
    assert!(ask(&["INFO", "server"], "").expect("installed").contains("redis_version:7"));
    assert!(ask(&["CLIENT", "LIST"], "").expect("installed").contains("cmd=client|list"));
    assert!(ask(&["--bigkeys"], "").expect("installed").contains("Sampled 2 keys"));
    let piped = "SET p 1\r\nSET q 2\r\n";
    assert!(ask(&["--pipe"], piped).expect("installed").contains("errors: 0, replies: 2"));
}

/// What redis-cli reads when it starts, so that it can complete and hint.
#[test]
fn redis_cli_reads_the_documentation() {
    let server = Server::start(&[]);
    let asked = redis_cli(&server, &["-3", "--json", "COMMAND", "DOCS"], "");
    let Some(output) = asked else { return };
    let docs = text(&output.stdout);
    assert!(output.status.success() && docs.starts_with('{'), "{docs}");
    for part in ["\"get\":{\"summary\":\"", "\"client|kill\"", "\"arguments\":[{\"name\":\"key\""] {
        assert!(docs.contains(part), "{part}");
    }
}

/// In a terminal: TAB completes, and what follows a command's name is hinted at.
#[test]
fn redis_cli_completes_and_hints() {
    let server = Server::start(&[]);
    if !works("redis-cli", &["--version"]) || !works("script", &["--version"]) {
        return missing("redis-cli or script");
    }
    let command = format!("stty cols 100 rows 30; redis-cli -p {}", server.port());
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .env("REDISCLI_HISTFILE", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut input = child.stdin.take().expect("piped");
    let mut output = child.stdout.take().expect("piped");
    let (sender, chunks) = mpsc::channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut chunk) {
            let _ = sender.send(text(&chunk[..count]));
        }
    });
    // Each input follows what it answers to: the prompt, the hint, the completed name.
    let mut seen = String::new();
    let mut until = |part: &str| {
        while !seen.contains(part) {
            let chunk = chunks.recv_timeout(PATIENCE);
            seen += &chunk.unwrap_or_else(|_| panic!("no {part:?} in {seen:?}"));
        }
        let behind = seen.find(part).unwrap_or_default() + part.len();
        seen.drain(..behind);
    };
    until("> ");
    input.write_all(b"SETRANGE ").expect("open");
    until("key offset value");
    input.write_all(b"k 0 x\r").expect("open");
    until("(integer) 1");
    until("> ");
    input.write_all(b"expiret\t").expect("open");
    until("EXPIRETIME");
    input.write_all(b" k\r").expect("open");
    until("(integer) -1");
    input.write_all(b"quit\r").expect("open");
    drop(input);
    child.wait().expect("it ends");
}
