//! `larder health`: whether a running server is well, for a health check in a container that has no HTTP
//! client. It asks the admin address, prints what that says, and exits with 0 or 1.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    net::TcpStream,
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    admin::health::{Health, Status},
    config::Exit,
    error::Error,
};

/// The word that asks for it.
pub const WORD: &str = "health";
/// Where the admin address is unless it is said.
const ADDRESS: &str = "127.0.0.1:9379";
/// How long the answer may take, with all that comes before it. The server gives each store a second.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1 << 20;

const USAGE: &str = "\
Usage: larder health [ADDRESS:PORT[/livez]]

Asks the admin address of a running server (127.0.0.1:9379) whether it is ready, prints what is
wrong if it isn't, and exits with 0 or 1. With /livez behind the address, whether it lives: a
store that is away doesn't matter then, and what is wrong is mended by a restart.
";

/// Carries out `larder health ...`, the program's name first.
///
/// # Errors
/// [`Exit`]: help, or what is wrong with the server.
pub fn run(args: Vec<OsString>) -> Result<(), Exit> {
    let mut args = args.into_iter().skip(2).map(|word| word.to_string_lossy().into_owned());
    let whom = args.next().unwrap_or_else(|| ADDRESS.to_owned());
    if matches!(&*whom, "-h" | "--help") {
        return Err(Exit::Help(USAGE.to_owned()));
    }
    // Not with 0: whoever checks would take it for well.
    if whom.starts_with('-') || args.next().is_some() {
        return Err(USAGE.trim_end().to_owned().into());
    }
    let (address, path) = match whom.split_once('/') {
        Some((address, path)) => (address.to_owned(), format!("/{path}")),
        None => (whom, "/readyz".to_owned()),
    };
    // The thread ends with the process: so the wait is bounded, whatever it is that doesn't answer.
    let (tell, told) = mpsc::channel();
    let asked = address.clone();
    thread::spawn(move || tell.send(ask(&asked, &path)));
    let answer = told.recv_timeout(PATIENCE).map_err(|_| format!("no answer within {PATIENCE:?}"));
    let health = answer.and_then(|answer| answer.map_err(|why| why.to_string()));
    match health.and_then(|text| judge(&text)) {
        Ok(()) => {
            println!("ok");
            Ok(())
        }
        Err(why) => Err(Exit::Error(Error::Io(io::Error::other(format!("{address}: {why}"))))),
    }
}

/// Asks for a path, and reads what comes.
fn ask(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    // In HTTP/1.0 the other side closes, and sends no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// What an answer says: whatever isn't well, with its reason.
fn judge(answer: &str) -> Result<(), String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let Ok(verdict) = serde_json::from_str::<Health>(body) else {
        let status = head.lines().next().unwrap_or_default();
        return Err(format!("what answers there has no such page of a larder: {status:?}"));
    };
    if verdict.status == Status::Ok {
        return Ok(());
    }
    let wrong = verdict.checks.into_iter().filter(|check| !check.ok);
    let wrong = wrong.map(|check| format!("{}: {}", check.name, check.reason.unwrap_or_default()));
    Err(wrong.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_told_with_its_reasons() {
        let answer = |body: &str| judge(&format!("HTTP/1.0 200 OK\r\nx: y\r\n\r\n{body}"));
        assert_eq!(answer(r#"{"status":"ok","checks":[{"name":"journal","ok":true}]}"#), Ok(()));
        let failing = r#"{"status":"failing","checks":[{"name":"a","ok":true},
            {"name":"b","ok":false,"reason":"no"},{"name":"c","ok":false,"reason":"never"}]}"#;
        assert_eq!(answer(failing), Err("b: no; c: never".to_owned()));
        for strange in ["", "hello", "{}", r#"{"status":"ok"}"#] {
            let why = answer(strange).expect_err("no verdict");
            assert!(why.ends_with("\"HTTP/1.0 200 OK\""), "{why}");
        }
        assert!(judge("").is_err());
    }
}
