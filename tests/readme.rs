//! The README's second screen, as a reader runs it: the sample configuration, the commands of its console
//! block through redis-cli, and the answers that it shows.

mod common;

use std::process::{Command, Stdio};

use common::{Server, missing};

const README: &str = include_str!("../README.md");
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/larder.toml");

/// The block of the README in this language, fences left out.
fn block(language: &str) -> &'static str {
    let fence = format!("```{language}\n");
    let (_, behind) = README.split_once(&fence).expect("README has such a block");
    behind.split_once("```").expect("it ends").0
}

/// The lines that are typed, and the answer that is shown for each.
fn screen() -> Vec<(&'static str, String)> {
    let lines = block("console").split("$ ").filter(|part| !part.is_empty());
    let parts = lines.map(|part| part.split_once('\n').expect("an answer"));
    parts.map(|(typed, answer)| (typed, answer.to_owned())).collect()
}

/// What a shell shows for a line, with redis-cli as at a terminal, and the test's port for its own.
fn shown(line: &str, server: &Server) -> String {
    assert!(line.starts_with("redis-cli "), "{line}");
    let line = line.replacen("redis-cli", &format!("redis-cli --no-raw -p {}", server.port()), 1);
    let output = Command::new("sh").args(["-c", &line]).output().expect("a shell");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_second_screen_is_true() {
    if Command::new("redis-cli").arg("--version").stdout(Stdio::null()).status().is_err() {
        return missing("redis-cli");
    }
    assert!(block("sh").starts_with("cargo run --release -- config/larder.toml "), "{README}");
    let screen = screen();
    assert_eq!(screen.len(), 6, "{screen:?}");
    let dir = tempfile::tempdir().expect("a directory");
    let start = || Server::start_in(dir.path(), &[SAMPLE, "--logfile", "/dev/null"]);
    let mut server = start();
    for (line, answer) in &screen {
        assert_eq!(shown(line, &server), *answer, "{line}");
    }
    // "Stop the server, or kill it, and start it again: both are there."
    let gets: Vec<_> = screen.iter().filter(|(line, _)| line.contains(" get ")).collect();
    assert_eq!(gets.len(), 2);
    for is_killed in [false, true, false] {
        if is_killed {
            server.kill9();
        } else {
            assert_eq!(server.stop(), Some(0));
        }
        server = start();
        for (line, answer) in &gets {
            assert_eq!(shown(line, &server), *answer, "{line}");
        }
    }
    // "shows what was loaded and written, by prefix"
    let info = shown("redis-cli info namespaces", &server);
    for prefix in ["order:", "user:", "page:"] {
        assert!(info.contains(&format!("prefix={prefix},")), "{info}");
    }
}

/// What is written behind survives a kill without any LARDER.FLUSH: the journal has it.
#[test]
fn a_kill_before_the_flush_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    for value in ["Ada", "Bea", "Cleo"] {
        let mut server = Server::start_in(dir.path(), &[SAMPLE, "--logfile", "/dev/null"]);
        assert_eq!(server.raw().ask_line(&format!("SET user:7 {value}")), "+OK\r\n");
        server.kill9();
        let server = Server::start_in(dir.path(), &[SAMPLE, "--logfile", "/dev/null"]);
        let expected = format!("${}\r\n{value}\r\n", value.len());
        assert_eq!(server.raw().ask_line("GET user:7"), expected);
    }
}
