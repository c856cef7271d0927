//! A small origin over HTTP/1.1 of the test's own, on a free port: it keeps values with their versions and
//! deadlines, and answers as it was told to where it was. It ends when dropped.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::{HashMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What comes instead of the answer to one request.
#[derive(Debug, Clone)]
pub enum Script {
    /// This answer: status, headers, body.
    Answer(u16, Vec<(String, String)>, String),
    /// The connection is closed.
    Close,
    /// Nothing, and the connection stays open.
    Silent,
    /// What it would answer anyway, so much later.
    Late(Duration),
}

impl Script {
    /// An answer with this status.
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), String::new())
    }

    /// With a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer(_, headers, _) = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// With a body.
    pub fn body(mut self, text: &str) -> Self {
        if let Self::Answer(_, _, body) = &mut self {
            text.clone_into(body);
        }
        self
    }
}

#[derive(Default)]
struct State {
    values: HashMap<String, Value>,
    scripts: HashMap<String, VecDeque<Script>>,
    requests: Vec<String>,
    connections: Vec<TcpStream>,
}

struct Value {
    body: Vec<u8>,
    version: u64,
    deadline: u64,
}

/// See the module's doc.
pub struct Origin {
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Origin {
    /// Starts it on a free port.
    pub fn start() -> Self {
        Self::on(0)
    }

    /// Starts it on this port.
    pub fn on(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (state, ended): (Arc<Mutex<State>>, Arc<AtomicBool>) = Default::default();
        let (shared, end) = (state.clone(), ended.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Relaxed) {
                    return;
                }
                let stream = stream.expect("a connection");
                lock(&shared).connections.push(stream.try_clone().expect("a socket"));
                let shared = shared.clone();
                thread::spawn(move || while serve(&stream, &shared).is_some() {});
            }
        });
        Self { state, ended, port, thread: Some(thread) }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, to which keys are appended.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// The next requests for a path, or of `METHOD path`, are answered so, one after the other.
    pub fn script(&self, path: &str, scripts: impl IntoIterator<Item = Script>) {
        let all: VecDeque<_> = scripts.into_iter().collect();
        lock(&self.state).scripts.insert(path.to_owned(), all);
    }

    /// Puts a value there behind everybody's back.
    pub fn put(&self, path: &str, body: &str) {
        let value = Value { body: body.as_bytes().to_vec(), version: 0, deadline: 0 };
        lock(&self.state).values.insert(path.to_owned(), value);
    }

    /// The value at a path.
    pub fn get(&self, path: &str) -> Option<String> {
        let state = lock(&self.state);
        state.values.get(path).map(|value| String::from_utf8_lossy(&value.body).into_owned())
    }

    /// The heads of all requests, in the order in which they came.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.state).requests.clone()
    }

    /// Ends it: connections are cut, and its port is free.
    pub fn stop(&mut self) {
        self.ended.store(true, Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in lock(&self.state).connections.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Request {
    method: String,
    path: String,
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn number(&self, name: &str) -> u64 {
        self.header(name).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn read(stream: &TcpStream) -> Option<Self> {
        // One request at a time: what is behind it has not been sent yet.
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let mut words = head.split(' ').map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let mut request = Self { method, path, head, body: Vec::new() };
        request.body = vec![0; request.number("content-length") as usize];
        reader.read_exact(&mut request.body).ok()?;
        Some(request)
    }
}

/// Serves one request; `None`: the connection has ended.
fn serve(mut stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let request = Request::read(stream)?;
    let script = {
        let mut state = lock(state);
        state.requests.push(request.head.clone());
        let of_method = format!("{} {}", request.method, request.path);
        let mut next = |name: &str| state.scripts.get_mut(name).and_then(VecDeque::pop_front);
        next(&of_method).or_else(|| next(&request.path))
    };
    let is_head = request.method == "HEAD";
    let (status, headers, body) = match script {
        Some(Script::Answer(status, headers, body)) => (status, headers, body.into_bytes()),
        Some(Script::Close) => {
            let _ = stream.shutdown(Shutdown::Both);
            return None;
        }
        Some(Script::Silent) => return Some(()),
        Some(Script::Late(by)) => {
            thread::sleep(by);
            keep(&mut lock(state).values, request)
        }
        None => keep(&mut lock(state).values, request),
    };
    let mut answer = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        answer += &format!("{name}: {value}\r\n");
    }
    if status != 304 && status != 204 {
        answer += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut bytes = (answer + "\r\n").into_bytes();
    if !is_head {
        bytes.extend(body);
    }
    stream.write_all(&bytes).ok()
}

/// What an origin does that keeps versions.
fn keep(
    values: &mut HashMap<String, Value>,
    request: Request,
) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let (version, deadline) = (request.number("larder-version"), request.number("larder-deadline"));
    let old = values.get(&request.path);
    match &*request.method {
        "GET" => match old {
            None => (404, Vec::new(), Vec::new()),
            Some(value) => {
                let mut headers = vec![("Larder-Version".to_owned(), value.version.to_string())];
                if value.deadline != 0 {
                    headers.push(("Larder-Deadline".to_owned(), value.deadline.to_string()));
                }
                (200, headers, value.body.clone())
            }
        },
        "PUT" | "DELETE" if old.is_some_and(|old| old.version > version) => {
            let newer = old.map_or(0, |old| old.version).to_string();
            (412, vec![("Larder-Version".to_owned(), newer)], Vec::new())
        }
        "PUT" => {
            values.insert(request.path, Value { body: request.body, version, deadline });
            (200, Vec::new(), Vec::new())
        }
        "DELETE" => {
            let status = if values.remove(&request.path).is_some() { 204 } else { 404 };
            (status, Vec::new(), Vec::new())
        }
        _ => (200, Vec::new(), Vec::new()),
    }
}
