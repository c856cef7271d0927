//! `larder dead-letter`: the changes written behind that their store refused every time, from the shell.
//!
//! `list` and `drop` look into the data directory, whether a server runs or not; `retry` asks the running
//! server (LARDER.DEADLETTER), which alone may bring a change to its store.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{
    config::{Config, Exit, Settings},
    error::Error,
    policy::behind::dead::{DIRECTORY, DeadLetters, Letter},
    store::Change,
};

/// The word that asks for it.
pub const WORD: &str = "dead-letter";
/// How long the server may take for an answer: it asks the store meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 64 << 20;

const USAGE: &str = "\
Usage: larder dead-letter list [CONFIG] [--flag value ...]
       larder dead-letter retry <ID ... | all> [CONFIG] [--flag value ...]
       larder dead-letter drop <ID ... | all> [CONFIG] [--flag value ...]

Changes written behind that their store refused every time. CONFIG and flags are those of the
server. `retry` needs the server to run: it brings them to their store once more, unless what
that has is newer.
";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    List,
    Retry,
    Drop,
}

/// Carries out `larder dead-letter ...`, the program's name first.
///
/// # Errors
/// [`Exit`]: help, a wrong argument, no server where one is needed, or what it answers.
pub fn run(args: Vec<OsString>) -> Result<(), Exit> {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let mut args = args.skip(1).peekable();
    let act = match args.next().as_deref().and_then(|word| word.to_str()) {
        Some("list") => Act::List,
        Some("retry") => Act::Retry,
        Some("drop") => Act::Drop,
        _ => return Err(Exit::Help(USAGE.to_owned())),
    };
    let is_id = |word: &OsString| {
        word.to_str().is_some_and(|text| text == "all" || text.parse::<u64>().is_ok())
    };
    let mut ids = Vec::new();
    while act != Act::List
        && let Some(id) = args.next_if(is_id)
    {
        ids.push(id.to_string_lossy().into_owned());
    }
    if act != Act::List && ids.is_empty() {
        return Err(Exit::Help(USAGE.to_owned()));
    }
    let config = Config::from_args(std::iter::once(program).chain(args))?;
    let mut out = io::stdout().lock();
    let done = carry_out(&config.settings, act, &ids, &mut out);
    done.map_err(Exit::Error)
}

fn carry_out(
    settings: &Settings,
    act: Act,
    ids: &[String],
    out: &mut impl Write,
) -> Result<(), Error> {
    let letters = DeadLetters::open(settings.dir.join(DIRECTORY))?;
    match act {
        Act::List => {
            for id in letters.ids()? {
                match letters.read(id) {
                    Ok(Some(letter)) => writeln!(out, "{}", line(&letter))?,
                    Ok(None) => {}
                    Err(why) => writeln!(out, "{id}\t{why}")?,
                }
            }
        }
        Act::Drop => {
            let ids = if ids.iter().any(|id| id == "all") {
                letters.ids()?
            } else {
                ids.iter().filter_map(|id| id.parse().ok()).collect()
            };
            for id in ids {
                let was_there = letters.remove(id)?;
                writeln!(out, "{id}\t{}", if was_there { "dropped" } else { "unknown" })?;
            }
        }
        Act::Retry => {
            for answer in ask(settings, ids)? {
                writeln!(out, "{answer}")?;
            }
        }
    }
    Ok(())
}

/// A letter as a line: number, database, key, what was to happen, tries, reason.
fn line(letter: &Letter) -> String {
    let change = match &letter.change {
        Change::Put(record) => format!("put of {} bytes", record.value.len()),
        Change::Delete { .. } => "delete".to_owned(),
    };
    let key = letter.key.escape_ascii();
    let reason: String =
        letter.reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{}\tdb {}\t{key}\t{change}\t{} tries\t{reason}", letter.id, letter.db, letter.tries)
}

/// Has the server retry letters; what it says of each.
fn ask(settings: &Settings, ids: &[String]) -> Result<Vec<String>, Error> {
    let address = ("127.0.0.1", settings.port);
    let no_server = |why: io::Error| {
        let text = format!("no larder answers at port {}: {why}; retry needs it", settings.port);
        Error::Io(io::Error::new(why.kind(), text))
    };
    let mut stream = TcpStream::connect(address).map_err(no_server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let password = settings.requirepass.reveal();
    let mut answers = BufReader::new(stream.try_clone()?.take(LONGEST));
    if !password.is_empty() {
        stream.write_all(&request(&["AUTH", password]))?;
        read_status(&mut answers)?;
    }
    let ids = ids.iter().map(String::as_str);
    let words: Vec<&str> = ["LARDER.DEADLETTER", "RETRY"].into_iter().chain(ids).collect();
    stream.write_all(&request(&words))?;
    let count: usize = read_status(&mut answers)?
        .strip_prefix('*')
        .and_then(|count| count.parse().ok())
        .ok_or_else(strange)?;
    let mut said = Vec::new();
    for _ in 0..count {
        let len: u64 = read_status(&mut answers)?
            .strip_prefix('$')
            .and_then(|len| len.parse().ok())
            .filter(|len| *len <= LONGEST)
            .ok_or_else(strange)?;
        let mut text = Vec::new();
        answers.by_ref().take(len + 2).read_to_end(&mut text)?;
        said.push(String::from_utf8_lossy(&text).trim_end().to_owned());
    }
    Ok(said)
}

fn request(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

/// A line of the answer; an error if it is one.
fn read_status(answers: &mut impl BufRead) -> Result<String, Error> {
    let mut line = String::new();
    answers.read_line(&mut line)?;
    let line = line.trim_end().to_owned();
    match line.strip_prefix('-') {
        Some(error) => Err(io::Error::other(error.to_owned()).into()),
        None if line.is_empty() => Err(strange()),
        None => Ok(line),
    }
}

fn strange() -> Error {
    io::Error::new(io::ErrorKind::InvalidData, "what answers there is no larder").into()
}
