//! The server seen from outside: an HTTP address for operators and their programs. It only reads.
//!
//! | path | |
//! |---|---|
//! | `/` | a page for people |
//! | `/state` | what the page shows, in JSON; `?since=` the time of the last reading that is known |
//! | `/metrics` | what Prometheus scrapes |
//! | `/livez`, `/readyz` | whether it lives, and whether it can serve, in JSON with reasons |
//!
//! Whoever can connect may read all of it, so it listens on the loopback interface unless told otherwise.
//! There a web page of somebody else could still ask through the browser of whoever reads it: a name that
//! resolves to 127.0.0.1 (DNS rebinding). So there the `Host` of a request must be the loopback interface.

pub mod health;
mod history;
mod page;
mod scrape;
mod state;

pub use scrape::text as metrics;

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use self::{history::History, state::State};
use crate::command::shared::Shared;

/// Connections at a time; more wait until one ends.
const CONNECTIONS: usize = 64;
/// How long the head of a request may take, which is also how long a connection may be idle: a short time, so
/// that those who say nothing don't keep out a health check.
const HEAD_TIME: Duration = Duration::from_secs(2);
/// How long a connection is served, and how much longer its last answer may take.
const WHOLE_TIME: Duration = Duration::from_secs(60);
const LAST_TIME: Duration = Duration::from_secs(5);
/// Bytes of the head of a request.
const HEAD: usize = 16 << 10;
/// How long accepting rests when the system has no descriptor left.
const REST: Duration = Duration::from_millis(100);

const JSON: &str = "application/json";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

type Answer = Response<Full<Bytes>>;

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let _alive = shared.cache.vitals().guard("the task that serves the admin address");
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let history = Arc::new(History::default());
    tokio::spawn(history::keep(history.clone(), shared.clone()));
    let admin = Arc::new(Admin { shared, history, is_local });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let admin = admin.clone();
                tokio::spawn(async move {
                    admin.converse(stream).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

/// What answers requests.
struct Admin {
    shared: Arc<Shared>,
    history: Arc<History>,
    /// Whether only the loopback interface is listened on.
    is_local: bool,
}

impl Admin {
    async fn converse(self: Arc<Self>, stream: TcpStream) {
        let answer = service_fn(|request: Request<Incoming>| {
            let admin = self.clone();
            async move { Ok::<_, Infallible>(admin.answer(&request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(stream), answer);
        let mut connection = pin!(connection);
        let ended = match timeout(WHOLE_TIME, connection.as_mut()).await {
            Ok(ended) => ended,
            Err(_) => {
                connection.as_mut().graceful_shutdown();
                timeout(LAST_TIME, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(why) = ended {
            tracing::debug!("admin: {why}");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        let host = request.headers().get(HOST);
        if self.is_local && !host.is_some_and(is_loopback) {
            let text = "the Host of a request must be the loopback interface here\n";
            return respond(StatusCode::FORBIDDEN, PLAIN, text);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer =
                respond(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "there is only GET here\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/" => page::html(),
            "/state" => self.state(request.uri().query()),
            "/metrics" => respond(StatusCode::OK, METRICS, metrics(&self.shared)),
            "/livez" => health::live(&self.shared).answer(),
            "/readyz" => health::ready(&self.shared).await.answer(),
            _ => respond(StatusCode::NOT_FOUND, PLAIN, "not here\n"),
        }
    }

    fn state(&self, query: Option<&str>) -> Answer {
        let mut pairs = query.unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
        let since = pairs.find(|(name, _)| *name == "since");
        let since = since.and_then(|(_, at)| at.parse().ok()).unwrap_or(0);
        let state = State::now(&self.shared, &self.history, since);
        respond(StatusCode::OK, JSON, serde_json::to_string(&state).unwrap_or_default())
    }
}

/// Whether a `Host` is the loopback interface, by any of its names.
fn is_loopback(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else { return false };
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let is_address = bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_address || name.eq_ignore_ascii_case("localhost")
}

/// An answer with a body; nobody keeps it.
fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, page::policy());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_many_names() {
        let is = |host: &str| is_loopback(&HeaderValue::from_str(host).expect("a value"));
        for host in ["localhost", "LOCALHOST:9379", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:80"]
        {
            assert!(is(host), "{host}");
        }
        for host in
            ["", "larder:9379", "127.0.0.1.evil.example", "localhost.evil.example:9379", "10.0.0.1"]
        {
            assert!(!is(host), "{host}");
        }
    }
}
