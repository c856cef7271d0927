//! A headless Chromium of the test's own, driven over the DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>). What it complains about is kept.

use std::{
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::common::{PATIENCE, eventually, missing};

/// How long it may take to end by itself.
const END: Duration = Duration::from_secs(5);

/// A browser with one page; it ends when it is dropped.
pub struct Browser {
    child: Child,
    socket: WebSocket<TcpStream>,
    /// That of the page; none: the browser itself is meant.
    session: Option<String>,
    last: u64,
    complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one; `None`, with a word, if it isn't installed.
    pub fn start() -> Option<Self> {
        let mut version = Command::new("chromium");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        if version.status().is_err() {
            missing("chromium");
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary directory");
        let child = Command::new("chromium")
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(["--remote-debugging-port=0", "about:blank"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium starts");
        let mut child = Ended(Some(child));
        let mut endpoint = None;
        eventually("chromium listens", || {
            endpoint = endpoint_of(profile.path());
            endpoint.is_some()
        });
        let (port, path) = endpoint.expect("an endpoint");
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("chromium listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let url = format!("ws://127.0.0.1:{port}{path}");
        let (socket, _) = tungstenite::client(&url, stream).expect("a web socket");
        let mut browser = Self {
            child: child.0.take().expect("it runs"),
            socket,
            session: None,
            last: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = json!({ "targetId": page["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", target);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime", "Log", "Page"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Calls a method and waits for its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut request = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(request.to_string())).expect("chromium reads");
        loop {
            let message = self.socket.read().expect("chromium answers in time");
            let Ok(text) = message.to_text() else { continue };
            let Ok(mut message) = serde_json::from_str::<Value>(text) else { continue };
            if message["id"] == self.last {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].take();
            }
            self.note(&message);
        }
    }

    /// Keeps what is a complaint.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        let is_bad = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => params["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => params["type"] == "error",
            _ => false,
        };
        if is_bad {
            self.complaints.push(params.to_string());
        }
    }

    /// What the console has shown as errors since the last look.
    pub fn complaints(&mut self) -> Vec<String> {
        // What came before the answer to this has been seen.
        self.evaluate("0");
        std::mem::take(&mut self.complaints)
    }

    /// The value of an expression in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut found = self.call("Runtime.evaluate", params);
        assert!(found.get("exceptionDetails").is_none(), "{expression}: {found}");
        found["result"]["value"].take()
    }

    /// Waits until an expression is true in the page.
    pub fn wait(&mut self, what: &str, expression: &str) {
        self.wait_for(what, expression, PATIENCE);
    }

    /// Waits for so long.
    pub fn wait_for(&mut self, what: &str, expression: &str, patience: Duration) {
        let started = Instant::now();
        while self.evaluate(expression) != true {
            assert!(started.elapsed() < patience, "never: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens a page and waits until it is there.
    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        let there = format!("location.href === '{url}' && document.readyState === 'complete'");
        self.wait("the page is there", &there);
    }

    /// Shows the page at this width, light or dark.
    pub fn look(&mut self, width: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        // Two frames: the charts are drawn anew when they have their size.
        let frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))";
        self.wait("it is drawn", frames);
    }

    /// The page to the end of an element, as a PNG in base64.
    pub fn picture(&mut self, width: u32, last: &str) -> String {
        let end = format!("document.querySelector('{last}').getBoundingClientRect().bottom");
        let height = self.evaluate(&format!("Math.ceil({end} + scrollY) + 6"));
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let params = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let picture = self.call("Page.captureScreenshot", params);
        picture["data"].as_str().expect("a picture").to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let close = json!({ "id": self.last + 1, "method": "Browser.close" });
        let _ = self.socket.send(Message::text(close.to_string()));
        let started = Instant::now();
        while started.elapsed() < END && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that ends if its start fails.
struct Ended(Option<Child>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the Chromium with this profile listens, port and path, once it does.
fn endpoint_of(profile: &Path) -> Option<(u16, String)> {
    let text = std::fs::read_to_string(profile.join("DevToolsActivePort")).ok()?;
    let (port, path) = text.split_once('\n')?;
    Some((port.parse().ok()?, path.trim().to_owned())).filter(|(_, path)| !path.is_empty())
}
