//! Connections to an origin: each has one request at a time, over a wire of ours, so that it is known
//! whether a request has left.

use std::{error::Error as _, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    client::conn::http1::{self, SendRequest},
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{task::JoinHandle, time::Instant};

use super::options::HttpOptions;
use crate::store::{
    StoreError,
    link::{Link, Silence},
    pool::Connection,
    wire::{Meter, Wire},
};

/// What the head of an answer may have, beside its body.
const HEAD: u64 = 1 << 20;
/// How often a request is sent again where the connection was lost: a load, or one of which nothing has
/// left.
const RETRIES: u32 = 2;

const AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// All connections.
pub(super) struct Connections {
    link: Link<Open>,
    host: String,
    port: u16,
    common: HeaderMap,
    max_body: u64,
}

/// One that is open.
struct Open {
    sender: SendRequest<Full<Bytes>>,
    /// Carries bytes; it ends when the connection does.
    driver: JoinHandle<()>,
    meter: Arc<Meter>,
}

impl Connection for Open {
    fn has_ended(&self) -> bool {
        self.sender.is_closed() || self.driver.is_finished()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    target: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Ask {
    pub(super) fn new(method: Method, target: Uri) -> Self {
        Self { method, target, headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn carrying(self, body: Bytes) -> Self {
        Self { body, ..self }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is known what to say.
    Known(StoreError),
    /// None came.
    Silent(Silence),
}

impl Trouble {
    /// The answer to a read.
    pub(super) fn of_load(self) -> StoreError {
        match self {
            Self::Known(error) => error,
            Self::Silent(silence) => silence.of_load(),
        }
    }
}

impl Connections {
    pub(super) fn new(options: &HttpOptions) -> Self {
        let mut common = HeaderMap::new();
        common.insert(header::HOST, options.host_header.clone());
        common.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(authorization) = options.authorization() {
            common.insert(header::AUTHORIZATION, authorization);
        }
        Self {
            link: Link::new(options.pool, options.times, "the origin"),
            host: options.host.clone(),
            port: options.port,
            common,
            max_body: options.max_body,
        }
    }

    /// Sends a request and waits for the whole answer.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer, Trouble> {
        let is_load = ask.method == Method::GET || ask.method == Method::HEAD;
        let mut tries = 0;
        loop {
            match self.ask_once(ask).await {
                Err(Trouble::Silent(why))
                    if tries < RETRIES && why.is_lost() && (is_load || why.is_unsent()) =>
                {
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    async fn ask_once(&self, ask: &Ask) -> Result<Answer, Trouble> {
        let ready = self.link.ready(async || self.open().await).await;
        let mut lease = ready.map_err(Trouble::Known)?;
        let Open { sender, meter, .. } = &mut lease.connection;
        let call = async {
            sender.ready().await.map_err(describe)?;
            let response = sender.send_request(self.request(ask)).await.map_err(describe)?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(describe)?.to_bytes();
            Ok::<_, String>(Answer { status: head.status, headers: head.headers, body })
        };
        let answer = self.link.answer(meter, self.max_body + HEAD, call).await;
        let answer = answer.map_err(Trouble::Silent)?;
        lease.give_back();
        if answer.body.len() as u64 > self.max_body && ask.method == Method::GET {
            let text = format!("a body of {} bytes, at most {}", answer.body.len(), self.max_body);
            return Err(Trouble::Known(StoreError::Refused(text)));
        }
        Ok(answer)
    }

    fn request(&self, ask: &Ask) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = ask.target.clone();
        let headers = request.headers_mut();
        for (name, value) in self.common.iter().chain(&ask.headers) {
            headers.insert(name, value.clone());
        }
        request
    }

    /// The answer to a write that has none, when it is taken for dead.
    pub(super) async fn dead(&self, silence: Silence) -> StoreError {
        self.link.dead(silence).await
    }

    /// Waits until what began then is taken for dead.
    pub(super) async fn wait_out(&self, begun: Instant) {
        self.link.wait_out(begun).await;
    }

    async fn open(&self) -> Result<Open, StoreError> {
        let down = |why: String| StoreError::Down(format!("error connecting to the origin: {why}"));
        let wire = Wire::connect(&self.host, self.port).await;
        let (wire, meter) = wire.map_err(|why| down(why.to_string()))?;
        let made = http1::handshake(TokioIo::new(wire)).await;
        let (sender, connection) = made.map_err(|why| down(describe(why)))?;
        let driver = tokio::spawn(async { _ = connection.await });
        Ok(Open { sender, driver, meter })
    }
}

/// An error of hyper, with its causes.
fn describe(error: hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        text += ": ";
        text += &why.to_string();
        cause = why.source();
    }
    text
}
