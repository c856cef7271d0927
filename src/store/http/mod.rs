//! The store over HTTP: an origin, asked for each key by a URL of its own.
//!
//! - `options.rs`: where the origin is, and how a key becomes a URL;
//! - `link.rs`: the connections, HTTP/1.1; one that broke is replaced;
//! - `freshness.rs`: what an answer says of how long a copy is good for;
//! - `kept.rs`: bodies with an `ETag`, so that what hasn't changed isn't sent again.
//!
//! ```text
//! load    GET URL      200 value, 304 the one that we have, 404 and 410 absent
//! put     PUT URL      2xx done, 412 passed over: the origin has a newer version
//! delete  DELETE URL   2xx, 404 and 410 done, 412 passed over
//! ping    HEAD URL     of no key: anything but a failure
//! ```
//!
//! `Larder-Version` and `Larder-Deadline` (unix milliseconds) go with a change; an origin that keeps them
//! says them with the value. HTTP knows no all or none: a batch is sent one change after the other, and
//! one that ends in the middle is an unknown outcome.

mod freshness;
mod kept;
mod link;
mod options;

use bytes::Bytes;
use futures_util::future::try_join_all;
use hyper::{
    Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use tokio::time::Instant;

pub use self::options::HttpOptions;
use self::{
    kept::{Kept, KeptBody},
    link::{Answer, Ask, Connections},
};
use super::{
    Applied, BoxFuture, Change, Overtaken, Record, Stamp, Store, StoreError, check, check_lengths,
};
use crate::clock::Clock;

/// Loads of one batch that are under way at once.
const AT_ONCE: usize = 16;

const VERSION: HeaderName = HeaderName::from_static("larder-version");
const DEADLINE: HeaderName = HeaderName::from_static("larder-deadline");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// See the module's doc.
pub(super) struct HttpStore {
    connections: Connections,
    options: HttpOptions,
    kept: Kept,
    clock: Clock,
}

impl HttpStore {
    /// Opens no connection yet.
    pub(super) fn new(options: &HttpOptions, clock: Clock) -> Self {
        Self {
            connections: Connections::new(options),
            options: options.clone(),
            kept: Kept::new(options.etag_cache),
            clock,
        }
    }

    async fn load_all(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        keys.iter().try_for_each(|key| check_lengths(key.len(), 0, 0))?;
        let mut found = Vec::with_capacity(keys.len());
        for some in keys.chunks(AT_ONCE) {
            found.extend(try_join_all(some.iter().map(|key| self.load_one(key))).await?);
        }
        Ok(found)
    }

    async fn load_one(&self, key: &Bytes) -> Result<Option<Record>, StoreError> {
        let known = self.kept.get(key);
        let mut ask = Ask::new(Method::GET, self.options.target(key)?);
        if let Some(known) = &known {
            ask = ask.with(header::IF_NONE_MATCH, known.etag.clone());
        }
        let answer = self.connections.ask(&ask).await.map_err(link::Trouble::of_load)?;
        let record = match (answer.status, known) {
            (StatusCode::OK, _) => self.keep(key, answer),
            (StatusCode::NOT_MODIFIED, Some(known)) => stamped(&answer, known.record),
            (StatusCode::NOT_FOUND | StatusCode::GONE, _) => {
                self.kept.forget(key);
                return Ok(None);
            }
            _ => return Err(failure(answer.status)),
        };
        Ok(Some(record).filter(|record| !Stamp::of(record).is_past(self.clock.now())))
    }

    /// The record of a whole answer; with an `ETag` its body is kept for the next time.
    fn keep(&self, key: &Bytes, answer: Answer) -> Record {
        let value = answer.body.clone();
        let record = stamped(&answer, Record { value, ..Record::default() });
        match answer.headers.get(header::ETAG) {
            Some(etag) if !freshness::forbids_keeping(&answer.headers) => {
                self.kept.insert(key, KeptBody { etag: etag.clone(), record: record.clone() });
            }
            _ => self.kept.forget(key),
        }
        record
    }

    async fn apply_all(&self, changes: &[(Bytes, Change)]) -> Applied {
        check(changes, self.options.max_body)?;
        // All are made before the first is sent, so that a key that can't be sent changes nothing.
        let asks = changes.iter().map(|(key, change)| self.ask_of(key, change));
        let asks = asks.collect::<Result<Vec<_>, _>>()?;
        let (mut has_changed, mut overtaken) = (false, Vec::new());
        for (done, (ask, (key, change))) in asks.iter().zip(changes).enumerate() {
            self.kept.forget(key);
            match self.apply_one(ask).await {
                Ok(Done::Changed) => has_changed = true,
                Ok(Done::Same) => {}
                Ok(Done::Overtaken(by)) if by > change.version() => {
                    overtaken.push(Overtaken { place: done, by });
                }
                // By which version the origin doesn't say.
                Ok(Done::Overtaken(_)) => {}
                Err(why) if has_changed => {
                    let text = format!("{done} of {} changes are done, then {why}", changes.len());
                    return Err(StoreError::Timeout(text));
                }
                Err(why) => return Err(why),
            }
        }
        Ok(overtaken)
    }

    fn ask_of(&self, key: &Bytes, change: &Change) -> Result<Ask, StoreError> {
        let target = self.options.target(key)?;
        let ask = match change {
            Change::Put(record) if !Stamp::of(record).is_past(self.clock.now()) => {
                let ask = Ask::new(Method::PUT, target).with(header::CONTENT_TYPE, OCTETS);
                let ask = ask.carrying(record.value.clone());
                match record.deadline {
                    0 => ask,
                    deadline => ask.with(DEADLINE, deadline.into()),
                }
            }
            // A record past its deadline is not there.
            Change::Put(_) | Change::Delete { .. } => Ask::new(Method::DELETE, target),
        };
        Ok(ask.with(VERSION, change.version().into()))
    }

    /// Sends one change.
    async fn apply_one(&self, ask: &Ask) -> Result<Done, StoreError> {
        let begun = Instant::now();
        let answer = match self.connections.ask(ask).await {
            Ok(answer) => answer,
            Err(link::Trouble::Silent(silence)) => {
                return Err(self.connections.dead(silence).await);
            }
            Err(link::Trouble::Known(why)) => return Err(why),
        };
        let is_delete = ask.method == Method::DELETE;
        match answer.status {
            status if status.is_success() => Ok(Done::Changed),
            StatusCode::PRECONDITION_FAILED => {
                Ok(Done::Overtaken(stamped(&answer, Record::default()).version))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE if is_delete => Ok(Done::Same),
            // A program that broke off, or a gateway that lost the origin.
            StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT => {
                self.connections.wait_out(begun).await;
                Err(StoreError::Timeout(said(answer.status)))
            }
            status => Err(failure(status)),
        }
    }

    async fn ping_once(&self) -> Result<(), StoreError> {
        let ask = Ask::new(Method::HEAD, self.options.target(b"")?);
        let answer = self.connections.ask(&ask).await.map_err(link::Trouble::of_load)?;
        match failure(answer.status) {
            down @ StoreError::Down(_) => Err(down),
            _ => Ok(()),
        }
    }
}

/// What an origin has made of a change.
enum Done {
    /// It has done it.
    Changed,
    /// There was nothing to do.
    Same,
    /// It has passed it over for this version; 0 where it doesn't say.
    Overtaken(u64),
}

/// What an answer says of a record beside its value.
fn stamped(answer: &Answer, record: Record) -> Record {
    let number = |name| answer.headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    Record {
        deadline: number(DEADLINE).unwrap_or(record.deadline),
        version: number(VERSION).unwrap_or(record.version),
        fresh_for: freshness::of(&answer.headers).or(record.fresh_for),
        ..record
    }
}

/// A status that is no answer, where nothing has changed (SEMANTICS 17).
fn failure(status: StatusCode) -> StoreError {
    let is_stores_fault = status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS]
            .contains(&status);
    match status {
        _ if is_stores_fault => StoreError::Down(said(status)),
        _ if status.is_redirection() => {
            StoreError::Refused(format!("{}; redirects are not followed", said(status)))
        }
        _ => StoreError::Refused(said(status)),
    }
}

fn said(status: StatusCode) -> String {
    format!("the origin answered {status}")
}

impl Store for HttpStore {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(self.load_all(keys))
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(self.apply_all(changes))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ping_once())
    }

    fn single_loads(&self) -> Option<usize> {
        Some(self.options.pool)
    }

    fn kind(&self) -> &'static str {
        "http"
    }
}

#[cfg(test)]
mod tests;
