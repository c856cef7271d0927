//! Calls over pooled connections, one call on one connection at a time, so that it is known of each whether
//! its request has left and how long its answer is.

use std::fmt;

use tokio::time::{Instant, sleep_until, timeout};

use super::{
    StoreError,
    pool::{Connection, Lease, Pool},
    times::Times,
    wire::Meter,
};

/// The connections to one server, and how long what may take.
pub(super) struct Link<C> {
    pool: Pool<C>,
    times: Times,
    /// What the other end is called in errors.
    peer: &'static str,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) struct Silence {
    text: String,
    kind: Kind,
    /// When the request left; `None`: nothing of it has.
    sent: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Late,
    TooLong,
    Lost,
}

impl<C: Connection> Link<C> {
    /// Opens no connection yet.
    pub(super) fn new(most: usize, times: Times, peer: &'static str) -> Self {
        Self { pool: Pool::new(most), times, peer }
    }

    /// A connection that is ready. Where there is none, nothing has changed.
    pub(super) async fn ready(
        &self,
        open: impl AsyncFnOnce() -> Result<C, StoreError>,
    ) -> Result<Lease<'_, C>, StoreError> {
        let late = || StoreError::Down(format!("no connection to {} in time", self.peer));
        timeout(self.times.connect, self.pool.lease(open)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Sends something over a connection with this meter and waits for the answer, of at most so many
    /// bytes. Where none comes, the connection must not be used again; those that nobody has are closed
    /// here, since they are hardly better.
    pub(super) async fn answer<T, E: fmt::Display>(
        &self,
        meter: &Meter,
        most: u64,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Silence> {
        meter.begin(most);
        let begun = Instant::now();
        let (kind, text) = match timeout(self.times.statement, call).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(_)) if meter.is_over() => {
                (Kind::TooLong, format!("an answer of more than {most} bytes"))
            }
            Ok(Err(why)) => (Kind::Lost, why.to_string()),
            Err(_) => (Kind::Late, format!("{} doesn't answer", self.peer)),
        };
        if kind != Kind::TooLong {
            self.forget();
        }
        Err(Silence { text, kind, sent: meter.has_sent().then_some(begun) })
    }

    /// Closes the connections that nobody has.
    pub(super) fn forget(&self) {
        self.pool.forget();
    }

    /// The answer to a write that has none. What was sent may be lying in the other machine's buffers:
    /// it is taken for dead when the time for an answer is over (SEMANTICS 15).
    pub(super) async fn dead(&self, silence: Silence) -> StoreError {
        let Some(sent) = silence.sent else { return StoreError::Down(silence.text) };
        self.wait_out(sent).await;
        StoreError::Timeout(silence.text)
    }

    /// Waits until what was sent then is taken for dead.
    pub(super) async fn wait_out(&self, sent: Instant) {
        sleep_until(sent + self.times.answer).await;
    }
}

impl Silence {
    /// Whether the connection was lost: asking again on another one may help.
    pub(super) fn is_lost(&self) -> bool {
        self.kind == Kind::Lost
    }

    /// Whether nothing of the request has left this process.
    pub(super) fn is_unsent(&self) -> bool {
        self.sent.is_none()
    }

    /// The answer to a read that has none.
    pub(super) fn of_load(self) -> StoreError {
        match self.kind {
            Kind::Late => StoreError::Timeout(self.text),
            Kind::TooLong => StoreError::Refused(self.text),
            Kind::Lost => StoreError::Down(self.text),
        }
    }
}
