//! Writing behind to a store that fails: one that is down, fails now and then, hangs or is late loses nothing
//! of what was acknowledged; what it refuses for ever stands in nobody's way; and a full journal refuses
//! writes, not reads.

mod common;
#[path = "common/postgres.rs"]
mod instance;
#[path = "common/writers.rs"]
mod writers;

use std::{
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use common::{Raw, Redis, Server, eventually, expect};
use instance::{PASSWORD, Postgres};
use writers::kill_and_look;

/// Kills of each kind; more with `LARDER_KILLS`.
const KILLS: u64 = 20;

/// `b:` is written behind to redb through faults, synced before it is acknowledged.
const TOML: &str = r#"
memory = "32mb"
workers = 2
[journal]
fsync = "always"
[store.main]
kind = "redb"
path = "STORE"
[store.trial]
kind = "faulty"
over = "main"
breaker = false
FAULTS
[[namespace]]
prefix = "b:"
mode = "write-behind"
store = "trial"
behind-delay = "20ms"
"#;

/// A server whose store has these faults.
fn faulty(faults: &str) -> impl Fn(&Path) -> Server {
    move |dir| {
        let store = dir.join("store.redb");
        let toml = TOML.replace("STORE", store.to_str().expect("a plain path"));
        Server::start_with_in(dir, &toml.replace("FAULTS", faults), &[])
    }
}

#[test]
fn kills_lose_nothing_while_the_store_is_down_all_the_time() {
    let down = faulty("fail-every = 1");
    let heal = |dir: &Path| {
        // More starts that find everything in the journal and can store nothing of it.
        for _ in 0..2 {
            let mut server = down(dir);
            let conn = &mut server.raw();
            eventually("it has tried", || {
                figure(conn, "b:", "retries") > 0 || figure(conn, "b:", "dirty_records") == 0
            });
            server.kill9();
        }
        faulty("")(dir)
    };
    kill_and_look(KILLS, &down, heal);
}

#[test]
fn kills_lose_nothing_while_the_store_fails_one_call_in_three() {
    kill_and_look(KILLS, faulty("fail-every = 3"), faulty("fail-every = 3"));
}

#[test]
fn kills_lose_nothing_while_the_store_hangs() {
    let hangs = "hang-every = 3\nhang-for = '100ms'";
    kill_and_look(KILLS, faulty(hangs), faulty(hangs));
}

#[test]
fn kills_lose_nothing_while_the_store_acknowledges_late() {
    kill_and_look(KILLS, faulty("delay = '40ms'"), faulty("delay = '40ms'"));
}

#[test]
fn kills_lose_nothing_with_all_of_these_faults_at_once() {
    let all = "fail-every = 3\nhang-every = 4\nhang-for = '50ms'\ndelay = '10ms'";
    kill_and_look(KILLS, faulty(all), faulty(all));
}

/// A figure of the namespace of a key, by LARDER.NAMESPACE INFO.
fn figure(conn: &mut Raw, key: &str, name: &str) -> u64 {
    let info = conn.ask_line(&format!("LARDER.NAMESPACE INFO {key}"));
    let mut lines = info.lines().skip_while(|line| *line != name).skip(1);
    let value = lines.next().and_then(|line| line.strip_prefix(':'));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {info}"))
}

/// `b:` is written behind to a table of Postgres, through one partition, so that a key that is refused has
/// everybody's way to stand in.
fn behind_postgres(dir: &Path, postgres: &Postgres) -> Server {
    let url = postgres.url();
    let toml = format!(
        "store-timeout = '20s'\n[store.main]\nkind = 'postgres'\nurl = '{url}'\n\
         password-env = 'LARDER_TEST_PASSWORD'\ntable = 'kept'\n\
         [[namespace]]\nprefix = 'b:'\nmode = 'write-behind'\nstore = 'main'\n\
         behind-delay = '200ms'\nbehind-tries = 3\nbehind-partitions = 1\n"
    );
    let path = dir.join("larder.toml");
    std::fs::write(&path, toml).expect("the configuration is written");
    let args = [path.to_str().expect("a plain path"), "--logfile", "/dev/null"];
    Server::start_through("env", &[&format!("LARDER_TEST_PASSWORD={PASSWORD}")], dir, &args)
}

/// A Postgres with the table, which refuses the value `bad` until [`ALLOW`].
fn refusing() -> Option<Postgres> {
    let postgres = Postgres::start()?;
    postgres.sql(
        "create table kept (key bytea primary key, value bytea not null, \
         deadline bigint not null default 0, version bigint not null default 0)",
    );
    postgres.sql(REFUSE);
    Some(postgres)
}

const REFUSE: &str = "alter table kept add constraint no_bad check (value <> 'bad') not valid";
/// What is said of a dead letter that is tried once more.
const QUEUED: &str = "queued: it is stored unless the store has a newer value";
const ALLOW: &str = "alter table kept drop constraint no_bad";

/// The value of a key in the table; none, if there is no row.
fn row(postgres: &Postgres, key: &str) -> Vec<String> {
    postgres.sql(&format!("select encode(value, 'escape') from kept where key = '{key}'"))
}

/// `larder dead-letter ...`, for the server on this port.
fn dead_letter(words: &[&str], dir: &Path, port: u16) -> Output {
    let mut larder = Command::new(env!("CARGO_BIN_EXE_larder"));
    larder.arg("dead-letter").args(words).arg("--dir").arg(dir);
    larder.args(["--port", &port.to_string()]).output().expect("larder runs")
}

/// What it says; it succeeds.
fn says(words: &[&str], dir: &Path, port: u16) -> String {
    let output = dead_letter(words, dir, port);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The number of the one dead letter there is, when there is one again.
fn the_letter(conn: &mut Raw, key: &str) -> String {
    let mut list = String::new();
    eventually("it is a dead letter", || {
        list = conn.ask_line("LARDER.DEADLETTER LIST").replace("\r\n", "|");
        list.starts_with("*1|")
    });
    assert!(list.contains(&format!("|key|${}|{key}|", key.len())), "{list}");
    assert!(list.contains("|tries|:3|"), "{list}");
    assert!(list.contains("no_bad"), "the reason is the database's: {list}");
    let number = list.split("|id|:").nth(1).and_then(|rest| rest.split('|').next());
    number.expect("a number").to_owned()
}

/// SEMANTICS 17: a poison record stands in nobody's way, and is kept.
#[test]
fn what_the_store_refuses_is_a_dead_letter_and_the_others_are_stored_meanwhile() {
    let Some(postgres) = refusing() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = behind_postgres(dir.path(), &postgres);
    let conn = &mut server.raw();
    expect(conn, "SET b:first 1", "+OK");
    expect(conn, "LARDER.FLUSH", "+OK");
    let before = Instant::now();
    expect(conn, "SET b:poison bad", "+OK");
    (0..100).for_each(|key| conn.request(&["SET", &format!("b:{key}"), "good"]));
    (0..100).for_each(|_| assert_eq!(conn.reply(), b"+OK\r\n"));
    // Of the one batch that has it all are stored in time, and so is each that comes while it is tried again.
    let count = "select count(*) from kept where value = 'good'";
    eventually("the others are stored", || postgres.sql(count) == ["100"]);
    let mut longest = before.elapsed();
    for number in 0.. {
        let (began, key) = (Instant::now(), format!("b:later{number}"));
        expect(conn, &format!("SET {key} later"), "+OK");
        eventually("it is stored", || row(&postgres, &key) == ["later"]);
        longest = longest.max(began.elapsed());
        if figure(conn, "b:poison", "dead_letters") == 1 {
            break;
        }
    }
    println!("the others were stored within {longest:?}");
    assert!(longest < Duration::from_millis(1200), "{longest:?}");
    assert_eq!(figure(conn, "b:poison", "refusals"), 3);
    let letter = the_letter(conn, "b:poison");
    // Its copy is gone: what is read is what the store has.
    expect(conn, "GET b:poison", "$-1");
    assert_eq!(row(&postgres, "b:poison"), [""; 0]);
    // Refused again, it is another letter.
    assert_eq!(
        says(&["retry", &letter, "7777777"], dir.path(), server.port()),
        format!("{QUEUED}\nunknown\n")
    );
    let again = the_letter(conn, "b:poison");
    assert_ne!(again, letter);
    postgres.sql(ALLOW);
    expect(conn, "LARDER.DEADLETTER RETRY ALL", &format!("*1|$55|{QUEUED}"));
    expect(conn, "LARDER.FLUSH", "+OK");
    assert_eq!(row(&postgres, "b:poison"), ["bad"]);
    expect(conn, "GET b:poison", "$3|bad");
    expect(conn, "LARDER.DEADLETTER LIST", "*0");
}

#[test]
fn a_dead_letter_never_overtakes_a_newer_value() {
    let Some(postgres) = refusing() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = behind_postgres(dir.path(), &postgres);
    let conn = &mut server.raw();
    for is_stored in [true, false] {
        expect(conn, "SET b:1 bad", "+OK");
        the_letter(conn, "b:1");
        expect(conn, "SET b:1 newer", "+OK");
        // In the database, or on its way there.
        if is_stored {
            expect(conn, "LARDER.FLUSH", "+OK");
        }
        expect(conn, "LARDER.DEADLETTER RETRY ALL", "*1|$36|overtaken: the key has a newer value");
        expect(conn, "LARDER.DEADLETTER LIST", "*0");
        expect(conn, "LARDER.FLUSH", "+OK");
        assert_eq!(row(&postgres, "b:1"), ["newer"]);
        expect(conn, "GET b:1", "$5|newer");
    }
}

#[test]
fn dead_letters_are_handled_from_the_shell_with_and_without_a_server() {
    let Some(postgres) = refusing() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = behind_postgres(dir.path(), &postgres);
    let conn = &mut server.raw();
    let port = server.port();
    assert_eq!(says(&["list"], dir.path(), port), "");
    expect(conn, "SET b:1 bad", "+OK");
    let letter = the_letter(conn, "b:1");
    let list = says(&["list"], dir.path(), port);
    let line = format!("{letter}\tdb 0\tb:1\tput of 3 bytes\t3 tries\t");
    assert!(list.starts_with(&line) && list.lines().count() == 1, "{list}");
    postgres.sql(ALLOW);
    assert_eq!(says(&["retry", "all"], dir.path(), port), format!("{QUEUED}\n"));
    expect(conn, "LARDER.FLUSH", "+OK");
    assert_eq!(row(&postgres, "b:1"), ["bad"]);
    postgres.sql("update kept set value = 'row' where key = 'b:1'");
    postgres.sql(REFUSE);
    expect(conn, "SET b:1 bad", "+OK");
    let letter = the_letter(conn, "b:1");
    assert_eq!(says(&["drop", &letter], dir.path(), port), format!("{letter}\tdropped\n"));
    expect(conn, "LARDER.DEADLETTER LIST", "*0");
    expect(conn, "SET b:1 bad", "+OK");
    let letter = the_letter(conn, "b:1");
    server.kill9();
    // It outlives the server.
    assert!(says(&["list"], dir.path(), port).starts_with(&format!("{letter}\t")));
    let refused = dead_letter(&["retry", "all"], dir.path(), port);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("retry needs it"), "{why}");
    let server = behind_postgres(dir.path(), &postgres);
    let conn = &mut server.raw();
    // The journal may not have heard of it before the kill: then it is tried again, and is the same letter.
    eventually("what the store has is read", || conn.ask_line("GET b:1") == "$3\r\nrow\r\n");
    assert_eq!(the_letter(conn, "b:1"), letter);
    drop(server);
    assert_eq!(says(&["drop", "all"], dir.path(), port), format!("{letter}\tdropped\n"));
    assert_eq!(says(&["drop", &letter], dir.path(), port), format!("{letter}\tunknown\n"));
    assert_eq!(says(&["list"], dir.path(), port), "");
}

/// A value of 100 KiB that tells its key.
fn large(writer: usize, number: usize) -> String {
    format!("{writer}-{number}-").repeat(25_600).split_at(102_400).0.to_owned()
}

#[test]
fn a_full_journal_refuses_writes_and_stays_within_memory() {
    const MIB: usize = 1 << 20;
    let Some(mut redis) = Redis::start() else { return };
    let toml = format!(
        "memory = '256mb'\nworkers = 2\njournal = {{ limit = '64mb', wait = '500ms' }}\n\
         [store.main]\nkind = 'redis'\nurl = '{}'\n\
         [[namespace]]\nprefix = 'b:'\nmode = 'write-behind'\nstore = 'main'\n\
         behind-delay = '50ms'\n",
        redis.url()
    );
    let server = Server::start_with(&toml, &["--logfile", "/dev/null"]);
    let conn = &mut server.raw();
    expect(conn, "SET b:first 1", "+OK");
    expect(conn, "LARDER.FLUSH", "+OK");
    redis.kill();
    let write = |writer: usize| {
        let mut conn = server.raw();
        for number in 0.. {
            let reply = conn.ask(&["SET", &format!("b:{writer}:{number}"), &large(writer, number)]);
            if reply != b"+OK\r\n" {
                let text = String::from_utf8_lossy(&reply).into_owned();
                assert!(text.starts_with("-JOURNALFULL "), "{text}");
                return number;
            }
        }
        unreachable!("the journal is never full")
    };
    let taken: Vec<usize> = thread::scope(|scope| {
        let writers: Vec<_> = (0..4).map(|writer| scope.spawn(move || write(writer))).collect();
        writers.into_iter().map(|writer| writer.join().expect("a full journal")).collect()
    });
    let resident = server.resident();
    let bytes = taken.iter().sum::<usize>() * 102_400;
    println!("{} MiB were taken, {} MiB are resident", bytes / MIB, resident / MIB);
    assert!((40 * MIB..=64 * MIB).contains(&bytes), "{bytes} bytes were acknowledged");
    assert!(resident < (256 + 64 + 100) * MIB, "{resident} bytes are resident");
    let all = || {
        let of = |(writer, count): (usize, &usize)| (0..*count).map(move |at| (writer, at));
        taken.iter().enumerate().flat_map(of)
    };
    let compare = |conn: &mut Raw| {
        for (writer, number) in all() {
            let value = conn.ask(&["GET", &format!("b:{writer}:{number}")]);
            assert!(value.ends_with(format!("{}\r\n", large(writer, number)).as_bytes()));
        }
    };
    // What was acknowledged is read, and what isn't written behind goes on.
    compare(conn);
    expect(conn, "SET plain 1", "+OK");
    let said = conn.ask(&["SET", "b:more", &large(9, 9)]);
    assert!(said.starts_with(b"-JOURNALFULL "), "{}", String::from_utf8_lossy(&said));
    redis.start_again();
    expect(conn, "LARDER.FLUSH", "+OK");
    compare(&mut Raw::connect(redis.port()));
    expect(conn, "SET b:more x", "+OK");
}
