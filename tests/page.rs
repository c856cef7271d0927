//! The page at the admin address, in a headless Chromium: its figures are INFO's, nothing errs, everything has
//! its place on a phone and on a desk, and what clients wrote stays text.
//!
//! `LARDER_UPDATE_DOCS=1` writes the pictures of docs/admin.md.

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use browser::Browser;
use common::{PATIENCE, Server, eventually, free_port, http};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// Every section of the page has something to show.
const EVERYTHING: &str = "\
memory = '24mb'
disk = { size = '256mb' }
slowlog-log-slower-than = '5ms'
[store.main]
kind = 'redb'
[[namespace]]
prefix = 'user:'
mode = 'write-behind'
store = 'main'
behind = { delay = '1s' }
quota = { memory = '8mb' }
[[namespace]]
prefix = 'order:'
mode = 'write-through'
store = 'main'
[[namespace]]
prefix = 'price:'
mode = 'write-around'
store = 'main'
[[namespace]]
prefix = 'page:'
mode = 'cache-aside'
";

/// Widths in pixels.
const WIDTHS: [u32; 2] = [1400, 400];
/// The last section that a picture shows.
const LAST: &str = "#namespaces";
const SCHEMES: [&str; 2] = ["light", "dark"];
/// Clients of the load, each with a connection.
const CLIENTS: usize = 3;
/// How long the load may last, whatever happens.
const LOAD: Duration = Duration::from_secs(240);
/// How many lookups may be counted in two ways while they happen.
const IN_FLIGHT: f64 = 200.0;

/// One browser at a time: the machine may be small.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock()
}

/// Writes more than memory holds.
fn fill(server: &Server) {
    let mut connection = server.connect();
    let value = "x".repeat(1_200);
    for (prefix, count) in [("price", 4_000), ("order", 4_000), ("user", 8_000), ("page", 16_000)] {
        for first in (0..count).step_by(1_000) {
            let mut mset = redis::cmd("MSET");
            (first..first + 1_000).for_each(|key| {
                mset.arg(format!("{prefix}:{key}")).arg(&value);
            });
            mset.exec(&mut connection).expect("set");
        }
    }
}

/// Clients that ask and write, some keys more than others, until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(server: &Server) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS).map(|client| {
            let (stop, connection) = (stop.clone(), server.connect());
            thread::spawn(move || run(connection, client as u64 + 1, &stop))
        });
        let threads = threads.collect();
        Self { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn run(mut connection: redis::Connection, seed: u64, stop: &AtomicBool) {
    let (started, mut random) = (Instant::now(), seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let value = "x".repeat(2_000);
    while !stop.load(Relaxed) && started.elapsed() < LOAD {
        let mut pipe = redis::pipe();
        for _ in 0..20 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let share = (random >> 40) as f64 / (1u64 << 24) as f64;
            // What there is of each, and how many of a hundred requests write.
            let (prefix, keys, writes) = [
                ("user", 9_000.0, 20),
                ("user", 9_000.0, 20),
                ("order", 4_200.0, 1),
                ("price", 4_400.0, 0),
                ("page", 16_500.0, 10),
                ("page", 16_500.0, 10),
                ("plain", 30.0, 1),
            ][random as usize % 7];
            let key = format!("{prefix}:{}", (share.powi(5) * keys) as u64);
            if (random >> 20) % 100 < writes {
                pipe.set(key, &value[..200 + random as usize % 1_800]).ignore();
            } else {
                pipe.get(key).ignore();
            }
        }
        if pipe.exec(&mut connection).is_err() {
            return;
        }
        // A load that leaves the browser some of the machine, and that has its ups and downs.
        let wave = 1.0 + (started.elapsed().as_secs_f64() / 7.0).sin() / 2.0;
        thread::sleep(Duration::from_secs_f64(wave * 0.012));
    }
}

/// INFO's fields; one of several figures, as those of tiers are, comes apart as `name.figure`.
fn info(connection: &mut redis::Connection) -> HashMap<String, String> {
    let text: String = redis::cmd("INFO").query(connection).expect("INFO");
    let mut fields = HashMap::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        for (figure, value) in value.split(',').filter_map(|part| part.split_once('=')) {
            fields.insert(format!("{name}.{figure}"), value.to_owned());
        }
        fields.insert(name.to_owned(), value.to_owned());
    }
    fields
}

fn number(fields: &HashMap<String, String>, name: &str) -> f64 {
    let field = fields.get(name).unwrap_or_else(|| panic!("INFO has no {name}"));
    field.parse().unwrap_or_else(|_| panic!("{name}: {field}"))
}

/// What the page shows: the key figures by id, tables by row and column.
const SHOWN: &str = "(() => {
  const shown = {};
  for (const data of document.querySelectorAll('data[id]')) shown[data.id] = Number(data.value);
  for (const cell of document.querySelectorAll('#tiers td, #namespaces td')) {
    const row = cell.parentElement.cells[0].textContent.split(',')[0];
    shown[`${row}.${cell.dataset.column}`] = Number(cell.dataset.value);
    shown[`${row}.${cell.dataset.column} text`] = cell.textContent;
  }
  return shown;
})()";

/// Whether a figure is between two of INFO, give or take.
fn between(shown: &Value, name: &str, low: f64, high: f64, slack: f64) {
    let figure =
        shown[name].as_f64().unwrap_or_else(|| panic!("the page shows no {name}: {shown}"));
    assert!(
        low - slack <= figure && figure <= high + slack,
        "{name}: {figure}, INFO {low} to {high}"
    );
}

/// Compares what a poll shows with INFO just before and after it.
fn agrees(browser: &mut Browser, redis: &mut redis::Connection) {
    let before = info(redis);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    browser.wait("a poll", &format!("latest.now > {}", now.as_millis()));
    let shown = browser.evaluate(SHOWN);
    let after = info(redis);
    let same = |name: &str, field: &str, slack: f64| {
        between(&shown, name, number(&before, field), number(&after, field), slack);
    };
    same("requests", "total_commands_processed", 0.0);
    same("errors", "total_error_replies", 0.0);
    same("accepted", "total_connections_received", 0.0);
    same("connections", "connected_clients", 0.0);
    same("L1.hits", "l1.hits", 0.0);
    same("L2.hits", "l2.hits", IN_FLIGHT);
    same("L3.hits", "l3.hits", 0.0);
    same("misses", "l3.misses", 0.0);
    same("evicted", "evicted_keys", 0.0);
    for prefix in ["user:", "order:", "price:", "page:"] {
        let is_it = |at: &usize| before[&format!("namespace{at}.prefix")] == prefix;
        let at = (0..4).find(is_it).expect("INFO has the namespace");
        let field = |figure: &str| format!("namespace{at}.{figure}");
        same(&format!("{prefix}.requests"), &field("requests"), IN_FLIGHT);
        same(&format!("{prefix}.loads"), &field("loads"), 0.0);
        let rate = |hits, requests| {
            number(hits, &field("hits")) / number(requests, &field("requests")).max(1.0)
        };
        let (low, high) = (rate(&before, &after), rate(&after, &before));
        between(&shown, &format!("{prefix}.hit_rate"), low, high, 0.01);
        let text = shown[&format!("{prefix}.hit_rate text")].as_str().expect("text");
        let percent: f64 = text.trim_end_matches('%').trim().parse().expect("a percentage");
        let rate = shown[&format!("{prefix}.hit_rate")].as_f64().expect("a rate");
        assert!((percent / 100.0 - rate).abs() < 0.001, "{prefix}: {text}, {rate}");
    }
    let used = [&before, &after].map(|fields| number(fields, "used_memory"));
    between(&shown, "memory", used[0].min(used[1]), used[0].max(used[1]), used[0] / 10.0);
    let flows = "Number(document.querySelector('#request-rate').value) > 0";
    browser.wait("requests are counted by the second", flows);
}

/// What is wrong with the layout: what is wider than the window, cut off, or on top of something else.
const WRONG: &str = "(() => {
  const wrong = [];
  const name = node => node.id || node.className || node.localName;
  const isShown = node => node.checkVisibility() && node.getBoundingClientRect().width > 0;
  if (document.documentElement.scrollWidth > innerWidth) wrong.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const node of document.querySelectorAll('main *, header *')) {
    if (!isShown(node) || node.closest('.box, svg')) continue;
    if (node.getBoundingClientRect().right > innerWidth + 0.5) wrong.push(`${name(node)} is beyond the edge`);
    if (node.matches('data, p, h2, dd, .names span, .legend li') && node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0)
      wrong.push(`${name(node)} is cut: ${node.textContent}`);
  }
  for (const parent of document.querySelectorAll('body, header, main, .tiles, .tile, .meters, .meter, .row, figure, .legend, .head, .card')) {
    const children = [...parent.children].filter(isShown).map(node => [node, node.getBoundingClientRect()]);
    children.forEach(([a, one], at) => children.slice(at + 1).forEach(([b, two]) => {
      const width = Math.min(one.right, two.right) - Math.max(one.left, two.left);
      const height = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
      const isUnseen = [a, b].some(node => node.matches('.unseen, script'));
      if (width > 1 && height > 1 && !isUnseen) wrong.push(`${name(a)} and ${name(b)} overlap`);
    }));
  }
  return wrong;
})()";

/// Looks at it at each width in each scheme; `save` may take a picture.
fn looks(browser: &mut Browser, mut save: impl FnMut(&mut Browser, u32, &str)) {
    let mut grounds = Vec::new();
    for width in WIDTHS {
        for scheme in SCHEMES {
            browser.look(width, scheme);
            let wrong = browser.evaluate(WRONG);
            assert_eq!(wrong.as_array().map(Vec::len), Some(0), "{width} {scheme}: {wrong}");
            grounds.push(browser.evaluate("getComputedStyle(document.body).backgroundColor"));
            save(browser, width, scheme);
        }
    }
    assert!(grounds[0] != grounds[1] && grounds[0] == grounds[2], "{grounds:?}");
}

fn no_complaints(browser: &mut Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn figures_are_those_of_info_and_everything_has_its_place() {
    let _turn = turn();
    let Some(mut browser) = Browser::start() else { return };
    let server = Server::start_with(EVERYTHING, &ADMIN);
    fill(&server);
    let _load = Load::start(&server);
    let mut redis = server.connect();
    eventually("the load has come to the disk", || {
        number(&info(&mut redis), "l3.hits") > 100.0
            && number(&info(&mut redis), "l2.hits") > 1_000.0
    });
    browser.look(1400, "light");
    browser.open(&format!("http://{}/", server.admin()));
    browser.wait("it polls", "readings.length > 3 && previous !== null");
    // It shows the minutes before it was opened.
    assert_eq!(browser.evaluate("readings[0].at < performance.timeOrigin"), true);
    for _ in 0..3 {
        agrees(&mut browser, &mut redis);
    }
    let writes = std::env::var_os("LARDER_UPDATE_DOCS").is_some();
    if writes {
        browser.evaluate("document.querySelector('#spans button').click()");
        let minute = "readings.filter(one => one.connections > 3).length > 61";
        browser.wait_for("a minute has passed", minute, PATIENCE * 5);
    }
    looks(&mut browser, |browser, width, scheme| {
        if writes {
            let path =
                format!("{}/docs/images/page-{width}-{scheme}.png", env!("CARGO_MANIFEST_DIR"));
            let picture = STANDARD.decode(browser.picture(width, LAST)).expect("base64");
            std::fs::write(path, picture).expect("docs/images is there");
        }
    });
    no_complaints(&mut browser);
}

/// The values of a column of the namespaces, from the top.
fn column(browser: &mut Browser, name: &str) -> Vec<f64> {
    let cells = format!("#namespaces td[data-column={name}]");
    let values = browser.evaluate(&format!(
        "[...document.querySelectorAll('{cells}')].map(cell => cell.dataset.value ? Number(cell.dataset.value) : null)"
    ));
    values.as_array().expect("a list").iter().map(|value| value.as_f64().unwrap_or(-1.0)).collect()
}

#[test]
fn namespaces_are_sorted_by_a_click_or_a_key_and_bounded() {
    let _turn = turn();
    let Some(mut browser) = Browser::start() else { return };
    let toml: String = (0..300)
        .map(|at| format!("[[namespace]]\nprefix = 'n{at}:'\nmode = 'cache-aside'\n"))
        .collect();
    let server = Server::start_with(&toml, &ADMIN);
    let mut redis = server.connect();
    for at in 0..250 {
        let key = format!("n{at}:x");
        redis::cmd("SET").arg(&key).arg("x").exec(&mut redis).expect("set");
        for _ in 0..at % 5 {
            redis::cmd("GET").arg(&key).exec(&mut redis).expect("hit");
        }
        redis::cmd("GET").arg(format!("n{at}:y")).exec(&mut redis).expect("miss");
    }
    browser.open(&format!("http://{}/", server.admin()));
    browser.wait(
        "the namespaces are there",
        "document.querySelectorAll('#namespaces tbody tr').length === 200",
    );
    let note = browser.evaluate("document.querySelector('#namespace-note').textContent");
    assert_eq!(note, "the 200 with the most lookups of 300");
    assert!(column(&mut browser, "requests").is_sorted_by(|a, b| a >= b));
    let head = "document.querySelector('#namespaces th[data-column=hit_rate]')";
    let sorted =
        |browser: &mut Browser| browser.evaluate(&format!("{head}.getAttribute('aria-sort')"));
    browser.evaluate(&format!("{head}.querySelector('button').click()"));
    assert_eq!(sorted(&mut browser), "descending");
    let rates = column(&mut browser, "hit_rate");
    assert!(rates.is_sorted_by(|a, b| a >= b) && rates[0] == 0.8, "{rates:?}");
    // By the keyboard, the other way round.
    browser.evaluate(&format!("{head}.querySelector('button').focus()"));
    for kind in ["keyDown", "keyUp"] {
        let key = serde_json::json!({ "type": kind, "key": "Enter", "code": "Enter", "text": "\r",
            "windowsVirtualKeyCode": 13 });
        browser.call("Input.dispatchKeyEvent", key);
    }
    assert_eq!(sorted(&mut browser), "ascending");
    assert!(column(&mut browser, "hit_rate").is_sorted());
    looks(&mut browser, |_, _, _| {});
    no_complaints(&mut browser);
}

/// What would run if it were taken for HTML.
const HOSTILE: &str = "<img src=x onerror=pwned=1><script>pwned=1</script>";

#[test]
fn what_clients_wrote_stays_text() {
    let _turn = turn();
    let Some(mut browser) = Browser::start() else { return };
    let toml = format!("[[namespace]]\nprefix = '{HOSTILE}'\nmode = 'cache-aside'\n");
    let server = Server::start_with(&toml, &[ADMIN[0], ADMIN[1], "--requirepass", "hunter2"]);
    let mut redis = server.raw();
    assert_eq!(redis.ask(&["AUTH", "hunter2"]), b"+OK\r\n");
    for words in [
        &["CONFIG", "SET", "slowlog-log-slower-than", "0"][..],
        &["CLIENT", "SETNAME", "<script>pwned=1</script>"],
        &["SET", HOSTILE, HOSTILE],
        &["GET", "\u{202e}bidi\n"],
        &["AUTH", "hunter2"],
    ] {
        redis.ask(words);
    }
    browser.open(&format!("http://{}/", server.admin()));
    browser.wait("the slow log is there", "document.querySelectorAll('#slow tbody tr').length > 3");
    for list in ["hot-keys", "big-keys"] {
        let rows = format!("document.querySelectorAll('#{list} tbody tr').length > 0");
        browser.wait("the sampled keys are there", &rows);
    }
    // So few lookups make no curve; at the next poll this one goes again.
    let curve = serde_json::json!([
        { "factor": 0.5, "hit_ratio": 0.6 }, { "factor": 1, "hit_ratio": 0.8 }
    ]);
    assert_eq!(browser.evaluate("document.querySelector('#curve').hidden"), true);
    let drawn = browser.evaluate(&format!(
        "latest.curve = {curve}; showTraffic(); document.querySelector('#curve').textContent"
    ));
    assert!(drawn.as_str().is_some_and(|text| text.contains("80.0")), "{drawn}");
    let text = |browser: &mut Browser, id: &str| {
        let text = browser.evaluate(&format!("document.querySelector('#{id}').textContent"));
        text.as_str().expect("text").to_owned()
    };
    for id in ["slow", "namespaces", "hot-keys", "big-keys"] {
        assert!(text(&mut browser, id).contains("<img src=x onerror=pwned=1>"), "{id}");
    }
    assert!(text(&mut browser, "slow").contains("\\u{202e}bidi\\n"));
    assert_eq!(browser.evaluate("typeof pwned"), "undefined");
    assert_eq!(
        browser.evaluate("document.querySelectorAll('img, script:not(body > script)').length"),
        0
    );
    looks(&mut browser, |_, _, _| {});
    // No secret: neither in the page nor in what it is made from.
    assert!(text(&mut browser, "settings").contains("requirepass(hidden)"));
    assert!(!http::get(server.admin(), "/state").body.contains("hunter2"));
    no_complaints(&mut browser);
    // And if something got in, the browser wouldn't run it.
    let script = "document.body.append(Object.assign(document.createElement('script'), { textContent: 'pwned = 2' })); typeof pwned";
    assert_eq!(browser.evaluate(script), "undefined");
}

#[test]
fn it_outlives_the_server() {
    let _turn = turn();
    let Some(mut browser) = Browser::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let admin = format!("127.0.0.1:{}", free_port());
    let mut server = Server::start_in(dir.path(), &["--admin", &admin]);
    browser.open(&format!("http://{admin}/"));
    browser.wait(
        "it is live",
        "readings.length > 1 && document.querySelector('#link').textContent.startsWith('live')",
    );
    let first = browser.evaluate("[latest.run_id, readings[0].at]");
    no_complaints(&mut browser);
    server.kill9();
    browser.wait(
        "it says so",
        "document.querySelector('#link').textContent.startsWith('no answer since')",
    );
    let server = Server::start_in(dir.path(), &["--admin", &admin]);
    server.connect();
    browser.wait(
        "it goes on",
        &format!("latest.run_id !== {} && readings.at(-1).at > latest.now - 2000", first[0]),
    );
    browser.wait("and says so", "document.querySelector('#link').textContent.startsWith('live')");
    // What was read before is still shown.
    assert_eq!(browser.evaluate("readings[0].at"), first[1]);
    // The browser itself notes each request that nobody answered.
    let others: Vec<_> =
        browser.complaints().into_iter().filter(|why| !why.contains("ERR_CONNECTION")).collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn charts_are_read_by_pointer_and_keys() {
    let _turn = turn();
    let Some(mut browser) = Browser::start() else { return };
    let server = Server::start(&ADMIN);
    browser.open(&format!("http://{}/", server.admin()));
    browser.look(1400, "light");
    browser.wait("there is something to read", "readings.length > 3");
    let times = "[...document.querySelectorAll('#chart-row time')].map(time => time.textContent)";
    assert_eq!(browser.evaluate(times)[0], "");
    let at = browser.evaluate(
        "(box => [box.right - 10, box.top + 40])(document.querySelector('#chart-row svg').getBoundingClientRect())",
    );
    let to = serde_json::json!({ "type": "mouseMoved", "x": at[0], "y": at[1] });
    browser.call("Input.dispatchMouseEvent", to);
    let read = browser.evaluate(times);
    let read = read.as_array().expect("times");
    assert!(read.len() == 6 && read.iter().all(|time| *time == read[0] && *time != ""), "{read:?}");
    browser.evaluate("document.querySelectorAll('#chart-row svg')[1].focus()");
    let left = serde_json::json!({ "type": "keyDown", "key": "Home", "code": "Home" });
    browser.call("Input.dispatchKeyEvent", left);
    let spoken =
        browser.evaluate("[document.querySelector('#spoken').textContent, clock(readings[0].at)]");
    let said = spoken[0].as_str().expect("text");
    assert!(said.starts_with(spoken[1].as_str().expect("a time")), "{said}");
    assert!(said.contains("Requests a second: commands"), "{said}");
    no_complaints(&mut browser);
}
